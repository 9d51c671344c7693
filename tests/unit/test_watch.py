"""
test_watch - arrivals are seen by inotify, or the caller is told to poll
"""

from __future__ import annotations

import errno
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

import inotify_simple
import pytest

from orchestrator import watch
from orchestrator.reading import BoardReader
from orchestrator.watch import TreeWatcher, Watcher, watching
from workers.board import Board
from workers.queues.base import Claimable, Settings, Watch
from workers.queues.open import open_queue
from workers.queues.spool import Spool
from workers.system import System

LONG_S = 30.0  # never waited for: an event comes first


@pytest.fixture
def incoming(tmp_path: Path) -> Path:
    (tmp_path / "incoming").mkdir()
    (tmp_path / "tmp").mkdir()
    return tmp_path / "incoming"


@pytest.fixture
def watcher(incoming: Path) -> Iterator[Watcher]:
    made = Watcher.on(str(incoming))
    assert made is not None
    yield made
    made.close()


def put(incoming: Path, name: str) -> None:
    temporary = incoming.parent / "tmp" / name
    temporary.write_bytes(b"x")
    temporary.rename(incoming / name)


def test_a_rename_into_the_directory_ends_the_wait(watcher: Watcher, incoming: Path) -> None:
    put(incoming, "a")
    assert watcher.wait(LONG_S)
    assert not watcher.wait(0)


def test_a_link_into_the_directory_ends_the_wait(watcher: Watcher, incoming: Path) -> None:
    (incoming.parent / "tmp" / "a").write_bytes(b"x")
    (incoming / "a").hardlink_to(incoming.parent / "tmp" / "a")
    assert watcher.wait(LONG_S)


def test_many_arrivals_are_one_wake_up(watcher: Watcher, incoming: Path) -> None:
    for number in range(500):
        put(incoming, str(number))
    assert watcher.wait(LONG_S)
    assert not watcher.wait(0)


def test_leaving_the_directory_is_no_arrival(watcher: Watcher, incoming: Path) -> None:
    put(incoming, "a")
    watcher.wait(LONG_S)
    (incoming / "a").rename(incoming.parent / "a")
    (incoming.parent / "a").unlink()
    assert not watcher.wait(0)


def test_the_other_descriptor_ends_the_wait_and_is_left_unread(watcher: Watcher) -> None:
    read, write = os.pipe()
    os.write(write, b"x")
    assert not watcher.wait(LONG_S, read)
    assert os.read(read, 1) == b"x"
    os.close(read)
    os.close(write)


def test_both_at_once_count_as_an_arrival(watcher: Watcher, incoming: Path) -> None:
    read, write = os.pipe()
    os.write(write, b"x")
    put(incoming, "a")
    assert watcher.wait(LONG_S, read)
    os.close(read)
    os.close(write)


@pytest.mark.parametrize("how", ["removed", "renamed"])
def test_a_directory_that_went_away_is_polled_from_then_on(watcher: Watcher, incoming: Path, how: str) -> None:
    if how == "removed":
        incoming.rmdir()
    else:
        incoming.rename(incoming.parent / "elsewhere")
    assert watcher.wait(LONG_S)
    assert watcher.is_polling
    assert watcher.wait(0.001)
    read, write = os.pipe()
    os.close(write)
    assert watcher.wait(LONG_S, read)
    os.close(read)


def test_an_overflow_counts_as_arrivals(watcher: Watcher, monkeypatch: pytest.MonkeyPatch, incoming: Path) -> None:
    flags = inotify_simple.flags
    event = inotify_simple.Event(-1, flags.Q_OVERFLOW, 0, "")
    really = watcher._inotify.read

    def read(timeout: int) -> list[object]:
        list(really(timeout=timeout))
        return [event]

    monkeypatch.setattr(watcher._inotify, "read", read)
    put(incoming, "a")
    assert watcher.wait(LONG_S)
    assert not watcher.is_polling


