"""
fleet - a pool and a producer on each of several hosts, on one pair of queues, and what happens to them on the way

A Host says how a Python is run there and where the filesystem is; everything else is the same for a guest of its own
kernel and for a namespace of this one. The queues are "first", into which is put, and "second", into which some
messages are forwarded. Whatever is killed on the way is started anew. At the end counts() says what became of every
message, and check() what must be so:

- lost: put() said that it is there, and nobody finished it. Must be 0.
- twice: finished once more than once. Each must be the last thing that a process did before it was killed or lost its
  lease, so there are at most as many as workers that crashed.
- entered twice: put() said that it is not there, and it was. Must be 0.
- torn: a worker saw a part of it. Must be 0.
- left: what the queues still hold, in whatever state. Must be nothing.

Hosts tell each other's workers by leases only: a host name is over all that kernel8 is of.
Long because: what runs, what is done to it and what is counted are read together.

See also: handlers (what workers do and write down), errands (what is done on a host), test_nfs.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.mounts.errands import BATCH, PATIENCE_S
from tests.process.pools import ROOT, Process, process, signal_all
from tests.waiting import until
from workers.system import process_state

POOL = "fleet"
QUEUES = ("first", "second")
LOOK_S = 0.2
ENDS_S = 60.0  # a pool that is told to end
SPOOL_TIMES = {"lease_interval_s": 1.0, "lease_timeout_s": 5.0, "stale_after_s": 600.0}
MESSAGES = ("waiting", "claimed", "deferred", "errors", "done")  # states
LEASE_LOST = re.compile(r"the lease of (\S+) is lost, its claims go back")
LIST_MAX = 20
ENDINGS = ("done ", "forward ")  # of a message in one queue


@dataclass(frozen=True, slots=True)
class Host:
    """
    One that runs a pool and a producer.

    Attributes:
        place: an empty directory of the shared filesystem, as it is seen there; the queues are made in it.
        prefix: begins the command of a Python there.
        run_dir: of its pool, on a disk of its own.
        cut: takes its power away. None: all of its processes are stopped, then killed, so that none does a last thing.
        boot: what comes before its pool is started again.
    """

    name: str
    place: Path
    prefix: tuple[str, ...]
    run_dir: Path
    cut: Callable[[], None] | None = None
    boot: Callable[[], None] | None = None


@dataclass(frozen=True, slots=True)
class Trouble:
    """What is done when *at* of all messages (0 to 1) are finished; counted as *name*, unless it counts itself."""

    at: float
    do: Callable[[], None]
    name: str = ""


@dataclass
class Running:
    """What runs on a host now, and the log of all that has."""

    host: Host
    log: Path
    pool: subprocess.Popen[bytes] | None = None
    producer: subprocess.Popen[bytes] | None = None
    said: int = 0  # of the log, before the pool was started

    @property
    def is_ready(self) -> bool:
        """Whether its pool has all its queues."""
        said = self.log.read_text("utf-8", "replace")[self.said :]
        return self.pool is not None and said.count(" is ready: ") >= len(QUEUES)


@dataclass(slots=True)
class Counts:
    """What became of the messages. See the module's header."""

    put: int
    unknown: int  # put() could not say, or its producer was killed meanwhile; those that were entered are finished
    lost: list[int]
    twice: list[int]
    unexplained: list[int]  # of the doubles
    entered_twice: list[int]
    torn: int
    left: dict[str, dict[str, int]]
    unpublished: int  # files of tmp/ that producers left who were killed; a keeper removes them when they are old
    unpublished_max: int
    happened: Counter[str]
    killed: int  # workers
    cut: int  # workers of hosts that were cut off
    leases_lost: int  # of workers
    fenced: int

    @property
    def crashes(self) -> int:
        """How many workers may have had a message in hand as they died, or were taken for dead."""
        return self.killed + max(self.cut, self.leases_lost)  # who was cut off loses its lease

    def __str__(self) -> str:
        """One line."""
        happened = ", ".join(f"{count} {name}" for name, count in sorted(self.happened.items())) or "nothing"
        return (
            f"{self.put} messages and {self.unknown} unknown; {happened}; lost {len(self.lost)},"
            f" twice {len(self.twice)} of {self.crashes} crashes, entered twice {len(self.entered_twice)},"
            f" torn {self.torn}, fenced {self.fenced}, left {self.left or 'nothing'}"
            f" and {self.unpublished} unpublished"
        )

    def check(self, *, may_stall: bool = False) -> None:
        """
        Nothing lost, nothing stranded, nothing torn, and nothing twice but by a crash.

        *may_stall*: a host that lives may have been kept from beating, so that its lease was lost.
        """
        assert not self.lost, (self.lost[:LIST_MAX], str(self))
        assert not self.entered_twice, (self.entered_twice[:LIST_MAX], str(self))
        assert not self.unexplained, (self.unexplained[:LIST_MAX], str(self))
        assert len(self.twice) <= self.crashes, str(self)
        assert may_stall or self.leases_lost <= self.cut, str(self)
        assert not self.torn, str(self)
        assert not self.left, str(self)
        assert self.unpublished <= self.unpublished_max, str(self)


