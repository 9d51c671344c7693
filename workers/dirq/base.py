"""
base - what the published classes have in common: the object's cursor, names, locks it took, touch

A queue may be walked in two ways. ``for name in queue``, ``names()`` and ``iter(queue)`` each
have a cursor of their own: loops may be nested, and purge() in one is harmless. first()
and next() share the cursor of the object. Either way a directory is listed once and not
looked at again; a name that comes may be gone, and any may be locked.

An object remembers what it locked itself, and refuses to unlock, get or remove that once
its lock was broken and another has taken it. Of any other element it knows nothing: a
child process may end what its parent has locked.

Limits: a lock that was broken, and taken by another, less than five minutes after it was
taken here is not told from ours. A lock younger than a second is never broken by purge.
See also: elements (the engine), simple, queue, queue_set, queue_null.
"""

from __future__ import annotations

import copy
import errno
import os
from collections import deque
from collections.abc import Iterator
from typing import Any, Self

from workers.dirq.elements import OPEN_BODY, SECOND_NS, Elements, Lock, check_name, is_regular
from workers.dirq.errors import QueueLockError
from workers.dirq.told import told, worded
from workers.system import READ_MAX, TOO_LARGE, System
from workers.trust import guarded, place_of_dirq

LOCKS_MIN = 1024  # remembered before it is looked which of them are over
LOCK_NS = 300 * SECOND_NS  # half of purge()'s limit: in that time a lock may be touched by others, and is still ours


