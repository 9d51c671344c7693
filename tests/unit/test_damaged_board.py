"""
test_damaged_board - whatever stands on the board, nobody else dies of it

A handler is code of our own user in a process that has the board mapped: a wild pointer of it may write anything
anywhere there. Who did that may die; the master and the keeper may not, and they kill no stranger.
See also: test_metrics and test_exporter (those who only read), tests/process/test_damaged_board.py (a real pool).
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orchestrator import progress, roles, running
from orchestrator.child import Exit
from orchestrator.config import QueueConfig
from tests.unit.test_running import master, occupy  # noqa: F401 - a fixture
from workers import keeper
from workers.board import (
    COUNT_MAX,
    PID_MAX,
    QUEUE_COUNTERS,
    SEQUENCES,
    WORD_MAX,
    WORDS,
    WORKER_COUNTERS,
    Board,
    BoardError,
    Q,
    Slot,
    W,
    WorkerText,
    process,
)
from workers.system import start_ticks

NOISE = random.Random(7)  # noqa: S311 - noise, not a secret
DAMAGES: dict[str, Callable[[], int]] = {
    "noise": lambda: NOISE.getrandbits(64) - (1 << 63),
    "largest": lambda: WORD_MAX,
    "smallest": lambda: -WORD_MAX - 1,
    "minus one": lambda: -1,
    "one": lambda: 1,
}


def damage(slot: Slot, value: Callable[[], int]) -> None:
    for word in range(WORDS):
        slot.words[word] = value()
    slot._texts[:] = NOISE.randbytes(len(slot._texts))


@contextmanager
def a_process(*, leads_a_session: bool) -> Iterator[int]:
    """One of ours that waits to be killed."""
    pid = os.posix_spawn("/bin/sleep", ["sleep", "1000"], {}, setsid=leads_a_session)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.mark.parametrize("word", [0, 1, -1, -12345, -WORD_MAX - 1, PID_MAX + 1, WORD_MAX])
def test_a_word_that_can_be_no_process_is_none(word: int) -> None:
    """kill(-1) and killpg(1) are of everybody, a negative number is a group's."""
    assert process(word) == 0
    assert process(4242) == 4242


