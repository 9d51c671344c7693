"""
kernel - workers.system.System over a simulated disk: what one simulated process may ask for

The queues' own code runs on it unchanged. Each call is handed to the world's
scheduler, which says when it is made and whether it succeeds: one by one (Straight),
in every order (explore), in virtual time (cluster), or failing at a given place.

See also: disk (what the calls do), ledger (what must hold).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from tests.sim.board import Board
from tests.sim.disk import FILE, Disk, Entry, Inode
from workers.system import System

START_NS = 1_780_000_000 * 10**9  # of the disk's clock
BOOT_NS = 1_000 * 10**9
UMASK = 0o022

# By path: another process can see these, or be seen by them.
NAMED = (
    "rename", "rename_noreplace", "rename_exchange", "link", "unlink", "mkdir", "rmdir", "listdir", "scandir", "open",
    "lstat", "stat", "statvfs", "utime", "chmod", "mkdir_at",
)  # fmt: skip
# By descriptor: of an inode that nobody else writes.
OPENED = ("close", "read", "write", "pread", "pwrite", "unread", "fstat", "fsync", "syncfs", "lock", "memory_file")
OTHERS = ("boottime_ns", "wall_ns", "sleep", "advance", "start_ticks")


class Crash(BaseException):
    """The process ends here: every call that it still makes on its way out ends it again, without effect."""


class Scheduler(Protocol):
    """Who decides about calls."""

    def call(self, process: Process, name: str, arguments: tuple[Any, ...], do: Callable[[], Any]) -> Any:
        """Make the call by *do()* now, later or never; its result, or raise what it shall fail with."""


class Straight:
    """Every call is made at once."""

    def call(self, process: Process, name: str, arguments: tuple[Any, ...], do: Callable[[], Any]) -> Any:
        """See Scheduler."""
        return do()


STRAIGHT = Straight()
OnWord = Callable[[str, tuple[int, int, int], Callable[[], int]], int]  # "reads" or "writes", which, do it: the value


class World:
    """
    One disk, its clock, and the processes on it. *moved_ns* has passed since the start. *exact* is the disk's.

    *has_flags*: its renames know not to replace, and to exchange; those of NFS do not.
    """

    def __init__(
        self,
        scheduler: Scheduler | None = None,
        *,
        network: str | None = None,
        exact: bool = False,
        counts_links: bool = True,
        has_flags: bool = True,
    ) -> None:
        self.has_flags = has_flags
        self.scheduler: Scheduler = scheduler or STRAIGHT
        self.network = network
        self.moved_ns = 0
        self.disk = Disk(lambda: START_NS + self.moved_ns, is_exact=exact, counts_links=counts_links)
        self.boards: list[Board] = []
        self.pools: list[Any] = []
        self.pipes: list[Pipe] = []  # those whose content is part of the world's state
        self.on_word: OnWord | None = None
        self.processes: dict[int, Process] = {}

    def process(self, pid: int, host: str = "one") -> Process:
        """A process of *host*. Two hosts do not see each other's."""
        process = self.processes[pid] = Process(self, pid, host)
        return process

    def is_alive(self, pid: int) -> bool:
        """Whether the process is there and did not crash."""
        return pid in self.processes and not self.processes[pid].has_crashed

    def fingerprint(self) -> int:
        """Equal for equal worlds: the disk, the boards, the pipes, the clock, who is alive."""
        boards = tuple([bytes(board.memory) for board in self.boards])
        crashed = tuple([process.has_crashed for process in self.processes.values()])
        pipes = tuple([tuple(pipe.packets) for pipe in self.pipes])
        return hash((self.disk.fingerprint(), boards, pipes, self.moved_ns, crashed))

    @contextlib.contextmanager
    def straight(self) -> Iterator[None]:
        """Inside, calls are made at once: for setting up, and for looking at what is left."""
        before, self.scheduler, self.on_word = (self.scheduler, self.on_word), STRAIGHT, None
        try:
            yield
        finally:
            self.scheduler, self.on_word = before


