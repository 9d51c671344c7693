"""
pool - a real pool on a filled queue: master, keeper and workers, as an operator starts them

The rate is read from the board: sums of settled messages with their times, from the moment
when 5 % are settled and every worker has settled one, to 95 %. So neither the start nor the
last few messages count; what the start messages is told as ``first_s``. The queue is filled with
more messages for each worker, to have enough left when the last one begins.

CPU is that of every process of the pool (/proc/PID/task/*/schedstat), between the same moments.
Raises: BenchError when the pool ends, or stands still, before that.
See also: ours (the same without a pool).
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import psutil

from orchestrator.bench.crew import Run, private_dirty, running
from orchestrator.bench.measure import BenchError
from orchestrator.bench.ours import fill, queue_of
from orchestrator.bench.subject import Load, Subject, Verb
from workers.board import OUTCOMES, Board, BoardError, W

SAMPLE_S = 0.004
STARTING_MESSAGES = 1500  # what the others take, for each worker, until all are there
BEGIN_MAX = 0.6  # of all messages: who has not begun by then is not waited for
STILL_S_MAX = 20.0
_OUTCOME_WORDS = range(W.DONE, W.DONE + len(OUTCOMES))


class Sample(NamedTuple):
    """The board at one moment: seconds, messages settled and races lost by all, messages by the least-served."""

    at_s: float
    settled: int
    lost: int
    least: int


class Pool(Subject):
    """``orchestrator run`` in processes of its own."""

    name = "pool"
    verbs: tuple[Verb, ...] = ("take",)

    def put(self, place: Path, load: Load, count: int) -> Run:
        """Fill the queue; the library does that."""
        return fill(place, replace(load, messages=load.messages + STARTING_MESSAGES * load.workers), count)

    def url(self, place: Path) -> str:
        """The queue that the pool is run on."""
        return queue_of(place)

    def take(self, place: Path, load: Load, count: int) -> Run:
        """Let a pool of *count* workers take them all."""
        messages = load.messages
        output = str(place / "output")
        started_s = time.monotonic()
        with running(command(self.url(place), place, load, count), output) as pid:
            watch = _Watch(pid, count, place / "run" / "bench" / "board", Path(output))
            first_s = watch.until(lambda sample: sample.settled > 0).at_s - started_s
            watch.until(lambda sample: sample.settled >= messages * (0.05 if sample.least > 0 else BEGIN_MAX))
            cpu_s, dirty_bytes = watch.cpu_s(), watch.dirty_bytes()
            begin = watch.sample()  # what was read above took time
            end = watch.until(lambda sample: sample.settled >= messages * 0.95)
            used_s = watch.cpu_s() - cpu_s
            dirty_bytes = max(dirty_bytes, watch.dirty_bytes())
            watch.end()
        handled = end.settled - begin.settled
        if handled <= 0:
            raise BenchError(
                f"{messages} messages are too few for a pool of {count}: it was through before all had begun"
            )
        return Run(end.at_s - begin.at_s, handled, end.lost - begin.lost, max(used_s, 0.0), dirty_bytes, first_s)


def command(url: str, place: Path, load: Load, count: int) -> list[str]:
    """The pool as somebody would type it."""
    return [
        sys.executable, "-m", "orchestrator", "run", url, "--handler", "workers.handlers.echo:read",
        "--workers", str(count), "--order", load.order, "--name", "bench", "--host", "bench",
        "--run-dir", str(place / "run"), "--listen", "none", "--log-level", "warning", "--until-empty",
    ]  # fmt: skip


class _Watch:
    """The board of a pool that was just started, and its processes."""

    def __init__(self, pid: int, count: int, path: Path, output: Path) -> None:
        self._pid, self._count, self._path, self._output = pid, count, path, output
        self._exit = os.pidfd_open(pid)
        self._board: Board | None = None
        self._workers: list[memoryview[int]] = []

    def sample(self) -> Sample:
        """Read the board."""
        if self._board is None:
            with contextlib.suppress(BoardError, FileNotFoundError):
                self._board = Board.open(self._path)
        if self._board is not None and len(self._workers) < self._count:
            self._workers = [self._board.worker(number).words for number in self._board.worker_numbers()]
        settled = lost = 0
        least = -1 if len(self._workers) == self._count else 0
        for words in self._workers:
            own = sum(words[word] for word in _OUTCOME_WORDS)
            settled += own
            lost += words[W.CONFLICTS]
            least = own if least < 0 else min(least, own)
        return Sample(time.monotonic(), settled, lost, least)

    def until(self, is_reached: Callable[[Sample], bool]) -> Sample:
        """Sample until it is so."""
        best, moved_s = -1, time.monotonic()
        while True:
            sample = self.sample()
            if is_reached(sample):
                return sample
            if sample.settled > best:
                best, moved_s = sample.settled, sample.at_s
            if select.select([self._exit], [], [], SAMPLE_S)[0]:
                sample = self.sample()
                if is_reached(sample):
                    return sample
                raise BenchError(f"the pool ended early: {self._said()}")
            if sample.at_s - moved_s > STILL_S_MAX:
                raise BenchError(f"the pool has settled nothing for {STILL_S_MAX:.0f} s: {self._said()}")

    def end(self) -> None:
        """Let it take the rest and go."""
        if not select.select([self._exit], [], [], STILL_S_MAX)[0]:
            raise BenchError(f"the pool does not end: {self._said()}")
        os.close(self._exit)

    def cpu_s(self) -> float:
        """Of all its processes so far, as the scheduler counts it."""
        total_ns = 0
        for pid in self._processes():
            with contextlib.suppress(OSError):
                for thread in os.listdir(f"/proc/{pid}/task"):
                    with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{thread}/schedstat") as file:
                        total_ns += int(file.read().split()[0])
        return total_ns / 1e9

    def dirty_bytes(self) -> int:
        """Private dirty memory of its largest worker."""
        return max((private_dirty(words[W.PID]) for words in self._workers if words[W.PID]), default=0)

    def _processes(self) -> list[int]:
        try:
            return [self._pid, *(child.pid for child in psutil.Process(self._pid).children(recursive=True))]
        except psutil.Error:
            return []

    def _said(self) -> str:
        return self._output.read_text(encoding="utf-8", errors="replace").strip()[-500:] or "it said nothing"
