"""
reports - what a pool tells of itself unasked: run log, state file, rates in the log

The master forks a child for each writing, so that its loop never waits for a disk: at
most one of each kind at a time, and what is wanted meanwhile is written by the next
one. Before it, the workers of component queues are asked for their state (see state).
A writer that is killed is replaced once; one that takes longer than SLOW_S is told of.

Raises: nothing: a report that cannot be written costs a line in the log.
Main thread of the master only, but write(), which is the child's.
See also: runlog, state (the contents), master (which calls tick() and says when).
"""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator import state
from orchestrator.child import Child
from orchestrator.places import parent_of
from orchestrator.runlog import RunLog
from orchestrator.running import RunningQueue, counters
from orchestrator.services import Services, wait_for
from workers.queues.names import shown
from workers.rates import calc_statistics
from workers.saved import SavedError, save, sweep

log = logging.getLogger(__name__)

LAST_S, HURRIED_S = 5.0, 0.3  # so long the run log may take to be written when all else has ended
RUNLOG, STATE = "run log", "state"
SLOW_S = 10.0  # a writer that takes longer is told of


@dataclass(slots=True)
class Writer:
    """The process that writes one report; *is_again*: in place of one that was killed."""

    child: Child
    since_s: float
    is_again: bool
    is_told: bool
    is_slow: bool = False


@dataclass(slots=True)
class Reports:
    """
    The reports of one pool.

    Attributes:
        source: where the state comes from; a reload sets another configuration.
        runlog: of this run.
    """

    source: state.Source
    services: Services
    runlog: RunLog
    _tally: state.Tally = field(default_factory=state.Tally)
    _wanted: set[str] = field(default_factory=set)
    _told: set[str] = field(default_factory=set)  # of these somebody wants to hear
    _inquiry: state.Inquiry | None = None
    _due: set[str] = field(default_factory=set)
    _writers: dict[str, Writer] = field(default_factory=dict)  # by what they write
    _before: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    _before_s: float = field(default_factory=time.monotonic)

    # ---- what is wanted

    def want(self, what: str, *, is_told: bool = True) -> None:
        """Write RUNLOG or STATE as soon as the workers have answered; *is_told*: the log says where it is."""
        self._wanted.add(what)
        if is_told:
            self._told.add(what)

    def tick(self, now_s: float) -> None:
        """Ask, look, fork, collect: whatever is next."""
        for what, writer in tuple(self._writers.items()):
            self._look_after(what, writer, now_s)
        if self._inquiry is not None and self._inquiry.is_over(now_s):
            self.source = dataclasses.replace(self.source, silent=self._inquiry.silent)
            self._inquiry = None
            for what in sorted(self._due):
                self._write(what, now_s, is_told=what in self._told)
            self._told -= self._due
        due = self._wanted - self._writers.keys()
        if due and self._inquiry is None:
            self._due = due
            self._wanted -= due
            self._inquiry = self._asked(now_s)

    def _look_after(self, what: str, writer: Writer, now_s: float) -> None:
        end = writer.child.collect()
        if end is None:
            if now_s - writer.since_s > SLOW_S and not writer.is_slow:
                writer.is_slow = True
                log.warning("the %s takes long to be written (does a filesystem hang?)", what)
            return
        writer.child.close()
        del self._writers[what]
        if end.signal is not None:
            log.warning("the writer of the %s %s%s", what, end, "" if writer.is_again else "; it is written once more")
            if not writer.is_again:
                self._write(what, now_s, is_told=writer.is_told, is_again=True)

    def _asked(self, now_s: float) -> state.Inquiry:
        inquiry = state.Inquiry(self.source.directory, now_s + state.ANSWER_S)
        for queue in self.source.queues.values():
            if queue.config.components:
                for index, child in queue.children.items():
                    if queue.is_up(self.source.board, index):
                        inquiry.ask(queue.config.name, index, child, signal.SIGUSR2)
        return inquiry

    def bury(self, queue: RunningQueue, index: int, pid: int) -> None:
        """A worker has ended: what it said last counts on."""
        if queue.config.components:
            path = state.worker_file(self.source.directory, queue.config.name, index, pid)
            if self._inquiry is not None:
                self._inquiry.has_ended(path)
            self._tally.bury(queue.config.name, path)

    # ---- writing

    def _write(
        self, what: str, now_s: float, *, is_told: bool, is_again: bool = False, code: int | None = None
    ) -> None:
        pid = os.getpid()
        try:
            made = self.services.spawn(lambda: self.write(what, pid, code, is_told=is_told), "writer")
        except OSError as error:
            log.error("no process to write the %s: %s", what, error)
        else:
            self._writers[what] = Writer(made, now_s, is_again, is_told)

    def write(self, what: str, pid: int, code: int | None, *, is_told: bool) -> int:
        """Write it, in a child of the master *pid*; the exit code."""
        path = self.runlog.path if what == RUNLOG else self.source.paths["state"]
        if path is None:
            return 0
        try:
            if what == RUNLOG:
                self.runlog.save(pid, code, self._statistics())
            else:
                with parent_of(path) as directory:
                    sweep(path, dir_fd=directory)
                    save(path, state.dump(self.source), dir_fd=directory)
        except SavedError as error:
            log.error("the %s: %s", what, error)
            return 1
        except OSError as error:
            log.error("the %s: cannot write %s: %s", what, shown(str(path)), error.strerror)
            return 1
        log.log(logging.INFO if is_told else logging.DEBUG, "the %s is in %s", what, shown(str(path)))
        return 0

    def _statistics(self) -> dict[str, object]:
        queues = self.source.queues.values()
        said = state.answers(self.source.directory, queues)
        return {
            "time": time.time(),
            "queues": counters(self.source.board),
            "components": state.sums(self._tally.ended, [(queue, found) for (queue, _), found in said.items()]),
        }

    # ---- the end

    def end(self, code: int, *, is_hurried: bool) -> None:
        """Write the run log a last time; waited for, at most LAST_S or HURRIED_S. When the loop has ended."""
        patience_s = HURRIED_S if is_hurried else LAST_S
        self.runlog.mark("teardown", "stop")
        logging.getLogger().removeHandler(self.runlog.errors)
        before = self._writers.pop(RUNLOG, None)
        if before is not None and not wait_for(before.child, patience_s / 2):
            before.child.send(signal.SIGKILL)  # else it might rename the older version over the newer one
        self._write(RUNLOG, time.monotonic(), is_told=False, code=code)
        last = self._writers.get(RUNLOG)
        if last is not None and wait_for(last.child, patience_s):
            del self._writers[RUNLOG]
        elif last is not None:
            log.error("the run log is not written (does a filesystem hang?)")
        for writer in self._writers.values():
            # One that is killed in the midst of it leaves an unfinished file.
            if not wait_for(writer.child, patience_s / 2):
                writer.child.send(signal.SIGKILL)

    # ---- rates

    def log_rates(self) -> None:
        """One line for each queue: the counters since the last time, and how many a second."""
        now_s = time.monotonic()
        found = counters(self.source.board)
        for queue in self.source.queues:
            rates = calc_statistics(found.get(queue, {}), self._before.get(queue, {}), now_s - self._before_s)
            words = [
                f"{key} {rate['cnt']:,} ({rate['inc']:+,}, {rate['spd']:,.2f}/s)"
                for key, rate in rates.items()
                if rate.get("cnt")
            ]
            log.info("queue %s: %s", queue, ", ".join(words) or "nothing yet")
        self._before, self._before_s = found, now_s
