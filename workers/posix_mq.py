"""
posix_mq - POSIX message queues of the kernel, by ctypes: the bare calls

A queue lives in the kernel under a name like /jobs until it is unlinked or the machine
ends. A descriptor of one is a file descriptor here, so poll and epoll wait for it. It is
always non-blocking and closed on exec; a full or an empty queue is a BlockingIOError.

    queue = Mq.open("/jobs", create=True, max_messages=10, max_size=8192)
    queue.send(b"hello", priority=3)
    queue.receive()                              # (b"hello", 3)

Long because: the calls and what stands for them in C belong together.
Raises: OSError with the queue's name as its filename, ValueError for what cannot be a name.
Limits: Linux. Elsewhere every call raises OSError ENOSYS. Receiving removes the message:
who dies with it in hand has lost it, unless receive_into was given memory that outlives it.
Source: mq_overview(7), mq_open(3), proc_sys_fs(5); ipc/mqueue.c of Linux for what they leave out.
See also: message_queue (timeouts and hints), system (where tests make these calls fail).
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import resource
import select
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

Access = Literal["r", "w", "rw"]

ACCESS = {"r": os.O_RDONLY, "w": os.O_WRONLY, "rw": os.O_RDWR}
NAME_BYTES_MAX = 255  # after the slash
PRIORITY_MAX = 32767  # MQ_PRIO_MAX - 1
LIMIT_MAX = 2**31 - 1  # far beyond what any kernel takes
LIMITS = "/proc/sys/fs/mqueue"


@dataclass(frozen=True, slots=True)
class Attributes:
    """What the kernel says of one queue; messages, bytes, messages."""

    max_messages: int
    max_size: int
    waiting: int


@dataclass(frozen=True, slots=True)
class Limits:
    """What the kernel allows; None where it does not say. The sysctls of fs.mqueue, and ulimit -q in bytes."""

    msg_max: int | None
    msgsize_max: int | None
    msg_default: int | None
    msgsize_default: int | None
    queues_max: int | None
    user_bytes_max: int | None


class _Attr(ctypes.Structure):
    """struct mq_attr."""

    _fields_ = [
        ("flags", ctypes.c_long),
        ("max_messages", ctypes.c_long),
        ("max_size", ctypes.c_long),
        ("waiting", ctypes.c_long),
        ("_reserved", ctypes.c_long * 4),
    ]


class _Timespec(ctypes.Structure):
    """struct timespec."""

    _fields_ = [("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long)]


class Mq:
    """One open descriptor of one queue. Threads may share it; a fork inherits it."""

    __slots__ = ("_buffers", "fd", "is_new", "max_size", "name")

    def __init__(self, fd: int, name: str, *, is_new: bool, max_size: int) -> None:
        self.fd = fd
        self.name = name
        self.is_new = is_new
        self.max_size = max_size
        self._buffers: list[ctypes.Array[ctypes.c_char]] = []

    @classmethod
    def open(
        cls,
        name: str,
        *,
        create: bool = False,
        exclusive: bool = False,
        max_messages: int | None = None,
        max_size: int | None = None,
        mode: int = 0o600,
        access: Access = "rw",
    ) -> Mq:
        """
        Open the queue *name*; with *create* make it where it is missing, with *exclusive* only then.

        Args:
            max_messages: of a new queue; None is the kernel's default, as is
            max_size: None, in bytes. A queue that is there keeps its own.
            mode: of a new queue, exactly, whatever the umask; for a moment it may have fewer bits.

        Raises OSError: FileNotFoundError, FileExistsError, PermissionError, EINVAL for limits that
        the kernel refuses, ENOSPC (too many queues), EMFILE (too many descriptors, or bytes of ulimit -q).
        """
        check_name(name)
        attr = _limits_of_new(max_messages, max_size)
        fd, is_new = _open(name, ACCESS[access], create=create, exclusive=exclusive, mode=mode, attr=attr)
        try:
            if is_new:
                os.fchmod(fd, mode)
            return cls(fd, name, is_new=is_new, max_size=_attributes(fd, name).max_size)
        except OSError as error:
            os.close(fd)
            if is_new:  # a queue that is not as it was asked for is not left behind
                unlink(name)
            raise OSError(error.errno, error.strerror, name) from None

    def attributes(self) -> Attributes:
        """Ask for the queue's limits and how many messages wait in it. One system call."""
        return _attributes(self.fd, self.name)

    def send(self, data: bytes, priority: int = 0) -> None:
        """
        Put a message at the end of those of its *priority*, 0 to 32767, the highest served first.

        Raises BlockingIOError when the queue is full, OSError EMSGSIZE when *data* is too long, EINVAL. Never blocks.
        """
        if not 0 <= priority <= PRIORITY_MAX:  # ctypes would cut off the upper bits
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), self.name)
        _call(_library().mq_send, self.name, self.fd, data, len(data), priority)

    def send_within(self, data: bytes, priority: int, until_s: float) -> None:
        """
        As send, but wait in the kernel's own line for room, until *until_s* (unix time). Three system calls.

        Who polls for room gets none while others wait in that line, for it passes each free place on.
        Raises TimeoutError, and what send and open raise: it goes to the queue that has the name now.
        """
        fd = _call(_library().mq_open, self.name, os.fsencode(self.name), os.O_WRONLY | os.O_CLOEXEC, 0, None)
        try:
            until = _Timespec(int(until_s), int(until_s % 1 * 1e9))
            _call(_library().mq_timedsend, self.name, fd, data, len(data), priority, ctypes.addressof(until))
        finally:
            os.close(fd)

    def receive(self) -> tuple[bytes, int]:
        """Take the first message and its priority. Raises BlockingIOError when there is none. Never blocks."""
        # Threads take turns with buffers, never with one of them: the call runs without the interpreter's lock.
        try:
            buffer = self._buffers.pop()
        except IndexError:
            buffer = ctypes.create_string_buffer(self.max_size)
        try:
            priority = ctypes.c_uint()
            size = self.receive_into(ctypes.addressof(buffer), self.max_size, ctypes.addressof(priority))
            return ctypes.string_at(buffer, size), priority.value
        finally:
            self._buffers.append(buffer)

    def receive_into(self, body_address: int, size: int, priority_address: int) -> int:
        """
        Take the first message straight into memory of the caller; its length.

        Args:
            body_address: of *size* writable bytes; *size* is at least max_size of the queue.
            priority_address: of an unsigned int, or 0. Linux writes it before the body.

        The kernel has taken the message out when it begins to write. A SIGKILL does not stop it there, but
        memory that it cannot write does (EFAULT), and the message is lost: have the pages resident.
        Raises BlockingIOError when there is none, OSError EMSGSIZE when *size* is too small. Never blocks.
        """
        return _call(_library().mq_receive, self.name, self.fd, body_address, size, priority_address)

    def wait_readable(self, timeout_s: float | None, also: Iterable[int] = ()) -> list[int]:
        """
        Wait until a message may be there or one of the descriptors *also* is readable; which are, none when time is up.

        A message wakes one of the waiting processes, not all of them. So one that dies between waking and
        receiving leaves a message that nobody was told of: look again now and then. *timeout_s* None: for ever.
        """
        # RACE: readers only. All who wait for a queue stand in one line of the kernel, which wakes all others and
        # the first exclusive one without saying what for: were writers exclusive too, a receive could wake a
        # reader in a writer's stead. See test_B9_readers_and_writers_never_wait_for_each_other.
        return self._wait(select.EPOLLIN | select.EPOLLEXCLUSIVE, timeout_s, also)

    def wait_writable(self, timeout_s: float | None, also: Iterable[int] = ()) -> list[int]:
        """Wait until there may be room. As wait_readable, but all that wait are woken."""
        return self._wait(select.EPOLLOUT, timeout_s, also)

    def close(self) -> None:
        """Close the descriptor; the queue stays. Once is enough, twice does no harm."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def _wait(self, events: int, timeout_s: float | None, also: Iterable[int]) -> list[int]:
        with select.epoll() as poller:
            poller.register(self.fd, events)
            for fd in also:
                poller.register(fd, select.EPOLLIN)
            return [fd for fd, _ in poller.poll(timeout_s)]


def unlink(name: str) -> None:
    """Remove the name; who has the queue open may go on with it. Raises OSError."""
    check_name(name)
    _call(_library().mq_unlink, name, os.fsencode(name))


def limits() -> Limits:
    """Read what the kernel allows this user's processes. Never raises."""
    return Limits(
        msg_max=_sysctl("msg_max"),
        msgsize_max=_sysctl("msgsize_max"),
        msg_default=_sysctl("msg_default"),
        msgsize_default=_sysctl("msgsize_default"),
        queues_max=_sysctl("queues_max"),
        user_bytes_max=_user_bytes_max(),
    )


