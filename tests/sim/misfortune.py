"""
misfortune - what befalls the hosts of a simulated cluster, and how often

Each kind has a rate, comes at random times by that rate, and is counted. How a single
call goes wrong is not here but in virtual.

See also: hosts (whom it befalls), cluster (which has it).
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tests.sim.hosts import Host, Master
from tests.sim.virtual import SECOND, Task, Virtual

# How often in a minute, for each host.
RATES = {
    "worker crashes": 1.0,
    "keeper crashes": 0.1,
    "feeder crashes": 0.1,
    "master crashes": 0.05,
    "host crashes": 0.03,
    "restarts": 0.04,
    "lost mounts": 0.06,
    "worker stops": 0.3,
    "keeper stops": 0.06,
    "host stops": 0.05,
    "producer stops": 0.05,
    "clocks set": 0.05,
}
# And for the server. "Far" is farther than the age at which what is on the disk counts as abandoned.
SERVER_RATES = {"server clock set": 0.2, "server clock set far": 0.1, "server away": 0.1, "server full": 0.15}


@dataclass(slots=True)
class Misfortune:
    """Of the *hosts* of one cluster. *times_s*: a lease's timeout, and the age at which what is abandoned is reaped."""

    virtual: Virtual
    hosts: list[Host]
    times_s: tuple[float, float]
    faults: Counter[str]
    is_over: bool = False

    def begin(self, scale: float, rates: Mapping[str, float]) -> None:
        """From now on, *scale* times as often as it stands above; *rates* stand instead of those of their kinds."""
        for kind, rate in (RATES | SERVER_RATES | dict(rates)).items():
            if rate * scale > 0:
                self._next(kind, rate * scale / 60 * (len(self.hosts) if kind in RATES else 1))

    def end(self) -> None:
        """No more of it; what is away comes back."""
        self.is_over = True
        soon_ns = self.virtual.now_ns + SECOND
        self._has_room()
        for host in self.hosts:
            host.resume_ns, host.back_ns = min(host.resume_ns, soon_ns), min(host.back_ns, soon_ns)

    def _next(self, kind: str, rate: float) -> None:
        self.virtual.at(self.virtual.random.expovariate(rate), self._befall, kind, rate)

    def _befall(self, kind: str, rate: float) -> None:
        if not self.is_over:
            self.faults[kind] += KINDS[kind](self, self.virtual.random.choice(self.hosts))
            self._next(kind, rate)

    # ---- processes

    def _a_worker(self, host: Host) -> Task | None:
        tasks = list(host.master.workers.values()) if host.master else []
        return self.virtual.random.choice(tasks) if tasks else None

    def _crash_worker(self, host: Host) -> bool:
        return _killed(self._a_worker(host))

    def _crash_keeper(self, host: Host) -> bool:
        return _killed(host.master.keeper if host.master else None)

    def _crash_feeder(self, host: Host) -> bool:
        return _killed(host.master.feeder if host.master else None)

    def _crash_master(self, host: Host) -> bool:
        if host.master is None:
            return False
        host.master.crash(is_keeper_spared=self.virtual.random.random() < 0.5)
        self.virtual.at(self.virtual.random.uniform(0.5, 20), host.boot_again, host.boot)
        return True

    def _crash_host(self, host: Host) -> bool:
        host.crash()
        return True

    def _restart(self, host: Host) -> bool:
        master: Master | None = host.master
        if master is None or master.is_stopping:
            return False
        master.stop(self.virtual.random.choice([0.1, 5.0, 30.0]))
        return True

    # ---- what stands still, and clocks

    def _lose_mount(self, host: Host) -> bool:
        host.back_ns = self.virtual.now_ns + self._a_while_ns()
        host.away_errno = self.virtual.random.choice([0, errno.EIO, errno.ESTALE])
        return True

    def _stop_worker(self, host: Host) -> bool:
        return self._stopped(self._a_worker(host))

    def _stop_keeper(self, host: Host) -> bool:
        return self._stopped(host.master.keeper if host.master else None)

    def _stop_producer(self, host: Host) -> bool:
        return self._stopped(host.producer)

    def _stop_host(self, host: Host) -> bool:
        host.resume_ns = self.virtual.now_ns + self._a_while_ns()
        return True

    def _stopped(self, task: Task | None) -> bool:
        if task is None or task.is_over:
            return False
        task.pause_ns = self._a_while_ns()
        return True

    def _a_while_ns(self) -> int:
        """Shorter than a lease, about as long, or longer."""
        chance = self.virtual.random
        return int(chance.choice([0.3, 0.55, 1.0, 1.5, 3.0]) * self.times_s[0] * chance.uniform(0.7, 1.3) * SECOND)

    def _set_clock(self, host: Host) -> bool:
        host.skew_ns += int(self.virtual.random.gauss(0, 3600) * SECOND)
        return True

    # ---- the server

    def _set_server_clock(self, _: Host) -> bool:
        longest_s = self.virtual.random.choice([10, 0.9 * self.times_s[1]])
        self.virtual.step_ns += int(self.virtual.random.uniform(-longest_s, longest_s) * SECOND)
        return True

    def _set_server_clock_far(self, _: Host) -> bool:
        self.virtual.step_ns += int(1.2 * self.times_s[1] * SECOND)
        return True

    def _stall_server(self, _: Host) -> bool:
        self.virtual.stall(self.virtual.random.uniform(5, 60))
        return True

    def _fill_server(self, _: Host) -> bool:
        self.virtual.world.disk.is_full = True
        self.virtual.at(self.virtual.random.uniform(2, 30), self._has_room)
        return True

    def _has_room(self) -> None:
        self.virtual.world.disk.is_full = False


KINDS: dict[str, Callable[[Misfortune, Host], bool]] = {
    "worker crashes": Misfortune._crash_worker,
    "keeper crashes": Misfortune._crash_keeper,
    "feeder crashes": Misfortune._crash_feeder,
    "master crashes": Misfortune._crash_master,
    "host crashes": Misfortune._crash_host,
    "restarts": Misfortune._restart,
    "lost mounts": Misfortune._lose_mount,
    "worker stops": Misfortune._stop_worker,
    "keeper stops": Misfortune._stop_keeper,
    "host stops": Misfortune._stop_host,
    "producer stops": Misfortune._stop_producer,
    "clocks set": Misfortune._set_clock,
    "server clock set": Misfortune._set_server_clock,
    "server clock set far": Misfortune._set_server_clock_far,
    "server away": Misfortune._stall_server,
    "server full": Misfortune._fill_server,
}


def _killed(task: Task | None) -> bool:
    if task is None or task.is_over:
        return False
    task.kill("died")
    return True
