"""
scenarios_leases - keepers, masters and workers of one pool, and keepers of other hosts that count its beats

The rounds are real ones (SpoolKeeper.keep), the words of the board are scheduling points.
See also: scenarios, SPOOL.md sections 6, 8 and 9, protocol-check H31 to H37.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from tests.sim.cast import LOOKS, NEXT, QUEUE, Pool, keep, recover, user, work
from tests.sim.kernel import Pipe, World
from tests.sim.ledger import Ledger
from tests.sim.scenarios import SETTLES, Act, add
from tests.sim.scenarios_claims import Made, process, two_hosts, waiting
from workers.message import Claim
from workers.queues import names
from workers.queues.spool import Spool


def counted(world: World, *pools: Pool) -> None:
    """The keepers of *pools* have counted all but the last look; nobody else has beaten since."""
    for number in range(LOOKS):
        world.moved_ns += int(bool(number) * 1e9)
        for pool in pools:
            pool.keeper.keep()
    world.moved_ns += 10**9


# ---- lost, and regained


def lease_lost(settle: str, *, removes: bool = False, watchers: int = 1, claims: int = 1, others: str = "B") -> Made:
    """A holds a message, nobody beats, K makes its last look; A settles, B takes, T is A's keeper (H35, H36)."""
    world, ledger = waiting()
    one, two = two_hosts(world)
    three = Pool(world, "three", 300)
    a, b, following = one.worker(), two.worker(), user(world, NEXT, pid=2)
    handle = _removes_its_input(a) if removes else lambda _: None
    if removes:
        ledger.may_end(b"one")
    settling = work(a, ledger, settle, holds=True, times=claims, following=following, handle=handle)
    watching = [two, three][:watchers]
    counted(world, *watching)
    if watchers == 1:
        three.keeper.lease.leave()
    watch_releases(two, one, ledger)
    acts: list[Act] = [
        ("A", process(a), settling),
        *[(name, pool.keeper_process, keep(pool.keeper)) for name, pool in zip("KL", watching, strict=False)],
    ]
    if "B" in others:
        acts.append(("B", process(b), work(b, ledger, stays=True)))
    if "T" in others:
        acts.append(("T", one.keeper_process, one.keeper.lease.beat))
    return world, ledger, acts


def _removes_its_input(spool: Spool) -> Callable[[Claim], None]:
    def handle(claim: Claim) -> None:
        with suppress(FileNotFoundError):
            spool.system.unlink(claim.path)

    return handle


def looked_again(*, dead: int = 2) -> Made:
    """K has counted all but one look at a pool with several owners, whose keeper beats at any moment (H31)."""
    world, ledger = waiting(*(b"%d" % number for number in range(dead)))
    one, two = two_hosts(world)
    for number in range(dead):
        assert Pool.worker(one, number).claim() is not None
    counted(world, two)
    watch_releases(two, one, ledger)
    return world, ledger, [
        ("K", two.keeper_process, keep(two.keeper)),
        ("T", one.keeper_process, one.keeper.lease.beat),
    ]  # fmt: skip


def watch_releases(by: Pool, of: Pool, ledger: Ledger) -> None:
    """Say it is wrong when *by* goes into a directory of *of* without having just seen the lease as it was counted."""
    listdir, leases = by.keeper_process._listdir, of.keeping.directory.leases
    counted = _lease_of(of.world, leases, of.master)
    seen: list[str] = []

    def listing(path: str) -> list[str]:
        nonlocal seen
        owner = names.parse_owner(path.rpartition("/")[2])
        if path == leases:
            seen = _lease_of(of.world, leases, of.master)
        elif owner is not None and owner.master == of.master:
            if seen != counted:
                ledger.is_wrong(f"{path} is released, though its lease was {counted}, and seen last as {seen}")
            seen = []
        return listdir(path)

    by.keeper_process._listdir = listing  # type: ignore[method-assign]


def _lease_of(world: World, leases: str, master: str) -> list[str]:
    return [file for file in world.disk.directory(leases).entries if file.startswith(master)]


# ---- one pool: its board, its keeper, its master


def starting_keeper(settle: str, *, times: int = 1, rounds: int = 2, keepers: int = 1) -> Made:
    """A comes, claims, settles and leaves, while a keeper of its own master makes its first rounds (H32)."""
    world, ledger = waiting()
    one = Pool(world, "one", 100)
    a = one.worker()
    ledger.live.add(process(a))
    one.keeper._swept_ns = one.keeper_process.boottime_ns()  # swept just now: that is another story
    acts: list[Act] = [
        ("K", one.keeper_process, keep(one.keeper, rounds)),
        ("A", process(a), work(a, ledger, settle, times=times, following=user(world, NEXT, pid=2))),
    ]
    if keepers > 1:
        process_l = world.process(150, "one")
        acts.append(("L", process_l, keep(one.another_keeper(process_l), rounds)))
    return world, ledger, acts


