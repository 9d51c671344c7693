"""Fixtures of the process tests. See pools."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.process.daemons import Daemons, daemons_below
from tests.process.pools import Pools, make_queue


@pytest.fixture(name="pools")
def _pools(tmp_path: Path) -> Iterator[Pools]:
    """Starts pools; what is left of them is ended with the test."""
    pools = Pools(tmp_path)
    try:
        yield pools
    finally:
        pools.end_all()


@pytest.fixture(name="queue")
def _queue(tmp_path: Path) -> Path:
    """An empty queue."""
    path = tmp_path / "queue"
    make_queue(path).close()
    return path


@pytest.fixture(name="quick_queue")
def _quick_queue(tmp_path: Path) -> Path:
    """An empty queue whose leases are lost after about a second."""
    path = tmp_path / "queue"
    make_queue(path, is_short=True).close()
    return path


@pytest.fixture(name="daemons")
def _daemons(place: Path) -> Iterator[Daemons]:
    """Starts daemons; what is left of them is ended with the test."""
    with daemons_below(place) as found:
        yield found
