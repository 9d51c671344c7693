"""
config - commands on the configuration: check, config show, config reference

None of them needs a master, imports a handler or opens a queue; check looks who may write where queues lie.
Exit codes: 0 fine, 1 the configuration is refused, 2 usage.
See also: orchestrator.config (what is read and how it is checked).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from orchestrator.cli.options import CommandAfterDashes, ConfigPath, configured
from orchestrator.config import NO_VARIABLE, Config, ConfigError, Key, load, load_with_origins, reference, tables
from orchestrator.config_draft import FREE_TABLES, TYPES, Origin
from orchestrator.config_files import Drafts
from orchestrator.config_models import DURATION
from orchestrator.config_toml import written, written_key
from orchestrator.config_values import duration_text
from orchestrator.identity import IdentityError, identify
from orchestrator.logs import escaped
from workers.handlers.command import missing_program
from workers.queues.names import shown
from workers.queues.open import places
from workers.trust import obstacles, risks

AFTERWORD = (
    "ORCHESTRATOR_<KEY> in the environment overrides a key of the files, for every queue (not a queue's name, "
    f"{', '.join(NO_VARIABLE[:-1])} and {NO_VARIABLE[-1]}); a flag overrides both. "
    "ORCHESTRATOR_CONFIG names the files, separated by colons, where no --config does."
)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


@click.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=ConfigPath())
def check(files: tuple[Path, ...]) -> None:
    """
    Check configuration files, or directories of fragments, as they stand, without the environment.

    Every error is told at once, with its file and line. Each FILE is looked at alone, the fragments of a
    directory together; for files that belong together: orchestrator config show --config A --config B.
    Of each queue it is said who else may write where its messages lie, or what keeps it from being made,
    and which program or user is not known here.
    """
    is_fine = True
    for path in files:
        try:
            config = load((path,), flags={}, environment={})
        except ConfigError as error:
            is_fine = False
            click.echo(str(error), err=True)
        else:
            for warning in config.warnings:
                click.echo(f"orchestrator: {escaped(warning)}", err=True)
            queues, workers = _count(len(config.queues), "queue"), _count(config.workers, "worker")
            for text in _absent(config):
                click.echo(f"orchestrator: {escaped(text)}", err=True)
            refused = _told_risks(config)
            is_fine = is_fine and not refused
            if not refused:
                click.echo(f"{shown(str(path))}: fine: {queues}, {workers}")
    if not is_fine:
        sys.exit(1)


def _absent(config: Config) -> Iterator[str]:
    """What the configuration names and this host does not have; the pool's host may."""
    for queue in config.queues:
        if queue.command is None or (not queue.shell and _is_relative(queue.command[0])):
            continue
        if (why := missing_program(queue.command, shell=queue.shell)) is not None:
            yield f"queue {queue.name}: warning: {why}"
    try:
        identify(config.daemon.user, config.daemon.group)
    except IdentityError as error:
        yield f"warning: [daemon] {error}"


def _is_relative(program: str) -> bool:
    """Whether it is a path that begins where the pool will stand."""
    return "/" in program and not os.path.isabs(program)


def _told_risks(config: Config) -> bool:
    """Say who else may write where the queues lie, and what keeps them from being made; whether one is refused."""
    uid = _uid_of_daemon(config)
    found = []
    for queue in config.queues:
        where, is_made = places(queue.url, queue.settings()), queue.create and not queue.url.startswith("set:")
        told = [*risks(where, uid), *obstacles(where, uid, is_made=is_made)]
        found += [(queue.name, risk) for risk in dict.fromkeys(told)]
    for name, risk in found:
        how = "is refused" if risk.is_refused else "warning"
        click.echo(f"orchestrator: queue {name}: {how}: {escaped(str(risk))}", err=True)
    return any(risk.is_refused for _, risk in found)


def _uid_of_daemon(config: Config) -> int | None:
    """Whom a daemon of *config* will run as; None: as we do, or nobody that is known here."""
    try:
        found = identify(config.daemon.user, None)
    except IdentityError:
        return None
    return None if found is None else found.uid


@click.group()
def config() -> None:
    """Show the configuration in force, or every key that there is."""


