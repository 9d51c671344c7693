"""
places - open what a path names, through no link that somebody else could have put there

Root may write everywhere, so a path through the directory of another user is that user's to
bend: a link in place of a directory or a file leads root to a file of the system. The way is
walked one directory after the other. A link on it counts where only root or this process's
user could have made it: in a directory that nobody else may write into, or, in one like
/tmp, when it is theirs. The kernel's own links (/proc/self/fd/1) count always.

Raises: OSError. Limits: a directory that its group may write into is one that others may.
Source: openat(2), "O_PATH"; readlinkat(2) for the empty name; proc_sys_fs(5), "protected_symlinks".
See also: logs and pidfile (files), rundir (directories), identity.rights_of (the other way).
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

LINKS_MAX = 40  # as many as the kernel follows
_ENTRY = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


def open_file(path: Path, flags: int, mode: int = 0o644) -> int:
    """Open the file *path*; a second name of another file is refused where others may make names."""
    directory, name, is_kernels = _walk(path, is_last_followed=True, make=None)
    try:
        fd = os.open(name, flags | os.O_CLOEXEC | (0 if is_kernels else os.O_NOFOLLOW), mode, dir_fd=directory)
        info = os.fstat(fd)
        if stat.S_ISREG(info.st_mode) and info.st_nlink > 1 and not is_safe(os.fstat(directory)):
            os.close(fd)
            raise OSError(errno.EMLINK, "it is a second name of another file; remove it", str(path))
        return fd
    finally:
        os.close(directory)


def open_parent(path: Path, make: int | None = None) -> tuple[int, str]:
    """The directory of *path*, to be used as dir_fd, and the last name. Missing ones are made, with mode *make*."""
    directory, name, _ = _walk(path, is_last_followed=False, make=make)
    return directory, name


@contextlib.contextmanager
def parent_of(path: Path) -> Iterator[int]:
    """The directory of *path*, as open_parent() finds it, meanwhile."""
    directory, _ = open_parent(path)
    try:
        yield directory
    finally:
        os.close(directory)


def make_directory(name: str, mode: int, directory: int) -> None:
    """Make *name* in *directory*. *mode* is what it gets, but for others' writing, whatever this process's umask is."""
    before = os.umask(0o022)
    try:
        os.mkdir(name, mode, dir_fd=directory)
    finally:
        os.umask(before)


def is_safe(directory: os.stat_result, link: os.stat_result | None = None) -> bool:
    """Whether only root or we can have made what is in *directory*: all of it, or *link*."""
    ours = (0, os.geteuid())
    if directory.st_uid not in ours:
        return False
    is_kept = link is not None and link.st_uid in ours and bool(directory.st_mode & stat.S_ISVTX)
    return is_kept or not directory.st_mode & 0o022


def remove_empty(path: Path, info: os.stat_result) -> None:
    """Remove *path* while it is the file *info*, and has nothing in it. Nothing where that is not possible."""
    with contextlib.suppress(OSError):
        directory, name = open_parent(path)
        try:
            there = os.stat(name, dir_fd=directory, follow_symlinks=False)
            if os.path.samestat(info, there) and there.st_size == 0:
                os.unlink(name, dir_fd=directory)
        finally:
            os.close(directory)


def _walk(path: Path, *, is_last_followed: bool, make: int | None) -> tuple[int, str, bool]:
    """The directory in which *path* ends, the name there, and whether that is a link of the kernel's."""
    left, links = _parts(str(path)), 0
    directory = _root("/" if path.is_absolute() else ".")
    try:
        while True:
            name = left.pop()
            if not left and not is_last_followed:
                return directory, name, False
            try:
                entry = _look(name, directory, make if left else None)
            except FileNotFoundError:
                if left:
                    raise
                return directory, name, False
            info = os.fstat(entry)
            if stat.S_ISLNK(info.st_mode):
                try:
                    if not left and _is_kernels(info):
                        return directory, name, True
                    links += 1
                    text = _text(entry, info, directory, path if links <= LINKS_MAX else None)
                finally:
                    os.close(entry)
                left += _parts(text)
                if text.startswith("/"):
                    os.close(directory)
                    directory = _root("/")
            elif left:
                os.close(directory)
                directory = entry
            else:
                os.close(entry)
                return directory, name, False
    except BaseException:
        os.close(directory)
        raise


def _parts(path: str) -> list[str]:
    """The names of *path*, the first one last."""
    return [part for part in path.split("/")[::-1] if part not in ("", ".")] or ["."]


def _root(path: str) -> int:
    return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def _look(name: str, directory: int, make: int | None) -> int:
    try:
        return os.open(name, _ENTRY, dir_fd=directory)
    except FileNotFoundError:
        if make is None:
            raise
    with contextlib.suppress(FileExistsError):
        make_directory(name, make, directory)
    return os.open(name, _ENTRY, dir_fd=directory)


def _text(link: int, info: os.stat_result, directory: int, path: Path | None) -> str:
    """Where a link leads that may be followed; *path* is None where there were too many."""
    if path is None:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    if not is_safe(os.fstat(directory), info):
        raise OSError(errno.ELOOP, "there is a link on the way, in a directory that others may write into", str(path))
    # RACE: who may make links here may put another in its place now. So the text is that of the very link that was
    # looked at. See test_a_link_is_judged_and_read_as_one.
    return os.readlink("", dir_fd=link)


def _is_kernels(link: os.stat_result) -> bool:
    try:
        return link.st_dev == os.stat("/proc/self").st_dev
    except OSError:
        return False
