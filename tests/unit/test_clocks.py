"""Clocks that somebody sets, forward and back: nothing is taken, removed, forgotten or due by that alone."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest

from tests.rig import SETTINGS, FakeSystem, World, lose_ctimes
from tests.rig_ddmq import DdmqPool
from tests.rig_dirq import SCHEMA, SIMPLE, DirqPool
from tests.rig_foreign import fall
from workers.board import Board
from workers.ddmq.broker import Broker
from workers.message import Claim
from workers.queues import names, reckoning
from workers.queues.deferred import Deferred
from workers.queues.reckoning import Reckoning
from workers.worker import waited_s

DAY_S = 86400.0
STALE_S = 100.0  # SETTINGS
OURS = "1700000000.M000001P1Q1R0123456789ab.host"
SWEEP_S = 6.0


def keeping_pool(rig, settings=SETTINGS):
    """A pool whose keeper has been round once."""
    pool = rig.pool(settings=settings)
    pool.rounds(1)
    return pool


# ---- what waits for its time


@pytest.mark.parametrize("step_s", [-DAY_S, DAY_S])
def test_a_retry_comes_in_its_time_though_the_clock_is_set_while_it_waits(rig, step_s):
    pool = keeping_pool(rig)
    pool.spool.put(b"content", "name")
    pool.spool.retry(pool.claim(), after_s=20)
    pool.rounds(1)
    rig.world.step(step_s)
    assert pool.rounds(15).due == 0
    assert pool.rounds(10).due == 1
    assert rig.everything() == {"incoming": [b"content"]}


@pytest.mark.parametrize("rounds", [0, 2, 6])
@pytest.mark.parametrize("step_s", [-DAY_S, DAY_S])
def test_a_retry_comes_in_its_time_though_the_clock_is_set_while_its_message_is_in_hand(rig, step_s, rounds):
    """*rounds*: of the keeper between the step and the retry; it need not know of the step."""
    pool = keeping_pool(rig, replace(SETTINGS, lease_interval_s=5.0, lease_timeout_s=60.0))
    pool.spool.put(b"content", "name")
    claim = pool.claim()
    rig.world.step(step_s)
    pool.rounds(rounds)
    pool.spool.retry(claim, after_s=20)
    is_known = rounds > 5 or step_s > 0
    assert pool.rounds(15).due == (not is_known)  # by the clock of before it was due long ago
    assert pool.rounds(10).due == is_known


@pytest.mark.parametrize("kind", ["spool", SIMPLE, "ddmq"])
@pytest.mark.parametrize("step_s", [-DAY_S, DAY_S])
def test_what_a_keeper_defers_comes_in_its_time_though_the_clock_was_set_just_before(tmp_path, rig, kind, step_s):
    """It has read the clock a while ago, and reads it again before it looks at what is deferred."""
    settings = replace(SETTINGS, retry_backoff_s=20.0, retry_backoff_s_max=20.0)
    place = tmp_path / "root" / kind
    place.parent.mkdir()
    if kind == "spool":
        pool = keeping_pool(rig, replace(settings, lease_interval_s=5.0, lease_timeout_s=60.0))
        queue = pool.spool
    else:
        made = DdmqPool if kind == "ddmq" else partial(DirqPool, kind=kind)
        settings = replace(settings, lease_interval_s=None, lease_timeout_s=None)
        pool = made(place, rig.world, settings=settings, network="nfs")
        pool.rounds(1)
        queue = pool.queue
    queue.put(b"content")
    queue.settled(pool.claim())
    rig.world.step(step_s)
    pool.keeping.release_owner(pool.forget_owner() if kind == "spool" else fall(pool), "timeout")
    assert queue.depth().deferred == 1
    assert pool.rounds(1, 12.0).due + pool.rounds(15).due == 1


def test_a_retry_comes_in_its_time_where_no_file_has_a_ctime(rig):
    """As on sshfs: nothing says when it was claimed, and by its mtime, of when it was put, it would be due at once."""
    rig.network = "fuse.sshfs"
    pool = rig.pool(settings=replace(SETTINGS, retry_backoff_s_max=1000.0))
    pool.spool.put(b"x")
    for system in (pool.system, pool.keeper_system):
        lose_ctimes(system)
    pool.keeper.open()
    pool.rounds(5, every_s=100)
    claim = pool.claim()
    rig.world.advance(5)
    pool.spool.retry(claim, after_s=60)
    pool.rounds(5, every_s=10)
    assert not rig.files("incoming")
    pool.rounds(3, every_s=10)
    assert rig.files("incoming")


def test_what_a_keeper_finds_deferred_in_the_future_waits_for_as_long_as_it_was_to_wait(rig):
    """The clock was set back while no keeper looked: its names say tomorrow."""
    pool = keeping_pool(rig)
    pool.spool.put(b"content", delay=50)
    rig.world.step(-DAY_S)
    another = rig.pool("two")
    assert another.rounds(40).due == 0
    assert another.rounds(15).due == 1


def test_what_is_put_with_a_delay_of_a_day_waits_for_a_day(rig):
    pool = keeping_pool(rig)
    pool.spool.put(b"content", delay=DAY_S)
    assert pool.rounds(2).due == 0
    rig.world.advance(DAY_S)
    assert pool.rounds(2).due == 1


@pytest.mark.parametrize("kind", [SIMPLE, SCHEMA])
@pytest.mark.parametrize("step_s", [-DAY_S, DAY_S])
def test_a_retry_beside_a_queue_comes_in_its_time_though_the_clock_is_set(tmp_path, rig, kind, step_s):
    pool = DirqPool(tmp_path / "dirq", rig.world, kind)
    pool.rounds(1)
    pool.queue.put(b"content")
    claim = pool.claim()
    rig.world.step(step_s)
    pool.rounds(11)
    pool.queue.retry(claim, after_s=20)
    pool.rounds(1)
    rig.world.step(-step_s)
    assert pool.rounds(14).due == 0
    assert pool.rounds(10).due == 1


def test_what_is_due_before_the_year_2001_is_found(rig):
    """A second of fewer than ten digits is written with zeros in front: it would be nobody's name else."""
    pool = keeping_pool(rig)
    rig.world.step(100 - pool.system.wall_ns() / 1e9)
    pool.rounds(1)
    pool.spool.put(b"put", delay=10)
    pool.spool.put(b"retried")
    pool.spool.retry(pool.claim(), after_s=10)
    assert sorted(names.parse_due(file) is not None for file in rig.files("deferred")) == [True, True]
    assert pool.rounds(20).due == 2


