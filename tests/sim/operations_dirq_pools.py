"""
operations_dirq_pools - what workers and keepers do on a dirq, ready to be tried with a call that fails

A settle that failed is tried again by its worker, a round by its keeper; then the element
is where it was to go, once, and a pool of another host finishes what is left.

See also: operations_dirq (the engines alone), every_call (the loop), dirq_pools.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from tests.sim import dirq_pools as pools
from tests.sim.dirq_ledger import KEPT, MAX_LOCK_S, body
from tests.sim.dirq_pools import DirqPool
from tests.sim.every_call import Counts, Operation, Stage, Try, fail_every_call
from tests.sim.foreign_pools import process_of
from tests.sim.operations_dirq import BODY, DirqStage, Raised
from workers.board import WorkerText
from workers.errors import ClaimLost, InputGone, QueueUnavailable
from workers.message import Claim
from workers.queues.beside import Counts as Kept
from workers.queues.beside import decoded
from workers.queues.dirq import Dirq


class PoolStage(DirqStage):
    """The same with a pool, whose worker looks for itself."""

    def __init__(self, kind: str, network: str | None, *bodies: bytes) -> None:
        super().__init__(kind, network, *bodies)
        self.accounts: Any = self.ledger
        self.pool = DirqPool(self.world, self.accounts, kind, "one", 400)
        self.worker = self.pool.worker()

    def recover(self) -> None:
        """See Stage.recover."""
        pools.recover(self.world, self.accounts, self.kind)

    def place(self) -> str:
        """Where the element is: "queue", "deferred", "errors", or "" when it has ended."""
        found = ["queue"] * self.bodies().count(BODY)
        for place in ("deferred", "errors"):
            for name, inode in self.world.disk.directory(f"{KEPT}/{place}").entries.items():
                found += [place] * (not name.endswith(".meta") and body(inode) == BODY)
        assert len(found) <= 1, f"it is in {found}"
        return "".join(found)

    def claimed(self) -> Claim:
        """What the worker has in hand."""
        claim = pools.taken(self.worker, self.accounts)
        self.accounts.settles(process_of(self.worker), BODY)
        return claim

    def kill(self) -> str:
        """The worker dies with what it has in hand; its owner's name, that is off the board."""
        process_of(self.worker).has_crashed = True
        return self.pool.bury()


def claim(stage: Stage) -> Try:
    """Taken, or nothing, or said why not; then by somebody, at the latest when the lock is stale."""
    assert isinstance(stage, PoolStage)
    worker, answers = stage.worker, stage.answers
    worker.release(stage.claimed())  # it has its record

    def check(raised: Raised) -> None:
        for seconds in (0, 0, MAX_LOCK_S + 1, MAX_LOCK_S + 1):
            if answers and answers[-1] is not None:
                if not answers[-1].trouble:
                    break
                worker.release(answers.pop())  # it could not be opened
            stage.later(seconds)
            stage.pool.keeper._sweep_at_ns = 0 if seconds else 10**19
            stage.pool.keeper._served_ns = 0  # it was served all that time
            stage.pool.keeper.keep()
            answers.append(pools.claimed(worker))
        assert answers[-1] is not None, "nobody gets it"
        assert pools.body_of(worker, answers[-1]) == BODY
        worker.done(answers[-1])
        stage.accounts.was_removed(BODY)
        assert process_of(worker).descriptors() == [process_of(worker).opened(worker._hand)]

    return Try(process_of(worker), lambda: answers.append(pools.claimed(worker)), check)


