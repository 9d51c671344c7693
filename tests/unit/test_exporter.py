"""Unit tests of orchestrator.exporter: a real board, real sockets on the loopback, the server in a thread."""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import logging
import os
import random
import socket
import threading
from collections.abc import Callable, Iterator
from socketserver import TCPServer
from typing import NamedTuple, SupportsIndex

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from orchestrator import exporter
from orchestrator.exporter import HEADERS, ExporterError, acceptable, address, bind, index_page, serve
from tests.waiting import until
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
            # What is refused at its beginning may be answered and closed before its end was sent.
            with contextlib.suppress(OSError):
                client.sendall(raw)
                client.shutdown(socket.SHUT_WR)
            said = b""
            with contextlib.suppress(ConnectionError):
                while part := client.recv(65536):
                    said += part
            return said


Serve = Callable[..., Site]


@pytest.fixture
def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Serve boards until the end of the test."""
    monkeypatch.setattr(exporter._Server, "timeout", 0.01)  # to leave soon
    leave = threading.Event()
    running: list[tuple[threading.Thread, socket.socket]] = []

    def start(board: Board, system: System = SYSTEM, listener: socket.socket | None = None) -> Site:
        if listener is None:
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
        "application/openmetrics-text;version=1.0.0 1",
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
    raw = site.say(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept: " + accept.encode("latin-1") + b"\r\n\r\n")
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


def test_the_headers_forbid_what_a_page_of_another_site_could_do_with_ours() -> None:
    policy = dict(part.split(" ", 1) for part in HEADERS["Content-Security-Policy"].split("; "))
    assert policy == dict.fromkeys(("default-src", "base-uri", "form-action", "frame-ancestors"), "'none'")
    assert HEADERS["X-Content-Type-Options"] == "nosniff"
    assert HEADERS["X-Frame-Options"] == "DENY"
    assert HEADERS["Cache-Control"] == "no-store"
    assert HEADERS["Referrer-Policy"] == "no-referrer"
    assert HEADERS["Cross-Origin-Resource-Policy"] == "same-origin"


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "/../../etc/passwd",
        "/metrics/",
        "//metrics/x",
        "/%2e%2e/",
        "*",
        "/%6detrics",
        "/.",
        "/;/metrics",
        "/metrics%00",
        "http://localhost/metrics",
        "/%0d%0aSet-Cookie:%20x",
    ],
)
def test_anything_else_is_not_found(site: Site, path: str) -> None:
    answer = site.ask(path)
    assert answer.status == 404
    assert b"root:" not in answer.body


@pytest.mark.parametrize("path", ["/", "/metrics", "/healthz", "/api/status", "/none"])
def test_every_answer_has_the_security_headers_and_head_has_no_body(site: Site, path: str) -> None:
    got, head = site.ask(path), site.ask(path, "HEAD")
    for answer in (got, head):
        assert answer.headers.items() >= {name.lower(): text for name, text in HEADERS.items()}.items()
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
        (b"GET /" + b"a" * exporter.HEAD_BYTES_MAX, b" 414 "),
        (b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 200 + b"\r\n", b" 431 "),
        (b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 10_000 + b"\r\n", b" 431 "),
        (b"GET / HTTP/1.1\r\nx: " + b"y" * exporter.HEAD_BYTES_MAX + b"\r\n\r\n", b" 431 "),
        (b"GET / HTTP/1.1\r\n" + (b"x: " + b"y" * 1000 + b"\r\n") * 40 + b"\r\n", b" 431 "),
        (b"GET / HTTP/9.9\r\n\r\n", b" 505 "),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b" 505 "),
        (b"GET /api/status\r\n\r\n", b" 505 "),
        (b"GET /api/status HTTP/0.9\r\n\r\n", b" 505 "),
        (b"GET / HTTP/\xb2.1\r\n\r\n", b" 400 "),
        (b"\x16\x03\x01\x02\x00\x01\n", b" 400 "),
        (b"GET /\r\n", b" 505 "),
        (b"GET / a\x1b]0;b\x07 <script> HTTP/1.1\r\n\r\n", b" 400 "),
        (b"GET /\0 HTTP/1.1\r\n\r\n", b" 404 "),
    ],
)
def test_malformed_requests_are_refused_in_plain_text(site: Site, raw: bytes, status: bytes) -> None:
    answer = site.say(raw)
    assert answer.startswith(b"HTTP/1.1" + status)
    assert b"\r\nX-Content-Type-Options: nosniff\r\n" in answer
    assert b"\r\nContent-Type: text/plain; charset=utf-8\r\n" in answer
    assert b"\x1b" not in answer
    assert site.ask("/healthz").status == 200


@pytest.mark.parametrize(
    "raw",
    [
        b"GET /healthz HTTP/1.1\r\n\r\n" * 3,
        b"GET /healthz HTTP/1.1\r\nConnection: keep-alive\r\n\r\nGET /healthz HTTP/1.1\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1c\r\nGET /healthz HTTP/1.1\r\n\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 0\r\nContent-Length: 28\r\n\r\nGET /healthz HTTP/1.1\r\n\r\n",
        b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n",
    ],
)
def test_a_connection_is_one_request_whatever_follows_it(site: Site, raw: bytes) -> None:
    """No pipelining, no body: there is nothing that could be read as a second request."""
    assert site.say(raw).count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize("host", ["evil.example", "evil.example:9464", "localhost.evil.example", "[::1", "a b", "::1"])
def test_a_page_whose_name_was_made_to_resolve_to_this_host_reads_nothing(site: Site, host: str) -> None:
    """DNS rebinding: the browser asks us, and says whose page it is for in Host."""
    for path in ("/api/status", "/metrics", "/"):
        answer = site.ask(path, Host=host)
        assert answer.status == 421
        assert b"loopback" in answer.body
        assert b"inbox" not in answer.body
    twice = f"GET /metrics HTTP/1.1\r\nHost: localhost\r\nHost: {host}\r\n\r\n"
    assert site.say(twice.encode()).startswith(b"HTTP/1.1 421 ")


@pytest.mark.parametrize(
    "host", ["127.0.0.1:9464", "[::1]:9464", "192.0.2.7", "localhost", "LocalHost:80", socket.gethostname()]
)
def test_who_asks_by_an_address_or_this_hosts_name_is_answered(site: Site, host: str) -> None:
    assert site.ask("/metrics", Host=host).status == 200


def test_a_request_without_host_is_answered(site: Site) -> None:
    """A browser always sends one; a load balancer that speaks HTTP/1.0 does not."""
    assert site.say(b"GET /healthz HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200 ")
    assert site.say(b"GET /healthz HTTP/1.1\r\nHost:\r\n\r\n").startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("where", "is_local"),
    [
        *((where, True) for where in ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1")),
        *((where, False) for where in ("0.0.0.0", "::", "::ffff:192.0.2.7", "fe80::1%1")),  # noqa: S104
    ],
)
def test_a_loopback_address_is_known_in_each_way_to_write_it(where: str, is_local: bool) -> None:
    assert exporter.is_loopback(where) == is_local


def test_where_everybody_may_connect_every_name_is_answered(serving: Serve) -> None:
    """Who listens on an outer address is asked by names that this host does not know."""
    listener, _ = bind(("0.0.0.0", 0), is_default=False)  # noqa: S104 - what is tested
    assert listener is not None
    answer = serving(ready_board(), listener=listener).ask("/metrics", Host="pool.example:9464")
    assert answer.status == 200


def test_a_fault_of_ours_is_told_without_a_traceback(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> dict[str, object]:
        raise RuntimeError("a secret of ours")

    monkeypatch.setattr(exporter, "snapshot", fail)
    answer = site.ask("/api/status")
    assert (answer.status, answer.body) == (500, b"the exporter failed at this; its log says why\n")
    assert "a secret of ours" in caplog.text
    assert site.ask("/metrics").status == 200


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


class Jumping(System):
    """A clock that a test moves; it counts the pauses and makes none."""

    def __init__(self) -> None:
        self.now_ns = SYSTEM.boottime_ns()
        self.pauses = 0

    def boottime_ns(self) -> int:
        return self.now_ns

    def sleep(self, seconds: float | SupportsIndex) -> None:
        self.pauses += 1


def test_connection_beyond_the_limit_is_told_so(serving: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that have just come are given time; the third gets an answer, with the headers of every answer."""
    monkeypatch.setattr(exporter, "CONNECTIONS_MAX", 2)
    site = serving(ready_board(), Jumping())
    idle = [socket.create_connection(site.where, timeout=30) for _ in range(2)]
    try:
        answer = site.ask("/metrics")
        assert answer.status == 503
        assert answer.body.endswith(b"connections already; try again in a moment\n")
        assert answer.headers.items() >= {name.lower(): text for name, text in HEADERS.items()}.items()
    finally:
        for client in idle:
            client.sendall(b"GET /healthz HTTP/1.1\r\n\r\n")
            while client.recv(65536):
                pass
            client.close()


