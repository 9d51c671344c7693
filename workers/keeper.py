"""
keeper - beats, releases and measures for one master, so that workers need not

QueueKeeper is one queue's share: a round of queue.keep() on a timer, orders to
release the claims of a dead worker at once, and the depth. A pool's keeper process
runs one thread for each (a hung mount holds up only its own); a lone worker forks
a keeper for its one queue.

Long because: a keeper in a pool and a keeper alone are the same rounds, read together.
Never deletes a message that was not finished, never blocks a worker. Errors of a
round are shown on the board and the round is tried again.
See also: queues.base (Keeper), queues.spool_keep (what a round does), orchestrator.keeping (the process).
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue as handover
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from workers.board import PROCESS_WORDS, Board, Header, Q, QueueState, QueueText, W, WorkerState, WorkerText, process
from workers.errors import NotSupported, OrchestratorError, QueueRefused, QueueUnavailable
from workers.queues import names
from workers.queues.base import Cause, Claimable, Consumer, Queue
from workers.system import SYSTEM, System
from workers.trust import risks

log = logging.getLogger(__name__)

MEASURE_S = 1.0  # at least that long between two measures of the depth, and ten times what one takes


@dataclass(frozen=True, slots=True)
class Release:
    """An order to release the claims of one dead owner. *note* says how it died, for .meta."""

    owner: str
    cause: Cause
    note: str = ""


@dataclass(frozen=True, slots=True)
class Measure:
    """An order to measure now: a pass over all queues was asked for."""


@dataclass(frozen=True, slots=True)
class Leave:
    """The last order."""


Order = Release | Measure | Leave


class QueueKeeper:
    """One queue of one master. ``run`` in a thread or a process of its own; ``orders`` is how it is told things."""

    def __init__(self, open_it: Callable[[], Queue], consumer: Consumer, system: System = SYSTEM) -> None:
        self.orders: handover.SimpleQueue[Order] = handover.SimpleQueue()
        self._open_it = open_it
        self._consumer = consumer
        self._system = system
        self._slot = consumer.board.queues[consumer.queue_slot]
        self._queue: Claimable | None = None
        self._measured_ns = 0
        self._measure_took_ns = 0
        self._tick_s = 1.0
        self._busy_ns = system.boottime_ns()
        self._pending: list[Release] = []
        self._troubles: dict[str, str] = {}  # what was said of each thing that goes wrong, so it is said once

    # ---- opening

    def open(self) -> None:
        """Open the queue, try what it rests on, beat once. Raises OrchestratorError: the queue is refused."""
        queue = self._open_it()
        if not isinstance(queue, Claimable):
            raise NotSupported(f"a {queue.protocol} queue cannot be claimed from")
        self._look_at_risks(queue)
        keeper = queue.keeper(self._consumer)
        keeper.open()
        self._tick_s = keeper.tick_s
        self._queue = queue
        self.round()
        self._say(QueueState.READY, "")

    def _look_at_risks(self, queue: Claimable) -> None:
        """Say who else may write where the queue lies. Raises QueueRefused where everybody may do everything."""
        for risk in risks(queue.places()):
            if risk.is_refused:
                raise QueueRefused(f"{queue.url} is refused: {risk}")
            if self._is_news(f"risk {risk.path}", risk.text):
                log.warning("%s: %s", queue.url, risk)

    def _say(self, state: QueueState, reason: str) -> None:
        self._slot.set_text(QueueText.REASON, reason)
        self._slot.words[Q.READY] = state

    # ---- the loop

    def run(
        self,
        report: Callable[[str | None], None] = lambda _: None,
        is_over: Callable[[], bool] = bool,
        *,
        is_known: bool = False,
    ) -> None:
        """
        Open, then keep until told to leave or *is_over()*.

        *report* is called with None when the queue is ready, or the sentence why it is refused. *is_known*: it
        was open before, so it is waited for, however long its filesystem is away.
        """
        while (refused := self._refused()) is not None:
            if self._is_news("open", refused):
                report(refused)
            if not is_known or not self._wait_for_orders():
                return
        self._troubles.clear()
        report(None)
        round_ns = self._system.boottime_ns()
        while not is_over():
            # By the clock, not when no order came for a while: --until-empty orders a measure ten times a second,
            # and the lease must be beaten, and what is due moved, all the same. See
            # test_a_failing_message_is_retried_with_backoff_then_kept_with_its_traceback.
            left_s = self._tick_s - (self._system.boottime_ns() - round_ns) / 1e9
            if left_s <= 0:
                self.round()
                round_ns = self._system.boottime_ns()  # after it: a slow round must not keep the orders waiting
                continue
            order = self._next(left_s)
            if order is None:
                continue
            if isinstance(order, Leave):
                break
            if isinstance(order, Release):
                self._pending.append(order)
            self._release_pending()
            if isinstance(order, Measure):
                self.measure()
        self.leave()

    def busy_s(self) -> float:
        """For how long it has been at what it does; 0.0 while it waits for orders. Any thread may ask."""
        return (self._system.boottime_ns() - self._busy_ns) / 1e9 if self._busy_ns else 0.0

    def _next(self, timeout_s: float) -> Order | None:
        """The next order, waited for at most *timeout_s*."""
        self._busy_ns = 0
        try:
            return self.orders.get(timeout=timeout_s)
        except handover.Empty:
            return None
        finally:
            self._busy_ns = self._system.boottime_ns()

    def _is_news(self, what: str, reason: str) -> bool:
        """Whether *what* goes wrong for another *reason* than when this was asked last; "" for not any more."""
        before = self._troubles.pop(what, "")
        if reason:
            self._troubles[what] = reason
        return reason != before

    def _refused(self) -> str | None:
        try:
            self.open()
        except OrchestratorError as error:
            self._say(QueueState.REFUSED, str(error))
            return str(error)
        return None

    def _wait_for_orders(self) -> bool:
        """A second's wait before the queue is tried again; False when told to leave. Releases are kept for later."""
        order = self._next(1.0)
        if isinstance(order, Release):
            self._pending.append(order)
        return not isinstance(order, Leave)

    def round(self) -> None:
        """One round: keep, release what is still owed, measure when it is time. Errors go to the board."""
        assert self._queue is not None  # noqa: S101 - open() comes first
        try:
            kept = self._queue.keep()
        except QueueUnavailable as error:
            if self._is_news("keep", str(error)):
                log.warning("%s: %s", self._queue.url, error)
            self._say(QueueState.UNAVAILABLE, str(error))
            return
        except Exception as error:
            # A fault of the program, met in what somebody left in this queue: the other queues go on.
            if self._is_news("keep", repr(error)):
                log.exception("%s: a round failed; it is tried again", self._queue.url)
            self._say(QueueState.UNAVAILABLE, f"a fault of the program: {error!r}")
            return
        if self._is_news("keep", ""):
            log.warning("%s: works again", self._queue.url)
            self._say(QueueState.READY, "")
        words = self._slot.words
        words[Q.REAPED_OWNER_DEAD] += kept.owner_dead
        words[Q.REAPED_LEASE_LOST] += kept.lease_lost
        words[Q.REAPED_TOO_OLD] += kept.too_old
        words[Q.REAPED_CRASH_LIMIT] += kept.crash_limit
        words[Q.REAPED_TEMPORARY] += kept.temporary
        words[Q.BEATS_FAILED] += not kept.beat_ok
        self._release_pending()
        now_ns = self._system.boottime_ns()
        is_asked = self._consumer.board.header.words[Header.PASS] != words[Q.PASS]
        if is_asked or now_ns - self._measured_ns >= max(MEASURE_S * 1e9, 10 * self._measure_took_ns):
            self.measure()

    def _release_pending(self) -> None:
        assert self._queue is not None  # noqa: S101 - open() comes first
        for order in tuple(self._pending):
            what = f"release {order.owner}"
            try:
                released = self._queue.release_owner(order.owner, order.cause, order.note)
            except QueueUnavailable as error:  # of this one: it keeps no other from going back
                if self._is_news(what, str(error)):
                    log.warning("%s: %s; tried again", self._queue.url, error)
                continue
            self._is_news(what, "")
            self._pending.remove(order)
            for name in released:
                log.info("%s: %s released, its worker %s", self._queue.url, names.shown(name), order.cause)

    def measure(self) -> None:
        """Depth and free space onto the board."""
        assert self._queue is not None  # noqa: S101 - open() comes first
        words = self._slot.words
        asked = self._consumer.board.header.words[Header.PASS]
        start_ns = self._system.boottime_ns()
        try:
            depth = self._queue.keeper_side().depth(is_exact=asked != words[Q.PASS])
            space = self._system.statvfs(self._queue.place)
        except (QueueUnavailable, OSError) as error:
            if self._is_news("measure", str(error)):
                log.warning("%s: cannot be measured: %s", self._queue.url, error)
            return
        self._is_news("measure", "")
        words[Q.WAITING], words[Q.CLAIMED], words[Q.DEFERRED] = depth.waiting, depth.claimed, depth.deferred
        words[Q.ERRORS], words[Q.IGNORED] = depth.errors, depth.ignored
        words[Q.OLDEST_WAITING_MS] = int(depth.oldest_s.get("waiting", 0) * 1000)
        words[Q.OLDEST_CLAIMED_MS] = int(depth.oldest_s.get("claimed", 0) * 1000)
        words[Q.OLDEST_DEFERRED_MS] = int(depth.oldest_s.get("deferred", 0) * 1000)
        words[Q.OLDEST_ERRORS_MS] = int(depth.oldest_s.get("errors", 0) * 1000)
        words[Q.FREE_BYTES] = min(space.f_bavail * space.f_frsize, (1 << 63) - 1)
        words[Q.FREE_INODES] = min(space.f_favail, (1 << 63) - 1)
        self._measured_ns = words[Q.MEASURED_NS] = self._system.boottime_ns()
        self._measure_took_ns = self._measured_ns - start_ns
        words[Q.MEASURE_NS] = self._measure_took_ns
        words[Q.MEASURED_MS] = self._system.wall_ns() // 1_000_000
        # ORDER: the answer last, when every figure above is of this pass.
        # See test_until_empty_waits_for_what_is_in_hand.
        words[Q.PASS] = asked

    def leave(self) -> None:
        """The last release, then the lease goes."""
        if self._queue is None:
            return
        with contextlib.suppress(handover.Empty):
            while True:
                order = self.orders.get_nowait()
                if isinstance(order, Release):
                    self._pending.append(order)
        self._release_pending()
        self._queue.keeper_side().leave()


