"""Unit tests of orchestrator.exporter: a real board, real sockets on the loopback, the server in a thread."""

from __future__ import annotations

import http.client
import json
import logging
import os
import random
import socket
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from orchestrator import exporter
from orchestrator.exporter import ExporterError, acceptable, address, bind, index_page, serve
from workers.board import SEQUENCES, TEXTS, Board, Header, HeaderText, MasterState, Q, QueueState, QueueText, W
from workers.board import WorkerState as State
from workers.system import SYSTEM, System

PROMETHEUS_ACCEPT = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


class Site:
    """A served board: its address and what asks it."""

    def __init__(self, board: Board, listener: socket.socket) -> None:
        self.board = board
        self.where: tuple[str, int] = listener.getsockname()[:2]

    def ask(self, path: str, method: str = "GET", body: bytes | None = None, **headers: str) -> Answer:
        connection = http.client.HTTPConnection(*self.where, timeout=30)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return Answer(answer.status, {key.lower(): text for key, text in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def say(self, raw: bytes) -> bytes:
        """Everything that is answered to *raw* until the end of the stream."""
        with socket.create_connection(self.where, timeout=30) as client:
            client.sendall(raw)
            client.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: client.recv(65536), b""))


Serve = Callable[..., Site]


@pytest.fixture
def serving() -> Iterator[Serve]:
    """Serve boards until the end of the test."""
    leave = threading.Event()
    running: list[tuple[threading.Thread, socket.socket]] = []

    def start(board: Board, system: System = SYSTEM) -> Site:
        listener, _ = bind(("127.0.0.1", 0), is_default=False)
        assert listener is not None
        thread = threading.Thread(
            target=serve, args=(listener, board), kwargs={"should_leave": leave.is_set, "system": system}
        )
        thread.start()
        running.append((thread, listener))
        return Site(board, listener)

    yield start
    leave.set()
    for thread, listener in running:
        thread.join(timeout=30)
        assert not thread.is_alive()
        listener.close()


def ready_board(workers: int = 2) -> Board:
    board = Board.create()
    number = board.take_queue("mail", "spool:/var/spool/mail")
    words = board.queues[number].words
    words[Q.READY], words[Q.BEAT_NS], words[Q.HALF_TIMEOUT_NS] = QueueState.READY, SYSTEM.boottime_ns(), 3600 * 10**9
    for index in range(workers):
        worker = board.worker(board.take_worker(number, index)).words
        worker[W.STATE], worker[W.PID] = State.IDLE, os.getpid()
    board.header.set_text(HeaderText.NAME, "inbox<b>")
    board.header.words[Header.STATE] = MasterState.RUNNING
    board.header.words[Header.LAST_SEEN_NS] = SYSTEM.boottime_ns() + 3 * 10**9
    return board


@pytest.fixture
def site(serving: Serve) -> Site:
    return serving(ready_board())


def test_metrics_are_read_by_the_text_parser_with_zeros_before_the_first_message(site: Site) -> None:
    answer = site.ask("/metrics")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = {s.name: s.value for family in parse_text(answer.body.decode()) for s in family.samples}
    assert found["orchestrator_worker_messages_total"] == 0
    assert found["orchestrator_message_processing_seconds_count"] == 0
    assert found["orchestrator_build_info"] == 1


@pytest.mark.parametrize("accept", ["application/openmetrics-text", PROMETHEUS_ACCEPT])
def test_metrics_are_openmetrics_when_asked_for(site: Site, accept: str) -> None:
    answer = site.ask("/metrics", Accept=accept)
    assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    families = parse_openmetrics(answer.body.decode())  # type: ignore[no-untyped-call]
    assert "orchestrator_worker_messages" in {family.name for family in families}


@pytest.mark.parametrize(
    "accept",
    [
        "application/openmetrics-text;version=abc",
        "application/openmetrics-text;version=1.0.0\r\n Set-Cookie:x",
        "application/openmetrics-text;version=2.0.0x",
        "text/plain;version=9.a.9",
        "text/plain;version=\xff",
        "a" * 2000,
        "",
        ";;;,,,===",
    ],
)
def test_hostile_accept_header_gets_the_plain_text(site: Site, accept: str) -> None:
    raw = site.say(b"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: " + accept.encode("latin-1") + b"\r\n\r\n")
    head, _, body = raw.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"text/plain; version=0.0.4" in head
    assert b"cookie" not in head.lower()
    assert b"orchestrator_workers" in body


