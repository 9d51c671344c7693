"""
scan - which name to try next: one reader's look at what waits

A name that was read is a hint, never a claim. fifo keeps the smallest names of a
scan, in order, bounded in number (and where later ones may be more urgent it scans anew
after a second); any takes them as the directory gives them. Of a
long list every worker of a host takes its own slices first, so that workers that
scan at the same moment do not race for the same names.

Workers of a pool scan so only while their feeder does not feed them: see feed, whose
Reader stands in the same place in front of the claim.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import stat
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator

from workers.queues import names
from workers.queues.base import Order, Source
from workers.system import System

BATCH = 4096  # names kept of one scan: about half a megabyte
SLICE = 16
GOOD_NS = 1_000_000_000  # and ten times what the scan took


class Scan:
    """The names of one source, a batch at a time."""

    def __init__(
        self, source: Source, order: Order, index: int = 0, count: int = 1, now_ns: Callable[[], int] = lambda: 0
    ) -> None:
        """*now_ns*: any clock that goes on; needed for a source that is prioritised."""
        self._source = source
        self._order = order
        self._now_ns = now_ns
        self._good_until_ns = 0
        self._index, self._count = index, max(count, 1)
        self._names: deque[str] = deque()
        self.odd: set[str] = set()  # names read that are no regular files
        self.ignored: set[str] = set()  # directories seen by the last scan

    def next(self) -> str | None:
        """The next name to try; None when a fresh scan found nothing. Raises OSError."""
        if self._names and self._source.is_prioritised and self._now_ns() >= self._good_until_ns:
            self._names.clear()
        if not self._names and not self._fill():
            return None
        return self._names.popleft()

    def forget(self) -> None:
        """Drop the names read ahead (after a pause, a lost lease)."""
        self._names.clear()

    def _fill(self) -> bool:
        self.odd.clear()
        ignored: set[str] = set()
        began_ns = self._now_ns()
        # Closed as soon as there are enough, and the directory with it.
        with contextlib.closing(self._source.names(self.odd, ignored)) as found:
            if self._order == "fifo":
                batch = heapq.nsmallest(BATCH, found, key=self._source.key)
            else:
                batch = list(itertools.islice(found, BATCH))
        self.ignored = ignored
        now_ns = self._now_ns()
        self._good_until_ns = now_ns + max(GOOD_NS, 10 * (now_ns - began_ns))
        self._names.extend(self._own_first(batch))
        return bool(batch)

    def _own_first(self, batch: list[str]) -> list[str]:
        if self._count == 1:
            return batch
        if len(batch) <= self._count * SLICE:
            start = len(batch) * self._index // self._count
            return batch[start:] + batch[:start]
        step = self._count * SLICE
        own = self._index % self._count * SLICE
        # The rest is left to the scan after this one: it shows what the others have not taken.
        return [name for start in range(own, len(batch), step) for name in batch[start : start + SLICE]]


class Incoming(Source):
    """The source of a queue whose messages all wait in one directory."""

    def __init__(self, directory: str, system: System) -> None:
        self._directory = directory
        self._system = system

    def names(self, odd: set[str], ignored: set[str]) -> Generator[str]:
        """See Source.names."""
        with self._system.scandir(self._directory) as entries:
            yield from takeable(entries, odd, ignored)

    def is_message(self, name: str, odd: set[str]) -> bool:
        """See Source.is_message."""
        if names.is_ignored(name):
            return False
        try:
            mode = self._system.lstat(f"{self._directory}/{name}").st_mode
        except FileNotFoundError:  # RACE: another host was first. See test_an_arrival_that_is_gone_is_not_fed.
            return False
        if not stat.S_ISREG(mode):
            if stat.S_ISDIR(mode):
                return False  # the next pass speaks of it
            odd.add(name)
        return True

    @staticmethod
    def key(name: str) -> str:
        """See Source.key: Message.name, however often the message was claimed."""
        return names.parse(name).name if name[:1] == "t" else name


def takeable(entries: Iterable[os.DirEntry[str]], odd: set[str], directories: set[str]) -> Iterator[str]:
    """The names that may be claimed; what is no regular file is added to *odd*, and a directory is not taken."""
    for entry in entries:
        name = entry.name
        if names.is_ignored(name):
            continue
        if not entry.is_file(follow_symlinks=False):
            if entry.is_dir(follow_symlinks=False):
                directories.add(name)
                continue
            odd.add(name)
        yield name
