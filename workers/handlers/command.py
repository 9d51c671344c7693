"""
command - run any program for each message

    orchestrator run QUEUE -- sha256sum {path}

{path} {name} {queue} {attempt} {worker} stand for the message's. Without {path} and
{name} the message's file is the program's stdin, else stdin is /dev/null. Exit 0 is
done, 75 (EX_TEMPFAIL) is retry, anything else, or a signal, a failure that keeps what
the program wrote.

No shell, unless asked for: then /bin/sh gets the values as variables and each
placeholder becomes "${MESSAGE_PATH}", so that no value is ever read as shell text,
whatever surrounds it (a value quoted into the text would break out of quotes, of
here-documents); where that would not be one word it is refused, and so is a
placeholder in the text of a ``sh -c`` (shell_text).

{path} is absolute. {name} may begin with a dash, and is an option then: write -- before it,
or out/{name}.

The program has the worker's environment (the master's, and what [daemon] user changes of it),
directory and umask, no descriptor but 0, 1 and 2, no terminal, and default signals.

Raises: CommandFailed; HandlerError for a command that cannot be one.
Limits: Linux; a program that leaves its process group (setsid) is not followed while
the worker lives.
Source: sysexits(3) for 75.
See also: program (how it is run and ended), shell_text, handler (turns what is raised here into a
retry), tests/unit/test_command.py.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import subprocess
from collections.abc import Iterator, Mapping, Sequence

from workers.errors import HandlerError, OrchestratorError
from workers.handlers.program import ProgramError, run, signal_name, text_of, why_not_run
from workers.handlers.shell_text import IN_SHELL, PLACEHOLDER, refusal
from workers.message import Done, Message, Outcome, Retry
from workers.queues.names import shown

OUTPUT_BYTES_MAX = 65536
EXIT_RETRY = 75  # EX_TEMPFAIL
SHELL = "/bin/sh"


class CommandFailed(OrchestratorError):
    """
    The program failed, or could not be run.

    *meta* goes into the message's .meta: ``command`` (list of text), ``exit_code`` (int) or
    ``signal`` (name) when it ran, ``stdout`` and ``stderr`` (text, invalid UTF-8 as \\xNN).
    """

    def __init__(self, summary: str, meta: dict[str, object]) -> None:
        super().__init__(summary)
        self.meta = meta


class Command:
    """
    A handler that runs a program.

    Args:
        argv: the program and its arguments; with *shell* exactly one text.
        shell: give that text to /bin/sh -c.
        output_bytes_max: how much of stdout, and of stderr, is kept: its first and its last half.
        environment: the whole environment of the program; None is the worker's own.

    Raises HandlerError at once for a command that cannot be run for any message.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        shell: bool = False,
        output_bytes_max: int = OUTPUT_BYTES_MAX,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        _check(argv, shell=shell)
        if output_bytes_max < 0:
            raise HandlerError(f"output_bytes_max is {output_bytes_max}; it must be 0 or more")
        self.argv = tuple(argv)
        self.shell = shell
        self.output_bytes_max = output_bytes_max
        self._environment = None if environment is None else dict(environment)
        words = {found[1] for text in argv for found in (IN_SHELL if shell else PLACEHOLDER).finditer(text)}
        self._is_fed = not words & {"path", "name"}

    def __repr__(self) -> str:
        return f"Command({list(self.argv)!r}, shell={self.shell})"

    def __call__(self, message: Message) -> Outcome:
        """Run the program for *message* and wait for its end. Raises CommandFailed. Main thread of a worker only."""
        argv, environment = self._filled(message)
        meta: dict[str, object] = {"command": [text_of(os.fsencode(argument)) for argument in argv]}
        with self._stdin(message, meta) as stdin:
            try:
                ended = run(
                    argv,
                    stdin=stdin,
                    environment=environment,
                    tell=message.on_child,
                    output_bytes_max=self.output_bytes_max,
                )
            except ProgramError as error:
                raise CommandFailed(str(error), meta) from error
        if ended.status == 0:
            return Done()
        if ended.status == EXIT_RETRY:
            return Retry()
        if ended.status > 0:
            how, meta["exit_code"] = f"ended with exit code {ended.status}", ended.status
        else:
            name = signal_name(-ended.status)
            how, meta["signal"] = f"was ended by {name}", name
        meta |= {"stdout": ended.stdout.text(), "stderr": ended.stderr.text()}
        what = "the shell command" if self.shell else shown(argv[0])
        last = ended.stderr.last_line()
        raise CommandFailed(f"{what} {how}: {last}" if last else f"{what} {how}", meta)

    def _filled(self, message: Message) -> tuple[list[str], dict[str, str] | None]:
        """The arguments and the environment for *message*."""
        values = {
            "path": message.claim.path,
            "name": message.name,
            "queue": message.queue,
            "attempt": str(message.attempt),
            "worker": str(message.worker),
        }
        if not self.shell:
            # One pass: a name that looks like a placeholder is no placeholder.
            return [PLACEHOLDER.sub(lambda found: values[found[1]], text) for text in self.argv], self._environment
        script = IN_SHELL.sub(lambda found: f'"${{MESSAGE_{found[1].upper()}}}"', self.argv[0])
        environment = dict(os.environ) if self._environment is None else dict(self._environment)
        environment |= {f"MESSAGE_{word.upper()}": value for word, value in values.items()}
        return [SHELL, "-c", script], environment

    @contextlib.contextmanager
    def _stdin(self, message: Message, meta: dict[str, object]) -> Iterator[int]:
        """The descriptor to start the program with."""
        claim = message.claim
        if not self._is_fed:
            yield subprocess.DEVNULL
            return
        try:
            # The claim's own descriptor is the very file that was claimed, whatever has its name by now.
            fd = os.dup(claim.fd) if claim.fd >= 0 else _open_regular(claim.path)
        except OSError as error:
            raise CommandFailed(f"cannot open {shown(claim.path)} for {shown(self.argv[0])}: {error}", meta) from error
        try:
            os.lseek(fd, 0, os.SEEK_SET)
            yield fd
        finally:
            os.close(fd)


