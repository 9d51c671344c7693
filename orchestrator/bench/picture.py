"""
picture - throughput against workers and against backlog, as one SVG

Written by hand, so that nothing must be installed. Colours follow the reader's light or dark
scheme, and each line has its name at its end; the limits are dashed. The left side is linear, for shapes; the right
one is logarithmic, for peers that list the directory for each message.
See also: rounds (the figures), the README (shows it).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from xml.sax.saxutils import escape

from orchestrator.bench.measure import Figure

WIDTH, HEIGHT = 460, 380
LEFT, RIGHT, TOP, BOTTOM = 62, 104, 48, 46
LABEL_HEIGHT = 13
# Pairs for light and dark: the limit, ours, then each peer as it comes.
COLOURS = (
    ("#6b7280", "#9ca3af"), ("#c2410c", "#fb923c"), ("#1d4ed8", "#60a5fa"), ("#15803d", "#4ade80"),
    ("#7e22ce", "#c084fc"), ("#0e7490", "#22d3ee"), ("#a16207", "#facc15"), ("#be185d", "#f472b6"),
    ("#4d7c0f", "#a3e635"), ("#4338ca", "#818cf8"), ("#92400e", "#d6a77a"),
)  # fmt: skip
LIMITS, OURS = ("bare", "split"), "pool"
NOT_DRAWN = ("c bare", "c split", "library")  # too near to the others to be told apart

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Panel:
    """One coordinate system: lines by name, each a list of (x, messages a second)."""

    title: str
    x_title: str
    lines: dict[str, list[Point]]
    is_log: bool


def picture(figures: list[Figure], title: str) -> str:
    """The SVG's text. A side without figures is left out; with none at all the picture says so."""
    panels = [panel for panel in (_workers(figures), _backlog(figures)) if panel.lines]
    peers = sorted({name for panel in panels for name in panel.lines} - {OURS, *LIMITS})
    colours = {name: 2 + number % (len(COLOURS) - 2) for number, name in enumerate(peers)}
    colours |= {OURS: 1, **dict.fromkeys(LIMITS, 0)}
    width = WIDTH * max(len(panels), 1)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" width="{width}" height="{HEIGHT}"'
        f' role="img" font-family="system-ui, sans-serif" font-size="11">',
        f"<title>{escape(title)}</title>",
        _style(),
        f'<rect class="paper" width="{width}" height="{HEIGHT}"/>',
        _text(12, 18, title, "word"),
    ]
    if not panels:
        parts.append(_text(12, 60, "nothing was measured that could be drawn", "word"))
    for number, panel in enumerate(panels):
        parts.append(f'<g transform="translate({number * WIDTH} 0)">{_draw(panel, colours)}</g>')
    return "\n".join([*parts, "</svg>", ""])


def _workers(figures: list[Figure]) -> Panel:
    own = [one for one in figures if one.suite == "workers"] or [one for one in figures if one.suite == "throughput"]
    taken = [figure for figure in own if figure.unit == "messages/s" and " take, " in figure.what]
    return Panel("messages taken a second", "workers", _lines(taken, "processes"), is_log=False)


def _backlog(figures: list[Figure]) -> Panel:
    own = [figure for figure in figures if figure.suite == "backlog"]
    return Panel("messages taken a second, one worker", "messages waiting", _lines(own, "backlog"), is_log=True)


def _lines(figures: list[Figure], key: str) -> dict[str, list[Point]]:
    found: dict[str, list[Point]] = {}
    for figure in figures:
        if key in figure.more:
            found.setdefault(figure.what.partition(" take, ")[0], []).append((figure.more[key], figure.value))
    return {name: sorted(points) for name, points in found.items() if name not in NOT_DRAWN}


