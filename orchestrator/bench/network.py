"""
network - a queue on a simulated network filesystem: operations a message, and messages against workers

Spool, Worker, keeper and feeder are the real ones, in processes of their own, over a local
directory behind nfs.Network, where each operation takes 0.5 ms.

The least that a message can cost is CREATE and RENAME to put it, RENAME, OPEN and REMOVE to
take it. The bare loop, run by one process in the same round, does nothing else; as many
of it as there are workers is what they are compared with.

Raises: BenchError when messages are left or a process died.
See also: SPOOL.md "Cost", nfs, crew.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import shutil
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

from orchestrator.bench.crew import CONTEXT, Gate, Run, run_together
from orchestrator.bench.measure import BenchError, Figure
from orchestrator.bench.nfs import UNWAITED, Network
from workers.board import Board, Q, W
from workers.handlers import echo
from workers.keeper import QueueKeeper
from workers.queues import names
from workers.queues.base import POLL_NETWORK_S, Consumer, Settings
from workers.queues.feed import open_feed
from workers.queues.feeder import Feeder, Feeding
from workers.queues.scan import Incoming
from workers.queues.spool import Spool
from workers.system import SYSTEM, die_with_parent
from workers.waiting import Leaving
from workers.worker import Worker

WORKERS = (1, 2, 4, 8, 16, 32)
BODY = bytes(1024)
SAMPLE = 50
LOOK_S = 0.002
LEAST = {"put": 2.0, "take": 3.0}


# ---- the figures


def network(directory: Path, rounds: int, messages: int = 150) -> list[Figure]:
    """
    Measure below *directory*, which stays as it was: *rounds* values for each figure.

    *messages* for each worker. About three seconds a round.
    """
    limits: list[float] = []
    runs: dict[int, list[Run]] = {count: [] for count in WORKERS}
    sent: dict[int, list[float]] = {count: [] for count in WORKERS}
    for number in range(rounds):
        turn = number % len(WORKERS)
        limits.append(_bare(directory / f"bare-{number}", messages))
        for count in WORKERS[turn:] + WORKERS[:turn]:
            run, operations_sent = _pool(directory / f"network-{number}", count, messages * count)
            runs[count].append(run)
            sent[count].append(operations_sent / run.handled)
    found = [*_operations(directory, rounds)]
    for count in WORKERS:
        what = f"take, {count} worker{'s' * (count > 1)}, to {count} bare"
        values, base = [run.rate for run in runs[count]], [limit * count for limit in limits]
        lost = statistics.median(run.lost / run.handled for run in runs[count])
        more = {"operations": statistics.median(sent[count]), "lost": lost}
        found.append(Figure("network", what, "messages/s", values, base, more=more))
    return found


def _operations(directory: Path, rounds: int) -> Iterator[Figure]:
    """What a put and a take send, which is the same in every round."""
    seen = operations(directory / "network-operations")
    for verb, counts in seen.items():
        waited = float(sum(count for operation, count in counts.items() if operation not in UNWAITED))
        least = LEAST[verb.partition(",")[0]]
        what = f"{verb} (least {least:g})"
        yield Figure("network", what, "operations", [waited] * rounds, target=least, is_at_most=True, more=counts)


def operations(place: Path) -> dict[str, dict[str, float]]:
    """
    The operations of one put, durable put and take (claim, read, done), each after the first of its kind.

    By operation, those included that nobody waits for. *place* is made and removed. Nothing waits.
    """
    system = Network(operation_s=0)

    def each(act: Callable[[], object], count: int) -> dict[str, float]:
        before = system.counts.copy()
        for _ in range(count):
            act()
        return {operation: sent / count for operation, sent in sorted((system.counts - before).items())}

    try:
        with Spool(str(place), Settings(create=True), system=system, host="bench") as queue:
            queue.attach(_consumers(queue.url, 1)[0])

            def take() -> None:
                claim = queue.claim()
                assert claim is not None  # noqa: S101 - as many were put
                os.pread(claim.fd, len(BODY) + 1, 0)
                queue.done(claim)

            # The first of each makes what the others find: the owner's directory, the names read ahead.
            queue.put(BODY)
            found = {"put": each(lambda: queue.put(BODY, durable=False), SAMPLE)}
            found["put, durable"] = each(lambda: queue.put(BODY), SAMPLE)
            take()
            found["take"] = each(take, SAMPLE)
            while (claim := queue.claim()) is not None:
                queue.done(claim)
    finally:
        shutil.rmtree(place)
    return found


def _consumers(url: str, count: int, feed: tuple[int, int] = (-1, -1)) -> list[Consumer]:
    """*count* workers of one master, over a board that says that the lease is good for a minute."""
    board = Board.create()
    slot = board.take_queue("bench", url)
    words = board.queues[slot].words
    words[Q.TARGET] = count
    words[Q.HALF_TIMEOUT_NS], words[Q.BEAT_NS] = int(60e9), SYSTEM.boottime_ns()
    master = names.master_name("bench", SYSTEM)
    slots = [board.take_worker(slot, index) for index in range(count)]
    return [Consumer(master, board, slot, number, index, count, *feed) for index, number in enumerate(slots)]


# ---- the bare loop, and the workers


def _bare(place: Path, messages: int) -> float:
    """Messages a second of one process that does nothing but what a message needs."""
    with Spool(str(place), Settings(create=True)) as queue:
        queue.put_many([BODY] * messages, durable=False)
    incoming, pending = f"{place}/incoming", f"{place}/pending"
    system = Network()

    def role(_: int, gate: Gate) -> None:
        gate.pass_()
        for name in sorted(system.listdir(incoming)):
            system.rename(f"{incoming}/{name}", f"{pending}/{name}")
            fd = system.open(f"{pending}/{name}", os.O_RDONLY | os.O_CLOEXEC)
            os.read(fd, len(BODY) + 1)
            system.close(fd)
            system.unlink(f"{pending}/{name}")
        gate.finish(messages)

    try:
        return run_together(1, role).rate
    finally:
        shutil.rmtree(place)


def _pool(place: Path, count: int, messages: int) -> tuple[Run, float]:
    """What *count* workers beside a keeper and a feeder did, and the operations of workers and feeder."""
    # Made by this process, so that all share it; each writes a word of its own.
    sent = memoryview(mmap.mmap(-1, 8 * (count + 1))).cast("q")
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, place)
        queue = stack.enter_context(Spool(str(place), Settings(create=True)))
        queue.put_many([BODY] * messages, durable=False)
        feed = open_feed()
        for fd in feed:
            stack.callback(os.close, fd)
        consumers = _consumers(queue.url, count, feed)
        stack.enter_context(_beside(lambda say: _keep(place, consumers[0], say)))
        stack.enter_context(_beside(lambda say: _feed(place, consumers[0], sent[count:], say)))
        slots = [one.board.worker(one.worker_slot).words for one in consumers]

        def is_over() -> bool:
            return sum(words[W.DONE] for words in slots) >= messages

        def role(index: int, gate: Gate) -> None:
            _work(place, consumers[index], is_over, gate, sent[index : index + 1])

        run = run_together(count, role)
    if run.handled != messages:
        raise BenchError(f"{run.handled} of {messages} messages in {place} were handled")
    return run, float(sum(sent))


def _work(place: Path, consumer: Consumer, is_over: Callable[[], bool], gate: Gate, sent: memoryview[int]) -> None:
    """A worker until *is_over()*; *sent* is told the operations that it waited for."""
    system, leaving = Network(), Leaving()
    words = consumer.board.worker(consumer.worker_slot).words
    feed = select.epoll()
    feed.register(consumer.feed, select.EPOLLIN | select.EPOLLEXCLUSIVE)

    def wait(_timeout_s: float, _fd: int) -> bool:
        if is_over():
            sent[0] = system.waited
            gate.finish(words[W.DONE], words[W.CONFLICTS])
            leaving.ask()
        else:
            feed.poll(LOOK_S)
        return True

    with Spool(str(place), system=system, host="bench") as queue:
        queue.attach(consumer)
        worker = Worker(queue, echo.read, consumer, leaving, wait=wait, parent=os.getppid(), system=system)
        gate.pass_()
        worker.run()


# ---- who runs beside them

Say = Callable[[str | None], None]  # None: ready; else why not


@contextlib.contextmanager
def _beside(role: Callable[[Say], None]) -> Iterator[None]:
    """Run *role* in a process beside the block, which begins when that is ready. It is killed in the end."""
    said, say = CONTEXT.Pipe(duplex=False)
    parent = os.getpid()

    def main() -> None:
        die_with_parent(parent)
        role(say.send)

    process = CONTEXT.Process(target=main)
    process.start()
    say.close()
    try:
        with said:
            refused = said.recv()
        if refused is not None:
            raise BenchError(refused)
        yield
    except EOFError:
        raise BenchError("a process beside the workers died; what it said stands above") from None
    finally:
        process.kill()
        process.join()


def _keep(place: Path, consumer: Consumer, say: Say) -> None:
    system = Network()
    QueueKeeper(lambda: Spool(str(place), system=system, host="bench"), consumer, system).run(say)


def _feed(place: Path, consumer: Consumer, sent: memoryview[int], say: Say) -> None:
    """The feeder; *sent* is told the operations that it waited for."""
    system = Network()

    def is_over() -> bool:
        sent[0] = system.waited
        return False

    feeding = Feeding(
        url=f"spool:{place}",
        source=Incoming(f"{place}/incoming", system),
        order="fifo",
        board=consumer.board,
        queue_slot=consumer.queue_slot,
        reader=consumer.feed,
        writer=consumer.feed_writer,
        watch=lambda: None,  # a server's files are not watched
        poll_interval_s=POLL_NETWORK_S,
        is_network=True,
    )
    say(None)
    Feeder(feeding, system).run(is_over)
