"""
board - what every process of a pool says of itself, in one shared memory file

A header (the master), one slot per queue (its keeper thread writes) and one slot
per worker. A slot is a row of aligned 8-byte words and a few texts of at most 255
bytes. Every word has one writer and many readers. A worker's slot keeps its
counters when the process is replaced, so a counter never goes back.

Words are written through a memoryview of int64 (one store; struct.pack_into
writes zeros first). Texts stand under a sequence word, odd while being written,
so a torn read is noticed and repeated.

Limits: 64 queues and 1024 workers a board, 2.2 MB. The order of two
stores is the program's order on x86-64; on other machines the interpreter's own
locking between byte codes is what orders them.
Long because: the layout of all slots is one table, read as a whole.
See also: worker (writes its slot), keeper (writes a queue's slot), metrics (reads all).
"""

from __future__ import annotations

import mmap
import os
import stat
from bisect import bisect_left
from enum import IntEnum, auto
from pathlib import Path

from workers.errors import OrchestratorError

MAGIC = 0x3144524F4253  # "SBORD1"
VERSION = 1
QUEUES_MAX = 64
WORKERS_MAX = 1024
TEXT_SIZE = 256
TEXTS = 4
WORDS = 128
SLOT_SIZE = WORDS * 8 + TEXTS * TEXT_SIZE
SIZE = SLOT_SIZE * (1 + QUEUES_MAX + WORKERS_MAX)

# Upper bounds of the histogram buckets, seconds; the last bucket is +Inf.
BUCKETS_S = (
    0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
    30.0, 60.0, 300.0, 900.0, 3600.0, 14400.0,
)  # fmt: skip
DURATION_NS_MAX = int(1e18)  # 30 years; a forged time in a name or an mtime may be anything
BUCKETS_NS = tuple(int(bound * 1e9) for bound in BUCKETS_S)
SUM = len(BUCKETS_NS) + 1  # of a histogram's words: the buckets, +Inf, the sum
WORD_MAX = (1 << 63) - 1
COUNT_MAX = 1 << 62  # no counter comes that far
PID_MAX = (1 << 31) - 1  # of the kernel's pid_t


class Header(IntEnum):
    """Words of the header. Writer: the master."""

    MAGIC = 0
    VERSION = auto()
    MASTER_PID = auto()
    MASTER_START = auto()
    STARTED_S = auto()
    LAST_SEEN_NS = auto()  # CLOCK_BOOTTIME; the loop made progress
    STATE = auto()  # MasterState
    RELOAD_OK = auto()
    RELOADED_S = auto()
    PASS = auto()  # number of the pass over all queues that --until-empty asks for
    EXPORTER_PID = auto()
    KEEPER_PID = auto()


class MasterState(IntEnum):
    """What the master is at."""

    STARTING = 0
    RUNNING = 1
    DRAINING = 2
    STOPPING = 3


class HeaderText(IntEnum):
    """Texts of the header."""

    NAME = 0
    HOST = 1
    MASTER = 2
    LISTEN = 3


class Q(IntEnum):
    """Words of a queue's slot. Writer: the keeper, unless it says (master)."""

    USED = 0  # (master) 1 in use, 2 retired by a reload: its counters are kept for the same name
    TARGET = auto()  # (master) workers wanted
    BACKED_OFF = auto()  # (master) 1 while the pool does not spawn
    READY = auto()  # QueueState
    PAUSED = auto()
    BEAT_NS = auto()  # CLOCK_BOOTTIME read before the rename of the last good beat; 0: never
    LAPSES = auto()  # gaps between good beats of at least half the lease timeout
    HALF_TIMEOUT_NS = auto()  # a worker claims only while the beat is younger
    WAITING = auto()
    CLAIMED = auto()
    DEFERRED = auto()
    ERRORS = auto()
    IGNORED = auto()
    OLDEST_WAITING_MS = auto()  # an age
    OLDEST_CLAIMED_MS = auto()
    OLDEST_DEFERRED_MS = auto()
    OLDEST_ERRORS_MS = auto()
    MEASURED_MS = auto()  # unix milliseconds
    MEASURE_NS = auto()
    PASS = auto()  # the last pass of the header that was answered
    DUE_MOVES = auto()
    REAPED_OWNER_DEAD = auto()
    REAPED_LEASE_LOST = auto()
    REAPED_TOO_OLD = auto()
    REAPED_CRASH_LIMIT = auto()
    REAPED_TEMPORARY = auto()
    FREE_BYTES = auto()
    FREE_INODES = auto()
    BEATS_FAILED = auto()
    WATCH = auto()  # (feeder; where there is none, the workers, who all write the same) 1 inotify, 2 poll
    FED_NS = auto()  # (feeder) CLOCK_BOOTTIME of its last sign of life
    PEERS = auto()  # masters with a live lease, ours included
    RANK = auto()  # the place of ours among them, in the order of their names
    FEEDER_PID = auto()  # (master)
    COUNTED = auto()  # of a protocol that counts beside its queue: 0: no counts need be looked for
    POLL_MS = auto()  # (as WATCH) the longest pause between two looks while nothing comes
    MEASURED_NS = auto()  # CLOCK_BOOTTIME, where MEASURED_MS is a wall clock's
    SINCE_NS = auto()  # (master) CLOCK_BOOTTIME; the pool has this queue since then
    NO_CTIMES = auto()  # 1: the queue's filesystem has none
    CLOCK_NS = auto()  # the clock of the queue's filesystem, unix nanoseconds, less CLOCK_BOOTTIME; 0: not read yet


