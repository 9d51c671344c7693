"""
test_doctor - a doctor of one host: what it finds on a good directory, and on filesystems that lie in one thing

The lies are told by a System in front of a real directory (tests.liars); what is measured for speed is
cut short, for none of these tests asks how fast anything is.
"""

from __future__ import annotations

import errno
import io
import json
import multiprocessing
import os
import re
import signal
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from orchestrator.cli import cli
from orchestrator.cli.doctor import doctor as command
from orchestrator.config import load
from orchestrator.doctor import DoctorError, examination, place, speed
from orchestrator.doctor.apart import apart
from orchestrator.doctor.examination import Limits, examine
from orchestrator.doctor.facts import Examined, Facts, Tally, Trouble
from orchestrator.doctor.findings import Finding
from orchestrator.doctor.mount import mount
from orchestrator.doctor.races import account
from orchestrator.doctor.report import as_json, show
from orchestrator.doctor.times import fit_ns
from orchestrator.doctor.verdict import Verdict, verdict
from tests.ddmq_twins import Original, needs_original
from tests.doctors import ROOT, hurry, peer, quiet
from tests.liars import (
    Clocked,
    Copying,
    Folding,
    Generous,
    Hung,
    Liar,
    LosesReplies,
    Refusing,
    Replacing,
    Stale,
)
from workers.ddmq import Broker
from workers.dirq import QueueSimple
from workers.queues.base import Settings
from workers.queues.names import master_name
from workers.queues.spool import Spool
from workers.system import SYSTEM, System

SHORT = Limits(silence_s=20.0, wait_s=0.2, longest_s=1.0)


@pytest.fixture(autouse=True, scope="module")
def _quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        hurry(patch, 30)
        yield


@pytest.fixture(name="good", scope="module")
def _good(tmp_path_factory: pytest.TempPathFactory) -> Examined:
    """What is found on a directory of this machine."""
    return examine(str(tmp_path_factory.mktemp("good")), 0, SHORT, quiet)


def documented() -> list[str]:
    """The lines of the documents in which somebody types the command."""
    lines = [line for file in ("README.md", "deploy/OPERATIONS.md") for line in (ROOT / file).read_text().splitlines()]
    found = [line.partition("$ ")[2] if "$ " in line[:12] else line for line in lines]
    return [line for line in found if line.startswith("orchestrator doctor ")]


def judged(path: Path, system: System = SYSTEM) -> tuple[Verdict, dict[str, Finding]]:
    """The verdict on *path*, and its findings by key."""
    found = verdict(examine(str(path), 0, SHORT, quiet, system))
    return found, {one.key: one for one in found.findings}


# ---- a good one


def test_a_good_directory_is_good_and_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("kept")
    found, findings = judged(tmp_path)
    assert found.word == "one host", found.sentence
    assert [one.key for one in findings.values() if one.level == "failed"] == []
    assert {key: findings[key].level for key in ("rename", "link", "mkdir", "create", "replies", "sync", "names")} == {
        "rename": "ok", "link": "ok", "mkdir": "ok", "create": "ok", "replies": "ok", "sync": "ok", "names": "ok",
    }  # fmt: skip
    assert os.listdir(tmp_path) == ["kept"]


def test_the_json_has_keys_that_stay(good: Examined) -> None:
    found = json.loads(json.dumps(as_json(good, verdict(good))))
    assert set(found) == {"path", "verdict", "sentence", "hosts", "findings", "settings", "toml", "facts"}
    keys = [one["key"] for one in found["findings"]]
    assert keys == [
        "mount", "room", "names", "links", "rename", "link", "mkdir", "create", "noreplace", "replies", "sync", "clock",
        "ctime", "locks", "inotify", "speed",
    ]  # fmt: skip
    assert all(one["level"] != "ok" or one["why"] == one["do"] == "" for one in found["findings"])
    assert set(found["findings"][0]) == {"key", "title", "level", "measured", "why", "do", "scope"}


# ---- little room


