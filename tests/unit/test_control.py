"""
test_control - the master's socket: one line in, one out, and nothing raises into the loop

The server runs on a selector turned by hand; clients are real sockets.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import selectors
import socket
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator import control
from orchestrator.control import ControlError, ControlServer
from workers.errors import QueueMissing

TURNS_MAX = 2000
OTHER_USER = 12345  # nobody's number


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
    client.settimeout(60)
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
            result.append(control.request(path, verb, 60, **arguments))
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


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("mode", [0o600, 0o666])
def test_another_user_is_refused_by_the_mode_and_by_its_number(loop: Turner, mode: int) -> None:
    """A child of another user connects; where the socket's mode was widened by a mistake its number is looked at."""
    # Not pytest's own directory: that one is closed to other users, and neither would be asked.
    with tempfile.TemporaryDirectory(prefix="orchestrator-test-") as name:
        Path(name).chmod(0o755)
        path = Path(name) / "control"
        server = ControlServer(path, dispatch, watch=loop.watch, unwatch=loop.unwatch)
        path.chmod(mode)
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.setgroups([])
            os.setgid(OTHER_USER)
            os.setuid(OTHER_USER)
            try:
                with connected(path) as client:
                    os.write(writer, client.recv(4096))
            except OSError as error:
                os.write(writer, str(error.strerror).encode())
            os._exit(0)
        os.close(writer)
        while os.waitpid(pid, os.WNOHANG)[0] == 0:
            loop.turn(0.01)
        with open(reader) as file:
            said = file.read()
        server.close()
    assert said == "Permission denied" if mode == 0o600 else f"uid {OTHER_USER} may not control this pool" in said


