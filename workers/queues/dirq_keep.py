"""
dirq_keep - the keeper's side of a directory queue: its locks are touched, and what is stale is broken

The locks of our workers that have had their message for a while are touched, so that no
purge takes them for stale; a sweep breaks those that nobody touches, as purge() of the
originals does. The rest of a round is that of every foreign format.

Raises: QueueUnavailable; the round is tried again. Keeper only.
See also: foreign_keep (the round), dirq (claim and settle), spool_keep.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from workers.board import W, WorkerText
from workers.dirq.elements import NAME, Lock, time_of
from workers.errors import QueueRefused
from workers.queues import dirq_look, names
from workers.queues.base import Consumer, Depth, Kept
from workers.queues.beside import Counts, Hand, decoded, encoded
from workers.queues.foreign_keep import ForeignKeeper
from workers.queues.owners import Death
from workers.system import is_there

if TYPE_CHECKING:
    from workers.queues.dirq import Dirq

log = logging.getLogger(__name__)


class DirqKeeper(ForeignKeeper[Hand]):
    """What one keeper does for one queue and one master. A claim is spoken of by its element's name."""

    def __init__(self, queue: Dirq, consumer: Consumer) -> None:
        super().__init__(queue, consumer, queue.stale_after_s, queue.stale_after_s / 2)
        self._queue = queue
        self._elements = queue.elements
        self._touch_ns = queue.touch_ns
        self._touched: dict[str, int] = {}  # by owner, CLOCK_BOOTTIME

    def _check_format(self) -> None:
        self._queue.check_schema()
        if not self._elements.tells_locks():
            where = "" if self._queue.network is None else f" on {self._queue.network}"
            raise QueueRefused(
                f"{self._queue.url} cannot be used{where}: its elements are locked by hard links, and there nobody can "
                "tell whether a lock is still his; use spool:, ddmq: or dirq:?schema=... there"
            )

    def _check_moves(self, target: str) -> None:
        self._elements.check_moves(target)

    def _now_ns(self) -> int:
        return self._elements.filesystem_now_ns()

    def _hand_of(self, owner: str) -> Hand | None:
        return self._beside.hand_of(owner)

    def _name(self, held: str) -> str:
        return held

    def _kept_as(self, held: str) -> str:
        return encoded(held)

    def _enqueued_s(self, held: str) -> float:
        return time_of(held)

    def _take_out(self, held: str, target: str) -> bool:
        return self._elements.take_out(held, target)

    def _let_wait(self, held: str) -> None:
        self._elements.unlock(held)

    def _ended(self, counts: Sequence[str]) -> Iterable[str]:
        for file in counts:
            if not NAME.match(decoded(file)) or not is_there(self._system, self._elements.element_path(decoded(file))):
                yield file

    def _release_hand(self, hand: Hand, death: Death, kept: Kept) -> list[str]:
        if not self._is_in_hand(hand):
            return []
        self._release_one(hand.name, f"{hand.inode}:{hand.at_ns}", death, kept)
        return [hand.name]

    def _before_sweep(self) -> None:
        # A clock that stepped forward makes every lock look old; those of ours are of now after this.
        self._touch_all(is_due=True)

    def _sweep_queue(self, limit_ns: int, kept: Kept) -> None:
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

    # ---- touching

    def _touch_all(self, *, is_due: bool = False) -> None:
        """The locks of our workers, and their records: who has none in hand shows by it that it is there."""
        board, now_ns = self._consumer.board, self._system.boottime_ns()
        seen: dict[str, int] = {}
        for number in board.worker_numbers(self._consumer.queue_slot):
            worker = board.worker(number)
            owner = worker.text(WorkerText.OWNER)
            if not owner or names.parse_owner(owner) is None:  # it becomes a path, and any handler can write there
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

    def depth(self, *, is_exact: bool) -> Depth:  # noqa: ARG002 - it always is
        """See Keeper.depth."""
        try:
            return dirq_look.depth(self._elements, self._beside)
        except OSError as error:
            raise self._unavailable("measure", self._queue.place, error) from error
