"""
roles - what the children of the master do: a worker, the keeper, the exporter

Each is a function that child.spawn() runs in its process; its answer is the exit code.
They talk to the master through the board, and the keeper through two pipes, one JSON
object a line: orders in (its end means: leave), reports out.

Long because: what each of them is given, and how it starts and leaves, is read side by side.
Long because: each of them is short, and what one leaves behind another takes up.
See also: workers.worker, workers.keeper, exporter (which do the work), master.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import setproctitle

from orchestrator import exporter
from orchestrator.child import ignore, kill_whole, pass_over
from orchestrator.config import QueueConfig
from orchestrator.state import worker_file
from orchestrator.watch import watching
from workers.board import (
    PROCESS_WORDS,
    QUEUE_COUNTERS,
    WORKER_COUNTERS,
    Board,
    Q,
    QueueText,
    Slot,
    W,
    WorkerState,
    WorkerText,
    process,
)
from workers.errors import HandlerError, OrchestratorError, QueueMissing, QueueRefused, QueueUnavailable
from workers.handler import Handler, resolve
from workers.handlers.command import command_handler
from workers.handlers.onward import Onward
from workers.keeper import Leave, Measure, QueueKeeper, Release
from workers.queues.base import Claimable, Consumer, Queue
from workers.queues.feed import SILENT_NS, nudge
from workers.queues.null import NoMessages
from workers.queues.open import open_queue
from workers.saved import save
from workers.system import SYSTEM
from workers.waiting import WAIT_S, Leaving, Wait, at_descriptor, at_queue, barred, polling
from workers.worker import TROUBLE_S_MAX, Worker

log = logging.getLogger(__name__)

DONE_CODE = 10  # of a worker whose components are done: its queue drains, and no other takes its place
GRACE_S = 1.0  # for the kernel to end what was killed
LAST_S = 10.0  # for the last releases of a queue
HANGS_S = 3.0  # who is in one call, or a few, for so long does not come back soon

Kept = tuple[QueueKeeper, threading.Thread]


def handler_of(queue: QueueConfig, stats_interval_s: float = 300.0) -> Handler:
    """The handler that *queue* is configured with; *stats_interval_s* is for components. Raises HandlerError."""
    if queue.components is not None:
        from workers.piper import Piper, component_of  # noqa: PLC0415 - only who has components needs them

        return Piper(
            [component_of(one.use, one.keywords) for one in queue.components],
            name=queue.name,
            options=queue.options,
            event_map=queue.event_map,
            core={"name": queue.name, "queue": queue.url, "output": queue.output},
            stats_interval_s=stats_interval_s,
        )
    if queue.command is not None:
        return command_handler(queue.command, shell=queue.shell)
    if queue.forward is not None:
        return Onward(queue.forward)
    assert queue.handler is not None  # noqa: S101 - the configuration has one of the four
    return resolve(queue.handler)


# ---- worker


@dataclass(frozen=True, slots=True)
class Work:
    """One worker's orders."""

    queue: QueueConfig
    consumer: Consumer
    host: str
    parent: int
    queues: Mapping[str, str]  # configured names to URLs, for Forward
    states: Path | None = None  # directory where a handler with state() has it written, see orchestrator.state
    stats_interval_s: float = 300.0  # how often components log their rates; 0 is never


def work(orders: Work) -> int:
    """A worker: 0 when it was asked to leave, DONE_CODE when its components are done, 1 when it could not start."""
    os.setsid()  # its programs stay in this session, so whoever outlives it can end them
    pass_over()
    leaving = Leaving()
    signal.signal(signal.SIGTERM, leaving.ask)
    signal.signal(signal.SIGUSR2, leaving.tell)
    signal.siginterrupt(signal.SIGUSR2, False)  # noqa: FBT003 - the library's
    consumer, config = orders.consumer, orders.queue
    slot = consumer.board.worker(consumer.worker_slot)
    slot.mend(WORKER_COUNTERS)
    words = slot.words
    for word in PROCESS_WORDS:
        words[word] = 0
    words[W.LAST_SEEN_NS] = SYSTEM.boottime_ns()
    words[W.START] = SYSTEM.start_ticks(os.getpid()) or 0
    words[W.STATE], words[W.PID] = WorkerState.STARTING, os.getpid()
    try:
        queue = _opened(orders, leaving)
        if queue is None:
            return 0
        handler = handler_of(config, orders.stats_interval_s)
    except OrchestratorError as error:
        return _cannot_start(config, consumer, error)
    title = f"orchestrator: worker {config.name}[{consumer.index}]"
    worker = Worker(
        queue=queue,
        handler=handler,
        consumer=consumer,
        leaving=leaving,
        wait=_waiter(queue, consumer),
        queues=orders.queues,
        title=lambda text: setproctitle.setproctitle(title + text),
        parent=orders.parent,
        time_limit_s=config.time_limit,
        message_size_max=config.max_message_size,
        output=config.output or "",
        output_limit=config.output_limit or 0,
        output_wait_s=config.output_wait,
        save_state=None if orders.states is None else _saver(orders.states, config.name, consumer.index),
    )
    try:
        worker.run()
    except HandlerError as error:
        return _cannot_start(config, consumer, error)
    # A packet may have woken us while we were asked to leave: somebody else must wake for it.
    if consumer.feed >= 0 and SYSTEM.unread(consumer.feed):
        nudge(consumer.feed_writer, SYSTEM)
    # A daemon that is told to stop is done as well; then it is not for itself that it says so.
    return DONE_CODE if worker.is_done and not leaving.is_asked else 0


