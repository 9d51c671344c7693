"""
services - the children that serve a pool beside its workers: keeper, exporter, feeders

They are forked again when they die, at most once a second. The keeper is told what to
do by a pipe, one JSON object a line, and says by another which queue is open; what it
does not read now (it was stopped) is kept and sent later, never waited for.

Main thread of the master only. See also: master (which says what is wanted), roles and
feeder (what these children do), child (how they are forked).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from orchestrator import child, feeder, roles
from orchestrator.child import Child
from orchestrator.loop import Loop
from orchestrator.running import RunningQueue
from workers.board import Board, Header, Q

log = logging.getLogger(__name__)

AGAIN_S = 1.0  # between two forks of one service
RELEASED_MAX = 256  # of the orders that the next keeper is told again


@dataclass(slots=True)
class Services:
    """
    Keeper, exporter and feeders of one pool.

    Attributes:
        queues: the master's own table, looked at whenever a keeper is new.
        listener: where the exporter serves; None for no exporter.
        on_opened: called with a queue and None when the keeper has opened it, or with why it is refused.
        forget: closes, in a child, what is the master's alone.
    """

    loop: Loop
    board: Board
    master: str
    host: str
    queues: Mapping[str, RunningQueue]
    listener: socket.socket | None
    on_opened: Callable[[RunningQueue, str | None], None]
    forget: Callable[[], None]
    keeper: Child | None = None
    _keeper_s: float = 0.0
    _orders: int = -1
    _reports: int = -1
    _rest: bytes = b""
    _unsent: bytearray = field(default_factory=bytearray)
    _released: deque[tuple[str, dict[str, str]]] = field(default_factory=lambda: deque(maxlen=RELEASED_MAX))
    _exporter: Child | None = None
    _exporter_s: float = 0.0
    _ended: list[Child] = field(default_factory=list)  # what was killed and is not collected yet

    def start(self) -> None:
        """Fork the keeper and the exporter. Raises OSError."""
        self._spawn_keeper()
        if self.listener is not None:
            self._spawn_exporter()

    def tend(self, now_s: float, *, is_keeper_wanted: bool, is_exporter_wanted: bool) -> None:
        """Send what the keeper has not read; collect who has ended, and replace who is wanted."""
        self._send_orders()
        for ended in [one for one in self._ended if one.collect() is not None]:
            ended.close()
            self._ended.remove(ended)
        if self.keeper is not None and (how := self._end_of_keeper(self.keeper)):
            self.keeper = None
            if self._orders >= 0:
                log.warning("the keeper %s", how)
                self.end_orders()
        if self.keeper is None and is_keeper_wanted and now_s - self._keeper_s >= AGAIN_S:
            _spawn_again(self._spawn_keeper, "keeper")
        if self._exporter is not None and (end := self._exporter.collect()) is not None:
            log.warning("the exporter %s; another takes its place", end)
            self._exporter.close()
            self._exporter = None
        is_missing = self.listener is not None and self._exporter is None
        if is_missing and is_exporter_wanted and now_s - self._exporter_s >= AGAIN_S:
            _spawn_again(self._spawn_exporter, "exporter")

    def close(self) -> None:
        """Kill them all, the keeper excepted, and collect who ends within a second. When the loop has ended."""
        services = [self._exporter, *self._ended, *(queue.feeder for queue in self.queues.values())]
        killed = [one for one in services if one is not None]
        for service in killed:
            service.send(signal.SIGKILL)
        end_s = time.monotonic() + 1.0  # for all: some may hang in a filesystem
        for service in killed:
            wait_for(service, max(end_s - time.monotonic(), 0.0))

    def forget_in_child(self) -> None:
        """Close the pipes of the keeper, which are the master's."""
        for fd in (self._orders, self._reports):
            if fd >= 0:
                os.close(fd)

    def _forget_all(self) -> None:
        """What a child closes that does not serve HTTP: else the port stays taken while one of them lives."""
        self.forget()
        if self.listener is not None:
            self.listener.close()

    def spawn(self, role: Callable[[], int], title: str, *, outlives: bool = False) -> Child:
        """Fork any child that does not serve HTTP. Raises OSError."""
        return child.spawn(role, title, self.loop, self._forget_all, outlives=outlives)

    # ---- keeper

    @property
    def has_orders(self) -> bool:
        """Whether the keeper lives and has not read all that it is to be told."""
        return bool(self._unsent) and self.keeper is not None and self.is_told

    @property
    def is_told(self) -> bool:
        """Whether the pipe of orders is open."""
        return self._orders >= 0

    def add(self, queue: RunningQueue) -> None:
        """Have the keeper open *queue* and report it."""
        # Once it was open it is waited for, and never made: an empty mount point is not the queue.
        is_known = queue.opened is not None
        # Plain values, not pydantic's own JSON: that has no word for the bytes of a path that are no text.
        # See test_a_pool_shows_nothing_raw_and_no_secret_whatever_it_is_given.
        self.order("add", queue, config=queue.config.model_dump(mode="json"), slot=queue.slot, is_known=is_known)

    def release(self, queue: RunningQueue, order: dict[str, str]) -> None:
        """Have the claims of a dead worker given back, by this keeper or the next."""
        self._released.append((queue.config.name, order))
        self.order("release", queue, **order)

    def order(self, do: str, queue: RunningQueue, **more: object) -> None:
        """One line to the keeper; kept and sent later while it does not read (it was stopped), never waited for."""
        self._unsent += json.dumps({"do": do, "queue": queue.config.name, **more}).encode() + b"\n"
        self._send_orders()

    def end_orders(self) -> None:
        """Close its pipes: the keeper leaves at the end of its orders."""
        self.loop.unwatch(self._reports)
        os.close(self._orders)
        os.close(self._reports)
        self._orders = self._reports = -1
        self._rest = b""
        self._unsent.clear()

    def _end_of_keeper(self, keeper: Child) -> str:
        """How it ended; "" while it lives."""
        if (end := keeper.collect()) is not None:
            keeper.close()
            return str(end)
        # Killed, or at its end, with a thread of it in the kernel: it keeps nothing any more, and is collected when the
        # filesystem of that one queue answers. See test_a_keeper_that_dies_while_one_queue_hangs_is_replaced.
        if (where := keeper.hangs_dead()) is not None:
            self._ended.append(keeper)
            return f"has ended, and hangs in the kernel with one of its queues ({where})"
        return ""

    def _spawn_keeper(self) -> None:
        # What was said while no keeper lived: it is told again below, after the queue that it is about.
        # See test_a_worker_that_dies_while_there_is_no_keeper_is_released_by_the_next_one.
        self._unsent.clear()
        orders_reader, self._orders = os.pipe2(os.O_CLOEXEC)
        self._reports, reports_writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._orders, False)
        keeping = roles.Keeping(self.board, self.master, self.host, orders_reader, reports_writer)
        self._keeper_s = time.monotonic()
        try:
            self.keeper = self.spawn(lambda: roles.keep(keeping), "keeper", outlives=True)
        except OSError:
            os.close(self._orders)
            os.close(self._reports)
            self._orders = self._reports = -1
            raise
        finally:
            os.close(orders_reader)
            os.close(reports_writer)
        self.board.header.words[Header.KEEPER_PID] = self.keeper.pid
        self.loop.watch(self._reports, self._on_report)
        for queue in self.queues.values():
            self.add(queue)
        # Orders that the keeper before this one may not have read. A release of what was released does nothing.
        for name, order in tuple(self._released):
            if name in self.queues:
                self.order("release", self.queues[name], **order)

    def _send_orders(self) -> None:
        # A dead keeper needs no orders: the next one is told everything by the board and by "add".
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            while self._unsent and self._orders >= 0:
                del self._unsent[: os.write(self._orders, self._unsent)]

    def _on_report(self, fd: int) -> None:
        part = os.read(fd, 65536)
        if not part:
            self.loop.unwatch(fd)
            return
        *lines, self._rest = (self._rest + part).split(b"\n")
        for line in lines:
            report = json.loads(line)
            queue = self.queues.get(report["queue"])
            if queue is not None:
                self.on_opened(queue, report["refused"])

    # ---- feeders

    def tend_feeder(self, queue: RunningQueue, now_s: float) -> None:
        """Spawn it; replace it when it dies, at most once a second."""
        name = f"feeder of queue {queue.config.name}"
        if queue.feeder is not None and (end := queue.feeder.collect()) is not None:
            log.warning("the %s %s; another takes its place", name, end)
            queue.feeder.close()
            queue.feeder = None
        is_wanted = queue.opened and not (queue.pool.is_stopping and queue.pool.is_empty) and queue.feed[0] >= 0
        if is_wanted and queue.feeder is None and now_s - queue.feeder_s >= AGAIN_S:
            _spawn_again(lambda: self._spawn_feeder(queue), name)

    def end_feeder(self, queue: RunningQueue) -> None:
        """Kill it; collected when it is gone, for it may hang in a filesystem."""
        if queue.feeder is not None:
            queue.feeder.send(signal.SIGKILL)
            self._ended.append(queue.feeder)
            queue.feeder = None
            self.board.queues[queue.slot].words[Q.FEEDER_PID] = 0

    def _spawn_feeder(self, queue: RunningQueue) -> None:
        queue.feeder_s = time.monotonic()
        orders = feeder.Orders(queue.config, self.host, self.board, queue.slot, queue.feed, os.getpid())
        queue.feeder = self.spawn(lambda: feeder.feed(orders), f"feeder {queue.config.name}")
        self.board.queues[queue.slot].words[Q.FEEDER_PID] = queue.feeder.pid

    # ---- exporter

    def _spawn_exporter(self) -> None:
        listener, board, parent = self.listener, self.board, os.getpid()
        assert listener is not None  # noqa: S101 - asked by the callers
        self._exporter_s = time.monotonic()
        self._exporter = child.spawn(lambda: roles.export(listener, board, parent), "exporter", self.loop, self.forget)
        self.board.header.words[Header.EXPORTER_PID] = self._exporter.pid


def _spawn_again(spawn: Callable[[], None], what: str) -> None:
    try:
        spawn()
    except OSError as error:
        log.error("the %s cannot be forked: %s; tried again in a second", what, error)


def wait_for(one: Child, timeout_s: float) -> bool:
    """Wait for a child that is about to end; only when the loop has ended. False when it did not."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    end_s = time.monotonic() + timeout_s
    while one.collect() is None:
        left_s = end_s - time.monotonic()
        if left_s <= 0:
            return False
        signal.sigtimedwait([signal.SIGCHLD], min(left_s, 0.02))
    return True
