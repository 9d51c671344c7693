"""
ddmq - this project's ddmq against the original, on one queue in which ten thousand messages wait

Library: a producer and a consumer of ours publish a few thousand messages, then consume and ack as many; then two of
the original a few, for it is slow; over and over within a round, on the same files. So never fewer than *waiting*
messages wait, and for ours a few more. The original is used twice: as its documentation has it, where each call
cleans (once the queue was last cleaned more than a minute before it looked, which is the rule), and with clean=False,
the fastest that it can be used: "not cleaning".

At once: four consumers on one such queue for half a second, which is another matter than one: what each has read of the
queue is old as soon as another has taken from it.

Pool: one worker of ``orchestrator run`` on such a queue, beside the original as documented in the same round;
what waits falls from twice as many to *waiting* meanwhile.

Nothing is synced. The original's start-up fault, that it cannot read YAML with PyYAML 6, is patched in this process.
Raises: LeftOut where the original is not installed, BenchError when not everything was consumed.
See also: peers (the original beside the bare loop, from an empty queue on), pool, targets.
"""

from __future__ import annotations

import importlib
import shutil
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from orchestrator.bench import peers
from orchestrator.bench.measure import BenchError, Figure, LeftOut
from orchestrator.bench.pool import STARTING_MESSAGES, Pool
from orchestrator.bench.subject import Load, Looped
from workers import ddmq as ours

QUEUE = "bench"
BODY = "x" * 1024
VERBS = ("publish", "consume and ack")
CONSUMERS = 4
AT_ONCE = f"consume and ack by {CONSUMERS} at once"
SLICES = 6  # of a round; each of the three is first in two of them
RATIO = 100.0


class Side(NamedTuple):
    """One way to use the queue; *messages* go through it in a slice."""

    name: str
    open: Callable[[str], Any]
    messages: int
    clean: bool = True


