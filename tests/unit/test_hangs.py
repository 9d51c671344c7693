"""
What hangs in a filesystem that does not answer: nobody waits for it, and a person is told

See also: tests/mounts/test_hung_mount.py (the same with real pools and a mount).
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from queue import SimpleQueue

import pytest

from orchestrator import child, roles, running, state
from orchestrator.child import hangs_in
from orchestrator.config import load
from orchestrator.loop import Loop
from orchestrator.master import KEEPER_GRACE_S, KILL_GRACE_S, Master
from orchestrator.reading import SILENT_S, unmeasured_s
from orchestrator.reports import Reports
from orchestrator.runlog import RunLog
from orchestrator.services import Services
from orchestrator.status import is_ready
from tests.process.pools import ROOT
from tests.rig import SETTINGS, FakeSystem, Rig
from tests.waiting import until
from workers import open_queue
from workers.board import Board, Q, QueueState, W, WorkerState, WorkerText
from workers.errors import QueueUnavailable
from workers.keeper import Leave, Order, QueueKeeper, Release
from workers.queues.base import Consumer, Settings
from workers.queues.directory import BROKEN
from workers.queues.spool import Spool
from workers.waiting import Leaving

SECOND = 10**9
# A process that has forked as vfork(2) does waits for its child in the kernel, and the child here for a writer.
WAITS_IN_KERNEL = """
import os, sys
os.posix_spawn("/bin/true", ["true"], {}, file_actions=[(os.POSIX_SPAWN_OPEN, 9, sys.argv[1], os.O_RDONLY, 0)])
"""
LEAVES_A_CHILD = """
import signal
from orchestrator.child import forget_all, spawn
from orchestrator.loop import Loop
made = spawn(signal.pause, "test", Loop(), lambda: None, outlives=True)
print(made.pid, flush=True)
forget_all()
"""


class Stuck:
    """A child that no signal ends. *dead*: it has ended, but for a thread."""

    def __init__(self, pid: int = 1 << 30, dead: str | None = None) -> None:
        self.pid, self.sentinel = pid, -1
        self.killed_s: float | None = None
        self.hangs_in: str | None = None
        self.sent: list[int] = []
        self._dead = dead

    def collect(self) -> None:
        return None

    def hangs_dead(self) -> str | None:
        return self._dead

    def send(self, number: int) -> None:
        self.sent.append(number)


@pytest.fixture(name="master")
def _master(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = load(
        (), flags={"workers": "1", "run_dir": str(tmp_path)}, environment={}, queues=[str(tmp_path / "q")],
        handler="workers.handlers.echo:nothing",
    )  # fmt: skip
    one = Master(config, lambda: config)
    one.board, one.loop = Board.create(), Loop()
    queue = running.start(config.queues[0], config.pool, one.board)
    queue.opened = True
    one.queues[queue.config.name] = queue
    one.services = Services(one.loop, one.board, "a-master", "here", one.queues, None, lambda *_: None, lambda: None)
    one.reports = Reports(
        state.begin(config, one.board, one.queues, one.loop, tmp_path), one.services, RunLog("a", tmp_path, 1)
    )
    monkeypatch.setattr(Services, "tend_feeder", lambda *_: None)
    yield one
    one.loop.close()


def occupied(master: Master) -> tuple[running.RunningQueue, Stuck]:
    """The only worker hangs."""
    queue, stuck = next(iter(master.queues.values())), Stuck()
    queue.pool.plan(0.0)
    queue.pool.spawned(0, stuck.pid, 0.0)
    queue.children[0] = stuck  # type: ignore[assignment]
    return queue, stuck


# ---- what can be seen


def test_who_waits_in_the_kernel_is_seen_there(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with subprocess.Popen([sys.executable, "-c", WAITS_IN_KERNEL, str(fifo)]) as process:
        assert until(lambda: hangs_in(process.pid)) != ""
        os.close(os.open(fifo, os.O_WRONLY))
    assert hangs_in(process.pid) is None
    assert hangs_in(os.getpid()) is None


def test_a_master_ends_though_one_of_its_children_does_not():
    with subprocess.Popen([sys.executable, "-c", LEAVES_A_CHILD], stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None
        left = int(process.stdout.readline())
        try:
            assert process.wait(20) == 0
        finally:
            os.kill(left, signal.SIGKILL)


@pytest.mark.parametrize(
    ("age_s", "took_s", "is_said"), [(9, 0, False), (11, 0, True), (25, 2, False), (40, 2, True), (125, 10, False)]
)
def test_a_queue_is_silent_when_it_is_not_measured_for_longer_than_it_takes(age_s, took_s, is_said):
    words = Board.create().queues[0].words
    words[Q.SINCE_NS], words[Q.MEASURED_NS], words[Q.MEASURE_NS] = SECOND, 5 * SECOND, took_s * SECOND
    assert unmeasured_s(words, (5 + age_s) * SECOND) == (age_s if is_said else 0)


def test_a_queue_that_was_never_measured_is_silent_since_the_pool_has_it():
    words = Board.create().queues[0].words
    words[Q.SINCE_NS] = 100 * SECOND
    assert unmeasured_s(words, 105 * SECOND) == 0
    assert unmeasured_s(words, 112 * SECOND) == 12


def test_readyz_says_which_queue_is_silent_and_for_how_long(rig: Rig):
    board, system = Board.create(), FakeSystem(rig.world)
    for name in ("hung", "well"):
        words = board.queues[board.take_queue(name, f"spool:/{name}")].words
        words[Q.READY], words[Q.MEASURED_NS] = QueueState.READY, system.boottime_ns()
    board.queues[0].words[Q.MEASURED_NS] -= 12 * SECOND
    _, reasons = is_ready(board, system)
    assert [why for why in reasons if "measured" in why] == [
        "queue hung: not measured for 12 s: its filesystem does not answer"
    ]


def test_the_log_says_once_that_a_queue_hangs_and_once_that_it_answers(master, caplog):
    queue = next(iter(master.queues.values()))
    words = master.board.queues[queue.slot].words
    words[Q.SINCE_NS] = words[Q.MEASURED_NS] = SECOND
    words[Q.READY] = QueueState.READY
    for second in (2, 10, 12, 13, 60):
        queue.listen(master.board, second * SECOND)
    words[Q.MEASURED_NS] = 61 * SECOND
    for second in (62, 63):
        queue.listen(master.board, second * SECOND)
    assert [record.message for record in caplog.records] == [
        "queue q: not measured for 11 s, does its filesystem hang?",
        "queue q answers again",
    ]


@pytest.mark.parametrize("said", [QueueState.REFUSED, QueueState.UNAVAILABLE])
def test_a_queue_of_which_the_keeper_said_what_is_wrong_is_not_said_to_hang(master, caplog, said):
    queue = next(iter(master.queues.values()))
    words = master.board.queues[queue.slot].words
    words[Q.SINCE_NS], words[Q.READY] = SECOND, said
    queue.listen(master.board, int((SILENT_S + 100) * SECOND))
    assert not caplog.records


# ---- the end of a pool


def test_a_worker_that_outlives_its_kill_is_named_once_and_killed_no_more(master, monkeypatch, caplog):
    queue, stuck = occupied(master)
    kills = []
    monkeypatch.setattr(child, "kill_whole", kills.append)
    monkeypatch.setattr(child, "hangs_in", lambda pid: "request_wait_answer")
    queue.pool.kill_now()
    for second in range(5):
        master._plan(queue, float(second))
    assert kills == [stuck.pid] * 2
    assert [record.message for record in caplog.records] == [
        "worker q[0] is killed: it did not leave in time",
        f"worker q[0] (pid {stuck.pid}) was killed, and does not end: it hangs in the kernel (request_wait_answer),"
        " in a filesystem that does not answer",
    ]


@pytest.mark.parametrize(("where", "waited_s"), [("request_wait_answer", KILL_GRACE_S), (None, KEEPER_GRACE_S)])
def test_a_pool_does_not_wait_for_a_worker_that_outlives_its_kill(master, monkeypatch, where, waited_s):
    """Where it is not seen to hang, it is waited for longer: to give back its memory takes time as well."""
    queue, _ = occupied(master)
    monkeypatch.setattr(child, "kill_whole", lambda pid: None)
    monkeypatch.setattr(child, "hangs_in", lambda pid: where)
    assert master._is_awaited(1000.0)
    queue.pool.kill_now()
    for tenth in range(int(waited_s * 10)):
        master._plan(queue, 1000 + tenth / 10)
        assert master._is_awaited(1000 + tenth / 10)
    master._plan(queue, 1001 + waited_s)
    assert not master._is_awaited(1001 + waited_s)


def test_a_keeper_that_has_ended_but_for_a_thread_is_replaced(master, monkeypatch, caplog):
    """Else no queue of the pool has a lease as long as one filesystem hangs."""
    keeper, spawned = Stuck(dead="request_wait_answer"), []
    master.services.keeper = keeper
    master.services._orders, master.services._reports = os.pipe()
    monkeypatch.setattr(Services, "_spawn_keeper", lambda self: spawned.append(1))
    master.services.tend(1000.0, is_keeper_wanted=True, is_exporter_wanted=False)
    assert spawned == [1]
    assert not master.services.has_orders
    assert "hangs in the kernel with one of its queues (request_wait_answer)" in caplog.text
    assert master.services._ended == [keeper]


def test_orders_that_no_keeper_reads_any_more_keep_no_pool_from_ending(master):
    """A worker that hung may end between the end of the orders and the end of the pool."""
    master.services.keeper = Stuck()  # type: ignore[assignment]
    master.services.release(next(iter(master.queues.values())), {"owner": "x", "cause": "stopped", "note": ""})
    assert not master.services.has_orders


@pytest.mark.parametrize("is_left", [True, False])
def test_what_a_left_worker_has_in_hand_is_not_given_back_before_it_is_gone(monkeypatch, is_left):
    """A call of it may still be done."""

    class Here:
        """The kernel, in which it lives or does not."""

        def is_alive(self, pid, start):
            return is_left

        def start_ticks(self, pid):
            return 1

    board, orders = Board.create(), []
    slot = board.worker(board.take_worker(board.take_queue("q", "spool:/q"), 0))
    slot.words[W.PID], slot.words[W.STATE] = 1 << 30, WorkerState.BUSY
    slot.set_text(WorkerText.OWNER, "its-owner")
    monkeypatch.setattr(roles, "SYSTEM", Here())
    monkeypatch.setattr(roles, "kill_whole", lambda pid: None)
    monkeypatch.setattr(roles, "GRACE_S", 0.01)

    class Keeper:
        """Takes orders."""

        class orders:  # noqa: N801 - as the attribute is called
            put = orders.append

    roles._end_orphans(board, {"q": Keeper})  # type: ignore[dict-item]
    assert orders == ([] if is_left else [Release("its-owner", "unknown", "its master died")])
    assert slot.text(WorkerText.OWNER) == ("its-owner" if is_left else "")


def test_a_keeper_is_busy_while_it_waits_for_the_filesystem_and_not_for_orders(rig: Rig):
    rig.spool()
    board = Board.create()
    slot = board.take_queue("queue", "spool:queue")
    consumer = Consumer("one.00000000.1.1.0123456789abcdef", board, slot, board.take_worker(slot, 0))
    busy = {}

    def open_it() -> Spool:
        rig.world.advance(7)
        busy["opens"] = keeper.busy_s()
        return Spool(str(rig.path), SETTINGS, system=FakeSystem(rig.world, 4001), host="one")

    class Orders(SimpleQueue[Order]):
        """Nothing for a while, then the last one."""

        def get(self, block: bool = True, timeout: float | None = None) -> Order:
            rig.world.advance(7)
            busy["waits"] = keeper.busy_s()
            return Leave()

    keeper = QueueKeeper(open_it, consumer, FakeSystem(rig.world, 4001))
    keeper.orders = Orders()
    keeper.run()
    assert busy["opens"] >= 7
    assert busy["waits"] == 0


# ---- starting


def test_a_worker_that_starts_while_the_mount_is_away_waits_for_it(tmp_path, caplog):
    """To die of that would count as a fault of the handler's, and the pool would back off for long."""
    path = tmp_path / "q"
    config = load(
        (), flags={"workers": "1", "run_dir": str(tmp_path)}, environment={}, queues=[str(path)],
        handler="workers.handlers.echo:nothing",
    )  # fmt: skip
    board = Board.create()
    slot = board.take_queue("q", str(path))
    consumer = Consumer("one.00000000.1.1.0123456789abcdef", board, slot, board.take_worker(slot, 0))
    orders = roles.Work(config.queues[0], consumer, "here", os.getppid(), {})

    class Waiting(Leaving):
        """The mount is back after the third wait."""

        waits = 0

        def wait(self, timeout_s: float) -> bool:
            self.waits += 1
            if self.waits == 3:
                open_queue(str(path), settings=Settings(create=True)).close()
            return self.is_asked

    leaving = Waiting()
    queue = roles._opened(orders, leaving)
    assert queue is not None
    queue.close()
    assert leaving.waits == 3
    assert caplog.text.count("worker q[0] waits") == 1

    asked = Waiting()
    asked.ask()
    (path / "incoming").rmdir()
    assert roles._opened(orders, asked) is None


