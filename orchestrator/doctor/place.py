"""
place - the directory of one doctor, PATH/.doctor/ID/: made, cleared, and what killed ones left

ID has the shape of a master's name: host, kernel, pid and its start, random digits. So a doctor that
was killed on this machine is known as dead at once; one of another machine by the filesystem's own
clock, an hour after it last changed its directory (a doctor beats, or ends within minutes).
Nothing is followed, and nothing removed whose name has another shape.

A dot name in a queue is nobody's message. All calls go through a System.
Raises: DoctorError where no directory can be made.
"""

from __future__ import annotations

import contextlib
import errno
import os

from orchestrator.doctor import DoctorError
from orchestrator.doctor.apart import error_text
from workers.queues.names import parse_master, shown
from workers.system import System

NAME = ".doctor"
LEFT_AFTER_S = 3600.0
MAKING_TRIES = 5
LEAVING_TRIES, LEAVING_S = 20, 0.1
SAMPLE = 8
READ_MOST = 1 << 20  # bytes of a file that somebody else wrote
FULL = (errno.ENOSPC, errno.EDQUOT)

_WHY = {
    errno.ENOENT: "it does not exist; name a directory of the filesystem in question",
    errno.ENOTDIR: "it is no directory; name a directory of the filesystem in question",
    errno.EACCES: "this user may not write there; run it as the user of the pool",
    errno.EPERM: "this user may not write there; run it as the user of the pool",
    errno.EROFS: "the filesystem is mounted read-only; a queue needs one that can be written to",
    errno.ENOSPC: "the filesystem is full; make room for a thousand small files",
    errno.EDQUOT: "the quota is used up; make room for a thousand small files",
    errno.ESTALE: "the mount has lost its directory (ESTALE); mount it again",
    errno.ENOTCONN: "the mount has lost its server (ENOTCONN); mount it again",
}


def make(system: System, path: str, id_: str) -> str:
    """Make PATH/.doctor/ID and answer it, after removing what killed doctors left beside it. Raises DoctorError."""
    top = os.path.join(path, NAME)
    own = os.path.join(top, id_)
    try:
        if not system.is_directory(path, is_followed=True):
            system.stat(path)  # says what is wrong
            raise NotADirectoryError(errno.ENOTDIR, "", path)
        for _ in range(MAKING_TRIES):
            with contextlib.suppress(FileExistsError):
                system.mkdir(top)
            if not system.is_directory(top):
                raise DoctorError(f"{shown(top)} is in the way: it is no directory; remove it")
            try:
                system.mkdir(own)
            except FileNotFoundError:  # RACE: another doctor has just ended. See test_a_doctor_ends_as_another_begins.
                continue
            break
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM) and error.filename == own:
            raise DoctorError(
                f"{shown(top)} is another user's: a doctor of that user runs, or was killed; remove it then"
            ) from error
        why = _WHY.get(error.errno or 0)
        if why is None or (error.errno == errno.ENOENT and error.filename != path):
            why = f"no directory can be made there: {error_text(error)}"
        raise DoctorError(f"cannot examine {shown(path)}: {why}") from error
    sweep(system, top, id_)
    return own


def sweep(system: System, top: str, id_: str) -> int:
    """Remove what doctors that were killed left in *top*; how many. *id_* is our own."""
    removed = 0
    now_s: float | None = None
    for name in system.listdir(top):
        master = parse_master(name)
        if name == id_ or master is None:
            continue
        _, kernel8, pid, start = master
        path = os.path.join(top, name)
        with contextlib.suppress(OSError):
            if kernel8 == (parse_master(id_) or ("", ""))[1]:
                is_left = system.is_alive(pid, start) is False
            else:
                now_s = _now_s(system, os.path.join(top, id_)) if now_s is None else now_s
                is_left = system.lstat(path).st_ctime < now_s - LEFT_AFTER_S
            if is_left:
                clear(system, path)
                removed += 1
    return removed


def clear(system: System, path: str) -> None:
    """Remove *path* and what is in it, as far as that can be done. Follows nothing. Again does nothing."""
    with contextlib.suppress(OSError):
        if not system.is_directory(path):  # a link above all: what is behind it is none of ours
            system.unlink(path)
            return
        for name in system.listdir(path):
            clear(system, os.path.join(path, name))
    with contextlib.suppress(OSError):
        system.rmdir(path)


def leave(system: System, own: str) -> bool:
    """Remove our directory, and .doctor/ when nobody else is in it; False when something of ours is left."""
    for _ in range(LEAVING_TRIES):
        clear(system, own)
        with contextlib.suppress(OSError):
            system.rmdir(os.path.dirname(own))
        try:
            system.lstat(own)
        except FileNotFoundError:
            return True
        except OSError as error:
            return error.errno == errno.ESTALE
        # RACE: another doctor has just looked into it, for which it makes a file, or our own beat comes late.
        # See test_a_look_of_a_peer_does_not_keep_a_doctor_from_leaving.
        system.sleep(LEAVING_S)
    return False


def unless_full(error: OSError) -> None:
    """Raise *error* where there is no room: that says nothing of the call, and nothing more should be tried."""
    if error.errno in FULL:
        raise error


def latency_s(system: System, own: str) -> float:
    """Seconds of one operation, the median of a few. Raises OSError."""
    taken = []
    for number in range(SAMPLE):
        path = os.path.join(own, f"first.{number}")
        before_ns = system.boottime_ns()
        write(system, path, b"")
        system.unlink(path)
        taken.append(system.boottime_ns() - before_ns)
    return sorted(taken)[SAMPLE // 2] / 2e9


def write(system: System, path: str, data: bytes) -> os.stat_result:
    """Make the file *path*, which must not be there; its status when it was written. Raises OSError."""
    fd = system.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        while data:
            data = data[system.write(fd, data) :]
        return system.fstat(fd)
    finally:
        system.close(fd)


def move(system: System, source: str, target: str) -> None:
    """Rename *source*, which nobody else moves, to *target*, whatever is answered. Raises OSError when it did not."""
    try:
        system.rename(source, target)
    except FileNotFoundError:  # RACE: the reply was lost, and it was sent again. See test_a_lie_is_found.
        if os.path.basename(target) not in system.listdir(os.path.dirname(target)):
            raise


def read(system: System, path: str) -> bytes:
    """The file *path*, as far as READ_MOST. Raises OSError."""
    fd = system.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        found = b""
        while len(found) < READ_MOST and (part := system.read(fd, READ_MOST - len(found))):
            found += part
        return found
    finally:
        system.close(fd)


def make_directory(system: System, *parts: str) -> str:
    """Make the directory *parts* unless it is there; its path. Raises OSError."""
    path = os.path.join(*parts)
    with contextlib.suppress(FileExistsError):
        system.mkdir(path)
    return path


def _now_s(system: System, own: str) -> float:
    """The filesystem's time."""
    path = os.path.join(own, "now")
    found = write(system, path, b"").st_ctime
    system.unlink(path)
    return found
