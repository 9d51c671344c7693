"""
test_message_queue - the bare calls of posix_mq and the published MessageQueue, on the real kernel, beside posix_ipc
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import pickle
import resource
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.rig_mq import ROOT, Failing, Moved, names
from workers import posix_mq
from workers.errors import QueueError
from workers.message_queue import (
    LOOK_S,
    InvalidParametersError,
    MessageQueue,
    MessageQueueError,
    MessageQueueOSError,
    TimedOutError,
)
from workers.posix_mq import Attributes, Mq, check_name, limits, unlink
from workers.system import SYSTEM

new_name = pytest.fixture(names, name="new_name")
# The two programs that the manual of the original shows, but for the import.
PRODUCER = """\
from workers.message_queue import MessageQueue

# If the queue doesn't already exist, we'll create it.
mq = MessageQueue(
    "/baseplate-testing", max_messages=1, max_message_size=1)
message = "1"
mq.put(message)
print("Put Message: %s" % message)
"""
CONSUMER = """\
from workers.message_queue import MessageQueue

mq = MessageQueue(
    "/baseplate-testing", max_messages=1, max_message_size=1)
# Unless a `timeout` kwarg is passed, this will block until
# we can pop a message from the queue.
message = mq.get()
print("Get Message: %s" % message)
"""


@pytest.fixture
def name(new_name: Callable[[], str]) -> str:
    return new_name()


@pytest.fixture
def mq(name: str):
    with closing(Mq.open(name, create=True, max_messages=3, max_size=100)) as opened:
        yield opened


@pytest.fixture
def queue(name: str):
    with MessageQueue(name, 3, 100) as opened:
        yield opened


# ---- the calls


def test_what_is_sent_is_received_by_priority_and_then_in_order(mq: Mq) -> None:
    for body, priority in ((b"low", 0), (b"first\0\xff", 7), (b"", 7)):
        mq.send(body, priority)
    assert mq.attributes() == Attributes(max_messages=3, max_size=100, waiting=3)
    assert [mq.receive() for _ in range(3)] == [(b"first\0\xff", 7), (b"", 7), (b"low", 0)]


def test_full_empty_and_too_long_are_errors_of_their_own(mq: Mq) -> None:
    with pytest.raises(BlockingIOError):
        mq.receive()
    with pytest.raises(OSError, match=mq.name) as caught:
        mq.send(b"x" * 101)
    assert (caught.value.errno, caught.value.filename) == (errno.EMSGSIZE, mq.name)
    for _ in range(3):
        mq.send(b"x" * 100)
    with pytest.raises(BlockingIOError):
        mq.send(b"")


@pytest.mark.parametrize("priority", [-1, 32768, 1 << 32])
def test_priority_that_the_kernel_does_not_have_is_refused_and_not_cut_off(mq: Mq, priority: int) -> None:
    with pytest.raises(OSError, match="Invalid") as caught:
        mq.send(b"", priority)
    assert caught.value.errno == errno.EINVAL
    assert mq.attributes().waiting == 0


def test_descriptor_is_closed_on_exec_and_does_not_block(mq: Mq) -> None:
    assert not os.get_inheritable(mq.fd)
    assert not os.get_blocking(mq.fd)


def test_open_says_whether_the_queue_is_new(mq: Mq) -> None:
    assert mq.is_new
    with closing(Mq.open(mq.name, create=True)) as again:
        assert not again.is_new
    with pytest.raises(FileExistsError):
        Mq.open(mq.name, create=True, exclusive=True)
    unlink(mq.name)
    with pytest.raises(FileNotFoundError):
        Mq.open(mq.name)
    with pytest.raises(FileNotFoundError):
        unlink(mq.name)


def test_open_with_one_limit_takes_the_kernels_default_for_the_other(new_name: Callable[[], str]) -> None:
    allowed = limits()
    with closing(Mq.open(new_name(), create=True, max_messages=2)) as one:
        assert one.attributes() == Attributes(2, allowed.msgsize_default, 0)
    with closing(Mq.open(new_name(), create=True, max_size=7)) as other:
        assert other.attributes() == Attributes(min(allowed.msg_default, allowed.msg_max), 7, 0)
    with closing(Mq.open(new_name(), create=True)) as neither:
        assert neither.attributes().max_size == allowed.msgsize_default


def test_reader_and_writer_cannot_do_what_the_other_does(mq: Mq) -> None:
    with closing(Mq.open(mq.name, access="r")) as reader, closing(Mq.open(mq.name, access="w")) as writer:
        with pytest.raises(OSError, match=mq.name) as caught:
            reader.send(b"")
        assert caught.value.errno == errno.EBADF
        with pytest.raises(OSError, match=mq.name):
            writer.receive()
        writer.send(b"x")
        assert reader.receive() == (b"x", 0)


def test_receive_into_writes_length_body_and_priority_where_it_was_told(mq: Mq) -> None:
    mq.send(b"body", 9)
    with mmap.mmap(-1, 4096) as memory:
        memory[:] = b"\xee" * 4096
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        assert mq.receive_into(start + 8, 100, start) == 4
        assert memory[:16] == (9).to_bytes(4, sys.byteorder) + b"\xee" * 4 + b"body" + b"\xee" * 4
        with pytest.raises(BlockingIOError):
            mq.receive_into(start + 8, 100, start)
        with pytest.raises(OSError, match="long"):
            mq.receive_into(start + 8, 99, 0)


def test_receipt_is_written_before_the_body(mq: Mq) -> None:
    """A priority that was written says that the message was taken, not yet that its body is all there."""
    mq.send(b"body", 9)
    priority = ctypes.c_uint(0xFFFFFFFF)
    with pytest.raises(OSError, match="address"):
        mq.receive_into(8, 100, ctypes.addressof(priority))
    assert (priority.value, mq.attributes().waiting) == (9, 0)


def test_threads_that_share_a_descriptor_get_whole_messages(mq: Mq) -> None:
    bodies = [bytes([number % 251]) * 100 for number in range(3000)]
    got: list[bytes] = []

    def receive() -> None:
        while len(got) < len(bodies):
            try:
                got.append(mq.receive()[0])
            except BlockingIOError:
                mq.wait_readable(0.01)

    threads = [threading.Thread(target=receive) for _ in range(3)]
    for thread in threads:
        thread.start()
    for body in bodies:
        while True:
            try:
                mq.send(body)
                break
            except BlockingIOError:
                mq.wait_writable(1)
    for thread in threads:
        thread.join()
    assert sorted(got) == sorted(bodies)


def test_wait_ends_for_another_descriptor_too_and_says_which(mq: Mq) -> None:
    reading, writing = os.pipe()
    try:
        assert mq.wait_readable(0, (reading,)) == []
        os.write(writing, b"x")
        assert mq.wait_readable(None, (reading,)) == [reading]
        assert sorted(mq.wait_writable(None, (reading,))) == sorted([reading, mq.fd])
        mq.send(b"")
        assert sorted(mq.wait_readable(None, (reading,))) == sorted([reading, mq.fd])
    finally:
        os.close(reading)
        os.close(writing)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "begin with a slash"),
        ("jobs", "begin with a slash"),
        ("/", "a name after"),
        ("/.", "a name after"),
        ("/..", "a name after"),
        ("/a/b", "no slash but the first"),
        ("//", "no slash but the first"),
        ("/a\0b", "null byte"),
        ("/" + "é" * 128, "255 bytes after the slash, not 256"),
    ],
)
def test_what_cannot_be_a_name_is_said_to_be_none(text: str, what: str) -> None:
    for refuse in (check_name, Mq.open, unlink):
        with pytest.raises(ValueError, match=what):
            refuse(text)


def test_longest_name_that_the_kernel_takes_is_taken(name: str) -> None:
    longest = name + "x" * (256 - len(name))
    Mq.open(longest, create=True, max_messages=1, max_size=1).close()
    unlink(longest)


def test_limits_are_those_of_the_kernel() -> None:
    allowed = limits()
    assert allowed.msg_max == int(Path("/proc/sys/fs/mqueue/msg_max").read_text())
    assert allowed.queues_max == int(Path("/proc/sys/fs/mqueue/queues_max").read_text())
    shell = subprocess.run(["bash", "-c", "ulimit -q"], capture_output=True, text=True, check=True).stdout.strip()
    assert shell == ("unlimited" if allowed.user_bytes_max is None else str(allowed.user_bytes_max))


class Library:
    """The C library, where something happens before the call of a number."""

    def __init__(self, before: dict[int, Callable[[], int]]) -> None:
        self._real = posix_mq._library()
        self._before = before
        self.calls = 0

    def __getattr__(self, name: str) -> Callable[..., int]:
        def call(*arguments: object) -> int:
            self.calls += 1
            failed = self._before.get(self.calls, lambda: 0)()
            return failed or getattr(self._real, name)(*arguments)

        return call


def _interrupt() -> int:
    ctypes.set_errno(errno.EINTR)
    return -1


def test_open_makes_a_queue_that_went_away_meanwhile(mq: Mq, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is there at the first call, and removed before the second."""

    def remove() -> int:
        real._real.mq_unlink(mq.name.encode())
        return 0

    real = Library({2: remove})
    monkeypatch.setattr(posix_mq, "_library", lambda: real)
    with closing(Mq.open(mq.name, create=True, max_messages=1, max_size=5)) as made:
        assert made.is_new
        assert made.attributes() == Attributes(1, 5, 0)


