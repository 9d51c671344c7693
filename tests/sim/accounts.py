"""
accounts - the ledger of a cluster: many messages, and why each may end as it does

Like ledger it believes nobody: it listens to the disk. What it looks at costs the same
however many messages there are. Every body is one of its own, so a message is known by
it; a put that is repeated says something else.

After every call: a message has exactly one name in the directories of state, until its
holder removes it; no rename replaces; who gives back another's claim finds the worker
dead, off the board, or its master silent for a whole lease timeout. A crash is counted
by such a release alone, an attempt by a failure alone, and errors/ has only what reached
a limit or was rejected.

Long because: each rule stands where the call is seen that might break it.
See also: ledger (the same for exhaustive schedules), cluster.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from tests.sim.disk import Change, Inode
from tests.sim.ledger import STATES
from tests.sim.virtual import SECOND, Client, Virtual
from workers.queues import names


@dataclass(slots=True, eq=False)
class Message:
    """
    One message and what happened to it.

    Attributes:
        name: the NAME that all of its names end in; paths: its names in the directories of state.
        ends: settles that were answered "done" or "forwarded" in the queue of that name.
        failed: attempts of which a handler, or the master's time limit, said that they failed.
    """

    body: bytes
    name: str
    paths: list[str]
    handled: int = 0
    failed: int = 0
    killed: int = 0
    requeued: int = 0
    rejected: int = 0
    ends: list[str] = field(default_factory=list)
    is_finished: bool = False


@dataclass(slots=True)
class Beats:
    """Of one master, as the server saw them. *silence_ns*: the last gap of half a timeout or more, until *ended_ns*."""

    last_ns: int
    ended_ns: int = 0
    silence_ns: int = 0


def name_of(path: str) -> str:
    """The NAME of a message that lies at *path*."""
    file = path.rpartition("/")[2]
    due = names.parse_due(file)
    return due[1].name if due else names.parse(file).name


class Accounts:
    """
    The accounts of one cluster. *limits*: (max_attempts, crash_limit); *timeout_s*: of a lease.

    Attributes:
        owner_on_board: says for an owner's directory whether its worker's board names it; set by the cluster.
    """

    def __init__(self, virtual: Virtual, timeout_s: float, limits: tuple[int, int]) -> None:
        self._virtual = virtual
        self._timeout_ns = int(timeout_s * SECOND)
        self._attempts_max, self._crash_limit = limits
        self.messages: dict[bytes, Message] = {}
        self._by_inode: dict[Inode, Message] = {}
        self._live: dict[Message, None] = {}
        self._refused: set[bytes] = set()
        self._owners: dict[str, Client] = {}
        self._beats: dict[str, Beats] = {}
        self.counts: Counter[str] = Counter()
        self.releases: Counter[str] = Counter()
        self.owner_on_board: Callable[[str], bool] = lambda owner: True
        self.master_is_dead: Callable[[str], bool] = lambda master: False
        virtual.world.disk.listeners.append(self._listen)

    # ---- what producers say

    def was_put(self, body: bytes) -> None:
        """A put has returned."""
        self.counts["puts"] += 1
        if body not in self.messages:
            self._wrong(f"the put of {body!r} returned, and it never entered")

    def was_refused(self, bodies: Iterable[bytes], *, is_name_taken: bool = False) -> None:
        """A put raised, and said that these did not enter."""
        for body in bodies:
            self.counts["names taken" if is_name_taken else "puts refused"] += 1
            entered = self.messages.get(body)
            if entered is not None and is_name_taken and entered.is_finished:
                # The reply of its link was lost, it was finished before the put looked, and another has its name.
                self.counts["names taken after a lost reply"] += 1
                continue
            if entered is not None:
                self._wrong(f"the put of {body!r} said that it did not enter, and it did")
            self._refused.add(body)

    # ---- what workers say

    def was_handled(self, inode: Inode) -> Message:
        """A handler has been given it."""
        message = self._by_inode[inode]
        if message.handled > message.failed + message.killed + message.rejected + len(message.ends):
            self.counts["handled twice"] += 1
        message.handled += 1
        self.counts["handled"] += 1
        if message.killed >= self._crash_limit * (1 + message.requeued):
            self._wrong(f"{message.body!r} killed {message.killed} workers, and is given to another")
        return message

    def was_settled(self, inode: Inode, outcome: str, path: str) -> None:
        """A settle of what was claimed as *path* has returned; *outcome* is one of the board's."""
        message = self._by_inode[inode]
        body = message.body
        queue = path.split("/")[1]
        self.counts[outcome] += 1
        if outcome == "done":
            if not message.is_finished:
                self._wrong(f"{body!r} was said to be done, and is at {message.paths}")
        elif outcome == "forwarded":
            if not message.is_finished and any(path.startswith(f"/{queue}/") for path in message.paths):
                self._wrong(f"{body!r} was said to be forwarded, and is at {message.paths}")
        else:
            return
        if queue in message.ends:
            self._wrong(f"{body!r} was ended twice in {queue}")
        message.ends.append(queue)

    # ---- what the disk says

    def _listen(self, change: Change) -> None:
        call = change.call
        if call == "write" or call[:4] == "fsyn":
            return
        inode, source = change.inode, change.source.split("/")
        if inode.is_directory:
            if call == "mkdir":
                self._owners[source[-1]] = change.by
            return
        if call == "rename":
            target = change.target.split("/")
            if target[2] == ".pool":
                self._beat(target)
                return
            if change.replaced is not None:
                self._wrong(f"{change.source} was renamed over {change.target}")
            self._move(change, source, target)
        elif call == "link":
            if change.target.split("/")[2] in STATES:
                self._enter(inode, change.target)
        elif call == "create":
            if source[2] == ".pool":
                self._beat(source)
            elif source[2] in STATES:
                self._wrong(f"{change.source} was made in place")
        elif call == "unlink" and source[2] in STATES:
            self._remove(change, source)

    def _move(self, change: Change, source: list[str], target: list[str]) -> None:
        message = self._by_inode.get(change.inode)
        if message is None:
            if target[2] in STATES and target[-1][-5:] != ".meta" and target[-1][:7] != ".probe.":
                self._enter(change.inode, change.target)
            return
        if source[2] == "tmp":
            self._wrong(f"{message.body!r} has a name in tmp/ that was renamed to {change.target}")
            return
        message.paths.remove(change.source)
        message.paths.append(change.target)
        if source[2] == "errors":
            message.requeued += 1
            self.counts["requeued"] += 1
        elif source[2] == "pending" and target[1] == source[1]:
            if self._owners.get(source[3]) is change.by:
                self._check_settled(message, source[-1], target)
            else:
                self._check_released(message, change, source, target)

    def _enter(self, inode: Inode, path: str) -> None:
        body = inode.data
        if inode in self._by_inode:
            message = self._by_inode[inode]
            message.paths.append(path)
            self._wrong(f"{body!r} has the names {message.paths}")
            return
        if body in self.messages and body[:1] == b"f":
            self.counts["forwarded anew twice"] += 1  # cut off between the put and the done
        elif body in self.messages:
            self._wrong(f"{body!r} entered twice, at {path} and {self.messages[body].paths}")
        if body in self._refused:
            self._wrong(f"{body!r} entered at {path} after its put had said that it did not")
        if not body:
            self._wrong(f"{path} is empty")
        self.messages[body] = self._by_inode[inode] = message = Message(body, name_of(path), [path])
        self._live[message] = None
        self.counts["messages"] += 1

    def _remove(self, change: Change, source: list[str]) -> None:
        message = self._by_inode.get(change.inode)
        if message is None:
            return
        message.paths.remove(change.source)
        if message.paths:
            self._wrong(f"{message.body!r} has still the names {message.paths}")
        if source[2] != "pending" or self._owners.get(source[3]) is not change.by:
            self._wrong(f"{change.source} was removed by {change.by.pid}, who did not hold it")
        message.is_finished = True
        self.counts["finished"] += 1
        del self._live[message]

    def _check_settled(self, message: Message, file: str, target: list[str]) -> None:
        """Its holder moved it on."""
        before, after = names.parse(file), _mark(target)
        if after.crashes != before.crashes:
            self._wrong(f"the holder of {message.body!r} changed its crashes: {'/'.join(target)}")
        if target[2] == "errors":
            self.counts["into errors/"] += 1
            if not message.rejected and message.failed < self._attempts_max:
                self._wrong(f"{message.body!r} is in errors/ after {message.failed} failures, not rejected")
        elif after.attempts > message.failed:
            self._wrong(f"{message.body!r} failed {message.failed} times, and is {target[-1]}")

    def _check_released(self, message: Message, change: Change, source: list[str], target: list[str]) -> None:
        """Somebody else gave the claim back."""
        owner, keeper = source[3], change.by
        why = self._why_released(owner, keeper)
        self.releases[why] += 1
        if why == "false":
            self._wrong(
                f"the claim {change.source} of a live worker was released by {keeper.host} {keeper.pid}",
                f"leases/{owner.rsplit('.', 4)[0]}",
            )
        before, after = names.parse(source[-1]), _mark(target)
        crashes, attempts = after.crashes - before.crashes, after.attempts - before.attempts
        if attempts and after.attempts > message.failed:
            # Beside what was in hand too long, a claim whose answer was lost and that nobody knew of.
            self.counts["attempts of what was not handled"] += 1
            message.failed += 1
        if (crashes, attempts) not in ((0, 0), (1, 0), (0, 1)):
            self._wrong(f"{message.body!r} was released as {change.target} from {source[-1]}")
        if target[2] == "errors":
            self.counts["into errors/"] += 1
            limit = self._crash_limit if crashes else self._attempts_max
            if (after.crashes if crashes else after.attempts) < limit:
                self._wrong(f"{message.body!r} was released into errors/ below any limit: {change.target}")

    def _why_released(self, owner: str, keeper: Client) -> str:
        parsed = names.parse_owner(owner)
        assert parsed is not None
        holder = self._owners[owner]
        if parsed.master == keeper.master:
            if holder.has_crashed:
                return "its worker died"
            return "false" if self.owner_on_board(owner) else "not on the board"
        is_neighbour = keeper.place is holder.place and holder.kernel8(holder.host) == parsed.kernel8
        if is_neighbour and holder.has_crashed and self.master_is_dead(parsed.master):
            return "its master died"
        beats = self._beats[parsed.master]
        now_ns = self._virtual.now_ns
        silence_ns = now_ns - beats.last_ns
        if now_ns - beats.ended_ns < self._timeout_ns:
            silence_ns = max(silence_ns, beats.silence_ns)
        if silence_ns < self._timeout_ns // 2:  # its worker may still claim, and settle
            return "false"
        return "its lease was lost" if silence_ns >= self._timeout_ns else "its lease was old"

    def _beat(self, target: list[str]) -> None:
        if target[3] != "leases":
            return
        master, now_ns = target[4].rpartition(".")[0], self._virtual.now_ns
        beats = self._beats.get(master)
        if beats is None:
            self._beats[master] = Beats(now_ns)
            return
        self.counts["beats"] += 1
        if now_ns - beats.last_ns >= self._timeout_ns // 2:
            beats.silence_ns, beats.ended_ns = now_ns - beats.last_ns, now_ns
        beats.last_ns = now_ns

    def _wrong(self, what: str, *suspects: str) -> None:
        self._virtual.wrong.append(what)
        self._virtual.suspects += suspects
        for body in re.findall(r"b'(\S+?)'", what):
            if (message := self.messages.get(body.encode())) is not None:
                self._virtual.suspects.append(message.name)
        for text in re.findall(r"/\S+", what):
            self._virtual.suspects.append(names.parse(text.rstrip("',]").rpartition("/")[2]).name)

    # ---- the end

    def left(self) -> list[Message]:
        """Messages that are neither finished nor in errors/."""
        return [message for message in self._live if message.paths[0].split("/")[2] != "errors"]

    def check_all_ended(self) -> None:
        """Raises AssertionError unless each message was finished, or is in errors/, and nothing else lies about."""
        left = [f"{message.body!r} is left at {message.paths}" for message in self.left()]
        left += [f"{one.body!r} is lost" for one in self._by_inode.values() if not (one.is_finished or one.paths)]
        for path, inode in self._virtual.world.disk.files():
            if path.split("/")[2] == "tmp":
                left.append(f"{path} is left ({inode.data!r})")
        if left:
            raise AssertionError("; ".join(left[:20]))


def _mark(target: list[str]) -> names.Marked:
    if target[2] == "deferred":
        due = names.parse_due(target[-1])
        assert due is not None, target
        return due[1]
    return names.parse(target[-1])
