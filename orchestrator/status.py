"""
status - what a pool says of itself: one dict for JSON, and the answers to the two probes

snapshot() is the reading that the metrics are made of, for /api/status and
`orchestrator status --json`. is_healthy() says whether the master's loop makes
progress, is_ready() whether every queue can be claimed from; both with reasons a
person can act on. All of it is read from the board alone, a running master is not
needed; nothing raises for what stands there.
See also: reading, exporter, workers/board.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from orchestrator.reading import (
    DEPTH_STATES,
    NAMES_OF_QUEUE_STATES,
    WORKER_STATES,
    BoardReader,
    QueueReading,
    age_s,
    count,
    printable,
    unmeasured_s,
)
from orchestrator.usage import TICK_NS
from workers.board import EXIT_REASONS, OUTCOMES, Board, Header, HeaderText, MasterState, Q, QueueText, W, WorkerState
from workers.system import SYSTEM, System

HEALTH_LIMIT_S = 5.0

_MASTER_STATES: Mapping[int, str] = {int(state): state.name.lower() for state in MasterState}


def snapshot(board: Board, reader: BoardReader | None = None, system: System = SYSTEM) -> dict[str, object]:
    """Everything the board says, as JSON can hold it; times that are no ages are unix seconds, 0 for never."""
    words = board.header.words
    now_ns, started_s = system.boottime_ns(), count(words[Header.STARTED_S])
    queues = (reader or BoardReader(board, system)).read()
    is_ok, why_not = is_healthy(board, now_ns)
    is_fit, reasons = is_ready(board, system)
    everyone = [worker for queue in queues for worker in queue.workers]
    return {
        "name": printable(board.header, HeaderText.NAME),
        "host": printable(board.header, HeaderText.HOST),
        "master": printable(board.header, HeaderText.MASTER),
        "master_pid": count(words[Header.MASTER_PID]),
        "state": _master_state(board),
        "started_at": started_s,
        "uptime_s": age_s(now_ns, count(words[Header.MASTER_START]) * TICK_NS),
        "last_seen_age_s": age_s(now_ns, count(words[Header.LAST_SEEN_NS])),
        "listen": printable(board.header, HeaderText.LISTEN),
        "healthy": is_ok,
        "unhealthy_because": why_not,
        "ready": is_fit,
        "not_ready_because": reasons,
        "reload": {"successful": words[Header.RELOAD_OK] == 1, "at": count(words[Header.RELOADED_S])},
        "queues": [_queue_dict(queue) for queue in queues],
        "totals": {
            "workers": {state: sum(queue.worker_states[state] for queue in queues) for state in WORKER_STATES},
            "target": sum(queue.target for queue in queues),
            "depth": {state: sum(queue.depth[state] for queue in queues) for state in DEPTH_STATES},
            "claims": sum(worker.claims for worker in everyone),
            "conflicts": sum(worker.conflicts for worker in everyone),
            "outcomes": {name: sum(worker.outcomes[name] for worker in everyone) for name in OUTCOMES},
            "exits": {name: sum(worker.exits[name] for worker in everyone) for name in EXIT_REASONS},
            "busy_s": sum(worker.busy_s for worker in everyone),
            "cpu_s": sum(worker.usage.cpu_s for worker in everyone),
        },
    }


def is_healthy(board: Board, now_ns: int, limit_s: float = HEALTH_LIMIT_S) -> tuple[bool, str]:
    """Whether the master's loop made progress within *limit_s* of *now_ns* (CLOCK_BOOTTIME), and why not."""
    seen_ns = board.header.words[Header.LAST_SEEN_NS]
    if seen_ns <= 0:
        return False, "the master has not been round its loop yet"
    seconds = (now_ns - seen_ns) / 1e9
    if seconds > limit_s:
        return (
            False,
            f"the master was last round its loop {seconds:.0f} s ago (limit {limit_s:g} s): it hangs or is gone",
        )
    if seconds < -limit_s:
        return False, "the master's last sign of life lies in the future: the board is of another boot, or damaged"
    return True, ""


