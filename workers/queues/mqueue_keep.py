"""
mqueue_keep - the keeper's side of a message queue of the kernel: judgement, what is due, sweeping

One bounded round a call of keep(), on a timer. What a dead worker has left in its receive file is
judged: its death is counted, and it stays there for the worker's successor, or goes to deferred/ or
errors/. What no successor takes up in time goes back by way of deferred/, and what is due is sent to
the kernel again; while that is full, at every round.

A file that is locked has a worker that lives, whatever else is written in it. So nobody but the one
who has the lock counts, moves or removes.

Raises: QueueUnavailable; the round is tried again. Keeper only.
Long because: the parts of one round are read together.
See also: mqueue (claim and settle), receive (the files), owners, dirq_keep.
"""

from __future__ import annotations

import errno
import logging
import os
from typing import TYPE_CHECKING

from workers.board import Q
from workers.errors import QueueRefused, QueueUnavailable
from workers.queues import names
from workers.queues.base import Consumer, Depth, Kept
from workers.queues.beside import Counts
from workers.queues.deferred import Deferred
from workers.queues.failures import Failures
from workers.queues.lease import note_beat
from workers.queues.meta import Facts, facts_of_death, write_meta
from workers.queues.mqueue_look import name_of, priority_of
from workers.queues.owners import Death, OwnersKeeper
from workers.queues.receive import Receive, Seen

if TYPE_CHECKING:
    from workers.queues.mqueue import Mqueue

log = logging.getLogger(__name__)

TICK_S = 0.25  # a full queue may have room for so long only
# Where producers wait for room as well, there is none for who only looks. See
# test_what_is_due_comes_back_though_producers_wait_for_every_place.
PATIENCE_S = 0.1
HALF_S = 30.0  # nobody's claim rests on a keeper's beat; a lone worker looks whether its keeper lives when it is old
UNFOLLOWED_S = 5.0  # so long what a dead worker left waits for a successor
SWEEP_S = 60.0
ABANDONED_S = 600.0  # of what is half written, and of counts of what is nowhere; unless stale_after says so
COUNTS_S_MAX = 7 * 86400.0  # a message may wait in the kernel so long before its counts are forgotten


