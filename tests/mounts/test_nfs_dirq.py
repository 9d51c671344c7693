"""
test_nfs_dirq - directory queues on a real NFS server: two hosts with clocks and caches of their own, and the original

Pools run on both hosts, and producers, see fleet; or the original dirq puts and takes on one of them, see originals. On
the way workers are killed, a host loses its power, the server boots again, clocks are wrong. The figures are printed.

ORCHESTRATOR_MOUNTS=2000 is a long run: each trouble by itself, and all of them, for both kinds and each version of NFS.

See also: test_nfs (the same for the spool), test_nfs_ddmq, beside.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mounts import nfs
from tests.mounts.beside import COUNT, Beside, Troubles, ahead, behind, finish, ours_wrong, outage, power_once
from tests.mounts.guests import Site, guests
from tests.mounts.protocols import DIRQ, DIRQ_SIMPLE, Protocol

EVERYWHERE = [(protocol, version) for protocol in (DIRQ_SIMPLE, DIRQ) for version in nfs.VERSIONS]


@pytest.fixture(name="site", scope="module")
def _site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server and two clients."""
    with guests(tmp_path_factory.mktemp("guests")) as site:
        yield site


def cases(*troubles: Troubles, short: tuple[tuple[Protocol, str, Troubles], ...] = ()) -> list[object]:
    """Each of *troubles* everywhere; without a long run only *short*."""
    return [
        pytest.param(
            protocol, version, do, id=f"{protocol}-{version}-{do.__name__}",
            marks=() if (protocol, version, do) in short else nfs.LONG_ONLY,
        )
        for do in troubles for protocol, version in EVERYWHERE
    ]  # fmt: skip


@pytest.mark.timeout(nfs.TIMEOUT_S + 120)
@pytest.mark.parametrize(
    ("protocol", "version", "troubles"),
    cases(
        nfs.nothing, nfs.workers, outage, nfs.server, power_once, nfs.power, nfs.clocks, nfs.everything,
        short=((DIRQ_SIMPLE, "4.2", outage), (DIRQ, "3", power_once)),
    ),
)  # fmt: skip
def test_nothing_is_lost_or_done_twice(
    site: Site, protocol: Protocol, version: str, troubles: Troubles, tmp_path: Path
) -> None:
    """Of all that was put; but for what a crashed worker had in hand, which is done twice at most."""
    hosts = nfs.hosts_on(site, version, f"{protocol}-{troubles.__name__}-{version}")
    with protocol.fleet(tmp_path, hosts, COUNT) as fleet:
        fleet.start()
        finish(fleet, site, f"{protocol} on NFS {version}", troubles)


@pytest.mark.timeout(nfs.TIMEOUT_S + 120)
@pytest.mark.parametrize(
    ("protocol", "version", "troubles"), cases(nfs.nothing, nfs.workers, nfs.server, ours_wrong, behind)
)
def test_nothing_is_lost_or_done_twice_beside_the_original(
    site: Site, protocol: Protocol, version: str, troubles: Troubles, tmp_path: Path
) -> None:
    """It puts half of the messages on one host, takes as many as it puts, and purges, while pools work on both."""
    hosts = nfs.hosts_on(site, version, f"beside-{protocol}-{troubles.__name__}-{version}")
    with Beside(tmp_path, hosts, COUNT, protocol.scheme, protocol.query, options=protocol.options, times=None) as fleet:
        fleet.start()
        finish(fleet, site, f"{protocol} beside the original on NFS {version}", troubles)


@pytest.mark.timeout(nfs.TIMEOUT_S + 120)
@pytest.mark.parametrize(("protocol", "version", "troubles"), cases(ahead))
def test_nothing_is_lost_where_the_originals_purge_takes_every_lock_for_old(
    site: Site, protocol: Protocol, version: str, troubles: Troubles, tmp_path: Path
) -> None:
    """Its limits are by its host's clock. What it takes from a worker may be done by another as well."""
    hosts = nfs.hosts_on(site, version, f"{protocol}-{troubles.__name__}-{version}")
    with Beside(tmp_path, hosts, COUNT, protocol.scheme, protocol.query, options=protocol.options, times=None) as fleet:
        fleet.start()
        fleet.run(troubles(fleet, site), nfs.TIMEOUT_S)
        counts = fleet.counts(hosts[0])
        print(f"\n{protocol} beside the original on NFS {version}, {troubles.__name__}: {counts}")  # noqa: T201 - the figures
        assert not counts.lost
        assert not counts.torn
        assert not counts.left
