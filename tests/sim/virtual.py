"""
virtual - time that passes by events, and one server whose answers take it

A process is a greenlet. A call that only its own kernel answers (a clock, a read of what
is open) is made at once; any other travels to the server, waits there for those before
it, is made, and its answer travels back. So calls of thousands of processes overlap as
they do on a network, and all is decided by one random number generator: a seed is a run.

On the way a call may fail without being made, be made though its answer was lost and
the repeated call says something else, be made long after its caller was told that it
timed out, or just take long. Hosts may be stopped, and lose their mount.

Long because: a call's way to the server and back is one story.
See also: mount (what is not sent at all), kernel (what a call does), cluster (who calls).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import math
import os
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush
from random import Random
from typing import Any

from greenlet import getcurrent, greenlet

from tests.sim.disk import Change, Entry, Inode
from tests.sim.explore import LOST_ANSWERS
from tests.sim.kernel import BOOT_NS, NAMED, START_NS, Crash, Entries, Pipe, Process, World
from tests.sim.mount import LISTING, MISS, Mount
from workers.errors import OrchestratorError

SECOND = 1_000_000_000
SENT = frozenset({*NAMED, "write", "fsync", "syncfs"})
TOLD = 50_000  # calls kept, for what is told of a violation
NAMES_A_READDIR = 200


@dataclass(frozen=True)
class Odds:
    """
    How the server and the way to it are; shares of calls.

    Attributes:
        lost: made, and the repeated call answers ENOENT or EEXIST; late: told ETIMEDOUT, made after that;
        failed: EIO, not made; spikes: seconds instead of milliseconds.
        one_way_s, operation_s: what a call takes to the server, and in it.
    """

    lost: float = 0.0
    late: float = 0.0
    failed: float = 0.0
    spikes: float = 0.0
    one_way_s: float = 0.0002
    operation_s: float = 0.00002


class Place:
    """One host, as its processes meet it. *resume_ns*: it is stopped until then; *back_ns*: its mount is away."""

    def __init__(self, name: str, mount: Mount) -> None:
        self.name, self.mount = name, mount
        self.boot, self.booted_ns = 0, 0
        self.resume_ns = 0
        self.back_ns, self.away_errno = 0, 0  # 0: calls hang
        self.skew_ns, self.drift_ppm = 0, 0


class Client(Process):
    """A process of a *place*. Its clocks are its host's; what it reads of an unlinked file is stale."""

    def __init__(self, world: World, pid: int, place: Place, role: str) -> None:
        super().__init__(world, pid, place.name)
        self.place, self.role = place, role
        self.task: Task | None = None
        self.master = ""  # of a keeper: whose it is
        world.processes[pid] = self

    def boottime_ns(self) -> int:
        """Its host's, since that booted; it goes on while the host is stopped."""
        passed_ns = self.world.moved_ns - self.place.booted_ns
        return BOOT_NS + passed_ns + passed_ns * self.place.drift_ppm // 1_000_000

    def wall_ns(self) -> int:
        """Its host's, wrong by the host's skew."""
        return START_NS + self.world.moved_ns + self.place.skew_ns

    def start_ticks(self, pid: int) -> int | None:
        """See Process."""
        return pid + 1 if self.world.is_alive(pid) else None

    def kernel8(self, host: str) -> str:
        """By the host and its boot."""
        return hashlib.sha256(f"{host} {self.place.boot}".encode()).hexdigest()[:8]

    def wait_writable(self, fd: int, timeout_s: float) -> None:  # type: ignore[override]
        """Until the pipe has room."""
        pipe = self._files[fd]
        assert isinstance(pipe, Wire)
        assert self.task is not None
        if not pipe.has_room:
            pipe.writer = self.task
            self.task.rest(timeout_s)
            pipe.writer = None

    def _scandir(self, path: str) -> Entries:
        assert isinstance(self.world.scheduler, Virtual)
        return self.world.scheduler.entries(path)

    def _read(self, fd: int, size: int) -> bytes:
        file = self._file(fd)
        if isinstance(file, Inode) and not file.links and self.world.network:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return super()._read(fd, size)

    def _fstat(self, fd: int) -> os.stat_result:
        if not self._file(fd).links and self.world.network:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return super()._fstat(fd)


def _local(name: str) -> Callable[..., Any]:
    inner = f"_{name}"

    def call(process: Client, *arguments: Any) -> Any:
        if process.has_crashed:
            raise Crash
        return getattr(process, inner)(*arguments)

    return call


