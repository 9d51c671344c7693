"""
test_beside_mentat - the original's own DirectoryQueue, from PyPI, on the same spool queue at the same time

Real processes on both sides put and take at full speed, and are killed with a message in hand. Each
message once: what was put, by name and CRC of its body, is what both sides finished and what lies in errors/.
ORCHESTRATOR_BESIDE=50000 is the full run: so many messages in the first test.

What the original does wrong by itself (its known faults, by number) is kept out of the counts:
    M8   one write, whose result nobody looks at     bodies are small
    M2   what is no UTF-8 ends it; M10 "\\r" is lost  bodies are text of one line
    M11  a rename over what has the same name        a name is given once
    -    takes whatever lies in incoming/            what is being written lies in tmp/, and the filers start when
                                                     our pool has renamed its probe through the queue
    M1   gives nothing back, M7 commits by halves    ours does it for a killed filer: the second test
Long because: the parts that the processes play stand beside the tests.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from tests.process import handlers
from tests.process.pools import Pool, Pools, files, is_empty, make_queue, marks, metas
from tests.waiting import LOOK_S, until
from workers import Forward, Message, Reject, Retry, open_queue
from workers.queues import names
from workers.queues.base import Settings

dirq = pytest.importorskip("mentat.dirq", reason="mentat-ng is not installed")

COUNT = int(os.environ.get("ORCHESTRATOR_BESIDE", "3000"))
KINDS = ("done", "done", "retry", "done", "fail", "done", "reject")  # what a body asks for, in turn
BATCH = 50
STALE_S, CLOCK_S = 2.0, 0.1  # the second: what the clock of a filesystem may be behind
HANDLE, FORWARD = (f"tests.process.test_beside_mentat:{name}" for name in ("handle", "pass_on"))
SHELL = 'while read -r name body; do printf %s "$body" >"tmp/$name" && mv "tmp/$name" "incoming/$name" || exit; done'
FORK = multiprocessing.get_context("fork")


# ---- what our workers do


def handle(message: Message) -> Retry | Reject | None:
    """Do what the body asks for: fail once, in one of two ways, or for ever, or be done."""
    kind = message.body.split()[0]
    if kind == b"reject":
        return Reject("not wanted")
    if message.attempt == 1 and kind in (b"retry", b"fail"):
        handlers.write("again")
        if kind == b"fail":
            raise LookupError("asked to fail")
        return Retry(after_s=0)
    if message.attempt > 1:  # due ones come back together: so slowly that the filers meet some of them
        handlers.work(message)
    note("ours", message.name, message.body)
    return None


def pass_on(message: Message) -> Forward:
    """Forward: as it is, which is one rename, or with a body of its own."""
    if message.body.startswith(b"renew"):
        return Forward(message.body.replace(b"renew", b"new"), queue=os.environ["NEXT"])
    return Forward(queue=os.environ["NEXT"])


def note(who: str, name: str, body: bytes) -> None:
    """Write into the journal that *who* put or finished this."""
    handlers.write(f"{who} {zlib.crc32(body):08x} {name}")


def noted(pools: Pools, who: str) -> Counter[str]:
    """CRC and name of all that *who* put or finished."""
    return Counter(line.partition(" ")[2] for line in pools.journal() if line.startswith(f"{who} "))


# ---- the processes beside our pool


class Crew:
    """Processes forked from the test, none of which outlives it; those of mentat end when told by *is_over*."""

    def __init__(self) -> None:
        self.is_over = FORK.Event()
        self.started: list[BaseProcess] = []

    def start(self, role: Callable[..., None], *arguments: object) -> BaseProcess:
        """Fork, and do *role* there."""
        process = FORK.Process(target=role, args=arguments, daemon=True)
        process.start()
        self.started.append(process)
        return process

    def hold(self, role: Callable[..., None], *arguments: object) -> tuple[BaseProcess, Connection]:
        """Start a role that talks through a pipe."""
        here, there = FORK.Pipe()
        process = self.start(role, there, *arguments)
        there.close()
        return process, here

    def take(self, queue: Path, following: Path | None = None) -> BaseProcess:
        """Start a filer that takes until it is over and finds nothing."""
        return self.start(take, queue, self.is_over, following)

    def join(self, processes: Sequence[BaseProcess], timeout_s: float = 150) -> None:
        """Wait for their end; none has failed."""
        for process in processes:
            process.join(timeout_s)
        assert [process.exitcode for process in processes] == [0] * len(processes)


@pytest.fixture(name="crew")
def _crew(pools: Pools, monkeypatch: pytest.MonkeyPatch) -> Iterator[Crew]:
    """A crew that writes into the journal of the pools."""
    monkeypatch.setenv("JOURNAL", str(pools.journal_path))
    crew = Crew()
    yield crew
    for process in crew.started:
        process.kill()
        process.join(10)


def take(queue: Path, is_over: object, following: Path | None) -> None:
    """Be a filer: next(), and commit, or banish what is to be rejected. Ends as failed when a settle finds nothing."""
    theirs = dirq.DirectoryQueue(str(queue), dir_next_queue=following and str(following))
    while True:
        was_over = is_over.is_set()  # first: what came before it is taken
        file, text = theirs.next()
        if file is None:
            if was_over:
                return
            is_over.wait(LOOK_S)
            continue
        mark, body = names.parse(file), text.encode()
        if mark.token:
            handlers.write("met")
        if body.startswith(b"reject"):
            theirs.banish(file, {"name": mark.name, "reason": "not wanted by theirs"})
            continue
        theirs.commit(file)
        note("theirs", mark.name, body)


def hold(pipe: Connection, queue: Path) -> None:
    """Be a filer that has a message in hand, and commits it when told; answer how that went."""
    theirs = dirq.DirectoryQueue(str(queue))
    until(theirs.count_incoming)
    file, _ = theirs.next()
    pipe.send(file)
    pipe.recv()
    try:
        theirs.commit(file)
    except FileNotFoundError:
        pipe.send("it is gone")
    else:
        pipe.send("committed")


def commit_half(pipe: Connection, queue: Path, following: Path) -> None:
    """Be a filer that stops between the two renames of a commit into the next queue, for ever."""
    rename = os.rename

    def stop_before_the_second(source: str, target: str) -> None:
        if target.startswith(str(following / "incoming")):
            pipe.send(file)
            pipe.recv()
        rename(source, target)

    theirs = dirq.DirectoryQueue(str(queue), dir_next_queue=str(following))
    file, _ = theirs.next()
    os.rename = stop_before_the_second
    theirs.commit(file)


def text_of(number: int, who: str) -> str:
    """A body: what is asked for, and something of its own."""
    return f"{KINDS[number % len(KINDS)]} {who} {number} {'č' * (number % 40)}"


def put_theirs(queue: Path, who: str, count: int) -> None:
    theirs = dirq.DirectoryQueue(str(queue))
    for number in range(count):
        text = text_of(number, who)
        note("put", theirs.enqueue(text), text.encode())


def put_ours(queue: Path, who: str, count: int) -> None:
    """One by one, every tenth made durable."""
    ours = open_queue(str(queue))
    for number in range(count):
        body = text_of(number, who).encode()
        note("put", ours.put(body, durable=number % 10 == 0), body)


def put_named(queue: Path, who: str, count: int) -> None:
    ours = open_queue(str(queue))
    for number in range(count):
        body = text_of(number, who).encode()
        note("put", ours.put(body, f"zpráva {who} {number}.txt", durable=False), body)


def put_batches(queue: Path, who: str, count: int) -> None:
    ours = open_queue(str(queue))
    for start in range(0, count, BATCH):
        bodies = [text_of(number, who).encode() for number in range(start, min(start + BATCH, count))]
        for name, body in zip(ours.put_many(bodies, durable=start % 500 == 0), bodies, strict=True):
            note("put", name, body)


def put_by_shell(queue: Path, who: str, count: int) -> None:
    """As any program may: written in tmp/, then mv."""
    lines = {f"{who}-{number}.txt": text_of(number, who).rstrip() for number in range(count)}
    given = "".join(f"{name} {text}\n" for name, text in lines.items())
    subprocess.run(["sh", "-c", SHELL], input=given.encode(), cwd=queue, check=True)
    for name, text in lines.items():
        note("put", name, text.encode())


# ---- what is looked at


def rejected(queue: Path) -> Counter[str]:
    """CRC and name of all in errors/, the .meta of both sides left out."""
    return Counter(
        f"{zlib.crc32(path.read_bytes()):08x} {names.parse(path.name).name}" for path in files(queue, "errors")
    )


def depth(pool: Pool) -> tuple[int, int, int]:
    """How many its keeper saw waiting, claimed by anybody, and deferred."""
    seen = pool.queues["queue"]["depth"]
    return seen["waiting"], seen["claimed"], seen["deferred"]


def is_drained(queue: Path) -> bool:
    """Whether no message, and nothing half done, is left anywhere but in errors/."""
    return is_empty(queue) and not files(queue, "tmp")


def is_clean(queue: Path) -> bool:
    """The same, and no worker's directory either."""
    return is_drained(queue) and not list((queue / "pending").iterdir())


