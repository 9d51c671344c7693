"""
report - figures as tables and as JSON

See also: measure, targets, cli.bench.
"""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table

from orchestrator.bench.measure import SPREAD_MAX, Figure
from orchestrator.bench.targets import verdict

# Columns that a suite has when one of its figures has the value: key of ``more``, heading, format.
_MORE = (
    ("messages", "messages", "{:.0f}"),
    ("cpu_us", "CPU µs", "{:.1f}"),
    ("calls", "calls", "{:.1f}"),
    ("lost_percent", "lost %", "{:.1f}"),
    ("dirty_kib", "dirty KiB", "{:.0f}"),
    ("first_s", "first s", "{:.2f}"),
)
_HIDDEN = {"processes", "backlog"}  # they stand in the line's name


def table(suite: str, figures: list[Figure], title: str) -> Table:
    """One line for each figure of *suite*."""
    own = [figure for figure in figures if figure.suite == suite]
    columns = [column for column in _MORE if any(column[0] in figure.more for figure in own)]
    shown = Table(title=f"{suite}: {title}")
    for name in ("what", "value", "ratio", "min..max", *(heading for _, heading, _ in columns), "note"):
        shown.add_column(name, justify="left" if name in ("what", "note") else "right", no_wrap=name != "note")
    for figure in own:
        cells = [layout.format(figure.more[key]) if key in figure.more else "" for key, _, layout in columns]
        shown.add_row(figure.what, amount(figure), *_ratio(figure), *cells, _note(figure))
    return shown


def aims_table(aims: Iterable[Figure]) -> Table:
    """What was wanted, found, and the verdict."""
    shown = Table(title="targets")
    for name in ("suite", "what", "wanted", "found", "min..max", "verdict"):
        shown.add_column(
            name, justify="left" if name in ("suite", "what", "verdict") else "right", no_wrap=name != "what"
        )
    for figure in aims:
        found, spread = _ratio(figure) if figure.base else (amount(figure), _range(figure.values))
        wanted = f"{'<=' if figure.is_at_most else '>='} {figure.target:g}"
        shown.add_row(figure.suite, figure.what, wanted, found, spread, verdict(figure))
    return shown


def amount(figure: Figure) -> str:
    """The median with its unit."""
    unit = figure.unit.replace("messages/s", "/s")
    return f"{_number(figure.value)} {unit}" if unit != "/s" else f"{_number(figure.value)}/s"


def as_json(figure: Figure) -> dict[str, object]:
    """For scripts."""
    found: dict[str, object] = {
        "suite": figure.suite,
        "what": figure.what,
        "unit": figure.unit,
        "value": figure.value,
        "values": figure.values,
        "ratio": figure.ratio,
        "ratio_min": min(figure.ratios, default=None),
        "ratio_max": max(figure.ratios, default=None),
        "spread": figure.spread,
        "is_disagreeing": figure.is_disagreeing,
        "note": figure.note,
        **figure.more,
    }
    if figure.target is not None:
        found |= {"target": figure.target, "is_at_most": figure.is_at_most, "verdict": verdict(figure)}
    return found


def _ratio(figure: Figure) -> tuple[str, str]:
    if figure.ratio is None:
        return "", _range(figure.values) if len(figure.values) > 1 else ""
    layout = "{:.3f}" if figure.ratio < 0.1 else "{:.2f}"
    return layout.format(figure.ratio), "..".join(
        layout.format(edge) for edge in (min(figure.ratios), max(figure.ratios))
    )


def _range(values: list[float]) -> str:
    return f"{_number(min(values))}..{_number(max(values))}"


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _note(figure: Figure) -> str:
    words = [f"disagree by {figure.spread:.0%}"] if figure.spread > SPREAD_MAX else []
    words += [f"{key} {value:.3g}" for key, value in figure.more.items() if key not in _KNOWN]
    return "; ".join([*words, figure.note] if figure.note else words)


_KNOWN = _HIDDEN | {key for key, _, _ in _MORE}