def test_accept_headers_of_scrapers_are_passed_on() -> None:
    for accept in (
        PROMETHEUS_ACCEPT,
        "text/plain",
        "*/*",
        "application/openmetrics-text; version=1.0.0; charset=utf-8",
    ):
        assert acceptable(accept) == accept


def test_query_of_a_path_is_ignored(site: Site) -> None:
    assert site.ask("/metrics?name[]=x").status == 200


def test_health_is_said_with_the_reason(site: Site) -> None:
    assert site.ask("/healthz")[::2] == (200, b"ok\n")
    site.board.header.words[Header.LAST_SEEN_NS] = 1
    answer = site.ask("/healthz")
    assert answer.status == 503
    assert b"last round its loop" in answer.body


def test_readiness_is_said_with_the_reasons(site: Site) -> None:
    assert site.ask("/readyz")[::2] == (200, b"ok\n")
    site.board.queues[0].words[Q.BACKED_OFF] = 1
    answer = site.ask("/readyz")
    assert answer.status == 503
    assert answer.body.startswith(b"queue mail: backed off")


def test_status_is_json(site: Site) -> None:
    answer = site.ask("/api/status")
    assert answer.headers["content-type"] == "application/json"
    found = json.loads(answer.body)
    assert found["name"] == "inbox<b>"
    assert [worker["index"] for worker in found["queues"][0]["workers"]] == [0, 1]


def test_index_links_the_pages_and_escapes_names(site: Site) -> None:
    answer = site.ask("/")
    assert answer.status == 200
    assert b"inbox&lt;b&gt;" in answer.body
    assert b"<b>" not in answer.body
    for path in ("/metrics", "/healthz", "/readyz", "/api/status"):
        assert f'href="{path}"'.encode() in answer.body
        assert site.ask(path).status == 200
    assert "<title>orchestrator</title>" in index_page("")


@pytest.mark.parametrize("path", ["/etc/passwd", "/../../etc/passwd", "/metrics/", "//metrics/x", "/%2e%2e/", "*"])
def test_anything_else_is_not_found(site: Site, path: str) -> None:
    answer = site.ask(path)
    assert answer.status == 404
    assert b"root:" not in answer.body


@pytest.mark.parametrize("path", ["/", "/metrics", "/healthz", "/api/status", "/none"])
def test_every_answer_has_the_security_headers_and_head_has_no_body(site: Site, path: str) -> None:
    got, head = site.ask(path), site.ask(path, "HEAD")
    for answer in (got, head):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")
        assert answer.headers["server"] == "orchestrator"
    assert head.status == got.status
    assert int(got.headers["content-length"]) == len(got.body) > 0
    assert int(head.headers["content-length"]) > 0
    assert site.say(f"HEAD {path} HTTP/1.1\r\n\r\n".encode()).endswith(b"\r\n\r\n")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "FOO"])
def test_other_methods_are_refused_with_what_is_allowed(site: Site, method: str) -> None:
    answer = site.ask("/metrics", method)
    assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", b" 414 "),
        (b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 200 + b"\r\n", b" 431 "),
        (b"GET / HTTP/9.9\r\n\r\n", b" 505 "),
        (b"\x16\x03\x01\x02\x00\x01\n", b" 400 "),
    ],
)
def test_malformed_requests_are_refused_in_plain_text(site: Site, raw: bytes, status: bytes) -> None:
    answer = site.say(raw)
    assert answer.startswith(b"HTTP/1.1" + status)
    assert b"<" not in answer
    assert site.ask("/healthz").status == 200


def test_client_that_leaves_early_harms_nobody(site: Site, capfd: pytest.CaptureFixture[str]) -> None:
    for raw in (b"", b"GET /met", b"GET /metrics HTTP/1.1\r\n\r\n"):
        client = socket.create_connection(site.where, timeout=30)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")  # close resets
        client.sendall(raw)
        client.close()
    assert site.ask("/metrics").status == 200
    assert capfd.readouterr().err == ""


def test_requests_are_logged_for_debugging_only_and_escaped(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="orchestrator.exporter")
    site.say(b"GET /\x1b[2J HTTP/1.1\r\n\r\n")
    lines = [record for record in caplog.records if "HTTP/1.1" in record.getMessage()]
    assert lines
    assert all(record.levelno == logging.DEBUG for record in lines)
    assert not any("\x1b" in record.getMessage() for record in lines)


def test_connection_beyond_the_limit_is_closed(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter, "CONNECTIONS_MAX", 2)
    idle = [socket.create_connection(site.where, timeout=30) for _ in range(2)]
    try:
        with socket.create_connection(site.where, timeout=30) as third:
            assert third.recv(1) == b""
    finally:
        for client in idle:
            client.sendall(b"GET /healthz HTTP/1.1\r\n\r\n")
            while client.recv(65536):
                pass
            client.close()


