"""
Lines that could be broken without any test noticing, until these (see tests/mutations.py)

Long because: it is a list.
"""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest

from tests.rig import LOOKS, SETTINGS, Rig, World
from tests.unit.test_worker import work
from workers.board import SEQUENCES, WorkerText
from workers.errors import InvalidName, QueueUnavailable
from workers.queues import names


def tokens(files: list[str]) -> set[str]:
    return {names.parse(file.partition(".")[2] if file[0].isdigit() else file).token for file in files}


def test_what_a_keeper_gives_back_has_a_fresh_token(rig):
    pool = rig.pool()
    pool.spool.put(b"x", "mine")
    claim = pool.claim()
    pool.keeping.release_owner(pool.forget_owner(), "stopped")
    assert claim.token not in tokens(rig.files("incoming")) - {""}
    assert tokens(rig.files("incoming")) != {""}


def test_what_is_due_has_a_fresh_token(rig):
    pool = rig.pool()
    pool.spool.put(b"x", delay=1)
    before = tokens(rig.files("deferred"))
    assert pool.rounds(3).due == 1
    assert len(before | tokens(rig.files("incoming")) - {""}) == 2


def test_files_that_two_handlers_left_under_one_name_are_both_kept(rig):
    pool = rig.pool()
    for body in (b"one", b"two"):
        pool.spool.put(b"input")
        claim = pool.claim()
        Path(claim.path).with_name("core").write_bytes(body)
        pool.spool.done(claim)
        pool.spool.settle_leftovers()
    assert rig.everything() == {"errors": [b"one", b"two"]}


@pytest.mark.parametrize("kept_as", [".nfs0001", ".fuse_hidden0000000a00000001"])
def test_what_was_removed_while_somebody_had_it_open_is_left_in_its_place(rig, kept_as):
    """A client of NFS or FUSE keeps it under such a name; to move it would bring a finished message back."""
    pool = rig.pool()
    pool.spool.put(b"x")
    claim = pool.claim()
    (Path(claim.path).parent / kept_as).write_bytes(b"finished")
    pool.spool.done(claim)
    pool.spool.settle_leftovers()
    pool.keeping.release_owner(pool.forget_owner(), "died")
    assert rig.everything() == {"pending": [b"finished"]}


@pytest.mark.parametrize("durable", [True, False])
def test_a_file_that_is_there_is_never_written_into(rig, durable, monkeypatch):
    spool = rig.spool()
    monkeypatch.setattr(spool.tokens, "name", lambda host: "again")
    (rig.path / "tmp" / "again.tmp").write_bytes(b"another's")
    with pytest.raises(QueueUnavailable):
        spool.put(b"x", durable=durable)
    assert rig.everything() == {"tmp": [b"another's"]}


def test_a_lease_that_was_beaten_since_the_last_look_is_not_removed(rig):
    """The master comes back while the directory of its dead worker is given back."""
    one, two = rig.pool("one"), rig.pool("two")
    one.spool.put(b"x")
    one.claim()
    two.rounds(LOOKS)

    def beat_between(call: str, arguments: tuple[object, ...]) -> None:
        if call == "rmdir":
            one.keeper.lease.beat()

    two.keeper_system.before = beat_between
    assert two.rounds().lease_lost == 1
    left = [names.parse_lease(file) for file in os.listdir(rig.path / ".pool" / "leases")]
    assert (one.master, 2) in left


def test_a_put_and_a_claim_whose_replies_were_lost_have_happened(tmp_path):
    """Or the one would say "unknown", and the other leave the message to its next look at what is left."""
    pool = Rig(tmp_path / "queue", World(tmp_path), network="nfs").pool()

    def lose_reply(call: str, arguments: tuple[object, ...]) -> None:
        if call == "rename":
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))

    pool.system.after = lose_reply
    name = pool.spool.put(b"x")
    assert pool.claim().name == name


def test_of_several_masters_only_the_silent_one_loses_its_claims(rig):
    """spool_keep._release_lost: whose lease is counted and whose directory is released are the same."""
    silent, beating, watching = rig.pool("one"), rig.pool("two"), rig.pool("three")
    for number, pool in enumerate((silent, beating, watching)):
        pool.spool.put(b"%d" % number)
        pool.claim()
    for _ in range(LOOKS + 1):
        beating.keeper.lease.beat()
        watching.rounds()
    assert rig.everything() == {"incoming": [b"0"], "pending": [b"1", b"2"]}


def test_an_owner_that_is_being_written_on_the_board_is_released_by_nobody(rig):
    """spool_keep._on_board: a worker that was stopped in the middle of the write is alive, however many rounds pass."""
    pool = rig.pool()
    pool.spool.put(b"x")
    pool.claim()
    words = pool.board.worker(0).words
    words[SEQUENCES + WorkerText.OWNER] |= 1
    assert pool.board.worker(0).text(WorkerText.OWNER) is None
    pool.rounds(4)
    assert rig.everything() == {"pending": [b"x"]}


