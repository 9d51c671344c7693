"""
rig_mq - what the tests of POSIX message queues share: names of their own, a clock moved by hand, calls that fail
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator

import pytest

from workers.posix_mq import Mq, unlink
from workers.system import System

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def names() -> Iterator[Callable[[], str]]:
    """For a fixture: makes names of queues, which are removed afterwards. Skips where the kernel has no queues."""
    made: list[str] = []

    def make() -> str:
        made.append(f"/test-{os.getpid()}-{os.urandom(4).hex()}")
        return made[-1]

    try:
        probe = Mq.open(make(), create=True, max_messages=1, max_size=1)
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        pytest.skip(f"no POSIX message queues here: {error}")
    probe.close()
    yield make
    for name in made:
        with contextlib.suppress(FileNotFoundError):
            unlink(name)


class Moved(System):
    """A System whose clock moves only while something waits, and where each wait is noted."""

    def __init__(self) -> None:
        self.now_ns = 10**18
        self.waits: list[float | None] = []
        self.when_waiting: Callable[[], None] = lambda: None

    def boottime_ns(self) -> int:
        return self.now_ns

    def wall_ns(self) -> int:
        raise AssertionError("somebody may set that clock")

    def mq_wait(self, queue, timeout_s, also=(), *, is_writer=False):
        self.waits.append(timeout_s)
        self.now_ns += int(timeout_s * 1e9)
        self.when_waiting()
        return []


class Failing(System):
    """A System where one of the calls fails with an errno."""

    def __init__(self, call: str, number: int) -> None:
        def fail(*_: object, **__: object) -> None:
            raise OSError(number, os.strerror(number))

        setattr(self, call, fail)
