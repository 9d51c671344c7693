"""
operations_claim - claiming, settling, and a worker's whole life, ready to be tried with a call that fails

A claim that failed is found again by the same worker when it is idle; a settle that
failed is tried again and settles once; and from run() nothing is ever raised.

Long because: what a claim, a settle and a life leave behind is told by the same few functions.
See also: operations (the table), every_call (the loop).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from typing import cast

from tests.sim.cast import NEXT, QUEUE, SETTINGS, Pool, body_of, user
from tests.sim.every_call import Operation, Stage, Try
from tests.sim.kernel import Pipe, Process
from tests.sim.ledger import STATES
from tests.sim.operations_put import (
    BODY,
    Raised,
    write,
)
from workers.board import Q
from workers.message import Claim, Message, Outcome
from workers.queues.base import Consumer, Settings
from workers.queues.spool import Spool
from workers.waiting import Leaving
from workers.worker import Worker

# ---- claiming


def claim(
    *, has_owner: bool = False, is_gone: bool = False, has_lapsed: bool = False, is_fed: bool = False
) -> Operation:
    """One message; the worker's own directory is not made yet, there, gone, or of before a lapse of the lease."""

    def operation(stage: Stage) -> Try:
        stage.ledger.bodies |= {BODY, b"before"}
        pool = Pool(stage.world, "one", 100)
        worker = pool.worker()
        process = cast(Process, worker.system)
        if has_owner or is_gone or has_lapsed:
            user(stage.world).put(b"before")
            worker.done(claimed(worker))
        if is_gone:
            pool.keeper_process.rmdir(f"{QUEUE}/pending/{stage.files(f'{QUEUE}/pending')[0]}")
        if has_lapsed:
            pool.board.queues[pool.slot].words[Q.LAPSES] += 1
        user(stage.world).put(BODY, "mine")
        if is_fed:
            pipe = Pipe()
            pipe.add(b"gone\0mine")
            worker.attach(replace(pool._consumer(0), feed=process.hold(pipe)))
            pool.board.queues[pool.slot].words[Q.FED_NS] = process.boottime_ns()
        held: list[Claim | None] = []

        def check(raised: Raised) -> None:
            found = held[0] if held else None
            for _ in range(3):
                if found is None and (found := worker.claim()) is None:
                    worker.settle_leftovers()
                    if is_fed:
                        pipe.add(pack_waiting(stage))
            assert found is not None, "nobody finds it again"
            stage.ledger.was_handled(BODY)
            if found.trouble is not None:  # "permission denied" is said of the file, and is nobody's crash
                assert stage.kernel.failed
                worker.reject(found, found.trouble)
            else:
                assert (found.name, found.attempt, found.crashes) == ("mine", 1, 0)
                assert body_of(worker, found) == BODY
                worker.done(found)
                stage.ledger.was_settled(BODY, "done")
            assert process.descriptors() == []

        return Try(process, lambda: held.append(worker.claim()), check, **crashes(stage, pool, {"incoming": [BODY]}))

    return operation


def crashes(stage: Stage, pool: Pool, expected: dict[str, list[bytes]]) -> dict[str, Callable[[], None]]:
    """What must hold when a worker of *pool* has died on its way to *expected*; and when its keeper was told so."""

    def after_crash() -> None:
        found = by_state(stage)
        is_here = any(BODY in bodies for bodies in found.values())
        is_ended = all(set(bodies) <= set(found.get(state, [])) for state, bodies in expected.items())
        assert is_here or is_ended, f"it is neither here nor handed on: {found}"

    def told() -> None:
        if owner := pool.bury():
            pool.keeping.release_owner(owner, "died")
        assert "pending" not in stage.where(BODY)
        after_crash()

    return {"after_crash": after_crash, "told": told}


def pack_waiting(stage: Stage) -> bytes:
    """What a feeder would feed."""
    return "\0".join(stage.files(f"{QUEUE}/incoming")).encode()


def claimed(worker: Spool) -> Claim:
    found = worker.claim()
    assert found is not None
    return found


# ---- settling


def settle(
    verb: Callable[[Spool, Claim, Spool], object],
    expected: dict[str, list[bytes]],
    settings: Settings = SETTINGS,
    *,
    may_repeat: bool = False,
    is_far: bool = False,
    is_taken: bool = False,
) -> Operation:
    """
    A claim in hand is settled by *verb*; *expected* is then at each state, NEXT's written "/n".

    NEXT may be on another filesystem (*is_far*), and what comes there *taken* before this is tried again.
    """

    def operation(stage: Stage) -> Try:
        if is_far:
            stage.kernel.missing = lambda call, paths: errno.EXDEV if call == "rename" and _crosses(*paths) else 0
        stage.ledger.bodies |= {BODY, *(body for bodies in expected.values() for body in bodies)}
        if settings.keep_done_s is not None:
            stage.world.process(1).mkdir(f"{QUEUE}/done")
        pool = Pool(stage.world, "one", 100, settings)
        worker = pool.worker()
        process = cast(Process, worker.system)
        following = Spool(NEXT, SETTINGS, system=process, host="one")
        user(stage.world).put(BODY, "mine")
        held = claimed(worker)

        def act() -> None:
            verb(worker, held, following)

        def check(raised: Raised) -> None:
            if is_taken and stage.where(BODY) == ["incoming"]:
                taker = Pool(stage.world, "two", 300, path=NEXT).worker()
                taker.done(claimed(taker))
            if raised is not None:
                act()
            assert process.descriptors() == []
            found = by_state(stage) if not is_taken else {NEXT: [BODY]}
            if may_repeat:
                found = {state: sorted(set(bodies)) for state, bodies in found.items()}
            assert found == expected, f"{found}"
            if not expected:
                stage.ledger.was_settled(BODY, "done")

        return Try(process, act, check, **crashes(stage, pool, expected))

    return operation


