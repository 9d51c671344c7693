"""The mapped files of a kernel's queue: what is in them after a kill between any two stores, and whose they are."""

from __future__ import annotations

import ctypes
import errno
import os
import random
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.rig import World
from tests.rig_mq import names
from tests.rig_mqueue import Locks, MqSystem
from workers.errors import QueueRefused
from workers.posix_mq import Mq
from workers.queues import receive as module
from workers.queues.receive import EMPTY, HEADER, NEVER_LAST_IN_UTF8, Receive, ReceivePlace, Seen
from workers.system import System

SIZE = 300
BODY = "text with \N{GREEK SMALL LETTER ALPHA} and an end".encode()


class Killed(BaseException):
    """What a SIGKILL does, as far as one process can see it."""


class Stores:
    """Kills before the store after *left* of them."""

    def __init__(self, left: int) -> None:
        self.left = left

    def count(self) -> None:
        if not self.left:
            raise Killed
        self.left -= 1


class Cut:
    """Memory, each store counted."""

    def __init__(self, real: Any, stores: Stores) -> None:
        self._real, self._stores = real, stores

    def __getitem__(self, where: Any) -> Any:
        return self._real[where]

    def __setitem__(self, where: Any, what: Any) -> None:
        self._stores.count()
        self._real[where] = what


def cut(receive: Receive, left: int) -> Stores:
    stores = Stores(left)
    for name in ("_words", "_receipt", "_memory"):
        setattr(receive, name, Cut(getattr(receive, name), stores))
    return stores


@pytest.fixture(name="queue_names")
def _queue_names() -> Iterator[Callable[[], str]]:
    yield from names()


@pytest.fixture(name="queue")
def _queue(queue_names) -> Iterator[Mq]:
    queue = Mq.open(queue_names(), create=True, max_messages=10, max_size=SIZE)
    yield queue
    queue.close()


class Site:
    """One place, seen by processes of any number."""

    def __init__(self, path: Path) -> None:
        self.world, self.locks, self.path = World(path.parent), Locks(), path

    def place(self, pid: int) -> ReceivePlace:
        return ReceivePlace(str(self.path), 1, MqSystem(self.world, self.locks, pid))

    def take(self, pid: int = 1, index: int = 0, size: int = SIZE) -> Receive:
        return self.place(pid).take(index, size, f"owner{pid}")

    def kill(self, pid: int) -> None:
        self.world.dead.add(pid)


@pytest.fixture(name="site")
def _site(tmp_path: Path) -> Site:
    return Site(tmp_path / "receive")


def received(site: Site, queue: Mq, body: bytes, priority: int = 3, pid: int = 1) -> Receive:
    receive = site.take(pid)
    queue.send(body, priority)
    assert receive.receive(queue)
    return receive


# ---- receiving

BODIES = (b"", BODY, b"\0" * SIZE, bytes(NEVER_LAST_IN_UTF8), random.Random(1).randbytes(SIZE))  # noqa: S311


@pytest.mark.parametrize("body", BODIES, ids=("empty", "text", "zeros", "no text", "random"))
@pytest.mark.parametrize("priority", [0, 32767])
def test_what_was_received_is_there_until_it_is_cleared(site, queue, body, priority):
    receive = received(site, queue, body, priority)
    for _ in range(2):
        assert (receive.has_message, receive.body(), receive.priority) == (True, body, priority)
        assert (receive.owner, receive.counts, receive.is_judged) == ("owner1", (0, 0), False)
        assert receive.received_ns
    receive.clear()
    assert not receive.has_message
    assert not receive.receive(queue)
    assert not receive.has_message
    assert (receive.counts, receive.received_ns) == ((0, 0), 0)


def test_a_short_message_after_a_long_one_has_nothing_of_it(site, queue):
    receive = received(site, queue, b"x" * SIZE)
    receive.clear()
    queue.send(b"short", 1)
    receive.receive(queue)
    unfinished(receive)
    assert receive.body() == b"short"


def unfinished(receive: Receive) -> None:
    """Have it as the kernel left it: its receiver was killed before it could write down the length."""
    receive._words[module._LENGTH] = -1
    receive._words[module._RECEIVED] = 0