def fresh_owner(*, rounds: int = 0) -> Made:
    """A has lapsed with a directory in which a claim has landed late; it takes a fresh one, killed anywhere (H33)."""
    world, ledger = waiting(b"one", b"two")
    one = Pool(world, "one", 100)
    a = one.worker()
    claim = a.claim()
    assert claim is not None
    a.settled(claim)
    world.moved_ns += 3 * 10**9
    one.keeper.lease.beat()
    return world, ledger, [
        ("A", process(a), work(a, ledger, stays=True)),
        ("K", one.keeper_process, keep(one.keeper, rounds)),
    ]  # fmt: skip


def master(pool: Pool, worker: Spool, pipe: Pipe) -> Callable[[], None]:
    """A master that looks once whether the worker lives, takes it off the board, and then tells the keeper (H34)."""
    system = pool.world.processes[pool.pid]
    fd = system.hold(pipe)

    def act() -> None:
        if system.start_ticks(process(worker).pid) is None:
            owner = pool.bury()
            system.write(fd, owner.encode())

    return act


def told(pool: Pool, pipe: Pipe, rounds: int = 0) -> Callable[[], None]:
    """A keeper that does what it was told, if it was, and makes its rounds."""
    fd = pool.keeper_process.hold(pipe)

    def act() -> None:
        with suppress(BlockingIOError):
            owner = pool.keeper_process.read(fd, 4096).decode()
            if owner:
                pool.keeper.release_owner(owner, "died", "killed by signal 9")
        keep(pool.keeper, rounds)()

    return act


def worker_died(settle: str, *, rounds: int = 1) -> Made:
    """A is killed anywhere, its master tells the keeper, which may be killed too; another keeper follows (H34)."""
    world, ledger = waiting()
    one = Pool(world, "one", 100)
    a, b = one.worker(), one.worker(1)
    ledger.live.add(process(a))
    ledger.live.add(process(b))
    world.pipes.append(pipe := Pipe())
    return world, ledger, [
        ("A", process(a), work(a, ledger, settle)),
        ("B", process(b), work(b, ledger, stays=True)),
        ("K", one.keeper_process, told(one, pipe, rounds)),
        ("M", world.processes[one.pid], master(one, a, pipe)),
    ]  # fmt: skip


def by_the_next_keeper(world: World, ledger: Ledger) -> None:
    """The pool goes on: its master takes who died off the board, and its next keeper finds all that they held."""
    pool = world.pools[0]
    for index in range(2):
        if not world.is_alive(pool.pid + 10 + index):
            pool.bury(index)
    keeper = pool.another_keeper(world.process(160, "one"))
    for _ in range(2):
        keeper.keep()
    for path in world.disk.directories:
        owner = names.parse_owner(path.rpartition("/")[2])
        if owner is not None and not world.is_alive(owner.pid):
            raise AssertionError(f"{path} is left of a worker that was killed, and its own keeper does not find it")
    recover(world, ledger)


for _settle in SETTLES:
    _queues = (QUEUE, NEXT) if "forward" in _settle else (QUEUE,)
    add(lease_lost, _settle, queues=_queues, is_long=_settle not in ("done", "retry", "forward"))
    add(lease_lost, _settle, queues=_queues, others="T", is_long=_settle not in ("done", "retry"))
    add(lease_lost, _settle, queues=_queues, others="BT", is_long=True)
    add(lease_lost, _settle, queues=_queues, others="T", claims=2, is_long=True)
    add(lease_lost, _settle, queues=_queues, others="BT", watchers=2, is_long=True)
    add(lease_lost, _settle, queues=_queues, others="BT", dying="AKT", is_long=True)
add(lease_lost, "done", others="T", removes=True)
add(lease_lost, "retry", others="B", removes=True, is_long=True)
add(looked_again)
add(starting_keeper, "done")
add(starting_keeper, "done", rounds=1)
add(starting_keeper, "retry", is_long=True)
add(starting_keeper, "done", times=2, rounds=3, keepers=2, is_long=True)
add(fresh_owner, dying="A", finish=by_the_next_keeper)
add(fresh_owner, rounds=1, dying="A", finish=by_the_next_keeper, is_long=True)
add(worker_died, "done", dying="A", rounds=0, finish=by_the_next_keeper)
add(worker_died, "done", rounds=0, dying="AK", crashes=2, finish=by_the_next_keeper, is_long=True)
add(worker_died, "retry", rounds=0, dying="AK", crashes=2, finish=by_the_next_keeper, is_long=True)
