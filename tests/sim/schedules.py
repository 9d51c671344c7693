"""
schedules - the command that walks the scenarios: python -m tests.sim schedules [--long] [NAME ...]

One line a scenario, several at a time, and the sum. NAME is part of a scenario's name.
What a violation prints last is the command that walks its trail again.
See also: scenarios, explore.
"""

from __future__ import annotations

import argparse
import ast
import logging
import os
import sys
import time
from collections.abc import Sequence
from multiprocessing import Pool

from tests.sim.explore import Report, Violation, explore, replay
from tests.sim.scenarios import FOREIGN, LONG, SHORT, load

STATES_MAX = 400_000  # a gigabyte


def main(arguments: Sequence[str]) -> int:
    """Walk; 1 when something was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim schedules", description="walk every schedule")
    parser.add_argument("--long", action="store_true", help="the bigger scenarios, some minutes each")
    parser.add_argument("--trail", help="walk this one trail of the scenario NAME, as a violation prints it")
    parser.add_argument("names", nargs="*", metavar="NAME", help="only those that have this in their names")
    asked = parser.parse_args(arguments)
    load()
    if asked.trail:
        return _walk_again(asked.names[0], ast.literal_eval(asked.trail))
    known = LONG if asked.long else SHORT
    wanted = [name for name in known if name in asked.names or any(part in name for part in asked.names or [""])]
    if not wanted:
        parser.error("no scenario has that in its name; these are known:\n" + "\n".join(known))
    sums = {prefix: Report(f"sum of {prefix.strip('_') or 'the spool'}'s") for prefix in ("", *FOREIGN)}
    found, began = 0, time.monotonic()
    with Pool(os.cpu_count()) as pool:
        for report, seconds, violation in pool.imap_unordered(_walk, wanted):
            print(f"{report}  {seconds:.1f} s", flush=True)  # noqa: T201 - a command
            if violation:
                found += 1
                print(violation, flush=True)  # noqa: T201 - a command
            total = sums[_prefix(report.scenario)]
            total.states += report.states
            total.ends += report.ends
            total.schedules += report.schedules
    for prefix, total in sums.items():
        print(f"{sum(_prefix(name) == prefix for name in wanted)} scenarios, {total}")  # noqa: T201 - a command
    print(f"{found} failed  {time.monotonic() - began:.0f} s")  # noqa: T201 - a command
    return 1 if found else 0


def _prefix(name: str) -> str:
    return next((prefix for prefix in FOREIGN if name.startswith(prefix)), "")


def _walk_again(name: str, trail: Sequence[int | tuple[int, str]]) -> int:
    logging.disable(logging.CRITICAL)
    try:
        replay((SHORT | LONG)[name], trail)
    except Violation as violation:
        print(violation)  # noqa: T201 - a command
        return 1
    print("the trail leads to no violation")  # noqa: T201 - a command
    return 0


def _walk(name: str) -> tuple[Report, float, str]:
    logging.disable(logging.CRITICAL)
    load()
    began = time.monotonic()
    try:
        report, text = explore((SHORT | LONG)[name], STATES_MAX), ""
    except (Violation, AssertionError) as error:
        report, text = Report(name), str(error)
    return report, time.monotonic() - began, text


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
