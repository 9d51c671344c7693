"""
program - run one program, keep some of what it writes, and leave nothing of it behind

The program has a process group of its own in the caller's session and gets SIGKILL when
the caller dies. It starts with default signals. What is left of its group when it ends
is killed. Whoever keeps its pipes open (a daemon that left the group) is not waited for.

Raises: ProgramError when it cannot be started, or cannot be said to have ended well.
Limits: Linux; the thread that starts it must outlive it. A program that cannot be
killed (a hung mount) holds its caller.
Source: prctl(2) PR_SET_PDEATHSIG, pidfd_open(2), waitid(2).
See also: command (the handler), tests/unit/test_command.py.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from workers import system
from workers.errors import OrchestratorError
from workers.queues.names import shown
from workers.signals import UNNOTICED_S

READ_SIZE = 65536
REST_BYTES_MAX = 1 << 20  # what is read after the end; a pipe holds 64 KiB unless the program made it larger
LOOK_S = 0.05  # how often to look for the end where the kernel has no pidfd

# What a worker may handle, ignore or block; a program starts with none of it.
_SIGNALS = (
    signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGALRM, signal.SIGCHLD,
    signal.SIGUSR1, signal.SIGUSR2, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU,
)  # fmt: skip


class ProgramError(OrchestratorError):
    """The program could not be run."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a program ended. *status* is its exit code, or minus the number of the signal that ended it."""

    status: int
    stdout: Output
    stderr: Output


class Output:
    """The first and the last half of what a program wrote."""

    def __init__(self, bytes_max: int) -> None:
        self._head_max = (bytes_max + 1) // 2
        self._tail_max = bytes_max // 2
        self._head = bytearray()
        self._tail = bytearray()
        self._size = 0

    def add(self, part: bytes) -> None:
        """Take what was read."""
        self._size += len(part)
        room = self._head_max - len(self._head)
        self._head += part[:room]
        self._tail += part[room:]
        if len(self._tail) > self._tail_max + READ_SIZE:
            self._trim()

    def text(self) -> str:
        """What is kept, invalid UTF-8 as \\xNN, with a line that says how much was left out."""
        self._trim()
        left_out = self._size - len(self._head) - len(self._tail)
        if not left_out:
            return text_of(self._head + self._tail)
        return f"{text_of(self._head)}\n[{left_out} bytes left out]\n{text_of(self._tail)}"

    def last_line(self) -> str:
        """The last line that says anything, for a sentence."""
        self._trim()
        lines = bytes(self._head + self._tail).rstrip().splitlines()
        return shown(os.fsdecode(lines[-1].strip()[:200])) if lines else ""

    def _trim(self) -> None:
        del self._tail[: max(0, len(self._tail) - self._tail_max)]


def run(
    argv: Sequence[str],
    *,
    stdin: int = subprocess.DEVNULL,
    environment: Mapping[str, str] | None = None,
    tell: Callable[[int], None] | None = None,
    output_bytes_max: int = READ_SIZE,
) -> Ended:
    """
    Run *argv* and wait for its end.

    *stdin* is a descriptor to start it with; *environment* None is the caller's. *tell* is
    called with the number of its process group right after the start, and with 0 at the end.
    When anything is raised meanwhile the group is killed first. Raises ProgramError.
    """
    parent = os.getpid()
    # Found before the fork: the child must not look up a library function.
    getattr(system._libc(), "prctl", None)
    # ORDER: blocked before the fork, unblocked by the child when its handlers are the defaults. Else a signal in
    # between runs the caller's handlers in the child, or leaves the caller with a program it does not know of.
    # See test_a_signal_during_the_start_is_handled_once_and_by_the_worker.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        process = _start(argv, stdin, environment, parent)
        with process:
            assert process.stdout is not None  # noqa: S101 - a pipe was asked for
            assert process.stderr is not None  # noqa: S101
            stdout, stderr = Output(output_bytes_max), Output(output_bytes_max)
            pipes = {process.stdout.fileno(): stdout, process.stderr.fileno(): stderr}
            try:
                if tell is not None:
                    tell(process.pid)
                signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
                _drain(process.pid, pipes)
                status = _status(process.pid, argv[0])
            finally:
                # ORDER: kill, tell, then collect. While the dead program is not collected its number is taken, so
                # neither this kill nor that of somebody who reads the board can meet a stranger's group.
                # See test_the_board_forgets_the_group_while_its_number_is_still_taken.
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                if tell is not None:
                    tell(0)
                process.wait()
            for fd, output in pipes.items():
                _read_rest(fd, output)
            return Ended(status, stdout, stderr)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def signal_name(number: int) -> str:
    """The name of a signal, for a person."""
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def text_of(raw: bytes | bytearray) -> str:
    """Bytes as text that any JSON writer takes; invalid UTF-8 as \\xNN."""
    return raw.decode("utf-8", "backslashreplace")


