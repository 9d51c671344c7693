"""
feeder - one scan of what waits for all workers of a queue on this host, and who wakes them

A pass over the directory feeds what it finds, a packet at a time, and a full pipe is
the back-pressure. Order any feeds while it lists, so a million waiting names take no
more memory than a few; fifo keeps the smallest of a pass, bounded in number. Then
arrivals are fed as they come, one to each packet while workers wait, so each wakes
one worker. They are seen by inotify, or by passes at growing distances.

A packet holds as many names as make a millisecond of work, and fewer when little is
left, so nobody keeps from others what they could do. A name is not fed again until a
second after its packet was read: then it was lost with its reader, or lies with one
that is held up.

Where a later name may be more urgent, arrivals are taken in during a pass and fed before
whatever is less urgent; where they are not seen, a long pass is begun anew after a second.

Of a queue with masters on several hosts each first feeds a slice of its own, by a
hash of the name; when that is empty, its share of what the others have left.

Feeder process only. Raises OSError from step(); run() tries again and logs it once.
Long because: what is fed, when, and how much at once are one state, read together.
See also: feed (the packets, and the reading end), orchestrator/feeder.py (the process).
"""

from __future__ import annotations

import bisect
import contextlib
import heapq
import itertools
import logging
import os
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from workers.board import Board, Q, W, WorkerState
from workers.pauses import Pauses
from workers.queues import names
from workers.queues.base import Order, Source
from workers.queues.feed import PACKET_SIZE, PACKETS, nudge, pack
from workers.system import System

log = logging.getLogger(__name__)

BATCH_MAX = 16  # names of a packet
WORK_NS = 1_000_000  # of a packet
PASS_NAMES = 262_144  # that a pass of order fifo keeps: some 30 MB
KNOWN_NS = 1_000_000_000
KNOWN_MAX = 65_536  # names remembered: more than a pipe and the hands of all workers can hold
NAMED_MAX = 1000  # directories that are spoken of
LEVELS = 4  # of the hash, before what is left is fed whoever's slice it is
TURN_NS = 5_000_000_000  # so often a few names are fed whoever's slice they are: their host may be held up
TURN_NAMES = 16  # few: all hosts feed the same ones, and race for them
REST_NAMES = 1024  # of those that no level of the hash gives us, when there is nothing else
ALIVE_NAMES = 8192
OTHERS_NS = 20_000_000  # what arrived in another's slice is looked at so much later
LOOK_NS = 20_000_000
IDLE_NS = 1_000_000_000
URGENT_NS = 1_000_000_000  # so old is what a pass has listed, and ten times what that took, when it is listed again
PAUSED_S = 0.1  # between two looks whether the queue is still paused
TROUBLE_S, TROUBLE_S_MAX = 0.1, 5.0
SLEEP_S_MAX = 0.002  # a full pipe that empties faster is not waited for at every packet


class Arrivals(Protocol):
    """How arrivals are seen (orchestrator.watch.Watcher)."""

    @property
    def is_polling(self) -> bool:
        """Whether the directory went away, so that nothing is seen any more."""

    def arrivals(self, timeout_s: float) -> list[str] | None:
        """Names that have come, waited for at most *timeout_s*; None when some were not seen."""

    def is_covered(self) -> bool:
        """Whether another directory is at that path now, by a mount that came since. Raises OSError."""


@dataclass(frozen=True, slots=True)
class Feeding:
    """
    What is fed, from where to where.

    Attributes:
        url: of the queue, for the log; source: where its names are read.
        reader, writer: both ends of the pipe. watch: watches *source*, None where only polling sees arrivals.
        poll_interval_s: the longest pause between two passes then. is_network: others may put without an event.
    """

    url: str
    source: Source
    order: Order
    board: Board
    queue_slot: int
    reader: int
    writer: int
    watch: Callable[[], Arrivals | None]
    poll_interval_s: float
    is_network: bool = False


