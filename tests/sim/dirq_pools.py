"""
dirq_pools - pools on a simulated dirq: workers and keepers, the real classes, and what drives them

See also: foreign_pools (of which these are), dirq_cast (the engines alone, the original), scenarios_dirq_pools.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from tests.sim.dirq_cast import SIMPLE, Act, S
from tests.sim.dirq_ledger import BODY, HEADER, KEPT, MAX_LOCK_S, QUEUE, DirqLedger
from tests.sim.foreign_pools import SETTINGS, SimPool, body_of, claimed, process_of
from tests.sim.kernel import Process, World
from workers.errors import ClaimLost, InputGone, QueueUnavailable
from workers.message import Claim
from workers.queues.base import Kept
from workers.queues.dirq import Dirq
from workers.queues.dirq_keep import DirqKeeper
from workers.queues.dirq_url import open_dirq

DIRQ_SETTINGS = replace(SETTINGS, stale_after_s=MAX_LOCK_S)
SCHEMA = f"{BODY}:binary,{HEADER}:binary?"


class DirqPool(SimPool[Dirq]):
    """See SimPool; of one *kind*."""

    keeper: DirqKeeper

    def __init__(self, world: World, ledger: DirqLedger, kind: str, host: str, pid: int) -> None:
        self.kind = kind
        super().__init__(world, ledger, host, pid, QUEUE)

    def _opened(self, process: Process) -> Dirq:
        protocol, schema = ("dirq-simple", "") if self.kind == SIMPLE else ("dirq", f"&schema={SCHEMA}")
        path = f"{QUEUE}?rndhex={process.pid % 16:x}{schema}"
        return open_dirq(protocol, path, DIRQ_SETTINGS, system=process, host=self.host)


def taken(queue: Dirq, ledger: DirqLedger) -> Claim:
    """What a worker has claimed; there must be something."""
    claim = claimed(queue)
    assert claim is not None
    ledger.holds(process_of(queue), body_of(queue, claim))
    return claim


# ---- what they do


def work(
    queue: Dirq,
    ledger: DirqLedger,
    settle: str = "done",
    *,
    holds: Claim | None = None,
    times: int = 1,
    stays: bool = True,
    handle: Callable[[], object] = lambda: None,
) -> Act:
    """A worker that looks *times* times, and settles what it gets by *settle*; it *holds* its first one already."""
    in_hand = [holds] if holds else []

    def act() -> None:
        for _ in range(times):
            with suppress(QueueUnavailable):
                claim = in_hand.pop() if in_hand else claimed(queue)
                if claim is None:
                    continue
                data = body_of(queue, claim)
                if claim is not holds:
                    ledger.holds(process_of(queue), data)
                handle()
                ledger.settles(process_of(queue), data)
                _settle(queue, ledger, claim, data, settle)
        if not stays:
            with suppress(QueueUnavailable):
                queue.detach()

    return act


def _settle(queue: Dirq, ledger: DirqLedger, claim: Claim, data: bytes, settle: str) -> None:
    for _ in range(3):
        try:
            if settle == "done":
                queue.done(claim)
                ledger.was_removed(data)
            elif settle == "retry":
                queue.retry(claim)
            elif settle == "reject":
                queue.reject(claim, "a reason")
                ledger.was_rejected(data)
            else:
                queue.release(claim)
        except QueueUnavailable:
            continue
        except ClaimLost:
            ledger.was_lost(process_of(queue), data)
        except InputGone:
            pass
        return
    queue.settled(claim)


def when_dead(pool: DirqPool, worker: Dirq, index: int = 0) -> Act:
    """A master that looks once whether the worker lives, and its keeper, that is told so."""
    process = process_of(worker)

    def act() -> None:
        with suppress(QueueUnavailable):
            if pool.keeper_process.start_ticks(process.pid) is None and (owner := pool.bury(index)):
                pool.keeper.release_owner(owner, "died", "killed by signal 9")

    return act


def release(pool: DirqPool, owner: str) -> Act:
    """A keeper that is told that *owner* died."""

    def act() -> None:
        with suppress(QueueUnavailable):
            pool.keeper.release_owner(owner, "died", "killed by signal 9")

    return act


def release_neighbours(pool: DirqPool) -> Act:
    """The part of a keeper's round that gives back what the dead of other masters on its machine held."""

    def act() -> None:
        with suppress(OSError):
            pool.keeper._release_dead_neighbours(pool.keeper._owners(), Kept())

    return act


def sweep(pool: DirqPool, *, whole: bool = False) -> Act:
    """The part that sweeps; unless it is the *whole*, without what lies beside the queue, which has too many orders."""
    keeper = pool.keeper

    def act() -> None:
        with suppress(OSError):
            if whole:
                keeper._sweep(keeper._owners(), Kept())
                return
            limit_ns = keeper._elements.filesystem_now_ns() - MAX_LOCK_S * S
            for name in keeper._elements.sweep(limit_ns, limit_ns).locks:
                keeper._count_stale(name, Kept())

    return act


def move_due(pool: DirqPool) -> Act:
    """The part that moves what is due."""

    def act() -> None:
        with suppress(OSError):
            pool.keeper._move_due(Kept())

    return act


def touch(pool: DirqPool) -> Act:
    """The part that touches what is in hand."""

    def act() -> None:
        with suppress(QueueUnavailable):
            pool.keeper.touch()

    return act


# ---- the end


def recover(world: World, ledger: DirqLedger, kind: str) -> None:
    """All others are gone: one pool of another host finds and finishes what is left, but what is in errors/."""
    world.disk.is_full = False
    pool = DirqPool(world, ledger, kind, "last", 90_000)
    worker = pool.worker()
    for _ in range(3):
        world.moved_ns += (MAX_LOCK_S + 1) * S
        pool.keeper._sweep_at_ns = pool.keeper._served_ns = 0  # it was served all that time
        pool.keeper.keep()
        while (claim := claimed(worker)) is not None:
            data = body_of(worker, claim)
            ledger.holds(process_of(worker), data)
            ledger.settles(process_of(worker), data)
            worker.done(claim)
            ledger.was_removed(data)
    worker.detach()
    ledger.check_all_ended()
    for place in ("held", "counts", "deferred", "tmp"):
        if left := list(world.disk.directory(f"{KEPT}/{place}").entries):
            raise AssertionError(f"left in {place}/: {left}")
