"""
test_dirq_pools - pools on directory queues, while the original dirq and our library work on the same directory

A pool with three workers, two processes of the original and one of our library add, take and purge; a worker, the
keeper, the master with all of its pool, or our library's process is killed every 75 ms and started again. Who added
what, and who finished it, is told as in beside_dirq. The figures are printed.
ORCHESTRATOR_BESIDE=50000 is the full run.

What becomes of an element is told by the number of its identity, see wish(). A lock that was taken and not yet
recorded when its worker was killed stays until it is stale: at the end all get the time of hours ago.
Long because: who is killed, what the handler does and how each element ended are read together.

See also: beside_dirq, test_storm (the same for the spool), tests/contract (what all queues do).
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.process import handlers
from tests.process.beside_dirq import (
    KINDS,
    LIMITS,
    OURS,
    THEIRS,
    TORN,
    Accounts,
    Actor,
    Cast,
    Site,
    accounts,
    purge,
    site_on,
    supply,
    text_of,
    work,
)
from tests.process.pools import Pool, Pools, process, signal_all
from tests.waiting import until
from workers import Message, Reject, Retry
from workers.board import Header

COUNT = int(os.environ.get("ORCHESTRATOR_BESIDE", "240"))
SEED = os.environ.get("ORCHESTRATOR_BESIDE_SEED", "1")
HANDLE, DIE = (f"tests.process.test_dirq_pools:{name}" for name in ("handle", "die"))
WORKERS, MAX_ATTEMPTS, CRASH_LIMIT = 3, 3, 3
KILL_S = 0.075
KILLS_MAX = COUNT // 2  # where a pool takes long to start, it would be killed before it does anything, for ever
ROLES = {"worker": 10, "library": 2, "keeper": 1, "master": 1, "pool": 1}  # how likely each is the next to be killed
DEATHS = re.compile(r"its (worker died|holder was gone) [0-9]+ times")
HANDLING_S = 0.003  # before the line, and once more after it
STORM_S, CALM_S = 60 + COUNT * 0.05, 60.0
STALE_S = 2
URLS = {"simple": "dirq-simple:{}?granularity=1", "normal": "dirq:{}?schema=body:string,header:table?&maxelts=50"}


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


# ---- what our workers do


def wish(identity: str) -> str:
    """What is to become of the element with that identity, when ours get it."""
    number = int(identity.rpartition(".")[2]) % 20
    return {0: "retry", 1: "fail", 2: "reject", 3: "hopeless"}.get(number, "plain")


def read(body: bytes) -> str:
    """The identity in a body, TORN when it is not all of it."""
    identity = body.partition(b"\n")[0].decode("ascii", "replace")
    return identity if body == text_of(identity).encode() else TORN


def handle(message: Message) -> Retry | Reject | None:
    """Do as the identity wishes, and write down what was done for good."""
    identity = read(message.body)
    match wish(identity) if identity != TORN else TORN:
        case "retry" if message.attempt == 1:
            return Retry(after_s=0)
        case "fail" if message.attempt == 1:
            raise LookupError("asked to fail once")
        case "hopeless":
            raise LookupError("asked to fail always")
        case "reject":
            return Reject("not wanted")
    threading.Event().wait(HANDLING_S)  # it stands for work, nothing is waited for
    handlers.write(f"done {identity} {message.name}")
    threading.Event().wait(HANDLING_S)
    return None


def die(message: Message) -> None:
    """Be killed by it."""
    os.kill(os.getpid(), signal.SIGKILL)


# ---- a pool


def start(pools: Pools, site: Site, *words: str, handler: str = HANDLE, **more: object) -> Pool:
    """Start a pool on the queue of *site*."""
    options = {
        "url": URLS[site.kind.name].format(site.queue),
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


def beside(site: Site, state: str) -> list[Path]:
    """What the pool keeps in *state*, .meta left out."""
    place = site.queue.with_name(f"{site.queue.name}.pool") / state
    return sorted(path for path in place.iterdir() if not path.name.endswith(".meta")) if place.is_dir() else []


def in_errors(site: Site) -> dict[str, str]:
    """The identities in errors/, and the reason that .meta gives."""
    found = {}
    for path in beside(site, "errors"):
        meta = path.with_name(f"{path.name}.meta")
        body = path if path.is_file() else path / "body"
        identity = read(body.read_bytes())
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
    orphans: int = 0  # locks of the killed that nobody knew of
    _due_s: float = 0.0

    def rage(self, actors: int) -> None:
        """Kill until all is added and finished, and each had its share; then end all."""
        start(self.pools, self.site).ready()
        try:
            until(lambda: self._look(actors), STORM_S)
        except AssertionError as error:
            left = [list(self.site.names()), beside(self.site, "deferred"), os.listdir(self.site.ready)]
            pool = self.pools.started[-1]
            raise AssertionError(f"{error}\n{left}\n{self.kills}\n{pool.status}\n{pool.log}") from None
        self.cast.join(30)
        assert self.pools.started[-1].ready().end() in (0, 4), self.pools.started[-1].log
        self.orphans = len(list(self.site.names()))
        self.site.age_all()
        assert start(self.pools, self.site, "--until-empty").wait(CALM_S) in (0, 4), self.pools.started[-1].log

    def _look(self, actors: int) -> bool:
        pool, site = self.pools.started[-1], self.site
        assert pool.process.poll() is None, pool.log
        is_over = self.kills.total() >= KILLS_MAX and all(self.kills[role] for role in ROLES)
        if pool.status.get("ready") and time.monotonic() >= self._due_s and not is_over:
            self._due_s = time.monotonic() + KILL_S * 2 * self.cast.dice.random()
            self._kill(pool)
        if len(os.listdir(site.ready)) < actors or not all(self.kills[role] for role in ROLES):
            return False
        # In the order in which messages move.
        return not (site.has_waiting() or beside(site, "deferred") or site.has_waiting())

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
    """How each element ended, by its identity."""

    told: Accounts
    done: Counter[str]  # by workers, as often as one said so
    errors: dict[str, str]  # and the reason
    killed_with: set[str]  # the last that a worker or a library had in hand

    @classmethod
    def of(cls, pools: Pools, site: Site) -> Ended:
        """Read all that was written down."""
        told = accounts(site)
        lines = [path.read_text().splitlines() for path in pools.journal_path.iterdir()]
        last = {one[-1].split()[1] for one in lines}
        held = {identity for name in told.excused for identity in told.found.get(name, ())}
        done = Counter(line.split()[1] for one in lines for line in one)
        return cls(told, done, in_errors(site), last | held)

    @property
    def times(self) -> Counter[str]:
        """How often each ended."""
        found = self.done + Counter(self.errors.keys())
        for name, times in self.told.got.items():
            found.update(dict.fromkeys(self.told.found[name], times))
        return found

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
@pytest.mark.parametrize("site", EVERYWHERE, indirect=True)
def test_a_pool_beside_the_original_finishes_each_element_once_under_kills(
    pools: Pools, site: Site, cast: Cast
) -> None:
    """More often only what a process that was killed had in hand: the last that it wrote."""
    started_s = time.monotonic()
    site.kind.open(site.queue, OURS)
    storm = Storm(pools, site, cast)
    actors = (f"{OURS}-0", f"{THEIRS}-0", f"{THEIRS}-1")
    for who in actors:
        cast.start(who, supply, COUNT // len(actors))
    cast.start(f"{THEIRS}-purge", purge, LIMITS)
    cast.start(f"{THEIRS}-purge-locks", purge, {**LIMITS, "maxtemp": 0})
    storm.rage(len(actors))
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
    # Never half visible, never lost, and nothing that nobody added.
    assert TORN not in times
    assert not told.strangers
    assert set(told.accepted) <= set(times) <= told.begun
    assert set(again) <= ended.killed_with, again
    assert set(told.steps.get("fenced", ())) <= told.excused
    assert not ended.wrong_errors
    # Mostly it was known what they held.
    assert storm.orphans <= 1 + kills["worker"] // 4
    # Settled once: a kill may come between the handler's line, the settle and its count.
    killed_with_workers = kills["worker"] + (kills["master"] + kills["pool"]) * WORKERS
    assert ended.done.total() - killed_with_workers <= counted <= ended.done.total()
    # Nothing is left.
    assert not list(site.names())
    assert not [path for state in ("deferred", "held") for path in beside(site, state)]
    # Counts of what a library took, which knows of none, or of what one was killed with, go when they are stale.
    counts = {path.name.replace(".", "/") for path in beside(site, "counts")}
    assert len(counts - set(told.got)) <= killed_with_workers
    logs = "\n".join(pool.log for pool in pools.started)
    assert "given to another" not in logs, logs
    assert "Traceback" not in logs, logs


@pytest.mark.timeout(60)
@pytest.mark.parametrize("site", HERE, indirect=True)
def test_a_long_message_is_touched_and_stays_its_workers_while_both_libraries_purge(
    pools: Pools, site: Site, cast: Cast
) -> None:
    """It is held for three times as long as a lock may be old."""
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
    pool.until(lambda: lock.stat().st_mtime > began_s + 3 * STALE_S, 30)
    assert site.kind.is_locked(site.queue, name)
    pools.hold.unlink()
    pool.until(lambda: not list(site.names()))
    cast.join(10)
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
    assert pools.run("requeue", URLS[site.kind.name].format(site.queue), name)[0] == 0
    assert list(site.names()) == [name]
    theirs: Any = site.kind.open(site.queue, THEIRS)
    assert theirs.lock(name)
    assert site.kind.read(theirs.get(name)) == f"{OURS}-first.0"
    theirs.remove(name)
    assert not list(site.names())