@pytest.mark.parametrize("text", ["", "a", "\0", "end\0\0", "\N{GREEK SMALL LETTER ALPHA}", "\U0010ffff", "x" * SIZE])
def test_of_a_receiver_that_died_before_it_knew_the_length_text_is_exact(site, queue, text):
    receive = received(site, queue, text.encode())
    unfinished(receive)
    site.kill(1)
    taken = site.take(2)
    assert (taken.has_message, taken.body(), taken.priority) == (True, text.encode(), 3)


def test_of_other_bytes_only_an_end_that_is_like_the_fill_is_cut(site, queue):
    receive = site.take()
    fill = receive._memory[receive._fill_at :][:SIZE]
    assert set(fill) <= set(NEVER_LAST_IN_UTF8)
    assert len(set(fill)) > 5, "drawn at random"
    unlike = bytes([next(byte for byte in NEVER_LAST_IN_UTF8 if byte != fill[4])])
    assert len(set(fill)) > 40
    for body, seen in ((b"abcd" + fill[4:6], b"abcd"), (b"abcd" + unlike, b"abcd" + unlike)):
        queue.send(body, 0)
        receive.receive(queue)
        unfinished(receive)
        assert receive.body() == seen
        receive.clear()


def test_no_text_ends_with_a_byte_of_the_fill():
    """Of all characters; and all the others are drawn, each as often."""
    last = {chr(code).encode()[-1] for code in range(0x110000) if not 0xD800 <= code < 0xE000}
    assert last == set(range(256)) - set(NEVER_LAST_IN_UTF8)
    assert sorted(module._FILLING) == sorted(NEVER_LAST_IN_UTF8 * 4)


@pytest.mark.parametrize(("body", "is_said"), [(BODY, False), (b"abc\xff", True)])
def test_a_length_that_was_guessed_is_logged_for_what_is_no_text_and_once(site, queue, body, is_said, caplog):
    receive = site.take()
    while receive._memory[receive._fill_at + 3] == 0xFF:
        receive._prepare()
    queue.send(body, 0)
    receive.receive(queue)
    unfinished(receive)
    site.kill(1)
    for pid in (2, 3):
        taken = site.take(pid)
        assert taken.body() == body
        site.kill(pid)
    said = f"{receive.path}: its receiver was killed before it knew the length of the message, which is no text: 4"
    assert caplog.text.count(said) == is_said


def test_the_kernel_writes_the_receipt_before_the_body(queue):
    """So whatever of a message is in the file is found there. Where the body goes cannot be written here."""
    queue.send(BODY, 7)
    receipt = ctypes.c_uint(EMPTY)
    with pytest.raises(OSError, match=os.strerror(errno.EFAULT)):
        queue.receive_into(8, SIZE, ctypes.addressof(receipt))
    assert receipt.value == 7
    with pytest.raises(BlockingIOError):
        queue.receive()


@pytest.mark.parametrize("is_lockable", [True, False])
def test_every_page_is_resident_before_each_receive(site, queue, is_lockable):
    """By mlock, or where that is not allowed by a write to each."""
    place = site.place(1)
    system, touched, locked = place.system, [], []

    def lock_memory(address, size):
        if not is_lockable:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        locked.append((address, size))

    system.lock_memory = lock_memory
    receive = place.take(0, 3 * module.PAGE, "owner")

    class Memory(Cut):
        def __setitem__(self, where, what):
            touched.append(where)
            super().__setitem__(where, what)

    receive._memory = Memory(receive._memory, Stores(-1))
    big = Mq.open(queue.name)
    receive.receive(big)
    pages = HEADER + 3 * module.PAGE
    if is_lockable:
        assert locked == [(receive._body_address - HEADER, pages)]
        assert touched == []
    else:
        assert touched == list(range(0, pages, module.PAGE))
    big.close()


# ---- killed between any two stores


def each_cut(run: Callable[[int], bool]) -> int:
    """Call *run* with 0, 1, 2, ... stores to do before the kill, until it says that it was not killed."""
    left = 0
    while run(left):
        left += 1
    assert left
    return left


