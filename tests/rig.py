"""
rig - a spool queue with pools on it, on a real filesystem, under a clock that is moved by hand

World is what all share: the clock and who is alive. FakeSystem is the kernel as one
process sees it: its calls are real, but each can be failed, counted or made the
moment at which somebody else acts. Pool is what a master has: Board, Consumer, a
worker's Spool and a keeper's.

The filesystem's times are real, so they are shown moved by as much as the clock had
been when they were written.
"""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workers.board import Board, Q, WorkerText
from workers.message import Claim
from workers.queues import names
from workers.queues.base import Consumer, Keeper, Kept, Settings
from workers.queues.spool import Spool
from workers.queues.spool_keep import SpoolKeeper
from workers.system import SYSTEM, System

TRACED = (
    "rename", "link", "unlink", "mkdir", "rmdir", "listdir", "open", "close", "read", "write", "fstat", "lstat",
    "fsync", "syncfs", "scandir", "rename_noreplace", "utime", "pwrite", "chmod",
)  # fmt: skip
SETTINGS = Settings(lease_interval_s=1.0, lease_timeout_s=4.0, stale_after_s=100.0, create=True, retry_backoff_s=0.0)
LOOKS = 5  # ceil(4 / 1) + 1

Hook = Callable[[str, tuple[Any, ...]], None]


_opened: dict[int, tuple[int, int]] = {}  # by any FakeSystem: the descriptor, and which file that is


def note_opened(fd: int) -> None:
    """Let close_what_is_left() close *fd*."""
    found = os.fstat(fd)
    _opened[fd] = found.st_dev, found.st_ino


def close_what_is_left() -> None:
    """Close what was open in processes that only a test knew. (A number may be another's by now, closed past us.)"""
    while _opened:
        fd, identity = _opened.popitem()
        with suppress(OSError):
            found = os.fstat(fd)
            if (found.st_dev, found.st_ino) == identity:
                os.close(fd)


class World:
    """The clock, and who is alive. *place* is a directory on the filesystem under test, *door* the way to it."""

    def __init__(self, place: Path, door: System = SYSTEM) -> None:
        self.door = door
        self.moved_ns = 0
        self.stepped_ns = 0  # of these by setting the clock
        self.dead: set[int] = set()
        self.hidden: set[int] = set()  # pids of which nobody can say whether they live
        self.ended_sessions: list[int] = []
        self._moves: list[tuple[int, int]] = []  # ctime from which a file is younger than a move, and the move
        self._probe = place / ".clock"

    def advance(self, seconds: float) -> None:
        """Move the clock. Touches a file until the filesystem's own clock ticks (4 ms), so old and new files differ."""
        before_ns = self._touch()
        while (now_ns := self._touch()) == before_ns:
            pass
        self._moves.append((now_ns, int(seconds * 1e9)))
        self.moved_ns += int(seconds * 1e9)

    def step(self, seconds: float) -> None:
        """Set the clock of host and filesystem, forward or back; CLOCK_BOOTTIME does not see it."""
        self.advance(seconds)
        self.stepped_ns += int(seconds * 1e9)

    def _touch(self) -> int:
        self._probe.touch()
        return self._probe.stat().st_ctime_ns

    def _moved(self, real_ns: int) -> int:
        return real_ns + sum(by_ns for from_ns, by_ns in self._moves if real_ns >= from_ns)

    def real(self, shown_ns: int) -> int:
        """What the filesystem is to be told, so that *shown_ns* is shown; for times since the last move."""
        return shown_ns - self.moved_ns

    def shown(self, real: os.stat_result) -> os.stat_result:
        """*real* with its times on the moved clock."""
        mtime_ns, ctime_ns = self._moved(real.st_mtime_ns), self._moved(real.st_ctime_ns)
        times = {"st_mtime_ns": mtime_ns, "st_ctime_ns": ctime_ns}
        times |= {"st_mtime": mtime_ns / 1e9, "st_ctime": ctime_ns / 1e9}
        return os.stat_result(tuple(real)[:10], times)


