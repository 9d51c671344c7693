"""
system - the one door to the kernel: directory calls, clocks, randomness, process liveness

A queue calls nothing of os, time or random by itself; it asks the System it was
given, so that a test can put its own in place: fail the third call, move the
clock, or make every call a scheduling point.

Long because: each call is a few lines, and a test replaces them in one place.
Source: proc(5) for liveness (pid alone is not enough, it is used again; the start
time tells two processes apart), statfs(2) and linux/magic.h for the kind of a filesystem, mountinfo of proc(5)
for what FUSE serves.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import hashlib
import mmap
import os
import re
import select
import signal
import stat
import sys
import termios
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workers.posix_mq import Access, Attributes, Mq

# By the number that statfs(2) gives. On a local one this kernel alone makes changes, and answers for them.
LOCAL_FILESYSTEMS = frozenset({
    0xEF53, 0x58465342, 0x9123683E, 0x01021994, 0x794C7630,  # ext2 to 4, xfs, btrfs, tmpfs, overlay
    0x858458F6, 0xF2F52010, 0x2FC12FC1, 0xCA451A4E, 0x3153464A,  # ramfs, f2fs, zfs, bcachefs, jfs
    0x52654973, 0x52345362, 0x3434, 0x24051905, 0x72B6,  # reiserfs, reiser4, nilfs, ubifs, jffs2
    0x7366746E, 0x5346544E, 0x15013346,  # ntfs (two), udf. Not fat and exfat, which have no ctime
})  # fmt: skip
# Others make changes too. Only a name for the log: whatever is not local counts as one of these.
NETWORK_FILESYSTEMS = {
    0x6969: "nfs", 0x517B: "smb", 0xFF534D42: "cifs", 0xFE534D42: "smb2", 0x65735546: "fuse", 0x0BD00BD0: "lustre",
    0x47504653: "gpfs", 0x00C36400: "ceph", 0x01021997: "9p", 0x5346414F: "afs", 0x6B414653: "afs", 0x73757245: "coda",
    0x7461636F: "ocfs2", 0x01161970: "gfs2", 0x19830326: "beegfs", 0x20030528: "orangefs", 0xAAD7AAEA: "panfs",
    0xBEEFDEAD: "snfs", 0x013111A8: "ibrix", 0x61636673: "acfs", 0xA501FCF5: "vxfs", 0x564C: "ncp",
    0x4D44: "fat", 0x2011BAB0: "exfat", 0x786F4256: "vboxsf",
    0xBACBACBC: "vmhgfs", 0x7C7C6673: "prl_fs", 0x00C0FFEE: "hostfs",
}  # fmt: skip
FUSE = 0x65735546
AT_FDCWD = -100
LISTED = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC  # how a directory is opened
# ext4 (and 3 and 2), xfs, btrfs: what their writing back failed at is kept for syncfs. An overlay loses it.
SYNCED_AS_ONE = frozenset({0xEF53, 0x58465342, 0x9123683E})
SYNCFS_SINCE = (5, 17)  # Linux; from 5.8 on an error of the data, only from 5.17 on one of the journal
PROC_START_FIELD = 19  # of /proc/PID/stat, counted after the parenthesis that ends the command's name


READ_MAX = 1 << 30  # bytes: nobody reads more at once, for that takes several times the memory
TOO_LARGE = f"is larger than {READ_MAX >> 20} MiB"


class NotDurable(OSError):
    """What an fsync failed with when the message could be seen already: it is there, and a power cut may take it."""


class System:
    """The real kernel. Every method is one system call, or says so."""

    is_anchored = False  # see anchored

    rename = staticmethod(os.rename)
    link = staticmethod(os.link)
    unlink = staticmethod(os.unlink)
    mkdir = staticmethod(os.mkdir)
    rmdir = staticmethod(os.rmdir)
    open = staticmethod(os.open)
    close = staticmethod(os.close)
    read = staticmethod(os.read)
    write = staticmethod(os.write)
    pread = staticmethod(os.pread)
    pwrite = staticmethod(os.pwrite)
    truncate = staticmethod(os.ftruncate)
    chmod = staticmethod(os.chmod)
    fstat = staticmethod(os.fstat)
    lstat = staticmethod(os.lstat)
    stat = staticmethod(os.stat)
    fsync = staticmethod(os.fsync)
    statvfs = staticmethod(os.statvfs)
    getpid = staticmethod(os.getpid)
    geteuid = staticmethod(os.geteuid)
    getppid = staticmethod(os.getppid)
    random_bytes = staticmethod(os.urandom)
    sleep = staticmethod(time.sleep)
    wall_ns = staticmethod(time.time_ns)

    @staticmethod
    def utime(path: str, times_ns: tuple[int, int] | None = None, *, dir_fd: int | None = None) -> None:
        """Set access and modification time of *path* itself, no link followed; None is the filesystem's own now."""
        if times_ns is None:
            os.utime(path, dir_fd=dir_fd, follow_symlinks=False)
        else:
            os.utime(path, ns=times_ns, dir_fd=dir_fd, follow_symlinks=False)

    def is_directory(self, path: str, *, is_followed: bool = False) -> bool:
        """
        Whether *path* is a directory; a symbolic link to one only when *is_followed*.

        Raises OSError, but not for what is not there or cannot be a path.
        """
        try:
            found = self.stat(path) if is_followed else self.lstat(path)
        except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: no path can be called so
            return False
        return stat.S_ISDIR(found.st_mode)

    @staticmethod
    def listdir(path: str) -> list[str]:
        """The names in *path*, as they are on the server now. Five calls or more."""
        with listing(path) as fd:
            return os.listdir(fd)

    @staticmethod
    @contextlib.contextmanager
    def scandir(path: str) -> Iterator[Iterator[os.DirEntry[str]]]:
        """The entries of *path*, a bit at a time, as they are on the server now; each without its directory's path."""
        with listing(path) as fd, os.scandir(fd) as entries:
            yield entries

    @staticmethod
    def rename_noreplace(source: str, target: str) -> None:
        """renameat2(2) with RENAME_NOREPLACE. Raises OSError: EEXIST, or EINVAL and ENOSYS where there is none."""
        rename_with(1, source, target)

    @staticmethod
    def rename_exchange(source: str, target: str) -> None:
        """renameat2(2) with RENAME_EXCHANGE. Raises OSError: ENOENT, or EINVAL and ENOSYS where there is none."""
        rename_with(2, source, target)

    @staticmethod
    def lock(fd: int) -> None:
        """flock(2): lock what *fd* has open, until it is closed. Raises BlockingIOError when another has it locked."""
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    # Nanoseconds since boot, suspended time included: the same for all processes of a host.
    boottime_ns = staticmethod(functools.partial(time.clock_gettime_ns, time.CLOCK_BOOTTIME))

    @staticmethod
    def unread(fd: int) -> int:
        """Bytes that lie in pipe *fd*."""
        return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), sys.byteorder)

    @staticmethod
    def wait_writable(fd: int, timeout_s: float) -> None:
        """Wait until pipe *fd* has room, at most *timeout_s*. Two calls."""
        poller = select.poll()
        poller.register(fd, select.POLLOUT)
        poller.poll(timeout_s * 1000)

    @staticmethod
    def memory_file(data: bytes) -> int:
        """A file of no name that holds *data*, open, at its beginning. For what is no file of its own."""
        fd = os.memfd_create("message", os.MFD_CLOEXEC)
        try:
            written = 0
            while written < len(data):
                written += os.pwrite(fd, data[written:], written)
        except BaseException:
            os.close(fd)
            raise
        return fd

    @staticmethod
    def map_file(fd: int, size: int) -> mmap.mmap:
        """Map the first *size* bytes of *fd*, shared, after giving them their place: no hole ends us by SIGBUS."""
        os.posix_fallocate(fd, 0, size)
        return mmap.mmap(fd, size)

    @staticmethod
    def lock_memory(address: int, size: int) -> None:
        """Keep these bytes resident as long as they are mapped here. Raises OSError; see ulimit -l."""
        try:
            failed = _libc().mlock(ctypes.c_void_p(address), ctypes.c_size_t(size))
        except AttributeError:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from None
        if failed:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    @staticmethod
    def lock_file(fd: int) -> None:
        """
        Take the record lock of the whole of *fd*; BlockingIOError when another process has it.

        It ends with the process, or when the process closes any descriptor of that file; a fork has it not.
        """
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except PermissionError as error:  # the other number that says so
            raise BlockingIOError(errno.EAGAIN, error.strerror) from error

    def fsync_directory(self, path: str) -> None:
        """Make the names in *path* durable. Three calls."""
        fd = self.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self.fsync(fd)
        finally:
            self.close(fd)

    def fsync_entered(self, directory: str) -> None:
        """fsync_directory(), after the name of a message was made there. Raises NotDurable. Three calls."""
        try:
            self.fsync_directory(directory)
        except OSError as error:
            raise NotDurable(error.errno, error.strerror, directory) from error

    @staticmethod
    def syncfs(fd: int) -> None:
        """Make durable all that anybody has written to the filesystem of *fd*. Raises OSError; see syncs_as_one."""
        if _libc().syncfs(fd):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def syncs_as_one(self, path: str) -> bool:
        """
        Whether syncfs() there is as good as an fsync of each file.

        That is: it reports whatever failed since its descriptor was opened, and nobody forbids it.
        """
        if filesystem_magic(path) not in SYNCED_AS_ONE or _release() < SYNCFS_SINCE:
            return False
        try:
            self.syncfs(-1)
        except (OSError, AttributeError) as error:  # ENOSYS or EPERM of a filter; a libc without it
            return getattr(error, "errno", None) == errno.EBADF
        return False

    # POSIX message queues; posix_mq is imported where one is opened, for most processes never do.

    @staticmethod
    def mq_open(
        name: str,
        *,
        create: bool = False,
        exclusive: bool = False,
        max_messages: int | None = None,
        max_size: int | None = None,
        mode: int = 0o600,
        access: Access = "rw",
    ) -> Mq:
        """See posix_mq.Mq.open. Up to four calls."""
        from workers.posix_mq import Mq  # noqa: PLC0415

        return Mq.open(
            name,
            create=create,
            exclusive=exclusive,
            max_messages=max_messages,
            max_size=max_size,
            mode=mode,
            access=access,
        )

    @staticmethod
    def mq_attributes(queue: Mq) -> Attributes:
        """See posix_mq.Mq.attributes."""
        return queue.attributes()

    @staticmethod
    def mq_send(queue: Mq, data: bytes, priority: int = 0) -> None:
        """See posix_mq.Mq.send."""
        queue.send(data, priority)

    @staticmethod
    def mq_send_within(queue: Mq, data: bytes, priority: int, until_s: float) -> None:
        """See posix_mq.Mq.send_within. Three calls."""
        queue.send_within(data, priority, until_s)

    @staticmethod
    def mq_receive(queue: Mq) -> tuple[bytes, int]:
        """See posix_mq.Mq.receive."""
        return queue.receive()

    @staticmethod
    def mq_receive_into(queue: Mq, body_address: int, size: int, priority_address: int) -> int:
        """See posix_mq.Mq.receive_into."""
        return queue.receive_into(body_address, size, priority_address)

    @staticmethod
    def mq_wait(queue: Mq, timeout_s: float | None, also: Iterable[int] = (), *, is_writer: bool = False) -> list[int]:
        """See posix_mq.Mq.wait_readable and wait_writable. Four calls, one more for each of *also*."""
        return (queue.wait_writable if is_writer else queue.wait_readable)(timeout_s, also)

    @staticmethod
    def mq_unlink(name: str) -> None:
        """See posix_mq.unlink."""
        from workers.posix_mq import unlink  # noqa: PLC0415

        unlink(name)

    def network_filesystem(self, path: str) -> str | None:
        """
        Name the network filesystem that holds *path*; None for a local one, and where there is nothing.

        What is not known to be local counts as a network's: there we look again where an answer may be wrong, and
        that costs a moment; the other way round it would cost messages. Raises OSError when a server does not answer.
        """
        try:
            number = _filesystem_number(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        if number == 0 or number in LOCAL_FILESYSTEMS:
            return None
        if number == FUSE:
            return _fuse_name(path)
        return NETWORK_FILESYSTEMS.get(number, f"an unknown filesystem ({number:#x})")

    def start_ticks(self, pid: int) -> int | None:
        """The start time of *pid*, clock ticks since boot; 0 when unreadable, None when there is no such process."""
        return start_ticks(pid)

    def is_alive(self, pid: int, start: int) -> bool | None:
        """True, False, or None when it cannot be said (hidepid, no /proc)."""
        found = start_ticks(pid)
        if found == 0:
            return None
        return found == start

    def is_stopped(self, pid: int) -> bool:
        """Whether *pid* was stopped by a signal (SIGSTOP, Ctrl-Z); a debugger's stop does not count."""
        return process_state(pid) == "T"

    def kernel8(self, host: str) -> str:
        """Eight hex digits that two processes share when each can see whether the other is alive."""
        return kernel8(host)

    def kill_session(self, session: int) -> int:
        """SIGKILL every process of *session*, where we may; how many were found. Reads /proc."""
        return kill_session(session)


@contextlib.contextmanager
def listing(path: str, *, dir_fd: int | None = None) -> Iterator[int]:
    """
    Open the directory *path* so that its listing is asked of the server, not taken from this kernel's memory.

    *path* is below the directory of *dir_fd*, where there is one, and then no link is followed.
    """
    flags = LISTED if dir_fd is None else LISTED | os.O_NOFOLLOW
    fd = os.open(path, flags, dir_fd=dir_fd)
    try:
        # RACE: another host changes it within the tick of the server's clock in which we listed it before. NFS v3 tells
        # by that time alone that a directory has changed, so what came then was not listed until the next change.
        # See test_what_comes_in_the_tick_of_a_listing_is_listed_all_the_same.
        with contextlib.suppress(OSError, AttributeError):  # not on Linux
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        yield fd
    except OSError as error:
        if error.filename == fd:
            error.filename = path
            if error.errno == errno.ESTALE:
                # RACE: another host removed it since we opened it. Asked for by its name it is not there.
                # See test_a_directory_that_another_host_removed_is_not_there.
                os.close(os.open(path, flags, dir_fd=dir_fd))
        raise
    finally:
        os.close(fd)


# Functions, not methods: a caller's own line names the call, which errors are worded by (see dirq.told).


def is_there(system: System, path: str) -> bool:
    """Whether *path* exists, no link followed. Raises OSError when that cannot be said. One call."""
    try:
        system.lstat(path)
    except FileNotFoundError:
        return False
    return True


def is_listed(system: System, path: str) -> bool:
    """
    Whether a fresh listing of its directory shows *path*; False when the directory is gone. Raises OSError. One call.

    On a network filesystem a stat may be answered from a cache, for half a minute: an NFS client takes a name that a
    rename should have made for missing, when it was told that the rename had failed. See
    test_after_a_lost_reply_a_stat_is_not_believed.
    """
    directory, name = os.path.split(path)
    try:
        return name in system.listdir(directory)
    except FileNotFoundError:
        return False


def is_stuck(system: System, path: str, error: PermissionError) -> bool:
    """
    Whether *error*, of a rename or unlink of *path*, says of it alone that it stays. Raises OSError. One call.

    So it is with what another user has put in a sticky directory (EPERM), and with a directory of his that is closed
    to us: a rename would have to write its "..".
    """
    found = system.lstat(path)
    return found.st_uid != system.geteuid() and (error.errno == errno.EPERM or stat.S_ISDIR(found.st_mode))


def remove(system: System, path: str) -> bool:
    """Unlink *path*; False when it was gone. Raises OSError. One call."""
    try:
        system.unlink(path)
    except FileNotFoundError:
        return False
    return True


def forget(system: System, path: str) -> None:
    """Unlink what nobody was promised and nobody waits for; if that fails, a sweep finds it. One call."""
    try:
        system.unlink(path)
    except OSError:
        return


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def rename_with(
    flags: int, source: str, target: str, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None
) -> None:
    """renameat2(2)."""
    old, new = (AT_FDCWD if fd is None else fd for fd in (src_dir_fd, dst_dir_fd))
    try:
        failed = _libc().renameat2(old, os.fsencode(source), new, os.fsencode(target), flags)
    except AttributeError:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), target) from None
    if failed:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)


