"""A pool on a message queue of the kernel: claims, settles, judgement, every call failed once and killed at."""

from __future__ import annotations

import errno
import itertools
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from tests.rig import ERRNOS, World
from tests.rig_mq import names as queue_names
from tests.rig_mqueue import MQUEUE_SETTINGS, Locks, MqSystem, MqueuePool, make_queue
from tests.waiting import until
from workers.board import Board, Q, WorkerText
from workers.errors import (
    ClaimLost,
    KeeperGone,
    NotSupported,
    OrchestratorError,
    QueueFull,
    QueueMissing,
    QueueRefused,
    QueueUnavailable,
)
from workers.message import Claim, Message
from workers.posix_mq import Mq, unlink
from workers.queues import mqueue, mqueue_state, names
from workers.queues.base import Consumer, Settings
from workers.queues.beside import Counts
from workers.queues.mqueue import Mqueue
from workers.queues.mqueue_keep import COUNTS_S_MAX, UNFOLLOWED_S
from workers.queues.mqueue_look import name_of, priority_of
from workers.queues.mqueue_state import split_options, state_directory
from workers.queues.open import open_queue
from workers.system import System
from workers.waiting import at_descriptor, waiting_at

SETTLES = ("done", "retry", "reject", "release")
BODY = b"content"
NAME = name_of(BODY, 0)
PIDS = iter(range(2000, 10**6, 10))

Make = Callable[..., MqueuePool]


class Killed(BaseException):
    """What a SIGKILL does, as far as one process can see it."""


@pytest.fixture(name="fresh_name")
def _fresh_name() -> Iterator[Callable[[], str]]:
    yield from queue_names()


@pytest.fixture(name="name")
def _name(fresh_name: Callable[[], str]) -> str:
    name = fresh_name()
    make_queue(name)
    return name


@pytest.fixture(name="make")
def _make(name: str, tmp_path: Path) -> Iterator[Make]:
    """Makes pools on one queue, all under one clock."""
    world, locks, made = World(tmp_path), Locks(), []

    def make(**options) -> MqueuePool:
        made.append(MqueuePool(tmp_path, name, world, locks, **{"pid": next(PIDS), **options}))
        return made[-1]

    yield make
    for pool in made:
        pool.end()


@pytest.fixture(name="pool")
def _pool(make: Make) -> MqueuePool:
    return make()


@pytest.fixture(name="fresh")
def _fresh(
    fresh_name: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., MqueuePool]]:
    """Makes a pool on an empty queue at each call; the one before is forgotten."""
    made: list[MqueuePool] = []
    monkeypatch.setattr(mqueue, "LOOK_S", 0.4)
    name = fresh_name()
    make_queue(name, depth=3, size=64)

    def make(settings: Settings = MQUEUE_SETTINGS) -> MqueuePool:
        if made:
            made[-1].end()
            empty(made[-1])
        place = tmp_path / str(len(made))
        place.mkdir()
        made.append(MqueuePool(place, name, World(place), Locks(), pid=next(PIDS), settings=settings))
        return made[-1]

    yield make
    for pool in made:
        pool.end()


def put(pool: MqueuePool, body: bytes = BODY, **options) -> str:
    return pool.queue.put(body, **options)


def settle(queue: Mqueue, verb: str, claim: Claim) -> object:
    """Settle as a worker does: what may be tried again is, once."""
    arguments = ("of no use",) if verb == "reject" else ()
    try:
        return getattr(queue, verb)(claim, *arguments)
    except QueueUnavailable:
        return getattr(queue, verb)(claim, *arguments)
    finally:
        queue.settled(claim)


def hold(pool: MqueuePool, body: bytes = BODY) -> str:
    """Put, claim and die; the owner that was."""
    put(pool, body)
    pool.claim()
    return pool.die()


def body(claim: Claim) -> bytes:
    return Message(claim, "").body


def metas(pool: MqueuePool) -> list[dict[str, object]]:
    return [json.loads(path.read_bytes()) for path in pool.beside("errors").glob("*.meta")]


def fill(pool: MqueuePool) -> list[bytes]:
    """Put until it is full."""
    put_bodies = []
    with suppress(QueueFull):
        while True:
            raw = f"fill {len(put_bodies)}".encode()
            put(pool, raw)
            put_bodies.append(raw)
    return put_bodies


def empty(pool: MqueuePool) -> list[tuple[bytes, int]]:
    """Take all that waits out of the kernel, as a program of somebody else."""
    raw, found = Mq.open(pool.name), []
    with suppress(BlockingIOError):
        while True:
            found.append(raw.receive())
    raw.close()
    return found


# ---- opening


def test_a_queue_that_is_missing_says_how_to_make_one_and_create_makes_it(fresh_name, tmp_path):
    name = fresh_name()
    with pytest.raises(QueueMissing, match=f"orchestrator mqueue --create {name}"):
        open_queue(f"mqueue:{name}")
    with open_queue(f"mqueue:{name}", settings=Settings(create=True, state_dir=str(tmp_path))) as queue:
        assert queue.put(BODY) == NAME
    assert os.listdir(tmp_path) == [], "who only puts makes nothing beside it"


@pytest.mark.parametrize("name", ["x", "/", "/a/b", "/.", "/" + "x" * 256])
def test_what_can_be_no_name_is_refused_with_the_reason(name):
    with pytest.raises(QueueRefused, match="is no name of a message queue"):
        open_queue(f"mqueue:{name}")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [({"keep_done_s": 5.0}, "keep_done is not possible"), ({"lease_interval_s": 1.0}, "lease_interval"),
     ({"lease_timeout_s": 9.0}, "lease_timeout")],
)  # fmt: skip
def test_what_the_kernel_has_not_is_refused_at_start_by_its_name(make, settings, sentence):
    with pytest.raises(NotSupported, match=sentence):
        make(settings=replace(MQUEUE_SETTINGS, **settings))


def test_the_state_directory_is_the_systems_for_root_and_the_users_else(monkeypatch):
    class Somebody(System):
        def __init__(self, uid: int) -> None:
            self.geteuid = lambda: uid

    assert state_directory(Somebody(0)) == "/var/lib/orchestrator/mqueue"
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert state_directory(Somebody(7)) == "/state/orchestrator/mqueue"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert state_directory(Somebody(7)) == "/home/me/.local/state/orchestrator/mqueue"


def test_a_state_directory_in_the_url_is_the_one_of_the_settings(make, tmp_path, monkeypatch):
    """So the commands reach it, whatever HOME they have."""
    pool = make()
    put(pool)
    settle(pool.queue, "reject", pool.claim())
    monkeypatch.setenv("XDG_STATE_HOME", "/elsewhere")
    monkeypatch.setattr(mqueue_state, "state_directory", lambda _: "/elsewhere")
    with open_queue(f"mqueue:{pool.name}?state_dir={tmp_path}/state") as queue:
        assert [line.name for line in queue.list("errors")] == [NAME]
        assert queue.show(NAME)
        queue.pause()
        pool.rounds()
        assert pool.words[Q.PAUSED]
        queue.resume()
        assert queue.requeue(NAME) == 1
    pool.rounds()
    assert pool.claim().name == NAME


@pytest.mark.parametrize(
    ("rest", "what"),
    [("?state_dir=x", "absolute path"), ("?state_dir=", "absolute path"), ("?mode=600", "no option 'mode'"),
     ("?state_dir", "absolute path")],
)  # fmt: skip
def test_an_option_that_is_none_is_refused(name, rest, what):
    with pytest.raises(QueueRefused, match=what):
        open_queue(f"mqueue:{name}{rest}")
    assert split_options("/q?state_dir=/a&state_dir=/b?c=d") == ("/q", "/b?c=d")


