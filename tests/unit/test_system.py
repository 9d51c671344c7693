"""test_system - which filesystem is whose: what is not known to be this host's alone counts as a network's"""

from __future__ import annotations

import errno
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.rig import SETTINGS
from workers import system
from workers.errors import QueueUnavailable
from workers.pauses import SHORTEST_S, Pauses
from workers.queues.base import POLL_NETWORK_S, POLL_S
from workers.queues.spool import Spool
from workers.system import LOCAL_FILESYSTEMS, NETWORK_FILESYSTEMS, SYSTEM, System

MAGIC = Path("/usr/include/linux/magic.h")
OF_NETWORKS = ("AFS", "AFS_FS", "CEPH", "CODA", "CIFS", "NCP", "NFS", "OCFS2", "SMB", "SMB2", "V9FS", "FUSE", "HOSTFS")
OF_HOSTS = ("EXT4", "XFS", "BTRFS", "TMPFS", "RAMFS", "OVERLAYFS", "F2FS", "REISERFS", "NILFS", "JFFS2", "UDF")
WITHOUT_CTIME = ("MSDOS", "EXFAT")


@pytest.fixture(name="number")
def _number(monkeypatch: pytest.MonkeyPatch):
    """Make statfs(2) answer a number, or fail with an error."""

    def answer(found: int | OSError) -> None:
        def asked(path: str) -> int:
            if isinstance(found, OSError):
                raise found
            return found

        monkeypatch.setattr(system, "_filesystem_number", asked)

    return answer


def test_numbers_of_filesystems_are_those_of_the_kernel() -> None:
    if not MAGIC.exists():
        pytest.skip("no linux/magic.h here")
    text = MAGIC.read_text(encoding="utf-8")
    kernel = {
        name.removesuffix("_SUPER"): int(value, 16)
        for name, value in re.findall(r"^#define\s+(\w+)_MAGIC\s+(0x[0-9a-fA-F]+)", text, re.MULTILINE)
    }
    assert {kernel[name] for name in OF_NETWORKS} <= NETWORK_FILESYSTEMS.keys()
    assert {kernel[name] for name in OF_HOSTS} <= LOCAL_FILESYSTEMS
    assert {kernel[name] for name in WITHOUT_CTIME} <= NETWORK_FILESYSTEMS.keys()
    assert not LOCAL_FILESYSTEMS & NETWORK_FILESYSTEMS.keys()


@pytest.mark.parametrize(
    ("found", "name"),
    [(0xEF53, None), (0x794C7630, None), (0x6969, "nfs"), (0x0BD00BD0, "lustre"), (0x01021997, "9p"),
     (0xF15F, "an unknown filesystem (0xf15f)"), (0x12345678, "an unknown filesystem (0x12345678)"), (0, None),
     (FileNotFoundError(errno.ENOENT, "x"), None), (NotADirectoryError(errno.ENOTDIR, "x"), None)],
)  # fmt: skip
def test_what_is_not_known_to_be_local_counts_as_a_network(number, found, name) -> None:
    number(found)
    assert SYSTEM.network_filesystem("/queue") == name


@pytest.mark.parametrize("error", [errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EACCES])
def test_a_server_that_does_not_answer_is_no_local_filesystem(number, error) -> None:
    number(OSError(error, os.strerror(error), "/queue"))
    with pytest.raises(OSError, match=re.escape(os.strerror(error))):
        SYSTEM.network_filesystem("/queue")
    assert system.filesystem_magic("/queue") == 0


def test_a_queue_whose_filesystem_cannot_be_told_is_not_opened_as_a_local_one(tmp_path: Path) -> None:
    """Its replies may get lost: who took it for local would believe every answer, as long as it is open."""

    class Away(System):
        def network_filesystem(self, path: str) -> str | None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), path)

    with pytest.raises(QueueUnavailable, match="Stale file handle"):
        Spool(str(tmp_path / "queue"), SETTINGS, system=Away())


def test_a_directory_of_this_host_is_told_by_the_real_kernel(tmp_path: Path) -> None:
    assert SYSTEM.network_filesystem(str(tmp_path)) is None
    assert SYSTEM.network_filesystem(str(tmp_path / "nothing")) is None
    assert SYSTEM.network_filesystem("/proc") == "an unknown filesystem (0x9fa0)"


# ---- pauses


class Chance(System):
    """Chance is what a test says; time passes by waiting only."""

    def __init__(self, drawn: bytes = b"\0\0") -> None:
        self.drawn, self.now_ns, self.slept = drawn, 10**12, list[float]()

    def random_bytes(self, count: int) -> bytes:  # type: ignore[override]
        return self.drawn[:count]

    def boottime_ns(self) -> int:  # type: ignore[override]
        return self.now_ns

    def sleep(self, seconds: float) -> None:  # type: ignore[override]
        self.slept.append(seconds)
        self.now_ns += int(seconds * 1e9)


@pytest.mark.parametrize(("drawn", "factor"), [(b"\0\0", 1.0), (b"\xff\xff", 0.5)])
@pytest.mark.parametrize("longest_s", [0.0001, 0.001, 0.01, 0.1, 60.0])
def test_pauses_double_up_to_the_longest_and_chance_shortens_them_by_half_at_most(longest_s, drawn, factor) -> None:
    pauses = Pauses(longest_s, Chance(drawn))
    found = [pauses.next_s() for _ in range(20)]
    most_s = max(longest_s, SHORTEST_S)
    assert found == pytest.approx([min(SHORTEST_S * 2**number, most_s) * factor for number in range(20)], rel=1e-4)
    assert max(found) <= most_s
    pauses.restart()
    assert pauses.next_s() == found[0]


@pytest.mark.parametrize(
    ("network", "asked_s", "longest_s"), [(None, None, POLL_S), ("nfs", None, POLL_NETWORK_S), ("nfs", 0.02, 0.02)]
)
def test_who_waits_by_itself_looks_again_within_the_poll_interval(tmp_path, network, asked_s, longest_s) -> None:
    chance = Chance()
    queue = Spool(str(tmp_path / "queue"), replace(SETTINGS, poll_interval_s=asked_s), system=chance)
    queue.network = network
    assert not queue.wait(10)
    assert max(chance.slept) == longest_s
    assert sum(chance.slept) == pytest.approx(10)
