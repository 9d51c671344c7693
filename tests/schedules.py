"""
schedules - every order in which a few actors can do their steps

An actor is a function that calls step() before each thing that another could see. Each
runs in a thread of its own, but only the one that was chosen runs; all choices are
walked, depth first, and the trail of a run replays it.

Source: the stateless search of Verisoft (Godefroid 1997), without reduction.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

RUNS_MAX = 20_000

Step = Callable[[], None]
Actor = Callable[[Step], None]


@dataclass
class Run:
    """One order. *trail* are the numbers of the actors as they were chosen."""

    trail: list[int] = field(default_factory=list)
    options: list[list[int]] = field(default_factory=list)


class _Thread:
    def __init__(self, actor: Actor) -> None:
        self.may_go, self.has_stopped = threading.Semaphore(0), threading.Semaphore(0)
        self.is_over = False
        self.error: BaseException | None = None
        self._actor = actor
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self.may_go.acquire()
        try:
            self._actor(self._step)
        except BaseException as error:  # noqa: BLE001 - handed to the test
            self.error = error
        self.is_over = True
        self.has_stopped.release()

    def _step(self) -> None:
        self.has_stopped.release()
        self.may_go.acquire()

    def advance(self) -> None:
        self.may_go.release()
        self.has_stopped.acquire()


def schedules(setup: Callable[[], Sequence[Actor]]) -> Iterator[Run]:
    """
    Every order of the actors that *setup* makes afresh for each run; yields after each run.

    An actor's first piece is what it does up to its first step().
    """
    prefix: list[int] = []
    for _ in range(RUNS_MAX):
        run = _one(setup(), _along(prefix))
        yield run
        while run.trail:  # the next one: the last choice that has an option left
            last, options = run.trail.pop(), run.options.pop()
            later = [option for option in options if option > last]
            if later:
                prefix = [*run.trail, later[0]]
                break
        else:
            return
    raise AssertionError(f"more than {RUNS_MAX} orders; make the actors smaller")


def sampled(setup: Callable[[], Sequence[Actor]], runs: int, seed: int) -> Iterator[Run]:
    """*runs* orders drawn by *seed*, for actors with too many steps to try them all; yields after each."""
    dice = random.Random(seed)  # noqa: S311 - to be repeated
    for _ in range(runs):
        yield _one(setup(), lambda _, alive: dice.choice(alive))


def _along(prefix: list[int]) -> Callable[[int, list[int]], int]:
    return lambda place, alive: prefix[place] if place < len(prefix) else alive[0]


def _one(actors: Sequence[Actor], choose: Callable[[int, list[int]], int]) -> Run:
    threads, run = [_Thread(actor) for actor in actors], Run()
    while alive := [number for number, thread in enumerate(threads) if not thread.is_over]:
        chosen = choose(len(run.trail), alive)
        run.trail.append(chosen)
        run.options.append(alive)
        threads[chosen].advance()
    for thread in threads:
        if thread.error is not None:
            raise AssertionError(f"in the order {run.trail}") from thread.error
    return Run(list(run.trail), list(run.options))
