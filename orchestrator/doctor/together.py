"""
together - what several hosts find out at the same time: races, sights, locks

    1  everybody   what it found out for itself; its directories are there
    2  the leader  when the races begin, by the filesystem's clock, which all have measured
    3  everybody   what it was told in the races, and what it has
    4  the leader  what was left when all had raced
    5  everybody   when it made its names, and when it saw those of the others
    6  the leader  which locks it holds
    7  everybody   how it met them, and how many files were torn
    8  everybody   it will ask nothing more

Every host hears the same and computes the same from it.

Long because each step is said, heard and reckoned, in one place.
Raises: Absent when a host leaves, OSError.
See also: meeting (how it is said), races, judge.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pydantic import Field

from orchestrator.doctor.apart import Say
from orchestrator.doctor.facts import WAYS, Facts, Host, Locks, Race, Sight, Tally, Times, Together
from orchestrator.doctor.findings import named
from orchestrator.doctor.meeting import Absent, Meeting, shown_host
from orchestrator.doctor.place import make_directory, move, write
from orchestrator.doctor.probes import held, meet, watched
from orchestrator.doctor.races import Racer, account, fill
from workers.queues.names import shown
from workers.system import System

RACED_MIN, RACED_MAX, RACED_S = 20, 60, 1.0  # names for each way to ask, and how long a race may take for more
SLOT_S_MIN, SLOT_S_MAX = 0.005, 0.2  # for one of them
BEFORE_S = 1.0  # from the leader's word to the first name
MEETING_S_MAX = 10.0  # so far away that is, or long ago, at the most
BETWEEN_S = 0.2  # two ways
UNSEEN_S = 1.0  # a name is asked for in vain for so long, before it is made
EVENT_S = 0.5
LOOK_S = 0.01
PARTING_S = 5.0


class Arrived(Facts):
    """Step 1."""

    host: Host
    latency_s: float


class Begin(Facts):
    """Step 2: when, by the filesystem's clock; for how many names; nanoseconds for each."""

    begin_ns: int
    count: int
    slot_ns: int


class Raced(Facts):
    """Step 3, in the order of WAYS."""

    tallies: tuple[Tally, ...] = Field(min_length=len(WAYS), max_length=len(WAYS))


class Left(Facts):
    """Step 4: what is still in the contested directories, in the order of WAYS."""

    listings: tuple[tuple[str, ...], ...] = Field(min_length=len(WAYS), max_length=len(WAYS))


class Seen(Facts):
    """When one saw a name of another, nanoseconds of the filesystem's clock."""

    by_stat_ns: int | None = None
    by_listing_ns: int | None = None
    events: bool | None = None


class Sights(Facts):
    """Step 5: when one made its names, and what one saw of the others."""

    stat_made_ns: int
    listing_made_ns: int
    longest_s: float
    half_width_s: float
    seen: dict[str, Seen]


class Met(Facts):
    """Step 7."""

    locks: Locks | None
    torn: int
    unopened: int


