"""
test_wakeup - the wake-up suite starts a real pool, and every message it puts is answered
"""

from __future__ import annotations

import os
from pathlib import Path

from orchestrator.bench.wakeup import _answers, _percentile, stamp, wakeup
from workers.message import Claim, Message
from workers.system import SYSTEM


def test_a_small_round_measures_latency_wakeups_and_lost_races(tmp_path: Path) -> None:
    figures = {one.what: one for one in wakeup(tmp_path, rounds=1, messages=5)}
    for who in ("rename to handler, 8 waiting", "rename to read, one bare watcher"):
        assert 0 < figures[f"{who}, p50"].value <= figures[f"{who}, p99"].value
    assert figures["lost races a message, 8 waiting"].value >= 0
    assert "wake-ups a message, 8 waiting" in figures
    assert os.listdir(tmp_path) == [], "nothing is left behind"


def test_the_handler_writes_its_time_into_the_pipe_that_the_body_names(tmp_path: Path) -> None:
    body = tmp_path / "message"
    body.write_bytes(os.fsencode(tmp_path / "pipe"))
    with _answers(tmp_path / "pipe") as answers:
        before_ns = SYSTEM.boottime_ns()
        stamp(Message(Claim("message", str(body)), "spool:queue", 0, None, lambda _: None))
        told_ns = int.from_bytes(os.read(answers, 8), "little")
    assert before_ns <= told_ns <= SYSTEM.boottime_ns()


def test_a_percentile_is_a_value_that_was_measured() -> None:
    values = [float(number) for number in range(100, 0, -1)]
    assert _percentile(values, 99) == 99.0
    assert _percentile(values, 50) == 50.0
    assert _percentile([7.0], 99) == 7.0
