"""
events - sequential and timed events by name, the order in which a loop handles them

Two stores: a line of events to be handled now, and events that are due at a time.
schedule() adds at the end of the line, schedule_next() in front of it; what is due
comes before the whole line, the most overdue first, equals in the order they came.
What becomes due only after that waits until one event of the line was handled, so
an event that is due again and again holds nobody up.

schedule_last() is for when the line is empty: when all that waits, and all that this
leads to without a timer, was handled. put_off() sets an event of the line aside until
take_up(); while there is one the line is not empty.

schedule_at() goes by the wall clock, schedule_after() by a clock that nobody can
set, so a step of the wall clock delays no timer. Each clock has a heap of its own.

Each event has the cause of the one that was in hand when it was scheduled.

Raises: QueueEmptyException when there is nothing scheduled at all; ValueError for a
time that is not a number. Never blocks, calls nobody.
Limits: an event that schedules itself at the end of the line for ever keeps it from being empty.
See also: orchestrator.loop (runs on it), tests/unit/test_events.py.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, deque
from collections.abc import Callable, Mapping

from workers.errors import OrchestratorError
from workers.system import SYSTEM

Clock = Callable[[], float]
Waiting = tuple[str, object, object]  # an event, its args and its cause


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
        self.entries: list[tuple[float, int, Waiting, str | None]] = []

    def add(self, time_s: float, serial: int, waiting: Waiting, about: str | None) -> None:
        if math.isnan(time_s):
            raise ValueError(f"event {waiting[0]!r} cannot be scheduled at a time that is not a number")
        heapq.heappush(self.entries, (time_s, serial, waiting, about))

    def first(self) -> tuple[float, int] | None:
        """Seconds until the earliest entry (negative: overdue) and its serial."""
        if not self.entries:
            return None
        return self.entries[0][0] - self.clock(), self.entries[0][1]


def about(args: object) -> str | None:
    """What an event with *args* is about: their "id", where that is text."""
    # Of arguments that are anybody's nothing is compared, and only what is text by its type is looked up.
    found = args.get("id") if isinstance(args, Mapping) else None
    return found if type(found) is str else None


class EventQueueManager:
    """
    Sequential and timed events; *args* is handed through untouched.

    Attributes:
        cause: of what is scheduled from now on; next() sets it to that of the event it answers.
    """

    def __init__(self, wall: Clock = wall_s, monotonic: Clock = monotonic_s) -> None:
        self.cause: object = None
        self._line: deque[Waiting] = deque()
        self._last: deque[Waiting] = deque()
        self._put_off: deque[Waiting] = deque()
        self._wall = _Heap(wall)
        self._monotonic = _Heap(monotonic)
        self._due: deque[tuple[_Heap, float, int, Waiting, str | None]] = deque()  # taken from the heaps, in order
        self._is_lines_turn = False  # what was due has been handled, and now it is for the line
        self._abouts: Counter[str] = Counter()  # what the timers are about
        self._serial = 0

    def schedule(self, event: str, args: object = None) -> None:
        """Add at the end of the line."""
        self._line.append((event, args, self.cause))

    def schedule_next(self, event: str, args: object = None) -> None:
        """Add in front of the line: of several, the last one scheduled comes first."""
        self._line.appendleft((event, args, self.cause))

    def schedule_last(self, event: str, args: object = None) -> None:
        """Schedule for when the line is empty, and nothing is put off."""
        self._last.append((event, args, self.cause))

    def schedule_at(self, tstamp: float, event: str, args: object = None) -> None:
        """Schedule for the wall-clock time *tstamp*, unix seconds."""
        self._add(self._wall, tstamp, event, args)

    def schedule_after(self, delay: float, event: str, args: object = None) -> None:
        """Schedule *delay* seconds from now, whatever is done to the wall clock meanwhile."""
        self._add(self._monotonic, self._monotonic.clock() + delay, event, args)

    def put_off(self, event: str, args: object = None) -> None:
        """Set aside what was in line and cannot be handled yet, behind what was put off before; see take_up()."""
        self._put_off.append((event, args, self.cause))

    def take_up(self) -> None:
        """Move what was put off to the front of the line, in its order."""
        self._line.extendleft(reversed(self._put_off))
        self._put_off.clear()

    def next(self) -> tuple[str, object] | tuple[None, None]:
        """
        Take the event that is to be handled now, and its args.

        (None, None) when all there is lies in the future; raises QueueEmptyException when there is nothing.
        """
        if not self._due and not (self._is_lines_turn and self._line):
            self._take_due()
        if self._due:
            _, _, _, waiting, subject = self._due.popleft()
            self._uncount(subject)
            self._is_lines_turn = True
        elif self._line:
            waiting = self._line.popleft()
            self._is_lines_turn = False
        elif self._last and not self._put_off:
            waiting = self._last.popleft()
        elif not self.count():
            raise QueueEmptyException("Event queue is empty")
        else:
            return None, None
        event, args, self.cause = waiting
        return event, args

    def when(self) -> float:
        """The wall-clock time of the next event, unix seconds: now while there is a line."""
        if self.has_line() or self._due:
            return self._wall.clock()
        heap, wait_s = self._earliest()
        if heap is None:
            raise QueueEmptyException("Event queue is empty")
        return heap.entries[0][0] if heap is self._wall else self._wall.clock() + wait_s

    def wait(self) -> float:
        """Seconds until the next event: 0 while there is a line, negative when it is overdue."""
        if self.has_line() or self._due:
            return 0
        heap, wait_s = self._earliest()
        if heap is None and not self.count():
            raise QueueEmptyException("Event queue is empty")
        return wait_s

    def count(self) -> int:
        """How many events are scheduled, timed ones included."""
        timed = len(self._due) + len(self._wall.entries) + len(self._monotonic.entries)
        return len(self._line) + len(self._last) + len(self._put_off) + timed

    def count_ready(self) -> int:
        """How many events wait or are due."""
        self._take_due()
        return len(self._due) + len(self._line) + (0 if self._put_off else len(self._last))

    def has_line(self) -> bool:
        """Whether an event waits to be handled now, whatever is due."""
        return bool(self._line or (self._last and not self._put_off))

    def has_put_off(self) -> bool:
        """Whether an event of the line is set aside."""
        return bool(self._put_off)

    def forget(self, subject: str) -> int:
        """Drop each event that is about *subject*, see about(); how many."""
        count = self.count()
        if any(about(args) == subject for _, args, _ in tuple(self._line)):  # a thread may add to it
            self._line = deque(waiting for waiting in self._line if about(waiting[1]) != subject)
        self.forget_timers(subject)
        return count - self.count()

    def forget_timers(self, subject: str) -> None:
        """Drop each timed event that is about *subject*. Quick where there is none."""
        if not self._abouts.pop(subject, 0):
            return
        self._due = deque(entry for entry in self._due if entry[-1] != subject)
        for heap in (self._wall, self._monotonic):
            heap.entries = [entry for entry in heap.entries if entry[-1] != subject]
            heapq.heapify(heap.entries)

    def waiting(self) -> list[tuple[str, object]]:
        """The line: events that wait to be handled, and their args, the next one first, those for the end last."""
        return [(event, args) for event, args, _ in (*self._line, *self._put_off, *self._last)]

    def timers(self) -> list[tuple[float, str, object]]:
        """What is scheduled for a time: seconds until then (negative: overdue), event and args, the earliest first."""
        heaps = [(heap, *entry) for heap in (self._wall, self._monotonic) for entry in heap.entries]
        now_s = {id(heap): heap.clock() for heap in (self._wall, self._monotonic)}
        found = [
            (time_s - now_s[id(heap)], serial, waiting) for heap, time_s, serial, waiting, _ in (*self._due, *heaps)
        ]
        # As in the heaps, the serial decides before args could be compared.
        return [(wait_s, event, args) for wait_s, _, (event, args, _) in sorted(found, key=lambda entry: entry[:2])]

    def _add(self, heap: _Heap, time_s: float, event: str, args: object) -> None:
        subject = about(args)
        self._serial += 1
        heap.add(time_s, self._serial, (event, args, self.cause), subject)
        if subject is not None:
            self._abouts[subject] += 1

    def _uncount(self, subject: str | None) -> None:
        if subject is not None:
            self._abouts[subject] -= 1
            if not self._abouts[subject]:
                del self._abouts[subject]

    def _take_due(self) -> None:
        """Take what is due by now, the most overdue first."""
        while True:
            heap, wait_s = self._earliest()
            if heap is None or wait_s > 0:
                return
            self._due.append((heap, *heapq.heappop(heap.entries)))

    def _earliest(self) -> tuple[_Heap | None, float]:
        """The heap whose first entry comes first, and the seconds until then."""
        wall, monotonic = self._wall.first(), self._monotonic.first()
        if wall is None and monotonic is None:
            return None, math.inf
        if monotonic is None or (wall is not None and wall < monotonic):
            assert wall is not None  # noqa: S101 - follows from the line above, mypy cannot see it
            return self._wall, wall[0]
        return self._monotonic, monotonic[0]
