"""What a pool does alike on the queues of all foreign formats. See test_dirq_pool and test_ddmq_pool for the rest."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.rig import World, lose_ctimes
from tests.rig_ddmq import DdmqPool
from tests.rig_dirq import SCHEMA, SIMPLE, DirqPool
from tests.rig_foreign import FOREIGN_SETTINGS, ForeignPool, beside, hold, put, settle
from workers.board import Q, WorkerText
from workers.queues.open import open_queue

Make = Callable[..., ForeignPool]
KINDS = (SIMPLE, SCHEMA, "ddmq")


@pytest.fixture(name="apart", params=KINDS)
def _apart(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[int], Make]:
    """What makes pools on one queue, all under one clock; for each number a queue of its own."""

    def maker(number: int) -> Make:
        place, kind = tmp_path / str(number), request.param
        place.mkdir()
        world, pids = World(place), iter(range(1001, 2000))

        def make(**options) -> ForeignPool:
            options = {"pid": next(pids), **options}
            if kind == "ddmq":
                return DdmqPool(place / "root" / "queue", world, **options)
            return DirqPool(place / "queue", world, kind, **options)

        return make

    return maker


@pytest.fixture(name="make")
def _make(apart: Callable[[int], Make]) -> Make:
    """Makes pools on one queue."""
    return apart(0)


@pytest.fixture(name="pool")
def _pool(make: Make) -> ForeignPool:
    return make()


def test_what_another_pool_has_counted_a_moment_ago_is_known_to_who_claims(make):
    near, far = make(host="near"), make(host="far")
    put(far)
    settle(far.queue, "done", far.claim())
    near.rounds()
    put(near)
    claim = far.claim()
    far.queue.retry(claim, after_s=0)
    far.queue.settled(claim)
    far.rounds(3)
    assert near.claim().attempt == 2


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


def test_of_two_keepers_on_a_network_one_puts_in_what_is_due(make):
    """
    The other one's whole round, and a claim of what it has put in, before each call of the first.

    The first one's client acts by handles: what it removes in a directory that was moved away, it removes there.
    """
    calls, nth = [], 0
    while nth <= len(calls):
        nth += 1
        near, far = make(host="near", network="nfs"), make(host="far", network="nfs")
        name = put(near)
        claim = near.claim()
        near.queue.retry(claim, after_s=1)
        near.queue.settled(claim)
        near.world.advance(3)
        held, calls = [], []

        def come(far=far, held=held):
            far.keeper.keep()
            held.append(far.queue.claim())

        def before(call, _, calls=calls, nth=nth, come=come):
            calls.append(call)
            if len(calls) == nth:
                come()

        real_rmdir = near.keeper_system.rmdir

        def rmdir(path, near=near, name=name, real=real_rmdir):
            moved = path.replace(os.path.dirname(path), str(near.place / name)) if "deferred" in path else path
            real(path if os.path.exists(path) else moved)

        near.keeper_system.rmdir = rmdir
        near.keeper_system.before = before
        near.keeper.keep()
        near.keeper_system.before = None
        claims = [one for one in (*held, near.queue.claim()) if one]
        assert len(claims) == 1, (nth, calls[nth - 1 : nth])
        assert claims[0].attempt == 2
        settle(far.queue if held and held[0] else near.queue, "done", claims[0])
        depth = near.queue.depth()
        assert (depth.waiting, depth.claimed, depth.deferred) == (0, 0, 0), nth
        for pool in (near, far):
            pool.queue.detach()
            pool.keeper.leave()


def test_where_no_file_has_a_ctime_what_is_rejected_ages_from_when_it_is_seen_first(make, caplog):
    pool = make(settings=replace(FOREIGN_SETTINGS, keep_errors_s=100.0), network="fuse.sshfs")
    put(pool)
    lose_ctimes(pool.keeper_system)
    pool.keeper.check()
    pool.rounds(20, every_s=10)
    settle(pool.queue, "reject", pool.claim())
    assert pool.rounds(9, every_s=10).pruned == 0
    assert pool.rounds(9, every_s=10).pruned == 1
    assert "ages" in caplog.text


def test_what_is_old_in_errors_is_pruned_with_its_meta(make):
    pool = make(settings=replace(FOREIGN_SETTINGS, keep_errors_s=1000.0))
    put(pool)
    settle(pool.queue, "reject", pool.claim())
    assert pool.rounds(9, every_s=100).pruned == 0
    assert pool.queue.depth().errors == 1
    assert pool.rounds(3, every_s=100).pruned == 1
    assert os.listdir(beside(pool, "errors")) == []


def test_what_a_killed_keeper_tried_the_place_with_is_removed_and_nothing_else_that_is_called_so(make):
    pool = make()
    places = [beside(pool, place) for place in ("tmp", "deferred", "errors")]
    for place in places:
        (place / ".probe.0011223344556677").touch()
        (place / ".probe.8899aabbccddeeff").mkdir()  # an element is a directory
        (place / ".probe.strange" / "inner").mkdir(parents=True)
    assert pool.queue.depth().errors == pool.queue.depth().deferred == 0
    assert pool.rounds(9, every_s=10).temporary == 0
    assert pool.rounds(30, every_s=10).temporary == 2 * len(places)
    assert [os.listdir(place) for place in places] == 3 * [[".probe.strange"]]


@pytest.mark.parametrize("call", ["lstat", "listdir", "rmdir"])
def test_of_two_keepers_that_sweep_a_probe_one_removes_it(make, monkeypatch, call):
    """The other goes on with its round."""
    pool = make()
    probe = beside(pool, "errors") / ".probe.8899aabbccddeeff"
    probe.mkdir()
    pool.rounds(9, every_s=10)
    real, taken = getattr(pool.keeper_system, call), []

    def late(path, *arguments, **more):
        if path == str(probe) and probe.exists():
            taken.append(path)
            probe.rmdir()
        return real(path, *arguments, **more)

    monkeypatch.setattr(pool.keeper_system, call, late)
    assert pool.rounds(30, every_s=10).temporary == 0
    assert taken


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
    pool.world.advance(100)
    depth = pool.queue.depth()
    assert (depth.waiting, depth.claimed, depth.deferred, depth.errors, depth.ignored) == (1, 1, 1, 1, 0)
    assert all(99.9 < depth.oldest_s[state] < 160 for state in bodies)
    assert {line.state: line.name for line in pool.queue.list()} == found
    for state, name in found.items():
        (shown,) = pool.queue.show(name)
        assert (shown.listed.state, shown.size) == (state, len(bodies[state]))
        assert shown.listed.owner == (pool.queue._owner if state == "claimed" else None)
        assert abs(shown.enqueued_at - pool.system.wall_ns() / 1e9 + 100) < 60
        assert (shown.meta is not None) == (state == "errors")
        assert os.path.exists(shown.listed.path)
    assert replace(pool.keeper.depth(is_exact=False), oldest_s={}) == replace(depth, oldest_s={})


AWAY_S = 1000.0  # longer than locks and claims last here


def test_after_an_outage_nobody_takes_what_its_holder_could_not_touch(make):
    """The server stood still for all hosts; when it is back the keeper of another host comes first, a long time so."""
    far, near = make(host="far", network="nfs"), make(host="near", network="nfs")
    put(far)
    claim = far.claim()
    near.keeper.keep()
    far.world.advance(AWAY_S)
    assert near.rounds(20).too_old == 0
    for _ in range(10):
        far.rounds()
    assert near.rounds(5).too_old == 0
    settle(far.queue, "done", claim)
    assert not list(near.queue.list())


def test_after_an_outage_within_a_round_nobody_takes_what_its_holder_could_not_touch(apart):
    """The server stood still at any one call of another host's keeper."""
    nth = 0
    while True:
        nth += 1
        make = apart(nth)
        far, near = make(host="far", network="nfs"), make(host="near", network="nfs")
        put(far)
        claim = far.claim()
        calls = []

        def stand_still(*_: object, calls=calls, nth=nth, world=far.world) -> None:
            calls.append("")
            if len(calls) == nth:
                world.advance(AWAY_S)

        near.keeper_system.after = stand_still
        assert near.keeper.keep().too_old == 0, nth
        settle(far.queue, "done", claim)
        if len(calls) < nth:
            break
    assert nth > 10


