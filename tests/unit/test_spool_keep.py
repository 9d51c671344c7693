"""The keeper's round: who is released by which cause, what is swept, and what is never touched."""

from __future__ import annotations

import errno
import json
import os

import pytest

from tests.rig import Pool, Q, Rig, fail_each, lose_ctimes
from workers.errors import QueueUnavailable
from workers.queues import names
from workers.queues.base import Settings

OURS = "1700000000.M000001P1Q1R0123456789ab.host"
MENTAT = "host.example.org.4711.1700000000.123456.64768.131074.msg"


def hold(pool: Pool, name: str = "mine") -> str:
    """Put, claim and forget the owner as after a death; the owner."""
    pool.spool.put(b"content", name)
    pool.spool.settled(pool.claim())
    return pool.forget_owner()


def metas(rig: Rig) -> list[dict[str, object]]:
    return [json.loads((rig.path / "errors" / file).read_bytes()) for file in rig.files("errors", meta=True)]


# ---- by cause


@pytest.mark.parametrize(
    ("cause", "state", "attempts", "crashes"),
    [("died", "incoming", 0, 1), ("unknown", "incoming", 0, 1), ("timeout", "deferred", 1, 0),
     ("stopped", "incoming", 0, 0)],
)  # fmt: skip
def test_the_cause_says_what_is_counted(rig, cause, state, attempts, crashes):
    pool = rig.pool()
    owner = hold(pool)
    assert pool.keeping.release_owner(owner, cause) == ["mine"]
    assert rig.everything() == {state: [b"content"]}
    (file,) = rig.files(state)
    mark = names.parse_due(file)[1] if state == "deferred" else names.parse(file)
    assert (mark.attempts, mark.crashes, mark.name) == (attempts, crashes, "mine")
    assert os.listdir(rig.path / "pending") == []
    assert pool.keeping.release_owner(owner, cause) == []


def test_the_crash_limit_ends_in_errors_with_what_is_known(rig):
    pool = rig.pool()
    pool.spool.put(b"content", "poison")
    for crashes in (1, 2, 3):
        claim = pool.claim()
        assert claim.crashes == crashes - 1
        pool.spool.settled(claim)
        pool.keeping.release_owner(pool.forget_owner(), "died", "signal 9")
        pool.spool._owner = ""
    assert rig.everything() == {"errors": [b"content"]}
    (meta,) = metas(rig)
    assert (meta["name"], meta["crashes"], meta["cause"], meta["note"]) == ("poison", 3, "died", "signal 9")
    assert (meta["host"], meta["worker"], meta["pid"]) == ("one", 0, pool.system.pid)
    assert pool.words[Q.REAPED_CRASH_LIMIT] == 1


def test_the_last_time_limit_ends_in_errors(rig):
    pool = rig.pool(settings=Settings(create=True, max_attempts=1))
    pool.keeping.release_owner(hold(pool), "timeout")
    assert rig.everything() == {"errors": [b"content"]}
    assert "time limit" in str(metas(rig)[0]["reason"])


def test_a_poison_message_is_durable_in_errors_before_it_is_counted(rig):
    pool = rig.pool(settings=Settings(create=True, crash_limit=1))
    owner = hold(pool)
    pool.keeper_system.calls.clear()
    pool.keeping.release_owner(owner, "died")
    assert pool.keeper_system.calls.count("fsync") == 1


def test_a_file_left_beside_the_input_of_a_dead_worker_goes_to_errors(rig):
    pool = rig.pool()
    owner = hold(pool)
    (rig.path / "pending" / owner / "core").write_bytes(b"core")
    assert pool.keeping.release_owner(owner, "died") == ["mine"]
    assert rig.everything() == {"incoming": [b"content"], "errors": [b"core"]}
    assert os.listdir(rig.path / "pending") == []


def test_a_directory_left_beside_the_input_of_a_dead_worker_does_not_stay_for_ever(rig):
    pool = rig.pool()
    owner = hold(pool)
    (rig.path / "pending" / owner / "tree").mkdir()
    pool.keeping.release_owner(owner, "died")
    assert os.listdir(rig.path / "pending") == []