class Little(System):
    """Few inodes are left; the files that are there at the same time are counted."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.most = multiprocessing.Value("i", 0)

    def statvfs(self, path: str) -> os.statvfs_result:
        real = list(os.statvfs(path))
        real[5:8] = [20_000, 500, 500]
        return os.statvfs_result(real)

    def open(self, path: str, flags: int, mode: int = 0o777) -> int:
        fd = os.open(path, flags, mode)
        if flags & os.O_CREAT:
            there = sum(len(files) for _, _, files in os.walk(self._path))
            self.most.value = max(self.most.value, there)
        return fd


def test_where_there_is_little_room_little_of_it_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "LISTED", 300)
    monkeypatch.setattr(examination, "RACED_MAX", 300)
    system = Little(tmp_path)
    found, findings = judged(tmp_path, system)
    assert findings["room"].level == "warning"
    assert "few names were tried" in findings["room"].why
    assert "listed" not in findings["speed"].measured
    assert found.word == "one host", found.sentence
    assert 0 < system.most.value < 100


# ---- lies


@pytest.mark.parametrize(
    ("liar", "key", "level", "word"),
    [
        (Generous(), "rename", "failed", "not safe"),
        (Copying(), "rename", "failed", "not safe"),
        (Replacing(), "link", "failed", "not safe"),
        (LosesReplies(), "rename", "warning", "one host"),
        (LosesReplies(), "replies", "warning", "one host"),
        (Stale(60.0), "replies", "failed", "not safe"),
        (Clocked(ahead_s=3600.0), "clock", "warning", "one host"),
        (Clocked(ahead_s=-3600.0, step_s=2.0), "clock", "warning", "one host"),
        (Clocked(step_s=1.0), "clock", "note", "one host"),
        (Clocked(keeps_ctime=False), "ctime", "warning", "one host"),
        (Refusing("link", errno.EPERM), "links", "warning", "one host"),
        (Refusing("rename_noreplace", errno.EINVAL), "noreplace", "note", "one host"),
        (Refusing("fsync_directory", errno.EINVAL), "sync", "failed", "not safe"),
        (Refusing("unlink", errno.EIO, "/replies/"), "replies", "failed", "not safe"),
        (Refusing("lock", errno.ENOLCK), "locks", "note", "one host"),
        (Folding(), "names", "failed", "not safe"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, System) else str(value),
)
def test_a_lie_is_found(tmp_path: Path, liar: Liar, key: str, level: str, word: str) -> None:
    found, findings = judged(tmp_path, liar)
    assert findings[key].level == level, findings[key]
    assert found.word == word, found.sentence
    assert findings[key].why
    because = findings[key].because
    assert (because != "" and because in found.sentence) == (level == "failed")
    assert os.listdir(tmp_path) == [".doctor"] * liar.keeps_files, "and what was made is removed"


def test_a_clock_an_hour_off_is_measured_to_the_second(tmp_path: Path) -> None:
    _, findings = judged(tmp_path, Clocked(ahead_s=3600.0))
    assert findings["clock"].measured.startswith("3600 s ahead of the host's")


def test_steps_of_two_seconds_are_told_from_those_of_one(tmp_path: Path) -> None:
    def measured(step_s: float) -> str:
        return judged(tmp_path, Clocked(step_s=step_s))[1]["clock"].measured

    assert "steps of 2.0 s" in measured(2.0)
    # On a busy machine a pause may skip a step of one second, which then looks like one of two.
    assert any("steps of 1.0 s" in measured(1.0) for _ in range(3))


def test_a_call_that_never_returns_is_a_finding_and_holds_nobody(tmp_path: Path) -> None:
    examined = examine(str(tmp_path), 0, Limits(silence_s=5), quiet, Hung("link", "/replies/"))
    found = verdict(examined)
    trouble = next(one for one in found.findings if one.key == "trouble.replies")
    assert "did not answer within 5 s" in trouble.measured
    assert found.word == "not safe"
    assert examined.hosts[0].speed is None, "what comes after it is left out"
    assert os.listdir(tmp_path) == []


def test_a_mount_that_hangs_from_the_first_call_on_is_said(tmp_path: Path) -> None:
    with pytest.raises(DoctorError, match=r"did not answer within 0.3 s; is the mount hung"):
        examine(str(tmp_path), 0, Limits(silence_s=0.3), quiet, Hung("mkdir", ".doctor"))


# ---- where nothing can be examined


@pytest.mark.parametrize(
    ("system", "words"),
    [
        (Refusing("mkdir", errno.EROFS), "mounted read-only"),
        (Refusing("mkdir", errno.ENOSPC), "is full"),
        (Refusing("mkdir", errno.EDQUOT), "quota"),
        (Refusing("mkdir", errno.EACCES), "may not write there"),
        (Refusing("stat", errno.ESTALE), "mount it again"),
        (Refusing("mkdir", errno.ENOENT), "no directory can be made there"),
        (Refusing("mkdir", errno.EACCES, ".doctor/"), "another user's"),
        (Refusing("write", errno.ENOSPC), ""),
        (Refusing("link", errno.ENOSPC), ""),
    ],
)
def test_what_keeps_it_from_beginning_is_said_in_words(tmp_path: Path, system: System, words: str) -> None:
    if words:
        with pytest.raises(DoctorError, match=words):
            examine(str(tmp_path), 0, SHORT, quiet, system)
    else:  # a directory could be made, and no file be written
        found = verdict(examine(str(tmp_path), 0, SHORT, quiet, system))
        assert found.word == "not safe"
        assert found.sentence.startswith("not safe, because the filesystem is full; make room"), found.sentence
        assert sum(one.level == "failed" for one in found.findings) == 1, "it stops, and says so once"
        assert any(one.do.startswith("make room") for one in found.findings)


def test_the_command_says_in_one_line_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, words in ((tmp_path / "gone", "does not exist"), (tmp_path / "file", "is no directory")):
        done = CliRunner().invoke(cli, ["doctor", str(path)])
        assert done.exit_code == 1
        assert done.output.startswith("orchestrator: cannot examine")
        assert words in done.output
        assert len(done.output.splitlines()) == 1


def test_the_command_answers_zero_for_one_host_and_one_when_peers_were_asked_for(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["doctor", str(tmp_path), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["verdict"] == "one host"
    done = CliRunner().invoke(cli, ["doctor", "--wait", "200ms", str(tmp_path), "--peer"])
    assert done.exit_code == 1
    assert "no other host came within 0.2 s" in done.stdout
    assert "good for this host; no other came" in done.stdout or "is a filesystem of one machine" in done.stdout
    assert os.listdir(tmp_path) == []


def test_a_doctor_that_is_told_to_end_leaves_nothing(tmp_path: Path) -> None:
    with peer(tmp_path) as process:
        assert process.stderr is not None
        assert any("waiting for 1 other host" in line for line in process.stderr)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 128 + signal.SIGTERM
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("line", documented())
def test_each_documented_line_is_understood(line: str) -> None:
    """As far as the arguments go: the same path, and so many others as the text beside it says."""
    words, _, text = line.partition("#")
    context = command.make_context("doctor", words.split()[2:])
    assert context.params["path"] in (".", "PATH", "/mnt/queues")
    assert context.params["is_peer"] == ("--peer" in words)
    for number in re.findall(r"--peers ([^:]*):", text):
        assert command.make_context("doctor", ["--peers", number, "."]).params["peers"] == int(number)


@pytest.mark.parametrize(
    "arguments", [("--peer=2",), ("--peers", "0"), ("--peers",), ("--limit", "1s"), ("--limit", "soon")]
)
def test_what_cannot_be_meant_is_a_usage_error(tmp_path: Path, arguments: Sequence[str]) -> None:
    done = CliRunner().invoke(cli, ["doctor", str(tmp_path), *arguments])
    assert done.exit_code == 2, done.output
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("path", "words"), [("", "an empty path"), (os.fsdecode(b"a\xff"), r"a\\xff: its name is no")])
def test_a_path_that_nothing_can_be_said_of_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if path:
        os.mkdir(path)
    with pytest.raises(DoctorError, match=words):
        examine(path, 0, SHORT, quiet)
    assert not path or os.listdir(path) == []


def test_an_answer_that_cannot_be_read_is_a_trouble_and_a_limit_of_a_month_none() -> None:
    class Odd(Facts):
        text: str

    found = apart("odd", Odd, lambda _: Facts(), 30 * 86400.0, quiet)  # type: ignore[arg-type, return-value]
    assert isinstance(found, Trouble)
    assert "ValidationError" in found.text


def test_in_a_narrow_terminal_words_have_lines_of_their_own(good: Examined) -> None:
    console = Console(width=60, file=io.StringIO(), record=True)
    show(good, verdict(good), console)
    lines = console.export_text().splitlines()
    assert any(line.split() == ["ok", "hard", "links"] for line in lines)
    assert "  made and counted" in [line.rstrip() for line in lines]


# ---- the directory of a doctor


def test_what_a_killed_doctor_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    system = SYSTEM
    top = tmp_path / ".doctor"
    host, kernel8, _, _, random = master_name("here", system).rsplit(".", 4)
    dead, alive = f"{host}.{kernel8}.4194000.1.{random}", master_name("here", system)
    elsewhere = f"far.01234567.1.1.{random}"
    outside = tmp_path / "outside"
    for path in (top / dead / "race", top / alive, top / elsewhere, top / "notes", outside):
        path.mkdir(parents=True)
    (outside / "kept").touch()
    (top / dead / "race" / "link").symlink_to(outside)
    (top / dead / "race" / "n001").touch()
    own = place.make(system, str(tmp_path), master_name("here", system))
    assert sorted(os.listdir(top)) == sorted([os.path.basename(own), alive, elsewhere, "notes"])
    assert (outside / "kept").exists()


def test_what_another_host_left_is_removed_an_hour_later_by_the_filesystems_clock(tmp_path: Path) -> None:
    class Later(Clocked):
        """Files of today, seen two hours later, but what was left."""

        def lstat(self, path: str) -> os.stat_result:
            return os.lstat(path)

    left = tmp_path / ".doctor" / f"far.01234567.1.1.{'0' * 16}"
    left.mkdir(parents=True)
    place.make(Later(ahead_s=1800.0), str(tmp_path), master_name("here", SYSTEM))
    assert left.exists()
    place.make(Later(ahead_s=7200.0), str(tmp_path), master_name("here", SYSTEM))
    assert not left.exists()


def test_a_doctor_ends_as_another_begins(tmp_path: Path) -> None:
    """The one removes .doctor/ between the other's mkdir of it and of its own directory, again and again."""

    class Beside(System):
        def __init__(self) -> None:
            self.removed = 0

        def mkdir(self, path: str) -> None:
            if not path.endswith(".doctor") and self.removed < 3:
                os.rmdir(os.path.dirname(path))
                self.removed += 1
            os.mkdir(path)

    system = Beside()
    own = place.make(system, str(tmp_path), master_name("here", SYSTEM))
    assert system.removed == 3
    assert os.path.isdir(own)


