"""
saved - a file of JSON that is always whole: as it was before, or as it is now

save() writes beside the file and renames over it, so that a reader, or the next one
after a crash, never finds half of it. No fsync: what a power cut may cost is the last
version of a report, never a message. overwrite() is for a full disk alone: it needs no
room, and who is killed in it leaves half. load() believes nothing: neither that it is
a file, nor its size, nor that it is JSON.

Raises: SavedError with the path and the reason. Both may block where the directory does.
See also: orchestrator.runlog and state (what is written), worker (its own state).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import stat
import time
from collections.abc import Mapping
from pathlib import Path

from workers.dump import read
from workers.errors import OrchestratorError
from workers.queues.names import shown

SIZE_MAX = 64 << 20  # bytes; no report is near that
ABANDONED_S = 60.0  # what was being written so long ago is nobody's


class SavedError(OrchestratorError):
    """The file cannot be written, or is not what it should be."""


def save(path: Path, content: Mapping[str, object], *, size_min: int = 0, dir_fd: int | None = None) -> None:
    """
    Write *content* to *path*, mode 0600, keys sorted; what JSON cannot hold as its repr. Raises SavedError.

    *size_min*: bytes that the file takes at least, filled up with spaces, so that overwrite() has room. *dir_fd*, here
    and below: the directory of *path*, open, for who may not trust the way there.
    """
    data = _encoded(content).ljust(size_min)
    fresh = _in(path, f".{path.name}.{os.getpid()}.new", dir_fd)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(fresh, dir_fd=dir_fd)  # of a process that had our number and was killed here
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(fresh, flags, 0o600, dir_fd=dir_fd)
        try:
            with open(fd, "wb") as file:
                file.write(data)
            os.rename(fresh, _in(path, path.name, dir_fd), src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(fresh, dir_fd=dir_fd)
            raise
    except OSError as error:
        raise _cannot_write(path, error) from error


def overwrite(path: Path, *versions: Mapping[str, object], dir_fd: int | None = None) -> None:
    """
    Put the first of *versions* that is no longer than the file in its place. Raises SavedError when none is.

    The last resort of a full disk: blocks that the file has already are written anew.
    """
    try:
        flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(_in(path, path.name, dir_fd), flags, dir_fd=dir_fd)
        try:
            size = os.fstat(fd).st_size
            fitting = [data for data in map(_encoded, versions) if len(data) <= size]
            if not fitting:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.pwrite(fd, fitting[0].ljust(size), 0)
        finally:
            os.close(fd)
    except OSError as error:
        raise _cannot_write(path, error) from error


def sweep(path: Path, *, dir_fd: int | None = None) -> None:
    """Remove what writers of *path* that were killed have left beside it, when it is older than ABANDONED_S."""
    left = re.compile(rf"\.{re.escape(path.name)}\.\d+\.new\Z")
    with contextlib.suppress(OSError):
        for name in filter(left.match, listed(path.parent, dir_fd)):
            there = _in(path, name, dir_fd)
            if time.time() - os.stat(there, dir_fd=dir_fd, follow_symlinks=False).st_mtime > ABANDONED_S:
                os.unlink(there, dir_fd=dir_fd)


def listed(directory: Path, dir_fd: int | None = None) -> list[str]:
    """The names in *directory*. Raises OSError."""
    # Opened anew: a descriptor that only marks a place (O_PATH) cannot be read.
    fd = os.open(directory if dir_fd is None else ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        return os.listdir(fd)
    finally:
        os.close(fd)


def load(path: Path) -> dict[str, object]:
    """The object that *path* holds. Raises SavedError for whatever else is there."""
    where = shown(str(path))
    try:
        # O_NONBLOCK: a fifo put there must not hold us up.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise SavedError(f"{where} is no file")
            data = file.read(SIZE_MAX + 1)
    except OSError as error:
        raise SavedError(f"cannot read {where}: {error.strerror}") from error
    if len(data) > SIZE_MAX:
        raise SavedError(f"{where} is longer than {SIZE_MAX} bytes")
    try:
        found = read(data)
    except (ValueError, RecursionError) as error:
        raise SavedError(f"{where} is no JSON, or half of it") from error
    if not isinstance(found, dict):
        raise SavedError(f"{where} is no JSON object")
    return found


def _in(path: Path, name: str, dir_fd: int | None) -> str:
    return str(path.parent / name) if dir_fd is None else name


def _encoded(content: Mapping[str, object]) -> bytes:
    return json.dumps(content, indent=4, sort_keys=True, default=repr).encode() + b"\n"


def _cannot_write(path: Path, error: OSError) -> SavedError:
    return SavedError(f"cannot write {shown(str(path))}: {error.strerror}")
