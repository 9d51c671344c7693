"""
beside - fleets on the formats of others: the troubles that are theirs, and their own library at work on one host

See also: fleet, nfs (the hosts, and the other troubles), originals (what runs there).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from tests.mounts import nfs
from tests.mounts.fleet import Fleet, Host, Trouble
from tests.mounts.guests import Site
from tests.waiting import until

COUNT = nfs.LONG or 40
READY_S = 60.0

Troubles = Callable[[Fleet, Site], list[Trouble]]


@dataclass
class Beside(Fleet):
    """On the last host the original puts, where else our producer does, and takes as many as it puts."""

    def start_producer(self, host: Host) -> None:
        """See Fleet.start_producer."""
        if host is not self.hosts[-1]:
            super().start_producer(host)
            return
        step, first = len(self.hosts), len(self.hosts) - 1
        words = [
            self.scheme,
            host.place / "first",
            self._record(host),
            first,
            step,
            len(range(first, self.count, step)),
        ]
        self._running[host.name].producer = self._start(host, "tests.mounts.originals", *map(str, words))


def finish(fleet: Fleet, site: Site, what: str, troubles: Troubles) -> None:
    """Run a fleet that was started, print what became of all, and say whether that is as it must be."""
    fleet.run(troubles(fleet, site), nfs.TIMEOUT_S)
    counts = fleet.counts(fleet.hosts[0])
    print(f"\n{what}, {troubles.__name__}: {counts}")  # noqa: T201 - the figures
    counts.check()
    assert not fleet.frightening()
    # Whatever failed came back with its counts: no attempt was made twice, but by who crashed.
    tried = Counter(line for lines in fleet.journals() for line in lines if line.startswith(("retry ", "fail ")))
    again = [line for line, times in tried.items() if times > 1]
    assert len(again) <= counts.crashes, again


# ---- what happens on the way


def kill(fleet: Fleet, host: Host) -> None:
    """Kill a worker there; the other host may have done its part before this one's pool is ready."""
    until(lambda: fleet._running[host.name].is_ready, READY_S)
    fleet.kill_worker(host)


def outage(fleet: Fleet, site: Site) -> list[Trouble]:
    """The server is away for longer than a lock may be old; before and after it a worker is killed."""
    one, other = fleet.hosts
    return [
        Trouble(0.2, lambda: kill(fleet, one)),
        Trouble(0.4, site.reboot_server, "server reboots"),
        Trouble(0.7, lambda: kill(fleet, other)),
    ]


def power_once(fleet: Fleet, site: Site) -> list[Trouble]:
    """The host whose clock is an hour ahead loses its power, and gets it back a moment later."""
    one = fleet.hosts[0]
    return [
        Trouble(0, lambda: site.clients[0].set_clock(nfs.HOUR_S), "clocks set"),
        Trouble(0.4, lambda: fleet.cut(one)),
        Trouble(0.6, lambda: fleet.start_again(one)),
    ]


def ours_wrong(fleet: Fleet, site: Site) -> list[Trouble]:
    """The clock of the host without the original is an hour ahead, later an hour behind; a worker there is killed."""
    return [
        Trouble(0, lambda: site.clients[0].set_clock(nfs.HOUR_S), "clocks set"),
        Trouble(0.3, lambda: kill(fleet, fleet.hosts[0])),
        Trouble(0.5, lambda: site.clients[0].set_clock(-nfs.HOUR_S), "clocks set"),
    ]


def behind(fleet: Fleet, site: Site) -> list[Trouble]:
    """The clock of the original's host is an hour behind."""
    return [Trouble(0, lambda: site.clients[-1].set_clock(-nfs.HOUR_S), "clocks set")]


def ahead(fleet: Fleet, site: Site) -> list[Trouble]:
    """The clock of the original's host is an hour ahead."""
    return [Trouble(0, lambda: site.clients[-1].set_clock(nfs.HOUR_S), "clocks set")]