@pytest.mark.parametrize("environment", [{}, {"XDG_STATE_HOME": "state"}, {"HOME": "home"}])
def test_no_state_goes_into_a_directory_that_depends_on_where_we_are(name, tmp_path, monkeypatch, environment):
    """Neither HOME nor a passwd entry, as in a container; who only puts needs none."""

    class Somebody(System):
        geteuid = staticmethod(lambda: 54321)

    for variable in ("HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    if not environment:
        monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.chdir(tmp_path)
    with Mqueue(name, system=Somebody(), shared=str(tmp_path / "none")) as queue:
        queue.put(BODY)
        assert queue.depth().waiting == 1
        for act in (queue.make_places, queue.pause):
            with pytest.raises(QueueRefused, match=r"is no absolute path.*set state_dir"):
                act()
    queue = Mqueue(name, Settings(state_dir="state"), shared=str(tmp_path / "none"))
    with queue, pytest.raises(QueueRefused, match="state is no absolute path"):
        queue.make_places()
    assert os.listdir(tmp_path) == []


def test_a_state_directory_that_somebody_else_has_made_is_refused_and_nothing_of_it_sent(make):
    """Its name can be foretold, so in a shared directory another user may be first."""
    pool = make()
    put(pool)
    settle(pool.queue, "reject", pool.claim())
    for path, mode in ((pool.beside(), 0o777), (pool.beside("deferred"), 0o777), (pool.beside("errors"), 0o722)):
        before = path.stat().st_mode & 0o777
        path.chmod(mode)
        for act in (pool.keeper.open, pool.queue.pause, lambda: pool.queue.requeue(NAME)):
            with pytest.raises(QueueRefused, match=rf"{path} is in the way.*nobody else's.*set state_dir"):
                act()
        path.chmod(before)
    real = pool.keeper_system.geteuid
    pool.keeper_system.geteuid = lambda: real() + 1
    with pytest.raises(QueueRefused, match=r"is in the way.*yours"):
        pool.keeper.open()
    pool.keeper_system.geteuid = real
    pool.keeper.open()
    assert pool.everything() == {"errors": [BODY]}


@pytest.mark.parametrize(("length", "is_long"), [(243, False), (244, True)])
def test_a_name_that_leaves_no_room_for_its_state_directory_is_refused_with_the_reason(
    fresh_name, tmp_path, length, is_long
):
    name = fresh_name().ljust(length + 1, "x")
    with Mqueue(name, Settings(create=True, state_dir=str(tmp_path)), shared=str(tmp_path)) as queue:
        unlink(name)
        with pytest.raises(QueueRefused, match="243 bytes at most") if is_long else nullcontext():
            queue.make_places()


class Permitted(System):
    """One to whom only *access* is permitted."""

    def __init__(self, access: str) -> None:
        self._access = access

    def mq_open(self, name, *, access="rw", **more):
        if access != self._access:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)
        return super().mq_open(name, access=access, **more)


@pytest.mark.parametrize(("access", "what"), [("r", "read"), ("w", "written")])
def test_a_pool_that_may_not_read_and_write_is_refused_with_who_may(name, tmp_path, access, what):
    with Mqueue(name, Settings(state_dir=str(tmp_path)), system=Permitted(access), shared=str(tmp_path)) as queue:
        assert queue.depth().waiting == 0
        consumer = Consumer("one", *one_board(queue))
        refused = rf"may only be {what} by uid {os.geteuid()} \(it is uid {os.geteuid()}'s, mode 600\).*--mode"
        with pytest.raises(QueueRefused, match=refused):
            queue.keeper(consumer).open()


def test_a_pool_whose_queue_was_made_anew_for_others_says_so(pool, monkeypatch):
    unlink(pool.name)
    make_queue(pool.name)
    for system in (pool.system, pool.keeper_system):
        monkeypatch.setattr(system, "mq_open", Permitted("r").mq_open)
    for act in (pool.keeper.keep, pool.queue.claim):
        with pytest.raises(QueueUnavailable, match="may only be read by uid"):
            act()


def test_a_put_where_we_may_only_read_says_that_it_is_not_permitted(name, tmp_path):
    queue = Mqueue(name, Settings(state_dir=str(tmp_path)), system=Permitted("r"))
    with queue, pytest.raises(QueueUnavailable, match="Permission denied"):
        queue.put(BODY)


def test_what_is_kept_is_its_users_alone(name, tmp_path, monkeypatch):
    monkeypatch.setattr(mqueue_state, "state_directory", lambda _: str(tmp_path / "a" / "b"))
    old = os.umask(0)
    try:
        queue = Mqueue(name, shared=str(tmp_path))
        queue.make_places()
        queue.pause()
        queue.beside.write_count(NAME, Counts(1, 1))
        pool_of(queue)
        for verb in ("retry", "reject"):
            queue.put(BODY)
            claim = queue.claim()
            assert claim is not None
            settle(queue, verb, claim)
    finally:
        os.umask(old)
    queue.close()
    for path in tmp_path.rglob("*"):
        assert path.stat().st_mode & 0o77 == 0, path
    assert len(list(Path(queue.beside.path).rglob("*"))) > 8


def test_where_there_is_no_memory_filesystem_messages_are_received_in_the_state_directory(name, tmp_path):
    queue = Mqueue(name, Settings(state_dir=str(tmp_path)), shared=str(tmp_path / "missing"))
    assert queue.receive_place.path == f"{queue.beside.path}/receive"
    queue.close()


def test_a_state_directory_that_cannot_be_made_is_said_with_what_to_do(make):
    pool = make()
    pool.keeper_system.fail_all("mkdir", errno.EACCES)
    with pytest.raises(QueueRefused, match="set state_dir"):
        pool.keeper.open()


def test_a_queue_that_may_only_be_written_takes_messages(name, tmp_path):
    with Mqueue(name, Settings(state_dir=str(tmp_path)), system=Permitted("w")) as queue:
        queue.put(BODY)
        assert queue.depth().waiting == 1


# ---- put


def test_the_highest_priority_is_served_first_and_each_in_order(pool):
    for number, priority in enumerate((0, 5, 32767, 5, None)):
        put(pool, b"%d" % number, priority=priority)
    found = []
    while (claim := pool.queue.claim()) is not None:
        found.append((body(claim), claim.name.partition(".")[0]))
        settle(pool.queue, "done", claim)
    assert found == [(b"2", "32767"), (b"1", "5"), (b"3", "5"), (b"0", "0"), (b"4", "0")]


@pytest.mark.parametrize("priority", [-1, 32768])
def test_a_priority_that_the_kernel_has_not_is_refused(pool, priority):
    with pytest.raises(NotSupported, match=rf"priority {priority} is not possible.*0 to 32767"):
        put(pool, priority=priority)


def test_a_full_queue_says_how_deep_it_is_and_what_to_do(pool):
    assert len(fill(pool)) == 10
    with pytest.raises(QueueFull, match=r"10 messages wait and it was made for 10.*fs\.mqueue\.msg_max"):
        put(pool)


def test_a_batch_that_finds_the_queue_full_or_a_body_too_long_names_what_it_has_put(pool):
    with pytest.raises(QueueFull) as full:
        pool.queue.put_many([b"%d" % number for number in range(12)])
    assert full.value.names == tuple(name_of(b"%d" % number, 0) for number in range(10))
    empty(pool)
    with pytest.raises(NotSupported) as refused:
        pool.queue.put_many([b"fits", b"x" * 1000])
    assert refused.value.names == (name_of(b"fits", 0),)


def test_who_puts_into_a_queue_that_was_removed_and_made_again_puts_into_the_new_one(pool):
    unlink(pool.name)
    with pytest.raises(QueueUnavailable, match="removed"):
        put(pool)
    make_queue(pool.name)
    put(pool)
    assert pool.everything() == {"waiting": [BODY]}


# ---- claim


