"""
reading - the words of a board as values

One reading serves the metrics, /api/status and `orchestrator status`, so they cannot
differ. Nothing here writes to the board, touches a queue directory or raises for what
stands on the board: a negative number is 0, an unknown state is "unknown", a text that
its writer is in the middle of is "" (of a queue's name: the one read before; a queue
whose name was never read is left out).

Limits: the words of one reading are not of one instant.
See also: workers/board.py (the layout), usage (CPU and memory), status, metrics.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.usage import TICK_NS, Usage, UsageReader
from workers.board import (
    BUCKETS_S,
    EXIT_REASONS,
    OUTCOMES,
    Board,
    Q,
    QueueState,
    QueueText,
    Slot,
    W,
    WorkerState,
    WorkerText,
)
from workers.queues.feed import SILENT_NS
from workers.queues.names import shown
from workers.system import SYSTEM, System

WORKER_STATES = ("starting", "idle", "busy", "stopping", "backoff")
DEPTH_STATES = ("waiting", "claimed", "deferred", "errors")
SILENT_S = 10.0  # a queue is measured about once a second
HISTOGRAM_WORDS = len(BUCKETS_S) + 2  # the buckets, +Inf, and the sum in nanoseconds
NAMES_OF_QUEUE_STATES: Mapping[int, str] = {int(state): state.name.lower() for state in QueueState}

_WORKER_STATES: Mapping[int, str] = {int(state): state.name.lower() for state in WorkerState}
_DEPTHS = (Q.WAITING, Q.CLAIMED, Q.DEFERRED, Q.ERRORS)
# Ages in milliseconds when the keeper measured, not times.
_OLDEST = (Q.OLDEST_WAITING_MS, Q.OLDEST_CLAIMED_MS, Q.OLDEST_DEFERRED_MS, Q.OLDEST_ERRORS_MS)
_REAPED = (
    ("claim", "owner_dead", Q.REAPED_OWNER_DEAD),
    ("claim", "lease_lost", Q.REAPED_LEASE_LOST),
    ("claim", "too_old", Q.REAPED_TOO_OLD),
    ("claim", "crash_limit", Q.REAPED_CRASH_LIMIT),
    ("temporary", "too_old", Q.REAPED_TEMPORARY),
)


@dataclass(frozen=True, slots=True)
class WorkerReading:
    """
    One worker's slot. Ages in seconds, 0.0 for a slot without a process.

    Attributes:
        slot: its number on the board; index: of the worker within its queue.
        processing, waiting: the histograms' buckets (not cumulative), +Inf, then the sum in nanoseconds.
    """

    slot: int
    index: int
    pid: int
    state: str
    claims: int
    conflicts: int
    outcomes: dict[str, int]
    exits: dict[str, int]
    busy_s: float
    is_output_full: bool
    message: str
    message_age_s: float
    last_seen_age_s: float
    last_done_s: float
    processing: tuple[int, ...]
    waiting: tuple[int, ...]
    usage: Usage


@dataclass(frozen=True, slots=True)
class FeederReading:
    """A queue's feeder. Who never gave a sign of life is silent since it was started."""

    pid: int
    last_seen_age_s: float
    cpu_s: float

    @property
    def is_silent(self) -> bool:
        """Whether the workers scan for themselves meanwhile."""
        return self.last_seen_age_s >= SILENT_NS / 1e9


