"""
master - forks the roles, waits, answers signals, and never touches a queue directory

It puts together what others decide and do: config says what is wanted, pool (policy)
which worker is spawned or ended, child (mechanism) forks and collects, the keeper
looks at queues, the exporter at the board. Single-threaded; whatever waits, waits in
the loop.

INT drains, TERM is quick, QUIT at once. Children leave when the master is gone. After
run() the process ignores the signals of the table: it is about to end.
Long because: it is the one place where all roles meet, and its parts are methods that
fit on a screen.
See also: ARCHITECTURE.md (the flows), running (one queue), roles (the children).
"""

from __future__ import annotations

import dataclasses
import logging
import os
import resource
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import setproctitle

from orchestrator import child, exporter, logs, roles, running, state
from orchestrator.child import Exit
from orchestrator.config import Config, QueueConfig, diff
from orchestrator.control import ControlServer
from orchestrator.loop import Loop
from orchestrator.pool import Cause, Kill, Pool, Spawn, Term
from orchestrator.preload import imported, preload
from orchestrator.reports import RUNLOG, STATE, Reports
from orchestrator.rereading import Rereading
from orchestrator.rundir import RunDir
from orchestrator.runlog import RunLog
from orchestrator.running import RunningQueue
from orchestrator.services import Services
from workers.board import Board, Header, HeaderText, MasterState, Q, QueueText, W
from workers.errors import OrchestratorError
from workers.queues import names
from workers.queues.base import Consumer
from workers.system import SYSTEM

log = logging.getLogger(__name__)

# The table in OPERATIONS.md is checked against this one.
SIGNALS = {
    signal.SIGINT: "drain",  # finish what is in hand, at most stop_timeout; the third one: at once
    signal.SIGTERM: "quick",  # what is in hand gets term_timeout, then goes back uncounted
    signal.SIGQUIT: "now",  # kill at once; claims go back uncounted
    signal.SIGHUP: "reload",  # read the configuration again; a bad one is logged, the old one stays
    signal.SIGTTIN: "more",  # one worker more for each queue
    signal.SIGTTOU: "fewer",  # one worker less for each queue
    signal.SIGUSR1: "runlog",  # write the run log now; open the log file anew
    signal.SIGUSR2: "state",  # write the state file
    signal.SIGALRM: "look",  # look at everything at once, not at the next tick
}
# What the control socket can be asked, and what each verb takes: all of it and nothing else.
VERBS: dict[str, dict[str, type]] = {
    "ping": {},
    "scale": {"queue": str, "workers": int},
    "reload": {},
    "drain": {},
    "stop": {},
}
# What would end or stop a master that has not read its configuration yet.
EARLY = tuple(SIGNALS.keys() - {signal.SIGINT, signal.SIGTERM, signal.SIGQUIT})
TICK_S = 0.1
KILL_GRACE_S = 2.0  # for the kernel to end what was killed, before it is asked what it waits for
KEEPER_GRACE_S = 25.0
INTERRUPTS_MAX = 3
EXIT_FINE, EXIT_FAILED, EXIT_ERRORS = 0, 1, 4


@dataclass(slots=True)
class Pass:
    """One pass of the keeper over all queues, for --until-empty: its number, and the moves counted before it."""

    number: int
    moves: int