# ---- what is old


def test_nothing_is_stale_because_the_clock_was_set_forward(rig):
    """A put that is being written and a filer's claim, both of now; a message in errors/ that is kept for a week."""
    pool = keeping_pool(rig, replace(SETTINGS, keep_errors_s=7 * DAY_S))
    (rig.path / "tmp" / f"{OURS}.tmp").write_bytes(b"half")
    (rig.path / "pending" / OURS).write_bytes(b"content")
    pool.spool.put(b"bad")
    pool.spool.reject(pool.claim(), "not wanted")
    pool.rounds(1)
    rig.world.step(30 * DAY_S)
    kept = pool.rounds(int(STALE_S) - 10)
    assert (kept.temporary, kept.too_old, kept.pruned) == (0, 0, 0)
    kept = pool.rounds(20)
    assert (kept.temporary, kept.too_old, kept.pruned) == (1, 1, 0)
    kept = pool.rounds(8, every_s=DAY_S)
    assert kept.pruned == 1


def test_a_clock_that_a_slow_server_seems_to_step_makes_nothing_stale(rig):
    """Forward and back again: what was left in between is as old as it is."""
    pool = keeping_pool(rig)
    rig.world.step(DAY_S)
    pool.rounds(2, SWEEP_S)
    rig.world.step(-DAY_S)
    (rig.path / "pending" / OURS).write_bytes(b"content")
    assert pool.rounds(9, 10.0).too_old == 0
    assert pool.rounds(3, 10.0).too_old == 1


def test_what_is_of_the_future_since_the_clock_was_set_back_ages_from_when_it_was_seen(rig):
    pool = keeping_pool(rig)
    (rig.path / "pending" / OURS).write_bytes(b"content")
    rig.world.step(-DAY_S)
    assert pool.rounds(9, 10.0).too_old == 0
    assert pool.rounds(3, 10.0).too_old == 1
    assert rig.everything() == {"incoming": [b"content"]}


