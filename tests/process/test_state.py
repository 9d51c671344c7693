"""test_state - the state file of a real pool with components: complete, whole, and never waited for"""

from __future__ import annotations

import json
import os
import signal
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.process.handlers import write
from tests.process.pools import Pool, Pools, drop, is_empty, make_queue
from tests.waiting import until
from workers.components import Daemon, ZenDaemonComponent


class Counting(ZenDaemonComponent):
    """Commits each message; keeps it in hand while HOLD exists; is done when one says so."""

    def get_events(self) -> Sequence[Mapping[str, object]]:
        """See ZenDaemonComponent."""
        return [self.gen_event_handler("message_process", self.cbk_event_message_process)]

    def cbk_event_message_process(self, daemon: Daemon, args: Any) -> tuple[int, object]:
        """Count it."""
        write(f"holds {args['id']}")
        until(lambda: not os.path.exists(os.environ["HOLD"]), 60)
        self.inc_statistic("cnt_counted")
        if args["data"] == "done":
            daemon.set_done()
        daemon.queue.schedule("message_commit", args)
        return daemon.FLAG_CONTINUE, args


class Waiting(ZenDaemonComponent):
    """Has something in time."""

    def get_events(self) -> Sequence[Mapping[str, object]]:
        """See ZenDaemonComponent."""
        return [self.gen_event_handler(event, self.cbk_event_far_away) for event in ("start", "far_away")]

    def cbk_event_far_away(self, daemon: Daemon, args: object) -> tuple[int, object]:
        """Schedule it."""
        daemon.queue.schedule_after(3600, "far_away")
        return daemon.FLAG_CONTINUE, args


WORDS = ("--component", f"{__name__}:Counting", "--component", f"{__name__}:Counting")


def state_of(pools: Pools, pool: Pool) -> dict[str, Any]:
    """The state, as the operator gets it."""
    code, said = pools.run(
        "signal", "usr2", "--run-dir", str(pools.place / "run"), "--name", pool.name, "--timeout", "60"
    )
    assert code == 0, said
    found: dict[str, Any] = json.loads(pool.board_path.with_name("state").read_text())
    return found


def test_the_state_of_a_pool_is_complete(pools: Pools, queue: Path) -> None:
    """Configuration, queues, workers, components by label, what waits and what is due: the master's and theirs."""
    pool = pools.start(str(queue), "--workers", "2", *WORDS, "--component", f"{__name__}:Waiting").ready()
    drop(queue, "m0", b"x")
    pool.until(lambda: pool.outcome("done") == 1)
    found = state_of(pools, pool)
    assert stat.S_IMODE(pool.board_path.with_name("state").stat().st_mode) == 0o600
    assert found["pid"] == pool.process.pid
    assert found["config"]["queue"][0]["workers"] == 2
    assert [worker["pid"] for worker in found["status"]["queues"][0]["workers"]] == pool.pids
    assert {worker["pid"] for worker in found["pools"]["queue"]["workers"].values()} == set(pool.pids)
    assert "tick" in {timer["event"] for timer in found["timers"]}
    said = found["components"]["queue"]
    assert [said[index]["answered"] for index in ("0", "1")] == [True, True]
    for one in said.values():
        assert {"Counting", "Counting-2"} <= one["state"]["components"].keys()
        assert "far_away" in json.dumps(one["state"]["timers"])
    counted = [one["state"]["components"]["Counting"]["statistics"].get("cnt_counted", 0) for one in said.values()]
    assert sum(counted) == 1
    assert (pool.place / "stdout").read_text() == ""
    assert pool.end() == 0


