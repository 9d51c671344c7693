"""
test_clocks - pools whose wall clock is wrong by a day, and is set while they work

Nobody loses a message, a claim or a lease by it; nothing comes too late, nothing is ended or removed too early, and
what a pool says of itself stays explainable: an age in it is wrong by no more than the clocks are. See faketime (how),
fleet (what runs, and what is counted).

ORCHESTRATOR_MOUNTS=2000 is a long run: so many messages for each protocol.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from tests.mounts.faketime import DAY_S, HOUR_S, Clock, clock
from tests.mounts.fleet import Counts, Fleet, Host, Trouble
from tests.mounts.guests import EXPORT, Guest, guests
from tests.mounts.protocols import DIRQ_SIMPLE, PROTOCOLS, Protocol
from tests.process.pools import HANDLERS, Pool, Pools, drop, files, is_empty, make_queue, metas

COUNT = int(os.environ.get("ORCHESTRATOR_MOUNTS", "0"))
STEPS_S = (DAY_S, -DAY_S, HOUR_S, -HOUR_S, 0)
APART_S = 2 * DAY_S  # at most, of all clocks here
TEST_S = 600.0  # what is newer than that is of this test
SOME_IN_ERRORS = 4  # the exit code
YEARS_S = {"1970": 1000, "2100": 4_110_000_000}


# ---- several pools on one queue


def host(name: str, place: Path, by: Clock) -> Host:
    """One that goes by that clock, and takes the queue for one on a server."""
    return Host(name, place / "disk", by.prefix(place / "disk"), place / f"run-{name}")


def patient(protocol: Protocol) -> Protocol:
    """The same with times that no busy machine takes for those of the dead: nobody dies here."""
    times = protocol.times and {**protocol.times, "lease_timeout_s": 60.0}
    stale = {"stale_after": "60s"} if "stale_after" in protocol.options else {}
    return replace(protocol, times=times, options={**protocol.options, **stale})


def check_undisturbed(fleet: Fleet, counts: Counts) -> None:
    """Nothing was lost, and nothing was taken from a living worker either."""
    counts.check()
    assert counts.happened["leases lost"] == counts.fenced == len(counts.twice) == 0
    assert not [line for line in fleet.log.splitlines() if "has expired" in line or "is broken" in line], fleet.log
    assert not fleet.frightening()


def steps(set_clock: Callable[[int], None], count: int) -> list[Trouble]:
    """Set a clock *count* times, evenly over the test."""
    return [
        Trouble(at=number / (count + 1), do=partial(set_clock, offset_s), name="steps of a clock")
        for number, offset_s in zip(range(1, count + 1), itertools.cycle(STEPS_S), strict=False)
    ]


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=str)
def test_pools_of_wrong_and_stepping_clocks_do_their_work(protocol: Protocol, tmp_path: Path) -> None:
    """One is right, one a day ahead, and one is set about; two days lie between them at times."""
    (tmp_path / "disk").mkdir()
    right = clock(tmp_path / "right")
    ahead = clock(tmp_path / "ahead", DAY_S)
    stepped = clock(tmp_path / "stepped", -DAY_S)
    hosts = [host(name, tmp_path, by) for name, by in (("one", right), ("two", ahead), ("three", stepped))]
    with patient(protocol).fleet(tmp_path, hosts, COUNT or 40) as fleet:
        fleet.start()
        fleet.run(steps(stepped.set, max(len(STEPS_S), COUNT // 50)))
        counts = fleet.counts(hosts[0])
        print(f"\nclocks, {protocol}: {counts}")  # noqa: T201 - the counts
        check_undisturbed(fleet, counts)


@pytest.fixture(name="machine", scope="module")
def _machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """One with a disk and a clock of its own."""
    with guests(tmp_path_factory.mktemp("guests"), clients=0) as site:
        yield site.server


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=str)
def test_two_pools_on_the_disk_of_a_machine_whose_clock_is_set(
    machine: Guest, protocol: Protocol, tmp_path: Path
) -> None:
    """What is written from then on is dated by the new clock, what was written before by the old one."""
    if not COUNT and protocol is not DIRQ_SIMPLE:
        pytest.skip("a long run: ORCHESTRATOR_MOUNTS=200, see the header")
    place = EXPORT / protocol.scheme
    machine.done(f"mkdir {place}")
    machine.set_clock(0)
    hosts = [Host(name, place, machine.prefix, Path("/run") / f"{protocol.scheme}-{name}") for name in ("one", "two")]
    with patient(protocol).fleet(tmp_path, hosts, COUNT or 40) as fleet:
        fleet.start()
        fleet.run(steps(machine.set_clock, max(len(STEPS_S), COUNT // 50)))
        counts = fleet.counts(hosts[0])
        print(f"\nclock of a machine, {protocol}: {counts}")  # noqa: T201 - the counts
        check_undisturbed(fleet, counts)


# ---- one pool, and what it says


@pytest.fixture(name="by")
def _by(tmp_path: Path) -> Clock:
    """The pool's clock, a day ahead."""
    return clock(tmp_path / "clock", DAY_S)


@pytest.fixture(name="clocked")
def _clocked(tmp_path: Path, by: Clock) -> Iterator[Pools]:
    """Starts pools, and other commands, that go by that clock."""
    pools = Pools(tmp_path, prefix=by.prefix())
    try:
        yield pools
    finally:
        pools.end_all()


