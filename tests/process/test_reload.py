"""test_reload - SIGHUP: what was added starts, what was removed drains, the rest is left alone"""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.process.pools import HANDLERS, Pools, drop, free_address, is_empty, make_queue


def text(*queues: tuple[Path, str, int], listen: str) -> str:
    """A configuration: path, handler and number of workers of each queue."""
    tables = "".join(
        f'[[queue]]\nurl = "{path}"\nhandler = "{HANDLERS}:{handler}"\nworkers = {workers}\n'
        for path, handler, workers in queues
    )
    return f'[metrics]\nlisten = "{listen}"\n{tables}'


def test_reload_starts_drains_replaces_and_leaves_alone(pools: Pools) -> None:
    one, two, three, four = (pools.place / name for name in ("one", "two", "three", "four"))
    for path in (one, two, three, four):
        make_queue(path).close()
    file, address = pools.place / "pool.toml", free_address()
    file.write_text(text((one, "hold", 2), (two, "hold", 1), (three, "note", 2), listen=address))
    pool = pools.start("--config", str(file), listen=None).ready()
    pids = {name: [worker["pid"] for worker in queue["workers"]] for name, queue in pool.queues.items()}
    pools.hold.touch()
    drop(two, "held", b"x")
    pool.until(lambda: pools.journal() == ["holds held"])

    file.write_text(text((one, "hold", 2), (three, "hold", 3), (four, "note", 1), listen=address))
    pool.send(signal.SIGHUP)

    pool.until(lambda: "four" in pool.queues and pool.queues["four"]["state"] == "ready")
    drop(four, "new", b"x")
    pool.until(lambda: [worker["outcomes"]["done"] for worker in pool.queues["four"]["workers"]] == [1])
    pool.until(lambda: len([worker for worker in pool.queues["three"]["workers"] if worker["pid"]]) == 3)
    pool.until(lambda: not {worker["pid"] for worker in pool.queues["three"]["workers"]} & set(pids["three"]))
    assert [worker["pid"] for worker in pool.queues["one"]["workers"]] == pids["one"]
    # What is in hand in the removed queue is finished first.
    assert "two" in pool.queues
    pools.hold.unlink()
    pool.until(lambda: "two" not in pool.queues)
    assert is_empty(two)
    assert "handled held x" in pools.journal()
    drop(three, "changed", b"x")
    pool.until(lambda: "handled changed x" in pools.journal())
    assert pool.scrape()["orchestrator_config_last_reload_successful", ()] == 1
    assert "reloaded: 1 added, 1 removed, 1 changed" in pool.log
    assert pool.end(signal.SIGINT) == 0


def test_a_bad_file_is_logged_and_the_old_configuration_stays(pools: Pools, queue: Path) -> None:
    file, address = pools.place / "pool.toml", free_address()
    good = text((queue, "note", 2), listen=address)
    file.write_text(good)
    pool = pools.start("--config", str(file), listen=None).ready()
    before = pool.pids

    file.write_text(good.replace("workers = 2", "wrokers = 3\nmax_attempts = 0"))
    pool.send(signal.SIGHUP)

    pool.until(lambda: "is not reloaded" in pool.log)
    assert "wrokers" in pool.log
    assert "workers" in pool.log
    assert "max_attempts" in pool.log
    assert pool.scrape()["orchestrator_config_last_reload_successful", ()] == 0
    assert pool.pids == before
    drop(queue, "goes on", b"x")
    pool.until(lambda: pool.outcome("done") == 1)

    file.write_text(good.replace("workers = 2", "workers = 3"))
    pool.send(signal.SIGHUP)
    pool.until(lambda: len(pool.pids) == 3)
    pool.until(lambda: pool.scrape()["orchestrator_config_last_reload_successful", ()] == 1)
    assert pool.end() == 0


