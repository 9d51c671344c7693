"""
errors - what the directory queues raise that is no OSError

QueueError is for what the caller gave or what lies in the queue and cannot be (a name,
a schema, data, an element that is not locked); QueueLockError for a lock that another
has. Whatever the kernel refuses is an OSError with its errno, see told.

Long names are kept as programs catch them.
"""

from __future__ import annotations


class QueueError(Exception):
    """A name, schema, data or state with which the queue cannot do what was asked."""


class QueueLockError(QueueError):
    """The element is locked by another."""
