"""test_signals - what the master does with each signal, and who may be master of a name"""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import psutil
import pytest

from orchestrator.master import SIGNALS
from tests.process.pools import HANDLERS, Pool, Pools, drop, files, is_empty, make_queue, marks, process, signal_all
from tests.waiting import until

HOLD = ("--handler", f"{HANDLERS}:hold")


def holding(pools: Pools, queue: Path, *words: str, count: int = 2) -> Pool:
    """A pool of two workers that both have a message in hand, *count* messages in all."""
    for number in range(count):
        drop(queue, f"m{number}", b"x")
    pools.hold.touch()
    pool = pools.start(*(words or (str(queue), "--workers", "2", *HOLD))).ready()
    pool.until(lambda: pool.busy == 2)
    pool.until(lambda: len(pools.journal()) == 2)
    pools.seen += pool.everyone()
    return pool


def configured(pools: Pools, queue: Path) -> tuple[str, ...]:
    """As holding() needs it, with short timeouts."""
    path = pools.place / "pool.toml"
    path.write_text(
        f'[pool]\nstop_timeout = "1s"\nterm_timeout = "0.3s"\n'
        f'[[queue]]\nurl = "{queue}"\nhandler = "{HANDLERS}:hold"\nworkers = 2\n'
    )
    return ("--config", str(path))


def unburnt(queue: Path) -> list[tuple[str, int, int]]:
    return sorted((mark.name, mark.attempts, mark.crashes) for mark in marks(queue, "incoming"))


def test_int_finishes_what_is_in_hand_and_takes_nothing_more(pools: Pools, queue: Path) -> None:
    pool = holding(pools, queue, count=5)
    pool.send(signal.SIGINT)
    pool.until(lambda: pool.status["state"] == "draining")
    assert pool.process.poll() is None
    pools.hold.unlink()
    assert pool.wait(5) == 0
    held, handled = (
        {line.split()[1] for line in pools.journal() if line.startswith(word)} for word in ("holds", "handled")
    )
    assert len(handled) == 2
    assert held == handled
    left = sorted({f"m{number}" for number in range(5)} - handled)
    assert unburnt(queue) == [(name, 0, 0) for name in left]
    assert not list((queue / "pending").iterdir())


def test_a_drain_that_takes_too_long_gives_back_unburnt(pools: Pools, queue: Path) -> None:
    pool = holding(pools, queue, *configured(pools, queue))
    assert pool.end(signal.SIGINT, 8) == 0
    assert unburnt(queue) == [("m0", 0, 0), ("m1", 0, 0)]


def test_the_third_int_ends_at_once_and_gives_back_unburnt(pools: Pools, queue: Path) -> None:
    pool = holding(pools, queue)
    pool.send(signal.SIGINT)
    pool.until(lambda: "draining" in pool.log)
    pool.send(signal.SIGINT)
    pool.until(lambda: pool.log.count("draining") == 2)
    assert pool.process.poll() is None
    assert pool.end(signal.SIGINT, 5) == 0
    assert unburnt(queue) == [("m0", 0, 0), ("m1", 0, 0)]
    assert not list((queue / "pending").iterdir())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT])
def test_a_quick_end_gives_back_unburnt(pools: Pools, queue: Path, number: signal.Signals) -> None:
    """Neither an attempt nor a crash is counted, and the next pool handles all of it."""
    pool = holding(pools, queue, *configured(pools, queue))
    everyone = pool.everyone()
    assert pool.end(number, 8) == 0
    assert unburnt(queue) == [("m0", 0, 0), ("m1", 0, 0)]
    assert not any(one.is_there for one in everyone)
    assert not list((queue / ".pool/leases").iterdir())
    pools.hold.unlink()
    assert pools.start(str(queue), "--until-empty", "--workers", "1", *HOLD).wait() == 0
    assert is_empty(queue)


def test_a_quick_end_waits_for_what_is_about_to_finish(pools: Pools, queue: Path) -> None:
    pool = holding(pools, queue)
    pool.send(signal.SIGTERM)
    pool.until(lambda: pool.status["state"] == "stopping")
    pools.hold.unlink()
    assert pool.wait(5) == 0
    assert is_empty(queue)


def test_a_program_in_hand_is_ended_with_its_children(pools: Pools, queue: Path) -> None:
    drop(queue, "m0", b"x")
    script = 'sleep 1000 & echo $! > "$JOURNAL/program"; wait'
    pool = pools.start(str(queue), "--workers", "1", "--", "sh", "-c", script).ready()
    pool.until(pools.journal)
    everyone = pool.everyone()
    assert int(pools.journal()[0]) in {one.pid for one in everyone}
    assert pool.end(signal.SIGQUIT, 5) == 0
    until(lambda: not any(one.is_there for one in everyone))
    assert unburnt(queue) == [("m0", 0, 0)]


def test_ttin_and_ttou_change_the_number_of_workers(pools: Pools, queue: Path) -> None:
    pool = pools.start(str(queue), "--workers", "2", *HOLD).ready()
    before = pool.pids
    pool.send(signal.SIGTTIN)
    pool.until(lambda: len(pool.pids) == 3)
    assert pool.pids[:2] == before
    pool.send(signal.SIGTTOU)
    pool.until(lambda: len(pool.pids) == 2)
    pool.send(signal.SIGTTOU)
    pool.until(lambda: len(pool.pids) == 1)
    pool.send(signal.SIGTTOU)
    pool.until(lambda: pool.log.count("1 workers wanted") == 2)
    assert pool.status["totals"]["target"] == 1
    assert pool.pids == before[:1]
    assert pool.end() == 0


