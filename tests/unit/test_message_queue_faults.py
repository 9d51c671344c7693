"""
test_message_queue_faults - a test for each known fault of baseplate's message queue, named after its id

posix_ipc is what the original stands on; where it shows the fault by itself, it does so here, beside ours.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import mmap
import os
import resource
import select
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import ModuleType

import pytest

from tests.rig_mq import ROOT, Moved, names
from tests.waiting import signal_elsewhere, until
from workers import message_queue, message_queue_tool
from workers.message_queue import (
    InvalidParametersError,
    MessageQueue,
    MessageQueueError,
    MessageQueueOSError,
    MessageQueueWarning,
    Received,
    TimedOutError,
)
from workers.posix_mq import Mq, limits, unlink
from workers.system import process_state
from workers.waiting import readable_within

new_name = pytest.fixture(names, name="new_name")
Started = Callable[..., "subprocess.Popen[bytes]"]
PIPE_BYTES = 4096


@pytest.fixture
def queue(new_name: Callable[[], str]) -> Iterator[MessageQueue]:
    with MessageQueue(new_name(), 5, 4000) as opened:
        yield opened


@pytest.fixture
def peer() -> ModuleType:
    return pytest.importorskip("posix_ipc", reason="the peer posix_ipc is not installed")


@pytest.fixture
def started() -> Iterator[Started]:
    """Starts the tool, and ends what is left of it."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str, **streams: object) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "workers.message_queue", *arguments]
        given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": ROOT, **streams}
        processes.append(subprocess.Popen(command, **given))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def ran(*arguments: str, stdin: bytes = b"") -> tuple[int, bytes, str]:
    """Run the tool to its end: exit code, output, what it said."""
    command = [sys.executable, "-m", "workers.message_queue", *arguments]
    done = subprocess.run(command, cwd=ROOT, input=stdin, capture_output=True, timeout=60, check=False)
    return done.returncode, done.stdout, done.stderr.decode()


def is_waiting(process: subprocess.Popen[bytes]) -> bool:
    """Whether it sleeps; where it has opened the queue before, that is in a wait of its own."""
    return process_state(process.pid) == "S"


