"""test_feeder - the process between a queue and its workers: what it wakes, and that it may die at any moment"""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.process.pools import HANDLERS, Pool, Pools, drop, files, is_empty, process, signal_all
from workers.board import Board, Q


def feeders(pool: Pool) -> list[int]:
    """The feeders' processes."""
    assert pool.status
    board = Board.open(pool.board_path)
    found = [board.queues[number].words[Q.FEEDER_PID] for number in board.queue_numbers()]
    return [pid for pid in found if pid]


def started(pools: Pools, queue: Path, *words: str, handler: str = "note", workers: int = 2) -> Pool:
    return pools.start(str(queue), "--handler", f"{HANDLERS}:{handler}", "--workers", str(workers), *words)


def conflicts(pool: Pool) -> int:
    """Lost races of all workers."""
    return sum(worker["conflicts"] for queue in pool.queues.values() for worker in queue["workers"])


def test_each_message_wakes_one_of_eight_waiting_workers(pools: Pools, queue: Path) -> None:
    pool = started(pools, queue, workers=8).ready()
    for number in range(200):
        drop(queue, f"m{number}")
        if number % 20 == 0:
            pool.until(lambda count=number + 1: pool.outcome("done") == count)
    pool.until(lambda: pool.outcome("done") == 200)
    assert conflicts(pool) <= 20  # a feeder that is held up for seconds has the workers scan for themselves
    assert pool.end() == 0


def test_a_dead_feeder_is_replaced_and_no_message_waits_long(pools: Pools, queue: Path) -> None:
    pool = started(pools, queue).ready()
    for number in range(3):
        (before,) = pool.until(lambda: feeders(pool))
        signal_all([process(before)], signal.SIGKILL)
        drop(queue, f"m{number}")
        pool.until(lambda count=number + 1: pool.outcome("done") == count)
        pool.until(lambda gone=before: feeders(pool) not in ([], [gone]))
    assert "feeder of queue queue was ended by SIGKILL" in pool.log
    assert pool.end() == 0


def test_workers_scan_for_themselves_while_the_feeder_hangs(pools: Pools, queue: Path) -> None:
    """As in a filesystem that does not answer: the process is there and shows no sign of life."""
    pool = started(pools, queue).ready()
    (one,) = pool.until(lambda: feeders(pool))
    os.kill(one, signal.SIGSTOP)
    pools.seen.append(process(one))
    for number in range(20):
        drop(queue, f"m{number}")
    pool.until(lambda: pool.outcome("done") == 20)
    pool.until(lambda: "workers scan (feeder silent for " in pool.queues["queue"]["arrivals"])
    os.kill(one, signal.SIGCONT)
    pool.until(lambda: "silent" not in pool.queues["queue"]["arrivals"])
    drop(queue, "again")
    pool.until(lambda: pool.outcome("done") == 21)
    assert pool.end() == 0


def test_what_a_killed_worker_had_read_ahead_is_handled_by_another(pools: Pools, queue: Path) -> None:
    for number in range(2000):
        drop(queue, f"m{number:04}")
    pool = started(pools, queue, "--until-empty", handler="work", workers=3)
    for _ in range(3):
        pool.until(lambda: len(pool.pids) == 3)
        signal_all([process(pool.pids[0])], signal.SIGKILL)
        done = pool.outcome("done")
        pool.until(lambda count=done + 20: pool.outcome("done") >= count)
    assert pool.wait() == 0
    assert is_empty(queue)


def test_a_packet_whose_worker_leaves_is_not_stranded(pools: Pools, queue: Path) -> None:
    """Workers come and go while messages arrive, one at a time: each is handled at once by one that stays."""
    pool = started(pools, queue, workers=4).ready()
    for number in range(30):
        pool.send(signal.SIGTTIN if number % 2 else signal.SIGTTOU)
        drop(queue, f"m{number}")
        pool.until(lambda count=number + 1: pool.outcome("done") == count)
    assert pool.end() == 0


def test_a_feeder_ends_with_its_master(pools: Pools, queue: Path) -> None:
    pool = started(pools, queue).ready()
    found = [process(pid) for pid in pool.until(lambda: feeders(pool))]
    pools.seen += found
    pool.end(signal.SIGKILL)
    pool.until(lambda: not any(one.is_there for one in found))


def test_a_changed_order_gets_another_feeder(pools: Pools, queue: Path) -> None:
    path = pools.place / "pool.toml"
    text = f'[[queue]]\nurl = "{queue}"\nhandler = "{HANDLERS}:note"\n'
    path.write_text(text)
    pool = pools.start("--config", str(path)).ready()
    before = pool.until(lambda: feeders(pool))
    path.write_text(text + 'order = "any"\n')
    pool.send(signal.SIGHUP)
    pool.until(lambda: feeders(pool) not in ([], before))
    drop(queue, "m")
    pool.until(lambda: pool.outcome("done") == 1)
    assert not files(queue, "incoming")
    assert pool.end() == 0
