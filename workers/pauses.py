"""
pauses - how long to pause between two looks at what waits, while nothing comes

One millisecond, then twice as long each time, up to the longest. Each is shorter by chance, by up to a half: hosts
that found the same message at one moment would else look together ever after, and a server of a hundred hosts would
be asked by all of them at once.

Never longer than the longest: a message is seen within it, and what a look takes.
See also: queues.feeder (looks for all workers of a host), queues.base (Claimable.wait), waiting (a worker without
a master).
"""

from __future__ import annotations

from workers.system import System

SHORTEST_S = 0.001


class Pauses:
    """A row of pauses; *longest_s* seconds at most, each. Used by one process."""

    def __init__(self, longest_s: float, system: System) -> None:
        self.longest_s = max(longest_s, SHORTEST_S)
        self._system = system
        self.coming_s = SHORTEST_S  # before chance

    def restart(self) -> None:
        """Something came: the shortest first."""
        self.coming_s = SHORTEST_S

    def next_s(self) -> float:
        """How long to pause now, in seconds."""
        pause_s, self.coming_s = self.coming_s, min(self.coming_s * 2, self.longest_s)
        chance = int.from_bytes(self._system.random_bytes(2), "little") / 0x10000
        return pause_s * (1 - chance / 2)
