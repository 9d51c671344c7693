"""
receive - the files that a kernel's queue is received into, so that a message outlives who received it

    /dev/shm/orchestrator-UID/mqueue/NAME/NUMBER     one for each worker, locked by it while it lives

Receiving takes a message out of the kernel. So the kernel writes it straight into memory that
stays when the worker dies: first its priority, which is the receipt (no priority can be EMPTY),
then the body. Until the receipt is EMPTY again the message is there, whoever finds the file.

The length is known only after the call. Of a receiver that died before, it is found by what
differs from the fill: of the 64 bytes with which no UTF-8 text ends (C0 to FF begin a character,
or are none), drawn at random. So text is always exact; of other bytes an end may be cut, one in
64 for each last byte that is one of those. That a length was guessed is logged for what is no text.

    header   words, then the owner's name twice (one of them is valid), and where it was set aside
    body     as large as the queue's largest message, resident before each receive
    fill     what the body is like where nothing was written

Raises: OSError, QueueRefused for a place that is not ours. BlockingIOError: another has the file.
Limits: Linux; what is there is gone with the machine, as the queue itself is.
Long because: what a kill may leave between any two stores is read together.
Source: do_mq_timedreceive in ipc/mqueue.c of Linux for the order of its stores; fcntl(2), record locks.
See also: mqueue (who receives), mqueue_keep (who judges what the dead have left).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import mmap
import os
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workers.errors import QueueRefused
from workers.queues.directory import is_regular
from workers.system import System

if TYPE_CHECKING:
    from workers.posix_mq import Mq

log = logging.getLogger(__name__)

MAGIC = int.from_bytes(b"mqrecv1\0", "little")
EMPTY = 0xFFFFFFFF  # no priority; mq_receive writes 32 bits
HEADER, PAGE = 4096, 4096
SIZE_MAX = 1 << 26  # the kernel's HARD_MSGSIZEMAX is a quarter of it
STEP = 1000  # between the numbers that one worker may take
# Words of the header. RECEIPT is the one that the kernel writes, and the only one that says whether there is a message.
_MAGIC, _SIZE, _RECEIPT, _LENGTH, _STATE, _RECEIVED = range(6)
RECEIPT_AT, OWNERS_AT, ASIDE_AT, TEXT_SIZE = 8 * _RECEIPT, 512, 1024, 256
COUNT_BITS, COUNT_MAX = 16, 9999
JUDGED, SECOND = 1 << 32, 1 << 33  # of the state: its owner's death was counted; the second owner is the valid one
NEVER_LAST_IN_UTF8 = bytes(range(0xC0, 0x100))
_FILLING = bytes(0xC0 | byte & 0x3F for byte in range(256))
NOT_A_FILE = frozenset({errno.ELOOP, errno.EISDIR, errno.ENXIO})  # what opening a link, a directory, a socket meets

# What this process has locked, by process, device and inode: to close any other descriptor of it would unlock it.
_own: dict[tuple[int, int, int], Receive] = {}


class DamagedError(Exception):
    """A file that cannot be used, and stays for somebody to look at."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a look at one file shows; of a message in hand a moment later it is another."""

    path: str
    has_message: bool
    priority: int
    owner: str
    is_judged: bool
    attempts: int
    crashes: int
    received_ns: int
    aside: str  # see Receive.aside
    body: bytes

    @classmethod
    def of(cls, path: str, raw: bytes) -> Seen | None:
        """Read *raw*, the header or the whole file; None for what is no such file (yet)."""
        if len(raw) < HEADER or _word(raw, _MAGIC) != MAGIC:
            return None
        state, size = _word(raw, _STATE), _word(raw, _SIZE)
        receipt = int.from_bytes(raw[RECEIPT_AT : RECEIPT_AT + 4], sys.byteorder)
        return cls(
            path,
            receipt != EMPTY,
            receipt,
            _text(raw, OWNERS_AT + TEXT_SIZE * bool(state & SECOND)),
            bool(state & JUDGED),
            *_counts(state),
            _word(raw, _RECEIVED),
            _text(raw, ASIDE_AT),
            _body(raw, size, _word(raw, _LENGTH)),
        )


def _word(raw: bytes, number: int) -> int:
    return int.from_bytes(raw[8 * number : 8 * number + 8], sys.byteorder, signed=True)


def _text(raw: bytes | memoryview, start: int) -> str:
    return os.fsdecode(bytes(raw[start + 1 : start + 1 + raw[start]]))


def _counts(state: int) -> tuple[int, int]:
    return state & 0xFFFF, state >> COUNT_BITS & 0xFFFF