def _opened(orders: Work, leaving: Leaving) -> Queue | None:
    """The queue, waited for while it is away; None when we are asked to leave before. Raises OrchestratorError."""
    config, consumer = orders.queue, orders.consumer
    settings = dataclasses.replace(config.settings(), create=False)
    pause_s = 0.0
    while True:
        try:
            queue = open_queue(
                config.url, settings=settings, host=orders.host, is_for_events=config.components is not None
            )
            queue.attach(consumer)
        except (QueueMissing, QueueUnavailable) as error:
            # The keeper has had it open, so its mount is away. To die of that would count as a fault of the handler's,
            # and the pool would back off. See test_a_worker_that_starts_while_the_mount_is_away_waits_for_it.
            if not pause_s:
                log.warning("worker %s[%d] waits: %s", config.name, consumer.index, error)
            pause_s = min(pause_s * 2 or 0.1, TROUBLE_S_MAX)
            if leaving.wait(pause_s) or os.getppid() != orders.parent:
                return None
        else:
            return queue


def _cannot_start(config: QueueConfig, consumer: Consumer, error: OrchestratorError) -> int:
    log.error("worker %s[%d] cannot start: %s", config.name, consumer.index, error)
    return 1


def _saver(directory: Path, queue: str, index: int) -> Callable[[Mapping[str, object]], None]:
    path = worker_file(directory, queue, index, os.getpid())
    return lambda state: save(path, state)


def _waiter(queue: Queue, consumer: Consumer) -> Wait:
    """At the queue's own descriptor or the feeder's pipe; without one, inotify where it works, else polling."""
    words = consumer.board.queues[consumer.queue_slot].words
    if isinstance(queue, Claimable) and queue.wait_fd >= 0:
        return at_queue(queue.wait_fd, words)
    if consumer.feed >= 0:
        return _at_the_pipe(consumer.feed, words)
    assert isinstance(queue, Claimable)  # noqa: S101 - as it was opened for a pool
    watcher = None
    if isinstance(queue, NoMessages) or queue.source().tree is not None:  # a tree's new directories need a feeder
        words[Q.WATCH] = 2
    else:
        watcher = watching(queue, consumer.board.queues[consumer.queue_slot])
    return polling(queue) if watcher is None else watcher.wait


def _at_the_pipe(feed: int, words: memoryview[int]) -> Wait:
    """Wait for a packet; each wakes one of those who wait."""
    at_pipe = at_descriptor(feed)

    def wait(timeout_s: float, fd: int) -> bool:
        if words[Q.PAUSED] or SYSTEM.boottime_ns() - words[Q.BEAT_NS] >= words[Q.HALF_TIMEOUT_NS]:
            return barred(timeout_s, fd)
        if timeout_s < WAIT_S:  # an event of components is due then
            return at_pipe(timeout_s, fd)
        # As long as the feeder may be silent before we scan for ourselves.
        silent_s = max(SYSTEM.boottime_ns() - words[Q.FED_NS], 0) / 1e9
        return at_pipe(max(SILENT_NS / 1e9 - silent_s + 0.01, timeout_s), fd)

    return wait


# ---- exporter


def export(listener: socket.socket, board: Board, parent: int) -> int:
    """The exporter: serves the board until its master is gone."""
    ignore(signal.SIGTERM)
    exporter.serve(listener, board, should_leave=lambda: os.getppid() != parent)
    return 0


# ---- keeper


@dataclass(frozen=True, slots=True)
class Keeping:
    """What the keeper is given: the board, who it keeps for, and its two pipes."""

    board: Board
    master: str
    host: str
    orders_fd: int
    reports_fd: int


