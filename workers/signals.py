"""
signals - the signals that a loop waits for, none of them lost

    with Signals([signal.SIGTERM]) as signals:
        while True:
            for number in signals.taken(): ...
            signals.wait(seconds)               # ends at once when one has come since taken()

A handler notes the number and does nothing else: no lock is taken, nothing is raised into
the code that it interrupts. Before it runs the interpreter has written a byte into a pipe,
which wait() looks at, so a signal between taken() and wait() ends that wait.

Limits: main thread only, one of them at a time. Two of one number that come while the
interpreter is busy in one call of C may be noted once.
Source: signal.set_wakeup_fd; the self-pipe trick of D. J. Bernstein.
See also: components, message_queue_tool (run on it), orchestrator.loop (the master's, which has timers and
descriptors too).
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections import deque
from collections.abc import Callable, Iterable
from types import FrameType, TracebackType
from typing import Self

WAKE_BYTES = 4096
# RACE: a signal that comes between the interpreter's last look and a wait does not end that wait, nor does one that
# another thread is given; its handler runs afterwards. Who has not such a pipe, and a handler that raises, waits no
# longer than this. See test_a_signal_that_ends_no_wait_is_noticed_while_the_program_runs and
# test_an_interrupt_that_comes_before_the_wait_is_noticed.
UNNOTICED_S = 1.0

Handler = Callable[[int, FrameType | None], object] | int | None


class Signals:
    """
    See the header. *on_arrival* is called by the handler with the number, in the midst of anything.

    Attributes:
        fd: while entered, readable when a signal has come; for those who wait for more than signals.
    """

    def __init__(self, numbers: Iterable[signal.Signals], on_arrival: Callable[[int], None] | None = None) -> None:
        self._numbers = tuple(numbers)
        self._on_arrival = on_arrival
        self._arrived: deque[int] = deque()
        self._before: dict[int, Handler] = {}

    def __enter__(self) -> Self:
        # A pipe keeps 65,536 bytes, a socket pair is full after some 300 single ones.
        self.fd, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        # ORDER: the descriptor, then the handlers. The other way round a signal between the two
        # is noted and wakes nobody. See test_each_of_1000_signals_wakes_the_sleeping_loop.
        self._fd_before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in self._numbers:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _t: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        # ORDER: away from the pipe before it is closed, or a signal writes into whatever has its number next.
        # See test_run_gives_back_handlers_and_wakeup_descriptor.
        signal.set_wakeup_fd(self._fd_before)
        os.close(self.fd)
        os.close(self._writer)

    def taken(self) -> list[int]:
        """What has arrived since the last call, in that order. No system call."""
        found = []
        while self._arrived:
            found.append(self._arrived.popleft())
        return found

    def wait(self, timeout_s: float) -> None:
        """Wait until a signal arrives, or has arrived since taken(); at most *timeout_s*."""
        poller = select.poll()
        poller.register(self.fd, select.POLLIN)
        if not self._arrived and poller.poll(timeout_s * 1000):
            with contextlib.suppress(BlockingIOError):
                while os.read(self.fd, WAKE_BYTES):
                    pass

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._arrived.append(number)
        if self._on_arrival is not None:
            self._on_arrival(number)
