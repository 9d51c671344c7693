"""
test_bench - the bench measures what it says, in real processes, and says when it is not to be believed
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from orchestrator.bench import BenchError, bare, peers
from orchestrator.bench.calls import between_marks, calls_of, per_message
from orchestrator.bench.crew import Gate, Run, run_together
from orchestrator.bench.filesystem import Filesystem, filesystem
from orchestrator.bench.measure import Figure
from orchestrator.bench.ours import Library
from orchestrator.bench.picture import picture
from orchestrator.bench.pool import Pool
from orchestrator.bench.rounds import Rounds, label
from orchestrator.bench.subject import Load, Looped, Subject, Verb
from orchestrator.bench.targets import TARGETS, aims, verdict
from orchestrator.cli.bench import warnings_of

EXT4 = "25 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
TMPFS = Filesystem("tmpfs", "tmpfs", None)
SVG = "{http://www.w3.org/2000/svg}"


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "orchestrator", "bench", *words],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=300,
        check=False,
    )


def rate(what: str, *values: float, suite: str = "throughput", **more: float) -> Figure:
    return Figure(suite, what, "messages/s", list(values), more=more)


def measured(subject: Subject, place: Path, messages: int, count: int, seconds_max: float = 0.5) -> dict[Verb, int]:
    """Put and take once; how many messages each of them handled."""
    load = Load(messages, b"x" * 16, seconds_max=seconds_max)
    with subject.opened(place):
        put = subject.put(place, load, count)
        take = subject.take(place, replace(load, messages=put.handled), count)
    assert put.seconds > 0
    assert take.seconds > 0
    return {"put": put.handled, "take": take.handled}


def parsed(svg: str) -> ET.Element:
    return ET.fromstring(svg)  # noqa: S314 - we wrote it ourselves


# ---- the command


def test_a_small_bench_measures_ours_and_the_bare_loop_and_leaves_nothing(tmp_path: Path) -> None:
    done = run(
        "--messages", "51", "--rounds", "2", "--size", "0", "--json", "--peer", "none", "--no-calls",
        "--directory", str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    figures = {one["what"]: one for one in found["figures"]}
    for name in ("bare", "split", "library"):
        for verb in ("put", "take"):
            assert figures[f"{name} {verb}, 2"]["value"] > 0
    for one in figures.values():
        assert one["suite"] == "throughput"
        if one["ratio"] is not None:
            assert 0 < one["ratio_min"] <= one["ratio"] <= one["ratio_max"]
    assert figures["bare take, 1"]["ratio"] is None
    assert figures["library take, 1"]["messages"] == 51
    assert {one["what"] for one in found["targets"]} == {
        "pool take, 1 / bare take, 1", "pool take, 2 / split take, 2",
    }  # fmt: skip
    assert {one["verdict"] for one in found["targets"]} <= {"too few rounds", "disagree"}
    assert os.listdir(tmp_path) == [], "nothing is left behind"


def test_the_table_the_picture_and_the_progress_are_shown(tmp_path: Path) -> None:
    svg = tmp_path / "drawn.svg"
    done = run(
        "--messages", "1000", "--rounds", "1", "--suite", "throughput,workers,backlog", "--workers", "1,2",
        "--backlog", "1000,2000", "--peer", "none", "--no-calls", "--picture", str(svg), "--directory", str(tmp_path),
    )  # fmt: skip
    # On a busy machine so few may be through before all workers have begun: it is said, and the rest is shown.
    is_left_out = "messages are too few for a pool" in done.stderr
    assert done.returncode == is_left_out, done.stderr
    assert is_left_out or "pool take, 2000 waiting" in done.stdout
    for words in (
        "bare put, 1",
        "split take, 2",
        "ratio",
        "CPU",
        "1000 messages of 1024 bytes",
    ):
        assert words in done.stdout, words
    for words in ("throughput: round 1 of 1", "workers: round 1 of 1", "backlog: round 1 of 1"):
        assert words in done.stderr
    assert parsed(svg.read_text()).tag == f"{SVG}svg"
    assert os.listdir(tmp_path) == ["drawn.svg"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--suite", "speed"), "the suites are"),
        (("--workers", "1,0"), "'0'"),
        (("--backlog", "many"), "'many'"),
        (("--peer", "postgres"), "'postgres'"),
    ],
)
def test_a_word_that_is_not_known_is_refused(words: tuple[str, ...], said: str) -> None:
    done = run(*words)
    assert done.returncode == 2
    assert said in done.stderr


# ---- subjects


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(
    "make", [bare.Bare, lambda: bare.Bare(is_split=True), Library], ids=["bare", "split", "library"]
)
def test_every_message_is_put_and_taken_once(make: Callable[[], Subject], count: int, tmp_path: Path) -> None:
    assert measured(make(), tmp_path / "place", 101, count) == {"put": 101, "take": 101}


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("is_split", [False, True])
def test_the_loop_in_c_puts_and_takes_the_same(is_split: bool, count: int, tmp_path: Path) -> None:
    program = bare.compiled(tmp_path)
    if not isinstance(program, Path):
        pytest.skip(program)
    subject = bare.C(program, is_split=is_split)
    assert measured(subject, tmp_path / "place", 101, count) == {"put": 101, "take": 101}


def test_a_pool_is_measured_between_its_start_and_its_end(tmp_path: Path) -> None:
    place, load = tmp_path / "place", Load(20_000, b"x")
    subject = Pool()
    with subject.opened(place):
        put = subject.put(place, load, 1)
        found = subject.take(place, replace(load, messages=put.handled), 1)
    assert 0 < found.handled <= 0.95 * put.handled + 1000, "neither the start nor the end counts"
    assert found.first_s > 0
    assert found.cpu_s is not None
    assert found.cpu_s > 0


@pytest.mark.parametrize("name", peers.names())
@pytest.mark.parametrize("count", [1, 2])
def test_a_peer_that_is_installed_hands_out_what_it_was_given(name: str, count: int, tmp_path: Path) -> None:
    found, missing = peers.installed(name)
    if missing:
        pytest.skip(missing[name])
    handled = measured(found[0], tmp_path / "place", 30, count, seconds_max=10.0)
    assert handled["put"] == 30
    if count == 1:
        assert handled["take"] == 30
    else:
        assert handled["take"] > 0, "with several processes some hand out too much, or lose a part"


def test_a_peer_that_is_not_installed_is_named_with_its_package() -> None:
    class Missing(peers.DirqSimple):
        module = "no_such_module.at_all"

    reason = Missing().missing()
    assert reason == "the Python package dirq is not installed"
    assert peers.installed("none") == ([], {})


def test_a_process_that_dies_before_the_gate_is_not_waited_for() -> None:
    """The others wait at the gate then; they must not hold the measurement up for ever."""

    def role(index: int, gate: Gate) -> None:
        if index == 1:
            os._exit(3)
        gate.pass_()
        gate.finish(1)

    with pytest.raises(BenchError, match="ended too early"):
        run_together(3, role)


# ---- rounds


class Fake(Looped):
    """Puts into nothing and takes out of it; fails when told to."""

    def __init__(self, name: str, trail: list[str], fails: bool = False) -> None:
        self.name, self._trail, self._fails = name, trail, fails

    def producer(self, place: Path) -> Callable[[bytes], object]:
        return lambda body: body

    def consumer(self, place: Path) -> Iterator[bool]:
        return iter([True] * 10)

    def put(self, place: Path, load: Load, count: int) -> Run:
        self._trail.append(f"{self.name}{count}")
        if self._fails:
            raise BenchError("it cannot")
        return super().put(place, load, count)


def test_rounds_take_turns_and_every_figure_has_the_bare_loop_of_its_round_for_a_base(tmp_path: Path) -> None:
    trail: list[str] = []
    subjects = [Fake("bare", trail), Fake("other", trail)]
    heard: list[tuple[str, int]] = []
    rounds = Rounds(tmp_path, 2, lambda suite, number: heard.append((suite, number)))
    figures = {one.what: one for one in rounds.throughput(subjects, Load(10))}
    assert trail[:4] == ["bare1", "other1", "bare2", "other2"]
    assert trail[4:] == ["bare2", "other2", "bare1", "other1"], "who was first comes later in the next round"
    assert figures["other take, 2"].base == figures["bare take, 2"].values
    assert figures["bare take, 2"].base == []
    assert heard == [("throughput", 1), ("throughput", 2)]
    assert os.listdir(tmp_path) == []


def test_who_fails_is_left_out_and_it_is_said_why(tmp_path: Path) -> None:
    trail: list[str] = []
    rounds = Rounds(tmp_path, 2, lambda suite, number: None)
    figures = rounds.workers([Fake("bare", trail), Fake("bad", trail, fails=True)], Load(10), [1])
    assert {one.what for one in figures} == {"bare take, 1"}
    assert rounds.failed == {"bad": "it cannot"}
    assert trail.count("bad1") == 1, "it is not tried again"


def test_without_the_bare_loop_there_is_no_bench(tmp_path: Path) -> None:
    rounds = Rounds(tmp_path, 2, lambda suite, number: None)
    with pytest.raises(BenchError, match="it cannot"):
        rounds.workers([Fake("bare", [], fails=True)], Load(10), [1])


# ---- figures and verdicts


def test_the_ratio_is_the_median_and_the_spread_is_told() -> None:
    figure = Figure("throughput", "x", "messages/s", [40.0, 50.0, 90.0], [100.0, 100.0, 100.0])
    assert (figure.ratio, figure.value) == (0.5, 50.0)
    assert figure.spread == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("values", "target", "is_at_most", "word"),
    [
        ([1.0, 1.0, 1.1], 1.0, False, "met"),
        ([0.9, 0.9, 1.1], 1.0, False, "missed"),
        ([0.9, 0.9, 1.0], 1.0, True, "met"),
        ([1.1, 1.1, 1.1], 1.0, True, "missed"),
        ([0.9, 1.5, 2.0], 1.0, False, "disagree"),
        ([0.1, 0.5, 0.9], 1.0, True, "met"),
        ([0.1, 0.5, 1.1], 1.0, True, "disagree"),
        ([1.5, 1.5], 1.0, False, "too few rounds"),
        ([1.5, 1.5, 1.5], None, False, ""),
    ],
)
def test_a_verdict_is_given_only_where_the_rounds_agree(
    values: list[float], target: float | None, is_at_most: bool, word: str
) -> None:
    assert verdict(Figure("life", "x", "s", values, target=target, is_at_most=is_at_most)) == word


def test_a_target_compares_two_figures_of_one_run() -> None:
    figures = [rate(label("pool", "take", 1), 78.0, 77.0, 79.0), rate(label("bare", "take", 1), 100.0, 100.0, 100.0)]
    on_tmpfs, elsewhere = aims(figures, "tmpfs"), aims(figures, "ext4")
    assert [(one.ratio, one.target, verdict(one)) for one in on_tmpfs] == [(0.78, 0.75, "met")]
    assert [(one.ratio, one.target, verdict(one)) for one in elsewhere] == [(0.78, 0.80, "missed")]
    assert aims(figures[:1], "tmpfs") == [], "without its base there is no target"


def test_a_figure_that_brings_its_target_is_among_the_targets() -> None:
    figure = Figure("life", "a new worker is ready", "s", [0.02, 0.02, 0.021], target=0.03, is_at_most=True)
    assert aims([figure], "ext4") == [figure]


def test_the_growth_with_backlog_is_of_time_and_of_memory() -> None:
    def backlog(count: int, per_second: float, kib: float) -> list[Figure]:
        what = f"pool take, {count} waiting"
        memory = Figure("backlog", f"{what}, memory", "KiB", [kib] * 3)
        return [rate(what, *[per_second] * 3, suite="backlog", backlog=count), memory]

    time, memory = aims([*backlog(10_000, 100.0, 900.0), *backlog(1_000_000, 80.0, 2900.0)], "tmpfs")
    assert time.ratio == pytest.approx(1.25)
    assert verdict(time) == "missed"
    assert memory.value == 2000.0
    assert verdict(memory) == "missed"


def test_every_target_is_of_figures_that_a_suite_gives(tmp_path: Path) -> None:
    """A name that is spelt otherwise would never be compared, and nobody would notice."""
    counts = {"throughput": (1, 2), "workers": (2, 32)}
    known = {
        (suite, label(name, "take", count))
        for suite, numbers in counts.items()
        for count in numbers
        for name in ("bare", "split", "pool", *peers.names())
    } | {("workers", f"{label('pool', 'take', 32)}, lost")}
    for target in TARGETS:
        assert (target.suite, target.what) in known
        assert not target.base or (target.suite, target.base) in known


# ---- calls


def test_calls_are_counted_between_the_marks_of_who_set_them() -> None:
    log = """
