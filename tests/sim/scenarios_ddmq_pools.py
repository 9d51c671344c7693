"""
scenarios_ddmq_pools - workers and keepers of pools on one ddmq, of one host and of several, beside ours and others

A, B, C are workers, K, L keepers, P the original. The clock stands still but where
somebody stood still for longer than a claim lasts, so all claims of a message are to the same second.

Long because: they are one list, each a world and those in it.
See also: scenarios_ddmq (the library alone), scenarios_dirq_pools (the sister), DDMQ.md.
"""

from __future__ import annotations

from collections.abc import Callable

from tests.sim import ddmq_cast as cast
from tests.sim import ddmq_pools as pools
from tests.sim.ddmq_cast import TIMEOUT_S, S, make_world
from tests.sim.ddmq_ledger import DdmqLedger
from tests.sim.ddmq_pools import DdmqPool, taken, work
from tests.sim.foreign_pools import SETTLES, process_of
from tests.sim.kernel import Process, World
from tests.sim.scenarios import Act, add
from workers.board import Q
from workers.queues.beside import Counts
from workers.queues.ddmq import Ddmq, open_ddmq
from workers.queues.ddmq_hand import claim_line

Made = tuple[World, DdmqLedger, list[Act]]


def two_hosts(world: World, ledger: DdmqLedger) -> tuple[DdmqPool, DdmqPool]:
    """One pool on each of two."""
    return DdmqPool(world, ledger, "one", 100), DdmqPool(world, ledger, "two", 200)


def workers(letters: str, ledger: DdmqLedger, *of: tuple[DdmqPool, str], times: int = 1) -> list[Act]:
    """One worker for each pool and verb."""
    acts: list[Act] = []
    for number, (letter, (pool, settle)) in enumerate(zip(letters, of, strict=False)):
        queue = begun(pool, 1 + sum(one is pool for one, _ in of[:number]))
        acts.append((letter, process_of(queue), work(queue, ledger, settle, times=times)))
    return acts


def begun(pool: DdmqPool, index: int = 0) -> Ddmq:
    """A worker that has made its record: that comes once in its life, and is walked on its own."""
    queue = pool.worker(index)
    queue._take_owner(queue._words[Q.LAPSES])
    return queue


def killed(*processes: Process) -> None:
    """They are dead."""
    for process in processes:
        process.has_crashed = True


# ---- who claims first, and who dies


def ddmq_pools_claims(*settles: str, network: str | None = None, theirs: str = "", messages: int = 1) -> Made:
    """Workers of two hosts, and the original, that consumes or purges."""
    world, ledger = make_world(*("one", "two")[:messages], network=network)
    hosts = two_hosts(world, ledger)
    acts = workers("ABC", ledger, *((hosts[number % 2], settle) for number, settle in enumerate(settles)))
    p = world.process(15)
    if theirs == "purge":
        acts.append(("P", p, cast.purge(cast.opened(p), ledger)))
    elif theirs:
        acts.append(("P", p, cast.their_consume(p, ledger, theirs)))
    return world, ledger, acts


def ddmq_pools_in_place(*settles: str) -> Made:
    """The original publishes in place, and workers look."""
    world, ledger = make_world()
    hosts = two_hosts(world, ledger)
    p = world.process(15)
    acts = workers("AB", ledger, *zip(hosts, settles, strict=False))
    return world, ledger, [*acts, ("P", p, cast.their_publish(p, ledger, "theirs"))]


def ddmq_pools_died(settle: str, *others: str, times: int = 1) -> Made:
    """A is killed anywhere; its keeper K is told, gives back what it had, and may be killed too; others take it."""
    world, ledger = make_world("one")
    one, two = two_hosts(world, ledger)
    a = one.worker(0)
    acts: list[Act] = [("A", process_of(a), work(a, ledger, settle))]
    acts += workers("BC", ledger, *((two, other) for other in others), times=times)
    return world, ledger, [*acts, ("K", one.keeper_process, pools.when_dead(one, a, is_last=not others))]


