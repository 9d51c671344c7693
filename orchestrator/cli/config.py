"""
config - commands on the configuration: check, config show, config reference

None of them needs a master, imports a handler or looks at a queue.
Exit codes: 0 fine, 1 the configuration is refused, 2 usage.
See also: orchestrator.config (what is read and how it is checked).
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from orchestrator.config import Config, ConfigError, Key, load, reference, tables
from orchestrator.config_values import duration_text

AFTERWORD = (
    "ORCHESTRATOR_<KEY> in the environment overrides a key of the file, for every queue (not a queue's name, url,"
    " command and shell); a flag overrides both."
)

_FILE = click.Path(path_type=Path)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


@click.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=_FILE)
def check(files: tuple[Path, ...]) -> None:
    """
    Check configuration files, as they stand, without the environment.

    Every error of a file is told at once, with its line.
    """
    is_fine = True
    for path in files:
        try:
            config = load(path, flags={}, environment={})
        except ConfigError as error:
            is_fine = False
            click.echo(str(error), err=True)
        else:
            queues, workers = _count(len(config.queues), "queue"), _count(config.workers, "worker")
            click.echo(f"{click.format_filename(path)}: fine: {queues}, {workers}")
    if not is_fine:
        sys.exit(1)


@click.group()
def config() -> None:
    """Show the configuration in force, or every key that there is."""


@config.command("show")
@click.option("--config", "path", metavar="FILE", type=_FILE, help="The TOML file; without it the defaults.")
@click.option("--json", "is_json", is_flag=True, help="One JSON object, times in seconds, instead of TOML.")
def show(path: Path | None, is_json: bool) -> None:
    """Print the configuration in force: file, environment and defaults together, as TOML."""
    try:
        found = load(path, flags={}, environment=os.environ, needs_queues=False)
    except ConfigError as error:
        click.echo(str(error), err=True)
        sys.exit(1)
    for warning in found.warnings:
        click.echo(f"orchestrator: {warning}", err=True)
    click.echo(json.dumps(tables(found), indent=2) if is_json else as_toml(found), nl=is_json)


def as_toml(found: Config) -> str:
    """*found* as a file that means the same; what is not set stands there as a comment."""
    lines: list[str] = []
    for table, content in tables(found).items():
        rows = content if isinstance(content, list) else [content]
        for row in rows:
            lines += ["", _heading(table)]
            for key, value in row.items():
                if value is None:
                    lines.append(f"# {key} is not set")
                elif isinstance(value, float):  # durations are the only ones
                    lines.append(f'{key} = "{duration_text(value)}"')
                else:
                    lines.append(f"{key} = {_quoted(value)}")
    return "\n".join(lines[1:]) + "\n"


def _quoted(value: object) -> str:
    # JSON's texts are TOML's, but for DEL, which TOML wants escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


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
