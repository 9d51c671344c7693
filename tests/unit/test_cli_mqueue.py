"""
test_cli_mqueue - orchestrator mqueue as a person or a script uses it, and python -m workers.message_queue beside it
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from orchestrator.cli import cli, mqueue
from tests.rig_mq import ROOT, names
from workers.message_queue import MessageQueue
from workers.posix_mq import Mq

new_name = pytest.fixture(names, name="new_name")
COMMANDS = {
    "orchestrator": ("orchestrator", "mqueue"),
    "tool": ("workers.message_queue",),
}


@pytest.fixture
def name(new_name: Callable[[], str]) -> str:
    return new_name()


@pytest.fixture(params=COMMANDS)
def ran(request: pytest.FixtureRequest) -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """Runs either command to its end."""

    def run(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", *COMMANDS[request.param], *arguments]
        done = subprocess.run(command, cwd=ROOT, input=stdin, capture_output=True, timeout=60, check=False)
        assert b"Traceback" not in done.stderr
        return done

    return run


def asked(*arguments: str, code: int = 0) -> Result:
    """Run orchestrator mqueue in this process: what neither reads nor writes messages."""
    result = CliRunner().invoke(cli, ["mqueue", *arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


# ---- what both commands do


def test_what_was_written_is_read(ran, name: str) -> None:
    assert ran("--write", name, stdin=b"hello!\n\nlast").returncode == 0
    done = ran("--read", "--count", "3", name)
    assert (done.stdout, done.stderr, done.returncode) == (b"hello!\n\nlast\n", b"", 0)


def test_create_makes_a_queue_of_the_published_size_and_says_nothing(ran, name: str) -> None:
    done = ran("--create", name)
    assert (done.stdout, done.stderr, done.returncode) == (b"", b"", 0)
    with closing(Mq.open(name)) as queue:
        found = queue.attributes()
    assert (found.max_messages, found.max_size) == (10, 8096)


@pytest.mark.parametrize("what", ["--create", "--read", "--write"])
def test_each_of_them_makes_the_queue_as_it_was_asked_for(ran, name: str, what: str) -> None:
    limits = ("--max-messages", "3", "--max-message-size", "20", "--mode", "640")
    assert ran(*limits, "--timeout", "0", what, name).returncode == 0
    with closing(Mq.open(name)) as queue:
        found = queue.attributes()
        assert (found.max_messages, found.max_size) == (3, 20)
        assert stat.S_IMODE(os.fstat(queue.fd).st_mode) == 0o640


@pytest.mark.parametrize("arguments", [(), ("--read", "--write"), ("--create", "--read")])
def test_exactly_one_thing_is_to_be_done(ran, name: str, arguments: tuple[str, ...]) -> None:
    assert ran(*arguments, name).returncode == 2
    with pytest.raises(FileNotFoundError):
        Mq.open(name)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--count", "-1"),
        ("--priority", "32768"),
        ("--priority", "-1"),
        ("--timeout", "-1"),
        ("--mode", "1777"),
        ("--mode", "rw"),
        ("--max-messages", "ten"),
    ],
)
def test_option_that_cannot_be_is_a_usage_error(ran, name: str, arguments: tuple[str, ...]) -> None:
    done = ran(*arguments, "--create", name)
    assert done.returncode == 2
    assert arguments[0].encode() in done.stderr


def test_error_is_one_line_and_exit_code_1(ran) -> None:
    for arguments in (("--create", "no-slash"), ("--create", "--max-messages", "0", "/x"), ("--read", "/a/b")):
        done = ran(*arguments)
        assert (done.returncode, done.stdout) == (1, b"")
        assert done.stderr.count(b"\n") == 1


def test_higher_priority_is_read_first(ran, name: str) -> None:
    ran("--write", name, stdin=b"later\n")
    ran("--write", "--priority", "9", name, stdin=b"first\nsecond\n")
    assert ran("--read", "--timeout", "0", name).stdout == b"first\nsecond\nlater\n"


def test_count_ends_and_leaves_the_rest(ran, name: str) -> None:
    assert ran("--write", "--count", "2", name, stdin=b"1\n2\n3\n").returncode == 0
    assert ran("--read", "--count", "0", name).stdout == b""
    assert ran("--read", "--count", "1", name).stdout == b"1\n"
    done = ran("--read", "--count", "2", "--timeout", "0", name)
    assert (done.stdout, done.returncode) == (b"2\n", 1), "one is missing"
    assert b"Timed out waiting for the message queue." in done.stderr


def test_count_of_lines_does_not_wait_for_one_more(name: str) -> None:
    """Its input stays open, as that of a program that goes on."""
    command = [sys.executable, "-m", "workers.message_queue", "--write", "--count", "1", name]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(b"only\n")
        process.stdin.flush()
        assert process.wait(20) == 0


def test_help_names_every_option_of_the_tool() -> None:
    command = [sys.executable, "-m", "workers.message_queue", "--help"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout
    for option in ("--create", "--read", "--write", "--max-messages", "--max-message-size", "--count", "--priority"):
        assert option in said
        assert option in asked("--help").stdout


def test_reader_that_may_not_send_reads_all_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another user's queue of mode 644: root may always, so the refusal is played."""
    with MessageQueue(name, 3, 10) as queue:
        queue.put("x")
    program = (
        "import sys; from workers.system import System; mq_open = System.mq_open\n"
        "def refuse(name, *, access, **options):\n"
        "    if access == 'rw': raise PermissionError(13, 'Permission denied', name)\n"
        "    return mq_open(name, access=access, **options)\n"
        "System.mq_open = staticmethod(refuse)\n"
        f"from workers.message_queue_tool import main; sys.exit(main(['--read', '--timeout', '0', {name!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, timeout=60, check=False)
    assert (done.stdout, done.returncode) == (b"x\n", 0), done.stderr


# ---- what only orchestrator mqueue does


def test_info_says_what_the_kernel_says_for_people_and_for_programs(name: str) -> None:
    with MessageQueue(name, 3, 10, mode=0o620) as queue:
        queue.put("x")
        found = json.loads(asked("--info", "--json", name).stdout)
        assert found.pop("msg_max") == int(Path("/proc/sys/fs/mqueue/msg_max").read_text())
        assert found.pop("msgsize_max") > 0
        expected = {"waiting": 1, "max_messages": 3, "max_message_size": 10, "mode": "620", "uid": os.getuid()}
        assert found == {"name": name, **expected}
        assert f"name {name}\nwaiting 1\nmax_messages 3\n" in asked("--info", name).stdout


def test_unlink_removes_and_what_is_not_there_is_an_error(name: str) -> None:
    MessageQueue(name, 1, 1).close()
    assert asked("--unlink", name).output == ""
    for arguments in (("--unlink", name), ("--info", name)):
        assert asked(*arguments, code=1).stderr == f"orchestrator: cannot use {name}: No such file or directory\n"
    assert "no name of a message queue" in asked("--unlink", "x/y", code=1).stderr


def test_usage_that_makes_no_sense_is_said(name: str) -> None:
    assert "needs the NAME" in asked("--info", code=2).stderr
    assert "takes no NAME" in asked("--list", name, code=2).stderr
    assert "--json is for" in asked("--create", "--json", name, code=2).stderr


def test_list_says_how_to_make_the_names_visible_where_they_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqueue, "DIRECTORY", str(tmp_path))
    said = asked("--list", code=1).stderr
    assert said.count("\n") == 1
    assert f"mount -t mqueue none {tmp_path}" in said


def test_list_names_the_queues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory stands for the mounted one; that the kernel's is one, its magic number says."""
    for name in ("b", "a\n"):
        (tmp_path / name).touch()
    monkeypatch.setattr(mqueue, "DIRECTORY", str(tmp_path))
    monkeypatch.setattr(mqueue, "filesystem_magic", lambda path: mqueue.MAGIC)
    assert asked("--list").stdout == "/a\\n\n/b\n"
    assert json.loads(asked("--list", "--json").stdout) == ["/a\n", "/b"]
