"""
scenarios_dirq - lockers, removers, adders, sweeps and the original on one dirq of either kind

A, B, C lock and settle; K, L sweep or put back; P, Q are the original (its own code, see
dirq_original); R, S add; M makes a directory; T is the time. An element is fresh, or old:
it has waited longer than a lock may last.

Long because: they are one list, each a world and those in it.
See also: scenarios, dirq_cast, dirq_ledger.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from tests.sim import dirq_cast as cast
from tests.sim.dirq_cast import KINDS, SCHEMA, SIMPLE, S, Taken, engine, make_world
from tests.sim.dirq_ledger import MAX_LOCK_S, MAX_TEMP_S, QUEUE, DirqLedger
from tests.sim.kernel import Process, World
from tests.sim.scenarios import Act, add

Made = tuple[World, DirqLedger, list[Act]]
FRESH, OLD = 0, 3600
SETTLES = ("remove", "unlock", "take out")


def one(
    kind: str, age_s: float = FRESH, network: str | None = None, *, links: bool = True
) -> tuple[World, DirqLedger, str]:
    """A world with one element, and its name; *links*: a directory has one for each that is in it (D14)."""
    world, ledger, (name,) = make_world(kind, b"one", age_s=age_s, network=network, counts_links=links)
    return world, ledger, name


def acting(world: World, letters: str, act: Callable[[Process], cast.Act], count: int = 1) -> list[Act]:
    """The first *count* of *letters*, each with a process of its own."""
    processes = [(letter, world.processes.get(ord(letter)) or world.process(ord(letter))) for letter in letters[:count]]
    return [(letter, process, act(process)) for letter, process in processes]


def lockers(
    world: World, ledger: DirqLedger, kind: str, name: str, settles: Sequence[str], *, fast: bool = False
) -> list[Act]:
    """As many as *settles*: each locks the element and settles it so."""
    acts: list[Act] = []
    for letter, settle in zip("ABC", settles, strict=False):
        acts += acting(world, letter, lambda by: cast.handle(engine(kind, by), ledger, name, settle, fast=fast))  # noqa: B023
    return acts


def sweeps(world: World, kind: str, count: int) -> list[Act]:
    """Reapers of ours."""
    return acting(world, "KL", lambda by: cast.sweep(engine(kind, by)), count)


def purges(world: World, ledger: DirqLedger, kind: str, count: int, *, breaks_fresh: bool = False) -> list[Act]:
    """The original's; where a lock is stale it may break a fresh one that was taken since it looked (D8)."""
    acts = acting(world, "PQ", lambda by: cast.their_purge(kind, by), count)
    if breaks_fresh:
        ledger.unfenced |= {process for _, process, _ in acts}
    return acts


# ---- who locks first


def dirq_lockers(
    kind: str, *settles: str, age: float = FRESH, fast: bool = False, network: str | None = None, links: bool = True
) -> Made:
    """As many as *settles* lock one element, and settle it."""
    world, ledger, name = one(kind, age, network, links=links)
    return world, ledger, lockers(world, ledger, kind, name, settles, fast=fast)


def dirq_lockers_and_purge(kind: str, *settles: str, fast: bool = False, others: int = 1) -> Made:
    """The same of an old element, while the original purges (D7)."""
    world, ledger, acts = dirq_lockers(kind, *settles, age=OLD, fast=fast)
    return world, ledger, acts + purges(world, ledger, kind, others)


def dirq_beside(kind: str, settle: str, theirs: str, *, fast: bool = False) -> Made:
    """One of ours and one of theirs."""
    world, ledger, name = one(kind)
    acts = lockers(world, ledger, kind, name, [settle], fast=fast)
    return world, ledger, acts + acting(world, "P", lambda by: cast.their_handle(kind, by, ledger, name, theirs))


# ---- stale locks, and who held them


def held(world: World, ledger: DirqLedger, kind: str, name: str, process: Process) -> tuple[cast.Engine, Taken]:
    """*process* has locked it, and longer ago than a lock may last."""
    queue = engine(kind, process)
    taken = cast.take(queue, ledger, name)
    assert taken
    world.moved_ns += (MAX_LOCK_S + 1) * S
    return queue, taken


