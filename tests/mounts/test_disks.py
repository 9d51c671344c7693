"""
test_disks - two pools of two hosts' names on one queue of each kind of local disk

The hosts share a kernel, but not a name, so they know of each other by the queue alone. Workers are killed, and each
host as a whole. What a storm of kills does to one pool is in tests/process/test_storm; this is for every kind of queue.

ORCHESTRATOR_MOUNTS=500 is a long run: so many messages, on each kind of disk with each kind of queue.

See also: tests/process/disks (the disks), fleet (what runs on them, and what must be so at the end).
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.mounts.fleet import Fleet, Host, Trouble
from tests.mounts.protocols import DDMQ, DIRQ, DIRQ_SIMPLE, PROTOCOLS, Protocol
from tests.process.disks import KINDS, mounted

LONG = int(os.environ.get("ORCHESTRATOR_MOUNTS", "0"))
COUNT = LONG or 300
TIMEOUT_S = 120 + LONG
SHORT_RUNS = (("xfs", DIRQ_SIMPLE), ("btrfs", DIRQ), ("overlay", DDMQ))  # the storm is on all of them
LONG_RUNS = [(kind, protocol) for kind in KINDS for protocol in PROTOCOLS]


def kills(fleet: Fleet) -> list[Trouble]:
    """A worker of each host, and each host once, as when its power fails."""
    one, other = fleet.hosts
    return [
        Trouble(0.2, lambda: fleet.kill_worker(one)),
        Trouble(0.3, lambda: fleet.kill_worker(other)),
        Trouble(0.5, lambda: fleet.cut(one)),
        Trouble(0.6, lambda: fleet.start_again(one)),
        Trouble(0.7, lambda: fleet.cut(other)),
        Trouble(0.8, lambda: fleet.start_again(other)),
    ]


@pytest.mark.timeout(TIMEOUT_S + 60)
@pytest.mark.parametrize(("kind", "protocol"), LONG_RUNS if LONG else SHORT_RUNS, ids=str)
def test_two_pools_that_are_killed_lose_nothing(kind: str, protocol: Protocol, tmp_path: Path) -> None:
    """And do nothing twice but what a killed worker had in hand."""
    with mounted(kind, tmp_path) as disk:
        hosts = [Host(name, disk.inside, disk.enter, tmp_path / f"run-{name}") for name in ("host1", "host2")]
        with protocol.fleet(tmp_path / "fleet", hosts, COUNT) as fleet:
            fleet.start()
            fleet.run(kills(fleet), TIMEOUT_S)
            counts = fleet.counts(hosts[0])
            print(f"\n{kind}, {protocol}: {counts}")  # noqa: T201 - the figures
            counts.check()
            assert not fleet.frightening(), fleet.log
