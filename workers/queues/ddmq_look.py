"""
ddmq_look - what waits in a ddmq queue, and what an operator sees of it; reads only

A listing is a picture of a moving thing: a message may be seen in two states, or in
none, when it moved between two directories that were read.

Raises: OSError.
See also: ddmq (the verbs), spool_look (what lies beside the queue is looked at as there).
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Generator, Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType

from workers.ddmq.errors import CorruptError
from workers.ddmq.files import QueueFiles
from workers.ddmq.names import is_message_like, parse_waiting, parse_work, waiting_key
from workers.queues import names, spool_look
from workers.queues.base import STATES, Depth, Listed, Shown, Source, State
from workers.queues.beside import Beside
from workers.queues.ddmq_content import content_of
from workers.queues.ddmq_hand import hand_in

SECONDS_DIGITS = 10  # of a queue number, before those of its fraction
ASIDE = re.compile(r"(.+\.ddmq[0-9A-Za-z]+)\.[0-9a-f]{8}")  # what the library sets aside where the name is taken


class Waiting(Source):
    """The messages that wait. What an original still writes is passed over until a time: *unready*, CLOCK_BOOTTIME."""

    is_prioritised = True

    def __init__(self, files: QueueFiles, unready: Mapping[str, int] = MappingProxyType({})) -> None:
        self._files = files
        self._unready = unready

    def names(self, odd: set[str], ignored: set[str]) -> Generator[str]:  # noqa: ARG002 - what else is there is nobody's
        """See Source.names."""
        for name in self._files.waiting(odd):
            if is_short(name) and not self._is_unready(name):
                yield name

    def _is_unready(self, name: str) -> bool:
        return name in self._unready and self._files.system.boottime_ns() < self._unready[name]

    def is_message(self, name: str, odd: set[str]) -> bool:
        """See Source.is_message."""
        if parse_waiting(name) is None or not is_short(name) or self._is_unready(name):
            return False
        try:
            mode = self._files.system.lstat(f"{self._files.path}/{name}").st_mode
        except FileNotFoundError:
            return False
        if not stat.S_ISREG(mode):
            if stat.S_ISDIR(mode):
                return False
            odd.add(name)
        return True

    @staticmethod
    def key(name: str) -> str:
        """See Source.key: the most urgent first, then the oldest."""
        return waiting_key(name)


def is_short(name: str) -> bool:
    """Whether there is room for a mark and a time beside *name*. The originals' own names are a third of that."""
    return len(name) <= names.NAME_BYTES_MAX


def name_of(waiting: str) -> str | None:
    """The message's name, the same under every priority: NUMBER.ddmqID. None for what is no waiting name."""
    found = parse_waiting(waiting)
    return None if found is None or not is_short(waiting) else f"{found.number}.ddmq{found.id}"


def time_of(name: str) -> float | None:
    """Unix seconds of the number in *name*; None when there are none, as of an original that counted."""
    number = name.partition(".ddmq")[0].rpartition(".")[2]
    if len(number) < SECONDS_DIGITS:
        return None
    return int(number[:SECONDS_DIGITS]) + int(number[SECONDS_DIGITS:][:7].ljust(7, "0")) / 1e7


def _seen(files: QueueFiles, state: State) -> Iterator[tuple[str, str | None]]:
    """
    (path, waiting name) of each message that waits, or is claimed.

    None for the name of what looks like a message to an original, and is none.
    """
    directory = files.path if state == "waiting" else files.work
    with files.system.scandir(directory) as entries:
        for entry in entries:
            if is_message_like(entry.name):
                waiting = _waiting_name(entry.name, state)
                is_message = name_of(waiting) is not None and not entry.is_dir(follow_symlinks=False)
                yield f"{directory}/{entry.name}", waiting if is_message else None


def _waiting_name(file: str, state: State) -> str:
    """The waiting name of a message's file, or what is none."""
    return file if state == "waiting" else waiting_of(file)


def waiting_of(work_name: str) -> str:
    """The name under which what is in work/ as *work_name* waited; "" where it is no claim."""
    claim = parse_work(work_name)
    return claim[1] if claim else ""


