"""
scenarios_puts - producers, killed at any call, beside each other and beside those who take

See also: scenarios, SPOOL.md section 5.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tests.sim.cast import Pool, keep, make_world, move_due, put, recover, user, work
from tests.sim.kernel import Process, World
from tests.sim.ledger import Ledger
from tests.sim.scenarios import Act, add
from tests.sim.scenarios_claims import Made, process
from workers.errors import MessageExists, QueueUnavailable

SOURCE = "/f"


def without_links(system: Process) -> None:
    """This process's filesystem has none."""

    def link(source: str, target: str) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    system._link = link  # type: ignore[method-assign]


def name_from_two_hosts(by: str, *, times: int = 1, network: str | None = None) -> Made:
    """Two producers of two hosts put under one name, and a worker takes: no message is over the other (H7)."""
    world, ledger = make_world(network=network)
    b = Pool(world, "one", 100).worker()
    acts: list[Act] = [("B", process(b), work(b, ledger, times=times, stays=True))]
    for name, pid in (("P", 2), ("R", 3)):
        producer = user(world, pid=pid, host=f"host{pid}")
        if by == "rename":
            without_links(process(producer))
        acts.append((name, process(producer), put(producer, ledger, name.encode(), "x")))
    return world, ledger, acts


def delayed_and_named(*, times: int = 1) -> Made:
    """One puts with a delay, one under a name; a keeper moves what is due, a worker takes both (H1)."""
    world, ledger = make_world()
    one = Pool(world, "one", 100)
    b, p, r = one.worker(), user(world, pid=2), user(world, pid=3)
    return world, ledger, [
        ("B", process(b), work(b, ledger, times=times, stays=True)),
        ("K", one.keeper_process, _later(one)),
        ("P", process(p), put(p, ledger, b"delayed", delay=1.0)),
        ("R", process(r), put(r, ledger, b"named", "x")),
    ]  # fmt: skip


def _later(pool: Pool) -> Callable[[], None]:
    def act() -> None:
        pool.keeper_process.advance(1.5)  # the lease is good for two
        move_due(pool.keeper)()

    return act


def batch() -> Made:
    """Three are put together, while a worker takes."""
    world, ledger = make_world()
    b, p = Pool(world, "one", 100).worker(), user(world, pid=2)
    bodies = [b"1", b"2", b"3"]

    def act() -> None:
        with suppress(QueueUnavailable):
            p.put_many(bodies)
            for body in bodies:
                ledger.was_put(body)

    return world, ledger, [("B", process(b), work(b, ledger, times=2, stays=True)), ("P", process(p), act)]


def moved_in(name: str | None, *, links: bool = False) -> Made:
    """A file that may be the only copy becomes a message, while a worker takes and another puts under that name."""
    world, ledger = make_world()
    b, p, r = Pool(world, "one", 100).worker(), user(world, pid=2), user(world, pid=3)
    fd = process(p).open(SOURCE, os.O_WRONLY | os.O_CREAT)
    process(p).write(fd, b"moved")
    process(p).close(fd)
    if links:  # a filesystem without a rename that never replaces
        _without_noreplace(process(p))

    def act() -> None:
        with suppress(QueueUnavailable, MessageExists):
            p.put_file(Path(SOURCE), name)
            ledger.was_put(b"moved")

    return world, ledger, [
        ("B", process(b), work(b, ledger, stays=True)),
        ("P", process(p), act),
        ("R", process(r), put(r, ledger, b"named", "x")),
    ]  # fmt: skip


def _without_noreplace(system: Process) -> None:
    def rename_noreplace(source: str, target: str) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    system._rename_noreplace = rename_noreplace  # type: ignore[method-assign]


def is_somewhere(world: World, ledger: Ledger) -> None:
    """The file is where it was, or was a message."""
    is_source = SOURCE[1:] in world.disk.directory("/").entries
    if not is_source and not any(inode.data == b"moved" for inode in ledger.accepted):
        raise AssertionError(f"{SOURCE} is lost")
    recover(world, ledger)


def swept(*, network: str | None = None) -> Made:
    """A producer is stopped for long with its file in tmp/, whose age a keeper judges; no message is lost."""
    world, ledger = make_world(network=network)
    one = Pool(world, "one", 100)
    p = user(world, pid=2)

    def act() -> None:
        for _ in range(2):
            one.keeper_process.advance(60.0)
            keep(one.keeper)()

    return world, ledger, [("K", one.keeper_process, act), ("P", process(p), put(p, ledger, b"slow"))]


for _by in ("link", "rename"):
    add(name_from_two_hosts, _by, dying="P", times=2)
    add(name_from_two_hosts, _by, dying="PR", crashes=2, times=2, is_long=True)
add(name_from_two_hosts, "link", network="nfs", losing="P")
add(name_from_two_hosts, "link", network="nfs", losing="PRB", faults=2, is_long=True)
add(delayed_and_named)
add(delayed_and_named, times=2, is_long=True)
add(delayed_and_named, dying="KP", crashes=2, is_long=True)
add(batch, dying="P")
add(moved_in, None, dying="P", finish=is_somewhere)
add(moved_in, "x", dying="P", finish=is_somewhere)
add(moved_in, "x", links=True, dying="P", finish=is_somewhere)
add(swept, dying="P")
