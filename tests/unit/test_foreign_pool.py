"""What a pool does alike on the queues of all foreign formats. See test_dirq_pool and test_ddmq_pool for the rest."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.rig import World
from tests.rig_ddmq import DdmqPool
from tests.rig_dirq import SCHEMA, SIMPLE, DirqPool
from tests.rig_foreign import FOREIGN_SETTINGS, ForeignPool, beside, hold, put, settle
from workers.board import Q
from workers.queues.open import open_queue

Make = Callable[..., ForeignPool]
KINDS = (SIMPLE, SCHEMA, "ddmq")


@pytest.fixture(name="make", params=KINDS)
def _make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Makes pools on one queue, all under one clock."""
    world, pids, kind = World(tmp_path), iter(range(1001, 2000)), request.param

    def make(**options) -> ForeignPool:
        options = {"pid": next(pids), **options}
        if kind == "ddmq":
            return DdmqPool(tmp_path / "root" / "queue", world, **options)
        return DirqPool(tmp_path / "queue", world, kind, **options)

    return make


@pytest.fixture(name="pool")
def _pool(make: Make) -> ForeignPool:
    return make()


def test_the_record_of_another_hosts_idle_worker_stays_as_long_as_its_keeper_does_its_rounds(make):
    """It had a message, and waits for the next one for longer than a lock lives; then it dies with that in hand."""
    far, near = make(host="far"), make(host="near")
    put(far)
    settle(far.queue, "done", far.claim())
    for _ in range(25):
        far.rounds(every_s=10)
        near.keeper.keep()
    name, owner = hold(far)
    assert owner in os.listdir(beside(far, "held"))
    assert far.keeping.release_owner(owner, "died") == [name]


def test_what_is_old_in_errors_is_pruned_with_its_meta(make):
    pool = make(settings=replace(FOREIGN_SETTINGS, keep_errors_s=1000.0))
    put(pool)
    settle(pool.queue, "reject", pool.claim())
    assert pool.rounds(9, every_s=100).pruned == 0
    assert pool.queue.depth().errors == 1
    assert pool.rounds(3, every_s=100).pruned == 1
    assert os.listdir(beside(pool, "errors")) == []


def test_a_paused_queue_is_paused_for_every_host_and_what_is_in_hand_is_finished(make):
    pool, other = make(host="one"), make(host="two")
    put(pool)
    put(pool)
    claim = pool.claim()
    beside(pool, "PAUSED").touch()  # as touch(1) does
    assert pool.queue.is_paused()
    for one in (pool, other):
        one.rounds()
        assert one.words[Q.PAUSED] == 1
        assert one.queue.claim() is None
    settle(pool.queue, "done", claim)
    other.queue.resume()
    assert not pool.queue.is_paused()
    pool.rounds()
    assert pool.claim() is not None


@pytest.mark.parametrize("kind", KINDS)
def test_a_queue_without_a_pool_yet_can_be_looked_at_and_paused(tmp_path, kind):
    queue = open_queue(f"{kind}:{tmp_path}/{'root/' * (kind == 'ddmq')}q", settings=FOREIGN_SETTINGS)
    queue.put(b"x")
    assert not queue.is_paused()
    found = (queue.depth().waiting, len(list(queue.list())), len(queue.show("x")), queue.requeue("x"))
    assert found == (1, 1, 0, 0)
    assert not Path(f"{queue.place}.pool").exists()
    queue.resume()
    queue.pause()
    assert queue.is_paused()
    queue.resume()
    assert not queue.is_paused()


def test_every_state_is_counted_listed_and_shown(pool):
    bodies = {"waiting": b"1", "claimed": b"22", "deferred": b"333", "errors": b"4444"}
    found = {}
    for state, verb in (("errors", "reject"), ("deferred", "retry"), ("claimed", None), ("waiting", None)):
        found[state] = put(pool, bodies[state])
        if state != "waiting":
            claim = pool.claim()
            if verb:
                settle(pool.queue, verb, claim)
    pool.world.advance(7)
    depth = pool.queue.depth()
    assert (depth.waiting, depth.claimed, depth.deferred, depth.errors, depth.ignored) == (1, 1, 1, 1, 0)
    assert all(6.9 < depth.oldest_s[state] < 9 for state in bodies)
    assert {line.state: line.name for line in pool.queue.list()} == found
    for state, name in found.items():
        (shown,) = pool.queue.show(name)
        assert (shown.listed.state, shown.size) == (state, len(bodies[state]))
        assert shown.listed.owner == (pool.queue._owner if state == "claimed" else None)
        assert abs(shown.enqueued_at - pool.system.wall_ns() / 1e9 + 7) < 2
        assert (shown.meta is not None) == (state == "errors")
        assert os.path.exists(shown.listed.path)
    assert replace(pool.keeper.depth(is_exact=False), oldest_s={}) == replace(depth, oldest_s={})