def test_a_look_of_a_peer_does_not_keep_a_doctor_from_leaving(tmp_path: Path) -> None:
    """It comes between the listing of the directory and its removal, twice."""

    class Beside(System):
        def __init__(self) -> None:
            self.looks = 2

        def rmdir(self, path: str) -> None:
            if self.looks and path.endswith("0"):
                self.looks -= 1
                Path(path, f"look.{self.looks}").touch()
            os.rmdir(path)

    id_ = f"here.01234567.1.1.{'0' * 16}"
    own = place.make(SYSTEM, str(tmp_path), id_)
    assert place.leave(Beside(), own)
    assert os.listdir(tmp_path) == []


def test_a_link_that_lies_there_as_a_killed_doctor_is_removed_and_what_is_behind_it_kept(tmp_path: Path) -> None:
    top, outside = tmp_path / ".doctor", tmp_path / "outside"
    (outside / "inner").mkdir(parents=True)
    (outside / "kept").touch()
    top.mkdir()
    host, kernel8, _, _, random = master_name("here", SYSTEM).rsplit(".", 4)
    dead = top / f"{host}.{kernel8}.4194000.1.{random}"
    dead.symlink_to(outside)
    place.make(SYSTEM, str(tmp_path), master_name("here", SYSTEM))
    assert not dead.is_symlink()
    assert sorted(os.listdir(outside)) == ["inner", "kept"]


