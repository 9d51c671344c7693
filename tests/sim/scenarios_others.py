"""
scenarios_others - a network that loses replies, a pause, a feeder, operators that look, programs of another kind

See also: scenarios, SPOOL.md sections 11 to 13, workers.queues.feeder.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from tests.sim.cast import NEXT, QUEUE, Pool, keep, make_world, pass_time, recover, release, user, work
from tests.sim.kernel import Pipe, Process, World
from tests.sim.ledger import Ledger
from tests.sim.scenarios import SETTLES, Act, add
from tests.sim.scenarios_claims import Made, process, taken_for_dead, two_hosts, waiting
from workers.board import Q
from workers.queues.base import POLL_S
from workers.queues.feeder import Feeder, Feeding
from workers.queues.scan import Incoming

# ---- a network


def lost_replies(settle: str, *, times: int = 2) -> Made:
    """A reply of A is lost, or a call of it fails; B takes too."""
    world, ledger = waiting(network="nfs")
    following = user(world, NEXT, pid=2)
    one, two = two_hosts(world)
    a, b = one.worker(), two.worker()
    return world, ledger, [
        ("A", process(a), work(a, ledger, settle, times=times, following=following)),
        ("B", process(b), work(b, ledger, stays=True)),
    ]  # fmt: skip


def lost_release(settle: str, *, keepers: int = 1) -> Made:
    """A reply to a keeper that releases is lost, or one to A, who settles late."""
    world, ledger = waiting(network="nfs")
    one, two, three = *two_hosts(world), Pool(world, "three", 300)
    following = user(world, NEXT, pid=2)
    a, b = one.worker(), two.worker()
    settling = work(a, ledger, settle, holds=True, following=following)
    pass_time(world, two, three)
    return world, ledger, [
        ("A", process(a), settling),
        ("B", process(b), work(b, ledger, settle, following=following, stays=True)),
        *[(name, pool.keeper_process, release(pool, one)) for name, pool in (("K", two), ("L", three))[:keepers]],
    ]  # fmt: skip


# ---- a pause


def paused(*, workers: int = 2) -> Made:
    """Somebody makes PAUSED while all claim; after the keeper's round at most one claim of a worker slips through."""
    world, ledger = waiting(b"one", b"two", b"three")
    one = Pool(world, "one", 100)
    operator = user(world, pid=2)
    acts: list[Act] = [
        ("O", process(operator), operator.pause),
        ("K", one.keeper_process, keep(one.keeper)),
    ]
    for index in range(workers):
        spool = one.worker(index)
        acts.append(("AB"[index], process(spool), work(spool, ledger, times=2, handle=_slips(one, ledger), stays=True)))
    return world, ledger, acts


def _slips(pool: Pool, ledger: Ledger) -> Callable[[object], None]:
    slipped = 0

    def handle(claim: object) -> None:
        nonlocal slipped
        slipped += pool.board.queues[0].words[Q.PAUSED]
        if slipped > 1:
            ledger.is_wrong("two claims of one worker have slipped through a pause")

    return handle


def pause_ends(world: World, ledger: Ledger) -> None:
    """It is over, and nothing is lost."""
    user(world, pid=80_000).resume()
    recover(world, ledger)


# ---- a feeder


def fed(*, messages: int = 1, steps: int = 4) -> Made:
    """A feeder feeds two workers by names that are hints only."""
    world, ledger = waiting(*(b"%d" % number for number in range(messages)))
    one = Pool(world, "one", 100)
    world.pipes.append(pipe := Pipe())
    system = world.process(120, "one")
    ends = system.hold(pipe)
    feeder = Feeder(
        Feeding("q", Incoming(f"{QUEUE}/incoming", system), "fifo", one.board, 0, ends, ends, lambda: None, POLL_S),
        system,
    )

    def feed() -> None:
        for _ in range(steps):
            with suppress(OSError):
                feeder.step()

    acts: list[Act] = [("F", system, feed)]
    for index in range(2):
        spool = one.worker(index, pipe=pipe)
        acts.append(("AB"[index], process(spool), work(spool, ledger, times=2, stays=True)))
    return world, ledger, acts


