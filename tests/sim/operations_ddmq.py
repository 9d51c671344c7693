"""
operations_ddmq - what a broker of ddmq does, ready to be tried with a call that fails

Each operation is tried on a queue with one message. After it: what it said is so; tried
again it gets through; the end of a message was told once; what it had begun is undone, or
is a claim that expires.

Long because: each operation is a few lines, and there are many.
See also: every_call (the loop), ddmq_cast, ddmq_ledger, operations_dirq (the sister).
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from tests.sim import ddmq_cast as cast
from tests.sim.ddmq_cast import OLD_S, TIMEOUT_S, make_world, opened
from tests.sim.ddmq_ledger import NAME, QUEUE, ROOT, WORK
from tests.sim.every_call import LOST, STAY, Counts, Kernel, Operation, Stage, Try, fail_every_call
from workers.ddmq.broker import Broker
from workers.ddmq.claims import OURS_S
from workers.ddmq.errors import DdmqError
from workers.ddmq.message import Message

BODY, NEW = "body", "new"
Raised = BaseException | None


class DdmqStage(Stage):
    """A fresh world with a queue in which *bodies* wait."""

    def __init__(self, network: str | None, *bodies: str, **options: Any) -> None:
        self.world, self.accounts = make_world(*bodies, network=network, **options)
        self.ledger: Any = self.accounts
        self.accounts.requeues_more = 2  # each try that failed after the rewriting is one
        self.kernel = Kernel()
        self.paths = (QUEUE,)
        self.answers: list[Any] = []  # what the operation said, when it said something
        self.process = self.world.process(100)
        self.broker = opened(self.process)

    def recover(self) -> None:
        """See Stage.recover."""
        cast.recover(self.world, self.accounts)

    def another(self) -> Broker:
        """The root as somebody else has it."""
        return opened(self.world.process(200 + len(self.world.processes)))

    def states(self, body: str = BODY) -> list[str]:
        """Where the messages are that say *body*."""
        ids = [one for one in self.accounts.messages() if self.accounts.body(one) == body]
        return sorted(state for one in ids for state in self.accounts.states(one))

    def litter(self) -> list[str]:
        """What is in the root and is being written."""
        return [name for name in self.files(ROOT) if name.endswith(".tmp")]

    def may_litter(self) -> bool:
        """See Stage.may_litter."""
        return super().may_litter() or any(made.name == "close" for made in self.kernel.failed)

    def is_undone(self) -> bool:
        """Whether what failed could be undone: nothing went on failing, and no reply was lost."""
        fault = self.kernel.fault
        return fault is None or fault.how not in (STAY, LOST)

    def has_met(self, code: int) -> bool:
        """Whether that was the errno of the call that failed."""
        return self.kernel.fault is not None and self.kernel.fault.code == code

    def has_failed(self, call: str) -> bool:
        """Whether such a call has."""
        return any(made.name == call for made in self.kernel.failed)

    def holds(self) -> Message:
        """The stage's own process has consumed the message."""
        return cast.holds(self.broker, self.accounts)

    def let_expire(self) -> None:
        """Somebody had it, and died."""
        other = self.another()
        cast.holds(other, self.accounts)
        cast.process_of(other).has_crashed = True
        self.later(TIMEOUT_S + 1)


def tried(
    stage: DdmqStage, act: Callable[[], object], check: Callable[[Raised], object], meets: cast.Act | None = None
) -> Try:
    """An operation of the stage's own broker, what it answers remembered."""
    may = (OSError, DdmqError)
    return Try(stage.process, lambda: stage.answers.append(act()), check, may, meets=meets, minds_mount=False)


# ---- the operations


def publish(*, durable: bool) -> Operation:
    """One message more, or none; tried again it is there, and without a lost reply once."""

    def operation(stage: Stage) -> Try:
        assert isinstance(stage, DdmqStage)
        broker = opened(stage.process, durable=durable)

        def act() -> None:
            cast.publish(broker, stage.accounts, NEW)()

        def check(raised: Raised) -> None:
            found = len(stage.states(NEW))
            if raised is None:
                assert found == 1
            else:
                is_in = durable or not stage.is_undone()  # its last wait for the disk failed, or its reply was lost
                assert found <= is_in, "a publish that failed has left a message"
                act()
                assert len(stage.states(NEW)) == found + 1
            assert stage.may_litter() or not stage.litter(), stage.litter()

        return tried(stage, act, check)

    return operation


