"""
beside_pools - a pool beside an original and our library on one queue, under kills: what all such queues share

A worker, the keeper, the master with all of its pool, or our library's process is killed every 75 ms and started again.
What becomes of a message is told by the number of its identity, see wish().

See also: beside (the other processes), test_dirq_pools, test_ddmq_pools, pools (the pool).
"""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.process import beside, handlers
from tests.process.beside import OURS, TORN, identity_in
from tests.process.pools import Pool, Pools, process, signal_all
from tests.waiting import until
from workers import Message, Reject, Retry
from workers.board import Header

COUNT = int(os.environ.get("ORCHESTRATOR_BESIDE", "240"))
SEED = os.environ.get("ORCHESTRATOR_BESIDE_SEED", "1")
HANDLE, DIE = (f"tests.process.beside_pools:{name}" for name in ("handle", "die"))
WORKERS, MAX_ATTEMPTS, CRASH_LIMIT = 3, 3, 3
KILL_S = 0.075
KILLS_MAX = COUNT // 2  # where a pool takes long to start, it would be killed before it does anything, for ever
ROLES = {"worker": 10, "library": 2, "keeper": 1, "master": 1, "pool": 1}  # how likely each is the next to be killed
DEATHS = re.compile(r"its (worker died|holder was gone) [0-9]+ times")
HANDLING_S = 0.003  # before the line, and once more after it
STORM_S, CALM_S = 60 + COUNT * 0.05, 60.0


# ---- what our workers do


def wish(identity: str) -> str:
    """What is to become of the message with that identity, when ours get it."""
    number = int(identity.rpartition(".")[2]) % 20
    return {0: "retry", 1: "fail", 2: "reject", 3: "hopeless"}.get(number, "plain")


def handle(message: Message) -> Retry | Reject | None:
    """Do as the identity wishes, and write down what was done for good."""
    identity = identity_in(message.body.decode("utf-8", "replace"))
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


def start(pools: Pools, site: Any, *words: str, handler: str = HANDLE, **more: object) -> Pool:
    """Start a pool on the queue of *site*."""
    options = {
        "url": site.url,
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


def kept(site: Any, state: str) -> list[Path]:
    """What the pool keeps in *state* beside the queue; .meta, and what a keeper tried the place with, left out."""
    place = site.queue.with_name(f"{site.queue.name}.pool") / state
    found = place.iterdir() if place.is_dir() else ()
    return sorted(path for path in found if not path.name.endswith(".meta") and path.name[0] != ".")


def in_errors(site: Any) -> dict[str, str]:
    """The identities in errors/, and the reason that .meta gives."""
    found = {}
    for path in kept(site, "errors"):
        meta = path.with_name(f"{path.name}.meta")
        identity = site.identity_of(path)
        assert identity not in found
        found[identity] = json.loads(meta.read_text())["reason"] if meta.exists() else ""
    return found


@dataclass
class Storm(ABC):
    """A pool and the others, of whom ours are killed."""

    pools: Pools
    site: Any
    cast: beside.Cast
    kills: Counter[str] = field(default_factory=Counter)
    orphans: int = 0  # claims of the killed that nobody knew of
    _due_s: float = 0.0

    @abstractmethod
    def claimed(self) -> Sequence[str]:
        """What is in somebody's hand, when none waits."""

    @abstractmethod
    def has_more(self) -> bool:
        """Whether somebody could take a message, now or when it is given back."""

    def rage(self, actors: int) -> None:
        """Kill until all is entered and finished, and each had its share; then end all."""
        start(self.pools, self.site).ready()
        try:
            until(lambda: self._look(actors), STORM_S)
        except AssertionError as error:
            left = [list(self.site.names()), self.claimed(), kept(self.site, "deferred"), os.listdir(self.site.ready)]
            pool = self.pools.started[-1]
            raise AssertionError(f"{error}\n{left}\n{self.kills}\n{pool.status}\n{pool.log}") from None
        self.cast.join(30)
        assert self.pools.started[-1].ready().end() in (0, 4), self.pools.started[-1].log
        self.orphans = len(self.claimed())
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
        return not (self.has_more() or kept(site, "deferred") or self.has_more())

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

    @property
    def killed_with_workers(self) -> int:
        """How many workers were killed, at most."""
        return self.kills["worker"] + (self.kills["master"] + self.kills["pool"]) * WORKERS


@dataclass
class Ended:
    """How each message ended, by its identity."""

    done: Counter[str]  # by workers, as often as one said so
    errors: dict[str, str]  # and the reason
    got: Counter[str]  # by libraries
    killed_with: set[str]  # the last that a worker or a library had in hand

    @classmethod
    def of(cls, pools: Pools, site: Any, got: Counter[str], held: Collection[str]) -> Ended:
        """Read what workers have written down; libraries got *got*, and *held* were in the hand of those killed."""
        lines = [path.read_text().splitlines() for path in pools.journal_path.iterdir()]
        done = Counter(line.split()[1] for one in lines for line in one)
        return cls(done, in_errors(site), got, {one[-1].split()[1] for one in lines} | set(held))

    @property
    def times(self) -> Counter[str]:
        """How often each ended."""
        return self.done + Counter(self.errors.keys()) + self.got

    @property
    def again(self) -> dict[str, int]:
        """How often too many, of those that ended more often than once."""
        return {identity: count - 1 for identity, count in self.times.items() if count > 1}

    @property
    def wrong_errors(self) -> dict[str, str]:
        """What is in errors/ for another reason than its wish, or the deaths of those who had it in hand."""
        right = {"reject": "not wanted", "hopeless": f"failed {MAX_ATTEMPTS} times"}
        return {
            identity: reason
            for identity, reason in self.errors.items()
            if reason not in ("", right.get(wish(identity))) and not DEATHS.match(reason)
        }


def check(storm: Storm, ended: Ended, told: Any, started_s: float) -> None:
    """Print the figures of a storm, and say whether each message that was accepted has ended, and as it should."""
    counted = sum(pool.outcome("done") for pool in storm.pools.started)
    print(  # noqa: T201 - the figures
        f"\n{len(told.accepted)} accepted, {len(told.begun)} begun; done {ended.done.total()} by workers,"
        f" {dict(told.got_by)} by libraries, {len(ended.errors)} in errors/; {sum(ended.again.values())} doubles;"
        f" killed {dict(storm.kills)}; {storm.orphans} orphans; {counted} counted as done;"
        f" the original failed {dict(told.failed)}; {time.monotonic() - started_s:.1f} s"
    )
    # Never half visible, never lost, and nothing that nobody entered.
    assert TORN not in ended.times
    assert not told.strangers
    assert set(told.accepted) <= set(ended.times) <= told.begun
    assert set(ended.again) <= ended.killed_with, ended.again
    assert not ended.wrong_errors
    # Settled once: a kill may come between the handler's line, the settle and its count.
    assert ended.done.total() - storm.killed_with_workers <= counted <= ended.done.total()
    # Nothing is left.
    assert not list(storm.site.names())
    assert not [path for state in ("deferred", "held") for path in kept(storm.site, state)]
    logs = "\n".join(pool.log for pool in storm.pools.started)
    assert "given to another" not in logs, logs
    assert "Traceback" not in logs, logs
