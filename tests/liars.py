"""
liars - filesystems that lie, each in one thing: a real directory behind a System that answers otherwise

A lie is told by each process for itself, as by each host's client of a network filesystem. For doctor.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable

from workers.system import System

HOUR_S = 3600.0


class Liar(System):
    """*keeps_files*: what was made cannot be removed."""

    keeps_files = False


class Generous(Liar):
    """Who comes too late for a rename is told that he was first. Of paths with *match* in them."""

    def __init__(self, match: str = "") -> None:
        self._match = match

    def rename(self, source: str, target: str) -> None:
        try:
            os.rename(source, target)
        except FileNotFoundError:
            if self._match not in source:
                raise


class Copying(Liar):
    """A rename is a copy and an unlink, as of an object store: two may have copied before one unlinks."""

    def rename(self, source: str, target: str) -> None:
        try:
            with open(source, "rb") as found, open(target, "wb") as made:
                made.write(found.read())
            time.sleep(0.001)  # the window of such a store
            os.unlink(source)
        except FileNotFoundError:
            if not os.path.exists(target):
                raise


class Replacing(Liar):
    """A link replaces what is there."""

    def link(self, source: str, target: str) -> None:
        os.link(source, f"{target}.{os.getpid()}")
        os.rename(f"{target}.{os.getpid()}", target)


class LosesReplies(Liar):
    """Every seventh rename is done and answered by ENOENT, for it was sent twice."""

    def __init__(self) -> None:
        self._count = 0

    def rename(self, source: str, target: str) -> None:
        os.rename(source, target)
        self._count += 1
        if self._count % 7 == 0:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), source)


class Stale(Liar):
    """A listing is kept for *kept_s*, of directories with *match* in their path; its own changes do not end that."""

    def __init__(self, kept_s: float, match: str = "") -> None:
        self._kept_s, self._match = kept_s, match
        self._kept: dict[str, tuple[float, list[str]]] = {}

    def listdir(self, path: str) -> list[str]:
        at_s, found = self._kept.get(path, (0.0, []))
        if self._match not in path or time.monotonic() > at_s + self._kept_s:
            found = os.listdir(path)
            self._kept[path] = time.monotonic(), found
        return found


class Cached(Liar):
    """As an sshfs: a listing is kept for a minute, until this host itself changes the directory."""

    def __init__(self) -> None:
        self._kept: dict[str, list[str]] = {}
        for call in ("mkdir", "rmdir", "unlink", "rename", "link"):
            setattr(self, call, self._forgetting(getattr(System, call)))

    def _forgetting(self, real: Callable[..., object]) -> Callable[..., object]:
        def called(*paths: str) -> object:
            for path in paths:
                self._kept.pop(os.path.dirname(path), None)
            return real(*paths)

        return called

    def open(self, path: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_CREAT:
            self._kept.pop(os.path.dirname(path), None)
        return os.open(path, flags, mode)

    def listdir(self, path: str) -> list[str]:
        return self._kept.setdefault(path, os.listdir(path))


class Clocked(Liar):
    """Its files' times are *ahead_s* of ours, in steps of *step_s*; *keeps_ctime*: a change has a time of its own."""

    def __init__(self, ahead_s: float = 0.0, step_s: float = 0.0, *, keeps_ctime: bool = True) -> None:
        self._ahead_ns, self._step_ns = int(ahead_s * 1e9), int(step_s * 1e9)
        self._keeps_ctime = keeps_ctime

    def fstat(self, fd: int) -> os.stat_result:
        return self._seen(os.fstat(fd))

    def lstat(self, path: str) -> os.stat_result:
        return self._seen(os.lstat(path))

    def _seen(self, found: os.stat_result) -> os.stat_result:
        ctime_ns = found.st_ctime_ns if self._keeps_ctime else found.st_mtime_ns
        times = {"st_atime": found.st_atime_ns, "st_mtime": found.st_mtime_ns, "st_ctime": ctime_ns}
        lied = {}
        for name, time_ns in times.items():
            moved_ns = time_ns + self._ahead_ns
            moved_ns -= moved_ns % self._step_ns if self._step_ns else 0
            lied |= {name: moved_ns / 1e9, f"{name}_ns": moved_ns}
        return os.stat_result((*found[:7], *(int(lied[name]) for name in times)), lied)


class Refusing(Liar):
    """One call is always answered by an error; of mkdir, write and the like."""

    def __init__(self, call: str, number: int, match: str = "") -> None:
        self.keeps_files = call == "unlink"
        real = getattr(System, call)

        def refused(*arguments: object) -> object:
            if isinstance(arguments[0], str) and match not in arguments[0]:
                return real(*arguments)
            raise OSError(number, os.strerror(number), *(one for one in arguments[:1] if isinstance(one, str)))

        setattr(self, call, refused)


class Hung(Liar):
    """A call on a path with *match* in it is never answered."""

    def __init__(self, call: str, match: str) -> None:
        real = getattr(System, call)

        def held(path: str, *more: object) -> object:
            while match in path:
                time.sleep(HOUR_S)
            return real(path, *more)

        setattr(self, call, held)


class Folding(Liar):
    """Names are kept in lower case, and end at 100 bytes."""

    def open(self, path: str, flags: int, mode: int = 0o777) -> int:
        directory, _, name = path.rpartition("/")
        if len(os.fsencode(name)) > 100:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), path)
        return os.open(f"{directory}/{name.lower()}", flags, mode)


class Misset(Liar):
    """The host's own clock is *ahead_s* of the others'."""

    def __init__(self, ahead_s: float) -> None:
        self.wall_ns = lambda: time.time_ns() + int(ahead_s * 1e9)  # type: ignore[method-assign]


class Tearing(Liar):
    """A file of another host is read in part at first."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def open(self, path: str, flags: int, mode: int = 0o777) -> int:
        fd = os.open(path, flags, mode)
        if "/say." in path and not flags & os.O_CREAT and path not in self._seen:
            self._seen.add(path)
            os.lseek(fd, 5, os.SEEK_SET)
        return fd
