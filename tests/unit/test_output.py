"""The limit of what waits in an output: alone, in every order of two workers, and in the life of a worker."""

from __future__ import annotations

import errno
import logging
import random
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
from workers.handler import CANCELLED, Services
from workers.handlers.onward import Onward
from workers.message import Forward, Message, Reject
from workers.output import OutputLimit
from workers.queues.null import Null
from workers.worker import Worker

MORE, MOMENT_NS = 64, 100_000_000  # as promised to operators: places at a time, and for how long


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


@pytest.mark.parametrize(("at", "most"), [(0, 60), (2500, 500)])
def test_below_half_of_the_limit_most_claims_need_no_look_and_above_half_each_does(tmp_path, at, most):
    limits = Limits(tmp_path, workers=1, limit=5000)
    (limit,) = limits.each
    limits.output.count = at
    for _ in range(500):
        assert limit.has_room()
        assert limits.reserved(0) <= MORE
        limits.output.count += 1
        limit.used()
    assert (limits.output.looks <= most) if at == 0 else (limits.output.looks == most)


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


@pytest.mark.parametrize("what", ["a while has passed", "another pool has come"])
def test_places_are_held_several_at_a_time_only_while_they_are_known_to_be_free(tmp_path, what):
    limits = Limits(tmp_path, workers=1, limit=1000)
    (limit,) = limits.each
    assert limit.has_room()
    limit.used()
    assert limit.has_room()
    assert limits.reserved(0) > 1
    looks = limits.output.looks
    limits.world.moved_ns += MOMENT_NS - 1
    assert limit.has_room()
    assert limits.output.looks == looks
    if what == "a while has passed":
        limits.world.moved_ns += 1
    else:
        limits.board.queues[0].words[Q.PEERS] = 2
    limits.output.count = 999
    assert limit.has_room()
    assert limits.output.looks == looks + 1
    assert limits.reserved(0) == 1


def test_what_is_counted_is_as_old_as_the_beginning_of_the_look(tmp_path):
    """A listing may take long, and what it passed first has changed by its end."""
    limits = Limits(tmp_path, workers=1, limit=1000)
    (limit,) = limits.each
    assert limit.has_room()
    limit.used()

    def takes_long() -> None:
        limits.world.moved_ns += MOMENT_NS

    limits.output.before = takes_long
    for _ in range(2):
        looks = limits.output.looks
        assert limit.has_room()
        assert limits.output.looks == looks + 1


def test_that_no_other_pool_is_there_is_believed_only_after_half_of_a_leases_timeout(tmp_path):
    """The keeper's first look may have been before the other's first beat; and each time anew."""
    limits = Limits(tmp_path, workers=1, limit=1000)
    (limit,), words = limits.each, limits.board.queues[0].words
    words[Q.HALF_TIMEOUT_NS] = 30_000_000_000
    is_several = []
    for peers, passed_s in [(1, 0), (1, 15), (1, 14), (1, 2), (2, 0), (1, 29), (1, 29), (1, 2)]:
        words[Q.PEERS] = peers
        limits.world.moved_ns += passed_s * 1_000_000_000
        for _ in range(2):  # how many is known by the look before
            assert limit.has_room()
            is_several.append(limits.reserved(0) > 1)
            for _ in range(limits.reserved(0)):
                limit.used()
    assert is_several[::2] == [False, False, False, True, False, False, False, True]


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
    limits.output.count = 10
    for _ in range(12):
        assert not limits.each[0].has_room()
        assert limits.each[0].full_s() == pytest.approx(held_s)
        waits.append(limits.each[0].pause_s())
        held_s += waits[-1]
        limits.world.moved_ns += round(waits[-1] * 1e9)
    assert 0.04 <= waits[0] <= 0.05
    assert all(later >= 0.8 * min(sum(waits[:number]), 10) for number, later in enumerate(waits))
    assert 8 <= waits[-1] <= 10
    limits.output.count = 9
    assert limits.each[0].has_room()
    assert limits.each[0].full_s() == 0


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
            # Each wants two places, and may have them up to the limit: only there can one more be one too many.
            limit._share, limit._half = 2, self.limit

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


class Unseen:
    """Several pools, each of one worker, that put into one output and do not see each other."""

    def __init__(self, place: Path, pools: int, limit: int) -> None:
        self.pools = [Limits(place, workers=1, limit=limit) for _ in range(pools)]
        self.output = Counted()
        for pool in self.pools:
            pool.output = self.output

    def pass_time(self, passed_ns: int) -> None:
        for pool in self.pools:
            pool.world.moved_ns += passed_ns

    def put(self, pool: Limits) -> bool:
        """Whether there was room for one more."""
        (limit,) = pool.each
        if not limit.has_room():
            return False
        self.output.count += 1
        limit.used()
        return True

    def fill(self, dice: random.Random, round_ns: int) -> int:
        """All put at random, at most a hundred in *round_ns*, until each finds no room; how many wait then."""
        idle, puts = set[int](), 0
        while len(idle) < len(self.pools):
            number = dice.randrange(len(self.pools))
            for _ in range(dice.randint(1, 30)):
                if not self.put(self.pools[number]):
                    idle.add(number)
                    break
                puts += 1
                if puts % 100 == 0:
                    self.pass_time(round_ns)
        return self.output.count


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("limit", [5, 60, 300, 3000])
def test_pools_that_do_not_see_each_other_are_exact_unless_they_fill_half_of_the_limit_within_a_moment(
    tmp_path, limit, seed
):
    """A hundred in a tenth of a second: half of a limit of 300 takes longer. One more each, and else 64 more each."""
    dice = random.Random(seed)  # noqa: S311 - to be repeated
    over = Unseen(tmp_path, 4, limit).fill(dice, MOMENT_NS) - limit
    assert over <= (3 if limit >= 300 else 4 * MORE)
    assert Unseen(tmp_path, 40, limit).fill(dice, 0) - limit <= 40 * MORE


