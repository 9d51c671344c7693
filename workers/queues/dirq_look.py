"""
dirq_look - what waits in a directory queue, and what an operator sees of it; reads only

A listing is a picture of a moving thing: an element may be seen in two states, or in
none, when it moved between two directories that were read.

Raises: OSError.
See also: dirq (the verbs), spool_look (what lies beside the queue is looked at as there).
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from dataclasses import replace
from typing import Any

from workers.dirq.elements import DIRECTORY, NAME, Elements, time_of
from workers.queues import spool_look
from workers.queues.base import STATES, Depth, Listed, Shown, Source, State
from workers.queues.beside import Beside, decoded


class Waiting(Source):
    """The elements without a lock, directory by directory: in the format's own order."""

    tree = DIRECTORY

    def __init__(self, elements: Elements[Any]) -> None:
        self._elements = elements

    def names(self, odd: set[str], ignored: set[str]) -> Generator[str]:
        """See Source.names. The format knows its own; what else is there is nobody's business."""
        for directory in self._elements.directories():
            found = _waiting(self._elements, directory, odd)
            if found is None:
                ignored.add(directory)
            else:
                yield from found

    def is_message(self, name: str, _odd: set[str]) -> bool:
        """See Source.is_message."""
        return NAME.match(name) is not None and self._elements.found_lock(name) is None

    @staticmethod
    def key(name: str) -> str:
        """See Source.key."""
        return name


def _waiting(elements: Elements[Any], directory: str, odd: set[str]) -> list[str] | None:
    """See Elements.waiting; None where we may not look: another user's directory keeps nobody from the rest."""
    try:
        return elements.waiting(directory, odd)
    except PermissionError:
        return None


def _told(elements: Elements[Any]) -> Iterator[tuple[str, State | None]]:
    """Each name of an element, and whether it waits or is claimed; None for what can be no element."""
    for directory in elements.directories():
        odd: set[str] = set()
        found = _waiting(elements, directory, odd)
        if found is None:
            continue
        unlocked = set(found)
        for name in elements.names(directory):
            yield name, None if name in odd else _state(elements, name, is_unlocked=name in unlocked)


def _state(elements: Elements[Any], name: str, *, is_unlocked: bool) -> State | None:
    """Of a Queue, whose listing says nothing of locks, by a look at each."""
    if is_unlocked:
        return "waiting" if elements.lists_locks or elements.found_lock(name) is None else "claimed"
    if elements.lists_locks and elements.system.is_directory(elements.element_path(name)):
        return None
    return "claimed"


def waiting_count(elements: Elements[Any]) -> int:
    """How many wait: of a Queue, whose listing says nothing of locks, by a look at each."""
    count = 0
    for directory in elements.directories():
        odd: set[str] = set()
        found = [name for name in _waiting(elements, directory, odd) or () if name not in odd]
        count += len(found) if elements.lists_locks else sum(elements.found_lock(name) is None for name in found)
    return count


def depth(elements: Elements[Any], beside: Beside) -> Depth:
    """Count by state: one pass over each directory. Of a lock nobody can say whose it is: its element is claimed."""
    now_s = elements.system.wall_ns() / 1e9
    counts, oldest, ignored = {"waiting": 0, "claimed": 0}, {"waiting": now_s, "claimed": now_s}, 0
    for name, state in _told(elements):
        if state is None:
            ignored += 1
            continue
        counts[state] += 1
        oldest[state] = min(oldest[state], time_of(name))
    ages = {state: min(max(now_s - first_s, 0.0), spool_look.AGE_S_MAX) for state, first_s in oldest.items()}
    for kept in ("deferred", "errors"):
        counts[kept], age = 0, spool_look.Ages(beside)
        with contextlib.suppress(FileNotFoundError):  # nobody has had to keep anything there
            for place, file, name in spool_look.kept_files(beside, kept):
                if NAME.match(decoded(name)):
                    counts[kept] += 1
                    age.add(place, file, name)
        ages[kept] = age.age_s()
    return Depth(counts["waiting"], counts["claimed"], counts["deferred"], counts["errors"], ignored, ages)


def listed(elements: Elements[Any], beside: Beside, state: State | None = None) -> Iterator[Listed]:
    """Each message of *state*, or of all, sorted by name within a state."""
    for one in (state,) if state else STATES:
        yield from sorted(_lines(elements, beside, one), key=lambda line: line.name)


def _lines(elements: Elements[Any], beside: Beside, state: State) -> Iterator[Listed]:
    if state in ("waiting", "claimed"):
        holders = _holders(beside) if state == "claimed" else {}
        for name, found in _told(elements):
            if found == state:
                path, counts = elements.element_path(name), beside.count_of(name)
                yield Listed(name, state, path, counts.attempts + 1, counts.crashes, holders.get(name))
    elif state != "done":
        with contextlib.suppress(FileNotFoundError):
            for line in spool_look.lines(beside, state):
                if NAME.match(decoded(line.name)):  # else it is no element, whoever laid it there
                    yield replace(line, name=decoded(line.name))


def _holders(beside: Beside) -> dict[str, str]:
    """Which of our workers say that they have an element in hand. A peer's lock names nobody."""
    found = {}
    with contextlib.suppress(FileNotFoundError):
        for owner in beside.system.listdir(beside.held):
            hand = beside.hand_of(owner)
            if hand is not None:
                found[hand.name] = owner
    return found


def show(elements: Elements[Any], beside: Beside, name: str) -> list[Shown]:
    """Everything known of the messages called *name*; one is as old as its name says."""
    found = []
    for one in spool_look.shown(beside, (line for line in listed(elements, beside) if line.name == name)):
        try:
            size = beside.system.lstat(elements.body_in(one.listed.path)).st_size
        except FileNotFoundError:
            size = 0
        found.append(replace(one, size=size, enqueued_at=time_of(name)))
    return found