def _body(raw: bytes, size: int, length: int) -> bytes:
    """The body in *raw*; of unknown *length* it ends where the fill goes on to the end."""
    body = raw[HEADER : HEADER + size]
    if 0 <= length <= size:
        return body[:length]
    fill = raw[HEADER + _up(size) : HEADER + _up(size) + size]
    end = len(body)
    while end and body[end - 1 : end] == fill[end - 1 : end]:
        end -= 1
    return body[:end]


def _up(size: int) -> int:
    return -(-size // PAGE) * PAGE


class Receive:
    """One file, mapped, and this process's alone until it is left."""

    def __init__(self, path: str, fd: int, size: int, system: System, *, has_message: bool) -> None:
        """*fd* is locked by this process. Unless it *has_message*, the file is made afresh. Raises OSError."""
        self.path, self.size = path, size
        self._fd, self._system = fd, system
        whole = HEADER + 2 * _up(size)
        if not has_message:
            system.truncate(fd, 0)  # with its magic, so what is half made is no message
        found = system.fstat(fd)
        self._key = (system.getpid(), found.st_dev, found.st_ino)
        self._memory: mmap.mmap = system.map_file(fd, whole)
        self._fill_at = HEADER + _up(size)
        self._view = memoryview(self._memory)
        self._words = self._view[:OWNERS_AT].cast("q")
        self._receipt = self._view[RECEIPT_AT : RECEIPT_AT + 4].cast("I")
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self._receipt_address, self._body_address = address + RECEIPT_AT, address + HEADER
        self._is_resident = False
        with contextlib.suppress(OSError):  # over the limit: every page is touched instead, before each receive
            system.lock_memory(address, self._fill_at)
            self._is_resident = True
        if not has_message:
            try:
                self._prepare()
            except BaseException:
                self._unmap()
                raise
        _own[self._key] = self

    def _unmap(self) -> None:
        """Now, not when it is collected: a mapping has a descriptor of its own, whose end unlocks the file."""
        self._receipt.release()
        self._words.release()
        self._view.release()
        self._memory.close()

    def _prepare(self) -> None:
        words, memory, size = self._words, self._memory, self.size
        self._receipt[0] = EMPTY
        fill = self._system.random_bytes(size).translate(_FILLING)
        memory[HEADER : HEADER + size] = fill
        memory[self._fill_at : self._fill_at + size] = fill
        words[_SIZE], words[_LENGTH], words[_STATE], words[_RECEIVED] = size, -1, 0, 0
        # ORDER: what makes it such a file comes last: before, the receipt was zero, which is a priority.
        # See test_a_file_that_is_half_made_holds_no_message.
        words[_MAGIC] = MAGIC

    # ---- what is in it

    @property
    def has_message(self) -> bool:
        """Whether a message is here that was not settled."""
        return self._receipt[0] != EMPTY

    @property
    def priority(self) -> int:
        """Of the message."""
        return self._receipt[0]

    @property
    def counts(self) -> tuple[int, int]:
        """Attempts and crashes before this one."""
        return _counts(self._words[_STATE])

    @property
    def is_judged(self) -> bool:
        """Whether the death of its owner was counted."""
        return bool(self._words[_STATE] & JUDGED)

    @property
    def owner(self) -> str:
        """Who received it, or took it up."""
        return _text(self._view, OWNERS_AT + TEXT_SIZE * bool(self._words[_STATE] & SECOND))

    @property
    def received_ns(self) -> int:
        """Unix time; 0 when it was not written down any more."""
        return self._words[_RECEIVED]

    @property
    def aside(self) -> str:
        """What the message was to be called beside the queue, when a settle has begun; else ""."""
        return _text(self._view, ASIDE_AT)

    @aside.setter
    def aside(self, name: str) -> None:
        self._set_text(ASIDE_AT, name)

    def fix_length(self) -> None:
        """Write down how long the message seems to be, if its receiver was killed before it could."""
        if self._words[_LENGTH] >= 0:
            return
        body = self.body()
        try:
            body.decode("utf-8")
        except UnicodeDecodeError:
            log.warning(
                "%s: its receiver was killed before it knew the length of the message, which is no text: "
                "%d bytes are a guess, and its end may be cut", self.path, len(body),
            )  # fmt: skip
        self._words[_LENGTH] = len(body)

    def body(self) -> bytes:
        """The message, copied."""
        if self._words[_LENGTH] >= 0:
            return self._memory[HEADER : HEADER + self._words[_LENGTH]]
        return _body(self._memory[:], self.size, -1)

    def image(self) -> bytes:
        """The whole file, for a look at it in the process that has it locked."""
        return self._memory[:]

    # ---- stores

    def receive(self, queue: Mq) -> bool:
        """Take the next message of *queue* in; False when there is none. Nothing is here, and the file is owned."""
        if not self._is_resident:
            self._touch()
        try:
            length = self._system.mq_receive_into(queue, self._body_address, self.size, self._receipt_address)
        except BlockingIOError:
            return False
        self._words[_LENGTH] = length
        self._words[_RECEIVED] = self._system.wall_ns()
        return True

    def _touch(self) -> None:
        """Write to each page: a kill during a fault within the kernel's own writing would lose what it writes."""
        memory = self._memory
        for at in range(0, self._fill_at, PAGE):
            memory[at] = memory[at]

    def clear(self) -> None:
        """The message is settled."""
        words, memory = self._words, self._memory
        length = words[_LENGTH] if 0 <= words[_LENGTH] <= self.size else self.size
        # ORDER: the receipt before all else. What is left behind it is made good at the next opening; the other way
        # round a message whose body was gone would be handled. See test_a_kill_at_any_store_of_a_settle_loses_nothing.
        self._receipt[0] = EMPTY
        memory[HEADER : HEADER + length] = memory[self._fill_at : self._fill_at + length]
        words[_LENGTH], words[_RECEIVED] = -1, 0
        words[_STATE] &= SECOND
        memory[ASIDE_AT] = 0

    def own(self, owner: str, *, crashes: int = 0) -> None:
        """Say who has what is, or will be, here; *crashes* more are counted. Its death was not judged."""
        state = self._words[_STATE]
        # ORDER: the name where it is not read, then the state, which says which of the two names is meant, in one
        # store. See test_a_kill_while_it_is_taken_up_leaves_one_owner_and_its_counts.
        self._set_text(OWNERS_AT if state & SECOND else OWNERS_AT + TEXT_SIZE, owner)
        attempts, before = _counts(state)
        self._words[_STATE] = _state(attempts, before + crashes) | (~state & SECOND)

    def set_counts(self, attempts: int, crashes: int) -> None:
        """Say what is known of attempts and crashes before."""
        self._words[_STATE] = _state(attempts, crashes) | (self._words[_STATE] & (SECOND | JUDGED))

    def judge(self, attempts: int, crashes: int) -> None:
        """Set the counts, the death of its owner included: in one store, so it is counted once."""
        self._words[_STATE] = _state(attempts, crashes) | (self._words[_STATE] & SECOND) | JUDGED

    def _set_text(self, start: int, text: str) -> None:
        raw = os.fsencode(text)
        if len(raw) >= TEXT_SIZE:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), text)
        self._memory[start] = 0
        self._memory[start + 1 : start + 1 + len(raw)] = raw
        self._memory[start] = len(raw)

    # ---- leaving

    def leave(self, *, is_removed: bool = False) -> None:
        """Unlock the file; *is_removed*: take it away first. Raises OSError; then it is left all the same."""
        if self._fd < 0:
            return
        fd, self._fd = self._fd, -1
        try:
            if is_removed:
                # ORDER: while it is locked, so that who locks it after us sees that it is gone.
                # See test_a_file_that_is_removed_while_another_opens_it_is_made_again.
                with contextlib.suppress(FileNotFoundError):
                    self._system.unlink(self.path)
        finally:
            _own.pop(self._key, None)
            self._unmap()
            self._system.close(fd)


