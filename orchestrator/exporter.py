"""
exporter - the HTTP server of a pool: /metrics /healthz /readyz /api/status and / that links them

It serves what stands on the board and nothing else: no file, no queue directory, no
setting can be reached through it, and a hung queue is a number, not a hung scrape.
GET and HEAD only. A connection is one request; its head has at most 32 KiB, and it has 10 s
for each read or write and 30 s in all. There are at most 64: whoever comes then gets the place
of the oldest, if that one dawdles for more than a second, else 503. So a few idle clients keep
no scraper out.

On a loopback address it answers to a Host that is an IP address, localhost or this host's name,
else 421: a web page in somebody's browser can have its own name resolve to 127.0.0.1 and would
read the status through it (DNS rebinding). On any other address by every name, for nobody here
knows by which ones the host is reached, and whoever reaches the address can read it anyway.

The master binds the socket before it forks (so a taken port is an error where a person
sees it, and the port stays ours when this process is replaced); this process accepts.
Threads are fine here: it never forks.

Raises: ExporterError from bind().
Limits: no TLS and no passwords; loopback unless told otherwise.
Long because: who is refused and what is answered are read side by side.
See also: metrics (the Collector), status (JSON and probes), reading.
"""

from __future__ import annotations

import contextlib
import errno
import html
import http.client
import io
import ipaddress
import json
import logging
import os
import re
import socket
import sys
import threading
from collections.abc import Callable, Collection
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import BaseServer, TCPServer, ThreadingMixIn

from prometheus_client.exposition import choose_encoder

from orchestrator.metrics import registry
from orchestrator.reading import BoardReader, printable
from orchestrator.status import is_healthy, is_ready, snapshot
from workers.board import Board, HeaderText
from workers.errors import OrchestratorError
from workers.queues.names import shown
from workers.system import SYSTEM, System

CONNECTIONS_MAX = 64
READ_TIMEOUT_S = 10
REQUEST_LIMIT_NS = 30_000_000_000
DAWDLES_NS = 1_000_000_000  # a request takes milliseconds
HEAD_BYTES_MAX = 32 * 1024  # request line and headers; a browser sends the cookies of all that is on localhost
WARN_INTERVAL_NS = 60_000_000_000
LEAVE_INTERVAL_S = 0.2
BACKLOG = 1024  # many at once wait for accept, not for the second try of their kernel
TEXT = "text/plain; charset=utf-8"
PAGES = {
    "/metrics": "the metrics, in the Prometheus text format or OpenMetrics",
    "/healthz": "200 while the master's loop makes progress",
    "/readyz": "200 while every queue can be claimed from, else the reasons",
    "/api/status": "the same numbers as JSON",
}
# On every answer. Nothing here is to be framed, run, remembered or read by another site's page.
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Connection": "close",
}
_FULL = "\r\n".join(
    (
        "HTTP/1.1 503 Service Unavailable",
        f"Content-Type: {TEXT}",
        *(f"{name}: {text}" for name, text in HEADERS.items()),
        "",
        f"there are {CONNECTIONS_MAX} connections already; try again in a moment\n",
    )
).encode()

# What a scraper sends; anything else gets the plain text format. The encoder repeats the
# version in its answer's header and compares it as a number, so no stranger's text may get there.
_ACCEPT = re.compile(r"(?:[A-Za-z0-9/+*.;,=_ -])*\Z")
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]*))(?::[0-9]*)?\Z")
_VERSIONS = re.compile(r"version=(?!(?:0\.0\.[1-4]|1\.0\.0) *(?:[;,]|\Z))")

log = logging.getLogger(__name__)


class ExporterError(OrchestratorError):
    """The metrics cannot be served at the address asked for. *errno* is the kernel's number."""

    def __init__(self, text: str, error: OSError) -> None:
        super().__init__(text)
        self.errno = error.errno


def bind(listen: tuple[str, int] | None, is_default: bool) -> tuple[socket.socket | None, str | None]:
    """
    Listen on *listen* (host, port); the socket, and a warning or None. Master only, before it forks.

    None listens nowhere. When the port is taken and *is_default*, a free one on the same
    host is used, and the warning says which; else, and for every other failure, ExporterError.
    """
    if listen is None:
        return None, None
    host, port = listen
    try:
        return _listener(host, port), None
    except OSError as error:
        if not (is_default and error.errno == errno.EADDRINUSE):
            raise _refused(host, port, error) from error
    try:
        listener = _listener(host, 0)
    except OSError as error:
        raise _refused(host, 0, error) from error
    return listener, (
        f"{_joined(host, port)} is taken, probably by another pool: "
        f"metrics are served on http://{address(listener)}/metrics (--listen HOST:PORT chooses a port)"
    )


def address(listener: socket.socket) -> str:
    """HOST:PORT that *listener* is bound to, IPv6 in brackets."""
    host, port = listener.getsockname()[:2]
    return _joined(host, port)


