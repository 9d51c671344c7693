"""
names - what ddmq calls its messages and queues

A waiting message is PRIO.NUMBER.ddmqID, a claimed one EXPIRY.PRIO.NUMBER.ddmqID. NUMBER is
the time of publishing without its decimal point: ten digits of seconds, then those of
the fraction as far as they are not zero, so it is compared as text, from the left.

See also: files (what is done with them).
"""

from __future__ import annotations

import re
from typing import NamedTuple

WAITING = re.compile(r"\A([0-9]+)\.([0-9]+)\.ddmq([0-9A-Za-z]+)\Z")
WORK = re.compile(r"\A([0-9]+)\.([0-9]+\.[0-9]+\.ddmq[0-9A-Za-z]+)\Z")
TEMPORARY = re.compile(r"\A\.[0-9a-f]{32}\.tmp\Z")  # of ours; the originals take *.ddmq* for messages, and skip this
NEW_QUEUE = re.compile(r"\A[a-zA-Z0-9_-]+\Z")


class Waiting(NamedTuple):
    """The parts of a waiting message's name."""

    priority: int  # 0 is the most urgent
    number: str
    id: str


def parse_waiting(name: str) -> Waiting | None:
    """Take the name of a waiting message apart; None when it is none."""
    found = WAITING.match(name)
    return Waiting(int(found[1]), found[2], found[3]) if found else None


def parse_work(name: str) -> tuple[int, str] | None:
    """Expiry of a claim, and the name under which the message waited; None when *name* is none."""
    found = WORK.match(name)
    return (int(found[1]), found[2]) if found else None


def waiting_key(name: str) -> str:
    """
    Text that sorts as messages are served: priority as a number, then NUMBER and id as text.

    *name* is that of a waiting message. A dot sorts before the digits, so NUMBER is compared from the left.
    """
    priority, _, rest = name.partition(".")
    priority = priority.lstrip("0") or "0"
    # A number with more digits is the greater one, and a file's name has at most 255.
    return f"{len(priority):03}{priority}.{rest}"


def is_message_like(name: str) -> bool:
    """Whether an original takes *name* for a message: it asks for no more than this."""
    return ".ddmq" in name


def check_queue(queue: object) -> str:
    """
    *queue*, when it can be the name of a queue. Raises ValueError.

    The originals' library took any name, so one that is there already may hold other characters than a new one.
    """
    if not isinstance(queue, str):
        raise ValueError(f"the name of a queue is text, not {type(queue).__name__}")
    if queue in ("", ".", "..") or "/" in queue or "\0" in queue:
        raise ValueError(f"{queue!r} cannot be the name of a queue: it is a directory's in the root, without '/'")
    return queue


def check_new_queue(queue: object) -> str:
    """*queue*, when a new queue may be called that. Raises ValueError."""
    checked = check_queue(queue)
    if not NEW_QUEUE.match(checked):
        raise ValueError(f"{queue!r} cannot be the name of a queue: letters, digits, '_' and '-' only")
    return checked
