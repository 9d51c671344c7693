"""
report - a verdict for a person, and the same as JSON with keys that stay

JSON: path, verdict (good, one host, not safe), sentence, hosts, findings (key, title, level, measured, why,
do, scope), settings (key, value, reason), toml, and what was measured under facts.

See also: verdict, facts.
"""

from __future__ import annotations

from dataclasses import asdict

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from orchestrator.doctor.facts import Examined
from orchestrator.doctor.findings import Finding, Level, named
from orchestrator.doctor.verdict import Verdict, Word
from workers.queues.names import shown

NARROW = 80  # columns: below, what was found stands on lines of its own

_STYLES: dict[Level, str] = {"ok": "green", "note": "cyan", "warning": "yellow", "failed": "bold red"}
_COLOURS: dict[Word, str] = {"good": "bold green", "one host": "bold yellow", "not safe": "bold red"}


def as_json(examined: Examined, found: Verdict) -> dict[str, object]:
    """For scripts."""
    return {
        "path": examined.path,
        "verdict": found.word,
        "sentence": found.sentence,
        "hosts": named([host.id for host in examined.hosts]),
        "findings": [_plain(one) for one in found.findings],
        "settings": [{"key": one.key, "value": one.value, "reason": one.reason} for one in found.settings],
        "toml": found.toml,
        "facts": examined.model_dump(mode="json"),
    }


def _plain(one: Finding) -> dict[str, str]:
    plain = {key: text for key, text in asdict(one).items() if key != "because"}
    # What would have been the matter is nothing to say of what is well.
    return plain | {"why": "", "do": ""} if one.level == "ok" else plain


def show(examined: Examined, found: Verdict, console: Console) -> None:
    """For a person: all findings, then what to do about those that are not ok, then the verdict and the settings."""
    hosts = ", ".join(named([host.id for host in examined.hosts]))
    console.print(Text(f"{shown(examined.path)}, from {hosts}", style="bold"))
    console.print()
    for scope, title in (("host", ""), ("hosts", "between hosts")):
        rows = [one for one in found.findings if _scope(one) == scope]
        if rows:
            if title:
                console.print(Text(title, style="bold"))
            if console.width < NARROW:
                for one in rows:
                    console.print(Text(f"{one.level}  {one.title}", style=_STYLES[one.level]))
                    console.print(Padding(Text(_words(one), overflow="fold"), (0, 0, 0, 2)))
            else:
                console.print(_table(rows))
            console.print()
    console.print(Text(found.sentence, style=_COLOURS[found.word]))
    if found.toml:
        console.print(
            "\nSettings that differ from the defaults, for a configuration (orchestrator config reference):\n"
        )
        console.print(Padding(Text(found.toml.rstrip("\n")), (0, 0, 0, 2)))


def _scope(one: Finding) -> str:
    return "hosts" if one.key.startswith("hosts.") else "host"


def _table(rows: list[Finding]) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for one in rows:
        table.add_row(Text(one.level, style=_STYLES[one.level]), one.title, Text(_words(one)))
    return table


def _words(one: Finding) -> str:
    words = [one.measured]
    if one.level != "ok":
        words += [f"why: {one.why}"] if one.why else []
        words += [f"do: {one.do}"] if one.do else []
    return "\n".join(words)