# ---- B1: what was received must be written


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_B1_what_was_received_is_written_when_the_reader_is_killed(
    queue: MessageQueue, started: Started, number: signal.Signals
) -> None:
    queue.put("one")
    queue.put("two")
    process = started("--read", queue.name)
    assert process.stdout is not None
    until(lambda: queue.waiting == 0 and is_waiting(process))
    process.send_signal(number)
    output, said = process.communicate(timeout=20)
    assert (output, said) == (b"one\ntwo\n", b"")
    assert process.returncode == (0 if number == signal.SIGTERM else -number)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_B1_nothing_is_received_while_the_output_has_no_room(
    queue: MessageQueue, started: Started, number: signal.Signals
) -> None:
    """Its reader is slow: what cannot be written yet stays in the kernel, and outlives the tool."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    bodies = [letter * 3000 for letter in (b"a", b"b", b"c")]
    for body in bodies:
        queue.put(body)
    process = started("--read", queue.name, stdout=writing)
    os.close(writing)
    until(lambda: queue.waiting < 3 and is_waiting(process))
    process.send_signal(number)
    process.wait(20)
    with os.fdopen(reading, "rb") as pipe:
        written = pipe.read().splitlines()
    left = [queue.get(timeout=0) for _ in range(queue.waiting)]
    assert written + left == bodies


def test_B1_message_that_the_output_did_not_take_is_put_back(queue: MessageQueue, started: Started) -> None:
    queue.put("precious", priority=5)
    with open("/dev/full", "wb") as full:
        process = started("--read", queue.name, stdout=full)
        _, said = process.communicate(timeout=20)
    assert process.returncode == 1
    assert b"No space left on device; the message in hand was put back" in said
    message = queue.get(timeout=0)
    assert (message, message.priority) == (b"precious", 5)


def test_B1_message_that_cannot_be_put_back_is_printed_with_the_error(queue: MessageQueue) -> None:
    for _ in range(queue.max_messages):
        queue.put(b"another was faster")
    said = message_queue_tool._put_back(queue, Received.of(b"\xffprecious", 5), OSError(errno.EPIPE, "Broken pipe"))
    assert r"cannot be put back either (Timed out" in said
    assert said.endswith(r"here it is: b'\xffprecious'")


def test_B1_reader_ends_when_nobody_reads_its_output_and_takes_nothing_for_it(
    queue: MessageQueue, started: Started
) -> None:
    """Also while it waits for a message, so that none is taken only to find out."""
    queue.put("one")
    process = started("--read", queue.name)
    assert process.stdout is not None
    assert process.stdout.readline() == b"one\n"
    until(lambda: is_waiting(process))
    process.stdout.close()
    assert process.wait(20) == 1
    assert process.stderr is not None
    assert b"nobody reads standard output" in process.stderr.read()


def test_B1_closed_output_is_an_error_and_not_the_queues_descriptor(queue: MessageQueue) -> None:
    queue.put("stays")
    command = f"exec {sys.executable} -m workers.message_queue --read {queue.name} >&-"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, timeout=60, check=False)
    assert done.returncode == 1
    assert b"must be open" in done.stderr
    assert queue.waiting == 1


# ---- B2, B3: any bytes, any length


def test_B2_bytes_that_are_no_text_are_written_as_they_are(queue: MessageQueue) -> None:
    for body in (b"\xff\xfe\0", b"", b"text\r"):
        queue.put(body)
    assert ran("--read", "--timeout", "0", queue.name) == (0, b"\xff\xfe\0\n\ntext\r\n", "")


def test_B2_any_bytes_go_in_and_come_out_between_null_bytes(queue: MessageQueue) -> None:
    assert ran("--write", "--null", queue.name, stdin=b"a\nb\0\xff\0last")[0] == 0
    assert ran("--read", "--null", "--timeout", "0", queue.name)[1] == b"a\nb\0\xff\0last\0"


def test_B3_line_that_is_too_long_is_named_and_the_rest_goes_on(queue: MessageQueue) -> None:
    stdin = b"one\r\n" + b"x" * 200_000 + b"\n" + b"y" * 4000 + b"\nlast"
    code, output, said = ran("--write", queue.name, stdin=stdin)
    assert (code, output) == (1, b"")
    assert said == f"message_queue: line 2 is not sent: it has 200000 bytes, {queue.name} takes 4000 at most\n"
    assert [queue.get(timeout=0) for _ in range(queue.waiting)] == [b"one\r", b"y" * 4000, b"last"]


def test_B3_of_a_line_that_is_too_long_only_the_beginning_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "input").write_bytes(b"x" * 3 * message_queue_tool.READ_SIZE + b"\ny\n" + b"z" * 11)
    with open(tmp_path / "input", "rb") as file, message_queue_tool.Signals() as signals:
        monkeypatch.setattr(message_queue_tool, "STDIN", file.fileno())
        found = list(message_queue_tool._lines(b"\n", 10, signals))
    assert found == [(b"x" * 10, 3 * message_queue_tool.READ_SIZE), (b"y", 1), (b"z" * 10, 11)]


def test_a_signal_that_comes_before_the_wait_ends_it() -> None:
    """One that comes between the interpreter's last look and the wait ends no wait; nor does one of another thread."""
    reading, writing = os.pipe()
    with os.fdopen(reading), os.fdopen(writing, "wb"), message_queue_tool.Signals() as signals:
        signal_elsewhere(signal.SIGTERM)
        with pytest.raises(message_queue_tool.Leave):
            signals.wait(reading, select.POLLIN)


# ---- B4: a consumer's death


