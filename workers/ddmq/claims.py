"""
claims - the end of a claim that is not an ack: requeued, or removed at its limit

Requeueing is three steps, and what lies in work/ between them is a claim that expires:

1. touch: the claim gets an expiry of our own, a minute from now. Of several cleaners, and
   a consumer who acks just then, one gets it; the others find nothing.
2. rewrite: its content gets the new priority and one more in requeue_counter. Id, number,
   timeout and all else stay.
3. put_back: it waits, under the new priority.

A crash before 3 counts as one more requeue when the minute is over; nothing is lost or there twice.
See also: files (the steps), tests/unit/test_ddmq_faults (Q11: every order of them).
"""

from __future__ import annotations

import errno
import json
import logging
from collections.abc import Callable, Mapping
from enum import Enum

from workers.ddmq.aside import set_aside
from workers.ddmq.errors import CorruptError
from workers.ddmq.files import QueueFiles
from workers.ddmq.flat_yaml import Value
from workers.ddmq.message import Message
from workers.ddmq.names import parse_work
from workers.ddmq.settings import whole

log = logging.getLogger(__name__)

OURS_S = 60  # a claim that is being requeued is left alone by others for so long
NO_MESSAGE = {
    errno.ELOOP: "is a symbolic link",
    errno.ENXIO: "is a socket, or a device without a driver",
    errno.EINVAL: "is no regular file",
}


class Outcome(Enum):
    """What became of a claim."""

    REQUEUED = "requeued"
    REMOVED = "removed"
    SET_ASIDE = "set aside"
    GONE = "gone"  # another has it


def parse(data: bytes) -> Message:
    """The message that a file holds. Raises CorruptError."""
    try:
        found = json.loads(data)
        return Message.json2msg(found)
    except (ValueError, RecursionError) as error:
        raise CorruptError(f"is no JSON object: {error}" if data else "is empty") from None


def reason_of(error: OSError) -> str | None:
    """Why a file that cannot be opened because of *error* can never be a message; None when it may be one."""
    return NO_MESSAGE.get(error.errno or 0)


def load(files: QueueFiles, path: str) -> Message:
    """The message in the file *path*. Raises CorruptError, OSError."""
    try:
        return parse(files.read(path)[0])
    except OSError as error:
        if reason := reason_of(error):
            raise CorruptError(reason) from None
        raise


def wants_requeue(message: Message) -> bool:
    """Whether the message itself asks to be requeued: by True, or by a priority, of which 0 is one."""
    return message.requeue is not None and message.requeue is not False


def is_at_limit(message: Message) -> bool:
    """Whether it was requeued as often as it may be. No limit, and 0, is for ever."""
    limit = message.requeue_limit
    return isinstance(limit, int) and bool(limit) and _counter(message) >= limit


def requeue_priority(message: Message, settings: Mapping[str, Value]) -> int:
    """The priority that the message gets: its own number, else the setting's."""
    if isinstance(message.requeue, int) and not isinstance(message.requeue, bool):
        return max(message.requeue, 0)
    return whole(settings, "requeue_prio")


def give_back(
    files: QueueFiles,
    work_name: str,
    settings: Mapping[str, Value],
    wants: Callable[[Message], bool],
    message: Message | None = None,
) -> Outcome:
    """
    End the claim *work_name*: requeue it when *wants* says so of its message and its limit allows it, else remove it.

    *message*, when given, is what is put back instead of the file's content. Raises OSError: then it is a claim still,
    that expires.
    """
    now = int(files.now_s()) + OURS_S
    claim = parse_work(work_name)
    if claim is None:
        return Outcome.GONE
    # ORDER: touch, then read and decide. Two cleaners that have both read would both requeue.
    # See test_Q11_every_order_of_two_cleaners_and_an_ack_keeps_one_message.
    ours = files.touch(work_name, now if now != claim[0] else now + 1)
    if ours is None:
        return Outcome.GONE
    try:
        found = message or load(files, f"{files.work}/{ours}")
    except CorruptError as error:
        return Outcome.SET_ASIDE if set_aside(files, f"{files.work}/{ours}", error.message) else Outcome.GONE
    if not wants(found) or is_at_limit(found):
        return Outcome.REMOVED if files.remove(ours) else Outcome.GONE
    return Outcome.REQUEUED if _put_back(files, ours, claim[1], found, settings) else Outcome.GONE


def _put_back(files: QueueFiles, work_name: str, waited_as: str, found: Message, settings: Mapping[str, Value]) -> bool:
    """Let the message *found* of a claim that is ours alone wait again; False when the claim is gone."""
    priority = requeue_priority(found, settings)
    name = f"{priority}.{waited_as.partition('.')[2]}"
    new = Message.json2msg(found.__dict__)
    new.update({"priority": priority, "filename": name, "requeue_counter": _counter(found) + 1})
    # ORDER: rewrite, then put back. A message that waits belongs to whoever takes it, and may not change.
    # See test_Q11_every_order_of_two_cleaners_and_an_ack_keeps_one_message.
    if not files.rewrite(work_name, new.msg2json().encode()):
        return False
    try:
        return files.put_back(work_name, name)
    except FileExistsError:
        log.warning("%s/%s waits already: this copy of it stays in work until it can be put back", files.path, name)
        return False


def _counter(message: Message) -> int:
    counter = message.requeue_counter
    return counter if isinstance(counter, int) else 0
