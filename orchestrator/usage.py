"""
usage - CPU time and memory of the process in a worker's slot

CPU is what the board says of the ended processes plus what the kernel says of the
live one; as one counter of the slot it never goes back within the process that
reads it. Memory is RSS, and PSS (what is shared is divided among its sharers), which
is dear to read and so read at most every ten seconds a worker.

Never raises for a process that is gone, hidden or not ours: then the numbers are
those of the ended processes, and 0.
Limits: the programs a command handler runs are not counted, only the worker itself.
Source: proc(5), smaps_rollup.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass

from workers.board import W
from workers.system import System

PSS_INTERVAL_NS = 10_000_000_000
PID_MAX = (1 << 31) - 1  # of the kernel's pid_t; more is no pid

_STAT_FIELDS = (11, 12, 21)  # utime, stime, rss of /proc/PID/stat, counted after the parenthesis that ends the name
TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU seconds of a slot over all its processes; bytes of the process in it now."""

    cpu_s: float = 0.0
    resident_bytes: int = 0
    proportional_bytes: int = 0


class UsageReader:
    """Remembers, per slot, the CPU time it reported and the PSS it read. Threads may share it."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._lock = threading.Lock()
        self._cpu_ns: dict[int, int] = {}
        self._pss: dict[int, tuple[int, int, int, int]] = {}  # pid, start, when read, bytes

    def read(self, slot: int, words: memoryview[int]) -> Usage:
        """The usage of worker slot number *slot*, whose words are *words*. Reads /proc."""
        base_ns, pid, start = words[W.CPU_BASE_NS], words[W.PID], words[W.START]
        live_ns, resident = self._live(pid, start)
        # RACE: the master adds the process to the base between the two reads above; counted
        # twice, it would stay too high for as long as this process lives.
        # See test_process_that_ends_during_the_reading_is_counted_once.
        after_ns = words[W.CPU_BASE_NS]
        if after_ns != base_ns:
            base_ns, live_ns = after_ns, 0
        proportional = self._proportional(slot, pid, start) if resident else 0
        with self._lock:
            cpu_ns = max(self._cpu_ns.get(slot, 0), max(base_ns, 0) + live_ns)
            self._cpu_ns[slot] = cpu_ns
        return Usage(cpu_ns / 1e9, resident, proportional)

    def of_process(self, pid: int) -> float:
        """CPU seconds of process *pid*, 0.0 when it is gone: another in its place starts from there."""
        return self._live(pid, 0)[0] / 1e9

    def _live(self, pid: int, start: int) -> tuple[int, int]:
        """CPU nanoseconds and resident bytes; 0 when *pid* is not the process that started at *start*."""
        if not 0 < pid <= PID_MAX:
            return 0, 0
        found = self._system.start_ticks(pid)
        if found is None or (found and start and found != start):
            return 0, 0
        # One file, read once: a scrape asks for every worker, and psutil would take five times as long.
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            return 0, 0
        user, system, resident = (int(fields[number]) for number in _STAT_FIELDS)
        return (user + system) * TICK_NS, resident * _PAGE_BYTES

    def _proportional(self, slot: int, pid: int, start: int) -> int:
        now_ns = self._system.boottime_ns()
        with self._lock:
            known = self._pss.get(slot)
        if known is not None and known[:2] == (pid, start) and 0 <= now_ns - known[2] < PSS_INTERVAL_NS:
            return known[3]
        size = proportional_bytes(pid)
        with self._lock:
            self._pss[slot] = (pid, start, now_ns, size)
        return size


def proportional_bytes(pid: int) -> int:
    """PSS of *pid*, 0 when the kernel does not say."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            for line in file:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        return 0
    return 0
