"""The messages of a queue as events for components, on every protocol."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.contract.test_contract import OPENERS, Opened
from tests.rig import SETTINGS, Rig, World
from workers.board import W, WorkerState
from workers.components import Daemon, ZenDaemonComponent
from workers.errors import HandlerError, QueueFull, QueueUnavailable
from workers.events import EventQueueManager
from workers.handler import CANCELLED, EventDriven, Services, call
from workers.message import Claim, Done, Forward, Message, Reject
from workers.piper import EVENTS, NOT_SETTLED, Commiter, Filer, Piper, bytes_of, component_of, text_of
from workers.queues.base import Queue
from workers.queues.null import Null
from workers.waiting import Leaving
from workers.worker import OUTCOME_WORDS, Worker

ODD = b"caf\xe9 \xff\x00\r\nsecond\rthird\n\xf0\x9f\x98\x80 \xed\xa0\x80"  # no UTF-8, every line end, a lone surrogate
KINDS = sorted(set(OPENERS) - {"null"})

Callback = Callable[["Scripted", Daemon, Any], object]


class Scripted(ZenDaemonComponent):
    """Answers events as *callbacks* say; what they answer but None is the callback's answer."""

    def __init__(self, **callbacks: Callback) -> None:
        super().__init__()
        self.callbacks = callbacks
        self.seen: list[tuple[str, Any]] = []

    def get_events(self) -> Sequence[Mapping[str, object]]:
        return [self.gen_event_handler(event, self._callback(event)) for event in self.callbacks]

    def _callback(self, event: str) -> Callable[[Daemon, object], object]:
        def callback(daemon: Daemon, args: object) -> object:
            self.seen.append((event, args))
            answer = self.callbacks[event](self, daemon, args)
            return (daemon.FLAG_CONTINUE, args) if answer is None else answer

        return callback

    def args(self, event: str) -> list[Any]:
        return [args for name, args in self.seen if name == event]


def then(*events: tuple[str, dict[str, object]]) -> Callback:
    """Schedules *events*, each with the id of the message."""

    def callback(_: Scripted, daemon: Daemon, args: Any) -> None:
        for event, more in events:
            daemon.queue.schedule(event, {"id": args["id"], **more})

    return callback


def stumbled(*_: object) -> None:
    raise LookupError("no such customer")


