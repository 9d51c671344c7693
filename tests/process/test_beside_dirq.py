"""
test_beside_dirq - the original dirq, from PyPI, on the same directory at the same time as ours

Real processes of both add, lock, get, remove and purge at full speed, both kinds of queues, on each filesystem;
ours are killed at any moment and started again. The figures are printed.
ORCHESTRATOR_BESIDE=50000 is the full run: so many elements in each test. ORCHESTRATOR_BESIDE_SEED=7 draws
other victims; the moments are the machine's.

What the original does wrong by itself (its known faults, by number) is kept out of the accounts:
    D1   its purge takes fresh temporary directories   its own adds fail, which are not counted; ours start again
    D2   forked children lose texts                    it adds bytes, or each into a directory of its own
    D8   its purge removes a lock that is fresh again  only where a lock was broken: of what a killed one held
    D10  directories vanish under its listings         it begins again
    D14  nothing is locked where nlink is 1 (btrfs)    there it adds, locks and unlocks, and takes nothing

See also: beside_dirq (the processes), test_beside_mentat (the same for the spool).
"""

from __future__ import annotations

import ctypes
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.process.beside import FORK, OURS, THEIRS
from tests.process.beside_dirq import (
    KINDS,
    LIMITS,
    Accounts,
    Actor,
    Cast,
    Site,
    accounts,
    claim,
    purge,
    site_on,
    work,
)  # fmt: skip
from workers.dirq.simple_elements import SimpleElements
from workers.system import System

COUNT = int(os.environ.get("ORCHESTRATOR_BESIDE", "600"))
SEED = os.environ.get("ORCHESTRATOR_BESIDE_SEED", "1")
SIDE = 4  # processes of each
CLAIMERS = 8
ADDERS = 8
WINDOW = 100
GROUNDS = ("here", "btrfs", "xfs", "tmpfs")
TIME_S = 60 + COUNT * 0.02
LIBC = ctypes.CDLL(None, use_errno=True)
AT_FDCWD, AT_SYMLINK_FOLLOW = -100, 0x400


@pytest.fixture(
    name="site",
    params=[(ground, kind) for kind in KINDS for ground in GROUNDS],
    ids=lambda one: f"{one[1].name}-{one[0]}",
)
def _site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    """A place for a queue of each kind on each filesystem."""
    ground, kind = request.param
    with site_on(ground, kind, tmp_path) as site:
        yield site


@pytest.fixture(name="cast")
def _cast(site: Site) -> Iterator[Cast]:
    """Actors at that place, none of which outlives the test."""
    cast = Cast(site, random.Random(SEED))  # noqa: S311 - to be repeated
    try:
        yield cast
    finally:
        cast.end()


def finish(site: Site, kills: int) -> Accounts:
    """Break what the killed left locked, take all that is there, purge; the accounts, and nothing is left."""
    unfinished = site.unfinished()
    last = Actor(site, f"{OURS}-last")
    site.age_all()
    last.queue.purge(**LIMITS)
    while last.take(1000):
        pass
    site.age_all()
    last.queue.purge(**LIMITS)
    os.close(last.fd)
    assert site.left() == []
    told = accounts(site)
    given_up = sum(count for what, count in told.failed.items() if not what.startswith("purge"))
    assert len(unfinished) <= kills + given_up, unfinished
    return told


def check(told: Accounts, kills: int) -> None:
    """Each accepted element was got once; twice only what a killed one had in hand."""
    assert not told.lost
    assert not told.strangers
    assert told.doubles <= told.excused
    assert sum(times - 1 for times in told.got.values()) <= kills
    for step in ("double", "fenced"):
        assert set(told.steps.get(step, ())) <= told.excused, step


def figures(told: Accounts, kills: int, started_s: float) -> str:
    """What is printed."""
    return (
        f"{len(told.accepted)} accepted, {len(told.begun)} begun, got {dict(told.got_by)},"
        f" {len(told.doubles)} doubles of {len(told.excused)} excused, {kills} kills,"
        f" {len(told.steps.get('fenced', ()))} fenced, the original failed {dict(told.failed)},"
        f" {time.monotonic() - started_s:.1f} s"
    )


