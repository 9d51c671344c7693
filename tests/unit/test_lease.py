"""Beats and looks: when a claim may be taken from another, and when it must not be."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from tests.rig import LOOKS, Pool, Q, Rig, World, lose_ctimes
from tests.schedules import schedules
from workers.board import Slot
from workers.errors import ClaimLost, QueueUnavailable
from workers.message import Claim
from workers.queues import names
from workers.queues.reckoning import Reckoning


def leases(rig: Rig) -> dict[str, int]:
    found = (names.parse_lease(file) for file in os.listdir(rig.path / ".pool" / "leases"))
    return {parsed[0].split(".")[0]: parsed[1] for parsed in found if parsed}


def holding(rig: Rig, host: str = "one") -> tuple[Pool, Claim]:
    pool = rig.pool(host)
    pool.spool.put(b"x", f"of-{host}")
    return pool, pool.claim()


def rounds_until_lost(pool: Pool, most: int = 30) -> int:
    for count in range(1, most):
        if pool.rounds().lease_lost:
            return count
    raise AssertionError("never lost")


# ---- orders


class Stepping:
    """Gives each thread of a schedule its own step, and others none."""

    def __init__(self) -> None:
        self._steps: dict[int, object] = {}

    def actor(self, act):
        def run(step):
            self._steps[threading.get_ident()] = step
            act()

        return run

    def __call__(self) -> None:
        step = self._steps.get(threading.get_ident())
        if step is not None:
            step()


@pytest.mark.parametrize("what", ["claim", "done"])
def test_a_worker_never_misses_a_lapse(tmp_path, what):
    """
    All orders of a beat after a gap and a worker that claims, or settles what its handler removed.

    Whoever sees the new time must see the lapse: a claim under the old directory, which another keeper may have
    counted out, or a "done" for what another may have, is wrong in any order.
    """
    world, runs = World(tmp_path), 0
    stepping = Stepping()
    result: dict[str, object] = {}

    def step_at(_, word):
        if word in (Q.BEAT_NS, Q.LAPSES):
            stepping()

    pool = Rig(tmp_path / "queue", world).pool(words=step_at)

    def settle_all():
        while (claim := pool.spool.claim()) is not None:
            pool.spool.done(claim)
            pool.spool.settled(claim)

    def setup():
        stepping._steps.clear()
        result.clear()
        pool.keeper.lease.beat()
        settle_all()
        pool.spool.put(b"x", durable=False)
        result["owner"], result["lapses"] = pool.owner, pool.words[Q.LAPSES]
        if what == "done":
            result["claim"] = pool.claim()
            os.unlink(result["claim"].path)
        world.moved_ns += int(2.5e9)

        def work():
            if what == "claim":
                result["claim"] = pool.spool.claim()
                return
            try:
                pool.spool.done(result["claim"])
                result["said"] = "done"
            except ClaimLost:
                result["said"] = "lost"
            pool.spool.settled(result["claim"])

        return stepping.actor(pool.keeper.lease.beat), stepping.actor(work)

    for run in schedules(setup):
        runs += 1
        if what == "done":
            assert result["said"] == "lost", run.trail
        elif result["claim"] is not None:
            assert result["claim"].lapses == result["lapses"] + 1, run.trail
            assert pool.owner != result["owner"], run.trail
            pool.spool.settled(result["claim"])
            pool.spool.settle_leftovers()
    assert runs >= 10


def test_a_beat_counts_from_before_its_rename(rig):
    """The server answers the rename three seconds late: others may have counted since before it."""
    pool = rig.pool()
    pool.spool.put(b"x")
    rig.world.advance(1.0)
    asked_ns = pool.system.boottime_ns()

    def late(call, arguments):
        if call == "rename":
            rig.world.moved_ns += int(3e9)

    pool.keeper_system.after = late
    assert pool.keeper.lease.beat()
    pool.keeper_system.after = None
    assert pool.words[Q.BEAT_NS] == asked_ns
    assert pool.spool.claim() is None
    pool.keeper.lease.beat()
    assert pool.words[Q.LAPSES] == 2  # at the late answer, and the gap that it left


def test_H32_board_comes_before_mkdir(tmp_path, monkeypatch):
    """All orders of a worker that takes its first directory, then a fresh one, and two rounds of its own keeper."""
    world, number, stepping, runs = World(tmp_path), iter(range(10**6)), Stepping(), 0
    state: dict[str, object] = {}
    real_text, real_set_text = Slot.text, Slot.set_text

    def text(slot, which):
        stepping()
        return real_text(slot, which)

    def set_text(slot, which, value):
        stepping()
        real_set_text(slot, which, value)

    monkeypatch.setattr(Slot, "text", text)
    monkeypatch.setattr(Slot, "set_text", set_text)

    def setup():
        stepping._steps.clear()
        pool = Rig(tmp_path / f"queue{next(number)}", world).pool()
        pool.keeper.keep()  # looked and swept: the rounds below do only what is asked here
        pending = pool.spool.directory.pending
        suspected, released = [], []
        state.update(suspected=suspected, released=released)

        def at_pending(call, arguments):
            if str(arguments[0]) == pending or (call in ("mkdir", "rmdir") and str(arguments[0]).startswith(pending)):
                stepping()

        pool.system.before = pool.keeper_system.before = at_pending

        def work():
            pool.spool._take_owner(0)
            pool.spool._take_owner(0)

        def keep():
            for _ in range(2):
                released.append(pool.keeper.keep().owner_dead)
                suspected.extend(pool.keeper._unlisted & set(os.listdir(pending)))

        return stepping.actor(work), stepping.actor(keep)

    for run in schedules(setup):
        runs += 1
        assert state["suspected"] == [], run.trail
        assert state["released"] == [0, 0], run.trail
    assert runs > 100


# ---- the beat


def test_each_beat_renames_the_lease_to_the_next_number(rig):
    pool = rig.pool()
    assert leases(rig) == {"one": 1}
    pool.rounds(3)
    assert leases(rig) == {"one": 4}
    pool.keeper.leave()
    assert leases(rig) == {}


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_server_that_was_away_has_not_set_its_clock(rig, when, caplog):
    """The beat waits for half a minute, and is done at its beginning or at its end."""
    pool = rig.pool()
    pool.rounds(2)

    def away(call, arguments):
        if call == "rename" and ".pool/leases/" in arguments[0]:
            setattr(pool.keeper_system, when, None)
            rig.world.advance(29.0)

    rig.world.advance(1.0)
    setattr(pool.keeper_system, when, away)
    pool.rounds(3)
    probe = rig.path / "tmp" / "probe"
    probe.touch()
    now_ns = pool.keeper_system.lstat(str(probe)).st_ctime_ns
    assert abs(pool.keeper.lease.filesystem_now_ns() - now_ns) < 10e9
    assert "clock was set" not in caplog.text


@pytest.mark.parametrize(("stepped_s", "said"), [(0, 0), (-28, 0), (300, 1), (-300, 1)])
def test_a_clock_that_was_read_half_a_minute_late_was_set_only_if_that_cannot_explain_it(rig, stepped_s, said, caplog):
    """The reading, by which nothing is old before its time, was made some time in that half a minute."""
    pool = rig.pool()
    system = pool.keeper_system
    reckoning = Reckoning(system, pool.keeper._slot, "spool:/q")
    reckoning.note(system.boottime_ns() + 10**18)
    asked_ns = system.boottime_ns()
    rig.world.advance(30.0)
    reckoning.note(system.boottime_ns() + 10**18 + stepped_s * 10**9, asked_ns)
    assert caplog.text.count("clock was set") == said


def test_where_a_rename_moves_no_ctime_the_filesystems_clock_goes_on_all_the_same(rig):
    """As on sshfs: a file's ctime is its mtime, which a rename keeps."""
    pool = rig.pool()
    lose_ctimes(pool.keeper_system)
    pool.rounds()
    before_ns = pool.keeper.lease.filesystem_now_ns()
    for _ in range(3):
        rig.world.advance(1.0)
        pool.rounds()
    passed_s = (pool.keeper.lease.filesystem_now_ns() - before_ns) / 1e9
    assert 2.5 < passed_s < 10


