"""
test_components - the daemon and its components: chains, failures, periods, stopping, statistics, state

What the original does as well is run on both (see zendaemon_twins). Time is moved, never waited for.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.zendaemon_twins import Library, both, library_of, needs_original, original
from workers import components
from workers.components import (
    MAX_STOP_ATTEMPTS,
    MAX_STOP_TIMEOUT,
    SIGNALS_TO_NAMES_DICT,
    Daemon,
    DemoDaemonComponent,
    DemoPrintComponent,
    ZenDaemonComponent,
    ZenDaemonComponentException,
    ZenDaemonException,
    calc_statistics,
)
from workers.dump import DEPTH_MAX, TEXT_SIZE_MAX, said
from workers.events import EventQueueManager

# run() has a handler of its own for SIGALRM, which would be the timeout's else.
pytestmark = pytest.mark.timeout(120, method="thread")

# As the seed's manual page lists them; a newer Python knows more.
SEED_SIGNALS = (
    "1 SIGHUP 2 SIGINT 3 SIGQUIT 4 SIGILL 5 SIGTRAP 6 SIGIOT 7 SIGBUS 8 SIGFPE 9 SIGKILL 10 SIGUSR1 11 SIGSEGV "
    "12 SIGUSR2 13 SIGPIPE 14 SIGALRM 15 SIGTERM 17 SIGCLD 18 SIGCONT 19 SIGSTOP 20 SIGTSTP 21 SIGTTIN 22 SIGTTOU "
    "23 SIGURG 24 SIGXCPU 25 SIGXFSZ 26 SIGVTALRM 27 SIGPROF 28 SIGWINCH 29 SIGPOLL 30 SIGPWR 31 SIGSYS "
    "34 SIGRTMIN 64 SIGRTMAX"
)


@pytest.fixture(name="library")
def _library(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Library:
    return library_of(request.param, tmp_path, monkeypatch)


class Clock:
    """Both clocks, moved by hand."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture(name="clock")
def _clock() -> Clock:
    return Clock()


class Given(ZenDaemonComponent):
    """Answers each event by what is given: a callable's answer, an exception raised, else that very object."""

    def __init__(self, prepend: bool = False, **answers: Any) -> None:
        super().__init__()
        self.answers, self.prepend = answers, prepend
        self.calls: list[tuple[str, Any]] = []

    def get_events(self) -> list[dict[str, object]]:
        return [self.gen_event_handler(event, self._callback(event), self.prepend) for event in self.answers]

    def _callback(self, event: str) -> Callable[[Daemon, Any], Any]:
        def callback(daemon: Daemon, args: Any) -> Any:
            self.calls.append((event, args))
            answer = self.answers[event]
            if isinstance(answer, BaseException):
                raise answer
            if answer is None:
                return daemon.FLAG_CONTINUE, args
            return answer(daemon, args) if callable(answer) else answer

        return callback


class Other(Given):
    """Of another class."""


def daemon_of(*given: ZenDaemonComponent, clock: Clock | None = None, **more: Any) -> Daemon:
    queue = EventQueueManager() if clock is None else EventQueueManager(clock, clock)
    return Daemon(given, **{"queue": queue, "stats_interval_s": 0, "schedule": (), **more})


# ---- the same as the original


@both()
def test_overdue_comes_first_then_next_then_the_line(library: Library) -> None:
    queue = library.queue()
    queue.schedule("a")
    queue.schedule("b")
    queue.schedule_next("c")
    queue.schedule_at(0, "d")
    queue.schedule_after(-1, "e")
    assert [queue.next()[0] for _ in range(5)] == ["d", "e", "c", "a", "b"]


@both()
def test_each_callback_is_given_what_the_one_before_answered(library: Library) -> None:
    notes: list[Any] = []

    def adding(number: int) -> Any:
        def callback(daemon: Any, args: Any) -> Any:
            notes.append(args)
            return daemon.FLAG_CONTINUE, [*args, number]

        return callback

    given = [library.component({"x": adding(number)}) for number in range(3)]
    library.run(library.daemon(*given, schedule=(("x", []),)))
    assert notes == [[], [0], [0, 1]]