def test_a_message_in_hand_is_all_that_a_worker_has(pool):
    put(pool, b"1")
    put(pool, b"2")
    claim = pool.claim()
    assert pool.queue.claim() is None
    assert pool.everything() == {"claimed": [b"1"], "waiting": [b"2"]}
    settle(pool.queue, "done", claim)
    assert body(pool.claim()) == b"2"


def test_what_was_left_unsettled_is_claimed_again_by_the_same_worker(pool):
    """As of one that could not settle it in time, and goes on all the same."""
    put(pool)
    pool.queue.settled(pool.claim())
    claim = pool.claim()
    assert (claim.name, claim.attempt, claim.crashes) == (NAME, 1, 0)


def test_a_program_can_read_it_by_its_path_while_it_is_in_hand(name, tmp_path):
    queue = open_queue(f"mqueue:{name}", settings=Settings(state_dir=str(tmp_path)), consume=True)
    try:
        queue.put(b"for a program")
        claim = queue.claim()
        assert claim is not None
        done = subprocess.run(["cat", claim.path], capture_output=True, check=True, timeout=20)
        assert done.stdout == b"for a program"
        settle(queue, "done", claim)
    finally:
        queue.close()
    assert not os.path.exists(queue.receive_place.path)


def test_the_board_says_who_receives_before_the_file_does(pool):
    """A keeper that looks at any moment finds no owner in a file that is not on the board."""
    put(pool)
    seen = []

    def look(call, _arguments):
        owners = {one.owner for one in pool.keeping.receive_place.seen() if one.has_message}
        listed = pool.board.worker(0).text(WorkerText.OWNER)
        seen.append(call)
        assert owners <= {listed}

    pool.system.after = look
    pool.claim()
    assert "mq_receive_into" in seen


def test_a_lone_worker_whose_keeper_died_claims_nothing(pool):
    put(pool)
    pool.queue.keeper_is_gone = lambda: True
    pool.world.advance(60)
    with pytest.raises(KeeperGone):
        pool.queue.claim()


def test_a_pool_whose_keeper_hangs_goes_on(pool):
    put(pool)
    pool.world.advance(3600)
    pool.claim()


def test_a_second_settle_is_refused(pool):
    put(pool)
    claim = pool.claim()
    settle(pool.queue, "done", claim)
    for verb in SETTLES:
        with pytest.raises(ClaimLost):
            settle(pool.queue, verb, claim)
    assert pool.everything() == {}


# ---- B4, B9


def test_B4_a_consumer_that_is_killed_loses_no_message(name, tmp_path):
    """A real one, killed when the kernel has written and before anything else was: then its pool's keeper judges."""
    settings = Settings(state_dir=str(tmp_path))

    class Dying(System):
        def mq_receive_into(self, *arguments):
            super().mq_receive_into(*arguments)
            os.kill(os.getpid(), signal.SIGKILL)

    Mq.open(name).send("text \N{GREEK SMALL LETTER ALPHA}".encode(), 4)
    pid = os.fork()
    if pid == 0:
        with suppress(BaseException):
            Mqueue(name, settings, system=Dying(), shared=str(tmp_path))
            dying = Mqueue(name, settings, system=Dying(), shared=str(tmp_path))
            pool_of(dying).claim()
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert empty_count(name) == 0
    queue = Mqueue(name, settings, shared=str(tmp_path))
    claim = pool_of(queue).claim()
    assert claim is not None
    assert (body(claim), claim.crashes) == ("text \N{GREEK SMALL LETTER ALPHA}".encode(), 1)
    settle(queue, "done", claim)
    queue.close()
    assert not os.path.exists(queue.receive_place.path)


def one_board(queue: Mqueue) -> tuple[Board, int, int]:
    """A board, and the slots of *queue* and of its one worker."""
    board = Board.create()
    slot = board.take_queue("queue", queue.url)
    return board, slot, board.take_worker(slot, 0)


def pool_of(queue: Mqueue) -> Mqueue:
    """*queue* ready to claim from, with a keeper in this process that made its one round."""
    queue.make_places()
    queue.attach(Consumer(names.master_name("one", queue.system), *one_board(queue)))
    return queue


def empty_count(name: str) -> int:
    raw = Mq.open(name)
    try:
        return raw.attributes().waiting
    finally:
        raw.close()


def test_B9_a_message_wakes_one_of_those_who_wait(name, tmp_path):
    """Real workers' waits, each in a process of its own; each message is taken by who was woken."""
    count = 4
    read_end, write_end = os.pipe()
    stop, stopped = os.pipe()
    pids = []
    for number in range(count):
        pid = os.fork()
        if pid == 0:
            raw = Mq.open(name)
            wait = at_descriptor(raw.fd)
            os.write(write_end, b"ready\n")
            while wait(30, stop):
                taken = 0
                with suppress(BlockingIOError):
                    raw.receive()
                    taken = 1
                os.write(write_end, b"woken %d %d\n" % (number, taken))
            os._exit(0)
        pids.append(pid)
    os.close(write_end)
    os.set_blocking(read_end, False)
    said: list[bytes] = []

    def lines() -> list[bytes]:
        with suppress(BlockingIOError):
            said.extend(os.read(read_end, 65536).splitlines())
        return said

    try:
        until(lambda: len(lines()) == count)
        until(lambda: all(wchan(pid) for pid in pids))
        sender = Mq.open(name)
        for number in range(20):
            sender.send(b"x")
            until(lambda number=number: sum(line.endswith(b" 1") for line in lines()) == number + 1)
            until(lambda: all(wchan(pid) for pid in pids))
        sender.close()
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        for fd in (read_end, stop, stopped):
            os.close(fd)
    woken = [line for line in said if line.startswith(b"woken")]
    assert len(woken) == 20, woken


def wchan(pid: int) -> bool:
    """Whether process *pid* sleeps."""
    return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] == b"S"


def test_a_message_that_waits_while_the_queue_is_paused_ends_no_wait(pool):
    """Else its workers would spin, in a pool and alone."""
    put(pool)
    asked, ask = os.pipe()
    wait = waiting_at(pool.queue, pool.words)
    assert wait(10, asked), "there is something"
    pool.words[Q.PAUSED] = 1
    before_s = time.monotonic()
    wait(0.05, asked)
    assert time.monotonic() - before_s >= 0.04
    os.write(ask, b"x")
    assert not wait(10, asked), "but for being asked to leave"
    for fd in (asked, ask):
        os.close(fd)


# ---- a worker died


@pytest.mark.parametrize(("cause", "crashes"), [("died", 1), ("unknown", 1)])
def test_the_successor_takes_up_what_a_dead_worker_had_with_its_crash_counted(pool, cause, crashes):
    owner = hold(pool)
    assert pool.keeping.release_owner(owner, cause) == [NAME]
    assert pool.everything() == {"claimed": [BODY]}
    put(pool, b"later")
    pool.succeed(next(PIDS))
    claim = pool.claim()
    assert (body(claim), claim.attempt, claim.crashes) == (BODY, 1, crashes)
    settle(pool.queue, "done", claim)
    assert body(pool.claim()) == b"later"


def test_who_was_stopped_counts_nothing_and_it_goes_back(pool):
    owner = hold(pool)
    assert pool.keeping.release_owner(owner, "stopped") == [NAME]
    pool.rounds(2)
    assert pool.everything() == {"waiting": [BODY]}
    pool.succeed(next(PIDS))
    claim = pool.claim()
    assert (claim.attempt, claim.crashes) == (1, 0)


def test_a_time_limit_is_a_failed_attempt_and_waits_for_its_time(make):
    pool = make(settings=replace(MQUEUE_SETTINGS, max_attempts=2, retry_backoff_s=5.0))
    owner = hold(pool)
    pool.keeping.release_owner(owner, "timeout")
    assert pool.everything() == {"deferred": [BODY]}
    pool.rounds(6)
    pool.succeed(next(PIDS))
    claim = pool.claim()
    assert (claim.attempt, claim.crashes) == (2, 0)
    pool.keeping.release_owner(pool.die(), "timeout")
    assert pool.everything() == {"errors": [BODY]}
    (meta,) = metas(pool)
    assert (meta["attempts"], meta["reason"]) == (2, "failed 2 times, the last time by its time limit")


