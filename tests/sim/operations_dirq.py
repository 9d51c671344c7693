"""
operations_dirq - what the engines of both dirq kinds do, ready to be tried with a call that fails

Each operation is tried on a queue with one element, fresh or left over by somebody who
died. After it: what it said is so; tried again it gets through; one removal was answered
"removed"; what it had begun is undone, or found by a sweep.

Long because: each operation is a few lines, and there are many.
See also: every_call (the loop), dirq_cast, dirq_ledger, operations (the same of a spool).
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from tests.sim import dirq_cast as cast
from tests.sim.dirq_cast import S, engine, make_world
from tests.sim.dirq_ledger import MAX_LOCK_S, QUEUE, body
from tests.sim.every_call import LOST, STAY, Counts, Kernel, Operation, Stage, Try, fail_every_call
from tests.sim.kernel import OTHERS, STRAIGHT, Crash, Process

BODY, NEW = b"body", b"new"
Raised = BaseException | None


class DirqStage(Stage):
    """A fresh world with a queue of *kind* that holds one element, called *name*."""

    def __init__(self, kind: str, network: str | None, *bodies: bytes) -> None:
        self.kind = kind
        self.world, self.ledger, self.names = make_world(kind, *bodies, network=network)  # type: ignore[assignment]
        self.kernel = Kernel()
        self.paths = (QUEUE,)
        self.answers: list[Any] = []  # what the operation said, when it said something
        self.process = self.world.process(100)
        self.queue = engine(kind, self.process)

    def recover(self) -> None:
        """See Stage.recover."""
        cast.recover(self.world, self.ledger, self.kind)  # type: ignore[arg-type]

    def another(self) -> cast.Engine:
        """The queue as somebody else has it."""
        return engine(self.kind, self.world.process(200 + len(self.world.processes)))

    def bodies(self) -> list[bytes]:
        """Of all elements that are in the queue."""
        disk, queue = self.world.disk, self.another()
        return sorted(body(disk.inode(f"{QUEUE}/{name}")) for one in queue.directories() for name in queue.names(one))

    def is_locked(self, name: str) -> bool:
        """Whether the element is locked, by whomever."""
        return self.another().found_lock(name) is not None

    def litter(self) -> list[str]:
        """What is in the queue and is neither an element nor its lock."""
        found = [f"{path}/{name}" for path, one in self.world.disk.directories.items() for name in one.entries]
        ours = [path for path in found if path.startswith(f"{QUEUE}/") and path.count("/") == 3]
        return [path for path in ours if path.endswith(".tmp") or "/temporary/" in path or "/obsolete/" in path]

    def is_undone(self) -> bool:
        """Whether what failed could be undone: nothing went on failing, and no reply was lost."""
        fault = self.kernel.fault
        return fault is None or fault.how not in (STAY, LOST)


def tried(
    stage: DirqStage, act: Callable[[], object], check: Callable[[Raised], object], meets: Callable[[], object] | None
) -> Try:
    """An operation of the stage's own engine, what it answers remembered."""
    return Try(
        stage.process, lambda: stage.answers.append(act()), check, may_raise=(OSError,), meets=meets, minds_mount=False
    )


def held(stage: DirqStage) -> str:
    """The stage's own process has locked the element; its name."""
    (name,) = stage.names
    taken = cast.take(stage.queue, stage.ledger, name)  # type: ignore[arg-type]
    assert taken
    stage.ledger.settles(stage.process, taken.data)  # type: ignore[attr-defined]
    return name


def died_with(stage: DirqStage) -> str:
    """Another had locked it, and died longer ago than a lock may last; the element's name."""
    other = stage.another()
    (name,) = stage.names
    assert cast.take(other, stage.ledger, name)  # type: ignore[arg-type]
    assert isinstance(other.system, Process)
    other.system.has_crashed = True
    stage.later(MAX_LOCK_S + 1)
    return name


# ---- the operations


