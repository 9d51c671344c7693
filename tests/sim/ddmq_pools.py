"""
ddmq_pools - pools on a simulated ddmq: workers and keepers, the real classes, and what drives them

Long because: each part of a pool is driven by a few lines of its own.
See also: foreign_pools (of which these are), ddmq_cast (the library alone, the original), scenarios_ddmq_pools.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace

from tests.sim.ddmq_cast import OLD_S, Act, S
from tests.sim.ddmq_ledger import KEPT, QUEUE, ROOT, DdmqLedger
from tests.sim.foreign_pools import SETTINGS, SimPool, body_of, claimed, process_of
from tests.sim.kernel import Process, World
from workers.errors import ClaimLost, InputGone, QueueUnavailable
from workers.message import Claim
from workers.queues.base import Kept, Queue
from workers.queues.ddmq import Ddmq, open_ddmq, timed
from workers.queues.ddmq_keep import DdmqKeeper
from workers.queues.lease import note_beat
from workers.system import System

DDMQ_SETTINGS = replace(SETTINGS, stale_after_s=600.0)
NEXT = f"{ROOT}/n"


class DdmqPool(SimPool[Ddmq]):
    """See SimPool."""

    keeper: DdmqKeeper
    ledger: DdmqLedger

    def __init__(self, world: World, ledger: DdmqLedger, host: str, pid: int) -> None:
        super().__init__(world, ledger, host, pid, QUEUE)

    def _opened(self, process: Process) -> Ddmq:
        return open_ddmq(QUEUE, DDMQ_SETTINGS, system=process, host=self.host)

    def worker(self, index: int = 0, *hints: str) -> Ddmq:
        """See SimPool.worker."""
        queue = super().worker(index, *hints)
        self.ledger.keeper_of[process_of(queue)] = self.keeper_process
        return queue


def taken(queue: Ddmq, ledger: DdmqLedger) -> Claim:
    """What a worker has claimed; there must be something."""
    claim = claimed(queue)
    assert claim is not None
    said(queue, ledger, claim)
    return claim


def id_of(claim: Claim) -> str:
    """The message's id."""
    return claim.name.partition(".ddmq")[2]


def said(queue: Ddmq, ledger: DdmqLedger, claim: Claim) -> None:
    """*claim*, told to the ledger."""
    ledger.holds(process_of(queue), id_of(claim), body_of(queue, claim).decode(), timed(claim).expiry)


# ---- what they do


def failing(system: System) -> AbstractContextManager[None]:
    """Errors are no news on a network, where scenarios let calls fail; anywhere else nothing may fail."""
    assert isinstance(system, Process)
    return nullcontext() if system.world.network is None else suppress(OSError, QueueUnavailable)


def work(
    queue: Ddmq,
    ledger: DdmqLedger,
    settle: str = "done",
    *,
    holds: Claim | None = None,
    times: int = 1,
    stays: bool = True,
    following: Queue | None = None,
) -> Act:
    """A worker that looks *times* times, and settles what it gets by *settle*; it *holds* its first one already."""
    in_hand = [holds] if holds else []

    def act() -> None:
        for _ in range(times):
            with failing(queue.system):
                claim = in_hand.pop() if in_hand else claimed(queue)
                if claim is None:
                    continue
                if claim.trouble:
                    queue.reject(claim, claim.trouble)
                    continue
                if claim is not holds:
                    said(queue, ledger, claim)
                _settle(queue, ledger, claim, settle, following)
        if not stays:
            queue.detach()

    return act


def _settle(queue: Ddmq, ledger: DdmqLedger, claim: Claim, settle: str, following: Queue | None) -> None:
    by, one = process_of(queue), id_of(claim)
    for _ in range(3):
        try:
            if settle in ("done", "forward"):
                ledger.may_end(by, one)
                if settle == "done":
                    queue.done(claim)
                else:
                    assert following is not None
                    queue.forward(claim, following)
                    ledger.forwarded.add(one)
                ledger.was_ended(by, one)
            elif settle == "retry":
                queue.retry(claim)
            elif settle == "reject":
                queue.reject(claim, "a reason")
            elif settle == "release":
                queue.release(claim)
            else:
                assert not settle, settle
        except QueueUnavailable:
            if process_of(queue).world.network is None:
                raise
            continue
        except (ClaimLost, InputGone):
            ledger.was_lost(by, one)
        return
    queue.settled(claim)


