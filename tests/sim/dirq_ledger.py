"""
dirq_ledger - what was accepted, held and removed, and what must hold of a dirq's disk at every moment

It listens to the disk, as the spool's ledger does. An element is what has been at
QUEUE/8hex/14hex: a file, or a directory with its files. From then on, after every call:

- it is whole when it comes there, and nothing in it changes while it is there;
- it has exactly one such name, until one that has held its lock removes it (unlink, or
  rename to obsolete/ or to a temporary name) or takes it out (rename to KEPT); nothing
  comes in its place;
- a lock is taken away by who took it, or when it was taken or touched *max_lock_s* ago or
  longer, by the filesystem's clock;
- nobody is told that he holds what another live process holds by a lock as young as that;
- one removal of an element is answered "removed".

A lock that a reaper has renamed aside counts as broken when neither it nor any aside of it
is left. Who locks in between is a second holder, and that is wrong unless two break locks at one time.

Elements are told apart by their bodies, which a scenario makes all different.
Long because: what is said and what is seen are checked against each other.
See also: ledger (the spool's), dirq_cast (who acts), disk (Change).
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.sim.disk import Change, Inode

if TYPE_CHECKING:
    from tests.sim.kernel import Process, World

QUEUE, KEPT = "/q", "/q.pool"
BODY, HEADER = "body", "header"  # of an element that is a directory
MAX_LOCK_S, MAX_TEMP_S = 600, 300
_ELEMENT = re.compile(r"/q/[0-9a-f]{8}/[0-9a-f]{14}\Z")
_LOCK = re.compile(r"(/q/[0-9a-f]{8}/[0-9a-f]{14})(?:\.lck|/locked)\Z")
Content = bytes | frozenset[tuple[str, bytes]]


def is_element(path: str) -> bool:
    """Whether *path* is the name of an element, and neither of its lock nor of what is being written."""
    return bool(_ELEMENT.match(path))


def content(inode: Inode) -> Content:
    """What is in an element."""
    if not inode.is_directory:
        return inode.data
    return frozenset((name, one.data) for name, one in inode.entries.items() if not one.is_directory)


def body(inode: Inode) -> bytes:
    """By which it is known."""
    return inode.entries[BODY].data if BODY in inode.entries else inode.data


@dataclass(frozen=True, slots=True)
class Held:
    """A lock on the disk, or what a process believes of one: *by* whom, taken or touched *since_ns*."""

    by: Process
    since_ns: int

    @property
    def key(self) -> tuple[int, int]:
        """Equal in all orders."""
        return self.by.pid, self.since_ns


class DirqLedger:
    """The accounts of one world. *check* raises for what was found wrong."""

    def __init__(self, world: World, max_lock_s: float = MAX_LOCK_S) -> None:
        self._world = world
        self._max_lock_ns = int(max_lock_s * 1e9)
        self.whole: set[Content] = set()  # what elements there may be
        self.names: dict[Inode, int] = {}  # of each element that there ever was, how many it has
        self.added: set[bytes] = set()  # what an add was answered for
        self.removed: Counter[bytes] = Counter()  # answered "removed"
        self.finished: set[Inode] = set()
        self.handled: Counter[bytes] = Counter()
        # Who lock, break and settle as the format alone lets them: nobody answers for them, nor for their locks.
        self.unfenced: set[Process] = set()
        self.keepers: set[Process] = set()  # they give back what the dead held, and touch what the living hold
        self.rejected: Counter[bytes] = Counter()
        self.may_come_twice: set[bytes] = set()  # added again by who could not know that it had been
        self.may_lock_aside = False  # there are two that break locks at one time, see simple_elements
        self._bodies: dict[Inode, bytes] = {}
        self._locks: dict[Inode, Held] = {}  # by the disk
        self._aside: dict[str, tuple[Inode, str]] = {}  # locks that a reaper has moved away to look at them, from where
        self._had: set[tuple[Inode, Process]] = set()  # who has ever locked what
        self._holding: dict[bytes, Held] = {}  # what was said last
        self._parts: set[Inode] = set()  # the files of elements
        self._wrong: list[str] = []
        world.disk.listeners.append(self._listen)

    # ---- what processes say

    def was_added(self, data: bytes) -> None:
        """An add has returned."""
        self.added.add(data)
        if data not in self._bodies.values():
            self._wrong.append(f"add of {data!r} returned, and it never entered")

    def holds(self, by: Process, data: bytes) -> None:
        """*by* was told that it has locked the element *data*, and has read it."""
        self.handled[data] += 1
        other = self._holding.get(data)
        is_another = other is not None and other.by is not by and not other.by.has_crashed and self._counts(other)
        if other and is_another and not self.may_lock_aside:
            self._wrong.append(f"{data!r} is held by {other.by.pid} and by {by.pid}")
        self._holding[data] = Held(by, self._world.disk.now_ns())

    def was_lost(self, by: Process, data: bytes) -> None:
        """*by* was told that another has it."""
        # Or a reaper had it in its hand just then.
        is_aside = self.may_lock_aside or any(self._body(inode) == data for inode, _ in self._aside.values())
        if self._has_lock(by, data) and by not in self.unfenced and not is_aside:
            self._wrong.append(f"{by.pid} was told that {data!r} is lost, and its lock is there")

    def settles(self, by: Process, data: bytes) -> None:
        """*by* holds it no more: it is about to give it back, to remove it, or to leave it."""
        if data in self._holding and self._holding[data].by is by:
            del self._holding[data]

    def _has_lock(self, by: Process, data: bytes) -> bool:
        return any(held.by is by and self._body(inode) == data for inode, held in self._locks.items())

    def _held(self, inode: Inode) -> list[Held]:
        return [self._locks[inode]] if inode in self._locks else []

    def was_removed(self, data: bytes) -> None:
        """A removal has said that the element is gone by it."""
        self.removed[data] += 1
        if self.removed[data] > 1 and data not in self.may_come_twice:
            self._wrong.append(f"{data!r} was removed twice")
        if self.rejected[data]:
            self._wrong.append(f"{data!r} was rejected, and removed")
        is_there = any(names and self._body(inode) == data for inode, names in self.names.items())
        if is_there and data not in self.may_come_twice:
            self._wrong.append(f"{data!r} was said to be removed, and is there")

    def was_rejected(self, data: bytes) -> None:
        """A rejection has said that the element is kept, as somebody's last word on it."""
        self.rejected[data] += 1
        if self.rejected[data] + self.removed[data] > 1:
            self._wrong.append(f"{data!r} was rejected, and settled by another too")

    # ---- what the disk says

    def _listen(self, change: Change) -> None:
        call, inode, source, target = change.call, change.inode, change.source, change.target
        if call in ("create", "mkdir") and is_element(source):
            self._wrong.append(f"{source} was made by {call}, and is seen before it is whole")
        if call in ("rename", "unlink", "rmdir") and is_element(source):
            self._leaves(change)
        if call in ("rename", "link") and is_element(target):
            self._enters(change)
        self._follow_lock(change)
        if call == "write" and inode in self._parts:
            self._wrong.append(f"{inode.data!r} was written to where it was seen")
        for path in (source, target) if call in ("create", "rename", "link", "unlink", "mkdir", "rmdir") else ():
            where, _, name = path.rpartition("/")
            if is_element(where) and name != "locked":
                self._wrong.append(f"{call} of {path}, in an element that is seen")
        if call == "utime" and inode in self._locks:
            self._touches(inode, change.by)

    def _touches(self, inode: Inode, by: Process) -> None:
        """Its holder, or the keeper of its holder: from now on its lock is young again."""
        held = self._locks[inode]
        if by is held.by or by in self.keepers:
            self._locks[inode] = touched = Held(held.by, inode.mtime_ns)
            if (said := self._holding.get(self._body(inode))) and said.by is held.by:
                self._holding[self._body(inode)] = touched

    def _enters(self, change: Change) -> None:
        inode, path = change.inode, change.target
        if content(inode) not in self.whole:
            self._wrong.append(f"{path} is seen, and is not whole: {content(inode)!r}")
        if change.replaced is not None:
            self._wrong.append(f"{change.source} was renamed over {path}")
        self.names[inode] = self.names.get(inode, 0) + 1
        self._bodies[inode] = body(inode)
        if self.names[inode] > 1:
            self._wrong.append(f"{body(inode)!r} has {self.names[inode]} names after {change.call} to {path}")
        self._parts |= {inode, *inode.entries.values()}

    def _leaves(self, change: Change) -> None:
        inode, by, where = change.inode, change.by, change.target
        self.names[inode] = self.names.get(inode, 1) - 1
        if is_element(where):
            return
        if (inode, by) not in self._had and by not in self.keepers:
            self._wrong.append(f"{change.source} was taken away by {by.pid}, who never held it")
        holders = [held.by for held in self._held(inode) if self._counts(held, by)]
        if holders and by not in holders and by not in self.unfenced:
            self._wrong.append(f"{change.source} was taken away by {by.pid}, while {holders[0].pid} held it")
        self._locks.pop(inode, None)  # what is left of it locks nothing any more
        if where.startswith(f"{KEPT}/"):
            return
        is_aside = where.startswith(change.source.rpartition("/")[0]) and where.endswith(".tmp")  # on its way out
        if where and not is_aside and not where.startswith(f"{QUEUE}/obsolete/"):
            self._wrong.append(f"{change.source} was renamed to {where}")
        self.finished.add(inode)

    def _follow_lock(self, change: Change) -> None:
        call, by, source, target = change.call, change.by, change.source, change.target
        taken, found = _LOCK.match(target), _LOCK.match(source)
        if call in ("link", "rename") and taken and source in self._aside:
            if call == "rename":
                del self._aside[source]
        elif call == "link" and taken and taken[1] == source:
            self._takes(change.inode, by)
        elif call == "mkdir" and found:
            self._takes(self._world.disk.directory(found[1]), by)
        elif call in ("rename", "unlink", "rmdir") and found:
            # The lock of a QueueSimple is the element's own inode, under which it is known when the element is gone.
            inode = self._world.disk.directory(found[1]) if change.inode.is_directory else change.inode
            held = self._locks.get(inode)
            if call == "rename" and not (held and held.by is by):  # its holder unlocks it so on a network filesystem
                self._aside[target] = inode, found[0]
            else:
                self._loses(inode, found[0], by)
        elif call in ("unlink", "rmdir") and source in self._aside:
            self._loses(*self._aside.pop(source), by)

    def _takes(self, inode: Inode, by: Process) -> None:
        others = [held for held in self._held(inode) if self._counts(held) and held.by is not by]
        is_aside = any(inode is one for one, _ in self._aside.values())
        if others and not (is_aside and self.may_lock_aside):
            self._wrong.append(f"{self._body(inode)!r} was locked by {by.pid}, while {others[0].by.pid} held its lock")
        for held in others:  # who was robbed so may not know it
            self._gives_up(held, inode)
        self._locks[inode] = Held(by, self._world.disk.now_ns())
        self._had.add((inode, by))

    def _loses(self, inode: Inode, path: str, by: Process) -> None:
        """A lock is gone, if neither it nor what was set aside of it is there any more."""
        if by in self.unfenced and inode in self._locks:  # nobody could have kept it from that
            self._gives_up(self._locks.pop(inode), inode)
        if self._world.disk.found(path) or any(inode is one for one, _ in self._aside.values()):
            return
        held = self._locks.pop(inode, None)
        if held and held.by is not by and self._counts(held, by):
            whose = f"the fresh lock of {held.by.pid} on {self._body(inode)!r}"
            self._wrong.append(f"{whose} was taken away by {by.pid}")

    def _gives_up(self, held: Held, inode: Inode) -> None:
        self.settles(held.by, self._body(inode))
        self.unfenced.add(held.by)

    def _counts(self, held: Held, by: Process | None = None) -> bool:
        """Whether nobody may take that lock away; *by* may be a keeper, who knows that its holder is dead."""
        if by in self.keepers and held.by.has_crashed:
            return False
        is_fresh = self._world.disk.now_ns() - held.since_ns < self._max_lock_ns
        return is_fresh and held.by not in self.unfenced

    def _body(self, inode: Inode) -> bytes:
        return self._bodies.get(inode, b"")

    # ---- looking

    def is_wrong(self, what: str) -> None:
        """Said by who sees it; check() raises it."""
        self._wrong.append(what)

    def check(self) -> None:
        """Raises AssertionError for what was found wrong so far."""
        if self._wrong:
            raise AssertionError("; ".join(self._wrong))

    def check_left(self) -> None:
        """For scenarios.add: there are no directories of workers."""

    def check_all_ended(self) -> None:
        """Nothing is lost and nothing is left: each element was removed, or is in KEPT."""
        self.check()
        kept = {inode for path, inode in _all(self._world) if path.startswith(f"{KEPT}/")}
        gone = self.finished | kept
        lost = [self._body(inode) for inode, names in self.names.items() if not names and inode not in gone]
        if lost:
            raise AssertionError(f"lost: {lost}")
        missing = self.added - set(self._bodies.values())
        if missing:
            raise AssertionError(f"added and never seen: {missing}")
        left = [path for path, inode in _all(self._world) if path.count("/") >= 3 and path.startswith(f"{QUEUE}/")]
        if left:
            raise AssertionError(f"left: {left}")

    def entered(self) -> int:
        """Equal for equal sets of elements, with what became of each."""
        return hash(frozenset((one.number, count, one in self.finished) for one, count in self.names.items()))

    def fingerprint(self) -> int:
        """Equal for equal accounts."""
        return hash(
            (
                frozenset(self.added),
                frozenset(self.removed.items()),
                frozenset(self.handled.items()),
                frozenset(self.rejected.items()),
                frozenset((inode.number, held.key) for inode, held in self._locks.items()),
                frozenset((path, inode.number) for path, (inode, _) in self._aside.items()),
                frozenset((inode.number, by.pid) for inode, by in self._had),
                frozenset((data, held.key) for data, held in self._holding.items()),
                frozenset(process.pid for process in self.unfenced),
            )
        )


def _all(world: World) -> list[tuple[str, Inode]]:
    """Every name below, with its inode."""
    return [
        (f"{path}/{name}", inode) for path, one in world.disk.directories.items() for name, inode in one.entries.items()
    ]
