"""
faketime - processes whose wall clock is wrong, and is set while they run

libfaketime stands before the C library's wall clock and reads how far it is off from a file at each call. Times of
boot and the times of files stay real: the files are those of a server whose clock is right. No kernel dates the files
of its own disk by another clock than it tells, and some protocols rely on that; so processes can be told that
they are a server's.

Where libfaketime is missing the test skips and says why.
Limits: the kernel's own waiting by the wall clock (mq_timedsend) goes by the real one. libfaketime 0.9.10 breaks
clock_nanosleep(2) when the monotonic clock is left alone, so time.sleep is another here.
Source: libfaketime's README.
See also: test_clocks.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.process.pools import ROOT

LIBRARIES = (
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib64/faketime/libfaketimeMT.so.1",
    "/usr/lib/faketime/libfaketimeMT.so.1",
)
SHARED = Path("/dev/shm")
HOUR_S = 3600
DAY_S = 24 * HOUR_S
AT_START = """
import os, select, time
time.sleep = lambda seconds: select.select((), (), (), seconds) and None
if place := os.environ.get("SERVED"):
    from workers.system import System
    of_path = System.network_filesystem
    def of_server(self, path):
        return "a server with a clock of its own" if os.fspath(path).startswith(place) else of_path(self, path)
    System.network_filesystem = of_server
"""


@dataclass(frozen=True)
class Clock:
    """A wall clock; what was started with its environment or prefix goes by it. *place* is an empty directory."""

    place: Path
    preloaded: str  # the shared object

    def set(self, offset_s: int) -> None:
        """Step to the real time and *offset_s*; all of its processes see that at their next look."""
        fresh = self.place / "offset.new"
        fresh.write_text(f"{offset_s:+d}s\n")
        fresh.rename(self.place / "offset")  # half a line would end who reads it

    def environment(self, served: Path | None = None) -> dict[str, str]:
        """Of processes that go by this clock; *served*: they take what lies below it for a server's."""
        return {
            "LD_PRELOAD": self.preloaded,
            "FAKETIME_TIMESTAMP_FILE": str(self.place / "offset"),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
            "PYTHONPATH": f"{self.place}{os.pathsep}{ROOT}",
            "SERVED": str(served or ""),
        }

    def prefix(self, served: Path | None = None) -> tuple[str, ...]:
        """Begins the command of a Python that goes by this clock. See environment()."""
        return ("env", *(f"{key}={text}" for key, text in self.environment(served).items()), sys.executable)


def sweep() -> None:
    """Remove the shared memory of processes that were killed: one that gets such a number could not start."""
    for left in SHARED.glob("*faketime_*"):
        number = left.name.rpartition("_")[2]
        if number.isdigit() and not Path(f"/proc/{number}").exists():
            left.unlink(missing_ok=True)


def clock(place: Path, offset_s: int = 0) -> Clock:
    """A wall clock that is so far off. Skips the test where there is no libfaketime."""
    library = next(filter(os.path.exists, LIBRARIES), None)
    if library is None:
        pytest.skip("no libfaketime here to set a clock with (package: faketime)")
    sweep()
    place.mkdir()
    (place / "sitecustomize.py").write_text(AT_START)
    made = Clock(place, library)
    made.set(offset_s)
    return made
