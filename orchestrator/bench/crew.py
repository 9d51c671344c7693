"""
crew - processes that start together, and what each of them did

Each is forked, prepares itself, says so and waits at a gate (a pipe whose end is the
opening). When it has finished it tells what it did and when, so that neither
forking nor what comes after the work is measured.

Raises: BenchError when one ends too early or with an error.
Limits: Linux; main thread only, for it forks.
See also: subject (the roles), calls (reads the marks).
"""

from __future__ import annotations

import contextlib
import os
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from io import FileIO

from multiprocess import get_context

from orchestrator.bench.measure import BenchError
from workers.system import die_with_parent

CONTEXT = get_context("fork")
MARKS = ("/orchestrator-bench/begin", "/orchestrator-bench/end")  # paths asked for in vain, to be seen by strace

_REPORT = struct.Struct("=5q")  # ended, handled, lost, CPU, private dirty bytes


@dataclass(frozen=True, slots=True)
class Run:
    """
    What came of one measurement.

    Attributes:
        seconds: from the opening of the gate until the last had finished.
        handled: messages put or taken; lost: claims that another was faster with.
        cpu_s: of all processes together, or None; dirty_bytes: private dirty memory of the largest, or 0.
        first_s: from the start of a pool to its first message (0 for others).
    """

    seconds: float
    handled: int
    lost: int = 0
    cpu_s: float | None = None
    dirty_bytes: int = 0
    first_s: float = 0.0

    @property
    def rate(self) -> float:
        """Messages a second."""
        return self.handled / self.seconds


@dataclass(slots=True)
class Gate:
    """What a measured process says and waits for."""

    _say_ready: FileIO
    _opening: FileIO
    _say_finished: FileIO
    _is_traced: bool
    _cpu_ns: int = field(default=0, init=False)

    def pass_(self) -> None:
        """Everything is prepared: wait for the others."""
        self._say_ready.write(b"r")
        # Else whoever dies before it is ready would be waited for as long as we wait here.
        self._say_ready.close()
        self._opening.read(1)  # the end of the pipe is the opening of the gate
        self._cpu_ns = time.process_time_ns()
        if self._is_traced:
            os.access(MARKS[0], os.F_OK)

    def finish(self, handled: int = 0, lost: int = 0) -> None:
        """The measured part is over."""
        if self._is_traced:
            os.access(MARKS[1], os.F_OK)
        cpu_ns = time.process_time_ns() - self._cpu_ns
        ended_ns = time.monotonic_ns()
        self._say_finished.write(_REPORT.pack(ended_ns, handled, lost, cpu_ns, private_dirty("self")))


Role = Callable[[int, Gate], None]


def run_together(count: int, role: Role, *, is_traced: bool = False) -> Run:
    """Run *role* (called with index and gate) in *count* processes; blocks until all have finished."""
    parent = os.getpid()
    with _pipe() as (ready, say_ready), _pipe() as (opening, opener), _pipe() as (finished, say_finished):

        def main(index: int) -> None:
            # A copy of the writing end kept here would keep the gate shut for everybody.
            opener.close()
            die_with_parent(parent)
            role(index, Gate(say_ready, opening, say_finished, is_traced))

        processes = [CONTEXT.Process(target=main, args=(index,)) for index in range(count)]
        try:
            for process in processes:
                process.start()
            # Else the end of a process that died would not be the end of the pipe.
            say_ready.close()
            say_finished.close()
            _read(ready, count)
            started_ns = time.monotonic_ns()
            opener.close()
            raw = _read(finished, count * _REPORT.size)
            for process in processes:
                process.join()
                if process.exitcode != 0:
                    raise BenchError(f"a measured process ended with exit code {process.exitcode}")
        finally:
            for process in processes:
                if process.pid is not None and process.is_alive():
                    process.kill()
                    process.join()
    ended, handled, lost, cpu, dirty = zip(*_REPORT.iter_unpack(raw), strict=True)
    return Run(max(max(ended) - started_ns, 1) / 1e9, sum(handled), sum(lost), sum(cpu) / 1e9, max(dirty))


def share_of(messages: int, index: int, count: int) -> int:
    """How many of *messages* the process *index* of *count* has to do."""
    return messages // count + (index < messages % count)


@contextlib.contextmanager
def running(command: Sequence[str], output: str) -> Iterator[int]:
    """A program beside us, its pid; what it says goes to the file *output*. It is killed at the end, or with us."""
    parent = os.getpid()

    def main() -> None:
        die_with_parent(parent)
        fd = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        os.dup2(fd, 1)
        os.dup2(fd, 2)
        os.execvp(command[0], list(command))  # noqa: S606 - no shell is wanted

    process = CONTEXT.Process(target=main)
    process.start()
    pid = process.pid
    assert pid is not None  # noqa: S101 - it was started
    try:
        yield pid
    finally:
        if process.is_alive():
            process.kill()
        process.join()


def private_dirty(pid: int | str) -> int:
    """Bytes of memory that only process *pid* has, and has written; 0 where the kernel does not tell."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
        for line in file:
            if line.startswith("Private_Dirty:"):
                return int(line.split()[1]) * 1024
    return 0


def _read(pipe: FileIO, size: int) -> bytes:
    """Read *size* bytes, the same number from each process. Raises BenchError when a process ended without its own."""
    raw = b""
    while len(raw) < size:
        part = pipe.read(size - len(raw))
        if not part:
            raise BenchError("a measured process ended too early; what it said stands above")
        raw += part
    return raw


@contextlib.contextmanager
def _pipe() -> Iterator[tuple[FileIO, FileIO]]:
    """A pipe: the end to read and the end to write."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    with open(reader, "rb", buffering=0) as reading, open(writer, "wb", buffering=0) as writing:
        yield reading, writing
