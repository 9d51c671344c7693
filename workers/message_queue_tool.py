"""
message_queue_tool - create, read and write a POSIX message queue from a shell

    python -m workers.message_queue --read /jobs
    echo hello | python -m workers.message_queue --write /jobs

Each of them makes the queue where it is missing. A message is a line, of any bytes, and of
none but its own: \\r stays. With --null it ends in a null byte. On a terminal what could drive it is escaped.

--read receives one only when the output has room, and writes it before it takes the next:
a kill while it waits, for a message or for its reader, loses none (into a pipe: none that fits
a page, which is what a pipe says it has room for). A message that the output did not take goes
back into the queue, behind those of its priority; if it cannot, it is printed on stderr. INT,
TERM and HUP end it after the message in hand. Whether its reader has left is seen in a second.

Exit codes: 0 fine, 1 failed (for any of the lines), 2 usage, 128 and the signal (130 INT, 143 TERM);
but --read ends with 0 at a TERM, and when nothing comes for --timeout unless --count is given.
Long because: the few things that it does are read side by side.
See also: message_queue (the library), orchestrator mqueue (the same commands and more).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count as counted
from itertools import islice
from typing import Self

from workers.message_queue import (
    LOOK_S,
    MessageQueue,
    MessageQueueError,
    MessageQueueOSError,
    MessageQueueWarning,
    Received,
    TimedOutError,
)
from workers.posix_mq import PRIORITY_MAX, Access, limits
from workers.queues.names import shown, shown_lines
from workers.signals import Signals as Noted

MESSAGES, SIZE = 10, 8096  # as the tool of baseplate has it
STDIN, STDOUT = 0, 1
READ_SIZE = 1 << 16
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for; None of a limit is the default, of count and timeout no bound."""

    name: str
    max_messages: int | None = None
    max_message_size: int | None = None
    mode: int = 0o600
    count: int | None = None
    priority: int = 0
    timeout: float | None = None
    separator: bytes = b"\n"
    program: str = "message_queue"

    def say(self, text: str) -> None:
        """Print *text* as one line on stderr, if somebody reads it."""
        with contextlib.suppress(OSError):
            sys.stderr.write(f"{self.program}: {text}\n")
            sys.stderr.flush()