def consume(count: int = 1) -> Operation:
    """Claimed and said so, or it waits, or it is a claim that expires; then somebody gets it."""

    def operation(stage: Stage) -> Try:
        assert isinstance(stage, DdmqStage)

        def act() -> list[Message]:
            found = stage.broker.consume(NAME, count, clean=False)
            return found if isinstance(found, list) else [found] if found else []

        def check(raised: Raised) -> None:
            for message in stage.answers[-1] if stage.answers else []:
                cast.settle_taken(
                    stage.broker, stage.accounts, cast.taken(stage.broker, stage.accounts, message), "ack"
                )
            for message in act():
                cast.settle_taken(
                    stage.broker, stage.accounts, cast.taken(stage.broker, stage.accounts, message), "ack"
                )
            met = stage.kernel.fault is not None and stage.kernel.fault.how == "is late"
            if stage.is_undone() and not stage.has_met(errno.ENOENT) and not met:
                hidden = [state for state in stage.accounts.states() if state != "errors"]
                assert not stage.states() or stage.has_failed("lstat") or raised is None, hidden

        return tried(stage, act, check, cast.consume(stage.another(), stage.accounts, "ack"))

    return operation


def consume_corrupt(stage: Stage) -> Try:
    """What is no message goes to errors/, and keeps nobody from the next one."""
    assert isinstance(stage, DdmqStage)
    path = f"{QUEUE}/1.1.ddmqbad"
    by = stage.world.process(90)
    stage.accounts.theirs.add(by)
    by.close(by.open(path, 0o101))
    stage.later(OLD_S)
    stage.accounts.theirs.discard(by)

    def act() -> object:
        return stage.broker.consume(NAME, clean=False)

    def check(raised: Raised) -> None:
        message = stage.answers[-1] if stage.answers else None
        if message is None:
            message = act()
        if message is not None:
            cast.settle_taken(stage.broker, stage.accounts, cast.taken(stage.broker, stage.accounts, message), "ack")
        stage.later(OLD_S)  # a link is a change too, and what was changed just now may be one that is being written
        opened(stage.process).consume(NAME, clean=False)
        assert not stage.world.disk.found(path), "it stands at the head"
        stage.accounts.forget("bad")

    return tried(stage, act, check)


def ack(stage: Stage) -> Try:
    """Gone, and told so once."""
    assert isinstance(stage, DdmqStage)
    message = stage.holds()
    one = message.id or ""

    def act() -> object:
        stage.accounts.may_end(stage.process, one)
        if acked := stage.broker.ack(message):
            stage.accounts.was_ended(stage.process, one)
        return acked

    def check(raised: Raised) -> None:
        if raised is not None and stage.is_undone():
            assert stage.states() == ["claimed"], "it was removed, and that was not said"
        if stage.states():
            assert raised is not None or stage.has_met(errno.ENOENT), "it was said to be gone, and is there"
            assert act()
        assert stage.states() == []

    return tried(stage, act, check)


def nack(*, requeue: bool | None) -> Operation:
    """It waits again, or is gone; at the latest when the minute is over in which it was given back."""

    def operation(stage: Stage) -> Try:
        assert isinstance(stage, DdmqStage)
        message = stage.holds()
        one = message.id or ""

        def act() -> object:
            if requeue is False:
                stage.accounts.may_end(stage.process, one)
            return stage.broker.nack(message, requeue=requeue)

        def check(raised: Raised) -> None:
            expected = [] if requeue is False else ["waits"]
            if raised is None and stage.answers[-1]:
                assert stage.states() == expected
            if stage.states() != expected:
                act()
            if stage.states() != expected:  # a claim of our own
                stage.later(TIMEOUT_S + 1)
                for _ in range(2):
                    cast.clean(stage.another(), stage.accounts)()
                    stage.later(OURS_S + 1)
            assert stage.states() in (expected, ["waits"])
            assert stage.may_litter() or not stage.litter(), stage.litter()

        return tried(stage, act, check)

    return operation


def touch(stage: Stage) -> Try:
    """Nobody takes it for expired."""
    assert isinstance(stage, DdmqStage)
    message = stage.holds()
    stage.later(TIMEOUT_S - 1)

    def check(raised: Raised) -> None:
        if raised is not None or stage.answers == [False]:
            is_known = stage.broker.touch(message)
            assert is_known or not stage.is_undone()
        if stage.is_undone():
            stage.later(2)
            cast.clean(stage.another(), stage.accounts)()
            assert stage.states() == ["claimed"]

    return tried(stage, lambda: stage.broker.touch(message), check)


