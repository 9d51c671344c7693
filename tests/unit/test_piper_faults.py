"""
Each known fault of mentat's piper and filer, by its number, is none of ours.

Where it is cheap the same is asked of the original, which must fail: were it repaired, the test would say so.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.rig import SETTINGS, FakeSystem, Rig
from tests.unit.test_output import Asked
from tests.unit.test_piper import Alone, Scripted, then
from tests.unit.test_worker import figures, work
from workers.board import W
from workers.errors import OrchestratorError, QueueUnavailable
from workers.message import Message
from workers.piper import Commiter, Piper, text_of
from workers.queues import names
from workers.queues.base import Consumer, Settings
from workers.queues.spool import Spool

ODD = b"caf\xe9\r\nline\r\n"


@pytest.fixture(name="original")
def _original(tmp_path: Path) -> Callable[[], Any]:
    """Makes an object of the original's own class on one queue, as a process would that starts now."""
    dirq = pytest.importorskip("mentat.dirq", reason="mentat-ng is not installed")
    return lambda: dirq.DirectoryQueue(str(tmp_path / "original"))


def fault(raises: type[BaseException] | tuple[type[BaseException], ...] = AssertionError) -> pytest.MarkDecorator:
    """The original fails so."""
    return pytest.mark.xfail(strict=True, raises=raises, reason="a fault of the original's")


def pipe(pool: Any, *components: Any, **more: Any) -> Piper:
    """Let a worker of *pool* handle what is there."""
    piper = Piper([*components])
    work(pool, piper, **more)
    return piper


def only(place: Path) -> Path:
    """The one file there."""
    (found,) = (path for path in place.iterdir() if not path.name.startswith("."))
    return found


# ---- M1: what a killed worker had in hand is lost to processing


def test_M1_what_a_killed_worker_had_in_hand_is_handled_by_another(rig):
    pool = rig.pool()
    pool.spool.put(b"x", "a")
    pool.claim()
    pool.keeper.release_owner(pool.forget_owner(), "died")
    seen = Scripted(message_process=lambda *_: None)
    pipe(pool, seen, Commiter())
    assert [args["id"] for args in seen.args("message_process")] == ["a"]
    assert not rig.everything()


@fault()
def test_M1_original(original):
    first = original()
    first.enqueue("x")
    first.next()
    assert original().next() != (None, None)


# ---- M2: what is no UTF-8, and a directory, end the daemon


def test_M2_what_is_no_utf_8_and_a_directory_are_no_trouble_for_those_behind_them(rig):
    pool = rig.pool()
    pool.spool.put(ODD, "a")
    (rig.path / "incoming" / "b").mkdir()
    pool.spool.put(b"last", "c")
    seen = Scripted(message_process=lambda *_: None)
    pipe(pool, seen, Commiter())
    assert [args["message"].body for args in seen.args("message_process")] == [ODD, b"last"]
    assert figures(pool) == {"done": 2}


@fault((UnicodeDecodeError, IsADirectoryError))
@pytest.mark.parametrize("kind", ["bytes", "directory"])
def test_M2_original(original, kind):
    queue = original()
    place = Path(queue.dir_incoming) / "a"
    place.mkdir() if kind == "directory" else place.write_bytes(ODD)
    queue.next()


# ---- M3: every worker tries every name


def test_M3_workers_that_list_at_the_same_moment_try_different_names_first(rig):
    pool, count = rig.pool(), 256
    spools = []
    for index in range(4):
        spool = Spool(str(rig.path), SETTINGS, system=FakeSystem(rig.world), host="one")
        slot = pool.board.take_worker(pool.queue_slot, index)
        spool.attach(Consumer(pool.master, pool.board, pool.queue_slot, slot, index, 4))
        spools.append(spool)
    for number in range(count):
        pool.spool.put(b"x", f"{number:04}")
    settled = 0
    while settled < count:
        for spool in spools:
            if (claim := spool.claim()) is not None:
                spool.done(claim)
                settled += 1
    lost = sum(pool.board.worker(index).words[W.CONFLICTS] for index in range(4))
    assert lost <= count // 4  # the original: five for each message