def test_interrupted_calls_are_made_again(mq: Mq, monkeypatch: pytest.MonkeyPatch) -> None:
    for act in (lambda: mq.send(b"x"), mq.receive, mq.attributes, lambda: Mq.open(mq.name).close()):
        library = Library({1: _interrupt})
        monkeypatch.setattr(posix_mq, "_library", lambda library=library: library)
        act()
        assert library.calls >= 2


def test_queue_that_could_not_be_given_its_mode_is_not_left_behind(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, mode: int) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fchmod", refuse)
        with pytest.raises(PermissionError, match=name):
            Mq.open(name, create=True, max_messages=1, max_size=1)
    with pytest.raises(FileNotFoundError):
        Mq.open(name)


def test_closing_twice_does_not_close_what_got_the_number_meanwhile(mq: Mq) -> None:
    number = mq.fd
    mq.close()
    other = os.open(os.devnull, os.O_RDONLY)
    try:
        assert other == number
        mq.close()
        os.fstat(other)
    finally:
        os.close(other)


def test_system_has_no_c_library_with_queues(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS: no call, no librt."""

    def load(path: str | None, **_: object) -> object:
        if path:
            raise OSError("no such library")
        return object()

    monkeypatch.setattr(ctypes, "CDLL", load)
    posix_mq._library.cache_clear()
    try:
        with pytest.raises(OSError, match="no POSIX message queues here") as caught:
            Mq.open("/x")
        assert caught.value.errno == errno.ENOSYS
        with pytest.raises(MessageQueueOSError, match="no POSIX message queues here"):
            MessageQueue("/x", 1, 1)
    finally:
        posix_mq._library.cache_clear()


# ---- the published class


def test_programs_of_the_manual_run_with_another_import_and_print_what_it_says(tmp_path: Path, mq: Mq) -> None:
    """get returns bytes, as the original does; that %s shows its text is what the manual promises."""
    try:
        for text, said in ((PRODUCER, "Put Message: 1\n"), (CONSUMER, "Get Message: 1\n")):
            (tmp_path / "program.py").write_text(text, encoding="utf-8")
            done = subprocess.run(
                [sys.executable, "-bb", "-W", "error", "program.py"],
                cwd=tmp_path,
                env={**os.environ, "PYTHONPATH": ROOT},
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert (done.stdout, done.returncode) == (said, 0), done.stderr
    finally:
        unlink("/baseplate-testing")


def test_get_returns_bytes_that_know_their_priority_and_print_as_text(queue: MessageQueue) -> None:
    queue.put("é", priority=4)
    message = queue.get()
    assert isinstance(message, bytes)
    assert message == "é".encode()
    assert (message.priority, f"{message}", repr(message)) == (4, "é", r"b'\xc3\xa9'")
    queue.put(bytearray(b"\xff"))
    assert str(queue.get()) == r"\xff"
    copy = pickle.loads(pickle.dumps(message))  # noqa: S301 - our own
    assert (copy, copy.priority) == (message, 4)


def test_timeout_of_zero_is_one_try(queue: MessageQueue) -> None:
    with pytest.raises(TimedOutError, match=r"^Timed out waiting for the message queue\.$"):
        queue.get(timeout=0)
    for _ in range(3):
        queue.put(b"x", timeout=0)
    with pytest.raises(TimedOutError):
        queue.put(b"x", timeout=0)


def test_get_and_put_wait_for_each_other(queue: MessageQueue) -> None:
    got: list[bytes] = []
    thread = threading.Thread(target=lambda: got.extend(queue.get() for _ in range(200)))
    thread.start()
    for number in range(200):
        queue.put(str(number))
    thread.join(20)
    assert got == [str(number).encode() for number in range(200)]


def test_message_that_nobody_was_woken_for_is_found_all_the_same(name: str) -> None:
    """The one who was woken for it has died; the wait of the other ends by time only."""
    system = Moved()
    with MessageQueue(name, 1, 10, system=system) as queue:
        system.when_waiting = lambda: SYSTEM.mq_send(queue.queue, b"left")
        assert queue.get() == b"left"
        assert system.waits == [LOOK_S]


def test_last_try_comes_after_the_last_wait(name: str) -> None:
    system = Moved()
    with MessageQueue(name, 1, 10, system=system) as queue:
        system.when_waiting = lambda: SYSTEM.mq_send(queue.queue, b"in time") if len(system.waits) == 2 else None
        assert queue.get(timeout=1.5) == b"in time"
        assert system.waits == [1.0, 0.5]


def test_wait_can_be_ended_from_outside(queue: MessageQueue) -> None:
    class Asked(Exception):
        pass

    class Stop:
        def __init__(self) -> None:
            reading, self.writing = os.pipe()
            self.fds = (reading,)
            self.checks = 0

        def check(self) -> None:
            self.checks += 1
            if self.checks > 1:
                raise Asked
            os.write(self.writing, b"x")

    stop = Stop()
    with pytest.raises(Asked):
        queue.get(stop=stop)
    for fd in (*stop.fds, stop.writing):
        os.close(fd)


def test_purge_removes_what_waits_and_counts_it(queue: MessageQueue) -> None:
    queue.put(b"a")
    queue.put(b"b")
    assert (queue.purge(), queue.waiting, queue.purge()) == (2, 0, 0)


def test_unlinked_queue_lives_until_it_is_closed(queue: MessageQueue) -> None:
    queue.unlink()
    queue.put(b"x")
    assert queue.get() == b"x"
    with pytest.raises(MessageQueueOSError, match="cannot remove") as caught:
        queue.unlink()
    assert (caught.value.errno, caught.value.filename) == (errno.ENOENT, queue.name)


def test_every_error_is_of_one_kind_and_of_the_kind_it_always_was() -> None:
    assert issubclass(MessageQueueError, QueueError)
    for kind, old in ((TimedOutError, Exception), (InvalidParametersError, ValueError), (MessageQueueOSError, OSError)):
        assert issubclass(kind, MessageQueueError)
        assert issubclass(kind, old)


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.EMFILE, r"ulimit -q"),
        (errno.ENOSPC, r"sysctl -w fs\.mqueue\.queues_max="),
        (errno.EACCES, "another user"),
        (errno.ENOSYS, "not implemented"),
    ],
)
def test_error_of_opening_says_what_to_do(number: int, hint: str) -> None:
    with pytest.raises(MessageQueueOSError, match=hint) as caught:
        MessageQueue("/x", 10, 8192, system=Failing("mq_open", number))
    assert caught.value.errno == number


def test_real_limit_of_bytes_is_met_with_its_hint(name: str) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_MSGQUEUE)
    resource.setrlimit(resource.RLIMIT_MSGQUEUE, (1000, hard))
    try:
        with pytest.raises(MessageQueueOSError, match=r"-q allows \(1000; this one takes about 1960\)") as caught:
            MessageQueue(name, 10, 100)
    finally:
        resource.setrlimit(resource.RLIMIT_MSGQUEUE, (soft, hard))
    assert caught.value.errno == errno.EMFILE


# ---- beside another program


def test_peer_reads_what_we_put_and_we_read_what_it_sends(queue: MessageQueue) -> None:
    posix_ipc = pytest.importorskip("posix_ipc", reason="the peer posix_ipc is not installed")
    peer = posix_ipc.MessageQueue(queue.name)
    try:
        queue.put("from us", priority=3)
        assert peer.receive(timeout=5) == (b"from us", 3)
        peer.send(b"from the peer", priority=2)
        got = queue.get(timeout=5)
        assert (got, got.priority) == (b"from the peer", 2)
        assert (peer.max_messages, peer.max_message_size) == (queue.max_messages, queue.max_message_size)
    finally:
        peer.close()
