"""
runlog - commands on the run logs: list, show, evaluate

They read the files alone, so no pool need run. A file that is no run log, or half of
one, is a line of warning and nothing else.
Exit codes: 0 fine, 1 no such run log, 2 usage.
See also: orchestrator.runlog (what stands in them).
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import click
from rich.cells import cell_len
from rich.console import Console, JustifyMethod
from rich.table import Table

from orchestrator import rundir, runlog
from orchestrator.cli import Failed
from orchestrator.cli.pool import pool_options
from workers.queues.names import shown

CODE_MAX = 1000  # no exit code has more digits
COMMAND_WIDTH_MIN = 20  # on the narrowest terminal
LINE_MAX = 1 << 20  # in a pipe

Command = Callable[..., None]
Runs = dict[str, dict[str, object]]


def _options(command: Command) -> Command:
    command = click.option(
        "--runlog-dir",
        type=click.Path(file_okay=False, path_type=Path),
        envvar="ORCHESTRATOR_RUNLOG_DIR",
        help="Where the run logs are.  [default: RUN_DIR/NAME/runlog]",
    )(command)
    return pool_options(command)


@click.group("runlog")
def runlog_() -> None:
    """Look at the run logs of a pool, those of past runs too."""


@runlog_.command("list")
@_options
@click.option("--json", "is_json", is_flag=True, help="One JSON object a line for each run.")
def list_(name: str | None, run_dir: Path, runlog_dir: Path | None, *, is_json: bool) -> None:
    """List the runs, the oldest first."""
    list_runs(directory_of(name, run_dir, runlog_dir), is_json=is_json)


@runlog_.command("show")
@click.argument("label", required=False)
@_options
def show(label: str | None, name: str | None, run_dir: Path, runlog_dir: Path | None) -> None:
    """Print one run log as JSON: LABEL as list prints it, the path of a file, or the newest one."""
    show_run(directory_of(name, run_dir, runlog_dir) if label is None or "/" not in label else None, label)


@runlog_.command("evaluate")
@_options
@click.option("--json", "is_json", is_flag=True, help="One JSON object.")
def evaluate(name: str | None, run_dir: Path, runlog_dir: Path | None, *, is_json: bool) -> None:
    """Say how long the runs took, each and all together."""
    evaluate_runs(directory_of(name, run_dir, runlog_dir), is_json=is_json)


def directory_of(name: str | None, run_dir: Path, runlog_dir: Path | None) -> Path:
    """Where the run logs are: as given, else of the pool called *name*, else of the only one that has some."""
    if runlog_dir is not None:
        return runlog_dir
    if name is not None:
        return run_dir / name / "runlog"
    try:
        listed = sorted(os.listdir(run_dir))
    except FileNotFoundError:
        listed = []
    except OSError as error:
        raise Failed(f"cannot look for run logs in {shown(str(run_dir))}: {error.strerror}") from error
    names = [pool for pool in listed if _has_some(run_dir / pool)]
    if not names:
        raise Failed(
            f"there are no run logs in {shown(str(run_dir))}; if they are elsewhere, give --runlog-dir (a pool that was"
            " given a --name keeps its own, a daemon too)"
        )
    if len(names) > 1:
        raise rundir.Ambiguous(
            f"several pools have run logs in {shown(str(run_dir))}: {', '.join(map(shown, names))};"
            " choose one with --name",
            tuple(names),
        )
    return run_dir / names[0] / "runlog"


def _has_some(pool: Path) -> bool:
    try:
        return (pool / "runlog").is_dir()
    except OSError as error:
        click.echo(f"orchestrator: {shown(str(pool))} is left out: {error.strerror}", err=True)
        return False


def list_runs(directory: Path, *, is_json: bool) -> None:
    """Print a line for each."""
    runs = _read(directory)
    found = [runlog.analyse(label, run, time.time()) for label, run in runs.items()]
    if is_json:
        for one in found:
            click.echo(json.dumps(one.as_json()))
        return
    rows = []
    for one in found:
        run = runs[one.label]
        errors = run.get("errors")
        count = str(len(errors)) if isinstance(errors, list) else "?"
        code = run.get("rc")
        said = str(code) if isinstance(code, int) and abs(code) < CODE_MAX else "" if code is None else "?"
        rows.append((one.label, _text(one.age), one.result, said, count, _text(one.dur_run), one.command))
    _print(("label", "age", "result", "rc", "errors", "run", "command"), rows)


def show_run(directory: Path | None, label: str | None) -> None:
    """Print one; *directory* None: *label* is the path of a file."""
    if directory is None:
        assert label is not None  # noqa: S101 - asked by the callers
        paths = [Path(label)]
    else:
        paths = _files(directory)
        if label is not None:
            paths = [path for path in paths if path.name in (label, f"{label}.runlog")]
        # The newest one that can be read.
        paths = paths[::-1]
    for path in paths:
        runs, warnings = runlog.read([path])
        for warning in warnings:
            click.echo(f"orchestrator: {warning}", err=True)
        for run in runs.values():
            try:
                click.echo(json.dumps(run, indent=4, sort_keys=True))
            except RecursionError:
                raise Failed(f"{shown(str(path))} is nested too deeply to be shown") from None
            return
    where = "" if directory is None else f" in {shown(str(directory))}"
    raise Failed(f"there is no run log{where}" + (f" called {shown(label)}" if label is not None else ""))


def evaluate_runs(directory: Path, *, is_json: bool) -> None:
    """Print the times of each, then the least, the most and the average."""
    found = [runlog.analyse(label, run, time.time()) for label, run in _read(directory).items()]
    columns = {
        "dur_run": [one.dur_run for one in found],
        "dur_proc": [one.dur_proc for one in found],
        "effectivity": [one.effectivity for one in found],
    }
    whole = {
        key: {"min": min(values), "max": max(values), "avg": sum(values) / len(values)}
        for key, values in columns.items()
        if values
    }
    if is_json:
        click.echo(json.dumps({"runs": [one.as_json() for one in found], "all": whole}))
        return
    rows: list[tuple[str, ...]] = []
    for one in found:
        times = [_text(value) for value in (one.dur_run, one.dur_pre, one.dur_proc, one.dur_post)]
        rows.append((one.label, one.result, *times, f"{one.effectivity:.1f}%"))
    for which in ("min", "max", "avg") if found else ():
        run_s, process_s = whole["dur_run"][which], whole["dur_proc"][which]
        rows.append((which, "", _text(run_s), "", _text(process_s), "", f"{whole['effectivity'][which]:.1f}%"))
    _print(("label", "result", "run", "setup", "process", "teardown", "effectivity"), rows)


def _files(directory: Path) -> list[Path]:
    try:
        return runlog.files(directory)
    except OSError as error:
        raise Failed(f"cannot read the run logs of {shown(str(directory))}: {error.strerror}") from error


def _read(directory: Path) -> Runs:
    runs, warnings = runlog.read(_files(directory))
    for warning in warnings:
        click.echo(f"orchestrator: {warning}", err=True)
    return runs


def _print(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """One line for each row; on a terminal a command is folded where it is too long, and nothing else is cut."""
    table = Table(box=None, pad_edge=False)
    width = COMMAND_WIDTH_MIN
    for index, column in enumerate(columns):
        justify: JustifyMethod = "left" if column in ("label", "result", "command") else "right"
        table.add_column(column, justify=justify, no_wrap=column != "command", overflow="fold")
        if column != "command":
            width += max(cell_len(row[index]) for row in (columns, *rows)) + 1
    for row in rows:
        table.add_row(*row)
    # No markup: "[bold]" in a command is just a word.
    console = Console(markup=False, emoji=False, highlight=False)
    console.width = max(console.width, width) if _is_terminal() else LINE_MAX
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():
        click.echo(line.rstrip())  # else a long command would fill up the lines of the others


def _is_terminal() -> bool:
    return sys.stdout.isatty()


def _text(seconds: float) -> str:
    return f"{seconds:,.1f}s"
