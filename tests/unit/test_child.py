"""Forking a role and learning how it ended, with real processes."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys

import pytest

from orchestrator.child import Child, settle, spawn
from orchestrator.loop import Loop
from tests.waiting import until
from workers.system import kill_session, start_ticks


@pytest.fixture
def loop():
    one = Loop()
    yield one
    one.close()


def ended(loop: Loop, child: Child):
    """Take turns until *child* is collected; how often it was called readable, and how it ended."""
    found, calls = [], []

    def look(_fd: int) -> None:
        calls.append(1)
        end = child.collect()
        if end is not None:
            loop.unwatch(child.sentinel)
            child.close()
            found.append(end)

    loop.watch(child.sentinel, look)
    while not found:
        loop.turn()
    return found[0]


def test_a_role_ends_with_its_answer_as_exit_code(loop):
    end = ended(loop, spawn(lambda: 7, "test", loop, lambda: None))
    assert (end.code, end.signal) == (7, None)


def test_a_role_that_raises_ends_with_1(loop, capfd):
    end = ended(loop, spawn(lambda: 1 // 0, "test", loop, lambda: None))
    assert end.code == 1


def test_a_killed_role_says_by_which_signal_and_what_it_cost(loop):
    child = spawn(signal.pause, "test", loop, lambda: None)
    child.send(signal.SIGKILL)
    end = ended(loop, child)
    assert (end.code, end.signal) == (None, signal.SIGKILL)
    assert end.cpu_ns >= 0
    assert "SIGKILL" in str(end)


def test_a_sentinel_unwatched_before_it_is_closed_is_heard_of_no_more(loop):
    """A sibling forked later holds the dead one's pipe; the loop must hear of it no more, whatever has its number."""
    first = spawn(signal.pause, "first", loop, lambda: None)
    sibling = spawn(signal.pause, "sibling", loop, lambda: None)
    first.send(signal.SIGKILL)
    ended(loop, first)
    again = spawn(signal.pause, "again", loop, lambda: None)
    calls = []
    loop.watch(again.sentinel, calls.append)
    for _ in range(20):
        loop.turn(0)
    assert calls == []
    loop.unwatch(again.sentinel)
    for one in (sibling, again):
        one.send(signal.SIGKILL)
        ended(loop, one)


def test_what_a_child_inherits_is_no_longer_collected(loop):
    """A collection would write into every page that is shared. What the master makes later stays collectable."""
    before = [[]]
    settle()
    later = [[]]

    def collected() -> int:
        """A bit for each of the two that a collection would look at."""
        found = [id(one) for one in gc.get_objects()]
        return (id(before) in found) + 2 * (id(later) in found)

    try:
        assert ended(loop, spawn(collected, "test", loop, lambda: None)).code == 0
        assert collected() == 2
    finally:
        gc.unfreeze()


def test_all_of_a_session_is_killed_and_nobody_else():
    """Whatever process group they are in; the leader is dead and collected, its number tells the session."""
    start = "import subprocess; print(subprocess.Popen(['sleep', '60'], process_group=0, stdout=2).pid)"
    led = subprocess.run(
        [sys.executable, "-c", f"import os; print(os.getpid()); {start}; {start}"],
        start_new_session=True,
        stdout=subprocess.PIPE,
        check=True,
    )
    session, *programs = map(int, led.stdout.split())
    assert [os.getsid(pid) for pid in programs] == [session, session]
    stranger = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        assert kill_session(session) >= 2  # who takes a moment to die is found again
        until(lambda: all(start_ticks(pid) is None for pid in programs))
        assert stranger.poll() is None
        assert kill_session(session) == 0
    finally:
        stranger.kill()
        stranger.wait()
