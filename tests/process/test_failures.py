"""test_failures - handlers that raise or kill their worker, two files of one name, and code that cannot start"""

from __future__ import annotations

import signal
import socket
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.process.pools import HANDLERS, Pools, drop, files, is_empty, make_queue, marks, metas
from tests.waiting import until


def test_a_failing_message_is_retried_with_backoff_then_kept_with_its_traceback(pools: Pools, queue: Path) -> None:
    drop(queue, "order.csv", b"1")
    words = ("--handler", f"{HANDLERS}:fail", "--max-attempts", "2", "--retry-backoff", "1s", "--host", "alpha")
    pool = pools.start(str(queue), "--workers", "2", "--until-empty", "--json", *words)

    pool.until(lambda: [mark.attempts for mark in marks(queue, "deferred")] == [1])
    assert pool.wait() == 4

    assert pools.journal() in (["1 order.csv", "2 order.csv"], ["2 order.csv", "1 order.csv"])
    assert [path.read_bytes() for path in files(queue, "errors")] == [b"1"]
    meta = metas(queue)["order.csv"]
    assert meta["attempts"] == 2
    assert meta["crashes"] == 0
    assert meta["host"] == "alpha"
    assert meta["worker"] in (0, 1)
    assert meta["enqueued_at"] <= meta["claimed_at"] <= meta["rejected_at"]
    assert "LookupError: no such customer in order.csv" in meta["traceback"]
    assert pool.summary["outcomes"]["retried"] == pool.summary["outcomes"]["rejected"] == 1


def test_a_failing_program_is_kept_with_what_it_wrote(pools: Pools, queue: Path) -> None:
    drop(queue, "order.csv", b"1")
    pool = pools.start(
        str(queue), "--workers", "1", "--until-empty", "--max-attempts", "1",
        "--", "sh", "-c", "echo seen; echo no such customer >&2; exit 3",
    )  # fmt: skip
    assert pool.wait() == 4
    meta = metas(queue)["order.csv"]
    assert (meta["exit_code"], meta["stdout"], meta["stderr"]) == (3, "seen\n", "no such customer\n")


def test_a_message_that_kills_its_worker_is_alone_in_errors_after_three_crashes(pools: Pools, queue: Path) -> None:
    for number in range(60):
        drop(queue, f"{number:02}", b"poison" if number == 7 else b"good")
    pool = pools.start(
        str(queue), "--workers", "3", "--until-empty", "--json", "--handler", f"{HANDLERS}:die_of_poison"
    )

    assert pool.wait() == 4

    counted = pools.counted()
    assert counted.pop("poisoned") == 3
    assert counted == {f"{number:02}": 1 for number in range(60) if number != 7}
    assert [(mark.name, mark.crashes) for mark in marks(queue, "errors")] == [("07", 3)]
    assert metas(queue)["07"]["crashes"] == 3
    assert is_empty(queue)
    assert sum(worker["exits"]["error"] for worker in pool.summary["workers"]) == 3


def test_a_second_file_of_the_same_name_is_handled_too(pools: Pools, queue: Path) -> None:
    """The second arrives while the first is in hand, a third when both are done."""
    pools.hold.touch()
    pool = pools.start(str(queue), "--workers", "2", "--handler", f"{HANDLERS}:hold").ready()
    drop(queue, "report.csv", b"first")
    pool.until(lambda: pool.busy == 1)
    drop(queue, "report.csv", b"second")
    pool.until(lambda: pool.busy == 2)
    pools.hold.unlink()
    pool.until(lambda: pool.outcome("done") == 2)
    drop(queue, "report.csv", b"third")
    pool.until(lambda: pool.outcome("done") == 3)
    assert {line for line in pools.journal() if line.startswith("handled")} == {
        f"handled report.csv {which}" for which in ("first", "second", "third")
    }
    assert pool.end() == 0


def test_two_failing_files_of_one_name_are_both_kept(pools: Pools, queue: Path) -> None:
    pools.hold.touch()
    words = ("--handler", f"{HANDLERS}:hold_and_fail", "--max-attempts", "2", "--retry-backoff", "0s")
    pool = pools.start(str(queue), "--workers", "2", *words).ready()
    drop(queue, "report.csv", b"first")
    pool.until(lambda: pool.busy == 1)
    drop(queue, "report.csv", b"second")
    pool.until(lambda: pool.busy == 2)
    pools.hold.unlink()
    pool.until(lambda: pool.outcome("rejected") == 2)
    drop(queue, "report.csv", b"third")
    pool.until(lambda: pool.outcome("rejected") == 3)
    assert {path.read_bytes() for path in files(queue, "errors")} == {b"first", b"second", b"third"}
    assert [mark.name for mark in marks(queue, "errors")] == ["report.csv"] * 3
    assert pool.end() == 0
    assert is_empty(queue)


