"""
scenarios_dirq_pools - workers and keepers of pools on one dirq of either kind, of one host and of several

A, B, C are workers, K, L keepers, P the original. Everybody may have stood still for as
long as a lock may last.

See also: scenarios_dirq (the engines alone), scenarios_claims (the same of a spool), DIRQ.md.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tests.sim import dirq_pools as pools
from tests.sim.dirq_cast import KINDS, S, make_world, their_handle, their_purge
from tests.sim.dirq_ledger import KEPT, MAX_LOCK_S, DirqLedger
from tests.sim.dirq_pools import DirqPool, taken, work
from tests.sim.foreign_pools import SETTLES, process_of
from tests.sim.kernel import World
from tests.sim.scenarios import Act, add
from workers.board import WorkerText

Made = tuple[World, DirqLedger, list[Act]]
OLD = 3600


def waiting(kind: str, *, age: float = 0, network: str | None = None) -> tuple[World, DirqLedger, str]:
    """A world with one element that waits, and its name."""
    world, ledger, (name,) = make_world(kind, b"one", age_s=age, network=network)
    return world, ledger, name


def two_hosts(world: World, ledger: DirqLedger, kind: str) -> tuple[DirqPool, DirqPool]:
    """One pool on each of two."""
    return DirqPool(world, ledger, kind, "one", 100), DirqPool(world, ledger, kind, "two", 200)


def workers(letters: str, ledger: DirqLedger, name: str, *of: tuple[DirqPool, str]) -> list[Act]:
    """One worker for each pool and verb; each of them is given *name* by its feeder, or looks for itself."""
    acts: list[Act] = []
    for number, (letter, (pool, settle)) in enumerate(zip(letters, of, strict=False)):
        queue = pool.worker(1 + sum(one is pool for one, _ in of[:number]), *filter(None, [name]))
        acts.append((letter, process_of(queue), work(queue, ledger, settle)))
    return acts


def dirq_pools_claims(kind: str, *settles: str, age: float = 0, network: str | None = None, theirs: str = "") -> Made:
    """Workers of two hosts, and the original in its two roles."""
    world, ledger, name = waiting(kind, age=age, network=network)
    hosts = two_hosts(world, ledger, kind)
    acts = workers("ABC", ledger, name, *((hosts[number % 2], settle) for number, settle in enumerate(settles)))
    p = world.process(15)
    if theirs == "purge":
        acts.append(("P", p, their_purge(kind, p)))
    elif theirs:
        acts.append(("P", p, their_handle(kind, p, ledger, name, theirs)))
    return world, ledger, acts


def dirq_pools_died(kind: str, settle: str, other: str = "done") -> Made:
    """A is killed anywhere; its keeper K is told, gives back what it had, and may be killed too; B takes it."""
    world, ledger, name = waiting(kind)
    one, two = two_hosts(world, ledger, kind)
    a = one.worker(0, name)
    acts: list[Act] = [("A", process_of(a), work(a, ledger, settle))]
    acts += workers("B", ledger, name, (two, other))
    return world, ledger, [*acts, ("K", one.keeper_process, pools.when_dead(one, a))]


def dirq_pools_dead_neighbour(kind: str, *settles: str, keepers: int = 2) -> Made:
    """A master died with its worker; keepers of others on its machine give back what it had, B and C take it."""
    world, ledger, name = waiting(kind)
    dead = DirqPool(world, ledger, kind, "one", 100)
    others = [DirqPool(world, ledger, kind, "one", pid) for pid in (200, 300)]
    worker = dead.worker(0, name)
    taken(worker, ledger)
    for process in (dead.master_process, dead.keeper_process, process_of(worker)):
        process.has_crashed = True
    acts = workers("BC", ledger, name, *zip(others, settles, strict=False))
    for letter, pool in zip("KL", others[:keepers], strict=False):
        acts.append((letter, pool.keeper_process, pools.release_neighbours(pool)))
    return world, ledger, acts


def dirq_pools_late(kind: str, settle: str, other: str = "done", *, network: str | None = None) -> Made:
    """A holds it, and its keeper has stood still too long; K of another host sweeps, B takes it, A goes on."""
    world, ledger, name = waiting(kind, network=network)
    one, two = two_hosts(world, ledger, kind)
    a = one.worker(0, name)
    claim = taken(a, ledger)
    world.moved_ns += (MAX_LOCK_S + 1) * S
    two.keeper.keep()
    ledger.unfenced.add(process_of(a))  # it looks whether it is held, and may be late all the same
    ledger.may_lock_aside = True  # K may have B's lock in its hand, when A gave the old one back
    acts: list[Act] = [("A", process_of(a), work(a, ledger, settle, holds=claim))]
    acts += workers("B", ledger, name, (two, other))
    return world, ledger, [*acts, ("K", two.keeper_process, pools.sweep(two))]


def dirq_pools_fenced(kind: str, settle: str, other: str = "done", *, dies: bool = False) -> Made:
    """A has stood still until its lock was broken and B had the next one; A and B settle, or A's keeper gives back."""
    world, ledger, name = waiting(kind)
    one, two = two_hosts(world, ledger, kind)
    a, b = one.worker(0, name), two.worker(0, name)
    claim = taken(a, ledger)
    world.moved_ns += (MAX_LOCK_S + 1) * S
    two.keeper.keep()
    pools.sweep(two)()
    its = taken(b, ledger)
    acts: list[Act] = [("B", process_of(b), work(b, ledger, other, holds=its))]
    if dies:
        process_of(a).has_crashed = True
        return world, ledger, [*acts, ("K", one.keeper_process, pools.release(one, one.bury()))]
    return world, ledger, [*acts, ("A", process_of(a), work(a, ledger, settle, holds=claim))]


