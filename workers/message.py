"""
message - what a handler is given, and what it may answer

A Claim is the queue's side of a message in hand, a Message the handler's.
Outcomes are values: Done, Retry, Reject, Forward.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from workers.queues import names
from workers.system import READ_MAX

READ_SIZE = 65536  # a larger buffer costs ten times as much to allocate as a small message to read


@dataclass(slots=True)
class Claim:
    """
    One message taken exclusively.

    Attributes:
        name: the message's own name (no mark, no directory); surrogate-escaped text.
        path: absolute path of the claimed file.
        attempt: 1 for the first.  crashes: how often its holder died with it in hand.
        modified_at: unix seconds; when it was written, by the filesystem's clock (mtime).
        claimed_ns: CLOCK_BOOTTIME nanoseconds, read just before the claim.
        fd: open for reading, or -1.
        trouble: None, or why this is nothing a handler can be given (no regular file, unreadable).
    """

    name: str
    path: str
    attempt: int = 1
    crashes: int = 0
    modified_at: float = 0.0
    claimed_ns: int = 0
    fd: int = -1
    size: int = 0
    claimed_at: float = 0.0  # unix seconds by the filesystem's clock (ctime of the claim)
    token: str = ""
    lapses: int = 0  # the keeper's count of lease lapses when this was claimed
    trouble: str | None = None
    full_name: str = ""  # the name as it arrived, when it had to be shortened
    priority: int | None = None  # the protocol's own number, where it has one
    is_forwarded: bool = False  # renamed into the next queue, and not yet made durable there

    @property
    def enqueued_at(self) -> float:
        """Unix seconds: from the name when it is ours, else when the file was written."""
        own = names.enqueued_at(self.name)
        return self.modified_at if own is None else own

    @property
    def file(self) -> str:
        """The name in the owner's directory, mark included."""
        return self.path.rpartition("/")[2]


@dataclass(slots=True)
class Message:
    """
    What ``handle(message)`` is given.

    ``body`` is read when asked for, byte for byte. ``deadline`` is a time on
    time.monotonic() after which the worker is killed, or None.
    """

    claim: Claim
    queue: str
    worker: int = 0
    deadline: float | None = None
    on_child: Callable[[int], None] | None = None  # tells the board the process group of a program run for this message
    _body: bytes | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The message's own name, the same in every state."""
        return self.claim.name

    @property
    def path(self) -> Path:
        """The claimed file. A program may read it, even remove it; the message ends all the same."""
        return Path(self.claim.path)

    @property
    def attempt(self) -> int:
        """1 for the first attempt."""
        return self.claim.attempt

    @property
    def crashes(self) -> int:
        """How many workers died while they had this message in hand."""
        return self.claim.crashes

    @property
    def enqueued_at(self) -> float:
        """Unix seconds at which it was put."""
        return self.claim.enqueued_at

    @property
    def body(self) -> bytes:
        """The whole content. Raises OSError when the file cannot be read any more, EFBIG for more than READ_MAX."""
        if self._body is None:
            claim = self.claim
            if claim.size > READ_MAX:
                raise _too_large(claim, claim.size)
            self._body = _read_all(claim) if claim.fd >= 0 else Path(claim.path).read_bytes()
        return self._body


def _read_all(claim: Claim) -> bytes:
    # One byte more than it was long says in one call that it has not grown.
    wanted = claim.size + 1 if claim.size < READ_SIZE else READ_SIZE
    first = os.pread(claim.fd, wanted, 0)
    if claim.size <= len(first) < wanted:
        return first
    parts, offset = [first], len(first)
    while part := os.pread(claim.fd, 1 << 20, offset):
        parts.append(part)
        offset += len(part)
        if offset > READ_MAX:  # its producer may have it open, and write on
            raise _too_large(claim, offset)
    return b"".join(parts)


def _too_large(claim: Claim, size: int) -> OSError:
    text = f"has {size} bytes: read the file bit by bit, or set max_message_size"
    return OSError(errno.EFBIG, text, claim.path)


@dataclass(frozen=True, slots=True)
class Done:
    """The message is finished. Returning None means the same."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Not now. Counts as an attempt; *after_s* None is the pool's backoff."""

    after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Reject:
    """Never. The message goes to errors/ with *reason*."""

    reason: str


Body = bytes | str | Path


@dataclass(frozen=True, slots=True)
class Forward:
    """
    Finished here, and handed on to *queue* (a URL).

    *body* None hands on the file as it is, in one rename where both queues are on one
    filesystem. bytes or text are a new body, a Path a file to be copied, a list several
    messages: then it is put first and finished after, so at least once.
    """

    body: Body | Sequence[Body] | None = None
    queue: str = ""


Outcome = Done | Retry | Reject | Forward
