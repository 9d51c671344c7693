"""
test_ddmq_faults - the faults Q1 to Q27 of the original's library, each shown there and not here

The body of a test is run on both libraries (see ddmq_twins): on the original it fails,
strictly, with the reason that stands beside it. Q2 and Q20 to Q24 are of the command line,
see test_cli_ddmq. At the end what a cleaning, here as there, would do to a pool. Long because: it is one list.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import logging
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.ddmq_twins import Kernel, Library, library_of, tree, twins, yaml_of
from tests.rig import World
from tests.rig_ddmq import DdmqPool
from tests.schedules import schedules
from tests.waiting import until
from workers.ddmq import Broker
from workers.ddmq.claims import OURS_S, YOUNG_S, Outcome, give_back, wants_requeue
from workers.ddmq.files import QueueFiles
from workers.ddmq.message import Message
from workers.ddmq.settings import DEFAULTS, SettingsFiles
from workers.system import SYSTEM, System

DAY_S = 86_400


@pytest.fixture(name="library")
def _library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Library:
    return library_of(request.param, monkeypatch)


def texts(broker: Any, count: int) -> list[object]:
    """What is served, one after the other."""
    return [message.message for message in (broker.consume("q") for _ in range(count)) if message is not None]


def waiting(broker: Any) -> list[str]:
    return sorted(broker.get_message_list("q")[0])


def claimed(broker: Any) -> list[str]:
    return sorted(broker.get_message_list("q")[1])


def everywhere(broker: Any) -> int:
    return len(waiting(broker)) + len(claimed(broker))


# ---- Q1, Q3, Q4


@twins("it reads YAML by a call that PyYAML 6 does not have", raises=TypeError)
def test_Q1_a_root_that_is_there_is_opened_and_used(library: Library, tmp_path: Path) -> None:
    library.as_published()
    library.broker(tmp_path / "root")
    broker = library.broker(tmp_path / "root")
    broker.publish("q", "text")
    assert texts(broker, 1) == ["text"]


@twins("0 counts as not given, and 999 is used")
def test_Q3_priority_0_is_the_highest(library: Library, tmp_path: Path) -> None:
    broker = library.broker(tmp_path)
    for priority in (1, 0, None):
        broker.publish("q", f"of {priority}", priority=priority)
    assert texts(broker, 3) == ["of 0", "of 1", "of None"]


@twins("a requeued message is published with 0, which counts as not given")
def test_Q3_a_requeued_message_is_served_first(library: Library, tmp_path: Path) -> None:
    broker = library.broker(tmp_path)
    broker.publish("q", "requeued", requeue=True)
    broker.publish("q", "of 1", priority=1)
    assert texts(broker, 1) == ["of 1"]
    broker.nack(broker.consume("q"))
    broker.publish("q", "another of 1", priority=1)
    assert texts(broker, 2) == ["requeued", "another of 1"]


def test_Q3_a_priority_of_0_for_the_requeue_implies_that_one_is_wished(tmp_path: Path) -> None:
    broker = Library().broker(tmp_path)
    assert broker.publish("q", requeue_prio=0).requeue is True
    broker.update_settings_file("q", {"requeue_prio": 7})
    message = broker.publish("q", requeue_prio=0)
    assert message.requeue == 0
    assert message.requeue is not False
    broker.nack(broker.consume("q", n=2)[1])
    assert waiting(broker)[0].startswith("0.")


@twins("names are sorted as text")
def test_Q4_priorities_are_served_as_numbers(library: Library, tmp_path: Path) -> None:
    broker = library.broker(tmp_path)
    for priority in (100, 9, 1000, 999, 10):
        broker.publish("q", priority, priority=priority)
    assert texts(broker, 5) == [9, 10, 100, 999, 1000]


# ---- Q5 to Q9: ack, nack, requeue


@twins("an ack takes the wish to be requeued from the message")
def test_Q5_an_acked_message_is_gone_also_when_it_may_be_requeued(library: Library, tmp_path: Path) -> None:
    broker = library.broker(tmp_path)
    broker.publish("q", requeue=True)
    message = broker.consume("q")
    assert broker.ack(message) == [message.filename]
    assert everywhere(broker) == 0


@twins("nack looks at no limit")
def test_Q6_nack_requeues_no_further_than_the_limit(library: Library, tmp_path: Path) -> None:
    broker = library.broker(tmp_path)
    broker.publish("q", requeue=True, requeue_limit=1)
    broker.nack(broker.consume("q"))
    assert everywhere(broker) == 1
    message = broker.consume("q")
    assert broker.nack(message) == [message.filename]
    assert everywhere(broker) == 0


@twins("requeue_message looks at no limit")
def test_Q6_requeue_message_requeues_no_further_than_the_limit(library: Library, tmp_path: Path) -> None:
    broker = library.broker(tmp_path)
    broker.publish("q", requeue=True, requeue_limit=2, requeue_counter=2)
    message = broker.consume("q")
    assert broker.requeue_message(str(tmp_path / "q" / "work" / message.filename))
    assert everywhere(broker) == 0


@twins("it is neither requeued nor removed")
def test_Q7_nack_of_a_message_that_does_not_say_requeues_it(library: Library, tmp_path: Path) -> None:
    broker = library.broker(tmp_path)
    broker.publish("q", "text")
    message = broker.consume("q")
    assert broker.nack("q", message.filename) == [message.filename]
    assert claimed(broker) == []
    assert texts(broker, 1) == ["text"]


@twins("the setting is read by nothing")
def test_Q7_nack_removes_it_where_the_setting_says_so(library: Library, tmp_path: Path) -> None:
    broker = library.broker(tmp_path)
    broker.create_queue("q")
    broker.update_settings_file("q", {"requeue": False})
    broker.publish("q")
    broker.publish("q", requeue=5)
    broker.nack("q", [message.filename for message in broker.consume("q", n=2)])
    assert [name.partition(".")[0] for name in waiting(broker)] == ["5"]
    assert claimed(broker) == []


@twins("a requeued message is a new one: another id and number, and no timeout")
def test_Q8_a_requeued_message_stays_what_it_was(library: Library, tmp_path: Path) -> None:
    broker = library.broker(tmp_path)
    before = broker.publish("q", {"a": [1]}, requeue=3, timeout=77, requeue_limit=9)
    broker.nack(broker.consume("q"))
    after = json.loads((tmp_path / "q" / waiting(broker)[0]).read_bytes())
    name = f"3.{before.queue_number}.ddmq{before.id}"
    assert waiting(broker) == [name]
    assert after == vars(before) | {"priority": 3, "requeue_counter": 1, "filename": name}
    assert list(after) == list(vars(before))


@twins("False is overridden by what the message says")
def test_Q9_nack_with_false_removes_what_may_be_requeued(library: Library, tmp_path: Path) -> None:
    broker = library.broker(tmp_path)
    broker.publish("q", requeue=True)
    message = broker.consume("q")
    assert broker.nack(message, requeue=False) == [message.filename]
    assert everywhere(broker) == 0


# ---- Q10


@twins("the time of the last cleaning is read once, and never again")
def test_Q10_a_queue_is_cleaned_once_in_a_minute(library: Library, tmp_path: Path) -> None:
    broker = library.broker(tmp_path)
    broker.publish("q")
    library.reset()
    for _ in range(10):
        broker.publish("q")
        broker.consume("q")
    assert library.count("list", "q/work") == 0
    assert library.count("rename", "ddmq.yaml") == 0


def test_Q10_it_is_cleaned_again_after_a_minute_and_by_whoever_comes(tmp_path: Path) -> None:
    library = Library()
    broker = library.broker(tmp_path)
    broker.publish("q", requeue=True, timeout=30)
    cleaned = broker.get_settings("q")["cleaned"]
    broker.consume("q")
    library.advance(60)
    assert broker.consume("q") is None
    library.advance(2)
    assert broker.consume("q").requeue_counter == 1
    assert cleaned + 61 <= broker.get_config_file("q")["cleaned"] <= cleaned + 63


def test_Q10_a_cleaning_that_was_cut_short_is_done_again(tmp_path: Path) -> None:
    library = Library()
    broker = library.broker(tmp_path)
    broker.publish("q", requeue=True, timeout=1)
    broker.consume("q")
    library.advance(100)

    class Killed(BaseException):
        pass

    def die() -> None:
        raise Killed

    library.before("rename", die)
    with pytest.raises(Killed):
        broker.publish("q", "other", priority=5)
    assert broker.consume("q").requeue_counter == 1


def test_Q10_a_time_far_ahead_does_not_keep_a_queue_from_being_cleaned(tmp_path: Path) -> None:
    broker = Library().broker(tmp_path)
    broker.create_queue("q")
    broker.update_settings_file("q", {"cleaned": 2**40})
    assert broker.clean("q")
    assert not broker.clean("q")
    assert broker.clean("q", force=True)


# ---- Q11: requeueing without duplicates and without loss


@twins("nobody claims what has expired before it is requeued", raises=(AssertionError, FileNotFoundError))
@pytest.mark.parametrize("call", ["rename", "unlink", "write"])
def test_Q11_two_who_clean_at_a_time_requeue_once(library: Library, tmp_path: Path, call: str) -> None:
    broker = library.broker(tmp_path)
    for text in range(3):
        broker.publish("q", text, requeue=True, timeout=1)
    assert len(broker.consume("q", n=3)) == 3
    library.advance(1000)
    other = library.broker(tmp_path)
    other.get_settings("q")  # Q15
    library.before(call, lambda: other.clean("q", force=True))
    broker.clean("q", force=True)
    assert claimed(broker) == []
    assert len(waiting(broker)) == 3


class CrashError(BaseException):
    """The process ends here."""


STEPS = ("rename", "rename_exchange", "rename_noreplace", "unlink")


class Stepping(System):
    """The kernel as one of several sees it: before each call that another can see, they may have their turn."""

    def __init__(self, step: Callable[[], None], crash_at: int | None = None, at_s: float = 0.0) -> None:
        self._at_s = at_s
        self._count = 0
        for name in STEPS:
            setattr(self, name, self._stepping(getattr(System, name), step, crash_at))

    def _stepping(self, real: Callable[..., Any], step: Callable[[], None], crash_at: int | None) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if self._count == crash_at:
                raise CrashError
            step()
            self._count += 1
            return real(*arguments)

        return call

    def wall_ns(self) -> int:  # type: ignore[override] # a static method there
        """The moved clock."""
        return int(self._at_s * 1e9)


class Bench:
    """A queue with one message, claimed until the second 1000; it is the second 2000."""

    def __init__(self, place: Path, number: int) -> None:
        self.root = place / str(number)
        self.root.mkdir()
        self.files = QueueFiles(str(self.root), "q", SYSTEM)
        self.files.make()
        self.name = "0.17952704.ddmqabc"
        new = Message(queue="q", message="text", requeue=True, requeue_counter=0, id="abc", filename=self.name)
        self.files.publish(self.name, new.msg2json().encode())
        claim = self.files.take(self.name, 1000)
        assert claim is not None
        self.claim = claim
        self.outcomes: list[Outcome] = []
        self.is_acked: list[bool] = []

    def cleaner(self, crash_at: int | None = None) -> Callable[[Callable[[], None]], None]:
        def clean(step: Callable[[], None]) -> None:
            files = QueueFiles(str(self.root), "q", Stepping(step, crash_at, 2000))
            try:
                self.outcomes.append(give_back(files, self.claim, DEFAULTS, wants_requeue))
            except CrashError:
                return

        return clean

    def acker(self, step: Callable[[], None]) -> None:
        step()
        self.is_acked.append(self.files.remove(self.claim))

    def all(self) -> list[str]:
        return [*self.files.waiting(set()), *self.files.working()]

    def clean_later(self) -> None:
        """As the next cleaning does, when every claim has expired."""
        files = QueueFiles(str(self.root), "q", Stepping(lambda: None, None, 2000 + OURS_S + 2))
        for name in list(files.working()):
            give_back(files, name, DEFAULTS, wants_requeue)


def test_Q11_every_order_of_two_cleaners_and_an_ack_keeps_one_message(tmp_path: Path) -> None:
    number = itertools.count()
    benches: list[Bench] = []

    def setup() -> list[Any]:
        benches[:] = [Bench(tmp_path, next(number))]
        return [benches[0].cleaner(), benches[0].cleaner(), benches[0].acker]

    for run in schedules(setup):
        bench = benches[0]
        assert len(bench.all()) == (0 if bench.is_acked == [True] else 1), run.trail
        assert bench.outcomes.count(Outcome.REQUEUED) + bench.is_acked.count(True) == 1, run.trail
        if bench.is_acked == [False]:
            assert bench.all() == [bench.name]
            assert json.loads(bench.files.read(f"{bench.files.path}/{bench.name}")[0])["requeue_counter"] == 1
    assert next(number) > 50


@pytest.mark.parametrize("crash_at", range(4))
def test_Q11_a_cleaner_that_dies_anywhere_loses_and_doubles_nothing(tmp_path: Path, crash_at: int) -> None:
    """All orders with a second cleaner and an ack; then, when what is claimed has expired, one more cleaner."""
    number = itertools.count()
    benches: list[Bench] = []

    def setup() -> list[Any]:
        benches[:] = [Bench(tmp_path, next(number))]
        return [benches[0].cleaner(crash_at), benches[0].cleaner(), benches[0].acker]

    for run in schedules(setup):
        bench = benches[0]
        left = [] if bench.is_acked == [True] else [bench.name]
        assert len(bench.all()) == len(left), run.trail
        bench.clean_later()
        assert bench.all() == left, run.trail
        if left:
            found = json.loads(bench.files.read(f"{bench.files.path}/{bench.name}")[0])
            assert found["message"] == "text"
            assert found["requeue_counter"] in (1, 2), run.trail


def test_Q11_a_claim_that_is_gone_is_not_made_again_by_rewriting_it(tmp_path: Path) -> None:
    bench = Bench(tmp_path, 0)
    kernel = Kernel()
    files = QueueFiles(str(bench.root), "q", kernel)

    def take_away() -> None:
        del kernel.hooks["rename_exchange"]
        assert bench.files.touch(bench.claim, 5000)

    kernel.hooks["rename_exchange"] = take_away
    assert not files.rewrite(bench.claim, b"{}")
    assert bench.all() == [f"5000.{bench.name}"]
    assert os.listdir(bench.root) == ["q"]


def test_Q11_an_expired_message_that_nobody_wants_again_is_removed_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path, 0)
    kept = [give_back(bench.files, bench.claim, DEFAULTS, lambda _: False) for _ in range(2)]
    assert kept == [Outcome.REMOVED, Outcome.GONE]
    assert bench.all() == []


def test_Q11_requeueing_at_a_full_disk_leaves_the_claim(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    library = Library()
    broker = library.broker(tmp_path)
    broker.publish("q", "text", requeue=True, timeout=1)
    broker.consume("q")
    library.advance(1000)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    library.kernel.replaced["write"] = full
    assert broker.consume("q") is None, "a full disk keeps nobody from consuming"
    assert len(claimed(broker)) == 1
    assert "No space left" in caplog.text
    del library.kernel.replaced["write"]
    library.advance(1000)
    assert texts(broker, 1) == ["text"]


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EACCES])
def test_Q11_whichever_call_of_a_requeue_fails_the_message_is_there_once(tmp_path: Path, code: int) -> None:
    """Fail the first call, the second, ... until a nack gets through; each time the next cleaning serves it again."""
    library = Library()
    kernel, broker = library.kernel, library.broker(tmp_path)
    broker.publish("q", "text", requeue=True)
    real = {
        call: getattr(System, call) for call in (*STEPS, "open", "read", "write", "close", "fsync", "fstat", "stat")
    }
    left = 0

    def failing(call: str, do: Callable[..., Any]) -> Callable[..., Any]:
        def make(*arguments: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                if call == "close":  # Linux closes all the same
                    do(*arguments)
                raise OSError(code, os.strerror(code))
            return do(*arguments)

        return make

    for number in itertools.count(1):
        message = broker.consume("q", clean=False)
        assert message.message == "text", number
        kernel.replaced.update({call: failing(call, do) for call, do in real.items()})
        left = number
        with contextlib.suppress(OSError):
            broker.nack(message)
        kernel.replaced.clear()
        assert everywhere(broker) == 1, number
        if left > 0:
            break
        library.advance(1000)
        broker.clean("q", force=True)
        assert len(waiting(broker)) == 1, number
    assert number > 8
    assert not [path for path in tree(tmp_path) if path.startswith(".")], "what could not be unlinked is swept"


def test_Q11_a_requeue_that_is_tried_again_is_counted_once_and_is_not_beyond_the_limit(tmp_path: Path) -> None:
    library = Library()
    broker = library.broker(tmp_path)
    broker.publish("q", "text", requeue=True, requeue_limit=1)
    message = broker.consume("q")

    def refuse(source: str, target: str) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), source)

    library.kernel.replaced["rename_noreplace"] = refuse
    for _ in range(2):
        with pytest.raises(OSError, match="Input/output"):
            broker.nack(message)
    library.kernel.replaced.clear()
    assert broker.nack(message) == [message.filename]
    assert broker.consume("q").requeue_counter == 1


def test_Q11_a_nack_that_a_purge_overtakes_finds_the_message_gone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    library = Library()
    broker = library.broker(tmp_path)
    broker.publish("q", "text", requeue=True)
    message = broker.consume("q")
    library.before("open", lambda: library.peer(tmp_path).purge_queue("q"))
    broker.get_settings("q")
    assert broker.nack(message) == []
    assert everywhere(broker) == 0
    assert "is missing" in caplog.text


def test_Q11_a_claim_that_cannot_be_read_keeps_no_other_from_being_requeued(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    library = Library()
    broker = library.broker(tmp_path)
    for priority in range(3):
        broker.publish("q", priority=priority, requeue=True, requeue_prio=priority + 10, timeout=1)
    broker.consume("q", n=3)
    library.advance(100)

    def refuse(path: str, *more: Any) -> int:
        if path.partition("work")[2].partition(".")[2].startswith("1."):
            raise PermissionError(13, "Permission denied", path)
        return os.open(path, *more)

    library.kernel.replaced["open"] = refuse
    assert broker.clean("q", force=True)
    assert [name.partition(".")[0] for name in waiting(broker)] == ["10", "12"]
    assert len(claimed(broker)) == 1
    assert "Permission denied" in caplog.text


# ---- Q12


@twins("who loses the race for a message is given an exception", raises=FileNotFoundError)
def test_Q12_who_loses_a_message_is_given_the_next_one(library: Library, tmp_path: Path) -> None:
    broker = library.broker(tmp_path)
    for text in range(4):
        broker.publish("q", text)
    peer = library.peer(tmp_path)
    lost: list[Any] = []
    library.before("rename", lambda: lost.append(peer.consume("q").message))
    assert (broker.consume("q", clean=False).message, lost) == (1, [0])


@twins("what it had claimed before it lost one is not returned", raises=FileNotFoundError)
def test_Q12_of_several_messages_only_the_lost_ones_are_missing(library: Library, tmp_path: Path) -> None:
    broker = library.broker(tmp_path)
    for text in range(3):
        broker.publish("q", text)
    peer = library.peer(tmp_path)
    library.before("rename", lambda: library.before("rename", lambda: peer.consume("q")))
    assert [message.message for message in broker.consume("q", n=3, clean=False)] == [0, 2]


def test_Q12_what_was_requeued_between_reading_and_claiming_is_read_again(tmp_path: Path) -> None:
    library = Library()
    broker = library.broker(tmp_path)
    name = broker.publish("q", priority=0).filename
    peer = library.peer(tmp_path)
    library.before("rename", lambda: peer.nack(peer.consume("q")))
    message = broker.consume("q")
    assert message.filename.endswith(name)
    assert message.requeue_counter == 1


def test_Q12_eight_who_consume_get_each_message_once(tmp_path: Path) -> None:
    """In processes; the bigger run of this is tests/bench's."""
    count, children = 400, []
    broker = Broker(tmp_path, create=True)
    for number in range(count):
        broker.publish("q", number)
    for child in range(8):
        pid = os.fork()
        if not pid:
            code = 1
            try:
                mine = Broker(tmp_path)
                with (tmp_path / f"served-{child}").open("w") as said:
                    while (message := mine.consume("q")) is not None:
                        said.write(f"{message.message}\n")
                        assert mine.ack(message)
                code = 0
            finally:
                os._exit(code)
        children.append(pid)
    assert {os.waitpid(pid, 0)[1] for pid in children} == {0}
    served = [line for path in tmp_path.glob("served-*") for line in path.read_text().split()]
    assert sorted(map(int, served)) == list(range(count))