def test_code_that_cannot_start_backs_off_and_burns_no_message(pools: Pools, queue: Path) -> None:
    """A broken deployment: /readyz says so, the queue stays as it is, and mended code is taken up without a restart."""
    names = make_queue(queue).put_many([b"x"] * 10)
    pool = pools.start(str(queue), "--workers", "2", "--handler", "shop:handle", listen="127.0.0.1:0")

    pool.until(lambda: any(queue["backed_off"] for queue in pool.queues.values()))
    pool.until(lambda: pool.get("/readyz")[0] == 503)
    status, text = pool.get("/readyz")
    assert status == 503
    assert "backed off" in text
    assert pool.get("/healthz")[0] == 200
    assert "there is no module shop" in pool.log
    assert [path.name for path in files(queue, "incoming")] == sorted(names)

    (pool.place / "shop.py").write_text("def handle(message):\n    return None\n")
    pool.until(lambda: pool.outcome("done") == 10)
    pool.until(lambda: pool.get("/readyz")[0] == 200)
    assert pool.end() == 0


@pytest.mark.parametrize("words", [("--handler", "shop:handle"), ("--", "no-such-program", "{path}")], ids=str)
def test_until_empty_gives_up_on_code_that_cannot_start(pools: Pools, queue: Path, words: Sequence[str]) -> None:
    drop(queue, "one", b"x")
    pool = pools.start(str(queue), "--workers", "2", "--until-empty", *words)
    assert pool.wait() == 1
    assert "workers die before they finish a message" in pool.log
    assert [path.name for path in files(queue, "incoming")] == ["one"]


def test_until_empty_ends_well_when_all_is_done(pools: Pools, queue: Path) -> None:
    make_queue(queue).put_many([b"x"] * 20)
    pool = pools.start(str(queue), "--workers", "2", "--until-empty", "--json", "--handler", f"{HANDLERS}:answer")
    assert pool.wait() == 0
    assert pool.summary["messages"] == pool.summary["outcomes"]["done"] == 20
    assert is_empty(queue)


def test_until_empty_waits_for_a_retry_and_says_that_a_message_was_rejected(pools: Pools, queue: Path) -> None:
    make_queue(queue).put_many([b"retry", b"reject", b"x"])
    words = ("--max-attempts", "2", "--handler", f"{HANDLERS}:answer")
    pool = pools.start(str(queue), "--workers", "2", "--until-empty", "--json", *words)
    assert pool.wait() == 4
    outcomes = pool.summary["outcomes"]
    assert (outcomes["done"], outcomes["retried"], outcomes["rejected"]) == (1, 1, 2)


def test_until_empty_names_a_paused_queue(pools: Pools, queue: Path) -> None:
    drop(queue, "one", b"x")
    assert pools.run("pause", str(queue))[0] == 0
    pool = pools.start(str(queue), "--workers", "2", "--until-empty", "--handler", f"{HANDLERS}:answer")
    assert pool.wait() == 1
    assert "is paused and not empty" in pool.log
    assert pools.run("resume", str(queue))[0] == 0
    again = pools.start(str(queue), "--workers", "2", "--until-empty", "--handler", f"{HANDLERS}:answer")
    assert again.wait() == 0


def test_a_taken_default_port_costs_a_warning_and_a_port_asked_for_is_an_error(pools: Pools, queue: Path) -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)

        def is_taken() -> bool:
            try:
                listener.bind(("127.0.0.1", 9464))
            except OSError:  # somebody else's, who may leave it any moment
                return False
            listener.listen()
            return True

        until(is_taken, 60)
        words = (str(queue), "--workers", "1", "--handler", f"{HANDLERS}:answer")
        pool = pools.start(*words, listen=None).ready()
        assert "127.0.0.1:9464 is taken" in pool.log
        assert not pool.status["listen"].endswith(":9464")
        assert pool.status["listen"] in pool.log
        pool.until(lambda: pool.get("/healthz")[0] == 200)
        refused = pools.start(*words, name="second", listen="127.0.0.1:9464")
        assert refused.wait() == 1
        assert "127.0.0.1:9464" in refused.log
        assert "Traceback" not in refused.log
        assert pool.end(signal.SIGINT) == 0