class QueueState(IntEnum):
    """What the keeper says of a queue."""

    UNKNOWN = 0
    READY = 1
    REFUSED = 2
    UNAVAILABLE = 3


class QueueText(IntEnum):
    """Texts of a queue's slot."""

    NAME = 0
    URL = 1
    REASON = 2
    FILESYSTEM = 3  # (as WATCH) the network filesystem that holds it, empty: a local one


class W(IntEnum):
    """Words of a worker's slot. Writer: the worker, unless it says (master)."""

    USED = 0  # (master)
    QUEUE = auto()  # (master) number of the queue's slot
    INDEX = auto()  # (master)
    CPU_BASE_NS = auto()  # (master) user + system of the processes that have ended
    EXITS_FINISHED = auto()  # (master) and the five after it, in the order of EXIT_REASONS
    EXITS_SIGNAL = auto()
    EXITS_OOM = auto()
    EXITS_TIMEOUT = auto()
    EXITS_RECYCLE = auto()
    EXITS_ERROR = auto()
    BACKOFF = auto()  # (master) 1 while this index waits for its respawn
    PID = auto()
    START = auto()  # start time of PID, clock ticks
    STATE = auto()  # WorkerState
    PROCESS_CLAIMS = auto()  # of this process
    PROCESS_SETTLED = auto()
    CLAIMS = auto()
    CONFLICTS = auto()
    DONE = auto()  # and the six after it, in the order of OUTCOMES
    FORWARDED = auto()
    RETRIED = auto()
    REJECTED = auto()
    RELEASED = auto()
    FENCED = auto()
    INPUT_GONE = auto()
    MESSAGE_SINCE_NS = auto()  # CLOCK_BOOTTIME, 0: nothing in hand
    LAST_SEEN_NS = auto()
    LAST_DONE_MS = auto()  # unix milliseconds
    CHILD_GROUP = auto()  # process group of the program run for the message, 0: none
    OUTPUT = auto()  # which queue RESERVED is of, see workers.output; 0: none
    RESERVED = auto()  # messages that may still be handed on to it without another look
    OUTPUT_FULL = auto()  # 1 while nothing is claimed because the output is full, or away
    PROCESSING = 48  # histogram: one word a bucket, the +Inf bucket, then the sum in ns
    BUSY_NS = 48 + SUM  # of the histogram before: what the handler took in all
    WAITING = 48 + SUM + 1


EXIT_REASONS = ("finished", "signal", "oom", "timeout", "recycle", "error")
OUTCOMES = ("done", "forwarded", "retried", "rejected", "released", "fenced", "input_gone")


class WorkerState(IntEnum):
    """What a worker is at."""

    NONE = 0
    STARTING = 1
    IDLE = 2
    BUSY = 3
    STOPPING = 4


class WorkerText(IntEnum):
    """Texts of a worker's slot."""

    MESSAGE = 0
    OWNER = 1


SEQUENCES = WORDS - TEXTS  # the last words of a slot: the sequence of each text
assert W.WAITING + len(BUCKETS_S) + 2 <= SEQUENCES  # noqa: S101 - the layout itself


class BoardError(OrchestratorError):
    """The file is no board, or of another version."""


def process(word: int) -> int:
    """The process or group that a word names, 0 for what can be none: to kill 1 or less may be to kill everybody."""
    return word if 1 < word <= PID_MAX else 0