def test_a_link_in_the_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".doctor").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DoctorError, match="in the way"):
        place.make(SYSTEM, str(tmp_path), master_name("here", SYSTEM))
    assert os.listdir(tmp_path / "elsewhere") == []


def test_queues_are_not_confused_by_a_doctor(tmp_path: Path) -> None:
    """Its directory lies in each kind of queue, as a killed one leaves it, while ours work."""

    (tmp_path / "new").mkdir()
    leave_behind(tmp_path / "new")
    with Spool(str(tmp_path / "new"), Settings(create=True)) as spool:  # a queue is made around it
        name = spool.put(b"x")
        assert [one.name for one in spool.list("waiting")] == [name]
    simple = QueueSimple(str(tmp_path / "simple"))
    simple.add("x")
    leave_behind(tmp_path / "simple")
    assert simple.count() == 1
    simple.purge(0, 0)
    assert len(list(simple)) == 1
    broker = Broker(str(tmp_path / "root"), create=True)
    broker.create_queue("work")
    broker.publish("work", "x")
    for path in (tmp_path / "root", tmp_path / "root" / "work"):
        leave_behind(path)
    assert broker.list_queues() == ["work"]
    broker.clean("work")
    assert broker.consume("work") is not None


@needs_original
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # files that it never closes
def test_the_originals_are_not_confused_by_a_doctor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As above, with the published packages."""
    dirq = pytest.importorskip("dirq.QueueSimple")
    simple = dirq.QueueSimple(str(tmp_path / "simple"))
    simple.add("x")
    broker = Original(monkeypatch).broker(tmp_path / "root")
    broker.create_queue("work")
    broker.publish("work", "x")
    for path in ("simple", "root", "root/work"):
        leave_behind(tmp_path / path)
    assert simple.count() == 1
    simple.purge()
    assert len(list(simple)) == 1
    assert broker.list_queues() == ["work"]
    broker.clean("work")
    assert broker.consume("work") is not None


def leave_behind(path: Path) -> None:
    """What a killed doctor leaves in *path*."""
    own = place.make(SYSTEM, str(path), master_name("here", SYSTEM))
    os.makedirs(f"{own}/race-rename/contested")
    Path(own, "alive.7").touch()


# ---- what is computed


def test_a_race_is_accounted_by_the_disk_and_not_by_what_was_told() -> None:
    names = ["a", "b", "c", "d", "e", "f"]
    first = Tally(won=("a", "c", "e"), found=("a", "b", "c"))
    second = Tally(won=("a", "d"), found=("c", "d"))
    race = account("rename", names, [first, second], ["d"])
    # a: both were told so. b: done, and told as not done. c: both have it. d: won and still there. e: won and gone.
    # f: nobody was told so, and it is gone.
    assert (race.twice, race.vanished, race.false, race.lost_replies) == (3, 2, 2, 2)
    made = account("mkdir", names, [Tally(won=("a",), found=("a",)), Tally()], ["a", "b"])
    assert (made.twice, made.vanished, made.false, made.lost_replies) == (0, 4, 0, 1)
    missing = account("link", names, [Tally(errors={"EPERM": 6}), Tally(errors={"EPERM": 6})], [])
    assert missing.unsupported == "EPERM"
    assert missing.vanished == 0


@given(
    ahead_ns=st.integers(-(10**15), 10**15),
    step_ns=st.sampled_from([1, 10**6, 4 * 10**6, 10**7, 10**9, 2 * 10**9]),
    pauses_ns=st.lists(
        st.tuples(st.integers(10**5, 10**8), st.integers(0, 10**7), st.booleans()), min_size=12, max_size=60
    ),
)
def test_the_offset_of_any_clock_lies_between_its_bounds(
    ahead_ns: int, step_ns: int, pauses_ns: list[tuple[int, int, bool]]
) -> None:
    """A clock that is some time ahead and ticks, and tells some times finer; calls of any length."""
    now_ns, samples = 1_700_000_000 * 10**9, []
    for pause_ns, took_ns, is_fine in pauses_ns:
        now_ns += pause_ns
        file_ns = now_ns + took_ns // 3 + ahead_ns
        samples.append((now_ns, took_ns, file_ns if is_fine else file_ns - file_ns % step_ns))
        now_ns += took_ns
    found_ns, low_ns, high_ns = fit_ns(samples)
    assert low_ns <= high_ns
    # A finer step that explains all samples as well cannot be told from the true one, and moves the bounds by as much.
    assert low_ns - step_ns <= ahead_ns <= high_ns + step_ns
    if found_ns >= step_ns:
        assert low_ns <= ahead_ns <= high_ns


def test_the_mount_is_found_by_its_number_and_its_options_are_read(tmp_path: Path) -> None:
    own = tmp_path / "proc" / "self"

    class Opened(System):
        def open(self, path: str, flags: int, mode: int = 0o777) -> int:
            fd = os.open(path, flags, mode)
            (own / "fdinfo").mkdir(parents=True, exist_ok=True)
            (own / "fdinfo" / str(fd)).write_text("pos:\t0\nflags:\t0\nmnt_id:\t77\n")
            return fd

    own.mkdir(parents=True)
    (own / "mountinfo").write_text(
        "30 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
        "77 30 0:55 /q /mnt/a\\040b rw,nosuid shared:2 master:1 - nfs4 server:/q rw,vers=4.2,soft,actimeo=0\n"
    )
    found = mount(Opened(), str(tmp_path), str(tmp_path / "proc"))
    assert (found.kind, found.point, found.source) == ("nfs4", "/mnt/a b", "server:/q")
    assert {"vers=4.2", "soft", "actimeo=0", "nosuid"} <= set(found.options)


def test_a_rename_of_ones_own_whose_reply_is_lost_is_looked_for(tmp_path: Path) -> None:
    class Deaf(System):
        def rename(self, source: str, target: str) -> None:
            if "lost" not in target:
                os.rename(source, target)
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), source)

    (tmp_path / "a").touch()
    place.move(Deaf(), f"{tmp_path}/a", f"{tmp_path}/b")
    with pytest.raises(FileNotFoundError):
        place.move(Deaf(), f"{tmp_path}/b", f"{tmp_path}/lost")
    assert os.listdir(tmp_path) == ["b"]


# ---- settings


def changed(examined: Examined, **mount_has: object) -> Examined:
    """*examined* with another mount."""
    host = examined.hosts[0]
    assert host.mount is not None
    other = host.model_copy(update={"mount": host.mount.model_copy(update=mount_has)})
    return examined.model_copy(update={"hosts": (other,)})


def test_where_every_default_fits_nothing_is_recommended(good: Examined) -> None:
    found = verdict(good)
    assert (found.settings, found.toml) == ([], "")


def test_the_settings_can_be_pasted_into_a_configuration(good: Examined, tmp_path: Path) -> None:
    """Every setting of one host, as our own reader reads it."""
    odd = tmp_path / "an 'odd' \"place\" \\n"
    host = changed(good, network="nfs", kind="nfs4").hosts[0]
    assert host.speed is not None
    assert host.times is not None
    rates = host.speed.rename.model_copy(update={"rates": {1: 100.0, 8: 700.0}})
    slow = host.speed.model_copy(update={"rename": rates, "empty_s": 0.4})
    times = host.times.model_copy(update={"keeps_ctime": False})
    other = host.model_copy(update={"speed": slow, "times": times, "cores": 2})
    found = verdict(Examined(path=str(odd), hosts=(other,)))
    assert [one.key for one in found.settings] == ["workers", "stale_after", "poll_interval", "create"]
    file = tmp_path / "pool.toml"
    file.write_text(found.toml)
    queue = load((file,), flags={}, environment={}).queues[0]
    assert queue.url == f"spool:{odd}"
    assert (queue.workers, queue.stale_after, queue.poll_interval, queue.create) == (8, 86400.0, 8.0, False)


def test_a_queue_that_is_there_with_other_times_is_named(tmp_path: Path) -> None:
    with Spool(str(tmp_path / "queue"), Settings(create=True, stale_after_s=900.0)):
        found, _ = judged(tmp_path / "queue", Clocked(keeps_ctime=False))
    (setting,) = found.settings
    assert "the queue there has 15m: change its .pool/format while no pool runs" in setting.reason


def test_options_of_a_mount_that_endanger_or_slow_it_are_named(good: Examined) -> None:
    found = verdict(changed(good, network="nfs", kind="nfs4", options=("rw", "soft", "actimeo=0", "vers=4.2")))
    line = next(one for one in found.findings if one.key == "mount")
    assert line.level == "warning"
    assert "soft" in line.measured
    assert "mount it hard" in line.do
    assert "actimeo=0" in line.do


def test_a_path_that_no_configuration_takes_gets_no_url_and_is_told_why(good: Examined) -> None:
    """And letters beyond 16 bits are written as TOML reads them."""
    network = changed(good, network="nfs", kind="nfs4")
    assert "\nurl = " not in verdict(network.model_copy(update={"path": "/a\tb"})).toml
    found = tomllib.loads(verdict(network.model_copy(update={"path": "/a\tb"})).toml)["queue"][0]
    assert found["create"] is False
    found = tomllib.loads(verdict(network.model_copy(update={"path": "/\U0001f600"})).toml)["queue"][0]
    assert found["url"] == "/\U0001f600"


def test_times_of_a_queue_that_no_time_can_be_are_left_out(tmp_path: Path) -> None:
    (tmp_path / ".pool").mkdir()
    huge = f'{{"lease_interval_s": 1{"0" * 400}, "lease_timeout_s": 1e999, "stale_after_s": 600}}'
    (tmp_path / ".pool" / "format").write_text(huge)
    assert mount(SYSTEM, str(tmp_path)).queue_times == {"stale_after_s": 600.0}


def test_a_full_disk_is_warned_of(good: Examined) -> None:
    for room in ({"free": 1 << 20}, {"free_inodes": 50}):
        found = verdict(changed(good, **room))
        assert next(one for one in found.findings if one.key == "room").level == "warning", room
