"""
null - a queue that forgets: put succeeds, nothing is ever there

For measuring, and as the far end of a forward whose result nobody wants. As the queue of components that need no
messages it may be claimed from (NoMessages): they have events only.
"""

from __future__ import annotations

from workers.message import Body
from workers.queues.base import Capability, Cause, Claimable, Consumer, Depth, Keeper, Kept, Queue, Settings, Source
from workers.system import SYSTEM, System


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

    def waiting_count(self) -> int:
        """None."""
        return 0


class NoMessages(Null, Claimable):
    """A queue to claim from in which there is never a message."""

    network = None
    place = identity = "/"  # no directory of its own

    def __init__(self, settings: Settings | None = None, *, system: System = SYSTEM, host: str = "localhost") -> None:
        super().__init__(settings)
        self.system = system
        self.host = host

    def attach(self, consumer: Consumer) -> None:
        """See Queue.attach: whoever it is, there is nothing for it."""

    def keeper(self, consumer: Consumer) -> Keeper:  # noqa: ARG002 - as in attach()
        """See Claimable.keeper."""
        self._keeper = found = NothingToKeep()
        return found

    def source(self) -> Source:
        """Never asked: nothing is fed."""
        raise NotImplementedError


class NothingToKeep(Keeper):
    """The keeper of NoMessages."""

    tick_s = 1.0

    def open(self) -> None:
        """Nothing to try."""

    def keep(self) -> Kept:
        """Nothing to do."""
        return Kept()

    def release_owner(self, owner: str, cause: Cause, note: str = "") -> list[str]:  # noqa: ARG002 - nobody owns anything
        """Nothing to give back."""
        return []

    def depth(self, *, is_exact: bool) -> Depth:  # noqa: ARG002 - exact, always
        """Nothing."""
        return Depth()

    def leave(self) -> None:
        """Nothing to take away."""