@pytest.mark.parametrize("is_judged", [True, False])
def test_what_kills_its_workers_ends_in_errors(make, is_judged):
    """Whoever counts: the keeper, or a successor that waited for it in vain."""
    pool = make(settings=replace(MQUEUE_SETTINGS, crash_limit=2))
    put(pool)
    for crashes in range(2):
        assert pool.claim().crashes == crashes
        owner = pool.die()
        if is_judged:
            pool.keeping.release_owner(owner, "died", "signal 11")
        pool.succeed(next(PIDS))
    assert pool.queue.claim() is None
    assert pool.everything() == {"errors": [BODY]}
    (meta,) = metas(pool)
    assert (meta["name"], meta["crashes"], meta["reason"]) == (NAME, 2, "its worker died 2 times with it in hand")
    if is_judged:
        assert (meta["note"], pool.words[Q.REAPED_CRASH_LIMIT]) == ("signal 11", 1)


def test_a_successor_waits_for_the_keeper_to_say_how_its_predecessor_died(pool):
    owner = hold(pool)
    pool.succeed(next(PIDS))
    slept = []

    def judge(call, arguments):
        if call == "sleep":
            slept.append(arguments[0])
            if len(slept) == 3:
                pool.keeping.release_owner(owner, "timeout")

    pool.system.before = judge
    assert pool.queue.claim() is None, "it was its time limit, so it waits"
    assert len(slept) == 3
    assert pool.everything() == {"deferred": [BODY]}


def test_a_successor_to_whom_nobody_says_it_counts_a_crash_after_a_second(pool):
    hold(pool)
    pool.succeed(next(PIDS))
    before_ns = pool.world.moved_ns
    assert pool.claim().crashes == 1
    assert 0.9e9 < pool.world.moved_ns - before_ns < 1.2e9


def test_the_death_of_who_took_it_up_is_counted_as_well_and_each_once(pool):
    put(pool)
    for crashes in range(2):
        assert pool.claim().crashes == crashes
        owner = pool.die()
        for _ in range(2):
            pool.keeping.release_owner(owner, "died")
        pool.succeed(next(PIDS))
    assert pool.claim().crashes == 2


@pytest.mark.parametrize("is_dead", [False, True])
def test_the_keeper_judges_only_what_it_has_locked(pool, is_dead):
    """Between its look and its lock a successor took it up, and has it still, or died with it: another death."""
    owner = hold(pool)
    pid = next(PIDS)
    successor = pool.another_worker(0, pid)

    def late(call, _arguments):
        if call == "lock_file":
            pool.keeper_system.before = None
            assert successor.claim() is not None
            if is_dead:
                pool.world.dead.add(pid)

    pool.keeper_system.before = late
    assert pool.keeping.release_owner(owner, "died") == []
    assert pool.everything() == {"claimed": [BODY]}
    (seen,) = pool.keeping.receive_place.seen()
    assert (seen.crashes, seen.is_judged) == (1, False)


def test_what_no_successor_takes_up_goes_back_after_a_while(pool):
    owner = hold(pool)
    pool.keeping.release_owner(owner, "died")
    pool.rounds(int(UNFOLLOWED_S) - 1)
    assert pool.everything() == {"claimed": [BODY]}
    pool.rounds(4)
    assert pool.everything() == {"waiting": [BODY]}
    assert pool.files() == []
    claim = pool.another_worker(3, next(PIDS)).claim()
    assert claim is not None
    assert claim.crashes == 1


def test_an_owner_of_ours_that_the_board_does_not_list_is_judged_in_the_second_round(pool):
    hold(pool)
    assert pool.rounds(every_s=0.1).owner_dead == 0
    assert pool.rounds(every_s=0.1).owner_dead == 1
    pool.succeed(next(PIDS))
    assert pool.claim().crashes == 1


def test_a_worker_that_lives_keeps_what_it_has_however_long(pool):
    put(pool)
    claim = pool.claim()
    assert pool.rounds(20).owner_dead == 0
    settle(pool.queue, "done", claim)
    assert pool.everything() == {}


def test_a_new_masters_keeper_judges_what_a_dead_pool_has_left_before_its_workers_receive(make):
    dead = make()
    hold(dead)
    dead.world.dead |= {dead.pid, dead.pid + 2}
    living = make()
    assert living.world.ended_sessions == [dead.system.pid]
    claim = living.claim()
    assert (body(claim), claim.crashes) == (BODY, 1)


def test_another_pool_of_whom_the_master_lives_is_left_to_its_own_keeper_for_a_while(make):
    other, pool = make(), make()
    hold(other)
    pool.rounds(int(UNFOLLOWED_S) - 1)
    (seen,) = pool.keeping.receive_place.seen()
    assert (seen.is_judged, seen.crashes) == (False, 0)
    pool.rounds(3)
    assert pool.claim().crashes == 1


def test_a_pool_of_which_nobody_can_be_asked_is_known_to_be_dead_by_its_lock(make, monkeypatch):
    """Of another container that shares the memory, say."""
    with monkeypatch.context() as patched:
        patched.setattr("tests.rig.FakeSystem.kernel8", lambda *_: "0" * 8)
        other = make()
        hold(other)
    pool = make()
    pool.rounds(int(UNFOLLOWED_S) + 3)
    assert pool.claim().crashes == 1
    assert pool.world.ended_sessions == []


def test_two_pools_on_one_queue_have_a_file_each(make):
    one, other = make(), make()
    for number, pool in enumerate((one, other)):
        put(pool, b"%d" % number)
        assert body(pool.claim()) == b"%d" % number
    assert [path.name for path in one.files()] == ["0", "1000"]


# ---- retry, and what is due


def test_what_fails_is_on_disk_before_memory_forgets_it(pool):
    """File and directory are synced while the message is still in memory."""
    for verb in ("retry", "reject"):
        put(pool)
        claim = pool.claim()
        synced = []

        def look(call, _arguments, synced=synced):
            if call in ("fsync", "rename"):
                synced.append((call, [seen.has_message for seen in pool.keeping.receive_place.seen()]))

        pool.system.after = look
        settle(pool.queue, verb, claim)
        pool.system.after = None
        assert synced[0] == ("fsync", [True])
        assert synced[1:3] == [("rename", [True]), ("fsync", [True])]


def test_a_retried_message_comes_back_with_its_priority_and_its_counts(pool):
    put(pool, priority=9)
    settle(pool.queue, "retry", pool.claim())
    put(pool, b"of less weight")
    pool.rounds(2)
    claim = pool.claim()
    assert (claim.name, body(claim), claim.attempt) == (name_of(BODY, 9), BODY, 2)
    settle(pool.queue, "done", claim)
    assert os.listdir(pool.beside("counts")) == []


def test_counts_that_the_keeper_of_another_pool_wrote_are_known_at_the_claim(make):
    """Though no round of our own keeper was since. So they are forgotten when it is done, and charged to no other."""
    one, other = make(), make()
    for _ in range(4):
        put(one)
        settle(one.queue, "retry", one.claim())
        one.rounds(2)
        claim = other.claim()
        assert claim.attempt == 2
        settle(other.queue, "done", claim)
        assert os.listdir(one.beside("counts")) == []


def test_no_counts_outlive_their_message_whenever_its_worker_is_killed(fresh):
    """At any call of its settle: either it is there still, or so are no counts."""
    for verb, when in itertools.product(("done", "retry", "reject"), ("before", "after")):
        nth, is_killed = 0, True
        while is_killed:
            nth, is_killed, calls = nth + 1, False, []
            pool = fresh()
            claimed(pool)

            def kill(call, _arguments, calls=calls, nth=nth):
                calls.append(call)
                if len(calls) >= nth:
                    raise Killed

            setattr(pool.system, when, kill)
            try:
                settle_once(verb)(pool)
            except Killed:
                is_killed = True
            setattr(pool.system, when, None)
            left = [seen.attempts for seen in pool.keeping.receive_place.seen() if seen.has_message]
            assert left == [1] or os.listdir(pool.beside("counts")) == [], (verb, when, calls)


