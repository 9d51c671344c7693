"""
rounds - the suites throughput, workers and backlog: the same subjects, in turn, round after round

Whoever comes first in a round meets the others' leftovers in caches, so each has its turn. Every
figure has the bare loop of the same round, verb and number of processes for its base.

Who fails is left out from then on, and it is said why; without the bare loop there is nothing to say.
See also: subject (what is measured), targets (what is wanted of it).
"""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from orchestrator.bench.crew import Run
from orchestrator.bench.measure import BenchError, Figure
from orchestrator.bench.subject import Load, Subject, Verb

FILL_S_MAX = 10.0  # a peer that cannot put the backlog in that time is left out
PRODUCERS_MAX = 2  # where only the taking is measured


@dataclass(frozen=True, slots=True)
class Cell:
    """One subject with one number of processes and one load."""

    subject: Subject
    count: int
    load: Load
    has_backlog: bool = False  # all of the load must be there before anything is taken

    def key(self, verb: Verb) -> tuple[str, int, int]:
        """What figures of one round are compared by."""
        return verb, self.count, self.load.messages

    @property
    def name(self) -> str:
        """Of what is left out when this fails."""
        return f"{self.subject.name}, {self.load.messages} waiting" if self.has_backlog else self.subject.name


@dataclass(slots=True)
class Rounds:
    """
    Measures below *directory*, which must be empty and stays so.

    Attributes:
        on_round: called with the name of the suite and the number of each finished round.
        failed: who was left out, and why.
    """

    directory: Path
    rounds: int
    on_round: Callable[[str, int], None]
    failed: dict[str, str] = field(default_factory=dict)

    def throughput(self, subjects: Sequence[Subject], load: Load) -> list[Figure]:
        """Put and take, with 1 and 2 processes."""
        cells = [Cell(subject, count, load) for count in (1, 2) for subject in subjects]
        return self._figures("throughput", cells, ("put", "take"))

    def workers(self, subjects: Sequence[Subject], load: Load, counts: Sequence[int]) -> list[Figure]:
        """Take, with each of *counts* workers; and what the pool loses in races."""
        cells = [Cell(subject, count, load) for count in counts for subject in subjects]
        return self._figures("workers", cells, ("take",))

    def backlog(self, subjects: Sequence[Subject], load: Load, backlogs: Sequence[int]) -> list[Figure]:
        """Take each of *backlogs* with one worker; and how the pool's memory grows."""
        cells = [
            Cell(subject, 1, replace(load, messages=backlog), has_backlog=True)
            for backlog in backlogs
            for subject in subjects
        ]
        return self._figures("backlog", cells, ("take",))

    def _figures(self, suite: str, cells: list[Cell], verbs: Sequence[Verb]) -> list[Figure]:
        measured: dict[Cell, list[dict[Verb, Run]]] = {cell: [] for cell in cells}
        for number in range(self.rounds):
            turn = number * len(cells) // self.rounds
            for cell in cells[turn:] + cells[:turn]:
                if cell.name in self.failed:
                    continue
                try:
                    measured[cell].append(self._measure(cell))
                except BenchError as error:
                    if cell.subject.name == "bare":
                        raise
                    self.failed[cell.name] = str(error)
            self.on_round(suite, number + 1)
        bases = {
            cell.key(verb): [_rate(runs, verb) for runs in found]
            for cell, found in measured.items()
            for verb in verbs
            if cell.subject.name == "bare"
        }
        figures = []
        for verb in verbs:
            for cell, found in measured.items():
                if verb in cell.subject.verbs and cell.name not in self.failed:
                    base = [] if cell.subject.name == "bare" else bases.get(cell.key(verb), [])
                    figures += _figures_of(suite, cell, verb, found, base)
        return figures

    def _measure(self, cell: Cell) -> dict[Verb, Run]:
        place = self.directory / "place"
        load, producers = replace(cell.load, workers=cell.count), min(cell.count, PRODUCERS_MAX)
        if cell.has_backlog:
            load, producers = replace(load, seconds_max=FILL_S_MAX), PRODUCERS_MAX
        try:
            with cell.subject.opened(place):
                put = cell.subject.put(place, load, producers)
                if cell.has_backlog and put.handled < load.messages:
                    raise BenchError(f"it put {put.handled} of {load.messages} messages in {FILL_S_MAX:.0f} s")
                take = cell.subject.take(place, replace(cell.load, messages=put.handled), cell.count)
        finally:
            shutil.rmtree(place)
        return {"put": put, "take": take}


def label(name: str, verb: Verb, count: int, backlog: int | None = None) -> str:
    """What a line of a table is called."""
    return f"{name} {verb}, {count}" if backlog is None else f"{name} {verb}, {backlog} waiting"


def _figures_of(suite: str, cell: Cell, verb: Verb, found: list[dict[Verb, Run]], base: list[float]) -> list[Figure]:
    """The rate; of the pool also what it lost and what a worker weighed."""
    runs = [one[verb] for one in found]
    name, backlog = cell.subject.name, cell.load.messages if cell.has_backlog else None
    what = label(name, verb, cell.count, backlog)
    more = {
        "processes": float(cell.count),
        "messages": statistics.median(run.handled for run in runs),
        "lost_percent": statistics.median(map(_lost_percent, runs)),
        "dirty_kib": statistics.median(run.dirty_bytes / 1024 for run in runs),
    }
    if all(run.cpu_s is not None for run in runs):
        more["cpu_us"] = statistics.median((run.cpu_s or 0.0) * 1e6 / max(run.handled, 1) for run in runs)
    if backlog is not None:
        more["backlog"] = float(backlog)
    if any(run.first_s for run in runs):
        more["first_s"] = statistics.median(run.first_s for run in runs)
    rates = [_rate(one, verb) for one in found]
    figures = [Figure(suite, what, "messages/s", rates, base, note=_note(cell, verb, found), more=more)]
    if name == "pool" and suite == "workers":
        figures.append(Figure(suite, f"{what}, lost", "%", [_lost_percent(run) for run in runs]))
    if name == "pool" and suite == "backlog":
        figures.append(Figure(suite, f"{what}, memory", "KiB", [run.dirty_bytes / 1024 for run in runs]))
    return figures


def _lost_percent(run: Run) -> float:
    return 100.0 * run.lost / max(run.lost + run.handled, 1)


def _rate(one: dict[Verb, Run], verb: Verb) -> float:
    """Messages a second, each message counted once."""
    run = one[verb]
    return min(run.handled, one["put"].handled) / run.seconds


def _note(cell: Cell, verb: Verb, found: list[dict[Verb, Run]]) -> str:
    words = [cell.subject.note] if cell.subject.note else []
    twice = max(one["take"].handled - one["put"].handled for one in found)
    if verb == "take" and twice > 0:
        words.append(f"handed out {twice} messages twice")
    if any(one[verb].handled < cell.load.messages for one in found):
        words.append("stopped by time")
    return "; ".join(words)
