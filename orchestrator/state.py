"""
state - everything that a pool is at, as one JSON object: what USR2 has written

    config       the configuration in force
    status       the board: queues, workers, messages in hand (as orchestrator status --json)
    pools        the policy of each queue's workers
    components   what the component daemon of each worker says of itself
    events, timers   what waits in the master's loop, and what is due when

Workers are asked by USR2 and write a file each, at their next turn; the master looks
for ANSWER_S whether the files are there, and never waits. Who has not answered by then
is listed with the message that keeps it. A worker that leaves writes its file once
more, so that its counters outlive it.

See also: reports (when it is written, and by whom), workers.components (get_state).
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator import __version__
from orchestrator.child import Child
from orchestrator.config import Config, QueueConfig, tables
from orchestrator.loop import Loop
from orchestrator.running import RunningQueue
from orchestrator.status import snapshot
from workers.board import Board
from workers.dump import said
from workers.errors import OrchestratorError
from workers.queues.names import shown
from workers.saved import SavedError, load

ANSWER_S = 2.0  # so long the workers may take to answer
Place = tuple[str, int]  # a queue's name and the index of its worker
Counters = dict[str, object]  # numbers by name, or such by name


def worker_file(directory: Path, queue: str, index: int, pid: int) -> Path:
    """Where worker *index* of *queue* writes its state."""
    return directory / f"{queue}.{index}.{pid}.json"


class StateError(OrchestratorError):
    """There is no place for the state."""


@dataclass(slots=True)
class Inquiry:
    """One round of questions to the workers, over when all have answered or ANSWER_S have passed."""

    directory: Path
    until_s: float
    _open: dict[Path, tuple[int, int]] = field(default_factory=dict)

    def ask(self, queue: str, index: int, child: Child, number: signal.Signals) -> None:
        """Signal one worker with *number*; its answer is the next version of its file."""
        path = worker_file(self.directory, queue, index, child.pid)
        self._open[path] = _version(path)
        child.send(number)

    def is_over(self, now_s: float) -> bool:
        """Look at the files."""
        self._open = {path: before for path, before in self._open.items() if _version(path) == before}
        return not self._open or now_s >= self.until_s

    def has_ended(self, path: Path) -> None:
        """Its process has ended: nothing is to come."""
        self._open.pop(path, None)

    @property
    def silent(self) -> frozenset[Path]:
        """Whose answer is not there."""
        return frozenset(self._open)


def _version(path: Path) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except OSError:
        return (0, 0)
    return (found.st_ino, found.st_mtime_ns)


@dataclass(slots=True)
class Tally:
    """The counters of components, summed over the workers of a queue; those of ended ones are kept here."""

    ended: dict[str, dict[str, Counters]] = field(default_factory=dict)

    def bury(self, queue: str, path: Path) -> None:
        """Add what a worker that has ended said last, and take its file away."""
        with contextlib.suppress(SavedError):
            self.ended = sums(self.ended, [(queue, load(path))])
        with contextlib.suppress(OSError):
            os.unlink(path)


def sums(
    before: Mapping[str, Mapping[str, Counters]], states: Iterable[tuple[str, Mapping[str, object]]]
) -> dict[str, dict[str, Counters]]:
    """*before*, and the statistics of each (queue, state) added, by queue and component."""
    found = {queue: {label: dict(counters) for label, counters in of.items()} for queue, of in before.items()}
    for queue, state in states:
        components = state.get("components")
        for label, component in components.items() if isinstance(components, Mapping) else ():
            # As deep and as large as a worker would have said it: the file may be anybody's of this user, and a number
            # that cannot be added would cost the master its knowledge that the worker has ended.
            statistics = said(component.get("statistics")) if isinstance(component, Mapping) else None
            if isinstance(statistics, Mapping):
                by_label = found.setdefault(queue, {})
                by_label[label] = _added(by_label.get(label, {}), statistics)
    return found


def _added(first: Mapping[str, object], second: Mapping[str, object]) -> Counters:
    found = dict(first)
    for key, value in second.items():
        before = found.get(key)
        if isinstance(value, Mapping):
            found[key] = _added(before if isinstance(before, Mapping) else {}, value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[key] = (before if isinstance(before, int | float) else 0) + value
    return found


def answers(directory: Path, queues: Iterable[RunningQueue]) -> dict[Place, dict[str, object]]:
    """What each living worker of a component queue said last."""
    found = {}
    for queue in queues:
        for index, child in queue.children.items():
            with contextlib.suppress(SavedError):
                found[queue.config.name, index] = load(worker_file(directory, queue.config.name, index, child.pid))
    return found


@dataclass(frozen=True, slots=True)
class Source:
    """What the dump is made of; see the header. *silent* are the files that were not written in time."""

    config: Config
    board: Board
    queues: Mapping[str, RunningQueue]
    loop: Loop
    directory: Path
    paths: Mapping[str, Path]
    silent: frozenset[Path] = frozenset()


def begin(config: Config, board: Board, queues: Mapping[str, RunningQueue], loop: Loop, place: Path) -> Source:
    """
    Where the state of a pool comes from; *place* is its run directory, in which the workers' answers go.

    Raises StateError when it could not be written.
    """
    if os.path.isdir(config.pool.state_file):
        raise StateError(f"state_file {shown(str(config.pool.state_file))} is a directory; name a file")
    directory = place / "states"
    pool = config.pool
    paths = {"run_dir": place, "state": pool.state_file, "runlog_dir": pool.runlog_dir}
    source = Source(config, board, queues, loop, directory, paths)
    _clear(directory)  # of a master that was killed
    prepare(source, config.queues)
    return source


def prepare(source: Source, queues: Iterable[QueueConfig]) -> None:
    """Make the directory of the workers' answers where *queues* have components."""
    if any(queue.components for queue in queues):
        with contextlib.suppress(OSError):
            os.mkdir(source.directory, 0o700)


