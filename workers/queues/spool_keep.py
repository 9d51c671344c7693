"""
spool_keep - the keeper's side of a spool queue: beat, looks, releases, due, prune

One bounded round a call of keep(), on a timer. Nothing here deletes a message that
was not finished: a claim goes back to incoming/, to deferred/ or to errors/.

Raises: QueueUnavailable; the round is tried again. Keeper only.
Long because: the parts of one round are read together.
See also: SPOOL.md "Who releases what", lease (beats and looks), keeper (the timer).
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from typing import TYPE_CHECKING

from workers.board import Q
from workers.errors import QueueUnavailable
from workers.queues import names
from workers.queues.base import Consumer, Depth, Kept
from workers.queues.deferred import Deferred, correct_due
from workers.queues.lease import Lease, Looks
from workers.queues.meta import Facts, facts_of_death
from workers.queues.owners import Death, OwnersKeeper
from workers.queues.spool_look import Claims, depth
from workers.trust import can_rename

if TYPE_CHECKING:
    from workers.queues.spool import Spool

log = logging.getLogger(__name__)

LISTED_MAX = 1000  # owners' directories that all keepers of a queue list for one measure, together
SWEEP_S = 5.0  # tmp/, flat claims and done/ are looked at no more often


class SpoolKeeper(OwnersKeeper):
    """What one keeper does for one queue and one master."""

    def __init__(self, spool: Spool, consumer: Consumer) -> None:
        super().__init__(consumer, spool, spool.directory.pending)
        self._spool = spool
        self._directory = spool.directory
        self.tick_s = min(1.0, self._directory.times.lease_interval_s / 2)
        self.lease = Lease(self._directory, consumer.master, self._slot)
        self._looks = Looks(self._directory, self.lease)
        self._beat_ns = 0
        self._swept_ns = 0
        self._strange: set[str] = set()
        self._claims = Claims(self._directory)
        self._deferred = Deferred(self._system, self._directory.deferred, self._beat_when_due)

    # ---- the round

    def open(self) -> None:
        """See Keeper.open: a file is renamed through all directories."""
        self._directory.check_renames()
        try:
            self.lease.beat()
            self._reckoning.note(self.lease.filesystem_now_ns())
            self._ask_for_ctimes()
        except OSError as error:
            raise QueueUnavailable.at("beat the lease in", self._directory.leases, error) from error

    def keep(self) -> Kept:
        """See Keeper.keep."""
        kept = Kept()
        try:
            listing = self._system.listdir(self._directory.pool)
            if "id" not in listing or not self._directory.is_same():
                raise OSError(
                    errno.ESTALE,
                    "another queue, or none, is there now: was the mount lost? (restart the pool if that is meant)",
                )
            self._slot.words[Q.PAUSED] = 1 if "PAUSED" in listing else 0
            kept.beat_ok = self._beat_when_due()
            owners = self._owners()
            self._release_unlisted(owners, kept)
            self._release_dead_neighbours(owners, kept)
            if self._looks.is_due():
                self._looks.look({owner.master for owner in owners.values()})
                self._slot.words[Q.PEERS], self._slot.words[Q.RANK] = self._looks.place()
                self._release_lost(owners, kept)
            self._move_due(kept)
            now_ns = self._system.boottime_ns()
            if now_ns - self._swept_ns >= SWEEP_S * 1e9:
                self._swept_ns = now_ns
                self._sweep(kept)
        except OSError as error:
            raise self._unavailable("keep", self._directory.path, error) from error
        return kept

    def depth(self, *, is_exact: bool) -> Depth:
        """See Keeper.depth. In a large cluster claims are counted a part at a time, unless *is_exact*."""
        if is_exact:
            return depth(self._directory)
        self._claims.most = max(LISTED_MAX // max(self._slot.words[Q.PEERS], 1), 1)
        return depth(self._directory, self._claims)

    def _beat_when_due(self) -> bool:
        now_ns = self._system.boottime_ns()
        if now_ns - self._beat_ns < self._directory.times.lease_interval_s * 1e9 and self.lease.is_good:
            return True
        self._beat_ns = now_ns
        if self.lease.beat():
            self._reckoning.note(self.lease.filesystem_now_ns())
            return True
        log.warning("%s: the lease %s was gone and is made again", self._spool.url, self.lease.master)
        return False

    def _owners(self) -> dict[str, names.Owner]:
        found = {}
        with self._system.scandir(self._directory.pending) as entries:
            for entry in entries:
                # A link is not followed: what it points at is nobody's claim, and may not even be the queue's.
                if entry.is_dir(follow_symlinks=False) and (owner := names.parse_owner(entry.name)) is not None:
                    found[entry.name] = owner
        return found

    def _release_lost(self, owners: dict[str, names.Owner], kept: Kept) -> None:
        """What is not done within an interval is done after the next look: what is due must not wait for thousands."""
        until_ns = self._system.boottime_ns() + int(self._directory.times.lease_interval_s * 1e9)
        directories: dict[str, list[str]] = {}
        for directory, owner in owners.items():
            directories.setdefault(owner.master, []).append(directory)
        for master in self._looks.lost():
            if self._system.boottime_ns() >= until_ns:
                return
            for directory in directories.get(master, ()):
                if not self._looks.is_still_lost(master):
                    break
                log.warning("%s: the lease of %s is lost, its claims go back", self._spool.url, directory)
                self._release(Death(directory, "unknown", "its lease was lost"), kept)
                kept.lease_lost += 1
                self._beat_when_due()
            else:
                if not any(owner.master == master for owner in self._owners().values()):
                    self._looks.remove(master)

    # ---- releases

    def _release(self, death: Death, kept: Kept) -> list[str]:
        if names.parse_owner(death.owner) is None:
            return []  # nothing, as of a worker that died before it took a directory: never pending/ itself
        place = os.path.join(self._directory.pending, death.owner)
        released = []
        try:
            if not stat.S_ISDIR(self._system.lstat(place).st_mode):
                return []
            files = self._system.listdir(place)
        except FileNotFoundError:
            return []
        for file in files:
            if file.startswith(names.STILL_OPEN):
                continue
            self._beat_when_due()
            path, mark = os.path.join(place, file), names.parse(file)
            with self._unless_stuck(path):
                if not mark.token:
                    self._spool.to_errors_as_left(path, "left by a handler")
                elif self._release_one(path, mark, death, kept):
                    released.append(mark.name)
        try:
            self._system.rmdir(place)
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise  # else: something came in meanwhile; the next round finishes it
        self._unlisted.discard(death.owner)
        return released

    def _release_one(self, path: str, mark: names.Marked, death: Death, kept: Kept) -> bool:
        attempts, crashes = mark.attempts, mark.crashes
        settings = self._spool.settings
        token = self._spool.tokens.token(mark.name)
        target, prefix, reason = self._directory.incoming, "", ""
        if death.cause in ("died", "unknown"):
            crashes += 1
            if crashes >= settings.crash_limit:
                reason = f"its worker died {crashes} times with it in hand"
        elif death.cause == "timeout":
            attempts += 1
            if attempts >= settings.max_attempts:
                reason = f"failed {attempts} times, the last time by its time limit"
            else:
                now_s = self.lease.filesystem_now_ns() / 1e9
                due = names.due_at(now_s + self._spool.backoff_s(attempts))
                target, prefix = self._directory.deferred, f"{due}."
        if reason:
            target = self._directory.errors
        name = names.marked(attempts, crashes, token, mark.name)
        if not self._directory.move(path, target, prefix + name):
            return False
        if prefix:
            correct_due(self._system, self._slot.words, target, prefix + name, now_s)
        if reason:
            # A poison message is counted as such only when its place in errors/ is durable.
            self._system.fsync_directory(self._directory.errors)
            kept.crash_limit += 1
            self._tell_end(mark.name, reason)
            facts: Facts = {"attempts": attempts, "crashes": crashes, "reason": reason, "queue": self._spool.url}
            facts |= facts_of_death(death, mark.name, names.enqueued_at(mark.name), self._system.wall_ns() / 1e9)
            self._spool.write_meta(name, facts)
        return True

    # ---- due, sweeping

    def _move_due(self, kept: Kept) -> None:
        for file, mark in self._deferred.due(self.lease.filesystem_now_ns):
            fresh = names.marked(mark.attempts, mark.crashes, self._spool.tokens.token(mark.name), mark.name)
            # Counted before it can be seen, so that --until-empty never misses a message between two places.
            self._slot.words[Q.DUE_MOVES] += 1
            path = os.path.join(self._directory.deferred, file)
            with self._unless_stuck(path):
                if self._directory.move(path, self._directory.incoming, fresh):
                    kept.due += 1
            self._beat_when_due()

    def _sweep(self, kept: Kept) -> None:
        stale_s = self._directory.times.stale_after_s
        if self._are_probes_due(stale_s):
            directory = self._directory
            for place in (directory.incoming, directory.pending, directory.deferred, directory.errors, directory.done):
                self._beat_when_due()  # a long one takes its time
                self._sweep_probes(place, stale_s, kept)
        for file in self._system.listdir(self._directory.tmp):
            path = os.path.join(self._directory.tmp, file)
            if file.startswith(names.STILL_OPEN) or not self._is_older(path, stale_s):
                continue
            is_message = not (names.is_unpublished(file) or file.startswith(names.PROBE))
            with self._unless_stuck(path):
                if not is_message and not self._system.is_directory(path):
                    self._directory.remove(path)  # never published: nobody was promised anything
                    kept.temporary += 1
                elif not names.is_ignored(file):
                    self._spool.to_errors_as_left(path, "abandoned in tmp")
                    kept.temporary += 1
        files = self._system.listdir(self._directory.pending)
        # RACE: a worker takes a directory between the two listings. It is then in the second one.
        # See test_an_owner_that_is_made_while_pending_is_swept_is_not_called_strange.
        owners = self._owners()  # and is not looked at one by one: there may be thousands
        for file in files:
            if file not in owners:
                self._sweep_flat(file, stale_s, kept)
        self._prune(self._directory.done, self._spool.settings.keep_done_s, kept)
        self._prune(self._directory.errors, self._spool.settings.keep_errors_s, kept)

    def _sweep_flat(self, file: str, stale_s: float, kept: Kept) -> None:
        """A claim of a foreign filer program: back when it is stale and its name is unique by shape."""
        path = os.path.join(self._directory.pending, file)
        mark = names.parse(file)
        if self._system.is_directory(path):
            if file not in self._strange:
                self._strange.add(file)
                log.warning("%s: pending/%s is no owner's directory, not touched", self._spool.url, names.shown(file))
            return
        if file.startswith(".") or not self._is_older(path, stale_s):
            return
        if not (mark.token or names.is_unique(mark.name) or self._spool.settings.reap_foreign):
            if file not in self._strange:
                self._strange.add(file)
                log.warning(
                    "%s: pending/%s is a stale claim of another program, its name is not unique: not touched",
                    self._spool.url,
                    names.shown(file),
                )
            return
        name = names.shortened(mark.name, self._spool.tokens.digits())
        fresh = names.marked(mark.attempts, mark.crashes, self._spool.tokens.token(name), name)
        with self._unless_stuck(path):
            if self._directory.move(path, self._directory.incoming, fresh):
                kept.too_old += 1
                log.warning("%s: stale claim %s goes back", self._spool.url, names.shown(mark.name))

    def _is_our_users(self, path: str) -> bool:
        # Who may rename a directory of ours lets it speak of any process.
        pending = self._system.lstat(self._directory.pending)
        return super()._is_our_users(path) and not can_rename(pending, self._system.geteuid())

    def _remove_message(self, path: str) -> bool:
        """See OwnersKeeper._remove_message: a tree that a handler left is for a person to look at."""
        return not self._system.is_directory(path) and super()._remove_message(path)

    # ---- leaving

    def leave(self) -> None:
        """See Keeper.leave: the lease goes, unless a directory of ours is still there."""
        try:
            if not any(owner.master == self._consumer.master for owner in self._owners().values()):
                self.lease.leave()
        except OSError as error:
            log.warning("%s: the lease stays behind: %s", self._spool.url, error)