for _name in ("close", "read", "unread", "fstat"):
    setattr(Client, _name, _local(_name))


class Wire(Pipe):
    """A pipe that wakes who waits for it: one reader for a packet, and the writer."""

    def __init__(self) -> None:
        super().__init__()
        self.readers: deque[Task] = deque()
        self.writer: Task | None = None

    @property
    def has_room(self) -> bool:
        """Whether a packet fits in."""
        return len(self.packets) < self._room

    def take(self) -> bytes:
        """See Pipe."""
        packet = super().take()
        if self.writer is not None:
            self.writer.wake()
        return packet

    def add(self, packet: bytes) -> int:
        """See Pipe."""
        size = super().add(packet)
        while self.readers:
            reader = self.readers.popleft()
            if not reader.is_over:
                reader.wake()
                break
        return size


class Task:
    """What one process does, from start to end. *turn* counts its resumptions: an answer is for one of them alone."""

    def __init__(self, virtual: Virtual, process: Client, act: Callable[[], object], on_end: Callable[[Task], None]):
        self.process, self.place = process, process.place
        self.turn, self.pause_ns = 0, 0
        self.is_resting = False
        self.cause = ""  # of its end, when it did not end by itself
        self.on_end = on_end
        self._virtual = virtual
        self._act = act
        self.greenlet = greenlet(self._run)
        process.task = self

    def _run(self, _: object = None) -> None:
        with contextlib.suppress(Crash, OrchestratorError):
            self._act()

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return bool(self.greenlet.dead)

    def rest(self, timeout_s: float) -> None:
        """Wait, until woken or *timeout_s* has passed. Its own greenlet only."""
        if self.process.has_crashed:
            raise Crash
        self.is_resting = True
        self._virtual.at(max(timeout_s, 1e-6), self._virtual.resume, self, self.turn, None)
        self._virtual.main.switch()
        self.is_resting = False

    def wake(self) -> None:
        """End its rest."""
        if self.is_resting and not self.is_over:
            self._virtual.at(0.00001, self._virtual.resume, self, self.turn, None)

    def kill(self, cause: str) -> None:
        """SIGKILL. Not from its own greenlet."""
        if self.is_over:
            return
        self.cause = self.cause or cause
        self.process.has_crashed = True
        self.turn += 1
        with contextlib.suppress(Crash):
            self.greenlet.throw(Crash)
        self.on_end(self)

    def die(self, cause: str) -> None:
        """The same, from its own."""
        self.cause = cause
        self.process.has_crashed = True
        raise Crash


