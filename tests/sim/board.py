"""
board - workers.board.Board in little, whose words can be choices of a schedule

The layout, the words and the texts are the real ones; there are only fewer slots.
See also: kernel (World.on_word), explore.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from workers import board as real
from workers.board import SEQUENCES, SLOT_SIZE, Q, Slot, WorkerText

if TYPE_CHECKING:
    from tests.sim.kernel import World

QUEUES, WORKERS = 1, 4
# What one process of a pool says to another, and acts on. The figures are for people.
QUEUE_WORDS = frozenset({Q.PAUSED, Q.BEAT_NS, Q.LAPSES, Q.HALF_TIMEOUT_NS, Q.COUNTED})
WORKER_WORDS = frozenset({SEQUENCES + WorkerText.OWNER})


class Words:
    """A slot's words; to read one of *which*, or to write it, is told to the world first."""

    def __init__(self, words: memoryview[int], which: Collection[int], world: World, place: tuple[int, int]) -> None:
        self._words, self._which, self._world, self._place = words, which, world, place

    def __getitem__(self, word: int) -> int:
        if word not in self._which:
            return self._words[word]
        return self._told("reads", word, lambda: self._words[word])

    def __setitem__(self, word: int, value: int) -> None:
        # What is there already may be written again at any time: nobody can tell.
        if word in self._which and self._words[word] != value:
            self._told("writes", word, lambda: self._set(word, value))
        else:
            self._words[word] = value

    def _set(self, word: int, value: int) -> int:
        self._words[word] = value
        return value

    def _told(self, what: str, word: int, do: Callable[[], int]) -> int:
        on_word = self._world.on_word
        return do() if on_word is None else on_word(what, (*self._place, word), do)


class Board(real.Board):
    """A board of one queue and few workers, in ordinary memory."""

    def __init__(self, world: World, memory: bytes | None = None) -> None:
        self.memory = bytearray(memory or SLOT_SIZE * (1 + QUEUES + WORKERS))
        view = memoryview(self.memory)
        self.header = Slot(view, 0)
        self.queues = [Slot(view, 1 + number) for number in range(QUEUES)]
        self._workers = {number: Slot(view, 1 + QUEUES + number) for number in range(WORKERS)}
        number = len(world.boards)
        for place, slot in enumerate([*self.queues, *self._workers.values()]):
            which = QUEUE_WORDS if place < QUEUES else WORKER_WORDS
            words: Any = Words(slot.words, which, world, (number, place))
            slot.words = words
        world.boards.append(self)
