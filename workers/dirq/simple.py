"""
simple - QueueSimple, the published class: elements of bytes, a file for each

::

    queue = QueueSimple("/var/spool/pages")
    name = queue.add("a page")
    for name in queue:
        if queue.lock(name):
            page = queue.get(name)
            queue.remove(name)

Raises: TypeError for arguments of a wrong type; QueueError for a name that is none;
QueueLockError when the lock of this object was broken and another has it; OSError, worded
(see told), for all else.
Source: Directory::Queue::Simple and its Python and Perl interfaces.
See also: base (walking, what an object remembers), simple_elements (what is on disk).
"""

from __future__ import annotations

import errno

from workers.dirq.base import LOCK_NS, QueueBase, read_file
from workers.dirq.elements import LOCKED_SUFFIX, check_name
from workers.dirq.errors import QueueLockError
from workers.dirq.simple_elements import SimpleElements, is_same
from workers.dirq.told import refused, told, worded
from workers.system import SYSTEM, System

SURE_NS = 500_000_000  # a lock is broken at the age of a second or more, so one that we took so recently is ours


class QueueSimple(QueueBase):
    """A queue of byte strings."""

    elements: SimpleElements

    def __init__(
        self,
        path: str,
        umask: int | None = None,
        rndhex: int | None = None,
        granularity: int = 60,
        *,
        system: System = SYSTEM,
    ) -> None:
        """
        Open the queue at *path*, and make its directory unless it is there.

        Args:
            umask: for what is made in the queue; None: the process's own.
            rndhex: the last digit of the names made here; None: drawn.
            granularity: seconds for which new elements go into one directory.

        Raises TypeError, OSError.
        """
        super().__init__(path, umask, rndhex)
        if not isinstance(granularity, int):
            raise TypeError("'granularity' should be integer")
        self._make(SimpleElements(path, umask, rndhex, granularity, system=system))

    @property
    def granularity(self) -> int:
        """Seconds for which new elements go into one directory."""
        return self.elements.granularity

    @granularity.setter
    def granularity(self, granularity: int) -> None:
        self.elements.granularity = granularity

    def add(self, data: bytes | str) -> str:
        """Add *data* (text as UTF-8) as an element; return its name. Raises OSError, nothing being left of it."""
        if isinstance(data, str):
            data = data.encode("utf-8")
        elif not isinstance(data, bytes):
            raise TypeError(f"data should be bytes or str, not {type(data).__name__}")
        try:
            return self.elements.add(data)
        except OSError as error:
            raise worded(error) from None

    add_ref = add

    @told
    def add_path(self, path: str) -> str:
        """Move the file *path*, which is on the same filesystem, into the queue; return its name. Raises OSError."""
        return self.elements.add_path(path)

    def lock(self, name: str, permissive: bool = True) -> bool:
        """
        Lock the element; True.

        False when another has it or it is gone, or with *permissive* false an OSError. Raises QueueError, OSError.
        """
        check_name(name)
        try:
            lock = self.elements.lock(name)
        except OSError as error:
            raise worded(error) from None
        if lock is not None:
            self._remember(lock)
            return True
        if permissive:
            return False
        code = errno.EEXIST if self.elements.found_lock(name) else errno.ENOENT
        raise refused(code, "link", self.elements.element_path(name), self.elements.lock_path(name))

    @told
    def unlock(self, name: str, permissive: bool = False) -> bool:
        """
        Unlock the element; True.

        When it was not locked an OSError, or with *permissive* False. Raises QueueError, QueueLockError, OSError.
        """
        if self._unlock(name):
            return True
        if permissive:
            return False
        raise refused(errno.ENOENT, "unlink", self.elements.lock_path(name))

    def get(self, name: str) -> bytes:
        """Return the data of a locked element. Raises QueueError, QueueLockError, OSError when it is not locked."""
        lock = self._locks.get(name)
        if lock is None:
            check_name(name)
        try:
            data, found = read_file(self.elements.system, f"{self.elements.path}/{name}{LOCKED_SUFFIX}")
        except OSError as error:
            raise worded(error) from None
        if lock is not None and not is_same(lock, found, within_ns=LOCK_NS):
            raise QueueLockError(f"cannot get {name}: its lock was broken, and another has it now")
        return data

    get_ref = get

    def get_path(self, name: str) -> str:
        """Return the path of the file of a locked element. Raises QueueError."""
        check_name(name)
        return self.elements.lock_path(name)

    def remove(self, name: str) -> None:
        """Remove a locked element. Raises QueueError, QueueLockError, and OSError when it is not locked or gone."""
        # ORDER: look for the lock, then remove. The element is gone by the first call that removes anything.
        # See test_D5_remove_of_what_is_not_locked_removes_nothing.
        elements, lock = self.elements, self._locks.get(name)
        is_recent = lock is not None and elements.system.boottime_ns() - lock.since_ns < SURE_NS
        try:
            is_locked = is_recent or self._is_ours(name, "remove")
            is_removed = is_locked and elements.remove(name)
        except OSError as error:
            raise worded(error) from None
        self._locks.pop(name, None)
        if not is_removed:
            path = elements.element_path(name) if is_locked else elements.lock_path(name)
            raise refused(errno.ENOENT, "unlink", path)

    def purge(self, maxtemp: float = 300, maxlock: float = 600) -> None:
        """
        Remove temporary files older than *maxtemp* seconds, locks older than *maxlock*, and empty directories.

        0 leaves that kind alone. No lock younger than a second is broken. Raises OSError, after all else was purged.
        """
        self._sweep(maxtemp, maxlock)
