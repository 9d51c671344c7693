"""
test_bench - the bench measures what it says, in real processes, and says when it is not to be believed
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.bench import Filesystem, Measure, Result, filesystem
from orchestrator.cli.bench import warnings_of

EXT4 = "25 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "orchestrator", "bench", *words],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
        check=False,
    )


def result(*ratios: float) -> Result:
    return Result([Measure("take", 1, [100.0 * ratio for ratio in ratios], list(ratios))], {"take": 100.0})


def test_a_small_bench_measures_put_and_take_with_one_and_two_processes(tmp_path: Path) -> None:
    done = run("--messages", "51", "--rounds", "3", "--size", "0", "--json", "--directory", str(tmp_path))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [(one["what"], one["processes"]) for one in found["measures"]] == [
        ("put", 1), ("put", 2), ("take", 1), ("take", 2),
    ]  # fmt: skip
    for one in found["measures"]:
        assert one["rate"] > 0
        assert 0 < one["ratio_min"] <= one["ratio"] <= one["ratio_max"]
    assert set(found["bare"]) == {"put", "take"}
    assert os.listdir(tmp_path) == [], "nothing is left behind"


def test_the_table_has_a_line_for_each_measurement_and_the_bare_loop(tmp_path: Path) -> None:
    done = run("--messages", "20", "--rounds", "1", "--directory", str(tmp_path))
    assert done.returncode == 0, done.stderr
    for words in ("bare put", "bare take", "ratio", "messages/s", "20 messages of 1024 bytes"):
        assert words in done.stdout
    assert "round 1 of 1" in done.stderr


def test_the_ratio_is_the_median_and_the_spread_is_told() -> None:
    measured = result(0.4, 0.5, 0.9).measures[0]
    assert (measured.ratio, measured.rate) == (0.5, 50.0)
    assert measured.spread == pytest.approx(1.0)


def test_rounds_that_disagree_are_warned_of_and_others_are_not() -> None:
    quiet, tmpfs = result(0.5, 0.5, 0.6), Filesystem("tmpfs", "tmpfs", None)
    assert warnings_of(quiet, tmpfs) == []
    assert "disagree by 100%" in warnings_of(result(0.4, 0.5, 0.9), tmpfs)[0]


@pytest.mark.parametrize(
    ("options", "has_journal", "words"),
    [
        ("rw\ndelalloc\ndata=ordered\n", True, []),
        ("rw\nnojournal_checksum\ncommit=5\n", False, ["no journal"]),
        (None, None, ["unknown"]),
    ],
)
def test_a_filesystem_without_a_journal_is_warned_of(
    tmp_path: Path, options: str | None, has_journal: bool | None, words: list[str]
) -> None:
    """The kernel's tables, written by hand for the device that holds the test's directory."""
    number = os.stat(tmp_path).st_dev
    (tmp_path / "self").mkdir()
    mounts = EXT4.replace("8:1", f"{os.major(number)}:{os.minor(number)}")
    (tmp_path / "self" / "mountinfo").write_text(mounts)
    if options is not None:
        (tmp_path / "fs" / "ext4" / "sda1").mkdir(parents=True)
        (tmp_path / "fs" / "ext4" / "sda1" / "options").write_text(options)
    found = filesystem(tmp_path, proc=tmp_path)
    assert found == Filesystem("ext4", "/dev/sda1", has_journal)
    warnings = warnings_of(result(1.0), found)
    assert len(warnings) == len(words)
    for word in words:
        assert word in warnings[0]


def test_what_is_not_in_the_table_of_mounts_is_unknown(tmp_path: Path) -> None:
    assert filesystem(tmp_path, proc=tmp_path).kind == "unknown"
