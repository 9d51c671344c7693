"""
echo - handlers that do next to nothing, to try a pool out and to measure it

    echo:handle     writes name and size of each message to stdout
    echo:read       reads the body and forgets it
    echo:nothing    does not even read; what is left is the cost of the queue

The whole spec is ``workers.handlers.echo:handle``. Names are written escaped, so
that a hostile one cannot talk to the terminal.
"""

from __future__ import annotations

import sys

from workers.message import Done, Message
from workers.queues.names import shown


def handle(message: Message) -> Done:
    """Write one line, the name and the size in bytes, without reading the body. Raises OSError when it cannot."""
    sys.stdout.write(f"{shown(message.name)} {message.path.stat().st_size}\n")
    # A worker may leave without flushing anything; a line that was written for a finished message must be out.
    sys.stdout.flush()
    return Done()


def read(message: Message) -> None:
    """Read the body. Raises OSError when it cannot be read."""
    _ = message.body


def nothing(message: Message) -> None:
    """Do nothing: the message is done."""
