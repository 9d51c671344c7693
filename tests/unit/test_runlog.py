"""The run log: its name, its content, how many are kept, and what is read out of any file that is there."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner, Result
from hypothesis import example, given, settings
from hypothesis import strategies as st

from orchestrator import runlog
from orchestrator.cli import cli
from orchestrator.cli import runlog as command
from orchestrator.runlog import ERRORS_MAX, ErrorLines, RunLog, analyse, files, read
from workers.saved import SavedError, load, save
from workers.system import start_ticks

BEGUN_S = 1_700_000_000.0  # 2023-11-14 22:13:20 UTC


def begun(directory: Path, *, keep: int = 100, started_s: float = BEGUN_S) -> RunLog:
    found = RunLog("a-pool", directory, keep, started_s=started_s)
    found.reserve()
    return found


def ran(*words: str, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, ["runlog", *words], prog_name="orchestrator")
    assert result.exit_code == code, result.output
    return result


def finished(path: Path, *, started_s: float, spans: tuple[float, float, float] = (1.0, 8.0, 1.0), **more) -> None:
    """A run log whose three stages took *spans* seconds."""
    marks, now_s = [], started_s
    for stage, seconds in zip(runlog.STAGES, spans, strict=True):
        marks.append({"ident": f"stage_{stage}_start", "descr": "", "time": now_s})
        now_s += seconds
        marks.append({"ident": f"stage_{stage}_stop", "descr": "", "time": now_s})
    save(path, {"ts": started_s, "result": "success", "rc": 0, "errors": [], "time_marks": marks, "argv": ["a"]} | more)


# ---- writing


def test_Z18_two_runs_of_one_second_have_two_files(tmp_path: Path) -> None:
    """Of one process number too, as two containers may have that share the directory."""
    first, second = begun(tmp_path), begun(tmp_path)
    assert first.path is not None
    assert second.path is not None
    assert [path.name for path in files(tmp_path)] == sorted([first.path.name, second.path.name])
    assert first.path.name == f"20231114221320.{os.getpid()}.runlog"
    assert len({first.path, second.path}) == 2


def test_Z18_the_newest_are_kept_and_the_own_one_always(tmp_path: Path) -> None:
    for second in range(7):
        begun(tmp_path, started_s=BEGUN_S + 100 + second)
    own = begun(tmp_path, keep=3, started_s=BEGUN_S)
    (tmp_path / "notes.txt").touch()
    own.prune()
    left = [path.name for path in files(tmp_path)]
    assert [name[:14] for name in left] == ["20231114221320", "20231114221505", "20231114221506"]
    assert own.path is not None
    assert own.path.name in left
    assert (tmp_path / "notes.txt").exists()


@pytest.mark.parametrize("what", ["begin", "end", "prune", "remove"])
def test_nothing_is_written_or_removed_by_way_of_a_link_that_somebody_else_could_have_made(
    tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A pool of root's with runlog_dir below the directory of a user, who puts a link to one of root's in its place."""
    theirs, roots = tmp_path / "theirs", tmp_path / "roots"
    theirs.mkdir()
    theirs.chmod(0o777)
    roots.mkdir(mode=0o700)
    (roots / "20010101000000.1.runlog").touch()
    run = RunLog("pool", theirs / "logs", 1)
    if what != "begin":
        run.begin()
        (theirs / "logs").rename(theirs / "before")
    (theirs / "logs").symlink_to(roots)
    match what:
        case "begin":
            run.begin()
        case "end":
            run.fail("it is over")
        case "prune":
            with pytest.raises(OSError, match="there is a link on the way"):
                run.prune()
        case "remove":
            run.remove()
    logging.getLogger().removeHandler(run.errors)
    assert [path.name for path in roots.iterdir()] == ["20010101000000.1.runlog"]
    assert ("there is a link on the way" in caplog.text) == (what in ("begin", "end"))