def keep(keeping: Keeping) -> int:
    """The keeper: one thread a queue, until the pipe of orders ends; then the last releases."""
    ignore(signal.SIGTERM)
    keepers: dict[str, Kept] = {}
    places: dict[tuple[int, int], str] = {}
    reports = threading.Lock()

    def report(queue: str, refused: str | None) -> None:
        line = json.dumps({"queue": queue, "refused": refused}).encode() + b"\n"
        with reports, contextlib.suppress(BrokenPipeError):
            os.write(keeping.reports_fd, line)

    for order in _orders(keeping.orders_fd):
        name = str(order["queue"])
        if name not in keepers and order["do"] != "add":
            continue  # of a queue that was removed meanwhile
        match order["do"]:
            case "add":
                keepers[name] = _start(keeping, order, report, places)
            case "release":
                keepers[name][0].orders.put(Release(str(order["owner"]), order["cause"], str(order["note"])))  # type: ignore[arg-type]
            case "measure":
                keepers[name][0].orders.put(Measure())
            case "remove":
                keepers.pop(name)[0].orders.put(Leave())
                for place in [place for place, queue in places.items() if queue == name]:
                    del places[place]
    _end_orphans(keeping.board, {name: keeper for name, (keeper, _) in keepers.items()})
    for keeper, _ in keepers.values():
        keeper.orders.put(Leave())
    start_s = time.monotonic()
    for name, (keeper, thread) in keepers.items():
        patience_s = GRACE_S if keeper.busy_s() >= HANGS_S else LAST_S
        thread.join(max(start_s + patience_s - time.monotonic(), 0))
        if thread.is_alive():
            log.warning("queue %s does not answer; its claims go back by the lease", name)
    return 0


def _orders(fd: int) -> Iterator[dict[str, object]]:
    with open(fd, "rb", buffering=0) as pipe:
        rest = b""
        while part := pipe.read(65536):
            *lines, rest = (rest + part).split(b"\n")
            for line in lines:
                yield json.loads(line)


def _start(
    keeping: Keeping,
    order: dict[str, object],
    report: Callable[[str, str | None], None],
    places: dict[tuple[int, int], str],
) -> Kept:
    config = QueueConfig.model_validate(order["config"])
    consumer = Consumer(keeping.master, keeping.board, int(str(order["slot"])))
    keeping.board.queues[consumer.queue_slot].mend(QUEUE_COUNTERS)
    is_known = bool(order["is_known"])
    settings = config.settings()
    if is_known:
        settings = dataclasses.replace(settings, create=False)

    def open_it() -> Queue:
        queue = open_queue(
            config.url, settings=settings, host=keeping.host, is_for_events=config.components is not None
        )
        if isinstance(queue, Claimable) and not isinstance(queue, NoMessages):
            # By inode: a link or another spelling of the path is the same directory.
            found = os.stat(queue.identity)
            other = places.setdefault((found.st_dev, found.st_ino), config.name)
            if other != config.name:
                raise QueueRefused(f"{config.url} is the same directory as queue {other} of this pool: leave one out")
        if settings.create:
            _make(config.output or config.forward)
        return queue

    keeper = QueueKeeper(open_it, consumer)

    def run() -> None:
        try:
            keeper.run(lambda refused: report(config.name, refused), is_known=is_known)
        except BaseException:
            # A keeper without this thread would look alive and beat no more: the master makes another.
            log.exception("the keeper of queue %s failed", config.name)
            os._exit(1)

    thread = threading.Thread(target=run, name=config.name, daemon=True)
    thread.start()
    return keeper, thread


def _leads_a_session(pid: int) -> bool:
    """Whether *pid* leads a session, as every worker does: a damaged board may name a stranger."""
    try:
        return os.getsid(pid) == pid
    except ProcessLookupError:
        return False


def _make(target: str | None) -> None:
    """Make the queue that is handed on to, where it is a URL. One that cannot be made is waited for by the workers."""
    if target is not None and ":" in target:
        with contextlib.suppress(OrchestratorError, OSError):
            open_queue(target, create=True).close()


def _end_orphans(board: Board, keepers: Mapping[str, QueueKeeper]) -> None:
    """The master is gone. Its workers must be too, with all they started, before their claims go back."""
    found: list[tuple[Slot, int, int]] = []
    for number in board.worker_numbers():
        slot = board.worker(number)
        pid = process(slot.words[W.PID])
        if pid:
            # RACE: the worker may have ended and its number be used again: only while the start time is its own.
            # See test_nothing_outlives_a_killed_master_and_the_next_one_finishes_the_queue.
            is_there = SYSTEM.is_alive(pid, slot.words[W.START]) is not False and _leads_a_session(pid)
            if is_there or SYSTEM.start_ticks(pid) is None:
                kill_whole(pid)
            found.append((slot, number, pid))
    end_s = time.monotonic() + GRACE_S
    for slot, number, pid in found:
        while SYSTEM.is_alive(pid, slot.words[W.START]) and time.monotonic() < end_s:
            time.sleep(0.005)
        if SYSTEM.is_alive(pid, slot.words[W.START]):
            # It hangs in the kernel, and a call of it may still be done: whoever sees it gone gives back what it has.
            # See test_what_a_left_worker_has_in_hand_is_not_given_back_before_it_is_gone.
            continue
        owner = slot.text(WorkerText.OWNER)
        place = board.queue_of(number)
        queue = "" if place is None else place.text(QueueText.NAME) or ""
        slot.clear(PROCESS_WORDS, (WorkerText.OWNER, WorkerText.MESSAGE))
        if owner and queue in keepers:
            keepers[queue].orders.put(Release(owner, "unknown", "its master died"))
