"""test_feed_urgent - of a prioritised source what is more urgent is fed first, however long the backlog before it"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_feed import Bench, Clock, Watch
from workers.ddmq.files import QueueFiles, waiting_key
from workers.queues.base import POLL_S
from workers.queues.ddmq_look import Waiting
from workers.queues.feed import PACKETS, Reader
from workers.queues.feeder import BATCH_MAX, Feeder, Feeding
from workers.queues.scan import Incoming, Scan


class UrgentBench(Bench):
    """As Bench, of the messages of a ddmq queue."""

    def source(self) -> Waiting:
        return Waiting(QueueFiles(str(self.place.parent), self.place.name, self.clock))

    def another_feeder(self) -> Feeder:
        found = Feeding(
            "ddmq:/root/queue", self.source(), self.order, self.board, self.slot,
            self.reader, self.writer, watch=lambda: self.watch, poll_interval_s=POLL_S,
        )  # fmt: skip
        return Feeder(found, self.clock)

    def worker(self) -> Reader:
        return Reader(self.reader, self.words, Scan(self.source(), "fifo"), self.clock)


@pytest.fixture(name="make")
def _make(tmp_path: Path) -> Iterator[Callable[..., UrgentBench]]:
    made: list[UrgentBench] = []
    (tmp_path / "queue").mkdir()

    def make(clock: Clock | None = None, *, is_watched: bool = True, **more: Any) -> UrgentBench:
        clock = clock or Clock()
        made.append(UrgentBench(tmp_path / "queue", clock, order="fifo", **more))
        made[-1].watch = Watch(clock) if is_watched else None
        return made[-1]

    yield make
    for one in made:
        one.feeder._forget_pass()
        os.close(one.reader)
        os.close(one.writer)


def put(one: UrgentBench, priority: int, number: int) -> str:
    name = f"{priority}.{number}.ddmqa"
    (one.place / name).touch()
    if one.watch is not None:
        one.watch.come.append(name)
    return name


def backlog(one: UrgentBench, count: int, priority: int = 999) -> list[str]:
    return [put(one, priority, 1_000_000 + number) for number in range(count)]


def served_until(one: UrgentBench, wanted: str, most: int) -> list[str]:
    """What a worker claims until *wanted*, the feeder going on beside it."""
    worker, served = one.worker(), []
    while len(served) < most:
        one.feeder.step()
        name = worker.next()
        if name is not None and (one.place / name).exists():
            os.unlink(one.place / name)
            served.append(name)
            if name == wanted:
                return served
    raise AssertionError(f"{wanted} was not served among the first {most}")


def test_an_urgent_message_is_served_within_the_packets_already_in_the_pipe(make):
    one = make()
    backlog(one, 10_000)
    one.is_fast()
    one.steps(PACKETS + 4)  # the pipe is full, a packet waits for room
    urgent = put(one, 0, 9_999_999)
    served_until(one, urgent, (PACKETS + 2) * BATCH_MAX)


def test_an_urgent_message_that_no_watch_sees_is_fed_before_the_backlog(make):
    one = make(is_watched=False)
    backlog(one, 10_000)
    one.is_fast()
    one.steps(PACKETS + 4)
    urgent = put(one, 0, 9_999_999)
    one.clock.now_ns += 3 * 10**9  # a pass is listed anew after a second, or ten times what it took
    served_until(one, urgent, (PACKETS + 2) * BATCH_MAX)


def test_an_urgent_message_among_arrivals_that_were_too_many_is_fed_before_the_backlog(make):
    one = make()
    backlog(one, 10_000)
    one.is_fast()
    one.steps(PACKETS + 4)
    urgent = put(one, 0, 9_999_999)
    one.watch.come = [None]
    one.feeder.step()
    one.clock.now_ns += 3 * 10**9
    served_until(one, urgent, (PACKETS + 3) * BATCH_MAX)


def test_all_are_fed_once_in_order_and_those_that_come_meanwhile_where_they_belong(make):
    one = make(workers=1)
    expected = backlog(one, 500)
    one.feeder.step()
    early = [put(one, 5, number) for number in range(2_000_000, 2_000_050)]
    one.steps(2)  # now it is listed
    expected.insert(401, put(one, 999, 10_004_005))
    late = [put(one, 1000, number) for number in range(3_000_000, 3_000_050)]
    worker, served = one.worker(), []
    while len(served) < 601:
        one.feeder.step()
        while (name := worker.next()) is not None:
            os.unlink(one.place / name)  # fed twice it would not be there
            served.append(name)
    assert sorted(served, key=waiting_key) == early + expected + late
    assert [name for name in served if name in set(expected + late)] == expected + late
    assert served.index(early[-1]) < 200


def test_what_is_not_prioritised_is_fed_as_before(tmp_path):
    """Arrivals of a spool wait for the end of the pass."""
    (tmp_path / "incoming").mkdir()
    clock = Clock()
    one = Bench(tmp_path / "incoming", clock, order="fifo")
    one.watch = Watch(clock)
    for number in range(1000):
        (tmp_path / "incoming" / f"{number:06}").touch()
    one.steps(5)
    assert not Incoming.is_prioritised
    (tmp_path / "incoming" / "0").touch()
    one.watch.come.append("0")
    one.steps(5)
    assert one.watch.come == ["0"]
    one.feeder._forget_pass()
    os.close(one.reader)
    os.close(one.writer)


def test_a_worker_without_a_feeder_scans_anew_after_a_second(make):
    one = make(is_watched=False)
    backlog(one, 1000)
    scan = Scan(one.source(), "fifo", now_ns=one.clock.boottime_ns)
    first = scan.next()
    urgent = put(one, 0, 1)
    assert scan.next() not in (first, urgent)
    one.clock.now_ns += 2 * 10**9
    assert scan.next() == urgent
