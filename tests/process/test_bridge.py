"""test_bridge - `orchestrator bridge` and the key forward: from one queue into another, at least once each"""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path

import pytest

from tests.process.pools import Pool, Pools, drop, make_queue
from workers import open_queue
from workers.errors import QueueUnavailable
from workers.queues.base import Queue, Settings

COUNT = 1000


def bodies(queue: Queue) -> Counter[bytes]:
    """What waits there."""
    return Counter(Path(line.path).read_bytes() for line in queue.list("waiting"))


def test_all_messages_arrive_once_in_their_order_and_the_rate_is_said(pools: Pools) -> None:
    with open_queue(f"dirq-simple:{pools.place}/from", create=True) as source:
        source.put_many([str(number).encode() for number in range(50)])
        bridge = pools.start(source.url, "to", "--until-empty", command="bridge")
        assert bridge.wait() == 0, bridge.log
        assert source.depth().waiting == 0
    assert "50 messages moved in" in bridge.log
    with open_queue(str(bridge.place / "to"), consume=True) as target:
        found = [claim for _ in range(50) if (claim := target.claim()) is not None and target.done(claim) is None]
        assert len(found) == 50
        assert [claim.name for claim in found] == sorted(claim.name for claim in found)


def test_a_bridge_that_is_killed_again_and_again_loses_nothing(pools: Pools) -> None:
    with open_queue(f"ddmq:{pools.place}/root/from", create=True) as source:
        source.put_many([str(number).encode() for number in range(COUNT)], durable=False)
        target, kills = pools.place / "to", 0
        while True:
            bridge = pools.start(source.url, str(target), "--until-empty", "--workers", "2", command="bridge")
            wanted = sum(open_depth(target)) + COUNT // 8

            def is_time(wanted: int = wanted, bridge: Pool = bridge) -> bool:
                return wanted <= sum(open_depth(target)) < COUNT or bridge.process.poll() is not None

            bridge.until(is_time)
            if bridge.process.poll() is not None:
                break
            bridge.send(signal.SIGKILL)
            bridge.wait()
            kills += 1
        assert bridge.wait() == 0
        assert kills >= 3
    with open_queue(str(target)) as arrived:
        found = bodies(arrived)
    assert set(found) == {str(number).encode() for number in range(COUNT)}
    assert found.total() - COUNT <= 2 * kills


def open_depth(path: Path) -> tuple[int, int]:
    """What waits and is claimed in the spool at *path*, zeros where there is none yet."""
    if not (path / "incoming").is_dir():
        return 0, 0
    try:
        with open_queue(str(path)) as queue:
            depth = queue.depth()
    except QueueUnavailable:  # it is being made at this moment
        return 0, 0
    return depth.waiting, depth.claimed


def test_what_the_target_refuses_for_good_ends_in_errors_and_the_rest_goes_on(pools: Pools) -> None:
    source = pools.place / "from"
    with make_queue(source) as queue:
        for name, body in (("a", b"\xff is no text"), ("b", b"text")):
            drop(source, name, body)
        bridge = pools.start(
            str(source), f"dirq:{pools.place}/to?schema=body:string", "--until-empty", "--max-attempts", "1",
            "--json", command="bridge",
        )  # fmt: skip
        assert bridge.wait() == 4, bridge.log
        assert bridge.summary["outcomes"]["forwarded"] == 1
        assert [line.name for line in queue.list("errors")] == ["a"]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("q", "q"), "are one queue"),
        (("./q", "./link"), "are one queue"),
        (("./nothing", "./q"), "no queue at"),
        (("null:", "./q"), "nothing can be taken out"),
        (("./q", "amqp:x"), "unknown scheme amqp:"),
        (("./q", "./no/such/parent"), "parent"),
    ],
)
def test_a_bridge_that_cannot_be_is_refused_before_anything_is_moved(
    pools: Pools, words: tuple[str, str], text: str
) -> None:
    with make_queue(pools.place / "q"):
        os.symlink("q", pools.place / "link")
        code, said = pools.run("bridge", *words)
    assert code in (1, 2)
    assert text in said
    assert "Traceback" not in said


def test_forward_in_a_configuration_hands_on_to_a_queue_by_its_name_and_a_drain_ends_it(pools: Pools) -> None:
    file = pools.place / "pool.toml"
    file.write_text(
        '[[queue]]\nurl = "from"\nforward = "second"\n[[queue]]\nname = "second"\nurl = "to"\nforward = "./third"\n'
    )
    with open_queue(str(pools.place / "third"), settings=Settings(create=True)) as last:
        pool = pools.start("--config", str(file)).ready()
        drop(pools.place / "from", "one", b"1")
        pool.until(lambda: last.depth().waiting == 1)
        assert bodies(last) == {b"1": 1}
        assert pool.end(signal.SIGINT) == 0


def test_a_bridge_between_two_queues_of_one_protocol_keeps_priorities(pools: Pools) -> None:
    urls = [f"ddmq:{pools.place}/{root}/q" for root in ("one", "two")]
    with open_queue(urls[0], create=True) as first, open_queue(urls[1], create=True) as second:
        first.put(b"late", priority=900)
        first.put(b"soon", priority=3)
        bridge = pools.start(*urls, "--until-empty", command="bridge")
        assert bridge.wait() == 0, bridge.log
        assert second.depth().waiting == 2
        names = sorted(name for name in os.listdir(pools.place / "two" / "q") if ".ddmq" in name)
    assert [name.partition(".")[0] for name in names] == ["3", "900"]