def test_a_kill_at_any_store_of_a_settle_loses_nothing(tmp_path, queue):
    """Either the message is there as it was, or it is settled; and the next one is exact in both cases."""
    seen = []

    def run(left: int) -> bool:
        site = Site(tmp_path / f"receive{left}")
        receive = received(site, queue, BODY)
        receive.aside = "deferred/x"
        cut(receive, left)
        is_killed = False
        try:
            receive.clear()
        except Killed:
            is_killed = True
        site.kill(1)
        taken = site.take(2)
        seen.append(taken.has_message)
        if taken.has_message:
            assert (taken.body(), taken.priority, taken.owner) == (BODY, 3, "owner1")
            taken.clear()
        queue.send(b"next", 0)
        assert taken.receive(queue)
        unfinished(taken)
        assert (taken.body(), taken.priority, taken.counts, taken.aside) == (b"next", 0, (0, 0), "")
        return is_killed

    each_cut(run)
    assert seen == sorted(seen, reverse=True), "first there, then settled"
    assert {True, False} <= set(seen)


def test_a_file_that_is_half_made_holds_no_message(tmp_path, monkeypatch):
    def run(left: int) -> bool:
        site = Site(tmp_path / f"receive{left}")
        real, is_killed = Receive._prepare, False

        def prepare(self):
            words, receipt, memory = self._words, self._receipt, self._memory
            cut(self, left)
            try:
                real(self)
            finally:
                self._words, self._receipt, self._memory = words, receipt, memory

        with monkeypatch.context() as patched:
            patched.setattr(Receive, "_prepare", prepare)
            try:
                site.take(1)
            except Killed:
                is_killed = True
        site.kill(1)
        assert not [seen for seen in site.place(2).seen() if seen.has_message]
        assert not site.take(2).has_message
        return is_killed

    each_cut(run)


def test_a_kill_while_it_is_taken_up_leaves_one_owner_and_its_counts(tmp_path, queue):
    found = set()

    def run(left: int) -> bool:
        site = Site(tmp_path / f"receive{left}")
        received(site, queue, BODY).judge(2, 1)
        site.kill(1)
        taken = site.take(2)
        cut(taken, left)
        is_killed = False
        try:
            taken.own("the second", crashes=1)
        except Killed:
            is_killed = True
        (seen,) = site.place(3).seen(is_whole=True)
        found.add((seen.owner, seen.attempts, seen.crashes, seen.is_judged))
        assert (seen.body, seen.has_message) == (BODY, True)
        return is_killed

    each_cut(run)
    assert found == {("owner1", 2, 1, True), ("the second", 2, 2, False)}


def test_counts_are_bounded(site, queue):
    receive = received(site, queue, BODY)
    receive.judge(10**9, 10**9)
    assert (receive.counts, receive.is_judged) == ((9999, 9999), True)


# ---- whose it is


def test_of_two_that_live_each_has_a_file_and_the_dead_ones_is_taken_up(site, queue):
    first = received(site, queue, BODY)
    second = site.take(2)
    assert [Path(one.path).name for one in (first, second)] == ["0", "1000"]
    site.kill(1)
    third = site.take(3)
    assert (third.path, third.has_message, third.owner) == (first.path, True, "owner1")


def test_a_process_does_not_take_its_own_file_twice(site):
    """A record lock would let it."""
    first, second = site.take(1), site.take(1)
    assert first.path != second.path


def test_a_look_at_ones_own_file_leaves_it_locked(tmp_path, queue):
    """With the kernel's own locks, which another process tries."""
    place = ReceivePlace(str(tmp_path / "receive"), 1, System())
    receive = place.take(0, SIZE, "owner")
    queue.send(BODY, 3)
    receive.receive(queue)
    assert [(seen.body, seen.priority) for seen in place.seen(is_whole=True)] == [(BODY, 3)]
    assert place.look(receive.path) is not None
    assert in_a_child(lambda: Path(place.take(0, SIZE, "child").path).name) == "1000"
    receive.leave()
    assert in_a_child(lambda: Path(place.take(0, SIZE, "child").path).name) == "0"


def in_a_child(act: Callable[[], str]) -> str:
    """What *act* returns in a process of its own."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writer, act().encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as file:
        said = file.read().decode()
    os.waitpid(pid, 0)
    return said


def test_a_lock_ends_with_its_process_whatever_that_has_forked(tmp_path):
    """The child's own child, which lives on, has it not."""
    place = ReceivePlace(str(tmp_path / "receive"), 1, System())
    reader, writer = os.pipe()

    def fork_one() -> str:
        receive = place.take(0, SIZE, "child")
        if os.fork() == 0:
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
        return receive.path

    path = in_a_child_that_dies(fork_one)
    taken = place.take(0, SIZE, "successor")
    assert taken.path == path
    os.close(writer)
    os.close(reader)


