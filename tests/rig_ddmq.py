"""
rig_ddmq - pools on one ddmq queue in one test (see rig_foreign)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.rig import FakeSystem, World
from tests.rig_foreign import ForeignPool
from workers.queues.ddmq import Ddmq, open_ddmq
from workers.queues.ddmq_keep import DdmqKeeper


class DdmqPool(ForeignPool[Ddmq]):
    """One master on one host; *place* is ROOT/QUEUE."""

    keeper: DdmqKeeper

    def __init__(self, place: Path, world: World, **more: Any) -> None:
        super().__init__(place, world, "ddmq", **more)

    def opened(self, system: FakeSystem) -> Ddmq:
        """See ForeignPool.opened."""
        return open_ddmq(f"{self.place}{self.options}", self.settings, system=system, host=self.host)
