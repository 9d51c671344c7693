"""
test_security - each threat of .github/SECURITY.md names a test, and there is such a test
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LINES = [
    tuple(cell.strip() for cell in line.strip("|").split("|"))
    for line in (ROOT / ".github" / "SECURITY.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and "::" in line
]
TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


@pytest.mark.parametrize(("threat", "stopped_by", "tests"), LINES, ids=[line[0] for line in LINES])
def test_each_threat_has_its_test(threat: str, stopped_by: str, tests: str) -> None:
    assert threat
    assert stopped_by
    found = TEST.findall(tests)
    assert len(found) == tests.count("::")
    for file, name in found:
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{file}::{name}"


def test_every_line_of_the_tables_of_threats_names_one() -> None:
    text = (ROOT / ".github" / "SECURITY.md").read_text(encoding="utf-8").partition("## Threats")[2]
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| threat ")]
    assert len(rows) == len(LINES) > 45
