"""
targets - what is wanted, and whether it was reached

A target compares two figures of one run, or bounds one. It is a statement about this machine
and this run and no timed test: what disagrees from round to round gets no verdict.
See also: measure (spread), report (prints them).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from orchestrator.bench.measure import Figure
from orchestrator.bench.rounds import label

ROUNDS_MIN = 3


@dataclass(frozen=True, slots=True)
class Target:
    """
    The figure *what* of *suite*, divided by *base* of the same suite when that is given, must be *least* or more.

    On tmpfs *on_tmpfs* is wanted instead; *is_at_most* turns it round.
    """

    suite: str
    what: str
    base: str
    least: float
    on_tmpfs: float | None = None
    is_at_most: bool = False


TARGETS = (
    Target("throughput", label("pool", "take", 1), label("bare", "take", 1), 0.80, on_tmpfs=0.75),
    Target("throughput", label("pool", "take", 2), label("split", "take", 2), 0.80),
    Target("throughput", label("pool", "take", 2), label("dirq-simple", "take", 2), 1.3, on_tmpfs=1.6),
    Target("throughput", label("pool", "take", 2), label("redis", "take", 2), 8.0),
    Target("workers", label("pool", "take", 32), label("pool", "take", 2), 0.80),
    Target("workers", f"{label('pool', 'take', 32)}, lost", "", 1.5, is_at_most=True),
)
BACKLOG_RATIO_MAX = 1.10  # µs a message with the largest backlog, to that with the smallest
MEMORY_KIB_MAX = 1024.0  # by which a worker may grow between them


def aims(figures: list[Figure], filesystem: str) -> list[Figure]:
    """Every figure with a target: those of the table, those about backlog, and those that came with one."""
    known = {(figure.suite, figure.what): figure for figure in figures}
    found = []
    for target in TARGETS:
        figure, base = known.get((target.suite, target.what)), known.get((target.suite, target.base))
        if figure is None or (target.base and base is None):
            continue
        least = target.on_tmpfs if filesystem == "tmpfs" and target.on_tmpfs is not None else target.least
        found.append(_against(figure, base, least, is_at_most=target.is_at_most))
    return found + _of_backlog(figures) + [figure for figure in figures if figure.target is not None]


def verdict(figure: Figure) -> str:
    """One word: met, missed; or why there is none."""
    if figure.target is None:
        return ""
    if len(figure.values) < ROUNDS_MIN:
        return "too few rounds"
    # An upper bound that every round kept is kept, however far apart small numbers are from each other.
    is_kept = figure.is_at_most and not figure.base and max(figure.values) <= figure.target
    if figure.is_disagreeing and not is_kept:
        return "disagree"
    found = figure.value if figure.ratio is None else figure.ratio
    return "met" if (found <= figure.target if figure.is_at_most else found >= figure.target) else "missed"


def _against(figure: Figure, base: Figure | None, target: float, *, is_at_most: bool = False) -> Figure:
    what = figure.what if base is None else f"{figure.what} / {base.what}"
    values = [] if base is None else base.values
    return replace(figure, what=what, base=values, target=target, is_at_most=is_at_most)


def _of_backlog(figures: Iterable[Figure]) -> list[Figure]:
    of_pool = [figure for figure in figures if figure.suite == "backlog" and figure.what.startswith("pool take, ")]
    rates = sorted((one for one in of_pool if "backlog" in one.more), key=lambda one: one.more["backlog"])
    memories = {one.what: one for one in of_pool if "backlog" not in one.more}
    if len(rates) < 2:
        return []
    small, large = rates[0], rates[-1]
    # Microseconds are the inverse of the rate, so the smaller backlog stands above the line.
    growth = f"µs a message, pool, {large.more['backlog']:.0f} / {small.more['backlog']:.0f} waiting"
    before, after = memories[f"{small.what}, memory"], memories[f"{large.what}, memory"]
    grown = [late - early for early, late in zip(before.values, after.values, strict=True)]
    memory = f"memory of a worker, {large.more['backlog']:.0f} less {small.more['backlog']:.0f} waiting"
    return [
        replace(_against(small, large, BACKLOG_RATIO_MAX, is_at_most=True), what=growth),
        Figure("backlog", memory, "KiB", grown, target=MEMORY_KIB_MAX, is_at_most=True),
    ]
