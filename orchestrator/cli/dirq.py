"""
dirq - commands on a directory queue of the Directory::Queue kinds, simple and normal

They do what a program of Perl, Python, Java or C that uses such a queue does, on the same
directory and at the same time. A simple queue keeps an element in a file; a normal one in a
directory with a file for each key of its schema. Which one is at PATH is seen by temporary/
and obsolete/, which only a normal one has.

add makes the queue where only its parent exists; the others never do. get and remove lock
an element first, and leave alone what another has locked.
Exit codes: 0 fine, 1 failed (for any of the names), 2 usage.
Limits: an element is read into memory. Whoever is killed with an element locked leaves the
lock, until a purge by anybody finds it old.
Long because: seven short commands, read side by side.
See also: dirq_data (what goes in and comes out), queue (the commands on this program's own queues), workers.dirq.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import click
from click.shell_completion import CompletionItem

from orchestrator.cli import Failed
from orchestrator.cli.dirq_data import STDIN, as_json, bodies, bytes_of, parts, value
from orchestrator.logs import escaped
from workers.dirq import (
    LOCKED_DIRECTORY,
    LOCKED_SUFFIX,
    Queue,
    QueueError,
    QueueSimple,
)
from workers.dirq.elements import check_name
from workers.dirq.kind import kind_of
from workers.dirq.schema import body_key, parse_schema
from workers.queues.names import shown, shown_lines

Kind = Literal["simple", "normal"]

# What most programs store; a body of any bytes goes in and comes out as it is.
SCHEMA = {"body": "binary", "header": "table?"}
GRANULARITY, MAXELTS = 60, 16000
COMPLETED_MAX = 500


class _Group(click.Group):
    """The commands; an error of the library becomes one line."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except QueueError as error:
            raise Failed(escaped(str(error))) from error
        except OSError as error:
            # One that the library has worded has its path in the text; the others are told as everywhere.
            if error.errno == errno.EPIPE or error.filename is not None:
                raise
            raise Failed(escaped(str(error))) from error