def ddmq_pools_began(*others: str, times: int = 1, keepers: int = 1, seconds: int = 0) -> Made:
    """
    A was killed between its record and its claim; keepers give back what it had, which is nothing; others claim.

    *seconds*: so much time passes at any moment.
    """
    world, ledger = make_world("one")
    one, two = two_hosts(world, ledger)
    a = begun(one)
    (name,) = a.files.waiting(set())
    expiry = int(a.files.now_s()) + a.lasts_s(0)
    process_of(a).pwrite(a._hand, claim_line(name, expiry, a.lasts_s(0)), 0)
    killed(process_of(a))
    acts = workers("BC", ledger, *((two, other) for other in others), times=times)
    for letter, pool in zip("KL", (one, two)[:keepers], strict=False):
        acts.append((letter, pool.keeper_process, pools.release(pool, one.owner(), 1 + seconds)))
    if seconds:
        acts.append(("T", world.process(17), cast.wait(world.process(17), seconds)))
    return world, ledger, acts


def ddmq_pools_mistaken(settle: str, theirs: str = "") -> Made:
    """
    A lost the race for it in the same second, and stands still since, before it could clear its record; so it says
    what B has: of another host, whose keeper L touches it. A's keeper K goes by the record.
    """
    world, ledger = make_world("one")
    one, two = two_hosts(world, ledger)
    a, b = begun(one), begun(two)
    (name,) = a.files.waiting(set())
    expiry = int(a.files.now_s()) + a.lasts_s(0)
    process_of(a).pwrite(a._hand, claim_line(name, expiry, a.lasts_s(0)), 0)
    claim = taken(b, ledger)
    world.moved_ns += int(TIMEOUT_S * 0.6) * S
    acts: list[Act] = [("B", process_of(b), work(b, ledger, settle, holds=claim))]
    acts += [(letter, pool.keeper_process, pools.touch(pool)) for letter, pool in (("K", one), ("L", two))]
    return world, ledger, acts


def ddmq_pools_released(*others: str, keepers: int = 1, died: int = 0, times: int = 1, seconds: int = 1) -> Made:
    """
    A worker that was killed had it in hand; its keeper K, and L too, give back what it had; B and C take it.

    *seconds*: so long ago it had claimed it.
    """
    world, ledger = make_world("one")
    one, two = two_hosts(world, ledger)
    a = one.worker(0)
    claim = taken(a, ledger)
    ledger.crashed_before = died
    if died:
        one.keeper._beside.write_count(claim.name, Counts(0, died))
    killed(process_of(a))
    world.moved_ns += seconds * S
    acts = workers("BC", ledger, *((two, other) for other in others), times=times)
    for letter, pool in zip("KL", (one, two)[:keepers], strict=False):
        acts.append((letter, pool.keeper_process, pools.release(pool, one.owner())))
    return world, ledger, acts


def ddmq_pools_orphaned(*settles: str) -> Made:
    """A master and its worker are dead, its keeper K touches still; L, of another master, gives back, B takes it."""
    world, ledger = make_world("one")
    dead, other = (DdmqPool(world, ledger, "one", pid) for pid in (100, 200))
    worker = dead.worker(0)
    taken(worker, ledger)
    killed(dead.master_process, process_of(worker))
    ledger.crashed_before = 1  # L counts it, and K has touched it: it is found once more when it expires
    world.moved_ns += int(TIMEOUT_S * 0.6) * S
    pools.beat(other)
    acts = workers("B", ledger, *((other, settle) for settle in settles))
    acts.append(("K", dead.keeper_process, pools.touch(dead)))
    return world, ledger, [*acts, ("L", other.keeper_process, pools.release_neighbours(other))]


def ddmq_pools_dead_neighbour(*settles: str, keepers: int = 2) -> Made:
    """A master died with its worker; keepers of others on its machine give back what it had, B and C take it."""
    world, ledger = make_world("one")
    dead = DdmqPool(world, ledger, "one", 100)
    others = [DdmqPool(world, ledger, "one", pid) for pid in (200, 300)]
    worker = dead.worker(0)
    taken(worker, ledger)
    killed(dead.master_process, dead.keeper_process, process_of(worker))
    acts = workers("BC", ledger, *zip(others, settles, strict=False))
    for letter, pool in zip("KL", others[:keepers], strict=False):
        acts.append((letter, pool.keeper_process, pools.release_neighbours(pool)))
    return world, ledger, acts


