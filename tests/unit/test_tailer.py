"""
test_tailer - FileTailer: each line once and in order, whatever is done to the file

The clock is moved; a look is one interval of it. The file is written by the test itself, between two looks.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers import tailer as module
from workers.components import Daemon, ZenDaemonComponent, ZenDaemonComponentException
from workers.events import EventQueueManager
from workers.saved import load
from workers.tailer import READ_BYTES, FileTailer

INTERVAL_S, LINGER_S = 1.0, 5.0


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Lines(ZenDaemonComponent):
    """Keeps the lines, as bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[bytes] = []
        self.paths: set[str] = set()

    def get_events(self) -> list[dict[str, object]]:
        return [self.gen_event_handler("line", self.cbk_event_line)]

    def cbk_event_line(self, daemon: Daemon, args: Any) -> tuple[int, object]:
        self.found.append(args["line"].encode("utf-8", "surrogateescape"))
        self.paths.add(args["path"])
        return daemon.FLAG_CONTINUE, args


class Place:
    """A directory with a file, and who follows it."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.path = directory, directory / "site.log"
        self.clock = Clock()
        self.lines = Lines()
        self.daemons: list[Daemon] = []
        self.options: dict[str, Any] = {}

    def tailer(self, **options: Any) -> FileTailer:
        self.options = {"interval_s": INTERVAL_S, "linger_s": LINGER_S, **options}
        tailer = FileTailer(str(self.path), **self.options)
        tailer.clock = self.clock  # type: ignore[method-assign] # a clock moved by hand
        return tailer

    def follow(self, **options: Any) -> FileTailer:
        """Begin to follow; the first look is done."""
        tailer = self.tailer(**options)
        daemon = Daemon([tailer, self.lines], stats_interval_s=0, queue=EventQueueManager(self.clock, self.clock))
        self.daemons.append(daemon)
        daemon.setup()
        daemon.turn(lambda: False)
        return tailer

    def look(self, seconds: float = INTERVAL_S) -> list[bytes]:
        """Let time pass, and everything be handled; the lines that came."""
        before = len(self.lines.found)
        for _ in range(int(seconds / INTERVAL_S)):
            self.clock.now_s += INTERVAL_S
            self.daemons[-1].turn(lambda: False)
        return self.lines.found[before:]

    def stop(self) -> None:
        self.daemons[-1].queue.schedule_next("stop")
        self.daemons[-1].turn(lambda: False)

    def add(self, text: bytes, path: Path | None = None) -> None:
        with open(path or self.path, "ab") as file:
            file.write(text)

    def rotate(self, number: int = 1) -> Path:
        old = self.directory / f"site.log.{number}"
        self.path.rename(old)
        self.path.touch()
        return old


@pytest.fixture(name="place")
def _place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    for daemon in place.daemons:
        for component in daemon.components:
            if isinstance(component, FileTailer):
                component.cbk_event_end(daemon, None)


# ---- lines


def test_what_is_there_is_passed_over_and_what_comes_is_an_event_each(place: Place) -> None:
    place.add(b"old\n")
    place.follow()
    place.add(b"one\ntwo\n\n")
    assert place.look() == [b"one", b"two", b""]
    assert place.look() == []
    assert place.lines.paths == {str(place.path)}


def test_from_beginning_takes_what_is_there(place: Place) -> None:
    place.add(b"old\n")
    place.follow(from_beginning=True)
    assert place.lines.found == [b"old"]


def test_a_line_that_is_half_written_at_the_start_is_an_event_when_it_is_whole(place: Place) -> None:
    place.add(b"old\nha")
    place.follow()
    assert place.look() == []
    place.add(b"lf\n")
    assert place.look() == [b"half"]


def test_only_a_whole_line_is_an_event(place: Place) -> None:
    place.follow()
    for piece in (b"a", b"b", b"", b"c"):
        place.add(piece)
        assert place.look() == []
    place.add(b"\nd")
    assert place.look() == [b"abc"]


def test_a_file_that_is_not_there_yet_is_read_from_its_beginning(place: Place) -> None:
    shutil.rmtree(place.directory)
    place.follow()
    assert place.look() == []
    place.directory.mkdir()
    assert place.look() == []
    place.add(b"first\n")
    assert place.look() == [b"first"]


def test_bytes_that_are_no_text_come_through(place: Place) -> None:
    place.follow()
    place.add(b"\xff\xfe\x00 caf\xc3\xa9 \r\n\xed\xa0\x80\n")
    assert place.look() == [b"\xff\xfe\x00 caf\xc3\xa9 \r", b"\xed\xa0\x80"]


@pytest.mark.parametrize("size", [101, READ_BYTES, 20 * READ_BYTES])
def test_a_line_that_is_too_long_is_cut_with_a_mark_and_never_kept_whole(place: Place, size: int) -> None:
    tailer = place.follow(line_bytes_max=100)
    place.add(b"before\n" + b"x" * size)
    place.look()
    assert len(tailer._files[0].part) == 100
    place.add(b"\nafter\n")
    place.look()
    assert place.lines.found == [b"before", b"x" * 100 + b" [cut: %d bytes]" % size, b"after"]
    assert tailer.statistics_cur["cnt_cut"] == 1


def test_a_line_as_long_as_may_be_is_not_cut(place: Place) -> None:
    place.follow(line_bytes_max=100)
    place.add(b"x" * 100 + b"\n")
    assert place.look() == [b"x" * 100]


def test_no_more_lines_wait_than_one_reading_gave(place: Place) -> None:
    """Looks come due while lines wait: they must not add to them."""
    place.add(b"%099d\n" % 0 * (3 * READ_BYTES // 100))
    tailer = place.tailer(from_beginning=True)
    daemon = Daemon([tailer, place.lines], stats_interval_s=0, queue=EventQueueManager(place.clock, place.clock))
    place.daemons.append(daemon)
    daemon.setup()
    longest = 0
    while daemon.queue.waiting():
        place.clock.now_s += INTERVAL_S
        daemon.turn()
        longest = max(longest, len(daemon.queue.waiting()))
    assert len(place.lines.found) == 3 * READ_BYTES // 100
    assert longest <= READ_BYTES // 100 + 2


def test_two_follow_in_one_daemon_each_with_its_event(place: Place) -> None:
    other = place.directory / "other.log"

    class Others(Lines):
        def get_events(self) -> list[dict[str, object]]:
            return [self.gen_event_handler("other", self.cbk_event_line)]

    others = Others()
    tailers = [place.tailer(), FileTailer(str(other), "other", interval_s=INTERVAL_S)]
    queue = EventQueueManager(place.clock, place.clock)
    daemon = Daemon([*tailers, place.lines, others], stats_interval_s=0, queue=queue)
    place.daemons.append(daemon)
    daemon.setup()
    daemon.turn(lambda: False)
    place.add(b"one\n")
    place.add(b"two\n", other)
    place.look()
    assert (place.lines.found, others.found) == ([b"one"], [b"two"])


def test_following_is_no_work_that_is_left(place: Place) -> None:
    place.follow()
    assert not place.daemons[-1].is_busy()


# ---- rotation


def test_a_renamed_file_is_read_to_its_end_before_the_new_one(place: Place) -> None:
    place.path.touch()
    tailer = place.follow()
    place.add(b"one\n")
    old = place.rotate()
    place.add(b"three\n")
    assert place.look() == [b"one"]
    place.add(b"two\n", old)
    assert place.look() == [b"two"]
    assert place.look(LINGER_S) == [b"three"]
    assert tailer.statistics_cur["cnt_rotated"] == 1
    place.add(b"four\n")
    assert place.look() == [b"four"]


def test_the_last_line_of_a_file_that_is_over_counts_as_whole(place: Place) -> None:
    place.path.touch()
    place.follow()
    place.add(b"one\nno newline")
    place.rotate()
    place.add(b"two\n")
    assert place.look(2 * LINGER_S) == [b"one", b"no newline", b"two"]


def test_files_renamed_one_after_the_other_are_all_read(place: Place) -> None:
    place.follow()
    for number in range(2 * module.FILES_MAX):
        place.add(b"%d\n" % number)
        place.look()
        place.rotate(number)
        if number % module.FILES_MAX == module.FILES_MAX - 2:
            place.look(2 * LINGER_S)
    place.look(3 * LINGER_S)
    assert place.lines.found == [b"%d" % number for number in range(2 * module.FILES_MAX)]


def test_no_more_files_are_open_than_that(place: Place) -> None:
    place.path.touch()
    tailer = place.follow()
    for number in range(2 * module.FILES_MAX):
        place.rotate(number)
        place.daemons[-1].emit(tailer._read)
    assert len(tailer._files) == module.FILES_MAX


def test_a_file_that_is_removed_and_made_again_is_read_from_its_beginning(place: Place) -> None:
    place.path.touch()
    place.follow()
    place.add(b"one\n")
    place.path.unlink()
    assert place.look(2 * LINGER_S) == [b"one"]
    place.add(b"two\n")
    assert place.look(LINGER_S)[-1:] == [b"two"]


def test_a_file_that_gets_its_name_back_is_not_read_twice(place: Place) -> None:
    place.follow()
    place.add(b"one\n")
    place.look()
    away = place.path.rename(place.directory / "away")
    assert place.look(2 * LINGER_S) == []
    away.rename(place.path)
    place.add(b"two\n")
    assert place.look(2 * LINGER_S) == [b"two"]


def test_a_symbolic_link_that_is_pointed_elsewhere_is_a_rotation(place: Place) -> None:
    first, second = place.directory / "first", place.directory / "second"
    first.touch()
    place.path.symlink_to(first)
    place.follow()
    place.add(b"one\n")
    place.path.unlink()
    place.path.symlink_to(second)
    place.add(b"two\n")
    assert place.look(2 * LINGER_S) == [b"one", b"two"]


def test_a_file_that_is_copied_and_truncated_is_read_from_its_beginning(place: Place) -> None:
    tailer = place.follow()
    place.add(b"one\nhalf")
    place.look()
    os.truncate(place.path, 0)
    place.add(b"two\n")
    assert place.look() == [b"half", b"two"]
    assert tailer.statistics_cur["cnt_truncated"] == 1


def test_a_file_that_has_outgrown_the_one_before_is_found_by_its_first_bytes(place: Place) -> None:
    place.follow()
    place.add(b"one\n")
    place.look()
    os.truncate(place.path, 0)
    place.add(b"another, which is longer\n")
    assert place.look() == [b"another, which is longer"]


# ---- what cannot be followed


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the address of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(path.name)
    finally:
        os.chdir(here)


def make_device(path: Path) -> None:
    path.symlink_to("/dev/null")


@pytest.mark.parametrize(
    ("kind", "make"), [("fifo", make_fifo), ("directory", os.mkdir), ("socket", make_socket), ("device", make_device)]
)
def test_what_is_no_regular_file_is_refused_with_what_it_is(place: Place, kind: str, make: Any) -> None:
    make(place.path)
    with pytest.raises(ZenDaemonComponentException, match=rf"site.log.*{kind}"):
        place.follow()


def test_what_is_no_regular_file_is_refused_even_when_it_came_in_between(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is looked at, replaced by a fifo that nobody writes to, and then opened."""
    place.path.touch()
    check = module._check_regular

    def replaced(found: os.stat_result) -> None:
        check(found)
        place.path.unlink()
        os.mkfifo(place.path)
        monkeypatch.setattr(module, "_check_regular", check)

    monkeypatch.setattr(module, "_check_regular", replaced)
    with pytest.raises(ZenDaemonComponentException, match="fifo"):
        place.follow()


