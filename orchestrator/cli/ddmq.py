"""
ddmq - commands on the queues of a ddmq root directory

They take the arguments and print the lines of the original's command line, so that a script
has only its first word to change; programs that use the original may go on meanwhile.

What a command was asked for stands on stdout, whatever is wrong with a queue or a message on
stderr, so that JSON stays JSON. A name that does not fit, a queue that is there already or a
message that is gone is told and passed over, which is no failure, as in the original.
Exit codes: 0 fine, 1 failed (also: no such command, or none), 2 usage.
Limits: a message is an argument of the command line, and text; json takes a longer one from
standard input. Unlike the original's, nack without --requeue leaves it to the message and
the settings whether it is put back (the original deletes it).
Long because: eleven short commands, read side by side.
See also: ddmq_data (what goes in and comes out), workers.ddmq (the library).
"""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from typing import Any, Literal, TypeVar, cast

import click
from click.shell_completion import CompletionItem
from rich.console import Console
from rich.table import Table

from orchestrator.cli import Failed
from orchestrator.cli.ddmq_data import FORMATS, Counts, Format, message_as, queues_as, say, words_of
from orchestrator.logs import escaped
from workers.ddmq import VERSION, Broker, DdmqError
from workers.ddmq.files import QueueFiles
from workers.ddmq.names import NEW_QUEUE, check_queue, parse_waiting, parse_work
from workers.queues.names import shown

log = logging.getLogger(__name__)

COMPLETED_MAX = 500

Command = TypeVar("Command", bound=Callable[..., object])


class _Group(click.Group):
    """The commands; an error of the library becomes one line."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; where there is none, say so with the help, as the original does."""
        if self.get_command(ctx, args[0]) is None:
            say(f"Unrecognized command: {args[0]}")
            click.echo(ctx.get_help())
            ctx.exit(1)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except DdmqError as error:
            raise Failed(escaped(str(error))) from error


class _Lines(logging.Handler):
    """What the library logs, a line each on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print *record*; a stderr that takes nothing is no reason to stop."""
        with suppress(OSError):
            click.echo(f"orchestrator: {record.levelname.lower()}: {escaped(record.getMessage())}", err=True)