def test_who_is_gone_since_before_an_outage_is_found_out_after_it(make):
    far, near = make(host="far", network="nfs"), make(host="near", network="nfs")
    put(far)
    far.claim()
    near.keeper.keep()
    near.world.advance(AWAY_S)
    assert near.rounds(100, every_s=20).too_old == 1
    assert near.claim().crashes == 1


def test_counts_that_another_host_wrote_are_read_though_there_were_none(make):
    """As with NFS: what was missing stays missing to this host until it opens the directory."""
    far, near = make(host="far", network="nfs"), make(host="near", network="nfs")
    missing: set[str] = set()

    def as_known(call: str, arguments: tuple) -> None:
        path, flags = arguments[0], arguments[1] if call == "open" else os.O_CREAT
        if flags & os.O_DIRECTORY:
            missing.difference_update([known for known in missing if os.path.dirname(known) == path])
        elif path in missing:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        elif not flags & os.O_CREAT and not os.path.lexists(path):
            missing.add(path)

    near.system.before = as_known
    put(far)
    settle(near.queue, "retry", near.claim())
    assert far.rounds(2).due == 1
    assert near.claim().attempt == 2


class Knowing:
    """A keeper's host that goes on saying of each directory what it has seen there, until it lists it."""

    def __init__(self, pool: ForeignPool) -> None:
        self.place, self.known = pool.place, {}
        system = pool.keeper_system
        self.real_lstat, self.real_listdir, self.real_scandir = system.lstat, system.listdir, system.scandir
        system.lstat, system.rename_noreplace = self.lstat, self.rename_noreplace
        system.listdir, system.scandir = self.listdir, self.scandir

    def look(self) -> None:
        """See all that is there."""
        for place, directories, files in os.walk(self.place):
            paths = [os.path.join(place, name) for name in (*directories, *files)]
            self.known.update({path: self.real_lstat(path) for path in paths})

    def lstat(self, path: str) -> os.stat_result:
        return self.known[path] if path in self.known else self.real_lstat(path)

    def rename_noreplace(self, source: str, target: str) -> None:
        code = errno.EEXIST if target in self.known else errno.EINVAL
        raise OSError(code, os.strerror(code), source)

    def listdir(self, path: str) -> list[str]:
        self._forget(path)
        return self.real_listdir(path)

    def scandir(self, path: str) -> object:
        self._forget(path)
        return self.real_scandir(path)

    def _forget(self, directory: str) -> None:
        for path in [path for path in self.known if os.path.dirname(path) == directory]:
            del self.known[path]