def test_a_fifo_that_comes_later_is_named_once_and_looked_at_again(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    place.follow()
    os.mkfifo(place.path)
    place.look(5)
    assert [record.getMessage() for record in caplog.records if "fifo" in record.getMessage()] == [
        f"{place.path}: it is a fifo, and only a regular file can be followed; trying again"
    ]
    place.path.unlink()
    place.add(b"one\n")
    assert place.look() == [b"one"]


def test_an_old_file_is_read_on_when_something_else_has_its_name(place: Place) -> None:
    place.path.touch()
    place.follow()
    place.look()
    old = place.path.rename(place.directory / "old")
    place.path.mkdir()
    place.add(b"one\n", old)
    assert place.look() == [b"one"]


@pytest.mark.parametrize("wrong", [{"interval_s": 0}, {"line_bytes_max": 0}])
def test_numbers_that_make_no_sense_are_refused(place: Place, wrong: dict[str, Any]) -> None:
    with pytest.raises(ZenDaemonComponentException):
        place.tailer(**wrong)


# ---- the position


@pytest.fixture(name="position")
def _position(tmp_path: Path) -> str:
    return str(tmp_path / "position")


def test_the_next_start_goes_on_where_this_one_stopped(place: Place, position: str) -> None:
    place.follow(position_file=position)
    place.add(b"one\nha")
    place.look()
    place.stop()
    place.add(b"lf\ntwo\n")
    place.follow(position_file=position)
    assert place.lines.found == [b"one", b"half", b"two"]


def test_a_stop_remembers_no_line_that_still_waits(place: Place, position: str) -> None:
    """The stop comes before the lines in line; then there is a crash."""
    place.follow(position_file=position, from_beginning=True)
    place.add(b"one\ntwo\n")
    place.clock.now_s += INTERVAL_S
    daemon = place.daemons[-1]
    daemon.turn(lambda: any(event == "line" for event, _ in daemon.queue.waiting()))
    daemon.queue.schedule_next("stop")
    daemon.turn(daemon.is_done)
    assert place.lines.found == []
    place.follow(position_file=position, from_beginning=True)
    assert place.lines.found == [b"one", b"two"]


def test_a_line_is_handled_again_after_a_crash_rather_than_never(place: Place, position: str) -> None:
    """At each event in between the daemon is thrown away, and the next one begins."""
    for after in range(12):
        place = Place(Path(tempfile.mkdtemp(dir=place.directory)))
        position = str(place.directory / "position")
        place.follow(position_file=position, from_beginning=True)
        place.look()
        place.add(b"one\ntwo\n")
        place.look()
        place.add(b"three\nfour\n")
        place.clock.now_s += INTERVAL_S
        for _ in range(after):
            place.daemons[-1]._handle_next()
        place.follow(position_file=position)
        place.add(b"five\n")
        place.look()
        assert re.sub(rb"(three (four )?)+", b"three four ", b" ".join(place.lines.found)) in (
            b"one two three four five",
            b"one two one two three four five",
        ), after
        for daemon in place.daemons:
            daemon.components[0].cbk_event_end(daemon, None)  # type: ignore[attr-defined] # it is a FileTailer


class Chain(ZenDaemonComponent):
    """What a line is worth is known five events later."""

    def __init__(self, is_away: bool = False) -> None:
        super().__init__()
        self.is_away = is_away
        self.done: list[str] = []

    def get_events(self) -> list[dict[str, object]]:
        return [self.gen_event_handler(event, self.cbk_event_step) for event in ("line", "step")]

    def cbk_event_step(self, daemon: Daemon, args: Any) -> tuple[int, object]:
        if (depth := args.get("depth", 0)) < 5:
            daemon.queue.schedule("step", {**args, "depth": depth + 1})
        elif self.is_away:
            daemon.queue.put_off("step", args)
        else:
            self.done.append(args["line"])
        return daemon.FLAG_CONTINUE, args


def test_no_position_is_saved_before_all_that_its_lines_led_to_was_handled(place: Place, position: str) -> None:
    """A look at the position after each event, behind which there may be a crash."""
    positions = []
    place.add(b"%09d\n" * 9 % tuple(range(9)))
    for after in range(90):
        chain = Chain()
        tailer = place.tailer(position_file=position, from_beginning=True)
        daemon = Daemon([tailer, chain], stats_interval_s=0, queue=EventQueueManager(place.clock, place.clock))
        place.daemons.append(daemon)
        daemon.setup()
        for _ in range(after):
            daemon._handle_next()
        saved = tailer._loaded()
        positions.append(saved[1] if saved else 0)
        assert positions[-1] == 0 or len(chain.done) == 9, after
        Path(position).unlink(missing_ok=True)
    assert positions[-1] == 90


def test_what_is_put_off_keeps_the_position_and_further_lines_back(place: Place, position: str) -> None:
    chain = Chain(is_away=True)
    place.add(b"one\n")
    tailer = place.tailer(position_file=position, from_beginning=True)
    daemon = Daemon([tailer, chain], stats_interval_s=0, queue=EventQueueManager(place.clock, place.clock))
    place.daemons.append(daemon)
    daemon.setup()
    daemon.turn(lambda: False)
    place.add(b"two\n")
    place.clock.now_s += INTERVAL_S
    daemon.turn(lambda: False)
    daemon.stop()
    daemon.turn(lambda: False)
    saved = tailer._loaded()
    assert saved is not None
    assert saved[1] == 0
    chain.is_away = False
    daemon.queue.take_up()
    daemon.turn(lambda: False)
    assert chain.done == ["one"]
    saved = tailer._loaded()
    assert saved is not None
    assert saved[1] == 4


def test_a_file_that_was_renamed_while_nobody_followed_is_read_on(place: Place, position: str) -> None:
    place.follow(position_file=position)
    place.add(b"one\n")
    place.look()
    place.stop()
    place.add(b"two\n")
    place.rotate()
    place.add(b"three\n")
    place.follow(position_file=position)
    place.look(2 * LINGER_S)
    assert place.lines.found == [b"one", b"two", b"three"]


def test_a_file_that_is_nowhere_is_named_and_the_new_one_is_read(
    place: Place, position: str, caplog: pytest.LogCaptureFixture
) -> None:
    place.follow(position_file=position)
    place.add(b"one\n")
    place.look()
    place.stop()
    shutil.copy(place.path, place.directory / "holds the inode")
    place.rotate().rename(place.directory / "archived")
    place.add(b"two\n")
    place.follow(position_file=position)
    assert place.lines.found == [b"one", b"two"]
    assert "site.log was replaced, and the file before is nowhere beside it" in caplog.text


def test_a_file_of_the_same_inode_that_was_written_anew_is_read_from_its_beginning(place: Place, position: str) -> None:
    place.follow(position_file=position)
    place.add(b"one\n")
    place.look()
    place.stop()
    os.truncate(place.path, 0)
    place.add(b"another\n")
    place.follow(position_file=position)
    assert place.lines.found == [b"one", b"another"]


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"path": "elsewhere", "inode": 1, "offset": 0, "head": ""}'],
)
def test_a_position_that_cannot_be_believed_is_refused_with_its_place(
    place: Place, position: str, content: str
) -> None:
    Path(position).write_text(content)
    place.path.touch()
    with pytest.raises(ZenDaemonComponentException, match=r"position.*remove it"):
        place.follow(position_file=position)


