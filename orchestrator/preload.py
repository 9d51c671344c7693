"""
preload - import the handlers of queues that ask for it in the master, before the first fork

Workers then share the module's memory, and a worker that replaces a dead one has nothing
left to import. Only the module is imported: a handler that is a class is still made in
each worker.

Refused is what forking would break: an import that starts a thread (no child has it, and
a lock that it holds is held there for ever) or that changes a signal handler (the master's
own would be lost, or the module's). What cannot be seen from here is up to the module: a
connection or a random seed that is made at import is the same one in every worker.

Once, at the start, for what is imported stays: new code needs a restart of the pool.

Raises: HandlerError. Master only, before its loop; blocks as long as the imports do.
See also: handler (look_up), child (gc.freeze), OPERATIONS.md "Preloading".
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterable

from workers.errors import HandlerError
from workers.handler import look_up

ENDING_S = 0.1  # a thread that was joined is in the kernel's list for a moment yet


def preload(handlers: Iterable[str]) -> None:
    """Import the module of each "package.module:name". Raises HandlerError for one that must not be preloaded."""
    for handler in handlers:
        threads, signals = _threads(), _signals()
        look_up(handler)
        if _has_more_threads(threads):
            names = [one.name for one in threading.enumerate() if one is not threading.main_thread()]
            whose = f" ({', '.join(names)})" if names else " (of a library; OMP_NUM_THREADS=1 may prevent it)"
            raise HandlerError(
                f"handler {handler!r} cannot be preloaded: importing it starts a thread{whose}, which no forked worker "
                "would have. Start it when the first message comes, or take preload away"
            )
        changed = [name for name, found in _signals().items() if found is not signals[name]]
        if changed:
            raise HandlerError(
                f"handler {handler!r} cannot be preloaded: importing it changes the handler of {', '.join(changed)}, "
                "which the master needs. Do that when the first message comes, or take preload away"
            )


def _threads() -> int:
    return len(os.listdir("/proc/self/task"))


def _has_more_threads(before: int) -> bool:
    end_s = time.monotonic() + ENDING_S
    while _threads() > before:
        if time.monotonic() > end_s:
            return True
        os.sched_yield()
    return False


def _signals() -> dict[str, object]:
    return {number.name: signal.getsignal(number) for number in signal.Signals}
