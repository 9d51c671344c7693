"""
test_piper_chain - three queues of components, one behind the other, between mentat's own DirectoryQueue at both ends

Each stage adds a letter to the message and commits it; no more than its limit, and one for each worker, wait behind it:
five behind the last one, where a slow consumer takes them. The second test sends SIGTERM to workers with a message in
hand, and to the whole pool, which is started again.
ORCHESTRATOR_CHAIN=2000 is the long form: so many SIGTERMs. ORCHESTRATOR_CHAIN_SEED=7 draws other victims.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing import get_context
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from tests.process.pools import Pool, Pools, files, metas, process
from tests.waiting import until
from workers import open_queue
from workers.board import Board, W
from workers.queues.base import Settings

dirq = pytest.importorskip("mentat.dirq", reason="mentat-ng is not installed")

TERMS = int(os.environ.get("ORCHESTRATOR_CHAIN", "200"))
SEED = os.environ.get("ORCHESTRATOR_CHAIN_SEED", "1")
STAGES = {"first": ("second", 20), "second": ("third", 20), "third": ("end", 5)}  # the output of each, and its limit
WORKERS = 2  # of each stage
# Rounds of the keeper every 0.2 s; nobody waits for a lease that is lost.
SETTINGS = Settings(create=True, lease_interval_s=0.4, lease_timeout_s=60, stale_after_s=600)
AT_START, AT_ONCE = 30, 50  # so many are to wait at the start; so many are put when it are less
HANDLING_S = 0.02  # what a message costs the consumer: more than it costs a pool
POOL_EACH = 20  # one SIGTERM of so many is for the whole pool
LOOKS = 2000  # for a worker with a message in hand
FORK = get_context("fork")


# ---- what mentat does


def produce(queue: str, count: int, is_over: Event, put: Synchronized[int]) -> None:
    """Put with the original's own class, at most *count*, while few wait; *put* is how many were."""
    filer = dirq.DirectoryQueue(queue)
    while put.value < count and not is_over.wait(0.01):
        if filer.count_incoming() < AT_START:
            for _ in range(AT_ONCE):
                filer.enqueue(f"{put.value} ")
                put.value += 1


def consume(queue: str, journal: str) -> None:
    """Take with the original's own class, slowly; each is written down before its commit."""
    filer, rest = dirq.DirectoryQueue(queue), threading.Event()
    with open(journal, "a", encoding="utf-8", buffering=1) as file:
        while True:
            name, data = filer.next()
            rest.wait(HANDLING_S)  # it stands for work, nothing is waited for
            if name is not None:
                file.write(f"{data}\n")
                filer.commit(name)


# ---- the chain


class Watch:
    """Counts what waits without a pause, and keeps the most it has seen."""

    def __init__(self, queue: Path) -> None:
        self.name, self.most, self.looks = queue.name, 0, 0
        self._place = queue / "incoming"
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def _look(self) -> None:
        while not self._is_over.is_set():
            self.most = max(self.most, len(os.listdir(self._place)))
            self.looks += 1
            time.sleep(0)

    def end(self) -> None:
        self._is_over.set()
        self._thread.join()


