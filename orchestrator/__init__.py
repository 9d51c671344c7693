"""
orchestrator - the daemon around workers: N processes on a queue, watched, replaced and measured

`orchestrator run QUEUE` is the whole of it for a person; workers is the library for
whoever puts messages or writes a handler. Linux only. See ARCHITECTURE.md beside this file.
"""

from __future__ import annotations

__version__: str


def __getattr__(name: str) -> str:
    """Find the version when it is asked for: what tells it takes a quarter of the time of ``orchestrator put``."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import metadata  # noqa: PLC0415 - that is what takes the time

    try:
        return metadata.version("spool-orchestrator")
    except metadata.PackageNotFoundError:  # run from a checkout that was never installed
        return "0+unknown"