# ---- operators look


def looked_at(settle: str) -> Made:
    """An operator lists, shows and counts while messages move."""
    world, ledger = waiting()
    one = Pool(world, "one", 100)
    a, operator = one.worker(), user(world, pid=2)

    def look() -> None:
        operator.depth()
        tuple(operator.list())
        operator.show("r")

    return world, ledger, [("A", process(a), work(a, ledger, settle)), ("O", process(operator), look)]


# ---- programs that claim without a directory of their own


def foreign(settle: str, *, keepers: int = 2) -> Made:
    """A filer program is slow, two keepers judge its claim by age, our worker takes too (H9)."""
    world, ledger = make_world(QUEUE, NEXT)
    queue = user(world)
    queue.put(b"one", durable=False)
    ledger.was_put(b"one")
    one, two = two_hosts(world)
    b = one.worker()
    filer = world.process(500, "filer")
    ledger.foreign.add(filer)
    acts: list[Act] = [
        ("F", filer, _files(filer, ledger, settle)),
        *[(name, pool.keeper_process, _sweeps(pool)) for name, pool in (("K", one), ("L", two))[:keepers]],
    ]
    if settle != "commit" or keepers > 1:
        acts.append(("B", process(b), work(b, ledger, stays=True)))
    return world, ledger, acts


def _sweeps(pool: Pool) -> Callable[[], None]:
    def act() -> None:
        pool.keeper_process.advance(101.0)
        keep(pool.keeper)()

    return act


def _files(system: Process, ledger: Ledger, settle: str) -> Callable[[], None]:
    def act() -> None:
        for file in system.listdir(f"{QUEUE}/incoming"):
            with suppress(FileNotFoundError):
                system.rename(f"{QUEUE}/incoming/{file}", f"{QUEUE}/pending/{file}")
                if settle == "done":
                    system.unlink(f"{QUEUE}/pending/{file}")
                elif settle == "reject":
                    system.rename(f"{QUEUE}/pending/{file}", f"{QUEUE}/errors/{file}")
                else:  # its commit into the next queue
                    system.rename(f"{QUEUE}/pending/{file}", f"{NEXT}/tmp/{file}")
                    system.rename(f"{NEXT}/tmp/{file}", f"{NEXT}/incoming/{file}")

    return act


for _settle in SETTLES:
    _queues = (QUEUE, NEXT) if "forward" in _settle else (QUEUE,)
    add(lost_replies, _settle, losing="A", queues=_queues, times=1, is_long=_settle not in ("done", "retry", "forward"))
    add(lost_replies, _settle, losing="AB", faults=2, queues=_queues, is_long=True)
    add(lost_replies, _settle, losing="A", dying="AB", queues=_queues, is_long=True)
    add(lost_release, _settle, losing="A", queues=_queues, is_long=True)
    add(lost_release, _settle, losing="AK", queues=_queues, is_long=True)
    add(lost_release, _settle, losing="ABK", faults=2, queues=_queues, is_long=True)
    add(lost_release, _settle, losing="AK", dying="AK", keepers=2, queues=_queues, is_long=True)
    add(taken_for_dead, _settle, network="nfs", losing="AK", queues=_queues, is_long=True)
add(paused, workers=1, finish=pause_ends)
add(paused, workers=2, finish=pause_ends, is_long=True)
add(fed, dying="A")
add(fed, messages=2, steps=6, dying="AF", is_long=True)
for _settle in ("done", "retry", "reject"):
    add(looked_at, _settle, is_long=_settle == "reject")
for _settle in ("done", "reject", "commit"):
    add(foreign, _settle, keepers=1, dying="F", queues=(QUEUE, NEXT), is_long=_settle != "commit")
    add(foreign, _settle, keepers=2, dying="F", queues=(QUEUE, NEXT), is_long=True)
