"""
every_call - each call of an operation failed once, from there on, or never made: the loop that SQLite is tested with

An operation is run once to count its calls. Then, in a fresh world for each, its 1st,
2nd, 3rd ... call

- fails once, with each errno that a kernel has for it;
- fails, and so do all later ones of its kind (a full disk, a read-only one), until the
  operation has given up;
- finds the mount away, and so do all later ones, until then: whatever is asked for by its
  path is said not to be there;
- on a network filesystem is done, and answered by an error all the same;
- is never made, for the process ends there;
- or finds that another process has done the whole of the operation first.

After each: only exceptions that the operation documents have left it, what it had
opened is closed, once the failure is over it gets through when tried again and has its
effect once, and after all others are gone a pool of another host ends everything
(cast.recover): nothing lost, nothing left, nothing over another, no body that is not
whole at any moment at which it could be seen.

Limits: one fault in a run, and a local kernel that fails has done nothing.
Long because: a call, what may become of it and what must hold after it are one loop.
Source: "How SQLite Is Tested", section 3 (out-of-memory, I/O error and crash tests).
See also: operations (what is tried), kernel, ledger, cast.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tests.sim import cast
from tests.sim.disk import Change
from tests.sim.explore import LOST_ANSWERS
from tests.sim.kernel import OTHERS, STRAIGHT, Crash, Process, World
from tests.sim.ledger import Ledger, state_of
from workers.errors import QueueUnavailable

FAIL, STAY, LOST = "fails", "fails from there on", "is done, its reply lost"
AWAY = "finds the mount away"
CRASH, TOLD, MEET = "ends the process", "ends the process, of which its keeper is told", "is late"

RENAMES = frozenset({"rename", "rename_noreplace", "rename_exchange"})
CREATES = RENAMES | {"write", "pwrite", "mkdir", "link", "fsync", "syncfs"}  # wants room
CHANGES = CREATES | {"unlink", "rmdir", "utime", "chmod"}
FINDS = RENAMES | {"scandir", "mkdir", "link"}  # wants a directory to be there
ONCE = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.ESTALE, errno.EACCES, errno.EINTR)
LOST_CODES = (errno.EIO, errno.ETIMEDOUT, errno.ESTALE)


class Made(NamedTuple):
    """One call that an operation made; *where*: its paths, "" for one by descriptor."""

    name: str
    flags: int
    where: str

    @property
    def is_creating(self) -> bool:
        """Whether it makes a file."""
        return bool(self.flags & os.O_CREAT)

    def may_meet(self, code: int) -> bool:
        """Whether it may be answered *code* by a kernel that goes on failing so: no room, read-only, or gone."""
        if code in (errno.ENOSPC, errno.EDQUOT):
            return self.name in CREATES or self.is_creating
        if code == errno.EROFS:
            return self.name in CHANGES or self.is_creating
        if code == errno.ENOENT:
            return self.name in FINDS or self.is_creating
        return True


class Fault(NamedTuple):
    """What becomes of call number *nth*, counted from 1."""

    nth: int
    how: str
    code: int = 0

    def __str__(self) -> str:
        return f"call {self.nth} {self.how} {errno.errorcode.get(self.code, '')}".rstrip()


class Kernel:
    """The scheduler of one try: counts the calls of one process, and lets one go wrong."""

    def __init__(self) -> None:
        self.made: list[Made] = []
        self.failed: list[Made] = []  # and those done whose reply was lost
        self.has_come = False
        # What is so for everybody all the time: an errno for a call that this filesystem does not have.
        self.missing: Callable[[str, tuple[Any, ...]], int] | None = None
        self._process: Process | None = None
        self.fault: Fault | None = None
        self._meets: Callable[[], object] = lambda: None

    def arm(self, process: Process, fault: Fault | None, meets: Callable[[], object]) -> None:
        """From now on *process* is the one whose calls count."""
        self._process, self.fault, self._meets, self.has_come = process, fault, meets, False
        self.made.clear()
        process.world.scheduler = self

    def end(self) -> None:
        """The failure is over."""
        if self._process is not None and self.missing is None:
            self._process.world.scheduler = STRAIGHT
        self._process = None

    def call(self, process: Process, name: str, arguments: tuple[Any, ...], do: Callable[[], Any]) -> Any:
        """See Scheduler."""
        if process is not self._process or name in OTHERS:
            return self._do(name, arguments, do)
        flags = arguments[1] if name == "open" else 0
        made = Made(name, flags, " ".join(part for part in arguments if isinstance(part, str)))
        self.made.append(made)
        fault = self.fault
        if fault is None or len(self.made) < fault.nth:
            return self._do(name, arguments, do)
        if len(self.made) > fault.nth:
            if (fault.how == STAY and made.may_meet(fault.code)) or (fault.how == AWAY and made.where):
                self._fail(made, fault.code, do)
            return self._do(name, arguments, do)
        self.has_come = True
        if fault.how in (CRASH, TOLD):
            process.has_crashed = True
            raise Crash
        if fault.how == MEET:
            with process.world.straight():
                self._meets()
            return self._do(name, arguments, do)
        if fault.how == LOST:
            found = self._do(name, arguments, do)
            if name == "open":
                process._close(found)  # it never came to know of it
            self.failed.append(made)
            raise _error(fault.code, made)
        return self._fail(made, fault.code, do)

    def _do(self, name: str, arguments: tuple[Any, ...], do: Callable[[], Any]) -> Any:
        if self.missing is not None and (code := self.missing(name, arguments)):
            raise OSError(code, os.strerror(code), *arguments[:1])
        return do()

    def _fail(self, made: Made, code: int, do: Callable[[], Any]) -> None:
        self.failed.append(made)
        if made.name == "close":  # the descriptor is closed whatever close(2) answers
            do()
        raise _error(code, made)


def _error(code: int, made: Made) -> OSError:
    return OSError(code, os.strerror(code), made.where) if made.where else OSError(code, os.strerror(code))


class Accounts(Ledger):
    """A ledger that knows all bodies there are: what can be seen is whole, and is not written any more."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.bodies: set[bytes] = set()
        self.may_prune = False  # what is in done/ and errors/ is old enough

    def _may_remove(self, change: Change) -> bool:
        is_pruned = self.may_prune and state_of(change.source) in ("done", "errors")
        return super()._may_remove(change) or is_pruned

    def _listen(self, change: Change) -> None:
        if "/.probe." in change.source:
            return  # sent round by a keeper that opens: no message
        super()._listen(change)
        inode, path = change.inode, change.target or change.source
        is_seen = change.call in ("rename", "link") and bool(state_of(path)) and not path.endswith(".meta")
        if change.call == "write":
            is_seen = inode in self.accepted
        if is_seen and not inode.is_directory and inode.data not in self.bodies:
            self._wrong.append(f"{inode.data!r} was seen at {path} after {change.call}, and is no whole body")


