"""
run - the command that runs a pool

Without a file: ``orchestrator run QUEUE --handler MODULE:NAME`` or
``orchestrator run QUEUE -- PROGRAM {path}``.
See also: master (what it runs), config (every key), progress.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
from rich.console import Console

from orchestrator import logs
from orchestrator.cli import Failed
from orchestrator.cli.action import ACTIONS, act
from orchestrator.cli.options import CommandAfterDashes, configured
from orchestrator.config import Config, ConfigError, load, unused_daemon_keys, working_directory
from orchestrator.launch import launch
from orchestrator.logs import escaped
from orchestrator.master import Master
from orchestrator.progress import Bar, Progress, Summary, summarise, table


@click.command(cls=CommandAfterDashes)
@click.argument("queues", nargs=-1, metavar="[QUEUE...] [-- COMMAND...]")
@configured
@click.option("--daemon/--no-daemon", "is_daemon", help="Leave the terminal; return when the pool is ready.")
@click.option(
    "--until-empty", is_flag=True, help="End when nothing waits, is claimed or deferred: 0, or 4 with errors."
)
@click.option("--json", "is_json", is_flag=True, help="One JSON object at the end.")
@click.option(
    "--action",
    type=click.Choice(list(ACTIONS)),
    help="Run nothing: do this to the pool that runs (see orchestrator signal and runlog).",
    metavar="ACTION",
)
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True
)
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.pass_context
def run(
    ctx: click.Context,
    /,
    queues: tuple[str, ...],
    paths: tuple[Path, ...],
    handler: str | None,
    components: tuple[str, ...],
    *,
    is_daemon: bool,
    preload: bool,
    shell: bool,
    until_empty: bool,
    is_json: bool,
    action: str | None,
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

    try:
        directory = working_directory()
    except ConfigError as error:
        raise Failed(str(error), 2) from error

    def read() -> Config:
        config = load(
            paths,
            flags={**flags, "preload": preload or None, "shell": shell or None},
            environment=os.environ,
            queues=queues,
            handler=handler,
            command=command or None,
            components=components,
            directory=directory,
            needs_queues=action is None,
        )
        unused = () if is_daemon else unused_daemon_keys(config)
        return config.model_copy(update={"warnings": (*config.warnings, *unused)})

    if action is not None:
        is_named = bool(flags["name"] or queues or paths or os.environ.get("ORCHESTRATOR_NAME"))
        act(action, _configured(read), is_named=is_named)
        return
    if is_daemon:
        ctx.exit(_launch(read, is_until_empty=until_empty, is_json=is_json))
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
    config = _configured(read)
    if config.pool.log_file is not None:
        logs.append_to(logs.LogFile(config.pool.log_file))
    # Who started us may ignore it, and then the kernel keeps no child's end for the master to collect.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    started_s = time.monotonic()
    on_tick = None if shown is None else lambda one: shown.draw(one.board)
    # A name that was derived is asked for by nobody, and a run log that was not asked for by name neither.
    is_passing = not config.is_named and "runlog_dir" not in config.pool.model_fields_set
    master = Master(config, read, is_until_empty=is_until_empty, on_tick=on_tick, is_passing=is_passing)
    try:
        code = master.run()
    finally:
        if shown is not None:
            shown.close()
    return summarise(master.board, time.monotonic() - started_s), code


def _configured(read: Callable[[], Config]) -> Config:
    if not sys.platform.startswith("linux"):
        raise Failed(
            "a pool needs Linux (inotify, /proc, parent-death signals); elsewhere messages can be put and looked at"
        )
    try:
        return read()
    except ConfigError as error:
        raise Failed(str(error), 2) from error


def _launch(read: Callable[[], Config], *, is_until_empty: bool, is_json: bool) -> int:
    """Have a daemon run the pool; the exit code when it is ready, or has ended before. Raises Failed."""
    config = _configured(read)

    def serve(on_ready: Callable[[], None]) -> int:
        return Master(config, read, is_until_empty=is_until_empty, on_ready=on_ready).run()

    launched = launch(config, serve)
    for text in (*config.warnings, *launched.reasons):
        click.echo(f"orchestrator: {escaped(text)}", err=True)
    if is_json:
        shown = {"name": config.pool.name, "pid": launched.pid, "code": launched.code, "errors": launched.reasons}
        click.echo(json.dumps(shown))
    elif launched.code is None:
        click.echo(f"pool {config.pool.name} runs as process {launched.pid}")
    elif not launched.reasons:
        click.echo(
            f"pool {config.pool.name} ran as process {launched.pid} and has ended with exit code {launched.code}"
        )
    return launched.code or 0