@config.command("show", cls=CommandAfterDashes)
@click.argument("queues", nargs=-1, metavar="[QUEUE...] [-- COMMAND...]")
@configured
@click.option("--origin", "is_with_origin", is_flag=True, help="Say of each value where it comes from.")
@click.option("--json", "is_json", is_flag=True, help="One JSON object, times in seconds, instead of TOML.")
@click.pass_context
def show(
    ctx: click.Context,
    /,
    queues: tuple[str, ...],
    paths: tuple[Path, ...],
    handler: str | None,
    components: tuple[str, ...],
    *,
    preload: bool,
    shell: bool,
    is_with_origin: bool,
    is_json: bool,
    **flags: str | None,
) -> None:
    """
    Print the configuration in force: files, environment, flags and defaults together, as TOML.

    It takes what run takes. With --origin each value is followed by its file and line, the variable or
    the flag, "derived" (a name, from the path of its queue) or "default".
    """
    try:
        found, drafts = load_with_origins(
            paths,
            flags={**flags, "preload": preload or None, "shell": shell or None},
            environment=os.environ,
            queues=queues,
            handler=handler,
            command=ctx.meta["command"] or None,
            components=components,
            needs_queues=False,
        )
    except ConfigError as error:
        click.echo(str(error), err=True)
        sys.exit(1)
    for warning in found.warnings:
        click.echo(f"orchestrator: {escaped(warning)}", err=True)
    if not is_json:
        click.echo(as_toml(found, drafts if is_with_origin else None), nl=False)
    else:
        plain = as_origins(found, drafts) if is_with_origin else tables(found)
        # What TOML has and JSON has not, in options: dates and times.
        click.echo(json.dumps(plain, indent=2, default=str))


def as_toml(found: Config, drafts: Drafts | None = None) -> str:
    """*found* as a file that means the same; what is not set stands there as a comment. With *drafts*: its origins."""
    lines: list[str] = []
    for kind, rows in _rows(found).items():
        for index, row in enumerate(rows):
            lines += ["", _heading(kind)]
            draft = drafts.of(kind, index) if drafts else None
            for place, value in _leaves(row):
                key = ".".join(written_key(part) for part in place)
                if value is None:
                    line = f"# {key} is not set"
                elif TYPES.get(place[0]) == DURATION and isinstance(value, float):
                    line = f'{key} = "{duration_text(value)}"'
                else:
                    line = f"{key} = {written(value)}"
                lines.append(f"{line}  # {_comment(draft.origin_of(place))}" if draft else line)
    return "\n".join(lines[1:]) + "\n"


def as_origins(found: Config, drafts: Drafts) -> dict[str, object]:
    """For each key its value, the source, the line there, and what it is called there; options as options.KEY."""

    def described(kind: str, index: int, row: dict[str, object]) -> dict[str, object]:
        origins = ((place, value, drafts.of(kind, index).origin_of(place)) for place, value in _leaves(row))
        return {
            ".".join(place): {"value": value, "source": one.source, "line": one.line, "name": one.name}
            for place, value, one in origins
        }

    plain = {kind: [described(kind, n, row) for n, row in enumerate(rows)] for kind, rows in _rows(found).items()}
    return {kind: rows if kind == "queue" else rows[0] for kind, rows in plain.items()}


def _rows(found: Config) -> dict[str, list[dict[str, object]]]:
    return {kind: content if isinstance(content, list) else [content] for kind, content in tables(found).items()}


def _leaves(row: Mapping[str, object]) -> Iterator[tuple[tuple[str, ...], object]]:
    """Each key with its value; those of a free table one by one, for each may have come from elsewhere."""
    for key, value in row.items():
        if key in FREE_TABLES and isinstance(value, dict) and value:
            yield from (((key, part), one) for part, one in value.items())
        else:
            yield (key,), value


def _comment(origin: Origin) -> str:
    return shown(str(origin))


@config.command("reference")
@click.option("--markdown", "form", flag_value="markdown", help="The table of the README.")
@click.option("--json", "form", flag_value="json", help="A list of objects.")
def reference_(form: str | None) -> None:
    """Print every key with its type, default and meaning."""
    keys = reference()
    if form == "json":
        click.echo(json.dumps([key._asdict() for key in keys], indent=2))
    elif form == "markdown":
        click.echo(as_markdown(keys))
    else:
        # A terminal's width where there is one; in a pipe lines long enough not to break.
        console = Console(width=None if sys.stdout.isatty() else 160, highlight=False, markup=False)
        console.print(_as_table(keys))
        console.print(AFTERWORD)


def _heading(table: str) -> str:
    return f"[[{table}]]" if table == "queue" else f"[{table}]"


def as_markdown(keys: list[Key]) -> str:
    """The reference as one table, and the word on environment and flags below it."""
    lines = ["| table | key | type | default | meaning |", "|---|---|---|---|---|"]
    for key in keys:
        cells = (f"`{_heading(key.table)}`", f"`{key.key}`", key.type, key.default, key.meaning)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*lines, "", AFTERWORD.replace("ORCHESTRATOR_<KEY>", "`ORCHESTRATOR_<KEY>`")])


def _as_table(keys: list[Key]) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in ("table", "key", "type", "default", "meaning"):
        table.add_column(title, overflow="fold", no_wrap=title in ("table", "key"))
    for key in keys:
        table.add_row(_heading(key.table), key.key, key.type, key.default, key.meaning)
    return table
