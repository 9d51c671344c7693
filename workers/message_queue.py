"""
message_queue - POSIX message queues with timeouts, priorities and errors that say what to do

    from workers.message_queue import MessageQueue, TimedOutError

    with MessageQueue("/jobs", max_messages=10, max_message_size=8096) as queue:
        queue.put("hello", timeout=1.0)          # bytes, or text, which becomes UTF-8
        queue.get()                              # b"hello"; waits for one

A drop-in for the MessageQueue of baseplate: change the import. The messages are in the
kernel and survive the processes, not the machine. python -m workers.message_queue --help
is the tool beside it.

Raises: MessageQueueError and nothing else for what the kernel refuses; what is wrong with an
argument is also a ValueError, an error of the kernel also an OSError with its errno.
Limits: Linux. get removes the message: a consumer that dies with it in hand has lost it
(orchestrator run mqueue:/NAME keeps it until it is handled). Nobody can look at a message
without taking it. A new queue is made with exactly *mode*; one that is there keeps what it has.
Source: the published texts of baseplate.message_queue; mq_overview(7).
See also: posix_mq (the calls), message_queue_tool (the commands), tests/unit/test_message_queue_faults.py.
"""

from __future__ import annotations

import errno
import sys
import warnings
from collections.abc import Callable
from typing import NoReturn, Protocol, Self, TypeVar

from workers.errors import QueueError
from workers.posix_mq import PRIORITY_MAX, Access, Attributes, Mq, limits
from workers.queues.names import shown
from workers.system import SYSTEM, System

# Whoever was woken for a message and died before it took it leaves one that no other waiter was told of.
LOOK_S = 1.0
# What no sysctl raises; HARD_MSGMAX and HARD_MSGSIZEMAX of Linux.
MESSAGES_MAX, SIZE_MAX = 65_536, 16 * 1024 * 1024
# What the kernel counts for each message of a queue beside its bytes, on a machine of 64 bits.
OVERHEAD = 96

T = TypeVar("T")


class MessageQueueError(QueueError):
    """Whatever this module raises on purpose."""


class TimedOutError(MessageQueueError):
    """There was no message, or no room, in time."""

    def __init__(self) -> None:
        super().__init__("Timed out waiting for the message queue.")


class InvalidParametersError(MessageQueueError, ValueError):
    """A name, a limit, a timeout, a priority or a message that cannot be."""


class MessageQueueOSError(MessageQueueError, OSError):
    """The kernel refused a call; errno says why, filename which queue, and the text what to do."""

    def __str__(self) -> str:
        return f"{self.strerror} [errno {self.errno}]"


class MessageQueueWarning(UserWarning):
    """The queue was there before, with other limits than were asked for."""


class Received(bytes):
    """
    A message: its bytes, with the *priority* it came with.

    str() of it is its text, so that "%s" prints what was put; repr() and all else are those of bytes.
    """

    priority: int = 0

    @classmethod
    def of(cls, data: bytes, priority: int) -> Received:
        """A message as it was received."""
        message = cls(data)
        message.priority = priority
        return message

    def __str__(self) -> str:
        return self.decode("utf-8", "backslashreplace")


class Stop(Protocol):
    """Why a wait may end early: looked at before each try, and when one of its descriptors is readable."""

    fds: tuple[int, ...]

    def check(self) -> None:
        """Raise, to end the wait with what is raised."""


