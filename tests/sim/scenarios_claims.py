"""
scenarios_claims - claims and settles while others release, requeue, and lay files in by hand

Everybody may be taken for dead at any moment by a keeper of another host: some time
passes without a beat of its master, and it does so between any two calls.

Long because: they are one list, each a world and those in it.
See also: scenarios, SPOOL.md sections 6, 7, 9 and 10.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress

from tests.sim.cast import NEXT, QUEUE, Pool, make_world, move_due, pass_time, put, release, user, work
from tests.sim.kernel import Process, World
from tests.sim.ledger import Ledger
from tests.sim.scenarios import SETTLES, Act, add
from workers.message import Claim
from workers.queues.spool import Spool

Made = tuple[World, Ledger, list[Act]]
NAME = "r"
CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL


def waiting(*bodies: bytes, network: str | None = None) -> tuple[World, Ledger]:
    """A world with messages that wait, the first one called NAME."""
    world, ledger = make_world(QUEUE, NEXT, network=network)
    queue = user(world)
    for number, body in enumerate(bodies or (b"one",)):
        queue.put(body, f"{NAME}{number or ''}", durable=False)
        ledger.was_put(body)
    return world, ledger


def two_hosts(world: World) -> tuple[Pool, Pool]:
    """One pool on each of two."""
    return Pool(world, "one", 100), Pool(world, "two", 200)


def two_hosts_with_a_claim(world: World) -> tuple[Pool, Pool, Spool, Spool, Claim]:
    """A pool with a worker on each of two; the first worker has taken what waits."""
    one, two = two_hosts(world)
    a, b = one.worker(), two.worker()
    claim = a.claim()
    assert claim is not None
    return one, two, a, b, claim


def died_with(pool: Pool) -> Spool:
    """A worker of *pool* that took what waits, and was killed; its master has taken it off the board."""
    spool = pool.worker()
    assert spool.claim() is not None
    pool.bury()
    process(spool).has_crashed = True
    return spool


def process(spool: Spool) -> Process:
    """Whose queue it is."""
    assert isinstance(spool.system, Process)
    return spool.system


# ---- the keeper of another host takes a worker for dead


def taken_for_dead(settle: str, *, network: str | None = None, times: int = 1, stays: bool = True) -> Made:
    """A claims and settles, K releases at any moment what A has, B takes what waits."""
    world, ledger = waiting(network=network)
    one, two = two_hosts(world)
    following = user(world, NEXT, pid=2)
    a, b = one.worker(), two.worker()
    return world, ledger, [
        ("A", process(a), work(a, ledger, settle, following=following, times=times)),
        ("B", process(b), work(b, ledger, stays=stays)),
        ("K", two.keeper_process, release(two, one, after_s=5.0)),
    ]  # fmt: skip


def late_settle(settle: str, *, keepers: int = 1, comes_back: bool = False) -> Made:
    """A holds it; keepers of other hosts take A for dead; B settles it too, in the same way; A may come back."""
    world, ledger = waiting()
    one, two, three = *two_hosts(world), Pool(world, "three", 300)
    following = user(world, NEXT, pid=2)
    a, b = one.worker(), two.worker()
    acts: list[Act] = [
        ("A", process(a), work(a, ledger, settle, following=following, holds=True, times=1 + comes_back)),
        ("B", process(b), work(b, ledger, settle, following=following, stays=True)),
        ("K", two.keeper_process, release(two, one)),
    ]
    if keepers > 1:
        acts.append(("L", three.keeper_process, release(three, one)))
    if comes_back:
        acts.append(("T", one.keeper_process, one.keeper.lease.beat))
    pass_time(world, two, three)
    return world, ledger, acts


def dead_owner(settle: str) -> Made:
    """Two keepers release what a killed worker held, B takes it."""
    world, ledger = waiting()
    one, two, three = *two_hosts(world), Pool(world, "three", 300)
    died_with(one)
    b = two.worker()
    pass_time(world, two, three)
    return world, ledger, [
        ("K", two.keeper_process, release(two, one)),
        ("L", three.keeper_process, release(three, one)),
        ("B", process(b), work(b, ledger, settle, times=2, following=user(world, NEXT, pid=2))),
    ]  # fmt: skip


def leftover(settle: str) -> Made:
    """What A does not know of lies in its directory; it gives it back, while a keeper takes A for dead."""
    world, ledger = waiting()
    one, two, a, b, claim = two_hosts_with_a_claim(world)
    a.settled(claim)
    pass_time(world, two)
    return world, ledger, [
        ("A", process(a), work(a, ledger)),
        ("B", process(b), work(b, ledger, settle)),
        ("K", two.keeper_process, release(two, one)),
    ]  # fmt: skip


# ---- equal names


def name_twice(settle: str) -> Made:
    """A second report.csv comes, while the first one is settled or given to another who settles it in the same way."""
    world, ledger = waiting()
    one, two = two_hosts(world)
    following, producer = user(world, NEXT, pid=2), user(world, pid=3)
    a, b = one.worker(), two.worker()
    settling = work(a, ledger, settle, following=following, holds=True)
    pass_time(world, two)
    return world, ledger, [
        ("A", process(a), settling),
        ("B", process(b), work(b, ledger, settle, following=following, stays=True)),
        ("K", two.keeper_process, release(two, one)),
        ("P", process(producer), put(producer, ledger, b"two", NAME)),
    ]  # fmt: skip


def left_by_handlers() -> Made:
    """Two handlers leave out.txt beside their input, and a keeper takes one of them for dead."""
    world, ledger = waiting(b"one", b"two")
    one, two = two_hosts(world)
    a, b = one.worker(), two.worker()
    return world, ledger, [
        ("A", process(a), work(a, ledger, handle=_leaves_out_txt(a, b"out of A"))),
        ("B", process(b), work(b, ledger, handle=_leaves_out_txt(b, b"out of B"))),
        ("K", two.keeper_process, release(two, one, after_s=5.0)),
    ]  # fmt: skip


def _leaves_out_txt(spool: Spool, body: bytes) -> Callable[[Claim], None]:
    def handle(claim: Claim) -> None:
        with suppress(FileNotFoundError):  # it was taken for dead, and its directory removed
            spool.system.close(spool.system.open(f"{os.path.dirname(claim.path)}/out.txt", CREATE))

    return handle


# ---- deferred, and brought back


def retried(settle: str) -> Made:
    """A message is due; two keepers move it, while A takes it and B too, and may defer it again."""
    world, ledger = waiting()
    one, two, a, b, claim = two_hosts_with_a_claim(world)
    a.retry(claim, 0.0)
    return world, ledger, [
        ("A", process(a), work(a, ledger, settle, stays=True)),
        ("B", process(b), work(b, ledger, settle, stays=True)),
        ("K", one.keeper_process, move_due(one.keeper)),
        ("L", two.keeper_process, move_due(two.keeper)),
    ]  # fmt: skip


def brought_back(how: str, settle: str, *, by_requeue: bool = True) -> Made:
    """O lays a rejected file, or a copy or a link of it, into incoming/ by hand, while another requeues it (H39)."""
    world, ledger = waiting()
    one, two, a, b, claim = two_hosts_with_a_claim(world)
    a.reject(claim, "a reason")
    ledger.may_have_copies, ledger.may_come_back = how != "move", True
    operator, other = user(world, pid=2), user(world, pid=3)
    acts: list[Act] = [
        ("A", process(a), work(a, ledger, settle, stays=True)),
        ("B", process(b), work(b, ledger, settle, stays=True)),
        ("O", process(operator), _bring(operator, how, operator.directory.errors)),
    ]
    if by_requeue:
        acts.append(("R", process(other), lambda: other.requeue(NAME)))
    else:
        acts.append(("K", two.keeper_process, release(two, one, after_s=5.0)))
    return world, ledger, acts


def _bring(spool: Spool, how: str, source: str, *, is_deferred: bool = False) -> Callable[[], None]:
    """By hand: what lies in *source* comes into incoming/, without its due time, and never over another."""
    system = process(spool)

    def act() -> None:
        for file in system.listdir(source):
            path, name = f"{source}/{file}", file.partition(".")[2] if is_deferred else file
            if file.endswith(".meta"):
                continue
            with suppress(FileNotFoundError, FileExistsError):
                if how == "link":
                    system.link(path, f"{spool.directory.incoming}/{name}")
                elif how == "move":
                    system.rename_noreplace(path, f"{spool.directory.incoming}/{name}")
                else:
                    fd = system.open(f"/{file}", CREATE)  # a corrected copy
                    system.write(fd, b"corrected")
                    system.close(fd)
                    system.rename_noreplace(f"/{file}", f"{spool.directory.incoming}/{name}")

    return act


def copied_from_deferred(how: str) -> Made:
    """O lays a copy or a link of a deferred message into incoming/, while it becomes due (H40)."""
    world, ledger = waiting()
    one, _, a, b, claim = two_hosts_with_a_claim(world)
    a.retry(claim, 0.0)
    ledger.may_have_copies = True
    operator = user(world, pid=2)
    return world, ledger, [
        ("B", process(b), work(b, ledger, times=2, stays=True)),
        ("K", one.keeper_process, move_due(one.keeper)),
        ("O", process(operator), _bring(operator, how, operator.directory.deferred, is_deferred=True)),
    ]  # fmt: skip


def copied_from_the_dead(how: str, settle: str, *, keepers: int = 1) -> Made:
    """O lays a copy or a link of a dead worker's message into incoming/, while keepers release it (H40)."""
    world, ledger = waiting()
    one, two, three = *two_hosts(world), Pool(world, "three", 300)
    place = died_with(one)._owner_path
    ledger.may_have_copies = True
    b, operator = two.worker(), user(world, pid=2)
    keeping = (("K", two), ("L", three))[:keepers]
    pass_time(world, two, three)

    def act() -> None:
        with suppress(FileNotFoundError):
            _bring(operator, how, place)()

    return world, ledger, [
        ("B", process(b), work(b, ledger, settle, times=2, stays=True)),
        ("O", process(operator), act),
        *[(name, pool.keeper_process, release(pool, one, cause="stopped")) for name, pool in keeping],
    ]  # fmt: skip


