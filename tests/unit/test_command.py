"""test_command - any program per message, with real programs on real files"""

from __future__ import annotations

import hashlib
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.waiting import signal_elsewhere
from workers.errors import HandlerError
from workers.handlers import program
from workers.handlers.command import Command, CommandFailed, command_handler
from workers.message import Claim, Done, Message, Retry

REPOSITORY = Path(__file__).parents[2]
PYTHON = sys.executable
HOSTILE = "$(touch pwned)`touch pwned`';touch pwned;\" -rf *\n"

Make = Callable[..., Message]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Make a message: a file in a directory of its own, opened as a claim is."""
    opened: list[int] = []

    def made(name: str = "m", body: bytes = b"body", *, is_open: bool = True) -> Message:
        directory = tmp_path / "pending"
        directory.mkdir(exist_ok=True)
        path = os.path.join(directory, name)
        with open(path, "wb") as file:
            file.write(body)
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC) if is_open else -1
        opened.extend([fd] if is_open else [])
        return Message(Claim(name=name, path=path, attempt=2, fd=fd, size=len(body)), queue="in", worker=3)

    yield made
    for fd in opened:
        os.close(fd)


def shell(script: str, environment: dict[str, str] | None = None) -> Command:
    return Command([script], shell=True, environment=environment)  # noqa: S604 - the shell is the subject


def failure(command: Command, message: Message) -> CommandFailed:
    with pytest.raises(CommandFailed) as caught:
        command(message)
    return caught.value


def written(command: Command, message: Message) -> str:
    """What a program wrote to stdout: it must fail for that to be kept, so *command* ends with exit code 1."""
    stdout = failure(command, message).meta["stdout"]
    assert isinstance(stdout, str)
    return stdout


def has_ended(pid: int, seconds: float = 10) -> bool:
    """Wait for the end of any process, child or not."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        return bool(poll.poll(seconds * 1000))
    finally:
        os.close(pidfd)


@pytest.mark.parametrize("is_open", [True, False])
def test_the_file_is_stdin_when_no_argument_names_it(make: Make, tmp_path: Path, is_open: bool) -> None:
    body = bytes(range(256)) * 1000
    message = make(body=body, is_open=is_open)
    if is_open:  # somebody has read from it before
        os.lseek(message.claim.fd, 100, os.SEEK_SET)
    target = tmp_path / "sum"
    assert Command(["sh", "-c", f"sha256sum > {target}"])(message) == Done()
    assert target.read_text().split()[0] == hashlib.sha256(body).hexdigest()


def test_stdin_is_empty_when_an_argument_names_the_file(make: Make) -> None:
    assert written(Command(["sh", "-c", "wc -c; exit 1", "{path}"]), make()).strip() == "0"


def test_a_file_that_is_gone_or_is_no_file_fails_with_a_sentence(make: Make, tmp_path: Path) -> None:
    """Without a descriptor of the claim the path is opened: neither a link is followed nor a fifo waited for."""
    message = make("gone", is_open=False)
    os.unlink(message.path)
    assert "No such file" in str(failure(Command(["cat"]), message))
    message.path.symlink_to("/etc/passwd")
    assert "cannot open" in str(failure(Command(["cat"]), message))
    os.unlink(message.path)
    os.mkfifo(message.path)
    assert "no regular file" in str(failure(Command(["cat"]), message))


def test_placeholders_are_replaced_inside_arguments_and_unknown_ones_are_left_alone(make: Make) -> None:
    command = Command(
        ["sh", "-c", 'printf "%s|" "$@"; exit 1', "sh", "<{name}>", "{queue}.{attempt}", "{worker}{x}{}", "{path}"]
    )
    message = make("a")
    assert written(command, message) == f"<a>|in.2|3{{x}}{{}}|{message.path}|"


def test_a_name_that_looks_like_a_placeholder_or_a_format_is_plain_text(make: Make) -> None:
    name = "{queue}{0.__class__}%s{attempt}"
    assert written(Command(["sh", "-c", 'printf %s "$1"; exit 1', "sh", "{name}"]), make(name)) == name


