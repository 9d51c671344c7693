"""QueueKeeper: rounds on a timer, orders at once, figures on the board."""

from __future__ import annotations

import errno
import os

import pytest

from tests.rig import SETTINGS, FakeSystem, Q, Rig, Words
from workers.board import Board, Header, QueueState, QueueText
from workers.errors import NotSupported
from workers.keeper import Leave, Measure, QueueKeeper, Release, attach_alone
from workers.queues import names
from workers.queues.base import Consumer
from workers.queues.null import Null
from workers.queues.spool import Spool


class Kept:
    """A keeper on a board of its own, and the queue that it opens."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.system = FakeSystem(rig.world, 4001)
        self.board = Board.create()
        slot = self.board.take_queue("queue", "spool:queue")
        self.words = self.board.queues[slot].words
        self.consumer = Consumer(
            names.master_name("one", self.system), self.board, slot, self.board.take_worker(slot, 0)
        )
        self.keeper = QueueKeeper(self.open, self.consumer, self.system)

    def open(self) -> Spool:
        return Spool(str(self.rig.path), SETTINGS, system=self.system, host="one")

    def worker(self) -> Spool:
        spool = Spool(str(self.rig.path), SETTINGS, system=FakeSystem(self.rig.world, 4002), host="one")
        spool.attach(self.consumer)
        return spool

    def leases(self) -> list[int]:
        return [names.parse_lease(file)[1] for file in os.listdir(self.rig.path / ".pool" / "leases")]


@pytest.fixture(name="kept")
def _kept(rig: Rig) -> Kept:
    rig.spool()
    return Kept(rig)


def test_it_is_ready_when_the_queue_was_opened_and_beaten(kept):
    kept.keeper.open()
    assert kept.words[Q.READY] == QueueState.READY
    assert kept.words[Q.BEAT_NS] == kept.system.boottime_ns()
    assert kept.words[Q.MEASURED_MS] > 0
    assert kept.words[Q.FREE_BYTES] > 0


def test_a_queue_that_cannot_be_used_is_refused_with_the_sentence(kept):
    said = []
    kept.system.fail_all("rename", errno.EXDEV)
    kept.keeper.run(said.append)
    assert kept.words[Q.READY] == QueueState.REFUSED
    assert said == [kept.board.queues[0].text(QueueText.REASON)] or "one filesystem" in said[0]
    assert kept.leases() == []


def test_a_protocol_that_cannot_be_claimed_from_is_refused(kept):
    said = []
    QueueKeeper(Null, kept.consumer, kept.system).run(said.append)
    assert "null" in said[0]
    with pytest.raises(NotSupported, match="null"):
        attach_alone(Null())


def test_a_round_that_fails_is_said_on_the_board_and_tried_again(kept, caplog):
    kept.keeper.open()
    kept.system.fail_all("listdir", errno.EIO)
    for _ in range(3):
        kept.rig.world.moved_ns += int(1e9)
        kept.keeper.round()
    assert kept.words[Q.READY] == QueueState.UNAVAILABLE
    assert "errno 5" in (kept.board.queues[0].text(QueueText.REASON) or "")
    assert len([record for record in caplog.records if "errno 5" in record.getMessage()]) == 1
    kept.system.before = None
    kept.keeper.round()
    assert kept.words[Q.READY] == QueueState.READY


def test_the_last_order_ends_it_and_takes_the_lease_away(kept):
    worker = kept.worker()
    owner = []

    def ready(refused):
        assert refused is None
        worker.put(b"x", "mine")
        worker.settled(worker.claim())
        owner.append(kept.board.worker(0).text(1))
        kept.board.worker(0).set_text(1, "")
        kept.keeper.orders.put(Leave())
        kept.keeper.orders.put(Release(owner[0], "died"))  # still owed when it leaves

    kept.keeper.run(ready)
    assert kept.leases() == []
    assert os.listdir(kept.rig.path / "pending") == []
    (line,) = worker.list()
    assert (line.state, line.crashes) == ("waiting", 1)


def test_orders_that_never_cease_do_not_keep_it_from_its_rounds(kept):
    """A worker killed every 200 ms for a minute; the lease must be beaten all the same."""
    worker, times, gaps = kept.worker(), [], []
    worker.put(b"x", delay=5)

    def is_over():
        times.append(None)
        kept.rig.world.advance(0.2)
        gaps.append(kept.system.boottime_ns() - kept.words[Q.BEAT_NS])
        kept.keeper.orders.put(Release("none", "died") if len(times) % 2 else Measure())
        return len(times) > 100

    kept.keeper.run(is_over=is_over)
    assert max(gaps) < 2e9  # half the lease timeout: workers would stop claiming
    assert worker.depth().waiting == 1


def test_an_order_to_release_is_tried_again_until_it_succeeds(kept):
    worker = kept.worker()
    kept.keeper.open()
    worker.put(b"x", "mine")
    worker.settled(worker.claim())
    owner = kept.board.worker(0).text(1)
    kept.board.worker(0).set_text(1, "")
    kept.system.fail_all("rename", errno.ENOSPC)
    kept.keeper._pending.append(Release(owner, "timeout"))
    kept.keeper._release_pending()
    assert worker.depth().claimed == 1
    kept.system.before = None
    kept.keeper.round()
    (line,) = worker.list()
    assert (line.state, line.attempt, line.crashes) in (("deferred", 2, 0), ("waiting", 2, 0))


def test_a_release_that_fails_is_said_when_it_begins_and_when_its_reason_changes(kept, caplog):
    worker = kept.worker()
    kept.keeper.open()
    worker.put(b"x", "mine")
    worker.settled(worker.claim())
    kept.keeper._pending.append(Release(kept.board.worker(0).text(1), "died"))

    def said() -> int:
        return caplog.text.count("tried again")

    kept.system.fail_all("rename", errno.ENOSPC)
    for _ in range(3):
        kept.keeper._release_pending()
    assert said() == 1
    kept.system.fail_all("rename", errno.EIO)
    for _ in range(3):
        kept.keeper._release_pending()
    assert said() == 2
    kept.system.before = None
    kept.keeper._release_pending()
    assert (said(), worker.depth().waiting) == (2, 1)


def test_a_release_that_fails_keeps_no_other_from_going_back(kept):
    worker = kept.worker()
    kept.keeper.open()
    for name in ("first", "second"):
        worker.put(b"x", name)
        worker.claim()
        worker._lapses = -1  # the next claim is another owner's
    first, second = sorted(os.listdir(kept.rig.path / "pending"))

    def fail(call, arguments):
        if call == "rename" and f"/{first}/" in arguments[0]:
            raise OSError(errno.EIO, os.strerror(errno.EIO), arguments[0])

    kept.system.before = fail
    kept.keeper._pending.extend(Release(owner, "died") for owner in (first, second))
    kept.keeper._release_pending()
    assert [order.owner for order in kept.keeper._pending] == [first]
    assert sorted(line.state for line in worker.list()) == ["claimed", "waiting"]


def test_the_depth_is_measured_once_a_second_or_when_asked(kept):
    worker = kept.worker()
    kept.keeper.open()
    worker.put(b"x")
    kept.keeper.round()
    assert kept.words[Q.WAITING] == 0
    kept.board.header.words[Header.PASS] = 1
    kept.keeper.round()
    assert (kept.words[Q.WAITING], kept.words[Q.PASS]) == (1, 1)
    worker.put(b"x")
    kept.rig.world.moved_ns += int(1e9)
    kept.keeper.round()
    assert kept.words[Q.WAITING] == 2


def test_until_empty_waits_for_what_is_in_hand(kept):
    """Whoever sees the answer to a pass must see figures that were measured after it was asked for."""
    worker, words, wrong = kept.worker(), kept.words, []
    kept.keeper.open()
    expected = {"claimed": Q.CLAIMED, "deferred": Q.DEFERRED, "waiting": Q.WAITING}
    worker.put(b"1")
    worker.put(b"2", delay=60)
    worker.claim()
    worker.put(b"3")

    def check(*_):
        if words[Q.PASS] == 7 and [words[word] for word in expected.values()] != [1, 1, 1]:
            wrong.append([words[word] for word in expected.values()])

    kept.keeper._slot.words = Words(words, check)
    kept.board.header.words[Header.PASS] = 7
    kept.keeper.measure()
    check()
    assert words[Q.PASS] == 7
    assert wrong == []


def test_a_pass_asked_for_during_a_measure_is_not_answered_by_it(kept):
    kept.keeper.open()
    kept.board.header.words[Header.PASS] = 1
    kept.system.before = lambda *_: kept.board.header.words.__setitem__(Header.PASS, 2)
    kept.keeper.measure()
    assert kept.words[Q.PASS] == 1


def test_what_cannot_be_measured_keeps_the_figures_and_answers_no_pass(kept):
    kept.keeper.open()
    kept.system.fail_all("scandir", errno.EIO)
    kept.board.header.words[Header.PASS] = 3
    kept.keeper.measure()
    assert kept.words[Q.PASS] == 0
