"""
The power goes off after every change of a disk: what was promised is there, and no half message.

pytest -s prints how much was tried. Long because: it does everything that a queue can do.
"""

from __future__ import annotations

import errno
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.sim.cast import LOOKS, NEXT, QUEUE, SETTINGS, Pool, make_world, user
from tests.sim.disk import Inode
from tests.sim.kernel import STRAIGHT, Process, Scheduler, Straight, World
from tests.sim.power_cut import (
    COPIED,
    ENDING,
    ERRORS,
    FORWARDED,
    LOOSE,
    ORDERED,
    SAFE,
    SHORT,
    SOURCE,
    SPLIT,
    THEIRS,
    THERE,
    Counts,
    Filesystem,
    Recording,
    check_every_cut,
    places,
)
from tests.sim.traced import traced, why_not
from workers.errors import ClaimLost
from workers.message import Claim
from workers.queues import spool_put
from workers.queues.base import Settings
from workers.queues.open import open_queue
from workers.queues.spool import Spool
from workers.system import SYSTEM

KEEPING = replace(SETTINGS, keep_done_s=10.0, keep_errors_s=10.0)
Act = Callable[["Stage"], object]


class Without(Straight):
    """A kernel that answers *call*, of what begins with *source*, with the error *code*; others go on *beneath*."""

    def __init__(self, beneath: Scheduler, call: str, code: int, source: str = "") -> None:
        self._beneath, self._call, self._code, self._source = beneath, call, code, source

    def call(self, process: Process, name: str, arguments: tuple[Any, ...], do: Callable[[], Any]) -> Any:
        if name == self._call and arguments[0].startswith(self._source):
            raise OSError(self._code, os.strerror(self._code), *arguments)
        return self._beneath.call(process, name, arguments, do)


class Skipping(Straight):
    """A program that leaves out one kind of sync."""

    def __init__(self, call: str, *, is_directory: bool | None = None) -> None:
        self._call, self._is_directory = call, is_directory

    def call(self, process: Process, name: str, arguments: tuple[Any, ...], do: Callable[[], Any]) -> Any:
        if name == self._call and self._is_directory in (None, process.opened(arguments[0]).is_directory):
            return None
        return do()


class SyncingLate(Straight):
    """A program that syncs a file only after the next call that shows it."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Process, Inode]] = []

    def call(self, process: Process, name: str, arguments: tuple[Any, ...], do: Callable[[], Any]) -> Any:
        if name == "fsync" and not process.opened(arguments[0]).is_directory:
            self._waiting.append((process, process.opened(arguments[0])))
            return None
        found = do()
        if name in ("rename", "link"):
            for by, inode in self._waiting:
                by.disk.sync(by, inode)
            self._waiting.clear()
        return found


class Stage:
    """A queue and the next one, a producer, a pool, and what it says to its callers."""

    def __init__(self, settings: Settings = SETTINGS) -> None:
        self.world, _ = make_world(QUEUE, NEXT)
        self.producer = user(self.world)
        Spool(QUEUE, replace(KEEPING, create=True), system=self.producer.system)  # makes done/
        self.producer.system.mkdir(SOURCE)
        self.pool = Pool(self.world, "one", 100, settings)
        self.index = 0
        self.worker = self.pool.worker()
        self.next = user(self.world, NEXT, 2)
        self.recording = Recording(self.world)

    def put(self, body: bytes, name: str | None = None, *, delay: float = 0, durable: bool = True) -> None:
        self._begin(body, durable=durable)
        self.producer.put(body, name, delay=delay, durable=durable)
        self._end(body, durable=durable)

    def put_many(self, *bodies: bytes, durable: bool = True) -> None:
        for body in bodies:
            self._begin(body, durable=durable)
        self.producer.put_many(bodies, durable=durable)
        for body in bodies:
            self._end(body, durable=durable)

    def _begin(self, body: bytes, *, durable: bool) -> None:
        self.recording.bodies.add(body)
        if not durable:
            self.recording.promise(body, SHORT)

    def _end(self, body: bytes, *, durable: bool) -> None:
        if durable:
            self.recording.promise(body, THERE)

    def source(self, body: bytes, *, is_synced: bool) -> Path:
        """A file of a producer's own, perhaps not on the disk yet."""
        path = Path(SOURCE, "file")
        self.recording.bodies.add(body)
        with self.world.straight():
            self.producer.directory.write_file(str(path), body, durable=is_synced)
            if is_synced:
                self.producer.system.fsync_directory(SOURCE)
                self.recording.promise(body, SAFE)
        return path

    def put_file(self, body: bytes, name: str | None = None, *, is_synced: bool = True) -> None:
        self.producer.put_file(self.source(body, is_synced=is_synced), name)
        self.recording.promise(body, THERE)

    def claim(self, spool: Spool | None = None) -> tuple[Claim, bytes]:
        spool = spool or self.worker
        claim = spool.claim()
        assert claim is not None
        return claim, spool.system.opened(claim.fd).data  # type: ignore[attr-defined]

    def finish(self) -> None:
        claim, body = self.claim()
        self.recording.promise(body, ENDING)
        self.worker.done(claim)

    def reject(self) -> None:
        claim, body = self.claim()
        self.worker.reject(claim, "a reason")
        self.recording.promise(body, ERRORS)

    def forward(self) -> None:
        claim, body = self.claim()
        self.worker.forward(claim, self.next)
        self.recording.promise(body, FORWARDED)

    def forward_anew(self, *bodies: bytes) -> None:
        claim, body = self.claim()
        self.recording.bodies.update(bodies)
        self.recording.followers[body] = bodies
        self.recording.promise(body, ENDING)
        self.worker.forward(claim, self.next, bodies)
        for other in bodies:
            self.recording.promise(other, FORWARDED)

    def requeue(self, body: bytes, name: str) -> None:
        self.recording.promise(body, THERE)
        self.producer.requeue(name)

    def later(self, seconds: float) -> None:
        self.world.moved_ns += int(seconds * 1e9)
        self.pool.keeper.lease.beat()

    def keep(self, seconds: float = 0) -> None:
        self.later(seconds)
        self.pool.keeper.keep()

    def lose_worker(self, cause: Any = "died") -> None:
        """It dies with what it has in hand; its keeper is told."""
        self.pool.keeper.release_owner(self.pool.bury(self.index), cause)
        self.index += 1
        self.worker = self.pool.worker(self.index)


