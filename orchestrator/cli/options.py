"""
options - the options that configure a pool, the same for each command that takes them

See also: run and config (which take them), orchestrator.config (what each means).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

Decorated = TypeVar("Decorated", bound=Callable[..., None])


class CommandAfterDashes(click.Command):
    """A command whose words after the first ``--`` are a program of the user's; click would drop the ``--``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the program's words aside."""
        at = args.index("--") if "--" in args else len(args)
        ctx.meta["command"] = args[at + 1 :]
        return super().parse_args(ctx, args[:at])


class ConfigPath(click.Path):
    """A file or a directory. Empty, as of a variable that is not set, it would be the current directory."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(
        self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None
    ) -> str | bytes | os.PathLike[str]:
        """The path. Fails for an empty one."""
        if not os.fspath(value):
            self.fail("the path is empty; name a TOML file, or a directory of them", param, ctx)
        return super().convert(value, param, ctx)


_OPTIONS: tuple[Callable[[Callable[..., None]], Callable[..., None]], ...] = (
    click.option(
        "--config",
        "-c",
        "paths",
        metavar="PATH",
        multiple=True,
        type=ConfigPath(),
        envvar="ORCHESTRATOR_CONFIG",
        help="TOML file, or directory of *.toml; may be repeated, a later one wins (orchestrator config reference).",
    ),
    click.option("--handler", metavar="MODULE:NAME", help="Called with each message."),
    click.option(
        "--component", "components", metavar="MODULE:NAME", multiple=True, help="Event-driven, in this order."
    ),
    click.option("--preload", is_flag=True, help="Import the handler before the fork; new code then needs a restart."),
    click.option("--shell", is_flag=True, help="Give COMMAND, one text, to /bin/sh."),
    click.option("--output", metavar="QUEUE", help="Hand what is done on: a URL, a path with a /, or a queue's name."),
    click.option("--output-limit", metavar="N", help="Claim nothing while so many wait there.  [default: 10000]"),
    click.option("--output-wait", metavar="TIME", help="Longest time between looks at a full output.  [default: 10s]"),
    click.option("--workers", "-w", metavar="N", help="Worker processes per queue.  [default: usable cores]"),
    click.option("--order", type=click.Choice(["fifo", "any"]), help="Which message first.  [default: fifo]"),
    click.option("--watch", type=click.Choice(["auto", "inotify", "poll"]), help="How arrivals are noticed."),
    click.option("--poll-interval", metavar="TIME", help="Longest pause between two looks, where it is polled."),
    click.option("--max-attempts", metavar="N", help="Failures until a message goes to errors/.  [default: 5]"),
    click.option("--retry-backoff", metavar="TIME", help="Delay before the second attempt.  [default: 1s]"),
    click.option("--time-limit", metavar="TIME", help="Kill a worker that handles one message for longer."),
    click.option("--name", metavar="NAME", help="The pool's name.  [default: the queue's and a short hash]"),
    click.option("--host", metavar="ID", help="This host's name in leases.  [default: the hostname]"),
    click.option("--run-dir", metavar="DIR", help="Where the board, pid file and control socket are."),
    click.option("--listen", metavar="HOST:PORT|none", help="Where to serve metrics.  [default: 127.0.0.1:9464]"),
    click.option("--stats-interval", metavar="TIME", help="How often rates are logged.  [default: 5m]"),
    click.option("--runlog-dir", metavar="DIR", help="Where run logs are.  [default: RUN_DIR/NAME/runlog]"),
    click.option("--runlog-interval", metavar="TIME", help="How often the run log is written.  [default: 5m]"),
    click.option("--runlog-keep", metavar="N", help="How many run logs are kept.  [default: 100]"),
    click.option("--state-file", metavar="FILE", help="Where USR2 writes the state.  [default: RUN_DIR/NAME/state]"),
    click.option("--log-file", metavar="FILE", help="Append the log to this file.  [default: standard error]"),
    click.option("--chroot-dir", metavar="DIR", help="Daemon: new root directory."),
    click.option("--work-dir", metavar="DIR", help="Daemon: current directory.  [default: /]"),
    click.option("--umask", metavar="OCTAL", help="Daemon: file mode bits that are not given.  [default: 022]"),
    click.option("--user", metavar="USER", help="Daemon: become this user."),
    click.option("--group", metavar="GROUP", help="Daemon: become this group."),
    click.option("--pid-file", metavar="FILE", help="Daemon: file for its process number."),
)


def configured(command: Decorated) -> Decorated:
    """Give *command* every option that sets a key; those of one key alone reach it under the key's name."""
    for option in reversed(_OPTIONS):
        option(command)
    return command
