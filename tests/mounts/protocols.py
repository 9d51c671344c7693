"""
protocols - the queues that rest on a directory, as a fleet runs them

What is locked and not yet recorded when its worker is killed waits, with dirq, until it is stale; so that time is
short.

See also: fleet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.mounts.fleet import SPOOL_TIMES, Fleet, Host


@dataclass(frozen=True, slots=True)
class Protocol:
    """One of them, see Fleet."""

    scheme: str
    query: str = ""
    options: Mapping[str, object] = field(default_factory=dict)
    times: Mapping[str, float] | None = None

    def __str__(self) -> str:
        return self.scheme

    def fleet(self, place: Path, hosts: Sequence[Host], count: int) -> Fleet:
        """A fleet on such queues."""
        return Fleet(place, hosts, count, self.scheme, self.query, options=self.options, times=self.times)


SPOOL = Protocol("spool", times=SPOOL_TIMES)
DIRQ_SIMPLE = Protocol("dirq-simple", options={"stale_after": "5s"})
DIRQ = Protocol("dirq", "?schema=body:binary", options={"stale_after": "5s"})
DDMQ = Protocol("ddmq")
PROTOCOLS = (SPOOL, DIRQ_SIMPLE, DIRQ, DDMQ)