@both()
def test_a_chain_ends_where_a_callback_says_stop_and_other_events_go_on(library: Library) -> None:
    notes: list[str] = []

    def noting(word: str, *, is_end: bool = False) -> Any:
        def callback(daemon: Any, args: Any) -> Any:
            notes.append(word)
            return daemon.FLAG_STOP if is_end else daemon.FLAG_CONTINUE, args

        return callback

    first = library.component({"x": noting("first x", is_end=True), "y": noting("first y")})
    second = library.component({"x": noting("second x"), "y": noting("second y")})
    library.run(library.daemon(first, second, schedule=(("x",), ("y",))))
    assert notes == ["first x", "first y", "second y"]


@both()
def test_prepend_puts_a_callback_before_those_that_are_there_the_daemons_own_too(library: Library) -> None:
    notes: list[str] = []

    def noting(word: str) -> Any:
        def callback(daemon: Any, args: Any) -> Any:
            notes.append(word)
            return daemon.FLAG_STOP if word == "before" else daemon.FLAG_CONTINUE, args

        return callback

    given = [
        library.component({"start": noting("after")}),
        library.component({"start": noting("before")}, prepend=True),
    ]
    library.run(library.daemon(*given, schedule=(("start",),)))
    assert notes == ["before"]


@both()
def test_what_is_scheduled_at_the_beginning_comes_in_the_order_of_its_kind(library: Library) -> None:
    notes: list[Any] = []

    def noting(word: str) -> Any:
        def callback(daemon: Any, args: Any) -> Any:
            notes.append((word, args))
            return daemon.FLAG_CONTINUE, args

        return callback

    given = library.component({word: noting(word) for word in "abcde"})
    schedules = {
        "schedule": (("a", 1), ("b",)),
        "schedule_next": (("c",),),
        "schedule_at": ((0, "d", 2),),
        "schedule_after": ((-1, "e"),),
    }
    library.run(library.daemon(given, **schedules))
    assert notes == [("d", 2), ("e", None), ("c", None), ("a", 1), ("b", None)]


@both()
def test_an_empty_queue_ends_the_daemon(library: Library) -> None:
    library.run(library.daemon(library.component({}), schedule=()))


@both()
def test_set_done_leaves_after_what_waits_in_line(library: Library) -> None:
    notes: list[str] = []

    def callback(daemon: Any, args: Any) -> Any:
        notes.append(args)
        daemon.set_done()
        assert daemon.is_done()
        return daemon.FLAG_CONTINUE, args

    library.run(library.daemon(library.component({"x": callback}), schedule=(("x", "first"), ("x", "second"))))
    assert notes == ["first", "second"]


def test_set_done_may_be_called_by_each_event() -> None:
    """Only SIGINT is counted."""
    given = Given(x=lambda daemon, args: (daemon.set_done(), (1, args))[1])
    daemon_of(given, schedule=[("x",)] * 9).run()
    assert len(given.calls) == 9


@both()
def test_the_three_numbers_and_names_of_the_stop_are_the_same(library: Library) -> None:
    assert library.module.MAX_STOP_ATTEMPTS == MAX_STOP_ATTEMPTS == 3
    assert library.module.MAX_STOP_TIMEOUT == MAX_STOP_TIMEOUT == 30
    daemon = library.daemon()
    assert (daemon.FLAG_CONTINUE, daemon.FLAG_STOP) == (1, 0)


@both()
def test_the_signals_have_the_names_of_the_seed(library: Library) -> None:
    table = library.module.SIGNALS_TO_NAMES_DICT
    named = {int(number): name for number, name in re.findall(r"(\d+) (\w+)", SEED_SIGNALS)}
    assert {number: table[number] for number in named} == named
    assert table == SIGNALS_TO_NAMES_DICT


@both()
def test_the_example_of_statistics(library: Library) -> None:
    found = library.module.calc_statistics({"a": 10, "z": 0, "of": {"b": 4}}, {"a": 5}, 2)
    assert found["a"] == {"cnt": 10, "inc": 5, "spd": 2.5, "pct": 50.0}
    assert found["z"] == {"cnt": 0, "inc": 0, "spd": 0, "pct": 0}
    assert found["of"]["b"] == {"cnt": 4, "inc": 4, "spd": 2.0, "pct": 100.0}


COUNTERS = st.dictionaries(st.text(), st.integers(1, 10**9))


