"""
meeting - doctors of several hosts find each other through the directory alone, and talk through files

Nothing is believed but what a listing shows, and nothing rests on what is being examined: not on clocks,
nor on who is first, nor on a stat. Each writes into its own directory:

    alive.N     renamed to N + 1 four times a second, by a process beside: who moves is alive
    wants.N     N hosts are wanted in all
    party       the hosts that meet, by their ids: proposed by the first of them, repeated by the others
    say.K       what it says in step K

A listing may be old. One that has just changed a directory itself is given a fresh one by every
client that is known, so whoever looks makes and removes a directory there first. What is measured lies in
other directories, where nobody does that.

Long because what others left there, or say, is input: each way in which it can be wrong has its answer.
Raises: Absent when the others do not come, or leave. OSError.
See also: together (what is said), workers.queues.lease (the same idea of a beat).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import zlib
from collections.abc import Iterable, Mapping
from typing import TypeVar

from orchestrator.doctor import DoctorError
from orchestrator.doctor.facts import Facts
from orchestrator.doctor.place import move, read, write
from workers.queues.names import parse_master, shown
from workers.system import System, remove

BEAT_S = 0.25
LOOK_S = 0.02
LOOK_S_MAX = 0.2
GONE_S = 20.0  # without a beat
MEMBERS_MAX = 64

LEAVING_S = 5.0  # may it take to clear a directory
# What a look at a doctor's place is answered with where there is none: gone, a file or a link, another user's.
NOBODY = (errno.ENOENT, errno.ESTALE, errno.ENOTDIR, errno.ELOOP, errno.EACCES, errno.EPERM)

_NUMBERED = re.compile(r"(alive|wants)\.([0-9]{1,9})\Z")

Said = TypeVar("Said", bound=Facts)


class Absent(DoctorError):
    """The others did not come, or one left; its text says who."""


class Party(Facts):
    """Those who meet, sorted; the first of them leads."""

    members: tuple[str, ...]


def beat(system: System, own: str) -> None:
    """Show that the doctor of *own* lives, until this process is killed. Raises OSError when its directory is gone."""
    number = 0
    while True:
        try:
            if number:
                system.rename(f"{own}/alive.{number}", f"{own}/alive.{number + 1}")
            else:
                write(system, f"{own}/alive.1", b"")
        except FileNotFoundError:  # or a lost reply
            with contextlib.suppress(FileExistsError):
                write(system, f"{own}/alive.{number + 1}", b"")
        number += 1
        system.sleep(BEAT_S)


class Meeting:
    """
    One doctor's part in it.

    Attributes:
        members: who meets, ourselves included, sorted; the first leads.
        torn, unopened: files that were listed and not whole, or could not be opened.
    """

    def __init__(self, system: System, own: str, wanted: int) -> None:
        self._system, self._own, self._wanted = system, own, wanted
        self._top, self.id = os.path.split(own)
        self._beats: dict[str, tuple[int, int]] = {}  # number, and our time when it changed
        self._living: set[str] = set()
        self._closed: set[str] = set()  # whose place we may not look into
        self.members: tuple[str, ...] = ()
        self.torn: set[tuple[str, str]] = set()
        self.unopened: set[tuple[str, str]] = set()

    @property
    def others(self) -> tuple[str, ...]:
        """The members but ourselves."""
        return tuple(member for member in self.members if member != self.id)

    @property
    def leader(self) -> str:
        """The first of the members."""
        return self.members[0]

    def directory(self, member: str) -> str:
        """Its place."""
        return os.path.join(self._top, member)

    def announce(self) -> None:
        """Tell how many are wanted. Raises OSError."""
        write(self._system, f"{self._own}/wants.{self._wanted}", b"")

    def gather(self, wait_s: float) -> None:
        """Wait until as many as are wanted have agreed to meet. Raises Absent after *wait_s*."""
        until_ns = self._system.boottime_ns() + int(wait_s * 1e9)
        wanted: dict[str, int] = {}
        while True:
            parties: dict[str, Party] = {}
            for id_ in self._doctors():
                found = self._look(id_)
                # RACE: one that gives up takes its own away while we look. What it wanted counts on, or we would say
                # that it wants none. See test_what_a_doctor_wanted_that_gave_up_first_is_told.
                wanted[id_] = found.get("wants", wanted.get(id_, 0))
                if "party" in found and (party := self._party(id_)) is not None:
                    parties[id_] = party
            self._agree(parties, {id_ for id_ in self._living if wanted.get(id_) == self._wanted})
            if self.members and all(parties.get(id_) == Party(members=self.members) for id_ in self.others):
                # What lies in the places of those whom we do not meet says nothing of the filesystem.
                self.torn = {one for one in self.torn if one[0] in self.members}
                self.unopened = {one for one in self.unopened if one[0] in self.members}
                return
            if self._system.boottime_ns() > until_ns:
                raise Absent(self._missing(wanted, wait_s))
            self._system.sleep(LOOK_S_MAX)

    def gone(self) -> str:
        """Says who of the others has left, or is just leaving; empty when all are there. Raises OSError."""
        until_ns = self._system.boottime_ns() + int(LEAVING_S * 1e9)
        while True:
            for id_ in self.others:
                if "party" not in self._look(id_):
                    return _has_left(id_)
            if self._system.boottime_ns() > until_ns:
                return ""
            self._system.sleep(LOOK_S_MAX)

    def say(self, step: int, facts: Facts) -> None:
        """Tell the others. Raises OSError."""
        self._tell(f"say.{step}", facts)

    def hear(self, step: int, kind: type[Said], whom: Iterable[str] | None = None) -> dict[str, Said]:
        """What the others say in *step*, waited for as long as they live. Raises Absent when one is gone, OSError."""
        heard: dict[str, Said] = {}
        missing = list(self.others if whom is None else whom)
        pause_s, torn_ns = LOOK_S, 0
        while missing:
            for id_ in list(missing):
                found = self._look(id_)
                told = self._told(id_, f"say.{step}", kind) if f"say.{step}" in found else None
                now_ns = self._system.boottime_ns()
                if told is not None:
                    heard[id_] = told
                    missing.remove(id_)
                elif found and f"say.{step}" in found:
                    torn_ns = torn_ns or now_ns
                    if now_ns - torn_ns > GONE_S * 1e9:
                        raise Absent(f"what {shown_host(id_)} has written cannot be read here, after {GONE_S:g} s")
                elif not found and id_ not in self._doctors():
                    raise Absent(_has_left(id_))
                elif now_ns - self._beats[id_][1] > GONE_S * 1e9:
                    raise Absent(f"{shown_host(id_)} was there and is gone: it has not moved for {GONE_S:g} s")
            if missing:
                self._system.sleep(pause_s)
                pause_s = min(LOOK_S_MAX, pause_s * 1.2)
        return heard

    def part(self, step: int, wait_s: float) -> None:
        """Say that nothing more will be asked, and wait a little until the others say so too or are gone."""
        self.say(step, Facts())
        until_ns = self._system.boottime_ns() + int(wait_s * 1e9)
        missing = list(self.others)
        while missing and self._system.boottime_ns() < until_ns:
            for id_ in list(missing):
                try:
                    is_over = f"say.{step}" in self._look(id_)
                except OSError:
                    is_over = True
                if is_over:
                    missing.remove(id_)
            self._system.sleep(LOOK_S)

    # ---- looking

    def _doctors(self) -> list[str]:
        names = _fresh(self._system, self._top)
        return sorted(name for name in names if name != self.id and parse_master(name) is not None)

    def _look(self, id_: str) -> dict[str, int]:
        """What is in the place of *id_*, a number behind a dot as the value; and notice whether it lives."""
        found: dict[str, int] = {}
        listed: list[str] = []
        try:
            if self._system.is_directory(self.directory(id_)):  # and no link to one
                listed = _fresh(self._system, self.directory(id_))
        except OSError as error:
            if error.errno not in NOBODY:
                raise
            if error.errno in (errno.EACCES, errno.EPERM):
                self._closed.add(id_)
        for name in listed:
            numbered = _NUMBERED.match(name)
            if numbered is None:
                found[name] = 0
            else:
                found[numbered[1]] = max(int(numbered[2]), found.get(numbered[1], 0))
        now_ns, number = self._system.boottime_ns(), found.get("alive", 0)
        if id_ not in self._beats:
            self._beats[id_] = number, now_ns
        elif self._beats[id_][0] != number:
            self._beats[id_] = number, now_ns
            self._living.add(id_)
        return found

    def _agree(self, parties: Mapping[str, Party], candidates: set[str]) -> None:
        """Join the party that we are invited to, or propose one when we are the first of enough."""
        if self.members:
            ours = Party(members=self.members)
            # RACE: two propose at once, before either has seen the other, and who is wanted by both joins one. See
            # test_who_proposed_to_one_that_meets_another_proposes_to_the_next.
            if all(parties.get(id_, ours) == ours for id_ in self.others):
                return
            remove(self._system, f"{self._own}/party")
            self.members = ()
        for id_, party in sorted(parties.items()):
            if party.members[0] == id_ and self.id in party.members and len(party.members) == self._wanted:
                self._join(party)
                return
        free = sorted({self.id, *candidates} - parties.keys())[: self._wanted]
        if len(free) == self._wanted and free[0] == self.id:
            self._join(Party(members=tuple(free)))

    def _join(self, party: Party) -> None:
        self._tell("party", party)
        self.members = party.members

    def _party(self, id_: str) -> Party | None:
        try:
            party = self._told(id_, "party", Party)
        except Absent:  # a stranger's
            return None
        if party is None or not 2 <= len(party.members) <= MEMBERS_MAX or list(party.members) != sorted(party.members):
            return None
        return party if all(parse_master(member) is not None for member in party.members) else None

    def _missing(self, wanted: Mapping[str, int], wait_s: float) -> str:
        others = [id_ for id_ in wanted if id_ in self._living]
        text = f"of {self._wanted - 1} other hosts {len(others)} came within {wait_s:g} s"
        if self._wanted == 2:
            text = f"no other host came within {wait_s:g} s"
        if others:
            different = [id_ for id_ in others if wanted[id_] not in (0, self._wanted)]
            text += f" ({', '.join(map(shown_host, others))})"
            if different:
                text += f"; {shown_host(different[0])} wants {wanted[different[0]] - 1}: give all the same number"
        if self._closed:
            text += f" (what {shown_host(min(self._closed))} has there may not be looked into: run all as one user)"
        return f"{text}; start orchestrator doctor with --peer on every host at the same time, on the same directory"

    # ---- talking

    def _tell(self, name: str, facts: Facts) -> None:
        data = facts.model_dump_json().encode()
        write(self._system, f"{self._own}/{name}.tmp", b"%08x %s" % (zlib.crc32(data), data))
        move(self._system, f"{self._own}/{name}.tmp", f"{self._own}/{name}")

    def _told(self, id_: str, name: str, kind: type[Said]) -> Said | None:
        """What *id_* told; None when it is not there yet, or not whole."""
        try:
            raw = read(self._system, f"{self.directory(id_)}/{name}")
        except OSError as error:
            if error.errno not in NOBODY:
                raise
            self.unopened.add((id_, name))
            return None
        check, _, data = raw.partition(b" ")
        if check != b"%08x" % zlib.crc32(data):
            self.torn.add((id_, name))
            return None
        try:
            return kind.model_validate_json(json.dumps(_printable(json.loads(data))))
        except (ValueError, RecursionError) as error:
            raise Absent(f"{shown_host(id_)} says what cannot be understood: use the same version on all") from error


def shown_host(id_: str) -> str:
    """The host's name in an id."""
    master = parse_master(id_)
    return master[0] if master else id_


def _has_left(id_: str) -> str:
    return f"{shown_host(id_)} was there and has left; see what it says"


def _printable(said: object) -> object:
    """*said* with every text in it as a terminal may show it: a peer's may be anything."""
    match said:
        case str():
            return shown(said)
        case list():
            return [_printable(one) for one in said]
        case dict():
            return {shown(key): _printable(one) for key, one in said.items()}
    return said


def _fresh(system: System, directory: str) -> list[str]:
    """List *directory* after changing it ourselves; see the module's header."""
    name = os.path.join(directory, f"look.{system.getpid()}.{system.random_bytes(6).hex()}")
    # A directory, not a file: FUSE gives a file that is removed while its close is under way another name.
    with contextlib.suppress(OSError):  # another user's, or gone
        system.mkdir(name)
        system.rmdir(name)
    return system.listdir(directory)
