"""
demo - the command that shows a pool at work: a bar, a killed worker, the table, the proof

See also: orchestrator.demo (what it does).
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

import click
from rich.console import Console

from orchestrator import demo as work
from orchestrator import logs
from orchestrator.cli import Failed
from orchestrator.config import ConfigError
from orchestrator.master import Master
from orchestrator.progress import Bar, Summary, summarise, table
from workers.queues.names import shown

NAMED_MAX = 5  # names in a sentence


class Plain:
    """A line a second, for where there is no terminal."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._started_s = self._said_s = time.monotonic()

    def draw(self, master: Master) -> None:
        """Say how far it is."""
        now_s = time.monotonic()
        if now_s - self._said_s < 1.0:
            return
        self._said_s = now_s
        done = summarise(master.board, 0.0).messages
        rate = done / (now_s - self._started_s)
        left = f", {(self._total - done) / rate:.0f} s left" if rate else ""
        click.echo(f"{done} of {self._total} done, {rate:.0f}/s{left}", err=True)


@click.command()
@click.option("--workers", "-w", type=click.IntRange(1, 256), default=4, show_default=True, help="Worker processes.")
@click.option("--fast", is_flag=True, help="As fast as it goes, not paced to about 10 s.")
@click.option(
    "--messages", type=click.IntRange(1), metavar="N", help="At most so many files.  [default: the standard library]"
)
@click.option(
    "--directory",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="DIR",
    help="Where to make the demo's own directory.  [default: the system's for temporary files]",
)
@click.option("--listen", metavar="HOST:PORT|none", help="Where to serve metrics.  [default: 127.0.0.1:9464]")
@click.option("--keep", is_flag=True, help="Keep the directory, to look at.")
@click.option("--json", "is_json", is_flag=True, help="One JSON object at the end.")
@click.pass_context
def demo(
    ctx: click.Context,
    workers: int,
    messages: int | None,
    directory: Path | None,
    listen: str | None,
    *,
    fast: bool,
    keep: bool,
    is_json: bool,
) -> None:
    """
    Watch a pool do real work, with a worker killed on the way.

    A spool queue in a directory of its own is filled with the *.py files of Python's standard library; each
    is hashed and compressed into a next queue. When 40 % are done one worker is killed with SIGKILL; another
    takes its place and the message that was in hand is handled again. At the end every input is accounted for.

    Exit code 0 when it is, else 1.
    """
    if not sys.platform.startswith("linux"):
        raise Failed("demo needs Linux, as run does; elsewhere messages can be put and looked at")
    logs.setup("warning")
    own = Path(tempfile.mkdtemp(prefix="orchestrator-demo-", dir=directory)).absolute()
    try:
        found = _show(own, workers, messages, listen, is_fast=fast, is_json=is_json)
    finally:
        if not keep:
            shutil.rmtree(own)
    check, summary, killed = found
    if is_json:
        click.echo(
            json.dumps(
                {
                    **check.as_json(),
                    "directory": str(own) if keep else None,
                    "killed": [{"worker": one.worker, "pid": one.pid, "message": one.message} for one in killed],
                    "run": summary.as_json(),
                }
            )
        )
    elif keep:
        queue = own / work.QUEUE
        click.echo(f"Kept for you to look at: {own}\n  orchestrator ls {own / work.NEXT}\n  ls {queue}\n  rm -r {own}")
    ctx.exit(0 if check.is_fine else 1)


def _show(
    own: Path, workers: int, messages: int | None, listen: str | None, *, is_fast: bool, is_json: bool
) -> tuple[work.Check, Summary, list[work.Killed]]:
    """Fill, run, check, and tell a person about it unless *is_json*."""
    files = work.inputs(count_max=messages)
    digests = work.fill(own, files)
    if not digests:
        raise Failed("there are no *.py files of the standard library to work on; is this Python installed as files?")
    console = Console(stderr=True)
    bar = Bar(console, total=len(digests)) if console.is_terminal and not is_json else None
    plain = Plain(len(digests))

    def on_start(address: str | None) -> None:
        if is_json:
            return
        click.echo(f"{len(digests)} files of Python's standard library are messages in {own / work.QUEUE}", err=True)
        click.echo(f"{workers} workers hash and compress each into {own / work.NEXT}", err=True)
        if address is not None:
            click.echo(f"look at them meanwhile: curl http://{address}/metrics", err=True)

    def on_progress(master: Master) -> None:
        if bar is not None:
            bar.draw(master.board)
        elif not is_json:
            plain.draw(master)

    run = work.Run(len(digests), on_start, on_progress)
    try:
        _, summary = work.one(own, run, workers=workers, listen=listen, is_fast=is_fast)
    except ConfigError as error:
        raise Failed(str(error), 2) from error
    finally:
        if bar is not None:
            bar.close()
    check = work.check(own, digests, len(run.killed))
    if not is_json:
        # A pipe has no width; the table must not be folded there.
        width = None if sys.stdout.isatty() else 100
        Console(width=width, highlight=False).print(table(summary))
        for line in story(check, run.killed):
            click.echo(line)
    return check, summary, run.killed


def story(check: work.Check, killed: list[work.Killed]) -> list[str]:
    """The end of it, in sentences."""
    lines = [
        f"Worker {one.worker} (pid {one.pid}) was killed with SIGKILL"
        + (f" while it had {shown(one.message)} in hand." if one.message else " between two messages.")
        for one in killed
    ]
    if check.is_fine:
        lines += [
            f"Every one of the {check.inputs} inputs is accounted for: packed, and its sha256 is the input's"
            f" ({_megabytes(check.input_bytes)} became {_megabytes(check.packed_bytes)}).",
            f"Handled twice: {check.duplicates}, at most one for each kill. Left in pending/ and errors/: nothing.",
        ]
        return lines
    lines.append(f"NOT every one of the {check.inputs} inputs is accounted for:")
    for what, found in (("missing", check.missing), ("unknown", check.unknown), ("damaged", check.damaged)):
        if found:
            more = f" and {len(found) - NAMED_MAX} more" if len(found) > NAMED_MAX else ""
            lines.append(f"  {len(found)} {what}: {', '.join(shown(name) for name in found[:NAMED_MAX])}{more}")
    if check.duplicates > check.kills:
        lines.append(f"  {check.duplicates} handled twice, with only {check.kills} kill(s)")
    lines += [f"  {count} left: {state}" for state, count in check.left.items() if count]
    lines.append("If you did not interrupt it, please report this; --keep keeps the directory to look at.")
    return lines


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
