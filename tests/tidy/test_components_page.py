"""test_components_page - every example of COMPONENTS.md is one that tests/process/test_component_daemons runs"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.pages import Page

ROOT = Path(__file__).resolve().parents[2]
PAGE = Page(ROOT / "workers" / "COMPONENTS.md")
RUN_BY = ROOT / "tests" / "process" / "test_component_daemons.py"
DEMO_LINES_MAX = 30


def test_every_example_is_a_file_that_a_command_or_a_test_uses() -> None:
    typed = "\n".join(text for kind, text in PAGE.blocks() if kind in ("sh", "console", "toml"))
    used = typed + RUN_BY.read_text(encoding="utf-8")
    for kind, text in PAGE.blocks():
        assert kind in ("python", "toml", "sh", "console"), f"nobody runs a block of {kind}"
        if kind in ("python", "toml"):
            name = re.match(r"# ([\w-]+)\.(py|toml)\n", text)
            assert name, f"a {kind} block begins with the name of its file: {text[:60]!r}"
            assert re.search(rf"\b{name[1]}(\.{name[2]}|:\w)", used), f"nobody uses {name[1]}.{name[2]}"


def test_the_two_demos_are_short() -> None:
    for kind, text in PAGE.blocks():
        if kind == "python" and text.startswith("# demo_"):
            assert len(text.splitlines()) < DEMO_LINES_MAX, text.splitlines()[0]


def test_the_examples_are_as_tidy_as_the_project() -> None:
    for kind, text in PAGE.blocks():
        if kind == "python":
            command = [
                sys.executable,
                "-m",
                "ruff",
                "check",
                "--no-cache",
                "--select",
                "E,F,B",
                "--line-length",
                "120",
                "-",
            ]
            done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
            assert done.returncode == 0, text.splitlines()[0] + done.stdout