class Place(System):
    """The kernel, with the queue on *kind*."""

    def __init__(self, kind: str | None) -> None:
        self.kind = kind

    def network_filesystem(self, path: str) -> str | None:
        return self.kind


@pytest.mark.parametrize(
    ("way", "kind", "mode", "said"),
    [
        ("auto", None, "inotify", ""),
        ("inotify", None, "inotify", ""),
        ("poll", None, "poll", "{}: polling every 0.1 s at most, as its watch says"),
        (
            "auto",
            "nfs",
            "poll",
            "{} is on nfs, where arrivals from other hosts make no event: polling every 1 s at most",
        ),
        ("poll", "nfs", "poll", "{}: polling every 1 s at most, as its watch says"),
        (
            "inotify",
            "fuse.bindfs",
            "inotify",
            "{} is on fuse.bindfs and watched by inotify, as its watch says: what other hosts put is found every 1 s"
            " at most",
        ),
    ],
)
def test_a_network_filesystem_is_polled_unless_the_queue_says_otherwise(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, *, way: Watch, kind: str | None, mode: str, said: str
) -> None:
    caplog.set_level(logging.INFO)
    queue = Spool(str(tmp_path / "queue"), Settings(create=True, watch=way), system=Place(kind))
    board = Board.create()
    slot = board.queues[board.take_queue("queue", queue.url)]
    found = watching(queue, slot)
    assert (found is not None) == (mode == "inotify")
    if found is not None:
        put(tmp_path / "queue" / "incoming", "a")
        assert found.arrivals(LONG_S) == ["a"]
        found.close()
    assert [record.message for record in caplog.records] == ([said.format(queue.url)] if said else [])
    (read,) = BoardReader(board).read()
    assert (read.watch, read.filesystem) == (mode, kind or "")
    polled = "poll every 0.1 s at most" if kind is None else f"poll every 1 s at most ({kind})"
    assert read.arrivals == (mode if mode == "inotify" else polled)


def test_a_set_is_polled_and_the_log_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    queue = open_queue(
        f"set:dirq-simple:{tmp_path}/a,dirq-simple:{tmp_path}/b", settings=Settings(poll_interval_s=0.25)
    )
    assert isinstance(queue, Claimable)
    board = Board.create()
    assert watching(queue, board.queues[board.take_queue("queue", queue.url)]) is None
    assert "make no event: polling every 0.25 s at most" in caplog.text


