"""
examination - a doctor from its first look to its last: each probe apart, then the others, then it leaves

The process that calls examine() asks nothing of the mount. Whatever does is a child with a limit; when
one was late the probes after it are left out, for they would hang as well; likewise when there was no room.

Raises: DoctorError when there is nothing to examine: no directory, no right, no room, no answer.
See also: probes, together, judge (what is made of it).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from orchestrator.config_values import host_name, usable_cores
from orchestrator.doctor import DoctorError, place, probes
from orchestrator.doctor.apart import Say, Speaking, apart, beside
from orchestrator.doctor.facts import (
    WAYS,
    AllReplies,
    Events,
    Examined,
    Facts,
    Host,
    Links,
    Locks,
    Mount,
    Names,
    Race,
    Speed,
    Sync,
    Times,
    Together,
    Trouble,
    Way,
)
from orchestrator.doctor.findings import counted
from orchestrator.doctor.meeting import Meeting, beat
from orchestrator.doctor.mount import mount
from orchestrator.doctor.speed import speed
from orchestrator.doctor.times import times
from orchestrator.doctor.together import Gathering
from workers.queues.names import master_name, parse_master, shown
from workers.system import SYSTEM, System
from workers.trust import Place, guarded

PROCESSES = 4  # that race on one host
RACED_MIN, RACED_MAX, RACED_S = 10, 100, 1.0  # names, and how long a race may take for more than the least
ASKED_MIN, ASKED_MAX, ASKED_S = 5, 40, 0.5  # of each call when looking for lost replies
_FULL = ("ENOSPC", "EDQUOT")

Found = TypeVar("Found", bound=Facts)


@dataclass(frozen=True, slots=True)
class Limits:
    """
    Seconds.

    Attributes:
        silence_s: a probe that says nothing for so long is killed.
        wait_s: for the other hosts; longest_s: for a name of another host to be seen.
    """

    silence_s: float = 10.0
    wait_s: float = 60.0
    longest_s: float = 35.0


class _Placed(Facts):
    own: str
    latency_s: float


class _Met(Facts):
    hosts: tuple[Host, ...]
    together: Together


def examine(path: str, others: int, limits: Limits, say: Say, system: System = SYSTEM) -> Examined:
    """Examine *path*, with so many *others*. *say* is told what is done. Blocks, minutes at the most."""
    if not path:
        raise DoctorError("cannot examine an empty path; name a directory of the filesystem in question")
    path = os.path.abspath(path)
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise DoctorError(f"cannot examine {shown(path)}: its name is no UTF-8; give it another one") from error
    id_ = master_name(host_name(), system)
    doctor = _Doctor(path, id_, limits, say, system)
    placed = doctor.place()
    try:
        if not others:
            return Examined(path=path, hosts=(doctor.examine(placed),))
        with beside(lambda _: beat(system, placed.own)):
            doctor.announce(placed, others)
            return doctor.meet(placed, doctor.examine(placed), others)
    finally:
        doctor.leave(placed)


class _Doctor:
    """One examination."""

    def __init__(self, path: str, id_: str, limits: Limits, say: Say, system: System) -> None:
        self._path, self._id, self._limits, self._say, self._system = path, id_, limits, say, system
        self._troubles: list[Trouble] = []

    def place(self) -> _Placed:
        """Make our directory."""

        def work(system: System, _: Say) -> _Placed:
            own = place.make(system, self._path, self._id)
            try:
                return _Placed(own=own, latency_s=place.latency_s(system, own))
            except OSError:
                place.leave(system, own)
                raise

        found = self._apart("place", _Placed, work)
        if isinstance(found, Trouble):
            if found.error in _FULL:
                raise DoctorError(f"cannot examine {shown(self._path)}: {found.text}; make room")
            raise DoctorError(
                f"cannot examine {shown(self._path)}: it {found.text}; is the mount hung, or its server away?"
            )
        return found

    def leave(self, placed: _Placed) -> None:
        """Remove it; what cannot be removed is said."""

        def work(system: System, _: Say) -> Facts:
            if not place.leave(system, placed.own):
                raise DoctorError(f"{shown(placed.own)} could not be removed: remove it by hand")
            return Facts()

        try:
            found = self._apart("leave", Facts, work)
        except DoctorError as error:
            self._say(str(error))
        else:
            if isinstance(found, Trouble):
                self._say(f"{shown(placed.own)} is left: its removal {found.text}")

    def examine(self, placed: _Placed) -> Host:
        """What this host can find out for itself."""
        latency_s = placed.latency_s
        # First, for where there is little room a doctor must not take the last of it from producers.
        mounted = self._probe(placed, "mount", Mount, lambda system, _: mount(system, self._path))
        is_low = mounted is not None and mounted.is_low
        raced = _as_many(RACED_MIN, RACED_MAX, RACED_S / PROCESSES, latency_s)
        asked = _as_many(ASKED_MIN, ASKED_MAX, ASKED_S, latency_s)

        if is_low:
            raced, asked = RACED_MIN, ASKED_MIN

        def race(way: Way) -> Callable[[System, str], Race]:
            return lambda system, own: probes.race(system, own, way, raced, PROCESSES, latency_s=latency_s)

        host, kernel8, _, _ = parse_master(self._id) or ("", "", 0, 0)
        found_races = [self._probe(placed, f"race-{way}", Race, race(way)) for way in WAYS]
        return Host(
            id=self._id,
            host=host,
            kernel8=kernel8,
            boot8=_boot8(self._system),
            user=self._system.geteuid(),
            cores=usable_cores(),
            mount=mounted,
            names=self._probe(placed, "names", Names, probes.names),
            links=self._probe(placed, "links", Links, probes.links),
            races=tuple(one for one in found_races if one is not None),
            locks=self._probe(placed, "locks", Locks, probes.locks),
            sync=self._probe(placed, "sync", Sync, probes.sync),
            times=self._probe(placed, "times", Times, times),
            events=self._probe(placed, "events", Events, probes.events),
            replies=self._probe(placed, "replies", AllReplies, lambda system, own: probes.replies(system, own, asked)),
            speed=self._probe(placed, "speed", Speed, lambda system, own: speed(system, own, is_listed=not is_low)),
            troubles=tuple(self._troubles),
        )

    def announce(self, placed: _Placed, others: int) -> None:
        """Let other doctors see from now on that one is coming."""

        def work(system: System, _: Say) -> Facts:
            Meeting(system, placed.own, others + 1).announce()
            return Facts()

        self._apart("announce", Facts, work)

    def meet(self, placed: _Placed, host: Host, others: int) -> Examined:
        """What several hosts find out together; without them, what this one has."""
        alone = Examined(path=self._path, hosts=(host,))
        if host.times is None:
            return alone.model_copy(update={"absent": "this host came to no end by itself"})
        own_times = host.times

        def work(system: System, say: Say) -> _Met:
            meeting = Meeting(system, placed.own, others + 1)
            say(f"waiting for {counted(others, 'other host')}, {self._limits.wait_s:g} s at most")
            meeting.gather(self._limits.wait_s)
            gathering = Gathering(system, placed.own, meeting, own_times, placed.latency_s, self._limits.longest_s, say)
            hosts, together = gathering.examine(host)
            return _Met(hosts=tuple(hosts), together=together)

        try:
            met = self._apart("together", _Met, work)
        except DoctorError as error:
            return alone.model_copy(update={"absent": str(error)})
        if isinstance(met, Trouble):
            host = host.model_copy(update={"troubles": (*host.troubles, met)})
            return Examined(path=self._path, hosts=(host,), absent=f"the examination with others {met.text}")
        return Examined(path=self._path, hosts=met.hosts, together=met.together)

    def _probe(
        self, placed: _Placed, name: str, kind: type[Found], work: Callable[[System, str], Found]
    ) -> Found | None:
        """One probe in a directory of its own; None when it came to no end."""
        if any(trouble.late_s is not None or trouble.error in _FULL for trouble in self._troubles):
            return None
        self._say(name.replace("-", " "))

        def in_place(system: System, _: Say) -> Found:
            own = place.make_directory(system, placed.own, name)
            try:
                return work(system, own)
            finally:
                place.clear(system, own)

        found = self._apart(name, kind, in_place)
        if isinstance(found, Trouble):
            self._troubles.append(found)
            return None
        return found

    def _apart(self, name: str, kind: type[Found], work: Callable[[System, Say], Found]) -> Found | Trouble:
        """*work* in a process of its own, given a System that speaks."""

        def speaking(say: Say) -> Found:
            # Whoever else may write there may put a link where we clear a directory.
            return work(Speaking(guarded(self._system, Place(self._path, (".doctor",))), say), say)

        return apart(name, kind, speaking, self._limits.silence_s, self._say)


def _boot8(system: System) -> str:
    """Of the machine's start; empty where it has none."""
    with contextlib.suppress(OSError):
        return hashlib.sha256(place.read(system, "/proc/sys/kernel/random/boot_id")).hexdigest()[:8]
    return ""


def _as_many(least: int, most: int, seconds: float, latency_s: float) -> int:
    """How often something may be done in about so many seconds."""
    return max(least, min(most, int(seconds / max(latency_s, 1e-6))))