class MessageQueue:
    """
    A queue of the kernel, made where it is missing.

    Args:
        name: a slash and 1 to 255 bytes without one.
        max_messages: of a new queue, at most the sysctl fs.mqueue.msg_max.
        max_message_size: of a new queue, in bytes, at most fs.mqueue.msgsize_max.
        mode: of a new queue, exactly: the umask does not take from it.
        access: "r" or "w" where another's queue gives no more.

    *max_messages* and *max_message_size*, as attributes, are those of the queue; where a queue is there
    already with others than were asked for, a MessageQueueWarning says so. *queue* is the open descriptor.
    """

    def __init__(
        self,
        name: str,
        max_messages: int,
        max_message_size: int,
        *,
        mode: int = 0o600,
        access: Access = "rw",
        system: System = SYSTEM,
    ) -> None:
        self._system = system
        self.name = name
        try:
            self.queue: Mq = system.mq_open(
                name, create=True, max_messages=max_messages, max_size=max_message_size, mode=mode, access=access
            )
        except ValueError as error:
            raise InvalidParametersError(str(error)) from error
        except OSError as error:
            _raise_open(error, name, max_messages, max_message_size)
        try:
            found = self.attributes()
            self.max_messages, self.max_message_size = found.max_messages, found.max_size
            if (found.max_messages, found.max_size) != (max_messages, max_message_size):
                warnings.warn(
                    f"the message queue {shown(name)} was there before, with max_messages={found.max_messages} and "
                    f"max_message_size={found.max_size}; it keeps these",
                    MessageQueueWarning,
                    stacklevel=2,
                )
        except BaseException:  # a warning may be one
            self.queue.close()
            raise

    def get(self, timeout: float | None = None, *, stop: Stop | None = None) -> Received:
        """
        Take the first message of the highest priority; wait for one at most *timeout* seconds (None: for ever).

        Raises TimedOutError, at once with a timeout of 0. Afterwards the message is nowhere but here.
        """
        return self._within(timeout, stop, lambda: Received.of(*self._system.mq_receive(self.queue)))

    def put(
        self, message: bytes | str, timeout: float | None = None, *, priority: int = 0, stop: Stop | None = None
    ) -> None:
        """
        Put *message* behind those of its *priority*; wait for room at most *timeout* seconds (None: for ever).

        The highest priority, at most 32,767, is served first. Raises TimedOutError, at once with a timeout of 0.
        """
        data = message.encode() if isinstance(message, str) else bytes(message)
        if len(data) > self.max_message_size:
            raise InvalidParametersError(
                f"a message of {len(data)} bytes: {shown(self.name)} takes {self.max_message_size} at most"
            )
        if not 0 <= priority <= PRIORITY_MAX:
            raise InvalidParametersError(f"a priority of {priority}: 0 to {PRIORITY_MAX} are possible")
        self._within(timeout, stop, lambda: self._system.mq_send(self.queue, data, priority), is_writer=True)

    def attributes(self) -> Attributes:
        """Ask the kernel for the limits and how many messages wait."""
        try:
            return self._system.mq_attributes(self.queue)
        except OSError as error:
            raise _os_error("use", self.name, error) from error

    @property
    def waiting(self) -> int:
        """How many messages wait."""
        return self.attributes().waiting

    def purge(self) -> int:
        """Remove what waits now; how many that were."""
        count = 0
        for _ in range(self.waiting):
            try:
                self.get(timeout=0)
            except TimedOutError:  # another was faster
                break
            count += 1
        return count

    def unlink(self) -> None:
        """Remove the name. The queue ends when the last who has it open closes it."""
        try:
            self._system.mq_unlink(self.name)
        except OSError as error:
            raise _os_error("remove", self.name, error) from error

    def close(self) -> None:
        """Close the descriptor; the queue stays. Twice does no harm."""
        self.queue.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _within(
        self, timeout: float | None, stop: Stop | None, attempt: Callable[[], T], *, is_writer: bool = False
    ) -> T:
        """Try until it succeeds, at least once. Time is that of a clock that nobody sets."""
        if timeout is not None and not timeout >= 0:  # this catches a NaN, too
            raise InvalidParametersError(f"a timeout of {timeout}: it must be 0 or more, or None to wait for ever")
        started_ns = self._system.boottime_ns()
        while True:
            if stop is not None:
                stop.check()
            try:
                return attempt()
            except BlockingIOError:
                left_s = LOOK_S
                if timeout is not None:
                    left_s = timeout - (self._system.boottime_ns() - started_ns) / 1e9
                    if left_s <= 0:
                        raise TimedOutError from None
            except OSError as error:
                raise _os_error("use", self.name, error) from error
            try:
                self._system.mq_wait(self.queue, min(left_s, LOOK_S), stop.fds if stop else (), is_writer=is_writer)
            except OSError as error:
                raise _os_error("wait for", self.name, error) from error


# ---- what is said about errors


def _os_error(doing: str, name: str, error: OSError, hint: str = "") -> MessageQueueOSError:
    number = error.errno or 0
    return MessageQueueOSError(number, f"cannot {doing} the message queue {shown(name)}: {error.strerror}{hint}", name)


def _raise_open(error: OSError, name: str, max_messages: int, max_size: int) -> NoReturn:
    """Say why the kernel did not open or make the queue, and what can be done."""
    if error.errno == errno.EINVAL:
        raise InvalidParametersError(f"cannot make {shown(name)}: {_refused(max_messages, max_size)}") from error
    hint = ""
    allowed = limits()
    if error.errno == errno.EMFILE:
        # The kernel has one number for both.
        needed = max_messages * (max_size + OVERHEAD)
        bytes_max = "no limit" if allowed.user_bytes_max is None else f"{allowed.user_bytes_max}"
        hint = (
            f". Either this process has too many descriptors (ulimit -n), or all message queues of this user would take"
            f" more bytes than ulimit -q allows ({bytes_max}; this one takes about {needed}):"
            " make it smaller, remove others, or raise ulimit -q"
        )
    elif error.errno == errno.ENOSPC:
        hint = f". There are fs.mqueue.queues_max={allowed.queues_max} queues: remove some, or raise it as root: " + (
            f"sysctl -w fs.mqueue.queues_max={2 * (allowed.queues_max or 256)}"
        )
    elif error.errno == errno.EACCES:
        hint = ". It belongs to another user, and its mode does not let this one in"
    raise _os_error("open", name, error, hint) from error


def _refused(max_messages: int, max_size: int) -> str:
    """Which of the limits the kernel did not take, why, and how to raise what forbids it."""
    allowed = limits()
    said = []
    for word, asked, sysctl, may, hard_max in (
        ("max_messages", max_messages, "msg_max", allowed.msg_max, MESSAGES_MAX),
        ("max_message_size", max_size, "msgsize_max", allowed.msgsize_max, SIZE_MAX),
    ):
        if asked < 1:
            said.append(f"{word}={asked} must be at least 1")
        elif asked > hard_max:
            said.append(f"{word}={asked} is more than any kernel takes ({hard_max})")
        elif may is not None and asked > may:
            raised = f"sysctl -w fs.mqueue.{sysctl}={asked}"
            said.append(f"{word}={asked} is more than fs.mqueue.{sysctl}, which is {may}; raise it as root: {raised}")
    return "; ".join(said) or f"the kernel refuses max_messages={max_messages} with max_message_size={max_size}"


if __name__ == "__main__":
    # The tool imports this module by its name: its classes are then the ones that a program catches.
    from workers.message_queue_tool import main

    sys.exit(main())
