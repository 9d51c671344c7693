"""
loop - what the master waits in: descriptors, timers and signals, one at a time

A selector, an EventQueueManager and the wake-up descriptor of signal. It knows no
policy: whoever uses it says which event a signal is and what is called for it.

A signal's handler does nothing; the interpreter has written the signal's number into
a pipe by then, and the loop schedules the event of each byte it reads there. The
byte stays until it is read, so a signal between the last look and the select ends
that select: no wake-up is lost. Signals come in the order in which they arrived.

Raises: nothing from callbacks (they are logged and the loop goes on); OSError when
the kernel gives no descriptors. Main thread only.
Limits: one loop a process may have signals, for there is one wake-up descriptor; a
callback during which 65,536 signals arrive loses those after.
Source: signal.set_wakeup_fd; the self-pipe trick of D. J. Bernstein.
See also: workers.events (the order of events), master (the table of signals).
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import selectors
import signal
from collections.abc import Callable, Collection, Iterator, Mapping
from types import FrameType
from typing import TypeVar

from workers.events import Clock, EventQueueManager, monotonic_s, wall_s

# A step of the wall clock and the end of a suspension wake nobody; so long they may go unnoticed.
SLEEP_S_MAX = 10.0
WAKE_BYTES = 4096

EventCallback = Callable[[object], None]  # is given the event's args
WatchCallback = Callable[[int], None]  # is given the descriptor that is readable
SignalHandler = Callable[[int, FrameType | None], object] | int | None

T = TypeVar("T")

log = logging.getLogger(__name__)


def _let_through(_number: int, _frame: FrameType | None) -> None:
    """Do nothing: the byte is in the pipe already, and a handler must be there for it to be written."""


class _Period:
    """The due times of one periodic event."""

    __slots__ = ("due_s", "seconds")

    def __init__(self, seconds: float, now_s: float) -> None:
        self.seconds = seconds
        self.due_s = now_s + seconds

    def advance(self, now_s: float) -> None:
        """Go to the first due time after *now_s*, in step with the first one; those missed are left out."""
        missed = max(0, math.floor((now_s - self.due_s) / self.seconds))
        self.due_s += (missed + 1) * self.seconds


class Loop:
    """One for a process. close() it, or forget_in_child() after a fork."""

    def __init__(self, clock: Clock = monotonic_s, wall: Clock = wall_s) -> None:
        self.clock = clock
        self.events = EventQueueManager(wall, clock)
        self._callbacks: dict[str, list[EventCallback]] = {}
        self._periods: dict[str, _Period] = {}
        self._watched: dict[int, WatchCallback] = {}
        self._signals: dict[int, str] = {}
        self._handlers_before: dict[int, SignalHandler] = {}
        self._wakeup_fd_before: int | None = None
        self._code: int | None = None
        self._is_open = True
        self._selector = selectors.DefaultSelector()
        # A pipe keeps 65,536 bytes; a socket pair is full after some 300 single ones, and then the TERM
        # behind a burst of other signals would be lost. See test_a_flood_of_one_signal_hides_no_other.
        self._wake_reader, self._wake_writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._selector.register(self._wake_reader, selectors.EVENT_READ)

    # ---- what is called when

    def on(self, event: str, callback: EventCallback) -> None:
        """Call *callback* with the event's args whenever *event* comes up, after those added before it."""
        self._callbacks.setdefault(event, []).append(callback)

    def watch(self, fd: int, callback: WatchCallback) -> None:
        """
        Call *callback* with *fd* in every turn in which it is readable or at its end.

        Watching it again replaces the callback. unwatch() before closing it.
        """
        self.unwatch(fd)
        self._selector.register(fd, selectors.EVENT_READ)
        self._watched[fd] = callback

    def unwatch(self, fd: int) -> None:
        """End watch(); nothing when *fd* is not watched. At once, even for what was readable in this very turn."""
        if self._watched.pop(fd, None) is not None:
            self._selector.unregister(fd)

    def signals(self, table: Mapping[signal.Signals, str]) -> None:
        """
        Schedule the event of *table* for each signal that arrives, with no args, before what waits in line.

        Main thread only. May be called again with more signals. close() restores what was before.
        """
        for number, event in table.items():
            self._signals[number] = event
        if self._wakeup_fd_before is None:
            # ORDER: the descriptor, then the handlers. The other way round a signal between
            # the two would have a handler that does nothing and no byte: lost.
            # See test_each_single_signal_wakes_a_sleeping_loop.
            self._wakeup_fd_before = signal.set_wakeup_fd(self._wake_writer, warn_on_full_buffer=False)
        for number in table:
            before = signal.signal(number, _let_through)
            self._handlers_before.setdefault(number, before)

    def every(self, seconds: float, event: str) -> None:
        """
        Schedule *event* every *seconds* from now on, in step with the first one.

        What fell into a suspension or a long callback is left out, not made up for.
        A second call for the same event replaces its period.
        """
        if not seconds > 0:
            raise ValueError(f"the period of event {event!r} must be more than 0 s, not {seconds!r}")
        period = self._periods[event] = _Period(seconds, self.clock())
        self.events.schedule_after(seconds, event, period)

    # ---- running

    def run(self) -> int:
        """Take turns until stop() is called; its code. Blocks."""
        while self._code is None:
            self.turn()
        return self._code

    def stop(self, code: int = 0) -> None:
        """Let run() return *code* after the callback in hand, or at once when called later. The first call counts."""
        if self._code is None:
            self._code = code

    def turn(self, sleep_s_max: float = SLEEP_S_MAX) -> None:
        """Wait for something at most *sleep_s_max* seconds, then handle what is ready and due. 0 only looks."""
        timeout_s = sleep_s_max
        if self.events.count():
            timeout_s = max(0.0, min(sleep_s_max, self.events.wait()))
        readable = [key.fd for key, _ in self._selector.select(timeout_s)]
        self._read_signals()
        for fd in readable:
            callback = self._watched.get(fd)  # a callback before it may have unwatched it
            if callback is not None and self._code is None:
                self._call(callback, fd, f"descriptor {fd}")
        # So many and no more: an event that schedules itself must not keep descriptors and signals waiting.
        for _ in range(self.events.count()):
            if self._code is not None or not self.events.count():
                break
            event, args = self.events.next()
            if event is None:
                break
            self._handle(event, args)

    def _handle(self, event: str, args: object) -> None:
        if isinstance(args, _Period):
            if self._periods.get(event) is not args:  # replaced meanwhile
                return
            now_s = self.clock()
            # ORDER: the next one before this one is handled, so a callback that raises ends no timer.
            # See test_every_goes_on_after_its_callback_raised.
            args.advance(now_s)
            self.events.schedule_after(args.due_s - now_s, event, args)
            args = None
        callbacks = self._callbacks.get(event, ())
        if not callbacks:
            log.error("event %r has no callback; it is left out. This is a fault of the program.", event)
        for callback in tuple(callbacks):
            self._call(callback, args, f"event {event!r}")

    def _call(self, callback: Callable[[T], None], argument: T, what: str) -> None:
        try:
            callback(argument)
        except Exception:
            log.exception("the callback of %s failed; the loop goes on", what)

    def _read_signals(self) -> None:
        numbers = bytearray()
        with contextlib.suppress(BlockingIOError):
            while part := os.read(self._wake_reader, WAKE_BYTES):
                numbers += part
        # ORDER: backwards, for each one scheduled next goes before those scheduled so far.
        # See test_signals_come_in_the_order_in_which_they_arrived.
        for number in reversed(numbers):
            if number in self._signals:
                self.events.schedule_next(self._signals[number])

    # ---- forking and leaving

    @contextlib.contextmanager
    def signals_held(self) -> Iterator[None]:
        """
        Hold the loop's signals back meanwhile: fork inside.

        RACE: a child has the parent's wake-up pipe until forget_in_child(). A signal for the child
        in between would write its byte there, and the parent would take it for one of its own.
        See test_a_signal_to_a_child_just_forked_never_reaches_the_parents_loop.
        """
        before = signal.pthread_sigmask(signal.SIG_BLOCK, self._signals.keys())
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def forget_in_child(self, ignored: Collection[signal.Signals] = ()) -> None:
        """
        Let go of the parent's loop: first thing in a forked child, which has no use for the loop afterwards.

        Signals are back at their defaults, or *ignored*, and no longer held; one that came meanwhile has that
        effect now.
        """
        if self._wakeup_fd_before is not None:
            signal.set_wakeup_fd(-1)
        for number in self._handlers_before:
            signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)
        held = tuple(self._signals)
        self._forget()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, held)

    def close(self) -> None:
        """Restore handlers and wake-up descriptor, give the descriptors back. A second time it does nothing."""
        for number, handler in self._handlers_before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        # ORDER: away from the pipe before it is closed, or a signal writes into whatever has its number next.
        # See test_close_restores_handlers_and_wakeup_descriptor.
        if self._wakeup_fd_before is not None:
            signal.set_wakeup_fd(self._wakeup_fd_before)
        self._forget()

    def _forget(self) -> None:
        self._handlers_before.clear()
        self._signals.clear()
        self._watched.clear()
        self._wakeup_fd_before = None
        if self._is_open:
            self._is_open = False
            # Closing only: unregister() in a child would take the descriptor out of the parent's epoll set.
            self._selector.close()
            os.close(self._wake_reader)
            os.close(self._wake_writer)
