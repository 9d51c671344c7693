"""
operations_put - making a queue, opening it, and putting into it, ready to be tried with a call that fails

A put that raised has not entered, unless it said that this is unknown; then it may be
there once, whole, and to put it again gives a second one, or meets its name. A file
that is moved in is at its source or a message at every moment.

See also: operations (the table), every_call (the loop).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from tests.sim.cast import QUEUE, SETTINGS, user
from tests.sim.every_call import Operation, Stage, Try
from tests.sim.kernel import Process
from workers.errors import MessageExists, QueueMissing, QueueRefused, QueueUnavailable
from workers.queues.base import Settings
from workers.queues.spool import Spool

BODY = b"the content of one message"
SOURCE = "/source"
NO_SUCH_CALL = {"link": errno.EPERM, "rename_noreplace": errno.EINVAL}
CREATING = replace(SETTINGS, create=True)
Raised = BaseException | None


def is_unknown(raised: Raised) -> bool:
    """Whether it may have happened all the same."""
    return isinstance(raised, QueueUnavailable) and raised.is_unknown


def write(process: Process, path: str, body: bytes) -> None:
    """A file, made by *process*."""
    fd = process.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    process.write(fd, body)
    process.close(fd)


# ---- making a queue, opening it


def make_queue(settings: Settings = CREATING, *, missing: Sequence[str] = ()) -> Operation:
    """Spool(create=True) where there is nothing; another host may make it at the same time."""

    def operation(stage: Stage) -> Try:
        stage.kernel.missing = lambda name, arguments: NO_SUCH_CALL[name] if name in missing else 0
        process, other = stage.world.process(1, "maker"), stage.world.process(2, "another")
        made: list[Spool] = []

        def make(by: Process) -> Spool:
            made.append(Spool(QUEUE, settings, system=by, host=by.host))
            return made[-1]

        def use() -> None:
            make(other).put(BODY)
            made[-1].directory.check_renames()
            assert stage.where(BODY) == ["incoming"]

        def check(raised: Raised) -> None:
            make(process)
            use()
            ids = {spool.directory.id for spool in made}
            assert len(ids) == 1, f"two makers opened two queues: {ids}"
            assert all(spool.directory.is_same() for spool in made)

        stage.ledger.bodies.add(BODY)
        meets = None if "rename_noreplace" in missing else lambda: make(other)  # then nothing is left that could decide
        may_raise = (QueueUnavailable, QueueMissing, QueueRefused)
        return Try(process, lambda: make(process), check, may_raise, meets, use)

    return operation


def open_queue(stage: Stage) -> Try:
    """Spool() of a queue that is there."""
    process = stage.world.process(1, "user")

    def check(raised: Raised) -> None:
        assert Spool(QUEUE, SETTINGS, system=process).directory.id

    return Try(process, lambda: Spool(QUEUE, SETTINGS, system=process), check, (QueueUnavailable, QueueMissing))


# ---- putting


def put(
    enter: Callable[[Spool], object], *, name: str | None = None, state: str = "incoming", missing: Sequence[str] = ()
) -> Operation:
    """*enter* puts BODY, under *name* if that is given."""

    def operation(stage: Stage) -> Try:
        stage.kernel.missing = lambda call, arguments: NO_SUCH_CALL[call] if call in missing else 0
        stage.ledger.bodies.add(BODY)
        spool = user(stage.world)
        process = cast(Process, spool.system)
        write(process, SOURCE, BODY)

        def act() -> None:
            enter(spool)
            stage.ledger.was_put(BODY)

        def check(raised: Raised) -> None:
            found = stage.where(BODY)
            assert found in ([state], [] if raised else [state])
            assert not found or raised is None or is_unknown(raised), "it entered, and was said not to have"
            assert raised is None or not stage.has_lost("rename"), "what is there to be seen was not looked for"
            assert stage.may_litter() or stage.files(f"{QUEUE}/tmp") == []
            if raised is not None and found and name:
                _exists(act)
            elif raised is not None:
                act()
                assert stage.where(BODY) == [*found, state]

        return Try(process, act, check)

    return operation


def _exists(act: Callable[[], object]) -> None:
    try:
        act()
    except MessageExists:
        return
    raise AssertionError("a name that waits was put again")


def put_many(count: int, *, durable: bool) -> Operation:
    """A batch of *count*."""
    bodies = [b"body %d" % number for number in range(count)]

    def operation(stage: Stage) -> Try:
        stage.ledger.bodies.update(bodies)
        spool = user(stage.world)

        def act(these: Sequence[bytes] = bodies) -> None:
            spool.put_many(these, durable=durable)
            for body in these:
                stage.ledger.was_put(body)

        def check(raised: Raised) -> None:
            entered = count
            if raised is not None:
                assert isinstance(raised, QueueUnavailable)
                entered = len(raised.names)
                for name, body in zip(raised.names, bodies, strict=False):
                    assert stage.world.disk.inode(f"{QUEUE}/incoming/{name}").data == body
            for number, body in enumerate(bodies):
                may_be_in = number < entered, number < entered or (number == entered and is_unknown(raised))
                assert bool(stage.where(body)) in may_be_in, f"{body!r} is in {stage.where(body)}"
            assert stage.may_litter() or stage.files(f"{QUEUE}/tmp") == []
            if raised is not None:
                act(bodies[entered:])
            assert all(stage.where(body) for body in bodies)
            assert sum(len(stage.where(body)) for body in bodies) <= count + is_unknown(raised)

        return Try(cast(Process, spool.system), act, check)

    return operation


def put_file(name: str | None, *, is_far: bool = False, missing: Sequence[str] = ()) -> Operation:
    """The file SOURCE itself; from another filesystem if it *is_far*."""

    def operation(stage: Stage) -> Try:
        stage.ledger.bodies.add(BODY)
        spool = user(stage.world)
        process = cast(Process, spool.system)
        write(process, SOURCE, BODY)

        def answer(call: str, arguments: tuple[Any, ...]) -> int:
            if call in missing:
                return NO_SUCH_CALL[call]
            is_moved = call in ("rename", "rename_noreplace", "link") and arguments[0] == SOURCE
            return errno.EXDEV if is_far and is_moved else 0

        stage.kernel.missing = answer

        def is_left() -> bool:
            return SOURCE.strip("/") in stage.files("/")

        def act() -> None:
            spool.put_file(Path(SOURCE), name)
            stage.ledger.was_put(BODY)

        def check(raised: Raised) -> None:
            found = stage.where(BODY)
            assert len(found) + is_left() >= 1, "the only copy is lost"
            if raised is None:
                assert found == ["incoming"]
                assert not is_left()
            elif not is_unknown(raised):
                assert found == []
            if raised is not None and not found:
                act()
                assert stage.where(BODY) == ["incoming"]
                assert not is_left()
            assert stage.may_litter() or stage.files(f"{QUEUE}/tmp") == []

        def after_crash() -> None:
            assert stage.where(BODY) or is_left(), "the only copy is lost"

        return Try(process, act, check, after_crash=after_crash, minds_mount=False)

    return operation
