"""A pool on a directory queue of either kind: claims, settles, keeper, hostile elements, every call failed once."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from tests.rig import FakeSystem, Words, World
from tests.rig_dirq import SCHEMA, SIMPLE, DirqPool
from tests.rig_foreign import (
    FOREIGN_SETTINGS,
    SETTLES,
    beside,
    counts_of,
    descriptors,
    die,
    fail_each,
    hold,
    keeper_of,
    metas,
    put,
    settle,
)
from tests.unit.test_spool import as_nobody, open_place
from workers.board import Q, W, WorkerText
from workers.dirq.elements import ELEMENT
from workers.errors import (
    ClaimLost,
    InputGone,
    KeeperGone,
    NotSupported,
    QueueMissing,
    QueueRefused,
    QueueUnavailable,
)
from workers.message import Claim, Message
from workers.queues import names
from workers.queues.beside import encoded
from workers.queues.dirq import Dirq
from workers.queues.dirq_url import open_dirq
from workers.queues.reckoning import START_S

KINDS = (SIMPLE, SCHEMA)
STALE_S = 100.0
TOUCH_S = 5.0
Make = Callable[..., DirqPool]


@pytest.fixture(name="make", params=KINDS)
def _make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Makes pools on one queue, all under one clock."""
    world, pids = World(tmp_path), iter(range(1001, 2000))

    def make(**options) -> DirqPool:
        options = {"kind": request.param, "pid": next(pids), **options}
        return DirqPool(tmp_path / "queue", world, **options)

    return make


@pytest.fixture(name="pool")
def _pool(make: Make) -> DirqPool:
    return make()


def reclaimed(pool: DirqPool) -> Claim:
    """What another worker gets, when all the locks of this moment are told apart by their times."""
    pool.world.advance(0.1)
    return pool.claim()


def everything(pool: DirqPool) -> dict[str, list[bytes]]:
    """The content of all messages by state; what is empty is left out. Temporary things and lonely locks are states."""
    found: dict[str, list[bytes]] = {}
    for directory in pool.place.iterdir():
        for entry in directory.iterdir():
            if not ELEMENT.match(entry.name) or directory.name in ("temporary", "obsolete"):
                if not Path(str(entry).removesuffix(".lck")).exists() or not entry.name.endswith(".lck"):
                    found.setdefault("left over", []).append(entry.name.encode())
                continue
            is_locked = (entry / "locked").exists() or Path(f"{entry}.lck").exists()
            found.setdefault("claimed" if is_locked else "waiting", []).append(body_of(entry))
    for state in ("deferred", "errors", "tmp"):
        for entry in beside(pool, state).iterdir():
            if not entry.name.endswith(".meta"):
                found.setdefault(state, []).append(body_of(entry))
    return {state: sorted(bodies) for state, bodies in found.items()}


def body_of(entry: Path) -> bytes:
    return (entry / "body" if entry.is_dir() else entry).read_bytes()


def lock_times(pool: DirqPool, name: str) -> tuple[float, float]:
    """mtime by which the original's purge goes, and the moved clock's now."""
    element = pool.place / name
    seen = element if pool.kind == SCHEMA else Path(f"{element}.lck")
    return pool.system.lstat(str(seen)).st_mtime, pool.system.wall_ns() / 1e9


def work(pool: DirqPool, worker: Dirq) -> None:
    """Have the board say that *worker* handles a message since now."""
    slot = pool.board.worker(worker._consumer.worker_slot if worker._consumer else 0)
    slot.words[W.MESSAGE_SINCE_NS] = pool.system.boottime_ns()


# ---- opening


def test_a_queue_is_made_only_when_asked_and_where_its_parent_exists(tmp_path):
    world = World(tmp_path)
    for kind in KINDS:
        with pytest.raises(QueueMissing, match="orchestrator put makes one"):
            open_dirq(
                kind,
                str(tmp_path / "queue"),
                replace(FOREIGN_SETTINGS, create=False),
                system=FakeSystem(world),
                host="one",
            )
        with pytest.raises(QueueMissing, match="parent"):
            open_dirq(kind, str(tmp_path / "none" / "queue"), FOREIGN_SETTINGS, system=FakeSystem(world), host="one")
    assert os.listdir(tmp_path) == [".clock"] or not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [({"keep_done_s": 5.0}, "keep_done is not possible"), ({"lease_interval_s": 1.0}, "lease_interval.*stale_after"),
     ({"lease_timeout_s": 9.0}, "lease_timeout.*stale_after")],
)  # fmt: skip
def test_what_the_format_cannot_do_is_refused_at_start_by_its_name(make, settings, sentence):
    with pytest.raises(NotSupported, match=sentence):
        make(settings=replace(FOREIGN_SETTINGS, **settings))


def test_a_stale_time_in_which_two_locks_cannot_be_told_apart_is_refused(make):
    with pytest.raises(QueueRefused, match=r"stale_after = 1\.5s is too short"):
        make(settings=replace(FOREIGN_SETTINGS, stale_after_s=1.5))


def test_what_is_kept_stands_beside_the_queue_and_nothing_of_it_inside(pool):
    put(pool)
    assert sorted(os.listdir(beside(pool))) == ["counts", "deferred", "errors", "held", "tmp"]
    allowed = {"temporary", "obsolete"} if pool.kind == SCHEMA else set()
    assert {name for name in os.listdir(pool.place) if len(name) != 8} <= allowed


def test_a_directory_of_its_own_takes_what_is_kept_of_two_queues_of_one_name(tmp_path):
    world, state = World(tmp_path), tmp_path / "state"
    settings = replace(FOREIGN_SETTINGS, state_dir=str(state))
    state.mkdir()
    for parent in ("a", "b"):
        (tmp_path / parent).mkdir()
        pool = DirqPool(tmp_path / parent / "queue", world, settings=settings, pid=1001)
        put(pool)
        settle(pool.queue, "reject", pool.claim())
        assert (pool.queue.depth().errors, os.listdir(tmp_path / parent)) == (1, ["queue"])
    assert len(list(state.iterdir())) == 2
    assert all(place.name.startswith("queue-") for place in state.iterdir())


def test_a_parent_that_may_not_be_written_is_told_with_what_to_do():
    with open_place() as place:

        def act():
            world = World(place)
            (place / "parent").mkdir()
            (place / "parent" / "queue").mkdir()
            (place / "parent").chmod(0o555)
            with pytest.raises(QueueRefused) as caught:
                DirqPool(place / "parent" / "queue", world)
            (place / "state").mkdir()
            pool = DirqPool(
                place / "parent" / "queue", world, settings=replace(FOREIGN_SETTINGS, state_dir=str(place / "state"))
            )
            put(pool)
            settle(pool.queue, "retry", pool.claim())
            (place / "parent").chmod(0o755)
            return str(caught.value), pool.queue.depth().deferred

        text, deferred = as_nobody(act)
        assert "set state_dir" in text
        assert deferred == 1


def test_what_is_kept_on_another_filesystem_is_refused(make, tmp_path):
    if not os.path.isdir("/dev/shm") or os.stat("/dev/shm").st_dev == os.stat(tmp_path).st_dev:
        pytest.skip("there is no second filesystem here")
    other = Path("/dev/shm") / f"dirq-{os.getpid()}"
    other.mkdir()
    try:
        with pytest.raises(QueueRefused, match="must be writable and on one filesystem"):
            make(settings=replace(FOREIGN_SETTINGS, state_dir=str(other)))
    finally:
        shutil.rmtree(other)


def test_a_file_in_the_way_of_what_is_kept_is_refused(make, tmp_path):
    (tmp_path / "queue.pool").mkdir()
    (tmp_path / "queue.pool" / "counts").touch()
    with pytest.raises(QueueRefused, match="counts is in the way"):
        make()


@pytest.mark.parametrize("code", [0, errno.EPERM, errno.EOPNOTSUPP])
def test_where_nobody_can_tell_whether_a_lock_is_still_his_the_queue_is_refused(make, code):
    """Each name of a file has an inode of its own (sshfs), or a file has one name only (code: what link says)."""
    pool = make()
    system = pool.keeper_system
    real_lstat, real_link = system.lstat, system.link

    def lstat(path):
        found = list(real_lstat(path))
        found[1] = hash(path)
        return os.stat_result(found[:10])

    def link(source, target):
        if code:
            raise OSError(code, os.strerror(code), source)
        real_link(source, target)

    system.lstat, system.link = lstat, link
    if pool.kind == SCHEMA:
        pool.keeper.check()
    else:
        with pytest.raises(QueueRefused, match="locked by hard links"):
            pool.keeper.check()
    assert everything(pool) == {}


def opened_at(tmp_path: Path, url: str) -> Dirq:
    kind, _, rest = url.partition(":")
    path, _, options = rest.partition("?")
    return open_dirq(
        kind, f"{tmp_path}/{path}?{options}", FOREIGN_SETTINGS, system=FakeSystem(World(tmp_path)), host="one"
    )


