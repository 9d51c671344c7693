"""
traced - the calls of real processes, by strace(1), made again on a simulated disk

So a real program's order of calls can be cut off by a power_cut like a simulated one's.
What it is told it says itself, by writing a line "promise WHAT BODY" to its standard
output at that moment; "body BODY" before it puts one.

Limits: the calls that a queue makes, by absolute paths. Leases are left out: they hold
no message, and beat as often as the machine is slow.
See also: power_cut.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.sim.kernel import START_NS, Process, World
from tests.sim.power_cut import Recording

CALLS = (
    "open", "openat", "creat", "write", "pwrite64", "writev", "fsync", "fdatasync", "syncfs", "rename", "renameat",
    "renameat2", "link", "linkat", "unlink", "unlinkat", "mkdir", "mkdirat", "rmdir",
)  # fmt: skip
_CALL = re.compile(r"(\w+)\((.*)\) += (-?\d+)")
_CUT = re.compile(r"(.*) <unfinished \.\.\.>$")
_RESUMED = re.compile(r"<\.\.\. \w+ resumed>(.*)")
_TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_OPENED = re.compile(r"(?:\d+|AT_FDCWD)<((?:\\x[0-9a-f]{2})*)>")


def why_not() -> str:
    """Why processes cannot be traced here; "" when they can."""
    if shutil.which("strace") is None:
        return "there is no strace"
    tried = subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True, text=True, check=False)
    return "" if tried.returncode == 0 else f"strace cannot trace here: {tried.stderr.strip()[:200]}"


def traced(command: Sequence[str], directory: Path, trace: Path) -> Recording:
    """Run *command* to its end, and make the calls below *directory* again in a world where that is the root."""
    world = World()
    for place, inner, files in os.walk(directory):
        below = "/" + os.path.relpath(place, directory).removeprefix(".")
        maker = world.process(1)
        for name in inner:
            maker.mkdir(f"{below.rstrip('/')}/{name}")
        for name in files:
            fd = maker.open(f"{below.rstrip('/')}/{name}", os.O_CREAT | os.O_EXCL)
            maker.write(fd, Path(place, name).read_bytes())
    recording = Recording(world)
    expression = "trace=" + ",".join(f"?{call}" for call in CALLS)
    subprocess.run(
        ["strace", "-f", "-y", "-xx", "-s", "1000000", "-o", str(trace), "-e", expression, *command],
        check=True, stdout=subprocess.DEVNULL, timeout=120,
    )  # fmt: skip
    again = _Again(recording, os.fsencode(directory))
    for pid, name, arguments, result in _calls(trace):
        again.call(pid, name, arguments, result)
    world.moved_ns = max(0, time.time_ns() - START_NS)  # the times in real names are real
    return recording


def _calls(trace: Path) -> Iterator[tuple[int, str, str, int]]:
    """Each call that succeeded, when it had returned."""
    unfinished: dict[str, str] = {}
    for line in trace.read_text(encoding="ascii").splitlines():
        pid, _, rest = line.partition(" ")
        rest = rest.strip()
        if cut := _CUT.match(rest):
            unfinished[pid] = cut[1]
            continue
        if resumed := _RESUMED.match(rest):
            rest = unfinished.pop(pid) + resumed[1]
        if (found := _CALL.match(rest)) and int(found[3]) >= 0:
            yield int(pid), found[1], found[2], int(found[3])


class _Again:
    """Makes calls again."""

    def __init__(self, recording: Recording, directory: bytes) -> None:
        self._recording, self._directory = recording, directory
        self._world, self._disk = recording.world, recording.world.disk

    def call(self, pid: int, name: str, arguments: str, result: int) -> None:
        """Make *name* again, if it is one of the directory's; take down what is said."""
        by = self._world.processes.get(pid) or self._world.process(pid)
        texts = [bytes.fromhex(text.replace("\\x", "")) for text in _TEXT.findall(arguments)]
        opened = [bytes.fromhex(text.replace("\\x", "")) for text in _OPENED.findall(arguments)]
        if name == "write" and arguments.startswith("1<"):
            self._take_down(texts[0])
            return
        is_by_path = name not in ("write", "pwrite64", "writev", "fsync", "fdatasync", "syncfs")
        if not all(path.startswith(self._directory + b"/") for path in (texts if is_by_path else opened)):
            return
        paths = [os.fsdecode(path.removeprefix(self._directory)) for path in (texts if is_by_path else opened)]
        if any(path.startswith(paths[0].partition("/.pool/")[0] + "/.pool/leases/") for path in paths):
            return
        self._make(by, name, arguments, paths, texts[0][:result] if name == "write" else b"")

    def _make(self, by: Process, name: str, arguments: str, paths: list[str], data: bytes) -> None:
        disk = self._disk
        if name in ("open", "openat"):
            assert "O_TRUNC" not in arguments
            disk.open(by, paths[0], os.O_CREAT if "O_CREAT" in arguments else 0)
        elif name == "write":
            disk.write(by, disk.inode(paths[0]), data)
        elif name in ("fsync", "syncfs"):
            disk.sync(by, disk.inode(paths[0]), name)
        else:
            plain = name.removesuffix("at2").removesuffix("at")
            assert plain in ("rename", "link", "unlink", "mkdir", "rmdir"), f"a queue does not call {name}: {arguments}"
            getattr(disk, "rmdir" if "AT_REMOVEDIR" in arguments else plain)(by, *paths)

    def _take_down(self, text: bytes) -> None:
        for line in text.splitlines():
            if line.startswith(b"body "):
                self._recording.bodies.add(line.removeprefix(b"body "))
            elif line.startswith(b"promise "):
                what, _, body = line.removeprefix(b"promise ").rpartition(b": ")
                self._recording.promise(body, what.decode())