def _crosses(source: str, target: str) -> bool:
    return source[:2] != target[:2]


def by_state(stage: Stage) -> dict[str, list[bytes]]:
    """The bodies at each state; what waits in NEXT is at "/n"."""
    found: dict[str, list[bytes]] = {}
    for path, inode in stage.world.disk.files():
        parts = path.split("/")
        is_message = not (path.endswith(".meta") or parts[-1].startswith(".probe."))
        if parts[2] in STATES and is_message:
            found.setdefault(NEXT if path.startswith(NEXT) else parts[2], []).append(inode.data)
    return {state: sorted(bodies) for state, bodies in found.items()}


def settle_leftovers(*, is_leaving: bool = False) -> Operation:
    """A claim that nobody knows of, and a file that a handler has left, lie in the worker's directory."""

    def operation(stage: Stage) -> Try:
        stage.ledger.bodies |= {BODY, b"left by a handler"}
        pool = Pool(stage.world, "one", 100)
        worker = pool.worker()
        process = cast(Process, worker.system)
        user(stage.world).put(BODY, "mine")
        held = claimed(worker)
        worker.settled(held)
        write(process, f"{os.path.dirname(held.path)}/result.txt", b"left by a handler")

        def check(raised: Raised) -> None:
            if is_leaving:
                assert raised is None
                for _ in range(3):  # it finishes what could not be done, as of one that is not on the board
                    pool.keeper.keep()
                assert stage.files(f"{QUEUE}/pending") == []
            else:
                worker.settle_leftovers()
            assert by_state(stage) == {"incoming": [BODY], "errors": [b"left by a handler"]}

        return Try(process, worker.detach if is_leaving else worker.settle_leftovers, check, minds_mount=False)

    return operation


# ---- a worker's life


class Patience(Leaving):
    """Waits take no time, and end the failure: a disk is full for a while. Asked to leave at the *last* one."""

    def __init__(self, stage: Stage, last: int) -> None:
        self._stage, self._left = stage, last
        self.is_asked, self.is_to_tell, self.fd = False, False, -1

    def wait(self, timeout_s: float) -> bool:
        """See Leaving."""
        self._left -= 1
        self.is_asked = self.is_asked or self._left <= 0
        if self._left < 14 and not self.is_asked:
            self._stage.kernel.end()
        return self.is_asked


class Quiet(Worker):
    """A worker without the thread that beats its slot."""

    __slots__ = ()

    def _start_beating(self, slot: object) -> None:
        pass


def live(
    handler: Callable[[Message], Outcome | None],
    expected: dict[str, list[bytes]],
    settings: Settings = SETTINGS,
    *,
    patience: int = 16,
    may_repeat: bool = False,
) -> Operation:
    """A worker's whole life, with one message: claimed, handled, settled; and it leaves. Nothing ever leaves run()."""

    def operation(stage: Stage) -> Try:
        stage.ledger.bodies |= {BODY, *(body for bodies in expected.values() for body in bodies)}
        pool = Pool(stage.world, "one", 100, settings)
        spool = pool.worker()
        process = cast(Process, spool.system)
        user(stage.world).put(BODY, "mine")
        handled: list[Message] = []

        def handle(message: Message) -> Outcome | None:
            handled.append(message)
            stage.ledger.was_handled(BODY)
            return handler(message)

        leaving = Patience(stage, patience)
        consumer: Consumer = pool._consumer(0)
        worker = Quiet(spool, handle, consumer, leaving, lambda timeout_s, fd: leaving.wait(timeout_s), system=process)

        def check(raised: Raised) -> None:
            assert raised is None
            assert process.descriptors() == []
            assert len(handled) <= 1, "it was not settled, and handled again"
            found = by_state(stage)
            if may_repeat:
                found = {state: sorted(set(bodies)) for state, bodies in found.items()}
            if found == expected:
                return
            # It was asked to leave before it could, or could not read its message: whatever it is, nothing was lost.
            has_trouble = any(made.name == "open" for made in stage.kernel.failed)
            has_left = leaving.is_asked and stage.kernel.failed
            assert has_left or (has_trouble and found == {"errors": [BODY]}), f"{found}"

        return Try(process, worker.run, check, may_raise=(), **crashes(stage, pool, expected))

    return operation


def failing(message: Message) -> None:
    """A handler that fails."""
    raise ValueError("no")
