"""
bridge - the command that moves messages from one queue into another, of any protocol

A pool like any other, whose handler is forward: a message is finished here when it has
entered there, so it is moved at least once, whoever is killed meanwhile.
See also: run, workers.handlers.onward; the key forward does the same in a configuration.
"""

from __future__ import annotations

import json
import os

import click
from rich.console import Console

from orchestrator import logs
from orchestrator.cli import Failed
from orchestrator.cli.run import run_pool
from orchestrator.config import Config, load
from orchestrator.config_values import absolute_url
from orchestrator.progress import Bar, Lines, Summary
from workers.queues.base import Claimable, Settings
from workers.queues.open import open_queue


@click.command()
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
@click.option(
    "--workers",
    "-w",
    metavar="N",
    default="1",
    show_default=True,
    help="Worker processes; more than one mix the order.",
)
@click.option("--until-empty", is_flag=True, help="End when FROM is empty: 0, or 4 with messages in its errors/.")
@click.option("--max-attempts", metavar="N", help="Refusals by TO until a message goes to errors/.  [default: 5]")
@click.option("--name", metavar="NAME", help="The pool's name.  [default: that of FROM and a short hash]")
@click.option("--host", metavar="ID", help="This host's name in leases.  [default: the hostname]")
@click.option("--run-dir", metavar="DIR", help="Where the board, pid file and control socket are.")
@click.option("--listen", metavar="HOST:PORT|none", default="none", show_default=True, help="Where to serve metrics.")
@click.option("--json", "is_json", is_flag=True, help="One JSON object at the end.")
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True
)
@click.pass_context
def bridge(
    ctx: click.Context, /, source: str, target: str, *, until_empty: bool, is_json: bool, log_level: str, **flags: str
) -> None:
    """
    Move messages from the queue FROM into the queue TO, at least once each.

    TO is made where only its parent exists; FROM must be there. A message is finished in FROM
    when it has entered TO, as durable as TO can; while TO is full or away it waits. What TO
    refuses for good (too long for it) ends in errors/ of FROM.

    \b
    orchestrator bridge mqueue:/events spool:/var/spool/events
    orchestrator bridge --until-empty ddmq:/data/root/tasks ./tasks

    Ends on INT (finishes what is in hand) and TERM, with exit code 0.
    """
    logs.setup(log_level, "text")
    try:
        # Made absolute here: in a configuration a bare word is the name of a queue.
        own = {"forward": absolute_url(target, os.getcwd()), "create": False}
    except ValueError as error:
        raise Failed(f"TO {error}", 2) from error
    _check(source, target)

    def read() -> Config:
        return load((), flags={**flags, **own}, environment=os.environ, queues=(source,))

    console = Console(stderr=True)
    shown = Bar(console) if console.is_terminal and not is_json else Lines("moved")
    summary, code = run_pool(read, shown, is_until_empty=until_empty)
    if is_json:
        click.echo(json.dumps(summary.as_json()))
    else:
        console.print(_sentence(summary))
    ctx.exit(code)


def _check(source: str, target: str) -> None:
    """Open both, make *target*. Raises Failed when they are one queue, and whatever opening raises."""
    with open_queue(source) as first, open_queue(target, create=True, settings=Settings(create=True)) as second:
        if not isinstance(first, Claimable):
            raise Failed(f"nothing can be taken out of a {first.protocol} queue", 2)
        if isinstance(second, Claimable) and os.path.samefile(first.identity, second.identity):
            raise Failed(f"{source} and {target} are one queue: name two", 2)


def _sentence(summary: Summary) -> str:
    moved, rate = summary.outcomes["forwarded"], 0.0
    if summary.seconds > 0:
        rate = moved / summary.seconds
    refused = summary.outcomes["rejected"] + summary.crash_limit
    ending = f"; {refused} went to errors/" if refused else ""
    return f"{moved} messages moved in {summary.seconds:.1f} s, {rate:.0f}/s{ending}"
