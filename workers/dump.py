"""
dump - any object as JSON can say it, for a person who looks for what is wrong

A callable is CALLBACK(Class:name); whatever else JSON has no word for is its repr, and a text that is very long is cut.
read() is for what somebody else may have written: it can always be said again.
See also: components.Daemon.get_state; saved and queues.spool_look, which read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

TEXT_SIZE_MAX = 4096  # characters of one text
DEPTH_MAX = 20


def said(value: object, above: tuple[int, ...] = ()) -> object:
    """
    Answer *value* such that JSON can say it, however it is made. Never raises; long texts are cut.

    *above*: the ids of what it is nested in.
    """
    try:
        if isinstance(value, Mapping | list | tuple | set | frozenset) and len(above) < DEPTH_MAX:
            if id(value) in above:
                return "..."
            inside = (*above, id(value))
            if isinstance(value, Mapping):
                return {_text(key): said(each, inside) for key, each in tuple(value.items())}
            return [said(each, inside) for each in tuple(value)]
        is_number = isinstance(value, int | float) and abs(value) < 2**64  # NaN is not
        return value if value is None or is_number else _text(value)
    except Exception:  # noqa: BLE001 - the value is a component's, and so are its methods
        return f"<{type(value).__name__}>"


def read(data: bytes) -> object:
    """
    Answer what the JSON *data* says. Raises ValueError, RecursionError.

    What Python reads and JSON has not, NaN and numbers beyond all floats, stays text.
    """
    return json.loads(data, parse_constant=str, parse_float=_finite)


def _finite(text: str) -> float | str:
    number = float(text)
    return number if math.isfinite(number) else text


def _text(value: object) -> str:
    text = value if isinstance(value, str) else shown(value)
    return text if len(text) <= TEXT_SIZE_MAX else f"{text[:TEXT_SIZE_MAX]}... ({len(text)} characters)"


def shown(value: object) -> str:
    """Word what JSON has no word for."""
    try:
        if callable(value):
            owner = type(value.__self__).__name__ if hasattr(value, "__self__") else value.__module__
            return f"CALLBACK({owner}:{getattr(value, '__name__', type(value).__name__)})"
        return repr(value)
    except Exception:  # noqa: BLE001 - the value is a component's, and so is its __repr__
        return f"<{type(value).__name__}>"