class MqueueKeeper(OwnersKeeper):
    """What one keeper does for one queue and one master."""

    def __init__(self, queue: Mqueue, consumer: Consumer) -> None:
        super().__init__(consumer, queue, queue.receive_place.path)
        self._queue = queue
        self._place = queue.receive_place
        self._beside = queue.beside
        self._words = self._slot.words
        self.tick_s = TICK_S
        self._free_since: dict[tuple[str, str], int] = {}  # file and owner; CLOCK_BOOTTIME when first seen dead
        self._abandoned_s = queue.settings.stale_after_s or ABANDONED_S
        self._deferred = Deferred(self._system, self._beside.deferred)
        self._sweep_at_ns = 0

    # ---- the round

    def open(self) -> None:
        """See Keeper.open. What masters that are gone have left is judged before our workers receive."""
        if refused := self._queue.refused():
            raise QueueRefused(refused)
        try:
            self._queue.make_places()
        except OSError as error:
            raise self._unavailable("open", self._beside.path, error) from error
        self._look()
        try:
            self._tidy(Kept())
        except OSError as error:  # what one message meets keeps no pool from the others
            log.warning("%s: %s", self._queue.url, self._unavailable("keep", self._beside.path, error))

    def keep(self) -> Kept:
        """See Keeper.keep."""
        kept = Kept()
        self._look()
        try:
            self._tidy(kept)
        except OSError as error:
            raise self._unavailable("keep", self._beside.path, error) from error
        return kept

    def _look(self) -> None:
        """Whether all is there, and whether it is paused. Raises QueueUnavailable."""
        system, words = self._system, self._words
        before_ns = system.boottime_ns()
        try:
            self._queue.kernel_queue()
            words[Q.PAUSED] = "PAUSED" in self._beside.names()
            note_beat(words, before_ns, system.boottime_ns(), int(HALF_S * 1e9))
        except OSError as error:
            raise self._unavailable("keep", self._beside.path, error) from error

    def _tidy(self, kept: Kept) -> None:
        files = list(self._place.seen())
        held = [seen for seen in files if seen.has_message]
        owners = {seen.owner: owner for seen in held if (owner := names.parse_owner(seen.owner)) is not None}
        failures = Failures()
        with failures:
            self._release_unlisted(owners, kept)
        with failures:
            self._release_dead_neighbours(owners, kept)
        with failures:
            self._move_unfollowed(held, kept)
        with failures:
            self._move_due(kept, self._half_moved() if failures.first else frozenset())
        now_ns = self._system.boottime_ns()
        if now_ns >= self._sweep_at_ns:
            with failures:
                self._sweep(files, kept)
                self._sweep_at_ns = now_ns + int(SWEEP_S * 1e9)
        failures.raise_first()

    # ---- judgement

    def _release(self, death: Death, kept: Kept) -> list[str]:
        """Judge what it left; the file itself may have its successor already."""
        released = []
        for seen in list(self._place.seen()):
            if not seen.has_message or seen.owner != death.owner or seen.is_judged:
                continue
            receive = self._locked(seen)
            if receive is None:
                continue
            try:
                # RACE: it was looked at before it was locked: a successor may have had it, and be dead by now.
                # See test_the_keeper_judges_only_what_it_has_locked.
                if receive.owner == death.owner and not receive.is_judged:
                    released.append(name_of(receive.body(), receive.priority))
                    self._judge(receive, death, kept)
            finally:
                receive.leave(is_removed=not receive.has_message)
        self._unlisted.discard(death.owner)
        return released

    def _locked(self, seen: Seen) -> Receive | None:
        """The file of *seen*, ours for now; None where a worker has it, or there is no message in it any more."""
        try:
            return self._place.open(seen.path)
        except BlockingIOError:
            return None

    def _judge(self, receive: Receive, death: Death, kept: Kept) -> None:
        """Count the death of whoever had what is in *receive*, and send it where its counts say."""
        queue, settings = self._queue, self._queue.settings
        if queue.is_over(receive):
            return
        name = name_of(receive.body(), receive.priority)
        known, (attempts, crashes) = self._beside.count_of(name), receive.counts
        attempts, crashes = max(attempts, known.attempts), max(crashes, known.crashes)
        attempts += death.cause == "timeout"
        crashes += death.cause in ("died", "unknown")
        counts = Counts(attempts, crashes)
        if crashes >= settings.crash_limit:
            self._to_errors(receive, counts, f"its worker died {crashes} times with it in hand", death, kept)
        elif death.cause == "timeout" and attempts >= settings.max_attempts:
            reason = f"failed {attempts} times, the last time by its time limit"
            self._to_errors(receive, counts, reason, death, kept)
        elif death.cause == "timeout":
            queue.defer(receive, counts, queue.backoff_s(attempts))
        elif death.cause == "stopped":
            try:
                queue.defer(receive, counts, 0.0)
            except OSError:
                if not self._beside.is_set_aside(receive):
                    receive.judge(attempts, crashes)  # it stays, and nobody died of it
                raise
        else:
            receive.judge(attempts, crashes)

    def _to_errors(self, receive: Receive, counts: Counts, reason: str, death: Death, kept: Kept) -> None:
        kept.crash_limit += 1
        self._tell_end(name_of(receive.body(), receive.priority), reason)
        at_s = receive.received_ns / 1e9 if receive.received_ns else None
        now_s = self._system.wall_ns() / 1e9
        facts: Facts = facts_of_death(death, name_of(receive.body(), receive.priority), at_s, now_s)
        self._queue.reject_received(receive, reason, facts, counts)

    def _is_our_users(self, path: str) -> bool:  # noqa: ARG002 - the name of an owner, not of a file here
        return True  # nobody else's directory is looked into

    # ---- what no successor takes up

    def _move_unfollowed(self, held: list[Seen], kept: Kept, *, is_last: bool = False) -> None:
        """Have what has lain unlocked for a while go back by way of deferred/; *is_last*: what is judged, at once."""
        now_ns, free = self._system.boottime_ns(), {}
        failures = Failures()
        for seen in held:
            key = (seen.path, seen.owner)
            since_ns = free[key] = self._free_since.get(key, now_ns)
            is_due = now_ns - since_ns >= UNFOLLOWED_S * 1e9
            if not (is_due or (is_last and seen.is_judged)):
                continue
            with failures:
                if not self._move_locked(seen, kept):
                    free[key] = now_ns  # it is alive, or has a successor
        self._free_since = free
        failures.raise_first()

    def _move_locked(self, seen: Seen, kept: Kept) -> bool:
        """Judge and defer what is in the file of *seen*; False when somebody else has it. Raises OSError."""
        receive = self._locked(seen)
        if receive is None:
            return False
        try:
            # Nobody has said how it died, and its pool is another or gone: it has no lock, so it is dead.
            if not receive.is_judged:
                kept.owner_dead += 1
                self._judge(receive, Death(receive.owner, "unknown", "it has left its receive file"), kept)
            if receive.has_message:
                self._queue.defer(receive, Counts(*receive.counts), 0.0)
        finally:
            receive.leave(is_removed=not receive.has_message)
        return True

    # ---- due

    def _half_moved(self) -> frozenset[str]:
        """What was moved into deferred/ and lies in a receive file yet."""
        return frozenset(seen.aside.removeprefix("deferred/") for seen in self._place.seen() if seen.has_message)

    def _move_due(self, kept: Kept, half_moved: frozenset[str]) -> None:
        """Send what is due, until the queue is full; then raises the first OSError that one of them met."""
        until_s = self._system.wall_ns() / 1e9 + PATIENCE_S  # all of them together
        failures = Failures()
        for file, mark in self._deferred.due(self._system.wall_ns):
            if (priority := priority_of(mark.name)) is None:
                continue
            # ORDER: cleared, then sent. A step before this one may have failed between the move and the clearing, and
            # sent now it would be handled twice.
            # See test_every_call_that_fails_once_leaves_one_message_and_the_next_try_works.
            if file in half_moved:
                continue
            path = os.path.join(self._beside.deferred, file)
            with failures:
                try:
                    if self._is_message(path) and not self._send_again(path, mark, priority, until_s, kept):
                        break
                except OSError as error:
                    raise OSError(error.errno, error.strerror, path) from error
        failures.raise_first()

    def _is_message(self, path: str) -> bool:
        try:
            is_message = self._beside.is_message(path)
        except FileNotFoundError:  # the keeper of another pool was first
            return False
        if not is_message:
            self._say_once(path, "is no regular file, so no message; remove it")
        return is_message

    def _send_again(self, path: str, mark: names.Marked, priority: int, until_s: float, kept: Kept) -> bool:
        """Send what is in *path*, its counts said before; False when the queue is full until *until_s*."""
        counts = Counts(mark.attempts, mark.crashes)
        # While the queue is full they were said in an earlier round.
        if counts != Counts() and self._beside.count_of(mark.name) != counts:
            self._queue.write_count(mark.name, counts)
        # Counted before it can be seen, so that --until-empty never misses a message between two places.
        self._words[Q.DUE_MOVES] += 1
        try:
            is_sent = self._queue.send_aside(path, priority, until_s)
        except OSError as error:
            if error.errno != errno.EMSGSIZE:
                raise
            self._too_long(path, mark.name, counts)
            return True
        kept.due += is_sent
        return is_sent

    def _too_long(self, path: str, name: str, counts: Counts) -> None:
        """It was received from a queue that had room for it; this one will never have."""
        reason = f"{self._queue.url} was made anew, for shorter messages"
        target = self._beside.marked(name, counts)
        if self._beside.move(path, self._beside.errors, target):
            facts: Facts = {"name": name, "reason": reason, "attempts": counts.attempts, "crashes": counts.crashes}
            write_meta(self._beside, target, facts, self._beside.unpublished())
            self._beside.forget_count(name)

    # ---- sweeping

    def _sweep(self, files: list[Seen], kept: Kept) -> None:
        system = self._system
        for seen in files:
            # An idle worker was killed, and has no successor.
            if not seen.has_message and (receive := self._locked(seen)) is not None:
                receive.leave()
        self._reckoning.note(system.wall_ns())  # its state is on a local filesystem
        for file in system.listdir(self._beside.tmp):
            self._remove_older(os.path.join(self._beside.tmp, file), self._abandoned_s, kept)
        is_empty = not any(seen.has_message for seen in files)
        is_empty = is_empty and system.mq_attributes(self._queue.kernel_queue()).waiting == 0
        oldest_s = self._abandoned_s if is_empty else COUNTS_S_MAX
        for file in system.listdir(self._beside.counts):
            self._remove_older(os.path.join(self._beside.counts, file), oldest_s, kept)
        self._prune(self._beside.errors, self._queue.settings.keep_errors_s, kept)

    # ---- leaving

    def depth(self, *, is_exact: bool) -> Depth:  # noqa: ARG002 - it always is
        """See Keeper.depth."""
        return self._queue.depth()

    def leave(self) -> None:
        """See Keeper.leave: nobody of ours takes up anything any more, so what was left goes back now."""
        kept, failures = Kept(), Failures()
        try:
            files = list(self._place.seen())
            with failures:
                self._move_unfollowed([seen for seen in files if seen.has_message], kept, is_last=True)
            with failures:
                self._move_due(kept, self._half_moved() if failures.first else frozenset())
            with failures:
                self._sweep([seen for seen in files if not seen.has_message], kept)
            failures.raise_first()
        except (OSError, QueueUnavailable) as error:
            log.warning("%s: what is left stays for the next keeper: %s", self._queue.url, error)
        self._place.remove()