# ---- claims that are touched, and that expire


def ddmq_pools_touched(settle: str, *others: str, rounds: int = 1, network: str | None = None) -> Made:
    """A has had it for more than half of its time; its keeper K touches it while A settles, and others claim."""
    world, ledger = make_world("one", network=network)
    one, two = two_hosts(world, ledger)
    a = one.worker(0)
    claim = taken(a, ledger)
    world.moved_ns += int(TIMEOUT_S * 0.6) * S
    pools.beat(two)
    acts: list[Act] = [("A", process_of(a), work(a, ledger, settle, holds=claim))]
    acts += workers("BC", ledger, *((two, other) for other in others))

    def touching() -> None:
        for _ in range(rounds):
            pools.touch(one)()

    return world, ledger, [*acts, ("K", one.keeper_process, touching)]


def ddmq_pools_touched_twice(settle: str) -> Made:
    """Its keeper touches it, more than half of its time passes at any moment, and the keeper touches it again."""
    world, ledger, acts = ddmq_pools_touched(settle, rounds=2)
    time = world.process(17)
    return world, ledger, [*acts, ("T", time, cast.wait(time, TIMEOUT_S * 0.6))]


def ddmq_pools_late(settle: str, *others: str, reapers: int = 1, touches: bool = False, cleans: bool = False) -> Made:
    """
    A holds it, and its keeper K has stood still too long; L of another host reaps, B takes it, A goes on.

    *touches*: so does K; *cleans*: one of the library cleans too.
    """
    world, ledger = make_world("one")
    one, two = two_hosts(world, ledger)
    a = one.worker(0)
    claim = taken(a, ledger)
    world.moved_ns += (TIMEOUT_S + 1) * S
    pools.beat(two)
    acts: list[Act] = [("A", process_of(a), work(a, ledger, settle, holds=claim))]
    acts += workers("BC", ledger, *((two, other) for other in others))
    if touches:
        acts.append(("K", one.keeper_process, pools.touch(one)))
    if reapers:
        acts.append(("L", two.keeper_process, pools.reap(two)))
    if cleans:
        acts.append(("N", world.process(16), cast.clean(cast.opened(world.process(16)), ledger)))
    return world, ledger, acts


def ddmq_pools_fenced(settle: str, other: str = "done", *, touches: bool = False, dies: bool = False) -> Made:
    """A stood still until its claim expired and B had the next one; both settle, A's keeper touches or gives back."""
    world, ledger = make_world("one")
    one, two = two_hosts(world, ledger)
    a, b = one.worker(0), two.worker(0)
    claim = taken(a, ledger)
    world.moved_ns += (TIMEOUT_S + 1) * S
    pools.beat(two)
    pools.reap(two)()
    its = taken(b, ledger)
    acts: list[Act] = [("B", process_of(b), work(b, ledger, other, holds=its))]
    if touches:
        acts.append(("K", one.keeper_process, pools.touch(one)))
    if dies:
        killed(process_of(a))
        return world, ledger, [*acts, ("K", one.keeper_process, pools.release(one, one.bury()))]
    return world, ledger, [*acts, ("A", process_of(a), work(a, ledger, settle, holds=claim))]


def ddmq_pools_reaped(
    *settles: str, keepers: int = 1, cleaners: int = 0, died: int = 0, whole: bool = False, network: str | None = None
) -> Made:
    """Its holder vanished with its machine; keepers of other hosts, and cleaners, give it back, and workers take it."""
    world, ledger = make_world("one", network=network)
    gone = DdmqPool(world, ledger, "gone", 300)
    worker = gone.worker(0)
    claim = taken(worker, ledger)
    ledger.crashed_before = died
    if died:
        gone.keeper._beside.write_count(claim.name, Counts(0, died))
    killed(gone.master_process, gone.keeper_process, process_of(worker))
    hosts = two_hosts(world, ledger)
    world.moved_ns += (TIMEOUT_S + 1) * S
    for pool in hosts:
        pools.beat(pool)
    acts = workers("BC", ledger, *zip(hosts, settles, strict=False))
    for letter, pool in zip("KL", hosts[:keepers], strict=False):
        acts.append((letter, pool.keeper_process, pools.sweep(pool) if whole else pools.reap(pool)))
    for letter, pid in zip("NM", range(16, 16 + cleaners), strict=False):
        process = world.process(pid)
        acts.append((letter, process, cast.clean(cast.opened(process), ledger)))
    return world, ledger, acts