def _state(attempts: int, crashes: int) -> int:
    return min(attempts, COUNT_MAX) | min(crashes, COUNT_MAX) << COUNT_BITS


class ReceivePlace:
    """The directory of the files of one queue. *path* and the *depth* - 1 directories above it are made, ours alone."""

    def __init__(self, path: str, depth: int, system: System) -> None:
        self.path, self.system = path, system
        self._made = [path]
        self._named: set[str] = set()  # what was spoken of
        for _ in range(depth - 1):
            self._made.insert(0, os.path.dirname(self._made[0]))

    def make(self) -> None:
        """Make what is missing. Raises QueueRefused where somebody else has made it."""
        for path in self._made:
            while not self._is_made(path):
                pass

    def _is_made(self, path: str) -> bool:
        try:
            self.system.mkdir(path, 0o700)
        except FileExistsError:
            pass
        else:
            return True
        try:
            found = self.system.lstat(path)
        except FileNotFoundError:
            # RACE: the last one leaves, and takes it away. See test_whoever_acts_between_two_calls_finds_one_message.
            return False
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != self.system.geteuid() or found.st_mode & 0o77:
            raise QueueRefused(
                f"{path} is in the way: it must be a directory that is yours and nobody else's (mode 0700), "
                "for messages are received there; remove it, or have root do so where you may not"
            )
        return True

    def take(self, index: int, size: int, owner: str) -> Receive:
        """
        Lock the first file of worker *index* that nobody has, made for messages of *size* bytes or with what was left.

        What is empty is *owner*'s from now on; what holds a message is still its former owner's.
        """
        self.make()
        number = index
        while True:
            try:
                found = self._open(os.path.join(self.path, str(number)), size)
            except BlockingIOError:
                number += STEP  # another pool's, whose worker lives
                continue
            except DamagedError as error:
                self._name(os.path.join(self.path, str(number)), error)
                number += STEP
                continue
            except FileNotFoundError:
                self.make()  # the last one has removed the directory
                continue
            if found is not None:
                if not found.has_message:
                    found.own(owner)
                return found

    def open(self, path: str) -> Receive | None:
        """Lock the file *path* for its message; None where there is none (any more): then the file is removed."""
        try:
            found = self._open(path, 0)
        except FileNotFoundError:
            return None
        except DamagedError as error:
            self._name(path, error)
            return None
        if found is None or found.has_message:
            return found
        found.leave(is_removed=True)
        return None

    def _name(self, path: str, error: DamagedError) -> None:
        """Log what is in the way at *path*, once."""
        if path not in self._named:
            self._named.add(path)
            log.error("%s", error)

    def _opened(self, path: str, flags: int) -> tuple[int, os.stat_result]:
        """A descriptor of the regular file *path*, and its stat. Raises DamagedError for what is something else."""
        try:
            fd = self.system.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
        except OSError as error:
            if error.errno in NOT_A_FILE:
                raise DamagedError(f"{path} is in the way: it is no file of ours; remove it") from error
            raise
        try:
            found = self.system.fstat(fd)
            if not is_regular(found) or found.st_uid != self.system.geteuid():
                raise DamagedError(f"{path} is in the way: it is no file of ours; remove it")
        except BaseException:
            self.system.close(fd)
            raise
        return fd, found

    def _open(self, path: str, size: int) -> Receive | None:
        """Lock and map *path*, made where it is missing if it has a *size*; None when it was removed meanwhile."""
        if self._own_at(path) is not None:
            raise BlockingIOError(errno.EAGAIN, "this process has it", path)
        fd, found = self._opened(path, os.O_RDWR | os.O_CREAT if size else os.O_RDWR)
        try:
            self.system.lock_file(fd)
            # RACE: whoever had it locked has removed it since it was opened: then this is nobody's way to it any more.
            # See test_a_file_that_is_removed_while_another_opens_it_is_made_again.
            if not self._is_at(path, found):
                self.system.close(fd)
                return None
            header = self.system.pread(fd, HEADER, 0)
            seen, own_size = Seen.of(path, header), _word(header.ljust(HEADER), _SIZE)
            has_message = seen is not None and seen.has_message
            if has_message and not (0 < own_size <= SIZE_MAX and found.st_size == HEADER + 2 * _up(own_size)):
                raise DamagedError(f"{path} is damaged: there may be a message in it; move it away and look")
            receive = Receive(path, fd, own_size if has_message else size or 1, self.system, has_message=has_message)
        except BaseException:
            self.system.close(fd)
            raise
        if has_message:
            receive.fix_length()
        return receive

    def _is_at(self, path: str, found: os.stat_result) -> bool:
        try:
            there = self.system.lstat(path)
        except FileNotFoundError:
            return False
        return (there.st_dev, there.st_ino) == (found.st_dev, found.st_ino)

    def _own_at(self, path: str) -> Receive | None:
        try:
            found = self.system.lstat(path)
        except FileNotFoundError:
            return None
        return _own.get((self.system.getpid(), found.st_dev, found.st_ino))

    # ---- looking

    def seen(self, *, is_whole: bool = False) -> Iterator[Seen]:
        """Each file as it is now; its body only if *is_whole*. Locks nothing."""
        try:
            names = self.system.listdir(self.path)
        except FileNotFoundError:
            return
        for name in sorted(names, key=lambda name: (len(name), name)):
            if name.isdecimal():
                path = os.path.join(self.path, name)
                raw = self._raw(path, is_whole=is_whole)
                if raw is not None and (one := Seen.of(path, raw)) is not None:
                    yield one

    def look(self, path: str) -> Seen | None:
        """The file *path*, its body left out; None where there is none."""
        raw = self._raw(path, is_whole=False)
        return None if raw is None else Seen.of(path, raw)

    def _raw(self, path: str, *, is_whole: bool) -> bytes | None:
        # To open and close what is locked by this very process would unlock it.
        # See test_a_look_at_ones_own_file_leaves_it_locked.
        own = self._own_at(path)
        if own is not None:
            return own.image()
        try:
            fd, found = self._opened(path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        except DamagedError as error:
            self._name(path, error)
            return None
        try:
            return self.system.pread(fd, found.st_size if is_whole else HEADER, 0)
        finally:
            self.system.close(fd)

    def remove(self) -> None:
        """Take the directory away if it is empty."""
        with contextlib.suppress(OSError):
            self.system.rmdir(self.path)
