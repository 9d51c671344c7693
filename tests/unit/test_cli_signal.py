"""The command signal, on processes that hold a pool's name as a master does."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from orchestrator import rundir
from orchestrator.cli import action, cli
from orchestrator.cli import signal as command
from orchestrator.master import SIGNALS
from tests.waiting import until
from workers.system import process_state

# Holds each name, answers "ping" with its files, writes the one that a signal asks for, and says which came.
MASTER = textwrap.dedent(
    """
    import json, os, signal, socket, sys, threading
    from pathlib import Path
    from orchestrator.rundir import RunDir
    from workers.saved import save

    (place, name, writes) = sys.argv[1:]
    held = RunDir.acquire(Path(place), name)
    files = {"runlog": f"{place}/{name}.runlog", "state": None}
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(held.control_path))
    listener.listen()

    def answer():
        while True:
            asked, _ = listener.accept()
            asked.recv(100)
            asked.send(json.dumps({"ok": True, **files}).encode() + b"\\n")
            asked.close()

    threading.Thread(target=answer, daemon=True).start()
    # A handler could be interrupted by the next one before it has said anything.
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    for number in (1, 2, 3, 10, 12, 14, 15, 21, 22):
        signal.signal(number, lambda *_: None)
    print("ready", flush=True)
    while True:
        number = os.read(reader, 1)[0]
        if writes == "writes" and number == signal.SIGUSR1:
            save(Path(files["runlog"]), {})
        print(signal.Signals(number).name, flush=True)
        if number == signal.SIGQUIT:
            os._exit(0)
    """
)


@contextmanager
def master(place: Path, name: str, *, writes: bool = True) -> Iterator[subprocess.Popen[str]]:
    words = [sys.executable, "-c", MASTER, str(place), name, "writes" if writes else "silent"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def ran(*words: str, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, words, prog_name="orchestrator")
    assert result.exit_code == code, result.output
    return result


def came(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_there_is_a_word_for_each_signal_that_a_master_obeys() -> None:
    assert set(command.SAID) == {"check", *(number.name.removeprefix("SIG").lower() for number in SIGNALS)}


@pytest.mark.parametrize("which", ["hup", "int", "term", "alrm", "ttin", "ttou"])
def test_Z2_a_signal_reaches_the_pool_of_that_name_and_it_says_so(tmp_path: Path, which: str) -> None:
    with master(tmp_path, "a") as process:
        said = ran("signal", which, "--run-dir", str(tmp_path), "--name", "a").stdout.splitlines()
        name = f"SIG{which.upper()}"
        assert said[0] == f"Sending signal '{name}' to process '{process.pid}' [{tmp_path}/a/pid]"
        assert said[1].startswith("pool a: it ")
        assert came(process) == name


def test_check_looks_and_signals_nobody(tmp_path: Path) -> None:
    with master(tmp_path, "a") as process:
        said = ran("signal", "check", "--run-dir", str(tmp_path)).stdout
        assert f"Sending signal '0' to process '{process.pid}'" in said
        assert "it lives" in said
        ran("signal", "hup", "--run-dir", str(tmp_path))
        assert came(process) == "SIGHUP"  # and nothing before it


def test_usr1_waits_for_the_file_and_prints_its_path(tmp_path: Path) -> None:
    """A file that was there before is not taken for the new one."""
    with master(tmp_path, "a") as process:
        for _ in range(2):
            said = ran("signal", "usr1", "--run-dir", str(tmp_path)).stdout
            assert said.endswith(f"pool a: the runlog is in {tmp_path}/a.runlog\n")
            assert came(process) == "SIGUSR1"


def test_a_file_that_does_not_come_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.runlog").write_text("{}")
    monkeypatch.setattr(command, "_report", lambda *_: tmp_path / "a.runlog")  # its limit is the same, and too short
    with master(tmp_path, "a", writes=False):
        said = ran("signal", "usr1", "--run-dir", str(tmp_path), "--timeout", "0.5", code=1)
        assert "was not written within 0.5 s" in said.stderr


def test_a_directory_that_hangs_is_not_waited_for_and_the_signal_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "_version", lambda _: signal.pause())
    monkeypatch.setattr(command, "_report", lambda *_: tmp_path / "a.runlog")  # as above
    with master(tmp_path, "a") as process:
        said = ran("signal", "usr1", "--run-dir", str(tmp_path), "--timeout", "0.5", code=1)
        assert "was not written within 0.5 s" in said.stderr
        assert came(process) == "SIGUSR1"


def test_a_master_that_was_stopped_is_waited_for_no_longer_than_asked(tmp_path: Path) -> None:
    with master(tmp_path, "a") as process:
        process.send_signal(signal.SIGSTOP)
        until(lambda: process_state(process.pid) == "T")
        said = ran("signal", "usr1", "--run-dir", str(tmp_path), "--timeout", "0.1", code=1)
        assert "nothing was sent" in said.stderr
        assert "said nothing for 0.1 s" in said.stderr


@pytest.mark.parametrize("words", [("signal", "usr1"), ("scale", "in", "2")], ids=["signal", "scale"])
def test_nothing_is_asked_at_the_socket_of_another_process(tmp_path: Path, words: tuple[str, ...]) -> None:
    """Its user has put a link to the socket of another pool, or of any program of root's, in place of his own."""
    with master(tmp_path, "a") as process, master(tmp_path, "b") as other:
        (tmp_path / "a" / "control").unlink()
        (tmp_path / "a" / "control").symlink_to(tmp_path / "b" / "control")
        said = ran(*words, "--run-dir", str(tmp_path), "--name", "a", code=1)
        assert f"is not of process {process.pid}: nothing was asked" in said.stderr
        for name, one in (("a", process), ("b", other)):
            ran("signal", "hup", "--run-dir", str(tmp_path), "--name", name)
            assert came(one) == "SIGHUP"  # and nothing before it


