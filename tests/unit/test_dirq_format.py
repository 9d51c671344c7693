"""
test_dirq_format - what lies on the disk is what the original puts there: names, modes, bytes, calls

Both libraries do the same under a stopped clock, and the trees are compared; then each
reads, locks and removes what the other has added. The order of calls that a peer can see
is written out.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.dirq_twins import (
    SCHEMA,
    Kernel,
    Library,
    Original,
    needs_original,
    next_tick,
    skip_unless_links_are_counted,
    tree,
)
from workers.dirq import Queue, QueueSimple
from workers.dirq.elements import check_name, element_name, names_of, time_of
from workers.dirq.kind import kind_of
from workers.dirq.simple_elements import SimpleElements
from workers.system import System

AT = 1_780_000_000
NAME = re.compile(r"[0-9a-f]{8}/[0-9a-f]{14}")


@contextmanager
def process_umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


# ---- the same trees


@needs_original
@pytest.mark.parametrize("umask", [None, 0, 0o022, 0o077, 0o027])
@pytest.mark.parametrize("mask", [0o022, 0o077])
@pytest.mark.parametrize("data", [b"\0bytes\r\n", "text \u00e9\n", b"", ""])
def test_queue_simple_leaves_the_same_tree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: Any, umask: int | None, mask: int
) -> None:
    trees, names = [], []
    for library in (Library(), Original(monkeypatch)):
        path = tmp_path / type(library).__name__ / "a" / "b"
        with process_umask(mask):
            path.parents[1].mkdir()
            library.freeze(AT + 1)
            queue = library.simple(path, umask=umask, rndhex=27)
            os.unlink(path / queue.add(b"the first one makes the directory, and may take two names"))
            library.freeze(AT + 19)
            names.append(queue.add(data))
            assert queue.lock(names[-1])
        trees.append(tree(path.parents[1]))
    assert trees[0] == trees[1]
    assert names[0] == names[1] == f"{AT - AT % 60:08x}/{AT + 19:08x}00000b"


@needs_original
@pytest.mark.parametrize("umask", [None, 0, 0o077])
@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_queue_leaves_the_same_tree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, umask: int | None, mask: int
) -> None:
    schema = {"raw": "binary", "text": "string", "pairs": "table", "more": "string?"}
    data = {"raw": b"\0\xff", "text": "\u00e9\r\n", "pairs": {"b": "\t", "a": "\n"}}
    trees = []
    for library in (Library(), Original(monkeypatch)):
        path = tmp_path / type(library).__name__
        with process_umask(mask):
            library.freeze(AT)
            more = {"system": library.kernel} if type(library) is Library else {}
            queue = library.Queue(str(path), umask=umask, rndhex=1, schema=schema, **more)
            name = queue.add(data)
            assert queue.lock(name)
        assert name == f"00000000/{AT:08x}000001"
        trees.append(tree(path))
    assert trees[0] == trees[1]


def test_modes_keep_what_a_directory_hands_down(tmp_path: Path) -> None:
    """The bit that gives a directory's group to what is made in it is not lost where a umask is asked for."""
    tmp_path.chmod(0o2775)
    with process_umask(0o077):
        name = QueueSimple(str(tmp_path / "queue"), umask=0o002).add(b"data")
    directory = tmp_path / "queue" / name[:8]
    assert oct(directory.stat().st_mode) == "0o42775"
    assert oct((tmp_path / "queue" / name).stat().st_mode) == "0o100664"


# ---- each reads the other


@needs_original
@pytest.mark.parametrize("turn", [1, -1])
def test_each_library_takes_what_the_other_adds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, turn: int) -> None:
    skip_unless_links_are_counted(tmp_path)
    for kind, data in (("simple", b"\0data\xff"), ("queue", {"body": "d\u00e9ta\r\n"})):
        adder, taker = [getattr(one, kind)(tmp_path / kind) for one in (Library(), Original(monkeypatch))][::turn]
        names = [adder.add(data) for _ in range(3)]
        assert list(taker) == names
        assert taker.count() == 3
        assert taker.lock(names[0])
        assert not adder.lock(names[0])
        assert taker.get(names[0]) == data
        taker.unlock(names[0])
        assert adder.lock(names[0])
        assert not taker.lock(names[0])
        adder.remove(names[0])
        assert not taker.lock(names[0])
        assert taker.count() == 2


