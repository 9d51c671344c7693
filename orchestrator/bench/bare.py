"""
bare - the least that a producer and a consumer must do, in Python and in C

put: open O_EXCL in tmp/, write, close, rename into incoming/. take: list incoming/ once, then
rename into pending/, open, read, close, unlink. "split" is the same with disjoint
lists (made beforehand), and tmp/ and pending/ of each process's own: the limit where no
race is lost.

bare.c is compiled when it is used, where there is a compiler.
See also: bare.c.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from orchestrator.bench.crew import Gate, Run, run_together, share_of
from orchestrator.bench.measure import BenchError
from orchestrator.bench.subject import Load, Subject

SOURCE = Path(__file__).with_name("bare.c")


class Bare(Subject):
    """The loops in Python; with *is_split* each process keeps to itself."""

    def __init__(self, *, is_split: bool = False) -> None:
        self.name = "split" if is_split else "bare"
        self._is_split = is_split

    def _directories(self, place: Path, index: int) -> tuple[str, str, str]:
        own = f".{index}" if self._is_split else ""
        tmp, incoming, pending = (str(place / name) for name in (f"tmp{own}", "incoming", f"pending{own}"))
        found = tmp, incoming, pending
        for path in found:
            os.makedirs(path, 0o700, exist_ok=True)
        return found

    def put(self, place: Path, load: Load, count: int) -> Run:
        """Open, write, close, rename."""

        def role(index: int, gate: Gate) -> None:
            tmp, incoming, _ = self._directories(place, index)
            left, body = share_of(load.messages, index, count), load.body
            gate.pass_()
            for number in range(left):
                name = f"bench.{index}.{number:08d}"
                written = f"{tmp}/{name}"
                fd = os.open(written, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                os.write(fd, body)
                os.close(fd)
                os.rename(written, f"{incoming}/{name}")
            gate.finish(left)

        return run_together(count, role, is_traced=load.is_traced)

    def take(self, place: Path, load: Load, count: int) -> Run:
        """List; rename, open, read, close, unlink."""

        def role(index: int, gate: Gate) -> None:
            _, incoming, pending = self._directories(place, index)
            size = len(load.body) + 1
            handled = lost = 0
            # All must see the same list to be disjoint, so a split one is made before anybody takes.
            names = sorted(os.listdir(incoming))[index::count] if self._is_split else []
            gate.pass_()
            if not self._is_split:
                names = os.listdir(incoming)
                if load.order == "fifo":
                    names.sort()
            for name in names:
                claimed = f"{pending}/{name}"
                try:
                    os.rename(f"{incoming}/{name}", claimed)
                except FileNotFoundError:
                    lost += 1
                    continue
                fd = os.open(claimed, os.O_RDONLY | os.O_CLOEXEC)
                os.read(fd, size)
                os.close(fd)
                os.unlink(claimed)
                handled += 1
            gate.finish(handled, lost)

        return run_together(count, role, is_traced=load.is_traced)


class C(Subject):
    """The same loops in C: what of the cost is the kernel's."""

    def __init__(self, program: Path, *, is_split: bool = False) -> None:
        self.name = "c split" if is_split else "c bare"
        self._program, self._is_split = program, is_split

    def put(self, place: Path, load: Load, count: int) -> Run:
        """Open, write, close, rename."""
        return self._run("put", place, load, count)

    def take(self, place: Path, load: Load, count: int) -> Run:
        """List; rename, open, read, close, unlink."""
        return self._run("take", place, load, count)

    def _run(self, verb: str, place: Path, load: Load, count: int) -> Run:
        numbers = count, load.messages, len(load.body), int(self._is_split)
        done = subprocess.run(  # noqa: S603 - the program that was just compiled
            [str(self._program), verb, str(place), *map(str, numbers)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise BenchError(f"the bare loop in C failed: {done.stderr.strip()}")
        ns, handled, lost, cpu_us = map(int, done.stdout.split())
        return Run(max(ns, 1) / 1e9, handled, lost, cpu_us / 1e6)


def compiled(directory: Path) -> Path | str:
    """The program of bare.c, made in *directory*; or why there is none."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return "there is no C compiler (cc)"
    program = directory / "bare"
    done = subprocess.run(  # noqa: S603 - as PATH names it
        [compiler, "-O2", "-o", str(program), str(SOURCE)], capture_output=True, text=True, check=False
    )
    return program if done.returncode == 0 else f"{compiler} failed: {done.stderr.strip()[:200]}"
