"""Fixtures that several kinds of tests share. See rig (the queue under test) and schedules (the orders of actors)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.rig import SETTINGS, Rig, World
from workers.queues.spool import Spool


@pytest.fixture(name="rig")
def _rig(tmp_path: Path) -> Rig:
    """An empty queue whose clock is moved by hand."""
    return Rig(tmp_path / "queue", World(tmp_path))


@pytest.fixture(name="fresh_rig")
def _fresh_rig(tmp_path: Path) -> Callable[[], Rig]:
    """Makes a queue of its own at each call, all under one clock."""
    world, made = World(tmp_path), []

    def make() -> Rig:
        made.append(Rig(tmp_path / f"queue{len(made)}", world))
        return made[-1]

    return make


@pytest.fixture(name="spool")
def _spool(tmp_path: Path) -> Spool:
    """A spool queue on the real system."""
    return Spool(str(tmp_path / "queue"), SETTINGS)