def test_request_that_takes_too_long_is_cut_off(serving: Serve) -> None:
    """The clock jumps by a minute while a client has said half a line."""

    class Jumping(System):
        ahead_ns = 0

        def __init__(self) -> None:
            self.boottime_ns = lambda: SYSTEM.boottime_ns() + self.ahead_ns  # type: ignore[method-assign]

    system = Jumping()
    site = serving(ready_board(), system)
    with socket.create_connection(site.where, timeout=30) as slow:
        slow.sendall(b"GET /metr")
        assert site.ask("/healthz").status == 200  # the slow one was accepted before this one
        system.ahead_ns = 60 * 10**9
        while slow.recv(65536):
            pass


def test_many_scrapes_at_once_are_all_answered(site: Site) -> None:
    answers: list[int] = []
    threads = [threading.Thread(target=lambda: answers.append(site.ask("/metrics").status)) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [200] * 16


def test_garbage_on_the_board_is_served(serving: Serve) -> None:
    """Random words and texts everywhere but in the few words that make a slot count as in use."""
    board = ready_board()
    site = serving(board)
    noise = random.Random(1)  # noqa: S311 - noise, not a secret
    for _ in range(20):
        for place in (board.header, *board.queues[:4], *(board.worker(number) for number in range(4))):
            for word in range(SEQUENCES):
                place.words[word] = noise.getrandbits(64) - (1 << 63)
            for which in range(TEXTS):
                place.set_text(which, os.fsdecode(noise.randbytes(noise.randrange(256)).replace(b"\0", b"x")))
        for number in range(4):
            board.queues[number].words[Q.USED] = board.worker(number).words[W.USED] = 1
            board.worker(number).words[W.QUEUE] = number
            board.worker(number).words[W.PID] = noise.choice([-1, 1, 1 << 40, os.getpid()])
            board.worker(number).words[W.START] = 0
            board.queues[number].words[SEQUENCES + QueueText.NAME] |= noise.getrandbits(1)
        text = site.ask("/metrics")
        assert text.status == 200
        list(parse_text(text.body.decode()))
        assert json.loads(site.ask("/api/status").body)
        assert site.ask("/").status == 200
        assert {site.ask("/healthz").status, site.ask("/readyz").status} <= {200, 503}


def test_128_workers_are_scraped(serving: Serve) -> None:
    body = serving(ready_board(workers=128)).ask("/metrics").body.decode()
    found = [s for family in parse_text(body) for s in family.samples if s.name == "orchestrator_worker_claims_total"]
    assert {sample.labels["worker"] for sample in found} == {str(index) for index in range(128)}


def test_listening_nowhere_is_no_socket() -> None:
    assert bind(None, is_default=False) == (None, None)


def test_default_port_that_is_taken_gives_a_free_one_and_a_warning() -> None:
    first, warning = bind(("127.0.0.1", 0), is_default=False)
    assert first is not None
    with first:
        assert warning is None
        taken: tuple[str, int] = first.getsockname()
        second, warning = bind(taken, is_default=True)
        assert second is not None
        with second:
            assert second.getsockname()[0] == "127.0.0.1"
            assert second.getsockname()[1] != taken[1]
            assert warning is not None
            assert address(first) in warning
            assert address(second) in warning


def test_explicit_port_that_is_taken_is_an_error_that_names_it() -> None:
    first, _ = bind(("127.0.0.1", 0), is_default=False)
    assert first is not None
    with first:
        where = address(first)
        with pytest.raises(ExporterError) as raised:
            bind(first.getsockname(), is_default=False)
    assert where in str(raised.value)
    assert "another program listens there" in str(raised.value)
    assert "--listen none" in str(raised.value)
    assert isinstance(raised.value.__cause__, OSError)


@pytest.mark.parametrize("is_default", [True, False])
@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid"])
def test_address_that_is_not_of_this_host_is_an_error(host: str, is_default: bool) -> None:
    with pytest.raises(ExporterError, match=rf"{host}:9464.*--listen none"):
        bind((host, 9464), is_default)


def test_ipv6_address_is_written_in_brackets() -> None:
    try:
        listener, _ = bind(("::1", 0), is_default=False)
    except ExporterError:
        pytest.skip("this machine has no IPv6 loopback")
    assert listener is not None
    with listener:
        assert address(listener).startswith("[::1]:")
