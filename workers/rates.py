"""
rates - what counters have done since they were looked at last

See also: components (has the counters), tests/unit/test_components.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeGuard, cast


def calc_statistics(
    stats_cur: Mapping[str, object], stats_prev: Mapping[str, object], tdiff: float
) -> dict[str, dict[str, object]]:
    """
    Compare two snapshots of counters that were taken *tdiff* seconds apart.

    For each number: ``cnt`` (its value), ``inc`` (its increase), ``spd`` (increase a second, 0 when no time has
    passed) and ``pct`` (the increase as percent of the value). A nested mapping is answered by a nested result.
    What is no finite number is left out.
    """
    result: dict[str, dict[str, object]] = {}
    for key, value in stats_cur.items():
        before = stats_prev.get(key)
        if isinstance(value, Mapping):
            nested = calc_statistics(value, before if isinstance(before, Mapping) else {}, tdiff)
            result[key] = cast(dict[str, object], nested)
        elif _is_number(value):
            increase = value - before if _is_number(before) else value
            result[key] = {
                "cnt": value,
                "inc": increase,
                "spd": increase / tdiff if tdiff > 0 else 0.0,
                "pct": 100 * increase / abs(value) if value else 0.0,
            }
    return result


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def worded(pattern: str, statistics: Mapping[str, object], prefix: str = "") -> str:
    """
    The lines of *statistics*, each by *pattern*, which is given the lines before it, key, cnt, inc and spd.

    What was never counted is left out.
    """
    text = ""
    for key, value in statistics.items():
        assert isinstance(value, Mapping)  # noqa: S101 - calc_statistics answers nothing else
        if "cnt" in value and not isinstance(value["cnt"], Mapping):
            if value["cnt"] or value["inc"]:
                text = pattern.format(text, prefix + key, value["cnt"], value["inc"], value["spd"])
        else:
            text += worded(pattern, value, f"{prefix}{key}.")
    return text
