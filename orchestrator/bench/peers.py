"""
peers - the queues that others would use in this one's place, each where it is installed

Each is used as its own documentation has it: put, take, read, finish, and nothing synced that
it does not sync by itself. What some need to run at all here, or to be measured fairly, is
changed in the measured process only (``prepare``).

    dirq-simple dirq-schema   dirq, QueueSimple and Queue
    mentat                    the directory queue of mentat-ng's filer
    ddmq huey kombu           ddmq; huey's file storage; kombu's filesystem transport
    persist-fifo persist-ack  persist-queue, Queue and SQLiteAckQueue
    redis                     LMOVE and LREM, one round trip each, on a server of the bench's own

Limits: those that list their directory for each message do not get through; they stop after
``load.seconds_max``. mentat-ng is not in the extra "bench": it brings 0.8 GB of other packages.
Long because: one short class for each peer, read side by side.
See also: subject.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import queue as standard
import shutil
import sqlite3
import sys
import tempfile
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

from orchestrator.bench.crew import Gate, run_together, running
from orchestrator.bench.measure import BenchError
from orchestrator.bench.subject import Looped

NAME = "bench"
SERVER_START_S_MAX = 10.0


class _Message(Protocol):
    def ack(self) -> object: ...


class _Queue(Protocol):
    """What kombu and persist-queue call a queue."""

    def put(self, body: bytes, /) -> object: ...

    def get(self, *, block: bool) -> _Message | None: ...


class _Client(Protocol):
    """The little of redis that is used."""

    def ping(self) -> object: ...

    def lpush(self, name: str, body: bytes, /) -> object: ...

    def lmove(self, source: str, target: str, side: str, other: str, /) -> bytes | None: ...

    def lrem(self, name: str, count: int, body: bytes, /) -> object: ...


class Peer(Looped):
    """A queue of others. *package* is what pip knows it as, *module* what is imported."""

    package: str
    module: str

    def missing(self) -> str | None:
        """Why it cannot be measured here, or None."""
        try:
            found = importlib.util.find_spec(self.module)
        except ImportError:
            found = None
        return None if found else f"the Python package {self.package} is not installed"

    @contextlib.contextmanager
    def opened(self, place: Path) -> Iterator[None]:
        """Make the queue, before several processes do so at once."""
        place.mkdir(0o700)
        self._make(place)
        yield

    def _make(self, place: Path) -> None:
        def role(_: int, gate: Gate) -> None:
            self.prepare(place)
            self.producer(place)
            gate.pass_()
            gate.finish()

        run_together(1, role)

    def prepare(self, place: Path) -> None:
        """Keep temporary files on the filesystem that is measured, and warnings out of the table."""
        tempfile.tempdir = str(place)
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the process ends

    @abstractmethod
    def producer(self, place: Path) -> Callable[[bytes], object]:
        """See Looped."""

    @abstractmethod
    def consumer(self, place: Path) -> Iterator[bool]:
        """See Looped."""


def _locked(queue: Any) -> Iterator[bool]:
    """Take from one of dirq's queues."""
    for name in queue:
        if not queue.lock(name):
            yield False
            continue
        queue.get(name)
        queue.remove(name)
        yield True


class DirqSimple(Peer):
    """One file a message, a hard link for a lock."""

    name, package, module = "dirq-simple", "dirq", "dirq.QueueSimple"

    def producer(self, place: Path) -> Callable[[bytes], object]:
        """Add."""
        add: Callable[[bytes], object] = importlib.import_module(self.module).QueueSimple(str(place / NAME)).add
        return add

    def consumer(self, place: Path) -> Iterator[bool]:
        """Lock, get, remove."""
        return _locked(importlib.import_module(self.module).QueueSimple(str(place / NAME)))


class DirqSchema(Peer):
    """A directory for each message, a directory in it for a lock."""

    name, package, module = "dirq-schema", "dirq", "dirq.queue"

    def producer(self, place: Path) -> Callable[[bytes], object]:
        """Add."""
        queue = importlib.import_module(self.module).Queue(str(place / NAME), schema={"body": "binary"})
        return lambda body: queue.add({"body": body})

    def consumer(self, place: Path) -> Iterator[bool]:
        """Lock, get, remove."""
        return _locked(importlib.import_module(self.module).Queue(str(place / NAME), schema={"body": "binary"}))


