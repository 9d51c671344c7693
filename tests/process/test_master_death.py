"""
test_master_death - the master killed -9 under load: nothing of it stays, and the next one goes on at once

The lease of these queues lasts a minute, so whatever goes back sooner was given back
because its holder was seen to be dead.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.process.pools import (
    HANDLERS,
    Pool,
    Pools,
    drop,
    files,
    is_empty,
    make_queue,
    marks,
    process,
    signal_all,
    stop_all,
)
from tests.waiting import until
from workers.board import Header

# A shell with a child of its own: both must go. Without HOLD it is done at once.
PROGRAM = """
if [ -e "$HOLD" ]; then sleep 1000 & echo "$$ $!" >> "$JOURNAL/programs"; wait; fi
echo "handled $1" >> "$JOURNAL/handled"
"""
COMMAND = ("--", "sh", "-c", PROGRAM, "sh", "{name}")


def fill(queue: Path, count: int) -> set[str]:
    return set(make_queue(queue).put_many([b"x"] * count, durable=False))


def handled(pools: Pools) -> set[str]:
    return {line.split()[1] for line in pools.journal() if line.startswith("handled ")}


def finish(pools: Pools, queue: Path, *words: str) -> Pool:
    """A new master of the same name empties the queue long before a lease could be lost."""
    pools.hold.unlink(missing_ok=True)
    pool = pools.start(str(queue), "--workers", "4", "--until-empty", "--json", *words)
    assert pool.wait(20) == 0, pool.log
    assert is_empty(queue)
    return pool


@pytest.mark.parametrize("words", [("--handler", f"{HANDLERS}:hold"), COMMAND], ids=["handler", "command"])
def test_nothing_outlives_a_killed_master_and_the_next_one_finishes_the_queue(
    pools: Pools, queue: Path, words: tuple[str, ...]
) -> None:
    put = fill(queue, 40)
    pools.hold.touch()
    pool = pools.start(str(queue), "--workers", "4", *words, listen="127.0.0.1:0").ready()
    pool.until(lambda: len(pools.journal()) == 4)
    everyone = pool.everyone()
    if words is COMMAND:
        programs = [int(pid) for line in pools.journal() for pid in line.split()]
        assert set(programs) <= {one.pid for one in everyone}
    pools.seen += everyone

    pool.process.kill()

    until(lambda: not any(one.is_there for one in everyone))
    assert not files(queue, "pending")  # the keeper gave them back before it left
    assert sorted(mark.crashes for mark in marks(queue, "incoming")) == [0] * 36 + [1] * 4
    finish(pools, queue, *words)
    assert handled(pools) == put


def test_claims_go_back_at_once_when_the_keeper_was_killed_too(pools: Pools, queue: Path) -> None:
    """Nobody is left to give the claims back or to end what the programs started: the next keeper does both."""
    put = fill(queue, 20)
    pools.hold.touch()
    pool = pools.start(str(queue), "--workers", "4", *COMMAND, listen="127.0.0.1:0").ready()
    pool.until(lambda: len(pools.journal()) == 4)
    everyone = pool.everyone()
    pools.seen += everyone
    services = [process(pool.process.pid), pool.service(Header.KEEPER_PID), pool.service(Header.EXPORTER_PID)]
    workers = [process(pid) for pid in pool.pids]

    # Stopped first: the keeper would see its master die, and release, and a master its keeper, and fork another.
    stop_all(pools, *(one.pid for one in services))
    signal_all(services, signal.SIGKILL)

    until(lambda: not any(one.is_there for one in (*services, *workers)))
    assert len(files(queue, "pending")) == 4
    finish(pools, queue, *COMMAND)
    assert handled(pools) == put
    assert not any(one.is_there for one in everyone)


def test_a_killed_keeper_and_a_killed_exporter_are_replaced_and_the_work_goes_on(pools: Pools, queue: Path) -> None:
    pool = pools.start(str(queue), "--workers", "2", "--handler", f"{HANDLERS}:note", listen="127.0.0.1:0").ready()
    workers = pool.pids
    before = [pool.service(Header.KEEPER_PID), pool.service(Header.EXPORTER_PID)]

    signal_all(before, signal.SIGKILL)

    pool.until(
        lambda: all(
            pool.service(which).is_there and pool.service(which) not in before
            for which in (Header.KEEPER_PID, Header.EXPORTER_PID)
        )
    )
    drop(queue, "after", b"x")
    pool.until(lambda: pool.outcome("done") == 1)
    pool.until(lambda: pool.get("/readyz")[0] == 200)
    assert pool.pids == workers
    assert pool.end(signal.SIGINT) == 0
    assert not list((queue / ".pool/leases").iterdir())


def test_a_worker_killed_while_there_is_no_keeper_has_its_message_given_back(pools: Pools, queue: Path) -> None:
    """The order to release is lost with the keeper; the next one sees on the board that the owner is gone."""
    pools.hold.touch()
    drop(queue, "one", b"x")
    pool = pools.start(str(queue), "--workers", "1", "--handler", f"{HANDLERS}:hold").ready()
    pool.until(lambda: pools.journal() == ["holds one"])
    worker = process(pool.pids[0])

    signal_all([pool.service(Header.KEEPER_PID), worker], signal.SIGKILL)

    pool.until(lambda: len(pools.journal()) == 2)
    assert [mark.crashes for mark in marks(queue, "pending")] == [1]
    pools.hold.unlink()
    pool.until(lambda: pool.outcome("done") == 1)
    assert pool.end() == 0


def test_a_worker_that_dies_while_there_is_no_keeper_is_released_by_the_next_one(pools: Pools, queue: Path) -> None:
    """The order waits for the next keeper, which must be told of the queue first."""
    pools.hold.touch()
    drop(queue, "one", b"x")
    pool = pools.start(str(queue), "--workers", "1", "--handler", f"{HANDLERS}:hold").ready()
    pool.until(lambda: pools.journal() == ["holds one"])
    worker, before = process(pool.pids[0]), pool.service(Header.KEEPER_PID)

    signal_all([before], signal.SIGKILL)
    pool.until(lambda: "the keeper was ended by SIGKILL" in pool.log)
    signal_all([worker], signal.SIGKILL)

    pool.until(lambda: len(pools.journal()) == 2)
    pools.hold.unlink()
    pool.until(lambda: pool.outcome("done") == 1)
    assert pool.log.count("the keeper was ended") == 1
    assert "Traceback" not in pool.log
    assert pool.end() == 0
