"""
lease - the beat of one master, and the looks at the beats of others

leases/MASTER.n is renamed to MASTER.n+1 every lease_interval: a beat is seen by a
listing, without clocks and without mtimes. Another's lease is lost after
ceil(timeout / interval) + 1 consecutive looks of ours, at least an interval apart,
without a change. Looks, not elapsed time: a server outage, a stopped keeper or a
suspended machine stops the looks too (elapsed time was wrong in 2,466 of 6,475
simulated outages, looks in none).

Keeper only. Raises OSError; the keeper's round catches it.
See also: SPOOL.md "Leases", protocol-check (H11, H35, H36, H38).
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

from workers.board import Q, Slot
from workers.queues import names
from workers.queues.directory import Directory


class Lease:
    """Our own. ``number`` is the one on disk; the slot's words tell our workers how old the last good beat is."""

    def __init__(self, directory: Directory, master: str, slot: Slot) -> None:
        self._directory = directory
        self._system = directory.system
        self.master = master
        self.number = 0
        self.is_good = False
        self._words = slot.words
        self._half_ns = int(directory.times.lease_timeout_s * 1e9 / 2)
        self._ctime_ns = 0  # of the lease file, at the last beat
        self._offset_ns: int | None = None  # the filesystem's clock less CLOCK_BOOTTIME

    def _path(self, number: int) -> str:
        return os.path.join(self._directory.leases, f"{self.master}.{number}")

    def beat(self) -> bool:
        """Renew; False when that failed (then nobody of ours claims for long, and our looks do not count)."""
        # ORDER: the time is read before the rename, or a late reply would make the lease look younger than it is.
        # See test_a_beat_counts_from_before_its_rename.
        before_ns = self._system.boottime_ns()
        self.is_good = False
        if self.number == 0:
            self.number = self._found()
        if self.number == 0:
            self._make(1)
            self.is_good = True
        else:
            self.is_good = self._directory.move(
                self._path(self.number), self._directory.leases, f"{self.master}.{self.number + 1}"
            )
            if not self.is_good and (found := self._found()) > self.number:
                # The keeper that this one follows (a reload) has beaten once more meanwhile.
                self.number = found
                self.is_good = self._directory.move(
                    self._path(self.number), self._directory.leases, f"{self.master}.{self.number + 1}"
                )
            if self.is_good:
                self.number += 1
            else:
                # Somebody counted us out and took the lease away: make it again, one higher, and call that a failure.
                self._make(self.number + 1)
        if self.is_good:
            now_ns = self._system.boottime_ns()
            note_beat(self._words, before_ns, now_ns, self._half_ns)
            self._read_clock(before_ns, now_ns)
        return self.is_good

    def _found(self) -> int:
        """The number that a keeper of ours before this one left; 0 when this is the first beat."""
        numbers = [
            parsed[1]
            for file in self._system.listdir(self._directory.leases)
            if (parsed := names.parse_lease(file)) is not None and parsed[0] == self.master
        ]
        return max(numbers, default=0)

    def _make(self, number: int) -> None:
        try:
            self._directory.write_file(self._path(number), b"", durable=False)
        except FileExistsError:
            if self._directory.network is None:
                raise
        self.number = number

    def _read_clock(self, before_ns: int, after_ns: int) -> None:
        """By the ctime that our lease got between these two times (CLOCK_BOOTTIME)."""
        path = self._path(self.number)
        try:
            ctime_ns = self._system.lstat(path).st_ctime_ns
            if ctime_ns == self._ctime_ns:
                # No ctime of a rename is kept here (sshfs: it is the mtime): the clock would stand still.
                before_ns = self._system.boottime_ns()
                self._system.utime(path)
                after_ns = self._system.boottime_ns()
                ctime_ns = self._system.lstat(path).st_ctime_ns
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ESTALE):
                raise
            return
        self._ctime_ns = ctime_ns
        # RACE: the server was away, and did it in the middle of a minute that we waited. Such an answer corrects what
        # is known of its clock no further than it must, or all would look older than it is by as much.
        # See test_a_server_that_was_away_has_not_set_its_clock.
        lowest_ns, highest_ns = ctime_ns - after_ns, ctime_ns - before_ns
        known_ns = lowest_ns if self._offset_ns is None else self._offset_ns
        self._offset_ns = min(max(known_ns, lowest_ns), highest_ns)

    def filesystem_now_ns(self) -> int:
        """Now by the filesystem's own clock, unix nanoseconds: ctime of our lease and what passed since."""
        return self._system.wall_ns() if self._offset_ns is None else self._system.boottime_ns() + self._offset_ns

    def leave(self) -> None:
        """Take the lease away: last of all, when no directory of ours is left."""
        if self.number:
            self._directory.remove(self._path(self.number))
            self.number = 0