# ---- who is dead


def test_an_owner_of_ours_that_the_board_does_not_list_is_released_in_the_second_round(rig):
    """The first leaves the master the moment to say how it died."""
    pool = rig.pool()
    hold(pool)
    assert pool.rounds().owner_dead == 0
    assert pool.rounds().owner_dead == 1
    assert pool.claim().crashes == 1


def test_an_owner_that_the_board_lists_is_left_alone(rig):
    pool = rig.pool()
    pool.spool.put(b"x")
    claim = pool.claim()
    pool.rounds(10)
    assert os.path.exists(claim.path)


def test_an_order_that_comes_between_the_two_rounds_decides_the_cause(rig):
    pool = rig.pool()
    owner = hold(pool)
    pool.rounds()
    pool.keeping.release_owner(owner, "stopped")
    assert pool.rounds().owner_dead == 0
    assert pool.claim().crashes == 0


def test_a_dead_neighbour_is_released_at_once_and_what_is_left_of_its_session_ended(rig):
    dead, living = rig.pool("one", pid=4001), rig.pool("one", pid=4002)
    hold(dead)
    rig.world.dead.add(4001)
    assert living.rounds().owner_dead == 1
    assert rig.world.ended_sessions == [4001]
    assert living.claim().crashes == 1


@pytest.mark.parametrize("alive", ["master", "worker"])
def test_a_neighbour_of_whom_one_process_lives_is_not_released(rig, alive):
    pool, other = rig.pool("one", pid=4001), rig.pool("one", pid=4003)
    worker = pool.another_worker(1, pid=4002)
    pool.spool.put(b"x")
    claim = worker.claim()
    rig.world.dead.add(4002 if alive == "master" else 4001)
    assert other.rounds(2).owner_dead == 0
    assert os.path.exists(claim.path)


def test_a_neighbour_that_nobody_can_see_is_released_by_its_lease_only(rig):
    hidden, other = rig.pool("one", pid=4001), rig.pool("one", pid=4002)
    hold(hidden)
    rig.world.hidden.add(4001)
    kept = other.rounds(7)
    assert (kept.owner_dead, kept.lease_lost) == (0, 1)
    assert rig.world.ended_sessions == []


def test_a_dead_process_of_another_host_is_not_looked_for_here(rig):
    far, other = rig.pool("far", pid=4001), rig.pool("one", pid=4002)
    hold(far)
    rig.world.dead.add(4001)
    assert other.rounds(2).owner_dead == 0


# ---- foreign claims, leftovers


def flat(rig: Rig, name: str) -> None:
    (rig.path / "pending" / name).write_bytes(b"flat")


def test_a_stale_flat_claim_under_a_mark_goes_back_for_its_token_is_unique(rig):
    pool = rig.pool()
    pool.spool.enter(b"flat", "report.csv")
    (file,) = rig.files("incoming")
    (rig.path / "incoming" / file).rename(rig.path / "pending" / file)
    assert [listed.name for listed in pool.spool.list("claimed")] == ["report.csv"]
    pool.rounds(12, every_s=10)
    assert pool.claim().name == "report.csv"


@pytest.mark.parametrize("name", [OURS, MENTAT])
def test_a_stale_flat_claim_whose_name_is_unique_goes_back(rig, name):
    pool = rig.pool()
    flat(rig, name)
    assert pool.rounds(9, every_s=10).too_old == 0
    assert pool.rounds(3, every_s=10).too_old == 1
    claim = pool.claim()
    assert (claim.name, claim.crashes) == (name, 0)


def test_a_stale_flat_claim_of_any_other_name_is_reported_and_left_alone(rig, caplog):
    pool = rig.pool()
    flat(rig, "report.csv")
    pool.rounds(30, every_s=10)
    assert os.listdir(rig.path / "pending") == ["report.csv"]
    assert len([record for record in caplog.records if "report.csv" in record.getMessage()]) == 1
    assert pool.spool.depth().claimed == 1


