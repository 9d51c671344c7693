"""The state: who has answered, what is summed over workers, and what the dump holds."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
from pathlib import Path

import pytest

from orchestrator import running, state
from orchestrator.config import load
from orchestrator.loop import Loop
from orchestrator.state import Inquiry, Tally, answers, dump, sums, worker_file
from workers.board import Board, W, WorkerState, WorkerText
from workers.saved import save
from workers.waiting import Leaving, readable_within


class FakeChild:
    """A worker that may answer when it is signalled."""

    def __init__(self, directory: Path, pid: int, *, answers: bool = True) -> None:
        self.directory, self.pid, self.answers = directory, pid, answers
        self.numbers: list[int] = []

    def send(self, number: int) -> None:
        self.numbers.append(number)
        if self.answers:
            save(worker_file(self.directory, "q", 0, self.pid), {"components": {}})


def said(**counters: object) -> dict[str, object]:
    return {"components": {"Parser": {"statistics": counters}}}


# ---- asking


def test_an_inquiry_is_over_when_all_have_answered(tmp_path: Path) -> None:
    """A file that was there before is no answer."""
    first = FakeChild(tmp_path, 10)
    late = FakeChild(tmp_path, 11, answers=False)
    save(worker_file(tmp_path, "q", 0, 11), {"components": {}})
    inquiry = Inquiry(tmp_path, until_s=2.0)
    inquiry.ask("q", 0, first, signal.SIGUSR2)
    inquiry.ask("q", 0, late, signal.SIGUSR2)
    assert first.numbers == late.numbers == [signal.SIGUSR2]
    assert not inquiry.is_over(0.0)
    assert inquiry.silent == {worker_file(tmp_path, "q", 0, 11)}
    save(worker_file(tmp_path, "q", 0, 11), {"components": {}})
    assert inquiry.is_over(0.1)
    assert not inquiry.silent


def test_an_inquiry_ends_in_time_and_remembers_who_was_silent(tmp_path: Path) -> None:
    inquiry = Inquiry(tmp_path, until_s=2.0)
    inquiry.ask("q", 0, FakeChild(tmp_path, 10, answers=False), signal.SIGUSR2)
    assert not inquiry.is_over(1.9)
    assert inquiry.is_over(2.0)
    assert inquiry.silent == {worker_file(tmp_path, "q", 0, 10)}


def test_a_worker_that_ended_is_not_waited_for(tmp_path: Path) -> None:
    inquiry = Inquiry(tmp_path, until_s=2.0)
    inquiry.ask("q", 0, FakeChild(tmp_path, 10, answers=False), signal.SIGUSR2)
    inquiry.has_ended(worker_file(tmp_path, "q", 0, 10))
    assert inquiry.is_over(0.0)


# ---- counters


def test_counters_are_summed_over_workers_by_queue_and_component() -> None:
    found = sums({}, [("a", said(cnt=1, nested={"x": 2})), ("a", said(cnt=10, nested={"x": 3})), ("b", said(cnt=5))])
    assert found == {"a": {"Parser": {"cnt": 11, "nested": {"x": 5}}}, "b": {"Parser": {"cnt": 5}}}


def test_counters_of_a_worker_that_has_ended_count_on_and_its_file_goes(tmp_path: Path) -> None:
    tally = Tally()
    for pid in (10, 11):
        path = worker_file(tmp_path, "a", 0, pid)
        save(path, said(cnt=pid))
        tally.bury("a", path)
        assert not path.exists()
    tally.bury("a", worker_file(tmp_path, "a", 0, 12))  # killed before it said anything
    before = tally.ended
    assert sums(before, [("a", said(cnt=1))]) == {"a": {"Parser": {"cnt": 22}}}
    assert tally.ended == {"a": {"Parser": {"cnt": 21}}}


NESTED: dict[str, object] = {"deep": functools.reduce(lambda inner, _: {"x": inner}, range(2000), {"x": 1})}


@pytest.mark.parametrize("wrong", [
    {}, {"components": 5}, {"components": {"Parser": 5}}, {"components": {"Parser": {"statistics": [1]}}},
    {"components": {"Parser": {"statistics": {"cnt": "many", "flag": True, "none": None}}}},
    {"components": {"Parser": {"statistics": {"cnt": 10**400}}}}, {"components": {"Parser": {"statistics": NESTED}}},
])  # fmt: skip
def test_what_is_no_number_is_not_summed(wrong: dict[str, object]) -> None:
    found = sums({"a": {"Parser": {"cnt": 1}}}, [("a", wrong)])
    found["a"]["Parser"].pop("deep", None)
    assert found == {"a": {"Parser": {"cnt": 1}}}


# ---- the dump


def test_the_dump_is_complete_and_json(tmp_path: Path) -> None:
    """One worker has answered, one has a message in hand and has not."""
    config = load(
        (), flags={"workers": "2", "run_dir": str(tmp_path)}, environment={}, queues=[str(tmp_path / "q")],
        components=["workers.piper:Commiter"],
    )  # fmt: skip
    board = Board.create()
    queue = running.start(config.queues[0], config.pool, board)
    with contextlib.closing(Loop()) as loop:
        loop.events.schedule("drain", {"why": object()})
        loop.every(5.0, "tick")
        source = state.begin(config, board, {"q": queue}, loop, tmp_path)
        for index in range(2):
            queue.children[index] = FakeChild(source.directory, 100 + index)  # type: ignore[assignment]
            slot = queue.worker_slot(board, index)
            slot.words[W.PID], slot.words[W.STATE] = 100 + index, WorkerState.IDLE
        save(worker_file(source.directory, "q", 0, 100), said(cnt=3))
        slot.set_text(WorkerText.MESSAGE, "report.csv")
        slot.words[W.MESSAGE_SINCE_NS] = 1
        found = json.loads(json.dumps(dump(source)))
    first, second = found["components"]["q"]["0"], found["components"]["q"]["1"]
    assert first == {"pid": 100, "answered": True, "busy": False, "message": "", "state": said(cnt=3)}
    assert second == {"pid": 101, "answered": False, "busy": True, "message": "report.csv", "state": None}
    assert found["config"]["pool"]["name"] == config.pool.name
    assert found["config"]["queue"][0]["components"]
    assert found["pools"]["q"]["target"] == 2
    assert [worker["pid"] for worker in found["status"]["queues"][0]["workers"]] == [100, 101]
    assert [event["event"] for event in found["events"]] == ["drain"]
    assert [(timer["event"], timer["in_s"] <= 5.0) for timer in found["timers"]] == [("tick", True)]


def test_a_master_that_begins_clears_what_a_killed_one_left(tmp_path: Path) -> None:
    (tmp_path / "states").mkdir()
    save(worker_file(tmp_path / "states", "q", 0, 1), said(cnt=1))
    config = load((), flags={"run_dir": str(tmp_path)}, environment={}, queues=["null:"], components=["m:h"])
    with contextlib.closing(Loop()) as loop:
        source = state.begin(config, Board.create(), {}, loop, tmp_path)
    assert os.listdir(source.directory) == []
    assert answers(source.directory, ()) == {}


def test_a_state_file_that_is_a_directory_is_refused(tmp_path: Path) -> None:
    for path in ("/", str(tmp_path)):
        config = load((), flags={"run_dir": str(tmp_path), "state_file": path}, environment={}, needs_queues=False)
        with contextlib.closing(Loop()) as loop, pytest.raises(state.StateError, match="is a directory; name a file"):
            state.begin(config, Board.create(), {}, loop, tmp_path)


def test_a_place_for_answers_is_there_only_where_components_are(tmp_path: Path) -> None:
    config = load((), flags={"run_dir": str(tmp_path)}, environment={}, queues=["null:"], handler="m:h")
    more = load((), flags={"run_dir": str(tmp_path)}, environment={}, queues=["null:"], components=["m:h"])
    with contextlib.closing(Loop()) as loop:
        source = state.begin(config, Board.create(), {}, loop, tmp_path)
        assert not source.directory.exists()
        state.prepare(source, more.queues)
        save(worker_file(source.directory, "null", 0, 1), said(cnt=1))
        state.end(source)
    assert not source.directory.exists()


# ---- the worker's side


@pytest.fixture(name="leaving")
def _leaving():
    leaving = Leaving()
    yield leaving
    os.close(leaving.fd)
    os.close(leaving._writer)


def test_being_asked_for_the_state_wakes_once_and_is_taken_once(leaving: Leaving) -> None:
    leaving.tell()
    leaving.tell()
    assert readable_within(leaving.fd, 0)
    assert leaving.taken()
    assert not leaving.taken()
    assert not readable_within(leaving.fd, 0)
    assert not leaving.is_asked


def test_a_wait_that_the_state_ended_does_not_end_the_next_one(leaving: Leaving) -> None:
    """In trouble a worker waits and waits: it must not spin because somebody asked for its state meanwhile."""
    leaving.tell()
    assert not leaving.wait(60)
    assert not readable_within(leaving.fd, 0)
    assert leaving.taken()


@pytest.mark.parametrize("call", range(1, 9))
@pytest.mark.parametrize("what", ["ask", "tell"])
def test_no_wakeup_is_lost_while_the_state_is_asked_for(
    leaving: Leaving, monkeypatch: pytest.MonkeyPatch, what: str, call: int
) -> None:
    """A handler runs right before and right after each read of the pipe, and each look at the flags."""
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1
        if steps == call:
            getattr(leaving, what)()

    read = os.read

    def stepping(fd: int, size: int) -> bytes:
        step()
        try:
            return read(fd, size)
        finally:
            step()

    class Stepping(Leaving):
        @property
        def is_to_tell(self) -> bool:
            step()
            return self._is_to_tell

        @is_to_tell.setter
        def is_to_tell(self, value: bool) -> None:
            self._is_to_tell = value
            if not value:
                step()

    leaving._is_to_tell = False  # type: ignore[attr-defined]
    leaving.__dict__.pop("is_to_tell", None)
    leaving.__class__ = Stepping
    leaving.tell()
    monkeypatch.setattr(os, "read", stepping)
    assert leaving.taken()
    if what == "tell":
        # Answered by that very call, and then nothing wakes; or still to be answered, and then it does.
        assert leaving._is_to_tell == readable_within(leaving.fd, 0)  # type: ignore[attr-defined]
    elif steps >= call:
        assert leaving.is_asked
        assert readable_within(leaving.fd, 0)
