"""The spool's verbs: names that arrive, hostile files, every call failed once, and who may settle."""

from __future__ import annotations

import errno
import json
import os
import pickle
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.rig import SETTINGS, FakeSystem, Pool, Q, Rig, World, fail_each
from tests.schedules import schedules
from workers.board import W
from workers.errors import (
    ClaimLost,
    InputGone,
    InvalidName,
    MessageExists,
    NotSupported,
    QueueMissing,
    QueueRefused,
    QueueUnavailable,
)
from workers.message import Claim, Message
from workers.queues import names
from workers.queues.base import Settings
from workers.queues.open import default_host
from workers.queues.spool import Spool

NOBODY = 65534


def settle(pool: Pool, verb: Callable[..., object], claim: Claim, *arguments: object) -> object:
    try:
        return verb(claim, *arguments)
    finally:
        pool.spool.settled(claim)


def arrive(rig: Rig, name: str | bytes, body: bytes = b"x") -> None:
    """A file that somebody else renamed into incoming/."""
    path = os.path.join(os.fsencode(rig.path / "incoming"), os.fsencode(name))
    with open(path, "xb") as file:
        file.write(body)


def metas(rig: Rig) -> list[dict[str, object]]:
    return [json.loads((rig.path / "errors" / file).read_bytes()) for file in rig.files("errors", meta=True)]


# ---- opening


def test_a_queue_is_made_only_when_asked_and_where_its_parent_exists(tmp_path):
    with pytest.raises(QueueMissing, match="incoming"):
        Spool(str(tmp_path / "queue"))
    with pytest.raises(QueueMissing, match="parent"):
        Spool(str(tmp_path / "none" / "queue"), SETTINGS)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("path", ["/tmp/a\0b", "/tmp/a\ud800b"])
def test_what_cannot_be_a_path_is_no_queue(path):
    with pytest.raises(QueueMissing):
        Spool(path)


@pytest.mark.parametrize("suffix", names.IGNORED_SUFFIXES[:-1])
def test_a_host_whose_messages_nobody_would_take_is_refused_and_never_drawn(monkeypatch, suffix):
    with pytest.raises(InvalidName, match="must not end in"):
        names.check_host(f"node{suffix}")
    monkeypatch.setattr("socket.gethostname", lambda: f"node{suffix}")
    assert names.check_host(default_host()) == f"node-{suffix[1:]}"


def test_a_queue_that_was_made_is_durable_before_anything_is_put_into_it(tmp_path):
    system = FakeSystem(World(tmp_path))
    synced = []

    def note(name, arguments):
        if name == "open" and arguments[1] & os.O_DIRECTORY:
            synced.append(arguments[0])

    system.before = note
    Spool(str(tmp_path / "queue"), Settings(create=True), system=system)
    assert synced == [str(tmp_path / "queue" / ".pool"), str(tmp_path / "queue"), str(tmp_path)]
    Spool(str(tmp_path / "queue"), Settings(create=True), system=system)
    assert len(synced) == 3


def test_a_directory_of_somebody_else_is_not_made_a_queue(tmp_path):
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(QueueRefused, match="not empty"):
        Spool(str(tmp_path), SETTINGS)
    assert os.listdir(tmp_path) == ["thesis.txt"]


def test_a_queue_with_other_times_is_refused_by_the_options_name(tmp_path, spool):
    with pytest.raises(QueueRefused, match=r"lease_timeout = 9s.*has 4s"):
        Spool(str(tmp_path / "queue"), Settings(lease_timeout_s=9.0))
    assert Spool(str(tmp_path / "queue")).directory.times.lease_timeout_s == 4.0


@pytest.mark.parametrize("text", ["", "no json", "[]", '{"format": "1"}', '{"format": 1, "stale_after_s": "x"}'])
def test_a_damaged_format_is_refused(tmp_path, spool, text):
    (tmp_path / "queue" / ".pool" / "format").write_text(text)
    with pytest.raises(QueueRefused, match="format"):
        Spool(str(tmp_path / "queue"))


def test_a_newer_format_is_refused(tmp_path, spool):
    (tmp_path / "queue" / ".pool" / "format").write_text('{"format": 2}')
    with pytest.raises(QueueRefused, match="format 2"):
        Spool(str(tmp_path / "queue"))


def test_a_file_in_the_way_of_a_directory_is_refused(tmp_path):
    (tmp_path / "queue").mkdir()
    (tmp_path / "queue" / "incoming").symlink_to(tmp_path)
    (tmp_path / "queue" / "tmp").write_text("in the way")
    with pytest.raises(QueueRefused, match="in the way"):
        Spool(str(tmp_path / "queue"), SETTINGS)


def test_a_directory_that_renames_cannot_reach_is_refused(rig):
    pool = rig.pool()
    pool.system.fail_all("rename", errno.EXDEV)
    with pytest.raises(QueueRefused, match="one filesystem"):
        pool.spool.directory.check_renames()


