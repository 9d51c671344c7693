"""
queue_set - several directory queues, claimed from as one in the order of time

A message is claimed in the queue that it lies in, settled there, and counted and kept
beside that one. Nothing is put into a set: put into one of its queues.

Raises: what its queues raise.
See also: dirq (the members), workers.dirq (QueueSet, the published class).
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Callable, Generator, Iterator, Sequence

from workers.board import Q
from workers.errors import NotSupported, QueueRefused, QueueUnavailable
from workers.message import Body, Claim
from workers.queues.base import (
    Capability,
    Cause,
    Consumer,
    Depth,
    Keeper,
    Kept,
    Listed,
    Queue,
    Shown,
    Source,
    State,
)
from workers.queues.dirq import Dirq
from workers.queues.dirq_keep import DirqKeeper
from workers.queues.lease import note_beat
from workers.queues.locking import LockedClaim, Locking
from workers.system import System
from workers.trust import Place


class Merged(Source):
    """The names of all members by time, each behind the number of its member: NUMBER:NAME."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources

    def names(self, odd: set[str], ignored: set[str]) -> Generator[str]:
        """See Source.names."""
        yield from heapq.merge(
            *(self._numbered(number, odd, ignored) for number in range(len(self._sources))), key=self.key
        )

    def _numbered(self, number: int, odd: set[str], ignored: set[str]) -> Iterator[str]:
        for name in self._sources[number].names(odd, ignored):
            yield f"{number}:{name}"

    def is_message(self, name: str, odd: set[str]) -> bool:
        """See Source.is_message."""
        number, _, rest = name.partition(":")
        return self._sources[int(number)].is_message(rest, odd)

    @staticmethod
    def key(name: str) -> str:
        """See Source.key: the element's own part of the name is its time, whatever directory it is in."""
        return name.rpartition("/")[2]


class QueueSet(Locking):
    """Several directory queues as one. See Queue for the verbs."""

    protocol = "set"
    capabilities = Dirq.capabilities - {Capability.DURABLE}

    def __init__(self, members: Sequence[Dirq]) -> None:
        for number, member in enumerate(members):
            if any(os.path.samefile(member.place, other.place) for other in members[:number]):
                raise QueueRefused(f"{member.url} is in the set twice")
        first = members[0]
        self.members = members
        self.url = "set:" + ",".join(member.url for member in members)
        self.settings, self.system, self.host = first.settings, first.system, first.host
        self.place, self.identity = first.place, first.identity
        self.network = next((member.network for member in members if member.network), None)
        for number, member in enumerate(members):
            member.member = number

    def put(
        self,
        body: Body,  # noqa: ARG002 - there is no telling for which of them it is
        name: str | None = None,  # noqa: ARG002
        *,
        priority: int | None = None,  # noqa: ARG002
        delay: float = 0,  # noqa: ARG002
        durable: bool | None = None,  # noqa: ARG002
    ) -> str | None:
        """Refused: put into one of the queues."""
        raise NotSupported(f"nothing can be put into a set queue: put into one of {self.url.removeprefix('set:')}")

    def source(self) -> Merged:
        """See Claimable.source."""
        return Merged([member.source() for member in self.members])

    def attach(self, consumer: Consumer) -> None:
        """See Queue.attach."""
        super().attach(consumer)
        for member in self.members:
            member.attach(consumer)

    def claim_named(self, name: str) -> LockedClaim | None:
        """See Locking.claim_named."""
        number, _, rest = name.partition(":")
        return self.members[int(number)].claim_named(rest)

    def take_record(self, owner: str) -> None:
        """See Locking.take_record: under one name in all members."""
        for member in self.members:
            member.take_record(owner)

    def renew(self) -> None:
        """See Queue.renew."""
        for member in self.members:
            member.renew()

    def leave_record(self) -> None:
        """See Locking.leave_record."""
        for member in self.members:
            member.leave_record()

    def _member(self, claim: Claim) -> Dirq:
        assert isinstance(claim, LockedClaim)  # noqa: S101 - of this queue's claim()
        return self.members[claim.member]

    def done(self, claim: Claim) -> None:
        """See Queue.done."""
        self._member(claim).done(claim)

    def retry(self, claim: Claim, after_s: float | None = None, meta: dict[str, object] | None = None) -> bool:
        """See Queue.retry."""
        return self._member(claim).retry(claim, after_s, meta)

    def reject(self, claim: Claim, reason: str, meta: dict[str, object] | None = None) -> None:
        """See Queue.reject."""
        self._member(claim).reject(claim, reason, meta)

    def release(self, claim: Claim) -> None:
        """See Queue.release."""
        self._member(claim).release(claim)

    def forward(self, claim: Claim, queue: Queue, bodies: Sequence[Body] | None = None) -> None:
        """See Queue.forward."""
        self._member(claim).forward(claim, queue, bodies)

    def settled(self, claim: Claim) -> None:
        """See Queue.settled."""
        self._member(claim).settled(claim)

    # ---- the keeper's and the operator's verbs

    def places(self) -> list[Place]:
        """See Claimable.places."""
        return [place for member in self.members for place in member.places()]

    def keeper(self, consumer: Consumer) -> SetKeeper:
        """See Claimable.keeper."""
        self._keeper = found = SetKeeper([member.keeper(consumer) for member in self.members], consumer, self.system)
        return found

    def depth(self) -> Depth:
        """See Queue.depth: of all together."""
        return summed([member.depth() for member in self.members])

    def list(self, state: State | None = None) -> Iterator[Listed]:
        """See Queue.list."""
        for member in self.members:
            yield from member.list(state)

    def show(self, name: str) -> Sequence[Shown]:
        """See Queue.show."""
        return [found for member in self.members for found in member.show(name)]

    def requeue(self, name: str) -> int:
        """See Queue.requeue."""
        return sum(member.requeue(name) for member in self.members)

    def pause(self) -> None:
        """See Queue.pause: a set is paused when one of its members is; this pauses all."""
        for member in self.members:
            member.pause()

    def resume(self) -> None:
        """See Queue.resume."""
        for member in self.members:
            member.resume()

    def is_paused(self) -> bool:
        """See Queue.is_paused."""
        return any(member.is_paused() for member in self.members)


