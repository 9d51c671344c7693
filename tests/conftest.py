"""Fixtures that several kinds of tests share. See rig (the queue under test) and schedules (the orders of actors)."""

from __future__ import annotations

import re
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.rig import SETTINGS, Rig, World, close_what_is_left
from workers.queues.spool import Spool

GROUPS = {
    "mounts": re.compile(r"tests/mounts/"),
    "machine": re.compile(r"tests/(process|tidy/test_(readme|deploy))|mqueue|message_queue|test_receive"),
    "bench": re.compile(r"tests/bench/"),
}

# The same inputs on every machine, however slow it is; ``--hypothesis-profile=default`` looks for others.
settings.register_profile("same", deadline=None, derandomize=True)
settings.load_profile("same")

SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGUSR1, signal.SIGUSR2)


def pytest_configure() -> None:
    """A shell has what it starts in the background ignore INT, and so would all that is started here."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # before the one of xdist, which reads the marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """
    Where tests run in several processes (pytest -n 3 --dist loadgroup), say which of them go together.

    Those that look at processes, ports and the kernel's queues are the machine's: one after the other. Those that bring
    filesystems up, in namespaces that nobody else sees, go beside them, one after the other too: a site of theirs is
    made once for a file. The others only compute; a file of them shares what it has counted.
    """
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            groups = (name for name, pattern in GROUPS.items() if pattern.search(item.nodeid))
            group = next(groups, item.nodeid.partition("::")[0])
            item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(autouse=True)
def _descriptors() -> Iterator[None]:
    """A process of thousands of tests must not come to have thousands of descriptors."""
    yield
    close_what_is_left()


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """A command that is called and not started gives back the handlers that were there: tests after it fork."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    assert {number: signal.getsignal(number) for number in SIGNALS} == before


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
