"""
disks - a real filesystem of each kind, mounted for one test

ext4 (with its journal), xfs and btrfs lie in a sparse file, mounted by a loop device; overlay is
the merged directory of three that lie on such an ext4. Each is mounted in a mount namespace of its
own: nobody else sees it, and it is gone with the process that holds the namespace, even when pytest
is killed. Needs root and the mkfs of the kind; where one is missing the test skips and says why.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.holder import held

KINDS = ("ext4", "xfs", "btrfs", "tmpfs", "overlay")
MOUNT = """
image() {
  truncate -s 512M "$2.img"
  "mkfs.$1" -q "$2.img" >&2
  mkdir "$2"
  mount -o loop "$2.img" "$2"
}
case "$1" in
  tmpfs)
    mkdir "$2"
    mount -t tmpfs -o size=512M tmpfs "$2"
    ;;
  overlay)
    image ext4 "$2.below"
    mkdir "$2" "$2.below/lower" "$2.below/upper" "$2.below/work"
    mount -t overlay -o "lowerdir=$2.below/lower,upperdir=$2.below/upper,workdir=$2.below/work" overlay "$2"
    ;;
  *)
    image "$1" "$2"
    ;;
esac
"""


@dataclass(frozen=True, slots=True)
class Disk:
    """A mounted filesystem: *inside* for those in its namespace, *path* for everybody else."""

    kind: str
    inside: Path
    path: Path
    enter: tuple[str, ...]  # begins the command of a Python that shall see it


@contextmanager
def mounted(kind: str, place: Path) -> Iterator[Disk]:
    """Mount an empty filesystem of *kind* at PLACE/disk, or skip the test."""
    inside = place / "disk"
    with held(f"{kind} to be mounted", "mount", script=MOUNT, arguments=(kind, str(inside))) as holder:
        enter = ("nsenter", f"--mount=/proc/{holder}/ns/mnt", f"--wdns={place}", sys.executable)
        yield Disk(kind, inside, Path(f"/proc/{holder}/root{inside}"), enter)
