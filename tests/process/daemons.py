"""
daemons - real daemons of the process tests: `orchestrator run --daemon`, and the original's

The test's process is made the one that orphans are given to, so that it can find every
daemon that was started below it, whatever it forked, and leaves none behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.process.pools import ROOT, Process, process, signal_all
from tests.waiting import until

PR_SET_CHILD_SUBREAPER = 36
STARTED = re.compile(r"pool (\S+) runs as process (\d+)\n\Z")
# The orchestrator with a shorter patience.
IMPATIENT = "import sys\nfrom orchestrator import launch\nlaunch.READY_S = launch.END_S = float(sys.argv.pop(1))\n"
IMPATIENT += "from orchestrator.cli import main\nmain()\n"


@dataclass
class Daemons:
    """Starts daemons below *place*."""

    place: Path
    ours_before: set[int] = field(default_factory=set)

    @property
    def run_dir(self) -> Path:
        """Of all of them."""
        return self.place / "run"

    def words(self, *words: str, name: str = "demo", listen: str = "none", run_dir: Path | None = None) -> list[str]:
        """The command that starts one."""
        own = ["--daemon", "--name", name, "--run-dir", str(run_dir or self.run_dir), "--listen", listen]
        at = words.index("--") if "--" in words else len(words)
        return [sys.executable, "-m", "orchestrator", "run", *words[:at], *own, *words[at:]]

    def environment(self, **more: str) -> dict[str, str]:
        """This process's, without what would configure a pool."""
        kept = {key: text for key, text in os.environ.items() if not key.startswith("ORCHESTRATOR_")}
        return {**kept, "PYTHONPATH": str(ROOT), **more}

    def run(self, words: list[str], **more: Any) -> subprocess.CompletedProcess[str]:
        """Run a command to its end. Its output goes to files: a daemon that kept it open would hold up a pipe."""
        out, err = self.place / "stdout", self.place / "stderr"
        with out.open("w") as stdout, err.open("w") as stderr:
            ended = subprocess.run(
                words,
                **{"cwd": self.place, "env": self.environment(), **more},
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                timeout=60,
                check=False,
            )
        return subprocess.CompletedProcess(words, ended.returncode, out.read_text(), err.read_text())

    def start(self, *words: str, name: str = "demo", **more: Any) -> int:
        """Start one that becomes ready; its process."""
        ended = self.run(self.words(*words, name=name), **more)
        assert (ended.returncode, ended.stderr) == (0, ""), (ended, self.log(name))
        found = STARTED.match(ended.stdout)
        assert found, ended
        assert found[1] == name
        return int(found[2])

    def stop(self, name: str = "demo", run_dir: Path | None = None) -> None:
        """Stop one."""
        where = str(run_dir or self.run_dir)
        ended = self.run([sys.executable, "-m", "orchestrator", "stop", "--run-dir", where, "--name", name])
        assert ended.returncode == 0, ended

    def log(self, name: str = "demo") -> str:
        """What it has said so far where it was told nothing of a log."""
        path = self.run_dir / name / "log"
        return path.read_text("utf-8", "replace") if path.exists() else ""

    def alive(self) -> list[Process]:
        """All that was started below this process since, and lives."""
        found = psutil.Process().children(recursive=True)
        return [
            one for one in (process(child.pid) for child in found if child.pid not in self.ours_before) if one.is_there
        ]

    def end_all(self) -> None:
        """Leave no process behind."""
        for _ in range(10):  # one may fork while we look
            left = self.alive()
            signal_all(left, signal.SIGKILL)
            until(lambda seen=tuple(left): not any(one.is_there for one in seen))
            if not left:
                break
        for child in psutil.Process().children():
            if child.pid not in self.ours_before:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(child.pid, os.WNOHANG)


@contextlib.contextmanager
def daemons_below(place: Path) -> Iterator[Daemons]:
    """Daemons; all are gone afterwards."""
    adopt = ctypes.CDLL(None, use_errno=True).prctl
    adopt(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    found = Daemons(place, {child.pid for child in psutil.Process().children(recursive=True)})
    try:
        yield found
    finally:
        found.end_all()
        adopt(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def status_of(pid: int) -> dict[str, str]:
    """The lines of /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: text.strip() for key, _, text in (line.partition(":") for line in lines)}


def said(ended: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The object that --json printed."""
    found: dict[str, Any] = json.loads(ended.stdout)
    return found