def serve(listener: socket.socket, board: Board, *, should_leave: Callable[[], bool], system: System = SYSTEM) -> None:
    """Answer requests on *listener* until *should_leave()*, asked every 0.2 s. Blocks; leaves *listener* open."""
    # Several exporters may wait on one socket while one replaces another: whoever is second must not block in accept.
    # For the kernel only: the server takes a timeout set on the object for its own and would spin.
    os.set_blocking(listener.fileno(), False)
    server = _Server(listener, board, system)
    while not should_leave():
        server.handle_request()
        server.end_late_requests()


class _Server(ThreadingMixIn, TCPServer):
    """One thread per connection, each under a deadline."""

    daemon_threads = True
    block_on_close = False
    timeout = LEAVE_INTERVAL_S

    def __init__(self, listener: socket.socket, board: Board, system: System) -> None:
        # TCPServer would make and bind a socket of its own.
        BaseServer.__init__(self, listener.getsockname(), _Handler)
        self.socket = listener
        self.board = board
        self.system = system
        self.reader = BoardReader(board, system)
        self.registry = registry(board, self.reader)
        self.is_local = is_loopback(listener.getsockname()[0])
        self.names = frozenset(("", "localhost", socket.gethostname().lower()))
        self._warn_after_ns = 0
        self._lock = threading.Lock()
        self._deadlines_ns: dict[socket.socket, int] = {}  # the oldest first

    def get_request(self) -> tuple[socket.socket, object]:
        try:
            return super().get_request()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                if self.system.boottime_ns() >= self._warn_after_ns:
                    self._warn_after_ns = self.system.boottime_ns() + WARN_INTERVAL_NS
                    log.warning("cannot accept a client: %s", error)
                with self._lock:
                    self._make_way()
                # The listener stays readable: without a pause the loop would spin until somebody leaves.
                self.system.sleep(LEAVE_INTERVAL_S)
            raise

    def process_request(self, request: socket.socket | tuple[bytes, socket.socket], client_address: object) -> None:
        assert isinstance(request, socket.socket)  # noqa: S101 - a stream server is given nothing else
        with self._lock:
            is_full = len(self._deadlines_ns) >= CONNECTIONS_MAX and not self._make_way()
            if not is_full:
                self._deadlines_ns[request] = self.system.boottime_ns() + REQUEST_LIMIT_NS
        if is_full:
            log.debug("%d connections already, one more is refused", CONNECTIONS_MAX)
            with contextlib.suppress(OSError):
                request.send(_FULL)
            self.shutdown_request(request)
        else:
            super().process_request(request, client_address)

    def shutdown_request(self, request: socket.socket | tuple[bytes, socket.socket]) -> None:
        if isinstance(request, socket.socket):
            with self._lock:
                self._deadlines_ns.pop(request, None)
        super().shutdown_request(request)

    def _make_way(self) -> bool:
        """Cut off the oldest, if it dawdles; its place is free then. Under the lock."""
        oldest, deadline_ns = next(iter(self._deadlines_ns.items()), (None, 0))
        if oldest is None or self.system.boottime_ns() - (deadline_ns - REQUEST_LIMIT_NS) <= DAWDLES_NS:
            return False
        del self._deadlines_ns[oldest]
        _cut_off(oldest)
        return True

    def end_late_requests(self) -> None:
        """Cut off whoever dawdles: its thread then meets the end of the stream."""
        now_ns = self.system.boottime_ns()
        with self._lock:
            # Under the lock, so that the descriptor is not closed and used again meanwhile.
            for request, deadline_ns in self._deadlines_ns.items():
                if deadline_ns < now_ns:
                    _cut_off(request)

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002 - the base class's signature
        if isinstance(sys.exception(), OSError):
            log.debug("the client at %s went away", client_address, exc_info=True)
        else:
            log.exception("answering the client at %s failed", client_address)


class _Head(io.BufferedIOBase):
    """What a client sends, line by line; LineTooLong once that is more than a head may have."""

    def __init__(self, stream: io.BufferedIOBase) -> None:
        self._stream = stream
        self._left = HEAD_BYTES_MAX

    def readline(self, size: int | None = -1, /) -> bytes:  # noqa: ARG002 - the base classes' limit is higher
        line = self._stream.readline(self._left + 1)
        self._left -= len(line)
        if self._left < 0:
            raise http.client.LineTooLong("head")
        return line

    def close(self) -> None:
        self._stream.close()