class Mentat(Peer):
    """The queue whose shape ours has."""

    name, package, module = "mentat", "mentat-ng", "mentat.dirq"

    def producer(self, place: Path) -> Callable[[bytes], object]:
        """Enqueue; it takes text."""
        enqueue = importlib.import_module(self.module).DirectoryQueue(str(place / NAME)).enqueue
        return lambda body: enqueue(body.decode("ascii"))

    def consumer(self, place: Path) -> Iterator[bool]:
        """Next, commit."""
        queue = importlib.import_module(self.module).DirectoryQueue(str(place / NAME))

        def take() -> Iterator[bool]:
            lost = 0
            while True:
                name, _ = queue.next()
                for _ in range(lost, queue.stats[queue.STAT_CNT_SKIPS]):
                    yield False
                lost = queue.stats[queue.STAT_CNT_SKIPS]
                if name is None:
                    return
                queue.cancel(name)
                yield True

        return take()


class Ddmq(Peer):
    """A JSON file for each message, sorted by name at each take. Cleaning is off: two that clean end each other."""

    name, package, module = "ddmq", "ddmq", "ddmq"

    def prepare(self, place: Path) -> None:
        """Give it the YAML loader that it does not name: since PyYAML 6 it cannot read its settings."""
        super().prepare(place)
        yaml = importlib.import_module("yaml")
        importlib.import_module("ddmq.broker")
        vars(sys.modules["ddmq.broker"])["yaml"] = SimpleNamespace(load=yaml.safe_load, dump=yaml.dump)

    def producer(self, place: Path) -> Callable[[bytes], object]:
        """Publish; it takes text."""
        broker = importlib.import_module(self.module).broker(str(place / NAME), create=True)
        with contextlib.suppress(FileExistsError):
            broker.create_queue(NAME)
        return lambda body: broker.publish(NAME, msg_text=body.decode("ascii"), clean=False)

    def consumer(self, place: Path) -> Iterator[bool]:
        """Consume, acknowledge."""
        broker = importlib.import_module(self.module).broker(str(place / NAME))

        def take() -> Iterator[bool]:
            while True:
                try:
                    message = broker.consume(NAME, clean=False)
                except FileNotFoundError:  # its loser of a race
                    yield False
                    continue
                if message is None:
                    return
                broker.ack(message)
                yield True

        return take()


class Huey(Peer):
    """A lock around a sorted listing. It forgets a message before that is handled."""

    name, package, module = "huey", "huey", "huey.storage"

    def producer(self, place: Path) -> Callable[[bytes], object]:
        """Enqueue."""
        enqueue: Callable[[bytes], object] = (
            importlib.import_module(self.module).FileStorage(NAME, str(place / NAME)).enqueue
        )
        return enqueue

    def consumer(self, place: Path) -> Iterator[bool]:
        """Dequeue."""
        storage = importlib.import_module(self.module).FileStorage(NAME, str(place / NAME))

        def take() -> Iterator[bool]:
            while storage.dequeue() is not None:
                yield True

        return take()


class Kombu(Peer):
    """Celery's transport for a directory; a sorted listing for each message."""

    name, package, module = "kombu", "kombu", "kombu"

    def producer(self, place: Path) -> Callable[[bytes], object]:
        """Put."""
        return self._queue(place).put

    def consumer(self, place: Path) -> Iterator[bool]:
        """Get, acknowledge."""
        queue = self._queue(place)

        def take() -> Iterator[bool]:
            while True:
                try:
                    message = queue.get(block=False)
                except standard.Empty:
                    return
                if message is not None:
                    message.ack()
                yield True

        return take()

    def _queue(self, place: Path) -> _Queue:
        directories = {"data_folder_in": place / NAME, "data_folder_out": place / NAME, "control_folder": place / "c"}
        for path in directories.values():
            path.mkdir(exist_ok=True)
        options = {key: str(path) for key, path in directories.items()}
        connection = importlib.import_module(self.module).Connection(transport="filesystem", transport_options=options)
        queue: _Queue = connection.SimpleQueue(NAME)
        return queue


class PersistFifo(Peer):
    """Chunks of 100 messages and a file that says how far one has read. Not made for several processes."""

    name, package, module = "persist-fifo", "persist-queue", "persistqueue"
    producers_max = 1

    def producer(self, place: Path) -> Callable[[bytes], object]:
        """Put."""
        return self._queue(place).put

    def consumer(self, place: Path) -> Iterator[bool]:
        """Get, and write down how far that was."""
        queue = self._queue(place)

        def take() -> Iterator[bool]:
            while True:
                try:
                    if queue.get(block=False) is None:
                        return
                except (OSError, EOFError, RuntimeError, importlib.import_module(self.module).Empty):
                    return  # all taken, or another process has removed the chunk that this one reads
                yield True

        return take()

    def _queue(self, place: Path) -> _Queue:
        path = place / NAME
        path.mkdir(exist_ok=True)
        module = importlib.import_module(self.module)
        queue: _Queue = module.Queue(str(path), tempdir=str(path), autosave=True)
        return queue


