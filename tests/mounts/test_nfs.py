"""
test_nfs - two hosts on one queue of a real NFS server: each with its own kernel, clock and cache

The hosts are User-Mode-Linux guests, see guests. Pools and producers run on both, see fleet. On the way workers are
killed, a host loses its power, the server loses it and boots again, and a clock is wrong or steps. The figures are
printed.

ORCHESTRATOR_MOUNTS=2000 is a long run: each of these by itself, and all of them over and over, with so many messages
for each version of NFS.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mounts.fleet import Fleet, Trouble
from tests.mounts.guests import EXPORT, Site, guests
from tests.mounts.nfs import (
    COUNT,
    LONG,
    LONG_ONLY,
    TIMEOUT_S,
    VERSIONS,
    clocks,
    everything,
    hosts_on,
    nothing,
    power,
    server,
    workers,
)
from tests.waiting import until

LONG_3, LONG_4 = (pytest.param(version, marks=LONG_ONLY) for version in VERSIONS)
PUTS = 20 if LONG else 1
BURSTS = 100 if LONG else 20


@pytest.fixture(name="site", scope="module")
def _site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server and two clients."""
    with guests(tmp_path_factory.mktemp("guests")) as site:
        yield site


@pytest.mark.timeout(TIMEOUT_S + 120)
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "troubles",
    [everything, *(pytest.param(one, marks=LONG_ONLY) for one in (nothing, workers, power, server, clocks))],
    ids=lambda one: one.__name__,
)
def test_nothing_is_lost_or_done_twice(
    site: Site, version: str, troubles: Callable[[Fleet, Site], list[Trouble]], tmp_path: Path
) -> None:
    """Of all that was put; but for what a crashed worker had in hand, which is done twice at most."""
    hosts = hosts_on(site, version, f"{troubles.__name__}-{version}")
    with Fleet(tmp_path, hosts, COUNT) as fleet:
        fleet.start()
        fleet.run(troubles(fleet, site), TIMEOUT_S)
        counts = fleet.counts(hosts[0])
        print(f"\nNFS {version}, {troubles.__name__}: {counts}")  # noqa: T201 - the figures
        counts.check(may_stall=troubles in (everything, server))  # a kernel takes its time to connect again
        assert not fleet.frightening()


@pytest.mark.timeout(180)
@pytest.mark.parametrize("version", [LONG_3, "4.2"])
def test_what_the_other_host_puts_is_found_by_polling(site: Site, version: str, tmp_path: Path) -> None:
    """
    No event comes from another host. Each message is put when the queue was idle for as long as two beats of its pool.

    How long it takes from the end of put() to the handler's line is printed.
    """
    one, other = hosts_on(site, version, f"idle-{version}")
    leases = EXPORT / one.place.name / "first" / ".pool" / "leases"
    fleet = Fleet(tmp_path, [one, other], 0)
    fleet.make()
    with fleet, fleet.answering(other, "one", fleet.url(other)) as put:
        fleet.start_pool(one)

        def beats() -> int:
            return max((int(name.rpartition(".")[2]) for name in site.server.run(f"ls {leases}")[1].split()), default=0)

        took_s = []
        for n in range(PUTS):
            number = 20 * n + 4  # a plain one
            start = until(beats)
            until(lambda: beats() >= start + 3, look_s=0.1)  # noqa: B023 - called at once
            assert put(str(number))
            put_s = time.monotonic()
            until(lambda: number in fleet.finished())  # noqa: B023
            took_s.append(time.monotonic() - put_s)
        fleet.end()
        took_s.sort()
        print(  # noqa: T201 - the figures
            f"\nNFS {version}: {PUTS} messages put on the idle queue from the other host were found after"
            f" {took_s[PUTS // 2]:.2f} s (p50), {took_s[-1]:.2f} s (longest)"
        )
        assert "make no event: polling every 1 s at most" in fleet.log
        assert not fleet.frightening()


# ---- listings


@pytest.mark.timeout(180)
@pytest.mark.parametrize("version", ["3", LONG_4])
def test_what_comes_in_the_tick_of_a_listing_is_listed_all_the_same(site: Site, version: str, tmp_path: Path) -> None:
    """
    One host lists a directory all the time, while the other moves some files there, milliseconds apart.

    A directory's time ticks every few milliseconds, and by that alone NFS v3 tells whether a listing is still good: a
    kernel that listed between two files of one tick, and believes its memory, misses the second until another comes.
    """
    one, other = hosts_on(site, version, f"tick-{version}")
    place = str(one.place / "directory")
    site.clients[0].done(f"mkdir {place}")
    fleet = Fleet(tmp_path, [one, other], 0)
    with fleet.answering(one, "follow", place) as is_listed, fleet.answering(other, "burst", place) as burst:
        found = [is_listed(burst(str(n))) for n in range(BURSTS)]
    assert found == ["listed"] * BURSTS


@pytest.mark.parametrize("version", [LONG_3, "4.2"])
def test_a_directory_that_another_host_removed_is_not_there(site: Site, version: str, tmp_path: Path) -> None:
    """Opened before, read after it: that is a stale handle, an error, and means no more than that it is gone."""
    one, other = hosts_on(site, version, f"removed-{version}")
    directory = one.place / "directory"
    site.clients[0].done(f"mkdir {directory}")
    with Fleet(tmp_path, [one, other], 0).answering(one, "removed", str(directory)) as tell:
        assert tell("open") == "opened"
        site.clients[1].done(f"rmdir {directory}")
        assert tell("read") == "FileNotFoundError"
