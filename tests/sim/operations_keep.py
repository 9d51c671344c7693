"""
operations_keep - what a keeper and a feeder do, ready to be tried with a call that fails

A round that failed is made again, and the next ones finish what it has begun: nothing
moved twice, no death counted twice.

Long because: what a keeper may find is one list.
See also: operations (the table), every_call (the loop).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import cast

from tests.sim.cast import LOOKS, QUEUE, SETTINGS, Pool, body_of, user
from tests.sim.every_call import Operation, Stage, Try
from tests.sim.kernel import Pipe, Process
from tests.sim.operations_claim import by_state, claimed
from tests.sim.operations_put import (
    BODY,
    Raised,
    write,
)
from workers.board import Q
from workers.errors import QueueMissing, QueueRefused, QueueUnavailable
from workers.keeper import QueueKeeper, Release
from workers.queues import names
from workers.queues.base import POLL_S, Cause, Settings
from workers.queues.feeder import Feeder, Feeding
from workers.queues.scan import Incoming
from workers.queues.spool import Spool

# ---- the keeper


Prepare = Callable[[Stage, Pool], object]


def keep(prepare: Prepare, expected: dict[str, list[bytes]], settings: Settings = SETTINGS) -> Operation:
    """One round of a keeper that finds what *prepare* has left."""

    def operation(stage: Stage) -> Try:
        stage.ledger.bodies |= {body for bodies in expected.values() for body in bodies}
        pool = Pool(stage.world, "one", 100, settings)
        prepare(stage, pool)

        def check(raised: Raised) -> None:
            if stage.kernel.has_come:
                for number in range(2 * LOOKS):
                    if number >= 2 and by_state(stage) == expected:
                        break
                    stage.later()
                    pool.keeper.keep()
                assert pool.keeper.lease.is_good
            assert by_state(stage) == expected, f"{by_state(stage)}"
            leases = [file for file in stage.files(f"{QUEUE}/.pool/leases") if file.startswith(f"{pool.master}.")]
            assert len(leases) >= 1, "it has no lease"
            for path, inode in stage.world.disk.files():
                mark = names.parse(path.rpartition("/")[2])
                assert inode.data != BODY or mark.crashes <= 1, f"one death was counted twice: {path}"

        return Try(pool.keeper_process, pool.keeper.keep, check)

    return operation


def nothing(stage: Stage, pool: Pool) -> None:
    """A beat is not due."""
    pool.keeper.keep()


def beat_is_due(stage: Stage, pool: Pool) -> None:
    """An interval has passed."""
    pool.keeper.keep()
    stage.later()


def lease_is_gone(stage: Stage, pool: Pool) -> None:
    """Somebody has counted us out."""
    beat_is_due(stage, pool)
    pool.keeper_process.unlink(f"{QUEUE}/.pool/leases/{pool.master}.{pool.keeper.lease.number}")


def held_by(stage: Stage, pool: Pool) -> None:
    user(stage.world).put(BODY, "mine")
    claimed(pool.worker())
    stage.world.processes[pool.pid + 10].has_crashed = True


def unlisted_owner(stage: Stage, pool: Pool) -> None:
    """A worker of ours is dead, the master has taken it off the board, and one round has seen that."""
    held_by(stage, pool)
    pool.bury()
    pool.keeper.keep()
    stage.later(0.5)


def dead_neighbour(stage: Stage, pool: Pool) -> None:
    """Another master of this host is dead, with its worker."""
    other = Pool(stage.world, "one", 300)
    held_by(stage, other)
    stage.world.processes[300].has_crashed = True


def lost_lease(stage: Stage, pool: Pool) -> None:
    """A master of another host does not beat; the next look is the last one."""
    held_by(stage, Pool(stage.world, "two", 300))
    for _ in range(LOOKS):
        pool.keeper.keep()
        stage.later()


def due(stage: Stage, pool: Pool) -> None:
    """Two delayed messages are due."""
    user(stage.world).put(BODY, delay=0.5)
    user(stage.world, pid=2).put(b"another", delay=0.6)
    stage.later(2)


def abandoned(stage: Stage, pool: Pool) -> None:
    """A put that was never published, a foreign file in tmp/, a foreign program's stale claim."""
    spool = user(stage.world)
    process = cast(Process, spool.system)
    write(process, f"{QUEUE}/tmp/{names.unpublished(spool.tokens.name('user'))}", b"half a bod")
    write(process, f"{QUEUE}/tmp/theirs", b"theirs")
    file = spool.put(BODY)
    process.rename(f"{QUEUE}/incoming/{file}", f"{QUEUE}/pending/{file}")
    stage.later(101)


def old(stage: Stage, pool: Pool) -> None:
    """A message in done/ and one in errors/ are to be pruned."""
    stage.ledger.may_prune = True
    stage.ledger.bodies |= {b"done", b"rejected"}
    spool = user(stage.world)
    cast(Process, spool.system).mkdir(f"{QUEUE}/done")
    worker = pool.worker()
    spool.put(b"done")
    worker.done(claimed(worker))
    spool.put(b"rejected")
    worker.reject(claimed(worker), "no")
    worker.detach()
    stage.later(60)


def all_of_it(stage: Stage, pool: Pool) -> None:
    """Of these three each, in one round."""
    unlisted_owner(stage, pool)
    due(stage, pool)
    abandoned(stage, pool)