def test_after_the_clock_was_set_back_runs_of_the_future_are_the_oldest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever their names say: the kernel says when they were written, and this run's file what time it is."""
    for year in (2030, 2031, 2032):
        (tmp_path / f"{year}1114221320.1.runlog").touch()
    before, own = begun(tmp_path, started_s=BEGUN_S), begun(tmp_path, keep=2, started_s=BEGUN_S + 100)
    lstat = os.lstat

    def of_the_future(name: str, *, dir_fd: int) -> object:
        found = lstat(name, dir_fd=dir_fd)
        years = int(name[:4]) - 2026 if name[:3] == "203" else 0
        return SimpleNamespace(st_ctime=found.st_ctime + years * 3e7, st_mtime=found.st_mtime)

    monkeypatch.setattr(os, "lstat", of_the_future)
    own.prune()
    assert files(tmp_path) == [before.path, own.path]


def test_on_a_full_disk_the_end_is_written_over_the_earlier_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is too long for that is left out; what came of the run is there."""
    own = begun(tmp_path)
    assert own.path is not None
    own.save(os.getpid(), None, {})
    size = own.path.stat().st_size
    opened = os.open

    def full(path: object, flags: int, *more: object, **named: object) -> int:
        if flags & os.O_CREAT:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return opened(path, flags, *more, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", full)
    with pytest.raises(SavedError, match="No space left"):
        own.save(os.getpid(), None, {})
    for queues, error, is_kept in (("short", "short", True), ("x" * size, "short", False), ("", "y" * size, False)):
        own.errors.lines.append(error)
        own.save(os.getpid(), 0, {"queues": queues})
        found = load(own.path)
        assert (found["result"], found["rc"], own.path.stat().st_size) == ("success", 0, size)
        assert found["statistics"] == ({"queues": queues} if is_kept else {})


def test_what_a_dead_writer_left_is_removed_when_it_is_old(tmp_path: Path) -> None:
    own = begun(tmp_path)
    for name, age_s in (("old", 2 * runlog.ABANDONED_S), ("new", 1.0)):
        path = tmp_path / f".20231114221320.{1 if name == 'old' else 2}.runlog.9.new"
        path.touch()
        os.utime(path, (time.time() - age_s,) * 2)
    own.prune()
    assert [name for name in os.listdir(tmp_path) if name.endswith(".new")] == [".20231114221320.2.runlog.9.new"]


def test_content_says_who_when_and_what_came_of_it(tmp_path: Path) -> None:
    own = begun(tmp_path)
    own.mark("setup", "start")
    own.mark("setup", "start")
    found = own.content(os.getpid(), None, {"queues": {}})
    assert found["name"] == "a-pool"
    assert (found["ts"], found["ts_fsf"], found["ts_str"]) == (BEGUN_S, "20231114221320", "2023-11-14 22:13:20")
    assert (found["result"], found["rc"], found["errors"]) == ("running", None, [])
    assert [mark["ident"] for mark in found["time_marks"]] == ["stage_setup_start"]
    assert {"pid", "argv", "host", "start", "saved", "statistics"} < found.keys()
    assert own.content(1, 0, {})["result"] == "success"
    assert (own.content(1, 4, {})["result"], own.content(1, 4, {})["rc"]) == ("failure", 4)


def test_the_last_errors_of_the_log_are_kept_one_line_each() -> None:
    kept = ErrorLines()
    log = logging.Logger("test")
    log.addHandler(kept)
    log.warning("no error")
    for number in range(ERRORS_MAX + 5):
        log.error("error %d\nforged line", number)
    try:
        raise ValueError("why")
    except ValueError:
        log.exception("the last one")
    assert len(kept.lines) == ERRORS_MAX
    assert "error 6\\x0aforged line" in kept.lines[0] or "error 6\\nforged line" in kept.lines[0]
    assert kept.lines[-1].endswith("the last one")
    assert not any("\n" in line for line in kept.lines)


# ---- reading


def test_analysis_of_a_run_that_has_ended(tmp_path: Path) -> None:
    finished(tmp_path / "20231114221320.1.runlog", started_s=BEGUN_S, argv=["run", "a b"])
    runs, warnings = read(files(tmp_path))
    assert not warnings
    found = analyse("20231114221320.1", runs["20231114221320.1"], BEGUN_S + 100)
    assert found.as_json() == {
        "label": "20231114221320.1",
        "age": 100.0,
        "result": "success",
        "command": "run 'a b'",
        "dur_run": 10.0,
        "dur_pre": 1.0,
        "dur_proc": 8.0,
        "dur_post": 1.0,
        "effectivity": 80.0,
        "durations": [1.0, 8.0, 1.0],
    }


def test_a_run_that_goes_on_lasts_until_it_was_last_saved() -> None:
    marks = [{"ident": "stage_setup_start", "time": 100.0}, {"ident": "stage_setup_stop", "time": 101.0},
             {"ident": "stage_process_start", "time": 101.0}]  # fmt: skip
    found = analyse("a", {"ts": 100.0, "saved": 111.0, "result": "failure", "time_marks": marks}, 200.0)
    assert (found.dur_run, found.dur_pre, found.dur_proc, found.dur_post) == (11.0, 1.0, 10.0, 0.0)


def test_a_run_whose_process_is_gone_has_died_and_one_of_another_host_cannot_be_looked_for() -> None:
    process = subprocess.Popen(["sleep", "60"])
    here = {"ts": 1.0, "result": "running", "pid": process.pid, "host": socket.gethostname()}
    here["start"] = start_ticks(process.pid)
    assert analyse("a", here, 2.0).result == "running"
    process.kill()
    process.wait()
    assert analyse("a", here, 2.0).result == "died"
    assert analyse("a", here | {"host": "another"}, 2.0).result == "running"


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text() | st.integers() | st.just(10**400) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
FIELDS = ("ts", "result", "rc", "errors", "time_marks", "argv", "pid", "start", "host", "saved", "name")


@settings(max_examples=50, deadline=None)
@given(run=st.fixed_dictionaries({}, optional=dict.fromkeys(FIELDS, JSON)), is_run=st.booleans())
@example(run={"ts": 10**400, "result": "running", "pid": 10**400}, is_run=False)
@example(run={"rc": "\ud800", "argv": ["\ud800", [[]]], "result": "\ud800" * 30}, is_run=True)
@example(run={"time_marks": [{"ident": "stage_process_start", "time": -(10**400)}], "saved": 1e308}, is_run=True)
def test_one_hostile_file_hides_no_other(run: dict[str, object], *, is_run: bool) -> None:
    with tempfile.TemporaryDirectory() as place:
        finished(Path(place, "20231114221320.1.runlog"), started_s=BEGUN_S)
        save(Path(place, "20231114221321.2.runlog"), run | ({"ts": BEGUN_S} if is_run else {}))
        for words in ("list", "evaluate"):
            lines = ran(words, "--runlog-dir", place).stdout.splitlines()
            assert lines[1].startswith("20231114221320.1 ")
            assert all(len(line) < 20_000 and line.isprintable() for line in lines)
            ran(words, "--json", "--runlog-dir", place)
        ran("show", "--runlog-dir", place)


@pytest.mark.parametrize("wrong", [
    {"time_marks": 5}, {"time_marks": [5, {"ident": [], "time": "x"}]}, {"saved": -1e308, "argv": 7}, {"argv": [{}]},
    {"time_marks": [{"ident": "stage_process_start", "time": 1e308}], "saved": float("inf")}, {"pid": "x", "start": []},
])  # fmt: skip
def test_whatever_stands_in_a_file_is_analysed(wrong: dict[str, object]) -> None:
    found = analyse("a", {"ts": 100.0, "result": "running", "host": socket.gethostname()} | wrong, 200.0)
    assert 0 <= found.effectivity <= 100
    assert min(found.dur_run, *found.durations) >= 0


# ---- the commands


def test_list_show_and_evaluate_read_the_files_alone(tmp_path: Path) -> None:
    directory = tmp_path / "a-pool" / "runlog"
    directory.mkdir(parents=True)
    finished(directory / "20231114221320.1.runlog", started_s=BEGUN_S)
    finished(directory / "20231114231320.2.runlog", started_s=BEGUN_S + 3600, spans=(1.0, 2.0, 1.0), rc=4)
    place = ("--run-dir", str(tmp_path))
    lines = [json.loads(line) for line in ran("list", "--json", *place).stdout.splitlines()]
    assert [line["label"] for line in lines] == ["20231114221320.1", "20231114231320.2"]
    shown = ran("list", *place, "--name", "a-pool").stdout.splitlines()
    assert [line.split()[0] for line in shown] == ["label", "20231114221320.1", "20231114231320.2"]
    assert json.loads(ran("show", *place).stdout)["rc"] == 4
    assert json.loads(ran("show", "20231114221320.1", *place).stdout)["rc"] == 0
    assert json.loads(ran("show", str(directory / "20231114221320.1.runlog")).stdout)["rc"] == 0
    found = json.loads(ran("evaluate", "--json", *place).stdout)
    assert found["all"]["dur_run"] == {"min": 4.0, "max": 10.0, "avg": 7.0}
    assert found["all"]["dur_proc"] == {"min": 2.0, "max": 8.0, "avg": 5.0}
    assert found["all"]["effectivity"] == {"min": 50.0, "max": 80.0, "avg": 65.0}
    last = ran("evaluate", *place).stdout.splitlines()[-3:]
    assert [re.split(r"\s+", line.strip()) for line in last] == [
        ["min", "4.0s", "2.0s", "50.0%"],
        ["max", "10.0s", "8.0s", "80.0%"],
        ["avg", "7.0s", "5.0s", "65.0%"],
    ]


def test_a_file_that_is_no_run_log_is_a_line_of_warning_and_nothing_else(tmp_path: Path) -> None:
    finished(tmp_path / "20231114221320.1.runlog", started_s=BEGUN_S, argv=["\x1b]0;forged\x07", "\udcff"])
    (tmp_path / "20231114221321.2.runlog").write_text('{"half')
    (tmp_path / "20231114221322.3.runlog").write_text("{}")
    (tmp_path / "20231114221323.4.runlog").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "20231114221324.5.runlog")
    place = ("--runlog-dir", str(tmp_path))
    for words in ("list", "evaluate"):
        said = ran(words, *place)
        assert said.stderr.count("\n") == said.stderr.count("orchestrator: ") == 4
        assert "20231114221320.1" in said.stdout
        assert "\x1b" not in said.stdout
    assert json.loads(ran("show", *place).stdout)["rc"] == 0  # the newest that can be read


def test_a_long_command_cuts_no_other_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a pipe a line is as long as it is; on a terminal the command is folded."""
    words = ["orchestrator", *(f"--option-{number}" for number in range(100))]
    for number in (1, 2):
        argv = words if number == 1 else ["short"]
        finished(tmp_path / f"2023111422132{number}.1.runlog", started_s=BEGUN_S, argv=argv, errors=[""] * 12345)
    place = ("--runlog-dir", str(tmp_path))
    first, second = ran("list", *place).stdout.splitlines()[1:]
    assert first.endswith(" ".join(words))
    assert re.fullmatch(r"20231114221322\.1 +[0-9,.]+s +success +0 +12345 +10\.0s +short", second)
    for columns in ("70", "30"):
        monkeypatch.setenv("COLUMNS", columns)
        monkeypatch.setattr(command, "_is_terminal", lambda: True)
        lines = ran("list", *place).stdout.splitlines()
        assert lines[1].startswith("20231114221321.1 ")
        assert " success " in lines[1]
        assert " 12345 " in lines[1]
        assert len(lines) > 5


