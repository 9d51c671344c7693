"""
dirq_twins - the library of this project and the original, so that one test can be run on both

A test of a fault is run on ours, where it must pass, and on the original, where it must
fail: that is what makes it a test of that fault. Library has what both need to be forced
into the state in question: a clock, and a hook at each call to the kernel.

Kernel is the real one for ours; under the original the functions of os are replaced.

See also: tests/unit/test_dirq_faults.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from workers import dirq as ours_dirq
from workers.system import System

SCHEMA = {"body": "string"}
HOOKED = (
    "rename", "link", "unlink", "mkdir", "rmdir", "listdir", "scandir", "open", "close", "read", "write", "fstat",
    "lstat", "stat", "utime", "chmod", "fsync", "rename_noreplace",
)  # fmt: skip
HAS_ORIGINAL = importlib.util.find_spec("dirq") is not None
needs_original = pytest.mark.skipif(not HAS_ORIGINAL, reason="the original (PyPI dirq) is not installed")

Hook = Callable[[], object]


def twins(reason: str, raises: type[BaseException] | tuple[type[BaseException], ...] = AssertionError) -> Any:
    """Run a test on ours, and see it fail on the original because of *reason*, with *raises*."""
    fails = pytest.mark.xfail(strict=True, raises=raises, reason=reason)
    return pytest.mark.parametrize(
        "library", ["ours", pytest.param("original", marks=[needs_original, fails])], indirect=True
    )


class Kernel(System):
    """The real kernel, at a time that is moved by hand; each call is written down and may be preceded by a hook."""

    def __init__(self) -> None:
        self.moved_ns = 0
        self.frozen_ns: int | None = None
        self.calls: list[tuple[str, ...]] = []
        self.hooks: dict[str, Callable[[], object]] = {}
        self.network: str | None = None
        self._is_in_hook = False
        for name in HOOKED:
            setattr(self, name, self._hooked(name, getattr(System, name)))

    def _hooked(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if not self._is_in_hook and name in self.hooks:
                self._is_in_hook = True
                try:
                    self.hooks[name]()
                finally:
                    self._is_in_hook = False
            self.calls.append((name, *(one for one in arguments if isinstance(one, str))))
            if name == "utime" and self.moved_ns and len(arguments) == 1:
                arguments = (*arguments, (self.wall_ns(),) * 2)
            return self.replaced.get(name, real)(*arguments)

        return call

    @property
    def replaced(self) -> dict[str, Callable[..., Any]]:
        """What is called instead, by name."""
        return self.__dict__.setdefault("_replaced", {})

    def wall_ns(self) -> int:  # type: ignore[override] # a static method there
        """The moved clock."""
        return (System.wall_ns() if self.frozen_ns is None else self.frozen_ns) + self.moved_ns

    def boottime_ns(self) -> int:  # type: ignore[override]
        """The moved clock."""
        return System.boottime_ns() + self.moved_ns

    def network_filesystem(self, path: str) -> str | None:
        """What the test says."""
        return self.network


class Library:
    """Ours. *kernel* is what its queues are on; peer() has queues on the real one."""

    def __init__(self) -> None:
        self.kernel = Kernel()
        for name in ours_dirq.__all__:
            setattr(self, name, getattr(ours_dirq, name))

    def simple(self, path: Path, **more: Any) -> Any:
        """A QueueSimple."""
        return ours_dirq.QueueSimple(str(path), system=self.kernel, **more)

    def queue(self, path: Path, **more: Any) -> Any:
        """A Queue with a body."""
        return ours_dirq.Queue(str(path), schema=SCHEMA, system=self.kernel, **more)

    def peer(self, queue: Any) -> Any:
        """Another object on the directory of *queue*, without hooks and at the present time."""
        if isinstance(queue, ours_dirq.QueueSimple):
            return ours_dirq.QueueSimple(queue.path)
        return ours_dirq.Queue(queue.path, schema=SCHEMA)

    def freeze(self, seconds: int) -> None:
        """Stop the wall clock there."""
        self.kernel.frozen_ns = seconds * 10**9

    def set_ahead(self, seconds: int) -> None:
        """Let our clock be ahead of that of the network filesystem."""
        self.kernel.network = "nfs"
        self.kernel.moved_ns = seconds * 10**9

    def lock_long_ago(self, queue: Any, name: str, seconds: int = 1000) -> None:
        """Lock *name* as if it had been that long ago."""
        self.kernel.moved_ns = -seconds * 10**9
        assert queue.lock(name)
        self.kernel.moved_ns = 0
        age(queue, name, seconds)

    def before(self, call: str, do: Hook, *, always: bool = False) -> None:
        """Let *do* happen before the next *call*, or before each."""

        def hook() -> None:
            if not always:
                del self.kernel.hooks[call]
            do()

        self.kernel.hooks[call] = hook

    def replace(self, call: str, do: Callable[..., Any]) -> None:
        """Let *do* stand for *call*; it may use the functions of os."""
        self.kernel.replaced[call] = do


class Original(Library):
    """The original: hooks and clocks by replacing the functions that it calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch
        self._modules = [importlib.import_module(f"dirq.{name}") for name in ("QueueBase", "QueueSimple", "queue")]
        self._is_in_hook = False
        for name in ours_dirq.__all__:
            module = {"QueueLockError": "Exceptions", "QueueError": "Exceptions"}.get(name, name)
            if name.startswith("Queue"):
                module = "queue" if name == "Queue" else module
                setattr(self, name, getattr(importlib.import_module(f"dirq.{module}"), name))

    def simple(self, path: Path, **more: Any) -> Any:
        """See Library."""
        return self.QueueSimple(str(path), **more)

    def queue(self, path: Path, **more: Any) -> Any:
        """See Library."""
        return self.Queue(str(path), schema=SCHEMA, **more)

    def peer(self, queue: Any) -> Any:
        """See Library."""
        return type(queue)(queue.path, **({"schema": SCHEMA} if isinstance(queue, self.Queue) else {}))

    def freeze(self, seconds: int) -> None:
        """See Library."""
        for module in self._modules:
            self._patch.setattr(module, "time", SimpleNamespace(time=lambda: float(seconds)))

    def set_ahead(self, seconds: int) -> None:
        """See Library."""
        now_s = System.wall_ns() / 1e9
        self.freeze(int(now_s) + seconds)

    def lock_long_ago(self, queue: Any, name: str, seconds: int = 1000) -> None:
        """See Library."""
        assert queue.lock(name)
        age(queue, name, seconds)

    def before(self, call: str, do: Hook, *, always: bool = False) -> None:
        """See Library."""
        real = getattr(os, call)

        def hooked(*arguments: Any, **more: Any) -> Any:
            if not self._is_in_hook:
                self._is_in_hook = True
                if not always:
                    setattr(os, call, real)
                try:
                    do()
                finally:
                    self._is_in_hook = False
            return real(*arguments, **more)

        self._patch.setattr(os, call, hooked)

    def replace(self, call: str, do: Callable[..., Any]) -> None:
        """See Library."""
        self._patch.setattr(os, call, do)


