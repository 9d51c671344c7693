"""What the master does when a worker has ended, and what a worker writes when it begins: the orders of it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from orchestrator import running, state
from orchestrator.child import Exit
from orchestrator.config import load
from orchestrator.loop import Loop
from orchestrator.master import Master
from orchestrator.reports import Reports
from orchestrator.runlog import RunLog
from orchestrator.services import Services
from workers.board import Board, W, WorkerState, WorkerText
from workers.message import Claim
from workers.queues.base import Consumer
from workers.queues.null import Null
from workers.waiting import Leaving
from workers.worker import Worker


class DeadChild:
    """A worker that has ended. Its pid is that of a process that is really gone."""

    def __init__(self, end: Exit) -> None:
        self.pid = os.posix_spawn("/bin/true", ["true"], {})
        os.waitpid(self.pid, 0)
        self.sentinel = -1
        self._end = end

    def collect(self) -> Exit:
        return self._end

    def close(self) -> None:
        self.sentinel = -1


@pytest.fixture
def master(tmp_path: Path):
    config = load(
        (),
        flags={"workers": "1", "run_dir": str(tmp_path)},
        environment={},
        queues=[str(tmp_path / "q")],
        handler="workers.handlers.echo:nothing",
    )
    one = Master(config, lambda: config)
    one.board, one.loop = Board.create(), Loop()
    queue = running.start(config.queues[0], config.pool, one.board)
    one.queues[queue.config.name] = queue
    one.services = Services(one.loop, one.board, "a-master", "here", one.queues, None, lambda *_: None, lambda: None)
    source = state.begin(config, one.board, one.queues, one.loop, tmp_path)
    one.reports = Reports(source, one.services, RunLog("a", tmp_path, 1))
    yield one
    one.loop.close()


def occupy(one: Master, end: Exit) -> tuple[running.RunningQueue, Board]:
    """Give the only worker a message in hand, then let it be dead by *end*."""
    queue = next(iter(one.queues.values()))
    dead = DeadChild(end)
    queue.pool.plan(0.0)
    queue.pool.spawned(0, dead.pid, 0.0)
    queue.children[0] = dead
    slot = queue.worker_slot(one.board, 0)
    slot.set_text(WorkerText.OWNER, "the-owner")
    slot.set_text(WorkerText.MESSAGE, "report.csv")
    slot.words[W.PID], slot.words[W.STATE] = dead.pid, WorkerState.BUSY
    slot.words[W.PROCESS_CLAIMS] = slot.words[W.CLAIMS] = 7
    slot.words[W.MESSAGE_SINCE_NS] = 1
    return queue, one.board


def test_H34_a_dead_owner_is_off_the_board_before_the_keeper_is_told(master, monkeypatch):
    """A keeper killed between the two, and the next one, must find the owner unlisted, or its claim is stranded."""
    queue, board = occupy(master, Exit(None, signal.SIGKILL, 5))
    told = []

    def order(do, one, **more):
        told.append((do, more["owner"], more["cause"], queue.worker_slot(board, 0).text(WorkerText.OWNER)))

    monkeypatch.setattr(Services, "order", lambda self, do, one, **more: order(do, one, **more))
    master._collect(queue, 0)
    assert told == [("release", "the-owner", "died", "")]


def test_a_dead_worker_leaves_its_counters_and_nothing_of_the_process(master):
    queue, board = occupy(master, Exit(None, signal.SIGKILL, 5_000))
    master._collect(queue, 0)
    words = queue.worker_slot(board, 0).words
    assert (words[W.CLAIMS], words[W.CPU_BASE_NS], words[W.EXITS_SIGNAL]) == (7, 5_000, 1)
    assert (words[W.PID], words[W.STATE], words[W.MESSAGE_SINCE_NS], words[W.PROCESS_CLAIMS]) == (0, 0, 0, 0)


def test_a_dead_worker_leaves_the_loop_at_rest(master, monkeypatch):
    """Unwatched before its descriptor is closed: siblings hold the pipe, so a selector would report it for ever."""
    queue, _board = occupy(master, Exit(None, signal.SIGKILL, 5))
    steps = []
    monkeypatch.setattr(master.loop, "unwatch", lambda fd: steps.append("unwatch"))
    monkeypatch.setattr(DeadChild, "close", lambda self: steps.append("close"))
    master._collect(queue, 0)
    assert steps == ["unwatch", "close"]


class Recorder:
    """A slot that remembers the order in which its words were written."""

    def __init__(self) -> None:
        self.words = self
        self.values: dict[int, int] = {}
        self.written: list[int] = []

    def __getitem__(self, word: int) -> int:
        return self.values.get(word, 0)

    def __setitem__(self, word: int, value: int) -> None:
        self.values[word] = value
        self.written.append(int(word))

    def set_text(self, which: int, text: str) -> None:
        pass


def test_a_dead_worker_with_a_message_has_its_claim_counted(tmp_path):
    """Whoever finds "in hand" on the board finds the claim counted, or a death with a message would look young."""
    body = tmp_path / "m"
    body.write_bytes(b"x")
    board, slot, leaving = Board.create(), Recorder(), Leaving()
    worker = Worker(Null(), lambda message: None, Consumer("m", board, 0), leaving, lambda *_: True)
    with pytest.raises(Exception, match="nothing to settle"):
        worker._handle(slot, Claim("m", str(body)))
    in_hand = slot.written.index(W.MESSAGE_SINCE_NS)
    assert slot.written.index(W.CLAIMS) < in_hand
    assert slot.written.index(W.PROCESS_CLAIMS) < in_hand
    os.close(leaving.fd)
    os.close(leaving._writer)
