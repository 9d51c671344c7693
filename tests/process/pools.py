"""
pools - real pools of the process tests: `orchestrator run` as a process, in directories of its own

Pools starts them and leaves nothing behind. A Pool is looked at as an operator would:
its log, its board, its metrics, the queue's directories. Waiting is tests.waiting's.
Longer than a module should be, for its three parts are used together: processes, the queue as
files, another user.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psutil
from prometheus_client.parser import text_string_to_metric_families

from orchestrator.status import snapshot
from tests.waiting import until
from workers import open_queue
from workers.board import Board, BoardError, Header
from workers.queues import names
from workers.queues.base import Settings
from workers.queues.spool import Spool
from workers.system import process_state, start_ticks

ROOT = Path(__file__).parent.parent.parent
HANDLERS = "tests.process.handlers"
READY_S = 20.0
OTHER_USER = 12345  # nobody's number
# Short times of a lease: beats every 0.2 s, and lost after 6 looks without one.
LEASE = 'lease_interval = "0.2s"\nlease_timeout = "1s"\nstale_after = "10s"\n'

T = TypeVar("T")
Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@dataclass(frozen=True, slots=True)
class Process:
    """A process, so that another one with its number is not taken for it."""

    pid: int
    start: int | None

    @property
    def is_there(self) -> bool:
        """Whether it lives; a zombie does not."""
        return self.start is not None and start_ticks(self.pid) == self.start


def process(pid: int) -> Process:
    """The process that has number *pid* now."""
    return Process(pid, start_ticks(pid))


def signal_all(processes: Sequence[Process], number: signal.Signals) -> None:
    """Signal those that still live."""
    for one in processes:
        if one.is_there:
            with contextlib.suppress(ProcessLookupError):
                os.kill(one.pid, number)


class Pool:
    """One master and all that it started."""

    def __init__(
        self, place: Path, run_dir: Path, name: str, words: Sequence[str], environment: dict[str, str]
    ) -> None:
        self.place, self.name = place, name
        self.board_path = run_dir / name / "board"
        self._board: Board | None = None
        with (place / "stdout").open("ab") as stdout, (place / "log").open("ab") as log:
            self.process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=stdout, stderr=log, cwd=place, env=environment
            )

    # ---- what can be seen of it

    @property
    def log(self) -> str:
        """What it has said so far."""
        return (self.place / "log").read_text("utf-8", "replace")

    @property
    def summary(self) -> dict[str, Any]:
        """What --json printed at the end."""
        found: dict[str, Any] = json.loads((self.place / "stdout").read_text())
        return found

    @property
    def status(self) -> dict[str, Any]:
        """What the board of this very master says; {} when there is none yet."""
        if self._board is None:
            with contextlib.suppress(FileNotFoundError, BoardError):
                board = Board.open(self.board_path)
                if board.header.words[Header.MASTER_PID] == self.process.pid:
                    self._board = board
        return {} if self._board is None else snapshot(self._board)

    @property
    def queues(self) -> dict[str, dict[str, Any]]:
        """The queues of the status, by name."""
        return {queue["name"]: queue for queue in self.status.get("queues", [])}

    @property
    def workers(self) -> list[dict[str, Any]]:
        """The workers of the status that have a process."""
        return [worker for queue in self.queues.values() for worker in queue["workers"] if worker["pid"]]

    @property
    def pids(self) -> list[int]:
        """The workers' processes."""
        return [worker["pid"] for worker in self.workers]

    @property
    def busy(self) -> int:
        """How many have a message in hand."""
        return sum(worker["message"] != "" for worker in self.workers)

    def outcome(self, name: str) -> int:
        """How many messages were settled so, by all workers."""
        return sum(worker["outcomes"][name] for queue in self.queues.values() for worker in queue["workers"])

    def service(self, which: Header) -> Process:
        """The keeper or the exporter."""
        assert self.status
        assert self._board is not None
        return process(self._board.header.words[which])

    def everyone(self) -> list[Process]:
        """The master and every process below it now, programs too."""
        below = psutil.Process(self.process.pid).children(recursive=True)
        return [process(pid) for pid in (self.process.pid, *(one.pid for one in below))]

    # ---- what is done to it

    def ready(self) -> Pool:
        """Wait until all workers can claim; itself."""

        def is_ready() -> bool:
            assert self.process.poll() is None, self.log
            status = self.status
            waiting = (worker["state"] in ("idle", "busy") for worker in self.workers)
            return bool(status) and status["ready"] and sum(waiting) == status["totals"]["target"]

        self.until(is_ready, READY_S)
        return self

    def until(self, condition: Callable[[], T], timeout_s: float = 20.0) -> T:
        """Wait; what fails shows the log."""
        try:
            return until(condition, timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.status.get('queues')}\n{self.log}") from None

    def send(self, number: signal.Signals) -> None:
        """Signal the master."""
        self.process.send_signal(number)

    def wait(self, timeout_s: float = 30.0) -> int:
        """Wait for its end; the exit code."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"not ended within {timeout_s:g} s\n{self.status}\n{self.log}") from None

    def end(self, number: signal.Signals = signal.SIGTERM, timeout_s: float = 30.0) -> int:
        """Signal it and wait for its end; the exit code."""
        self.send(number)
        return self.wait(timeout_s)

    def get(self, path: str, timeout_s: float = 10.0) -> tuple[int, str]:
        """Ask its exporter; status and text."""
        try:
            with urllib.request.urlopen(f"http://{self.status['listen']}{path}", timeout=timeout_s) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def scrape(self, timeout_s: float = 10.0) -> Series:
        """Every sample of /metrics."""
        return series(self.get("/metrics", timeout_s)[1])


@dataclass
class Pools:
    """
    Starts pools below *place*; each its own log, all one run directory, journal and hold file.

    *prefix* is how to run this project's Python.
    """

    place: Path
    prefix: tuple[str, ...] = (sys.executable,)
    started: list[Pool] = field(default_factory=list)
    seen: list[Process] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.journal_path.mkdir(parents=True, exist_ok=True)

    @property
    def journal_path(self) -> Path:
        """What the handlers write into."""
        return self.place / "journal"

    @property
    def hold(self) -> Path:
        """While it exists, hold() keeps its messages."""
        return self.place / "hold"

    def environment(self, **more: str) -> dict[str, str]:
        """This process's, without what would configure a pool."""
        kept = {key: text for key, text in os.environ.items() if not key.startswith("ORCHESTRATOR_")}
        own = {"PYTHONPATH": str(ROOT), "JOURNAL": str(self.journal_path), "HOLD": str(self.hold)}
        return {**kept, **own, **more}

    def start(
        self,
        *words: str,
        name: str = "pool",
        run_dir: Path | None = None,
        listen: str | None = "none",
        environment: Mapping[str, str] | None = None,
        command: str = "run",
    ) -> Pool:
        """Start ``orchestrator run``, or another *command* that runs a pool; *listen* None gives no --listen."""
        place = self.place / f"{len(self.started)}-{name}"
        place.mkdir()
        place.chmod(0o777)
        run_dir = run_dir or self.place / "run"
        own = ["--name", name, "--run-dir", str(run_dir), *([] if listen is None else ["--listen", listen])]
        options, dashes, program = _split(words)
        full = [*self.prefix, "-m", "orchestrator", command, *options, *own, *dashes, *program]
        pool = Pool(place, run_dir, name, full, {**self.environment(), **(environment or {})})
        self.started.append(pool)
        return pool

    def run(self, *words: str, stdin: bytes = b"") -> tuple[int, str]:
        """Run any other command of the orchestrator to its end; exit code, and what it said."""
        ended = subprocess.run(
            [*self.prefix, "-m", "orchestrator", *words],
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=self.environment(),
            cwd=self.place,
            timeout=60,
            check=False,
        )
        return ended.returncode, ended.stdout.decode("utf-8", "replace")

    def journal(self) -> list[str]:
        """All lines that the handlers wrote, process by process."""
        return [line for path in sorted(self.journal_path.iterdir()) for line in path.read_text().splitlines()]

    def counted(self) -> Counter[str]:
        """How often each line was written."""
        return Counter(self.journal())

    def end_all(self) -> None:
        """Leave no process behind, whatever a test did."""
        for pool in self.started:
            if pool.process.poll() is None:
                with contextlib.suppress(psutil.Error):
                    self.seen += pool.everyone()
        signal_all(self.seen, signal.SIGCONT)
        for pool in self.started:
            if pool.process.poll() is None:
                pool.process.kill()
            pool.process.wait(30)
        signal_all(self.seen, signal.SIGKILL)
        until(lambda: not any(one.is_there for one in self.seen))