def check_sane(pool: Pool, offset_s: int) -> None:
    """Whether what *pool* says can be explained by its clock, which is *offset_s* off."""
    now_s = time.time()
    for (name, labels), value in pool.scrape().items():
        what = f"{name}{dict(labels)} {value}"
        if name == "orchestrator_queue_clock_offset_seconds":
            assert abs(value - offset_s) < TEST_S, what
        elif name.endswith("_timestamp_seconds"):
            assert value == 0 or abs(value - now_s) < DAY_S + TEST_S, what
        elif name == "orchestrator_queue_oldest_message_age_seconds":
            assert 0 <= value < APART_S + TEST_S, what
        elif name.endswith("_seconds") or "_seconds_sum" in name:
            assert 0 <= value < TEST_S, what
        else:
            assert value >= 0, what
    pool.until(lambda: pool.status["healthy"])
    assert 0 < pool.status["uptime_s"] < TEST_S
    pool.until(lambda: pool.get("/healthz")[0] == 200)
    pool.until(lambda: pool.get("/readyz")[0] == 200)  # but while a worker that was killed is replaced


def test_a_pool_whose_clock_is_set_while_it_works_ends_nothing_early_and_nothing_late(
    clocked: Pools, by: Clock
) -> None:
    """
    A message is in hand all the time under a limit of an hour, another is killed for its limit of two seconds; one is
    deferred while the clock is set back; what was set aside is not removed, and a drain has its time.
    """
    held, limited = clocked.place / "held", clocked.place / "limited"
    for path in (held, limited):
        make_queue(path).close()
    config = clocked.place / "pool.toml"
    config.write_text(
        '[pool]\nstop_timeout = "1h"\n'
        f'[[queue]]\nurl = "{held}"\nhandler = "{HANDLERS}:hold"\nworkers = 2\ntime_limit = "1h"\n'
        f'keep_errors = "1h"\nkeep_done = "1h"\n'
        f'[[queue]]\nurl = "{limited}"\nhandler = "{HANDLERS}:hold"\nworkers = 1\ntime_limit = "2s"\n'
        'max_attempts = 2\nretry_backoff = "1s"\nkeep_errors = "1h"\n'
    )
    clocked.hold.touch()
    drop(held, "in-hand", b"x")
    drop(limited, "too-slow", b"x")
    (held / "done").mkdir(exist_ok=True)
    (held / "done" / "before").write_bytes(b"x")
    pool = clocked.start("--config", str(config), listen="127.0.0.1:0").ready()
    pool.until(lambda: any("in-hand" in line for line in clocked.journal()))
    for offset_s in (*STEPS_S, -DAY_S):
        by.set(offset_s)
        assert clocked.run("put", str(held), "--delay", "3600")[0] == 0  # under that clock
        check_sane(pool, offset_s)
    pool.until(lambda: metas(limited), 30)
    assert metas(limited)["too-slow"]["attempts"] == 2
    by.set(DAY_S)
    code, text = clocked.run("ls", str(held), "--json")
    assert code == 0
    assert len(files(held, "deferred")) == len(STEPS_S) + 1, text
    assert clocked.run("status", "--run-dir", str(clocked.place / "run"))[0] == 0
    check_sane(pool, DAY_S)
    pool.send(signal.SIGINT)  # drain
    pool.until(lambda: pool.status["state"] == "draining")
    for offset_s in (-DAY_S, DAY_S):
        by.set(offset_s)
        assert clocked.run("status", "--run-dir", str(clocked.place / "run"))[0] == 0
    clocked.hold.unlink()
    assert pool.wait() == 0, pool.log
    assert clocked.counted()["holds in-hand"] == clocked.counted()["handled in-hand x"] == 1
    assert len(files(held, "done")) == 2
    assert metas(limited)


def test_until_empty_ends_though_the_clock_is_set_back_while_a_retry_waits(clocked: Pools, by: Clock) -> None:
    queue = clocked.place / "queue"
    make_queue(queue).close()
    for number in range(4):
        drop(queue, f"m{number}", b"retry" if number else b"once")
    pool = clocked.start(
        str(queue), "--handler", f"{HANDLERS}:answer", "--workers", "2", "--max-attempts", "3", "--retry-backoff", "1s",
        "--until-empty",
    )  # fmt: skip
    for count, offset_s in enumerate(STEPS_S, 4):
        pool.until(lambda count=count: len(clocked.journal()) >= count)  # type: ignore[misc]
        by.set(offset_s)
    assert pool.wait(60) == SOME_IN_ERRORS, pool.log
    assert is_empty(queue)
    assert sorted(metas(queue)) == ["m1", "m2", "m3"]
    assert len(clocked.journal()) == 1 + 3 * 3


@pytest.mark.parametrize("at_s", YEARS_S.values(), ids=YEARS_S)
def test_a_pool_of_a_clock_of_another_century_handles_files_of_any_time(clocked: Pools, by: Clock, at_s: int) -> None:
    queue = clocked.place / "queue"
    make_queue(queue).close()
    by.set(at_s - int(time.time()))
    times_s = (-(10**9), 0, 10**9, 2**31, 2**32 + 10**6, 9 * 10**9)
    for number, mtime_s in enumerate(times_s):
        drop(queue, f"m{number}", b"x")
        os.utime(queue / "incoming" / f"m{number}", (mtime_s, mtime_s))
    assert clocked.run("put", str(queue), "--delay", "1")[0] == 0
    code, text = clocked.run("ls", str(queue), "--json")
    assert code == 0
    assert len(json.loads(text)) == len(times_s) + 1
    assert clocked.run("show", str(queue), "m0")[0] == 0
    pool = clocked.start(str(queue), "--handler", f"{HANDLERS}:work", "--workers", "1", listen="127.0.0.1:0").ready()
    pool.until(lambda: len(clocked.journal()) == len(times_s) + 1)
    for (name, labels), value in pool.scrape().items():
        assert value >= 0 or name.endswith("clock_offset_seconds"), (name, labels, value)
    assert pool.status["uptime_s"] < TEST_S
    assert pool.end() == 0
    assert is_empty(queue)
    assert set(clocked.counted().values()) == {1}
