"""
mount - what is mounted at a path: its kind, options and room

The line of /proc/self/mountinfo is found by the number that the kernel gives an open directory
(fdinfo, mnt_id): device numbers are not those of the table for btrfs, and paths may be covered.

Raises: OSError.
Source: proc(5); nfs(5) for the options.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from pathlib import Path

from orchestrator.bench.filesystem import filesystem
from orchestrator.config_values import DURATION_S_MAX
from orchestrator.doctor.facts import TIMES_OF_FORMAT, Mount
from orchestrator.doctor.place import read
from workers.queues.names import shown
from workers.system import System

_ESCAPE = re.compile(r"\\([0-7]{3})")


def mount(system: System, path: str, proc: str = "/proc") -> Mount:
    """Look at what holds *path*."""
    fd = system.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        number = _number(fd, proc)
    finally:
        system.close(fd)
    kind, point, source, options = _line(number, proc)
    room = system.statvfs(path)
    return Mount(
        path=path,
        kind=kind,
        network=system.network_filesystem(path),
        point=point,
        source=source,
        options=options,
        size=room.f_blocks * room.f_frsize,
        free=room.f_bavail * room.f_frsize,
        inodes=room.f_files or None,
        free_inodes=room.f_favail if room.f_files else None,
        has_journal=filesystem(Path(path)).has_journal if kind == "ext4" else None,
        queue_times=_queue_times(system, path),
    )


def _number(fd: int, proc: str) -> str:
    with open(f"{proc}/self/fdinfo/{fd}", encoding="ascii") as file:
        return next((line.split()[1] for line in file if line.startswith("mnt_id:")), "")


def _line(number: str, proc: str) -> tuple[str, str, str, tuple[str, ...]]:
    """Kind, mount point, source, and the options of the mount and of its filesystem, each once."""
    with open(f"{proc}/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            before, _, after = line.rstrip("\n").partition(" - ")
            fields, (kind, source, of_filesystem) = before.split(" "), after.split(" ", 2)
            if fields[0] == number:
                options = dict.fromkeys([*fields[5].split(","), *of_filesystem.split(",")])
                return shown(kind), shown(_unescaped(fields[4])), shown(_unescaped(source)), tuple(map(shown, options))
    return "unknown", "", "", ()


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(lambda found: chr(int(found[1], 8)), text)


def _queue_times(system: System, path: str) -> dict[str, float] | None:
    """The times of the spool queue at *path*, or None: what cannot be read is none of ours."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        found = json.loads(read(system, os.path.join(path, ".pool", "format")))
        if isinstance(found, dict):
            times = {key: found[key] for key in TIMES_OF_FORMAT if isinstance(found.get(key), int | float)}
            return {key: float(value) for key, value in times.items() if 0 < value <= DURATION_S_MAX}
    return None
