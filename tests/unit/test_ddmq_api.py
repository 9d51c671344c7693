"""
test_ddmq_api - the published methods: arguments, results, exceptions, and what they leave on the disk

What is marked both() is run on the original as well, where it must pass too. See also:
test_ddmq_faults (where it must fail), test_ddmq_settings, test_ddmq_files (the engine).
"""

from __future__ import annotations

import copy
import errno
import inspect
import json
import os
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.ddmq_twins import Kernel, Library, both, library_of, skip_unless_times_are_exact, tree
from workers import ddmq
from workers.ddmq import Broker, DdmqError, Message
from workers.ddmq.listing import GOOD_NS
from workers.system import System


@pytest.fixture(name="library")
def _library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Library:
    return library_of(request.param, monkeypatch)


@pytest.fixture(name="broker")
def _broker(tmp_path: Path) -> Broker:
    return Broker(tmp_path, create=True)


def served(broker: Any, count: int) -> list[object]:
    return [message.message for message in (broker.consume("q") for _ in range(count)) if message is not None]


# ---- the package


def test_the_published_names_are_there() -> None:
    assert ddmq.broker is Broker
    assert ddmq.message is Message
    assert inspect.isclass(ddmq.broker)
    from workers.ddmq.broker import DdmqError as Published  # noqa: PLC0415 - the place from where programs import it

    assert Published is DdmqError


PUBLISHED = {
    "publish": "queue msg_text=None priority=None clean=True requeue=False requeue_prio=None timeout=None"
    " requeue_counter=0 requeue_limit=None",
    "consume": "queue n=1 clean=True",
    "ack": "queue msg_files=None requeue=None clean=True",
    "nack": "queue msg_files=None requeue=None clean=True",
    "create_queue": "queue",
    "delete_queue": "queue",
    "purge_queue": "queue",
    "clean": "queue force=False",
    "clean_all": "",
    "list_queues": "",
    "get_message_list": "queue",
    "get_message": "path",
    "delete_message": "path",
    "requeue_message": "path msg=None",
    "get_config_file": "queue=''",
    "get_settings": "queue",
    "check_dir": "path only_conf=False",
    "get_queue_number": "",
    "create_folder": "path",
    "version": "",
    "__init__": "root create=False verbose=False debug=False",
}


@pytest.mark.parametrize("method", PUBLISHED)
def test_each_method_takes_the_published_arguments(method: str) -> None:
    parameters = list(inspect.signature(getattr(Broker, method)).parameters.values())[1:]
    plain = [one for one in parameters if one.kind is not one.KEYWORD_ONLY]
    said = " ".join(one.name if one.default is one.empty else f"{one.name}={one.default!r}" for one in plain)
    assert said == PUBLISHED[method]


@both()
def test_a_broker_and_a_message_are_shown_line_by_line(library: Library, tmp_path: Path) -> None:
    broker = library.broker(tmp_path)
    lines = repr(broker).splitlines()
    assert [line.partition(" = ")[0] for line in lines] == [
        "create", "default_settings", "global_settings", "queue_settings", "root",
    ]  # fmt: skip
    assert lines[-1] == f"root = {tmp_path}"
    assert repr(library.package.message(queue="q", message="Hello")) == (
        "filename = None\nid = None\nmessage = Hello\npriority = None\nqueue = q\nqueue_number = None\nrequeue = None\n"
        "requeue_counter = None\nrequeue_limit = None\ntimeout = None"
    )
    assert broker.version() == "0.9.14"


# ---- messages


@both()
def test_a_message_goes_to_json_and_back(library: Library) -> None:
    made = library.package.message.json2msg('{"message": [1], "queue": "q", "mine": "kept"}')
    assert (made.message, made.queue, made.mine, made.id) == ([1], "q", "kept", None)
    made.update({"priority": 5, "other": 1})
    text = made.msg2json()
    assert text == (
        '{"message": [1], "queue": "q", "timeout": null, "id": null, "priority": 5, "queue_number": null,'
        ' "filename": null, "requeue": null, "requeue_counter": null, "requeue_limit": null,'
        ' "mine": "kept", "other": 1}'
    )
    assert vars(library.package.message.json2msg(json.loads(text))) == vars(made)


def test_a_message_can_be_copied_and_pickled() -> None:
    made = Message(queue="q", message={"a": 1})
    assert vars(copy.deepcopy(made)) == vars(pickle.loads(pickle.dumps(made))) == vars(made)  # noqa: S301 - our own
    with pytest.raises(ValueError, match="JSON object"):
        Message.json2msg("[1]")


# ---- the disk


