"""
names - what ddmq calls its messages and queues

A waiting message is PRIO.NUMBER.ddmqID, a claimed one EXPIRY.PRIO.NUMBER.ddmqID. NUMBER is
the time of publishing without its decimal point: ten digits of seconds, then those of
the fraction as far as they are not zero, so it is compared as text, from the left.
EXPIRY may have a fraction: an original adds whatever a message's timeout is, and a claim of
ours on a network filesystem has one that no other claim has.

The format knows no limits, a file's name has 255 bytes: so what we publish has some.

See also: files (what is done with them).
"""

from __future__ import annotations

import re
from typing import NamedTuple

WAITING = re.compile(r"\A([0-9]+)\.([0-9]+)\.ddmq([0-9A-Za-z]+)\Z")
WORK = re.compile(r"\A([0-9]+)(\.[0-9]+)?\.([0-9]+\.[0-9]+\.ddmq[0-9A-Za-z]+)\Z")
TEMPORARY = re.compile(r"\A\.[0-9a-f]{32}\.tmp\Z")  # of ours; the originals take *.ddmq* for messages, and skip this
NEW_QUEUE = re.compile(r"\A[a-zA-Z0-9_-]+\Z")
NEW_QUEUE_MAX = 240  # bytes; a pool writes more behind it
PRIORITY_MAX = 10**18 - 1
FRACTION_DIGITS = 12  # of those that we draw; a float of this century, which an original may write, has six or seven
TIMEOUT_MAX_S = 10**11  # three thousand years: an expiry has twelve digits at most
WAITING_MAX = 255 - len("123456789012.")  # bytes of a name that can still be claimed


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
    """The second in which a claim has expired, and the name under which it waited; None when *name* is none."""
    found = WORK.match(name)
    return (int(found[1]) + bool(found[2]), found[3]) if found else None


def claim_name(expiry: int, name: str, fraction: int = 0) -> str:
    """
    The name of a claim of waiting *name* until *expiry*.

    *fraction*: digits that are drawn for this claim alone, where another may claim the message to the same second and
    both be told that they have it (see QueueFiles.fraction); 0 for none.
    """
    return f"{expiry}.{fraction}.{name}" if fraction else f"{expiry}.{name}"


def is_by_shared_clock(work_name: str) -> bool:
    """Whether a claim has such digits: then its expiry is by the filesystem's clock, as those of ours are."""
    found = WORK.match(work_name)
    return found is not None and len(found[2] or "") == 1 + FRACTION_DIGITS


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
    if len(checked) > NEW_QUEUE_MAX:
        raise ValueError(f"the name of a queue has {len(checked)} letters, but may have {NEW_QUEUE_MAX}: {checked}")
    return checked
