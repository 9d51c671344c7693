"""python -m workers as real processes: drains, is killed, interrupted, stopped and continued."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.waiting import until
from workers.queues.base import Settings
from workers.queues.open import open_queue
from workers.queues.spool import Spool

SETTINGS = Settings(create=True, lease_interval_s=0.1, lease_timeout_s=0.6, stale_after_s=5.0)
ROOT = Path(__file__).resolve().parents[2]

# Each call leaves a line when it begins and when it ends. A message called stuck... blocks until somebody opens
# the fifo, unless a worker died or lost its lease with it before.
HANDLER = """
import os

def say(text):
    fd = os.open("log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, (text + "\\n").encode())
    os.close(fd)

def handle(message):
    say(f"begin {message.name} {os.getpid()} {message.attempt} {message.crashes}")
    if message.name.startswith("stuck") and not message.crashes:
        open("fifo", "rb").read()
    say(f"end {message.name} {os.getpid()}")
"""

Start = Callable[..., "subprocess.Popen[bytes]"]


class Place:
    """A directory with a queue, the handler and what it said."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.queue = Spool(str(path / "queue"), SETTINGS)
        (path / "handling.py").write_text(HANDLER)
        os.mkfifo(path / "fifo")

    def lines(self, word: str, name: str = "") -> list[list[str]]:
        """What handlers said: the words of each line that begins with *word* and is about *name*."""
        try:
            lines = [line.split() for line in (self.path / "log").read_text().splitlines()]
        except FileNotFoundError:
            return []
        return [line for line in lines if line[0] == word and line[1].startswith(name)]

    def let_go(self) -> None:
        """Open the fifo, which lets the stuck handler end."""
        os.close(os.open(self.path / "fifo", os.O_WRONLY))

    def is_left_clean(self) -> bool:
        """No owner's directory, no lease, nothing in tmp/."""
        places = ("pending", ".pool/leases", "tmp")
        return not any(os.listdir(self.path / "queue" / place) for place in places)


@pytest.fixture(name="place")
def _place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture(name="start")
def _start(place: Place) -> Iterator[Start]:
    started: list[subprocess.Popen[bytes]] = []

    def start(*options: str) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "workers", "queue", "handling:handle", *options]
        with open(place.path / f"stderr{len(started)}", "wb") as said:
            started.append(
                subprocess.Popen(command, cwd=place.path, env=environment, stderr=said, start_new_session=True)
            )
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def said(place: Place, number: int = 0) -> str:
    return (place.path / f"stderr{number}").read_text()


def test_a_lone_worker_drains_a_queue_and_leaves_it_clean(place, start):
    names = place.queue.put_many([b"x"] * 50, durable=False)
    worker = start("--until-empty")
    assert worker.wait(30) == 0, said(place)
    assert sorted(line[1] for line in place.lines("end")) == sorted(names)
    assert not list(place.queue.list())
    assert place.is_left_clean()


def test_a_lone_worker_waits_for_what_is_deferred(place, start):
    place.queue.put(b"x", delay=1)
    assert start("--until-empty").wait(30) == 0, said(place)
    assert len(place.lines("end")) == 1


def test_a_missing_queue_or_handler_is_a_sentence_and_exit_1(place, start):
    worker = start("--log-level", "error", "--host", "no such host")
    assert worker.wait(30) == 1
    assert "Traceback" not in said(place)
    assert "host" in said(place)


def test_a_killed_worker_has_its_message_given_back_by_its_keeper_with_the_crash_counted(place, start):
    place.queue.put(b"content", "stuck")
    worker = start()
    until(lambda: place.lines("begin", "stuck"))
    worker.kill()
    worker.wait()
    until(lambda: place.queue.depth().waiting == 1)
    (line,) = place.queue.list("waiting")
    assert (line.name, line.attempt, line.crashes) == ("stuck", 1, 1)
    until(place.is_left_clean)
    assert Path(line.path).read_bytes() == b"content"


def test_an_interrupted_worker_finishes_what_it_has_in_hand_and_takes_no_more(place, start):
    place.queue.put(b"1", "stuck")
    worker = start()
    until(lambda: place.lines("begin", "stuck"))
    place.queue.put(b"2", "later")
    worker.send_signal(signal.SIGINT)
    place.let_go()
    assert worker.wait(30) == 0, said(place)
    assert [line.name for line in place.queue.list()] == ["later"]
    assert place.is_left_clean()


def test_an_idle_worker_leaves_at_once_when_interrupted(place, start):
    worker = start()
    until(lambda: os.listdir(place.path / "queue" / ".pool" / "leases"))
    place.queue.put(b"x", "a")
    until(lambda: place.lines("end", "a"))
    worker.send_signal(signal.SIGINT)
    assert worker.wait(30) == 0, said(place)
    assert place.is_left_clean()


def test_a_stuck_handler_is_ended_by_term_and_its_message_goes_back_uncounted(place, start):
    place.queue.put(b"content", "stuck")
    worker = start("--term-timeout", "0.2")
    until(lambda: place.lines("begin", "stuck"))
    worker.send_signal(signal.SIGTERM)
    worker.wait(30)
    until(lambda: place.queue.depth().waiting == 1)
    (line,) = place.queue.list("waiting")
    assert (line.attempt, line.crashes) == (1, 0)
    until(place.is_left_clean)


@pytest.mark.parametrize("who", ["the worker alone", "its whole group"])
def test_a_worker_stopped_until_another_took_over_is_fenced_when_continued(place, start, who):
    def send(number: int) -> None:
        (os.kill if who == "the worker alone" else os.killpg)(first.pid, number)

    place.queue.put(b"content", "stuck")
    first = start("--host", "one")
    until(lambda: place.lines("begin", "stuck"))
    send(signal.SIGSTOP)
    second = start("--host", "other")
    until(lambda: place.lines("end", "stuck"), 60)
    assert [line[3:] for line in place.lines("begin", "stuck")] == [["1", "0"], ["1", "1"]]
    until(lambda: place.queue.depth().claimed == 0)
    send(signal.SIGCONT)
    place.let_go()
    until(lambda: "fenced" in said(place, 0))
    place.queue.put(b"more", "after")  # both go on
    until(lambda: place.lines("end", "after"))
    for worker in (first, second):
        worker.send_signal(signal.SIGINT)
        assert worker.wait(30) == 0, said(place)
    assert len(place.lines("begin")) == 3
    assert not list(place.queue.list())
    assert place.is_left_clean()


def test_a_library_user_may_claim_with_a_keeper_of_its_own(place, tmp_path):
    """In a process of its own, for the keeper is forked from the main thread."""
    script = (
        "import pathlib, sys\n"
        "from workers import open_queue\n"
        "with open_queue(sys.argv[1], consume=True) as queue:\n"
        "    queue.put(b'content')\n"
        "    assert queue.wait(30)\n"
        "    claim = queue.claim()\n"
        "    assert pathlib.Path(claim.path).read_bytes() == b'content'\n"
        "    queue.done(claim)\n"
        "    queue.settled(claim)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", "-c", script, str(place.path / "queue")]
    ended = subprocess.run(command, env=environment, capture_output=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert place.is_left_clean()
    assert open_queue(str(place.path / "queue")).depth().waiting == 0