@needs_original
@given(COUNTERS, COUNTERS, st.floats(0.001, 1e6))
def test_statistics_of_counters_are_those_of_the_original(current: Any, before: Any, seconds: float) -> None:
    expected = original.calc_statistics(current, before, seconds)
    found = calc_statistics(current, before, seconds)
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        assert found[key] == pytest.approx(values)


@both()
def test_a_component_counts_and_says_what_has_come_since_the_last_time(library: Library) -> None:
    component = library.component({})
    component.inc_statistic("a")
    component.inc_statistic("a", 4)
    assert component.get_state() == {"statistics": {"a": 5}}
    assert component.get_statistics()["a"]["inc"] == 5
    component.inc_statistic("a", 2)
    found = component.get_statistics()["a"]
    assert (found["cnt"], found["inc"]) == (7, 2)
    assert found["spd"] > 0
    assert component.statistics_cur == component.statistics_prev == {"a": 7}


@both()
def test_a_line_of_statistics_is_worded_so(library: Library) -> None:
    text = library.component({}).pattern_stats.format("before", "cnt_some", 1234567, 12, 2.5)
    assert text == "before\n\tcnt_some                   1,234,567 (       +12,     2.50 #/s)"


@both()
def test_a_component_without_get_events_says_what_is_missing(library: Library) -> None:
    with pytest.raises(NotImplementedError):
        library.module.ZenDaemonComponent().get_events()


@both()
def test_exceptions_keep_their_description_and_parameters(library: Library) -> None:
    for name in ("ZenDaemonException", "ZenDaemonComponentException", "QueueEmptyException"):
        if hasattr(library.module, name):
            error = getattr(library.module, name)("what", size=3)
            assert str(error) == "'what'"
            assert error.description == "what"


@needs_original
def test_the_demo_component_of_the_original_runs_here_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    demo = original.DemoDaemonComponent()
    daemon = daemon_of(demo, schedule=(("start",),))
    monkeypatch.setattr(original.time, "sleep", lambda _: demo.statistics_cur["cnt_default"] < 3 or daemon.set_done())
    assert daemon.run() == 0
    daemon.emit("log_statistics")
    assert demo.statistics_cur == {"cnt_default": 4, "cnt_another": 20}
    assert re.search(r"cnt_another +20 \( +\+20,", caplog.text)
    assert json.loads(json.dumps(daemon.get_state()))["component_list"] == ["COMPONENT(DemoDaemonComponent)"]


def test_a_component_of_mentat_runs_here_as_it_is() -> None:
    commiter = pytest.importorskip("mentat.daemon.component.commiter", reason="mentat-ng is not installed")
    committed = Given(message_commit=None)
    daemon = daemon_of(commiter.CommiterDaemonComponent(), committed, schedule=(("message_process", {"id": "a.msg"}),))
    assert daemon.run() == 0
    assert committed.calls == [("message_commit", {"id": "a.msg"})]


# ---- emit and failures


def test_emit_answers_what_the_last_callback_did() -> None:
    daemon = daemon_of(Given(x=lambda _, args: (1, args + 1)), Given(x=lambda _, args: (0, args * 10)), Given(x=None))
    assert daemon.emit("x", 1) == (daemon.FLAG_STOP, 20)
    assert daemon.failures == 0


def test_a_failure_ends_the_chain_and_is_told_with_event_args_and_error() -> None:
    failures: list[tuple[str, object, Exception]] = []
    last, error = Given(x=None), RuntimeError("broken")
    daemon = daemon_of(Given(x=lambda _, args: (1, args + 1)), Given(x=error), last)
    daemon.on_failure = lambda *failure: failures.append(failure)
    assert daemon.emit("x", 1) == (daemon.FLAG_STOP, None)
    assert failures == [("x", 2, error)]
    assert last.calls == []
    assert daemon.failures == 1


def test_a_failure_is_logged_with_event_component_and_traceback(caplog: pytest.LogCaptureFixture) -> None:
    daemon = daemon_of(Given(x=None), Given(x=RuntimeError("broken")))
    daemon.emit("x")
    assert "event x failed in Given-2: RuntimeError('broken')" in caplog.text
    assert "Traceback" in caplog.text
    caplog.clear()
    daemon.on_failure = lambda *_: None
    daemon.emit("x")
    assert "Traceback" not in caplog.text, "who is told keeps it"