def note_beat(words: memoryview[int], before_ns: int, now_ns: int, half_ns: int) -> None:
    """Tell the workers of a good beat that began at *before_ns* (CLOCK_BOOTTIME), and of a gap before it."""
    last_ns = words[Q.BEAT_NS]
    if last_ns and now_ns - last_ns >= half_ns:
        # ORDER: the lapse, then the time. A worker reads the time, then the lapse, so whoever sees the new time
        # sees the lapse before it. See test_a_worker_never_misses_a_lapse (protocol-check 3j: 3 of 4 orders fail).
        words[Q.LAPSES] += 1
    words[Q.HALF_TIMEOUT_NS] = half_ns
    words[Q.BEAT_NS] = before_ns


SILENT_LOOKS = 3  # and who has not beaten by then takes no messages: what it would have taken is shared out


@dataclass(slots=True)
class Sight:
    """What the looks at one master have shown: its number (None: no lease) and how often that was unchanged."""

    number: int | None
    unchanged: int = 0
    is_old: bool = False  # older than stale_after by the filesystem's clock, and unchanged for half of the looks


class Looks:
    """The consecutive looks of one keeper at all other masters."""

    def __init__(self, directory: Directory, lease: Lease) -> None:
        self._directory = directory
        self._system = directory.system
        self._lease = lease
        self._interval_ns = int(directory.times.lease_interval_s * 1e9)
        self._looks = directory.times.looks
        self._old_looks = self._looks // 2 + 1  # by then its own workers know that their lease has lapsed
        self._last_ns = 0
        self._sights: dict[str, Sight] = {}

    def is_due(self) -> bool:
        """Whether an interval has passed since the last look."""
        return self._system.boottime_ns() - self._last_ns >= self._interval_ns

    def numbers(self) -> dict[str, int]:
        """A fresh listing: the highest number of each master's lease."""
        found: dict[str, int] = {}
        for file in self._system.listdir(self._directory.leases):
            parsed = names.parse_lease(file)
            if parsed is not None:
                found[parsed[0]] = max(parsed[1], found.get(parsed[0], 0))
        return found

    def look(self, masters: set[str]) -> None:
        """Count once for each of *masters* (those with a directory in pending/) and each lease there is."""
        start_ns = self._system.boottime_ns()
        numbers = self.numbers()
        end_ns = self._system.boottime_ns()
        # A look that took long, came late, or while we could not beat ourselves proves nothing about others.
        is_void = (
            end_ns - start_ns > self._interval_ns
            or (self._last_ns and start_ns - self._last_ns > 2 * self._interval_ns)
            or not self._lease.is_good
        )
        seen = (masters | set(numbers)) - {self._lease.master}
        for master in seen:
            number = numbers.get(master)
            sight = self._sights.get(master)
            if sight is None or sight.number != number:
                self._sights[master] = Sight(number)
            elif is_void:
                sight.unchanged, sight.is_old = 0, False
            else:
                # Not at first sight: a clock that stepped forward makes every lease look old until its next beat.
                sight.unchanged += 1
                sight.is_old = sight.is_old or (sight.unchanged == self._old_looks and self._is_old(master, number))
        for master in set(self._sights) - seen:
            del self._sights[master]
        self._last_ns = end_ns

    def _is_old(self, master: str, number: int | None) -> bool:
        if number is None or not self._lease.is_good:
            return False
        try:
            found = self._system.lstat(os.path.join(self._directory.leases, f"{master}.{number}"))
        except OSError:
            return False
        age_ns = self._lease.filesystem_now_ns() - found.st_ctime_ns
        return age_ns > self._directory.times.stale_after_s * 1e9

    def place(self) -> tuple[int, int]:
        """How many masters have a lease that beats, ours included, and our place in the order of their names."""
        others = [
            master
            for master, sight in self._sights.items()
            if sight.number is not None and sight.unchanged < SILENT_LOOKS
        ]
        return len(others) + 1, sum(master < self._lease.master for master in others)

    def lost(self) -> list[str]:
        """The masters whose lease is lost by the full count (or was very old and did not change)."""
        return [name for name, sight in self._sights.items() if sight.unchanged >= self._looks or sight.is_old]

    def is_still_lost(self, master: str) -> bool:
        """Look again: exactly what was counted must be found, else the count starts anew."""
        sight = self._sights[master]
        number = self.numbers().get(master)
        if number == sight.number:
            return True
        self._sights[master] = Sight(number)
        return False

    def remove(self, master: str) -> None:
        """Take away the lease of a lost master that has no directory left: exactly the number that was counted."""
        sight = self._sights.pop(master)
        if sight.number is not None:
            self._directory.remove(os.path.join(self._directory.leases, f"{master}.{sight.number}"))