@dataclass
class Fleet:
    """
    Runs them. *place* is a directory of this machine that all hosts see, under the same path.

    Attributes:
        scheme: of the queues' URLs; query: what else they say, as ?schema=... of dirq.
        count: messages, of all producers together.
        options: more lines of each queue's configuration.
        times: of the queues' leases (None: the protocol has none).
    """

    place: Path
    hosts: Sequence[Host]
    count: int
    scheme: str = "spool"
    query: str = ""
    workers: int = 2
    options: Mapping[str, object] = field(default_factory=dict)
    times: Mapping[str, float] | None = field(default_factory=lambda: dict(SPOOL_TIMES))
    happened: Counter[str] = field(default_factory=Counter)
    _killed: int = 0  # workers
    _cut: int = 0  # workers of hosts that were cut off
    _running: dict[str, Running] = field(default_factory=dict)
    _journals: dict[Path, tuple[int, list[str]]] = field(default_factory=dict)

    # ---- what runs

    def __post_init__(self) -> None:
        self.journal_path.mkdir(parents=True, exist_ok=True)
        self._running = {host.name: Running(host, self.place / f"{host.name}.log") for host in self.hosts}
        for running in self._running.values():
            running.log.touch()

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        for running in self._running.values():
            for one in (running.pool, running.producer):
                if one is not None and one.poll() is None:
                    self._end_hard(one)

    @property
    def journal_path(self) -> Path:
        """Where workers write down what they did."""
        return self.place / "journal"

    def url(self, host: Host, queue: str = "first") -> str:
        """Of a queue as *host* sees it."""
        return f"{self.scheme}:{host.place}/{queue}{self.query}"

    def environment(self, host: Host) -> dict[str, str]:
        """What processes on *host* are told."""
        kept = {key: text for key, text in os.environ.items() if not key.startswith("ORCHESTRATOR_")}
        return {**kept, "PYTHONPATH": str(ROOT), "JOURNAL": str(self.journal_path), "HOST": host.name}

    def make(self) -> None:
        """Make the queues."""
        host = self.hosts[0]
        for queue in QUEUES:
            self.errand(host, "make", self.url(host, queue), json.dumps(self.times or {}))

    def start(self) -> None:
        """Make the queues, and start everything."""
        self.make()
        for host in self.hosts:
            self.start_pool(host)
            self.start_producer(host)

    def start_pool(self, host: Host) -> None:
        """Start the pool of *host*."""
        config = self.place / f"{host.name}.toml"
        options = {
            "handler": "tests.mounts.handlers:handle", "workers": self.workers,
            "retry_backoff": "0.1s", "retry_backoff_max": "0.5s", "crash_limit": 20, **self.options,
        }  # fmt: skip
        queues = [{"name": queue, "url": self.url(host, queue), **options} for queue in QUEUES]
        config.write_text("".join(f"[[queue]]\n{_toml(queue)}\n" for queue in queues))
        words = ["run", "--config", str(config), "--name", POOL, "--host", host.name, "--run-dir", str(host.run_dir)]
        running = self._running[host.name]
        running.said = len(running.log.read_text("utf-8", "replace"))
        running.pool = self._start(host, "orchestrator", *words, "--listen", "none")

    def start_producer(self, host: Host) -> None:
        """Start the producer of *host*, or go on where it was killed."""
        step, first = len(self.hosts), [one.name for one in self.hosts].index(host.name)
        words = [self.url(host), self._record(host), first, step, len(range(first, self.count, step))]
        self._running[host.name].producer = self._start(host, "tests.mounts.errands", "put", *map(str, words))

    def _record(self, host: Host) -> Path:
        return self.place / f"put-by-{host.name}"

    def _start(self, host: Host, module: str, *words: str) -> subprocess.Popen[bytes]:
        with self._running[host.name].log.open("ab") as log:
            return subprocess.Popen(
                [*host.prefix, "-m", module, *words],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", env=self.environment(host),
            )  # fmt: skip

    def errand(self, host: Host, *words: str, timeout_s: float = 60.0) -> str:
        """Have an errand done on *host*; what it printed."""
        ended = subprocess.run(
            [*host.prefix, "-m", "tests.mounts.errands", *words],
            stdin=subprocess.DEVNULL, capture_output=True, cwd="/", env=self.environment(host), timeout=timeout_s,
            check=False,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr.decode("utf-8", "replace")
        return ended.stdout.decode()

    @contextmanager
    def answering(self, host: Host, *words: str) -> Iterator[Callable[[str], str]]:
        """Have an errand done on *host* that answers each line that it is told with one."""
        with subprocess.Popen(
            [*host.prefix, "-m", "tests.mounts.errands", *words],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/", env=self.environment(host),
        ) as process:  # fmt: skip
            into, answers = process.stdin, process.stdout
            assert into is not None
            assert answers is not None

            def tell(line: str) -> str:
                into.write(f"{line}\n".encode())
                into.flush()
                return answers.readline().decode().strip()

            yield tell
            into.close()

    @property
    def log(self) -> str:
        """All that was said, host by host."""
        logs = {name: running.log.read_text("utf-8", "replace") for name, running in self._running.items()}
        return "".join(f"---- {name}\n{text}" for name, text in logs.items())

    # ---- what is done to it

    def kill_worker(self, host: Host) -> None:
        """Kill a worker of *host* that has a message in hand, if one gets one."""
        is_killed = bool(self.errand(host, "kill", str(host.run_dir / POOL / "board")))
        self.happened["workers killed"] += is_killed
        self._killed += is_killed

    def cut(self, host: Host) -> None:
        """Take the power of *host* away."""
        running = self._running[host.name]
        found = [one for one in (running.pool, running.producer) if one is not None and one.poll() is None]
        if host.cut is not None:
            host.cut()
        for one in found:
            self._end_hard(one)
        running.pool = running.producer = None
        self.happened["hosts cut off"] += 1
        self._cut += len(QUEUES) * self.workers

    def start_again(self, host: Host) -> None:
        """Give it back its power, and start what it had running."""
        if host.boot is not None:
            host.boot()
        self.start_pool(host)
        self.start_producer(host)

    def _end_hard(self, one: subprocess.Popen[bytes]) -> None:
        """Kill a process with all below it, at one instant as far as they can tell: stopped first."""
        found: dict[int, Process] = {}
        # Found again until there are no more: one that was not stopped yet may have forked.
        while fresh := [pid for pid in _below(one.pid) if pid not in found]:
            for pid in fresh:
                found[pid] = process(pid)
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
            until(lambda: all(process_state(pid) in ("T", "Z", None) for pid in fresh))
        signal_all(list(found.values()), signal.SIGKILL)
        one.wait(30)

    def run(self, troubles: Sequence[Trouble] = (), timeout_s: float = 120.0) -> None:
        """Until all is put and finished, each of *troubles* at its time; then end the pools. Shows the log if not."""
        try:
            for trouble in sorted(troubles, key=lambda one: one.at):
                self._until(lambda at=trouble.at: len(self.finished()) >= at * self.count, timeout_s)  # type: ignore[misc]
                trouble.do()
                self.happened.update([trouble.name] if trouble.name else [])
            self._until(self._is_over, timeout_s)
            self.end()
        except AssertionError as error:
            missing = sorted(set(self.put()) - self.finished().keys())
            raise AssertionError(f"{error}\nnot finished: {missing[:LIST_MAX]}\n{self.log}") from None

    def _until(self, condition: Callable[[], bool], timeout_s: float) -> None:
        def look() -> bool:
            for running in self._running.values():
                for one in (running.pool, running.producer):
                    code = None if one is None else one.poll()
                    assert not code, f"{running.host.name}: ended with {code}"
            return condition()

        until(look, timeout_s, LOOK_S)

    def _is_over(self) -> bool:
        is_put = sum(len(_lines(self._record(host))) for host in self.hosts) >= self.count
        pools = [running for running in self._running.values() if running.pool is not None]
        if not (is_put and self.put().keys() <= self.finished().keys() and all(one.is_ready for one in pools)):
            return False
        kept = self.look(pools[0].host)
        # Who was cut off leaves a lease, and directories that are removed before it.
        return not any(kept[queue].get(state) for queue in QUEUES for state in MESSAGES) and all(
            kept[queue]["leases"] <= len(pools) for queue in QUEUES
        )

    def look(self, host: Host) -> dict[str, dict[str, int]]:
        """What each queue holds in each state and lies about in its directories, as *host* sees it."""
        found: dict[str, dict[str, int]] = json.loads(
            self.errand(host, "look", *(self.url(host, queue) for queue in QUEUES), timeout_s=PATIENCE_S)
        )
        return dict(zip(QUEUES, found.values(), strict=True))

    def end(self) -> None:
        """Tell the pools to end, and wait for it."""
        for running in self._running.values():
            if running.pool is not None:
                running.pool.send_signal(signal.SIGTERM)
        for running in self._running.values():
            if running.pool is not None:
                code = running.pool.wait(ENDS_S)
                assert code == 0, f"the pool of {running.host.name} ended with {code}\n{self.log}"

    # ---- what became of it

    def put(self) -> dict[int, str]:
        """The numbers that put() answered with a name, and the names."""
        lines = [line.split() for host in self.hosts for line in _lines(self._record(host))]
        return {int(words[1]): words[2] for words in lines if words[0] == "put"}

    def journals(self) -> list[list[str]]:
        """What the workers wrote, a list for each that had messages in hand."""
        for path in self.journal_path.iterdir():
            size = path.stat().st_size
            if self._journals.get(path, (-1, []))[0] != size:
                self._journals[path] = (size, _lines(path))
        return [lines for _, lines in self._journals.values()]

    def finished(self) -> Counter[int]:
        """How often each number was finished."""
        return Counter(int(line.split()[1]) for lines in self.journals() for line in lines if line.startswith("done "))

    def counts(self, looker: Host) -> Counts:
        """What became of every message; *looker* looks at the queues, when all pools have ended."""
        put, finished, journals = self.put(), self.finished(), self.journals()
        entered: dict[int, set[str]] = {}
        torn = 0
        for lines in journals:
            for line in lines:
                step, number, attempt, queue, name = line.split(" ", 4)
                torn += step == "torn"
                # A later attempt may come under a fresh name (dirq), where a cache takes the old one for taken.
                if queue == "first" and attempt == "1":
                    entered.setdefault(int(number), set()).add(name)
        twice = [number for number, times in finished.items() for _ in range(times - 1)]
        # The last that each wrote; whoever goes on after that has not crashed with it. Who died as he handed it on may
        # have put it there: it is done there, and once more when it comes from here again.
        last = Counter(int(lines[-1].split()[1]) for lines in journals if lines and lines[-1].startswith(ENDINGS))
        text, left = self.log, self.look(looker)
        unpublished = sum(kept.pop("tmp", 0) for kept in left.values())
        leases_lost = len(set(LEASE_LOST.findall(text)))  # two keepers may speak of the same
        return Counts(
            put=len(put),
            unknown=self.count - len(put),
            lost=sorted(set(put) - set(finished)),
            twice=sorted(twice),
            unexplained=sorted(number for number in set(twice) if last[number] < finished[number] - 1),
            entered_twice=sorted(number for number, names in entered.items() if len(names) > 1),
            torn=torn,
            left={queue: found for queue, kept in left.items() if (found := {k: n for k, n in kept.items() if n})},
            unpublished=unpublished,
            unpublished_max=BATCH * self._cut // (len(QUEUES) * self.workers),
            happened=self.happened + Counter({"leases lost": leases_lost}),
            killed=self._killed,
            cut=self._cut,
            leases_lost=leases_lost,
            fenced=text.count("was given to another while it was handled here"),
        )

    def frightening(self) -> list[str]:
        """Lines of the log that would frighten an operator without cause; that a filesystem hangs may be so."""
        lines = [line for line in self.log.splitlines() if re.search(r"Traceback|\b(ERROR|CRITICAL)\b", line)]
        return [line for line in lines if "does its filesystem hang?" not in line]


def _below(pid: int) -> list[int]:
    """*pid* and every process below it."""
    found = [pid]
    for one in found:
        with suppress(OSError):
            for task in os.listdir(f"/proc/{one}/task"):
                found += map(int, Path(f"/proc/{one}/task/{task}/children").read_text().split())
    return found


def _lines(path: Path) -> list[str]:
    """The whole lines of *path*; none where it is not there yet."""
    with suppress(FileNotFoundError):
        return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return []


def _toml(table: Mapping[str, object]) -> str:
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())
