"""
calls - system calls a message, counted by strace in a short run

A subject runs alone under strace and marks where its work begins and ends, so nothing of its
start is counted. A pool cannot mark: it runs twice, and the longer run less the shorter is what
the messages between them cost.

    python -m orchestrator.bench.calls NAME PLACE MESSAGES SIZE ORDER

Limits: needs strace, and the right to trace; else nothing is counted. C has no marks; its calls are those of bare.
See also: crew.MARKS.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import cast

from orchestrator.bench import pool
from orchestrator.bench.bare import Bare
from orchestrator.bench.crew import MARKS
from orchestrator.bench.ours import Library, fill, queue_of
from orchestrator.bench.peers import installed
from orchestrator.bench.subject import Load, Subject, Verb
from workers.queues.base import Order

MESSAGES = 200
SECONDS_MAX = 60
_CALL = re.compile(r"(\d+) +(\w+)\((.*)")


def calls_of(name: str, directory: Path, load: Load) -> dict[Verb, dict[str, float]]:
    """Calls a message by name of the call, for put and take; empty where they cannot be counted."""
    strace = shutil.which("strace")
    if strace is None or name.startswith("c "):
        return {}
    place = directory / "traced"
    place.mkdir(0o700)
    try:
        if name == "pool":
            return {"take": _of_pool(strace, place, load)}
        log = place / "log"
        words = [name, str(place / "place"), str(MESSAGES), str(len(load.body)), load.order]
        done = _quietly(strace, "-f", "-o", str(log), sys.executable, "-m", "orchestrator.bench.calls", *words)
        return between_marks(log.read_text(errors="replace"), MESSAGES) if done else {}
    except (OSError, subprocess.TimeoutExpired):
        return {}
    finally:
        shutil.rmtree(place)


def between_marks(log: str, messages: int) -> dict[Verb, dict[str, float]]:
    """Read a log of strace -f: the calls of whoever set a mark, until it set the other; put first, then take."""
    found: list[Counter[str]] = []
    marked = ""
    for line in log.splitlines():
        call = _CALL.match(line)
        if call is None:
            continue
        pid, name, rest = call.groups()
        if MARKS[0] in rest:
            marked = pid
            found.append(Counter())
        elif MARKS[1] in rest:
            marked = ""
        elif pid == marked:
            found[-1][name] += 1
    verbs: tuple[Verb, ...] = ("put", "take")
    return {verb: per_message(calls, messages) for verb, calls in zip(verbs, found, strict=False)}


def per_message(calls: Counter[str], messages: int) -> dict[str, float]:
    """Divide; what was called for fewer than one message in a hundred is left out."""
    return {name: round(count / messages, 2) for name, count in calls.most_common() if count >= messages / 100}


def _of_pool(strace: str, place: Path, load: Load) -> dict[str, float]:
    totals: list[Counter[str]] = []
    for messages in (MESSAGES, MESSAGES * 6):
        own = place / str(messages)
        own.mkdir(0o700)
        short = replace(load, messages=messages)
        fill(own, short, 1)
        table = own / "table"
        pool_of_one = pool.command(queue_of(own), own, short, 1)
        if not _quietly(strace, "-f", "-c", "-U", "name,calls", "-o", str(table), *pool_of_one):
            return {}
        found = re.findall(r"(?m)^\s*(\w+)\s+(\d+)\s*$", table.read_text())
        totals.append(Counter({name: int(count) for name, count in found if name != "total"}))
    totals[1].subtract(totals[0])
    return per_message(totals[1], MESSAGES * 5)


def _quietly(*command: str) -> bool:
    done = subprocess.run(command, capture_output=True, timeout=SECONDS_MAX, check=False)  # noqa: S603 - what stands above
    return done.returncode == 0


def main(words: list[str]) -> None:
    """Put and take with one process, marked."""
    name, place, messages, size, order = words
    load = Load(int(messages), b"x" * int(size), order=cast("Order", order), seconds_max=SECONDS_MAX, is_traced=True)
    known: list[Subject] = [Bare(), Bare(is_split=True), Library(), *installed(name)[0]]
    subject = next(one for one in known if one.name == name)
    with subject.opened(Path(place)):
        subject.put(Path(place), load, 1)
        subject.take(Path(place), load, 1)


if __name__ == "__main__":
    main(sys.argv[1:])
