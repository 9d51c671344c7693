"""
speed - operations a second: renames, files made and removed, files made durable, and a listing

Short: a tenth of a second for each number of processes, which doubles until a fifth more is no longer
gained.

Raises: OSError.
See also: bench (measures thoroughly, and beside others).
"""

from __future__ import annotations

import contextlib
import os
import statistics
from collections.abc import Callable

from orchestrator.doctor.apart import side_by_side
from orchestrator.doctor.facts import Facts, Rate, Speed
from orchestrator.doctor.place import make_directory, write
from workers.system import System

MEASURED_S = 0.12
BATCH = 10
COUNTS = (1, 2, 4, 8, 16)
GAIN = 1.2
LISTED = 1000
LISTED_S = 1.0  # so long at the most may it take to make what is listed
BODY = bytes(1024)


class _Measured(Facts):
    """By one process: operations, and from when to when, nanoseconds since boot."""

    count: int
    begin_ns: int
    end_ns: int


Act = Callable[[System, str], int]


def speed(system: System, place: str, *, is_listed: bool) -> Speed:
    """Measure below *place*; without *is_listed* no names for a listing are made."""
    renames = _rates(system, place, "rename", _rename)
    creates = _rates(system, place, "create", _create)
    durable = _rates(system, place, "durable", _create_durable)
    listed, listing_s = _listing(system, make_directory(system, place, "listed"), LISTED if is_listed else 0)
    _, empty_s = _listing(system, make_directory(system, place, "empty"), 0)
    return Speed(rename=renames, create=creates, durable=durable, listed=listed, listing_s=listing_s, empty_s=empty_s)


def _rates(system: System, place: str, name: str, act: Act) -> Rate:
    """Operations a second with ever more processes, until that gains little."""
    rates: dict[int, float] = {}
    for count in COUNTS:
        top = make_directory(system, place, f"{name}{count}")
        for index in range(count):
            make_directory(system, top, str(index))

        def prepare(index: int, top: str = top) -> Callable[[int], _Measured]:
            return lambda _: _measured(system, f"{top}/{index}", act)

        measured = side_by_side(_Measured, count, prepare)
        # Over the whole span: a process that ran while others had not begun or were done had more for itself.
        span_ns = max(one.end_ns for one in measured) - min(one.begin_ns for one in measured)
        rates[count] = round(sum(one.count for one in measured) / max(span_ns, 1) * 1e9, 1)
        before = max((rate for number, rate in rates.items() if number < count), default=0.0)
        if rates[count] < GAIN * before:
            break
    return Rate(rates=rates)


def _measured(system: System, own: str, act: Act) -> _Measured:
    """Run *act*, which answers how many operations it was, again and again."""
    count, begin_ns = 0, system.boottime_ns()
    while (end_ns := system.boottime_ns()) - begin_ns < MEASURED_S * 1e9:
        count += act(system, own)
    return _Measured(count=count, begin_ns=begin_ns, end_ns=end_ns)


def _rename(system: System, own: str) -> int:
    """There and back."""
    with _whatever():
        write(system, f"{own}/a", b"")
    for source, target in (("a", "b"), ("b", "a")) * BATCH:
        with _whatever():
            system.rename(f"{own}/{source}", f"{own}/{target}")
    return 2 * BATCH


def _create(system: System, own: str) -> int:
    """Make and remove; both are operations."""
    for number in range(BATCH):
        with _whatever():
            write(system, f"{own}/{number}", BODY)
    for number in range(BATCH):
        with _whatever():
            system.unlink(f"{own}/{number}")
    return 2 * BATCH


def _create_durable(system: System, own: str) -> int:
    with _whatever():
        fd = system.open(f"{own}/durable", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            system.write(fd, BODY)
            system.fsync(fd)
        finally:
            system.close(fd)
    with _whatever():
        system.unlink(f"{own}/durable")
    return 1


def _whatever() -> contextlib.suppress:
    """How fast it is answered is asked here; a wrong answer is another probe's."""
    return contextlib.suppress(FileNotFoundError, FileExistsError)


def _listing(system: System, place: str, most: int) -> tuple[int, float]:
    """Make *most* names, or what can be made in a second; how many, and how long a listing of them takes."""
    until_ns, count = system.boottime_ns() + int(LISTED_S * 1e9), 0
    while count < most and system.boottime_ns() < until_ns:
        write(system, f"{place}/{count:04}", b"")
        count += 1
    taken = []
    for _ in range(3):
        before_ns = system.boottime_ns()
        system.listdir(place)
        taken.append((system.boottime_ns() - before_ns) / 1e9)
    return count, statistics.median(taken)
