"""
reports - what a pool tells of itself unasked: run log, state file, rates in the log

The master forks a child for each writing, so that its loop never waits for a disk: at
most one at a time, and what is wanted meanwhile is written by the next one. Before it,
the workers of component queues are asked for their state (see state).

Raises: nothing: a report that cannot be written costs a line in the log.
Main thread of the master only, but write(), which is the child's.
See also: runlog, state (the contents), master (which calls tick() and says when).
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator import state
from orchestrator.child import Child
from orchestrator.runlog import RunLog
from orchestrator.running import RunningQueue, counters
from orchestrator.services import Services, wait_for
from workers.rates import calc_statistics
from workers.saved import SavedError, save

log = logging.getLogger(__name__)

LAST_S, HURRIED_S = 5.0, 0.3  # so long the run log may take to be written when all else has ended
RUNLOG, STATE = "run log", "state"


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
    _writer: Child | None = None
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
        if self._writer is not None and self._writer.collect() is not None:
            self._writer.close()
            self._writer = None
        if self._inquiry is not None and self._inquiry.is_over(now_s):
            self.source = dataclasses.replace(self.source, silent=self._inquiry.silent)
            self._inquiry = None
            what, self._due = self._due, set()
            self._write(what)
        if self._wanted and self._inquiry is None and self._writer is None:
            self._due, self._wanted = self._wanted, set()
            self._inquiry = self._asked(now_s)

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

    def _write(self, what: set[str], code: int | None = None) -> None:
        pid = os.getpid()
        try:
            self._writer = self.services.spawn(lambda: self.write(what, pid, code), "writer")
        except OSError as error:
            log.error("no process to write the %s: %s", " and the ".join(sorted(what)), error)
        self._told -= what

    def write(self, what: set[str], pid: int, code: int | None) -> int:
        """Write it, in a child of the master *pid*; the exit code."""
        paths = {RUNLOG: self.runlog.path, STATE: self.source.paths["state"]}
        failed = 0
        for one in sorted(what):
            path = paths[one]
            if path is None:
                continue
            try:
                if one == RUNLOG:
                    with contextlib.suppress(OSError):
                        self.runlog.prune()
                    save(path, self.runlog.content(pid, code, self._statistics()))
                else:
                    save(path, state.dump(self.source))
            except SavedError as error:
                failed = 1
                log.error("the %s: %s", one, error)
            else:
                log.log(logging.INFO if one in self._told else logging.DEBUG, "the %s is in %s", one, path)
        return failed

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
        if self._writer is not None:
            wait_for(self._writer, patience_s / 2)  # else it might rename the older version over the newer one
            self._writer.send(signal.SIGKILL)
        self._write({RUNLOG}, code)
        if self._writer is not None and not wait_for(self._writer, patience_s):
            log.error("the run log is not written (does a filesystem hang?)")
            self._writer.send(signal.SIGKILL)

    # ---- rates

    def log_rates(self) -> None:
        """One line for each queue: the counters since the last time, and how many a second."""
        now_s = time.monotonic()
        found = counters(self.source.board)
        for queue in self.source.queues:
            rates = calc_statistics(found.get(queue, {}), self._before.get(queue, {}), now_s - self._before_s)
            shown = [
                f"{key} {rate['cnt']:,} ({rate['inc']:+,}, {rate['spd']:,.2f}/s)"
                for key, rate in rates.items()
                if rate.get("cnt")
            ]
            log.info("queue %s: %s", queue, ", ".join(shown) or "nothing yet")
        self._before, self._before_s = found, now_s
