"""
beside_ddmq - processes of ours and of the original ddmq on one queue, and the accounts of what they did

An Actor publishes, consumes, or cleans. A claim that nobody will end, for who had it was killed or has forgotten it on
purpose, gets an expiry of long ago, so that the next cleaning finds it and nobody waits ten minutes. accounts() reads
the journals.

A message is told by its text, which begins with its identity, WHO.NUMBER: an original that requeues gives another id.
All ask to be requeued, for what does not is removed when it expires; so the original, which would requeue such a
message when it is acked (Q5), acks by the names of files.
Long because: what the actors write down, what a kill leaves of it and how it is read are read together.

See also: beside (actors, their journals), test_beside_ddmq.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.process import beside
from tests.process.beside import BURST_MAX, IDLE_S, OURS, ground_on, identity_in, text_of
from tests.waiting import until
from workers import ddmq
from workers.ddmq.files import QueueFiles, parse_waiting, parse_work

QUEUE = "tasks"
LONG_AGO = 1  # an expiry, seconds since 1970
AT_ONCE_MAX = 4  # of those that one consume() asks for
OWN_FILES = {"ddmq.yaml", "ddmq.yaml.intermediate", "work"}


def original() -> ModuleType:
    """The original, which cannot read its settings as it is published (Q1); skips the test where there is none."""
    for module in ("ddmq", "yaml"):
        if importlib.util.find_spec(module) is None:
            pytest.skip("the original ddmq is not installed")
    yaml = importlib.import_module("yaml")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its patterns are no raw strings
        found = importlib.import_module("ddmq")
    vars(sys.modules["ddmq.broker"])["yaml"] = SimpleNamespace(load=yaml.safe_load, dump=yaml.dump)
    return found


def library(side: str) -> Any:
    """The package of that side."""
    return ddmq if side == OURS else original()


def read(text: object) -> str:
    """The identity of a message with that text, TORN when it is not all of it."""
    return identity_in(str(text))


# ---- the place


@dataclass(frozen=True)
class Site(beside.Site):
    """See beside.Site; a root with one queue."""

    root: Path
    place: Path

    @property
    def begun(self) -> Path:
        """Once it is there, cleaners begin."""
        return self.place / "begun"

    @property
    def queue(self) -> Path:
        """The queue's directory."""
        return self.root / QUEUE

    @property
    def url(self) -> str:
        """What a pool on it is given."""
        return f"ddmq:{self.queue}"

    def identity_of(self, path: Path) -> str:
        """The identity of the message at *path*, wherever that is."""
        return read(json.loads(path.read_bytes())["message"])

    @property
    def work(self) -> Path:
        """That of its claims."""
        return self.queue / "work"

    def names(self) -> list[str]:
        """What waits."""
        return [name for name in os.listdir(self.queue) if parse_waiting(name)]

    def claims(self) -> list[str]:
        """What is claimed."""
        return [name for name in os.listdir(self.work) if parse_work(name)]

    def expired(self) -> list[str]:
        """The claims of long ago."""
        return [name for name in self.claims() if name.startswith(f"{LONG_AGO}.")]

    def has_waiting(self) -> bool:
        """Whether somebody could consume."""
        return bool(self.names())

    def is_empty(self) -> bool:
        """Whether nothing waits or is claimed. What moves while this looks may be overlooked."""
        return not (self.claims() or self.names() or self.claims())

    def age(self, work_name: str) -> None:
        """Let that claim have expired long ago; nothing when it is gone."""
        with suppress(FileNotFoundError):
            os.rename(self.work / work_name, self.work / f"{LONG_AGO}.{work_name.partition('.')[2]}")

    def age_all(self) -> None:
        """Let all claims have expired: nobody works there any more."""
        for name in self.claims():
            self.age(name)

    def broker(self, side: str) -> Any:
        """A broker of that side."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # the original leaves a file open when it makes a root
            return library(side).broker(str(self.root), create=True)

    def left(self) -> list[str]:
        """All that lies in the queue but its own files, and what lies beside it but the root's settings."""
        inside = {str(path.relative_to(self.queue)) for path in self.queue.rglob("*")} - OWN_FILES
        beside = set(os.listdir(self.root)) - {QUEUE, "ddmq.yaml", "ddmq.yaml.example"}
        return sorted(inside | beside)


@contextmanager
def site_on(ground: str, place: Path) -> Iterator[Site]:
    """A site on a filesystem of its own, or "here" in *place* itself."""
    with ground_on(ground, place) as here:
        yield Site(here / "root", place / "told")