@pytest.mark.parametrize(
    ("url", "sentence"),
    [("dirq-simple:q?maxelts=5", "no option 'maxelts'; there is granularity, rndhex, state_dir, umask"),
     ("dirq:q?granularity=5", "no option 'granularity'; there is maxelts, rndhex, schema, state_dir, umask"),
     ("dirq:q?Schema=body:string", "no option 'Schema'"), ("dirq:q?schema=body", "is not KEY:TYPE"),
     ("dirq:q?schema=body:text", "invalid schema data type"), ("dirq:q?schema=locked:binary", "invalid schema name"),
     ("dirq:q?schema=../x:binary", "invalid schema name"), ("dirq:q?schema=a:binary?", "no mandatory data"),
     ("dirq:q?schema=a:binary,a:string", "is there twice"), ("dirq:q?maxelts=-5", "maxelts"),
     ("dirq:q?maxelts=", "maxelts"), ("dirq-simple:q?granularity=-60", "granularity"),
     ("dirq-simple:q?granularity=1.5", "granularity"), ("dirq-simple:q?umask=8", "umask"),
     ("dirq-simple:q?umask=-1", "umask"), ("dirq-simple:q?umask=1000", "umask"),
     ("dirq-simple:q?rndhex=10", "rndhex"), ("dirq-simple:q?rndhex=g", "rndhex"),
     ("dirq-simple:q?umask", "umask")],
)  # fmt: skip
def test_an_option_that_cannot_be_is_refused_by_its_name_before_anything_is_made(tmp_path, url, sentence):
    with pytest.raises(QueueRefused) as caught:
        opened_at(tmp_path, url)
    assert sentence in str(caught.value)
    assert not (tmp_path / "q").exists()


def test_the_options_of_a_url_are_those_of_the_format(tmp_path):
    simple = opened_at(tmp_path, "dirq-simple:a?umask=077&rndhex=c&granularity=3600")
    name = simple.put(b"x")
    assert (name[-1], int(name[:8], 16) % 3600) == ("c", 0)
    assert stat.S_IMODE((tmp_path / "a" / name).stat().st_mode) == 0o600
    schema = opened_at(tmp_path, "dirq:b?umask=027&rndhex=5&maxelts=2&schema=data:string")
    entered = schema.put_many([b"x"] * 5)
    assert [name[:8] for name in entered] == ["00000000"] * 2 + ["00000001"] * 2 + ["00000002"]
    assert {name[-1] for name in entered} == {"5"}
    assert stat.S_IMODE((tmp_path / "b" / entered[0]).stat().st_mode) == 0o750
    assert schema.url == f"dirq:{tmp_path}/b?umask=027&rndhex=5&maxelts=2&schema=data:string"


# ---- by cause


@pytest.mark.parametrize(
    ("cause", "state", "attempts", "crashes"),
    [("died", "waiting", 0, 1), ("unknown", "waiting", 0, 1), ("timeout", "deferred", 1, 0),
     ("stopped", "waiting", 0, 0)],
)  # fmt: skip
def test_the_cause_says_what_is_counted(pool, cause, state, attempts, crashes):
    name, owner = hold(pool)
    assert pool.keeping.release_owner(owner, cause) == [name]
    assert everything(pool) == {state: [b"content"]}
    if state == "deferred":
        mark = names.parse_due(os.listdir(beside(pool, "deferred"))[0])[1]
        assert (mark.attempts, mark.crashes) == (attempts, crashes)
    else:
        assert counts_of(pool, name) == (attempts, crashes)
    assert os.listdir(beside(pool, "held")) == []
    assert pool.words[Q.REAPED_OWNER_DEAD] == (cause != "stopped")
    assert pool.keeping.release_owner(owner, cause) == []
    assert pool.words[Q.REAPED_OWNER_DEAD] == (cause != "stopped")
    pool.rounds(3)
    claim = pool.claim()
    assert (claim.name, claim.attempt, claim.crashes) == (name, attempts + 1, crashes)


def test_the_crash_limit_ends_in_errors_with_what_is_known(pool):
    name = put(pool)
    for crashes in (1, 2, 3):
        pool.world.advance(1)
        claim = pool.claim()
        assert claim.crashes == crashes - 1
        pool.queue.settled(claim)
        pool.keeping.release_owner(pool.bury(), "died", "signal 9")
        pool.queue._lapses = -1
    assert everything(pool) == {"errors": [b"content"]}
    assert counts_of(pool, name) == (0, 0)
    (meta,) = metas(pool)
    assert (meta["name"], meta["crashes"], meta["cause"], meta["note"]) == (name, 3, "died", "signal 9")
    assert (meta["host"], meta["worker"], meta["pid"]) == ("one", 0, pool.system.pid)
    assert (meta["queue"], meta["reason"]) == (pool.queue.url, "its worker died 3 times with it in hand")
    assert pool.words[Q.REAPED_CRASH_LIMIT] == 1


def test_the_last_time_limit_ends_in_errors(make):
    pool = make(settings=replace(FOREIGN_SETTINGS, max_attempts=1))
    _, owner = hold(pool)
    pool.keeping.release_owner(owner, "timeout")
    assert everything(pool) == {"errors": [b"content"]}
    assert "time limit" in str(metas(pool)[0]["reason"])


def test_a_time_limit_defers_by_the_backoff(make):
    pool = make(settings=replace(FOREIGN_SETTINGS, retry_backoff_s=50.0))
    pool.keeping.backoff_s = lambda attempt: 50.0 * attempt  # without the jitter
    _, owner = hold(pool)
    pool.keeping.release_owner(owner, "timeout")
    due_s = names.parse_due(os.listdir(beside(pool, "deferred"))[0])[0]
    assert 49 < due_s - pool.system.wall_ns() / 1e9 < 52
    pool.rounds(1, every_s=45)
    assert everything(pool) == {"deferred": [b"content"]}
    pool.rounds(1, every_s=10)
    assert everything(pool) == {"waiting": [b"content"]}


def test_a_poison_message_is_durable_in_errors_before_it_is_counted(make):
    pool = make(settings=replace(FOREIGN_SETTINGS, crash_limit=1))
    _, owner = hold(pool)
    pool.keeper_system.calls.clear()
    pool.keeping.release_owner(owner, "died")
    calls = pool.keeper_system.calls
    assert calls.count("fsync") == 1
    assert calls.index("rename") < calls.index("fsync")


def test_a_worker_that_dies_with_nothing_in_hand_leaves_nothing_and_counts_nothing(pool):
    put(pool)
    settle(pool.queue, "done", pool.claim())
    put(pool)
    settle(pool.queue, "release", pool.claim())
    assert pool.keeping.release_owner(pool.bury(), "died") == []
    assert everything(pool) == {"waiting": [b"content"]}
    assert os.listdir(beside(pool, "held")) == os.listdir(beside(pool, "counts")) == []
    assert pool.words[Q.REAPED_OWNER_DEAD] == 0


def test_a_worker_that_dies_after_a_release_takes_no_lock_of_another_with_it(pool):
    """
    A keeper finds it dead at each moment of its release, another having locked at once.

    Both within one tick of the filesystem's clock, so the two locks cannot be told apart but by the record.
    """
    name = put(pool)
    pool.queue.settled(claim := pool.claim())
    element = pool.place / name
    at_ns = pool.queue._lock_of(claim).at_ns
    died = []

    def die_unlocked(call, arguments):
        is_free = not (element / "locked").exists() and not Path(f"{element}.lck").exists()
        if is_free and not died:
            pool.system.after = None
            died.append(call)
            pool.queue.elements.lock(name)
            locked = element / "locked" if pool.kind == SCHEMA else element
            os.utime(locked, ns=(at_ns, at_ns))
            pool.keeping.release_owner(pool.bury(), "died")
            assert everything(pool) == {"claimed": [b"content"]}

    pool.system.after = die_unlocked
    pool.queue.release(claim)
    assert died
    assert counts_of(pool, name) == (0, 0)


def test_a_release_that_is_tried_again_after_any_error_counts_one_crash(fresh):
    codes = (errno.EIO, errno.EACCES)  # on a full disk the counts are lost
    for pool, what, raised in fail_each(fresh, release_the_dead, hold_for_later, keeper_of, codes):
        assert raised is None or isinstance(raised, QueueUnavailable), what
        release_the_dead(pool)
        assert os.listdir(beside(pool, "held")) == [], what
        claim = reclaimed(pool)
        assert (claim.attempt, claim.crashes) == (1, 1), what


def test_a_release_to_errors_that_is_tried_again_is_there_once(fresh):
    limit = replace(FOREIGN_SETTINGS, crash_limit=1)
    for pool, what, raised in fail_each(fresh, release_the_dead, prepare=hold_for_later, of=keeper_of, settings=limit):
        assert raised is None or isinstance(raised, QueueUnavailable), what
        release_the_dead(pool)
        pool.rounds(9, every_s=STALE_S / 4)
        assert everything(pool) == {"errors": [b"content"]}, what
        assert os.listdir(beside(pool, "held")) == os.listdir(beside(pool, "counts")) == [], what


@pytest.mark.parametrize("owner", ["", ".", "../counts", "no owner"])
def test_what_is_no_owner_held_nothing_and_nothing_is_moved_for_it(pool, owner):
    put(pool)
    pool.claim()
    before = sorted(str(path) for path in beside(pool).rglob("*"))
    assert pool.keeping.release_owner(owner, "died") == []
    assert sorted(str(path) for path in beside(pool).rglob("*")) == before


def test_a_poison_message_that_a_peer_takes_away_meanwhile_leaves_nothing_in_errors(make):
    pool = make(settings=replace(FOREIGN_SETTINGS, crash_limit=1))
    name, owner = hold(pool)
    element = pool.place / name

    def take(call, arguments):
        if call == "rename" and arguments[0] == str(element):
            pool.keeper_system.before = None
            element.rename(f"{pool.place}.taken")

    pool.keeper_system.before = take
    pool.keeping.release_owner(owner, "died")
    assert os.listdir(beside(pool, "errors")) == []
    assert pool.words[Q.REAPED_CRASH_LIMIT] == 0


# ---- who is dead


def test_an_owner_of_ours_that_the_board_does_not_list_is_released_in_the_second_round(pool):
    """The first leaves the master the moment to say how it died."""
    hold(pool)
    assert pool.rounds().owner_dead == 0
    assert pool.rounds().owner_dead == 1
    assert pool.claim().crashes == 1


