"""
claims - the end of a claim that is not an ack: requeued, or removed at its limit

Requeueing is three steps, and what lies in work/ between them is a claim that expires:

1. touch: the claim gets an expiry of our own, a minute from now. Of several cleaners, and
   a consumer who acks just then, one gets it; the others find nothing.
2. rewrite: its content gets the new priority and one more in requeue_counter. Id, number,
   timeout and all else stay.
3. put_back: it waits, under the new priority.

After a crash before 3 it is done again when the minute is over; nothing is lost or there twice.
That it was counted already is seen where the priority is a new one, else it is counted once more.
What fails instead gets its old name back, so that its holder can try again by it.
See also: files (the steps), tests/unit/test_ddmq_faults (Q11: every order of them).
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import math
import os
from collections.abc import Callable, Mapping
from enum import Enum

from workers.ddmq.aside import set_aside
from workers.ddmq.errors import CorruptError
from workers.ddmq.files import QueueFiles
from workers.ddmq.flat_yaml import Value
from workers.ddmq.message import Message
from workers.ddmq.names import PRIORITY_MAX, TIMEOUT_MAX_S, WAITING_MAX, is_by_shared_clock, parse_work
from workers.ddmq.settings import whole

log = logging.getLogger(__name__)

COUNTER_MAX = 10**9
OURS_S = 60  # a claim that is being requeued is left alone by others for so long
# What is no JSON yet may still be being written by an original for so long. On a network filesystem what it has written
# may come when the server is back.
YOUNG_S, YOUNG_NETWORK_S = 5, 300
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


def is_young(files: QueueFiles, found: os.stat_result) -> bool:
    """Whether what *found* is the stat of, and is no message, may become one yet."""
    # By ctime, which nobody can set: an mtime far ahead would be young for ever.
    return files.now_s() - found.st_ctime < (YOUNG_NETWORK_S if files.is_network else YOUNG_S)


def lasts_s(timeout: object, message_timeout: int) -> int:
    """For how many seconds a message is claimed that says *timeout*; else as the setting *message_timeout* says."""
    seconds = message_timeout
    if isinstance(timeout, int | float) and 0 < timeout < math.inf:
        seconds = math.ceil(timeout)
    return min(seconds, TIMEOUT_MAX_S)


def is_over(files: QueueFiles, work_name: str, message_timeout: int) -> bool:
    """
    Whether a claim that has expired, as its name says, has lasted as long as it was to. Raises OSError.

    An original writes the time of its host. Where hosts have clocks of their own, one that is behind makes claims that
    are born expired; so there it counts as well how long ago the file got that name, by the filesystem's clock.
    """
    if not files.is_network or is_by_shared_clock(work_name):
        return True
    try:
        data, found = files.read(f"{files.work}/{work_name}")
        timeout = parse(data).timeout
    except FileNotFoundError:  # it has been ended
        return False
    except (CorruptError, PermissionError):
        return True
    except OSError as error:
        if reason_of(error) is None:
            raise
        return True
    return found.st_ctime + lasts_s(timeout, message_timeout) < files.now_s()


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
        return min(max(message.requeue, 0), PRIORITY_MAX)
    return min(whole(settings, "requeue_prio"), PRIORITY_MAX)


def give_back(
    files: QueueFiles,
    work_name: str,
    settings: Mapping[str, Value],
    wants: Callable[[Message], bool],
    message: Message | None = None,
) -> Outcome:
    """
    End the claim *work_name*: requeue it when *wants* says so of its message and its limit allows it, else remove it.

    *message*, when given, is what is put back instead of the file's content. Raises OSError, and CorruptError for a
    *message* that JSON cannot hold: then it is the claim that it was.
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
        try:
            found = message or load(files, f"{files.work}/{ours}")
            is_written = message is None and _is_written(found, claim[1], settings)
            if not wants(found) or (is_at_limit(found) and not is_written):
                return Outcome.REMOVED if files.remove(ours) else Outcome.GONE
            name, data = _requeued(found, claim[1], settings)
        except FileNotFoundError:  # purged
            return Outcome.GONE
        except CorruptError as error:
            if message is not None:
                raise
            return Outcome.SET_ASIDE if set_aside(files, f"{files.work}/{ours}", error.message) else Outcome.GONE
        return Outcome.REQUEUED if _put_back(files, ours, name, None if is_written else data) else Outcome.GONE
    except BaseException:
        # Under the name that its holder knows, or it could not try again: in a minute a cleaning would remove it.
        with contextlib.suppress(OSError):
            files.system.rename(f"{files.work}/{ours}", f"{files.work}/{work_name}")
        raise


def _requeued(found: Message, waited_as: str, settings: Mapping[str, Value]) -> tuple[str, bytes]:
    """The name under which *found* waits again, and its content. Raises CorruptError for what cannot be written."""
    name = _name_of(found, waited_as, settings)
    priority = int(name.partition(".")[0])
    new = Message.json2msg(found.__dict__)
    counter = min(_counter(found), COUNTER_MAX) + 1
    # By the class, for the message may have a field of any name.
    Message.update(new, {"priority": priority, "filename": name, "requeue_counter": counter})
    try:
        return name, Message.msg2json(new).encode()
    except (TypeError, ValueError, RecursionError) as error:  # a number that is too long now, a nesting too deep
        raise CorruptError(f"cannot be requeued: {error}") from None


def _name_of(found: Message, waited_as: str, settings: Mapping[str, Value]) -> str:
    """The name under which *found* is to wait again."""
    name = f"{requeue_priority(found, settings)}.{waited_as.partition('.')[2]}"
    return name if len(name) <= WAITING_MAX else waited_as  # else nobody could claim it


def _is_written(found: Message, waited_as: str, settings: Mapping[str, Value]) -> bool:
    """Whether *found* is what a requeue has left that ended after rewrite: it names itself as it was to wait then."""
    return found.filename != waited_as and found.filename == _name_of(found, waited_as, settings)


def _put_back(files: QueueFiles, work_name: str, name: str, data: bytes | None) -> bool:
    """Let a claim that is ours alone wait again as *name*, with *data* if any is new; False when it is gone."""
    # ORDER: rewrite, then put back. A message that waits belongs to whoever takes it, and may not change.
    # See test_Q11_every_order_of_two_cleaners_and_an_ack_keeps_one_message.
    if data is not None and not files.rewrite(work_name, data):
        return False
    try:
        return files.put_back(work_name, name)
    except FileExistsError:
        log.warning("%s/%s waits already: this copy of it stays in work until it can be put back", files.path, name)
        return False


def _counter(message: Message) -> int:
    counter = message.requeue_counter
    return counter if isinstance(counter, int) else 0