class Known:
    """The names fed that may not have been tried yet, in two ages, by what the pipe has passed on."""

    def __init__(self) -> None:
        self._young: set[str] = set()
        self._old: set[str] = set()
        self._old_end = 0  # bytes written when the last of the old ones was
        self._read_ns = 0  # when all of the old ones were seen to be read

    def __contains__(self, name: str) -> bool:
        return name in self._young or name in self._old

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def add(self, fed: Iterable[str]) -> None:
        """Names that are in the pipe from now on."""
        self._young.update(fed)

    def age(self, written: int, unread: int, now_ns: int, known_ns: int = KNOWN_NS) -> bool:
        """Forget what was read *known_ns* ago; True when something was forgotten."""
        if self._old and not self._read_ns and written - unread >= self._old_end:
            self._read_ns = now_ns
        has_forgotten = bool(self._read_ns) and (
            now_ns - self._read_ns >= known_ns or len(self._young) >= KNOWN_MAX // 2
        )
        if has_forgotten:
            self._old = set()
        if not self._old:
            self._old, self._young, self._old_end, self._read_ns = self._young, set(), written, 0
        return has_forgotten


class Feeder:
    """Feeds one queue. ``run`` is its life, ``step`` a piece of it that waits at most a second."""

    def __init__(self, feeding: Feeding, system: System) -> None:
        self._feeding = feeding
        self._source = feeding.source
        self._system = system
        self._words = feeding.board.queues[feeding.queue_slot].words
        self._pass: Iterator[str] | None = None
        self._ahead: deque[str] = deque()  # names to be fed next
        # Of a prioritised source, in order: what arrived since the pass was listed.
        self._is_prioritised = feeding.order == "fifo" and feeding.source.is_prioritised
        self._late: list[tuple[str, str]] = []
        self._packet, self._packed = b"", 0  # written as soon as there is room, and how many names it holds
        self._odd: set[str] = set()
        self._directories: set[str] = set()
        self._named: set[str] = set()
        self._watch: Arrivals | None = None
        self._has_watch: bool | None = None  # None: not tried yet
        self._known = Known()
        self._written = 0
        self._is_resting = False
        self._stranded_ns = 0  # since when a packet lies there though somebody is idle
        # The pass
        self._pass_at_ns = 0  # when the next one begins
        self._began_ns = 0
        self._found, self._others, self._turned = 0, 0, 0
        self._is_cut = False
        self._has_missed = False  # arrivals
        self._relist_ns = 0  # when the pass of a prioritised source is too old, unless all arrivals are seen
        self._level = 0
        self._turn_names = TURN_NAMES
        self._turn_ns = system.boottime_ns()
        self._pauses = Pauses(feeding.poll_interval_s, system)
        self._poll_ns = int(feeding.poll_interval_s * 1e9)
        # The board, as last looked at
        self._looked_ns = 0
        self._workers, self._peers, self._rank = 1, 1, 0
        self._busy_ns, self._claims = 0, -1
        self._mean_ns, self._rate = 0.0, 0.0  # of handling; claims a second
        self._trouble_s = 0.0
        self._empty_pipe()  # what a feeder before this one has left is fed afresh

    def run(self, is_over: Callable[[], bool]) -> None:
        """Feed until *is_over()*. No error of the filesystem ends it."""
        while not is_over():
            try:
                self.step()
            except OSError as error:
                self._forget_pass()
                if not self._trouble_s:
                    log.warning("%s: cannot be fed: %s; tried again", self._feeding.url, error)
                self._trouble_s = min(self._trouble_s * 2 or TROUBLE_S, TROUBLE_S_MAX)
                self._system.sleep(self._trouble_s)

    def step(self) -> None:
        """Feed one packet, begin a pass, or wait. Raises OSError."""
        now_ns = self._system.boottime_ns()
        if self._words[Q.PAUSED]:
            self._rest(now_ns)
            return
        self._is_resting = False
        if now_ns - self._looked_ns >= LOOK_NS:
            self._look(now_ns)
        if self._is_prioritised and (self._pass is not None or self._ahead):
            self._take_urgent(now_ns)
        if self._pass is not None and len(self._ahead) < 2 * self._workers * BATCH_MAX:
            self._go_on()
            now_ns = self._system.boottime_ns()
        self._words[Q.FED_NS] = now_ns
        if self._packet or self._ahead:
            self._feed()
        elif self._pass is None and now_ns >= self._pass_at_ns:
            self._begin(now_ns)
        elif self._pass is None:
            self._wait(now_ns)

    # ---- packets

    def _feed(self) -> None:
        if not self._packet:
            self._pack()
        try:
            self._system.write(self._feeding.writer, self._packet)
        except BlockingIOError:
            self._wait_for_room()
            return
        self._written += len(self._packet)
        self._packet = b""

    def _pack(self) -> None:
        ahead = self._ahead
        count = min(self._batch(), max(1, len(ahead) // (2 * self._workers)))
        batch = [ahead.popleft() for _ in range(min(count, len(ahead)))]
        packet = pack(batch, self._odd)
        while len(packet) > PACKET_SIZE:
            ahead.appendleft(batch.pop())
            packet = pack(batch, self._odd)
        self._known.add(batch)
        self._packet, self._packed = packet, len(batch)

    def _batch(self) -> int:
        """How many names make a millisecond of work; one while that is not known."""
        if self._claims < 0 or not self._rate:
            return 1
        return max(1, min(BATCH_MAX, int(WORK_NS // max(self._mean_ns, 1.0))))

    def _wait_for_room(self) -> None:
        half_s = PACKETS / 2 * self._packed / self._rate if self._rate else 1.0
        if half_s <= SLEEP_S_MAX:
            self._system.sleep(half_s)  # woken for each packet that is read we would cost more than what we do
        else:
            self._system.wait_writable(self._feeding.writer, 0.25)

    def _look(self, now_ns: int) -> None:
        """At the board: how many workers, how fast; and at the pipe: what was read."""
        words, board = self._words, self._feeding.board
        self._workers = max(words[Q.TARGET], 1)
        self._peers, self._rank = max(words[Q.PEERS], 1), words[Q.RANK]
        busy_ns = claims = in_hand_ns = idle = 0
        for number in board.worker_numbers(self._feeding.queue_slot):
            worker = board.worker(number).words
            busy_ns += worker[W.BUSY_NS]
            claims += worker[W.CLAIMS]
            since_ns = worker[W.MESSAGE_SINCE_NS]
            in_hand_ns += max(now_ns - since_ns, 0) if since_ns else 0
            idle += worker[W.STATE] == WorkerState.IDLE
        fresh = claims - self._claims
        if self._claims < 0:
            self._busy_ns, self._claims = busy_ns, claims
        elif fresh > 0:
            self._mean_ns = (busy_ns - self._busy_ns + in_hand_ns) / fresh
            self._rate = fresh * 1e9 / max(now_ns - self._looked_ns, 1)
            self._busy_ns, self._claims = busy_ns, claims
        else:
            self._mean_ns, self._rate = max(self._mean_ns, in_hand_ns / self._workers), 0.0
        self._looked_ns = now_ns
        unread = self._system.unread(self._feeding.reader)
        # Polling, nothing says that a known name was put again. (A network's listing may be old: there it is waited.)
        is_seen = self._watch is not None or self._feeding.is_network
        known_ns = KNOWN_NS if is_seen else min(self._poll_ns, KNOWN_NS)
        if self._known.age(self._written, unread, now_ns, known_ns):
            self._pass_at_ns = min(self._pass_at_ns, now_ns)
        if not (unread and idle) or fresh > 0:
            self._stranded_ns = 0
        elif not self._stranded_ns:
            self._stranded_ns = now_ns
        elif now_ns - self._stranded_ns >= KNOWN_NS:
            # RACE: the worker that a packet woke was killed before it read. Another is woken.
            # See test_a_packet_whose_reader_was_killed_before_it_read_wakes_another.
            self._stranded_ns = now_ns
            nudge(self._feeding.writer, self._system)

    # ---- passes

    def _begin(self, now_ns: int) -> None:
        # ORDER: the watch, then the pass: what arrives meanwhile is then in the kernel's queue.
        # See test_what_arrives_during_a_pass_is_fed_after_it.
        if self._watch is not None and self._watch.is_covered():
            self._watch, self._has_watch = None, None
        if self._has_watch is None:
            self._watch = self._feeding.watch()
            self._has_watch = self._watch is not None
        elif self._watch is not None:
            self._watch.arrivals(0)  # the pass will see these
        if self._peers > 1 and now_ns - self._turn_ns >= TURN_NS:
            self._turn_ns, self._level, self._turn_names = now_ns, LEVELS, TURN_NAMES
        else:
            self._turn_names = REST_NAMES
        self._began_ns, self._found, self._others, self._turned, self._is_cut = now_ns, 0, 0, 0, False
        self._odd.clear()
        self._has_missed, self._relist_ns = False, 0
        self._pass = self._listed()

    def _listed(self) -> Iterator[str]:
        """The names of one pass that are ours to feed."""
        self._directories = set()
        with contextlib.closing(self._source.names(self._odd, self._directories)) as found:
            fresh = (name for name in self._alive(found) if name not in self._known)
            ours = fresh if self._peers == 1 else filter(self._is_ours, fresh)
            if self._feeding.order == "any":
                yield from ours
                return
            # The whole pass first, and only then the names: the directory is not kept open meanwhile.
            kept, self._is_cut = smallest(ours, PASS_NAMES, self._source.key)
        if self._is_prioritised:
            now_ns = self._system.boottime_ns()
            self._relist_ns = now_ns + max(URGENT_NS, 10 * (now_ns - self._began_ns))
            while kept or self._late:
                if kept and self._late and self._late[0][1] == kept[-1]:
                    heapq.heappop(self._late)  # it arrived while it was listed
                elif self._late and (not kept or self._late[0][0] < self._source.key(kept[-1])):
                    yield heapq.heappop(self._late)[1]
                else:
                    yield kept.pop()
        while kept:
            yield kept.pop()

    def _alive(self, found: Iterator[str]) -> Iterator[str]:
        """*found*, with a sign of life now and then: a long list is no silence."""
        for number, name in enumerate(found):
            if number % ALIVE_NAMES == 0:
                self._words[Q.FED_NS] = self._system.boottime_ns()
            yield name

    def _is_ours(self, name: str) -> bool:
        """Whether the hash gives us *name*: its first digit on level 0, its second one of what others left on 1 ..."""
        if self._level >= LEVELS:
            self._turned += 1
            return self._turned <= self._turn_names
        if zlib.crc32(os.fsencode(name)) // self._peers**self._level % self._peers == self._rank:
            return True
        self._others += 1
        return False

    def _go_on(self) -> None:
        """Read ahead: so far that the tail is seen when it comes."""
        wanted = 2 * self._workers * BATCH_MAX
        found = list(itertools.islice(self._pass or (), wanted))
        self._found += len(found)
        self._ahead.extend(found)
        if len(found) < wanted:
            self._end()

    def _end(self) -> None:
        self._pass = None
        now_ns = self._system.boottime_ns()
        if self._trouble_s:
            log.warning("%s: is fed again", self._feeding.url)
            self._trouble_s = 0.0
            if self._watch is None:  # the directory was away when it was to be watched
                self._has_watch, self._pass_at_ns = None, now_ns
                return
        for name in list(self._directories - self._named)[: NAMED_MAX - len(self._named)]:
            self._named.add(name)
            log.warning(
                "%s: the directory %s stays in incoming/, it is no message", self._feeding.url, names.shown(name)
            )
        if self._found == 0 and self._others and self._level < LEVELS:
            self._level += 1
            self._pass_at_ns = now_ns
            return
        self._level = 0
        if self._watch is not None:
            is_partial = self._is_cut or self._has_missed
            # What comes from other hosts has no event: there the passes find it, whatever they cost.
            pause_ns = self._poll_ns if self._feeding.is_network else max(IDLE_NS, 10 * (now_ns - self._began_ns))
            self._pass_at_ns = now_ns if is_partial else now_ns + pause_ns
            self._take(0, is_after_pass=True)
        elif self._found:
            self._pauses.restart()
            self._pass_at_ns = now_ns
        else:
            self._pass_at_ns = now_ns + int(self._pauses.next_s() * 1e9)

    # ---- arrivals

    def _wait(self, now_ns: int) -> None:
        # What was fed becomes unknown a second later: the clock of that is looked at meanwhile.
        longest_ns = IDLE_NS // 4 if self._known else IDLE_NS
        timeout_s = min(self._pass_at_ns - now_ns, longest_ns) / 1e9
        if self._watch is None:
            self._system.sleep(timeout_s)
        else:
            self._take(timeout_s, is_after_pass=False)
            if self._ahead and not self._words[Q.PAUSED]:
                self._feed()  # at once: somebody waits for it

    def _take_urgent(self, now_ns: int) -> None:
        """During the pass of a prioritised source: what has arrived is fed before what is less urgent."""
        if self._watch is not None and (self._pass is None or self._relist_ns):  # not while it is to be listed
            self._take(0, is_after_pass=True)
        # RACE: nobody saw it arrive (polling, or more came than the kernel keeps). What is ahead is listed again.
        # See test_an_urgent_message_that_no_watch_sees_is_fed_before_the_backlog.
        has_missed = self._watch is None or self._has_missed
        if self._pass is not None and has_missed and self._relist_ns and now_ns >= self._relist_ns:
            self._pass, self._pass_at_ns = None, now_ns
            self._ahead.clear()
            self._late.clear()

    def _take(self, timeout_s: float, *, is_after_pass: bool) -> None:
        """Feed what arrives. What came during a pass may have been fed by it already."""
        assert self._watch is not None  # noqa: S101 - asked by the callers
        arrived = self._watch.arrivals(timeout_s)
        if arrived is None:
            self._pass_at_ns, self._has_missed = self._system.boottime_ns(), True
            if self._watch.is_polling:
                self._watch, self._has_watch = None, None
            return
        fresh = arrived
        if is_after_pass and arrived:
            ahead = set(self._ahead)
            fresh = [name for name in arrived if name not in ahead and name not in self._known]
        if self._feeding.order == "fifo":
            fresh.sort(key=self._source.key)
        for name in fresh:
            if self._peers > 1 and not self._is_ours(name):
                self._pass_at_ns = min(self._pass_at_ns, self._system.boottime_ns() + OTHERS_NS)
            elif self._source.is_message(name, self._odd):
                self._put_ahead(name)

    def _put_ahead(self, name: str) -> None:
        key, ahead = self._source.key, self._ahead
        if not self._is_prioritised:
            ahead.append(name)
        elif self._pass is None or (ahead and key(name) < key(ahead[-1])):
            ahead.insert(bisect.bisect_right(ahead, key(name), key=key), name)
        elif len(self._late) < PASS_NAMES:
            heapq.heappush(self._late, (key(name), name))
        else:
            self._is_cut = True

    # ---- resting

    def _rest(self, now_ns: int) -> None:
        """Paused: nothing is fed, and what was is forgotten by the workers too."""
        if not self._is_resting:
            self._is_resting = True
            self._forget_pass()
            self._empty_pipe()
        self._words[Q.FED_NS] = now_ns
        self._system.sleep(PAUSED_S)

    def _forget_pass(self) -> None:
        self._pass, self._pass_at_ns, self._level = None, 0, 0
        self._packet = b""
        self._ahead.clear()
        self._late.clear()
        self._known = Known()

    def _empty_pipe(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._system.read(self._feeding.reader, PACKET_SIZE):
                pass


def smallest(found: Iterable[str], count: int, key: Callable[[str], str]) -> tuple[list[str], bool]:
    """The *count* names of *found* that come first by *key*, the first one last; and whether there were more."""
    kept: list[str] = []
    last = None
    for name in found:
        if last is not None and key(name) >= last:
            continue
        kept.append(name)
        if len(kept) > count + count // 4:
            kept.sort(key=key)
            del kept[count:]
            last = key(kept[-1])
    kept.sort(key=key)
    is_cut = last is not None or len(kept) > count
    del kept[count:]
    kept.reverse()
    return kept, is_cut
