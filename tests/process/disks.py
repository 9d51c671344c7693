"""
disks - a real filesystem of each kind, mounted for one test

ext4 (with its journal), xfs and btrfs lie in a sparse file, mounted by a loop device; overlay is
the merged directory of three that lie on such an ext4. Each is mounted in a mount namespace of its
own: nobody else sees it, and it is gone with the process that holds the namespace, even when pytest
is killed. Needs root and the mkfs of the kind; where one is missing the test skips and says why.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

KINDS = ("ext4", "xfs", "btrfs", "tmpfs", "overlay")
MOUNT = """
set -e
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
echo mounted
exec cat
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
    try:
        holder = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", MOUNT, "sh", kind, str(inside)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
    except FileNotFoundError:
        pytest.skip("no unshare here to mount a filesystem with")
    with holder:  # its end closes the pipes, and the end of its input ends it
        assert holder.stdout is not None
        assert holder.stderr is not None
        if holder.stdout.readline() != b"mounted\n":
            pytest.skip(f"no {kind} can be mounted here: {holder.stderr.read().decode().strip()[-200:]}")
        namespace = f"--mount=/proc/{holder.pid}/ns/mnt"
        enter = ("nsenter", namespace, f"--wdns={place}", sys.executable)
        yield Disk(kind, inside, Path(f"/proc/{holder.pid}/root{inside}"), enter)