# ---- Q13


@twins("the message is written where it is seen", raises=ValueError)
def test_Q13_nobody_sees_a_message_that_is_being_written(library: Library, tmp_path: Path) -> None:
    broker = library.broker(tmp_path)
    broker.create_queue("q")
    peer = library.peer(tmp_path)
    broker.clean("q", force=True)
    seen: list[Any] = []
    library.before("write", lambda: seen.append((peer.get_message_list("q"), peer.consume("q"))))
    broker.publish("q", "whole")
    assert seen == [(([], []), None)]
    assert texts(broker, 1) == ["whole"]


@twins("an empty file is left, which stops everybody for ever")
def test_Q13_what_is_no_json_leaves_nothing(library: Library, tmp_path: Path) -> None:
    broker = library.broker(tmp_path)
    broker.create_queue("q")
    before = list(tree(tmp_path))
    with pytest.raises(TypeError):
        broker.publish("q", object(), clean=False)
    assert list(tree(tmp_path)) == before


def test_Q13_what_an_original_is_still_writing_is_waited_for(tmp_path: Path) -> None:
    library = Library()
    broker = library.broker(tmp_path)
    broker.publish("q", "other")
    half = tmp_path / "q" / "1.17952704.ddmqabc"
    half.write_text('{"message": "ha')
    assert texts(broker, 2) == ["other"]
    with half.open("a") as theirs:
        theirs.write('lf"}')
    assert texts(broker, 1) == ["half"]
    assert not (tmp_path / "q.pool").exists()


