"""
dirq_cast - who takes part in a simulated dirq: lockers, removers, adders, sweepers, the original, and who ends it

Ours are the real engines over a simulated process; the original is its own code (see
dirq_original). What a holder does between lock and remove is written here, with what it
says to the ledger.

See also: scenarios_dirq (who meets whom), dirq_ledger (what they must not do to an element).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import Any, NamedTuple

from tests.sim.dirq_ledger import BODY, HEADER, KEPT, MAX_LOCK_S, MAX_TEMP_S, QUEUE, DirqLedger
from tests.sim.dirq_original import original
from tests.sim.kernel import Process, World
from workers.dirq.elements import Elements, Lock
from workers.dirq.schema_elements import SchemaElements
from workers.dirq.simple_elements import SimpleElements

SIMPLE, SCHEMA = "simple", "schema"
KINDS = (SIMPLE, SCHEMA)
S = 10**9
Engine = Elements[Any]
Act = Callable[[], None]


class Walker(Process):
    """A process whose mkdir looks its directory up first; that may be moved before the other is made in it."""

    def mkdir(self, path: str, mode: int = 0o777) -> None:  # type: ignore[override]
        """See System."""
        where, _, name = path.rpartition("/")
        self.lstat(where)
        self.mkdir_at(self.disk.directory(where), name)


class Taken(NamedTuple):
    """An element in hand."""

    lock: Lock
    data: bytes


def make_world(
    kind: str, *bodies: bytes, age_s: float = 0, network: str | None = None, counts_links: bool = True
) -> tuple[World, DirqLedger, list[str]]:
    """A world with a queue of *kind* in which *bodies* have waited for *age_s*; their names."""
    world = World(network=network, exact=True, counts_links=counts_links)
    ledger = DirqLedger(world)
    process = world.process(1)
    for path in (QUEUE, KEPT):
        process.mkdir(path)
    queue = engine(kind, process)
    queue.make()
    names = []
    for data in bodies:
        ledger.whole.add(content_of(kind, data))
        names.append(queue.add(element(kind, data)))
        ledger.was_added(data)
    world.moved_ns += int(age_s * S)
    return world, ledger, names


def engine(kind: str, process: Process, rndhex: int | None = None) -> Engine:
    """The engine of that *kind* as *process* has it; the last digit of its names is its own unless given."""
    digit = process.pid % 16 if rndhex is None else rndhex
    if kind == SIMPLE:
        return SimpleElements(QUEUE, rndhex=digit, system=process)
    return SchemaElements(QUEUE, rndhex=digit, system=process)


def element(kind: str, data: bytes) -> Any:
    return data if kind == SIMPLE else {BODY: data, HEADER: b"of " + data}


def content_of(kind: str, data: bytes) -> Any:
    return data if kind == SIMPLE else frozenset(element(kind, data).items())


# ---- ours


def add(
    queue: Engine, ledger: DirqLedger, kind: str, data: bytes, *, durable: bool = False, may_fail: bool = False
) -> Act:
    """A producer of one element, that says what it was answered; that it fails is wrong unless it *may_fail*."""
    ledger.whole.add(content_of(kind, data))

    def act() -> None:
        try:
            queue.add(element(kind, data), durable=durable)
        except OSError as error:
            if not may_fail:
                ledger.is_wrong(f"add of {data!r}: {error}")
        else:
            ledger.was_added(data)

    return act


def handle(
    queue: Engine, ledger: DirqLedger, name: str, settle: str = "remove", *, fast: bool = False, times: int = 1
) -> Act:
    """Who locks the element *name*, reads it, and settles it by the verb *settle*, if it still is the holder then."""

    def act() -> None:
        for _ in range(times):
            with suppress(OSError):
                if (taken := take(queue, ledger, name, fast=fast)) is not None:
                    settle_taken(queue, ledger, taken, settle)

    return act


def take(queue: Engine, ledger: DirqLedger, name: str, *, fast: bool = False) -> Taken | None:
    """Lock and read it, by the fast way of a pool or by the way of the published API."""
    if fast:
        if (found := queue.open_locked(name)) is None:
            return None
        lock, fd, _ = found
    else:
        locked = queue.lock(name)
        if locked is None:
            return None
        lock, fd = locked, queue.system.open(queue.body_path(name), os.O_RDONLY)
    data = queue.system.read(fd, 4096)
    queue.system.close(fd)
    ledger.holds(_process(queue), data)
    return Taken(lock, data)


def settle_taken(queue: Engine, ledger: DirqLedger, taken: Taken, settle: str) -> None:
    """The end of an element in hand, as the adapter of a pool does it; the verb "" is none."""
    lock, data = taken
    by = _process(queue)
    ledger.settles(by, data)
    if not settle:
        return
    if not queue.is_held(lock):
        ledger.was_lost(by, data)
        return
    if settle == "remove":
        if queue.remove(lock.name):
            ledger.was_removed(data)
    elif settle == "unlock":
        queue.unlock(lock.name)
    elif settle == "take out":
        queue.take_out(lock.name, kept(lock.name))
    else:
        raise AssertionError(settle)


def kept(name: str) -> str:
    """Where an element goes that is taken out."""
    return f"{KEPT}/{name[9:]}"


def sweep(queue: Engine, *, is_loud: bool = False) -> Act:
    """A reaper's round: what purge() does; when it fails the next one follows, unless it *is_loud*."""

    def act() -> None:
        with nullcontext() if is_loud else suppress(OSError):
            now_ns = queue.filesystem_now_ns()
            queue.sweep(now_ns - MAX_TEMP_S * S, now_ns - MAX_LOCK_S * S)

    return act


