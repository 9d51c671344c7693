"""
test_nfs_ddmq - a ddmq queue on a real NFS server: two hosts with clocks and caches of their own, and the original

See test_nfs_dirq, of which this is the same for ddmq. Claims expire by a clock, so they last for seconds here: a server
that boots again is away for longer.

ORCHESTRATOR_MOUNTS=2000 is a long run.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mounts import nfs
from tests.mounts.beside import COUNT, Beside, Troubles, behind, finish, ours_wrong, outage, power_once
from tests.mounts.fleet import QUEUES, Fleet
from tests.mounts.guests import Site, guests

LASTS_S = 10  # a claim, the shortest that there is
BESIDE_LASTS_S = 60  # the original's cleaning removes what has expired: no trouble is to last so long


@pytest.fixture(name="site", scope="module")
def _site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server and two clients."""
    with guests(tmp_path_factory.mktemp("guests")) as site:
        yield site


def cases(*troubles: Troubles, short: tuple[tuple[str, Troubles], ...] = ()) -> list[object]:
    """Each of *troubles* with each version; without a long run only *short*."""
    return [
        pytest.param(
            version, do, id=f"{version}-{do.__name__}", marks=() if (version, do) in short else nfs.LONG_ONLY
        )
        for do in troubles for version in nfs.VERSIONS
    ]  # fmt: skip


def start(fleet: Fleet, site: Site, lasts_s: int) -> None:
    """Start it on queues whose claims last so long."""
    fleet.make()
    files = " ".join(str(fleet.hosts[0].place / queue / "ddmq.yaml") for queue in QUEUES)
    site.clients[0].done(f"sed -i 's/^message_timeout: .*/message_timeout: {lasts_s}/' {files}")
    for host in fleet.hosts:
        fleet.start_pool(host)
        fleet.start_producer(host)


@pytest.mark.timeout(nfs.TIMEOUT_S + 120)
@pytest.mark.parametrize(
    ("version", "troubles"),
    cases(nfs.nothing, nfs.workers, outage, nfs.server, power_once, nfs.power, nfs.clocks, nfs.everything),
)
def test_nothing_is_lost_or_done_twice(site: Site, version: str, troubles: Troubles, tmp_path: Path) -> None:
    """Of all that was put; but for what a crashed worker had in hand, which is done twice at most."""
    hosts = nfs.hosts_on(site, version, f"ddmq-{troubles.__name__}-{version}")
    with Fleet(tmp_path, hosts, COUNT, "ddmq", times=None) as fleet:
        start(fleet, site, LASTS_S)
        finish(fleet, site, f"ddmq on NFS {version}", troubles)


@pytest.mark.timeout(nfs.TIMEOUT_S + 120)
@pytest.mark.parametrize(
    ("version", "troubles"),
    cases(nfs.nothing, nfs.workers, nfs.server, ours_wrong, behind, short=(("4.2", ours_wrong),)),
)
def test_nothing_is_lost_or_done_twice_beside_the_original(
    site: Site, version: str, troubles: Troubles, tmp_path: Path
) -> None:
    """It publishes half of the messages on one host, consumes as many, and cleans, while pools work on both."""
    hosts = nfs.hosts_on(site, version, f"beside-ddmq-{troubles.__name__}-{version}")
    with Beside(tmp_path, hosts, COUNT, "ddmq", times=None) as fleet:
        start(fleet, site, BESIDE_LASTS_S)
        finish(fleet, site, f"ddmq beside the original on NFS {version}", troubles)