@pytest.mark.parametrize("kind", [SIMPLE, SCHEMA])
@pytest.mark.parametrize("step_s", [-DAY_S, DAY_S])
@pytest.mark.parametrize("verb", ["done", "release", "detach"])
def test_a_lock_stays_its_holders_though_the_clock_is_set(tmp_path, rig, kind, step_s, verb):
    pool = DirqPool(tmp_path / "dirq", rig.world, kind)
    pool.rounds(1)
    pool.queue.put(b"content")
    claim = pool.claim()
    pool.rounds(2, 6.0)
    for step in (step_s, -step_s):
        rig.world.step(step)
        pool.rounds(3, 6.0)
    rig.world.step(step_s)
    pool.rounds(1, 6.0)
    if verb == "detach":
        pool.queue.detach()  # gives back what is in hand
    else:
        getattr(pool.queue, verb)(claim)
    assert pool.queue.depth().waiting == (verb != "done")
    assert pool.queue.depth().claimed == 0


@pytest.mark.parametrize("kind", [SIMPLE, SCHEMA])
def test_no_lock_is_broken_because_the_clock_was_set_forward(tmp_path, rig, kind):
    """Not that of a living worker of another host, nor that of another program, until it is as old as it may be."""
    one, two = (DirqPool(tmp_path / "dirq", rig.world, kind, host=host) for host in ("one", "two"))
    other = one.opened(one.system)
    other.put(b"another's")
    (name,) = [line.name for line in other.list("waiting")]
    assert other.elements.lock(name) is not None
    one.queue.put(b"ours")
    claim = one.claim()
    one.rounds(1)
    two.rounds(1)
    rig.world.step(DAY_S)
    assert two.rounds(int(STALE_S / 10) - 1, 10.0).too_old == 0
    assert two.rounds(4, 10.0).too_old == 2  # for "one" has no keeper that touches any more
    assert claim.crashes == 0


@pytest.mark.parametrize("kind", [SIMPLE, SCHEMA, "ddmq"])
def test_a_keeper_that_starts_after_a_step_takes_nothing_that_is_touched(tmp_path, rig, kind):
    """It cannot know that there was one; the living touch what they have within seconds."""
    place = tmp_path / "root" / kind
    place.parent.mkdir()
    made = DdmqPool if kind == "ddmq" else partial(DirqPool, kind=kind)
    one = made(place, rig.world, host="one")
    one.queue.put(b"content")
    claim = one.claim()
    rig.world.step(DAY_S)
    two = made(place, rig.world, host="two")
    for _ in range(30):
        assert two.rounds(1).too_old == 0
        one.rounds(1)
    one.queue.done(claim)


def test_no_claim_expires_because_the_clock_was_set_forward(tmp_path, rig):
    """Each lasts as long as it was to last; our own keeper says at once until when that is now."""
    one, two = (DdmqPool(tmp_path / "root" / "ddmq", rig.world, host=host) for host in ("one", "two"))
    one.queue.put(b"content")
    one.claim()
    two.rounds(1)
    rig.world.step(DAY_S)
    lasts_s = one.queue.lasts_s(0)
    assert two.rounds(int(lasts_s / 10) - 1, 10.0).too_old == 0
    assert two.rounds(4, 10.0).too_old == 1


# ---- clocks that stand far off


YEARS_S = {"1970": 100.0, "2100": 4.11e9, "after 2106": 4.3e9}


@pytest.mark.parametrize("at_s", YEARS_S.values(), ids=YEARS_S)
@pytest.mark.parametrize("kind", ["spool", SIMPLE, SCHEMA, "ddmq"])
def test_what_is_put_and_deferred_by_a_clock_that_stands_far_off_is_handled(tmp_path, rig, kind, at_s):
    """And once more, when that clock was set right."""
    rig.world.step(at_s - rig.pool("any").system.wall_ns() / 1e9)
    if kind == "spool":
        pool = rig.pool()
        queue = pool.spool
    else:
        place = tmp_path / "root" / kind
        place.parent.mkdir()
        pool = DdmqPool(place, rig.world) if kind == "ddmq" else DirqPool(place, rig.world, kind)
        queue = pool.queue
    pool.rounds(1)
    for step_s in (0.0, 1.8e9 - at_s):
        rig.world.step(step_s)
        pool.rounds(11)
        queue.put(b"content")
        queue.retry(pool.claim(), after_s=10)
        assert queue.depth().deferred == 1
        assert all(age_s >= 0 for age_s in queue.depth().oldest_s.values())
        assert pool.rounds(12).due == 1
        claim = pool.claim()
        assert claim.attempt == 2
        queue.done(claim)
        assert sum(1 for _ in queue.list()) == 0


