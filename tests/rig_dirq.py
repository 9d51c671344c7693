"""
rig_dirq - pools on one directory queue in one test, on a clock that the test moves (see rig)
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tests.rig import SETTINGS, FakeSystem, World
from workers.board import Board, WorkerText
from workers.message import Claim
from workers.queues import names
from workers.queues.base import Consumer, Kept, Settings
from workers.queues.dirq import Dirq
from workers.queues.dirq_keep import DirqKeeper
from workers.queues.dirq_url import open_dirq

SIMPLE, SCHEMA = "dirq-simple", "dirq"
DIRQ_SETTINGS = replace(SETTINGS, lease_interval_s=None, lease_timeout_s=None)


class DirqPool:
    """One master on one host: a board, a worker's queue and a keeper's. *place* is the queue's directory."""

    def __init__(
        self,
        place: Path,
        world: World,
        kind: str = SIMPLE,
        *,
        host: str = "one",
        settings: Settings = DIRQ_SETTINGS,
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
        self.keeper: DirqKeeper = self.keeping.keeper(self._consumer(0))
        self.keeper.open()
        self.queue.attach(self._consumer(0))

    def _system(self, pid: int) -> FakeSystem:
        system = FakeSystem(self.world, pid)
        system.network = self.network
        return system

    def opened(self, system: FakeSystem) -> Dirq:
        """The queue, opened once more."""
        return open_dirq(self.kind, f"{self.place}{self.options}", self.settings, system=system, host=self.host)

    def _consumer(self, index: int) -> Consumer:
        slot = self.board.take_worker(self.queue_slot, index)
        return Consumer(self.master, self.board, self.queue_slot, slot, index)

    def another_worker(self, index: int, pid: int = 0) -> Dirq:
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
