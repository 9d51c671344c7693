"""
pidfile - a file that says which process it is, and is locked by that process for as long as it lives

open() makes the file, with the rights of whoever starts a daemon; acquire() locks it and
writes into it, in the process that it shall name. The lock is a POSIX record lock: a
forked child does not inherit it, and the kernel frees it at death, so a stale file is
taken over, a live one is refused, and nobody needs to judge a number.

Raises: PidFileError, and PidFileHeld while another process holds it.
Limits: closing ANY descriptor of the file drops the lock of this process, so its holder
never reads it; another process may. The locks of a network filesystem are not to be
trusted; rundir refuses it for its own.
Source: fcntl_locking(2), "Advisory record locking".
See also: rundir (the lock of a pool's name), daemon (pid_file).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from pathlib import Path

from workers.errors import OrchestratorError
from workers.queues.names import shown

PID_BYTES_MAX = 64
# O_NONBLOCK: a fifo put there must not hold us up.
FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class PidFileError(OrchestratorError):
    """The pid file cannot be used; the text names it and what to do."""


class PidFileHeld(PidFileError):
    """Another process holds it; *pid* is that process, 0 when it could not be read."""

    def __init__(self, text: str, pid: int) -> None:
        super().__init__(text)
        self.pid = pid


class PidFile:
    """One pid file. Made by open(); its own from acquire() until release() or death."""

    def __init__(self, path: Path, mode: int, fd: int) -> None:
        self.path = path
        self.fd = fd
        self._mode = mode
        self._pid = 0

    @classmethod
    def open(cls, path: Path, mode: int = 0o644, *, dir_fd: int | None = None) -> PidFile:
        """Open *path*, made with *mode* where it is missing; below *dir_fd*, where given, by its last name alone."""
        return cls(path, mode, _open(path, mode, dir_fd))

    def acquire(self, content: bytes, *, dir_fd: int | None = None) -> None:
        """Lock the file and write *content*, which begins with this process's number. Never blocks."""
        while True:
            try:
                fcntl.lockf(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError) as error:
                pid = parsed(os.pread(self.fd, PID_BYTES_MAX, 0))
                self.close()
                who = f"process {pid}" if pid else "another process"
                raise PidFileHeld(f"{shown(str(self.path))} is held by {who}, which lives", pid) from error
            except OSError as error:
                self.close()
                raise PidFileError(f"cannot lock {shown(str(self.path))}: {error.strerror}") from error
            # RACE: the holder before us removed the file between our open and our lock; then the lock is on a
            # file that nobody else will find. See test_a_pid_file_removed_while_it_is_locked_is_opened_again.
            if self._is_there(dir_fd):
                break
            self.close()
            self.fd = _open(self.path, self._mode, dir_fd)
        self._pid = os.getpid()
        try:
            # ORDER: write, then cut. A reader takes the first line, so that it never sees an empty file once
            # there was a holder. See test_a_stale_pid_file_is_taken_over.
            os.pwrite(self.fd, content, 0)
            os.ftruncate(self.fd, len(content))
        except OSError as error:
            self.close()
            raise PidFileError(f"cannot write {shown(str(self.path))}: {error.strerror}") from error

    def fileno(self) -> int:
        """The descriptor."""
        return self.fd

    @property
    def is_ours(self) -> bool:
        """Whether this very process holds it."""
        return self.fd >= 0 and self._pid == os.getpid()

    def release(self) -> None:
        """
        Take the file away while it is ours. Does nothing in a forked child, nor the second time.

        Where the directory does not let us, it is left there empty, and names nobody.
        """
        if not self.is_ours:
            return
        # ORDER: removed while it is locked, else the next holder could have put its own there already.
        # See test_a_released_name_can_be_acquired_again.
        with contextlib.suppress(OSError):
            if self._is_there(None):
                os.unlink(self.path)
        with contextlib.suppress(OSError):
            os.ftruncate(self.fd, 0)
        self.close()

    def close(self) -> None:
        """Let go of the file as it is."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _is_there(self, dir_fd: int | None) -> bool:
        try:
            there = os.stat(_name(self.path, dir_fd), dir_fd=dir_fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(os.fstat(self.fd), there)


def parsed(content: bytes) -> int:
    """The process that the first line of *content* begins with, or 0."""
    fields = content.partition(b"\n")[0].split()
    if not fields or not fields[0].isdigit():
        return 0
    pid = int(fields[0])
    return pid if pid < 1 << 31 else 0


def _name(path: Path, dir_fd: int | None) -> str | Path:
    return path if dir_fd is None else path.name


def _open(path: Path, mode: int, dir_fd: int | None) -> int:
    text = shown(str(path))
    try:
        fd = os.open(_name(path, dir_fd), FLAGS, mode, dir_fd=dir_fd)
    except OSError as error:
        hint = "; remove it" if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO) else ""
        raise PidFileError(f"cannot open {text}: {error.strerror}{hint}") from error
    info = os.fstat(fd)
    # A file with a second name may be one of the system's, put there for root to write into.
    if not stat.S_ISREG(info.st_mode) or info.st_nlink > 1:
        os.close(fd)
        raise PidFileError(f"{text} is no file of its own (a fifo, or a second name of another file); remove it")
    return fd
