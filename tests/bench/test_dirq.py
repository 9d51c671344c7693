"""
test_dirq - the dirq suite gives the same elements to ours and to the original, and says when it cannot
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from orchestrator.bench import dirq as suite
from orchestrator.bench import peers
from orchestrator.bench.dirq import KINDS, VERBS, Kind, dirq
from orchestrator.bench.measure import BenchError, LeftOut
from orchestrator.cli import cli

needs_original = pytest.mark.skipif(peers.DirqSimple().missing() is not None, reason="dirq is not installed")


@pytest.fixture
def without_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "KINDS", tuple(kind._replace(pool="") for kind in KINDS))


@needs_original
@pytest.mark.usefixtures("without_pools")
def test_each_verb_of_each_kind_is_beside_the_original_of_the_same_round(tmp_path: Path) -> None:
    figures = dirq(tmp_path, rounds=2, elements=40)
    assert [one.what for one in figures] == [
        f"{kind.name}: {verb}" for kind in KINDS for verb in (*VERBS, "together")
    ]  # fmt: skip
    for one in figures:
        assert len(one.values) == len(one.base) == 2
        assert min(*one.values, *one.base) > 0
    assert [one.target for one in figures if one.what.endswith("together")] == [1.0, 2.0, 2.0]
    assert os.listdir(tmp_path) == [], "nothing is left behind"


@needs_original
def test_a_pool_takes_what_the_original_has_filled_and_so_does_the_original(tmp_path: Path) -> None:
    figures = dirq(tmp_path, rounds=1, elements=40, backlog=1000)
    pools = [one for one in figures if one.what.startswith("pool")]
    assert [(one.what, one.target) for one in pools] == [
        ("pool of 2, QueueSimple", 1.3),
        ("pool of 2, Queue, body", 2.0),
    ]
    for one in pools:
        assert min(*one.values, *one.base) > 0
    assert os.listdir(tmp_path) == [], "nothing is left behind"


@needs_original
def test_on_a_slow_filesystem_each_library_is_still_first_as_often_as_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trail: list[str] = []
    ours, original = Kind.ours, Kind.original
    monkeypatch.setattr(Kind, "ours", lambda self, path: (trail.append("ours"), ours(self, path))[1])
    monkeypatch.setattr(Kind, "original", lambda self, path: (trail.append("original"), original(self, path))[1])
    monkeypatch.setattr(suite, "KINDS", KINDS[:1])
    monkeypatch.setattr(suite, "ROUND_S_MAX", 0.0)
    monkeypatch.setattr(suite, "_pool", lambda *_: None)
    dirq(tmp_path, rounds=1, elements=40)
    assert trail == ["original", "ours", "ours", "original"]


@needs_original
@pytest.mark.parametrize("kind", KINDS, ids=[kind.name for kind in KINDS])
def test_what_the_one_adds_the_other_takes(kind: Kind, tmp_path: Path) -> None:
    """Else two formats were compared."""
    ours, original = kind.ours(tmp_path / "queue"), kind.original(tmp_path / "queue")
    names = [ours.add(kind.data), original.add(kind.data)]
    for name, other in zip(names, (original, ours), strict=True):
        assert other.lock(name)
        assert other.get(name) == kind.data
        other.remove(name)


@needs_original
@pytest.mark.usefixtures("without_pools")
def test_a_library_that_forgets_elements_is_no_fast_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Forgetful:
        def __init__(self, opened: Any) -> None:
            self._opened = opened

        def __getattr__(self, name: str) -> Any:
            return (lambda name: None) if name == "remove" else getattr(self._opened, name)

        def __iter__(self) -> Any:
            return iter(self._opened)

    opened = Kind.ours
    monkeypatch.setattr(Kind, "ours", lambda self, path: Forgetful(opened(self, path)))
    with pytest.raises(BenchError, match="some were left"):
        dirq(tmp_path, rounds=1, elements=40)
    assert os.listdir(tmp_path) == []


def test_without_the_original_the_suite_is_left_out_and_it_is_said_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers.DirqSimple, "module", "no_such_module.at_all")
    with pytest.raises(LeftOut, match="dirq is not installed"):
        dirq(tmp_path, rounds=1)
    done = CliRunner().invoke(cli, ["bench", "--suite", "dirq", "--rounds", "1", "--directory", str(tmp_path)])
    assert done.exit_code == 0
    assert "left out: dirq: the Python package dirq is not installed" in done.stderr
    assert os.listdir(tmp_path) == []
