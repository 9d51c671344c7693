"""
test_network - what a message costs on a network filesystem, operation by operation

How many operations are sent is structure and is asserted; how long they take is not.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.bench.network import network, operations
from orchestrator.bench.nfs import ASKED, ENTRIES, Network
from workers.system import System

# What sends nothing about a name: bytes, descriptors, processes, clocks; and those that are made of other calls.
SILENT = {
    "read", "write", "pread", "pwrite", "fstat", "fsync", "getpid", "geteuid", "getppid", "random_bytes", "sleep",
    "wall_ns", "boottime_ns", "unread", "wait_writable", "fsync_directory", "fsync_entered", "network_filesystem",
    "start_ticks", "is_alive", "is_directory", "is_stopped", "kernel8", "kill_session", "syncfs", "syncs_as_one",
    "map_file", "memory_file", "lock_memory", "mq_open", "mq_attributes", "mq_send", "mq_send_within", "mq_receive",
    "mq_receive_into", "mq_wait", "mq_unlink", "is_anchored",
}  # fmt: skip
FOLLOWED = {"open", "close", "rename", "unlink", "listdir", "scandir"}


@pytest.fixture
def server() -> Network:
    """A server that answers at once."""
    return Network(operation_s=0)


@contextlib.contextmanager
def sent(server: Network, **wanted: int) -> Iterator[None]:
    """The block sends just these; "late_" and a word is "late WORD"."""
    before = server.counts.copy()
    yield
    assert dict(server.counts - before) == {name.replace("_", " "): count for name, count in wanted.items()}


def test_put_sends_one_create_and_one_rename(tmp_path: Path) -> None:
    assert operations(tmp_path / "queue")["put"] == {"CREATE": 1.0, "RENAME": 1.0, "CLOSE": 1.0}


def test_claim_and_done_send_one_rename_one_open_and_one_remove(tmp_path: Path) -> None:
    """No more than the bare loop, and above all no .nfs name: the file is closed before it is unlinked."""
    assert operations(tmp_path / "queue")["take"] == {"RENAME": 1.0, "OPEN": 1.0, "REMOVE": 1.0, "CLOSE": 1.0}


def test_every_call_of_the_system_is_counted_or_known_to_send_nothing() -> None:
    """A call that is new must be thought about."""
    calls = {name for name in dir(System) if not name.startswith("_")}
    assert not calls - SILENT - FOLLOWED - set(ASKED)


def test_unlinking_an_open_file_costs_a_lookup_a_rename_and_a_late_remove(server: Network, tmp_path: Path) -> None:
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    with sent(server, CREATE=1):
        fd = server.open(first, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    with sent(server, RENAME=1):
        server.rename(first, second)
    with sent(server, LOOKUP=1, RENAME=1):
        server.unlink(second)
    with sent(server, CLOSE=1, late_REMOVE=1):
        server.close(fd)
    assert server.waited == 4
    assert os.listdir(tmp_path) == []


def test_a_listing_is_read_a_hundred_entries_at_a_time(server: Network, tmp_path: Path) -> None:
    with sent(server, GETATTR=1, READDIR=1):
        assert server.listdir(str(tmp_path)) == []
    for number in range(ENTRIES + 1):
        (tmp_path / str(number)).touch()
    with sent(server, GETATTR=1, READDIR=2):
        assert len(server.listdir(str(tmp_path))) == ENTRIES + 1
    with sent(server, GETATTR=1, READDIR=1), server.scandir(str(tmp_path)) as entries:
        next(entries)


def test_a_directory_that_is_synced_is_asked_for_once(server: Network, tmp_path: Path) -> None:
    with sent(server, GETATTR=1):
        server.fsync_directory(str(tmp_path))


def test_a_small_round_loses_no_race_and_handles_all(tmp_path: Path) -> None:
    """A worker that the suite misses a message of is a BenchError."""
    figures = network(tmp_path, rounds=1, messages=4)
    takes = [one for one in figures if one.unit == "messages/s"]
    assert [one.what.split(",")[1].strip() for one in takes] == [
        "1 worker", "2 workers", "4 workers", "8 workers", "16 workers", "32 workers",
    ]  # fmt: skip
    for one in takes:
        assert one.value > 0
        assert one.ratio is not None
        assert one.more["operations"] >= 3
        assert one.more["lost"] <= 0.5
    assert os.listdir(tmp_path) == [], "nothing is left behind"