def check_name(name: str) -> None:
    """Raise ValueError, saying what is wrong, unless *name* can be that of a queue."""
    raw = os.fsencode(name)
    what = None
    if not raw.startswith(b"/"):
        what = "it must begin with a slash"
    elif b"/" in raw[1:]:
        what = "it may have no slash but the first"
    elif raw in (b"/", b"/.", b"/.."):
        what = "there must be a name after the slash"
    elif b"\0" in raw:
        what = "it may have no null byte"
    elif len(raw) > NAME_BYTES_MAX + 1:
        what = f"it may have {NAME_BYTES_MAX} bytes after the slash, not {len(raw) - 1}"
    if what:
        raise ValueError(f"{name!r} is no name of a message queue: {what}")


# ---- the library


@functools.cache
def _library() -> ctypes.CDLL:
    """The C library that has the calls: libc since glibc 2.34 and in musl, librt before. Raises OSError ENOSYS."""
    for path in (None, "librt.so.1"):
        try:
            library = ctypes.CDLL(path, use_errno=True)
            library.mq_open.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p]
            library.mq_send.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint]
            library.mq_timedsend.argtypes = [*library.mq_send.argtypes, ctypes.c_void_p]
            library.mq_receive.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
            library.mq_receive.restype = ctypes.c_ssize_t
            library.mq_getattr.argtypes = [ctypes.c_int, ctypes.c_void_p]
            library.mq_unlink.argtypes = [ctypes.c_char_p]
        except (OSError, AttributeError):
            continue
        return library
    raise OSError(errno.ENOSYS, "there are no POSIX message queues here (no mq_open in the C library)")


