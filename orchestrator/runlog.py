"""
runlog - one file of JSON for each run of a pool: who ran, how long, what came of it

RUNLOG_DIR/<YYYYMMDDHHMMSS>.<pid>.runlog (UTC), written when the run begins, every
runlog_interval, on USR1 and at the end. Until the end its result is "running", so a
run that was killed is known by a process that is no more. Those that were written last
are kept, runlog_keep of them; a directory that several pools share keeps so many of all.

read() and analyse() need no pool: they read the files alone, and believe none of them.

Through a link that somebody else could have put there nothing is written or removed (places).

Raises: OSError when the directory cannot be made or read.
Long because the file is written and read in one place: each half knows what the other believes.
See also: reports (when it is written, and by whom), cli.runlog, workers.saved.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
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
from orchestrator.places import make_directory, open_parent, parent_of
from workers.queues.names import shown
from workers.saved import SavedError, listed, load, overwrite, save
from workers.system import SYSTEM

log = logging.getLogger(__name__)

ERRORS_MAX = 100
ABANDONED_S = 3600.0  # a file that was being written an hour ago is nobody's
STAGES = ("setup", "process", "teardown")
SIZE_MIN = 4096  # bytes: so much of a full disk a run log has already, and that is enough for how it ended
FUTURE_S = 60.0  # what is so much newer than the version just written is of a clock that was set back
TIME_MAX = 1e11  # seconds; no run was that late
RESULT_MAX = 20  # characters of a result that is none of ours
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
                self.save(os.getpid(), code, {})
            except (SavedError, OSError) as error:
                log.error("the run log: %s", error)

    def save(self, pid: int, code: int | None, statistics: Mapping[str, object]) -> None:
        """
        Write it, see content(); then remove what is beyond *keep*. Raises SavedError, OSError for the way there.

        On a full disk the last version takes the place of the one before, without what is too long for that.
        """
        assert self.path is not None  # noqa: S101 - asked by the callers
        content = self.content(pid, code, statistics)
        with parent_of(self.path) as directory:
            try:
                save(self.path, content, size_min=SIZE_MIN, dir_fd=directory)
            except SavedError as error:
                is_full = isinstance(error.__cause__, OSError) and error.__cause__.errno in (errno.ENOSPC, errno.EDQUOT)
                if code is None or not is_full:
                    raise
                short = content | {"statistics": {}, "argv": sys.argv[:1], "errors": [str(error)]}
                overwrite(self.path, content, content | {"statistics": {}}, short, dir_fd=directory)
        with contextlib.suppress(OSError):
            self.prune()

    def reserve(self) -> None:
        """
        Choose a name that nobody has, and make the directory. Raises OSError.

        Two runs of one second and one pid (each in a container of its own) get two names.
        """
        above, name = open_parent(self.directory, 0o755)
        try:
            with contextlib.suppress(FileExistsError):
                make_directory(name, 0o700, above)
        finally:
            os.close(above)
        stamp = _moment(self.started_s).strftime("%Y%m%d%H%M%S")
        for number in itertools.count():
            path = self.directory / (f"{stamp}.{os.getpid()}" + (f".{number}" if number else "") + ".runlog")
            with parent_of(path) as directory, contextlib.suppress(FileExistsError):
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                os.close(os.open(path.name, flags, 0o600, dir_fd=directory))
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
        """
        Remove what is beyond the *keep* written last, and what was abandoned half written; never this run's.

        The kernel's time of the last change says which were; where the clock was set back those of the future are the
        oldest. Raises OSError.
        """
        with parent_of(self.directory / "any") as directory:
            names = listed(self.directory, directory)
            newest_s = time.time() if self.path is None else os.lstat(self.path.name, dir_fd=directory).st_ctime
            changed = {}
            for name in filter(_NAME.match, names):
                with contextlib.suppress(OSError):
                    changed_s = os.lstat(name, dir_fd=directory).st_ctime
                    changed[name] = (changed_s <= newest_s + FUTURE_S, changed_s, name)
            old = sorted(changed, key=changed.__getitem__)[: -self.keep]
            for name in [name for name in old if self.path is None or name != self.path.name] + [
                name for name in names if _TEMPORARY.match(name) and _is_abandoned(name, directory)
            ]:
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=directory)

    def remove(self) -> None:
        """Take this run's away, and the directory when it is empty then."""
        logging.getLogger().removeHandler(self.errors)
        with contextlib.suppress(OSError):
            if self.path is not None:
                with parent_of(self.path) as directory:
                    os.unlink(self.path.name, dir_fd=directory)
            with parent_of(self.directory) as above:
                os.rmdir(self.directory.name, dir_fd=above)


def _is_abandoned(name: str, directory: int) -> bool:
    try:
        return time.time() - os.lstat(name, dir_fd=directory).st_mtime > ABANDONED_S
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
            times[_text(mark.get("ident"))] = _number(mark.get("time"))
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
        return escaped(_text(result)[:RESULT_MAX])
    # Another host's processes cannot be looked for.
    is_here = run.get("host") == socket.gethostname() and isinstance(pid, int) and 0 < pid < 1 << 31
    is_known = isinstance(start, int) and 0 < start < 1 << 63
    return "died" if is_here and is_known and SYSTEM.is_alive(pid, start) is False else "running"  # type: ignore[arg-type]


def _command(run: Mapping[str, object]) -> str:
    argv = run.get("argv")
    return escaped(shlex.join(map(_text, argv))) if isinstance(argv, list) else ""


def _text(value: object) -> str:
    return value if isinstance(value, str) else "?"


def _number(value: object) -> float:
    # Compared first: a whole number of hundreds of digits cannot become a float, and no comparison holds for NaN.
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and -TIME_MAX < value < TIME_MAX
    return float(value) if is_number else 0.0  # type: ignore[arg-type]
