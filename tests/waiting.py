"""
waiting - the one place of the tests that sleeps

What another process does is waited for by looking at what it leaves: a file, a line, a word on a board.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from workers.system import process_state

LOOK_S = 0.005
LOOKS = 5  # so often asleep in a row is in a wait

T = TypeVar("T")


def until(condition: Callable[[], T], timeout_s: float = 20.0, look_s: float = LOOK_S) -> T:
    """
    Call *condition* until it returns something true, and return that; AssertionError after *timeout_s*.

    *look_s* between two calls: more where a look costs what the others need.
    """
    end_s = time.monotonic() + timeout_s
    while not (found := condition()):
        if time.monotonic() > end_s:
            raise AssertionError(f"not within {timeout_s:g} s: {condition}")
        time.sleep(look_s)
    return found


def signal_elsewhere(number: signal.Signals) -> None:
    """Once the main thread is in a wait, send *number* to another thread of this process: it ends no wait."""

    def send() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
        until(lambda: all(_sleeps() for _ in range(LOOKS)))
        signal.pthread_kill(threading.get_ident(), number)

    threading.Thread(target=send, name="elsewhere", daemon=True).start()


def _sleeps() -> bool:
    time.sleep(LOOK_S)
    return process_state(os.getpid()) == "S"