def test_no_beat_before_its_time_and_at_once_after_a_failed_one(rig):
    pool = rig.pool()
    pool.keeper.keep()
    pool.keeper.keep()
    assert leases(rig)["one"] == 2  # the first round's; opening beat without a round
    rig.world.advance(1)
    pool.keeper_system.fail_all("rename", errno.EIO)
    with pytest.raises(QueueUnavailable, match="keep"):
        pool.keeper.keep()
    pool.keeper_system.before = None
    pool.keeper.keep()
    assert leases(rig)["one"] == 3


def test_a_lease_that_was_taken_away_is_made_again_one_higher_and_that_beat_failed(rig):
    pool = rig.pool()
    pool.rounds(2)
    os.unlink(rig.path / ".pool" / "leases" / f"{pool.master}.3")
    before_ns = pool.words[Q.BEAT_NS]
    rig.world.advance(1)
    assert pool.keeper.keep().beat_ok is False
    assert pool.words[Q.BEAT_NS] == before_ns
    assert leases(rig) == {"one": 4}
    assert pool.keeper.keep().beat_ok is True
    assert leases(rig) == {"one": 5}


def test_of_two_numbers_the_higher_counts(rig):
    pool = rig.pool()
    (rig.path / ".pool" / "leases" / f"{pool.master}.9").touch()
    assert rig.pool("two").keeper._looks.numbers()[pool.master] == 9


