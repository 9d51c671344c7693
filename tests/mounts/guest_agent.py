"""
guest_agent - runs programs in a guest for whoever connects (see guests, on_guest)

A connection is one program: a line of JSON ({"words", "directory", "environment"}), then frames both
ways. A frame is a kind (one byte), a size (4 bytes, big-endian) and that many bytes: "i" input (empty: its
end) and "s" a signal's number go in, "o" output, "e" errors and "x" the exit code come out. A program
whose connection breaks is killed with its session.

Standard library only: it is run by its path, in a guest.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from typing import IO

PORT = 7000
HEAD = struct.Struct(">cI")
OUTLIVED_S = 2.0  # so long may output come from a program's children when it has ended


def send(connection: socket.socket, kind: bytes, data: bytes) -> None:
    """Send one frame. Raises OSError."""
    connection.sendall(HEAD.pack(kind, len(data)) + data)


def receive(stream: IO[bytes]) -> tuple[bytes, bytes] | None:
    """The next frame; None at the end."""
    head = stream.read(HEAD.size)
    if len(head) < HEAD.size:
        return None
    kind, size = HEAD.unpack(head)
    return kind, stream.read(size)


class Program:
    """One program and its connection."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._stream = connection.makefile("rb")
        self._sending = threading.Lock()
        order = json.loads(self._stream.readline())
        self._process = subprocess.Popen(
            order["words"], cwd=order["directory"], env=order["environment"], start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0,
        )  # fmt: skip

    def serve(self) -> None:
        """Until the program ends."""
        pumps = [
            threading.Thread(target=self._pump, args=arguments, daemon=True)
            for arguments in ((b"o", self._process.stdout), (b"e", self._process.stderr))
        ]
        for one in (*pumps, threading.Thread(target=self._obey, daemon=True)):
            one.start()
        code = self._process.wait()
        for pump in pumps:
            pump.join(OUTLIVED_S)
        self._send(b"x", str(code).encode())
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def _send(self, kind: bytes, data: bytes) -> None:
        with self._sending, contextlib.suppress(OSError):
            send(self._connection, kind, data)

    def _pump(self, kind: bytes, pipe: IO[bytes]) -> None:
        while data := pipe.read(65536):
            self._send(kind, data)

    def _obey(self) -> None:
        given = self._process.stdin
        assert given is not None
        with contextlib.suppress(OSError):
            while (frame := receive(self._stream)) is not None:
                kind, data = frame
                if kind == b"s":
                    self._process.send_signal(int(data))
                elif data:
                    with contextlib.suppress(BrokenPipeError):
                        given.write(data)
                else:
                    given.close()
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)


def serve(connection: socket.socket) -> None:
    """One connection, to its end; what cannot be started is said as the program's errors."""
    with connection:
        try:
            program = Program(connection)
        except OSError as error:
            send(connection, b"e", f"{error}\n".encode())
            send(connection, b"x", b"127")
        else:
            program.serve()


def main() -> None:
    """For ever."""
    with socket.create_server((sys.argv[1], PORT), backlog=64) as listener:
        while True:
            threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()


if __name__ == "__main__":
    main()