@both()
def test_what_is_made_is_made_the_same(library: Library, tmp_path: Path) -> None:
    broker = library.broker(tmp_path / "a" / "root")
    defaults = b"cleaned: 0\nmessage_timeout: 600\npriority: 999\nrequeue: true\nrequeue_prio: 0\n"
    assert broker.create_queue("q") is True
    assert tree(tmp_path) == {
        "a/root/ddmq.yaml": b"", "a/root/ddmq.yaml.example": defaults, "a/root/q/ddmq.yaml": defaults,
    }  # fmt: skip
    assert (tmp_path / "a" / "root" / "q" / "work").is_dir()
    assert {oct(path.stat().st_mode) for path in tmp_path.rglob("*") if path.is_file()} == {"0o100644"}


@both()
def test_a_published_message_is_a_json_object_called_like_it(library: Library, tmp_path: Path) -> None:
    broker = library.broker(tmp_path)
    made = broker.publish("q", "grüß", priority=5, requeue=True, requeue_prio=3, timeout=60, requeue_limit=2)
    text = (tmp_path / "q" / made.filename).read_bytes()
    assert text == made.msg2json().encode()
    assert text.startswith(b'{"message": "gr\\u00fc\\u00df", "queue": "q", "timeout": 60, "id": "')
    assert text.endswith(b'"requeue": 3, "requeue_counter": 0, "requeue_limit": 2}')
    assert re.fullmatch(rf"5\.[0-9]{{11,17}}\.ddmq{made.id}", made.filename)
    assert re.fullmatch("[0-9a-f]{12}4[0-9a-f]{3}[89ab][0-9a-f]{15}", made.id)
    assert f"5.{made.queue_number}.ddmq{made.id}" == made.filename


@both()
@pytest.mark.parametrize("give", ["ours", "theirs"])
def test_each_consumes_what_the_other_has_published(library: Library, tmp_path: Path, give: str) -> None:
    """With *library* the peer of ours; on ours it is a round trip."""
    theirs, ours = library.broker(tmp_path), Broker(tmp_path)
    giver, taker = (ours, theirs) if give == "ours" else (theirs, ours)
    theirs.create_queue("q")
    made = giver.publish("q", {"deep": ["é", None, 1.5]}, priority=5, requeue=True, timeout=90)
    giver.publish("q", "second", priority=6)
    message = taker.consume("q")
    assert vars(message) == vars(made) | {"filename": message.filename}
    assert message.filename.endswith(f".{made.filename}")
    assert giver.nack("q", message.filename) == [message.filename]
    assert taker.consume("q") is not None
    assert len(taker.get_message_list("q")[1]) == 1
    taker.purge_queue("q")
    giver.publish("q", "third")
    assert taker.ack(taker.consume("q"))
    assert giver.get_message_list("q") == ([], [])
    assert giver.get_config_file("q").keys() == taker.get_config_file("q").keys()
    assert giver.delete_queue("q") is True


# ---- consume


@both()
def test_consume_gives_one_or_a_list_or_none(library: Library, tmp_path: Path) -> None:
    broker = library.broker(tmp_path)
    assert broker.consume("q") is None
    assert broker.consume("q", n=2) is None
    for text in "abcd":
        broker.publish("q", text)
    assert broker.consume("q").message == "a"
    assert broker.consume("q", n=None).message == "b"
    assert [message.message for message in broker.consume("q", 5)] == ["c", "d"]


@both()
def test_a_claim_lasts_as_long_as_message_or_setting_say_and_0_is_not_given(library: Library, tmp_path: Path) -> None:
    broker = library.broker(tmp_path)
    now_s = System.wall_ns() / 1e9
    for timeout, expected in ((None, 600), (0, 600), (50, 50)):
        broker.publish("q", timeout=timeout)
        message = broker.consume("q")
        assert abs(int(message.filename.partition(".")[0]) - now_s - expected) < 60
        assert message.timeout == timeout


def test_a_negative_number_of_messages_is_refused(broker: Broker) -> None:
    with pytest.raises(ValueError, match="n is -1"):
        broker.consume("q", n=-1)


def test_a_timeout_in_a_file_that_is_none_is_passed_by(broker: Broker, tmp_path: Path) -> None:
    broker.create_queue("q")
    for number, timeout in enumerate(["soon", -5, True, None, [1], 1.5]):
        (tmp_path / "q" / f"1.{number}.ddmqa").write_text(json.dumps({"timeout": timeout}))
        message = broker.consume("q")
        assert isinstance(message, Message)
        assert re.fullmatch(r"[0-9]{10}\.1\.[0-9]\.ddmqa", str(message.filename))
        assert message.queue == "q"
        assert broker.ack(message)


@pytest.mark.parametrize("timeout", [1e300, 10**300, 10**11 + 1])
def test_a_timeout_in_a_file_that_fits_no_name_is_the_longest_one(
    broker: Broker, tmp_path: Path, timeout: float
) -> None:
    broker.publish("q", "next")
    (tmp_path / "q" / "1.1.ddmqa").write_text(json.dumps({"message": "poor", "timeout": timeout}))
    assert served(broker, 3) == ["poor", "next"]
    assert all(len(name.partition(".")[0]) <= 12 for name in broker.get_message_list("q")[1])