# ---- the looks


def test_a_lease_is_lost_after_all_looks_without_a_change_and_not_before(rig):
    holding(rig)
    two = rig.pool("two")
    assert two.rounds(1 + LOOKS - 1).lease_lost == 0
    assert two.rounds().lease_lost == 1
    assert leases(rig) == {"two": 1 + 1 + LOOKS}
    assert two.claim().crashes == 1


def test_a_lease_that_is_beaten_is_never_lost(rig):
    one, _ = holding(rig)
    two = rig.pool("two")
    for _ in range(4 * LOOKS):
        one.keeper.keep()
        assert two.rounds().lease_lost == 0


def test_rounds_within_an_interval_do_not_count_as_looks(rig):
    holding(rig)
    two = rig.pool("two")
    assert two.rounds(3 * LOOKS, every_s=0.3).lease_lost == 0


def test_a_late_look_sets_the_count_to_zero(rig):
    holding(rig)
    two = rig.pool("two")
    two.rounds(LOOKS)
    assert two.rounds(every_s=2.5).lease_lost == 0
    assert rounds_until_lost(two) == LOOKS


def test_a_look_that_took_long_sets_the_count_to_zero(rig):
    holding(rig)
    two = rig.pool("two")
    two.rounds(LOOKS)

    def long(call, arguments):
        if call == "listdir" and str(arguments[0]).endswith("leases"):
            rig.world.moved_ns += int(1.5e9)

    two.keeper_system.after = long
    assert two.rounds().lease_lost == 0
    two.keeper_system.after = None
    assert rounds_until_lost(two) >= LOOKS


def test_a_look_while_our_own_beat_did_not_succeed_sets_the_count_to_zero(rig):
    holding(rig)
    two = rig.pool("two")
    two.rounds(LOOKS)
    for path in (rig.path / ".pool" / "leases").glob("two.*"):
        path.unlink()
    assert two.rounds().lease_lost == 0
    assert rounds_until_lost(two) == LOOKS


def test_a_whole_outage_of_the_server_loses_nobody(rig):
    """Both keepers are stopped for an hour, as by a server that does not answer."""
    one, claim = holding(rig)
    two = rig.pool("two")
    two.rounds(LOOKS)
    one.keeper.keep()
    rig.world.advance(3600)
    for _ in range(3):
        assert two.rounds().lease_lost == 0
        one.keeper.keep()
    assert two.rounds(LOOKS - 1).lease_lost == 0
    assert os.path.exists(claim.path)


