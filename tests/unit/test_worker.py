"""The life of one worker, in this process: outcomes, trouble, leaving."""

from __future__ import annotations

import copy
import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest

from tests.rig import SETTINGS, Pool, Rig
from workers.board import Q, W, WorkerState, WorkerText
from workers.dirq import QueueSimple
from workers.errors import QueueFull
from workers.handlers.onward import Onward
from workers.message import Done, Forward, Message, Reject, Retry
from workers.queues.base import Settings
from workers.queues.open import open_queue
from workers.waiting import Leaving
from workers.worker import OUTCOME_WORDS, Worker


class Patient(Leaving):
    """Leaving whose waits move the clock instead."""

    def __init__(self, pool: Pool) -> None:
        super().__init__()
        self.pool = pool
        self.waits: list[float] = []

    def wait(self, timeout_s: float) -> bool:
        self.waits.append(timeout_s)
        self.pool.rig.world.moved_ns += int(timeout_s * 1e9)
        self.pool.keeper.keep()
        if len(self.waits) >= 3:  # what was wrong is over
            self.pool.system.before = None
        return self.is_asked


def work(pool: Pool, handler, *, most: int = 20, leaving: Leaving | None = None, **more) -> Worker:
    """Run a worker until it has waited for messages *most* times, the keeper doing a round at each."""
    leaving, waits = leaving or Patient(pool), []

    def wait(timeout_s: float, fd: int) -> bool:
        waits.append(timeout_s)
        pool.rig.world.advance(0.5)
        pool.keeper.keep()
        if len(waits) >= most:
            leaving.ask()
        return True

    consumer = pool._consumer(0)
    worker = Worker(pool.spool, handler, consumer, leaving, wait, system=pool.system, **more)
    worker.run()
    os.close(leaving.fd)
    os.close(leaving._writer)
    return worker


def figures(pool: Pool) -> dict[str, int]:
    words = pool.board.worker(0).words
    return {name: words[word] for name, word in OUTCOME_WORDS.items() if words[word]}


def test_each_outcome_ends_where_it_should_and_is_counted(rig, tmp_path):
    pool, following = rig.pool(), Rig(tmp_path / "next", rig.world)
    following.spool()
    answers = {
        "a": lambda: None, "b": Done, "c": lambda: Reject("no"), "d": lambda: Retry(3600),
        "e": lambda: Forward(queue="next"), "f": lambda: Forward([b"1", "2"], queue=str(following.path)),
    }  # fmt: skip
    for name in answers:
        pool.spool.put(name.encode(), name)
    work(pool, lambda message: answers[message.name](), queues={"next": f"spool:{following.path}"})
    assert rig.everything() == {"errors": [b"c"], "deferred": [b"d"]}
    assert following.everything() == {"incoming": [b"1", b"2", b"e"]}
    assert figures(pool) == {"done": 2, "rejected": 1, "retried": 1, "forwarded": 2}
    words = pool.board.worker(0).words
    assert words[W.CLAIMS] == words[W.PROCESS_CLAIMS] == words[W.PROCESS_SETTLED] == 6
    assert words[W.MESSAGE_SINCE_NS] == 0
    assert words[W.STATE] == WorkerState.STOPPING
    assert pool.board.worker(0).text(WorkerText.OWNER) == ""
    assert os.listdir(rig.path / "pending") == []


def test_a_handler_that_raises_is_retried_and_ends_in_errors_with_the_traceback(rig):
    pool = rig.pool(settings=Settings(create=True, max_attempts=3, retry_backoff_s=0.0))
    pool.spool.put(b"x", "bad")

    def handler(message):
        raise ValueError("wrong number")

    work(pool, handler, most=60)
    (shown,) = pool.spool.show("bad")
    assert shown.listed.state == "errors"
    assert shown.meta is not None
    assert shown.meta["attempts"] == 3
    assert "wrong number" in str(shown.meta["traceback"])
    assert {"host", "worker", "claimed_at", "rejected_at"} <= set(shown.meta)
    assert figures(pool) == {"retried": 2, "rejected": 1}


def test_what_is_no_regular_file_goes_to_errors_without_the_handler(rig):
    pool, called = rig.pool(), []
    os.symlink("/etc/passwd", rig.path / "incoming" / "secret")
    work(pool, lambda message: called.append(message.name), most=3)
    assert called == []
    assert figures(pool) == {"rejected": 1}


def test_a_message_that_is_larger_than_allowed_goes_to_errors_without_the_handler(rig):
    pool, called = rig.pool(), []
    for size in (9, 10, 100 << 30):
        with (rig.path / "incoming" / f"of{size}").open("wb") as file:
            file.truncate(size)  # a hole: no disk has to hold it
    work(pool, lambda message: called.append(message.name), most=5, message_size_max=9)
    assert called == ["of9"]
    assert figures(pool) == {"done": 1, "rejected": 2}
    (shown,) = pool.spool.show(f"of{100 << 30}")
    assert shown.meta["reason"] == "it has 107374182400 bytes, and max_message_size is 9"