def test_a_message_comes_back_under_its_name_where_this_host_has_seen_it_before(make):
    """It waits again by the keeper of a host that has seen it wait, and claimed, and not that it went."""
    far, near = make(host="far", network="nfs"), make(host="near", network="nfs")
    host = Knowing(near)
    name = put(far)
    host.look()
    claim = far.claim()
    host.look()
    settle(far.queue, "retry", claim)
    assert near.rounds(2).due == 1
    assert near.claim().name == name


def test_a_claim_goes_back_under_its_name_where_this_host_has_seen_it_wait(make):
    """Its holder is gone; the keeper of a host that knows nothing of its claim lets it wait again."""
    far, near = make(host="far", network="nfs"), make(host="near", network="nfs")
    host = Knowing(near)
    name = put(far)
    host.look()
    far.claim()
    assert near.rounds(100, every_s=20).too_old == 1
    assert near.claim().name == name


def test_what_the_board_calls_an_owner_and_is_none_becomes_no_path(pool, tmp_path):
    """A handler can write to the board: its keeper must not touch a file of that handler's choice."""
    put(pool)
    pool.claim()
    outside = tmp_path / "outside"
    outside.touch()
    os.utime(outside, (1, 1))
    pool.board.worker(0).set_text(WorkerText.OWNER, os.path.relpath(outside, beside(pool, "held")))
    pool.rounds(9, every_s=25.0)
    assert outside.stat().st_mtime == 1


def test_a_record_whose_message_is_none_becomes_no_path(pool, tmp_path):
    """Whoever may write into held/ may say anything there."""
    name, owner = hold(pool)
    record = beside(pool, "held", owner)
    outside = tmp_path / "outside"
    (outside / "locked").mkdir(parents=True)
    led_out = os.path.relpath(outside, pool.place / "work" if pool.kind == "ddmq" else pool.place)
    record.write_bytes(record.read_bytes().replace(name.encode(), led_out.encode()))
    before = sorted(map(str, tmp_path.glob("outside/**")))
    assert pool.keeping.release_owner(owner, "died") == []
    assert sorted(map(str, tmp_path.glob("outside/**"))) == before
