"""
rundir - the directory of one running pool: who is master, and where its board and socket are

    RUN_DIR/NAME/pid      "pid start\\n"; locked by the master for as long as it lives
    RUN_DIR/NAME/board    what every process of the pool says of itself
    RUN_DIR/NAME/control  the master's socket

One master a name: the lock of its pid file (pidfile). Readers never touch the lock;
they compare the process's start time, because a pid is used again.

Limits: closing ANY descriptor of the pid file in the master drops its lock, so the
master never calls running() or find(). A network filesystem is refused: the board
is shared memory, and locks and start times of another host mean nothing here.
Long because the master and its readers are two sides of one directory.
See also: pidfile (the lock), control (the socket), workers.board, workers.system (start times).
"""

from __future__ import annotations

import contextlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from orchestrator.identity import rights_of
from orchestrator.pidfile import PID_BYTES_MAX, PidFile, PidFileError, PidFileHeld
from orchestrator.places import make_directory, open_parent, parent_of
from workers.errors import OrchestratorError
from workers.queues.names import shown
from workers.system import SYSTEM, System
from workers.trust import is_everybodys_to_rename

NAME_BYTES_MAX = 64


class RunDirError(OrchestratorError):
    """The run directory cannot be used; the text names it and what to do."""


class AlreadyRunning(RunDirError):
    """A living master has this name on this host; *pid* is its process, 0 when it could not be read."""

    def __init__(self, text: str, pid: int) -> None:
        super().__init__(text)
        self.pid = pid


class NotRunning(RunDirError):
    """There is no such pool here now."""

    exit_code = 3


class Ambiguous(RunDirError):
    """Several pools run and none was named; *names* are theirs."""

    exit_code = 2

    def __init__(self, text: str, names: tuple[str, ...]) -> None:
        super().__init__(text)
        self.names = names


@dataclass(frozen=True, slots=True)
class Running:
    """A living master, as a reader sees it. *start* is in clock ticks since boot."""

    name: str
    pid: int
    start: int
    directory: Path

    @property
    def board_path(self) -> Path:
        """Where its board is."""
        return self.directory / "board"

    @property
    def control_path(self) -> Path:
        """Where its socket is."""
        return self.directory / "control"


class RunDir:
    """The directory of the pool whose master this process is. Made by acquire()."""

    def __init__(self, directory: Path, pid_file: PidFile) -> None:
        self.path = directory
        self._pid_file = pid_file

    @property
    def board_path(self) -> Path:
        """Where the board belongs."""
        return self.path / "board"

    @property
    def control_path(self) -> Path:
        """Where the control socket belongs; may be longer than a socket's address can be."""
        return self.path / "control"

    @classmethod
    def acquire(cls, run_dir: Path, name: str, system: System = SYSTEM) -> RunDir:
        """
        Become the master of pool *name*, until release() or death.

        Makes what is missing of the directories (0700; above root's own for everybody to pass). Raises
        AlreadyRunning, or RunDirError for a directory that somebody else could write into. Never blocks.
        """
        _check_name(name)
        parent = Path(os.path.abspath(run_dir))
        directory = parent / name
        # The parent may be root's (systemd makes it); our own part must be ours alone.
        os.close(_open_directory(parent, {os.geteuid(), 0}, _parent_mode()))
        directory_fd = _open_directory(directory, {os.geteuid()})
        try:
            kind = system.network_filesystem(str(directory))
            if kind is not None:
                raise RunDirError(
                    f"{shown(str(directory))} is on a network filesystem ({kind}), where shared memory and locks cannot"
                    " be trusted; give a local directory with --run-dir, such as /run or /tmp"
                )
            return cls(directory, _pid_file(directory_fd, directory, name, system))
        except RunDirError:
            # RACE: the master before us has taken its empty directory away since we opened it; it is made anew.
            # See test_a_directory_that_its_last_master_removes_meanwhile_is_made_anew.
            if os.fstat(directory_fd).st_nlink:
                raise
            return cls.acquire(run_dir, name, system)
        finally:
            os.close(directory_fd)

    def release(self) -> None:
        """Take the socket, the board and the pid file away. Does nothing in a forked child, nor the second time."""
        if not self._pid_file.is_ours:
            return
        # ORDER: the pid file goes last, else the next master could have put its own files there already.
        # See test_a_released_name_can_be_acquired_again.
        for name in ("control", "board"):
            with contextlib.suppress(OSError):
                os.unlink(self.path / name)
        self._pid_file.release()
        with contextlib.suppress(OSError):
            os.rmdir(self.path)  # when nothing is kept in it


