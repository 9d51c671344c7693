"""
test_storm - one worker killed -9 again and again while the queue drains

ORCHESTRATOR_STORM=20000 is the full run: so many messages, a kill every 200 ms.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tests.process.pools import HANDLERS, Pools, Series, files, free_address, is_empty, make_queue, marks
from tests.waiting import until

COUNT = int(os.environ.get("ORCHESTRATOR_STORM", "2000"))
KILL_S = 0.2 if COUNT > 2000 else 0.1
SCRAPE_S = 0.3
COUNTED = ("_total", "_bucket", "_count", "_sum")


def test_a_storm_of_kills_loses_nothing(pools: Pools, queue: Path) -> None:
    """
    8 workers, one of them killed every now and then: all handled, twice at most once a kill; counters only rise.
    """
    spool = make_queue(queue)
    put = [name for _ in range(0, COUNT, 1000) for name in spool.put_many([b"x"] * min(COUNT, 1000), durable=False)]
    pool = pools.start(
        str(queue), "--workers", "8", "--handler", f"{HANDLERS}:work", name="storm", listen=free_address()
    )
    dice = random.Random(1)  # noqa: S311 - to be repeated
    kills = scrapes = 0
    last: Series = {}

    def every(seconds: float, do: Callable[[], None]) -> Callable[[], None]:
        due_s = time.monotonic() + seconds

        def look() -> None:
            nonlocal due_s
            if time.monotonic() >= due_s:
                due_s += seconds
                do()

        return look

    def kill() -> None:
        nonlocal kills
        if pids := pool.pids:
            with suppress(ProcessLookupError):
                os.kill(dice.choice(pids), signal.SIGKILL)
                kills += 1

    def scrape() -> None:
        nonlocal scrapes, last
        scrapes += 1
        now = pool.scrape()
        fell = {
            key: (value, now.get(key))
            for key, value in last.items()
            if key[0].endswith(COUNTED) and not now.get(key, -1) >= value
        }
        assert not fell, fell
        last = now

    pool.until(lambda: pool.busy)
    started_s = time.monotonic()
    tasks = (every(KILL_S, kill), every(SCRAPE_S, scrape))

    def is_over() -> bool:
        for task in tasks:
            task()
        return is_empty(queue)

    pool.until(is_over, 150)
    took_s = time.monotonic() - started_s
    pool.until(lambda: not pool.busy and pool.queues["queue"]["depth"]["waiting"] == 0)
    scrape()
    assert pool.end(signal.SIGINT) == 0

    counted = pools.counted()
    twice = {name: times for name, times in counted.items() if times > 1}
    rejected = marks(queue, "errors")
    settled = sum(value for (name, _), value in last.items() if name == "orchestrator_worker_messages_total")
    print(  # noqa: T201 - the figures of the full run
        f"{COUNT} messages in {took_s:.1f} s: {len(counted)} handled, {len(twice)} of them twice"
        f" ({sum(twice.values()) - len(twice)} more calls), {kills} kills"
        f" ({pool.log.count(' in hand')} with a message in hand), {scrapes} scrapes,"
        f" {len(rejected)} in errors/, {len(files(queue, 'pending'))} in pending/, worker_messages_total {settled:.0f}"
    )
    assert {mark.name for mark in rejected} <= set(put)
    assert all(mark.crashes >= 3 for mark in rejected)
    assert set(counted) | {mark.name for mark in rejected} == set(put)
    assert sum(counted.values()) - len(counted) <= kills
    assert not files(queue, "pending")
    assert not list((queue / "pending").iterdir())
    assert COUNT - kills - len(rejected) <= settled <= COUNT - len(rejected)
    until(lambda: not list((queue / ".pool/leases").iterdir()))
