"""
test_dirq - every call of dirq's engines and pools failed once; and that what is known to be wrong is found

The schedules themselves are walked by test_schedules, with the spool's. A control breaks
one rule in the real code, and a schedule must show it; so it does two faults of the original.

Long because: the controls are a list.
See also: scenarios_dirq, scenarios_dirq_pools, operations_dirq, operations_dirq_pools.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.sim import operations_dirq, operations_dirq_pools
from tests.sim.dirq_cast import KINDS, SCHEMA, SIMPLE, their_add, their_handle, their_purge
from tests.sim.dirq_ledger import DirqLedger
from tests.sim.every_call import Counts
from tests.sim.explore import Actor, Run, Scenario, Violation, explore, replay
from tests.sim.kernel import START_NS, UMASK, World
from tests.sim.scenarios import LONG, SHORT, load
from tests.sim.scenarios_dirq import OLD, one
from tests.sim.sharing import Sharing
from tests.waiting import until
from workers.dirq.elements import Elements
from workers.dirq.schema_elements import SchemaElements
from workers.dirq.simple_elements import SimpleElements
from workers.queues.dirq import Dirq
from workers.queues.dirq_keep import DirqKeeper

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
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", operations_dirq.OPERATIONS)
def test_an_engine_survives_every_call_that_fails(
    name: str, kind: str, network: str | None, counted: list[Counts]
) -> None:
    """And has its effect once when it is tried again; and after a crash at any call a sweep finds everything."""
    counted.append(operations_dirq.fail_calls_of(name, kind, network))


@pytest.mark.parametrize("network", [None, "nfs"], ids=["local", "nfs"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", operations_dirq_pools.OPERATIONS)
def test_a_pool_survives_every_call_that_fails(
    name: str, kind: str, network: str | None, counted: list[Counts]
) -> None:
    """And after a crash at any call a pool of another host finds and finishes what is left."""
    counts = operations_dirq_pools.fail_calls_of(name, kind, network)
    assert counts.calls > 0
    counted.append(counts)


# ---- the simulated disk

CALLS: list[tuple[str, ...]] = [
    ("mkdir", "a"), ("mkdir", "a"), ("mkdir", "a/b"), ("file", "a/f"), ("link", "a/f", "a/g"), ("link", "a/f", "a/g"),
    ("link", "a", "c"), ("rmdir", "a"), ("unlink", "a/b"), ("rmdir", "a/f"), ("rename", "a/b", "a/f"), ("mkdir", "d"),
    ("rename", "a/f", "d"), ("rename", "a/b", "d"), ("mkdir", "d/locked"), ("mkdir", "e"), ("rename", "e", "d"),
    ("rename", "d", "a/d"), ("mkdir", "d/locked"), ("rmdir", "a/d/locked"), ("rmdir", "a/d"), ("unlink", "a/f"),
    ("utime", "a/g"), ("utime", "a"), ("utime", "gone"), ("file", "gone/f"), ("rename", "gone", "x"), ("chmod", "a/g"),
    ("unlink", "a/g"), ("rmdir", "gone"), ("rmdir", "e"), ("listdir", "a/g"), ("lstat", "a"), ("file", "a"),
]  # fmt: skip


class Real:
    """The same calls on a real disk."""

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


def made(system: Any, top: str, call: tuple[str, ...]) -> str:
    """The errno of one of CALLS below *top*, or "" """
    name, *paths = call
    paths = [f"{top}/{path}" for path in paths]
    try:
        if name == "file":
            system.close(system.open(paths[0], os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        elif name == "chmod":
            system.chmod(paths[0], 0o600)
        else:
            getattr(system, name)(*paths)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return ""


def seen(system: Any, top: str, moved: dict[str, tuple[int, int]]) -> dict[str, tuple[object, ...]]:
    """All below *top*: kind and mode, names, and which times have moved since they were put into *moved*."""
    found: dict[str, tuple[object, ...]] = {}
    for name in sorted(system.listdir(top)):
        path = f"{top}/{name}"
        state = system.lstat(path)
        times = state.st_mtime_ns, state.st_ctime_ns
        was = moved.get(path, times)
        moved[path] = times
        found[name] = (oct(state.st_mode), state.st_nlink, was[0] != times[0], was[1] != times[1])
        if state.st_mode & 0o40000:
            found |= {f"{name}/{inner}": what for inner, what in seen(system, path, moved).items()}
    return found


def touched_ns(path: Path) -> int:
    """The filesystem's now."""
    os.utime(path)
    return path.stat().st_mtime_ns


@pytest.fixture(name="usual_umask")
def _usual_umask() -> Iterator[None]:
    before = os.umask(UMASK)
    yield
    os.umask(before)