def test_what_waits_again_after_a_time_limit_has_left_no_counts(pool):
    claimed(pool)
    pool.keeping.release_owner(pool.die(), "timeout")
    assert pool.everything() == {"deferred": [BODY]}
    assert os.listdir(pool.beside("counts")) == []


def test_what_is_due_waits_for_room_and_no_message_is_lost_meanwhile(pool):
    put(pool)
    settle(pool.queue, "retry", pool.claim())
    waiting = fill(pool)
    assert pool.rounds(5).due == 0
    assert pool.everything() == {"deferred": [BODY], "waiting": sorted(waiting)}
    settle(pool.queue, "done", pool.claim())
    assert pool.rounds().due == 1
    assert pool.everything() == {"waiting": sorted([*waiting[1:], BODY])}


def test_what_is_due_comes_back_though_producers_wait_for_every_place(name, tmp_path):
    """Real ones, in the kernel's own line, and a real keeper: who polls for room would never get any."""
    pids = []
    for _ in range(3):
        pid = os.fork()
        if pid == 0:
            raw = Mq.open(name)
            for number in itertools.count():
                raw.send_within(b"%d of %d" % (number, os.getpid()), 0, time.time() + 60)
        pids.append(pid)
    queue = open_queue(f"mqueue:{name}", settings=Settings(state_dir=str(tmp_path), retry_backoff_s=0.0), consume=True)
    try:
        until(lambda: empty_count(name) == 10)

        def next_claim() -> Claim:
            claim = until(queue.claim)
            assert claim is not None
            return claim

        first = next_claim()
        settle(queue, "retry", first)
        settle(queue, "done", next_claim())

        def is_back() -> bool:
            claim = next_claim()
            settle(queue, "done", claim)
            return claim.name == first.name

        until(is_back)
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        queue.close()


def test_of_two_keepers_one_sends_what_is_due(make):
    """Each looks before the other has sent, has sent it, has removed it."""
    for moment in ("open", "lock_file", "mq_send", "unlink"):
        one, other = make(), make()
        put(one)
        settle(one.queue, "retry", one.claim())
        one.world.advance(3)

        def late(call, arguments, one=one, other=other, moment=moment):
            if call == moment and ("deferred" in str(arguments[0]) or call in ("lock_file", "mq_send")):
                one.keeper_system.before = None
                other.keeper.keep()

        one.keeper_system.before = late
        one.keeper.keep()
        assert one.keeper_system.before is None, moment
        assert one.everything() == {"waiting": [BODY]}, moment
        empty(one)
        for pool in (one, other):
            pool.end()


def test_what_was_sent_and_cannot_be_removed_is_sent_once(pool):
    put(pool)
    settle(pool.queue, "retry", pool.claim())
    pool.keeper_system.fail_all("unlink", errno.EROFS)
    pool.world.advance(3)
    for _ in range(3):
        with pytest.raises(QueueUnavailable):
            pool.keeper.keep()
    assert empty_count(pool.name) == 1
    pool.keeper_system.before = None
    pool.rounds()
    assert pool.everything() == {"waiting": [BODY]}


def test_one_that_cannot_come_back_keeps_no_other_from_it(pool):
    for raw in (b"1", b"2"):
        put(pool, raw)
        settle(pool.queue, "retry", pool.claim())
    first = sorted(path.name for path in pool.beside("deferred").iterdir())[0]

    def fail(call, arguments):
        if call == "open" and first in str(arguments[0]):
            raise OSError(errno.EIO, os.strerror(errno.EIO), arguments[0])

    pool.keeper_system.before = fail
    pool.world.advance(3)
    with pytest.raises(QueueUnavailable):
        pool.keeper.keep()
    assert empty_count(pool.name) == 1
    pool.keeper_system.before = None
    pool.rounds()
    assert empty_count(pool.name) == 2


@pytest.mark.parametrize("failing", ["file", "directory"])
def test_a_step_of_a_round_that_fails_keeps_nothing_that_is_due_from_coming_back(pool, failing):
    """Nor is what that step moved and has not cleared sent: it would be handled twice."""
    hold(pool, b"left")
    pool.rounds()
    other = pool.another_worker(1, next(PIDS))
    put(pool, b"due")
    settle(other, "retry", other.claim())

    def fail(call, arguments):
        is_directory = call == "fsync" and os.path.isdir(f"/proc/self/fd/{arguments[0]}")
        if call == "fsync" and is_directory == (failing == "directory"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    pool.world.advance(UNFOLLOWED_S + 3)
    pool.keeper_system.before = fail
    with pytest.raises(QueueUnavailable):
        pool.keeper.keep()
    copies = {"claimed": [b"left"]} if failing == "file" else {"claimed": [b"left"], "deferred": [b"left"]}
    assert pool.everything() == {"waiting": [b"due"], **copies}
    pool.keeper_system.before = None
    pool.rounds(2)
    assert pool.everything() == {"waiting": [b"due", b"left"]}


def test_what_is_no_file_in_deferred_is_named_once_and_keeps_nothing_from_coming_back(pool, caplog):
    due = f"1000000000.{pool.queue.beside.marked(name_of(b'link', 0), Counts(1, 0))}"
    pool.beside("deferred", due).symlink_to("/etc/hostname")
    for kind in (os.mkfifo, os.mkdir):
        kind(pool.beside("deferred", f"1000000001.{pool.queue.beside.marked(NAME, Counts(1, 0))}"))
    put(pool)
    settle(pool.queue, "retry", pool.claim())
    pool.keeper.open()
    pool.rounds(3)
    assert caplog.text.count("is no regular file") == 3
    assert caplog.text.count(f"{pool.beside('deferred', due)} is no regular file") == 1
    assert body(pool.claim()) == BODY


def test_one_that_cannot_come_back_keeps_no_pool_from_its_start(pool, caplog):
    """On a disk that has become read-only, say."""
    put(pool)
    settle(pool.queue, "retry", pool.claim())
    (due,) = pool.beside("deferred").iterdir()
    pool.world.advance(3)
    pool.keeper_system.fail_all("write unlink rename", errno.EROFS)
    pool.keeper.open()
    assert f"{due}: Read-only file system" in caplog.text
    put(pool, b"another")
    assert body(pool.claim()) == b"another"


def test_a_message_that_can_go_nowhere_keeps_no_pool_from_its_start(make, caplog):
    """What a dead pool has left belongs into errors/, and that cannot be written."""
    settings = replace(MQUEUE_SETTINGS, crash_limit=1)
    pool, dead = make(settings=settings), make(settings=settings)
    hold(dead, b"left")
    pool.world.dead |= {dead.pid, dead.pid + 2}

    def fail(call, arguments):
        if call == "fsync":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    pool.keeper_system.before = fail
    pool.keeper.open()
    assert "Read-only" in caplog.text
    put(pool)
    assert body(pool.claim()) == BODY


def test_what_keeps_one_from_coming_back_is_said_in_the_same_words_each_round(pool):
    """For what is the same is logged once."""
    put(pool)
    settle(pool.queue, "retry", pool.claim())
    pool.world.advance(3)
    hold(pool, b"left")
    said = set()

    def fail(call, arguments):
        if call == "open" and arguments[0].startswith(f"{pool.beside('tmp')}/"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), arguments[0])

    pool.keeper_system.before = fail
    for _ in range(6):
        pool.world.advance(UNFOLLOWED_S / 4)
        with pytest.raises(QueueUnavailable) as failed:
            pool.keeper.keep()
        said.add(str(failed.value))
    (due,) = pool.beside("deferred").iterdir()
    assert said == {f"cannot keep {path}: Read-only file system [errno 30]" for path in (due, pool.beside("tmp"))}