def cleaning(**options: Any) -> Operation:
    """What has expired waits again, once, or is gone when it does not ask for that."""

    def operation(stage: Stage) -> Try:
        assert isinstance(stage, DdmqStage)
        stage.let_expire()
        expected = ["waits"] if options.get("requeue", True) else []

        def act() -> object:
            return stage.broker.clean(NAME, force=True)

        def check(raised: Raised) -> None:
            for _ in range(3):
                if stage.states() == expected:
                    break
                act()
                stage.later(OURS_S + 1)
            assert stage.states() == expected, stage.states()
            assert stage.may_litter() or not stage.litter(), stage.litter()

        return tried(stage, act, check, cast.clean(stage.another(), stage.accounts))

    return operation


def requeue_message(stage: Stage) -> Try:
    """The same, by its path."""
    assert isinstance(stage, DdmqStage)
    stage.let_expire()
    (name,) = stage.files(WORK)

    def act() -> object:
        return stage.broker.requeue_message(f"{WORK}/{name}")

    def check(raised: Raised) -> None:
        if raised is None:
            assert stage.states() == ["waits"]
        for _ in range(3):
            cast.clean(stage.another(), stage.accounts)()
            stage.later(OURS_S + 1)
        assert stage.states() == ["waits"]

    return tried(stage, act, check, cast.clean(stage.another(), stage.accounts))


def purge(stage: Stage) -> Try:
    """Nothing is left."""
    assert isinstance(stage, DdmqStage)
    act = cast.purge(stage.broker, stage.accounts)

    def check(raised: Raised) -> None:
        if stage.states():
            assert raised is not None or stage.has_met(errno.ENOENT), stage.states()
            act()
        assert not stage.states()

    return tried(stage, act, check, cast.consume(stage.another(), stage.accounts))


def update_settings(stage: Stage) -> Try:
    """The whole of the old file or of the new one; tried again, the new one."""
    assert isinstance(stage, DdmqStage)
    disk, path = stage.world.disk, f"{QUEUE}/ddmq.yaml"
    before = disk.inode(path).data

    def act() -> None:
        stage.broker.update_settings_file(NAME, {"priority": 5})

    def check(raised: Raised) -> None:
        assert disk.inode(path).data in (before, before.replace(b"999", b"5"))
        if raised is not None:
            act()
        assert disk.inode(path).data == before.replace(b"999", b"5")
        assert stage.another().get_settings(NAME)["priority"] == 5
        assert stage.may_litter() or not stage.litter(), stage.litter()

    return tried(stage, act, check)


def create_queue(stage: Stage) -> Try:
    """There is none, or a whole one; tried again, one."""
    assert isinstance(stage, DdmqStage)

    def act() -> object:
        return stage.broker.create_queue("another")

    def check(raised: Raised) -> None:
        if raised is None:
            assert stage.answers == [True]
        elif "another" not in stage.another().list_queues():
            assert act() is True
        assert stage.another().list_queues() == ["another", NAME]
        stage.another().publish("another", "x")

    return tried(stage, act, check, None)


def open_root(stage: Stage) -> Try:
    """Tried again it is open, and a queue can be used."""
    assert isinstance(stage, DdmqStage)

    def act() -> Broker:
        return Broker(f"{ROOT}2", create=True, system=stage.process)

    def check(raised: Raised) -> None:
        broker = stage.answers[-1] if raised is None else act()
        broker.publish("one", "x", clean=False)
        assert broker.consume("one", clean=False).message == "x"

    return tried(stage, act, check)


def look(verb: Callable[[Broker], object]) -> Operation:
    """What is only read."""

    def operation(stage: Stage) -> Try:
        assert isinstance(stage, DdmqStage)

        def check(raised: Raised) -> None:
            assert verb(stage.broker) == verb(stage.another())

        return tried(stage, lambda: verb(stage.broker), check)

    return operation


OPERATIONS: dict[str, Operation] = {
    "publish": publish(durable=False),
    "publish durable": publish(durable=True),
    "consume": consume(),
    "consume two": consume(2),
    "consume corrupt": consume_corrupt,
    "ack": ack,
    "nack": nack(requeue=None),
    "nack, removed": nack(requeue=False),
    "touch": touch,
    "clean": cleaning(),
    "clean, removed": cleaning(requeue=False),
    "clean at the limit": cleaning(requeue_limit=1),
    "requeue_message": requeue_message,
    "purge_queue": purge,
    "update_settings_file": update_settings,
    "create_queue": create_queue,
    "open": open_root,
    "get_message_list": look(lambda broker: broker.get_message_list(NAME)),
    "list_queues": look(lambda broker: broker.list_queues()),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "clean, removed": {"requeue": False},
    "clean at the limit": {"requeue_limit": 1},
}


def fail_calls_of(name: str, network: str | None) -> Counts:
    """Try the operation *name*, everything. Raises AssertionError."""
    return fail_every_call(OPERATIONS[name], lambda: DdmqStage(network, BODY, **OPTIONS.get(name, {})))