def add(*, durable: bool) -> Operation:
    """One element more, or none; tried again it is there, and without a lost reply once."""

    def operation(stage: Stage) -> Try:
        assert isinstance(stage, DirqStage)
        ledger: Any = stage.ledger
        ledger.whole.add(cast.content_of(stage.kind, NEW))

        def act() -> object:
            name = stage.queue.add(cast.element(stage.kind, NEW), durable=durable)
            ledger.was_added(NEW)
            return name

        def check(raised: Raised) -> None:
            found = stage.bodies().count(NEW)
            if raised is None:
                assert found == 1
            else:
                is_in = durable or not stage.is_undone()  # its last wait for the disk failed, or its reply was lost
                assert found <= is_in, "an add that failed has left an element"
                if found:
                    ledger.may_come_twice.add(NEW)
                act()
                assert stage.bodies().count(NEW) == found + 1
            may_litter = stage.may_litter() or has_failed(stage, "rmdir") or has_failed(stage, "mkdir")
            assert may_litter or not stage.litter(), stage.litter()

        return tried(stage, act, check, cast.sweep(stage.another()))

    return operation


def lock(*, fast: bool) -> Operation:
    """Locked by us or not at all; whoever may have it, the next one gets it when it is free."""

    def operation(stage: Stage) -> Try:
        assert isinstance(stage, DirqStage)
        (name,) = stage.names

        def act() -> object:
            taken = stage.queue.open_locked(name) if fast else stage.queue.lock(name)
            return taken[0] if isinstance(taken, tuple) and fast else taken

        def check(raised: Raised) -> None:
            said = stage.answers[-1] if stage.answers else getattr(raised, "lock", None)
            if said is not None:
                assert stage.queue.is_held(said)
                return
            if stage.is_locked(name):
                met = stage.kernel.fault is not None and stage.kernel.fault.how == "is late"
                assert met or not stage.is_undone() or stage.may_litter() or has_failed(stage, "rmdir")
                stage.later(MAX_LOCK_S + 1)
                cast.sweep(stage.another())()
            if stage.bodies():
                assert act() is not None

        return tried(stage, act, check, cast.handle(stage.another(), stage.ledger, name))  # type: ignore[arg-type]

    return operation


def unlock(stage: Stage) -> Try:
    """The lock is gone, and so it stays."""
    assert isinstance(stage, DirqStage)
    name = held(stage)

    def check(raised: Raised) -> None:
        if raised is not None:
            stage.queue.unlock(name)
        assert not stage.is_locked(name)

    return tried(stage, lambda: stage.queue.unlock(name), check, None)


def remove(stage: Stage) -> Try:
    """Gone, and told so once."""
    assert isinstance(stage, DirqStage)
    name = held(stage)
    ledger: Any = stage.ledger

    def act() -> object:
        if is_removed := stage.queue.remove(name):
            ledger.was_removed(BODY)
        return is_removed

    def check(raised: Raised) -> None:
        if raised is not None and stage.is_undone():
            assert stage.bodies() == [BODY], "it was removed, and that was not said"
        if stage.bodies():
            assert raised is not None or has_met(stage, errno.ENOENT), "it was said to be gone, and is there"
            assert act() is True
        assert stage.bodies() == []

    return tried(stage, act, check, None)


def has_failed(stage: DirqStage, call: str) -> bool:
    """Whether such a call has."""
    return any(made.name == call for made in stage.kernel.failed)


def has_met(stage: DirqStage, code: int) -> bool:
    """Whether that was the errno of the call that failed."""
    return stage.kernel.fault is not None and stage.kernel.fault.code == code


def take_out(stage: Stage) -> Try:
    """In the queue or in its new place."""
    assert isinstance(stage, DirqStage)
    name = held(stage)
    target = cast.kept(name)

    def check(raised: Raised) -> None:
        if raised is None:
            assert stage.answers == [True] or has_met(stage, errno.ENOENT)
        if stage.bodies():
            assert stage.queue.take_out(name, target)
        assert stage.bodies() == []
        assert body(stage.world.disk.inode(target)) == BODY

    return tried(stage, lambda: stage.queue.take_out(name, target), check, None)


def put_in(stage: Stage) -> Try:
    """Back in the queue, once, and nobody holds it."""
    assert isinstance(stage, DirqStage)
    name = held(stage)
    source = cast.kept(name)
    assert stage.queue.take_out(name, source)

    def check(raised: Raised) -> None:
        if stage.bodies() != [BODY]:
            assert raised is not None or has_met(stage, errno.ENOENT)
            assert stage.queue.put_in(source, name)
        assert stage.bodies() == [BODY]
        again = stage.another().put_in(source, name)
        # On a network filesystem it is told as done: what is gone from there and is here may be its own, repeated.
        assert again in (None, name)
        assert stage.bodies() == [BODY]
        if raised is None and stage.answers[0] is not None:
            assert stage.world.disk.found(f"{QUEUE}/{stage.answers[0]}")

    return tried(stage, lambda: stage.queue.put_in(source, name), check, lambda: stage.another().put_in(source, name))


