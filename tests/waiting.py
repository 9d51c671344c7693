"""
waiting - the one place of the tests that sleeps

What another process does is waited for by looking at what it leaves: a file, a line, a word on a board.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

LOOK_S = 0.005

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