def dirq_stale(kind: str, *settles: str, reapers: int = 1, theirs: int = 0, fast: bool = False) -> Made:
    """A holder was killed long ago; reapers break its lock, and others take it at once."""
    world, ledger, name = one(kind)
    dead = world.process(90)
    held(world, ledger, kind, name, dead)
    dead.has_crashed = True
    ledger.may_lock_aside = reapers + theirs > 1
    acts = lockers(world, ledger, kind, name, settles, fast=fast) + sweeps(world, kind, reapers)
    return world, ledger, acts + purges(world, ledger, kind, theirs, breaks_fresh=True)


def dirq_late(
    kind: str, settle: str, *others: str, reapers: int = 1, theirs: int = 0, network: str | None = None
) -> Made:
    """A has stood still for longer than a lock may last; it goes on while its lock is broken and others take it."""
    world, ledger, name = one(kind, FRESH, network)
    late = world.process(90)
    queue, taken = held(world, ledger, kind, name, late)
    ledger.unfenced.add(late)  # it looks whether it is held, and may be late all the same
    acts: list[Act] = [("A", late, lambda: cast.settle_taken(queue, ledger, taken, settle))]
    acts += [("BC"[number], *act[1:]) for number, act in enumerate(lockers(world, ledger, kind, name, others))]
    acts += sweeps(world, kind, reapers) + purges(world, ledger, kind, theirs, breaks_fresh=True)
    return world, ledger, acts


def dirq_fenced(kind: str, settle: str, other: str, *, network: str | None = None) -> Made:
    """A has stood still until its lock was broken and B had the next one; A and B settle (D6)."""
    world, ledger, name = one(kind, FRESH, network)
    queue, taken = held(world, ledger, kind, name, world.process(90))
    cast.sweep(engine(kind, world.process(91)))()
    b = engine(kind, world.process(66))
    its = cast.take(b, ledger, name)
    assert its
    return world, ledger, [
        ("A", world.processes[90], lambda: cast.settle_taken(queue, ledger, taken, settle)),
        ("B", world.processes[66], lambda: cast.settle_taken(b, ledger, its, other)),
    ]  # fmt: skip


def dirq_skewed(kind: str, *settles: str) -> Made:
    """The clock of the reaper's host is far ahead of the server's (D9)."""
    world, ledger, name = one(kind, FRESH, "nfs")
    acts = lockers(world, ledger, kind, name, settles) + sweeps(world, kind, 1)
    acts[-1][1].skew_ns = 2 * MAX_LOCK_S * S
    return world, ledger, acts


# ---- adding, and what is taken away under it


def adders(world: World, ledger: DirqLedger, kind: str, count: int = 1, **options: bool) -> list[Act]:
    """Of one element each; like forked children they have one last digit for their names (D2)."""
    return acting(
        world, "RS", lambda by: cast.add(engine(kind, by, 7), ledger, kind, b"of %c" % by.pid, **options), count
    )


def dirq_adding(
    kind: str, *, count: int = 1, reapers: int = 0, theirs: int = 0, takers: int = 0, network: str | None = None,
    may_fail: bool = False, durable: bool = False, links: bool = True,
) -> Made:  # fmt: skip
    """Elements are added while others sweep, purge (D1) and take what they see."""
    world, ledger, _ = make_world(kind, network=network, counts_links=links)
    acts = adders(world, ledger, kind, count, may_fail=may_fail, durable=durable)
    acts += acting(world, "ABC", lambda by: cast.handle_all(engine(kind, by), ledger), takers)
    if network and takers:
        # The reply is lost, and the element taken and removed before it is looked for: it is added once more.
        ledger.may_come_twice.add(b"of R")
    return world, ledger, acts + sweeps(world, kind, reapers) + purges(world, ledger, kind, theirs)


def dirq_they_add(kind: str, *, reapers: int = 1, takers: int = 0) -> Made:
    """The original adds while ours sweep: it never notices."""
    world, ledger, _ = make_world(kind)
    acts = acting(world, "P", lambda by: cast.their_add(kind, by, ledger, b"theirs"))
    acts += acting(world, "ABC", lambda by: cast.handle_all(engine(kind, by), ledger), takers)
    return world, ledger, acts + sweeps(world, kind, reapers)


def dirq_slow_adder(kind: str, *, reapers: int = 1, takers: int = 0) -> Made:
    """More time passes at any moment of an add than a temporary thing may last; reapers of ours find it."""
    world, ledger, _ = make_world(kind)
    acts = adders(world, ledger, kind) + acting(world, "T", lambda by: cast.wait(by, MAX_TEMP_S + 1))
    acts += acting(world, "ABC", lambda by: cast.handle_all(engine(kind, by), ledger), takers)
    return world, ledger, acts + sweeps(world, kind, reapers)