def test_who_is_refused_is_logged_once(tmp_path: Path, loop: Turner, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody who may not even ask fills the disk with lines of the log."""
    server = ControlServer(
        tmp_path / "control", dispatch, watch=loop.watch, unwatch=loop.unwatch, uids=[os.geteuid() + 1]
    )
    for _ in range(20):
        with connected(tmp_path / "control"):
            loop.settle()
    assert [record.levelname for record in caplog.records].count("WARNING") == 1
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
        b"[" * 4_000 + b"\n",
        b"1" * 4_000 + b"\n",
        b"\0\n",
        b'{"a":' * 800 + b"\n",
        b'{"verb":' + b"[" * 900 + b"]" * 900 + b"}\n",
        b'{"verb":NaN}\n',
        b'{"verb":1e999,"verb":null}\n',
        b'{"verb":"\\ud800","\\udfff":"\\ud800"}\n',
        b'{"verb":"\xed\xa0\x80"}\n',
        '{"verb":"ping"}'.encode("utf-16") + b"\n",
        b'{"verb":"refuse"} {"verb":"refuse"}\n',
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
        assert json.loads(client.makefile("rb").readline())["error"] == "a request has at most 4096 bytes"
    assert requested(loop, tmp_path / "control", "echo") == {"arguments": {}}


def test_a_request_is_answered_however_it_is_cut(server: ControlServer, loop: Turner, tmp_path: Path) -> None:
    with connected(tmp_path / "control") as client:
        loop.settle()
        for byte in b'{"verb":"echo","a":1}\n{"verb":"echo","a":2}\n':
            client.sendall(bytes([byte]))
            loop.settle()
        with client.makefile("rb") as file:
            assert [json.loads(file.readline())["arguments"]["a"] for _ in range(2)] == [1, 2]


def test_a_byte_at_a_time_keeps_a_connection_no_longer_than_silence(
    server: ControlServer, loop: Turner, tmp_path: Path
) -> None:
    with connected(tmp_path / "control") as client:
        loop.settle()
        for second in range(11):
            client.sendall(b"x")
            loop.settle()
            server.tick(100.0 + second)
        server.tick(110.5)
        assert client.recv(1) == b""


def test_one_turn_answers_one_request_of_a_client(server: ControlServer, loop: Turner, tmp_path: Path) -> None:
    """However many a client sends at once: between two of them the loop sees to its signals and workers."""
    with connected(tmp_path / "control") as client, connected(tmp_path / "control") as other:
        loop.turn()
        loop.turn()
        client.sendall(b"\n" * 10_000)
        other.sendall(b'{"verb":"echo"}\n')
        loop.turn()
        assert client.recv(65536).count(b"\n") == 1
        assert json.loads(other.recv(65536))["ok"]
        loop.turn()
        assert client.recv(65536).count(b"\n") == 1


def test_descriptors_that_a_client_passes_are_not_kept(server: ControlServer, loop: Turner, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    with connected(tmp_path / "control") as client:
        loop.settle()
        before = len(os.listdir("/proc/self/fd"))
        socket.send_fds(client, [b'{"verb":'], [writer] * 200)
        socket.send_fds(client, [b'"echo"}\n'], [writer] * 200)
        loop.settle()
        assert json.loads(client.recv(4096))["ok"]
        assert len(os.listdir("/proc/self/fd")) == before
    os.close(writer)
    with open(reader, "rb") as pipe:
        assert pipe.read() == b""  # the end: nobody has the other side
    loop.settle()


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


def test_who_has_asked_nothing_for_longest_makes_way_for_a_new_one(
    server: ControlServer, loop: Turner, tmp_path: Path
) -> None:
    """Idle connections, of whatever number, keep no operator out."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connected(tmp_path / "control")) for _ in range(control.CONNECTIONS_MAX)]
        loop.settle()
        clients[0].sendall(b'{"verb":"echo"}\n')
        loop.settle()
        assert requested(loop, tmp_path / "control", "echo") == {"arguments": {}}
        assert "newer than this one; try again" in json.loads(clients[1].recv(4096))["error"]
        assert clients[1].recv(1) == b""
        for client in (clients[0], *clients[2:]):
            client.sendall(b'{"verb":"echo"}\n')
            loop.settle()
            assert b'"ok":true' in client.recv(4096)
        for _ in range(100):
            stack.enter_context(connected(tmp_path / "control"))
            loop.settle()
        assert len(loop.callbacks) == 1 + control.CONNECTIONS_MAX
        assert requested(loop, tmp_path / "control", "echo") == {"arguments": {}}
    loop.settle()


def test_a_request_waits_until_a_busy_master_accepts(tmp_path: Path, loop: Turner) -> None:
    """More than the kernel queues up have connected before: the request neither fails at once nor waits for ever."""
    server = ControlServer(tmp_path / "control", dispatch, watch=loop.watch, unwatch=loop.unwatch)
    with contextlib.ExitStack() as stack:
        connects = 0
        while connects == 0:
            client = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            client.settimeout(0)
            connects = client.connect_ex(str(tmp_path / "control"))
        assert connects == errno.EAGAIN
        started_s = time.monotonic()
        with pytest.raises(ControlError, match=r"said nothing for 0\.05 s"):
            control.request(tmp_path / "control", "echo", timeout_s=0.05)
        assert time.monotonic() - started_s > 0.04
        assert requested(loop, tmp_path / "control", "echo") == {"arguments": {}}
    server.close()


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


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"\n",
        b"x\n",
        b"[]\n",
        b"{}\n",
        b'{"ok":1}\n',
        b'{"ok":true}{"ok":true}\n',
        b"\xff\n",
        b"[" * 100_000 + b"\n",
        b"9" * 100_000 + b"\n",
        b"x" * (control.REPLY_BYTES_MAX + 1),
        b'{"ok":false,"error":"\\u001b[2J\\ud800\\n"}\n',
    ],
)
def test_a_reply_that_is_none_is_told_in_one_sentence(tmp_path: Path, said: bytes) -> None:
    """Whoever asks may be root, and the pool another user's."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "control"))
        listener.listen()

        def answer() -> None:
            client, _ = listener.accept()
            with client, contextlib.suppress(OSError):
                client.sendall(said)

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(ControlError) as raised:
            control.request(tmp_path / "control", "echo")
        thread.join()
    assert str(raised.value).isprintable()


def test_a_master_that_says_nothing_is_given_up(server: ControlServer, tmp_path: Path) -> None:
    with pytest.raises(ControlError, match=r"said nothing for 0\.05 s"):
        control.request(tmp_path / "control", "echo", timeout_s=0.05)
