"""
life - what a pool costs while it lives: start, respawn, memory, rest

A real ``orchestrator run`` is started and looked at from outside: its board, the queue's
directory, /proc. Nothing is asked of it that an operator could not ask.

Times are from the start of the process (start), or from kill -9 of a worker with a message
in hand (respawn), until the board or the directory shows what was waited for; looked at
every quarter of a millisecond. CPU is that of all threads of a process.

Raises: BenchError when a pool does not do what it is waited for.
Limits: Linux; the rest figure is as good as the machine is idle.
See also: measure (Figure), master (what is measured), SPOOL.md (where a message waits).
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator import exporter
from orchestrator.bench.measure import BenchError, Figure
from orchestrator.child import Exit
from orchestrator.running import bury
from workers.board import Board, BoardError, Header, Slot, W, WorkerState
from workers.queues.names import COUNT_MAX
from workers.queues.open import open_queue
from workers.system import SYSTEM

WORKERS = 32
HELD = 4  # workers of the respawn figure, each with a message in hand
KILLS = 10  # in a round
REST_S = 4.0
SLOTS = 128
RESPAWNS = 10_000
PATIENCE_S = 30.0
LOOK_S = 0.00025

# Beside the queue and not in this package, so that a worker imports nothing but itself for it.
_HOLD = "import signal\n\ndef hold(message):\n    while True:\n        signal.pause()\n"


def life(directory: Path, rounds: int) -> list[Figure]:
    """
    Measure below *directory*, an empty one of the caller's: *rounds* values for each figure.

    Takes about 10 s a round. Raises BenchError.
    """
    (directory / "life_hold.py").write_text(_HOLD)
    found: dict[str, list[float]] = {}
    for number in range(rounds):
        place = directory / f"life-{number}"
        place.mkdir()
        for what, value in {**_crowd(place), **_deaths(place), **_scrapes()}.items():
            found.setdefault(what, []).append(value)

    def figure(what: str, unit: str, target: float | None = None, **more: str) -> Figure:
        others = {name: statistics.median(found[key]) for name, key in more.items()}
        return Figure("life", what, unit, found[what], target=target, is_at_most=target is not None, more=others)

    return [
        figure(f"{WORKERS} workers ready", "s", 1.0, imports="imports"),
        figure("new worker after kill -9", "s", 0.030),
        figure("message waits after kill -9", "s", 0.050),
        figure("private memory of a worker", "bytes", 2 * 1024 * 1024, most="private memory of the largest"),
        figure(f"{WORKERS} workers at rest", "% of a core", 0.2, services="services at rest"),
        figure(f"scrape of {SLOTS} slots", "s", 0.020),
        figure(f"the same after {RESPAWNS} respawns", "s", 0.020),
    ]


# ---- a pool, seen from outside


@dataclass(frozen=True, slots=True)
class _Seen:
    """A running pool: its process, its board, its queue, and when it was started."""

    process: subprocess.Popen[bytes]
    board: Board
    queue: Path
    started_s: float
    opened_s: float

    def worker(self, index: int) -> Slot:
        return self.board.worker(index)

    def until(self, condition: Callable[[], bool], what: str) -> float:
        """Wait for *condition*; when it was seen, by time.perf_counter()."""
        end_s = time.perf_counter() + PATIENCE_S
        while not condition():
            if time.perf_counter() > end_s or self.process.poll() is not None:
                raise BenchError(f"the pool never came to this: {what}")
            time.sleep(LOOK_S)
        return time.perf_counter()

    def is_up(self, index: int, but: int = 0) -> bool:
        """Whether worker *index* is ready to claim, and is not process *but*."""
        words = self.worker(index).words
        return words[W.STATE] in (WorkerState.IDLE, WorkerState.BUSY) and words[W.PID] not in (0, but)


@contextlib.contextmanager
def _pool(place: Path, workers: int, handler: str) -> Iterator[_Seen]:
    """A pool of *workers* on place/queue, ended with the block."""
    queue = place / "queue"
    run = ["run", str(queue), "--handler", handler, "--workers", str(workers), "--name", "life"]
    options = ["--run-dir", str(place / "run"), "--listen", "127.0.0.1:0", "--log-level", "error"]
    # Whoever dies with a message in hand is measured here, and is no fault of the deployment.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(place.parent), *sys.path])}
    environment |= {"ORCHESTRATOR_CRASH_LIMIT": str(COUNT_MAX)}
    board_path = place / "run" / "life" / "board"
    board_path.unlink(missing_ok=True)
    started_s = time.perf_counter()
    command = [sys.executable, "-P", "-m", "orchestrator", *run, *options]
    process = subprocess.Popen(command, env=environment)  # noqa: S603 - ourselves
    try:
        board = None
        while board is None:
            if process.poll() is not None or time.perf_counter() - started_s > PATIENCE_S:
                raise BenchError("the pool did not start")
            with contextlib.suppress(FileNotFoundError, BoardError):
                found = Board.open(board_path)
                board = found if found.header.words[Header.MASTER_PID] == process.pid else None
            time.sleep(LOOK_S)
        yield _Seen(process, board, queue, started_s, time.perf_counter())
    finally:
        process.send_signal(signal.SIGQUIT)
        process.wait(PATIENCE_S)


def _crowd(place: Path) -> dict[str, float]:
    """Many workers with nothing to do: how soon they are ready, what they weigh, what their rest costs."""
    with _pool(place, WORKERS, "workers.handlers.echo:read") as pool:
        ready_s = pool.until(lambda: all(pool.is_up(index) for index in range(WORKERS)), "all workers ready")
        with open_queue(f"spool:{pool.queue}") as queue:
            for _ in range(WORKERS):
                queue.put(b"to be read")
        time.sleep(1.0)  # what a start leaves behind is no rest
        words = pool.board.header.words
        pids = [pool.worker(index).words[W.PID] for index in range(WORKERS)]
        services = [pool.process.pid, words[Header.KEEPER_PID], words[Header.EXPORTER_PID]]
        before = [_cpu_ns(pid) for pid in (*pids, *services)]
        time.sleep(REST_S)
        used = [_cpu_ns(pid) - was for pid, was in zip((*pids, *services), before, strict=True)]
        weights = [_private_bytes(pid) for pid in pids]
    return {
        f"{WORKERS} workers ready": ready_s - pool.started_s,
        "imports": pool.opened_s - pool.started_s,
        "private memory of a worker": statistics.median(weights),
        "private memory of the largest": max(weights),
        f"{WORKERS} workers at rest": sum(used[:WORKERS]) / REST_S / 1e7,
        "services at rest": sum(used[WORKERS:]) / REST_S / 1e7,
    }


def _deaths(place: Path) -> dict[str, float]:
    """Workers killed with a message in hand: when another is ready, and when the message is nobody's."""
    ready, waiting = [], []
    with _pool(place, HELD, "life_hold:hold") as pool:
        pool.until(lambda: all(pool.is_up(index) for index in range(HELD)), "all workers ready")
        with open_queue(f"spool:{pool.queue}") as queue:
            for _ in range(HELD):
                queue.put(b"to be held")
        for number in range(KILLS):
            index = number % HELD
            words = pool.worker(index).words
            pool.until(lambda words=words: words[W.MESSAGE_SINCE_NS] != 0, "a message in hand")  # type: ignore[misc]
            pid = words[W.PID]
            held = next((pool.queue / "pending").glob(f"*{pid}*/*"))
            at_s = time.perf_counter()
            os.kill(pid, signal.SIGKILL)
            seen: dict[str, float] = {}

            def look(index: int = index, pid: int = pid, held: Path = held, seen: dict[str, float] = seen) -> bool:
                if "ready" not in seen and pool.is_up(index, but=pid):
                    seen["ready"] = time.perf_counter()
                if "waiting" not in seen and not held.exists():
                    seen["waiting"] = time.perf_counter()
                return len(seen) == 2

            pool.until(look, "a worker and its message back")
            ready.append(seen["ready"] - at_s)
            waiting.append(seen["waiting"] - at_s)
    return {
        "new worker after kill -9": statistics.median(ready),
        "message waits after kill -9": statistics.median(waiting),
    }


