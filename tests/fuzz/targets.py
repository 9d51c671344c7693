"""
targets - one function for each thing that strangers write: bytes in, nothing out

A target raises what it *refuses* its input with, an AssertionError where the result is not what it must be, and
nothing else. Those that need files have a directory of their own in memory (SHARED), beside which nothing may change.
Long because: they are one table, and each is a few lines.
See also: mutation (where inputs come from), test_fuzz, __main__.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from orchestrator import exporter, pidfile, rundir, runlog
from orchestrator.config import ConfigError, load
from orchestrator.config_toml import lines_of
from orchestrator.config_values import (
    absolute_url,
    account_number,
    duration_text,
    listen_text,
    nearest_spec,
    parse_duration,
    parse_listen,
    parse_size,
)
from orchestrator.control import ControlServer
from orchestrator.master import Master
from orchestrator.metrics import registry
from orchestrator.reading import BoardReader
from orchestrator.status import is_healthy, is_ready, snapshot
from workers.board import QUEUES_MAX, SLOT_SIZE, Board, Q, W
from workers.ddmq import flat_yaml
from workers.ddmq import names as ddmq_names
from workers.ddmq.errors import SettingsError
from workers.dirq.errors import QueueError as DirqError
from workers.dirq.queue import Queue
from workers.dirq.schema import parse_schema
from workers.dirq.simple import QueueSimple
from workers.dirq.table import decode_table, encode_table
from workers.errors import InvalidName, QueueRefused
from workers.queues import ddmq_hand, names
from workers.queues.base import Settings
from workers.queues.ddmq_content import content_of
from workers.queues.open import open_queue
from workers.queues.receive import HEADER, MAGIC, Seen
from workers.queues.spool_look import read_meta
from workers.saved import SavedError
from workers.saved import load as load_saved
from workers.system import SYSTEM

SHARED = "/dev/shm" if os.path.isdir("/dev/shm") else None
HTTP_STATUS = ("200", "400", "404", "405", "411", "413", "414", "417", "421", "431", "501", "503", "505")
SCHEMA = "body:string,header:table?,raw:binary?"


@dataclass(frozen=True, slots=True)
class Target:
    """
    One thing to be fuzzed.

    Attributes:
        check: reads its input, and asserts what must hold of the result.
        refuses: what may be raised for an input that is none; nothing else may.
        examples: how many inputs CI tries, beside the corpus.
    """

    check: Callable[[bytes], None]
    refuses: tuple[type[Exception], ...] = ()
    examples: int = 200


# ---- names


def file_names(data: bytes) -> None:
    """The name of a file in a spool queue: any bytes but / and NUL."""
    name = os.fsdecode(data.replace(b"/", b"_").replace(b"\0", b"_")) or "x"
    found = names.parse(name)
    if found.token:
        assert names.marked(found.attempts, found.crashes, found.token, found.name) == name
        assert found.token.endswith(names.check(found.name))
    assert _stays_inside(found.name if found.token else "x")
    due = names.parse_due(name)
    assert due is None or (due[1].token and due[0] == int(name.partition(".")[0]))
    written_s = names.enqueued_at(name)
    assert written_s is None or names.iso(written_s).endswith("Z")
    assert names.shown(name).isprintable()
    short = names.shortened(name, "0123456789abcdef")
    assert len(os.fsencode(short)) <= names.NAME_BYTES_MAX
    for unpublished in (name, short):
        names.is_ignored(unpublished)
        names.is_unique(unpublished)
        names.is_unpublished(unpublished)


def given_names(data: bytes) -> None:
    """What a producer wants its message to be called."""
    name = os.fsdecode(data)
    assert names.check_given(name) == name
    assert _stays_inside(name)
    assert names.parse(name).token == ""


def owners(data: bytes) -> None:
    """The names by which workers and masters say that they are there; processes are looked for by these numbers."""
    name = os.fsdecode(data)
    owner, master, lease = names.parse_owner(name), names.parse_master(name), names.parse_lease(name)
    if owner is not None:
        assert names.parse_master(owner.master) == (owner.host, owner.kernel8, owner.master_pid, owner.master_start)
        assert name.startswith(f"{owner.master}.")
        for pid in (owner.pid, owner.master_pid):
            assert pid >= 0
            SYSTEM.is_alive(pid, owner.start)
    if lease is not None:
        assert names.parse_master(lease[0]) is not None
    if owner or master or lease:
        assert _stays_inside(name)
        assert name.isascii()
        assert name.isprintable()


def _stays_inside(name: str) -> bool:
    """Whether it is one name in a directory, and not the directory or its parent."""
    return os.path.dirname(os.path.normpath(f"/queue/incoming/{name}")) == "/queue/incoming" and "\0" not in name


# ---- configuration


def configuration(data: bytes) -> None:
    """A TOML file; each refusal is text that a terminal may show."""
    path = _place() / "pool.toml"
    path.write_bytes(data)
    try:
        found = load([path], flags={}, environment={}, directory="/")
        assert found == load([path], flags={}, environment={}, directory="/")
    except ConfigError as error:
        _assert_printable(str(error))
        raise


def _assert_printable(text: str) -> None:
    assert all(line.isprintable() for line in text.split("\n")), text


def lines(data: bytes) -> None:
    """The line of each place in a TOML file, which only words an error: whatever it is given, it ends."""
    text = data.decode("utf-8", "replace")
    assert all(1 <= line <= text.count("\n") + 1 for line in lines_of(text).values())


def values(data: bytes) -> None:
    """Durations, sizes, addresses, URLs and accounts of the configuration."""
    text = os.fsdecode(data)
    with contextlib.suppress(ValueError):
        seconds = parse_duration(text)
        assert math.isclose(parse_duration(duration_text(seconds)), seconds, rel_tol=1e-6, abs_tol=1e-9)
    with contextlib.suppress(ValueError):
        assert parse_size(text) >= 0
    with contextlib.suppress(ValueError):
        listen = parse_listen(text)
        assert listen is None or 0 <= listen[1] < 1 << 16
        assert parse_listen(listen_text(listen)) == listen
    with contextlib.suppress(ValueError):
        number = account_number(text)
        assert number is None or 0 <= number < (1 << 32) - 1
    with contextlib.suppress(ValueError):
        url = absolute_url(text, "/here")
        assert absolute_url(url, None) == url
        assert ":" in url
    spec = nearest_spec(text)
    assert spec is None or spec.count(":") == 1


# ---- what is asked of a pool


class _FakePool:
    """What the control socket may do to a master, without one."""

    _scale = Master._scale

    def __init__(self) -> None:
        self.done: list[object] = []
        policy = SimpleNamespace(size=1)
        self.queues = {"in": SimpleNamespace(config=SimpleNamespace(name="in"), pool=SimpleNamespace(policy=policy))}
        self.loop = SimpleNamespace(events=SimpleNamespace(schedule=self.done.append))
        self._runlog = SimpleNamespace(path=None)
        self.config = SimpleNamespace(pool=SimpleNamespace(name="pool", state_file=Path("state")))

    def scale(self, queue: object, size: int) -> None:
        assert type(size) is int
        assert 1 <= size <= 1024
        self.done.append(size)


def control_requests(data: bytes) -> None:
    """A line of a client's on the control socket: answered, in one line, and never by a fault of ours."""
    pool: Any = _FakePool()
    server: Any = ControlServer.__new__(ControlServer)
    server._dispatch = lambda verb, arguments: Master.dispatch(pool, verb, arguments)
    with _no_log():
        reply = server._reply(data)
    assert json.dumps(reply).isprintable()
    assert type(reply["ok"]) is bool
    assert reply["ok"] != bool(reply.get("error"))
    assert "its log says why" not in str(reply.get("error"))
    assert not pool.done or reply["ok"]


