"""
zendaemon_twins - the daemon of this project and the original, so that one test can be run on both

A test of a fault is run on ours, where it must pass, and on the original, where it must fail: that is what makes
it a test of that fault. What is the same with both is run on both, and must pass.

Of the original its own event loop is run, with its own signal handlers, but not what it does before (arguments,
files, privileges), and not what it does with an exception that leaves the loop: it ends with 1.

See also: tests/unit/test_components, tests/unit/test_component_faults.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import select
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from workers import components as ours
from workers import signals
from workers.events import EventQueueManager, QueueEmptyException
from workers.system import System

HAS_ORIGINAL = importlib.util.find_spec("pyzenkit") is not None
needs_original = pytest.mark.skipif(not HAS_ORIGINAL, reason="the original (PyPI pyzenkit) is not installed")
original: Any = importlib.import_module("pyzenkit.zendaemon") if HAS_ORIGINAL else None
# What leaves the original's loop when it ends by a fault of its own.
OriginalFailed: type[Exception] = original.ZenDaemonException if HAS_ORIGINAL else AssertionError

Callback = Callable[[Any, Any], Any]


def twins(reason: str, raises: type[BaseException] = AssertionError) -> Any:
    """Run a test on ours, and see it fail on the original because of *reason*, with *raises*."""
    fails = pytest.mark.xfail(strict=True, raises=raises, reason=reason)
    return pytest.mark.parametrize(
        "library", ["ours", pytest.param("original", marks=[needs_original, fails])], indirect=True
    )


def both() -> Any:
    """Run a test on both, where it must pass."""
    return pytest.mark.parametrize("library", ["ours", pytest.param("original", marks=needs_original)], indirect=True)


class Library:
    """Ours."""

    module: Any = ours
    empty: Any = QueueEmptyException

    def __init__(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.place, self.monkeypatch = place, monkeypatch

    def queue(self) -> Any:
        return EventQueueManager()

    def component(self, callbacks: Mapping[str, Callback], *, prepend: bool = False) -> Any:
        """A component that answers each event of *callbacks* so."""

        class Given(self.module.ZenDaemonComponent):  # type: ignore[misc, name-defined] # the base is one of two
            def get_events(self) -> list[Any]:
                return [self.gen_event_handler(event, callback, prepend) for event, callback in callbacks.items()]

        return Given()

    def daemon(self, *components: Any, **schedules: Any) -> Any:
        """A daemon without statistics of its own."""
        return ours.Daemon(components, stats_interval_s=0, **schedules)

    def run(self, daemon: Any) -> None:
        """Handle events until the daemon ends."""
        daemon.run()

    def step_wall_clock(self, seconds: float) -> None:
        """Set the wall clock ahead, or back."""
        now_ns = time.time_ns() + int(seconds * 1e9)
        self.monkeypatch.setattr(System, "wall_ns", staticmethod(lambda: now_ns))
        self.monkeypatch.setattr(time, "time", lambda: now_ns / 1e9)

    def waits(self, hook: Callable[[float], object]) -> None:
        """Call *hook* with the seconds that are to be waited, just before each wait; end the wait only by a signal."""
        kernels = select.poll

        class Poll:
            def __init__(self) -> None:
                self.poller = kernels()
                self.register = self.poller.register

            def poll(self, timeout_ms: float) -> list[tuple[int, int]]:
                hook(timeout_ms / 1000)
                found = self.poller.poll(0)
                assert found, "it sleeps although a signal has come"
                return found

        self.monkeypatch.setattr(signals.select, "poll", Poll)


class Original(Library):
    """The original."""

    module = original
    empty = original and original.QueueEmptyException

    def queue(self) -> Any:
        return original.EventQueueManager()

    def daemon(self, *components: Any, **schedules: Any) -> Any:
        paths = {f"path_{name}": str(self.place) for name in ("bin", "cfg", "var", "log", "run", "tmp")}
        schedules.setdefault("schedule_after", ())
        daemon = original.ZenDaemon(name="twin", description="", components=components, **paths, **schedules)
        daemon.logger = logging.getLogger("twin")
        return daemon

    def run(self, daemon: Any) -> None:
        before = {
            number: signal.signal(number, getattr(daemon, f"_hnd_signal_{name}"))
            for name in ("hup", "int", "term", "usr1", "usr2")
            for number in [signal.Signals[f"SIG{name.upper()}"]]
        }
        try:
            daemon._event_loop()
        except (original.ZenDaemonStopException, original.QueueEmptyException):
            pass
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def waits(self, hook: Callable[[float], object]) -> None:
        """See Library. A signal that came before pause(2) does not end it, so nothing may wait by then."""
        waiting: list[Any] = []  # the daemon, and the seconds
        wait = original.ZenDaemon.wait

        def remembered(daemon: Any, period: float) -> None:
            waiting[:] = [daemon]
            wait(daemon, period)

        def pause() -> None:
            hook(waiting[1])
            assert not waiting[0].queue.events, "it sleeps although a signal has come"

        self.monkeypatch.setattr(original.ZenDaemon, "wait", remembered)
        self.monkeypatch.setattr(signal, "alarm", waiting.append)
        self.monkeypatch.setattr(signal, "pause", pause)


def library_of(name: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> Library:
    """ "ours" or "original"."""
    return (Original if name == "original" else Library)(place, monkeypatch)
