"""
originals - puts and takes by the libraries of others, beside pools of ours: what a producer of a fleet may be instead

``python -m tests.mounts.originals SCHEME PLACE RECORD FIRST STEP COUNT`` puts messages FIRST, FIRST + STEP ... until
RECORD holds COUNT lines, as errands does, and takes one for each that it puts. What it takes it writes into the journal
of handlers, as a worker does. Now and then it purges.

See also: errands, fleet, handlers.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.mounts.handlers import make_body, number_of, write
from tests.waiting import until

PURGE_EACH = 20
WAITING_MAX = 40
PATIENCE_S = 240.0
LOOK_S = 0.1


class Original(ABC):
    """A library on the queue at *place*. *errors* is what it raises when another takes what it has listed."""

    errors: tuple[type[Exception], ...] = (OSError, ValueError)

    @abstractmethod
    def put(self, body: bytes) -> str:
        """Its name, as a pool calls it."""

    @abstractmethod
    def take(self) -> tuple[str, bytes, Any] | None:
        """One message: name, body, and what end() is given; None when it has found none."""

    @abstractmethod
    def end(self, taken: Any) -> None:
        """Finish it."""

    @abstractmethod
    def purge(self) -> None:
        """Tidy, as its users do."""

    @abstractmethod
    def waiting(self) -> int:
        """How many there are, about."""


class Dirq(Original):
    """dirq, both kinds."""

    def __init__(self, place: str, *, is_simple: bool) -> None:
        self._is_simple = is_simple
        self.errors = (OSError, importlib.import_module("dirq.Exceptions").QueueError)
        if is_simple:
            self._queue = importlib.import_module("dirq.QueueSimple").QueueSimple(place)
        else:
            self._queue = importlib.import_module("dirq.queue").Queue(place, schema={"body": "binary"})

    def put(self, body: bytes) -> str:
        """See Original.put."""
        return str(self._queue.add(body if self._is_simple else {"body": body}))

    def take(self) -> tuple[str, bytes, Any] | None:
        """See Original.take."""
        name = self._queue.first()
        while name and not self._queue.lock(name):
            name = self._queue.next()
        if not name:
            return None
        data = self._queue.get(name)
        return name, data if self._is_simple else data["body"], name

    def end(self, taken: Any) -> None:
        """See Original.end."""
        self._queue.remove(taken)

    def purge(self) -> None:
        """See Original.purge."""
        self._queue.purge()

    def waiting(self) -> int:
        """See Original.waiting."""
        return int(self._queue.count())


class Ddmq(Original):
    """ddmq; its cleaning is part of each put."""

    def __init__(self, place: str) -> None:
        yaml, module = importlib.import_module("yaml"), importlib.import_module("ddmq")
        # It cannot read its settings as it is published.
        vars(sys.modules["ddmq.broker"])["yaml"] = SimpleNamespace(load=yaml.safe_load, dump=yaml.dump)
        root, self._name = os.path.split(place)
        self._broker = module.broker(root)

    def put(self, body: bytes) -> str:
        """See Original.put."""
        put = self._broker.publish(self._name, body.decode("utf-8", "surrogateescape"), requeue=True)
        return f"{put.queue_number}.ddmq{put.id}"

    def take(self) -> tuple[str, bytes, Any] | None:
        """See Original.take."""
        found = self._broker.consume(self._name, clean=False)
        if found is None:
            return None
        body = found.message.encode("utf-8", "surrogateescape")
        return ".".join(found.filename.split(".")[-2:]), body, found.filename

    def end(self, taken: Any) -> None:
        """See Original.end. By the file: told of the message it would put it back."""
        self._broker.ack(self._name, taken)

    def purge(self) -> None:
        """See Original.purge."""
        self._broker.clean(self._name, force=True)

    def waiting(self) -> int:
        """See Original.waiting."""
        return len(self._broker.get_message_list(self._name)[0])


def original(scheme: str, place: str) -> Original:
    """That of the scheme."""
    return Ddmq(place) if scheme == "ddmq" else Dirq(place, is_simple=scheme == "dirq-simple")


class Producer:
    """Puts, takes, and writes down both."""

    def __init__(self, library: Original, queue: str, record: str, numbers: range) -> None:
        self._original, self._queue = library, queue
        self._fd = os.open(record, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        begun = len(Path(record).read_text().splitlines())
        self._numbers, self._is_again = numbers[begun:], begun > 0
        self._journal = f"{os.getpid()}.{os.urandom(8).hex()}"

    def run(self) -> None:
        """Until all are put."""
        for done, number in enumerate(self._numbers):
            if self._is_again and not done:
                self._write(f"unknown {number}")  # it may have been put by the one before us, who was killed
                continue
            until(self._has_room, PATIENCE_S, LOOK_S)
            try:
                self._write(f"put {number} {self._original.put(make_body(number))}")
            except self._original.errors as error:
                print(f"put {number}: {error!r}", file=sys.stderr)  # noqa: T201 - it goes into the log
                self._write(f"unknown {number}")
            with suppress(*self._original.errors):
                self._take()
            if done % PURGE_EACH == PURGE_EACH - 1:
                with suppress(*self._original.errors):
                    self._original.purge()

    def _has_room(self) -> bool:
        try:
            return self._original.waiting() < WAITING_MAX
        except self._original.errors:
            return False

    def _take(self) -> None:
        taken = self._original.take()
        if taken is not None:
            name, body, handle = taken
            number = number_of(body)
            write(f"{'torn' if number < 0 else 'done'} {number} 1 {self._queue} {name}", self._journal)
            self._original.end(handle)

    def _write(self, line: str) -> None:
        os.write(self._fd, f"{line}\n".encode())
        os.fsync(self._fd)


def main(scheme: str, place: str, record: str, *numbers: str) -> None:
    """Run it."""
    warnings.simplefilter("ignore")  # later Pythons deprecate what they call
    first, step, count = map(int, numbers)
    of_ours = range(first, first + count * step, step)
    Producer(original(scheme, place), os.path.basename(place), record, of_ours).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