def test_while_the_queue_is_full_counts_are_written_once(pool):
    put(pool)
    settle(pool.queue, "retry", pool.claim())
    fill(pool)
    pool.rounds()
    before = pool.beside("counts", NAME).stat().st_ino
    pool.keeper_system.calls.clear()
    pool.rounds(5)
    assert "write" not in pool.keeper_system.calls
    assert pool.beside("counts", NAME).stat().st_ino == before


def test_on_a_full_disk_what_is_due_comes_back_though_its_counts_cannot_be_written(pool, caplog):
    put(pool)
    settle(pool.queue, "retry", pool.claim())
    pool.keeper_system.fail_all("write", errno.ENOSPC)
    pool.rounds(3)
    assert pool.claim().name == NAME
    assert caplog.text.count("counts of") == 1


def test_a_message_that_is_released_into_a_full_queue_waits_beside_it(pool):
    put(pool)
    claim = pool.claim()
    fill(pool)
    settle(pool.queue, "release", claim)
    assert pool.everything()["deferred"] == [BODY]
    empty(pool)
    pool.rounds(2)
    claim = pool.claim()
    assert (claim.name, claim.attempt) == (NAME, 1)


def test_a_released_message_keeps_its_counts(pool):
    put(pool)
    settle(pool.queue, "retry", pool.claim())
    pool.rounds(2)
    settle(pool.queue, "release", pool.claim())
    assert pool.claim().attempt == 2


def test_what_is_requeued_into_a_full_queue_waits_beside_it(pool):
    put(pool)
    settle(pool.queue, "reject", pool.claim())
    fill(pool)
    assert pool.queue.requeue(NAME) == 1
    assert (pool.queue.depth().errors, pool.queue.depth().deferred) == (0, 1)
    assert os.listdir(pool.beside("errors")) == []
    empty(pool)
    pool.rounds(2)
    claim = pool.claim()
    assert (body(claim), claim.attempt) == (BODY, 1)


def test_messages_that_are_alike_share_their_name_and_its_counts(pool):
    put(pool)
    put(pool)
    settle(pool.queue, "retry", pool.claim())
    pool.rounds(2)
    first = pool.claim()
    assert (first.name, first.attempt) == (NAME, 2), "the other one, as far as anybody can tell"


def test_a_retry_longer_than_the_queue_that_was_made_anew_goes_to_errors(pool):
    put(pool, b"x" * 100)
    settle(pool.queue, "retry", pool.claim())
    unlink(pool.name)
    make_queue(pool.name, size=50)
    pool.rounds(2)
    assert pool.everything() == {"errors": [b"x" * 100]}
    (meta,) = metas(pool)
    assert "made anew, for shorter messages" in str(meta["reason"])


@pytest.mark.parametrize("size", [100, 5000])
def test_a_pool_goes_on_with_a_queue_that_was_removed_and_made_anew(pool, size):
    assert pool.queue.claim() is None
    unlink(pool.name)
    with pytest.raises(QueueUnavailable, match="removed"):
        pool.queue.claim()
    with pytest.raises(QueueUnavailable, match="removed"):
        pool.rounds()
    make_queue(pool.name, size=size)
    assert pool.queue.claim() is None
    put(pool, b"y" * size)
    assert body(pool.claim()) == b"y" * size
    pool.rounds()


@pytest.mark.parametrize("is_claimed_first", [True, False])
def test_what_was_left_of_a_queue_is_finished_and_longer_messages_of_the_new_one_are_received(pool, is_claimed_first):
    """The successor of a worker that was killed has a file that is too small for them."""
    hold(pool)
    unlink(pool.name)
    make_queue(pool.name, size=5000)
    pool.succeed(next(PIDS))
    put(pool, b"y" * 5000)
    if is_claimed_first:
        assert body(pool.claim()) == BODY
        settle(pool.queue, "done", pool.queue._in_hand)
    else:
        pool.queue._receive = pool.queue._take()
        pool.queue._receive.clear()
    assert body(pool.claim()) == b"y" * 5000


def test_a_worker_that_puts_into_the_queue_that_was_made_anew_receives_from_it(pool):
    """Its put finds the new queue first, and its file is of the old one."""
    assert pool.queue.claim() is None
    unlink(pool.name)
    make_queue(pool.name, size=5000)
    put(pool, b"y" * 5000)
    assert body(pool.claim()) == b"y" * 5000


# ---- sweeping


def test_counts_of_what_is_nowhere_are_forgotten(pool):
    put(pool)
    settle(pool.queue, "retry", pool.claim())
    pool.rounds(2)
    assert len(os.listdir(pool.beside("counts"))) == 1
    pool.rounds(30, every_s=60)
    assert len(os.listdir(pool.beside("counts"))) == 1, "it may be the one that waits"
    assert len(empty(pool)) == 1
    pool.rounds(2, every_s=70)
    assert os.listdir(pool.beside("counts")) == []


def test_counts_of_a_queue_that_is_never_empty_are_forgotten_one_day(pool):
    pool.queue.make_places()
    pool.beside("counts", NAME).write_text("1 1 \n")
    put(pool, b"another")
    pool.rounds(2, every_s=COUNTS_S_MAX / 4)
    assert os.listdir(pool.beside("counts")) == [NAME]
    pool.rounds(4, every_s=COUNTS_S_MAX / 4)
    assert os.listdir(pool.beside("counts")) == []


def test_what_is_half_written_is_swept_when_it_is_old(pool):
    pool.beside("tmp", "half.tmp").write_bytes(b"x")
    pool.rounds(8, every_s=65)
    assert os.listdir(pool.beside("tmp")) == ["half.tmp"]
    assert pool.rounds(5, every_s=65).temporary == 1


def test_errors_are_pruned_when_they_are_old_enough(make):
    pool = make(settings=replace(MQUEUE_SETTINGS, keep_errors_s=600.0))
    put(pool)
    settle(pool.queue, "reject", pool.claim())
    assert pool.rounds(5, every_s=70).pruned == 0
    assert pool.rounds(6, every_s=70).pruned == 1
    assert os.listdir(pool.beside("errors")) == []


def test_the_file_of_an_idle_worker_that_was_killed_is_swept(pool):
    assert pool.queue.claim() is None
    assert len(pool.files()) == 1
    pool.die()
    pool.rounds(2, every_s=70)
    assert pool.files() == []


# ---- leaving


def test_a_drained_shutdown_leaves_nothing(pool):
    put(pool)
    settle(pool.queue, "done", pool.claim())
    assert len(pool.files()) == 1
    pool.queue.detach()
    pool.keeper.leave()
    assert not os.path.exists(pool.queue.receive_place.path)
    assert [path for path in pool.beside().rglob("*") if not path.is_dir()] == []
    assert pool.board.worker(0).text(WorkerText.OWNER) == ""


def test_who_leaves_with_a_message_that_it_could_not_settle_gives_it_back(pool):
    put(pool)
    pool.queue.settled(pool.claim())
    pool.queue.detach()
    assert pool.everything() == {"waiting": [BODY]}
    assert pool.files() == []


def test_what_nobody_will_take_up_any_more_goes_back_when_the_keeper_leaves(pool):
    pool.keeping.release_owner(hold(pool), "died")
    pool.keeper.leave()
    assert pool.everything() == {"waiting": [BODY]}
    assert not os.path.exists(pool.queue.receive_place.path)


