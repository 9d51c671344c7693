"""
mqueue - work on a POSIX message queue of the kernel: make, read, write, look, list, remove

What python -m workers.message_queue does, with the same options, and what needs more than
that: --info asks the kernel, --list reads /dev/mqueue, where the queues are files once that
is mounted, --unlink removes a name. These three make no queue.

Exit codes: 0 fine, 1 failed (for any of the lines), 2 usage, 128 and the signal.
See also: workers.message_queue_tool (which does the work), workers.posix_mq (the calls).
"""

from __future__ import annotations

import json
import os
import stat
from contextlib import closing

import click

from orchestrator.cli import Failed
from workers.message_queue_tool import MESSAGES, MODES, SIZE, Options, run
from workers.posix_mq import PRIORITY_MAX, Mq, limits, unlink
from workers.queues.names import shown
from workers.system import filesystem_magic

DIRECTORY, MAGIC = "/dev/mqueue", 0x19800202


def _octal(_ctx: click.Context, _param: click.Parameter, value: str) -> int:
    try:
        number = int(value, 8)
    except ValueError:
        number = -1
    if not 0 <= number <= 0o777:
        raise click.BadParameter(f"{value!r}: an octal number of 000 to 777 is wanted")
    return number


@click.command()
@click.argument("name", required=False)
@click.option("--create", "is_create", is_flag=True, help="Make the queue, and end.")
@click.option("--read", "is_read", is_flag=True, help="Receive messages and print them, for ever.")
@click.option("--write", "is_write", is_flag=True, help="Send each line of standard input.")
@click.option("--info", "is_info", is_flag=True, help="Show its limits, its mode, and how many messages wait.")
@click.option("--unlink", "is_unlink", is_flag=True, help="Remove the queue and what waits in it.")
@click.option("--list", "is_list", is_flag=True, help="List the names of all queues; takes no NAME.")
@click.option("--max-messages", type=int, metavar="N", help=f"Of a new queue.  [default: {MESSAGES}]")
@click.option("--max-message-size", type=int, metavar="N", help=f"Of a new queue, in bytes.  [default: {SIZE}]")
@click.option("--mode", callback=_octal, default="600", show_default=True, metavar="OCTAL",
              help="Of a new queue, whatever the umask.")  # fmt: skip
@click.option("--count", type=click.IntRange(min=0), metavar="N", help="End after N messages.")
@click.option("--priority", type=click.IntRange(0, PRIORITY_MAX), default=0, show_default=True, metavar="N",
              help="Of what is sent; the highest is read first.")  # fmt: skip
@click.option("--timeout", type=click.FloatRange(min=0), metavar="SECONDS",
              help="End when no message, or no room, comes for so long.")  # fmt: skip
@click.option("--null", "is_null", is_flag=True, help="Messages end in a null byte instead of a newline.")
@click.option("--json", "is_json", is_flag=True, help="Print --info or --list as JSON.")
@click.pass_context
def mqueue(
    ctx: click.Context,
    /,
    name: str | None,
    *,
    max_messages: int | None,
    max_message_size: int | None,
    mode: int,
    count: int | None,
    priority: int,
    timeout: float | None,
    is_null: bool,
    is_json: bool,
    **asked: bool,
) -> None:
    """
    Work on a POSIX message queue of the kernel.

    Exactly one of --create, --read, --write, --info, --unlink and --list says what to do. The first three make the
    queue NAME, a slash and a word, where it is missing. A message that was read is nowhere else: for work that must
    not get lost, run a pool on the queue (orchestrator run mqueue:/NAME).

    \b
    echo hello | orchestrator mqueue --write /jobs
    orchestrator mqueue --read --count 1 /jobs
    orchestrator mqueue --info --json /jobs
    """
    whats = [flag.removeprefix("is_") for flag, is_given in asked.items() if is_given]
    if len(whats) != 1:
        raise click.UsageError("give one of --create, --read, --write, --info, --unlink and --list")
    (what,) = whats
    if (name is None) != (what == "list"):
        raise click.UsageError("--list takes no NAME" if name else f"--{what} needs the NAME of a queue")
    if is_json and what not in ("info", "list"):
        raise click.UsageError("--json is for --info and --list")
    try:
        if what == "list":
            _list(is_json=is_json)
            return
        assert name is not None  # noqa: S101 - see above
        if what == "info":
            found = _info(name)
            lines = (f"{key} {shown(str(value))}" for key, value in found.items())
            click.echo(json.dumps(found) if is_json else "\n".join(lines))
        elif what == "unlink":
            unlink(name)
    except ValueError as error:  # no name of a queue
        raise Failed(str(error)) from error
    if what in MODES:
        options = Options(
            name,
            max_messages=max_messages,
            max_message_size=max_message_size,
            mode=mode,
            count=count,
            priority=priority,
            timeout=timeout,
            separator=b"\0" if is_null else b"\n",
            program="orchestrator",
        )
        ctx.exit(run(what, options))


def _info(name: str) -> dict[str, str | int | None]:
    """What there is to know of a queue. Raises OSError, ValueError."""
    with closing(Mq.open(name, access="r")) as queue:
        found, of_file = queue.attributes(), os.fstat(queue.fd)
    allowed = limits()
    return {
        "name": name,
        "waiting": found.waiting,
        "max_messages": found.max_messages,
        "max_message_size": found.max_size,
        "mode": f"{stat.S_IMODE(of_file.st_mode):03o}",
        "uid": of_file.st_uid,
        "msg_max": allowed.msg_max,
        "msgsize_max": allowed.msgsize_max,
    }


def _list(*, is_json: bool) -> None:
    """Print the names. Raises Failed where they cannot be known."""
    if filesystem_magic(DIRECTORY) != MAGIC:
        raise Failed(
            f"the names of queues can be listed only where {DIRECTORY} is mounted; as root: "
            f"mkdir -p {DIRECTORY} && mount -t mqueue none {DIRECTORY}"
        )
    names = sorted(f"/{name}" for name in os.listdir(DIRECTORY))
    if is_json:
        click.echo(json.dumps(names))
    else:
        for name in names:
            click.echo(shown(name))