def _pairs(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> list[tuple[str, str]]:
    """Split each KEY=VALUE."""
    for pair in values:
        if "=" not in pair:
            raise click.BadParameter(f"{pair!r}: KEY=VALUE is wanted")
    return [(key, text) for key, _, text in (pair.partition("=") for pair in values)]


def _schema(_ctx: click.Context, _param: click.Parameter, value: str | None) -> dict[str, str] | None:
    try:
        return None if value is None else parse_schema(value)
    except QueueError as error:
        raise click.BadParameter(str(error)) from error


def _octal(_ctx: click.Context, _param: click.Parameter, value: str | None) -> int | None:
    try:
        number = None if value is None else int(value, 8)
    except ValueError:
        number = -1
    if number is not None and not 0 <= number <= 0o777:
        raise click.BadParameter(f"{value!r}: an octal number of 000 to 777 is wanted")
    return number


def _complete_name(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The first names of the queue that begin so."""
    with suppress(QueueError, OSError, click.ClickException):
        path, given = ctx.params["path"], ctx.params.get("names") or ()
        queue = _open(path, _kind(path, ctx.params.get("kind")))
        found = (name for name in queue.names() if name.startswith(incomplete) and name not in given)
        return [CompletionItem(name) for name in islice(found, COMPLETED_MAX)]
    return []


path_argument = click.argument("path", type=click.Path(file_okay=False, path_type=str))
names_argument = click.argument("names", metavar="NAME...", nargs=-1, required=True, shell_complete=_complete_name)
kind_option = click.option(
    "--type", "kind", type=click.Choice(["simple", "normal"]), help="Which kind of queue.  [default: what is there]"
)
schema_option = click.option(
    "--schema",
    callback=_schema,
    metavar="KEY:TYPE,...",
    help="What an element of a normal queue has: binary, string or table, with ? when it may be missing."
    "  [default: body:binary,header:table?]",
)
json_option = click.option("--json", "is_json", is_flag=True, help="Print JSON.")


@click.group(cls=_Group)
def dirq() -> None:
    """
    Work on a directory queue of the Directory::Queue kinds.

    The programs that use it (Perl, Python, Java, C) may go on meanwhile.

    \b
    echo hello | orchestrator dirq add ./queue
    orchestrator dirq iterate ./queue
    orchestrator dirq get --remove ./queue 6553f100/6553f1230a1b2c
    """


@dirq.command()
@path_argument
@click.argument(
    "files", nargs=-1, type=click.Path(exists=True, dir_okay=False, allow_dash=True, readable=False, path_type=Path)
)
@kind_option
@schema_option
@click.option("--lines", is_flag=True, help="Each line is an element, without its newline.")
@click.option("-d", "--data", callback=_pairs, multiple=True, metavar="KEY=VALUE", help="A key of a normal queue.")
@click.option("-f", "--file", "read", callback=_pairs, multiple=True, metavar="KEY=FILE", help="The same, from a file.")
@click.option(
    "-t", "--table", "fields", callback=_pairs, multiple=True, metavar="KEY.FIELD=VALUE", help="A field of a table."
)
@click.option(
    "--granularity",
    type=click.IntRange(min=0),
    metavar="SECONDS",
    help="Of a simple queue: a directory for each.  [default: 60]",
)
@click.option(
    "--maxelts",
    type=click.IntRange(min=1),
    metavar="N",
    help="Of a normal queue: elements in one directory.  [default: 16000]",
)
@click.option("--umask", callback=_octal, metavar="OCTAL", help="For what is made.  [default: the process's]")
@click.option("--rndhex", type=click.IntRange(0, 15), metavar="N", help="Last digit of names.  [default: random]")
def add(
    path: str,
    files: tuple[Path, ...],
    kind: Kind | None,
    *,
    schema: dict[str, str] | None,
    lines: bool,
    data: list[tuple[str, str]],
    read: list[tuple[str, str]],
    fields: list[tuple[str, str]],
    granularity: int | None,
    maxelts: int | None,
    umask: int | None,
    rndhex: int | None,
) -> None:
    """
    Add elements; print their names.

    Each FILE is an element (- is standard input, which is also read when no FILE is given). In a normal
    queue that is the body, or the first key that must be there; -d, -f and -t give every element the
    others. -f reads a table from a JSON object. The queue is made where only its parent directory
    exists, a simple one by default.

    \b
    orchestrator dirq add ./queue report.txt picture.png
    orchestrator dirq add --lines ./queue < list
    orchestrator dirq add --type normal -t header.from=me ./normal letter.txt
    orchestrator dirq add --schema subject:string,text:string -d subject=hi -d text=there ./normal
    """
    kind = _kind(path, kind, is_adding=True)
    sources = files or (STDIN,)
    if kind == "simple":
        if schema or data or read or fields or maxelts is not None:
            raise click.UsageError("--schema, --maxelts, -d, -f and -t are for a normal queue (--type normal)")
        simple = QueueSimple(path, umask, rndhex, GRANULARITY if granularity is None else granularity)
        for body in bodies(sources, is_lines=lines):
            click.echo(simple.add(body))
        return
    if granularity is not None:
        raise click.UsageError("--granularity is for a simple queue")
    schema = schema or SCHEMA
    main, given = body_key(schema), parts(schema, data, read, fields)
    if main in given and (files or lines):
        raise click.UsageError(f"{main} is given by an option already: leave FILE and --lines out")
    raws = [None] if main in given else bodies(sources, is_lines=lines)
    normal = Queue(path, umask, rndhex, maxelts or MAXELTS, schema)
    for raw in raws:
        click.echo(normal.add(given if raw is None else {**given, main: value(schema, main, raw)}))


@dirq.command()
@path_argument
@kind_option
@json_option
def count(path: str, kind: Kind | None, *, is_json: bool) -> None:
    """Count the elements, locked or not."""
    found = _open(path, _kind(path, kind)).count()
    click.echo(json.dumps({"count": found}) if is_json else found)


@dirq.command()
@path_argument
@names_argument
@kind_option
@schema_option
@click.option("--key", metavar="KEY", help="Of a normal queue: only the file of KEY, byte for byte.")
@click.option("--remove", "removes", is_flag=True, help="Remove each element when it is written.")
@click.option("--json", "is_json", is_flag=True, help="Print a JSON object a line, also of a simple queue.")
def get(
    path: str,
    names: tuple[str, ...],
    kind: Kind | None,
    *,
    schema: dict[str, str] | None,
    key: str | None,
    removes: bool,
    is_json: bool,
) -> None:
    """
    Write the data of elements.

    Each is locked meanwhile. An element of a simple queue is written byte for byte (on a terminal escaped),
    one of a normal queue as a JSON object on a line. In JSON, bytes that are no text stand as {"base64": "..."}.

    \b
    orchestrator dirq get ./queue 6553f100/6553f1230a1b2c > file
    orchestrator dirq get --remove --key body ./normal 00000000/6553f1230a1b2c
    """
    kind = _kind(path, kind)
    if key is not None and (kind == "simple" or is_json):
        raise click.UsageError("--key is for a normal queue, and excludes --json")
    is_raw = key is not None or (kind == "simple" and not is_json)
    queue = _open(path, kind, (schema or SCHEMA) if key is None else {key: "binary"})
    out = sys.stdout.buffer
    for name in _locked(queue, names):
        try:
            found = queue.get(name)
            if is_raw:
                body = bytes_of(found, key)
                out.write(shown_lines(body) if sys.stdout.isatty() else body)
            else:
                out.write(json.dumps({"name": name, "data": as_json(found)}).encode() + b"\n")
            # ORDER: written, then removed: what the reader of our output did not take would be gone.
            # See test_get_removes_nothing_that_could_not_be_written.
            out.flush()
        except BaseException:
            with suppress(QueueError, OSError):  # the first error is the one to tell
                queue.unlock(name)
            raise
        if removes:
            queue.remove(name)
        else:
            queue.unlock(name)


@dirq.command()
@path_argument
@kind_option
@json_option
def iterate(path: str, kind: Kind | None, *, is_json: bool) -> None:
    """
    List the names of the elements, in order.

    All of them, locked or not. With --json also how old they are in seconds, whether locked, and since when
    (or since the last touch).
    """
    queue = _open(path, _kind(path, kind))
    if not is_json:
        for name in queue.names():
            click.echo(name)
        return
    lead = "["
    for name in queue.names():
        locked_s = _locked_s(queue, name)
        row = {"name": name, "age_s": _ago(int(name[9:17], 16)), "is_locked": locked_s is not None}
        click.echo(f"{lead}\n{json.dumps(row if locked_s is None else {**row, 'locked_s': locked_s})}", nl=False)
        lead = ","
    click.echo("[]" if lead == "[" else "\n]")


@dirq.command()
@path_argument
@kind_option
@click.option("--maxtemp", type=click.IntRange(min=0), default=300, show_default=True, metavar="SECONDS",
              help="Age of what was left half added or half removed; 0 leaves it.")  # fmt: skip
@click.option("--maxlock", type=click.IntRange(min=0), default=600, show_default=True, metavar="SECONDS",
              help="Age of a lock, since it was taken or touched; 0 leaves them.")  # fmt: skip
@json_option
def purge(path: str, kind: Kind | None, *, maxtemp: int, maxlock: int, is_json: bool) -> None:
    """
    Remove what the dead left behind.

    That is what is old and half added or half removed, old locks, and empty directories. An element whose lock is
    removed may be taken by another: --maxlock must be longer than anybody holds one.
    """
    elements = _open(path, _kind(path, kind)).elements
    now_ns = elements.filesystem_now_ns()
    swept = elements.sweep(*(now_ns - age_s * 10**9 if age_s else None for age_s in (maxtemp, maxlock)))
    if is_json:
        found = {"temporary": swept.temporary, "unlocked": swept.locks, "directories": swept.directories}
        click.echo(json.dumps(found))
        return
    for name in swept.locks:
        click.echo(f"unlocked {name}")
    click.echo(f"removed: temporary {swept.temporary}, locks {len(swept.locks)}, directories {swept.directories}")


@dirq.command()
@path_argument
@names_argument
@kind_option
def remove(path: str, names: tuple[str, ...], kind: Kind | None) -> None:
    """
    Remove elements.

    Each is locked first; those that another has locked are left, and the exit code is 1.
    """
    queue = _open(path, _kind(path, kind))
    for name in _locked(queue, names):
        queue.remove(name)


@dirq.command()
@path_argument
@names_argument
@kind_option
def touch(path: str, names: tuple[str, ...], kind: Kind | None) -> None:
    """
    Make the locks of elements young again.

    For who works on one for long: a purge, of any program, takes old locks away.
    """
    queue = _open(path, _kind(path, kind))
    missing = []
    for name in _checked(names):
        try:
            queue.touch(name)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
            missing.append(f"{name} is not there")
    _fail(queue, missing)


# ---- which queue


def _kind(path: str, wanted: Kind | None, *, is_adding: bool = False) -> Kind:
    """Which kind of queue is at *path*, or is to be. Raises Failed where that is none, or not the one *wanted*."""
    where = shown(path) or "''"
    try:
        there = set(os.listdir(path))
    except FileNotFoundError:
        if not is_adding:
            raise Failed(f"there is no queue at {where} (orchestrator dirq add makes one)") from None
        if not os.path.isdir(os.path.dirname(os.path.abspath(path))):
            raise Failed(f"cannot make the queue {where}: its parent directory does not exist") from None
        return wanted or "simple"
    found = kind_of(there)
    if found == "spool":
        raise Failed(f"{where} is a spool queue (it has incoming/): use orchestrator put, ls and show")
    if found == "normal":
        if wanted == "simple":
            raise Failed(f"{where} is a normal queue (it has temporary/ and obsolete/): leave --type out")
        return "normal"
    if wanted == "normal" and (found == "simple" or not is_adding):
        raise Failed(f"{where} is no normal queue (it lacks temporary/ or obsolete/): leave --type out")
    return wanted or "simple"


def _open(path: str, kind: Kind, schema: dict[str, str] | None = None) -> QueueSimple | Queue:
    """The queue at *path*, which is there."""
    return QueueSimple(path) if kind == "simple" else Queue(path, schema=schema or SCHEMA)


# ---- which elements


def _checked(names: Iterable[str]) -> list[str]:
    """The names, none of which leads elsewhere. Raises Failed."""
    checked = list(names)
    for name in checked:
        try:
            check_name(name)
        except QueueError as error:
            raise Failed(f"{shown(name)} is no name of an element: take it from orchestrator dirq iterate") from error
    return checked


def _locked(queue: QueueSimple | Queue, names: Iterable[str]) -> Iterator[str]:
    """Lock each in its turn. Raises Failed in the end for those that another has, or that are gone."""
    failed = []
    for name in _checked(names):
        if queue.lock(name):
            yield name
        elif os.path.lexists(f"{queue.path}/{name}"):
            failed.append(f"{name} is locked by another (orchestrator dirq purge removes old locks)")
        else:
            failed.append(f"{name} is not there")
    _fail(queue, failed)


def _fail(queue: QueueSimple | Queue, failed: list[str]) -> None:
    if failed:
        raise Failed(f"in {shown(queue.path)}: {'; '.join(failed)}")


def _locked_s(queue: QueueSimple | Queue, name: str) -> float | None:
    """Seconds since *name* was locked or touched; None while it is not locked."""
    element = f"{queue.path}/{name}"
    with suppress(FileNotFoundError):
        if isinstance(queue, QueueSimple):
            return _ago(os.lstat(element + LOCKED_SUFFIX).st_mtime)
        os.lstat(f"{element}/{LOCKED_DIRECTORY}")
        return _ago(os.lstat(element).st_mtime)
    return None


def _ago(at_s: float) -> float:
    return round(time.time() - at_s, 3)