def _call(function: Callable[..., int], name: str, *arguments: int | bytes | None) -> int:
    """Call *function*, again when a signal interrupted it. Raises OSError with *name* as its filename."""
    while (result := function(*arguments)) < 0:
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number), name)
    return result


def _open(name: str, flags: int, *, create: bool, exclusive: bool, mode: int, attr: _Attr | None) -> tuple[int, bool]:
    """Open or make; the descriptor, and whether the queue is new."""
    mq_open, raw = _library().mq_open, os.fsencode(name)
    flags |= os.O_NONBLOCK | os.O_CLOEXEC
    while True:
        if create:
            pointer = None if attr is None else ctypes.addressof(attr)
            try:
                return _call(mq_open, name, raw, flags | os.O_CREAT | os.O_EXCL, mode, pointer), True
            except FileExistsError:
                if exclusive:
                    raise
        try:
            return _call(mq_open, name, raw, flags, 0, None), False
        except FileNotFoundError:
            # RACE: it was there, and another has removed it. See test_open_makes_a_queue_that_went_away_meanwhile.
            if not create:
                raise


def _attributes(fd: int, name: str) -> Attributes:
    attr = _Attr()
    _call(_library().mq_getattr, name, fd, ctypes.addressof(attr))
    return Attributes(attr.max_messages, attr.max_size, attr.waiting)


def _limits_of_new(max_messages: int | None, max_size: int | None) -> _Attr | None:
    """The kernel takes both or none: the one that is missing is what it would have chosen."""
    if max_messages is None and max_size is None:
        return None
    if max_messages is None:
        max_messages = min(_sysctl("msg_default") or 10, _sysctl("msg_max") or 10)
    if max_size is None:
        max_size = min(_sysctl("msgsize_default") or 8192, _sysctl("msgsize_max") or 8192)
    # ctypes would cut off the upper bits; the kernel says the rest.
    return _Attr(max_messages=min(max_messages, LIMIT_MAX), max_size=min(max_size, LIMIT_MAX))


def _sysctl(name: str) -> int | None:
    try:
        with open(f"{LIMITS}/{name}", encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return None


def _user_bytes_max() -> int | None:
    """RLIMIT_MSGQUEUE, the soft one; None where there is none."""
    if not hasattr(resource, "RLIMIT_MSGQUEUE"):  # only Linux has it
        return None
    soft = resource.getrlimit(resource.RLIMIT_MSGQUEUE)[0]
    return None if soft == resource.RLIM_INFINITY else soft
