"""
test_daemon - run --daemon: who launches is told that it is ready, or why it is not

Faults Z3, Z13, Z14 and Z15 are those of the original (PyPI pyzenkit), which is run beside us.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.process.daemons import IMPATIENT, STARTED, Daemons, said, status_of
from tests.process.pools import OTHER_USER, drop, is_empty, make_queue, process, unprivileged
from tests.waiting import until

TRUE = ("--workers", "2", "--", "true", "{path}")
MAIN = "from orchestrator.cli import main\nmain()\n"
IS_ROOT = os.geteuid() == 0
root_only = pytest.mark.skipif(not IS_ROOT, reason="only root can become another user, or change its root")


@pytest.fixture(name="queue")
def _queue(place: Path) -> Path:
    path = place / "queue"
    make_queue(path).close()
    return path


def handled(queue: Path, name: str = "m") -> None:
    """See a message through."""
    drop(queue, name, b"x")
    until(lambda: is_empty(queue))


# ---- ready


def test_the_command_returns_when_the_daemon_handles_messages(daemons: Daemons, queue: Path) -> None:
    pid = daemons.start(str(queue), *TRUE)
    assert "is ready" in daemons.log()
    until(lambda: len([one for one in daemons.alive() if "worker" in psutil.Process(one.pid).cmdline()[0]]) == 2)
    handled(queue)
    daemons.stop()
    assert not process(pid).is_there
    until(lambda: not daemons.alive())


def test_a_daemon_has_left_session_directory_and_streams_of_who_started_it(daemons: Daemons, queue: Path) -> None:
    pid = daemons.start(str(queue), "--umask", "027", *TRUE)
    assert os.getsid(pid) not in (os.getsid(0), pid)  # no leader either, which could get a terminal
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert status_of(pid)["Umask"] == "0027"
    for one in daemons.alive():
        assert {os.readlink(f"/proc/{one.pid}/fd/{fd}") for fd in range(3)} == {os.devnull}, psutil.Process(one.pid)
    # Nothing of the launcher's is open in it: its output, the channel's other end.
    assert not [link for link in _links(pid) if str(daemons.place) in link and "/run/" not in link]


def _links(pid: int) -> list[str]:
    return [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]


def test_json_tells_name_process_and_errors(daemons: Daemons, queue: Path) -> None:
    ready = said(daemons.run(daemons.words(str(queue), "--json", *TRUE)))
    assert (ready["name"], ready["code"], ready["errors"]) == ("demo", None, [])
    assert process(ready["pid"]).is_there
    failed = daemons.run(daemons.words(str(queue), "--json", *TRUE))
    assert failed.returncode == 1
    assert said(failed)["code"] == 1
    assert f"is running already as process {ready['pid']}" in said(failed)["errors"][0]


def test_a_pool_that_ends_before_anybody_asked_is_no_failure(daemons: Daemons, queue: Path) -> None:
    ended = daemons.run(daemons.words(str(queue), "--until-empty", *TRUE))
    assert ended.returncode == 0, ended
    assert re.match(r"pool demo (runs|ran) as process \d+", ended.stdout)
    until(lambda: not daemons.alive())


def test_handlers_and_configuration_are_found_from_where_the_command_was_given(daemons: Daemons, queue: Path) -> None:
    """Also after the daemon changed its directory, and when it reads its configuration again."""
    (daemons.place / "here.py").write_text("def handle(message):\n    pass\n")
    (daemons.place / "pool.toml").write_text('[[queue]]\nurl = "queue"\nhandler = "here:handle"\nworkers = 1\n')
    # Without -m, which names the current directory by its path.
    ended = daemons.run([sys.executable, "-c", MAIN, *daemons.words("--config", "pool.toml")[3:]])
    found = STARTED.match(ended.stdout)
    assert found, ended
    handled(queue)
    with (daemons.place / "pool.toml").open("a") as file:
        file.write('[[queue]]\nurl = "second"\nhandler = "here:handle"\nworkers = 1\n')
    os.kill(int(found[2]), signal.SIGHUP)
    until(lambda: "reloaded: 1 added" in daemons.log())
    until((daemons.place / "second" / ".pool" / "id").exists)  # the last that is made
    handled(daemons.place / "second")


def test_what_handlers_print_goes_where_the_configuration_says(daemons: Daemons, queue: Path) -> None:
    (daemons.place / "talking.py").write_text(
        "import sys\ndef handle(message):\n    print('out', message.name)\n    print('err', file=sys.stderr)\n"
    )
    (daemons.place / "out").write_text("before\n")
    (daemons.place / "pool.toml").write_text(
        '[daemon]\nstdout = "out"\nstderr = "err"\n[[queue]]\nurl = "queue"\nhandler = "talking:handle"\nworkers = 1\n'
    )
    daemons.start("--config", "pool.toml")
    handled(queue)
    daemons.stop()
    assert (daemons.place / "out").read_text() == "before\nout m\n"
    assert (daemons.place / "err").read_text() == "err\n"


def test_two_names_run_beside_each_other(daemons: Daemons, queue: Path) -> None:
    first = daemons.start(str(queue), *TRUE, name="one")
    second = daemons.start(str(queue), *TRUE, name="two")
    daemons.stop("one")
    assert not process(first).is_there
    assert process(second).is_there
    handled(queue)


def test_signals_that_who_started_it_ignores_or_holds_back_reach_the_daemon(daemons: Daemons, queue: Path) -> None:
    def hold_back() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGCHLD])
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)

    pid = daemons.start(str(queue), *TRUE, preexec_fn=hold_back)
    assert int(status_of(pid)["SigBlk"], 16) == 0
    os.kill(pid, signal.SIGTERM)
    until(lambda: not process(pid).is_there)


def test_a_pool_in_the_foreground_sees_its_children_end_where_who_started_it_ignores_that(
    daemons: Daemons, queue: Path
) -> None:
    drop(queue, "m", b"x")
    words = daemons.words(str(queue), "--until-empty", *TRUE)
    words.remove("--daemon")
    ended = daemons.run(words, preexec_fn=lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN))
    assert ended.returncode == 0, ended


def test_a_paused_queue_keeps_no_daemon_from_being_ready(daemons: Daemons, queue: Path) -> None:
    assert daemons.run([sys.executable, "-m", "orchestrator", "pause", str(queue)]).returncode == 0
    daemons.start(str(queue), *TRUE)


# ---- not ready


def _refused(daemons: Daemons, queue: Path) -> list[str]:
    return [str(queue.parent / "missing" / "queue"), *TRUE]


def _no_module(daemons: Daemons, queue: Path) -> list[str]:
    return [str(queue), "--handler", "no_such_module:handle", "--workers", "1"]


def _fails_at_import(daemons: Daemons, queue: Path) -> list[str]:
    (daemons.place / "broken.py").write_text("raise LookupError('the licence is gone')\n")
    return [str(queue), "--handler", "broken:handle", "--workers", "2"]


def _bad_preload(daemons: Daemons, queue: Path) -> list[str]:
    (daemons.place / "broken.py").write_text("raise LookupError('the licence is gone')\n")
    return [str(queue), "--handler", "broken:handle", "--preload"]


def _name_taken(daemons: Daemons, queue: Path) -> list[str]:
    daemons.start(str(queue), *TRUE)
    return [str(queue), *TRUE]


def _pid_file_held(daemons: Daemons, queue: Path) -> list[str]:
    daemons.start(str(queue), "--pid-file", str(daemons.place / "x.pid"), *TRUE, name="other")
    return [str(queue), "--pid-file", str(daemons.place / "x.pid"), *TRUE]


def _no_pid_directory(daemons: Daemons, queue: Path) -> list[str]:
    return [str(queue), "--pid-file", str(daemons.place / "none" / "x.pid"), *TRUE]


def _no_log_directory(daemons: Daemons, queue: Path) -> list[str]:
    return [str(queue), "--log-file", str(daemons.place / "none" / "log"), *TRUE]


def _no_work_dir(daemons: Daemons, queue: Path) -> list[str]:
    return [str(queue), "--work-dir", str(daemons.place / "none"), *TRUE]


def _no_user(daemons: Daemons, queue: Path) -> list[str]:
    return [str(queue), "--user", "no-such-user", *TRUE]


def _no_group(daemons: Daemons, queue: Path) -> list[str]:
    return [str(queue), "--group", "no-such-group", *TRUE]


def _nameless_user(daemons: Daemons, queue: Path) -> list[str]:
    return [str(queue), "--user", str(OTHER_USER), *TRUE]


def _no_umask(daemons: Daemons, queue: Path) -> list[str]:
    return [str(queue), "--umask", "9", *TRUE]


FAILURES = [
    (_refused, r"queue queue is refused: cannot make the queue .*: its parent directory does not exist"),
    (_no_module, r"worker queue\[0\] cannot start: .*there is no module no_such_module"),
    (_fails_at_import, r"worker queue\[1\] cannot start: .*LookupError: the licence is gone"),
    (_bad_preload, r"LookupError: the licence is gone"),
    (_name_taken, r"pool demo is running already as process \d+ .*another --name"),
    (_pid_file_held, r"x\.pid is held by process \d+, which lives; stop it, or give another --pid-file"),
    (_no_pid_directory, r"cannot open .*/none/x\.pid: No such file or directory"),
    (_no_log_directory, r"cannot open .*/none/log: No such file or directory"),
    (_no_work_dir, r"cannot become a daemon: .*working directory.*/none"),
    (_no_user, r"there is no user no-such-user"),
    (_no_group, r"there is no group no-such-group"),
    (_nameless_user, r"user 12345 has no name, and so no group of its own: give a group too"),
    (_no_umask, r"must be octal text"),
]


@pytest.mark.parametrize(("given", "reason"), [pytest.param(*one, id=one[0].__name__[1:]) for one in FAILURES])
def test_a_daemon_that_cannot_start_says_why_once_and_is_gone(
    daemons: Daemons, queue: Path, given: Callable[[Daemons, Path], list[str]], reason: str
) -> None:
    words = daemons.words(*given(daemons, queue))
    before = {one.pid for one in daemons.alive()}
    ended = daemons.run(words)
    assert ended.returncode == (2 if given is _no_umask else 1), ended
    assert ended.stdout == ""
    assert len(re.findall(reason, ended.stderr)) == 1, ended.stderr
    assert all(line.startswith("orchestrator: ") for line in ended.stderr.splitlines()), ended.stderr
    assert "Traceback" not in ended.stderr
    assert "died before" not in ended.stderr  # it had a last word
    until(lambda: {one.pid for one in daemons.alive()} <= before)
    assert all(process(pid).is_there for pid in before)


def test_the_reasons_of_all_queues_are_told(daemons: Daemons, queue: Path) -> None:
    make_queue(daemons.place / "second").close()
    words = daemons.words(str(queue), str(daemons.place / "second"), "--handler", "none:handle", "--workers", "1")
    ended = daemons.run(words)
    assert ended.returncode == 1
    assert "worker queue[0] cannot start" in ended.stderr
    assert "worker second[0] cannot start" in ended.stderr


def test_a_port_that_is_taken_is_the_reason(daemons: Daemons, queue: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        ended = daemons.run(daemons.words(str(queue), *TRUE, listen=address))
    assert ended.returncode == 1
    assert address in ended.stderr


def test_a_crash_of_the_daemon_is_told_with_its_error(daemons: Daemons, queue: Path) -> None:
    """What nobody meant to raise: told in a line here, and with its traceback in the log."""
    crash = "from orchestrator import master\nmaster.Master._open = lambda self: 1 / 0\n"
    ended = daemons.run([sys.executable, "-c", crash + MAIN, *daemons.words(str(queue), *TRUE)[3:]])
    assert ended.returncode == 1
    assert ended.stderr.count("ZeroDivisionError: division by zero") == 1
    assert "Traceback" not in ended.stderr
    assert "Traceback" in daemons.log()


@pytest.mark.parametrize("first", ["", "os.fork() or open('PLACE/never').read()\n"], ids=["alone", "with a child"])
def test_a_daemon_that_is_killed_before_it_is_ready_is_told_to_have_died(
    daemons: Daemons, queue: Path, first: str
) -> None:
    """Also when a process that it forked lives on, and holds the channel open."""
    os.mkfifo(daemons.place / "never")
    text = f"import os\n{first}os.kill(os.getpid(), 9)\n"
    (daemons.place / "fatal.py").write_text(text.replace("PLACE", str(daemons.place)))
    ended = daemons.run(daemons.words(str(queue), "--handler", "fatal:handle", "--preload"))
    assert ended.returncode == 1
    assert ended.stderr == "orchestrator: the daemon died before it was ready (killed, or out of memory?)\n"


STUCK = "import os\nopen('PLACE/came', 'w').write(str(os.getpid()))\nopen('PLACE/never').read()\n"


def stuck(daemons: Daemons, queue: Path, first: str = "") -> list[str]:
    """The command of a daemon that is not ready before somebody opens "never" to write."""
    text = f"{first}{STUCK}def handle(message):\n    pass\n".replace("PLACE", str(daemons.place))
    (daemons.place / "stuck.py").write_text(text)
    os.mkfifo(daemons.place / "never")
    return daemons.words(str(queue), "--handler", "stuck:handle", "--preload")


@pytest.mark.parametrize("first", ["", "import signal\nsignal.signal(15, signal.SIG_IGN)\n"], ids=["", "deaf"])
def test_a_daemon_that_is_not_ready_in_time_is_ended(daemons: Daemons, queue: Path, first: str) -> None:
    ended = daemons.run([sys.executable, "-c", IMPATIENT, "0.5", *stuck(daemons, queue, first)[3:]])
    assert ended.returncode == 1
    assert "the pool was not ready after 0.5 s and was ended again" in ended.stderr
    until(lambda: not daemons.alive())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda one: one.name)
def test_who_is_interrupted_while_waiting_leaves_no_daemon(
    daemons: Daemons, queue: Path, number: signal.Signals
) -> None:
    with subprocess.Popen(
        stuck(daemons, queue), cwd=daemons.place, env=daemons.environment(), stdin=subprocess.DEVNULL
    ) as launcher:
        pid = int(until(lambda: _read(daemons.place / "came")))
        launcher.send_signal(number)
        assert launcher.wait(20) == 130
    assert not process(pid).is_there
    assert not daemons.alive()


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def test_a_launcher_that_is_killed_holds_up_nobody(daemons: Daemons, queue: Path) -> None:
    """Its end of the channel is closed before the daemon is ready; the daemon serves all the same."""
    words = stuck(daemons, queue)
    with subprocess.Popen(words, cwd=daemons.place, env=daemons.environment(), stdin=subprocess.DEVNULL) as launcher:
        until(lambda: _read(daemons.place / "came"))
        launcher.kill()
    (daemons.place / "never").write_text("")
    handled(queue)


# ---- the pid file


def test_the_pid_file_names_the_daemon_and_goes_with_it(daemons: Daemons, queue: Path) -> None:
    path = daemons.place / "demo.pid"
    pid = daemons.start(str(queue), "--pid-file", str(path), "--umask", "026", *TRUE)
    assert path.read_text() == f"{pid}\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    daemons.stop()
    assert not path.exists()


def test_a_pid_file_left_by_a_kill_is_taken_over(daemons: Daemons, queue: Path) -> None:
    path = daemons.place / "demo.pid"
    words = (str(queue), "--pid-file", str(path), *TRUE)
    first = daemons.start(*words)
    os.kill(first, signal.SIGKILL)
    until(lambda: not process(first).is_there)
    assert path.read_text() == f"{first}\n"
    second = daemons.start(*words)
    assert path.read_text() == f"{second}\n"
    handled(queue)


def test_readers_of_the_pid_file_take_nothing_from_the_daemon(daemons: Daemons, queue: Path) -> None:
    path = daemons.place / "demo.pid"
    pid = daemons.start(str(queue), "--pid-file", str(path), *TRUE)
    for _ in range(10):
        assert path.read_text() == f"{pid}\n"
    refused = daemons.run(daemons.words(str(queue), "--pid-file", str(path), *TRUE, name="other"))
    assert f"is held by process {pid}, which lives" in refused.stderr
    assert path.read_text() == f"{pid}\n"


# ---- the log


def test_a_log_that_is_renamed_goes_on_in_a_new_file_without_a_signal(daemons: Daemons, queue: Path) -> None:
    """Lines of every process are whole, and none is lost."""
    path = daemons.place / "pool.log"
    (daemons.place / "talking.py").write_text(
        "import logging\nlogging.getLogger().setLevel('INFO')\n"
        "def handle(message):\n    logging.getLogger('said').info('%s %s', message.name, 'x' * 3000)\n"
    )
    daemons.start(str(queue), "--log-file", str(path), "--workers", "3", "--handler", "talking:handle")
    for number in range(90):
        if number % 30 == 29:
            path.rename(path.with_suffix(f".{number}"))
        drop(queue, f"m{number:02}", b"x")
        until(path.exists)  # somebody speaks of it
    until(lambda: is_empty(queue))
    daemons.stop()
    lines = [line for one in daemons.place.glob("pool.*") if one.is_file() for line in one.read_text().splitlines()]
    assert all(re.match(r"\d{4}-\d\d-\d\dT.*Z [A-Z]+ +\S+\[\d+\]: ", line) for line in lines)
    found = [line.split(": ")[1] for line in lines if " said[" in line]
    assert sorted(found) == [f"m{number:02} {'x' * 3000}" for number in range(90)]


def test_a_full_disk_and_a_vanished_directory_lose_lines_but_no_message(daemons: Daemons, queue: Path) -> None:
    gone = daemons.place / "logs"
    gone.mkdir()
    daemons.start(str(queue), "--log-file", "/dev/full", *TRUE, name="full")
    handled(queue)
    daemons.stop("full")
    daemons.start(str(queue), "--log-file", str(gone / "log"), *TRUE)
    shutil.rmtree(gone)
    handled(queue)
    daemons.stop()
    assert not gone.exists()


def test_a_pool_in_the_foreground_appends_to_its_log_file_too(daemons: Daemons, queue: Path) -> None:
    path = daemons.place / "pool.log"
    drop(queue, "m", b"x")
    words = daemons.words(str(queue), "--until-empty", "--log-file", "pool.log", *TRUE)
    words.remove("--daemon")
    for count in (1, 2):
        ended = daemons.run(words)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert path.read_text().count("pool demo ends") == count


# ---- rights


@root_only
def test_a_daemon_gives_up_its_rights_and_groups_and_keeps_its_files(daemons: Daemons, queue: Path) -> None:
    """Log and pid file are in a directory of root's, which the user cannot write into."""
    for entry in (queue, *queue.rglob("*")):
        os.chown(entry, OTHER_USER, OTHER_USER)
    log, pid_file = daemons.place / "pool.log", daemons.place / "demo.pid"
    identity = ("--user", str(OTHER_USER), "--group", str(OTHER_USER))
    pid = daemons.start(
        str(queue), *identity, "--log-file", str(log), "--pid-file", str(pid_file), *TRUE, extra_groups=[4, 24]
    )
    for one in daemons.alive():
        status = status_of(one.pid)
        assert status["Uid"].split() == [str(OTHER_USER)] * 4
        assert status["Gid"].split() == [str(OTHER_USER)] * 4
        assert status["Groups"].split() == [str(OTHER_USER)]
        assert {int(status[name], 16) for name in ("CapEff", "CapPrm", "CapAmb")} == {0}
    assert log.stat().st_uid == OTHER_USER
    # A user who could write there could have root signal any process.
    assert (pid_file.stat().st_uid, pid_file.read_text()) == (0, f"{pid}\n")
    assert (daemons.run_dir / "demo").stat().st_uid == OTHER_USER
    handled(queue)
    daemons.stop()  # root finds it
    assert "pool demo ends" in log.read_text()
    assert pid_file.read_text() == ""  # it may not remove it
    assert process(daemons.start(str(queue), *identity, "--pid-file", str(pid_file), *TRUE)).is_there