def _split(words: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """Options, the dashes, and the command after them."""
    if "--" not in words:
        return list(words), [], []
    at = list(words).index("--")
    return list(words[:at]), ["--"], list(words[at + 1 :])


def series(text: str) -> Series:
    """Every sample of *text*, by name and labels; the parser refuses what is no exposition."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def free_address() -> str:
    """HOST:PORT of a port that was free just now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


# ---- the queue, as anybody can look at it


def make_queue(path: Path, *, is_short: bool = False) -> Spool:
    """A new queue; *is_short*: with the times of LEASE."""
    times = {"lease_interval_s": 0.2, "lease_timeout_s": 1.0, "stale_after_s": 10.0} if is_short else {}
    queue = open_queue(str(path), settings=Settings(create=True, **times))  # type: ignore[arg-type]
    assert isinstance(queue, Spool)
    return queue


def drop(queue: Path, name: str | bytes, body: bytes = b"") -> None:
    """Put a file as any program may: written beside, then renamed into incoming/."""
    raw = os.fsencode(name)
    path = os.fsencode(queue / "tmp") + b"/dropped.part"
    with open(path, "wb") as file:
        file.write(body)
    os.rename(path, os.fsencode(queue / "incoming") + b"/" + raw)


def files(queue: Path, state: str) -> list[Path]:
    """The messages of a state, those of pending/ from all owners."""
    return sorted(_files(queue / state))


def _files(place: Path) -> Iterator[Path]:
    for entry in place.iterdir() if place.is_dir() else ():
        if place.name == "pending" and entry.is_dir() and not entry.is_symlink():
            # RACE: an owner removes its directory while we look.
            with contextlib.suppress(FileNotFoundError):
                yield from list(entry.iterdir())
        elif not (place.name == "errors" and entry.name.endswith(".meta")):
            yield entry


def is_empty(queue: Path) -> bool:
    """Whether nothing waits, is claimed or deferred; looked at in the order in which messages move."""
    return not any(files(queue, state) for state in ("incoming", "pending", "deferred", "incoming"))


def marks(queue: Path, state: str) -> list[names.Marked]:
    """What the file names of a state say."""
    found = [path.name for path in files(queue, state)]
    return [due[1] if (due := names.parse_due(name)) else names.parse(name) for name in found]


def metas(queue: Path) -> dict[str, dict[str, Any]]:
    """Every .meta of errors/, by the message's name."""
    found = [json.loads(path.read_text()) for path in (queue / "errors").iterdir() if path.name.endswith(".meta")]
    return {str(meta["name"]): meta for meta in found}


# ---- another user


def unprivileged() -> list[str] | str:
    """How to run this project's Python as nobody in particular, or why that is not possible here."""
    if os.geteuid() != 0:
        return [sys.executable]
    packages = [str(ROOT), *(path for path in sys.path if path.endswith("site-packages"))]
    identity = ["setpriv", f"--reuid={OTHER_USER}", f"--regid={OTHER_USER}", "--clear-groups"]
    reasons = []
    for python in (sys.executable, "/usr/bin/python3"):
        prefix = [*identity, "env", f"PYTHONPATH={os.pathsep.join(packages)}", python]
        try:
            tried = subprocess.run(
                [*prefix, "-c", "import orchestrator.cli.run"], capture_output=True, cwd="/", timeout=30, check=False
            )
        except OSError as error:
            return f"cannot become another user: {error}"
        if tried.returncode == 0:
            return prefix
        reasons.append(f"{python}: {tried.stderr.decode('utf-8', 'replace').strip()[-200:]}")
    return f"no Python that another user may run: {'; '.join(reasons)}"


def stop_all(pools: Pools, *pids: int) -> list[int]:
    """SIGSTOP, and wait until they are; the order in which they were stopped."""
    found = [process(pid) for pid in pids]
    pools.seen += found
    signal_all(found, signal.SIGSTOP)
    until(lambda: all(process_state(pid) == "T" for pid in pids))
    return list(pids)