# ---- M4: no order


def test_M4_messages_are_handled_in_the_order_of_their_names(rig):
    pool = rig.pool()
    for name in ("c", "a", "e", "b", "d"):
        pool.spool.put(b"x", name)
    seen = Scripted(message_process=lambda *_: None)
    pipe(pool, seen, Commiter())
    assert [args["id"] for args in seen.args("message_process")] == list("abcde")


# ---- M5: a stop that comes inside a commit is swallowed


class Stop(BaseException):
    """What a signal handler raises."""


def stop(*_: object) -> Any:
    raise Stop


def test_M5_what_is_no_exception_goes_through_every_callback():
    component = Scripted(message_process=then(("message_duplicate", {"queue_tgt": "side"})))
    alone = Alone([component], queues={"side": SimpleNamespace(put=stop)})  # type: ignore[dict-item]
    with pytest.raises(Stop):
        alone.handle(b"x")


@fault(pytest.fail.Exception)
def test_M5_original():
    filer = pytest.importorskip("mentat.daemon.component.filer").FilerDaemonComponent()
    filer.dirq = SimpleNamespace(commit=stop)
    logger = SimpleNamespace(error=lambda *_: None, debug=lambda *_: None, info=lambda *_: None)
    daemon = SimpleNamespace(logger=logger, FLAG_CONTINUE=1, FLAG_STOP=0, dbgout=lambda *_: None)
    with pytest.raises(Stop):
        filer.cbk_event_message_commit(daemon, {"id": "x"})


# ---- M6: a limit that is looked at every few seconds is none


def test_M6_the_limit_of_the_output_holds_for_each_message(rig, tmp_path):
    pool, following = rig.pool(), Rig(tmp_path / "next", rig.world)
    following.spool()
    for number in range(50):
        pool.spool.put(b"x", f"{number:02}")
    pipe(pool, Commiter(), output=str(following.path), output_limit=5, leaving=Asked(pool, after=3))
    assert len(following.everything()["incoming"]) == 5


# ---- M7: a crash between the two renames of a commit strands the message


def test_M7_a_commit_to_the_next_queue_is_one_rename(rig, tmp_path):
    """Whatever call fails, the message is in one of the two queues, where somebody looks."""
    for nth in range(1, 40):
        here, there = Rig(tmp_path / f"here{nth}", rig.world), Rig(tmp_path / f"there{nth}", rig.world)
        pool, following = here.pool(), there.spool()
        pool.spool.put(b"x", "a")
        claim = pool.claim()
        pool.system.fail(nth, errno.EIO)
        try:
            pool.spool.forward(claim, following)
        except QueueUnavailable:
            found = {**here.everything(), **there.everything()}
            assert list(found.values()) == [[b"x"]]
            assert set(found) <= {"pending", "incoming"}
        if pool.system.failed is None:
            break
    assert pool.system.calls.count("rename") == 1
    assert there.everything() == {"incoming": [b"x"]}


# ---- M8: a message that was written in part is published, and an error ends the daemon


def test_M8_a_message_that_cannot_be_written_is_not_there_and_the_daemon_goes_on(rig):
    pool = rig.pool()
    pool.system.fail_all("write", errno.ENOSPC)
    alone = Alone([], queue=pool.spool)
    alone.piper.daemon.queue.schedule("message_enqueue", {"data": "x" * 5000})
    alone.piper.turn()
    assert not alone.counters
    assert not rig.everything()
    pool.system.before = None
    alone.clock.sleep(0.1)
    alone.piper.turn()
    alone.piper.turn()
    flag, args = alone.piper.daemon.emit("message_enqueue", {"data": "whole"})
    assert flag == 1
    assert args["id"]
    assert rig.everything() == {"incoming": [b"whole", b"x" * 5000]}
    assert alone.counters == {"cnt_enqueued": 2}


