"""
test_sshfs - two hosts on one queue behind sshfs, which caches listings, keeps no ctime, and forgets calls in flight

A connection breaks on the way and is made again, workers are killed, and a host as a whole. With sshfs's own caches
a host sees a name that another has made after 20 seconds; what is uncached is asked for each time. A dirq-simple
queue is refused there: see DIRQ.md.

ORCHESTRATOR_MOUNTS=500 is a long run: so many messages for each kind of queue, with either options.

See also: sshfs (the mounts), fleet (what runs on them, and what must be so at the end).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.mounts.fleet import Fleet, Host, Trouble
from tests.mounts.protocols import DDMQ, DIRQ, DIRQ_SIMPLE, SPOOL, Protocol
from tests.mounts.sshfs import Ssh, sshfs

LONG = int(os.environ.get("ORCHESTRATOR_MOUNTS", "0"))
COUNT = LONG or 60
TIMEOUT_S = 150 + LONG
OPTIONS = {
    "cached": ("reconnect",),
    "uncached": ("reconnect", "dir_cache=no", "entry_timeout=0", "attr_timeout=0", "negative_timeout=0"),
}
HOLD = (SPOOL, DIRQ, DDMQ)
SHORT_RUNS = [("cached", SPOOL), ("uncached", DIRQ)]
LONG_RUNS = [(options, protocol) for options in OPTIONS for protocol in HOLD]


@pytest.fixture(name="mounted", scope="module")
def _mounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Ssh]]:
    """Mounts with those of OPTIONS, once."""
    with ExitStack() as stack:
        made: dict[str, Ssh] = {}

        def mounted(options: str) -> Ssh:
            if options not in made:
                place = tmp_path_factory.mktemp(f"sshfs-{options}")
                made[options] = stack.enter_context(sshfs(place, *OPTIONS[options]))
            return made[options]

        yield mounted


def hosts_on(server: Ssh, name: str, place: Path) -> list[Host]:
    """Both hosts, each with an empty directory of the server."""
    (server.server.path / name).mkdir()
    return [Host(host.name, host.inside / name, host.enter, place / f"run-{host.name}") for host in server.hosts]


def misfortune(fleet: Fleet, server: Ssh) -> list[Trouble]:
    """Broken connections of both hosts, a killed worker, and a host that is gone for a while."""
    one, other = fleet.hosts
    return [
        Trouble(0.2, lambda: server.cut(one.name), "connections broken"),
        Trouble(0.3, lambda: fleet.kill_worker(other)),
        Trouble(0.5, lambda: fleet.cut(one)),
        Trouble(0.6, lambda: fleet.start_again(one)),
        Trouble(0.7, lambda: server.cut(other.name), "connections broken"),
    ]


@pytest.mark.timeout(TIMEOUT_S + 60)
@pytest.mark.parametrize(("options", "protocol"), LONG_RUNS if LONG else SHORT_RUNS, ids=str)
def test_nothing_is_lost_or_done_twice(
    mounted: Callable[[str], Ssh], options: str, protocol: Protocol, tmp_path: Path
) -> None:
    """But for what a killed worker had in hand."""
    server = mounted(options)
    hosts = hosts_on(server, str(protocol), tmp_path)
    with protocol.fleet(tmp_path, hosts, COUNT) as fleet:
        fleet.start()
        fleet.run(misfortune(fleet, server), TIMEOUT_S)
        place = server.server.inside / str(protocol)
        counts = fleet.counts(Host("server", place, server.server.enter, tmp_path))  # the hosts' listings may be old
        print(f"\nsshfs, {options}, {protocol}: {counts}")  # noqa: T201 - the figures
        counts.check()


def test_a_queue_whose_locks_cannot_be_told_apart_is_refused(mounted: Callable[[str], Ssh], tmp_path: Path) -> None:
    hosts = hosts_on(mounted("cached"), str(DIRQ_SIMPLE), tmp_path)
    with DIRQ_SIMPLE.fleet(tmp_path, hosts[:1], 1) as fleet:
        fleet.make()
        fleet.start_pool(hosts[0])
        with pytest.raises(AssertionError, match="its elements are locked by hard links"):
            fleet.run([])