def test_an_owner_that_the_board_lists_is_left_alone(pool):
    put(pool)
    claim = pool.claim()
    assert pool.rounds(10).owner_dead == 0
    settle(pool.queue, "done", claim)
    assert everything(pool) == {}


def test_an_order_that_comes_between_the_two_rounds_decides_the_cause(pool):
    _, owner = hold(pool)
    pool.rounds()
    pool.keeping.release_owner(owner, "stopped")
    assert pool.rounds().owner_dead == 0
    assert pool.claim().crashes == 0


def test_a_dead_neighbour_is_released_at_once_and_what_is_left_of_its_session_ended(make):
    dead, living = make(pid=4001), make(pid=4002)
    hold(dead)
    living.world.dead.add(4001)
    assert living.rounds().owner_dead == 1
    assert living.world.ended_sessions == [4001]
    assert living.claim().crashes == 1
    assert os.listdir(beside(living, "held")) == [living.queue._owner]


@pytest.mark.parametrize("alive", ["master", "worker"])
def test_a_neighbour_of_whom_one_process_lives_is_not_released(make, alive):
    pool, other = make(pid=4001), make(pid=4003)
    worker = pool.another_worker(1, pid=4002)
    put(pool)
    claim = worker.claim()
    pool.world.dead.add(4002 if alive == "master" else 4001)
    assert other.rounds(2).owner_dead == 0
    assert other.queue.elements.is_held(claim.lock)


def test_a_record_that_another_user_wrote_ends_no_process(make):
    if os.geteuid() != 0:
        pytest.skip("only root can make another user's file")
    dead, living = make(pid=4001), make(pid=4002)
    _, owner = hold(dead)
    os.chown(beside(dead, "held", owner), 65534, 65534)
    living.world.dead.add(4001)
    assert living.rounds(2).owner_dead == 0
    assert living.world.ended_sessions == []


def test_another_hosts_dead_worker_is_left_to_its_own_keeper_until_its_lock_is_stale(make):
    far, near = make(host="far", pid=4001), make(host="near", pid=4002)
    name, owner = hold(far)
    near.world.dead.add(4001)
    near.rounds(5, every_s=STALE_S / 8)
    assert owner in os.listdir(beside(near, "held"))
    assert near.queue.claim() is None
    assert near.rounds(8, every_s=STALE_S / 8).too_old == 1
    assert owner not in os.listdir(beside(near, "held"))
    assert counts_of(near, name) == (0, 1)


def test_the_record_of_a_neighbour_whose_keeper_hangs_stays_for_the_kernel_says_that_it_lives(make):
    hangs, pool = make(pid=4001), make(pid=4002)
    put(hangs)
    settle(hangs.queue, "done", hangs.claim())
    pool.rounds(12, every_s=STALE_S / 4)
    assert hangs.queue._owner in os.listdir(beside(pool, "held"))


# ---- hostile records


def _symlink(path: Path) -> None:
    path.symlink_to("/etc/passwd")


HOSTILE = {
    "binary": lambda path: path.write_bytes(os.urandom(128)),
    "huge": lambda path: path.write_bytes(b"9" * 1_000_000),
    "a name that leads out": lambda path: path.write_bytes(b"../../../../etc/passwd 1 1"),
    "numbers that are none": lambda path: path.write_bytes(b"00000000/00000000000000 1 -1"),
    "a huge number": lambda path: path.write_bytes(b"00000000/00000000000000 1 " + b"9" * 100),
    "a symlink": _symlink,
    "a fifo": os.mkfifo,
    "a directory": Path.mkdir,
    "empty": Path.touch,
}


@pytest.mark.parametrize("how", sorted(HOSTILE))
def test_a_record_that_is_none_stops_no_round_no_release_and_no_listing(make, how):
    dead, pool = make(pid=4001), make(pid=4002)
    name, owner = hold(dead)
    path = beside(pool, "held", owner)
    path.unlink()
    HOSTILE[how](path)
    pool.world.dead.add(4001)
    pool.rounds(2)
    dead.rounds(2)
    assert os.path.lexists(path) == (how in ("a symlink", "a fifo", "a directory"))  # no worker makes such a thing
    dead.keeping.release_owner(owner, "died")
    assert [line.owner for line in pool.queue.list("claimed")] == [None]
    pool.rounds(3, every_s=STALE_S)
    assert pool.claim().name == name  # by its age
    assert Path("/etc/passwd").exists()


def test_a_record_that_leads_out_of_the_queue_to_a_lock_breaks_none(make, tmp_path):
    """Whoever wrote it knows inode and time of the file that he would have removed."""
    pool = make()
    target = tmp_path / "secret" / "locked" if pool.kind == SCHEMA else tmp_path / "secret.lck"
    (tmp_path / "secret").mkdir()
    target.mkdir() if pool.kind == SCHEMA else target.touch()
    seen = pool.system.lstat(str(target))
    _, owner = hold(pool)
    beside(pool, "held", owner).write_text(f"../secret {seen.st_ino} {seen.st_mtime_ns}\n")
    assert pool.keeping.release_owner(owner, "died") == []
    assert target.exists()
    assert os.listdir(beside(pool, "counts")) == []


@pytest.mark.parametrize("how", sorted(HOSTILE))
def test_counts_that_are_none_are_zeros_and_are_replaced(pool, how):
    name, owner = hold(pool)
    HOSTILE[how](beside(pool, "counts", encoded(name)))
    pool.rounds()
    assert counts_of(pool, name) == (0, 0)
    if how == "a directory":
        return
    pool.keeping.release_owner(owner, "died")
    claim = pool.claim()
    assert (claim.attempt, claim.crashes) == (1, 1)


def test_counts_beyond_all_bounds_are_bounded(pool):
    name = put(pool)
    beside(pool, "counts", encoded(name)).write_bytes(b"9" * 30 + b" " + b"9" * 30 + b" x\n")
    assert counts_of(pool, name) == (9999, 9999)


def test_a_strange_name_in_held_is_left_alone(pool):
    beside(pool, "held", "README").write_text("of no worker")
    pool.rounds(3, every_s=STALE_S)
    assert os.listdir(beside(pool, "held")) == ["README"]


# ---- a whole pool dead


def test_a_lock_that_nobody_touches_is_broken_counted_as_a_crash_and_at_the_limit_kept_in_errors(make):
    settings = replace(FOREIGN_SETTINGS, crash_limit=2)
    gone, pool = make(host="gone", settings=settings), make(settings=settings)
    name = put(gone)
    gone.claim()
    assert pool.rounds(9, every_s=STALE_S / 10).too_old == 0
    assert pool.queue.claim() is None
    assert pool.rounds(3, every_s=STALE_S / 10).too_old == 1
    assert counts_of(pool, name) == (0, 1)
    peer = make(host="peer").queue.elements  # a program of another kind: it has no record
    assert peer.lock(name) is not None
    assert pool.rounds(12, every_s=STALE_S / 10).too_old == 1
    assert everything(pool) == {"errors": [b"content"]}
    assert counts_of(pool, name) == (0, 0)
    (meta,) = metas(pool)
    assert (meta["crashes"], meta["reason"]) == (2, "its holder was gone 2 times")


def test_a_lock_that_was_stale_before_the_pool_started_is_broken_as_soon_as_its_age_is_believed(pool):
    """And not only at the next sweep that the calendar has: somebody waits for what is to be empty."""
    pool.queue.elements.lock(put(pool))
    old_s = 3 * STALE_S
    for path in pool.place.rglob("*"):
        os.utime(path, (path.stat().st_mtime - old_s,) * 2)
    assert pool.rounds(int(START_S) - 1).too_old == 0
    assert pool.rounds(3).too_old == 1


def test_a_stale_lock_counts_in_the_same_round_however_often_there_is_one(pool):
    name = put(pool)
    settle(pool.queue, "retry", pool.claim())
    pool.rounds(3)
    for crashes in (1, 2):
        assert pool.queue.elements.lock(name) is not None
        pool.rounds(12, every_s=STALE_S / 10)
        assert counts_of(pool, name) == (1, crashes)
    claim = pool.claim()
    assert (claim.attempt, claim.crashes) == (2, 2)


def test_a_stale_message_at_its_limit_that_another_takes_at_once_is_left_to_him(make):
    settings = replace(FOREIGN_SETTINGS, crash_limit=1)
    pool, other = make(settings=settings), make(host="two", settings=settings)
    name = put(pool)
    pool.queue.elements.lock(name)
    taken = []

    def take(call, arguments):
        if call == "open" and "/tmp/" in arguments[0] and not taken:  # the count is about to be written
            taken.append(other.queue.elements.lock(name))

    pool.keeper_system.before = take
    assert pool.rounds(every_s=2 * STALE_S).too_old == 1
    assert taken[0] is not None
    assert everything(pool) == {"claimed": [b"content"]}
    assert other.queue.elements.is_held(taken[0])


@pytest.mark.parametrize("is_failing", [False, True])
def test_a_sweep_is_seldom_for_it_lists_the_whole_queue(pool, is_failing):
    directory = str(pool.place / put(pool)[:8])
    listed = []

    def count(call, arguments):
        if call == "listdir" and arguments[0] == directory:
            listed.append(arguments)
            if is_failing:
                raise OSError(errno.EIO, os.strerror(errno.EIO), directory)

    pool.keeper_system.before = count
    for _ in range(50):
        with suppress(QueueUnavailable):
            pool.rounds()
    assert 2 <= len(listed) <= 50 / (STALE_S / 8) + 1


def test_a_lock_that_is_touched_is_never_broken(make):
    pool, other = make(host="one"), make(host="two")
    name = put(pool)
    claim = pool.claim()
    work(pool, pool.queue)
    for _ in range(60):
        pool.rounds(every_s=TOUCH_S)
        assert other.keeper.keep().too_old == 0
        touched_s, now_s = lock_times(pool, name)
        assert now_s - touched_s < 3 * TOUCH_S
    assert other.queue.claim() is None
    settle(pool.queue, "done", claim)
    assert everything(pool) == {}


