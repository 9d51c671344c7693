"""
nfs - two hosts on a real NFS server, and what may happen to them on the way

The hosts are the clients of guests. Each of the troubles is one kind of thing; everything() is all of them, in a long
run over and over. ORCHESTRATOR_MOUNTS=2000 makes long runs of so many messages.

See also: fleet (what runs on the hosts), test_nfs, test_nfs_dirq, test_nfs_ddmq.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.mounts.fleet import Fleet, Host, Trouble
from tests.mounts.guests import MOUNT, Guest, Site

LONG = int(os.environ.get("ORCHESTRATOR_MOUNTS", "0"))
COUNT = LONG or 100
TIMEOUT_S = 90 + COUNT * 0.5
VERSIONS = ("3", "4.2")
RUN_DIR = Path("/run/orchestrator")  # a guest's own memory
LONG_ONLY = pytest.mark.skipif(not LONG, reason="a long run: set ORCHESTRATOR_MOUNTS")
HOUR_S = 3600.0


def hosts_on(site: Site, version: str, name: str) -> list[Host]:
    """Both clients, each with the server's disk mounted, and an empty directory there."""

    def host(client: Guest) -> Host:
        def cut() -> None:
            client.kill()
            del site.mounted[client.name]

        def boot() -> None:
            client.boot()
            site.mount(client, version)

        if client.process is None:  # a test before this one failed
            client.boot()
        if site.mounted.get(client.name) != version:
            site.mount(client, version)
        place = MOUNT / name
        client.set_clock(0)
        client.done(f"mkdir -p {place}")
        return Host(client.name, place, client.prefix, RUN_DIR, cut, boot)

    return [host(client) for client in site.clients]


# ---- what happens on the way


def nothing(fleet: Fleet, site: Site) -> list[Trouble]:
    """They are left alone."""
    return []


def workers(fleet: Fleet, site: Site) -> list[Trouble]:
    """Workers are killed, now here, now there."""
    return [Trouble(n / 20, lambda host=fleet.hosts[n % 2]: fleet.kill_worker(host)) for n in range(2, 18)]  # type: ignore[misc]


def power(fleet: Fleet, site: Site) -> list[Trouble]:
    """Each host loses its power once, and gets it back when the other has worked for a while."""
    return [
        trouble
        for at, host in zip((0.2, 0.6), fleet.hosts, strict=True)
        for trouble in (
            Trouble(at, lambda host=host: fleet.cut(host)),  # type: ignore[misc]
            Trouble(at + 0.1, lambda host=host: fleet.start_again(host)),  # type: ignore[misc]
        )
    ]


def server(fleet: Fleet, site: Site) -> list[Trouble]:
    """The server loses its power, once, and then again and again."""
    return [Trouble(at, site.reboot_server, "server reboots") for at in (0.2, 0.6, 0.65, 0.7)]


def clocks(fleet: Fleet, site: Site) -> list[Trouble]:
    """One host's clock is an hour ahead, an hour behind, and steps in between."""
    steps = (HOUR_S, 0, -HOUR_S, HOUR_S, -5, 5, -HOUR_S, 0)
    return [
        Trouble(n / 10, lambda n=n, step=step: site.clients[n % 2].set_clock(step), "clock steps")  # type: ignore[misc]
        for n, step in enumerate(steps, 1)
    ]


def everything(fleet: Fleet, site: Site) -> list[Trouble]:
    """All of it, one after the other: once, or in a long run every 200 messages."""
    one, other = fleet.hosts
    rounds = max(1, COUNT // 200)
    found = []
    for n in range(rounds):
        first, second = (one, other) if n % 2 == 0 else (other, one)
        whose = site.clients[1 - n % 2]
        found += [
            Trouble((n + at) / rounds, do, name)
            for at, do, name in (
                (0.1, lambda first=first: fleet.kill_worker(first), ""),
                (0.2, lambda whose=whose: whose.set_clock(HOUR_S), "clock steps"),
                (0.3, site.reboot_server, "server reboots"),
                (0.45, lambda second=second: fleet.kill_worker(second), ""),
                (0.5, lambda whose=whose: whose.set_clock(-HOUR_S), "clock steps"),
                (0.6, lambda first=first: fleet.cut(first), ""),
                (0.65, lambda first=first: fleet.start_again(first), ""),
            )
        ]
    return found