def test_B4_message_received_into_shared_memory_outlives_the_one_who_received_it(queue: MessageQueue) -> None:
    """get itself loses it, as any receive does; this is what a pool on the queue builds on."""
    queue.put("precious", priority=3)
    with mmap.mmap(-1, 8192) as memory:
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        child = os.fork()
        if child == 0:
            queue.queue.receive_into(start + 8, queue.max_message_size, start)
            os.kill(os.getpid(), signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        assert queue.waiting == 0
        assert (memory[8:16], int.from_bytes(memory[:4], sys.byteorder)) == (b"precious", 3)


# ---- B5: other limits


def test_B5_queue_that_has_other_limits_says_so(queue: MessageQueue, peer: ModuleType) -> None:
    silent = peer.MessageQueue(queue.name, peer.O_CREAT, max_messages=2, max_message_size=7)
    silent.close()
    with pytest.warns(MessageQueueWarning, match=r"max_messages=5 and max_message_size=4000; it keeps these") as caught:
        again = MessageQueue(queue.name, 2, 7)
    assert caught[0].filename == __file__
    with again:
        assert (again.max_messages, again.max_message_size) == (5, 4000)


def test_B5_tool_says_it_when_limits_were_asked_for_and_only_then(queue: MessageQueue) -> None:
    assert ran("--create", queue.name) == (0, b"", "")
    assert ran("--create", "--max-messages", "5", queue.name) == (0, b"", "")
    code, _, said = ran("--create", "--max-messages", "2", queue.name)
    assert code == 0
    assert "was there before, with max_messages=5" in said


def test_B5_warning_that_is_an_error_leaves_no_descriptor_open(queue: MessageQueue) -> None:
    """As it is under -W error, and in these tests."""
    before = os.listdir("/proc/self/fd")
    with pytest.raises(MessageQueueWarning):
        MessageQueue(queue.name, 2, 7)
    assert os.listdir("/proc/self/fd") == before


# ---- B6: descriptors and clocks


def test_B6_descriptor_beyond_those_of_select_can_be_waited_for(queue: MessageQueue) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 1100:
        pytest.skip(f"only {hard} descriptors are allowed here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1100), hard))
    low = queue.queue.fd
    try:
        queue.queue.fd = fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, 1024)
        with pytest.raises(ValueError, match="select"):
            select.select([queue.queue.fd], [], [], 0)
        with pytest.raises(TimedOutError):
            queue.get(timeout=0.01)
        for _ in range(queue.max_messages):
            queue.put(b"")
        with pytest.raises(TimedOutError):
            queue.put(b"", timeout=0.01)
    finally:
        os.close(low)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("timeout", [0.25, 2.5])
def test_B6_timeout_is_counted_by_a_clock_that_nobody_sets(new_name: Callable[[], str], timeout: float) -> None:
    system = Moved()
    with MessageQueue(new_name(), 1, 1, system=system) as queue:
        with pytest.raises(TimedOutError):
            queue.get(timeout=timeout)
        assert sum(wait or 0 for wait in system.waits) == pytest.approx(timeout)
        queue.put(b"x")
        system.waits.clear()
        with pytest.raises(TimedOutError):
            queue.put(b"x", timeout=timeout)
        assert sum(wait or 0 for wait in system.waits) == pytest.approx(timeout)


# ---- B7: errors


def failures(queue: MessageQueue, other: str) -> list[tuple[type[Exception], str, Callable[[], object]]]:
    return [
        (InvalidParametersError, "a name after the slash", lambda: MessageQueue("/", 1, 1)),
        (InvalidParametersError, "no slash but the first", lambda: MessageQueue("/a/b", 1, 1)),
        (InvalidParametersError, "begin with a slash", lambda: MessageQueue("a", 1, 1)),
        (InvalidParametersError, "255 bytes", lambda: MessageQueue("/" + "x" * 256, 1, 1)),
        (InvalidParametersError, "max_messages=0 must", lambda: MessageQueue(other, 0, 1)),
        (InvalidParametersError, "max_message_size=-1 must", lambda: MessageQueue(other, 1, -1)),
        (InvalidParametersError, "more than any kernel", lambda: MessageQueue(other, 65_537, 1)),
        (InvalidParametersError, "more than any kernel", lambda: MessageQueue(other, 1 << 64 | 1, 1)),
        (InvalidParametersError, "a message of 4001 bytes", lambda: queue.put(b"x" * 4001)),
        (InvalidParametersError, "a priority of 32768", lambda: queue.put(b"x", priority=32768)),
        (InvalidParametersError, "a timeout of -1", lambda: queue.get(timeout=-1)),
        (InvalidParametersError, "a timeout of nan", lambda: queue.put(b"x", timeout=float("nan"))),
        (TimedOutError, "Timed out", lambda: queue.get(timeout=0)),
    ]


def test_B7_every_error_is_one_of_ours_and_says_what_is_wrong(queue: MessageQueue, new_name: Callable[[], str]) -> None:
    for kind, text, act in failures(queue, new_name()):
        with pytest.raises(MessageQueueError, match=text) as caught:
            act()
        assert type(caught.value) is kind
    queue.close()
    for act in (queue.get, lambda: queue.put(b"x"), queue.attributes, lambda: queue.waiting):
        with pytest.raises(MessageQueueOSError, match="Bad file descriptor") as caught_os:
            act()
        assert caught_os.value.errno == errno.EBADF


def test_B7_peer_raises_what_no_handler_of_ours_would_catch(peer: ModuleType, new_name: Callable[[], str]) -> None:
    name = new_name()
    with pytest.raises(peer.ExistentialError) as caught:
        peer.unlink_message_queue(name)
    assert not isinstance(caught.value, OSError | ValueError)


def test_B7_limit_over_the_kernels_names_the_sysctl_its_value_and_the_command(new_name: Callable[[], str]) -> None:
    msg_max, size_max = limits().msg_max, limits().msgsize_max
    assert msg_max is not None
    assert size_max is not None
    name, asked = new_name(), (msg_max + 1, size_max + 1)
    try:
        Mq.open(name, create=True, max_messages=asked[0], max_size=1).close()
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    else:
        unlink(name)
        pytest.skip("this process may exceed the limits (CAP_SYS_RESOURCE)")
    with pytest.raises(InvalidParametersError) as caught:
        MessageQueue(name, *asked)
    for word, sysctl, may, wanted in (
        ("max_messages", "msg_max", msg_max, asked[0]),
        ("max_message_size", "msgsize_max", size_max, asked[1]),
    ):
        assert f"{word}={wanted} is more than fs.mqueue.{sysctl}, which is {may}" in str(caught.value)
        assert f"sysctl -w fs.mqueue.{sysctl}={wanted}" in str(caught.value)


def test_B7_negative_timeout_is_refused_without_assertions_too(queue: MessageQueue) -> None:
    program = (
        "import sys; from workers.message_queue import MessageQueue\n"
        f"try: MessageQueue({queue.name!r}, 5, 4000).get(timeout=-0.5)\n"
        "except ValueError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-O", "-c", program], cwd=ROOT, capture_output=True, timeout=60, check=True)
    assert done.stdout.startswith(b"a timeout of -0.5")