class Leave(Exception):
    """A signal asked to leave."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Signals:
    """INT, TERM and HUP while it is entered: they end a wait, and nothing else. Those that are ignored stay so."""

    def __init__(self) -> None:
        self._noted = Noted(number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN)
        self._asked: int | None = None
        self.fds: tuple[int, ...] = ()

    def __enter__(self) -> Self:
        self.fds = (self._noted.__enter__().fd,)
        return self

    def __exit__(self, *_: object) -> None:
        self._noted.__exit__(None, None, None)

    def check(self) -> None:
        """Raise Leave when a signal came."""
        for number in self._noted.taken():
            self._asked = number
        if self._asked is not None:
            raise Leave(self._asked)

    def wait(self, fd: int, events: int) -> int:
        """Wait until *fd* has one of *events*; those that it has. Raises Leave when a signal came or comes."""
        poller = select.poll()
        poller.register(fd, events)
        poller.register(self.fds[0], select.POLLIN)
        while True:
            self.check()
            for ready, found in poller.poll():
                if ready == fd:
                    return found


class Output:
    """Standard output, and the signals: why not to receive just now."""

    def __init__(self, signals: Signals) -> None:
        self._signals = signals
        self.fds = signals.fds
        self._is_terminal = os.isatty(STDOUT)

    def fit(self, message: bytes) -> bytes:
        """*message* as it is, or so that it cannot drive a terminal."""
        return shown_lines(message) if self._is_terminal else message

    def check(self) -> None:
        """Wait until there is room. Raises Leave, or MessageQueueError when nobody will read."""
        if self._signals.wait(STDOUT, select.POLLOUT) & (select.POLLERR | select.POLLNVAL):
            raise MessageQueueError("nobody reads standard output any more")

    def write(self, data: bytes) -> None:
        """Write all of *data*. Raises OSError."""
        while data:
            try:
                data = data[os.write(STDOUT, data) :]
            except BlockingIOError:  # another had made the pipe non-blocking
                select.select([], [STDOUT], [])


def create(options: Options) -> int:
    """Make the queue where it is missing."""
    _opened(options, "rw").close()
    return 0


def read(options: Options) -> int:
    """Receive and print."""
    with Signals() as signals, _opened_to_read(options) as queue:
        output = Output(signals)
        for _ in islice(counted(), options.count):
            try:
                message = queue.get(options.timeout, stop=output)
            except TimedOutError:
                if options.count is None:
                    break
                raise
            except Leave as leave:
                if leave.number == signal.SIGTERM:
                    break
                raise
            try:
                # ORDER: written, then the next is received: a kill would lose what lies in a buffer.
                # See test_B1_what_was_received_is_written_when_the_reader_is_killed.
                output.write(output.fit(message) + options.separator)
            except OSError as error:
                raise MessageQueueError(_put_back(queue, message, error)) from error
    return 0


def write(options: Options) -> int:
    """Send each line of standard input."""
    has_failed = False
    with Signals() as signals, _opened(options, "w") as queue:
        sender = _Sender(queue, options, signals)
        lines = _lines(options.separator, queue.max_message_size, signals)
        for number, (line, size) in enumerate(islice(lines, options.count), 1):
            if size > queue.max_message_size:
                options.say(
                    f"line {number} is not sent: it has {size} bytes, {shown(options.name)} takes"
                    f" {queue.max_message_size} at most"
                )
                has_failed = True
                continue
            try:
                sender.send(line)
            except (TimedOutError, Leave):
                options.say(f"line {number} and what follows are not sent")
                raise
    return 1 if has_failed else 0


class _Sender:
    """Sends; says once when there is no room, for by default a queue is full with ten messages."""

    def __init__(self, queue: MessageQueue, options: Options, signals: Signals) -> None:
        self._queue, self._options, self._signals = queue, options, signals
        self._is_said = False

    def send(self, line: bytes) -> None:
        """Send, within the timeout. Raises TimedOutError, Leave."""
        timeout = self._options.timeout
        patience_s = LOOK_S if timeout is None else min(LOOK_S, timeout)
        try:
            self._put(line, timeout if self._is_said else patience_s)
        except TimedOutError:
            if self._is_said:
                raise
            self._is_said = True
            where, room = shown(self._options.name), self._queue.max_messages
            self._options.say(f"{where} is full (it has room for {room}); waiting for a reader")
            self._put(line, None if timeout is None else timeout - patience_s)

    def _put(self, line: bytes, timeout: float | None) -> None:
        self._queue.put(line, timeout, priority=self._options.priority, stop=self._signals)


MODES: dict[str, Callable[[Options], int]] = {"create": create, "read": read, "write": write}


def run(mode: str, options: Options) -> int:
    """Do it; the exit code. Raises MessageQueueError."""
    try:
        return MODES[mode](options)
    except Leave as leave:
        return 128 + leave.number


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    mode, options = _parsed(sys.argv[1:] if argv is None else argv)
    for fd in (STDIN, STDOUT, 2):
        try:
            os.fstat(fd)
        except OSError:
            # The queue would become descriptor 0 or 1.
            options.say("standard input, output and error must be open")
            return 1
    try:
        return run(mode, options)
    except (MessageQueueError, OSError) as error:
        options.say(str(error))
        return 1


# ---- the queue


def _opened(options: Options, access: Access) -> MessageQueue:
    """The queue; when limits were asked for and it has others, this is said."""
    allowed = limits()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", MessageQueueWarning)
        queue = MessageQueue(
            options.name,
            min(MESSAGES, allowed.msg_max or MESSAGES) if options.max_messages is None else options.max_messages,
            min(SIZE, allowed.msgsize_max or SIZE) if options.max_message_size is None else options.max_message_size,
            mode=options.mode,
            access=access,
        )
    asked = (options.max_messages or queue.max_messages, options.max_message_size or queue.max_message_size)
    if asked != (queue.max_messages, queue.max_message_size):
        for warning in caught:
            options.say(str(warning.message))
    return queue


def _opened_to_read(options: Options) -> MessageQueue:
    """The queue, so that a message can go back, where its mode allows that."""
    try:
        return _opened(options, "rw")
    except MessageQueueOSError as error:
        if not isinstance(error.__cause__, PermissionError):
            raise
        return _opened(options, "r")


def _put_back(queue: MessageQueue, message: Received, error: OSError) -> str:
    """Give back what could not be written; what there is to say."""
    said = f"cannot write to standard output: {error.strerror}"
    try:
        queue.put(message, timeout=0, priority=message.priority)
    except MessageQueueError as refused:
        return f"{said}; the message in hand cannot be put back either ({refused}), so here it is: {message!r}"
    return f"{said}; the message in hand was put back, behind those of its priority"


def _lines(separator: bytes, size_max: int, signals: Signals) -> Iterator[tuple[bytes, int]]:
    """Each line of standard input and its size; of one longer than *size_max* only the beginning is kept."""
    held, size = bytearray(), 0
    while signals.wait(STDIN, select.POLLIN) and (chunk := os.read(STDIN, READ_SIZE)):
        *whole, rest = chunk.split(separator)
        for part in whole:
            held += part[: size_max - len(held)]
            yield bytes(held), size + len(part)
            held, size = bytearray(), 0
        held += rest[: size_max - len(held)]
        size += len(rest)
    if size:
        yield bytes(held), size


# ---- the command line


def _parsed(argv: list[str]) -> tuple[str, Options]:
    parser = argparse.ArgumentParser(
        prog="python -m workers.message_queue",
        description="Create, read or write a POSIX message queue. It is made where it is missing.",
        epilog="echo hello | python -m workers.message_queue --write /queue",
    )
    modes = parser.add_mutually_exclusive_group(required=True)
    modes.add_argument("--create", dest="mode", action="store_const", const="create", help="make the queue, and end")
    modes.add_argument("--read", dest="mode", action="store_const", const="read", help="receive and print, for ever")
    modes.add_argument("--write", dest="mode", action="store_const", const="write", help="send each line of the input")
    parser.add_argument("name", metavar="NAME", help="of the queue: a slash and a name")
    parser.add_argument("--max-messages", type=int, metavar="N", help=f"of a new queue (default: {MESSAGES})")
    parser.add_argument("--max-message-size", type=int, metavar="N", help=f"of a new queue, bytes (default: {SIZE})")
    parser.add_argument("--mode", dest="bits", type=_octal, default=0o600, metavar="OCTAL",
                        help="of a new queue, whatever the umask (default: 600)")  # fmt: skip
    parser.add_argument("--count", type=_not_negative, metavar="N", help="end after N messages")
    parser.add_argument("--priority", type=_priority, default=0, metavar="N",
                        help=f"of what is sent, 0 to {PRIORITY_MAX}, highest read first (default: 0)")  # fmt: skip
    parser.add_argument("--timeout", type=_seconds, metavar="S",
                        help="end when no message, or no room, comes for S seconds")  # fmt: skip
    parser.add_argument("--null", action="store_true", help="messages end in a null byte instead of a newline")
    found = parser.parse_args(argv)
    options = Options(
        name=found.name,
        max_messages=found.max_messages,
        max_message_size=found.max_message_size,
        mode=found.bits,
        count=found.count,
        priority=found.priority,
        timeout=found.timeout,
        separator=b"\0" if found.null else b"\n",
    )
    return found.mode, options


def _not_negative(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text}: 0 or more is wanted")
    return number


def _priority(text: str) -> int:
    number = int(text)
    if not 0 <= number <= PRIORITY_MAX:
        raise argparse.ArgumentTypeError(f"{text}: 0 to {PRIORITY_MAX} is wanted")
    return number


def _seconds(text: str) -> float:
    number = float(text)
    if not number >= 0:
        raise argparse.ArgumentTypeError(f"{text}: seconds, 0 or more, are wanted")
    return number


def _octal(text: str) -> int:
    number = int(text, 8)
    if not 0 <= number <= 0o777:
        raise argparse.ArgumentTypeError(f"{text}: an octal number of 000 to 777 is wanted")
    return number
