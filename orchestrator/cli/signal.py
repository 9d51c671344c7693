"""
signal - the command that signals a running pool, and says what came of it

The pool is found by its name, the whole of it, and only a living master's process is
signalled, by a descriptor of that very process. For usr1 and usr2 the file is waited for.
Exit codes: 0 done, 1 failed, 2 usage, 3 no such pool is running.
See also: master (what each signal does), pool (stop and drain, which wait for the end).
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import click

from orchestrator import control, rundir
from orchestrator.cli import Failed
from orchestrator.cli.pool import POLL_S, pool_options, send
from orchestrator.status import snapshot
from workers.board import Board, BoardError
from workers.queues.names import shown
from workers.system import SYSTEM

# What is said of each when it was sent; of the others more is known, see tell().
SAID = {
    "check": "",
    "alrm": "it looks at everything at once",
    "hup": "it reads its configuration again; its log says what came of it",
    "int": "it drains; 'orchestrator drain' would wait for the end",
    "term": "it stops quickly; 'orchestrator stop' would wait for the end",
    "quit": "it ends at once",
    "usr1": "runlog",
    "usr2": "state",
    "ttin": "it gets one worker more for each queue",
    "ttou": "it gets one worker less for each queue",
}
ANSWER_S = 10.0


@click.command("signal")
@click.argument("which", metavar="|".join(SAID), type=click.Choice(list(SAID)))
@pool_options
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0),
    default=ANSWER_S,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for the file of usr1 and usr2.",
)
def signal_(which: str, name: str | None, run_dir: Path, timeout_s: float) -> None:
    """
    Signal a running pool.

    check only looks whether it lives. usr1 has the run log written and the log file opened anew, usr2 has
    the state written; both wait for the file and print its path.
    """
    tell(rundir.find(run_dir, name), which, timeout_s)


def tell(found: rundir.Running, which: str, timeout_s: float = ANSWER_S) -> None:
    """Send it, and print what was done and what came of it. Raises NotRunning and Failed."""
    number = getattr(signal, f"SIG{which.upper()}", None)
    path = _report(found, SAID[which]) if which in ("usr1", "usr2") else None
    before = _version(path)
    said = "0" if number is None else number.name
    click.echo(f"Sending signal '{said}' to process '{found.pid}' [{shown(str(found.directory / 'pid'))}]")
    fd = send(found, number or 0)
    if fd is not None:
        os.close(fd)
    if path is None:
        click.echo(f"pool {found.name}: {SAID[which] or _life(found)}")
        return
    end_ns = SYSTEM.boottime_ns() + int(timeout_s * 1e9)
    while (now := _version(path)) in (None, before):
        if SYSTEM.is_alive(found.pid, found.start) is False:
            raise rundir.NotRunning(f"pool {found.name} (process {found.pid}) has ended meanwhile")
        if SYSTEM.boottime_ns() >= end_ns:
            raise Failed(f"{shown(str(path))} was not written within {timeout_s:g} s; the log of the pool says why")
        SYSTEM.sleep(POLL_S)
    assert now is not None  # noqa: S101 - the condition of the loop
    click.echo(f"pool {found.name}: the {SAID[which]} is in {shown(str(path))}")


def _report(found: rundir.Running, kind: str) -> Path:
    """Where the master writes it. Raises Failed."""
    try:
        path = control.request(found.control_path, "ping").get(kind)
    except control.ControlError as error:
        raise Failed(f"nothing was sent: {error}") from error
    if not isinstance(path, str):
        raise Failed(f"pool {found.name} has no {kind}: its log says why")
    # A daemon may have a root directory of its own.
    root = Path(f"/proc/{found.pid}/root")
    with contextlib.suppress(OSError):
        if not os.path.samefile(root, "/"):
            return root / path.removeprefix("/")
    return Path(path)


def _version(path: Path | None) -> tuple[int, int] | None:
    try:
        info = os.stat(path) if path is not None else None
    except OSError:
        return None
    return (info.st_ino, info.st_mtime_ns) if info is not None else None


def _life(found: rundir.Running) -> str:
    try:
        status = snapshot(Board.open(found.board_path))
    except (OSError, BoardError):
        return "it lives, and is starting or ending"
    trouble = status["unhealthy_because"]
    return f"it lives and is {status['state']}" + (f", but {trouble}" if trouble else "")
