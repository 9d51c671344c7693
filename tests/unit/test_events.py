"""EventQueueManager: the order of events, and the faults Z4 and Z5 of the kind it is modelled on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.events import EventQueueManager, QueueEmptyException, about


@dataclass
class Clock:
    now_s: float

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture(name="wall")
def _wall() -> Clock:
    return Clock(1_700_000_000.0)


@pytest.fixture(name="monotonic")
def _monotonic() -> Clock:
    return Clock(5000.0)


@pytest.fixture(name="events")
def _events(wall: Clock, monotonic: Clock) -> EventQueueManager:
    return EventQueueManager(wall, monotonic)


def drained(events: EventQueueManager) -> list[str | None]:
    return [events.next()[0] for _ in range(events.count())]


def test_overdue_events_come_first_then_the_line_with_next_in_front(events):
    """The order observed of the original."""
    events.schedule("a")
    events.schedule("b")
    events.schedule_next("c")
    events.schedule_at(0, "d")
    events.schedule_after(-1, "e")
    assert drained(events) == ["d", "e", "c", "a", "b"]


def test_the_order_is_the_same_on_the_real_clocks():
    events = EventQueueManager()
    events.schedule("a")
    events.schedule("b")
    events.schedule_next("c")
    events.schedule_at(0, "d")
    events.schedule_after(-1, "e")
    assert drained(events) == ["d", "e", "c", "a", "b"]


def test_of_several_scheduled_next_the_last_comes_first(events):
    for name in "abc":
        events.schedule_next(name)
    assert drained(events) == ["c", "b", "a"]


def test_args_are_handed_through_untouched(events):
    args = {"key": 1}
    events.schedule("a", args)
    assert events.next()[1] is args
    events.schedule_after(0, "a", args)
    assert events.next()[1] is args


@pytest.mark.parametrize("clock", ["wall", "monotonic", "both"])
def test_Z4_events_of_equal_time_and_name_come_in_the_order_they_were_scheduled(events, wall, clock):
    for number in range(20):
        if clock == "wall" or (clock == "both" and number % 2):
            events.schedule_at(wall.now_s + 5, "same", {"number": number})
        else:
            events.schedule_after(5, "same", {"number": number})
    wall.now_s += 5
    events._monotonic.clock.now_s += 5
    assert [events.next()[1]["number"] for _ in range(20)] == list(range(20))


@pytest.mark.parametrize("method", ["when", "wait", "next"])
def test_Z5_an_empty_queue_raises_its_own_exception(events, method):
    with pytest.raises(QueueEmptyException) as caught:
        getattr(events, method)()
    assert str(caught.value) == "'Event queue is empty'"


def test_the_exception_keeps_its_parameters():
    error = QueueEmptyException("nothing", size=3)
    assert str(error) == "'nothing'"
    assert error.size == 3


def test_next_says_none_while_all_events_lie_in_the_future(events):
    events.schedule_after(1, "later")
    assert events.next() == (None, None)
    assert events.count() == 1


def test_when_is_a_wall_clock_time_for_both_clocks(events, wall):
    events.schedule_after(10, "later")
    assert events.when() == wall.now_s + 10
    events.schedule_at(wall.now_s + 3, "sooner")
    assert events.when() == wall.now_s + 3
    events.schedule("now")
    assert events.when() == wall.now_s


def test_wait_is_zero_with_a_line_and_negative_when_overdue(events, wall):
    events.schedule_at(wall.now_s - 7, "late")
    assert events.wait() == -7
    events.schedule("now")
    assert events.wait() == 0


@pytest.mark.parametrize("step_s", [-86400, 86400])
def test_a_step_of_the_wall_clock_moves_no_timer(events, wall, monotonic, step_s):
    events.schedule_after(2, "timer")
    wall.now_s += step_s
    assert events.wait() == 2
    assert events.next() == (None, None)
    monotonic.now_s += 2
    assert events.next() == ("timer", None)


def test_a_time_that_is_no_number_is_refused(events):
    with pytest.raises(ValueError, match="not a number"):
        events.schedule_at(math.nan, "never")
    assert events.count() == 0


@given(
    st.lists(
        st.tuples(st.sampled_from(["schedule", "schedule_next", "schedule_at", "schedule_after"]), st.integers(-9, 9))
    )
)
def test_every_order_is_that_of_a_sorted_list(calls):
    """Against a model: timed events by time and arrival while due, then the line."""
    clock = Clock(1000.0)
    events = EventQueueManager(clock, clock)
    line: list[str] = []
    timed: list[tuple[int, int, str]] = []
    for serial, (method, offset_s) in enumerate(calls):
        name = str(serial)
        if method == "schedule":
            events.schedule(name)
            line.append(name)
        elif method == "schedule_next":
            events.schedule_next(name)
            line.insert(0, name)
        else:
            timed.append((offset_s, serial, name))
            getattr(events, method)(offset_s + (1000.0 if method == "schedule_at" else 0.0), name)
    due = [name for offset_s, _, name in sorted(timed) if offset_s <= 0]
    later = [name for offset_s, _, name in sorted(timed) if offset_s > 0]
    assert events.count() == len(calls)
    assert [events.next()[0] for _ in range(len(due) + len(line))] == due + line
    clock.now_s += 9
    assert drained(events) == later


def test_what_is_scheduled_can_be_looked_at_in_the_order_in_which_it_comes(events, wall, monotonic):
    events.schedule("b", 1)
    events.schedule_next("a", 2)
    events.schedule_at(wall.now_s + 5, "timed", {"first": 1})
    events.schedule_after(5, "timed", {"second": 2})
    events.schedule_after(-1, "late")
    assert events.waiting() == [("a", 2), ("b", 1)]
    assert events.timers() == [(-1, "late", None), (5, "timed", {"first": 1}), (5, "timed", {"second": 2})]
    assert events.count() == 5


def test_what_is_forgotten_does_not_come_and_the_others_come_in_their_order(events, wall, monotonic):
    for number in range(4):
        args = {"id": "ab"[number in (1, 2)], "number": number}
        events.schedule("line", args)
        events.schedule_at(wall.now_s + 9 - number, "wall", args)
        events.schedule_after(9 - number, "monotonic", args)
    assert events.forget("b") == 6
    assert events.forget("b") == 0
    monotonic.now_s += 9
    wall.now_s += 9
    assert [events.next()[1]["number"] for _ in range(events.count())] == [3, 3, 0, 0, 0, 3]


def test_timers_are_forgotten_by_what_they_were_about_and_the_line_stays(events, monotonic):
    events.schedule("line", {"id": "a"})
    for delay_s in (1, 2, 3):
        events.schedule_after(delay_s, "timer", {"id": "a"})
    monotonic.now_s += 2
    assert events.next()[0] == "timer"  # the next one is due, too
    events.forget_timers("a")
    assert [event for event, _ in events.waiting()] == ["line"]
    assert events.timers() == []
    events.schedule_after(1, "timer", {"id": "a"})
    events.forget_timers("a")
    assert events.timers() == []


def test_nothing_is_known_of_timers_that_have_come(events, monotonic):
    for subject in "aab":
        events.schedule_after(1, "timer", {"id": subject})
    monotonic.now_s += 1
    drained(events)
    assert not events._abouts


def test_what_cannot_be_compared_can_be_scheduled_and_is_about_nothing(events):
    class Never(str):
        def __eq__(self, other: object) -> bool:
            raise AssertionError(other)

        __hash__ = None  # type: ignore[assignment]

    for found in (Never("a"), 7, None, b"a", ["a"]):
        assert about({"id": found}) is None
        events.schedule_after(1, "timer", {"id": found})
        events.schedule("line", {"id": found})
    assert about("a") is about(None) is about({}) is None
    assert events.forget("a") == 0


# ---- the end of the line


def test_the_last_ones_come_when_the_line_is_empty_and_all_that_it_led_to_was_handled(events):
    events.schedule_last("last")
    events.schedule("a")
    events.schedule_after(5, "timer")
    assert events.next() == ("a", None)
    events.schedule("b")
    assert events.next() == ("b", None)
    assert events.wait() == 0
    assert events.next() == ("last", None)
    assert events.next() == (None, None)


def test_what_is_put_off_comes_again_in_its_order_and_before_the_last_ones(events):
    events.schedule_last("last")
    for event in "abc":
        events.schedule(event)
    events.put_off(*events.next())
    events.put_off(*events.next())
    assert events.next() == ("c", None)
    assert events.next() == (None, None)
    assert events.wait() == math.inf
    assert events.count() == 3
    assert not events.has_line()
    events.schedule("d")
    events.take_up()
    assert drained(events) == ["a", "b", "d", "last"]


def test_what_is_due_again_and_again_starves_neither_the_line_nor_another_timer(events, wall):
    """Each time it is handled it is scheduled again, for now or for a time long ago."""
    for again in (lambda: events.schedule_after(0, "again"), lambda: events.schedule_at(0, "again")):
        again()
        for event in "ab":
            events.schedule(event)
        seen = []
        for turn in range(8):
            if turn == 1:
                events.schedule_at(wall.now_s - 5, "late")
            event, _ = events.next()
            seen.append(event)
            if event == "again":
                again()
        assert [event for event in seen if event != "again"][:3] == ["a", "late", "b"], seen
        while events.count():
            events.next()


def test_what_waits_and_what_is_due_is_counted_and_what_is_to_come_is_not(events):
    events.schedule("line")
    events.schedule_last("last")
    for delay_s in (-1, 0, 1, 2):
        events.schedule_after(delay_s, "timer")
    assert events.count_ready() == 4
    assert events.count() == 6
    events.put_off("line")
    assert events.count_ready() == 3


def test_an_event_has_the_cause_of_the_one_that_scheduled_it(events):
    events.cause = "first"
    for schedule in (events.schedule, events.schedule_next, events.schedule_last, events.put_off):
        schedule("event")
    events.schedule_after(0, "event")
    events.schedule_at(0, "event")
    events.take_up()
    events.cause = None
    events.schedule("other")
    causes = []
    for _ in range(events.count()):
        event, _ = events.next()
        causes.append(events.cause)
        assert events.cause == ("first" if event == "event" else None)
    assert causes.count("first") == 6
