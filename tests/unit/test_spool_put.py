"""The producer's side of the spool: which calls a put makes, what a batch syncs and when, every call failed once."""

from __future__ import annotations

import errno
import os

import pytest

from tests.rig import Pool, fail_each
from workers.errors import QueueUnavailable
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


def test_a_body_of_a_wrong_kind_leaves_nothing_of_its_batch(rig):
    with pytest.raises(TypeError):
        rig.spool().put_many([b"x", 5])
    assert rig.everything() == {}


# ---- every call failed once


def _put_batch(pool: Pool) -> None:
    has_syncfs(pool.spool).put_many(BATCH)


def test_a_synced_batch_names_what_was_put_when_any_call_fails(fresh_rig):
    failed = set()
    for pool, trail, raised in fail_each(fresh_rig, _put_batch):
        failed.add(trail.partition(" ")[0])
        assert isinstance(raised, QueueUnavailable), trail
        assert tuple(pool.rig.files("incoming")) == tuple(sorted(raised.names)), trail
        assert pool.rig.files("tmp") == [], trail
        assert raised.is_unknown == (len(raised.names) == BATCH_MIN), trail
    assert failed == {"open", "write", "close", "rename", "syncfs", "fsync"}


def test_nothing_of_a_batch_is_seen_when_its_bodies_could_not_be_synced(rig):
    spool = has_syncfs(rig.spool())
    spool.system.fail_all("syncfs", errno.EIO)
    with pytest.raises(QueueUnavailable) as caught:
        spool.put_many(BATCH)
    assert (caught.value.errno, caught.value.names) == (errno.EIO, ())
    assert rig.everything() == {}


def test_a_plain_put_leaves_no_trace_when_any_call_fails(fresh_rig):
    for pool, trail, raised in fail_each(fresh_rig, lambda pool: pool.spool.put(b"content", durable=False)):
        assert isinstance(raised, QueueUnavailable), trail
        assert pool.rig.everything() == {}, trail


class Killed(BaseException):
    """A kill -9: no call after it is made, not even to clean up."""


@pytest.mark.parametrize("durable", [True, False])
def test_a_producer_killed_at_any_call_leaves_whole_messages_and_files_of_tmp_only(fresh_rig, durable):
    """What is in incoming/ is complete; what is in tmp/ has a name that the reaper of tmp/ unlinks."""
    for last in range(5 * BATCH_MIN):
        rig = fresh_rig()
        spool = has_syncfs(rig.spool())
        left = iter(range(last))

        def count(name, arguments, left=left):
            if next(left, None) is None:
                raise Killed

        spool.system.before = count
        try:
            spool.put_many(BATCH, durable=durable)
        except Killed:
            assert set(rig.everything().get("incoming", [])) <= set(BATCH)
            assert all(is_ours(file) for file in rig.files("tmp"))
            if rig.files("incoming"):
                assert len(rig.files("incoming")) + len(rig.files("tmp")) == BATCH_MIN
        else:
            assert sorted(rig.everything()["incoming"]) == sorted(BATCH)
            break
    else:
        pytest.fail("never got through")


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
