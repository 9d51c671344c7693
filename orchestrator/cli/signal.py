"""
signal - the command that signals a running pool, and says what came of it

The pool is found by its name, the whole of it, and only a living master's process is
signalled, by a descriptor of that very process. For usr1 and usr2 the file is waited for,
by a child that may be left behind: the file's directory may hang.
Exit codes: 0 done, 1 failed, 2 usage, 3 no such pool is running.
See also: master (what each signal does), pool (stop and drain, which wait for the end).
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import click

from orchestrator import control, rundir
from orchestrator.cli import Failed
from orchestrator.cli.pool import POLL_S, pool_options, send
from orchestrator.status import snapshot
from workers.board import Board, BoardError
from workers.queues.names import shown
from workers.system import SYSTEM, die_with_parent
from workers.waiting import readable_within

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
PING_S = 5.0
BEFORE, ANOTHER = b"b", b"a"


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
    if which not in ("usr1", "usr2"):
        _send(found, getattr(signal, f"SIG{which.upper()}", None))
        click.echo(f"pool {found.name}: {SAID[which] or _life(found)}")
        return
    end_s = time.monotonic() + timeout_s
    path = _report(found, SAID[which], timeout_s)
    with _looking(path) as pipe:
        # Sent all the same when the directory does not answer; only what comes of it cannot be seen then.
        readable_within(pipe, max(end_s - time.monotonic(), 0.0) / 2)
        _send(found, getattr(signal, f"SIG{which.upper()}"))
        while (left_s := end_s - time.monotonic()) > 0:
            if readable_within(pipe, min(left_s, POLL_S)) and (said := os.read(pipe, 1)) != BEFORE:
                break
            if SYSTEM.is_alive(found.pid, found.start) is False:
                raise rundir.NotRunning(f"pool {found.name} (process {found.pid}) has ended meanwhile")
        else:
            said = b""
    if said != ANOTHER:
        raise Failed(f"{shown(str(path))} was not written within {timeout_s:g} s; the log of the pool says why")
    click.echo(f"pool {found.name}: the {SAID[which]} is in {shown(str(path))}")


def _send(found: rundir.Running, number: signal.Signals | None) -> None:
    said = "0" if number is None else number.name
    click.echo(f"Sending signal '{said}' to process '{found.pid}' [{shown(str(found.directory / 'pid'))}]")
    fd = send(found, number or 0)
    if fd is not None:
        os.close(fd)


@contextlib.contextmanager
def _looking(path: Path) -> Iterator[int]:
    """A pipe in which a child says BEFORE when it knows the version that is there, then ANOTHER when there is one."""
    pipe, writer = os.pipe2(os.O_CLOEXEC)
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        try:
            _look(path, writer, parent)
        finally:
            os._exit(0)
    os.close(writer)
    try:
        yield pipe
    finally:
        os.close(pipe)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, os.WNOHANG)  # where it hangs it is left behind


def _look(path: Path, writer: int, parent: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)  # who reads what we say is not to wait for a child that hangs
    die_with_parent(parent)
    before = _version(path)
    os.write(writer, BEFORE)
    while _version(path) in (None, before):
        SYSTEM.sleep(POLL_S)
    os.write(writer, ANOTHER)


def _report(found: rundir.Running, kind: str, timeout_s: float) -> Path:
    """Where the master writes it. Raises Failed."""
    try:
        path = control.request(found.control_path, "ping", min(timeout_s, PING_S), pid=found.pid).get(kind)
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


def _version(path: Path) -> tuple[int, int] | None:
    try:
        info = os.stat(path)
    except OSError:
        return None
    return (info.st_ino, info.st_mtime_ns)


def _life(found: rundir.Running) -> str:
    try:
        status = snapshot(Board.open(found.board_path))
    except (OSError, BoardError):
        return "it lives, and is starting or ending"
    trouble = status["unhealthy_because"]
    return f"it lives and is {status['state']}" + (f", but {trouble}" if trouble else "")
