"""
dirq - this project's directory queues against the original, each on the format that both have

Library: one process adds, locks, gets and removes with ours and with the original, a few
hundred elements of the one and then of the other, over and over within a round. Each verb
has a line; "together" is all of them and the iteration between them.

Pool: two workers of ``orchestrator run`` against two processes that take with the original,
as its documentation has it, each a backlog that the original has filled.

Raises: LeftOut where the original is not installed, BenchError when not everything was taken.
See also: pool (how a pool is measured), peers (the original beside the bare loop), targets.
"""

from __future__ import annotations

import importlib
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator.bench import peers
from orchestrator.bench.measure import BenchError, Figure, LeftOut
from orchestrator.bench.pool import STARTING_MESSAGES, Pool
from orchestrator.bench.subject import Load, Looped
from workers import dirq as ours

VERBS = ("add", "lock", "get", "remove")
SLICES = 20  # of a round
ROUND_S_MAX = 5.0  # of one kind's library; a slow filesystem is measured with fewer slices
WORKERS = 2
TAKING_S_MAX = 120.0
HEADER = {f"field{number}": f"value {number}\twith a tab" for number in range(8)}


class Kind(NamedTuple):
    """One kind of queue: how it is opened, an element, and what is wanted of the library and of a pool."""

    name: str
    schema: dict[str, str]  # empty: QueueSimple
    data: Any
    own_target: float
    pool: str = ""  # URL with {path}; empty: no pool is measured
    pool_target: float = 0.0

    def ours(self, path: Path) -> Any:
        """Open it with the library of this project."""
        return self._open(path, ours.QueueSimple, ours.Queue)

    def original(self, path: Path) -> Any:
        """Open it with the original."""
        simple, normal = (importlib.import_module(f"dirq.{name}") for name in ("QueueSimple", "queue"))
        return self._open(path, simple.QueueSimple, normal.Queue)

    def _open(self, path: Path, simple: Callable[..., Any], normal: Callable[..., Any]) -> Any:
        return normal(str(path), schema=self.schema) if self.schema else simple(str(path))


BODY = "x" * 1024
KINDS = (
    Kind("QueueSimple", {}, BODY.encode(), 1.0, "dirq-simple:{path}", 1.3),
    Kind("Queue, body", {"body": "string"}, {"body": BODY}, 2.0, "dirq:{path}?schema=body:string", 2.0),
    Kind("Queue, body and header", {"body": "string", "header": "table?"}, {"body": BODY, "header": HEADER}, 2.0),
)


def dirq(directory: Path, rounds: int, elements: int = 4000, backlog: int = 8000) -> list[Figure]:
    """
    Measure below *directory*, which stays as it was: *rounds* values for each figure.

    *elements* go through each library, *backlog* through each pool. About half a minute a round.
    """
    reason = peers.DirqSimple().missing()
    if reason is not None:
        raise LeftOut(reason)
    found = [figure for kind in KINDS for figure in _library(kind, directory, rounds, max(elements // SLICES, 1))]
    return found + [_pool(kind, directory, rounds, backlog) for kind in KINDS if kind.pool]


# ---- the library


def _library(kind: Kind, directory: Path, rounds: int, elements: int) -> list[Figure]:
    rates: dict[tuple[str, str], list[float]] = {}
    for _ in range(rounds):
        seconds: defaultdict[tuple[str, str], float] = defaultdict(float)
        slices, began_s = 0, time.perf_counter()
        # A disk and its caches have their moods: a bit of each in turn, and each is first as often as the other.
        while slices < 2 or slices % 2 or (slices < SLICES and time.perf_counter() - began_s < ROUND_S_MAX):
            who = (("ours", kind.ours), ("original", kind.original))
            for name, opened in who if slices % 2 else reversed(who):
                for verb, taken_s in _pass(opened, directory / "library", kind.data, elements).items():
                    seconds[name, verb] += taken_s
            slices += 1
        for key, taken_s in seconds.items():
            rates.setdefault(key, []).append(slices * elements / taken_s)
    return [
        Figure(
            "dirq",
            f"{kind.name}: {verb}",
            "messages/s",
            rates["ours", verb],
            rates["original", verb],
            kind.own_target if verb == "together" else None,
        )
        for verb in (*VERBS, "together")
    ]


def _pass(opened: Callable[[Path], Any], place: Path, data: object, elements: int) -> dict[str, float]:
    """Seconds that *elements* elements take, by verb, from an empty queue at *place* to an empty one."""
    try:
        queue = opened(place)
        began_s = time.perf_counter()
        for _ in range(elements):
            queue.add(data)
        seconds = {"add": time.perf_counter() - began_s}
        names = list(queue)
        for verb in VERBS[1:]:
            act, at_s = getattr(queue, verb), time.perf_counter()
            for name in names:
                act(name)
            seconds[verb] = time.perf_counter() - at_s
        seconds["together"] = time.perf_counter() - began_s
        if len(names) != elements or queue.first():
            raise BenchError(f"{elements} elements were added, {len(names)} listed; or some were left")
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return seconds


# ---- the pool


class _Original(Looped):
    """Processes that take with the original."""

    name = "original"

    def __init__(self, kind: Kind) -> None:
        self._kind = kind

    def producer(self, place: Path) -> Callable[[bytes], object]:
        """Add, whatever is given, an element of the kind."""
        queue = self._kind.original(place / "queue")
        return lambda _: queue.add(self._kind.data)

    def consumer(self, place: Path) -> Iterator[bool]:
        """Lock, get, remove."""
        queue = self._kind.original(place / "queue")
        for name in queue:
            is_ours = queue.lock(name)
            if is_ours:
                queue.get(name)
                queue.remove(name)
            yield is_ours


class _Workers(Pool):
    """A pool on the queue that the original has filled."""

    def __init__(self, kind: Kind) -> None:
        self._kind = kind

    def url(self, place: Path) -> str:
        """The kind's."""
        return self._kind.pool.format(path=place / "queue")


def _pool(kind: Kind, directory: Path, rounds: int, backlog: int) -> Figure:
    original, workers = _Original(kind), _Workers(kind)
    load = Load(backlog + STARTING_MESSAGES * WORKERS, workers=WORKERS, seconds_max=TAKING_S_MAX)
    rates: dict[str, list[float]] = {original.name: [], workers.name: []}
    for number in range(rounds):
        for subject in (original, workers) if number % 2 else (workers, original):
            place = directory / "pool"
            try:
                with subject.opened(place):
                    put = original.put(place, load, 1)
                    if put.handled < load.messages:
                        raise BenchError(f"{kind.name}: the original added {put.handled} of {load.messages} elements")
                    rates[subject.name].append(subject.take(place, load, WORKERS).rate)
            finally:
                shutil.rmtree(place)
    what = f"pool of {WORKERS}, {kind.name}"
    return Figure("dirq", what, "messages/s", rates["pool"], rates["original"], kind.pool_target)