class Virtual:
    """The scheduler of a world in virtual time."""

    def __init__(self, seed: int, odds: Odds, *, network: str | None) -> None:
        self.random = Random(seed)  # noqa: S311 - repeatable is what it must be
        self.world = World(self, network=network)
        self.world.disk.listeners.append(self._changed)
        self.versions: Counter[str] = Counter()  # how often each directory has changed
        self.listed: dict[str, tuple[int, Entries]] = {}
        self.world.disk.now_ns = lambda: START_NS + self.world.moved_ns + self.step_ns
        self.odds = odds
        self.main = getcurrent()
        self.step_ns = 0  # the server's clock was set so far from the true time
        self.calls: Counter[tuple[str, str]] = Counter()  # by role and name, the local ones left out
        self.operations: Counter[str] = Counter()  # of the server, by role
        self.faults: Counter[str] = Counter()
        self.busy_ns = 0
        self.wrong: list[str] = []
        self.suspects: list[str] = []  # what the calls name that should be told of it
        self.told: deque[tuple[Any, ...]] = deque(maxlen=TOLD)
        self.digest = hashlib.blake2b(digest_size=8)
        self._events: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0
        self._tasks: dict[Task, None] = {}  # in the order in which they were started
        self._free_ns = 0  # the server has done all that was sent
        self._pid = 100

    # ---- time

    @property
    def now_ns(self) -> int:
        """True time since the start."""
        return self.world.moved_ns

    def at(self, delay_s: float, act: Callable[..., None], *arguments: Any) -> None:
        """Do *act* in *delay_s*."""
        self._push(self.world.moved_ns + int(delay_s * SECOND), act, arguments)

    def _push(self, when_ns: int, act: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        self._count += 1
        heappush(self._events, (when_ns, self._count, act, arguments))

    def run(self, seconds: float) -> None:
        """Let *seconds* pass. Raises AssertionError for what was found wrong."""
        events, world, wrong = self._events, self.world, self.wrong
        end_ns = world.moved_ns + int(seconds * SECOND)
        while events and events[0][0] <= end_ns:
            when_ns, _, act, arguments = heappop(events)
            world.moved_ns = when_ns
            act(*arguments)
            if wrong:
                raise AssertionError("; ".join(wrong))
        world.moved_ns = end_ns

    def client(self, place: Place, role: str) -> Client:
        """A new process."""
        self._pid += 1
        return Client(self.world, self._pid, place, role)

    def start(self, process: Client, act: Callable[[], object], on_end: Callable[[Task], None]) -> Task:
        """Let *process* do *act*, from the next event on."""
        task = Task(self, process, act, on_end)
        self._tasks = {other: None for other in self._tasks if not other.is_over} | {task: None}
        self.at(0.0, self.resume, task, 0, None)
        return task

    def close(self) -> None:
        """End all tasks where they stand: one that is only forgotten would keep its world in memory."""
        for task in self._tasks:
            task.on_end = lambda _: None
            task.kill("the end")

    def resume(self, task: Task, turn: int, answer: Any) -> None:
        """Let it go on, if it still waits for that."""
        if task.turn != turn or task.is_over:
            return
        now_ns = self.world.moved_ns
        if task.place.resume_ns > now_ns or task.pause_ns:
            later_ns = max(task.place.resume_ns, now_ns + task.pause_ns)
            task.pause_ns = 0
            self._push(later_ns, self.resume, (task, turn, answer))
            return
        task.turn += 1
        task.greenlet.switch(answer)
        if task.greenlet.dead:
            task.process.has_crashed = True
            task.on_end(task)

    # ---- calls

    def call(self, process: Process, name: str, arguments: tuple[Any, ...], do: Callable[[], Any]) -> Any:
        """See Scheduler."""
        assert isinstance(process, Client)
        task = process.task
        if task is None:
            return do()
        if name == "sleep":
            task.rest(arguments[0])
            return None
        if name not in SENT or (name == "write" and isinstance(process._file(arguments[0]), Pipe)):
            return do()
        if task.pause_ns and self.random.random() < 0.5:
            # Between what it has read of a clock, and what it does upon that.
            pause_s, task.pause_ns = task.pause_ns / SECOND, 0
            task.rest(pause_s)
        mount = task.place.mount
        known = mount.known(name, arguments, self.world.moved_ns) if name in NAMED else MISS
        if known is not MISS:
            return known
        sent = (task, task.turn, name, arguments, do)
        self.at(self.odds.one_way_s * (0.5 + self.random.random()), self._arrive, *sent)
        result, code, path = self.main.switch()
        if name in NAMED:
            mount.learn(name, arguments, result, code, self.world.moved_ns)
        if code:
            raise OSError(code, os.strerror(code), path)
        return result

    def _arrive(self, task: Task, turn: int, name: str, arguments: tuple[Any, ...], do: Callable[[], Any]) -> None:
        now_ns, place = self.world.moved_ns, task.place
        if place.back_ns > now_ns:
            if place.away_errno:
                self._answer(task, turn, (None, place.away_errno, ""), 0.05)
            elif not task.is_over:
                self._push(place.back_ns, self._arrive, (task, turn, name, arguments, do))
            return
        if task.process.has_crashed and self.random.random() < 0.5:
            return  # what its client had not sent yet
        cost_ns = int(self._cost(task.process, name, arguments) * self.odds.operation_s * SECOND)
        self._free_ns = max(self._free_ns, now_ns) + cost_ns
        self.busy_ns += cost_ns
        if self._free_ns - now_ns <= 2 * cost_ns:
            self._serve(task, turn, name, arguments, do)
        else:
            self._push(self._free_ns, self._serve, (task, turn, name, arguments, do))

    def _cost(self, process: Client, name: str, arguments: tuple[Any, ...]) -> int:
        """Operations of the server. A listing that has not changed since this host had it is one."""
        operations = 1
        if name in LISTING:
            directory = self.world.disk.directories.get(arguments[0])
            if directory is not None and process.place.mount.is_new(arguments[0], self.versions[arguments[0]]):
                operations += max(1, math.ceil(len(directory.entries) / NAMES_A_READDIR))
        self.calls[process.role, name] += 1
        self.operations[process.role] += operations
        return operations

    def _serve(self, task: Task, turn: int, name: str, arguments: tuple[Any, ...], do: Callable[[], Any]) -> None:
        odds, is_changing = self.odds, name in LOST_ANSWERS
        drawn = self.random.random()
        back_s = odds.one_way_s * (0.5 + self.random.random())
        if drawn < odds.failed and name in NAMED:
            self._tell(task, name, arguments, "EIO, not made")
            self.faults["calls failed"] += 1
            self._answer(task, turn, (None, errno.EIO, ""), back_s)
            return
        drawn -= odds.failed
        if 0 <= drawn < odds.late and is_changing:
            self.faults["calls made late"] += 1
            told_s = self.random.uniform(0.5, 8)
            self._tell(task, name, arguments, "ETIMEDOUT, to be made later")
            self._answer(task, turn, (None, errno.ETIMEDOUT, ""), told_s)
            self.at(told_s + self.random.uniform(0, 8), self._serve_late, task, name, arguments, do)
            return
        drawn -= odds.late
        if 0 <= drawn < odds.spikes:
            self.faults["latency spikes"] += 1
            back_s += self.random.uniform(0.5, 8)
        drawn -= odds.spikes
        if self.world.disk.is_full and name == "rename" and self.random.random() < 0.05:
            answer: tuple[Any, int, str] = (None, errno.ENOSPC, "")
        else:
            answer = _made(do)
        if 0 <= drawn < odds.lost and is_changing and not answer[1]:
            self.faults["replies lost"] += 1
            answer = (None, LOST_ANSWERS[name], arguments[0])
            back_s += self.random.uniform(0.1, 4)
            self._tell(task, name, arguments, f"made, answered {errno.errorcode[answer[1]]}")
        else:
            self._tell(task, name, arguments, answer)
        self._answer(task, turn, answer, back_s)

    def _serve_late(self, task: Task, name: str, arguments: tuple[Any, ...], do: Callable[[], Any]) -> None:
        answer = _made(do)
        self._tell(task, name, arguments, f"made late: {answer[1]}")

    def _answer(self, task: Task, turn: int, answer: tuple[Any, int, str], delay_s: float) -> None:
        self.at(delay_s, self._arrived, task, turn, answer)

    def _arrived(self, task: Task, turn: int, answer: tuple[Any, int, str]) -> None:
        place = task.place
        if place.back_ns > self.world.moved_ns:
            if not place.away_errno:
                self._push(place.back_ns, self._arrived, (task, turn, answer))
                return
            answer = (None, place.away_errno, "")
        self.resume(task, turn, answer)

    def _tell(self, task: Task, name: str, arguments: tuple[Any, ...], answer: Any) -> None:
        process = task.process
        told = (self.world.moved_ns, process.pid, process.role, process.host, name, arguments, answer)
        self.told.append(told)
        code = answer[1] if isinstance(answer, tuple) else answer
        about = arguments[0] if name != "write" else len(arguments[1])
        self.digest.update(f"{told[0]} {told[1]} {name} {about} {code}".encode())

    def _changed(self, change: Change) -> None:
        if change.source:
            self.versions[change.source.rpartition("/")[0]] += 1
        if change.target:
            self.versions[change.target.rpartition("/")[0]] += 1

    def entries(self, path: str) -> Entries:
        """What scandir gives, made anew when it has changed: every keeper lists pending/ every second."""
        directory, version = self.world.disk.directory(path), self.versions[path]
        kept = self.listed.get(path)
        if kept is None or kept[0] != version:
            entries = Entries(Entry(name, inode.kind) for name, inode in directory.entries.items())
            kept = self.listed[path] = version, entries
        return kept[1]

    # ---- the server itself

    def stall(self, seconds: float) -> None:
        """The server answers nobody for so long."""
        self._free_ns = max(self._free_ns, self.now_ns) + int(seconds * SECOND)

    def story(self, *words: str) -> list[str]:
        """The last calls that name one of *words*, oldest first."""
        found = []
        for when_ns, pid, role, host, name, arguments, answer in self.told:
            text = f"{name} {' '.join(str(part) for part in arguments if isinstance(part, str))}"
            if any(word in text for word in words):
                found.append(f"{when_ns / SECOND:12.6f} {host} {role} {pid}: {text} -> {_short(answer)}")
        return found


def _made(do: Callable[[], Any]) -> tuple[Any, int, str]:
    try:
        return do(), 0, ""
    except OSError as error:
        return None, error.errno or 0, error.filename or ""


def _short(answer: Any) -> str:
    if not isinstance(answer, tuple):
        return str(answer)
    result, code = answer[:2]
    if code:
        return errno.errorcode[code]
    if isinstance(result, Entries | list):
        return f"{len(result)} names"
    return "done" if result is None or isinstance(result, os.stat_result) else str(result)