@root_only
def test_processes_of_a_daemon_that_changed_its_user_see_each_other(daemons: Daemons, queue: Path) -> None:
    """The kernel hides them from their user until something is run; a scrape would show no memory."""
    for entry in (queue, *queue.rglob("*")):
        os.chown(entry, OTHER_USER, OTHER_USER)
    identity = ("--user", str(OTHER_USER), "--group", str(OTHER_USER))
    ended = daemons.run(daemons.words(str(queue), *identity, *TRUE, listen="127.0.0.1:0"))
    assert ended.returncode == 0, ended
    address = re.search(r"http://127.0.0.1:(\d+)/metrics", daemons.log())
    assert address
    text = _get(int(address[1]), "metrics").decode()
    sizes = re.findall(r"(?m)^orchestrator_worker_proportional_memory_bytes\S* (\S+)$", text)
    assert len(sizes) == 2
    assert all(float(size) > 0 for size in sizes)


@root_only
@pytest.mark.parametrize(
    ("words", "uid", "groups"),
    [
        (["--group", "daemon"], 0, [1]),
        (["--user", "daemon"], 1, [1]),
        (["--user", "1", "--group", str(OTHER_USER)], 1, [OTHER_USER, 1]),
    ],
    ids=["group alone", "user by name", "user and group by number"],
)
def test_supplementary_groups_are_those_of_who_it_becomes(
    daemons: Daemons, queue: Path, words: list[str], uid: int, groups: list[int]
) -> None:
    for entry in (queue, *queue.rglob("*")):
        os.chown(entry, uid, groups[0])
    status = status_of(daemons.start(str(queue), *words, *TRUE, extra_groups=[4, 24]))
    assert status["Uid"].split()[1] == str(uid)
    assert status["Gid"].split()[1] == str(groups[0])
    assert groups[0] in map(int, status["Groups"].split())
    assert set(map(int, status["Groups"].split())) <= set(groups)


