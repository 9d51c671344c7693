"""
doctor - the command that says whether a queue may be had on a mount, by one host or by several

Exit codes: 0 what was asked for is good here, 1 it is not, or nothing could be examined, 2 usage.
What is asked for is a queue of this host, with --peer or --peers one of several hosts.
See also: orchestrator.doctor (how it is found out), deploy/OPERATIONS.md "Filesystems".
"""

from __future__ import annotations

import json
import signal
import sys
from types import FrameType
from typing import NoReturn

import click
from rich.console import Console

from orchestrator.cli import Failed
from orchestrator.config_values import parse_duration
from orchestrator.doctor.examination import Limits, examine
from orchestrator.doctor.meeting import MEMBERS_MAX
from orchestrator.doctor.report import as_json, show
from orchestrator.doctor.verdict import verdict

COLUMNS = 120
LIMIT_S_MIN = 3.0
TERMINATED = 128 + signal.SIGTERM


def _seconds(_ctx: click.Context, _param: click.Parameter, value: str) -> float:
    try:
        return parse_duration(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _limit(ctx: click.Context, param: click.Parameter, value: str) -> float:
    seconds = _seconds(ctx, param, value)
    if seconds < LIMIT_S_MIN:
        raise click.BadParameter(f"must be {LIMIT_S_MIN:g} s or more, for probes wait for a second themselves")
    return seconds


@click.command()
@click.argument("path", type=click.Path())
@click.option("--peer", "is_peer", is_flag=True,
              help="Examine together with one other host, where it is started on the same directory.")  # fmt: skip
@click.option("--peers", type=click.IntRange(1, MEMBERS_MAX - 1), metavar="N", help="Together with N other hosts.")
@click.option("--wait", "wait_s", default="60s", show_default=True, callback=_seconds, metavar="TIME",
              help="For the other hosts to come.")  # fmt: skip
@click.option("--longest", "longest_s", default="35s", show_default=True, callback=_seconds, metavar="TIME",
              help="Until a name that one host makes is given up on another.")  # fmt: skip
@click.option("--limit", "limit_s", default="10s", show_default=True, callback=_limit, metavar="TIME",
              help="After so long without an answer (3 s or more) the mount counts as hung.")  # fmt: skip
@click.option("--json", "is_json", is_flag=True, help="One JSON object.")
def doctor(
    path: str, *, is_peer: bool, peers: int | None, wait_s: float, longest_s: float, limit_s: float, is_json: bool
) -> None:
    """
    Find out whether a queue may be had at PATH, a directory or an existing queue.

    What a queue rests on is done in PATH/.doctor/, which is gone afterwards: who wins a race, whether links, names,
    syncs and times are kept, how fast it is, and whether replies are lost. A pool that works there is not disturbed.
    With --peer or --peers N, started on several hosts at the same time, also what they see of each other, how late.
    The verdict comes with settings for the configuration where the defaults do not fit.
    """
    others = peers or int(is_peer)
    if not sys.platform.startswith("linux"):
        raise Failed("doctor needs Linux, as run does")
    console = Console(width=None if sys.stdout.isatty() else COLUMNS, highlight=False, soft_wrap=False)
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        examined = examine(path, others, Limits(limit_s, wait_s, longest_s), _tell)
    finally:
        signal.signal(signal.SIGTERM, before)
    found = verdict(examined)
    if is_json:
        click.echo(json.dumps(as_json(examined, found)))
    else:
        show(examined, found, console)
    if not found.is_as_asked(others):
        sys.exit(1)


def _leave(_number: int, _frame: FrameType | None) -> NoReturn:
    """End by an exception, so that what was made is removed."""
    sys.exit(TERMINATED)


def _tell(word: str) -> None:
    """Progress, on stderr; an empty word only says that somebody is at work."""
    if word:
        click.echo(f"doctor: {word}", err=True)
