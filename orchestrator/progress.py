"""
progress - what a run shows while it works and says at its end

A bar on a terminal (done, rate, remaining) or a line in the log now and then, made from
the board in the master's tick and never by a thread; and the summary of a run that ends
by itself.
See also: master (calls on_tick), cli.run, cli.bridge, cli.demo.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import Protocol

from rich import progress
from rich.console import Console
from rich.table import Table

from workers.board import EXIT_REASONS, OUTCOMES, Board, Q, QueueText, W

log = logging.getLogger(__name__)

ENDED = ("done", "forwarded", "rejected", "input_gone")  # outcomes after which a message is no longer in its queue


@dataclass(frozen=True, slots=True)
class WorkerSummary:
    """One worker's share of a run, over all its processes; seconds."""

    queue: str
    index: int
    outcomes: dict[str, int]
    claims: int
    conflicts: int
    busy_s: float
    exits: dict[str, int]

    @property
    def ended(self) -> int:
        """Messages that it finished for good."""
        return sum(self.outcomes[outcome] for outcome in ENDED)


@dataclass(frozen=True, slots=True)
class Summary:
    """A run, as --json says it. *messages* counts those that ended: done, forwarded or moved to errors/."""

    seconds: float
    outcomes: dict[str, int]
    crash_limit: int
    reaped: int
    workers: list[WorkerSummary]

    @property
    def messages(self) -> int:
        """See the class."""
        return sum(self.outcomes[outcome] for outcome in ENDED) + self.crash_limit

    def as_json(self) -> dict[str, object]:
        """One object for scripts."""
        return {
            "messages": self.messages,
            "seconds": round(self.seconds, 3),
            "rate": round(self.messages / self.seconds, 1) if self.seconds > 0 else 0.0,
            "outcomes": self.outcomes,
            "crash_limit": self.crash_limit,
            "reaped": self.reaped,
            "workers": [
                {
                    "queue": one.queue,
                    "worker": one.index,
                    "messages": one.ended,
                    "claims": one.claims,
                    "claim_conflicts": one.conflicts,
                    "busy_seconds": round(one.busy_s, 3),
                    "outcomes": one.outcomes,
                    "exits": one.exits,
                }
                for one in self.workers
            ],
        }


def summarise(board: Board, seconds: float) -> Summary:
    """Read the whole run off the board."""
    workers = []
    for number in board.worker_numbers():
        words = board.worker(number).words
        slot = board.queue_of(number)
        workers.append(
            WorkerSummary(
                queue="" if slot is None else slot.text(QueueText.NAME) or "",
                index=words[W.INDEX],
                outcomes={outcome: words[W.DONE + offset] for offset, outcome in enumerate(OUTCOMES)},
                claims=words[W.CLAIMS],
                conflicts=words[W.CONFLICTS],
                busy_s=words[W.BUSY_NS] / 1e9,
                exits={reason: words[W.EXITS_FINISHED + offset] for offset, reason in enumerate(EXIT_REASONS)},
            )
        )
    outcomes = {outcome: sum(one.outcomes[outcome] for one in workers) for outcome in OUTCOMES}
    queues = [slot.words for slot in board.queues if slot.words[Q.USED]]
    return Summary(
        seconds=seconds,
        outcomes=outcomes,
        crash_limit=sum(words[Q.REAPED_CRASH_LIMIT] for words in queues),
        reaped=sum(words[Q.REAPED_OWNER_DEAD] + words[Q.REAPED_LEASE_LOST] for words in queues),
        workers=workers,
    )


def left_of(board: Board) -> int:
    """Messages that are not finished, as last measured."""
    queues = [slot.words for slot in board.queues if slot.words[Q.USED] == 1]
    return sum(words[Q.WAITING] + words[Q.CLAIMED] + words[Q.DEFERRED] for words in queues)


def table(summary: Summary) -> Table:
    """The summary for a person: a line per worker."""
    shown = Table(title=f"{summary.messages} messages in {summary.seconds:.1f} s")
    for name in ("queue", "worker", "done", "retried", "rejected", "lost races", "busy s", "replaced"):
        shown.add_column(name, justify="left" if name == "queue" else "right")
    for one in summary.workers:
        shown.add_row(
            one.queue,
            str(one.index),
            str(one.outcomes["done"] + one.outcomes["forwarded"]),
            str(one.outcomes["retried"]),
            str(one.outcomes["rejected"]),
            str(one.conflicts),
            f"{one.busy_s:.2f}",
            str(sum(count for reason, count in one.exits.items() if reason != "finished")),
        )
    return shown


class Progress(Protocol):
    """What shows how far a run is. ``draw`` is called in every tick."""

    def draw(self, board: Board) -> None:
        """Show what the board says now, when it is time to."""

    def close(self) -> None:
        """The run has ended."""


@dataclass(slots=True)
class Lines:
    """A line in the log every *every_s* seconds, for a run that nobody watches."""

    doing: str
    every_s: float = 10.0
    _said_s: float = field(default_factory=time.monotonic)
    _said: int = 0

    def draw(self, board: Board) -> None:
        """Say it when it is time and something has happened."""
        now_s = time.monotonic()
        if now_s - self._said_s < self.every_s:
            return
        outcomes, left = summarise(board, 1.0).outcomes, left_of(board)
        done = outcomes["done"] + outcomes["forwarded"]
        if done != self._said:
            rate = (done - self._said) / (now_s - self._said_s)
            log.info("%s %d messages, %.0f/s, %d are left", self.doing, done, rate, left)
        self._said_s, self._said = now_s, done

    def close(self) -> None:
        """Nothing is left standing."""


@dataclass(slots=True)
class Bar:
    """The bar. ``draw`` as often as you like; it redraws ten times a second at most."""

    console: Console
    total: int | None = None
    _progress: progress.Progress | None = None
    _drawn_s: float = 0.0
    started_s: float = field(default_factory=time.monotonic)

    def draw(self, board: Board) -> None:
        """Show what the board says now."""
        now_s = time.monotonic()
        if now_s - self._drawn_s < 0.1:
            return
        self._drawn_s = now_s
        summary = summarise(board, now_s - self.started_s)
        left = left_of(board)
        if self._progress is None:
            # auto_refresh would start a thread, and the master forks.
            self._progress = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TextColumn("{task.fields[rate]}"),
                progress.TimeRemainingColumn(),
                console=self.console,
                auto_refresh=False,
                transient=False,
            )
            self._progress.add_task("messages", total=None, rate="")
            self._progress.start()
        done = summary.messages
        rate = done / summary.seconds if summary.seconds > 0 else 0.0
        total = self.total if self.total is not None else done + left
        self._progress.update(
            self._progress.tasks[0].id, completed=done, total=max(total, done, 1), rate=f"{rate:.0f}/s"
        )
        self._progress.refresh()

    def close(self) -> None:
        """Leave the last picture standing."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
