"""
dirq - the Directory::Queue formats: queues that programs in several languages share through a directory

A program that used the package of that name goes on working with these names::

    from workers.dirq import Queue, QueueSimple, QueueSet, QueueNull, QueueError, QueueLockError

See also: simple, queue, queue_set, queue_null (the classes), base (what differs), elements (the engine).
"""

from workers.dirq.base import QueueBase
from workers.dirq.elements import (
    LOCKED_DIRECTORY,
    LOCKED_SUFFIX,
    OBSOLETE_DIRECTORY,
    TEMPORARY_DIRECTORY,
    TEMPORARY_SUFFIX,
)
from workers.dirq.errors import QueueError, QueueLockError
from workers.dirq.queue import Queue
from workers.dirq.queue_null import QueueNull
from workers.dirq.queue_set import QueueSet
from workers.dirq.simple import QueueSimple

VERSION = "1.8"  # of the interface
DATE = "3 Nov 2021"
AUTHOR = "the developers of spool-orchestrator"

__all__ = [
    "AUTHOR",
    "DATE",
    "LOCKED_DIRECTORY",
    "LOCKED_SUFFIX",
    "OBSOLETE_DIRECTORY",
    "TEMPORARY_DIRECTORY",
    "TEMPORARY_SUFFIX",
    "VERSION",
    "Queue",
    "QueueBase",
    "QueueError",
    "QueueLockError",
    "QueueNull",
    "QueueSet",
    "QueueSimple",
]
