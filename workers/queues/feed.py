"""
feed - names of waiting messages from one scan to the workers of a host, through a pipe

A pipe in packet mode, made by the master for each queue. A packet is a few names
joined by NUL, which no name can hold; "/" stands before one that was no regular file
when it was listed. The kernel gives each packet to exactly one reader, so workers of
one host do not race for names, and a full pipe holds the feeder back.

A name that was read is a hint, never a claim: a packet that is lost with its reader
costs the time until the feeder feeds its names again, and a feeder that shows no sign
of life is done without: each worker then scans for itself.

Raises: OSError. Limits: Linux; elsewhere open_feed() has no pipe and workers scan.
Source: pipe(2), O_DIRECT; epoll_ctl(2), EPOLLEXCLUSIVE.
See also: feeder (the writing end), scan (a scan of one's own), orchestrator/feeder.py.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Iterable, Iterator

from workers.board import Q
from workers.queues.scan import Scan
from workers.system import System

PACKET_SIZE = 4096  # PIPE_BUF: what is larger is cut into several packets
PACKETS = 16  # that a pipe holds
SILENT_NS = 2_500_000_000  # a feeder shows a sign of life about once a second
NUDGE = b"\0"  # a packet without a name


def open_feed() -> tuple[int, int]:
    """Make the pipe: its reading and its writing end, or -1 twice where there is no packet mode."""
    try:
        return os.pipe2(os.O_DIRECT | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, AttributeError):
        return -1, -1


def pack(names: Iterable[str], odd: set[str]) -> bytes:
    """One packet of *names*; those in *odd* were no regular files."""
    return os.fsencode("\0".join([f"/{name}" if name in odd else name for name in names]))


def nudge(writer: int, system: System) -> None:
    """Wake one worker that waits. By one that leaves: the packet it was woken for may still lie in the pipe."""
    with contextlib.suppress(BlockingIOError):  # full: whoever comes to wait sees that at once
        system.write(writer, NUDGE)


class Reader:
    """What Scan is to a worker without a feeder: says which name to try next."""

    def __init__(self, feed: int, words: memoryview[int], scan: Scan, system: System) -> None:
        self._feed = feed
        self._words = words
        self._scan = scan
        self._system = system
        self._since_ns = system.boottime_ns()  # a feeder that is just being forked is waited for
        self._hints: deque[str] = deque()
        self._is_alone = False
        self.odd = scan.odd

    @property
    def ignored(self) -> set[str]:
        """Directories that a scan of our own saw; the feeder speaks of those that it sees."""
        return self._scan.ignored

    def next(self) -> str | None:
        """The next name to try; None when there is none. Raises OSError."""
        if self._hints:
            return self._hints.popleft()
        try:
            while not self._read():
                pass
        except BlockingIOError:
            return self._own()
        return self._hints.popleft()

    def forget(self) -> None:
        """Drop the names in hand (a pause, a lost lease): they are fed again."""
        self._hints.clear()
        self._scan.forget()

    def _read(self) -> bool:
        hints = os.fsdecode(self._system.read(self._feed, PACKET_SIZE)).split("\0")
        if self._is_alone:
            self._is_alone = False
            self._scan.forget()
        self.odd.clear()
        self._hints.extend(self._plain(hints))
        return bool(self._hints)

    def _plain(self, hints: list[str]) -> Iterator[str]:
        for hint in hints:
            if hint[:1] == "/":
                self.odd.add(hint[1:])
                yield hint[1:]
            elif hint:
                yield hint

    def _own(self) -> str | None:
        """A scan of our own while the feeder is dead, or hangs in a filesystem."""
        if self._system.boottime_ns() - max(self._words[Q.FED_NS], self._since_ns) < SILENT_NS:
            return None
        self._is_alone = True
        return self._scan.next()