class PersistAck(Peer):
    """A table of SQLite; several processes select the same row."""

    name, package, module = "persist-ack", "persist-queue", "persistqueue"
    producers_max = 1

    def producer(self, place: Path) -> Callable[[bytes], object]:
        """Put."""
        put: Callable[[bytes], object] = (
            importlib.import_module(self.module).SQLiteAckQueue(str(place / NAME), multithreading=True).put
        )
        return put

    def consumer(self, place: Path) -> Iterator[bool]:
        """Get, acknowledge."""
        module = importlib.import_module(self.module)
        queue = module.SQLiteAckQueue(str(place / NAME), multithreading=True)

        def take() -> Iterator[bool]:
            while True:
                try:
                    found = queue.get(block=False, raw=True)
                    queue.ack(id=found["pqid"])
                except module.Empty:
                    return
                except sqlite3.OperationalError:  # the table is locked
                    yield False
                    continue
                yield True

        return take()


class Redis(Peer):
    """A list in the memory of a server: LMOVE to a list of one's own, then LREM. CPU is without the server's."""

    name, package, module = "redis", "redis", "redis"
    note = "CPU without the server's"

    def __init__(self) -> None:
        self._socket = ""

    def missing(self) -> str | None:
        """Why it cannot be measured here, or None."""
        if _server() is None:
            return "there is no redis-server (nor valkey-server)"
        return super().missing()

    @contextlib.contextmanager
    def opened(self, place: Path) -> Iterator[None]:
        """Run a server that keeps nothing on disk."""
        server = _server()
        assert server is not None  # noqa: S101 - missing() was asked
        place.mkdir(0o700)
        # Not below the place: the path of a socket has at most 107 bytes.
        with tempfile.TemporaryDirectory(prefix="bench-") as directory:
            self._socket = f"{directory}/socket"
            command = [server, "--port", "0", "--unixsocket", self._socket, "--save", "", "--appendonly", "no"]
            with running([*command, "--dir", directory], str(place / "output")):
                self._wait_for_server()
                yield

    def _wait_for_server(self) -> None:
        ends_s = time.monotonic() + SERVER_START_S_MAX
        while True:
            try:
                self._client().ping()
            except importlib.import_module(self.module).ConnectionError as error:
                if time.monotonic() > ends_s:
                    raise BenchError(f"redis-server does not answer: {error}") from error
                time.sleep(0.01)
            else:
                return

    def _client(self) -> _Client:
        client: _Client = importlib.import_module(self.module).Redis(unix_socket_path=self._socket)
        return client

    def producer(self, place: Path) -> Callable[[bytes], object]:  # noqa: ARG002 - it is in the server's memory
        """LPUSH."""
        push = self._client().lpush
        return lambda body: push(NAME, body)

    def consumer(self, place: Path) -> Iterator[bool]:  # noqa: ARG002 - it is in the server's memory
        """LMOVE, LREM."""
        client, own = self._client(), f"{NAME}:{os.getpid()}"
        move, remove = client.lmove, client.lrem

        def take() -> Iterator[bool]:
            while (body := move(NAME, own, "RIGHT", "LEFT")) is not None:
                remove(own, 1, body)
                yield True

        return take()


PEERS: tuple[Callable[[], Peer], ...] = (
    DirqSimple, DirqSchema, Mentat, Ddmq, Huey, Kombu, PersistFifo, PersistAck, Redis,
)  # fmt: skip


def names() -> list[str]:
    """All that are known, installed or not."""
    return [make().name for make in PEERS]


def installed(wanted: str) -> tuple[list[Peer], dict[str, str]]:
    """The peers that are here, of those *wanted* (a name, "none" or "all"); and why the others are not."""
    found, missing = [], {}
    for make in PEERS:
        peer = make()
        if wanted in ("all", peer.name):
            reason = peer.missing()
            if reason is None:
                found.append(peer)
            else:
                missing[peer.name] = reason
    return found, missing


def _server() -> str | None:
    return shutil.which("redis-server") or shutil.which("valkey-server")
