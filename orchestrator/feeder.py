"""
feeder - the process that feeds the workers of one queue with names

It opens the queue and runs workers.queues.feeder until its master is gone or ends it.
A filesystem that hangs, or goes away, holds up this process only: the board then shows
no sign of life of it and workers scan for themselves.

See also: workers.queues.feeder (what is fed, when), master (which forks one for each
queue, and another when it dies), watch (how arrivals are seen).
"""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
from dataclasses import dataclass

from orchestrator.child import ignore
from orchestrator.config import QueueConfig
from orchestrator.watch import watching
from workers.board import Board
from workers.errors import OrchestratorError
from workers.queues.base import Claimable
from workers.queues.feeder import TROUBLE_S_MAX, Feeder, Feeding
from workers.queues.open import open_queue
from workers.system import SYSTEM

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Orders:
    """What a feeder is given. *feed* are the ends of its pipe, *parent* is the master."""

    queue: QueueConfig
    host: str
    board: Board
    slot: int
    feed: tuple[int, int]
    parent: int


def feed(orders: Orders) -> int:
    """A feeder: until its master is gone, or kills it."""
    ignore(signal.SIGTERM)

    def is_over() -> bool:
        return os.getppid() != orders.parent

    trouble = ""
    queue = None
    while queue is None and not is_over():
        try:
            queue = _opened(orders)
        except OrchestratorError as error:
            if str(error) != trouble:
                trouble = str(error)
                log.warning("the feeder of queue %s waits: %s", orders.queue.name, error)
            SYSTEM.sleep(TROUBLE_S_MAX)
    if queue is not None:
        reader, writer = orders.feed
        opened, slot = queue, orders.board.queues[orders.slot]
        feeding = Feeding(
            url=queue.url,
            source=queue.source(),
            order=queue.settings.order,
            board=orders.board,
            queue_slot=orders.slot,
            reader=reader,
            writer=writer,
            watch=lambda: watching(opened, slot),
            poll_interval_s=queue.poll_interval_s,
            is_network=queue.network is not None,
        )
        Feeder(feeding, SYSTEM).run(is_over)
    return 0


def _opened(orders: Orders) -> Claimable:
    config = orders.queue
    queue = open_queue(config.url, settings=dataclasses.replace(config.settings(), create=False), host=orders.host)
    assert isinstance(queue, Claimable)  # noqa: S101 - the keeper has refused what cannot be claimed from
    return queue
