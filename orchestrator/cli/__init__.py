"""
cli - the command ``orchestrator``: which commands there are, and how errors reach a person

Commands are found by a table and imported when they are used, so that --help and the
quick ones do not wait for what only ``run`` needs, and a broken one breaks only itself.

Exit codes: 0 fine, 1 failed, 2 usage, 3 not running, 130 interrupted. An error that
this project raises on purpose is one line on stderr, without a traceback.
See also: queue and pool (most commands), rundir (which pool is meant).
"""

from __future__ import annotations

import errno
import importlib
import io
import os
import signal as signals  # signal is a module of this package
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, NamedTuple, NoReturn

import click
from click.shell_completion import CompletionItem, get_completion_class

import orchestrator
from orchestrator.logs import escaped
from workers.errors import OrchestratorError, QueueError
from workers.queues.names import shown

INTERRUPTED = 130  # as a shell says it: 128 and SIGINT
# One look or move each: nothing is lost when they end in the middle of it (what put has not published is swept).
ON_A_QUEUE = ("put", "ls", "show", "requeue", "pause", "resume")


class Entry(NamedTuple):
    """One command: where it is, and the line that stands in the list of commands."""

    spec: str
    help: str


COMMANDS = {
    "run": Entry("orchestrator.cli.run:run", "Run a pool of workers on one or more queues."),
    "demo": Entry("orchestrator.cli.demo:demo", "Watch a pool do real work, with a worker killed on the way."),
    "put": Entry("orchestrator.cli.queue:put", "Put messages into a queue; print their names."),
    "ls": Entry("orchestrator.cli.queue:ls", "List the messages of a queue."),
    "show": Entry("orchestrator.cli.queue:show", "Show one message, and why it is in errors/."),
    "requeue": Entry("orchestrator.cli.queue:requeue", "Move messages from errors/ back into the queue."),
    "pause": Entry("orchestrator.cli.queue:pause", "Let nobody claim from a queue, on any host."),
    "resume": Entry("orchestrator.cli.queue:resume", "End a pause."),
    "bridge": Entry("orchestrator.cli.bridge:bridge", "Move messages from one queue into another."),
    "dirq": Entry("orchestrator.cli.dirq:dirq", "Work on a directory queue of the Directory::Queue kinds."),
    "ddmq": Entry("orchestrator.cli.ddmq:ddmq", "Work on the queues of a ddmq root directory."),
    "mqueue": Entry("orchestrator.cli.mqueue:mqueue", "Work on a POSIX message queue of the kernel."),
    "status": Entry("orchestrator.cli.pool:status", "Show what the running pools are doing."),
    "stop": Entry(
        "orchestrator.cli.pool:stop",
        "Stop a pool quickly: what is in hand gets term_timeout, then goes back.",
    ),
    "drain": Entry(
        "orchestrator.cli.pool:drain", "Stop a pool when what is in hand is finished, at most stop_timeout."
    ),
    "reload": Entry("orchestrator.cli.pool:reload", "Have a pool read its configuration again."),
    "signal": Entry("orchestrator.cli.signal:signal_", "Signal a pool: save the run log or the state, and others."),
    "runlog": Entry("orchestrator.cli.runlog:runlog_", "Look at the run logs of a pool."),
    "scale": Entry("orchestrator.cli.pool:scale", "Set how many workers a queue of a pool has."),
    "check": Entry("orchestrator.cli.config:check", "Check configuration files."),
    "config": Entry("orchestrator.cli.config:config", "Show the configuration, or what can be configured."),
    "doctor": Entry("orchestrator.cli.doctor:doctor", "Say whether a queue may be had on a mount, from all hosts."),
    "bench": Entry("orchestrator.cli.bench:bench", "Measure this machine and filesystem."),
    "completion": Entry("orchestrator.cli:completion", "Print the completion script of a shell."),
}


class Failed(click.ClickException):
    """Something that a person reads as one line, and a script by its exit code."""

    def __init__(self, text: str, exit_code: int = 1) -> None:
        super().__init__(text)
        # An instance's own: click declares it for the class and reads it from the instance.
        vars(self)["exit_code"] = exit_code

    def show(self, file: IO[Any] | None = None) -> None:
        """Print it."""
        click.echo(f"orchestrator: {self.format_message()}", file=file, err=file is None)


