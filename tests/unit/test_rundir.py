"""
test_rundir - one master a name, held by a lock; readers judge by pid and start time

The lock belongs to a process, so whoever competes for it is a real child.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from orchestrator import rundir
from orchestrator.rundir import AlreadyRunning, Ambiguous, NotRunning, RunDir, RunDirError
from workers.system import System, start_ticks

NO_PID = 2**22 + 1  # above the kernel's largest


@contextmanager
def master(run_dir: Path, *names: str, release: bool = False) -> Iterator[int]:
    """A child that is master of *names* until the end of the with; its pid."""
    ready_r, ready_w = os.pipe()
    leave_r, leave_w = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(leave_w)
            held = [RunDir.acquire(run_dir, name) for name in names]
            os.write(ready_w, b"!")
            os.read(leave_r, 1)
            if release:
                for one in held:
                    one.release()
            os._exit(0)
        finally:
            os._exit(1)
    try:
        os.close(ready_w)
        os.close(leave_r)
        assert os.read(ready_r, 1) == b"!"
        yield pid
    finally:
        os.close(leave_w)
        os.close(ready_r)
        assert os.waitpid(pid, 0)[1] == 0


def in_child(task: Callable[[], str]) -> str:
    """What *task* returns in a child of its own."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(write, task().encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as file:
        text = file.read().decode()
    os.waitpid(pid, 0)
    return text


def acquired_or_refused(run_dir: Path, name: str = "a") -> str:
    try:
        RunDir.acquire(run_dir, name)
    except AlreadyRunning as error:
        return f"{error.pid} {error}"
    return "acquired"


def write_pid(run_dir: Path, name: str, content: str) -> None:
    directory = run_dir / name
    directory.mkdir(mode=0o700, parents=True)
    (directory / "pid").write_text(content)


def test_the_directory_is_for_us_alone_and_above_roots_everybody_may_pass(tmp_path: Path) -> None:
    run = RunDir.acquire(tmp_path / "x" / "run", "a")
    for path in (tmp_path / "x", tmp_path / "x" / "run"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o755 if os.geteuid() == 0 else 0o700)
    assert stat.S_IMODE(run.path.stat().st_mode) == 0o700
    assert stat.S_IMODE((run.path / "pid").stat().st_mode) == 0o600
    assert (run.path / "pid").read_text() == f"{os.getpid()} {start_ticks(os.getpid())}\n"
    run.release()


def test_a_second_master_is_refused_by_pid_and_told_what_to_do(tmp_path: Path) -> None:
    with master(tmp_path, "a") as pid:
        said = in_child(lambda: acquired_or_refused(tmp_path))
        assert said.startswith(f"{pid} ")
        assert "orchestrator stop --name a" in said
        assert in_child(lambda: acquired_or_refused(tmp_path, "b")) == "acquired"


def test_a_stale_pid_file_is_taken_over(tmp_path: Path) -> None:
    write_pid(tmp_path, "a", f"{NO_PID} 123456789012345678\nrest\n")
    run = RunDir.acquire(tmp_path, "a")
    assert (run.path / "pid").read_text() == f"{os.getpid()} {start_ticks(os.getpid())}\n"
    run.release()


def test_the_name_is_free_as_soon_as_its_master_died(tmp_path: Path) -> None:
    with master(tmp_path, "a"):
        pass
    assert (tmp_path / "a" / "pid").exists()
    assert rundir.running(tmp_path) == []
    assert in_child(lambda: acquired_or_refused(tmp_path)) == "acquired"


def test_a_released_name_can_be_acquired_again(tmp_path: Path) -> None:
    run = RunDir.acquire(tmp_path, "a")
    run.board_path.touch()
    run.control_path.touch()
    run.release()
    run.release()
    assert os.listdir(tmp_path) == []
    again = RunDir.acquire(tmp_path, "a")
    (again.path / "kept").touch()
    again.release()
    assert os.listdir(run.path) == ["kept"]


def test_a_directory_that_its_last_master_removes_meanwhile_is_made_anew(tmp_path: Path) -> None:
    """Between its opening and that of the pid file in it."""
    removed = []

    class Removing(System):
        def network_filesystem(self, path: str) -> str | None:
            if not removed:
                removed.append(path)
                os.rmdir(path)
            return None

    run = RunDir.acquire(tmp_path, "a", Removing())
    assert removed == [str(run.path)]
    assert (run.path / "pid").read_text().split()[0] == str(os.getpid())
    run.release()


def test_a_forked_child_neither_holds_nor_releases_the_lock(tmp_path: Path) -> None:
    run = RunDir.acquire(tmp_path, "a")

    def child() -> str:
        run.release()
        return acquired_or_refused(tmp_path).partition(" ")[0]

    assert in_child(child) == str(os.getpid())
    assert (run.path / "pid").exists()
    run.release()