def test_a_setting_of_the_timeout_that_fits_no_name_is_the_longest_one(broker: Broker) -> None:
    broker.create_queue("q")
    broker.update_settings_file("q", {"message_timeout": 10**300})
    broker.publish("q", "text")
    assert served(broker, 1) == ["text"]


def test_a_name_without_room_for_an_expiry_keeps_no_other_from_being_served(
    broker: Broker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broker.publish("q", "next")
    (tmp_path / "q" / f"1.1.ddmq{'a' * 247}").write_text('{"message": "long"}')
    broker.publish("q", "last")
    assert served(broker, 4) == ["next", "last"]
    assert caplog.text.count("is not served") == 1


def test_a_file_that_is_too_large_is_set_aside(broker: Broker, tmp_path: Path) -> None:
    broker.publish("q", "next")
    (tmp_path / "q" / "1.1.ddmqa").touch()
    os.truncate(tmp_path / "q" / "1.1.ddmqa", 40 << 30)
    assert served(broker, 2) == ["next"]
    assert "larger" in (tmp_path / "q.pool" / "errors" / "1.1.ddmqa.meta").read_text()


def test_a_message_that_may_not_be_read_is_left_and_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kernel = Kernel()
    broker = Broker(tmp_path, create=True, system=kernel)
    broker.publish("q", "closed", priority=1)
    broker.publish("q", "open", priority=2)

    def refuse(path: str, *more: Any) -> int:
        if "/q/1." in path:
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return os.open(path, *more)

    kernel.replaced["open"] = refuse
    assert served(broker, 3) == ["open"]
    assert caplog.text.count("is not served") == 1
    del kernel.replaced["open"]
    kernel.moved_ns += GOOD_NS * 30
    assert served(broker, 1) == ["closed"]


def test_a_disk_that_fails_is_an_error_and_what_was_claimed_is_returned(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kernel = Kernel()
    broker = Broker(tmp_path, create=True, system=kernel)
    for text in range(3):
        broker.publish("q", text)

    def fail(source: str, target: str) -> None:
        if source.endswith(second):
            raise OSError(errno.EIO, "Input/output error", source)
        os.rename(source, target)

    second = sorted(broker.get_message_list("q")[0])[1]
    kernel.replaced["rename"] = fail
    taken = broker.consume("q", n=3)
    assert isinstance(taken, list)
    assert [message.message for message in taken] == [0]
    assert "only 1 of 3" in caplog.text
    with pytest.raises(OSError, match="Input/output"):
        broker.consume("q")


# ---- the listing


def test_a_more_urgent_message_of_another_is_served_next(tmp_path: Path) -> None:
    """Every time: what was published before a consume begins is seen by it."""
    skip_unless_times_are_exact(tmp_path)
    kernel = Kernel()
    broker = Broker(tmp_path, create=True, system=kernel)
    for text in range(200):
        broker.publish("q", text, priority=500)
    other = Broker(tmp_path)
    for text in range(100):
        assert served(broker, 1) == [text]
        other.publish("q", "urgent", priority=text % 3)
        assert served(broker, 1) == ["urgent"]


def test_own_messages_are_put_among_those_that_are_known(tmp_path: Path) -> None:
    kernel = Kernel()
    kernel.stopped_ns = System.boottime_ns()
    broker = Broker(tmp_path, create=True, system=kernel)
    for text in range(10):
        broker.publish("q", text, priority=500)
    assert served(broker, 1) == [0]
    kernel.calls.clear()
    for priority in (501, 0, 500):
        broker.publish("q", f"of {priority}", priority=priority)
    assert served(broker, 12) == ["of 0", 1, 2, 3, 4, 5, 6, 7, 8, 9, "of 500", "of 501"]
    assert not [call for call in kernel.calls if call[0] == "scandir"]


def test_after_50_ms_the_directory_is_read_again_whatever_its_time_says(tmp_path: Path) -> None:
    """As if its time were coarse: another's message leaves it as it is."""
    kernel = Kernel()
    kernel.stopped_ns = System.boottime_ns()
    broker = Broker(tmp_path, create=True, system=kernel)
    for text in range(3):
        broker.publish("q", text)
    assert served(broker, 1) == [0]
    before = (tmp_path / "q").stat()
    Broker(tmp_path).publish("q", "urgent", priority=1)
    os.utime(tmp_path / "q", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert served(broker, 1) == [1]
    kernel.stopped_ns += GOOD_NS * 30
    assert served(broker, 2) == ["urgent", 2]


def test_who_has_lost_a_race_goes_on_with_what_he_knows_and_misses_nothing(tmp_path: Path) -> None:
    """Others change the directory all the time then; when what is known has come to its end, it is read again."""
    kernel = Kernel()
    kernel.stopped_ns = System.boottime_ns()
    broker, other = Broker(tmp_path, create=True, system=kernel), Broker(tmp_path)
    for text in range(4):
        broker.publish("q", text)
    kernel.hooks["rename"] = lambda: (kernel.hooks.clear(), other.consume("q"), other.publish("q", "later"))
    kernel.calls.clear()
    assert served(broker, 1) == [1]
    assert served(broker, 1) == [2]
    assert [call[0] for call in kernel.calls].count("scandir") == 1
    kernel.hooks["rename"] = lambda: (kernel.hooks.clear(), other.consume("q"))
    broker.publish("q", "own", priority=0)
    assert served(broker, 4) == [3, "later"], "own was taken by the other"
    kernel.hooks["rename"] = lambda: (kernel.hooks.clear(), other.consume("q"))
    for text in range(3):
        broker.publish("q", text)
    assert served(broker, 1) == [1]
    other.publish("q", "urgent", priority=0)
    assert served(broker, 2) == [2, "urgent"], "nobody was met, so it was looked again"

    for text in range(3):
        broker.publish("q", text)
    kernel.hooks["rename"] = lambda: (kernel.hooks.clear(), other.consume("q"))
    assert served(broker, 1) == [1]
    other.consume("q")
    other.publish("q", "last")
    assert served(broker, 1) == ["last"], "all that was known is gone"

    for text in range(3):
        broker.publish("q", text)
    kernel.hooks["rename"] = lambda: (kernel.hooks.clear(), other.consume("q"))
    assert served(broker, 1) == [1]
    other.publish("q", "urgent", priority=0)
    kernel.stopped_ns += GOOD_NS * 30
    assert served(broker, 1) == ["urgent"], "what is known is too old"


def test_that_nothing_waits_is_never_said_from_memory(tmp_path: Path) -> None:
    kernel = Kernel()
    kernel.stopped_ns = System.boottime_ns()
    broker, other = Broker(tmp_path, create=True, system=kernel), Broker(tmp_path)
    broker.publish("q", "first")
    assert served(broker, 2) == ["first"]
    before = (tmp_path / "q").stat()
    other.publish("q", "second")
    os.utime(tmp_path / "q", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert served(broker, 1) == ["second"]


def test_what_is_published_while_the_names_are_read_is_not_overlooked(tmp_path: Path) -> None:
    kernel = Kernel()
    kernel.stopped_ns = System.boottime_ns()
    broker = Broker(tmp_path, create=True, system=kernel)
    broker.publish("q", 0)
    real = System.scandir

    def scandir(path: str) -> Any:
        listed = real(path)
        if path.endswith("/q"):
            with listed as found:
                entries = list(found)
            Broker(tmp_path).publish("q", "later", priority=1000)
            kernel.replaced.pop("scandir", None)
            return _Entries(entries)
        return listed

    kernel.replaced["scandir"] = scandir
    broker.get_settings("q")
    taking = broker._taking("q")
    taking.listing.drop()
    taking.listing.refresh()
    assert not taking.listing.is_good()
    assert served(broker, 3) == [0, "later"]


class _Entries:
    def __init__(self, entries: list[Any]) -> None:
        self._entries = entries

    def __enter__(self) -> Any:
        return iter(self._entries)

    def __exit__(self, *_: object) -> None:
        return None


# ---- publish


@both()
def test_a_negative_priority_is_refused(library: Library, tmp_path: Path) -> None:
    broker = library.broker(tmp_path)
    with pytest.raises(ValueError, match="-1"):
        broker.publish("q", "x", priority=-1)
    assert broker.get_message_list("q") == ([], []) if (tmp_path / "q").exists() else True


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"priority": "5"}, TypeError), ({"priority": True}, TypeError), ({"priority": 1.5}, TypeError),
        ({"requeue": -1}, ValueError), ({"requeue_prio": -1}, ValueError), ({"requeue_prio": "1"}, TypeError),
        ({"timeout": -1}, ValueError), ({"timeout": float("nan")}, ValueError), ({"timeout": float("inf")}, ValueError),
        ({"msg_text": {1}}, TypeError), ({"requeue_limit": -1}, ValueError),
        ({"timeout": 1e300}, ValueError), ({"timeout": 10**11 + 1}, ValueError), ({"priority": 10**18}, ValueError),
        ({"requeue": 10**300}, ValueError), ({"requeue_prio": 10**18}, ValueError),
    ],
)  # fmt: skip
def test_what_cannot_be_published_is_refused_and_leaves_nothing(
    broker: Broker, tmp_path: Path, arguments: dict[str, Any], error: type[Exception]
) -> None:
    broker.create_queue("q")
    before = list(tree(tmp_path))
    with pytest.raises(error):
        broker.publish("q", **arguments)
    assert list(tree(tmp_path)) == before