# ---- B8: modes


@pytest.mark.parametrize("mode", [0o666, 0o620])
def test_B8_new_queue_has_the_mode_that_was_asked_for_whatever_the_umask(
    new_name: Callable[[], str], peer: ModuleType, mode: int
) -> None:
    before = os.umask(0o077)
    try:
        name = new_name()
        narrowed = peer.MessageQueue(name, peer.O_CREX, mode=mode, max_messages=1, max_message_size=1)
        assert stat.S_IMODE(os.fstat(narrowed.mqd).st_mode) == mode & 0o700, "the fault itself"
        narrowed.close()
        with MessageQueue(new_name(), 1, 1, mode=mode) as queue:
            assert stat.S_IMODE(os.fstat(queue.queue.fd).st_mode) == mode
        with MessageQueue(name, 1, 1, mode=mode) as queue:
            assert stat.S_IMODE(os.fstat(queue.queue.fd).st_mode) == mode & 0o700, "it is not ours to change"
    finally:
        os.umask(before)


def test_B8_new_queue_is_private_unless_told_otherwise(new_name: Callable[[], str]) -> None:
    with MessageQueue(new_name(), 1, 1) as queue:
        assert stat.S_IMODE(os.fstat(queue.queue.fd).st_mode) == 0o600
    name = new_name()
    assert ran("--create", "--mode", "640", name)[0] == 0
    with closing(Mq.open(name)) as made:
        assert stat.S_IMODE(os.fstat(made.fd).st_mode) == 0o640