def test_a_stale_flat_claim_of_any_name_goes_back_when_that_was_asked_for(rig):
    pool = rig.pool(settings=Settings(create=True, stale_after_s=100.0, reap_foreign=True))
    flat(rig, "report.csv")
    pool.rounds(12, every_s=10)
    assert pool.claim().name == "report.csv"


def test_an_owner_that_is_made_while_pending_is_swept_is_not_called_strange(rig, caplog):
    pool = rig.pool()
    looks, made = [], []

    def arrive(name, arguments):
        if name in ("listdir", "scandir") and arguments[0] == pool.spool.directory.pending:
            looks.append(name)
            if len(looks) == 3:  # the round's own, and then the sweep's second one
                made.append(names.owner_name(pool.master, 3, pool.system))
                os.mkdir(f"{arguments[0]}/{made[0]}")

    pool.keeper_system.before = arrive
    pool.keeper.keep()
    assert made
    assert "is no owner" not in caplog.text


@pytest.mark.parametrize("name", ["someone", "-rf", "t0c0-x~y", "host.0123.directory", "\x1b[31m"])
def test_a_strange_directory_in_pending_is_reported_once_and_never_touched(rig, caplog, name):
    pool = rig.pool()
    (rig.path / "pending" / name).mkdir()
    (rig.path / "pending" / name / OURS).write_bytes(b"x")
    rig.world.advance(1000)
    pool.rounds(5, every_s=50)
    assert (rig.path / "pending" / name / OURS).read_bytes() == b"x"
    said = [record.getMessage() for record in caplog.records if "no owner" in record.getMessage()]
    assert len(said) == 1
    assert "\x1b" not in said[0]


@pytest.mark.parametrize("is_listed", [False, True])
def test_a_symbolic_link_in_pending_is_not_followed(rig, tmp_path, is_listed):
    """Also one that is called like an owner; the rounds go on."""
    pool = rig.pool()
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / OURS).touch()
    owner = names.owner_name(pool.master, 7, pool.system)
    for name in ("link", owner):
        os.symlink(tmp_path / "secret", rig.path / "pending" / name)
    if is_listed:
        pool.board.worker(0).set_text(1, owner)
        assert pool.keeping.release_owner(owner, "died") == []
    pool.spool.put(b"x", delay=1)
    assert pool.rounds(5, every_s=100).due == 1
    assert os.listdir(tmp_path / "secret") == [OURS]


def test_a_file_in_pending_that_is_called_like_an_owner_does_not_stop_the_rounds(rig):
    pool = rig.pool()
    (rig.path / "pending" / names.owner_name(pool.master, 7, pool.system)).write_bytes(b"flat")
    pool.spool.put(b"x", delay=1)
    assert pool.rounds(5, every_s=100).due == 1
    assert rig.everything() == {"incoming": [b"x"], "pending": [b"flat"]}


def test_in_tmp_only_our_own_shape_is_deleted_the_rest_goes_to_errors(rig):
    pool = rig.pool()
    # A filer's commit brings a message of ours through tmp/ under its bare name: it may be the only copy.
    for name in (f"{OURS}.tmp", OURS, "theirs.csv", ".probe.0011", "half.part", ".nfs0001"):
        (rig.path / "tmp" / name).write_bytes(name.encode())
    assert pool.rounds(9, every_s=10).temporary == 0
    assert pool.rounds(3, every_s=10).temporary == 4
    assert sorted(os.listdir(rig.path / "tmp")) == [".nfs0001", "half.part"]
    assert sorted(rig.everything()["errors"]) == [OURS.encode(), b"theirs.csv"]
    assert metas(rig)[0]["reason"] == "abandoned in tmp"


def test_a_probe_that_its_keeper_was_killed_over_is_removed_wherever_it_lies(rig):
    pool = rig.pool()
    places = [rig.path / place for place in ("tmp", "incoming", "pending", "deferred", "errors")]
    for place in places:
        (place / ".probe.0011223344556677").touch()
    assert pool.rounds(9, every_s=10).temporary == 0
    assert pool.rounds(14, every_s=10).temporary == len(places)
    assert not [path for place in places for path in place.glob(".probe.*")]


