"""
queue_null - QueueNull, the published class: a queue that is always empty

What is added is gone at once.

See also: simple (the same verbs, on a queue that keeps what it is given).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NoReturn

from workers.dirq.base import QueueBase
from workers.dirq.told import told
from workers.system import SYSTEM, System


class QueueNull(QueueBase):
    """A black hole."""

    path = id = "NULL"
    umask = None
    rndhex = 0

    def __init__(self, *, system: System = SYSTEM) -> None:
        """There is nothing to open."""
        super().__init__(self.path)
        self._system = system

    def names(self) -> Iterator[str]:
        """Walk all names: there is none."""
        return iter(())

    def _reset(self) -> None:
        return

    def add(self, data: object) -> str:  # noqa: ARG002 - the verb of a queue
        """Forget *data*; return ""."""
        return ""

    add_ref = add

    @told
    def add_path(self, path: str) -> str:
        """Remove the file *path*; return "". Raises OSError."""
        self._system.unlink(path)
        return ""

    def count(self) -> int:
        """Return 0."""
        return 0

    def purge(self, maxtemp: float = 300, maxlock: float = 600) -> None:
        """Do nothing."""

    def get(self, name: str) -> NoReturn:
        """Raise NotImplementedError."""
        raise NotImplementedError("unsupported method: get()")

    get_ref = get

    def get_path(self, name: str) -> NoReturn:
        """Raise NotImplementedError."""
        raise NotImplementedError("unsupported method: get_path()")

    def lock(self, name: str, permissive: bool = True) -> NoReturn:
        """Raise NotImplementedError."""
        raise NotImplementedError("unsupported method: lock()")

    def unlock(self, name: str, permissive: bool = False) -> NoReturn:
        """Raise NotImplementedError."""
        raise NotImplementedError("unsupported method: unlock()")

    def remove(self, name: str) -> NoReturn:
        """Raise NotImplementedError."""
        raise NotImplementedError("unsupported method: remove()")

    def touch(self, ename: str) -> NoReturn:
        """Raise NotImplementedError."""
        raise NotImplementedError("unsupported method: touch()")