@pytest.mark.parametrize("body", [b"", b'{"message": "ha', b"[1]", b"\xff", b"[" * 100_000, b"null"])
def test_Q13_what_stays_corrupt_is_set_aside_with_its_reason(tmp_path: Path, body: bytes) -> None:
    library = Library()
    broker = library.broker(tmp_path)
    broker.publish("q", "other")
    name = "1.17952704.ddmqabc"
    (tmp_path / "q" / name).write_bytes(body)
    library.advance(YOUNG_S + 1)
    assert texts(broker, 2) == ["other"]
    errors = tmp_path / "q.pool" / "errors"
    assert (errors / name).read_bytes() == body
    facts = json.loads((errors / f"{name}.meta").read_bytes())
    assert facts["name"] == name
    assert facts["reason"]
    assert broker.list_queues() == ["q"]


def test_Q13_what_is_no_regular_file_is_set_aside_and_not_followed(tmp_path: Path) -> None:
    broker = Library().broker(tmp_path / "root")
    broker.publish("q", "other")
    queue, outside = tmp_path / "root" / "q", tmp_path / "outside"
    outside.write_text('{"message": "outside"}')
    (queue / "1.1.ddmqa").symlink_to(outside)
    os.mkfifo(queue / "1.2.ddmqb")
    with socket.socket(socket.AF_UNIX) as heard:
        heard.bind(os.path.relpath(queue / "1.3.ddmqc"))
    (queue / "1.4.ddmqd").mkdir()
    assert texts(broker, 5) == ["other"]
    errors = tmp_path / "root" / "q.pool" / "errors"
    assert {path.name for path in errors.glob("*[!a]")} == {"1.1.ddmqa", "1.2.ddmqb", "1.3.ddmqc"} - {"1.1.ddmqa"}
    assert (errors / "1.1.ddmqa").is_symlink()
    assert outside.exists()