def ddmq_pools_skewed(settle: str) -> Made:
    """The clock of the reaper's host is far ahead of the server's (Q17)."""
    world, ledger = make_world("one", network="nfs")
    one, two = two_hosts(world, ledger)
    a = one.worker(0)
    claim = taken(a, ledger)
    world.moved_ns += 20 * S  # its keeper has been there for a while
    two.keeper_process.skew_ns = 2 * TIMEOUT_S * S
    acts: list[Act] = [("A", process_of(a), work(a, ledger, settle, holds=claim))]
    return world, ledger, [*acts, ("L", two.keeper_process, pools.reap(two))]


# ---- beside the queue, and back


def ddmq_pools_due(*settles: str, keepers: int = 2) -> Made:
    """It failed and is due; keepers move it back, and workers take it."""
    world, ledger = make_world("one")
    hosts = two_hosts(world, ledger)
    failed = hosts[0].worker(3)
    failed.retry(taken(failed, ledger))
    failed.detach()
    world.moved_ns += 2 * S
    assert ledger.states() == ["deferred"]
    acts = workers("BC", ledger, *zip(hosts, settles, strict=False))
    for letter, pool in zip("KL", hosts[:keepers], strict=False):
        pool.keeper.touch()
        acts.append((letter, pool.keeper_process, pools.move_due(pool)))
    return world, ledger, acts


def ddmq_pools_brought_back(*settles: str, operators: int = 2) -> Made:
    """It is in errors/; operators bring it back, and workers take it."""
    world, ledger = make_world("one")
    hosts = two_hosts(world, ledger)
    failed = hosts[0].worker(3)
    claim = taken(failed, ledger)
    failed.reject(claim, "a reason")
    failed.detach()
    acts = workers("BC", ledger, *zip(hosts, settles, strict=False))
    for letter, pool in zip("OU", hosts[:operators], strict=False):
        queue = pool._opened(world.process(pool.pid + 5, pool.host))
        acts.append((letter, process_of(queue), pools.requeue(queue, claim.name)))
    return world, ledger, acts


def ddmq_pools_forward(*others: str) -> Made:
    """A hands it on to another queue, and may be killed; its keeper K gives back what it had, others take it."""
    world, ledger = make_world("one")
    cast.opened(world.process(1)).create_queue("n")
    one, two = two_hosts(world, ledger)
    a = begun(one)
    following = open_ddmq(pools.NEXT, pools.SETTINGS, system=process_of(a), host="one")
    acts: list[Act] = [("A", process_of(a), work(a, ledger, "forward", following=following))]
    acts += workers("BC", ledger, *((two, other) for other in others))
    return world, ledger, [*acts, ("K", one.keeper_process, pools.when_dead(one, a))]


def ddmq_pools_leaving(*others: str) -> Made:
    """A leaves with its message in hand, while its keeper touches."""
    world, ledger = make_world("one")
    one, two = two_hosts(world, ledger)
    a = one.worker(0)
    taken(a, ledger)
    world.moved_ns += int(TIMEOUT_S * 0.6) * S
    pools.beat(two)
    acts: list[Act] = [("A", process_of(a), pools.leave(a))]
    acts += workers("BC", ledger, *((two, other) for other in others))
    return world, ledger, [*acts, ("K", one.keeper_process, pools.touch(one))]


# ---- the list


def adds(setup: Callable[..., Made], *arguments: object, **options: object) -> None:
    """Register it; at its end a pool of another host recovers."""
    add(setup, *arguments, finish=pools.recover, **options)  # type: ignore[arg-type]