# ---- forward


def forwarded(settle: str) -> Made:
    """A hands it on; C takes from the next queue; B has it, too, when a keeper took A for dead."""
    world, ledger = waiting()
    one, two = two_hosts(world)
    following = user(world, NEXT, pid=2)
    a, b = one.worker(), two.worker()
    ledger.may_come_back = True
    three = Pool(world, "three", 300, path=NEXT)
    c = three.worker()
    settling = work(a, ledger, settle, following=following, holds=True)
    pass_time(world, two, three)
    return world, ledger, [
        ("A", process(a), settling),
        ("B", process(b), work(b, ledger, settle, following=following, stays=True)),
        ("C", process(c), work(c, ledger, stays=True)),
        ("K", two.keeper_process, release(two, one)),
    ]  # fmt: skip


BOTH = (QUEUE, NEXT)
for _settle in SETTLES:
    _queues = BOTH if "forward" in _settle else (QUEUE,)
    add(taken_for_dead, _settle, queues=_queues, is_long=_settle != "done")
    add(taken_for_dead, _settle, queues=_queues, dying="AK", is_long=True)
    add(taken_for_dead, _settle, queues=_queues, times=2, stays=False, is_long=True)
    add(late_settle, _settle, queues=_queues)
    add(late_settle, _settle, queues=_queues, keepers=2, is_long=True)
    add(late_settle, _settle, queues=_queues, dying="ABK", crashes=2, is_long=True)
    add(late_settle, _settle, queues=_queues, comes_back=True, is_long=True)
    add(name_twice, _settle, queues=_queues)
    add(name_twice, _settle, queues=_queues, dying="ABKP", is_long=True)
for _settle in ("done", "retry", "release"):
    add(leftover, _settle, is_long=_settle == "retry")
    add(leftover, _settle, dying="ABK", is_long=True)
    add(retried, _settle, is_long=_settle == "release")
    add(dead_owner, _settle, is_long=_settle == "release")
    add(dead_owner, _settle, dying="BKL", is_long=True)
for _how in ("copy", "link", "move"):
    add(brought_back, _how, "reject", is_long=_how == "link")
    add(brought_back, _how, "done", by_requeue=False, is_long=True)
    add(brought_back, _how, "reject", dying="ABO", crashes=2, is_long=True)
for _how in ("copy", "link"):
    add(copied_from_deferred, _how)
    add(copied_from_the_dead, _how, "reject")
    add(copied_from_the_dead, _how, "done", keepers=2, is_long=True)
add(left_by_handlers, is_long=True)
for _settle in ("forward", "forward anew"):
    add(forwarded, _settle, queues=BOTH)
    add(forwarded, _settle, queues=BOTH, dying="A", is_long=True)