def dirq_emptied(kind: str, *, reapers: int = 0, theirs: int = 0) -> Made:
    """The intermediate directory into which somebody adds is empty, and not the last one any more (D10, D23)."""
    world, ledger, _ = make_world(kind)
    maker = world.process(2)
    acts = adders(world, ledger, kind)
    if kind == SIMPLE:
        acts[0][1].skew_ns = -3600 * S  # so that its directory comes first
        maker.mkdir(f"{QUEUE}/ffffffff")
    else:
        maker.mkdir(f"{QUEUE}/00000000")
        acts += acting(world, "M", lambda by: lambda: by.mkdir(f"{QUEUE}/00000001"))
    return world, ledger, acts + sweeps(world, kind, reapers) + purges(world, ledger, kind, theirs)


# ---- removing, and back from where it was taken out


def dirq_removing(kind: str, settle: str, *, reapers: int = 0, theirs: int = 0, late: bool = False) -> Made:
    """A holds it and settles it while others sweep and purge (D1), and B comes too late."""
    world, ledger, name = one(kind, OLD)
    acts = lockers(world, ledger, kind, name, [settle] + [settle] * late)
    return world, ledger, acts + sweeps(world, kind, reapers) + purges(world, ledger, kind, theirs)


def dirq_put_in(
    kind: str, *settles: str, keepers: int = 1, reapers: int = 0, leftover: bool = False, reused: bool = False
) -> Made:
    """What was taken out is put back by keepers, and taken again; the killed one that took it out left its lock."""
    world, ledger, name = one(kind)
    taker = world.process(90)
    queue = engine(kind, taker)
    taken = cast.take(queue, ledger, name)
    assert taken
    if leftover:
        taker.rename(queue.element_path(name), cast.kept(name))
    else:
        cast.settle_taken(queue, ledger, taken, "take out")
    taker.has_crashed = True
    ledger.settles(taker, taken.data)
    if reused:  # its name is that of another by now
        ledger.whole.add(cast.content_of(kind, b"two"))
        adder = world.process(91)
        source = f"{QUEUE}/{engine(kind, adder).add(cast.element(kind, b'two'))}"
        adder.rename(source, queue.element_path(name))
        ledger.was_added(b"two")
    world.moved_ns += (MAX_LOCK_S + 1) * S
    acts = acting(world, "KL", lambda by: cast.put_in(engine(kind, by), ledger, name), keepers)
    acts += [("BC"[number], *act[1:]) for number, act in enumerate(lockers(world, ledger, kind, name, settles))]
    return world, ledger, acts + acting(world, "O", lambda by: cast.sweep(engine(kind, by)), reapers)


def dirq_given_back(kind: str, settle: str) -> Made:
    """A takes it out, and a keeper puts it back as soon as it can, while B looks for it."""
    world, ledger, name = one(kind)
    acts = lockers(world, ledger, kind, name, ["take out", settle])
    return world, ledger, acts + acting(world, "K", lambda by: cast.put_in(engine(kind, by), ledger, name))


def dirq_looked_up(kind: str, *settles: str, reapers: int = 0) -> Made:
    """The element is moved to obsolete/ between a locker's look for it and the making of locked/ in it."""
    world, ledger, name = one(kind)
    for letter in "ABC":
        world.processes[ord(letter)] = cast.Walker(world, ord(letter), "one")
    acts = lockers(world, ledger, kind, name, settles)
    return world, ledger, acts + sweeps(world, kind, reapers)


# ---- the list


def adds(setup: Callable[..., Made], kind: str, *arguments: object, **options: object) -> None:
    """Register it; at its end one of that kind recovers."""
    add(setup, kind, *arguments, finish=partial(cast.recover, kind=kind), **options)  # type: ignore[arg-type]