@dataclass(frozen=True, slots=True)
class QueueReading:
    """
    One queue's slot and the workers of it.

    Attributes:
        measured_s: unix time; measured_age_s: since then, or since the pool has the queue.
        clock_offset_s: this host's wall clock less the filesystem's, as the keeper has read that; 0.0 before.
        unmeasured_s: the same when that is longer than it should be, else 0.0.
        reaped: by (kind, reason).
    """

    name: str
    url: str
    state: str
    reason: str
    is_paused: bool
    is_output_full: bool
    is_backed_off: bool
    target: int
    depth: dict[str, int]
    oldest_age_s: dict[str, float]
    ignored: int
    measured_s: float
    measured_age_s: float
    unmeasured_s: float
    measure_duration_s: float
    clock_offset_s: float
    reaped: dict[tuple[str, str], int]
    free_bytes: int
    free_inodes: int
    watch: str
    filesystem: str
    poll_interval_s: float
    feeder: FeederReading | None
    workers: list[WorkerReading] = field(default_factory=list)

    @property
    def worker_states(self) -> dict[str, int]:
        """How many workers are in each of WORKER_STATES; a slot without a process is in none."""
        return {state: sum(worker.state == state for worker in self.workers) for state in WORKER_STATES}

    @property
    def arrivals(self) -> str:
        """How new messages are noticed now, for a person."""
        if self.feeder is not None and self.feeder.is_silent:
            return f"workers scan (feeder silent for {self.feeder.last_seen_age_s:.0f} s)"
        if self.watch != "poll":
            return self.watch
        place = f" ({self.filesystem})" if self.filesystem else ""
        return f"poll every {self.poll_interval_s:g} s at most{place}"


