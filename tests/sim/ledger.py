"""
ledger - what was accepted, handled and settled, and what must hold of a spool's disk at every moment

It listens to the disk, so nothing is believed of what a process says of itself: a
message is an inode that has been in a directory of state. From then on, after every
single call:

- it has exactly one name in these directories (while a put with a name publishes it,
  another one in tmp/), until its holder removes it: the process that made the owner's
  directory in which it lies;
- no rename puts one file in the place of another;
- a settle that was answered "done" has a message that is gone, and no message is done
  twice;
- nobody takes anything from the directory of a worker whose lease is good (*live*);
- a worker that has left leaves no directory.

One name at most is also why no two processes can hold a message at one moment: each
settle is a call on the holder's own name of it.

Messages are told apart by their bodies, which a scenario makes all different.
See also: disk (Change), explore (checks after each step), cast (recover).
"""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING

from tests.sim.disk import Change, Inode

if TYPE_CHECKING:
    from tests.sim.kernel import Process, World

STATES = ("incoming", "pending", "deferred", "errors", "done")


def state_of(path: str) -> str:
    """The state whose directory holds *path*; "" for tmp/, .pool/ and what is no queue's."""
    parts = path.split("/")
    if len(parts) >= 3 and parts[-2] in STATES:
        return parts[-2]
    return "pending" if len(parts) >= 4 and parts[-3] == "pending" else ""


class Ledger:
    """The accounts of one world. *check* raises for what was found wrong."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.accepted: dict[Inode, int] = {}  # and how many names each has in the directories of state
        self.put: set[bytes] = set()  # what a producer was told to be in
        self.handled: Counter[bytes] = Counter()
        self.outcomes: Counter[tuple[bytes, str]] = Counter()
        self.finished: set[Inode] = set()
        self.may_have_copies = False  # an operator lays links and copies into incoming/
        self.repeated: set[bytes] = set()  # bodies that may come twice, as documented
        self.live: set[Process] = set()  # workers that nobody may take for dead, unless they are
        self.may_come_back = False  # somebody requeues, or takes from the next queue too
        self.foreign: set[Process] = set()  # programs that claim without a directory of their own
        # What its holder may remove: handled, and being settled so that it ends. None: of whoever does not say so.
        self.ending: set[bytes] | None = None
        self.left: list[str] = []  # the directories of workers that have left
        self._owners: dict[str, Process] = {}
        self._wrong: list[str] = []
        world.disk.listeners.append(self._listen)

    # ---- what processes say

    def was_put(self, body: bytes) -> None:
        """A put has returned."""
        self.put.add(body)
        if not any(inode.data == body for inode in self.accepted):
            self._wrong.append(f"put of {body!r} returned, and it never entered")

    def was_handled(self, body: bytes) -> None:
        """A handler has been given it."""
        self.handled[body] += 1

    def may_end(self, body: bytes) -> None:
        """Its holder has handled it, and settles it now so that it ends."""
        if self.ending is not None:
            self.ending.add(body)

    def was_settled(self, body: bytes, outcome: str) -> None:
        """A settle has returned; *outcome* is the verb, or lost."""
        self.outcomes[body, outcome] += 1
        may_repeat = self.may_have_copies or self.may_come_back or body in self.repeated
        ends = self.outcomes[body, outcome] + self.outcomes[body, "done"]
        if outcome in ("reject", "forward") and ends > 1 and not may_repeat:
            self._wrong.append(f"{body!r} was settled by two: {self.outcomes}")
        if outcome != "done":
            return
        if self.may_have_copies or body in self.repeated:
            return
        if self.outcomes[body, "done"] > 1:
            self._wrong.append(f"{body!r} was done twice")
        files = self._world.disk.files()  # one in tmp/ is no message: a killed producer may leave a link of it
        left = [path for path, inode in files if inode.data == body and state_of(path) not in ("", "done")]
        if left:
            self._wrong.append(f"{body!r} was said to be done, and is at {left}")

    # ---- what the disk says

    def _listen(self, change: Change) -> None:
        call, inode = change.call, change.inode
        if inode.is_directory:
            if call == "mkdir":
                self._owners[change.source] = change.by
            return
        if call == "rename":
            if change.replaced is not None:
                self._wrong.append(f"{change.source} was renamed over {change.target}")
            self._leaves(inode, change.source, change.by)
            self._enters(inode, change.target)
        elif call == "link":
            self._enters(inode, change.target)
        elif call == "create":
            self._enters(inode, change.source)
        elif call == "unlink":
            self._leaves(inode, change.source, change.by)
            is_over = inode in self.finished and not state_of(change.source)  # in tmp/, of a put that was killed
            if self.accepted.get(inode) == 0 and not is_over and not self._may_remove(change):
                self._wrong.append(f"{change.source} was removed by {change.by.pid}, who did not hold it")
        names = self.accepted.get(inode, 1)
        if names > 1 and not self.may_have_copies:
            self._wrong.append(f"{inode.data!r} has {names} names after {call} {change.source} {change.target}")

    def _enters(self, inode: Inode, path: str) -> None:
        if state_of(path) and not path.endswith(".meta"):
            self.accepted[inode] = self.accepted.get(inode, 0) + 1

    def _leaves(self, inode: Inode, path: str, by: Process) -> None:
        if state_of(path) and inode in self.accepted:
            self.accepted[inode] -= 1
            owner = self._owners.get(os.path.dirname(path))
            if owner is not by and owner in self.live and not owner.has_crashed:
                self._wrong.append(f"{path} was taken by {by.pid} from {owner.pid}, who is alive")

    def _may_remove(self, change: Change) -> bool:
        if "/.probe." in change.source:
            return True
        self.finished.add(change.inode)
        if state_of(change.source) != "pending":
            return False
        if change.by in self.foreign:
            return True
        return self._owners.get(os.path.dirname(change.source)) is change.by and (
            self.ending is None or change.inode.data in self.ending
        )

    # ---- looking

    def is_wrong(self, what: str) -> None:
        """Said by who sees it; check() raises it."""
        self._wrong.append(what)

    def check(self) -> None:
        """Raises AssertionError for what was found wrong so far."""
        if self._wrong:
            raise AssertionError("; ".join(self._wrong))

    def check_left(self) -> None:
        """Of those that have left nothing is there. Before anybody cleans up."""
        for path in self.left:
            if path in self._world.disk.directories:
                raise AssertionError(f"{path} is left by a worker that has left")

    def check_all_ended(self) -> None:
        """Nothing is lost and nothing is left: each message was finished, or is in errors/ (or done/)."""
        self.check()
        for path, inode in self._world.disk.files():
            if state_of(path) in ("incoming", "pending", "deferred") or "/tmp/" in path:
                raise AssertionError(f"{inode.data!r} is left at {path}")
        gone = [inode.data for inode, names in self.accepted.items() if not names and inode not in self.finished]
        if gone:
            raise AssertionError(f"lost: {gone}")
        missing = self.put - {inode.data for inode in self.accepted}
        if missing:
            raise AssertionError(f"accepted and never seen: {missing}")

    def entered(self) -> int:
        """Equal for equal sets of messages, with what became of each."""
        return hash(frozenset((one.number, count, one in self.finished) for one, count in self.accepted.items()))

    def fingerprint(self) -> int:
        """Equal for equal accounts."""
        return hash((frozenset(self.put), frozenset(self.handled.items()), frozenset(self.outcomes.items())))
