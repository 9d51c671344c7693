"""
ddmq_cast - who takes part in a simulated ddmq: consumers, publishers, cleaners, the original, and who ends it

Ours are the real brokers over a simulated process; the original is the sequence of its
calls. What a consumer does between consume and ack is written here, with what it says to
the ledger.

See also: scenarios_ddmq (who meets whom), ddmq_ledger (what they must not do to a message), ddmq_pools.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import Any

from tests.sim.ddmq_ledger import NAME, QUEUE, ROOT, WORK, DdmqLedger, expiry_of, place_of
from tests.sim.kernel import Process, World
from workers.ddmq.broker import Broker
from workers.ddmq.claims import Outcome
from workers.ddmq.message import Message

S = 10**9
TIMEOUT_S = 600
OLD_S = 3600
NAP_S = 0.1
Act = Callable[[], object]


class Sleeper(Process):
    """For whom time passes while it sleeps, if it sleeps for long enough to matter."""

    def sleep(self, seconds: float) -> None:  # type: ignore[override] # a static method there
        """See System."""
        if seconds >= NAP_S:
            self.advance(seconds)


class DdmqWorld(World):
    """One of sleepers."""

    def process(self, pid: int, host: str = "one") -> Process:
        """See World."""
        process = self.processes[pid] = Sleeper(self, pid, host)
        return process


def make_world(
    *bodies: str, network: str | None = None, has_flags: bool | None = None, requeue: bool = True, **options: Any
) -> tuple[World, DdmqLedger]:
    """A world with a queue in which *bodies* wait, each with *requeue* and these *options* of publish()."""
    world = DdmqWorld(network=network, exact=True, has_flags=network is None if has_flags is None else has_flags)
    ledger = DdmqLedger(world)
    maker = Broker(ROOT, create=True, system=world.process(1))
    maker.create_queue(NAME)
    for body in bodies:
        ledger.was_put(maker.publish(NAME, body, clean=False, requeue=requeue, **options).id or "")
    return world, ledger


def opened(process: Process, *, durable: bool = False) -> Broker:
    """The root as *process* has it, its settings read."""
    broker = Broker(ROOT, system=process, durable=durable)
    broker.get_settings(NAME)
    return broker


def process_of(broker: Broker) -> Process:
    """Whose broker it is."""
    assert isinstance(broker._system, Process)
    return broker._system


# ---- ours


def consume(
    broker: Broker, ledger: DdmqLedger, settle: str = "ack", *, times: int = 1, n: int = 1, may_fail: bool = False
) -> Act:
    """Who consumes *times* times, and settles by the verb *settle*. Nothing may fail, unless it *may_fail*."""

    def act() -> None:
        for _ in range(times):
            with suppress(OSError) if may_fail else nullcontext():
                found = broker.consume(NAME, n, clean=False)
                for message in found if isinstance(found, list) else [found] if found else []:
                    taken(broker, ledger, message)
                    settle_taken(broker, ledger, message, settle)

    return act


def taken(broker: Broker, ledger: DdmqLedger, message: Message) -> Message:
    """*message*, said to be had."""
    path = f"{WORK}/{message.filename}"
    ledger.holds(process_of(broker), message.id or "", message.message, expiry_of(path))
    if place_of(path)[1] != message.id:
        ledger.is_wrong(f"{message.id} was said to be claimed as {message.filename}")
    if ledger.is_held(process_of(broker), message.id) and message.requeue_counter != ledger.counter(message.id):
        ledger.is_wrong(f"{message.id} was said to be requeued {message.requeue_counter} times")
    return message


def holds(broker: Broker, ledger: DdmqLedger) -> Message:
    """What *broker* consumes; there must be something."""
    found = broker.consume(NAME, clean=False)
    assert isinstance(found, Message)
    return taken(broker, ledger, found)


def settle_taken(broker: Broker, ledger: DdmqLedger, message: Message, settle: str) -> None:
    """The end of a message in hand by a verb; "" is none, and "touch ack" two of them."""
    by, one = process_of(broker), message.id or ""
    verb, _, then = settle.partition(" ")
    if then:
        assert verb == "touch"
        if not broker.touch(message):
            ledger.was_lost(by, one)
        verb = then
    if verb == "ack":
        ledger.may_end(by, one)
        if broker.ack(message):
            ledger.was_ended(by, one)
        else:
            ledger.was_lost(by, one)
    elif verb == "drop":
        ledger.may_end(by, one)
        if broker.nack(message, requeue=False):
            ledger.was_ended(by, one)
    elif verb == "nack":
        broker.nack(message)
    else:
        assert not verb, verb


def publish(broker: Broker, ledger: DdmqLedger, body: str, *, may_fail: bool = False, **options: Any) -> Act:
    """A producer of one message, that says what it was answered."""

    def act() -> None:
        with suppress(OSError) if may_fail else nullcontext():
            ledger.was_put(broker.publish(NAME, body, clean=False, requeue=True, **options).id or "")

    return act


def clean(broker: Broker, ledger: DdmqLedger, *, whole: bool = False, may_fail: bool = False) -> Act:
    """A cleaner; unless it is the *whole*, without the note of it and the sweep, which have too many orders."""
    give_back = broker._give_back

    def giving_back(*arguments: Any) -> Outcome:
        try:
            outcome = give_back(*arguments)
        except OSError as error:
            if not may_fail:
                ledger.is_wrong(f"clean by {process_of(broker).pid}: {error}")
            raise
        if outcome is Outcome.REQUEUED:
            ledger.was_requeued(process_of(broker), place_of(f"{WORK}/{arguments[1]}")[1])
        return outcome

    broker._give_back = giving_back  # type: ignore[method-assign]
    if not whole:
        broker._settings.update = lambda *_, **__: None  # type: ignore[method-assign]
        broker._of(NAME).sweep_tmp = lambda _: 0  # type: ignore[method-assign]

    def act() -> None:
        with suppress(OSError) if may_fail else nullcontext():
            broker.clean(NAME, force=True)

    return act


def sweep(broker: Broker) -> Act:
    """The part of a cleaning that removes what writers have left."""
    return lambda: broker._of(NAME).sweep_tmp(OLD_S)


def purge(broker: Broker, ledger: DdmqLedger) -> Act:
    """Who removes all."""
    ledger.purgers.add(process_of(broker))
    return lambda: broker.purge_queue(NAME)


def update(broker: Broker, ledger: DdmqLedger, key: str) -> Act:
    """Who changes a setting; while another is at it, or often, it does not."""

    def act() -> None:
        with suppress(BlockingIOError):
            broker._settings.update(NAME, {key: 7}, wait_s=0)
            ledger.settings.add(key)

    return act


def wait(process: Process, seconds: float) -> Act:
    """So much time passes at any moment."""
    return lambda: process.advance(seconds)


# ---- the original


def their_publish(process: Process, ledger: DdmqLedger, body: str, *, halves: bool = True) -> Act:
    """It writes in place, a long message in several calls."""
    ledger.theirs.add(process)
    return lambda: _write_in_place(process, body, {}, halves=halves)


def _write_in_place(process: Process, body: str, more: dict[str, Any], *, halves: bool = False) -> str:
    one, number = process.random_bytes(16).hex(), str(process.wall_ns() / 1e9).replace(".", "")
    name = f"999.{number}.ddmq{one}"
    message = {
        "message": body, "queue": NAME, "timeout": None, "id": one, "priority": 999, "queue_number": number,
        "filename": name, "requeue": True, "requeue_counter": 0, "requeue_limit": None,
    }  # fmt: skip
    data = json.dumps(message | more).encode()
    fd = process.open(f"{QUEUE}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    if halves:
        process.write(fd, data[: len(data) // 2])
        data = data[len(data) // 2 :]
    process.write(fd, data)
    process.close(fd)
    return one


def their_consume(process: Process, ledger: DdmqLedger, settle: str = "ack") -> Act:
    """It lists, sorts, reads, renames; then stat and unlink, or a new message and unlink. A lost race ends it (Q12)."""
    ledger.theirs.add(process)

    def act() -> None:
        names = [name for name in process.listdir(QUEUE) if ".ddmq" in name]
        if not names:
            return
        name = min(names)
        with suppress(FileNotFoundError, ValueError):
            message = json.loads(_read(process, f"{QUEUE}/{name}"))
            work = f"{WORK}/{process.wall_ns() // S + TIMEOUT_S}.{name}"
            process.rename(f"{QUEUE}/{name}", work)
            one = place_of(work)[1]
            ledger.holds(process, one, message["message"], expiry_of(work))
            process.stat(work)
            if settle == "nack":
                _requeue(process, work)
            elif settle == "ack":
                process.unlink(work)
                ledger.was_ended(process, one)

    return act


def their_clean(process: Process, ledger: DdmqLedger) -> Act:
    """It lists, and requeues what has expired by its own clock."""
    ledger.theirs.add(process)

    def act() -> None:
        with suppress(FileNotFoundError, ValueError):
            for name in process.listdir(WORK):
                if ".ddmq" in name and expiry_of(f"{WORK}/{name}") < process.wall_ns() // S:
                    _requeue(process, f"{WORK}/{name}")

    return act


def _requeue(process: Process, work: str) -> None:
    message = json.loads(_read(process, work))
    _write_in_place(process, message["message"], {"requeue_counter": message["requeue_counter"] + 1})
    process.unlink(work)


def _read(process: Process, path: str) -> bytes:
    fd = process.open(path, os.O_RDONLY)
    data = process.read(fd, 1 << 16)
    process.close(fd)
    return data


# ---- the end


def recover(world: World, ledger: DdmqLedger) -> None:
    """All others are gone: after its time one of ours cleans, and ends what is left. Then nothing may be left."""
    world.disk.is_full = False
    broker = opened(world.process(99_999))
    if lost := {key for key in ledger.settings if broker.get_settings(NAME)[key] != 7}:
        raise AssertionError(f"changed, and not as changed: {lost}")
    for _ in range(3):
        world.moved_ns += (OLD_S + 1) * S
        broker.clean(NAME, force=True)
        while (found := broker.consume(NAME, clean=False)) is not None:
            assert isinstance(found, Message)
            settle_taken(broker, ledger, taken(broker, ledger, found), "ack")
    ledger.check_all_ended()
