"""
deferred - which messages in deferred/ are due, whatever is done to the clocks meanwhile

A name there says a second of the filesystem's clock, and that clock may be set. So a keeper reckons how long there is
to wait when it sees a name first, and goes by CLOCK_BOOTTIME from there on. What was deferred in the future, as its
ctime says, was deferred before the clock was set back: it waits for as long as it was to wait then.

Who defers looks at that ctime too, for he may have read the clock before it was set.

Deferred is the keeper's. Limits: a keeper that starts after a step forward takes for due what is due by the new clock.
See also: reckoning (how old things are), SPOOL.md "Attempts, crashes, delays".
"""

from __future__ import annotations

import os
from collections.abc import Callable

from workers.board import Q
from workers.queues import names
from workers.system import System

STEP_S = 1.0
NO_LOOK_S = 10.0  # what is due so soon comes soon enough, whenever it was deferred


def correct_due(system: System, words: memoryview[int], place: str, file: str, now_s: float) -> None:
    """
    Look whether *file*, moved into *place* just now, was to be due by the right clock; if not, rename it. Two calls.

    *now_s* is what was taken for the filesystem's now, unix seconds. That clock may have been set since it was read,
    and says itself by the ctime what it was at the move. A keeper that moves it first does no harm. *words* are the
    queue's.
    """
    if words[Q.NO_CTIMES]:
        return
    try:
        late_s = now_s - system.lstat(os.path.join(place, file)).st_ctime
        if abs(late_s) > STEP_S:
            due, _, rest = file.partition(".")
            right = f"{names.due_at(int(due) - late_s)}.{rest}"
            system.rename(os.path.join(place, file), os.path.join(place, right))
    except OSError:
        return


class Deferred:
    """What waits in the directory *place*; *beat* is called between looks at files."""

    def __init__(self, system: System, place: str, beat: Callable[[], object] = bool) -> None:
        self._system = system
        self._place = place
        self._beat = beat
        self._until_ns: dict[str, int] = {}  # by file, CLOCK_BOOTTIME

    def due(self, now: Callable[[], int]) -> list[tuple[str, names.Marked]]:
        """
        Each file that is due and what its name says, who waits longest first. Raises OSError.

        *now* reads the filesystem's clock, unix nanoseconds; not called when nothing is new.
        """
        fresh: dict[str, int] = {}
        found, now_ns = [], 0
        read_ns = self._system.boottime_ns()
        for file in sorted(self._system.listdir(self._place)):
            parsed = names.parse_due(file)
            if parsed is None:
                continue
            until_ns = self._until_ns.get(file)
            if until_ns is None:
                if not now_ns:
                    now_ns = now()  # which waits for a server that is away
                    read_ns = self._system.boottime_ns()
                until_ns = read_ns + self._left_ns(file, parsed[0] * 1_000_000_000, now_ns)
            fresh[file] = until_ns
            # By when the clock was read, not by when we began: a keeper that leaves looks once, and what it deferred
            # itself is due. See test_what_is_due_at_once_is_found_by_who_looks_once.
            if until_ns <= read_ns:
                found.append((file, parsed[1]))
        self._until_ns = fresh
        return found

    def _left_ns(self, file: str, due_ns: int, now_ns: int) -> int:
        left_ns = due_ns - now_ns
        if left_ns < NO_LOOK_S * 1e9:
            return left_ns
        self._beat()
        try:
            deferred_ns = self._system.lstat(os.path.join(self._place, file)).st_ctime_ns
        except OSError:  # moved on, or it is looked at again when it is to be moved
            return left_ns
        return due_ns - max(now_ns, deferred_ns)
