"""
measure - one measured figure: a value for each round, beside the value it is compared with

Rates alone say more of the machine than of us, so a figure has a base where that is
possible: what the bare loop (or another peer) gave in the same round.
See also: report (tables and verdicts).
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

from workers.errors import OrchestratorError

SPREAD_MAX = 0.3


class BenchError(OrchestratorError):
    """What was measured is not what should have been."""


class LeftOut(OrchestratorError):
    """A suite that cannot be measured here, for what it compares with is not there; its text says why."""


@dataclass(frozen=True, slots=True)
class Figure:
    """
    One line of a table.

    Attributes:
        suite: which part of the bench; what: a few words, unique within the suite.
        unit: "messages/s", "s", "bytes", "calls", "%" ...
        values: one for each round; base: what it is compared with, in the same rounds, or empty.
        target: the least ratio (or, without a base, the most or least value) wanted; None where there is none.
        is_at_most: the target is an upper bound.
        note: what a reader must know.
        more: further medians by name, for example "cpu_us", "lost", "calls".
    """

    suite: str
    what: str
    unit: str
    values: list[float]
    base: list[float] = field(default_factory=list)
    target: float | None = None
    is_at_most: bool = False
    note: str = ""
    more: dict[str, float] = field(default_factory=dict)

    @property
    def value(self) -> float:
        """The median value."""
        return statistics.median(self.values)

    @property
    def ratios(self) -> list[float]:
        """Value to base, one for each round; empty without a base."""
        return [value / base for value, base in zip(self.values, self.base, strict=True)] if self.base else []

    @property
    def ratio(self) -> float | None:
        """The median ratio."""
        return statistics.median(self.ratios) if self.base else None

    @property
    def spread(self) -> float:
        """How far the rounds disagree: the largest less the smallest, over the median."""
        found = self.ratios or self.values
        middle = statistics.median(found)
        return (max(found) - min(found)) / middle if middle else 0.0

    @property
    def is_disagreeing(self) -> bool:
        """Whether the rounds disagree too much to be believed."""
        return self.spread > SPREAD_MAX
