"""
demo - a pool at real work in a directory of its own, one worker killed on the way, and the proof at the end

The messages are the *.py files of the installed standard library. handle() hashes and
compresses each into the next queue, so that afterwards every input can be accounted for:
one() runs the pool, check() counts.

Raises: OrchestratorError when the pool cannot start. Everything is below *directory*,
which the caller makes and removes.
Limits: Linux. A killed worker's message may be packed twice (at least once is the
promise), and check() allows one duplicate for each kill.
See also: cli.demo (what a person sees), master (which it runs), progress.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sysconfig
import time
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from orchestrator.config import load
from orchestrator.master import Master
from orchestrator.progress import Summary, summarise
from workers.board import W, WorkerText
from workers.errors import InvalidName
from workers.message import Forward, Message
from workers.queues import names
from workers.queues.open import open_queue

QUEUE, NEXT, RUN = "demo", "packed", "run"  # directories below the demo's own
PAUSE = "SPOOL_DEMO_PAUSE_S"  # the handler runs in another process: what it is told stands in the environment
SECONDS = 10.0
PAUSE_S_MAX = 0.1  # so that a few messages do not take ten seconds
KILL_AT = 0.4
LOOK_S = 0.01


# ---- the handler


def handle(message: Message) -> Forward:
    """Hash and compress *message* into the next queue; no faster than PAUSE seconds."""
    started_s = time.monotonic()
    packed = pack(message.body)
    pause_s = float(os.environ.get(PAUSE, "0"))
    time.sleep(max(0.0, started_s + pause_s - time.monotonic()))
    return Forward(packed, queue=str(Path(message.queue.removeprefix("spool:")).with_name(NEXT)))


def pack(body: bytes) -> bytes:
    """A line with the sha256 of *body* in hex, then *body* compressed."""
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + zlib.compress(body)


def unpack(packed: bytes) -> tuple[str, bytes]:
    """The sha256 that pack() wrote, and the body. Raises ValueError for what pack() cannot have written."""
    digest, newline, compressed = packed.partition(b"\n")
    if not newline:
        raise ValueError("there is no first line with a sha256")
    try:
        return digest.decode("ascii"), zlib.decompress(compressed)
    except zlib.error as error:
        raise ValueError(f"the body cannot be decompressed: {error}") from error


# ---- the input


def inputs(directory: Path | None = None, count_max: int | None = None) -> dict[str, Path]:
    """Message name -> file, of the *.py files below *directory* (None: the standard library), packages excepted."""
    root = Path(sysconfig.get_path("stdlib")) if directory is None else directory
    found: dict[str, Path] = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if "site-packages" in parts or "dist-packages" in parts or not path.is_file():
            continue
        name = ".".join(parts)
        try:
            names.check_given(name)
        except InvalidName:
            continue
        # Two paths can become one name: a/b.py and a.b.py.
        found.setdefault(name, path)
        if count_max is not None and len(found) >= count_max:
            break
    return found


def fill(directory: Path, files: Mapping[str, Path]) -> dict[str, str]:
    """Make both queues below *directory* and put *files*; message name -> sha256. What we may not read is left out."""
    digests: dict[str, str] = {}
    with open_queue(str(directory / QUEUE), create=True) as queue, open_queue(str(directory / NEXT), create=True):
        for name, path in files.items():
            try:
                body = path.read_bytes()
            except PermissionError:
                continue
            queue.put(body, name=name, durable=False)
            digests[name] = hashlib.sha256(body).hexdigest()
    return digests


# ---- the check


@dataclass(frozen=True, slots=True)
class Check:
    """
    What became of the inputs.

    Attributes:
        missing: names that are not in the next queue; unknown: what is there and was no input.
        damaged: names whose packed body is not the input's.
        duplicates: packed more often than once, counted beyond the first.
        left: messages still in the first queue (waiting, claimed, deferred), and in errors/ of both.
    """

    inputs: int
    packed: int
    kills: int
    missing: list[str]
    unknown: list[str]
    damaged: list[str]
    duplicates: int
    left: dict[str, int]
    input_bytes: int
    packed_bytes: int

    @property
    def is_fine(self) -> bool:
        """Whether every input is accounted for."""
        is_whole = not (self.missing or self.unknown or self.damaged)
        return is_whole and self.duplicates <= self.kills and not any(self.left.values())

    def as_json(self) -> dict[str, object]:
        """For scripts."""
        return {"ok": self.is_fine, **asdict(self)}


def check(directory: Path, digests: Mapping[str, str], kills: int) -> Check:
    """Account for every input of *digests* (name -> sha256) below *directory*. Reads every packed body."""
    seen: Counter[str] = Counter()
    damaged: list[str] = []
    input_bytes = packed_bytes = 0
    with open_queue(str(directory / NEXT)) as queue:
        for listed in queue.list("waiting"):
            packed = Path(listed.path).read_bytes()
            seen[listed.name] += 1
            packed_bytes += len(packed)
            try:
                digest, body = unpack(packed)
            except ValueError:
                damaged.append(listed.name)
                continue
            input_bytes += len(body)
            if not digest == hashlib.sha256(body).hexdigest() == digests.get(listed.name, digest):
                damaged.append(listed.name)
        errors = queue.depth().errors
    with open_queue(str(directory / QUEUE)) as queue:
        depth = queue.depth()
    return Check(
        inputs=len(digests),
        packed=seen.total(),
        kills=kills,
        missing=sorted(digests.keys() - seen.keys()),
        unknown=sorted(seen.keys() - digests.keys()),
        damaged=sorted(damaged),
        duplicates=seen.total() - len(seen),
        left={
            "waiting": depth.waiting,
            # What lies there and is no claim (an owner's directory of a worker that is gone) counts too.
            "claimed": max(depth.claimed, len(os.listdir(directory / QUEUE / "pending"))),
            "deferred": depth.deferred,
            "errors": depth.errors + errors,
        },
        input_bytes=input_bytes,
        packed_bytes=packed_bytes,
    )


# ---- the run


@dataclass(frozen=True, slots=True)
class Killed:
    """The worker that was killed, and what it had in hand ("" when it was between two messages)."""

    worker: int
    pid: int
    message: str


@dataclass(slots=True)
class Run:
    """
    The demo's part in the master's loop: say where it is, kill one worker on the way.

    Attributes:
        on_start: called once with the address of the metrics, or None.
        on_progress: called ten times a second with the master.
    """

    total: int
    on_start: Callable[[str | None], None]
    on_progress: Callable[[Master], None]
    killed: list[Killed] = field(default_factory=list)
    _is_started: bool = False

    def tick(self, master: Master) -> None:
        """Ten times a second."""
        if not self._is_started:
            self._is_started = True
            self.on_start(master.address)
            # Ten looks a second are too few to meet 40 % of a run that takes half a second.
            master.loop.on("demo", lambda _: self.look(master))
            master.loop.every(LOOK_S, "demo")
        self.on_progress(master)

    def look(self, master: Master) -> None:
        """Kill one worker when enough is done, one with a message in hand if there is any."""
        if self.killed or summarise(master.board, 0.0).messages < KILL_AT * self.total:
            return
        alive = [slot for number in master.board.worker_numbers() if (slot := master.board.worker(number)).words[W.PID]]
        if not alive:
            return
        victim = next((slot for slot in alive if slot.words[W.MESSAGE_SINCE_NS]), alive[0])
        pid, index = victim.words[W.PID], victim.words[W.INDEX]
        # Only the master collects its children, and we are in its loop: the number is still the worker's.
        os.kill(pid, signal.SIGKILL)
        # What it had in hand is what the board says now that it can write no more, until the master clears it.
        self.killed.append(Killed(index, pid, victim.text(WorkerText.MESSAGE) or ""))


def one(directory: Path, run: Run, *, workers: int, listen: str | None, is_fast: bool) -> tuple[int, Summary]:
    """
    Drain the queue that fill() made below *directory*; the master's exit code, and the run's summary.

    Main thread only, for it is the master. *listen* None is the default address. Raises ConfigError,
    OrchestratorError.
    """
    flags = {"workers": str(workers), "listen": listen, "run_dir": str(directory / RUN), "name": "demo"}
    # Not the environment's settings: the demo is the same for everybody.
    config = load((), flags=flags, environment={}, queues=[str(directory / QUEUE)], handler="orchestrator.demo:handle")
    pause_s = 0.0 if is_fast else min(SECONDS * workers / max(run.total, 1), PAUSE_S_MAX)
    before = os.environ.get(PAUSE)
    # Before the fork, for the workers have the environment that the master has then.
    os.environ[PAUSE] = repr(pause_s)
    started_s = time.monotonic()
    master = Master(config, lambda: config, is_until_empty=True, on_tick=run.tick)
    try:
        code = master.run()
    finally:
        os.environ.pop(PAUSE)
        if before is not None:
            os.environ[PAUSE] = before
    return code, summarise(master.board, time.monotonic() - started_s)