# ---- due, prune


def test_what_is_due_moves_under_a_fresh_token_and_is_counted_before_it_can_be_seen(rig):
    pool = rig.pool()
    pool.spool.put(b"1", delay=10)
    pool.spool.put(b"2", delay=30)
    before = pool.words[Q.DUE_MOVES]
    counted = []

    def at_rename(call, arguments):
        if call == "rename" and "deferred" in str(arguments[0]):
            counted.append(pool.words[Q.DUE_MOVES] - before)

    pool.keeper_system.before = at_rename
    assert pool.rounds(14).due == 1
    assert counted == [1]
    assert rig.everything() == {"incoming": [b"1"], "deferred": [b"2"]}


def test_a_name_in_deferred_that_is_none_of_ours_stays(rig):
    pool = rig.pool()
    for name in ("note.txt", "1000000000.note", "9.t0c0-0123456789abcdef012345~x"):
        (rig.path / "deferred" / name).touch()
    pool.rounds(3)
    assert len(os.listdir(rig.path / "deferred")) == 3


def test_finished_messages_are_kept_as_long_as_asked_and_errors_for_ever(rig):
    pool = rig.pool(settings=Settings(create=True, keep_done_s=60.0))
    for verb, arguments in (("done", ()), ("reject", ("no",))):
        pool.spool.put(b"content")
        claim = pool.claim()
        getattr(pool.spool, verb)(claim, *arguments)
        pool.spool.settled(claim)
    assert pool.rounds(5, every_s=10).pruned == 0
    assert rig.everything() == {"done": [b"content"], "errors": [b"content"]}
    assert pool.rounds(5, every_s=10).pruned == 1
    pool.rounds(100, every_s=100)
    assert rig.everything() == {"errors": [b"content"]}


def test_errors_are_pruned_with_their_meta_when_that_was_asked_for(rig):
    pool = rig.pool(settings=Settings(create=True, keep_errors_s=60.0))
    pool.spool.put(b"content")
    claim = pool.claim()
    pool.spool.reject(claim, "no")
    pool.rounds(10, every_s=10)
    assert os.listdir(rig.path / "errors") == []


def test_where_no_file_has_a_ctime_what_is_rejected_ages_from_when_it_is_seen_first(rig, caplog):
    """By its mtime, of when it was put, it would be pruned before anybody has looked at it."""
    rig.network = "fuse.sshfs"
    pool = rig.pool(settings=Settings(create=True, keep_errors_s=60.0))
    pool.spool.put(b"content")
    lose_ctimes(pool.keeper_system)
    pool.keeper.open()
    rig.world.advance(1000.0)
    pool.keeper.keep()
    pool.spool.reject(pool.claim(), "no")
    assert pool.rounds(3, every_s=10).pruned == 0
    assert pool.rounds(7, every_s=10).pruned == 1
    assert "ages" in caplog.text


def test_a_meta_whose_message_is_gone_is_pruned_like_one(rig):
    pool = rig.pool(settings=Settings(create=True, keep_errors_s=60.0))
    pool.spool.put(b"content")
    pool.spool.reject(pool.claim(), "no")
    (message,) = rig.files("errors")
    (rig.path / "errors" / message).unlink()  # by a requeue that was killed before it came to the .meta
    assert pool.rounds(5, every_s=10).pruned == 0
    pool.rounds(5, every_s=10)
    assert os.listdir(rig.path / "errors") == []


def test_the_release_of_nobody_touches_nothing(rig):
    pool = rig.pool()
    pool.spool.put(b"content")
    claim = pool.claim()
    assert pool.keeper.release_owner("", "died") == []
    assert os.path.exists(claim.path)


