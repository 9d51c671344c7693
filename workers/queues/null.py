"""
null - a queue that forgets: put succeeds, nothing is ever there

For measuring, and as the far end of a forward whose result nobody wants.
"""

from __future__ import annotations

from workers.message import Body
from workers.queues.base import Capability, Depth, Queue, Settings


class Null(Queue):
    """See the module."""

    protocol = "null"
    url = "null:"
    capabilities: frozenset[Capability] = frozenset({Capability.DURABLE})

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()

    def put(
        self,
        body: Body,  # noqa: ARG002 - the contract's argument, forgotten as promised
        name: str | None = None,
        *,
        priority: int | None = None,
        delay: float = 0,
        durable: bool | None = None,  # noqa: ARG002 - nothing could be more durable
    ) -> str | None:
        """Forget *body*. Raises NotSupported for what a forgetting queue has no place for."""
        if name is not None:
            self.needs(Capability.NAME, "a name of your own")
        if delay > 0:
            self.needs(Capability.DELAY, "delay")
        if priority is not None:
            self.needs(Capability.ORDER, "priority")
        return None

    def depth(self) -> Depth:
        """Nothing, always."""
        return Depth()
