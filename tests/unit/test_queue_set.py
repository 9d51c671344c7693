"""Several directory queues claimed from as one: the order of time, settles where a message lies, keepers of all."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.rig import FakeSystem, World, rounds
from tests.rig_foreign import FOREIGN_SETTINGS
from workers.board import Board, Q, W, WorkerText
from workers.errors import ClaimLost, NotSupported, QueueMissing, QueueRefused, QueueUnavailable
from workers.message import Message
from workers.queues import names
from workers.queues.base import Capability, Consumer, Kept, Settings
from workers.queues.dirq_url import open_dirq
from workers.queues.locking import LockedClaim
from workers.queues.open import open_queue
from workers.queues.queue_set import QueueSet

MEMBERS = ("dirq-simple:a", "dirq:b", "dirq-simple:c")
SETTLES = ("done", "retry", "reject", "release")


class SetPool:
    """One master on one host: a board, a worker's set and a keeper's."""

    def __init__(
        self, place: Path, world: World, *, members: tuple[str, ...], host: str, pid: int, settings: Settings
    ) -> None:
        self.place, self.world, self.members, self.host, self.settings = place, world, members, host, settings
        self.board = Board.create()
        self.slot = self.board.take_queue("queue", "set:")
        self.words = self.board.queues[self.slot].words
        self.system, self.keeper_system = FakeSystem(world, pid), FakeSystem(world, pid)
        self.master = names.master_name(host, self.system)
        consumer = Consumer(self.master, self.board, self.slot, self.board.take_worker(self.slot, 0), 0)
        self.keeping = self.opened(self.keeper_system)
        self.keeper = self.keeping.keeper(consumer)
        self.keeper.open()
        self.queue = self.opened(self.system)
        self.queue.attach(consumer)

    def opened(self, system: FakeSystem) -> QueueSet:
        found = []
        for member in self.members:
            kind, _, name = member.partition(":")
            found.append(open_dirq(kind, str(self.place / name), self.settings, system=system, host=self.host))
        return QueueSet(found)

    def put(self, number: int, body: bytes = b"content") -> str:
        return self.queue.members[number].put(body)

    def claim(self) -> LockedClaim:
        claim = self.queue.claim()
        assert isinstance(claim, LockedClaim)
        return claim

    def settle(self, verb: str, claim: LockedClaim) -> object:
        try:
            return getattr(self.queue, verb)(claim, *(("of no use",) if verb == "reject" else ()))
        finally:
            self.queue.settled(claim)

    def die(self) -> str:
        """With what is in hand; the owner that was."""
        slot = self.board.worker(0)
        owner = slot.text(WorkerText.OWNER) or ""
        slot.set_text(WorkerText.OWNER, "")
        self.queue._lapses = -1
        for member in self.queue.members:
            if member._owner:
                os.close(member._hand)
            member._owner, member._hand = "", -1
        return owner

    def rounds(self, count: int = 1, every_s: float = 1.0) -> Kept:
        return rounds(self.keeper, self.world, count, every_s)

    def beside(self, number: int, *parts: str) -> Path:
        return Path(f"{self.queue.members[number].place}.pool", *parts)


Make = Callable[..., SetPool]


@pytest.fixture(name="make")
def _make(tmp_path: Path) -> Make:
    world, pids = World(tmp_path), iter(range(1001, 2000))

    def make(members: tuple[str, ...] = MEMBERS, host: str = "one", settings: Settings = FOREIGN_SETTINGS) -> SetPool:
        return SetPool(tmp_path, world, members=members, host=host, pid=next(pids), settings=settings)

    return make


@pytest.fixture(name="pool")
def _pool(make: Make) -> SetPool:
    return make()


# ---- what a set is


def test_a_queue_that_is_in_the_set_twice_is_refused_whatever_it_is_called(tmp_path):
    (tmp_path / "q").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "q")
    for other in (tmp_path / "q", tmp_path / "link", tmp_path / "." / "q"):
        with pytest.raises(QueueRefused, match="is in the set twice"):
            open_queue(f"set:dirq-simple:{tmp_path}/q,dirq-simple:{other}")


@pytest.mark.parametrize("stranger", ["spool:/s", "/s", "null:", "set:dirq-simple:/s"])
def test_only_directory_queues_may_be_in_a_set(tmp_path, stranger):
    with pytest.raises(QueueRefused, match="a set is of dirq and dirq-simple queues"):
        open_queue(f"set:dirq-simple:{tmp_path}/q,{stranger}", create=True)


def test_a_member_that_is_not_there_is_missing(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(QueueMissing, match="/b"):
        open_queue(f"set:dirq-simple:{tmp_path}/a,dirq-simple:{tmp_path}/b")


def test_a_comma_in_a_schema_ends_no_member(tmp_path):
    for name in "abc":
        (tmp_path / name).mkdir()
    queue = open_queue(
        f"set:dirq:{tmp_path}/a?schema=body:string,header:table?,dirq-simple:{tmp_path}/b?granularity=5,dirq:{tmp_path}/c",
        create=True,
    )
    assert isinstance(queue, QueueSet)
    assert [member.place for member in queue.members] == [f"{tmp_path}/a", f"{tmp_path}/b", f"{tmp_path}/c"]
    with pytest.raises(QueueMissing):  # nothing is put into a set, so it makes none of its queues
        open_queue(f"set:dirq:{tmp_path}/a, dirq:{tmp_path}/d", create=True)


def test_a_set_is_in_the_place_of_its_first_member_and_on_a_network_when_one_of_them_is(pool):
    assert pool.queue.place == pool.queue.members[0].place
    assert pool.queue.network is None
    pool.queue.members[2].network = "nfs"
    assert QueueSet(pool.queue.members).network == "nfs"


def test_nothing_is_put_into_a_set(pool):
    assert Capability.DURABLE not in pool.queue.capabilities
    with pytest.raises(NotSupported, match=r"put into one of dirq-simple:.*/a,dirq:.*/b,dirq-simple:.*/c"):
        pool.queue.put(b"x")
    with pytest.raises(NotSupported):
        pool.queue.put_many([b"x"])
    assert pool.queue.put_many([]) == []


# ---- claims


def test_messages_come_in_the_order_of_time_whichever_queue_they_lie_in(pool):
    entered = [pool.put(number, b"%d" % place) for place, number in enumerate((1, 0, 2, 2, 0, 1, 1, 0, 2))]
    found = []
    while pool.queue.depth().waiting:
        claim = pool.claim()
        found.append((claim.name, Message(claim, "").body))
        pool.settle("done", claim)
    assert found == [(name, b"%d" % place) for place, name in enumerate(entered)]


@pytest.mark.parametrize("number", range(len(MEMBERS)))
@pytest.mark.parametrize(
    ("verb", "state"), [("done", None), ("retry", "deferred"), ("reject", "errors"), ("release", "waiting")]
)
def test_a_message_is_settled_in_the_queue_that_it_lies_in(pool, number, verb, state):
    name = pool.put(number)
    claim = pool.claim()
    assert (claim.name, claim.member) == (name, number)
    pool.world.advance(1)
    pool.settle(verb, claim)
    for other, member in enumerate(pool.queue.members):
        lines = [(line.name, line.state) for line in member.list()]
        assert lines == ([(name, state)] if other == number and state else [])


def test_a_retry_comes_back_into_its_own_queue_with_its_counts(pool):
    name = pool.put(1)
    pool.put(0)
    for _ in range(2):
        pool.settle("retry", pool.claim())
    assert pool.rounds(3).due == 2
    assert pool.words[Q.COUNTED] == 2
    claim = pool.claim()
    assert (claim.name, claim.member, claim.attempt) == (name, 1, 2)
    pool.settle("done", claim)
    assert pool.claim().attempt == 2


def test_one_owner_has_a_record_in_each_queue(pool):
    pool.put(1)
    pool.claim()
    owner = pool.board.worker(0).text(WorkerText.OWNER)
    assert [os.listdir(pool.beside(number, "held")) for number in range(3)] == [[owner]] * 3
    pool.queue.detach()
    assert [os.listdir(pool.beside(number, "held")) for number in range(3)] == [[]] * 3
    assert pool.board.worker(0).text(WorkerText.OWNER) == ""


def test_a_record_that_one_queue_refuses_is_taken_in_all_by_the_next_try(pool):
    pool.put(0)
    opens = []

    def second(call, arguments):
        if call == "open" and "/held/" in arguments[0]:
            opens.append(arguments)
            if len(opens) == 2:
                raise OSError(errno.EIO, os.strerror(errno.EIO), arguments[0])

    pool.system.before = second
    with pytest.raises(QueueUnavailable):
        pool.queue.claim()
    pool.claim()
    owner = pool.board.worker(0).text(WorkerText.OWNER)
    assert [os.listdir(pool.beside(number, "held")) for number in range(3)] == [[owner]] * 3


@pytest.mark.parametrize("verb", SETTLES)
def test_a_settle_after_the_lock_was_broken_and_taken_is_fenced(make, verb):
    pool, other = make(), make(host="two")
    pool.put(2)
    claim = pool.claim()
    pool.world.advance(200)
    assert other.rounds(2).too_old == 1
    theirs = other.claim()
    with pytest.raises(ClaimLost):
        pool.settle(verb, claim)
    other.settle("done", theirs)
    assert list(other.queue.list()) == []


def test_forward_hands_on_from_the_member(pool, tmp_path):
    target = open_queue(str(tmp_path / "next"), create=True)
    pool.put(1)
    claim = pool.claim()
    pool.queue.forward(claim, target)
    assert (target.depth().waiting, pool.queue.depth().claimed) == (1, 0)


# ---- the keeper


@pytest.mark.parametrize("number", range(len(MEMBERS)))
def test_a_dead_worker_is_released_in_whichever_queue_its_message_lies(pool, number):
    name = pool.put(number)
    pool.queue.settled(pool.claim())
    owner = pool.die()
    assert pool.keeping.release_owner(owner, "died", "signal 9") == [name]
    assert pool.words[Q.REAPED_OWNER_DEAD] == 1
    assert [os.listdir(pool.beside(other, "held")) for other in range(3)] == [[]] * 3
    claim = pool.claim()
    assert (claim.name, claim.crashes) == (name, 1)


def test_an_owner_that_the_board_does_not_list_is_released_in_the_second_round_of_all(pool):
    pool.put(1)
    pool.queue.settled(pool.claim())
    pool.die()
    assert pool.rounds().owner_dead == 0
    assert pool.rounds().owner_dead == 3
    assert [os.listdir(pool.beside(number, "held")) for number in range(3)] == [[]] * 3
    assert pool.claim().crashes == 1


def test_a_lock_in_any_queue_is_touched_and_broken_where_nobody_touches_it(make):
    pool, other = make(), make(host="two")
    pool.put(2)
    claim = pool.claim()
    pool.board.worker(0).words[W.MESSAGE_SINCE_NS] = pool.system.boottime_ns()
    peers = pool.put(1)
    pool.queue.members[1].elements.lock(peers)
    for _ in range(40):
        pool.rounds(every_s=5)
        other.keeper.keep()
    assert [line.name for line in pool.queue.list("waiting")] == [peers]
    pool.settle("done", claim)
    assert pool.claim().crashes == 1


def test_the_round_of_one_queue_that_fails_keeps_no_other_from_its_own(pool):
    """Its mount is away: what is in hand in the others is touched, and what died there goes back."""
    name = pool.put(2)
    pool.claim()
    pool.board.worker(0).words[W.MESSAGE_SINCE_NS] = pool.system.boottime_ns()
    away = pool.place / "away"
    (pool.place / "a").rename(away)
    (pool.place / "a").mkdir()
    before_ns = (pool.place / "c" / name).stat().st_mtime_ns
    (pool.beside(0, "counts") / "00000000.00000000000000").write_text("1 1 \n")  # of what is not there now
    for _ in range(60):
        with pytest.raises(QueueUnavailable, match="/a: another directory is there now"):
            pool.rounds(every_s=5)
    assert (pool.place / "c" / name).stat().st_mtime_ns > before_ns
    assert [line.name for line in pool.queue.members[2].list("claimed")] == [name]
    assert os.listdir(pool.place / "a") == []
    assert len(os.listdir(pool.beside(0, "counts"))) == 1
    assert pool.words[Q.BEAT_NS] == 0
    (pool.place / "a").rmdir()
    away.rename(pool.place / "a")
    pool.rounds()
    assert pool.words[Q.BEAT_NS] > 0


def test_a_release_that_fails_in_one_queue_is_done_in_the_others_and_tried_again(pool):
    name = pool.put(2)
    pool.queue.settled(pool.claim())
    owner = pool.die()
    held = pool.beside(0, "held")

    def fail(call, arguments):
        if call == "open" and str(arguments[0]).startswith(str(held)):
            raise OSError(errno.EIO, os.strerror(errno.EIO), arguments[0])

    pool.keeper_system.before = fail
    with pytest.raises(QueueUnavailable):
        pool.keeping.release_owner(owner, "stopped")
    assert [line.name for line in pool.queue.members[2].list("waiting")] == [name]
    pool.keeper_system.before = None
    assert pool.keeping.release_owner(owner, "stopped") == []
    assert [os.listdir(pool.beside(number, "held")) for number in range(3)] == [[]] * 3
    assert pool.claim().crashes == 0


def test_the_second_half_of_one_round_that_fails_lets_workers_claim_and_is_told(pool):
    pool.put(1)
    pool.beside(0, "deferred").rename(pool.beside(0, "away"))
    for _ in range(5):
        with pytest.raises(QueueUnavailable, match="deferred"):
            pool.rounds(every_s=20)
    assert pool.claim().member == 1


def test_what_is_kept_is_made_beside_each_before_the_first_round(tmp_path, make):
    (tmp_path / "b.pool").touch()
    with pytest.raises(QueueRefused, match=r"b\.pool is in the way"):
        make()


def test_the_keeper_of_a_set_leaves_and_ticks_as_the_quickest_of_them(make):
    pool = make(settings=replace(FOREIGN_SETTINGS, stale_after_s=4.0))
    assert pool.keeper.tick_s == 0.5
    pool.keeper.leave()
    assert pool.keeper.depth(is_exact=True).waiting == 0


# ---- the operator


def test_a_pause_of_one_queue_pauses_the_set(pool):
    pool.put(0)
    pool.beside(1, "PAUSED").touch()
    assert pool.queue.is_paused()
    pool.rounds()
    assert pool.queue.claim() is None
    pool.queue.resume()
    assert not pool.queue.is_paused()
    pool.rounds()
    claim = pool.claim()
    pool.settle("release", claim)
    pool.queue.pause()
    assert all(member.is_paused() for member in pool.queue.members)


def test_what_lies_in_all_is_counted_listed_shown_and_requeued_together(pool):
    rejected = pool.put(0)
    pool.settle("reject", pool.claim())
    pool.put(1)
    pool.settle("retry", pool.claim())
    claimed = pool.put(2)
    pool.claim()
    waiting = [pool.put(number) for number in (2, 0, 1)]
    pool.world.advance(100)
    (pool.place / "a" / waiting[1][:8] / "00000000000001").symlink_to("/")
    depth = pool.queue.depth()
    assert (depth.waiting, depth.claimed, depth.deferred, depth.errors, depth.ignored) == (3, 1, 1, 1, 1)
    assert all(99.9 < depth.oldest_s[state] < 160 for state in ("waiting", "claimed", "deferred", "errors"))
    assert replace(pool.keeper.depth(is_exact=True), oldest_s={}) == replace(depth, oldest_s={})
    assert sorted(line.name for line in pool.queue.list("waiting")) == sorted(waiting)
    (shown,) = pool.queue.show(claimed)
    assert shown.listed.owner == pool.board.worker(0).text(WorkerText.OWNER)
    assert pool.queue.show("00000000/00000000000000") == []
    assert pool.queue.requeue(rejected) == 1
    assert pool.queue.depth().errors == 0


def test_wait_sees_a_message_in_any_of_them(pool):
    assert pool.queue.wait(0.2) is False
    pool.put(2)
    assert pool.queue.wait(0.2) is True