@pytest.mark.usefixtures("usual_umask")
def test_the_simulated_disk_answers_counts_and_stamps_as_a_real_one_does(tmp_path: Path) -> None:
    """The same calls on both: the same errors, modes and link counts, and the same times moved, of directories too."""
    world = World(exact=True)
    process = world.process(1)
    process.mkdir("/top")
    top = tmp_path / "top"
    top.mkdir()
    if top.stat().st_nlink == 1:
        pytest.skip("this filesystem does not count the links of directories")
    simulated: dict[str, tuple[int, int]] = {}
    real: dict[str, tuple[int, int]] = {}
    for call in CALLS:
        world.moved_ns += 10**9
        at_ns = touched_ns(tmp_path)
        until(lambda at_ns=at_ns: touched_ns(tmp_path) > at_ns)  # the next tick of the filesystem's clock
        assert made(process, "/top", call) == made(Real(), str(top), call), call
        assert seen(process, "/top", simulated) == seen(Real(), str(top), real), call


# ---- what the schedules are for: each of these breaks one rule, and is found


def simple_links_then_touches(patch: Patch) -> None:
    """D7."""

    def lock(self: SimpleElements, name: str) -> Any:
        path = f"{self.path}/{name}"
        try:
            self.system.link(path, f"{path}.lck")
            self.system.utime(path)
            return self.found_lock(name)
        except (FileExistsError, FileNotFoundError):
            return None

    patch.setattr(SimpleElements, "lock", lock)


def simple_removes_the_lock_first(patch: Patch) -> None:
    def remove(self: SimpleElements, name: str) -> bool:
        self.unlock(name)
        return remove(self.system, f"{self.path}/{name}")

    patch.setattr(SimpleElements, "remove", remove)


def a_stale_lock_is_not_looked_at_again(patch: Patch) -> None:
    """D8."""

    def break_lock(self: Elements[Any], name: str, is_stale: Callable[[Any], bool]) -> bool:
        try:
            found = self.system.lstat(self.element_path(name))
        except FileNotFoundError:
            return False
        lock = self.found_lock(name)
        return lock is not None and is_stale(lock._replace(at_ns=found.st_mtime_ns)) and self.unlock(name)

    patch.setattr(SimpleElements, "break_lock", break_lock)
    patch.setattr(SchemaElements, "break_lock", break_lock)


def what_was_set_aside_does_not_come_back(patch: Patch) -> None:
    """A reaper that finds a young lock in its hand takes it away all the same."""
    patch.setattr(SchemaElements, "_rename_once", lambda self, source, target: self.system.rmdir(source))


def an_add_gives_up(patch: Patch) -> None:
    """D1, D23."""
    add = SchemaElements.add

    def adding(self: SchemaElements, *arguments: Any, **options: Any) -> str:
        patch.setattr("workers.dirq.schema_elements.ATTEMPTS_MAX", 1)
        return add(self, *arguments, **options)

    patch.setattr(SchemaElements, "add", adding)


def simple_adds_in_place(patch: Patch) -> None:
    def add(self: SimpleElements, data: bytes, *, durable: bool = False) -> str:
        name = f"{self._insertion_directory()}/{self._fresh()}"
        self._mkdir(f"{self.path}/{name[:8]}")
        self._make_file(f"{self.path}/{name}", data, durable=durable)
        return name

    patch.setattr(SimpleElements, "add", add)


def schema_adds_in_place(patch: Patch) -> None:
    def add(self: SchemaElements, data: dict[str, bytes], *, durable: bool = False) -> str:
        name = f"{self._insertion_directory()}/{self._fresh()}"
        self._mkdir(f"{self.path}/{name}")
        for key, part in data.items():
            self._make_file(f"{self.path}/{name}/{key}", part, durable=durable)
        return name

    patch.setattr(SchemaElements, "add", add)


def schema_removes_in_place(patch: Patch) -> None:
    def remove(self: SchemaElements, name: str) -> bool:
        self._take_apart(f"{self.path}/{name}", self._parts(name))
        return True

    patch.setattr(SchemaElements, "remove", remove)


def a_sweep_minds_no_age(patch: Patch) -> None:
    """D1, as a purge of the original does it."""
    for engine in (SimpleElements, SchemaElements):
        real = engine.sweep
        patch.setattr(engine, "sweep", lambda self, _, locked, real=real: real(self, 2 * START_NS, locked))


def a_temporary_directory_is_taken_apart_where_it_is(patch: Patch) -> None:
    patch.setattr(SchemaElements, "_move_to_obsolete", lambda self, path: path)


def the_reapers_own_clock_is_believed(patch: Patch) -> None:
    """D9."""
    patch.setattr(Elements, "filesystem_now_ns", lambda self: self.system.wall_ns())


def nobody_looks_whether_he_is_the_holder(patch: Patch) -> None:
    """D6."""
    patch.setattr(SimpleElements, "is_held", lambda self, lock, *_: True)
    patch.setattr(SchemaElements, "is_held", lambda self, lock, *_: True)


def what_comes_back_replaces(patch: Patch) -> None:
    patch.setattr(Elements, "_rename_once", lambda self, source, target: self.system.rename(source, target))


def a_keeper_believes_the_record(patch: Patch) -> None:
    patch.setattr(DirqKeeper, "_is_in_hand", lambda self, hand: True)


