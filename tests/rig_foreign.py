"""
rig_foreign - pools on one queue of another project's format in one test, on a clock that the test moves (see rig)

What the formats do alike, and what their tests ask of a pool in the same words.
See also: rig_dirq, rig_ddmq (the formats), tests/unit/test_foreign_pool.py (what is the same for all).
"""

from __future__ import annotations

import errno
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from tests.rig import SETTINGS, FakeSystem, World, rounds
from workers.board import Board, WorkerText
from workers.errors import QueueUnavailable
from workers.message import Claim
from workers.queues import names
from workers.queues.base import Consumer, Kept, Settings
from workers.queues.foreign import ForeignQueue
from workers.system import System

FOREIGN_SETTINGS = replace(SETTINGS, lease_interval_s=None, lease_timeout_s=None)
SETTLES = ("done", "retry", "reject", "release")

QueueT = TypeVar("QueueT", bound=ForeignQueue)
PoolT = TypeVar("PoolT", bound="ForeignPool[Any]")


class ForeignPool(ABC, Generic[QueueT]):
    """One master on one host: a board, a worker's queue and a keeper's. *place* is the queue's directory."""

    keeper: Any

    def __init__(
        self,
        place: Path,
        world: World,
        kind: str,
        *,
        host: str = "one",
        settings: Settings = FOREIGN_SETTINGS,
        pid: int = 0,
        network: str | None = None,
        options: str = "",
    ) -> None:
        self.place, self.world, self.kind, self.host, self.settings = place, world, kind, host, settings
        self.network, self.options = network, options
        self.system, self.keeper_system = self._system(pid), self._system(pid)
        self.board = Board.create()
        self.queue_slot = self.board.take_queue("queue", f"{kind}:{place}")
        self.words = self.board.queues[self.queue_slot].words
        self.master = names.master_name(host, self.system)
        self.queue = self.opened(self.system)
        self.keeping = self.opened(self.keeper_system)
        self.keeper = self.keeping.keeper(self._consumer(0))
        self.keeper.open()
        self.queue.attach(self._consumer(0))

    def _system(self, pid: int) -> FakeSystem:
        system = FakeSystem(self.world, pid)
        system.network = self.network
        system.memory_file = system._traced("memory_file", System.memory_file)  # type: ignore[method-assign]
        return system

    @abstractmethod
    def opened(self, system: FakeSystem) -> QueueT:
        """The queue, opened once more."""

    def _consumer(self, index: int) -> Consumer:
        slot = self.board.take_worker(self.queue_slot, index)
        return Consumer(self.master, self.board, self.queue_slot, slot, index)

    def another_worker(self, index: int, pid: int = 0) -> QueueT:
        """A second worker of this pool."""
        queue = self.opened(self._system(pid or self.system.pid))
        queue.attach(self._consumer(index))
        return queue

    def bury(self, index: int = 0) -> str:
        """Take a dead worker off the board, as its master does; its owner's name."""
        slot = self.board.worker(index)
        owner = slot.text(WorkerText.OWNER) or ""
        slot.set_text(WorkerText.OWNER, "")
        return owner

    def claim(self) -> Claim:
        """Claim; there must be something."""
        claim = self.queue.claim()
        assert claim is not None
        return claim

    def rounds(self, count: int = 1, every_s: float = 1.0) -> Kept:
        """See rig.rounds."""
        return rounds(self.keeper, self.world, count, every_s)


# ---- what workers do


def put(pool: ForeignPool[Any], body: bytes | str = b"content", **more: Any) -> str:
    """Put it; its name."""
    name: str = pool.queue.put(body, **more)
    return name


def settle(queue: ForeignQueue, verb: str, claim: Claim) -> object:
    """Settle as a worker does: what may be tried again is, once."""
    arguments = ("of no use",) if verb == "reject" else ()
    try:
        return getattr(queue, verb)(claim, *arguments)
    except QueueUnavailable:
        return getattr(queue, verb)(claim, *arguments)
    finally:
        queue.settled(claim)


def fall(pool: ForeignPool[Any]) -> str:
    """Die as the worker is now; the owner that was. The next claim is another worker's."""
    owner = pool.bury()
    pool.queue._lapses = -1
    pool.queue._owner, pool.queue._hand = "", os.close(pool.queue._hand) or -1
    return owner


def die(pool: ForeignPool[Any]) -> str:
    """Claim and die; the owner that was."""
    pool.queue.settled(pool.claim())
    return fall(pool)


def hold(pool: ForeignPool[Any], body: bytes = b"content") -> tuple[str, str]:
    """Put, claim and die: the message's name, and the owner that was."""
    return put(pool, body), die(pool)


# ---- what is there


def beside(pool: ForeignPool[Any], *parts: str) -> Path:
    """A path beside the queue."""
    return Path(f"{pool.place}.pool", *parts)


def metas(pool: ForeignPool[Any]) -> list[dict[str, object]]:
    """What all .meta in errors/ say."""
    return [json.loads(path.read_bytes()) for path in beside(pool, "errors").glob("*.meta")]


def counts_of(pool: ForeignPool[Any], name: str) -> tuple[int, int]:
    """Attempts and crashes."""
    counts = pool.queue.beside.count_of(name)
    return counts.attempts, counts.crashes


def descriptors() -> list[str]:
    """What this process has open."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return found


# ---- every call failed once


def keeper_of(pool: ForeignPool[Any]) -> FakeSystem:
    """Whose calls fail_each() fails."""
    return pool.keeper_system


def fail_each(
    fresh: Callable[..., PoolT],
    act: Callable[[PoolT], object],
    prepare: Callable[[PoolT], object] = lambda _: None,
    of: Callable[[PoolT], FakeSystem] = lambda pool: pool.system,
    codes: tuple[int, ...] = (errno.EIO, errno.EACCES, errno.ENOSPC),
    **options: object,
) -> Iterator[tuple[PoolT, str, BaseException | None]]:
    """As rig.fail_each; on a network filesystem once more with each reply lost."""
    for code in codes:
        for is_reply_lost in (False, True) if code == errno.EIO else (False,):
            nth = 0
            while True:
                nth += 1
                pool = fresh(**options)
                if is_reply_lost and pool.network is None:
                    break
                prepare(pool)
                system = of(pool)
                if is_reply_lost:
                    del system.scandir, system.memory_file  # nobody would close what they opened
                system.fail(nth, code, is_reply_lost=is_reply_lost)
                raised: BaseException | None = None
                try:
                    act(pool)
                except Exception as error:  # noqa: BLE001 - the test says which may leave
                    raised = error
                if system.failed is None:
                    assert raised is None, raised
                    break
                lost = ", its reply lost" if is_reply_lost else ""
                yield pool, f"{system.failed} (call {nth}): {errno.errorcode[code]}{lost}", raised
                system.fail(0, 0)
