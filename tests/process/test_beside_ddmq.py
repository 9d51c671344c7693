"""
test_beside_ddmq - many processes on one ddmq queue: ours alone, and the original, from PyPI, beside them

Real processes of both publish, consume and clean at full speed; ours are killed at any moment and started again. Each
figure that is counted is printed.
ORCHESTRATOR_BESIDE=50000 is the full run: so many messages in each test. ORCHESTRATOR_BESIDE_SEED=7 draws
other victims; the moments are the machine's.

What the original does wrong by itself (its known faults, by number) is kept out of the accounts:
    Q1   cannot read its settings                          patched, see beside_ddmq
    Q5   requeues what it acks when that asks for it       it acks by the names of files
    Q8   a message that it requeues has another id         messages are told by their texts
    Q11  its cleaning makes copies of what has expired     it cleans in one test only, where just such are there twice
    Q12  fails when it loses a race, Q13 and when it reads what another one is writing: it begins again
Long because: ours alone, both in turn and both at once are one set of promises, and share its fixtures.

See also: beside_ddmq (the processes), test_ddmq_pools (with a pool), tests/unit/test_ddmq_faults (one by one).
"""

from __future__ import annotations

import json
import os
import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.process.beside import OURS, THEIRS
from tests.process.beside_ddmq import (
    QUEUE,
    Accounts,
    Cast,
    Site,
    claim_all_long_ago,
    clean,
    consume,
    finish,
    original,
    put_all,
    site_on,
    work,
)
from tests.waiting import until

COUNT = int(os.environ.get("ORCHESTRATOR_BESIDE", "600"))
SEED = os.environ.get("ORCHESTRATOR_BESIDE_SEED", "1")
CONSUMERS, CLEANERS = 8, 4
SIDE = 4  # processes of each
TIME_S = 60 + COUNT * 0.02
IN_ORDER = (0, 9, 10, 100, 999, 1000)
EVERYWHERE = pytest.mark.parametrize("site", ["here", "tmpfs", "btrfs", "xfs", "overlay"], indirect=True)
BOTH = pytest.mark.parametrize("first", [OURS, THEIRS])
# The original leaves files open.
ignoring = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::DeprecationWarning"
)


@pytest.fixture(name="site")
def _site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    """A place for a root, here or on a filesystem of its own."""
    with site_on(getattr(request, "param", "here"), tmp_path) as site:
        yield site


@pytest.fixture(name="cast")
def _cast(site: Site) -> Iterator[Cast]:
    """Actors at that place, none of which outlives the test."""
    cast = Cast(site, random.Random(SEED))  # noqa: S311 - to be repeated
    try:
        yield cast
    finally:
        cast.end()


def show(told: Accounts, kills: int, started_s: float) -> None:
    """Print the figures."""
    print(  # noqa: T201
        f"\n{len(told.accepted)} accepted, {len(told.begun)} begun, got {dict(told.got_by)}, {len(told.lost)} lost,"
        f" {told.again} doubles of {len(told.excused)} excused, {len(told.steps.get('forgot', ()))} forgotten,"
        f" {len(told.steps.get('fenced', ()))} fenced, {kills} kills,"
        f" the original failed {dict(told.failed)}, {time.monotonic() - started_s:.1f} s"
    )


def contents(site: Site) -> list[dict[str, Any]]:
    """What the waiting messages hold."""
    return [json.loads((site.queue / name).read_bytes()) for name in site.names()]


# ---- ours alone


@pytest.mark.timeout(2 * TIME_S + 60)
def test_eight_consumers_beside_four_cleaners_settle_each_message_exactly_once(site: Site, cast: Cast) -> None:
    """Each consumer forgets one of fifty, so that it expires: the cleaners have something to do."""
    started_s = time.monotonic()
    put_all(site, COUNT)
    site.begun.touch()
    for number in range(CLEANERS):
        cast.start(f"{OURS}-clean-{number}", clean)
    for number in range(CONSUMERS):
        cast.start(f"{OURS}-{number}", consume, 0.02)
    cast.wait(site.is_empty, TIME_S)
    told = finish(site)
    show(told, 0, started_s)
    assert set(told.accepted) == set(told.got)
    assert told.got.total() == len(told.steps["acked"]) == len(told.accepted) == COUNT
    assert told.taken.total() == COUNT + len(told.steps.get("forgot", ()))
    assert "fenced" not in told.steps
    assert not told.strangers


