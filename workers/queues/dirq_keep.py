"""
dirq_keep - the keeper's side of a directory queue: touch, releases, due, sweeping

One bounded round a call of keep(), on a timer. The locks of our workers that have had
their message for a while are touched, so that no purge takes them for stale; what a dead
worker had is unlocked, with its crash counted, or goes to errors/; what is due comes back;
and what others left over is swept, as purge() of the originals does.

Raises: QueueUnavailable; the round is tried again. Keeper only.
Long because: the parts of one round are read together.
See also: dirq (claim and settle), beside (what is written where), spool_keep.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from typing import TYPE_CHECKING

from workers.board import Q, W, WorkerText
from workers.dirq.elements import NAME, Lock, time_of
from workers.errors import QueueRefused, QueueUnavailable
from workers.queues import dirq_look, names
from workers.queues.base import Cause, Consumer, Depth, Kept
from workers.queues.beside import Counts, Hand, decoded
from workers.queues.lease import note_beat
from workers.queues.meta import Facts, facts_of_death
from workers.queues.owners import Death, OwnersKeeper
from workers.queues.spool_look import META

if TYPE_CHECKING:
    from workers.queues.dirq import Dirq

log = logging.getLogger(__name__)

SWEEP_S_MAX = 60.0  # a sweep lists the whole queue


class DirqKeeper(OwnersKeeper):
    """What one keeper does for one queue and one master."""

    def __init__(self, queue: Dirq, consumer: Consumer) -> None:
        super().__init__(consumer, queue.beside.held, queue.host, queue.system)
        self._queue = queue
        self._elements = queue.elements
        self._beside = queue.beside
        self._words = self._slot.words
        self._stale_ns = int(queue.stale_after_s * 1e9)
        self.half_ns = self._stale_ns // 2  # for so long workers may rely on a good round
        self._touch_ns = queue.touch_ns
        self.tick_s = min(1.0, queue.stale_after_s / 8)
        self._touched: dict[str, int] = {}  # by owner, CLOCK_BOOTTIME
        self._sweep_at_ns = 0
        self.is_paused = False
        self.counted = 0  # elements with counts
        self._kept_for_ever: set[str] = set()  # what could not be pruned and was spoken of

    # ---- the round

    def open(self) -> None:
        """See Keeper.open. What may be in the way of tidying keeps nobody from beginning."""
        self.check()
        before_ns = self._system.boottime_ns()
        self.touch()
        note_beat(self._words, before_ns, self._system.boottime_ns(), self.half_ns)

    def check(self) -> None:
        """Make what lies beside the queue, on its filesystem; look whether the schema fits. Raises QueueRefused."""
        try:
            self._queue.check_schema()
            self._beside.make()
            probe = f".probe.{self._system.random_bytes(8).hex()}"
            for part in (self._beside.tmp, self._beside.deferred, self._beside.errors):
                self._elements.check_moves(os.path.join(part, probe))
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EACCES, errno.EPERM, errno.EROFS):
                raise QueueUnavailable.at("open", error.filename or self._beside.path, error) from error
            raise QueueRefused(
                f"{self._beside.path}, where a pool keeps its counts, retries and errors, cannot be used: renaming "
                f"from {self._queue.place} fails at {error.filename2 or error.filename}: {error.strerror}; both must "
                "be writable and on one filesystem (state_dir names another place for the first)"
            ) from error

    def keep(self) -> Kept:
        """See Keeper.keep."""
        kept = Kept()
        before_ns = self._system.boottime_ns()
        self.touch()
        self._words[Q.PAUSED] = self.is_paused
        # Locks are touched in time, whatever fails of the rest: nobody need stop claiming for what is in its way.
        note_beat(self._words, before_ns, self._system.boottime_ns(), self.half_ns)
        self.tidy(kept)
        self._words[Q.COUNTED] = self.counted
        return kept

    def touch(self) -> None:
        """The first half of a round, on which workers rely. Nothing is said to them."""
        try:
            self._queue.check_same()
            self.is_paused = "PAUSED" in self._beside.names()
            self._touch_all()
        except OSError as error:
            self._words[Q.BEAT_NS] = 0  # another queue may be there: nobody claims, however recent the last beat is
            raise QueueUnavailable.at("keep", error.filename or self._queue.place, error) from error

    def tidy(self, kept: Kept) -> None:
        """The second half: releases, what is due, and seldom a sweep."""
        try:
            owners = self._owners()
            self._release_unlisted(owners, kept)
            self._release_dead_neighbours(owners, kept)
            failed = self._move_due(kept)
            now_ns = self._system.boottime_ns()
            if now_ns >= self._sweep_at_ns:
                # A clock that stepped forward makes every lock look old; those of ours are of now after this.
                self._touch_all(is_due=True)
                try:
                    self._sweep(owners, kept)
                finally:
                    took_ns = self._system.boottime_ns() - now_ns
                    pause_ns = max(min(self._stale_ns // 8, int(SWEEP_S_MAX * 1e9)), 10 * took_ns)
                    self._sweep_at_ns = now_ns + pause_ns
            self.counted = len(self._system.listdir(self._beside.counts))
            if failed is not None:
                raise failed
        except OSError as error:
            raise QueueUnavailable.at("keep", error.filename or self._queue.place, error) from error

    def _owners(self) -> dict[str, names.Owner]:
        found = {}
        with self._system.scandir(self._beside.held) as entries:
            for entry in entries:
                # A record is a file: anything else of such a name is nobody's, and stays.
                if entry.is_file(follow_symlinks=False) and (owner := names.parse_owner(entry.name)) is not None:
                    found[entry.name] = owner
        return found

    # ---- touching

    def _touch_all(self, *, is_due: bool = False) -> None:
        """The locks of our workers, and their records: who has none in hand shows by it that it is there."""
        board, now_ns = self._consumer.board, self._system.boottime_ns()
        seen: dict[str, int] = {}
        for number in board.worker_numbers(self._consumer.queue_slot):
            worker = board.worker(number)
            owner = worker.text(WorkerText.OWNER)
            if not owner:
                continue
            seen[owner] = self._touched.get(owner, now_ns)
            if is_due or now_ns - max(seen[owner], worker.words[W.MESSAGE_SINCE_NS]) >= self._touch_ns:
                seen[owner] = now_ns
                self._touch(owner)
        self._touched = seen

    def _touch(self, owner: str) -> None:
        hand = self._beside.hand_of(owner)
        record = os.path.join(self._beside.held, owner)
        try:
            if hand is not None and not self._is_in_hand(hand):
                # It has been settled, or lost: a record with a later time would let it be taken for ours. But to
                # another host, which goes by ctime, it must not look like that of a worker that is gone.
                self._system.utime(record, (hand.touched_ns, hand.touched_ns))
                return
            # ORDER: the record, then the lock, to the same nanosecond: its holder, and the next round, take a lock for
            # its own up to the time of its record. See test_a_lock_is_its_holders_at_every_moment_of_a_touch.
            self._system.utime(record)
            if hand is not None:
                self._touch_lock(hand.name, record)
        except FileNotFoundError:
            return  # settled meanwhile

    def _is_in_hand(self, hand: Hand) -> bool:
        """Whether its holder may still take the lock for its own; also when a touch failed between the two."""
        is_name = NAME.match(hand.name) is not None
        lock = Lock(hand.name, hand.inode, hand.at_ns, 0)
        return is_name and self._elements.is_held(lock, hand.touched_ns, self._queue.within_ns)

    def _touch_lock(self, name: str, record: str) -> None:
        try:
            self._elements.touch(name, self._system.lstat(record).st_mtime_ns)
        except PermissionError:
            # Another user's element: who may write to it may say "now" of it, and no other time.
            self._elements.touch(name)
            touched_ns = self._system.lstat(self._elements.element_path(name)).st_mtime_ns
            self._system.utime(record, (touched_ns, touched_ns))

    # ---- releases

    def release_owner(self, owner: str, cause: Cause, note: str = "") -> list[str]:
        """See Keeper.release_owner."""
        kept = Kept()
        try:
            released = self._release(Death(owner, cause, note), kept)
        except OSError as error:
            raise QueueUnavailable.at("release", error.filename or owner, error) from error
        self._words[Q.REAPED_CRASH_LIMIT] += kept.crash_limit
        if released and cause != "stopped":
            self._words[Q.REAPED_OWNER_DEAD] += 1
        return released

    def _release(self, death: Death, kept: Kept) -> list[str]:
        if names.parse_owner(death.owner) is None:
            return []  # nothing, as of a worker that died before it made a record
        # RACE: another keeper releases the same owner, and what it had may be locked again by then: who takes the
        # record away has it for himself. See test_of_two_keepers_that_release_one_owner_one_does.
        record = os.path.join(self._beside.held, death.owner)
        hand = self._beside.hand_of(death.owner)
        taken = names.unpublished(self._queue.tokens.name(self._queue.host))
        released = []
        if not self._beside.move(record, self._beside.tmp, taken):
            return []
        taken = os.path.join(self._beside.tmp, taken)
        try:
            if hand is not None and self._is_in_hand(hand):
                self._release_one(hand.name, f"{hand.inode}:{hand.at_ns}", death, kept)
                released.append(hand.name)
        except OSError:
            self._beside.move(taken, self._beside.held, death.owner)  # it is tried again
            raise
        with contextlib.suppress(IsADirectoryError):  # not the worker's
            self._beside.remove(taken)
        self._unlisted.discard(death.owner)
        return released

    def _is_our_users(self, path: str) -> bool:
        try:
            return super()._is_our_users(path) and self._beside.is_record_of(os.path.basename(path))
        except OSError:
            return False

    def _release_one(self, name: str, lock: str, death: Death, kept: Kept) -> None:
        """Give back the element *name*, locked by *lock*; a release that is tried again counts no second crash."""
        counts = self._beside.count_of(name)
        settings, queue = self._queue.settings, self._queue
        attempts, crashes, reason = counts.attempts, counts.crashes, ""
        if counts.lock != lock:
            attempts += death.cause == "timeout"
            crashes += death.cause in ("died", "unknown")
        counts = Counts(attempts, crashes, lock)
        if crashes >= settings.crash_limit:
            reason = f"its worker died {crashes} times with it in hand"
        elif death.cause == "timeout" and attempts >= settings.max_attempts:
            reason = f"failed {attempts} times, the last time by its time limit"
        if reason:
            self._to_errors(name, counts, reason, death, kept)
        elif death.cause == "timeout":
            due = -int(-(self._elements.filesystem_now_ns() / 1e9 + queue.backoff_s(attempts)) // 1)
            file = f"{due}.{queue.marked(name, counts)}"
            self._elements.take_out(name, os.path.join(self._beside.deferred, file))
        else:
            if death.cause != "stopped":
                self._count(name, counts)
            self._elements.unlock(name)

    def _to_errors(self, name: str, counts: Counts, reason: str, death: Death, kept: Kept) -> None:
        file = self._queue.marked(name, counts)
        if not self._elements.take_out(name, os.path.join(self._beside.errors, file)):
            return
        self._system.fsync_directory(self._beside.errors)
        self._beside.forget_count(name)
        kept.crash_limit += 1
        facts: Facts = {"attempts": counts.attempts, "crashes": counts.crashes, "reason": reason}
        facts |= facts_of_death(death, name, time_of(name), self._system.wall_ns() / 1e9)
        self._queue.write_meta(file, facts | {"queue": self._queue.url})

    def _count(self, name: str, counts: Counts) -> None:
        """Write counts before their element can be claimed, and tell the workers that there are some."""
        self._beside.write_count(name, counts)
        self._words[Q.COUNTED] += 1

    # ---- due, sweeping

    def _move_due(self, kept: Kept) -> OSError | None:
        """Let what is due come back; the first error that one of them met."""
        files = self._system.listdir(self._beside.deferred)
        if not files:
            return None
        now_s = self._elements.filesystem_now_ns() / 1e9
        failed: OSError | None = None
        for file in sorted(files):
            due = names.parse_due(file)
            if due is None or due[0] > now_s or not NAME.match(decoded(due[1].name)):
                continue
            try:
                self._move_back(file, decoded(due[1].name), Counts(due[1].attempts, due[1].crashes), kept)
            except OSError as error:  # of this one: it keeps no other from coming back
                failed = failed or error
        return failed

    def _move_back(self, file: str, name: str, counts: Counts, kept: Kept) -> None:
        try:
            self._count(name, counts)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            # It must come back all the same: what it waits for may be what makes room.
            log.warning("%s: the counts of %s are lost: %s", self._queue.url, name, error)
        # Counted before it can be seen, so that --until-empty never misses a message between two places.
        self._slot.words[Q.DUE_MOVES] += 1
        again = self._elements.put_in(os.path.join(self._beside.deferred, file), name)
        if again is not None:
            kept.due += 1
            if again != name:
                self._count(again, counts)

    def _sweep(self, owners: dict[str, names.Owner], kept: Kept) -> None:
        limit_ns = self._elements.filesystem_now_ns() - self._stale_ns
        for file in self._system.listdir(self._beside.tmp):
            self._remove_older(os.path.join(self._beside.tmp, file), limit_ns, kept)
        for file in self._system.listdir(self._beside.counts):
            if not NAME.match(decoded(file)) or not self._is_there(self._elements.element_path(decoded(file))):
                self._remove_older(os.path.join(self._beside.counts, file), limit_ns, kept)
        for file, owner in owners.items():
            # Of another host: we cannot ask whether it lives. Its keeper touches what is there.
            if owner.kernel8 != self._kernel8:
                self._remove_older(os.path.join(self._beside.held, file), limit_ns, kept)
        self._prune(kept)
        swept = self._elements.sweep(limit_ns, limit_ns)
        kept.temporary += swept.temporary
        for name in swept.locks:
            kept.too_old += 1
            log.warning("%s: the stale lock of %s is broken", self._queue.url, name)
            self._count_stale(name, kept)
        if swept.errors:
            raise swept.errors[0]

    def _count_stale(self, name: str, kept: Kept) -> None:
        """Whoever had it is gone, or hangs: that is a crash, as with any other who died with it in hand."""
        counts = self._beside.count_of(name)
        counts = Counts(counts.attempts, counts.crashes + 1)
        self._count(name, counts)
        if counts.crashes >= self._queue.settings.crash_limit and self._elements.lock(name) is not None:
            death = Death("", "unknown", "its lock was stale")
            self._to_errors(name, counts, f"its holder was gone {counts.crashes} times", death, kept)

    def _prune(self, kept: Kept) -> None:
        keep_s = self._queue.settings.keep_errors_s
        if keep_s is None:
            return
        limit_ns = self._elements.filesystem_now_ns() - int(keep_s * 1e9)
        files = self._system.listdir(self._beside.errors)
        known = set(files)
        for file in files:
            path = os.path.join(self._beside.errors, file)
            if file.endswith(META) and file.removesuffix(META) in known:
                continue  # goes with its message
            if not self._is_older(path, limit_ns):
                continue
            try:
                self._remove(path)
            except OSError as error:
                if file not in self._kept_for_ever:
                    self._kept_for_ever.add(file)
                    log.warning("%s: %s is to be pruned and stays: %s", self._queue.url, names.shown(path), error)
                continue
            self._beside.forget(f"{path}{META}")
            kept.pruned += 1

    def _remove(self, path: str) -> None:
        """Remove the element at *path*: a file, or a directory of files (and maybe a lock). Raises OSError."""
        if not self._system.is_directory(path):
            self._beside.remove(path)
            return
        for file in self._system.listdir(path):
            inner = os.path.join(path, file)
            if self._system.is_directory(inner):
                self._system.rmdir(inner)
            else:
                self._beside.remove(inner)
        self._system.rmdir(path)

    def _remove_older(self, path: str, limit_ns: int, kept: Kept) -> None:
        if self._is_older(path, limit_ns) and not self._system.is_directory(path):
            self._beside.remove(path)
            kept.temporary += 1

    def _is_older(self, path: str, limit_ns: int) -> bool:
        try:
            return self._system.lstat(path).st_ctime_ns < limit_ns
        except FileNotFoundError:
            return False

    def _is_there(self, path: str) -> bool:
        try:
            self._system.lstat(path)
        except FileNotFoundError:
            return False
        return True

    # ---- leaving

    def depth(self, *, is_exact: bool) -> Depth:  # noqa: ARG002 - it always is
        """See Keeper.depth."""
        try:
            return dirq_look.depth(self._elements, self._beside)
        except OSError as error:
            raise QueueUnavailable.at("measure", error.filename or self._queue.place, error) from error

    def leave(self) -> None:
        """See Keeper.leave: there is nothing of ours but what its workers took with them."""
