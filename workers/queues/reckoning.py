"""
reckoning - how much a filesystem's clock may be believed, which somebody may set

The times of files are by a clock that an administrator, an NTP daemon or a server's reboot steps. A step forward makes
everything look old at once: what a living program works on would be taken from it, and what is to be kept for a week
be removed. So a keeper holds that clock against CLOCK_BOOTTIME, and an age counts by the lowest that the clock has
been within that age. A step back makes what is there look as if it came from the future: it ages from when it was seen.

Who starts cannot know what was done to the clock just before. So for a while nothing is old to it: who lives shows that
meanwhile, for locks and claims are touched every few seconds.

The board is told how far the clock is from CLOCK_BOOTTIME, for a metric says how wrong this host's is.

Keeper only. Limits: what nobody touches (another program's claim, what was set aside) is by the new clock as old as
that says, to a keeper that starts after a step.
See also: deferred (what waits), SPOOL.md "Leases" (the filesystem's clock), owners.
"""

from __future__ import annotations

import logging

from workers.board import Q, Slot
from workers.system import System

log = logging.getLogger(__name__)

STEP_NS = 1_000_000_000  # what a slewed clock and a slow server stay below from one look to the next, mostly
STEPS_MAX, SEEN_MAX = 1000, 10_000
START_S = 12.0  # a keeper that starts takes nothing for old for so long, or for half of the age that it asks for


class Reckoning:
    """What one keeper has seen of the clock of one queue's filesystem."""

    def __init__(self, system: System, slot: Slot, url: str) -> None:
        self._system = system
        self._words = slot.words
        self._url = url
        self._began_ns = system.boottime_ns()
        self._has_ctimes = True
        self._offsets: list[tuple[int, int]] = []  # since when (CLOCK_BOOTTIME), and the clock less CLOCK_BOOTTIME
        # What has no ctime, or one of the future: its path and what it has, and when it was seen (CLOCK_BOOTTIME).
        self._first_seen: dict[tuple[str, int], int] = {}

    def note(self, now_ns: int, asked_ns: int | None = None) -> None:
        """The filesystem's clock says *now_ns*, just read; it was asked for at *asked_ns* (CLOCK_BOOTTIME)."""
        boottime_ns = self._system.boottime_ns()
        offset_ns = now_ns - boottime_ns
        if self._offsets and asked_ns is not None:
            # A server that was away has read it in the middle of a minute that we waited: it was not set by as much.
            offset_ns = min(max(self._offsets[-1][1], offset_ns), now_ns - asked_ns)
        self._words[Q.CLOCK_NS] = offset_ns
        if self._offsets:
            step_ns = offset_ns - self._offsets[-1][1]
            if abs(step_ns) <= STEP_NS:
                return
            way = "forward" if step_ns > 0 else "back"
            log.warning("%s: the filesystem's clock was set %s by %.0f s", self._url, way, abs(step_ns) / 1e9)
        self._offsets.append((boottime_ns, offset_ns))
        del self._offsets[:-STEPS_MAX]

    def forget_ctimes(self) -> None:
        """No file here has a ctime (see Directory.keeps_ctime): each ages from when this keeper saw it first."""
        if self._has_ctimes:
            log.warning("%s: no ctimes here, so whatever ages does so from when this pool sees it first", self._url)
        self._has_ctimes = False
        self._words[Q.NO_CTIMES] = 1

    def sure_at_ns(self, age_s: float) -> int:
        """From when on (CLOCK_BOOTTIME) something may be older than *age_s* for certain."""
        return self._began_ns + int(min(START_S, age_s / 2) * 1e9)

    def limit_ns(self, age_s: float) -> int:
        """A file with a time before that is older than *age_s* for certain; 0 while nothing is. After note()."""
        boottime_ns = self._system.boottime_ns()
        if boottime_ns < self.sure_at_ns(age_s):
            return 0
        since_ns = boottime_ns - int(age_s * 1e9)
        lowest_ns = self._offsets[-1][1]
        for from_ns, offset_ns in reversed(self._offsets):
            lowest_ns = min(lowest_ns, offset_ns)
            if from_ns <= since_ns:
                break
        return since_ns + lowest_ns

    def is_older(self, path: str, time_ns: int, age_s: float) -> bool:
        """Whether the file *path*, whose time is *time_ns*, is older than *age_s* for certain."""
        boottime_ns = self._system.boottime_ns()
        if self._has_ctimes and time_ns <= boottime_ns + self._offsets[-1][1] + STEP_NS:
            return time_ns < self.limit_ns(age_s)
        seen_ns = self._first_seen.get((path, time_ns), boottime_ns)
        is_old = boottime_ns - seen_ns > age_s * 1e9
        if is_old:
            del self._first_seen[path, time_ns]  # and makes room: of more than these, the others age after them
        elif (path, time_ns) not in self._first_seen:
            if len(self._first_seen) >= SEEN_MAX:
                first = next(iter(self._first_seen))
                if boottime_ns - self._first_seen[first] <= 2 * age_s * 1e9:
                    return False
                del self._first_seen[first]  # asked for by nobody any more: it is gone
            self._first_seen[path, time_ns] = seen_ns
        return is_old
