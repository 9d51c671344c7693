"""
operations_ddmq_pools - what producers, workers and keepers do on a ddmq, ready to be tried with a call that fails

A settle that failed is tried again by its worker, a round by its keeper; then the message
is where it was to go, once, and a pool of another host finishes what is left.

Long because: each operation is a few lines, and there are many.
See also: operations_ddmq (the library alone), every_call (the loop), ddmq_pools.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import suppress

from tests.sim import ddmq_pools as pools
from tests.sim.ddmq_cast import TIMEOUT_S, opened
from tests.sim.ddmq_ledger import KEPT
from tests.sim.ddmq_pools import DdmqPool
from tests.sim.every_call import Counts, Operation, Stage, Try, fail_every_call
from tests.sim.foreign_pools import process_of
from tests.sim.operations_ddmq import BODY, NEW, DdmqStage, Raised
from workers.ddmq.claims import OURS_S
from workers.errors import ClaimLost, InputGone, QueueUnavailable
from workers.message import Claim
from workers.queues.beside import Counts as Kept
from workers.queues.ddmq import Ddmq, open_ddmq


class PoolStage(DdmqStage):
    """The same with a pool, whose worker looks for itself."""

    def __init__(self, network: str | None, *bodies: str) -> None:
        super().__init__(network, *bodies)
        self.pool = DdmqPool(self.world, self.accounts, "one", 400)
        self.worker = self.pool.worker()

    def recover(self) -> None:
        """See Stage.recover."""
        pools.recover(self.world, self.accounts)

    def claimed(self) -> Claim:
        """What the worker has in hand."""
        return pools.taken(self.worker, self.accounts)

    def kill(self) -> str:
        """The worker dies with what it has in hand; its owner's name, that is off the board."""
        process_of(self.worker).has_crashed = True
        self.later()  # the second of its claim is over
        return self.pool.bury()


def put(*, durable: bool) -> Operation:
    """One message more, or none."""

    def operation(stage: Stage) -> Try:
        assert isinstance(stage, PoolStage)
        queue = open_ddmq(pools.QUEUE, pools.SETTINGS, system=stage.process, host="one")

        def act() -> None:
            name = queue.put(NEW, durable=durable)
            stage.accounts.was_put(name.partition(".ddmq")[2])

        def check(raised: Raised) -> None:
            found = len(stage.states(NEW))
            if raised is None:
                assert found == 1
            else:
                assert found <= (durable or not stage.is_undone()), "a put that failed has left a message"
                act()
                assert len(stage.states(NEW)) == found + 1
            assert stage.may_litter() or not stage.litter(), stage.litter()

        return Try(stage.process, act, check)

    return operation


def claim(stage: Stage) -> Try:
    """Taken, or nothing, or said why not; then by somebody, at the latest when the claim has expired."""
    assert isinstance(stage, PoolStage)
    worker, answers = stage.worker, stage.answers
    worker.release(stage.claimed())  # it has its record

    def check(raised: Raised) -> None:
        for seconds in (0, 0, TIMEOUT_S + 1, OURS_S + 1, 1):
            if answers and answers[-1] is not None:
                if not answers[-1].trouble:
                    break
                worker.release(answers.pop())  # it could not be opened
            stage.later(seconds)
            stage.pool.keeper.keep()
            answers.append(pools.claimed(worker))
        assert answers[-1] is not None, "nobody gets it"
        pools.said(worker, stage.accounts, answers[-1])
        pools._settle(worker, stage.accounts, answers[-1], "done", None)
        assert process_of(worker).descriptors() == [process_of(worker).opened(worker._hand)]

    return Try(process_of(worker), lambda: answers.append(pools.claimed(worker)), check)


