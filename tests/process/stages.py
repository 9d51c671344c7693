"""The components of the piper chain in tests/process/test_piper_chain.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tests.process.handlers import write
from workers.components import Daemon, ZenDaemonComponent


class Append(ZenDaemonComponent):
    """Adds *letter* to the end of each message."""

    def __init__(self, letter: str) -> None:
        super().__init__()
        self.letter = letter

    def get_events(self) -> Sequence[Mapping[str, object]]:
        """See ZenDaemonComponent."""
        return [self.gen_event_handler("message_process", self.cbk_event_message_process)]

    def cbk_event_message_process(self, daemon: Daemon, args: dict[str, Any]) -> tuple[int, object]:
        """Update it; who comes after this one in the chain commits it."""
        daemon.queue.schedule("message_update", {"id": args["id"], "data": args["data"] + self.letter})
        return daemon.FLAG_CONTINUE, args


class Early(ZenDaemonComponent):
    """Is done before it has begun."""

    def get_events(self) -> Sequence[Mapping[str, object]]:
        """See ZenDaemonComponent."""
        return [self.gen_event_handler("start", self.cbk_event_start)]

    def cbk_event_start(self, daemon: Daemon, args: object) -> tuple[int, object]:
        """No more."""
        daemon.set_done()
        return daemon.FLAG_CONTINUE, args


class Once(ZenDaemonComponent):
    """Counts to three, a tick every 10 ms, writes it down and is done. Needs no message."""

    def get_events(self) -> Sequence[Mapping[str, object]]:
        """See ZenDaemonComponent."""
        return [
            self.gen_event_handler("start", self.cbk_event_tick),
            self.gen_event_handler("tick", self.cbk_event_tick),
            self.gen_event_handler("stop", self.cbk_event_stop),
        ]

    def cbk_event_tick(self, daemon: Daemon, args: object) -> tuple[int, object]:
        """One more."""
        self.inc_statistic("cnt_ticks")
        write(f"tick {self.statistics_cur['cnt_ticks']} of {daemon.c('until', 3)}")
        if self.statistics_cur["cnt_ticks"] < daemon.c("until", 3):  # type: ignore[operator]
            daemon.queue.schedule_after(0.01, "tick")
        elif daemon.c("is_done"):
            daemon.set_done()
        return daemon.FLAG_CONTINUE, args

    def cbk_event_stop(self, daemon: Daemon, args: object) -> tuple[int, object]:
        """The end."""
        write("stop")
        return daemon.FLAG_CONTINUE, args