def break_lock(stage: Stage) -> Try:
    """Not locked any more, whoever is told so."""
    assert isinstance(stage, DirqStage)
    name = died_with(stage)
    limit_ns = stage.world.disk.now_ns() - MAX_LOCK_S * S

    def broken(queue: cast.Engine) -> bool:
        return queue.break_lock(name, lambda lock: lock.at_ns < limit_ns)

    def check(raised: Raised) -> None:
        if stage.is_locked(name):
            assert broken(stage.queue)
        assert not stage.is_locked(name)

    return tried(stage, lambda: broken(stage.queue), check, lambda: broken(stage.another()))


def touch(stage: Stage) -> Try:
    """Nobody takes it for stale."""
    assert isinstance(stage, DirqStage)
    name = held(stage)
    stage.later(MAX_LOCK_S - 1)

    def check(raised: Raised) -> None:
        if raised is not None:
            stage.queue.touch(name)
        stage.later(2)
        cast.sweep(stage.another())()
        assert stage.is_locked(name)

    return tried(stage, lambda: stage.queue.touch(name), check, None)


class Killer:
    """A scheduler that ends a process before its call number *nth*."""

    def __init__(self, nth: int) -> None:
        self.nth, self.count = nth, 0

    def call(self, process: Process, name: str, arguments: tuple[Any, ...], do: Callable[[], Any]) -> Any:
        """See Scheduler."""
        self.count += name not in OTHERS
        if self.count == self.nth:
            process.has_crashed = True
            raise Crash
        return do()


def leave_all_kinds(stage: DirqStage) -> None:
    """Somebody is killed before the last call of an add, a removal and a taking out, and before the one before it."""
    ledger: Any = stage.ledger
    world = stage.world

    def live(verb: str, nth: int) -> int:
        queue, data = stage.another(), b"%s %d" % (verb.encode(), nth)
        act = cast.add(queue, ledger, stage.kind, data)
        if verb != "add":
            act = cast.handle(queue, ledger, queue.add(cast.element(stage.kind, data)), verb)
        killer = world.scheduler = Killer(nth)
        with suppress(Crash):
            act()
        world.scheduler = STRAIGHT
        return killer.count

    for verb in ("add", "remove", "take out"):
        last = live(verb, -1)
        for nth in (last, last - 1):
            live(verb, nth)


def sweep(stage: Stage) -> Try:
    """What is old is gone: what adders, removers, takers and a holder left who were killed."""
    assert isinstance(stage, DirqStage)
    leave_all_kinds(stage)
    name = died_with(stage)
    act = cast.sweep(stage.queue, is_loud=True)

    def check(raised: Raised) -> None:
        for _ in range(2 * (raised is not None or stage.kernel.has_come)):
            act()  # what was set aside by it, or made meanwhile, is not old before the next
            stage.later(MAX_LOCK_S + 1)
        act()
        assert not stage.is_locked(name)
        assert not stage.litter(), stage.litter()

    return tried(stage, act, check, cast.sweep(stage.another()))


def look(verb: Callable[[cast.Engine], object]) -> Operation:
    """What is only read."""

    def operation(stage: Stage) -> Try:
        assert isinstance(stage, DirqStage)

        def check(raised: Raised) -> None:
            assert verb(stage.queue) == verb(stage.another())

        return tried(stage, lambda: verb(stage.queue), check, None)

    return operation


def listed(queue: cast.Engine) -> object:
    """All that can be locked."""
    return [queue.waiting(directory, set()) for directory in queue.directories()]


OPERATIONS: dict[str, Operation] = {
    "add": add(durable=False),
    "add durable": add(durable=True),
    "lock": lock(fast=False),
    "open_locked": lock(fast=True),
    "unlock": unlock,
    "remove": remove,
    "take_out": take_out,
    "put_in": put_in,
    "break_lock": break_lock,
    "touch": touch,
    "sweep": sweep,
    "waiting": look(listed),
    "count": look(lambda queue: queue.count()),
    "filesystem_now_ns": look(lambda queue: queue.filesystem_now_ns()),
}


def fail_calls_of(name: str, kind: str, network: str | None) -> Counts:
    """Try the operation *name* on a queue of that *kind*, everything. Raises AssertionError."""
    return fail_every_call(OPERATIONS[name], lambda: DirqStage(kind, network, BODY))