def test_an_error_that_has_no_text_is_a_failure_like_any_other(caplog: pytest.LogCaptureFixture) -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError

        __repr__ = __str__

    daemon = daemon_of(Given(x=Mute()))
    assert daemon.emit("x") == (daemon.FLAG_STOP, None)
    assert "event x failed in Given: <Mute>" in caplog.text


@pytest.mark.parametrize("answer", [(2, "x"), (1,), (1, 2, 3), "ok", 1, (None, {}), ("1", {})])
def test_a_callback_that_answers_something_else_has_failed(answer: object) -> None:
    failures: list[Exception] = []
    daemon = daemon_of(Given(x=answer))
    daemon.on_failure = lambda _event, _args, error: failures.append(error)
    assert daemon.emit("x") == (daemon.FLAG_STOP, None)
    assert isinstance(failures[0], ZenDaemonComponentException)
    assert "callback" in str(failures[0])


def test_an_answer_of_nothing_is_named_by_its_callback() -> None:
    failures: list[Exception] = []
    daemon = daemon_of(DemoDaemonComponent(), Given(x=lambda *_: None))
    daemon.on_failure = lambda _event, _args, error: failures.append(error)
    daemon.emit("x")
    assert "answered None" in str(failures[0])


def test_an_event_that_nobody_answers_is_a_failure_of_its_own() -> None:
    failures: list[Exception] = []
    daemon = daemon_of(schedule=(("nobody",),))
    daemon.on_failure = lambda _event, _args, error: failures.append(error)
    daemon.turn()
    assert isinstance(failures[0], ZenDaemonException)
    assert "nobody" in str(failures[0])


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), GeneratorExit()])
def test_what_is_no_exception_goes_through(error: BaseException) -> None:
    with pytest.raises(type(error)):
        daemon_of(Given(x=error)).emit("x")


@pytest.mark.parametrize(
    "entry", [{"event": "x"}, {"event": 3, "callback": print}, {"event": "x", "callback": "cbk"}, "x", None]
)
def test_a_list_of_events_that_is_none_is_refused_with_the_class(entry: Any) -> None:
    class Wrong(ZenDaemonComponent):
        def get_events(self) -> Any:
            return [entry]

    with pytest.raises(ZenDaemonComponentException, match="Wrong"):
        daemon_of(Wrong())


def test_an_entry_without_prepend_is_appended() -> None:
    """As components written for the seed have it."""

    class Plain(ZenDaemonComponent):
        def get_events(self) -> Any:
            return [{"event": "x", "callback": lambda daemon, args: (daemon.FLAG_CONTINUE, [*args, "plain"])}]

    assert daemon_of(Given(x=None), Plain()).emit("x", []) == (1, ["plain"])


# ---- turns and time


def test_a_turn_handles_what_was_there_and_no_more() -> None:
    """An event that schedules itself for ever."""
    given = Given(x=lambda daemon, args: (daemon.queue.schedule("x"), (1, args))[1])
    daemon = daemon_of(given, schedule=(("x",), ("x",)))
    daemon.turn()
    assert len(given.calls) == 2
    assert daemon.is_busy()


def test_a_turn_counts_what_waits_and_not_what_is_to_come(clock: Clock) -> None:
    given = Given(x=lambda daemon, args: (daemon.queue.schedule("x"), (1, args))[1])
    daemon = daemon_of(given, clock=clock, schedule=(("x",),), schedule_after=((5, "x"),) * 20)
    daemon.turn()
    assert len(given.calls) == 1


def test_a_turn_with_a_condition_goes_on_until_it_is_true_or_nothing_is_due(clock: Clock) -> None:
    given = Given(x=lambda daemon, args: (daemon.queue.schedule("x"), (1, args))[1], y=None)
    daemon = daemon_of(given, clock=clock, schedule=(("x",),))
    daemon.turn(lambda: len(given.calls) >= 7)
    assert len(given.calls) == 7
    daemon = daemon_of(given, clock=clock, schedule=(("y",),), schedule_after=((5, "y"),))
    daemon.turn(lambda: False)
    assert len(given.calls) == 8
    assert daemon.wait_s() == 5


def test_a_condition_that_is_true_already_costs_no_event() -> None:
    daemon = daemon_of(Given(x=None), schedule=(("x",),))
    daemon.turn(lambda: True)
    assert daemon.queue.count() == 1