# ---- what is done


def put_batch(stage: Stage) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spool_put, "BATCH_MIN", 2)  # from here on one syncfs stands for all
        stage.put_many(b"one", b"two", b"three")


def enter(stage: Stage) -> None:
    stage.recording.bodies.add(b"one")
    stage.producer.enter(b"one", "report.csv")
    stage.recording.promise(b"one", THERE)


def put_file_where_a_rename_may_replace(stage: Stage) -> None:
    stage.world.scheduler = Without(stage.world.scheduler, "rename_noreplace", errno.EINVAL)
    stage.put_file(b"one", "report.csv")


def put_file_from_another_filesystem(stage: Stage) -> None:
    stage.world.scheduler = Without(stage.world.scheduler, "rename", errno.EXDEV, SOURCE)
    stage.put_file(b"one")


def put_named_without_links(stage: Stage) -> None:
    stage.world.scheduler = Without(stage.world.scheduler, "link", errno.EPERM)
    stage.put(b"one", "report.csv")


def put_and_claim(stage: Stage) -> None:
    stage.put(b"one")
    stage.claim()


def retry(stage: Stage) -> None:
    stage.put(b"one")
    claim, _ = stage.claim()
    stage.worker.retry(claim)
    stage.keep(10)
    stage.finish()


def release(stage: Stage) -> None:
    stage.put(b"one", "report.csv")
    claim, _ = stage.claim()
    stage.worker.release(claim)
    stage.worker.detach()


def two_of_one_name(stage: Stage) -> None:
    stage.put(b"one", "report.csv")
    claim, _ = stage.claim()
    stage.put(b"two", "report.csv")
    stage.recording.promise(b"one", ENDING)
    stage.worker.done(claim)
    stage.reject()


def two_forwarded_of_one_name(stage: Stage) -> None:
    for body in (b"one", b"two"):
        stage.put(body, "report.csv")
        stage.forward()


def forward_to_another_filesystem(stage: Stage) -> None:
    stage.put(b"one")
    stage.world.scheduler = Without(stage.world.scheduler, "rename", errno.EXDEV, f"{QUEUE}/pending")
    claim, _ = stage.claim()
    stage.worker.forward(claim, stage.next)  # two inodes of one body for a while
    stage.recording.promise(b"one", COPIED)


def killed_at_the_limit(stage: Stage) -> None:
    stage.put(b"one")
    for _ in range(SETTINGS.crash_limit):
        stage.claim()
        stage.lose_worker()
    stage.recording.promise(b"one", ERRORS)


def late(stage: Stage) -> None:
    stage.put(b"one")
    stage.claim()
    stage.lose_worker("timeout")
    stage.keep(10)
    stage.finish()


def left_by_a_handler(stage: Stage) -> None:
    stage.put(b"one")
    claim, _ = stage.claim()
    stage.recording.bodies.add(b"scratch")
    stage.recording.promise(b"scratch", SHORT)
    stage.worker.directory.write_file(f"{claim.path.rpartition('/')[0]}/scratch", b"scratch", durable=False)
    stage.recording.promise(b"one", ENDING)
    stage.worker.done(claim)
    stage.worker.settle_leftovers()