def test_Q13_a_claim_that_is_corrupt_is_set_aside_when_it_expires(tmp_path: Path) -> None:
    library = Library()
    broker = library.broker(tmp_path)
    broker.publish("q", requeue=True, timeout=1)
    claim = broker.consume("q").filename
    (tmp_path / "q" / "work" / claim).write_text("{")
    library.advance(100)
    broker.clean("q", force=True)
    assert everywhere(broker) == 0
    kept = [path for path in (tmp_path / "q.pool" / "errors").iterdir() if path.suffix != ".meta"]
    assert [path.read_text() for path in kept] == ["{"]


# ---- Q14, Q15


@twins("what is called *.ddmq* in work has to begin with a number", raises=ValueError)
def test_Q14_a_foreign_name_in_work_stops_nobody(library: Library, tmp_path: Path) -> None:
    broker = library.broker(tmp_path)
    broker.create_queue("q")
    (tmp_path / "q" / "work" / "notes.ddmq").write_text("mine")
    broker.publish("q", "text")
    assert texts(broker, 1) == ["text"]
    assert (tmp_path / "q" / "work" / "notes.ddmq").exists()


@twins("settings that were not asked for before are not there", raises=KeyError)
@pytest.mark.parametrize("do", [lambda broker: broker.clean_all(), lambda broker: broker.clean("q")])
def test_Q15_a_fresh_broker_can_clean(library: Library, tmp_path: Path, do: Callable[[Any], object]) -> None:
    library.broker(tmp_path).create_queue("q")
    broker = library.broker(tmp_path)
    do(broker)
    assert broker.get_config_file("q")["cleaned"] > 0


