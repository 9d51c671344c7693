"""
scenarios - the list of small worlds whose every schedule is walked, short ones and long ones

A scenario is made by a function of a scenarios_* module, which sets up a world and says
who acts in it; here they are registered, by name, with what may go wrong in them. The
names of actors are one letter each: A, B, C take messages, K, L keep, M is a master, O an
operator, P, R put, T is the time. In *dying* are those that may be killed, at any
call; in *losing* those whose replies may be lost, or whose calls may fail.

See also: explore (who walks them), cast (who acts), scenarios_claims, scenarios_leases,
scenarios_puts, scenarios_others, test_schedules, schedules (the command); those of other
formats, whose names begin with one of FOREIGN.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence

from tests.sim.cast import QUEUE, recover
from tests.sim.explore import Actor, Scenario
from tests.sim.kernel import Process, World
from tests.sim.ledger import Ledger

Act = tuple[str, Process, Callable[[], object]]
Setup = Callable[..., tuple[World, Ledger, Sequence[Act]]]
Finish = Callable[[World, Ledger], object]

MODULES = (
    "scenarios_claims", "scenarios_leases", "scenarios_puts", "scenarios_others", "scenarios_dirq",
    "scenarios_dirq_pools", "scenarios_ddmq", "scenarios_ddmq_pools",
)  # fmt: skip
FOREIGN = ("dirq_", "ddmq_")  # so begin the names of those that are no spool's
SETTLES = ("done", "retry", "reject", "release", "forward", "forward anew")
SHORT: dict[str, Scenario] = {}
LONG: dict[str, Scenario] = {}


def load() -> None:
    """Fill SHORT and LONG."""
    for module in MODULES:
        importlib.import_module(f"tests.sim.{module}")


def add(
    setup: Setup,
    *arguments: object,
    dying: str = "",
    crashes: int | None = None,
    losing: str = "",
    faults: int | None = None,
    is_long: bool = False,
    queues: Sequence[str] = (QUEUE,),
    finish: Finish | None = None,
    **options: object,
) -> None:
    """Register a scenario. *crashes* and *faults* are 1 where somebody may have one; *queues* are recovered."""
    crashes = bool(dying) if crashes is None else crashes
    faults = bool(losing) if faults is None else faults
    words = [setup.__name__, *map(str, arguments), *(f"{key}={value}" for key, value in options.items())]
    words += [f"{int(crashes)} of {dying} killed"] * bool(dying) + [f"{int(faults)} replies of {losing}"] * bool(losing)

    def made() -> tuple[World, Ledger, Sequence[Actor]]:
        world, ledger, acts = setup(*arguments, **options)
        return world, ledger, [Actor(name, process, act, name in dying, name in losing) for name, process, act in acts]

    def ended(world: World, ledger: Ledger) -> None:
        if not losing:  # a directory whose removal failed is left to the keeper
            ledger.check_left()
        if finish is None:
            recover(world, ledger, *queues)
        else:
            finish(world, ledger)

    name = ", ".join(words)
    where = LONG if is_long else SHORT
    assert name not in SHORT | LONG, name
    where[name] = Scenario(name, made, int(crashes), int(faults), ended)
