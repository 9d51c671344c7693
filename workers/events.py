"""
events - sequential and timed events by name, the order in which a loop handles them

Two stores: a line of events to be handled now, and events that are due at a time.
schedule() adds at the end of the line, schedule_next() in front of it; what is due
comes before the whole line, the most overdue first, equals in the order they came.

schedule_at() goes by the wall clock, schedule_after() by a clock that nobody can
set, so a step of the wall clock delays no timer. Each clock has a heap of its own.

Raises: QueueEmptyException when there is nothing scheduled at all; ValueError for a
time that is not a number. Never blocks, calls nobody.
See also: orchestrator.loop (runs on it), tests/unit/test_events.py.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable

from workers.errors import OrchestratorError
from workers.system import SYSTEM

Clock = Callable[[], float]


class DescribedError(OrchestratorError):
    """
    What is raised by events and components.

    Its text is the repr of *description*; *params* are kept as attributes of that name.
    """

    def __init__(self, description: str, **params: object) -> None:
        super().__init__(description)
        self.description = description
        for name, value in params.items():
            setattr(self, name, value)

    def __str__(self) -> str:
        return repr(self.description)


class QueueEmptyException(DescribedError):
    """Nothing is scheduled."""


def wall_s() -> float:
    """Unix seconds; may step."""
    return SYSTEM.wall_ns() / 1e9


def monotonic_s() -> float:
    """Seconds since boot, suspended time included: never steps, one clock for all processes of a host."""
    return SYSTEM.boottime_ns() / 1e9


class _Heap:
    """Events by time on one clock."""

    __slots__ = ("clock", "entries")

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        # The serial decides between equal times, so neither names nor args are ever compared.
        self.entries: list[tuple[float, int, str, object]] = []

    def add(self, time_s: float, serial: int, event: str, args: object) -> None:
        if math.isnan(time_s):
            raise ValueError(f"event {event!r} cannot be scheduled at a time that is not a number")
        heapq.heappush(self.entries, (time_s, serial, event, args))

    def first(self) -> tuple[float, int] | None:
        """Seconds until the earliest entry (negative: overdue) and its serial."""
        if not self.entries:
            return None
        return self.entries[0][0] - self.clock(), self.entries[0][1]

    def pop(self) -> tuple[str, object]:
        _, _, event, args = heapq.heappop(self.entries)
        return event, args


class EventQueueManager:
    """Sequential and timed events; *args* is handed through untouched."""

    def __init__(self, wall: Clock = wall_s, monotonic: Clock = monotonic_s) -> None:
        self._line: deque[tuple[str, object]] = deque()
        self._wall = _Heap(wall)
        self._monotonic = _Heap(monotonic)
        self._serial = 0

    def schedule(self, event: str, args: object = None) -> None:
        """Add at the end of the line."""
        self._line.append((event, args))

    def schedule_next(self, event: str, args: object = None) -> None:
        """Add in front of the line: of several, the last one scheduled comes first."""
        self._line.appendleft((event, args))

    def schedule_at(self, tstamp: float, event: str, args: object = None) -> None:
        """Schedule for the wall-clock time *tstamp*, unix seconds."""
        self._wall.add(tstamp, self._next_serial(), event, args)

    def schedule_after(self, delay: float, event: str, args: object = None) -> None:
        """Schedule *delay* seconds from now, whatever is done to the wall clock meanwhile."""
        self._monotonic.add(self._monotonic.clock() + delay, self._next_serial(), event, args)

    def next(self) -> tuple[str, object] | tuple[None, None]:
        """
        Take the event that is to be handled now, and its args.

        (None, None) when all there is lies in the future; raises QueueEmptyException when there is nothing.
        """
        heap, wait_s = self._earliest()
        if heap is not None and wait_s <= 0:
            return heap.pop()
        if self._line:
            return self._line.popleft()
        if heap is None:
            raise QueueEmptyException("Event queue is empty")
        return None, None

    def when(self) -> float:
        """The wall-clock time of the next event, unix seconds: now while there is a line."""
        if self._line:
            return self._wall.clock()
        heap, wait_s = self._earliest()
        if heap is None:
            raise QueueEmptyException("Event queue is empty")
        return heap.entries[0][0] if heap is self._wall else self._wall.clock() + wait_s

    def wait(self) -> float:
        """Seconds until the next event: 0 while there is a line, negative when it is overdue."""
        if self._line:
            return 0
        heap, wait_s = self._earliest()
        if heap is None:
            raise QueueEmptyException("Event queue is empty")
        return wait_s

    def count(self) -> int:
        """How many events are scheduled, timed ones included."""
        return len(self._line) + len(self._wall.entries) + len(self._monotonic.entries)

    def forget(self, is_over: Callable[[str, object], bool]) -> int:
        """Drop each event of which *is_over*, given its name and args, is true; how many."""
        count = self.count()
        if any(is_over(event, args) for event, args in self._line):
            self._line = deque(entry for entry in self._line if not is_over(*entry))
        for heap in (self._wall, self._monotonic):
            if any(is_over(event, args) for _, _, event, args in heap.entries):
                heap.entries = [entry for entry in heap.entries if not is_over(entry[2], entry[3])]
                heapq.heapify(heap.entries)
        return count - self.count()

    def waiting(self) -> list[tuple[str, object]]:
        """The line: events that wait to be handled now, and their args, the next one first."""
        return list(self._line)

    def timers(self) -> list[tuple[float, str, object]]:
        """What is scheduled for a time: seconds until then (negative: overdue), event and args, the earliest first."""
        found = [
            (time_s - now_s, serial, event, args)
            for heap in (self._wall, self._monotonic)
            for now_s in [heap.clock()]
            for time_s, serial, event, args in heap.entries
        ]
        # As in the heaps, the serial decides before args could be compared.
        return [(wait_s, event, args) for wait_s, _, event, args in sorted(found, key=lambda entry: entry[:2])]

    def _next_serial(self) -> int:
        self._serial += 1
        return self._serial

    def _earliest(self) -> tuple[_Heap | None, float]:
        """The heap whose first entry comes first, and the seconds until then."""
        wall, monotonic = self._wall.first(), self._monotonic.first()
        if wall is None and monotonic is None:
            return None, math.inf
        if monotonic is None or (wall is not None and wall < monotonic):
            assert wall is not None  # noqa: S101 - follows from the line above, mypy cannot see it
            return self._wall, wall[0]
        return self._monotonic, monotonic[0]
