"""
faultfs - a mount that stops answering, dawdles, fails, or loses its replies, when a test says so

A FUSE filesystem that passes everything to a directory beside it, mounted in a mount namespace of its own: nobody
else ever sees it. Whoever is outside looks at the directory itself, as another host that the trouble does not concern
would. A request that is held back has been taken by the filesystem: no signal ends the wait of who made it, not even
KILL, until it is let go or the connection breaks.

    with faulty(tmp_path) as mount:          # or the test skips, and says why
        subprocess.run([*mount.enter, "-m", "orchestrator", "put", str(mount.inside / "queue")])
        mount.stop()                         # nothing is answered from here on
        mount.stop(RENAME)                   # or only renames
        mount.wait_held(1)                   # a request waits
        mount.go()                           # and is answered, as if nothing had happened
        mount.delay(1.0)                     # each call takes a second
        mount.fail("EIO", UNLINK, times=1)   # one unlink fails
        mount.fail("ENOENT", RENAME, times=1, is_done=True)    # one is done, and its reply is lost
        mount.break_off(); mount.mount()     # ENOTCONN for everybody; then it is there again

The daemon is told by a line of JSON on its input and answers with another, so that an order is in force when the
method returns. At the end of its input it ends, and all who wait for it get ENOTCONN: nothing is left hanging.

Needs root, unshare, a libfuse and mfusepy. Long because: the filesystem and the test's end of it are one tool.
See also: test_hung_mount, tests.process.disks (filesystems that behave).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.holder import held
from tests.waiting import until
from workers.system import process_state

try:
    import mfusepy
except (ImportError, OSError, AttributeError) as found:  # no package, or no libfuse under it
    mfusepy, WHY_NOT = None, str(found)

ROOT = Path(__file__).parent.parent.parent
SHORT_S = 10.0
RENAME, UNLINK, LIST, LOOK = ("rename",), ("unlink",), ("readdir",), ("getattr",)
HERE = "here"


# ---- the daemon


@dataclass(slots=True)
class Rule:
    """
    What happens to a request: to one of *operations* (all, when there are none) with *match* in one of its paths.

    It is held back until the rules change, or comes *delay_s* later; then *error*, if any, is answered. *is_done*: what
    was asked for is done all the same, and only the reply is lost. *times*: so often, and then no more.
    """

    operations: tuple[str, ...] = ()
    match: str = ""
    is_held: bool = False
    delay_s: float = 0.0
    error: str = ""
    is_done: bool = False
    times: int = -1

    def fits(self, operation: str, paths: tuple[str, ...]) -> bool:
        """Whether this is about a request."""
        is_meant = not self.operations or operation in self.operations
        return is_meant and self.times != 0 and any(self.match in path for path in paths)


@dataclass
class Gate:
    """Where each request passes. Threads share it."""

    rules: list[Rule] = field(default_factory=list)
    generation: int = 0
    held: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)

    def obey(self, rules: list[Rule]) -> None:
        """These rules from now on, for what the old ones held back as well."""
        with self.changed:
            self.rules, self.generation = rules, self.generation + 1
            self.changed.notify_all()

    def meet(self, operation: str, paths: tuple[str, ...]) -> Rule | None:
        """The rule for a request, once it is let go; None when there is none (any more)."""
        with self.changed:
            rule = self._rule(operation, paths)
            while rule is not None and rule.is_held:
                before = self.generation
                self.held += 1
                self.changed.wait_for(lambda: self.generation != before)  # noqa: B023 - it waits here
                self.held -= 1
                rule = self._rule(operation, paths)
            if rule is not None:
                rule.times -= rule.times > 0
        if rule is not None:
            time.sleep(rule.delay_s)  # it is the time that a slow server takes
        return rule

    def _rule(self, operation: str, paths: tuple[str, ...]) -> Rule | None:
        return next((one for one in self.rules if one.fits(operation, paths)), None)


class Passed:
    """The directory *behind*, request by request. Source: the operations of fuse(4), by their system calls."""

    use_ns = True

    def __init__(self, behind: str) -> None:
        self._behind = behind

    def _at(self, path: str) -> str:
        return self._behind + path

    def getattr(self, path: str, _file: int | None = None) -> dict[str, int]:
        found = os.lstat(self._at(path))
        words = ("st_mode", "st_nlink", "st_uid", "st_gid", "st_size", "st_ino", "st_blocks", "st_rdev")
        times = {f"st_{which}time": getattr(found, f"st_{which}time_ns") for which in "amc"}
        return {word: getattr(found, word) for word in words} | times

    def readdir(self, path: str, _file: int) -> list[tuple[str, dict[str, int], int]]:
        own = os.lstat(self._at(path)).st_ino
        with os.scandir(self._at(path)) as entries:
            found = [(".", own), ("..", own), *((entry.name, entry.inode()) for entry in entries)]
        return [(name, {"st_ino": inode}, 0) for name, inode in found]  # without their kinds, as many a server answers

    def mkdir(self, path: str, mode: int) -> None:
        os.mkdir(self._at(path), mode)

    def rmdir(self, path: str) -> None:
        os.rmdir(self._at(path))

    def unlink(self, path: str) -> None:
        os.unlink(self._at(path))

    def rename(self, path: str, to: str) -> None:
        os.rename(self._at(path), self._at(to))

    def link(self, path: str, source: str) -> None:
        os.link(self._at(source), self._at(path))

    def symlink(self, path: str, target: str) -> None:
        os.symlink(target, self._at(path))

    def readlink(self, path: str) -> str:
        return os.readlink(self._at(path))

    def create(self, path: str, mode: int, _file: object = None) -> int:
        return os.open(self._at(path), os.O_CREAT | os.O_EXCL | os.O_RDWR, mode)

    def open(self, path: str, flags: int) -> int:
        return os.open(self._at(path), flags & ~os.O_APPEND)  # the kernel says where to write

    def read(self, _path: str, size: int, offset: int, file: int) -> bytes:
        return os.pread(file, size, offset)

    def write(self, _path: str, data: bytes, offset: int, file: int) -> int:
        return os.pwrite(file, data, offset)

    def truncate(self, path: str, size: int, _file: int | None = None) -> None:
        os.truncate(self._at(path), size)

    def fsync(self, _path: str, _is_data_only: int, file: int) -> None:
        os.fsync(file)

    def fsyncdir(self, path: str, _is_data_only: int, _file: int) -> None:
        fd = os.open(self._at(path), os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def release(self, _path: str, file: int) -> None:
        os.close(file)

    def chmod(self, path: str, mode: int) -> None:
        os.chmod(self._at(path), mode)

    def chown(self, path: str, user: int, group: int) -> None:
        os.chown(self._at(path), user, group, follow_symlinks=False)

    def utimens(self, path: str, times_ns: tuple[int, int] | None = None) -> None:
        os.utime(self._at(path), ns=times_ns, follow_symlinks=False)

    def statfs(self, path: str) -> dict[str, int]:
        found = os.statvfs(self._at(path))
        return {word: getattr(found, word) for word in dir(found) if word.startswith("f_") and word != "f_fsid"}


OPERATIONS = tuple(name for name in vars(Passed) if not name.startswith("_") and name != "use_ns")
# What a program asks for; a path's directories are looked up beside that, each at each call.
DEEDS = tuple(name for name in OPERATIONS if name not in ("getattr", "release", "statfs"))


def gated(name: str, gate: Gate) -> Any:
    """Operation *name* of Passed, behind *gate*."""
    pass_on = getattr(Passed, name)

    def operation(self: Passed, *words: Any) -> Any:
        rule = gate.meet(name, tuple(word for word in words if isinstance(word, str)))
        if rule is not None and rule.error and not rule.is_done:
            raise OSError(getattr(errno, rule.error), rule.error)
        answer = pass_on(self, *words)
        if rule is not None and rule.error:
            raise OSError(getattr(errno, rule.error), rule.error)
        return answer

    return operation


def serve(behind: str, inside: str) -> None:
    """The daemon: *behind*, mounted at *inside*, until its input ends."""
    gate = Gate()
    says = threading.Thread(target=_obey, args=(gate,), daemon=True)

    def init(_self: Passed, _path: str) -> None:
        says.start()

    behaviour = {name: gated(name, gate) for name in OPERATIONS}
    kind = type("FaultFs", (mfusepy.Operations,), {**vars(Passed), **behaviour, "init": init, "use_ns": True})
    # Else ten that are held would be all there are.
    threads = {"max_threads": 200} if mfusepy.fuse_version_major == 3 else {}
    at_once = dict.fromkeys(("attr_timeout", "entry_timeout", "negative_timeout"), 0)
    # use_ino: two links to a file are one, as on any disk.
    mfusepy.FUSE(kind(behind), inside, foreground=True, use_ino=True, fsname="faultfs", **at_once, **threads)


def _obey(gate: Gate) -> None:
    print(HERE, flush=True)  # noqa: T201 - a program's own words
    for line in sys.stdin:
        order = json.loads(line)
        if order is not None:
            gate.obey([Rule(**{**one, "operations": tuple(one["operations"])}) for one in order])
        with gate.changed:
            left = sum(rule.times for rule in gate.rules if rule.times > 0)
            print(json.dumps({"held": gate.held, "left": left}), flush=True)  # noqa: T201
    os._exit(0)  # the kernel answers all who wait


# ---- the test's end


@dataclass
class FaultFs:
    """A mount that can be told what to do: *inside* for those in its namespace, *behind* for everybody else."""

    inside: Path
    behind: Path
    namespace: tuple[str, ...]  # begins the command of whatever shall see it
    _daemon: subprocess.Popen[str] | None = None

    @property
    def enter(self) -> tuple[str, ...]:
        """Begins the command of a Python that shall see it."""
        return (*self.namespace, sys.executable)

    @property
    def is_mounted(self) -> bool:
        """Whether the daemon runs."""
        return self._daemon is not None

    # ---- what it does

    def stop(self, operations: tuple[str, ...] = (), match: str = "") -> None:
        """Take requests, of these kinds, and answer none."""
        self._order([Rule(operations, match, is_held=True)])

    def delay(self, seconds: float, operations: tuple[str, ...] = (), *, times: int = -1) -> None:
        """Answer so much later, so many times; -1 is for ever."""
        self._order([Rule(operations, delay_s=seconds, times=times)])

    def fail(
        self, error: str, operations: tuple[str, ...], *, match: str = "", times: int = 1, is_done: bool = False
    ) -> None:
        """Answer *error*, so many times; *is_done*: after it was done."""
        self._order([Rule(operations, match, error=error, times=times, is_done=is_done)])

    def go(self) -> None:
        """Answer everything, what was held back too."""
        self._order([])

    @property
    def held(self) -> int:
        """Requests that wait for go()."""
        return self._asked(None)["held"]

    @property
    def left(self) -> int:
        """Requests that delay() or fail() were meant for and that have not come."""
        return self._asked(None)["left"]

    def wait_held(self, count: int = 1) -> None:
        """Wait until so many requests wait."""
        until(lambda: self.held >= count, SHORT_S)

    def freeze(self) -> None:
        """Take no more requests, until thaw(): who has made one can be killed."""
        assert self._daemon is not None
        self._daemon.send_signal(signal.SIGSTOP)
        until(self._is_frozen, SHORT_S)

    def thaw(self) -> None:
        """See freeze()."""
        assert self._daemon is not None
        self._daemon.send_signal(signal.SIGCONT)

    def _is_frozen(self) -> bool:
        """Each of its threads: one that has not heard of it yet would take one more request."""
        assert self._daemon is not None
        threads = os.listdir(f"/proc/{self._daemon.pid}/task")
        return all(process_state(int(thread)) == "T" for thread in threads)

    def _order(self, rules: list[Rule]) -> None:
        self._asked([asdict(rule) for rule in rules])

    def _asked(self, order: list[dict[str, object]] | None) -> dict[str, int]:
        assert self._daemon is not None
        assert self._daemon.stdin is not None
        assert self._daemon.stdout is not None
        self._daemon.stdin.write(json.dumps(order) + "\n")
        self._daemon.stdin.flush()
        answer: dict[str, int] = json.loads(self._daemon.stdout.readline())
        return answer

    # ---- whether it is there

    def mount(self) -> None:
        """Mount it, in place of what broke off."""
        subprocess.run([*self.namespace, "umount", "--lazy", str(self.inside)], capture_output=True, check=False)
        self._daemon = subprocess.Popen(
            [*self.enter, "-m", "tests.mounts.faultfs", str(self.behind), str(self.inside)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._daemon.stdout is not None
        assert self._daemon.stderr is not None
        if self._daemon.stdout.readline().strip() != HERE:
            said = self._daemon.stderr.read().strip()[-200:]
            self._close()
            pytest.skip(f"no FUSE filesystem can be mounted here: {said}")

    def break_off(self) -> None:
        """Kill the daemon: all who wait, and all who come, are answered ENOTCONN."""
        assert self._daemon is not None
        self._daemon.kill()
        self._close()

    def _close(self) -> None:
        daemon, self._daemon = self._daemon, None
        if daemon is not None:
            for pipe in (daemon.stdin, daemon.stdout, daemon.stderr):
                assert pipe is not None
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
            daemon.wait(SHORT_S)


@contextmanager
def faulty(place: Path) -> Iterator[FaultFs]:
    """Mount PLACE/behind at PLACE/mount, or skip the test."""
    if mfusepy is None:
        pytest.skip(f"no FUSE here for Python (pip install mfusepy, and a libfuse): {WHY_NOT}")
    inside, behind = place / "mount", place / "behind"
    inside.mkdir()
    behind.mkdir()
    with held("namespace for a mount", "mount") as holder:
        namespace = ("nsenter", f"--mount=/proc/{holder}/ns/mnt", f"--wdns={place}")
        mount = FaultFs(inside, behind, namespace)
        try:
            mount.mount()
            yield mount
        finally:
            mount._close()


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2])