def put_in(queue: Engine, ledger: DirqLedger, name: str) -> Act:
    """A keeper puts the element that was taken out as *name* back."""

    def act() -> None:
        with suppress(OSError):
            queue.put_in(kept(name), name)

    return act


def handle_all(queue: Engine, ledger: DirqLedger, settle: str = "remove") -> Act:
    """A worker that looks once, and handles all that it sees waiting."""

    def act() -> None:
        with suppress(OSError):
            for directory in queue.directories():
                for name in queue.waiting(directory, set()):
                    handle(queue, ledger, name, settle, fast=True)()

    return act


def wait(process: Process, seconds: float) -> Act:
    """So much time passes at any moment."""
    return lambda: process.advance(seconds)


def _process(queue: Engine) -> Process:
    assert isinstance(queue.system, Process)
    return queue.system


# ---- the original


def their_purge(kind: str, process: Process) -> Act:
    """The original's purge(); its own failures are its own (D1, D10)."""
    queue = original(kind, process)

    def act() -> None:
        with suppress(OSError, StopIteration):
            queue.purge(MAX_TEMP_S, MAX_LOCK_S)

    return act


def their_handle(kind: str, process: Process, ledger: DirqLedger, name: str, settle: str = "remove") -> Act:
    """The original locks, gets and removes."""
    queue = original(kind, process)
    ledger.unfenced.add(process)

    def act() -> None:
        with suppress(OSError):
            if not queue.lock(name):
                return
            found = queue.get(name)
            data = found if isinstance(found, bytes) else found[BODY]
            ledger.holds(process, data)
            ledger.settles(process, data)
            if settle == "remove":
                queue.remove(name)
                ledger.was_removed(data)
            elif settle == "unlock":
                queue.unlock(name)

    return act


def their_add(kind: str, process: Process, ledger: DirqLedger, data: bytes) -> Act:
    """The original adds; that it fails is wrong where only ours are beside it."""
    queue = original(kind, process)
    ledger.whole.add(content_of(kind, data))

    def act() -> None:
        try:
            queue.add(element(kind, data))
        except OSError as error:
            ledger.is_wrong(f"the original's add of {data!r}: {error}")
        else:
            ledger.was_added(data)

    return act


# ---- the end


def recover(world: World, ledger: DirqLedger, kind: str) -> None:
    """All others are gone: after its time one of ours sweeps, and removes what is left. Then nothing may be left."""
    world.disk.is_full = False
    queue = engine(kind, world.process(99_999))
    for _ in range(2):
        world.moved_ns += (MAX_LOCK_S + 1) * S
        sweep(queue)()
        for directory in queue.directories():
            for name in queue.names(directory):
                if (taken := take(queue, ledger, name)) is not None:
                    settle_taken(queue, ledger, taken, "remove")
    ledger.check_all_ended()