def released_by_another_host(stage: Stage) -> None:
    other = Pool(stage.world, "two", 200)
    stage.put(b"one")
    claim, _ = stage.claim()
    for _ in range(LOOKS + 1):
        stage.world.moved_ns += 10**9
        other.keeper.keep()
    worker = other.worker()
    second, body = stage.claim(worker)
    stage.recording.promise(body, ENDING)
    worker.done(second)
    with pytest.raises(ClaimLost):
        stage.worker.done(claim)


def requeued(stage: Stage) -> None:
    stage.put(b"one", "report.csv")
    stage.reject()
    stage.requeue(b"one", "report.csv")
    stage.finish()


def kept_and_pruned(stage: Stage) -> None:
    stage.put_many(b"one", b"two")
    claim, body = stage.claim()
    stage.worker.done(claim)
    stage.reject()
    for body in (b"one", b"two"):
        stage.recording.promise(body, ENDING)
    stage.keep(20)


def abandoned_in_tmp(stage: Stage) -> None:
    """Another program's file may be the only copy: it goes to errors/, where it stays once it is there."""
    stage.recording.bodies.add(b"one")
    stage.producer.directory.write_file(THEIRS, b"one", durable=True)
    stage.producer.system.fsync_directory(os.path.dirname(THEIRS))
    stage.recording.promise(b"one", SAFE)
    stage.keep(SETTINGS.stale_after_s + 1)


def a_whole_life(stage: Stage) -> None:
    stage.put(b"one", "report.csv")
    claim, _ = stage.claim()
    stage.worker.retry(claim)
    stage.keep(10)
    stage.claim()
    stage.lose_worker()
    stage.reject()
    stage.requeue(b"one", "report.csv")
    stage.forward()


ACTS: dict[str, Act] = {
    "put": lambda stage: stage.put(b"one"),
    "put named": lambda stage: stage.put(b"one", "report.csv"),
    "put named without links": put_named_without_links,
    "put delayed": lambda stage: (stage.put(b"one", delay=5), stage.keep(10), stage.finish()),
    "put, not durable": lambda stage: stage.put(b"one", durable=False),
    "put many": lambda stage: stage.put_many(b"one", b"two", b"three"),
    "put many with one sync": put_batch,
    "put many, not durable": lambda stage: stage.put_many(b"one", b"two", durable=False),
    "put file": lambda stage: stage.put_file(b"one"),
    "put file not synced": lambda stage: stage.put_file(b"one", is_synced=False),
    "put file named": lambda stage: stage.put_file(b"one", "report.csv"),
    "put file named, linked": put_file_where_a_rename_may_replace,
    "put file from another filesystem": put_file_from_another_filesystem,
    "enter": enter,
    "claim": put_and_claim,
    "done": lambda stage: (stage.put(b"one"), stage.finish(), stage.worker.detach()),
    "reject": lambda stage: (stage.put(b"one"), stage.reject()),
    "retry": retry,
    "release": release,
    "forward": lambda stage: (stage.put(b"one"), stage.forward()),
    "forward a new body": lambda stage: (stage.put(b"one"), stage.forward_anew(b"other")),
    "forward new bodies": lambda stage: (stage.put(b"one"), stage.forward_anew(b"other", b"third")),
    "two of one name": two_of_one_name,
    "two forwarded of one name": two_forwarded_of_one_name,
    "killed at the limit": killed_at_the_limit,
    "late": late,
    "left by a handler": left_by_a_handler,
    "released by another host": released_by_another_host,
    "requeued": requeued,
    "kept and pruned": kept_and_pruned,
    "abandoned in tmp": abandoned_in_tmp,
    "a whole life": a_whole_life,
}
SETTINGS_OF = {"kept and pruned": KEEPING}


def recorded(act: str, scheduler: Scheduler = STRAIGHT) -> Recording:
    stage = Stage(SETTINGS_OF.get(act, SETTINGS))
    stage.world.scheduler = scheduler
    ACTS[act](stage)
    return stage.recording


def cut(act: str, filesystem: Filesystem, scheduler: Scheduler = STRAIGHT) -> Counts:
    """Do *act*, then cut the power after each of its changes."""
    return check_every_cut(recorded(act, scheduler), filesystem)


@pytest.fixture(scope="module")
def totals() -> Iterator[Counts]:
    counts = Counts()
    yield counts
    sys.stdout.write(f"\npower cuts: {counts.cuts:,} moments, {counts.platters:,} different disks\n")


