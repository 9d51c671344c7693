"""
test_control - the master's socket: one line in, one out, and nothing raises into the loop

The server runs on a selector turned by hand; clients are real sockets.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator import control
from orchestrator.control import ControlError, ControlServer
from workers.errors import QueueMissing

TURNS_MAX = 2000


class Turner:
    """A loop of one's own: turn() calls what is readable."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.callbacks: dict[int, Callable[[int], None]] = {}

    def watch(self, fd: int, callback: Callable[[int], None]) -> None:
        self.selector.register(fd, selectors.EVENT_READ)
        self.callbacks[fd] = callback

    def unwatch(self, fd: int) -> None:
        del self.callbacks[fd]
        self.selector.unregister(fd)

    def turn(self, timeout_s: float = 0.0) -> int:
        ready = self.selector.select(timeout_s)
        for key, _ in ready:
            if key.fd in self.callbacks:
                self.callbacks[key.fd](key.fd)
        return len(ready)

    def settle(self) -> None:
        for _ in range(TURNS_MAX):
            if not self.turn():
                return
        raise AssertionError("the loop spins")


def dispatch(verb: str, arguments: dict[str, object]) -> dict[str, object]:
    match verb:
        case "echo":
            return {"arguments": arguments}
        case "refuse":
            raise QueueMissing("there is no queue called in; try another")
        case "break":
            raise RuntimeError("a secret of the master's")
        case "long":
            return {"text": "x" * 900_000}
        case "longer":
            return {"text": "x" * 2_000_000}
        case _:
            return {"odd": {1, 2}}


@pytest.fixture
def loop() -> Iterator[Turner]:
    turner = Turner()
    yield turner
    turner.selector.close()


@pytest.fixture
def server(tmp_path: Path, loop: Turner) -> Iterator[ControlServer]:
    made = ControlServer(tmp_path / "control", dispatch, watch=loop.watch, unwatch=loop.unwatch)
    made.tick(100.0)
    yield made
    made.close()
    assert loop.callbacks == {}


