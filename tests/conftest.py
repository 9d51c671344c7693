"""Fixtures that several kinds of tests share. See rig (the queue under test) and schedules (the orders of actors)."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.rig import SETTINGS, Rig, World
from workers.queues.spool import Spool

MACHINE = re.compile(r"tests/(bench|process|tidy)/|mqueue|message_queue|test_receive")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """
    Where tests run in several processes (pytest -n 2 --dist loadgroup), say which of them go together.

    Those that look at processes, ports, mounts and the kernel's queues are the machine's: one after the other. The
    others only compute; a file of them shares what it has counted.
    """
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            group = "machine" if MACHINE.search(item.nodeid) else item.nodeid.partition("::")[0]
            item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(name="place")
def _place() -> Iterator[Path]:
    """A directory that any user can pass, which pytest's own is not."""
    place = Path(tempfile.mkdtemp(prefix="daemon-"))
    place.chmod(0o755)
    yield place
    shutil.rmtree(place)


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
