"""test_start - what workers have from the moment they are forked: the handler that was preloaded, a frozen heap"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.process.pools import ROOT, Pools, drop

# Made once a worker, imported wherever it is imported first.
MODULE = """
import gc
import os
from tests.process.handlers import write

IMPORTED_IN = os.getpid()

class Handler:
    def __init__(self):
        self.made_in = os.getpid()

    def handle(self, message):
        write(f"{IMPORTED_IN} {self.made_in} {os.getpid()} {gc.get_freeze_count() > 0}")
"""

FORK = "import os\nif child := os.fork():\n    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)\n"

# What an import must not do for the module to be preloaded, and what is said of it.
REFUSED = {
    "a thread": (
        "import threading\nthreading.Thread(target=threading.Event().wait, name='ticker', daemon=True).start()",
        "importing it starts a thread (ticker)",
    ),
    "a signal handler": (
        "import signal\nsignal.signal(signal.SIGUSR1, lambda *_: None)",
        "importing it changes the handler of SIGUSR1",
    ),
    "a blocked signal": (
        "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})",
        "importing it blocks or unblocks SIGINT, SIGTERM",
    ),
    "a timer": ("import signal\nsignal.setitimer(signal.ITIMER_REAL, 60)", "importing it leaves ITIMER_REAL running"),
    "a program": (
        "import subprocess\nprogram = subprocess.Popen(['/bin/cat'], stdin=subprocess.PIPE)",
        "importing it starts a process (",
    ),
    # It waits for the child: were that a second master, for ever.
    "a fork": (FORK, "importing it starts a process ("),
    "a fork that fails": (FORK + "else:\n    raise RuntimeError", "importing it starts a process ("),
    "an umask": ("import os\nos.umask(0o007)", "importing it changes the umask from "),
    "a directory": ("import os\nos.chdir('/')", "importing it changes the current directory to /, "),
    "no exception": ("class Odd(BaseException): ...\nraise Odd('hm')", "importing it failed: mine.Odd: hm"),
    "an error": ("import nowhere_to_be_found", "needs nowhere_to_be_found, which is not installed"),
}


@pytest.fixture(name="environment")
def _environment(tmp_path: Path) -> dict[str, str]:
    """Finds the module ``mine`` below the test's directory."""
    (tmp_path / "mine.py").write_text(MODULE)
    return {"PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}


@pytest.mark.parametrize("is_preloaded", [True, False])
def test_a_preloaded_handler_is_imported_once_by_the_master_and_made_by_each_worker(
    pools: Pools, queue: Path, environment: dict[str, str], *, is_preloaded: bool
) -> None:
    """The heap is frozen either way, so that no collection makes a copy of what is shared."""
    flags = ["--preload"] if is_preloaded else []
    pool = pools.start(str(queue), "--handler", "mine:Handler", "-w", "1", *flags, environment=environment).ready()
    worker = pool.pids[0]
    drop(queue, "first")
    imported_in = pool.process.pid if is_preloaded else worker
    assert pool.until(pools.journal) == [f"{imported_in} {worker} {worker} True"]
    os.kill(worker, signal.SIGKILL)
    another = pool.until(lambda: [pid for pid in pool.pids if pid != worker])[0]
    drop(queue, "second")
    pool.until(lambda: len(pools.journal()) == 2)
    imported_in = pool.process.pid if is_preloaded else another
    assert f"{imported_in} {another} {another} True" in pools.journal()


@pytest.mark.parametrize("what", REFUSED)
def test_an_import_that_no_fork_survives_is_no_preload(
    pools: Pools, queue: Path, environment: dict[str, str], what: str
) -> None:
    source, reason = REFUSED[what]
    (pools.place / "mine.py").write_text(source + "\n\ndef handle(message):\n    pass\n")
    pool = pools.start(str(queue), "--handler", "mine:handle", "--preload", environment=environment)
    assert pool.wait() == 1
    assert reason in pool.log
    assert "'mine:handle'" in pool.log
    assert "Traceback" not in pool.log


def test_components_are_preloaded_like_a_handler(pools: Pools, queue: Path, environment: dict[str, str]) -> None:
    """Seen from what is refused: the master has imported the component, for a worker would not mind."""
    source, reason = next(iter(REFUSED.values()))
    (pools.place / "mine.py").write_text(source + "\n\nclass Part:\n    pass\n")
    words = ("--component", "workers.piper:Commiter", "--component", "mine:Part", "--preload")
    pool = pools.start(str(queue), *words, environment=environment)
    assert pool.wait() == 1
    assert reason in pool.log
    assert "'mine:Part'" in pool.log


def test_a_program_that_has_ended_is_no_hindrance(pools: Pools, queue: Path, environment: dict[str, str]) -> None:
    (pools.place / "mine.py").write_text("import subprocess\nsubprocess.run(['true'], check=True)\n" + MODULE)
    pool = pools.start(str(queue), "--handler", "mine:Handler", "-w", "1", "--preload", environment=environment)
    pool.ready()
    assert pool.end() == 0


def test_a_command_has_nothing_to_preload(pools: Pools, queue: Path) -> None:
    pool = pools.start(str(queue), "--preload", "--", "true")
    assert pool.wait() == 2
    assert "--preload is for Python handlers" in pool.log


def test_a_thread_that_has_ended_is_no_hindrance(pools: Pools, queue: Path, environment: dict[str, str]) -> None:
    source = "import threading\none = threading.Thread(target=int)\none.start()\none.join()\n"
    (pools.place / "mine.py").write_text(source + MODULE)
    pool = pools.start(str(queue), "--handler", "mine:Handler", "-w", "1", "--preload", environment=environment)
    pool.ready()
    assert pool.end() == 0


def test_reload_says_when_new_code_needs_a_restart(pools: Pools, queue: Path, environment: dict[str, str]) -> None:
    """What the master imported stays what it was, whichever queue asked for it; workers import the rest."""
    file = pools.place / "pool.toml"
    (pools.place / "other.py").write_text(MODULE)

    def write(**handlers: tuple[str, str]) -> None:
        file.write_text(
            "".join(
                f'[[queue]]\nname = "{name}"\nurl = "{queue}-{name}"\nhandler = "{handler}"\nworkers = 1\n'
                f"preload = {preload}\n"
                for name, (handler, preload) in handlers.items()
            )
        )

    write(first=("mine:Handler", "true"), same=("mine:write", "false"), other=("other:Handler", "false"))
    pool = pools.start("--config", str(file), environment=environment).ready()
    write(first=("mine:Handler", "false"), same=("mine:Handler", "false"), other=("other:Handler", "true"))
    pool.send(signal.SIGHUP)
    pool.until(lambda: "reloaded: 0 added, 0 removed, 3 changed" in pool.log)
    assert "queue first: new code of mine needs a restart: the master imported it" in pool.log
    assert "queue same: new code of mine needs a restart: the master imported it" in pool.log
    assert "queue other: preload needs a restart; until then workers import it" in pool.log
