"""
control - the master's unix socket: one JSON object a line in, one out

    {"verb": "scale", "queue": "in", "workers": 8}
    {"ok": true, ...}  or  {"ok": false, "error": "a sentence"}

The server lives in the master's single-threaded loop, so nothing here blocks: what
cannot be read or sent now is left for the next event or tick, and one turn of the loop
answers one request of each client. Whatever a client sends, nothing is raised into the
loop. Only our own user and root are answered.

Limits: 4 KiB a request, 1 MiB a reply, 16 connections; a connection without a
complete request for 10 s is closed, and the one that has asked nothing for longest
makes way for a 17th: idle ones never lock an operator out. The address of a socket has
108 bytes; a longer path is reached through a descriptor of its directory.
Long because: both ends, and what each may rely on, are read side by side.
Source: unix(7) for SO_PEERCRED and for the mode of a socket (fchmod before bind).
See also: rundir (where the socket is), loop (watch and unwatch).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import struct
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.logs import escaped
from workers.errors import OrchestratorError
from workers.queues.names import shown

REQUEST_BYTES_MAX = 4096  # no verb needs a tenth of it, and 16 clients may have one each parsed in one turn
REPLY_BYTES_MAX = 1024 * 1024
CONNECTIONS_MAX = 16
IDLE_S_MAX = 10.0
ACCEPT_AGAIN_S = 1.0
ADDRESS_BYTES_MAX = 107  # and a NUL

Dispatch = Callable[[str, dict[str, object]], dict[str, object]]

log = logging.getLogger(__name__)


class ControlError(OrchestratorError):
    """The socket cannot be used, or the master refused the request; the text says which."""


@dataclass(slots=True)
class _Connection:
    socket: socket.socket
    since_s: float
    received: bytearray = field(default_factory=bytearray)
    unsent: bytes = b""
    is_watched: bool = True
    is_last: bool = False  # close it as soon as everything was sent


class ControlServer:
    """
    The master's end.

    Args:
        path: where the socket is made (0600); what is there already is a dead master's and goes.
        dispatch: called with the verb and its arguments; the reply without "ok". An
            OrchestratorError becomes the client's error text. It must not block.
        watch, unwatch: the loop's, for descriptors that can be read.
        uids: who is answered; by default our own user and root.

    Master only. Raises ControlError when the socket cannot be made.
    """

    def __init__(
        self,
        path: Path,
        dispatch: Dispatch,
        *,
        watch: Callable[[int, Callable[[int], None]], None],
        unwatch: Callable[[int], None],
        uids: Collection[int] | None = None,
    ) -> None:
        self._dispatch = dispatch
        self._watch = watch
        self._unwatch = unwatch
        self._uids = frozenset(uids) if uids is not None else frozenset((os.geteuid(), 0))
        self._connections: dict[int, _Connection] = {}  # who has asked nothing for longest comes first
        self._strangers: set[int] = set()
        self._now_s = 0.0
        self._blocked_s: float | None = None  # since when there is no descriptor for another client
        self._listener = _listen(path)
        self._watch(self._listener.fileno(), self._on_arrival)

    def tick(self, now_s: float) -> None:
        """Close what has been idle for too long and send on; monotonic seconds, about ten times a second."""
        self._now_s = now_s
        if self._blocked_s is not None and now_s - self._blocked_s >= ACCEPT_AGAIN_S:
            self._blocked_s = None
            self._watch(self._listener.fileno(), self._on_arrival)
        for connection in list(self._connections.values()):
            if connection.since_s == 0.0:  # it came before the first tick told us the time
                connection.since_s = now_s
            if connection.unsent:
                self._guarded(connection, self._send)
            if now_s - connection.since_s > IDLE_S_MAX:
                self._close(connection)

    def close(self) -> None:
        """Close every descriptor. The socket's name stays; RunDir.release takes it away."""
        for connection in list(self._connections.values()):
            self._close(connection)
        if self._blocked_s is None:
            self._unwatch(self._listener.fileno())
        self._listener.close()

    def forget_in_child(self) -> None:
        """
        Close a forked child's copies.

        unwatch is not called: an epoll descriptor is shared with the parent, whose watches it would end.
        """
        for connection in self._connections.values():
            connection.socket.close()
        self._connections.clear()
        self._listener.close()

    def _on_arrival(self, _fd: int) -> None:
        try:
            arrived, _ = self._listener.accept()
            _, uid = _peer(arrived)
        except (BlockingIOError, ConnectionError):  # the client left before we came
            return
        except OSError as error:
            # Out of descriptors: it would stay readable and keep the loop spinning, so look again in a second.
            log.warning("cannot accept on the control socket: %s", error)
            self._blocked_s = self._now_s
            self._unwatch(self._listener.fileno())
            return
        arrived.settimeout(0)
        if uid not in self._uids:
            why = f"uid {uid} may not control this pool"
            # Once for each: nobody who is refused fills our disk with it.
            log.log(logging.DEBUG if uid in self._strangers else logging.WARNING, "control socket: refused: %s", why)
            self._strangers.add(uid)
            _dismiss(arrived, why)
            arrived.close()
            return
        if len(self._connections) >= CONNECTIONS_MAX:
            self._make_way()
        connection = _Connection(arrived, self._now_s)
        self._connections[arrived.fileno()] = connection
        self._watch(arrived.fileno(), lambda _fd: self._guarded(connection, self._receive))

    def _make_way(self) -> None:
        # Refusing the newcomer would let 16 idle ones keep the operator out. Who asks at once is answered before
        # 16 others have come, for each of these is a turn of the loop of its own.
        quietest = next(iter(self._connections.values()))
        if not quietest.unsent:
            _dismiss(quietest.socket, f"{CONNECTIONS_MAX} connections are newer than this one; try again")
        self._close(quietest)

    def _guarded(self, connection: _Connection, step: Callable[[_Connection], None]) -> None:
        """Run *step*; a client that left is closed, and a fault of ours costs that client only, never the loop."""
        try:
            step(connection)
        except BlockingIOError:
            return
        except OSError:
            self._close(connection)
        except Exception:
            log.exception("control socket: a connection was closed by a fault")
            self._close(connection)

    def _receive(self, connection: _Connection) -> None:
        """Answer the next line, if it is complete. Not called while a reply is unsent: nobody fills our memory."""
        # Looked at, then taken up to the line's end: what is behind it waits in the kernel for the next turn, or a
        # client with thousands of lines would hold the loop. See test_one_turn_answers_one_request_of_a_client.
        seen = connection.socket.recv(REQUEST_BYTES_MAX, socket.MSG_PEEK)
        if not seen:
            self._close(connection)
            return
        connection.received += connection.socket.recv(seen.find(b"\n") + 1 or len(seen))
        is_whole = connection.received.endswith(b"\n")
        if len(connection.received) - is_whole > REQUEST_BYTES_MAX:
            connection.is_last = True
            reply: dict[str, object] = {"ok": False, "error": f"a request has at most {REQUEST_BYTES_MAX} bytes"}
        elif is_whole:
            reply = self._reply(bytes(connection.received))
        else:
            return
        connection.received.clear()
        connection.since_s = self._now_s
        self._connections[connection.socket.fileno()] = self._connections.pop(connection.socket.fileno())
        connection.unsent = _encoded(reply)
        self._send(connection)

    def _reply(self, line: bytes) -> dict[str, object]:
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            return {"ok": False, "error": "the request is no JSON object on one line"}
        if not isinstance(request, dict) or not isinstance(request.get("verb"), str):
            return {"ok": False, "error": 'the request is no JSON object with a "verb"'}
        verb = request.pop("verb")
        try:
            reply = {"ok": True} | self._dispatch(verb, request)
            is_long = len(_encoded(reply)) > REPLY_BYTES_MAX
        except OrchestratorError as error:
            return {"ok": False, "error": str(error)}
        except Exception:
            log.exception("control socket: the request %s failed", escaped(repr(verb)))
            return {"ok": False, "error": "the master failed at this; its log says why"}
        return reply if not is_long else {"ok": False, "error": f"the reply is longer than {REPLY_BYTES_MAX} bytes"}

    def _send(self, connection: _Connection) -> None:
        try:
            while connection.unsent:
                connection.unsent = connection.unsent[connection.socket.send(connection.unsent) :]
        except BlockingIOError:
            # What cannot be sent now waits for the tick; unwatched meanwhile, for more requests must wait too.
            if connection.is_watched:
                connection.is_watched = False
                self._unwatch(connection.socket.fileno())
            return
        if connection.is_last:
            self._close(connection)
        elif not connection.is_watched:
            connection.is_watched = True
            self._watch(connection.socket.fileno(), lambda _fd: self._guarded(connection, self._receive))

    def _close(self, connection: _Connection) -> None:
        fd = connection.socket.fileno()
        if self._connections.pop(fd, None) is not None:
            if connection.is_watched:
                self._unwatch(fd)
            connection.socket.close()