def _release() -> tuple[int, ...]:
    """The first two numbers of the kernel's release; (0,) for one that has none."""
    found = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return (int(found[1]), int(found[2])) if found else (0,)


def filesystem_magic(path: str) -> int:
    """f_type of statfs(2) for *path*, 0 when it cannot be told."""
    try:
        return _filesystem_number(path)
    except OSError:
        return 0


def _filesystem_number(path: str) -> int:
    """See filesystem_magic; 0 where nobody may ask. Raises OSError."""
    buffer = ctypes.create_string_buffer(512)
    try:
        failed = _libc().statfs(os.fsencode(path), buffer)
    except AttributeError:  # no statfs in this libc
        return 0
    if failed:
        number = ctypes.get_errno()
        if number in (errno.ENOSYS, errno.EPERM):  # a filter of system calls
            return 0
        raise OSError(number, os.strerror(number), path)
    return int.from_bytes(buffer.raw[: ctypes.sizeof(ctypes.c_long)], "little") & 0xFFFFFFFF


def _fuse_name(path: str) -> str:
    """The kind of FUSE filesystem that holds *path*, such as fuse.sshfs; fuse where that is not told."""
    with contextlib.suppress(OSError):
        device = os.stat(path).st_dev
        mark = f"{os.major(device)}:{os.minor(device)}"
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                before, _, after = line.partition(" - ")
                if before.split()[2] == mark:
                    return after.split()[0]
    return NETWORK_FILESYSTEMS[FUSE]