def test_H33_a_directory_that_is_there_is_never_taken_for_ones_own(rig, monkeypatch):
    """spool._take_owner: after EEXIST fresh bits are drawn."""
    pool = rig.pool()
    pool.spool.put(b"x")
    fresh = names.owner_name
    taken = fresh(pool.master, 0, pool.system)
    (rig.path / "pending" / taken).mkdir()
    drawn = [taken]
    monkeypatch.setattr(names, "owner_name", lambda *arguments: drawn.pop() if drawn else fresh(*arguments))
    pool.claim()
    assert os.listdir(rig.path / "pending" / taken) == []
    assert pool.owner != taken
    assert len(os.listdir(rig.path / "pending" / pool.owner)) == 1


def test_a_retry_asked_for_after_ages_is_clamped_and_comes_back(rig):
    """spool.retry: a due time of more digits would be read by no keeper, and the message stay for ever."""
    pool = rig.pool(settings=replace(SETTINGS, retry_backoff_s_max=10.0))
    pool.spool.put(b"x")
    pool.spool.retry(pool.claim(), 1e12)
    pool.keeper.lease.beat()
    assert pool.rounds(2, every_s=6.0).due == 1
    assert rig.everything() == {"incoming": [b"x"]}


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "half.part", "t0c0-0123456789abcdef012345~x", "n" * 176])
def test_a_file_is_not_moved_in_under_a_name_that_put_refuses(rig, tmp_path, name):
    """spool_put.put_file: under an ignored name, say, nobody would ever take it."""
    source = tmp_path / "source"
    source.write_bytes(b"x")
    with pytest.raises(InvalidName):
        rig.spool().put_file(source, name)
    assert source.read_bytes() == b"x"
    assert rig.everything() == {}


def dead_neighbour(rig):
    """A pool whose master and worker are gone, with a message in hand; and one beside it, on the same host."""
    dead, beside = rig.pool("one", pid=1), rig.pool("one", pid=2)
    dead.spool.put(b"x")
    dead.claim()
    rig.world.dead.add(1)
    return dead, beside


def test_a_name_that_another_user_wrote_ends_no_process(rig, monkeypatch):
    """spool_keep._release_dead_neighbours: first whose directory it is, then kill_session."""
    _, beside = dead_neighbour(rig)
    monkeypatch.setattr(beside.keeper_system, "geteuid", lambda: os.geteuid() + 1, raising=False)
    beside.rounds()
    assert rig.world.ended_sessions == []
    assert rig.everything() == {"pending": [b"x"]}


def test_a_directory_of_ours_that_others_may_rename_ends_no_process(rig, monkeypatch):
    """spool_keep._is_our_users: its name may speak of any process; but none may rename it where +t forbids that."""
    _, beside = dead_neighbour(rig)
    monkeypatch.setattr("workers.trust._is_private_group", lambda *_: False)
    (rig.path / "pending").chmod(0o775)
    beside.rounds()
    assert (rig.world.ended_sessions, rig.everything()) == ([], {"pending": [b"x"]})
    (rig.path / "pending").chmod(0o1775)
    beside.rounds()
    assert (rig.world.ended_sessions, rig.everything()) == ([1], {"incoming": [b"x"]})


def test_H18_what_is_left_of_a_dead_neighbour_is_ended_before_its_message_goes_back(rig, monkeypatch):
    """spool_keep._release_dead_neighbours: or a child that still works on it meets whoever takes it."""
    _, beside = dead_neighbour(rig)
    seen = []
    monkeypatch.setattr(beside.keeper_system, "kill_session", lambda session: seen.append(rig.everything()) or 0)
    beside.rounds()
    assert seen == [{"pending": [b"x"]}]
    assert rig.everything() == {"incoming": [b"x"]}


def test_a_directory_in_errors_does_not_stop_the_rounds_that_prune(rig):
    """spool_keep._prune: it is for a person to look at, and no round may fail over it."""
    pool = rig.pool(settings=replace(SETTINGS, keep_errors_s=5.0))
    (rig.path / "errors" / "core").mkdir()
    pool.rounds(3, every_s=10.0)
    assert (rig.path / "errors" / "core").is_dir()


def test_a_directory_called_like_a_probe_does_not_stop_the_rounds(rig):
    """spool_keep._sweep_probes."""
    (place := rig.pool()).rounds()
    (rig.path / "incoming" / ".probe.0123456789abcdef").mkdir()
    place.rounds(4, every_s=60.0)
    assert (rig.path / "incoming" / ".probe.0123456789abcdef").is_dir()