@needs_original
def test_a_lock_of_ours_is_stale_for_the_original_when_it_is_for_us(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    skip_unless_links_are_counted(tmp_path)
    for kind, data in (("simple", b"data"), ("queue", {"body": "data"})):
        for library, peer in ((Library(), Original(monkeypatch)), (Original(monkeypatch), Library())):
            path = tmp_path / kind / type(library).__name__
            path.parent.mkdir(exist_ok=True)
            holder, reaper = getattr(library, kind)(path), getattr(peer, kind)(path)
            name = holder.add(data)
            library.lock_long_ago(holder, name, 1000)
            reaper.purge(maxlock=1200)
            assert not reaper.lock(name)
            reaper.purge(maxlock=900)
            assert reaper.lock(name)


# ---- which kind it is


@pytest.mark.parametrize(
    ("there", "kind"),
    [
        ([], "empty"),
        ([".snapshot", ".00000000"], "empty"),
        (["temporary"], "empty"),
        (["obsolete"], "empty"),
        (["temporary", "obsolete"], "normal"),
        (["temporary", "obsolete", "00000000", "stray"], "normal"),
        (["6553f100"], "simple"),
        (["6553f100", "temporary", "stray"], "simple"),
        (["incoming", "temporary", "obsolete", "6553f100"], "spool"),
        (["stray"], "other"),
        (["temporary", "6553F100", "6553f1000"], "other"),
    ],
)
def test_the_kind_of_a_queue_is_told_by_the_names_in_it(there: list[str], kind: str) -> None:
    assert kind_of(there) == kind


def test_what_the_classes_make_is_known_by_its_kind(tmp_path: Path) -> None:
    QueueSimple(str(tmp_path / "simple")).add(b"data")
    Queue(str(tmp_path / "normal"))
    for kind in ("simple", "normal"):
        assert kind_of(os.listdir(tmp_path / kind)) == kind


# ---- names


def test_names_are_of_the_time_and_sort_by_it() -> None:
    kernel = Kernel()
    kernel.frozen_ns = AT * 10**9 + 999_999_999
    assert element_name(kernel, 15) == f"{AT:08x}f423ff"
    assert time_of(f"00000000/{AT:08x}f423ff") == pytest.approx(AT + 0.999999, abs=1e-9)
    kernel.frozen_ns = AT * 10**9 + 10**9
    assert element_name(kernel, 0) == f"{AT + 1:08x}000000"


def test_names_of_a_process_never_go_back_and_never_come_twice() -> None:
    kernel = Kernel()
    kernel.frozen_ns = AT * 10**9
    made = [element_name(kernel, 3) for _ in range(100)]
    kernel.frozen_ns -= 3600 * 10**9
    made += [names_of(kernel).fresh(kernel.wall_ns(), 3) for _ in range(100)]
    assert made == sorted(set(made))


def test_names_of_two_objects_of_a_process_never_come_twice(tmp_path: Path) -> None:
    one, two = QueueSimple(str(tmp_path), rndhex=1), QueueSimple(str(tmp_path), rndhex=1)
    names = [queue.add(b"data") for _ in range(200) for queue in (one, two)]
    assert names == sorted(set(names))
    assert list(one) == names


@pytest.mark.parametrize("granularity", [0, 1, 2, 60, 3600])
def test_directories_are_of_the_time_and_the_granularity(tmp_path: Path, granularity: int) -> None:
    library = Library()
    library.freeze(AT + 7)
    name = library.simple(tmp_path, granularity=granularity).add(b"data")
    assert int(check_name(name)[0], 16) == (AT + 7 - (AT + 7) % granularity if granularity else AT + 7)


def test_a_full_directory_is_followed_by_the_next_in_hexadecimal(tmp_path: Path) -> None:
    (tmp_path / "0000000f").mkdir(parents=True)
    queue = Queue(str(tmp_path), maxelts=2, schema=SCHEMA)
    assert [queue.add({"body": ""})[:8] for _ in range(5)] == ["0000000f"] * 2 + ["00000010"] * 2 + ["00000011"]


# ---- the calls


def calls_of(library: Library, place: Path) -> list[str]:
    """What was called since the last time, with paths as DIRECTORY/NAME and random parts as they read."""
    found = []
    for call, *paths in library.kernel.calls:
        shown = [re.sub("[0-9a-f]{14}", "N", re.sub(r"\b[0-9a-f]{8}\b", "D", path)) for path in paths]
        found.append(" ".join([call, *(path.removeprefix(f"{place}/") for path in shown)]))
    library.kernel.calls.clear()
    return found


def test_queue_simple_makes_these_calls(tmp_path: Path) -> None:
    library = Library()
    queue = library.simple(tmp_path)
    queue.add(b"first")
    library.kernel.calls.clear()
    name = queue.add(b"data")
    assert calls_of(library, tmp_path) == ["open D/N.tmp", "write", "close", "link D/N.tmp D/N", "unlink D/N.tmp"]
    queue.lock(name)
    assert calls_of(library, tmp_path) == ["lstat D/N", "utime D/N", "link D/N D/N.lck", "lstat D/N"]
    queue.get(name)
    assert calls_of(library, tmp_path) == ["open D/N.lck", "fstat", "read", "close"]
    queue.unlock(name)
    assert calls_of(library, tmp_path) == ["lstat D/N.lck", "unlink D/N.lck"]
    _, fd, _ = queue.elements.open_locked(name)
    os.close(fd)
    assert calls_of(library, tmp_path) == ["lstat D/N", "utime D/N", "link D/N D/N.lck", "open D/N", "fstat"]
    queue.remove(name)
    assert calls_of(library, tmp_path) == ["lstat D/N.lck", "unlink D/N", "unlink D/N.lck"]


def test_queue_makes_these_calls(tmp_path: Path) -> None:
    skip_unless_links_are_counted(tmp_path)
    library = Library()
    queue = library.queue(tmp_path)
    queue.add({"body": "first"})
    library.kernel.calls.clear()
    name = queue.add({"body": "data"})
    assert calls_of(library, tmp_path) == [
        "mkdir temporary/N", "open temporary/N/body", "write", "close", "lstat D", "rename temporary/N D/N",
    ]  # fmt: skip
    queue.lock(name)
    assert calls_of(library, tmp_path) == ["lstat D/N", "mkdir D/N/locked", "lstat D/N/locked"]
    queue.get(name)
    assert calls_of(library, tmp_path) == ["lstat D/N/locked", "open D/N/body", "fstat", "read", "close"]
    queue.remove(name)
    assert calls_of(library, tmp_path) == [
        "lstat D/N/locked", "lstat D/N", "listdir D/N", "rename D/N obsolete/N", "unlink obsolete/N/body",
        "rmdir obsolete/N/locked", "rmdir obsolete/N",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["simple", "queue"])
def test_a_durable_add_syncs_before_and_after_it_is_seen(tmp_path: Path, kind: str) -> None:
    library = Library()
    queue = getattr(library, kind)(tmp_path / "queue")
    data: Any = b"data" if kind == "simple" else {"body": b"data"}
    library.kernel.calls.clear()
    queue.elements.add(data, durable=True)
    calls = [call[0] for call in library.kernel.calls]
    seen = calls.index("link" if kind == "simple" else "rename")
    opened = [call[1] for call in library.kernel.calls[:seen] if call[0] == "open"]
    assert "fsync" in calls[:seen]
    assert str(tmp_path / "queue") in opened, "the name of a new directory is durable before something is in it"
    assert calls[-3:] == ["open", "fsync", "close"]
    queue.elements.add(data, durable=True)
    assert [call[0] for call in library.kernel.calls].count("fsync") == calls.count("fsync") + (
        2 if kind == "simple" else 3
    )


def test_a_lock_is_told_from_a_later_one_by_inode_and_time(tmp_path: Path) -> None:
    elements = SimpleElements(str(tmp_path), system=System())
    name = elements.add(b"data")
    lock = elements.lock(name)
    assert lock is not None
    assert elements.is_held(lock)
    found = (tmp_path / name).stat()
    assert (lock.inode, lock.at_ns) == (found.st_ino, found.st_mtime_ns)
    elements.touch(name, lock.at_ns + 2 * 10**9)
    assert not elements.is_held(lock)
    assert elements.is_held(lock, touched_ns=lock.at_ns + 2 * 10**9)
    assert elements.is_held(lock, within_ns=2 * 10**9)
    elements.touch(name, lock.at_ns - 2 * 10**9)
    assert elements.is_held(lock), "touched after the clock was set back: another would have had to find it old"


def test_a_lock_of_a_queue_stays_what_it_is_when_its_element_is_touched(tmp_path: Path) -> None:
    queue = Queue(str(tmp_path), schema=SCHEMA)
    name = queue.add({"body": "data"})
    lock = queue.elements.lock(name)
    assert lock is not None
    queue.elements.touch(name, lock.at_ns + 9 * 10**9)
    assert queue.elements.is_held(lock)
    assert queue.elements.unlock(name)
    next_tick(tmp_path)
    assert queue.elements.lock(name) is not None
    assert not queue.elements.is_held(lock)