def test_a_worker_that_does_not_answer_is_listed_with_its_message_and_holds_up_nobody(
    pools: Pools, queue: Path
) -> None:
    pools.hold.touch()
    pool = pools.start(str(queue), "--workers", "2", *WORDS).ready()
    drop(queue, "m0", b"x")
    pool.until(lambda: pools.journal() == ["holds m0"])
    said = state_of(pools, pool)["components"]["queue"].values()
    busy = [one for one in said if not one["answered"]]
    assert [(one["busy"], one["message"]) for one in busy] == [(True, "m0")]
    assert pool.status["healthy"]
    pools.hold.unlink()
    pool.until(lambda: pool.outcome("done") == 1)
    # Answered late: it is in the next one.
    assert all(one["answered"] for one in state_of(pools, pool)["components"]["queue"].values())
    assert pool.end() == 0


def test_Z17_who_reads_the_state_never_finds_half_of_it(pools: Pools, queue: Path) -> None:
    pool = pools.start(str(queue), "--workers", "1", *WORDS).ready()
    state_of(pools, pool)
    path = pool.board_path.with_name("state")
    versions = set()
    for _ in range(5):
        before = path.stat().st_ino
        pool.send(signal.SIGUSR2)

        def is_new(before: int = before) -> bool:
            json.loads(path.read_text())
            return path.stat().st_ino != before

        pool.until(is_new)
        versions.add(json.loads(path.read_text())["time"])
    assert len(versions) == 5
    assert [one.name for one in path.parent.iterdir() if ".new" in one.name] == []
    assert pool.end() == 0


def test_a_state_file_that_cannot_be_written_costs_a_line_in_the_log(pools: Pools, queue: Path) -> None:
    away = pools.place / "away" / "state"
    pool = pools.start(str(queue), "--workers", "1", "--state-file", str(away), *WORDS).ready()
    pool.send(signal.SIGUSR2)
    pool.until(lambda: f"the state: cannot write {away}" in pool.log)
    drop(queue, "m0", b"x")
    pool.until(lambda: pool.outcome("done") == 1)
    assert pool.end() == 0


# ---- components that are done


def test_a_pool_ends_with_0_when_the_components_of_its_only_queue_are_done(pools: Pools, queue: Path) -> None:
    """What the other worker has in hand is finished; what came later stays."""
    pools.hold.touch()
    pool = pools.start(str(queue), "--workers", "2", *WORDS).ready()
    drop(queue, "a", b"x")
    drop(queue, "b", b"done")
    pool.until(lambda: pool.busy == 2)
    drop(queue, "c", b"done")
    pools.hold.unlink()
    assert pool.wait() == 0
    assert "the components of every queue are done" in pool.log
    assert sorted({line.split()[1] for line in pools.journal()})[:2] == ["a", "b"]
    assert not list((queue / "pending").iterdir())


def test_a_queue_that_is_done_comes_back_when_its_configuration_changes(pools: Pools, queue: Path) -> None:
    other = pools.place / "other"
    make_queue(other).close()
    path = pools.place / "pool.toml"

    def configure(attempts: int) -> None:
        path.write_text(
            "".join(
                f'[[queue]]\nurl = "{url}"\nworkers = 1\nmax_attempts = {attempts}\n'
                f'components = ["{__name__}:Counting"]\n'
                for url in (queue, other)
            )
        )

    configure(5)
    pool = pools.start("--config", str(path)).ready()
    drop(queue, "last", b"done")
    pool.until(lambda: "queue queue: its components are done" in pool.log)
    pool.until(lambda: len(pool.pids) == 1)
    drop(queue, "late", b"x")
    for count in (1, 2):
        drop(other, f"m{count}", b"x")
        pool.send(signal.SIGHUP)
        pool.until(lambda count=count: pool.log.count("reloaded: ") == count)
        pool.until(lambda count=count: pool.queues["other"]["workers"][0]["outcomes"]["done"] == count)
    assert len(pool.pids) == 1
    assert not is_empty(queue)
    configure(6)
    pool.send(signal.SIGHUP)
    pool.until(lambda: is_empty(queue))
    pool.until(lambda: len(pool.pids) == 2)
    assert pool.end() == 0