def when_dead(pool: DdmqPool, worker: Ddmq, index: int = 0, *, is_last: bool = False) -> Act:
    """
    A master that looks once whether the worker lives, and its keeper, that is told so.

    *is_last*: a second later, and with nobody else about, so nothing can be left.
    """
    process = process_of(worker)

    def act() -> None:
        with failing(pool.keeper_process):
            if pool.keeper_process.start_ticks(process.pid) is None and (owner := pool.bury(index)):
                pool.keeper.release_owner(owner, "died", "killed by signal 9")
                if is_last:
                    pool.ledger.given_back.add(process)

    return act


def release(pool: DdmqPool, owner: str, tries: int = 1) -> Act:
    """A keeper that is told that *owner* died, and tries again when that fails."""

    def act() -> None:
        for _ in range(tries):
            with suppress(QueueUnavailable):
                pool.keeper.release_owner(owner, "died", "killed by signal 9")
                return

    return act


def release_neighbours(pool: DdmqPool) -> Act:
    """The part of a keeper's round that gives back what the dead of other masters on its machine held."""

    def act() -> None:
        with failing(pool.keeper_process):
            pool.keeper._release_dead_neighbours(pool.keeper._owners(), Kept())

    return act


def reap(pool: DdmqPool) -> Act:
    """The part that gives back what has expired."""

    def act() -> None:
        with failing(pool.keeper_process):
            pool.keeper._reap(pool.keeper._owners(), Kept())

    return act


def sweep(pool: DdmqPool) -> Act:
    """The same, and the part that sweeps what is left over beside the queue and in its root."""

    def act() -> None:
        reap(pool)()
        with failing(pool.keeper_process):
            pool.keeper._sweep(pool.keeper._owners(), Kept())

    return act


def leave(queue: Ddmq) -> Act:
    """A worker that is told to leave."""
    return queue.detach


def beat(pool: DdmqPool) -> None:
    """Its keeper was there all the time: its workers may claim. Not within a schedule."""
    now_ns = pool.keeper_process.boottime_ns()
    note_beat(pool.keeper._words, now_ns, now_ns, pool.keeper.half_ns)


def move_due(pool: DdmqPool) -> Act:
    """The part that moves what is due."""

    def act() -> None:
        with failing(pool.keeper_process):
            pool.keeper._move_due(Kept())

    return act


def touch(pool: DdmqPool) -> Act:
    """The part that touches what is in hand."""

    def act() -> None:
        with failing(pool.keeper_process):
            pool.keeper.touch()

    return act


def requeue(queue: Ddmq, name: str) -> Act:
    """An operator brings back what is in errors/."""

    def act() -> None:
        with failing(queue.system):
            queue.requeue(name)

    return act


# ---- the end


def recover(world: World, ledger: DdmqLedger) -> None:
    """All others are gone: one pool of another host finds and finishes what is left, but what is in errors/."""
    world.disk.is_full = False
    pool = DdmqPool(world, ledger, "last", 90_000)
    worker = pool.worker()
    for _ in range(4):
        world.moved_ns += (OLD_S + 1) * S
        pool.keeper._sweep_at_ns = pool.keeper._served_ns = 0  # it was served all that time
        pool.keeper.keep()
        while (claim := claimed(worker)) is not None:
            said(worker, ledger, claim)
            _settle(worker, ledger, claim, "done", None)
    worker.detach()
    ledger.check_all_ended()
    if NEXT in world.disk.directories and ledger.forwarded and not messages_in(world, NEXT):
        raise AssertionError("what was handed on has not arrived")
    for place in ("held", "counts", "deferred", "tmp"):
        if left := list(world.disk.directory(f"{KEPT}/{place}").entries):
            raise AssertionError(f"left in {place}/: {left}")


def messages_in(world: World, queue: str) -> int:
    """How many wait in the queue at that path."""
    return sum(".ddmq" in name for name in world.disk.directory(queue).entries)
