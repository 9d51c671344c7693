"""test_feed - names get from one scan to the workers: each once, all of them, in order, and never only as a memory"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.roles import _at_the_pipe
from tests.rig import Rig
from workers.board import Board, Q, W, WorkerState
from workers.queues import feeder as feeding
from workers.queues.feed import PACKET_SIZE, Reader, nudge, open_feed
from workers.queues.feeder import BATCH_MAX, Feeder, Feeding, smallest
from workers.queues.scan import Incoming, Scan
from workers.system import System

SECOND_NS = 1_000_000_000


class Clock(System):
    """A kernel whose time passes by waiting only; a directory can be made of names that no disk holds."""

    def __init__(self) -> None:
        self.now_ns = 1_000 * SECOND_NS
        self.error = 0
        self.on_listed: Callable[[], None] = lambda: None
        self.listed = 0

    def boottime_ns(self) -> int:  # type: ignore[override]
        return self.now_ns

    def sleep(self, seconds: float) -> None:  # type: ignore[override]
        self.now_ns += int(seconds * SECOND_NS)

    def wait_writable(self, fd: int, timeout_s: float) -> None:  # type: ignore[override]
        self.sleep(timeout_s)

    @contextlib.contextmanager
    def scandir(self, path: str) -> Iterator[Iterator[Any]]:  # type: ignore[override]
        if self.error:
            raise OSError(self.error, os.strerror(self.error), path)
        with os.scandir(path) as entries:
            yield self._counted(entries)
        self.on_listed()

    def _counted(self, entries: Iterator[Any]) -> Iterator[Any]:
        for entry in entries:
            self.listed += 1
            yield entry


class Entry:
    """A file that is a name and nothing else."""

    def __init__(self, name: str) -> None:
        self.name = name

    def is_file(self, *, follow_symlinks: bool) -> bool:
        return True


class Many(Clock):
    """A directory of *count* files, in no order. Those fed are counted as claimed by nobody."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    @contextlib.contextmanager
    def scandir(self, path: str) -> Iterator[Iterator[Any]]:  # type: ignore[override]
        yield self._counted(Entry(f"{number * 7919 % self.count:08}") for number in range(self.count))