def _drop_output() -> None:
    """What standard output did not take is tried again as the interpreter ends, which would change the exit code."""
    try:
        sys.stdout.flush()
    except OSError:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())


@contextmanager
def _printable() -> Iterator[None]:
    """What is wrong is told with the words of the command line in it, and those may be names of anybody's files."""
    try:
        yield
    except Failed as error:  # has as many lines as whoever raised it wanted
        vars(error)["message"] = "\n".join(map(escaped, error.message.split("\n")))
        raise
    except click.ClickException as error:
        vars(error)["message"] = escaped(error.message)
        raise


class LazyGroup(click.Group):
    """A group that imports a command when it is used."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Read the options before the command."""
        with _printable():
            return super().make_context(info_name, args, parent, **extra)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Name the commands, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import *cmd_name*. Raises Failed when its module cannot be imported."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        module, _, name = entry.spec.partition(":")
        try:
            command = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise Failed(f"the command {cmd_name} cannot be loaded: {error}; is the installation complete?") from error
        assert isinstance(command, click.Command), entry.spec  # noqa: S101 - a fault of the table
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """List the commands out of the table: importing them all would cost a second."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete a command's name out of the table."""
        found = [
            CompletionItem(name, help=entry.help) for name, entry in COMMANDS.items() if name.startswith(incomplete)
        ]
        return found + click.Command.shell_complete(self, ctx, incomplete)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an error on purpose becomes one line and an exit code."""
        with _printable():
            return self._invoke(ctx)

    def _invoke(self, ctx: click.Context) -> Any:
        try:
            found = super().invoke(ctx)
            sys.stdout.flush()  # here, where an error has a message and an exit code
            return found
        except OrchestratorError as error:
            # One line, whatever name it tells of; that of a configuration has a line for each of its errors.
            text = escaped(str(error)) if isinstance(error, QueueError) else str(error)
            raise Failed(text, getattr(error, "exit_code", 1)) from error
        except OSError as error:
            if error.errno == errno.EPIPE:  # the reader of our output left: click ends quietly
                raise
            _drop_output()
            where = f" {shown(os.fsdecode(error.filename))}" if isinstance(error.filename, str | bytes) else ""
            raise Failed(f"cannot use{where}: {error.strerror or error}" if where else str(error)) from error
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)


def _show_version(ctx: click.Context, _param: click.Parameter, is_asked: bool) -> None:
    if is_asked and not ctx.resilient_parsing:
        click.echo(f"orchestrator, version {orchestrator.__version__}")
        ctx.exit()


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, expose_value=False, is_eager=True, callback=_show_version,
              help="Show the version and exit.")  # fmt: skip
def cli() -> None:
    """Worker pools over directory queues: put files in, have them handled at least once, see it measured."""


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """
    Print the completion script of SHELL.

    For bash, put this into ~/.bashrc: eval "$(orchestrator completion bash)"
    """
    found = get_completion_class(shell)
    assert found is not None  # noqa: S101 - click has all three
    click.echo(found(cli, {}, "orchestrator", "_ORCHESTRATOR_COMPLETE").source())


def _open_standard_streams() -> None:
    """A stream that was closed by the caller becomes /dev/null, or the next file opened would take its place."""
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(fd, "r" if fd == 0 else "w", closefd=False))


def main() -> NoReturn:
    """Run the command that the process's arguments name, and exit."""
    _open_standard_streams()
    for stream in (sys.stdout, sys.stderr):
        # A name may hold what the locale's encoding has not, or no text at all.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if sys.argv[1:2] and sys.argv[1] in ON_A_QUEUE and signals.getsignal(signals.SIGINT) is not signals.SIG_IGN:
        # A handler would run when the call it interrupts is over, and a filesystem that hangs lets only what ends the
        # process interrupt it. See test_who_waits_for_a_hung_mount_is_interrupted_where_the_kernel_lets_it.
        signals.signal(signals.SIGINT, signals.SIG_DFL)
    cli(prog_name="orchestrator")
    raise AssertionError("click exits by itself")