def depth(files: QueueFiles, beside: Beside) -> Depth:
    """Count by state."""
    counts: dict[str, int] = {}
    ages: dict[str, float] = {}
    ignored = 0
    states: tuple[State, ...] = ("waiting", "claimed")
    for state in states:
        age = _Ages(beside)
        counts[state] = 0
        for path, waiting in _seen(files, state):
            if waiting is None:
                ignored += 1
                continue
            counts[state] += 1
            age.look(path, waiting)
        ages[state] = age.age_s()
    for kept in ("deferred", "errors"):
        counts[kept], age = 0, _Ages(beside)
        with contextlib.suppress(FileNotFoundError):  # nobody has had to keep anything there
            for place, file, _ in spool_look.kept_files(beside, kept):
                if waiting := kept_as(file):
                    counts[kept] += 1
                    age.look(os.path.join(place, file), waiting)
        ages[kept] = age.age_s()
    return Depth(counts["waiting"], counts["claimed"], counts["deferred"], counts["errors"], ignored, ages)


def kept_as(file: str) -> str:
    """The waiting name of a file in deferred/ or errors/; "" for what is none."""
    due = names.parse_due(file)
    waiting = due[1].name if due else names.parse(file).name
    if name_of(waiting) is None:  # the library sets aside what it cannot read under the name that it finds
        found = ASIDE.fullmatch(waiting)
        waiting = found[1] if found else waiting
        waiting = waiting if name_of(waiting) else waiting_of(waiting)
    return waiting if name_of(waiting) else ""


class _Ages(spool_look.Ages):
    """The oldest of one state by the numbers in the names, and by the mtime of a sample of the others."""

    def look(self, path: str, waiting: str) -> None:
        enqueued_s = time_of(waiting)
        if enqueued_s is None:
            directory, file = os.path.split(path)
            self.add(directory, file, waiting)
        else:
            self.note(enqueued_s)


def listed(files: QueueFiles, beside: Beside, state: State | None = None) -> Iterator[Listed]:
    """Each message of *state*, or of all, in the order in which it would be served within a state."""
    for one in (state,) if state else STATES:
        yield from (line for _, line in sorted(_lines(files, beside, one), key=lambda pair: pair[0]))


def _lines(files: QueueFiles, beside: Beside, state: State) -> Iterator[tuple[str, Listed]]:
    if state in ("waiting", "claimed"):
        holders = _holders(beside) if state == "claimed" else {}
        for path, waiting in _seen(files, state):
            if waiting is None:
                continue
            name = name_of(waiting) or ""
            counts = beside.count_of(name)
            owner = holders.get(os.path.basename(path))
            yield waiting_key(waiting), Listed(name, state, path, counts.attempts + 1, counts.crashes, owner)
    elif state != "done":
        with contextlib.suppress(FileNotFoundError):
            for line in spool_look.lines(beside, state):
                if waiting := kept_as(os.path.basename(line.path)):
                    yield waiting_key(waiting), replace(line, name=name_of(waiting) or "")


def _holders(beside: Beside) -> dict[str, str]:
    """Which of our workers say that they have a claim in hand. A peer's claim names nobody."""
    found = {}
    with contextlib.suppress(FileNotFoundError):
        for owner in beside.system.listdir(beside.held):
            hand = hand_in(beside.record_of(owner)[0])
            if hand is not None:
                found.update(dict.fromkeys(hand.work_names(), owner))
    return found


def show(files: QueueFiles, beside: Beside, name: str) -> list[Shown]:
    """Everything known of the messages called *name*; one is as old as its name says."""
    found = spool_look.shown(beside, (line for line in listed(files, beside) if line.name == name))
    return [_with_body(files, replace(one, enqueued_at=time_of(name) or one.enqueued_at)) for one in found]


def _with_body(files: QueueFiles, shown: Shown) -> Shown:
    """What its handler is given; the file as it is where that is no message."""
    try:
        body = content_of(files.read(shown.listed.path)[0], shown.modified_at).body
    except (OSError, CorruptError):
        body = None
    return shown if body is None else replace(shown, size=len(body), body=body)


def expiry_of(work_name: str, otherwise: int) -> int:
    """The second at which a claim expires; *otherwise* for a name that is too long to be dealt with."""
    claim = parse_work(work_name)
    return otherwise if claim is None or not is_short(claim[1]) else claim[0]
