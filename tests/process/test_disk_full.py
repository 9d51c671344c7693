"""
test_disk_full - a filesystem without a free block, or without a free inode, for put, for claim and for every settle

The filesystem is a file, mounted in a mount namespace of its own: nobody else sees it, and it is gone
with the process that holds the namespace. Its blocks hold 1024 bytes, so a directory needs a new block
every few long names: then even a rename finds the disk full.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.holder import held
from tests.process.pools import HANDLERS, Pools, files, make_queue, marks
from workers.errors import QueueUnavailable

COUNT = 12
NAME = "a-name-so-long-that-few-of-it-fit-into-one-block-of-a-directory" + "-" * 80
URLS = ("spool:{}", "dirq-simple:{}", "dirq:{}?schema=body:binary", "ddmq:{}")
OUTCOMES = {b"x": "done", b"retry": "retried", b"reject": "rejected", b"fail": "retried"}
MOUNT = """
truncate -s 2M "$1.img"
mkfs.ext4 -q -b 1024 -N 512 -m 0 -O ^has_journal "$1.img"
mkdir "$1"
mount -o loop "$1.img" "$1"
"""


@dataclass
class Small:
    """A small filesystem: *inside* for those in its namespace, *path* for everybody else."""

    inside: Path
    path: Path
    pools: Pools

    def fill(self, what: str = "blocks") -> None:
        """Leave not one block free, or not one inode."""
        fill = self._fill_blocks if what == "blocks" else self._fill_inodes
        with pytest.raises(OSError, match="No space left"):
            fill()

    def _fill_blocks(self) -> None:
        with self.ballast.open("ab", buffering=0) as file:
            while True:
                file.write(b"b" * 1024)
                os.fsync(file.fileno())

    def _fill_inodes(self) -> None:
        self.ballast.mkdir()
        for number in itertools.count():
            (self.ballast / str(number)).touch()

    def free(self) -> None:
        """Make room again."""
        if self.ballast.is_dir():
            shutil.rmtree(self.ballast)
        else:
            self.ballast.unlink()

    @property
    def ballast(self) -> Path:
        """What fills it."""
        return self.path / "ballast"


@pytest.fixture(name="small")
def _small(tmp_path: Path) -> Iterator[Small]:
    inside = tmp_path / "small"
    with held("small ext4 to be mounted", "mount", script=MOUNT, arguments=(str(inside),)) as holder:
        enter = ("nsenter", f"--mount=/proc/{holder}/ns/mnt", f"--wdns={tmp_path}", sys.executable)
        pools = Pools(tmp_path, prefix=enter)
        try:
            yield Small(inside, Path(f"/proc/{holder}/root{inside}"), pools)
        finally:
            pools.end_all()


def test_a_put_that_finds_the_disk_full_says_so_and_leaves_nothing(small: Small) -> None:
    queue, size = small.path / "queue", 200_000
    spool = make_queue(queue)
    (small.pools.place / "large").write_bytes(b"x" * size)
    small.fill()
    for words in (("--name", "n"), (str(small.pools.place / "large"),)):
        code, said = small.pools.run("put", str(small.inside / "queue"), *words, stdin=b"x" * 2000)
        assert code == 1
        assert "No space left on device" in said
        assert str(small.inside / "queue") in said
        assert "Traceback" not in said
    with pytest.raises(QueueUnavailable, match="No space left on device") as caught:
        spool.put_many([b"x" * 2000, b"y" * 2000])
    assert caught.value.names == ()
    assert not files(queue, "tmp")
    assert not files(queue, "incoming")
    small.free()
    assert small.pools.run("put", str(small.inside / "queue"), "--name", "n", stdin=b"x" * size)[0] == 0
    assert [path.stat().st_size for path in files(queue, "incoming")] == [size]


@pytest.mark.parametrize(
    ("body", "outcome", "state"),
    [
        (b"x", "done", "queue/done"),
        (b"retry", "retried", "queue/deferred"),
        (b"reject", "rejected", "queue/errors"),
        (b"fail", "retried", "queue/deferred"),
        (b"forward", "forwarded", "next/incoming"),
    ],
    ids=["done", "retry", "reject", "fail", "forward"],
)
def test_a_settle_that_finds_the_disk_full_waits_for_room(small: Small, body: bytes, outcome: str, state: str) -> None:
    """Each message is handled once and settled once, though most settles fail at first; no worker dies."""
    queue, place = small.path / "queue", small.path / state
    spool = make_queue(queue)
    make_queue(small.path / "next").close()
    config = small.pools.place / "pool.toml"
    config.write_text(
        f'[[queue]]\nurl = "{small.inside / "queue"}"\nhandler = "{HANDLERS}:answer"\nworkers = 2\n'
        f'retry_backoff = "1000h"\nretry_backoff_max = "1000h"\nkeep_done = "1h"\nmax_attempts = 5\n'
    )
    next_queue = {"NEXT": str(small.inside / "next")}
    pool = small.pools.start("--config", str(config), environment=next_queue).ready()
    pids = pool.pids
    # A worker makes its directory when it first looks, which is after it is said to be idle.
    pool.until(lambda: len(list((queue / "pending").iterdir())) == 2)
    spool.pause()
    pool.until(lambda: pool.queues["queue"]["paused"])
    names = {spool.put(body, f"{NAME}{number:02}") for number in range(COUNT)}
    small.fill()
    spool.resume()

    pool.until(lambda: pool.log.count("waiting until it works again") == 2)
    assert pool.busy == 2
    assert "No space left on device" in pool.log
    assert len(marks(place.parent, place.name)) < COUNT
    small.free()

    pool.until(lambda: pool.outcome(outcome) == COUNT)
    assert pool.pids == pids
    settled = marks(place.parent, place.name)
    assert {mark.name for mark in settled} == names
    assert len(settled) == COUNT
    assert not files(queue, "pending")
    assert small.pools.counted() == {f"answers {name}": 1 for name in names}
    assert pool.end() == 0


def test_a_pool_that_starts_on_a_full_disk_works_when_there_is_room(small: Small) -> None:
    """Its workers cannot make their directories: they wait, and nothing is lost."""
    queue = small.path / "queue"
    spool = make_queue(queue)
    spool.put(b"x")
    small.fill()
    words = (str(small.inside / "queue"), "--workers", "2", "--handler", f"{HANDLERS}:answer")
    pool = small.pools.start(*words)
    pool.until(lambda: "No space left on device" in pool.log)
    assert pool.process.poll() is None
    assert len(files(queue, "incoming")) == 1
    small.free()
    pool.until(lambda: pool.outcome("done") == 1)
    assert pool.end() == 0


# ---- every kind of queue


WITHOUT = pytest.mark.parametrize("what", ["blocks", "inodes"])


@dataclass
class Shop:
    """A queue of any kind on a small filesystem, seen from inside: ddmq looks where its root really is."""

    small: Small
    url: str

    def run(self, command: str, *words: str, stdin: bytes = b"") -> str:
        """Run a command of the orchestrator on it, which works; what it said."""
        code, said = self.small.pools.run(command, self.url, *words, stdin=stdin)
        assert code == 0, said
        return said

    def states(self) -> Counter[str]:
        """How many messages are in which state."""
        return Counter(line["state"] for line in json.loads(self.run("ls", "--json")))


@pytest.fixture(name="shop", params=URLS, ids=lambda url: url.partition(":")[0])
def _shop(request: pytest.FixtureRequest, small: Small) -> Shop:
    """An empty one."""
    (small.path / "root").mkdir()
    return Shop(small, request.param.format(small.inside / "root" / "queue"))


@WITHOUT
def test_a_put_that_finds_no_room_says_so_and_leaves_nothing(shop: Shop, what: str) -> None:
    small = shop.small
    shop.run("put", stdin=b"x")
    small.fill(what)
    before = {*(small.path / "root").rglob("*")}
    code, said = small.pools.run("put", shop.url, stdin=b"x" * 2000)
    assert code == 1
    assert "No space left on device" in said
    assert str(small.inside / "root" / "queue") in said
    assert "Traceback" not in said
    assert {*(small.path / "root").rglob("*")} == before
    small.free()
    shop.run("put", stdin=b"x" * 2000)
    assert shop.states() == {"waiting": 2}


@WITHOUT
def test_a_pool_goes_on_when_there_is_room_and_has_lost_nothing(shop: Shop, what: str) -> None:
    """Each message is handled once and settled once, whether that needs room or not; no worker dies."""
    small, bodies = shop.small, []
    for number, body in enumerate(OUTCOMES):
        bodies.append(str(small.pools.place / f"body{number}"))
        Path(bodies[-1]).write_bytes(body)
    names = shop.run("put", *bodies * 3).split()
    shop.run("pause")
    config = small.pools.place / "pool.toml"
    config.write_text(
        f'[[queue]]\nname = "queue"\nurl = "{shop.url}"\nhandler = "{HANDLERS}:answer"\nworkers = 2\n'
        'retry_backoff = "1000h"\nretry_backoff_max = "1000h"\nmax_attempts = 5\n'
    )
    pool = small.pools.start("--config", str(config)).ready()
    pids = pool.pids
    pool.until(lambda: pool.queues["queue"]["paused"])
    small.fill(what)
    shop.run("resume")

    def is_settled() -> bool:
        counts = {outcome: pool.outcome(outcome) for outcome in OUTCOMES.values()}
        return counts == {"done": 3, "retried": 6, "rejected": 3}

    pool.until(lambda: is_settled() or "waiting until it works again" in pool.log)
    small.free()
    pool.until(is_settled)
    assert pool.pids == pids
    assert small.pools.counted() == {f"answers {name}": 1 for name in names}
    assert shop.states() == {"deferred": 6, "errors": 3}
    assert pool.end() == 0
    assert "Traceback" not in pool.log
