"""
running - one queue of a running pool, as the master sees it: its slot, its policy, its children

The master never looks at the queue itself; what it knows comes from the board and
from the keeper's report.
See also: master (which has one for each queue), pool (the policy), child.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field

from orchestrator.child import Child, Exit
from orchestrator.config import PoolConfig, QueueConfig
from orchestrator.pool import Pool, PoolPolicy
from orchestrator.reading import unmeasured_s
from workers.board import (
    EXIT_REASONS,
    MASTER_COUNTERS,
    OUTCOMES,
    PROCESS_WORDS,
    Board,
    Q,
    QueueState,
    QueueText,
    Slot,
    W,
    WorkerState,
    WorkerText,
)
from workers.queues.feed import open_feed
from workers.queues.open import is_fed
from workers.system import SYSTEM

log = logging.getLogger(__name__)

HEARD_OF = (QueueState.UNKNOWN, QueueState.READY)  # of the others the keeper has said what is wrong


@dataclass(slots=True)
class RunningQueue:
    """See the module. *opened* is None until the keeper has reported, then whether it is ready."""

    config: QueueConfig
    slot: int
    pool: Pool
    opened: bool | None = None
    is_removed: bool = False
    is_added: bool = False  # by a reload: when it is refused, the others go on
    is_done: bool = False  # its components said so: it drains, and stays away until a reload changes it
    is_reached: bool = False  # one of its workers has looked for a message
    children: dict[int, Child] = field(default_factory=dict)
    feed: tuple[int, int] = (-1, -1)  # the pipe from its feeder to its workers
    feeder: Child | None = None
    feeder_s: float = 0.0
    is_silent: bool = False  # not measured for long, and that was said
    _numbers: dict[int, int] = field(default_factory=dict)

    def show(self, board: Board) -> None:
        """The policy's view onto the board."""
        words = board.queues[self.slot].words
        words[Q.TARGET] = self.pool.target
        words[Q.BACKED_OFF] = self.pool.is_backed_off

    def close(self) -> None:
        """Give back the pipe of its feeder, when no child is left that the master would fork with it."""
        for fd in self.feed:
            if fd >= 0:
                os.close(fd)
        self.feed = (-1, -1)

    def worker_number(self, board: Board, index: int) -> int:
        """The number of the board's slot of worker *index*: the same for ever, whatever becomes of the board."""
        if index not in self._numbers:
            self._numbers[index] = board.take_worker(self.slot, index)
        return self._numbers[index]

    def worker_slot(self, board: Board, index: int) -> Slot:
        """That slot."""
        return board.worker(self.worker_number(board, index))

    def read_board(self, board: Board, now_s: float, boottime_ns: int) -> None:
        """Tell the policy what the workers say of themselves."""
        for index, child in self.children.items():
            words = self.worker_slot(board, index).words
            if words[W.PID] != child.pid:
                continue
            if words[W.STATE] in (WorkerState.IDLE, WorkerState.BUSY):
                self.pool.is_ready(index, now_s)
                self.is_reached = True
            since_ns = words[W.MESSAGE_SINCE_NS]
            age_s = (boottime_ns - since_ns) / 1e9 if since_ns else 0.0
            self.pool.facts(index, words[W.PROCESS_CLAIMS], words[W.PROCESS_SETTLED], bool(since_ns), age_s)

    def listen(self, board: Board, boottime_ns: int) -> None:
        """Say when the keeper has not come back from the queue for long, and when it has. It alone looks there."""
        words = board.queues[self.slot].words
        silent_s = unmeasured_s(words, boottime_ns)
        if bool(silent_s) == self.is_silent or (not self.is_silent and words[Q.READY] not in HEARD_OF):
            return
        self.is_silent = bool(silent_s)
        if not self.is_silent:
            log.warning("queue %s answers again", self.config.name)
        elif words[Q.READY] == QueueState.READY:
            log.error("queue %s: not measured for %.0f s, does its filesystem hang?", self.config.name, silent_s)
        else:
            log.error("queue %s: not opened after %.0f s, does its filesystem hang?", self.config.name, silent_s)

    def is_up(self, board: Board, index: int) -> bool:
        """Whether worker *index* has begun to look for messages."""
        words = self.worker_slot(board, index).words
        return words[W.PID] == self.children[index].pid and words[W.STATE] in (WorkerState.IDLE, WorkerState.BUSY)

    def in_hand(self, board: Board, index: int) -> str:
        """The name of the message that worker *index* has in hand, or ""."""
        slot = self.worker_slot(board, index)
        return (slot.text(WorkerText.MESSAGE) or "") if slot.words[W.MESSAGE_SINCE_NS] else ""

    def is_idle(self, board: Board) -> bool:
        """Whether all workers wanted are there, and none that is there has a message in hand."""
        # Those that were asked to leave may have a message in hand as well.
        indexes = {*range(self.pool.target), *self.children}
        slots = [self.worker_slot(board, index).words for index in indexes]
        return all(words[W.STATE] == WorkerState.IDLE and not words[W.MESSAGE_SINCE_NS] for words in slots)

    def moves(self, board: Board) -> int:
        """A number that changes when a message of this queue is claimed or becomes due."""
        claims = sum(board.worker(number).words[W.CLAIMS] for number in board.worker_numbers(self.slot))
        return claims + board.queues[self.slot].words[Q.DUE_MOVES]

    def rejected(self, board: Board) -> int:
        """Messages that went to errors/ since this board was made."""
        rejected = sum(board.worker(number).words[W.REJECTED] for number in board.worker_numbers(self.slot))
        return rejected + board.queues[self.slot].words[Q.REAPED_CRASH_LIMIT]


