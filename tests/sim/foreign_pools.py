"""
foreign_pools - a pool on a simulated queue of another project's format: what is the same whatever the format is

See also: dirq_pools and ddmq_pools (the formats), cast (the same of a spool), board.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar

from tests.sim import cast as spool_cast
from tests.sim.board import Board
from tests.sim.kernel import Process, World
from workers.board import WorkerText
from workers.message import Claim
from workers.queues import names
from workers.queues.base import Consumer
from workers.queues.foreign import ForeignQueue
from workers.queues.scan import Scan

SETTINGS = replace(spool_cast.SETTINGS, lease_interval_s=None, lease_timeout_s=None)
SETTLES = ("done", "retry", "reject", "release")
NEVER = 10**19

QueueT = TypeVar("QueueT", bound=ForeignQueue)


class Looks(Scan):
    """Which name to try next: each of one listing once, or each of the *hints*; then None, until the next claim."""

    def __init__(self, queue: ForeignQueue, hints: Sequence[str]) -> None:
        super().__init__(queue.source(), "fifo")
        self._hints, self._has_looked = hints, False

    def claim(self, queue: ForeignQueue) -> Claim | None:
        """What *queue* claims, by one look."""
        self.forget()
        self._has_looked = False
        return queue.claim()

    def _fill(self) -> bool:
        if self._has_looked:
            return False
        self._has_looked = True
        self._names.extend(self._hints)
        return bool(self._hints) or super()._fill()


class SimPool(ABC, Generic[QueueT]):
    """One master on one host: a board, a keeper, workers. *pid* is the master's; its processes have the next ones."""

    keeper: Any

    def __init__(self, world: World, ledger: Any, host: str, pid: int, path: str) -> None:
        self.world, self.ledger, self.host, self.pid = world, ledger, host, pid
        self.board = Board(world)
        self.slot = self.board.take_queue("q", path)
        self.master_process = world.process(pid, host)
        self.master = names.master_name(host, self.master_process)
        self.keeper_process = world.process(pid + 1, host)
        ledger.keepers.add(self.keeper_process)
        self.keeper = self._opened(self.keeper_process).keeper(self._consumer(0))
        self.keeper.open()
        self.keeper._sweep_at_ns = NEVER  # that is another story, see sweep

    @abstractmethod
    def _opened(self, process: Process) -> QueueT:
        """The queue, as *process* opens it."""

    def _consumer(self, index: int) -> Consumer:
        return Consumer(self.master, self.board, self.slot, self.board.take_worker(self.slot, index), index)

    def worker(self, index: int = 0, *hints: str) -> QueueT:
        """A worker's queue, over a process of its own; *hints* are the names that its feeder gives it, at each look."""
        queue = self._opened(self.world.process(self.pid + 10 + index, self.host))
        queue.attach(self._consumer(index))
        queue._scan = Looks(queue, hints)
        return queue

    def bury(self, index: int = 0) -> str:
        """Take a dead worker off the board, as its master does; its owner's name."""
        owner = self.owner(index)
        self.board.worker(index).set_text(WorkerText.OWNER, "")
        return owner

    def owner(self, index: int = 0) -> str:
        """The name under which a worker's record stands."""
        return self.board.worker(index).text(WorkerText.OWNER) or ""


def process_of(queue: ForeignQueue) -> Process:
    """Whose queue it is."""
    assert isinstance(queue.system, Process)
    return queue.system


def claimed(queue: ForeignQueue) -> Claim | None:
    """What a worker claims by one look."""
    assert isinstance(queue._scan, Looks)
    return queue._scan.claim(queue)


def body_of(queue: ForeignQueue, claim: Claim) -> bytes:
    """What a handler would read, without a call."""
    return process_of(queue).opened(claim.fd).data
