"""
launch - fork a daemon, and return when it is ready or say why it is not

Between the two is a pair of sockets. Up it come the daemon's process number, every ERROR
line of master and workers (a logging handler, which the children inherit), and the last
word: ready, or ended with a code. The end of the channel, or of the process, without a last
word is a death. Whoever launched may be gone; the daemon waits for nobody.

Root may launch, and a handler of the user that the daemon becomes has the channel too. So who the
daemon is, and thus who is ended when it does not become ready, is what the kernel says of the sender
of the first packet that names one, and of what else comes nothing is believed to be what it should.

Raises: DaemonError. Main thread of a process with one thread. Blocks up to READY_S.
Source: unix(7), SO_PASSCRED.
See also: daemon (the other side), master (on_ready), cli.run.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import FrameType

from orchestrator.config import Config
from orchestrator.daemon import TEXT_MAX, DaemonError, Launcher, Serve, become
from orchestrator.logs import escaped
from workers.signals import UNNOTICED_S

READY_S = 90.0  # as long as systemd waits for a service
END_S = 10.0  # after TERM; then it is killed
PACKET_BYTES_MAX = 65536  # what is not printable takes six bytes and more
REASONS_MAX = 100
CREDENTIALS = struct.Struct("3i")  # process, user, group


@dataclass(slots=True)
class Launched:
    """What became of a daemon. *code* is None while it runs; *reasons* are the errors until then, each once."""

    pid: int = 0
    code: int | None = None
    is_ready: bool = False
    reasons: list[str] = field(default_factory=list)


def launch(config: Config, serve: Serve) -> Launched:
    """
    Have *serve* run in a daemon as *config* says; answer when it has called on_ready, or has ended.

    No process is left when the answer's *code* is a number, nor when this is interrupted. Raises DaemonError
    when the daemon says nothing for READY_S.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    starter = os.fork()
    if starter == 0:
        ours.close()
        become(config, serve, Launcher(theirs))
    theirs.close()
    waiting = _Waiting(ours, starter)
    is_wanted = False
    try:
        with _interruptible():
            is_wanted = waiting.follow(READY_S).is_ready
    except TimeoutError:
        said = "".join(f"\n{text}" for text in waiting.found.reasons)
        raise DaemonError(f"the pool was not ready after {READY_S:g} s and was ended again{said}") from None
    finally:
        waiting.close(is_wanted=is_wanted)
    return waiting.found


class _Waiting:
    """The launching side: follows what the daemon says, and ends it when it said no last word."""

    def __init__(self, channel: socket.socket, starter: int) -> None:
        self.found = Launched()
        self._channel = channel
        self._starter = starter
        self._process = -1  # a descriptor of the daemon, which its number could not be mistaken for
        self._is_over = False

    def follow(self, timeout_s: float) -> Launched:
        """Read until the last word. Raises TimeoutError."""
        end_s = time.monotonic() + timeout_s
        poller = select.poll()
        poller.register(self._channel, select.POLLIN)
        while not self._is_over:
            left_s = end_s - time.monotonic()
            if left_s <= 0:
                raise TimeoutError
            readable = [fd for fd, _ in poller.poll(min(left_s, UNNOTICED_S) * 1000)]
            if self._channel.fileno() in readable:
                self._read()
                if self._process >= 0:
                    # Its own end counts too, for a child of it may hold the channel open.
                    poller.register(self._process, select.POLLIN)
            elif readable:
                self._died()
        return self.found

    def close(self, *, is_wanted: bool) -> None:
        """Wait for the process that was forked; end the daemon unless it *is_wanted* or has ended."""
        if not self._is_over:
            self._hear_the_name()
        self._channel.close()
        if not self._is_over:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._starter, signal.SIGKILL)  # it holds nothing before it is a daemon
        with contextlib.suppress(ChildProcessError):  # who started us ignores the end of children
            os.waitpid(self._starter, 0)
        if self._process >= 0:
            if not is_wanted:
                self._end()
            os.close(self._process)
            self._process = -1

    def _hear_the_name(self) -> None:
        # RACE: it has named itself, and we are interrupted before we have read that: it would go on for nobody. From
        # here on it cannot name itself, and ends by that; what it said before is heard. See
        # test_a_daemon_that_named_itself_a_moment_before_the_interrupt_is_ended_too.
        self._channel.shutdown(socket.SHUT_RD)
        while self._process < 0 and self._hear():
            pass

    def _read(self) -> None:
        if not self._hear():
            self._died()

    def _hear(self) -> bool:
        """Note what it says next; False at its end."""
        # No room for more than who it is from: descriptors that somebody passes are not taken.
        packet, beside, _, _ = self._channel.recvmsg(PACKET_BYTES_MAX, socket.CMSG_SPACE(CREDENTIALS.size))
        if not packet:
            return False
        said = _object(packet)
        if "pid" in said and not self.found.pid:
            self.found.pid = CREDENTIALS.unpack(beside[0][2])[0]
            with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile: the channel will
                self._process = os.pidfd_open(self.found.pid)
        if "error" in said:
            reason = escaped(str(said["error"]))[:TEXT_MAX]
            if reason not in self.found.reasons and len(self.found.reasons) < REASONS_MAX:
                self.found.reasons.append(reason)
        if "ready" in said:
            self.found.is_ready = self._is_over = True
        if "ended" in said:
            code = said["ended"]
            self.found.code, self._is_over = code if isinstance(code, int) else 1, True
        return True

    def _died(self) -> None:
        self.found.reasons.append("the daemon died before it was ready (killed, or out of memory?)")
        self.found.code, self._is_over = 1, True

    def _end(self) -> None:
        gone = select.poll()
        gone.register(self._process, select.POLLIN)
        if self.found.code is None:
            self._send(signal.SIGTERM)
        if not gone.poll(END_S * 1000):
            self._send(signal.SIGKILL)
            gone.poll(END_S * 1000)

    def _send(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._process, number)


def _object(packet: bytes) -> dict[str, object]:
    try:
        said = json.loads(packet)
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """TERM and HUP end the wait like INT does, so that no daemon is left that nobody was told of."""

    def interrupt(number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