@root_only
@pytest.mark.parametrize("flag", ["--log-file", "--pid-file"])
@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to], ids=["link", "second name"])
def test_root_writes_into_no_file_that_the_user_linked_to(
    daemons: Daemons, queue: Path, link: Callable[[Path, Path], None], flag: str
) -> None:
    theirs, secret = daemons.place / "theirs", daemons.place / "secret"
    theirs.mkdir()
    os.chown(theirs, OTHER_USER, OTHER_USER)
    secret.write_text("kept\n")
    link(theirs / "file", secret)
    identity = ("--user", str(OTHER_USER), "--group", str(OTHER_USER))
    ended = daemons.run(daemons.words(str(queue), *identity, flag, str(theirs / "file"), *TRUE))
    assert ended.returncode == 1
    assert str(theirs / "file") in ended.stderr
    assert (secret.read_text(), secret.stat().st_uid) == ("kept\n", 0)


def test_a_user_who_is_not_root_becomes_nobody_else(daemons: Daemons, queue: Path) -> None:
    prefix = unprivileged()
    if isinstance(prefix, str):
        pytest.skip(prefix)
    uid = OTHER_USER if IS_ROOT else os.getuid()
    daemons.run_dir.mkdir(mode=0o700)
    for entry in (daemons.run_dir, queue, *queue.rglob("*")):
        os.chown(entry, uid, -1)
    environment = {key: text for key, text in daemons.environment().items() if not IS_ROOT or key != "PYTHONPATH"}
    for user, group, text in (
        ("root", None, "only root may become user root"),
        (None, "0", "only root may become group 0"),
        (str(uid), str(OTHER_USER if IS_ROOT else os.getgid()), ""),
    ):
        flags = [word for flag, name in (("--user", user), ("--group", group)) if name for word in (flag, name)]
        ended = daemons.run([*prefix, *daemons.words(str(queue), *flags, *TRUE)[1:]], env=environment)
        assert ended.returncode == (1 if text else 0), ended
        assert text in ended.stderr
    handled(queue)


