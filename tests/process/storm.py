"""
storm - the producers of the crash storm, and what its workers do with a message

The body says what is to become of it, and carries a checksum, so that a worker knows a part from
the whole. A producer writes down each name that put() has answered: those are the accepted ones.
It is a program: ``python -m tests.process.storm QUEUE RECORD COUNT SEED`` goes on from what RECORD holds
until COUNT names stand there. It puts while few messages wait, so that it lives as long as the storm.

See also: test_storm (which kills them all), handlers (the journal).
"""

from __future__ import annotations

import hashlib
import os
import random
import sys
import threading
import time
from pathlib import Path

from tests.process.handlers import write
from tests.waiting import until
from workers import Forward, Message, Reject, Retry, open_queue

# What becomes of a message, and how many of a hundred are of that kind.
KINDS = {"plain": 60, "forward": 18, "retry": 8, "fail": 6, "reject": 4, "hopeless": 4}
TORN = "torn"
HANDLING_S = 0.01  # before the line, and once more after it
SIZES = {0: 10, 1: 10, 100: 40, 3000: 20, 5000: 14, 70_000: 5, 300_000: 1}
WAYS = ("durable", "not durable", "named", "delayed", "batch")
BATCH = 8
WAITING_MAX = {2: 1, 64: 9}  # now and then the workers wait for messages, mostly messages for workers


def make_body(kind: str, filling: bytes) -> bytes:
    """A body that says what is wanted."""
    return f"{kind} {hashlib.sha256(filling).hexdigest()}\n".encode() + filling


def kind_of(body: bytes) -> str:
    """What is wanted; TORN when this is not all that was put."""
    head, _, filling = body.partition(b"\n")
    kind = head.partition(b" ")[0].decode("utf-8", "replace")
    return kind if body == make_body(kind, filling) else TORN


def handle(message: Message) -> Retry | Reject | Forward | None:
    """
    Write down queue, attempt, kind and name in the middle of some work, into a file named after the claim's owner.

    So a kill while a message is in hand comes before the line as often as after it.
    """
    kind, queue = kind_of(message.body), Path(message.queue).name
    threading.Event().wait(HANDLING_S)  # it stands for work, nothing is waited for
    write(f"{queue} {message.attempt} {kind} {message.name}", to=message.path.parent.name)
    threading.Event().wait(HANDLING_S)
    match kind:
        case "forward" if queue == "first":
            return Forward(queue="second")
        case "retry" if message.attempt == 1:
            return Retry(after_s=0.1)
        case "fail" if message.attempt == 1:
            raise LookupError("asked to fail once")
        case "hopeless":
            raise LookupError("asked to fail always")
        case "reject":
            return Reject("not wanted")
    return None


def produce(place: Path, record: Path, count: int, seed: str) -> None:
    """Put until *count* names are recorded; may be killed at any moment and begun again."""
    queue = open_queue(str(place))
    fd = os.open(record, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    accepted = record.read_text().count("\n")
    dice = random.Random(f"{seed} {accepted}")  # noqa: S311 - to be repeated
    while accepted < count:
        (waiting_max,) = dice.choices(tuple(WAITING_MAX), tuple(WAITING_MAX.values()))
        until(lambda limit=waiting_max: len(os.listdir(place / "incoming")) < limit, 60)
        (kind,) = dice.choices(tuple(KINDS), tuple(KINDS.values()))
        (size,) = dice.choices(tuple(SIZES), tuple(SIZES.values()))
        way, body = dice.choice(WAYS), make_body(kind, dice.randbytes(size))
        if way == "batch":
            names = queue.put_many([body] * BATCH)
        else:
            # A name of its own, so that one put twice, before the kill and after it, is two messages.
            name = f"{os.getpid()}-{time.time_ns()}.given" if way == "named" else None
            delay = 0.1 if way == "delayed" else 0
            names = [str(queue.put(body, name, delay=delay, durable=way != "not durable"))]
        for name in names:
            os.write(fd, f"{kind} {name}\n".encode())
        accepted += len(names)


if __name__ == "__main__":
    produce(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