def is_ready(board: Board, system: System = SYSTEM) -> tuple[bool, list[str]]:
    """Whether every queue can be claimed from, and one sentence for each that cannot."""
    reasons: list[str] = []
    state = _master_state(board)
    if state in ("draining", "stopping"):
        reasons.append(f"the pool is {state}")
    numbers = board.queue_numbers()
    if not numbers:
        reasons.append("no queue is set up yet")
    for number in numbers:
        place = board.queues[number]
        name = printable(place, QueueText.NAME) or f"number {number}"
        reasons += [f"queue {name}: {why}" for why in _not_ready(board, number, system)]
    return not reasons, reasons


def _not_ready(board: Board, number: int, system: System) -> list[str]:
    place = board.queues[number]
    words, found = place.words, []
    state = NAMES_OF_QUEUE_STATES.get(words[Q.READY], "unknown")
    if state != "ready":
        reason = printable(place, QueueText.REASON)
        found.append((state if state != "unknown" else "not opened yet") + (f": {reason}" if reason else ""))
    if words[Q.BACKED_OFF]:
        found.append("backed off: its workers died in a row without settling one message; the log says of what")
    beat_ns, half_ns, now_ns = words[Q.BEAT_NS], words[Q.HALF_TIMEOUT_NS], system.boottime_ns()
    if state in ("ready", "unknown") and (silent_s := unmeasured_s(words, now_ns)):
        found.append(f"not measured for {silent_s:.0f} s: its filesystem does not answer")
    if half_ns > 0:
        age_ns = now_ns - beat_ns
        if beat_ns <= 0:
            found.append("its lease was never beaten")
        elif age_ns >= half_ns:
            found.append(f"its lease was last beaten {age_ns / 1e9:.0f} s ago, workers claim up to {half_ns / 1e9:g} s")
    working = (WorkerState.IDLE, WorkerState.BUSY)
    if not any(board.worker(slot).words[W.STATE] in working for slot in board.worker_numbers(number)):
        found.append("no worker is idle or busy")
    return found


def _queue_dict(queue: QueueReading) -> dict[str, object]:
    return {
        "name": queue.name,
        "url": queue.url,
        "state": queue.state,
        "reason": queue.reason,
        "paused": queue.is_paused,
        "output_full": queue.is_output_full,
        "backed_off": queue.is_backed_off,
        "target": queue.target,
        "depth": {**queue.depth, "ignored": queue.ignored},
        "oldest_age_s": queue.oldest_age_s,
        "measured_at": queue.measured_s,
        "measured_age_s": queue.measured_age_s,
        "unmeasured_s": queue.unmeasured_s,
        "measure_duration_s": queue.measure_duration_s,
        "clock_offset_s": queue.clock_offset_s,
        "reaped": [{"kind": kind, "reason": why, "count": number} for (kind, why), number in queue.reaped.items()],
        "free_bytes": queue.free_bytes,
        "free_inodes": queue.free_inodes,
        "watch": queue.watch,
        "filesystem": queue.filesystem,
        "poll_interval_s": queue.poll_interval_s,
        "arrivals": queue.arrivals,
        "feeder": None if queue.feeder is None else dataclasses.asdict(queue.feeder),
        "last_done_at": max((worker.last_done_s for worker in queue.workers), default=0.0),
        "workers": [
            {
                "index": worker.index,
                "pid": worker.pid,
                "state": worker.state,
                "message": worker.message,
                "message_age_s": worker.message_age_s,
                "last_seen_age_s": worker.last_seen_age_s,
                "last_done_at": worker.last_done_s,
                "claims": worker.claims,
                "conflicts": worker.conflicts,
                "outcomes": worker.outcomes,
                "exits": worker.exits,
                "busy_s": worker.busy_s,
                "cpu_s": worker.usage.cpu_s,
                "resident_bytes": worker.usage.resident_bytes,
                "proportional_bytes": worker.usage.proportional_bytes,
            }
            for worker in queue.workers
        ],
    }


def _master_state(board: Board) -> str:
    return _MASTER_STATES.get(board.header.words[Header.STATE], "unknown")