@pytest.mark.timeout(2 * TIME_S + 60)
@EVERYWHERE
@pytest.mark.parametrize("is_killed", [False, True], ids=["alive", "killed"])
def test_four_cleaners_requeue_each_expired_message_exactly_once(site: Site, cast: Cast, is_killed: bool) -> None:
    """Who is killed leaves a claim that expires: counted twice perhaps, but there once."""
    put_all(site, COUNT)
    before = {one["id"]: one for one in contents(site)}
    claim_all_long_ago(site, COUNT)
    for number in range(CLEANERS):
        cast.start(f"{OURS}-clean-{number}", clean)
    site.begun.touch()
    if is_killed:
        cast.rage(lambda: not site.expired(), TIME_S)
        site.age_all()
        site.broker(OURS).clean(QUEUE, force=True)
    else:
        cast.wait(lambda: not site.expired(), TIME_S)
    after = {one["id"]: one for one in contents(site)}
    counters = Counter(one["requeue_counter"] for one in after.values())
    print(f"\n{len(site.names())} of {COUNT} wait, requeued {dict(counters)} times, {cast.kills} kills")  # noqa: T201
    assert not site.claims()
    assert len(site.names()) == COUNT
    assert after.keys() == before.keys()
    for key, one in after.items():
        assert one["requeue_counter"] == 1 or cast.kills >= one["requeue_counter"] - 1
        name = f"0.{before[key]['queue_number']}.ddmq{key}"
        changed = {"priority": 0, "filename": name, "requeue_counter": one["requeue_counter"]}
        assert one == {**before[key], **changed}
        assert (site.queue / name).exists()


@pytest.mark.timeout(2 * TIME_S + 60)
def test_four_cleaners_remove_what_does_not_ask_to_be_requeued_and_what_was_often_enough(
    site: Site, cast: Cast
) -> None:
    """A third asks for it, a third as often as twice."""
    third = COUNT // 3
    broker = site.broker(OURS)
    for more in ({"requeue": False}, {"requeue": True}, {"requeue": True, "requeue_limit": 2}):
        for number in range(third):
            broker.publish(QUEUE, number, **more)
    waiting = []
    for turn, left in enumerate((3 * third, 2 * third, 2 * third)):
        assert len(broker.consume(QUEUE, COUNT, clean=False)) == left, turn
        site.age_all()
        if not turn:
            site.begun.touch()
            for number in range(CLEANERS):
                cast.start(f"{OURS}-clean-{number}", clean)
        if turn < 2:
            _until_cleaned(site)
            waiting.append(len(site.names()))
    cast.wait(lambda: not site.claims(), TIME_S)
    waiting.append(len(site.names()))
    print(f"\n{3 * third} published; {waiting} waited after each expiry")  # noqa: T201 - the figures
    assert waiting == [2 * third, 2 * third, third]
    assert {one["requeue_limit"] for one in contents(site)} == {None}
    assert {one["requeue_counter"] for one in contents(site)} == {3}
    assert Counter(one["message"] for one in contents(site)) == Counter(range(third))


def _until_cleaned(site: Site) -> None:
    until(lambda: not site.claims(), TIME_S)


# ---- order and bytes


@ignoring
def test_Q4_messages_are_served_by_priority_as_a_number_with_0_first(site: Site) -> None:
    """Both publish, in another order. Their files are called the same, all but that of 0, which theirs lacks (Q3)."""
    published: list[tuple[int, str, int]] = []
    for side in (OURS, THEIRS):
        broker = site.broker(side)
        for priority in random.Random(SEED).sample(IN_ORDER, len(IN_ORDER)):  # noqa: S311 - to be repeated
            name = broker.publish(QUEUE, [side, priority], priority=priority, clean=False).filename
            given = 999 if (side, priority) == (THEIRS, 0) else priority
            assert re.fullmatch(rf"{given}\.[0-9]{{10,17}}\.ddmq[0-9a-f]{{32}}", name)
            published.append((given, side, priority))
    served = [one.message for one in site.broker(OURS).consume(QUEUE, 100)]
    # What has one priority is served as it was published.
    assert served == [[side, priority] for _, side, priority in sorted(published, key=lambda one: one[0])]
    assert [priority for side, priority in served if side == OURS] == list(IN_ORDER)


WRITTEN: list[dict[str, Any]] = [
    {"msg_text": "a text"},
    {"msg_text": None},
    {"msg_text": "č\t\\\n\0 \udce9 \U0001f600"},
    {"msg_text": {"a": [1, 2.5, None, True], "ž": {}}},
    {"msg_text": 17, "priority": 3, "timeout": 40},
    {"msg_text": "again", "requeue": True, "requeue_limit": 2},
    {"msg_text": "again", "requeue_prio": 7, "requeue_counter": 1},
]


@ignoring
@BOTH
def test_each_consumes_and_acks_what_the_other_has_published_which_is_the_same_bytes(site: Site, first: str) -> None:
    second = THEIRS if first == OURS else OURS
    publisher, consumer, twin = site.broker(first), site.broker(second), Site(site.place / "twin", site.place)
    for more in WRITTEN:
        message = publisher.publish(QUEUE, clean=False, **more)
        same = twin.broker(second).publish(QUEUE, clean=False, **more)
        written = (site.queue / message.filename).read_text()
        for key in ("id", "queue_number"):
            written = written.replace(getattr(message, key), getattr(same, key))
        assert written == (twin.queue / same.filename).read_text()

        taken = consumer.consume(QUEUE, clean=False)
        assert re.fullmatch(rf"[0-9]{{10}}\.{re.escape(message.filename)}", taken.filename)
        assert vars(taken) == {**vars(message), "filename": taken.filename}
        assert consumer.ack(QUEUE, taken.filename) == [taken.filename]
        assert site.is_empty()


