"""
test_ddmq_files - the engine of ddmq: each verb, each call failing, filesystems that lack something

See also: test_ddmq_faults (Q11: requeueing in every order).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ddmq_twins import Kernel
from workers.ddmq.errors import CorruptError
from workers.ddmq.files import QueueFiles, parse_waiting, parse_work, waiting_key
from workers.ddmq.names import NEW_QUEUE, Waiting, check_new_queue, check_queue
from workers.system import SYSTEM, System

NAME = "5.17952704.ddmqabc"


def in_work(name: str) -> str:
    return os.path.join("q", "work", name)


class Bench:
    """A queue on a kernel whose calls can be failed."""

    def __init__(self, place: Path) -> None:
        self.root, self.kernel = place, Kernel()
        self.files = QueueFiles(str(place), "q", self.kernel)
        self.files.make()

    def fail(self, code: int, *calls: str) -> None:
        for call in calls:

            def failing(*arguments: Any, code: int = code) -> None:
                raise OSError(code, os.strerror(code), *arguments[:1])

            self.kernel.replaced[call] = failing

    def claimed(self, expiry: int = 1000) -> str:
        self.files.publish(NAME, b"data")
        claim = self.files.take(NAME, expiry)
        assert claim is not None
        return claim

    def tree(self) -> dict[str, bytes]:
        return {str(path.relative_to(self.root)): path.read_bytes() for path in self.root.rglob("*") if path.is_file()}


@pytest.fixture(name="bench")
def _bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


# ---- names


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("0.17952704530705986.ddmqefb7", Waiting(0, "17952704530705986", "efb7")),
        ("999.3.ddmqFC24", Waiting(999, "3", "FC24")),
        ("ddmq.yaml", None), ("1.2.ddmq", None), ("-1.2.ddmqa", None), ("1.2.ddmqa\n", None), ("1.2.ddmqa.tmp", None),
        ("٣.2.ddmqa", None), ("1.1.2.ddmqa", None), ("x.2.ddmqa", None), ("1.2.ddmqä", None), ("", None),
    ],
)  # fmt: skip
def test_the_name_of_a_waiting_message_is_taken_apart(name: str, parts: Waiting | None) -> None:
    assert parse_waiting(name) == parts


def test_the_name_of_a_claim_is_taken_apart() -> None:
    assert parse_work("1538638378.999.1.ddmq39eb") == (1538638378, "999.1.ddmq39eb")
    for name in (
        "999.1.ddmq39eb",
        "x.999.1.ddmq39eb",
        "1.1.1.999.1.ddmq39eb",
        "1..999.1.ddmq39eb",
        "1.999.1.ddmq39eb\n",
    ):
        assert parse_work(name) is None


def test_a_claim_of_an_original_that_expires_in_the_middle_of_a_second_is_one(bench: Bench) -> None:
    bench.files.publish(NAME, b"data")
    name = f"1538638378.5.{NAME}"
    assert bench.files.take(NAME, "1538638378.5") == name  # type: ignore[arg-type]
    assert parse_work(name) == (1538638379, NAME)
    assert list(bench.files.working()) == [name]
    assert bench.files.touch(name, 1538638400) == f"1538638400.{NAME}"


def test_of_two_hosts_that_know_old_names_one_claims_a_message(tmp_path: Path) -> None:
    """
    Both claim it to the same second; the second one's client still knows under which name it waited.

    Where the claim's name is the same file, such a client takes the rename for done, without asking the server.
    """
    benches = [Bench(tmp_path), Bench(tmp_path)]
    for bench in benches:
        bench.kernel.network = "nfs"
    benches[0].files.publish(NAME, b"data")
    first = benches[0].files.take(NAME, 1000)

    def rename(source: str, target: str) -> None:
        if not os.path.exists(target):
            os.rename(source, target)

    benches[1].kernel.replaced["rename"] = rename
    assert benches[1].files.take(NAME, 1000) is None
    assert first is not None
    assert parse_work(first) == (1001, NAME)
    assert [*benches[0].files.working()] == [first]


def test_a_claim_on_a_network_filesystem_has_digits_that_no_other_has(bench: Bench) -> None:
    assert bench.claimed() == f"1000.{NAME}"
    bench.files.remove(f"1000.{NAME}")
    bench.kernel.network = "nfs"
    files = QueueFiles(str(bench.root), "q", bench.kernel)
    claims = set()
    for _ in range(20):
        files.publish(NAME, b"data")
        claim = files.take(NAME, 1000)
        assert claim is not None
        claims.add(claim)
        touched = files.touch(claim, 2000)
        assert touched is not None
        assert parse_work(touched) == (2001, NAME)
        claims.add(touched)
        assert files.remove(touched)
    assert len(claims) == 40


@pytest.mark.parametrize("call", ["open", "rename"])
def test_what_a_network_filesystem_calls_stale_is_gone(bench: Bench, call: str) -> None:
    """Its client knew the name still, and asked for the file: another host has it. That is a lost race."""
    bench.files.publish(NAME, b"data")
    bench.kernel.network = "nfs"
    files = QueueFiles(str(bench.root), "q", bench.kernel)
    path = f"{files.path}/{NAME}"
    if call == "open":
        bench.fail(errno.ESTALE, "open")
        with pytest.raises(FileNotFoundError):
            files.read(path)
    else:
        bench.fail(errno.ESTALE, "rename")
        assert files.take(NAME, 1000) is None


def test_a_claim_whose_reply_was_lost_was_made(bench: Bench) -> None:
    """On a network filesystem the rename is sent again, and told ENOENT; a claim's name is nobody else's."""
    bench.files.publish(NAME, b"data")
    bench.kernel.network = "nfs"

    def sent_twice(source: str, target: str) -> None:
        os.rename(source, target)
        os.rename(source, target)

    bench.kernel.replaced["rename"] = sent_twice
    claim = bench.files.take(NAME, 1000)
    assert [claim] == [*bench.files.working()]


def test_a_file_that_no_memory_holds_is_no_message(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    path = bench.root / "q" / NAME
    path.touch()
    os.truncate(path, 40 << 30)
    with pytest.raises(CorruptError, match="larger than 1024 MiB"):
        bench.files.read(str(path))
    monkeypatch.setattr("workers.ddmq.files.READ_MAX", 10)
    path.write_bytes(b"0123456789")
    assert bench.files.read(str(path))[0] == b"0123456789"

    def meanwhile() -> None:
        bench.kernel.hooks.clear()
        path.write_bytes(b"0123456789" * 2)

    bench.kernel.hooks["read"] = meanwhile
    with pytest.raises(CorruptError, match="larger"):
        bench.files.read(str(path))


def test_text_that_sorts_is_priority_then_number_then_id() -> None:
    names = ["0.9.ddmqa", "9.1.ddmqa", "10.1.ddmqa", "10.11.ddmqa", "10.11.ddmqb", "10.2.ddmqa", "100.1.ddmqa"]
    assert sorted(sorted(names), key=waiting_key) == names


@given(st.lists(st.integers(0, 10**30)), st.booleans())
def test_priorities_of_any_size_sort_as_numbers(priorities: list[int], padded: bool) -> None:
    names = [f"{'00' * padded}{priority}.1.ddmqa" for priority in priorities]
    assert [int(name.partition(".")[0]) for name in sorted(names, key=waiting_key)] == sorted(priorities)


@given(st.lists(st.integers(1_000_000_000 * 10**7, 9_999_999_999 * 10**7), unique=True))
def test_numbers_without_trailing_zeros_sort_by_time(times: list[int]) -> None:
    def name(tick: int) -> str:
        return f"9.{tick // 10**7}{(str(tick % 10**7).zfill(7).rstrip('0') or '0')}.ddmqa"

    assert sorted(map(name, times), key=waiting_key) == [name(time) for time in sorted(times)]


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc", "a\0b", None, 5])
def test_what_cannot_be_a_queue_is_refused(name: object) -> None:
    for check in (check_queue, check_new_queue):
        with pytest.raises(ValueError, match="queue"):
            check(name)


def test_a_queue_that_is_there_may_have_other_characters_than_a_new_one() -> None:
    assert check_queue("my.queue") == "my.queue"
    assert check_new_queue("my-Queue_1") == "my-Queue_1"
    for name in ("my.queue", "a b", "q\n", "ä"):
        with pytest.raises(ValueError, match="letters"):
            check_new_queue(name)
        assert not NEW_QUEUE.match(name)


# ---- verbs


def test_a_message_goes_from_waiting_to_claimed_and_back_or_away(bench: Bench) -> None:
    files = bench.files
    claim = bench.claimed()
    assert claim == f"1000.{NAME}"
    assert (list(files.waiting(set())), list(files.working())) == ([], [claim])
    later = files.touch(claim, 2000)
    assert later == f"2000.{NAME}"
    assert files.rewrite(later, b"new")
    assert files.put_back(later, "1.17952704.ddmqabc")
    assert bench.tree() == {"q/1.17952704.ddmqabc": b"new"}
    again = files.take("1.17952704.ddmqabc", 3000)
    assert again
    assert files.remove(again)
    assert bench.tree() == {}


def test_who_comes_second_is_told_so(bench: Bench) -> None:
    files = bench.files
    claim = bench.claimed()
    assert files.take(NAME, 5000) is None
    assert files.touch(claim, 2000)
    assert files.touch(claim, 3000) is None
    assert files.rewrite(claim, b"") is False
    assert files.put_back(claim, NAME) is False
    assert files.remove(claim) is False
    assert files.remove_waiting(NAME) is False
    assert bench.tree() == {in_work(f"2000.{NAME}"): b"data"}


def test_nothing_is_ever_published_or_put_back_over_another(bench: Bench) -> None:
    claim = bench.claimed()
    bench.files.publish(NAME, b"other")
    for missing in ((), ("rename_noreplace",), ("rename_noreplace", "link")):
        bench.fail(errno.EINVAL, *missing)
        with pytest.raises(FileExistsError):
            bench.files.put_back(claim, NAME)
        with pytest.raises(FileExistsError):
            bench.files.publish(NAME, b"third")
    assert bench.tree() == {in_work(claim): b"data", f"q/{NAME}": b"other"}


@pytest.mark.parametrize("missing", [("rename_noreplace",), ("rename_noreplace", "link"), ("rename_exchange",)])
@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP])
def test_all_works_where_calls_are_missing(bench: Bench, missing: tuple[str, ...], code: int) -> None:
    bench.fail(code, *missing)
    claim = bench.claimed()
    assert bench.files.rewrite(claim, b"new")
    assert not bench.files.rewrite(f"9{claim}", b"new")
    assert bench.files.put_back(claim, NAME)
    assert not bench.files.put_back(claim, "6.1.ddmqd")
    assert bench.tree() == {f"q/{NAME}": b"new"}


def test_directories_are_no_messages_and_other_things_are_odd(bench: Bench, tmp_path: Path) -> None:
    bench.files.publish(NAME, b"")
    (tmp_path / "q" / "1.1.ddmqdirectory").mkdir()
    (tmp_path / "q" / "1.1.ddmqlink").symlink_to("ddmq.yaml")
    os.mkfifo(tmp_path / "q" / "1.1.ddmqpipe")
    (tmp_path / "q" / "notes.ddmqx").touch()
    odd: set[str] = set()
    assert sorted(bench.files.waiting(odd)) == ["1.1.ddmqlink", "1.1.ddmqpipe", NAME]
    assert odd == {"1.1.ddmqlink", "1.1.ddmqpipe"}


def test_a_missing_queue_is_an_error_and_no_empty_one(tmp_path: Path) -> None:
    files = QueueFiles(str(tmp_path), "none", SYSTEM)
    assert not files.is_queue()
    for do in (lambda: list(files.waiting(set())), lambda: list(files.working()), lambda: files.publish(NAME, b"")):
        with pytest.raises(FileNotFoundError):
            do()
    assert list(tmp_path.iterdir()) == []


def test_a_claim_into_a_directory_that_is_missing_is_no_lost_race(bench: Bench) -> None:
    bench.files.publish(NAME, b"data")
    os.rmdir(bench.files.work)
    with pytest.raises(FileNotFoundError):
        bench.files.take(NAME, 5)


def test_a_queue_is_a_directory_with_settings_and_work(bench: Bench, tmp_path: Path) -> None:
    assert not bench.files.is_queue()
    (tmp_path / "q" / "ddmq.yaml").touch()
    assert bench.files.is_queue()
    assert not QueueFiles(str(tmp_path), "a\0b", SYSTEM).is_queue()
    bench.files.make()


@pytest.mark.parametrize("kind", ["link", "pipe", "directory"])
def test_what_is_no_regular_file_is_not_read(bench: Bench, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "odd"
    {"link": lambda: path.symlink_to("/etc/passwd"), "pipe": lambda: os.mkfifo(path), "directory": path.mkdir}[kind]()
    with pytest.raises(OSError, match=r"regular file|symbolic links"):
        bench.files.read(str(path))


@pytest.mark.parametrize("size", [0, 1, 100, 70_000])
def test_a_file_is_read_whole_also_when_reads_are_short_or_it_grows(bench: Bench, tmp_path: Path, size: int) -> None:
    body = os.urandom(size)
    (tmp_path / "body").write_bytes(body)
    assert bench.files.read(str(tmp_path / "body"))[0] == body
    bench.kernel.replaced["read"] = lambda fd, count: os.read(fd, min(count, 7))
    assert bench.files.read(str(tmp_path / "body"))[0] == body


# ---- every call failing


def failing_in_turn(bench: Bench, code: int) -> Iterator[int]:
    """Fail call 1, 2, 3, ... until one round fails none."""
    real = {call: getattr(System, call) for call in ("open", "write", "fsync", "close", "rename", "link")}
    real |= {call: getattr(System, call) for call in ("rename_noreplace", "rename_exchange")}
    left = [0]

    def counted(do: Callable[..., Any], call: str) -> Callable[..., Any]:
        def make(*arguments: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                if call == "close":  # Linux closes all the same
                    do(*arguments)
                raise OSError(code, os.strerror(code))
            return do(*arguments)

        return make

    for call, do in real.items():
        bench.kernel.replaced[call] = counted(do, call)
    number = 0
    while left[0] <= 0:
        number += 1
        left[0] = number
        yield number
    assert number > 3


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_publish_that_fails_leaves_nothing_but_for_its_last_sync(bench: Bench, code: int) -> None:
    for number in failing_in_turn(bench, code):
        before = bench.tree()
        name = f"5.{number}.ddmqabc"
        try:
            bench.files.publish(name, b"data", durable=True)
        except OSError:
            assert set(bench.tree()) - set(before) <= {f"q/{name}"}
            if f"q/{name}" in bench.tree():
                assert number > 4, "it failed after the message was there"
        assert not [path for path in bench.tree() if path.startswith(".")]


def test_a_rewrite_that_fails_leaves_the_claim_as_it_was(bench: Bench) -> None:
    claim = bench.claimed()
    for _ in failing_in_turn(bench, errno.EIO):
        try:
            assert bench.files.rewrite(claim, b"new")
        except OSError:
            assert bench.tree() == {in_work(claim): b"data"}
    assert bench.tree() == {in_work(claim): b"new"}


def test_a_short_write_is_gone_on_with(bench: Bench) -> None:
    bench.kernel.replaced["write"] = lambda fd, data: os.write(fd, data[:3])
    bench.files.publish(NAME, b"0123456789")
    assert bench.tree() == {f"q/{NAME}": b"0123456789"}


def test_what_is_durable_is_synced_before_it_is_seen_and_its_name_after(bench: Bench) -> None:
    bench.files.publish(NAME, b"data", durable=True)
    calls = [call[0] for call in bench.kernel.calls if call[0] in ("write", "fsync", "rename_noreplace")]
    assert calls == ["write", "fsync", "rename_noreplace", "fsync"]


def test_a_rewrite_is_synced_before_it_takes_the_place(bench: Bench) -> None:
    claim = bench.claimed()
    bench.kernel.calls.clear()
    bench.files.rewrite(claim, b"new")
    calls = [call[0] for call in bench.kernel.calls]
    assert calls.index("fsync") < calls.index("rename_exchange")


# ---- clock and leftovers


def test_the_clock_is_the_filesystems_and_looked_at_every_ten_seconds(bench: Bench, tmp_path: Path) -> None:
    kernel, files = bench.kernel, bench.files
    kernel.network, kernel.stopped_ns = "nfs", 100 * 10**9
    kernel.moved_ns = 86_400 * 10**9
    real_s = System.wall_ns() / 1e9
    assert abs(files.now_s() - real_s) < 60
    probes = len([call for call in kernel.calls if call[0] == "open"])
    kernel.stopped_ns += 5 * 10**9
    assert abs(files.now_s() - real_s - 5) < 60
    assert len([call for call in kernel.calls if call[0] == "open"]) == probes
    kernel.stopped_ns += 6 * 10**9
    files.now_s()
    assert len([call for call in kernel.calls if call[0] == "open"]) == probes + 1
    assert [path.name for path in tmp_path.iterdir()] == ["q"]


def test_on_a_full_disk_the_clock_is_what_work_is_touched_with_or_goes_on_from_the_last_look(bench: Bench) -> None:
    kernel, files = bench.kernel, bench.files
    kernel.network, kernel.stopped_ns = "nfs", 100 * 10**9
    kernel.replaced["utime"] = lambda path, _=None: os.utime(path, (5000, 5000))
    bench.fail(errno.EDQUOT, "open")
    assert files.now_s() == 5000
    kernel.stopped_ns += 60 * 10**9
    bench.fail(errno.EROFS, "utime")
    assert files.now_s() == 5060
    with pytest.raises(OSError, match="quota"):
        QueueFiles(str(bench.root), "q", kernel).now_s()


def test_a_local_filesystems_clock_costs_no_file(bench: Bench) -> None:
    assert abs(bench.files.now_s() - System.wall_ns() / 1e9) < 60
    assert not [call for call in bench.kernel.calls if call[0] == "open"]


def test_only_old_temporary_files_of_ours_are_swept(bench: Bench, tmp_path: Path) -> None:
    old, young = tmp_path / f".{'0' * 32}.tmp", tmp_path / f".{'1' * 32}.tmp"
    for path in (old, young, tmp_path / "mine.tmp", tmp_path / ".ddmq.tmp"):
        path.touch()
        if path is not young:
            os.utime(path, (1, 1))
    assert bench.files.sweep_tmp(100) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [young.name, ".ddmq.tmp", "mine.tmp", "q"]


def test_what_cannot_be_swept_keeps_nothing_else_from_it(bench: Bench, tmp_path: Path) -> None:
    """A directory of such a name, and what the kernel refuses as in another's sticky directory."""
    paths = [tmp_path / f".{digit * 32}.tmp" for digit in "0123"]
    paths[0].mkdir()
    for path in paths[1:]:
        path.touch()
    for path in paths:
        os.utime(path, (1, 1))

    def refuse(path: str) -> None:
        if path == str(paths[1]):
            raise PermissionError(errno.EPERM, "Operation not permitted", path)
        os.unlink(path)

    bench.kernel.replaced["unlink"] = refuse
    assert bench.files.sweep_tmp(100) == 2
    assert [path.exists() for path in paths] == [True, True, False, False]


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_who_may_not_write_in_the_root_writes_in_work(bench: Bench, code: int) -> None:
    made = []

    def refuse(path: str, flags: int, *more: Any) -> int:
        if os.path.dirname(path) == str(bench.root) and flags & os.O_CREAT:
            raise OSError(code, os.strerror(code), path)
        made.append(os.path.relpath(path, bench.root))
        return os.open(path, flags, *more)

    bench.kernel.replaced["open"] = refuse
    bench.files.publish(NAME, b"data")
    assert bench.tree() == {f"q/{NAME}": b"data"}
    assert made[0].startswith(in_work("."))
    assert ".ddmq" not in made[0]
    left = bench.root / in_work(f".{'0' * 32}.tmp")
    left.touch()
    os.utime(left, (1, 1))
    assert bench.files.sweep_tmp(100) == 1
    bench.fail(code, "open")
    with pytest.raises(OSError, match=os.strerror(code)) as caught:
        bench.files.publish("6.1.ddmqa", b"data")
    assert os.path.dirname(caught.value.filename) == str(bench.root)


def test_a_link_whose_reply_was_lost_was_made(bench: Bench) -> None:
    """On a network filesystem the call is sent again, and told EEXIST."""
    bench.kernel.network = "nfs"
    bench.fail(errno.EINVAL, "rename_noreplace")

    def sent_twice(source: str, target: str) -> None:
        os.link(source, target)
        os.link(source, target)

    bench.kernel.replaced["link"] = sent_twice
    bench.files.publish(NAME, b"data")
    assert bench.tree() == {f"q/{NAME}": b"data"}
