"""What people found who tried to break a pool on a directory queue: each was lost, stuck, or another's once."""

from __future__ import annotations

import errno
import os
from dataclasses import replace

import pytest

from tests.rig_dirq import SCHEMA, SIMPLE
from tests.rig_foreign import FOREIGN_SETTINGS
from tests.unit.test_dirq_pool import (
    STALE_S,
    beside,
    counts_of,
    everything,
    hold,
    lose,
    put,
    reclaimed,
    settle,
    test_a_handler_may_remove_its_input,
)
from tests.unit.test_dirq_pool import _make as _make  # noqa: PLC0414 - fixtures
from tests.unit.test_dirq_pool import _pool as _pool  # noqa: PLC0414
from workers.board import Q
from workers.errors import QueueMissing, QueueRefused, QueueUnavailable
from workers.message import Message
from workers.queues import names
from workers.queues.dirq_url import open_dirq
from workers.queues.open import open_queue

assert test_a_handler_may_remove_its_input  # of the same people; it stands with its like


def test_of_two_keepers_that_release_one_owner_one_does(make):
    """The other one comes so late that a third has what was released."""
    pool, neighbour = make(), make()
    name, owner = hold(pool)
    release = neighbour.keeper._release_one
    third = make(host="two")

    def late(*arguments):
        pytest.fail("it had the record, and so the right to release")

    neighbour.keeper._release_one = late
    before = neighbour.keeper_system.before

    def first(call, arguments):
        if call == "rename" and owner in str(arguments[0]):
            neighbour.keeper_system.before = before
            assert pool.keeping.release_owner(owner, "died") == [name]
            assert third.claim().name == name

    neighbour.keeper_system.before = first
    assert neighbour.keeping.release_owner(owner, "died") == []
    assert everything(pool) == {"claimed": [b"content"]}
    assert release is not None


def test_a_release_that_fails_is_tried_again_with_its_record(pool):
    name, owner = hold(pool)
    pool.keeper_system.fail_all("unlink rmdir", errno.EIO)
    with pytest.raises(QueueUnavailable):
        pool.keeping.release_owner(owner, "died")
    pool.keeper_system.before = None
    assert pool.keeping.release_owner(owner, "died") == [name]
    assert counts_of(pool, name) == (0, 1), "one death is one crash"
    assert os.listdir(beside(pool, "held")) == []


def test_who_leaves_with_a_message_that_it_could_not_settle_gives_it_back(pool):
    put(pool)
    claim = pool.claim()
    pool.queue.settled(claim)  # as a worker does that was asked to leave while the disk was in trouble
    pool.queue.detach()
    assert everything(pool) == {"waiting": [b"content"]}
    assert reclaimed(pool).crashes == 0


def test_of_a_lost_queue_nobody_claims_from_the_first_failed_round_on(pool):
    put(pool)
    lose(pool)
    with pytest.raises(QueueUnavailable):
        pool.rounds()
    stranger = pool.place / "00000000"
    stranger.mkdir()
    assert pool.queue.claim() is None
    assert pool.words[Q.BEAT_NS] == 0


def test_a_hint_of_what_is_locked_by_now_does_not_touch_the_lock(make):
    """A feeder's names are seconds old: two pools on one queue took each other's locks for lost ones."""
    pool, other = make(), make(host="two")
    name = put(pool)
    claim = pool.claim()
    element = pool.place / name
    os.utime(element, ns=(1, 1))
    assert other.queue.claim_named(name) is None
    assert element.stat().st_mtime_ns == 1 or pool.kind == SCHEMA
    settle(pool.queue, "done", claim)


def test_a_handler_may_change_its_input_in_place(pool):
    put(pool)
    claim = pool.claim()
    pool.world.advance(3)
    with open(claim.path, "ab") as file:
        file.write(b" and more")
    pool.rounds(4)
    settle(pool.queue, "done", claim)
    assert everything(pool) == {}


def test_on_a_full_disk_what_is_due_comes_back_though_its_counts_cannot_be_written(pool, caplog):
    name = put(pool)
    settle(pool.queue, "retry", pool.claim())

    def full(call, arguments):
        if call == "write":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    pool.keeper_system.before = full
    pool.rounds(3)
    assert pool.claim().name == name
    assert "counts of" in caplog.text


def test_one_that_cannot_come_back_keeps_no_other_from_it(pool):
    first, second = put(pool, b"1"), put(pool, b"2")
    for _ in range(2):
        settle(pool.queue, "retry", pool.claim())

    def fail(call, arguments):
        if call.startswith("rename") and first.replace("/", ".") in str(arguments[0]) and "deferred" in arguments[0]:
            raise OSError(errno.EIO, os.strerror(errno.EIO), arguments[0])

    pool.keeper_system.before = fail
    pool.world.advance(3)
    with pytest.raises(QueueUnavailable):
        pool.keeper.keep()
    assert pool.claim().name == second


