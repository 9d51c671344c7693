"""
rig_mqueue - pools on one message queue of the kernel in one test, on a clock that the test moves (see rig)

The queue and the memory are real. Record locks are of processes, of which a test is one: so they
are kept here, by the numbers that the fake processes have, and end as the kernel's do: with the
process, or when it closes any descriptor of that file.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.rig import SETTINGS, FakeSystem, World, note_opened, rounds
from workers.board import Board, WorkerText
from workers.message import Claim
from workers.posix_mq import Mq
from workers.queues import names, receive
from workers.queues.base import Consumer, Kept, Settings
from workers.queues.mqueue import Mqueue
from workers.queues.mqueue_keep import MqueueKeeper

MQUEUE_SETTINGS = replace(SETTINGS, lease_interval_s=None, lease_timeout_s=None, stale_after_s=None, create=False)
MORE_TRACED = (
    "mq_open", "mq_send", "mq_receive_into", "mq_attributes", "map_file", "lock_memory", "lock_file", "truncate",
    "memory_file", "pread", "stat",
)  # fmt: skip


@dataclass
class Locks:
    """Who has a record lock, by the file."""

    held: dict[tuple[int, int], int] = field(default_factory=dict)


class MqSystem(FakeSystem):
    """The kernel as one process sees it, with record locks of its own."""

    def __init__(self, world: World, locks: Locks, pid: int) -> None:
        super().__init__(world, pid)
        self.locks = locks
        for name in MORE_TRACED:
            setattr(self, name, self._traced(name, getattr(self, name)))
        self.close = self._traced("close", self._closed)  # type: ignore[method-assign, assignment]
        self._fds: set[int] = set()
        self._queues: list[Mq] = []
        for name in ("open", "memory_file"):
            setattr(self, name, self._noted(getattr(self, name)))

    def _noted(self, call: Callable[..., int]) -> Callable[..., int]:
        def noted(*arguments: Any) -> int:
            fd = call(*arguments)
            self._fds.add(fd)
            return fd

        return noted

    def mq_open(self, name: str, **more: Any) -> Mq:  # type: ignore[override]
        queue = super().mq_open(name, **more)
        self._queues.append(queue)
        return queue

    def mq_send_within(self, queue: Mq, data: bytes, priority: int, until_s: float) -> None:  # type: ignore[override]
        """Nobody receives while we wait here; the clock moves."""
        self.world.moved_ns += max(0, int(until_s * 1e9) - self.wall_ns())
        try:
            self.mq_send(queue, data, priority)
        except BlockingIOError as error:
            raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)) from error

    def end(self) -> None:
        """Close what the process has open, as its end does: the kernel has few queues, and a test few descriptors."""
        for queue in self._queues:
            queue.close()
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()
        for key in [key for key in receive._own if key[0] == self.pid]:
            receive._own.pop(key)._unmap()
        self.locks.held = {key: pid for key, pid in self.locks.held.items() if pid != self.pid}

    def lock_file(self, fd: int) -> None:  # type: ignore[override]
        key = self._key(fd)
        holder = self.locks.held.get(key)
        if holder not in (None, self.pid) and holder not in self.world.dead:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        self.locks.held[key] = self.pid

    def _closed(self, fd: int) -> None:
        key = self._key(fd)
        os.close(fd)
        self._fds.discard(fd)
        if self.locks.held.get(key) == self.pid:
            del self.locks.held[key]

    @staticmethod
    def _key(fd: int) -> tuple[int, int]:
        found = os.fstat(fd)
        return found.st_dev, found.st_ino

    def sleep(self, seconds: float) -> None:  # type: ignore[override]
        if self.before is not None:
            self.before("sleep", (seconds,))
        super().sleep(seconds)


class MqueuePool:
    """One master: a board, a worker's queue and a keeper's, each of a process of its own."""

    def __init__(
        self,
        place: Path,
        name: str,
        world: World,
        locks: Locks,
        *,
        pid: int = 1000,
        settings: Settings = MQUEUE_SETTINGS,
    ) -> None:
        self.name, self.world, self.locks = name, world, locks
        self.settings = replace(settings, state_dir=str(place / "state"))
        self.shared = place / "shm"
        for path in (place / "state", self.shared):
            path.mkdir(exist_ok=True)
        self.pid = pid
        master = FakeSystem(world, pid)
        self._systems: list[MqSystem] = []
        self.system, self.keeper_system = self._system(pid + 1), self._system(pid + 2)
        self.board = Board.create()
        self.queue_slot = self.board.take_queue("queue", f"mqueue:{name}")
        self.words = self.board.queues[self.queue_slot].words
        self.master = names.master_name("one", master)
        self.queue = self.opened(self.system)
        self.keeping = self.opened(self.keeper_system)
        self.keeper: MqueueKeeper = self.keeping.keeper(self._consumer(0))
        self.keeper.open()
        self.queue.attach(self._consumer(0))

    def _system(self, pid: int) -> MqSystem:
        self._systems.append(MqSystem(self.world, self.locks, pid))
        return self._systems[-1]

    def end(self) -> None:
        """End all processes of this pool, as a kill does."""
        for system in self._systems:
            system.end()

    def opened(self, system: FakeSystem) -> Mqueue:
        """The queue, opened once more."""
        queue = Mqueue(self.name, self.settings, system=system, host="one", shared=str(self.shared))
        note_opened(queue._mq.fd)
        return queue

    def _consumer(self, index: int) -> Consumer:
        slot = self.board.take_worker(self.queue_slot, index)
        return Consumer(self.master, self.board, self.queue_slot, slot, index)

    def another_worker(self, index: int, pid: int) -> Mqueue:
        """One more worker of this pool."""
        queue = self.opened(self._system(pid))
        queue.attach(self._consumer(index))
        return queue

    def die(self) -> str:
        """Kill the worker, and take it off the board as its master does; its owner's name."""
        self.world.dead.add(self.system.pid)
        slot = self.board.worker(0)
        owner = slot.text(WorkerText.OWNER) or ""
        slot.set_text(WorkerText.OWNER, "")
        return owner

    def succeed(self, pid: int) -> Mqueue:
        """Start the next worker of that index."""
        self.system = self._system(pid)
        self.queue = self.opened(self.system)
        self.queue.attach(self._consumer(0))
        return self.queue

    def claim(self) -> Claim:
        """Claim; there must be something."""
        claim = self.queue.claim()
        assert claim is not None
        return claim

    def rounds(self, count: int = 1, every_s: float = 1.0) -> Kept:
        """See rig.rounds."""
        return rounds(self.keeper, self.world, count, every_s)

    # ---- what is there

    def files(self) -> list[Path]:
        """The receive files."""
        place = Path(self.queue.receive_place.path)
        return sorted(place.iterdir()) if place.is_dir() else []

    def beside(self, *parts: str) -> Path:
        """What lies beside the queue."""
        return Path(self.queue.beside.path, *parts)

    def everything(self) -> dict[str, list[bytes]]:
        """The content of all messages by state, what is empty left out; what waits is put back in its order."""
        found: dict[str, list[bytes]] = {}
        with_priority: list[tuple[bytes, int]] = []
        raw = Mq.open(self.name)
        try:
            with_priority += [raw.receive() for _ in range(raw.attributes().waiting)]
            for body, priority in with_priority:
                found.setdefault("waiting", []).append(body)
                raw.send(body, priority)
        finally:
            raw.close()
        for seen in self.queue.receive_place.seen(is_whole=True):
            if seen.has_message:
                found.setdefault("claimed", []).append(seen.body)
        for state in ("deferred", "errors", "tmp"):
            for path in self.beside(state).iterdir():
                if not path.name.endswith(".meta"):
                    found.setdefault(state, []).append(path.read_bytes())
        return {state: sorted(bodies) for state, bodies in found.items()}


def make_queue(name: str, depth: int = 10, size: int = 512) -> None:
    """Make the kernel's queue *name*."""
    Mq.open(name, create=True, exclusive=True, max_messages=depth, max_size=size).close()