@dataclass
class Gathering:
    """One host's part. *times* are those of this host."""

    system: System
    own: str
    meeting: Meeting
    times: Times
    latency_s: float
    longest_s: float
    say: Say
    _names: list[str] = field(default_factory=lambda: [f"n{number:03}" for number in range(RACED_MAX)])

    def examine(self, host: Host) -> tuple[list[Host], Together]:
        """All hosts in their order, and what they found out together."""
        try:
            return self._examine(host)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ESTALE):
                raise
            # RACE: another is ended and removes what we look at. See test_a_peer_that_ends_in_any_phase_has_left.
            if gone := self.meeting.gone():
                raise Absent(gone) from error
            raise

    def _examine(self, host: Host) -> tuple[list[Host], Together]:
        meeting, say = self.meeting, self.say
        is_leader = meeting.leader == meeting.id
        say(f"{len(meeting.members)} hosts meet: {', '.join(named(meeting.members))}")
        racers = self._prepare(is_leader)
        meeting.say(1, Arrived(host=host, latency_s=self.latency_s))
        arrived = {meeting.id: Arrived(host=host, latency_s=self.latency_s)} | meeting.hear(1, Arrived)
        for id_, one in arrived.items():
            if one.host.id != id_ or one.host.times is None:
                raise Absent(f"{shown_host(id_)} says what cannot be: {shown(one.host.id)} speaks in its place")
        latency_s = max(one.latency_s for one in arrived.values())
        half_width_s = max(one.host.times.half_width_s for one in arrived.values() if one.host.times is not None)
        races = self._race(racers, latency_s, half_width_s, is_leader=is_leader)
        sights = self._watch()
        met = self._lock(is_leader)
        meeting.part(8, PARTING_S)
        return [arrived[id_].host for id_ in meeting.members], Together(
            hosts=meeting.members,
            sights=tuple(sights),
            races=tuple(races),
            locks=tuple(one.locks for one in met if one.locks is not None),
            torn=sum(one.torn for one in met),
            unopened=sum(one.unopened for one in met),
        )

    # ---- races

    def _prepare(self, is_leader: bool) -> list[Racer]:
        for name in ("by-stat", "by-listing", "locks"):
            make_directory(self.system, self.own, name)
        top = self.meeting.directory(self.meeting.leader)
        racers = []
        for way in WAYS:
            contested = f"{top}/contested-{way}"
            if is_leader:
                fill(self.system, way, contested, self._names)
            racers.append(Racer(self.system, way, f"{self.own}/own-{way}", contested, self.meeting.id))
            racers[-1].prepare(self._names)
        return racers

    def _race(self, racers: Sequence[Racer], latency_s: float, half_width_s: float, *, is_leader: bool) -> list[Race]:
        meeting, say, system = self.meeting, self.say, self.system
        say("racing for names")
        if is_leader:
            slot_s = max(SLOT_S_MIN, min(SLOT_S_MAX, max(4 * latency_s, 4 * half_width_s)))
            begin = Begin(
                begin_ns=self._now_ns() + int(BEFORE_S * 1e9),
                count=max(RACED_MIN, min(RACED_MAX, int(RACED_S / slot_s))),
                slot_ns=int(slot_s * 1e9),
            )
            meeting.say(2, begin)
        else:
            begin = meeting.hear(2, Begin, [meeting.leader])[meeting.leader]
        names, begin_ns = self._names[: begin.count], begin.begin_ns
        if abs(begin_ns - self._now_ns()) > MEETING_S_MAX * 1e9:
            begin_ns = self._now_ns()  # a clock was stepped since it was looked at
        for number, racer in enumerate(racers):
            start_ns = begin_ns + number * (begin.count * begin.slot_ns + int(BETWEEN_S * 1e9))
            racer.run(names, start_ns, begin.slot_ns, self._now_ns)
        own = Raced(tallies=tuple(racer.tally(names) for racer in racers))
        meeting.say(3, own)
        raced = {meeting.id: own} | meeting.hear(3, Raced)
        if is_leader:
            left = Left(listings=tuple(tuple(system.listdir(f"{self.own}/contested-{way}")) for way in WAYS))
            meeting.say(4, left)
        else:
            left = meeting.hear(4, Left, [meeting.leader])[meeting.leader]
        return [
            account(way, names, [raced[id_].tallies[number] for id_ in meeting.members], left.listings[number])
            for number, way in enumerate(WAYS)
        ]

    # ---- sights

    def _watch(self) -> list[Sight]:
        meeting, system = self.meeting, self.system
        self.say(f"looking for names of each other, {self.longest_s:g} s at most")
        start_ns = system.boottime_ns()
        made: dict[str, int] = {}
        seen = {id_: dict[str, int]() for id_ in meeting.others}
        with contextlib.ExitStack() as stack:
            events = {id_: stack.enter_context(watched(f"{meeting.directory(id_)}/by-listing")) for id_ in seen}
            until_ns = start_ns + int((UNSEEN_S + self.longest_s) * 1e9)
            while not made or (system.boottime_ns() < until_ns and any(len(one) < 2 for one in seen.values())):
                if not made and system.boottime_ns() > start_ns + int(UNSEEN_S * 1e9):
                    made = {how: self._make(how) for how in ("by-stat", "by-listing")}
                for id_, found in seen.items():
                    for how, look in (("by-stat", self._is_there), ("by-listing", self._is_listed)):
                        if how not in found and look(f"{meeting.directory(id_)}/{how}"):
                            found[how] = self._now_ns()
                system.sleep(LOOK_S)
            told = {
                id_: Seen(
                    by_stat_ns=found.get("by-stat"),
                    by_listing_ns=found.get("by-listing"),
                    events=_ask(events[id_], EVENT_S if found else 0.0),
                )
                for id_, found in seen.items()
            }
        own = Sights(
            stat_made_ns=made["by-stat"],
            listing_made_ns=made["by-listing"],
            longest_s=self.longest_s,
            half_width_s=self.times.half_width_s,
            seen=told,
        )
        meeting.say(5, own)
        return _sights({meeting.id: own} | meeting.hear(5, Sights), meeting.members)

    def _make(self, how: str) -> int:
        """A name that is new to all; its time by the filesystem's clock."""
        write(self.system, f"{self.own}/fresh", b"")
        move(self.system, f"{self.own}/fresh", f"{self.own}/{how}/new")
        return self._now_ns()

    def _is_there(self, directory: str) -> bool:
        try:
            self.system.lstat(f"{directory}/new")
        except FileNotFoundError:
            return False
        return True

    def _is_listed(self, directory: str) -> bool:
        return "new" in self.system.listdir(directory)

    # ---- locks

    def _lock(self, is_leader: bool) -> list[Met]:
        meeting, say = self.meeting, self.say
        say("meeting each other's locks")
        place = f"{meeting.directory(meeting.leader)}/locks"
        if is_leader:
            with held(self.system, place) as kept:
                meeting.say(6, kept)
                own = Met(locks=None, torn=len(meeting.torn), unopened=len(meeting.unopened))
                meeting.say(7, own)
                met = meeting.hear(7, Met)
        else:
            kept = meeting.hear(6, Locks, [meeting.leader])[meeting.leader]
            locks = meet(self.system, place, kept)
            own = Met(locks=locks, torn=len(meeting.torn), unopened=len(meeting.unopened))
            meeting.say(7, own)
            met = meeting.hear(7, Met)
        return [({meeting.id: own} | met)[id_] for id_ in meeting.members]

    # ---- time

    def _now_ns(self) -> int:
        """The filesystem's time, as this host reckons it."""
        return self.system.boottime_ns() + self.times.boot_offset_ns


def _ask(was_seen: Callable[[float], bool] | None, wait_s: float) -> bool | None:
    return was_seen(wait_s) if was_seen is not None else None


def _sights(told: dict[str, Sights], members: Sequence[str]) -> list[Sight]:
    """Who saw whose name how late."""
    found = []
    for watcher in members:
        for maker, seen in sorted(told[watcher].seen.items()):
            if maker not in told:
                continue  # what a peer says may be anything
            of_maker = told[maker]
            found.append(
                Sight(
                    watcher=watcher,
                    maker=maker,
                    longest_s=told[watcher].longest_s,
                    by_stat_s=_delay_s(seen.by_stat_ns, of_maker.stat_made_ns),
                    by_listing_s=_delay_s(seen.by_listing_ns, of_maker.listing_made_ns),
                    half_width_s=of_maker.half_width_s + told[watcher].half_width_s,
                    events=seen.events,
                )
            )
    return found


def _delay_s(seen_ns: int | None, made_ns: int) -> float | None:
    # Two clocks that are known within milliseconds: what seems to be seen before it was made was seen at once.
    return None if seen_ns is None else max(0.0, (seen_ns - made_ns) / 1e9)
