"""
beside - processes of ours and of an original on one queue: what is the same whatever the queue is

An Actor is one process. It writes each step down before and after, by one O_APPEND write into a journal of its own,
so that kill -9 cannot lie. A Cast starts the actors, kills ours and starts them again.

What a message holds is told by its identity, WHO.NUMBER, and is made again to be compared.

See also: beside_dirq and beside_ddmq (their queues), disks (the filesystems).
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import time
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, ClassVar

from tests.process.disks import mounted
from tests.waiting import until

OURS, THEIRS = "ours", "theirs"
TORN = "torn"
BURST_MAX = 20  # messages that one enters, and then takes
KILL_S = 0.03
IDLE_S = 600.0
FORK = multiprocessing.get_context("fork")


def text_of(identity: str) -> str:
    """A text that begins with *identity*: mostly short, now and then more than one write."""
    dice = random.Random(identity)  # noqa: S311 - to be repeated
    size = 70_000 if dice.random() < 0.01 else dice.randrange(300)
    return f"{identity}\n" + "č\t\\n\n x"[dice.randrange(7) :] * (size // 7)


def identity_in(text: str) -> str:
    """The identity that *text* begins with, TORN when it is not all of it."""
    identity = text.partition("\n")[0]
    return identity if text == text_of(identity) else TORN


@contextmanager
def ground_on(ground: str, place: Path) -> Iterator[Path]:
    """A directory on a filesystem of that kind, of its own; "here" is *place* itself."""
    if ground == "here":
        yield place
        return
    with mounted(ground, place) as disk:
        yield disk.path


class Site:
    """A queue, and beside it, in *place*, what its processes write down."""

    place: Path
    parts: ClassVar[tuple[str, ...]] = ("journals", "ready")

    def __post_init__(self) -> None:
        for part in self.parts:
            (self.place / part).mkdir(parents=True, exist_ok=True)

    @property
    def journals(self) -> Path:
        """One for each actor."""
        return self.place / "journals"

    @property
    def ready(self) -> Path:
        """A file for each actor that has entered all that it has to."""
        return self.place / "ready"

    @property
    def over(self) -> Path:
        """Once it is there, actors end."""
        return self.place / "over"

    def lines(self, who: str) -> list[str]:
        """What *who* has written so far."""
        path = self.journals / who
        return path.read_text().splitlines() if path.exists() else []


class Actor:
    """A process that works on the queue, with one of the two libraries."""

    entering: ClassVar[str]  # what it writes down before it enters a message
    errors: ClassVar[tuple[type[Exception], ...]]  # what the original may raise

    def __init__(self, site: Any, who: str) -> None:
        self.site, self.who = site, who
        self.side = who.partition("-")[0]
        if self.side == THEIRS:
            warnings.simplefilter("ignore")  # later Pythons deprecate what it calls
        self.parent = os.getppid()
        self.fd = os.open(site.journals / who, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        self.entered = sum(line.startswith(f"{self.entering} ") for line in site.lines(who))
        self.dice = random.Random(f"{who} {self.entered}")  # noqa: S311 - what is killed begins with other numbers
        self.failed: Counter[str] = Counter()

    def next_identity(self) -> str:
        """The next message's, written down."""
        identity = f"{self.who}.{self.entered}"
        self.entered += 1
        self.note(self.entering, identity)
        return identity

    def note(self, *words: str) -> None:
        """Write a line."""
        os.write(self.fd, f"{' '.join(words)}\n".encode())

    @contextmanager
    def may_fail(self, what: str) -> Iterator[None]:
        """Count and forget what the original raises. What ours raises ends the process, and the test."""
        try:
            yield
        except self.errors as error:
            if self.side == OURS:
                raise
            self.failed[f"{what} {type(error).__name__}"] += 1

    @property
    def is_over(self) -> bool:
        """Whether to end: told so, or nobody is left who could."""
        return self.site.over.exists() or os.getppid() != self.parent

    def end(self) -> None:
        """Write down how often what failed."""
        for what, count in self.failed.items():
            self.note("failed", str(count), what)


@dataclass
class Cast(ABC):
    """Starts actors, kills ours, and leaves none behind."""

    actor: ClassVar[Callable[[Any, str], Actor]]
    site: Any
    dice: random.Random
    kills: int = 0
    _roles: dict[str, tuple[Callable[..., None], tuple[object, ...]]] = field(default_factory=dict)
    _processes: dict[str, BaseProcess] = field(default_factory=dict)

    def start(self, who: str, role: Callable[..., None], *arguments: object) -> None:
        """Fork, and be *role* there; WHO begins with ours- or theirs-."""
        self._roles[who] = (role, arguments)
        self._processes[who] = FORK.Process(target=self._play, args=(role, who, arguments), daemon=True)
        self._processes[who].start()

    def kill(self, who: str) -> None:
        """Kill it in whatever it does, see to what it held, and start it again."""
        process = self._processes[who]
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, (who, process.exitcode, self.site.lines(who)[-3:])
        self.kills += 1
        self._bury(who)
        role, arguments = self._roles[who]
        self.start(who, role, *arguments)

    def _play(self, role: Callable[..., None], who: str, arguments: tuple[object, ...]) -> None:
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            if who.startswith(THEIRS):
                sys.stdout = nowhere  # its warnings
            actor = type(self).actor(self.site, who)
            role(actor, *arguments)
            actor.end()

    @abstractmethod
    def _bury(self, who: str) -> None:
        """See to what it held when it was killed."""

    def rage(self, is_over: Callable[[], bool], timeout_s: float) -> None:
        """Kill one of ours every now and then until it is over; then let all end."""
        ours = [who for who in self._roles if who.startswith(OURS)]
        due_s = 0.0

        def look() -> bool:
            nonlocal due_s
            if time.monotonic() >= due_s:
                self.kill(self.dice.choice(ours))
                due_s = time.monotonic() + KILL_S * 2 * self.dice.random()
            return is_over()

        try:
            until(look, timeout_s)
        except AssertionError as error:
            alive = {who: (process.exitcode, self.site.lines(who)[-1:]) for who, process in self._processes.items()}
            raise AssertionError(f"{error}\n{alive}\n{list(self.site.names())[:50]}") from None
        self.join(30)

    def join(self, timeout_s: float) -> None:
        """Say that it is over, and wait for all; none has failed."""
        self.site.over.touch()
        for process in self._processes.values():
            process.join(timeout_s)
        codes = {who: process.exitcode for who, process in self._processes.items()}
        assert not any(codes.values()), codes
        assert None not in codes.values(), codes

    def end(self) -> None:
        """Leave none behind."""
        for process in self._processes.values():
            process.kill()
            process.join(10)
