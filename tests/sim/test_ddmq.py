"""
test_ddmq - every call of ddmq's broker and pools failed once; and that what is known to be wrong is found

The schedules themselves are walked by test_schedules, with the spool's. A control breaks
one rule in the real code, and a schedule must show it.

Long because: the controls are a list.
See also: scenarios_ddmq, scenarios_ddmq_pools, operations_ddmq, operations_ddmq_pools.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.sim import operations_ddmq, operations_ddmq_pools
from tests.sim.ddmq_cast import make_world, recover, their_clean
from tests.sim.ddmq_ledger import QUEUE, WORK, DdmqLedger
from tests.sim.every_call import Counts
from tests.sim.explore import Actor, Run, Scenario, Violation, explore, replay
from tests.sim.kernel import World
from tests.sim.scenarios import LONG, SHORT, load
from tests.sim.scenarios_ddmq import ddmq_expired, expired
from tests.sim.sharing import Sharing
from workers.ddmq import claims
from workers.ddmq.claims import Outcome
from workers.ddmq.files import QueueFiles
from workers.ddmq.names import parse_work
from workers.ddmq.settings import SettingsFiles
from workers.ddmq.taking import Taking
from workers.queues.ddmq import Ddmq, TimedClaim
from workers.queues.ddmq_hand import Hand, touch_line
from workers.queues.ddmq_keep import DdmqKeeper
from workers.system import SYSTEM, is_there

load()
Patch = pytest.MonkeyPatch


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """A warning for each failure would be most of what this takes."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


# ---- every call


@pytest.fixture(name="counted", scope="module")
def _counted() -> Iterator[list[Counts]]:
    counted: list[Counts] = []
    yield counted
    sys.stdout.write(f"\n{sum(counted, Counts())}\n")


@pytest.mark.parametrize("network", [None, "nfs"], ids=["local", "nfs"])
@pytest.mark.parametrize("name", operations_ddmq.OPERATIONS)
def test_a_broker_survives_every_call_that_fails(name: str, network: str | None, counted: list[Counts]) -> None:
    """And has its effect once when it is tried again; and after a crash at any call a cleaning finds everything."""
    counted.append(operations_ddmq.fail_calls_of(name, network))


@pytest.mark.parametrize("network", [None, "nfs"], ids=["local", "nfs"])
@pytest.mark.parametrize("name", operations_ddmq_pools.OPERATIONS)
def test_a_pool_survives_every_call_that_fails(name: str, network: str | None, counted: list[Counts]) -> None:
    """And after a crash at any call a pool of another host finds and finishes what is left."""
    counts = operations_ddmq_pools.fail_calls_of(name, network)
    assert counts.calls > 0
    counted.append(counts)


# ---- the simulated kernel

CALLS = [
    ("rename_exchange", "a", "b"), ("rename_exchange", "a", "gone"), ("rename_exchange", "gone", "b"),
    ("rename_exchange", "a", "sub/c"), ("rename_exchange", "a", "gone/c"), ("rename_noreplace", "a", "b"),
    ("rename_noreplace", "a", "new"), ("rename_exchange", "new", "new"),
]  # fmt: skip


def called(system: Any, top: str, call: str, *paths: str) -> str:
    """The errno of it, or ""."""
    try:
        getattr(system, call)(*(f"{top}/{path}" for path in paths))
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return ""


def contents(system: Any, top: str) -> dict[str, bytes]:
    """Of all files."""
    found = {}
    for path in ("a", "b", "new", "sub/c"):
        with contextlib.suppress(FileNotFoundError):
            fd = system.open(f"{top}/{path}", os.O_RDONLY)
            found[path] = system.read(fd, 99)
            system.close(fd)
    return found


def test_the_simulated_renames_answer_as_real_ones_do(tmp_path: Path) -> None:
    """With both flags: the same errors, and the same files where they say so."""
    process = World(exact=True).process(1)
    process.mkdir("/top")
    for system, top in ((process, "/top"), (SYSTEM, str(tmp_path))):
        system.mkdir(f"{top}/sub")
        for path in ("a", "b", "sub/c"):
            fd = system.open(f"{top}/{path}", os.O_WRONLY | os.O_CREAT, 0o666)
            system.write(fd, path.encode())
            system.close(fd)
    for call in CALLS:
        real = called(SYSTEM, str(tmp_path), *call)
        if real in ("EINVAL", "ENOSYS"):
            pytest.skip("this filesystem has no such renames")
        assert called(process, "/top", *call) == real, call
        assert contents(process, "/top") == contents(SYSTEM, str(tmp_path)), call