def test_the_greatest_numbers_that_can_be_published_can_be_consumed_and_requeued(broker: Broker) -> None:
    made = broker.publish("q", priority=10**18 - 1, requeue=10**18 - 1, timeout=10**11)
    assert broker.ack(broker.consume("q"), requeue=True)
    assert broker.get_message_list("q") == ([str(made.filename)], [])
    broker.update_settings_file("q", {"priority": 10**18})
    with pytest.raises(ValueError, match="priority"):
        broker.publish("q")


@pytest.mark.parametrize(("timeout", "seconds"), [(1.5, 2), (5.0, 5), (7, 7), (0.0, 0)])
def test_a_timeout_is_whole_seconds_for_an_original_puts_it_into_a_name(
    broker: Broker, timeout: float, seconds: int
) -> None:
    found = broker.publish("q", timeout=timeout).timeout
    assert (found, type(found)) == (seconds, int)


@both()
def test_requeue_none_is_written_as_null_and_is_no_wish(library: Library, tmp_path: Path) -> None:
    broker = library.broker(tmp_path)
    broker.publish("q", requeue=None, timeout=1)
    message = broker.consume("q")
    assert message.requeue is None
    os.rename(tmp_path / "q" / "work" / message.filename, tmp_path / "q" / "work" / "1.5.1.ddmqa")
    broker.clean("q", force=True)
    assert broker.get_message_list("q") == ([], [])


