"""
run - the command that runs a pool

Without a file: ``orchestrator run QUEUE --handler MODULE:NAME`` or
``orchestrator run QUEUE -- PROGRAM {path}``.
See also: master (what it runs), config (every key), progress.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
from rich.console import Console

from orchestrator import logs
from orchestrator.cli import Failed
from orchestrator.config import Config, ConfigError, load
from orchestrator.master import Master
from orchestrator.progress import Bar, Progress, Summary, summarise, table


class CommandAfterDashes(click.Command):
    """A command whose words after the first ``--`` are a program of the user's; click would drop the ``--``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the program's words aside."""
        at = args.index("--") if "--" in args else len(args)
        ctx.meta["command"] = args[at + 1 :]
        return super().parse_args(ctx, args[:at])


@click.command(cls=CommandAfterDashes)
@click.argument("queues", nargs=-1, metavar="[QUEUE...] [-- COMMAND...]")
@click.option(
    "--config", "-c", "path", type=click.Path(path_type=Path), help="TOML file (orchestrator config reference)."
)
@click.option("--handler", metavar="MODULE:NAME", help="Called with each message.")
@click.option("--preload", is_flag=True, help="Import the handler before the fork; new code then needs a restart.")
@click.option("--shell", is_flag=True, help="Give COMMAND, one text, to /bin/sh.")
@click.option("--workers", "-w", metavar="N", help="Worker processes per queue.  [default: usable cores]")
@click.option("--order", type=click.Choice(["fifo", "any"]), help="Which message first.  [default: fifo]")
@click.option("--max-attempts", metavar="N", help="Failures until a message goes to errors/.  [default: 5]")
@click.option("--retry-backoff", metavar="TIME", help="Delay before the second attempt.  [default: 1s]")
@click.option("--time-limit", metavar="TIME", help="Kill a worker that handles one message for longer.")
@click.option("--name", metavar="NAME", help="The pool's name.  [default: the queue's and a short hash]")
@click.option("--host", metavar="ID", help="This host's name in leases.  [default: the hostname]")
@click.option("--run-dir", metavar="DIR", help="Where the board, pid file and control socket are.")
@click.option("--listen", metavar="HOST:PORT|none", help="Where to serve metrics.  [default: 127.0.0.1:9464]")
@click.option(
    "--until-empty", is_flag=True, help="End when nothing waits, is claimed or deferred: 0, or 4 with errors."
)
@click.option("--json", "is_json", is_flag=True, help="One JSON object at the end.")
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True
)
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.pass_context
def run(
    ctx: click.Context,
    /,
    queues: tuple[str, ...],
    path: Path | None,
    handler: str | None,
    *,
    preload: bool,
    shell: bool,
    until_empty: bool,
    is_json: bool,
    log_level: str,
    log_format: str,
    **flags: str | None,
) -> None:
    """
    Run a pool of workers on one or more queues.

    Each QUEUE is a directory (made when only its parent exists) or a URL. Every message is given to
    HANDLER, or to COMMAND with {path} {name} {queue} {attempt} {worker} filled in; without {path} or
    {name} the message is the command's standard input. Exit 0 is done, 75 is retry, else it failed.

    \b
    orchestrator run ./queue -- sha256sum {path}
    orchestrator run ./queue --handler mypackage.module:handle --workers 8
    orchestrator run --config pool.toml

    Ends on INT (finishes what is in hand) and TERM (gives it back after 5 s), with exit code 0.
    """
    command: list[str] = ctx.meta["command"]
    if preload and command:
        raise Failed("--preload is for Python handlers, and a COMMAND has nothing to import: leave --preload out", 2)
    logs.setup(log_level, log_format)

    def read() -> Config:
        return load(
            path,
            flags={**flags, "preload": preload or None, "shell": shell or None},
            environment=os.environ,
            queues=queues,
            handler=handler,
            command=command or None,
        )

    console = Console(stderr=True)
    is_shown = until_empty and not is_json and console.is_terminal
    summary, code = run_pool(read, Bar(console) if is_shown else None, is_until_empty=until_empty)
    if is_json:
        click.echo(json.dumps(summary.as_json()))
    elif is_shown:
        console.print(table(summary))
    ctx.exit(code)


def run_pool(read: Callable[[], Config], shown: Progress | None, *, is_until_empty: bool) -> tuple[Summary, int]:
    """Run the pool that *read* configures until it ends; what it did, and its exit code. Raises Failed."""
    if not sys.platform.startswith("linux"):
        raise Failed(
            "a pool needs Linux (inotify, /proc, parent-death signals); elsewhere messages can be put and looked at"
        )
    try:
        config = read()
    except ConfigError as error:
        raise Failed(str(error), 2) from error
    started_s = time.monotonic()
    on_tick = None if shown is None else lambda one: shown.draw(one.board)
    master = Master(config, read, is_until_empty=is_until_empty, on_tick=on_tick)
    try:
        code = master.run()
    finally:
        if shown is not None:
            shown.close()
    return summarise(master.board, time.monotonic() - started_s), code