def test_wait_s_is_nothing_for_a_line_and_for_ever_without_events(clock: Clock) -> None:
    daemon = daemon_of(Given(x=None), clock=clock)
    assert daemon.wait_s() == math.inf
    daemon.queue.schedule_after(3, "x")
    assert daemon.wait_s() == 3
    clock.now_s += 5
    assert daemon.wait_s() == 0
    daemon.queue.schedule("x")
    assert daemon.wait_s() == 0


def test_a_period_is_no_work_and_any_other_event_is(clock: Clock) -> None:
    daemon = daemon_of(Given(x=None), clock=clock, stats_interval_s=300.0)
    assert daemon.queue.count() == 1
    assert not daemon.is_busy()
    daemon.queue.schedule_after(1, "x")
    assert daemon.is_busy()
    clock.now_s += 1
    daemon.turn()
    assert not daemon.is_busy()
    clock.now_s += 300
    daemon.turn()
    assert not daemon.is_busy()


def test_a_period_keeps_its_args_and_ends_with_the_daemon(clock: Clock) -> None:
    given = Given(x=None)
    daemon = daemon_of(given, clock=clock)
    daemon.every(10, "x", {"a": 1})
    for _ in range(3):
        clock.now_s += 10
        daemon.turn()
    assert given.calls == [("x", {"a": 1})] * 3
    daemon.set_done()
    clock.now_s += 10
    daemon.turn()
    assert daemon.queue.count() == 0


@pytest.mark.parametrize("answer", [RuntimeError("broken"), (0, None)], ids=["raises", "ends the chain"])
def test_a_period_goes_on_when_a_callback_raises_or_ends_the_chain(clock: Clock, answer: Any) -> None:
    given = Given(prepend=True, log_statistics=answer)
    daemon = daemon_of(given, clock=clock, stats_interval_s=10.0)
    for _ in range(3):
        clock.now_s += 10
        daemon.turn()
    assert len(given.calls) == 3


@pytest.mark.parametrize("seconds", [0, -1, math.nan])
def test_a_period_of_no_time_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="period"):
        daemon_of().every(seconds, "x")


# ---- stopping


def test_stop_begins_no_new_turn_and_terminates_after_30_seconds(clock: Clock) -> None:
    given = Given(x=lambda daemon, args: (daemon.queue.schedule("x"), (1, args))[1], terminate=None)
    daemon = daemon_of(given, clock=clock, schedule=(("stop",), ("x",)))
    daemon.turn(lambda: len(given.calls) >= 5)
    assert daemon.is_done()
    assert not daemon.is_over()
    clock.now_s += MAX_STOP_TIMEOUT
    daemon.turn(lambda: False)
    assert daemon.is_over()
    assert given.calls[-1][0] == "terminate"
    daemon.turn(lambda: False)
    assert given.calls[-1][0] == "terminate", "nothing is handled after it"


def test_a_graceful_end_runs_the_event_stop_once(clock: Clock) -> None:
    for how in ("empty", "done", "event"):
        given = Given(stop=None, x=lambda daemon, args: (daemon.set_done(), (1, args))[1])
        schedule = {"empty": (), "done": (("x",),), "event": (("stop",),)}[how]
        assert daemon_of(given, clock=clock, schedule=schedule).run() == 0
        assert [event for event, _ in given.calls].count("stop") == 1, how


def test_the_end_of_a_stop_is_scheduled_once_and_is_no_work_that_is_left(clock: Clock) -> None:
    daemon = daemon_of(clock=clock)
    for _ in range(2):
        daemon.emit("stop")
    assert [event for _, event, _ in daemon.queue.timers()] == ["terminate"]
    assert not daemon.is_busy()
    assert not daemon.has_to_finish()
    clock.now_s += MAX_STOP_TIMEOUT
    daemon.turn()
    assert not daemon.is_busy()


def test_an_interrupt_in_the_last_moment_is_a_graceful_stop_too() -> None:
    """It comes when the loop has just found nothing to handle."""

    class Queue(EventQueueManager):
        def count(self) -> int:
            count = super().count()
            if not count:
                os.kill(os.getpid(), signal.SIGINT)
            return count

    given = Given(stop=None)
    assert daemon_of(given, queue=Queue()).run() == 0
    assert given.calls == [("stop", None)]