def test_M8_a_write_that_writes_a_part_is_gone_on_with(rig):
    pool = rig.pool()
    whole = pool.system.write
    pool.system.write = lambda fd, data: whole(fd, bytes(data)[:7])
    pool.spool.put(b"0123456789" * 5, "a")
    assert rig.everything() == {"incoming": [b"0123456789" * 5]}


# ---- M9: messages are programs


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_M9_a_message_is_not_executable(rig):
    alone = Alone([], queue=rig.pool().spool)
    alone.piper.daemon.emit("message_enqueue", {"data": "x"})
    assert not mode(only(rig.path / "incoming")) & 0o111


@fault()
def test_M9_original(original):
    queue = original()
    queue.enqueue("x")
    assert not mode(only(Path(queue.dir_incoming))) & 0o111


# ---- M10: content changes on the way


def test_M10_content_goes_through_unchanged(rig, tmp_path):
    pool, following = rig.pool(), Rig(tmp_path / "next", rig.world)
    following.spool()
    alone = Alone([], queue=pool.spool)
    for data in (ODD, text_of(ODD)):
        alone.piper.daemon.emit("message_enqueue", {"data": data})

    def update(_: Scripted, daemon: Any, args: Any) -> None:
        daemon.queue.schedule("message_update", args)

    pipe(pool, Scripted(message_process=update), Commiter(), output=str(following.path))
    assert following.everything() == {"incoming": [ODD, ODD]}


@fault()
@pytest.mark.parametrize("data", ["a\r\nb\r", b"a"])
def test_M10_original(original, data):
    queue = original()
    queue.enqueue(data)
    assert queue.next()[1].encode() == (data.encode() if isinstance(data, str) else data)


# ---- M11: a message of the same name takes the other's place


def test_M11_a_message_of_the_same_name_replaces_none_that_is_in_hand_or_in_errors(rig):
    pool = rig.pool()
    for body in (b"first", b"second"):
        (rig.path / "incoming" / "same").write_bytes(body)
        claim = pool.claim()
        (rig.path / "incoming" / "same").write_bytes(b"later")
        later = pool.spool.claim()
        assert Message(claim, "").body == body
        pool.spool.reject(claim, "no")
        pool.spool.reject(later, "no")
    assert rig.everything() == {"errors": [b"first", b"later", b"later", b"second"]}


@fault()
def test_M11_original(original):
    queue = original()
    place = Path(queue.dir_incoming) / "same"
    place.write_text("first")
    first, _ = queue.next_file()
    place.write_text("later")
    queue.next_file()
    assert queue.reload(first) == "first"


# ---- M12: an update that is cut off leaves half a message


def test_M12_an_update_changes_nothing_on_disk(rig):
    pool, files = rig.pool(), []
    pool.spool.put(b"whole", "a")

    def look(*_: object) -> None:
        files.append(rig.everything())

    component = Scripted(message_process=then(("message_update", {"data": "half"}), ("look", {})), look=look)
    work(pool, Piper([component]), most=2)
    assert files[0] == {"pending": [b"whole"]}
    (left,) = rig.everything().values()  # deferred, or due again
    assert left == [b"whole"]


# ---- M13: a dispatch over two filesystems shows half a message, a duplicate fails


def test_M13_what_goes_to_another_filesystem_is_whole_when_it_can_be_seen(rig, tmp_path):
    pool, following = rig.pool(), Rig(tmp_path / "next", rig.world)
    following.spool()
    seen = []

    def apart(name: str, arguments: tuple[Any, ...]) -> None:
        if name.startswith("rename") and str(following.path) in arguments[1]:
            if str(following.path) not in arguments[0]:
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
            seen.append(Path(arguments[0]).read_bytes())

    pool.system.before = apart
    pool.spool.put(b"0123456789" * 1000, "a")
    settling = (("message_duplicate", {"queue_tgt": "next"}), ("message_dispatch", {"queue_tgt": "next"}))
    work(pool, Piper([Scripted(message_process=then(*settling))]), queues={"next": f"spool:{following.path}"})
    assert seen == [b"0123456789" * 1000] * 2
    assert following.everything() == {"incoming": seen}
    assert not rig.everything()