class Slot:
    """A row of words and texts. ``slot.words[W.CLAIMS] += 1`` by its one writer; anybody may read."""

    __slots__ = ("_texts", "words")

    def __init__(self, memory: memoryview, number: int) -> None:
        start = number * SLOT_SIZE
        self.words = memory[start : start + WORDS * 8].cast("q")
        self._texts = memory[start + WORDS * 8 : start + SLOT_SIZE]

    def set_text(self, which: int, text: str) -> None:
        """Write a text, cut at 255 bytes. Its one writer only."""
        raw = text.encode() if text.isascii() else os.fsencode(text)
        if len(raw) >= TEXT_SIZE:
            raw = raw[: TEXT_SIZE - 1]
        words, sequence, start = self.words, SEQUENCES + which, which * TEXT_SIZE
        odd = words[sequence] | 1
        words[sequence] = odd
        self._texts[start : start + 1 + len(raw)] = bytes((len(raw),)) + raw
        words[sequence] = odd + 1 if odd < WORD_MAX else 0

    def text(self, which: int) -> str | None:
        """Read a text; None when its writer is in the middle of it (or died there)."""
        start, sequence = which * TEXT_SIZE, SEQUENCES + which
        for _ in range(100):
            before = self.words[sequence]
            size = self._texts[start]
            raw = bytes(self._texts[start + 1 : start + 1 + size])
            if not before & 1 and self.words[sequence] == before:
                return os.fsdecode(raw)
        return None

    def mend(self, words: tuple[int, ...]) -> None:
        """Let counters begin anew that hold what no count can be, for to add to them fails. Their one writer only."""
        for word in words:
            if not 0 <= self.words[word] <= COUNT_MAX:
                self.words[word] = 0

    def clear(self, words: range | tuple[int, ...], texts: tuple[int, ...] = ()) -> None:
        """Zero *words* and empty *texts*: the master for a dead worker, whose place as writer it takes."""
        for which in texts:
            self.set_text(which, "")
        for word in words:
            self.words[word] = 0


# What is mended by whoever takes them over: a queue's by its keeper, a worker's by the worker and by the master.
QUEUE_COUNTERS = (
    Q.LAPSES, Q.DUE_MOVES, Q.REAPED_OWNER_DEAD, Q.REAPED_LEASE_LOST, Q.REAPED_TOO_OLD, Q.REAPED_CRASH_LIMIT,
    Q.REAPED_TEMPORARY, Q.BEATS_FAILED,
)  # fmt: skip
WORKER_COUNTERS = (*range(W.CLAIMS, W.INPUT_GONE + 1), *range(W.PROCESSING, W.WAITING + SUM + 1))
MASTER_COUNTERS = tuple(range(W.CPU_BASE_NS, W.EXITS_ERROR + 1))

# What the master zeroes when a worker is dead. The owner goes before the keeper is told of the death.
PROCESS_WORDS = (
    W.PID, W.START, W.STATE, W.PROCESS_CLAIMS, W.PROCESS_SETTLED, W.MESSAGE_SINCE_NS, W.CHILD_GROUP,
    W.RESERVED, W.OUTPUT, W.OUTPUT_FULL,
)  # fmt: skip