def test_in_a_large_cluster_claims_are_counted_a_part_at_a_time(rig, monkeypatch):
    monkeypatch.setattr("workers.queues.spool_keep.LISTED_MAX", 4)
    pool = rig.pool()
    pool.words[Q.PEERS] = 2
    workers = [pool.another_worker(index) for index in range(1, 6)]
    pool.spool.put_many([b"x"] * 5)
    claims = [worker.claim() for worker in workers]
    counted = [pool.keeper.depth(is_exact=False).claimed for _ in range(3)]
    assert counted == [2, 4, 5]
    assert pool.keeper.depth(is_exact=True).claimed == 5
    workers[0].done(claims[0])
    workers[0].detach()
    assert pool.keeper.depth(is_exact=False).claimed == 4  # a directory that is gone counts no more
    for worker, claim in zip(workers[1:], claims[1:], strict=True):
        worker.done(claim)
    counted = [pool.keeper.depth(is_exact=False).claimed for _ in range(2)]
    assert counted[-1] == 0


# ---- the queue as a whole


def test_thousands_of_lost_masters_do_not_hold_up_a_round(rig):
    """Anybody who may write in pending/ can make so many directories; a release of each lists the leases."""
    pool = rig.pool()
    for number in range(30):
        kernel, random = f"{number:08x}", f"{number:016x}"
        (rig.path / f"pending/far.{kernel}.1.1.{random}.0.1.1.{number:012x}").mkdir()

    def hook(name, arguments):
        if name == "rmdir":
            rig.world.moved_ns += 200_000_000

    pool.keeper_system.before = hook
    found = [pool.rounds().lease_lost for _ in range(30)]
    assert (sum(found), max(found)) == (30, 5)


STUCK = {
    "due": "deferred/{due}",
    "tmp": "tmp/left",
    "a flat claim": "pending/1700000000.M000000P1Q1R0123456789ab.one",
    "a claim of the dead": "pending/{owner}/left",
}


@pytest.mark.parametrize("place", STUCK.values(), ids=STUCK)
def test_what_another_user_put_and_nobody_else_may_move_keeps_nothing_else_from_being_done(
    rig, monkeypatch, caplog, place
):
    """Else one producer stops the retries of all."""
    dead, pool = rig.pool("one", pid=4001), rig.pool("one", pid=4002)
    dead.spool.put(b"dead's")
    dead.claim()
    rig.world.dead.add(4001)
    pool.spool.put(b"due", delay=1)
    (rig.path / "tmp/abandoned").write_bytes(b"abandoned")
    token = pool.spool.tokens.token("x")
    stuck = rig.path / place.format(due=f"{names.due_at(1)}.{names.marked(0, 0, token, 'x')}", owner=dead.owner)
    stuck.write_bytes(b"stuck")
    code = errno.EPERM

    def hook(name, arguments):
        if name in ("rename", "unlink") and arguments[0] == str(stuck):
            raise OSError(code, os.strerror(code), str(stuck))

    pool.keeper_system.before = hook
    monkeypatch.setattr("workers.queues.spool_keep.SpoolKeeper._is_our_users", lambda *_: True)
    monkeypatch.setattr(pool.keeper_system, "geteuid", lambda: os.geteuid() + 1, raising=False)
    pool.rounds(3, every_s=700)
    found = rig.everything()
    assert sorted(found["incoming"]) == [b"dead's", b"due"]
    assert found["errors"] == [b"abandoned"]
    assert caplog.text.count("cannot be moved and stays") == 1
    code = errno.EACCES  # said of the directory, not of this file
    with pytest.raises(QueueUnavailable, match="Permission denied"):
        pool.rounds(3, every_s=700)


def test_a_directory_that_another_user_keeps_closed_is_left_where_a_worker_leaves(rig, monkeypatch, caplog):
    pool = rig.pool()
    pool.spool.put(b"x")
    closed = os.path.join(os.path.dirname(pool.claim().path), "closed")
    os.mkdir(closed)

    def hook(name, arguments):
        if name == "rename" and arguments[0] == closed:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), closed)

    pool.system.before = hook
    with pytest.raises(QueueUnavailable, match="Permission denied"):
        pool.spool.settle_leftovers()
    monkeypatch.setattr(pool.system, "geteuid", lambda: os.geteuid() + 1, raising=False)
    pool.spool.settle_leftovers()
    assert "closed cannot be moved and stays" in caplog.text