def http_requests(data: bytes) -> None:
    """What a client sends to the exporter; answered with an HTTP answer that has all headers, or not at all."""
    client = SimpleNamespace(
        makefile=lambda *_: io.BytesIO(data), settimeout=lambda *_: None, setsockopt=lambda *_: None, sent=b""
    )

    def send(part: bytes) -> None:
        client.sent += bytes(part)

    client.sendall = send
    handler: Any = exporter._Handler
    with _no_log():
        handler(client, ("127.0.0.1", 1), _server())
    if client.sent:
        head, _, body = client.sent.partition(b"\r\n\r\n")
        first, *headers = head.decode("ascii").split("\r\n")
        assert first.startswith("HTTP/1.1 ")
        assert first.split()[1] in HTTP_STATUS
        found = dict(line.split(": ", 1) for line in headers)
        assert len(found) == len(headers)
        assert exporter.HEADERS.items() <= found.items()
        if first.split()[1] == "200":
            assert b"/../" not in data.split(b" ")[1].partition(b"?")[0]
        assert b"<script" not in body or not found["Content-Type"].startswith("text/html")


@cache
def _server() -> Any:
    board = _board()
    reader = BoardReader(board)
    return SimpleNamespace(
        board=board, system=SYSTEM, reader=reader, registry=registry(board, reader), is_local=True,
        names=frozenset(("", "localhost")),
    )  # fmt: skip