def start_ticks(pid: int) -> int | None:
    """See System.start_ticks. A zombie counts as gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        # hidepid hides what is there; only the kernel's own word says that it is gone.
        return 0 if _answers(pid) else None
    except OSError:
        return 0
    return None if fields[0] in (b"Z", b"X") else int(fields[PROC_START_FIELD])


def _answers(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass
    return True


def process_state(pid: int) -> str | None:
    """The one letter of proc(5) for *pid*'s state, or None."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0].decode()
    except (OSError, IndexError):
        return None


def kernel8(host: str) -> str:
    """See System.kernel8: over boot id, pid and time namespace, and the host's name as configured."""
    parts = [host]
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        parts.append(file.read().strip())
    for namespace in ("pid", "time"):
        with contextlib.suppress(OSError):
            parts.append(os.readlink(f"/proc/self/ns/{namespace}"))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


def _processes_of_session(session: int) -> Iterator[int]:
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        pid = int(entry)
        # One call for each process of the machine; a file of /proc to open and take apart would cost forty of them.
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(pid) == session and process_state(pid) not in ("Z", "X", None):
                yield pid


def kill_session(session: int) -> int:
    """See System.kill_session. Repeats while new ones appear, for a program may fork while it is looked for."""
    count = 0
    for _ in range(10):
        found = [pid for pid in _processes_of_session(session) if pid != os.getpid()]
        if not found:
            break
        count += len(found)
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
    return count


def allow_late_timers(slack_s: float) -> None:
    """
    Let this thread's timers come up to *slack_s* late, so that the kernel wakes many processes at one time.

    The calling thread and what it forks. Source: prctl(2), PR_SET_TIMERSLACK.
    """
    with contextlib.suppress(AttributeError):
        _libc().prctl(29, ctypes.c_ulong(int(slack_s * 1e9)), 0, 0, 0)


def be_seen() -> None:
    """
    Let this process's user see it in /proc again, after it changed its user, as running a program would.

    Source: prctl(2), PR_SET_DUMPABLE.
    """
    with contextlib.suppress(AttributeError):
        _libc().prctl(4, 1, 0, 0, 0)


def die_with_parent(parent: int) -> None:
    """
    Ask the kernel to kill this process when the thread that forked it ends.

    *parent* is the pid remembered before the fork: when it is gone already, leave at once.
    Child only, first thing. Source: prctl(2), PR_SET_PDEATHSIG.
    """
    with contextlib.suppress(AttributeError):
        _libc().prctl(1, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)


SYSTEM = System()