def test_a_number_that_goes_or_comes_between_two_looks_sets_the_count_to_zero(rig):
    one, _ = holding(rig)
    two = rig.pool("two")
    path = rig.path / ".pool" / "leases" / f"{one.master}.1"
    two.rounds(LOOKS)
    path.unlink()
    assert two.rounds(LOOKS).lease_lost == 0  # missing: the first look is a change, the ones after count
    path.touch()
    assert two.rounds(LOOKS).lease_lost == 0
    assert two.rounds().lease_lost == 1


def test_a_lease_that_is_missing_all_the_time_is_lost_by_the_full_count(rig):
    one, _ = holding(rig)
    (rig.path / ".pool" / "leases" / f"{one.master}.1").unlink()
    assert rounds_until_lost(rig.pool("two")) == 1 + LOOKS


def test_the_look_again_before_a_release_must_find_what_was_counted(rig):
    """The other beats between the look that completed the count and the release."""
    one, claim = holding(rig)
    two = rig.pool("two")
    two.rounds(LOOKS)
    seen = []

    def beat_between(call, arguments):
        if call == "listdir" and str(arguments[0]).endswith("leases"):
            seen.append(call)
            if len(seen) == 2:
                one.keeper.lease.beat()

    two.keeper_system.before = beat_between
    assert two.rounds().lease_lost == 0
    assert len(seen) == 2
    two.keeper_system.before = None
    assert os.path.exists(claim.path)
    assert rounds_until_lost(two) == LOOKS


def test_only_the_number_that_was_counted_is_removed(rig):
    """The other comes back between the last release and the removal of its lease."""
    one, _ = holding(rig)
    two = rig.pool("two")
    two.rounds(LOOKS)

    def beat_between(call, arguments):
        if call == "unlink" and Path(str(arguments[0])).name.startswith("one."):
            one.keeper.lease.beat()

    two.keeper_system.before = beat_between
    assert two.rounds().lease_lost == 1
    assert leases(rig)["one"] == 2


def test_a_lease_without_a_directory_is_removed_after_the_full_count(rig):
    rig.pool("one")
    two = rig.pool("two")
    two.rounds(LOOKS)
    assert "one" in leases(rig)
    two.rounds()
    assert "one" not in leases(rig)


def test_a_lease_older_than_stale_after_is_lost_after_half_of_the_looks(rig):
    """For watchers that live too short to count; not at first sight, which a clock that stepped would make wrong."""
    holding(rig)
    rig.world.advance(101)
    two = rig.pool("two")
    assert two.rounds(LOOKS // 2 + 1).lease_lost == 0
    assert two.rounds().lease_lost == 1


def test_a_clock_that_stepped_forward_costs_no_master_that_beats_its_lease(rig):
    one, _ = holding(rig)
    rig.world.advance(101)
    two = rig.pool("two")
    assert two.rounds().lease_lost == 0
    one.rounds()
    assert two.rounds(LOOKS // 2 + 1).lease_lost == 0


def test_a_lease_just_younger_than_stale_after_is_counted(rig):
    holding(rig)
    rig.world.advance(98)
    assert rig.pool("two").rounds().lease_lost == 0


def test_a_lease_that_was_seen_young_never_becomes_old_by_its_age(rig):
    """It was seen and counted; a watcher that was away itself starts to count again."""
    holding(rig)
    two = rig.pool("two")
    two.rounds(2)
    rig.world.advance(200)
    assert two.rounds().lease_lost == 0


def test_a_name_that_is_no_lease_is_left_alone(rig):
    pool = rig.pool()
    (rig.path / ".pool" / "leases" / "README").touch()
    rig.world.advance(1000)
    pool.rounds(2 * LOOKS)
    assert (rig.path / ".pool" / "leases" / "README").exists()