class SetKeeper(Keeper):
    """The keepers of the members, in one round."""

    def __init__(self, keepers: Sequence[DirqKeeper], consumer: Consumer, system: System) -> None:
        self._keepers = keepers
        self._words = consumer.board.queues[consumer.queue_slot].words
        self._system = system
        self.tick_s = min(keeper.tick_s for keeper in keepers)

    def open(self) -> None:
        """See Keeper.open."""
        for keeper in self._keepers:
            keeper.check()
        self.keep()

    def keep(self) -> Kept:
        """See Keeper.keep."""
        kept = Kept()
        before_ns = self._system.boottime_ns()
        # What one of them cannot do keeps no other from doing it: their locks would not be touched.
        good, errors = _tried(self._keepers, lambda keeper: keeper.touch())
        self._words[Q.PAUSED] = any(keeper.is_paused for keeper in self._keepers)
        if not errors:
            half_ns = min(keeper.half_ns for keeper in self._keepers)
            note_beat(self._words, before_ns, self._system.boottime_ns(), half_ns)
        errors += _tried(good, lambda keeper: keeper.tidy(kept))[1]
        self._words[Q.COUNTED] = sum(keeper.counted for keeper in self._keepers)
        if errors:
            raise errors[0]
        return kept

    def release_owner(self, owner: str, cause: Cause, note: str = "") -> list[str]:
        """See Keeper.release_owner."""
        released: list[str] = []
        errors = _tried(self._keepers, lambda keeper: released.extend(keeper.release_owner(owner, cause, note)))[1]
        if errors:
            raise errors[0]
        return released

    def depth(self, *, is_exact: bool) -> Depth:
        """See Keeper.depth."""
        return summed([keeper.depth(is_exact=is_exact) for keeper in self._keepers])

    def leave(self) -> None:
        """See Keeper.leave."""
        for keeper in self._keepers:
            keeper.leave()


def _tried(
    keepers: Sequence[DirqKeeper], act: Callable[[DirqKeeper], None]
) -> tuple[list[DirqKeeper], list[QueueUnavailable]]:
    """Call *act* for each of *keepers*: those that did it, and why the others did not."""
    good, errors = [], []
    for keeper in keepers:
        try:
            act(keeper)
        except QueueUnavailable as error:
            errors.append(error)
        else:
            good.append(keeper)
    return good, errors


def summed(depths: Sequence[Depth]) -> Depth:
    """The sums, and of the ages the oldest."""
    ages = {state: max(depth.oldest_s.get(state, 0.0) for depth in depths) for state in depths[0].oldest_s}
    return Depth(
        waiting=sum(depth.waiting for depth in depths),
        claimed=sum(depth.claimed for depth in depths),
        deferred=sum(depth.deferred for depth in depths),
        errors=sum(depth.errors for depth in depths),
        ignored=sum(depth.ignored for depth in depths),
        oldest_s=ages,
    )
