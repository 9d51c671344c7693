"""What two attempts to break it found, in the library: each failed once. See tests.process.test_broken_once."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator import child, running
from orchestrator.child import spawn
from orchestrator.config import ConfigError, load
from orchestrator.loop import Loop
from orchestrator.master import Master
from tests.rig import Pool, Q, Rig
from workers.board import BUCKETS_S, PROCESS_WORDS, Board, QueueState, QueueText, W, WorkerState, observe
from workers.errors import KeeperGone, NotSupported, QueueRefused, QueueUnavailable
from workers.handler import call
from workers.keeper import QueueKeeper
from workers.message import Forward, Message
from workers.queues import names
from workers.queues.base import Settings
from workers.queues.spool import Spool
from workers.system import System

ROOT = Path(__file__).resolve().parents[2]
OURS = "1700000000.M000001P1Q1R0123456789ab.host"
KEEP_ERRORS = Settings(create=True, lease_interval_s=1.0, lease_timeout_s=4.0, stale_after_s=100.0, keep_errors_s=10.0)


def keeper_of(pool: Pool) -> QueueKeeper:
    """What a master's keeper runs for the queue of *pool*."""
    return QueueKeeper(lambda: pool.keeping, pool._consumer(0), pool.keeper_system)


def state_of(pool: Pool) -> tuple[int, str | None]:
    return pool.words[Q.READY], pool.board.queues[pool.queue_slot].text(QueueText.REASON)


def as_stat(real: os.stat_result, **times: float) -> os.stat_result:
    own = {"st_mtime_ns": real.st_mtime_ns, "st_ctime_ns": real.st_ctime_ns}
    return os.stat_result(tuple(real)[:10], {**own, "st_mtime": real.st_mtime, "st_ctime": real.st_ctime, **times})


# ---- configuration, put


def test_one_directory_given_twice_is_refused_before_anything_starts(tmp_path):
    with pytest.raises(ConfigError, match="same queue"):
        load(
            (),
            flags={"workers": "1", "run_dir": str(tmp_path)},
            environment={},
            queues=[str(tmp_path / "q"), str(tmp_path / "q")],
            handler="workers.handlers.echo:nothing",
        )


@pytest.mark.parametrize("delay", [1e12, float("inf"), float("nan"), -1.0])
def test_a_delay_that_no_due_time_can_say_is_refused_and_leaves_nothing(rig, delay):
    spool = rig.spool()
    with pytest.raises(NotSupported, match="delay"):
        spool.put(b"x", delay=delay)
    assert rig.everything() == {}


def test_text_that_utf8_cannot_say_is_a_failed_handler_and_no_dead_worker(rig):
    pool = rig.pool()
    pool.spool.put(b"x", "a")
    message = Message(pool.claim(), "q")
    for body in ("lone \ud800", ["fine", "lone \udfff"]):
        assert call(lambda _, body=body: Forward(body, "next"), message).failure, body
    assert call(lambda _: Forward("fine \U0001f600", "next"), message).failure is None


# ---- names and places that somebody else wrote


def test_a_mark_around_two_dots_is_no_mark():
    for name in (".", ".."):
        file = names.marked(0, 0, "0" * 18 + names.check(name), name)
        assert names.parse(file) == names.Marked(0, 0, "", file)


def test_a_marked_two_dots_is_handled_and_settled_like_any_name(rig):
    pool = rig.pool()
    file = names.marked(0, 0, "0" * 18 + names.check(".."), "..")
    (rig.path / "incoming" / file).write_bytes(b"x")
    claim = pool.claim()
    assert claim.name == file
    pool.spool.reject(claim, "no")
    pool.spool.settled(claim)
    assert rig.everything() == {"errors": [b"x"]}


def test_an_owner_directory_of_another_user_ends_no_process(rig):
    """Its claims go back all the same, by the lease that nobody renews."""
    pool = rig.pool("one")
    forged = f"one.{pool.system.kernel8('one')}.4242.1.{'0' * 16}.0.4243.1.{'0' * 12}"
    (rig.path / "pending" / forged).mkdir()
    rig.world.dead |= {4242, 4243}
    real = pool.keeper_system.lstat

    def lstat(path, **more):
        found = real(path, **more)
        fields = list(found)[:10]
        fields[4] = os.geteuid() + 1 if forged in str(path) else fields[4]
        return os.stat_result(fields, {"st_ctime_ns": found.st_ctime_ns, "st_mtime_ns": found.st_mtime_ns})

    pool.keeper_system.lstat = lstat
    kept = pool.rounds(3)
    assert (kept.owner_dead, rig.world.ended_sessions) == (0, [])
    assert (rig.path / "pending" / forged).is_dir()
    assert pool.rounds(6).lease_lost == 1
    assert rig.world.ended_sessions == []
    assert os.listdir(rig.path / "pending") == []


