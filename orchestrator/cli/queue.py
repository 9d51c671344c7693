"""
queue - commands on a queue itself; none needs a master

put makes the queue where only its parent exists; the others never do. What only
reads works from the directory alone. Names are escaped for people (on a terminal and
in lists) and written byte for byte where a program reads them.
Long because: a command for each verb, all of one shape.
See also: workers.queues.base (the verbs), pool (commands on a running pool).
"""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from io import BufferedReader
from pathlib import Path
from typing import Protocol, cast, get_args, runtime_checkable

import click

from orchestrator.cli import Failed
from orchestrator.logs import escaped
from workers.errors import NotSupported, QueueError
from workers.message import Body
from workers.queues.base import Queue, Settings, Shown, State
from workers.queues.names import shown, shown_lines
from workers.queues.open import open_queue, places
from workers.system import SYSTEM, System
from workers.trust import guarded

BATCH = 256  # messages of one put_many, which syncs them together
READ_SIZE = 1 << 20  # a file's lines then fill whole batches
STDIN = Path("-")

queue_argument = click.argument("queue")
json_option = click.option("--json", "is_json", is_flag=True, help="Print JSON.")
state_option = click.option("--state", type=click.Choice(get_args(State)), help="Only messages of this state.")


@runtime_checkable
class _TakesFiles(Protocol):
    def put_file(self, path: Path, name: str | None = None, *, durable: bool | None = None) -> str: ...


@click.command()
@queue_argument
@click.argument(
    "files", nargs=-1, type=click.Path(exists=True, dir_okay=False, allow_dash=True, readable=False, path_type=Path)
)
@click.option("--name", help="Name of the message, for one message only.")
@click.option("--lines", is_flag=True, help="Each line is a message, without its newline.")
@click.option("--move", is_flag=True, help="Move the files into the queue instead of copying them.")
@click.option("--delay", type=click.FloatRange(min=0), default=0, metavar="SECONDS", help="Not to be claimed before.")
@click.option(
    "--priority", type=int, metavar="N", help="The protocol's own: of ddmq 0 is first, of mqueue the highest."
)
@click.option(
    "--durable/--no-durable",
    default=None,
    help="Survive a power failure, or do not wait for the disk: a power failure may then take the message away or "
    "cut it short. By default as far as the protocol can.",
)
def put(
    *,
    queue: str,
    files: tuple[Path, ...],
    name: str | None,
    lines: bool,
    move: bool,
    delay: float,
    priority: int | None,
    durable: bool | None,
) -> None:
    """
    Put messages into a queue; print their names.

    Each FILE is a message (- is standard input, which is also read when no FILE is
    given). The queue is made where only its parent directory exists. Input that is no
    regular file is read into memory, but for --lines.
    """
    if name is not None and (lines or len(files) > 1):
        raise click.UsageError("--name is for one message: give one FILE, without --lines")
    if move and (lines or delay or priority is not None or not files or STDIN in files):
        raise click.UsageError("--move takes FILEs, and none of --lines, --delay, --priority")
    sources = files or (STDIN,)
    with open_queue(queue, create=True, settings=Settings(create=True)) as opened:
        if move:
            if not isinstance(opened, _TakesFiles):
                raise NotSupported(f"--move is not possible: a {opened.protocol} queue keeps no files")
            for path in sources:
                _print_name(opened.put_file(path, name, durable=durable))
            return
        batches = _lines(sources) if lines else _bodies(sources)
        for batch in batches:
            if name is None and not delay and priority is None:
                _put_batch(opened, batch, durable)
                continue
            for body in batch:
                _print_name(opened.put(body, name, priority=priority, delay=delay, durable=durable))


@click.command()
@queue_argument
@state_option
@json_option
def ls(queue: str, state: State | None, is_json: bool) -> None:
    """List the messages of a queue."""
    with open_queue(queue) as opened:
        if is_json:
            _print_array(asdict(listed) for listed in opened.list(state))
            return
        for listed in opened.list(state):
            when = f"  due {_when(listed.due_at)}" if listed.due_at is not None else ""
            crashes = f"  crashes {listed.crashes}" if listed.crashes else ""
            click.echo(f"{listed.state:<9} attempt {listed.attempt:<3} {shown(listed.name)}{when}{crashes}")


@click.command()
@queue_argument
@click.argument("name")
@state_option
@json_option
@click.option("--body", is_flag=True, help="Write the message alone: byte for byte, on a terminal escaped.")
def show(queue: str, name: str, state: State | None, is_json: bool, body: bool) -> None:
    """Show one message, and why it is in errors/."""
    if body and is_json:
        raise click.UsageError("--body and --json exclude each other")
    with open_queue(queue) as opened:
        found = [one for one in opened.show(name) if state in (None, one.listed.state)]
    if not found:
        raise Failed(f"no message called {shown(name)} in {shown(queue)}; 'orchestrator ls' lists what there is")
    if body:
        if len(found) > 1:
            states = ", ".join(one.listed.state for one in found)
            raise Failed(f"{len(found)} messages are called {shown(name)} ({states}); choose one with --state", 2)
        _write_body(found[0], guarded(SYSTEM, *places(queue)))
    elif is_json:
        _print_array(_as_dict(one) for one in found)
    else:
        for one in found:
            _print_shown(one)


