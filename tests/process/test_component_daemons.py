"""
test_component_daemons - daemons of components as real processes: signals, and every example of COMPONENTS.md

The examples (a ```python or ```toml block that begins with "# NAME") are written into a directory, and the ```sh
blocks are run there in their order. ```console is run by a test of its own: it does not end by itself.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.pages import Page
from tests.waiting import until

ROOT = Path(__file__).resolve().parents[2]
PAGE = Page(ROOT / "workers" / "COMPONENTS.md")
SECONDS = 60

Start = Callable[..., "subprocess.Popen[bytes]"]

# Answers each signal's event with a byte. A wait has no end by itself, so a lost wake-up is one for ever.
SLEEPER = """
import os, sys
from workers import components
from workers.components import Daemon, ZenDaemonComponent
components.SLEEP_S_MAX = 3600.0

class Sleeper(ZenDaemonComponent):
    def get_events(self):
        events = {"start": b"s", "signal_hup": b"h", "signal_usr1": b"1", "signal_usr2": b"2", "stop": b"e"}
        return [self.gen_event_handler(event, self.answering(byte)) for event, byte in events.items()]

    def answering(self, byte):
        def callback(daemon, args):
            os.write(1, byte)
            return daemon.FLAG_CONTINUE, args
        return callback

sys.exit(Daemon([Sleeper()], stats_interval_s=3600).run())
"""

# Its callback never returns; it says how many SIGINT were noted.
STUCK = """
import os, sys, time
from workers.components import Daemon, ZenDaemonComponent

class Stuck(ZenDaemonComponent):
    def get_events(self):
        return [self.gen_event_handler("start", self.cbk_event_start)]

    def cbk_event_start(self, daemon, args):
        noted = -1
        while True:
            if noted != daemon._interrupts:
                noted = daemon._interrupts
                os.write(1, b"%d" % noted)
            time.sleep(0.005)

sys.exit(Daemon([Stuck()]).run())
"""

# Writes two halves of a line each time; TERM must not come between them.
HALVES = """
import os, sys
from workers.components import Daemon, ZenDaemonComponent

class Halves(ZenDaemonComponent):
    def get_events(self):
        return [self.gen_event_handler("start", self.cbk_event_start)]

    def cbk_event_start(self, daemon, args):
        os.write(1, b"(")
        for _ in range(200):
            os.getpid()
        os.write(1, b")")
        daemon.queue.schedule("start")
        return daemon.FLAG_CONTINUE, args

sys.exit(Daemon([Halves()]).run())
"""


# Follows the file site.log of its directory, and appends what comes to the file lines.
FOLLOWER = """
import os, sys
from workers.components import Daemon, ZenDaemonComponent
from workers.tailer import FileTailer

class Appender(ZenDaemonComponent):
    def get_events(self):
        return [self.gen_event_handler("line", self.cbk_event_line)]

    def cbk_event_line(self, daemon, args):
        with open("lines", "a") as file:
            file.write(args["line"] + "\\n")
        return daemon.FLAG_CONTINUE, args

