"""
locking - claims by the steps of a format that knows no owner: who may claim, and under which name it is recorded

Raises: QueueUnavailable, KeeperGone.
See also: foreign (one queue), queue_set (several), dirq, ddmq.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from workers.board import Q, WorkerText
from workers.dirq.elements import Lock
from workers.errors import KeeperGone, QueueUnavailable
from workers.message import Claim
from workers.queues import names
from workers.queues.base import Claimable, Consumer
from workers.queues.feed import Reader
from workers.queues.scan import Scan

LOST_MAX = 256  # races in a row
PAUSED, BEAT_NS, LAPSES, HALF_TIMEOUT_NS = int(Q.PAUSED), int(Q.BEAT_NS), int(Q.LAPSES), int(Q.HALF_TIMEOUT_NS)
NO_LOCK = Lock("", 0, 0, 0)


@dataclass(slots=True)
class HeldClaim(Claim):
    """A claim whose settle may be tried again, and then goes on from where it failed."""

    taken_out: str = ""  # the file beside the queue that it became, by a try of this settle that then failed
    is_tried: bool = False  # a done before this one failed, and may have removed it all the same


@dataclass(slots=True)
class LockedClaim(HeldClaim):
    """A claim that is a lock. (There is always one; a default has to stand here.)"""

    lock: Lock = NO_LOCK
    member: int = 0  # of a set


class Locking(Claimable):
    """A queue, or a set of them, whose claims are the format's own; which are ours stands beside it."""

    _consumer: Consumer | None = None
    _lapses = -1  # the board's count at which our records were made

    def attach(self, consumer: Consumer) -> None:
        """See Queue.attach. Makes nothing yet: a record of our own comes with the first claim."""
        self._consumer = consumer
        self._words = consumer.board.queues[consumer.queue_slot].words
        self._slot = consumer.board.worker(consumer.worker_slot)
        scan = Scan(self.source(), self.settings.order, consumer.index, consumer.count, self.system.boottime_ns)
        self._scan = scan if consumer.feed < 0 else Reader(consumer.feed, self._words, scan, self.system)

    def claim(self) -> Claim | None:
        """See Queue.claim: the format's own step. Somebody else's is a lost race, counted and nothing else."""
        words = self._words
        if words[PAUSED]:
            self._scan.forget()
            return None
        # ORDER: the time of the beat, then the lapses. See test_a_worker_never_misses_a_lapse.
        beat_ns, lapses = words[BEAT_NS], words[LAPSES]
        if self.system.boottime_ns() - beat_ns >= words[HALF_TIMEOUT_NS]:
            # Nobody would touch the claim.
            if self.keeper_is_gone is not None and self.keeper_is_gone():
                raise KeeperGone(
                    f"the keeper of {self.url} has died, so nothing may be claimed: start this worker again"
                )
            return None
        try:
            if lapses != self._lapses:
                self._take_owner(lapses)
            for _ in range(LOST_MAX):
                name = self._scan.next()
                if name is None:
                    break
                if (claim := self.claim_named(name)) is not None:
                    return claim
        except OSError as error:
            raise QueueUnavailable.at("claim from", error.filename or self.place, error) from error
        return None

    @abstractmethod
    def claim_named(self, name: str) -> HeldClaim | None:
        """Take the message *name* of our source, or None when another has it. Raises OSError."""

    def _take_owner(self, lapses: int) -> None:
        """Say on the board under which name, never used before, stands what we have in hand, and make the records."""
        assert self._consumer is not None  # noqa: S101 - attach() comes first
        self._scan.forget()
        owner = names.owner_name(self._consumer.master, self._consumer.index, self.system)
        # ORDER: the board, then the record. A keeper lists held/ first and reads the board after, so it never
        # finds a record of a live worker that the board does not show. See test_H32_board_comes_before_mkdir.
        self._slot.set_text(WorkerText.OWNER, owner)
        self.take_record(owner)
        self._lapses = lapses

    @abstractmethod
    def take_record(self, owner: str) -> None:
        """Make held/OWNER: there stands what we have in hand. Raises OSError."""

    @abstractmethod
    def leave_record(self) -> None:
        """Take it away: nothing is in hand."""

    def detach(self) -> None:
        """See Queue.detach."""
        self.leave_record()
        self._lapses = -1
        if self._consumer is not None:
            self._slot.set_text(WorkerText.OWNER, "")