def command_handler(argv: Sequence[str], *, shell: bool = False) -> Command:
    """
    The handler for a command line as the configuration or the operator gives it.

    Raises HandlerError, also when there is no such program now: no message need be the one that finds that out.
    """
    found = Command(argv, shell=shell)
    if (why := missing_program(argv, shell=shell)) is not None:
        raise HandlerError(why)
    return found


def missing_program(argv: Sequence[str], *, shell: bool = False) -> str | None:
    """Why the program of *argv* cannot be found here, in one sentence; None where it can, or a message names it."""
    import shutil  # noqa: PLC0415 - 10 ms that only who runs programs has to wait for

    program = SHELL if shell else argv[0]
    if PLACEHOLDER.search(program) or shutil.which(program) is not None:
        return None
    code = errno.EACCES if os.path.exists(program) else errno.ENOENT
    return why_not_run(program, OSError(code, os.strerror(code)))


def _open_regular(path: str) -> int:
    """Open a regular file, without following a link and without waiting for the writer of a fifo."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(f"{shown(path)} is no regular file")
    return fd


def _check(argv: Sequence[str], *, shell: bool) -> None:
    """Refuse what can be no command."""
    if isinstance(argv, str):
        raise HandlerError(f"the command {argv!r} is one text; give a list of arguments, or a list of one with shell")
    if not argv or not argv[0].strip():
        raise HandlerError("the command is empty; name a program, for example: -- sha256sum {path}")
    for text in argv:
        try:
            raw = os.fsencode(text)
        except UnicodeEncodeError as error:
            raise HandlerError(f"the command's argument {text!r} cannot be passed to a program: {error}") from error
        if b"\0" in raw:
            raise HandlerError(f"the command's argument {text!r} holds a NUL; no program can be given that")
    if shell and len(argv) != 1:
        raise HandlerError(
            f"a shell takes one text, not {len(argv)} arguments: quote the whole command, "
            "for example 'gzip -c {path} | wc -c'"
        )
    if (why := refusal(argv, is_shell=shell)) is not None:
        raise HandlerError(why)
