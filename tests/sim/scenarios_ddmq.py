"""
scenarios_ddmq - consumers, publishers, cleaners and the original on one ddmq

A, B, C consume and settle; K, L clean; P, Q are the original (the sequence of its calls); R, S
publish; X purges; T is the time. A claim is fresh, or it has expired.

See also: scenarios, ddmq_cast, ddmq_ledger.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.sim import ddmq_cast as cast
from tests.sim.ddmq_cast import OLD_S, TIMEOUT_S, S, make_world, opened
from tests.sim.ddmq_ledger import WORK, DdmqLedger
from tests.sim.kernel import Process, World
from tests.sim.scenarios import Act, add

Made = tuple[World, DdmqLedger, list[Act]]
SETTLES = ("ack", "nack", "drop", "touch ack")


def acting(world: World, letters: str, act: Callable[[Process], cast.Act], count: int = 1) -> list[Act]:
    """The first *count* of *letters*, each with a process of its own."""
    processes = [(letter, world.processes.get(ord(letter)) or world.process(ord(letter))) for letter in letters[:count]]
    return [(letter, process, act(process)) for letter, process in processes]


def consumers(world: World, ledger: DdmqLedger, *settles: str, letters: str = "ABC", **options: Any) -> list[Act]:
    """As many as *settles*: each takes what comes first, and settles it so."""
    acts: list[Act] = []
    for letter, settle in zip(letters, settles, strict=False):
        acts += acting(world, letter, lambda by: cast.consume(opened(by), ledger, settle, **options))  # noqa: B023
    return acts


def cleaners(world: World, ledger: DdmqLedger, count: int, **options: bool) -> list[Act]:
    """Of ours."""
    return acting(world, "KL", lambda by: cast.clean(opened(by), ledger, **options), count)


# ---- consuming


def ddmq_consumers(
    *settles: str, messages: int = 1, network: str | None = None, times: int = 1, n: int = 1, priority: int = 999
) -> Made:
    """As many as *settles* consume of so many messages; one of *priority* 0 is requeued under its own name."""
    world, ledger = make_world(*("one", "two", "three")[:messages], network=network, priority=priority)
    return world, ledger, consumers(world, ledger, *settles, times=times, n=n, may_fail=network is not None)


def ddmq_publishers(*settles: str, publishers: int = 1, network: str | None = None, **options: bool) -> Made:
    """Messages are published while others consume."""
    world, ledger = make_world(network=network)
    may_fail = network is not None
    acts = acting(
        world,
        "RS",
        lambda by: cast.publish(opened(by, **options), ledger, f"of {by.pid}", may_fail=may_fail),
        publishers,
    )
    return world, ledger, acts + consumers(world, ledger, *settles, may_fail=may_fail)


def ddmq_purged(*settles: str, publishers: int = 0) -> Made:
    """Somebody purges while others consume and publish."""
    world, ledger = make_world("one")
    acts = acting(world, "X", lambda by: cast.purge(opened(by), ledger))
    acts += acting(world, "RS", lambda by: cast.publish(opened(by), ledger, "new"), publishers)
    return world, ledger, acts + consumers(world, ledger, *settles)


# ---- what has expired


def expired(world: World, ledger: DdmqLedger, settle: str, *, may_fail: bool = False) -> list[Act]:
    """A has it in hand, for longer than its claim lasts, and settles it now."""
    a = opened(world.process(ord("A")))
    message = cast.holds(a, ledger)
    world.moved_ns += (TIMEOUT_S + 1) * S
    if not settle:
        cast.process_of(a).has_crashed = True
        return []

    def act() -> None:
        try:
            cast.settle_taken(a, ledger, message, settle)
        except OSError:
            if not may_fail:
                raise

    return [("A", cast.process_of(a), act)]


def ddmq_expired(
    settle: str, *others: str, keepers: int = 1, network: str | None = None, flags: bool = True, **options: Any
) -> Made:
    """A claim has expired; its holder settles it, others clean, and consume it once more."""
    world, ledger = make_world("one", network=network, has_flags=flags and network is None, **options)
    may_fail = network is not None
    acts = expired(world, ledger, settle, may_fail=may_fail)
    acts += cleaners(world, ledger, keepers, may_fail=may_fail)
    return world, ledger, acts + consumers(world, ledger, *others, letters="BC", may_fail=may_fail)


def ddmq_requeued(keepers: int = 1, others: int = 1) -> Made:
    """The same claim is requeued by its path, and cleaned."""
    world, ledger = make_world("one")
    expired(world, ledger, "")
    (name,) = world.disk.directory(WORK).entries
    path = f"{WORK}/{name}"

    def requeue(by: Process) -> cast.Act:
        broker = opened(by)

        def act() -> None:
            try:
                broker.requeue_message(path)
            except FileNotFoundError:
                return
            ledger.was_requeued(by, name.partition(".ddmq")[2])

        return act

    return world, ledger, acting(world, "OU", requeue, others) + cleaners(world, ledger, keepers)


def ddmq_late(settle: str, *others: str, keepers: int = 1, seconds: float = TIMEOUT_S + 1) -> Made:
    """The time of a claim is over at any moment; cleaners see that, or do not."""
    world, ledger = make_world("one")
    ledger.requeues_more = 1
    acts = consumers(world, ledger, settle, *others)
    acts += cleaners(world, ledger, keepers)
    return world, ledger, acts + acting(world, "T", lambda by: cast.wait(by, seconds))


def ddmq_cleaned(keepers: int = 2) -> Made:
    """The whole of a cleaning, with its note in ddmq.yaml and the sweep."""
    world, ledger = make_world("one")
    expired(world, ledger, "")
    return world, ledger, cleaners(world, ledger, keepers, whole=True)


def ddmq_settings(*keys: str) -> Made:
    """Several change the settings at one time (Q16)."""
    world, ledger = make_world()
    acts: list[Act] = []
    for letter, key in zip("UVW", keys, strict=False):
        acts += acting(world, letter, lambda by: cast.update(opened(by), ledger, key))  # noqa: B023
    return world, ledger, acts


def ddmq_skewed(settle: str) -> Made:
    """The clock of the cleaner's host is far ahead of the server's (Q17)."""
    world, ledger = make_world("one", network="nfs")
    acts = consumers(world, ledger, settle) + cleaners(world, ledger, 1)
    acts[-1][1].skew_ns = 2 * TIMEOUT_S * S
    return world, ledger, acts


def ddmq_slow_publisher(*settles: str) -> Made:
    """A publisher stands still for so long that a cleaner removes what it was writing: it is told so."""
    world, ledger = make_world()
    acts = acting(world, "R", lambda by: cast.publish(opened(by), ledger, "slow", may_fail=True))
    acts += consumers(world, ledger, *settles)
    acts += acting(world, "K", lambda by: cast.sweep(opened(by)))
    return world, ledger, acts + acting(world, "T", lambda by: cast.wait(by, OLD_S + 1))


def ddmq_swept() -> Made:
    """Messages are published while somebody sweeps: that fails nobody."""
    world, ledger = make_world()
    acts = acting(world, "R", lambda by: cast.publish(opened(by), ledger, "new"))
    return world, ledger, acts + acting(world, "K", lambda by: cast.sweep(opened(by)))


# ---- beside the original


def ddmq_in_place(*settles: str, keepers: int = 0, times: int = 1) -> Made:
    """The original publishes, in place, while ours consume."""
    world, ledger = make_world()
    acts = acting(world, "P", lambda by: cast.their_publish(by, ledger, "theirs"))
    acts += consumers(world, ledger, *settles, times=times)
    return world, ledger, acts + cleaners(world, ledger, keepers)


def ddmq_beside(settle: str, theirs: str, *others: str, messages: int = 1) -> Made:
    """One of ours and one of theirs consume."""
    world, ledger = make_world(*("one", "two")[:messages])
    acts = consumers(world, ledger, settle, *others)
    return world, ledger, acts + acting(world, "P", lambda by: cast.their_consume(by, ledger, theirs))


def ddmq_their_clean(settle: str, *others: str, keepers: int = 0) -> Made:
    """The original cleans what has expired (Q11), beside its holder, and ours."""
    world, ledger = make_world("one")
    acts = expired(world, ledger, settle)
    acts += acting(world, "P", lambda by: cast.their_clean(by, ledger))
    acts += cleaners(world, ledger, keepers, may_fail=True)
    return world, ledger, acts + consumers(world, ledger, *others, letters="BC")


# ---- the list


def adds(setup: Callable[..., Made], *arguments: object, **options: object) -> None:
    """Register it; at its end one of ours recovers."""
    add(setup, *arguments, finish=cast.recover, **options)  # type: ignore[arg-type]


for _settle in SETTLES:
    adds(ddmq_consumers, _settle, "ack")
    adds(ddmq_consumers, _settle, "ack", dying="AB")
    adds(ddmq_expired, _settle)
    adds(ddmq_expired, _settle, "ack")
    adds(ddmq_expired, _settle, keepers=2, is_long=True)
    adds(ddmq_late, _settle)
    adds(ddmq_purged, _settle)
adds(ddmq_consumers, "ack", "ack", "ack", is_long=True)
adds(ddmq_consumers, "ack", "ack", messages=2)
adds(ddmq_consumers, "nack", "ack", priority=0)
adds(ddmq_consumers, "ack", "nack", messages=2, n=2, is_long=True)
adds(ddmq_consumers, "ack", "ack", messages=2, n=2)
adds(ddmq_publishers, "ack")
adds(ddmq_publishers, "ack", "ack")
adds(ddmq_publishers, "ack", publishers=2)
adds(ddmq_publishers, "ack", dying="R")
adds(ddmq_publishers, "ack", durable=True, dying="R")
adds(ddmq_publishers, "ack", network="nfs", losing="R")
adds(ddmq_consumers, "ack", "ack", network="nfs", losing="AB")
adds(ddmq_purged, "ack", publishers=1)
adds(ddmq_expired, "", keepers=2)
adds(ddmq_expired, "", keepers=2, dying="K")
adds(ddmq_expired, "", "ack", keepers=2)
adds(ddmq_expired, "ack", dying="K")
adds(ddmq_expired, "ack", keepers=2, dying="K", is_long=True)
adds(ddmq_expired, "", keepers=2, requeue=False)
adds(ddmq_expired, "", keepers=2, requeue_limit=1)
adds(ddmq_expired, "", keepers=2, dying="K", requeue_limit=1)
adds(ddmq_expired, "", keepers=2, flags=False)
adds(ddmq_expired, "", network="nfs", losing="K")
adds(ddmq_expired, "", keepers=2, network="nfs", losing="K", is_long=True)
adds(ddmq_requeued)
adds(ddmq_requeued, others=2, keepers=0)
adds(ddmq_late, "ack", "ack", is_long=True)
adds(ddmq_cleaned, is_long=True)
adds(ddmq_cleaned, keepers=1)
adds(ddmq_settings, "priority", "message_timeout")
adds(ddmq_settings, "priority", "message_timeout", "requeue_prio", is_long=True)
adds(ddmq_skewed, "ack")
adds(ddmq_skewed, "nack")
adds(ddmq_swept)
adds(ddmq_slow_publisher)
adds(ddmq_slow_publisher, "ack", is_long=True)
adds(ddmq_in_place, "ack")
adds(ddmq_in_place, "ack", "ack")
adds(ddmq_beside, "ack", "ack")
adds(ddmq_beside, "ack", "nack")
adds(ddmq_beside, "nack", "ack")
adds(ddmq_their_clean, "ack")
adds(ddmq_their_clean, "ack", keepers=1)