class Board:
    """The mapped file. Made by the master before it forks; children inherit the mapping, readers open the file."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        view = memoryview(memory)
        self.header = Slot(view, 0)
        self.queues = [Slot(view, 1 + number) for number in range(QUEUES_MAX)]
        self._workers: dict[int, Slot] = {}
        self._view = view

    @classmethod
    def create(cls, path: Path | None = None) -> Board:
        """Make an empty board at *path* (0400, replacing a dead master's), or in anonymous shared memory."""
        if path is None:
            board = cls(mmap.mmap(-1, SIZE))
        else:
            # A fresh inode: whoever still maps the dead master's board must not write into ours.
            fresh = path.with_name(path.name + ".new")
            fresh.unlink(missing_ok=True)
            # To read alone: its writers have it from the master, and who cut it short would end them all by SIGBUS.
            fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
            try:
                # All of it now: a hole would end the master by SIGBUS when the filesystem is full later.
                os.posix_fallocate(fd, 0, SIZE)
                board = cls(mmap.mmap(fd, SIZE))
            except OSError as error:
                fresh.unlink(missing_ok=True)
                raise BoardError(
                    f"cannot make {path} ({SIZE} bytes): {error.strerror}; make room there, "
                    "or give another run directory"
                ) from error
            finally:
                os.close(fd)
            os.rename(fresh, path)
        board.header.words[Header.VERSION] = VERSION
        board.header.words[Header.MAGIC] = MAGIC
        return board

    @classmethod
    def open(cls, path: Path) -> Board:
        """Map a board to look at. Raises BoardError for what is none, FileNotFoundError."""
        try:
            # Root looks at the boards of other users too. O_NONBLOCK: a fifo put there must not hold us up.
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise BoardError(f"cannot read the board {path}: {error.strerror}") from error
        try:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode) or info.st_size != SIZE:
                raise BoardError(f"{path} is no board of this version (it is no file of {SIZE} bytes)")
            board = cls(mmap.mmap(fd, SIZE, prot=mmap.PROT_READ))
        finally:
            os.close(fd)
        if board.header.words[Header.MAGIC] != MAGIC or board.header.words[Header.VERSION] != VERSION:
            raise BoardError(f"{path} is no board of this version")
        return board

    def worker(self, number: int) -> Slot:
        """The worker slot *number* (0 .. WORKERS_MAX - 1), whoever uses it."""
        if number not in self._workers:
            if not 0 <= number < WORKERS_MAX:
                raise BoardError(f"a board has {WORKERS_MAX} worker slots, not {number + 1}")
            self._workers[number] = Slot(self._view, 1 + QUEUES_MAX + number)
        return self._workers[number]

    def queue_numbers(self) -> list[int]:
        """The queue slots in use."""
        return [number for number, slot in enumerate(self.queues) if slot.words[Q.USED] == 1]

    def worker_numbers(self, queue: int | None = None) -> list[int]:
        """The worker slots in use, of one queue or of all. They are given out from 0, without holes."""
        found = []
        for number in range(WORKERS_MAX):
            words = self.worker(number).words
            if words[W.USED] != 1:  # what is neither 0 nor 1 is damage
                break
            if queue is None or words[W.QUEUE] == queue:
                found.append(number)
        return found

    def take_queue(self, name: str, url: str) -> int:
        """Give *name* a queue slot, the one it had before if any. Master only."""
        for number, slot in enumerate(self.queues):
            if slot.words[Q.USED] and slot.text(QueueText.NAME) == name:
                slot.words[Q.USED] = 1
                slot.set_text(QueueText.URL, url)
                return number
        for number, slot in enumerate(self.queues):
            if not slot.words[Q.USED]:
                slot.clear(range(SEQUENCES))
                slot.set_text(QueueText.NAME, name)
                slot.set_text(QueueText.URL, url)
                slot.words[Q.USED] = 1
                return number
        raise BoardError(f"a board has {QUEUES_MAX} queue slots; split the configuration into two pools")

    def queue_of(self, worker: int) -> Slot | None:
        """The queue slot of worker slot *worker*; None where the board is damaged."""
        number = self.worker(worker).words[W.QUEUE]
        return self.queues[number] if 0 <= number < QUEUES_MAX else None

    def url_of(self, name: str) -> str | None:
        """Where the queue *name* is now; None for no such queue, and for a URL too long for the board."""
        for number in self.queue_numbers():
            slot = self.queues[number]
            if slot.text(QueueText.NAME) == name:
                url = slot.text(QueueText.URL)
                return url if url and len(os.fsencode(url)) < TEXT_SIZE - 1 else None
        return None

    def is_new_queue(self, name: str) -> bool:
        """Whether *name* has had no slot on this board."""
        return all(not slot.words[Q.USED] or slot.text(QueueText.NAME) != name for slot in self.queues)

    def queues_free(self) -> int:
        """Queue slots that no name has had."""
        return sum(not slot.words[Q.USED] for slot in self.queues)

    def take_worker(self, queue: int, index: int) -> int:
        """Give worker *index* of *queue* a slot, the one it had before if any. Master only."""
        for number in range(WORKERS_MAX):
            words = self.worker(number).words
            if words[W.USED] != 1:
                words[W.QUEUE], words[W.INDEX], words[W.USED] = queue, index, 1
                return number
            if words[W.QUEUE] == queue and words[W.INDEX] == index:
                return number
        raise BoardError(f"a board has {WORKERS_MAX} worker slots")


def observe(words: memoryview[int], histogram: int, duration_ns: int) -> None:
    """Count one duration in a worker's *histogram* (W.PROCESSING or W.WAITING)."""
    if not 0 <= duration_ns <= DURATION_NS_MAX:
        duration_ns = 0 if duration_ns < 0 else DURATION_NS_MAX
    words[histogram + bisect_left(BUCKETS_NS, duration_ns)] += 1
    total_ns = words[histogram + SUM] + duration_ns
    # A million messages that waited for three hours are more than a word holds: it begins anew, as a counter may.
    words[histogram + SUM] = total_ns if total_ns <= WORD_MAX else duration_ns