class Watch:
    """Arrivals that a test makes; None stands for an overflow."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.is_polling = clock, False
        self.come: list[str | None] = []
        self.covered = False

    def is_covered(self) -> bool:
        return self.covered

    def arrivals(self, timeout_s: float) -> list[str] | None:
        come, self.come = self.come, []
        if not come:
            self.clock.sleep(max(timeout_s / 2, 0.001))  # a wait may end early, and has a shortest time
        return None if None in come else [name for name in come if name is not None]


class Bench:
    """One queue of one host: a directory, a pipe, a feeder made afresh by feeder()."""

    def __init__(
        self, place: Path, clock: Clock, *, order: str = "any", workers: int = 2, peers: int = 1, rank: int = 0,
        is_network: bool = False, poll_interval_s: float = 0.1,
    ) -> None:  # fmt: skip
        self.place, self.clock, self.order = place, clock, order
        self.is_network, self.poll_interval_s = is_network, poll_interval_s
        self.board = Board.create()
        self.slot = self.board.take_queue("queue", "spool:/queue")
        self.words = self.board.queues[self.slot].words
        self.words[Q.TARGET], self.words[Q.PEERS], self.words[Q.RANK] = workers, peers, rank
        self.reader, self.writer = open_feed()
        self.watch: Watch | None = None
        self.feeder = self.another_feeder()

    def another_feeder(self) -> Feeder:
        found = Feeding(
            "spool:/queue", Incoming(str(self.place), self.clock), self.order, self.board, self.slot,
            self.reader, self.writer, watch=lambda: self.watch, is_network=self.is_network,
            poll_interval_s=self.poll_interval_s,
        )  # fmt: skip
        return Feeder(found, self.clock)

    def worker(self) -> Reader:
        scan = Scan(Incoming(str(self.place), self.clock), self.order)
        return Reader(self.reader, self.words, scan, self.clock)

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.feeder.step()

    def for_s(self, seconds: float) -> None:
        """Let the feeder go on for so long."""
        end_ns = self.clock.now_ns + int(seconds * SECOND_NS)
        while self.clock.now_ns < end_ns:
            self.feeder.step()

    def packets(self) -> list[list[str]]:
        """What lies in the pipe, read."""
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                found.append(os.fsdecode(os.read(self.reader, PACKET_SIZE)).split("\0"))
        return found

    def fed(self) -> list[str]:
        return [name for packet in self.packets() for name in packet]

    def is_fast(self, claims: int = 100_000, handled_ns: int = 1000) -> None:
        """Show on the board that handling takes so long: the feeder looks twice."""
        words = self.board.worker(self.board.take_worker(self.slot, 0)).words
        self.feeder._look(self.clock.now_ns)
        words[W.CLAIMS] += claims
        words[W.BUSY_NS] += claims * handled_ns
        self.clock.now_ns += SECOND_NS
        self.feeder._look(self.clock.now_ns)

    def take_all(self, readers: list[Reader], count: int) -> list[list[str]]:
        """Let *readers* claim in turn, as the files of a directory are claimed, until *count* are; who took what."""
        taken: list[list[str]] = [[] for _ in readers]
        while sum(map(len, taken)) < count:
            self.feeder.step()
            for mine, reader in zip(taken, readers, strict=True):
                name = reader.next()
                if name is not None:
                    os.unlink(os.fsencode(self.place / name))
                    mine.append(name)
        return taken


@pytest.fixture
def incoming(tmp_path: Path) -> Path:
    (tmp_path / "incoming").mkdir()
    return tmp_path / "incoming"


@pytest.fixture
def bench(incoming: Path) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(clock: Clock | None = None, **more: Any) -> Bench:
        made.append(Bench(incoming, clock or Clock(), **more))
        return made[-1]

    yield make
    for one in made:
        one.feeder._forget_pass()
        os.close(one.reader)
        os.close(one.writer)


def fill(incoming: Path, count: int, start: int = 0) -> list[str]:
    names = [f"{number:06}" for number in range(start, start + count)]
    for name in names:
        (incoming / name).touch()
    return names


# ---- each name once


@pytest.mark.parametrize("order", ["any", "fifo"])
def test_every_name_is_fed_to_exactly_one_worker(bench, incoming, order) -> None:
    """A lost race would be a FileNotFoundError of the unlink."""
    names = fill(incoming, 1000)
    one = bench(order=order)
    taken = one.take_all([one.worker() for _ in range(4)], 1000)
    assert sorted(name for mine in taken for name in mine) == names


def test_one_worker_gets_fifo_in_order(bench, incoming) -> None:
    names = fill(incoming, 500)
    one = bench(order="fifo", workers=1)
    one.is_fast()
    assert one.take_all([one.worker()], 500) == [names]


def test_hostile_names_come_through_the_pipe_as_they_are(bench, incoming) -> None:
    """A line break, bytes that are no UTF-8, and packets of names so long that sixteen do not fit."""
    raw = [b"a\nb", b"\xff\xfe", b"-", *(b"%02d" % number + b"x" * 253 for number in range(40))]
    for name in raw:
        (incoming / os.fsdecode(name)).touch()
    one = bench(workers=1)
    one.is_fast()
    one.steps(20)
    assert sorted(map(os.fsencode, one.fed())) == sorted(raw)


def test_what_is_no_regular_file_is_marked_as_odd(bench, incoming) -> None:
    (incoming / "link").symlink_to("nowhere")
    (incoming / "file").touch()
    (incoming / "directory").mkdir()
    (incoming / ".hidden").touch()
    one = bench()
    one.steps(5)
    worker = one.worker()
    found = {}
    while (name := worker.next()) is not None:
        found[name] = name in worker.odd
    assert found == {"link": True, "file": False}


# ---- how much at once


def test_a_packet_holds_one_name_while_nothing_is_known_of_the_handler(bench, incoming) -> None:
    fill(incoming, 100)
    one = bench()
    one.steps(10)
    assert {len(packet) for packet in one.packets()} == {1}


@pytest.mark.parametrize(("handled_ns", "size"), [(1000, BATCH_MAX), (200_000, 5), (50_000_000, 1)])
def test_a_packet_holds_a_millisecond_of_work(bench, incoming, handled_ns, size) -> None:
    fill(incoming, 500)
    one = bench()
    one.is_fast(handled_ns=handled_ns)
    one.steps(8)
    assert max(len(packet) for packet in one.packets()) == size


def test_near_the_end_a_packet_is_a_small_share_of_what_is_left(bench, incoming) -> None:
    fill(incoming, 64)
    one = bench(workers=4)
    one.is_fast()
    one.steps(100)
    sizes = [len(packet) for packet in one.packets()]
    left = 64
    for size in sizes:
        assert size <= max(1, left // 8)
        left -= size
    assert sizes[-1] == 1


def test_a_full_pipe_holds_the_feeder_back(bench, incoming) -> None:
    fill(incoming, 1000)
    one = bench()
    one.for_s(2)
    assert len(one.packets()) == 16
    assert one.words[Q.FED_NS] > one.clock.now_ns - SECOND_NS


# ---- what is lost is fed again, what is not is not


def test_a_name_that_lies_in_the_pipe_is_not_fed_again(bench, incoming) -> None:
    names = fill(incoming, 5)
    one = bench()
    one.for_s(30)
    assert sorted(one.fed()) == names


def test_the_packet_of_a_killed_reader_is_fed_again_after_a_second(bench, incoming) -> None:
    names = fill(incoming, 3)
    one = bench()
    one.watch = Watch(one.clock)
    one.for_s(0.2)
    assert sorted(one.fed()) == names
    one.for_s(0.5)
    assert one.fed() == []
    one.for_s(2)
    assert sorted(one.fed()) == names


def test_a_name_that_is_put_again_is_soon_fed_where_only_polling_sees_it(bench, incoming) -> None:
    (name,) = fill(incoming, 1)
    one = bench()
    for _ in range(3):
        one.for_s(0.5)
        assert name in one.fed()


def test_names_that_a_worker_forgets_are_fed_again(bench, incoming) -> None:
    names = fill(incoming, 100)
    one = bench()
    one.is_fast()
    one.steps(3)
    worker = one.worker()
    first = worker.next()
    (incoming / first).unlink()
    worker.forget()
    rest = one.take_all([worker], 99)[0]
    assert sorted([first, *rest]) == names


def test_a_feeder_that_follows_another_feeds_what_that_one_left(bench, incoming) -> None:
    names = fill(incoming, 10)
    one = bench()
    one.for_s(0.2)
    one.feeder = one.another_feeder()
    one.for_s(0.2)
    assert sorted(one.fed()) == names


def test_a_worker_scans_for_itself_only_while_the_feeder_is_silent(bench, incoming) -> None:
    fill(incoming, 2)
    one = bench()
    worker = one.worker()
    assert worker.next() is None  # it may just be starting
    one.clock.sleep(3)
    name = worker.next()
    assert name is not None
    (incoming / name).unlink()
    one.words[Q.FED_NS] = one.clock.now_ns
    assert worker.next() is None
    one.for_s(0.2)
    assert worker.next() is not None
    assert worker.next() is None


def test_a_nudge_is_no_name(bench) -> None:
    one = bench()
    one.words[Q.FED_NS] = one.clock.now_ns
    nudge(one.writer, one.clock)
    assert one.worker().next() is None


# ---- a million


@pytest.mark.parametrize("order", ["any", "fifo"])
def test_memory_is_bounded_however_many_wait(bench, order, monkeypatch) -> None:
    monkeypatch.setattr(feeding, "PASS_NAMES", 2000)
    monkeypatch.setattr(feeding, "KNOWN_MAX", 4096)
    one = bench(Many(50_000), order=order)
    one.is_fast()
    fed, largest = 0, 0
    while fed < 30_000:
        one.feeder.step()
        fed += len(one.fed())
        one.clock.sleep(0.0001)
        largest = max(largest, len(one.feeder._ahead))
        assert len(one.feeder._known) <= 4096 + 2 * 16 * BATCH_MAX + 4096
    assert largest <= 4 * one.feeder._workers * BATCH_MAX
    if order == "any":
        assert one.clock.listed <= fed + largest + 16 * BATCH_MAX


def test_the_smallest_of_many_come_in_order_and_the_rest_in_later_passes(bench, incoming, monkeypatch) -> None:
    monkeypatch.setattr(feeding, "PASS_NAMES", 100)
    names = fill(incoming, 450)
    one = bench(order="fifo", workers=1)
    one.watch = Watch(one.clock)
    assert one.take_all([one.worker()], 450) == [names]


def test_smallest_sorts_by_the_message_and_not_by_its_mark() -> None:
    marked = "t1c0-5be0c2d19a440001a31683~x"
    assert smallest([marked, "a", "z"], 2, Incoming.key) == ([marked, "a"], True)
    assert smallest([], 2, Incoming.key) == ([], False)


# ---- arrivals


def test_an_arrival_is_fed_in_a_packet_of_its_own(bench, incoming) -> None:
    one = bench(order="fifo")
    one.watch = Watch(one.clock)
    one.steps(3)
    one.watch.come = fill(incoming, 3)
    one.steps(3)
    assert one.packets() == [["000000"], ["000001"], ["000002"]]


def test_what_arrives_during_a_pass_is_fed_after_it(bench, incoming) -> None:
    """The watch is set before the pass; what the pass saw too is fed once."""
    one = bench()
    one.watch = Watch(one.clock)
    fill(incoming, 1)

    def arrive() -> None:
        (incoming / "late").touch()
        one.watch.come += ["000000", "late"]
        one.clock.on_listed = lambda: None

    one.clock.on_listed = arrive
    one.steps(4)
    assert sorted(one.fed()) == ["000000", "late"]


def test_a_name_that_comes_again_is_fed_again_at_once(bench, incoming) -> None:
    """A producer that always uses one name must not wait until that is forgotten."""
    one = bench()
    one.watch = Watch(one.clock)
    one.for_s(0.1)
    for _ in range(3):
        one.watch.come = fill(incoming, 1)
        one.steps(2)
        assert one.fed() == ["000000"]


def test_an_arrival_that_is_gone_is_not_fed(bench) -> None:
    one = bench()
    one.watch = Watch(one.clock)
    one.for_s(0.1)
    one.watch.come = ["gone", ".ignored"]
    one.for_s(0.1)
    assert one.fed() == []


def test_after_an_overflow_the_directory_is_looked_at(bench, incoming) -> None:
    one = bench()
    one.watch = Watch(one.clock)
    one.for_s(0.1)
    names = fill(incoming, 5)
    one.watch.come = [None]
    one.steps(10)
    assert sorted(one.fed()) == names


@pytest.mark.parametrize("is_network", [False, True])
@pytest.mark.parametrize("interval_s", [0.02, 0.1, 1.0, 30.0])
def test_where_it_is_polled_a_message_is_found_within_the_interval_and_looks_are_few(
    bench, incoming, interval_s, is_network
) -> None:
    """After a rest of a hundred intervals, at each of ten moments within one."""
    one = bench(poll_interval_s=interval_s, is_network=is_network)
    passes = []
    one.clock.on_listed = lambda: passes.append(1)
    one.for_s(100 * interval_s)
    assert len(passes) <= 100 * 2 + 20
    for number in range(10):
        one.for_s(10 * interval_s * (1 + number / 10))
        start_ns = one.clock.now_ns
        (incoming / str(number)).touch()
        while not one.fed():
            one.feeder.step()
        assert one.clock.now_ns - start_ns <= interval_s * SECOND_NS
        (incoming / str(number)).unlink()


def test_hosts_that_saw_one_message_do_not_look_together_ever_after(bench, incoming) -> None:
    """A hundred feeders on one clock: ten intervals later no tenth of an interval has half of the looks."""
    looks = []
    for _ in range(100):
        one = bench(poll_interval_s=1.0, is_network=True)
        one.for_s(10)
        one.clock.on_listed = lambda one=one: looks.append((one.clock.now_ns - 1_000 * SECOND_NS) // (SECOND_NS // 10))
        one.for_s(1)
    assert len(looks) >= 100
    assert max(looks.count(tenth) for tenth in looks) < len(looks) / 2


def test_a_watch_that_sees_no_other_hosts_is_helped_by_a_pass_each_interval(bench, incoming) -> None:
    """At each of ten moments within a second."""
    one = bench(poll_interval_s=0.2, is_network=True)
    one.watch = Watch(one.clock)
    for number in range(10):
        one.for_s(5.1)
        start_ns = one.clock.now_ns
        (incoming / str(number)).touch()  # and no event of it
        while not one.fed():
            one.feeder.step()
        assert one.clock.now_ns - start_ns <= SECOND_NS // 5 + SECOND_NS // 1000
        (incoming / str(number)).unlink()


def test_where_it_is_polled_one_message_is_soon_followed_by_the_look_for_the_next(bench, incoming) -> None:
    """After a rest of a minute, at which a look came but once a second."""
    one = bench(poll_interval_s=1.0, is_network=True)
    one.for_s(60)
    fill(incoming, 1)
    while not one.fed():
        one.feeder.step()
    one.for_s(0.02)
    start_ns = one.clock.now_ns
    (incoming / "next").touch()
    while "next" not in one.fed():
        one.feeder.step()
    assert one.clock.now_ns - start_ns <= SECOND_NS // 20


def test_a_watch_that_a_mount_covers_is_set_anew(bench, incoming) -> None:
    one = bench()
    covered = one.watch = Watch(one.clock)
    one.for_s(1)
    covered.covered = True
    fresh = one.watch = Watch(one.clock)
    one.for_s(2)
    fresh.come, covered.come = fill(incoming, 1), ["000001"]
    one.steps(3)
    assert (one.fed(), covered.come) == (["000000"], ["000001"])


def test_while_nothing_comes_one_pass_a_second_is_made(bench) -> None:
    one = bench()
    one.watch = Watch(one.clock)
    passes = []
    one.clock.on_listed = lambda: passes.append(1)
    one.for_s(10)
    assert len(passes) <= 12


def test_a_packet_whose_reader_was_killed_before_it_read_wakes_another(bench, incoming) -> None:
    (name,) = fill(incoming, 1)
    one = bench()
    words = one.board.worker(one.board.take_worker(one.slot, 0)).words
    words[W.STATE] = WorkerState.IDLE
    one.for_s(0.5)
    assert one.clock.unread(one.reader) == len(name)
    one.for_s(2)
    assert one.packets()[:2] == [[name], ["", ""]]


@pytest.mark.parametrize("order", ["any", "fifo"])
def test_no_more_than_a_few_are_fed_out_of_turn(bench, order) -> None:
    one = bench(Many(20_000), order=order, peers=2)
    one.feeder._look(one.clock.now_ns)
    one.feeder._begin(one.clock.now_ns + 10 * SECOND_NS)
    assert len(list(one.feeder._pass)) == feeding.TURN_NAMES


# ---- pause, trouble


def test_while_paused_nothing_is_fed_and_afterwards_everything_is(bench, incoming) -> None:
    names = fill(incoming, 40)
    one = bench()
    one.steps(5)
    one.words[Q.PAUSED] = 1
    one.for_s(1)
    assert one.fed() == []
    one.words[Q.PAUSED] = 0
    assert sorted(one.take_all([one.worker()], 40)[0]) == names


def test_a_worker_that_may_not_claim_does_not_look_at_the_pipe(bench) -> None:
    one = bench()
    leaving, leave = os.pipe()
    wait = _at_the_pipe(one.reader, one.words)
    one.words[Q.BEAT_NS], one.words[Q.HALF_TIMEOUT_NS] = System().boottime_ns(), 3600 * SECOND_NS
    nudge(one.writer, one.clock)
    assert wait(30, leaving)
    one.words[Q.PAUSED] = 1
    os.write(leave, b"x")
    assert not wait(30, leaving)
    one.words[Q.PAUSED] = 0
    one.packets()
    assert not wait(30, leaving)
    os.close(leaving)
    os.close(leave)


def test_no_error_of_the_filesystem_ends_the_feeder_and_the_log_says_it_once(bench, incoming, caplog) -> None:
    names = fill(incoming, 3)
    one = bench()
    one.clock.error = errno.EIO
    end_ns = one.clock.now_ns + 30 * SECOND_NS
    one.feeder.run(lambda: one.clock.now_ns > end_ns)
    assert caplog.text.count("cannot be fed") == 1
    assert one.clock.now_ns - one.words[Q.FED_NS] < 20 * SECOND_NS
    one.clock.error = 0
    one.for_s(0.1)
    assert sorted(one.fed()) == names
    assert "is fed again" in caplog.text


def test_a_directory_that_was_away_is_watched_when_it_is_back(bench, incoming) -> None:
    one = bench()
    one.clock.error = errno.ENOENT
    end_ns = one.clock.now_ns + 3 * SECOND_NS
    one.feeder.run(lambda: one.clock.now_ns > end_ns)
    one.clock.error, one.watch = 0, Watch(one.clock)
    one.for_s(0.1)
    one.watch.come = fill(incoming, 1)
    one.steps(2)
    assert one.fed() == ["000000"]


def test_a_long_list_is_no_silence(bench) -> None:
    class Slow(Many):
        def _counted(self, entries):
            for entry in super()._counted(entries):
                self.now_ns += 100_000
                yield entry

    one = bench(Slow(100_000), order="fifo")
    one.steps(1)
    seen = set()
    for _ in range(100_000):
        if one.feeder._pass is None or not next(one.feeder._pass, None):
            break
        seen.add(one.words[Q.FED_NS])
    assert one.clock.now_ns - max(seen) < 2 * SECOND_NS


def test_a_directory_in_incoming_is_spoken_of_once(bench, incoming, caplog) -> None:
    caplog.set_level(logging.WARNING)
    (incoming / "folder").mkdir()
    one = bench()
    one.for_s(5)
    assert caplog.text.count("folder stays in incoming/") == 1


# ---- several hosts


def test_two_hosts_race_for_few_names(bench, incoming) -> None:
    """Each feeds its own slice first; names met by both are counted as lost races."""
    fill(incoming, 2000)
    clock = Clock()
    hosts = [bench(clock, peers=2, rank=rank) for rank in (0, 1)]
    workers = [host.worker() for host in hosts]
    done, lost = [0, 0], 0
    while sum(done) < 2000:
        for number, (host, worker) in enumerate(zip(hosts, workers, strict=True)):
            host.feeder.step()
            if (name := worker.next()) is not None:
                try:
                    (incoming / name).unlink()
                    done[number] += 1
                except FileNotFoundError:
                    lost += 1
    assert lost <= 40
    assert min(done) >= 900


def test_a_host_takes_what_another_leaves(bench, incoming) -> None:
    """The other's workers are all held up; its slice is served by us when ours is empty."""
    names = fill(incoming, 300)
    one = bench(peers=3, rank=1)
    assert sorted(one.take_all([one.worker()], 300)[0]) == names


def test_the_slice_of_a_host_that_is_held_up_is_not_forgotten_while_our_own_never_ends(bench, incoming) -> None:
    one = bench(peers=2, rank=0)
    fill(incoming, 40)
    worker, seen, number = one.worker(), set(), 40
    for _ in range(20_000):
        one.feeder.step()
        one.clock.sleep(0.001)
        if (name := worker.next()) is not None:
            seen.add(name)
            with contextlib.suppress(FileNotFoundError):
                (incoming / name).unlink()
            fill(incoming, 1, number)  # our own never ends
            number += 1
        if len(seen & {f"{first:06}" for first in range(40)}) == 40:
            return
    raise AssertionError(f"only {len(seen)} of the first were fed")


def test_the_keeper_says_how_many_masters_there_are_and_which_place_is_ours(rig: Rig) -> None:
    one, two = rig.pool("one"), rig.pool("two")
    for _ in range(2):
        one.rounds()
        two.rounds()
    assert (one.words[Q.PEERS], one.words[Q.RANK]) == (2, 0)
    assert (two.words[Q.PEERS], two.words[Q.RANK]) == (2, 1)
    one.rounds(5)  # the other does not beat any more
    assert (one.words[Q.PEERS], one.words[Q.RANK]) == (1, 0)