def test_a_probe_that_a_filer_takes_is_tried_again(rig):
    pool = rig.pool()
    taken = []

    def filer(name, arguments):
        if name == "rename" and "/incoming/.probe" in arguments[1] and not taken:
            taken.append(arguments[1])
            os.unlink(arguments[1])

    pool.system.after = filer
    pool.spool.directory.check_renames()
    assert len(taken) == 1
    assert rig.files("tmp") == []


def test_a_meta_whose_check_digits_fit_by_chance_is_no_message(rig):
    name = next(f"report-{number}.csv" for number in range(10**6) if _fits_meta(f"report-{number}.csv"))
    pool = rig.pool()
    pool.spool.put(b"x", name)
    pool.spool.reject(pool.claim(), "a reason")
    assert [listed.name for listed in pool.spool.list("errors")] == [name]
    assert pool.spool.depth().errors == 1


def _fits_meta(name):
    return names.check(name) == names.check(f"{name}.meta")


# ---- two of one name


def test_two_files_of_one_name_one_after_the_other_are_both_kept(rig):
    pool = rig.pool()
    done = []
    for body in (b"monday", b"tuesday"):
        pool.spool.put(body, "report.csv")
        claim = pool.claim()
        done.append(Path(claim.path).read_bytes())
        settle(pool, pool.spool.done, claim)
    assert done == [b"monday", b"tuesday"]


@pytest.mark.parametrize("verb", ["reject", "retry", "release"])
def test_a_second_of_one_name_while_the_first_is_in_hand_and_both_failing_are_both_kept(rig, verb):
    one, two = rig.pool("one"), rig.pool("two")
    arrive(rig, "report.csv", b"monday")
    first = one.claim()
    arrive(rig, "report.csv", b"tuesday")
    second = two.claim()
    arguments = ("no",) if verb == "reject" else ()
    settle(one, getattr(one.spool, verb), first, *arguments)
    settle(two, getattr(two.spool, verb), second, *arguments)
    state = {"reject": "errors", "retry": "deferred", "release": "incoming"}[verb]
    assert rig.everything() == {state: [b"monday", b"tuesday"]}


def test_a_second_of_one_name_put_while_the_first_is_in_errors_meets_nobody(rig):
    pool = rig.pool(settings=SETTINGS)
    for body in (b"1", b"2", b"3"):
        pool.spool.put(body, "report.csv")
        settle(pool, pool.spool.reject, pool.claim(), "no")
    pool.spool.put(b"4", "report.csv")
    assert pool.spool.requeue("report.csv") == 3
    assert rig.everything() == {"incoming": [b"1", b"2", b"3", b"4"]}


def test_a_name_that_waits_is_never_replaced(tmp_path):
    """All orders of two producers of one name and a consumer, at every call that the others can see."""
    world, runs, number = World(tmp_path), 0, iter(range(10**6))
    made: list[tuple[Rig, dict[bytes, str], list[bytes]]] = []

    def setup():
        rig = Rig(tmp_path / f"queue{next(number)}", world)
        consumer, outcome, taken = rig.pool(), {}, []
        made.append((rig, outcome, taken))

        def producer(body):
            spool = rig.spool()

            def act(step):
                spool.system.before = lambda call, _: step() if call in ("link", "rename") else None
                try:
                    spool.put(body, "report.csv", durable=False)
                    outcome[body] = "put"
                except MessageExists:
                    outcome[body] = "exists"

            return act

        def consume(step):
            step()
            claim = consumer.spool.claim()
            if claim is not None:
                taken.append(Path(claim.path).read_bytes())

        return producer(b"1"), producer(b"2"), consume

    for run in schedules(setup):
        rig, outcome, taken = made[-1]
        found = sorted(body for state in rig.everything().values() for body in state)
        assert found == sorted(body for body, said in outcome.items() if said == "put"), run.trail
        assert "put" in outcome.values(), run.trail
        assert "tmp" not in rig.everything(), run.trail
        assert set(taken) <= set(found), run.trail
        runs += 1
    assert runs == 90  # 6! / (2! 2! 2!): each of the three has a piece before and one after its step


def test_a_named_put_does_without_hard_links_and_still_never_replaces(rig):
    spool = rig.spool()
    spool.system.fail_all("link", errno.EPERM)
    spool.put(b"first", "mine")
    with pytest.raises(MessageExists):
        spool.put(b"second", "mine")
    assert rig.everything() == {"incoming": [b"first"]}


def test_a_named_put_is_refused_where_nothing_keeps_a_rename_from_replacing(rig):
    spool = rig.spool()
    spool.system.fail_all("link rename_noreplace", errno.EPERM)
    with pytest.raises(NotSupported, match="hard links"):
        spool.put(b"x", "mine")
    assert rig.everything() == {}