def test_who_dawdles_makes_way_for_a_scraper(serving: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """500 connect and say nothing, or one byte; a second later a scrape is answered, each time."""
    monkeypatch.setattr(exporter._Handler, "timeout", None)  # they leave for no other reason
    system = Jumping()
    site = serving(ready_board(), system)
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(socket.create_connection(site.where, timeout=30)) for _ in range(500)]
        for client in idle[1::2]:
            with contextlib.suppress(ConnectionError):
                client.sendall(b"G")
        refused = [client for client in idle[exporter.CONNECTIONS_MAX :] if client.recv(12) == b"HTTP/1.1 503"]
        assert len(refused) == 500 - exporter.CONNECTIONS_MAX
        system.now_ns += 2 * exporter.DAWDLES_NS
        for _ in range(5):
            assert site.ask("/metrics").status == 200
        assert idle[0].recv(1) == b""


def test_request_that_takes_too_long_is_cut_off(serving: Serve) -> None:
    """The clock jumps by a minute while a client has said half a line."""
    system = Jumping()
    site = serving(ready_board(), system)
    with socket.create_connection(site.where, timeout=30) as slow:
        slow.sendall(b"GET /metr")
        assert site.ask("/healthz").status == 200  # the slow one was accepted before this one
        system.now_ns += 60 * 10**9
        while slow.recv(65536):
            pass


def test_a_client_that_reads_no_answer_is_cut_off(
    serving: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The answer fills the buffers of both sides; the thread that writes it meets the end of its time."""
    caplog.set_level(logging.DEBUG, logger="orchestrator.exporter")
    monkeypatch.setattr(exporter, "index_page", lambda _: "x" * 50_000_000)
    system = Jumping()
    site = serving(ready_board(), system)
    with socket.create_connection(site.where, timeout=30) as client:
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert client.recv(1)
        assert site.ask("/healthz").status == 200
        system.now_ns += 60 * 10**9
        until(lambda: "went away" in caplog.text)


def test_without_descriptors_the_server_waits_and_goes_on(
    serving: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """accept(2) fails ten times while a client waits: a pause each time, one line of the log, then the answer."""
    left = [OSError(errno.EMFILE, "Too many open files")] * 10
    real = TCPServer.get_request

    def get_request(server: TCPServer) -> tuple[socket.socket, object]:
        if left:
            raise left.pop()
        return real(server)

    monkeypatch.setattr(TCPServer, "get_request", get_request)
    system = Jumping()
    assert serving(ready_board(), system).ask("/healthz").status == 200
    assert system.pauses == 10
    assert caplog.text.count("cannot accept a client") == 1


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
