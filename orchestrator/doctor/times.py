"""
times - the filesystem's clock: how fine its times are, how far it is from ours, what sets them

A file made between t0 and t1 of our clock has a time c with c - t1 <= offset < c + granularity - t0, where
offset is the filesystem's clock minus ours. Each file narrows the bounds; the ones around a step of a
coarse clock narrow them to the length of a call. Nobody can be asked for the time: this is all there is.
Linux hands out finer times than its clock has when a file is looked at in between, so the smallest step
that was seen is tried first, and a coarser one where no offset would fit.

Raises: OSError.
See also: together (hosts meet at a time of the filesystem's clock).
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from typing import NamedTuple

from orchestrator.doctor.facts import Times
from orchestrator.doctor.place import move, write
from workers.system import System

SECOND_NS = 1_000_000_000
STEPS_NS = (1_000_000, 4_000_000, 10_000_000, 100_000_000, SECOND_NS, 2 * SECOND_NS)
SAMPLES = 12  # at the least
SAMPLED_S = 2.3  # at the most: a step of the coarsest clock there is (2 s) comes within
AN_HOUR_S = 3600


class Sample(NamedTuple):
    """A file's time, and ours around its making: wall clock and time since boot, nanoseconds."""

    wall_ns: int
    boot_ns: int
    took_ns: int
    ctime_ns: int


def times(system: System, place: str) -> Times:
    """Sample until a step of the clock was seen."""
    taken: list[Sample] = []
    until_ns = system.boottime_ns() + int(SAMPLED_S * 1e9)
    while len(taken) < SAMPLES or (not _has_step(taken) and system.boottime_ns() < until_ns):
        taken.append(_sample(system, f"{place}/t{len(taken)}"))
        # Two of one tick would be wasted.
        system.sleep(0.002)
    step_ns, boot_low_ns, boot_high_ns = fit_ns([(one.boot_ns, one.took_ns, one.ctime_ns) for one in taken])
    _, low_ns, high_ns = fit_ns([(one.wall_ns, one.took_ns, one.ctime_ns) for one in taken])
    return Times(
        granularity_s=step_ns / 1e9,
        offset_s_min=low_ns / 1e9,
        offset_s_max=high_ns / 1e9,
        boot_offset_ns=(boot_low_ns + boot_high_ns) // 2,
        half_width_s=(boot_high_ns - boot_low_ns) / 2e9,
        keeps_ctime=_keeps_ctime(system, place),
        touch_s=_touch_s(system, place),
    )


def granularity_ns(ctimes_ns: Sequence[int]) -> int:
    """The step of a clock that made these times, in their order: the smallest difference, or the roundest unit."""
    steps = [later - earlier for earlier, later in itertools.pairwise(ctimes_ns) if later > earlier]
    whole = next((unit for unit in (2 * SECOND_NS, SECOND_NS) if all(time % unit == 0 for time in ctimes_ns)), None)
    if whole is None:
        return min(steps, default=SECOND_NS)
    return whole


def fit_ns(samples: Sequence[tuple[int, int, int]]) -> tuple[int, int, int]:
    """
    The granularity, and the lowest and highest difference (the filesystem's clock minus ours), that explain *samples*.

    Each is (our time before, how long it took, the file's time). A clock that was stepped meanwhile
    leaves none; then the widest are answered.
    """
    seen_ns = granularity_ns([file_ns for *_, file_ns in samples])
    lows = [file_ns - (before_ns + took_ns) for before_ns, took_ns, file_ns in samples]
    highs = [file_ns - before_ns for before_ns, _, file_ns in samples]
    for step_ns in (seen_ns, *(step_ns for step_ns in STEPS_NS if step_ns > seen_ns)):
        if max(lows) <= min(highs) + step_ns:
            return step_ns, max(lows), min(highs) + step_ns
    return seen_ns, min(lows), max(highs) + seen_ns


def _has_step(taken: Sequence[Sample]) -> bool:
    return len({sample.ctime_ns for sample in taken}) > 1


def _sample(system: System, path: str) -> Sample:
    wall_ns, boot_ns = system.wall_ns(), system.boottime_ns()
    found = write(system, path, b"x")
    took_ns = system.boottime_ns() - boot_ns
    with contextlib.suppress(FileNotFoundError):  # a lost reply
        system.unlink(path)
    return Sample(wall_ns, boot_ns, took_ns, found.st_ctime_ns)


def _keeps_ctime(system: System, place: str) -> bool:
    """Whether a file's ctime says when it was last changed or moved, also when its mtime was set into the past."""
    made_ns = write(system, f"{place}/aged", b"x").st_ctime_ns
    past_ns = made_ns - AN_HOUR_S * SECOND_NS
    system.utime(f"{place}/aged", (past_ns, past_ns))
    move(system, f"{place}/aged", f"{place}/moved")
    return system.lstat(f"{place}/moved").st_ctime_ns > past_ns + AN_HOUR_S * SECOND_NS // 2


def _touch_s(system: System, place: str) -> float:
    """Of a touch that gives no time: the mtime minus our clock."""
    write(system, f"{place}/touched", b"x")
    past_ns = system.wall_ns() - AN_HOUR_S * SECOND_NS
    system.utime(f"{place}/touched", (past_ns, past_ns))
    now_ns = system.wall_ns()
    system.utime(f"{place}/touched")
    return (system.lstat(f"{place}/touched").st_mtime_ns - now_ns) / 1e9
