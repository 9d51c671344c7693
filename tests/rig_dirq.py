"""
rig_dirq - pools on one directory queue in one test (see rig_foreign)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.rig import FakeSystem, World
from tests.rig_foreign import ForeignPool
from workers.queues.dirq import Dirq
from workers.queues.dirq_keep import DirqKeeper
from workers.queues.dirq_url import open_dirq

SIMPLE, SCHEMA = "dirq-simple", "dirq"


class DirqPool(ForeignPool[Dirq]):
    """One master on one host; *kind* is SIMPLE or SCHEMA."""

    keeper: DirqKeeper

    def __init__(self, place: Path, world: World, kind: str = SIMPLE, **more: Any) -> None:
        super().__init__(place, world, kind, **more)

    def opened(self, system: FakeSystem) -> Dirq:
        """See ForeignPool.opened."""
        return open_dirq(self.kind, f"{self.place}{self.options}", self.settings, system=system, host=self.host)