def test_two_kinds_of_programs_on_one_queue_finish_each_message_once(pools: Pools, queue: Path, crew: Crew) -> None:
    """
    2 filers and 3 of our workers take what 2 filers, 3 of our programs and a shell put, all at the same time.

    The pool leaves by itself when the queue is empty: not while a filer has the last message in hand.
    """
    kept = dirq.DirectoryQueue(str(queue))
    note("put", kept.enqueue("done kept"), b"done kept")
    file, _ = kept.next()
    words = ("--workers", "3", "--handler", HANDLE, "--preload", "--retry-backoff", "0.5s", "--until-empty")
    pool = pools.start(str(queue), *words).ready()
    filers = [crew.take(queue), crew.take(queue)]

    started_s = time.monotonic()
    roles = (put_theirs, put_theirs, put_ours, put_named, put_batches, put_by_shell)
    producers = [
        crew.start(role, queue, f"{role.__name__}{index}", COUNT // len(roles)) for index, role in enumerate(roles)
    ]
    crew.join(producers)
    put_s = time.monotonic() - started_s
    pool.until(lambda: depth(pool) == (0, 1, 0), 150)
    kept.commit(file)
    note("theirs", file, b"done kept")
    assert pool.wait() in (0, 4)
    took_s = time.monotonic() - started_s
    crew.is_over.set()
    crew.join(filers)

    put, ours, theirs, errors = noted(pools, "put"), noted(pools, "ours"), noted(pools, "theirs"), rejected(queue)
    counted = pools.counted()
    banished = sum(meta["reason"] == "not wanted by theirs" for meta in metas(queue).values())
    print(  # noqa: T201 - the figures of the full run
        f"{put.total()} messages put in {put_s:.1f} s, all finished after {took_s:.1f} s: {ours.total()} by ours,"
        f" {theirs.total()} by theirs, {errors.total()} rejected ({banished} by theirs), {counted['again']} retried,"
        f" {counted['met']} marked names met by theirs"
    )
    assert put.total() == COUNT // len(roles) * len(roles) + 1
    assert max(put.values()) == 1
    assert ours + theirs + errors == put
    assert is_clean(queue)
    assert len(metas(queue)) == len(list(open_queue(str(queue)).list("errors"))) == errors.total()
    assert ours
    assert theirs
    assert counted["met"]


def test_what_a_killed_filer_had_in_hand_is_handled_and_a_slow_one_settles_nothing(
    pools: Pools, tmp_path: Path, crew: Crew
) -> None:
    """
    Three filers: killed with a claim, alive with a claim that became stale, killed between the renames of a commit.

    The original gives none of these back; what is half committed goes to errors/, where a person sees it.
    """
    queue, other = tmp_path / "queue", tmp_path / "other"
    times = Settings(create=True, lease_interval_s=0.2, lease_timeout_s=1.0, stale_after_s=STALE_S)
    open_queue(str(queue), settings=times).close()
    theirs = dirq.DirectoryQueue(str(queue))
    claimed = []
    for text in ("done killed", "done slow"):
        name = theirs.enqueue(text)
        process, pipe = crew.hold(hold, queue)
        assert pipe.recv() == name
        claimed.append((name, process, pipe))
    (killed, killed_process, _), (slow, _, slow_pipe) = claimed
    half = dirq.DirectoryQueue(str(other)).enqueue("done half")
    half_process, half_pipe = crew.hold(commit_half, other, queue)
    assert half_pipe.recv() == half
    for process in (killed_process, half_process):
        process.kill()
        process.join()
    left = (queue / "pending" / killed, queue / "pending" / slow, queue / "tmp" / half)
    until(lambda: all(path.stat().st_ctime + STALE_S + CLOCK_S < time.time() for path in left))

    pool = pools.start(str(queue), "--workers", "1", "--handler", HANDLE, "--preload")
    pool.until(lambda: len(noted(pools, "ours")) == 2 and metas(queue))
    slow_pipe.send("commit")
    assert slow_pipe.recv() == "it is gone"
    assert metas(queue)[half]["reason"] == "abandoned in tmp"
    assert pools.run("requeue", str(queue), half)[0] == 0
    pool.until(lambda: len(noted(pools, "ours")) == 3)
    pool.until(lambda: is_drained(queue))
    assert pool.end() == 0
    assert pool.log.count("stale claim") == 2
    assert noted(pools, "ours") == Counter(
        f"{zlib.crc32(body):08x} {name}"
        for name, body in ((killed, b"done killed"), (slow, b"done slow"), (half, b"done half"))
    )
    assert is_clean(queue)
    assert not files(queue, "errors")


def test_what_a_killed_worker_of_ours_had_in_hand_is_taken_by_a_filer(
    pools: Pools, quick_queue: Path, crew: Crew
) -> None:
    """While ours is paused, so that nobody else can take it; its name then carries a mark with the crash."""
    pools.hold.touch()
    name = dirq.DirectoryQueue(str(quick_queue)).enqueue("done after a crash")
    pool = pools.start(str(quick_queue), "--workers", "1", "--handler", f"{handlers.__name__}:hold").ready()
    pool.until(lambda: pools.journal() == [f"holds {name}"])
    assert pools.run("pause", str(quick_queue))[0] == 0
    pool.until(lambda: pool.queues["queue"]["paused"])
    (pid,) = pool.pids
    os.kill(pid, 9)
    pool.until(lambda: files(quick_queue, "incoming"))
    assert [(mark.name, mark.attempts, mark.crashes) for mark in marks(quick_queue, "incoming")] == [(name, 0, 1)]
    crew.is_over.set()
    crew.join([crew.take(quick_queue)])
    assert noted(pools, "theirs") == Counter([f"{zlib.crc32(b'done after a crash'):08x} {name}"])
    assert is_drained(quick_queue)
    assert pools.run("resume", str(quick_queue))[0] == 0
    assert pool.end() == 0
    assert pools.counted()["met"] == 1
    assert is_clean(quick_queue)


def test_a_chain_of_queues_through_a_filer_loses_nothing_and_doubles_nothing(
    pools: Pools, queue: Path, tmp_path: Path, crew: Crew
) -> None:
    """Ours forwards into a queue that only filers know, and these commit into the next one, which is ours again."""
    middle, last = tmp_path / "middle", tmp_path / "last"
    make_queue(last).close()
    dirq.DirectoryQueue(str(middle))  # made by theirs: it has no .pool/
    bodies = [f"{'renew' if number % 3 == 0 else 'same'} {number}".encode() for number in range(600)]
    put = dict(zip(make_queue(queue).put_many(bodies, durable=False), bodies, strict=True))
    end = pools.start(str(last), "--workers", "2", "--handler", HANDLE, "--preload", name="last").ready()
    filers = [crew.take(middle, last), crew.take(middle, last)]
    words = ("--workers", "2", "--handler", FORWARD, "--preload", "--until-empty")
    assert pools.start(str(queue), *words, name="first", environment={"NEXT": str(middle)}).wait(60) == 0
    crew.is_over.set()
    crew.join(filers)
    end.until(lambda: is_empty(last))
    assert end.end() == 0

    arrived = Counter(f"{zlib.crc32(body.replace(b'renew', b'new')):08x} {name}" for name, body in put.items())
    assert noted(pools, "ours") == arrived
    assert noted(pools, "theirs") == arrived
    for place in (queue, middle, last):
        assert is_clean(place)
        assert not files(place, "errors")
    assert not (middle / ".pool").exists()