@pytest.mark.parametrize("filesystem", [ORDERED, LOOSE], ids=lambda one: one.name)
@pytest.mark.parametrize("act", ACTS)
def test_what_was_promised_is_there_after_a_power_cut_at_any_change(act, filesystem, totals):
    totals.add(cut(act, filesystem))


@pytest.mark.parametrize("filesystem", [ORDERED, LOOSE], ids=lambda one: one.name)
def test_a_queue_whose_making_was_cut_off_can_be_made_and_keeps_what_was_put(filesystem, monkeypatch, totals):
    monkeypatch.setattr("tests.sim.cast.open_spool", opened_anew)
    world = World()
    recording = Recording(world)
    queue = Spool(QUEUE, replace(SETTINGS, create=True), system=world.process(1), host="maker")
    recording.bodies.add(b"one")
    queue.put(b"one")
    recording.promise(b"one", THERE)
    totals.add(check_every_cut(recording, filesystem, QUEUE, create=True))


def opened_anew(path: str, settings: Settings, process: Process) -> Spool:
    """As cast.open_spool, for a queue that is another one on each disk."""
    return Spool(path, settings, system=process, host=process.host)


# ---- each call that keeps a promise is missed


DURABLE = ("put", "put named", "put many", "enter", "put file not synced")


@pytest.mark.parametrize("filesystem", [ORDERED, LOOSE], ids=lambda one: one.name)
@pytest.mark.parametrize("act", DURABLE)
def test_a_message_is_short_where_its_file_is_not_synced(act, filesystem):
    with pytest.raises(AssertionError, match="which nobody put"):
        cut(act, filesystem, Skipping("fsync", is_directory=False))


@pytest.mark.parametrize("filesystem", [ORDERED, LOOSE], ids=lambda one: one.name)
@pytest.mark.parametrize("act", [*DURABLE, "put delayed", "reject", "forward", "killed at the limit"])
def test_a_promise_is_broken_where_the_directory_is_not_synced(act, filesystem):
    with pytest.raises(AssertionError, match="should be in"):
        cut(act, filesystem, Skipping("fsync", is_directory=True))


@pytest.mark.parametrize("filesystem", [ORDERED, LOOSE], ids=lambda one: one.name)
def test_a_batch_is_short_where_syncfs_is_missing(filesystem):
    with pytest.raises(AssertionError, match="which nobody put"):
        cut("put many with one sync", filesystem, Skipping("syncfs"))


@pytest.mark.parametrize("filesystem", [ORDERED, LOOSE], ids=lambda one: one.name)
@pytest.mark.parametrize("act", ["put", "put named", "put many", "enter"])
def test_a_message_is_short_where_its_file_is_synced_after_it_is_seen(act, filesystem):
    with pytest.raises(AssertionError, match="which nobody put"):
        cut(act, filesystem, SyncingLate())


def test_a_file_is_lost_where_its_source_goes_before_its_link_is_synced():
    assert () not in places(recorded("put file named, linked"), LOOSE, b"one")
    assert () in places(recorded("put file named, linked", Skipping("fsync", is_directory=True)), LOOSE, b"one")


def test_a_claim_is_lost_or_doubled_where_a_rename_may_be_kept_by_half():
    """Why SPOOL.md refuses such filesystems: nothing that a queue calls could help."""
    recording = recorded("claim")
    assert {len(found) for found in places(recording, LOOSE, b"one")} == {1}
    assert {len(found) for found in places(recording, SPLIT, b"one")} > {0, 2}


# ---- real processes


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """All that `real_calls` calls, and was told."""
    if why := why_not():
        pytest.skip(why)
    place = tmp_path_factory.mktemp("real")
    for name in ("q", "n"):
        open_queue(f"{place}/{name}", create=True, settings=SETTINGS)
    (place / "from").mkdir()
    (place / "from" / "file").write_bytes(b"file")
    trace = tmp_path_factory.mktemp("trace") / "calls"
    return traced([sys.executable, "-m", "tests.sim.real_calls", str(place)], place, trace)


@pytest.mark.parametrize("filesystem", [ORDERED, LOOSE], ids=lambda one: one.name)
def test_what_a_real_process_was_promised_is_there_after_a_power_cut_at_any_call(
    filesystem, real, monkeypatch, totals, tmp_path
):
    monkeypatch.setattr("tests.sim.cast.open_spool", opened_anew)
    totals.add(check_every_cut(real, filesystem, recovers=filesystem is ORDERED))
    made = Counter(change.call for change in real.changes)
    assert made["fsync"] >= 6
    assert made["syncfs"] >= SYSTEM.syncs_as_one(str(tmp_path))
    assert made["fsync_directory"] >= 10
    assert len(real.promises) >= 15