def library_of(name: str, monkeypatch: pytest.MonkeyPatch, place: Path) -> Library:
    """The one of that name."""
    if name == "ours":
        return Library()
    skip_unless_links_are_counted(place)
    return Original(monkeypatch)


def skip_unless_links_are_counted(place: Path) -> None:
    """Skip what the original, or a count of calls, needs."""
    if place.stat().st_nlink < 2:
        pytest.skip("this filesystem says one link of every directory, and the original cannot be used there (D14)")


def age(queue: Any, name: str, seconds: float) -> None:
    """Set the time of an element, which is that of its lock, back."""
    then_ns = System.wall_ns() - int(seconds * 1e9)
    os.utime(f"{queue.path}/{name}", ns=(then_ns, then_ns))


def tree(place: Path) -> dict[str, tuple[str, bytes]]:
    """Everything below *place*: mode, and content of files."""
    found = {}
    for path in sorted(place.rglob("*")):
        body = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        found[str(path.relative_to(place))] = (oct(path.lstat().st_mode), body)
    return found


def next_tick(place: Path) -> None:
    """Wait until the filesystem's clock has moved on, so that what is made now differs from what was made before."""
    probe = place / ".tick"
    probe.touch()
    before_ns = probe.stat().st_mtime_ns
    while True:
        probe.touch()
        if probe.stat().st_mtime_ns != before_ns:
            break
    probe.unlink()