# ---- a connection that broke


@pytest.mark.parametrize("code", [errno.ECONNABORTED, errno.ENOTCONN])
@pytest.mark.parametrize("is_done", [True, False])
def test_a_put_whose_connection_broke_is_unknown(rig: Rig, code, is_done):
    """It may be there; who is told that it is not puts it twice."""
    assert code in BROKEN
    spool = rig.spool()
    spool.directory.network = "fuse"
    broken = []

    def break_off(name, arguments):
        if name == "rename" or broken:
            if is_done and not broken:
                os.rename(*arguments)
            broken.append(name)
            raise OSError(errno.ENOTCONN if len(broken) > 1 else code, "gone")

    spool.system.before = break_off
    with pytest.raises(QueueUnavailable) as caught:
        spool.put(b"x")
    assert caught.value.is_unknown


@pytest.mark.parametrize("url", ["spool:{}", "dirq-simple:{}", "dirq:{}?schema=body:binary", "ddmq:{}/queue"])
def test_a_put_that_cannot_be_made_durable_is_unknown(rig: Rig, tmp_path: Path, url: str):
    """The message is there: its mount went away, or its disk broke, when only the last fsync was left."""
    place = tmp_path / "place"
    place.mkdir()
    system = FakeSystem(rig.world)
    queue = open_queue(url.format(place), create=True, system=system)
    moves = []

    def break_off(name, arguments):
        if name in ("link", "rename", "rename_noreplace"):
            moves.append(name)
        elif name == "fsync" and moves:
            raise OSError(errno.ENOENT, "gone")

    system.before = break_off
    with pytest.raises(QueueUnavailable) as caught:
        queue.put(b"x")
    assert caught.value.is_unknown
    assert open_queue(url.format(place)).depth().waiting == 1