@both()
def test_no_text_is_an_empty_one(library: Library, tmp_path: Path) -> None:
    assert library.broker(tmp_path).publish("q").message == ""


def test_numbers_of_one_broker_go_up_also_when_the_clock_is_set_back(tmp_path: Path) -> None:
    kernel = Kernel()
    kernel.frozen_ns = 1_780_000_000 * 10**9
    broker = Broker(tmp_path, create=True, system=kernel)
    for text in range(5):
        broker.publish("q", text)
        kernel.frozen_ns -= 10**9
    for text in range(5, 500):
        broker.publish("q", text)
    assert served(broker, 500) == list(range(500))


def test_what_is_durable_is_synced(tmp_path: Path) -> None:
    kernel = Kernel()
    Broker(tmp_path, create=True, durable=True, system=kernel).publish("q")
    assert [call[0] for call in kernel.calls].count("fsync") == 2


# ---- ack, nack, requeue


@both()
def test_ack_takes_a_message_a_name_or_names(library: Library, tmp_path: Path) -> None:
    broker = library.broker(tmp_path)
    for _ in range(4):
        broker.publish("q")
    first, second, third, fourth = broker.consume("q", n=4)
    assert broker.ack(first) == [first.filename]
    assert broker.ack("q", second.filename) == [second.filename]
    assert broker.ack("q", [first.filename, third.filename, fourth.filename]) == [third.filename, fourth.filename]
    assert broker.get_message_list("q") == ([], [])
    for nothing in (None, [], ""):
        with pytest.raises(ValueError, match=r"(?i)message"):
            broker.ack("q", nothing)


@both()
def test_ack_with_requeue_puts_it_back(library: Library, tmp_path: Path) -> None:
    broker = library.broker(tmp_path)
    broker.publish("q", "text", requeue=True, requeue_prio=5)
    message = broker.consume("q")
    assert broker.ack(message, requeue=True, clean=False) == [message.filename]
    again = broker.consume("q")
    assert (again.message, again.requeue_counter, again.priority) == ("text", 1, 5)


@both()
def test_nack_with_requeue_puts_it_back_and_with_false_it_does_not(library: Library, tmp_path: Path) -> None:
    broker = library.broker(tmp_path)
    broker.publish("q", "text")
    message = broker.consume("q")
    assert broker.nack("q", [message.filename], requeue=True) == [message.filename]
    message = broker.consume("q")
    assert message.requeue_counter == 1
    assert broker.nack(message, requeue=False, clean=False) == [message.filename]
    assert broker.get_message_list("q") == ([], [])


def test_nack_of_nothing_is_refused(broker: Broker) -> None:
    broker.create_queue("q")
    with pytest.raises(ValueError, match="named"):
        broker.nack("q")


