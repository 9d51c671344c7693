"""
sharing - which things two actors touch in a way that matters to one of them

A thing is a name on the disk, the listing of a directory, the clock, a process, or a
word of a board. One that only one actor touches, or that nobody changes, makes no order.
Two that add names to one directory do not matter to each other, but to who lists it.

See also: explore, which walks only the orders of calls that touch a shared thing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Thing = tuple[object, bool]  # and whether it is changed
CHANGING = frozenset({"rename", "rename_noreplace", "link", "unlink", "mkdir", "rmdir"})
CLOCK, STAMP = "clock", "stamp"  # STAMP: the time that a change leaves on a file; on its own it makes no step shared


def touched(name: str, arguments: tuple[Any, ...]) -> list[Thing]:
    """What the call *name* touches. A call by descriptor nothing: nobody else writes that inode."""
    if name in ("boottime_ns", "wall_ns", "advance"):
        return [(CLOCK, False)] if name != "advance" else [(CLOCK, True), (STAMP, True)]
    if name in ("start_ticks", "end"):
        return [(("process", arguments[0]), name == "end")]
    paths = [part for part in arguments if isinstance(part, str)]
    if name in ("listdir", "scandir"):
        return [(("list", paths[0]), False), (paths[0], False)]
    is_changing = name in CHANGING or (name == "open" and bool(arguments[1] & 0o100))  # O_CREAT
    found: list[Thing] = []
    for path in paths:
        where = path.rpartition("/")[0]
        found += [(path, is_changing), (where, False)]  # its name, and that its directory is there
        if is_changing:
            found.append((("list", where), True))
    if is_changing and name not in ("mkdir", "rmdir", "unlink"):
        found.append((STAMP, False))
    if name == "rmdir":
        found.append((("list", paths[0]), False))
    return found


def do_meet(one: Sequence[Thing], other: Sequence[Thing]) -> bool:
    """Whether two steps that touch these may differ by which comes first."""
    for thing, is_changed in one:
        for another, is_other_changed in other:
            if thing == another and (is_changed or is_other_changed):
                is_listing = isinstance(thing, tuple) and thing[0] == "list"
                if not (is_listing and is_changed and is_other_changed):
                    return True
    return False


class Sharing:
    """Who has touched what so far, and how: a bit for each actor."""

    def __init__(self) -> None:
        self._readers: dict[object, int] = {}
        self._writers: dict[object, int] = {}

    def touch(self, actor: int, things: Sequence[Thing]) -> tuple[bool, bool]:
        """Whether it matters to another when *actor* touches *things*, and whether that is news."""
        matters = is_new = False
        bit = 1 << actor
        for thing, is_changed in things:
            if thing is STAMP:
                continue
            readers, writers = self._readers.get(thing, 0), self._writers.get(thing, 0)
            if not is_changed:
                others = writers
            elif isinstance(thing, tuple) and thing[0] == "list":
                others = readers  # names come and go in any order, but for who lists them
            else:
                others = readers | writers
            if is_others := others & ~bit != 0:
                matters = True
            if not (writers if is_changed else readers) & bit:
                touchers = self._writers if is_changed else self._readers
                touchers[thing] = touchers.get(thing, 0) | bit
                is_new = is_new or is_others
        return matters, is_new
