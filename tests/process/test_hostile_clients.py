"""
test_hostile_clients - whoever connects to a pool, its loop, its workers and its metrics go on

The clients are of the pool's own user, the most that the control socket's mode lets through.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from orchestrator import control
from orchestrator.master import VERBS
from tests.process.pools import HANDLERS, Pool, Pools, make_queue
from workers.board import Header

STORM = 500
LINE_BYTES = 100_000_000
DESCRIPTORS = 250  # that one message may pass
WRONG: tuple[object, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1025,
    1.5,
    10**400,
    "",
    "3",
    "queue\0",
    "\ud800",
    [],
    ["queue"],
    {},
    {"queue": 3},
)


@pytest.fixture(name="clients")
def _clients() -> Iterator[contextlib.ExitStack]:
    """Holds connections until the end of the test."""
    with contextlib.ExitStack() as stack:
        yield stack


def control_path(pool: Pool) -> Path:
    return pool.board_path.parent / "control"


def connect(clients: contextlib.ExitStack, pool: Pool) -> socket.socket:
    client = clients.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    client.connect(str(control_path(pool)))
    client.settimeout(30)
    return client


def say(client: socket.socket, what: bytes) -> None:
    """Send as much of it as is taken."""
    with contextlib.suppress(OSError):
        client.sendall(what)


def idle(clients: contextlib.ExitStack, pool: Pool) -> None:
    for _ in range(STORM):
        connect(clients, pool)


def garbage(clients: contextlib.ExitStack, pool: Pool) -> None:
    noise = random.Random(9)  # noqa: S311 - noise, not a secret
    for size in range(100):
        say(connect(clients, pool), noise.randbytes(size * 100) + b"\n" * (size % 3))


def endless_line(clients: contextlib.ExitStack, pool: Pool) -> None:
    client = connect(clients, pool)
    say(client, b"x" * LINE_BYTES)
    assert b"a request has at most 4096 bytes" in client.recv(4096)


def unread_replies(clients: contextlib.ExitStack, pool: Pool) -> None:
    client = connect(clients, pool)
    client.settimeout(0)
    say(client, b'{"verb":"ping"}\n' * 100_000)
    client.shutdown(socket.SHUT_WR)


def passed_descriptors(clients: contextlib.ExitStack, pool: Pool) -> None:
    with open(os.devnull, "rb") as null:
        for _ in range(10):
            client = connect(clients, pool)
            for _ in range(10):
                with contextlib.suppress(OSError):
                    socket.send_fds(client, [b"x"], [null.fileno()] * DESCRIPTORS)


def killed(clients: contextlib.ExitStack, pool: Pool) -> None:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        for _ in range(10):
            say(connect(clients, pool), b'{"verb":')
        os.write(writer, b"!")
        signal.pause()
    os.close(writer)
    os.read(reader, 1)
    os.close(reader)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


@pytest.mark.parametrize("attack", [idle, garbage, endless_line, unread_replies, passed_descriptors, killed])
def test_a_client_of_the_control_socket_holds_nothing_up(
    pools: Pools, queue: Path, clients: contextlib.ExitStack, attack: Callable[[contextlib.ExitStack, Pool], None]
) -> None:
    """Messages are handled, signals obeyed and an honest request answered meanwhile; nothing of it is left."""
    pool = pools.start(str(queue), "--workers", "2", "--handler", f"{HANDLERS}:answer").ready()
    master = psutil.Process(pool.process.pid)
    descriptors, size = master.num_fds(), master.memory_info().rss
    attack(clients, pool)
    make_queue(queue).put_many([b"x"] * 20)
    pool.until(lambda: pool.outcome("done") == 20)
    pool.send(signal.SIGTTIN)
    pool.until(lambda: len(pool.pids) == 3)
    assert control.request(control_path(pool), "scale", queue="queue", workers=2) == {"queue": "queue", "workers": 2}
    pool.until(lambda: len(pool.pids) == 2)
    assert master.num_fds() <= descriptors + control.CONNECTIONS_MAX
    assert master.memory_info().rss < size + LINE_BYTES / 2
    clients.close()
    pool.until(lambda: master.num_fds() <= descriptors)
    assert "Traceback" not in pool.log
    assert pool.end(signal.SIGINT) == 0


def test_no_verb_is_obeyed_with_arguments_that_are_not_its_own(pools: Pools, queue: Path) -> None:
    pool = pools.start(str(queue), "--workers", "2", "--handler", f"{HANDLERS}:answer").ready()
    right: dict[str, object] = {"queue": "queue", "workers": 3}
    others = ("", "PING", "ping ", "quick", "now", "__class__", "stop\0", "\ud800", "x" * 4_000)
    asked: list[tuple[str, dict[str, object]]] = [(verb, {}) for verb in others]
    for verb, takes in VERBS.items():
        own = {key: right[key] for key in takes}
        asked += [(verb, {**own, "more": 1}), (verb, {**own, "": None})]
        asked += [(verb, {other: own[other] for other in own if other != key}) for key in own]
        asked += [(verb, {**own, key: wrong}) for key in right for wrong in WRONG]
    for verb, arguments in asked:
        with pytest.raises(control.ControlError, match=rf"there is no|{verb} takes|workers must be"):
            control.request(control_path(pool), verb, **arguments)  # type: ignore[arg-type]
    assert pool.status["state"] == "running"
    assert len(pool.pids) == pool.status["totals"]["target"] == 2
    assert "Traceback" not in pool.log
    assert pool.end() == 0
    assert "reloaded" not in pool.log
    assert "draining" not in pool.log


def test_idle_clients_of_the_exporter_keep_no_scraper_out(
    pools: Pools, queue: Path, clients: contextlib.ExitStack
) -> None:
    """500 connections, half of them with noise; then 24 with 8 descriptors left to the exporter."""
    pool = pools.start(str(queue), "--workers", "1", "--handler", f"{HANDLERS}:answer", listen="127.0.0.1:0").ready()
    host, _, port = pool.status["listen"].rpartition(":")
    exporter = psutil.Process(pool.service(Header.EXPORTER_PID).pid)
    descriptors = exporter.num_fds()
    noise = random.Random(9)  # noqa: S311 - noise, not a secret

    def is_scraped() -> bool:
        with contextlib.suppress(OSError):  # refused, and reset before the refusal was read
            return pool.get("/metrics")[0] == 200
        return False

    for limit, count in ((resource.getrlimit(resource.RLIMIT_NOFILE)[0], STORM), (descriptors + 8, 24)):
        resource.prlimit(exporter.pid, resource.RLIMIT_NOFILE, (limit, limit))
        for number in range(count):
            client = clients.enter_context(socket.create_connection((host, int(port)), timeout=30))
            if number % 2:
                say(client, noise.randbytes(number))
        pool.until(is_scraped)
        assert exporter.num_fds() <= descriptors + 70
        clients.close()
        pool.until(lambda: exporter.num_fds() <= descriptors)
    make_queue(queue).put(b"x")
    pool.until(lambda: pool.outcome("done") == 1)
    assert pool.get("/healthz")[0] == 200
    assert pool.service(Header.EXPORTER_PID).pid == exporter.pid
    assert "Traceback" not in pool.log
    assert pool.end() == 0