def ddmq(
    directory: Path, rounds: int, waiting: int = 10_000, messages: int = 2000, backlog: int = 10_000
) -> list[Figure]:
    """
    Measure below *directory*, which stays as it was: *rounds* values for each figure.

    *messages* go through our library, and a 50th of that through the original, in each of a round's slices; *backlog*
    through the pool (0: it is left out). About fifteen seconds a round.
    """
    reason = peers.Ddmq().missing()
    if reason is not None:
        raise LeftOut(reason)
    few = max(messages // 50, 1)
    sides = ours_, documented, fastest = (
        Side("ours", ours.Broker, messages),
        Side("original", _original, few),
        Side("original not cleaning", _original, few, clean=False),
    )
    rates: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    with (
        _removed(directory / "pool") as pool,
        _removed(directory / "together") as together,
        _removed(directory / "library") as library,
    ):
        for number in range(rounds):
            for key, rate in _round(library, sides, waiting).items():
                rates[key].append(rate)
            for side in (ours_, fastest) if number % 2 else (fastest, ours_):
                rates[side.name, AT_ONCE].append(_at_once(together, side, waiting))
            if backlog:
                rates["pool", VERBS[1]].append(_pool(pool, waiting, backlog))
    pairs = [(ours_.name, base.name, verb) for base in (documented, fastest) for verb in VERBS]
    pairs += [(ours_.name, fastest.name, AT_ONCE)]
    pairs += [("pool", documented.name, VERBS[1])] if backlog else []
    return [
        Figure(
            "ddmq",
            f"{'pool of 1' if who == 'pool' else verb}, {base}",
            "messages/s",
            rates[who, verb],
            rates[base, verb],
            RATIO if verb == VERBS[1] else None,
        )
        for who, base, verb in pairs
    ]


@contextmanager
def _removed(place: Path) -> Iterator[Path]:
    """A directory that is gone afterwards."""
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _original(root: str) -> Any:
    """A broker of the original on *root*."""
    yaml = importlib.import_module("yaml")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module("ddmq.broker")
    module = sys.modules["ddmq.broker"]
    vars(module)["yaml"] = SimpleNamespace(load=yaml.safe_load, dump=yaml.dump)
    return module.broker(root)


def _fill(root: Path, messages: int) -> None:
    """Make a new queue below *root* in which so many wait."""
    broker = ours.Broker(str(root), create=True)
    broker.create_queue(QUEUE)
    for _ in range(messages):
        broker.publish(QUEUE, BODY)


# ---- the library


def _round(root: Path, sides: tuple[Side, ...], waiting: int) -> dict[tuple[str, str], float]:
    """Messages a second, by side and verb."""
    if not root.exists():
        _fill(root, waiting)
    # The original looks at its settings once, so who sees here that nothing was ever cleaned cleans at each call.
    ours.Broker(str(root)).update_settings_file(QUEUE, {"cleaned": 0})
    brokers = {side.name: (side.open(str(root)), side.open(str(root))) for side in sides}
    for broker in (one for pair in brokers.values() for one in pair):
        broker.get_settings(QUEUE)
    seconds: defaultdict[tuple[str, str], float] = defaultdict(float)
    # A disk and its caches have their moods: a bit of each in turn, and each is first as often as the others.
    for number in range(SLICES):
        for side in (*sides[number % len(sides) :], *sides[: number % len(sides)]):
            for verb, taken_s in _pass(side, *brokers[side.name]).items():
                seconds[side.name, verb] += taken_s
            left = tuple(map(len, ours.Broker(str(root)).get_message_list(QUEUE)))
            if left != (waiting, 0):
                raise BenchError(f"{side.name}: {left[0]} messages wait and {left[1]} are claimed, not {waiting} and 0")
    messages = {side.name: side.messages * SLICES for side in sides}
    return {(name, verb): messages[name] / taken_s for (name, verb), taken_s in seconds.items()}


def _pass(side: Side, producer: Any, consumer: Any) -> dict[str, float]:
    """Seconds that its messages take, by verb. As many are consumed as were published: the oldest of all."""
    began_s = time.perf_counter()
    for _ in range(side.messages):
        producer.publish(QUEUE, BODY, clean=side.clean)
    published_s = time.perf_counter()
    for _ in range(side.messages):
        consumer.ack(consumer.consume(QUEUE, clean=side.clean))
    return {"publish": published_s - began_s, "consume and ack": time.perf_counter() - published_s}


# ---- several at once


class _Together(Looped):
    """Consumers of one side."""

    def __init__(self, side: Side) -> None:
        self.name, self._side = side.name, side

    def producer(self, place: Path) -> Callable[[bytes], object]:
        """Nothing is put: the queue is filled."""
        raise NotImplementedError

    def consumer(self, place: Path) -> Iterator[bool]:
        """Consume, acknowledge; a race that is lost is an error, or looks like an empty queue, to the original."""
        peers.Ddmq().prepare(place)
        broker = self._side.open(str(place))
        while True:
            found = None
            with suppress(FileNotFoundError):
                found = broker.consume(QUEUE, clean=self._side.clean)
            if found is not None:
                broker.ack(found)
            elif not any(broker.get_message_list(QUEUE)):
                return
            yield found is not None


def _at_once(place: Path, side: Side, waiting: int) -> float:
    """Messages a second that they consume together, from twice as many as *waiting* on."""
    with _removed(place):
        _fill(place, 2 * waiting)
        return _Together(side).take(place, Load(0), CONSUMERS).rate


# ---- the pool


class _Worker(Pool):
    """A pool of one on a filled queue."""

    def url(self, place: Path) -> str:
        """The queue's."""
        return f"ddmq:{place}/root/{QUEUE}"


def _pool(place: Path, waiting: int, backlog: int) -> float:
    """Messages a second that one worker settles, while *waiting* and more wait."""
    worker = _Worker()
    with _removed(place), worker.opened(place):
        _fill(place / "root", waiting + backlog + STARTING_MESSAGES)
        return worker.take(place, Load(backlog), 1).rate
