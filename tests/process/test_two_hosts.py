"""
test_two_hosts - two pools on one queue under different host names, and pools that were stopped

A host name is all that tells two hosts apart here: pools of different names do not look at
each other's processes, only at leases. These are lost after 6 looks, 0.2 s apart.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.process.pools import (
    HANDLERS,
    LEASE,
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


def hosted(pools: Pools, queue: Path, host: str, handler: str = "hold", *words: str, workers: int = 2) -> Pool:
    """A pool on *host*; its messages are held while the file hold-HOST exists."""
    path = pools.place / f"{host}.toml"
    path.write_text(f'[[queue]]\nurl = "{queue}"\nhandler = "{HANDLERS}:{handler}"\nworkers = {workers}\n{LEASE}')
    hold = {"HOLD": str(pools.place / f"hold-{host}")}
    run_dir = pools.place / f"run-{host}"
    return pools.start("--config", str(path), "--host", host, *words, name=host, run_dir=run_dir, environment=hold)


def test_a_stopped_pool_is_fenced_when_it_goes_on(pools: Pools, quick_queue: Path) -> None:
    """What it had in hand was taken over and is still in hand there: the late settle takes nothing away."""
    hold_alpha, hold_beta = pools.place / "hold-alpha", pools.place / "hold-beta"
    hold_alpha.touch()
    hold_beta.touch()
    for name in ("m0", "m1"):
        drop(quick_queue, name, name.encode())
    alpha = hosted(pools, quick_queue, "alpha").ready()
    alpha.until(lambda: alpha.busy == 2)
    alpha.until(lambda: len(pools.journal()) == 2)
    everyone = [one.pid for one in alpha.everyone()]
    stop_all(pools, *everyone)

    beta = hosted(pools, quick_queue, "beta").ready()
    beta.until(lambda: beta.busy == 2)
    beta.until(lambda: len(pools.journal()) == 4)
    assert {mark.crashes for mark in marks(quick_queue, "pending")} == {1}
    reaped = {"kind": "claim", "reason": "lease_lost", "count": 2}
    beta.until(lambda: beta.queues["queue"]["reaped"][1] == reaped)  # counted when its keeper's round is over
    hold_alpha.unlink()
    for pid in everyone:
        os.kill(pid, signal.SIGCONT)

    alpha.until(lambda: alpha.outcome("fenced") == 2)
    assert alpha.outcome("done") == 0
    assert {mark.name for mark in marks(quick_queue, "pending")} == {"m0", "m1"}
    hold_beta.unlink()
    beta.until(lambda: beta.outcome("done") == 2)
    assert is_empty(quick_queue)
    # And it works again: a fresh owner, a lease of its own.
    hold_beta.touch()
    assert beta.end() == 0
    drop(quick_queue, "after", b"x")
    alpha.until(lambda: alpha.outcome("done") == 1)
    assert alpha.end() == 0
    assert pools.counted()["handled m0 m0"] == pools.counted()["handled m1 m1"] == 2
    assert not list((quick_queue / ".pool/leases").iterdir())


def test_a_stopped_lone_worker_is_fenced_when_it_goes_on(pools: Pools, quick_queue: Path) -> None:
    hold_alone, hold_beta = pools.place / "hold-alone", pools.place / "hold-beta"
    hold_alone.touch()
    hold_beta.touch()
    drop(quick_queue, "m0", b"x")
    log = pools.place / "alone.log"
    with log.open("wb") as stderr:
        alone = subprocess.Popen(
            [sys.executable, "-m", "workers", str(quick_queue), f"{HANDLERS}:hold", "--host", "alone"],
            stdin=subprocess.DEVNULL,
            stderr=stderr,
            cwd=pools.place,
            env=pools.environment(HOLD=str(hold_alone)),
        )
    pools.seen.append(process(alone.pid))
    try:
        until(lambda: pools.journal() == ["holds m0"])
        stop_all(pools, alone.pid)

        beta = hosted(pools, quick_queue, "beta").ready()
        beta.until(lambda: beta.busy == 1)
        hold_alone.unlink()
        os.kill(alone.pid, signal.SIGCONT)

        until(lambda: "fenced" in log.read_text())
        assert [mark.name for mark in marks(quick_queue, "pending")] == ["m0"]
        hold_beta.unlink()
        beta.until(lambda: beta.outcome("done") == 1)
        assert is_empty(quick_queue)
        alone.send_signal(signal.SIGTERM)
        assert alone.wait(30) == 0
        assert beta.end() == 0
        until(lambda: not list((quick_queue / ".pool/leases").iterdir()))
    finally:
        alone.send_signal(signal.SIGCONT)
        alone.kill()
        alone.wait(30)


def test_two_hosts_share_a_queue_and_take_nothing_of_each_other(pools: Pools, quick_queue: Path) -> None:
    """What alpha has in hand for several lease timeouts stays its own, while beta does all the rest."""
    hold = pools.place / "hold-alpha"
    hold.touch()
    put = set(make_queue(quick_queue).put_many([b"x"] * 2, durable=False))
    alpha = hosted(pools, quick_queue, "alpha").ready()
    alpha.until(lambda: alpha.busy == 2)
    beta = hosted(pools, quick_queue, "beta").ready()
    more = set(make_queue(quick_queue).put_many([b"x"] * 200, durable=False))
    beta.until(lambda: beta.outcome("done") == 200)
    # Beta has looked for long enough to lose a lease twice over: its own beat counts the looks.
    leases = quick_queue / ".pool" / "leases"

    def beats(host: str) -> int:
        return max(int(path.name.rpartition(".")[2]) for path in leases.iterdir() if path.name.startswith(f"{host}."))

    start = beats("beta")
    beta.until(lambda: beats("beta") >= start + 13)
    assert alpha.busy == 2
    hold.unlink()
    alpha.until(lambda: alpha.outcome("done") == 2)
    assert pools.counted() == {
        **{f"holds {name}": 1 for name in put | more},
        **{f"handled {name} x": 1 for name in put | more},
    }
    assert alpha.outcome("fenced") == beta.outcome("fenced") == 0
    third = set(make_queue(quick_queue).put_many([b"x"] * 400, durable=False))
    alpha.until(lambda: is_empty(quick_queue))
    assert {line for line in pools.journal() if line.startswith("handled")} == {
        f"handled {name} x" for name in put | more | third
    }
    assert alpha.outcome("done") > 2
    assert beta.outcome("done") > 200
    assert (alpha.end(signal.SIGINT), beta.end(signal.SIGINT)) == (0, 0)


def test_a_host_that_dies_whole_loses_its_claims_after_the_lease(pools: Pools, quick_queue: Path) -> None:
    (pools.place / "hold-alpha").touch()
    put = set(make_queue(quick_queue).put_many([b"x"] * 20, durable=False))
    alpha = hosted(pools, quick_queue, "alpha").ready()
    alpha.until(lambda: len(pools.journal()) == 2)
    everyone = alpha.everyone()
    # As when its power fails: nobody of it can do a last thing. Stopped first, or the keeper would give back.
    stop_all(pools, *(one.pid for one in everyone))
    signal_all(everyone, signal.SIGKILL)
    until(lambda: not any(one.is_there for one in everyone))
    assert len(files(quick_queue, "pending")) == 2

    beta = hosted(pools, quick_queue, "beta", "hold", "--until-empty")
    assert beta.wait() == 0
    assert {line.split()[1] for line in pools.journal() if line.startswith("handled")} == put
    assert "the lease of alpha." in beta.log
    assert is_empty(quick_queue)
    assert not list((quick_queue / "pending").iterdir())
    assert not list((quick_queue / ".pool/leases").iterdir())
