"""
test_cluster - clusters under every fault at once, seed by seed; and that the simulation finds what is broken on purpose
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.sim import growth
from tests.sim.cluster import Plan, simulate
from tests.sim.mount import MISS, Mount
from workers.errors import MessageExists
from workers.queues.directory import Times
from workers.queues.names import Tokens, check
from workers.queues.spool import Spool
from workers.queues.spool_keep import SpoolKeeper
from workers.queues.spool_put import Producer

ROOT = Path(__file__).resolve().parents[2]
SMALL = Plan(hosts=6, workers=3, messages=120, minutes=2.0, faults=3.0)
SEEDS_MAX = 40  # each break is found in a quarter of them, or in nearly all
NOW_NS = 1_000_000_000


def figures(*arguments: str) -> list[dict[str, Any]]:
    """What the command reports of each seed; fails with what it says of a violation."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.sim", "cluster", "--json", *arguments],
        cwd=ROOT, env=os.environ | {"PYTHONHASHSEED": "0"}, capture_output=True, text=True, timeout=170, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_nothing_is_lost_whatever_befalls_a_cluster() -> None:
    """By the command, as a person would run one of these seeds again. All that can happen must have happened."""
    runs = figures("--seed", "1", "--seeds", "5", "--faults", "4", "--handler", "2")
    runs += figures("--seed", "101", "--seeds", "1", "--faults", "4", "--local")
    sums: Counter[str] = Counter()
    for run in runs:
        for kind in ("crashes", "faults", "ended", "releases", "puts", "served from a cache"):
            sums.update(run[kind])
        sums["handled twice"] += run["handled twice"]
    for kind in (
        "worker crashes", "keeper crashes", "master crashes", "host crashes", "crashes by a message",
        "workers killed at a time limit", "worker stops", "keeper stops", "host stops", "lost mounts", "restarts",
        "clocks set", "server clock set", "server away", "server full", "calls failed", "calls made late",
        "replies lost", "latency spikes", "attributes", "listings", "missing names", "its worker died",
        "its lease was lost", "into errors/", "requeued", "forwarded", "fenced", "handled twice", "puts refused",
        "puts unknown",
    ):  # fmt: skip
        assert sums[kind] > 0, f"{kind} never happened: {sums}"


def test_a_seed_is_a_run() -> None:
    """Every call of it, at the same moment, with the same answer."""
    one, again, other = (simulate(dataclasses.replace(SMALL, seed=seed)) for seed in (5, 5, 6))
    assert {**one, "seconds": 0} == {**again, "seconds": 0}
    assert one["log"] != other["log"]


# ---- what is broken on purpose is found


def loses_its_leftovers(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Spool, "settle_leftovers", lambda self: None)
    patch.setattr(SpoolKeeper, "_release_unlisted", lambda self, owners, kept: None)


def counts_whatever_is_gone_as_done(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Spool, "_was_ours", lambda self, claim: True)


def is_impatient(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Times, "looks", property(lambda self: 2))


def renames_to_a_given_name(patch: pytest.MonkeyPatch) -> None:
    def link(self: Producer, source: str, target: str, name: str) -> bool:
        self._system.rename(source, target)
        return True

    patch.setattr(Producer, "_link", link)


def keeps_the_mark(patch: pytest.MonkeyPatch) -> None:
    """Every message has the one token of its name."""
    patch.setattr(Tokens, "token", lambda self, name: f"{0:018x}{check(name)}")


def never_counts_a_crash(patch: pytest.MonkeyPatch) -> None:
    release = SpoolKeeper._release_one

    def release_one(self: SpoolKeeper, path: str, mark: Any, death: Any, kept: Any) -> bool:
        return release(self, path, mark, dataclasses.replace(death, cause="stopped"), kept)

    patch.setattr(SpoolKeeper, "_release_one", release_one)


def says_that_it_exists_when_unknown(patch: pytest.MonkeyPatch) -> None:
    def is_one_file(self: Producer, source: str, target: str, error: OSError) -> bool:
        raise MessageExists(target)

    patch.setattr(Producer, "_is_one_file", is_one_file)


