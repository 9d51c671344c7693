"""
metrics - the board as Prometheus metrics

One Collector reads the board at each scrape: no per-process files, nothing to merge,
O(workers), no queue directory is touched. A worker is labelled by its index, a queue
by its name, so the label sets stay bounded; each series is there with 0 before the
first message.

Names, types and labels are a promise to dashboards: EXPECTED in tests/unit/test_metrics.py lists them.
See also: reading (how a word becomes a number), exporter (serves this).
"""

from __future__ import annotations

import itertools
import platform
from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector, CollectorRegistry

from orchestrator import __version__
from orchestrator.reading import BoardReader, QueueReading, WorkerReading
from workers.board import BUCKETS_S, Board, Header

BOUNDS = tuple(str(bound) for bound in BUCKETS_S)

Family = CounterMetricFamily | GaugeMetricFamily
Rows = Iterable[tuple[dict[str, str], float]]


class BoardCollector(Collector):
    """Yields every metric that the board can fill. Threads may share it."""

    def __init__(self, board: Board, reader: BoardReader | None = None) -> None:
        self._board = board
        self._reader = reader or BoardReader(board)
        self._build = {"version": __version__, "python": platform.python_version()}

    def collect(self) -> Iterator[Metric]:
        """Read the board once and yield it. Never raises for what the board holds."""
        queues = self._reader.read()
        yield InfoMetricFamily("orchestrator_build", "Version of this program and of its Python.", value=self._build)
        yield from self._of_pool()
        yield from _of_queues(queues)
        yield from _of_workers(queues)
        yield _histogram(
            "orchestrator_message_processing_seconds",
            "Time a message spent in the handler.",
            {queue.name: [worker.processing for worker in queue.workers] for queue in queues},
        )
        yield _histogram(
            "orchestrator_message_waiting_seconds",
            "Time from the put of a message to its claim.",
            {queue.name: [worker.waiting for worker in queue.workers] for queue in queues},
        )

    def _of_pool(self) -> Iterator[Metric]:
        words = self._board.header.words
        yield GaugeMetricFamily(
            "orchestrator_config_last_reload_successful",
            "1 when the last reload of the configuration was taken over, 0 when the old one was kept.",
            value=float(words[Header.RELOAD_OK] == 1),
        )
        yield GaugeMetricFamily(
            "orchestrator_config_last_reload_success_timestamp_seconds",
            "When a configuration was last taken over, unix time.",
            value=float(max(words[Header.RELOADED_S], 0)),
        )


def registry(board: Board, reader: BoardReader | None = None) -> CollectorRegistry:
    """A registry with the metrics of *board* alone: none of the exporter's own process."""
    found = CollectorRegistry()
    found.register(BoardCollector(board, reader))
    return found


def _of_queues(queues: list[QueueReading]) -> Iterator[Metric]:
    def rows(value: Callable[[QueueReading], float]) -> Rows:
        return (({"queue": queue.name}, value(queue)) for queue in queues)

    def by_state(label: str, values: Callable[[QueueReading], dict[str, int] | dict[str, float]]) -> Rows:
        for queue in queues:
            for state, value in values(queue).items():
                yield {"queue": queue.name, label: state}, value

    yield _gauge("orchestrator_pool_target_workers", "Workers wanted now.", rows(lambda queue: queue.target))
    yield _gauge(
        "orchestrator_workers", "Workers there are, by state.", by_state("state", lambda queue: queue.worker_states)
    )
    yield _gauge(
        "orchestrator_queue_messages", "Messages as last measured.", by_state("state", lambda queue: queue.depth)
    )
    yield _gauge(
        "orchestrator_queue_oldest_message_age_seconds",
        "Age of the oldest message, 0 when there is none.",
        by_state("state", lambda queue: queue.oldest_age_s),
    )
    yield _gauge(
        "orchestrator_queue_measured_timestamp_seconds",
        "When the queue was last measured, unix time; it stands still when its filesystem hangs.",
        rows(lambda queue: queue.measured_s),
    )
    yield _gauge(
        "orchestrator_queue_measured_age_seconds",
        "Time since the queue was last measured, or since the pool has it; it grows while its filesystem hangs.",
        rows(lambda queue: queue.measured_age_s),
    )
    yield _gauge(
        "orchestrator_queue_clock_offset_seconds",
        "This host's wall clock less that of the queue's filesystem: ages of messages may be wrong by as much.",
        rows(lambda queue: queue.clock_offset_s),
    )
    yield _gauge(
        "orchestrator_queue_measure_duration_seconds",
        "How long the last measuring took.",
        rows(lambda queue: queue.measure_duration_s),
    )
    yield _counter(
        "orchestrator_reaped_total",
        "What the keeper put back or cleaned up.",
        (
            ({"queue": queue.name, "kind": kind, "reason": reason}, count)
            for queue in queues
            for (kind, reason), count in {**queue.reaped, ("lock", "too_old"): 0}.items()
        ),
    )
    yield _gauge(
        "orchestrator_queue_paused", "1 while nobody claims from it.", rows(lambda queue: float(queue.is_paused))
    )
    yield _gauge(
        "orchestrator_queue_output_full",
        "1 while a worker claims nothing because the queue that it hands on to is full, or away.",
        rows(lambda queue: float(queue.is_output_full)),
    )
    yield _gauge(
        "orchestrator_queue_watch_info",
        "1 for the way arrivals are noticed.",
        by_state("mode", lambda queue: {mode: float(queue.watch == mode) for mode in ("inotify", "poll")}),
    )
    yield from _of_feeders(queues)
    yield _gauge(
        "orchestrator_queue_last_done_timestamp_seconds",
        "When a message was last done, unix time; 0 for never.",
        rows(lambda queue: max((worker.last_done_s for worker in queue.workers), default=0.0)),
    )
    yield _gauge(
        "orchestrator_filesystem_free_bytes",
        "Free space on the filesystem that holds the queue.",
        rows(lambda queue: queue.free_bytes),
    )
    yield _gauge(
        "orchestrator_filesystem_free_inodes",
        "Free inodes on the filesystem that holds the queue.",
        rows(lambda queue: queue.free_inodes),
    )