def dirq_pools_touched(kind: str, settle: str, other: str = "done", *, age: float = 6, hint: bool = False) -> Made:
    """
    A has had it for *age*; its keeper K touches it while A settles, L of another host sweeps, and B takes it.

    *hint*: B was given the name before A locked it.
    """
    world, ledger, name = waiting(kind)
    one, two = two_hosts(world, ledger, kind)
    a = one.worker(0, name)
    claim = taken(a, ledger)
    one.keeper.keep()
    world.moved_ns += int(age * S)
    two.keeper.keep()
    acts: list[Act] = [("A", process_of(a), work(a, ledger, settle, holds=claim))]
    if other:
        acts += workers("B", ledger, name if hint else "", (two, other))
    acts.append(("K", one.keeper_process, pools.touch(one)))
    if age > MAX_LOCK_S:
        ledger.may_lock_aside = True
        ledger.unfenced.add(two.keeper_process)  # it was stale when L looked, and K touches it a moment later
        acts.append(("L", two.keeper_process, pools.sweep(two)))
    return world, ledger, acts


def dirq_pools_due(kind: str, *settles: str, keepers: int = 2) -> Made:
    """It failed and is due; keepers move it back, and workers take it."""
    world, ledger, name = waiting(kind)
    hosts = two_hosts(world, ledger, kind)
    failed = hosts[0].worker(3, name)
    claim = taken(failed, ledger)
    ledger.settles(process_of(failed), b"one")
    failed.retry(claim)
    failed.detach()
    world.moved_ns += 2 * S
    assert world.disk.directory(f"{KEPT}/deferred").entries
    acts = workers("BC", ledger, name, *zip(hosts, settles, strict=False))
    for letter, pool in zip("KL", hosts[:keepers], strict=False):
        pool.keeper.touch()
        acts.append((letter, pool.keeper_process, pools.move_due(pool)))
    return world, ledger, acts