# ---- a worker without a master


def attach_alone(queue: Queue, *, index: int = 0, system: System = SYSTEM) -> Consumer:
    """
    Make this process the only worker of a master of its own: a board in shared memory, and a forked keeper.

    Main thread only (the keeper dies with the thread that forked it). Raises what opening raises.
    """
    if not isinstance(queue, Claimable):
        raise NotSupported(f"a {queue.protocol} queue cannot be claimed from")
    board = Board.create()
    queue_slot = board.take_queue(os.path.basename(queue.place), queue.url)
    consumer = Consumer(
        master=names.master_name(queue.host, system),
        board=board,
        queue_slot=queue_slot,
        worker_slot=board.take_worker(queue_slot, index),
        index=index,
    )
    words = board.worker(consumer.worker_slot).words
    words[W.PID], words[W.STATE] = os.getpid(), WorkerState.STARTING
    keeper = QueueKeeper(lambda: queue, consumer, system)
    reader, writer = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _keep_alone(keeper, consumer, writer, parent)
    os.close(writer)
    with open(reader, "rb") as answer:
        said = answer.read().decode("utf-8", "replace")
    if said != "ready":
        os.waitpid(pid, 0)
        raise QueueUnavailable(said or "the keeper died while it opened the queue")
    queue.attach(consumer)
    queue.on_close = lambda: _end_keeper(pid)
    # WNOWAIT leaves it to be waited for by _end_keeper.
    queue.keeper_is_gone = lambda: os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    return consumer


