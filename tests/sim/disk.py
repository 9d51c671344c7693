"""
disk - a filesystem in memory, with the rules of rename(2), link(2), unlink(2) and their errors

A path is a key: directories are known by their whole path, so a call costs two
look-ups. Every change is told to who listens (Change), with the process that made
it: that is how a ledger knows of a message that was removed by somebody who did not
hold it, or replaced by another.

The times and link counts of directories, and the times of contents, belong to the state
of an *exact* disk alone: a directory queue of the dirq kind judges by them, a spool does not.

Limits: modes are kept and refuse nothing; no times of access, nothing above one level of
symbolic links.
Long because: the calls are one kernel interface, read beside its manual pages.
See also: kernel (the same calls as one process makes them), ledger (who listens).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

FILE, DIRECTORY, LINK = stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK


class Change(NamedTuple):
    """
    One change, told after it was made.

    Attributes:
        call: create, write, rename, exchange, link, unlink, mkdir, rmdir, utime, chmod, fsync, fsync_directory,
            syncfs.
        by: the process; inode: what was changed. source and target are paths, "" where there is none.
        replaced: the inode that a rename put out of its way, or an exchange at *source*.
    """

    call: str
    by: Any
    inode: Inode
    source: str = ""
    target: str = ""
    replaced: Inode | None = None


@dataclass(slots=True, eq=False)
class Inode:
    """A file, a directory or a symbolic link. *number* is (who made it, how many it had made): equal in all orders."""

    number: tuple[int, int]
    kind: int
    ctime_ns: int
    mtime_ns: int
    data: bytes = b""
    links: int = 1
    mode: int = 0o644
    entries: dict[str, Inode] = field(default_factory=dict)
    locker: Any = None  # the process that has it locked

    @property
    def is_directory(self) -> bool:
        """Whether it is one."""
        return self.kind == DIRECTORY

    def copy(self) -> Inode:
        """Another like it, and empty if it is a directory."""
        return Inode(self.number, self.kind, self.ctime_ns, self.mtime_ns, self.data, self.links, self.mode)

    def result(self) -> os.stat_result:
        """What stat(2) says of it."""
        size, inode = len(self.data), self.number[0] * 1_000_000 + self.number[1]
        mtime_s, ctime_s = self.mtime_ns // 10**9, self.ctime_ns // 10**9
        ten = (self.kind | self.mode, inode, 1, self.links, 0, 0, size, mtime_s, mtime_s, ctime_s)
        exact = {"st_mtime_ns": self.mtime_ns, "st_ctime_ns": self.ctime_ns}
        return os.stat_result(ten, exact | {"st_mtime": self.mtime_ns / 1e9, "st_ctime": self.ctime_ns / 1e9})


class Entry:
    """What scandir gives: an os.DirEntry of this disk."""

    __slots__ = ("_kind", "name")

    def __init__(self, name: str, kind: int) -> None:
        self.name, self._kind = name, kind

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        """By the kind alone."""
        return self._kind == DIRECTORY

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        """By the kind alone."""
        return self._kind == FILE


class Disk:
    """
    *now_ns* is its own clock, which stamps what it changes. Every call takes the process that makes it.

    *is_exact*: see above. *counts_links*: a directory has a link for each one in it; on some filesystems always 1.
    """

    def __init__(self, now_ns: Callable[[], int], *, is_exact: bool = False, counts_links: bool = True) -> None:
        self.now_ns, self.is_exact, self._counts_links = now_ns, is_exact, is_exact and counts_links
        self.listeners: list[Callable[[Change], None]] = []
        self.is_full = False
        self._made: dict[int, int] = {}
        root = Inode((0, 0), DIRECTORY, now_ns(), now_ns(), links=2 if self._counts_links else 1)
        self.directories: dict[str, Inode] = {"/": root}

    # ---- what is there

    def directory(self, path: str) -> Inode:
        """The directory *path*. Raises ENOENT, ENOTDIR."""
        found = self.directories.get(path)
        if found is None:
            raise _error(errno.ENOTDIR if self.found(path) else errno.ENOENT, path)
        return found

    def inode(self, path: str) -> Inode:
        """What is at *path*. Raises ENOENT."""
        found = self.found(path)
        if found is None:
            raise _error(errno.ENOENT, path)
        return found

    def found(self, path: str) -> Inode | None:
        """What is at *path*, if anything."""
        where, _, name = path.rpartition("/")
        parent = self.directories.get(where or "/")
        return self.directories.get(path) if parent is None or not name else parent.entries.get(name)

    def _parent(self, path: str) -> tuple[Inode, str]:
        where, _, name = path.rpartition("/")
        return self.directory(where or "/"), name

    def files(self) -> Iterator[tuple[str, Inode]]:
        """Every name that is no directory, with its inode."""
        for path, directory in self.directories.items():
            for name, inode in directory.entries.items():
                if not inode.is_directory:
                    yield f"{path}/{name}", inode

    def copy_of(self, other: Disk) -> None:
        """Become as *other* is, without a call: for many worlds that begin alike. Nothing there may have two names."""
        self._made = dict(other._made)
        self.directories = {path: one.copy() for path, one in other.directories.items()}
        for path, one in other.directories.items():
            here = self.directories[path].entries
            for name, inode in one.entries.items():
                below = f"{path.rstrip('/')}/{name}"
                here[name] = self.directories[below] if inode.is_directory else inode.copy()

    def fingerprint(self) -> int:
        """Equal for equal trees, with the files' contents and times; with a directory's only where it is exact."""
        if self.is_exact:
            return hash(
                frozenset(
                    (path, name, inode.number, inode.data, inode.ctime_ns, inode.mtime_ns, inode.mode)
                    for path, one in self.directories.items()
                    for name, inode in one.entries.items()
                )
            )
        return hash(
            frozenset(
                (path, name, inode.number, inode.data, 0 if inode.is_directory else inode.ctime_ns)
                for path, one in self.directories.items()
                for name, inode in one.entries.items()
            )
        )

    # ---- names

    def rename(self, by: Any, source: str, target: str, *, is_replacing: bool = True) -> None:
        """rename(2); renameat2(2) with RENAME_NOREPLACE unless *is_replacing*."""
        old, old_name = self._parent(source)
        inode = old.entries.get(old_name)
        if inode is None:
            raise _error(errno.ENOENT, source)
        new, new_name = self._parent(target)
        there = new.entries.get(new_name)
        if there is not None and not is_replacing:
            raise _error(errno.EEXIST, target)
        if there is inode:
            return
        if there is not None and there.is_directory != inode.is_directory:
            raise _error(errno.EISDIR if there.is_directory else errno.ENOTDIR, target)
        if there is not None and there.entries:
            raise _error(errno.ENOTEMPTY, target)
        del old.entries[old_name]
        new.entries[new_name] = inode
        if there is not None:
            there.links -= 1
        if inode.is_directory:
            self._move_below(source, target)
            self._count(old, -1)
            self._count(new, 0 if there else 1)
        self._stamp(old, new)
        inode.ctime_ns = old.ctime_ns  # a directory that is moved keeps the time of its contents
        self._tell("rename", by, inode, source, target, there)

    def exchange(self, by: Any, source: str, target: str) -> None:
        """renameat2(2) with RENAME_EXCHANGE, of two files."""
        (old, old_name), (new, new_name) = self._parent(source), self._parent(target)
        one, other = self.inode(source), self.inode(target)
        old.entries[old_name], new.entries[new_name] = other, one
        self._stamp(one, other, old, new)
        self._tell("exchange", by, one, source, target, other)

    def _move_below(self, source: str, target: str) -> None:
        for path in [path for path in self.directories if path == source or path.startswith(f"{source}/")]:
            self.directories[target + path.removeprefix(source)] = self.directories.pop(path)

    def link(self, by: Any, source: str, target: str) -> None:
        """link(2)."""
        inode = self.inode(source)
        parent, name = self._parent(target)
        self._check_room()
        if name in parent.entries:
            raise _error(errno.EEXIST, target)
        if inode.is_directory:
            raise _error(errno.EPERM, source)
        parent.entries[name] = inode
        inode.links += 1
        self._stamp(inode, parent)
        self._tell("link", by, inode, source, target)

    def unlink(self, by: Any, path: str) -> None:
        """unlink(2)."""
        parent, name = self._parent(path)
        inode = self.inode(path)
        if inode.is_directory:
            raise _error(errno.EISDIR, path)
        del parent.entries[name]
        inode.links -= 1
        self._stamp(inode, parent)
        self._tell("unlink", by, inode, path)

    def mkdir(self, by: Any, path: str, mode: int = 0o755) -> None:
        """mkdir(2)."""
        parent, name = self._parent(path)
        if name in parent.entries:
            raise _error(errno.EEXIST, path)
        self._check_room()
        inode = self._make(by, DIRECTORY, mode)
        inode.links += self._counts_links
        parent.entries[name] = self.directories[path] = inode
        self._count(parent, 1)
        self._stamp(parent)
        self._tell("mkdir", by, inode, path)

    def rmdir(self, by: Any, path: str) -> None:
        """rmdir(2)."""
        inode = self.directory(path)
        if inode.entries:
            raise _error(errno.ENOTEMPTY, path)
        parent, name = self._parent(path)
        del parent.entries[name], self.directories[path]
        self._count(parent, -1)
        self._stamp(parent)
        self._tell("rmdir", by, inode, path)

    def symlink(self, by: Any, text: str, path: str) -> None:
        """symlink(2)."""
        parent, name = self._parent(path)
        if name in parent.entries:
            raise _error(errno.EEXIST, path)
        parent.entries[name] = inode = self._make(by, LINK)
        inode.data = text.encode()

    def utime(self, by: Any, path: str, times_ns: tuple[int, int] | None = None) -> None:
        """utimensat(2), no link followed."""
        inode, now_ns = self.inode(path), self.now_ns()
        inode.mtime_ns, inode.ctime_ns = times_ns[1] if times_ns else now_ns, now_ns
        self._tell("utime", by, inode, path)

    def chmod(self, by: Any, inode: Inode, mode: int) -> None:
        """chmod(2), fchmod(2)."""
        inode.mode, inode.ctime_ns = mode, self.now_ns()
        self._tell("chmod", by, inode)

    # ---- files

    def open(self, by: Any, path: str, flags: int, mode: int = 0o644) -> Inode:
        """open(2): the inode."""
        if path in self.directories:
            if flags & os.O_CREAT:
                raise _error(errno.EEXIST if flags & os.O_EXCL else errno.EISDIR, path)
            return self.directories[path]
        parent, name = self._parent(path)
        inode = parent.entries.get(name)
        if inode is None and flags & os.O_CREAT:
            self._check_room()
            parent.entries[name] = inode = self._make(by, FILE, mode)
            self._stamp(parent)
            self._tell("create", by, inode, path)
            return inode
        if inode is None:
            raise _error(errno.ENOENT, path)
        if flags & os.O_EXCL:
            raise _error(errno.EEXIST, path)
        if inode.kind == LINK:
            raise _error(errno.ELOOP, path)
        if flags & os.O_DIRECTORY:
            raise _error(errno.ENOTDIR, path)
        if flags & os.O_TRUNC and inode.data:
            inode.data = b""
            self.write(by, inode, b"")
        return inode

    def write(self, by: Any, inode: Inode, data: bytes, start: int | None = None) -> int:
        """write(2), at the end; pwrite(2) where it says *start*."""
        self._check_room()
        if start is None:
            inode.data += bytes(data)
        else:
            inode.data = inode.data[:start].ljust(start, b"\0") + bytes(data) + inode.data[start + len(data) :]
        inode.mtime_ns = self.now_ns()
        self._stamp(inode)
        self._tell("write", by, inode)
        return len(data)

    def sync(self, by: Any, inode: Inode, call: str = "fsync") -> None:
        """fsync(2) of a file or a directory, or syncfs(2): only told to who listens."""
        self._tell("fsync_directory" if inode.is_directory and call == "fsync" else call, by, inode)

    # ---- inside

    def _make(self, by: Any, kind: int, mode: int = 0o777) -> Inode:
        count = self._made[by.pid] = self._made.get(by.pid, 0) + 1
        now_ns = self.now_ns()
        return Inode((by.pid, count), kind, now_ns, now_ns, mode=mode)

    def _count(self, parent: Inode, more: int) -> None:
        parent.links += more * self._counts_links

    def _stamp(self, *changed: Inode) -> None:
        now_ns = self.now_ns()
        for inode in changed:
            inode.ctime_ns = now_ns
            if inode.is_directory:
                inode.mtime_ns = now_ns

    def _check_room(self) -> None:
        if self.is_full:
            raise _error(errno.ENOSPC, "")

    def _tell(self, *change: Any) -> None:
        if self.listeners:
            told = Change(*change)
            for listener in self.listeners:
                listener(told)


def _error(code: int, path: str) -> OSError:
    return OSError(code, os.strerror(code), path)
