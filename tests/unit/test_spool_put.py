"""The producer's side of the spool: which calls a put makes, what a batch syncs and when, a producer that is killed."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

import pytest

from tests.rig import Rig, World
from workers.errors import MessageExists, NotSupported, QueueUnavailable
from workers.queues import spool_put
from workers.queues.names import is_ours
from workers.queues.open import open_queue
from workers.queues.spool import Spool
from workers.queues.spool_put import BATCH_MIN
from workers.system import System

PLAIN = ["open", "write", "close", "rename"]
SYNC_OF_DIRECTORY = ["open", "fsync", "close"]
BATCH = [b"%d" % number for number in range(BATCH_MIN)]


def has_syncfs(spool: Spool, *, is_there: bool = True) -> Spool:
    """*spool* on a filesystem whose syncfs reports every error, or on one where it does not."""
    spool.system.syncs_as_one = lambda path: is_there  # type: ignore[method-assign]
    return spool


def calls_of(spool: Spool, bodies: list[bytes], *, durable: bool) -> list[str]:
    spool.system.calls.clear()  # type: ignore[attr-defined]
    spool.put_many(bodies, durable=durable)
    return list(spool.system.calls)  # type: ignore[attr-defined]


# ---- which calls, and how many


def test_a_put_that_does_not_wait_for_the_disk_is_four_calls(rig):
    spool = rig.spool()
    spool.system.calls.clear()
    assert is_ours(spool.put(b"x", durable=False))
    assert spool.system.calls == PLAIN


def test_a_durable_put_syncs_the_file_before_and_the_directory_after_the_rename(rig):
    spool = rig.spool()
    spool.system.calls.clear()
    spool.put(b"x")
    calls = [call for call in spool.system.calls if call != "fstat"]
    assert calls == ["open", "write", "fsync", "close", "rename", *SYNC_OF_DIRECTORY]


def test_an_empty_body_is_not_written_and_a_short_write_is_continued(rig):
    spool = rig.spool()
    spool.system.calls.clear()
    spool.put(b"", durable=False)
    assert spool.system.calls == ["open", "close", "rename"]
    spool.system.write = lambda fd, data: os.write(fd, bytes(data[:3]))
    spool.put(b"ten bytes!", durable=False)
    assert rig.everything() == {"incoming": [b"", b"ten bytes!"]}


def test_a_batch_that_does_not_wait_for_the_disk_is_four_calls_a_message(rig):
    assert sorted(calls_of(rig.spool(), BATCH, durable=False)) == sorted(PLAIN * BATCH_MIN)


def test_a_durable_batch_is_synced_by_one_call_for_the_bodies_and_one_for_the_names(rig):
    calls = calls_of(has_syncfs(rig.spool()), BATCH, durable=True)
    assert (calls.count("syncfs"), calls.count("fsync")) == (1, 1)
    assert len(calls) == 4 * BATCH_MIN + len(["open", "syncfs", "close"]) + len(SYNC_OF_DIRECTORY)


def test_a_small_batch_and_one_where_syncfs_does_not_report_every_error_sync_each_file(rig):
    small = calls_of(has_syncfs(rig.spool()), BATCH[1:], durable=True)
    assert (small.count("syncfs"), small.count("fsync")) == (0, BATCH_MIN)
    other = calls_of(has_syncfs(rig.spool(), is_there=False), BATCH, durable=True)
    assert (other.count("syncfs"), other.count("fsync")) == (0, BATCH_MIN + 1)


def test_a_batch_is_synced_after_the_last_write_and_before_the_first_rename(rig):
    spool = has_syncfs(rig.spool())
    seen: list[tuple[str, str]] = []
    spool.system.before = lambda name, arguments: seen.append((name, str(arguments[0])))
    spool.put_many(BATCH)
    names = [name for name, _ in seen]
    assert seen[0] == ("open", spool.directory.incoming)
    assert names.index("write") > 0
    last_write = max(number for number, name in enumerate(names) if name == "write")
    assert last_write < names.index("syncfs") < names.index("rename")
    assert names.index("fsync") > max(number for number, name in enumerate(names) if name == "rename")


def test_a_large_batch_is_seen_in_groups_each_of_which_is_durable_before_the_next_is_written(rig, monkeypatch):
    monkeypatch.setattr(spool_put, "GROUP", BATCH_MIN)
    spool = has_syncfs(rig.spool())
    one = calls_of(spool, BATCH, durable=True)
    assert calls_of(spool, BATCH * 3, durable=True) == one * 3
    assert len(rig.files("incoming")) == 4 * BATCH_MIN


def test_a_bad_body_late_in_a_large_batch_leaves_the_groups_before_it_and_says_so(rig, tmp_path, monkeypatch):
    monkeypatch.setattr(spool_put, "GROUP", BATCH_MIN)
    with pytest.raises(QueueUnavailable) as caught:
        rig.spool().put_many([*BATCH, b"x", tmp_path / "missing"])
    assert tuple(rig.files("incoming")) == tuple(sorted(caught.value.names))
    assert len(caught.value.names) == BATCH_MIN
    assert rig.files("tmp") == []


@pytest.mark.parametrize("bad", [5, None, "lone \udcff", Path("null\0byte"), Path("\ud800")], ids=ascii)
def test_a_body_of_a_wrong_kind_leaves_nothing_of_its_batch(rig, monkeypatch, bad):
    """However late it comes: its error has no place for the names of the groups before it."""
    monkeypatch.setattr(spool_put, "GROUP", BATCH_MIN)
    with pytest.raises((TypeError, ValueError)):
        rig.spool().put_many([*BATCH, b"x", bad])
    assert rig.everything() == {}


def test_a_batch_takes_bytes_text_and_paths(rig, tmp_path):
    (tmp_path / "file").write_bytes(b"of a file")
    names = rig.spool().put_many([b"bytes", "text \u00e4", tmp_path / "file", bytearray(b"array")])
    bodies = [(rig.path / "incoming" / name).read_bytes() for name in names]
    assert bodies == [b"bytes", "text \u00e4".encode(), b"of a file", b"array"]


# ---- what cannot be synced, and a producer that is killed


def test_nothing_of_a_batch_is_seen_when_its_bodies_could_not_be_synced(rig):
    spool = has_syncfs(rig.spool())
    spool.system.fail_all("syncfs", errno.EIO)
    with pytest.raises(QueueUnavailable) as caught:
        spool.put_many(BATCH)
    assert (caught.value.errno, caught.value.names) == (errno.EIO, ())
    assert rig.everything() == {}


class Killed(BaseException):
    """A kill -9: no call after it is made, not even to clean up."""


# ---- an error in the middle of a batch


def _failing_at_rename(spool: Spool, number: int, more: str = "") -> list[tuple[str, str]]:
    """Fail the *number*th rename, and from then on all calls named in *more*; the calls as they are made."""
    seen: list[tuple[str, str]] = []

    def hook(name, arguments):
        seen.append((name, str(arguments[0])))
        renames = [name for name, _ in seen].count("rename")
        if (name == "rename" and renames == number) or (renames >= number and name in more.split()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    spool.system.before = hook
    return seen


def test_the_names_of_a_batch_cut_short_are_durable_when_they_are_reported(rig):
    spool = has_syncfs(rig.spool())
    seen = _failing_at_rename(spool, 7)
    with pytest.raises(QueueUnavailable) as caught:
        spool.put_many(BATCH)
    assert (len(caught.value.names), caught.value.is_unknown) == (6, False)
    calls = [name for name, _ in seen]
    last_rename = max(number for number, name in enumerate(calls) if name == "rename")
    assert calls.index("fsync") > last_rename
    assert ("open", spool.directory.incoming) in seen[last_rename:]


def test_names_that_could_not_be_made_durable_are_unknown_and_keep_the_first_reason(rig):
    spool = has_syncfs(rig.spool())
    _failing_at_rename(spool, 7, "fsync")
    with pytest.raises(QueueUnavailable, match="No space left") as caught:
        spool.put_many(BATCH)
    assert (len(caught.value.names), caught.value.is_unknown) == (6, True)


def test_a_batch_cut_short_waits_for_no_disk_when_nobody_asked_for_it(rig):
    spool = rig.spool()
    seen = _failing_at_rename(spool, 7)
    with pytest.raises(QueueUnavailable):
        spool.put_many(BATCH, durable=False)
    assert "fsync" not in [name for name, _ in seen]


def test_what_a_batch_leaves_unseen_is_unlinked_once(rig):
    spool = rig.spool()
    seen = _failing_at_rename(spool, 7)
    with pytest.raises(QueueUnavailable):
        spool.put_many(BATCH)
    unlinked = [path for name, path in seen if name == "unlink"]
    assert len(unlinked) == len(set(unlinked)) == BATCH_MIN - 6
    assert rig.files("tmp") == []


# ---- a lost reply


def _claimed_before_the_reply_is_lost(spool: Spool, taken: Path) -> None:
    """Whatever enters is claimed on another host at once; the repeated rename then finds nothing."""

    def hook(name, arguments):
        if name in ("rename", "rename_noreplace") and os.path.dirname(arguments[1]) == spool.directory.incoming:
            os.rename(arguments[1], taken / os.path.basename(arguments[1]))
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))

    spool.system.after = hook


@pytest.mark.parametrize("verb", ["put", "enter", "put_many", "put_file", "put_file with a name"])
def test_a_put_that_is_claimed_before_its_lost_reply_was_looked_into_is_unknown(tmp_path, verb):
    taken, source = tmp_path / "taken", tmp_path / "source"
    taken.mkdir()
    source.write_bytes(b"x")
    spool = Rig(tmp_path / "queue", World(tmp_path), network="nfs").pool().spool
    _claimed_before_the_reply_is_lost(spool, taken)
    with pytest.raises(QueueUnavailable) as caught:
        {
            "put": lambda: spool.put(b"x"),
            "enter": lambda: spool.enter(b"x", "mine"),
            "put_many": lambda: spool.put_many([b"x", b"never seen"]),
            "put_file": lambda: spool.put_file(source),
            "put_file with a name": lambda: spool.put_file(source, "mine"),
        }[verb]()
    assert (caught.value.is_unknown, caught.value.errno, caught.value.names) == (True, errno.ENOENT, ())
    assert [path.read_bytes() for path in taken.iterdir()] == [b"x"]


@pytest.mark.parametrize("waits_another", [False, True])
def test_a_link_whose_reply_was_lost_and_whose_message_was_claimed_has_been_made(tmp_path, waits_another):
    """The client repeats a link that was done, and is told EEXIST; by then another of that name may wait."""
    rig = Rig(tmp_path / "queue", World(tmp_path), network="nfs")
    spool = rig.pool().spool

    def hook(name, arguments):
        if name == "link":
            os.rename(arguments[1], tmp_path / "taken")
            if waits_another:
                Path(arguments[1]).write_bytes(b"another's")
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))

    spool.system.after = hook
    assert spool.put(b"x", "mine") == "mine"
    assert (tmp_path / "taken").read_bytes() == b"x"
    assert rig.files("tmp") == []


def test_a_file_moved_in_that_had_two_names_before_is_not_taken_for_put_when_its_name_waits(tmp_path):
    rig = Rig(tmp_path / "queue", World(tmp_path), network="nfs")
    spool = rig.pool().spool
    spool.put(b"another's", "mine")
    source = tmp_path / "source"
    source.write_bytes(b"x")
    os.link(source, tmp_path / "backup")
    spool.system.fail_all("rename_noreplace", errno.EINVAL)
    with pytest.raises(MessageExists):
        spool.put_file(source, "mine")
    assert source.read_bytes() == b"x"


def test_a_link_whose_reply_was_lost_and_whose_message_was_finished_is_unknown(tmp_path):
    spool = Rig(tmp_path / "queue", World(tmp_path), network="nfs").pool().spool

    def hook(name, arguments):
        if name == "link":
            os.unlink(arguments[1])
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))

    spool.system.after = hook
    with pytest.raises(QueueUnavailable) as caught:
        spool.put(b"x", "mine")
    assert caught.value.is_unknown


# ---- a producer that was stopped


@pytest.mark.parametrize("call", ["fsync", "close"])
def test_a_producer_stopped_after_its_last_write_lets_nothing_be_seen(fresh_rig, call):
    for verb in ("put", "enter", "put_many"):
        rig = fresh_rig()
        spool = rig.spool()

        def hook(name, arguments, world=rig.world):
            if name == call:
                world.moved_ns += int(51e9)

        spool.system.after = hook
        puts = {"put": lambda: spool.put(b"x"), "enter": lambda: spool.enter(b"x", "mine")}  # noqa: B023 - called here
        with pytest.raises(QueueUnavailable, match="stopped for so long"):
            puts.get(verb, lambda: spool.put_many([b"x"]))()  # noqa: B023
        assert rig.everything() == {}, verb


def test_a_write_that_takes_long_is_no_stop(rig):
    spool = rig.spool()

    def hook(name, arguments):
        if name == "write":
            rig.world.moved_ns += int(51e9)

    spool.system.before = hook
    spool.put(b"x")
    assert rig.everything() == {"incoming": [b"x"]}


# ---- a file that is moved in


@pytest.fixture
def source(tmp_path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(b"the only copy")
    return path


def _lacks(spool: Spool, *calls: str, code: int = errno.EINVAL) -> None:
    """Let *calls* fail as where they are missing. Later hooks come on top."""

    def missing(*_):
        raise OSError(code, os.strerror(code))

    for call in calls:
        setattr(spool.system, call, missing)


def _across(spool: Spool, source: Path) -> None:
    """Let *source* be on another filesystem."""
    for call in ("rename", "rename_noreplace"):
        real = getattr(spool.system, call)

        def moved(one, other, real=real):
            if one == str(source):
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
            real(one, other)

        setattr(spool.system, call, moved)


WAYS = {
    "rename": lambda spool, source: None,
    "link": lambda spool, source: _lacks(spool, "rename_noreplace"),
    "copy": _across,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", [None, "mine"])
def test_a_file_moved_in_is_at_its_source_or_a_message_whenever_killed(fresh_rig, source, name, way):
    """tmp/ does not count: what lies there is unlinked when it is old."""
    for last in range(99):
        source.write_bytes(b"the only copy")
        rig = fresh_rig()
        spool = rig.spool()
        WAYS[way](spool, source)
        left = iter(range(last))

        def count(call, arguments, left=left):
            if next(left, None) is None:
                raise Killed

        spool.system.before = count
        try:
            spool.put_file(source, name)
        except Killed:
            found = rig.everything().get("incoming", [])
            assert found in ([], [b"the only copy"]), last
            assert found or source.read_bytes() == b"the only copy", last
        else:
            assert rig.everything() == {"incoming": [b"the only copy"]}
            assert not source.exists()
            break
    else:
        pytest.fail("never got through")


def test_a_file_moved_in_is_synced_before_it_is_seen_and_never_seen_in_tmp(rig, source):
    spool = rig.spool()
    spool.system.calls.clear()
    spool.put_file(source)
    assert spool.system.calls == ["lstat", "open", "fstat", "fsync", "close", "rename", *SYNC_OF_DIRECTORY]


@pytest.mark.parametrize("call", ["open", "rename"])
def test_a_fifo_in_the_place_of_a_file_to_be_moved_blocks_nobody(rig, source, call):
    """Were it opened to wait for a writer, this test would never end."""
    spool = rig.spool()

    def swap(name, arguments):
        if name == call and arguments[0] == str(source):
            source.unlink()
            os.mkfifo(source)

    spool.system.before = swap
    with suppress(QueueUnavailable):
        spool.put_file(source)
    assert source.is_fifo() == (call == "open")
    assert rig.files("tmp") == []


@pytest.mark.parametrize("way", WAYS)
def test_a_newer_file_at_the_source_is_never_lost(rig, source, way):
    """The producer renames the next file there, at each call of the move in turn."""
    for nth in range(30):
        for path in (rig.path / "incoming").glob("*"):
            path.unlink()
        source.write_bytes(b"older")
        spool = rig.spool()
        WAYS[way](spool, source)
        left = iter(range(nth))

        def replace(name, arguments, left=left):
            # Between the last look at the source and its unlink nothing helps, as with any unlink.
            if next(left, None) is None and name != "unlink" and not source.with_name("newer").exists():
                source.with_name("newer").write_bytes(b"newer")
                os.replace(source.with_name("newer"), source)
                spool.system.before = None  # noqa: B023 - this round's

        spool.system.before = replace
        with suppress(QueueUnavailable):
            spool.put_file(source, "mine")
        is_replaced = spool.system.before is None
        there = [source.read_bytes()] if source.exists() else []
        assert not is_replaced or b"newer" in [*there, *rig.everything().get("incoming", [])], nth
        if not is_replaced:
            break
    else:
        pytest.fail("never got through")


def test_an_error_leaves_the_newer_file_at_the_source(rig, source):
    spool = rig.spool()

    def late(name, arguments):
        if name == "fsync":
            source.write_bytes(b"newer")
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    spool.system.before = late
    with pytest.raises(QueueUnavailable, match="Input/output error"):
        spool.put_file(source)
    assert source.read_bytes() == b"newer"
    assert rig.everything() == {}


@pytest.mark.parametrize("way", ["link", "copy"])
def test_a_file_that_was_put_and_cannot_be_removed_is_unknown(rig, source, way):
    spool = rig.spool()
    WAYS[way](spool, source)

    def stuck(name, arguments):
        if name == "unlink" and arguments[0] == str(source):
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    spool.system.before = stuck
    with pytest.raises(QueueUnavailable, match="a message as well") as caught:
        spool.put_file(source, "mine")
    assert caught.value.is_unknown
    assert rig.everything() == {"incoming": [b"the only copy"]}
    assert source.read_bytes() == b"the only copy"


@pytest.mark.parametrize("way", WAYS)
def test_a_file_moved_in_under_a_name_that_waits_stays_where_it_is(rig, source, way):
    spool = rig.spool()
    spool.put(b"first", "mine")
    WAYS[way](spool, source)
    with pytest.raises(MessageExists):
        spool.put_file(source, "mine")
    assert source.read_bytes() == b"the only copy"
    assert rig.everything() == {"incoming": [b"first"]}


def test_a_name_for_a_file_moved_in_is_refused_where_nothing_gives_names(rig, source):
    spool = rig.spool()
    _lacks(spool, "rename_noreplace")
    _lacks(spool, "link", code=errno.EPERM)
    with pytest.raises(NotSupported, match="hard links"):
        spool.put_file(source, "mine")
    assert source.read_bytes() == b"the only copy"
    assert rig.everything() == {}


# ---- the kernel's syncfs


def test_syncfs_stands_for_fsync_only_where_filesystem_kernel_and_filter_allow(tmp_path, monkeypatch):
    monkeypatch.setattr("workers.system.filesystem_magic", lambda path: 0xEF53)
    monkeypatch.setattr("workers.system._release", lambda: (6, 1))
    assert System().syncs_as_one(str(tmp_path))
    monkeypatch.setattr("workers.system._release", lambda: (5, 16))
    assert not System().syncs_as_one(str(tmp_path))
    monkeypatch.setattr("workers.system._release", lambda: (5, 17))
    monkeypatch.setattr("workers.system.filesystem_magic", lambda path: 0x794C7630)  # an overlay
    assert not System().syncs_as_one(str(tmp_path))

    class Filtered(System):
        @staticmethod
        def syncfs(fd: int) -> None:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr("workers.system.filesystem_magic", lambda path: 0xEF53)
    assert not Filtered().syncs_as_one(str(tmp_path))


def test_a_batch_enters_whole_by_the_calls_of_the_kernel_itself(tmp_path):
    """Where the filesystem of the tests has no syncfs that is used, by an fsync of each file."""
    with open_queue(f"spool:{tmp_path / 'queue'}", create=True) as queue:
        assert sorted(queue.put_many(BATCH)) == sorted(os.listdir(tmp_path / "queue" / "incoming"))
