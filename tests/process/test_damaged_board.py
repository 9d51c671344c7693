"""
test_damaged_board - a handler writes all over the board of a real pool: who did it may die, the master does not

See also: tests/unit/test_damaged_board.py, where also the words are tried that would kill whoever believes them.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import re
import urllib.request
from pathlib import Path

import pytest

from tests.process.handlers import write
from tests.process.pools import LEASE, Pools, drop, is_empty, make_queue
from workers import Message
from workers.board import MAGIC, QUEUES_MAX, SIZE, SLOT_SIZE, VERSION

HANDLER = "tests.process.test_damaged_board:handle"
MAPPED = re.compile(r"([0-9a-f]+)-[0-9a-f]+ .*/board\n")
HEAD = MAGIC.to_bytes(8, "little") + VERSION.to_bytes(8, "little")  # stays, so that readers look at the rest


def handle(message: Message) -> None:
    """Write down the name; before that, while HOLD exists, do to the board what the body says."""
    chosen = random.Random(message.body)  # noqa: S311 - noise, not a secret
    data = {
        b"largest": b"\xff" * 7 + b"\x7f",
        b"noise": chosen.randbytes(SLOT_SIZE * (1 + QUEUES_MAX + 8)),
    }.get(message.body)
    if data is not None and os.path.exists(os.environ["HOLD"]):
        whole = (data * (SIZE // len(data) + 1))[: SLOT_SIZE * (1 + QUEUES_MAX + 8)]
        with open("/proc/self/maps") as file:
            address = next(int(found[1], 16) for line in file if (found := MAPPED.search(line)))
        ctypes.memmove(address + len(HEAD), whole[len(HEAD) :], len(whole) - len(HEAD))
    write(message.name, to="handled")


@pytest.mark.parametrize("damage", ["largest", "noise"])
def test_a_pool_whose_board_is_overwritten_goes_on_and_can_be_asked_and_ended(
    pools: Pools, tmp_path: Path, damage: str
) -> None:
    queue = tmp_path / "queue"
    make_queue(queue, is_short=True).close()
    config = tmp_path / "pool.toml"
    config.write_text(f'[[queue]]\nurl = "{queue}"\nworkers = 2\nhandler = "{HANDLER}"\n{LEASE}')
    pool = pools.start("--config", str(config), name="damaged", listen="127.0.0.1:0").ready()
    listen = pool.status["listen"]

    pools.hold.touch()  # for the first of them alone: a message whose worker dies is handled again
    drop(queue, "damages", damage.encode())
    pool.until(lambda: "damages" in pools.counted())
    pools.hold.unlink()
    for number in range(4):
        drop(queue, f"after{number}", b"x")
    pool.until(lambda: is_empty(queue))
    assert {"damages", *(f"after{number}" for number in range(4))} <= pools.counted().keys()
    code, said = pools.run("status", "--json", "--run-dir", str(pools.place / "run"), "--name", "damaged")
    assert code == 0, said
    assert json.loads(said)
    for path in ("/metrics", "/api/status"):
        with urllib.request.urlopen(f"http://{listen}{path}", timeout=10) as answer:
            assert answer.status == 200
    assert pool.process.poll() is None
    assert pool.end() == 0
    assert "the callback of" not in pool.log  # nothing of the master's failed
