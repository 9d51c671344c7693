"""
ddmq_twins - the library of this project and the original, so that one test can be run on both

A test of a fault is run on ours, where it must pass, and on the original, where it must
fail: that is what makes it a test of that fault. Library has what both need to be forced
into the state in question: clocks, hooks and counts of calls to the kernel.

The original cannot be used as it is published (Q1: its reading of YAML fails with PyYAML 6;
Q2: its command cannot start), so that much of it is patched; as_published() takes that back.

See also: tests/unit/test_ddmq_faults.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests import dirq_twins
from workers import ddmq as ours_ddmq
from workers.ddmq.broker import Broker
from workers.system import System

HAS_ORIGINAL = importlib.util.find_spec("ddmq") is not None and importlib.util.find_spec("yaml") is not None
needs_original = pytest.mark.skipif(not HAS_ORIGINAL, reason="the original (PyPI ddmq) is not installed")
# It leaves files open, and its patterns are no raw strings.
IGNORED = ("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::DeprecationWarning")

Hook = Callable[[], object]


def twins(reason: str, raises: type[BaseException] | tuple[type[BaseException], ...] = AssertionError) -> Any:
    """Run a test on ours, and see it fail on the original because of *reason*, with *raises*."""
    fails = pytest.mark.xfail(strict=True, raises=raises, reason=reason)
    marks = [needs_original, fails, *(pytest.mark.filterwarnings(one) for one in IGNORED)]
    return pytest.mark.parametrize("library", ["ours", pytest.param("original", marks=marks)], indirect=True)


def both() -> Any:
    """Run a test on both, where it must pass."""
    marks = [needs_original, *(pytest.mark.filterwarnings(one) for one in IGNORED)]
    return pytest.mark.parametrize("library", ["ours", pytest.param("original", marks=marks)], indirect=True)


class Kernel(dirq_twins.Kernel):
    """See there; and the clock since boot can be stopped, or the wall clock be set apart from the filesystem's."""

    def __init__(self) -> None:
        super().__init__()
        self.stopped_ns: int | None = None
        for name in ("rename_exchange", "lock"):
            setattr(self, name, self._hooked(name, getattr(System, name)))

    def boottime_ns(self) -> int:  # type: ignore[override] # a static method there
        """The moved clock, or the stopped one."""
        return super().boottime_ns() if self.stopped_ns is None else self.stopped_ns


class Library:
    """Ours. *kernel* is what its brokers are on; peer() has brokers on the real one."""

    def __init__(self) -> None:
        self.kernel = Kernel()
        self.package: Any = ours_ddmq

    def broker(self, path: Path, **more: Any) -> Any:
        """A broker on *path*, which is made."""
        return Broker(str(path), create=True, system=self.kernel, **more)

    def peer(self, path: Path) -> Any:
        """Another broker, without hooks and at the present time."""
        return ours_ddmq.broker(str(path))

    def as_published(self) -> None:
        """Take the patches of the original back."""

    def set_ahead(self, seconds: int) -> None:
        """Let our host's clock be ahead of the network filesystem's (or behind)."""
        self.kernel.network = "nfs"
        self.kernel.moved_ns = seconds * 10**9

    def advance(self, seconds: int) -> None:
        """Let so much time go by, for all."""
        self.kernel.moved_ns += seconds * 10**9

    def before(self, call: str, do: Hook) -> None:
        """Let *do* happen before the next *call*: rename, unlink, list or write."""
        call = {"list": "scandir"}.get(call, call)

        def hook() -> None:
            del self.kernel.hooks[call]
            do()

        self.kernel.hooks[call] = hook

    def count(self, call: str, words: str) -> int:
        """How often *call* (rename, list) was made since the last reset() for paths that end with *words*."""
        call = {"list": "scandir"}.get(call, call)
        return sum(made[0] == call and made[-1].endswith(words) for made in self.kernel.calls)

    def reset(self) -> None:
        """Forget what was counted."""
        self.kernel.calls.clear()


class Original(Library):
    """The original: hooks and clocks by replacing the functions that it calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.package = importlib.import_module("ddmq")
            self.module: ModuleType = importlib.import_module("ddmq.broker")
        yaml = importlib.import_module("yaml")
        patched = SimpleNamespace(load=yaml.safe_load, dump=yaml.dump)
        self._moved_s = 0
        self._calls: list[tuple[str, str]] = []
        self._yaml = yaml
        monkeypatch.setattr(self.module, "yaml", patched)
        for call in ("rename", "listdir"):
            self._written_down(call, getattr(os, call))

    def _written_down(self, call: str, real: Callable[..., Any]) -> None:
        def called(*arguments: Any) -> Any:
            self._calls.append((call, str(arguments[-1])))
            return real(*arguments)

        self._patch.setattr(os, call, called)

    def broker(self, path: Path, **more: Any) -> Any:
        """See Library."""
        return self.package.broker(str(path), create=True, **more)

    def peer(self, path: Path) -> Any:
        """See Library. At the present time as long as nobody calls the other."""
        theirs = self.package.broker(str(path))
        return _AtPresent(self, theirs)

    def as_published(self) -> None:
        """See Library."""
        self._patch.setattr(self.module, "yaml", self._yaml)

    def set_ahead(self, seconds: int) -> None:
        """See Library."""
        self._moved_s = seconds
        self._patch.setattr(self.module, "time", SimpleNamespace(time=lambda: System.wall_ns() / 1e9 + self._moved_s))

    def advance(self, seconds: int) -> None:
        """See Library."""
        self.set_ahead(self._moved_s + seconds)

    def before(self, call: str, do: Hook) -> None:
        """See Library. Its write is preceded by making the JSON."""
        if call == "write":
            place, name = self.package.message, "msg2json"
        else:
            place, name = os, {"list": "listdir", "unlink": "remove"}.get(call, call)
        real = getattr(place, name)

        def hooked(*arguments: Any, **more: Any) -> Any:
            setattr(place, name, real)
            do()
            return real(*arguments, **more)

        self._patch.setattr(place, name, hooked)

    def count(self, call: str, words: str) -> int:
        """See Library."""
        call = {"list": "listdir"}.get(call, call)
        return sum(made == call and path.endswith(words) for made, path in self._calls)

    def reset(self) -> None:
        """See Library."""
        self._calls.clear()


class _AtPresent:
    """A broker of the original whose calls see the real clock."""

    def __init__(self, library: Original, theirs: Any) -> None:
        self._library, self._theirs = library, theirs

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._theirs, name)

        def call(*arguments: Any, **more: Any) -> Any:
            library = self._library
            moved, library._moved_s = library._moved_s, 0
            try:
                return method(*arguments, **more)
            finally:
                library._moved_s = moved

        return call


def library_of(name: str, monkeypatch: pytest.MonkeyPatch) -> Library:
    """The one of that name."""
    return Library() if name == "ours" else Original(monkeypatch)


def skip_unless_times_are_exact(place: Path) -> None:
    """Skip where two changes of a directory in one tick (before Linux 6.13) leave one mtime."""
    times = set()
    for name in (".first", ".second", ".third"):
        (place / name).touch()
        times.add(place.stat().st_mtime_ns)
        (place / name).unlink()
    if len(times) < 3:
        pytest.skip("this filesystem's times come in ticks, so another's change may be seen 50 ms later")


def yaml_of(settings: dict[str, object]) -> str:
    """A settings file, as a person would write it."""
    return "".join(f"{key}: {value}\n" for key, value in settings.items())


def tree(place: Path) -> dict[str, bytes]:
    """Every file below *place* with its content."""
    return {str(path.relative_to(place)): path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file()}
