"""
hosts - the hosts of a simulated cluster: on each a master in little, with the real keeper, feeder and workers

The master is what is written here: it respawns what died, after it has taken it off its
board and told the keeper, as orchestrator.master and orchestrator.pool do. What it
starts is the program's own: QueueKeeper's rounds and orders, Feeder's steps, Worker's
loop, over simulated processes whose waits take virtual time.

Long because: a host's processes are told of in the order in which they start and end.
See also: virtual (time), cluster (what the handlers do), misfortune.
"""

from __future__ import annotations

import functools
import queue as handover
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from tests.sim.accounts import Accounts
from tests.sim.mount import Mount
from tests.sim.virtual import SECOND, Client, Place, Task, Wire
from workers import board as real
from workers.board import PROCESS_WORDS, SLOT_SIZE, Q, QueueState, Slot, W, WorkerState, WorkerText
from workers.keeper import Leave, Order, QueueKeeper, Release
from workers.message import Claim
from workers.queues import names
from workers.queues.base import Cause, Consumer
from workers.queues.feed import NUDGE, SILENT_NS
from workers.queues.feeder import Feeder, Feeding
from workers.queues.spool import Spool
from workers.waiting import Leaving as RealLeaving
from workers.waiting import Wait
from workers.worker import Worker

if TYPE_CHECKING:
    from tests.sim.cluster import Cluster

QUEUE, NEXT = "/q", "/n"
BARRED_S = 0.5  # as orchestrator.roles has it


class Board(real.Board):
    """A board of one queue and as many workers as a host has."""

    def __init__(self, workers: int) -> None:
        view = memoryview(bytearray(SLOT_SIZE * (3 + workers)))
        self.header = Slot(view, 0)
        self.queues = [Slot(view, 1)]
        self._workers = {number: Slot(view, 2 + number) for number in range(workers + 1)}


class Orders(handover.SimpleQueue[Order]):
    """What a keeper is told, in virtual time. Its own task alone waits."""

    def __new__(cls, *_: object) -> Orders:
        return super().__new__(cls)

    def __init__(self) -> None:
        self._orders: list[Order] = []
        self.task: Task | None = None

    def put(self, item: Order, block: bool = True, timeout: float | None = None) -> None:
        self._orders.append(item)
        if self.task is not None:
            self.task.wake()

    def get(self, block: bool = True, timeout: float | None = None) -> Order:
        if not self._orders and self.task is not None:
            self.task.rest(timeout or 0.0)
        return self.get_nowait()

    def get_nowait(self) -> Order:
        if not self._orders:
            raise handover.Empty
        return self._orders.pop(0)


class Keeper(QueueKeeper):
    """The real one; a fault of the program is a violation, and most do not measure."""

    cluster: Cluster
    measures = True

    def _say(self, state: QueueState, reason: str) -> None:
        if reason.startswith("a fault of the program"):
            self.cluster.virtual.wrong.append(f"a keeper: {reason}")
        super()._say(state, reason)

    def measure(self) -> None:
        """See QueueKeeper."""
        if self.measures:
            super().measure()


class Leaving(RealLeaving):
    """workers.waiting.Leaving in virtual time."""

    fd = -1

    def __init__(self, process: Client) -> None:
        self.is_asked = self.is_to_tell = False
        self._process = process

    def ask(self, *_: object) -> None:
        self.is_asked = True
        if self._process.task is not None:
            self._process.task.wake()

    def wait(self, timeout_s: float) -> bool:
        assert self._process.task is not None
        if not self.is_asked:
            self._process.task.rest(timeout_s)
        return self.is_asked


class SimulatedWorker(Worker):
    """The real loop, without the thread that beats; what it settles is told to the accounts."""

    accounts: Accounts

    def _start_beating(self, slot: Slot) -> None:
        slot.words[W.LAST_SEEN_NS] = self.system.boottime_ns()

    def _settle(self, claim: Claim, called: Any) -> str | None:
        process = self.system
        assert isinstance(process, Client)
        inode, path = process.opened(claim.fd), claim.path
        outcome = super()._settle(claim, called)
        if outcome is not None:
            self.accounts.was_settled(inode, outcome, path)
        return outcome