# ---- Q16


@twins("both write one intermediate file: who renames last has none, or undoes the other", raises=FileNotFoundError)
def test_Q16_of_two_who_change_settings_neither_undoes_the_other(library: Library, tmp_path: Path) -> None:
    """The second one begins after the first has read; ours waits for the first, so it goes on in a thread."""
    broker = library.broker(tmp_path)
    broker.create_queue("q")
    has_waited = threading.Event()
    others: list[threading.Thread] = []
    if type(library) is Library:
        kernel = Kernel()
        kernel.replaced["sleep"] = lambda _: None
        kernel.sleep = lambda seconds: (has_waited.set(), System.sleep(seconds))[1]  # type: ignore[method-assign]
        peer: Any = Broker(tmp_path, system=kernel)
    else:
        peer = library.peer(tmp_path)

    def change() -> None:
        others.append(threading.Thread(target=peer.update_settings_file, args=("q", {"priority": 5})))
        others[0].start()
        until(lambda: has_waited.is_set() or not others[0].is_alive())

    library.before("rename", change)
    broker.update_settings_file("q", {"message_timeout": 7})
    others[0].join()
    found = broker.get_config_file("q")
    assert (found["priority"], found["message_timeout"]) == (5, 7)


def test_Q16_a_change_that_came_meanwhile_is_kept(tmp_path: Path) -> None:
    """Of an original, which takes no lock."""
    library = Library()
    broker = library.broker(tmp_path)
    broker.create_queue("q")
    file = tmp_path / "q" / "ddmq.yaml"
    library.before("write", lambda: file.write_text(yaml_of({**DEFAULTS, "requeue": "false", "priority": 5})))
    broker.update_settings_file("q", {"message_timeout": 7})
    found = broker.get_config_file("q")
    assert (found["priority"], found["message_timeout"], found["requeue"]) == (5, 7, False)
    assert sorted(os.listdir(tmp_path / "q")) == ["ddmq.yaml", "work"]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("call", ["stat", "open", "read", "close"])