class Chain:
    """The queues, the pool, and what is beside it. At most *count* messages are put."""

    def __init__(self, pools: Pools, count: int) -> None:
        self.pools, self.place = pools, pools.place
        for name in (*STAGES, "end"):
            open_queue(str(self.place / name), settings=SETTINGS).close()
        self.config = self.place / "chain.toml"
        self.config.write_text("".join(self._stage(letter, name) for letter, name in zip("abc", STAGES, strict=True)))
        self.journal = self.place / "arrived"
        self.journal.touch()
        self.is_over, self.put = FORK.Event(), FORK.Value("q", 0)
        first, end = (str(self.place / name) for name in ("first", "end"))
        self.beside = [
            FORK.Process(target=produce, args=(first, count, self.is_over, self.put), daemon=True),
            FORK.Process(target=consume, args=(end, str(self.journal)), daemon=True),
        ]
        for one in self.beside:
            one.start()
        self.watches = {Watch(self.place / output): limit for output, limit in STAGES.values()}
        self.pool = self.start()

    def _stage(self, letter: str, name: str) -> str:
        output, limit = STAGES[name]
        components = f'[{{use = "tests.process.stages:Append", letter = "{letter}"}}, "workers.piper:Commiter"]'
        return (
            f'[[queue]]\nname = "{name}"\nurl = "{self.place / name}"\nworkers = {WORKERS}\ncomponents = {components}\n'
            f'output = "{output if output in STAGES else self.place / output}"\n'
            f'output_limit = {limit}\noutput_wait = "100ms"\n'
        )

    def start(self) -> Pool:
        self.pool = self.pools.start("--config", str(self.config), name="chain")
        return self.pool

    def arrived(self) -> Counter[str]:
        """What the consumer has written down."""
        return Counter(self.journal.read_text("utf-8").split("\n")[:-1])

    def expected(self) -> set[str]:
        """What must have arrived, byte for byte, when no more is put."""
        return {f"{number} abc" for number in range(self.put.value)}

    def victims(self) -> list[int]:
        """
        Workers that have finished a message, of these such that have one in hand if there are any.

        A pool backs off when its workers end without having finished one.
        """
        if not self.pool.status:
            return []
        board = Board.open(self.pool.board_path)
        words = [board.worker(number).words for number in board.worker_numbers()]
        # A number is read once: it becomes 0 when its worker has ended, and 0 would be a signal to ourselves.
        settled = {pid: one for one in words if one[W.PROCESS_SETTLED] and (pid := one[W.PID])}
        for _ in range(LOOKS):
            if in_hand := [pid for pid, one in settled.items() if one[W.MESSAGE_SINCE_NS]]:
                return in_hand
        return list(settled)

    def left(self) -> list[Path]:
        """What is somewhere on its way, or in errors/."""
        found = [path for name in STAGES for state in ("incoming", "pending", "deferred", "errors", "tmp")
                 for path in files(self.place / name, state)]  # fmt: skip
        return [path for path in found if not path.name.startswith(".")]

    def end(self) -> None:
        """Leave nothing behind."""
        for watch in self.watches:
            watch.end()
        for one in self.beside:
            one.kill()
            one.join(10)


@pytest.fixture(name="chain")
def _chain(pools: Pools, request: pytest.FixtureRequest) -> Iterator[Chain]:
    chain = Chain(pools, request.param)
    try:
        yield chain
    finally:
        chain.end()


def above(chain: Chain, given_back: int = 0) -> dict[str, int]:
    """Where more waited than may. *given_back*: claims of the next stage that went back when its workers were ended."""
    most = {output: limit + WORKERS + (given_back if output in STAGES else 0) for output, limit in STAGES.values()}
    return {watch.name: watch.most for watch in chain.watches if watch.most > most[watch.name]}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("chain", [300], indirect=True)
def test_a_chain_of_three_stages_hands_everything_on_and_never_more_than_the_limit_waits_behind_each(chain):
    chain.pool.ready().until(lambda: chain.arrived().total() >= 300, 90)
    assert chain.pool.end(signal.SIGINT) == 0
    assert chain.arrived() == Counter(chain.expected())
    assert chain.left() == []
    assert not above(chain)
    for watch, limit in chain.watches.items():  # each was full, and was looked at all the time
        assert watch.most >= limit
        assert watch.looks > 300


@pytest.mark.timeout(120 + TERMS)
@pytest.mark.parametrize("chain", [1 << 60], indirect=True)
def test_sigterm_at_any_moment_loses_nothing_and_leaves_nothing_in_hand(chain):
    """Workers and whole pools are ended in the middle of their work, and others take their place."""
    dice, sent = random.Random(SEED), Counter[str]()  # noqa: S311 - to be repeated
    while sent.total() < TERMS:
        if dice.randrange(POOL_EACH) == 0:
            if dice.random() < 0.5:  # else while it starts, or as it takes up what the one before has left
                chain.pool.until(chain.victims)
            code = chain.pool.end(signal.SIGTERM)
            assert code in (0, -signal.SIGTERM), chain.pool.log  # the latter before it could say what it does with it
            sent["pool"] += 1
            chain.start()
            continue
        victim = process(dice.choice(chain.pool.until(chain.victims)))
        if victim.is_there:
            os.kill(victim.pid, signal.SIGTERM)
            sent["worker"] += 1
            chain.pool.until(lambda: not victim.is_there)  # noqa: B023 - called here
    chain.is_over.set()
    chain.beside[0].join(10)
    chain.pool.until(lambda: chain.arrived().keys() >= chain.expected(), 60)
    until(lambda: not chain.left())
    assert chain.pool.end(signal.SIGINT) == 0
    found, most = chain.arrived(), {watch.name: watch.most for watch in chain.watches}
    print(f"\n{len(found)} messages, {found.total() - len(found)} of them twice, {dict(sent)}, at most {most} waited")  # noqa: T201 - the figures
    assert found.keys() == chain.expected()
    assert chain.left() == []
    assert not above(chain, given_back=WORKERS)
    assert not any(metas(chain.place / name) for name in STAGES)
    assert "Traceback" not in "".join(pool.log for pool in chain.pools.started)