def test_H22_what_was_removed_while_open_stays_in_pending_also_where_foreign_claims_go_back(rig):
    """spool_keep._sweep_flat: to move it would bring a finished message back."""
    pool = rig.pool(settings=replace(SETTINGS, reap_foreign=True))
    (rig.path / "pending" / ".nfs0001").write_bytes(b"finished")
    pool.rounds(4, every_s=60.0)
    assert os.listdir(rig.path / "pending") == [".nfs0001"]


def test_a_worker_takes_no_directory_in_a_queue_that_was_made_again(rig):
    """spool._take_owner: there is no lease of its master, so its claims would be anybody's."""
    pool = rig.pool()
    pool.spool.put(b"x")
    (rig.path / ".pool" / "id").write_text("0" * 32 + "\n")
    with pytest.raises(QueueUnavailable):
        pool.spool.claim()
    assert os.listdir(rig.path / "pending") == []
    assert rig.everything() == {"incoming": [b"x"]}


def test_a_keeper_that_follows_another_beats_on_from_where_that_one_was(rig):
    """lease.beat: a reload is no failure, and no gap in which nobody may claim."""
    pool = rig.pool()
    after = pool.keeping.keeper(pool._consumer(0))
    assert after.lease.beat()
    pool.keeper.lease.beat()
    pool.keeper.lease.beat()
    assert after.lease.beat()
    assert after.lease.is_good
    assert [names.parse_lease(file)[1] for file in os.listdir(rig.path / ".pool" / "leases")] == [after.lease.number]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("file", ["format", "id"])
def test_a_fifo_in_the_place_of_a_file_of_the_queue_stops_nobody(rig, file):
    """directory._read: an open for reading would wait for a writer for ever."""
    rig.spool()
    (rig.path / ".pool" / file).unlink()
    os.mkfifo(rig.path / ".pool" / file)
    with pytest.raises(QueueUnavailable):
        rig.spool(replace(SETTINGS, create=False))


def test_a_keeper_beats_on_while_it_gives_back_much(rig):
    """spool_keep._release: a long release must not cost its own master the lease."""
    dead, pool = rig.pool("one", pid=1), rig.pool("one", pid=2)
    dead.spool.put(b"x")
    dead.claim()
    for number in range(8):  # claims of which the worker knew nothing, their replies having been lost
        file = names.marked(0, 0, dead.spool.tokens.token(f"m{number}"), f"m{number}")
        (rig.path / "pending" / dead.owner / file).write_bytes(b"%d" % number)
    before = pool.keeper.lease.number

    def slow(call: str, arguments: tuple[object, ...]) -> None:
        if call == "rename" and "/pending/" in str(arguments[0]):
            rig.world.moved_ns += 10**9

    pool.keeper_system.before = slow
    pool.keeping.release_owner(dead.owner, "died")
    assert pool.keeper.lease.number >= before + 8
    assert len(rig.files("incoming")) == 9


def test_a_worker_that_leaves_is_on_the_board_until_its_directory_is_gone(rig):
    """spool.detach: or a keeper would release what the worker is still giving back."""
    pool = rig.pool()
    pool.spool.put(b"x")
    pool.spool.settled(pool.claim())
    owner, seen = pool.owner, []

    def look(call: str, arguments: tuple[object, ...]) -> None:
        if call in ("rename", "rmdir"):
            seen.append(pool.owner)

    pool.system.before = look
    pool.spool.detach()
    assert seen == [owner, owner]
    assert pool.owner == ""


def test_an_idle_worker_gives_back_what_lies_in_its_directory(rig):
    """worker.run: or a claim whose reply was lost would wait until its worker leaves, days perhaps."""
    pool, seen = rig.pool(), []
    pool.spool.put(b"x")
    pool.spool.settled(pool.claim())
    work(pool, lambda message: seen.append(pool.board.worker(0).text(WorkerText.MESSAGE)), most=3)
    assert len(seen) == 1
    assert rig.everything() == {}


def test_after_a_lost_reply_a_stat_is_not_believed(tmp_path):
    """directory.is_listed: a client of NFS may answer one from its cache for half a minute."""
    pool = Rig(tmp_path / "queue", World(tmp_path), network="nfs").pool()

    def lose(call: str, arguments: tuple[object, ...]) -> None:
        if call == "rename":
            raise FileNotFoundError(2, "lost", *arguments[:1])

    def stale(call: str, arguments: tuple[object, ...]) -> None:
        if call in ("lstat", "stat"):
            raise FileNotFoundError(2, "from a cache", *arguments[:1])

    pool.system.after, pool.system.before = lose, stale
    assert pool.spool.put(b"x")
    assert pool.claim().name