def test_Q16_what_changes_while_it_is_read_is_read_again(tmp_path: Path, call: str) -> None:
    """Before the first, second, ... such call of the reading."""
    Library().broker(tmp_path).create_queue("q")
    file = tmp_path / "q" / "ddmq.yaml"
    for before in range(1, 9):
        kernel = Kernel()
        counter = itertools.count(1)

        def change(before: int = before, counter: Any = counter) -> None:
            if next(counter) == before:
                file.write_text(yaml_of({**DEFAULTS, "requeue": "true", "priority": 1000 + before}))

        kernel.hooks[call] = change
        settings = SettingsFiles(str(tmp_path), kernel)
        settings.effective("q", DEFAULTS)
        kernel.hooks.clear()
        if next(counter) <= before:  # there are no more of them
            break
        assert settings.effective("q", DEFAULTS)["priority"] == 1000 + before
    assert before > 1


@twins("a file that is empty is no mapping", raises=TypeError)
def test_Q16_a_settings_file_that_is_empty_yet_means_the_defaults(library: Library, tmp_path: Path) -> None:
    library.broker(tmp_path).create_queue("q")
    (tmp_path / "q" / "ddmq.yaml").write_text("")
    broker = library.broker(tmp_path)
    assert broker.publish("q", clean=False).priority == 999


# ---- Q17


@twins("a claim's end is told by the clock of the consumer's host")
def test_Q17_a_consumer_whose_clock_is_behind_keeps_what_it_has_claimed(library: Library, tmp_path: Path) -> None:
    library.set_ahead(0)  # and on a network from the beginning
    broker = library.broker(tmp_path)
    broker.publish("q")
    peer = library.peer(tmp_path)
    peer.get_settings("q")
    library.set_ahead(-DAY_S)
    assert broker.consume("q", clean=False)
    peer.clean("q", force=True)
    assert everywhere(peer) == 1


@twins("and judged by the clock of the cleaner's")
def test_Q17_a_cleaner_whose_clock_is_ahead_takes_nothing_away(library: Library, tmp_path: Path) -> None:
    library.set_ahead(0)  # and on a network from the beginning
    broker = library.broker(tmp_path)
    broker.publish("q")
    library.peer(tmp_path).consume("q")
    library.set_ahead(DAY_S)
    broker.clean("q", force=True)
    assert everywhere(broker) == 1


def test_Q17_a_claim_is_made_longer_by_touch_until_it_has_expired(tmp_path: Path) -> None:
    library = Library()
    broker = library.broker(tmp_path)
    broker.publish("q", timeout=100, requeue=True)
    message = broker.consume("q")
    for _ in range(3):
        library.advance(90)
        assert broker.touch(message)
        broker.clean("q", force=True)
        assert claimed(broker) == [message.filename]
    library.advance(102)
    broker.clean("q", force=True)
    assert not broker.touch(message)
    assert broker.ack(message) == []
    assert len(waiting(broker)) == 1


# ---- Q18


