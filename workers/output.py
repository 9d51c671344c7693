"""
output - claim nothing while the queue that is handed on to is full

An OutputLimit says before each claim whether one more message may be taken. While less than half of the limit waits, a
worker reserves several places at a time, in a word of its slot on the board, and looks again when they are used up, or
older than 100 ms; above half it looks for each message. What the workers of one pool put there is never more than the
limit and one for each worker:

    what waits + the places that each worker has reserved beyond its first <= limit

A worker may always hold one place (the "one for each worker"), so two that ask at the same moment never hinder each
other; what it has beyond that, the others count. A place is given back only after its message is in the output, so
for a moment both are counted, which is the safe side.

Pools that cannot see each other's boards are exact too, to within the number of all their workers, unless they fill
half of the limit within 100 ms: then there are at most 64 more for each worker.

Raises: QueueUnavailable when the output cannot be counted: it is waited for, as a full one is.
Limits: places are reserved several at a time only after ours was seen to be the only pool of the queue that is claimed
from (Q.PEERS) for half of a lease's timeout: the keeper looks for others once in an interval, at most a third of one.
Above half each message costs a listing of the output. What goes back to wait there (a retry that is due, the claim of
a dead worker) comes on top, and a handler that forwards to other places. A Forward of several bodies uses one place.
See also: worker (asks), queues.base (waiting_count), tests/unit/test_output.py (every order of two workers).
"""

from __future__ import annotations

import random
import threading
import zlib
from collections.abc import Callable, Iterator

from workers.board import WORD_MAX, Board, Q, W
from workers.errors import QueueUnavailable
from workers.queues.base import Claimable, Queue
from workers.system import SYSTEM, System

GOOD_NS = 100_000_000  # so long more than one place is held without another look
SHARE_MAX = 64
PAUSE_S = 0.05  # the first wait for room

OUTPUT, RESERVED, OUTPUT_FULL = int(W.OUTPUT), int(W.RESERVED), int(W.OUTPUT_FULL)
PEERS, HALF_TIMEOUT_NS = int(Q.PEERS), int(Q.HALF_TIMEOUT_NS)


class OutputLimit:
    """Places in the output for one worker. *following* answers the output, opened; it may be another after a reload."""

    def __init__(
        self,
        board: Board,
        worker_slot: int,
        queue_slot: int,
        limit: int,
        following: Callable[[], Queue],
        *,
        wait_s_max: float = 10.0,
        system: System = SYSTEM,
    ) -> None:
        self.limit = limit
        self._board = board
        self._slot = worker_slot
        self._words, self._of_queue = board.worker(worker_slot).words, board.queues[queue_slot].words
        self._following = following
        self._wait_s_max = wait_s_max
        self._system = system
        self._output: Queue | None = None  # that the reserved places are of
        self._half = limit // 2  # several places at a time only while less waits
        self._looked_ns = 0  # when the last look began
        self._alone_ns = 0  # since when no other pool was seen, 0: one was
        self._full_ns = 0  # since when the output is full, 0: it is not
        self._share = 1  # places to ask for next time
        self._fence = threading.Lock()

    def has_room(self) -> bool:
        """Whether one more message may be claimed; a place for it is reserved then. Raises QueueUnavailable."""
        words, has_room = self._words, False
        try:
            queue = self._following()
            if queue is not self._output:
                self._turn_to(queue)
            now_ns = self._system.boottime_ns()
            if words[RESERVED] > 1 and (not self._is_alone(now_ns) or now_ns - self._looked_ns >= GOOD_NS):
                words[RESERVED] = 0
            has_room = words[RESERVED] > 0 or self._reserve(queue, now_ns)
        finally:
            words[OUTPUT_FULL] = not has_room
        self._full_ns = 0 if has_room else self._full_ns or now_ns
        return has_room

    def used(self) -> None:
        """One place is used: its message is in the output, or was settled otherwise."""
        # ORDER: the message is in the output before its place is given back, or for a moment it were in neither.
        # See test_a_place_is_given_back_when_its_message_is_in_the_output.
        self._words[RESERVED] = max(self._words[RESERVED] - 1, 0)

    def rest(self) -> None:
        """Nothing is there to be claimed: keep one place at most, the others may need the rest."""
        self._words[RESERVED] = min(self._words[RESERVED], 1)

    def full_s(self) -> float:
        """For how long the looks have found no room."""
        return (self._system.boottime_ns() - self._full_ns) / 1e9 if self._full_ns else 0.0

    def pause_s(self) -> float:
        """How long to wait before the next look: about as long again as it is full."""
        pause_s = min(max(self.full_s(), PAUSE_S), self._wait_s_max)
        return pause_s * random.uniform(0.8, 1.0)  # noqa: S311 - spreads load

    def _is_alone(self, now_ns: int) -> bool:
        """Whether no other pool claims from our queue, whose reserved places could not be seen; 0 is not known."""
        words = self._of_queue
        if words[PEERS] != 1:
            self._alone_ns = 0
            return False
        # Of two that start together each is seen by the other's second look, and the first one says 1.
        self._alone_ns = self._alone_ns or now_ns
        return now_ns - self._alone_ns >= words[HALF_TIMEOUT_NS]

    def _turn_to(self, queue: Queue) -> None:
        words = self._words
        # ORDER: nothing is reserved while the output changes: a place would be of the wrong one.
        # See test_places_are_of_the_output_that_was_counted.
        words[RESERVED] = 0
        self._output, self._share = None, 1
        words[OUTPUT] = self._key_of(queue)
        self._output = queue

    def _key_of(self, queue: Queue) -> int:
        """What all workers call this output on the board, whatever URL it was found by; never 0."""
        if not isinstance(queue, Claimable):
            return zlib.crc32(queue.url.encode("utf-8", "surrogateescape")) or 1
        try:
            found = self._system.stat(queue.identity)
        except OSError as error:
            raise QueueUnavailable.at("look at", queue.url, error) from error
        return hash((found.st_dev, found.st_ino)) & WORD_MAX or 1

    def _reserve(self, queue: Queue, now_ns: int) -> bool:
        """Look for as many places as are wanted and keep those that are free; False for none."""
        words = self._words
        share, free, below = self._share if self._is_alone(now_ns) else 1, 0, 0
        words[RESERVED] = share
        try:
            # RACE: another worker does the same. Each writes what it wants before it reads what the others have, so of
            # two at least one sees the other. A processor may hold back a write beyond a read; a lock makes it wait.
            # ORDER: the others' places before what waits: what one of them puts meanwhile is counted twice, not never.
            # See test_no_order_of_two_workers_leaves_more_than_the_limit_and_one_for_each.
            with self._fence:
                others = list(self._others())
            taken = sum(max(places - 1, 0) for places in others)
            free = self.limit - taken - (waiting := queue.waiting_count_max())
            if free <= 0:
                free = self.limit - taken - (waiting := queue.waiting_count())
            below = self._half - taken - waiting
        finally:
            words[RESERVED] = min(share, max(below, 1)) if free > 0 else 0
        # When it began: what was counted first may have changed by the end.
        self._looked_ns = now_ns
        # Half of what is free at most, for all together: so none finds that the others have taken all.
        self._share = min(max(below // (2 * (len(others) + 1)), 1), SHARE_MAX)
        return free > 0

    def _others(self) -> Iterator[int]:
        """The reserved places of each other worker that hands on to the same output."""
        key = self._words[OUTPUT]
        for number in self._board.worker_numbers():
            words = self._board.worker(number).words
            if number != self._slot and words[OUTPUT] == key:
                yield words[RESERVED]
