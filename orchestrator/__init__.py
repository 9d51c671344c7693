"""
orchestrator - the daemon around workers: N processes on a queue, watched, replaced and measured

`orchestrator run QUEUE` is the whole of it for a person; workers is the library for
whoever puts messages or writes a handler. Linux only. See ARCHITECTURE.md beside this file.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

__all__ = ["__version__"]

try:
    __version__ = version("spool-orchestrator")
except PackageNotFoundError:  # run from a checkout that was never installed
    __version__ = "0+unknown"
