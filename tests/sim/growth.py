"""
growth - what a cluster asks of its file server, against hosts and workers

Clusters of growing size run without faults on a simulated server over NFS: first idle,
then busy for the greater part. Counted are operations of the server: a call is one, a
listing one (the client asks whether it has changed) and, when it has, one more for each
NAMES_A_READDIR names. Attributes are kept for 3 to 30 s, as clients do.

    python -m tests.sim growth                      # the table for tests/PROOF.md
    python -m tests.sim growth --size 500x20 --seconds 6

See also: cluster (who takes part), SPOOL.md section 19 (what a message costs at the least).
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import dataclass

from tests.sim.cluster import Cluster, Plan, quiet_and_repeatable

SIZES = ((1, 1), (1, 16), (1, 64), (10, 1), (10, 16), (10, 64), (100, 1), (100, 10), (100, 20))
BUSY, HANDLER_S = 0.6, 4.0
LEASE_S = (5.0, 60.0, 600.0)
WARM_S = 12.0  # until all have started, and each keeper has swept twice


@dataclass(frozen=True)
class Row:
    """One cluster; operations of the server a second, by who asked for them, and what a message took."""

    hosts: int
    workers: int
    is_fed: bool
    messages: int
    seconds: float
    operations: Counter[str]
    calls: Counter[tuple[str, str]]
    beat_s: float

    def per_second(self, *roles: str) -> float:
        """Operations of *roles*."""
        return sum(self.operations[role] for role in roles) / self.seconds

    def per_message(self, role: str) -> float:
        """Operations of *role*; 0 where there was no message."""
        return self.operations[role] / self.messages if self.messages else 0.0

    def lost_races(self) -> float:
        """Renames of workers for each message, beyond the one that claims it."""
        return max(0.0, self.calls["worker", "rename"] / self.messages - 1) if self.messages else 0.0

    def __str__(self) -> str:
        kind = "fed" if self.is_fed else "unfed"
        text = f"| {self.hosts} x {self.workers} | {kind} | {self.messages / self.seconds:,.0f} | "
        text += " | ".join(f"{self.per_message(role):.1f}" for role in ("producer", "worker"))
        text += f" | {self.lost_races():.2f} | "
        text += " | ".join(f"{self.per_second(*roles):,.0f}" for roles in (("worker",), ("feeder",), ("keeper",)))
        return f"{text} | {self.per_second(*self.operations):,.0f} | {self.beat_s:.1f} |"


HEADER = (
    "| hosts x workers | | messages/s | put | take | lost races | workers/s | feeders/s | keepers/s | sum/s | beat |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|"
)


def measure(hosts: int, workers: int, *, is_fed: bool, is_busy: bool, seconds: float) -> Row:
    """One cluster, watched for *seconds* of virtual time."""
    rate = hosts * workers * BUSY / HANDLER_S if is_busy else 0.0
    minutes = (WARM_S + seconds) / 60
    plan = Plan(
        1, hosts, workers, int(rate * minutes * 60 / 0.9), minutes, HANDLER_S, LEASE_S, faults=0.0, fed=float(is_fed),
        measures=hosts, is_plain=True, is_one_queue=True,
    )  # fmt: skip
    with quiet_and_repeatable(plan):
        cluster = Cluster(plan)
        cluster.begin()
        virtual, counts = cluster.virtual, cluster.accounts.counts
        virtual.run(WARM_S)
        operations, calls = virtual.operations.copy(), virtual.calls.copy()
        handled, beats = counts["finished"], counts["beats"]
        virtual.run(seconds)
        beat_s = seconds * hosts / max(counts["beats"] - beats, 1)
        return Row(
            hosts, workers, is_fed, counts["finished"] - handled, seconds, virtual.operations - operations,
            virtual.calls - calls, beat_s,
        )  # fmt: skip


def main(arguments: list[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim growth", description="Count a server's operations.")
    parser.add_argument("--size", action="append", metavar="HxW", help="hosts x workers of each; instead of the table")
    parser.add_argument("--seconds", type=float, default=20.0, help="of virtual time")
    parser.add_argument("--calls", action="store_true", help="which calls these are, the most frequent first")
    parser.add_argument("--unfed", action="store_true", help="only without feeders, and --fed only with")
    parser.add_argument("--fed", action="store_true")
    parser.add_argument("--idle", action="store_true", help="only idle")
    chosen = parser.parse_args(arguments)
    sizes = [tuple(map(int, size.split("x"))) for size in chosen.size] if chosen.size else SIZES
    print(HEADER)  # noqa: T201
    for is_busy in (False,) if chosen.idle else (False, True):
        for is_fed in [is_fed for is_fed in (False, True) if not (chosen.unfed if is_fed else chosen.fed)]:
            for hosts, workers in sizes:
                row = measure(hosts, workers, is_fed=is_fed, is_busy=is_busy, seconds=chosen.seconds)
                print(row, flush=True)  # noqa: T201
                if chosen.calls:
                    print([(call, round(count / row.seconds, 1)) for call, count in row.calls.most_common(12)])  # noqa: T201
    return 0