@pytest.mark.timeout(2 * TIME_S + 60)
def test_mixed_load_of_both_libraries_under_kills_and_purges_gets_each_element_once(site: Site, cast: Cast) -> None:
    """Four processes of each add and take, three more purge; one of ours is killed every 30 ms."""
    started_s = time.monotonic()
    workers = [f"{side}-{number}" for side in (OURS, THEIRS) for number in range(SIDE)]
    for who in workers:
        cast.start(who, work, COUNT // len(workers))
    cast.start(f"{OURS}-purge", purge, LIMITS)
    cast.start(f"{THEIRS}-purge", purge, LIMITS)
    # Its purge of temporary directories mostly fails (D1): this one gets to the locks.
    cast.start(f"{THEIRS}-purge-locks", purge, {**LIMITS, "maxtemp": 0})
    cast.rage(lambda: len(os.listdir(site.ready)) == len(workers) and not site.has_waiting(), TIME_S)
    told = finish(site, cast.kills)
    print(f"\n{figures(told, cast.kills, started_s)}")  # noqa: T201 - the figures
    assert len(told.begun) == COUNT // len(workers) * len(workers)
    check(told, cast.kills)
    assert told.got_by[OURS]


@pytest.mark.timeout(2 * TIME_S + 60)
def test_D7_an_old_backlog_has_one_holder_at_a_time_while_both_libraries_purge(site: Site, cast: Cast) -> None:
    """
    Eight of ours take what waits for hours, some twice; a lock never has the age of its element.

    Few lie there at a time, so that purges are quick and many.
    """
    started_s = time.monotonic()
    backlog = Site(site.kind, site.queue.with_name("backlog"), site.place)
    first = Actor(backlog, f"{OURS}-first")
    while first.entered < COUNT:
        first.add()
    os.close(first.fd)
    backlog.age_all()
    names = list(backlog.names())
    site.kind.open(site.queue, OURS)

    def is_over() -> bool:
        for _ in range(WINDOW - sum(1 for _ in site.names())):
            if names:
                site.bring(backlog, names.pop())
        return not (names or site.has_waiting())

    for number in range(2):
        cast.start(f"{THEIRS}-purge-{number}", purge, {**LIMITS, "maxtemp": 0 if number else 300})
    cast.start(f"{OURS}-purge", purge, LIMITS)
    for number in range(CLAIMERS):
        cast.start(f"{OURS}-{number}", claim, 0.2)
    cast.rage(is_over, TIME_S)
    told = finish(site, cast.kills)
    print(f"\n{figures(told, cast.kills, started_s)}")  # noqa: T201 - the figures
    assert len(told.accepted) == COUNT
    check(told, cast.kills)


@pytest.mark.timeout(2 * TIME_S + 60)
def test_D2_texts_added_by_forked_children_of_one_object_are_all_there(site: Site) -> None:
    """All have the same digit at the end of their names, and are in the same microsecond now and then."""
    started_s = time.monotonic()
    shared = site.kind.open(site.queue, OURS)
    children = [FORK.Process(target=_add_texts, args=(site, shared, number), daemon=True) for number in range(ADDERS)]
    for child in children:
        child.start()
    for child in children:
        child.join(TIME_S)
    assert [child.exitcode for child in children] == [0] * ADDERS
    told = finish(site, 0)
    print(f"\n{figures(told, 0, started_s)}")  # noqa: T201 - the figures
    assert len(set(told.accepted.values())) == len(told.accepted) == COUNT // ADDERS * ADDERS
    check(told, 0)


def _add_texts(site: Site, shared: object, number: int) -> None:
    actor = Actor(site, f"{OURS}-{number}")
    actor.queue = shared
    for _ in range(COUNT // ADDERS):
        actor.add()


class LateLink(System):
    """A link(2) that does *between* in its middle: the kernel looks the source up, then locks the directory."""

    def __init__(self, between: Callable[[], object]) -> None:
        self.between = between

    def link(self, source: str, target: str) -> None:
        """See System.link."""
        fd = os.open(source, os.O_PATH)
        try:
            self.between()
            if LIBC.linkat(AT_FDCWD, f"/proc/self/fd/{fd}".encode(), AT_FDCWD, target.encode(), AT_SYMLINK_FOLLOW):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), source)
        finally:
            os.close(fd)


@pytest.mark.parametrize("verb", ["lock", "open_locked"])
@pytest.mark.parametrize("end", ["removed", "taken out"])
def test_what_its_holder_ended_between_the_two_halves_of_a_link_is_not_locked(
    tmp_path: Path, verb: str, end: str
) -> None:
    """Its file has one more name then, so the kernel links it: that of who is adding it yet, or where it was moved."""
    first = SimpleElements(str(tmp_path / "queue"))
    first.make()
    name = first.add(b"x")
    path = first.element_path(name)
    if end == "removed":
        os.link(path, f"{path}.tmp")

    def settle() -> None:
        assert first.lock(name)
        assert first.remove(name) if end == "removed" else first.take_out(name, str(tmp_path / "taken"))

    late = SimpleElements(str(tmp_path / "queue"), system=LateLink(settle))
    assert getattr(late, verb)(name) is None
    assert not os.path.lexists(first.lock_path(name))