10 openat(AT_FDCWD, "x") = 3
11 access("/orchestrator-bench/begin", F_OK) = -1 ENOENT
11 rename("a", "b") = 0
12 clock_nanosleep(CLOCK_REALTIME, 0) = 0
11 rename("c", "d" <unfinished ...>
11 <... rename resumed>) = 0
11 access("/orchestrator-bench/end", F_OK) = -1 ENOENT
11 write(4, "f", 1) = 1
13 access("/orchestrator-bench/begin", F_OK) = -1 ENOENT
13 unlink("b") = 0
13 access("/orchestrator-bench/end", F_OK) = -1 ENOENT
"""
    assert between_marks(log, 2) == {"put": {"rename": 1.0}, "take": {"unlink": 0.5}}
    assert between_marks("", 2) == {}


def test_calls_that_are_rare_are_no_cost_of_a_message() -> None:
    assert per_message(Counter(rename=200, brk=1), 200) == {"rename": 1.0}


def test_the_bare_loop_has_the_calls_that_it_is_made_of(tmp_path: Path) -> None:
    found = calls_of("bare", tmp_path, Load(10))
    if not found:
        pytest.skip("strace is not installed, or may not trace here")
    assert set(found["put"]) == {"openat", "write", "close", "rename"}
    assert set(found["take"]) - {"getdents64"} == {"rename", "openat", "read", "close", "unlink"}
    for calls in found.values():
        listing = calls.pop("getdents64", 0.0)
        assert listing < 0.1, "the directory is listed once for all messages"
        assert list(calls.values()) == pytest.approx([1.0] * len(calls), abs=0.05)


# ---- the picture


def test_the_picture_is_well_formed_and_names_every_line() -> None:
    figures = [
        rate(f"{name} take, {count}", 1000.0 * count, suite="workers", processes=count)
        for name in ("bare", "pool", "a<b")
        for count in (1, 2, 32)
    ] + [
        rate(f"pool take, {count} waiting", 5000.0, suite="backlog", backlog=count, processes=1)
        for count in (10_000, 1_000_000)
    ]
    root = parsed(picture(figures, "a & b"))
    words = [element.text for element in root.iter(f"{SVG}text")]
    for word in ("bare", "pool", "a<b", "workers", "messages waiting", "1M", "32", "a & b"):
        assert word in words, word
    assert len(list(root.iter(f"{SVG}polyline"))) == 4
    assert "prefers-color-scheme: dark" in cast(str, root.findtext(f"{SVG}style"))


def test_no_label_of_the_picture_lies_on_another_or_below_the_picture() -> None:
    figures = [rate(f"peer{number} take, 1", 1.0 + number, suite="workers", processes=1) for number in range(12)]
    figures.append(rate("pool take, 1", 100_000.0, suite="workers", processes=1))
    root = parsed(picture(figures, "x"))
    labels = [element for element in root.iter(f"{SVG}text") if (element.text or "").startswith(("peer", "pool"))]
    ys = sorted(float(element.get("y", "")) for element in labels)
    assert len(ys) == 13
    assert all(after - before >= 12 for before, after in itertools.pairwise(ys))
    assert max(ys) < float(root.get("height", ""))


@pytest.mark.parametrize("figures", [[], [rate("pool take, 1", 0.4, processes=1)]])
def test_a_picture_of_next_to_nothing_is_a_picture(figures: list[Figure]) -> None:
    assert parsed(picture(figures, "x")).tag == f"{SVG}svg"


# ---- what is not to be believed


def test_rounds_that_disagree_are_warned_of_and_others_are_not() -> None:
    assert warnings_of([rate("x", 0.5, 0.5, 0.6)], TMPFS) == []
    assert "x (100%)" in warnings_of([rate("x", 0.4, 0.5, 0.9)], TMPFS)[0]


@pytest.mark.parametrize(
    ("options", "has_journal", "words"),
    [
        ("rw\ndelalloc\ndata=ordered\n", True, []),
        ("rw\nnojournal_checksum\ncommit=5\n", False, ["no journal"]),
        (None, None, ["unknown"]),
    ],
)
def test_a_filesystem_without_a_journal_is_warned_of(
    tmp_path: Path, options: str | None, has_journal: bool | None, words: list[str]
) -> None:
    """The kernel's tables, written by hand for the device that holds the test's directory."""
    number = os.stat(tmp_path).st_dev
    (tmp_path / "self").mkdir()
    mounts = EXT4.replace("8:1", f"{os.major(number)}:{os.minor(number)}")
    (tmp_path / "self" / "mountinfo").write_text(mounts)
    if options is not None:
        (tmp_path / "fs" / "ext4" / "sda1").mkdir(parents=True)
        (tmp_path / "fs" / "ext4" / "sda1" / "options").write_text(options)
    found = filesystem(tmp_path, proc=tmp_path)
    assert found == Filesystem("ext4", "/dev/sda1", has_journal)
    warnings = warnings_of([rate("x", 1.0)], found)
    assert len(warnings) == len(words)
    for word in words:
        assert word in warnings[0]


def test_what_is_not_in_the_table_of_mounts_is_unknown(tmp_path: Path) -> None:
    assert filesystem(tmp_path, proc=tmp_path).kind == "unknown"


def test_more_messages_than_have_room_are_refused_before_anything_is_measured(tmp_path: Path) -> None:
    left = os.statvfs(tmp_path)
    size = 1 << 30
    count = left.f_bavail * left.f_frsize // size + 1
    if count > 10_000_000:
        pytest.skip("this filesystem has room for anything")
    done = run("--messages", str(max(count, 10)), "--size", str(size), "--rounds", "1", "--directory", str(tmp_path))
    assert done.returncode == 1
    assert "MiB left, too little for" in done.stderr
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == []
