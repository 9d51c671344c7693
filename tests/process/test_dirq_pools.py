"""
test_dirq_pools - pools on directory queues, while the original dirq and our library work on the same directory

A pool with three workers, two processes of the original and one of our library add, take and purge, and ours are
killed, see beside_pools. Who added what, and who finished it, is told as in beside_dirq. The figures are printed.
ORCHESTRATOR_BESIDE=50000 is the full run.

A lock that was taken and not yet recorded when its worker was killed stays until it is stale: at the end all get the
time of hours ago.

See also: beside_pools, beside_dirq, test_storm (the same for the spool), tests/contract (what all queues do).
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.process.beside import OURS, THEIRS
from tests.process.beside_dirq import KINDS, LIMITS, Actor, Cast, Site, accounts, purge, site_on, supply, work
from tests.process.beside_pools import (
    CALM_S,
    COUNT,
    CRASH_LIMIT,
    DIE,
    SEED,
    STORM_S,
    Ended,
    Storm,
    check,
    in_errors,
    kept,
    start,
)
from tests.process.pools import Pools

STALE_S = 6

HERE = [pytest.param(("here", kind), id=f"{kind.name}-here") for kind in KINDS]
EVERYWHERE = [*HERE, pytest.param(("btrfs", KINDS[-1]), id=f"{KINDS[-1].name}-btrfs")]


@pytest.fixture(name="site")
def _site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    """A place for a queue of one of the kinds."""
    ground, kind = request.param
    with site_on(ground, kind, tmp_path) as site:
        yield site


@pytest.fixture(name="cast")
def _cast(site: Site) -> Iterator[Cast]:
    """Actors at that place."""
    cast = Cast(site, random.Random(SEED))  # noqa: S311 - to be repeated
    try:
        yield cast
    finally:
        cast.end()


class DirqStorm(Storm):
    """See Storm."""

    site: Site

    def claimed(self) -> list[str]:
        """See Storm.claimed."""
        return list(self.site.names())

    def has_more(self) -> bool:
        """See Storm.has_more."""
        return self.site.has_waiting()


@pytest.mark.timeout(STORM_S + CALM_S + 60)
@pytest.mark.parametrize("site", EVERYWHERE, indirect=True)
def test_a_pool_beside_the_original_finishes_each_element_once_under_kills(
    pools: Pools, site: Site, cast: Cast
) -> None:
    """More often only what a process that was killed had in hand: the last that it wrote."""
    started_s = time.monotonic()
    site.kind.open(site.queue, OURS)
    storm = DirqStorm(pools, site, cast)
    actors = (f"{OURS}-0", f"{THEIRS}-0", f"{THEIRS}-1")
    for who in actors:
        cast.start(who, supply, COUNT // len(actors))
    cast.start(f"{THEIRS}-purge", purge, LIMITS)
    cast.start(f"{THEIRS}-purge-locks", purge, {**LIMITS, "maxtemp": 0})
    storm.rage(len(actors))

    told = accounts(site)
    check(storm, Ended.of(pools, site, told.identities, told.held), told, started_s)
    assert set(told.steps.get("fenced", ())) <= told.excused
    # Mostly it was known what they held.
    assert storm.orphans <= 1 + storm.kills["worker"] // 4
    # Counts of what a library took, which knows of none, or of what one was killed with, go when they are stale.
    counts = {path.name.replace(".", "/") for path in kept(site, "counts")}
    assert len(counts - set(told.got)) <= storm.killed_with_workers


@pytest.mark.timeout(120)
@pytest.mark.parametrize("site", HERE, indirect=True)
def test_a_long_message_is_touched_and_stays_its_workers_while_both_libraries_purge(
    pools: Pools, site: Site, cast: Cast
) -> None:
    """It is held for longer than a lock may be old."""
    first = Actor(site, f"{OURS}-first")
    first.add()
    (name,) = site.names()
    pools.hold.touch()
    pool = start(pools, site, workers=1, stale_after=f"{STALE_S}s", handler="tests.process.handlers:hold").ready()
    pool.until(lambda: pools.journal() == [f"holds {name}"])
    for side in (OURS, THEIRS):
        cast.start(f"{side}-purge", purge, {"maxtemp": 300, "maxlock": STALE_S})
        cast.start(f"{side}-take", work, 0)
    lock = site.kind.has_age(site.queue, name)
    began_s = lock.stat().st_mtime
    pool.until(lambda: lock.stat().st_mtime > began_s + 1.5 * STALE_S, 60)
    assert site.kind.is_locked(site.queue, name)
    pools.hold.unlink()
    pool.until(lambda: not list(site.names()))
    cast.join(60)
    assert pool.end() == 0
    assert [line.split()[0] for line in pools.journal() if name in line] == ["holds", "handled"]
    assert not accounts(site).got
    assert pool.outcome("done") == 1


@pytest.mark.parametrize("site", HERE, indirect=True)
def test_what_kills_its_workers_ends_in_errors_and_what_is_requeued_the_original_can_take(
    pools: Pools, site: Site, cast: Cast
) -> None:
    """The element comes back as it was, header and all, under its own name."""
    first = Actor(site, f"{OURS}-first")
    first.add()
    (name,) = site.names()
    pool = start(pools, site, workers=1, handler=DIE)
    pool.until(lambda: list(in_errors(site).values()) == [f"its worker died {CRASH_LIMIT} times with it in hand"])
    assert pool.end() == 0
    assert pools.run("requeue", site.url, name)[0] == 0
    assert list(site.names()) == [name]
    theirs: Any = site.kind.open(site.queue, THEIRS)
    assert theirs.lock(name)
    assert site.kind.read(theirs.get(name)) == f"{OURS}-first.0"
    theirs.remove(name)
    assert not list(site.names())