def test_a_neighbour_that_another_keeper_releases_first_fails_no_round(rig):
    dead, living = rig.pool("one", pid=4001), rig.pool("one", pid=4002)
    dead.spool.put(b"x", "a")
    claim = dead.claim()
    rig.world.dead.add(4001)

    def other(call_name, arguments):
        if call_name == "lstat" and str(arguments[0]) == os.path.dirname(claim.path):
            living.keeper_system.before = None
            living.keeping.release_owner(os.path.basename(arguments[0]), "died")

    living.keeper_system.before = other
    living.rounds()
    assert rig.everything() == {"incoming": [b"x"]}


def test_a_pid_larger_than_any_is_the_pid_of_a_dead_process(rig):
    """Asked of the real kernel, which is where it overflowed."""
    pool, real = rig.pool(), System()
    master = f"one.{real.kernel8('one')}.9999999999.{'9' * 20}.{'0' * 16}"
    forged = f"{master}.0.9999999999.{'9' * 20}.{'0' * 12}"
    (rig.path / "pending" / forged).mkdir()
    for name in ("kernel8", "is_alive", "start_ticks", "kill_session"):
        setattr(pool.keeper_system, name, getattr(real, name))
    pool.keeper._kernel8 = real.kernel8("one")
    assert pool.rounds(2).owner_dead == 1
    assert os.listdir(rig.path / "pending") == []


def damaged(rig: Rig, file: str, content: bytes) -> None:
    (rig.path / ".pool" / file).write_bytes(content)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00\x80", b"", b"x" * 70000])
def test_an_id_that_is_no_text_makes_the_queue_unavailable(rig, content):
    pool = rig.pool()
    keeper = keeper_of(pool)
    keeper.open()
    damaged(rig, "id", content)
    keeper.round()
    assert state_of(pool)[0] == QueueState.UNAVAILABLE
    assert "fault of the program" not in str(state_of(pool)[1])
    pool.spool.put(b"x")
    with pytest.raises(QueueUnavailable):
        pool.spool.claim()


@pytest.mark.parametrize("file", ["id", "format"])
def test_bytes_that_are_no_text_refuse_the_queue(rig, file):
    rig.spool().close()
    damaged(rig, file, b"\xff\xfe\x00\x80")
    with pytest.raises(QueueRefused):
        rig.spool()


@pytest.mark.parametrize(
    "content",
    [
        b'{"format": 1, "lease_interval_s": NaN}',
        b'{"format": 1, "lease_timeout_s": 1e999}',
        b'{"format": 1, "stale_after_s": 1e300}',
        b'{"format": 1, "stale_after_s": -Infinity}',
        b'{"format": 1, "lease_interval_s": 1e-300}',
        b'{"format": NaN}',
        b'{"format": true}',
        b'{"format": -1}',
        b"[" * 60000,
        b'{"format": ' + b"9" * 5000 + b"}",
    ],
    ids=lambda content: content[:40].decode(),
)
def test_a_format_that_no_program_wrote_refuses_the_queue(rig, content):
    rig.spool().close()
    damaged(rig, "format", content)
    with pytest.raises(QueueRefused, match="format"):
        Spool(str(rig.path), Settings(create=True))


def test_a_time_before_all_time_is_measured_claimed_and_kept(rig):
    """An mtime may be any 64-bit number of seconds; on the board it must fit into a word."""
    pool = rig.pool()
    keeper = keeper_of(pool)
    keeper.open()
    (rig.path / "incoming" / "old").write_bytes(b"x")
    long_ago = {"st_mtime": -9e18, "st_mtime_ns": int(-9e18) * 10**9}
    for system in (pool.system, pool.keeper_system):
        for name in ("lstat", "fstat"):
            real = getattr(system, name)
            setattr(system, name, lambda *given, real=real, **more: as_stat(real(*given, **more), **long_ago))
    keeper.measure()
    assert 0 < pool.words[Q.OLDEST_WAITING_MS] < 1 << 62
    keeper.round()
    assert state_of(pool)[0] == QueueState.READY
    claim = pool.claim()
    pool.spool.reject(claim, "too old")
    pool.spool.settled(claim)
    assert rig.everything() == {"errors": [b"x"]}