@pytest.mark.parametrize(
    "name", ["line\nbreak", "-rf", "--help", "a b *", "\x1b[31mred", os.fsdecode(b"\xff\xfe\x80"), HOSTILE]
)
@pytest.mark.parametrize("by_shell", [False, True])
def test_any_name_reaches_the_program_unharmed(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, by_shell: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    message = make(name, b"what it holds")
    before = sorted(os.listdir())
    show = [
        PYTHON,
        "-c",
        "import sys, os; print([os.fsencode(a) for a in sys.argv[1:]], open(sys.argv[2],'rb').read()); sys.exit(1)",
    ]
    argv = [*show, "{name}", "{path}"]
    if by_shell:
        argv = [f"{PYTHON} -c '{show[2].replace(chr(39), chr(34))}' {{name}} {{path}}"]
    output = written(Command(argv, shell=by_shell), message)
    assert output == f"{[os.fsencode(name), os.fsencode(message.path)]} {b'what it holds'!r}\n"
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize(
    "script",
    [
        "cat <<EOF\n{name}\nEOF\nexit 1",
        'echo "$(printf %s "$MESSAGE_NAME")"; exit 1',
        "f() { printf %s {name}; }; set -- x; f y; exit 1",
    ],
)
def test_a_hostile_name_is_never_shell_text_even_in_a_here_document(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert HOSTILE.strip() in written(shell(script), make(HOSTILE))
    assert not (tmp_path / "pwned").exists()


def test_a_placeholder_that_would_not_be_one_argument_is_refused_at_once() -> None:
    with pytest.raises(HandlerError, match="is quoted in the shell command; take the quotes"):
        shell("cat '{path}'")
    with pytest.raises(HandlerError, match="stands in a text that sh reads as commands"):
        Command(["sh", "-c", "cat {path}"])


def test_exit_0_is_done_and_75_is_retry(make: Make) -> None:
    assert Command(["true"])(make()) == Done()
    assert Command(["sh", "-c", "exit 75"])(make()) == Retry(None)


def test_another_exit_code_is_a_failure_that_keeps_what_was_written(make: Make) -> None:
    error = failure(Command(["sh", "-c", "echo out; echo one >&2; echo last >&2; exit 3"]), make())
    assert str(error) == "sh ended with exit code 3: last"
    assert error.meta["exit_code"] == 3
    assert error.meta["stdout"] == "out\n"
    assert error.meta["stderr"] == "one\nlast\n"
    assert error.meta["command"] == ["sh", "-c", "echo out; echo one >&2; echo last >&2; exit 3"]
    assert "signal" not in error.meta


def test_death_by_a_signal_is_a_failure_that_names_it(make: Make) -> None:
    error = failure(shell("kill -SEGV $$"), make())
    assert str(error) == "the shell command was ended by SIGSEGV"
    assert error.meta["signal"] == "SIGSEGV"
    assert "exit_code" not in error.meta


def test_a_program_that_is_missing_or_not_executable_fails_with_a_sentence(make: Make, tmp_path: Path) -> None:
    assert "cannot run no-such-program: No such file or directory. Is it installed" in str(
        failure(Command(["no-such-program"]), make())
    )
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\n")
    assert f"cannot run {script}: Permission denied. It must be" in str(failure(Command([str(script)]), make()))
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    assert "does the interpreter in its first line exist?" in str(failure(Command([str(script)]), make()))


def test_a_program_that_is_missing_at_the_start_is_refused_before_any_message(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.touch()
    for name, why in (
        ("no-such-program", "No such file"), (str(script), "Permission denied"), (str(tmp_path), "Permission denied"),
    ):  # fmt: skip
        with pytest.raises(HandlerError, match=f"cannot run {name}: {why}"):
            command_handler([name, "{path}"])
    script.chmod(0o755)
    for argv in ([str(script)], ["true"], ["{path}"]):
        command_handler(argv)
    command_handler(["no-such-program {path}"], shell=True)  # noqa: S604 - what is in a text only the shell knows


@pytest.mark.parametrize("argv", [[], [""], ["a\0b"], ["\ud800"], "true"])
def test_what_can_be_no_command_is_refused_at_once(argv: list[str]) -> None:
    with pytest.raises(HandlerError, match="command"):
        command_handler(argv)


def test_a_shell_takes_one_text() -> None:
    with pytest.raises(HandlerError, match="a shell takes one text, not 2 arguments"):
        command_handler(["echo", "x"], shell=True)  # noqa: S604 - refused


def test_of_much_output_the_head_and_the_tail_are_kept(make: Make) -> None:
    size = 10 * 1024 * 1024
    code = (
        "import sys; w = sys.stdout.buffer.write\n"
        f"w(b'first'); w(b'.' * ({size} - 10)); w(b'final'); sys.stderr.write('e' * {size}); sys.exit(1)"
    )
    error = failure(Command([PYTHON, "-c", code], output_bytes_max=1000), make())
    stdout, stderr = str(error.meta["stdout"]), str(error.meta["stderr"])
    assert stdout.startswith("first..")
    assert stdout.endswith("..final")
    assert f"\n[{size - 1000} bytes left out]\n" in stdout
    assert len(stdout) < 1100
    assert len(stderr) < 1100


@pytest.mark.parametrize("size_max", [0, 1, 7, 8, 9])
def test_output_is_kept_to_the_byte(size_max: int) -> None:
    for size in range(12):
        output = program.Output(size_max)
        raw = b"abcdefghijkl"[:size]
        for number in range(size):
            output.add(raw[number : number + 1])
        kept = output.text()
        if size <= size_max:
            assert kept == raw.decode()
        else:
            head, line, tail = kept.split("\n")
            assert line == f"[{size - size_max} bytes left out]"
            assert len(head + tail) == size_max
            assert raw.decode().startswith(head)
            assert raw.decode().endswith(tail)


def test_output_that_is_no_text_is_kept_escaped(make: Make) -> None:
    assert written(shell("printf 'a\\377\\033'; exit 1"), make()) == "a\\xff\x1b"
    assert str(failure(shell("printf 'a\\377\\033' >&2; exit 1"), make())).endswith(": a\\xff\\x1b")


@pytest.mark.parametrize("has_pidfd", [True, False])
def test_a_background_process_neither_hangs_the_worker_nor_outlives_the_program(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_pidfd: bool
) -> None:
    """It holds both pipes open. On an old kernel, without pidfd_open, the end is looked for."""
    message, target = make(), tmp_path / "pid"
    with monkeypatch.context() as patch:
        if not has_pidfd:
            patch.setattr(os, "pidfd_open", refuse)
        assert shell(f"sleep 1000 & echo $! > {target}; echo out")(message) == Done()
    assert has_ended(int(target.read_text()))


def refuse(pid: int) -> int:
    raise OSError(38, "Function not implemented")


def test_a_daemon_that_left_the_group_and_writes_for_ever_does_not_hang_the_worker(make: Make, tmp_path: Path) -> None:
    target = tmp_path / "pid"
    daemon = f"setsid sh -c 'echo $$ > {target}.new; mv {target}.new {target}; exec yes'"
    script = f"{daemon} & while [ ! -e {target} ]; do :; done; exit 1"
    try:
        assert failure(shell(script), make()).meta["exit_code"] == 1
    finally:
        os.kill(int(target.read_text()), signal.SIGKILL)


def test_a_program_that_closes_its_output_is_still_waited_for(make: Make, tmp_path: Path) -> None:
    target = tmp_path / "late"
    assert shell(f"exec >&- 2>&-; {PYTHON} -c 'pass'; echo x > {target}")(make()) == Done()
    assert target.exists()


def test_a_program_that_removes_its_input_is_done(make: Make) -> None:
    message = make()
    assert Command(["rm", "{path}"])(message) == Done()
    assert not message.path.exists()


def test_the_program_has_a_group_of_its_own_in_the_session_of_the_worker(make: Make) -> None:
    told: list[int] = []
    message = make()
    message.on_child = told.append
    code = "import os, sys; print(os.getpid() == os.getpgid(0), os.getpgid(0), os.getsid(0)); sys.exit(1)"
    assert written(Command([PYTHON, "-c", code]), message).split() == ["True", str(told[0]), str(os.getsid(0))]
    assert told[1:] == [0]


def test_the_board_forgets_the_group_while_its_number_is_still_taken(make: Make) -> None:
    groups: list[int] = []

    def tell(group: int) -> None:
        if group:
            groups.append(group)
            return
        ended = os.waitid(os.P_PID, groups[0], os.WEXITED | os.WNOWAIT)
        assert ended is not None
        groups.append(0)

    message = make()
    message.on_child = tell
    assert Command(["true"])(message) == Done()
    assert len(groups) == 2
    with pytest.raises(ProcessLookupError):
        os.kill(groups[0], 0)


class Interrupted(BaseException):
    """Raised by the worker's signal handler."""


def test_whatever_is_raised_while_waiting_ends_the_group_first(make: Make) -> None:
    """The program itself sends the signal, so it comes while it runs: once our main thread takes it again."""
    told: list[int] = []
    message = make()
    message.on_child = told.append

    def interrupt(number: int, frame: object) -> None:
        raise Interrupted

    is_unblocked = 'while ! grep -q "^SigBlk:[[:space:]]*0*$" /proc/$PPID/status; do :; done'
    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with pytest.raises(Interrupted):
            shell(f"sleep 1000 & {is_unblocked}; kill -USR1 $PPID; sleep 1000")(message)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert told[1:] == [0]
    with pytest.raises(ProcessLookupError):
        os.kill(told[0], 0)


def test_a_signal_that_ends_no_wait_is_noticed_while_the_program_runs(make: Make) -> None:
    """As one that comes between the interpreter's last look and the wait; here it goes to another thread."""
    message = make()

    def tell(group: int) -> None:
        if group:
            signal_elsewhere(signal.SIGUSR1)

    def interrupt(number: int, frame: object) -> None:
        raise Interrupted

    message.on_child = tell
    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with pytest.raises(Interrupted):
            Command(["sleep", "1000"])(message)
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_signal_during_the_start_is_handled_once_and_by_the_worker(make: Make) -> None:
    """It arrives as soon as the group is told: the start must be complete, and no program stay behind."""
    seen: list[int] = []
    told: list[int] = []

    def tell(group: int) -> None:
        told.append(group)
        if group:
            # To this thread: whoever runs the tests may have others, that block nothing.
            signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
            told.append(len(seen))

    def handle(number: int, frame: object) -> None:
        seen.append(os.getpid())
        raise Interrupted

    message = make()
    message.on_child = tell
    before = signal.signal(signal.SIGTERM, handle)
    try:
        with pytest.raises(Interrupted):
            Command(["sleep", "1000"])(message)
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [os.getpid()]
    assert told[1:] == [0, 0], "nothing seen while it was told, then the end"


def test_a_program_starts_with_default_signals_and_nothing_blocked(make: Make) -> None:
    ignored = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in ignored}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    try:
        text = written(Command(["grep", "-E", "Sig(Ign|Blk)", "/proc/self/status", "no-such-file"]), make())
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask | {signal.SIGUSR2}
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before.items():
            signal.signal(number, handler)
    assert [int(line.rpartition(":")[2], 16) for line in text.splitlines()] == [0, 0], text


def test_a_failed_program_is_not_done_where_the_kernel_collects_children_itself(make: Make) -> None:
    """With SIGCHLD ignored nobody can know the exit code; Popen would say 0."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        error = failure(Command(["false"]), make())
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert "Is SIGCHLD ignored" in str(error)


def test_the_program_dies_with_a_worker_that_is_killed(make: Make) -> None:
    worker = (
        "import sys; from workers.message import Claim, Message; from workers.handlers.command import Command\n"
        "def tell(group): print(group, flush=True)\n"
        "message = Message(Claim(name='m', path=sys.argv[1]), queue='in', on_child=tell)\n"
        "Command(['sleep', '1000'])(message)"
    )
    argv = [PYTHON, "-c", worker, str(make().path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, cwd=REPOSITORY) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.kill()
    assert has_ended(pid)


def test_the_environment_is_the_workers_or_the_one_given(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAVOUR", "own")
    show = "echo $FLAVOUR; exit 1"
    assert written(shell(show), make()) == "own\n"
    assert written(shell(show, environment={"FLAVOUR": "given"}), make()) == "given\n"
    assert "MESSAGE_NAME" not in os.environ


def test_no_descriptor_is_left_open_and_none_is_inherited(make: Make) -> None:
    message = make()
    secret = os.open(os.devnull, os.O_RDONLY)
    os.set_inheritable(secret, True)  # noqa: FBT003 - the function takes no keyword
    try:
        before = sorted(os.listdir("/proc/self/fd"))
        text = written(shell("ls /proc/self/fd; exit 1"), message)
        for argv in (["true"], ["no-such-program"], ["false"]):
            try:
                Command(argv)(message)
            except CommandFailed:
                continue
        assert sorted(os.listdir("/proc/self/fd")) == before
    finally:
        os.close(secret)
    assert len(text.split()) == 4, "stdin, stdout, stderr and the directory that ls reads"
