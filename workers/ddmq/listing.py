"""
listing - what waits in a queue, read once and used for many messages

Reading and ordering 10,000 names for each message is what an original does. Here the names
are kept as a heap for as long as the directory's mtime says that nobody else has changed it,
and at most 50 ms (longer only where reading takes longer): who publishes something more
urgent before a consume() begins is served by it.

That nothing waits is never said from memory.

Limits: mtimes are exact from Linux 6.13 on. Before that they come in ticks of 1 to 10 ms, and
what another publishes in the tick of our own last change may be seen only when the 50 ms are
over. So it is with what another does between our change and our look at the mtime, and while
others take messages away from under us, for then the directory would be read for each again.
See also: broker.consume.
"""

from __future__ import annotations

import heapq

from workers.ddmq.files import QueueFiles, waiting_key

GOOD_NS = 50_000_000
GOOD_NS_MAX = 1_000_000_000
GOOD_TIMES = 4  # or that many times of what the reading has taken, so that most of the time is not spent on it


class Listing:
    """The waiting messages of one queue, the next one first."""

    def __init__(self, files: QueueFiles) -> None:
        self.files = files
        self.odd: set[str] = set()  # names of what is no regular file
        self._heap: list[tuple[str, str]] = []
        self._mtime_ns = -1  # of the directory when this was true; -1: not known
        self._until_ns = 0

    def refresh(self, *, may_be_old: bool = False) -> bool:
        """
        Read the directory again unless what is known still holds; whether that is so when this returns.

        With *may_be_old* what others have changed in the last 50 ms may be missing. Raises OSError.
        """
        system = self.files.system
        if self._heap and self.is_good():
            return True
        if may_be_old and self._heap and self.is_recent():
            return False
        self.drop()
        begun_ns = system.boottime_ns()
        # ORDER: the mtime, then the names. What comes while they are read has a later one.
        # See test_what_is_published_while_the_names_are_read_is_not_overlooked.
        mtime_ns = system.stat(self.files.path).st_mtime_ns
        self.odd = set()
        self._heap = [(waiting_key(name), name) for name in self.files.waiting(self.odd)]
        heapq.heapify(self._heap)
        now_ns = system.boottime_ns()
        self._until_ns = now_ns + min(max(GOOD_NS, GOOD_TIMES * (now_ns - begun_ns)), GOOD_NS_MAX)
        self._mtime_ns = mtime_ns
        return True

    def is_recent(self) -> bool:
        """Whether the directory was read in the last 50 ms."""
        return self._mtime_ns >= 0 and self.files.system.boottime_ns() < self._until_ns

    def is_good(self) -> bool:
        """Whether what is known still holds."""
        return self.is_recent() and self.files.system.stat(self.files.path).st_mtime_ns == self._mtime_ns

    def next(self) -> str | None:
        """Take the next name off; None when there is none."""
        return heapq.heappop(self._heap)[1] if self._heap else None

    def add(self, name: str) -> None:
        """Put *name* in: published by us, or taken off and waiting still."""
        heapq.heappush(self._heap, (waiting_key(name), name))

    def note(self) -> None:
        """Take the directory's mtime for that of a change of our own."""
        try:
            self._mtime_ns = self.files.system.stat(self.files.path).st_mtime_ns
        except OSError:
            self.drop()

    def drop(self) -> None:
        """Forget all."""
        self._mtime_ns = -1
        self._heap = []
