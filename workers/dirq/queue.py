"""
queue - Queue, the published class: elements of several parts, a directory for each

::

    queue = Queue("/var/spool/mails", schema={"body": "string", "header": "table?"})
    name = queue.add({"body": "hello", "header": {"to": "you"}})
    for name in queue:
        if queue.lock(name):
            mail = queue.get(name)
            queue.remove(name)

Raises: TypeError for arguments of a wrong type; QueueError for a schema, data or a name
that is none, and where an element is not locked; QueueLockError when another has it;
OSError, worded (see told), for all else.
Source: Directory::Queue::Normal and its Python and Perl interfaces.
See also: base (walking, what an object remembers), schema, schema_elements (what is on disk).
"""

from __future__ import annotations

import errno
from collections.abc import Mapping

from workers.dirq.base import QueueBase, read_file
from workers.dirq.elements import LOCKED_DIRECTORY, OBSOLETE_DIRECTORY, TEMPORARY_DIRECTORY, check_name
from workers.dirq.errors import QueueError, QueueLockError
from workers.dirq.queue_set import QueueSet
from workers.dirq.schema import Value, check_schema, decoded, encoded
from workers.dirq.schema_elements import SchemaElements
from workers.dirq.told import refused, told, worded
from workers.system import SYSTEM, System

__all__ = ["LOCKED_DIRECTORY", "OBSOLETE_DIRECTORY", "TEMPORARY_DIRECTORY", "Queue", "QueueError", "QueueSet"]

NO_SCHEMA: dict[str, str] = {}
Data = dict[str, bytes | str | dict[str, str]]


class Queue(QueueBase):
    """A queue of elements that a schema describes."""

    elements: SchemaElements

    def __init__(
        self,
        path: str,
        umask: int | None = None,
        rndhex: int | None = None,
        maxelts: int = 16000,
        schema: Mapping[str, str] = NO_SCHEMA,
        *,
        system: System = SYSTEM,
    ) -> None:
        """
        Open the queue at *path*, and make its directories unless they are there.

        Args:
            umask: for what is made in the queue; None: the process's own.
            rndhex: the last digit of the names made here; None: drawn.
            maxelts: elements that a directory may hold.
            schema: key to type, see schema; only add and get need one.

        Raises TypeError, QueueError, OSError.
        """
        super().__init__(path, umask, rndhex)
        if not isinstance(maxelts, int) or isinstance(maxelts, bool):
            raise TypeError("'maxelts' should be int")
        self._parts = check_schema(schema) if schema else {}
        self.type = {key: part.kind for key, part in self._parts.items()}
        self.mandatory = {key: True for key, part in self._parts.items() if part.is_mandatory}
        self._make(SchemaElements(path, umask, rndhex, maxelts, system=system))

    @property
    def maxelts(self) -> int:
        """Elements that a directory may hold."""
        return self.elements.maxelts

    @maxelts.setter
    def maxelts(self, maxelts: int) -> None:
        self.elements.maxelts = maxelts

    @told
    def add(self, data: Mapping[str, Value]) -> str:
        """
        Add *data*, which conforms to the schema, as an element; return its name.

        Raises QueueError, and OSError, nothing being left of it.
        """
        if not self._parts:
            raise QueueError("unknown schema")
        return self.elements.add(encoded(self._parts, data))

    enqueue = add

    @told
    def lock(self, ename: str, permissive: bool = True) -> bool:
        """
        Lock the element; True.

        False when another has it or it is gone, or with *permissive* false an OSError. Raises QueueError, OSError.
        """
        check_name(ename)
        lock = self.elements.lock(ename)
        if lock is not None:
            self._remember(lock)
            return True
        if permissive:
            return False
        code = errno.EEXIST if self.elements.found_lock(ename) else errno.ENOENT
        raise refused(code, "mkdir", self.elements.lock_path(ename))

    @told
    def unlock(self, ename: str, permissive: bool = False) -> bool:
        """
        Unlock the element; True.

        When it was not locked an OSError, or with *permissive* False. Raises QueueError, QueueLockError, OSError.
        """
        if self._unlock(ename):
            return True
        if permissive:
            return False
        raise refused(errno.ENOENT, "rmdir", self.elements.lock_path(ename))

    @told
    def get(self, ename: str) -> Data:
        """Return the data of a locked element. Raises QueueError (no schema, not locked, not conforming), OSError."""
        if not self._parts:
            raise QueueError("unknown schema")
        if not self._is_ours(ename, "get"):
            raise QueueError(f"cannot get {ename}: not locked")
        data: Data = {}
        for key, part in self._parts.items():
            path = f"{self.elements.element_path(ename)}/{key}"
            try:
                data[key] = decoded(part.kind, read_file(self.elements.system, path)[0])
            except FileNotFoundError:
                if part.is_mandatory:
                    raise QueueError(f"missing data file: {path}") from None
            except UnicodeDecodeError as error:
                raise worded(OSError(errno.EILSEQ, str(error), path), "read") from error
        return data

    @told
    def remove(self, ename: str) -> None:
        """Remove a locked element. Raises QueueError (not locked, a file in it that is no part), OSError."""
        if not self._is_ours(ename, "remove"):
            self._locks.pop(ename, None)
            raise QueueError(f"cannot remove {ename}: not locked")
        is_removed = self.elements.remove(ename)
        self._locks.pop(ename, None)
        if not is_removed:
            raise refused(errno.ENOENT, "rename", self.elements.element_path(ename), OBSOLETE_DIRECTORY)

    def dequeue(self, ename: str, permissive: bool = True) -> Data:
        """Lock, get and remove an element; return its data. Raises QueueLockError when another has it, see those."""
        self._lock_or_raise(ename, is_permissive=permissive)
        data = self.get(ename)
        self.remove(ename)
        return data

    def get_element(
        self,
        ename: str,
        permissive: bool = True,
    ) -> Data:
        """Lock, get and unlock an element; return its data. Raises QueueLockError when another has it, see those."""
        self._lock_or_raise(ename, is_permissive=permissive)
        data = self.get(ename)
        self.unlock(ename, permissive)
        return data

    def _lock_or_raise(self, ename: str, *, is_permissive: bool) -> None:
        if not self.lock(ename, is_permissive):
            raise QueueLockError(f"cannot lock element {ename}: another has it, or it is gone")

    def purge(self, maxtemp: float = 300, maxlock: float = 600) -> None:
        """
        Remove temporary elements older than *maxtemp* seconds, locks older than *maxlock*, and empty directories.

        0 leaves that kind alone. No lock younger than a second is broken. Raises OSError, after all else was purged.
        """
        self._sweep(maxtemp, maxlock)