def test_a_signal_to_the_whole_group_drains_and_nothing_else(pools: Pools, queue: Path) -> None:
    """A terminal and a service manager signal every process: only the master answers."""
    pool = holding(pools, queue)
    for one in pool.everyone():
        if one.pid != pool.process.pid:
            signal_all([one], signal.SIGINT)
            signal_all([one], signal.SIGHUP)
    pool.send(signal.SIGINT)
    pool.until(lambda: pool.status["state"] == "draining")
    assert pool.busy == 2
    pools.hold.unlink()
    assert pool.wait(5) == 0
    assert is_empty(queue)


def test_every_signal_of_the_table_is_tested_here_or_in_reload() -> None:
    tested = {signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU}
    assert set(SIGNALS) == tested


def test_a_second_master_of_the_same_name_is_refused(pools: Pools, queue: Path) -> None:
    pool = pools.start(str(queue), "--workers", "1", *HOLD).ready()
    second = pools.start(str(queue), "--workers", "1", *HOLD)
    assert second.wait() == 1
    assert f"running already as process {pool.process.pid}" in second.log
    assert "Traceback" not in second.log
    third = pools.start(str(queue), "--workers", "1", *HOLD, name="third").ready()
    assert third.end() == 0
    drop(queue, "still", b"x")
    pool.until(lambda: pool.outcome("done") == 1)
    assert pool.end() == 0


def test_a_stale_pid_file_is_taken_over(pools: Pools, queue: Path) -> None:
    """Left by a killed master; and with the pid of a living process that is another one."""
    pool = pools.start(str(queue), "--workers", "1", *HOLD).ready()
    pid_file = pool.board_path.with_name("pid")
    pool.process.kill()
    pool.wait()
    assert pid_file.read_text().split()[0] == str(pool.process.pid)
    second = pools.start(str(queue), "--workers", "1", *HOLD).ready()
    second.process.kill()
    second.wait()
    pid_file.write_text(f"{os.getpid()} 1\n")
    third = pools.start(str(queue), "--workers", "1", *HOLD).ready()
    assert pools.run("status", "--run-dir", str(pools.place / "run"))[0] == 0
    assert third.end() == 0
    assert not pid_file.exists()


def test_a_long_run_directory_works(pools: Pools, queue: Path) -> None:
    """A socket's address holds 108 bytes, and the path of the control socket may be longer."""
    run_dir = pools.place / ("d" * 100) / ("e" * 100)
    pool = pools.start(str(queue), "--workers", "1", *HOLD, run_dir=run_dir).ready()
    assert len(str(pool.board_path.with_name("control"))) > 200
    code, said = pools.run("scale", "queue", "2", "--run-dir", str(run_dir))
    assert code == 0, said
    pool.until(lambda: len(pool.pids) == 2)
    assert pools.run("status", "--run-dir", str(run_dir))[0] == 0
    code, said = pools.run("stop", "--run-dir", str(run_dir))
    assert (code, pool.wait(5)) == (0, 0), said
    assert pools.run("status", "--run-dir", str(run_dir))[0] == 3


def test_drain_and_stop_wait_until_the_pool_is_gone(pools: Pools, queue: Path) -> None:
    run_dir = str(pools.place / "run")
    pool = pools.start(str(queue), "--workers", "1", *HOLD).ready()
    assert pools.run("drain", "--run-dir", run_dir)[0] == 0
    assert pool.wait(1) == 0
    assert pools.run("drain", "--run-dir", run_dir)[0] == 3


def test_the_roles_say_in_their_titles_what_they_are(pools: Pools, queue: Path) -> None:
    pool = holding(pools, queue)
    everyone = [process(pid) for pid in (pool.process.pid, *pool.pids)]

    def titles() -> set[str]:
        return {psutil.Process(one.pid).cmdline()[0] for one in everyone}

    pattern = re.compile(r"orchestrator: worker queue\[[01]\] message=m[01] [1-9]s")
    pool.until(lambda: sum(bool(pattern.fullmatch(title)) for title in titles()) == 2)
    below = {child.cmdline()[0] for child in psutil.Process(pool.process.pid).children()}
    assert "orchestrator: keeper" in below
    assert "orchestrator: master pool" in titles()
    pools.hold.unlink()
    assert pool.end() == 0
    assert not files(queue, "pending")


def test_a_queue_that_cannot_be_used_is_refused_at_the_start(pools: Pools, tmp_path: Path) -> None:
    pool = pools.start(str(tmp_path / "missing" / "queue"), "--workers", "1", *HOLD)
    assert pool.wait() == 1
    assert str(tmp_path / "missing") in pool.log
    assert "Traceback" not in pool.log


def test_a_put_by_name_over_the_command_line_is_handled(pools: Pools, queue: Path) -> None:
    pool = pools.start(str(queue), "--workers", "1", *HOLD).ready()
    assert pools.run("put", str(queue), "--name", "greeting", stdin=b"hello") == (0, "greeting\n")
    pool.until(lambda: pool.outcome("done") == 1)
    assert pools.journal() == ["holds greeting", "handled greeting hello"]
    make_queue(queue).put(b"more")
    pool.until(lambda: pool.outcome("done") == 2)
    assert pool.end() == 0
