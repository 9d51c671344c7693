"""
test_ddmq_pools - pools on a ddmq queue, while the original and our library work on the same queue

A pool with three workers, two processes of the original and one of our library publish and consume; a worker, the
keeper, the master with all of its pool, or our library's process is killed every 75 ms and started again. Who published
what, and who finished it, is told as in beside_ddmq. The figures are printed.
ORCHESTRATOR_BESIDE=50000 is the full run.

What becomes of a message is told by the number of its identity, see wish() of test_dirq_pools. A claim of which nobody
knows, for who had it was killed, expires: at the end all get the time of long ago.
Long because: who is killed, what the handler does and how each message ended are read together.

See also: beside_ddmq, test_dirq_pools (the same for dirq), tests/contract (what all queues do).
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.process import handlers
from tests.process.beside_ddmq import (
    OURS,
    QUEUE,
    THEIRS,
    TORN,
    Accounts,
    Cast,
    Site,
    accounts,
    consume,
    original,
    put_all,
    read,
    supply,
)
from tests.process.pools import Pool, Pools, process, signal_all
from tests.process.test_dirq_pools import CRASH_LIMIT, DEATHS, DIE, HANDLE, MAX_ATTEMPTS, ROLES, WORKERS, beside, wish
from tests.waiting import until
from workers import Message
from workers.board import Header

COUNT = int(os.environ.get("ORCHESTRATOR_BESIDE", "240"))
SEED = os.environ.get("ORCHESTRATOR_BESIDE_SEED", "1")
KILL_S = 0.075
KILLS_MAX = COUNT // 2
STORM_S, CALM_S = 60 + COUNT * 0.05, 60.0
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


def start(pools: Pools, site: Site, *words: str, handler: str = HANDLE, **more: object) -> Pool:
    """Start a pool on the queue of *site*."""
    options = {
        "url": f"ddmq:{site.queue}",
        "handler": handler,
        "workers": WORKERS,
        "max_attempts": MAX_ATTEMPTS,
        "crash_limit": CRASH_LIMIT,
        "retry_backoff": "0.1s",
        "retry_backoff_max": "0.2s",
        **more,
    }
    config = pools.place / "pool.toml"
    config.write_text("[[queue]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in options.items()))
    return pools.start("--config", str(config), *words, name="pool")


def in_errors(site: Site) -> dict[str, str]:
    """The identities in errors/, and the reason that .meta gives."""
    found = {}
    for path in beside(site, "errors"):
        meta = path.with_name(f"{path.name}.meta")
        identity = read(json.loads(path.read_bytes())["message"])
        assert identity not in found
        found[identity] = json.loads(meta.read_text())["reason"] if meta.exists() else ""
    return found


@dataclass
class Storm:
    """A pool and the others, of whom ours are killed."""

    pools: Pools
    site: Site
    cast: Cast
    kills: Counter[str] = field(default_factory=Counter)
    orphans: int = 0  # claims of the killed that nobody knew of
    _due_s: float = 0.0

    def rage(self, publishers: int) -> None:
        """Kill until all is published and finished, and each had its share; then end all."""
        start(self.pools, self.site).ready()
        try:
            until(lambda: self._look(publishers), STORM_S)
        except AssertionError as error:
            left = [self.site.names(), self.site.claims(), beside(self.site, "deferred"), os.listdir(self.site.ready)]
            pool = self.pools.started[-1]
            raise AssertionError(f"{error}\n{left}\n{self.kills}\n{pool.status}\n{pool.log}") from None
        self.cast.join(30)
        assert self.pools.started[-1].ready().end() in (0, 4), self.pools.started[-1].log
        self.orphans = len(self.site.claims())
        self.site.age_all()
        assert start(self.pools, self.site, "--until-empty").wait(CALM_S) in (0, 4), self.pools.started[-1].log

    def _look(self, publishers: int) -> bool:
        pool, site = self.pools.started[-1], self.site
        assert pool.process.poll() is None, pool.log
        is_over = self.kills.total() >= KILLS_MAX and all(self.kills[role] for role in ROLES)
        if pool.status.get("ready") and time.monotonic() >= self._due_s and not is_over:
            self._due_s = time.monotonic() + KILL_S * 2 * self.cast.dice.random()
            self._kill(pool)
        if len(os.listdir(site.ready)) < publishers or not all(self.kills[role] for role in ROLES):
            return False
        # In the order in which messages move.
        return not (site.names() or site.expired() or beside(site, "deferred") or site.names())

    def _kill(self, pool: Pool) -> None:
        (role,) = self.cast.dice.choices(tuple(ROLES), tuple(ROLES.values()))
        self.kills[role] += 1
        match role:
            case "master" | "pool":
                signal_all(pool.everyone()[: 1 if role == "master" else None], signal.SIGKILL)
                pool.wait()
                start(self.pools, self.site)
            case "library":
                self.cast.kill(f"{OURS}-0")
            case "keeper":
                signal_all([pool.service(Header.KEEPER_PID)], signal.SIGKILL)
            case "worker":
                # With a message in hand: who dies young and idle is not soon replaced.
                busy = [process(worker["pid"]) for worker in pool.workers if worker["message"]]
                signal_all(self.cast.dice.sample(busy, min(1, len(busy))), signal.SIGKILL)


@dataclass
class Ended:
    """How each message ended, by its identity."""

    told: Accounts
    done: Counter[str]  # by workers, as often as one said so
    errors: dict[str, str]  # and the reason
    killed_with: set[str]  # the last that a worker or the library had in hand

    @classmethod
    def of(cls, pools: Pools, site: Site) -> Ended:
        """Read all that was written down."""
        told = accounts(site)
        lines = [path.read_text().splitlines() for path in pools.journal_path.iterdir()]
        last = {one[-1].split()[1] for one in lines}
        return cls(
            told, Counter(line.split()[1] for one in lines for line in one), in_errors(site), last | told.excused
        )

    @property
    def times(self) -> Counter[str]:
        """How often each ended."""
        return self.done + Counter(self.errors.keys()) + self.told.got

    @property
    def wrong_errors(self) -> dict[str, str]:
        """What is in errors/ for another reason than its wish, or the deaths of those who had it in hand."""
        right = {"reject": "not wanted", "hopeless": f"failed {MAX_ATTEMPTS} times"}
        return {
            identity: reason
            for identity, reason in self.errors.items()
            if reason not in ("", right.get(wish(identity))) and not DEATHS.match(reason)
        }


@pytest.mark.timeout(STORM_S + CALM_S + 60)
def test_a_pool_beside_the_original_finishes_each_message_once_under_kills(
    pools: Pools, site: Site, cast: Cast
) -> None:
    """More often only what a process that was killed had in hand: the last that it wrote."""
    original()
    started_s = time.monotonic()
    storm = Storm(pools, site, cast)
    publishers = (f"{OURS}-0", f"{THEIRS}-0", f"{THEIRS}-1")
    for who in publishers:
        cast.start(who, supply, COUNT // len(publishers))
    storm.rage(len(publishers))
    took_s = time.monotonic() - started_s

    ended = Ended.of(pools, site)
    told, times, kills = ended.told, ended.times, storm.kills
    again = {identity: count - 1 for identity, count in times.items() if count > 1}
    counted = sum(pool.outcome("done") for pool in pools.started)
    print(  # noqa: T201 - the figures
        f"\n{len(told.accepted)} accepted, {len(told.begun)} begun; done {ended.done.total()} by workers,"
        f" {dict(told.got_by)} by libraries, {len(ended.errors)} in errors/; {sum(again.values())} doubles; killed"
        f" {dict(kills)}; {storm.orphans} orphans; {counted} counted as done;"
        f" the original failed {dict(told.failed)}; {took_s:.1f} s"
    )
    # Never half visible, never lost, and nothing that nobody published.
    assert TORN not in times
    assert not told.strangers
    assert set(told.accepted) <= set(times) <= told.begun
    assert set(again) <= ended.killed_with, again
    assert sum(again.values()) <= kills.total() + WORKERS * (kills["master"] + kills["pool"])
    assert not told.steps.get("fenced")
    assert ended.done
    assert not ended.wrong_errors
    # It was known what workers held; of the library, and of what a keeper was giving back, not always.
    # A library's process that is killed leaves what it had until that expires; so may a keeper killed in a release.
    assert storm.orphans <= 1 + kills["library"] + kills["keeper"]
    # Settled once: a kill may come between the handler's line, the settle and its count.
    killed_with_workers = kills["worker"] + (kills["master"] + kills["pool"]) * WORKERS
    assert ended.done.total() - killed_with_workers <= counted <= ended.done.total()
    # Nothing is left.
    assert not site.names()
    assert not site.claims()
    assert not [path for state in ("deferred", "held") for path in beside(site, state)]
    logs = "\n".join(pool.log for pool in pools.started)
    assert "given to another" not in logs, logs
    assert "Traceback" not in logs, logs


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
    assert pools.run("requeue", f"ddmq:{site.queue}", waiting.partition(".")[2])[0] == 0
    assert site.names() == [waiting]
    assert (site.queue / waiting).read_bytes() == body
    taken = site.broker(THEIRS).consume(QUEUE, clean=False)
    assert read(taken.message) == f"{OURS}-first.0"
