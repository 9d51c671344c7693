"""The reports' writers: one of each kind at a time, none that is killed or slow unnoticed."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator import state
from orchestrator.child import Exit
from orchestrator.config import load
from orchestrator.loop import Loop
from orchestrator.reports import RUNLOG, SLOW_S, STATE, Reports
from orchestrator.runlog import RunLog
from workers import saved
from workers.board import Board

KILLED, FINE = Exit(None, signal.SIGKILL, 0), Exit(0, None, 0)


class FakeWriter:
    """A process that does its work when it is told to end well."""

    pid = sentinel = 0

    def __init__(self, role: Callable[[], int]) -> None:
        self.role = role
        self.end: Exit | None = None

    def finish(self, end: Exit = FINE) -> None:
        if end is FINE:
            assert self.role() == 0
        self.end = end

    def collect(self) -> Exit | None:
        return self.end

    def close(self) -> None:
        pass


class FakeServices:
    """Forks nobody."""

    def __init__(self) -> None:
        self.writers: list[FakeWriter] = []

    def spawn(self, role: Callable[[], int], _title: str) -> FakeWriter:
        self.writers.append(FakeWriter(role))
        return self.writers[-1]


@pytest.fixture(name="reports")
def _reports(tmp_path: Path) -> Iterator[Reports]:
    config = load((), flags={"run_dir": str(tmp_path / "run"), "state_file": str(tmp_path / "state")}, environment={},
                  needs_queues=False)  # fmt: skip
    runlog = RunLog("a-pool", tmp_path / "runlog", 100)
    runlog.reserve()
    with contextlib.closing(Loop()) as loop:
        source = state.begin(config, Board.create(), {}, loop, tmp_path)
        yield Reports(source, FakeServices(), runlog)  # type: ignore[arg-type]


def writers(reports: Reports) -> list[FakeWriter]:
    return reports.services.writers  # type: ignore[attr-defined,no-any-return]


def turn(reports: Reports, now_s: float = 0.0) -> list[FakeWriter]:
    """Ask, then write; those who write now."""
    for _ in range(3):
        reports.tick(now_s)
    return [one for one in writers(reports) if one.end is None]


def test_a_run_log_that_hangs_holds_up_no_state_and_is_told_of_once(
    reports: Reports, caplog: pytest.LogCaptureFixture
) -> None:
    reports.want(RUNLOG)
    (hanging,) = turn(reports)
    reports.want(STATE)
    reports.want(RUNLOG)
    first, writing = turn(reports)
    assert first is hanging
    writing.finish()
    assert reports.source.paths["state"].exists()
    for now_s in (SLOW_S, SLOW_S + 0.1, SLOW_S + 10):
        assert turn(reports, now_s) == [hanging]
    assert caplog.text.count("the run log takes long to be written") == 1
    hanging.finish()
    turn(reports, 100.0)[0].finish()  # what was wanted meanwhile
    assert turn(reports, 101.0) == []


def test_a_writer_that_is_killed_is_replaced_once(reports: Reports, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    reports.want(STATE)
    for count, said in ((1, "; it is written once more"), (2, "SIGKILL (perhaps out of memory?)\n")):
        (writing,) = turn(reports)
        writing.finish(KILLED)
        reports.tick(0.0)
        assert caplog.text.count("the writer of the state was ended by SIGKILL") == count
        assert said in caplog.text
    assert turn(reports) == []
    reports.want(STATE)
    turn(reports)[0].finish()
    assert "the state is in" in caplog.text


def test_what_a_killed_writer_left_is_removed_by_the_next_one_when_it_is_old(reports: Reports, tmp_path: Path) -> None:
    kept = [".state.12.new", ".state.x.new", "xstate.12.new", ".state.12.newer", ".other.12.new"]
    for name in (".state.11.new", *kept):
        (tmp_path / name).write_text("half")
        age_s = 1.0 if name == ".state.12.new" else 2 * saved.ABANDONED_S
        os.utime(tmp_path / name, (time.time() - age_s,) * 2)
    reports.want(STATE)
    turn(reports)[0].finish()
    assert {name for name in os.listdir(tmp_path) if "new" in name} == set(kept)


@pytest.mark.parametrize("is_swapped", [True, False])
def test_a_state_is_not_written_by_way_of_a_link_that_somebody_else_could_have_made(
    reports: Reports, tmp_path: Path, is_swapped: bool, caplog: pytest.LogCaptureFixture
) -> None:
    theirs, roots = tmp_path / "theirs", tmp_path / "roots"
    theirs.mkdir()
    theirs.chmod(0o777)
    roots.mkdir(mode=0o700)
    (roots if is_swapped else theirs / "place").mkdir(exist_ok=True)
    if is_swapped:
        (theirs / "place").symlink_to(roots)
    reports.source = dataclasses.replace(
        reports.source, paths={**reports.source.paths, "state": theirs / "place" / "state"}
    )
    assert reports.write(STATE, os.getpid(), None, is_told=False) == is_swapped
    assert list(roots.iterdir()) == []
    assert (theirs / "place" / "state").exists() != is_swapped
    assert ("there is a link on the way" in caplog.text) == is_swapped
