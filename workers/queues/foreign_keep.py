"""
foreign_keep - the keeper's side of a queue of another project's format: releases, what is due, sweeping

One bounded round a call of keep(), on a timer. What our workers have in hand is touched, so
that nobody takes it for abandoned; what a dead worker had waits again, with its crash
counted, or goes to errors/; what is due comes back; and what was left over beside the queue
is swept. How a message is touched, moved and found is the format's.

Raises: QueueUnavailable; the round is tried again. Keeper only.
Long because: the parts of one round are read together.
See also: foreign (settle), beside (what is written where), dirq_keep, ddmq_keep.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar

from workers.board import Q
from workers.errors import QueueRefused
from workers.queues import names
from workers.queues.base import Consumer, Kept
from workers.queues.beside import Counts
from workers.queues.deferred import Deferred, correct_due
from workers.queues.failures import Failures
from workers.queues.foreign import ForeignQueue
from workers.queues.lease import note_beat
from workers.queues.meta import Facts, facts_of_death
from workers.queues.owners import Death, OwnersKeeper

log = logging.getLogger(__name__)

SWEEP_S_MAX = 60.0  # a sweep lists the whole queue
NOTE_S = 10.0  # the filesystem's clock is read so often; on a network filesystem that costs a file
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EISDIR})  # the last: somebody made a directory of that name
TICK_S = 1.0

HandT = TypeVar("HandT")


class ForeignKeeper(OwnersKeeper, Generic[HandT]):
    """
    What one keeper does for one queue and one master. *HandT* is what a record says.

    A claim is spoken of by a text of the format's own, *held*: whatever it needs to find the message.
    """

    def __init__(self, queue: ForeignQueue, consumer: Consumer, stale_after_s: float, half_s: float) -> None:
        """*half_s*: for so long workers may rely on a good round."""
        super().__init__(consumer, queue, queue.beside.held)
        self._foreign = queue
        self._beside = queue.beside
        self._words = self._slot.words
        self._stale_ns = int(stale_after_s * 1e9)
        self.half_ns = int(half_s * 1e9)
        self.tick_s = min(TICK_S, half_s / 4)
        self._sweep_at_ns = 0
        self._noted_ns = 0
        self._served_ns = 0  # CLOCK_BOOTTIME at which the filesystem had answered last
        self._believe_ns = 0  # until then nothing of others is taken for abandoned
        self._deferred = Deferred(self._system, self._beside.deferred)
        self.is_paused = False
        self.counted = 0  # messages with counts, and workers of others, who may count

    # ---- what the format knows

    def _check_format(self) -> None:
        """Refuse a queue that is not as we were told. Raises QueueRefused, OSError."""

    @abstractmethod
    def _check_moves(self, target: str) -> None:
        """Try whether what the queue holds can be renamed to *target*, that nobody else can make. Raises OSError."""

    @abstractmethod
    def _now_ns(self) -> int:
        """Now by the filesystem's clock."""

    @abstractmethod
    def _touch_all(self) -> None:
        """Touch what our workers have in hand, where it is time. Raises OSError."""

    @abstractmethod
    def _hand_of(self, owner: str) -> HandT | None:
        """What held/OWNER says; None for nothing. Raises OSError."""

    def _wait_until_sure(self, hand: HandT) -> None:
        """Wait until nobody can say any more that *hand* is his, who did not when its worker died."""

    @abstractmethod
    def _release_hand(self, hand: HandT, death: Death, kept: Kept) -> list[str]:
        """Give back what *hand* speaks of, by _release_one, if it is that very claim still; its name."""

    @abstractmethod
    def _name(self, held: str) -> str:
        """The message's name."""

    @abstractmethod
    def _kept_as(self, held: str) -> str:
        """See ForeignQueue.kept_as."""

    @abstractmethod
    def _enqueued_s(self, held: str) -> float | None:
        """Unix seconds at which it was put."""

    @abstractmethod
    def _take_out(self, held: str, target: str) -> bool:
        """Move it to the path *target*; False when it is gone."""

    @abstractmethod
    def _let_wait(self, held: str) -> None:
        """Let it wait as it is."""

    def _attempts_max(self, held: str) -> int:  # noqa: ARG002 - see ForeignQueue.attempts_max
        """At how many failures it goes to errors/."""
        return self._foreign.settings.max_attempts

    @abstractmethod
    def _ended(self, counts: Sequence[str]) -> Iterable[str]:
        """Which of the files in counts/ are of no message that waits or is claimed."""

    @abstractmethod
    def _sweep_queue(self, limit_ns: int, kept: Kept) -> None:
        """Take away what is left over in the queue itself, older than that. Raises OSError."""

    def _reap(self, owners: dict[str, names.Owner], kept: Kept) -> None:
        """Let wait again what nobody keeps any more, in every round; then raises the first OSError that was met."""

    def _before_sweep(self) -> None:
        """What must be so for nothing of ours to look left over. Raises OSError."""

    # ---- the round

    def open(self) -> None:
        """See Keeper.open. What may be in the way of tidying keeps nobody from beginning."""
        self.check()
        before_ns = self._system.boottime_ns()
        self.touch()
        note_beat(self._words, before_ns, self._system.boottime_ns(), self.half_ns)

    def check(self) -> None:
        """Make what lies beside the queue, on its filesystem. Raises QueueRefused."""
        try:
            self._check_format()
            self._beside.make()
            self._ask_for_ctimes()
            probe = f"{names.PROBE}{self._system.random_bytes(8).hex()}"
            for part in (self._beside.tmp, self._beside.deferred, self._beside.errors):
                self._check_moves(os.path.join(part, probe))
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EACCES, errno.EPERM, errno.EROFS):
                raise self._unavailable("open", self._beside.path, error) from error
            raise QueueRefused(
                f"{self._beside.path}, where a pool keeps its counts, retries and errors, cannot be used: renaming "
                f"from {self._foreign.place} fails at {error.filename2 or error.filename}: {error.strerror}; both must "
                "be writable and on one filesystem (state_dir names another place for the first)"
            ) from error

    def keep(self) -> Kept:
        """See Keeper.keep."""
        kept = Kept()
        before_ns = self._system.boottime_ns()
        self.touch()
        self._words[Q.PAUSED] = self.is_paused
        # Claims are touched in time, whatever fails of the rest: nobody need stop claiming for what is in its way.
        note_beat(self._words, before_ns, self._system.boottime_ns(), self.half_ns)
        self.tidy(kept)
        self._words[Q.COUNTED] = self.counted
        return kept

    def touch(self) -> None:
        """The first half of a round, on which workers rely. Nothing is said to them."""
        try:
            self._foreign.check_same()
            self.is_paused = "PAUSED" in self._beside.names()
            self._touch_all()
        except OSError as error:
            self._words[Q.BEAT_NS] = 0  # another queue may be there: nobody claims, however recent the last beat is
            raise self._unavailable("keep", self._foreign.place, error) from error
        self._is_served()

    def _is_served(self) -> bool:
        """
        Whether what nobody has touched for so long is abandoned. To be asked right after the clock was read.

        Where the server stood still for all hosts nobody could touch what he has, and each does as soon as he can. So
        what they have ages anew from the end of an outage on. A local filesystem has one host, which knows who lives.
        """
        now_ns = self._system.boottime_ns()
        if self._foreign.network is not None and self._served_ns and now_ns - self._served_ns >= self.half_ns:
            self._believe_ns = now_ns + 2 * self.half_ns
            late_s, wait_s = (now_ns - self._served_ns) / 1e9, 2 * self.half_ns / 1e9
            log.warning(
                "%s: it did not answer for %.0f s; for %.0f s more nothing of others is taken for abandoned",
                self._foreign.url, late_s, wait_s,
            )  # fmt: skip
        self._served_ns = now_ns
        return now_ns >= self._believe_ns

    def tidy(self, kept: Kept) -> None:
        """The second half: releases, what is due, and seldom a sweep."""
        failures = Failures()
        try:
            now_ns = self._system.boottime_ns()
            if not self._noted_ns or now_ns - self._noted_ns >= NOTE_S * 1e9 or now_ns >= self._sweep_at_ns:
                self._noted_ns = now_ns
                self._reckoning.note(self._now_ns(), now_ns)
            owners = self._owners()
            with failures:
                self._release_unlisted(owners, kept)
            with failures:
                self._release_dead_neighbours(owners, kept)
            with failures:
                self._move_due(kept)
            with failures:
                self._reap(owners, kept)
            now_ns = self._system.boottime_ns()
            if now_ns >= self._sweep_at_ns:
                self._before_sweep()
                try:
                    self._sweep(owners, kept)
                finally:
                    took_ns = self._system.boottime_ns() - now_ns
                    pause_ns = max(min(self._stale_ns // 8, int(SWEEP_S_MAX * 1e9)), 10 * took_ns)
                    self._sweep_at_ns = now_ns + pause_ns
                    sure_at_ns = self._reckoning.sure_at_ns(self._stale_ns / 1e9)
                    if now_ns < sure_at_ns:  # this one could call nothing old
                        self._sweep_at_ns = min(self._sweep_at_ns, sure_at_ns)
            # RACE: another pool counts between our rounds. Where there is one, each claim looks for itself.
            # See test_what_another_pool_has_counted_a_moment_ago_is_known_to_who_claims.
            peers = sum(owner.master != self._consumer.master for owner in owners.values())
            self.counted = len(self._system.listdir(self._beside.counts)) + peers
            failures.raise_first()
        except OSError as error:
            raise self._unavailable("keep", self._foreign.place, error) from error

    def _owners(self) -> dict[str, names.Owner]:
        found = {}
        with self._system.scandir(self._beside.held) as entries:
            for entry in entries:
                # A record is a file: anything else of such a name is nobody's, and stays.
                if entry.is_file(follow_symlinks=False) and (owner := names.parse_owner(entry.name)) is not None:
                    found[entry.name] = owner
        return found

    # ---- releases

    def _release(self, death: Death, kept: Kept) -> list[str]:
        if names.parse_owner(death.owner) is None:
            return []  # nothing, as of a worker that died before it made a record
        # RACE: another keeper releases the same owner, and what it had may be claimed again by then: who takes the
        # record away has it for himself. See test_of_two_keepers_that_release_one_owner_one_does.
        record = os.path.join(self._beside.held, death.owner)
        hand = self._hand_of(death.owner)
        if hand is not None:
            self._wait_until_sure(hand)  # while the record is there: a keeper killed now loses nothing of it
        taken = names.unpublished(self._foreign.tokens.name(self._foreign.host))
        released = []
        if not self._beside.move(record, self._beside.tmp, taken):
            return []
        taken = os.path.join(self._beside.tmp, taken)
        try:
            if hand is not None:
                released = self._release_hand(hand, death, kept)
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

    def _release_one(self, held: str, known: str, death: Death, kept: Kept) -> None:
        """Give back *held*; *known* tells that claim from others, so a release that is tried again counts one crash."""
        name, settings = self._name(held), self._foreign.settings
        counts = self._beside.count_of(name)
        attempts, crashes, reason = counts.attempts, counts.crashes, ""
        if counts.lock != known:
            attempts += death.cause == "timeout"
            crashes += death.cause in ("died", "unknown")
        counts = Counts(attempts, crashes, known)
        if crashes >= settings.crash_limit:
            reason = f"its worker died {crashes} times with it in hand"
        elif death.cause == "timeout" and attempts >= self._attempts_max(held):
            reason = f"failed {attempts} times, the last time by its time limit"
        if reason:
            self._to_errors(held, counts, reason, death, kept)
        elif death.cause == "timeout":
            now_s = self._now_ns() / 1e9
            due = names.due_at(now_s + self._foreign.backoff_s(attempts))
            file = f"{due}.{self._foreign.marked(self._kept_as(held), counts)}"
            self._take_out(held, os.path.join(self._beside.deferred, file))
            correct_due(self._system, self._words, self._beside.deferred, file, now_s)
        else:
            if death.cause != "stopped":
                self._count_if_room(name, counts)
            self._let_wait(held)

    def _to_errors(self, held: str, counts: Counts, reason: str, death: Death, kept: Kept) -> None:
        name, file = self._name(held), self._foreign.marked(self._kept_as(held), counts)
        if not self._take_out(held, os.path.join(self._beside.errors, file)):
            return
        self._system.fsync_directory(self._beside.errors)
        self._beside.forget_count(name)
        kept.crash_limit += 1
        self._tell_end(name, reason)
        facts: Facts = {"attempts": counts.attempts, "crashes": counts.crashes, "reason": reason}
        facts |= facts_of_death(death, name, self._enqueued_s(held), self._system.wall_ns() / 1e9)
        self._foreign.write_meta(file, facts | {"queue": self._foreign.url})

    def _count(self, name: str, counts: Counts) -> None:
        """Write counts before their message can be claimed, and tell the workers that there are some."""
        self._beside.write_count(name, counts)
        self._words[Q.COUNTED] += 1

    def _count_if_room(self, name: str, counts: Counts) -> None:
        """Write counts of what must come back also on a full disk: what it waits for may be what makes room."""
        try:
            self._count(name, counts)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            log.warning("%s: the counts of %s are lost: %s", self._foreign.url, name, error)

    # ---- due, sweeping

    def _move_due(self, kept: Kept) -> None:
        """Let what is due come back; then raises the first OSError that one of them met."""
        failures = Failures()
        for file, marked in self._deferred.due(self._now_ns):
            if self._foreign.name_of(marked.name) is not None:
                with failures:
                    self._move_back(file, marked, kept)
        failures.raise_first()

    def _move_back(self, file: str, marked: names.Marked, kept: Kept) -> None:
        name, counts = self._foreign.name_of(marked.name) or "", Counts(marked.attempts, marked.crashes)
        self._count_if_room(name, counts)
        # Counted before it can be seen, so that --until-empty never misses a message between two places.
        self._slot.words[Q.DUE_MOVES] += 1
        now_s = (self._system.boottime_ns() + self._words[Q.CLOCK_NS]) / 1e9
        again = self._foreign.put_in_alone(os.path.join(self._beside.deferred, file), marked.name, counts, now_s)
        if again is not None:
            kept.due += 1
            if again != name:
                self._count_if_room(again, counts)

    def _sweep(self, owners: dict[str, names.Owner], kept: Kept) -> None:
        stale_s = self._stale_ns / 1e9
        limit_ns = self._reckoning.limit_ns(stale_s)
        if not self._is_served():
            return
        for file in self._system.listdir(self._beside.tmp):
            self._remove_older(os.path.join(self._beside.tmp, file), stale_s, kept)
        if self._are_probes_due(stale_s):
            for place in (self._beside.tmp, self._beside.deferred, self._beside.errors):
                self._sweep_probes(place, stale_s, kept)
        for file in self._ended(self._system.listdir(self._beside.counts)):
            self._remove_older(os.path.join(self._beside.counts, file), stale_s, kept)
        for file, owner in owners.items():
            # Of another host: we cannot ask whether it lives. Its keeper touches what is there.
            if owner.kernel8 != self._kernel8:
                self._remove_older(os.path.join(self._beside.held, file), stale_s, kept)
        self._prune(self._beside.errors, self._foreign.settings.keep_errors_s, kept)
        self._sweep_queue(limit_ns, kept)

    def _remove_message(self, path: str) -> bool:
        """See OwnersKeeper._remove_message: a file, or a directory of files (and maybe a lock)."""
        if not self._system.is_directory(path):
            return super()._remove_message(path)
        for file in self._system.listdir(path):
            inner = os.path.join(path, file)
            if self._system.is_directory(inner):
                self._system.rmdir(inner)
            else:
                self._beside.remove(inner)
        self._system.rmdir(path)
        return True

    def _remove_probe(self, path: str, age_s: float, kept: Kept) -> None:
        """See OwnersKeeper._remove_probe: a file or an empty directory, as an element of the queue is."""
        if not self._system.is_directory(path):
            self._remove_older(path, age_s, kept)
            return
        # RACE: the keeper of another pool sweeps it, too. See test_of_two_keepers_that_sweep_a_probe_one_removes_it.
        with contextlib.suppress(FileNotFoundError):
            if self._is_older(path, age_s) and not self._system.listdir(path):
                self._system.rmdir(path)
                kept.temporary += 1

    # ---- leaving

    def leave(self) -> None:
        """See Keeper.leave: there is nothing of ours but what its workers took with them."""
