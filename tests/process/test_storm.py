"""
test_storm - kill -9 on every process of a pool and on its producers, again and again, on each filesystem

Two queues, six workers. A worker, a keeper, a feeder or an exporter is killed every 75 ms; the master, or the whole
pool, while it starts or within seconds after it has; a producer after some 20 messages. These are started anew at once.
The figures are printed. ORCHESTRATOR_STORM=5000 is a long run: so many messages on each filesystem.
ORCHESTRATOR_STORM_SEED=7 draws other victims and other messages; the moments are the machine's.
Long because: what is killed, and what must be left of it, are read together.

See also: storm (producers and handler), disks (the filesystems).
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path

import psutil
import pytest

from tests.process.disks import KINDS, Disk, mounted
from tests.process.pools import Pool, Pools, Series, files, signal_all
from tests.process.storm import BATCH, TORN
from tests.waiting import until
from workers import open_queue
from workers.board import Board, Header, Q
from workers.queues import names
from workers.queues.base import Settings

COUNT = int(os.environ.get("ORCHESTRATOR_STORM", "150"))
SEED = os.environ.get("ORCHESTRATOR_STORM_SEED", "1")
PRODUCERS = 2
WORKERS = {"first": 4, "second": 2}
MAX_ATTEMPTS, CRASH_LIMIT = 3, 3
KILL_S, SCRAPE_S, LOOK_S = 0.075, 0.3, 0.1
START_S, MASTER_LIVES_S = 10.0, (0.5, 1.5, 5.0)  # it must start in that time; lives at most so long after it
KILL_PRODUCER_AT = 20  # messages
STORM_S = 60 + COUNT * 0.1
# Keepers make a round every 0.2 s; nobody waits for a lease that is lost.
SETTINGS = Settings(create=True, lease_interval_s=0.4, lease_timeout_s=60, stale_after_s=600)
CALM_S = 40.0
COUNTED = ("_total", "_bucket", "_count", "_sum")
NOT_COUNTED = "_cpu_seconds_total"  # of one process: the next one's begins anew
# The queue and the attempt of each call that a message of a kind must see; the last two kinds end in errors/.
STEPS = {
    "plain": {"first 1"},
    "forward": {"first 1", "second 1"},
    "retry": {"first 1", "first 2"},
    "fail": {"first 1", "first 2"},
    "reject": {"first 1"},
    "hopeless": {f"first {attempt + 1}" for attempt in range(MAX_ATTEMPTS)},
}
UNFINISHED = ("incoming", "pending", "deferred")
PROBE = ".probe."
ROLES = ("worker", "keeper", "feeder", "exporter", "master", "pool", "producer")


@pytest.fixture(name="disk", params=KINDS)
def _disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    """An empty filesystem of each kind."""
    with mounted(request.param, tmp_path) as disk:
        yield disk


@dataclass(frozen=True, slots=True)
class Child:
    """
    A process of the pool, and how likely it is to be the next victim.

    A worker with a message in hand most of all. What is killed of the others comes back a second later.
    """

    role: str
    pid: int
    weight: int = 1


@dataclass(frozen=True, slots=True)
class Rejected:
    """A message in errors/ and what its .meta says."""

    mark: names.Marked
    reason: str

    @property
    def is_crashed(self) -> bool:
        """Whether the storm sent it there."""
        return self.mark.crashes >= CRASH_LIMIT

    def is_right(self, kind: str) -> bool:
        """Whether it belongs there, for that reason."""
        attempts, reason = self.mark.attempts, self.reason
        if self.is_crashed:
            return reason in ("", f"its worker died {self.mark.crashes} times with it in hand")
        if kind == "reject":
            return attempts == 1 and reason in ("", "not wanted")
        return kind == "hopeless" and attempts == MAX_ATTEMPTS and reason in ("", f"failed {MAX_ATTEMPTS} times")


@dataclass
class Storm:
    """A pool and its producers, all of which are killed and started anew."""

    pools: Pools
    disk: Disk
    dice: random.Random
    kills: Counter[str] = field(default_factory=Counter)
    scrapes: int = 0
    producers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _last: Series = field(default_factory=dict)
    _kill_master_s: float = 0.0
    _is_to_start: bool = True  # the master is killed when it has started, and not before
    _kill_producer_at: list[int] = field(default_factory=lambda: [KILL_PRODUCER_AT] * PRODUCERS)

    # ---- what runs

    def __post_init__(self) -> None:
        queues = [
            f'[[queue]]\nurl = "{self.disk.inside / name}"\nhandler = "tests.process.storm:handle"\n'
            f'workers = {workers}\nretry_backoff = "0.1s"\nretry_backoff_max = "0.5s"\n'
            f"max_attempts = {MAX_ATTEMPTS}\ncrash_limit = {CRASH_LIMIT}\n"
            for name, workers in WORKERS.items()
        ]
        self.config.write_text("\n".join(queues))
        self.start_master()
        self.producers = [self.start_producer(number) for number in range(PRODUCERS)]

    @property
    def config(self) -> Path:
        """The pool's file."""
        return self.pools.place / "pool.toml"

    @property
    def pool(self) -> Pool:
        """The one that runs now."""
        return self.pools.started[-1]

    def start_master(self, *words: str) -> None:
        """As a supervisor would."""
        self.pools.start("--config", str(self.config), *words, name="storm", listen="127.0.0.1:0")
        self._is_to_start = self.dice.random() < 0.6
        self._kill_master_s = time.monotonic() + (START_S if self._is_to_start else self.dice.random())
        self._last = {}

    def record(self, number: int) -> Path:
        """Where producer *number* writes down what it was answered."""
        return self.pools.place / f"accepted-{number}"

    def lines(self, number: int) -> list[str]:
        """Kind and name of each message that producer *number* was answered."""
        return self.record(number).read_text().splitlines() if self.record(number).exists() else []

    def start_producer(self, number: int) -> subprocess.Popen[bytes]:
        """Start it, or go on where it was killed."""
        words = [self.disk.inside / "first", self.record(number), COUNT // PRODUCERS, f"{SEED} {number}"]
        return subprocess.Popen(
            [*self.disk.enter, "-m", "tests.process.storm", *map(str, words)],
            stdin=subprocess.DEVNULL, env=self.pools.environment(),
        )  # fmt: skip

    def end_producers(self) -> None:
        """Leave none behind."""
        for producer in self.producers:
            producer.kill()
            producer.wait(30)

    # ---- what is killed

    def children(self) -> list[Child]:
        """Those that the board names."""
        pool = self.pool
        if not pool.status:
            return []
        board = Board.open(pool.board_path)
        words = board.header.words
        found = [Child("keeper", words[Header.KEEPER_PID]), Child("exporter", words[Header.EXPORTER_PID])]
        found += [Child("feeder", board.queues[number].words[Q.FEEDER_PID]) for number in board.queue_numbers()]
        found += [Child("worker", worker["pid"], 10 if worker["message"] else 1) for worker in pool.workers]
        return [one for one in found if one.pid and self.is_child(one.pid)]

    def is_child(self, pid: int) -> bool:
        """The board may name one that is gone, and its number be another's by now."""
        try:
            return psutil.Process(pid).ppid() == self.pool.process.pid
        except psutil.Error:
            return False

    def kill_child(self) -> None:
        """Kill one of them."""
        if children := self.children():
            (one,) = self.dice.choices(children, [one.weight for one in children])
            with suppress(ProcessLookupError):  # it was collected just now
                os.kill(one.pid, signal.SIGKILL)
                self.kills[one.role] += 1

    def kill_master(self, *words: str) -> None:
        """Kill it, and start the next one with *words*."""
        assert self.pool.process.poll() is None, f"the master ended by itself\n{self.pool.log}"
        assert self.pool.status is not None  # a last look: it opens the board, which is asked at the end
        # The master alone, or all of its pool as a control group is killed: then nobody is left to give claims back.
        role = self.dice.choice(("master", "pool"))
        signal_all(self.pool.everyone()[: 1 if role == "master" else None], signal.SIGKILL)
        self.pool.wait()
        self.kills[role] += 1
        self.start_master(*words)

    def kill_master_in_time(self) -> None:
        """Kill it when its time has come, which was drawn at its start or when it was ready."""
        now_s = time.monotonic()
        if self._is_to_start and self.pool.status.get("ready"):
            self._is_to_start = False
            self._kill_master_s = now_s + self.dice.choice(MASTER_LIVES_S) * self.dice.random()
        if now_s >= self._kill_master_s:
            self.kill_master()

    def kill_producers(self) -> None:
        """Kill those that have put enough since they were started."""
        for number, producer in enumerate(self.producers):
            accepted = len(self.lines(number))
            if accepted >= self._kill_producer_at[number] and producer.poll() is None:
                producer.kill()
                producer.wait(30)
                self.kills["producer"] += 1
                self._kill_producer_at[number] = accepted + self.dice.randrange(1, 2 * KILL_PRODUCER_AT)
                self.producers[number] = self.start_producer(number)

    def scrape(self) -> None:
        """Counters only rise as long as the master is the same."""
        now: Series = {}
        if self.pool.status:
            with suppress(OSError, HTTPException, ValueError):  # the exporter may be dead, or die over it
                now = self.pool.scrape(timeout_s=0.3)
        if now:
            self.scrapes += 1
            counted = {key for key in self._last if key[0].endswith(COUNTED) and not key[0].endswith(NOT_COUNTED)}
            fell = {key: (self._last[key], now.get(key)) for key in counted if now.get(key, -1) < self._last[key]}
            assert not fell, fell
            self._last = now

    def rage(self) -> None:
        """Kill until all is put, nothing is left to do, and each role had its share."""
        tasks = [
            every(KILL_S, self.kill_child), every(0.0, self.kill_master_in_time),
            every(KILL_S, self.kill_producers), every(SCRAPE_S, self.scrape),
        ]  # fmt: skip
        looks = every(LOOK_S, self.is_over)

        def is_over() -> bool:
            for task in tasks:
                task()
            return bool(looks())

        try:
            until(is_over, STORM_S)
        except AssertionError as error:
            left = [self.left(state) for state in UNFINISHED]
            codes = [producer.poll() for producer in self.producers]
            raise AssertionError(
                f"{error}\n{left}\n{codes}, {self.kills}\n{self.pool.queues}\n{self.pool.log}"
            ) from None

    def is_over(self) -> bool:
        """Whether the storm may end."""
        codes = [producer.poll() for producer in self.producers]
        assert not any(codes), codes
        if None in codes or not all(self.kills[role] for role in ROLES):
            return False
        # In the order in which messages move.
        return not any(self.left(state) for state in (*UNFINISHED, "incoming"))

    def calm(self) -> int:
        """Kill the master once more, and let the last one finish undisturbed; its exit code."""
        self.kill_master("--until-empty")
        return self.pool.wait(CALM_S)

    # ---- what is left of it

    def accepted(self) -> dict[str, str]:
        """Names that put() answered, and the kind of each."""
        lines = [line.split() for number in range(PRODUCERS) for line in self.lines(number)]
        return {name: kind for kind, name in lines}

    def journals(self) -> list[list[str]]:
        """What the workers wrote, process by process."""
        return [path.read_text().splitlines() for path in self.pools.journal_path.iterdir()]

    def rejected(self) -> list[Rejected]:
        """What lies in errors/ of both queues; the reason is empty where a kill left no .meta."""
        found = []
        for path in self.left("errors"):
            meta = path.with_name(f"{path.name}.meta")
            reason = json.loads(meta.read_text())["reason"] if meta.exists() else ""
            found.append(Rejected(names.parse(path.name), reason))
        return found

    def left(self, state: str) -> list[Path]:
        """The messages of a state, of both queues. A probe is none: a keeper that is killed as it opens leaves it."""
        found = [path for name in WORKERS for path in files(self.disk.path / name, state)]
        return [path for path in found if not path.name.startswith(PROBE)]

    def probes(self) -> int:
        """How many probes lie about."""
        return sum(len(list((self.disk.path / name).rglob(f"{PROBE}*"))) for name in WORKERS)


def every(seconds: float, do: Callable[[], bool | None]) -> Callable[[], bool | None]:
    """What calls *do* at most so often."""
    due_s = time.monotonic() + seconds

    def look() -> bool | None:
        nonlocal due_s
        if time.monotonic() < due_s:
            return None
        due_s = time.monotonic() + seconds
        return do()

    return look


@pytest.mark.timeout(STORM_S + 90)
def test_a_storm_of_kills_loses_nothing(pools: Pools, disk: Disk) -> None:
    """
    All that was accepted is handled or in errors/ for its reason; twice only what a dead process had in hand.
    """
    pools.prefix = disk.enter
    for name in WORKERS:
        open_queue(str(disk.path / name), settings=SETTINGS).close()
    started_s = time.monotonic()
    storm = Storm(pools, disk, random.Random(f"{SEED} {disk.kind}"))  # noqa: S311 - to be repeated
    try:
        storm.rage()
    finally:
        storm.end_producers()
    assert storm.calm() in (0, 4), storm.pool.log
    took_s = time.monotonic() - started_s

    kills, accepted, rejected, journals = storm.kills, storm.accepted(), storm.rejected(), storm.journals()
    calls = Counter(line for lines in journals for line in lines)
    kinds, steps = dict(accepted), {name: set[str]() for name in accepted}
    for line in calls:
        step, kind, name = line.rsplit(" ", 2)
        kinds.setdefault(name, kind)
        steps.setdefault(name, set()).add(step)
    again = {line: times - 1 for line, times in calls.items() if times > 1}
    in_errors = {one.mark.name for one in rejected}
    crashed = {one.mark.name for one in rejected if one.is_crashed}
    masters = kills["master"] + kills["pool"]
    killed_with_workers = kills["worker"] + masters * sum(WORKERS.values())
    done = sum(pool.outcome("done") for pool in pools.started)
    finished = sum(name not in in_errors for name in steps)
    temporary = storm.left("tmp")
    print(  # noqa: T201 - the figures
        f"\n{disk.kind}, seed {SEED}: {len(accepted)} accepted and {len(steps.keys() - accepted)} more handled in"
        f" {took_s:.1f} s, {calls.total()} calls, {sum(again.values())} of them doubles; killed"
        f" {', '.join(f'{kills[role]} {role}s' for role in ROLES)}; errors/: {len(in_errors - crashed)} by the handler,"
        f" {len(crashed)} at the crash limit, {sum(not one.reason for one in rejected)} without .meta;"
        f" tmp/: {len(temporary)}, {storm.probes()} probes; {storm.scrapes} scrapes,"
        f" {finished - done} finished and not counted"
    )

    assert len(accepted) >= COUNT
    # Never half visible.
    assert TORN not in kinds.values()
    # Never lost: each saw every step of its kind, but where the crash limit cut it short. A crash is no attempt.
    wrong = {
        name: (kinds[name], found)
        for name, found in steps.items()
        if not (found <= STEPS[kinds[name]] if name in crashed else found == STEPS[kinds[name]])
    }
    assert not wrong, wrong
    # In errors/ once, with the right reason, and nothing else is there.
    assert len(in_errors) == len(rejected)
    assert {name for name, kind in kinds.items() if kind in ("reject", "hopeless")} <= in_errors
    assert not [one for one in rejected if not one.is_right(kinds.get(one.mark.name, ""))]
    # Twice only what a process that was killed had in hand: the last that it wrote.
    last = Counter(lines[-1] for lines in journals if lines)
    assert not {line for line, times in again.items() if last[line] < times}, again
    assert sum(again.values()) <= killed_with_workers
    # Settled once: a kill may come between the settle and its count, and that is all.
    assert finished - killed_with_workers <= done <= finished
    # Nothing is left.
    assert not [path for state in UNFINISHED for path in storm.left(state)]
    assert not [path for name in WORKERS for path in (disk.path / name / "pending").iterdir() if path.is_dir()]
    assert all(names.is_ours(path.name) for path in temporary), temporary
    assert len(temporary) <= kills.total() + BATCH * kills["producer"]
    assert len(storm.left(".pool/leases")) <= masters * len(WORKERS)  # of those who had no time to take them away
    logs = "\n".join(pool.log for pool in pools.started)
    assert "Traceback" not in logs, logs
    assert "fenced" not in logs, logs
