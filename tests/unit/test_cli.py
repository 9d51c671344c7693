"""
test_cli - the commands as a person or a script uses them, on real queues and real processes
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from orchestrator import cli as cli_package
from orchestrator import control, rundir
from orchestrator.cli import COMMANDS, Entry, cli
from workers.board import Board, Header, HeaderText, Q
from workers.errors import QueueUnavailable
from workers.queues.open import open_queue
from workers.queues.spool import Spool
from workers.system import start_ticks

# A master with nothing to master: it locks its directory, makes a board, and ends as its first signal says.
MASTER = """
import os, signal, sys
from pathlib import Path
from orchestrator.rundir import RunDir
from workers.board import Board, Header, HeaderText, Q
from workers.system import start_ticks

runs = [RunDir.acquire(Path(sys.argv[1]), name) for name in sys.argv[2:]]
for run in runs:
    board = Board.create(run.board_path)
    board.header.set_text(HeaderText.NAME, run.path.name)
    board.header.words[Header.MASTER_PID] = os.getpid()
numbers = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
print("ready", flush=True)
got = signal.sigwait(numbers)
print(signal.Signals(got).name, flush=True)
if got == signal.SIGHUP:
    signal.sigwait(numbers)
for run in runs:
    run.release()
"""


@pytest.fixture
def queue(tmp_path: Path) -> str:
    return str(tmp_path / "in")


def ran(*arguments: str, stdin: bytes = b"", code: int = 0) -> Result:
    result = CliRunner().invoke(cli, list(arguments), input=stdin)
    assert result.exit_code == code, (result.output, result.exception)
    return result


def waiting(queue: str) -> list[bytes]:
    """The bodies that wait, in the order of their names."""
    with open_queue(queue) as opened:
        listed = sorted(opened.list("waiting"), key=lambda one: one.name)
    return [Path(one.path).read_bytes() for one in listed]


def put_into_errors(queue: str, name: str, body: bytes = b"poison") -> None:
    """As a filer program rejects: a rename, with a .meta beside it."""
    with open_queue(queue, create=True):
        pass
    errors = Path(queue) / "errors"
    (errors / name).write_bytes(body)
    (errors / f"{name}.meta").write_text(
        json.dumps({"reason": "no such\x1b[2J thing", "odd": "\ud800", "traceback": "line 1\nline 2"})
    )


@contextmanager
def master(run_dir: Path, *names: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", MASTER, str(run_dir), *names], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


# ---- the group


def test_help_and_version_load_no_heavy_module() -> None:
    program = textwrap.dedent(
        """
        import sys
        from click.testing import CliRunner
        from orchestrator.cli import cli
        for arguments in (["--help"], ["-h"], ["--version"], ["put", "--help"], ["ls", "-h"]):
            assert CliRunner().invoke(cli, arguments).exit_code == 0, arguments
        heavy = ("pydantic", "prometheus_client", "multiprocess", "rich", "psutil")
        print([name for name in heavy if name in sys.modules])
        """
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_help_lists_every_command_and_version_names_the_program() -> None:
    text = ran("--help").output
    assert all(f"  {name} " in text for name in COMMANDS)
    assert ran("--version").output.startswith("orchestrator, version ")


@pytest.mark.parametrize(
    "name", [name for name, entry in COMMANDS.items() if "queue:" in entry.spec or "pool:" in entry.spec]
)
def test_the_line_in_the_list_is_the_first_of_the_commands_help(name: str) -> None:
    text = " ".join(ran(name, "-h").output.split())
    assert COMMANDS[name].help.rstrip(".") in text


def test_a_broken_command_breaks_only_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMMANDS, "bench", Entry("orchestrator.cli.nothing:bench", "Broken."))
    assert "Broken." in ran("--help").output
    assert "the command bench cannot be loaded" in ran("bench", code=1).stderr


def test_an_unknown_command_is_a_usage_error() -> None:
    assert "No such command" in ran("pull", code=2).stderr


def test_an_error_on_purpose_is_one_line_without_a_traceback(tmp_path: Path) -> None:
    result = ran("ls", str(tmp_path / "nothing"), code=1)
    assert result.stdout == ""
    assert result.stderr.startswith("orchestrator: ")
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (rundir.NotRunning("gone"), 3, "orchestrator: gone\n"),
        (rundir.Ambiguous("which", ("a", "b")), 2, "orchestrator: which\n"),
        (QueueUnavailable("full"), 1, "orchestrator: full\n"),
        (PermissionError(13, "Permission denied", "a\nb"), 1, "orchestrator: cannot use a\\nb: Permission denied\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_errors_have_their_exit_codes(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, text: str
) -> None:
    @click.command()
    def fail() -> None:
        raise error

    monkeypatch.setattr(cli_package, "fail", fail, raising=False)
    monkeypatch.setitem(COMMANDS, "fail", Entry("orchestrator.cli:fail", "Fail."))
    assert ran("fail", code=code).stderr.strip() == text.strip()


@pytest.mark.parametrize(("shell", "word"), [("bash", "complete"), ("zsh", "compdef"), ("fish", "complete")])
def test_completion_prints_a_script_for_each_shell(shell: str, word: str) -> None:
    text = ran("completion", shell).stdout
    assert word in text
    assert "_ORCHESTRATOR_COMPLETE" in text


def test_the_module_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "orchestrator", "pull"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "orchestrator" in done.stderr


# ---- put


def test_put_makes_the_queue_and_prints_the_name(queue: str) -> None:
    result = ran("put", queue, stdin=b"a\0b\n")
    assert waiting(queue) == [b"a\0b\n"]
    assert (Path(queue) / "incoming" / result.stdout.strip()).read_bytes() == b"a\0b\n"


def test_put_makes_no_queue_where_the_parent_is_missing(tmp_path: Path) -> None:
    ran("put", str(tmp_path / "a" / "b"), stdin=b"x", code=1)
    assert not (tmp_path / "a").exists()


def test_put_takes_files_links_and_standard_input_in_order(queue: str, tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"1")
    (tmp_path / "link").symlink_to(tmp_path / "one")
    names = ran("put", queue, str(tmp_path / "one"), "-", str(tmp_path / "link"), stdin=b"2").stdout.split()
    assert names == sorted(names)
    assert waiting(queue) == [b"1", b"2", b"1"]
    assert (tmp_path / "one").exists()


def test_put_reads_a_fifo(queue: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    writer = threading.Thread(target=(tmp_path / "fifo").write_bytes, args=(b"flow",))
    writer.start()
    ran("put", queue, str(tmp_path / "fifo"))
    writer.join()
    assert waiting(queue) == [b"flow"]


def test_put_by_name_refuses_the_second_of_it(queue: str) -> None:
    assert ran("put", queue, "--name", "report.csv", stdin=b"x").stdout == "report.csv\n"
    assert "report.csv" in ran("put", queue, "--name", "report.csv", stdin=b"y", code=1).stderr
    assert waiting(queue) == [b"x"]


@pytest.mark.parametrize(("end", "count"), [(b"", 601), (b"\n", 601), (b"\n\n", 602)])
def test_each_line_is_a_message(queue: str, end: bytes, count: int) -> None:
    """More than two batches; an empty line is an empty message; the last newline makes none."""
    lines = [b"%d\r" % number for number in range(600)] + [b"x" * 200_000]
    names = ran("put", queue, "--lines", stdin=b"\n".join(lines) + end).stdout.split()
    assert len(names) == count
    assert waiting(queue) == [*lines, b""][:count]


def test_lines_of_files_are_messages_too(queue: str, tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"a\nb")
    (tmp_path / "two").write_bytes(b"c\n")
    ran("put", queue, "--lines", str(tmp_path / "one"), str(tmp_path / "two"))
    assert waiting(queue) == [b"a", b"b", b"c"]


def test_a_line_is_put_before_the_next_one_is_written(queue: str) -> None:
    """Whoever writes slowly must not wait for a full batch."""
    with subprocess.Popen(
        [sys.executable, "-m", "orchestrator", "put", queue, "--lines"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for line in (b"first", b"second"):
            process.stdin.write(line + b"\n")
            process.stdin.flush()
            name = os.fsdecode(process.stdout.readline().rstrip(b"\n"))
            assert (Path(queue) / "incoming" / name).read_bytes() == line


def test_move_takes_the_file_away(queue: str, tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"1")
    inode = (tmp_path / "one").stat().st_ino
    name = ran("put", queue, "--move", str(tmp_path / "one")).stdout.strip()
    assert not (tmp_path / "one").exists()
    assert (Path(queue) / "incoming" / name).stat().st_ino == inode


def test_a_delayed_message_is_deferred(queue: str) -> None:
    ran("put", queue, "--delay", "600", "--no-durable", stdin=b"x")
    assert waiting(queue) == []
    assert "due 2" in ran("ls", queue, "--state", "deferred").stdout


@pytest.mark.parametrize(
    "options",
    [
        ["--name", "n", "--lines"],
        ["--name", "n", "FILE", "FILE"],
        ["--move"],
        ["--move", "-"],
        ["--move", "--lines", "FILE"],
        ["--move", "--delay", "1", "FILE"],
        ["nothing-there"],
        ["--delay", "-1"],
    ],
)
def test_put_refuses_options_that_do_not_go_together(queue: str, tmp_path: Path, options: list[str]) -> None:
    (tmp_path / "one").touch()
    ran("put", queue, *[str(tmp_path / "one") if one == "FILE" else one for one in options], code=2)
    assert not Path(queue).exists()
    assert (tmp_path / "one").exists()


def test_names_that_were_put_before_an_error_are_printed(queue: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Spool, bodies: object, *, durable: bool | None = None) -> list[str]:
        raise QueueUnavailable("the disk is full", names=("first", "second"))

    monkeypatch.setattr(Spool, "put_many", fail)
    result = ran("put", queue, "--lines", stdin=b"a\nb\nc\n", code=1)
    assert result.stdout == "first\nsecond\n"
    assert result.stderr == "orchestrator: the disk is full\n"


def test_a_queue_that_forgets_takes_messages_but_no_files(tmp_path: Path) -> None:
    ran("put", "null:", stdin=b"x")
    (tmp_path / "one").touch()
    assert "--move" in ran("put", "null:", "--move", str(tmp_path / "one"), code=1).stderr
    assert (tmp_path / "one").exists()


# ---- ls, show, requeue, pause, resume


def test_ls_escapes_for_people_and_tells_programs_the_whole_name(queue: str) -> None:
    ran("put", queue, "--name", "plain", stdin=b"x")
    hostile = "new\nline\x1b[2J\udc80"
    (Path(queue) / "incoming" / hostile).touch()
    text = ran("ls", queue).stdout
    assert "\x1b" not in text
    assert text.count("\n") == 2
    listed = json.loads(ran("ls", queue, "--json").stdout)
    assert {one["name"] for one in listed} == {"plain", hostile}
    assert {one["state"] for one in listed} == {"waiting"}
    assert json.loads(ran("ls", queue, "--json", "--state", "errors").stdout) == []
    assert ran("ls", queue, "--state", "errors").stdout == ""


def test_show_says_why_a_message_is_in_errors(queue: str) -> None:
    put_into_errors(queue, "bad")
    text = ran("show", queue, "bad").stdout
    assert "reason:      no such\\x1b[2J thing\n" in text
    assert "traceback:   line 1\n             line 2\n" in text
    (shown,) = json.loads(ran("show", queue, "bad", "--json").stdout)
    assert (shown["name"], shown["state"], shown["size"]) == ("bad", "errors", 6)
    assert shown["meta"]["traceback"] == "line 1\nline 2"


def test_show_writes_the_body_byte_for_byte(queue: str) -> None:
    body = bytes(range(256)) * 10
    ran("put", queue, "--name", "raw", stdin=body)
    assert ran("show", queue, "raw", "--body").stdout_bytes == body


def test_show_of_a_name_twice_asks_for_the_state(queue: str) -> None:
    put_into_errors(queue, "bad")
    ran("put", queue, "--name", "bad", stdin=b"new")
    assert len(json.loads(ran("show", queue, "bad", "--json").stdout)) == 2
    assert "--state" in ran("show", queue, "bad", "--body", code=2).stderr
    assert ran("show", queue, "bad", "--body", "--state", "waiting").stdout_bytes == b"new"


def test_show_of_what_is_not_there_or_no_file_fails(queue: str) -> None:
    ran("put", queue, "--name", "a", stdin=b"x")
    assert "no message called b" in ran("show", queue, "b", code=1).stderr
    os.mkfifo(Path(queue) / "incoming" / "fifo")
    (Path(queue) / "incoming" / "link").symlink_to("/etc/passwd")
    assert ran("show", queue, "fifo", "--body", code=1).stdout == ""
    assert ran("show", queue, "link", "--body", code=1).stdout == ""


def test_requeue_moves_what_is_in_errors_and_names_what_is_not(queue: str) -> None:
    put_into_errors(queue, "bad")
    result = ran("requeue", queue, "bad", "other", code=1)
    assert result.stdout == "requeued bad\n"
    assert result.stderr == f"orchestrator: not in errors/ of {queue}: other\n"
    assert waiting(queue) == [b"poison"]


def test_pause_and_resume_work_on_the_directory_alone(queue: str) -> None:
    ran("put", queue, stdin=b"x")
    for _ in range(2):
        ran("pause", queue)
        with open_queue(queue) as opened:
            assert opened.is_paused()
    for _ in range(2):
        ran("resume", queue)
        with open_queue(queue) as opened:
            assert not opened.is_paused()


# ---- commands on a pool


@pytest.mark.parametrize("command", [["status"], ["stop"], ["drain"], ["reload"], ["scale", "in", "3"]])
def test_without_a_pool_the_exit_code_is_3(tmp_path: Path, command: list[str]) -> None:
    assert "no pool is running" in ran(*command, "--run-dir", str(tmp_path), code=3).stderr
    assert "no pool called a" in ran(*command, "--run-dir", str(tmp_path), "--name", "a", code=3).stderr


def test_among_several_pools_one_must_be_named(tmp_path: Path) -> None:
    with master(tmp_path, "a", "b"):
        assert "choose one with --name" in ran("stop", "--run-dir", str(tmp_path), code=2).stderr
        lines = ran("status", "--run-dir", str(tmp_path), "--json").stdout.splitlines()
        assert [json.loads(line)["name"] for line in lines] == ["a", "b"]
        only = ran("status", "--run-dir", str(tmp_path), "--json", "--name", "b").stdout
        assert json.loads(only)["name"] == "b"
        assert "pool a on" in ran("status", "--run-dir", str(tmp_path)).stdout


@pytest.mark.parametrize(("command", "name"), [("stop", "SIGTERM"), ("drain", "SIGINT")])
@pytest.mark.parametrize("has_pidfd", [True, False])
def test_stop_and_drain_signal_the_master_and_wait_for_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, name: str, has_pidfd: bool
) -> None:
    if not has_pidfd:
        monkeypatch.delattr(os, "pidfd_open")
    with master(tmp_path, "a") as process:
        assert ran(command, "--run-dir", str(tmp_path)).stdout == "pool a has ended\n"
        assert start_ticks(process.pid) is None
        assert process.stdout is not None
        assert process.stdout.read() == f"{name}\n"


@pytest.mark.parametrize("has_pidfd", [True, False])
def test_a_pool_that_does_not_end_in_time_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_pidfd: bool
) -> None:
    if not has_pidfd:
        monkeypatch.delattr(os, "pidfd_open")
    with master(tmp_path, "a") as process:
        os.kill(process.pid, signal.SIGSTOP)
        result = ran("stop", "--run-dir", str(tmp_path), "--timeout", "0.01", code=1)
        assert f"kill -QUIT {process.pid}" in result.stderr


def test_reload_signals_and_does_not_wait(tmp_path: Path) -> None:
    with master(tmp_path, "a") as process:
        ran("reload", "--run-dir", str(tmp_path))
        assert process.stdout is not None
        assert process.stdout.readline() == "SIGHUP\n"
        assert process.poll() is None


def test_stop_signals_nobody_who_got_the_pid_of_a_dead_master(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(["sleep", "60"]) as innocent:
        found = rundir.Running("a", innocent.pid, 1, tmp_path)
        monkeypatch.setattr(rundir, "find", lambda run_dir, name: found)
        ran("stop", "--run-dir", str(tmp_path), code=3)
        assert innocent.poll() is None
        innocent.kill()


def test_scale_asks_the_master(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def request(path: Path, verb: str, **arguments: object) -> dict[str, object]:
        asked.append((path, verb, arguments))
        return {}

    monkeypatch.setattr(control, "request", request)
    with master(tmp_path, "a"):
        pid = rundir.find(tmp_path, "a").pid
        assert "in of pool a: 3 workers wanted" in ran("scale", "in", "3", "--run-dir", str(tmp_path)).stdout
        ran("scale", "in", "-1", "--run-dir", str(tmp_path), code=2)
    assert asked == [(tmp_path / "a" / "control", "scale", {"pid": pid, "queue": "in", "workers": 3})]


def test_status_shows_queues_and_workers_and_no_markup_of_a_name(tmp_path: Path) -> None:
    with master(tmp_path, "a"):
        with (tmp_path / "a" / "board").open("r+b") as file:
            board = Board(mmap.mmap(file.fileno(), 0))
        number = board.take_queue("[bold]in", "spool:/in")
        worker = board.worker(board.take_worker(number, 0))
        worker.set_text(0, "[red]report\x1b[2J.csv")
        board.queues[number].words[Q.WATCH] = 2
        text = ran("status", "--run-dir", str(tmp_path)).stdout
        assert "queue [bold]in: " in text
        assert "0 waiting, 0 claimed, 0 deferred, 0 errors; arrivals: poll" in text
        assert "\x1b" not in text
        board.queues[number].words[Q.IGNORED] = 3
        text = " ".join(ran("status", "--run-dir", str(tmp_path)).stdout.split())
        assert "0 errors, 3 ignored; arrivals: poll" in text


def test_status_of_a_dead_master_shows_its_last_word_and_fails(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    board = Board.create(tmp_path / "a" / "board")
    board.header.set_text(HeaderText.NAME, "a")
    board.header.words[Header.MASTER_PID] = 1
    result = ran("status", "--run-dir", str(tmp_path), "--name", "a", "--json", code=3)
    assert json.loads(result.stdout)["name"] == "a"
    assert "its master died" in result.stderr


def test_status_while_the_board_is_missing_says_so(tmp_path: Path) -> None:
    with master(tmp_path, "a"):
        (tmp_path / "a" / "board").unlink()
        assert "starting or has just ended" in ran("status", "--run-dir", str(tmp_path), code=1).stderr


def test_a_pool_whose_board_is_damaged_hides_no_other_from_status(tmp_path: Path) -> None:
    """In a run directory of root's each pool may be another user's."""
    with master(tmp_path, "a", "b", "c"):
        (tmp_path / "a" / "board").unlink()
        (tmp_path / "b" / "board").unlink()
        (tmp_path / "b" / "board").write_text("no board")
        result = ran("status", "--run-dir", str(tmp_path), "--json", code=1)
        assert [json.loads(line)["name"] for line in result.stdout.splitlines()] == ["c"]
        assert f"{tmp_path}/a/board is not there" in result.stderr
        assert f"{tmp_path}/b/board is no board" in result.stderr


def test_output_that_nobody_takes_is_an_error_with_one_line_and_exit_code_1():
    """Python would try again as it ends, and make another exit code and a traceback of it."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "orchestrator", "config", "reference"],
            stdout=full, stderr=subprocess.PIPE, env=environment, check=False, text=True,
        )  # fmt: skip
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert "No space left" in done.stderr


def test_show_writes_the_body_that_a_handler_is_given_whatever_the_file_holds(tmp_path):
    url = f"ddmq:{tmp_path}/root/q"
    with open_queue(url, create=True) as queue:
        name = queue.put(b"only this")
    assert ran("show", url, name, "--body").stdout_bytes == b"only this"
    assert json.loads(ran("show", url, name, "--json").stdout)[0]["size"] == len("only this")
