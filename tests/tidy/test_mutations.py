"""The list of mutations does not rot: every line is still there, once, and every test that is named exists."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest

from tests.mutations import MUTATIONS, ROOT


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda one: one.id)
def test_a_mutation_breaks_a_line_that_is_there_once(mutation):
    found = (ROOT / mutation.file).read_text(encoding="utf-8").count(mutation.text)
    assert found == 1, f"its text is found {found} times in {mutation.file}: bring tests/mutations.py up to date"
    assert mutation.text != mutation.broken
    assert mutation.tests


def test_every_test_that_must_notice_a_mutation_exists():
    tests = {test for mutation in MUTATIONS for test in mutation.tests}
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *sorted(tests)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def test_each_mutation_has_a_name_of_its_own():
    assert not [name for name, count in Counter(one.id for one in MUTATIONS).items() if count > 1]
