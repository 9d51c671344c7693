"""
logs - one line for each thing that happened, on stderr or appended to a file

    text  2026-11-21T02:40:00.123Z INFO  orchestrator.master[4242]: worker 3 of in is ready
    json  {"time": ..., "level": ..., "logger": ..., "process": ..., "message": ..., extra fields}

Times are UTC. What is not printable is escaped, and every line of a traceback is
indented, so that the name of a message can neither forge a line nor drive a terminal.
A stderr or a file that cannot be written to is no reason to stop: the line is lost.

All processes of a pool append to one file, a line by one write(2), so lines stay whole.
Each looks before a line whether the file has been renamed or removed, and opens it anew:
rotation needs no signal. Where that fails, lines go on into the file that is open.
Nor is a link followed then that somebody else could have put there (places).

Source: write(2) and O_APPEND; logging.handlers.WatchedFileHandler for the look.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from orchestrator.places import open_file
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
    logging.getLogger().setLevel(level.upper())
    _use(_Handler(stream), JsonFormatter() if format == "json" else TextFormatter())


def append_to(file: LogFile) -> None:
    """Log to *file* from now on, in the format that was set up."""
    _use(file, logging.getLogger().handlers[0].formatter)


def _use(handler: logging.Handler, formatter: logging.Formatter | None) -> None:
    handler.setFormatter(formatter)
    logging.getLogger().handlers[:] = [handler]


def reopen() -> None:
    """Open the log's file anew, as after a rotation that a look cannot see. Nothing where the log has no file."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, LogFile):
            handler.reopen()


def escaped(text: str) -> str:
    """*text* on one line for a person: names.shown, of any text."""
    return shown(text)


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


class LogFile(logging.Handler):
    """A file that lines are appended to; made where it is missing. Raises OSError when it cannot be opened at first."""

    def __init__(self, path: Path, fd: int | None = None) -> None:
        """*fd*: the file, opened by somebody with more rights than this process will have."""
        super().__init__()
        self.path = path
        self.fd = open_log(path) if fd is None else fd
        self._is_torn = False

    def fileno(self) -> int:
        """The descriptor, which stays the same when the file is opened anew."""
        return self.fd

    def emit(self, record: logging.LogRecord) -> None:
        """Append one line; what the disk does not take of it is lost."""
        try:
            line = (self.format(record) + "\n").encode("utf-8", "backslashreplace")
            if self._has_moved():
                self.reopen()
            if self._is_torn:
                line = b"\n" + line
            self._is_torn = os.write(self.fd, line) != len(line)
        except OSError:
            pass  # a full disk loses lines, never the pool
        except Exception:  # noqa: BLE001 - a fault in the call that logs, shown as logging shows it
            self.handleError(record)

    def reopen(self) -> None:
        """Open the file of this name anew; stay with the old one where that is not possible."""
        try:
            fd = open_log(self.path)
        except OSError:
            return
        self.acquire()
        try:
            os.dup2(fd, self.fd, inheritable=False)
        finally:
            self.release()
            os.close(fd)

    def _has_moved(self) -> bool:
        try:
            return not os.path.samestat(os.stat(self.path), os.fstat(self.fd))
        except OSError:
            return True


def open_log(path: Path, flags: int = 0) -> int:
    """Open *path* to append to. O_NONBLOCK: a fifo that nobody reads refuses, and does not hold us up."""
    return open_file(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY | flags)


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
