"""
beside_dirq - processes of ours and of the original dirq on one directory, and the accounts of what they did

An Actor adds elements, or takes them, or purges. A lock that a killed one held gets the time of hours ago, so that
purges with their common limits break it at once, and nobody waits for it. accounts() reads the journals.

Long because: what the actors write down, what a kill leaves of it and how it is read are read together.

See also: beside (actors, their journals), test_beside_dirq.
"""

from __future__ import annotations

import importlib
import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.process import beside
from tests.process.beside import BURST_MAX, IDLE_S, OURS, TORN, ground_on, identity_in, text_of
from tests.waiting import until
from workers.dirq import Queue, QueueError, QueueSimple

for _module in ("dirq.Exceptions", "dirq.QueueSimple", "dirq.queue"):
    pytest.importorskip(_module, reason="the original dirq is not installed")
ORIGINAL_SIMPLE = importlib.import_module("dirq.QueueSimple").QueueSimple
ORIGINAL_QUEUE = importlib.import_module("dirq.queue").Queue
ORIGINAL_ERROR = importlib.import_module("dirq.Exceptions").QueueError

SCHEMA = {"body": "string", "header": "table?"}
ELEMENT = re.compile(r"[0-9a-f]{8}/[0-9a-f]{14}\Z")
MAXELTS = 50  # few, so that intermediate directories come and go
OLD_S = 4 * 3600.0  # older than every limit of a purge
LIMITS = {"maxtemp": 300, "maxlock": 600}


# ---- the two kinds of queues


class Simple:
    """QueueSimple: an element is a file."""

    name = "simple"
    url = "dirq-simple:{}?granularity=1"

    def open(self, path: Path, side: str) -> Any:
        """The queue as *side* sees it; a directory for each second."""
        return (QueueSimple if side == OURS else ORIGINAL_SIMPLE)(str(path), granularity=1)

    def make(self, identity: str, side: str) -> str | bytes:
        """What is added. Text by ours only: the original loses some of that (D2)."""
        text = text_of(identity)
        return text if side == OURS and len(text) % 2 else text.encode()

    def read(self, data: bytes) -> str:
        """The identity of what was got."""
        return identity_in(data.decode("utf-8", "replace"))

    def has_age(self, path: Path, name: str) -> Path:
        """What tells the age of the lock."""
        return path / f"{name}.lck"

    def is_locked(self, path: Path, name: str) -> bool:
        """Whether anybody has it."""
        return os.path.lexists(path / f"{name}.lck")


class Normal:
    """Queue: an element is a directory with a file for each key of the schema."""

    name = "normal"
    url = f"dirq:{{}}?schema=body:string,header:table?&maxelts={MAXELTS}"

    def open(self, path: Path, side: str) -> Any:
        """The queue as *side* sees it."""
        return (Queue if side == OURS else ORIGINAL_QUEUE)(str(path), maxelts=MAXELTS, schema=SCHEMA)

    def make(self, identity: str, side: str) -> dict[str, object]:
        """What is added; some have a header."""
        text = text_of(identity)
        return {"body": text, "header": {identity: text, "a\tb\\": "\n"}} if len(text) % 3 else {"body": text}

    def read(self, data: Mapping[str, object]) -> str:
        """The identity of what was got."""
        identity = str(data["body"]).partition("\n")[0]
        return identity if data == self.make(identity, "") else TORN

    def has_age(self, path: Path, name: str) -> Path:
        """What tells the age of the lock."""
        return path / name

    def is_locked(self, path: Path, name: str) -> bool:
        """Whether anybody has it."""
        return os.path.lexists(path / name / "locked")


Kind = Simple | Normal
KINDS: tuple[Kind, ...] = (Simple(), Normal())


# ---- the place