def prepare(run_dir: Path, name: str, owner: tuple[int, int] | None = None) -> None:
    """
    Make the directory of pool *name*, for user and group *owner* where these are not our own.

    Before rights are given up. Raises RunDirError.
    """
    _check_name(name)
    parent = Path(os.path.abspath(run_dir))
    uid, gid = owner or (os.geteuid(), os.getegid())
    parent_fd = _open_directory(parent, {os.geteuid(), uid, 0}, _parent_mode())
    try:
        if owner is not None:
            _check_passage(parent, uid, gid)
        with contextlib.suppress(FileExistsError):
            if os.fstat(parent_fd).st_uid == os.geteuid():
                make_directory(name, 0o700, parent_fd)
                os.chown(name, uid, gid, dir_fd=parent_fd, follow_symlinks=False)
            else:
                # In a directory of that user nothing would be safe to give away: he could have put another there.
                with rights_of(uid, gid):
                    make_directory(name, 0o700, parent_fd)
    except OSError as error:
        text = f"cannot make {shown(str(parent / name))}: {error.strerror}; give another --run-dir"
        raise RunDirError(text) from error
    finally:
        os.close(parent_fd)
    os.close(_open_directory(parent / name, {uid}))


def _parent_mode() -> int:
    """Of what is made above a pool's directory: below root's there are the pools of other users too."""
    return 0o755 if os.geteuid() == 0 else 0o700


def _check_passage(directory: Path, uid: int, gid: int) -> None:
    with rights_of(uid, gid):
        closed = [
            one for one in (*reversed(directory.parents), directory) if not os.access(one, os.X_OK, effective_ids=True)
        ]
    if closed:
        mode = stat.S_IMODE(os.stat(closed[0]).st_mode)
        text = shown(str(closed[0]))
        raise RunDirError(
            f"user {uid} may not enter {text} (mode {mode:o}); chmod o+x {text}, or give another --run-dir"
        )


def running(run_dir: Path, system: System = SYSTEM) -> list[Running]:
    """Every pool of *run_dir* whose master lives, by name. Readers only, never the master."""
    try:
        # What no pool can be called was made by somebody else, and would be told of in the messages about the others.
        names = sorted(filter(_is_name, os.listdir(run_dir)))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise RunDirError(f"cannot look for pools in {shown(str(run_dir))}: {error.strerror}") from error
    found = (_read(Path(run_dir) / name, system) for name in names)
    return [one for one in found if one is not None]


def find(run_dir: Path, name: str | None = None, system: System = SYSTEM) -> Running:
    """
    Find pool *name*, or the only one there is. Readers only, never the master.

    Raises NotRunning, or Ambiguous when several run and none was named.
    """
    where = shown(str(run_dir))
    if name is not None:
        _check_name(name)
        one = _read(Path(run_dir) / name, system)
        if one is None:
            others = ", ".join(other.name for other in running(run_dir, system)) or "none"
            raise NotRunning(f"no pool called {shown(name)} is running in {where} (running: {others})")
        return one
    found = running(run_dir, system)
    if not found:
        raise NotRunning(f"no pool is running in {where}; if it has another run directory, give --run-dir")
    if len(found) > 1:
        names = tuple(one.name for one in found)
        raise Ambiguous(f"several pools are running in {where}: {', '.join(names)}; choose one with --name", names)
    return found[0]


def _is_name(name: str) -> bool:
    """Whether a pool can be called so."""
    size = len(os.fsencode(name))
    return 0 < size <= NAME_BYTES_MAX and name[0] != "." and "/" not in name and name.isprintable()