def test_a_neighbour_that_cannot_be_read_is_left_out_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "runlog").mkdir(parents=True)
    finished(tmp_path / "a" / "runlog" / "20231114221320.1.runlog", started_s=BEGUN_S)
    is_dir = Path.is_dir

    def denied(path: Path) -> bool:
        if path.parent.name == "b":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return is_dir(path)

    monkeypatch.setattr(Path, "is_dir", denied)
    said = ran("list", "--run-dir", str(tmp_path))
    assert said.stderr == f"orchestrator: {tmp_path}/b is left out: Permission denied\n"
    assert "20231114221320.1" in said.stdout


def test_what_is_not_there_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    assert "there are no run logs in" in ran("list", "--run-dir", str(tmp_path), code=1).stderr
    (tmp_path / "a" / "runlog").mkdir(parents=True)
    assert "called 5" in ran("show", "5", "--run-dir", str(tmp_path), code=1).stderr
    assert json.loads(ran("evaluate", "--json", "--run-dir", str(tmp_path)).stdout) == {"runs": [], "all": {}}
    assert "cannot read the run logs" in ran("list", "--run-dir", str(tmp_path), "--name", "b", code=1).stderr
    (tmp_path / "b" / "runlog").mkdir(parents=True)
    assert "a, b; choose one with --name" in ran("list", "--run-dir", str(tmp_path), code=2).stderr