def test_a_delay_together_with_a_name_is_refused(spool):
    with pytest.raises(NotSupported, match="delay"):
        spool.put(b"x", "mine", delay=1)


def test_a_producer_stopped_for_half_the_stale_time_gives_up(rig):
    """Its file in tmp/ may be reaped any moment; what it says afterwards must not be a guess."""
    spool = rig.spool()
    times = iter((0, int(51e9)))
    spool.system.boottime_ns = lambda: next(times)
    with pytest.raises(QueueUnavailable, match="stopped for so long"):
        spool.put(b"x")
    assert rig.everything() == {}


def test_put_makes_its_body_and_its_name_durable_unless_told_otherwise(rig):
    spool = rig.spool()
    spool.system.calls.clear()
    spool.put(b"x")
    assert spool.system.calls.count("fsync") == 2
    spool.system.calls.clear()
    spool.put(b"x", durable=False)
    assert spool.system.calls.count("fsync") == 0
    spool.system.calls.clear()
    spool.put_many([b"x"] * 10)
    assert spool.system.calls.count("fsync") == 11


# ---- names that arrive


HOSTILE = [
    b"n" * 255,
    b"new\nline",
    b"\x1b]0;title\x07\x1b[31mred",
    b"not \xff\xfe utf-8",
    b"-rf",
    b"--help",
    b"t0c0-0123456789abcdef012345~look-alike",
    b"t99999c0-x~y",
    b"*",
    b"$(touch hacked)",
    b" ",
    b"a" * 240 + b".tar.gz",
    "\N{PILE OF POO}".encode() * 60,
    b"\xff" * 255,
    b"1234567890.t0c0-x~y",
    b"name.meta",
]


@pytest.mark.parametrize("name", HOSTILE, ids=lambda raw: ascii(raw)[:40])
def test_a_hostile_name_is_claimed_deferred_rejected_and_requeued_as_any_other(rig, name):
    pool = rig.pool()
    arrive(rig, name, b"content")
    claim = pool.claim()
    kept = claim.name
    assert len(os.fsencode(kept)) <= 175
    assert Message(claim, "q").body == b"content"
    settle(pool, pool.spool.retry, claim, 0.0)
    pool.rounds(2)
    claim = pool.claim()
    assert (claim.name, claim.attempt) == (kept, 2)
    settle(pool, pool.spool.release, claim)
    claim = pool.claim()
    settle(pool, pool.spool.reject, claim, "no")
    (listed,) = pool.spool.list()
    assert (listed.state, listed.name) == ("errors", kept)
    (shown,) = pool.spool.show(kept)
    assert shown.meta is not None
    assert shown.meta["reason"] == "no"
    assert pool.spool.depth().errors == 1
    assert pool.spool.requeue(kept) == 1
    claim = pool.claim()
    settle(pool, pool.spool.done, claim)
    assert rig.everything() == {}
    assert not rig.files("errors", meta=True)


@pytest.mark.parametrize("name", HOSTILE, ids=lambda raw: ascii(raw)[:40])
def test_a_hostile_name_is_forwarded_and_released_by_the_keeper(rig, tmp_path, name):
    pool, following = rig.pool(), Rig(tmp_path / "next", rig.world)
    following.spool()
    arrive(rig, name, b"content")
    claim = pool.claim()
    pool.spool.settled(claim)
    assert pool.keeper.release_owner(pool.forget_owner(), "died") == [claim.name]
    claim = pool.claim()
    assert claim.crashes == 1
    settle(pool, pool.spool.forward, claim, following.spool())
    assert following.everything() == {"incoming": [b"content"]}
    assert following.pool().claim().name == claim.name


def test_a_long_name_keeps_its_extension_and_meta_the_whole_of_it(rig):
    pool = rig.pool()
    name = "x" * 240 + ".csv"
    arrive(rig, name)
    claim = pool.claim()
    assert claim.name.endswith(".csv")
    assert len(claim.name) == names.NAME_BYTES_MAX
    settle(pool, pool.spool.reject, claim, "no")
    assert metas(rig)[0]["name"] == name


def test_two_long_names_alike_in_what_is_kept_stay_apart(rig):
    pool = rig.pool()
    for letter in "ab":
        arrive(rig, "x" * 200 + letter * 50, letter.encode())
    found = set()
    for _ in range(2):
        claim = pool.claim()
        found.add(claim.name)
        settle(pool, pool.spool.reject, claim, "no")
    assert len(found) == 2
    assert rig.everything() == {"errors": [b"a", b"b"]}


@pytest.mark.parametrize(
    "name", [".hidden", ".", "x.tmp", "x.part", "x.filepart", "x.crdownload", "x~", ".x.swp", "x.swp"]
)
def test_a_name_on_the_ignore_list_is_left_alone(rig, name):
    pool = rig.pool()
    if name != ".":
        arrive(rig, name)
    assert pool.spool.claim() is None
    assert pool.spool.depth().waiting == 0
    assert not list(pool.spool.list())