def test_nobody_waits_for_the_reader_of_a_fifo_to_pause(rig):
    spool = rig.pool().spool
    os.mkfifo(rig.path / ".pool" / "PAUSED")
    with pytest.raises(QueueUnavailable, match="No such device"):
        spool.pause()
    assert spool.is_paused()
    spool.resume()
    assert not spool.is_paused()


def test_paused_is_seen_in_the_next_round_also_with_touch(rig):
    pool = rig.pool()
    pool.spool.put(b"x")
    (rig.path / ".pool" / "PAUSED").touch()
    pool.keeper.keep()
    assert pool.spool.claim() is None
    os.unlink(rig.path / ".pool" / "PAUSED")
    pool.keeper.keep()
    pool.claim()


@pytest.mark.parametrize("what", ["another queue", "an empty directory", "nothing"])
def test_another_queue_under_the_path_makes_the_round_fail_and_nothing_move(rig, tmp_path, what):
    pool = rig.pool()
    hold(pool)
    rig.path.rename(tmp_path / "mounted")
    if what == "another queue":
        rig.spool()
    elif what == "an empty directory":
        rig.path.mkdir()
    for _ in range(3):
        rig.world.advance(1)
        with pytest.raises(QueueUnavailable):
            pool.keeper.keep()
    if what != "nothing":
        assert not (rig.path / "pending").exists() or os.listdir(rig.path / "pending") == []
    if what == "another queue":
        rig.path.rename(tmp_path / "other")
    elif what == "an empty directory":
        rig.path.rmdir()
    (tmp_path / "mounted").rename(rig.path)
    pool.rounds(2)
    assert pool.spool.claim() is not None or (pool.rounds(2) and pool.spool.claim() is not None)


# ---- every call failed once, on a real filesystem (all operations: see tests/sim/test_every_call.py)


def test_a_round_in_which_any_call_fails_loses_nothing_and_the_next_ones_finish_it(fresh_rig):
    """A dead owner's claim, a due message, a stale flat claim, a poison message, an abandoned file in tmp/."""

    def prepare(pool):
        pool.spool.put(b"due", delay=1, durable=False)
        for name, crashes in (("dead", 0), ("poison", 2)):
            token = pool.spool.tokens.token(name)
            owner = names.owner_name(pool.master, 3 + crashes, pool.system)
            os.mkdir(pool.rig.path / "pending" / owner)
            (pool.rig.path / "pending" / owner / names.marked(0, crashes, token, name)).write_bytes(name.encode())
        flat(pool.rig, OURS)
        (pool.rig.path / "tmp" / "theirs").write_bytes(b"theirs")
        pool.rig.world.advance(101)
        pool.keeper._unlisted = set(pool.keeper._owners())

    expected = {"incoming": sorted([b"due", b"dead", b"flat"]), "errors": sorted([b"poison", b"theirs"])}
    for pool, trail, raised in fail_each(
        fresh_rig, lambda pool: pool.keeper.keep(), prepare, lambda p: p.keeper_system
    ):
        assert raised is None or isinstance(raised, QueueUnavailable), trail
        found = sorted(body for state in pool.rig.everything().values() for body in state if body and body[:1] != b"{")
        assert found == sorted([*expected["incoming"], *expected["errors"]]), trail
        for _ in range(8):
            pool.rig.world.moved_ns += int(1e9)
            pool.keeper.keep()
        found = pool.rig.everything()
        found.pop("tmp", None)
        assert found == expected, trail


def test_a_full_disk_keeps_nobody_from_giving_claims_back(rig):
    pool = rig.pool(settings=Settings(create=True, crash_limit=1))
    owner = hold(pool)
    pool.keeper_system.fail_all("write", errno.ENOSPC)
    assert pool.keeping.release_owner(owner, "died") == ["mine"]
    assert rig.everything() == {"errors": [b"content"]}
    assert metas(rig) == []  # that it may be missing is part of the protocol