def test_a_file_that_became_a_fifo_is_refused_and_holds_up_nobody(pools: Pools, queue: Path) -> None:
    file = pools.place / "pool.toml"
    good = text((queue, "note", 1), listen="none")
    file.write_text(good)
    pool = pools.start("--config", str(file), listen=None).ready()
    file.unlink()
    os.mkfifo(file)
    pool.send(signal.SIGHUP)
    pool.until(lambda: "is not reloaded" in pool.log)
    assert "pool.toml: is no regular file" in pool.log
    drop(queue, "goes on", b"x")
    pool.until(lambda: pool.outcome("done") == 1)
    assert pool.end() == 0


def test_a_pool_that_is_ending_takes_no_queue_more(pools: Pools, queue: Path) -> None:
    other = pools.place / "other"
    make_queue(other).close()
    file = pools.place / "pool.toml"
    file.write_text(text((queue, "hold", 1), listen="none"))
    pools.hold.touch()
    pool = pools.start("--config", str(file), listen=None).ready()
    drop(queue, "held", b"x")
    pool.until(lambda: pools.journal() == ["holds held"])
    pool.send(signal.SIGINT)
    pool.until(lambda: pool.status["state"] == "draining")
    file.write_text(text((queue, "hold", 1), (other, "note", 1), listen="none"))
    pool.send(signal.SIGHUP)
    pool.until(lambda: "not reloaded: the pool is ending" in pool.log)
    pools.hold.unlink()
    assert pool.wait() == 0
    assert "other" not in pool.log


def test_a_queue_removed_and_added_again_keeps_its_counters(pools: Pools, queue: Path) -> None:
    other = pools.place / "other"
    make_queue(other).close()
    file, address = pools.place / "pool.toml", free_address()
    both = text((queue, "note", 1), (other, "note", 1), listen=address)
    file.write_text(both)
    pool = pools.start("--config", str(file), listen=None).ready()
    drop(queue, "first", b"x")
    pool.until(lambda: pool.outcome("done") == 1)
    file.write_text(text((other, "note", 1), listen=address))
    pool.send(signal.SIGHUP)
    pool.until(lambda: "queue" not in pool.queues)
    file.write_text(both)
    pool.send(signal.SIGHUP)
    pool.until(lambda: "queue" in pool.queues)
    drop(queue, "second", b"x")
    pool.until(lambda: pool.outcome("done") == 2)
    assert pool.end() == 0


def test_a_reload_reads_the_directory_of_fragments_anew(pools: Pools, queue: Path) -> None:
    other = pools.place / "other"
    make_queue(other).close()
    file, conf = pools.place / "pool.toml", pools.place / "conf.d"
    conf.mkdir()
    file.write_text(text((queue, "note", 1), listen="none"))
    pool = pools.start("--config", str(file), "--config", str(conf), listen=None).ready()

    (conf / "10-other.toml").write_text(f'[[queue]]\nurl = "{other}"\nhandler = "{HANDLERS}:note"\nworkers = 1\n')
    (conf / "20-more.toml").write_text(f'[[queue]]\nname = "{queue.name}"\nworkers = 2\n')
    pool.send(signal.SIGHUP)
    pool.until(lambda: len(pool.pids) == 3)
    drop(other, "new", b"x")
    pool.until(lambda: pool.outcome("done") == 1)

    # A fragment that is refused changes nothing, and is named with its line.
    (conf / "20-more.toml").write_text(f'[[queue]]\nname = "{queue.name}"\nworkers = 0\n')
    pool.send(signal.SIGHUP)
    pool.until(lambda: "20-more.toml:3: [[queue]] 1 workers: must be at least 1" in pool.log)
    assert pool.queues[queue.name]["target"] == 2
    pool.until(lambda: len(pool.pids) == 3)  # its first worker is still being replaced, for the reload before

    for fragment in conf.iterdir():
        fragment.unlink()
    pool.send(signal.SIGHUP)
    pool.until(lambda: len(pool.pids) == 1)
    assert pool.end() == 0