def test_a_schema_that_the_queue_does_not_have_is_refused_before_all_goes_to_errors(make):
    pool = make(kind=SCHEMA, options="?schema=payload:string")
    put(pool)
    with pytest.raises(QueueRefused, match="its elements have payload"):
        make(kind=SCHEMA)


@pytest.mark.parametrize(("made", "wanted"), [(SIMPLE, SCHEMA), (SCHEMA, SIMPLE)])
def test_a_queue_of_the_other_kind_is_refused(make, made, wanted):
    pool = make(kind=made)
    put(pool)
    with pytest.raises(QueueRefused, match=f"is no {wanted} queue"):
        make(kind=wanted)


def test_a_spool_or_a_directory_of_something_else_is_refused(tmp_path):
    open_queue(str(tmp_path / "spool"), create=True)
    with pytest.raises(QueueRefused, match="is no dirq-simple queue"):
        open_queue(f"dirq-simple:{tmp_path / 'spool'}", create=True)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter").touch()
    with pytest.raises(QueueRefused, match="no queue and not empty"):
        open_queue(f"dirq:{tmp_path / 'home'}", create=True)
    assert os.listdir(tmp_path / "home") == ["letter"]


def test_state_dir_in_a_url_is_where_the_operators_verbs_look_too(make, tmp_path):
    (tmp_path / "state").mkdir()
    pool = make(options=f"?state_dir={tmp_path}/state")
    name = put(pool)
    settle(pool.queue, "reject", pool.claim())
    assert not (tmp_path / "queue.pool").exists()
    operator = open_queue(f"{pool.kind}:{pool.place}?state_dir={tmp_path}/state")
    assert [line.name for line in operator.list("errors")] == [name]
    operator.pause()
    pool.rounds()
    assert pool.words[Q.PAUSED] == 1


def test_state_dir_inside_the_queue_is_refused(make, tmp_path):
    with pytest.raises(QueueRefused, match="inside the queue"):
        make(settings=replace(FOREIGN_SETTINGS, state_dir=str(tmp_path / "queue")))


def test_a_link_to_a_queue_is_that_queue(make, tmp_path):
    pool = make()
    (tmp_path / "alias").symlink_to(pool.place)
    alias = open_dirq(pool.kind, f"{tmp_path}/alias", FOREIGN_SETTINGS, system=pool.system, host="one")
    alias.pause()
    pool.rounds()
    assert pool.words[Q.PAUSED] == 1


def test_a_record_that_was_renamed_to_speak_of_another_process_ends_none(make):
    pool, neighbour = make(), make()
    hold(pool)
    (record,) = (beside(pool, "held")).iterdir()
    forged = f"{names.master_name('one', pool.system)}.0.777.778.{'0' * 12}"
    pool.world.dead |= {777, pool.system.pid}
    record.rename(record.with_name(forged))
    neighbour.rounds(3)
    assert pool.world.ended_sessions == []


@pytest.mark.parametrize("part", ["tmp", "counts", "errors", "held", "deferred"])
def test_a_link_in_the_place_of_what_lies_beside_the_queue_stops_the_round(pool, tmp_path, part):
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "00000000.00000000000000").touch()
    beside(pool, part).rmdir()
    beside(pool, part).symlink_to(victim)
    for _ in range(3):
        with pytest.raises(QueueUnavailable, match="is no directory"):
            pool.rounds(every_s=2 * STALE_S)
    assert os.listdir(victim) == ["00000000.00000000000000"]


def test_the_locks_of_live_workers_outlive_a_clock_that_stepped(make):
    pool = make()
    name = put(pool)
    claim = pool.claim()
    pool.world.advance(50 * STALE_S)  # all at once, as a clock that is set right
    pool.keeper.keep()
    assert [line.name for line in pool.queue.list("claimed")] == [name]
    assert counts_of(pool, name) == (0, 0)
    settle(pool.queue, "done", claim)


def test_another_users_directory_keeps_nobody_from_the_rest(pool):
    put(pool)

    def forbid(call, arguments):
        if call in ("scandir", "listdir") and str(arguments[0]).endswith("/00000001"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), arguments[0])

    (pool.place / "00000001").mkdir()
    pool.system.before = pool.keeper_system.before = forbid
    assert (pool.queue.depth().waiting, pool.queue.waiting_count(), len(list(pool.queue.list()))) == (1, 1, 1)
    assert pool.queue.waiting_count_max() >= 1
    assert pool.keeper.depth(is_exact=True).waiting == 1
    claim = pool.claim()
    assert Message(claim, "").body == b"content"


def test_nothing_is_made_of_a_queue_in_a_set(tmp_path):
    with pytest.raises(QueueMissing):
        open_queue(f"set:dirq-simple:{tmp_path}/a,dirq-simple:{tmp_path}/b", create=True)
    assert os.listdir(tmp_path) == []