STOPS: dict[str, Any] = {"rates": {"host stops": 1.0, "worker crashes": 0.1}, "handler_s": 8.0, "messages": 200}
LOSSES: dict[str, Any] = {"losses": 20.0}
MANY_LOSSES: dict[str, Any] = {"losses": 60.0}
BACKLOG: dict[str, Any] = {"messages": 400, "handler_s": 3.0}


@pytest.mark.parametrize(
    ("breaks", "plan"),
    [
        (loses_its_leftovers, LOSSES),
        (says_that_it_exists_when_unknown, MANY_LOSSES),
        (counts_whatever_is_gone_as_done, STOPS),
        (is_impatient, STOPS),
        (renames_to_a_given_name, BACKLOG),
        (never_counts_a_crash, {}),
        (keeps_the_mark, BACKLOG),
    ],
)
def test_what_is_broken_is_found(breaks: Any, plan: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Controls: a simulation that finds nothing in a broken program proves nothing of a whole one."""
    breaks(monkeypatch)
    for seed in range(1, SEEDS_MAX + 1):
        try:
            simulate(dataclasses.replace(SMALL, seed=seed, **plan))
        except AssertionError as error:
            assert f"seed {seed}" in str(error), error  # noqa: PT017 - which seeds find it is not foreseen
            return
    pytest.fail(f"not found in {SEEDS_MAX} seeds")


# ---- what a client keeps


def mount(listing_s: float = 0.0) -> Mount:
    return Mount(Random(1), (3.0, 30.0), listing_s)  # noqa: S311 - repeatable is what it must be


def test_a_name_that_another_host_removed_is_still_there() -> None:
    client = mount()
    client.learn("lstat", ("/q/x",), "attributes", 0, NOW_NS)
    assert client.known("lstat", ("/q/x",), 2 * NOW_NS) == "attributes"
    assert client.known("lstat", ("/q/x",), 99 * NOW_NS) is MISS
    assert client.known("open", ("/q/x", 0), 2 * NOW_NS) is MISS, "an open asks"


def test_a_name_that_was_missing_stays_missing_until_its_directory_is_listed() -> None:
    client = mount()
    client.learn("lstat", ("/q/x",), None, errno.ENOENT, NOW_NS)
    for name, arguments in (("lstat", ("/q/x",)), ("rename", ("/q/x", "/p/x")), ("unlink", ("/q/x",))):
        with pytest.raises(FileNotFoundError):
            client.known(name, arguments, 2 * NOW_NS)
    client.learn("listdir", ("/q",), ["x"], 0, 2 * NOW_NS)
    assert client.known("rename", ("/q/x", "/p/x"), 2 * NOW_NS) is MISS


def test_what_a_host_changes_itself_it_sees() -> None:
    client = mount(listing_s=5.0)
    client.learn("listdir", ("/q",), ["x"], 0, NOW_NS)
    client.learn("lstat", ("/q/x",), "attributes", 0, NOW_NS)
    assert client.known("listdir", ("/q",), 2 * NOW_NS) == ["x"]
    client.learn("rename", ("/q/x", "/p/x"), None, errno.ENOENT, NOW_NS)  # the reply was lost
    assert client.known("listdir", ("/q",), 2 * NOW_NS) is MISS
    assert client.known("lstat", ("/p/x",), 2 * NOW_NS) is MISS


def test_a_look_at_leases_is_a_fresh_listing() -> None:
    client = mount(listing_s=5.0)
    client.learn("listdir", ("/q/.pool/leases",), ["m.1"], 0, NOW_NS)
    assert client.known("listdir", ("/q/.pool/leases",), 2 * NOW_NS) is MISS


# ---- how it grows


def test_a_busy_cluster_is_counted_for_each_message() -> None:
    row = growth.measure(2, 2, is_fed=True, is_busy=True, seconds=20.0)
    assert row.messages > 0
    assert row.per_message("worker") >= 2, "a claim and a done at the least"
    assert row.per_second("keeper") > 0