def test_the_original_purge_sees_the_touch_and_leaves_the_lock(pool, monkeypatch):
    original = pytest.importorskip("dirq.QueueSimple" if pool.kind == SIMPLE else "dirq.queue")
    put(pool)
    claim = pool.claim()
    work(pool, pool.queue)
    element = pool.place / claim.name
    locked_s = element.stat().st_mtime
    pool.rounds(3, every_s=TOUCH_S)
    touched_s = element.stat().st_mtime
    assert touched_s > locked_s
    path = str(pool.place)
    peer = original.QueueSimple(path) if pool.kind == SIMPLE else original.Queue(path, schema={"body": "binary"})
    lock = Path(f"{element}.lck") if pool.kind == SIMPLE else element / "locked"
    for now_s, is_there in (((locked_s + touched_s) / 2 + 600, True), (touched_s + 601, False)):
        with monkeypatch.context() as patched:
            patched.setattr("time.time", lambda now_s=now_s: now_s)
            peer.purge(maxlock=600)
        assert lock.exists() == is_there


def test_a_lock_is_its_holders_at_every_moment_of_a_touch(pool):
    """The keeper stops after each call of a touch: whatever the holder does then, it has not lost the message."""
    put(pool)
    claim = pool.claim()
    work(pool, pool.queue)
    queue, moments = pool.queue, []

    def look(call, arguments):
        touched_ns = queue.system.fstat(queue._hand).st_mtime_ns
        moments.append((call, queue.elements.is_held(claim.lock, touched_ns)))

    pool.keeper_system.after = look
    pool.rounds(20, every_s=30)
    assert [call for call, _ in moments].count("utime") >= 2 * 19
    assert [call for call, is_ours in moments if not is_ours] == []


def test_a_touch_gives_the_record_and_the_lock_one_time_however_long_it_takes(pool):
    """By that time the next round knows that the lock is still the one of the record, and so does its holder."""
    name = put(pool)
    claim = pool.claim()
    work(pool, pool.queue)
    times = []

    def look(call, arguments):
        if call == "utime":
            pool.world.advance(0)  # a tick of the filesystem's clock
            if arguments[0] == str(pool.place / name):
                record = pool.system.lstat(str(beside(pool, "held", pool.queue._owner)))
                times.append(arguments[1:] == ((record.st_mtime_ns, record.st_mtime_ns),))

    pool.keeper_system.before = look
    for _ in range(60):
        pool.rounds(every_s=TOUCH_S)
        touched_s, now_s = lock_times(pool, name)
        assert now_s - touched_s < 3 * TOUCH_S
    assert len(times) >= 59
    assert all(times)
    settle(pool.queue, "done", claim)


def test_what_is_held_for_a_short_time_is_not_touched_however_often_there_is_something(pool):
    put(pool)
    pool.claim()
    pool.rounds()
    pool.keeper_system.calls.clear()
    for _ in range(4):  # and no sweep, before which all are touched
        pool.world.advance(TOUCH_S / 2)
        work(pool, pool.queue)
        pool.keeper.keep()
    assert "utime" not in pool.keeper_system.calls


@pytest.mark.parametrize("host", ["one", "two"])
def test_a_claim_that_was_lost_is_not_touched_and_not_taken_for_ours_again(make, host):
    """To another host's keeper our record is old by then; to one of this host it says that we live."""
    pool, other = make(host="one"), make(host=host)
    name = put(pool)
    claim = pool.claim()
    work(pool, pool.queue)
    pool.world.advance(2 * STALE_S)  # our keeper was stopped for that long
    other.rounds(2)
    theirs = other.claim()
    before = lock_times(pool, name)[0]
    pool.rounds(10, every_s=TOUCH_S)
    assert lock_times(pool, name)[0] == before
    with pytest.raises(ClaimLost):
        pool.queue.done(claim)
    assert other.queue.elements.is_held(theirs.lock)


def test_a_lock_of_another_users_element_is_touched_as_well():
    """Who may write to it may set its time to now; only its owner may set one of his choice."""
    if os.geteuid() != 0:
        pytest.skip("only root can make another user's element")
    for kind in KINDS:
        with open_place() as place:
            world = World(place)
            name = put(DirqPool(place / "queue", world, kind))
            for path in (place, *place.rglob("*")):
                path.chmod(0o777 if path.is_dir() else 0o666)

            def act(place=place, world=world, kind=kind, name=name):
                pool = DirqPool(place / "queue", world, kind, pid=1002)
                claim = pool.claim()
                work(pool, pool.queue)
                ages = []

                def hang(call, arguments):
                    if call == "utime" and arguments[1:] == (None,):
                        world.advance(TOUCH_S / 2)

                pool.keeper_system.before = hang
                for _ in range(30):
                    pool.rounds(every_s=TOUCH_S)
                    touched_s, now_s = lock_times(pool, name)
                    ages.append(now_s - touched_s)
                settle(pool.queue, "done", claim)
                return max(ages), everything(pool)

            age_s, left = as_nobody(act)
            assert age_s < 3 * TOUCH_S
            assert left == {}


def test_a_record_that_vanished_fails_no_round(pool):
    put(pool)
    pool.claim()
    work(pool, pool.queue)
    for path in beside(pool, "held").iterdir():
        path.unlink()
    pool.rounds(5, every_s=TOUCH_S)


@pytest.mark.parametrize("cause", ["died", "timeout", "stopped"])
def test_the_death_of_a_worker_that_had_lost_its_message_changes_nothing_of_the_others(make, cause):
    pool, other = make(), make()
    name = put(pool)
    pool.queue.settled(pool.claim())
    pool.world.advance(2 * STALE_S)
    assert other.rounds(2).too_old == 1
    theirs = other.claim()
    assert pool.keeping.release_owner(pool.bury(), cause) == []
    assert counts_of(pool, name) == (0, 1)
    assert other.queue.elements.is_held(theirs.lock)
    settle(other.queue, "done", theirs)


# ---- the fence


@pytest.mark.parametrize("verb", SETTLES)
def test_a_settle_after_the_lock_was_broken_and_taken_changes_nothing_of_the_others(make, verb):
    pool, other = make(host="one"), make(host="two")
    name = put(pool)
    claim = pool.claim()
    pool.world.advance(2 * STALE_S)
    other.rounds(2)
    theirs = other.claim()
    pool.world.advance(1)
    before = everything(pool), lock_times(pool, name)[0], counts_of(pool, name)
    with pytest.raises(ClaimLost, match="given to another"):
        settle(pool.queue, verb, claim)
    assert (everything(pool), lock_times(pool, name)[0], counts_of(pool, name)) == before
    assert claim.fd == -1
    settle(other.queue, "done", theirs)
    assert everything(pool) == {}


@pytest.mark.parametrize("verb", SETTLES)
def test_a_settle_after_the_other_has_finished_it_is_lost(make, verb):
    pool, other = make(host="one"), make(host="two")
    put(pool)
    claim = pool.claim()
    pool.world.advance(2 * STALE_S)
    other.rounds(2)
    settle(other.queue, "done", other.claim())
    with pytest.raises(ClaimLost):
        settle(pool.queue, verb, claim)
    assert everything(pool) == {}


STATE_AFTER = {"done": {}, "retry": {"deferred": [b"content"]}, "reject": {"errors": [b"content"]},
               "release": {"waiting": [b"content"]}}  # fmt: skip


@pytest.mark.parametrize("verb", SETTLES)
def test_a_settle_after_the_lock_was_broken_and_nobody_took_it_counts(make, verb):
    pool, other = make(host="one"), make(host="two")
    put(pool)
    claim = pool.claim()
    pool.world.advance(2 * STALE_S)
    assert other.rounds(2).too_old == 1
    settle(pool.queue, verb, claim)
    assert everything(pool) == STATE_AFTER[verb]


@pytest.mark.parametrize("verb", SETTLES)
def test_a_settle_that_fails_after_its_lock_was_taken_again_is_tried_again(make, verb):
    pool, other = make(host="one"), make(host="two")
    put(pool)
    claim = pool.claim()
    pool.world.advance(2 * STALE_S)
    assert other.rounds(2).too_old == 1
    pool.system.fail_all("rename unlink rmdir", errno.EIO)
    with pytest.raises(QueueUnavailable):
        getattr(pool.queue, verb)(claim, *(("no",) if verb == "reject" else ()))
    pool.system.before = None
    assert other.queue.claim() is None
    settle(pool.queue, verb, claim)
    assert everything(pool) == STATE_AFTER[verb]


@pytest.mark.parametrize("verb", SETTLES)
def test_on_a_network_filesystem_a_lock_is_looked_at_however_young_it_is(make, verb):
    """Its clock is not ours: what was locked a moment ago may have been broken by another host."""
    pool, other = make(network="nfs"), make(host="two", network="nfs")
    name = put(pool)
    claim = pool.claim()
    other.queue.elements.unlock(name)
    theirs = other.queue.elements.lock(name)
    if pool.kind == SIMPLE:  # no younger than any lock that may be broken
        os.utime(pool.place / name, ns=(theirs.at_ns + pool.queue.within_ns + 10**9,) * 2)
    with pytest.raises(ClaimLost):
        settle(pool.queue, verb, claim)
    assert everything(pool) == {"claimed": [b"content"]}


