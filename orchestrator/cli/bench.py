"""
bench - the command that measures put and take on this machine and filesystem

See also: orchestrator.bench (what is measured, and how).
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from orchestrator import bench as work
from orchestrator.cli import Failed
from orchestrator.config_values import usable_cores


@click.command()
@click.option(
    "--directory",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="DIR",
    help="On which filesystem; a directory of its own is made there.  [default: the system's for temporary files]",
)
@click.option("--messages", type=click.IntRange(10, 10_000_000), default=10_000, show_default=True, metavar="N")
@click.option("--size", type=click.IntRange(0, 1 << 30), default=1024, show_default=True, help="Bytes a message.")
@click.option("--rounds", type=click.IntRange(1, 1000), default=5, show_default=True, metavar="N")
@click.option("--json", "is_json", is_flag=True, help="One JSON object at the end.")
def bench(directory: Path | None, messages: int, size: int, rounds: int, *, is_json: bool) -> None:
    """
    Measure this machine and filesystem.

    How fast messages are put and taken with 1 and 2 processes, as ratios to the bare rename loop (rename,
    open, read, close, unlink in one process, the least that Python can do) in the same round. The ratio is
    the median of the rounds. Nothing is synced.
    """
    if not sys.platform.startswith("linux"):
        raise Failed("bench needs Linux, as run does")
    own = Path(tempfile.mkdtemp(prefix="orchestrator-bench-", dir=directory)).absolute()
    try:
        where = work.filesystem(own)

        def on_round(number: int) -> None:
            if not is_json:
                click.echo(f"round {number} of {rounds}", err=True)

        result = work.bench(own, messages=messages, size=size, rounds=rounds, on_round=on_round)
    finally:
        shutil.rmtree(own)
    warnings = warnings_of(result, where)
    if is_json:
        found = {
            "messages": messages,
            "size": size,
            "rounds": rounds,
            "cores": usable_cores(),
            "python": platform.python_version(),
            "kernel": os.uname().release,
            "filesystem": {"type": where.kind, "device": where.device, "has_journal": where.has_journal},
            "bare": {what: round(rate, 1) for what, rate in result.bare.items()},
            "measures": [one.as_json() for one in result.measures],
            "warnings": warnings,
        }
        click.echo(json.dumps(found))
        return
    title = f"{messages} messages of {size} bytes, {rounds} rounds, {where.kind}, {usable_cores()} cores"
    Console(width=None if sys.stdout.isatty() else 100, highlight=False).print(table(result, title))
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)


def table(result: work.Result, title: str) -> Table:
    """One line for each measurement, the bare loop first."""
    shown = Table(title=title)
    for name in ("what", "processes", "messages/s", "ratio", "min..max"):
        shown.add_column(name, justify="left" if name == "what" else "right")
    for what, rate in result.bare.items():
        shown.add_row(f"bare {what}", "1", f"{rate:.0f}", "1", "")
    for one in result.measures:
        shown.add_row(
            one.what,
            str(one.processes),
            f"{one.rate:.0f}",
            f"{one.ratio:.2f}",
            f"{min(one.ratios):.2f}..{max(one.ratios):.2f}",
        )
    return shown


def warnings_of(result: work.Result, where: work.Filesystem) -> list[str]:
    """What keeps these numbers from being believed, or from being compared."""
    found = [
        f"the rounds of {one.what} with {one.processes} disagree by {one.spread:.0%}: something else uses this"
        " machine; repeat it when it is quiet, with more messages"
        for one in result.disagreeing
    ]
    if where.kind == "ext4" and where.has_journal is None:
        found.append(f"whether the ext4 of {where.device} has a journal is unknown; without one renames are cheaper")
    if where.kind == "ext4" and where.has_journal is False:
        found.append(
            f"the ext4 of {where.device} has no journal: renames and unlinks are cheaper here than on most machines"
        )
    return found
