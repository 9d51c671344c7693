"""
output - claim nothing while the queue that is handed on to is full

An OutputLimit says before each claim whether one more message may be taken. Far below the limit a worker reserves
several places at a time, in a word of its slot on the board, and looks again when they are used up, or old; near the
limit it looks for each message. What waits in the output is never more than the limit and one for each worker:

    what waits + the places that each worker has reserved beyond its first <= limit

A worker may always hold one place (the "one for each worker"), so two that ask at the same moment never hinder each
other; what it has beyond that, the others count. A place is given back only after its message is in the output, so
for a moment both are counted, which is the safe side.

Raises: QueueUnavailable when the output cannot be counted: it is waited for, as a full one is.
Limits: places are reserved several at a time only while ours is known to be the only pool of the queue that is claimed
from (Q.PEERS); who else puts into the output is seen by the next look, a second later at most. What goes back to wait
there (a retry that is due, the claim of a dead worker) comes on top. A Forward of several bodies uses one place.
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

GOOD_NS = 1_000_000_000  # so long more than one place is held without another look
SHARE_MAX = 1000
PAUSE_S = 0.05  # the first wait for room

OUTPUT, RESERVED, OUTPUT_FULL, PEERS = int(W.OUTPUT), int(W.RESERVED), int(W.OUTPUT_FULL), int(Q.PEERS)


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
        self._looked_ns = 0
        self._share = 1  # places to ask for next time
        self._fence = threading.Lock()

    def has_room(self) -> bool:
        """Whether one more message may be claimed; a place for it is reserved then. Raises QueueUnavailable."""
        words, has_room = self._words, False
        try:
            queue = self._following()
            if queue is not self._output:
                self._turn_to(queue)
            if words[RESERVED] > 1 and (not self._is_alone() or self._is_old()):
                words[RESERVED] = 1
            has_room = words[RESERVED] > 0 or self._reserve(queue)
        finally:
            words[OUTPUT_FULL] = not has_room
        return has_room

    def used(self) -> None:
        """One place is used: its message is in the output, or was settled otherwise."""
        # ORDER: the message is in the output before its place is given back, or for a moment it were in neither.
        # See test_a_place_is_given_back_when_its_message_is_in_the_output.
        self._words[RESERVED] = max(self._words[RESERVED] - 1, 0)

    def rest(self) -> None:
        """Nothing is there to be claimed: keep one place at most, the others may need the rest."""
        self._words[RESERVED] = min(self._words[RESERVED], 1)

    def pause_s(self, held_s: float) -> float:
        """How long to wait before the next look, after waits of *held_s* in all: about as long again."""
        pause_s = min(max(held_s, PAUSE_S), self._wait_s_max)
        return pause_s * random.uniform(0.8, 1.0)  # noqa: S311 - spreads load

    def _is_alone(self) -> bool:
        """Whether no other pool claims from our queue, whose reserved places could not be seen; 0 is not known."""
        return self._of_queue[PEERS] == 1

    def _is_old(self) -> bool:
        return self._system.boottime_ns() - self._looked_ns >= GOOD_NS

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

    def _reserve(self, queue: Queue) -> bool:
        """Look for as many places as are wanted and keep those that are free; False for none."""
        words = self._words
        share, free = self._share if self._is_alone() else 1, 0
        words[RESERVED] = share
        try:
            # RACE: another worker does the same. Each writes what it wants before it reads what the others have, so of
            # two at least one sees the other. A processor may hold back a write beyond a read; a lock makes it wait.
            # ORDER: the others' places before what waits: what one of them puts meanwhile is counted twice, not never.
            # See test_no_order_of_two_workers_leaves_more_than_the_limit_and_one_for_each.
            with self._fence:
                others = list(self._others())
            free = self.limit - sum(max(places - 1, 0) for places in others) - queue.waiting_count()
        finally:
            words[RESERVED] = min(share, max(free, 0))
        self._looked_ns = self._system.boottime_ns()
        # Half of what is free at most, for all together: so none finds that the others have taken all.
        self._share = min(max(free // (2 * (len(others) + 1)), 1), SHARE_MAX)
        return free > 0

    def _others(self) -> Iterator[int]:
        """The reserved places of each other worker that hands on to the same output."""
        key = self._words[OUTPUT]
        for number in self._board.worker_numbers():
            words = self._board.worker(number).words
            if number != self._slot and words[OUTPUT] == key:
                yield words[RESERVED]