def test_a_pool_without_that_file_is_not_signalled(tmp_path: Path) -> None:
    with master(tmp_path, "a") as process:
        assert "has no state" in ran("signal", "usr2", "--run-dir", str(tmp_path), code=1).stderr
        ran("signal", "quit", "--run-dir", str(tmp_path))
        assert came(process) == "SIGQUIT"


# ---- the original beside us


ORIGINAL = """
import sys
from pyzenkit.zendaemon import DemoDaemonComponent, ZenDaemon
place, name = sys.argv.pop(1), sys.argv.pop(1)
files = {f"path_{key}": place for key in ("cfg", "var", "log", "run", "tmp")}
ZenDaemon(name=name, **files, default_config_file=None, default_config_dir=None, components=[DemoDaemonComponent()],
    ).run()
"""


class Twin:
    """Daemons, and the command that signals them: ours, or the original's with daemons that stand for its own."""

    def __init__(self, place: Path, *, is_ours: bool) -> None:
        self.place, self.is_ours = place, is_ours

    @contextmanager
    def daemon(self, name: str) -> Iterator[subprocess.Popen[str]]:
        """One that says which signals come, with the pid file that a daemon of its kind has."""
        with master(self.place, name) as process:
            if not self.is_ours:
                (self.place / f"{name}.{process.pid:05x}.pid").write_text(f"{process.pid}\n")
            yield process

    def signal(self, name: str, *flags: str) -> int:
        """Send HUP to the daemon of that name; the exit code."""
        if self.is_ours:
            words = ("run", "--action", "signal-hup", "--name", name, "--run-dir", str(self.place))
            return CliRunner().invoke(cli, words, prog_name="orchestrator").exit_code
        words = (sys.executable, "-c", ORIGINAL, str(self.place), name, "--action", "signal-hup", *flags)
        return subprocess.run(words, capture_output=True, check=False).returncode


def twins(reason: str) -> Any:
    """Run a test on ours, and see it fail on the original because of *reason*."""
    is_there = importlib.util.find_spec("pyzenkit") is not None
    marks = [
        pytest.mark.skipif(not is_there, reason="the original (PyPI pyzenkit) is not installed"),
        pytest.mark.xfail(strict=True, raises=AssertionError, reason=reason),
    ]
    return pytest.mark.parametrize("twin", ["ours", pytest.param("original", marks=marks)], indirect=True)


