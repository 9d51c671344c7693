"""
told - a System whose errors say what was tried: "cannot rename(A, B): [Errno 13] ..."

That is the wording of the published API. Kind and errno stay what they were, so whoever
catches FileNotFoundError, or looks at errno, sees what the kernel said.

See also: base (who uses it), workers.system.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from workers.system import SYSTEM, System

NAMED = (
    "rename", "rename_noreplace", "link", "unlink", "mkdir", "rmdir", "listdir", "scandir", "chmod", "lstat", "stat",
    "utime", "fsync_directory",
)  # fmt: skip
OPENED = ("close", "read", "write", "fstat", "fsync")


class Told(System):
    """*system*, worded. Made once for each queue object; its own door to the same kernel."""

    def __init__(self, system: System = SYSTEM) -> None:
        self._system = system
        self._paths: dict[int, str] = {}  # of what was opened last under that number
        for name in System.__dict__:
            if not name.startswith("_"):
                setattr(self, name, getattr(system, name))
        for name in NAMED:
            setattr(self, name, self._named(name, getattr(system, name)))
        for name in OPENED:
            setattr(self, name, self._opened(name, getattr(system, name)))
        # mypy: a method is given its place once, here.
        setattr(self, "open", self._opener(system.open))  # noqa: B010

    def __reduce__(self) -> tuple[type[Told], tuple[System]]:
        return Told, (self._system,)

    @staticmethod
    def _named(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def told_call(*arguments: Any, **more: Any) -> Any:
            try:
                return call(*arguments, **more)
            except OSError as error:
                raise worded(error, name, *(one for one in arguments if isinstance(one, str))) from None

        return told_call

    def _opened(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        paths = self._paths

        def told_call(fd: int, *arguments: Any) -> Any:
            try:
                return call(fd, *arguments)
            except OSError as error:
                raise worded(error, name, paths.get(fd, str(fd))) from None

        return told_call

    def _opener(self, call: Callable[..., int]) -> Callable[..., int]:
        paths = self._paths

        def told_open(path: str, *arguments: Any) -> int:
            try:
                fd = call(path, *arguments)
            except OSError as error:
                raise worded(error, "open", path) from None
            paths[fd] = path
            return fd

        return told_open


def worded(error: OSError, call: str, *paths: str) -> OSError:
    """*error* as "cannot CALL(PATHS): ...", of the same kind and with its errno."""
    told = type(error)(f"cannot {call}({', '.join(paths)}): {error}")
    told.errno = error.errno
    return told


TOLD = Told(SYSTEM)