# ---- another root


JAILED = """
import os
def handle(message):
    if message.name == "bad":
        raise LookupError("no such customer")
    if message.name == "fatal":
        os._exit(3)
"""

JAIL = """
set -e
mount -t tmpfs none "$JAIL"
cd "$JAIL"
chmod 755 .
mkdir proc dev run var
touch dev/null
mount --bind /proc proc
mount --bind /dev/null dev/null
cd "$PLACE"
exec "$@"
"""


@root_only
def test_a_daemon_in_a_chroot_that_has_only_the_queue_and_proc_handles_messages(daemons: Daemons) -> None:
    """In a mount namespace of its own. Whatever is still to be imported would not be found."""
    can_unshare = shutil.which("unshare") and subprocess.run(["unshare", "-m", "true"], check=False).returncode == 0
    if not can_unshare:
        pytest.skip("no mount namespace can be made here")
    (daemons.place / "jailed.py").write_text(JAILED)
    jail = daemons.place / "jail"
    jail.mkdir()
    words = daemons.words(
        *("/var/queue", "--handler", "jailed:handle", "--workers", "2"),
        *("--max-attempts", "2", "--retry-backoff", "10ms"),
        *("--chroot-dir", str(jail), "--pid-file", "/run/demo.pid"),
        listen="127.0.0.1:0",
        run_dir=Path("/run"),
    )
    ended = daemons.run(
        ["unshare", "-m", "sh", "-c", JAIL, "sh", *words],
        env=daemons.environment(JAIL=str(jail), PLACE=str(daemons.place)),
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    found = STARTED.match(ended.stdout)
    assert found, ended
    inside = Path(f"/proc/{found[2]}/root")  # the namespace is the daemon's, and ends with it
    assert sorted(one.name for one in inside.iterdir()) == ["dev", "proc", "run", "var"]
    queue, log = inside / "var" / "queue", inside / "run" / "demo" / "log"
    for name in ("good", "bad", "fatal"):
        drop(queue, name, b"x")
    until(lambda: is_empty(queue))
    assert sorted(one.name.partition("~")[2] or one.name for one in (queue / "errors").iterdir()) != []
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
        os.kill(int(found[2]), number)
    address = re.search(r"http://127.0.0.1:(\d+)/metrics", log.read_text())
    assert address
    for path in ("metrics", "api/status", "readyz"):
        assert _get(int(address[1]), path).startswith(b"HTTP/1.")
    until(lambda: "reloaded" in log.read_text())
    assert (inside / "run" / "demo.pid").read_text() == f"{found[2]}\n"
    text = log.read_text()
    os.kill(int(found[2]), signal.SIGTERM)
    until(lambda: not daemons.alive())
    assert not re.search(r"No module|ImportError|No such file|Traceback", text), text


def _get(port: int, path: str) -> bytes:
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.sendall(f"GET /{path} HTTP/1.0\r\n\r\n".encode())
        return b"".join(iter(lambda: connection.recv(65536), b""))


@root_only
def test_a_chroot_without_proc_is_refused(daemons: Daemons, queue: Path) -> None:
    ended = daemons.run(daemons.words(str(queue), "--chroot-dir", str(daemons.place), *TRUE))
    assert ended.returncode == 1
    assert "there is no /proc in" in ended.stderr


# ---- the original beside us


HAS_ORIGINAL = importlib.util.find_spec("pyzenkit") is not None

ORIGINAL = """
import sys
from pyzenkit.zendaemon import DemoDaemonComponent, ZenDaemon
place = sys.argv.pop(1)
files = {f"path_{key}": place for key in ("cfg", "var", "log", "run", "tmp")}
ZenDaemon(name="twin", **files, default_config_file=None, default_config_dir=None, components=[DemoDaemonComponent()],
    schedule=[("start",)], schedule_after=[(3600, "default")]).run()
"""


class Twin:
    """A daemon of ours or of the original, started with the same flags."""

    def __init__(self, which: str, daemons: Daemons, queue: Path) -> None:
        self._which, self._daemons, self._queue = which, daemons, queue

    def start(self, *flags: str, **more: Any) -> subprocess.CompletedProcess[str]:
        """What became of the command."""
        if self._which == "ours":
            return self._daemons.run(self._daemons.words(str(self._queue), *flags, *TRUE), **more)
        return self._daemons.run([sys.executable, "-c", ORIGINAL, str(self._daemons.place), "--quiet", *flags], **more)

    def leader(self) -> int:
        """The daemon's process: the one that was given to us when its parents had ended."""
        return until(lambda: next(iter(self._orphans()), 0))

    def _orphans(self) -> list[int]:
        mine = [one.pid for one in self._daemons.alive()]
        return [pid for pid in mine if psutil.Process(pid).ppid() == os.getpid() and os.getsid(pid) != pid]


def twins(reason: str) -> Any:
    """Run a test on ours, and see it fail on the original because of *reason*."""
    marks = [
        pytest.mark.skipif(not HAS_ORIGINAL, reason="the original (PyPI pyzenkit) is not installed"),
        pytest.mark.xfail(strict=True, raises=AssertionError, reason=reason),
    ]
    return pytest.mark.parametrize("twin", ["ours", pytest.param("original", marks=marks)], indirect=True)


@pytest.fixture(name="twin")
def _twin(request: pytest.FixtureRequest, daemons: Daemons, queue: Path) -> Twin:
    return Twin(request.param, daemons, queue)


@twins("the name holds the launcher's number, the content the daemon's")
def test_Z3_the_pid_file_has_the_name_that_was_given_and_the_daemons_number(place: Path, twin: Twin) -> None:
    path = place / "x.pid"
    twin.start("--pid-file", str(path))
    number = str(twin.leader())
    until(lambda: [one for one in place.glob("x*.pid") if one.read_text().strip() == number])
    assert path.exists()


@twins("text goes to os.umask as it is")
def test_Z13_a_umask_is_octal_text(place: Path, twin: Twin) -> None:
    assert twin.start("--umask", "027").returncode == 0
    assert status_of(twin.leader())["Umask"] == "0027"


@root_only
@twins("setgid and setuid alone leave root's groups")
def test_Z14_supplementary_groups_of_root_are_given_up(place: Path, queue: Path, twin: Twin) -> None:
    place.chmod(0o1777)
    for entry in (queue, *queue.rglob("*")):
        os.chown(entry, 1, 1)
    twin.start("--user", "daemon", "--group", "daemon", extra_groups=[4, 24])
    status = status_of(twin.leader())
    assert status["Uid"].split()[1] == "1"
    assert not {"4", "24"} & set(status["Groups"].split())


@twins("the first parent ends with 0 before anything was tried")
def test_Z15_a_launch_that_fails_is_no_success(place: Path, twin: Twin) -> None:
    assert twin.start("--pid-file", str(place / "none" / "x.pid")).returncode != 0


def test_Z15_nothing_is_left_of_a_launch_that_failed(daemons: Daemons, queue: Path) -> None:
    ended = daemons.run(daemons.words(str(queue), "--pid-file", str(daemons.place / "none" / "x.pid"), *TRUE))
    assert ended.returncode == 1
    assert not daemons.alive()