class _Handler(BaseHTTPRequestHandler):
    """One request."""

    server: _Server
    protocol_version = "HTTP/1.1"
    timeout = READ_TIMEOUT_S

    def setup(self) -> None:
        super().setup()
        self.rfile = _Head(self.rfile)

    def handle(self) -> None:
        try:
            super().handle()
        except http.client.LineTooLong:  # in the request line; in a header parse_request answers it
            self.command = self.requestline = ""
            self.send_error(HTTPStatus.REQUEST_URI_TOO_LONG)

    def parse_request(self) -> bool:
        """Refuse also what the base class lets through."""
        if not super().parse_request():
            return False
        if self.request_version not in ("HTTP/1.0", "HTTP/1.1"):  # an answer of HTTP/0.9 would have no headers
            self.send_error(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "HTTP/1.0 and HTTP/1.1 only")
            return False
        hosts = self.headers.get_all("Host", [])
        if self.server.is_local and not all(is_own(str(host), self.server.names) for host in hosts):
            self.send_error(
                HTTPStatus.MISDIRECTED_REQUEST,
                "this is served on a loopback address and answers to an IP address, localhost or the host's name only; "
                "a proxy must send one of these as Host",
            )
            return False
        return True

    def handle_expect_100(self) -> bool:
        return True  # nobody reads a body here: the answer itself is what the client gets

    def do_GET(self) -> None:
        try:
            answer = self._found()
        except Exception:
            log.exception("answering %s failed", shown(self.path))
            text = b"the exporter failed at this; its log says why\n"
            answer = HTTPStatus.INTERNAL_SERVER_ERROR, text, TEXT
        self._answer(*answer)

    def do_HEAD(self) -> None:
        self.do_GET()  # _answer leaves the body out

    # The base class explains at length in HTML; a sentence will do.
    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:  # noqa: ARG002
        """Answer in plain text what the base class and parse_request refuse."""
        self.request_version = self.protocol_version  # a line nobody could read counts as HTTP/0.9, which has no status
        if code == HTTPStatus.NOT_IMPLEMENTED:  # the base class's word for a method without a do_
            code, message = HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD"
        status = HTTPStatus(code)
        self._answer(status, (shown(message or status.phrase) + "\n").encode(), TEXT)

    def version_string(self) -> str:
        return "orchestrator"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        log.debug("%s %s", self.client_address[0], shown(format % args))

    def _found(self) -> tuple[HTTPStatus, bytes, str]:
        """Status, body and its type."""
        board = self.server.board
        match self.path.partition("?")[0]:
            case "/metrics":
                encode, kind = choose_encoder(acceptable(self.headers.get("Accept", "")))
                return HTTPStatus.OK, encode(self.server.registry), kind
            case "/healthz":
                is_ok, reason = is_healthy(board, self.server.system.boottime_ns())
                return _probe(is_ok, [reason])
            case "/readyz":
                return _probe(*is_ready(board, self.server.system))
            case "/api/status":
                body = json.dumps(snapshot(board, self.server.reader, self.server.system), indent=1)
                return HTTPStatus.OK, body.encode() + b"\n", "application/json"
            case "/":
                page = index_page(printable(board.header, HeaderText.NAME))
                return HTTPStatus.OK, page.encode(), "text/html; charset=utf-8"
            case _:
                return HTTPStatus.NOT_FOUND, f"there is nothing here; there is / {' '.join(PAGES)}\n".encode(), TEXT

    def _answer(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self.send_response(status)
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD")
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, text in HEADERS.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def acceptable(accept: str) -> str:
    """*accept* when it holds only what a scraper says, else ""."""
    return accept if len(accept) <= 1000 and _ACCEPT.match(accept) and not _VERSIONS.search(accept) else ""


def is_loopback(where: str) -> bool:
    """Whether *where*, an IP address, is reached from this host alone."""
    address = ipaddress.ip_address(where)
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def is_own(host: str, names: Collection[str]) -> bool:
    """Whether *host*, a Host header, is an IP address or one of *names*."""
    found = _HOST.match(host.strip())
    if found is None:
        return False
    try:
        ipaddress.ip_address(found[1] or found[2])
    except ValueError:
        return found[1] is None and found[2].lower() in names
    return True


def index_page(name: str) -> str:
    """The page at /."""
    title = html.escape(f"orchestrator {name}".rstrip())
    links = "\n".join(
        f'<li><a href="{path}">{path}</a> {html.escape(meaning, quote=False)}</li>' for path, meaning in PAGES.items()
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{title}</title></head>\n'
        f"<body>\n<h1>{title}</h1>\n<ul>\n{links}\n</ul>\n</body>\n</html>\n"
    )


def _probe(is_good: bool, reasons: list[str]) -> tuple[HTTPStatus, bytes, str]:
    """The word a load balancer looks at is the status."""
    text = "ok" if is_good else "\n".join(reasons)
    return HTTPStatus.OK if is_good else HTTPStatus.SERVICE_UNAVAILABLE, (text + "\n").encode(), TEXT


def _cut_off(request: socket.socket) -> None:
    with contextlib.suppress(OSError):
        request.shutdown(socket.SHUT_RDWR)


def _listener(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        # A restarted pool gets its port back at once; it does not let two listen on one.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _refused(host: str, port: int, error: OSError) -> ExporterError:
    if error.errno == errno.EADDRINUSE:
        why, do = "another program listens there", "choose another port, port 0 for a free one, or --listen none"
    elif error.errno == errno.EACCES:
        why, do = "this user may not use that port", "choose a port above 1023, or --listen none"
    else:
        is_name = isinstance(error, socket.gaierror)
        why = error.strerror or os.strerror(error.errno or 0)
        do = ("check the host's name" if is_name else "choose an address of this host") + ", or --listen none"
    return ExporterError(f"cannot serve metrics on {_joined(shown(host), port)}: {why}; {do}", error)


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
