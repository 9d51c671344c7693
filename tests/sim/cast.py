"""
cast - who takes part in a simulated spool: pools, workers, keepers, producers, and who cleans up at the end

All of them are the real classes over a simulated process; only what drives them (how
often a worker looks, what its handler does) is written here.

See also: scenarios (who meets whom), ledger (what they must not do to a message).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cache

from tests.sim.board import Board
from tests.sim.disk import Disk
from tests.sim.kernel import Pipe, Process, World
from tests.sim.ledger import Ledger
from workers.board import WorkerText
from workers.errors import ClaimLost, InputGone, MessageExists, QueueUnavailable
from workers.message import Claim
from workers.queues import names
from workers.queues.base import Cause, Consumer, Kept, Settings
from workers.queues.directory import Directory
from workers.queues.spool import Spool
from workers.queues.spool_keep import SpoolKeeper

QUEUE, NEXT = "/q", "/n"
SETTINGS = Settings(lease_interval_s=1.0, lease_timeout_s=4.0, stale_after_s=100.0, retry_backoff_s=0.0)
LOOKS = 5  # ceil(4 / 1) + 1


@cache
def _made(paths: tuple[str, ...]) -> Disk:
    world = World()
    settings = replace(SETTINGS, create=True)
    for path in paths:
        Spool(path, settings, system=world.process(1), host="maker")
    return world.disk


def make_world(*paths: str, network: str | None = None) -> tuple[World, Ledger]:
    """A world with an empty queue at each of *paths* (at QUEUE when none is named)."""
    world = World(network=network)
    world.disk.copy_of(_made(paths or (QUEUE,)))
    ledger = Ledger(world)
    ledger.ending = set()
    return world, ledger


_opened: dict[tuple[str, Settings, str | None], dict[str, object]] = {}


def open_spool(path: str, settings: Settings, process: Process) -> Spool:
    """The queue at *path*, without a call if it was ever opened with these *settings*: for many worlds alike."""
    key = path, settings, process.world.network
    opened = Directory.open
    if key in _opened:
        Directory.open = lambda directory, _: vars(directory).update(_opened[key])  # type: ignore[method-assign]
    try:
        spool = Spool(path, settings, system=process, host=process.host)
    finally:
        Directory.open = opened  # type: ignore[method-assign]
    found = vars(spool.directory)
    _opened.setdefault(key, {name: found[name] for name in ("network", "id", "times")})
    return spool


@cache
def _made_board(path: str, workers: int) -> bytes:
    board = Board(World())
    slot = board.take_queue("q", path)
    for index in range(workers):
        board.take_worker(slot, index)
    return bytes(board.memory)


def user(world: World, path: str = QUEUE, pid: int = 1, host: str = "user") -> Spool:
    """The queue at *path* as somebody opens it who only puts, looks and requeues."""
    return open_spool(path, SETTINGS, world.process(pid, host))


class Pool:
    """One master on one host: a board, a keeper, workers. *pid* is the master's; its processes have the next ones."""

    def __init__(
        self, world: World, host: str, pid: int, settings: Settings = SETTINGS, *, path: str = QUEUE, beats: bool = True
    ) -> None:
        self.world, self.host, self.pid, self.settings, self.path = world, host, pid, settings, path
        world.pools.append(self)
        self.board = Board(world, _made_board(path, 2))
        self.slot = 0
        self.master = names.master_name(host, world.process(pid, host))
        self.keeper_process = world.process(pid + 1, host)
        self.keeping = open_spool(path, settings, self.keeper_process)
        self.keeper: SpoolKeeper = self.keeping.keeper(self._consumer(0))
        if beats:
            self.keeper.lease.beat()

    def another_keeper(self, process: Process) -> SpoolKeeper:
        """The one that follows the first, or a second one beside it by mistake."""
        return open_spool(self.path, self.settings, process).keeper(self._consumer(0))

    def _consumer(self, index: int) -> Consumer:
        return Consumer(self.master, self.board, self.slot, self.board.take_worker(self.slot, index), index)

    def worker(self, index: int = 0, pipe: Pipe | None = None) -> Spool:
        """A worker's queue, over a process of its own; *pipe* is what its feeder fills."""
        process = self.world.process(self.pid + 10 + index, self.host)
        spool = open_spool(self.path, self.settings, process)
        consumer = self._consumer(index)
        spool.attach(replace(consumer, feed=process.hold(pipe)) if pipe else consumer)
        return spool

    def bury(self, index: int = 0) -> str:
        """Take a dead worker off the board, as its master does; its owner's name."""
        slot = self.board.worker(index)
        owner = slot.text(WorkerText.OWNER) or ""
        slot.set_text(WorkerText.OWNER, "")
        return owner


# ---- what they do


