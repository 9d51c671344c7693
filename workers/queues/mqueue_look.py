"""
mqueue_look - what an operator sees of a message queue of the kernel; reads only

What waits can only be counted: the kernel shows it to nobody who does not take it. A listing is a
picture of a moving thing.

Raises: OSError.
See also: mqueue (the verbs), receive (what is in hand), spool_look (what lies beside the queue is looked at as there).
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from workers.queues import spool_look
from workers.queues.base import STATES, Depth, Listed, Shown, State

if TYPE_CHECKING:
    from workers.queues.mqueue import Mqueue

PRIORITY_MAX = 32767
_NAME = re.compile(r"(0|[1-9][0-9]{0,4})\.[0-9a-f]{32}\Z")


def name_of(body: bytes, priority: int) -> str:
    """What a message is called: the same whenever it is met, for the kernel gives it no name."""
    return f"{priority}.{hashlib.blake2b(body, digest_size=16).hexdigest()}"


def priority_of(name: str) -> int | None:
    """The priority in a name; None for what is none of ours."""
    if not _NAME.match(name):
        return None
    priority = int(name.partition(".")[0])
    return priority if priority <= PRIORITY_MAX else None


def depth(waiting: int, queue: Mqueue) -> Depth:
    """Count by state, in the order in which messages move; *waiting* was asked before."""
    now_s = queue.system.wall_ns() / 1e9
    held = [seen.received_ns for seen in queue.receive_place.seen() if seen.has_message]
    first_s = min((received_ns / 1e9 for received_ns in held if received_ns), default=now_s)
    counts, ages = {}, {"claimed": min(max(now_s - first_s, 0.0), spool_look.AGE_S_MAX)}
    for kept in ("deferred", "errors"):
        counts[kept], age = 0, spool_look.Ages(queue.beside)
        with contextlib.suppress(FileNotFoundError):  # nobody has had to keep anything there
            for place, file, name in spool_look.kept_files(queue.beside, kept):
                if priority_of(name) is not None:
                    counts[kept] += 1
                    age.add(place, file, name)
        ages[kept] = age.age_s()
    return Depth(waiting, len(held), counts["deferred"], counts["errors"], 0, ages)


def listed(queue: Mqueue, state: State | None = None) -> Iterator[Listed]:
    """Each message of *state*, or of all that can be listed, sorted by name within a state."""
    for one in (state,) if state else STATES:
        yield from sorted(_lines(queue, one), key=lambda line: line.name)


def _lines(queue: Mqueue, state: State) -> Iterator[Listed]:
    if state == "claimed":
        for seen in queue.receive_place.seen(is_whole=True):
            if seen.has_message:
                name = name_of(seen.body, seen.priority)
                yield Listed(name, state, seen.path, seen.attempts + 1, seen.crashes, seen.owner)
    elif state in ("deferred", "errors"):
        with contextlib.suppress(FileNotFoundError):
            for line in spool_look.lines(queue.beside, state):
                if priority_of(line.name) is not None:  # else it is none of ours, whoever laid it there
                    yield line


def show(queue: Mqueue, name: str) -> list[Shown]:
    """Everything known of the messages called *name* that can be listed."""
    held = {seen.path: seen for seen in queue.receive_place.seen(is_whole=True)}
    found = []
    for one in spool_look.shown(queue.beside, (line for line in listed(queue) if line.name == name)):
        seen = held.get(one.listed.path)
        if seen is None:
            found.append(one)
        else:
            at_s = seen.received_ns / 1e9
            found.append(Shown(one.listed, len(seen.body), at_s, at_s, body=seen.body))
    return found
