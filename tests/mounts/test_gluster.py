"""
test_gluster - two hosts on one queue of a GlusterFS volume: three servers, of which one is killed on the way

See gluster (the volume), fleet (what runs, and what must be so at the end). Of three servers two are enough to go on.
When the third comes back and is told what it missed, GlusterFS now and then makes names again that were removed
meanwhile, mostly of files that are empty: so a message that was finished or deferred may be there once more, without
its content or with it, and a lease of a pool that has ended. How many is printed as torn, twice and left; nothing else
may be so, and not many.

ORCHESTRATOR_MOUNTS=400 is a long run: so many messages for each kind of queue, in which each server in turn is
killed and comes back.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from tests.mounts import gluster
from tests.mounts.fleet import Fleet, Host, Trouble
from tests.mounts.gluster import Cluster, cluster
from tests.mounts.protocols import DIRQ_SIMPLE, PROTOCOLS, SPOOL, Protocol
from tests.waiting import until

LONG = int(os.environ.get("ORCHESTRATOR_MOUNTS", "0"))
COUNT = LONG or 40
TIMEOUT_S = 150 + LONG
BACK_S = 120.0  # a server that was killed is back by then, and has been told what it missed
UNTOLD_S = 30.0  # after so long it is told on request
LOOK_S = 0.3
BROUGHT_BACK_MAX = 3  # messages that are there once more after a server has come back; seen were 0 to 3


@pytest.fixture(name="volume", scope="module")
def _volume(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three servers, two hosts."""
    with cluster(tmp_path_factory.mktemp("gluster")) as volume:
        yield volume


def hosts_on(volume: Cluster, name: str, place: Path) -> list[Host]:
    """Both hosts, each with an empty directory of the volume."""
    (volume.hosts[0].path / name).mkdir()
    return [Host(host.name, host.inside / name, host.enter, place / f"run-{host.name}") for host in volume.hosts]


def misfortune(fleet: Fleet, volume: Cluster) -> list[Trouble]:
    """A worker is killed; and a server, in a long run each in turn, and comes back before the next one is."""
    numbers = gluster.SERVERS if LONG else gluster.SERVERS[:1]
    troubles = [Trouble(0.5, lambda: fleet.kill_worker(fleet.hosts[0]))]
    for step, number in enumerate(numbers):

        def kill(number: int = number) -> None:
            volume.kill(number)

        def back(number: int = number) -> None:
            volume.boot(number)
            until(lambda: volume.is_up(number), BACK_S, LOOK_S)
            # It is told what it missed when its neighbours see it. What a host that saw it later wrote past it after
            # that would wait for ten minutes.
            with suppress(AssertionError):
                until(lambda: volume.unhealed() == 0, UNTOLD_S, LOOK_S)
                return
            volume.tell("volume", "heal", "queues")
            until(lambda: volume.unhealed() == 0, BACK_S, LOOK_S)

        for at, do, name in ((0.3, kill, "servers killed"), (0.7, back, "servers back")):
            troubles.append(Trouble((step + at) / len(numbers), do, name))
    return troubles


@pytest.mark.timeout(TIMEOUT_S + 60)
@pytest.mark.parametrize("protocol", PROTOCOLS if LONG else (SPOOL, DIRQ_SIMPLE), ids=str)
def test_nothing_is_lost_while_a_server_is_gone(volume: Cluster, protocol: Protocol, tmp_path: Path) -> None:
    """And twice is done only what a killed worker had in hand, or the volume brought back."""
    hosts = hosts_on(volume, str(protocol), tmp_path)
    with protocol.fleet(tmp_path, hosts, COUNT) as fleet:
        fleet.start()
        fleet.run(misfortune(fleet, volume), TIMEOUT_S)
        counts = fleet.counts(hosts[1])
        print(f"\nGlusterFS, {protocol}: {counts}")  # noqa: T201 - the figures
        left = {queue: found for queue, kept in counts.left.items() if (found := kept.keys() - {"leases"})}
        assert not left, counts.left
        brought_back_max = BROUGHT_BACK_MAX * counts.happened["servers back"]
        assert len(counts.unexplained) <= brought_back_max, counts
        assert len(counts.twice) <= counts.crashes + brought_back_max, counts
        replace(counts, torn=0, left={}, twice=[], unexplained=[]).check(may_stall=True)