def end(source: Source) -> None:
    """Take it away; what a worker left that could not be ended is nobody's."""
    _clear(source.directory)
    with contextlib.suppress(OSError):
        os.rmdir(source.directory)


def _clear(directory: Path) -> None:
    with contextlib.suppress(OSError):
        for name in os.listdir(directory):
            os.unlink(directory / name)


def dump(source: Source) -> dict[str, object]:
    """The whole of it. Reads /proc and the workers' files, so it is no work for the master's loop."""
    found = answers(source.directory, source.queues.values())
    return {
        "time": time.time(),
        "name": source.config.pool.name,
        "pid": os.getppid(),
        "argv": sys.argv,
        "version": __version__,
        "rc": None,
        "paths": {name: str(path) for name, path in source.paths.items()},
        "files": [str(path) for path in source.config.paths],
        "config": tables(source.config),
        "status": snapshot(source.board),
        "pools": {name: _policy(queue) for name, queue in source.queues.items()},
        "components": {name: _components(source, queue, found) for name, queue in source.queues.items()},
        "events": [{"event": event, "args": said(args)} for event, args in source.loop.events.waiting()],
        "timers": [
            {"event": event, "in_s": round(wait_s, 3), "args": said(args)}
            for wait_s, event, args in source.loop.events.timers()
        ],
    }


def _policy(queue: RunningQueue) -> dict[str, object]:
    pool = queue.pool
    return {
        "url": queue.config.url,
        "opened": queue.opened,
        "is_done": queue.is_done,
        "is_removed": queue.is_removed,
        "target": pool.target,
        "generation": pool.generation,
        "is_stopping": pool.is_stopping,
        "is_backed_off": pool.is_backed_off,
        "deaths_in_row": pool.deaths_in_row,
        "feeder": queue.feeder.pid if queue.feeder is not None else None,
        "workers": {
            str(index): {"state": state.name.lower(), "pid": pool.pid(index)}
            for index in pool.indexes
            if (state := pool.state(index)) is not None
        },
    }


def _components(
    source: Source, queue: RunningQueue, found: Mapping[Place, dict[str, object]]
) -> dict[str, dict[str, object]]:
    if not queue.config.components:
        return {}
    told = {}
    for index, child in sorted(queue.children.items()):
        path = worker_file(source.directory, queue.config.name, index, child.pid)
        is_silent = path in source.silent or (queue.config.name, index) not in found
        in_hand = queue.in_hand(source.board, index)
        told[str(index)] = {
            "pid": child.pid,
            "answered": not is_silent,
            "busy": is_silent and bool(in_hand),
            "message": in_hand,
            "state": found.get((queue.config.name, index)),
        }
    return told
