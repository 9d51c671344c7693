"""
pool - the policy of one queue's workers: who is spawned, asked to leave, killed, and when

Pure: it is told what happened (spawned, is_ready, facts, exited) and what is wanted
(set_size, set_generation, drain, quick, kill_now), and plan() says what to do. Each
action is returned once, a Kill again every second until the exit is seen; whoever asks
performs them all before it asks again.

A death is an exit nobody asked for. With a message claimed it is answered at once; a
young worker, that never claimed, waits 0.1 s, doubling to 30 s. After max(3, size, crash_limit + 1)
deaths in a row without one settled message the pool backs off: one worker at a time
tries, at growing distances, until a message is settled. One broken deployment would
otherwise move a whole queue to errors/.

Long because: it is one state machine, and each part of it decides by the others.
All times are monotonic seconds of one clock of the caller's. Raises nothing but
AssertionError, for a report that cannot be (a bug of the caller).
See also: master (performs the actions), child (how), tests/unit/test_pool.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Literal

KILL_AGAIN_S = 1.0
DEATHS_MIN = 3  # a poison message may take this many workers before it is in errors/; that is no broken deployment
DOUBLINGS_MAX = 64  # beyond any limit, and far from the largest float

Cause = Literal["stopped", "timeout"]


@dataclass(frozen=True, slots=True)
class Spawn:
    """Fork worker *index*."""

    index: int


@dataclass(frozen=True, slots=True)
class Term:
    """SIGTERM: leave after the message in hand."""

    index: int


@dataclass(frozen=True, slots=True)
class Kill:
    """SIGKILL the whole process group. *cause* is what the keeper is told of the message in hand."""

    index: int
    cause: Cause


@dataclass(frozen=True, slots=True)
class Wait:
    """Ask plan() again at *until_s*, even if nothing happens before."""

    until_s: float


Action = Spawn | Term | Kill | Wait


@dataclass(slots=True)
class PoolPolicy:
    """
    What is wanted of one queue's workers; seconds.

    Attributes:
        size: workers wanted.
        stop_timeout_s: what drain() gives the messages in hand; also, how long a worker with
            nothing in hand may take to leave when it was asked to.
        term_timeout_s: what quick() gives the messages in hand.
        time_limit_s: a message in hand for longer costs its worker; None: no limit.
        crash_limit: deaths that one poison message may cost before it is in errors/.
        backoff_s, backoff_s_max: first and longest wait before a respawn.
    """

    size: int
    stop_timeout_s: float = 30.0
    term_timeout_s: float = 5.0
    time_limit_s: float | None = None
    crash_limit: int = 0
    backoff_s: float = 0.1
    backoff_s_max: float = 30.0


class State(Enum):
    """What a worker is at."""

    STARTING = auto()  # to be forked, or forked and not yet ready
    RUNNING = auto()  # it reached its first look for a message
    STOPPING = auto()  # asked to leave, or killed
    BACKOFF = auto()  # no process; to be spawned at its time
    GONE = auto()  # no process and none wanted; its record is dropped


MOVES: dict[State, frozenset[State]] = {
    State.STARTING: frozenset({State.RUNNING, State.STOPPING, State.BACKOFF, State.GONE}),
    State.RUNNING: frozenset({State.STOPPING, State.BACKOFF, State.GONE}),
    State.STOPPING: frozenset({State.BACKOFF, State.GONE}),
    State.BACKOFF: frozenset({State.STARTING, State.GONE}),
    State.GONE: frozenset(),
}


@dataclass(slots=True)
class _Worker:
    """One index: its process, or its wait for one."""

    index: int
    generation: int
    is_trial: bool = False
    state: State = State.STARTING
    pid: int | None = None
    ready_s: float | None = None
    settled: int = 0
    message_age_s: float | None = None  # None: nothing in hand
    leave_s: float = math.inf  # when it was asked to leave
    killed: Cause | None = None
    killed_s: float = -math.inf
    respawn_s: float = -math.inf

    def move(self, state: State) -> None:
        assert state in MOVES[self.state], f"worker {self.index} cannot go from {self.state} to {state}"  # noqa: S101
        self.state = state


@dataclass(slots=True)
class Pool:
    """The workers of one queue. See the module."""

    policy: PoolPolicy
    generation: int = 0
    is_stopping: bool = False
    is_backed_off: bool = False  # nothing but one trial is spawned until a message is settled
    deaths_in_row: int = 0
    _workers: dict[int, _Worker] = field(default_factory=dict)
    _young: dict[int, int] = field(default_factory=dict)  # young deaths of an index since the last settled message
    _tries: int = 0  # trials that died in this back-off
    _retry_s: float = -math.inf  # no trial before that
    _deadline_s: float = math.inf  # when stopping: Kill from then on

    # ---- what there is

    @property
    def target(self) -> int:
        """How many workers are wanted now."""
        return 0 if self.is_stopping else self.policy.size

    @property
    def is_empty(self) -> bool:
        """Whether no process is left."""
        return not any(self._processes())

    @property
    def is_replacing(self) -> bool:
        """Whether processes of an older generation are left."""
        return any(worker.generation != self.generation for worker in self._processes())

    @property
    def indexes(self) -> list[int]:
        """The indexes that have a process, or are about to."""
        return sorted(worker.index for worker in self._processes())

    def state(self, index: int) -> State | None:
        """What worker *index* is at; None when there is none."""
        worker = self._workers.get(index)
        return worker.state if worker else None

    def pid(self, index: int) -> int | None:
        """Its process, or None."""
        worker = self._workers.get(index)
        return worker.pid if worker else None

    def is_asked(self, index: int) -> bool:
        """Whether the end of worker *index* was asked for by Term or Kill."""
        return self.state(index) is State.STOPPING

    def kill_cause(self, index: int) -> Cause | None:
        """Why plan() had worker *index* killed; None when it did not."""
        worker = self._workers.get(index)
        return worker.killed if worker else None

    # ---- what happened

    def spawned(self, index: int, pid: int, now_s: float) -> None:  # noqa: ARG002 - every report carries its time
        """The Spawn of *index* was performed. A fork that failed is exited() with status "error"."""
        worker = self._process(index)
        assert worker.pid is None, f"worker {index} has process {worker.pid} already"  # noqa: S101
        worker.pid = pid

    def is_ready(self, index: int, now_s: float) -> None:
        """Worker *index* reached its first look for a message. Saying it again does nothing."""
        worker = self._process(index)
        if worker.state is State.STARTING:
            worker.move(State.RUNNING)
        if worker.ready_s is None:
            worker.ready_s = now_s

    def facts(
        self,
        index: int,
        claims: int,  # noqa: ARG002 - the board's row as it is
        settled: int,
        has_message: bool,
        message_age_s: float,
    ) -> None:
        """Take over what the board says of the process of *index*: counts of this process, age in seconds."""
        worker = self._workers.get(index)
        if worker is None or worker.state is State.BACKOFF:
            return  # the slot of a process that has ended
        worker.message_age_s = message_age_s if has_message else None
        self._count_settled(worker, settled)

    def exited(self, index: int, now_s: float, *, status: str, claims: int, settled: int, had_message: bool) -> None:
        """
        The process of *index* has ended, or could not be forked.

        *status* is one of the board's EXIT_REASONS; *claims* and *settled* are the last counts of this process,
        *had_message* whether it left one behind.
        """
        worker = self._process(index)
        self._count_settled(worker, settled)
        is_young = claims == 0 and settled == 0 and not had_message
        is_clean = status in ("finished", "recycle") and settled > 0 and not had_message
        wait_s = 0.0
        if worker.state is not State.STOPPING:
            if is_young and worker.ready_s is not None and now_s - worker.ready_s >= self.policy.backoff_s_max:
                # It stood idle for long: whoever killed it, the deployment is not broken.
                self.deaths_in_row = 0
                self._young.pop(index, None)
            if not is_clean:
                self._count_death(worker, now_s)
            if is_young:
                wait_s = self._backoff(self._young.get(index, 0))
                self._young[index] = self._young.get(index, 0) + 1
        del self._workers[index]
        if index < self.target:
            worker.move(State.BACKOFF)
            self._workers[index] = _Worker(index, self.generation, state=worker.state, respawn_s=now_s + wait_s)
        else:
            worker.move(State.GONE)

    # ---- what is wanted

    def set_size(self, size: int) -> None:
        """Want *size* workers; the highest indexes leave first."""
        assert size >= 0, size  # noqa: S101
        self.policy.size = size
        self._drop_waiting(range(size, max(self._workers, default=0) + 1))

    def set_generation(self, generation: int) -> None:
        """Replace the workers of every other generation one by one; when backed off, try the new one at once."""
        self.generation = generation
        self._end_waits()
        self._tries = 0

    def drain(self, now_s: float) -> None:
        """Let all finish what they have in hand, at most stop_timeout_s; nothing is spawned any more."""
        self._stop(now_s + self.policy.stop_timeout_s)

    def quick(self, now_s: float) -> None:
        """Like drain(), at most term_timeout_s."""
        self._stop(now_s + self.policy.term_timeout_s)

    def kill_now(self) -> None:
        """Kill all at once."""
        self._stop(-math.inf)

    # ---- what to do

    def plan(self, now_s: float) -> list[Action]:
        """Say what to do now; at most one Wait, the last one. Everything returned counts as done."""
        actions: list[Action] = []
        times_s: list[float] = []
        for worker in sorted(self._processes(), key=lambda worker: -worker.index):
            if worker.pid is not None:
                actions += self._plan_process(worker, now_s, times_s)
        actions += self._plan_replacement(now_s, times_s)
        actions += self._plan_spawns(now_s, times_s)
        later_s = [time_s for time_s in times_s if now_s < time_s < math.inf]
        return [*actions, Wait(min(later_s))] if later_s else actions

    def _plan_process(self, worker: _Worker, now_s: float, times_s: list[float]) -> Iterator[Action]:
        """Kill what is late, Term what is not wanted."""
        if worker.killed is None:
            worker.killed = self._kill_cause(worker, now_s, times_s)
        if worker.killed is not None:
            if worker.state is not State.STOPPING:
                worker.move(State.STOPPING)
            if now_s < worker.killed_s + KILL_AGAIN_S:
                times_s.append(worker.killed_s + KILL_AGAIN_S)
                return
            worker.killed_s = now_s
            times_s.append(now_s + KILL_AGAIN_S)
            yield Kill(worker.index, worker.killed)
        elif worker.index >= self.target and worker.state is not State.STOPPING:
            yield self._ask_to_leave(worker, now_s, times_s)

    def _kill_cause(self, worker: _Worker, now_s: float, times_s: list[float]) -> Cause | None:
        limit_s, age_s = self.policy.time_limit_s, worker.message_age_s
        if limit_s is not None and age_s is not None:
            if age_s >= limit_s:
                return "timeout"
            times_s.append(now_s + limit_s - age_s)
        if worker.state is State.STOPPING and age_s is not None:
            worker.leave_s = now_s  # its time to leave begins when the message in hand is settled
        deadline_s = self._leave_deadline_s(worker)
        times_s.append(deadline_s)
        return "stopped" if now_s >= deadline_s else None

    def _leave_deadline_s(self, worker: _Worker) -> float:
        """
        When it must have left: with the whole pool; else stop_timeout_s after it was asked to and had nothing
        in hand, for then it hangs elsewhere and would hold its index for ever.
        """
        return min(self._deadline_s, worker.leave_s + self.policy.stop_timeout_s)

    def _plan_replacement(self, now_s: float, times_s: list[float]) -> list[Action]:
        """Term one worker of an older generation, when all those replaced before it are ready."""
        wanted = [self._workers.get(index) for index in range(self.target)]
        old = [worker for worker in wanted if worker is not None and self._is_replaceable(worker)]
        if self.is_backed_off:
            # The others wait for a settled message; only what is tried may change.
            old = [worker for worker in old if worker.is_trial]
        elif any(worker is None or (worker.state is not State.RUNNING and worker not in old) for worker in wanted):
            return []
        if not old:
            return []
        # One that is still starting costs nothing, and may be what the reload is to mend.
        first = min(old, key=lambda worker: (worker.state is State.RUNNING, worker.index))
        return [self._ask_to_leave(first, now_s, times_s)]

    def _is_replaceable(self, worker: _Worker) -> bool:
        is_up = worker.state in (State.STARTING, State.RUNNING) and worker.pid is not None
        return is_up and worker.generation != self.generation

    def _plan_spawns(self, now_s: float, times_s: list[float]) -> list[Action]:
        waiting = [
            self._workers.get(index) or _Worker(index, self.generation, state=State.BACKOFF)
            for index in range(self.target)
        ]
        waiting = [worker for worker in waiting if worker.state is State.BACKOFF]
        if self.is_backed_off:
            if any(worker.is_trial for worker in self._processes()):
                return []
            waiting = sorted(waiting, key=lambda worker: (worker.respawn_s, worker.index))[:1]
        actions: list[Action] = []
        for worker in waiting:
            spawn_s = max(worker.respawn_s, self._retry_s)
            if now_s < spawn_s:
                times_s.append(spawn_s)
                continue
            worker.move(State.STARTING)
            worker.generation, worker.is_trial = self.generation, self.is_backed_off
            self._workers[worker.index] = worker
            actions.append(Spawn(worker.index))
        return actions

    # ---- private

    def _processes(self) -> Iterator[_Worker]:
        return (worker for worker in self._workers.values() if worker.state is not State.BACKOFF)

    def _process(self, index: int) -> _Worker:
        worker = self._workers.get(index)
        assert worker is not None, f"worker {index} was never to be spawned"  # noqa: S101
        assert worker.state is not State.BACKOFF, f"worker {index} has no process"  # noqa: S101
        return worker

    def _backoff(self, count: int) -> float:
        return min(self.policy.backoff_s * 2.0 ** min(count, DOUBLINGS_MAX), self.policy.backoff_s_max)

    def _ask_to_leave(self, worker: _Worker, now_s: float, times_s: list[float]) -> Term:
        worker.move(State.STOPPING)
        worker.leave_s = now_s
        times_s.append(self._leave_deadline_s(worker))
        return Term(worker.index)

    def _count_settled(self, worker: _Worker, settled: int) -> None:
        """Any settled message shows that the deployment works."""
        if settled <= worker.settled:
            return
        worker.settled = settled
        self.deaths_in_row = 0
        if self.is_backed_off:
            self.is_backed_off = False
            self._end_waits()
            for process in self._processes():
                process.is_trial = False
        self._young.clear()

    def _count_death(self, worker: _Worker, now_s: float) -> None:
        self.deaths_in_row += 1
        if not self.is_backed_off:
            if self.deaths_in_row < max(DEATHS_MIN, self.policy.size, self.policy.crash_limit + 1):
                return
            self.is_backed_off = True
            self._tries = 0
        elif worker.is_trial:
            self._tries += 1
        else:
            return  # one from before the back-off; only trials say how it stands
        self._retry_s = now_s + self._backoff(self._tries)

    def _end_waits(self) -> None:
        self._retry_s = -math.inf
        self._young.clear()
        for worker in self._workers.values():
            worker.respawn_s = -math.inf

    def _drop_waiting(self, indexes: Iterable[int]) -> None:
        for index in indexes:
            if self.state(index) is State.BACKOFF:
                self._workers.pop(index).move(State.GONE)

    def _stop(self, deadline_s: float) -> None:
        """Stop for good; what was asked for earlier may be shortened, never lengthened."""
        self.is_stopping = True
        self._deadline_s = min(self._deadline_s, deadline_s)
        self._drop_waiting(tuple(self._workers))