@dataclass(frozen=True, slots=True)
class Dead:
    """What a dead worker leaves: whose claims to release, and what the log says."""

    owner: str
    message: str
    claims: int
    settled: int
    had_message: bool


def bury(slot: Slot, end: Exit, reason: str) -> Dead:
    """Read the last words of a dead worker, count its end, and take it off the board."""
    words = slot.words
    dead = Dead(
        owner=slot.text(WorkerText.OWNER) or "",
        message=slot.text(WorkerText.MESSAGE) or "",
        claims=words[W.PROCESS_CLAIMS],
        settled=words[W.PROCESS_SETTLED],
        had_message=bool(words[W.MESSAGE_SINCE_NS]),
    )
    slot.mend(MASTER_COUNTERS)
    words[W.CPU_BASE_NS] += end.cpu_ns
    words[W.EXITS_FINISHED + EXIT_REASONS.index(reason)] += 1
    # ORDER: off the board, then the keeper is told: a keeper that dies in between, and the next one, must find
    # the owner unlisted. See test_H34_a_dead_owner_is_off_the_board_before_the_keeper_is_told.
    slot.clear(PROCESS_WORDS, (WorkerText.OWNER, WorkerText.MESSAGE))
    return dead


def counters(board: Board) -> dict[str, dict[str, int]]:
    """What the workers of each queue have counted since the board was made; of those that a reload removed, too."""
    found = {}
    for number, slot in enumerate(board.queues):
        if slot.words[Q.USED]:
            rows = [board.worker(one).words for one in board.worker_numbers(number)]
            found[slot.text(QueueText.NAME) or ""] = {
                "claims": sum(row[W.CLAIMS] for row in rows),
                "conflicts": sum(row[W.CONFLICTS] for row in rows),
                **{name: sum(row[W.DONE + place] for row in rows) for place, name in enumerate(OUTCOMES)},
                **{f"exits_{name}": sum(row[W.EXITS_FINISHED + place] for row in rows)
                   for place, name in enumerate(EXIT_REASONS)},
            }  # fmt: skip
    return found


def start(config: QueueConfig, pool: PoolConfig, board: Board) -> RunningQueue:
    """Give *config* its place on the board and its policy."""
    slot = board.take_queue(config.name, config.url)
    board.queues[slot].words[Q.SINCE_NS] = SYSTEM.boottime_ns()
    policy = PoolPolicy(
        size=config.workers,
        stop_timeout_s=pool.stop_timeout,
        term_timeout_s=pool.term_timeout,
        time_limit_s=config.time_limit,
        crash_limit=config.crash_limit,
    )
    return RunningQueue(config, slot, Pool(policy), feed=open_feed() if is_fed(config.url) else (-1, -1))


def oom_kills() -> int:
    """How often the kernel has killed for memory in this machine or container; 0 when it does not say."""
    try:
        with open("/proc/vmstat", encoding="ascii") as file:
            for line in file:
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
    except (OSError, ValueError):
        return 0
    return 0