class QueueBase:
    """
    The base class of all kinds.

    Attributes that programs use: *path*, *umask*, *rndhex*, *id* ("device:inode"), *dirs* and *elts* (what is left
    of the object's own walk). *elements* is the engine.
    """

    id: str
    elements: Elements[Any]

    def __init__(self, path: str, umask: int | None = None, rndhex: int | None = None) -> None:
        """Check the arguments. Raises TypeError."""
        if not isinstance(path, str):
            raise TypeError("'path' should be str")
        if umask is not None and not isinstance(umask, int):
            raise TypeError("'umask' should be integer")
        if rndhex is not None and not isinstance(rndhex, int):
            raise TypeError("'rndhex' should be integer")
        self.dirs: deque[str] = deque()
        self.elts: deque[str] = deque()
        self._locks: dict[str, Lock] = {}
        self._locks_max = LOCKS_MIN

    @told
    def _make(self, elements: Elements[Any]) -> None:
        """Take *elements* as the engine, and make its directories. Raises OSError."""
        self.elements = elements
        self._guard()
        elements.make()
        found = elements.system.stat(elements.path)
        self.id = f"{found.st_dev}:{found.st_ino}"

    @property
    def path(self) -> str:
        """The queue's top directory."""
        return self.elements.path

    @property
    def umask(self) -> int | None:
        """The umask for what is made; None: the process's own."""
        return self.elements.umask

    @umask.setter
    def umask(self, umask: int | None) -> None:
        self.elements.umask = umask
        self._guard()

    def _guard(self) -> None:
        elements = self.elements
        elements.system = guarded(elements.system, place_of_dirq(elements.path, elements.umask))

    @property
    def rndhex(self) -> int:
        """The last digit of the names that are made here."""
        return self.elements.rndhex

    @rndhex.setter
    def rndhex(self, rndhex: int) -> None:
        self.elements.rndhex = rndhex % 16

    # ---- walking

    def names(self) -> Iterator[str]:
        """Walk all names, by a cursor of its own. Raises OSError."""
        elements = self.elements
        try:
            for directory in elements.directories():
                yield from elements.names(directory)
        except OSError as error:
            raise worded(error) from None

    def __iter__(self) -> Iterator[str]:
        return self.names()

    def first(self) -> str:
        """List the queue again, and return its first name; "" when it is empty. Raises OSError."""
        self._reset()
        return self.next()

    @told
    def next(self) -> str:
        """Return the next name since first(); "" at the end. Raises OSError."""
        elts = self.elts
        while not elts and self.dirs:
            elts.extend(self.elements.names(self.dirs.popleft()))
        return elts.popleft() if elts else ""

    def __next__(self) -> str:
        return self.next()

    @told
    def _reset(self) -> None:
        self.dirs = deque(self.elements.directories())
        self.elts = deque()

    def copy(self) -> Self:
        """Return a copy of the object, at no place of the walk."""
        new = copy.deepcopy(self)
        new.dirs, new.elts = deque(), deque()
        return new

    @told
    def count(self) -> int:
        """Return the number of elements, locked or not. Raises OSError."""
        return self.elements.count()

    # ---- one element

    @told
    def touch(self, ename: str) -> None:
        """Show that the element is still worked on: its lock ages from now on. Raises QueueError, OSError."""
        check_name(ename)
        elements, lock = self.elements, self._locks.get(ename)
        is_held = lock is not None and self._is_held(lock)
        elements.touch(ename)
        if is_held and (found := elements.found_lock(ename)) is not None:
            self._locks[ename] = found

    def _remember(self, lock: Lock) -> None:
        self._locks[lock.name] = lock
        if len(self._locks) > self._locks_max:
            self._forget_ended()

    def _unlock(self, name: str) -> bool:
        """Unlock and forget it; False when it was not locked. Raises as _is_ours does."""
        if name in self._locks:
            is_ours = self._is_ours(name, "unlock")
            self._locks.pop(name, None)  # another thread may have forgotten it meanwhile
            return is_ours and self.elements.unlock(name)
        check_name(name)
        return self.elements.unlock(name)

    def _is_held(self, lock: Lock) -> bool:
        return self.elements.is_held(lock, within_ns=LOCK_NS)

    def _forget_ended(self) -> None:
        """Let go of those that others have ended: a child process, or who broke them."""
        for name, lock in list(self._locks.items()):  # a copy: other threads lock meanwhile, the same ones too
            if not self._is_held(lock) and self._locks.get(name) is lock:
                self._locks.pop(name, None)
        self._locks_max = max(LOCKS_MIN, 2 * len(self._locks))

    def _is_ours(self, name: str, what: str) -> bool:
        """
        Whether the element is locked, by this object where it remembers that. One lstat.

        Raises QueueLockError when this object had locked it and another has it now; QueueError for no name.
        """
        elements, lock = self.elements, self._locks.get(name)
        if lock is None:
            check_name(name)
            return elements.found_lock(name) is not None
        if self._is_held(lock):
            return True
        if elements.found_lock(name) is None:
            return False
        raise QueueLockError(f"cannot {what} {name}: its lock was broken, and another has it now")

    @told
    def _sweep(self, maxtemp: float, maxlock: float) -> None:
        now_ns = self.elements.filesystem_now_ns()
        swept = self.elements.sweep(
            now_ns - int(maxtemp * 1e9) if maxtemp else None,
            now_ns - max(int(maxlock * 1e9), SECOND_NS) if maxlock else None,
        )
        if swept.errors:
            raise swept.errors[0]


def read_file(system: System, path: str) -> tuple[bytes, os.stat_result]:
    """What is in the file *path*, and its fstat. Raises OSError: EINVAL for no regular file, EFBIG for a huge one."""
    fd = system.open(path, OPEN_BODY)
    try:
        try:
            found = system.fstat(fd)
            if not is_regular(found):
                raise OSError(errno.EINVAL, "is no regular file")
            if found.st_size > READ_MAX:
                raise OSError(errno.EFBIG, TOO_LARGE)
            data = system.read(fd, found.st_size + 1)
            if len(data) != found.st_size:
                parts, size = [data], len(data)
                while part := system.read(fd, 1 << 20):
                    parts.append(part)
                    size += len(part)
                    if size > READ_MAX:  # whoever wrote it may write on
                        raise OSError(errno.EFBIG, TOO_LARGE)
                data = b"".join(parts)
        finally:
            system.close(fd)
    except OSError as error:
        error.filename = path  # of a descriptor's error nobody knows it
        raise
    return data, found
