"""
subject - something that can be measured: it puts and takes messages below a directory

See also: bare, ours, pool, peers (the subjects), rounds (measures them).
"""

from __future__ import annotations

import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from orchestrator.bench.crew import Gate, Run, run_together, share_of
from workers.queues.base import Order

Verb = Literal["put", "take"]


@dataclass(frozen=True, slots=True)
class Load:
    """
    What a subject is given to do.

    Attributes:
        messages: that many are put, and taken.
        body: of each message; workers: how many will take them.
        seconds_max: a slow peer stops after that long, and its rate is of what it did.
        is_traced: mark beginning and end for strace.
    """

    messages: int
    body: bytes = b"x" * 1024
    workers: int = 1
    order: Order = "fifo"
    seconds_max: float = 0.5
    is_traced: bool = False


class Subject(ABC):
    """Puts and takes with a number of processes. A place is used once, for one put and then one take."""

    name: str
    verbs: tuple[Verb, ...] = ("put", "take")  # what is worth a line in a table
    note = ""

    @contextlib.contextmanager
    def opened(self, place: Path) -> Iterator[None]:
        """Make the queue, and whatever must run beside it. Raises BenchError."""
        place.mkdir(0o700)
        yield

    @abstractmethod
    def put(self, place: Path, load: Load, count: int) -> Run:
        """Put ``load.messages`` with *count* producers."""

    @abstractmethod
    def take(self, place: Path, load: Load, count: int) -> Run:
        """Take what was put with *count* workers."""


class Looped(Subject):
    """A subject that is a library: a process of ours calls it in a loop, for at most ``load.seconds_max``."""

    producers_max = 1 << 30  # more would destroy what it keeps

    @abstractmethod
    def producer(self, place: Path) -> Callable[[bytes], object]:
        """Prepare to put; what it returns puts one body. Called in the process that puts."""

    @abstractmethod
    def consumer(self, place: Path) -> Iterator[bool]:
        """Take until nothing is left: True for a message read and finished, False for a race lost."""

    def prepare(self, place: Path) -> None:
        """Change what must be changed in a measured process."""

    def put(self, place: Path, load: Load, count: int) -> Run:
        """Put ``load.messages``, or as many as the time allows."""
        count = min(count, self.producers_max)

        def role(index: int, gate: Gate) -> None:
            self.prepare(place)
            put, left = self.producer(place), share_of(load.messages, index, count)
            gate.pass_()
            handled, ends_s = 0, time.perf_counter() + load.seconds_max
            while handled < left and time.perf_counter() < ends_s:
                put(load.body)
                handled += 1
            gate.finish(handled)

        return run_together(count, role, is_traced=load.is_traced)

    def take(self, place: Path, load: Load, count: int) -> Run:
        """Take until the queue is empty or the time is over."""

        def role(_: int, gate: Gate) -> None:
            self.prepare(place)
            found = self.consumer(place)
            gate.pass_()
            handled = lost = 0
            ends_s = time.perf_counter() + load.seconds_max
            for is_ours in found:
                if is_ours:
                    handled += 1
                else:
                    lost += 1
                if time.perf_counter() >= ends_s:
                    break
            gate.finish(handled, lost)

        return run_together(count, role, is_traced=load.is_traced)