def _complete_queues(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The queues that the last name of a list of them may become."""
    return _completed(incomplete, lambda: Broker(ctx.params["root"]).list_queues())


def _complete_files(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The messages at work; for del_msg also those that wait."""

    def found() -> Iterator[str]:
        waiting, working = Broker(ctx.params["root"]).get_message_list(ctx.params["queue"])
        yield from working
        if ctx.command is del_msg:
            yield from waiting

    return _completed(incomplete, found)


def _completed(incomplete: str, find: Callable[[], Iterator[str] | list[str]]) -> list[CompletionItem]:
    before, comma, last = incomplete.rpartition(",")
    given = before.split(",")
    with suppress(DdmqError, OSError, ValueError):
        names = (name for name in find() if name.startswith(last) and name not in given and name.isprintable())
        return [CompletionItem(before + comma + name) for name in islice(names, COMPLETED_MAX)]
    return []


# ---- arguments and options, the same for all commands


def _with(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several decorators, in the order in which help lists them."""

    def decorate(function: Command) -> Command:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


root_argument = click.argument("root", type=click.Path(file_okay=False, path_type=str))
queue_argument = click.argument("queue", shell_complete=_complete_queues)
queues_argument = click.argument("queue", metavar="QUEUE[,QUEUE...]", shell_complete=_complete_queues)
files_argument = click.argument("msg_files", metavar="FILE[,FILE...]", shell_complete=_complete_files)
force_option = click.option("-f", "--force", "creates", is_flag=True, help="Make the root directory if needed.")
force_all_option = click.option(
    "-f", "--force", "creates", is_flag=True, help="Make the root directory and the queue if needed."
)
skip_option = click.option(
    "-C", "--skip_cleaning", "--skip-cleaning", "skips", is_flag=True, help="Leave expired messages where they are."
)
requeue_option = click.option("-r", "--requeue", "requeues", is_flag=True, help="Put the messages back in any case.")
verbose_options = _with(
    click.option("-v", "--verbose", "verbose", is_flag=True, help="Say on stderr what is done."),
    click.option("-d", "--debug", "debug", is_flag=True, help="Say even more."),
)
silent_option = click.option("-s", "--silent", "silent", is_flag=True, help="Print nothing where all is well.")
list_parameters = _with(root_argument, queues_argument, force_option, verbose_options, silent_option)
settle_parameters = _with(
    root_argument, queue_argument, files_argument, skip_option, requeue_option, verbose_options
)  # fmt: skip


def _version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        click.echo(f"ddmq version {VERSION}")
        ctx.exit()


@click.group(cls=_Group, invoke_without_command=True)
@click.option(
    "-v", "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version,
    help="Print the version of the format: that of the original which is stood in for.",
)  # fmt: skip
@click.pass_context
def ddmq(ctx: click.Context) -> None:
    """
    Work on the queues of a ddmq root directory.

    Programs and scripts that use the original may go on meanwhile.

    \b
    orchestrator ddmq create -f ./ddmq tasks
    orchestrator ddmq publish ./ddmq tasks "Hello World!"
    orchestrator ddmq consume ./ddmq tasks
    orchestrator ddmq ack ./ddmq tasks 1542279661.999.15422790613.ddmq39eb64e1913143aa8d28d9158f089006
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
        ctx.exit(1)


# ---- queues


@ddmq.command()
@root_argument
@click.argument("queue", required=False, metavar="[QUEUE[,QUEUE...]]", shell_complete=_complete_queues)
@force_option
@click.option("-n", "--names", "only_names", is_flag=True, help="Only the names of the queues.")
@click.option(
    "--format", "form", type=click.Choice(["default", *FORMATS]), default="default",
    help="default is a box on a terminal, and plain elsewhere.",
)  # fmt: skip
@verbose_options
def view(
    root: str, queue: str | None, *, creates: bool, only_names: bool, form: str, verbose: bool, debug: bool
) -> None:
    """
    List queues, and how many messages wait and are at work.

    \b
    orchestrator ddmq view ./ddmq
    orchestrator ddmq view --format json ./ddmq tasks,more
    """
    with _broker(root, creates=creates, verbose=verbose, debug=debug) as broker:
        queues = broker.list_queues()
        if queue:
            there, queues = queues, []
            for name in queue.split(","):
                if name in there:
                    queues.append(name)
                else:
                    click.echo(f"Warning: requested queue does not exist ({escaped(name)})", err=True)
        counts = None if only_names else _counts(broker, queues)
    if form == "default" and sys.stdout.isatty():
        _print_box(queues, counts)
    else:
        say(queues_as("plain" if form == "default" else cast("Format", form), queues, counts))


@ddmq.command()
@list_parameters
def create(root: str, queue: str, **options: bool) -> None:
    """Create queues."""

    def act(broker: Broker, name: str) -> tuple[str, bool]:
        return (f"Created new queue: {name}", True) if _make(broker, name) else (f"Already existing: {name}", False)

    _each(root, queue, act, "Created {} new queues", **options)


@ddmq.command()
@list_parameters
def delete(root: str, queue: str, **options: bool) -> None:
    """Delete queues, with the messages in them."""

    def act(broker: Broker, name: str) -> tuple[str, bool]:
        if not _is_queue(broker, name):
            return f"Queue not existing: {name}", False
        broker.delete_queue(name)
        return f"Deleted queue: {name}", True

    _each(root, queue, act, "Deleted {} queues", **options)


@ddmq.command()
@list_parameters
def purge(root: str, queue: str, **options: bool) -> None:
    """Delete all messages of queues, also those at work."""

    def act(broker: Broker, name: str) -> tuple[str, bool]:
        if not _is_queue(broker, name):
            return f"Queue does not exist: {_path(broker, name)}", False
        waiting, working = broker.purge_queue(name)
        return f"Purged queue: {name}\t({waiting} messages in queue, {working} messages in work)", True

    _each(root, queue, act, "Purged {} queues", **options)


@ddmq.command()
@list_parameters
def clean(root: str, queue: str, **options: bool) -> None:
    """Requeue or delete what has expired, now."""

    def act(broker: Broker, name: str) -> tuple[str, bool]:
        if not _is_queue(broker, name):
            return f"Queue does not exist: {_path(broker, name)}", False
        broker.clean(name, force=True)
        return f"Cleaned queue: {name}", True

    _each(root, queue, act, "Cleaned {} queues", **options)


# ---- messages


@ddmq.command()
@root_argument
@queue_argument
@click.argument("message")
@force_all_option
@click.option(
    "-p", "--priority", type=click.IntRange(min=0), metavar="N", help="0 is served first.  [default: the settings']"
)
@click.option(
    "-t", "--timeout", type=click.IntRange(min=0), metavar="SECONDS",
    help="From consuming to expiry.  [default: the settings']",
)  # fmt: skip
@click.option("-r", "--requeue", "requeues", is_flag=True, help="Put it back when it expires; it is deleted otherwise.")
@click.option(
    "-l", "--requeue_limit", "--requeue-limit", "requeue_limit", type=click.IntRange(min=0), metavar="N",
    help="Delete it when it expires after being put back so often.  [default: no limit]",
)  # fmt: skip
@click.option(
    "--requeue_prio", "--requeue-prio", "requeue_prio", type=click.IntRange(min=0), metavar="N",
    help="Priority when it is put back; implies --requeue.  [default: the settings', which is 0]",
)  # fmt: skip
@skip_option
@verbose_options
@silent_option
def publish(
    root: str,
    queue: str,
    message: str,
    *,
    creates: bool,
    priority: int | None,
    timeout: int | None,
    requeues: bool,
    requeue_limit: int | None,
    requeue_prio: int | None,
    skips: bool,
    verbose: bool,
    debug: bool,
    silent: bool,
) -> None:
    """
    Publish a message; print it.

    -- stands before a MESSAGE that begins with a dash.

    \b
    orchestrator ddmq publish ./ddmq tasks "Hello World!"
    orchestrator ddmq publish -f -p 0 -t 60 --requeue_prio 5 ./ddmq urgent fire
    """
    tell = _silent if silent else say
    with _broker(root, creates=creates, verbose=verbose, debug=debug) as broker:
        if _ready(broker, queue, creates=creates):
            tell(f"Created new queue: {queue}")
        if skips:
            tell("Skipping queue cleaning.")
        published = broker.publish(
            queue,
            message,
            priority=priority,
            clean=not skips,
            requeue=requeues,
            requeue_prio=requeue_prio,
            timeout=timeout,
            requeue_limit=requeue_limit,
        )
    tell(f"Successfully published message:\n\n{published}")


@ddmq.command()
@root_argument
@queue_argument
@force_all_option
@click.option("-n", "--number", type=click.IntRange(min=1), default=1, metavar="N", help="How many.  [default: 1]")
@click.option("--format", "form", type=click.Choice(FORMATS), default="json", help="JSON has a line for each message.")
@skip_option
@verbose_options
def consume(
    root: str, queue: str, *, creates: bool, number: int, form: Format, skips: bool, verbose: bool, debug: bool
) -> None:
    """
    Take messages out of a queue; print them.

    They are at work then, until they are acknowledged by their filename, or expire. What could not be printed
    waits again.

    \b
    orchestrator ddmq consume ./ddmq tasks
    orchestrator ddmq consume -n 10 --format plain ./ddmq tasks
    """
    with _broker(root, creates=creates, verbose=verbose, debug=debug) as broker:
        _ready(broker, queue, creates=creates)
        found = broker.consume(queue, n=number, clean=not skips)
    messages = found if isinstance(found, list) else [] if found is None else [found]
    try:
        say(*(message_as(form, message) for message in messages) if messages else [f"No more messages in {queue}"])
    except BaseException:
        # Nobody knows of these claims, and an expired message is deleted unless it was published otherwise.
        files = QueueFiles(root, queue)
        for claim in (str(message.filename) for message in messages):
            with suppress(OSError):  # the first error is the one to tell
                _, name = parse_work(claim) or (0, claim)
                files.put_back(claim, name)
        raise


@ddmq.command()
@settle_parameters
def ack(root: str, queue: str, msg_files: str, **options: bool) -> None:
    """
    Acknowledge messages: they are done, and deleted.

    A FILE is the filename that consume printed, or the path of it in work/.
    """
    _settle("ack", root, queue, msg_files, **options)


@ddmq.command()
@settle_parameters
def nack(root: str, queue: str, msg_files: str, **options: bool) -> None:
    """
    Acknowledge messages negatively: they are put back, or deleted where they or the settings say so.

    A FILE is the filename that consume printed, or the path of it in work/.
    """
    _settle("nack", root, queue, msg_files, **options)


@ddmq.command("del_msg")
@root_argument
@queue_argument
@files_argument
@skip_option
@verbose_options
@silent_option
def del_msg(
    root: str,
    queue: str,
    msg_files: str,
    *,
    skips: bool,  # noqa: ARG001 - taken as the original does, which cleans nothing here either
    verbose: bool,
    debug: bool,
    silent: bool,
) -> None:
    """Delete messages, waiting or at work."""
    tell, count = _silent if silent else say, 0
    with _broker(root, verbose=verbose, debug=debug) as broker:
        check_queue(queue)
        waiting, working = _path(broker, queue), _path(broker, queue, "work")
        for file in msg_files.split(","):
            name = _name_in(file, waiting, working)
            directory = working if parse_work(name) else waiting if parse_waiting(name) else None
            path = os.path.join(directory, name) if directory else file
            try:
                is_deleted = bool(directory) and broker.delete_message(path)
            except FileNotFoundError:
                is_deleted = False
            tell(f"Deleted {path}" if is_deleted else f"Skipping {path}, file does not exists")
            count += is_deleted
    if count > 1:
        tell(f"Deleted {count} messages")


@ddmq.command("json")
@click.argument("payload", metavar="OBJECT")
@click.pass_context
def run_json(ctx: click.Context, payload: str) -> None:
    """
    Run the command that a JSON object holds.

    Its keys are cmd and what the command takes: root queue message msg_files, the flags f v d n s, and format
    priority timeout requeue requeue_limit requeue_prio skip_cleaning. The default of format is plain. - reads
    the object from standard input.

    \b
    orchestrator ddmq json '{"cmd": "publish", "root": "./ddmq", "queue": "tasks", "message": "Hello", "priority": 1}'
    orchestrator ddmq json '{"cmd": "consume", "root": "./ddmq", "queue": "tasks", "n": 10, "format": "json"}'
    """
    text = sys.stdin.buffer.read() if payload == "-" else payload
    commands = {name: command for name, command in ddmq.commands.items() if command is not run_json}
    command, words = words_of(text, commands)
    with command.make_context(command.name, words, parent=ctx.parent) as inner:
        command.invoke(inner)


# ---- which broker, queue, message


@contextmanager
def _broker(root: str, *, creates: bool | None = None, verbose: bool = False, debug: bool = False) -> Iterator[Broker]:
    """
    The broker of *root*, while its log goes to stderr. Raises Failed.

    *creates* is None where the command has no -f to be suggested.
    """
    logger, lines = logging.getLogger(), _Lines()
    level = logger.level
    logger.addHandler(lines)
    logger.setLevel(logging.DEBUG if debug else logging.INFO if verbose else logging.WARNING)
    try:
        broker = Broker(root, create=bool(creates))
        log.debug("root and settings: %s", broker.global_settings | {"root": broker.root})
        yield broker
    except DdmqError as error:
        if error.error not in ("missing", "uninitiated"):
            raise
        what = "does not exist" if error.error == "missing" else "exists but is not initiated (it has no ddmq.yaml)"
        where = shown(root) or "''"
        raise Failed(f"the root directory {where} {what}: {_hint(creates)}") from error
    except ValueError as error:  # a name, a number or a file of settings that is none
        raise Failed(escaped(str(error))) from error
    finally:
        logger.removeHandler(lines)
        logger.setLevel(level)


def _hint(creates: bool | None) -> str:
    if creates is None:
        return "orchestrator ddmq create -f makes one"
    return "run the same command with -f (--force) to make it"


def _path(broker: Broker, *names: str) -> str:
    return os.path.join(broker.root, *names)


def _is_queue(broker: Broker, name: str) -> bool:
    return bool(broker.check_dir(_path(broker, name)))


def _make(broker: Broker, name: str) -> bool:
    """Make the queue *name*; False when it is there already. Raises FileExistsError when something else is."""
    if _is_queue(broker, name):
        return False
    try:
        broker.create_queue(name)
    except FileExistsError as error:
        if _is_queue(broker, name):  # another was first
            return False
        text = "it is there, and is no queue (ddmq.yaml or work/ is missing); move it away"
        raise FileExistsError(errno.EEXIST, text, _path(broker, name)) from error
    return True


def _ready(broker: Broker, name: str, *, creates: bool | None = None) -> bool:
    """See that the queue *name* is there, or make it; True when it was made. Raises Failed, ValueError."""
    log.info("using the queue %s", _path(broker, check_queue(name)))
    if _is_queue(broker, name):
        return False
    if creates:
        return _make(broker, name)
    raise Failed(f"the queue {shown(_path(broker, name))} does not exist: {_hint(creates)}")


def _name_in(file: str, *directories: str) -> str:
    """The name of *file* in one of *directories*; one that lies elsewhere stays a path, which names no message."""
    directory, name = os.path.split(file)
    is_here = not directory or os.path.abspath(directory) in map(os.path.abspath, directories)
    return name if is_here else file


def _counts(broker: Broker, queues: list[str]) -> dict[str, tuple[int, int]]:
    """What waits and is at work in each of *queues*; one that was deleted meanwhile is left out."""
    counts = {}
    for queue in queues:
        with suppress(FileNotFoundError):
            waiting, working = broker.get_message_list(queue)
            counts[queue] = (len(waiting), len(working))
    return counts


# ---- what several commands do


def _each(
    root: str,
    queues: str,
    act: Callable[[Broker, str], tuple[str, bool]],
    total: str,
    *,
    creates: bool,
    verbose: bool,
    debug: bool,
    silent: bool,
) -> None:
    """Let *act* do its work on each queue, and tell what it did; the ones that failed are told in the end."""
    tell, count, failed = _silent if silent else say, 0, []
    with _broker(root, creates=creates, verbose=verbose, debug=debug) as broker:
        for name in queues.split(","):
            if not NEW_QUEUE.match(name):
                tell(f"Skipping {name}, invalid name")
                continue
            try:
                line, is_done = act(broker, name)
            except (DdmqError, OSError) as error:
                reason = (error.strerror if isinstance(error, OSError) else None) or error
                failed.append(escaped(f"{_path(broker, name)}: {reason}"))
            else:
                tell(line)
                count += is_done
    if count > 1:
        tell(total.format(count))
    if failed:
        raise Failed("; ".join(failed))


def _settle(
    verb: Literal["ack", "nack"], root: str, queue: str, msg_files: str,
    *, skips: bool, requeues: bool, verbose: bool, debug: bool,
) -> None:  # fmt: skip
    """Settle messages, and tell which were."""
    with _broker(root, verbose=verbose, debug=debug) as broker:
        _ready(broker, queue)
        work = _path(broker, queue, "work")
        files = [_name_in(file, work) for file in msg_files.split(",")]
        names = [file for file in files if parse_work(file)]
        settle = broker.ack if verb == "ack" else broker.nack
        # None leaves it to the verb: done is done, and the message says what comes of one that is not.
        settled = settle(queue, names, requeue=True if requeues else None, clean=not skips) if names else []
    for name in settled:
        say(f"{verb}ed {os.path.join(work, name)}")
    for file in files:
        if file not in settled:
            say(f"failed {verb} {os.path.join(work, file)}")


def _silent(_text: str) -> None:
    """Tell nothing."""


def _print_box(queues: list[str], counts: Counts | None) -> None:
    """Print the queues for a person."""
    table = Table()
    table.add_column("queue", overflow="fold")
    for title in () if counts is None else ("msg in queue", "msg at work"):
        table.add_column(title, justify="right")
    for queue in sorted(queues if counts is None else counts):
        table.add_row(shown(queue), *(() if counts is None else map(str, counts[queue])))
    Console(markup=False, emoji=False, highlight=False).print(table)