def _check_name(name: str) -> None:
    if not _is_name(name):
        raise RunDirError(
            f"a pool cannot be called '{shown(name)}': at most {NAME_BYTES_MAX} printable characters, no slash and no"
            " leading dot; give another --name"
        )


def _open_directory(directory: Path, owners: set[int], mode: int = 0o700) -> int:
    """Make *directory* where it is missing, open it, and refuse what somebody else could write into."""
    text = shown(str(directory))
    try:
        parent, name = open_parent(directory, mode)
        try:
            above = os.fstat(parent).st_mode
            with contextlib.suppress(FileExistsError):  # made by another meanwhile; looked at below
                make_directory(name, mode, parent)
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        finally:
            os.close(parent)
    except NotADirectoryError as error:
        raise RunDirError(f"{text} is a symbolic link or no directory; remove it, or give another --run-dir") from error
    except OSError as error:
        raise RunDirError(f"cannot use the run directory {text}: {error.strerror}; give another --run-dir") from error
    info = os.fstat(fd)
    why = None
    if info.st_uid not in owners:
        why = f"it belongs to another user (uid {info.st_uid})"
    elif is_everybodys_to_rename(above):
        # Its files are made by their paths, and whoever puts another directory there has them made elsewhere.
        why = f"everybody may write into {shown(str(directory.parent))} and could put another in its place"
    elif info.st_mode & 0o022:
        why = f"others may write into it (mode {stat.S_IMODE(info.st_mode):o}; chmod go-w would cure that)"
    if why is not None:
        os.close(fd)
        raise RunDirError(f"the run directory {text} is refused: {why}; give a directory of your own with --run-dir")
    return fd


def _pid_file(directory_fd: int, directory: Path, name: str, system: System) -> PidFile:
    """The pid file, locked by this process and with its number and start time in it."""
    pid = system.getpid()
    content = b"%d %d\n" % (pid, system.start_ticks(pid) or 0)
    try:
        pid_file = PidFile.open(directory / "pid", 0o600, dir_fd=directory_fd)
        pid_file.acquire(content)
    except PidFileHeld as error:
        who = f"as process {error.pid}" if error.pid else "as another process"
        raise AlreadyRunning(
            f"pool {shown(name)} is running already {who} ({shown(str(directory))}); stop it with"
            f" 'orchestrator stop --name {shown(name)}', or give this one another --name",
            error.pid,
        ) from error
    except PidFileError as error:
        raise RunDirError(f"{error}; give another --run-dir") from error
    return pid_file


def _parse(content: bytes) -> tuple[int, int] | None:
    fields = content.partition(b"\n")[0].split()
    if len(fields) != 2 or not all(field.isdigit() for field in fields):
        return None
    pid, start = int(fields[0]), int(fields[1])
    return (pid, start) if 0 < pid < 1 << 31 else None


def _read(directory: Path, system: System) -> Running | None:
    """The living master of *directory*, or None."""
    try:
        # Through no link that the owner of the place could have made, or he could have root stop another pool than
        # the one that was named.
        with parent_of(directory / "pid") as place:
            fd = os.open("pid", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=place)
    except OSError:
        return None
    try:
        info = os.fstat(fd)
        found = _parse(os.read(fd, PID_BYTES_MAX)) if stat.S_ISREG(info.st_mode) else None
    except OSError:
        return None
    finally:
        os.close(fd)
    # None: it cannot be said (hidepid). Then it counts as running, for then nobody starts a second one in its place.
    if found is None or system.is_alive(*found) is False or not _is_trusted(info.st_uid, found[0]):
        return None
    return Running(directory.name, *found, directory)


def _is_trusted(owner: int, pid: int) -> bool:
    """Whether the writer of a pid file may name *pid*: else a user could have root stop any process for him."""
    if owner in (os.geteuid(), 0):
        return True
    try:
        return os.stat(f"/proc/{pid}").st_uid == owner
    except OSError:
        return False