def connected(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.settimeout(5)
    client.connect(str(path))
    return client


def asked(loop: Turner, path: Path, sent: bytes) -> list[dict[str, object]]:
    """What comes back for *sent*, until the server has nothing more to say."""
    with connected(path) as client:
        loop.turn(1)
        client.sendall(sent)
        loop.settle()
        client.shutdown(socket.SHUT_WR)
        loop.settle()
        with client.makefile("rb") as file:
            return [json.loads(line) for line in file]


def requested(loop: Turner, path: Path, verb: str, **arguments: object) -> dict[str, object]:
    """request() in a thread, the loop turned meanwhile."""
    result: list[dict[str, object] | Exception] = []

    def ask() -> None:
        try:
            result.append(control.request(path, verb, 5, **arguments))
        except ControlError as error:
            result.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    while thread.is_alive():
        loop.turn(0.01)
    thread.join()
    if isinstance(result[0], Exception):
        raise result[0]
    return result[0]


def test_a_request_is_dispatched_and_answered(server: ControlServer, loop: Turner, tmp_path: Path) -> None:
    assert requested(loop, tmp_path / "control", "echo", queue="in", workers=3) == {
        "arguments": {"queue": "in", "workers": 3}
    }


def test_several_requests_on_one_connection_are_answered_in_order(
    server: ControlServer, loop: Turner, tmp_path: Path
) -> None:
    replies = asked(loop, tmp_path / "control", b"".join(b'{"verb":"echo","n":%d}\n' % n for n in range(50)))
    assert [reply["arguments"] for reply in replies] == [{"n": n} for n in range(50)]


def test_an_error_on_purpose_is_the_clients_a_fault_is_the_logs(
    server: ControlServer, loop: Turner, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ControlError, match="there is no queue called in; try another"):
        requested(loop, tmp_path / "control", "refuse")
    assert caplog.records == []
    for verb in ("break", "odd"):
        with pytest.raises(ControlError, match="its log says why"):
            requested(loop, tmp_path / "control", verb)
    assert "a secret of the master's" in caplog.text


def test_the_socket_is_for_its_owner_alone_and_replaces_a_dead_ones(tmp_path: Path, loop: Turner) -> None:
    (tmp_path / "control").touch()
    before = os.umask(0)
    try:
        server = ControlServer(tmp_path / "control", dispatch, watch=loop.watch, unwatch=loop.unwatch)
    finally:
        os.umask(before)
    info = (tmp_path / "control").stat()
    assert stat.S_ISSOCK(info.st_mode)
    assert stat.S_IMODE(info.st_mode) == 0o600
    server.close()


def test_another_user_is_refused(tmp_path: Path, loop: Turner) -> None:
    server = ControlServer(
        tmp_path / "control", dispatch, watch=loop.watch, unwatch=loop.unwatch, uids=[os.geteuid() + 1]
    )
    with connected(tmp_path / "control") as client:
        loop.settle()
        assert json.loads(client.recv(4096)) == {"ok": False, "error": f"uid {os.geteuid()} may not control this pool"}
        assert client.recv(1) == b""
    server.close()


@pytest.mark.parametrize(
    "sent",
    [
        b"\n",
        b"x\n",
        b"[]\n",
        b"{}\n",
        b'{"verb":1}\n',
        b"\xff\xfe\n",
        b"[" * 60_000 + b"\n",
        b"1" * 60_000 + b"\n",
        b"\0\n",
    ],
)
def test_garbage_is_answered_and_the_connection_goes_on(
    server: ControlServer, loop: Turner, tmp_path: Path, sent: bytes
) -> None:
    replies = asked(loop, tmp_path / "control", sent + b'{"verb":"echo"}\n')
    assert [reply["ok"] for reply in replies] == [False, True]


def test_a_request_that_is_too_long_ends_its_connection(server: ControlServer, loop: Turner, tmp_path: Path) -> None:
    with connected(tmp_path / "control") as client:
        loop.turn(1)
        client.sendall(b"x" * (control.REQUEST_BYTES_MAX + 1))
        loop.settle()
        assert json.loads(client.makefile("rb").readline())["error"] == "a request has at most 65536 bytes"
    assert requested(loop, tmp_path / "control", "echo") == {"arguments": {}}


def test_a_client_that_leaves_at_any_point_harms_nobody(server: ControlServer, loop: Turner, tmp_path: Path) -> None:
    for sent in (b"", b'{"verb":', b'{"verb":"long"}\n' * 3):
        client = connected(tmp_path / "control")
        loop.turn(1)
        client.sendall(sent)
        client.close()
        loop.settle()
        server.tick(101.0)
    assert requested(loop, tmp_path / "control", "echo") == {"arguments": {}}
    loop.settle()
    assert len(loop.callbacks) == 1


def test_a_long_reply_is_sent_on_by_the_ticks(server: ControlServer, loop: Turner, tmp_path: Path) -> None:
    """The reply is larger than a socket's buffer: the loop must neither block nor spin."""
    with connected(tmp_path / "control") as client:
        loop.turn(1)
        client.sendall(b'{"verb":"long"}\n{"verb":"echo"}\n')
        loop.settle()
        received = b""
        for now in range(TURNS_MAX):
            received += client.recv(65536)
            server.tick(100.0 + now / 1000)
            loop.settle()
            if received.count(b"\n") == 2:
                break
    first, second = received.splitlines()
    assert len(json.loads(first)["text"]) == 900_000
    assert json.loads(second)["ok"]


def test_a_reply_without_bound_is_refused(server: ControlServer, loop: Turner, tmp_path: Path) -> None:
    with pytest.raises(ControlError, match="longer than 1048576 bytes"):
        requested(loop, tmp_path / "control", "longer")


def test_an_idle_connection_is_closed_an_active_one_is_not(server: ControlServer, loop: Turner, tmp_path: Path) -> None:
    with connected(tmp_path / "control") as idle, connected(tmp_path / "control") as active:
        loop.settle()
        idle.sendall(b'{"verb":')
        loop.settle()
        server.tick(109.0)
        active.sendall(b'{"verb":"echo"}\n')
        loop.settle()
        server.tick(111.0)
        assert idle.recv(1) == b""
        active.sendall(b'{"verb":"echo"}\n')
        loop.settle()
        with active.makefile("rb") as file:
            assert json.loads(file.readline())["ok"]
            assert json.loads(file.readline())["ok"]


def test_one_connection_too_many_is_refused_until_another_leaves(
    server: ControlServer, loop: Turner, tmp_path: Path
) -> None:
    clients = []
    for _ in range(control.CONNECTIONS_MAX):
        clients.append(connected(tmp_path / "control"))
        loop.settle()
    with connected(tmp_path / "control") as late:
        loop.settle()
        assert "connections already" in json.loads(late.recv(4096))["error"]
    clients.pop().close()
    loop.settle()
    assert requested(loop, tmp_path / "control", "echo") == {"arguments": {}}
    for client in clients:
        client.close()


def test_without_descriptors_the_loop_does_not_spin(
    server: ControlServer, loop: Turner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Exhausted:
        def __init__(self, listener: socket.socket) -> None:
            self.listener = listener

        def accept(self) -> tuple[socket.socket, object]:
            raise OSError(24, "Too many open files")

        def fileno(self) -> int:
            return self.listener.fileno()

    listener = server._listener
    monkeypatch.setattr(server, "_listener", Exhausted(listener))
    with connected(tmp_path / "control") as client:
        loop.settle()
        monkeypatch.setattr(server, "_listener", listener)
        server.tick(101.0)
        loop.settle()
        client.sendall(b'{"verb":"echo"}\n')
        loop.settle()
        assert json.loads(client.recv(4096))["ok"]
    loop.settle()


def test_a_path_longer_than_an_address_works(tmp_path: Path, loop: Turner) -> None:
    directory = tmp_path
    while len(os.fsencode(directory)) < 300:
        directory = directory / ("d" * 40)
    directory.mkdir(parents=True)
    server = ControlServer(directory / "control", dispatch, watch=loop.watch, unwatch=loop.unwatch)
    assert stat.S_ISSOCK((directory / "control").stat().st_mode)
    assert requested(loop, directory / "control", "echo", n=1) == {"arguments": {"n": 1}}
    loop.settle()
    server.close()


def test_a_forked_child_that_forgets_leaves_the_parents_server_alone(
    server: ControlServer, loop: Turner, tmp_path: Path
) -> None:
    with connected(tmp_path / "control"):
        loop.settle()
        pid = os.fork()
        if pid == 0:
            server.forget_in_child()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        assert requested(loop, tmp_path / "control", "echo") == {"arguments": {}}
    loop.settle()


def test_a_socket_that_cannot_be_made_or_reached_is_named(tmp_path: Path, loop: Turner) -> None:
    with pytest.raises(ControlError, match=r"cannot make the control socket .*/nothing/control"):
        ControlServer(tmp_path / "nothing" / "control", dispatch, watch=loop.watch, unwatch=loop.unwatch)
    with pytest.raises(ControlError, match=r"cannot reach the master at .*/control: No such file"):
        control.request(tmp_path / "control", "echo")


def test_a_master_that_says_nothing_is_given_up(server: ControlServer, tmp_path: Path) -> None:
    with pytest.raises(ControlError, match=r"said nothing for 0\.05 s"):
        control.request(tmp_path / "control", "echo", timeout_s=0.05)