def work(
    spool: Spool,
    ledger: Ledger,
    settle: str = "done",
    *,
    times: int = 1,
    handle: Callable[[Claim], object] = lambda _: None,
    following: Spool | None = None,
    stays: bool = False,
    holds: bool = False,
) -> Callable[[], None]:
    """
    A worker that looks *times* times, settles each message by the verb *settle*, and leaves unless it *stays*.

    *holds*: it has claimed its first message before all begins.
    """
    in_hand = [spool.claim()] if holds else []

    def act() -> None:
        for _ in range(times):
            with suppress(QueueUnavailable):
                if (claim := in_hand.pop() if in_hand else spool.claim()) is None:
                    spool.settle_leftovers()
                else:
                    body = body_of(spool, claim)
                    ledger.was_handled(body)
                    handle(claim)
                    _settle(spool, claim, ledger, settle, following)
        if not stays:
            with suppress(QueueUnavailable):
                leave(spool, ledger)

    return act


def leave(spool: Spool, ledger: Ledger) -> None:
    """A worker leaves, and says what it has left."""
    ours = spool._owner_path
    spool.detach()
    if ours:
        ledger.left.append(ours)


def _settle(spool: Spool, claim: Claim, ledger: Ledger, settle: str, following: Spool | None) -> None:
    body = body_of(spool, claim)
    if settle in ("done", "forward anew"):
        ledger.may_end(body)
    for _ in range(3):
        try:
            if settle == "done":
                spool.done(claim)
            elif settle == "retry":
                spool.retry(claim)
            elif settle == "reject":
                spool.reject(claim, "a reason")
            elif settle == "release":
                spool.release(claim)
            else:
                assert following is not None
                bodies = [body + b"+"] if settle == "forward anew" else None
                ledger.repeated.update(bodies or [])  # it is put again by whoever gets the message next
                spool.forward(claim, following, bodies)
        except (ClaimLost, InputGone):
            ledger.was_settled(body, "lost")
        except QueueUnavailable:
            continue
        else:
            ledger.was_settled(body, settle)
        return
    spool.settled(claim)


def body_of(spool: Spool, claim: Claim) -> bytes:
    """What a handler would read, without a call."""
    assert isinstance(spool.system, Process)
    return spool.system.opened(claim.fd).data


def put(spool: Spool, ledger: Ledger, body: bytes, name: str | None = None, delay: float = 0) -> Callable[[], None]:
    """A producer of one message, that says what it was answered."""

    def act() -> None:
        with suppress(QueueUnavailable, MessageExists):
            spool.put(body, name, delay=delay, durable=False)
            ledger.was_put(body)

    return act


def move_due(keeper: SpoolKeeper) -> Callable[[], None]:
    """The part of a keeper's round that moves what is due."""

    def act() -> None:
        with suppress(QueueUnavailable, OSError):
            keeper._move_due(Kept())  # a whole round has too many orders

    return act


def keep(keeper: SpoolKeeper, rounds: int = 1) -> Callable[[], None]:
    """A keeper that makes *rounds* rounds."""

    def act() -> None:
        for _ in range(rounds):
            with suppress(QueueUnavailable):
                keeper.keep()

    return act


def pass_time(world: World, *alive: Pool, seconds: float = 5.0) -> None:
    """More than a lease's time has passed since all pools have beaten, but *alive*."""
    world.moved_ns += int(seconds * 1e9)
    for pool in alive:
        pool.keeper.lease.beat()


def release(pool: Pool, *dead: Pool, after_s: float = 0.0, cause: Cause = "unknown") -> Callable[[], None]:
    """A keeper of *pool* takes *dead* for it, rightly or not, when *after_s* have passed without a beat of theirs."""
    masters = {one.master for one in dead}

    def act() -> None:
        if after_s:
            pool.keeper_process.advance(after_s)
        with suppress(QueueUnavailable, OSError):
            for directory in pool.keeper_process.listdir(pool.keeping.directory.pending):
                owner = names.parse_owner(directory)
                if owner is not None and owner.master in masters:
                    pool.keeper.release_owner(directory, cause)

    return act


# ---- the end


def recover(world: World, ledger: Ledger, *paths: str) -> None:
    """
    All others are gone: one pool of another host finds and finishes what is left, in *paths*.

    Then nothing may be left, but what is in errors/ and done/.
    """
    world.disk.is_full = False
    for number, path in enumerate(paths or (QUEUE,)):
        pool = Pool(world, "last", 90_000 + 100 * number, path=path)
        worker = pool.worker()
        for _ in range(LOOKS + 2):
            _pass(world, pool, 1.0)
        for _ in range(6):  # a retry may be deferred again, an abandoned file reaped
            _pass(world, pool, 101.0)
            while (claim := worker.claim()) is not None:
                ledger.was_handled(body_of(worker, claim))
                ledger.may_end(body_of(worker, claim))
                worker.done(claim)
        worker.detach()
        pool.keeper.lease.leave()
    ledger.check_all_ended()


def _pass(world: World, pool: Pool, seconds: float) -> None:
    world.moved_ns += int(seconds * 1e9)
    pool.keeper.lease.beat()  # however much time was skipped, this pool is alive
    pool.keeper.keep()
