"""
errands - what a fleet has done on one of its hosts: make queues, put, look, kill a worker

``python -m tests.mounts.errands make URL TIMES`` makes a queue; TIMES is JSON, the times of its leases.
``... put URL RECORD FIRST STEP COUNT`` puts messages FIRST, FIRST + STEP ... until RECORD holds COUNT lines. It goes on
from what RECORD holds, and may be killed at any moment. A line is "put N NAME"; "unknown N" when put() could not
say, or when it was killed before it wrote what was answered. What put() said was not entered is put again under its
number: a number that is handled under two names was entered though put() said that it was not.
``... one URL`` puts a message for each number that it reads, and answers with its name.
``... follow DIRECTORY`` lists it all the time, and says of each name that it reads when that is listed.
``... burst DIRECTORY`` moves some files there, for each line that it reads, and says the name of the last one.
``... removed DIRECTORY`` lists it, and lets it be removed between opening and reading it.
``... look URL...`` prints what each queue holds, as JSON. ``... kill BOARD`` kills a worker that has a message in hand.

See also: fleet, handlers (the bodies).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import select
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from orchestrator.status import snapshot
from tests.mounts.handlers import make_body
from tests.waiting import until
from workers import open_queue
from workers.board import Board
from workers.errors import MessageExists, QueueUnavailable
from workers.queues.base import Capability, Queue, Settings
from workers.system import SYSTEM

WAITING_MAX = 40  # no more are put while so many wait, so that there is something to put as long as the test goes on
BATCH = 4
LOOK_S = 0.1
PATIENCE_S = 240.0  # a server that comes back does so within that time
KILL_S = 5.0
DELAY_S = 0.5
BURST, BURST_S = 5, 0.004
LISTED_S = 3.0


def make(url: str, times: str) -> None:
    """Make a queue."""
    open_queue(url, settings=Settings(create=True, **json.loads(times))).close()


# ---- put


class Producer:
    """Puts, and writes down what it was answered."""

    def __init__(self, url: str, record: str, first: int, step: int, count: int) -> None:
        self._queue = until(lambda: _opened(url), PATIENCE_S, LOOK_S)
        self._fd = os.open(record, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        lines = Path(record).read_text().splitlines()
        self._numbers = iter(range(first + len(lines) * step, first + count * step, step))
        self._dice = random.Random(f"{first} {len(lines)}")  # noqa: S311 - to be repeated
        for number in itertools.islice(self._numbers, BATCH if lines else 0):
            self._write("unknown", number)  # it may have been put by the one before us, who was killed

    def run(self) -> None:
        """Until all are put."""
        while numbers := list(itertools.islice(self._numbers, self._dice.choice((1, 1, BATCH)))):
            until(self._has_room, PATIENCE_S, LOOK_S)
            until(lambda left=numbers: self._put(left), PATIENCE_S, LOOK_S)

    def _has_room(self) -> bool:
        try:
            return self._queue.waiting_count_max() < WAITING_MAX
        except (QueueUnavailable, OSError):
            return False

    def _put(self, numbers: list[int]) -> bool:
        """Put *numbers*; False when some of them are to be put again, which are left there."""
        if len(numbers) > 1:
            return self._put_many(numbers)
        (number,) = numbers
        try:
            name = self._put_one(number)
        except MessageExists:
            self._write("unknown", number)  # SPOOL.md, section 16: its own lost link may be meant
        except QueueUnavailable as error:
            if not error.is_unknown:
                return False
            self._write("unknown", number)
        else:
            self._write("put", number, name)
        return True

    def _put_one(self, number: int) -> str:
        queue, ways = self._queue, self._queue.capabilities
        way = self._dice.choice(("plain", "plain", "name", "delay"))
        if way == "name" and Capability.NAME in ways:
            # A name of its own at each try, so that one that was entered twice is told.
            return str(queue.put(make_body(number), f"{os.getpid()}-{time.time_ns()}.given"))
        delay = DELAY_S if way == "delay" and Capability.DELAY in ways else 0
        return str(queue.put(make_body(number), delay=delay))

    def _put_many(self, numbers: list[int]) -> bool:
        error = None
        try:
            entered = self._queue.put_many([make_body(number) for number in numbers])
        except QueueUnavailable as found:
            error, entered = found, list(found.names)
        for name in entered:
            self._write("put", numbers.pop(0), name)
        if error is not None and error.is_unknown and numbers:
            self._write("unknown", numbers.pop(0))
        return not numbers

    def _write(self, what: str, number: int, name: str = "") -> None:
        os.write(self._fd, f"{what} {number} {name}\n".encode())
        os.fsync(self._fd)


def _opened(url: str) -> Queue | None:
    try:
        return open_queue(url)
    except (QueueUnavailable, OSError):
        return None


def put(url: str, record: str, *numbers: str) -> None:
    """Put until all is put."""
    Producer(url, record, *map(int, numbers)).run()


def one(url: str) -> None:
    """Put a message for each number of the input, and print its name."""
    queue = open_queue(url)
    for line in sys.stdin:
        print(queue.put(make_body(int(line))), flush=True)  # noqa: T201 - the answer


# ---- a directory


def follow(directory: str) -> None:
    """List *directory* all the time; of each name of the input say whether it is listed within LISTED_S."""
    while True:
        SYSTEM.listdir(directory)
        if not select.select([sys.stdin], [], [], 0)[0]:
            continue
        name = sys.stdin.readline().strip()
        if not name:
            return
        try:
            until(lambda: name in SYSTEM.listdir(directory), LISTED_S)  # noqa: B023 - called at once
        except AssertionError:
            print("missing", flush=True)  # noqa: T201 - the answer
        else:
            print("listed", flush=True)  # noqa: T201 - the answer


def burst(directory: str) -> None:
    """For each line of the input move BURST files into *directory*, milliseconds apart; print the last one's name."""
    beside = tempfile.mkdtemp(dir=Path(directory).parent)
    for line in sys.stdin:
        names = [f"{line.strip()}.{n}" for n in range(BURST)]
        for name in names:
            (Path(beside) / name).touch()
        for name in names:
            threading.Event().wait(random.random() * BURST_S)  # noqa: S311 - not in step with any clock
            os.rename(f"{beside}/{name}", f"{directory}/{name}")
        print(names[-1], flush=True)  # noqa: T201 - the answer


