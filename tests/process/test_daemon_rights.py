"""
test_daemon_rights - what a daemon that root starts as another user can do, and what that user can not

The other user owns a directory, "theirs", through which a path of the configuration leads.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from pathlib import Path

import pytest

from tests.process.daemons import STARTED, Daemons
from tests.process.pools import OTHER_USER, drop, is_empty, make_queue
from tests.waiting import until

TRUE = ("--workers", "1", "--", "true", "{path}")
IDENTITY = ("--user", str(OTHER_USER), "--group", str(OTHER_USER))
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@pytest.fixture(name="queue")
def _queue(place: Path) -> Path:
    """A queue of the other user."""
    path = place / "queue"
    make_queue(path).close()
    for entry in (path, *path.rglob("*")):
        os.chown(entry, OTHER_USER, OTHER_USER)
    return path


@pytest.fixture(name="theirs")
def _theirs(place: Path) -> Path:
    path = place / "theirs"
    path.mkdir()
    os.chown(path, OTHER_USER, OTHER_USER)
    return path


@pytest.mark.parametrize("flag", ["--log-file", "--pid-file", "--run-dir"])
def test_root_makes_nothing_where_a_directory_of_the_user_leads_by_a_link(
    daemons: Daemons, queue: Path, theirs: Path, flag: str
) -> None:
    secret = daemons.place / "secret"
    secret.mkdir(mode=0o700)
    (theirs / "link").symlink_to(secret)
    words = daemons.words(str(queue), *IDENTITY, *TRUE)
    words[words.index("--") : words.index("--")] = [flag, str(theirs / "link" / "file")]
    ended = daemons.run(words)
    assert ended.returncode == 1, ended
    assert "there is a link on the way" in ended.stderr
    assert os.listdir(secret) == []


def test_a_link_that_the_user_may_follow_himself_is_followed(daemons: Daemons, queue: Path, theirs: Path) -> None:
    (theirs / "real").mkdir()
    (theirs / "current").symlink_to("real")
    for path in (theirs / "real", theirs / "current"):
        os.chown(path, OTHER_USER, OTHER_USER, follow_symlinks=False)
    daemons.start(str(queue), *IDENTITY, "--log-file", str(theirs / "current" / "log"), *TRUE)
    assert (theirs / "real" / "log").stat().st_uid == OTHER_USER


def test_the_environment_tells_of_who_it_became(daemons: Daemons, queue: Path) -> None:
    out = daemons.place / "out"
    out.touch()
    os.chown(out, OTHER_USER, OTHER_USER)
    command = f'echo "$HOME ${{USER-none}} ${{LOGNAME-none}}" > {out}'
    daemons.start(str(queue), *IDENTITY, "--shell", "--workers", "1", "--", command)
    drop(queue, "m", b"x")
    until(lambda: is_empty(queue))
    assert out.read_text() == "/ none none\n"


def test_a_start_after_which_a_handler_could_become_root_again_is_refused(daemons: Daemons, queue: Path) -> None:
    """With such a securebit all capabilities outlive the change of user."""
    if (setpriv := shutil.which("setpriv")) is None:
        pytest.skip("there is no setpriv")
    words = [setpriv, "--securebits=+no_setuid_fixup", *daemons.words(str(queue), *IDENTITY, *TRUE)]
    ended = daemons.run(words)
    assert ended.returncode == 1, ended
    assert "the rights of root were given up and can be taken back" in ended.stderr
    until(lambda: daemons.alive() == [])


def test_run_logs_are_kept_in_a_directory_that_only_root_could_make(daemons: Daemons, queue: Path) -> None:
    place = daemons.place / "logs" / "runs"
    daemons.start(str(queue), *IDENTITY, "--runlog-dir", str(place), *TRUE)
    assert (place.stat().st_uid, place.stat().st_mode & 0o777) == (OTHER_USER, 0o700)
    assert len(os.listdir(place)) == 1
    assert place.parent.stat().st_uid == 0


def test_a_daemon_without_run_logs_says_so_and_runs(daemons: Daemons, queue: Path, theirs: Path) -> None:
    (theirs / "file").touch()
    ended = daemons.run(daemons.words(str(queue), *IDENTITY, "--runlog-dir", str(theirs / "file"), *TRUE))
    assert ended.returncode == 0, ended
    assert ended.stderr.startswith("orchestrator: there is no run log: cannot use ")


def test_what_the_user_will_not_be_able_to_do_is_said_at_the_start(daemons: Daemons, queue: Path) -> None:
    config = daemons.place / "pool.toml"
    config.write_text(f'[[queue]]\nurl = "{queue}"\nworkers = 1\ncommand = ["true"]\n[pool]\nstate_file = "state"\n')
    config.chmod(0o600)
    ended = daemons.run(daemons.words("--config", str(config), *IDENTITY))
    assert ended.returncode == 0, ended
    assert ended.stderr.splitlines() == [
        f"orchestrator: the state cannot be written: user {OTHER_USER} may not write into {daemons.place}",
        f"orchestrator: a reload will not be able to read {config}: user {OTHER_USER} may not",
    ]


def test_no_child_of_a_daemon_has_its_pid_file_open(daemons: Daemons, queue: Path) -> None:
    path = daemons.place / "closed" / "demo.pid"
    path.parent.mkdir(mode=0o700)
    master = daemons.start(str(queue), *IDENTITY, "--pid-file", str(path), *TRUE)

    def opened(pid: int) -> set[str]:
        found = set()
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                found.add(os.readlink(fd))
        return found

    roots = {str(path), f"{path}.lock", str(path.parent)}
    assert opened(master) >= roots
    children = [one.pid for one in daemons.alive() if one.pid != master]
    assert children
    for child in children:
        assert not opened(child) & roots


def test_a_pid_file_in_a_directory_that_the_user_may_not_enter_is_kept(daemons: Daemons, queue: Path) -> None:
    path = daemons.place / "closed" / "demo.pid"
    path.parent.mkdir(mode=0o700)
    words = (str(queue), *IDENTITY, "--pid-file", str(path), *TRUE)
    pid = daemons.start(*words)
    assert path.read_text() == f"{pid}\n"
    refused = daemons.run(daemons.words(*words, name="other"))
    assert f"is held by process {pid}, which lives" in refused.stderr
    assert path.read_text() == f"{pid}\n"
    daemons.stop()
    assert path.read_text() == ""
    daemons.start(*words)


def test_a_daemon_of_a_user_starts_beside_a_first_pool_of_root(daemons: Daemons, queue: Path) -> None:
    make_queue(daemons.place / "roots").close()
    daemons.start(str(daemons.place / "roots"), *TRUE, name="roots")
    daemons.start(str(queue), *IDENTITY, *TRUE)


@pytest.mark.parametrize("fault", ["--work-dir", "--handler", "--pid-file"])
def test_a_start_that_fails_leaves_no_empty_file(daemons: Daemons, queue: Path, fault: str) -> None:
    given = {
        "--work-dir": (str(daemons.place / "none"), *TRUE),
        "--handler": ("none:handle", "--workers", "1"),
        "--pid-file": (str(daemons.place / "none" / "pid"), *TRUE),
    }[fault]
    files = [daemons.place / name for name in ("out", "log", "pid")]
    config = daemons.place / "pool.toml"
    text = f'[[queue]]\nurl = "{queue}"\n[pool]\nlog_file = "log"\n[daemon]\nstdout = "out"\n'
    config.write_text(text + ('pid_file = "pid"\n' if fault != "--pid-file" else ""))
    ended = daemons.run(daemons.words("--config", str(config), fault, *given))
    assert ended.returncode == 1, ended
    left = [path.name for path in (*files, daemons.place / "pid.lock") if path.exists()]
    assert left == ([] if fault == "--pid-file" else ["log"])  # the log says why


def test_a_full_disk_leaves_no_file_of_a_start_that_fails(daemons: Daemons, queue: Path) -> None:
    """Nothing can be written into the pid file, nor is there room for a line of the log."""
    full = "import os\ndef full(*_): raise OSError(28, 'No space left on device')\nos.pwrite = full\n"
    full += "from orchestrator import logs\nlogs.LogFile.emit = lambda *_: None\n"
    main = "from orchestrator.cli import main\nmain()\n"
    files = ("--log-file", str(daemons.place / "log"), "--pid-file", str(daemons.place / "pid"))
    words = daemons.words(str(queue), *files, *TRUE)
    ended = daemons.run([words[0], "-c", full + main, *words[3:]])
    assert ended.returncode == 1
    assert "No space left" in ended.stderr
    assert not [path.name for path in daemons.place.iterdir() if path.name in ("log", "pid", "pid.lock")]


def test_a_reload_by_the_user_finds_nothing_changed(daemons: Daemons, queue: Path) -> None:
    """Not even defaults that follow from who reads."""
    config = daemons.place / "pool.toml"
    config.write_text(f'[[queue]]\nurl = "{queue}"\nworkers = 1\ncommand = ["true"]\n')
    words = daemons.words("--config", str(config), *IDENTITY)
    at = words.index("--run-dir")
    ended = daemons.run(words[:at] + words[at + 2 :], env=daemons.environment(XDG_RUNTIME_DIR=str(daemons.place)))
    found = STARTED.match(ended.stdout)
    assert found, ended
    log = daemons.place / "orchestrator" / "demo" / "log"
    os.kill(int(found[2]), signal.SIGHUP)
    until(lambda: "reloaded: " in log.read_text())
    assert "a restart" not in log.read_text()