class Process(System):
    """
    The kernel as one process sees it: each call is handed on to the scheduler, which makes it by the method _CALL.

    Its random bits and inode numbers are its own, the same in every order.
    """

    def __init__(self, world: World, pid: int, host: str) -> None:
        self.world, self.pid, self.host = world, pid, host
        self.disk = world.disk
        self.has_crashed = False
        self.skew_ns = 0  # of its host's clock against the disk's
        self._drawn = 0
        self._files: dict[int, Inode | Pipe] = {}
        self._offsets: dict[int, int] = {}
        self._next_fd = 3

    # ---- names

    def _rename(self, source: str, target: str) -> None:
        self.disk.rename(self, source, target)

    def _rename_noreplace(self, source: str, target: str) -> None:
        self._check_flags()
        self.disk.rename(self, source, target, is_replacing=False)

    def _rename_exchange(self, source: str, target: str) -> None:
        self._check_flags()
        self.disk.exchange(self, source, target)

    def _check_flags(self) -> None:
        if not self.world.has_flags:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    def _link(self, source: str, target: str) -> None:
        self.disk.link(self, source, target)

    def _unlink(self, path: str) -> None:
        self.disk.unlink(self, path)

    def _mkdir(self, path: str, mode: int = 0o777) -> None:
        self.disk.mkdir(self, path, mode & ~UMASK)

    def _mkdir_at(self, directory: Inode, name: str) -> None:
        """No call of a System: what mkdir does once it has looked *directory* up, wherever that is by now."""
        for path in [path for path, inode in self.disk.directories.items() if inode is directory]:
            return self.disk.mkdir(self, f"{path}/{name}", 0o777 & ~UMASK)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)

    def _rmdir(self, path: str) -> None:
        self.disk.rmdir(self, path)

    def _listdir(self, path: str) -> list[str]:
        return sorted(self.disk.directory(path).entries)  # in one order, or equal worlds would be told apart by it

    def _scandir(self, path: str) -> Entries:
        return Entries(Entry(name, inode.kind) for name, inode in sorted(self.disk.directory(path).entries.items()))

    def _lstat(self, path: str) -> os.stat_result:
        return self.disk.inode(path).result()

    _stat = _lstat

    def _utime(self, path: str, times_ns: tuple[int, int] | None = None) -> None:
        self.disk.utime(self, path, times_ns)

    def _chmod(self, what: str | int, mode: int) -> None:
        self.disk.chmod(self, self.opened(what) if isinstance(what, int) else self.disk.inode(what), mode)

    def _statvfs(self, path: str) -> os.statvfs_result:
        return os.statvfs_result((4096, 4096, 10**6, 10**6, 10**6, 10**6, 10**6, 10**6, 0, 255))

    # ---- files

    def _open(self, path: str, flags: int, mode: int = 0o777) -> int:
        return self.hold(self.disk.open(self, path, flags, mode & ~UMASK))

    def hold(self, what: Inode | Pipe) -> int:
        """A descriptor of *what*; a pipe is inherited."""
        fd, self._next_fd = self._next_fd, self._next_fd + 1
        self._files[fd], self._offsets[fd] = what, 0
        return fd

    def opened(self, fd: int) -> Inode:
        """What lies behind *fd*, without a call."""
        file = self._files[fd]
        assert isinstance(file, Inode)
        return file

    def inode(self, fd: object) -> Inode | None:
        """The same, or None where it is a pipe's, or no descriptor."""
        file = self._files.get(fd) if isinstance(fd, int) else None
        return file if isinstance(file, Inode) else None

    def _close(self, fd: int) -> None:
        file = self._file(fd)
        if isinstance(file, Inode) and file.locker is self:  # nobody opens one twice
            file.locker = None
        del self._files[fd], self._offsets[fd]

    def _lock(self, fd: int) -> None:
        file = self.opened(fd)
        if file.locker not in (None, self) and not file.locker.has_crashed:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        file.locker = self

    def _memory_file(self, data: bytes) -> int:
        return self.hold(Inode((self.pid, -1), FILE, 0, 0, data))

    def _file(self, fd: int) -> Any:
        if fd not in self._files:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return self._files[fd]

    def _read(self, fd: int, size: int) -> bytes:
        file = self._file(fd)
        if isinstance(file, Pipe):
            return file.take()
        start = self._offsets[fd]
        data: bytes = file.data[start : start + size]
        self._offsets[fd] = start + len(data)
        return data

    def _write(self, fd: int, data: bytes) -> int:
        file = self._file(fd)
        return file.add(data) if isinstance(file, Pipe) else self.disk.write(self, file, data)

    def _pread(self, fd: int, size: int, start: int) -> bytes:
        return bytes(self._file(fd).data[start : start + size])

    def _pwrite(self, fd: int, data: bytes, start: int) -> int:
        return self.disk.write(self, self._file(fd), data, start)

    def _unread(self, fd: int) -> int:
        return sum(map(len, self._file(fd).packets))

    def _fstat(self, fd: int) -> os.stat_result:
        result: os.stat_result = self._file(fd).result()
        return result

    def _fsync(self, fd: int) -> None:
        self.disk.sync(self, self._file(fd))

    def _syncfs(self, fd: int) -> None:
        self.disk.sync(self, self._file(fd), "syncfs")

    def pipe(self, fd: int) -> Pipe | None:
        """The pipe behind *fd*, without a call; None where there is none."""
        file = self._files.get(fd)
        return file if isinstance(file, Pipe) else None

    def descriptors(self) -> list[Any]:
        """What is held open, pipes left out."""
        return [file for file in self._files.values() if not isinstance(file, Pipe)]

    # ---- clocks

    def _boottime_ns(self) -> int:
        return BOOT_NS + self.world.moved_ns

    def _wall_ns(self) -> int:
        return START_NS + self.world.moved_ns + self.skew_ns

    def _advance(self, seconds: float) -> None:
        """No call of a System: so much time passes for everybody."""
        self.world.moved_ns += int(seconds * 1e9)

    def _sleep(self, seconds: float) -> None:
        pass  # where time passes, a scheduler says so

    def wait_writable(self, fd: int, timeout_s: float) -> None:
        """See System."""
        self.sleep(timeout_s)

    # ---- the process itself

    def random_bytes(self, count: int) -> bytes:  # type: ignore[override]
        """Never the same twice, and by the process's own history alone."""
        self._drawn += 1
        return hashlib.blake2b(f"{self.pid} {self._drawn}".encode(), digest_size=count).digest()

    def getpid(self) -> int:  # type: ignore[override]
        """Its number."""
        return self.pid

    def geteuid(self) -> int:  # type: ignore[override]
        """The one user of a simulated machine."""
        return 0

    def syncs_as_one(self, path: str) -> bool:
        """Local filesystems here are of the good kind."""
        return self.world.network is None

    def network_filesystem(self, path: str) -> str | None:
        """The world's."""
        return self.world.network

    def kernel8(self, host: str) -> str:
        """By the host's name."""
        return hashlib.sha256(host.encode()).hexdigest()[:8]

    def _start_ticks(self, pid: int) -> int | None:
        return pid + 1 if self.world.is_alive(pid) else None  # no number is used again

    def is_alive(self, pid: int, start: int) -> bool | None:
        """See System."""
        return bool(self.start_ticks(pid) == start)

    def is_stopped(self, pid: int) -> bool:
        """Nobody is."""
        return False

    def kill_session(self, session: int) -> int:
        """Nothing is left of a crashed process here."""
        return 0


def _handed_on(name: str) -> Callable[..., Any]:
    inner = f"_{name}"

    def call(process: Process, *arguments: Any) -> Any:
        if process.has_crashed:
            raise Crash
        do = getattr(process, inner)
        scheduler = process.world.scheduler
        if scheduler is STRAIGHT:
            return do(*arguments)
        return scheduler.call(process, name, arguments, lambda: do(*arguments))

    return call


for _name in (*NAMED, *OPENED, *OTHERS):
    setattr(Process, _name, _handed_on(_name))


class Entries(list[Entry]):
    """What scandir(3) gives, all at once."""

    def __enter__(self) -> Iterator[Entry]:
        return iter(self)

    def __exit__(self, *_: object) -> None:
        pass


class Pipe:
    """A pipe in packet mode."""

    def __init__(self, room: int = 16) -> None:
        self.packets: list[bytes] = []
        self._room = room

    def take(self) -> bytes:
        """The oldest packet. Raises BlockingIOError."""
        if not self.packets:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return self.packets.pop(0)

    def add(self, packet: bytes) -> int:
        """One packet. Raises BlockingIOError."""
        if len(self.packets) >= self._room:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        self.packets.append(bytes(packet))
        return len(packet)