def test_a_mount_over_the_watched_directory_ends_the_watch(
    watcher: Watcher, incoming: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A rename and a mkdir stand for it: another directory is at that path. (A mount makes no event at all.)"""
    assert not watcher.is_covered()
    incoming.rename(incoming.parent / "below")
    incoming.mkdir()
    assert watcher.is_covered()
    assert watcher.is_polling
    assert watcher.arrivals(0) is None
    assert "something was mounted over" in caplog.text


def test_without_inotify_the_caller_polls(
    incoming: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(watch, "inotify_simple", None)
    assert Watcher.on(str(incoming)) is None
    assert "not available" in caplog.text


@pytest.mark.parametrize(
    ("number", "sysctl"), [(errno.EMFILE, "max_user_instances"), (errno.ENOSPC, "max_user_watches")]
)
def test_a_reached_limit_is_logged_with_its_cure(
    incoming: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, number: int, sysctl: str
) -> None:
    def fail(self: object, path: str, mask: int) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(inotify_simple.INotify, "add_watch", fail)
    assert Watcher.on(str(incoming)) is None
    assert sysctl in caplog.text


def test_what_is_no_directory_is_not_watched(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    assert Watcher.on(str(tmp_path / "file")) is None
    assert Watcher.on(str(tmp_path / "nothing")) is None
    assert caplog.text.count("cannot watch") == 2


def test_closing_twice_is_harmless(watcher: Watcher) -> None:
    watcher.close()
    watcher.close()


def test_arrivals_are_handed_out_by_name(watcher: Watcher, incoming: Path) -> None:
    for name in ("a", "b\nc", os.fsdecode(b"\xff")):
        put(incoming, name)
    assert watcher.arrivals(LONG_S) == ["a", "b\nc", os.fsdecode(b"\xff")]
    assert watcher.arrivals(0) == []


def test_arrivals_that_were_not_all_seen_are_none(
    watcher: Watcher, monkeypatch: pytest.MonkeyPatch, incoming: Path
) -> None:
    lost = inotify_simple.Event(-1, inotify_simple.flags.Q_OVERFLOW, 0, "")
    really = inotify_simple.parse_events
    monkeypatch.setattr(inotify_simple, "parse_events", lambda data: [*really(data), lost])
    put(incoming, "a")
    assert watcher.arrivals(LONG_S) is None
    assert not watcher.is_polling


def test_arrivals_of_a_directory_that_went_away_are_none_from_then_on(watcher: Watcher, incoming: Path) -> None:
    incoming.rmdir()
    assert watcher.arrivals(LONG_S) is None
    assert watcher.is_polling
    assert watcher.arrivals(LONG_S) is None


# ---- a tree


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[tuple[TreeWatcher, Path]]:
    for name in ("00000000", "00000001"):
        (tmp_path / "queue" / name).mkdir(parents=True)
    (tmp_path / "queue" / "a file").touch()
    (tmp_path / "queue" / "temporary").mkdir()  # what comes there is no message
    made = Watcher.on(str(tmp_path / "queue"), re.compile(r"\A[0-9a-f]{8}\Z"))
    assert isinstance(made, TreeWatcher)
    yield made, tmp_path / "queue"
    made.close()


def test_arrivals_in_a_tree_are_named_with_their_directory(tree: tuple[TreeWatcher, Path]) -> None:
    watcher, queue = tree
    (queue / "00000000" / "a").touch()
    (queue / "00000001" / "b").mkdir()
    assert watcher.arrivals(LONG_S) == ["00000000/a", "00000001/b"]
    assert watcher.arrivals(0) == []


def test_what_comes_elsewhere_in_a_tree_is_no_arrival(tree: tuple[TreeWatcher, Path]) -> None:
    watcher, queue = tree
    (queue / "temporary" / "a").mkdir()
    (queue / "obsolete").mkdir()
    (queue / "00000001" / "b").touch()
    assert watcher.arrivals(LONG_S) == ["00000001/b"]


def test_a_new_directory_of_a_tree_is_watched_and_calls_for_a_look(tree: tuple[TreeWatcher, Path]) -> None:
    watcher, queue = tree
    (queue / "00000002").mkdir()
    assert watcher.arrivals(LONG_S) is None
    (queue / "00000002" / "c").touch()
    assert watcher.arrivals(LONG_S) == ["00000002/c"]
    assert not watcher.is_polling


def test_a_directory_that_leaves_a_tree_ends_no_watch(tree: tuple[TreeWatcher, Path]) -> None:
    watcher, queue = tree
    (queue / "00000000").rmdir()
    assert watcher.arrivals(LONG_S) == []
    (queue / "00000001" / "b").touch()
    assert watcher.arrivals(LONG_S) == ["00000001/b"]


def test_a_tree_that_goes_away_is_polled_from_then_on(tree: tuple[TreeWatcher, Path]) -> None:
    watcher, queue = tree
    queue.rename(queue.with_name("elsewhere"))
    assert watcher.arrivals(LONG_S) is None
    assert watcher.is_polling


def test_only_the_newest_directories_of_a_tree_are_watched(tree: tuple[TreeWatcher, Path]) -> None:
    watcher, queue = tree
    for number in range(2, 2 + watch.NEWEST):
        (queue / f"{number:08x}").mkdir()
        assert watcher.arrivals(LONG_S) is None
    watcher.arrivals(0)
    (queue / "00000000" / "old").touch()
    (queue / f"{1 + watch.NEWEST:08x}" / "new").touch()
    assert watcher.arrivals(LONG_S) == [f"{1 + watch.NEWEST:08x}/new"]