# ---- M14: a commit that fails leaves the message in pending/


def test_M14_a_commit_that_fails_is_tried_until_it_succeeds(rig):
    pool = rig.pool()
    pool.spool.put(b"x", "a")
    pool.system.fail_all("unlink", errno.EIO)  # until the third wait
    pipe(pool, Commiter())
    assert not rig.everything()
    assert figures(pool) == {"done": 1}


# ---- M15: an error that cannot be told


def test_M15_a_queue_that_cannot_be_used_is_named_with_the_reason(tmp_path):
    (tmp_path / "queue").write_text("a file")
    with pytest.raises(OrchestratorError) as error:
        Spool(str(tmp_path / "queue"), Settings(create=True))
    assert str(tmp_path / "queue") in str(error.value)


# ---- M16: an id leads out of the queue


@pytest.mark.parametrize("event", ["message_cancel", "message_update", "message_commit", "message_banish"])
def test_M16_an_id_is_no_path(rig, event):
    pool, outside = rig.pool(), rig.path.parent / "outside"
    outside.write_text("precious")
    pool.spool.put(b"x", "a")
    wrong = {"id": "../../outside", "data": "overwritten"}
    pipe(pool, Scripted(message_process=then((event, wrong))), Commiter())
    assert outside.read_text() == "precious"
    assert figures(pool) == {"done": 1}


@fault()
def test_M16_original(original, tmp_path):
    queue = original()
    (tmp_path / "outside").write_text("precious")
    queue.update("../../outside", "overwritten")
    assert (tmp_path / "outside").read_text() == "precious"


# ---- M17: abandoned files in tmp/ stay


def test_M17_what_a_dead_writer_left_in_tmp_is_swept(rig):
    pool = rig.pool()
    left = rig.path / "tmp" / names.unpublished(names.Tokens(pool.system).name("one"))
    left.write_bytes(b"half")
    assert pool.rounds(14, every_s=10).temporary == 1
    assert not left.exists()


# ---- M18: .meta files count as messages


def test_M18_only_messages_are_counted_in_errors(rig):
    pool = rig.pool()
    pool.spool.put(b"x", "a")
    pipe(pool, Scripted(message_process=then(("message_banish", {"reason": "no"}))))
    assert len(list((rig.path / "errors").iterdir())) == 2
    assert pool.spool.depth().errors == 1


@fault()
def test_M18_original(original):
    queue = original()
    name = queue.enqueue("x")
    queue.next()
    queue.banish(name, {"reason": "no"})
    assert queue.count_errors() == 1


# ---- M19: nobody can say why an empty message was banished


@pytest.mark.parametrize("body", [b"", b" \n"])
def test_M19_an_empty_message_is_in_errors_with_the_reason(rig, body):
    pool = rig.pool()
    pool.spool.put(body, "a")
    pipe(pool, Commiter())
    (shown,) = pool.spool.show("a")
    assert shown.listed.state == "errors"
    assert "blank" in str(shown.meta["reason"]) or "empty" in str(shown.meta["reason"])


# ---- M20: ids repeat when a clock steps back


def test_M20_names_do_not_repeat_while_the_clock_stands_or_steps_back(rig):
    pool = rig.pool()
    at_ns = 1_700_000_000_000_000_000
    pool.system.wall_ns = lambda: at_ns
    alone, found = Alone([], queue=pool.spool), set()
    for number in range(200):
        at_ns -= number * 1_000_000
        found.add(alone.piper.daemon.emit("message_enqueue", {"data": "x"})[1]["id"])
    assert len(found) == 200
    assert len(list((rig.path / "incoming").iterdir())) == 200
