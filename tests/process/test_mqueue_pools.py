"""
test_mqueue_pools - pools on a POSIX message queue, killed again and again: nothing that was received is lost

A producer fills a queue that is ten messages deep, four workers empty it. In the first storm a worker is killed
every 100 ms; in the second also the keeper, the master, and all of the pool at once, which are started again. Each
body says what is to become of it. The figures are printed.
ORCHESTRATOR_STORM=20000 is the full run, ORCHESTRATOR_STORM_SEED=7 draws other victims.
Long because: who is killed, what the handler does and how each message ended are read together.

See also: test_storm (the same for the spool), tests/unit/test_mqueue_pool.py (every call failed, every store cut).
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.process import handlers
from tests.process.pools import Pool, Pools, process, signal_all
from tests.waiting import until
from workers import Message, Reject, Retry, open_queue
from workers.board import Header
from workers.posix_mq import Mq, unlink
from workers.queues.base import Settings
from workers.queues.mqueue import Mqueue

COUNT = int(os.environ.get("ORCHESTRATOR_STORM", "300"))
SEED = os.environ.get("ORCHESTRATOR_STORM_SEED", "1")
HANDLE, QUICK = "tests.process.test_mqueue_pools:handle", "tests.process.test_mqueue_pools:quick"
DEPTH, SIZE = 10, 512
WORKERS, MAX_ATTEMPTS, CRASH_LIMIT = 4, 3, 10
KILL_S, QUICK_KILL_S = 0.1, 0.02
KILLS_MAX = COUNT // 2
HANDLING_S = 0.002  # before the line, and once more after it
STORM_S, CALM_S = 60 + COUNT * 0.05, 60.0
NOISE = "noise"
LONE_WORKER = """
import signal, sys
from workers import open_queue
from workers.queues.base import Settings

queue = open_queue(sys.argv[1], settings=Settings(state_dir=sys.argv[2]), consume=True)
print(queue.claim().name, flush=True)
signal.pause()
"""
WISHES = {0: "retry", 1: "fail", 2: "reject", 3: "hopeless"}
ONLY_WORKERS = {"worker": 1}
EVERYBODY = {"worker": 10, "keeper": 2, "master": 1, "pool": 1}  # how likely each is the next to be killed


@dataclass
class Site:
    """One queue of the kernel, and where its pools keep what failed."""

    name: str
    state: Path

    def open(self) -> Mqueue:
        """As an operator does."""
        queue = open_queue(f"mqueue:{self.name}", settings=Settings(state_dir=str(self.state)))
        assert isinstance(queue, Mqueue)
        return queue

    @property
    def files(self) -> list[str]:
        """The files that messages are received into."""
        try:
            return sorted(os.listdir(self.place))
        except FileNotFoundError:  # who leaves last takes it away
            return []

    @property
    def place(self) -> str:
        """Their directory."""
        with self.open() as queue:
            return queue.receive_place.path

    def kept(self, state: str) -> list[Path]:
        """What is beside the queue in *state*, .meta left out."""
        (place,) = self.state.iterdir()
        return sorted(path for path in (place / state).iterdir() if not path.name.endswith(".meta"))

    def is_empty(self) -> bool:
        """Whether nothing waits, is in hand or will come back; looked at in the order in which messages move."""
        with self.open() as queue:
            for _ in range(2):
                depth = queue.depth()
                if depth.waiting or depth.claimed or depth.deferred:
                    return False
        return True


@pytest.fixture(name="site")
def _site(tmp_path: Path) -> Iterator[Site]:
    """A queue of the kernel, ten messages deep."""
    site = Site(f"/pools-{os.getpid()}-{os.urandom(4).hex()}", tmp_path / "state")
    site.state.mkdir()
    Mq.open(site.name, create=True, exclusive=True, max_messages=DEPTH, max_size=SIZE).close()
    place = site.place
    try:
        yield site
    finally:
        unlink(site.name)
        shutil.rmtree(place, ignore_errors=True)  # what a pool of a test that failed has left


# ---- what our workers do


def body_of(number: int) -> bytes:
    return f"message {number} {WISHES.get(number % 20, 'plain')}".encode()


def handle(message: Message) -> Retry | Reject | None:
    """Do as the body wishes, and write down what was done for good."""
    _, number, wish = message.body.decode().split(" ")
    match wish:
        case "retry" if message.attempt == 1:
            return Retry(after_s=0)
        case "fail" if message.attempt == 1:
            raise LookupError("asked to fail once")
        case "hopeless":
            raise LookupError("asked to fail always")
        case "reject":
            return Reject("not wanted")
    threading.Event().wait(HANDLING_S)  # it stands for work, nothing is waited for
    if wish != NOISE:
        handlers.write(f"done {number}")
    threading.Event().wait(HANDLING_S)
    return None


def quick(message: Message) -> None:
    """Write it down at once, so that most of a worker's life is receiving and settling."""
    handlers.write(f"done {message.body.decode().split(' ')[1]}")