tailer = FileTailer("site.log", interval_s=0.01, linger_s=1.5, position_file="position", from_beginning=True)
sys.exit(Daemon([tailer, Appender()]).run())
"""


@pytest.fixture(name="start")
def _start(tmp_path: Path) -> Iterator[Start]:
    """Run a program given as text, its stdout a pipe."""
    started: list[subprocess.Popen[bytes]] = []

    def start(program: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-c", program],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def said(process: subprocess.Popen[bytes]) -> bytes:
    """The next byte; AssertionError when none comes."""
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], SECONDS)[0], "nothing was said: the signal was slept through"
    return os.read(process.stdout.fileno(), 1)


# ---- signals


def test_each_of_1000_signals_wakes_the_sleeping_loop(start: Start) -> None:
    """Each is sent as soon as the one before was answered: about when the loop goes to sleep again."""
    sleeper = start(SLEEPER)
    assert said(sleeper) == b"s"
    for number in range(1000):
        signals = [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2]
        sleeper.send_signal(signals[number % 3])
        assert said(sleeper) == b"h12"[number % 3 : number % 3 + 1]
    sleeper.send_signal(signal.SIGINT)
    assert said(sleeper) == b"e"
    assert sleeper.wait(SECONDS) == 0


def test_a_burst_of_1000_signals_hides_none_of_another_number(start: Start) -> None:
    sleeper = start(SLEEPER)
    assert said(sleeper) == b"s"
    for number in range(1000):
        sleeper.send_signal([signal.SIGHUP, signal.SIGUSR1, signal.SIGALRM][number % 3])
    sleeper.send_signal(signal.SIGUSR2)
    found = b""
    while not {*b"h12"} <= {*found}:
        found += said(sleeper)
    sleeper.send_signal(signal.SIGTERM)
    assert sleeper.wait(SECONDS) == 0
    assert sleeper.stdout is not None
    assert b"e" not in sleeper.stdout.read(), "TERM is no graceful stop"


def test_Z19_the_third_interrupt_ends_a_daemon_whose_callback_is_stuck(start: Start) -> None:
    stuck = start(STUCK)
    assert said(stuck) == b"0"
    for number in (b"1", b"2"):
        stuck.send_signal(signal.SIGINT)
        assert said(stuck) == number
    assert stuck.poll() is None
    stuck.send_signal(signal.SIGINT)
    assert stuck.wait(SECONDS) == 128 + signal.SIGINT


def test_Z10_terms_at_any_moment_cut_no_callback_in_two(start: Start) -> None:
    for _ in range(8):
        halves = start(HALVES)
        assert said(halves) == b"("
        halves.terminate()
        assert halves.wait(SECONDS) == 0
        assert halves.stdout is not None
        assert re.fullmatch(rb"\)(\(\))*", halves.stdout.read())


# ---- a file that is written meanwhile


def has_open(pid: int, path: Path) -> bool:
    wanted = path.stat().st_ino
    with contextlib.suppress(OSError):
        return any(os.stat(f"/proc/{pid}/fd/{fd}").st_ino == wanted for fd in os.listdir(f"/proc/{pid}/fd"))
    return False


def test_a_file_that_is_written_and_renamed_meanwhile_loses_no_line(start: Start, tmp_path: Path) -> None:
    """Each file gets lines in pieces, before it is renamed and after; the follower is killed and started again."""
    path, lines, number, begun = tmp_path / "site.log", tmp_path / "lines", 0, 0
    expected: list[bytes] = []
    lines.touch()
    for is_killed in (True, False):
        follower = start(FOLLOWER)
        for _ in range(4):
            with path.open("ab", buffering=0) as file:
                until(lambda follower=follower: has_open(follower.pid, path))
                for half in range(2):
                    for _ in range(40):
                        number += 1
                        expected.append(b"%d" % number)
                        file.write(b"%d" % number)
                        file.write(b"\n")
                    if not half:
                        path.rename(tmp_path / f"site.log.{number}")
                        path.touch()
        until(lambda last=b"\n%d\n" % number: lines.read_bytes().endswith(last))
        # The position is written at the look after that.
        follower.send_signal(signal.SIGKILL if is_killed else signal.SIGINT)
        assert follower.wait(SECONDS) == (-signal.SIGKILL if is_killed else 0)
        begun = begun or number
    found = lines.read_bytes().splitlines()
    again = len(found) - len(expected)
    assert found[:begun] == expected[:begun]
    assert found[begun + again :] == expected[begun:]
    assert found[begun : begun + again] == expected[begun - again : begun], "what came again was the end"


# ---- the examples


class Reader:
    """Somebody who has the examples in a directory."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.started: list[subprocess.Popen[bytes]] = []
        for name, text in PAGE.files().items():
            (place / name).write_text(text, encoding="utf-8")
        (place / "run").mkdir(mode=0o700)
        programs = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("ORCHESTRATOR_")}
        self.environment = kept | {
            "PATH": os.pathsep.join(programs),
            "PYTHONPATH": str(ROOT),
            "XDG_RUNTIME_DIR": str(place / "run"),
            "ORCHESTRATOR_LISTEN": "none",
        }

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        """Run a program in the directory; its words come into the file said, which is empty before."""
        with (self.place / "said").open("wb") as output:
            process = subprocess.Popen(
                words,
                cwd=self.place,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.started.append(process)
        return process

    def said(self) -> str:
        return (self.place / "said").read_text(encoding="utf-8", errors="replace")

    def type(self, script: str) -> str:
        """Run *script* as bash does with -eu; what it printed. AssertionError when it fails."""
        code = self.start("bash", "-euo", "pipefail", "-c", script).wait(SECONDS)
        assert code == 0, f"exit code {code} of\n{script}\n{self.said()}"
        return self.said()


@pytest.fixture(name="reader")
def _reader(tmp_path: Path) -> Iterator[Reader]:
    reader = Reader(tmp_path)
    yield reader
    for process in reader.started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_the_demo_daemon_works_until_it_is_interrupted(reader: Reader) -> None:
    assert len(PAGE.files()["demo_daemon.py"].splitlines()) < 30
    daemon = reader.start(sys.executable, "demo_daemon.py")
    until(lambda: reader.said().count("working") >= 2)
    daemon.send_signal(signal.SIGINT)
    assert daemon.wait(SECONDS) == 0
    assert reader.said().splitlines()[-2:] == ["INFO:demo:stopping", "INFO:demo:working"]
    assert "Traceback" not in reader.said()


def test_the_demo_daemon_works_under_a_pool_until_it_is_interrupted(reader: Reader) -> None:
    (command,) = PAGE.of("console")
    daemon = reader.start(*command.split())
    until(lambda: reader.said().count("working") >= 2)
    daemon.send_signal(signal.SIGINT)
    assert daemon.wait(SECONDS) == 0, reader.said()
    assert "stopping" in reader.said()


def test_every_command_of_the_page_does_what_it_says(reader: Reader) -> None:
    demo, stages, lines, tested = PAGE.of("sh")

    assert len(PAGE.files()["demo_piper.py"].splitlines()) < 30
    said = reader.type(demo)
    for letter in "ABCDEF":
        assert said.count(f'{{"test": "{letter}"}}') == 1, said
    assert os.listdir(reader.place / "demo" / "incoming") == []

    said = reader.type(stages)
    for text in ("A=ONE!", "B=TWO!"):
        assert text.split("=")[0].lower() + "=" + text.split("=")[1] in said, said
    errors = reader.place / "pairs" / "errors"
    (meta,) = errors.glob("*.meta")
    assert "no key=value" in meta.read_text()

    said = reader.type(lines)
    assert said.count("GET /style.css") == 1, said
    with (reader.place / "site.log").open("a") as log:
        log.write("GET /more\n")
    said = reader.type(lines.splitlines()[-1])
    assert said.count("GET /more") == 1, said
    assert "style.css" not in said, "the position was kept"

    reader.type(tested)
