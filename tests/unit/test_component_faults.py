"""
test_component_faults - the faults Z1 to Z23 of the original's event loop and components, each shown there and not here

The body of a test is run on both daemons (see zendaemon_twins): on the original it fails, strictly, with the reason
that stands beside it. Those that need a process of their own (the rest of Z6, Z10 and Z19) are in
tests/process/test_component_daemons; Z2, Z3 and Z11 to Z18 are the daemon's around it, not the components'.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.zendaemon_twins import Library, OriginalFailed, both, library_of, twins
from workers.components import Daemon
from workers.events import EventQueueManager

# run() has a handler of its own for SIGALRM, which would be the timeout's else.
pytestmark = pytest.mark.timeout(120, method="thread")

HOUR_S = 3600


@pytest.fixture(name="library")
def _library(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Library:
    return library_of(request.param, tmp_path, monkeypatch)


def signals_itself(number: signal.Signals) -> Any:
    """A callback during which the process is sent a signal."""

    def callback(daemon: Any, args: Any) -> Any:
        os.kill(os.getpid(), number)
        return daemon.FLAG_CONTINUE, args

    return callback


def noting(notes: list[Any], word: Any) -> Any:
    """A callback that leaves *word*."""

    def callback(daemon: Any, args: Any) -> Any:
        notes.append(word)
        return daemon.FLAG_CONTINUE, args

    return callback


@twins("it schedules an event for SIGUSR1 that nobody answers, and ends", raises=OriginalFailed)
def test_Z1_sigusr1_does_not_end_the_daemon(library: Library) -> None:
    notes: list[str] = []
    component = library.component({"start": signals_itself(signal.SIGUSR1), "after": noting(notes, "after")})
    library.run(library.daemon(component, schedule=(("start",), ("after",))))
    assert notes == ["after"]


@twins("it compares the args", raises=TypeError)
def test_Z4_two_events_of_one_time_and_name_may_have_any_args(library: Library) -> None:
    queue = library.queue()
    for number in range(3):
        queue.schedule_at(1.0, "same", {"number": number})
    assert [queue.next()[1]["number"] for _ in range(3)] == [0, 1, 2]


@twins("it looks into the empty heap", raises=IndexError)
@pytest.mark.parametrize("method", ["when", "wait"])
def test_Z5_an_empty_queue_says_so(library: Library, method: str) -> None:
    with pytest.raises(library.empty):
        getattr(library.queue(), method)()


@twins("it waits for whole seconds")
def test_Z6_a_wait_of_a_quarter_second_is_not_one_of_a_second(library: Library) -> None:
    waits: list[float] = []

    def hook(seconds: float) -> None:
        waits.append(seconds)
        os.kill(os.getpid(), signal.SIGTERM)

    library.waits(hook)
    library.run(library.daemon(library.component({"x": noting([], "x")}), schedule=(), schedule_after=((0.25, "x"),)))
    assert waits
    assert waits[0] <= 0.25


@twins("it looks for events, then sleeps whatever has come in between")
def test_Z6_a_signal_just_before_the_sleep_ends_it(library: Library) -> None:
    notes: list[str] = []
    library.waits(lambda _: os.kill(os.getpid(), signal.SIGHUP))

    def ended(daemon: Any, args: Any) -> Any:
        notes.append("hup")
        daemon.set_done()
        return daemon.FLAG_CONTINUE, args

    component = library.component({"signal_hup": ended, "x": noting([], "x")})
    library.run(library.daemon(component, schedule=(), schedule_after=((HOUR_S, "x"),)))
    assert notes == ["hup"]


@twins("its timers go by the wall clock")
@pytest.mark.parametrize("step_s", [-24 * HOUR_S, 24 * HOUR_S])
def test_Z7_a_step_of_the_wall_clock_moves_no_timer(library: Library, step_s: int) -> None:
    queue = library.queue()
    queue.schedule_after(60, "timer")
    library.step_wall_clock(step_s)
    assert 0 < queue.wait() <= 60


@twins("its rates go by the wall clock")
def test_Z7_a_step_of_the_wall_clock_gives_no_negative_rate(library: Library) -> None:
    component = library.component({})
    component.inc_statistic("cnt", 3)
    library.step_wall_clock(-HOUR_S)
    assert component.get_statistics()["cnt"]["spd"] > 0


@twins("it divides by the time that has passed", raises=ZeroDivisionError)
def test_Z8_no_time_has_passed(library: Library) -> None:
    found = library.module.calc_statistics({"a": 3}, {"a": 1}, 0)
    assert found == {"a": {"cnt": 3, "inc": 2, "spd": 0.0, "pct": pytest.approx(200 / 3)}}


@twins("it compares what is no number with 0", raises=TypeError)
@pytest.mark.parametrize("value", ["text", None, [1]])
def test_Z8_what_is_no_number_is_left_out(library: Library, value: object) -> None:
    assert set(library.module.calc_statistics({"a": 1, "b": value}, {"b": value}, 2.0)) == {"a"}


@twins("it says that what is not above 0 has not changed")
def test_Z8_a_value_that_falls_to_zero_has_decreased(library: Library) -> None:
    assert library.module.calc_statistics({"a": 0}, {"a": 10}, 2.0)["a"]["inc"] == -10


@twins("it keeps a shallow copy, in which nested counters go on")
def test_Z9_a_nested_counter_increases(library: Library) -> None:
    component = library.component({})
    component.statistics_cur["of"] = {"site": 1}
    component.get_statistics()
    component.statistics_cur["of"]["site"] += 2
    assert component.get_statistics()["of"]["site"]["inc"] == 2


@twins("it raises into whatever runs")
def test_Z10_sigterm_cuts_no_callback_in_two(library: Library) -> None:
    halves: list[str] = []

    def callback(daemon: Any, args: Any) -> Any:
        halves.append("first")
        os.kill(os.getpid(), signal.SIGTERM)
        halves.append("second")
        return daemon.FLAG_CONTINUE, args

    component = library.component({"start": callback, "after": noting(halves, "the event after it")})
    library.run(library.daemon(component, schedule=(("start",), ("after",))))
    assert halves == ["first", "second"]


@twins("it does not wait for timed events")
def test_Z19_a_graceful_stop_handles_what_is_due_soon(library: Library) -> None:
    """A delayed commit, say."""
    notes: list[str] = []
    component = library.component({"start": signals_itself(signal.SIGINT), "commit": noting(notes, "commit")})
    library.run(library.daemon(component, schedule_after=((0.02, "commit"),)))
    assert notes == ["commit"]


@twins("one failing callback ends it", raises=RuntimeError)
def test_Z21_a_failing_callback_does_not_end_the_daemon(library: Library) -> None:
    notes: list[str] = []

    def failing(daemon: Any, args: Any) -> Any:
        raise RuntimeError("this component is broken")

    component = library.component({"start": failing, "after": noting(notes, "after")})
    library.run(library.daemon(component, schedule=(("start",), ("after",))))
    assert notes == ["after"]


@both()
def test_Z23_the_original_of_today_handles_what_becomes_due_meanwhile(library: Library) -> None:
    """It was so up to 0.54."""
    notes: list[str] = []
    component = library.component({"soon": noting(notes, "soon")})
    library.run(library.daemon(component, schedule=(), schedule_after=((0.001, "soon"),)))
    assert notes == ["soon"]


def test_Z23_an_event_that_becomes_due_between_two_looks_is_handled() -> None:
    """The clock moves whenever it is looked at, so that each look may be the one in between."""
    for step_s in (0.1, 0.3, 0.5, 1.0):
        now_s = 0.0

        def clock(step_s: float = step_s) -> float:
            nonlocal now_s
            now_s += step_s
            return now_s

        notes: list[str] = []
        library = Library(Path(), pytest.MonkeyPatch())
        daemon = Daemon(
            [library.component({"soon": noting(notes, "soon")})],
            stats_interval_s=0,
            schedule=(),
            schedule_after=((1.0, "soon"),),
            queue=EventQueueManager(clock, clock),
        )
        assert daemon.run() == 0
        assert notes == ["soon"], step_s
