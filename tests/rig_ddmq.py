"""
rig_ddmq - pools on one ddmq queue in one test, on a clock that the test moves (see rig)
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tests.rig import SETTINGS, FakeSystem, World
from workers.board import Board, WorkerText
from workers.message import Claim
from workers.queues import names
from workers.queues.base import Consumer, Kept, Settings
from workers.queues.ddmq import Ddmq, open_ddmq
from workers.queues.ddmq_keep import DdmqKeeper
from workers.system import System

DDMQ_SETTINGS = replace(SETTINGS, lease_interval_s=None, lease_timeout_s=None)


class DdmqPool:
    """One master on one host: a board, a worker's queue and a keeper's. *place* is ROOT/QUEUE."""

    def __init__(
        self,
        place: Path,
        world: World,
        *,
        host: str = "one",
        settings: Settings = DDMQ_SETTINGS,
        pid: int = 0,
        network: str | None = None,
        options: str = "",
    ) -> None:
        self.place, self.world, self.host, self.settings = place, world, host, settings
        self.network, self.options = network, options
        self.system, self.keeper_system = self._system(pid), self._system(pid)
        self.board = Board.create()
        self.queue_slot = self.board.take_queue("queue", f"ddmq:{place}")
        self.words = self.board.queues[self.queue_slot].words
        self.master = names.master_name(host, self.system)
        self.queue = self.opened(self.system)
        self.keeping = self.opened(self.keeper_system)
        self.keeper: DdmqKeeper = self.keeping.keeper(self._consumer(0))
        self.keeper.open()
        self.queue.attach(self._consumer(0))

    def _system(self, pid: int) -> FakeSystem:
        system = FakeSystem(self.world, pid)
        system.network = self.network
        system.memory_file = system._traced("memory_file", System.memory_file)  # type: ignore[method-assign]
        return system

    def opened(self, system: FakeSystem) -> Ddmq:
        """The queue, opened once more."""
        return open_ddmq(f"{self.place}{self.options}", self.settings, system=system, host=self.host)

    def _consumer(self, index: int) -> Consumer:
        slot = self.board.take_worker(self.queue_slot, index)
        return Consumer(self.master, self.board, self.queue_slot, slot, index)

    def another_worker(self, index: int, pid: int = 0) -> Ddmq:
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
        """*count* keeper rounds, the clock moved before each; what they did, summed."""
        total = Kept()
        for _ in range(count):
            self.world.advance(every_s)
            kept = self.keeper.keep()
            for name in ("owner_dead", "too_old", "crash_limit", "temporary", "due", "pruned"):
                setattr(total, name, getattr(total, name) + getattr(kept, name))
        return total