@twins("the directory is read and sorted for each message")
def test_Q18_the_directory_is_read_once_for_many_messages(library: Library, tmp_path: Path) -> None:
    """With the clock stopped, for after 50 ms it is read again."""
    if type(library) is Library:
        library.kernel.stopped_ns = System.boottime_ns()
    broker = library.broker(tmp_path)
    for text in range(100):
        broker.publish("q", text)
    library.reset()
    assert texts(broker, 100) == list(range(100))
    assert library.count("list", "/q") <= 1


# ---- Q19


@twins("it is looked for in work, or its path has no filename", raises=(AttributeError, FileNotFoundError))
@pytest.mark.parametrize("is_consumed", [True, False])
def test_Q19_a_message_is_deleted_wherever_it_is(library: Library, tmp_path: Path, is_consumed: bool) -> None:
    broker = library.broker(tmp_path)
    message = broker.publish("q")
    if is_consumed:
        message = broker.consume("q")
    assert broker.delete_message(message)
    assert everywhere(broker) == 0


# ---- Q25


@twins("warnings are printed")
def test_Q25_nothing_is_printed(library: Library, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broker = library.broker(tmp_path)
    broker.publish("q")
    message = broker.consume("q")
    broker.ack(message)
    assert broker.ack(message) == broker.nack(message) == []
    broker.publish("q")
    library.before("list", lambda: None)
    broker.clean("q", force=True)
    assert capsys.readouterr().out == ""


def test_Q25_what_is_missing_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    broker = Library().broker(tmp_path)
    broker.create_queue("q")
    with caplog.at_level(logging.WARNING):
        assert broker.ack("q", ["5.1.1.ddmqa", "../ddmq.yaml"]) == []
    assert "5.1.1.ddmqa" in caplog.text
    assert (tmp_path / "q" / "ddmq.yaml").exists()


@twins("what counts as false becomes an empty text")
@pytest.mark.parametrize("text", [0, False, [], {}, 0.0])
def test_Q25_what_counts_as_false_is_a_message_too(library: Library, tmp_path: Path, text: object) -> None:
    broker = library.broker(tmp_path)
    broker.publish("q", text)
    found = broker.consume("q").message
    assert (found, type(found)) == (text, type(text))


# ---- Q26


@twins("the file of a new queue has all the defaults, which override the root's settings")
def test_Q26_what_the_root_overrides_counts_in_a_new_queue(library: Library, tmp_path: Path) -> None:
    (tmp_path / "ddmq.yaml").write_text("priority: 5\nmessage_timeout: 7\n")
    broker = library.broker(tmp_path)
    broker.create_queue("q")
    assert broker.publish("q").priority == 5
    assert broker.get_settings("q")["message_timeout"] == 7


def test_Q26_what_the_queue_overrides_counts_more(tmp_path: Path) -> None:
    (tmp_path / "ddmq.yaml").write_text("priority: 5\nmessage_timeout: 7\n")
    broker = Library().broker(tmp_path)
    broker.create_queue("q")
    broker.update_settings_file("q", {"priority": 6})
    assert broker.get_settings("q") == DEFAULTS | {"priority": 6, "message_timeout": 7}


def test_Q26_a_file_that_lacks_some_means_the_others(tmp_path: Path) -> None:
    (tmp_path / "ddmq.yaml").write_text("priority: 5\n")
    broker = Library().broker(tmp_path)
    broker.create_queue("q")
    (tmp_path / "q" / "ddmq.yaml").write_text("priority: 999\n")
    assert broker.get_settings("q")["priority"] == 999


def test_Q26_a_new_file_is_seen_without_a_new_broker(tmp_path: Path) -> None:
    broker = Library().broker(tmp_path)
    assert broker.publish("q").priority == 999
    (tmp_path / "ddmq.yaml").write_text("priority: 5\n")
    assert broker.publish("q").priority == 5


# ---- Q27


@twins("it asks for a file that no wheel has, and returns nothing", raises=(AssertionError, Exception))
def test_Q27_the_path_of_the_command_is_told_or_why_there_is_none(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "orchestrator"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(tmp_path / "python3"))
    monkeypatch.setenv("PATH", "/nonexistent")
    assert library.package.get_bin_path() == str(program)
    assert library.package.get_ddmq_bin_path() == str(program)
    program.unlink()
    with pytest.raises(FileNotFoundError, match="pip install"):
        library.package.get_bin_path()


# ---- beside a pool, which loses nothing


class PoolBench:
    """A queue on which a pool has claimed the message *name*, and was killed whole; its claim has expired."""

    def __init__(self, place: Path, **more: Any) -> None:
        self.ours = Library()
        broker = self.ours.broker(place / "root")
        broker.create_queue("q")
        self.pool = DdmqPool(place / "root" / "q", World(place))
        self.name = broker.publish("q", "precious", **more).filename
        self.claim = self.pool.claim()
        self.owner = self.pool.bury()
        self.held = place / "root" / "q.pool" / "held"
        self.ours.advance(1000)
        self.pool.world.advance(1000)
        self.broker = broker
        self.path = place / "root" / "q" / self.name
        self.content = next((place / "root" / "q" / "work").iterdir()).read_bytes()

    def waits_as_it_was(self) -> bool:
        return (
            waiting(self.broker) == [self.name] and not claimed(self.broker) and self.path.read_bytes() == self.content
        )

    def close(self) -> None:
        self.pool.queue.settled(self.claim)


@pytest.mark.parametrize("more", [{}, {"requeue": True, "requeue_limit": 1, "requeue_counter": 1}])
def test_what_a_killed_pool_had_in_hand_waits_again_as_it_was(tmp_path: Path, more: dict[str, Any]) -> None:
    bench = PoolBench(tmp_path, **more)
    assert bench.broker.clean("q", force=True)
    assert bench.waits_as_it_was()
    assert texts(bench.broker, 1) == ["precious"]
    bench.close()


def test_what_a_killed_pool_had_in_hand_and_wants_to_be_requeued_is(tmp_path: Path) -> None:
    bench = PoolBench(tmp_path, requeue=5)
    assert bench.broker.clean("q", force=True)
    (message,) = [bench.broker.consume("q")]
    assert (message.message, message.priority, message.requeue_counter) == ("precious", 5, 1)
    bench.close()


def test_what_only_a_consumer_of_the_library_had_is_removed_when_it_expires_also_beside_a_pool(tmp_path: Path) -> None:
    bench = PoolBench(tmp_path)
    other = bench.broker.publish("q", "of the library", timeout=1, priority=0)
    assert bench.broker.consume("q").id == other.id
    bench.ours.advance(1000)
    assert bench.broker.clean("q", force=True)
    assert bench.waits_as_it_was()
    bench.close()


def test_a_record_that_goes_and_comes_back_meanwhile_is_found(tmp_path: Path) -> None:
    """As a keeper whose release fails moves it."""
    bench = PoolBench(tmp_path)
    record, taken = bench.held / bench.owner, bench.held.parent / "tmp" / "taken"
    moves = iter([(record, taken), (taken, record)])

    def move() -> None:
        for source, target in itertools.islice(moves, 1):
            source.rename(target)

    bench.ours.kernel.hooks["listdir"] = move
    assert bench.broker.clean("q", force=True)
    assert record.exists()
    assert bench.waits_as_it_was()
    bench.close()


def test_what_a_keeper_was_killed_with_while_it_gave_it_back_waits_again(tmp_path: Path) -> None:
    bench = PoolBench(tmp_path)
    (bench.held / bench.owner).rename(bench.held.parent / "tmp" / "taken")
    assert bench.broker.clean("q", force=True)
    assert bench.waits_as_it_was()
    bench.close()


def test_while_a_record_cannot_be_read_nothing_is_removed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bench = PoolBench(tmp_path)

    def refuse(path: str, *more: Any) -> int:
        if "/held/" in path:
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return os.open(path, *more)

    bench.ours.kernel.replaced["open"] = refuse
    assert bench.broker.clean("q", force=True)
    assert len(claimed(bench.broker)) == 1
    assert "Permission denied" in caplog.text
    bench.ours.kernel.replaced.clear()
    for name in ("link", "fifo", "directory"):  # which are no records, and are not waited for
        place = bench.held / name
        {"link": lambda at: at.symlink_to("/dev/zero"), "fifo": os.mkfifo, "directory": os.mkdir}[name](place)
    assert bench.broker.clean("q", force=True)
    assert bench.waits_as_it_was()
    bench.close()


def test_records_are_read_only_when_something_would_be_removed(tmp_path: Path) -> None:
    bench = PoolBench(tmp_path, requeue=True)
    bench.ours.reset()
    assert bench.broker.clean("q", force=True)
    assert not [call for call in bench.ours.kernel.calls if call[0] == "listdir"]
    bench.close()


def test_what_a_pool_had_in_hand_is_given_back_in_every_order_of_a_cleaning_and_its_keeper(tmp_path: Path) -> None:
    number = itertools.count()
    benches: list[PoolBench] = []

    def setup() -> list[Any]:
        bench = PoolBench(tmp_path / str(next(number)))
        benches[:] = [bench]

        def clean(step: Callable[[], None]) -> None:
            bench.ours.kernel.hooks.update(dict.fromkeys(("listdir", *STEPS), step))
            bench.broker.clean("q", force=True)
            bench.ours.kernel.hooks.clear()

        def release(step: Callable[[], None]) -> None:
            bench.pool.keeper_system.before = lambda call, _: step() if call in STEPS else None
            bench.pool.keeping.release_owner(bench.owner, "died")

        return [clean, release]

    for run in schedules(setup):
        bench = benches[0]
        assert bench.waits_as_it_was(), run.trail
        bench.close()
    assert next(number) > 50


def test_in_a_sticky_directory_where_the_settings_are_anothers_it_is_cleaned_all_the_same_once_in_a_minute(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    library = Library()
    broker = library.broker(tmp_path)
    broker.create_queue("q")
    (tmp_path / "q" / "work" / "1.5.1.ddmqa").write_text('{"message": "text", "requeue": true}')

    def refuse(source: str, target: str) -> None:
        if target.endswith("ddmq.yaml"):
            raise PermissionError(errno.EPERM, "Operation not permitted", source)
        os.rename(source, target)

    library.kernel.replaced["rename"] = refuse
    assert texts(broker, 3) == ["text"]
    assert caplog.text.count("nobody else is told") == 1
