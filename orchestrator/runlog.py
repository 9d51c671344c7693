"""
runlog - one file of JSON for each run of a pool: who ran, how long, what came of it

RUNLOG_DIR/<YYYYMMDDHHMMSS>.<pid>.runlog (UTC), written when the run begins, every
runlog_interval, on USR1 and at the end. Until the end its result is "running", so a
run that was killed is known by a process that is no more. The newest runlog_keep are
kept; a directory that several pools share keeps so many of all of them.

read() and analyse() need no pool: they read the files alone, and believe none of them.

Raises: OSError when the directory cannot be made or read.
See also: reports (when it is written, and by whom), cli.runlog, workers.saved.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import os
import re
import shlex
import socket
import sys
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from orchestrator.logs import TextFormatter, escaped
from workers.queues.names import shown
from workers.saved import SavedError, load, save
from workers.system import SYSTEM

log = logging.getLogger(__name__)

ERRORS_MAX = 100
ABANDONED_S = 3600.0  # a file that was being written an hour ago is nobody's
STAGES = ("setup", "process", "teardown")
_NAME = re.compile(r"(\d{14}\.\d+(?:\.\d+)?)\.runlog\Z")
_TEMPORARY = re.compile(r"\.\d{14}\.\d+(?:\.\d+)?\.runlog\.\d+\.new\Z")


class ErrorLines(logging.Handler):
    """The last error lines of this process's log."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.setFormatter(TextFormatter())
        self.lines: deque[str] = deque(maxlen=ERRORS_MAX)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one; a traceback is in the log."""
        self.lines.append(self.format(record).partition("\n")[0])


@dataclass(slots=True)
class RunLog:
    """The run log of this process's run. *path* is None when the directory could not be used."""

    name: str
    directory: Path
    keep: int
    started_s: float = field(default_factory=time.time)
    marks: list[dict[str, object]] = field(default_factory=list)
    errors: ErrorLines = field(default_factory=ErrorLines)
    path: Path | None = None

    def mark(self, stage: str, end: str) -> None:
        """Note that *stage* of STAGES has come to its *end*, "start" or "stop". The first time counts."""
        ident = f"stage_{stage}_{end}"
        if all(mark["ident"] != ident for mark in self.marks):
            self.marks.append({"ident": ident, "descr": f"{stage} stage: {end}", "time": time.time()})

    def begin(self) -> None:
        """Write the first version, and listen to the log; none when that is not possible. May block, as a start may."""
        logging.getLogger().addHandler(self.errors)
        try:
            self.reserve()
            self._save(None)
        except OSError as error:
            log.error("there is no run log: cannot use %s: %s", shown(str(self.directory)), error.strerror)

    def fail(self, reason: str) -> None:
        """Write that the run ended before it had begun, for *reason*."""
        logging.getLogger().removeHandler(self.errors)
        self.errors.lines.append(escaped(reason))
        self.mark("setup", "stop")
        self._save(1)

    def _save(self, code: int | None) -> None:
        if self.path is not None:
            try:
                save(self.path, self.content(os.getpid(), code, {}))
            except SavedError as error:
                log.error("the run log: %s", error)

    def reserve(self) -> None:
        """
        Choose a name that nobody has, and make the directory. Raises OSError.

        Two runs of one second and one pid (each in a container of its own) get two names.
        """
        os.makedirs(self.directory, mode=0o700, exist_ok=True)
        stamp = _moment(self.started_s).strftime("%Y%m%d%H%M%S")
        for number in itertools.count():
            path = self.directory / (f"{stamp}.{os.getpid()}" + (f".{number}" if number else "") + ".runlog")
            with contextlib.suppress(FileExistsError):
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
                self.path = path
                return

    def content(self, pid: int, code: int | None, statistics: Mapping[str, object]) -> dict[str, object]:
        """What is written; *code* None while the run goes on. *pid* is the master's, whoever writes."""
        moment = _moment(self.started_s)
        return {
            "name": self.name,
            "pid": pid,
            "start": SYSTEM.start_ticks(pid),
            "host": socket.gethostname(),
            "argv": sys.argv,
            "ts": self.started_s,
            "ts_fsf": moment.strftime("%Y%m%d%H%M%S"),
            "ts_str": moment.strftime("%Y-%m-%d %X"),
            "saved": time.time(),
            "result": "running" if code is None else "failure" if code else "success",
            "rc": code,
            "errors": list(self.errors.lines),
            "time_marks": self.marks,
            "statistics": statistics,
        }

    def prune(self) -> None:
        """Remove what is beyond the newest *keep*, and what was abandoned half written; never this run's."""
        with os.scandir(self.directory) as entries:
            names = [entry.name for entry in entries]
        old = sorted(name for name in names if _NAME.match(name))[: -self.keep]
        for name in [name for name in old if self.path is None or name != self.path.name] + [
            name for name in names if _TEMPORARY.match(name) and self._is_abandoned(name)
        ]:
            with contextlib.suppress(OSError):
                os.unlink(self.directory / name)

    def _is_abandoned(self, name: str) -> bool:
        try:
            return time.time() - os.lstat(self.directory / name).st_mtime > ABANDONED_S
        except OSError:
            return False