def _keep_alone(keeper: QueueKeeper, consumer: Consumer, writer: int, parent: int) -> None:
    """The keeper process of a lone worker. Never returns."""
    code = 1
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGALRM):
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGUSR1, lambda *_: keeper.orders.put(Leave()))
        signal.set_wakeup_fd(-1)

        def report(refused: str | None) -> None:
            os.write(writer, (refused or "ready").encode())
            os.close(writer)

        def is_over() -> bool:
            # A worker that was stopped by a signal must not look alive: the beat waits as long as it is.
            while SYSTEM.is_stopped(parent) and os.getppid() == parent:
                time.sleep(0.05)
            return os.getppid() != parent

        keeper.run(report, is_over)
        if os.getppid() != parent:
            _release_dead_parent(keeper, consumer)
        code = 0
    except BaseException:
        log.exception("the keeper failed")
    finally:
        os._exit(code)


def _release_dead_parent(keeper: QueueKeeper, consumer: Consumer) -> None:
    slot = consumer.board.worker(consumer.worker_slot)
    _kill_group(process(slot.words[W.CHILD_GROUP]))
    owner = slot.text(WorkerText.OWNER)
    is_asked = slot.words[W.STATE] == WorkerState.STOPPING
    slot.clear(PROCESS_WORDS, (WorkerText.OWNER, WorkerText.MESSAGE))
    if owner:
        keeper.orders.put(Release(owner, "stopped" if is_asked else "died", "a worker without a master"))
    keeper.leave()


def _kill_group(group: int) -> None:
    """SIGKILL a program's group, or what its dead leader has left of it; never one of another session."""
    with contextlib.suppress(ProcessLookupError):
        if not group or os.getsid(group) != os.getsid(0):
            return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def _end_keeper(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signal.SIGUSR1)
        os.waitpid(pid, 0)
