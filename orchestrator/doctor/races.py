"""
races - many want one name: the ways to ask for it, and what came of it

    rename      contested/N to OWN/N: how a message is claimed
    link        OWN/N to contested/N, which must not be there: put(name=), locks of dirq
    mkdir       contested/N: owner directories, locks of dirq
    create      contested/N by O_EXCL: temporary files, leases
    noreplace   OWN/N to contested/N by RENAME_NOREPLACE: put --move with a name

All ask for one name at about the same moment, then for the next: who starts a little earlier would else
have them all, without a race. Who won asks a little later the next time, who lost a little earlier, so
that it comes to close races however well the moments of two hosts fit.

What a call answers is not believed: afterwards everybody looks at the disk for what is its own.
One that was told "no" and has it lost a reply; one that was told "yes" and has it not was lied to.

account() is pure. The rest is one process's part, through a System.
See also: probes (on one host), together (between hosts), SPOOL.md section 12.
"""

from __future__ import annotations

import errno
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence

from orchestrator.doctor.apart import error_name
from orchestrator.doctor.facts import Race, Tally, Way
from orchestrator.doctor.place import make_directory, read, unless_full, write
from workers.system import System

PAUSE_S = 0.2  # at once: who is silent for long counts as hung
STEPS = 16  # of a slot, by which a racer asks later or earlier
UNSUPPORTED = ("EPERM", "EINVAL", "ENOSYS", "EOPNOTSUPP", "ENOTSUP")


class Racer:
    """One of those who race: *own* is its directory, *contested* everybody's, *who* its name in what it writes."""

    def __init__(self, system: System, way: Way, own: str, contested: str, who: str) -> None:
        self._system, self._way = system, way
        self._own, self._contested, self._who = own, contested, who.encode()
        self._won: list[str] = []
        self._errors: Counter[str] = Counter()
        self._missed = 0
        self._lost_to = errno.ENOENT if way == "rename" else errno.EEXIST

    def prepare(self, names: Sequence[str]) -> None:
        """Make what one's own part needs. Raises OSError."""
        make_directory(self._system, self._own)
        if self._way in ("link", "noreplace"):
            for name in names:
                write(self._system, f"{self._own}/{name}", self._who)

    def ask(self, name: str) -> bool:
        """Try to be first; whether we are told so."""
        try:
            self._call()(name)
        except OSError as error:
            unless_full(error)
            if error.errno == self._lost_to:
                self._missed += 1
            else:
                self._errors[error_name(error)] += 1
            return False
        self._won.append(name)
        return True

    def run(self, names: Sequence[str], begin_ns: int, slot_ns: int, now_ns: Callable[[], int]) -> None:
        """Ask for each in its slot: *slot_ns* for each name, from *begin_ns* on by the clock *now_ns*."""
        step_ns, late_ns = slot_ns // STEPS, slot_ns // 2
        for index, name in enumerate(names):
            until_ns = begin_ns + index * slot_ns + late_ns
            while (pause_ns := until_ns - now_ns()) > 0:
                self._system.sleep(min(pause_ns / 1e9, PAUSE_S))
            late_ns += step_ns if self.ask(name) else -step_ns
            late_ns = max(0, min(slot_ns - step_ns, late_ns))

    def tally(self, names: Sequence[str]) -> Tally:
        """What one was told, and what one has. Raises OSError."""
        return Tally(won=tuple(self._won), found=tuple(self._found(names)), missed=self._missed, errors=self._errors)

    def _call(self) -> Callable[[str], object]:
        system, own, contested = self._system, self._own, self._contested

        def create(name: str) -> None:
            write(system, f"{contested}/{name}", self._who)

        match self._way:
            case "rename":
                return lambda name: system.rename(f"{contested}/{name}", f"{own}/{name}")
            case "link":
                return lambda name: system.link(f"{own}/{name}", f"{contested}/{name}")
            case "noreplace":
                return lambda name: system.rename_noreplace(f"{own}/{name}", f"{contested}/{name}")
            case "mkdir":
                return lambda name: system.mkdir(f"{contested}/{name}")
            case "create":
                return create

    def _found(self, names: Sequence[str]) -> list[str]:
        """The names that are one's own by what lies on the disk."""
        match self._way:
            case "rename":
                return sorted(self._system.listdir(self._own))
            case "mkdir":
                return self._won  # a directory does not tell who made it
            case _:
                # By content: a filesystem without inodes of its own gives two names of one file two numbers.
                there = set(self._system.listdir(self._contested))
                return [name for name in names if name in there and self._is_own(name)]

    def _is_own(self, name: str) -> bool:
        try:
            return read(self._system, f"{self._contested}/{name}") == self._who
        except FileNotFoundError:
            return False


def fill(system: System, way: Way, contested: str, names: Sequence[str]) -> None:
    """Make the contested directory, with what is raced for in it. One of all; raises OSError."""
    make_directory(system, contested)
    if way == "rename":
        for name in names:
            write(system, f"{contested}/{name}", b"")


def account(way: Way, names: Sequence[str], tallies: Sequence[Tally], left: Sequence[str]) -> Race:
    """What came of a race for *names*; *left* is the listing of the contested directory afterwards."""
    errors = sum((Counter(tally.errors) for tally in tallies), Counter[str]())
    wins = tuple(len(set(tally.won)) for tally in tallies)
    unsupported = next((error for error in errors if error in UNSUPPORTED), "")
    if unsupported and not any(wins):
        return Race(way=way, names=len(names), wins=wins, errors=errors, unsupported=unsupported)
    told, has = _owners(tally.won for tally in tallies), _owners(tally.found for tally in tallies)
    there = set(left)
    twice = vanished = 0
    for name in names:
        holders = has[name] | ({-1} if way == "rename" and name in there else set())
        # What is made stays in the contested directory, also when nobody says that it was he who made it.
        is_somewhere = bool(holders) or (way != "rename" and name in there)
        twice += len(told[name]) > 1 or len(holders) > 1
        vanished += not is_somewhere
    unclaimed = [name for name in names if way == "mkdir" and name in there and not told[name]]
    return Race(
        way=way,
        names=len(names),
        wins=wins,
        twice=twice,
        vanished=vanished,
        false=sum(len(told[name] - has[name]) for name in names),
        lost_replies=sum(len(has[name] - told[name]) for name in names) + len(unclaimed),
        errors=errors,
    )


def _owners(lists: Iterable[Sequence[str]]) -> dict[str, set[int]]:
    """For each name who has it in its list."""
    found: dict[str, set[int]] = defaultdict(set)
    for number, names in enumerate(lists):
        for name in names:
            found[name].add(number)
    return found