# ---- what the schedules are for: each of these breaks one rule, and is found


def a_message_is_published_in_place(patch: Patch) -> None:
    """Q13."""

    def publish(self: QueueFiles, name: str, data: bytes, *, durable: bool = False) -> None:
        fd = self.system.open(f"{self.path}/{name}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        self.system.write(fd, data)
        self.system.close(fd)

    patch.setattr(QueueFiles, "publish", publish)


def a_claim_is_requeued_as_the_original_does(patch: Patch) -> None:
    """Q11: read, publish, unlink."""

    def give_back(files: QueueFiles, work_name: str, settings: Any, *_: Any) -> Outcome:
        path = f"{files.work}/{work_name}"
        name = f"0.{work_name.partition('.')[2].partition('.')[2]}"
        try:
            found = claims.load(files, path)
            found.update({"priority": 0, "filename": name, "requeue_counter": found.requeue_counter + 1})
            files.publish(name, found.msg2json().encode())
            return Outcome.REQUEUED if files.remove(work_name) else Outcome.GONE
        except (FileNotFoundError, FileExistsError):
            return Outcome.GONE

    # By its full name the package has the class of that name.
    patch.setattr(sys.modules["workers.ddmq.broker"], "give_back", give_back)


def a_claim_is_rewritten_by_a_rename(patch: Patch) -> None:
    """Where an exchange would find nothing."""

    def rewrite(self: QueueFiles, work_name: str, data: bytes) -> bool:
        self.system.rename(self.write_temporary(data, durable=True), f"{self.work}/{work_name}")
        return True

    patch.setattr(QueueFiles, "rewrite", rewrite)


def a_message_waits_before_it_is_rewritten(patch: Patch) -> None:
    rewrite = QueueFiles.rewrite
    later: list[Callable[[], bool]] = []

    def putting(self: QueueFiles, work_name: str, name: str) -> bool:
        self.system.rename(f"{self.work}/{work_name}", f"{self.path}/{name}")
        self.work = self.path
        return rewrite(self, name, later.pop()())  # type: ignore[arg-type]

    patch.setattr(QueueFiles, "rewrite", lambda self, name, data: later.append(lambda: data) or True)
    patch.setattr(QueueFiles, "put_back", putting)


def what_was_read_is_what_was_claimed(patch: Patch) -> None:
    """Q12."""
    take = Taking._take

    def taking(self: Taking, name: str, settings: Any) -> Any:
        lstat = type(self.files.system).lstat
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(self.files.system, "lstat", lambda path: os.stat_result((0, seen[-1], *[0] * 8)))
            return take(self, name, settings) if lstat else None

    read = Taking._read
    seen: list[int] = []

    def reading(self: Taking, name: str) -> Any:
        found = read(self, name)
        seen.append(found[1])
        return found

    patch.setattr(Taking, "_read", reading)
    patch.setattr(Taking, "_take", taking)


def the_own_clock_is_believed(patch: Patch) -> None:
    """Q17."""
    patch.setattr(QueueFiles, "now_s", lambda self: self.system.wall_ns() / 1e9)


def settings_are_written_without_a_look(patch: Patch) -> None:
    """Q16."""
    patch.setattr(SettingsFiles, "_locked", lambda *_: contextlib.nullcontext())
    patch.setattr(SettingsFiles, "_signature", lambda *_: (0, 0, 0))


def a_sweep_minds_no_age(patch: Patch) -> None:
    sweep = QueueFiles.sweep_tmp
    patch.setattr(QueueFiles, "sweep_tmp", lambda self, _: sweep(self, -1))


def the_record_comes_after_the_claim(patch: Patch) -> None:
    """A worker that is killed between the two leaves a claim that nobody knows."""
    take = QueueFiles.take
    pending: list[tuple[Any, ...]] = []

    def taken(self: Ddmq, *arguments: Any) -> Any:
        system, hand = self.system, self._hand
        pwrite = system.pwrite

        def taking(files: QueueFiles, name: str, expiry: int) -> str | None:
            found = take(files, name, expiry)
            pwrite(*pending.pop())
            return found

        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(
                system,
                "pwrite",
                lambda *what: pending.append(what) if what[0] == hand and what[1].strip() else pwrite(*what),
            )
            inner.setattr(QueueFiles, "take", taking)
            return real(self, *arguments)

    real = Ddmq._taken
    patch.setattr(Ddmq, "_taken", taken)


def a_settle_tries_one_name(patch: Patch) -> None:
    """It minds no touch."""
    patch.setattr(Ddmq, "_work_names", lambda self, claim: (f"{claim.expiry}.{claim.waiting}",))


def a_settle_believes_the_record_alone(patch: Patch) -> None:
    """It does not read it again."""

    def act_on(self: Ddmq, claim: TimedClaim, act: Callable[[str], bool]) -> None:
        names = self._work_names(claim)
        if not any(act(name) for name in names):
            self._gone(claim, int(names[-1].partition(".")[0]))

    patch.setattr(Ddmq, "_act_on", act_on)


def a_touch_renames_first(patch: Patch) -> None:
    def touch(self: DdmqKeeper, owner: str, known: Hand | None, now_s: float) -> None:
        hand = self._hand_of(owner)
        if hand is not None and hand.now - now_s < hand.lasts_s / 2:
            later = int(now_s) + hand.lasts_s
            before, name = hand.touched(later).work_names()
            self._queue.move_out(before, f"{WORK}/{name}")
            self._write(owner, touch_line(hand, later))

    patch.setattr(DdmqKeeper, "_touch", touch)


def touch_without_a_look(self: DdmqKeeper, owner: str, known: Hand | None, now_s: float) -> None:
    """By the record alone, whoever else has it."""
    hand = self._hand_of(owner)
    if hand is not None and hand.now - now_s < hand.lasts_s / 2:
        later = int(now_s) + hand.lasts_s
        if self._write(owner, touch_line(hand, later)):
            before, name = hand.touched(later).work_names()
            self._queue.move_out(before, f"{WORK}/{name}")


def a_touch_believes_the_record(patch: Patch) -> None:
    patch.setattr(DdmqKeeper, "_touch", touch_without_a_look)


def what_is_touched_is_called_as_a_claim_is(patch: Patch) -> None:
    """To the second of the claim that another has by now, which our worker then takes for its own."""

    def work_names(self: Hand) -> tuple[str, ...]:
        expiries = (self.now,) if self.before == self.now else (self.before, self.now)
        return tuple(f"{expiry}.{self.waiting}" for expiry in expiries)

    patch.setattr(Hand, "work_names", work_names)
    patch.setattr(DdmqKeeper, "_touch", touch_without_a_look)


def a_release_minds_no_other_record(patch: Patch) -> None:
    def found_of(self: Ddmq, hand: Hand, owner: str) -> str | None:
        return next((name for name in hand.work_names() if is_there(self.system, f"{self.files.work}/{name}")), None)

    patch.setattr(Ddmq, "found_of", found_of)


def a_release_does_not_wait_for_the_end_of_the_second(patch: Patch) -> None:
    """As it was until that was walked here."""
    patch.setattr(DdmqKeeper, "_wait_until_sure", lambda _self, _hand: None)


def what_has_expired_is_counted_first(patch: Patch) -> None:
    """Each of two keepers counts a crash."""

    def reap(self: DdmqKeeper, work_name: str, until: int, kept: Any) -> None:
        name = self._name(work_name)
        counts = self._beside.count_of(name)
        self._count_if_room(name, type(counts)(counts.attempts, counts.crashes + 1))
        if (ours := self._files.touch(work_name, until)) is not None:
            self._let_wait(ours)

    patch.setattr(DdmqKeeper, "_reap_one", reap)


def a_claim_that_lasts_is_reaped(patch: Patch) -> None:
    patch.setattr("workers.queues.ddmq_look.expiry_of", lambda name, _: 0)


CONTROLS: list[tuple[Callable[[Patch], None], str]] = [
    (a_message_is_published_in_place, "ddmq_publishers, ack"),
    (a_claim_is_requeued_as_the_original_does, "ddmq_expired, ack, ack"),
    (a_claim_is_requeued_as_the_original_does, "ddmq_expired, , ack, keepers=2"),
    (a_claim_is_rewritten_by_a_rename, "ddmq_late, nack"),
    (a_message_waits_before_it_is_rewritten, "ddmq_expired, , ack, keepers=2"),
    (what_was_read_is_what_was_claimed, "ddmq_consumers, nack, ack, priority=0"),
    (the_own_clock_is_believed, "ddmq_skewed, ack"),
    (the_own_clock_is_believed, "ddmq_pools_skewed, done"),
    (settings_are_written_without_a_look, "ddmq_settings, priority, message_timeout"),
    (a_sweep_minds_no_age, "ddmq_swept"),
    (the_record_comes_after_the_claim, "ddmq_pools_died, done, 1 of A killed"),
    (a_settle_tries_one_name, "ddmq_pools_touched, done"),
    (a_settle_believes_the_record_alone, "ddmq_pools_touched_twice, done"),
    (a_touch_renames_first, "ddmq_pools_touched, done"),
    (what_is_touched_is_called_as_a_claim_is, "ddmq_pools_fenced, done, touches=True"),
    (what_is_touched_is_called_as_a_claim_is, "ddmq_pools_fenced, release, touches=True"),
    (a_touch_believes_the_record, "ddmq_pools_mistaken, done"),
    (a_release_minds_no_other_record, "ddmq_pools_began, done"),
    (a_release_does_not_wait_for_the_end_of_the_second, "ddmq_pools_began, release, times=2"),
    (what_has_expired_is_counted_first, "ddmq_pools_reaped, keepers=2"),
    (a_claim_that_lasts_is_reaped, "ddmq_pools_skewed, done"),
]


@pytest.mark.parametrize(
    ("control", "name"), CONTROLS, ids=[f"{control.__name__}, {name}" for control, name in CONTROLS]
)
def test_what_is_known_to_be_wrong_is_found_and_its_trail_leads_there_again(
    control: Callable[[Patch], None], name: str, monkeypatch: Patch
) -> None:
    """The trail alone, every call a step, raises the same."""
    scenario = (SHORT | LONG)[name]
    control(monkeypatch)
    with pytest.raises(Violation) as found:
        explore(scenario, 60_000)
    with pytest.raises(Violation) as again:
        replay(scenario, found.value.trail)
    assert again.value.why == found.value.why


# ---- what is left out


def ends_of(scenario: Scenario, patch: Patch) -> set[int]:
    """What is behind when all have ended, by any way that is walked."""
    found: set[int] = set()
    left = Run.left

    def leaving(run: Run) -> int:
        found.add(left(run))
        return left(run)

    with patch.context() as patched:
        patched.setattr(Run, "left", leaving)
        explore(scenario)
    return found


@pytest.mark.parametrize(
    "name",
    [
        "ddmq_expired, nack",
        "ddmq_expired, ack, ack",
        "ddmq_purged, nack",
        "ddmq_settings, priority, message_timeout",
        "ddmq_pools_touched, retry",
        "ddmq_pools_reaped, keepers=2",
    ],
)
def test_the_orders_that_are_not_walked_lead_nowhere_else(name: str, monkeypatch: Patch) -> None:
    """With exchanges and locks too: the same ends when every call is a step, in every order."""
    ends = ends_of(SHORT[name], monkeypatch)
    monkeypatch.setattr("tests.sim.explore.do_meet", lambda one, other: True)
    monkeypatch.setattr(Sharing, "touch", lambda self, actor, things: (True, False))
    assert ends_of(SHORT[name], monkeypatch) == ends


# ---- a limit


def one_cleaner_may_be_killed() -> tuple[World, DdmqLedger, list[Actor]]:
    world, ledger, acts = ddmq_expired("", requeue_limit=1, priority=0)
    return world, ledger, [Actor(name, process, act, may_crash=True) for name, process, act in acts]


@pytest.mark.xfail(
    strict=True, raises=Violation, reason="where the name stays the same nobody knows that it was rewritten"
)
def test_a_requeue_under_the_same_priority_that_was_cut_short_is_counted_once() -> None:
    """It is counted twice, so at its limit a message may be removed that was claimed once less than it may be."""
    explore(Scenario("the same priority", one_cleaner_may_be_killed, crashes=1, finish=recover))  # type: ignore[arg-type]


# ---- the original's own


def two_of_their_cleaners() -> tuple[World, DdmqLedger, list[Actor]]:
    world, ledger = make_world("one")
    expired(world, ledger, "")
    acts = [(pid, world.process(pid)) for pid in (1, 2)]
    return world, ledger, [Actor("PQ"[pid - 1], process, their_clean(process, ledger)) for pid, process in acts]


def there_is_one(world: World, ledger: DdmqLedger) -> None:
    waiting = [name for name in world.disk.directory(QUEUE).entries if ".ddmq" in name]
    if len(waiting) != 1:
        raise AssertionError(f"there are {len(waiting)}")


def test_Q11_of_the_original_is_found_in_its_schedules() -> None:
    """So what is not found of ours would be."""
    with pytest.raises(Violation, match="there are 2"):
        explore(Scenario("the original", two_of_their_cleaners, finish=there_is_one))


def test_every_claim_is_called_as_the_simulation_reads_it() -> None:
    """The ledger's idea of a claim's name is the engine's."""
    world, ledger = make_world("one")
    expired(world, ledger, "ack")
    (name,) = world.disk.directory(f"{QUEUE}/work").entries
    assert parse_work(name) == (next(iter(ledger.held.values())).expiry, name.partition(".")[2])
