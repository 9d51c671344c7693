"""
ddmq_content - what a ddmq message says to a pool: what its handler is given, and its own limits

The file is one JSON object. Fields that are not what they should be are as if they were not
there: what a pool does with a message must not depend on who wrote it.

See also: ddmq (who reads it), workers.ddmq.message.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

from workers.ddmq.claims import parse
from workers.ddmq.errors import CorruptError
from workers.ddmq.message import Message


@dataclass(frozen=True, slots=True)
class Content:
    """
    A message, read.

    Attributes:
        trouble: None, or why it is none; body: what its handler is given, None with trouble.
        written_s: mtime. lasts_s: for how long it wants to be claimed, 0 where it does not say.
        attempts_max: how often it lets itself be tried, 0 where it does not say.
    """

    trouble: str | None
    body: bytes | None = None
    written_s: float = 0.0
    lasts_s: float = 0.0
    attempts_max: int = 0


def content_of(data: bytes, written_s: float) -> Content:
    """What the file that holds *data* says."""
    try:
        message = parse(data)
        body = _body(message)
    except CorruptError as error:
        return Content(f"it {error.message}", written_s=written_s)
    except RecursionError:
        return Content("its message is nested too deeply", written_s=written_s)
    return Content(None, body, written_s, _lasts_s(message), _attempts_max(message))


def _body(message: Message) -> bytes:
    """Text as the bytes that it was made of, anything else as JSON."""
    if not isinstance(message.message, str):
        return json.dumps(message.message).encode()
    try:
        return message.message.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half a pair, which is no byte of ours either
        return message.message.encode("utf-8", "surrogatepass")


def _lasts_s(message: Message) -> float:
    timeout = message.timeout
    if isinstance(timeout, bool) or not isinstance(timeout, int | float):
        return 0.0
    return min(timeout, 10**9) if 0 < timeout < math.inf else 0.0


def _attempts_max(message: Message) -> int:
    """One more than requeue_limit, less the times that it was requeued before it came to a pool."""
    limit, counter = message.requeue_limit, message.requeue_counter
    if not isinstance(limit, int) or isinstance(limit, bool) or limit <= 0:
        return 0
    return max(1, limit + 1 - (counter if isinstance(counter, int) else 0))
