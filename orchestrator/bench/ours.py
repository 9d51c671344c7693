"""
ours - this project's queue and worker, without a pool around them

Producers call put; workers run workers.worker.Worker over a board, as in a pool, with a
handler that reads the body. No master, keeper or feeder runs beside them.

Raises: BenchError when not every message was handled.
See also: pool (with all of them).
"""

from __future__ import annotations

import os
from pathlib import Path

from orchestrator.bench.crew import Gate, Run, run_together, share_of
from orchestrator.bench.measure import BenchError
from orchestrator.bench.subject import Load, Subject
from workers.board import Board, Q, W
from workers.handlers import echo
from workers.queues import names
from workers.queues.base import Consumer, Settings
from workers.queues.open import open_queue
from workers.system import SYSTEM
from workers.waiting import Leaving
from workers.worker import Worker

LEASE_NS = 1 << 62  # no keeper beats here, and no measurement takes a century


def queue_of(place: Path) -> str:
    """The URL of the queue at *place*."""
    return f"spool:{place}/queue"


def fill(place: Path, load: Load, count: int) -> Run:
    """Make the queue at *place* and put ``load.messages`` with *count* producers."""
    url = queue_of(place)
    open_queue(url, create=True).close()

    def role(index: int, gate: Gate) -> None:
        with open_queue(url) as queue:
            left = share_of(load.messages, index, count)
            gate.pass_()
            for _ in range(left):
                queue.put(load.body, durable=False)
            gate.finish(left)

    return run_together(count, role, is_traced=load.is_traced)


class Library(Subject):
    """Processes of ours that run the worker."""

    name = "library"

    def put(self, place: Path, load: Load, count: int) -> Run:
        """Call put, not durable."""
        return fill(place, load, count)

    def take(self, place: Path, load: Load, count: int) -> Run:
        """Run Worker until it finds nothing."""
        url = queue_of(place)
        board = Board.create()
        slot = board.take_queue("bench", url)
        words = board.queues[slot].words
        words[Q.HALF_TIMEOUT_NS], words[Q.BEAT_NS] = LEASE_NS, SYSTEM.boottime_ns()
        master = names.master_name("bench", SYSTEM)
        slots = [board.take_worker(slot, index) for index in range(count)]

        def role(index: int, gate: Gate) -> None:
            leaving = Leaving()
            own = board.worker(slots[index]).words

            def found_nothing(_timeout_s: float, _fd: int) -> bool:
                gate.finish(own[W.DONE], own[W.CONFLICTS])
                leaving.ask()
                return True

            with open_queue(url, settings=Settings(order=load.order), host="bench") as queue:
                consumer = Consumer(master, board, slot, slots[index], index, count)
                queue.attach(consumer)
                worker = Worker(queue, echo.read, consumer, leaving, wait=found_nothing, parent=os.getppid())
                gate.pass_()
                worker.run()

        run = run_together(count, role, is_traced=load.is_traced)
        if run.handled != load.messages:
            raise BenchError(
                f"{run.handled} of {load.messages} messages in {url} were handled; who else uses that directory?"
            )
        return run