def test_what_nack_finds_to_be_no_message_is_not_said_to_be_missing(
    broker: Broker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broker.publish("q")
    message = broker.consume("q")
    assert isinstance(message, Message)
    (tmp_path / "q" / "work" / str(message.filename)).write_text("torn")
    assert broker.nack(message) == []
    assert "set aside" in caplog.text
    assert "missing" not in caplog.text


@pytest.mark.parametrize("settle", ["nack", "ack"])
def test_what_a_full_disk_keeps_from_being_requeued_can_be_requeued_when_there_is_room(
    tmp_path: Path, settle: str
) -> None:
    library = Library()
    broker = library.broker(tmp_path)
    broker.publish("q", "precious")
    message = broker.consume("q")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    library.kernel.replaced["write"] = full
    with pytest.raises(OSError, match="No space"):
        getattr(broker, settle)(message, requeue=True)
    assert broker.get_message_list("q") == ([], [message.filename])
    library.kernel.replaced.clear()
    assert getattr(broker, settle)(message, requeue=True) == [message.filename]
    assert served(broker, 1) == ["precious"]


@pytest.mark.parametrize("prio", [10**18, 10**300])
def test_a_priority_for_the_requeue_that_fits_no_name_is_the_greatest(
    broker: Broker, tmp_path: Path, prio: int
) -> None:
    broker.create_queue("q")
    (tmp_path / "q" / "1.1.ddmqa").write_text(json.dumps({"message": "text", "requeue": prio}))
    assert broker.nack(broker.consume("q"))
    assert broker.get_message_list("q") == ([f"{10**18 - 1}.1.ddmqa"], [])


def test_a_name_without_room_for_the_priority_of_the_requeue_keeps_its_own(broker: Broker, tmp_path: Path) -> None:
    broker.create_queue("q")
    name = f"7.1.ddmq{'a' * 234}"
    (tmp_path / "q" / name).write_text(json.dumps({"message": "text", "requeue": 1000}))
    assert broker.nack(broker.consume("q"))
    assert broker.get_message_list("q") == ([name], [])
    found = broker.consume("q")
    assert isinstance(found, Message)
    assert (found.message, found.priority) == ("text", 7)


@pytest.mark.parametrize(
    "fields",
    [{"update": "yes"}, {"msg2json": 1}, {"json2msg": [1]}, {"requeue_counter": 10**4300 - 1}, {"__dict__": {}}],
)
def test_a_message_with_fields_of_any_name_and_size_is_requeued(
    broker: Broker, tmp_path: Path, fields: dict[str, object]
) -> None:
    broker.create_queue("q")
    text = json.dumps({"message": "text", "requeue": True, **fields})
    (tmp_path / "q" / "work" / "1.5.1.ddmqa").write_text(text)
    assert broker.clean("q", force=True)
    found = broker.consume("q")
    assert isinstance(found, Message)
    assert found.message == "text"
    assert {key: vars(found)[key] for key in fields if key != "requeue_counter"} == {
        key: value for key, value in fields.items() if key != "requeue_counter"
    }


def test_what_can_be_read_but_not_be_written_again_is_set_aside_and_stops_no_cleaning(
    broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker.create_queue("q")
    for name in ("1.5.1.ddmqa", "1.6.1.ddmqb"):
        (tmp_path / "q" / "work" / name).write_text(json.dumps({"message": name, "requeue": True}))
    real = Message.msg2json

    def too_deep(message: Message) -> str:
        if message.message == "1.5.1.ddmqa":
            raise RecursionError
        return real(message)

    monkeypatch.setattr(Message, "msg2json", too_deep)
    assert broker.clean("q", force=True)
    assert broker.get_message_list("q") == (["0.1.ddmqb"], [])
    (kept,) = (path.name for path in (tmp_path / "q.pool" / "errors").iterdir() if path.suffix != ".meta")
    assert kept.endswith(".5.1.ddmqa")
    assert broker.get_settings("q")["cleaned"]


def test_a_path_into_work_names_a_claim_and_no_other_path_does(broker: Broker, tmp_path: Path) -> None:
    broker.publish("q")
    (tmp_path / "q" / "work" / "precious").touch()
    name = str(broker.consume("q").filename)  # type: ignore[union-attr]
    elsewhere = tmp_path / "elsewhere" / name
    elsewhere.parent.mkdir()
    elsewhere.touch()
    assert broker.ack("q", [str(elsewhere), "precious", "../ddmq.yaml", "", "."]) == []
    assert elsewhere.exists()
    assert broker.ack("q", str(tmp_path / "q" / "work" / name))
    assert (tmp_path / "q" / "work" / "precious").exists()


def test_requeue_message_takes_what_is_given_for_the_files_content(broker: Broker, tmp_path: Path) -> None:
    broker.publish("q", "old")
    message = broker.consume("q")
    assert isinstance(message, Message)
    message.message = "new"
    assert broker.requeue_message(str(tmp_path / "q" / "work" / str(message.filename)), message) is True
    assert served(broker, 1) == ["new"]
    with pytest.raises(FileNotFoundError):
        broker.requeue_message(str(tmp_path / "q" / "work" / str(message.filename)))
    with pytest.raises(ValueError, match="called"):
        broker.requeue_message(str(tmp_path / "q" / "ddmq.yaml"))


def test_the_other_spelling_of_clean_is_taken_too(tmp_path: Path) -> None:
    library = Library()
    broker = library.broker(tmp_path)
    broker.publish("q", requeue=True, timeout=1)
    broker.consume("q")
    library.advance(100)
    assert broker.consume("q", skip_cleaning=True) is None
    assert broker.publish("q", priority=5, skip_cleaning=True)
    message = broker.consume("q", skip_cleaning=True)
    assert message.priority == 5
    assert broker.ack(message, skip_cleaning=True)
    assert broker.consume("q", skip_cleaning=False).requeue_counter == 1


def test_requeued_twice_of_the_same_id_waits_until_the_other_is_gone(tmp_path: Path) -> None:
    library = Library()
    broker = library.broker(tmp_path)
    made = broker.publish("q", "text", priority=0, requeue=True, timeout=1)
    broker.consume("q")
    (tmp_path / "q" / made.filename).write_text(made.msg2json())
    library.advance(100)
    broker.clean("q", force=True)
    assert [len(names) for names in broker.get_message_list("q")] == [1, 1]
    broker.ack(broker.consume("q"))
    library.advance(100)
    assert served(broker, 1) == ["text"]


# ---- queues


@both()
def test_queues_are_listed_sorted_and_only_queues(library: Library, tmp_path: Path) -> None:
    broker = library.broker(tmp_path)
    assert broker.list_queues() == []
    for queue in ("b", "a", "C"):
        broker.create_queue(queue)
    (tmp_path / "directory").mkdir()
    (tmp_path / "directory" / "ddmq.yaml").touch()
    (tmp_path / "file").touch()
    assert broker.list_queues() == ["C", "a", "b"]


@pytest.mark.parametrize("code", [errno.EACCES, errno.ELOOP, errno.EIO])
def test_what_cannot_be_looked_into_is_no_queue_and_hides_none(tmp_path: Path, code: int) -> None:
    library = Library()
    broker = library.broker(tmp_path)
    broker.create_queue("q")
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "loop").symlink_to("loop")

    def refuse(path: str) -> os.stat_result:
        if "lost+found" in path:
            raise OSError(code, os.strerror(code), path)
        return os.stat(path)

    library.kernel.replaced["stat"] = refuse
    assert broker.list_queues() == ["q"]
    broker.clean_all()


def test_nothing_is_remembered_of_what_is_no_queue_or_is_one_no_more(broker: Broker, tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    for name in ("a", "b", "c"):
        broker.publish(name)
        assert broker.consume(name)
    broker.delete_queue("a")
    shutil.rmtree(tmp_path / "b")
    broker.clean_all()
    assert broker._files.keys() - {""} == broker._takings.keys() == broker.queue_settings.keys() == {"c"}
    assert broker._settings._read.keys() - {""} == broker._settings._effective.keys() == {"c"}


def test_a_new_queue_has_a_name_that_leaves_room_for_what_a_pool_keeps_beside_it(broker: Broker) -> None:
    assert broker.create_queue("q" * 240)
    with pytest.raises(ValueError, match="241 letters"):
        broker.create_queue("q" * 241)


@both()
def test_a_queue_is_made_once_and_deleted_once(library: Library, tmp_path: Path) -> None:
    broker = library.broker(tmp_path)
    assert broker.create_queue("q") is True
    with pytest.raises(FileExistsError):
        broker.create_queue("q")
    broker.publish("q")
    broker.publish("q")
    broker.consume("q")
    assert broker.delete_queue("q") is True
    assert not (tmp_path / "q").exists()
    with pytest.raises(FileNotFoundError):
        broker.delete_queue("q")
    with pytest.raises(FileNotFoundError):
        broker.purge_queue("q")


@both()
def test_what_is_missing_is_told(library: Library, tmp_path: Path) -> None:
    library.broker(tmp_path)
    broker = library.peer(tmp_path)
    for do in ("publish", "consume", "get_settings", "get_message_list", "get_config_file", "update_settings_file"):
        with pytest.raises(FileNotFoundError):
            getattr(broker, do)("q")
    assert not (tmp_path / "q").exists()


@both()
def test_purge_counts_what_waited_and_what_was_claimed(library: Library, tmp_path: Path) -> None:
    broker = library.broker(tmp_path)
    for _ in range(5):
        broker.publish("q")
    broker.consume("q", n=2)
    assert tuple(broker.purge_queue("q")) == (3, 2)
    assert broker.get_message_list("q") == ([], [])
    assert tuple(broker.purge_queue("q")) == (0, 0)


def test_a_queue_with_files_of_others_is_not_deleted_at_all(broker: Broker, tmp_path: Path) -> None:
    broker.publish("q")
    for place in (tmp_path / "q" / "notes", tmp_path / "q" / "work" / "notes"):
        place.touch()
        before = tree(tmp_path)
        with pytest.raises(OSError, match="notes") as caught:
            broker.delete_queue("q")
        assert caught.value.errno == errno.ENOTEMPTY
        assert tree(tmp_path) == before
        place.unlink()
    (tmp_path / "q" / "1.1.ddmqdirectory").mkdir()
    with pytest.raises(OSError, match="ddmqdirectory"):
        broker.delete_queue("q")
    (tmp_path / "q" / "1.1.ddmqdirectory").rmdir()
    assert broker.delete_queue("q")


def test_of_two_who_create_a_queue_one_is_told_that_it_exists(tmp_path: Path) -> None:
    """At each call of the first one."""
    calls = ("mkdir", "listdir", "open", "write", "rename_noreplace")
    for call in calls:
        library, peer = Library(), Broker(tmp_path, create=True)
        broker = library.broker(tmp_path)
        queue, told = f"q-{call}", []
        library.kernel.hooks[call] = lambda peer=peer, queue=queue, told=told, hooks=library.kernel.hooks: (
            hooks.clear(),
            told.append(peer.create_queue(queue)),
        )
        with pytest.raises(FileExistsError):
            told.append(broker.create_queue(queue))
        assert told == [True]
        assert broker.list_queues().count(queue) == 1
        library.kernel.hooks[call] = lambda peer=peer, queue=queue, hooks=library.kernel.hooks: (
            hooks.clear(),
            peer.publish(f"{queue}-2"),
        )
        broker.publish(f"{queue}-2")
        assert len(broker.get_message_list(f"{queue}-2")[0]) == (2 if not library.kernel.hooks else 1)


def test_a_queue_that_was_not_finished_is_finished(broker: Broker, tmp_path: Path) -> None:
    (tmp_path / "q").mkdir()
    assert broker.publish("q")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").touch()
    with pytest.raises(FileExistsError):
        broker.create_queue("mine")
    with pytest.raises(FileNotFoundError):
        broker.publish("mine")


@pytest.mark.parametrize("queue", ["a/b", "..", "", "a\0b", ".", None])
def test_a_name_that_can_be_no_queue_is_refused_everywhere(broker: Broker, tmp_path: Path, queue: Any) -> None:
    for do in ("publish", "consume", "create_queue", "delete_queue", "purge_queue", "clean", "get_message_list"):
        with pytest.raises(ValueError, match="queue"):
            getattr(broker, do)(queue)
    with pytest.raises(ValueError, match="queue"):
        broker.ack(queue, "5.1.1.ddmqa")
    if queue:
        with pytest.raises(ValueError, match="queue"):
            broker.update_settings_file(queue, {"priority": 1})
    assert sorted(os.listdir(tmp_path)) == ["ddmq.yaml", "ddmq.yaml.example"]


# ---- one message


@both()
def test_a_message_is_fetched_and_deleted_by_its_path(library: Library, tmp_path: Path) -> None:
    broker = library.broker(tmp_path)
    made = broker.publish("q", "text")
    path = str(tmp_path / "q" / made.filename)
    assert vars(broker.get_message(path)) == vars(made)
    assert broker.delete_message(path) is True
    with pytest.raises(FileNotFoundError):
        broker.delete_message(path)
    with pytest.raises(FileNotFoundError):
        broker.get_message(path)
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "q" / "ddmq.yaml"))):
        broker.delete_message(str(tmp_path / "q" / "ddmq.yaml"))
    (tmp_path / "q" / made.filename).write_text("{")
    with pytest.raises(ValueError):  # noqa: PT011 - each has a text of its own
        broker.get_message(path)