def test_every_claim_and_every_way_back_writes_a_fresh_token(rig):
    pool = rig.pool()
    pool.spool.put(b"x", "mine")
    seen = []
    for verb in ("release", "release", "retry"):
        claim = pool.claim()
        seen.append(claim.token)
        settle(pool, getattr(pool.spool, verb), claim)
        if verb == "release":
            seen += [names.parse(file).token for file in rig.files("incoming")]
        pool.rounds(2)
    claim = pool.claim()
    seen.append(claim.token)
    settle(pool, pool.spool.reject, claim, "no")
    assert [names.parse(file).token for file in rig.files("errors")] == [claim.token]
    pool.spool.requeue("mine")
    seen += [names.parse(file).token for file in rig.files("incoming")]
    assert len(set(seen)) == len(seen) == 7


# ---- what is no regular file


def test_a_directory_stays_in_incoming_and_is_named_once(rig, caplog):
    pool = rig.pool()
    (rig.path / "incoming" / "tree\x1b[31m").mkdir()
    (rig.path / "incoming" / "tree\x1b[31m" / "half").touch()
    arrive(rig, "z")
    settle(pool, pool.spool.done, pool.claim())
    for _ in range(3):
        assert pool.spool.claim() is None
    said = [record.getMessage() for record in caplog.records if "tree" in record.getMessage()]
    assert len(said) == 1
    assert "\x1b" not in said[0]
    depth = pool.spool.depth()
    assert (depth.waiting, depth.ignored) == (0, 1)


def _fifo(path: str) -> None:
    os.mkfifo(path)


def _socket(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)


def _dangling(path: str) -> None:
    os.symlink("/nowhere/at/all", path)


def _to_a_secret(path: str) -> None:
    os.symlink("/etc/passwd", path)


def _to_a_directory(path: str) -> None:
    os.symlink("/etc", path)


@pytest.mark.parametrize("make", [_fifo, _socket, _dangling, _to_a_secret, _to_a_directory])
def test_what_is_no_regular_file_is_claimed_with_a_reason_and_goes_to_errors_unread(rig, make, monkeypatch):
    pool = rig.pool()
    monkeypatch.chdir(rig.path / "incoming")  # a socket's path is limited to 108 bytes
    make("odd")
    monkeypatch.chdir("/")
    opened = []
    pool.system.before = lambda call, arguments: opened.append(arguments[0]) if call == "open" else None
    claim = pool.claim()
    assert claim.trouble
    assert claim.fd == -1
    assert opened == [str(rig.path / ".pool/id")]  # that a fresh owner's directory is made in the right queue
    settle(pool, pool.spool.reject, claim, claim.trouble)
    assert "regular" in str(metas(rig)[0]["reason"])
    assert pool.spool.depth().errors == 1


@pytest.mark.parametrize("make", [_fifo, _socket, _dangling, _to_a_secret])
def test_what_turns_odd_after_it_was_listed_is_neither_followed_nor_waited_for(rig, make, monkeypatch):
    """The file is exchanged between the scan and the claim."""
    pool = rig.pool()
    arrive(rig, "odd")
    monkeypatch.chdir(rig.path / "incoming")

    def exchange(call, _):
        if call == "rename":
            os.unlink("odd")
            make("odd")

    pool.spool.system.before = exchange
    claim = pool.claim()
    pool.spool.system.before = None
    assert claim.trouble
    assert claim.fd == -1 or not stat.S_ISREG(os.fstat(claim.fd).st_mode)
    settle(pool, pool.spool.reject, claim, claim.trouble)
    assert pool.spool.depth().errors == 1


@contextmanager
def open_place() -> Iterator[Path]:
    """A directory that nobody may enter and write, unlike a test's own."""
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o777)  # noqa: S103 - of this test alone, and gone with it
        yield Path(place)