@pytest.fixture(name="twin")
def _twin(request: pytest.FixtureRequest, tmp_path: Path) -> Twin:
    return Twin(tmp_path, is_ours=request.param == "ours")


def has_come(process: subprocess.Popen[str]) -> bool:
    """Whether it has heard HUP. Of two that wait the kernel delivers the later one first, but not of three sent so."""
    heard = []
    for number in (signal.SIGTERM, signal.SIGTTIN):
        process.send_signal(number)
        while number.name not in heard:
            heard.append(came(process))
    return "SIGHUP" in heard


@twins("the sender looks for a pid file with its own number in the name")
def test_Z2_the_sender_finds_the_daemon(twin: Twin) -> None:
    with twin.daemon("a") as process:
        twin.signal("a")
        assert has_come(process)


@twins("there is no daemon, and all is fine")
def test_Z2_who_signals_nobody_has_failed(twin: Twin) -> None:
    assert twin.signal("a") == 3


@twins("every pid file is meant whose name begins so")
def test_Z16_a_name_is_no_prefix(twin: Twin) -> None:
    with twin.daemon("ab") as process:
        twin.signal("a", "--paralel")
        assert not has_come(process)


def test_Z16_a_name_is_the_whole_name_and_the_dead_hide_nobody(tmp_path: Path) -> None:
    """ "a" is no prefix of "ab"; a stale pid file beside is passed over; and what failed has an exit code."""
    with master(tmp_path, "a") as dead:
        dead.kill()
        dead.wait()
    with master(tmp_path, "ab") as process:
        place = ("--run-dir", str(tmp_path))
        said = ran("signal", "usr1", *place, "--name", "a", code=3)
        assert "no pool called a is running" in said.stderr
        assert "Sending" not in said.output
        ran("signal", "hup", *place)  # the only one that lives
        assert came(process) == "SIGHUP"
    assert ran("signal", "check", "--run-dir", str(tmp_path), code=3).stdout == ""


def test_a_signal_goes_to_nobody_who_got_the_pid_of_a_dead_master(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with subprocess.Popen(["sleep", "60"]) as innocent:
        found = rundir.Running("a", innocent.pid, 1, tmp_path)
        monkeypatch.setattr(rundir, "find", lambda run_dir, name: found)
        ran("signal", "term", "--run-dir", str(tmp_path), code=3)
        assert innocent.poll() is None
        innocent.kill()


def test_a_process_of_another_user_is_a_failure_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, os.strerror(1))

    with master(tmp_path, "a"):
        monkeypatch.setattr(signal, "pidfd_send_signal", refuse)
        assert "Operation not permitted" in ran("signal", "hup", "--run-dir", str(tmp_path), code=1).stderr


# ---- as zendaemon spells it


def test_run_action_does_what_the_commands_do(tmp_path: Path) -> None:
    place = ("--run-dir", str(tmp_path))
    with master(tmp_path, "a") as process:
        said = ran("run", "--action", "signal-usr1", *place).stdout
        assert said.startswith(f"Sending signal 'SIGUSR1' to process '{process.pid}' [")
        assert came(process) == "SIGUSR1"
        config = tmp_path / "pool.toml"
        config.write_text(f'[pool]\nname = "a"\nrun_dir = "{tmp_path}"\n[[queue]]\nurl = "q"\nhandler = "a:b"\n')
        ran("run", "--action", "signal-hup", "--config", str(config))
        assert came(process) == "SIGHUP"
        ran("run", "--action", "signal-hup", *place, "--name", "b", code=3)
    assert '"name": "a"' in ran("run", "--action", "config-view", "--config", str(config)).stdout
    for one in ("runlogs-list", "runlogs-evaluate", "runlog-view"):
        assert "run log" in ran("run", "--action", one, *place, code=1).stderr
    ran("run", "--action", "signal-none", code=2)


def test_every_action_of_the_seed_is_there() -> None:
    names = {f"signal-{name}" for name in ("check", "alrm", "hup", "int", "term", "usr1", "usr2")}
    names |= {"config-view", "runlog-dump", "runlog-view", "runlogs-dump", "runlogs-list", "runlogs-evaluate"}
    assert names <= set(action.ACTIONS)