# ---- B9: what the class could not do


def test_B9_highest_priority_is_served_first_and_the_length_is_known(queue: MessageQueue) -> None:
    queue.put("low")
    queue.put("high", priority=32767)
    assert queue.waiting == 2
    assert [(message, message.priority) for message in (queue.get(), queue.get())] == [(b"high", 32767), (b"low", 0)]


def test_B9_one_message_wakes_one_of_those_who_wait(queue: MessageQueue) -> None:
    """Five wait; nobody takes what is sent, so that each waking is seen."""
    reading, writing = os.pipe2(os.O_NONBLOCK)
    children = []
    try:
        for _ in range(5):
            child = os.fork()
            if child == 0:
                queue.queue.wait_readable(None)
                os.write(writing, b"x")
                os._exit(0)
            children.append(child)
        until(lambda: all(process_state(child) == "S" for child in children))
        woken = 0
        for expected in range(1, 6):
            queue.put(b"")
            until(lambda: any_bytes(reading))
            woken += len(os.read(reading, 10))
            assert woken == expected
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        os.close(reading)
        os.close(writing)


def any_bytes(fd: int) -> bool:
    return readable_within(fd, 0)


def test_B9_readers_and_writers_never_wait_for_each_other(
    new_name: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room for one message, and nobody looks again by himself: one waking that went wrong stops them all."""
    monkeypatch.setattr(message_queue, "LOOK_S", 1000.0)
    with MessageQueue(new_name(), 1, 10) as queue:
        acts = [queue.get] * 4 + [lambda: queue.put(b"x")] * 4
        threads = [threading.Thread(target=lambda act=act: [act() for _ in range(1500)], daemon=True) for act in acts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads)
        assert queue.waiting == 0


# ---- B10: a full queue


def test_B10_full_queue_is_said_and_a_timeout_ends_the_wait(queue: MessageQueue) -> None:
    code, _, said = ran("--write", "--timeout", "1.01", queue.name, stdin=b"x\n" * 7)
    assert code == 1
    assert said.splitlines() == [
        f"message_queue: {queue.name} is full (it has room for 5); waiting for a reader",
        "message_queue: line 6 and what follows are not sent",
        "message_queue: Timed out waiting for the message queue.",
    ]
    assert queue.waiting == 5


def test_B10_writer_that_waits_for_room_can_be_ended_and_says_what_is_left(
    queue: MessageQueue, started: Started
) -> None:
    process = started("--write", queue.name, stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(b"x\n" * 7)
    process.stdin.flush()
    until(lambda: queue.waiting == 5 and is_waiting(process))
    process.terminate()
    _, said = process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM
    assert b"line 6 and what follows are not sent" in said


def test_B10_how_full_a_queue_is_can_be_asked(queue: MessageQueue) -> None:
    queue.put(b"x")
    command = [sys.executable, "-m", "orchestrator", "mqueue", "--info", "--json", queue.name]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60, check=True)
    found = json.loads(done.stdout)
    assert (found["waiting"], found["max_messages"], found["max_message_size"]) == (1, 5, 4000)
