"""
ddmq_ledger - what was published, claimed and ended, and what must hold of a ddmq's disk at every moment

It listens to the disk, as the other ledgers do. A message is known by its id, which stays when
its file becomes another one; from its first name on, after every call:

- it has one name in the queue, in work/, or beside the queue, until who has it in hand ends it;
- what waits, and what is claimed, is whole, and of that id;
- a claim belongs to who renamed the file into work/, until the second in its name is over, by
  the filesystem's clock. Until then nobody else moves, rewrites or removes it, but its keeper,
  who touches it, and gives it back when its holder is dead;
- what was ended never comes back, nothing comes in its place, and its end is told to one;
- nobody is told that he has lost what is his, nor that he has what another has;
- each rewriting counts one requeue, and there are no more than claims (and crashes); no more
  crashes are counted than claims; at its limit a message was claimed once more often than that.

Programs of others (*theirs*) write in place and requeue under new ids: nobody answers for them.
Long because: what is said and what is seen are checked against each other.
See also: dirq_ledger (the sister), ddmq_cast (who acts), disk (Change).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.sim.disk import Change, Inode

if TYPE_CHECKING:
    from tests.sim.kernel import Process, World

ROOT, NAME = "/r", "q"
QUEUE = f"{ROOT}/{NAME}"
WORK, KEPT = f"{QUEUE}/work", f"{QUEUE}.pool"
_ID = r"[0-9]+\.[0-9]+\.ddmq([0-9A-Za-z]+)"
_WAITING = re.compile(rf"{QUEUE}/{_ID}\Z")
_WORK = re.compile(rf"{WORK}/([0-9]+)(?:\.[0-9]+)?\.{_ID}\Z")
_COUNTS = re.compile(rf"{KEPT}/counts/[0-9]+\.ddmq([0-9A-Za-z]+)\Z")
_ASIDE = re.compile(rf"{WORK}/\.[0-9a-f]{{32}}\.tmp\Z")  # what is on its way out
_KEPT = re.compile(rf"{KEPT}/(deferred|errors)/.*?{_ID}\Z")
WAITS, CLAIMED, DEFERRED, ERRORS = "waits", "claimed", "deferred", "errors"


def place_of(path: str) -> tuple[str, str]:
    """The state of the message whose name *path* is, and its id; "" twice for what is none."""
    if found := _WAITING.match(path):
        return WAITS, found[1]
    if found := _WORK.match(path):
        return CLAIMED, found[2]
    if found := _KEPT.match(path):
        return found[1], found[2]
    return "", ""


def expiry_of(path: str) -> int:
    """Until when the claim *path* lasts."""
    found = _WORK.match(path)
    assert found, path
    return int(found[1])


def is_touched(path: str) -> bool:
    """Whether the claim *path* is called as keepers call what they touch for its holder, see ddmq_hand."""
    return path.rpartition("/")[2].startswith("0")


def parsed(data: bytes) -> dict[str, Any]:
    """The message that a file holds; empty when it is none."""
    try:
        found = json.loads(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


@dataclass(frozen=True, slots=True)
class Held:
    """A claim: *by* whom, and until which second."""

    by: Process
    expiry: int


class DdmqLedger:
    """The accounts of one world. *check* raises for what was found wrong."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.put: set[str] = set()  # what a producer was told to be in
        self.ended: set[str] = set()
        self.handled: Counter[str] = Counter()
        self.told: Counter[str] = Counter()  # ends that were answered
        self.requeued: Counter[str] = Counter()  # and requeues
        self.forwarded: set[str] = set()
        self.settings: set[str] = set()  # which were said to be changed
        self.given_back: set[Process] = set()  # dead workers, whose keepers were told, and had the time
        self.crashed_before = 0  # so often is counted of a message from the start
        self.theirs: set[Process] = set()
        self.purgers: set[Process] = set()
        self.keeper_of: dict[Process, Process] = {}  # of each worker of a pool
        self.keepers: set[Process] = set()
        self.gone: set[Process] = set()  # workers that have left, and are dead to keepers
        self.requeues_more = 0  # of who stands still for longer than a requeue lasts
        self.may_come_twice: set[str] = set()  # published again by who could not know that it had been
        self.held: dict[str, Held] = {}
        self._at: dict[str, set[str]] = {}  # of each message, its names
        self._bodies: dict[str, object] = {}
        self._counters: dict[str, int] = {}
        self._takes: Counter[str] = Counter()
        self._ending: set[tuple[Process, str]] = set()
        self._wrong: list[str] = []
        world.disk.listeners.append(self._listen)

    # ---- what processes say

    def was_put(self, one: str) -> None:
        """A publish has returned."""
        self.put.add(one)
        if one not in self._at:
            self._wrong.append(f"{one} was said to be published, and never entered")

    def holds(self, by: Process, one: str, body: object, expiry: int) -> None:
        """*by* was told that it has claimed the message *one* until *expiry*, and what is in it."""
        self.handled[one] += 1
        if body != self._bodies.get(one):
            self._wrong.append(f"{by.pid} was given {body!r} as {one}, which is {self._bodies.get(one)!r}")
        held = self.held.get(one)
        if (held is None or held.by is not by) and self._lasts(Held(by, expiry)) and not self._purged(one):
            whose = f"claimed by {held.by.pid}" if held else "nobody's claim"
            self._wrong.append(f"{one} is {whose}, and {by.pid} was told that it has it")

    def may_end(self, by: Process, one: str) -> None:
        """*by* has handled it, and is about to end it."""
        self._ending.add((by, one))

    def was_ended(self, by: Process, one: str) -> None:
        """*by* was told that it has ended the message."""
        self.told[one] += 1
        if self.told[one] > 1:
            self._wrong.append(f"the end of {one} was told twice, the second time to {by.pid}")
        if self._at.get(one) and one not in self.may_come_twice:
            self._wrong.append(f"{one} was said to be ended, and is at {sorted(self._at[one])}")

    def was_lost(self, by: Process, one: str) -> None:
        """*by* was told that another has it, or that it is gone."""
        held = self.held.get(one)
        is_there = any(place_of(path)[0] == CLAIMED for path in self._at.get(one, ()))
        if held and held.by is by and is_there and by not in self.theirs:
            self._wrong.append(f"{by.pid} was told that {one} is lost, and it is its own")

    def was_requeued(self, by: Process, one: str) -> None:
        """*by* was told that it has requeued the message."""
        self.requeued[one] += 1
        if self.requeued[one] > self._counters.get(one, 0):
            self._wrong.append(f"{one} was said to be requeued by {by.pid}, and counts {self._counters.get(one, 0)}")

    # ---- what the disk says

    def _listen(self, change: Change) -> None:
        call, inode, source, target, by = change.call, change.inode, change.source, change.target, change.by
        if inode.is_directory:
            return
        was, now = place_of(source), place_of(target)
        if call == "rename" and (found := _COUNTS.match(target)):
            self._counted(found[1], int(inode.data.split()[1]))
        if call == "create" and was[0]:
            self._is_ours(by, f"{source} was made in place")
            self._comes(was[1], source, inode, by)
        elif call == "write":
            self._written(inode, by)
        elif call == "exchange":
            self._rewritten(by, target, inode, change.replaced)
        elif (call == "unlink" and was[0]) or (call == "rename" and was[0] == CLAIMED and _ASIDE.match(target)):
            self._removed(by, source, inode)
        elif call in ("rename", "link") and (was[0] or now[0]):
            self._moved(change)
        for one in {was[1], now[1]} - {""}:
            if one not in self._bodies:
                continue  # what never was a message is moved as it can be
            if len(self._at.get(one, ())) > 1:
                self._wrong.append(f"{one} is at {sorted(self._at[one])} after {call} {source} {target} by {by.pid}")

    def _moved(self, change: Change) -> None:
        by, inode, source, target = change.by, change.inode, change.source, change.target
        (was, one), (now, other) = place_of(source), place_of(target)
        if not was and now == CLAIMED and change.replaced is not None:  # where nothing can be exchanged
            self._rewritten(by, target, inode, change.replaced)
            return
        if change.replaced is not None:
            self._wrong.append(f"{source} was renamed over {target} by {by.pid}")
        if was and change.call == "rename":
            self._at[one].discard(source)
            if was == WAITS and now == CLAIMED:
                self.held[one] = Held(by, expiry_of(target))
                self._takes[one] += 1
            elif was == CLAIMED:
                self._claim_moved(by, one, source, target)
            elif was == WAITS and (now != ERRORS or parsed(inode.data)):
                self._is_ours(by, f"{source} was moved to {target or 'nowhere'}")
        if was and now and one != other:
            self._wrong.append(f"{source} became {target}: its id is lost")
        if now:
            self._comes(other, target, inode, by)

    def _claim_moved(self, by: Process, one: str, source: str, target: str) -> None:
        self._check_may_take(by, one, f"renamed {source} to {target}")
        now, _ = place_of(target)
        held = self.held[one]
        if now != CLAIMED:
            del self.held[one]
            if not now:
                self._is_ours(by, f"{source} was renamed to {target}")
            return
        is_keepers = is_touched(target) and self.keeper_of.get(held.by) is by
        self.held[one] = Held(held.by if is_keepers else by, expiry_of(target))

    def _check_may_take(self, by: Process, one: str, what: str) -> None:
        held = self.held.get(one)
        if held is None or held.by is by or by in self.theirs | self.purgers or not self._lasts(held):
            return
        if by in self.keepers and (held.by.has_crashed or held.by in self.gone):
            return
        if self.keeper_of.get(held.by) is by and f"{WORK}/" in what.partition(" to ")[2]:
            return
        self._wrong.append(f"{by.pid} has {what}, which is claimed by {held.by.pid} until {held.expiry}")

    def _comes(self, one: str, path: str, inode: Inode, by: Process) -> None:
        self._at.setdefault(one, set()).add(path)
        if one in self.ended:
            self._wrong.append(f"{one} came back as {path}, by {by.pid}")
        if by not in self.theirs:
            self._check_whole(one, path, inode, by)

    def _check_whole(self, one: str, path: str, inode: Inode, by: Process) -> None:
        found = parsed(inode.data)
        state, _ = place_of(path)
        if not found:  # what is no message is moved out of the way
            if state in (WAITS, DEFERRED):
                self._wrong.append(f"{path} is seen, and is no whole message: {inode.data!r}")
            return
        self._bodies.setdefault(one, found["message"])
        if found["id"] != one or found["message"] != self._bodies[one]:
            self._wrong.append(f"{path} holds another message: {inode.data!r}")
        name = path.rpartition("/")[2]
        if state == WAITS and (found["filename"] != name or found["priority"] != int(name.partition(".")[0])):
            self._wrong.append(f"{path} holds the name or priority of another: {inode.data!r}")
        counter = found["requeue_counter"]
        crashed = sum(process.has_crashed for process in self._world.processes.values())
        if by not in self.theirs and counter > self._takes[one] + crashed + self.requeues_more:
            self._wrong.append(f"{path}: requeued {counter} times, and claimed {self._takes[one]} times")
        self._counters.setdefault(one, counter)

    def _written(self, inode: Inode, by: Process) -> None:
        for one, paths in self._at.items():
            for path in paths:
                if self._world.disk.found(path) is inode:
                    self._is_ours(by, f"{path} was written to where it was seen")
                    if found := parsed(inode.data):
                        self._bodies.setdefault(one, found["message"])
                        self._counters.setdefault(one, found["requeue_counter"])

    def _rewritten(self, by: Process, path: str, inode: Inode, old: Inode | None) -> None:
        _, one = place_of(path)
        held = self.held.get(one)
        if held is None or held.by is not by:
            self._wrong.append(f"{path} was rewritten by {by.pid}, who does not have it")
        before, after = parsed(old.data if old else b""), parsed(inode.data)
        kept = {key: value for key, value in before.items() if key not in ("priority", "filename", "requeue_counter")}
        if any(after.get(key, self) != value for key, value in kept.items()):
            self._wrong.append(f"{path} was rewritten from {before} to {after}")
        if after["requeue_counter"] != before["requeue_counter"] + 1:
            self._wrong.append(f"{path} was rewritten, and counts {after['requeue_counter']} requeues")
        self._counters[one] = after["requeue_counter"]

    def _removed(self, by: Process, path: str, inode: Inode) -> None:
        state, one = place_of(path)
        self._at[one].discard(path)
        if self._at[one]:  # of a link and an unlink
            return
        found = parsed(inode.data)
        if state == CLAIMED:
            self._check_may_take(by, one, f"removed {path}")
            self.held.pop(one, None)
        limit = found.get("requeue_limit")
        is_at_limit = bool(limit) and found["requeue_counter"] >= limit
        if is_at_limit and self._takes[one] <= limit and by not in self.theirs:
            self._wrong.append(f"{path} was removed by {by.pid} at its limit, and was claimed {self._takes[one]} times")
        may = by in self.theirs or by in self.purgers or (by, one) in self._ending
        if not may and (state != CLAIMED or (found.get("requeue") and not is_at_limit)):
            self._wrong.append(f"{path} was removed by {by.pid}, and was to wait again")
        self.ended.add(one)

    def _counted(self, one: str, crashes: int) -> None:
        if crashes > self._takes[one] + self.crashed_before:
            self._wrong.append(f"{crashes} crashes are counted of {one}, which was claimed {self._takes[one]} times")

    def _is_ours(self, by: Process, what: str) -> None:
        if by not in self.theirs:
            self._wrong.append(f"{what} by {by.pid}")

    def _lasts(self, held: Held) -> bool:
        return held.expiry >= self._world.disk.now_ns() // 10**9

    def _purged(self, one: str) -> bool:
        return bool(self.purgers) and one in self.ended

    # ---- looking

    def is_wrong(self, what: str) -> None:
        """Said by who sees it; check() raises it."""
        self._wrong.append(what)

    def is_held(self, by: Process, one: str) -> bool:
        """Whether it is the claim of *by*."""
        return one in self.held and self.held[one].by is by

    def counter(self, one: str) -> int:
        """How often it was requeued."""
        return self._counters.get(one, 0)

    def messages(self) -> list[str]:
        """The ids of all that there ever were."""
        return sorted(self._at)

    def body(self, one: str) -> object:
        """What is in a message."""
        return self._bodies.get(one)

    def states(self, of: str | None = None) -> list[str]:
        """Of all that is there, or of the message *of* alone."""
        return sorted(place_of(path)[0] for one, paths in self._at.items() for path in paths if of in (None, one))

    def forget(self, one: str) -> None:
        """It is no message."""
        self._at.pop(one, None)

    def check(self) -> None:
        """Raises AssertionError for what was found wrong so far."""
        if self._wrong:
            raise AssertionError("; ".join(self._wrong))

    def check_left(self) -> None:
        """Before anybody recovers: what the dead had was given back by the keepers that were told."""
        for one, held in self.held.items():
            if held.by in self.given_back and self._lasts(held):
                raise AssertionError(f"{one} is still the claim of {held.by.pid}, whose death its keeper was told of")

    def check_all_ended(self) -> None:
        """Nothing is lost and nothing is left: each message was ended, or is in errors/."""
        self.check()
        lost = [one for one, paths in self._at.items() if not paths and one not in self.ended]
        if lost:
            raise AssertionError(f"lost: {lost}")
        if missing := self.put - self._at.keys():
            raise AssertionError(f"published and never seen: {missing}")
        left = [path for paths in self._at.values() for path in paths if place_of(path)[0] != ERRORS]
        left += [f"{ROOT}/{name}" for name in self._world.disk.directory(ROOT).entries if name.endswith(".tmp")]
        if left:
            raise AssertionError(f"left: {left}")

    def entered(self) -> int:
        """Equal for equal sets of messages, with what became of each."""
        return hash(frozenset((one, frozenset(paths), one in self.ended) for one, paths in self._at.items()))

    def fingerprint(self) -> int:
        """Equal for equal accounts."""
        return hash(
            (
                frozenset(self.put),
                frozenset(self.ended),
                frozenset(self.handled.items()),
                frozenset(self.told.items()),
                frozenset(self.requeued.items()),
                frozenset((one, held.by.pid, held.expiry) for one, held in self.held.items()),
                frozenset((by.pid, one) for by, one in self._ending),
                frozenset(self._takes.items()),
                frozenset(self._counters.items()),
            )
        )
