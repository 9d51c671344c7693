"""
bench - what this library costs on this machine and filesystem, as ratios to the bare rename loop

The bare loop is the least that a consumer in Python can do: list, then for each message
rename into a directory of its own, open, read, close, unlink. Putting: open O_EXCL in
tmp/, write, close, rename. Rates alone say more of the machine than of us, so each
measurement is divided by that of the bare loop in the same round, and the order of
the measurements turns from round to round.

Workers are real processes that run workers.worker.Worker over a board, as in a pool,
with a handler that reads the body. They are forked and attached first and measured from
the opening of a gate until all of them found the queue empty. No master and no keeper
runs beside them; what those cost does not grow with messages. Nothing is synced: a
disk's fsync would hide everything else.

Raises: BenchError when a measurement is none (a worker died, messages were left).
Limits: Linux; main thread only, for it forks.
Long because: what is measured and the loop it is measured against are read side by side.
See also: cli.bench (the table), workers.worker.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from multiprocess import get_context

from workers.board import Board, Q, W
from workers.errors import OrchestratorError
from workers.handlers import echo
from workers.queues import names
from workers.queues.base import Consumer
from workers.queues.open import open_queue
from workers.system import SYSTEM, die_with_parent
from workers.worker import Leaving, Worker

SPREAD_MAX = 0.3
LEASE_NS = 1 << 62  # no keeper beats here, and no measurement takes a century

_CONTEXT = get_context("fork")


class BenchError(OrchestratorError):
    """What was measured is not what should have been."""


@dataclass(frozen=True, slots=True)
class Measure:
    """
    One line of the table.

    Attributes:
        what: "put" or "take"; processes: how many did it.
        rates: messages a second, one for each round; ratios: to the bare loop's rate in that round.
    """

    what: str
    processes: int
    rates: list[float]
    ratios: list[float]

    @property
    def rate(self) -> float:
        """The median rate."""
        return statistics.median(self.rates)

    @property
    def ratio(self) -> float:
        """The median ratio; 1 is as fast as the bare loop in one process."""
        return statistics.median(self.ratios)

    @property
    def spread(self) -> float:
        """How far the rounds disagree: the largest less the smallest ratio, over the median."""
        return (max(self.ratios) - min(self.ratios)) / self.ratio

    def as_json(self) -> dict[str, object]:
        """For scripts."""
        return {
            "what": self.what,
            "processes": self.processes,
            "rate": round(self.rate, 1),
            "ratio": round(self.ratio, 4),
            "ratio_min": round(min(self.ratios), 4),
            "ratio_max": round(max(self.ratios), 4),
            "spread": round(self.spread, 4),
        }


@dataclass(frozen=True, slots=True)
class Result:
    """A whole bench. *bare* are the median rates of the bare loop, messages a second."""

    measures: list[Measure]
    bare: dict[str, float]

    @property
    def disagreeing(self) -> list[Measure]:
        """Those whose rounds disagree too much to be believed."""
        return [one for one in self.measures if one.spread > SPREAD_MAX]


def bench(directory: Path, *, messages: int, size: int, rounds: int, on_round: Callable[[int], None]) -> Result:
    """
    Measure below *directory*, which must be empty and stays empty.

    *size* in bytes; *on_round* is called with the number of each finished round. Blocks for seconds a round.
    """
    body = os.urandom(size)
    rates: dict[tuple[str, int], list[float]] = {
        (what, count): [] for count in (0, 1, 2) for what in ("put", "take")
    }  # 0: the bare loop
    for number in range(rounds):
        # Whoever comes first in a round meets the others' leftovers in caches: each in turn.
        for turn in range(3):
            count = (number + turn) % 3
            place = directory / f"{number}.{count}"
            put_s, take_s = (_bare if count == 0 else _library)(place, messages, body, count)
            rates["put", count].append(messages / put_s)
            rates["take", count].append(messages / take_s)
            shutil.rmtree(place)
        on_round(number + 1)
    measures = []
    for what in ("put", "take"):
        bare = rates[what, 0]
        for count in (1, 2):
            found = rates[what, count]
            ratios = [rate / base for rate, base in zip(found, bare, strict=True)]
            measures.append(Measure(what, count, found, ratios))
    return Result(measures, {what: statistics.median(rates[what, 0]) for what in ("put", "take")})


# ---- the bare loop


def _bare(place: Path, messages: int, body: bytes, _count: int) -> tuple[float, float]:
    """Seconds to put and to take, in this process."""
    tmp, incoming, pending = (str(place / name) for name in ("tmp", "incoming", "pending"))
    for path in (tmp, incoming, pending):
        os.makedirs(path, 0o700)
    prefix = f"{int(time.time())}.bench"
    started_s = time.perf_counter()
    for number in range(messages):
        name = f"{prefix}{number:08d}"
        fd = os.open(f"{tmp}/{name}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.write(fd, body)
        os.close(fd)
        os.rename(f"{tmp}/{name}", f"{incoming}/{name}")
    put_s = time.perf_counter() - started_s
    started_s = time.perf_counter()
    for name in sorted(os.listdir(incoming)):
        claimed = f"{pending}/{name}"
        os.rename(f"{incoming}/{name}", claimed)
        fd = os.open(claimed, os.O_RDONLY | os.O_CLOEXEC)
        os.read(fd, len(body) + 1)
        os.close(fd)
        os.unlink(claimed)
    return put_s, time.perf_counter() - started_s


# ---- the library


def _library(place: Path, messages: int, body: bytes, count: int) -> tuple[float, float]:
    """Seconds to put and to take, with *count* producers and then *count* workers."""
    place.mkdir(0o700)
    url = f"spool:{place}/queue"
    open_queue(url, create=True).close()
    shares = [messages // count + (index < messages % count) for index in range(count)]
    put_s = _timed(count, lambda index, gate: _produce(url, shares[index], body, gate))
    board = Board.create()
    slot = board.take_queue("bench", url)
    words = board.queues[slot].words
    words[Q.HALF_TIMEOUT_NS], words[Q.BEAT_NS] = LEASE_NS, SYSTEM.boottime_ns()
    master = names.master_name("bench", SYSTEM)
    slots = [board.take_worker(slot, index) for index in range(count)]
    consumers = [Consumer(master, board, slot, slots[index], index, count) for index in range(count)]
    take_s = _timed(count, lambda index, gate: _work(url, consumers[index], gate))
    done = sum(board.worker(number).words[W.DONE] for number in slots)
    if done != messages:
        raise BenchError(f"{done} of {messages} messages in {url} were handled; is anybody else using that directory?")
    return put_s, take_s


@dataclass(frozen=True, slots=True)
class _Gate:
    """What a measured process says and waits for."""

    pass_: Callable[[], None]  # everything is prepared: wait for the others
    finish: Callable[[], None]  # the measured part is over


def _produce(url: str, count: int, body: bytes, gate: _Gate) -> None:
    with open_queue(url) as queue:
        gate.pass_()
        for _ in range(count):
            queue.put(body, durable=False)
        gate.finish()


def _work(url: str, consumer: Consumer, gate: _Gate) -> None:
    leaving = Leaving()

    def found_nothing(_timeout_s: float, _fd: int) -> bool:
        gate.finish()
        leaving.ask()
        return True

    with open_queue(url, host="bench") as queue:
        queue.attach(consumer)
        worker = Worker(queue, echo.read, consumer, leaving, wait=found_nothing, parent=os.getppid())
        gate.pass_()
        worker.run()


def _timed(count: int, role: Callable[[int, _Gate], None]) -> float:
    """Seconds from the opening of the gate until *count* processes, each running *role*, have finished."""
    parent = os.getpid()
    with _pipe() as (ready, say_ready), _pipe() as (gate, opener), _pipe() as (finished, say_finished):

        def main(index: int) -> None:
            # A copy of the writing end kept here would keep the gate shut for everybody.
            opener.close()
            die_with_parent(parent)

            def pass_() -> None:
                say_ready.write(b"r")
                gate.read(1)  # the end of the pipe is the opening of the gate

            def finish() -> None:
                say_finished.write(b"f")

            role(index, _Gate(pass_, finish))

        processes = [_CONTEXT.Process(target=main, args=(index,)) for index in range(count)]
        try:
            for process in processes:
                process.start()
            # Else the end of a process that died would not be the end of the pipe.
            say_ready.close()
            say_finished.close()
            _read(ready, count)
            started_s = time.perf_counter()
            opener.close()
            _read(finished, count)
            seconds = time.perf_counter() - started_s
            for process in processes:
                process.join()
                if process.exitcode != 0:
                    raise BenchError(f"a measured process ended with exit code {process.exitcode}")
        finally:
            for process in processes:
                if process.pid is not None and process.is_alive():
                    process.kill()
                    process.join()
    return seconds


def _read(pipe: FileIO, count: int) -> None:
    """Read *count* bytes, one from each process. Raises BenchError when a process ended without its own."""
    left = count
    while left:
        part = pipe.read(left)
        if not part:
            raise BenchError("a measured process ended too early; what it said stands above")
        left -= len(part)


@contextlib.contextmanager
def _pipe() -> Iterator[tuple[FileIO, FileIO]]:
    """A pipe: the end to read and the end to write."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    with open(reader, "rb", buffering=0) as reading, open(writer, "wb", buffering=0) as writing:
        yield reading, writing


# ---- the filesystem


@dataclass(frozen=True, slots=True)
class Filesystem:
    """Where the bench ran. *has_journal* is None where that is not known (or not asked: not ext4)."""

    kind: str
    device: str
    has_journal: bool | None


def filesystem(path: Path, proc: Path = Path("/proc")) -> Filesystem:
    """What holds *path*, by the kernel's table of mounts."""
    status = os.stat(path)
    number = f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
    kind = device = "unknown"
    with contextlib.suppress(OSError), open(proc / "self/mountinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            before, _, after = line.partition(" - ")
            if before.split()[2] == number:
                kind, device = after.split()[:2]
    has_journal = _has_journal(proc / "fs/ext4" / os.path.basename(device) / "options") if kind == "ext4" else None
    return Filesystem(kind, device, has_journal)


def _has_journal(options: Path) -> bool | None:
    # The kernel shows data= (ordered, journal, writeback) only for a filesystem with a journal.
    try:
        return any(line.startswith("data=") for line in options.read_text(encoding="ascii").splitlines())
    except (OSError, ValueError):
        return None
