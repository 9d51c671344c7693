"""
preload - import the handlers of queues that ask for it in the master, before the first fork

Workers then share the module's memory, and a worker that replaces a dead one has nothing
left to import. Only the module is imported: a handler that is a class is still made in
each worker.

Refused is an import that leaves behind what forking would break or the master cannot live
with: a thread (no child has it, and a lock that it holds is held there for ever), a process,
a timer, and a changed signal handler, signal mask, umask or current directory. What cannot
be seen from here is up to the module: a connection or a random seed that is made at import
is the same one in every worker.

Once, at the start, for what is imported stays: new code needs a restart of the pool.

Raises: HandlerError. Master only, before its loop; blocks as long as the imports do.
See also: handler (look_up), child (gc.freeze), OPERATIONS.md "Preloading".
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from workers.errors import HandlerError
from workers.handler import look_up

ENDING_S = 0.1  # a thread that was joined is in the kernel's list for a moment yet
LATER = "Do that when the first message comes, or take preload away"

_TIMERS = {
    "ITIMER_REAL": signal.ITIMER_REAL,  # alarm() is this one too
    "ITIMER_VIRTUAL": signal.ITIMER_VIRTUAL,
    "ITIMER_PROF": signal.ITIMER_PROF,
}


def preload(handlers: Iterable[str]) -> None:
    """Import the module of each "package.module:name". Raises HandlerError for one that must not be preloaded."""
    for handler in handlers:
        before = _State.now()
        _import(handler)
        if (what := next(_changes(before), None)) is not None:
            raise HandlerError(f"handler {handler!r} cannot be preloaded: importing it {what}. {LATER}")


def imported(handler: str) -> str | None:
    """The module of *handler*, else the nearest package above it, that this process has imported; None for neither."""
    name = handler.partition(":")[0]
    while name and name not in sys.modules:
        name = name.rpartition(".")[0]
    return name or None


@dataclass(frozen=True, slots=True)
class _State:
    """What an import must leave as it was. Some of it comes from who started us."""

    threads: int
    children: frozenset[str]
    handlers: dict[str, object]
    blocked: frozenset[str]
    timers: frozenset[str]
    umask: int
    directory: str

    @classmethod
    def now(cls) -> _State:
        umask = os.umask(0o077)
        os.umask(umask)
        return cls(
            threads=_threads(),
            children=_children(),
            handlers={number.name: signal.getsignal(number) for number in signal.Signals},
            blocked=frozenset(_signal_name(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())),
            timers=frozenset(name for name, which in _TIMERS.items() if any(signal.getitimer(which))),
            umask=umask,
            directory=os.readlink("/proc/self/cwd"),
        )


def _import(handler: str) -> None:
    """Import it. A process that it forks ends where its import does."""
    master = os.getpid()
    try:
        look_up(handler)
    except (Exception, KeyboardInterrupt):  # the latter is the person who waits
        raise
    except BaseException as error:
        what = " ".join("".join(traceback.format_exception_only(error)).split())
        raise HandlerError(f"handler {handler!r}: importing it failed: {what}") from error
    finally:
        if os.getpid() != master:
            os._exit(1)  # it must not go on as a second master of this name


def _changes(before: _State) -> Iterator[str]:
    """Say what is not as it was."""
    if _has_more_threads(before.threads):
        names = [one.name for one in threading.enumerate() if one is not threading.main_thread()]
        whose = f" ({', '.join(names)})" if names else " (of a library; OMP_NUM_THREADS=1 may prevent it)"
        yield f"starts a thread{whose}, which no forked worker would have"
    now = _State.now()
    if children := now.children - before.children:
        yield f"starts a process ({', '.join(sorted(children))}) and leaves it to the master"
    if changed := [name for name, found in now.handlers.items() if found is not before.handlers[name]]:
        yield f"changes the handler of {', '.join(changed)}, which the master needs"
    if blocked := now.blocked ^ before.blocked:
        yield f"blocks or unblocks {', '.join(sorted(blocked))}, which the master listens for"
    if timers := now.timers - before.timers:
        yield f"leaves {', '.join(sorted(timers))} running, whose signal would end the master"
    if now.umask != before.umask:
        yield f"changes the umask from {before.umask:03o} to {now.umask:03o}, which is that of the queue's files too"
    if now.directory != before.directory:
        yield f"changes the current directory to {now.directory}, where no relative path means what it did"


def _threads() -> int:
    return len(os.listdir("/proc/self/task"))


def _has_more_threads(before: int) -> bool:
    end_s = time.monotonic() + ENDING_S
    while _threads() > before:
        if time.monotonic() > end_s:
            return True
        os.sched_yield()
    return False


def _children() -> frozenset[str]:
    """Our children, the ended ones too; none where the kernel does not list them."""
    found: set[str] = set()
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError), open(f"/proc/self/task/{task}/children", encoding="ascii") as file:
            found.update(file.read().split())
    return frozenset(found)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # of those for real time only the first and the last have a name
        return f"signal {number}"
