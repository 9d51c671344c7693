"""
findings - one line of a verdict, and the words that all of them are made of

    ok        as a queue wants it
    note      to be known; nothing suffers
    warning   something suffers: a time, a feature, another protocol; no message of ours is at risk
    failed    messages are at risk, or nothing works: on this host already, or between hosts alone

Pure.
See also: judge, judge_together (make them), verdict, report.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from orchestrator.doctor.facts import Host
from workers.queues.names import parse_master

Level = Literal["ok", "note", "warning", "failed"]
Scope = Literal["host", "hosts"]


@dataclass(frozen=True, slots=True)
class Finding:
    """
    What was found of one thing.

    Attributes:
        key: stable, for scripts.
        why: it matters; do: about it. Both are shown where it is not ok.
        scope: of a failure: no host may have a queue here, or no second one.
        because: of a failure, ends the verdict's sentence.
    """

    key: str
    title: str
    level: Level
    measured: str
    why: str = ""
    do: str = ""
    scope: Scope = "host"
    because: str = ""


def duration(seconds: float) -> str:
    """*seconds* for a person."""
    size = abs(seconds)
    if size < 0.0995:
        return f"{seconds * 1000:.2g} ms"
    return f"{seconds:.1f} s" if size < 100 else f"{seconds:.0f} s"


def size(number: float) -> str:
    """Bytes for a person."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"


def counted(number: int, noun: str) -> str:
    """A number and its noun."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def named(ids: Sequence[str]) -> list[str]:
    """Short names for *ids*: the host's, with the process where two are called the same."""
    parts = [parse_master(id_) or (id_, "", 0, 0) for id_ in ids]
    hosts = [part[0] for part in parts]
    return [host if hosts.count(host) == 1 else f"{host}:{pid}" for host, _, pid, _ in parts]


def each(hosts: Sequence[Host], text: Callable[[Host], str]) -> str:
    """What *text* says of each host; once where all say the same."""
    said = [text(host) for host in hosts]
    if len(set(said)) == 1:
        return said[0]
    return "; ".join(f"{name}: {words}" for name, words in zip(named([one.id for one in hosts]), said, strict=True))