class BoardReader:
    """
    Reads one board again and again, remembering what a reader has to: the last good name of a
    queue, and what UsageReader does. One per process; threads may share it.
    """

    def __init__(self, board: Board, system: System = SYSTEM) -> None:
        self.board = board
        self._system = system
        self._usage = UsageReader(system)
        self._names: dict[int, str] = {}

    def read(self) -> list[QueueReading]:
        """Every queue in use with its workers. Never blocks on a queue, never raises for what the board holds."""
        numbers = self.board.queue_numbers()
        workers: dict[int, dict[int, WorkerReading]] = {number: {} for number in numbers}
        for slot in self.board.worker_numbers():
            words = self.board.worker(slot).words
            queue, index = words[W.QUEUE], count(words[W.INDEX])
            # Two slots of one index cannot be; were the board damaged, two series of one name would break the scrape.
            if queue in workers and index not in workers[queue]:
                workers[queue][index] = self._worker(slot, index)
        readings: dict[str, QueueReading] = {}
        for number in numbers:
            name = self._name(number)
            if name is not None and name not in readings:
                readings[name] = self._queue(self.board.queues[number], name, workers[number])
        return list(readings.values())

    def _name(self, number: int) -> str | None:
        text = self.board.queues[number].text(QueueText.NAME)
        if text:
            self._names[number] = shown(text)
        return self._names.get(number)

    def _worker(self, slot: int, index: int) -> WorkerReading:
        place = self.board.worker(slot)
        words = place.words
        pid, since_ns, seen_ns = count(words[W.PID]), count(words[W.MESSAGE_SINCE_NS]), count(words[W.LAST_SEEN_NS])
        has_process = pid > 0
        now_ns = self._system.boottime_ns()
        return WorkerReading(
            slot=slot,
            index=index,
            pid=pid,
            state="backoff" if words[W.BACKOFF] else _WORKER_STATES.get(words[W.STATE], "unknown"),
            claims=count(words[W.CLAIMS]),
            conflicts=count(words[W.CONFLICTS]),
            outcomes={name: count(words[W.DONE + offset]) for offset, name in enumerate(OUTCOMES)},
            exits={name: count(words[W.EXITS_FINISHED + offset]) for offset, name in enumerate(EXIT_REASONS)},
            busy_s=count(words[W.BUSY_NS]) / 1e9,
            is_output_full=words[W.OUTPUT_FULL] != 0,
            message=printable(place, WorkerText.MESSAGE) if has_process and since_ns else "",
            message_age_s=age_s(now_ns, since_ns) if has_process else 0.0,
            last_seen_age_s=age_s(now_ns, seen_ns) if has_process else 0.0,
            last_done_s=count(words[W.LAST_DONE_MS]) / 1e3,
            processing=tuple(count(words[W.PROCESSING + offset]) for offset in range(HISTOGRAM_WORDS)),
            waiting=tuple(count(words[W.WAITING + offset]) for offset in range(HISTOGRAM_WORDS)),
            usage=self._usage.read(slot, words),
        )

    def _queue(self, place: Slot, name: str, workers: dict[int, WorkerReading]) -> QueueReading:
        words, now_ns = place.words, self._system.boottime_ns()
        return QueueReading(
            name=name,
            url=printable(place, QueueText.URL),
            state=NAMES_OF_QUEUE_STATES.get(words[Q.READY], "unknown"),
            reason=printable(place, QueueText.REASON),
            is_paused=words[Q.PAUSED] != 0,
            is_output_full=any(worker.is_output_full for worker in workers.values()),
            is_backed_off=words[Q.BACKED_OFF] != 0,
            target=count(words[Q.TARGET]),
            depth={state: count(words[word]) for state, word in zip(DEPTH_STATES, _DEPTHS, strict=True)},
            oldest_age_s={state: count(words[word]) / 1e3 for state, word in zip(DEPTH_STATES, _OLDEST, strict=True)},
            ignored=count(words[Q.IGNORED]),
            measured_s=count(words[Q.MEASURED_MS]) / 1e3,
            measured_age_s=measured_age_s(words, now_ns),
            unmeasured_s=unmeasured_s(words, now_ns),
            measure_duration_s=count(words[Q.MEASURE_NS]) / 1e9,
            clock_offset_s=self._clock_offset_s(words),
            reaped={(kind, reason): count(words[word]) for kind, reason, word in _REAPED},
            free_bytes=count(words[Q.FREE_BYTES]),
            free_inodes=count(words[Q.FREE_INODES]),
            watch={1: "inotify", 2: "poll"}.get(words[Q.WATCH], ""),
            filesystem=printable(place, QueueText.FILESYSTEM),
            poll_interval_s=count(words[Q.POLL_MS]) / 1e3,
            feeder=self._feeder(words),
            workers=[workers[index] for index in sorted(workers)],
        )

    def _clock_offset_s(self, words: memoryview[int]) -> float:
        if not words[Q.CLOCK_NS]:
            return 0.0
        return (self._system.wall_ns() - self._system.boottime_ns() - words[Q.CLOCK_NS]) / 1e9

    def _feeder(self, words: memoryview[int]) -> FeederReading | None:
        pid = count(words[Q.FEEDER_PID])
        if not pid:
            return None
        seen_ns = words[Q.FED_NS] or (self._system.start_ticks(pid) or 0) * TICK_NS
        return FeederReading(pid, age_s(self._system.boottime_ns(), seen_ns), self._usage.of_process(pid))


def unmeasured_s(words: memoryview[int], now_ns: int) -> float:
    """
    For how long a queue has not been measured; 0.0 when that is no longer than it may be, even where it takes its time.
    """
    age = measured_age_s(words, now_ns)
    # The keeper leaves ten times what a measure takes between two of them.
    return age if age >= SILENT_S + 12 * count(words[Q.MEASURE_NS]) / 1e9 else 0.0


def measured_age_s(words: memoryview[int], now_ns: int) -> float:
    """Seconds since a queue was last measured, or since the pool has it."""
    return age_s(now_ns, max(words[Q.MEASURED_NS], words[Q.SINCE_NS]))


def count(word: int) -> int:
    """A word that counts something; what no count can be is 0."""
    return max(word, 0)


def age_s(now_ns: int, then_ns: int) -> float:
    """Seconds from *then_ns* to *now_ns*, never negative; 0.0 where *then_ns* says never."""
    return max(now_ns - then_ns, 0) / 1e9 if then_ns > 0 else 0.0


def printable(place: Slot, which: int) -> str:
    """A text of *place* that a terminal or a page can show, "" while it is being written."""
    return shown(place.text(which) or "")
