"""
test_ddmq_pools - pools on a ddmq queue, while the original and our library work on the same queue

A pool with three workers, two processes of the original and one of our library publish and consume, and ours are
killed, see beside_pools. Who published what, and who finished it, is told as in beside_ddmq. The figures are printed.
ORCHESTRATOR_BESIDE=50000 is the full run.

A claim of which nobody knows, for who had it was killed, expires: at the end all get the time of long ago.

See also: beside_pools, beside_ddmq, test_dirq_pools (the same for dirq), tests/contract (what all queues do).
"""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.process import handlers
from tests.process.beside import OURS, THEIRS
from tests.process.beside_ddmq import QUEUE, Cast, Site, accounts, consume, original, put_all, read, supply
from tests.process.beside_pools import (
    CALM_S,
    COUNT,
    CRASH_LIMIT,
    DIE,
    SEED,
    STORM_S,
    WORKERS,
    Ended,
    Storm,
    check,
    in_errors,
    start,
)
from tests.process.pools import Pools, process, signal_all
from workers import Message

LASTS_S = 10  # the shortest claim that a pool takes
WRITE = "tests.process.test_ddmq_pools:write"


@pytest.fixture(name="site")
def _site(tmp_path: Path) -> Site:
    """A place for a root, with an empty queue."""
    site = Site(tmp_path / "root", tmp_path / "told")
    site.broker(OURS).create_queue(QUEUE)
    return site


@pytest.fixture(name="cast")
def _cast(site: Site) -> Iterator[Cast]:
    """Actors at that place."""
    cast = Cast(site, random.Random(SEED))  # noqa: S311 - to be repeated
    try:
        yield cast
    finally:
        cast.end()


def write(message: Message) -> None:
    """Write down what was given."""
    handlers.write(message.body.decode())


class DdmqStorm(Storm):
    """See Storm."""

    site: Site

    def claimed(self) -> list[str]:
        """See Storm.claimed."""
        return self.site.claims()

    def has_more(self) -> bool:
        """See Storm.has_more."""
        return bool(self.site.names() or self.site.expired())


@pytest.mark.timeout(STORM_S + CALM_S + 60)
def test_a_pool_beside_the_original_finishes_each_message_once_under_kills(
    pools: Pools, site: Site, cast: Cast
) -> None:
    """More often only what a process that was killed had in hand: the last that it wrote."""
    original()
    started_s = time.monotonic()
    storm = DdmqStorm(pools, site, cast)
    publishers = (f"{OURS}-0", f"{THEIRS}-0", f"{THEIRS}-1")
    for who in publishers:
        cast.start(who, supply, COUNT // len(publishers))
    storm.rage(len(publishers))

    told, kills = accounts(site), storm.kills
    ended = Ended.of(pools, site, told.got, told.excused)
    check(storm, ended, told, started_s)
    assert sum(ended.again.values()) <= kills.total() + WORKERS * (kills["master"] + kills["pool"])
    assert not told.steps.get("fenced")
    assert ended.done
    # It was known what workers held; of the library, and of what a keeper was giving back, not always.
    # A library's process that is killed leaves what it had until that expires; so may a keeper killed in a release.
    assert storm.orphans <= 1 + kills["library"] + kills["keeper"]
    assert not site.claims()


@pytest.mark.timeout(60)
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_Q4_one_worker_is_given_what_both_have_published_by_priority_with_0_first(pools: Pools, site: Site) -> None:
    published = []
    for side in (THEIRS, OURS):
        broker = site.broker(side)
        for priority in (1000, 100, 9, 999, 10, *([0] if side == OURS else [])):
            broker.publish(QUEUE, f"{priority} {side}", priority=priority, clean=False)
            published.append(f"{priority} {side}")
    assert start(pools, site, "--until-empty", handler=WRITE, workers=1).wait() == 0
    # Of one priority as they were published.
    assert pools.journal() == sorted(published, key=lambda line: int(line.split()[0]))
    assert pools.journal()[0] == f"0 {OURS}"


@pytest.mark.parametrize("role", ["worker", "pool"])
def test_what_a_killed_worker_had_in_hand_is_handled_long_before_it_expires(
    pools: Pools, site: Site, role: str
) -> None:
    """By another of its pool, or by the next pool; its claim would last for ten minutes."""
    site.broker(OURS).publish(QUEUE, "a text")
    pools.hold.touch()
    pool = start(pools, site, workers=1, handler="tests.process.handlers:hold").ready()
    pool.until(pools.journal)
    killed = [process(pid) for pid in pool.pids] if role == "worker" else pool.everyone()
    signal_all(killed, signal.SIGKILL)
    if role == "pool":
        pool.wait()
        pool = start(pools, site, workers=1, handler="tests.process.handlers:hold")
    pools.hold.unlink()
    pool.until(lambda: not (site.names() or site.claims()))
    assert pool.end() == 0
    assert Counter(line.split()[0] for line in pools.journal()) == {"holds": 2, "handled": 1}


@pytest.mark.timeout(90)
def test_a_long_message_is_touched_and_stays_its_workers_while_all_clean_and_consume(
    pools: Pools, site: Site, cast: Cast
) -> None:
    """It is held for half as long again as a claim lasts."""
    original()
    site.broker(OURS).update_settings_file(QUEUE, {"message_timeout": LASTS_S})
    site.broker(OURS).publish(QUEUE, "a long one", requeue=True)
    pools.hold.touch()
    pool = start(pools, site, workers=1, handler="tests.process.handlers:hold").ready()
    pool.until(pools.journal)
    for side in (OURS, THEIRS):
        cast.start(f"{side}-consume", consume, 0.0)
    (claim,) = site.claims()
    first = int(claim.partition(".")[0])
    pool.until(lambda: time.time() > first + LASTS_S // 2, 40)
    later = max(pool.until(site.claims))
    assert later.partition(".")[2] == claim.partition(".")[2]
    assert int(later.partition(".")[0]) > first + LASTS_S // 2
    pools.hold.unlink()
    pool.until(lambda: not site.claims())
    cast.join(10)
    assert pool.end() == 0
    assert [line.split()[0] for line in pools.journal()] == ["holds", "handled"]
    assert not accounts(site).taken
    assert pool.outcome("done") == 1


def test_what_kills_its_workers_ends_in_errors_and_what_is_requeued_the_original_can_take(
    pools: Pools, site: Site
) -> None:
    """The message comes back as it was, under its own name."""
    original()
    put_all(site, 1)
    (waiting,) = site.names()
    body = (site.queue / waiting).read_bytes()
    pool = start(pools, site, workers=1, handler=DIE)
    pool.until(lambda: list(in_errors(site).values()) == [f"its worker died {CRASH_LIMIT} times with it in hand"])
    assert pool.end() == 0
    assert pools.run("requeue", site.url, waiting.partition(".")[2])[0] == 0
    assert site.names() == [waiting]
    assert (site.queue / waiting).read_bytes() == body
    taken = site.broker(THEIRS).consume(QUEUE, clean=False)
    assert read(taken.message) == f"{OURS}-first.0"
