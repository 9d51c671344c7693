"""
nfs - a simulated network filesystem: a System whose every question to the server takes its time

Network is given to a Spool in place of the kernel. Each call that asks the server about a
name first waits 0.5 ms and is counted; the files are those of a local directory. The
client is that of NFS 4 at its best:

    open                  CREATE, or OPEN with the lookup and the GETATTR of close-to-open in it
    rename, link, mkdir   RENAME, LINK, MKDIR
    unlink, rmdir         REMOVE
    lstat, statvfs        GETATTR, FSSTAT
    listdir, scandir      GETATTR, then READDIR for each 100 entries begun
    unlink of a file that this process has open: LOOKUP and RENAME to a .nfs name, and REMOVE
                          when it is closed; nobody waits for that one, nor for a CLOSE

Reading, writing, syncing and fstat of an open file wait for nothing: what they cost belongs
to the bytes. A directory that is opened to be synced is asked for by one GETATTR. The source
of a rename is known from the listing. Server and wire have no limit.

Limits: the kernel's timer makes 0.5 ms some 0.56 ms.
Source: RFC 7530 (10.3.1 close-to-open); Linux fs/nfs/unlink.c for the .nfs name.
See also: network (the suite), workers.system.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator

from workers.system import System

OPERATION_S = 0.0005
ENTRIES = 100  # in one READDIR
UNWAITED = ("CLOSE", "late REMOVE")
ASKED = {
    "link": "LINK", "mkdir": "MKDIR", "rmdir": "REMOVE", "lstat": "GETATTR", "stat": "GETATTR",
    "rename_noreplace": "RENAME", "rename_exchange": "RENAME", "statvfs": "FSSTAT", "utime": "SETATTR",
    "chmod": "SETATTR", "truncate": "SETATTR", "lock": "LOCK", "lock_file": "LOCK",
}  # fmt: skip


class Network(System):
    """
    The kernel, with a server behind the names. *counts* holds what was sent, by operation.

    Each operation that is waited for takes *operation_s*. One process only: it knows what that has open.
    """

    def __init__(self, operation_s: float = OPERATION_S) -> None:
        self.counts: Counter[str] = Counter()
        self._operation_s = operation_s
        self._paths: dict[int, str] = {}  # of open files, followed through renames
        self._removed: set[int] = set()  # open, but unlinked: a .nfs name on the server
        for name, operation in ASKED.items():
            setattr(self, name, self._asking(operation, getattr(System, name)))
        for call in (self._open, self._close, self._rename, self._unlink, self._listdir, self._scandir):
            setattr(self, call.__name__[1:], call)

    @property
    def waited(self) -> int:
        """Operations that somebody waited for."""
        return sum(count for operation, count in self.counts.items() if operation not in UNWAITED)

    def network_filesystem(self, path: str) -> str | None:  # noqa: ARG002 - whatever holds it
        """Always nfs."""
        return "nfs"

    def _ask(self, operation: str) -> None:
        self.counts[operation] += 1
        if self._operation_s:
            time.sleep(self._operation_s)

    def _asking(self, operation: str, call: Callable[..., object]) -> Callable[..., object]:
        def asked(*arguments: object) -> object:
            self._ask(operation)
            return call(*arguments)

        return asked

    def _open(self, path: str, flags: int, mode: int = 0o777) -> int:
        is_directory = bool(flags & os.O_DIRECTORY)
        self._ask("GETATTR" if is_directory else "CREATE" if flags & os.O_CREAT else "OPEN")
        fd = os.open(path, flags, mode)
        if not is_directory:
            self._paths[fd] = path
        return fd

    def _close(self, fd: int) -> None:
        if self._paths.pop(fd, None) is not None:
            self.counts["CLOSE"] += 1
        if fd in self._removed:
            self._removed.discard(fd)
            self.counts["late REMOVE"] += 1
        os.close(fd)

    def _rename(self, source: str, target: str) -> None:
        self._ask("RENAME")
        os.rename(source, target)
        for fd, path in self._paths.items():
            if path == source:
                self._paths[fd] = target

    def _unlink(self, path: str) -> None:
        fds = [fd for fd, known in self._paths.items() if known == path]
        for operation in ("LOOKUP", "RENAME") if fds else ("REMOVE",):
            self._ask(operation)
        os.unlink(path)
        self._removed.update(fds[:1])  # the last of them to be closed, but who has two

    def _listdir(self, path: str) -> list[str]:
        with self._scandir(path) as entries:
            return [entry.name for entry in entries]

    @contextlib.contextmanager
    def _scandir(self, path: str) -> Iterator[Iterator[os.DirEntry[str]]]:
        self._ask("GETATTR")
        with os.scandir(path) as entries:
            yield self._read_entries(entries)

    def _read_entries(self, entries: Iterator[os.DirEntry[str]]) -> Iterator[os.DirEntry[str]]:
        self._ask("READDIR")
        for number, entry in enumerate(entries):
            if number and number % ENTRIES == 0:
                self._ask("READDIR")
            yield entry