# ---- the root


@both()
def test_a_root_that_is_missing_or_none_is_told(library: Library, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    for name, error in (("missing", "missing"), ("plain", "uninitiated")):
        with pytest.raises(Exception) as caught:  # noqa: PT011 - each library has a class of its own
            library.peer(tmp_path / name)
        assert caught.value.error == error  # type: ignore[attr-defined]
        assert caught.value.message.startswith(("Root", "the root"))  # type: ignore[attr-defined]
    assert list(tmp_path.iterdir()) == [tmp_path / "plain"]


def test_the_error_of_a_root_names_it(tmp_path: Path) -> None:
    with pytest.raises(DdmqError, match="nowhere"):
        Broker(tmp_path / "nowhere")


@both()
def test_check_dir_says_true_or_none(library: Library, tmp_path: Path) -> None:
    broker = library.broker(tmp_path)
    broker.create_queue("q")
    assert broker.check_dir(str(tmp_path / "q")) is True
    assert broker.check_dir(str(tmp_path)) is None
    assert broker.check_dir(str(tmp_path), only_conf=True) is True
    assert broker.check_dir(str(tmp_path / "none")) is None


@both()
def test_a_folder_is_made_with_its_parents_and_only_once(library: Library, tmp_path: Path) -> None:
    broker = library.broker(tmp_path)
    assert broker.create_folder(str(tmp_path / "a" / "b" / "c")) is None
    assert (tmp_path / "a" / "b" / "c").is_dir()
    with pytest.raises(FileExistsError):
        broker.create_folder(str(tmp_path / "a"))


def test_errors_can_be_pickled() -> None:
    for error in (DdmqError("text", "missing"), ddmq.SettingsError("text"), ddmq.CorruptError("text")):
        found = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
        assert (type(found), str(found), found.error) == (type(error), "text", error.error)


def test_a_root_is_shared_by_brokers_that_begin_together(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "ddmq.yaml").write_text("priority: 5\n")
    first, second = Broker(tmp_path / "root", create=True), Broker(str(tmp_path / "root"))
    assert first.global_settings["priority"] == second.global_settings["priority"] == 5
    first.publish("q", "text")
    assert served(second, 1) == ["text"]
