"""
test_durable - the durable suite compares like with like, and expects nothing where nothing can be synced
"""

from __future__ import annotations

import os
from pathlib import Path

from orchestrator.bench.durable import BATCH_TARGET, PUT_TARGET, _figures, durable


def test_a_small_round_puts_with_one_two_and_eight_processes_and_in_batches(tmp_path: Path) -> None:
    figures = durable(tmp_path, rounds=2, messages=16)
    assert [one.what for one in figures] == [
        "put, durable, 1 process",
        "put, durable, 2 processes",
        "put, durable, 8 processes",
        "put_many(256), durable, to not durable",
    ]
    for one in figures:
        assert len(one.values) == len(one.base) == 2
        assert min(*one.values, *one.base) > 0
    assert os.listdir(tmp_path) == [], "nothing is left behind"


def test_a_filesystem_in_memory_has_no_target() -> None:
    names = [f"{what} {count}" for what in ("bare", "put") for count in (1, 2, 8)] + ["batch", "batch not durable"]
    rates = {name: [1000.0] for name in names}
    assert [one.target for one in _figures(rates, "ext4")] == [PUT_TARGET, PUT_TARGET, PUT_TARGET, BATCH_TARGET]
    for one in _figures(rates, "tmpfs"):
        assert one.target is None
        assert "nothing to sync" in one.note