@dataclass(frozen=True)
class Site(beside.Site):
    """See beside.Site."""

    kind: Kind
    queue: Path
    place: Path
    parts = ("journals", "ready", "holders")

    @property
    def holders(self) -> Path:
        """A file for each element that one of ours holds."""
        return self.place / "holders"

    @property
    def url(self) -> str:
        """What a pool on it is given."""
        return self.kind.url.format(self.queue)

    def identity_of(self, path: Path) -> str:
        """The identity of the element at *path*, wherever that is."""
        body = path if path.is_file() else path / "body"
        return identity_in(body.read_bytes().decode("utf-8", "replace"))

    def holder(self, name: str) -> Path:
        """The file that says that *name* is held."""
        return self.holders / name.replace("/", "-")

    def names(self) -> Iterator[str]:
        """The elements, locked or not."""
        for directory in sorted(os.listdir(self.queue)):
            with suppress(FileNotFoundError):  # a purge removes empty directories while we look
                names = (f"{directory}/{name}" for name in sorted(os.listdir(self.queue / directory)))
                yield from filter(ELEMENT.match, names)

    def has_waiting(self) -> bool:
        """Whether somebody could take one."""
        return any(not self.kind.is_locked(self.queue, name) for name in self.names())

    def bring(self, other: Site, name: str) -> None:
        """Move an element of another queue here as it is, with its age."""
        source, target = other.queue / name, self.queue / name
        while source.exists():
            with suppress(FileExistsError):
                os.mkdir(target.parent)
            with suppress(FileNotFoundError):  # a purge took the directory, which was empty
                os.rename(source, target)

    def age(self, name: str) -> None:
        """Make the lock of *name* hours old. Nobody may hold it."""
        old_s = time.time() - OLD_S
        with suppress(FileNotFoundError):
            os.utime(self.kind.has_age(self.queue, name), (old_s, old_s))

    def age_all(self) -> None:
        """Make everything that lies in the queue hours old: nobody works there any more."""
        old_s = time.time() - OLD_S
        for directory, directories, files in os.walk(self.queue, topdown=False):
            for name in (*files, *directories):
                os.utime(os.path.join(directory, name), (old_s, old_s))

    def unfinished(self) -> list[str]:
        """What nobody has an eye on any more: half added, half removed, locks without elements."""
        files = [str(path.relative_to(self.queue)) for path in self.queue.glob("*/*")]
        locks = {f"{name}.lck" for name in self.names()}
        return [name for name in files if not ELEMENT.match(name) and name not in locks]

    def left(self) -> list[str]:
        """All that lies in the queue but its last intermediate directory and, of a Queue, the two fixed ones."""
        found = sorted(str(path.relative_to(self.queue)) for path in self.queue.rglob("*"))
        directories = [name for name in found if re.fullmatch("[0-9a-f]{8}", name)]
        return [name for name in found if name not in ("temporary", "obsolete", *directories[-1:])]


@contextmanager
def site_on(ground: str, kind: Kind, place: Path) -> Iterator[Site]:
    """A site on a filesystem of its own, or "here" in *place* itself."""
    with ground_on(ground, place) as here:
        yield Site(kind, here / "queue", place / "told")


# ---- one process