class Stage:
    """A fresh world with empty queues at *paths*, in which an operation is tried. Without any it is nobody's to end."""

    def __init__(self, network: str | None, *paths: str) -> None:
        if paths:
            self.world, _ = cast.make_world(*paths, network=network)
            self.world.disk.listeners.clear()
        else:
            self.world = World(network=network)
        self.paths = paths
        self.ledger = Accounts(self.world)
        self.kernel = Kernel()

    def where(self, body: bytes) -> list[str]:
        """The states in which *body* is, once for each file."""
        return sorted(
            state_of(path)
            for path, inode in self.world.disk.files()
            if inode.data == body and state_of(path) and not path.endswith(".meta")
        )

    def files(self, place: str) -> list[str]:
        """The names in the directory *place*."""
        return sorted(self.world.disk.directory(place).entries)

    def has_lost(self, call: str) -> bool:
        """Whether the reply of a *call* was lost."""
        fault = self.kernel.fault
        return fault is not None and fault.how == LOST and self.kernel.failed[0].name == call

    def recover(self) -> None:
        """All others are gone: another host ends everything. Raises AssertionError for what it cannot."""
        if not self.paths:
            return
        _forget_probes(self.world)
        used = {path.split("/")[1] for path, _ in self.world.disk.files() if "/.pool/" not in path}
        paths = [path for path in self.paths if path == self.paths[0] or path.strip("/") in used]
        cast.recover(self.world, self.ledger, *paths)
        wrong = [inode.data for inode in self.ledger.accepted if inode.data not in self.ledger.bodies]
        assert not wrong, f"no whole bodies: {wrong}"

    def later(self, seconds: float = 1.0) -> None:
        """Let time pass."""
        self.world.moved_ns += int(seconds * 1e9)

    def may_litter(self) -> bool:
        """Whether a file may be left in tmp/: nobody could remove it, or the maker was told that there is none."""
        return any(made.name == "unlink" or made.is_creating for made in self.kernel.failed)


@dataclass
class Try:
    """
    One operation, ready to be tried.

    Attributes:
        act: the operation. may_raise: what it may raise when a call of it fails.
        check: afterwards, given what it raised, if anything: tries it again where that is called for, and looks.
        meets: what another process does before the call that is late; None where nobody else is looked at.
        after_crash: what is still to be looked at or done after one, before all others are gone.
        minds_mount: whether it tells what is gone from what cannot be seen while the whole mount is away.
        told: what the keeper of the process's own master does after a crash; None where that is nothing.
    """

    process: Process
    act: Callable[[], object]
    check: Callable[[BaseException | None], object]
    may_raise: tuple[type[BaseException], ...] = (QueueUnavailable,)
    meets: Callable[[], object] | None = None
    after_crash: Callable[[], object] = lambda: None
    told: Callable[[], object] | None = None
    minds_mount: bool = True


Operation = Callable[[Stage], Try]