@ignoring
@BOTH
def test_each_acks_and_nacks_what_the_other_has_consumed(site: Site, first: str) -> None:
    second = THEIRS if first == OURS else OURS
    broker, other = site.broker(first), site.broker(second)
    for number in range(3):
        broker.publish(QUEUE, number, clean=False)
    claimed = [broker.consume(QUEUE, clean=False).filename for _ in range(3)]
    assert other.ack(QUEUE, claimed[:1]) == claimed[:1]
    assert other.nack(QUEUE, claimed[1:2], requeue=True) == claimed[1:2]
    assert other.nack(QUEUE, claimed[2:], requeue=False) == claimed[2:]
    assert [one["message"] for one in contents(site)] == [1]
    assert not site.claims()


@ignoring
def test_settings_files_are_the_same_bytes_and_read_by_the_other(tmp_path: Path) -> None:
    """As made; with a value changed; and after a cleaning, but for its time."""
    seen = {}
    for side in (OURS, THEIRS):
        site = Site(tmp_path / side, tmp_path / "told")
        broker = site.broker(side)
        broker.create_queue(QUEUE)
        stages = [_settings(site)]
        broker.update_settings_file(QUEUE, {"message_timeout": 40, "requeue": False, "priority": 5})
        broker.update_settings_file(package={"requeue_prio": 3, "site": "one: two"})
        stages.append(_settings(site))
        broker.clean(QUEUE, force=True) if side == OURS else _clean_by_theirs(broker)
        stages.append(_settings(site))
        seen[side] = stages
        other = site.broker(THEIRS if side == OURS else OURS)
        assert other.get_config_file() == broker.get_config_file() == {"requeue_prio": 3, "site": "one: two"}
        assert other.get_config_file(QUEUE) == broker.get_config_file(QUEUE)
        assert other.get_config_file(QUEUE)["message_timeout"] == 40
        assert other.list_queues() == broker.list_queues() == [QUEUE]
    assert seen[OURS] == seen[THEIRS]


def _settings(site: Site) -> dict[str, str]:
    found = {str(path.relative_to(site.root)): path for path in site.root.rglob("*") if path.is_file()}
    return {
        name: re.sub(r"cleaned: [1-9][0-9]{9}\n", "cleaned: NOW\n", path.read_text()) for name, path in found.items()
    }


def _clean_by_theirs(broker: Any) -> None:
    broker.get_settings(QUEUE)  # a fresh one that cleans fails (Q15)
    broker.clean(QUEUE, force=True)


# ---- both at once


def start_both(site: Site, cast: Cast, *, is_cleaned_by_theirs: bool) -> None:
    """Four processes of each that publish and consume, two of ours that clean, one of theirs when wished."""
    original()
    site.broker(OURS).create_queue(QUEUE)
    workers = [f"{side}-{number}" for side in (OURS, THEIRS) for number in range(SIDE)]
    for who in workers:
        cast.start(who, work, COUNT // len(workers), is_cleaned_by_theirs or who.startswith(OURS))
    for number in range(2):
        cast.start(f"{OURS}-clean-{number}", clean)
    if is_cleaned_by_theirs:
        cast.start(f"{THEIRS}-clean", clean)
    site.begun.touch()
    cast.rage(lambda: len(os.listdir(site.ready)) == len(workers) and not (site.names() or site.expired()), TIME_S)


@pytest.mark.timeout(2 * TIME_S + 60)
@EVERYWHERE
def test_mixed_load_of_both_libraries_under_kills_gets_each_message_once(site: Site, cast: Cast) -> None:
    """One of ours is killed every 30 ms; twice is got only what a killed one was about to ack."""
    started_s = time.monotonic()
    start_both(site, cast, is_cleaned_by_theirs=False)
    told = finish(site)
    show(told, cast.kills, started_s)
    assert len(told.begun) == COUNT // (2 * SIDE) * 2 * SIDE
    assert not told.lost
    assert not told.strangers
    assert told.doubles <= told.excused
    assert told.again <= cast.kills
    assert not told.steps.get("fenced")
    assert min(told.got_by[side] for side in (OURS, THEIRS)) > 0
    _check_settings(site)


@pytest.mark.timeout(2 * TIME_S + 60)
def test_Q11_beside_an_original_that_cleans_nothing_is_lost_and_only_what_expired_is_there_twice(
    site: Site, cast: Cast
) -> None:
    started_s = time.monotonic()
    start_both(site, cast, is_cleaned_by_theirs=True)
    told = finish(site)
    show(told, cast.kills, started_s)
    assert not told.lost
    assert not told.strangers
    assert told.doubles <= told.excused | told.expired


def _check_settings(site: Site) -> None:
    """Both can read what is there after all the cleaning."""
    assert site.broker(OURS).get_config_file(QUEUE) == site.broker(THEIRS).get_config_file(QUEUE)
    assert len(site.broker(OURS).get_config_file(QUEUE)) == 5
