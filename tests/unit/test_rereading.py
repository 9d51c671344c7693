"""The configuration read again: by a child that may hang, one at a time."""

from __future__ import annotations

import json
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from orchestrator.child import Child
from orchestrator.config import Config, ConfigError, load
from orchestrator.config_text import from_text, to_text
from orchestrator.loop import Loop
from orchestrator.rereading import SLOW_S, Rereading
from orchestrator.services import Services
from tests.waiting import until
from workers.board import Board


class CountingServices(Services):
    """Knows how many it has forked."""

    forked = 0

    def spawn(self, role: Callable[[], int], title: str, *, outlives: bool = False) -> Child:
        CountingServices.forked += 1
        return super().spawn(role, title, outlives=outlives)


class Readings:
    """A Rereading whose reader waits until it is let go, and what came of it."""

    def __init__(self, loop: Loop, read: Callable[[], Config]) -> None:
        self.loop = loop
        self.found: list[Config | str] = []
        self.gate, self.opener = os.pipe()

        def gated() -> Config:
            os.read(self.gate, 1)
            return read()

        services = CountingServices(loop, Board.create(), "m", "h", {}, None, lambda *_: None, lambda: None)
        self.rereading = Rereading(loop, services, gated, self.found.append)

    def let_go(self) -> None:
        os.write(self.opener, b"x")

    def turns(self, count: int) -> list[Config | str]:
        """Let the loop run until *count* readings were heard of."""

        def turn() -> bool:
            self.loop.turn(0)
            self.rereading.tick(time.monotonic())
            return len(self.found) >= count

        until(turn)
        return self.found


@pytest.fixture(name="made")
def _made() -> Iterator[Callable[[Callable[[], Config]], Readings]]:
    found: list[Readings] = []
    with closing(Loop()) as loop:

        def make(read: Callable[[], Config]) -> Readings:
            found.append(Readings(loop, read))
            return found[-1]

        yield make
        for one in found:
            child = one.rereading._child
            one.rereading.close()
            until(lambda child=child: child is None or child.collect() is not None)
            os.close(one.gate)
            os.close(one.opener)


Made = Callable[[Callable[[], Config]], Readings]


def test_a_reading_that_hangs_holds_up_nobody_and_who_asks_meanwhile_is_answered_by_another(
    made: Made, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "pool.toml"

    def write(workers: int, size: int = 0) -> None:
        queue = f'[[queue]]\nurl = "q"\ncomponents = ["m:h"]\nworkers = {workers}\n'
        file.write_text(f'{queue}options = {{ a = "{"x" * size}" }}\n')

    write(1, size=300_000)  # more than a pipe holds
    readings = made(lambda: load((file,), flags={}, environment={}))
    now_s, forked = time.monotonic(), CountingServices.forked
    readings.rereading.want(now_s)
    readings.rereading.want(now_s)
    for after_s in (SLOW_S - 1, SLOW_S + 1, SLOW_S + 2):
        readings.loop.turn(0)
        readings.rereading.tick(now_s + after_s)
    assert caplog.text.count("reading the configuration takes long") == 1
    assert (readings.found, CountingServices.forked - forked) == ([], 1)
    readings.let_go()
    (first,) = readings.turns(1)
    write(2)
    readings.let_go()
    second = readings.turns(2)[1]
    assert isinstance(first, Config)
    assert isinstance(second, Config)
    assert [one.queues[0].workers for one in (first, second)] == [1, 2]
    assert first.queues[0].options == {"a": "x" * 300_000}
    assert second == load((file,), flags={}, environment={})


EVERYTHING = """
[metrics]
listen = "none"
[daemon]
umask = "077"
[[queue]]
url = "q"
components = [
  "m:h",
  { use = "m:k", a = 1979-05-27T07:32:00.5Z, b = [1, { c = inf, d = -9999999999999999999 }, [[]]], "ü" = 1e-7 },
]
options = { "a b.c" = {}, d = 1979-05-27, t = 07:32:00, s = "a\\u007f\\u0001\\r\\n\\"\\\\" }
event_map = { x = "y" }
output = "r"
retry_backoff = 0.1234567890123
[[queue]]
url = "r"
command = ["a"]
"""


def test_whatever_a_configuration_can_say_is_handed_over_as_it_was(tmp_path: Path) -> None:
    """Values, types, and what was set at all, which decides whether another port may be taken."""
    (tmp_path / "pool.toml").write_text(EVERYTHING)
    command = [os.fsdecode(b"a\xff"), "\n\u2028\ud7ff"]
    environment = {"ORCHESTRATOR_WORKERSS": "2"}
    for more in ({}, {"queues": [os.fsdecode(b"/q\xfe")], "command": command}):
        config = load((tmp_path / "pool.toml",), flags={}, environment=environment, **more)  # type: ignore[arg-type]
        found = from_text(to_text(config))
        assert found == config
        for ours, theirs in zip(
            (config.pool, config.metrics, config.daemon, *config.queues),
            (found.pool, found.metrics, found.daemon, *found.queues),
            strict=True,
        ):
            assert ours.model_fields_set == theirs.model_fields_set
            assert repr(ours) == repr(theirs)


def test_half_of_a_configuration_is_none(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any beginning of it: a queue that is missing there would be drained."""
    config = Config.model_validate({"pool": {"name": "m", "run_dir": "/"}, "queues": (), "metrics": {}, "daemon": {}})
    whole = json.dumps({"config": to_text(config)})
    monkeypatch.setattr("orchestrator.rereading.json.dumps", lambda _found: whole[: len(whole) - 3])
    readings = made(lambda: config)
    readings.let_go()
    readings.rereading.want(0.0)
    assert readings.turns(1) == ["the process that read it ended before it was done"]


def test_a_refusal_is_handed_over_and_so_is_that_the_reader_died(made: Made, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL + 1)

    def refuse() -> Config:
        raise ConfigError("pool.toml:3: no")

    def fail() -> Config:
        raise ValueError("a fault of ours")

    for read, text in (
        (refuse, "pool.toml:3: no"),
        (fail, "the process that read it ended before it was done"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "the process that read it ended before it was done"),
    ):
        readings = made(read)  # type: ignore[arg-type]
        readings.let_go()
        readings.rereading.want(0.0)
        assert readings.turns(1) == [text]
