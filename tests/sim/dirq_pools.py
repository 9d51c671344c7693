"""
dirq_pools - pools on a simulated dirq: workers and keepers, the real classes, and what drives them

See also: dirq_cast (the engines alone, the original), cast (the same of a spool), scenarios_dirq_pools.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from tests.sim import cast as spool_cast
from tests.sim.board import Board
from tests.sim.dirq_cast import SIMPLE, Act, S
from tests.sim.dirq_ledger import BODY, HEADER, KEPT, MAX_LOCK_S, QUEUE, DirqLedger
from tests.sim.kernel import Process, World
from workers.board import WorkerText
from workers.errors import ClaimLost, InputGone, QueueUnavailable
from workers.message import Claim
from workers.queues import names
from workers.queues.base import Consumer, Kept
from workers.queues.dirq import Dirq
from workers.queues.dirq_keep import DirqKeeper
from workers.queues.dirq_url import open_dirq
from workers.queues.scan import Scan

SETTINGS = replace(spool_cast.SETTINGS, lease_interval_s=None, lease_timeout_s=None, stale_after_s=MAX_LOCK_S)
SCHEMA = f"{BODY}:binary,{HEADER}:binary?"
SETTLES = ("done", "retry", "reject", "release")


class Looks(Scan):
    """Which name to try next: each of one listing once, or each of the *hints*; then None, until the next claim."""

    def __init__(self, queue: Dirq, hints: Sequence[str]) -> None:
        super().__init__(queue.source(), "fifo")
        self._hints, self._has_looked = hints, False

    def claim(self, queue: Dirq) -> Claim | None:
        """What *queue* claims, by one look."""
        self.forget()
        self._has_looked = False
        return queue.claim()

    def _fill(self) -> bool:
        if self._has_looked:
            return False
        self._has_looked = True
        self._names.extend(self._hints)
        return bool(self._hints) or super()._fill()


class DirqPool:
    """One master on one host: a board, a keeper, workers. *pid* is the master's; its processes have the next ones."""

    def __init__(self, world: World, ledger: DirqLedger, kind: str, host: str, pid: int) -> None:
        self.world, self.ledger, self.kind, self.host, self.pid = world, ledger, kind, host, pid
        self.board = Board(world)
        self.slot = self.board.take_queue("q", QUEUE)
        self.master_process = world.process(pid, host)
        self.master = names.master_name(host, self.master_process)
        self.keeper_process = world.process(pid + 1, host)
        ledger.keepers.add(self.keeper_process)
        self.keeper: DirqKeeper = self._opened(self.keeper_process).keeper(self._consumer(0))
        self.keeper.open()
        self.keeper._sweep_at_ns = 10**19  # that is another story, see sweep

    def _opened(self, process: Process) -> Dirq:
        protocol, schema = ("dirq-simple", "") if self.kind == SIMPLE else ("dirq", f"&schema={SCHEMA}")
        path = f"{QUEUE}?rndhex={process.pid % 16:x}{schema}"
        return open_dirq(protocol, path, SETTINGS, system=process, host=self.host)

    def _consumer(self, index: int) -> Consumer:
        return Consumer(self.master, self.board, self.slot, self.board.take_worker(self.slot, index), index)

    def worker(self, index: int = 0, *hints: str) -> Dirq:
        """A worker's queue, over a process of its own; *hints* are the names that its feeder gives it, at each look."""
        queue = self._opened(self.world.process(self.pid + 10 + index, self.host))
        queue.attach(self._consumer(index))
        queue._scan = Looks(queue, hints)
        return queue

    def bury(self, index: int = 0) -> str:
        """Take a dead worker off the board, as its master does; its owner's name."""
        slot = self.board.worker(index)
        owner = slot.text(WorkerText.OWNER) or ""
        slot.set_text(WorkerText.OWNER, "")
        return owner


def process_of(queue: Dirq) -> Process:
    """Whose queue it is."""
    assert isinstance(queue.system, Process)
    return queue.system


def claimed(queue: Dirq) -> Claim | None:
    """What a worker claims by one look."""
    assert isinstance(queue._scan, Looks)
    return queue._scan.claim(queue)


def taken(queue: Dirq, ledger: DirqLedger) -> Claim:
    """What a worker has claimed; there must be something."""
    claim = claimed(queue)
    assert claim is not None
    ledger.holds(process_of(queue), body_of(queue, claim))
    return claim


def body_of(queue: Dirq, claim: Claim) -> bytes:
    """What a handler would read, without a call."""
    return process_of(queue).opened(claim.fd).data


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
        pool.keeper._sweep_at_ns = 0
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
