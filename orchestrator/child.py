"""
child - mechanism: fork a role, give it its title, learn how it ended, end all it started

Every process of a pool is made here, by multiprocess with the fork context by name.
A child leaves by os._exit as soon as its role returns, so nothing of the master's is
flushed twice. Never waitpid(-1): each child is watched by its sentinel and asked by
is_alive(), because a grandchild can hold the sentinel's pipe open.

A process that waits in the kernel for a filesystem may outlive KILL until that answers;
hangs_in() sees it, and nobody here waits for it.

Main thread of the master only: parent-death signals end with the thread that forked.
See also: pool (which child when), master, workers.system.die_with_parent.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass

import setproctitle
from multiprocess import get_context
from multiprocess.process import BaseProcess, _children

from orchestrator.loop import Loop
from workers.system import die_with_parent, kill_session, process_state

log = logging.getLogger(__name__)

_CONTEXT = get_context("fork")

# Service managers and terminals signal whole groups, but only the master answers; TERM ends a child of any kind
# that does not say otherwise.
FOR_THE_MASTER = (
    signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM,
    signal.SIGTTIN, signal.SIGTTOU,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Exit:
    """How a child ended: exit code or signal number, and the CPU time it used, nanoseconds."""

    code: int | None
    signal: int | None
    cpu_ns: int

    def __str__(self) -> str:
        if self.signal is None:
            return f"ended with exit code {self.code}"
        hint = " (perhaps out of memory?)" if self.signal == signal.SIGKILL else ""
        return f"was ended by {signal.Signals(self.signal).name}{hint}"


class Child:
    """One forked process."""

    def __init__(self, process: BaseProcess) -> None:
        self._process = process
        self.pid: int = process.pid
        self.sentinel: int = process.sentinel
        self.killed_s: float | None = None  # monotonic seconds; when the policy had it killed first
        self.hangs_in: str | None = None  # where in the kernel, when that has been seen to outlive KILL

    def collect(self) -> Exit | None:
        """How it ended, or None while it lives. Never blocks; its pid is free afterwards. close() it then."""
        before = _children_cpu_ns()
        if self._process.is_alive():
            return None
        # Only this child can have been waited for in between, so the difference is its own.
        cpu_ns = _children_cpu_ns() - before
        code = self._process.exitcode
        if code is None or code < 0:
            return Exit(None, -code if code else None, cpu_ns)
        return Exit(code, None, cpu_ns)

    def close(self) -> None:
        """
        Give the sentinel back, once collected and no longer watched.

        ORDER: unwatch, then close. Its pipe lives on in the siblings forked since, so a selector would report a
        descriptor for ever that nobody can unwatch. See test_a_dead_worker_leaves_the_loop_at_rest.
        """
        self._process.close()

    def hangs_dead(self) -> str | None:
        """Where in the kernel one of its threads hangs though it has ended; None while it lives, or when none does."""
        return hangs_in(self.pid) if process_state(self.pid) == "Z" else None

    def send(self, number: signal.Signals) -> None:
        """Signal it; nothing when it has ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)


def spawn(
    role: Callable[[], int], title: str, loop: Loop, forget: Callable[[], None], *, outlives: bool = False
) -> Child:
    """
    Fork a process that is called *title*, runs *role* and ends with its answer as exit code.

    *forget* closes, in the child, what belongs to the master alone. *outlives*: do not end with the
    master (the keeper, which leaves last). Raises OSError when the kernel gives no process.
    """
    parent = os.getpid()

    def main() -> None:
        code = 1
        gc.freeze()  # what came since settle(); the master keeps its own collectable, for it lives long
        try:
            # From the first moment on: a group is signalled at any time.
            # See test_a_signal_to_the_whole_group_reaches_nobody_but_the_master.
            loop.forget_in_child(FOR_THE_MASTER)
            forget()
            if not outlives:
                die_with_parent(parent)
            setproctitle.setproctitle(f"orchestrator: {title}")
            code = role()
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except BaseException:
            log.exception("%s failed", title)
        finally:
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    process = _CONTEXT.Process(target=main, name=title)
    before = _descriptors()
    with loop.signals_held():
        try:
            process.start()
        except OSError:
            # The pipes made for a child that was not forked; nobody else opens descriptors in this process.
            for fd in _descriptors() - before:
                with contextlib.suppress(OSError):
                    os.close(fd)
            raise
    return Child(process)


def settle() -> None:
    """
    Leave what is there now to no collection any more: before the first fork, once.

    A collection writes into the header of every object it looks at, and whichever process does it
    first pays for a copy of each page. Source: gc.freeze.
    """
    gc.collect()
    gc.freeze()


def kill_whole(pid: int) -> None:
    """SIGKILL worker *pid*, which leads a session of its own, and everything it started in that session."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)
    kill_session(pid)


def hangs_in(pid: int) -> str | None:
    """
    Which function of the kernel process *pid* waits in, where no signal ends the wait; None when it is in none.

    Such as request_wait_answer: a FUSE filesystem has not answered. Never blocks. Source: proc(5).
    """
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            # What is asked for here is no memory of the process: that may be locked as long as it hangs.
            if process_state(int(thread)) == "D":
                return _waits_in(int(thread))
    return None


def _waits_in(thread: int) -> str:
    with contextlib.suppress(OSError), open(f"/proc/{thread}/wchan", encoding="ascii") as file:
        if (found := file.read().strip()) not in ("", "0"):
            return found
    return "a call that is not told"


def forget_all() -> None:
    """Let this interpreter end without waiting for the children that are left. Last of all."""
    # multiprocess waits at exit for every process that it has made and nobody has collected.
    # See test_a_master_ends_though_one_of_its_children_does_not.
    _children.clear()


def ignore(*numbers: signal.Signals) -> None:
    """Ignore these signals too, beside those FOR_THE_MASTER."""
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)


def pass_over() -> None:
    """
    Let the signals FOR_THE_MASTER pass without effect, in a process that starts programs.

    Those start with the defaults: what a process ignores is ignored by its programs too, what it handles is not.
    """
    for number in FOR_THE_MASTER:
        signal.signal(number, lambda *_: None)
        signal.siginterrupt(number, False)  # noqa: FBT003 - the library's; a call of C that waits goes on


def _descriptors() -> set[int]:
    """What is open, without the descriptor that lists it: its number is the next pipe's."""
    found = set()
    for fd in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):
            os.fstat(fd)
            found.add(fd)
    return found


def _children_cpu_ns() -> int:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return int((used.ru_utime + used.ru_stime) * 1e9)
