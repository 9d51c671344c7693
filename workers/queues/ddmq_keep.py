"""
ddmq_keep - the keeper's side of a ddmq queue: claims are touched, and what has expired waits again

A claim of our workers is touched when half of its time has passed: the record first, then
the rename. What nobody of this machine has in hand and has expired is given back: renamed
to an expiry of its own first, so that of any number of keepers and cleaners one has it, then
counted, then put back. The rest of a round is that of every foreign format.

Raises: QueueUnavailable; the round is tried again. Keeper only.
See also: foreign_keep (the round), ddmq (claim and settle), ddmq_hand.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from workers.board import WorkerText
from workers.ddmq.claims import OURS_S, is_over
from workers.ddmq.errors import CorruptError
from workers.ddmq.names import parse_work
from workers.queues import ddmq_look, names
from workers.queues.base import Consumer, Depth, Kept
from workers.queues.beside import Counts
from workers.queues.ddmq_content import content_of
from workers.queues.ddmq_hand import HALF, Hand, touch_line
from workers.queues.ddmq_look import name_of, time_of, waiting_of
from workers.queues.failures import Failures
from workers.queues.foreign_keep import ForeignKeeper
from workers.queues.owners import Death
from workers.system import remove

if TYPE_CHECKING:
    from workers.queues.ddmq import Ddmq

log = logging.getLogger(__name__)

CLOCKS_S = 0.1  # what two hosts may differ in, of the filesystem's clock


class DdmqKeeper(ForeignKeeper[Hand]):
    """What one keeper does for one queue and one master. A claim is spoken of by its name in work/."""

    def __init__(self, queue: Ddmq, consumer: Consumer) -> None:
        super().__init__(queue, consumer, queue.stale_after_s, queue.lasts_s(0) / 2)
        self._queue = queue
        self._files = queue.files
        self._touched: dict[str, Hand] = {}  # by owner: after its last touch, or as it was found
        self._said_ns: dict[str, int] = {}  # when a record was last made to look young

    def _check_moves(self, target: str) -> None:
        probe = self._files.write_temporary(b"", durable=False)
        try:
            if not self._beside.move(probe, *os.path.split(target)):
                raise FileNotFoundError(errno.ENOENT, "was swept", probe)
        except OSError:
            self._files.forget(probe)
            raise
        remove(self._system, target)

    def _now_ns(self) -> int:
        return int(self._files.now_s() * 1e9)

    def _name(self, held: str) -> str:
        return name_of(self._kept_as(held)) or ""

    def _kept_as(self, held: str) -> str:
        return waiting_of(held)

    def _enqueued_s(self, held: str) -> float | None:
        return time_of(self._name(held))

    def _take_out(self, held: str, target: str) -> bool:
        return self._queue.move_out(held, target)

    def _let_wait(self, held: str) -> None:
        self._queue.let_wait(held)

    def _attempts_max(self, held: str) -> int:
        most = super()._attempts_max(held)
        try:
            data, _ = self._files.read(f"{self._files.work}/{held}")
        except (OSError, CorruptError):
            return most  # it cannot be read, so it says nothing
        return min(content_of(data, 0.0).attempts_max or most, most)

    # ---- touching

    def _touch_all(self) -> None:
        board, now_ns, now_s = self._consumer.board, self._system.boottime_ns(), self._files.now_s()
        touched, self._touched = self._touched, {}
        said_ns, self._said_ns = self._said_ns, {}
        failures = Failures()
        for number in board.worker_numbers(self._consumer.queue_slot):
            owner = board.worker(number).text(WorkerText.OWNER)
            if not owner or names.parse_owner(owner) is None:  # it becomes a path, and any handler can write there
                continue
            self._said_ns[owner] = said_ns.get(owner, now_ns)
            with failures:
                self._touch(owner, touched.get(owner), now_s)
                if now_ns - self._said_ns[owner] >= self._stale_ns // 4:
                    # To another host, which goes by ctime, it must not look like the record of a worker that is gone.
                    self._say(owner)
                    self._said_ns[owner] = now_ns
        failures.raise_first()

    def _say(self, owner: str) -> None:
        try:
            self._system.utime(os.path.join(self._beside.held, owner))
        except FileNotFoundError:
            return  # it has left

    def _touch(self, owner: str, known: Hand | None, now_s: float) -> None:
        """*known*: what the record said after the last touch that went through."""
        hand = self._hand_of(owner)
        if hand is None or (hand.before != hand.now and hand != known and not self._rename(owner, hand)):
            return
        self._touched[owner] = hand
        # ORDER: the time, then a look, then what the record is to say. Whoever takes the claim when it has expired does
        # it in that second or later, so his own keeper touches to a later one than ours, and what our record says is
        # never his. See test_no_touch_is_for_a_second_to_which_the_keeper_of_a_later_claim_touches.
        if hand.now - now_s >= hand.lasts_s / 2 or self._queue.found_of(hand, owner) is None:
            return
        later = hand.touched(int(now_s) + hand.lasts_s)
        # ORDER: the record, then the rename. The other way round its worker would take the claim for lost, and nobody
        # could give it back. See test_a_settle_finds_its_claim_at_every_moment_of_a_touch.
        if self._write(owner, touch_line(hand, later.now)) and self._rename(owner, later):
            self._touched[owner] = later

    def _rename(self, owner: str, hand: Hand) -> bool:
        """
        Do the touch that the record announces, or what is missing of it; False when the claim is lost.

        RACE: it has expired since the keeper looked, and another has it. The record says so again then, for nobody may
        settle or touch by a name that never came to be. See test_a_touch_that_finds_nothing_leaves_no_trace_of_itself.
        """
        before, later = hand.work_names()
        if self._queue.move_out(before, f"{self._files.work}/{later}"):
            return True
        if self._queue.found_of(hand, owner) == later:  # renamed before
            return True
        lost = replace(hand, now=hand.before)
        self._write(owner, touch_line(lost, lost.now))
        return False

    def _write(self, owner: str, line: bytes) -> bool:
        """Write the keeper's half of a record; False when it is gone."""
        try:
            fd = self._system.open(
                os.path.join(self._beside.held, owner), os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            )
        except FileNotFoundError:
            return False
        try:
            self._system.pwrite(fd, line, HALF)
        finally:
            self._system.close(fd)
        return True

    # ---- releases

    def _hand_of(self, owner: str) -> Hand | None:
        return self._queue.hand_of(owner)

    def _wait_until_sure(self, hand: Hand) -> None:
        """See ForeignKeeper._wait_until_sure."""
        # RACE: it died before it claimed; another claimed to the same second, gave it back, and claims it again while
        # we look. When that second is over nobody writes a record any more that names what this one does.
        # See test_no_schedule_loses_repeats_or_strands_a_message.
        over_s = hand.expiry - hand.lasts_s + 1 - self._files.now_s()
        if 0 < over_s <= 1:
            self._system.sleep(over_s + CLOCKS_S)

    def _release_hand(self, hand: Hand, death: Death, kept: Kept) -> list[str]:
        found = self._queue.found_of(hand, death.owner)
        if found is None:
            return []
        self._release_one(found, f"{hand.expiry}/{death.owner}", death, kept)
        return [self._name(found)]

    # ---- what has expired

    def _reap(self, owners: dict[str, names.Owner], kept: Kept) -> None:
        """
        See ForeignKeeper._reap.

        What a living worker of this machine has in hand is left to its keeper, however late that is.
        """
        now_ns = self._now_ns()
        self._reckoning.note(now_ns)
        now_s = now_ns // 1_000_000_000
        # Each lasts as long as it was to last, though the clock was set forward meanwhile.
        lasts_s = self._queue.lasts_s(0)
        before_s = min(now_s, self._reckoning.limit_ns(lasts_s) / 1e9 + lasts_s)
        expired = [name for name in self._files.working() if ddmq_look.expiry_of(name, now_s) < before_s]
        if not (expired and self._is_served()):
            return
        in_hand = {
            name
            for owner, parsed in owners.items()
            if parsed.kernel8 == self._kernel8 and self._system.is_alive(parsed.pid, parsed.start) is not False
            if (hand := self._hand_of(owner)) is not None
            for name in hand.work_names()
        }
        failures = Failures()
        for name in expired:
            if name not in in_hand:
                with failures, self._unless_stuck(f"{self._files.work}/{name}"):
                    self._reap_one(name, now_s + OURS_S, kept)
        failures.raise_first()

    def _reap_one(self, work_name: str, until: int, kept: Kept) -> None:
        if not is_over(self._files, work_name, self._queue.setting("message_timeout")):
            return
        # ORDER: to an expiry of our own, then counted and put back. Only one keeper or cleaner finds it under the old
        # one. See test_of_two_keepers_that_find_a_claim_expired_one_gives_it_back.
        ours = self._files.touch(work_name, until)
        if ours is None:
            return
        kept.too_old += 1
        name = self._name(ours)
        log.warning("%s: the claim of %s has expired", self._queue.url, name)
        counts = self._beside.count_of(name)
        # One that was counted already is one that was being given back when its keeper died.
        is_counted = counts.lock.startswith(f"{work_name.partition('.')[0]}/")
        counts = Counts(counts.attempts, counts.crashes + (not is_counted), f"{until}/")
        if counts.crashes >= self._queue.settings.crash_limit:
            death = Death("", "unknown", "its claim had expired")
            self._to_errors(ours, counts, f"its holder was gone {counts.crashes} times", death, kept)
            return
        self._count_if_room(name, counts)
        self._let_wait(ours)

    # ---- sweeping, measuring

    def _ended(self, counts: Sequence[str]) -> Iterable[str]:
        if not counts:
            return ()
        alive = {name_of(waiting) for waiting in self._files.waiting(set())}
        for work_name in self._files.working():
            claim = parse_work(work_name)
            alive.add(name_of(claim[1]) if claim else None)
        return [file for file in counts if file not in alive]

    def _sweep_queue(self, limit_ns: int, kept: Kept) -> None:
        kept.temporary += self._files.sweep_tmp(self._files.now_s() - limit_ns / 1e9)

    def depth(self, *, is_exact: bool) -> Depth:  # noqa: ARG002 - it always is
        """See Keeper.depth."""
        try:
            return ddmq_look.depth(self._files, self._beside)
        except OSError as error:
            raise self._unavailable("measure", self._queue.place, error) from error