@click.command()
@queue_argument
@click.argument("names", nargs=-1, required=True)
def requeue(queue: str, names: tuple[str, ...]) -> None:
    """Move messages from errors/ back into the queue, their attempts and crashes at zero."""
    missing = []
    with open_queue(queue) as opened:
        for name in names:
            count = opened.requeue(name)
            if count:
                click.echo(f"requeued {shown(name)}" + (f" ({count} messages)" if count > 1 else ""))
            else:
                missing.append(shown(name))
    if missing:
        raise Failed(f"not in errors/ of {shown(queue)}: {', '.join(missing)}")


@click.command()
@queue_argument
def pause(queue: str) -> None:
    """Let nobody claim from a queue, on any host. What is in hand is finished."""
    with open_queue(queue) as opened:
        opened.pause()
    click.echo(f"{shown(queue)} is paused")


@click.command()
@queue_argument
def resume(queue: str) -> None:
    """End a pause."""
    with open_queue(queue) as opened:
        opened.resume()
    click.echo(f"{shown(queue)} is no longer paused")


def _put_batch(queue: Queue, batch: list[Body], durable: bool | None) -> None:
    try:
        names = queue.put_many(batch, durable=durable)
    except QueueError as error:
        # What was put before the error is put: whoever repeats the rest must know.
        for name in getattr(error, "names", ()):
            _print_name(name)
        raise
    for name in names:
        _print_name(name)


def _bodies(sources: Iterable[Path]) -> Iterator[list[Body]]:
    batch: list[Body] = []
    for path in sources:
        if path == STDIN:
            batch.append(sys.stdin.buffer.read())
        elif stat.S_ISREG(os.stat(path).st_mode):
            batch.append(path.resolve())  # a queue follows no link, but the person who names one means its file
        else:
            batch.append(path.read_bytes())
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _lines(sources: Iterable[Path]) -> Iterator[list[Body]]:
    for path in sources:
        if path == STDIN:
            yield from _lines_of(cast(BufferedReader, sys.stdin.buffer))
        else:
            with path.open("rb") as file:
                yield from _lines_of(file)


def _lines_of(stream: BufferedReader) -> Iterator[list[Body]]:
    """Batches of complete lines, each as soon as it was read: a slow writer's line does not wait for 255 others."""
    unfinished: list[bytes] = []
    while part := stream.read1(READ_SIZE):
        head, *rest = part.split(b"\n")
        unfinished.append(head)
        if not rest:
            continue
        complete: list[Body] = [b"".join(unfinished), *rest[:-1]]
        unfinished = [rest[-1]]
        for start in range(0, len(complete), BATCH):
            yield complete[start : start + BATCH]
    last = b"".join(unfinished)
    if last:
        yield [last]


def _print_name(name: str | None) -> None:
    if name is not None:
        click.echo(shown(name) if sys.stdout.isatty() else os.fsencode(name))


def _print_array(rows: Iterable[dict[str, object]]) -> None:
    """Print a JSON array while it is made: a queue may hold millions."""
    lead = "["
    for row in rows:
        click.echo(f"{lead}\n{json.dumps(row)}", nl=False)
        lead = ","
    click.echo("[]" if lead == "[" else "\n]")


def _as_dict(one: Shown) -> dict[str, object]:
    fields = asdict(one)
    del fields["body"]
    return {**fields.pop("listed"), **fields}


def _print_shown(one: Shown) -> None:
    listed = one.listed
    rows: list[tuple[str, object]] = [
        ("name", shown(listed.name)),  # on one line, where what a .meta says may have several
        ("state", listed.state),
        ("path", shown(listed.path)),
        ("size", f"{one.size} bytes"),
        ("attempt", listed.attempt),
        ("crashes", listed.crashes),
        ("enqueued", _when(one.enqueued_at)),
        ("modified", _when(one.modified_at)),
    ]
    if listed.owner is not None:
        rows.append(("owner", listed.owner))
    if listed.due_at is not None:
        rows.append(("due", _when(listed.due_at)))
    for key, value in sorted((one.meta or {}).items()):
        rows.append((key, value if isinstance(value, str) else json.dumps(value)))
    for key, value in rows:
        # A traceback stays readable line by line, but nothing in it reaches the terminal as a control character.
        first, *more = [escaped(line) for line in str(value).splitlines()] or [""]
        click.echo(f"{escaped(key) + ':':<12} {first}")
        for line in more:
            click.echo(f"{'':<12} {line}")
    click.echo()


def _when(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    except (ValueError, OverflowError, OSError):  # a file may claim any time
        return f"{seconds:.0f}"


def _write_body(one: Shown, door: System) -> None:
    # Whoever put the message is not to drive the terminal of whoever looks at it.
    fit: Callable[[bytes], bytes] = shown_lines if sys.stdout.isatty() else bytes
    if one.body is not None:
        sys.stdout.buffer.write(fit(one.body))
        return
    path = one.listed.path
    gone = f"{shown(path)} is no longer there: the message has moved on; try again"
    try:
        fd = door.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise Failed(gone) from error
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise Failed(f"{shown(path)} is no regular file; it has no body")
        out = sys.stdout.buffer
        while part := file.read(1 << 20):
            out.write(fit(part))
        out.flush()