def dirq_pools_swept(kind: str, *settles: str, keepers: int = 1, whole: bool = False) -> Made:
    """Its holder vanished with its machine; keepers of other hosts sweep, and their workers take it."""
    world, ledger, name = waiting(kind)
    gone = DirqPool(world, ledger, kind, "gone", 300)
    worker = gone.worker(0, name)
    taken(worker, ledger)
    for process in (gone.master_process, gone.keeper_process, process_of(worker)):
        process.has_crashed = True
    hosts = two_hosts(world, ledger, kind)
    world.moved_ns += (MAX_LOCK_S + 1) * S
    ledger.may_lock_aside = keepers > 1
    for pool in hosts:
        pool.keeper.keep()
    acts = workers("BC", ledger, name, *zip(hosts, settles, strict=False))
    for letter, pool in zip("KL", hosts[:keepers], strict=False):
        acts.append((letter, pool.keeper_process, pools.sweep(pool, whole=whole)))
    return world, ledger, acts


def dirq_pools_released(kind: str, settle: str, *others: str, keepers: int = 1) -> Made:
    """A worker that was killed had it in hand; its keeper K, and L too, give back what it had; B and C take it."""
    world, ledger, name = waiting(kind)
    one, two = two_hosts(world, ledger, kind)
    a = one.worker(0, name)
    taken(a, ledger)
    owner = one.board.worker(0).text(WorkerText.OWNER) or ""
    process_of(a).has_crashed = True
    acts = workers("BC", ledger, name, (two, settle), *((two, other) for other in others))
    for letter, pool in zip("KL", (one, two)[:keepers], strict=False):
        acts.append((letter, pool.keeper_process, pools.release(pool, owner)))
    return world, ledger, acts


# ---- the list


def adds(setup: Callable[..., Made], kind: str, *arguments: object, **options: object) -> None:
    """Register it; at its end a pool of another host recovers."""
    add(setup, kind, *arguments, finish=partial(pools.recover, kind=kind), **options)  # type: ignore[arg-type]


for _kind in KINDS:
    for _settle in SETTLES:
        adds(dirq_pools_claims, _kind, _settle, "done")
        adds(dirq_pools_claims, _kind, _settle, "done", age=OLD, theirs="purge", is_long=_settle != "release")
        adds(dirq_pools_claims, _kind, _settle, theirs="remove")
        adds(dirq_pools_died, _kind, _settle, dying="A", is_long=_settle != "done")
        adds(dirq_pools_late, _kind, _settle, is_long=True)
        adds(dirq_pools_late, _kind, _settle, network="nfs", is_long=True)
        adds(dirq_pools_fenced, _kind, _settle)
        adds(dirq_pools_touched, _kind, _settle, is_long=_settle in ("reject", "release"))
        adds(dirq_pools_touched, _kind, _settle, "")
        adds(dirq_pools_released, _kind, _settle, "done")
    adds(dirq_pools_claims, _kind, "done", "done", network="nfs", losing="A")
    adds(dirq_pools_died, _kind, "done", dying="AK", is_long=True)
    adds(dirq_pools_touched, _kind, "done", hint=True)
    adds(dirq_pools_fenced, _kind, "", dies=True)
    adds(dirq_pools_fenced, _kind, "", "release", dies=True)
    adds(dirq_pools_dead_neighbour, _kind, "done", keepers=1)
    adds(dirq_pools_dead_neighbour, _kind, "done", is_long=True)
    adds(dirq_pools_released, _kind, "release", keepers=2)
    adds(dirq_pools_late, _kind, "done", "retry", is_long=True)
    adds(dirq_pools_late, _kind, "retry", "retry", is_long=True)
    adds(dirq_pools_late, _kind, "reject", "reject", is_long=True)
    adds(dirq_pools_touched, _kind, "done", age=MAX_LOCK_S + 1, is_long=True)
    adds(dirq_pools_due, _kind, "done", keepers=1, dying="K")
    adds(dirq_pools_due, _kind, "done", is_long=True)
    adds(dirq_pools_due, _kind, "done", "done", is_long=True)
    adds(dirq_pools_swept, _kind, "done")
    adds(dirq_pools_swept, _kind, "done", "done", is_long=True)
    adds(dirq_pools_swept, _kind, "done", whole=True, is_long=True)
    adds(dirq_pools_swept, _kind, "done", keepers=2, is_long=True)
