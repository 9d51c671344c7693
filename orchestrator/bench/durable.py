"""
durable - what it costs that a message is on the disk when put returns

The bare loop does what nobody can leave out: open in tmp/, write, fsync, close, rename,
and open, fsync and close incoming/. It is run by as many processes as put is, in the same
round, for the filesystem itself lets several share one write of its journal. A batch is
compared with the same batch not synced.

Raises: BenchError when a process died.
Limits: on a filesystem in memory there is nothing to sync, and no figure has a target.
Source: fsync(2): the file's fsync does not sync the name in its directory.
See also: SPOOL.md "Putting" and "Durability", measure (Figure), crew.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from orchestrator.bench.crew import Gate, Run, run_together, share_of
from orchestrator.bench.filesystem import filesystem
from orchestrator.bench.measure import Figure
from workers.queues.open import open_queue
from workers.system import SYSTEM

BODY = bytes(1024)
PROCESSES = (1, 2, 8)
BATCH = 256
SLICES = 4  # of a round
IN_MEMORY = ("tmpfs", "ramfs")
PUT_TARGET, BATCH_TARGET = 0.9, 0.5

Role = Callable[[Path, int, Gate], None]  # role(queue, messages, gate)


def durable(directory: Path, rounds: int, messages: int = 400) -> list[Figure]:
    """
    Measure below *directory*, which stays as it was: *rounds* values for each figure.

    *messages* are put by one and by two processes together, four times as many by eight, ten times as many in
    batches of 256. About three seconds a round on a disk that syncs two thousand times a second.
    """
    share = max(messages // SLICES, 1)
    runs: list[tuple[str, Role, int, int]] = []
    for count in PROCESSES:
        total = share * max(count // 2, 1)
        runs += [(f"bare {count}", _bare, count, total), (f"put {count}", _put, count, total)]
    batched = BATCH * max(share * 10 // BATCH, 1)
    runs += [("batch", _batch_durable, 1, batched), ("batch not durable", _batch, 1, batched)]
    rates: dict[str, list[float]] = {key: [] for key, *_ in runs}
    for number in range(rounds):
        handled: Counter[str] = Counter()
        seconds = dict.fromkeys(rates, 0.0)
        # A disk has its moods, and the first meets what the others left in the journal: a bit of each in turn.
        for turn in range(SLICES):
            for key, role, count, total in runs if turn % 2 else reversed(runs):
                run = _run(directory / f"durable-{number}", role, count, total)
                handled[key] += run.handled
                seconds[key] += run.seconds
        for key, found in rates.items():
            found.append(handled[key] / seconds[key])
    return _figures(rates, filesystem(directory).kind)


def _figures(rates: dict[str, list[float]], kind: str) -> list[Figure]:
    is_memory = kind in IN_MEMORY
    note = f"{kind}: there is nothing to sync" if is_memory else ""
    found = []
    for count in PROCESSES:
        what = f"put, durable, {count} process{'es' * (count > 1)}"
        target = None if is_memory else PUT_TARGET
        values, base = rates[f"put {count}"], rates[f"bare {count}"]
        found.append(Figure("durable", what, "messages/s", values, base, target, note=note))
    what, target = f"put_many({BATCH}), durable, to not durable", None if is_memory else BATCH_TARGET
    values, base = rates["batch"], rates["batch not durable"]
    return [*found, Figure("durable", what, "messages/s", values, base, target, note=note)]


def _run(place: Path, role: Role, count: int, total: int) -> Run:
    """*count* processes put *total* messages together into a fresh queue at *place*."""
    open_queue(f"spool:{place}", create=True).close()
    try:
        # What was changed before is not to be written while we are timed: this commits the journal.
        SYSTEM.fsync_directory(str(place))
        return run_together(count, lambda index, gate: role(place, share_of(total, index, count), gate))
    finally:
        shutil.rmtree(place)


def _bare(place: Path, messages: int, gate: Gate) -> None:
    tmp, incoming = str(place / "tmp"), str(place / "incoming")
    prefix = f"bare.{os.getpid()}"
    gate.pass_()
    for number in range(messages):
        name = f"{prefix}.{number:08d}"
        fd = os.open(f"{tmp}/{name}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.write(fd, BODY)
        os.fsync(fd)
        os.close(fd)
        os.rename(f"{tmp}/{name}", f"{incoming}/{name}")
        fd = os.open(incoming, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        os.fsync(fd)
        os.close(fd)
    gate.finish(messages)


def _put(place: Path, messages: int, gate: Gate) -> None:
    with open_queue(f"spool:{place}") as queue:
        gate.pass_()
        for _ in range(messages):
            queue.put(BODY, durable=True)
        gate.finish(messages)


def _batch_durable(place: Path, messages: int, gate: Gate) -> None:
    _put_batches(place, messages, gate, durable=True)


def _batch(place: Path, messages: int, gate: Gate) -> None:
    _put_batches(place, messages, gate, durable=False)


def _put_batches(place: Path, messages: int, gate: Gate, *, durable: bool) -> None:
    with open_queue(f"spool:{place}") as queue:
        gate.pass_()
        for _ in range(messages // BATCH):
            queue.put_many([BODY] * BATCH, durable=durable)
        gate.finish(messages)