def test_what_cannot_go_back_when_the_keeper_leaves_waits_for_the_next_one(make, caplog):
    pool = make()
    pool.keeping.release_owner(hold(pool), "died")
    pool.keeper_system.fail_all("open", errno.EIO)
    pool.keeper.leave()
    assert "stays for the next keeper" in caplog.text
    pool.world.dead |= {pool.pid, pool.pid + 2}
    claim = make().claim()
    assert (body(claim), claim.crashes) == (BODY, 1)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_what_is_released_on_a_full_disk_goes_back_without_its_counts(pool, code, caplog):
    claimed(pool)
    pool.system.fail_all("write", code)
    settle(pool.queue, "release", pool.queue._in_hand)
    assert pool.everything() == {"waiting": [BODY]}
    assert "counts of" in caplog.text


def test_who_leaves_on_a_full_disk_a_queue_that_is_full_counts_no_crash(make):
    """What cannot go anywhere stays in memory, and says that nobody has died of it."""
    pool = make(settings=replace(MQUEUE_SETTINGS, crash_limit=2))
    pool.keeping.release_owner(hold(pool), "died")
    for _ in range(3):
        pool.succeed(next(PIDS))
        assert pool.claim().crashes == 1
        fill(pool)
        pool.system.fail_all("write", errno.ENOSPC)
        pool.queue.detach()
        assert pool.keeping.release_owner(pool.die(), "died") == []
    (seen,) = pool.keeping.receive_place.seen()
    assert (seen.has_message, seen.is_judged, seen.crashes) == (True, True, 1)


def test_who_was_stopped_on_a_full_disk_counts_no_crash(pool):
    owner = hold(pool)
    pool.keeper_system.fail_all("write", errno.ENOSPC)
    with pytest.raises(QueueUnavailable):
        pool.keeping.release_owner(owner, "stopped")
    pool.keeper_system.before = None
    pool.succeed(next(PIDS))
    assert pool.claim().crashes == 0


# ---- every call failed, every call killed at


def claim_once(pool: MqueuePool) -> object:
    claim = pool.queue.claim()
    assert claim is not None
    return claim


def settle_once(verb: str) -> Callable[[MqueuePool], object]:
    def act(pool: MqueuePool) -> object:
        claim = pool.queue._in_hand
        return None if claim is None else settle(pool.queue, verb, claim)  # None: it was settled all the same

    return act


def forward(pool: MqueuePool) -> object:
    claim = pool.queue._in_hand
    return None if claim is None else pool.queue.forward(claim, open_queue("null:"))


def waits(pool: MqueuePool) -> None:
    put(pool)


def claimed(pool: MqueuePool) -> None:
    """In hand, at its second attempt."""
    put(pool)
    settle(pool.queue, "retry", pool.claim())
    pool.rounds(2)
    pool.claim()


def is_due(pool: MqueuePool) -> None:
    put(pool)
    settle(pool.queue, "retry", pool.claim())
    pool.world.advance(3)


def is_left(pool: MqueuePool) -> None:
    """By a dead worker, and its keeper has not been told."""
    put(pool)
    pool.claim()
    pool.world.dead.add(pool.system.pid)


def is_judged(pool: MqueuePool) -> None:
    is_left(pool)
    pool.keeping.release_owner(pool.board.worker(0).text(WorkerText.OWNER) or "", "died")


def release(cause: str) -> Callable[[MqueuePool], object]:
    def act(pool: MqueuePool) -> object:
        return pool.keeping.release_owner(pool.board.worker(0).text(WorkerText.OWNER) or "", cause)

    return act


def take_up(pool: MqueuePool) -> object:
    return pool.queue.claim()


def by_successor(prepare: Callable[[MqueuePool], None]) -> Callable[[MqueuePool], None]:
    def act(pool: MqueuePool) -> None:
        prepare(pool)
        pool.succeed(next(PIDS))

    return act


def keep_after(seconds: float) -> Callable[[MqueuePool], object]:
    def act(pool: MqueuePool) -> object:
        pool.world.advance(seconds)
        return pool.keeper.keep()

    return act


def unfollowed(pool: MqueuePool) -> None:
    is_judged(pool)
    pool.rounds()


def detach_unsettled(pool: MqueuePool) -> object:
    return pool.queue.detach()


LIMIT = replace(MQUEUE_SETTINGS, crash_limit=1, max_attempts=2)
# What is done, what was before, whose calls are meant, and the settings.
ACTS: dict[str, tuple[Callable, Callable, str, Settings]] = {
    "claim": (claim_once, waits, "worker", MQUEUE_SETTINGS),
    **{verb: (settle_once(verb), claimed, "worker", MQUEUE_SETTINGS) for verb in SETTLES},
    "forward": (forward, claimed, "worker", MQUEUE_SETTINGS),
    "the last attempt": (settle_once("retry"), claimed, "worker", LIMIT),
    "detach": (detach_unsettled, claimed, "worker", MQUEUE_SETTINGS),
    "take up": (take_up, by_successor(is_judged), "worker", MQUEUE_SETTINGS),
    "take up unjudged": (take_up, by_successor(is_left), "worker", MQUEUE_SETTINGS),
    "take up the last": (take_up, by_successor(is_left), "worker", LIMIT),
    **{f"release {cause}": (release(cause), is_left, "keeper", MQUEUE_SETTINGS) for cause in ("died", "timeout")},
    "release stopped": (release("stopped"), is_left, "keeper", MQUEUE_SETTINGS),
    "release to errors": (release("died"), is_left, "keeper", LIMIT),
    "keep": (keep_after(1), is_due, "keeper", MQUEUE_SETTINGS),
    "keep unfollowed": (keep_after(UNFOLLOWED_S), unfollowed, "keeper", MQUEUE_SETTINGS),
    "leave": (lambda pool: pool.keeper.leave(), is_judged, "keeper", MQUEUE_SETTINGS),
}  # fmt: skip


def system_of(pool: MqueuePool, whose: str) -> MqSystem:
    return pool.system if whose == "worker" else pool.keeper_system


def total(pool: MqueuePool) -> int:
    """How many copies of the message there are; tmp/ is nobody's."""
    found = pool.everything()
    found.pop("tmp", None)
    assert {raw for bodies in found.values() for raw in bodies} <= {BODY}
    return sum(map(len, found.values()))


@pytest.mark.parametrize("name", sorted(ACTS))
def test_every_call_that_fails_once_leaves_one_message_and_the_next_try_works(fresh, name):
    act, prepare, whose, settings = ACTS[name]
    expected = 0 if name in ("done", "forward") else 1
    for code in ERRNOS:
        nth = 0
        while True:
            nth += 1
            pool = fresh(settings=settings)
            prepare(pool)
            system = system_of(pool, whose)
            system.fail(nth, code)
            with suppress(OrchestratorError):
                act(pool)
            if system.failed is None:
                break
            what = f"{system.failed} (call {nth}): {errno.errorcode[code]}"
            with suppress(ClaimLost, AssertionError):
                act(pool)
            assert total(pool) == expected, what
    assert nth > 1 or name == "done"


@pytest.mark.parametrize("name", sorted(ACTS))
def test_a_kill_at_any_call_of_a_settle_loses_nothing(fresh, name):
    """Before the call and after it; then a new pool finishes. At most once more is it handled than it should be."""
    act, prepare, whose, settings = ACTS[name]
    for when in ("before", "after"):
        nth = 0
        while True:
            nth += 1
            pool = fresh(settings=settings)
            prepare(pool)
            system, calls = system_of(pool, whose), []

            def kill(call, _arguments, calls=calls, nth=nth):
                calls.append(call)
                if len(calls) >= nth:  # nothing is done after it either
                    raise Killed

            setattr(system, when, kill)
            is_killed = False
            try:
                act(pool)
            except Killed:
                is_killed = True
            setattr(system, when, None)
            if not is_killed:
                break
            copies = total(pool)
            what = f"{when} {calls[-1]} (call {nth})"
            least = 0 if name in ("done", "forward") else 1
            assert least <= copies <= 2, what
            pool.world.dead |= {pool.pid, pool.system.pid, pool.keeper_system.pid}
            handled = finish(pool, settings)
            assert handled + total(pool) <= 2, what
            assert handled + total(pool) >= least, what
    assert nth > 1 or name == "done"