def settle(verb: Callable[[Ddmq, Claim], object], expected: str, *, touched: bool = False) -> Operation:
    """It goes where the verb says; *touched*: its keeper has let the claim last longer."""

    def operation(stage: Stage) -> Try:
        assert isinstance(stage, PoolStage)
        worker, claim = stage.worker, stage.claimed()
        one = pools.id_of(claim)
        if touched:
            stage.later(TIMEOUT_S * 0.6)
            stage.pool.keeper.keep()

        def act() -> None:
            if not expected:
                stage.accounts.may_end(process_of(worker), one)
            verb(worker, claim)
            if not expected:
                stage.accounts.was_ended(process_of(worker), one)

        def check(raised: Raised) -> None:
            for _ in range(3):
                if isinstance(raised, QueueUnavailable):
                    raised = None
                    try:
                        act()
                    except (QueueUnavailable, ClaimLost, InputGone) as error:
                        raised = error
            if isinstance(raised, ClaimLost | InputGone):  # by the first try, whose reply was lost
                assert stage.world.network or stage.has_met(errno.ENOENT), "nobody else was there"
            if stage.states() != [expected] * bool(expected):
                assert stage.has_met(errno.ENOENT), stage.states()
                assert stage.states() == ["claimed"]
            assert claim.fd < 0

        return Try(process_of(worker), act, check, (QueueUnavailable, ClaimLost, InputGone))

    return operation


def detach(stage: Stage) -> Try:
    """It waits again; what could not be done its keeper does, that finds it off the board."""
    assert isinstance(stage, PoolStage)
    stage.worker.settled(stage.claimed())

    def check(raised: Raised) -> None:
        stage.accounts.gone.add(process_of(stage.worker))
        stage.later()
        for _ in range(3):
            stage.pool.keeper.keep()
        assert stage.states() == ["waits"]
        assert not stage.files(f"{KEPT}/held")

    return Try(process_of(stage.worker), stage.worker.detach, check, minds_mount=False)  # then it expires


def keeper_acts(prepare: Callable[[PoolStage], Callable[[], object]], expected: str, crashes: int = 1) -> Operation:
    """What *prepare* returns is done by the keeper; tried again, or when it has expired, all is as it should be."""

    def operation(stage: Stage) -> Try:
        assert isinstance(stage, PoolStage)
        act, keeper = prepare(stage), stage.pool.keeper

        def check(raised: Raised) -> None:
            for number in range(7):
                if number >= 1 and raised is None and stage.states() == [expected]:
                    break
                with suppress(QueueUnavailable):
                    raised = None
                    act()
                    stage.later(TIMEOUT_S + 1 if number >= 3 else 1)  # the record was lost
                    keeper._served_ns = 0  # it was served all that time
                    keeper.keep()
            assert stage.states() == [expected], stage.states()
            for name in stage.files(f"{KEPT}/counts"):
                assert keeper._beside.count_of(name).crashes <= crashes, "one death was counted twice"

        return Try(stage.pool.keeper_process, act, check)

    return operation


def release_owner(stage: PoolStage) -> Callable[[], object]:
    """Its worker was killed."""
    stage.claimed()
    owner = stage.kill()
    return lambda: stage.pool.keeper.release_owner(owner, "died")


def release_late(stage: PoolStage) -> Callable[[], object]:
    """Its worker was killed for it took too long."""
    stage.claimed()
    owner = stage.kill()

    def act() -> None:
        stage.pool.keeper.release_owner(owner, "timeout")
        stage.later(2)
        stage.pool.keeper.keep()

    return act


def release_poison(stage: PoolStage) -> Callable[[], object]:
    """The same, and it was once too often."""
    claim = stage.claimed()
    stage.accounts.crashed_before = 2
    stage.pool.keeper._beside.write_count(claim.name, Kept(0, 2))
    owner = stage.kill()
    return lambda: stage.pool.keeper.release_owner(owner, "died")


def due(stage: PoolStage) -> Callable[[], object]:
    """It has failed, and is due."""
    claim = stage.claimed()
    stage.worker.retry(claim)
    stage.later(2)
    return stage.pool.keeper.keep


def touch(stage: PoolStage) -> Callable[[], object]:
    """It has been in hand for a while."""
    stage.claimed()
    stage.later(TIMEOUT_S * 0.6)
    return stage.pool.keeper.keep


