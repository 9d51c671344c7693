"""
logs - one line on stderr for each thing that happened

    text  2026-11-21T02:40:00.123Z INFO  orchestrator.master[4242]: worker 3 of in is ready
    json  {"time": ..., "level": ..., "logger": ..., "process": ..., "message": ..., extra fields}

Times are UTC. What is not printable is escaped, and every line of a traceback is
indented, so that the name of a message can neither forge a line nor drive a terminal.
A stderr that cannot be written to is no reason to stop: the line is lost.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import TextIO

from workers.queues.names import shown

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("text", "json")
_OWN_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


def setup(level: str = "info", format: str = "text", stream: TextIO | None = None) -> None:  # noqa: A002 - the flag's name
    """
    Log to *stream* (None: stderr) from *level* up, in *format*. Replaces what was set up before.

    Raises ValueError for a level or format that is none.
    """
    if level not in LEVELS or format not in FORMATS:
        raise ValueError(f"log level {level!r} or format {format!r} is none of {LEVELS} and {FORMATS}")
    handler = _Handler(stream)
    handler.setFormatter(JsonFormatter() if format == "json" else TextFormatter())
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())


def escaped(text: str) -> str:
    """*text* on one line for a person: like names.shown, but of any text, not only of names."""
    try:
        return shown(text)
    except UnicodeEncodeError:  # a lone surrogate that is no byte of a name, as JSON can hold
        return shown(text.encode("utf-8", "backslashreplace").decode())


class TextFormatter(logging.Formatter):
    """One line a record; the lines of a traceback follow, indented."""

    def format(self, record: logging.LogRecord) -> str:
        """Word *record* for a person."""
        line = f"{_time(record)} {record.levelname:<5} {record.name}[{record.process}]: {escaped(record.getMessage())}"
        return line + "".join(f"\n    {escaped(part)}" for part in self._trace(record))

    def _trace(self, record: logging.LogRecord) -> list[str]:
        text = self.formatException(record.exc_info) if record.exc_info else record.exc_text
        return text.splitlines() if text else []


class JsonFormatter(TextFormatter):
    """One object a line, with whatever was given in extra=."""

    def format(self, record: logging.LogRecord) -> str:
        """Word *record* for a program."""
        fields = {key: value for key, value in vars(record).items() if key not in _OWN_FIELDS}
        fields |= {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": record.process,
            "message": record.getMessage(),
        }
        trace = self._trace(record)
        if trace:
            fields["traceback"] = "\n".join(trace)
        return json.dumps(fields, default=str)


class _Handler(logging.StreamHandler[TextIO]):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's own name
        """Lose the line when it cannot be written: a traceback on the same broken stderr helps nobody."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)  # a fault in the call that logs


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