# ---- the board


@cache
def _board() -> Board:
    board = Board.create()
    number = board.take_queue("in", "spool:/in")
    board.take_worker(number, 0)
    return board


@cache
def _damaged() -> Board:
    return Board.create()


def board_bytes(data: bytes) -> None:
    """Bytes over the header, two queues and two workers that look in use; read by all who read a board."""
    board = _damaged()
    slots = (board.header, *board.queues[:2], board.worker(0), board.worker(1))
    noise = itertools.cycle(data or b"\0")
    with memoryview(bytearray(itertools.islice(noise, SLOT_SIZE * len(slots)))) as raw:
        for number, slot in enumerate(slots):
            part = raw[number * SLOT_SIZE : (number + 1) * SLOT_SIZE]
            size = len(slot.words) * 8
            slot.words[:] = part[:size].cast("q")
            slot._texts[:] = part[size:]
    for number in range(2):
        board.queues[number].words[Q.USED] = board.worker(number).words[W.USED] = 1
        board.worker(number).words[W.QUEUE] %= QUEUES_MAX
    reader = BoardReader(board)
    json.loads(json.dumps(snapshot(board, reader), allow_nan=False))
    text = generate_latest(registry(board, reader)).decode()
    for family in text_string_to_metric_families(text):
        assert all(not math.isnan(sample.value) for sample in family.samples)
    is_healthy(board, 1)
    is_ready(board)


# ---- queues of other programs


def tables(data: bytes) -> None:
    """A table of a dirq element."""
    found = decode_table(data)
    assert decode_table(encode_table(found)) == found


def schemas(data: bytes) -> None:
    """The schema of a dirq URL."""
    found = parse_schema(data.decode("utf-8", "replace"))
    assert all(key.isalnum() and key != "locked" for key in found)


def dirq_simple(data: bytes) -> None:
    """A directory of the simple kind in which anybody has made files: the first line the names, the rest the body."""
    with _queue_of_strangers(data) as place:
        queue = QueueSimple(str(place))
        for name in itertools.islice(queue, 20):
            with contextlib.suppress(OSError):  # a link is no element, and says so
                if queue.lock(name):
                    queue.get(name)
                    queue.unlock(name)
        queue.count()
        queue.purge(0, 0)
        for name in list(queue):
            with contextlib.suppress(OSError):
                if queue.lock(name):
                    queue.remove(name)


def dirq_normal(data: bytes) -> None:
    """The same of the Normal kind: what was made are elements, each with the parts of the schema in any bytes."""
    with _queue_of_strangers(data, parts=("body", "header", "raw", "locked")) as place:
        queue = Queue(str(place), schema=parse_schema(SCHEMA))
        for name in itertools.islice(queue, 20):
            if queue.lock(name):
                with contextlib.suppress(DirqError, OSError):  # not of the schema; no UTF-8
                    queue.get(name)
                queue.unlock(name)
        queue.count()
        queue.purge(0, 0)
        for name in list(queue):
            with contextlib.suppress(DirqError):
                if queue.lock(name):
                    queue.remove(name)


