"""
handlers - what the workers of the process tests do with a message

Told by the environment, for the workers are forked by a real master: JOURNAL is a
directory in which every process appends to a file of its own; while HOLD exists,
hold() does not return.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

from tests.waiting import until
from workers import Forward, Message, Reject, Retry

HANDLING_S = 0.005  # what a message costs work()


def write(text: str, to: str = "") -> None:
    """
    Append a line to this process's file of the journal; one call, so a kill leaves it whole or not at all.

    *to* names the file better than a process number, which is used again.
    """
    path = Path(os.environ["JOURNAL"]) / (to or str(os.getpid()))
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    try:
        os.write(fd, f"{text}\n".encode())
    finally:
        os.close(fd)


def note(message: Message) -> None:
    """Write down the name and the size of what was given."""
    write(f"{message.name!r} {message.path.stat().st_size}")


def work(message: Message) -> None:
    """Take 5 ms, then write down the name."""
    threading.Event().wait(HANDLING_S)  # it stands for work, nothing is waited for
    write(message.name)


def hold(message: Message) -> None:
    """Say that it is in hand, and keep it there while HOLD exists."""
    write(f"holds {message.name}")
    until(lambda: not os.path.exists(os.environ["HOLD"]), 60)
    write(f"handled {message.name} {message.body.decode()}")


def fail(message: Message) -> None:
    """Fail, with something to find in the traceback."""
    write(f"{message.attempt} {message.name}")
    raise LookupError(f"no such customer in {message.name}")


def hold_and_fail(message: Message) -> None:
    """Keep it in hand while HOLD exists, then fail."""
    hold(message)
    raise LookupError("no such customer")


def die_of_poison(message: Message) -> None:
    """End the process as a segmentation fault would, for one message."""
    if message.body == b"poison":
        write("poisoned")
        os._exit(9)
    write(message.name)


def answer(message: Message) -> Retry | Reject | Forward | None:
    """Answer what the body asks for; "fail" raises."""
    write(f"answers {message.name}")
    match message.body:
        case b"retry":
            return Retry()
        case b"reject":
            return Reject("not wanted")
        case b"forward":
            return Forward(queue=os.environ["NEXT"])
        case b"fail":
            raise LookupError("asked to fail")
    return None


def misbehave(message: Message) -> None:
    """Do to the claimed file what a program may do: remove it, or leave another beside it."""
    write(repr(message.name))
    if message.body == b"remove":
        message.path.unlink()
    elif message.body == b"leave":
        message.path.with_name("result.csv").write_bytes(b"left behind")