def test_the_order_of_a_ddmq_is_kept_when_a_clock_of_1970_is_set_right(rig):
    pool = rig.pool()
    rig.world.step(100.5 - pool.system.wall_ns() / 1e9)
    broker = Broker(str(rig.path.parent / "root"), create=True)
    broker._system = pool.system
    early = broker.get_queue_number()
    rig.world.step(1.8e9)
    assert early < broker.get_queue_number()
    assert early.startswith("0000000100")


@pytest.mark.parametrize("at_s", YEARS_S.values(), ids=YEARS_S)
def test_the_numbers_of_a_ddmq_rise_also_while_the_clock_stands_still(rig, at_s):
    """From 2106 on a float, which the format writes, cannot tell each microsecond from the next."""
    broker = Broker(str(rig.path.parent / "root"), create=True)
    broker._system = SimpleNamespace(wall_ns=lambda: int(at_s * 1e9))  # type: ignore[assignment]
    numbers = [broker.get_queue_number() for _ in range(1000)]
    assert numbers == sorted(set(numbers))


# ---- what is said of it


@pytest.mark.parametrize(
    ("written_s", "named_s", "waited"),
    [(0.5, DAY_S, 0.5), (60, 60, 60), (60, 60 + DAY_S, 60), (60, 60 - DAY_S, 60), (30 * DAY_S, 60, 60)],
)
def test_how_long_a_message_waited_is_no_longer_than_the_filesystem_says(written_s, named_s, waited):
    """Its producer's clock a day behind or ahead of that; and the last, a file of last month that was moved in."""
    now_s = 1_800_000_000.0
    name = f"{now_s - named_s:.0f}.M000000P1Q1R0123456789ab.host"
    claim = Claim(name, name, claimed_at=now_s, modified_at=now_s - written_s)
    assert waited_s(claim) == pytest.approx(waited)


def test_more_files_of_the_future_than_can_be_remembered_are_old_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.setattr(reckoning, "SEEN_MAX", 3)
    world = World(tmp_path)
    system = FakeSystem(world)
    reckoned = Reckoning(system, Board.create().queues[0], "spool:queue")
    reckoned.note(system.wall_ns())
    left, tomorrow_ns = {f"done/{number}" for number in range(8)}, system.wall_ns() + int(DAY_S * 1e9)
    for _ in range(5):
        left -= {path for path in sorted(left) if reckoned.is_older(path, tomorrow_ns, 50.0)}
        world.advance(60)
    assert not left


def deferred_m(place, system, after_s):
    """A directory with a message m that is due in the second that begins at most *after_s* from now."""
    due = names.due_at(system.wall_ns() // 1_000_000_000 + after_s)
    (place / f"{due}.{names.marked(1, 0, '0' * 18 + names.check('m'), 'm')}").touch()
    return Deferred(system, str(place))


def test_what_is_deferred_waits_no_less_because_the_server_was_away_as_its_clock_was_read(tmp_path):
    world = World(tmp_path)
    system = FakeSystem(world)
    deferred = deferred_m(tmp_path, system, 100)

    def late() -> int:
        world.advance(80)
        return system.wall_ns()

    assert not deferred.due(late)
    world.advance(17)
    assert not deferred.due(late)
    world.advance(4)
    assert [marked.name for _, marked in deferred.due(late)] == ["m"]


def test_what_is_due_at_once_is_found_by_who_looks_once(tmp_path):
    """Also when its second begins while the directory is listed, and the clock is read after that."""
    world = World(tmp_path)
    system = FakeSystem(world)
    deferred = deferred_m(tmp_path, system, 1)

    def soon() -> int:
        world.advance(1)
        return system.wall_ns()

    assert [marked.name for _, marked in deferred.due(soon)] == ["m"]
