"""
test_pidfile - one process holds the file; what the dead left is taken over

Fault Z12 is that of the original (PyPI pyzenkit), which is run beside us.
"""

from __future__ import annotations

import fcntl
import importlib
import importlib.util
import os
import re
import signal
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orchestrator.pidfile import PidFile, PidFileError, PidFileHeld, parsed
from tests.unit.test_rundir import in_child

Take = Callable[[Path], object]
HAS_ORIGINAL = importlib.util.find_spec("pyzenkit") is not None


def take(path: Path) -> PidFile:
    """The file, held by this process."""
    found = PidFile.open(path)
    found.acquire(b"%d\n" % os.getpid())
    return found


def take_as_the_original(path: Path) -> object:
    return importlib.import_module("pyzenkit.daemonizer").daemonize_lite(pid_file=str(path))


def taken_or_refused(path: Path) -> str:
    try:
        take(path)
    except PidFileHeld as error:
        return f"{error.pid} {error}"
    return "taken"


@contextmanager
def holder(path: Path, taking: Take = take) -> Iterator[int]:
    """A process that holds the file until it is killed at the end; its number."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            taking(path)
            os.write(write, b"!")
            signal.pause()
        finally:
            os._exit(1)
    os.close(write)
    try:
        assert os.read(read, 1) == b"!"
        yield pid
    finally:
        os.close(read)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_held_file_names_its_holder_and_goes_with_it(tmp_path: Path) -> None:
    path = tmp_path / "x.pid"
    held = take(path)
    assert path.read_text() == f"{os.getpid()}\n"
    assert stat.S_IMODE(path.stat().st_mode) & ~0o644 == 0
    assert held.is_ours
    held.release()
    held.release()
    assert not path.exists()
    assert not held.is_ours


def test_a_living_holder_is_named_and_keeps_its_file(tmp_path: Path) -> None:
    path = tmp_path / "x.pid"
    with holder(path) as pid:
        path.read_text()  # a reader's close is not the holder's
        said = in_child(lambda: taken_or_refused(path))
        assert said.startswith(f"{pid} ")
        assert f"is held by process {pid}, which lives" in said
        assert path.read_text() == f"{pid}\n"


@pytest.mark.parametrize(
    "taking",
    [
        take,
        pytest.param(
            take_as_the_original,
            marks=[
                pytest.mark.skipif(not HAS_ORIGINAL, reason="the original (PyPI pyzenkit) is not installed"),
                pytest.mark.xfail(
                    strict=True, raises=AssertionError, reason="it asks for a file that is not there yet"
                ),
            ],
        ),
    ],
    ids=["ours", "original"],
)
def test_Z12_a_file_left_by_a_killed_process_is_taken_over(tmp_path: Path, taking: Take) -> None:
    path = tmp_path / "x.pid"
    with holder(path, taking) as first:
        pass
    assert path.read_text() == f"{first}\n"
    with holder(path, taking) as second:
        assert path.read_text() == f"{second}\n"


def test_a_longer_content_of_before_leaves_no_rest(tmp_path: Path) -> None:
    path = tmp_path / "x.pid"
    path.write_text("123456789 123456789\n" * 3)
    held = take(path)
    assert path.read_text() == f"{os.getpid()}\n"
    held.release()


def test_a_file_that_is_no_longer_ours_is_left_alone(tmp_path: Path) -> None:
    """Somebody removed it and made another; that one may be held by a living process."""
    path = tmp_path / "x.pid"
    held = take(path)
    path.unlink()
    path.write_text("4711\n")
    held.release()
    assert path.read_text() == "4711\n"


def test_a_forked_child_neither_holds_nor_removes_it(tmp_path: Path) -> None:
    path = tmp_path / "x.pid"
    held = take(path)

    def child() -> str:
        held.release()
        return taken_or_refused(path)

    assert in_child(child).startswith(f"{os.getpid()} ")
    assert path.exists()
    held.release()


def test_a_file_removed_between_open_and_lock_is_made_again(tmp_path: Path) -> None:
    """As by a holder that leaves just then: the lock on what it removed would hold nothing."""
    path = tmp_path / "x.pid"
    opened = PidFile.open(path)
    path.unlink()
    path.with_name("x.pid.lock").unlink()
    opened.acquire(b"%d\n" % os.getpid())
    assert in_child(lambda: taken_or_refused(path)).startswith(f"{os.getpid()} ")
    opened.release()


def test_a_file_opened_before_a_fork_is_held_by_the_process_that_acquires_it(tmp_path: Path) -> None:
    """That is how a daemon gets the file that its launcher had the rights to open."""
    path = tmp_path / "x.pid"
    opened = PidFile.open(path)

    def child() -> str:
        opened.acquire(b"%d\n" % os.getpid())
        return f"{os.getpid()} {path.read_text()}"

    pid, content = in_child(child).split()
    assert pid == content
    opened.close()


@pytest.mark.parametrize("kind", ["link", "second name", "fifo", "directory", "missing directory"])
def test_what_is_no_file_of_its_own_is_refused_and_left_as_it_is(tmp_path: Path, kind: str) -> None:
    path, other = tmp_path / "x.pid", tmp_path / "other"
    other.write_text("kept")
    match kind:
        case "link":
            path.symlink_to(other)
        case "second name":
            path.hardlink_to(other)
        case "fifo":
            os.mkfifo(path)
        case "directory":
            path.mkdir()
        case _:
            path = tmp_path / "none" / "x.pid"
    with pytest.raises(PidFileError, match=re.escape(str(path))):
        PidFile.open(path)
    assert other.read_text() == "kept"


def lock_shared(path: Path) -> object:
    """What anybody may do who can read the file."""
    file = path.open()
    fcntl.lockf(file, fcntl.LOCK_SH)
    return file


def test_readers_that_lock_the_file_keep_nobody_out(tmp_path: Path) -> None:
    path = tmp_path / "x.pid"
    with holder(path):
        pass
    with holder(path, lock_shared):
        held = take(path)
        assert path.read_text() == f"{os.getpid()}\n"
        assert in_child(lambda: taken_or_refused(path)).startswith(f"{os.getpid()} ")
        held.release()
    assert os.listdir(tmp_path) == []


def test_what_is_locked_can_be_opened_by_its_owner_alone(tmp_path: Path) -> None:
    held = take(tmp_path / "x.pid")
    assert stat.S_IMODE((tmp_path / "x.pid.lock").stat().st_mode) == 0o600
    held.release()


@pytest.mark.parametrize("content", ["precious\n", "12 apples\n", "1\n" * 50])
def test_a_file_with_anything_but_a_number_in_it_is_refused_and_kept(tmp_path: Path, content: str) -> None:
    path = tmp_path / "orders.csv"
    path.write_text(content)
    with pytest.raises(PidFileError, match="holds something that is no process number"):
        PidFile.open(path)
    assert path.read_text() == content
    assert os.listdir(tmp_path) == ["orders.csv"]


def test_what_a_crash_of_the_host_left_of_a_number_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "x.pid"
    path.write_bytes(bytes(5))
    take(path).release()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize("name", ["x.pid", "x.pid.lock"])
def test_a_file_of_another_user_is_refused_but_of_who_it_is_for(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    os.chown(tmp_path / name, 12345, 12345)
    with pytest.raises(PidFileError, match=f"{name} is another user's"):
        take(tmp_path / "x.pid")
    PidFile.open(tmp_path / "x.pid", owners=(12345,)).close()


def test_a_file_that_everybody_may_write_into_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.pid").touch()
    (tmp_path / "x.pid").chmod(0o666)
    with pytest.raises(PidFileError, match="others may write into it"):
        take(tmp_path / "x.pid")


def test_a_way_that_others_can_bend_is_refused(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o777)
    (tmp_path / "shared" / "link").symlink_to(tmp_path)
    with pytest.raises(PidFileError, match="there is a link on the way"):
        PidFile.open(tmp_path / "shared" / "link" / "x.pid")


def test_what_was_made_for_nothing_is_taken_away(tmp_path: Path) -> None:
    path = tmp_path / "x.pid"
    PidFile.open(path).discard()
    assert os.listdir(tmp_path) == []
    path.write_text("4711\n")
    PidFile.open(path).discard()
    assert os.listdir(tmp_path) == ["x.pid"]
    with holder(path) as pid:
        PidFile.open(path).discard()
        assert path.read_text() == f"{pid}\n"
        assert in_child(lambda: taken_or_refused(path)).startswith(f"{pid} ")


def test_what_was_made_for_nothing_stays_where_somebody_else_holds_it_by_now(tmp_path: Path) -> None:
    path = tmp_path / "x.pid"
    opened = PidFile.open(path)
    with holder(path) as pid:
        opened.discard()
        assert in_child(lambda: taken_or_refused(path)).startswith(f"{pid} ")


def test_a_full_disk_leaves_no_empty_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pwrite(fd: int, data: bytes, offset: int) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(PidFileError, match="No space left"):
        take(tmp_path / "x.pid")
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user without rights")
def test_a_directory_that_the_holder_may_not_enter_does_not_matter(tmp_path: Path) -> None:
    """It was opened by root. What cannot be removed is emptied."""
    path = tmp_path / "closed" / "x.pid"
    path.parent.mkdir(mode=0o700)
    opened = PidFile.open(path)

    def child() -> str:
        os.setuid(12345)
        opened.acquire(b"%d\n" % os.getpid())
        os.lseek(opened.descriptors[1], 0, os.SEEK_SET)
        content = os.read(opened.descriptors[1], 64).decode()
        opened.release()
        return f"{os.getpid()} {content}"

    pid, content = in_child(child).split()
    assert pid == content
    opened.close()
    assert path.read_text() == ""
    take(path).release()


@pytest.mark.parametrize(
    ("content", "pid"),
    [(b"", 0), (b"\n12\n", 0), (b"12", 12), (b"12 34\n56\n", 12), (b"x\n", 0), (b"-1\n", 0), (b"9" * 20, 0)],
)
def test_the_first_word_of_the_first_line_is_the_number(content: bytes, pid: int) -> None:
    assert parsed(content) == pid
