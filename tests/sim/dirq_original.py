"""
dirq_original - the original package on a simulated process: its code as it is, over our kernel

Its modules are imported once more, for us alone, and find our `os`, `time` and `open`
under these names. So every order of its calls and ours can be walked.

Limits: bytes only, no umask.
See also: dirq_cast, scenarios_dirq.
"""

from __future__ import annotations

import importlib
import os
import sys
from functools import cache
from types import ModuleType, SimpleNamespace
from typing import Any

from tests.sim.dirq_ledger import BODY, HEADER, QUEUE
from tests.sim.kernel import Process

_MODULES = ("dirq.QueueBase", "dirq.QueueSimple", "dirq.queue")


def original(kind: str, process: Process, rndhex: int = 15) -> Any:
    """Its queue of that *kind* at QUEUE as *process* sees it; the top directory must be there."""
    simple, queue = _modules(process)
    with process.world.straight():
        if kind == "simple":
            return simple.QueueSimple(QUEUE, rndhex=rndhex)
        return queue.Queue(QUEUE, rndhex=rndhex, schema={BODY: "binary", HEADER: "binary?"})


def _modules(process: Process) -> list[ModuleType]:
    """Those of QueueSimple and Queue, with the kernel of *process*."""
    calls, clock = _Calls(process), _Clock(process)
    found = _imported(process.pid)
    for module in found:
        vars(module).update(os=calls, time=clock, open=calls.file)
    return found[1:]


@cache
def _imported(pid: int) -> list[ModuleType]:
    """The original's modules for whoever is *pid* in one world at a time; what others have imported stays as it is."""
    kept = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "dirq"}
    try:
        return [importlib.import_module(name) for name in _MODULES]
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "dirq"]:
            del sys.modules[name]
        sys.modules.update(kept)


class _Clock:
    """Its time: every reading is a little later, for it makes another name until one is free."""

    def __init__(self, process: Process) -> None:
        self._process, self._read = process, 0

    def time(self) -> float:
        self._read += 1
        return self._process.wall_ns() / 1e9 + self._read * 1e-5


class _Calls:
    """Its os."""

    O_WRONLY, O_CREAT, O_EXCL = os.O_WRONLY, os.O_CREAT, os.O_EXCL

    def __init__(self, process: Process) -> None:
        self._process = process
        self.path = SimpleNamespace(exists=self._exists, isdir=process.is_directory)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._process, name)

    def _exists(self, path: str) -> bool:
        try:
            self._process.stat(path)
        except OSError:
            return False
        return True

    def makedirs(self, path: str) -> None:
        """Of a directory whose parent is there."""
        self._process.mkdir(path)

    def fdopen(self, fd: int, mode: str) -> _File:
        """A file that writes what it has when it is closed."""
        return _File(self._process, fd)

    def file(self, path: str, mode: str) -> _File:
        """The open of Python."""
        return _File(self._process, self._process.open(path, os.O_RDONLY))


class _File:
    def __init__(self, process: Process, fd: int) -> None:
        self._process, self._fd, self._data = process, fd, b""

    def write(self, data: bytes) -> None:
        self._data += data

    def read(self) -> bytes:
        return self._process.read(self._fd, 1 << 16)

    def close(self) -> None:
        if self._data:
            self._process.write(self._fd, self._data)
        self._process.close(self._fd)
