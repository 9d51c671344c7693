"""
wakeup - how soon a waiting worker has a message, and who else was woken for it

A real pool of eight waits. A producer notes CLOCK_BOOTTIME and renames a finished file
into incoming/; the handler notes it as soon as it has read the body, and writes it into
the named pipe whose path that is. The next message comes when all have gone back to wait. In
the same round one bare process watches a directory by inotify and does no more than
rename, open, read and write the time: so soon this machine wakes anybody.

A wake-up is a voluntary context switch of a worker's main thread: it had waited, and waits
again. What the same workers do in the same time without any message is taken off. A message
wakes one worker; a herd shows here and as races lost.

Raises: BenchError when the pool does not start, or a message does not arrive.
Limits: Linux. What the workers need at rest is in life.
Source: proc(5), status: voluntary_ctxt_switches is of the main thread.
See also: measure (Figure), life.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import signal
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from orchestrator.bench.crew import CONTEXT
from orchestrator.bench.measure import BenchError, Figure
from orchestrator.watch import Watcher
from workers.board import Board, BoardError, Header, W, WorkerState
from workers.message import Message
from workers.system import SYSTEM, die_with_parent

WORKERS = 8
PATIENCE_S = 20.0
LOOK_S = 0.001
SETTLE_S = 0.003  # from an answer until its worker surely waits again
_STAMP = struct.Struct("=q")
_SWITCHES = re.compile(r"^voluntary_ctxt_switches:\s+(\d+)", re.MULTILINE)

T = TypeVar("T")
P50_MS, P99_MS, WAKEUPS = 0.15, 3.0, 1.05


def stamp(message: Message) -> None:
    """The handler: write the time, CLOCK_BOOTTIME nanoseconds, into the named pipe whose path the body is."""
    _say_now(message.body)


def _say_now(pipe: bytes) -> None:
    now_ns = SYSTEM.boottime_ns()
    fd = os.open(pipe, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, _STAMP.pack(now_ns))
    finally:
        os.close(fd)


def wakeup(directory: Path, rounds: int, messages: int = 300) -> list[Figure]:
    """
    Measure below *directory*, which stays as it was: *rounds* values for each figure.

    *messages* a round, one after the other. About four seconds a round. Raises BenchError.
    """
    found: dict[str, list[float]] = {key: [] for key in ("p50", "p99", "wakeups", "lost", "bare p50", "bare p99")}
    place = directory / "wakeup"
    place.mkdir(0o700)
    try:
        with _answers(place / "answers") as answers, _pool(place) as pool, _bare(place / "bare"):
            for _ in range(rounds):
                measured = _round(pool, answers, messages)
                bare_ms = _latencies_ms(place / "bare", answers, messages)
                measured |= {"bare p50": statistics.median(bare_ms), "bare p99": _percentile(bare_ms, 99)}
                for key, value in measured.items():
                    found[key].append(value)
    finally:
        shutil.rmtree(place)

    def figure(key: str, what: str, unit: str, target: float | None = None) -> Figure:
        return Figure("wakeup", what, unit, found[key], target=target, is_at_most=target is not None)

    return [
        figure("p50", f"rename to handler, {WORKERS} waiting, p50", "ms", P50_MS),
        figure("p99", f"rename to handler, {WORKERS} waiting, p99", "ms", P99_MS),
        figure("bare p50", "rename to read, one bare watcher, p50", "ms"),
        figure("bare p99", "rename to read, one bare watcher, p99", "ms"),
        figure("wakeups", f"wake-ups a message, {WORKERS} waiting", "wake-ups", WAKEUPS),
        figure("lost", f"lost races a message, {WORKERS} waiting", "races"),
    ]


def _round(pool: _Pool, answers: int, messages: int) -> dict[str, float]:
    lost, woken, began_s = pool.lost(), pool.wakeups(), time.monotonic()
    latencies_ms = _latencies_ms(pool.queue, answers, messages)
    took_s = time.monotonic() - began_s
    lost, woken = pool.lost() - lost, pool.wakeups() - woken
    at_rest = pool.wakeups()
    time.sleep(took_s)
    at_rest = pool.wakeups() - at_rest
    return {
        "p50": statistics.median(latencies_ms),
        "p99": _percentile(latencies_ms, 99),
        "wakeups": (woken - at_rest) / messages,
        "lost": lost / messages,
    }


def _latencies_ms(queue: Path, answers: int, messages: int) -> list[float]:
    """How long each of *messages* took, put one after the other into queue/incoming."""
    found = []
    for number in range(messages):
        source, target = queue / "tmp" / f"{number:06d}", queue / "incoming" / f"{number:06d}"
        source.write_bytes(os.fsencode(queue.parent / "answers"))
        put_ns = SYSTEM.boottime_ns()
        os.rename(source, target)
        if not select.select([answers], [], [], PATIENCE_S)[0]:
            raise BenchError(f"nobody had taken a message {PATIENCE_S:g} s after it was put")
        found.append((_STAMP.unpack(os.read(answers, _STAMP.size))[0] - put_ns) / 1e6)
        time.sleep(SETTLE_S)
    return found


def _percentile(values: list[float], percent: int) -> float:
    """The smallest of *values* that *percent* of them do not exceed."""
    return sorted(values)[max(-(-len(values) * percent // 100) - 1, 0)]


@contextlib.contextmanager
def _answers(path: Path) -> Iterator[int]:
    """The named pipe *path*, open to read; for writing as well, so that it never ends."""
    os.mkfifo(path, 0o600)
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _bare(place: Path) -> Iterator[None]:
    """The bare watcher of place/incoming, in a process of its own while the block runs."""
    tmp, incoming, pending = (place / name for name in ("tmp", "incoming", "pending"))
    for path in (tmp, incoming, pending):
        path.mkdir(parents=True)
    parent = os.getpid()
    watcher = Watcher.on(str(incoming))
    if watcher is None:
        raise BenchError(f"{incoming} cannot be watched")

    def main() -> None:
        die_with_parent(parent)
        while True:
            for name in watcher.arrivals(PATIENCE_S) or ():
                claimed = f"{pending}/{name}"
                os.rename(f"{incoming}/{name}", claimed)
                fd = os.open(claimed, os.O_RDONLY | os.O_CLOEXEC)
                body = os.read(fd, 4096)
                _say_now(body)
                os.close(fd)
                os.unlink(claimed)

    process = CONTEXT.Process(target=main)
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()
        watcher.close()


# ---- the pool


@dataclass(slots=True)
class _Pool:
    """A running pool with its workers waiting."""

    queue: Path
    board: Board
    pids: list[int] = field(default_factory=list)

    def lost(self) -> int:
        """Races lost by all workers so far."""
        return sum(self.board.worker(number).words[W.CONFLICTS] for number in range(WORKERS))

    def wakeups(self) -> int:
        """How often the main threads of all workers have gone to wait so far."""
        texts = [Path(f"/proc/{pid}/status").read_text("utf-8", "replace") for pid in self.pids]
        return sum(int(found[1]) for text in texts if (found := _SWITCHES.search(text)))


@contextlib.contextmanager
def _pool(place: Path) -> Iterator[_Pool]:
    """A pool on place/queue, all its workers waiting; ended with the block."""
    words = ["run", str(place / "queue"), "--handler", f"{__name__}:{stamp.__name__}", "--workers", str(WORKERS)]
    options = ["--name", "wakeup", "--run-dir", str(place / "run"), "--listen", "none", "--log-level", "error"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-P", "-m", "orchestrator", *words, *options]
    process = subprocess.Popen(command, env=environment)  # noqa: S603 - ourselves
    try:
        board_path = place / "run" / "wakeup" / "board"
        pool = _Pool(place / "queue", _until(process, lambda: _board(board_path, process.pid)))
        states = [pool.board.worker(number).words for number in range(WORKERS)]
        _until(process, lambda: all(words[W.STATE] == WorkerState.IDLE for words in states) or None)
        pool.pids = [words[W.PID] for words in states]
        yield pool
    finally:
        process.send_signal(signal.SIGQUIT)
        process.wait(PATIENCE_S)


def _board(path: Path, master: int) -> Board | None:
    with contextlib.suppress(FileNotFoundError, BoardError):
        board = Board.open(path)
        if board.header.words[Header.MASTER_PID] == master:
            return board
    return None


def _until(process: subprocess.Popen[bytes], look: Callable[[], T | None]) -> T:
    """What *look* finds, once it does. Raises BenchError when the pool ends or takes too long."""
    end_s = time.monotonic() + PATIENCE_S
    while (found := look()) is None:
        if process.poll() is not None or time.monotonic() > end_s:
            raise BenchError("the pool did not start")
        time.sleep(LOOK_S)
    return found