class Actor(beside.Actor):
    """See beside.Actor."""

    entering = "adding"
    errors = (OSError, ORIGINAL_ERROR)
    site: Site

    def __init__(self, site: Site, who: str) -> None:
        super().__init__(site, who)
        self.queue = site.kind.open(site.queue, self.side)

    def add(self) -> None:
        """Add the next one."""
        identity = self.next_identity()
        with self.may_fail("add"):
            self.note("added", identity, self.queue.add(self.site.kind.make(identity, self.side)))

    def take(self, count: int, *, give_back: float = 0.0, is_proven: bool = False) -> int:
        """Finish up to *count*; *give_back*: the part that is unlocked instead. How many were locked and read."""
        taken = 0
        with self.may_fail("iterate"):
            for name in self.queue:
                taken += self.handle(name, is_proven=is_proven, is_kept=self.dice.random() < give_back)
                if taken == count:
                    break
        return taken

    def handle(self, name: str, *, is_proven: bool, is_kept: bool) -> bool:
        """Lock, read, and remove or unlock; False when another has it. *is_proven*: leave a proof that we hold it."""
        is_locked = False
        with self.may_fail("lock"):
            is_locked = self.queue.lock(name)
        if not is_locked:
            return False
        self.note("locked", name)
        proof = is_proven and self.prove(name)
        identity = ""
        try:
            with self.may_fail("get"):
                identity = self.site.kind.read(self.queue.get(name))
            if proof:
                os.unlink(self.site.holder(name))
            if is_kept or not identity:
                self.note("unlocking", name)
                with self.may_fail("unlock"):
                    self.queue.unlock(name)
                self.note("unlocked", name)
                return bool(identity)
            self.note("got", name, identity)
            with self.may_fail("remove"):
                self.queue.remove(name)
            # The original may fail although it has removed the element: a purge takes away what it is busy with.
            self.note("left" if os.path.lexists(self.site.queue / name) else "removed", name)
        except (QueueError, FileNotFoundError):
            # Of ours: the lock is not there any more. May be only where one was broken.
            self.note("fenced", name)
        return True

    def prove(self, name: str) -> bool:
        """Make the file that says that we hold it; False and a line when another holds it too."""
        try:
            os.close(os.open(self.site.holder(name), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        except FileExistsError:
            self.note("double", name)
            return False
        return True


def work(actor: Actor, quota: int) -> None:
    """Add some, take some, at full speed; when *quota* are added, take only."""
    while not actor.is_over:
        burst = actor.dice.randint(1, BURST_MAX)
        for _ in range(min(burst, quota - actor.entered)):
            actor.add()
        taken = actor.take(burst)
        if actor.entered >= quota:
            (actor.site.ready / actor.who).touch()
            if not taken:
                until(lambda: actor.is_over or actor.site.has_waiting(), IDLE_S)


def supply(actor: Actor, quota: int) -> None:
    """Add while few are there, and take some of them, so that others get most."""

    def has_few() -> bool:
        return actor.entered < quota and sum(1 for _ in actor.site.names()) < BURST_MAX

    while not actor.is_over:
        if actor.entered >= quota:
            (actor.site.ready / actor.who).touch()
        until(lambda: actor.is_over or has_few(), IDLE_S)
        burst = actor.dice.randint(1, BURST_MAX)
        for _ in range(min(burst, quota - actor.entered)):
            actor.add()
        actor.take(burst // 4)


def claim(actor: Actor, give_back: float) -> None:
    """Take what is there, and prove at each element that nobody else has it."""
    while not actor.is_over:
        if not actor.take(BURST_MAX, give_back=give_back, is_proven=True):
            until(lambda: actor.is_over or actor.site.has_waiting(), IDLE_S)


def purge(actor: Actor, limits: Mapping[str, int]) -> None:
    """Purge in a loop."""
    while not actor.is_over:
        with actor.may_fail("purge"):
            actor.queue.purge(**limits)


# ---- all of them


class Cast(beside.Cast):
    """See beside.Cast."""

    actor = Actor
    site: Site

    def _bury(self, who: str) -> None:
        step, _, name = (self.site.lines(who) or [""])[-1].partition(" ")
        with (self.site.journals / who).open("a") as journal:
            journal.write("killed\n")
        # Not of "unlocking": another may hold that by now.
        if step in ("locked", "got"):
            name = name.split()[0]
            self.site.holder(name).unlink(missing_ok=True)
            self.site.age(name)


# ---- what they wrote


@dataclass
class Accounts:
    """All that happened, by the journals."""

    accepted: dict[str, str] = field(default_factory=dict)  # identity: the name that add() returned
    begun: set[str] = field(default_factory=set)  # identities, accepted or not
    got: Counter[str] = field(default_factory=Counter)  # by name: read, then removed
    found: dict[str, set[str]] = field(default_factory=dict)  # name: the identities that were read there
    excused: set[str] = field(default_factory=set)  # names that one held when it was killed, or could not remove
    steps: dict[str, list[str]] = field(default_factory=dict)  # step: names
    failed: Counter[str] = field(default_factory=Counter)  # what the original could not do
    got_by: Counter[str] = field(default_factory=Counter)  # by side

    @property
    def identities(self) -> Counter[str]:
        """The same as *got*, by identity."""
        found: Counter[str] = Counter()
        for name, times in self.got.items():
            found.update(dict.fromkeys(self.found[name], times))
        return found

    @property
    def held(self) -> set[str]:
        """The identities of what is excused."""
        return {identity for name in self.excused for identity in self.found.get(name, ())}

    @property
    def lost(self) -> set[str]:
        """Accepted names that nobody has got."""
        return set(self.accepted.values()) - set(self.got)

    @property
    def doubles(self) -> set[str]:
        """Names that were got more often than once."""
        return {name for name, times in self.got.items() if times > 1}

    @property
    def strangers(self) -> set[str]:
        """Names with something else in them than what was added there, or with a part of it."""
        names = {name: identity for identity, name in self.accepted.items()}
        return {
            name
            for name, found in self.found.items()
            if len(found) > 1 or not found <= self.begun or names.get(name, *found) not in found
        }


def accounts(site: Site) -> Accounts:
    """Read all journals."""
    all_told = Accounts()
    for path in site.journals.iterdir():
        before = ""
        for line in path.read_text().splitlines():
            step, *words = line.split()
            match step:
                case "adding":
                    all_told.begun.add(words[0])
                case "added":
                    all_told.accepted[words[0]] = words[1]
                case "got":
                    all_told.got[words[0]] += 1
                    all_told.got_by[path.name.partition("-")[0]] += 1
                    all_told.found.setdefault(words[0], set()).add(words[1])
                case "left":
                    all_told.excused.add(words[0])
                case "killed" if before.startswith(("locked ", "got ")):
                    all_told.excused.add(before.split()[1])
                case "failed":
                    all_told.failed[" ".join(words[1:])] += int(words[0])
            all_told.steps.setdefault(step, []).extend(words[:1])
            before = line
    return all_told