def _start(
    argv: Sequence[str], stdin: int, environment: Mapping[str, str] | None, parent: int
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(  # noqa: S603 - the operator's command, each value an argument of its own
            argv,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env=environment,
            process_group=0,
            preexec_fn=lambda: _become_program(parent),  # noqa: PLW1509 - a worker has no other threads when it forks
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ProgramError(why_not_run(argv[0], error)) from error


def _status(pid: int, program: str) -> int:
    """How *pid*, which has ended, ended; it stays uncollected."""
    try:
        info = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    except ChildProcessError as error:
        # Popen would take this for exit code 0, and a failed program would count as done.
        raise ProgramError(
            f"cannot tell how {shown(program)} ended: somebody else collected it. Is SIGCHLD ignored in this process?"
        ) from error
    assert info is not None  # noqa: S101 - None is for WNOHANG only
    return info.si_status if info.si_code == os.CLD_EXITED else -info.si_status


def _become_program(parent: int) -> None:
    """Between fork and exec: nothing of the worker's signals, and death with the worker. Child only."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    system.die_with_parent(parent)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _drain(pid: int, pipes: dict[int, Output]) -> None:
    """Read what *pid* writes until it has ended, and not until the pipes are closed: others may hold them open."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:  # an older kernel, or a sandbox that does not let it through
        pidfd = -1
    with selectors.DefaultSelector() as selector:
        try:
            for fd in pipes:
                os.set_blocking(fd, False)
                selector.register(fd, selectors.EVENT_READ)
            if pidfd >= 0:
                selector.register(pidfd, selectors.EVENT_READ)
            wait_s, has_ended = UNNOTICED_S if pidfd >= 0 else LOOK_S, False
            while not has_ended:
                ready = [key.fd for key, _ in selector.select(wait_s)]
                for fd in ready:
                    if fd != pidfd and not _read(fd, pipes[fd]):
                        selector.unregister(fd)
                has_ended = pidfd in ready if pidfd >= 0 else _has_ended(pid)
        finally:
            if pidfd >= 0:
                os.close(pidfd)


def _has_ended(pid: int) -> bool:
    """Whether our child *pid* has ended; it stays uncollected."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:  # collected by somebody else; _status() says so
        return True


def _read(fd: int, output: Output) -> int:
    """Read once; the number of bytes, 0 at the end. An empty pipe that is still open counts as one."""
    try:
        part = os.read(fd, READ_SIZE)
    except BlockingIOError:
        return 1
    output.add(part)
    return len(part)


def _read_rest(fd: int, output: Output) -> None:
    """Read what is in the pipe now, and not more than it can hold: somebody may go on writing for ever."""
    size = 0
    while size < REST_BYTES_MAX:
        try:
            part = os.read(fd, READ_SIZE)
        except BlockingIOError:
            return
        if not part:
            return
        output.add(part)
        size += len(part)


def why_not_run(program: str, error: Exception) -> str:
    """Why *program* could not be started, and what to do, in one sentence."""
    hints: dict[type[Exception], str] = {
        FileNotFoundError: "Is it installed and in PATH, and does the interpreter in its first line exist?",
        PermissionError: "It must be a file that the worker's user may execute (chmod +x).",
    }
    why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"cannot run {shown(program)}: {why}. {hints.get(type(error), '')}".rstrip()
