"""
on_guest ADDRESS PROGRAM WORD... - run a program in a guest as if it ran here

Directory, environment, input, output, signals and exit code are handed on (see guest_agent); 128 and the
signal's number as a shell says it. Where the guest is gone, 255. To be run in the guests' network
(guests.Guest.prefix).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import threading
from pathlib import Path
from types import FrameType

sys.path.insert(0, str(Path(__file__).parent))  # run by its path, like the agent
from guest_agent import PORT, receive, send

GONE = 255
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2,
             signal.SIGTTIN, signal.SIGTTOU, signal.SIGALRM)  # fmt: skip
CONNECT_S = 5.0


def main(address: str, words: list[str]) -> int:
    """Run *words* there; the exit code."""
    kept = {key: text for key, text in os.environ.items() if not key.startswith("XDG_") and key != "TMPDIR"}
    order = {"words": words, "directory": os.getcwd(), "environment": kept}
    try:
        connection = socket.create_connection((address, PORT), CONNECT_S)
    except OSError as error:
        print(f"on_guest: {address}: {error}", file=sys.stderr)  # noqa: T201 - a program's own words
        return GONE
    with connection:
        connection.settimeout(None)
        connection.sendall(json.dumps(order).encode() + b"\n")

        def pass_on(number: int, _: FrameType | None) -> None:
            with contextlib.suppress(OSError):
                send(connection, b"s", str(number).encode())

        for number in PASSED_ON:
            signal.signal(number, pass_on)
        threading.Thread(target=feed, args=(connection,), daemon=True).start()
        return follow(connection)


def feed(connection: socket.socket) -> None:
    """Hand our input on, and its end."""
    with contextlib.suppress(OSError):
        while data := os.read(0, 65536):
            send(connection, b"i", data)
        send(connection, b"i", b"")


def follow(connection: socket.socket) -> int:
    """Hand the program's output on until it ends; its exit code."""
    stream = connection.makefile("rb")
    with contextlib.suppress(OSError):
        while (frame := receive(stream)) is not None:
            kind, data = frame
            if kind == b"x":
                code = int(data)
                return code if code >= 0 else 128 - code
            os.write(1 if kind == b"o" else 2, data)
    return GONE


if __name__ == "__main__":
    os._exit(main(sys.argv[1], sys.argv[2:]))  # a thread may wait for input that never comes