def in_a_child_that_dies(act: Callable[[], str]) -> str:
    said, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(write, act().encode())
        os._exit(9)
    os.close(write)
    found = os.read(said, 4096).decode()
    os.waitpid(pid, 0)
    os.close(said)
    return found


def test_a_file_that_is_removed_while_another_opens_it_is_made_again(site):
    """It is opened; then whoever has it removes it, and ends; then it is locked."""
    first, place = site.take(1), site.place(2)

    def leave(call, _arguments):
        if call == "lock_file":
            place.system.before = None
            first.leave(is_removed=True)

    place.system.before = leave
    second = place.take(0, SIZE, "owner2")
    assert os.stat(second.path).st_ino == os.fstat(second._fd).st_ino
    assert Path(site.take(3).path).name == "1000", "it is the one that is locked"


def test_a_directory_that_the_last_one_removed_is_made_again(site):
    first, place = site.take(1), site.place(2)

    def leave(call, _arguments):
        if call == "open":
            place.system.before = None
            first.leave(is_removed=True)
            site.place(1).remove()
            assert not site.path.exists()

    place.system.before = leave
    assert Path(place.take(0, SIZE, "owner2").path).exists()


def test_what_lies_there_for_longer_messages_is_read_and_then_made_anew(site, queue):
    received(site, queue, BODY).leave()
    taken = site.take(2, size=10 * SIZE)
    assert (taken.body(), taken.size) == (BODY, SIZE)
    taken.leave(is_removed=True)
    assert site.take(3, size=10 * SIZE).size == 10 * SIZE


def test_an_empty_file_is_removed_by_who_opens_it_for_its_message(site):
    path = site.take(1).path
    site.kill(1)
    assert site.place(2).open(path) is None
    assert not os.path.exists(path)
    assert site.place(2).open(path) is None


# ---- what others have laid there


def test_a_place_that_is_not_ours_alone_is_refused(site):
    site.path.mkdir(mode=0o755)
    with pytest.raises(QueueRefused, match="yours and nobody else's"):
        site.take()


def test_a_link_in_its_place_is_refused(site, tmp_path):
    (tmp_path / "theirs").mkdir(mode=0o700)
    site.path.symlink_to(tmp_path / "theirs")
    with pytest.raises(QueueRefused, match="yours and nobody else's"):
        site.place(1).make()


def test_what_is_no_file_in_the_place_of_one_is_named_once_and_another_is_taken(site, tmp_path, caplog):
    site.path.mkdir(mode=0o700)
    (tmp_path / "victim").write_bytes(b"x")
    (site.path / "0").symlink_to(tmp_path / "victim")
    (site.path / "1").mkdir()
    os.mkfifo(site.path / "2")
    with closing(socket.socket(socket.AF_UNIX)) as server:
        server.bind(str(site.path / "3"))
    place = site.place(1)
    for index in range(4):
        for _ in range(2):
            taken = place.take(index, SIZE, "owner")
            assert Path(taken.path).name == str(index + 1000)
            taken.leave()
        assert caplog.text.count(f"{site.path}/{index} is in the way: it is no file of ours; remove it") == 1
    assert (tmp_path / "victim").read_bytes() == b"x"
    looking = site.place(2)
    for _ in range(2):
        assert [Path(seen.path).name for seen in looking.seen(is_whole=True)] == ["1000", "1001", "1002", "1003"]
        assert looking.look(str(site.path / "0")) is None
        assert looking.open(str(site.path / "2")) is None
    assert caplog.text.count("is in the way") == 8, "once by each who looks"


def test_a_damaged_file_with_a_receipt_is_kept_and_another_is_taken(site, queue, caplog):
    receive = received(site, queue, BODY)
    receive.leave()
    os.truncate(receive.path, HEADER)
    assert site.take(2).path != receive.path
    assert site.place(3).open(receive.path) is None
    assert os.stat(receive.path).st_size == HEADER
    assert "may be a message" in caplog.text


def test_what_is_no_such_file_is_no_message(site):
    site.path.mkdir(mode=0o700)
    (site.path / "0").write_bytes(b"something else" * 1000)
    (site.path / "README").write_bytes(b"")
    (site.path / "5").write_bytes(b"short")
    assert list(site.place(1).seen(is_whole=True)) == []
    assert Seen.of("x", b"") is None
    assert not site.take(1).has_message