@pytest.mark.parametrize("duration_ns", [9 * 10**27, -(9 * 10**27)])
def test_a_duration_that_no_word_holds_is_counted_as_the_longest(duration_ns):
    board = Board.create()
    words = board.worker(board.take_worker(board.take_queue("q", "spool:q"), 0)).words
    for _ in range(3):
        observe(words, W.WAITING, duration_ns)
    assert sum(words[W.WAITING + number] for number in range(len(BUCKETS_S) + 1)) == 3


# ---- what lies about in a queue


def test_directories_in_errors_and_in_tmp_stop_no_sweep(rig):
    pool = rig.pool(settings=KEEP_ERRORS)
    for place in ("errors/tree", f"tmp/{OURS}"):
        (rig.path / place).mkdir()
        (rig.path / place / "inside").write_bytes(b"kept")
    (rig.path / "errors" / "zz").write_bytes(b"old")
    (rig.path / "tmp" / (OURS.replace("Q1", "Q2") + ".tmp")).write_bytes(b"half")
    pool.rounds(2, every_s=200.0)
    assert not (rig.path / "errors" / "zz").exists()
    assert not (rig.path / "tmp" / (OURS.replace("Q1", "Q2") + ".tmp")).exists()
    assert [body for bodies in rig.everything().values() for body in bodies] == [b"kept", b"kept"]


def test_a_directory_in_errors_is_not_put_back(rig):
    spool = rig.spool()
    (rig.path / "errors" / "tree").mkdir()
    with pytest.raises(NotSupported, match="directory"):
        spool.requeue("tree")
    assert (rig.path / "errors" / "tree").is_dir()


@pytest.mark.timeout(20)
def test_a_fifo_in_place_of_the_id_holds_nobody_up(rig):
    pool = rig.pool()
    (rig.path / ".pool/id").unlink()
    os.mkfifo(rig.path / ".pool/id")
    with pytest.raises(QueueUnavailable):
        pool.keeper.keep()
    with pytest.raises(QueueUnavailable):
        rig.spool(Settings(create=False))