@dataclass
class Counts:
    """How much was tried; *by* what became of a call."""

    operations: int = 0
    calls: int = 0
    by: Counter[str] = field(default_factory=Counter)
    ends: int = 0  # different worlds from which everything was recovered

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.operations + other.operations, self.calls + other.calls, self.by + other.by, self.ends + other.ends
        )

    def __str__(self) -> str:
        failed = self.by[FAIL] + self.by[STAY]
        return (
            f"{self.operations} operations of {self.calls:,} calls: {failed:,} runs with a call that failed "
            f"({self.by[STAY]:,} of them from there on), {self.by[LOST]:,} with a reply lost, "
            f"{self.by[AWAY]:,} with the mount away, "
            f"{self.by[CRASH] + self.by[TOLD]:,} crashes, {self.by[MEET]:,} meetings; "
            f"{self.ends:,} different ends recovered"
        )


def fail_every_call(operation: Operation, make: Callable[[], Stage]) -> Counts:
    """Try *operation* with every fault at every call, each in a stage of its own. Raises AssertionError."""
    ends: set[int] = set()
    calls, faults = _count(operation, make)
    counts = Counts(operations=1, calls=len(calls))
    for nth, made in enumerate(calls, 1):
        for fault in faults(nth, made):
            _try(operation, make(), fault, ends)
            counts.by[fault.how] += 1
    counts.ends = len(ends)
    return counts


def _count(
    operation: Operation, make: Callable[[], Stage]
) -> tuple[list[Made], Callable[[int, Made], Iterator[Fault]]]:
    """The calls of *operation* when nothing fails, and what may become of each."""
    stage = make()
    tried = operation(stage)
    stage.kernel.arm(tried.process, None, lambda: None)
    tried.act()
    calls = list(stage.kernel.made)
    stage.kernel.end()
    tried.check(None)
    _recover(stage, set())
    others = [CRASH] + [TOLD] * (tried.told is not None) + [MEET] * (tried.meets is not None)
    if tried.minds_mount:
        others.append(AWAY)
    return calls, lambda nth, made: _faults(nth, made, others, is_network=stage.world.network is not None)


def _faults(nth: int, made: Made, others: Sequence[str], *, is_network: bool) -> Iterator[Fault]:
    for code in ONCE:
        yield Fault(nth, FAIL, code)
    for code in (errno.EROFS, errno.ENOENT):
        if made.may_meet(code):
            yield Fault(nth, FAIL, code)
    for code in (errno.ENOSPC, errno.EROFS, errno.EIO, errno.EACCES, errno.ESTALE):
        if made.may_meet(code):
            yield Fault(nth, STAY, code)
    if is_network:
        yield Fault(nth, FAIL, errno.ETIMEDOUT)
        if made.name in LOST_ANSWERS or made.is_creating:
            for code in (*LOST_CODES, LOST_ANSWERS.get(made.name, errno.EEXIST)):
                yield Fault(nth, LOST, code)
    for how in others:
        if how != AWAY or made.where:
            yield Fault(nth, how, errno.ENOENT if how == AWAY else 0)


def _try(operation: Operation, stage: Stage, fault: Fault, ends: set[int]) -> None:
    tried = operation(stage)
    before = tried.process.descriptors()
    kernel = stage.kernel
    kernel.arm(tried.process, fault, tried.meets or (lambda: None))
    raised: BaseException | None = None
    try:
        try:
            tried.act()
        except Crash:
            assert fault.how in (CRASH, TOLD)
        except tried.may_raise as error:
            raised = error
        kernel.end()
        assert kernel.has_come, "it took another way this time"
        stage.ledger.check()
        if fault.how == CRASH:
            tried.after_crash()
        elif fault.how == TOLD:
            assert tried.told is not None
            tried.told()
        else:
            left = [inode for inode in tried.process.descriptors() if inode not in before]
            assert raised is None or not left, f"still open: {left}"
            tried.check(raised)
        stage.ledger.check()
        _recover(stage, ends)
    except Exception as error:
        made = kernel.made[fault.nth - 1] if len(kernel.made) >= fault.nth else None
        told = f"{fault}, {made and made.name} {made and made.where}: {type(error).__name__}: {error}"
        raise AssertionError(f"{told} (the operation raised {raised!r})") from error


def _recover(stage: Stage, ends: set[int]) -> None:
    """All others are gone. What is left is the same after many faults, and is recovered from once."""
    world, ledger = stage.world, stage.ledger
    world.scheduler = STRAIGHT
    left = hash((world.fingerprint(), ledger.fingerprint(), ledger.entered()))
    if left in ends:
        return
    ends.add(left)
    stage.recover()


def _forget_probes(world: World) -> None:
    """What a keeper that was killed while it opened has left: nobody's message, and nobody takes it for one."""
    for directory in world.disk.directories.values():
        for name in [name for name in directory.entries if name.startswith(".probe.")]:
            del directory.entries[name]