for _settle in SETTLES:
    adds(ddmq_pools_claims, _settle, "done")
    adds(ddmq_pools_claims, _settle, theirs="ack")
    adds(ddmq_pools_claims, _settle, theirs="purge")
    adds(ddmq_pools_died, _settle, dying="A")
    adds(ddmq_pools_died, _settle, "done", dying="A", is_long=True)
    adds(ddmq_pools_touched, _settle)
    adds(ddmq_pools_touched, _settle, "done", is_long=_settle == "release")
    adds(ddmq_pools_late, _settle, "done")
    adds(ddmq_pools_late, _settle, touches=True, is_long=_settle in ("retry", "reject"))
    adds(ddmq_pools_late, _settle, "done", touches=True, is_long=True)
    adds(ddmq_pools_fenced, _settle)
    adds(ddmq_pools_fenced, _settle, touches=True)
    adds(ddmq_pools_released, _settle)
adds(ddmq_pools_claims, "done", "done", "done", is_long=True)
adds(ddmq_pools_claims, "done", "done", messages=2)
adds(ddmq_pools_claims, "done", "done", network="nfs", losing="A")
adds(ddmq_pools_in_place, "done")
adds(ddmq_pools_in_place, "done", "done", is_long=True)
adds(ddmq_pools_died, "done", "done", dying="AK", is_long=True)
adds(ddmq_pools_began, "done")
adds(ddmq_pools_began, "release")
adds(ddmq_pools_began, "release", times=2)
adds(ddmq_pools_began, "release", "done", is_long=True)
adds(ddmq_pools_began, "done", seconds=1)
adds(ddmq_pools_began, "release", seconds=1)
adds(ddmq_pools_began, "release", times=2, seconds=1, is_long=True)
adds(ddmq_pools_began, keepers=2)
adds(ddmq_pools_began, "done", keepers=2, is_long=True)
adds(ddmq_pools_released, "done", keepers=2)
adds(ddmq_pools_released, "done", "done")
adds(ddmq_pools_released, "release", times=2)
adds(ddmq_pools_released, "done", died=2)
adds(ddmq_pools_released, "done", dying="K")
adds(ddmq_pools_dead_neighbour, "done", keepers=1)
adds(ddmq_pools_orphaned)
adds(ddmq_pools_orphaned, "done", is_long=True)
adds(ddmq_pools_mistaken, "done")
adds(ddmq_pools_mistaken, "release")
adds(ddmq_pools_touched_twice, "done")
adds(ddmq_pools_touched_twice, "retry", is_long=True)
adds(ddmq_pools_dead_neighbour, "done", is_long=True)
adds(ddmq_pools_late, "done", cleans=True)
adds(ddmq_pools_late, "done", "done", cleans=True, is_long=True)
adds(ddmq_pools_touched, "done", rounds=2)
adds(ddmq_pools_touched, "done", dying="K")
adds(ddmq_pools_fenced, "", dies=True)
adds(ddmq_pools_fenced, "", "release", dies=True)
adds(ddmq_pools_reaped, "done")
adds(ddmq_pools_reaped, keepers=2)
adds(ddmq_pools_reaped, keepers=2, dying="K")
adds(ddmq_pools_reaped, keepers=2, network="nfs", losing="K")
adds(ddmq_pools_touched, "done", network="nfs", losing="AK")
adds(ddmq_pools_reaped, "done", keepers=2, is_long=True)
adds(ddmq_pools_reaped, cleaners=1)
adds(ddmq_pools_reaped, "done", cleaners=1)
adds(ddmq_pools_reaped, died=2, keepers=2)
adds(ddmq_pools_reaped, "done", whole=True)
adds(ddmq_pools_skewed, "done")
adds(ddmq_pools_due, "done", keepers=1, dying="K")
adds(ddmq_pools_due, "done")
adds(ddmq_pools_due, "done", "done", is_long=True)
adds(ddmq_pools_brought_back, "done", operators=1)
adds(ddmq_pools_brought_back, "done")
adds(ddmq_pools_forward, dying="A")
adds(ddmq_pools_forward, "done", dying="A", is_long=True)
adds(ddmq_pools_leaving, is_long=True)
adds(ddmq_pools_leaving, "done", is_long=True)