@pytest.mark.parametrize("change", [{"offset": -1}, {"offset": "1"}, {"head": "xy"}, {"inode": None}])
def test_a_position_with_one_wrong_value_is_refused(place: Place, position: str, change: dict[str, Any]) -> None:
    right = {"path": str(place.path), "inode": 1, "offset": 0, "head": ""}
    module.save(Path(position), right)
    place.tailer(position_file=position)._loaded()
    module.save(Path(position), right | change)
    with pytest.raises(ZenDaemonComponentException, match="remove it"):
        place.follow(position_file=position)


def test_lines_go_on_while_the_position_cannot_be_written(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    directory = place.directory / "away"
    place.follow(position_file=str(directory / "position"))
    for number in range(3):
        place.add(b"%d\n" % number)
        assert place.look() == [b"%d" % number]
    assert len([record for record in caplog.records if "cannot write" in record.getMessage()]) == 1
    directory.mkdir()
    place.add(b"more\n")
    place.look(2)
    assert load(directory / "position")["offset"] == 11


def test_a_stop_leaves_what_is_not_read_for_the_next_start(place: Place, position: str) -> None:
    place.follow(position_file=position, from_beginning=True)
    place.look()
    place.add(b"%099d\n" % 0 * (4 * READ_BYTES // 100))
    place.clock.now_s += INTERVAL_S
    daemon = place.daemons[-1]
    daemon.turn(lambda: len(place.lines.found) > 10)
    place.stop()
    handled = len(place.lines.found)
    assert handled <= 2 * READ_BYTES // 100
    assert not daemon.is_busy()
    place.follow(position_file=position)
    assert len(place.lines.found) == 4 * READ_BYTES // 100


def test_the_end_gives_its_descriptors_back(place: Place) -> None:
    place.path.touch()
    before = os.listdir("/proc/self/fd")
    place.follow()
    place.rotate()
    place.look()
    assert len(os.listdir("/proc/self/fd")) == len(before) + 2
    place.stop()
    assert len(os.listdir("/proc/self/fd")) == len(before)


# ---- everything at once

PIECE = st.binary(max_size=12) | st.lists(st.sampled_from([b"a", b"\n", b"bc\n"]), max_size=6).map(b"".join)
STEP = st.one_of(
    st.tuples(st.just("write"), PIECE),
    st.tuples(st.just("late"), PIECE),
    st.tuples(st.sampled_from(["look", "rotate", "truncate", "restart"]), st.just(b"")),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(STEP, max_size=25))
def test_each_line_comes_once_and_in_order_whatever_is_done_to_the_file(steps: list[tuple[str, bytes]]) -> None:
    """
    Against the contents of all files there were, one after the other.

    Nothing is written that a rotation would lose: a look is between two rotations, before a truncation, and what is
    written late comes before LINGER_S have passed.
    """
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as ends:
        place = Place(Path(directory))
        position = str(place.directory / "position")
        contents, number = [b""], 0
        files: list[IO[bytes]] = [ends.enter_context(open(place.path, "ab", buffering=0))]
        place.follow(position_file=position, from_beginning=True)
        for what, piece in steps:
            if what == "write":
                files[-1].write(piece)
                contents[-1] += piece
            elif what == "late" and len(files) > 1:
                files[-2].write(piece)
                contents[-2] += piece
            elif what == "rotate":
                place.look(2 * LINGER_S)
                number += 1
                place.rotate(number)
                place.look()
                files.append(ends.enter_context(open(place.path, "ab", buffering=0)))
                contents.append(b"")
            elif what == "look":
                place.look(1)
            elif what == "truncate":
                place.look(2 * LINGER_S)
                os.truncate(place.path, 0)
                place.look()
                del files[:-1]
                contents.append(b"")
            elif what == "restart":
                place.look(2 * LINGER_S)
                place.stop()
                place.follow(position_file=position)
                del files[:-1]
        place.look(4 * LINGER_S)
        place.stop()
    expected = [line for content in contents[:-1] for line in content.removesuffix(b"\n").split(b"\n") if content]
    assert place.lines.found == expected + contents[-1].split(b"\n")[:-1]