def _scrapes() -> dict[str, float]:
    """A board of many workers over HTTP, fresh and after many deaths."""
    board = Board.create()
    slot = board.take_queue("life", "null:")
    start = SYSTEM.start_ticks(os.getpid()) or 0

    def spawn(index: int) -> Slot:
        found = board.worker(board.take_worker(slot, index))
        found.words[W.PID], found.words[W.START], found.words[W.STATE] = os.getpid(), start, WorkerState.IDLE
        return found

    for index in range(SLOTS):
        spawn(index)
    listener, _ = exporter.bind(("127.0.0.1", 0), is_default=False)
    assert listener is not None  # noqa: S101 - an address was given
    over = threading.Event()
    server = threading.Thread(target=exporter.serve, args=(listener, board), kwargs={"should_leave": over.is_set})
    server.start()
    try:
        url = f"http://{exporter.address(listener)}/metrics"
        fresh = _scrape(url)
        for number in range(RESPAWNS):
            bury(spawn(number % SLOTS), Exit(None, signal.SIGKILL, 1_000_000), "signal")
            spawn(number % SLOTS)
        return {f"scrape of {SLOTS} slots": fresh, f"the same after {RESPAWNS} respawns": _scrape(url)}
    finally:
        over.set()
        server.join()
        listener.close()


def _scrape(url: str) -> float:
    """Seconds, the median of a few; the first, which reads what is kept for ten seconds, is none of them."""
    times = []
    for number in range(10):
        at_s = time.perf_counter()
        with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:  # noqa: S310 - our own address
            answer.read()
        if number:
            times.append(time.perf_counter() - at_s)
    return statistics.median(times)


# ---- /proc


def _cpu_ns(pid: int) -> int:
    """The CPU time of all threads of *pid*. Source: clock_getcpuclockid(3), of which Python has only the threads'."""
    return time.clock_gettime_ns((~pid << 3) | 2)


def _private_bytes(pid: int) -> int:
    """Private dirty memory of *pid*."""
    found = re.search(r"^Private_Dirty:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    if found is None:
        raise BenchError(f"/proc/{pid}/smaps_rollup does not tell private memory")
    return int(found[1]) * 1024