def settle(verb: Callable[[Dirq, Claim], object], expected: str) -> Operation:
    """It goes where the verb says."""

    def operation(stage: Stage) -> Try:
        assert isinstance(stage, PoolStage)
        worker, claim = stage.worker, stage.claimed()

        def act() -> None:
            verb(worker, claim)
            if not expected:
                stage.accounts.was_removed(BODY)

        def check(raised: Raised) -> None:
            for _ in range(3):
                if isinstance(raised, QueueUnavailable):
                    raised = None
                    try:
                        act()
                    except (QueueUnavailable, ClaimLost, InputGone) as error:
                        raised = error
            if isinstance(raised, ClaimLost | InputGone):  # by the first try, whose reply was lost
                assert stage.world.network, "nobody else was there"
            assert stage.place() == expected
            assert claim.fd < 0

        return Try(process_of(worker), act, check, (QueueUnavailable, ClaimLost, InputGone))

    return operation


def keeper_acts(prepare: Callable[[PoolStage], Callable[[], object]], expected: str, crashes: int = 1) -> Operation:
    """What *prepare* returns is done by the keeper; tried again, or with the lock stale, it is where it should be."""

    def operation(stage: Stage) -> Try:
        assert isinstance(stage, PoolStage)
        act, keeper = prepare(stage), stage.pool.keeper

        def check(raised: Raised) -> None:
            for number in range(6):
                if number >= 1 and raised is None and stage.place() == expected:
                    break
                with suppress(QueueUnavailable):
                    raised = None
                    act()
                    if number >= 3:  # the record was lost when putting it back failed too
                        stage.later(MAX_LOCK_S)
                        keeper._sweep_at_ns = keeper._served_ns = 0
                    stage.later()
                    keeper.keep()
            assert stage.place() == expected, stage.place()
            for name in stage.world.disk.directory(f"{KEPT}/counts").entries:
                counts = keeper._beside.count_of(decoded(name))
                assert counts.crashes <= crashes, "one death was counted twice"

        return Try(stage.pool.keeper_process, act, check)

    return operation


def release_owner(stage: PoolStage) -> Callable[[], object]:
    """Its worker was killed."""
    stage.claimed()
    owner = stage.kill()
    return lambda: stage.pool.keeper.release_owner(owner, "died")


def release_poison(stage: PoolStage) -> Callable[[], object]:
    """The same, and it was once too often."""
    stage.pool.keeper._beside.write_count(stage.names[0], Kept(0, 2))
    return release_owner(stage)


def due(stage: PoolStage) -> Callable[[], object]:
    """It has failed, and is due."""
    claim = stage.claimed()
    stage.worker.retry(claim)
    stage.later(2)
    return stage.pool.keeper.keep


def touch(stage: PoolStage) -> Callable[[], object]:
    """It has been in hand for a while."""
    stage.claimed()
    stage.pool.keeper.keep()
    stage.later(6)
    return stage.pool.keeper.keep


def stale(stage: PoolStage) -> Callable[[], object]:
    """A pool of another host vanished with it in hand."""
    stage.claimed()
    stage.pool.board.worker(0).set_text(WorkerText.OWNER, "")
    process_of(stage.worker).has_crashed = True
    stage.later(MAX_LOCK_S + 1)

    def sweeping() -> None:
        stage.pool.keeper._sweep_at_ns = stage.pool.keeper._served_ns = 0
        stage.pool.keeper.keep()

    return sweeping


OPERATIONS: dict[str, Operation] = {
    "claim": claim,
    "done": settle(lambda worker, held: worker.done(held), ""),
    "retry": settle(lambda worker, held: worker.retry(held), "deferred"),
    "reject": settle(lambda worker, held: worker.reject(held, "no"), "errors"),
    "release": settle(lambda worker, held: worker.release(held), "queue"),
    "release_owner": keeper_acts(release_owner, "queue"),
    "release_owner poison": keeper_acts(release_poison, "errors", 3),
    "keep, due": keeper_acts(due, "queue"),
    "keep, touch": keeper_acts(touch, "queue"),
    "keep, sweep": keeper_acts(stale, "queue"),
}


def fail_calls_of(name: str, kind: str, network: str | None) -> Counts:
    """Try the operation *name* on a queue of that *kind*, everything. Raises AssertionError."""
    return fail_every_call(OPERATIONS[name], lambda: PoolStage(kind, network, BODY))
