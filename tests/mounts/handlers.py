"""
handlers - what the workers of a fleet do with a message, and what a message looks like

The body carries the message's number and a checksum, so that a worker knows a part from the whole. What is to become
of it follows from the number. A worker writes a line for each step into a file of its own on its host's own disk, and
syncs it, so that what it wrote is there when its host loses its power.

Told by the environment: JOURNAL is that directory, HOST the name of the host. See fleet.
"""

from __future__ import annotations

import hashlib
import os
import random
import threading
from pathlib import Path

from workers import Forward, Message, Retry
from workers.queues import names

HANDLING_S = 0.004  # before the line, and once more after it
SIZES = (0, 1, 100, 3000, 20_000)
KINDS = {0: "retry", 1: "fail", 2: "forward", 3: "forward"}  # of twenty; the others are plain
TORN = -1
_drawn: dict[int, str] = {}  # by process number


def kind_of(number: int) -> str:
    """What is to become of message *number*."""
    return KINDS.get(number % 20, "plain")


def make_body(number: int) -> bytes:
    """The whole of message *number*."""
    dice = random.Random(number)  # noqa: S311 - to be repeated
    filling = dice.randbytes(dice.choice(SIZES))
    return f"{number} {hashlib.sha256(filling).hexdigest()}\n".encode() + filling


def number_of(body: bytes) -> int:
    """Whose body this is; TORN when it is not all that was put."""
    digits = body.partition(b" ")[0]
    return int(digits) if digits.isdigit() and body == make_body(int(digits)) else TORN


def handle(message: Message) -> Retry | Forward | None:
    """Do what the number asks for, and write it down in the middle of some work."""
    queue, number = Path(message.queue.partition("?")[0]).name, number_of(message.body)
    threading.Event().wait(HANDLING_S)  # it stands for work, nothing is waited for
    step = _step(queue, number, message.attempt)
    write(f"{step} {number} {message.attempt} {queue} {message.name}", _owner(message))
    threading.Event().wait(HANDLING_S)
    match step:
        case "retry":
            return Retry(after_s=0)
        case "fail":
            raise LookupError("asked to fail once")
        case "forward":
            return Forward(queue="second")
    return None


def _step(queue: str, number: int, attempt: int) -> str:
    kind = kind_of(number) if number != TORN else "torn"
    if kind == "forward":
        return "forward" if queue == "first" else "done"
    return kind if kind == "torn" or (kind in ("retry", "fail") and attempt == 1) else "done"


def _owner(message: Message) -> str:
    """Who has it in hand, as no other ever will: the claim's own directory where there is one, else this process."""
    owner = message.path.parent.name
    if names.parse_owner(owner):
        return owner
    # Drawn by each process for itself: a machine that boots again gives its numbers away again.
    return _drawn.setdefault(os.getpid(), f"{os.getpid()}.{os.urandom(8).hex()}")


def write(line: str, to: str) -> None:
    """Append *line* to a file of the journal, and see it onto the disk."""
    path = Path(os.environ["JOURNAL"]) / f"{os.environ['HOST']}.{to}"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    try:
        os.write(fd, f"{line}\n".encode())
        os.fsync(fd)
    finally:
        os.close(fd)