def release_owner(cause: Cause, expected: str, settings: Settings = SETTINGS) -> Operation:
    """The claim of a dead worker, and what its handler had left."""

    def operation(stage: Stage) -> Try:
        stage.ledger.bodies |= {BODY, b"left by a handler"}
        pool = Pool(stage.world, "one", 100, settings)
        user(stage.world).put(BODY, "mine")
        worker = pool.worker()
        held = claimed(worker)
        write(cast(Process, worker.system), f"{os.path.dirname(held.path)}/result.txt", b"left by a handler")
        stage.world.processes[110].has_crashed = True
        owner = pool.bury()

        def act() -> None:
            pool.keeping.release_owner(owner, cause)

        def check(raised: Raised) -> None:
            for _ in range(2):
                act()
            wanted: dict[str, list[bytes]] = {}
            for state, body in ((expected, BODY), ("errors", b"left by a handler")):
                wanted.setdefault(state, []).append(body)
            assert by_state(stage) == {state: sorted(bodies) for state, bodies in wanted.items()}
            (file,) = [path.rpartition("/")[2] for path, inode in stage.world.disk.files() if inode.data == BODY]
            mark = names.parse(file.partition(".")[2] if expected == "deferred" else file)
            counted = {"died": (0, 1), "unknown": (0, 1), "timeout": (1, 0), "stopped": (0, 0)}[cause]
            assert (mark.attempts, mark.crashes) == counted
            assert stage.files(f"{QUEUE}/pending") == []

        return Try(pool.keeper_process, act, check)

    return operation


def leave(stage: Stage) -> Try:
    """The keeper takes its lease away; an error is logged, and others count the lease out."""
    pool = Pool(stage.world, "one", 100)

    def check(raised: Raised) -> None:
        assert raised is None
        pool.keeper.leave()
        assert stage.files(f"{QUEUE}/.pool/leases") == []

    return Try(pool.keeper_process, pool.keeper.leave, check, may_raise=(), minds_mount=False)


# ---- the keeper of one queue, as its process runs it


def _queue_keeper(stage: Stage) -> tuple[Pool, QueueKeeper]:
    pool = Pool(stage.world, "one", 100, beats=False)
    process = pool.keeper_process
    keeper = QueueKeeper(lambda: Spool(QUEUE, SETTINGS, system=process, host="one"), pool._consumer(0), process)
    return pool, keeper


def open_keeper(stage: Stage) -> Try:
    """Open the queue, try its renames, beat."""
    pool, keeper = _queue_keeper(stage)

    def check(raised: Raised) -> None:
        probes = [path for path, _ in stage.world.disk.files() if "/.probe." in path]
        assert stage.may_litter() or not probes, f"left: {probes}"
        keeper.open()
        assert len(stage.files(f"{QUEUE}/.pool/leases")) >= 1

    return Try(pool.keeper_process, keeper.open, check, (QueueUnavailable, QueueMissing, QueueRefused))


def keeper_round(stage: Stage) -> Try:
    """A round with a due message, and a measure. Whatever fails is for the board."""
    stage.ledger.bodies.add(BODY)
    pool, keeper = _queue_keeper(stage)
    keeper.open()
    user(stage.world).put(BODY, delay=0.5)
    stage.later(2)

    def check(raised: Raised) -> None:
        assert raised is None
        for _ in range(2):
            stage.later()
            keeper.round()
        assert stage.where(BODY) == ["incoming"]
        words = pool.board.queues[pool.slot].words
        assert (words[Q.WAITING], words[Q.DEFERRED]) == (1, 0)

    return Try(pool.keeper_process, keeper.round, check, may_raise=())


def keeper_leaves(stage: Stage) -> Try:
    """It is told to leave with an order to release in hand. What it cannot do the next keeper does."""
    stage.ledger.bodies.add(BODY)
    pool, keeper = _queue_keeper(stage)
    keeper.open()
    held_by(stage, pool)
    keeper.orders.put(Release(pool.bury(), "died"))

    def check(raised: Raised) -> None:
        assert raised is None
        has_lease = stage.files(f"{QUEUE}/.pool/leases") != []
        assert has_lease or stage.files(f"{QUEUE}/pending") == [], "the lease went before the claims"
        assert stage.where(BODY) in (["incoming"], ["pending"])

    return Try(pool.keeper_process, keeper.leave, check, may_raise=())


# ---- the feeder


def feed(stage: Stage) -> Try:
    """A feeder that feeds three names; whatever fails, it goes on."""
    bodies = {b"body %d" % number for number in range(3)}
    stage.ledger.bodies |= bodies
    pool = Pool(stage.world, "one", 100)
    spool = user(stage.world)
    for body in sorted(bodies):
        spool.put(body)
    pipe = Pipe()
    process, worker = stage.world.process(150, "one"), pool.worker()
    reader = process.hold(pipe)
    worker.attach(replace(pool._consumer(0), feed=cast(Process, worker.system).hold(pipe)))
    source, network = Incoming(worker.directory.incoming, process), worker.network is not None
    feeding = Feeding(worker.url, source, "fifo", pool.board, pool.slot, reader, reader, lambda: None, POLL_S, network)
    feeder = Feeder(feeding, process)

    def run(steps: int = 8) -> None:
        left = iter(range(steps))
        feeder.run(lambda: next(left, None) is None)

    def check(raised: Raised) -> None:
        assert raised is None
        for _ in range(12):
            run()
            while (found := worker.claim()) is not None:
                bodies.discard(body_of(worker, found))
                worker.done(found)
            stage.later()
            pool.keeper.lease.beat()
        assert not bodies, f"nobody was fed {bodies}"

    return Try(process, run, check, may_raise=())
