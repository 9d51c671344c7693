"""
operations - each public operation of a spool queue, ready to be tried with a call that fails: the table

An operation sets its stage (who has put, claimed and died before), and says what it
does, what it may raise, and how to see that it had its effect once: after it was tried
again, where it failed.

See also: every_call (the loop), operations_put, operations_claim, operations_keep.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

from tests.sim.cast import NEXT, QUEUE, SETTINGS, Pool, user
from tests.sim.every_call import Counts, Operation, Stage, Try, fail_every_call
from tests.sim.kernel import Process
from tests.sim.operations_claim import claim, claimed, failing, live, settle, settle_leftovers
from tests.sim.operations_keep import (
    abandoned,
    all_of_it,
    beat_is_due,
    dead_neighbour,
    due,
    feed,
    keep,
    keeper_leaves,
    keeper_round,
    lease_is_gone,
    leave,
    lost_lease,
    nothing,
    old,
    open_keeper,
    release_owner,
    unlisted_owner,
)
from tests.sim.operations_put import (
    BODY,
    CREATING,
    SOURCE,
    Raised,
    make_queue,
    open_queue,
    put,
    put_file,
    put_many,
)
from workers.message import Body, Done, Forward, Reject, Retry
from workers.queues.spool import Spool
from workers.queues.spool_put import BATCH_MIN

# ---- the operator


def requeue(stage: Stage) -> Try:
    """From errors/ back."""
    stage.ledger.bodies.add(BODY)
    pool = Pool(stage.world, "one", 100)
    worker = pool.worker()
    spool = user(stage.world)
    spool.put(BODY, "mine")
    worker.reject(claimed(worker), "no")
    worker.detach()

    def check(raised: Raised) -> None:
        if stage.where(BODY) == ["errors"]:
            assert stage.kernel.failed
            spool.requeue("mine")
        assert stage.where(BODY) == ["incoming"]

    return Try(cast(Process, spool.system), lambda: spool.requeue("mine"), check)


def pause(*, is_wanted: bool) -> Operation:
    """Pause, or resume what is paused."""

    def operation(stage: Stage) -> Try:
        spool, other = user(stage.world), user(stage.world, pid=2)
        act = spool.pause if is_wanted else spool.resume
        if not is_wanted:
            spool.pause()

        def check(raised: Raised) -> None:
            if raised is not None:
                act()
            assert spool.is_paused() == is_wanted
            other.resume()

        return Try(cast(Process, spool.system), act, check, after_crash=other.resume, minds_mount=False)

    return operation


def look(verb: Callable[[Spool], object]) -> Operation:
    """What an operator reads, of a queue with a message in every state."""

    def operation(stage: Stage) -> Try:
        stage.ledger.bodies |= {BODY, b"another", b"claimed", b"rejected"}
        spool = user(stage.world)
        worker = Pool(stage.world, "one", 100).worker()
        spool.put(b"rejected", "mine")
        worker.reject(claimed(worker), "no")
        spool.put(b"claimed")
        claimed(worker)
        spool.put(BODY, "report.csv")
        spool.put(b"another", delay=0.5)
        process = cast(Process, spool.system)

        def check(raised: Raised) -> None:
            first = verb(spool)
            assert verb(spool) == first
            assert process.descriptors() == []

        return Try(process, lambda: verb(spool), check, minds_mount=False)

    return operation


def listed(spool: Spool) -> object:
    """All that is there."""
    found = list(spool.list())
    assert len(found) == 4
    return found


def shown(spool: Spool) -> object:
    """One that was rejected, with its .meta if that can be read."""
    (found,) = spool.show("mine")
    return found


# ---- the table

KEEP_DONE, LAST = replace(SETTINGS, keep_done_s=60.0), replace(SETTINGS, max_attempts=1)
POISON = replace(SETTINGS, crash_limit=1)
PRUNE = replace(SETTINGS, keep_done_s=50.0, keep_errors_s=50.0)
NEW: list[Body] = [b"new"]
NEWER: list[Body] = [b"new", b"newer"]

OPERATIONS: dict[str, Operation] = {
    "make": make_queue(),
    "make with done": make_queue(replace(CREATING, keep_done_s=60.0)),
    "make without links": make_queue(missing=["link"]),
    "make without links and exclusive renames": make_queue(missing=["link", "rename_noreplace"]),
    "open": open_queue,
    "put": put(lambda spool: spool.put(BODY)),
    "put text": put(lambda spool: spool.put(BODY.decode())),
    "put a path": put(lambda spool: spool.put(Path(SOURCE))),
    "put not durable": put(lambda spool: spool.put(BODY, durable=False)),
    "put a path not durable": put(lambda spool: spool.put(Path(SOURCE), durable=False)),
    "put named": put(lambda spool: spool.put(BODY, "mine"), name="mine"),
    "put named not durable": put(lambda spool: spool.put(BODY, "mine", durable=False), name="mine"),
    "put named without links": put(lambda spool: spool.put(BODY, "mine"), name="mine", missing=["link"]),
    "put delayed": put(lambda spool: spool.put(BODY, delay=0.5), state="deferred"),
    "put delayed not durable": put(lambda spool: spool.put(BODY, delay=0.5, durable=False), state="deferred"),
    "enter": put(lambda spool: spool.enter(BODY, "mine")),
    "put_many": put_many(3, durable=True),
    "put_many not durable": put_many(3, durable=False),
    "put_many with one sync": put_many(BATCH_MIN, durable=True),
    "put_file": put_file(None),
    "put_file named": put_file("mine"),
    "put_file named by link": put_file("mine", missing=["rename_noreplace"]),
    "put_file from afar": put_file(None, is_far=True),
    "put_file named from afar": put_file("mine", is_far=True),
    "claim": claim(),
    "claim again": claim(has_owner=True),
    "claim without own directory": claim(is_gone=True),
    "claim after a lapse": claim(has_lapsed=True),
    "claim what is fed": claim(is_fed=True),
    "done": settle(lambda worker, held, _: worker.done(held), {}),
    "done kept": settle(lambda worker, held, _: worker.done(held), {"done": [BODY]}, KEEP_DONE),
    "retry": settle(lambda worker, held, _: worker.retry(held), {"deferred": [BODY]}),
    "retry the last time": settle(lambda worker, held, _: worker.retry(held), {"errors": [BODY]}, LAST),
    "reject": settle(lambda worker, held, _: worker.reject(held, "no"), {"errors": [BODY]}),
    "release": settle(lambda worker, held, _: worker.release(held), {"incoming": [BODY]}),
    "forward": settle(lambda worker, held, there: worker.forward(held, there), {NEXT: [BODY]}),
    "forward to another filesystem": settle(
        lambda worker, held, there: worker.forward(held, there), {NEXT: [BODY]}, may_repeat=True, is_far=True
    ),
    "forward, taken before the second try": settle(
        lambda worker, held, there: worker.forward(held, there), {NEXT: [BODY]}, is_taken=True
    ),
    "forward a new body": settle(
        lambda worker, held, there: worker.forward(held, there, NEW), {NEXT: [b"new"]}, may_repeat=True
    ),
    "forward several": settle(
        lambda worker, held, there: worker.forward(held, there, NEWER), {NEXT: [b"new", b"newer"]}, may_repeat=True
    ),
    "settle_leftovers": settle_leftovers(),
    "detach": settle_leftovers(is_leaving=True),
    "keep": keep(nothing, {}),
    "keep, beat": keep(beat_is_due, {}),
    "keep, lease gone": keep(lease_is_gone, {}),
    "keep, unlisted owner": keep(unlisted_owner, {"incoming": [BODY]}),
    "keep, dead neighbour": keep(dead_neighbour, {"incoming": [BODY]}),
    "keep, lost lease": keep(lost_lease, {"incoming": [BODY]}),
    "keep, lost lease of a poisoned one": keep(lost_lease, {"errors": [BODY]}, POISON),
    "keep, due": keep(due, {"incoming": [b"another", BODY]}),
    "keep, sweep": keep(abandoned, {"incoming": [BODY], "errors": [b"theirs"]}),
    "keep, all of it": keep(all_of_it, {"incoming": [b"another", BODY, BODY, BODY], "errors": [b"theirs"]}),
    "keep, prune": keep(old, {}, PRUNE),
    "release_owner died": release_owner("died", "incoming"),
    "release_owner unknown": release_owner("unknown", "incoming"),
    "release_owner stopped": release_owner("stopped", "incoming"),
    "release_owner timeout": release_owner("timeout", "deferred"),
    "release_owner poison": release_owner("died", "errors", POISON),
    "release_owner timeout, the last": release_owner("timeout", "errors", LAST),
    "leave": leave,
    "keeper opens": open_keeper,
    "keeper round": keeper_round,
    "keeper leaves": keeper_leaves,
    "requeue": requeue,
    "list": look(listed),
    "show": look(shown),
    "depth": look(Spool.depth),
    "pause": pause(is_wanted=True),
    "resume": pause(is_wanted=False),
    "is_paused": look(Spool.is_paused),
    "wait": look(lambda spool: spool.wait(1.0)),
    "feed": feed,
    "live, done": live(lambda message: Done(), {}),
    "live, retry": live(lambda message: Retry(), {"deferred": [BODY]}),
    "live, fails": live(failing, {"deferred": [BODY]}),
    "live, fails the last time": live(failing, {"errors": [BODY]}, LAST),
    "live, reject": live(lambda message: Reject("no"), {"errors": [BODY]}),
    "live, forward": live(lambda message: Forward(queue="/n"), {NEXT: [BODY]}),
    "live, forward a new body": live(lambda message: Forward(b"new", "/n"), {NEXT: [b"new"]}, may_repeat=True),
    "live, asked to leave in trouble": live(lambda message: Done(), {}, patience=4),
}  # fmt: skip


def fail_calls_of(name: str, network: str | None) -> Counts:
    """Try the operation *name*, everything; a queue is made where there is none yet. Raises AssertionError."""
    paths = () if name.startswith("make") else (QUEUE, NEXT)
    return fail_every_call(OPERATIONS[name], lambda: Stage(network, *paths))