def vanished(stage: PoolStage) -> None:
    """A pool of another host vanished with it in hand."""
    gone = DdmqPool(stage.world, stage.accounts, "gone", 500)
    worker = gone.worker()
    pools.taken(worker, stage.accounts)
    for process in (gone.master_process, gone.keeper_process, process_of(worker)):
        process.has_crashed = True
    stage.later(TIMEOUT_S + 1)


def reap(stage: PoolStage) -> Callable[[], object]:
    """So it has expired."""
    vanished(stage)

    def reaping() -> None:
        stage.pool.keeper._served_ns = 0  # it was served all that time
        stage.pool.keeper.keep()

    return reaping


def sweep(stage: PoolStage) -> Callable[[], object]:
    """The same, and it left its record, and somebody a message half written."""
    vanished(stage)
    other = stage.another()
    other._of("q").write_temporary(b"half", durable=False)
    stage.later(TIMEOUT_S + 1)

    def sweeping() -> None:
        stage.pool.keeper._sweep_at_ns = stage.pool.keeper._served_ns = 0
        stage.pool.keeper.keep()

    return sweeping


def forward(stage: Stage) -> Try:
    """There, and not here any more; twice there at most."""
    assert isinstance(stage, PoolStage)
    opened(stage.world.process(1)).create_queue("n")
    worker, claim = stage.worker, stage.claimed()
    one = pools.id_of(claim)
    following = open_ddmq(pools.NEXT, pools.SETTINGS, system=process_of(worker), host="one")

    def act() -> None:
        stage.accounts.may_end(process_of(worker), one)
        worker.forward(claim, following)
        stage.accounts.was_ended(process_of(worker), one)

    def check(raised: Raised) -> None:
        if isinstance(raised, QueueUnavailable):
            with suppress(ClaimLost, InputGone):
                act()
        assert pools.messages_in(stage.world, pools.NEXT) in (1, 2)

    return Try(process_of(worker), act, check, (QueueUnavailable, ClaimLost, InputGone))


def requeue(stage: Stage) -> Try:
    """It waits again, once."""
    assert isinstance(stage, PoolStage)
    claim = stage.claimed()
    stage.worker.reject(claim, "no")
    operator = open_ddmq(pools.QUEUE, pools.SETTINGS, system=stage.process, host="one")

    def act() -> None:
        operator.requeue(claim.name)

    def check(raised: Raised) -> None:
        if stage.states() != ["waits"]:
            assert raised is not None or stage.has_met(errno.ENOENT)
            act()
        if stage.states() == ["deferred"]:  # it could not be put back into errors/, and comes by itself
            stage.later(OURS_S + 1)
            stage.pool.keeper.keep()
        assert stage.states() == ["waits"]

    return Try(stage.process, act, check)


OPERATIONS: dict[str, Operation] = {
    "put": put(durable=False),
    "put durable": put(durable=True),
    "claim": claim,
    "done": settle(lambda worker, held: worker.done(held), ""),
    "done touched": settle(lambda worker, held: worker.done(held), "", touched=True),
    "retry": settle(lambda worker, held: worker.retry(held), "deferred"),
    "retry touched": settle(lambda worker, held: worker.retry(held), "deferred", touched=True),
    "reject": settle(lambda worker, held: worker.reject(held, "no"), "errors"),
    "release": settle(lambda worker, held: worker.release(held), "waits"),
    "release touched": settle(lambda worker, held: worker.release(held), "waits", touched=True),
    "detach": detach,
    "forward": forward,
    "release_owner": keeper_acts(release_owner, "waits"),
    "release_owner late": keeper_acts(release_late, "waits"),
    "release_owner poison": keeper_acts(release_poison, "errors", 3),
    "keep, due": keeper_acts(due, "waits"),
    "keep, touch": keeper_acts(touch, "claimed"),
    "keep, reap": keeper_acts(reap, "waits"),
    "keep, sweep": keeper_acts(sweep, "waits"),
    "requeue": requeue,
}


def fail_calls_of(name: str, network: str | None) -> Counts:
    """Try the operation *name*, everything. Raises AssertionError."""
    return fail_every_call(OPERATIONS[name], lambda: PoolStage(network, BODY))
