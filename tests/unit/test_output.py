"""The limit of what waits in an output: alone, in every order of two workers, and in the life of a worker."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.contract.test_contract import OPENERS, Opened
from tests.rig import FakeSystem, Pool, Rig, World
from tests.schedules import Actor, Step, sampled, schedules
from tests.unit.test_worker import Patient, figures, work
from workers.board import PROCESS_WORDS, Board, Q, W
from workers.errors import QueueUnavailable
from workers.handler import CANCELLED
from workers.handlers.onward import Onward
from workers.message import Forward, Reject
from workers.output import GOOD_NS, OutputLimit
from workers.queues.null import Null


class Counted(Null):
    """An output of which only the count is known; *count* is what a look finds."""

    def __init__(self, count: int = 0) -> None:
        super().__init__()
        self.count = count
        self.looks = 0
        self.before: Callable[[], None] = lambda: None

    def waiting_count(self) -> int:
        self.looks += 1
        self.before()
        return self.count


class Limits:
    """Workers of one queue on a board of their own, with an output that counts."""

    def __init__(self, place: Path, workers: int, limit: int) -> None:
        self.world = World(place)
        self.board = Board.create()
        self.queue_slot = self.board.take_queue("queue", "spool:/queue")
        self.board.queues[self.queue_slot].words[Q.PEERS] = 1
        self.output = Counted()
        self.slots = [self.board.take_worker(self.queue_slot, index) for index in range(workers)]
        self.limit = limit
        self.fresh()

    def fresh(self) -> None:
        """As at the start of all of them."""
        for slot in self.slots:
            self.board.worker(slot).clear(PROCESS_WORDS)
        self.output.count = 0
        self.each = [
            OutputLimit(
                self.board, slot, self.queue_slot, self.limit, lambda: self.output, system=FakeSystem(self.world)
            )
            for slot in self.slots
        ]

    def reserved(self, index: int) -> int:
        return self.board.worker(self.slots[index]).words[W.RESERVED]


def test_far_below_the_limit_most_claims_need_no_look(tmp_path):
    limits = Limits(tmp_path, workers=1, limit=1000)
    (limit,) = limits.each
    for _ in range(900):
        assert limit.has_room()
        limits.output.count += 1
        limit.used()
    assert limits.output.looks < 20


def test_at_the_limit_nothing_is_claimed_until_there_is_room(tmp_path):
    limits = Limits(tmp_path, workers=1, limit=5)
    (limit,) = limits.each
    limits.output.count = 5
    assert not limit.has_room()
    assert limits.reserved(0) == 0
    assert limits.board.worker(0).words[W.OUTPUT_FULL] == 1
    limits.output.count = 4
    assert limit.has_room()
    assert limits.reserved(0) == 1
    assert limits.board.worker(0).words[W.OUTPUT_FULL] == 0


def test_each_of_several_workers_may_take_one_at_the_edge(tmp_path):
    """Two that ask at the same moment do not keep each other from the last place."""
    limits = Limits(tmp_path, workers=3, limit=5)
    limits.output.count = 4
    assert [limit.has_room() for limit in limits.each] == [True, True, True]
    limits.output.count = 7
    for limit in limits.each:
        limit.used()
    assert not any(limit.has_room() for limit in limits.each)


def test_places_that_another_worker_holds_are_taken(tmp_path):
    limits = Limits(tmp_path, workers=2, limit=10)
    limits.each[1].has_room()
    limits.board.worker(1).words[W.RESERVED] = 11
    assert not limits.each[0].has_room()
    limits.board.worker(1).words[W.RESERVED] = 10
    assert limits.each[0].has_room()


def test_a_worker_that_is_idle_keeps_one_place_only(tmp_path):
    limits = Limits(tmp_path, workers=1, limit=1000)
    (limit,) = limits.each
    for _ in range(2):
        assert limit.has_room()
        limit.used()
    assert limit.has_room()
    assert limits.reserved(0) > 1
    limit.rest()
    assert limits.reserved(0) == 1
    looks = limits.output.looks
    assert limit.has_room()
    assert limits.output.looks == looks


@pytest.mark.parametrize("what", ["a second has passed", "another pool has come"])
def test_places_are_held_several_at_a_time_only_while_they_are_known_to_be_free(tmp_path, what):
    limits = Limits(tmp_path, workers=1, limit=1000)
    (limit,) = limits.each
    assert limit.has_room()
    limit.used()
    assert limit.has_room()
    assert limits.reserved(0) > 1
    if what == "a second has passed":
        limits.world.moved_ns += GOOD_NS
    else:
        limits.board.queues[0].words[Q.PEERS] = 2
    assert limit.has_room()
    assert limits.reserved(0) == 1


@pytest.mark.parametrize("peers", [0, 2])
def test_with_other_pools_each_message_is_looked_for(tmp_path, peers):
    """0: the protocol has no leases to count them by."""
    limits = Limits(tmp_path, workers=1, limit=1000)
    limits.board.queues[0].words[Q.PEERS] = peers
    (limit,) = limits.each
    for _ in range(10):
        assert limit.has_room()
        assert limits.reserved(0) == 1
        limit.used()
    assert limits.output.looks == 10


def test_places_are_of_the_output_that_was_counted(tmp_path):
    """After a reload the same name is another queue: what was reserved in the first is no place in the second."""
    limits = Limits(tmp_path, workers=2, limit=10)
    assert limits.each[0].has_room()
    full = Counted(10)
    full.url = "null:other"
    first_key = limits.board.worker(0).words[W.OUTPUT]
    limits.output = full
    assert not limits.each[0].has_room()
    assert limits.board.worker(0).words[W.OUTPUT] not in (0, first_key)
    assert limits.reserved(0) == 0


def test_an_output_that_cannot_be_counted_reserves_nothing(tmp_path):
    limits = Limits(tmp_path, workers=1, limit=10)

    def away() -> None:
        raise QueueUnavailable("away")

    limits.output.before = away
    with pytest.raises(QueueUnavailable):
        limits.each[0].has_room()
    assert limits.reserved(0) == 0
    assert limits.board.worker(0).words[W.OUTPUT_FULL] == 1


def test_the_waits_for_room_double_up_to_the_longest(tmp_path):
    limits = Limits(tmp_path, workers=1, limit=10)
    held_s, waits = 0.0, []
    for _ in range(12):
        waits.append(limits.each[0].pause_s(held_s))
        held_s += waits[-1]
    assert 0.04 <= waits[0] <= 0.05
    assert all(later >= 0.8 * min(sum(waits[:number]), 10) for number, later in enumerate(waits))
    assert 8 <= waits[-1] <= 10


# ---- every order


class Seen:
    """The words of worker *number*: what is reserved is a step to raise, and for another to read."""

    def __init__(self, real: memoryview[int], number: int, acting: threading.local) -> None:
        self.real, self.number, self.acting = real, number, acting

    def __getitem__(self, word: int) -> int:
        if word == W.RESERVED and getattr(self.acting, "number", self.number) != self.number:
            self.acting.step()
        return self.real[word]

    def __setitem__(self, word: int, value: int) -> None:
        is_acting = word == W.RESERVED and getattr(self.acting, "number", None) is not None
        if is_acting and value > max(self.real[word], 1):  # a first place is of no interest to the others
            self.acting.step()
        self.real[word] = value


class Interleaved(Limits):
    """What a worker does that another can see is a step: reserving, reading what is reserved, a look, a put."""

    def __init__(self, place: Path, workers: int, limit: int) -> None:
        self.acting = threading.local()
        super().__init__(place, workers, limit)
        self.most = 0
        self.output.before = lambda: self.acting.step()  # noqa: PLW0108 - each thread has its own

    def fresh(self) -> None:
        super().fresh()
        self.most = 0
        for number, (slot, limit) in enumerate(zip(self.slots, self.each, strict=True)):
            words = self.board.worker(slot).words
            if not isinstance(words, Seen):
                words = self.board.worker(slot).words = Seen(words, number, self.acting)  # type: ignore[assignment]
            limit._words = words
            limit._turn_to(self.output)
            limit._share = 2  # each wants two places

    def worker(self, number: int, messages: int) -> Actor:
        """Hands *messages* on, or finds no room."""

        def act(step: Step) -> None:
            self.acting.step, self.acting.number = step, number
            limit = self.each[number]
            for _ in range(messages):
                if not limit.has_room():
                    return
                step()
                self.output.count += 1
                self.most = max(self.most, self.output.count)
                limit.used()

        return act

    def consumer(self, messages: int) -> Actor:
        """Takes as many of them as are there."""

        def act(step: Step) -> None:
            for _ in range(messages):
                step()
                self.output.count = max(self.output.count - 1, 0)

        return act


def test_no_order_of_two_workers_leaves_more_than_the_limit_and_one_for_each(tmp_path):
    """Each wants two places of two, and uses what it gets. The last place is had by both at most."""
    limits, count = Interleaved(tmp_path, workers=2, limit=2), 0

    def setup() -> list[Actor]:
        limits.fresh()
        return [limits.worker(number, 2) for number in range(2)]

    for run in schedules(setup):
        assert limits.most <= 2 + 2 - 1, run.trail
        count += 1
    assert count > 500


@pytest.mark.parametrize("seed", range(4))
def test_no_long_run_of_three_workers_and_a_consumer_leaves_more_than_the_limit_and_one_for_each(tmp_path, seed):
    limits = Interleaved(tmp_path, workers=3, limit=4)

    def setup() -> list[Actor]:
        limits.fresh()
        return [*(limits.worker(number, 8) for number in range(3)), limits.consumer(6)]

    for run in sampled(setup, 500, seed):
        assert limits.most <= 4 + 3 - 1, run.trail


@pytest.mark.parametrize("seed", range(2))
def test_workers_of_several_pools_that_cannot_see_each_other_are_one_above_the_limit_each(tmp_path, seed):
    pools = [Interleaved(tmp_path, workers=2, limit=4) for _ in range(2)]
    first, second = pools
    second.output = first.output
    for pool in pools:
        pool.board.queues[0].words[Q.PEERS] = 2
    first.output.before = lambda: next(pool.acting.step for pool in pools if hasattr(pool.acting, "step"))()  # noqa: PLW0108 - each thread has its own

    def setup() -> list[Actor]:
        for pool in pools:
            pool.fresh()
        actors = [pool.worker(number, 4) for pool in pools for number in range(2)]
        return [*actors, first.consumer(4)]

    for run in sampled(setup, 500, seed):
        assert max(pool.most for pool in pools) <= 4 + 4 - 1, run.trail


# ---- a worker


@pytest.fixture(name="following")
def _following(rig: Rig, tmp_path: Path) -> Rig:
    found = Rig(tmp_path / "next", rig.world)
    found.spool()
    return found


def test_what_is_done_is_handed_on_to_the_output_and_what_is_not_is_not(rig, following):
    pool = rig.pool()
    answers = {"a": None, "b": Reject("no"), "c": CANCELLED, "d": Forward(b"new", str(following.path))}
    for name in answers:
        pool.spool.put(name.encode(), name)
    work(pool, lambda message: answers[message.name], output=str(following.path))
    assert following.everything() == {"incoming": [b"a", b"new"]}
    assert rig.everything() == {"errors": [b"b"]}
    assert figures(pool) == {"done": 1, "rejected": 1, "forwarded": 2}


@pytest.mark.parametrize("is_onward", [False, True])
def test_a_worker_claims_nothing_while_the_output_is_full(rig, following, is_onward):
    pool = rig.pool()
    for number in range(10):
        pool.spool.put(b"x", f"{number}")
    more = {} if is_onward else {"output": str(following.path)}
    handler = Onward(str(following.path)) if is_onward else (lambda _: None)
    leaving = Asked(pool, after=5)
    work(pool, handler, leaving=leaving, output_limit=3, **more)
    assert len(following.everything()["incoming"]) == 3
    assert len(rig.everything()["incoming"]) == 7
    assert len(leaving.waits) == 5
    assert figures(pool) == {"forwarded": 3}


class Asked(Patient):
    """Asked to leave by the wait number *after*."""

    def __init__(self, pool: Pool, after: int) -> None:
        super().__init__(pool)
        self.after = after

    def wait(self, timeout_s: float) -> bool:
        super().wait(timeout_s)
        if len(self.waits) >= self.after:
            self.ask()
        return self.is_asked


def test_a_place_is_given_back_when_its_message_is_in_the_output(rig, following):
    """Before that, nobody would know of the message: it is neither there nor reserved."""
    pool, seen = rig.pool(), []
    words = pool.board.worker(0).words
    for number in range(3):
        pool.spool.put(b"x", f"{number}")

    def look(name: str, arguments: tuple[object, ...]) -> None:
        if name.startswith("rename") and str(following.path) in str(arguments[1]):
            seen.append(words[W.RESERVED])

    pool.system.before = look
    pool.board.queues[0].words[Q.PEERS] = 2  # one place at a time
    work(pool, lambda _: None, output=str(following.path), output_limit=9, leaving=Asked(pool, after=100))
    assert seen == [1, 1, 1]
    assert words[W.RESERVED] <= 1


def test_what_did_not_get_into_the_output_has_used_its_place_all_the_same(rig, following):
    """A forward may fail after the message was put there: better one place too few than one message too many."""
    pool = rig.pool()
    pool.spool.put(b"x", "a")
    following.spool().put(b"x")
    limited = work(pool, lambda _: Reject("no"), output=str(following.path), output_limit=2, most=1)
    assert limited._limit is not None
    assert pool.board.worker(0).words[W.RESERVED] == 1  # the one of the look that found nothing more
    assert figures(pool) == {"rejected": 1}


@pytest.mark.parametrize("limit", [0, 5])
def test_an_output_that_is_away_is_waited_for_and_burns_no_attempt(rig, tmp_path, limit):
    """With a limit nothing is claimed meanwhile, without one the message in hand waits."""
    pool, place = rig.pool(), Rig(tmp_path / "later", rig.world)
    pool.spool.put(b"x", "a")

    class Arriving(Asked):
        def wait(self, timeout_s: float) -> bool:
            if len(self.waits) == 3:
                place.spool()
            return super().wait(timeout_s)

    attempts = []
    leaving = Arriving(pool, after=100)
    work(
        pool, lambda message: attempts.append(message.attempt), leaving=leaving, output=str(place.path),
        output_limit=limit,
    )  # fmt: skip
    assert place.everything() == {"incoming": [b"x"]}
    assert figures(pool) == {"forwarded": 1}
    assert attempts == [1]


@pytest.mark.parametrize("limit", [0, 5])
@pytest.mark.parametrize("output", ["nowhere", "redis://host/queue"])
def test_an_output_that_cannot_be_opened_at_all_burns_no_attempt(rig, limit, output):
    """It is the configuration's fault, and no message's."""
    pool = rig.pool()
    pool.spool.put(b"x", "a")
    leaving = Asked(pool, after=8)
    work(pool, lambda _: None, leaving=leaving, output=output, output_limit=limit)
    assert figures(pool) == {}
    assert len(leaving.waits) == 8


def test_a_worker_that_waits_for_room_leaves_at_once_when_asked(rig, following):
    pool = rig.pool()
    pool.spool.put(b"x", "a")
    following.spool().put(b"x")
    leaving = Asked(pool, after=1)
    work(pool, lambda _: None, leaving=leaving, output=str(following.path), output_limit=1)
    assert rig.everything() == {"incoming": [b"x"]}


# ---- counting


@pytest.mark.parametrize("kind", sorted(set(OPENERS) - {"null"}))
def test_what_waits_is_counted_and_nothing_else(tmp_path, kind):
    """What is claimed, deferred or in errors/ does not wait."""
    opened: Opened = OPENERS[kind](tmp_path)
    queue = opened.queue
    try:
        assert queue.waiting_count() == 0
        for number in range(5):
            opened.put(b"%d" % number, f"{number}")
        opened.settle(queue.reject, opened.claim(), "no")
        opened.settle(queue.retry, opened.claim(), 3600.0)
        claim = opened.claim()
        assert queue.waiting_count() == 2
        opened.settle(queue.done, claim)
        assert queue.waiting_count() == queue.depth().waiting == 2
    finally:
        queue.close()
        opened.end()


def test_a_queue_that_cannot_be_listed_says_so_when_it_is_counted(rig):
    pool = rig.pool()
    pool.system.fail_all("scandir", errno.EACCES)
    with pytest.raises(QueueUnavailable):
        pool.spool.waiting_count()
