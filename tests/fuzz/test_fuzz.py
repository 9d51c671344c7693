"""test_fuzz - each target for a moment: what is kept in its corpus, then inputs made of that, always the same ones."""

from __future__ import annotations

import contextlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.mutation import CORPUS, kept, mutated, smaller
from tests.fuzz.targets import TARGETS, Target


def tried(target: Target, data: bytes) -> None:
    with contextlib.suppress(target.refuses):
        target.check(data)


@pytest.mark.parametrize("name", TARGETS)
def test_what_was_kept_is_read_or_refused(name: str) -> None:
    for data in kept(name):
        tried(TARGETS[name], data)


@pytest.mark.parametrize("name", TARGETS)
def test_whatever_strangers_write_is_read_or_refused(name: str) -> None:
    target, corpus = TARGETS[name], kept(name)
    changed = st.builds(
        lambda data, seed: mutated(data, corpus, random.Random(seed)),  # noqa: S311 - noise, not a secret
        st.sampled_from(corpus),
        st.integers(0, 1 << 32),
    )

    @settings(max_examples=target.examples, deadline=None, derandomize=True, database=None)
    @given(st.one_of(changed, changed, st.binary(max_size=300)))
    def check(data: bytes) -> None:
        tried(target, data)

    check()


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_has_a_corpus_of_which_something_is_read(name: str) -> None:
    """Else only refusals were tried."""

    def is_read(data: bytes) -> bool:
        try:
            TARGETS[name].check(data)
        except TARGETS[name].refuses:
            return False
        return True

    assert any(map(is_read, kept(name)))
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)


def test_a_finding_is_made_small_and_the_same_seed_makes_the_same_inputs() -> None:
    assert smaller(b"xxaxxxbxx", lambda data: b"a" in data and b"b" in data) == b"ab"
    one, two = (mutated(b"some bytes", [b"other"], random.Random(1)) for _ in range(2))  # noqa: S311
    assert one == two
