"""
pool - commands on a running pool: status, stop, drain, reload, scale

status reads the board alone, so it works however busy the master is, and even shows
what the board of a dead one said last (exit code 3). The others signal the master or
ask it through its socket. Without --name the only running pool is meant.
See also: rundir (which pools run), control (the socket), status (the numbers).
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import cast

import click
from rich.console import Console
from rich.table import Table

from orchestrator import control, rundir
from orchestrator.cli import Failed
from orchestrator.config_values import run_directory
from orchestrator.status import snapshot
from workers.board import Board, BoardError
from workers.queues.names import shown
from workers.system import SYSTEM

POLL_S = 0.05  # only where the kernel has no pidfd
PIPED_WIDTH = 200
Command = Callable[..., None]


def pool_options(command: Command) -> Command:
    """Add --name and --run-dir to *command*."""
    command = click.option(
        "--run-dir",
        type=click.Path(file_okay=False, path_type=Path),
        envvar="ORCHESTRATOR_RUN_DIR",
        default=lambda: run_directory(os.environ, os.geteuid()),
        help="Where the pools are; by default a directory of this user's own.",
    )(command)
    return click.option("--name", envvar="ORCHESTRATOR_NAME", help="Name of the pool, where several run.")(command)


timeout_option = click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0),
    default=60,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait until it is gone.",
)


@click.command()
@pool_options
@click.option("--json", "is_json", is_flag=True, help="Print JSON, one object a line for each pool.")
def status(name: str | None, run_dir: Path, is_json: bool) -> None:
    """Show what the running pools are doing."""
    found = rundir.running(run_dir)
    if name is not None or not found:
        try:
            found = [rundir.find(run_dir, name)]
        except rundir.NotRunning:
            board_path = run_dir / name / "board" if name is not None else None
            if board_path is None or not board_path.exists():
                raise
            _print_pools([board_path], is_json)
            raise Failed(
                f"pool {shown(name or '')} is not running: its master died, and this is what the board said last", 3
            ) from None
    _print_pools([one.board_path for one in found], is_json)


@click.command()
@pool_options
@timeout_option
def stop(name: str | None, run_dir: Path, timeout_s: float) -> None:
    """Stop a pool quickly: what is in hand gets term_timeout, then goes back."""
    _end(rundir.find(run_dir, name), signal.SIGTERM, timeout_s)


@click.command()
@pool_options
@timeout_option
def drain(name: str | None, run_dir: Path, timeout_s: float) -> None:
    """Stop a pool when what is in hand is finished, at most stop_timeout."""
    _end(rundir.find(run_dir, name), signal.SIGINT, timeout_s)


@click.command()
@pool_options
def reload(name: str | None, run_dir: Path) -> None:
    """Have a pool read its configuration again; its log says what came of it."""
    found = rundir.find(run_dir, name)
    fd = send(found, signal.SIGHUP)
    if fd is not None:
        os.close(fd)
    click.echo(f"pool {found.name} was told to reload (process {found.pid})")


@click.command()
@click.argument("queue")
@click.argument("workers", type=click.IntRange(min=0))
@pool_options
def scale(queue: str, workers: int, name: str | None, run_dir: Path) -> None:
    """Set how many workers a queue of a pool has, until its configuration says otherwise."""
    found = rundir.find(run_dir, name)
    control.request(found.control_path, "scale", pid=found.pid, queue=queue, workers=workers)
    click.echo(f"queue {shown(queue)} of pool {found.name}: {workers} workers wanted")


def _end(found: rundir.Running, number: signal.Signals, timeout_s: float) -> None:
    fd = send(found, number)
    if not is_gone(found, fd, timeout_s):
        raise Failed(
            f"pool {found.name} (process {found.pid}) is still running {timeout_s:g} s after {number.name}; wait with a"
            f" longer --timeout, or end it at once with 'kill -QUIT {found.pid}'"
        )
    click.echo(f"pool {found.name} has ended")


def send(found: rundir.Running, number: int) -> int | None:
    """Signal the master (0: only look); a descriptor that can be read when it has ended, None where there is none."""
    fd = None
    try:
        with contextlib.suppress(AttributeError):
            try:
                fd = os.pidfd_open(found.pid)
            except ProcessLookupError:
                raise
            except OSError:  # an old kernel, or a filter of system calls
                fd = None
        # RACE: the master ended and its pid was given away since we read the file. The descriptor is of one
        # process for ever, so it is enough to look at the start time after opening it.
        # See test_stop_signals_nobody_who_got_the_pid_of_a_dead_master.
        if SYSTEM.is_alive(found.pid, found.start) is False:
            raise ProcessLookupError
        if fd is None:
            os.kill(found.pid, number)
        else:
            signal.pidfd_send_signal(fd, number)
    except OSError as error:
        if fd is not None:
            os.close(fd)
        if isinstance(error, ProcessLookupError):
            raise rundir.NotRunning(f"pool {found.name} (process {found.pid}) has just ended") from error
        raise Failed(f"cannot signal pool {found.name} (process {found.pid}): {error.strerror}") from error
    return fd


def is_gone(found: rundir.Running, fd: int | None, timeout_s: float) -> bool:
    """Wait for its end, at most *timeout_s*."""
    if fd is not None:
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        try:
            return bool(poller.poll(timeout_s * 1000))
        finally:
            os.close(fd)
    deadline_ns = SYSTEM.boottime_ns() + int(timeout_s * 1e9)
    while SYSTEM.is_alive(found.pid, found.start) is not False:
        if SYSTEM.boottime_ns() >= deadline_ns:
            return False
        SYSTEM.sleep(POLL_S)
    return True


def _print_pools(boards: list[Path], is_json: bool) -> None:
    failures = []
    for path in boards:
        # A pool each: in a directory of root's they may be of several users, and none is to hide the others.
        try:
            pool = snapshot(Board.open(path))
        except FileNotFoundError:
            failures.append(f"{shown(str(path))} is not there: the pool is starting or has just ended; try again")
        except BoardError as error:
            failures.append(str(error))
        else:
            if is_json:
                click.echo(json.dumps(pool))
            else:
                _print_pool(pool)
    if failures:
        raise Failed("\n".join(failures))


def _print_pool(pool: dict[str, object]) -> None:
    is_terminal = sys.stdout.isatty()
    # No markup: "[bold]" in a message's name is just a name.
    console = Console(markup=False, emoji=False, highlight=False, width=None if is_terminal else PIPED_WIDTH)
    console.print(
        f"pool {pool['name']} on {pool['host']}: {pool['state']}, master {pool['master_pid']},"
        f" up {_age(pool['uptime_s'])}, metrics at {pool['listen'] or 'none'}"
    )
    for queue in _rows(pool["queues"]):
        table = Table(title_justify="left", title=_title(queue))
        for column in ("worker", "pid", "state", "done", "retried", "rejected", "exits", "for", "message in hand"):
            table.add_column(column, justify="left" if column in ("state", "message in hand") else "right")
        for worker in _rows(queue["workers"]):
            outcomes, exits = _counts(worker["outcomes"]), _counts(worker["exits"])
            table.add_row(
                str(worker["index"]),
                str(worker["pid"] or ""),
                str(worker["state"]),
                str(outcomes["done"] + outcomes["forwarded"]),
                str(outcomes["retried"]),
                str(outcomes["rejected"]),
                str(sum(exits.values())),
                _age(worker["message_age_s"]) if worker["message"] else "",
                str(worker["message"] or ""),
            )
        console.print(table)


def _title(queue: dict[str, object]) -> str:
    depth = _counts(queue["depth"])
    shown_states = ("waiting", "claimed", "deferred", "errors", *(["ignored"] if depth["ignored"] else []))
    counts = ", ".join(f"{depth[state]} {state}" for state in shown_states)
    notes = [str(queue["state"])]
    noted = (("paused", "paused"), ("output_full", "output full"), ("backed_off", "backed off"))
    notes += [word for key, word in noted if queue[key]]
    notes += [f"not measured for {queue['unmeasured_s']:.0f} s"] if queue["unmeasured_s"] else []
    notes += [str(queue["reason"])] if queue["reason"] else []
    arrivals = f"; arrivals: {queue['arrivals']}" if queue["arrivals"] else ""
    return f"queue {queue['name']}: {', '.join(notes)}; {counts}{arrivals}"


def _rows(value: object) -> list[dict[str, object]]:
    return cast("list[dict[str, object]]", value)


def _counts(value: object) -> dict[str, int]:
    return cast("dict[str, int]", value)


def _age(seconds: object) -> str:
    if not isinstance(seconds, int | float) or seconds < 0:
        return "?"
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"