def _moment(time_s: float) -> datetime:
    return datetime.fromtimestamp(time_s, UTC)


# ---- reading


@dataclass(frozen=True, slots=True)
class Analysis:
    """One run: times in seconds, *effectivity* the percentage of the run that was no setup and no teardown."""

    label: str
    age: float
    result: str
    command: str
    dur_run: float
    dur_pre: float
    dur_proc: float
    dur_post: float
    effectivity: float

    @property
    def durations(self) -> list[float]:
        """Setup, process, teardown."""
        return [self.dur_pre, self.dur_proc, self.dur_post]

    def as_json(self) -> dict[str, object]:
        """All of it by name."""
        return {key: getattr(self, key) for key in (*self.__slots__, "durations")}


def files(directory: Path) -> list[Path]:
    """The run logs there, the oldest first. Raises OSError."""
    return [directory / name for name in sorted(os.listdir(directory)) if _NAME.match(name)]


def read(paths: list[Path]) -> tuple[dict[str, dict[str, object]], list[str]]:
    """The run logs by label, and a sentence for each that is none."""
    found, warnings = {}, []
    for path in paths:
        named = _NAME.match(path.name)
        try:
            run = load(path)
        except SavedError as error:
            warnings.append(str(error))
            continue
        if not isinstance(run.get("result"), str) or not _number(run.get("ts")):
            warnings.append(f"{shown(str(path))} is no run log")
            continue
        found[named[1] if named else path.name] = run
    return found, warnings


def analyse(label: str, run: Mapping[str, object], now_s: float) -> Analysis:
    """What can be said of one run, whatever stands in it."""
    marks = run.get("time_marks")
    times: dict[str, float] = {}
    for mark in marks if isinstance(marks, list) else ():
        if isinstance(mark, dict):
            times[str(mark.get("ident"))] = _number(mark.get("time"))
    start_s = _number(run.get("ts"))
    end_s = times.get("stage_teardown_stop", _number(run.get("saved")) or start_s)
    spans = [_span(times, stage, end_s) for stage in STAGES]
    whole_s = max(end_s - start_s, 0.0)
    return Analysis(
        label=label,
        age=max(now_s - start_s, 0.0),
        result=_result(run),
        command=_command(run),
        dur_run=whole_s,
        dur_pre=spans[0],
        dur_proc=spans[1],
        dur_post=spans[2],
        effectivity=min(100.0 * spans[1] / whole_s, 100.0) if whole_s else 0.0,
    )


def _span(times: Mapping[str, float], stage: str, end_s: float) -> float:
    start_s = times.get(f"stage_{stage}_start")
    return 0.0 if start_s is None else max(times.get(f"stage_{stage}_stop", end_s) - start_s, 0.0)


def _result(run: Mapping[str, object]) -> str:
    result, pid, start = run.get("result"), run.get("pid"), run.get("start")
    if result != "running":
        return escaped(str(result))
    # Another host's processes cannot be looked for.
    is_here = run.get("host") == socket.gethostname() and isinstance(pid, int) and isinstance(start, int)
    return "died" if is_here and SYSTEM.is_alive(pid, start) is False else "running"  # type: ignore[arg-type]


def _command(run: Mapping[str, object]) -> str:
    argv = run.get("argv")
    return escaped(shlex.join(str(word) for word in argv)) if isinstance(argv, list) else ""


def _number(value: object) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else 0.0  # type: ignore[arg-type]