@contextlib.contextmanager
def _queue_of_strangers(data: bytes, parts: tuple[str, ...] = ()) -> Iterator[Path]:
    """A directory with two levels of what *data* names, and beside it a file that must stay as it is."""
    place = _place() / "dirq"
    shutil.rmtree(place, ignore_errors=True)
    secret = _place() / "secret"
    secret.write_bytes(b"kept")
    head, _, body = data.partition(b"\n")
    called = [name for name in head.split(b" ") if name not in (b"", b".", b"..") and len(name) < 200]
    for number, name in enumerate(called[:8]):
        if b"/" in name or b"\0" in name:
            continue
        directory = os.fsencode(place) + (b"/00000000" if number % 2 else b"/0000000a")
        os.makedirs(directory, exist_ok=True)
        path = directory + b"/" + name
        with contextlib.suppress(FileExistsError):
            if parts:
                os.mkdir(path)
                for index, part in enumerate(parts[: 1 + (len(body) + number) % len(parts)]):
                    Path(os.fsdecode(path), part).write_bytes(body[index:])
            elif number % 3 == 2:
                os.symlink(secret, path)
            else:
                with open(path, "xb") as file:
                    file.write(body)
    place.mkdir(exist_ok=True)
    beside = sorted(os.listdir(_place()))
    yield place
    assert secret.read_bytes() == b"kept"
    assert secret.stat().st_nlink == 1
    assert sorted(os.listdir(_place())) == beside


def ddmq_file_names(data: bytes) -> None:
    """Names in a ddmq queue, and names of such queues."""
    name = os.fsdecode(data)
    waiting, work = ddmq_names.parse_waiting(name), ddmq_names.parse_work(name)
    if waiting is not None:
        again = ddmq_names.parse_work(ddmq_names.claim_name(1234567890, name))
        assert again == (1234567890, name)
        assert ddmq_names.parse_work(ddmq_names.claim_name(1234567890, name, 10**11)) == (1234567891, name)
        assert ddmq_names.waiting_key(name)
    if work is not None:
        assert ddmq_names.parse_waiting(work[1]) is not None
        ddmq_names.is_by_shared_clock(name)
    assert not ((waiting or work) and not _stays_inside(name))
    for check in (ddmq_names.check_queue, ddmq_names.check_new_queue):
        with contextlib.suppress(ValueError):
            assert check(name) == name
            assert _stays_inside(name)


def ddmq_settings(data: bytes) -> None:
    """A file ddmq.yaml: what is read is what a YAML library reads, and is written so that both read it again."""
    text = data.decode("utf-8")
    found = flat_yaml.loads(text, "ddmq.yaml")
    with contextlib.suppress(yaml.YAMLError):
        expected = yaml.safe_load(text) or {}
        assert repr(found) == repr(expected)  # as text: NaN is no equal of itself
    written = flat_yaml.dumps(found)
    assert repr(flat_yaml.loads(written, "again")) == repr(dict(sorted(found.items())))
    assert repr(yaml.safe_load(written) or {}) == repr(dict(sorted(found.items())))


def ddmq_messages(data: bytes) -> None:
    """The content of a ddmq message: a body, or why there is none."""
    found = content_of(data, 0.0)
    assert (found.body is None) == (found.trouble is not None)
    assert 0 <= found.lasts_s <= 10**9
    assert found.attempts_max >= 0
    assert found == content_of(data, 0.0)


def ddmq_hands(data: bytes) -> None:
    """What a worker of a ddmq queue has in hand, as its record says."""
    hand = ddmq_hand.hand_in(data.decode("ascii", "replace"))
    if hand is not None:
        assert 1 <= len(hand.work_names()) <= 2
    if hand is not None and ddmq_names.parse_waiting(hand.waiting) is not None:
        line = ddmq_hand.claim_line(hand.waiting, hand.expiry, hand.lasts_s, hand.fraction)
        again = ddmq_hand.hand_in((line + ddmq_hand.touch_line(hand, hand.now)).decode("ascii", "replace"))
        assert again is not None
        assert (again.expiry, again.lasts_s) == (hand.expiry, hand.lasts_s)