# ---- one process


class Actor(beside.Actor):
    """See beside.Actor."""

    entering = "publishing"
    errors = (OSError, ValueError, TypeError)
    site: Site

    def __init__(self, site: Site, who: str) -> None:
        super().__init__(site, who)
        self.broker = site.broker(self.side)

    def publish(self, **more: Any) -> None:
        """Publish the next one."""
        identity = self.next_identity()
        with self.may_fail("publish"):
            name = self.broker.publish(QUEUE, text_of(identity), **{"requeue": True, **more}).filename
            self.note("published", identity, name)

    def consume(self, count: int = 1, *, clean: bool = True) -> list[Any]:
        """Consume up to *count*; what was."""
        found: Any = None
        with self.may_fail("consume"):
            found = self.broker.consume(QUEUE, count, clean=clean)
        messages = found if isinstance(found, list) else [found] if found else []
        if messages:
            self.note("took", *(f"{one.filename} {read(one.message)}" for one in messages))
        return messages

    def ack(self, message: Any) -> None:
        """End it."""
        identity = read(message.message)
        self.note("got", identity, message.filename)
        with self.may_fail("ack"):
            is_ours = self.broker.ack(QUEUE, message.filename)
            self.note("acked" if is_ours else "fenced", identity, message.filename)

    def nack(self, message: Any) -> None:
        """Give it back."""
        with self.may_fail("nack"):
            is_ours = self.broker.nack(QUEUE, message.filename, requeue=True)
            self.note("nacked" if is_ours else "fenced", read(message.message), message.filename)

    def forget(self, message: Any) -> None:
        """Have it in hand until it has expired, long ago."""
        self.note("forgot", read(message.message), message.filename)
        self.site.age(message.filename)

    def handle(self, message: Any, *, forgotten: float, given_back: float) -> None:
        """Ack it; or, of so large a part of all, forget it or give it back."""
        dice = self.dice.random()
        if dice < forgotten:
            self.forget(message)
        elif dice < forgotten + given_back:
            self.nack(message)
        else:
            self.ack(message)


def work(actor: Actor, quota: int, clean: bool = True) -> None:
    """Publish some, consume some, at full speed; when *quota* are published, consume only."""
    # Its consume() of several hides what it has moved already when it loses a race for one of them (Q12).
    at_once_max = AT_ONCE_MAX if actor.side == OURS else 1
    while not actor.is_over:
        burst = actor.dice.randint(1, BURST_MAX)
        for _ in range(min(burst, quota - actor.entered)):
            actor.publish(clean=clean, priority=actor.dice.choice((1, 9, 10, 999, 1000)))
        if actor.entered >= quota:
            (actor.site.ready / actor.who).touch()
        taken = 0
        while taken < burst and (found := actor.consume(actor.dice.randint(1, at_once_max), clean=clean)):
            taken += len(found)
            for message in found:
                actor.handle(message, forgotten=0.03, given_back=0.03)
        if actor.entered >= quota and not taken:
            until(lambda: actor.is_over or actor.site.has_waiting(), IDLE_S)


