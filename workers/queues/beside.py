"""
beside - what a pool keeps of a queue whose own format has no place for it

    NAME.pool/held/OWNER               what that worker has in hand, see Hand; then its name once more
    NAME.pool/counts/ELEMENT           attempts and crashes of what waits again
    NAME.pool/deferred/DUE.MARK~ELEMENT   waits until DUE, out of the queue
    NAME.pool/errors/MARK~ELEMENT      rejected, out of the queue; .meta says why
    NAME.pool/tmp/                     being written
    NAME.pool/PAUSED                   when it exists nobody of ours claims

Next to the queue, never inside: other programs count what is there. On the same
filesystem, for messages are renamed between the two. ELEMENT is the element's name
with a dot for its slash; DUE, MARK and OWNER are those of SPOOL.md.

Raises: OSError, QueueRefused from make().
See also: dirq (who uses it), directory (the moves), names.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from dataclasses import dataclass

from workers.dirq.elements import Lock
from workers.errors import QueueRefused
from workers.queues.directory import UNKNOWN, Directory, is_regular
from workers.system import System
from workers.trust import Place

NO_RECORD = frozenset({errno.ENOENT, errno.ELOOP, errno.ENXIO})  # nothing, a symbolic link, a socket
RECORD_MAX = 1024
HAND_SIZE = 128  # bytes of held/OWNER: written as a whole, so a shorter line leaves nothing of a longer one


@dataclass(frozen=True, slots=True)
class Hand:
    """
    What a worker has in hand: an element, and by what its lock is known (see dirq.elements.Lock).

    *touched_ns* is the mtime of the record: when its keeper last touched the lock, to the nanosecond.
    """

    name: str
    inode: int
    at_ns: int
    touched_ns: int = 0

    def is_lock(self, found: Lock | None) -> bool:
        """Whether *found* is the lock that this speaks of: whoever takes it after us has one later than our record."""
        latest_ns = max(self.at_ns, self.touched_ns)
        return found is not None and found.inode == self.inode and found.at_ns <= latest_ns


def line_of(name: str, inode: int, at_ns: int) -> bytes:
    """What stands in held/OWNER, see Hand; HAND_SIZE bytes."""
    return f"{name} {inode} {at_ns:<{HAND_SIZE - 1}}"[: HAND_SIZE - 1].encode() + b"\n"


@dataclass(frozen=True, slots=True)
class Counts:
    """Attempts and crashes of an element; *lock* is by what the lock of the last crash was known, or ""."""

    attempts: int = 0
    crashes: int = 0
    lock: str = ""


class Beside(Directory):
    """The paths beside one queue, and the calls on them. Holds no descriptor."""

    inboxes = ()

    def __init__(self, queue: str, state_dir: str | None, system: System, hand_size: int = HAND_SIZE) -> None:
        """*hand_size*: bytes of a record before the name of its worker."""
        name = os.path.basename(queue)
        if state_dir is not None:  # where queues of one name may come together
            name = f"{name}-{hashlib.sha256(os.fsencode(queue)).hexdigest()[:6]}"
        super().__init__(os.path.join(state_dir or os.path.dirname(queue), f"{name}.pool"), system)
        self.held = os.path.join(self.path, "held")
        self.counts = os.path.join(self.path, "counts")
        self.paused = os.path.join(self.path, "PAUSED")
        self.hand_size = hand_size
        self.empty_hand = b"\n".rjust(hand_size)
        self.parts = (self.held, self.counts, self.deferred, self.errors, self.tmp)

    def places(self) -> list[Place]:
        """See Directory.places."""
        return [Place(self.path, tuple(map(os.path.basename, self.parts)))]

    def names(self) -> set[str]:
        """What is there. Raises OSError when one of the parts is something else than a directory: a link leads out."""
        found = set(self.system.listdir(self.path))
        for part in self.parts:
            if os.path.basename(part) in found and not self.system.is_directory(part):
                raise NotADirectoryError(errno.ENOTDIR, "is no directory", part)
        return found

    def make(self) -> None:
        """Make what is not there. Raises QueueRefused where that is not allowed, with what to do."""
        try:
            for path in (self.path, *self.parts):
                self._mkdir(path)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT):
                raise
            raise QueueRefused(
                f"cannot make {error.filename}, where a pool keeps its counts, retries and errors: {error.strerror}; "
                "set state_dir to a directory of the same filesystem where it may"
            ) from error

    # ---- counts

    def count_of(self, name: str) -> Counts:
        """The counts of the element *name*; zeros where there are none, or what is there is no such record."""
        if self.network is not None:
            # RACE: the keeper of another host has written them since a claim of this host found none. An NFS client
            # takes a name that was missing for missing, until it opens the directory: the message would be tried for
            # ever. See test_counts_that_another_host_wrote_are_read_though_there_were_none.
            with contextlib.suppress(FileNotFoundError):
                self.system.close(self.system.open(self.counts, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        words = self._record(self._count_path(name))[0].split(" ")
        if len(words) == 3 and words[0].isdecimal() and words[1].isdecimal():
            return Counts(min(int(words[0][:9]), 9999), min(int(words[1][:9]), 9999), words[2].strip())
        return Counts()

    def write_count(self, name: str, counts: Counts) -> None:
        """Replace the counts of the element *name*, whole."""
        temporary = os.path.join(self.tmp, f"{encoded(name)}.{self.system.random_bytes(8).hex()}.tmp")
        text = f"{counts.attempts} {counts.crashes} {counts.lock}\n"
        self.write_file(temporary, text.encode(), durable=False)
        try:
            self.system.rename(temporary, self._count_path(name))
        except OSError as error:
            # It is ours alone: when it is gone it has replaced what was there, and only the reply was lost.
            is_unknown = self.network is not None and error.errno in UNKNOWN
            if is_unknown and not self.is_listed(temporary) and self.is_listed(self._count_path(name)):
                return
            self.forget(temporary)
            raise

    def forget_count(self, name: str) -> None:
        """The element has ended. What cannot be removed is swept later."""
        self.forget(self._count_path(name))

    def _count_path(self, name: str) -> str:
        return f"{self.counts}/{encoded(name)}"

    # ---- what is in hand

    def is_record_of(self, owner: str) -> bool:
        """Whether held/OWNER was made under that name: a record that was renamed could speak of any process."""
        return self.record_of(owner)[0][self.hand_size :].strip() == owner

    def record_of(self, owner: str) -> tuple[str, int]:
        """The text of held/OWNER, and its mtime; "" and 0 for what is no such file. Raises OSError."""
        return self._record(os.path.join(self.held, owner))

    def hand_of(self, owner: str) -> Hand | None:
        """What held/OWNER says; None for nothing, or for what is no such record. Raises OSError."""
        line, touched_ns = self.record_of(owner)
        words = line[: self.hand_size].split()
        if len(words) != 3 or not (words[1].isdecimal() and words[2].isdecimal()):
            return None
        return Hand(words[0], int(words[1]), int(words[2]), touched_ns)

    def _record(self, path: str) -> tuple[str, int]:
        """The beginning of the file *path*, and its mtime; "" and 0 for what is none. Raises OSError."""
        try:
            fd = self.system.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in NO_RECORD:
                return "", 0
            raise
        try:
            found = self.system.fstat(fd)
            if not is_regular(found):
                return "", 0
            return self.system.read(fd, RECORD_MAX).decode("ascii", "replace"), found.st_mtime_ns
        finally:
            self.system.close(fd)


def encoded(name: str) -> str:
    """The element *name* as part of a file's name."""
    return name.replace("/", ".")


def decoded(file: str) -> str:
    """The element's name that encoded() made *file* of."""
    return file.replace(".", "/", 1)