def request(
    path: Path, verb: str, timeout_s: float = 5, *, pid: int | None = None, **arguments: object
) -> dict[str, object]:
    """
    Ask the master at *path*; its reply without "ok". Raises ControlError. Blocks for *timeout_s* at most.

    *pid*: the process that must answer there. Nobody else is asked: of another user's run directory that user could
    have made a way to the socket of some other program.
    """
    where = shown(str(path))
    deadline_s = time.monotonic() + timeout_s
    received = bytearray()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client, _address(path) as address:
            # The kernel's own limit: where many wait to be accepted, a socket with Python's would be refused at once.
            limit_us = max(int(timeout_s * 1e6), 1)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", *divmod(limit_us, 1_000_000)))
            client.connect(address)
            if pid is not None and _peer(client)[0] != pid:
                raise ControlError(f"the socket {where} is not of process {pid}: nothing was asked")
            client.settimeout(timeout_s)
            client.sendall(_encoded({"verb": verb} | arguments))
            while b"\n" not in received and len(received) <= REPLY_BYTES_MAX:
                client.settimeout(max(deadline_s - time.monotonic(), 0.001))
                part = client.recv(65536)
                if not part:
                    break
                received += part
    except (TimeoutError, BlockingIOError) as error:
        raise ControlError(f"the master at {where} said nothing for {timeout_s:g} s; its log may say why") from error
    except OSError as error:
        raise ControlError(f"cannot reach the master at {where}: {error.strerror or error}") from error
    try:
        reply = json.loads(received)
    except (ValueError, RecursionError) as error:
        raise ControlError(f"the master at {where} left without a reply; its log may say why") from error
    if not isinstance(reply, dict) or reply.pop("ok", False) is not True:
        told = reply.get("error") if isinstance(reply, dict) else None
        raise ControlError(escaped(str(told or f"the master at {where} refused {verb}")))
    return reply


def _encoded(message: dict[str, object]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def _dismiss(client: socket.socket, why: str) -> None:
    """Tell a client without being held up that it is not answered."""
    with contextlib.suppress(OSError):
        client.send(_encoded({"ok": False, "error": why}))


def _peer(connected: socket.socket) -> tuple[int, int]:
    """Process and user at the other end: who connected, or who listens."""
    pid, uid, _ = struct.unpack("3i", connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(pid), int(uid)


@contextlib.contextmanager
def _address(path: Path) -> Iterator[str]:
    """An address for *path*, good inside the with."""
    if len(os.fsencode(path)) <= ADDRESS_BYTES_MAX:
        yield str(path)
        return
    fd = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{path.name}"
    finally:
        os.close(fd)


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.settimeout(0)
        os.fchmod(listener.fileno(), 0o600)  # before bind: the name never exists with a wider mode
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        with _address(path) as address:
            listener.bind(address)
        listener.listen(CONNECTIONS_MAX)
    except OSError as error:
        listener.close()
        raise ControlError(f"cannot make the control socket {shown(str(path))}: {error.strerror or error}") from error
    return listener