def _of_feeders(queues: list[QueueReading]) -> Iterator[Metric]:
    feeders = [({"queue": queue.name}, queue.feeder) for queue in queues if queue.feeder is not None]
    yield _gauge(
        "orchestrator_queue_feeder_info",
        "1 for the process that finds the messages; none where there is no feeder.",
        (({**labels, "pid": str(feeder.pid)}, 1.0) for labels, feeder in feeders),
    )
    yield _gauge(
        "orchestrator_queue_feeder_last_seen_age_seconds",
        "Time since the feeder's last sign of life; the workers scan for themselves from 2.5 s on.",
        ((labels, feeder.last_seen_age_s) for labels, feeder in feeders),
    )
    yield _counter(
        "orchestrator_queue_feeder_cpu_seconds_total",
        "User and system time of the feeder's process; one that takes its place starts at 0.",
        ((labels, feeder.cpu_s) for labels, feeder in feeders),
    )


def _of_workers(queues: list[QueueReading]) -> Iterator[Metric]:
    workers = [
        ({"queue": queue.name, "worker": str(worker.index)}, worker) for queue in queues for worker in queue.workers
    ]

    def rows(value: Callable[[WorkerReading], float]) -> Rows:
        return ((labels, value(worker)) for labels, worker in workers)

    def by(label: str, values: Callable[[WorkerReading], dict[str, int]]) -> Rows:
        for labels, worker in workers:
            for key, value in values(worker).items():
                yield {**labels, label: key}, value

    yield _gauge(
        "orchestrator_worker_info",
        "1 for the process in a worker's slot.",
        (({**labels, "pid": str(worker.pid)}, 1.0) for labels, worker in workers if worker.pid),
    )
    yield _counter(
        "orchestrator_worker_messages_total", "Settled messages.", by("outcome", lambda worker: worker.outcomes)
    )
    yield _counter("orchestrator_worker_claims_total", "Claims won.", rows(lambda worker: worker.claims))
    yield _counter(
        "orchestrator_worker_claim_conflicts_total",
        "Claims lost to another worker that was first.",
        rows(lambda worker: worker.conflicts),
    )
    yield _counter(
        "orchestrator_worker_busy_seconds_total", "Time inside the handler.", rows(lambda worker: worker.busy_s)
    )
    yield _counter(
        "orchestrator_worker_exits_total", "Ends of a worker's process.", by("reason", lambda worker: worker.exits)
    )
    yield _counter(
        "orchestrator_worker_cpu_seconds_total",
        "User and system time of a worker over all its processes.",
        rows(lambda worker: worker.usage.cpu_s),
    )
    yield _gauge(
        "orchestrator_worker_resident_memory_bytes",
        "Resident memory (RSS).",
        rows(lambda worker: worker.usage.resident_bytes),
    )
    yield _gauge(
        "orchestrator_worker_proportional_memory_bytes",
        "Resident memory with what is shared divided among its sharers (PSS), at most 10 s old; 0 when unreadable.",
        rows(lambda worker: worker.usage.proportional_bytes),
    )
    yield _gauge(
        "orchestrator_worker_message_age_seconds",
        "Time since the message in hand was taken, 0 when idle.",
        rows(lambda worker: worker.message_age_s),
    )
    yield _gauge(
        "orchestrator_worker_last_seen_age_seconds",
        "Time since the worker's last sign of life, 0 without a process.",
        rows(lambda worker: worker.last_seen_age_s),
    )


def _gauge(name: str, meaning: str, rows: Rows) -> Metric:
    return _filled(GaugeMetricFamily(name, meaning), name, rows)


def _counter(name: str, meaning: str, rows: Rows) -> Metric:
    return _filled(CounterMetricFamily(name, meaning), name, rows)


def _filled(family: Family, sample: str, rows: Rows) -> Metric:
    for labels, value in rows:
        family.add_sample(sample, labels, value)
    return family


def _histogram(name: str, meaning: str, histograms: dict[str, list[tuple[int, ...]]]) -> Metric:
    """Sum each queue's *histograms*, one of HISTOGRAM_WORDS words a worker, into cumulative buckets."""
    family = HistogramMetricFamily(name, meaning, labels=["queue"])
    for queue, words in histograms.items():
        *counts, sum_ns = (sum(column) for column in zip(*words, strict=True)) if words else [0] * (len(BOUNDS) + 2)
        family.add_metric(
            [queue], list(zip((*BOUNDS, "+Inf"), itertools.accumulate(counts), strict=True)), sum_value=sum_ns / 1e9
        )
    return family
