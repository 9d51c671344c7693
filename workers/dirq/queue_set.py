"""
queue_set - QueueSet, the published class: several queues walked as one, by time

The elements of all members come in the order of their own time, whatever directory they
are in. As with a queue, a loop has a cursor of its own and first() and next() share the
object's.

See also: base (walking).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from itertools import repeat

from workers.dirq.base import QueueBase
from workers.dirq.errors import QueueError

Found = tuple[QueueBase, str]


class QueueSet:
    """Copies of the queues that it was given, in *qset*."""

    def __init__(self, *queues: QueueBase | Sequence[QueueBase]) -> None:
        """Take queues, or one list or tuple of them. Raises TypeError, QueueError when one comes twice."""
        self.qset: list[QueueBase] = []
        self._walk: Iterator[Found] = iter(())
        self._add(queues)

    def add(self, *queues: QueueBase | Sequence[QueueBase]) -> None:
        """
        Add queues, or one list or tuple of them; next() begins anew.

        Raises TypeError, QueueError when one is there already; then none was added.
        """
        self._add(queues)
        self._walk = self.names()

    def _add(self, queues: tuple[QueueBase | Sequence[QueueBase], ...]) -> None:
        listed = queues[0] if len(queues) == 1 and isinstance(queues[0], list | tuple) else queues
        known, fresh = {queue.id for queue in self.qset}, []
        for queue in listed:
            if not isinstance(queue, QueueBase):
                raise TypeError("queues, or one list or tuple of queues, expected")
            if queue.id in known:
                raise QueueError(f"queue already in the set: {queue.path}")
            known.add(queue.id)
            fresh.append(queue.copy())
        self.qset += fresh

    def remove(self, given_queue: QueueBase) -> None:
        """Remove a queue; no walk yields one of its elements from now on. Raises TypeError."""
        if not isinstance(given_queue, QueueBase):
            raise TypeError("a queue expected")
        self.qset = [queue for queue in self.qset if queue.id != given_queue.id]

    def count(self) -> int:
        """Return the number of elements in all queues. Raises OSError."""
        return sum(queue.count() for queue in self.qset)

    def names(self) -> Iterator[Found]:
        """Walk all (queue, name), by a cursor of its own. Raises OSError."""
        walks = [zip(repeat(queue), queue.names()) for queue in self.qset]
        for queue, name in heapq.merge(*walks, key=lambda found: found[1][9:]):
            if queue in self.qset:  # it may have been removed since
                yield queue, name

    def __iter__(self) -> Iterator[Found]:
        return self.names()

    def first(self) -> Found | tuple[None, None]:
        """List all queues again, and return the first (queue, name); (None, None) when all are empty."""
        self._walk = self.names()
        return self.next()

    def next(self) -> Found | tuple[None, None]:
        """Return the next (queue, name) since first(); (None, None) at the end. Raises OSError."""
        return next(self._walk, (None, None))

    def __next__(self) -> Found | tuple[None, None]:
        return self.next()
