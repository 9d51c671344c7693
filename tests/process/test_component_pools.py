"""Components under a real pool and in a lone worker: without a queue, done by themselves, held up by their output."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.process.pools import Pools, drop, files, make_queue

TICKS = ["tick 1 of 3", "tick 2 of 3", "tick 3 of 3", "stop"]
ONCE = '[[queue]]\nname = "daemon"\nurl = "null:"\nworkers = 1\ncomponents = ["tests.process.stages:Once"]\n'


def config(pools: Pools, text: str) -> str:
    path = pools.place / "components.toml"
    path.write_text(text)
    return str(path)


def test_a_daemon_without_a_queue_ends_when_its_events_have_run_dry(pools):
    """Idle for a moment between two events is not the end."""
    pool = pools.start("--config", config(pools, ONCE), "--until-empty")
    assert pool.wait() == 0, pool.log
    assert pools.journal() == TICKS


def test_a_pool_whose_components_are_done_ends_by_itself(pools):
    pool = pools.start("--config", config(pools, f"{ONCE}options = {{is_done = true}}\n"))
    assert pool.wait() == 0, pool.log
    assert pools.journal() == TICKS


def test_a_pool_whose_components_are_done_before_its_queue_is_empty_has_failed_and_says_how_many_wait(pools, queue):
    for number in range(3):
        drop(queue, f"{number}", b"x")
    text = f'[[queue]]\nname = "early"\nurl = "{queue}"\nworkers = 2\ncomponents = ["tests.process.stages:Early"]\n'
    pool = pools.start("--config", config(pools, text), "--until-empty")
    assert pool.wait() == 1, pool.log
    assert "queue early: its components are done, and 3 messages wait in it" in pool.log


def test_a_daemon_without_a_queue_goes_on_until_it_is_ended(pools):
    pool = pools.start("--config", config(pools, ONCE)).ready()
    pool.until(lambda: len(pools.journal()) == 3)
    assert pool.end(signal.SIGINT) == 0
    assert pools.journal() == TICKS


@pytest.mark.parametrize("url", ["null:", "./queue"])
def test_a_lone_worker_has_components_too(pools, url):
    make_queue(pools.place / "queue").close()
    drop(pools.place / "queue", "a", b"text")
    words = ["-m", "workers", url, "--until-empty"]
    for component in ("tests.process.stages:Once", "workers.piper:Commiter"):
        words += ["--component", component]
    ended = subprocess.run(
        [sys.executable, *words], cwd=pools.place, env=pools.environment(), timeout=30, capture_output=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert pools.journal() == TICKS
    assert len(files(pools.place / "queue", "incoming")) == (url == "null:")


def test_a_component_that_cannot_be_made_is_named_in_the_log(pools):
    pool = pools.start("--config", config(pools, ONCE.replace(":Once", ":Append")))
    pool.until(lambda: "component 'tests.process.stages:Append' cannot be made with ()" in pool.log)


def test_a_pool_that_is_held_up_by_its_output_says_so_and_goes_on_when_there_is_room(pools, queue, tmp_path):
    following = tmp_path / "next"
    make_queue(following).close()
    for number in range(3):
        drop(queue, f"{number}", b"x")
    words = [str(queue), "--component", "workers.piper:Commiter", "--output", str(following), "--workers", "1"]
    pool = pools.start(*words, "--output-limit", "1", "--output-wait", "100ms", listen="127.0.0.1:0").ready()
    label = ("orchestrator_queue_output_full", (("queue", "queue"),))
    pool.until(lambda: pool.queues["queue"]["output_full"])
    assert pool.scrape()[label] == 1
    assert "output full" in pools.run("status", "--name", "pool", "--run-dir", str(tmp_path / "run"))[1]
    assert len(files(following, "incoming")) == 1
    for left in (1, 0):
        files(following, "incoming")[0].unlink()
        pool.until(lambda: len(files(queue, "incoming")) == left and files(following, "incoming"))  # noqa: B023
    files(following, "incoming")[0].unlink()
    pool.until(lambda: not pool.queues["queue"]["output_full"])
    assert Path(following).is_dir()
    assert pool.end(signal.SIGINT) == 0
