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


def test_a_thread_that_has_ended_is_no_hindrance(pools: Pools, queue: Path, environment: dict[str, str]) -> None:
    source = "import threading\none = threading.Thread(target=int)\none.start()\none.join()\n"
    (pools.place / "mine.py").write_text(source + MODULE)
    pool = pools.start(str(queue), "--handler", "mine:Handler", "-w", "1", "--preload", environment=environment)
    pool.ready()
    assert pool.end() == 0


def test_reload_says_when_a_preloaded_handler_needs_a_restart(
    pools: Pools, queue: Path, environment: dict[str, str]
) -> None:
    """What was preloaded stays what it was, also when preload is taken away; what was not is imported by workers."""
    file, other = pools.place / "pool.toml", pools.place / "other"

    def write(first: str, second: str) -> None:
        tables = [(queue, "mine:Handler", first), (other, "tests.process.handlers:note", second)]
        file.write_text(
            "".join(
                f'[[queue]]\nurl = "{url}"\nhandler = "{handler}"\nworkers = 1\npreload = {preload}\n'
                for url, handler, preload in tables
            )
        )

    write("true", "false")
    pool = pools.start("--config", str(file), environment=environment).ready()
    write("false", "true")
    pool.send(signal.SIGHUP)
    pool.until(lambda: "reloaded: 0 added, 0 removed, 2 changed" in pool.log)
    assert "queue queue: new code of mine:Handler needs a restart: it is preloaded" in pool.log
    assert "queue other: preload needs a restart; until then workers import it" in pool.log
