"""
python -m workers URL HANDLER - one worker in the foreground, without a master

    python -m workers ./queue mypackage.module:handle
    python -m workers ./queue -- sha256sum {path}
    python -m workers ./queue --component mypackage:Parser --component workers.piper:Commiter

Forks a keeper for the lease, the retries and the reaping, and ends it at exit.
INT: finish the message in hand, then leave. TERM: the same, for at most
--term-timeout seconds, then the message goes back uncounted. No metrics, no
respawn: that is what orchestrator run is for.

Like every python -m it imports from the current directory before anything else: where others
may write into that, start it as python -P -m workers.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys

from workers.board import W, WorkerState
from workers.errors import OrchestratorError
from workers.handler import Handler, resolve
from workers.handlers.command import command_handler
from workers.keeper import attach_alone
from workers.queues.base import Settings
from workers.queues.names import shown
from workers.queues.open import open_queue
from workers.waiting import Leaving, waiting_at
from workers.worker import Worker


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m workers", description="One worker in the foreground.")
    parser.add_argument("url", metavar="URL", help="spool:PATH or a bare path")
    parser.add_argument("handler", nargs="?", metavar="HANDLER", help="MODULE:NAME")
    parser.add_argument(
        "--component",
        action="append",
        default=[],
        metavar="MODULE:NAME",
        help="one of a list of event-driven components",
    )
    parser.add_argument("--create", action="store_true", help="make the queue where its parent exists")
    parser.add_argument("--host", help="this host's name in leases (default: the hostname)")
    parser.add_argument("--shell", action="store_true", help="give COMMAND to /bin/sh")
    parser.add_argument("--until-empty", action="store_true", help="leave when nothing waits, is claimed or deferred")
    parser.add_argument("--order", choices=("fifo", "any"), default="fifo")
    parser.add_argument("--max-attempts", type=int, default=5, metavar="N")
    parser.add_argument("--term-timeout", type=float, default=5.0, metavar="SECONDS")
    parser.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))
    own, command = argv, []
    if "--" in argv:
        own, command = argv[: argv.index("--")], argv[argv.index("--") + 1 :]
    arguments = parser.parse_args(own)
    arguments.command = command
    if [bool(arguments.handler), bool(command), bool(arguments.component)].count(True) != 1:
        parser.error("give either HANDLER (MODULE:NAME), --component MODULE:NAME or -- COMMAND...")
    return arguments


def _handler(arguments: argparse.Namespace) -> Handler:
    if arguments.component:
        from workers.piper import Piper, component_of  # noqa: PLC0415 - only who has components needs them

        return Piper([component_of(use, {}) for use in arguments.component])
    if arguments.command:
        return command_handler(arguments.command, shell=arguments.shell)
    return resolve(arguments.handler)


class _Lines(logging.Formatter):
    """One line a record, a traceback indented: no text in it can forge another line, or drive a terminal."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's own name
        """Word *record* on one line."""
        return shown(super().formatMessage(record))

    def format(self, record: logging.LogRecord) -> str:
        """Word *record*, and its traceback below."""
        line, *trace = super().format(record).splitlines()
        return "\n".join([line, *(f"    {shown(part)}" for part in trace)])


def main(argv: list[str] | None = None) -> int:
    """Run; 0 when asked to leave or empty, 1 when the queue or the handler cannot be used."""
    arguments = parse(sys.argv[1:] if argv is None else argv)
    lines = logging.StreamHandler()
    lines.setFormatter(_Lines("%(levelname)s %(message)s"))
    logging.basicConfig(level=arguments.log_level.upper(), handlers=[lines])
    settings = Settings(order=arguments.order, max_attempts=arguments.max_attempts, create=arguments.create)
    try:
        handler = _handler(arguments)
        is_for_events = bool(arguments.component)
        queue = open_queue(arguments.url, settings=settings, host=arguments.host, is_for_events=is_for_events)
        consumer = attach_alone(queue)
    except OrchestratorError as error:
        sys.stderr.write(f"workers: {shown(str(error))}\n")
        return 1
    leaving = Leaving()
    words = consumer.board.worker(consumer.worker_slot).words

    def quick(*_: object) -> None:
        # The alarm's default action ends the process even inside C code; the keeper then gives the message back.
        words[W.STATE] = WorkerState.STOPPING
        signal.setitimer(signal.ITIMER_REAL, max(arguments.term_timeout, 0.001))
        leaving.ask()

    def drain(*_: object) -> None:
        if leaving.is_asked:
            quick()
        leaving.ask()

    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, quick)
    signal.signal(signal.SIGINT, drain)
    wait = waiting_at(queue, consumer.board.queues[consumer.queue_slot].words)
    worker = Worker(queue, handler, consumer, leaving, wait, is_until_empty=arguments.until_empty, parent=None)
    try:
        worker.run()
    except OrchestratorError as error:
        sys.stderr.write(f"workers: {shown(str(error))}\n")
        return 1
    finally:
        queue.close()
    return 0


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code)  # the beating thread is a daemon; nothing is left to clean up