def as_nobody(act: Callable[[], object]) -> object:
    """What *act* returns in a child without privileges."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            found: object
            try:
                found = act()
            except BaseException as error:  # noqa: BLE001 - it is the answer
                found = f"{type(error).__name__}: {error}"
            os.write(writer, pickle.dumps(found))
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as file:
        raw = file.read()
    os.waitpid(pid, 0)
    return pickle.loads(raw)  # noqa: S301 - our own child's


def test_a_file_that_cannot_be_read_is_claimed_with_the_reason():
    with open_place() as place:

        def act():
            rig = Rig(place / "queue", World(place))
            pool = rig.pool()
            arrive(rig, "secret")
            os.chmod(rig.path / "incoming" / "secret", 0)
            claim = pool.claim()
            settle(pool, pool.spool.reject, claim, claim.trouble)
            return claim.trouble, len(rig.files("errors")), metas(rig)[0]["reason"]

        trouble, count, reason = as_nobody(act)
        assert "permission denied" in trouble
        assert (count, reason) == (1, trouble)


def test_a_queue_that_may_not_be_written_says_so_and_where():
    with open_place() as place:
        Rig(place / "queue", World(place)).spool()
        for directory in ("tmp", "incoming", "pending", ""):
            os.chmod(place / "queue" / directory, 0o755)  # noqa: S103 - nobody may look, not write
        said = as_nobody(lambda: Spool(str(place / "queue")).put(b"x")) if os.geteuid() == 0 else "QueueUnavailable"
        assert "QueueUnavailable" in str(said)
        if os.geteuid() == 0:
            assert str(place / "queue") in str(said)
            assert f"[errno {errno.EACCES}]" in str(said)


def test_an_empty_file_is_a_message(rig):
    pool = rig.pool()
    arrive(rig, "empty", b"")
    claim = pool.claim()
    assert claim.trouble is None
    assert Message(claim, "q").body == b""


def test_two_gigabytes_are_claimed_and_handed_on_by_path_without_being_read(rig, tmp_path):
    pool, following = rig.pool(), Rig(tmp_path / "next", rig.world)
    following.spool()
    arrive(rig, "big", b"")
    os.truncate(rig.path / "incoming" / "big", 1 << 31)
    pool.system.calls.clear()
    claim = pool.claim()
    assert claim.size == 1 << 31
    assert Message(claim, "q").path.stat().st_size == 1 << 31
    settle(pool, pool.spool.forward, claim, following.spool())
    assert pool.system.calls.count("read") == 1  # of .pool/id, for the owner's directory
    assert (following.path / "incoming" / following.files("incoming")[0]).stat().st_size == 1 << 31


def test_put_refuses_a_path_that_is_no_regular_file(rig, tmp_path):
    spool = rig.spool()
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path, tmp_path / "none"):
        with pytest.raises(QueueUnavailable):
            spool.put(path)
        with pytest.raises(QueueUnavailable):
            spool.put_file(path)
    assert rig.everything() == {}


# ---- put_file


def test_put_file_moves_the_file(rig, tmp_path):
    source = tmp_path / "source"
    source.write_bytes(b"content")
    assert rig.spool().put_file(source, "mine") == "mine"
    assert not source.exists()
    assert rig.everything() == {"incoming": [b"content"]}


def test_put_file_gives_the_file_back_when_its_name_waits_already(rig, tmp_path):
    spool, source = rig.spool(), tmp_path / "source"
    spool.put(b"first", "mine")
    source.write_bytes(b"second")
    with pytest.raises(MessageExists):
        spool.put_file(source, "mine")
    assert source.read_bytes() == b"second"
    assert rig.everything() == {"incoming": [b"first"]}


def test_put_file_copies_from_another_filesystem(rig, tmp_path):
    spool, source = rig.spool(), tmp_path / "source"
    source.write_bytes(b"content")

    def across(call, arguments):
        if call == "rename" and arguments[0] == str(source):
            raise OSError(errno.EXDEV, "Invalid cross-device link")

    spool.system.before = across
    spool.put_file(source)
    assert not source.exists()
    assert rig.everything() == {"incoming": [b"content"]}


# ---- what a handler does to its input


def test_done_after_the_handler_removed_its_input_is_done(rig):
    pool = rig.pool()
    pool.spool.put(b"x")
    claim = pool.claim()
    os.unlink(claim.path)
    settle(pool, pool.spool.done, claim)
    assert rig.everything() == {}


@pytest.mark.parametrize("verb", ["retry", "reject", "release", "forward"])
def test_any_other_settle_after_the_handler_removed_its_input_says_input_gone(rig, tmp_path, verb):
    pool, following = rig.pool(), Rig(tmp_path / "next", rig.world).spool()
    pool.spool.put(b"x")
    claim = pool.claim()
    os.unlink(claim.path)
    arguments = {"reject": ("no",), "forward": (following,)}.get(verb, ())
    with pytest.raises(InputGone, match="handler"):
        settle(pool, getattr(pool.spool, verb), claim, *arguments)
    assert rig.everything() == {}
    assert following.depth().waiting == 0


def test_files_left_beside_the_input_go_to_errors(rig, caplog):
    pool = rig.pool()
    pool.spool.put(b"input", "mine")
    claim = pool.claim()
    beside = Path(claim.path).parent
    (beside / "output\n").write_bytes(b"output")
    (beside / "core").write_bytes(b"core")
    settle(pool, pool.spool.done, claim)
    pool.spool.settle_leftovers()
    assert rig.everything() == {"errors": [b"core", b"output"]}
    assert {meta["reason"] for meta in metas(rig)} == {"left by a handler"}
    assert {meta["name"] for meta in metas(rig)} == {"output\n", "core"}
    assert all("\n" not in record.getMessage() for record in caplog.records)


def test_a_directory_left_beside_the_input_does_not_keep_the_worker_from_leaving(rig):
    pool = rig.pool()
    pool.spool.put(b"input", "mine")
    claim = pool.claim()
    (Path(claim.path).parent / "tree").mkdir()
    settle(pool, pool.spool.done, claim)
    pool.spool.detach()
    assert os.listdir(rig.path / "pending") == []


def test_what_is_in_hand_is_no_leftover(rig):
    pool = rig.pool()
    pool.spool.put(b"input", "mine")
    claim = pool.claim()
    pool.spool.settle_leftovers()
    assert rig.everything() == {"pending": [b"input"]}
    settle(pool, pool.spool.done, claim)


def test_a_claim_nobody_knows_of_goes_back_as_it_was(rig):
    """As after a rename whose reply was lost."""
    pool = rig.pool()
    pool.spool.put(b"x", "mine")
    claim = pool.claim()
    pool.spool.settled(claim)
    pool.spool.settle_leftovers()
    again = pool.claim()
    assert (again.name, again.attempt, again.crashes) == ("mine", 1, 0)
    assert again.token != claim.token


# ---- every call failed once, on a real filesystem (all operations: see tests/sim/test_every_call.py)


def _all(pool: Pool) -> dict[str, list[bytes]]:
    return pool.rig.everything()


@pytest.mark.parametrize("name", [None, "mine"])
def test_put_leaves_no_trace_when_any_call_fails(fresh_rig, name):
    count = 0
    for pool, trail, raised in fail_each(fresh_rig, lambda pool: pool.spool.put(b"content", name)):
        count += 1
        assert raised is None or isinstance(raised, QueueUnavailable | NotSupported), trail
        found = _all(pool)
        is_put = found.pop("incoming", []) == [b"content"]
        if "unlink" in trail:
            found.pop("tmp", None)
        assert not found, trail
        assert is_put or raised is not None, trail
        if raised is not None and is_put:
            assert isinstance(raised, QueueUnavailable), trail
            assert raised.is_unknown, trail
    assert count >= 4 * 8


def _claimed(pool: Pool) -> None:
    pool.spool.put(b"content", "mine")
    pool.held = pool.claim()  # type: ignore[attr-defined]


def _insist(pool: Pool, verb: str, *arguments: object) -> None:
    """As a worker settles: tried until it succeeds."""
    first: BaseException | None = None
    for _ in range(3):
        try:
            getattr(pool.spool, verb)(pool.held, *arguments)  # type: ignore[attr-defined]
        except QueueUnavailable as error:
            first = error
        else:
            break
    pool.spool.settled(pool.held)  # type: ignore[attr-defined]
    if first is not None:
        raise first


@pytest.mark.parametrize(
    ("verb", "arguments", "state"),
    [("done", (), None), ("retry", (), "deferred"), ("retry", (5.0,), "deferred"), ("reject", ("no",), "errors"),
     ("release", (), "incoming")],
)  # fmt: skip
def test_a_settle_tried_again_after_any_failure_settles_once(fresh_rig, verb, arguments, state):
    for pool, trail, raised in fail_each(fresh_rig, lambda pool: _insist(pool, verb, *arguments), _claimed):
        found = _all(pool)
        if verb == "reject" and "unlink" in trail:
            found.pop("tmp", None)
        assert found == ({state: [b"content"]} if state else {}), trail
        assert raised is None or isinstance(raised, QueueUnavailable), trail


@pytest.mark.parametrize(
    ("verb", "arguments"),
    [("done", ()), ("retry", ()), ("reject", ("no",)), ("release", ())],
    ids=["done", "retry", "reject", "release"],
)
def test_a_settle_while_the_mount_is_away_is_tried_again(rig, verb, arguments):
    """Everything answers ENOENT then, with a lease that is still good: neither is it done, nor is the input gone."""
    pool = rig.pool()
    _claimed(pool)
    away = rig.path.with_name("away")
    rig.path.rename(away)
    with pytest.raises(QueueUnavailable):
        getattr(pool.spool, verb)(pool.held, *arguments)
    away.rename(rig.path)
    getattr(pool.spool, verb)(pool.held, *arguments)
    assert rig.files("pending") == []


def test_a_claim_that_failed_anywhere_is_given_back_when_the_worker_is_idle(fresh_rig):
    """Whatever fails, the next claims of the same worker find the message, uncounted and with nothing left open."""

    def claim(pool):
        pool.held = pool.spool.claim()

    for pool, trail, raised in fail_each(fresh_rig, claim, lambda pool: pool.spool.put(b"content", "mine")):
        assert raised is None or isinstance(raised, QueueUnavailable), trail
        found = pool.held if raised is None else None
        for _ in range(3):
            if found is None:
                found = pool.spool.claim()
            if found is None:
                pool.spool.settle_leftovers()
        assert found is not None, trail
        if found.trouble is None:
            assert (found.attempt, found.crashes) == (1, 0), trail
            assert Message(found, "q").body == b"content", trail


def test_claims_that_fail_leave_no_descriptor_open(fresh_rig):
    def claim(pool):
        found = pool.spool.claim()
        if found is not None:
            pool.spool.settled(found)

    def open_files():
        return [fd for fd in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{fd}")]

    before = open_files()
    for _, trail, _ in fail_each(fresh_rig, claim, lambda pool: pool.spool.put(b"x")):
        assert open_files() == before, trail


def test_a_claim_that_could_neither_be_opened_nor_given_back_is_found_again(rig):
    pool = rig.pool()
    pool.spool.put(b"x", "mine")
    pending = str(rig.path / "pending")

    def broken(call, arguments):
        if call in ("open", "rename") and str(arguments[0]).startswith(pending):
            raise OSError(errno.EIO, "Input/output error", arguments[0])

    pool.system.before = broken
    with pytest.raises(QueueUnavailable):
        pool.spool.claim()
    pool.system.before = None
    assert pool.spool.claim() is None
    pool.spool.settle_leftovers()
    assert (pool.claim().name, rig.files("incoming")) == ("mine", [])


@pytest.mark.parametrize("code", [errno.ESTALE, errno.EIO])
@pytest.mark.parametrize(
    ("verb", "arguments", "state"),
    [("done", (), None), ("retry", (), "deferred"), ("reject", ("no",), "errors"), ("release", (), "incoming")],
)
def test_a_settle_whose_reply_was_lost_counts_on_a_network_filesystem(tmp_path, verb, arguments, state, code):
    world = World(tmp_path)
    for nth in range(1, 99):
        pool = Rig(tmp_path / f"queue{nth}", world, network="nfs").pool()
        _claimed(pool)
        pool.system.fail(nth, code, is_reply_lost=True)
        with suppress(QueueUnavailable):
            _insist(pool, verb, *arguments)
        found = _all(pool)
        found.pop("tmp", None)
        assert found == ({state: [b"content"]} if state else {}), (nth, pool.system.failed)
        if pool.system.failed is None:
            break


def test_a_put_whose_reply_was_lost_counts_on_a_network_filesystem(tmp_path):
    world = World(tmp_path)
    for name in (None, "mine"):
        for nth in range(1, 99):
            pool = Rig(tmp_path / f"queue{name}{nth}", world, network="nfs").pool()
            pool.system.fail(nth, errno.EIO, is_reply_lost=True)
            raised = None
            try:
                pool.spool.put(b"content", name)
            except QueueUnavailable as error:
                raised = error
            there = _all(pool).get("incoming", [])
            assert there in ([], [b"content"])
            assert raised is not None or there, (nth, pool.system.failed)
            assert raised is None or not there or raised.is_unknown, (nth, pool.system.failed)
            if pool.system.failed is None:
                break


# ---- fencing


def _taken_over(rig: Rig) -> tuple[Pool, Pool, Claim]:
    """Pool one holds a claim, and was stopped until pool two released it."""
    one, two = rig.pool("one"), rig.pool("two")
    one.spool.put(b"content", "mine")
    claim = one.claim()
    kept = two.rounds(7)
    assert kept.lease_lost == 1
    return one, two, claim


@pytest.mark.parametrize("verb", ["done", "retry", "reject", "release", "forward", "forward a body"])
@pytest.mark.parametrize("has_beaten", [False, True])
def test_a_settle_after_the_claim_was_given_to_another_is_fenced(rig, tmp_path, verb, has_beaten):
    one, two, claim = _taken_over(rig)
    following = Rig(tmp_path / "next", rig.world).spool()
    if has_beaten:  # continued: the keeper is there before the worker
        one.keeper.keep()
        one.keeper.keep()
    arguments = {"reject": ("no",), "forward": (following,), "forward a body": (following, [b"new"])}.get(verb, ())
    with pytest.raises(ClaimLost, match="another"):
        settle(one, getattr(one.spool, verb.split()[0]), claim, *arguments)
    assert rig.everything() == {"incoming": [b"content"]}
    again = two.claim()
    assert (again.name, again.crashes) == ("mine", 1)
    settle(two, two.spool.done, again)
    assert rig.everything() == {}


def test_a_settle_after_the_other_has_claimed_it_is_fenced_too(rig):
    one, two, claim = _taken_over(rig)
    theirs = two.claim()
    with pytest.raises(ClaimLost):
        settle(one, one.spool.done, claim)
    assert rig.everything() == {"pending": [b"content"]}
    settle(two, two.spool.done, theirs)


def test_done_after_the_input_was_removed_with_a_lapse_is_lost(rig):
    pool = rig.pool()
    pool.spool.put(b"x")
    claim = pool.claim()
    os.unlink(claim.path)
    pool.rounds(1, every_s=2.5)  # more than half the lease timeout between two beats
    assert pool.words[Q.LAPSES] == 1
    with pytest.raises(ClaimLost):
        settle(pool, pool.spool.done, claim)


def test_done_after_the_input_was_removed_in_a_gap_still_open_is_lost(rig):
    pool = rig.pool()
    pool.spool.put(b"x")
    claim = pool.claim()
    os.unlink(claim.path)
    rig.world.advance(2.0)
    with pytest.raises(ClaimLost):
        settle(pool, pool.spool.done, claim)


def test_no_claim_without_a_young_beat_and_a_fresh_owner_after_a_gap(rig):
    pool = rig.pool()
    pool.spool.put(b"x", "a")
    settle(pool, pool.spool.release, pool.claim())
    before = pool.owner
    rig.world.advance(2.0)
    assert pool.spool.claim() is None
    pool.keeper.keep()
    claim = pool.claim()
    assert pool.owner != before
    assert os.path.basename(os.path.dirname(claim.path)) == pool.owner
    assert os.listdir(rig.path / "pending") == [pool.owner]


def taken(pool, tries):
    """The names of what was claimed, and finished, in so many tries."""
    found = []
    for _ in range(tries):
        claim = pool.spool.claim()
        if claim is not None:
            found.append(claim.name)
            settle(pool, pool.spool.done, claim)
    return found


def test_a_worker_whose_directory_is_gone_takes_a_fresh_one(rig):
    """It was stopped, a keeper of another host took its directory away, and its own keeper has not beaten since."""
    pool = rig.pool()
    pool.spool.put(b"first", "a")
    settle(pool, pool.spool.done, pool.claim())
    before = pool.owner
    os.rmdir(rig.path / "pending" / before)
    for name in ("b", "c"):
        pool.spool.put(b"x", name)
    found = taken(pool, 5)
    assert sorted(found) == ["b", "c"]
    assert pool.owner != before
    assert os.listdir(rig.path / "pending") == [pool.owner]


def test_a_file_that_cannot_be_renamed_is_named_once_and_holds_up_no_other(rig, caplog):
    """An immutable file, or another user's in a sticky directory."""
    pool = rig.pool()
    for name in ("a", "b", "c"):
        pool.spool.put(b"x", name)

    def refuse(call, arguments):
        if call == "rename" and str(arguments[0]).endswith("/incoming/b"):
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    pool.system.before = refuse
    found = taken(pool, 4)
    assert found == ["a", "c"]
    assert caplog.text.count("cannot be claimed") == 1
    assert rig.everything() == {"incoming": [b"x"]}


