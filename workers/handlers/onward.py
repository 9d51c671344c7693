"""
onward - the handler of a bridge: each message is handed on, as it is, to another queue

See also: workers.message.Forward, orchestrator.cli.bridge.
"""

from __future__ import annotations

from workers.message import Forward, Message


class Onward:
    """Hands every message on to *queue*: the name of a configured queue, or a URL."""

    def __init__(self, queue: str) -> None:
        self.queue = queue
        self._outcome = Forward(None, queue)

    def __call__(self, _message: Message) -> Forward:
        """See the class."""
        return self._outcome
