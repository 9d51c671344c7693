"""
bench - the command that measures this machine and filesystem, and this project beside its peers

See also: orchestrator.bench (what is measured, and how), bench.targets (what is wanted).
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import click
from rich.console import Console

from orchestrator.bench import calls, peers, report
from orchestrator.bench.bare import Bare, C, compiled
from orchestrator.bench.filesystem import Filesystem, check_room, filesystem
from orchestrator.bench.measure import Figure, LeftOut
from orchestrator.bench.ours import Library
from orchestrator.bench.picture import picture
from orchestrator.bench.pool import Pool
from orchestrator.bench.rounds import Rounds
from orchestrator.bench.subject import Load, Subject
from orchestrator.bench.targets import aims
from orchestrator.cli import Failed
from orchestrator.config_values import usable_cores
from workers.queues.base import Order

OF_SUBJECTS = ("throughput", "workers", "backlog")
# Each is orchestrator.bench.NAME:NAME(directory, rounds).
OF_THEIR_OWN = ("ddmq", "dirq", "durable", "life", "network", "wakeup")
SUITES = (*OF_SUBJECTS, *OF_THEIR_OWN)
OF_BACKLOG = ("bare", "pool", *peers.names())
OURS = ("split", "library", "pool")
COLUMNS = 140


def words(read: Callable[[str], object]) -> Callable[[click.Context, click.Parameter, str], list[object]]:
    """The callback of an option that is words with commas between them, each read by *read*."""

    def split(_ctx: click.Context, _param: click.Parameter, value: str) -> list[object]:
        found = []
        for word in value.split(","):
            try:
                found.append(read(word.strip()))
            except ValueError as error:
                raise click.BadParameter(f"{word.strip()!r}: {error}") from error
        return found

    return split


def _count(word: str) -> int:
    if not word.isdecimal() or not int(word):
        raise ValueError("a whole number above 0 is wanted")
    return int(word)


def _suite(word: str) -> str:
    if word not in (*SUITES, "all"):
        raise ValueError(f"the suites are {', '.join(SUITES)} and all")
    return word


@click.command()
@click.option(
    "--directory",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="DIR",
    help="On which filesystem; a directory of its own is made there.  [default: the system's for temporary files]",
)
@click.option("--messages", type=click.IntRange(10, 10_000_000), default=10_000, show_default=True, metavar="N")
@click.option("--size", type=click.IntRange(0, 1 << 30), default=1024, show_default=True, help="Bytes a message.")
@click.option("--rounds", type=click.IntRange(1, 1000), default=3, show_default=True, metavar="N")
@click.option("--order", type=click.Choice(["any", "fifo"]), default="fifo", show_default=True)
@click.option(
    "--workers",
    "counts",
    callback=words(_count),
    default="1,2,4,8,32",
    show_default=True,
    metavar="N,N",
    help="Of the suite workers.",
)
@click.option(
    "--backlog",
    "backlogs",
    callback=words(_count),
    default="10000,100000",
    show_default=True,
    metavar="N,N",
    help="Of the suite backlog.",
)
@click.option(
    "--suite",
    "suites",
    callback=words(_suite),
    default="throughput",
    show_default=True,
    metavar="NAME,NAME",
    help=f"Of {', '.join(SUITES)}; or all.",
)
@click.option(
    "--peer",
    type=click.Choice(["all", "none", *peers.names()]),
    default="all",
    show_default=True,
    help="Which other queues are measured beside, where they are installed.",
)
@click.option("--calls/--no-calls", "has_calls", default=True, help="Count system calls, where strace is installed.")
@click.option("--json", "is_json", is_flag=True, help="One JSON object at the end.")
@click.option("--picture", "svg", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Draw an SVG.")
def bench(
    directory: Path | None,
    *,
    messages: int,
    size: int,
    rounds: int,
    order: str,
    counts: list[int],
    backlogs: list[int],
    suites: list[str],
    peer: str,
    has_calls: bool,
    is_json: bool,
    svg: Path | None,
) -> None:
    """
    Measure this machine and filesystem.

    How fast messages are put and taken: by the bare loop (rename, open, read, close, unlink; the least that a
    consumer can do), in Python and C, by this library, by a pool, and by every peer that is installed; as ratios to
    the bare loop in the same round. A slow peer stops after half a second, and the table says how many messages
    that were. Nothing is synced, except in the suite durable.
    """
    if not sys.platform.startswith("linux"):
        raise Failed("bench needs Linux, as run does")
    chosen = [suite for suite in SUITES if suite in suites or "all" in suites]
    load = Load(messages, b"x" * size, order=cast("Order", order))
    own = Path(tempfile.mkdtemp(prefix="orchestrator-bench-", dir=directory)).absolute()

    def on_round(suite: str, number: int) -> None:
        click.echo(f"{suite}: round {number} of {rounds}", err=True)

    try:
        where = filesystem(own)
        check_room(own, max([messages, *(backlogs if "backlog" in chosen else [])]), size)
        subjects, skipped = _subjects(own, peer) if set(chosen) & set(OF_SUBJECTS) else ([], {})
        measuring = Rounds(own, rounds, on_round, skipped)
        figures = [
            figure
            for suite in chosen
            for figure in _measured(suite, measuring, subjects, load, counts=counts, backlogs=backlogs)
        ]
        if has_calls:
            figures = _with_calls(figures, own, load)
    finally:
        shutil.rmtree(own)
    title = f"{messages} messages of {size} bytes, {order}, {rounds} rounds, {where.kind}, {usable_cores()} cores"
    if svg is not None:
        svg.write_text(picture(figures, title), encoding="utf-8")
    wanted, warnings = aims(figures, where.kind), warnings_of(figures, where)
    if is_json:
        answer = {
            "messages": messages,
            "size": size,
            "rounds": rounds,
            "order": order,
            "cores": usable_cores(),
            "python": platform.python_version(),
            "kernel": os.uname().release,
            "filesystem": {"type": where.kind, "device": where.device, "has_journal": where.has_journal},
            "figures": [report.as_json(figure) for figure in figures],
            "targets": [report.as_json(figure) for figure in wanted],
            "skipped": skipped,
            "warnings": warnings,
        }
        click.echo(json.dumps(answer))
    else:
        _print(chosen, figures, wanted, title)
        for name, reason in skipped.items():
            click.echo(f"left out: {name}: {reason}", err=True)
        for warning in warnings:
            click.echo(f"warning: {warning}", err=True)
    broken = [name for name in skipped if name.partition(",")[0] in OURS]
    if broken:
        raise Failed(f"could not be measured: {'; '.join(f'{name}: {skipped[name]}' for name in broken)}")


def _print(chosen: list[str], figures: list[Figure], wanted: list[Figure], title: str) -> None:
    """The tables, for a person."""
    console = Console(width=None if sys.stdout.isatty() else COLUMNS, highlight=False)
    for suite in chosen:
        console.print(report.table(suite, figures, title))
    if wanted:
        console.print(report.aims_table(wanted))


def _measured(
    suite: str,
    measuring: Rounds,
    subjects: list[Subject],
    load: Load,
    *,
    counts: list[int],
    backlogs: list[int],
) -> list[Figure]:
    """The figures of one suite."""
    match suite:
        case "throughput":
            return measuring.throughput(subjects, load)
        case "workers":
            return measuring.workers(subjects, load, counts)
        case "backlog":
            return measuring.backlog([one for one in subjects if one.name in OF_BACKLOG], load, backlogs)
    click.echo(f"{suite}: {measuring.rounds} rounds", err=True)
    measure: Callable[[Path, int], list[Figure]]
    measure = getattr(importlib.import_module(f"orchestrator.bench.{suite}"), suite)
    try:
        return measure(measuring.directory, measuring.rounds)
    except LeftOut as reason:
        measuring.failed[suite] = str(reason)
        return []


def _subjects(directory: Path, peer: str) -> tuple[list[Subject], dict[str, str]]:
    """What is measured, the bare loop first; and what is not, and why."""
    found, skipped = peers.installed(peer)
    program = compiled(directory)
    in_c: list[Subject] = []
    if isinstance(program, Path):
        in_c = [C(program), C(program, is_split=True)]
    else:
        skipped["c bare"] = program
    return [Bare(), Bare(is_split=True), *in_c, Library(), Pool(), *found], skipped


def _with_calls(figures: list[Figure], directory: Path, load: Load) -> list[Figure]:
    """The figures with the system calls a message of throughput, where those can be counted."""
    own = [figure for figure in figures if figure.suite == "throughput"]
    if own:
        click.echo("throughput: counting system calls", err=True)
    counted: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(figure.what.partition(", ")[0].rpartition(" ")[0] for figure in own):
        for verb, found in calls.calls_of(name, directory, load).items():
            counted[f"{name} {verb}, 1"] = found
    return [
        replace(figure, more={**figure.more, "calls": sum(counted[figure.what].values())})
        if figure in own and counted.get(figure.what)
        else figure
        for figure in figures
    ]


def warnings_of(figures: list[Figure], where: Filesystem) -> list[str]:
    """What keeps these numbers from being believed, or from being compared."""
    disagreeing = [f"{figure.what} ({figure.spread:.0%})" for figure in figures if figure.is_disagreeing]
    found = []
    if disagreeing:
        found.append(
            f"the rounds disagree: {', '.join(disagreeing)}; something else uses this machine:"
            " repeat it when it is quiet, with more messages"
        )
    if where.kind == "ext4" and where.has_journal is None:
        found.append(f"whether the ext4 of {where.device} has a journal is unknown; without one renames are cheaper")
    if where.kind == "ext4" and where.has_journal is False:
        found.append(
            f"the ext4 of {where.device} has no journal: renames and unlinks are cheaper here than on most machines"
        )
    return found