@pytest.mark.parametrize("verb", SETTLES)
@pytest.mark.parametrize("later_s", [0, 10])
def test_a_handler_may_remove_its_input(pool, verb, later_s):
    put(pool)
    claim = pool.claim()
    os.unlink(claim.path)
    pool.world.advance(later_s)
    if pool.kind == SIMPLE and verb != "release":  # the element itself was removed, and so it is told
        with pytest.raises(InputGone):
            settle(pool.queue, verb, claim)
    else:
        settle(pool.queue, verb, claim)
    left = {state: len(bodies) for state, bodies in everything_but_bodies(pool).items()}
    assert left == ({} if pool.kind == SIMPLE else dict.fromkeys(STATE_AFTER[verb], 1))
    if pool.kind == SIMPLE:
        assert not (pool.place / f"{claim.name}.lck").exists()


def everything_but_bodies(pool: DirqPool) -> dict[str, list[bytes]]:
    """As everything(), of elements that may have lost their body."""
    for place in (*pool.place.iterdir(), beside(pool, "deferred"), beside(pool, "errors")):
        for entry in place.iterdir():
            if entry.is_dir() and not (entry / "body").exists() and entry.name != "locked":
                (entry / "body").touch()
    return everything(pool)


@pytest.mark.parametrize("first", SETTLES)
@pytest.mark.parametrize("second", SETTLES)
def test_of_two_that_settle_one_message_one_wins(make, first, second):
    """Both think that they hold it: the lock was broken between the look of the one and its settle."""
    pool, other = make(host="one"), make(host="two")
    put(pool)
    claim = pool.claim()
    stolen = []

    def steal(call, arguments):
        if call in ("unlink", "rename", "rmdir", "pwrite") and not stolen:
            pool.system.before = None
            pool.world.advance(2 * STALE_S)
            other.rounds(2)
            stolen.append(other.claim())

    pool.world.advance(1)
    pool.system.before = steal
    ended = []
    for queue, verb, held in ((pool.queue, first, claim), (other.queue, second, None)):
        with suppress(ClaimLost):
            settle(queue, verb, held or stolen[0])
            ended.append(verb)
    assert stolen
    final = [verb for verb in ended if verb in ("done", "retry", "reject")]
    assert len(final) <= 1
    assert len([body for bodies in everything(pool).values() for body in bodies]) == (final != ["done"])


def test_a_message_that_is_settled_is_no_longer_in_anybodys_hand(pool):
    for verb in SETTLES:
        put(pool)
        settle(pool.queue, verb, pool.claim())
    assert pool.queue.depth().claimed == 0
    assert list(pool.queue.list("claimed")) == []


# ---- retry, reject, requeue


def test_a_retry_waits_out_of_the_queue_and_comes_back_under_its_name_with_its_counts(make):
    pool = make(settings=replace(FOREIGN_SETTINGS, retry_backoff_s=8.0))
    pool.queue.backoff_s = lambda attempt: 8.0
    name = put(pool)
    assert settle(pool.queue, "retry", pool.claim()) is True
    assert everything(pool) == {"deferred": [b"content"]}
    (line,) = pool.queue.list()
    assert (line.name, line.state, line.attempt, line.crashes) == (name, "deferred", 2, 0)
    assert pool.rounds(6).due == 0
    moves = pool.words[Q.DUE_MOVES]
    assert pool.rounds(6).due == 1
    assert pool.words[Q.DUE_MOVES] == moves + 1
    claim = pool.claim()
    assert (claim.name, claim.attempt, claim.crashes, Message(claim, "").body) == (name, 2, 0, b"content")


@pytest.mark.parametrize("is_finished", [False, True])
def test_of_two_keepers_one_lets_it_wait_again(fresh, is_finished):
    """The other one comes at each call of the first, where no rename can be told to replace nothing; or finishes it."""

    def missing(*_):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    nth = 0
    while True:
        nth += 1
        pool = fresh()
        other = DirqPool(pool.place, pool.world, pool.kind, host="two", pid=2001, network=pool.network)
        pool.keeper_system.rename_noreplace = other.keeper_system.rename_noreplace = missing
        put(pool)
        settle(pool.queue, "retry", pool.claim())
        pool.world.advance(2)
        calls = []

        def come(*_, calls=calls, nth=nth, other=other):
            calls.append("")
            if len(calls) == nth:
                other.keeper.keep()
                if is_finished and (claim := other.queue.claim()) is not None:
                    settle(other.queue, "done", claim)

        pool.keeper_system.before = come
        pool.keeper.keep()
        pool.keeper_system.before = None
        if len(calls) < nth:
            break
        for _ in range(2):
            if (claim := pool.queue.claim()) is not None:
                assert claim.attempt == 2, nth
                settle(pool.queue, "done", claim)
                assert everything(pool) == {}, nth
        assert everything(pool) == {}, nth
    assert nth > 10


def test_the_backoff_doubles_up_to_its_bound(pool):
    pool.queue.settings = replace(FOREIGN_SETTINGS, retry_backoff_s=2.0, retry_backoff_s_max=10.0)
    for attempt, most in ((1, 2), (2, 4), (3, 8), (4, 10), (5000, 10)):
        found = [pool.queue.backoff_s(attempt) for _ in range(300)]
        assert 0 <= min(found) <= max(found) <= most
        assert max(found) > most * 0.8


def test_a_time_that_was_asked_for_is_bounded_by_the_longest_backoff(pool):
    pool.queue.settings = replace(FOREIGN_SETTINGS, retry_backoff_s_max=10.0)
    for after_s, expected_s in ((5.0, 5), (10_000.0, 10), (-5.0, 0)):
        put(pool)
        claim = pool.claim()
        pool.world.advance(3)
        pool.queue.retry(claim, after_s)
        (line,) = pool.queue.list("deferred")
        assert expected_s <= line.due_at - pool.system.wall_ns() / 1e9 + 0.1 < expected_s + 1.5
        os.rename(line.path, f"{pool.place}.{after_s}")


def test_counts_of_an_attempt_and_of_a_crash_add_up_until_the_limit(pool):
    name = put(pool)
    settle(pool.queue, "retry", pool.claim())
    pool.rounds(3)
    pool.world.advance(1)
    pool.keeping.release_owner(die(pool), "died")
    claim = reclaimed(pool)
    assert (claim.attempt, claim.crashes) == (2, 1)
    settle(pool.queue, "retry", claim)
    pool.rounds(3)
    claim = pool.claim()
    assert (claim.name, claim.attempt, claim.crashes) == (name, 3, 1)
    settle(pool.queue, "done", claim)
    assert os.listdir(beside(pool, "counts")) == []


def test_a_name_that_was_taken_meanwhile_is_left_to_who_has_it_and_the_counts_follow(pool):
    name = put(pool, b"first")
    settle(pool.queue, "retry", pool.claim())
    element = pool.place / name
    if pool.kind == SCHEMA:
        element.mkdir()
        (element / "body").write_bytes(b"second")
    else:
        element.write_bytes(b"second")
    pool.rounds(3)
    assert everything(pool) == {"waiting": [b"first", b"second"]}
    found = {}
    for _ in range(2):
        claim = pool.claim()
        found[Message(claim, "").body] = (claim.name, claim.attempt)
        settle(pool.queue, "done", claim)
    assert found[b"first"][0] != name
    assert found[b"first"][1] == 2
    assert found[b"second"][0] == name


def test_counts_that_a_peer_left_by_finishing_the_element_are_swept(pool):
    name = put(pool)
    settle(pool.queue, "retry", pool.claim())
    pool.rounds(3)
    peer = pool.opened(pool.system).elements
    peer.lock(name)
    peer.remove(name)
    assert os.listdir(beside(pool, "counts")) == [encoded(name)]
    pool.rounds(2)
    assert os.listdir(beside(pool, "counts")) == [encoded(name)]  # a put of that name might be on its way
    pool.rounds(2, every_s=STALE_S)
    assert os.listdir(beside(pool, "counts")) == []
    assert pool.words[Q.COUNTED] in (0, 1)
    pool.rounds()
    assert pool.words[Q.COUNTED] == 0


def test_counts_of_what_still_waits_are_never_swept(pool):
    name = put(pool)
    settle(pool.queue, "retry", pool.claim())
    pool.rounds(5, every_s=STALE_S)
    assert counts_of(pool, name) == (1, 0)
    assert pool.claim().attempt == 2


@pytest.mark.parametrize("verb", ["done", "retry", "reject"])
def test_counts_go_with_what_leaves_the_queue(pool, verb):
    put(pool)
    settle(pool.queue, "retry", pool.claim())
    pool.rounds(3)
    claim = pool.claim()
    assert len(os.listdir(beside(pool, "counts"))) == 1
    settle(pool.queue, verb, claim)
    assert os.listdir(beside(pool, "counts")) == []


def test_on_a_network_filesystem_counts_are_read_that_another_host_wrote_a_moment_ago(make):
    pool = make(network="nfs")
    name = put(pool)
    pool.queue.beside.write_count(name, replace(pool.queue.beside.count_of(name), attempts=2, crashes=1))
    claim = pool.claim()
    assert (pool.words[Q.COUNTED], claim.attempt, claim.crashes) == (0, 3, 1)


def test_counts_that_cannot_be_put_in_their_place_leave_nothing(pool):
    _, owner = hold(pool)
    pool.keeper_system.fail_all("rename", errno.EIO)
    with pytest.raises(QueueUnavailable):
        pool.keeping.release_owner(owner, "died")
    pool.keeper_system.before = None
    assert os.listdir(beside(pool, "tmp")) == os.listdir(beside(pool, "counts")) == []
    assert pool.queue.claim() is None  # it is released when its crash can be counted


def test_on_a_full_disk_what_a_dead_worker_had_waits_again_and_nothing_else_is_kept_from_it(pool, caplog):
    put(pool)
    settle(pool.queue, "retry", pool.claim())
    _, owner = hold(pool)
    pool.keeper_system.fail_all("write", errno.ENOSPC)
    pool.keeping.release_owner(owner, "died")
    pool.rounds(3)
    depth = pool.queue.depth()
    assert (depth.waiting, depth.claimed, depth.deferred) == (2, 0, 0)
    assert "counts of" in caplog.text


