"""
test_ddmq - the ddmq suite gives the same queue to ours and to the original, and says when it cannot
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from orchestrator.bench import ddmq as suite
from orchestrator.bench import peers
from orchestrator.bench.ddmq import QUEUE, RATIO, SLICES, ddmq
from orchestrator.bench.measure import BenchError, LeftOut
from orchestrator.cli import cli
from workers.ddmq import Broker

needs_original = pytest.mark.skipif(peers.Ddmq().missing() is not None, reason="ddmq is not installed")
FEW = {"waiting": 200, "messages": 100}


@needs_original
def test_each_verb_is_beside_both_ways_to_use_the_original_in_the_same_round(tmp_path: Path) -> None:
    figures = ddmq(tmp_path, rounds=2, backlog=0, **FEW)
    assert [(one.what, one.target) for one in figures] == [
        ("publish, original", None),
        ("consume and ack, original", RATIO),
        ("publish, original not cleaning", None),
        ("consume and ack, original not cleaning", RATIO),
        ("consume and ack by 4 at once, original not cleaning", None),
    ]
    for one in figures:
        assert len(one.values) == len(one.base) == 2
        assert min(*one.values, *one.base) > 0
    assert os.listdir(tmp_path) == [], "nothing is left behind"


@needs_original
def test_a_pool_settles_a_backlog_while_as_many_wait_as_for_the_original(tmp_path: Path) -> None:
    figures = ddmq(tmp_path, rounds=1, backlog=500, **FEW)
    assert (figures[-1].what, figures[-1].target) == ("pool of 1, original", RATIO)
    assert min(*figures[-1].values, *figures[-1].base) > 0
    assert os.listdir(tmp_path) == [], "nothing is left behind"


@needs_original
def test_each_of_three_is_first_as_often_and_finds_as_many_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trail: list[str] = []
    waiting: set[int] = set()
    passed = suite._pass

    def watched(side: suite.Side, producer: Any, consumer: Any) -> dict[str, float]:
        trail.append(side.name)
        waiting.add(len(Broker(tmp_path / "library").get_message_list(QUEUE)[0]))
        return passed(side, producer, consumer)

    monkeypatch.setattr(suite, "_pass", watched)
    ddmq(tmp_path, rounds=1, backlog=0, **FEW)
    assert Counter(trail[::3]) == dict.fromkeys(("ours", "original", "original not cleaning"), SLICES // 3)
    assert waiting == {FEW["waiting"]}


@needs_original
def test_the_original_as_documented_cleans_at_each_call_and_the_other_never(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the two would be the same, and nothing be said about who uses it as it is meant."""
    cleanings = []
    opened = suite._original

    def counted(root: str) -> Any:
        broker = opened(root)
        update = broker.update_settings_file
        broker.update_settings_file = lambda *words: (cleanings.append(words), update(*words))
        return broker

    monkeypatch.setattr(suite, "_original", counted)
    ddmq(tmp_path, rounds=2, backlog=0, **FEW)
    few = FEW["messages"] // 50
    assert len(cleanings) == 2 * SLICES * few * 2  # publish and consume


@needs_original
def test_a_library_that_forgets_messages_is_no_fast_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite.ours.Broker, "ack", lambda *_: [])
    with pytest.raises(BenchError, match="100 are claimed"):
        ddmq(tmp_path, rounds=1, backlog=0, **FEW)
    assert os.listdir(tmp_path) == []


def test_without_the_original_the_suite_is_left_out_and_it_is_said_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers.Ddmq, "module", "no_such_module.at_all")
    with pytest.raises(LeftOut, match="ddmq is not installed"):
        ddmq(tmp_path, rounds=1)
    done = CliRunner().invoke(cli, ["bench", "--suite", "ddmq", "--rounds", "1", "--directory", str(tmp_path)])
    assert done.exit_code == 0
    assert "left out: ddmq: the Python package ddmq is not installed" in done.stderr
    assert os.listdir(tmp_path) == []