@pytest.mark.parametrize("value", DAMAGES.values(), ids=DAMAGES)
def test_a_keeper_whose_master_is_gone_kills_nobody_by_a_damaged_board(
    value: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[int] = []
    monkeypatch.setattr(roles, "kill_whole", killed.append)
    monkeypatch.setattr(roles, "GRACE_S", 0.0)
    board = Board.create()
    for number in range(8):
        damage(board.worker(number), value)
        board.worker(number).words[W.USED] = 1
    roles._end_orphans(board, {})
    assert not [pid for pid in killed if not 1 < pid <= PID_MAX or start_ticks(pid) is not None]


@pytest.mark.parametrize("start", ["its own", "of another"])
@pytest.mark.parametrize("leads_a_session", [True, False])
def test_a_keeper_whose_master_is_gone_kills_what_may_be_a_worker_alone(
    start: str, leads_a_session: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[int] = []
    monkeypatch.setattr(roles, "kill_whole", killed.append)
    monkeypatch.setattr(roles, "GRACE_S", 0.0)
    board = Board.create()
    with a_process(leads_a_session=leads_a_session) as pid:
        words = board.worker(0).words
        words[W.USED], words[W.PID], words[W.START] = 1, pid, (start_ticks(pid) or 0) + (start == "of another")
        roles._end_orphans(board, {})
        assert killed == ([pid] if leads_a_session and start == "its own" else [])


def test_a_lone_workers_keeper_kills_no_group_of_another_session(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[int] = []
    monkeypatch.setattr(os, "killpg", lambda group, number: killed.append(group))
    with a_process(leads_a_session=True) as stranger, a_process(leads_a_session=False) as ours:
        for group in (0, process(1), process(-1), stranger, ours):
            keeper._kill_group(group)
        assert killed == [ours]


@pytest.mark.parametrize("value", DAMAGES.values(), ids=DAMAGES)
def test_a_worker_that_damaged_the_board_is_collected_and_replaced(
    master,  # noqa: F811
    value: Callable[[], int],
) -> None:
    queue, board = occupy(master, Exit(None, signal.SIGSEGV, 5_000))
    for slot in (*board.queues, *(board.worker(number) for number in range(4))):
        damage(slot, value)
    queue.listen(board, 1)
    queue.read_board(board, 1.0, 1)
    master._collect(queue, 0)
    queue.show(board)
    assert not queue.children
    slot = queue.worker_slot(board, 0)
    assert 5_000 <= slot.words[W.CPU_BASE_NS] <= COUNT_MAX + 5_000
    assert (slot.words[W.PID], slot.text(WorkerText.OWNER)) == (0, "")
    running.counters(board)
    progress.summarise(board, 1.0).as_json()


@pytest.mark.parametrize("whose", ["its own", "of another"])
def test_the_claims_of_a_living_worker_are_not_given_back_by_a_dead_ones_word(
    master,  # noqa: F811
    whose: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    queue, board = occupy(master, Exit(None, signal.SIGSEGV, 5))
    told: list[str] = []
    monkeypatch.setattr(type(master.services), "release", lambda self, queue, order: told.append(order["owner"]))
    master._name = f"here.01234567.{os.getpid()}.1.0123456789abcdef"
    pid = queue.children[0].pid if whose == "its own" else os.getpid()
    owner = f"{master._name}.0.{pid}.1.0123456789ab"
    queue.worker_slot(board, 0).set_text(WorkerText.OWNER, owner)
    master._collect(queue, 0)
    assert told == ([owner] if whose == "its own" else [])


@pytest.mark.parametrize("counters", [WORKER_COUNTERS, QUEUE_COUNTERS], ids=["worker", "queue"])
def test_who_takes_a_slot_over_can_count_on(counters: tuple[int, ...]) -> None:
    slot = Board.create().worker(0)
    for word in counters:
        slot.words[word] = WORD_MAX
    slot.words[counters[0]] = 7
    slot.mend(counters)
    for word in counters:
        slot.words[word] += 1
    assert slot.words[counters[0]] == 8
    assert slot.words[counters[1]] == 1


def test_a_keeper_that_takes_a_queue_over_can_count_on() -> None:
    board = Board.create()
    board.queues[3].words[Q.LAPSES] = WORD_MAX
    config = QueueConfig(name="q", url="null:", handler="workers.handlers.echo:nothing")
    order = {"config": config.model_dump(mode="json"), "slot": 3, "is_known": False}
    _, thread = roles._start(roles.Keeping(board, "a-master", "here", -1, -1), order, lambda *_: None, {})
    assert board.queues[3].words[Q.LAPSES] == 0
    thread.join()


@pytest.mark.parametrize("sequence", [WORD_MAX, -WORD_MAX - 1, -1])
def test_a_text_is_written_whatever_its_sequence_is(sequence: int) -> None:
    slot = Board.create().worker(0)
    slot.words[SEQUENCES] = sequence
    slot.set_text(0, "again")
    assert slot.text(0) == "again"


@pytest.mark.parametrize("what", ["link", "fifo", "directory", "huge", "device"])
def test_what_lies_in_the_place_of_a_board_is_refused_and_never_waited_for(tmp_path: Path, what: str) -> None:
    path = tmp_path / "board"
    match what:
        case "link":
            Board.create(tmp_path / "real")
            path.symlink_to("real")
        case "fifo":
            os.mkfifo(path)
        case "directory":
            path.mkdir()
        case "huge":
            path.touch()
            os.truncate(path, 1 << 40)
        case "device":
            path = Path("/dev/zero")
    with pytest.raises(BoardError, match="board" if what != "device" else "zero"):
        Board.open(path)