def test_no_counts_are_read_while_there_are_none(pool):
    put(pool)
    pool.system.calls.clear()
    opened = []
    pool.system.before = lambda call, arguments: opened.append(arguments[0]) if call == "open" else None
    pool.claim()
    assert not [path for path in opened if "/counts/" in path]
    pool.words[Q.COUNTED] = 1
    put(pool)
    pool.claim()
    assert [path for path in opened if "/counts/" in path]


def test_counts_that_another_hosts_keeper_writes_after_the_claim_are_not_lost(make):
    """They count when the attempt fails, so the limits hold."""
    pool = make(settings=replace(FOREIGN_SETTINGS, max_attempts=3))
    name = put(pool)
    claim = pool.claim()
    assert claim.attempt == 1
    pool.queue.beside.write_count(name, replace(pool.queue.beside.count_of(name), attempts=2, crashes=1))
    assert settle(pool.queue, "retry", claim) is False
    (meta,) = metas(pool)
    assert (meta["attempts"], meta["crashes"]) == (3, 1)


def test_the_last_attempt_is_told_as_the_last_one_also_when_it_is_tried_again(make):
    """The move to errors/ succeeds, the fsync after it does not: the counts are in the name of the file by then."""
    pool = make(settings=replace(FOREIGN_SETTINGS, max_attempts=3))
    name = put(pool)
    claim = pool.claim()
    pool.queue.beside.write_count(name, replace(pool.queue.beside.count_of(name), attempts=2))
    pool.system.fail_all("fsync", errno.EIO)
    with pytest.raises(QueueUnavailable):
        pool.queue.retry(claim)
    pool.system.before = None
    assert pool.queue.retry(claim) is False
    (meta,) = metas(pool)
    assert meta["attempts"] == 3
    assert everything(pool) == {"errors": [b"content"]}


def test_reject_keeps_why_and_who(pool):
    name = put(pool)
    pool.queue.reject(pool.claim(), "of no use", {"traceback": "line 1", "queue": "not this"})
    (meta,) = metas(pool)
    assert (meta["name"], meta["reason"], meta["traceback"]) == (name, "of no use", "line 1")
    assert (meta["queue"], meta["host"], meta["worker"]) == (pool.queue.url, "one", 0)
    assert (meta["attempts"], meta["crashes"]) == (1, 0)
    assert {"enqueued_at", "claimed_at", "rejected_at", "owner"} <= set(meta)


def test_a_meta_whose_message_is_gone_is_pruned_too(make):
    pool = make(settings=replace(FOREIGN_SETTINGS, keep_errors_s=100.0))
    put(pool)
    settle(pool.queue, "reject", pool.claim())
    (line,) = pool.queue.list("errors")
    os.rename(line.path, f"{pool.place}.elsewhere")
    pool.rounds(3, every_s=STALE_S)
    assert os.listdir(beside(pool, "errors")) == []


def test_errors_are_kept_for_ever_unless_told_otherwise(pool):
    put(pool)
    settle(pool.queue, "reject", pool.claim())
    pool.rounds(5, every_s=1e6)
    assert pool.queue.depth().errors == 1


def test_what_cannot_be_pruned_is_named_once_and_holds_up_no_other(make, caplog):
    pool = make(settings=replace(FOREIGN_SETTINGS, keep_errors_s=100.0))
    tree = beside(pool, "errors", "a tree") / "of" / "directories"
    tree.mkdir(parents=True)
    put(pool)
    settle(pool.queue, "reject", pool.claim())
    pool.rounds(8, every_s=50)
    assert tree.is_dir()
    assert pool.queue.depth().errors == 0, "what was rejected is pruned, and a tree is no element"
    assert [record.getMessage() for record in caplog.records].count(caplog.records[-1].getMessage()) == 1
    assert "a tree" in caplog.text


def test_requeue_brings_back_what_was_rejected_with_its_counts_at_zero(pool):
    name = put(pool)
    settle(pool.queue, "retry", pool.claim())
    pool.rounds(3)
    settle(pool.queue, "reject", pool.claim())
    pool.queue.beside.write_count(name, replace(pool.queue.beside.count_of(name), crashes=2))  # could not be removed
    assert pool.queue.requeue("00000000/00000000000000") == 0
    assert pool.queue.requeue(name) == 1
    assert pool.queue.requeue(name) == 0
    assert os.listdir(beside(pool, "errors")) == []
    pool.rounds()
    claim = pool.claim()
    assert (claim.name, claim.attempt, claim.crashes, Message(claim, "").body) == (name, 1, 0, b"content")


# ---- put


@pytest.mark.parametrize("body", [b"", b"\0" * 100, "text \N{GREEK SMALL LETTER ALPHA}", bytearray(b"array")])
def test_put_takes_bytes_and_text(pool, body):
    pool.queue.put(body)
    claim = pool.claim()
    raw = body.encode() if isinstance(body, str) else bytes(body)
    assert (Message(claim, "").body, claim.size) == (raw, len(raw))


def test_put_copies_a_file_and_refuses_what_is_none(pool, tmp_path):
    source = tmp_path / "source"
    source.write_bytes(b"x" * 3_000_000)
    pool.queue.put(source)
    assert len(Message(pool.claim(), "").body) == 3_000_000
    os.mkfifo(tmp_path / "fifo")
    before = open_descriptors()
    for path in (tmp_path, tmp_path / "fifo", tmp_path / "none"):
        with pytest.raises(QueueUnavailable):
            pool.queue.put(path)
    assert open_descriptors() == before
    assert pool.queue.depth().waiting == 0


@pytest.mark.parametrize(
    ("option", "sentence"),
    [({"name": "mine"}, "a name of your own"), ({"delay": 5}, "delay"), ({"priority": 3}, "priority")],
)
def test_put_refuses_what_the_format_has_no_place_for(pool, option, sentence):
    with pytest.raises(NotSupported, match=sentence) as caught:
        pool.queue.put(b"x", **option)
    assert pool.kind in str(caught.value)
    assert everything(pool) == {}


@pytest.mark.parametrize(
    ("schema", "body", "sentence"),
    [("body:string", b"\xff", "no string"), ("body:table", b"no table\n", "no table"),
     ("body:string,header:table", b"x", "header must be there too"),
     ("text:string,header:table,more:binary?", b"x", "header must be there too")],
)  # fmt: skip
def test_a_body_that_is_no_element_of_the_schema_is_refused_with_a_sentence(tmp_path, schema, body, sentence):
    pool = DirqPool(tmp_path / "queue", World(tmp_path), SCHEMA, options=f"?schema={schema}")
    with pytest.raises(NotSupported, match=sentence):
        pool.queue.put(body)
    assert everything(pool) == {}


@pytest.mark.parametrize("schema", ["body:string", "data:binary,body:string?", "data:table", "body:binary*"])
def test_the_body_is_the_part_of_that_name_or_the_first_that_must_be_there(tmp_path, schema):
    pool = DirqPool(tmp_path / "queue", World(tmp_path), SCHEMA, options=f"?schema={schema}")
    key = "body" if "body" in schema else "data"
    if schema.startswith("data:binary"):
        with pytest.raises(NotSupported, match="data must be there too"):
            pool.queue.put(b"key\tvalue\n")
        return
    name = pool.queue.put(b"key\tvalue\n")
    assert os.listdir(pool.place / name) == [key]
    assert pool.claim().path == str(pool.place / name / key)


def test_put_makes_its_body_and_its_names_durable_unless_told_otherwise(make):
    pool = make()
    if pool.kind == SIMPLE:
        pool.queue.elements.granularity = 10**9  # no minute ends meanwhile, and begins a directory
    put(pool)  # what is made durable once only
    for durable, count in ((None, None), (True, None), (False, 0)):
        pool.system.calls.clear()
        pool.queue.put(b"x", durable=durable)
        calls = [call for call in pool.system.calls if call in ("write", "fsync", "link", "rename")]
        if count == 0:
            assert "fsync" not in calls
        elif pool.kind == SIMPLE:
            assert calls == ["write", "fsync", "link", "fsync"]
        else:
            assert calls == ["write", "fsync", "fsync", "rename", "fsync"]


def test_a_batch_cut_short_names_those_that_were_entered(pool):
    puts = []

    def full(call, arguments):
        puts.append(call)
        if call == "write" and puts.count("write") == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    pool.system.before = full
    with pytest.raises(QueueUnavailable) as caught:
        pool.queue.put_many([b"1", b"2", b"3", b"4"])
    pool.system.before = None
    assert caught.value.errno == errno.ENOSPC
    assert sorted(caught.value.names) == [line.name for line in pool.queue.list("waiting")]
    assert everything(pool) == {"waiting": [b"1", b"2"]}


def test_put_leaves_no_trace_when_any_call_fails(fresh):
    for pool, what, raised in fail_each(fresh, lambda pool: pool.queue.put(b"content", durable=False)):
        assert raised is None or isinstance(raised, QueueUnavailable), what
        states = everything(pool)
        is_there = raised is None or (raised.is_unknown and "waiting" in states)
        assert states.keys() <= {"left over", *(("waiting",) if is_there else ())}, what
        pool.rounds(9, every_s=STALE_S / 4)  # what could not be taken away is swept
        assert everything(pool) == ({"waiting": [b"content"]} if is_there else {}), what


# ---- what is hostile


def directory_of(pool: DirqPool) -> Path:
    """Where the elements lie, with one in it that is whole."""
    return (pool.place / put(pool, b"whole")).parent


