"""Loop: real signals, real forks and real descriptors; time is moved by hand."""

from __future__ import annotations

import contextlib
import mmap
import os
import signal

import pytest

from orchestrator.loop import Loop

LATE_S = 60  # only ever reached when something is lost


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture(name="clock")
def _clock():
    return Clock()


@pytest.fixture(name="loop")
def _loop(clock):
    with contextlib.closing(Loop(clock)) as loop:
        yield loop


@pytest.fixture(name="real_loop")
def _real_loop():
    with contextlib.closing(Loop()) as loop:
        loop.on("late", lambda _: loop.stop(99))
        loop.events.schedule_after(LATE_S, "late")
        yield loop


@pytest.fixture(name="pipe")
def _pipe():
    reader, writer = os.pipe()
    yield reader, writer
    for fd in (reader, writer):
        with contextlib.suppress(OSError):
            os.close(fd)


def forked(child) -> int:
    """Fork *child*, a function; its pid."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = child() or 0
        finally:
            os._exit(code)
    return pid


def exit_code(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# ---- events and timers


def test_run_returns_the_code_of_the_first_stop(loop):
    loop.on("end", lambda _: loop.stop(3))
    loop.on("end", lambda _: loop.stop(4))
    loop.events.schedule("end")
    assert loop.run() == 3


def test_stop_before_run_ends_it_at_once(loop):
    loop.stop(5)
    assert loop.run() == 5


def test_callbacks_of_an_event_are_called_in_turn_with_its_args(loop):
    seen = []
    loop.on("event", lambda args: seen.append((1, args)))
    loop.on("event", lambda args: seen.append((2, args)))
    loop.events.schedule("event", "args")
    loop.turn(0)
    assert seen == [(1, "args"), (2, "args")]


def test_a_callback_that_raises_is_logged_and_the_loop_goes_on(loop, caplog):
    def fail(_):
        raise ZeroDivisionError("oops")

    loop.on("bad", fail)
    loop.on("bad", lambda _: loop.stop(7))
    loop.events.schedule("bad")
    assert loop.run() == 7
    assert "event 'bad'" in caplog.text
    assert "ZeroDivisionError: oops" in caplog.text


def test_an_event_without_callback_is_logged_and_left_out(loop, caplog):
    loop.events.schedule("nobody")
    loop.turn(0)
    assert "'nobody' has no callback" in caplog.text
    assert loop.events.count() == 0


def test_an_event_that_schedules_itself_keeps_no_descriptor_waiting(loop, pipe):
    os.write(pipe[1], b"x")
    loop.watch(pipe[0], lambda _: loop.stop(1))
    loop.on("again", lambda _: loop.events.schedule("again"))
    loop.events.schedule("again")
    assert loop.run() == 1


def test_every_comes_in_step_however_late_each_turn_is(loop, clock):
    times_s = []
    loop.on("tick", lambda _: times_s.append(clock.now_s))
    loop.every(2, "tick")
    for late_s in (102.5, 104.25, 106.9, 107.9, 108.0):
        clock.now_s = late_s
        loop.turn(0)
    assert times_s == [102.5, 104.25, 106.9, 108.0]


def test_every_comes_once_after_a_suspension_and_then_in_step_again(loop, clock):
    count = []
    loop.on("tick", count.append)
    loop.every(1, "tick")
    clock.now_s += 3600.5
    for _ in range(5):
        loop.turn(0)
    assert count == [None]
    clock.now_s += 0.5
    loop.turn(0)
    assert count == [None, None]


def test_every_goes_on_after_its_callback_raised(loop, clock):
    loop.on("tick", lambda _: 1 / 0)
    loop.every(1, "tick")
    clock.now_s += 1
    loop.turn(0)
    assert loop.events.wait() == 1


def test_a_second_every_replaces_the_period(loop, clock):
    count = []
    loop.on("tick", count.append)
    loop.every(1, "tick")
    loop.every(10, "tick")
    for _ in range(20):
        clock.now_s += 1
        loop.turn(0)
    assert len(count) == 2


def test_a_period_of_nothing_is_refused(loop):
    with pytest.raises(ValueError, match="more than 0"):
        loop.every(0, "tick")


# ---- descriptors


def test_a_watched_descriptor_is_called_with_its_number_until_unwatched(loop, pipe):
    seen = []
    loop.watch(pipe[0], seen.append)
    loop.turn(0)
    assert seen == []
    os.write(pipe[1], b"x")
    loop.turn(0)
    loop.turn(0)
    assert seen == [pipe[0]] * 2
    loop.unwatch(pipe[0])
    loop.unwatch(pipe[0])
    loop.turn(0)
    assert seen == [pipe[0]] * 2


def test_a_descriptor_unwatched_by_another_callback_of_the_same_turn_is_not_called(loop):
    pipes = [os.pipe(), os.pipe()]
    seen = []

    def unwatch_both(fd):
        seen.append(fd)
        for reader, _ in pipes:
            loop.unwatch(reader)

    for reader, writer in pipes:
        os.write(writer, b"x")
        loop.watch(reader, unwatch_both)
    loop.turn(0)
    for pair in pipes:
        for fd in pair:
            os.close(fd)
    assert len(seen) == 1


def test_a_failing_watch_callback_is_logged(loop, pipe, caplog):
    os.write(pipe[1], b"x")
    loop.watch(pipe[0], lambda _: 1 / 0)
    loop.turn(0)
    assert f"descriptor {pipe[0]}" in caplog.text


def test_watching_again_replaces_even_a_number_that_was_closed_meanwhile(loop, pipe):
    reader, writer = os.pipe()
    loop.watch(reader, lambda _: None)
    os.close(reader)
    os.close(writer)
    os.dup2(pipe[0], reader)
    seen = []
    loop.watch(reader, seen.append)
    os.write(pipe[1], b"x")
    loop.turn(0)
    loop.unwatch(reader)
    os.close(reader)
    assert seen == [reader]


# ---- signals


def test_a_thousand_signals_to_a_sleeping_loop_and_the_last_one_is_seen(real_loop):
    """A child counts up, then sends. The event after the last signal must find the whole count."""
    counter = mmap.mmap(-1, 8)
    words = memoryview(counter).cast("q")
    seen = []

    def look(_):
        seen.append(words[0])
        if words[0] == 1000:
            real_loop.stop(0)

    def send():
        for number in range(1, 1001):
            words[0] = number
            os.kill(os.getppid(), signal.SIGUSR1)

    real_loop.on("look", look)
    real_loop.signals({signal.SIGUSR1: "look"})
    with real_loop.signals_held():
        pid = forked(send)
    assert real_loop.run() == 0
    assert exit_code(pid) == 0
    assert seen[-1] == 1000


def test_each_single_signal_wakes_a_sleeping_loop(real_loop, pipe):
    """The child sends the next one only when it was answered, so one lost wake-up ends it."""
    answers = os.pipe()
    count = []

    def answer(_):
        count.append(1)
        os.write(answers[1], b"x")
        if len(count) == 300:
            real_loop.stop(0)

    def send():
        for _ in range(300):
            os.kill(os.getppid(), signal.SIGUSR1)
            os.read(answers[0], 1)

    real_loop.on("answer", answer)
    real_loop.signals({signal.SIGUSR1: "answer"})
    pid = forked(send)
    assert real_loop.run() == 0
    assert exit_code(pid) == 0
    for fd in answers:
        os.close(fd)


def test_signals_come_in_the_order_in_which_they_arrived(loop):
    seen = []
    names = {signal.SIGUSR1: "one", signal.SIGUSR2: "two", signal.SIGHUP: "three"}
    for name in names.values():
        loop.on(name, lambda _, name=name: seen.append(name))
    loop.on("line", lambda _: seen.append("line"))
    loop.signals(names)
    loop.events.schedule("line")
    for number in (signal.SIGUSR2, signal.SIGUSR1, signal.SIGHUP, signal.SIGUSR1):
        signal.raise_signal(number)
    loop.turn(0)
    assert seen == ["two", "one", "three", "one", "line"]


def test_a_signal_between_the_look_and_the_select_ends_the_select(real_loop):
    """RACE: the signal comes when the timeout is computed already."""
    select = real_loop._selector.select

    def select_after_a_signal(timeout_s=None):
        real_loop._selector.select = select
        os.kill(os.getpid(), signal.SIGUSR1)
        return select(timeout_s)

    real_loop._selector.select = select_after_a_signal
    real_loop.on("stop", lambda _: real_loop.stop(0))
    real_loop.signals({signal.SIGUSR1: "stop"})
    assert real_loop.run() == 0


def test_a_flood_of_one_signal_hides_no_other(loop):
    seen = set()
    loop.on("flood", lambda _: seen.add("flood"))
    loop.on("other", lambda _: seen.add("other"))
    loop.signals({signal.SIGUSR1: "flood", signal.SIGUSR2: "other"})
    for _ in range(5000):
        signal.raise_signal(signal.SIGUSR1)
    signal.raise_signal(signal.SIGUSR2)
    loop.turn(0)
    assert seen == {"flood", "other"}


def test_signals_beyond_the_pipe_neither_block_nor_fail(loop):
    count = []
    loop.on("flood", count.append)
    loop.signals({signal.SIGUSR1: "flood"})
    for _ in range(70_000):
        signal.raise_signal(signal.SIGUSR1)
    loop.turn(0)
    assert len(count) == 65_536


def test_close_restores_handlers_and_wakeup_descriptor():
    handler = signal.getsignal(signal.SIGUSR1)
    loop = Loop()
    loop.signals({signal.SIGUSR1: "one"})
    loop.signals({signal.SIGUSR2: "two"})
    assert signal.getsignal(signal.SIGUSR1) is not handler
    loop.close()
    loop.close()
    assert signal.getsignal(signal.SIGUSR1) is handler
    before = signal.set_wakeup_fd(-1)
    assert before == -1


def test_a_child_that_forgot_the_loop_has_defaults_and_leaves_the_parents_loop_alone(real_loop, pipe):

    def child():
        real_loop.forget_in_child()
        is_default = signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
        is_unheld = signal.SIGUSR1 not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
        os.write(pipe[1], b"x")  # the parent's epoll set must still have the reader
        return 0 if is_default and is_unheld and signal.set_wakeup_fd(-1) == -1 else 1

    real_loop.watch(pipe[0], lambda _: real_loop.stop(0))
    real_loop.on("one", lambda _: real_loop.stop(1))
    real_loop.signals({signal.SIGUSR1: "one"})
    with real_loop.signals_held():
        pid = forked(child)
    assert exit_code(pid) == 0
    assert real_loop.run() == 0
    assert signal.SIGUSR1 not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_a_signal_to_a_child_just_forked_never_reaches_the_parents_loop(real_loop, pipe):
    """RACE: the child gets its signal before it forgot the loop; it dies of it, the parent sees nothing."""
    seen = []
    real_loop.on("one", seen.append)
    real_loop.signals({signal.SIGUSR1: "one"})

    def child():
        os.read(pipe[0], 1)
        real_loop.forget_in_child()

    with real_loop.signals_held():
        pid = forked(child)
    os.kill(pid, signal.SIGUSR1)
    os.write(pipe[1], b"x")
    assert exit_code(pid) == -signal.SIGUSR1
    real_loop.turn(0)
    assert seen == []


def test_close_in_a_child_that_forgot_the_loop_does_nothing(real_loop):
    def child():
        real_loop.forget_in_child()
        real_loop.close()

    real_loop.signals({signal.SIGUSR1: "one"})
    assert exit_code(forked(child)) == 0