def removed(directory: str) -> None:
    """List *directory*, and wait for a line of the input when it is opened and not read yet; print what came of it."""
    drop = os.posix_fadvise

    def opened(*arguments: int) -> None:
        os.posix_fadvise = drop
        print("opened", flush=True)  # noqa: T201 - the answer
        sys.stdin.readline()

    sys.stdin.readline()
    os.posix_fadvise = opened
    try:
        print(SYSTEM.listdir(directory))  # noqa: T201 - the answer
    except OSError as error:
        print(type(error).__name__)  # noqa: T201 - the answer


# ---- look, kill


def look(*urls: str) -> None:
    """Print how many messages are in which state, and what lies about in tmp/ and in pending/."""
    found = {}
    for url in urls:
        queue = open_queue(url)
        place = Path(queue.place)
        states = Counter(listed.state for listed in queue.list())
        about = {name: len(os.listdir(place / name)) for name in ("tmp", "pending") if (place / name).is_dir()}
        leases = place / ".pool" / "leases"
        found[url] = {**states, **about, "leases": len(os.listdir(leases)) if leases.is_dir() else 0}
    print(json.dumps(found))  # noqa: T201 - the answer


def kill(board: str) -> None:
    """SIGKILL a worker that has a message in hand; print its number, if there was one."""

    def busy() -> list[int]:
        queues = snapshot(Board.open(Path(board)))["queues"]
        return [worker["pid"] for queue in queues for worker in queue["workers"] if worker["pid"] and worker["message"]]

    with contextlib.suppress(AssertionError):  # nothing comes: then there is nothing to kill
        pid = random.choice(until(busy, KILL_S))  # noqa: S311 - anyone
        os.kill(pid, signal.SIGKILL)
        print(pid)  # noqa: T201 - the answer


def main(errand: str, *words: str) -> None:
    """Run one of them."""
    errands: tuple[Callable[..., None], ...] = (make, put, one, follow, burst, removed, look, kill)
    {one.__name__: one for one in errands}[errand](*words)


if __name__ == "__main__":
    main(*sys.argv[1:])
