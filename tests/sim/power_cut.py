"""
power_cut - what may be on a disk when the power went off, and what must be

A Recording listens to a disk. It keeps the steps (changes of names) in their order, how
much of each file was written and synced, and what the programs were told: a put has
returned, a reject has. platters() gives every tree that may be found after a cut at a
given change; check_every_cut() looks at all of them after all changes.

What a filesystem keeps of the steps that nobody synced:

- ORDERED (ext4 with its journal, xfs): the first ones, however many. fsync of a file or
  a directory keeps the steps that changed it, and so all before them.
- LOOSE: any of them that can stand alone; that is all that POSIX leaves, and more than
  btrfs takes. A rename is one step: the old name or the new one, never both or none. A
  step stands on those without which it makes no sense: what it removes was put there,
  what it puts there exists, the name was free, the directory was made; a directory that
  is removed is empty. fsync of a file keeps its content and none of its names; fsync of
  a directory keeps all changes of names in it so far, a rename into it or out of it as a
  whole; syncfs keeps everything.
- SPLIT (ext2, FAT): the same, but a rename is two steps, and it may be that only its
  removal is kept. Messages are lost there; SPOOL.md says that it is no place for a queue.

Steps that have nothing to do with each other are kept in all their combinations, up to MOST; beyond, each group of
steps that stand on each other meets all others kept, and no others.

The content of a file that was not synced is cut anywhere: here nothing, half, or all of
what was written since. Where a step is kept and its file's content is not, the file is short.

Long because: what may be kept and what must be there are read together.
Limits: a disk that lies about its cache, and errors of writing back, are not in it.
Source: Pillai et al., "All File Systems Are Not Created Equal" (OSDI 2014), for the kinds
of filesystem; the code is ours.
See also: disk (Change), cast (recover), SPOOL.md "Durability".
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from typing import NamedTuple

from tests.sim.cast import NEXT, QUEUE, SETTINGS, recover
from tests.sim.disk import DIRECTORY, Change, Inode
from tests.sim.kernel import World
from tests.sim.ledger import Ledger, state_of
from workers.queues.spool import Spool

# What may be promised of a message, by its body, until something else is.
THERE = "in one of the directories, whole"
SAFE = "at its source or in one of the directories, whole"
ERRORS = "in errors/, whole"
FORWARDED = "in the next queue, whole, and nowhere else"
COPIED = "in the next queue, whole"
ENDING = "perhaps finished"
SHORT = "perhaps missing, perhaps short"  # nobody asked for more

MOST = 512
SOURCE = "/from"  # where a producer keeps the files that it moves in
THEIRS = f"{QUEUE}/tmp/theirs"  # and where another program writes its own


@dataclass(frozen=True, slots=True)
class Filesystem:
    """A kind of filesystem, by what it keeps of what nobody synced."""

    name: str
    is_ordered: bool = False
    is_atomic: bool = True


ORDERED = Filesystem("ordered", is_ordered=True)
LOOSE = Filesystem("loose")
SPLIT = Filesystem("split", is_atomic=False)


class Step(NamedTuple):
    """One change of names, by change number *at*; *stands_on* has a bit for each step without which it is not kept."""

    at: int
    inode: Inode
    removes: str
    adds: str
    stands_on: int


class Sync(NamedTuple):
    """A file, a directory (at *path*), or with neither everything, was synced by change number *at*."""

    at: int
    inode: Inode | None = None
    path: str = ""


Tree = tuple[tuple[str, Inode, int], ...]  # each name, what it names, and how much of its content is there


class Recording:
    """All that happened on a world's disk since now, and what was promised meanwhile. What is there now is kept."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.changes: list[Change] = []
        self.syncs: list[Sync] = []
        self.written: dict[Inode, list[tuple[int, int]]] = {}  # by which change, how much
        self.bodies: set[bytes] = set()
        self.promises: list[tuple[int, bytes, str]] = []
        self.followers: dict[bytes, tuple[bytes, ...]] = {}  # what a message may be finished for, once they are there
        disk = world.disk
        self.start = {path: (inode, len(inode.data)) for path, inode in disk.files()}
        self.start |= {path: (inode, 0) for path, inode in disk.directories.items() if path != "/"}
        disk.listeners.append(self._listen)

    def _listen(self, change: Change) -> None:
        self.changes.append(change)
        at = len(self.changes)
        if change.call == "write":
            self.written.setdefault(change.inode, []).append((at, len(change.inode.data)))
        elif change.call == "fsync":
            self.syncs.append(Sync(at, change.inode))
        elif change.call == "fsync_directory":
            path = next(path for path, one in self.world.disk.directories.items() if one is change.inode)
            self.syncs.append(Sync(at, None, path))
        elif change.call == "syncfs":
            self.syncs.append(Sync(at))

    def promise(self, body: bytes, what: str) -> None:
        """From now on *what* holds of the message *body*."""
        self.bodies.add(body)
        self.promises.append((len(self.changes), body, what))

    def promised(self, cut: int) -> dict[bytes, str]:
        """What holds when the power goes off after change number *cut*."""
        # A promise counts as soon as it is made, and is over when something happens after its end was asked for.
        return {body: what for at, body, what in self.promises if at < cut + (what not in (ENDING, SHORT))}

    def steps(self, filesystem: Filesystem) -> list[Step]:
        """The changes of names, as *filesystem* takes them."""
        order = _Order(filesystem)
        for number, change in enumerate(self.changes):
            if change.call in ("create", "mkdir"):
                order.add(number + 1, change.inode, "", change.source)
            elif change.call in ("unlink", "rmdir"):
                order.add(number + 1, change.inode, change.source, "")
            elif change.call == "link":
                order.add(number + 1, change.inode, "", change.target)
            elif change.call == "rename":
                assert change.replaced is None, "no protocol here renames over another"
                if filesystem.is_atomic:
                    order.add(number + 1, change.inode, change.source, change.target)
                else:
                    order.add(number + 1, change.inode, "", change.target)
                    order.add(number + 1, change.inode, change.source, "")
        return order.steps

    def platters(self, filesystem: Filesystem, cut: int, steps: list[Step]) -> Iterator[Tree]:
        """Every tree that may be found when the power went off after change number *cut*."""
        for mask in self._kept(filesystem, cut, steps):
            names = dict(self.start)
            for number, step in enumerate(steps):
                if mask >> number & 1:
                    names.pop(step.removes, None)
                    if step.adds:
                        names[step.adds] = step.inode, len(step.inode.data)
            files = sorted({inode for inode, _ in names.values() if inode in self.written}, key=lambda one: one.number)
            for sizes in product(*(self._sizes(inode, cut) for inode in files)):
                size_of = dict(zip(files, sizes, strict=True))
                yield tuple((path, inode, size_of.get(inode, size)) for path, (inode, size) in sorted(names.items()))

    def _kept(self, filesystem: Filesystem, cut: int, steps: list[Step]) -> list[int]:
        """The sets of steps that may have been kept, a bit for each step."""
        happened = [number for number, step in enumerate(steps) if step.at <= cut]
        demanded = self._demanded(filesystem, cut, steps)
        groups: list[int] = []  # of steps of which each stands on another one of its group
        for number in happened:
            bit = 1 << number
            if not demanded & bit:
                own = [group for group in groups if group & steps[number].stands_on]
                groups = [group for group in groups if group not in own] + [sum(own) | bit]
        choices = [self._choices(group, demanded, steps) for group in groups]
        if math.prod(map(len, choices)) <= MOST:
            return [demanded | sum(chosen) for chosen in product(*choices)]
        everything = sum(1 << number for number in happened)
        masks = {demanded | mask for found in choices for mask in found}
        return [
            *masks,
            *(everything & ~group | mask for group, found in zip(groups, choices, strict=True) for mask in found),
        ]

    def _choices(self, group: int, demanded: int, steps: list[Step]) -> list[int]:
        masks = [0]
        for number, step in enumerate(steps):
            if group >> number & 1:
                masks += [mask | 1 << number for mask in masks if (mask | demanded) & step.stands_on == step.stands_on]
        return masks

    def _demanded(self, filesystem: Filesystem, cut: int, steps: list[Step]) -> int:
        """The steps that must be kept, a bit for each: what was synced, and what that stands on."""
        kept = 0
        for sync in self.syncs:
            for number, step in enumerate(steps):
                if sync.at <= cut and step.at < sync.at and _does_keep(sync, step, filesystem):
                    kept |= 1 << number
        for number in reversed(range(len(steps))):
            if kept >> number & 1:
                kept |= steps[number].stands_on
        return kept

    def _sizes(self, inode: Inode, cut: int) -> list[int]:
        """How much of a file may be there."""
        synced_at = max(
            (sync.at for sync in self.syncs if sync.at <= cut and not sync.path and sync.inode in (inode, None)),
            default=0,
        )
        written = max((size for at, size in self.written[inode] if at <= cut), default=0)
        synced = max((size for at, size in self.written[inode] if at <= synced_at), default=0)
        return sorted({synced, (synced + written) // 2, written})


def _does_keep(sync: Sync, step: Step, filesystem: Filesystem) -> bool:
    if sync.path:
        return sync.path in (os.path.dirname(step.removes), os.path.dirname(step.adds))
    return sync.inode is None or (filesystem.is_ordered and sync.inode is step.inode)


@dataclass
class _Order:
    """The steps so far, and which of them the next one stands on."""

    filesystem: Filesystem
    steps: list[Step] = field(default_factory=list)
    put_there: dict[str, int] = field(default_factory=dict)  # by path, the step's bit
    freed: dict[str, int] = field(default_factory=dict)
    taken_out: dict[str, int] = field(default_factory=dict)  # by directory, the steps' bits
    made: dict[Inode, int] = field(default_factory=dict)

    def add(self, at: int, inode: Inode, removes: str, adds: str) -> None:
        """One more."""
        bit = 1 << len(self.steps)
        if self.filesystem.is_ordered:
            stands_on = bit >> 1
        else:
            stands_on = self.put_there.get(removes, 0) | self.freed.get(adds, 0) | self.taken_out.get(removes, 0)
            stands_on |= self.put_there.get(os.path.dirname(adds), 0) | (self.made.get(inode, 0) if adds else 0)
        self.steps.append(Step(at, inode, removes, adds, stands_on))
        if removes:
            self.freed[removes] = bit
            where = os.path.dirname(removes)
            self.taken_out[where] = self.taken_out.get(where, 0) | bit
        if adds:
            self.put_there[adds] = bit
            self.made.setdefault(inode, bit)


# ---- looking


@dataclass
class Counts:
    """How much was tried."""

    cuts: int = 0
    platters: int = 0

    def add(self, other: Counts) -> None:
        """These as well."""
        self.cuts, self.platters = self.cuts + other.cuts, self.platters + other.platters


def check_every_cut(
    recording: Recording, filesystem: Filesystem, *paths: str, create: bool = False, recovers: bool = True
) -> Counts:
    """
    Cut the power after each change; of each tree that may be found, look whether what was promised is there.

    *paths* are the queue and the next one. Unless it *recovers*, nobody goes on with what is found.
    """
    steps = recording.steps(filesystem)
    counts = Counts()
    seen: set[tuple[Tree, tuple[tuple[bytes, str], ...]]] = set()
    for cut in range(len(recording.changes) + 1):
        counts.cuts += 1
        promised = recording.promised(cut)
        for tree in recording.platters(filesystem, cut, steps):
            key = tree, tuple(sorted(promised.items()))
            if key in seen:
                continue
            seen.add(key)
            counts.platters += 1
            try:
                _check(recording, tree, promised)
                if recovers:
                    _go_on(recording, tree, paths or (QUEUE, NEXT), create=create)
            except AssertionError as error:
                raise AssertionError(f"{error}\n{_story(recording, filesystem, cut, tree)}") from error
    return counts


def places(recording: Recording, filesystem: Filesystem, body: bytes) -> set[tuple[str, ...]]:
    """Where the message *body* may be, whole, when the power goes off at the end: each set of places."""
    steps, cut = recording.steps(filesystem), len(recording.changes)
    return {
        tuple(path for path, inode, size in tree if inode.data[:size] == body and not inode.is_directory)
        for tree in recording.platters(filesystem, cut, steps)
    }


def _check(recording: Recording, tree: Tree, promised: dict[bytes, str]) -> None:
    """Look for what was *promised*, and for messages that nobody put."""
    found: dict[bytes, list[str]] = {}
    shorts = {body for body, what in promised.items() if what == SHORT}
    for path, inode, size in tree:
        is_message = state_of(path) and not path.endswith(".meta") and "/.probe." not in path
        if inode.is_directory or not (is_message or path.startswith((SOURCE, THEIRS))):
            continue
        body = inode.data[:size]
        found.setdefault(body, []).append(path)
        is_whole = body in recording.bodies or any(short.startswith(body) for short in shorts)
        assert is_whole or not state_of(path), f"{path} holds {body!r}, which nobody put"
    for body, what in promised.items():
        places = found.get(body, [])
        if what == THERE:
            places = [path for path in places if state_of(path)]
        elif what == ERRORS:
            places = [path for path in places if state_of(path) == "errors"]
        elif what in (FORWARDED, COPIED):
            back = [path for path in places if path.startswith(f"{QUEUE}/")]
            assert what == COPIED or not back, f"{body!r} is back: {back}"
            places = [path for path in places if path.startswith(f"{NEXT}/")]
        elif what == ENDING and body in recording.followers:
            missing = [follower for follower in recording.followers[body] if follower not in found]
            assert places or not missing, f"{body!r} is gone, and not all that follow it are there: {missing}"
            continue
        elif what in (ENDING, SHORT):
            continue
        assert places, f"{body!r} should be {what}, and is at {found.get(body)}"


def _go_on(recording: Recording, tree: Tree, paths: tuple[str, ...], *, create: bool) -> None:
    """Let somebody look, and another host finish all that is there."""
    world, ledger = _after_boot(recording, tree)
    for number, path in enumerate(paths):
        settings = replace(SETTINGS, create=create)
        queue = Spool(path, settings, system=world.process(80_000 + number, "last"), host="last")
        for listed in queue.list("errors"):
            queue.show(listed.name)
    if any("/.pool/" not in path for path, _ in world.disk.files()):
        recover(world, ledger, *paths)


def _after_boot(recording: Recording, tree: Tree) -> tuple[World, Ledger]:
    """A world in which nobody lives, with *tree* on its disk, later than all that was recorded."""
    world = World(network=recording.world.network)
    world.moved_ns = recording.world.moved_ns + 10**9
    disk, copies = world.disk, dict[Inode, Inode]()
    for path, inode, size in tree:  # sorted, so a directory comes before what is in it
        if (copy := copies.get(inode)) is None:
            copy = copies[inode] = Inode(inode.number, inode.kind, inode.ctime_ns, inode.mtime_ns, inode.data[:size], 0)
        copy.links += 1
        where, _, name = path.rpartition("/")
        disk.directories[where or "/"].entries[name] = copy
        if copy.kind == DIRECTORY:
            disk.directories[path] = copy
    ledger = Ledger(world)
    for path, inode in disk.files():
        if state_of(path) and not path.endswith(".meta") and "/.probe." not in path:
            ledger.accepted[inode] = ledger.accepted.get(inode, 0) + 1
    return world, ledger


def _story(recording: Recording, filesystem: Filesystem, cut: int, tree: Tree) -> str:
    """What had happened, and what is there."""
    happened = [f"{change.call} {change.source} {change.target}".rstrip() for change in recording.changes[:cut]]
    there = [f"{path} ({size} of {len(inode.data)} bytes)" for path, inode, size in tree if not inode.is_directory]
    return "\n  ".join([f"power off on {filesystem.name} after:", *happened, "then there is:", *there])