class Master:
    """One incarnation of a host's pool. *workers*: the task of each index."""

    def __init__(self, host: Host) -> None:
        cluster = host.cluster
        self.host, self.cluster, self.virtual = host, cluster, cluster.virtual
        self.process = self.virtual.client(host, "master")
        self.name = names.master_name(host.name, self.process)
        self.board = Board(cluster.plan.workers)
        self.slot = self.board.take_queue("q", host.path)
        words = self.board.queues[self.slot].words
        words[Q.TARGET] = cluster.plan.workers
        self.wire = Wire() if host.is_fed else None
        self.workers: dict[int, Task] = {}
        self.leaving: dict[int, Leaving] = {}
        self.keeper: Task | None = None
        self.feeder: Task | None = None
        self.orders = Orders()
        self.is_stopping = self.is_ready = False
        cluster.masters[self.name] = self
        self._start_keeper()

    @property
    def is_dead(self) -> bool:
        """Whether its process has ended."""
        return self.process.has_crashed

    def later(self, delay_s: float, act: Callable[..., None], *arguments: Any) -> None:
        """Do *act* then, unless the master is dead; when its host is stopped, after that."""
        self.virtual.at(delay_s, self._now, act, arguments)

    def _now(self, act: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        left_ns = self.host.resume_ns - self.virtual.now_ns
        if left_ns > 0:
            self.virtual.at(left_ns / SECOND, self._now, act, arguments)
        elif not self.is_dead:
            act(*arguments)

    def _consumer(self, index: int, feed: int = -1) -> Consumer:
        count = self.cluster.plan.workers
        return Consumer(self.name, self.board, self.slot, self.board.take_worker(self.slot, index), index, count, feed)

    # ---- its keeper and its feeder

    def _start_keeper(self) -> None:
        process = self.virtual.client(self.host, "keeper")
        process.master = self.name
        keeper = Keeper(lambda: self.cluster.open(self.host.path, process), self._consumer(0), process)
        keeper.cluster, keeper.measures = self.cluster, self.host.number < self.cluster.plan.measures
        keeper.orders = self.orders = Orders()
        self.keeper = self.virtual.start(
            process, lambda: keeper.run(self._report, is_known=self.is_ready), self._keeper_ended
        )
        self.orders.task = self.keeper

    def _report(self, refused: str | None) -> None:
        if refused is None and not self.is_ready:
            self.is_ready = True
            for index in range(self.cluster.plan.workers):
                self.later(0.01, self._spawn, index)
            if self.wire is not None:
                self.later(0.01, self._start_feeder)

    def _keeper_ended(self, task: Task) -> None:
        if self.is_dead:
            return
        if self.is_stopping and not task.cause:
            self.process.has_crashed = True
            self.virtual.at(1.0, self.host.start)
        else:
            # What it had not done of its orders is lost: the next one finds the owners that no board names.
            self.later(self.virtual.random.uniform(0.05, 2.0), self._restart_keeper)

    def _restart_keeper(self) -> None:
        self._start_keeper()
        if self.is_stopping and not self.workers:
            self.orders.put(Leave())

    def _start_feeder(self) -> None:
        assert self.wire is not None
        wire, process = self.wire, self.virtual.client(self.host, "feeder")

        def feed() -> None:
            queue = self.cluster.open(self.host.path, process)
            ends = process.hold(wire), process.hold(wire)
            feeding = Feeding(
                queue.url, queue.source(), "fifo", self.board, self.slot, *ends, lambda: None,
                queue.poll_interval_s, queue.directory.network is not None,
            )  # fmt: skip
            Feeder(feeding, process).run(lambda: self.is_dead)

        self.feeder = self.virtual.start(process, feed, self._feeder_ended)

    def _feeder_ended(self, task: Task) -> None:
        if not (self.is_dead or self.is_stopping):
            self.later(0.5, self._start_feeder)

    # ---- its workers

    def _spawn(self, index: int) -> None:
        if self.is_stopping or index in self.workers:
            return
        process = self.virtual.client(self.host, "worker")
        leaving = self.leaving[index] = Leaving(process)
        self.workers[index] = self.virtual.start(
            process, lambda: self._work(index, process, leaving), lambda task: self._worker_ended(index, task)
        )

    def _work(self, index: int, process: Client, leaving: Leaving) -> None:
        consumer = self._consumer(index, -1 if self.wire is None else process.hold(self.wire))
        words = self.board.worker(consumer.worker_slot).words
        words[W.PID], words[W.STATE] = process.pid, WorkerState.STARTING
        queue = self.cluster.open(self.host.path, process)
        queue.attach(consumer)
        handler = functools.partial(self.cluster.handle, self, index)
        worker = SimulatedWorker(
            queue, handler, consumer, leaving, self._waiter(process, queue), {"next": f"spool:{NEXT}"}, system=process
        )
        worker.accounts = self.cluster.accounts
        worker.run()
        if self.wire is not None and self.wire.packets:
            with suppress(BlockingIOError):
                self.wire.add(NUDGE)

    def _waiter(self, process: Client, queue: Spool) -> Wait:
        """How an idle worker waits: at the pipe as orchestrator.roles has it, or as workers.waiting.polling does."""
        longest_s = 1.0 if queue.directory.network else 0.1
        wire, uniform, words = self.wire, self.virtual.random.uniform, self.board.queues[self.slot].words
        state = {"pause_s": 0.001, "last_ns": 0}

        def poll(timeout_s: float, _: int) -> bool:
            assert process.task is not None
            if process.boottime_ns() - state["last_ns"] > 2e9 * state["pause_s"] + 2e6:
                state["pause_s"] = 0.001
            process.task.rest(min(state["pause_s"] * uniform(0.8, 1.2), timeout_s))
            state["pause_s"], state["last_ns"] = min(state["pause_s"] * 2, longest_s), process.boottime_ns()
            return True

        def read(timeout_s: float, _: int) -> bool:
            assert process.task is not None
            assert wire is not None
            if words[Q.PAUSED] or process.boottime_ns() - words[Q.BEAT_NS] >= words[Q.HALF_TIMEOUT_NS]:
                process.task.rest(min(timeout_s, BARRED_S))
            elif not wire.packets:
                silent_s = (process.boottime_ns() - words[Q.FED_NS]) / SECOND
                wire.readers.append(process.task)
                process.task.rest(max(SILENT_NS / SECOND - silent_s + 0.01, timeout_s))
                with suppress(ValueError):
                    wire.readers.remove(process.task)
            return True

        return poll if wire is None else read

    def _worker_ended(self, index: int, task: Task) -> None:
        if self.workers.get(index) is task and not self.is_dead:
            self.later(self.virtual.random.uniform(0.001, 0.05), self._bury, index, task)

    def _bury(self, index: int, task: Task) -> None:
        """Off the board first, then the keeper is told (SPOOL.md, H34)."""
        del self.workers[index]
        slot = self.board.worker(self.board.take_worker(self.slot, index))
        owner = slot.text(WorkerText.OWNER)
        cause: Cause = task.cause if task.cause in ("timeout", "stopped") else "died"  # type: ignore[assignment]
        slot.clear(PROCESS_WORDS, (WorkerText.OWNER, WorkerText.MESSAGE))
        if owner:
            self.orders.put(Release(owner, cause, "simulated"))
        if not self.is_stopping:
            self.later(self.virtual.random.uniform(0.01, 0.5), self._spawn, index)
        elif not self.workers:
            self.orders.put(Leave())

    def is_on_board(self, owner: str) -> bool:
        """Whether a slot names *owner*."""
        return any(self.board.worker(number).text(WorkerText.OWNER) == owner for number in self.board.worker_numbers())

    # ---- its end

    def stop(self, timeout_s: float) -> None:
        """A restart of the pool: all are asked to leave, who does not within *timeout_s* is killed; then a new one."""
        self.is_stopping = True
        for leaving in self.leaving.values():
            leaving.ask()
        if self.feeder is not None:
            self.feeder.kill("stopped")
        if not self.workers:
            self.orders.put(Leave())
        self.later(timeout_s, self._kill_rest)

    def _kill_rest(self) -> None:
        for task in tuple(self.workers.values()):
            task.kill("stopped")

    def crash(self, *, is_keeper_spared: bool) -> None:
        """kill -9 of the master: its children end with it. A keeper that is spared gives back what they had."""
        self.process.has_crashed = True
        for task in (*self.workers.values(), self.feeder, None if is_keeper_spared else self.keeper):
            if task is not None:
                task.kill("died")
        if is_keeper_spared and self.keeper is not None and self.is_ready:
            for number in self.board.worker_numbers():
                slot = self.board.worker(number)
                owner = slot.text(WorkerText.OWNER)
                slot.clear(PROCESS_WORDS, (WorkerText.OWNER, WorkerText.MESSAGE))
                if owner:
                    self.orders.put(Release(owner, "unknown", "its master died"))
            self.orders.put(Leave())


class Host(Place):
    """One machine: its clocks, its mount, and the master on it."""

    def __init__(self, cluster: Cluster, number: int) -> None:
        plan, chance = cluster.plan, cluster.virtual.random
        kept_s = (3.0, 30.0) if plan.network else (0.0, 0.0)
        listing_s = plan.lease_s[0] / 2 if plan.network and plan.faults and chance.random() < 0.3 else 0.0
        super().__init__(f"h{number}", Mount(chance, kept_s, listing_s))
        self.cluster, self.number = cluster, number
        self.path = NEXT if number % 5 == 4 and not plan.is_one_queue else QUEUE
        self.is_fed = chance.random() < plan.fed
        self.masters: list[Master] = []
        self.producer: Task | None = None
        if plan.faults:
            self.skew_ns = int(chance.gauss(0, 600) * SECOND)
            self.drift_ppm = chance.randint(-500, 500)

    @property
    def master(self) -> Master | None:
        """The one that is alive."""
        last = self.masters[-1] if self.masters else None
        return None if last is None or last.is_dead else last

    def start(self) -> None:
        """A new master, unless there is one."""
        if self.master is None:
            self.masters.append(Master(self))

    def crash(self) -> None:
        """The power is gone, all at once; it boots again after a while."""
        chance = self.cluster.virtual.random
        for master in self.masters[-2:]:
            master.crash(is_keeper_spared=False)
            if master.keeper is not None:
                master.keeper.kill("died")
        if self.producer is not None:
            self.producer.kill("died")
        self.boot += 1
        self.booted_ns = self.cluster.virtual.now_ns
        self.resume_ns = self.back_ns = 0
        self.mount.clear()
        self.cluster.virtual.at(chance.uniform(5, 90), self.boot_again, self.boot)

    def boot_again(self, boot: int) -> None:
        """After a crash."""
        if boot == self.boot:
            if self.master is None:  # else it was up before, and its clock goes on
                self.booted_ns = self.cluster.virtual.now_ns
            self.start()
            self.cluster.start_producer(self)
