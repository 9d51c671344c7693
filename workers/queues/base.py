"""
base - the one contract every pool, keeper, command and contract test runs on

Every protocol is an adapter with the same few verbs. What it cannot do it does
not declare in *capabilities*, and an option that asks for it is refused at start
with a sentence that names both.

Delivery is at least once: after a crash or a lost lease a message may be handled
twice; it is never lost, never half visible, and no two live claimers settle it.
Long because: the contract is read as one, by who writes a protocol.
See also: spool (the protocol of this project), dirq, tests/contract (what all must do).
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import re
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Literal

from workers.board import Board
from workers.errors import NotSupported, QueueError, QueueUnavailable
from workers.message import Body, Claim
from workers.pauses import Pauses
from workers.system import READ_MAX, TOO_LARGE, System
from workers.trust import Place

Order = Literal["fifo", "any"]
Watch = Literal["auto", "inotify", "poll"]
Cause = Literal["died", "timeout", "stopped", "unknown"]  # of a worker's end, as its keeper is told
State = Literal["waiting", "claimed", "deferred", "errors", "done"]
POLL_S, POLL_NETWORK_S = 0.1, 1.0
STATES: tuple[State, ...] = ("waiting", "claimed", "deferred", "errors", "done")


class Capability(Enum):
    """What a protocol may be able to do beyond put and claim."""

    NAME = "name"
    DELAY = "delay"
    DURABLE = "durable"
    DEFER = "defer"
    ERRORS = "errors"
    ORDER = "order"
    PAUSE = "pause"
    KEEP_DONE = "keep_done"
    ATOMIC_FORWARD = "atomic_forward"
    PRIORITY = "priority"
    CLAIM = "claim"


@dataclass(frozen=True, slots=True)
class Settings:
    """
    How a queue is used; times in seconds. None for a lease time means the queue's own.

    Attributes:
        order: fifo by Message.name, best effort; any is cheaper with a large backlog.
        max_attempts: at that many failures a message goes to errors/.
        crash_limit: at that many workers dead with it in hand it goes to errors/.
        stale_after_s: age at which flat foreign claims and abandoned tmp/ files are reaped.
        keep_done_s: None unlinks finished messages; else they stay in done/ that long.
        keep_errors_s: None keeps errors/ for ever.
        create: make the queue where only its parent exists.
        reap_foreign: also give back flat claims whose names are not unique by shape.
        state_dir: where a protocol that must keep something beside its queue does so; None is next to it.
        watch: how arrivals are seen; auto is inotify, or poll on a network filesystem (others' make no event there).
        poll_interval_s: the longest pause between two looks while nothing comes; None is POLL_S, or POLL_NETWORK_S.
    """

    order: Order = "fifo"
    max_attempts: int = 5
    retry_backoff_s: float = 1.0
    retry_backoff_s_max: float = 300.0
    crash_limit: int = 3
    lease_interval_s: float | None = None
    lease_timeout_s: float | None = None
    stale_after_s: float | None = None
    keep_done_s: float | None = None
    keep_errors_s: float | None = None
    create: bool = False
    reap_foreign: bool = False
    state_dir: str | None = None
    watch: Watch = "auto"
    poll_interval_s: float | None = None


@dataclass(frozen=True, slots=True)
class Consumer:
    """
    Who claims: one worker of one master, with its place on the board.

    Attributes:
        master: name of the master's lease, one for each incarnation.
        worker_slot, queue_slot: numbers on *board*.
        index: of the worker; count: workers of this queue on this host (they start apart).
        feed, feed_writer: the ends of the pipe that its feeder fills with names; -1 where it scans for itself.
    """

    master: str
    board: Board
    queue_slot: int
    worker_slot: int = 0
    index: int = 0
    count: int = 1
    feed: int = -1
    feed_writer: int = -1


@dataclass(frozen=True, slots=True)
class Depth:
    """Messages by state; oldest ages in seconds, 0.0 when empty (foreign names: mtime, of at most 1,000)."""

    waiting: int = 0
    claimed: int = 0
    deferred: int = 0
    errors: int = 0
    ignored: int = 0
    oldest_s: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Listed:
    """One line of list(): where a message is and what its name says."""

    name: str
    state: State
    path: str
    attempt: int = 1
    crashes: int = 0
    owner: str | None = None
    due_at: float | None = None


@dataclass(frozen=True, slots=True)
class Shown:
    """
    What show() knows of one message.

    Attributes:
        size: of what a handler is given, in bytes.
        meta: what errors/ keeps beside it, or None.
        body: what a handler is given, where that is not the file at listed.path as it is.
    """

    listed: Listed
    size: int
    modified_at: float
    enqueued_at: float
    meta: dict[str, object] | None = None
    body: bytes | None = None


@dataclass(slots=True)
class Kept:
    """What one keeper round did, per kind and reason."""

    owner_dead: int = 0
    lease_lost: int = 0
    too_old: int = 0
    crash_limit: int = 0
    temporary: int = 0
    due: int = 0
    pruned: int = 0
    beat_ok: bool = True


class Queue(ABC):
    """One queue, opened. See QUEUE verbs in the module's manual; errors are those of workers.errors."""

    url: str
    protocol: str
    capabilities: frozenset[Capability]
    settings: Settings

    # ---- producers

    @abstractmethod
    def put(
        self,
        body: Body,
        name: str | None = None,
        *,
        priority: int | None = None,
        delay: float = 0,
        durable: bool | None = None,
    ) -> str | None:
        """
        Enter one message, complete or not at all; its name.

        *body*: bytes, text (UTF-8) or the Path of a regular file to copy. *delay* in seconds.
        *durable* None is as far as the protocol can, True is refused where it cannot; after False a power failure
        may take the message away or cut it short. *priority* is the protocol's own number (ddmq: 0 is served first;
        mqueue: the highest).
        Raises MessageExists, InvalidName, QueueFull, QueueUnavailable, NotSupported.
        """

    def put_many(self, bodies: Sequence[Body], *, durable: bool | None = None) -> list[str]:
        """
        Enter a batch; its names. A QueueError carries the names that were entered before it, in their order.

        They are as durable as was asked. Where is_unknown, that is not certain, nor whether the body after
        them was entered as well; none of the others was.
        """
        entered: list[str] = []
        try:
            for body in bodies:
                name = self.put(body, durable=durable)
                if name is not None:
                    entered.append(name)
        except QueueError as error:
            error.names = tuple(entered)
            raise
        return entered

    # ---- consumers

    def attach(self, consumer: Consumer) -> None:
        """Say who claims. Before the first claim, in the process that will claim."""
        raise NotSupported(f"a {self.protocol} queue cannot be claimed from")

    def claim(self) -> Claim | None:
        """Take one message exclusively, or None. Never blocks."""
        return None

    def done(self, claim: Claim) -> None:
        """Finish it. Raises ClaimLost when it was given to another meanwhile."""
        raise NotSupported(f"a {self.protocol} queue has nothing to settle")

    def retry(self, claim: Claim, after_s: float | None = None, meta: dict[str, object] | None = None) -> bool:
        """Count an attempt and defer it; False when that was the last attempt and it went to errors/ with *meta*."""
        raise NotSupported(f"a {self.protocol} queue has nothing to settle")

    def reject(self, claim: Claim, reason: str, meta: dict[str, object] | None = None) -> None:
        """Move it to errors/ with *reason*."""
        raise NotSupported(f"a {self.protocol} queue has nothing to settle")

    def release(self, claim: Claim) -> None:
        """Give it back as it was: no attempt, no crash counted."""
        raise NotSupported(f"a {self.protocol} queue has nothing to settle")

    def forward(self, claim: Claim, queue: Queue, bodies: Sequence[Body] | None = None) -> None:
        """Hand it on to *queue* and finish it here; None hands on the file as it is."""
        raise NotSupported(f"a {self.protocol} queue has nothing to settle")

    def settled(self, claim: Claim) -> None:
        """Forget the claim in hand and close what it holds open. Every settle does it, unless it may be tried again."""

    def wait(self, timeout_s: float) -> bool:
        """Block until there may be a message, at most *timeout_s*."""
        raise NotSupported(f"a {self.protocol} queue cannot be waited for")

    def watch_directory(self) -> str | None:
        """The directory in which messages arrive; None where there is no single one, and only polling sees them."""
        return None

    def settle_leftovers(self) -> None:
        """Look at what lies in our own directory and is no claim in hand. When idle, and at exit."""

    def renew(self) -> None:
        """Open anew what was open on a filesystem that went away and is there again. After a QueueUnavailable."""

    def detach(self) -> None:
        """Leave: nothing is in hand, take our own directory away."""

    # ---- the keeper

    def keep(self) -> Kept:
        """See Keeper.keep. Keeper only."""
        raise NotSupported(f"a {self.protocol} queue needs no keeper")

    def release_owner(self, owner: str, cause: Cause, note: str = "") -> list[str]:
        """See Keeper.release_owner. Keeper only."""
        raise NotSupported(f"a {self.protocol} queue needs no keeper")

    # ---- the operator; reads only, unless the verb says otherwise

    @abstractmethod
    def depth(self) -> Depth:
        """Count messages by state."""

    def waiting_count(self) -> int:
        """How many wait to be claimed, and no more than that: for who asks again and again. Raises QueueUnavailable."""
        return self.depth().waiting

    def waiting_count_max(self) -> int:
        """No fewer than wait, where that is cheaper: for who asks before each message. Raises QueueUnavailable."""
        return self.waiting_count()

    def list(self, state: State | None = None) -> Iterator[Listed]:
        """Each message of *state*, or of all."""
        return iter(())

    def show(self, name: str) -> Sequence[Shown]:
        """Everything known of the message(s) called *name*."""
        return []

    def requeue(self, name: str) -> int:
        """Move *name* from errors/ back into incoming/, counts at zero; how many."""
        raise NotSupported(f"a {self.protocol} queue has no errors/")

    def pause(self) -> None:
        """Nobody claims until resume(); what is in hand is finished."""
        raise NotSupported(f"a {self.protocol} queue cannot be paused")

    def resume(self) -> None:
        """End pause()."""
        raise NotSupported(f"a {self.protocol} queue cannot be paused")

    def is_paused(self) -> bool:
        """Whether pause() is in force."""
        return False

    def close(self) -> None:
        """Give back what the process holds (descriptors, a keeper of its own)."""

    def __enter__(self) -> Queue:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def needs(self, capability: Capability, option: str) -> None:
        """Refuse *option* unless the protocol has *capability*."""
        if capability not in self.capabilities:
            raise NotSupported(f"{option} is not possible: a {self.protocol} queue has no {capability.value}")


class Keeper(ABC):
    """The keeper's side of one queue, for one master. Its verbs raise QueueUnavailable, and are tried again."""

    tick_s: float  # between two rounds

    @abstractmethod
    def open(self) -> None:
        """Try whatever the queue rests on, and beat once. Raises QueueRefused too."""

    @abstractmethod
    def keep(self) -> Kept:
        """One bounded round: beat, looks, releases, due, prune; what it did."""

    @abstractmethod
    def release_owner(self, owner: str, cause: Cause, note: str = "") -> list[str]:
        """Give back the claims of one dead owner; their names."""

    @abstractmethod
    def depth(self, *, is_exact: bool) -> Depth:
        """See Queue.depth; not *is_exact*, a part of it may be what was seen a little while ago."""

    @abstractmethod
    def leave(self) -> None:
        """The last thing of all: nobody beats for this master any more."""


class Source(ABC):
    """
    Where the names of waiting messages are read from. A name that was read is a hint, never a claim.

    *tree*: they lie in directories that match it, below the one that is watched for arrivals, and are called
    DIRECTORY/NAME; None: in that one. *is_prioritised*: a name that comes later may have to be served first.
    """

    tree: re.Pattern[str] | None = None
    is_prioritised = False

    @abstractmethod
    def names(self, odd: set[str], ignored: set[str]) -> Generator[str]:
        """
        The names that may be claimed, as they are found. Raises OSError.

        What is no regular file is added to *odd*, directories that stay where they are to *ignored*.
        """

    @abstractmethod
    def is_message(self, name: str, odd: set[str]) -> bool:
        """Whether *name*, of which a watcher spoke, may be claimed; see names() for *odd*. Raises OSError."""

    @staticmethod
    @abstractmethod
    def key(name: str) -> str:
        """What order fifo sorts by."""


class Claimable(Queue):
    """
    A queue that pools run on: it is in a place, has names to feed, and a keeper.

    Attributes:
        place: the directory whose free space is measured; its last part is the queue's short name.
        identity: the directory by whose inode two URLs are known to be one queue.
        network: the network filesystem that holds it, None for a local one.
        on_close: called once by close().
        wait_fd: readable while something may be waiting, so workers wait there and nothing is fed; -1 where names are.
        keeper_is_gone: of a keeper that this process forked itself.
    """

    system: System
    host: str
    place: str
    identity: str
    network: str | None
    on_close: Callable[[], None] | None = None
    keeper_is_gone: Callable[[], bool] | None = None
    wait_fd = -1
    _keeper: Keeper | None = None

    def places(self) -> list[Place]:
        """The directories that it rests on, for a look at who may write there."""
        return []

    @abstractmethod
    def keeper(self, consumer: Consumer) -> Keeper:
        """The keeper's side of this queue, made once; *consumer* names the master and its slot on the board."""

    def keeper_side(self) -> Keeper:
        """What keeper() made."""
        assert self._keeper is not None  # noqa: S101 - keeper() comes first
        return self._keeper

    def keep(self) -> Kept:
        """See Queue.keep."""
        return self.keeper_side().keep()

    def release_owner(self, owner: str, cause: Cause, note: str = "") -> list[str]:
        """See Queue.release_owner."""
        return self.keeper_side().release_owner(owner, cause, note)

    @abstractmethod
    def source(self) -> Source:
        """Where the names of what waits are read."""

    def waiting_count(self) -> int:
        """See Queue.waiting_count: one listing of what waits, not one look at a file."""
        try:
            with contextlib.closing(self.source().names(set(), set())) as found:
                return sum(1 for _ in found)
        except OSError as error:
            raise QueueUnavailable.at("count what waits in", error.filename or self.place, error) from error

    @property
    def poll_interval_s(self) -> float:
        """The longest pause between two looks at what waits while nothing comes, in seconds."""
        default_s = POLL_S if self.network is None else POLL_NETWORK_S
        return default_s if self.settings.poll_interval_s is None else self.settings.poll_interval_s

    def wait(self, timeout_s: float) -> bool:
        """See Queue.wait: by polling, at growing distances."""
        end_ns = self.system.boottime_ns() + int(timeout_s * 1e9)
        pauses = Pauses(self.poll_interval_s, self.system)
        while (left_s := (end_ns - self.system.boottime_ns()) / 1e9) > 0:
            try:
                source, odd = self.source(), set[str]()
                with contextlib.closing(source.names(odd, set())) as found:
                    if any(source.is_message(name, odd) for name in found):
                        return True
            except OSError as error:
                raise QueueUnavailable.at("look into", error.filename or self.place, error) from error
            self.system.sleep(min(pauses.next_s(), left_s))
        return False

    def backoff_s(self, attempt: int) -> float:
        """A random time up to base * 2^(attempt - 1), at most the configured maximum (full jitter)."""
        highest = self.settings.retry_backoff_s * 2.0 ** min(attempt - 1, 60)
        return random.uniform(0, min(highest, self.settings.retry_backoff_s_max))  # noqa: S311 - spreads load, no secret

    def read_body(self, body: Body) -> bytes:
        """What *body* is, see Queue.put. Raises OSError."""
        if not isinstance(body, Path):
            return body.encode("utf-8") if isinstance(body, str) else bytes(body)
        fd = self.system.open(str(body), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            return self.read_regular(fd, str(body))
        finally:
            self.system.close(fd)

    def read_regular(self, fd: int, path: str) -> bytes:
        """All of what is open as *fd*. Raises OSError, also where it is no regular file."""
        found = self.system.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "is no regular file", path)
        if found.st_size > READ_MAX:
            raise OSError(errno.EFBIG, TOO_LARGE, path)
        return self.read_all(fd)

    def read_all(self, fd: int) -> bytes:
        """All of the file *fd*, from its beginning. Raises OSError, EFBIG for a huge one."""
        parts, offset = [], 0
        while part := self.system.pread(fd, 1 << 20, offset):
            parts.append(part)
            offset += len(part)
            if offset > READ_MAX:
                raise OSError(errno.EFBIG, TOO_LARGE)
        return b"".join(parts)

    def hand_on(self, claim: Claim, queue: Queue, bodies: Sequence[Body]) -> None:
        """Put *bodies* into *queue*; a single one has the priority of *claim* where both speak the same protocol."""
        if claim.priority is not None and len(bodies) == 1 and queue.protocol == self.protocol:
            queue.put(bodies[0], priority=claim.priority)
        else:
            queue.put_many(bodies)

    def close_claim(self, claim: Claim) -> None:
        """Close the descriptor of *claim*. Again does nothing."""
        if claim.fd >= 0:
            fd, claim.fd = claim.fd, -1
            with contextlib.suppress(OSError):  # it was open for reading: there is nothing that could be lost
                self.system.close(fd)

    def close(self) -> None:
        """See Queue.close: leaves, and ends the keeper of a queue that was opened to consume."""
        self.detach()
        if self.on_close is not None:
            self.on_close()
            self.on_close = None
