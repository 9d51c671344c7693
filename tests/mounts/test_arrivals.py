"""
test_arrivals - which filesystems are watched by inotify and which are polled, and that a message is found on both

Real disks, bind mounts and layers of this host, and FUSE filesystems behind which another host may put. A pool says how
it sees arrivals in its log, in its status and in /metrics.

See also: test_nfs (what another host puts there is found by polling), tests.unit.test_feed (within which time).
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from orchestrator.reading import BoardReader
from orchestrator.watch import Watcher, watching
from tests.mounts.faultfs import faulty
from tests.process.disks import KINDS, mounted
from tests.process.pools import HANDLERS, LEASE, Pool, Pools, drop, make_queue
from tests.rig import SETTINGS
from workers.board import Board
from workers.queues.spool import Spool

LONG_S = 30.0  # never waited for: an event comes first


def seen(queue: Path) -> tuple[Watcher | None, str, str]:
    """What watches *queue*, how its arrivals are seen, and on which network filesystem it is."""
    spool = Spool(str(queue), SETTINGS)
    board = Board.create()
    watcher = watching(spool, board.queues[board.take_queue("queue", spool.url)])
    (read,) = BoardReader(board).read()
    return watcher, read.watch, read.filesystem


def arrive(queue: Path, name: str) -> None:
    """A message comes."""
    (queue / "tmp" / name).write_bytes(b"x")
    (queue / "tmp" / name).rename(queue / "incoming" / name)


@pytest.mark.parametrize("kind", KINDS)
def test_a_disk_of_this_host_is_watched_and_each_arrival_makes_an_event(kind: str, tmp_path: Path) -> None:
    with mounted(kind, tmp_path) as disk:
        watcher, way, filesystem = seen(disk.path / "queue")
        assert (way, filesystem) == ("inotify", "")
        assert watcher is not None
        arrive(disk.path / "queue", "a")
        assert watcher.arrivals(LONG_S) == ["a"]
        watcher.close()


def test_what_comes_through_another_mount_of_the_same_disk_makes_an_event(tmp_path: Path) -> None:
    """A bind mount is another way to the same directory, not another filesystem."""
    with mounted("ext4", tmp_path) as disk:
        mount = f"mkdir {disk.inside}/here {disk.inside}/there && mount --bind {disk.inside}/here {disk.inside}/there"
        subprocess.run([*disk.enter[:-1], "sh", "-c", mount], check=True, timeout=30)
        watcher, way, _ = seen(disk.path / "here" / "queue")
        assert way == "inotify"
        assert watcher is not None
        arrive(disk.path / "there" / "queue", "a")
        assert watcher.arrivals(LONG_S) == ["a"]
        watcher.close()


def test_what_comes_below_an_overlay_makes_no_event_and_is_found_by_the_next_look(tmp_path: Path) -> None:
    """Nobody may do that, the kernel's documentation says. A pool sees it all the same, by its pass of each second."""
    with mounted("overlay", tmp_path) as disk:
        make_queue(disk.path / "queue")
        pools = Pools(tmp_path, prefix=disk.enter)
        try:
            pool = pools.start(str(disk.inside / "queue"), "--handler", f"{HANDLERS}:note", "--workers", "1").ready()
            pool.until(lambda: pool.queues["queue"]["watch"] == "inotify")
            drop(disk.path.with_name("disk.below") / "upper" / "queue", "a")
            pool.until(lambda: pool.outcome("done") == 1)
            assert pool.end() == 0
        finally:
            pools.end_all()


@pytest.mark.parametrize("way", ["auto", "inotify"])
def test_what_comes_behind_a_fuse_filesystem_is_found_whatever_the_way(way: str, tmp_path: Path) -> None:
    """auto polls it: its server may be anywhere. Who knows that nobody else puts there may say inotify."""
    with faulty(tmp_path) as mount:
        make_queue(mount.behind / "queue")
        pools = Pools(tmp_path, prefix=mount.enter)
        try:
            words = ["--handler", f"{HANDLERS}:note", "--workers", "1", "--watch", way, "--poll-interval", "250ms"]
            pool = pools.start(str(mount.inside / "queue"), *words, listen="127.0.0.1:0").ready()
            mode = "poll" if way == "auto" else "inotify"
            pool.until(lambda: pool.queues["queue"]["watch"] == mode)
            for number in range(3):
                drop(mount.behind / "queue", str(number))
                pool.until(lambda done=number + 1: pool.outcome("done") == done)
            says_all(pool, mode)
            assert pool.end() == 0
        finally:
            pools.end_all()


def says_all(pool: Pool, mode: str) -> None:
    """Log, status and metric say how arrivals on FUSE are seen."""
    queue = pool.queues["queue"]
    kind = queue["filesystem"]
    assert kind.startswith("fuse")
    asked = "arrivals from other hosts make no event: polling every 0.25 s at most"
    told = "watched by inotify, as its watch says: what other hosts put is found every 0.25 s at most"
    assert f"is on {kind}" in pool.log
    assert (asked if mode == "poll" else told) in pool.log
    assert queue["arrivals"] == (f"poll every 0.25 s at most ({kind})" if mode == "poll" else "inotify")
    for one in ("inotify", "poll"):
        key = "orchestrator_queue_watch_info", (("mode", one), ("queue", "queue"))
        assert pool.scrape()[key] == (one == mode)


def test_a_pool_goes_on_where_something_is_mounted_over_its_queue(tmp_path: Path) -> None:
    """The same queue, from another filesystem: as when the server's own disk is from now on reached by the network."""
    with mounted("tmpfs", tmp_path) as disk:
        queue, over = disk.path / "queue", disk.path / "over"
        make_queue(queue, is_short=True)
        pools = Pools(tmp_path, prefix=disk.enter)
        try:
            config = tmp_path / "pool.toml"
            config.write_text(
                f'[[queue]]\nurl = "{disk.inside}/queue"\nhandler = "{HANDLERS}:note"\nworkers = 1\n{LEASE}'
            )
            pool = pools.start("--config", str(config)).ready()
            drop(queue, "before")
            pool.until(lambda: pool.outcome("done") == 1)
            shutil.copytree(queue, over)
            mount = f"mount --bind {disk.inside}/over {disk.inside}/queue"
            subprocess.run([*disk.enter[:-1], "sh", "-c", mount], check=True, timeout=30)
            pool.until(lambda: "something was mounted over" in pool.log)
            drop(over, "after")
            pool.until(lambda: pool.outcome("done") == 2)
            assert pool.end() == 0
        finally:
            pools.end_all()