def test_a_pid_file_removed_while_it_is_locked_is_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The master before us leaves between our open and our lock: the first lock is on a file nobody will find."""
    really = fcntl.lockf
    calls: list[int] = []

    def lockf(fd: int, how: int) -> None:
        if not calls:
            os.unlink(tmp_path / "a" / "pid")
        calls.append(fd)
        really(fd, how)

    monkeypatch.setattr(fcntl, "lockf", lockf)
    run = RunDir.acquire(tmp_path, "a")
    assert len(calls) == 2
    assert in_child(lambda: acquired_or_refused(tmp_path)).startswith(f"{os.getpid()} ")
    run.release()


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o1777])
def test_a_directory_that_others_may_write_into_is_refused(tmp_path: Path, mode: int) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(mode)
    with pytest.raises(RunDirError, match="others may write into it"):
        RunDir.acquire(tmp_path / "run", "a")
    (tmp_path / "run").chmod(0o700)
    (tmp_path / "run" / "a").mkdir()
    (tmp_path / "run" / "a").chmod(mode)
    with pytest.raises(RunDirError, match="others may write into it"):
        RunDir.acquire(tmp_path / "run", "a")


def test_a_directory_that_anybody_could_replace_is_refused_but_in_one_like_tmp(tmp_path: Path) -> None:
    """Its files are made by their paths, after it was looked at."""
    above = tmp_path / "above"
    above.mkdir()
    above.chmod(0o777)
    for use in (RunDir.acquire, rundir.prepare):
        with pytest.raises(RunDirError, match=r"everybody may write into .*above"):
            use(above / "run", "a")
    above.chmod(0o1777)
    rundir.prepare(above / "run", "a")
    run = RunDir.acquire(above / "run", "a")
    assert run.path.is_dir()
    run.release()


@pytest.mark.parametrize("what", ["a link", "another user's directory"])
@pytest.mark.parametrize("use", [RunDir.acquire, rundir.prepare], ids=["acquire", "prepare"])
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_what_takes_the_place_of_a_directory_between_its_making_and_its_opening_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use: Callable[[Path, str], object], what: str
) -> None:
    """In a directory that is shared, as the directory for temporary files is."""
    roots, really = tmp_path / "roots", os.mkdir
    roots.mkdir(mode=0o700)
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o1777)

    def mkdir(name: str, mode: int, *, dir_fd: int) -> None:
        really(name, mode, dir_fd=dir_fd)
        if name == "run":
            os.rmdir(name, dir_fd=dir_fd)
            if what == "a link":
                os.symlink(roots, name, dir_fd=dir_fd)
            else:
                really(name, 0o700, dir_fd=dir_fd)
                os.chown(name, 12345, 12345, dir_fd=dir_fd)

    with monkeypatch.context() as patched:
        patched.setattr(os, "mkdir", mkdir)
        with pytest.raises(RunDirError, match="symbolic link" if what == "a link" else "belongs to another user"):
            use(tmp_path / "shared" / "run", "a")
    assert os.listdir(roots) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(mode=0o700)
    os.chown(tmp_path / "a", 12345, 12345)
    with pytest.raises(RunDirError, match="belongs to another user"):
        RunDir.acquire(tmp_path, "a")


def test_a_symbolic_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "run").mkdir(mode=0o700)
    (tmp_path / "run" / "a").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "link").symlink_to(tmp_path / "run")
    with pytest.raises(RunDirError, match="symbolic link"):
        RunDir.acquire(tmp_path / "run", "a")
    with pytest.raises(RunDirError, match="symbolic link"):
        RunDir.acquire(tmp_path / "link", "b")


def test_a_link_or_a_fifo_instead_of_the_pid_file_is_refused_or_harmless(tmp_path: Path) -> None:
    write_pid(tmp_path, "a", "")
    (tmp_path / "secret").write_text("kept")
    (tmp_path / "a" / "pid").unlink()
    (tmp_path / "a" / "pid").symlink_to(tmp_path / "secret")
    with pytest.raises(RunDirError, match="remove it"):
        RunDir.acquire(tmp_path, "a")
    assert (tmp_path / "secret").read_text() == "kept"
    (tmp_path / "a" / "pid").unlink()
    os.mkfifo(tmp_path / "a" / "pid")
    assert rundir.running(tmp_path) == []


def test_a_network_filesystem_is_refused(tmp_path: Path) -> None:
    class Remote(System):
        def network_filesystem(self, path: str) -> str | None:
            return "nfs"

    with pytest.raises(RunDirError, match=r"network filesystem \(nfs\)"):
        RunDir.acquire(tmp_path, "a", Remote())
    assert not (tmp_path / "a" / "pid").exists()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", ".hidden", "x" * 65, "a\nb", "\udc80"])
def test_a_name_that_is_no_directory_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RunDirError, match="cannot be called"):
        RunDir.acquire(tmp_path, name)
    with pytest.raises(RunDirError, match="cannot be called"):
        rundir.find(tmp_path, name)


def test_running_pools_are_found_by_name_or_as_the_only_one(tmp_path: Path) -> None:
    assert rundir.running(tmp_path / "nothing") == []
    with pytest.raises(NotRunning) as none:
        rundir.find(tmp_path)
    assert none.value.exit_code == 3
    with master(tmp_path, "b", "a") as pid:
        assert [(one.name, one.pid, one.start) for one in rundir.running(tmp_path)] == [
            ("a", pid, start_ticks(pid)),
            ("b", pid, start_ticks(pid)),
        ]
        assert rundir.find(tmp_path, "b").board_path == tmp_path / "b" / "board"
        with pytest.raises(Ambiguous, match="a, b") as several:
            rundir.find(tmp_path)
        assert (several.value.exit_code, several.value.names) == (2, ("a", "b"))
        with pytest.raises(NotRunning, match=r"no pool called c is running .*running: a, b"):
            rundir.find(tmp_path, "c")
    with master(tmp_path, "a", release=True) as pid:
        assert rundir.find(tmp_path).pid == pid


@pytest.mark.parametrize(
    "content",
    [
        "",
        "\n",
        "7",
        "7 8 9\n",
        "a b\n",
        "0 1\n",
        "-1 1\n",
        f"{2**40} 1\n",
        pytest.param(f"{os.getpid()} 1\n", id="ours of another time"),
        f"{NO_PID} 1\n",
        "\0" * 99,
    ],
)
def test_a_pid_file_that_names_no_living_master_counts_for_nothing(tmp_path: Path, content: str) -> None:
    write_pid(tmp_path, "a", content)
    (tmp_path / "a file").touch()
    assert rundir.running(tmp_path) == []


def test_a_master_whose_start_time_cannot_be_read_counts_as_running(tmp_path: Path) -> None:
    class Hidden(System):
        def is_alive(self, pid: int, start: int) -> bool | None:
            return None

    write_pid(tmp_path, "a", "4242 1\n")
    assert [one.pid for one in rundir.running(tmp_path, Hidden())] == [4242]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_root_believes_no_user_that_names_a_process_of_somebody_else(tmp_path: Path) -> None:
    """Else he could have root stop any process for him."""
    write_pid(tmp_path, "a", f"{os.getpid()} {start_ticks(os.getpid())}\n")
    os.chown(tmp_path / "a" / "pid", 12345, 12345)
    assert rundir.running(tmp_path) == []


def test_a_directory_that_no_pool_can_be_called_is_no_pool(tmp_path: Path) -> None:
    """Its name would stand in the messages about others, where a newline could forge a line."""
    content = f"{os.getpid()} {start_ticks(os.getpid())}\n"
    for name in ("a\nb", "\x1b[2J", os.fsdecode(b"\xff"), ".a", "x" * 65, "good"):
        write_pid(tmp_path, name, content)
    assert [one.name for one in rundir.running(tmp_path)] == ["good"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_pool_is_not_found_through_a_link_that_its_user_could_have_made(tmp_path: Path) -> None:
    """Else he could have root stop another pool than the one that was named."""
    theirs = tmp_path / "theirs"
    theirs.mkdir(mode=0o700)
    with master(tmp_path / "run", "a") as pid:
        (theirs / "b").symlink_to(tmp_path / "run" / "a")
        assert rundir.find(theirs, "b").pid == pid  # a link of ours
        os.chown(theirs, 12345, 12345)
        assert rundir.running(theirs) == []
        with pytest.raises(NotRunning):
            rundir.find(theirs, "b")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user without rights")
def test_a_run_directory_that_cannot_be_made_or_read_is_named(tmp_path: Path) -> None:
    def child() -> str:
        os.chdir(tmp_path)  # the way to tmp_path may be closed to that user
        (tmp_path / "run").mkdir(mode=0o700)
        os.setuid(12345)
        said = []
        for task in (lambda: RunDir.acquire(Path("new"), "a"), lambda: rundir.running(Path("run"))):
            with suppress(NotRunning):
                try:
                    task()
                except RunDirError as error:
                    said.append(str(error))
        return "\n".join(said)

    made, read = in_child(child).splitlines()
    assert made.startswith("cannot use the run directory ")
    assert read == "cannot look for pools in run: Permission denied"