@dataclass(slots=True)
class Master:
    """
    One pool. ``run`` is its life and answers the exit code.

    Attributes:
        reload: reads the configuration again, in a child; raises ConfigError.
        is_until_empty: end when nothing waits, is claimed or deferred: 0, or 4 when messages went to errors/.
        on_tick: called ten times a second with the master (a progress bar, the demo).
        on_ready: called once, when every queue is open and has had a worker at its first look for a message (or
            needs none, for it is drained already). A pool that is given one and cannot become ready ends with 1.
        is_passing: leave no run log and no directory behind, unless killed: nobody gave the pool a name to ask for.
    """

    config: Config
    reload: Callable[[], Config]
    is_until_empty: bool = False
    on_tick: Callable[[Master], None] | None = None
    on_ready: Callable[[], None] | None = None
    is_passing: bool = False
    loop: Loop = field(init=False)
    board: Board = field(init=False)
    queues: dict[str, RunningQueue] = field(default_factory=dict)
    address: str | None = None
    services: Services = field(init=False)
    reports: Reports = field(init=False)
    _rereading: Rereading = field(init=False)
    _run_dir: RunDir = field(init=False)
    _name: str = ""
    _listener: socket.socket | None = None
    _control: ControlServer | None = None
    _runlog: RunLog = field(init=False)
    _interrupts: int = 0
    _is_hurried: bool = False
    _stopping_s: float | None = None
    _code: int = EXIT_FINE
    _pass: Pass | None = None
    _was_empty: bool = False
    _ooms: int = 0
    _limits: tuple[int, int] = (0, 0)

    # ---- life

    def __post_init__(self) -> None:
        pool = self.config.pool
        self._runlog = RunLog(pool.name, pool.runlog_dir, pool.runlog_keep)

    def run(self) -> int:
        """Acquire the name, serve until asked to end or empty; the exit code. Raises OrchestratorError at the start."""
        names.check_host(self.config.pool.host)
        pool = self.config.pool
        self._runlog.mark("setup", "start")
        # They stay for the loop: with the name taken anybody may send them. See test_a_signal_at_the_start_is_obeyed.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, EARLY)
        try:
            self._run_dir = RunDir.acquire(Path(pool.run_dir), pool.name)
            try:
                self._runlog.begin()
                try:
                    self._open()
                except BaseException as error:
                    self._runlog.fail(str(error) or type(error).__name__)
                    raise
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
                code = EXIT_FAILED
                try:
                    code = self.loop.run()
                    return code
                finally:
                    self._close(code)
            finally:
                if self.is_passing:
                    self._runlog.remove()
                self._run_dir.release()
        finally:
            # ORDER: ignored, then let through: what came meanwhile would end the process before its exit code.
            # See test_signals_while_a_pool_ends_change_nothing.
            for number in SIGNALS:
                signal.signal(number, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _open(self) -> None:
        pool = self.config.pool
        # First of all: nothing is forked yet, and signals still do what the shell expects.
        preload(sorted({spec for one in self.config.queues if one.preload for spec in one.imports}))
        self._listener, warning = exporter.bind(self.config.metrics.listen, self.config.metrics.listen_is_default)
        for text in (*self.config.warnings, *([warning] if warning else [])):
            log.warning("%s", text)
        self.board = Board.create(self._run_dir.board_path)
        self._name = names.master_name(pool.host, SYSTEM)
        header = self.board.header
        header.words[Header.MASTER_PID], header.words[Header.MASTER_START] = os.getpid(), _start_ticks()
        header.words[Header.STARTED_S] = int(time.time())
        header.words[Header.LAST_SEEN_NS] = SYSTEM.boottime_ns()
        header.words[Header.RELOAD_OK], header.words[Header.RELOADED_S] = 1, int(time.time())
        self.address = exporter.address(self._listener) if self._listener else None
        for which, text in (
            (HeaderText.NAME, pool.name),
            (HeaderText.HOST, pool.host),
            (HeaderText.MASTER, self._name),
            (HeaderText.LISTEN, self.address or ""),
        ):
            header.set_text(which, text)
        self.loop = Loop()
        self._limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (self._limits[1], self._limits[1]))  # two descriptors a worker
        self._ooms = running.oom_kills()
        self.loop.signals(SIGNALS)
        self.loop.on("drain", lambda _: self.drain())
        self.loop.on("quick", lambda _: self.quick())
        self.loop.on("now", lambda _: self.now())
        self.loop.on("reload", lambda _: self.read_again())
        self.loop.on("more", lambda _: self._resize(1))
        self.loop.on("fewer", lambda _: self._resize(-1))
        self.loop.on("tick", lambda _: self.tick())
        self.loop.on("look", lambda _: self.tick())
        self.loop.on("runlog", lambda _: self._save_runlog())
        self.loop.on("save_runlog", lambda _: self.reports.want(RUNLOG, is_told=False))
        self.loop.on("state", lambda _: self.reports.want(STATE))
        self.loop.on("rates", lambda _: self.reports.log_rates())
        self.loop.every(TICK_S, "tick")
        for seconds, event in ((pool.runlog_interval, "save_runlog"), (pool.stats_interval, "rates")):
            if seconds:
                self.loop.every(seconds, event)
        self._control = ControlServer(
            self._run_dir.control_path, self.dispatch, watch=self.loop.watch, unwatch=self.loop.unwatch
        )
        for config in self.config.queues:
            self.queues[config.name] = running.start(config, pool, self.board)
        setproctitle.setproctitle(f"orchestrator: master {pool.name}")
        child.settle()
        self.services = Services(
            self.loop,
            self.board,
            self._name,
            pool.host,
            self.queues,
            self._listener,
            self._on_opened,
            self._forget_in_child,
        )
        place = self._run_dir.path
        source = state.begin(self.config, self.board, self.queues, self.loop, place)
        self.reports = Reports(source, self.services, self._runlog)
        self._rereading = Rereading(self.loop, self.services, self.reload, self._on_read)
        self.services.start()
        self._runlog.mark("setup", "stop")
        self._runlog.mark("process", "start")
        where = f", metrics on http://{self.address}/metrics" if self.address else ""
        log.info("pool %s starts: %d queue(s), %d workers%s", pool.name, len(self.queues), self.config.workers, where)

    def _close(self, code: int) -> None:
        self._rereading.close()
        self.reports.end(code, is_hurried=self._is_hurried)
        state.end(self.reports.source)
        self.services.close()
        for queue in self.queues.values():
            queue.close()
        if self._control is not None:
            self._control.close()
        if self._listener is not None:
            self._listener.close()
        # Without the loop they have their default effects again, and most of those are the end.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        self.loop.close()
        child.forget_all()

    def _forget_in_child(self) -> None:
        """What is the master's alone, closed in each child; the limit of descriptors is the user's again."""
        resource.setrlimit(resource.RLIMIT_NOFILE, self._limits)
        self.services.forget_in_child()
        self._rereading.forget_in_child()
        if self._control is not None:
            self._control.forget_in_child()
        self.on_tick = self.on_ready = None

    # ---- the tick: a look at the board, then the policy

    def tick(self) -> None:
        """Collect, look, decide. Ten times a second, and after every exit."""
        now_s, boottime_ns = time.monotonic(), SYSTEM.boottime_ns()
        self.board.header.words[Header.LAST_SEEN_NS] = boottime_ns
        if self._control is not None:
            self._control.tick(now_s)
        # The keeper also while draining: what is in hand needs the lease until its worker has left.
        is_stopping = self._stopping_s is not None
        is_keeper_wanted = not is_stopping or self._is_awaited(now_s)
        self.services.tend(now_s, is_keeper_wanted=is_keeper_wanted, is_exporter_wanted=not is_stopping)
        for queue in tuple(self.queues.values()):
            for index in tuple(queue.children):
                self._collect(queue, index)
            queue.read_board(self.board, now_s, boottime_ns)
            queue.listen(self.board, boottime_ns)
            self._plan(queue, now_s)
            if queue.is_removed and queue.pool.is_empty:
                self._forget_queue(queue)
        if self.on_ready is not None and self._stopping_s is None:
            self._look_for_ready()
        self.reports.tick(now_s)
        self._rereading.tick(now_s)
        if self._stopping_s is not None:
            self._end_when_empty(now_s)
        elif self.is_until_empty:
            self._look_for_empty()
        elif self.queues and all(queue.is_done and queue.pool.is_empty for queue in self.queues.values()):
            log.info("the components of every queue are done")
            self._stop(EXIT_FINE, lambda pool, now_s: pool.drain(now_s), MasterState.DRAINING)
        if self.on_tick is not None:
            self.on_tick(self)

    def _look_for_ready(self) -> None:
        waiting = [one for one in self.queues.values() if not (one.is_reached or one.pool.is_stopping)]
        if any(queue.pool.is_backed_off for queue in waiting):
            log.error("workers die before they look for a message; given up")
            self._stop(EXIT_FAILED, lambda pool, now_s: pool.quick(now_s))
        elif not waiting and all(queue.opened for queue in self.queues.values()):
            on_ready, self.on_ready = self.on_ready, None
            assert on_ready is not None  # noqa: S101 - asked by the caller
            on_ready()

    def _plan(self, queue: RunningQueue, now_s: float) -> None:
        if not queue.opened and not queue.pool.is_stopping:
            return
        self.services.tend_feeder(queue, now_s)  # before the first worker, or all of them would scan for themselves
        for action in queue.pool.plan(now_s):
            match action:
                case Spawn(index):
                    self._spawn_worker(queue, index)
                case Term(index):
                    queue.children[index].send(signal.SIGTERM)
                case Kill(index, cause):
                    self._kill(queue, index, cause, now_s)
        queue.show(self.board)

    # ---- workers

    def _spawn_worker(self, queue: RunningQueue, index: int) -> None:
        slot = queue.worker_number(self.board, index)
        words = self.board.worker(slot).words
        words[W.QUEUE], words[W.INDEX], words[W.USED] = queue.slot, index, 1  # again: somebody may have damaged them
        consumer = Consumer(self._name, self.board, queue.slot, slot, index, max(queue.pool.target, 1), *queue.feed)
        urls = {one.name: one.url for one in self.config.queues}
        states = self.reports.source.directory
        pool = self.config.pool
        orders = roles.Work(queue.config, consumer, pool.host, os.getpid(), urls, states, pool.stats_interval)
        title = f"worker {queue.config.name}[{index}]"
        try:
            made = self.services.spawn(lambda: roles.work(orders), title)
        except OSError as error:
            log.error("%s cannot be forked: %s", title, error)
            queue.pool.exited(index, time.monotonic(), status="error", claims=0, settled=0, had_message=False)
            return
        queue.children[index] = made
        queue.pool.spawned(index, made.pid, time.monotonic())
        self.loop.watch(made.sentinel, lambda _: self._on_end(queue, index))

    def _kill(self, queue: RunningQueue, index: int, cause: Cause, now_s: float) -> None:
        """Kill it with all it started; the policy asks again every second, and what hangs by then is left alone."""
        made, worker = queue.children[index], f"worker {queue.config.name}[{index}]"
        if made.killed_s is None:
            made.killed_s = now_s
            log.warning("%s is killed: %s", worker, _KILLED[cause])
        elif made.hangs_in is None and now_s - made.killed_s >= KILL_GRACE_S:
            made.hangs_in = child.hangs_in(made.pid)
            if made.hangs_in is not None:
                log.warning("%s (pid %d) was killed, and does not end: %s", worker, made.pid, _hangs(made))
        if made.hangs_in is None:
            child.kill_whole(made.pid)

    def _on_end(self, queue: RunningQueue, index: int) -> None:
        self._collect(queue, index)
        self._plan(queue, time.monotonic())

    def _collect(self, queue: RunningQueue, index: int) -> None:
        made = queue.children.get(index)
        if made is None:
            return
        sentinel, pid = made.sentinel, made.pid
        end = made.collect()
        if end is None:
            return
        self.loop.unwatch(sentinel)
        made.close()
        del queue.children[index]
        # Its programs, before its message can be claimed again. The session alone: the worker itself is collected,
        # and its number may be another's by now.
        SYSTEM.kill_session(pid)
        self.reports.bury(queue, index, pid)
        killed = queue.pool.kill_cause(index)
        is_asked = queue.pool.is_asked(index)
        reason = self._reason(end, killed)
        dead = running.bury(queue.worker_slot(self.board, index), end, reason)
        # A handler may end its process as it likes, and a component that must stop is done too.
        is_done = end.code == roles.DONE_CODE and queue.config.components and not dead.had_message
        if is_done and not is_asked:
            self._on_done(queue)
        elif not is_asked or reason not in ("finished", "signal"):
            in_hand = f", with {names.shown(dead.message)} in hand" if dead.had_message else ""
            log.warning("worker %s[%d] (pid %d) %s%s", queue.config.name, index, pid, end, in_hand)
        queue.is_reached = queue.is_reached or dead.claims > 0
        owner = names.parse_owner(dead.owner)
        # On a damaged board the name of another may stand there, and that one lives.
        is_anothers = owner is not None and (owner.master, owner.pid) != (self._name, pid)
        if dead.owner and not is_anothers:
            cause = killed or ("stopped" if is_asked else "died")
            order = {"owner": dead.owner, "cause": cause, "note": f"worker pid {pid} {end}"}
            self.services.release(queue, order)
        queue.pool.exited(
            index,
            time.monotonic(),
            status=reason,
            claims=dead.claims,
            settled=dead.settled,
            had_message=dead.had_message,
        )
        queue.show(self.board)

    def _reason(self, end: Exit, killed: Cause | None) -> str:
        """One of the board's EXIT_REASONS."""
        if killed == "timeout":
            return "timeout"
        if end.signal == signal.SIGKILL and killed is None:
            ooms, before = running.oom_kills(), self._ooms
            self._ooms = ooms
            return "oom" if ooms > before else "signal"
        if end.signal is not None:
            return "signal"
        return "finished" if end.code in (0, roles.DONE_CODE) else "error"

    def _on_done(self, queue: RunningQueue) -> None:
        """Its components said so in one worker: what the others have in hand is finished, and no other is spawned."""
        if not queue.is_done:
            log.info("queue %s: its components are done", queue.config.name)
            queue.is_done = True
            queue.pool.drain(time.monotonic())

    def _resize(self, change: int) -> None:
        for queue in self.queues.values():
            self.scale(queue, queue.pool.policy.size + change)

    def scale(self, queue: RunningQueue, size: int) -> None:
        """Want *size* workers, at least one."""
        others = sum(one.pool.policy.size for one in self.queues.values() if one is not queue)
        size = max(1, min(size, 1024 - others))
        log.info("queue %s: %d workers wanted", queue.config.name, size)
        queue.pool.set_size(size)
        self._plan(queue, time.monotonic())

    # ---- queues

    def _on_opened(self, queue: RunningQueue, refused: str | None) -> None:
        is_first = queue.opened is None
        queue.opened = refused is None
        if refused is None:
            log.info("queue %s is ready: %s", queue.config.name, queue.config.url)
            words = self.board.header.words
            if words[Header.STATE] == MasterState.STARTING and all(one.opened for one in self.queues.values()):
                words[Header.STATE] = MasterState.RUNNING
            self._plan(queue, time.monotonic())
            return
        log.error("queue %s is refused: %s", queue.config.name, refused)
        if is_first and self._stopping_s is None and (self.is_until_empty or not queue.is_added):
            self._stop(EXIT_FAILED, lambda pool, now_s: pool.quick(now_s))

    # ---- ending

    def drain(self) -> None:
        """INT: finish what is in hand; the third one ends at once."""
        self._interrupts += 1
        if self._interrupts >= INTERRUPTS_MAX:
            self.now()
            return
        log.info("draining: what is in hand is finished, at most %g s", self.config.pool.stop_timeout)
        self._stop(EXIT_FINE, lambda pool, now_s: pool.drain(now_s), MasterState.DRAINING)

    def quick(self) -> None:
        """TERM: what is in hand gets term_timeout."""
        log.info("stopping: what is in hand has %g s, then it goes back", self.config.pool.term_timeout)
        self._stop(EXIT_FINE, lambda pool, now_s: pool.quick(now_s))

    def now(self) -> None:
        """QUIT: kill; what is in hand goes back uncounted."""
        log.info("stopping at once: what is in hand goes back")
        self._is_hurried = True
        self._stop(EXIT_FINE, lambda pool, _: pool.kill_now())

    def _save_runlog(self) -> None:
        """USR1: the run log, and the log file opened anew; the children see by themselves when that has moved."""
        logs.reopen()
        self.reports.want(RUNLOG)

    def _stop(self, code: int, how: Callable[[Pool, float], None], to: MasterState = MasterState.STOPPING) -> None:
        now_s = time.monotonic()
        self._runlog.mark("process", "stop")
        self._runlog.mark("teardown", "start")
        if self._stopping_s is None:
            self._stopping_s, self._code = now_s, code
        words = self.board.header.words
        # ORDER: a worker that is told looks whether there is a hurry, so that is shown before. That the pool drains is
        # shown when all are told: who reads it may rely on it that who has a message in hand takes no other.
        # See test_int_finishes_what_is_in_hand_and_takes_nothing_more.
        if to is MasterState.STOPPING:
            words[Header.STATE] = to
        for queue in self.queues.values():
            how(queue.pool, now_s)
            self._plan(queue, now_s)
        words[Header.STATE] = to

    def _end_when_empty(self, now_s: float) -> None:
        """When the last worker is gone, or hangs: the keeper's last releases, then the end."""
        if self._is_awaited(now_s):
            return
        if self.services.has_orders and now_s - (self._stopping_s or now_s) < KEEPER_GRACE_S:
            return
        if self.services.is_told:
            self.services.end_orders()
            self._stopping_s = now_s
        if self.services.keeper is not None:
            if now_s - (self._stopping_s or now_s) < KEEPER_GRACE_S:
                return
            log.warning("the keeper does not leave (does a filesystem hang?); it is killed")
            self.services.keeper.send(signal.SIGKILL)
        for queue in self.queues.values():
            for index, made in queue.children.items():
                who = f"worker {queue.config.name}[{index}] (pid {made.pid})"
                log.error("%s is left behind: %s; what it has in hand goes back when it is gone", who, _hangs(made))
        log.info("pool %s ends", self.config.pool.name)
        self.loop.stop(self._code)

    def _is_awaited(self, now_s: float) -> bool:
        """Whether a worker is there that ends, now that it was asked to or killed."""
        children = [made for queue in self.queues.values() for made in queue.children.values()]
        return any(made.hangs_in is None and now_s - (made.killed_s or now_s) < KEEPER_GRACE_S for made in children)

    # ---- until empty

    def _look_for_empty(self) -> None:
        """See SPOOL.md: two passes that find nothing, with all workers idle and no move before or since."""
        queues = tuple(self.queues.values())
        if not all(queue.opened for queue in queues):
            return
        if any(queue.pool.is_backed_off and not queue.is_done for queue in queues):
            log.error("workers die before they finish a message; given up, see the warnings above")
            self._stop(EXIT_FAILED, lambda pool, now_s: pool.quick(now_s))
            return
        words = [self.board.queues[queue.slot].words for queue in queues]
        moves = sum(queue.moves(self.board) for queue in queues)
        if self._pass is None:
            if self._is_at_rest(queues):
                number = self.board.header.words[Header.PASS] + 1
                self.board.header.words[Header.PASS] = number
                self._pass = Pass(number, moves)
                for queue in queues:
                    self.services.order("measure", queue)
            return
        if any(one[Q.PASS] != self._pass.number for one in words):
            return
        before, self._pass = self._pass.moves, None
        was_empty, self._was_empty = self._was_empty, False
        if before != moves or not self._is_at_rest(queues) or any(one[Q.CLAIMED] for one in words):
            return
        waiting = [(queue, one) for queue, one in zip(queues, words, strict=True) if one[Q.WAITING] or one[Q.DEFERRED]]
        paused = [queue for queue, one in waiting if one[Q.PAUSED] and one[Q.WAITING] and not queue.is_done]
        if paused:
            for queue in paused:
                log.error(
                    "queue %s is paused and not empty; orchestrator resume %s", queue.config.name, queue.config.url
                )
            self._stop(EXIT_FAILED, lambda pool, now_s: pool.drain(now_s), MasterState.DRAINING)
        elif all(queue.is_done for queue, _ in waiting):
            if not was_empty:
                # Once more: another pool may have given a claim back behind the look at incoming/.
                self._was_empty = True
                return
            code = EXIT_ERRORS if any(queue.rejected(self.board) for queue in queues) else EXIT_FINE
            for queue, one in waiting:
                left = one[Q.WAITING] + one[Q.DEFERRED]
                log.error("queue %s: its components are done, and %d messages wait in it", queue.config.name, left)
                code = EXIT_FAILED
            self._stop(code, lambda pool, now_s: pool.drain(now_s), MasterState.DRAINING)

    def _is_at_rest(self, queues: tuple[RunningQueue, ...]) -> bool:
        return all(queue.is_idle(self.board) for queue in queues)

    # ---- reload and control

    def read_again(self) -> None:
        """HUP: have the configuration read."""
        if self._stopping_s is None:
            self._rereading.want(time.monotonic())
        else:
            log.warning("the configuration is not reloaded: the pool is ending")

    def _on_read(self, new: Config | str) -> None:
        """Apply what changed; a bad file is logged and the old configuration stays."""
        if self._stopping_s is not None:
            return
        words = self.board.header.words
        if isinstance(new, str):
            words[Header.RELOAD_OK] = 0
            log.error("the configuration is not reloaded, the old one stays in force: %s", new)
            return
        found = diff(self.config, new)
        if self.board.queues_free() < sum(self.board.is_new_queue(config.name) for config in found.added):
            words[Header.RELOAD_OK] = 0
            log.error("the configuration is not reloaded: the board has no room for more queue names; restart the pool")
            return
        for name in found.restart:
            log.warning("%s changed: that needs a restart", name)
        for config in (*found.added, *(config for _, config in found.changed)):
            own = [spec for spec in config.imports if not spec.startswith("workers.")]
            if modules := sorted({module for spec in own if (module := imported(spec))}):
                log.warning(
                    "queue %s: new code of %s needs a restart: the master imported it", config.name, ", ".join(modules)
                )
            elif config.preload and own:
                log.warning("queue %s: preload needs a restart; until then workers import it", config.name)
        state.prepare(self.reports.source, new.queues)
        for config in found.removed:
            self._remove(self.queues[config.name])
        for old, config in found.changed:
            self._change(self.queues[old.name], config)
        self.config = self.config.model_copy(update={"queues": new.queues, "paths": new.paths})
        self.reports.source = dataclasses.replace(self.reports.source, config=self.config)
        for config in found.added:
            self._start_queue(config)
        words[Header.RELOAD_OK], words[Header.RELOADED_S] = 1, int(time.time())
        log.info("reloaded: %d added, %d removed, %d changed", len(found.added), len(found.removed), len(found.changed))

    def _start_queue(self, config: QueueConfig) -> None:
        leaving = [one.config.url for one in self.queues.values() if one.is_removed]
        if config.name in self.queues or config.url in leaving:
            return  # its name or its directory is in use until the last worker has left: _forget_queue starts it
        queue = running.start(config, self.config.pool, self.board)
        queue.is_added = True
        self.queues[config.name] = queue
        self.services.add(queue)

    def _remove(self, queue: RunningQueue) -> None:
        queue.is_removed = True
        queue.pool.drain(time.monotonic())
        self._plan(queue, time.monotonic())

    def _change(self, queue: RunningQueue, config: QueueConfig) -> None:
        if queue.is_done:
            self._remove(queue)  # and started anew: _forget_queue
            return
        if queue.config.url != config.url:
            # At once, for workers look there where to forward to.
            self.board.queues[queue.slot].set_text(QueueText.URL, config.url)
            self._remove(queue)  # and started at its new place when the last worker has left, see _forget_queue
            return
        old, queue.config = queue.config, config
        if old.settings() != config.settings():
            # The keeper opens it anew, and goes on with the number of the lease that it finds.
            self.services.order("remove", queue)
            self.services.add(queue)
            self.services.end_feeder(queue)  # another feeds in the new order
        queue.pool.policy.time_limit_s = config.time_limit
        queue.pool.set_size(config.workers)
        queue.pool.set_generation(queue.pool.generation + 1)
        self._plan(queue, time.monotonic())

    def _forget_queue(self, queue: RunningQueue) -> None:
        self.services.order("remove", queue)
        self.services.end_feeder(queue)
        queue.close()
        self.board.queues[queue.slot].words[Q.USED] = 2
        del self.queues[queue.config.name]
        for again in self.config.queues:
            if again.name not in self.queues:
                self._start_queue(again)  # what was added, or called otherwise, before the last worker had left

    def dispatch(self, verb: str, arguments: dict[str, object]) -> dict[str, object]:
        """Answer the control socket. Raises OrchestratorError for what cannot be done."""
        takes = VERBS.get(verb)
        if takes is None:
            raise OrchestratorError(f"there is no verb {verb!r}: {', '.join(VERBS)}")
        # Exactly: a drain "of a queue" must not drain the pool, and true is no number of workers.
        if {key: type(value) for key, value in arguments.items()} != takes:
            wanted = " and ".join(f"{key} ({kind.__name__})" for key, kind in takes.items()) or "no arguments"
            raise OrchestratorError(f"{verb} takes {wanted}")
        match verb, arguments:
            case "ping", _:
                files = {"runlog": self._runlog.path, "state": self.config.pool.state_file}
                return {"pid": os.getpid(), "name": self.config.pool.name} | {
                    kind: None if path is None else os.path.abspath(path) for kind, path in files.items()
                }
            case "scale", {"queue": str(name), "workers": int(size)}:
                return self._scale(name, size)
            case "stop", _:
                self.loop.events.schedule("quick")
            case "reload" | "drain", _:
                self.loop.events.schedule(verb)
        return {}

    def _scale(self, name: str, size: int) -> dict[str, object]:
        queue = self.queues.get(name)
        if queue is None:
            raise OrchestratorError(f"there is no queue called {name!r}, only {', '.join(self.queues)}")
        if not 1 <= size <= 1024:
            raise OrchestratorError("workers must be a number from 1 to 1024")
        self.scale(queue, size)
        return {"queue": queue.config.name, "workers": queue.pool.policy.size}


_KILLED: dict[Cause, str] = {
    "stopped": "it did not leave in time",
    "timeout": "its message took longer than time_limit",
}


def _hangs(made: child.Child) -> str:
    where = f" ({made.hangs_in})" if made.hangs_in else ""
    return f"it hangs in the kernel{where}, in a filesystem that does not answer"


def _start_ticks() -> int:
    return SYSTEM.start_ticks(os.getpid()) or 0