def test_a_lost_race_is_counted_and_the_next_name_is_tried(rig):
    pool, other = rig.pool("one"), rig.pool("two")
    for name in ("a", "b"):
        pool.spool.put(b"x", name)

    def taken(call, arguments):
        if call == "rename" and arguments[0].endswith("/a"):
            pool.system.before = None
            other.claim()

    pool.system.before = taken
    assert pool.claim().name == "b"
    assert pool.board.worker(0).words[W.CONFLICTS] == 1


def test_a_listing_that_shows_what_is_gone_does_not_hold_a_worker_for_ever(rig):
    """As a network filesystem's cached listing may, for seconds."""
    pool = rig.pool()
    pool.spool.put(b"x", "mine")
    settle(pool, pool.spool.release, pool.claim())
    pool.system.fail_all("rename", errno.ENOENT)
    assert pool.spool.claim() is None
    pool.system.before = None
    assert pool.claim().name == "mine"


def test_names_of_ones_own_shape_and_marks_are_refused_as_given_names(spool):
    with pytest.raises(InvalidName, match="mark"):
        spool.put(b"x", "t0c0-0123456789abcdef012345~x")
    with pytest.raises(InvalidName, match="control"):
        spool.put(b"x", "a\x1bb")
    with pytest.raises(InvalidName, match="176 bytes"):
        spool.put(b"x", "\N{GREEK SMALL LETTER ALPHA}" * 88)


# ---- a filer of the original kind


def test_what_mentats_own_queue_puts_is_taken_here_and_the_other_way_round(rig):
    dirq = pytest.importorskip("mentat.dirq", reason="mentat-ng is not installed")
    pool = rig.pool()
    theirs = dirq.DirectoryQueue(str(rig.path))
    name = theirs.enqueue("from theirs")
    claim = pool.claim()
    assert (claim.name, Message(claim, "q").body) == (name, b"from theirs")
    assert names.is_unique(name)
    settle(pool, pool.spool.done, claim)
    ours = pool.spool.put(b"from ours")
    assert theirs.next() == (ours, "from ours")
    theirs.commit(ours)
    settled = theirs.enqueue("again")
    settle(pool, pool.spool.release, pool.claim())
    found, body = theirs.next()
    assert found.endswith(f"~{settled}")
    assert body == "again"
    theirs.commit(found)
    assert rig.everything() == {}