def _draw(panel: Panel, colours: dict[str, int]) -> str:
    points = [point for line in panel.lines.values() for point in line]
    xs = sorted({x for x, _ in points})
    high = max(y for _, y in points)
    low = 10 ** math.floor(math.log10(max(min(y for _, y in points), 1.0))) if panel.is_log else 0.0
    inner_width, inner_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def at_x(x: float) -> float:
        span = math.log2(xs[-1] / xs[0]) if xs[-1] > xs[0] else 1.0
        return LEFT + inner_width * math.log2(x / xs[0]) / span

    def at_y(y: float) -> float:
        share = math.log10(max(y, low) / low) / math.log10(high * 1.2 / low) if panel.is_log else y / (high * 1.05)
        return TOP + inner_height * (1.0 - share)

    parts = [_text(LEFT, TOP - 10, panel.title, "word"), _text(LEFT, HEIGHT - 10, panel.x_title, "word")]
    for y in _ticks(low, high, is_log=panel.is_log):
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at_y(y):.1f}" y2="{at_y(y):.1f}"/>')
        parts.append(_text(LEFT - 6, at_y(y) + 4, _short(y), "word", "end"))
    parts += [_text(at_x(x), HEIGHT - BOTTOM + 16, _short(x), "word", "middle") for x in xs]
    ends = sorted((at_y(line[-1][1]) + 4, name) for name, line in panel.lines.items())
    for (_, name), label_y in zip(ends, _apart([y for y, _ in ends], HEIGHT - BOTTOM + 4), strict=True):
        line, colour = panel.lines[name], colours[name]
        places = " ".join(f"{at_x(x):.1f},{at_y(y):.1f}" for x, y in line)
        kind = " limit" if name in LIMITS else " ours" if name == OURS else ""
        parts.append(f'<polyline class="line c{colour}{kind}" points="{places}"/>')
        parts += [f'<circle class="d{colour}" cx="{at_x(x):.1f}" cy="{at_y(y):.1f}" r="2.5"/>' for x, y in line]
        parts.append(_text(at_x(line[-1][0]) + 8, label_y, name, f"d{colour}"))
    return "\n".join(parts)


def _apart(ys: list[float], bottom: float) -> list[float]:
    """Move sorted *ys* so that no label lies on another: down, and up again from what would lie below *bottom*."""
    found: list[float] = []
    for y in ys:
        found.append(max(y, found[-1] + LABEL_HEIGHT) if found else y)
    for number in reversed(range(len(found))):
        found[number] = min(found[number], bottom)
        bottom = found[number] - LABEL_HEIGHT
    return found


def _ticks(low: float, high: float, *, is_log: bool) -> list[float]:
    if is_log:
        return [10.0**power for power in range(round(math.log10(low)), math.floor(math.log10(high)) + 1)]
    step = 10 ** math.floor(math.log10(max(high, 1.0)))
    step = next(step * part for part in (0.2, 0.5, 1.0, 2.0) if high / (step * part) <= 6)
    return [step * number for number in range(math.floor(high / step) + 1)]


def _short(value: float) -> str:
    for size, mark in ((1_000_000, "M"), (1_000, "k")):
        if value >= size:
            return f"{value / size:g}{mark}"
    return f"{value:g}"


def _text(x: float, y: float, words: str, style: str, anchor: str = "start") -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _style() -> str:
    def rules(which: int) -> str:
        return "".join(
            f".c{number}{{stroke:{pair[which]}}}.d{number}{{fill:{pair[which]}}}" for number, pair in enumerate(COLOURS)
        )

    light = f".paper{{fill:#ffffff}}.word{{fill:#1f2937}}.grid{{stroke:#d1d5db}}{rules(0)}"
    dark = f".paper{{fill:#0d1117}}.word{{fill:#e5e7eb}}.grid{{stroke:#374151}}{rules(1)}"
    return (
        f"<style>.line{{fill:none;stroke-width:1.5}}.ours{{stroke-width:3}}.limit{{stroke-dasharray:5 3}}{light}"
        f"@media (prefers-color-scheme: dark){{{dark}}}</style>"
    )