def test_a_stop_does_not_wait_for_what_could_not_be_handled_in_its_time(clock: Clock) -> None:
    """With the clock standing still it would wait for ever."""
    given = Given(x=None)
    daemon = daemon_of(given, clock=clock, schedule=(("stop",),), schedule_after=((MAX_STOP_TIMEOUT + 1, "x"),))
    assert daemon.run() == 0
    assert given.calls == []


def test_a_period_holds_no_stop_up(clock: Clock) -> None:
    daemon = daemon_of(clock=clock, stats_interval_s=5.0, schedule=(("stop",),))
    assert daemon.run() == 0


def test_a_run_with_a_failure_answers_1() -> None:
    assert daemon_of(Given(x=RuntimeError("broken")), schedule=(("x",),)).run() == 1


def test_run_gives_back_handlers_and_wakeup_descriptor() -> None:
    def handlers() -> list[Any]:
        return [signal.getsignal(number) for number in components._SIGNALS]

    before = handlers()
    daemon_of(schedule=(("start",),)).run()
    assert handlers() == before
    with pytest.raises(SystemExit):
        daemon_of(Given(x=SystemExit(3)), schedule=(("x",),)).run()
    assert handlers() == before
    descriptor = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(descriptor)
    assert descriptor == -1


# ---- setting up, and what components are offered


def test_components_are_set_up_once_in_their_order_all_before_the_first_dump() -> None:
    calls: list[str] = []

    class Noting(Given):
        def setup(self, daemon: Daemon) -> None:
            calls.append("setup")

        def setup_dump(self, daemon: Daemon) -> None:
            calls.append("dump")

    daemon = daemon_of(Noting(), Noting())
    daemon.setup()
    daemon.setup()
    assert calls == ["setup", "setup", "dump", "dump"]


def test_what_setup_raises_is_told_to_who_runs_it() -> None:
    class Failing(Given):
        def setup(self, daemon: Daemon) -> None:
            raise ZenDaemonComponentException("no such file")

    with pytest.raises(ZenDaemonComponentException, match="no such file"):
        daemon_of(Failing()).run()


