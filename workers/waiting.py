"""
waiting - how a worker waits for a message, and is told to leave

A Wait is called with how long at most, and with a descriptor that ends it early. Which one fits depends on what
the queue offers: a descriptor of its own, a feeder's pipe, or nothing but another look.

See also: worker (waits), orchestrator.roles (chooses), orchestrator.watch (inotify).
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Callable

from workers.board import Q
from workers.pauses import Pauses
from workers.queues.base import POLL_S, Claimable, Queue
from workers.queues.null import NoMessages
from workers.system import SYSTEM, System

WAIT_S = 1.0  # between two looks of a worker that nobody wakes
BARRED_S = 0.5  # a worker that may not claim looks so often whether it may


class Leaving:
    """Whether this worker was asked to leave, or to tell its state; ``fd`` is readable then, so a wait ends at once."""

    def __init__(self) -> None:
        self.is_asked = False
        self.is_to_tell = False
        self.fd, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def ask(self, *_: object) -> None:
        """Ask. May be a signal handler."""
        self.is_asked = True
        with contextlib.suppress(BlockingIOError):
            os.write(self._writer, b"x")

    def tell(self, *_: object) -> None:
        """Ask for the state. May be a signal handler."""
        self.is_to_tell = True
        with contextlib.suppress(BlockingIOError):
            os.write(self._writer, b"s")

    def taken(self) -> bool:
        """Whether the state is asked for: once for all that asked since the last call. Main thread only."""
        is_told = self.is_to_tell
        # ORDER: the flag down, then read, then the flag again: a handler may run between any two of these, and what is
        # in neither the flag nor the pipe afterwards is lost. See test_no_wakeup_is_lost_while_the_state_is_asked_for.
        while self.is_to_tell:
            self.is_to_tell = False
            self._empty()
        return is_told

    def wait(self, timeout_s: float) -> bool:
        """Wait for being asked to leave; True when it was. Ends as well when the state is asked for."""
        if readable_within(self.fd, timeout_s) and not self.is_asked:
            self._empty()  # or the next wait would end at once, too
        return self.is_asked

    def _empty(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self.fd, 4096)
        if self.is_asked:  # the handler of TERM may have run before the read: that byte is to stay
            self.ask()


def readable_within(fd: int, timeout_s: float) -> bool:
    """Wait until *fd* is readable, at most *timeout_s*. By poll: select knows no descriptor of 1024 and more."""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(timeout_s * 1000))


Wait = Callable[[float, int], bool]  # wait(timeout_s, fd): until there may be a message, or fd is readable


def polling(queue: Queue, system: System = SYSTEM) -> Wait:
    """Look again at growing distances while nothing comes."""
    longest_s = queue.poll_interval_s if isinstance(queue, Claimable) else POLL_S
    if isinstance(queue, NoMessages):
        longest_s = WAIT_S
    pauses, last_ns = Pauses(longest_s, system), 0

    def wait(timeout_s: float, fd: int) -> bool:
        nonlocal last_ns
        if system.boottime_ns() - last_ns > 2e9 * pauses.coming_s + 2e6:
            pauses.restart()  # something was handled since the last wait
        readable_within(fd, min(pauses.next_s(), timeout_s))
        last_ns = system.boottime_ns()
        return True

    return wait


def at_descriptor(watched: int) -> Wait:
    """
    Wait until *watched* is readable; an event of it wakes one of those who wait.

    An epoll of the worker's own: the kernel passes over those who do not wait in theirs. Source: epoll_ctl(2).
    """
    poller = select.epoll()
    poller.register(watched, select.EPOLLIN | select.EPOLLEXCLUSIVE)

    def wait(timeout_s: float, fd: int) -> bool:
        with contextlib.suppress(FileExistsError):
            poller.register(fd, select.EPOLLIN)
        return any(ready != fd for ready, _ in poller.poll(timeout_s))

    return wait


def at_queue(watched: int, words: memoryview[int]) -> Wait:
    """Wait at the queue's own descriptor; while it is paused, what waits there ends no wait. *words*: of the queue."""
    unpaused = at_descriptor(watched)

    def wait(timeout_s: float, fd: int) -> bool:
        return barred(timeout_s, fd) if words[Q.PAUSED] else unpaused(timeout_s, fd)

    return wait


def waiting_at(queue: Queue, words: memoryview[int]) -> Wait:
    """How a worker without a master waits: at the queue's own descriptor where it has one, else by polling."""
    if isinstance(queue, Claimable) and queue.wait_fd >= 0:
        return at_queue(queue.wait_fd, words)
    return polling(queue)


def barred(timeout_s: float, fd: int) -> bool:
    """Wait while nobody may claim, so that what waits does not end the wait again and again."""
    return not readable_within(fd, min(timeout_s, BARRED_S))
