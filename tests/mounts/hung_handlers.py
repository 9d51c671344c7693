"""
hung_handlers - what the workers of test_hung_mount do with a message

Told by the environment, see tests.process.handlers. A message is known by its body, for some protocols give the name.
"""

from __future__ import annotations

import os

from tests.process.handlers import write
from tests.waiting import until
from workers import Message, Retry

HOLD_S = 120


def handle(message: Message) -> Retry | None:
    """Keep it in hand while HOLD exists, read it, and write down what it said; what begins with r is retried once."""
    write("holds one")
    until(lambda: not os.path.exists(os.environ["HOLD"]), HOLD_S)
    body = message.body.decode()
    if body.startswith("r") and message.attempt == 1:
        return Retry(after_s=0.1)
    write(f"handled {body}")
    return None