def test_a_file_that_grows_while_it_is_read_is_not_read_for_ever(rig, tmp_path, monkeypatch):
    """Whoever put it may have it open."""
    pool, simple = rig.pool(), QueueSimple(str(tmp_path / "simple"))
    monkeypatch.setattr("workers.message.READ_MAX", 10)
    monkeypatch.setattr("workers.dirq.base.READ_MAX", 10)
    pool.spool.put(b"x")
    claim = pool.claim()
    os.truncate(claim.path, 11)
    with pytest.raises(OSError, match="has 11 bytes"):
        Message(claim, "q").body  # noqa: B018 - it is read when asked for
    name = simple.add(b"x")
    simple.lock(name)
    fstat = os.fstat

    def growing(fd):
        found = fstat(fd)
        os.truncate(tmp_path / "simple" / name, 11)
        return found

    simple.elements.system = copy.copy(simple.elements.system)
    simple.elements.system.fstat = growing
    with pytest.raises(OSError, match="larger than"):
        simple.get(name)


def test_nobody_is_made_to_read_a_hundred_gibibytes_at_once(rig, tmp_path):
    """Where no size was set: the machine would be out of memory, with all that runs on it."""
    pool, told = rig.pool(settings=replace(SETTINGS, max_attempts=1)), []
    with (rig.path / "incoming" / "sparse").open("wb") as file:
        file.truncate(100 << 30)

    def read(message):
        try:
            message.body  # noqa: B018 - it is read when asked for
        except OSError as error:
            told.append(error.errno)
            raise

    work(pool, read, most=3)
    assert told == [errno.EFBIG]
    (shown,) = pool.spool.show("sparse")
    assert "max_message_size" in shown.meta["traceback"]
    simple = QueueSimple(str(tmp_path / "simple"))
    name = simple.add(b"x")
    os.truncate(tmp_path / "simple" / name, 100 << 30)
    simple.lock(name)
    for read_it in (lambda: simple.get(name), lambda: pool.spool.read_body(tmp_path / "simple" / name)):
        with pytest.raises(OSError, match="larger than 1024 MiB") as caught:
            read_it()
        assert caught.value.errno == errno.EFBIG


def test_a_forward_to_nowhere_is_a_failure_of_the_handler(rig, tmp_path):
    pool = rig.pool()
    for name, queue in (("a", ""), ("b", str(tmp_path / "none")), ("c", "redis://x/y")):
        pool.spool.put(b"x", name)
        work(
            pool,
            lambda message, queue=queue: Forward(b"x", queue=queue) if message.attempt == 1 else Reject("x"),
            most=2,
        )
    assert figures(pool)["retried"] == 3


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EIO, errno.EROFS])
def test_a_disk_that_is_full_makes_the_worker_wait_and_nothing_is_handled_twice(rig, code, caplog):
    pool, handled = rig.pool(), []
    pool.spool.put(b"x", "mine")

    def handler(message):
        handled.append(message.name)
        pool.system.fail_all("unlink", code)

    work(pool, handler, most=5)
    assert handled == ["mine"]
    assert figures(pool) == {"done": 1}
    assert len([record for record in caplog.records if "waiting until" in record.getMessage()]) == 1


def test_a_queue_that_cannot_be_claimed_from_makes_the_worker_wait(rig):
    pool, handled = rig.pool(), []
    pool.spool.put(b"x", "mine")
    pool.system.fail_all("mkdir", errno.ENOSPC)
    work(pool, lambda message: handled.append(message.name), most=5)
    assert handled == ["mine"]


def test_a_handler_that_removes_its_input_is_done_or_counted_as_input_gone(rig):
    pool = rig.pool()
    for name in "ab":
        pool.spool.put(b"x", name)

    def handler(message):
        os.unlink(message.path)
        return None if message.name == "a" else Reject("no")

    work(pool, handler, most=3)
    assert figures(pool) == {"done": 1, "input_gone": 1}


def test_a_message_that_was_given_to_another_is_counted_as_fenced(rig):
    pool, other = rig.pool("one"), rig.pool("two")
    pool.spool.put(b"x", "mine")
    taken = []

    def handler(message):
        if not taken:
            other.rounds(7)
            taken.append(other.claim())

    work(pool, handler, most=3)
    assert figures(pool) == {"fenced": 1}
    assert rig.everything() == {"pending": [b"x"]}


def test_a_worker_asked_to_leave_finishes_what_it_has_in_hand_and_takes_no_more(rig):
    pool = rig.pool()
    for name in "abc":
        pool.spool.put(b"x", name)
    leaving, handled = Patient(pool), []

    def handler(message):
        handled.append(message.name)
        leaving.ask()

    Worker(pool.spool, handler, pool._consumer(0), leaving, lambda *_: True, system=pool.system).run()
    assert handled == ["a"]
    assert len(rig.files("incoming")) == 2