def receive_files(data: bytes) -> None:
    """A file that a message of the kernel's queue was received into."""
    raw = MAGIC.to_bytes(8, "little", signed=True) + data[:56].ljust(56, b"\0") + data[56:]
    for image in (data, raw.ljust(HEADER, b"\0")[:HEADER], raw.ljust(HEADER, b"\0") + data):
        seen = Seen.of("/somewhere", image)
        if seen is not None:
            assert len(seen.body) <= max(len(image) - HEADER, 0)
            assert 0 <= seen.attempts < 1 << 16
            assert 0 <= seen.crashes < 1 << 16
            assert len(os.fsencode(seen.owner)) <= 255
            owners(os.fsencode(seen.owner))


# ---- files of our own


def metas(data: bytes) -> None:
    """A .meta in errors/, which anybody may have written: shown as JSON, or not at all."""
    path = _place() / "x.meta"
    path.write_bytes(data)
    found = read_meta(SimpleNamespace(system=SYSTEM), str(path))  # type: ignore[arg-type]
    if found is not None:
        assert json.dumps(found, allow_nan=False).isprintable()


def formats(data: bytes) -> None:
    """The file .pool/format of a spool queue."""
    path = _place() / "queue"
    if not path.is_dir():
        open_queue(str(path), create=True).close()
    (path / ".pool/format").write_bytes(data)
    open_queue(str(path), settings=Settings()).close()


def pid_files(data: bytes) -> None:
    """A pid file: processes are signalled by that number."""
    pid, running = pidfile.parsed(data[: pidfile.PID_BYTES_MAX]), rundir._parse(data[: pidfile.PID_BYTES_MAX])
    assert 0 <= pid < 1 << 31
    assert running is None or (running[0] == pid > 0 and running[1] >= 0)


def run_logs(data: bytes) -> None:
    """A run log of anybody's: analysed, or called none."""
    path = _place() / "20260101000000.1.runlog"
    path.write_bytes(data)
    found = runlog.analyse("x", load_saved(path), 1e9)
    assert json.dumps(found.as_json(), allow_nan=False).isprintable()
    assert found.command.isprintable()
    assert found.result.isprintable()
    assert 0 <= found.effectivity <= 100


@cache
def _place() -> Path:
    """A directory in memory that is gone with this process."""
    place = tempfile.TemporaryDirectory(prefix="fuzz-", dir=SHARED)
    _kept.append(place)
    return Path(place.name)


_kept: list[tempfile.TemporaryDirectory[str]] = []


@contextlib.contextmanager
def _no_log() -> Iterator[None]:
    """Not a line of what is logged, which here is each refused input."""
    logging.disable()
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


TARGETS = {
    "file_names": Target(file_names),
    "given_names": Target(given_names, (InvalidName,)),
    "owners": Target(owners),
    "configuration": Target(configuration, (ConfigError,), 100),
    "lines": Target(lines),
    "values": Target(values),
    "control_requests": Target(control_requests),
    "http_requests": Target(http_requests, examples=100),
    "board_bytes": Target(board_bytes, examples=50),
    "tables": Target(tables, (DirqError, UnicodeDecodeError)),
    "schemas": Target(schemas, (DirqError,)),
    "dirq_simple": Target(dirq_simple, examples=100),
    "dirq_normal": Target(dirq_normal, examples=100),
    "ddmq_file_names": Target(ddmq_file_names),
    "ddmq_settings": Target(ddmq_settings, (SettingsError, UnicodeDecodeError)),
    "ddmq_messages": Target(ddmq_messages),
    "ddmq_hands": Target(ddmq_hands),
    "receive_files": Target(receive_files),
    "metas": Target(metas),
    "formats": Target(formats, (QueueRefused,), 100),
    "pid_files": Target(pid_files),
    "run_logs": Target(run_logs, (SavedError,)),
}