@pytest.mark.timeout(20)
def test_an_id_that_is_a_link_is_not_followed(rig, tmp_path):
    rig.spool().close()
    os.rename(rig.path / ".pool/id", tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", rig.path / ".pool/id")
    with pytest.raises(QueueUnavailable):
        rig.spool()


def test_a_worker_makes_no_directory_in_a_queue_that_was_made_again(rig, tmp_path):
    """Nobody holds a lease for it there: what it claimed would be anybody's."""
    pool = rig.pool()
    os.rename(rig.path, tmp_path / "gone")
    rig.spool().put(b"x", "a")
    with pytest.raises(QueueUnavailable, match="another queue"):
        pool.spool.claim()
    assert os.listdir(rig.path / "pending") == []
    with pytest.raises(QueueUnavailable, match="another queue"):
        pool.keeper.keep()
    assert rig.everything() == {"incoming": [b"x"]}


def test_a_worker_whose_directory_went_with_the_old_queue_makes_none_in_the_new_one(rig, tmp_path):
    pool = rig.pool()
    pool.spool.put(b"x", "first")
    claim = pool.claim()
    pool.spool.done(claim)
    pool.spool.settled(claim)
    os.rename(rig.path, tmp_path / "gone")
    rig.spool().put(b"x", "a")
    for _ in range(2):
        with pytest.raises(QueueUnavailable):
            pool.spool.claim()
    assert os.listdir(rig.path / "pending") == []


def test_a_worker_without_a_master_says_so_when_its_keeper_has_died(rig):
    pool = rig.pool()
    pool.spool.put(b"x")
    rig.world.advance(3)
    assert pool.spool.claim() is None
    pool.spool.keeper_is_gone = lambda: True
    with pytest.raises(KeeperGone, match="start this worker again"):
        pool.spool.claim()


def test_a_keeper_that_follows_another_goes_on_with_the_number_it_finds(rig):
    """At a reload the keeper before it may beat once more; its own lease is not lost by that."""
    pool = rig.pool()
    other = pool.keeping.directory
    here = other.leases
    (lease,) = os.listdir(here)
    number = int(lease.rpartition(".")[2])
    os.rename(f"{here}/{lease}", f"{here}/{lease.rpartition('.')[0]}.{number + 1}")
    assert pool.keeper.lease.beat()
    assert [file.rpartition(".")[2] for file in os.listdir(here)] == [str(number + 2)]


# ---- board and processes


FULL = """
set -e
mount -t tmpfs -o size=64k tmpfs "$1"
echo mounted
exec "$2" -c '
import sys
from workers.board import Board, BoardError
from pathlib import Path
try:
    Board.create(Path(sys.argv[1]) / "board")
except BoardError as error:
    import os
    print("BoardError", error, os.listdir(sys.argv[1]))
' "$1"
"""


def test_a_board_that_finds_the_disk_full_is_an_error_with_a_sentence(tmp_path):
    """A hole instead would end the master by SIGBUS when it writes there later."""
    ended = subprocess.run(
        ["unshare", "--mount", "sh", "-c", FULL, "sh", str(tmp_path), sys.executable],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    if "mounted" not in ended.stdout:
        pytest.skip(f"no tmpfs can be mounted here: {ended.stderr.strip()[-200:]}")
    assert "BoardError" in ended.stdout, ended.stderr
    assert "make room there" in ended.stdout
    assert ended.stdout.rstrip().endswith("[]")


def test_a_worker_asked_to_leave_that_still_holds_a_message_is_not_idle(tmp_path):
    """Scaled down from two to one: the second finishes what it has, and the queue is not empty before."""
    config = load(
        (), flags={"workers": "1", "run_dir": str(tmp_path)}, environment={}, queues=[str(tmp_path / "q")],
        handler="workers.handlers.echo:nothing",
    )  # fmt: skip
    board = Board.create()
    queue = running.start(config.queues[0], config.pool, board)
    queue.worker_slot(board, 0).words[W.STATE] = WorkerState.IDLE
    assert queue.is_idle(board)
    queue.children[1] = object()  # type: ignore[assignment]
    leaving = queue.worker_slot(board, 1)
    leaving.words[W.STATE], leaving.words[W.MESSAGE_SINCE_NS] = WorkerState.STOPPING, 1
    assert not queue.is_idle(board)
    leaving.clear(PROCESS_WORDS, ())
    del queue.children[1]
    assert queue.is_idle(board)


@pytest.mark.parametrize("is_until_empty", [False, True])
def test_a_queue_refused_after_another_was_ready_ends_the_pool_with_1(tmp_path, monkeypatch, is_until_empty):
    """Whichever of the two the keeper reports first."""
    config = load(
        (), flags={"workers": "1", "run_dir": str(tmp_path)}, environment={},
        queues=[str(tmp_path / "good"), str(tmp_path / "bad")], handler="workers.handlers.echo:nothing",
    )  # fmt: skip
    monkeypatch.setattr(Master, "_plan", lambda *_: None)
    master = Master(config, lambda: config)
    master.is_until_empty = is_until_empty
    master.board = Board.create()
    good, bad = (running.start(one, config.pool, master.board) for one in config.queues)
    master.queues = {"good": good, "bad": bad}
    master._on_opened(good, None)
    assert master._stopping_s is None
    master._on_opened(bad, "no")
    assert master._stopping_s is not None
    assert master._code == 1


def test_a_fork_that_fails_leaves_no_descriptor_open(monkeypatch):
    class Failing:
        """multiprocess opens the pipes first, then forks."""

        def __init__(self, **_):
            self.pid = self.sentinel = 0

        def start(self):
            os.pipe()
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    class Context:
        Process = Failing

    loop = Loop()
    try:
        monkeypatch.setattr(child, "_CONTEXT", Context())
        before = sorted(os.listdir("/proc/self/fd"))
        for _ in range(3):
            with pytest.raises(OSError, match="unavailable"):
                spawn(lambda: 0, "test", loop, lambda: None)
        assert sorted(os.listdir("/proc/self/fd")) == before
    finally:
        loop.close()
