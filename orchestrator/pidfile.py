"""
pidfile - a file that says which process it is, while that process holds a lock

open() makes the files, with the rights of whoever starts a daemon; acquire() locks, and
writes the number, in the process that it shall name. The lock is a POSIX record lock: a
forked child does not inherit it, and the kernel frees it at death, so a stale file is
taken over, a live one is refused, and nobody needs to judge a number.

Who may read a file may hold a shared lock on it, and keep everybody else from theirs for as
long as he likes. So a pid file that others may read is not locked itself: NAME.lock beside
it is, which only its owner may open. (To put a fresh file in its place would need a
directory that the daemon may write into when it has given up its rights.)

Raises: PidFileError, and PidFileHeld while another process holds it.
Limits: closing ANY descriptor of the locked file drops the lock of this process, so its
holder never reads it; another process may. The locks of a network filesystem are not to be
trusted; rundir refuses it for its own.
Source: fcntl_locking(2), "Advisory record locking".
See also: rundir (the lock of a pool's name), daemon (pid_file), places (the way there).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from orchestrator.places import open_parent
from workers.errors import OrchestratorError
from workers.queues.names import shown

PID_BYTES_MAX = 64
# O_NONBLOCK: a fifo put there must not hold us up.
FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class PidFileError(OrchestratorError):
    """The pid file cannot be used; the text names it and what to do."""


class PidFileHeld(PidFileError):
    """Another process holds it; *pid* is that process, 0 when it could not be read."""

    def __init__(self, text: str, pid: int) -> None:
        super().__init__(text)
        self.pid = pid


@dataclass(slots=True)
class _File:
    """A file of *directory*, for *owners*, open. *is_made*: it was not there before."""

    path: Path
    mode: int
    directory: int
    owners: tuple[int, ...]
    fd: int = -1
    is_made: bool = False

    def open(self) -> None:
        """Open it anew, made where it is missing. Raises PidFileError."""
        self.close()
        text = shown(str(self.path))
        try:
            try:
                self.fd = os.open(self.path.name, FLAGS, dir_fd=self.directory)
            except FileNotFoundError:
                self.fd = os.open(self.path.name, FLAGS | os.O_CREAT, self.mode, dir_fd=self.directory)
                self.is_made = True
        except OSError as error:
            hint = "; remove it" if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO) else ""
            raise PidFileError(f"cannot open {text}: {error.strerror}{hint}") from error
        info = os.fstat(self.fd)
        # A file with a second name may be one of the system's, put there for root to write into.
        if not stat.S_ISREG(info.st_mode) or info.st_nlink > 1:
            self.close()
            raise PidFileError(f"{text} is no file of its own (a fifo, or a second name of another file); remove it")
        # Who can write there can have root end any process, and hold the lock for ever.
        if info.st_uid not in (0, os.geteuid(), *self.owners) or info.st_mode & 0o002:
            self.close()
            raise PidFileError(f"{text} is another user's, or others may write into it; remove it")

    def is_there(self) -> bool:
        """Whether it still has its name."""
        info = os.fstat(self.fd)
        try:
            there = os.stat(self.path.name, dir_fd=self.directory, follow_symlinks=False)
        except FileNotFoundError:
            return False
        except PermissionError:
            return info.st_nlink > 0  # opened by somebody who may pass the directory, as we may no longer
        return os.path.samestat(info, there)

    def remove(self) -> None:
        """Take it away while it has its name; nothing where the directory does not let us."""
        with contextlib.suppress(OSError):
            if self.is_there():
                os.unlink(self.path.name, dir_fd=self.directory)

    def close(self) -> None:
        """Let go of it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class PidFile:
    """One pid file. Made by open(); its own from acquire() until release() or death."""

    def __init__(self, path: Path, mode: int, directory: int, owners: tuple[int, ...]) -> None:
        self.path = path
        self._directory = directory
        self._file = self._lock = _File(path, mode, directory, owners)
        if mode & 0o077:
            self._lock = _File(path.with_name(f"{path.name}.lock"), 0o600, directory, owners)
        self._pid = 0

    @classmethod
    def open(cls, path: Path, mode: int = 0o644, *, dir_fd: int | None = None, owners: tuple[int, ...] = ()) -> PidFile:
        """
        Open *path*, made with *mode* where it is missing; below *dir_fd*, where given, by its last name alone.

        One that is there may belong to us, root, or one of *owners*.
        """
        try:
            directory = open_parent(path)[0] if dir_fd is None else os.dup(dir_fd)
        except OSError as error:
            raise PidFileError(f"cannot open {shown(str(path))}: {error.strerror}") from error
        found = cls(path, mode, directory, owners)
        try:
            for file in reversed(found._files):
                file.open()
            if found._lock is not found._file:
                found._refuse_other_content()
        except BaseException:
            found.discard()
            raise
        return found

    @property
    def descriptors(self) -> list[int]:
        """Everything that it has open."""
        return [self._directory, *(file.fd for file in self._files)]

    @property
    def is_ours(self) -> bool:
        """Whether this very process holds it."""
        return self._pid == os.getpid()

    def acquire(self, content: bytes) -> None:
        """Lock the file and write *content*, which begins with this process's number. Never blocks."""
        try:
            self._acquire()
            if not self._file.is_there():
                self._file.open()
            try:
                # ORDER: write, then cut. A reader takes the first line, so that it never sees an empty file once
                # there was a holder. See test_a_stale_pid_file_is_taken_over.
                os.pwrite(self._file.fd, content, 0)
                os.ftruncate(self._file.fd, len(content))
            except OSError as error:
                raise PidFileError(f"cannot write {shown(str(self.path))}: {error.strerror}") from error
        except PidFileHeld:
            self.close()
            raise
        except BaseException:
            self.discard()
            raise
        self._pid = os.getpid()

    def release(self) -> None:
        """
        Take the file away while it is ours. Does nothing in a forked child, nor the second time.

        Where the directory does not let us, it is left there empty, and names nobody.
        """
        if not self.is_ours:
            return
        # ORDER: removed while it is locked, else the next holder could have put its own there already.
        # See test_a_released_name_can_be_acquired_again.
        self._file.remove()
        with contextlib.suppress(OSError):
            os.ftruncate(self._file.fd, 0)
        self._lock.remove()
        self.close()

    def discard(self) -> None:
        """Take away what open() made, unless somebody has written into it or holds it; let go of the rest."""
        with contextlib.suppress(OSError, PidFileError):
            if self._lock.fd >= 0:
                fcntl.lockf(self._lock.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._lock.is_there():
                    for file in self._files:
                        if file.is_made and file.fd >= 0 and os.fstat(file.fd).st_size == 0:
                            file.remove()
        self.close()

    def close(self) -> None:
        """Let go of the file as it is."""
        for file in self._files:
            file.close()
        if self._directory >= 0:
            os.close(self._directory)
            self._directory = -1
        self._pid = 0

    @property
    def _files(self) -> list[_File]:
        """The lock comes last in being removed, and so first in being made."""
        return [self._file] if self._lock is self._file else [self._file, self._lock]

    def _acquire(self) -> None:
        while True:
            try:
                fcntl.lockf(self._lock.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError) as error:
                pid = parsed(os.pread(self._file.fd, PID_BYTES_MAX, 0))
                who = f"process {pid}" if pid else "another process"
                raise PidFileHeld(f"{shown(str(self.path))} is held by {who}, which lives", pid) from error
            except OSError as error:
                raise PidFileError(f"cannot lock {shown(str(self.path))}: {error.strerror}") from error
            # RACE: the holder before us removed the file between our open and our lock; then the lock is on a
            # file that nobody else will find. See test_a_pid_file_removed_while_it_is_locked_is_opened_again.
            if self._lock.is_there():
                return
            self._lock.open()

    def _refuse_other_content(self) -> None:
        """It was given by a person, who may have meant another file. Zeros are what a crash of the host leaves."""
        content = os.pread(self._file.fd, PID_BYTES_MAX + 1, 0)
        if len(content) > PID_BYTES_MAX or not all(word.isdigit() for word in content.strip(b"\0").split()):
            raise PidFileError(
                f"{shown(str(self.path))} holds something that is no process number; remove it, or give another file"
            )


def parsed(content: bytes) -> int:
    """The process that the first line of *content* begins with, or 0."""
    fields = content.partition(b"\n")[0].split()
    if not fields or not fields[0].isdigit():
        return 0
    pid = int(fields[0])
    return pid if pid < 1 << 31 else 0
