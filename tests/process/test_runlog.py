"""test_runlog - the run log of real pools: when it is written, what it says, and what cannot hold it up"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

from tests.process.pools import HANDLERS, Pool, Pools, drop, is_empty
from tests.process.test_state import WORDS

WORK = ("--handler", f"{HANDLERS}:answer")


def runlogs(pool: Pool) -> list[dict[str, Any]]:
    """The run logs of a pool, the oldest first."""
    directory = pool.board_path.with_name("runlog")
    paths = sorted(directory.glob("*.runlog")) if directory.is_dir() else []
    return [json.loads(path.read_text()) for path in paths]


def counted(run: dict[str, Any]) -> dict[str, int]:
    """What the workers of the queue have counted, without what is 0."""
    queues = run["statistics"].get("queues", {"queue": {}})
    return {key: count for key, count in queues["queue"].items() if count}


def test_a_run_has_one_file_from_its_beginning_to_its_end(pools: Pools, queue: Path) -> None:
    pool = pools.start(str(queue), "--workers", "2", *WORK).ready()
    assert [(run["result"], run["rc"]) for run in runlogs(pool)] == [("running", None)]
    for number, body in enumerate((b"", b"", b"reject")):
        drop(queue, f"m{number}", body)
    pool.until(lambda: is_empty(queue) and pool.busy == 0)
    code, said = pools.run("signal", "usr1", "--run-dir", str(pools.place / "run"), "--timeout", "60")
    assert code == 0, said
    assert counted(runlogs(pool)[0])["done"] == 2
    assert pool.end() == 0
    (run,) = runlogs(pool)
    assert (run["result"], run["rc"], run["name"], run["pid"]) == ("success", 0, "pool", pool.process.pid)
    assert counted(run) | {"conflicts": 0} == {
        "claims": 3, "done": 2, "rejected": 1, "exits_finished": 2, "conflicts": 0,
    }  # fmt: skip
    assert [mark["ident"].removeprefix("stage_") for mark in run["time_marks"]] == [
        "setup_start", "setup_stop", "process_start", "process_stop", "teardown_start", "teardown_stop",
    ]  # fmt: skip
    assert run["argv"][1:3] == ["run", str(queue)]
    code, said = pools.run("runlog", "list", "--json", "--run-dir", str(pools.place / "run"))
    assert (code, json.loads(said)["result"]) == (0, "success")


def test_a_run_that_fails_says_why(pools: Pools, queue: Path) -> None:
    words = ("--handler", "no.such:module", "--until-empty")
    drop(queue, "m0", b"x")
    pool = pools.start(str(queue), "--workers", "1", *words)
    assert pool.wait() == 1
    (run,) = runlogs(pool)
    assert (run["result"], run["rc"]) == ("failure", 1)
    assert any("given up" in line for line in run["errors"]), run["errors"]


def test_a_run_that_never_began_says_why(pools: Pools, queue: Path) -> None:
    pool = pools.start(str(queue), "--workers", "1", "--handler", "no.such:module", "--preload")
    assert pool.wait() == 1
    (run,) = runlogs(pool)
    assert (run["result"], run["rc"]) == ("failure", 1)
    assert "no.such" in run["errors"][-1]


def test_messages_in_errors_are_a_failure_of_the_run(pools: Pools, queue: Path) -> None:
    drop(queue, "m0", b"reject")
    pool = pools.start(str(queue), "--workers", "1", "--until-empty", *WORK)
    assert pool.wait() == 4
    assert [(run["result"], run["rc"]) for run in runlogs(pool)] == [("failure", 4)]


def test_a_run_that_was_killed_is_found_dead_and_the_next_one_has_its_own_file(pools: Pools, queue: Path) -> None:
    pool = pools.start(str(queue), "--workers", "1", *WORK).ready()
    pool.process.kill()
    pool.wait()
    second = pools.start(str(queue), "--workers", "1", "--until-empty", *WORK)
    assert second.wait() == 0
    code, said = pools.run("runlog", "list", "--json", "--run-dir", str(pools.place / "run"))
    assert code == 0
    assert [json.loads(line)["result"] for line in said.splitlines()] == ["died", "success"]


def test_it_is_written_at_its_interval_and_so_are_rates_in_the_log(pools: Pools, queue: Path) -> None:
    words = ("--runlog-interval", "0.2s", "--stats-interval", "0.2s")
    pool = pools.start(str(queue), "--workers", "1", *words, *WORK).ready()
    drop(queue, "m0", b"")
    pool.until(lambda: [counted(run).get("done") for run in runlogs(pool)] == [1])
    pool.until(lambda: "queue queue: claims 1 (+1, " in pool.log)
    pool.until(lambda: "queue queue: claims 1 (+0, 0.00/s), done 1 (+0, 0.00/s)" in pool.log)
    assert pool.end() == 0


def test_only_the_newest_are_kept(pools: Pools, queue: Path) -> None:
    directory = pools.place / "run" / "pool" / "runlog"
    directory.mkdir(parents=True, mode=0o700)
    for path in (directory.parent, directory.parent.parent):
        path.chmod(0o700)
    for second in range(5):
        (directory / f"2023111422132{second}.1.runlog").write_text("{}")
    pool = pools.start(str(queue), "--workers", "1", "--until-empty", "--runlog-keep", "3", *WORK)
    assert pool.wait() == 0
    left = sorted(path.name for path in directory.iterdir())
    assert left[:2] == ["20231114221323.1.runlog", "20231114221324.1.runlog"]
    assert len(left) == 3


def test_a_pool_without_a_name_of_its_own_leaves_nothing_behind_unless_it_is_killed(pools: Pools, queue: Path) -> None:
    run_dir = pools.place / "run"
    words = ("run", str(queue), "--workers", "1", "--until-empty", "--run-dir", str(run_dir), "--listen", "none")
    for how in (WORK, WORDS, (*WORK, "--preload", "--handler", "no.such:handler")):
        code, said = pools.run(*words, *how)
        assert (code, os.listdir(run_dir)) == (1 if "--preload" in how else 0, []), said
    assert "was given a --name keeps its own" in pools.run("runlog", "list", "--run-dir", str(run_dir))[1]
    code, said = pools.run(*words, *WORK, "--runlog-dir", str(pools.place / "runlogs"))
    assert (code, len(os.listdir(pools.place / "runlogs")), os.listdir(run_dir)) == (0, 1, []), said
    named = pools.start(str(queue), "--workers", "1", "--until-empty", *WORK)
    assert named.wait() == 0
    assert os.listdir(named.board_path.parent) == ["runlog"]


def test_counters_of_components_are_summed_over_workers_also_those_that_have_ended(pools: Pools, queue: Path) -> None:
    """One of two workers is replaced half way; at the end all have left, and every message is counted once."""
    pool = pools.start(str(queue), "--workers", "2", *WORDS).ready()
    for number in range(10):
        drop(queue, f"a{number}", b"x")
    pool.until(lambda: pool.outcome("done") == 10)
    before = pool.pids
    os.kill(before[0], signal.SIGTERM)
    pool.until(lambda: len(pool.pids) == 2 and before[0] not in pool.pids)
    for number in range(10):
        drop(queue, f"b{number}", b"x")
    pool.until(lambda: pool.outcome("done") == 20)
    pools.run("signal", "usr1", "--run-dir", str(pools.place / "run"), "--timeout", "60")
    counted_now = runlogs(pool)[0]["statistics"]["components"]["queue"]["Counting"]["cnt_counted"]
    assert counted_now == 20
    assert pool.end() == 0
    components = runlogs(pool)[0]["statistics"]["components"]["queue"]
    assert components["Counting"]["cnt_counted"] == components["Counting-2"]["cnt_counted"] == 20
    assert not (pool.board_path.parent / "states").exists()


def test_a_run_log_directory_that_is_none_costs_a_line_in_the_log(pools: Pools, queue: Path) -> None:
    (pools.place / "file").touch()
    words = ("--runlog-dir", str(pools.place / "file" / "runlog"), *WORK)
    pool = pools.start(str(queue), "--workers", "1", *words).ready()
    assert "there is no run log: cannot use" in pool.log
    code, said = pools.run("signal", "usr1", "--run-dir", str(pools.place / "run"), "--timeout", "60")
    assert code == 1
    assert "has no runlog" in said
    drop(queue, "m0", b"")
    pool.until(lambda: pool.outcome("done") == 1)
    assert pool.end() == 0
