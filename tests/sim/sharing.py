"""
sharing - which things two actors touch in a way that matters to one of them

A thing is a name on the disk, the listing of a directory, the clock, a process, or a
word of a board. One that only one actor touches, or that nobody changes, makes no order.
Two that add names to one directory do not matter to each other, but to who lists it.

On an exact disk (see disk) the times and link counts that stat(2) tells are things too. A
file has them under all its names: they are its inode's, so a step's things are found anew
whenever another step was made. A directory has them from what comes and goes in it: who
asks for them looks at its listing.

See also: explore, which walks only the orders of calls that touch a shared thing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.sim.disk import Disk, Inode

Thing = tuple[object, bool]  # and whether it is changed
CHANGING = frozenset({"rename", "rename_noreplace", "rename_exchange", "link", "unlink", "mkdir", "rmdir"})
ATTRIBUTES = CHANGING | {"stat", "lstat", "utime", "chmod"}
CLOCK, STAMP = "clock", "stamp"  # STAMP: the time that a change leaves on a file; on its own it makes no step shared


def touched(name: str, arguments: tuple[Any, ...]) -> list[Thing]:
    """What the call *name* touches. A call by descriptor nothing: nobody else writes that inode."""
    if name in ("boottime_ns", "wall_ns", "advance"):
        return [(CLOCK, False)] if name != "advance" else [(CLOCK, True), (STAMP, True)]
    if name in ("start_ticks", "end"):
        return [(("process", arguments[0]), name == "end")]
    if name == "mkdir_at":
        return []  # see attributes
    paths = [part for part in arguments if isinstance(part, str)]
    if name in ("listdir", "scandir"):
        return [(("list", paths[0]), False), (paths[0], False)]
    is_changing = name in CHANGING or (name == "open" and bool(arguments[1] & 0o1100))  # O_CREAT, O_TRUNC
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


def attributes(name: str, arguments: tuple[Any, ...], disk: Disk, opened: Inode | None) -> list[Thing]:
    """What more the call *name* touches on an exact disk, as it is now; *opened* is what lies behind its descriptor."""
    if opened is not None:
        if name in ("write", "pwrite"):
            return [(("data", opened.number), True), (opened.number, True), (STAMP, False)]
        if name == "lock" or (name == "close" and opened.locker):
            whose = [(("process", opened.locker.pid), False)] if opened.locker else []
            return [(("lock", opened.number), True), *whose]
        return [(opened.number if name == "fstat" else ("data", opened.number), False)]
    if name == "mkdir_at":
        where, last = arguments
        paths = [f"{path}/{last}" for path, inode in disk.directories.items() if inode is where]
        return [thing for path in paths for thing in touched("mkdir", (path,))]
    if name not in ATTRIBUTES:
        return []
    is_changing = name not in ("stat", "lstat")
    found: list[Thing] = [(STAMP, False)] * is_changing
    for path in [part for part in arguments if isinstance(part, str)]:
        if path in disk.directories:
            found.append((path, True) if is_changing else (("list", path), False))
        elif inode := disk.found(path):
            found.append((inode.number, is_changing))
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