def test_whatever_has_events_is_a_component(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """Of the rest it may have what it likes: here nothing, and here counters."""

    class Bare:
        def get_events(self) -> Any:
            return [{"event": "x", "callback": lambda daemon, args: (daemon.FLAG_CONTINUE, args), "prepend": False}]

    class Counting(Bare):
        statistics_cur = {"cnt_some": 3}  # noqa: RUF012 - as somebody may write it

        def get_statistics(self) -> Any:
            return {"cnt_some": {"cnt": 3, "inc": 3, "spd": 1.5, "pct": 100.0}}

    caplog.set_level("INFO")
    daemon = daemon_of(Bare(), Counting(), clock=clock, schedule=(("x",), ("log_statistics",)))  # type: ignore[arg-type] # that is the point
    daemon.setup()
    daemon.turn()
    assert daemon.failures == 0
    assert daemon.get_state()["components"] == {"Bare": {}, "Counting": {}}
    assert "cnt_some" in caplog.text


def test_a_daemon_can_be_asked_as_components_of_the_kind_it_is_modelled_on_ask(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG")
    daemon = daemon_of(config={"one": 1}, core={"filequeue": {"dir_queue": "/q"}})
    daemon.dbgout("looked at %s")
    assert caplog.messages == ["looked at %s"]
    assert daemon.config == {"one": 1}
    assert daemon.cc(daemon.CORE_FILEQUEUE) == {"dir_queue": "/q"}


def test_options_are_answered_with_their_defaults() -> None:
    daemon = daemon_of(config={"a": 1}, core={"b": 2})
    assert (daemon.c("a"), daemon.c("b"), daemon.c("b", 3)) == (1, None, 3)
    assert (daemon.cc("a"), daemon.cc("b"), daemon.cc("a", 3)) == (None, 2, 3)


def test_the_demo_works_until_it_is_told_to_stop(clock: Clock) -> None:
    demo = DemoDaemonComponent(interval_s=2)
    daemon = daemon_of(demo, clock=clock, schedule=(("start",),))
    for _ in range(4):
        daemon.turn(lambda: False)
        clock.now_s += 2
    assert demo.statistics_cur == {"cnt_default": 4, "cnt_another": 20}
    assert daemon.is_busy()
    daemon.set_done()
    daemon.turn()
    assert not daemon.is_busy()


def test_the_printer_logs_a_message_and_commits_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    printer, committed = DemoPrintComponent(), Given(message_commit=None)
    args = {"id": "a.msg", "data": "hello\n"}
    daemon = daemon_of(printer, committed, schedule=(("message_process", args),))
    daemon.turn(lambda: False)
    assert committed.calls == [("message_commit", args)]
    assert "hello" in caplog.text
    assert printer.statistics_cur == {"cnt_printed": 1}


# ---- statistics and state


def test_rates_are_logged_of_each_component_that_does_not_do_so_itself(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    own = Given(log_statistics=lambda daemon, args: (1, args))
    plain, nested, quiet = Other(x=None), Other(x=None), Other(x=None)
    for component in (own, plain, nested):
        component.clock = clock  # type: ignore[method-assign] # a clock moved by hand
        component.statistics_ts = clock()
    daemon = daemon_of(own, plain, nested, quiet, clock=clock, stats_interval_s=10.0)
    own.inc_statistic("cnt_own")
    plain.inc_statistic("cnt_plain", 25)
    nested.statistics_cur["of"] = {"cnt": 5, "other": 1}
    clock.now_s += 10
    daemon.turn()
    lines = [record.getMessage() for record in caplog.records if "statistics of" in record.getMessage()]
    assert [line.split()[2:4] for line in lines] == [
        ["Other:", "cnt_plain"],
        ["Other-2:", "of.cnt"],
        ["Other-2:", "of.other"],
    ]
    assert "2.50 #/s" in lines[0]
    assert own.get_statistics()["cnt_own"]["inc"] == 1, "its own interval is left alone"


def test_the_state_says_all_and_json_can_say_it(clock: Clock) -> None:
    class Odd(Given):
        def get_state(self) -> Any:
            raise RuntimeError("no state")

    first, second = Given(x=None), Given(x=None)
    first.inc_statistic("cnt", 2)
    args: dict[str, Any] = {"component": first, "callback": first.inc_statistic, "bytes": b"\xff", "nan": math.nan}
    args["itself"] = args
    daemon = daemon_of(first, second, Odd(), clock=clock, name="site", schedule=(("x", args),), stats_interval_s=20.0)
    daemon.queue.schedule_after(7, "x", {"set": {1}})
    state = json.loads(json.dumps(daemon.get_state(), allow_nan=False))
    assert state["name"] == "site"
    assert state["time"] > 1e9
    assert state["component_list"] == ["COMPONENT(Given)", "COMPONENT(Given)", "COMPONENT(Odd)"]
    assert state["components"]["Given"] == {"statistics": {"cnt": 2}}
    assert state["components"]["Given-2"] == {"statistics": {}}
    assert "no state" in state["components"]["Odd"]["error"]
    assert "CALLBACK(Daemon:cbk_event_start)" in state["callbacks"]["start"]
    waiting = state["events"][0]["args"]
    assert waiting["callback"] == "CALLBACK(Given:inc_statistic)"
    assert waiting["itself"] == "..."
    assert waiting["nan"] == "nan"
    assert state["timers"] == [
        {"event": "x", "in_s": 7, "args": {"set": [1]}},
        {"event": "log_statistics", "in_s": 20, "args": None},
    ]


JSON_LIKE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.complex_numbers(),
    lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.integers() | st.text() | st.none(), inner),
    max_leaves=20,
)


@given(JSON_LIKE)
def test_whatever_a_state_holds_json_can_say(value: object) -> None:
    json.loads(json.dumps(said(value), allow_nan=False))


def test_what_is_hostile_in_a_state_is_said_all_the_same() -> None:
    class Hostile:
        def __repr__(self) -> str:
            raise RuntimeError

        def __getattr__(self, name: str) -> object:
            raise RuntimeError

    class HostileMapping(dict[str, object]):
        def items(self) -> Any:
            raise RuntimeError

    deep: list[object] = []
    for _ in range(10 * DEPTH_MAX):
        deep = [deep]
    for value in (Hostile(), HostileMapping(), deep, {Hostile(): 1}, "x" * 10**6, 10**5000, "\udc80", {1: 2, "1": 3}):
        text = json.dumps(said(value), allow_nan=False)
        assert len(text) < 2 * TEXT_SIZE_MAX