class FakeSystem(System):
    """The kernel as one process of *host* sees it."""

    def __init__(self, world: World, pid: int = 0) -> None:
        self.world = world
        self.pid = pid or os.getpid()
        self.before: Hook | None = None
        self.after: Hook | None = None
        self.network: str | None = None
        self.calls: list[str] = []
        self._fail_at = 0
        self._fail_with = 0
        self._is_reply_lost = False
        self.failed: str | None = None  # the call that was failed
        for name in TRACED:
            setattr(self, name, self._traced(name, getattr(world.door, name)))
        for name in ("stat", "rename_exchange", "is_anchored"):
            setattr(self, name, getattr(world.door, name))

    def fail(self, nth: int, code: int, *, is_reply_lost: bool = False) -> None:
        """Fail the *nth* call from now with *code*; with *is_reply_lost* it is done all the same."""
        self.calls.clear()
        self._fail_at, self._fail_with, self._is_reply_lost, self.failed = nth, code, is_reply_lost, None

    def fail_all(self, calls: str, code: int) -> None:
        """From now on every one of *calls* (names, separated by spaces) fails with *code*."""

        def hook(name: str, arguments: tuple[Any, ...]) -> None:
            if name in calls.split():
                raise OSError(code, os.strerror(code), *[part for part in arguments[:1] if isinstance(part, str)])

        self.before = hook

    def _traced(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            if self.before is not None:
                self.before(name, arguments)
            self.calls.append(name)
            is_failing = self._fail_at == len(self.calls)
            # A descriptor is closed even when close(2) reports an error.
            if is_failing and not (self._is_reply_lost or name == "close"):
                self._raise(name, arguments)
            found = real(*(self._told(arguments) if name == "utime" else arguments), **more)
            if name in ("open", "memory_file"):
                note_opened(found)
            elif name == "close":
                _opened.pop(arguments[0], None)
            elif name in ("fstat", "lstat"):
                found = self.world.shown(found)
            if is_failing:
                if name == "open":
                    os.close(found)
                self._raise(name, arguments)
            if self.after is not None:
                self.after(name, arguments)
            return found

        return call

    def _raise(self, name: str, arguments: tuple[Any, ...]) -> None:
        self.failed, self._fail_at = name, 0
        where = [part for part in arguments[:1] if isinstance(part, str)]
        raise OSError(self._fail_with, os.strerror(self._fail_with), *where)

    def boottime_ns(self) -> int:  # type: ignore[override]
        return 1_000_000_000_000 + self.world.moved_ns - self.world.stepped_ns

    def wall_ns(self) -> int:  # type: ignore[override]
        return time.time_ns() + self.world.moved_ns

    def getpid(self) -> int:  # type: ignore[override]
        return self.pid

    def _told(self, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """*arguments* of a call of utime, on the filesystem's own clock."""
        path, *times = arguments
        return (path, tuple(map(self.world.real, times[0]))) if times and times[0] else arguments

    def sleep(self, seconds: float) -> None:  # type: ignore[override]
        self.world.moved_ns += int(seconds * 1e9)

    def network_filesystem(self, path: str) -> str | None:
        return self.network

    def kernel8(self, host: str) -> str:
        return hashlib.sha256(host.encode()).hexdigest()[:8]

    def start_ticks(self, pid: int) -> int | None:
        if pid in self.world.hidden:
            return 0
        return None if pid in self.world.dead else pid + 1

    def is_alive(self, pid: int, start: int) -> bool | None:
        found = self.start_ticks(pid)
        return None if found == 0 else found == start

    def kill_session(self, session: int) -> int:
        self.world.ended_sessions.append(session)
        return 0


class Words:
    """A board's words, with *on_access* called before each read ("get") or write ("set") of one."""

    def __init__(self, real: memoryview[int], on_access: Callable[[str, int], None]) -> None:
        self._real, self._on_access = real, on_access

    def __getitem__(self, word: int) -> int:
        self._on_access("get", word)
        return self._real[word]

    def __setitem__(self, word: int, value: int) -> None:
        self._on_access("set", word)
        self._real[word] = value


class Pool:
    """One master on one host: a board, a worker's Spool and a keeper's."""

    def __init__(
        self, rig: Rig, host: str, settings: Settings, pid: int, words: Callable[[str, int], None] | None
    ) -> None:
        self.rig, self.host, self.settings = rig, host, settings
        self.system, self.keeper_system = FakeSystem(rig.world, pid), FakeSystem(rig.world, pid)
        self.system.network = self.keeper_system.network = rig.network
        self.board = Board.create()
        self.queue_slot = self.board.take_queue("queue", f"spool:{rig.path}")
        if words is not None:
            self.board.queues[self.queue_slot].words = Words(self.board.queues[self.queue_slot].words, words)  # type: ignore[assignment]
        self.master = names.master_name(host, self.system)
        self.spool = Spool(str(rig.path), settings, system=self.system, host=host)
        self.keeping = Spool(str(rig.path), settings, system=self.keeper_system, host=host)
        self.keeper: SpoolKeeper = self.keeping.keeper(self._consumer(0))
        self.keeper.lease.beat()
        self.spool.attach(self._consumer(0))

    def _consumer(self, index: int) -> Consumer:
        slot = self.board.take_worker(self.queue_slot, index)
        return Consumer(self.master, self.board, self.queue_slot, slot, index)

    def another_worker(self, index: int, pid: int = 0) -> Spool:
        """A second worker of this pool."""
        system = FakeSystem(self.rig.world, pid or self.system.pid)
        system.network = self.rig.network
        spool = Spool(str(self.rig.path), self.settings, system=system, host=self.host)
        spool.attach(self._consumer(index))
        return spool

    @property
    def words(self) -> memoryview[int]:
        """The queue's words on the board."""
        return self.board.queues[self.queue_slot].words

    @property
    def owner(self) -> str:
        """What the board says is the worker's directory."""
        return self.board.worker(0).text(WorkerText.OWNER) or ""

    def forget_owner(self) -> str:
        """Take the owner off the board, as the master does when its worker is dead; its name."""
        owner = self.owner
        self.board.worker(0).set_text(WorkerText.OWNER, "")
        return owner

    def claim(self) -> Claim:
        """Claim; there must be something."""
        claim = self.spool.claim()
        assert claim is not None
        return claim

    def rounds(self, count: int = 1, every_s: float = 1.0) -> Kept:
        """See the function rounds()."""
        return rounds(self.keeper, self.rig.world, count, every_s)


def rounds(keeper: Keeper, world: World, count: int, every_s: float) -> Kept:
    """*count* keeper rounds, the clock moved before each; what they did, summed."""
    total = Kept()
    for _ in range(count):
        world.advance(every_s)
        kept = keeper.keep()
        for name in ("owner_dead", "lease_lost", "too_old", "crash_limit", "temporary", "due", "pruned"):
            setattr(total, name, getattr(total, name) + getattr(kept, name))
    return total


@dataclass
class Rig:
    """A queue at *path*."""

    path: Path
    world: World
    network: str | None = None
    pools: list[Pool] = field(default_factory=list)

    def pool(
        self,
        host: str = "one",
        settings: Settings = SETTINGS,
        pid: int = 0,
        words: Callable[[str, int], None] | None = None,
    ) -> Pool:
        """A pool on *host*; two of different hosts cannot see each other's processes."""
        pool = Pool(self, host, settings, pid or 1000 + len(self.pools), words)
        self.pools.append(pool)
        return pool

    def spool(self, settings: Settings = SETTINGS) -> Spool:
        """The queue, opened by somebody who only puts and looks."""
        return Spool(str(self.path), settings, system=FakeSystem(self.world), host="one")

    def files(self, state: str, *, meta: bool = False) -> list[str]:
        """The files of a state's directory; of pending/ those in the owners' directories."""
        place = self.path / state
        if state == "pending":
            return sorted(file for owner in os.listdir(place) for file in _listing(place / owner))
        with suppress(FileNotFoundError):
            return sorted(file for file in os.listdir(place) if file.endswith(".meta") == meta)
        return []

    def everything(self) -> dict[str, list[bytes]]:
        """The content of all messages, by state; what is empty is left out. tmp/ is a state."""
        found: dict[str, list[bytes]] = {}
        for state in ("incoming", "pending", "deferred", "errors", "done", "tmp"):
            for base, _, files in os.walk(self.path / state):
                for file in files:
                    if not (state == "errors" and file.endswith(".meta")):
                        found.setdefault(state, []).append((Path(base) / file).read_bytes())
        return {state: sorted(bodies) for state, bodies in found.items()}


def lose_ctimes(system: FakeSystem) -> None:
    """Let every file's ctime be its mtime, as on sshfs: a rename keeps it, and anybody may set it."""

    def without(real: Callable[[Any], os.stat_result]) -> Callable[[Any], os.stat_result]:
        def call(what: Any) -> os.stat_result:
            found = real(what)
            times = {"st_mtime_ns": found.st_mtime_ns, "st_ctime_ns": found.st_mtime_ns}
            return os.stat_result(tuple(found)[:10], {**times, "st_mtime": found.st_mtime, "st_ctime": found.st_mtime})

        return call

    for name in ("lstat", "fstat"):
        setattr(system, name, without(getattr(system, name)))


def _listing(path: Path) -> list[str]:
    return os.listdir(path) if path.is_dir() and not path.is_symlink() else [path.name]


ERRNOS = (errno.ENOSPC, errno.EIO, errno.EACCES, errno.ESTALE)


def fail_each(
    make: Callable[[], Rig],
    act: Callable[[Pool], object],
    prepare: Callable[[Pool], object] = lambda _: None,
    of: Callable[[Pool], FakeSystem] = lambda pool: pool.system,
) -> Iterator[tuple[Pool, str, BaseException | None]]:
    """
    Fail each system call of *act* once, with each errno: the pool, the call that failed, what act() raised.

    *of* says whose calls: the worker's or the keeper's.

    A fresh queue every time; ends when act() gets through with nothing failed.
    """
    for code in ERRNOS:
        nth = 0
        while True:
            nth += 1
            pool = make().pool()
            prepare(pool)
            system = of(pool)
            system.fail(nth, code)
            raised: BaseException | None = None
            try:
                act(pool)
            except Exception as error:  # noqa: BLE001 - the test says which may leave
                raised = error
            if system.failed is None:
                assert raised is None, raised
                break
            yield pool, f"{system.failed} (call {nth}): {errno.errorcode[code]}", raised


__all__ = ["ERRNOS", "LOOKS", "SETTINGS", "FakeSystem", "Pool", "Q", "Rig", "Words", "World", "fail_each", "rounds"]