def a_release_unlocks_first(patch: Patch) -> None:
    def release(self: Dirq, claim: Any) -> None:
        self.elements.unlock(claim.name)
        self._clear_hand()
        self.close_claim(claim)

    patch.setattr(Dirq, "release", release)


def no_lock_looks_younger_than_it_was_taken(patch: Patch) -> None:
    """The holder forgets that its keeper touches the lock."""
    real = SimpleElements.is_held
    patch.setattr(SimpleElements, "is_held", lambda self, lock, *_: real(self, lock))


CONTROLS: list[tuple[Callable[[Patch], None], str]] = [
    (simple_links_then_touches, "dirq_lockers_and_purge, simple, remove, remove"),
    (simple_removes_the_lock_first, "dirq_lockers, simple, remove, remove"),
    (a_stale_lock_is_not_looked_at_again, "dirq_stale, simple, , reapers=2, fast=True"),
    (a_stale_lock_is_not_looked_at_again, "dirq_stale, schema, , reapers=2, fast=True"),
    (what_was_set_aside_does_not_come_back, "dirq_stale, schema, , reapers=2, fast=True"),
    (an_add_gives_up, "dirq_adding, schema, theirs=1"),
    (an_add_gives_up, "dirq_emptied, schema, reapers=1"),
    (simple_adds_in_place, "dirq_adding, simple, count=2"),
    (schema_adds_in_place, "dirq_adding, schema, count=2"),
    (schema_removes_in_place, "dirq_lockers, schema, remove, remove"),
    (a_sweep_minds_no_age, "dirq_they_add, simple, takers=1"),
    (a_sweep_minds_no_age, "dirq_they_add, schema, takers=1"),
    (a_temporary_directory_is_taken_apart_where_it_is, "dirq_slow_adder, schema"),
    (the_reapers_own_clock_is_believed, "dirq_skewed, simple, unlock, remove"),
    (the_reapers_own_clock_is_believed, "dirq_skewed, schema, unlock, remove"),
    (nobody_looks_whether_he_is_the_holder, "dirq_fenced, simple, unlock, remove"),
    (nobody_looks_whether_he_is_the_holder, "dirq_fenced, schema, remove, remove"),
    (nobody_looks_whether_he_is_the_holder, "dirq_pools_fenced, simple, retry"),
    (nobody_looks_whether_he_is_the_holder, "dirq_pools_fenced, schema, release"),
    (what_comes_back_replaces, "dirq_put_in, simple, remove, reused=True"),
    (a_keeper_believes_the_record, "dirq_pools_fenced, simple, , dies=True"),
    (a_keeper_believes_the_record, "dirq_pools_fenced, schema, , dies=True"),
    (a_release_unlocks_first, "dirq_pools_died, simple, release, 1 of A killed"),
    (no_lock_looks_younger_than_it_was_taken, "dirq_pools_touched, simple, done, "),
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
        "dirq_lockers, schema, take out, take out",
        "dirq_put_in, simple, remove, leftover=True, reapers=1",
        "dirq_late, schema, take out, remove",
        "dirq_emptied, schema, reapers=1",
        "dirq_adding, schema, theirs=1",
    ],
)
def test_the_orders_that_are_not_walked_lead_nowhere_else(name: str, monkeypatch: Patch) -> None:
    """With the times and link counts of an exact disk too: the same ends when every call is a step, in every order."""
    ends = ends_of(SHORT[name], monkeypatch)
    monkeypatch.setattr("tests.sim.explore.do_meet", lambda one, other: True)
    monkeypatch.setattr(Sharing, "touch", lambda self, actor, things: (True, False))
    assert ends_of(SHORT[name], monkeypatch) == ends


# ---- the original's own


def two_lockers_and_a_purge() -> tuple[World, DirqLedger, list[Actor]]:
    world, ledger, name = one(SIMPLE, OLD)
    p, q, r = (world.process(pid) for pid in (1, 2, 3))
    acts = [their_handle(SIMPLE, p, ledger, name), their_handle(SIMPLE, q, ledger, name), their_purge(SIMPLE, r)]
    ledger.unfenced.clear()  # now somebody answers for them
    return world, ledger, [Actor("PQR"[number], (p, q, r)[number], act) for number, act in enumerate(acts)]


def an_adder_and_a_purge() -> tuple[World, DirqLedger, list[Actor]]:
    world, ledger, _ = one(SCHEMA)
    p, q = world.process(1), world.process(2)
    return (
        world,
        ledger,
        [
            Actor("P", p, their_add(SCHEMA, p, ledger, b"theirs")),
            Actor("Q", q, their_purge(SCHEMA, q)),
        ],
    )


@pytest.mark.parametrize(
    ("setup", "why"),
    [(two_lockers_and_a_purge, "the fresh lock of"), (an_adder_and_a_purge, "the original's add of")],
    ids=["D7", "D1"],
)
def test_the_faults_of_the_original_are_found_in_its_schedules(setup: Any, why: str) -> None:
    """So what is not found of ours would be."""
    with pytest.raises(Violation, match=why):
        explore(Scenario("the original", setup))