def finish(pool: MqueuePool, settings: Settings) -> int:
    """Start another pool, and let it handle all; how many that were."""
    other = MqueuePool(pool.shared.parent, pool.name, pool.world, pool.locks, pid=next(PIDS), settings=settings)
    handled = 0
    for _ in range(2):
        other.rounds(2, every_s=UNFOLLOWED_S)
        while (claim := other.queue.claim()) is not None:
            assert body(claim) == BODY
            settle(other.queue, "done", claim)
            handled += 1
    found = other.everything()
    found.pop("tmp", None)
    assert set(found) <= {"errors"}, found
    other.end()
    return handled


def test_a_kill_at_any_call_of_a_round_loses_nothing(fresh):
    """The same, where the keeper is killed: it is told apart here for the comments that name it."""
    test_a_kill_at_any_call_of_a_settle_loses_nothing(fresh, "keep")


def test_a_settle_that_was_killed_after_it_had_set_aside_is_not_done_twice(fresh):
    """So long as what it wrote is where it put it."""
    for verb in ("retry", "reject"):
        pool = fresh()
        claimed(pool)

        def kill(call, arguments):
            if call == "rename" and "/tmp/" in arguments[0] and not arguments[1].endswith(".meta"):
                raise Killed

        pool.system.after = kill
        with pytest.raises(Killed):
            settle_once(verb)(pool)
        pool.system.after = None
        assert total(pool) == 2
        pool.keeping.release_owner(pool.die(), "died")
        assert total(pool) == 1, verb


# ---- one acts between any two calls of another


def second_keeper(pool: MqueuePool) -> MqueuePool:
    return MqueuePool(pool.shared.parent, pool.name, pool.world, pool.locks, pid=next(PIDS), settings=pool.settings)


def successor(pool: MqueuePool) -> Callable[[], object]:
    pool.succeed(next(PIDS))
    return pool.queue.claim


def order(cause: str) -> Callable[[MqueuePool], Callable[[], object]]:
    def make(pool: MqueuePool) -> Callable[[], object]:
        owner = pool.board.worker(0).text(WorkerText.OWNER) or ""
        pool.board.worker(0).set_text(WorkerText.OWNER, "")
        return lambda: pool.keeping.release_owner(owner, cause)

    return make


def another_master(pool: MqueuePool) -> Callable[[], object]:
    """Whose keeper finds that the whole pool is gone, or finds nobody following."""
    other = second_keeper(pool)

    def act() -> object:
        pool.world.dead.add(pool.pid)
        other.keeper.keep()
        other.world.moved_ns += int(2 * UNFOLLOWED_S * 1e9)
        return other.keeper.keep()

    return act


def another_worker(pool: MqueuePool) -> Callable[[], object]:
    return second_keeper(pool).queue.claim


def idle_leaves(pool: MqueuePool) -> Callable[[], object]:
    queue = second_keeper(pool).queue
    return lambda: (queue.claim(), queue.detach())


ACTORS = {
    "successor": (successor, "worker"),
    "died": (order("died"), "keeper"),
    "timeout": (order("timeout"), "keeper"),
    "stopped": (order("stopped"), "keeper"),
    "another master": (another_master, ""),
    "another worker": (another_worker, ""),
    "an idle one leaves": (idle_leaves, ""),
}


INTERRUPTED = ("died", "stopped", "successor", "timeout")


@pytest.mark.parametrize(
    ("one", "other"), [pair for pair in itertools.product(INTERRUPTED, ACTORS) if len({*pair}) == 2]
)
def test_whoever_acts_between_two_calls_finds_one_message(fresh, one, other):
    """What a dead worker has left is judged, taken up, moved, given back by two at one time: once, with one death."""
    nth, is_through = 0, False
    while not is_through:
        nth += 1
        pool = fresh()
        is_left(pool)
        # The order first: it reads from the board who has died.
        first, second = sorted((one, other), key=lambda who: who == "successor")
        acts = {who: ACTORS[who][0](pool) for who in (first, second)}
        system, calls = system_of(pool, ACTORS[one][1]), []

        def between(call, _arguments, system=system, calls=calls, nth=nth, acts=acts):
            calls.append(call)
            if len(calls) == nth:
                system.before = None
                acts[other]()

        system.before = between
        acts[one]()
        is_through, system.before = system.before is not None, None
        found = pool.everything()
        found.pop("tmp", None)
        what = f"{other} at call {nth} of {one}: {found}"
        assert sum(map(len, found.values())) == 1, what
        deaths = [sum(seen_counts(pool, state)) for state in found]
        assert deaths[0] <= 1, what
    assert nth > 5


def seen_counts(pool: MqueuePool, state: str) -> tuple[int, int]:
    """Attempts and crashes of the one message."""
    if state == "claimed":
        (seen,) = [seen for seen in pool.queue.receive_place.seen() if seen.has_message]
        return seen.attempts, seen.crashes
    if state == "deferred":
        (path,) = pool.beside("deferred").iterdir()
        due = names.parse_due(path.name)
        assert due is not None
        return due[1].attempts, due[1].crashes
    counts = pool.queue.beside.count_of(NAME)
    return counts.attempts, counts.crashes


# ---- looking


def test_what_can_be_seen_is_listed_and_shown(pool):
    put(pool, b"bad", priority=7)
    settle(pool.queue, "reject", pool.claim())
    put(pool, b"later")
    settle(pool.queue, "retry", pool.claim())
    put(pool, b"in hand")
    pool.claim()
    put(pool, b"waits")
    assert [(line.state, line.name) for line in pool.queue.list()] == [
        ("claimed", name_of(b"in hand", 0)), ("deferred", name_of(b"later", 0)), ("errors", name_of(b"bad", 7)),
    ]  # fmt: skip
    depth = pool.queue.depth()
    assert (depth.waiting, depth.claimed, depth.deferred, depth.errors) == (1, 1, 1, 1)
    (shown,) = pool.queue.show(name_of(b"in hand", 0))
    assert (shown.size, shown.listed.state) == (7, "claimed")
    assert abs(shown.enqueued_at - pool.system.wall_ns() / 1e9) < 60
    (shown,) = pool.queue.show(name_of(b"bad", 7))
    assert shown.meta is not None
    assert (shown.meta["reason"], shown.meta["priority"]) == ("of no use", 7)
    assert pool.queue.show("nothing") == []


def test_strange_names_beside_the_queue_are_nobodys(pool):
    for state in ("deferred", "errors"):
        pool.beside(state, "README").write_bytes(b"x")
        for name in ("no-name", f"99999.{'0' * 32}", f"32768.{'0' * 32}"):
            assert priority_of(name) is None
            mark = pool.queue.beside.marked(name, Counts())
            pool.beside(state, f"1000000000.{mark}" if state == "deferred" else mark).write_bytes(b"x")
    assert priority_of(f"32767.{'0' * 32}") == 32767
    pool.rounds(3)
    assert (pool.queue.depth().deferred, pool.queue.depth().errors) == (0, 0)
    assert len(os.listdir(pool.beside("deferred"))) == 4
    assert list(pool.queue.list()) == []


def test_a_link_in_the_place_of_what_lies_beside_the_queue_stops_the_round(pool, tmp_path):
    victim = tmp_path / "victim"
    victim.mkdir()
    pool.beside("errors").rmdir()
    pool.beside("errors").symlink_to(victim)
    with pytest.raises(QueueUnavailable, match="is no directory"):
        pool.rounds()


def test_a_queue_without_names_is_fed_by_nobody(pool):
    with pytest.raises(NotSupported, match="mqueue"):
        pool.queue.source()
    assert os.fstat(pool.queue.wait_fd).st_ino == os.stat(pool.queue.identity).st_ino
