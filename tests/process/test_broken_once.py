"""What two attempts to break it found, with real pools: each of these failed once. See tests.unit.test_broken_once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.process.pools import HANDLERS, Pools, drop, files, make_queue, marks, process, signal_all
from tests.waiting import until
from workers.board import Header
from workers.system import System


def table(path: Path | str, handler: str, more: str = "") -> str:
    """One [[queue]] with one worker."""
    return f'[[queue]]\nurl = "{path}"\nhandler = "{HANDLERS}:{handler}"\nworkers = 1\n{more}'


def reload(pools: Pools, text: str) -> None:
    """Write the configuration and tell the newest pool."""
    (pools.place / "pool.toml").write_text(text)
    pools.started[-1].send(signal.SIGHUP)


def rounds(pools: Pools, queue: Path, count: int = 5) -> None:
    """Wait until the keepers of *queue* have beaten *count* times more, so they have looked at pending/ too."""

    def number() -> int:
        return max((int(lease.suffix[1:]) for lease in (queue / ".pool/leases").iterdir()), default=0)

    before = number()
    pools.started[-1].until(lambda: number() >= before + count)


# ---- one directory, several names


def test_one_directory_given_twice_is_a_fault_of_the_command_line(pools: Pools, queue: Path) -> None:
    words = ("run", str(queue), str(queue), "--handler", f"{HANDLERS}:note", "--listen", "none")
    code, said = pools.run(*words, "--run-dir", str(pools.place / "run"))
    assert code == 2, said
    assert "same queue" in said


def test_one_directory_under_two_paths_is_refused(pools: Pools, queue: Path) -> None:
    link = pools.place / "link"
    link.symlink_to(queue)
    pool = pools.start(str(queue), str(link), "--workers", "1", "--handler", f"{HANDLERS}:note")
    assert pool.wait() == 1
    assert "is the same directory as queue" in pool.log
    assert not list((queue / ".pool/leases").iterdir())


def test_a_queue_that_a_reload_calls_otherwise_handles_what_is_in_hand_once(pools: Pools, quick_queue: Path) -> None:
    pools.hold.touch()
    drop(quick_queue, "held", b"x")
    file = pools.place / "pool.toml"
    file.write_text(table(quick_queue, "hold", 'name = "old"\n'))
    pool = pools.start("--config", str(file)).ready()
    pool.until(lambda: pools.journal() == ["holds held"])

    reload(pools, table(quick_queue, "hold", 'name = "new"\n'))

    pool.until(lambda: "reloaded" in pool.log)
    rounds(pools, quick_queue)
    assert [mark.crashes for mark in marks(quick_queue, "pending")] == [0]
    pools.hold.unlink()
    pool.until(lambda: "new" in pool.queues and "old" not in pool.queues)
    drop(quick_queue, "after", b"y")
    pool.until(lambda: "handled after y" in pools.journal())
    assert pool.end() == 0
    assert sorted(pools.journal()) == ["handled after y", "handled held x", "holds after", "holds held"]


def test_a_queue_removed_and_added_again_meanwhile_handles_what_is_in_hand_once(
    pools: Pools, quick_queue: Path
) -> None:
    other = pools.place / "other"
    make_queue(other).close()
    pools.hold.touch()
    drop(quick_queue, "held", b"x")
    file, both = pools.place / "pool.toml", table(quick_queue, "hold") + table(other, "note")
    file.write_text(both)
    pool = pools.start("--config", str(file)).ready()
    pool.until(lambda: pools.journal() == ["holds held"])

    reload(pools, table(other, "note"))
    pool.until(lambda: "1 removed" in pool.log)
    reload(pools, both)
    pool.until(lambda: "1 added" in pool.log)
    rounds(pools, quick_queue)

    assert [mark.crashes for mark in marks(quick_queue, "pending")] == [0]
    pools.hold.unlink()
    pool.until(lambda: not files(quick_queue, "pending"))
    drop(quick_queue, "after", b"y")
    pool.until(lambda: "handled after y" in pools.journal())
    assert pool.end() == 0
    assert sorted(pools.journal()) == ["handled after y", "handled held x", "holds after", "holds held"]


def test_a_worker_forwards_to_where_a_queue_is_since_a_reload(pools: Pools, queue: Path) -> None:
    old, new = pools.place / "old", pools.place / "new"
    for path in (old, new):
        make_queue(path).close()
    file = pools.place / "pool.toml"
    first = table(queue, "answer")
    file.write_text(first + table(old, "note", 'name = "next"\n'))
    pool = pools.start("--config", str(file), environment={"NEXT": "next"}).ready()
    reload(pools, first + table(new, "note", 'name = "next"\n'))
    pool.until(lambda: pool.queues.get("next", {}).get("url", "").endswith("/new"))
    pool.until(lambda: "reloaded" in pool.log)
    drop(queue, "one", b"forward")
    pool.until(lambda: len(pools.journal()) == 2)  # said by the one queue, then by the other
    assert not files(old, "incoming")
    assert not files(new, "errors")
    assert pool.end() == 0


# ---- until empty


def test_one_poison_message_and_one_worker_end_in_4_with_the_others_done(pools: Pools, queue: Path) -> None:
    spool = make_queue(queue)
    for body in (b"poison", b"a", b"b"):
        spool.put(body, body.decode())
    words = (str(queue), "--workers", "1", "--until-empty", "--handler", f"{HANDLERS}:die_of_poison")
    assert pools.start(*words).wait() == 4, pools.started[-1].log
    assert pools.counted() == {"poisoned": 3, "a": 1, "b": 1}
    assert [mark.name for mark in marks(queue, "errors")] == ["poison"]


def test_a_refused_queue_beside_a_good_one_is_always_exit_1(pools: Pools, queue: Path) -> None:
    bad = pools.place / "bad"
    make_queue(bad).close()
    (bad / ".pool/format").write_text("[")
    for number, queues in enumerate(((queue, bad), (bad, queue))):
        words = (*map(str, queues), "--workers", "1", "--until-empty", "--handler", f"{HANDLERS}:note")
        pool = pools.start(*words, name=f"pool{number}")
        assert pool.wait() == 1, pool.log
        assert "is refused" in pool.log


# ---- keepers


def test_a_keeper_killed_while_draining_is_replaced_and_nothing_is_left(pools: Pools, queue: Path) -> None:
    pools.hold.touch()
    drop(queue, "held", b"x")
    words = (str(queue), "--workers", "1", "--handler", f"{HANDLERS}:hold")
    pool = pools.start(*words).ready()
    pool.until(lambda: pools.journal() == ["holds held"])
    pool.send(signal.SIGINT)
    pool.until(lambda: pool.status["state"] == "draining")
    before = pool.service(Header.KEEPER_PID)

    signal_all([before], signal.SIGKILL)

    pool.until(lambda: pool.service(Header.KEEPER_PID) != before and pool.service(Header.KEEPER_PID).is_there)
    pool.send(signal.SIGQUIT)  # what is in hand goes back, and nothing is counted
    pool.wait()
    assert [(mark.attempts, mark.crashes, mark.name) for mark in marks(queue, "incoming")] == [(0, 0, "held")]
    assert not files(queue, "pending")
    assert not list((queue / "pending").iterdir())
    assert not list((queue / ".pool/leases").iterdir())


def test_a_keeper_killed_while_the_queue_is_away_waits_for_it_and_makes_none(pools: Pools) -> None:
    """The place of a filesystem that is not mounted is an empty directory: it must never become the queue."""
    parent, away = pools.place / "mount", pools.place / "away"
    parent.mkdir()
    queue = parent / "queue"
    make_queue(queue, is_short=True).close()
    pool = pools.start(str(queue), "--workers", "1", "--handler", f"{HANDLERS}:note").ready()
    before = pool.service(Header.KEEPER_PID)
    os.rename(parent, away)
    queue.mkdir(parents=True)

    signal_all([before], signal.SIGKILL)

    pool.until(lambda: "is refused" in pool.log)
    assert not list(queue.iterdir())
    assert pool.process.poll() is None
    queue.rmdir()
    parent.rmdir()
    os.rename(away, parent)
    drop(queue, "after", b"x")
    pool.until(lambda: pools.journal() == ["'after' 1"])
    assert pool.end() == 0
    assert not list((queue / ".pool/leases").iterdir())


def test_a_lone_worker_whose_keeper_was_killed_ends_with_a_sentence(pools: Pools, quick_queue: Path) -> None:
    said = pools.place / "said"
    with said.open("wb") as stderr:
        worker = subprocess.Popen(
            [sys.executable, "-m", "workers", str(quick_queue), f"{HANDLERS}:note"],
            env=pools.environment(), cwd=pools.place, stderr=stderr,
        )  # fmt: skip
    try:
        drop(quick_queue, "one", b"x")
        until(lambda: pools.journal() == ["'one' 1"])
        children = Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text().split()
        keeper = process(int(children[0]))
        signal_all([keeper], signal.SIGKILL)
        assert worker.wait(20) == 1, said.read_text()
    finally:
        if worker.poll() is None:
            worker.kill()
        worker.wait(30)
    assert "the keeper of" in said.read_text()
    assert "Traceback" not in said.read_text()


# ---- the command line


def test_put_with_its_output_closed_enters_the_message_and_does_not_fail(pools: Pools, queue: Path) -> None:
    command = [*pools.prefix, "-m", "orchestrator", "put", str(queue)]
    ended = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *command],
        input=b"content", stderr=subprocess.PIPE, env=pools.environment(), cwd=pools.place, timeout=30, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert [path.read_bytes() for path in files(queue, "incoming")] == [b"content"]


def test_a_forged_owner_of_no_process_stops_no_pool(pools: Pools, queue: Path) -> None:
    master = f"here.{System().kernel8('here')}.9999999999.1.{'0' * 16}"
    (queue / "pending" / f"{master}.0.9999999999.1.{'0' * 12}").mkdir()
    drop(queue, "one", b"x")
    words = (str(queue), "--workers", "1", "--host", "here", "--handler", f"{HANDLERS}:note")
    pool = pools.start(*words).ready()
    pool.until(lambda: pool.outcome("done") == 1)
    assert not list((queue / "pending").glob("*.9999999999.*"))
    assert "fault of the program" not in pool.log
    assert pool.end() == 0
