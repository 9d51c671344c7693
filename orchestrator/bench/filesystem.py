"""
filesystem - what the bench ran on, whether that is a place to measure, and has the room

Raises: BenchError when there is too little room.
See also: cli.bench (warns).
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from orchestrator.bench.measure import BenchError


@dataclass(frozen=True, slots=True)
class Filesystem:
    """Where the bench ran. *has_journal* is None where that is not known (or not asked: not ext4)."""

    kind: str
    device: str
    has_journal: bool | None


def filesystem(path: Path, proc: Path = Path("/proc")) -> Filesystem:
    """What holds *path*, by the kernel's table of mounts."""
    status = os.stat(path)
    number = f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
    kind = device = "unknown"
    with contextlib.suppress(OSError), open(proc / "self/mountinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            before, _, after = line.partition(" - ")
            if before.split()[2] == number:
                kind, device = after.split()[:2]
    has_journal = _has_journal(proc / "fs/ext4" / os.path.basename(device) / "options") if kind == "ext4" else None
    return Filesystem(kind, device, has_journal)


def check_room(path: Path, messages: int, size: int) -> None:
    """Raise BenchError unless *messages* files of *size* bytes, and a tenth more, have room below *path*."""
    found = os.statvfs(path)
    blocks = messages * -(-max(size, 1) // found.f_frsize) * 11 // 10
    # A filesystem that makes inodes as it needs them says that it has none.
    has_inodes = found.f_files == 0 or messages * 11 // 10 <= found.f_favail
    if blocks > found.f_bavail or not has_inodes:
        what = f"{found.f_favail} inodes" if not has_inodes else f"{found.f_bavail * found.f_frsize >> 20} MiB"
        raise BenchError(
            f"{path.parent} has {what} left, too little for {messages} messages of {size} bytes: give fewer "
            "(--messages, --backlog) or another --directory"
        )


def _has_journal(options: Path) -> bool | None:
    # The kernel shows data= (ordered, journal, writeback) only for a filesystem with a journal.
    try:
        return any(line.startswith("data=") for line in options.read_text(encoding="ascii").splitlines())
    except (OSError, ValueError):
        return None