for _kind in KINDS:
    for _settle in SETTLES:
        adds(dirq_lockers, _kind, _settle, _settle)
        adds(dirq_lockers, _kind, _settle, "remove", dying="AB")
        adds(dirq_lockers, _kind, _settle, "remove", fast=True, dying="AB")
        adds(dirq_lockers, _kind, _settle, "remove", network="nfs", losing="AB")
        adds(dirq_lockers, _kind, _settle, "remove", network="nfs", fast=True, losing="AB")
        adds(dirq_lockers_and_purge, _kind, _settle, "remove")
        adds(dirq_lockers_and_purge, _kind, _settle, "remove", fast=True, is_long=_kind == SCHEMA)
        adds(dirq_late, _kind, _settle, "remove")
        adds(dirq_late, _kind, _settle, "", is_long=_kind == SCHEMA)
        adds(dirq_fenced, _kind, _settle, "remove")
        adds(dirq_late, _kind, _settle, "remove", network="nfs", is_long=_settle != "remove" or _kind == SCHEMA)
        adds(dirq_late, _kind, _settle, "remove", reapers=0, theirs=1, is_long=_kind == SCHEMA)
        adds(dirq_removing, _kind, _settle, reapers=1, late=True)
        adds(dirq_removing, _kind, _settle, theirs=1, dying="A")
    adds(dirq_lockers, _kind, "unlock", "remove", "remove", age=OLD)
    adds(dirq_lockers, _kind, "unlock", "remove", "remove", age=OLD, fast=True, is_long=_kind == SIMPLE)
    adds(dirq_beside, _kind, "remove", "remove")
    adds(dirq_beside, _kind, "unlock", "remove")
    adds(dirq_beside, _kind, "remove", "unlock")
    adds(dirq_beside, _kind, "remove", "remove", fast=True)
    adds(dirq_beside, _kind, "remove", "remove", dying="A")
    adds(dirq_stale, _kind, "remove", "remove", is_long=_kind == SIMPLE)
    adds(dirq_stale, _kind, "", "", fast=True, is_long=_kind == SIMPLE)
    adds(dirq_stale, _kind, "remove", "remove", fast=True, is_long=_kind == SIMPLE)
    adds(dirq_stale, _kind, "", reapers=2, fast=True)
    adds(dirq_stale, _kind, "remove", reapers=2, is_long=True)
    adds(dirq_stale, _kind, "remove", reapers=2, fast=True, is_long=True)
    adds(dirq_stale, _kind, "remove", "remove", reapers=2, fast=True, is_long=True)
    adds(dirq_stale, _kind, "remove", theirs=1, is_long=_kind == SIMPLE)
    adds(dirq_stale, _kind, "remove", theirs=1, fast=True, is_long=_kind == SIMPLE)
    adds(dirq_stale, _kind, "remove", reapers=0, theirs=2)
    adds(dirq_stale, _kind, "remove", dying="K")
    adds(dirq_stale, _kind, "remove", reapers=2, dying="KL", is_long=True)
    adds(dirq_skewed, _kind, "unlock", "remove")
    adds(dirq_adding, _kind, count=2)
    adds(dirq_adding, _kind, theirs=1)
    adds(dirq_adding, _kind, theirs=2, is_long=_kind == SCHEMA)
    adds(dirq_adding, _kind, reapers=1, takers=1)
    adds(dirq_adding, _kind, takers=1, dying="R")
    adds(dirq_adding, _kind, durable=True, dying="R")
    adds(dirq_adding, _kind, network="nfs", may_fail=True, losing="R")
    adds(dirq_adding, _kind, network="nfs", takers=1, may_fail=True, losing="R")
    adds(dirq_they_add, _kind, takers=1)
    adds(dirq_slow_adder, _kind)
    adds(dirq_slow_adder, _kind, takers=1, is_long=True)
    adds(dirq_slow_adder, _kind, reapers=2, is_long=True)
    adds(dirq_emptied, _kind, reapers=1)
    adds(dirq_emptied, _kind, theirs=1)
    adds(dirq_put_in, _kind, "remove")
    adds(dirq_put_in, _kind, "remove", leftover=True, reapers=1)
    adds(dirq_put_in, _kind, "remove", keepers=2, leftover=True)
    adds(dirq_put_in, _kind, keepers=2, dying="KL")
    adds(dirq_put_in, _kind, "remove", reused=True)
    adds(dirq_given_back, _kind, "remove")
    adds(dirq_given_back, _kind, "remove", dying="A", is_long=_kind == SIMPLE)
adds(dirq_lockers, SCHEMA, "remove", "unlock", "remove", links=False)
adds(dirq_adding, SCHEMA, count=2, takers=1, links=False)
adds(dirq_adding, SCHEMA, reapers=1, takers=1, links=False)
adds(dirq_looked_up, SCHEMA, "remove", "remove")
adds(dirq_looked_up, SCHEMA, "remove", "remove", "remove", is_long=True)
adds(dirq_looked_up, SCHEMA, "remove", "unlock", reapers=1)