# ---- a pool, and who feeds it


def start(pools: Pools, site: Site, *words: str, handler: str = HANDLE, **more: object) -> Pool:
    """Start a pool on the queue of *site*."""
    options = {
        "url": f"mqueue:{site.name}",
        "handler": handler,
        "workers": WORKERS,
        "max_attempts": MAX_ATTEMPTS,
        "crash_limit": CRASH_LIMIT,
        "retry_backoff": "0.1s",
        "retry_backoff_max": "0.2s",
        "state_dir": str(site.state),
        **more,
    }
    config = pools.place / "pool.toml"
    config.write_text("[[queue]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in options.items()))
    return pools.start("--config", str(config), *words, name="pool")


class Producer(threading.Thread):
    """
    Puts *count* messages, and waits whenever the queue is full; with *patience_s* in the kernel's own line.

    Those of an *is_noise* are all alike.
    """

    def __init__(self, site: Site, count: int, patience_s: float = 0.0, *, is_noise: bool = False) -> None:
        super().__init__(daemon=True)
        self._queue, self._count, self.is_stopped = Mq.open(site.name), count, False
        self._patience_s, self._is_noise = patience_s, is_noise

    def run(self) -> None:
        """In its own thread."""
        for number in range(self._count):
            body = f"message 0 {NOISE}".encode() if self._is_noise else body_of(number)
            while True:
                if self.is_stopped:
                    return
                try:
                    if self._patience_s:
                        self._queue.send_within(body, 0, time.time() + self._patience_s)
                    else:
                        self._queue.send(body)
                except BlockingIOError:
                    self._queue.wait_writable(0.1)
                    continue
                break


@dataclass
class Storm:
    """A pool, of whom some are killed."""

    pools: Pools
    site: Site
    roles: dict[str, int]
    handler: str
    kill_s: float = KILL_S
    dice: random.Random = field(default_factory=lambda: random.Random(SEED))  # noqa: S311 - to be repeated
    kills: Counter[str] = field(default_factory=Counter)
    _due_s: float = 0.0

    def rage(self, count: int) -> None:
        """Kill until all is put and handled, and each had its share; then end all."""
        start(self.pools, self.site, handler=self.handler).ready()
        producer = Producer(self.site, count)
        producer.start()
        try:
            until(lambda: self._look(producer), STORM_S)
        except AssertionError as error:
            pool = self.pools.started[-1]
            raise AssertionError(f"{error}\n{self.kills}\n{pool.status}\n{pool.log}") from None
        finally:
            producer.is_stopped = True
        producer.join(30)
        assert self.pools.started[-1].ready().end() in (0, 4), self.pools.started[-1].log

    def _look(self, producer: Producer) -> bool:
        pool = self.pools.started[-1]
        assert pool.process.poll() is None, pool.log
        is_over = self.kills.total() >= KILLS_MAX and all(self.kills[role] for role in self.roles)
        if pool.status.get("ready") and time.monotonic() >= self._due_s and not is_over:
            self._due_s = time.monotonic() + self.kill_s
            self._kill(pool)
        if producer.is_alive() or not all(self.kills[role] for role in self.roles):
            return False
        return self.site.is_empty()

    def _kill(self, pool: Pool) -> None:
        (role,) = self.dice.choices(tuple(self.roles), tuple(self.roles.values()))
        match role:
            case "master" | "pool":
                signal_all(pool.everyone()[: 1 if role == "master" else None], signal.SIGKILL)
                pool.wait()
                start(self.pools, self.site, handler=self.handler)
            case "keeper":
                signal_all([pool.service(Header.KEEPER_PID)], signal.SIGKILL)
            case "worker":
                busy = [process(pid) for pid in pool.pids]
                if not busy:
                    return
                signal_all(self.dice.sample(busy, 1), signal.SIGKILL)
        self.kills[role] += 1


def in_errors(site: Site) -> dict[str, str]:
    """The messages in errors/, each once, and the reason that .meta gives."""
    found = {}
    for path in site.kept("errors"):
        meta = path.with_name(f"{path.name}.meta")
        assert path.read_bytes() not in found
        found[path.read_text()] = json.loads(meta.read_text())["reason"] if meta.exists() else ""
    return found


def test_what_a_lone_worker_is_killed_with_goes_back_into_the_queue(site: Site) -> None:
    """Its keeper outlives it for a moment, and no successor can be expected."""
    mq = Mq.open(site.name)
    mq.send(b"content", 3)
    mq.close()
    words = [sys.executable, "-c", LONE_WORKER, f"mqueue:{site.name}", str(site.state)]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as worker, site.open() as queue:
        assert worker.stdout is not None
        try:
            assert worker.stdout.readline().startswith(b"3.")
            assert queue.depth().claimed == 1
        finally:
            worker.kill()
        until(lambda: queue.depth().waiting == 1)
        until(lambda: not site.files)


@pytest.mark.timeout(60)
def test_a_pool_finishes_what_it_retries_while_producers_keep_its_queue_full(pools: Pools, site: Site) -> None:
    """A retry needs room, and whoever else waits for it takes each place at once."""
    pool = start(pools, site).ready()
    producer = Producer(site, 100, patience_s=60)
    others = [Producer(site, 10**9, patience_s=60, is_noise=True) for _ in range(2)]
    for one in (producer, *others):
        one.start()
    pool.until(lambda: not producer.is_alive())
    wanted = {str(number) for number in range(100) if number % 20 not in (2, 3)}
    pool.until(lambda: wanted <= {line.split()[1] for line in pools.journal()})
    for one in others:
        one.is_stopped = True
    for one in others:
        one.join(30)
    pool.until(site.is_empty)
    assert pool.end() == 0
    assert site.files == []


@pytest.mark.timeout(STORM_S + CALM_S)
@pytest.mark.parametrize(
    ("roles", "handler"),
    [(ONLY_WORKERS, HANDLE), (EVERYBODY, HANDLE), (ONLY_WORKERS, QUICK)],
    ids=["workers", "everybody", "quick"],
)
def test_a_storm_of_kills_loses_nothing_that_was_received(
    pools: Pools, site: Site, roles: dict[str, int], handler: str
) -> None:
    """Every message is settled, and more than once only as often as somebody was killed."""
    started_s = time.monotonic()
    storm = Storm(pools, site, roles, handler, QUICK_KILL_S if handler == QUICK else KILL_S)
    storm.rage(COUNT)
    took_s = time.monotonic() - started_s

    done = Counter(int(line.split()[1]) for line in pools.journal())
    errors = in_errors(site)
    rejected = Counter(int(body.split(" ")[1]) for body in errors)
    times = done + rejected
    doubles = {number: count - 1 for number, count in times.items() if count > 1}
    kills = storm.kills
    killed_with_workers = kills["worker"] + (kills["master"] + kills["pool"]) * WORKERS
    print(  # noqa: T201 - the figures
        f"\n{COUNT} put; {done.total()} done by workers, {len(errors)} in errors/; {sum(doubles.values())} doubles;"
        f" killed {dict(kills)}; {took_s:.1f} s"
    )
    # Never lost, and nothing that nobody put.
    assert set(times) == set(range(COUNT))
    # More than once only what somebody was killed with. (A keeper between the sending and the removing of a file.)
    assert sum(doubles.values()) <= killed_with_workers + kills["keeper"] + kills["master"] + kills["pool"]
    # In errors/ for its wish, or for the deaths of those who had it in hand.
    right = {"reject": "not wanted", "hopeless": f"failed {MAX_ATTEMPTS} times"}
    wrong = {body: why for body, why in errors.items() if why not in ("", right.get(body.split(" ")[2]))}
    assert not {body: why for body, why in wrong.items() if "died" not in why}, wrong
    # A drained shutdown leaves nothing behind.
    assert site.files == []
    assert not [path for state in ("deferred", "held") for path in site.kept(state)]
    assert len(site.kept("counts")) <= kills.total()
    logs = "\n".join(pool.log for pool in pools.started)
    assert "Traceback" not in logs.replace("asked to fail", ""), logs