def supply(actor: Actor, quota: int) -> None:
    """Publish while few wait, and consume some of them, so that others get most."""

    def has_few() -> bool:
        return actor.entered < quota and len(actor.site.names()) < BURST_MAX

    while not actor.is_over:
        if actor.entered >= quota:
            (actor.site.ready / actor.who).touch()
        until(lambda: actor.is_over or has_few(), IDLE_S)
        burst = min(actor.dice.randint(1, BURST_MAX), quota - actor.entered)
        for _ in range(burst):
            actor.publish(clean=False)
        for _ in range(burst // 4):
            for message in actor.consume(clean=False):
                actor.ack(message)


def consume(actor: Actor, forgotten: float) -> None:
    """Consume what is there, one at a time; forget so large a part of it."""
    while not actor.is_over:
        found = actor.consume()
        for message in found:
            actor.handle(message, forgotten=forgotten, given_back=0.0)
        if not found:
            until(lambda: actor.is_over or actor.site.has_waiting(), IDLE_S)


def clean(actor: Actor) -> None:
    """Clean in a loop, from the moment on when all may."""
    until(lambda: actor.is_over or actor.site.begun.exists(), IDLE_S)
    while not actor.is_over:
        with actor.may_fail("clean"):
            actor.broker.clean(QUEUE, force=True)


# ---- all of them


class Cast(beside.Cast):
    """See beside.Cast."""

    actor = Actor
    site: Site

    def wait(self, is_over: Callable[[], bool], timeout_s: float) -> None:
        """Wait until it is over, none being killed; then let all end."""

        def look() -> bool:
            ended = {who: one.exitcode for who, one in self._processes.items() if one.exitcode is not None}
            assert not ended, ended
            return is_over()

        until(look, timeout_s)
        self.join(30)

    def _bury(self, who: str) -> None:
        lines = self.site.lines(who)
        with (self.site.journals / who).open("a") as journal:
            journal.write("killed\n")
        for name in in_hand(lines):
            self.site.age(name)


def in_hand(lines: list[str]) -> dict[str, str]:
    """The claims, each with its identity, that one had after it had written *lines*, as far as it knew."""
    held: dict[str, str] = {}
    for line in lines:
        step, *words = line.split()
        if step == "took":
            held = dict(zip(words[::2], words[1::2], strict=True))
        elif step in ("acked", "nacked", "fenced", "forgot"):
            held.pop(words[1], None)
        elif step == "killed":
            held = {}
    return held


# ---- what they wrote


@dataclass
class Accounts:
    """All that happened, by the journals; messages by their identities."""

    accepted: dict[str, str] = field(default_factory=dict)  # the name that publish() returned
    begun: set[str] = field(default_factory=set)  # accepted or not
    got: Counter[str] = field(default_factory=Counter)  # consumed, and then acked or killed before that
    taken: Counter[str] = field(default_factory=Counter)  # consumed
    excused: set[str] = field(default_factory=set)  # which one was about to ack when it was killed
    expired: set[str] = field(default_factory=set)  # whose claim has expired at least once
    steps: dict[str, list[str]] = field(default_factory=dict)  # step: identities
    failed: Counter[str] = field(default_factory=Counter)  # what the original could not do
    got_by: Counter[str] = field(default_factory=Counter)  # by side

    @property
    def lost(self) -> set[str]:
        """Accepted, and never got."""
        return set(self.accepted) - set(self.got)

    @property
    def strangers(self) -> set[str]:
        """Got, or a part of it, and never published."""
        return set(self.taken) - self.begun

    @property
    def doubles(self) -> set[str]:
        """Got more often than once."""
        return {identity for identity, times in self.got.items() if times > 1}

    @property
    def again(self) -> int:
        """How often too many."""
        return sum(times - 1 for times in self.got.values())


def accounts(site: Site) -> Accounts:
    """Read all journals."""
    told = Accounts()
    for path in site.journals.iterdir():
        lines = path.read_text().splitlines()
        for number, line in enumerate(lines):
            step, *words = line.split()
            match step:
                case "publishing":
                    told.begun.add(words[0])
                case "published":
                    told.accepted[words[0]] = words[1]
                case "took":
                    told.taken.update(words[1::2])
                case "got":
                    told.got[words[0]] += 1
                    told.got_by[path.name.partition("-")[0]] += 1
                case "forgot":
                    told.expired.add(words[0])
                case "killed":
                    told.expired.update(in_hand(lines[:number]).values())
                    if number and lines[number - 1].startswith("got "):
                        told.excused.add(lines[number - 1].split()[1])
                case "failed":
                    told.failed[" ".join(words[1:])] += int(words[0])
            told.steps.setdefault(step, []).extend(words[:1])
    return told


def put_all(site: Site, count: int, **more: Any) -> None:
    """Make the queue and let ours publish *count* messages."""
    first = Actor(site, f"{OURS}-first")
    while first.entered < count:
        first.publish(**more)
    os.close(first.fd)


def claim_all_long_ago(site: Site, count: int) -> None:
    """Let one of ours, who is not seen again, consume *count* messages long ago."""
    assert len(site.broker(OURS).consume(QUEUE, count, clean=False)) == count
    site.age_all()


def finish(site: Site) -> Accounts:
    """Let what the killed had in hand expire, get all that is there; the accounts, and nothing is left."""
    last = Actor(site, f"{OURS}-last")
    while not site.is_empty():
        site.age_all()
        last.broker.clean(QUEUE, force=True)
        for message in last.consume(1000):
            last.ack(message)
    os.close(last.fd)
    # Of the killed: what they were writing. A cleaning removes it when it is hours old.
    for path in site.root.glob(".*.tmp"):
        os.utime(path, (time.time() - 86400,) * 2)
    QueueFiles(str(site.root), QUEUE).sweep_tmp(3600)
    assert site.left() == []
    return accounts(site)