def test_pools_that_fill_the_output_within_a_moment_have_at_most_64_more_for_each_worker(tmp_path):
    unseen = Unseen(tmp_path, 9, 3000)
    for pool in unseen.pools:  # each has looked once, and knows what to ask for; and one has made it full
        assert pool.each[0].has_room()
        pool.each[0].used()
        assert pool.each[0].has_room()
        assert pool.reserved(0) == MORE
    unseen.output.count = 3000
    for pool in unseen.pools:
        while unseen.put(pool):
            pass
    assert unseen.output.count == 3000 + 9 * MORE
    later = Unseen(tmp_path, 9, 3000)
    for pool in later.pools:
        assert pool.each[0].has_room()
        pool.each[0].used()
        assert pool.each[0].has_room()
    later.output.count = 3000
    later.pass_time(MOMENT_NS)
    assert not any(later.put(pool) for pool in later.pools)


def test_what_is_no_message_takes_nobodys_place(rig, following):
    """A quick count of all names says that there is room, or else the slow one of the messages."""
    pool = rig.pool()
    for number in range(6):
        pool.spool.put(b"x", f"{number}")
    for number in range(3):
        (following.path / "incoming" / f".{number}").touch()
        (following.path / "incoming" / f"directory{number}").mkdir()
    work(pool, lambda _: None, output=str(following.path), output_limit=4, leaving=Asked(pool, after=3))
    assert len(rig.everything()["incoming"]) == 2
    assert figures(pool) == {"forwarded": 4}


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


class Ticking:
    """A handler of which an event is due each millisecond; *moments* are those at which it was served."""

    def __init__(self, pool: Pool) -> None:
        self.world, self.moments = pool.rig.world, list[int]()

    def __call__(self, message: Message) -> None:
        """Done."""

    def open(self, services: Services) -> None:
        """Nothing to prepare."""

    def turn(self) -> None:
        self.moments.append(self.world.moved_ns)

    def wait_s(self) -> float:
        return 0.001

    def is_busy(self) -> bool:
        return False

    def is_done(self) -> bool:
        return False

    def state(self) -> dict[str, object]:
        return {}

    def close(self) -> None:
        """Nothing to end."""


@pytest.mark.parametrize("is_away", [False, True])
def test_a_full_output_is_looked_at_no_more_often_for_the_events_that_are_due(rig, caplog, is_away):
    """15 s: the looks double from 50 ms to 1 s, the events are served in time, and one sentence is said, after 10 s."""
    pool, looks, said_s = rig.pool(), [], []
    pool.spool.put(b"x", "a")
    full = Counted(1)
    begun_ns = pool.system.boottime_ns()

    def look() -> None:
        looks.append(rig.world.moved_ns)
        if is_away:
            raise QueueUnavailable("away")

    class Waiting(Patient):
        def wait(self, timeout_s: float) -> bool:
            self.waits.append(timeout_s)
            rig.world.moved_ns += max(int(timeout_s * 1e9), 1)
            if caplog.records and not said_s:
                said_s.append((pool.system.boottime_ns() - begun_ns) / 1e9)  # a slow machine's own time is in it
            if rig.world.moved_ns > 15e9:
                self.ask()
            return self.is_asked

    full.before = look
    ticking = Ticking(pool)
    pool.keeper.keep = lambda: None  # type: ignore[method-assign,assignment,return-value] - the lease lives on
    leaving = Waiting(pool)
    with caplog.at_level(logging.WARNING):
        worker = Worker(pool.spool, ticking, pool._consumer(0), leaving, lambda *_: True, system=pool.system,
                        output="null:", output_limit=1, output_wait_s=1.0)  # fmt: skip
        worker._next["null:"] = full
        worker.run()
    assert 8 <= len(set(looks)) <= 26
    assert len(ticking.moments) > 10_000
    assert max(b - a for a, b in zip(ticking.moments, ticking.moments[1:], strict=False)) <= 2_000_000
    (record,) = caplog.records
    assert said_s[0] < 2 if is_away else 10 <= said_s[0] <= 12
    assert ("away" if is_away else "nothing is claimed while 1 wait") in record.getMessage()


# ---- counting


@pytest.mark.parametrize("kind", sorted(set(OPENERS) - {"null"}))
def test_what_waits_is_counted_and_nothing_else(tmp_path, kind):
    """What is claimed, deferred or in errors/ does not wait."""
    opened: Opened = OPENERS[kind](World(tmp_path), tmp_path)
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
        assert queue.waiting_count_max() >= 2
    finally:
        queue.close()
        opened.end()


def test_a_queue_that_cannot_be_listed_says_so_when_it_is_counted(rig):
    pool = rig.pool()
    pool.system.fail_all("scandir", errno.EACCES)
    with pytest.raises(QueueUnavailable):
        pool.spool.waiting_count()
    pool.system.fail_all("listdir", errno.EACCES)
    with pytest.raises(QueueUnavailable):
        pool.spool.waiting_count_max()
