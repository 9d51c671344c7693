"""
test_readme - what the README tells a newcomer to type is typed here

Its files (a ```python or ```toml block that begins with "# NAME") are written, and its ```sh blocks
are run in their order, all in one directory. ```console is for what cannot be run here: each such
block is listed with its reason.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pages import Page
from workers.posix_mq import unlink
from workers.queues.mqueue_state import state_directory
from workers.system import SYSTEM

README = Page(Path(__file__).resolve().parents[2] / "README.md")
SECONDS = 60
NOT_RUN = {
    "pip install .": "installing is what the person does who runs these tests",
    "pip install -e": "it is the command that runs these tests",
}


class Reader:
    """Somebody who reads from the top and types what stands there."""

    def __init__(self, place: Path) -> None:
        self.place = place
        (place / "run").mkdir(mode=0o700)
        for name, text in README.files().items():
            (place / name).write_text(text, encoding="utf-8")
        programs = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if name not in ("PYTHONPATH", "COLUMNS") and not name.startswith("ORCHESTRATOR_")
        }
        self.environment |= {"PATH": os.pathsep.join(programs), "XDG_RUNTIME_DIR": str(place / "run")}
        self._groups: list[int] = []

    def type(self, script: str) -> str:
        """Run *script* as bash does with -eu; what it printed. AssertionError when it fails."""
        said = self.place / "said"
        # A file, not a pipe: what the script leaves running would keep a pipe open.
        with said.open("wb") as output:
            process = subprocess.Popen(
                ["bash", "-euo", "pipefail", "-c", script],
                cwd=self.place,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self._groups.append(process.pid)
            try:
                code = process.wait(SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                code = process.wait()
        text = said.read_text(encoding="utf-8", errors="replace")
        assert code == 0, f"exit code {code} of\n{script}\n{text}"
        return text

    def waiting(self, queue: str) -> list[str]:
        """The files in incoming/ of *queue*."""
        return os.listdir(self.place / queue / "incoming")

    def leave(self) -> None:
        """End what is left."""
        for group in self._groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)


@pytest.fixture(name="reader")
def _reader(tmp_path: Path) -> Iterator[Reader]:
    reader = Reader(tmp_path)
    try:
        _remove_kernel_queues()
        yield reader
    finally:
        reader.leave()
        _remove_kernel_queues()


def _remove_kernel_queues() -> None:
    """Those that the README names: they are the machine's, and a test that was ended has left them."""
    for name in set(re.findall(r"/readme-\w+", README.path.read_text(encoding="utf-8"))):
        with contextlib.suppress(FileNotFoundError):
            unlink(name)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(os.path.join(state_directory(SYSTEM), f"{name[1:]}.pool"))


def test_every_command_of_the_readme_does_what_it_says(reader: Reader) -> None:
    """In one go, for each block stands on those before it."""
    first, shell, produce, components, others, drop_in, ddmq, kernel, operate, background, fragments, fit = README.of(
        "sh"
    )

    said = reader.type(first)
    packed = reader.place / "packed"
    bodies = sorted(path.read_text() for path in packed.iterdir())
    assert bodies == ["the first message\n", "the second\n"], said
    assert (packed / "second.txt").exists(), said

    reader.type(shell)
    assert len(list(packed.glob("*.gz"))) == 3

    said = reader.type(produce)
    assert reader.waiting("pages") == reader.waiting("upper") == [], said
    errors = [path for path in (reader.place / "pages" / "errors").iterdir() if path.suffix != ".meta"]
    assert [path.read_bytes() for path in errors] == [b""], "of all pages the empty one was rejected"
    assert said.splitlines()[-1].startswith("errors "), said

    said = reader.type(components)
    loud = reader.place / "loud" / "incoming"
    assert sorted(path.read_text() for path in loud.iterdir()) == ["ONE", "TWO"], said
    assert {path.name.rpartition("~")[2] for path in loud.iterdir()} == set(said.split()[:2]), "they keep their names"

    said = reader.type(others)
    assert said.count("from any program\n") == 2, said  # by the get, and by the handler
    assert said.splitlines()[-1] == "0", "the pool has removed what it handled"
    assert reader.type(drop_in).splitlines() == ["b'hello'"]

    said = reader.type(ddmq)
    assert (reader.place / "photo.txt").read_text() == "photo 1", said
    assert said.splitlines()[-1].split("|")[1:4] == [" photos  ", " 0" + " " * 14, " 0" + " " * 13], said
    lines = reader.type(kernel).splitlines()
    assert lines[0] == "started"
    assert "2 messages moved" in "".join(lines)
    assert len(reader.waiting("events")) == 2

    said = reader.type(operate)
    for words in ("pool site on", "3 workers wanted", "pages is paused", "the page is empty", "requeued", "has ended"):
        assert words in said, said
    # The drain may come before a worker has looked again after the pause: then it waits, else it was rejected again.
    rejected = [path.name for path in (reader.place / "pages" / "errors").iterdir() if path.suffix != ".meta"]
    assert len(reader.waiting("pages") + rejected) == 1, "what was requeued is lost, or there twice"
    assert list((reader.place / "pages" / "pending").iterdir()) == [], "after a drain nothing is in hand"

    said = reader.type(background)
    for words in ("pool site runs as process", "it lives and is running", "the state is in", "has ended", "success"):
        assert words in said, said

    said = reader.type(fragments)
    for line in (
        "workers = 1  # conf.d/50-fewer.toml:4",
        'handler = "pages:handle"  # pool.toml:7',
        'time_limit = "30s"  # environment: ORCHESTRATOR_TIME_LIMIT',
        "max_attempts = 7  # command line: --max-attempts",
        'order = "fifo"  # default',
    ):
        assert line in said.splitlines(), said

    said = reader.type(fit)
    assert "good for this host" in said
    assert not (reader.place / ".doctor").exists()


def test_what_is_shown_and_not_run_has_a_reason() -> None:
    for kind, text in README.blocks():
        if kind == "console":
            assert [words for words in NOT_RUN if words in text], f"say why this is not run, or run it:\n{text}"


def test_only_known_kinds_of_blocks_are_shown() -> None:
    assert {kind for kind, _ in README.blocks()} <= {"sh", "console", "python", "toml", "text"}


def test_the_promise_and_the_demo_stand_on_the_first_screen() -> None:
    first = "\n".join(README.path.read_text(encoding="utf-8").splitlines()[:30])
    assert "at least once" in first
    assert "orchestrator demo" in first
    assert "pytest" in first
