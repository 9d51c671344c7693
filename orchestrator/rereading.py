"""
rereading - the configuration read again, by a child: where its files are, reading may hang

The child reads and checks, and hands over a pipe what it found, or why it is refused: JSON, for
half of one is none. One
at a time: who asks meanwhile is answered by another reading after it. One that takes longer
than SLOW_S is told of; what is in force stays.

Raises: nothing. Main thread of the master only, but _read(), which is the child's.
See also: master (which applies it), config (what is read), services (spawn).
"""

from __future__ import annotations

import json
import logging
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.child import Child
from orchestrator.config import Config, ConfigError
from orchestrator.config_text import from_text, to_text
from orchestrator.loop import Loop
from orchestrator.services import Services

log = logging.getLogger(__name__)

SLOW_S = 10.0
PART_BYTES = 65536


@dataclass(slots=True)
class Rereading:
    """
    Reads the configuration whenever want() says so.

    Attributes:
        read: reads it; raises ConfigError.
        on_read: called with what was read, or with the text of why it is refused.
    """

    loop: Loop
    services: Services
    read: Callable[[], Config]
    on_read: Callable[[Config | str], None]
    _is_wanted: bool = False
    _child: Child | None = None
    _pipe: int = -1
    _found: bytes = b""
    _since_s: float = 0.0
    _is_slow: bool = False

    def want(self, now_s: float) -> None:
        """Read it now, or as soon as it was read for somebody else."""
        self._is_wanted = True
        self.tick(now_s)

    def tick(self, now_s: float) -> None:
        """Collect, and begin what is wanted."""
        if self._child is not None and self._pipe < 0 and self._child.collect() is not None:
            self._child.close()
            self._child = None
        if self._child is None and self._is_wanted:
            self._is_wanted = False
            self._begin(now_s)
        if self._pipe >= 0 and not self._is_slow and now_s - self._since_s > SLOW_S:
            self._is_slow = True
            log.warning("reading the configuration takes long (does a filesystem hang?); the old one stays in force")

    def close(self) -> None:
        """End the child; not waited for, for it may hang."""
        if self._child is not None:
            self._child.send(signal.SIGKILL)
        if self._pipe >= 0:
            self.loop.unwatch(self._pipe)
            os.close(self._pipe)
            self._pipe = -1

    def forget_in_child(self) -> None:
        """Close the pipe, which is the master's."""
        if self._pipe >= 0:
            os.close(self._pipe)

    def _begin(self, now_s: float) -> None:
        self._since_s, self._is_slow, self._found = now_s, False, b""
        try:
            pipe, writer = os.pipe2(os.O_CLOEXEC)
        except OSError as error:
            self.on_read(f"it cannot be read: {error.strerror}")
            return
        try:
            self._child = self.services.spawn(lambda: _read(self.read, writer), "configuration reader")
        except OSError as error:
            os.close(pipe)
            self.on_read(f"no process to read it: {error.strerror}")
            return
        finally:
            os.close(writer)
        self._pipe = pipe
        self.loop.watch(pipe, self._on_part)

    def _on_part(self, pipe: int) -> None:
        part = os.read(pipe, PART_BYTES)
        self._found += part
        if part:
            return
        self.loop.unwatch(pipe)
        os.close(pipe)
        self._pipe = -1
        try:
            told = json.loads(self._found)
        except ValueError:
            told = {"refused": "the process that read it ended before it was done"}
        self._found = b""
        self.on_read(told["refused"] if "refused" in told else from_text(told["config"]))


def _read(read: Callable[[], Config], writer: int) -> int:
    try:
        found = {"config": to_text(read())}
    except ConfigError as error:
        found = {"refused": str(error)}
    with open(writer, "wb") as pipe:
        pipe.write(json.dumps(found).encode())
    return 0