@pytest.mark.parametrize("how", ["symlink", "fifo", "socket", "other kind", "dangling"])
def test_what_has_an_elements_name_and_is_none_is_left_alone_and_counted_as_ignored(pool, how, tmp_path):
    place = directory_of(pool) / "00000000000001"
    {
        "symlink": lambda: place.symlink_to(tmp_path),
        "dangling": lambda: place.symlink_to(tmp_path / "none"),
        "fifo": lambda: os.mkfifo(place),
        "socket": lambda: os.mknod(place, stat.S_IFSOCK | 0o600),
        "other kind": place.mkdir if pool.kind == SIMPLE else place.touch,
    }[how]()
    depth = pool.queue.depth()
    assert (depth.waiting, depth.claimed, depth.ignored) == (1, 0, 1)
    assert depth.oldest_s["claimed"] == 0
    claim = pool.claim()
    assert Message(claim, "").body == b"whole"
    assert pool.queue.claim() is None
    settle(pool.queue, "done", claim)
    for _ in range(3):
        with suppress(QueueUnavailable):
            pool.rounds(every_s=STALE_S)
    assert os.path.lexists(place)
    assert [line.name for line in pool.queue.list()] == []


@pytest.mark.parametrize("how", ["symlink", "fifo", "directory", "gone"])
def test_what_turns_odd_after_it_was_listed_is_neither_followed_nor_waited_for(pool, how, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    name = put(pool)
    element = pool.place / name
    body = element / "body" if pool.kind == SCHEMA else element
    pool.queue._scan._fill()
    body.unlink()
    if how == "symlink":
        body.symlink_to(secret)
    elif how != "gone":
        (os.mkfifo if how == "fifo" else os.mkdir)(body)
    claim = pool.queue.claim()
    if claim is None:  # nobody can lock that, or nothing is there
        assert pool.kind == SIMPLE
        pool.rounds()
        return
    assert claim.trouble
    assert claim.fd < 0 or claim.trouble
    settle(pool.queue, "reject", claim)
    assert pool.queue.depth().errors == 1
    assert secret.read_bytes() == b"secret"


def test_an_element_without_its_body_is_rejected_with_the_reason(tmp_path):
    pool = DirqPool(tmp_path / "queue", World(tmp_path), SCHEMA)
    name = put(pool)
    (pool.place / name / "body").unlink()
    claim = pool.claim()
    assert "cannot be read: No such file" in claim.trouble
    settle(pool.queue, "reject", claim)
    assert pool.queue.depth().errors == 1


def test_an_element_without_its_body_whose_claim_cannot_be_recorded_is_not_locked(tmp_path):
    pool = DirqPool(tmp_path / "queue", World(tmp_path), SCHEMA)
    settle(pool.queue, "done", pool.claim() if put(pool) else None)
    name = put(pool)
    (pool.place / name / "body").unlink()

    def full(call, arguments):
        if call == "pwrite":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    pool.system.before = full
    with pytest.raises(QueueUnavailable):
        pool.queue.claim()
    pool.system.before = None
    assert not (pool.place / name / "locked").exists()
    assert pool.claim().trouble


def test_an_element_in_which_a_handler_left_a_file_goes_to_errors_when_it_is_done(tmp_path):
    settings = replace(FOREIGN_SETTINGS, keep_errors_s=100.0)
    pool = DirqPool(tmp_path / "queue", World(tmp_path), SCHEMA, settings=settings)
    name = put(pool)
    claim = pool.claim()
    (pool.place / name / "core.1234").write_bytes(b"x")
    (pool.place / name / "tree").mkdir()
    settle(pool.queue, "done", claim)
    assert everything(pool) == {"errors": [b"content"]}
    (meta,) = metas(pool)
    assert "left by a handler" in str(meta["reason"])
    pool.rounds(3, every_s=STALE_S)
    assert os.listdir(beside(pool, "errors")) == []


def test_a_lock_with_something_in_it_stops_no_pool(tmp_path):
    """What a sweep cannot take away is said on the board, and messages go on all the same."""
    pool = DirqPool(tmp_path / "queue", World(tmp_path), SCHEMA)
    name = put(pool)
    assert pool.queue.elements.lock(name)
    (pool.place / name / "locked" / "file").touch()
    put(pool, b"another")
    for _ in range(8):
        with suppress(QueueUnavailable):
            pool.rounds(every_s=STALE_S / 4)
    assert pool.claim() is not None


def test_an_element_that_cannot_be_locked_is_named_once_however_often_it_is_tried(pool, caplog):
    name = put(pool)

    def refuse(call, arguments):
        if call in ("link", "mkdir") and name in str(arguments):
            raise OSError(errno.EPERM, os.strerror(errno.EPERM), *arguments[:1])

    pool.system.before = refuse
    for _ in range(5):
        assert pool.queue.claim() is None
    assert [record.getMessage().count(name) for record in caplog.records] == [1]
    pool.system.before = None
    assert pool.claim().name == name


def test_an_element_that_another_user_owns_is_named_once_and_holds_up_no_other(caplog):
    if os.geteuid() != 0:
        pytest.skip("only root can make another user's element")
    for kind in KINDS:
        with open_place() as place:
            world = World(place)
            theirs = DirqPool(place / "queue", world, kind)
            name = put(theirs)
            for path in (place, *place.rglob("*")):
                path.chmod(0o777 if path.is_dir() else 0o644)
            (place / "queue" / name).chmod(0o755 if kind == SCHEMA else 0o644)

            def act(place=place, world=world, kind=kind):
                pool = DirqPool(place / "queue", world, kind, pid=1002)
                put(pool, b"ours")
                found = [pool.queue.claim() for _ in range(3)]
                return [claim and Message(claim, "").body for claim in found]

            assert as_nobody(act) == [b"ours", None, None]


@pytest.mark.parametrize("size", [0, 50_000_000])
def test_a_body_of_no_bytes_and_one_of_fifty_megabytes_are_messages(pool, size, tmp_path):
    source = tmp_path / "source"
    with source.open("wb") as file:
        file.truncate(size)
    pool.queue.put(source, durable=False)
    claim = pool.claim()
    assert (claim.size, claim.trouble) == (size, None)
    settle(pool.queue, "retry", claim)
    pool.rounds(3)
    claim = pool.claim()
    assert claim.size == size
    settle(pool.queue, "done", claim)
    assert everything(pool) == {}


# ---- a lost mount


def lose(pool: DirqPool) -> Callable[[], None]:
    """Have another directory at the queue's path; what is to be called when the mount is back."""
    away = Path(f"{pool.place}.away")
    pool.place.rename(away)
    pool.place.mkdir()

    def back() -> None:
        shutil.rmtree(pool.place)
        away.rename(pool.place)

    return back


@pytest.mark.parametrize("verb", SETTLES)
def test_a_settle_while_the_mount_is_away_is_tried_again(pool, verb):
    put(pool)
    claim = pool.claim()
    for advance_s in (0, 10):
        pool.world.advance(advance_s)
        back = lose(pool)
        with pytest.raises(QueueUnavailable, match="was the mount lost"):
            getattr(pool.queue, verb)(claim, *(("no",) if verb == "reject" else ()))
        back()
    settle(pool.queue, verb, claim)
    assert everything(pool) == STATE_AFTER[verb]


@pytest.mark.parametrize("verb", SETTLES)
def test_a_copy_of_the_queue_in_the_place_of_a_lost_mount_is_not_settled_in(pool, verb):
    name = put(pool)
    shutil.copytree(pool.place, f"{pool.place}.copy")
    claim = pool.claim()
    pool.world.advance(10)
    back = lose(pool)
    pool.place.rmdir()
    shutil.copytree(f"{pool.place}.copy", pool.place)
    with pytest.raises(QueueUnavailable, match="was the mount lost"):
        getattr(pool.queue, verb)(claim, *(("no",) if verb == "reject" else ()))
    assert pool.queue.elements.found_lock(name) is None
    back()
    settle(pool.queue, verb, claim)
    assert everything(pool) == STATE_AFTER[verb]


def test_of_a_lost_mount_nothing_is_believed_by_the_keeper(pool):
    name = put(pool)
    settle(pool.queue, "retry", pool.claim())
    pool.rounds(3)
    put(pool)
    _, owner = hold(pool)
    assert owner
    back = lose(pool)
    with pytest.raises(QueueUnavailable, match="was the mount lost"):
        pool.rounds()
    assert pool.words[Q.BEAT_NS] == 0, "nobody claims there, however recent the last beat was"
    for _ in range(5):
        with pytest.raises(QueueUnavailable, match="was the mount lost"):
            pool.rounds(every_s=STALE_S)
    assert os.listdir(pool.place) == []
    assert counts_of(pool, name) == (1, 0)
    assert owner in os.listdir(beside(pool, "held"))
    assert pool.queue.claim() is None  # nobody would touch its lock
    back()
    pool.rounds()
    assert pool.words[Q.BEAT_NS] > 0


def test_nobody_takes_a_record_in_a_queue_that_is_not_there(pool):
    put(pool)
    back = lose(pool)
    with pytest.raises(QueueUnavailable, match="was the mount lost"):
        pool.queue.claim()
    back()
    assert pool.claim() is not None


# ---- the words of the board


def test_no_claim_without_a_young_round_and_a_fresh_owner_after_a_gap(pool):
    put(pool)
    put(pool)
    settle(pool.queue, "release", pool.claim())
    owner = pool.queue._owner
    pool.world.advance(STALE_S / 2)
    assert pool.queue.claim() is None
    pool.rounds()
    assert pool.claim() is not None
    assert pool.queue._owner != owner
    assert os.listdir(beside(pool, "held")) == [pool.queue._owner]
    assert pool.board.worker(0).text(WorkerText.OWNER) == pool.queue._owner


def test_a_worker_that_sees_a_young_round_sees_the_gap_before_it(pool):
    """The keeper's first round after a gap comes between the worker's looks at the two words."""
    put(pool)
    put(pool)
    pool.claim()
    owner, looks = pool.queue._owner, []

    def keep(_, word):
        if word in (Q.BEAT_NS, Q.LAPSES):
            looks.append(word)
            if len(looks) == 2:
                pool.keeper.keep()

    pool.queue._words = Words(pool.words, keep)
    pool.world.advance(STALE_S)
    assert pool.queue.claim() is None or pool.queue._owner != owner
    assert pool.claim()
    assert pool.queue._owner != owner


def test_the_board_shows_an_owner_before_its_record_is_there(pool):
    shown = []

    def look(call, arguments):
        if call == "open" and "/held/" in arguments[0]:
            shown.append(os.path.basename(arguments[0]) == pool.board.worker(0).text(WorkerText.OWNER))

    pool.system.before = look
    put(pool)
    pool.claim()
    assert shown == [True]


def test_names_that_were_read_before_a_pause_are_forgotten(pool):
    first = put(pool)
    put(pool)
    settle(pool.queue, "reject", pool.claim())
    pool.queue.pause()
    pool.rounds()
    assert pool.queue.claim() is None
    assert pool.queue.requeue(first) == 1
    pool.queue.resume()
    pool.rounds()
    assert pool.claim().name == first


def test_a_worker_alone_says_that_its_keeper_has_died(pool):
    put(pool)
    pool.queue.keeper_is_gone = lambda: True
    pool.world.advance(STALE_S)
    with pytest.raises(KeeperGone, match="start this worker again"):
        pool.queue.claim()


def test_a_round_that_fails_behind_the_touches_lets_workers_go_on_and_is_told(pool):
    put(pool)
    bad = beside(pool, "deferred")
    bad.rename(f"{bad}.away")
    for _ in range(5):
        with pytest.raises(QueueUnavailable, match="deferred"):
            pool.rounds(every_s=STALE_S / 4)
    assert pool.claim() is not None


def test_the_locks_of_a_pool_are_touched_before_anything_else_of_a_round_can_fail(pool):
    name = put(pool)
    pool.claim()
    work(pool, pool.queue)
    pool.keeper_system.fail_all("scandir", errno.EIO)  # the owners, the first step behind the touches
    for _ in range(5):
        with pytest.raises(QueueUnavailable):
            pool.rounds(every_s=TOUCH_S)
    touched_s, now_s = lock_times(pool, name)
    assert now_s - touched_s < 2 * TOUCH_S


# ---- the operator


def test_of_a_peers_lock_nobody_is_said_to_be_the_owner(pool):
    name = put(pool)
    pool.queue.elements.lock(name)
    (line,) = pool.queue.list("claimed")
    assert (line.name, line.owner) == (name, None)


def test_messages_come_in_the_order_of_time(pool):
    entered = pool.queue.put_many([b"%d" % number for number in range(20)])
    found = []
    while (claim := pool.queue.claim()) is not None:
        found.append(claim.name)
        settle(pool.queue, "done", claim)
    assert found == entered


def test_a_lost_race_is_counted_and_the_next_name_is_tried(pool):
    put(pool)
    first, second = put(pool), put(pool)
    pool.claim()
    pool.queue.elements.lock(first)
    assert pool.claim().name == second
    assert pool.board.worker(0).words[W.CONFLICTS] == 1


def test_a_worker_that_leaves_takes_its_record_along(pool):
    put(pool)
    settle(pool.queue, "done", pool.claim())
    pool.queue.detach()
    pool.queue.detach()
    assert os.listdir(beside(pool, "held")) == []
    assert pool.board.worker(0).text(WorkerText.OWNER) == ""
    put(pool)
    assert pool.claim() is not None


# ---- every call failed once


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture(name="fresh", params=[(kind, network) for kind in KINDS for network in (None, "nfs")], ids=str)
def _fresh(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    """Makes a pool on a queue of its own at each call, local and as on a network filesystem."""
    kind, network = request.param
    world, made = World(tmp_path), []

    def make(**options) -> DirqPool:
        place = tmp_path / f"q{len(made)}"
        place.mkdir()
        made.append(DirqPool(place / "queue", world, kind, pid=1001, network=network, **options))
        return made[-1]

    yield make
    for pool in made:
        pool.queue.close()


OWNERS: dict[int, str] = {}


def hold_for_later(pool: DirqPool) -> None:
    OWNERS[id(pool)] = hold(pool)[1]


def release_the_dead(pool: DirqPool) -> object:
    return pool.keeping.release_owner(OWNERS[id(pool)], "died")


def finish_all(pool: DirqPool) -> list[bytes]:
    """What is handled when everything works again, whoever died: the bodies."""
    pool.bury()
    bodies = []
    worker = pool.another_worker(1)
    for _ in range(6):
        pool.rounds(2, every_s=STALE_S / 2.5)
        while (claim := worker.claim()) is not None:
            bodies.append(Message(claim, "").body)
            settle(worker, "done", claim)
    worker.close()
    return bodies


def test_a_claim_that_failed_anywhere_is_made_by_the_next_try(fresh):
    for pool, what, raised in fail_each(fresh, lambda pool: pool.queue.claim(), prepare=put):
        assert raised is None or isinstance(raised, QueueUnavailable), what
        claim = next((line for line in pool.queue.list("claimed")), None)
        is_lost = what.endswith("lost") or raised is None
        if not is_lost:
            assert claim is None, what
            assert pool.queue.claim() is not None, what


def test_claims_that_fail_leave_no_descriptor_open(fresh):
    for pool, what, raised in fail_each(fresh, lambda pool: pool.queue.claim(), prepare=put):
        if raised is None:
            continue
        pool.queue.close()
        assert not [path for path in descriptors() if str(pool.place) in path], what


def test_nothing_is_lost_by_a_claim_that_failed(fresh):
    for pool, what, _ in fail_each(fresh, lambda pool: pool.queue.claim(), prepare=put):
        assert finish_all(pool) == [b"content"], what


@pytest.mark.parametrize("verb", SETTLES)
def test_a_settle_tried_again_after_any_failure_settles_once(fresh, verb):
    claims: dict[int, Claim] = {}

    def prepare(pool: DirqPool) -> None:
        put(pool)
        claims[id(pool)] = pool.claim()
        pool.world.advance(1)  # so that the lock is looked at

    def act(pool: DirqPool) -> object:
        return settle(pool.queue, verb, claims[id(pool)])

    for pool, what, raised in fail_each(fresh, act, prepare):
        is_lost = what.endswith("lost")
        assert raised is None or (is_lost and isinstance(raised, ClaimLost)), (what, raised)
        assert not [path for path in descriptors() if f"{pool.place}/" in path], what
        bodies = everything(pool)
        bodies.pop("left over", None)
        assert bodies == STATE_AFTER[verb], what
        if verb == "reject":
            pool.queue.requeue(claims[id(pool)].name)
        assert finish_all(pool) == ([] if verb == "done" else [b"content"]), what
        assert everything(pool) == {}, what


def test_a_settle_that_fails_for_ever_and_a_worker_that_dies_of_it_lose_nothing(fresh):
    for verb in SETTLES:
        pool = fresh()
        put(pool)
        claim = pool.claim()
        pool.world.advance(1)
        pool.system.fail_all("rename unlink rmdir", errno.EIO)
        with pytest.raises(QueueUnavailable):
            getattr(pool.queue, verb)(claim, *(("no",) if verb == "reject" else ()))
        pool.system.before = None
        assert claim.fd >= 0 or verb == "done"
        pool.queue.settled(claim)
        assert finish_all(pool) == [b"content"]


def test_a_touch_that_fails_anywhere_is_made_by_a_later_round(fresh):
    claims: dict[int, Claim] = {}

    def prepare(pool: DirqPool) -> None:
        put(pool)
        claims[id(pool)] = pool.claim()
        work(pool, pool.queue)
        pool.rounds(3, every_s=TOUCH_S)
        pool.world.advance(TOUCH_S)

    for pool, what, raised in fail_each(
        fresh, lambda pool: pool.keeper.touch(), prepare, keeper_of, codes=(errno.EIO, errno.ESTALE)
    ):
        assert raised is None or isinstance(raised, QueueUnavailable), what
        claim = claims[id(pool)]
        pool.rounds(4, every_s=TOUCH_S)
        touched_s, now_s = lock_times(pool, claim.name)
        assert now_s - touched_s < 3 * TOUCH_S, what
        settle(pool.queue, "done", claim)
        assert everything(pool) == {}, what


def test_a_round_tried_again_after_any_failure_loses_nothing(fresh):
    """One message due, one of a dead worker, one whose lock is stale, one that waits, one to be pruned."""

    def prepare(pool: DirqPool) -> None:
        for verb in ("reject", "retry"):
            put(pool, verb.encode())
            settle(pool.queue, verb, pool.claim())
        pool.queue.elements.lock(put(pool, b"stale"))
        pool.world.advance(2 * STALE_S)
        pool.keeper.touch()
        pool.words[Q.BEAT_NS] = pool.system.boottime_ns()
        put(pool, b"dead")
        die(pool)
        put(pool, b"waiting")
        pool.keeper._unlisted = set(os.listdir(beside(pool, "held")))

    settings = replace(FOREIGN_SETTINGS, keep_errors_s=STALE_S)
    expected = [b"dead", b"retry", b"stale", b"waiting"]
    for pool, what, raised in fail_each(
        fresh, lambda pool: pool.keeper.keep(), prepare, keeper_of, codes=(errno.EIO,), settings=settings
    ):
        assert raised is None or isinstance(raised, QueueUnavailable), (what, raised)
        assert sorted(finish_all(pool)) == expected, what
        assert everything(pool) == {}, what
