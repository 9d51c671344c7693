"""
anchored - the door to the kernel for directories into which others may write

Who may write into a directory may put a symbolic link where another directory was, between a look of ours and our call,
and have us rename, read or remove somewhere else with our rights. So a path below one of the *roots* is walked from
there, one directory after the other, and no link is followed, nor at its end; the call is made on the last directory's
descriptor, which is that directory whatever is done to its name meanwhile.

Raises: OSError as the plain call does, with the whole path; NotADirectoryError where a link is in the way.
Limits: links in a root's own path are followed, for who named it meant it; but not one that comes to be in the place
of the root itself later on. Each directory below costs two calls: so this door is taken only where others may write
(see guarded).
Source: openat(2); what is meant is RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS of openat2(2), which older kernels have not.
See also: system (the door that is taken else), trust (who may write).
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

from workers.system import System, listing, rename_with

PASSED = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


class Anchored(System):
    """The real kernel, where what is below *roots* cannot lead out of them."""

    is_anchored = True

    def __init__(self, *roots: str) -> None:
        # As they were written, too: a path begins as its caller has written it. Each with a slash at its end.
        forms = (form.rstrip("/") for root in roots for form in (root, os.path.abspath(root)))
        self.roots = tuple(dict.fromkeys(f"{form}/" for form in forms))
        # One that was no link when it was named, or was not there, has become one by somebody else's hand.
        self._links = frozenset(root for root in self.roots if os.path.islink(root.rstrip("/")))
        calls: dict[str, Callable[..., Any]] = {
            "open": _open, "lstat": os.lstat, "stat": _stat, "utime": System.utime, "mkdir": os.mkdir,
            "rmdir": os.rmdir, "unlink": os.unlink, "listdir": _listdir,
        }  # fmt: skip
        for name, call in calls.items():
            setattr(self, name, functools.partial(self._called, call))
        pairs: dict[str, Callable[..., Any]] = {
            "rename": os.rename, "link": functools.partial(os.link, follow_symlinks=False),
            "rename_noreplace": functools.partial(rename_with, 1), "rename_exchange": functools.partial(rename_with, 2),
        }  # fmt: skip
        for name, call in pairs.items():
            setattr(self, name, functools.partial(self._called_on_two, call))

    @contextlib.contextmanager
    def scandir(self, path: str) -> Iterator[Iterator[os.DirEntry[str]]]:  # type: ignore[override]
        """See System.scandir."""
        with self._at(path) as (name, directory), listing(name, dir_fd=directory) as fd, os.scandir(fd) as entries:
            yield entries

    def _called(self, call: Callable[..., Any], path: str, *arguments: Any, **more: Any) -> Any:
        with self._at(path) as (name, directory):
            try:
                return call(name, *arguments, dir_fd=directory, **more)
            except OSError as error:
                error.filename = path
                raise

    def _called_on_two(self, call: Callable[..., Any], source: str, target: str) -> None:
        with self._at(source) as (old, old_directory), self._at(target) as (new, new_directory):
            try:
                call(old, new, src_dir_fd=old_directory, dst_dir_fd=new_directory)
            except OSError as error:
                error.filename, error.filename2 = source, target
                raise

    @contextlib.contextmanager
    def _at(self, path: str) -> Iterator[tuple[str, int | None]]:
        """The last name of *path* and a descriptor of the directory that holds it; None for what is below no root."""
        root = next((root for root in self.roots if path.startswith(root)), None)
        parts = [part for part in path[len(root) :].split("/") if part] if root else []
        if root is None or not parts:
            yield path, None
            return
        if ".." in parts:
            raise OSError(errno.EINVAL, "leads out of the queue", path)
        fd = os.open(root.rstrip("/") or "/", PASSED if root in self._links else PASSED | os.O_NOFOLLOW)
        try:
            for number, part in enumerate(parts[:-1]):
                try:
                    inner = os.open(part, PASSED | os.O_NOFOLLOW, dir_fd=fd)
                except OSError as error:
                    error.filename = root + "/".join(parts[: number + 1])
                    raise
                os.close(fd)
                fd = inner
            yield parts[-1], fd
        finally:
            os.close(fd)


def joined(one: System, other: System) -> System:
    """The door *one*, which leads into what is below the roots of *other* as that does."""
    if not isinstance(other, Anchored):
        return one
    return Anchored(*(one.roots if isinstance(one, Anchored) else ()), *other.roots)


def _open(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None) -> int:
    return os.open(path, flags if dir_fd is None else flags | os.O_NOFOLLOW, mode, dir_fd=dir_fd)


def _stat(path: str, *, dir_fd: int | None) -> os.stat_result:
    return os.stat(path, dir_fd=dir_fd, follow_symlinks=dir_fd is None)


def _listdir(path: str, *, dir_fd: int | None) -> list[str]:
    with listing(path, dir_fd=dir_fd) as fd:
        return os.listdir(fd)