class Clock:
    """Monotonic and wall clock of an event queue; a wait moves it."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


@dataclass
class Alone:
    """A Piper without a queue around it; *queues* are what it may forward to."""

    components: Sequence[ZenDaemonComponent]
    output: str = ""
    options: dict[str, object] = field(default_factory=dict)
    event_map: dict[str, str] = field(default_factory=dict)
    queue: Queue = field(default_factory=Null)
    queues: dict[str, Queue] = field(default_factory=dict)
    clock: Clock = field(default_factory=Clock)
    is_leaving: bool = False
    is_hurried: bool = False

    def __post_init__(self) -> None:
        self.piper = Piper(
            self.components, options=self.options, event_map=self.event_map,
            queue=EventQueueManager(self.clock, self.clock), stats_interval_s=0,
        )  # fmt: skip
        self.piper.open(
            Services(
                self.queue, self.queues.__getitem__, self.output, 0, lambda: False, self.clock.sleep,
                lambda: self.is_leaving, lambda: self.is_hurried,
            )
        )  # fmt: skip

    def message(self, body: bytes, name: str = "m1", attempt: int = 1) -> Message:
        found = Message(Claim(name, "/nowhere", attempt), "spool:/queue")
        found._body = body
        return found

    def handle(self, body: bytes, name: str = "m1", attempt: int = 1) -> Any:
        return call(self.piper, self.message(body, name, attempt))

    @property
    def counters(self) -> dict[str, object]:
        return {key: count for key, count in self.piper.filer.statistics_cur.items() if count}


def test_a_piper_is_driven_by_events_and_a_function_is_not():
    assert isinstance(Piper([]), EventDriven)
    assert not isinstance(lambda _: None, EventDriven)


# ---- one message


@pytest.mark.parametrize("body", [b"text\n", ODD, b"\r\n x \r", "größe".encode()], ids=repr)
def test_data_is_the_message_byte_for_byte(body):
    """M10: what str() and newline translation changed on the way."""
    component = Scripted(message_process=lambda *_: None)
    alone = Alone([component, Commiter()])
    assert alone.handle(body).outcome == Done()
    (args,) = component.args("message_process")
    assert args["id"] == "m1"
    assert bytes_of(args["data"]) == args["message"].body == body
    assert isinstance(args["data"], str)
    assert text_of(body) == args["data"]


@pytest.mark.parametrize(
    ("event", "more", "output", "expected", "counter"),
    [
        ("message_commit", {}, "", Done(), "cnt_committed"),
        ("message_commit", {}, "next", Done(), "cnt_committed"),
        ("message_cancel", {}, "next", CANCELLED, "cnt_canceled"),
        ("message_banish", {"reason": "no customer"}, "", Reject("no customer"), "cnt_banished"),
        ("message_banish", {}, "", Reject("banished by a component"), "cnt_banished"),
        ("message_dispatch", {"queue_tgt": "side"}, "next", Forward(None, "side"), "cnt_dispatched"),
    ],
)
def test_each_event_settles_as_it_says_and_is_counted(event, more, output, expected, counter):
    alone = Alone([Scripted(message_process=then((event, more)))], output=output, queues={"side": Null()})
    found = alone.handle(b"x").outcome
    assert found == expected
    assert (found is CANCELLED) == (event == "message_cancel")
    assert alone.counters == {"cnt_fetched": 1, counter: 1}


@pytest.mark.parametrize(
    ("settling", "expected"),
    [
        (("message_commit", {}), Forward(b"new\xff", "next")),
        (("message_dispatch", {"queue_tgt": "side"}), Forward(b"new\xff", "side")),
    ],
)
@pytest.mark.parametrize("data", [b"new\xff", "new\udcff"])
def test_an_updated_message_is_handed_on_with_its_new_content(settling, expected, data):
    component = Scripted(message_process=then(("message_update", {"data": data}), settling))
    alone = Alone([component], output="next", queues={"side": Null()})
    assert alone.handle(b"old").outcome == expected
    assert alone.counters["cnt_updated"] == 1


def test_the_next_attempt_begins_with_what_was_put():
    """An update lives in memory: nothing of it outlasts the attempt."""
    component = Scripted(message_process=then(("message_update", {"data": "half"})))
    alone = Alone([component], output="next")
    assert alone.handle(b"whole").outcome is None
    component.callbacks["message_process"] = then(("message_commit", {}))
    assert alone.handle(b"whole", attempt=2).outcome == Done()


@pytest.mark.parametrize(("body", "reason"), [(b"", "it is empty"), (b" \r\n\t ", "it holds only blanks")])
def test_an_empty_message_goes_to_errors_and_the_reason_says_so(body, reason):
    """M19."""
    alone = Alone([Commiter()])
    assert alone.handle(body).outcome == Reject(reason)


def test_a_message_that_nobody_settles_has_failed():
    for components in ([], [Scripted(message_process=lambda *_: None)]):
        called = Alone(components).handle(b"x")
        assert called.outcome is None
        assert called.summary == NOT_SETTLED


def test_a_callback_that_raises_ends_the_attempt_with_its_own_traceback():
    def stumble(_: Scripted, __: Daemon, args: Any) -> None:
        raise LookupError(f"no such customer in {args['id']}")

    called = Alone([Scripted(message_process=stumble), Commiter()]).handle(b"x")
    assert called.outcome is None
    assert called.summary == "LookupError: no such customer in m1"
    assert "in stumble" in called.failure


def test_a_callback_that_raises_over_something_else_ends_no_message():
    def stumble(*_: object) -> None:
        raise LookupError("other")

    component = Scripted(
        message_process=then(("other", {"id": "m0"}), ("message_commit", {})), other=stumble,
    )  # fmt: skip
    assert Alone([component]).handle(b"x").outcome == Done()
    assert component.args("other") == [{"id": "m0"}]


@pytest.mark.parametrize("args", [{"host": "db1"}, {"id": "another"}, {"id": 7}, None, "text"])
def test_what_fails_beside_a_message_does_not_end_it(args, caplog):
    """A period that has nothing to do with it fails while a delayed commit is waited for."""
    delayed = Scripted(message_process=lambda _, daemon, given: daemon.queue.schedule_after(5, "message_commit", given))
    other = Scripted(start=lambda _, daemon, __: daemon.every(1, "look", args), look=stumbled)
    alone = Alone([delayed, other])
    assert alone.handle(b"x").outcome == Done()
    assert alone.piper.daemon.failures >= 4
    assert "in stumbled" in caplog.text


def test_a_message_that_nobody_settles_names_what_failed_meanwhile():
    class Elsewhere(Scripted):
        """Its event is not about the message, and yet it was what would have settled it."""

    there = Elsewhere(start=lambda _, daemon, __: daemon.queue.schedule_after(2, "answer"), answer=stumbled)
    assert Alone([there, Scripted(message_process=lambda *_: None)]).handle(b"x").summary == (
        f"{NOT_SETTLED}; failed meanwhile: answer"
    )


@pytest.mark.parametrize("args", [None, {}, {"id": "m1"}])
def test_what_fails_in_consequence_of_a_message_ends_its_attempt(args):
    component = Scripted(
        message_process=lambda _, daemon, __: daemon.queue.schedule("parse"),
        parse=lambda _, daemon, __: daemon.queue.schedule_after(1, "store", args),
        store=stumbled,
    )
    assert Alone([component]).handle(b"x").summary == "LookupError: no such customer"


def test_timers_about_a_message_end_with_it_and_what_waits_in_line_is_handled():
    def process(_: Scripted, daemon: Daemon, args: Any) -> None:
        daemon.queue.schedule_after(600, "message_cancel", {"id": args["id"]})
        daemon.queue.schedule_after(600, "other", {"id": "m2"})
        daemon.queue.schedule("message_commit", args)
        daemon.queue.schedule("told", args)

    component = Scripted(message_process=process, told=lambda *_: None)
    alone = Alone([component])
    assert alone.handle(b"x").outcome == Done()
    assert [event for _, event, _ in alone.piper.daemon.queue.timers() if event != "queue_check"] == ["other"]
    alone.piper.turn()
    assert len(component.args("told")) == 1


def test_an_argument_that_cannot_be_compared_is_no_trouble():
    class Never:
        def __eq__(self, other: object) -> bool:
            raise AssertionError(other)

        __hash__ = None  # type: ignore[assignment]

    later = Scripted(start=lambda _, daemon, __: daemon.queue.schedule_after(60, "later", {"id": Never()}))
    wrong = Scripted(message_process=lambda _, daemon, __: daemon.queue.schedule("message_commit", {"id": Never()}))
    alone = Alone([wrong, Commiter(), later])
    assert alone.handle(b"x").outcome == Done()
    assert alone.counters == {"cnt_fetched": 1, "cnt_errors": 1, "cnt_committed": 1}


# ---- enqueueing while there is no room


class Tight(Null):
    """Takes no more than *room* messages."""

    def __init__(self, room: int = 0, error: Exception = QueueFull("full")) -> None:  # noqa: B008 - never changed
        super().__init__()
        self.room, self.error, self.bodies = room, error, list[object]()

    def put(self, body: Any, *_: object, **__: object) -> str:
        if len(self.bodies) >= self.room:
            raise self.error
        self.bodies.append(body)
        return f"n{len(self.bodies)}"


@pytest.mark.parametrize("error", [QueueFull("full"), QueueUnavailable("away")])
def test_what_cannot_be_enqueued_is_put_off_and_keeps_its_order(error, caplog):
    queue = Tight(1, error)
    alone = Alone([Scripted(message_enqueue=lambda *_: None)], queue=queue)
    events = alone.piper.daemon.queue
    for number in range(4):
        events.schedule("message_enqueue", {"data": f"{number}"})
    events.schedule_last("last")
    alone.piper.turn()
    assert alone.piper.is_busy()
    queue.room = 2
    events.schedule("message_enqueue", {"data": "4"})
    for _ in range(20):
        alone.clock.sleep(1)
        alone.piper.turn()
    assert queue.bodies == [b"0", b"1"]
    assert ("last", None) in events.waiting()
    queue.room = 9
    for _ in range(20):
        alone.clock.sleep(1)
        alone.piper.turn()
    assert queue.bodies == [b"0", b"1", b"2", b"3", b"4"]
    assert not events.waiting()
    assert caplog.text.count("waits until it works again") == 1
    assert alone.counters["cnt_enqueued"] == 5


def test_what_is_enqueued_behind_something_that_was_put_off_waits_for_it():
    """The queue is away for one moment only."""
    queue = Tight()
    alone = Alone([], queue=queue)
    alone.piper.turn()
    for number in range(2):
        alone.piper.daemon.queue.schedule("message_enqueue", {"data": f"{number}"})
    alone.piper.daemon.turn(alone.piper.daemon.queue.has_put_off)
    queue.room = 9
    alone.piper.turn()
    assert queue.bodies == []
    alone.clock.sleep(0.1)
    alone.piper.turn()
    alone.piper.turn()
    assert queue.bodies == [b"0", b"1"]


def test_a_message_that_ends_may_have_made_room_for_what_was_put_off():
    queue = Tight()
    alone = Alone([Commiter()], queue=queue)
    alone.piper.turn()
    alone.piper.daemon.queue.schedule("message_enqueue", {"data": "more"})
    alone.piper.turn()
    queue.room = 1
    assert alone.handle(b"x").outcome == Done()
    alone.piper.turn()
    assert queue.bodies == [b"more"]
    assert alone.clock.now_s == 1000


def test_what_a_message_cannot_enqueue_ends_its_attempt_and_what_another_event_cannot_does_not():
    """Else the commit behind it would finish a message of which a part is nowhere but in memory."""
    queue = Tight()
    enqueue = ("message_enqueue", {"data": "more"})
    by_message = Alone(
        [Scripted(message_process=lambda _, daemon, __: daemon.queue.schedule(*enqueue)), Commiter()], queue=queue
    )
    assert by_message.handle(b"x").summary == "QueueFull: full"
    assert not by_message.piper.daemon.queue.has_put_off()
    delayed = Scripted(message_process=lambda _, daemon, args: daemon.queue.schedule_after(2, "message_commit", args))
    other = Scripted(start=lambda _, daemon, __: daemon.queue.schedule_after(1, *enqueue))
    alone = Alone([delayed, other], queue=queue)
    assert alone.handle(b"x").outcome == Done()
    assert alone.piper.daemon.queue.waiting() == [enqueue]


def test_what_can_never_be_enqueued_is_an_error_even_behind_what_was_put_off():
    alone = Alone([], queue=Tight())
    for data in ("text", None):
        alone.piper.daemon.queue.schedule("message_enqueue", {"data": data})
    alone.piper.turn()
    assert alone.counters == {"cnt_errors": 1}
    assert len(alone.piper.daemon.queue.waiting()) == 1


@pytest.mark.parametrize("is_hurried", [False, True])
def test_what_is_still_put_off_at_the_end_is_named_and_nothing_behind_it_is_done(is_hurried, caplog):
    component = Scripted(last=lambda *_: None)
    alone = Alone([component], queue=Tight(), is_hurried=is_hurried)
    alone.piper.daemon.queue.schedule("message_enqueue", {"data": "more"})
    alone.piper.turn()
    alone.piper.daemon.queue.schedule_last("last")
    alone.piper.close()
    assert component.seen == []
    assert alone.clock.now_s == 1000 if is_hurried else 1025 < alone.clock.now_s <= 1030
    assert "2 events were not handled before the end: last, message_enqueue" in caplog.text


def test_what_was_put_off_is_tried_once_more_at_the_end():
    queue = Tight()
    alone = Alone([], queue=queue, is_hurried=True)
    alone.piper.daemon.queue.schedule("message_enqueue", {"data": "more"})
    alone.piper.turn()
    queue.room = 1
    alone.piper.close()
    assert queue.bodies == [b"more"]


def test_a_delayed_commit_is_waited_for():
    def later(_: Scripted, daemon: Daemon, args: Any) -> None:
        daemon.queue.schedule_after(2.5, "message_commit", args)

    alone = Alone([Scripted(message_process=later)])
    assert alone.handle(b"x").outcome == Done()
    assert alone.clock.now_s >= 1002.5


def test_a_component_that_stops_the_chain_keeps_it_from_those_after_it():
    component = Scripted(message_process=lambda _, daemon, __: (daemon.FLAG_STOP, None))
    assert Alone([component, Commiter()]).handle(b"x").summary == NOT_SETTLED


def test_what_an_earlier_attempt_left_behind_does_not_settle_the_next_one():
    """A timer of the first attempt would commit what the second has not handled yet."""

    def first(_: Scripted, daemon: Daemon, args: Any) -> None:
        daemon.queue.schedule_after(5, "message_commit", args)
        raise LookupError("failed all the same")

    component = Scripted(message_process=first)
    alone = Alone([component])
    assert alone.handle(b"x").outcome is None
    alone.clock.sleep(10)
    component.callbacks["message_process"] = lambda *_: None
    assert alone.handle(b"x", attempt=2).summary == NOT_SETTLED


@pytest.mark.parametrize(
    "event", [event for event in EVENTS if event.startswith("message_") and event[8:] not in ("enqueue", "next")]
)
@pytest.mark.parametrize("wrong", ["another", "../m1", "/etc/passwd", 7, None])
def test_an_id_that_is_not_in_hand_is_counted_and_stops_its_event(event, wrong):
    """M16: an id is compared, and never part of a path."""
    component = Scripted(
        message_process=then((event, {"id": wrong, "queue_tgt": "side", "data": "x"}), ("message_commit", {})),
        **{event: lambda *_: None},  # type: ignore[arg-type]
    )
    alone = Alone([component], queues={"side": Null()})
    assert alone.handle(b"x").outcome == Done()
    assert alone.counters == {"cnt_fetched": 1, "cnt_errors": 1, "cnt_committed": 1}
    if event != "message_commit":
        assert component.args(event) == []


def test_a_message_is_settled_once():
    alone = Alone([Scripted(message_process=then(("message_commit", {}), ("message_banish", {})))])
    assert alone.handle(b"x").outcome == Done()
    alone.piper.turn()
    assert alone.counters == {"cnt_fetched": 1, "cnt_committed": 1, "cnt_errors": 1}


def test_a_callback_behind_the_one_that_settled_it_cannot_settle_it_again():
    def again(_: Scripted, daemon: Daemon, args: Any) -> None:
        daemon.emit("message_banish", args)

    alone = Alone([Scripted(message_commit=again), Commiter()])
    assert alone.handle(b"x").outcome == Done()
    assert alone.counters == {"cnt_fetched": 1, "cnt_committed": 1, "cnt_errors": 1}


@pytest.mark.parametrize(
    ("event", "more"),
    [
        ("message_duplicate", {"queue_tgt": "nowhere"}),
        ("message_duplicate", {}),
        ("message_dispatch", {"queue_tgt": "nowhere"}),
        ("message_update", {"data": 7}),
        ("message_update", {}),
        ("message_enqueue", {"data": None}),
    ],
)
def test_what_goes_wrong_with_the_message_in_hand_fails_its_attempt(event, more):
    """M14: else the commit behind it would finish a message of which a part is missing."""
    component = Scripted(message_process=then((event, more), ("message_commit", {})))
    alone = Alone([component])
    assert alone.handle(b"x").outcome is None
    assert alone.counters["cnt_errors"] == 1
    assert "cnt_committed" not in alone.counters


def test_events_may_be_called_otherwise():
    component = Scripted(work=then(("finish", {})))
    alone = Alone([component], event_map={"message_process": "work", "message_commit": "finish"})
    assert alone.handle(b"x").outcome == Done()


def test_a_component_before_the_filer_in_a_chain_may_stop_a_commit():
    class First(Scripted):
        def get_events(self) -> Sequence[Mapping[str, object]]:
            return [{**event, "prepend": True} for event in super().get_events()]

    stopping = First(message_commit=lambda _, daemon, __: (daemon.FLAG_STOP, None))
    alone = Alone([stopping, Scripted(message_process=then(("message_commit", {}), ("message_cancel", {})))])
    assert alone.handle(b"x").outcome is CANCELLED


# ---- between messages


def test_events_between_messages_are_handled_at_each_turn():
    ticks = Scripted(start=lambda _, daemon, __: daemon.queue.schedule_after(5, "tick"), tick=lambda *_: None)
    alone = Alone([ticks])
    alone.piper.turn()
    alone.piper.turn()
    assert alone.piper.is_busy()
    assert 0 < alone.piper.wait_s() <= 5
    alone.clock.sleep(6)
    alone.piper.turn()
    assert ticks.args("tick") == [None]
    assert not alone.piper.is_busy()


def test_a_callback_that_raises_between_messages_is_logged_with_its_traceback_and_the_next_message_is_handled(caplog):
    def stumble(*_: object) -> None:
        raise LookupError("no such customer")

    alone = Alone([Scripted(tick=stumble), Commiter()])
    alone.piper.daemon.queue.schedule("tick")
    alone.piper.turn()
    assert "in stumble" in caplog.text
    assert alone.handle(b"x").outcome == Done()


def test_closing_is_the_event_stop():
    component = Scripted(stop=lambda _, daemon, __: daemon.queue.schedule("last"), last=lambda *_: None)
    alone = Alone([component])
    alone.piper.close()
    assert [event for event, _ in component.seen] == ["stop", "last"]


@pytest.mark.parametrize("is_done", [False, True])
@pytest.mark.parametrize("is_hurried", [False, True])
def test_at_the_end_the_line_is_handled_and_without_hurry_what_is_due_in_30_s(is_done, is_hurried):
    """Events lead to events, five deep; by whom it was ended makes no difference."""
    steps = [f"step {number}" for number in range(5)]

    def next_one(component: Scripted, daemon: Daemon, _: Any) -> None:
        daemon.queue.schedule(steps[len(component.seen)] if len(component.seen) < 5 else "end")

    component = Scripted(stop=lambda _, daemon, __: daemon.queue.schedule(steps[0]), **dict.fromkeys(steps, next_one))
    ends = Scripted(end=lambda *_: None, soon=lambda *_: None, far=lambda *_: None)
    alone = Alone([component, ends], is_hurried=is_hurried)
    for delay_s, event in ((29, "soon"), (31, "far")):
        alone.piper.daemon.queue.schedule_after(delay_s, event)
    if is_done:
        alone.piper.daemon.set_done()
    alone.piper.close()
    assert [event for event, _ in ends.seen] == (["end"] if is_hurried else ["end", "soon"])
    assert alone.clock.now_s == (1000 if is_hurried else 1029)


def test_the_state_names_the_message_in_hand():
    states = []
    component = Scripted(message_process=lambda _, daemon, __: states.append(daemon.get_state()))
    Alone([component, Commiter()]).handle(b"x")
    assert states[0]["components"]["Filer"]["message"] == "m1"
    assert states[0]["components"]["Filer"]["status"] == "running"


def test_a_component_is_made_with_the_arguments_it_is_given():
    made = component_of("workers.piper:Filer", {"event_map": {"message_process": "work"}})
    assert isinstance(made, Filer)
    assert made.named("message_process") == "work"


@pytest.mark.parametrize(
    ("use", "keywords", "part"),
    [
        ("workers.piper:Nothing", {}, "has no Nothing"),
        ("workers.piper:Filer", {"size": 3}, "cannot be made with (size): TypeError"),
        ("workers.piper:EVENTS", {}, "not a class"),
        ("collections:Counter", {}, "no get_events"),
    ],
)
def test_what_is_no_component_is_refused_with_a_sentence(use, keywords, part):
    with pytest.raises(HandlerError, match=re.escape(part)):
        component_of(use, keywords)


def test_a_component_that_cannot_be_set_up_keeps_the_worker_from_starting():
    class Bad(Commiter):
        def setup(self, daemon: Daemon) -> None:
            raise OSError("no such disk")

    with pytest.raises(HandlerError, match="no such disk"):
        Alone([Bad()])


# ---- on every protocol


class Ended(Leaving):
    """Asked to leave after a few waits; none of them takes time."""

    def __init__(self, opened: Opened) -> None:
        super().__init__()
        self.opened = opened
        self.left = 20

    def rest(self, timeout_s: float, _fd: int = -1) -> bool:
        self.left -= 1
        self.opened.keep(max(min(timeout_s, 1.0), 0.1))
        if self.left <= 0:
            self.ask()
        return True

    def wait(self, timeout_s: float) -> bool:
        self.rest(timeout_s)
        return self.is_asked


@pytest.fixture(name="opened", params=KINDS)
def _opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opened]:
    opened = OPENERS[request.param](World(tmp_path), tmp_path)
    yield opened
    opened.queue.close()
    opened.end()


def pipe(opened: Opened, piper: Piper, **more: Any) -> Worker:
    """Let a worker handle what is there; the following queue is called "next"."""
    queue, leaving = opened.queue, Ended(opened)
    worker = Worker(
        queue, piper, queue._consumer, leaving, leaving.rest, system=queue.system,  # type: ignore[attr-defined]
        queues={"next": opened.following.url}, **more,
    )  # fmt: skip
    worker.run()
    os.close(leaving.fd)
    os.close(leaving._writer)
    return worker


def bodies(queue: Queue) -> list[bytes]:
    """What waits in a spool."""
    return sorted(Path(line.path).read_bytes() for line in queue.list("waiting"))


def figures(worker: Worker) -> dict[str, int]:
    words = worker.consumer.board.worker(worker.consumer.worker_slot).words
    return {name: words[word] for name, word in OUTCOME_WORDS.items() if words[word]}


def test_every_event_of_a_message_on_every_protocol(opened):
    """Byte for byte into the output, the copies and the side queue; what is banished says why."""
    what = {
        b"commit \xff": ("message_commit", {}), b"cancel": ("message_cancel", {}),
        b"banish": ("message_banish", {"reason": "unwanted"}),
        b"dispatch\r\n": ("message_dispatch", {"queue_tgt": "next"}),
    }  # fmt: skip

    def process(_: Scripted, daemon: Daemon, args: Any) -> None:
        event, more = what[args["message"].body]
        daemon.queue.schedule(event, {"id": args["id"], **more})

    for number, body in enumerate([*what, b"", b" \n"]):
        opened.put(body, f"{number}")
    worker = pipe(opened, Piper([Scripted(message_process=process)]), output="next")
    assert bodies(opened.following) == [b"commit \xff", b"dispatch\r\n"]
    depth = opened.queue.depth()
    assert (depth.waiting, depth.claimed, depth.deferred, depth.errors) == (0, 0, 0, 3)
    assert figures(worker) == {"done": 1, "forwarded": 2, "rejected": 3}


def test_what_is_updated_duplicated_and_enqueued_on_every_protocol(opened):
    def process(_: Scripted, daemon: Daemon, args: Any) -> None:
        if args["message"].body == b"second":
            daemon.queue.schedule("message_cancel", args)
            return
        for event, more in (
            ("message_duplicate", {"queue_tgt": "next"}), ("message_update", {"data": b"updated"}),
            ("message_duplicate", {"queue_tgt": "next"}), ("message_enqueue", {"data": "second"}),
            ("message_commit", {}),
        ):  # fmt: skip
            daemon.queue.schedule(event, {"id": args["id"], **more})

    component = Scripted(message_process=process, message_enqueue=lambda *_: None)
    opened.put(b"first", "1")
    piper = Piper([component])
    worker = pipe(opened, piper, output="next")
    assert bodies(opened.following) == [b"first", b"updated", b"updated"]
    assert figures(worker) == {"done": 1, "forwarded": 1}
    (answered,) = component.args("message_enqueue")
    assert answered["id"]
    counted = {"cnt_fetched": 2, "cnt_duplicated": 2, "cnt_updated": 1, "cnt_enqueued": 1, "cnt_committed": 1}
    assert {key: count for key, count in piper.filer.statistics_cur.items() if count} == {**counted, "cnt_canceled": 1}


def test_a_failing_callback_on_every_protocol_is_retried_and_ends_in_errors_with_its_traceback(opened):
    def stumble(_: Scripted, __: Daemon, args: Any) -> None:
        raise LookupError("no such customer")

    opened.put(b"x", "1")
    opened.put(b"y", "2")
    worker = pipe(opened, Piper([Scripted(message_process=stumble), Commiter()]))
    assert figures(worker)["retried"] >= 2
    assert "done" not in figures(worker)
    depth = opened.queue.depth()
    assert depth.waiting + depth.deferred + depth.errors == 2


def test_a_worker_whose_daemon_is_done_leaves_and_claims_nothing(opened):

    def process(_: Scripted, daemon: Daemon, args: Any) -> None:
        daemon.set_done()
        daemon.queue.schedule("message_commit", args)

    component = Scripted(message_process=process, stop=lambda *_: None)
    opened.put(b"x", "1")
    opened.put(b"y", "2")
    worker = pipe(opened, Piper([component]))
    assert worker.is_done
    assert figures(worker) == {"done": 1}
    assert opened.queue.depth().waiting == 1
    assert len(component.args("stop")) == 1


def test_a_worker_that_is_asked_to_leave_is_not_done(opened):
    """Else one that is ended by a signal would never be replaced."""
    component = Scripted(start=lambda *_: None, stop=lambda *_: None)
    worker = pipe(opened, Piper([component, Commiter()]))
    assert not worker.is_done
    assert [event for event, _ in component.seen] == ["start", "stop"]


def test_a_worker_serves_events_while_nothing_comes_and_says_that_it_is_busy(rig):
    """A period of its own is no work; an event that a component scheduled is."""
    pool, states = rig.pool(settings=SETTINGS), []
    words = pool.board.worker(0).words

    def tick(component: Scripted, daemon: Daemon, _args: object) -> None:
        if len(component.seen) < 5:
            daemon.queue.schedule_after(0.01, "tick")
        states.append(words[W.STATE])

    component = Scripted(start=lambda _, daemon, __: daemon.queue.schedule("tick"), tick=tick)
    opened = Opened(pool.spool, Rig(rig.path.parent / "next", rig.world).spool(), lambda s: None)

    class Slow(Ended):
        def rest(self, timeout_s: float, fd: int = -1) -> bool:
            Leaving.wait(self, timeout_s)
            self.left -= 1
            states.append(words[W.STATE])
            if not component.callbacks or self.left <= 0 or words[W.STATE] != WorkerState.BUSY:
                self.ask()
            return True

    leaving = Slow(opened)
    Worker(pool.spool, Piper([component]), pool._consumer(0), leaving, leaving.rest, system=pool.system).run()
    assert len(component.args("tick")) >= 4
    assert states[-1] == WorkerState.IDLE
    assert WorkerState.BUSY in states