@pytest.mark.parametrize("is_gone", [False, True])
@pytest.mark.parametrize("url", ["dirq-simple:{}", "dirq:{}?schema=body:binary", "ddmq:{}/queue"])
@pytest.mark.parametrize("settle", ["done", "retry", "release"])
def test_a_mount_that_is_there_again_lets_a_settle_go_on(rig, tmp_path, url, settle, is_gone):
    """The record of what is in hand was open on the mount before, and nothing is said of it any more but ENOTCONN."""
    place = tmp_path / "place"
    place.mkdir()
    system = FakeSystem(rig.world)
    board = Board.create()
    slot = board.take_queue("queue", url)
    consumer = Consumer(f"one.{system.kernel8('one')}.1.1.0123456789abcdef", board, slot, board.take_worker(slot, 0))
    queue = open_queue(url.format(place), create=True, system=system, host="one")
    queue.attach(consumer)
    queue.keeper(consumer).open()  # type: ignore[attr-defined]
    queue.keep()
    queue.put(b"x")
    claim = queue.claim()
    assert claim is not None
    queue.network = "fuse"  # type: ignore[attr-defined]
    dead = queue._hand  # type: ignore[attr-defined]
    (record,) = Path(queue.beside.held).iterdir()  # type: ignore[attr-defined]
    if is_gone:
        record.unlink()

    def is_dead(name, arguments):
        if name in ("pwrite", "fstat") and arguments[0] == dead:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))

    system.before = is_dead
    for _ in range(2):
        try:
            getattr(queue, settle)(claim)
            break
        except QueueUnavailable:
            queue.renew()
    system.before = None
    depth = queue.depth()
    assert (depth.waiting, depth.claimed, depth.deferred) == {
        "done": (0, 0, 0), "retry": (0, 0, 1), "release": (1, 0, 0)
    }[settle]  # fmt: skip
    queue.put(b"y")
    assert queue.claim() is not None


@pytest.mark.parametrize("url", ["dirq-simple:{}", "ddmq:{}/queue"])
def test_a_put_that_is_taken_before_its_link_is_answered_is_unknown(rig: Rig, tmp_path: Path, url: str):
    """A FUSE filesystem looks at the new name once more, and answers that there is none: another host was faster."""
    place = tmp_path / "place"
    place.mkdir()
    system = FakeSystem(rig.world)
    system.network = "fuse"
    queue = open_queue(url.format(place), create=True, system=system)
    taken = []

    def take(name, arguments):
        if name == "rename_noreplace":
            raise OSError(errno.EINVAL, "no such flag")
        if name == "link":
            os.link(*arguments)
            os.unlink(arguments[1])
            taken.append(arguments[1])
            raise OSError(errno.ENOENT, "gone")

    system.before = take
    with pytest.raises(QueueUnavailable) as caught:
        queue.put(b"x")
    assert caught.value.is_unknown
    assert len(taken) == 1
