"""
test_modes - what a pool makes has the mode that the umask says, is no program, and is nobody else's where it is private
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.process.pools import HANDLERS, Pools
from workers import open_queue
from workers.queues.base import Claimable

URLS = ("spool:{}/spool", "dirq-simple:{}/simple", "dirq:{}/dirq", "ddmq:{}/ddmq/queue")


@pytest.fixture(params=[0o002, 0o027, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    """Of this process and so of the pool's."""
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(place: Path) -> dict[str, int]:
    """The modes of everything below *place* but links, by path."""
    found = {}
    for path in (place, *place.rglob("*")):
        with contextlib.suppress(FileNotFoundError):  # a lease is renamed by its keeper
            if not path.is_symlink():
                found[str(path.relative_to(place.parent))] = path.lstat().st_mode
    return found


def test_files_are_no_programs_and_have_the_mode_of_the_umask(pools: Pools, tmp_path: Path, umask: int) -> None:
    """Messages in all states, .meta, leases, counts, records: one is done, one is kept, one waits for its retry."""
    queues = tmp_path / "queues"
    queues.mkdir()
    urls = [url.format(queues) for url in URLS]
    for url in urls:
        with open_queue(url, create=True) as queue:
            for body in (b"done", b"reject", b"retry", b"done"):
                queue.put(body)
    words = ("--workers", "2", "--max-attempts", "1000", "--handler", f"{HANDLERS}:answer")
    words += ("--runlog-dir", str(tmp_path / "runs"))
    log, state = tmp_path / "log", tmp_path / "state"
    pool = pools.start(*urls, *words, "--log-file", str(log), "--state-file", str(state), name="modes").ready()
    pool.until(lambda: (pool.outcome("done"), pool.outcome("rejected")) == (2 * len(urls), len(urls)))
    pool.until(lambda: pool.outcome("retried") >= len(urls))
    pool.send(signal.SIGUSR2)
    pool.until(state.exists)

    ours = modes(queues)
    assert not {path: oct(mode) for path, mode in ours.items() if not stat.S_ISDIR(mode) and mode & 0o111}
    assert not {path: oct(mode) for path, mode in ours.items() if mode & umask}
    assert not {path: oct(mode) for path, mode in ours.items() if mode & stat.S_IWOTH}
    private = modes(pools.place / "run" / "modes") | modes(tmp_path / "runs") | modes(state)
    assert not {path: oct(mode) for path, mode in private.items() if mode & 0o077}
    assert {stat.S_IFMT(mode) for mode in private.values()} == {stat.S_IFDIR, stat.S_IFREG, stat.S_IFSOCK}
    assert log.stat().st_mode & (0o133 | umask) == 0
    assert len([path for path in ours if path.endswith(".meta")]) == len(urls)
    assert pool.end() == 0


def test_a_queue_that_only_its_group_uses_can_be_used_by_it(tmp_path: Path, umask: int) -> None:
    """Directories give what the umask leaves, and no more: who may write into them is the operator's to say."""
    with open_queue(str(tmp_path / "queue"), create=True) as queue:
        assert isinstance(queue, Claimable)
        queue.put(b"x")
    found = modes(tmp_path / "queue")
    assert {mode & 0o777 for mode in found.values() if stat.S_ISDIR(mode)} == {0o777 & ~umask}
    assert {mode & 0o777 for mode in found.values() if stat.S_ISREG(mode)} == {0o666 & ~umask}