def test_a_worker_that_must_leave_while_the_disk_is_full_gives_the_message_back(rig):
    pool = rig.pool()
    pool.spool.put(b"x", "mine")
    leaving = Patient(pool)

    def handler(message):
        leaving.ask()
        pool.system.fail_all("unlink", errno.ENOSPC)

    leaving.waits = [0.0] * -1000  # never over by itself
    leaving.wait = lambda timeout_s: True
    Worker(pool.spool, handler, pool._consumer(0), leaving, lambda *_: True, system=pool.system).run()
    pool.system.before = None
    (line,) = pool.spool.list()
    assert (line.state, line.attempt, line.crashes) == ("waiting", 1, 0)


def test_the_message_in_hand_is_on_the_board_before_the_handler_runs(rig):
    pool, seen = rig.pool(), []
    pool.spool.put(b"x", "mine")

    def handler(message):
        slot = pool.board.worker(0)
        seen.append((slot.text(WorkerText.MESSAGE), slot.words[W.STATE], slot.words[W.MESSAGE_SINCE_NS] > 0))

    work(pool, handler, most=2)
    assert seen == [("mine", WorkerState.BUSY, True)]


def test_until_empty_does_not_leave_while_a_due_message_is_between_two_places(rig):
    """The keeper moves it out of deferred/ after the worker counted incoming/ and before it counts deferred/."""
    pool, handled = rig.pool(), []
    pool.spool.put(b"x", delay=1)
    pool.keeper.keep()

    def move_due(call, arguments):
        if call == "listdir" and str(arguments[0]).endswith("deferred"):
            pool.system.before = None
            pool.rig.world.advance(3)
            pool.keeper.keep()

    pool.system.before = move_due
    worker = Worker(
        pool.spool, lambda message: handled.append(message.name), pool._consumer(0), Patient(pool),
        lambda *_: True, is_until_empty=True, system=pool.system,
    )  # fmt: skip
    worker.run()
    assert len(handled) == 1
    assert pool.words[Q.DUE_MOVES] == 1


def test_a_file_by_path_is_given_as_it_is(rig):
    pool, seen = rig.pool(settings=SETTINGS), []
    pool.spool.put(b"\x00\xff", "mine")
    work(pool, lambda message: seen.append((Path(message.path).read_bytes(), message.body, message.attempt)), most=2)
    assert seen == [(b"\x00\xff", b"\x00\xff", 1)]


def test_a_forward_to_a_queue_that_is_full_waits_and_is_handed_on_once(rig, tmp_path, caplog):
    pool, following = rig.pool(), Rig(tmp_path / "next", rig.world)
    following.spool()
    pool.spool.put(b"x", "mine")
    handled, refused = [], []
    forward = pool.spool.forward

    def full(*arguments):
        if len(refused) < 2:
            refused.append(arguments)
            raise QueueFull("no room")
        forward(*arguments)

    pool.spool.forward = full

    def handler(message):
        handled.append(message.name)
        return Forward(queue=str(following.path))

    work(pool, handler, most=5)
    assert handled == ["mine"]
    assert following.everything() == {"incoming": [b"x"]}
    assert figures(pool) == {"forwarded": 1}
    assert len([record for record in caplog.records if "waiting until" in record.getMessage()]) == 1


def test_a_forward_that_the_next_queue_refuses_for_good_is_a_failed_attempt(rig, tmp_path):
    pool = rig.pool(settings=Settings(create=True, max_attempts=2, retry_backoff_s=0.0))
    pool.spool.put(b"\xff", "no text")
    text_only = f"dirq:{tmp_path}/next?schema=body:string"
    open_queue(text_only, create=True).close()
    work(pool, lambda _: Forward(queue=text_only), most=60)
    assert rig.everything() == {"errors": [b"\xff"]}
    assert figures(pool) == {"retried": 1, "rejected": 1}


def test_a_bridge_whose_target_is_away_waits_and_blames_no_message(rig, tmp_path, caplog):
    pool, following = rig.pool(settings=Settings(create=True, max_attempts=1)), Rig(tmp_path / "next", rig.world)
    pool.spool.put(b"x", "mine")

    class Late(Patient):
        def wait(self, timeout_s: float) -> bool:
            following.spool()  # it is there again
            return super().wait(timeout_s)

    work(pool, Onward(str(following.path)), most=5, leaving=Late(pool))
    assert following.everything() == {"incoming": [b"x"]}
    assert figures(pool) == {"forwarded": 1}
    assert len([record for record in caplog.records if "waiting until" in record.getMessage()]) == 1


def test_a_bridge_that_leads_back_to_its_own_queue_hands_nothing_on(rig, tmp_path):
    pool = rig.pool()
    pool.spool.put(b"x", "mine")
    (tmp_path / "other").symlink_to(rig.path)
    waits = []

    class Short(Patient):
        def wait(self, timeout_s: float) -> bool:
            waits.append(timeout_s)
            if len(waits) > 4:
                self.ask()
            return super().wait(timeout_s)

    work(pool, Onward(str(tmp_path / "other")), leaving=Short(pool))
    assert figures(pool) == {}
    assert len(waits) > 4
