"""A pool on a ddmq queue: claims that expire, settles, keeper, what originals leave, every call failed or killed."""

from __future__ import annotations

import errno
import functools
import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from tests.ddmq_twins import Original, needs_original
from tests.rig import FakeSystem, World
from tests.rig_ddmq import DdmqPool
from tests.rig_foreign import (
    FOREIGN_SETTINGS,
    SETTLES,
    beside,
    counts_of,
    descriptors,
    die,
    fail_each,
    fall,
    hold,
    keeper_of,
    metas,
    put,
    settle,
)
from tests.schedules import schedules
from workers.board import Q, W
from workers.ddmq.aside import set_aside
from workers.ddmq.broker import Broker
from workers.ddmq.names import TEMPORARY
from workers.errors import ClaimLost, InputGone, NotSupported, QueueMissing, QueueRefused, QueueUnavailable
from workers.message import Claim, Message
from workers.queues.ddmq import open_ddmq
from workers.queues.ddmq_hand import HALF, HAND_SIZE, claim_line, hand_in
from workers.queues.open import open_queue

TIMEOUT_S = 600  # message_timeout of a new queue
STATE_AFTER = {"done": {}, "retry": {"deferred": 1}, "reject": {"errors": 1}, "release": {"waiting": 1}}

Make = Callable[..., DdmqPool]


@pytest.fixture(name="make")
def _make(tmp_path: Path) -> Make:
    """Makes pools on one queue, all under one clock."""
    world, pids = World(tmp_path), iter(range(1001, 2000))

    def make(**options) -> DdmqPool:
        options = {"pid": next(pids), **options}
        return DdmqPool(tmp_path / "root" / "queue", world, **options)

    return make


@pytest.fixture(name="pool")
def _pool(make: Make) -> DdmqPool:
    return make()


@pytest.fixture(name="apart")
def _apart(tmp_path: Path) -> Make:
    """Makes a pool on a queue of its own at each call; with *beside*, one more on that one's."""
    world, pids = World(tmp_path), iter(range(1001, 5000))

    def make(beside: DdmqPool | None = None, **options) -> DdmqPool:
        pid = next(pids)
        place = tmp_path / f"r{pid}" / "queue" if beside is None else beside.place
        return DdmqPool(place, world, pid=pid, **options)

    return make


@pytest.fixture(name="fresh", params=[None, "nfs"])
def _fresh(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    """Makes a pool on a queue of its own at each call, local and as on a network filesystem."""
    world, made = World(tmp_path), []

    def make(**options) -> DdmqPool:
        made.append(DdmqPool(tmp_path / f"r{len(made)}" / "queue", world, pid=1001, network=request.param, **options))
        return made[-1]

    yield make
    for pool in made:
        pool.queue.close()


def lay(pool: DdmqPool, content: object, name: str = "999.17000000001.ddmqa") -> str:
    """Write *content* in place as an original does; the name that a pool knows it by."""
    (pool.place / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return name.partition(".")[2]


def message(text: object = "content", **fields: object) -> dict[str, object]:
    return {"message": text, "requeue": False, "requeue_counter": 0, "requeue_limit": None, "timeout": None, **fields}


def counted(pool: DdmqPool) -> dict[str, int]:
    """How many messages there are in each state; what is empty is left out. Anything unknown is a state."""
    work = [TEMPORARY.match(name) is None for name in os.listdir(pool.place / "work")]
    found = {
        "waiting": sum(".ddmq" in name and name != "ddmq.yaml" for name in os.listdir(pool.place)),
        "claimed": sum(work),
        "deferred": len(os.listdir(beside(pool, "deferred"))),
        "errors": len([name for name in os.listdir(beside(pool, "errors")) if not name.endswith(".meta")]),
        "left over": sum(name.endswith(".tmp") for name in os.listdir(pool.place.parent)) + work.count(False),
    }
    return {state: count for state, count in found.items() if count}


def messages(pool: DdmqPool) -> dict[str, int]:
    found = counted(pool)
    found.pop("left over", None)
    return found


def expiry(pool: DdmqPool) -> int:
    (name,) = os.listdir(pool.place / "work")
    return int(name.partition(".")[0])


def now(pool: DdmqPool) -> float:
    return pool.system.wall_ns() / 1e9


def body(claim: Claim) -> bytes:
    return Message(claim, "").body


def finish_all(pool: DdmqPool) -> list[bytes]:
    """What is handled when everything works again, whoever died: the bodies."""
    pool.bury()
    bodies = []
    worker = pool.another_worker(1)
    for _ in range(8):
        pool.rounds(2, every_s=TIMEOUT_S / 3)
        while (claim := worker.claim()) is not None:
            bodies.append(body(claim))
            settle(worker, "done", claim)
    worker.close()
    return bodies


# ---- opening


def test_a_queue_is_made_only_when_asked_and_as_the_original_makes_it(tmp_path):
    world, place = World(tmp_path), tmp_path / "root" / "queue"
    closed = replace(FOREIGN_SETTINGS, create=False)
    with pytest.raises(QueueMissing, match=r"root.*is not there.*orchestrator put"):
        open_ddmq(str(place), closed, system=FakeSystem(world), host="one")
    with pytest.raises(QueueMissing, match="parent"):
        open_ddmq(f"{tmp_path}/none/root/q", FOREIGN_SETTINGS, system=FakeSystem(world), host="one")
    place.parent.mkdir()
    with pytest.raises(QueueMissing, match=r"no ddmq\.yaml"):
        open_ddmq(str(place), closed, system=FakeSystem(world), host="one")
    open_ddmq(str(place), FOREIGN_SETTINGS, system=FakeSystem(world), host="one")
    with pytest.raises(QueueMissing, match="no queue other"):
        open_ddmq(f"{place.parent}/other", closed, system=FakeSystem(world), host="one")
    defaults = "cleaned: 0\nmessage_timeout: 600\npriority: 999\nrequeue: true\nrequeue_prio: 0\n"
    assert (place / "ddmq.yaml").read_text() == defaults
    assert (place.parent / "ddmq.yaml").read_text() == ""
    assert (place.parent / "ddmq.yaml.example").read_text() == defaults
    assert sorted(os.listdir(place)) == ["ddmq.yaml", "work"]


@needs_original
@pytest.mark.filterwarnings("ignore")
def test_the_original_sees_our_queue_and_nothing_of_what_lies_beside_it(pool, monkeypatch):
    name = put(pool, "text", priority=7)
    original = Original(monkeypatch).peer(pool.place.parent)
    assert original.list_queues() == ["queue"]
    found = original.consume("queue", clean=False)
    assert (found.message, found.priority, f"{found.queue_number}.ddmq{found.id}") == ("text", 7, name)
    assert original.ack(found) == [found.filename]
    assert counted(pool) == {}


@needs_original
@pytest.mark.filterwarnings("ignore")
def test_what_the_original_puts_is_handled_and_what_it_holds_is_left_to_it(pool, monkeypatch):
    original = Original(monkeypatch).peer(pool.place.parent)
    first = original.publish("queue", "first", clean=False)
    held = original.consume("queue", clean=False)
    original.publish("queue", {"a": 1}, clean=False)
    claim = pool.claim()
    assert (body(claim), pool.queue.claim()) == (b'{"a": 1}', None)
    settle(pool.queue, "done", claim)
    pool.rounds(3)
    assert (held.id, messages(pool)) == (first.id, {"claimed": 1})


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [({"keep_done_s": 5.0}, "keep_done is not possible"), ({"lease_interval_s": 1.0}, "lease_interv.*message_timeout"),
     ({"lease_timeout_s": 9.0}, "lease_timeout.*message_timeout")],
)  # fmt: skip
def test_what_the_format_cannot_do_is_refused_at_start_by_its_name(make, settings, sentence):
    with pytest.raises(NotSupported, match=sentence):
        make(settings=replace(FOREIGN_SETTINGS, **settings))


@pytest.mark.parametrize(
    ("url", "sentence"),
    [("root/q?umask=077", "no option 'umask'; there is state_dir"), ("root/a b", "letters, digits"),
     ("root/q?state_dir=", "state_dir")],
)  # fmt: skip
def test_a_url_that_cannot_be_is_refused_before_anything_is_made(tmp_path, url, sentence):
    with pytest.raises(QueueRefused, match=sentence):
        open_ddmq(f"{tmp_path}/{url}", FOREIGN_SETTINGS, system=FakeSystem(World(tmp_path)), host="one")
    assert not (tmp_path / "root").exists()


def test_a_queue_of_another_kind_is_refused(tmp_path):
    Broker(str(tmp_path / "root"), create=True)
    open_queue(f"{tmp_path}/root/spool", create=True)
    for create in (False, True):
        with pytest.raises(QueueRefused, match="is no queue"):
            open_queue(f"ddmq:{tmp_path}/root/spool", create=create)


def test_settings_that_are_wrong_are_refused_with_file_and_value(make):
    pool = make()
    settings = pool.place / "ddmq.yaml"
    settings.write_text("priority: abc\n")
    with pytest.raises(QueueRefused, match=rf"{settings}.*'abc'"):
        make()


def test_settings_that_become_wrong_meanwhile_stop_nobody_and_are_told_once(pool, caplog):
    put(pool)
    (pool.place / "ddmq.yaml").write_text("message_timeout: soon\n")
    put(pool)
    for _ in range(2):
        settle(pool.queue, "done", pool.claim())
    assert caplog.text.count("'soon'") == 1


def test_what_is_kept_stands_beside_the_queue_and_nothing_of_it_inside(pool):
    put(pool)
    assert sorted(os.listdir(beside(pool))) == ["counts", "deferred", "errors", "held", "tmp"]
    assert len(os.listdir(pool.place)) == 3


def test_state_dir_in_a_url_is_where_the_operators_verbs_look_too(make, tmp_path):
    (tmp_path / "state").mkdir()
    pool = make(options=f"?state_dir={tmp_path}/state")
    name = put(pool)
    settle(pool.queue, "reject", pool.claim())
    assert not beside(pool).exists()
    operator = open_queue(f"ddmq:{pool.place}?state_dir={tmp_path}/state")
    assert [line.name for line in operator.list("errors")] == [name]


# ---- put


def test_a_message_is_json_as_the_original_writes_it(pool):
    name = put(pool, "a \N{SNOWMAN}", priority=3)
    (file,) = (file for file in os.listdir(pool.place) if ".ddmq" in file and file != "ddmq.yaml")
    number, identity = name.split(".ddmq")
    assert file == f"3.{name}"
    assert (pool.place / file).read_text() == (
        '{"message": "a \\u2603", "queue": "queue", "timeout": null, "id": "' + identity + '", "priority": 3, '
        f'"queue_number": "{number}", "filename": "{file}", "requeue": false, "requeue_counter": 0, '
        '"requeue_limit": null}'
    )


def test_any_bytes_come_back_as_they_were(pool):
    for content in (bytes(range(256)), b"\xed\xa0\x80", "\N{SNOWMAN}".encode(), b""):
        put(pool, content)
        claim = pool.claim()
        assert body(claim) == content
        assert (claim.size, Path(f"/proc/self/fd/{claim.fd}").read_bytes()) == (len(content), content)
        settle(pool.queue, "done", claim)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("half a pair \ud83d", b"half a pair \xed\xa0\xbd"), ([1, "a"], b'[1, "a"]'), (0, b"0"), (None, b"null"),
     ({"b": None}, b'{"b": null}')],
)  # fmt: skip
def test_what_is_no_text_is_handled_as_json(pool, text, expected):
    lay(pool, message(text))
    assert body(pool.claim()) == expected


def test_the_lowest_priority_is_served_first_and_then_the_oldest(pool):
    for number, priority in enumerate((None, 100, 0, 9, 10, 0, 1000)):
        put(pool, b"%d" % number, priority=priority)
    found = []
    while (claim := pool.queue.claim()) is not None:
        found.append(body(claim))
        settle(pool.queue, "done", claim)
    assert found == [b"2", b"5", b"3", b"4", b"1", b"0", b"6"]


@pytest.mark.parametrize("priority", [-1, 10**18])
def test_a_priority_that_cannot_be_is_refused(pool, priority):
    with pytest.raises(NotSupported, match=f"priority {priority} is not possible"):
        put(pool, priority=priority)


@pytest.mark.parametrize(("written", "handed_on"), [(10**9, 10**9), (10**18 - 1, 10**18 - 1), (10**40, 10**18 - 1)])
def test_any_priority_that_the_format_has_can_be_handed_on_to_another_queue(pool, apart, written, handed_on):
    following = apart()
    lay(pool, message(), f"{written}.17000000001.ddmqa")
    pool.queue.forward(pool.claim(), following.queue)
    assert messages(pool) == {}
    assert following.claim().waiting.startswith(f"{handed_on}.")


def test_the_library_and_a_pool_take_the_same_priorities(pool):
    broker = Broker(str(pool.place.parent))
    for priority in (0, 10**18 - 1):
        put(pool, priority=priority)
        broker.publish("queue", "x", priority=priority)
    with pytest.raises(ValueError, match="priority"):
        broker.publish("queue", "x", priority=10**18)
    assert messages(pool) == {"waiting": 4}


def test_the_priority_of_the_settings_counts_where_none_is_given(pool):
    (pool.place / "ddmq.yaml").write_text("priority: 5\n")
    name = put(pool)
    assert (pool.place / f"5.{name}").exists()


def test_a_durable_put_syncs_the_file_and_its_name(pool):
    put(pool, durable=False)
    assert "fsync" not in pool.system.calls
    pool.system.calls.clear()
    put(pool)
    assert pool.system.calls.count("fsync") == 2
    assert pool.system.calls.index("fsync") < pool.system.calls.index("rename_noreplace")


def test_a_put_that_fails_anywhere_leaves_nothing_or_a_whole_message(fresh):
    for pool, what, raised in fail_each(fresh, put, codes=(errno.ENOSPC, errno.EIO)):
        assert raised is None or isinstance(raised, QueueUnavailable), what
        assert messages(pool) in ({}, {"waiting": 1}), what
        assert finish_all(pool) in ([], [b"content"]), what


# ---- claim


@pytest.mark.parametrize(
    ("timeout", "lasts_s"),
    [(None, 600), (0, 600), (30, 30), (30.2, 31), (1, 10), (-5, 600), ("soon", 600), (True, 600), (1e300, 315360000)],
)
def test_a_claim_lasts_as_long_as_the_message_or_the_settings_say(pool, timeout, lasts_s):
    lay(pool, message(timeout=timeout))
    before = now(pool)
    pool.claim()
    assert lasts_s - 1 <= expiry(pool) - before
    assert expiry(pool) - now(pool) <= lasts_s


def test_Q17_a_claim_expires_by_the_clock_of_the_filesystem(make):
    """Not by that of a host, which may be an hour behind."""
    pool = make(network="nfs")
    pool.system.wall_ns = lambda: FakeSystem.wall_ns(pool.system) - 3600 * 10**9
    put(pool)
    pool.claim()
    assert abs(expiry(pool) - TIMEOUT_S - FakeSystem.wall_ns(pool.system) / 1e9) < 60


def test_a_message_has_one_name_in_every_state_and_under_every_priority(pool):
    name = put(pool, priority=7)
    claim = pool.claim()
    assert claim.name == name
    pool.world.advance(TIMEOUT_S / 2 + 1)
    pool.keeper.keep()
    assert [line.name for line in pool.queue.list("claimed")] == [name]
    settle(pool.queue, "retry", claim)
    assert [line.name for line in pool.queue.list("deferred")] == [name]
    pool.rounds(2)
    assert (pool.place / f"7.{name}").exists()


def test_the_body_can_be_read_by_its_path_whatever_the_file_is_called_by_now(make):
    pool = make(pid=os.getpid())
    put(pool)
    claim = pool.claim()
    pool.rounds(2, every_s=TIMEOUT_S / 2)
    assert Path(claim.path).read_bytes() == b"content"


def test_Q13_a_half_written_message_is_left_until_it_is_whole(pool):
    lay(pool, b'{"message": "con')
    assert pool.queue.claim() is None
    assert messages(pool) == {"waiting": 1}
    assert pool.board.worker(0).words[W.CONFLICTS] == 0
    lay(pool, message())
    pool.world.advance(0.1)
    assert body(pool.claim()) == b"content"


def test_Q13_on_a_network_filesystem_what_is_half_written_may_come_when_the_server_is_back(make):
    pool = make(network="nfs")
    lay(pool, b"")
    pool.rounds(10, every_s=20)
    assert pool.queue.claim() is None
    lay(pool, message("whole"))
    pool.rounds(1)
    assert body(pool.claim()) == b"whole"


def test_a_message_that_becomes_whole_a_moment_later_is_claimed_at_once(pool):
    lay(pool, b"")
    pool.system.sleep = lambda seconds: lay(pool, message()) and None
    assert body(pool.claim()) == b"content"


def test_a_half_written_message_holds_up_no_other_and_is_not_read_again_and_again(pool):
    lay(pool, b"", "0.17000000001.ddmqa")
    put(pool)
    settle(pool.queue, "done", pool.claim())
    pool.system.calls.clear()
    for _ in range(10):
        assert pool.queue.claim() is None
    assert pool.system.calls.count("read") <= 8


@pytest.mark.parametrize("content", [b"", b'{"message": "con', b"[1]", b"\xff\xfe\xff", b"[" * 100_000])
def test_Q13_what_is_no_message_for_long_goes_to_errors_with_the_reason(pool, content):
    name = lay(pool, content)
    assert pool.queue.claim() is None
    pool.world.advance(6)
    claim = pool.claim()
    assert claim.trouble is not None
    pool.queue.reject(claim, claim.trouble)
    (meta,) = metas(pool)
    assert meta["name"] == name
    assert "is empty" in str(meta["reason"]) or "JSON" in str(meta["reason"])
    assert messages(pool) == {"errors": 1}


ODD: dict[str, Callable[[Path], object]] = {
    "a symbolic link": lambda path: path.symlink_to("/etc/passwd"),
    "a dangling link": lambda path: path.symlink_to("/nowhere"),
    "a fifo": os.mkfifo,
}


@pytest.mark.parametrize("how", sorted(ODD))
def test_what_is_no_regular_file_is_claimed_with_trouble_and_never_read(pool, how):
    ODD[how](pool.place / "0.17000000001.ddmqa")
    claim = pool.claim()
    assert "no regular file" in (claim.trouble or "")
    assert claim.fd == -1
    pool.queue.reject(claim, claim.trouble)
    assert messages(pool) == {"errors": 1}
    assert pool.queue.requeue(claim.name) == 1
    assert messages(pool) == {"waiting": 1}


def test_Q14_a_foreign_name_is_never_touched_and_is_counted_as_ignored(pool):
    long = f"{'1' * 200}.1.ddmqa"
    for name in ("notes.ddmq", "a.b.ddmqc", "1.2.3.4.5.ddmqx", long):
        (pool.place / name).write_text("mine")
        (pool.place / "work" / name).write_text("mine")
    (pool.place / "1.2.ddmqdirectory").mkdir()
    (pool.place / "README").write_text("mine")
    pool.rounds(3, every_s=TIMEOUT_S)
    assert pool.queue.claim() is None
    assert pool.queue.depth().ignored == 9
    assert (pool.queue.depth().waiting, pool.queue.depth().claimed) == (0, 0)
    assert len(os.listdir(pool.place)) == 8
    assert len(os.listdir(pool.place / "work")) == 4


def test_a_lost_race_is_counted_and_the_next_name_is_tried(pool):
    first, second = put(pool), put(pool)

    def take(call, arguments):
        if call == "open" and first in str(arguments[0]):
            pool.system.before = None
            assert pool.queue.files.take(f"999.{first}", int(now(pool)) + 60)

    pool.system.before = take
    assert pool.claim().name == second
    assert pool.board.worker(0).words[W.CONFLICTS] == 1


def test_who_lost_a_race_in_the_same_second_leaves_no_record_of_it(pool):
    """The winner is an original, which keeps no record."""
    put(pool)

    def first(call, arguments):
        if call == "rename" and "queue/work" in arguments[1]:
            pool.system.before = None
            os.rename(*arguments)

    pool.system.before = first
    assert pool.queue.claim() is None
    assert pool.board.worker(0).words[W.CONFLICTS] == 1
    assert pool.keeping.release_owner(fall(pool), "died") == []
    assert messages(pool) == {"claimed": 1}


@pytest.mark.parametrize("verb", ["release", "retry"])
def test_a_worker_that_dies_after_a_settle_takes_no_claim_of_an_original_with_it(pool, verb):
    """The original claims what waits again, to the same second."""
    name = put(pool)
    claim = pool.claim()
    (work_name,) = os.listdir(pool.place / "work")
    settle(pool.queue, verb, claim)
    waiting = pool.place / f"999.{name}" if verb == "release" else next(beside(pool, "deferred").iterdir())
    waiting.rename(pool.place / "work" / work_name)
    assert pool.keeping.release_owner(fall(pool), "died") == []
    assert messages(pool) == {"claimed": 1}


def test_a_worker_killed_before_its_claim_takes_no_claim_of_another_with_it(make):
    """Both have recorded the same name: the same message, claimed to the same second."""
    pool, other = make(), make(host="two")
    name = put(pool)

    def kill(call, arguments):
        if call == "rename" and "queue/work" in arguments[1]:
            raise Killed

    pool.system.before = kill
    with pytest.raises(Killed):
        pool.queue.claim()
    owner = pool.queue._owner
    hand = hand_in(pool.queue.beside.record_of(owner)[0])
    theirs = other.claim()
    os.rename(pool.place / "work" / os.listdir(pool.place / "work")[0], pool.place / "work" / hand.work_names()[0])
    line = claim_line(hand.waiting, hand.expiry, hand.lasts_s)
    os.pwrite(other.queue._hand, line, 0)
    theirs.expiry = hand.expiry
    pool.system.before = None
    assert pool.keeping.release_owner(owner, "died") == []
    assert messages(pool) == {"claimed": 1}
    settle(other.queue, "done", theirs)
    assert (messages(pool), counts_of(pool, name)) == ({}, (0, 0))


def test_a_record_says_which_digits_a_claim_has_on_a_network_filesystem(make):
    pool = make()
    put(pool)
    claim = pool.claim()
    hand = hand_in(pool.queue.beside.record_of(pool.queue._owner)[0])
    assert hand.work_names() == (claim.work_name,) == tuple(os.listdir(pool.place / "work"))
    assert bool(claim.fraction) == bool(pool.network)
    touched = hand.touched(hand.now + 10)
    assert touched.work_names() == (claim.work_name, f"0{hand.now + 10}{claim.work_name[len(str(hand.now)) :]}")


def before_call(system: FakeSystem, nth: int, act: Callable[[], object]) -> list[str]:
    """Have *act* happen before the *nth* call of *system*; the calls, as they are made."""
    made: list[str] = []

    def before(call: str, _: object) -> None:
        made.append(call)
        if len(made) == nth:
            system.before = None
            act()

    system.before = before
    return made


class Killed(BaseException):
    """The process is no more."""


def kill_each(
    fresh: Make, act: Callable[[DdmqPool], object], prepare: Callable[[DdmqPool], object], of=lambda pool: pool.system
) -> Iterator[tuple[DdmqPool, str]]:
    """Kill the process of *act* before each of its calls, and before the first one that it does not make."""
    nth = 0
    while True:
        nth += 1
        pool = fresh()
        prepare(pool)
        system, made = of(pool), []

        def count(call, arguments, made=made, nth=nth):
            made.append(call)
            if len(made) >= nth:
                raise Killed  # and so does everything that it would tidy up with

        system.before = count
        with suppress(Killed):
            act(pool)
        is_killed = len(made) >= nth
        system.before = None
        yield pool, f"killed before {made[-1] if is_killed else 'nothing'} (call {nth})"
        if not is_killed:
            return


def test_a_worker_killed_at_any_call_of_a_claim_loses_nothing(fresh):
    for pool, what in kill_each(fresh, lambda pool: pool.queue.claim(), prepare=put):
        owner = pool.bury()
        pool.keeping.release_owner(owner, "died")
        assert messages(pool) == {"waiting": 1}, what  # at once: its record says what it had
        assert finish_all(pool) == [b"content"], what


@pytest.mark.parametrize("verb", SETTLES)
def test_a_worker_killed_at_any_call_of_a_settle_loses_nothing_and_settles_once(fresh, verb):
    def settle_once(pool: DdmqPool) -> None:
        getattr(pool.queue, verb)(CLAIMS[id(pool)], *(("no",) if verb == "reject" else ()))

    for pool, what in kill_each(fresh, settle_once, claim_for_later):
        pool.keeping.release_owner(pool.bury(), "died")
        found = messages(pool)
        assert found == STATE_AFTER[verb] or found == {"waiting": 1}, what
        if "errors" in found:
            pool.queue.requeue(CLAIMS[id(pool)].name)
        assert finish_all(pool) == ([b"content"] if found else []), what
        assert messages(pool) == {}, what


def test_a_keeper_killed_at_any_call_of_a_round_loses_nothing(fresh):
    for pool, what in kill_each(fresh, lambda pool: pool.keeper.keep(), all_there_is_to_keep, keeper_of):
        assert sorted(finish_all(pool)) == [b"expired", b"retry", b"touched", b"waiting"], what
        assert messages(pool) == {}, what


def test_a_put_killed_at_any_call_leaves_nothing_or_a_whole_message(fresh):
    for pool, what in kill_each(fresh, put, lambda _: None):
        assert finish_all(pool) in ([], [b"content"]), what
        assert counted(pool) == {}, what  # what was half written is swept


def test_a_keeper_killed_at_any_call_of_a_release_loses_nothing(fresh):
    for pool, what in kill_each(fresh, release_the_dead, hold_for_later, keeper_of):
        assert messages(pool) in ({"claimed": 1}, {"waiting": 1}), what
        assert finish_all(pool) == [b"content"], what
        assert messages(pool) == {}, what


CLAIMS: dict[int, Claim] = {}


def claim_for_later(pool: DdmqPool) -> None:
    put(pool)
    CLAIMS[id(pool)] = pool.claim()


def all_there_is_to_keep(pool: DdmqPool) -> None:
    """One message due, one of a peer that has expired, one to be touched, one that waits."""
    lay(pool, message("expired"))
    pool.queue.files.take("999.17000000001.ddmqa", int(now(pool)) + 1)
    put(pool, b"retry")
    settle(pool.queue, "retry", pool.claim())
    put(pool, b"touched")
    CLAIMS[id(pool)] = pool.claim()
    put(pool, b"waiting")
    pool.world.advance(TIMEOUT_S / 2 + 1)


def test_a_claim_that_failed_anywhere_is_made_by_the_next_try(fresh):
    for pool, what, raised in fail_each(fresh, lambda pool: pool.queue.claim(), prepare=put):
        assert raised is None or isinstance(raised, QueueUnavailable), what
        if raised is None:
            continue
        is_lost = what.endswith("lost")
        before = len([path for path in descriptors() if "memfd" in path])
        claim = pool.queue.claim()
        assert claim is not None or is_lost, what
        assert len([path for path in descriptors() if "memfd" in path]) == before + (claim is not None), what
        if claim is not None:
            settle(pool.queue, "done", claim)
        assert finish_all(pool) == [b"content"] * (claim is None), what


@pytest.mark.parametrize("verb", SETTLES)
def test_a_settle_tried_again_after_any_failure_settles_once(fresh, verb):
    def act(pool: DdmqPool) -> object:
        return settle(pool.queue, verb, CLAIMS[id(pool)])

    for pool, what, raised in fail_each(fresh, act, claim_for_later):
        is_lost = what.endswith("lost")
        assert raised is None or (is_lost and isinstance(raised, ClaimLost | InputGone)), (what, raised)
        assert not [path for path in descriptors() if f"{pool.place}/" in path], what
        assert messages(pool) == STATE_AFTER[verb], what
        if verb == "reject":
            pool.queue.requeue(CLAIMS[id(pool)].name)
        assert finish_all(pool) == ([] if verb == "done" else [b"content"]), what
        assert messages(pool) == {}, what


def test_a_settle_that_fails_for_ever_and_a_worker_that_dies_of_it_lose_nothing(fresh):
    for verb in SETTLES:
        pool = fresh()
        put(pool)
        claim = pool.claim()
        pool.system.fail_all("rename rename_noreplace unlink", errno.EIO)
        with pytest.raises(QueueUnavailable):
            getattr(pool.queue, verb)(claim, *(("no",) if verb == "reject" else ()))
        pool.system.before = None
        pool.queue.settled(claim)
        assert finish_all(pool) == [b"content"]


def test_a_round_tried_again_after_any_failure_loses_nothing(fresh):
    for pool, what, raised in fail_each(
        fresh, lambda pool: pool.keeper.keep(), all_there_is_to_keep, keeper_of, codes=(errno.EIO, errno.ENOSPC)
    ):
        assert raised is None or isinstance(raised, QueueUnavailable), (what, raised)
        assert sorted(finish_all(pool)) == [b"expired", b"retry", b"touched", b"waiting"], what
        assert messages(pool) == {}, what


OWNERS: dict[int, str] = {}


def hold_for_later(pool: DdmqPool) -> None:
    OWNERS[id(pool)] = hold(pool)[1]


def release_the_dead(pool: DdmqPool) -> object:
    return pool.keeping.release_owner(OWNERS[id(pool)], "died")


def test_a_release_that_is_tried_again_after_any_error_counts_one_crash(fresh):
    for pool, what, raised in fail_each(fresh, release_the_dead, prepare=hold_for_later, of=keeper_of):
        assert raised is None or isinstance(raised, QueueUnavailable), what
        release_the_dead(pool)
        assert os.listdir(beside(pool, "held")) == [], what
        if messages(pool) == {"claimed": 1} and pool.network:
            continue  # a record whose rename got no answer is taken for gone: by its time then
        claim = pool.claim()
        assert claim.attempt == 1, what
        # What there is no room for is not counted: the message comes back all the same.
        assert claim.crashes == 1 or (claim.crashes == 0 and "ENOSPC" in what), what


# ---- settle


def test_who_let_his_claim_expire_is_told_so_and_settles_nothing(apart):
    for verb in SETTLES:
        pool = apart()
        other = apart(pool, host="two")
        put(pool)
        claim = pool.claim()
        pool.world.advance(TIMEOUT_S + 2)
        assert other.keeper.keep().too_old == 1
        again = other.claim()
        with pytest.raises(ClaimLost, match="had expired"):
            settle(pool.queue, verb, claim)
        assert messages(pool) == {"claimed": 1}
        settle(other.queue, "done", again)


def test_an_expired_claim_that_only_its_user_may_move_fails_no_round(pool, monkeypatch, caplog):
    """In a sticky work/ anybody can leave such a file."""
    stuck = f"{pool.queue.files.work}/1.999.17000000002.ddmqb"
    lay(pool, message("expired"))
    pool.queue.files.take("999.17000000001.ddmqa", int(now(pool)) + 1)
    Path(stuck).write_bytes(b"stuck")

    def hook(name, arguments):
        if name == "rename" and arguments[0] == stuck:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM), stuck)

    pool.keeper_system.before = hook
    monkeypatch.setattr(pool.keeper_system, "geteuid", lambda: os.geteuid() + 1, raising=False)
    pool.world.advance(TIMEOUT_S + 2)
    assert pool.keeper.keep().too_old == 1
    assert caplog.text.count("cannot be moved and stays") == 1


def test_an_input_that_was_removed_before_its_time_was_not_given_to_another(pool):
    for verb in SETTLES:
        put(pool)
        claim = pool.claim()
        for file in (pool.place / "work").iterdir():
            file.unlink()
        with pytest.raises(InputGone):
            settle(pool.queue, verb, claim)
        assert messages(pool) == {}


def test_a_forward_whose_end_failed_is_tried_again_with_its_body(pool, apart):
    following = apart()
    put(pool, b"body")
    claim = pool.claim()

    def fail(call, arguments):
        if call == "unlink" and "queue/work" in arguments[0]:
            raise OSError(errno.EIO, os.strerror(errno.EIO), arguments[0])

    pool.system.before = fail
    with pytest.raises(QueueUnavailable):
        pool.queue.forward(claim, following.queue)
    pool.system.before = None
    pool.queue.forward(claim, following.queue)
    assert (messages(pool), claim.fd) == ({}, -1)
    assert set(finish_all(following)) == {b"body"}  # at least once


def test_a_retry_comes_back_with_its_priority_and_its_counts(pool):
    name = put(pool, priority=3)
    before = (pool.place / f"3.{name}").read_bytes()
    settle(pool.queue, "retry", pool.claim())
    assert messages(pool) == {"deferred": 1}
    pool.rounds(3)
    assert (pool.place / f"3.{name}").read_bytes() == before
    assert pool.claim().attempt == 2


@pytest.mark.parametrize(("limit", "counter", "attempts"), [(1, 0, 2), (3, 2, 2), (100, 0, 5), (0, 0, 5), (None, 0, 5),
                                                            ("two", 0, 5), (1, 9, 1)])  # fmt: skip
def test_a_messages_own_limit_makes_the_attempts_fewer(pool, limit, counter, attempts):
    lay(pool, message(requeue_limit=limit, requeue_counter=counter))
    for attempt in range(1, attempts + 1):
        claim = pool.claim()
        assert claim.attempt == attempt
        assert settle(pool.queue, "retry", claim) == (attempt < attempts)
        pool.rounds(2)
    assert messages(pool) == {"errors": 1}


def test_a_time_limit_counts_to_a_messages_own_limit_too(pool):
    lay(pool, message(requeue_limit=1))
    for state in ("deferred", "errors"):
        owner = die(pool)
        pool.keeping.release_owner(owner, "timeout")
        assert messages(pool) == {state: 1}
        pool.rounds(2)


@pytest.mark.parametrize("requeue", [False, True, 0, 5])
def test_what_asks_not_to_be_requeued_is_lost_by_no_pool(make, requeue):
    pool = make(settings=replace(FOREIGN_SETTINGS, max_attempts=2))
    name = lay(pool, message(requeue=requeue))
    settle(pool.queue, "retry", pool.claim())
    pool.rounds(2)
    assert (pool.place / f"999.{name}").exists()
    settle(pool.queue, "retry", pool.claim())
    assert messages(pool) == {"errors": 1}


def test_a_name_that_is_taken_when_a_message_comes_back_is_never_replaced(pool):
    name = put(pool)
    settle(pool.queue, "retry", pool.claim())
    lay(pool, message("another"), f"999.{name}")
    pool.rounds(2)
    bodies = []
    while (claim := pool.queue.claim()) is not None:
        bodies.append(body(claim))
        settle(pool.queue, "done", claim)
    assert sorted(bodies) == [b"another", b"content"]


def test_who_leaves_with_a_message_that_it_could_not_settle_gives_it_back(pool):
    put(pool)
    pool.queue.settled(pool.claim())
    pool.queue.detach()
    pool.queue.detach()
    assert messages(pool) == {"waiting": 1}
    assert os.listdir(beside(pool, "held")) == []
    assert pool.claim().crashes == 0


# ---- touch


def test_a_claim_is_touched_when_half_of_its_time_has_passed_and_never_expires(make):
    pool, other = make(), make(host="two")
    put(pool)
    claim = pool.claim()
    first = expiry(pool)
    pool.rounds(1, every_s=TIMEOUT_S / 2 - 5)
    assert expiry(pool) == first
    for _ in range(20):
        pool.rounds(1, every_s=TIMEOUT_S / 5)
        assert other.keeper.keep().too_old == 0
        assert expiry(pool) - now(pool) > TIMEOUT_S / 4
    settle(pool.queue, "done", claim)
    assert messages(pool) == {}


@pytest.mark.parametrize("verb", SETTLES)
def test_a_settle_finds_its_claim_at_every_moment_of_a_touch(pool, verb):
    """Every order of the calls of the two on the record and on what is in work/; it was touched once before."""

    def setup() -> list[Callable[[Callable[[], None]], None]]:
        put(pool, durable=False)
        claim = pool.claim()
        pool.system.sleep(TIMEOUT_S / 2 + 1)
        pool.keeper.touch()
        assert expiry(pool) > claim.expiry
        pool.system.sleep(TIMEOUT_S / 2 + 1)
        settling = functools.partial(settle, pool.queue, verb, claim)
        return [stepping(pool.keeper_system, pool.keeper.touch), stepping(pool.system, settling)]

    orders = 0
    for run in schedules(setup):
        orders += 1
        assert messages(pool) == STATE_AFTER[verb], run.trail
        for file in (
            *pool.place.glob("*.ddmq?*"),
            *beside(pool, "deferred").iterdir(),
            *beside(pool, "errors").iterdir(),
        ):
            file.unlink()
        pool.keeper.keep()
    assert orders > 20


MOVES = ("rename", "rename_noreplace", "unlink")


def stepping(system: FakeSystem, act: Callable[[], object]) -> Callable[[Callable[[], None]], None]:
    """An actor that does *act*, whose calls on records and on what is in work/ are its steps."""

    def actor(step: Callable[[], None]) -> None:
        def before(call: str, arguments: tuple[object, ...]) -> None:
            path = str(arguments[0])
            if call == "pwrite" or (call == "open" and "/held/" in path) or (call in MOVES and "queue/work" in path):
                step()

        system.before = before
        act()
        system.before = None

    return actor


def given_away(pool: DdmqPool, lasts_s: int = TIMEOUT_S) -> str:
    """A cleaner gives back what has expired, and a consumer of the library takes it at once: its claim."""
    (work_name,) = os.listdir(pool.place / "work")
    waiting = work_name.partition(".")[2]
    assert pool.queue.files.put_back(work_name, waiting)
    return pool.queue.files.take(waiting, int(now(pool)) + lasts_s)


@pytest.mark.parametrize("verb", [*SETTLES, "dies", "leaves", "is touched again"])
def test_who_stood_still_past_the_end_of_its_claim_touches_nothing_that_is_anothers(pool, verb):
    """As after a suspend: everybody wakes in one second, and its keeper is late."""
    put(pool)
    claim = pool.claim()
    pool.world.advance(TIMEOUT_S + 1)
    theirs = given_away(pool)
    pool.keeper.keep()
    if verb == "dies":
        assert pool.keeping.release_owner(fall(pool), "died") == []
    elif verb == "leaves":
        pool.queue.detach()
    elif verb == "is touched again":
        pool.rounds(3, every_s=TIMEOUT_S / 6)
    else:
        with pytest.raises(ClaimLost, match="had expired"):
            settle(pool.queue, verb, claim)
    assert os.listdir(pool.place / "work") == [theirs]
    assert pool.queue.files.remove(theirs)


@pytest.mark.parametrize("late_s", [-1, 0, 1, 2, TIMEOUT_S / 2, TIMEOUT_S * 2])
@pytest.mark.parametrize("verb", [*SETTLES, "dies"])
def test_a_touch_that_finds_nothing_leaves_no_trace_of_itself(pool, verb, late_s):
    """
    The keeper has looked and written what it is to be; before it renames, the claim expires and another has it, who
    chooses the very second that the touch was for.
    """
    put(pool)
    claim = pool.claim()
    pool.world.advance(TIMEOUT_S + late_s)
    theirs = []

    def late(call, arguments):
        later = int(os.path.basename(arguments[1]).partition(".")[0]) if call == "rename" else 0
        if later > now(pool) + TIMEOUT_S / 2 and "queue/work/" in arguments[0]:
            pool.keeper_system.before = None
            (work_name,) = os.listdir(pool.place / "work")
            pool.world.advance(3)
            assert pool.queue.files.put_back(work_name, claim.waiting)
            theirs.append(pool.queue.files.take(claim.waiting, later))

    pool.keeper_system.before = late
    pool.keeper.keep()
    assert theirs
    if verb == "dies":
        assert pool.keeping.release_owner(fall(pool), "died") == []
    else:
        with pytest.raises(ClaimLost, match="had expired"):
            settle(pool.queue, verb, claim)
    pool.keeper.keep()
    assert os.listdir(pool.place / "work") == theirs


@pytest.mark.parametrize("verb", SETTLES)
@pytest.mark.parametrize("late_s", [-1, 1, TIMEOUT_S * 2])
def test_no_touch_is_for_a_second_to_which_the_keeper_of_a_later_claim_touches(make, verb, late_s):
    """
    The keeper stands still when it has looked; meanwhile the claim expires, another pool has it, and touches it. Then
    it writes its record, and the worker settles.
    """
    pool, other = make(), make()
    put(pool)
    claim = pool.claim()
    pool.world.advance(TIMEOUT_S + late_s)
    theirs = []

    def looked(call, arguments):
        if call == "listdir" and arguments[0] == str(beside(pool, "held")):
            pool.keeper_system.before = recorded
            pool.world.advance(3 if late_s < 0 else 0)
            (work_name,) = os.listdir(pool.place / "work")
            assert pool.queue.files.put_back(work_name, claim.waiting)
            other.keeper.keep()
            theirs.append(other.claim())
            while expiry(pool) == theirs[0].expiry:
                other.rounds(1, every_s=TIMEOUT_S / 10)

    def recorded(call, arguments):
        if call == "rename" and "queue/work/" in arguments[0]:
            pool.keeper_system.before = None
            with pytest.raises((ClaimLost, InputGone)):
                settle(pool.queue, verb, claim)
            theirs.append(claim)

    pool.keeper_system.before = looked
    pool.keeper.keep()
    assert len(theirs) == 2
    settle(other.queue, "done", theirs[0])
    assert messages(pool) == {}


@pytest.mark.parametrize("late_s", [1, 2, 3, TIMEOUT_S, 3 * 86400])
def test_a_claim_that_has_expired_and_that_nobody_took_is_kept_by_its_late_keeper(apart, late_s):
    """Killed at any call of that too."""

    def prepare(pool: DdmqPool) -> None:
        claim_for_later(pool)
        pool.world.advance(TIMEOUT_S + late_s)

    for pool, what in kill_each(apart, lambda pool: pool.keeper.touch(), prepare, keeper_of):
        if "nothing" in what:
            assert expiry(pool) - now(pool) > TIMEOUT_S / 2
        pool.keeper = pool.keeping.keeper(pool._consumer(0))
        pool.rounds(2)
        assert expiry(pool) - now(pool) > TIMEOUT_S / 2, what
        settle(pool.queue, "done", CLAIMS[id(pool)])
        assert messages(pool) == {}, what


def test_a_record_that_speaks_of_a_claim_of_another_lets_its_keeper_touch_nothing(make):
    """Its worker lost the race in the same second, and stands still since, before it could clear its record."""
    pool, other = make(), make(host="two")
    put(pool)
    settle(pool.queue, "done", pool.claim())
    put(pool)
    theirs = other.claim()
    record = beside(pool, "held", pool.queue._owner)
    hand = claim_line(theirs.waiting, theirs.expiry, TIMEOUT_S)
    os.pwrite(pool.queue._hand, hand, 0)
    pool.world.advance(TIMEOUT_S / 2 + 1)
    pool.keeper.keep()
    assert record.read_bytes().startswith(hand)
    assert expiry(pool) == theirs.expiry
    settle(other.queue, "done", theirs)
    assert messages(pool) == {}


@needs_original
@pytest.mark.filterwarnings("ignore")
def test_a_claim_that_was_touched_is_left_alone_by_the_original_until_it_expires(pool, monkeypatch):
    """The expiry is a number to it, with a 0 in front or without."""
    put(pool)
    claim = pool.claim()
    pool.world.advance(TIMEOUT_S / 2 + 1)
    pool.keeper.keep()
    (work_name,) = os.listdir(pool.place / "work")
    assert work_name.startswith("0")
    original = Original(monkeypatch).peer(pool.place.parent)
    original.get_settings("queue")
    original.clean("queue", force=True)
    assert messages(pool) == {"claimed": 1}
    (pool.place / "work" / work_name).rename(pool.place / "work" / f"01{work_name[11:]}")
    original.clean("queue", force=True)
    assert messages(pool) == {}
    with pytest.raises(InputGone):
        settle(pool.queue, "done", claim)


def test_a_touch_that_fails_anywhere_is_made_by_a_later_round(fresh):
    def prepare(pool: DdmqPool) -> None:
        claim_for_later(pool)
        pool.world.advance(TIMEOUT_S / 2 + 1)

    for pool, what, raised in fail_each(fresh, lambda pool: pool.keeper.touch(), prepare, keeper_of):
        assert raised is None or isinstance(raised, QueueUnavailable), what
        pool.rounds(2)
        assert expiry(pool) - now(pool) > TIMEOUT_S / 2, what
        settle(pool.queue, "done", CLAIMS[id(pool)])
        assert messages(pool) == {}, what


def test_a_touch_that_was_cut_short_is_ended_by_the_next_keeper(apart):
    for pool, what in kill_each(apart, lambda pool: pool.keeper.touch(), touch_is_due, keeper_of):
        pool.keeper = pool.keeping.keeper(pool._consumer(0))  # the one that follows knows nothing
        pool.rounds(2)
        assert expiry(pool) - now(pool) > TIMEOUT_S / 2, what
        settle(pool.queue, "done", CLAIMS[id(pool)])
        assert messages(pool) == {}, what


def touch_is_due(pool: DdmqPool) -> None:
    claim_for_later(pool)
    pool.world.advance(TIMEOUT_S / 2 + 1)


def test_one_claim_that_cannot_be_touched_keeps_no_other_from_it(pool):
    workers = [pool.queue, pool.another_worker(1)]
    put(pool)
    put(pool)
    claims = [worker.claim() for worker in workers]
    stuck = claims[0].waiting
    pool.world.advance(TIMEOUT_S / 2 + 1)

    def fail(call, arguments):
        if call == "rename" and stuck in str(arguments[0]):
            raise OSError(errno.EIO, os.strerror(errno.EIO), arguments[0])

    pool.keeper_system.before = fail
    with pytest.raises(QueueUnavailable):
        pool.keeper.keep()
    (late,) = (name for name in os.listdir(pool.place / "work") if claims[1].waiting in name)
    assert int(late.partition(".")[0]) - now(pool) > TIMEOUT_S / 2


# ---- the keeper


@pytest.mark.parametrize(
    ("cause", "state", "attempts", "crashes"),
    [("died", "waiting", 0, 1), ("unknown", "waiting", 0, 1), ("timeout", "deferred", 1, 0),
     ("stopped", "waiting", 0, 0)],
)  # fmt: skip
def test_the_cause_says_what_is_counted(pool, cause, state, attempts, crashes):
    name, owner = hold(pool)
    assert pool.keeping.release_owner(owner, cause) == [name]
    assert messages(pool) == {state: 1}
    assert pool.words[Q.REAPED_OWNER_DEAD] == (cause != "stopped")
    assert pool.keeping.release_owner(owner, cause) == []
    pool.rounds(3)
    claim = pool.claim()
    assert (claim.name, claim.attempt, claim.crashes) == (name, attempts + 1, crashes)


def test_the_crash_limit_ends_in_errors_with_what_is_known(pool):
    name = put(pool)
    for crashes in (1, 2, 3):
        claim = pool.claim()
        assert claim.crashes == crashes - 1
        pool.queue.settled(claim)
        pool.keeping.release_owner(fall(pool), "died", "signal 9")
    assert messages(pool) == {"errors": 1}
    assert counts_of(pool, name) == (0, 0)
    (meta,) = metas(pool)
    assert (meta["name"], meta["crashes"], meta["cause"], meta["note"]) == (name, 3, "died", "signal 9")
    assert meta["reason"] == "its worker died 3 times with it in hand"


def test_of_two_keepers_that_release_one_owner_one_does(make):
    pool, neighbour = make(), make()
    name, owner = hold(pool)
    third = make(host="two")

    def first(call, arguments):
        if call == "rename" and owner in str(arguments[0]):
            neighbour.keeper_system.before = None
            assert pool.keeping.release_owner(owner, "died") == [name]
            assert third.claim().name == name

    neighbour.keeper_system.before = first
    assert neighbour.keeping.release_owner(owner, "died") == []
    assert messages(pool) == {"claimed": 1}


def test_a_dead_neighbour_is_released_at_once(make):
    dead, living = make(pid=4001), make(pid=4002)
    hold(dead)
    living.world.dead.add(4001)
    assert living.rounds().owner_dead == 1
    assert living.claim().crashes == 1


def test_a_claim_of_a_program_that_is_gone_waits_again_when_it_has_expired(pool):
    name = lay(pool, message(), "5.17000000001.ddmqa")
    pool.queue.files.take("5.17000000001.ddmqa", int(now(pool)) + 20)
    assert pool.rounds(1, every_s=15).too_old == 0
    assert pool.rounds(1, every_s=10).too_old == 1
    claim = pool.claim()
    assert (claim.name, claim.waiting, claim.crashes) == (name, "5.17000000001.ddmqa", 1)


@pytest.mark.parametrize(("timeout", "lasts_s"), [(None, TIMEOUT_S), (100, 100)])
def test_on_a_network_filesystem_a_claim_that_is_born_expired_lasts_as_long_as_it_was_to(make, timeout, lasts_s):
    """Of an original on a host whose clock is an hour behind. Neither a keeper of ours takes it, nor a cleaning."""
    pool = make(network="nfs")
    broker, waiting = Broker(str(pool.place.parent), system=pool.system), "999.17000000001.ddmqa"
    lay(pool, message(timeout=timeout), waiting)
    os.rename(pool.place / waiting, pool.place / "work" / f"{int(now(pool)) + lasts_s - 3600}.{waiting}")
    for _ in range(4):
        assert pool.rounds(every_s=lasts_s / 5).too_old == 0
        broker.clean("queue", force=True)
    assert messages(pool) == {"claimed": 1}
    assert pool.rounds(every_s=lasts_s / 5 + 2).too_old == 1
    assert body(pool.claim()) == b"content"


def test_of_two_keepers_that_find_a_claim_expired_one_gives_it_back(apart):
    """The second one comes at each call of the first; one crash is counted, and there is one message."""
    nth = 0
    while True:
        nth += 1
        pool = apart()
        other = apart(pool, host="two")
        name = lay(pool, message(), f"5.1700000000{nth}.ddmqa")
        pool.queue.files.take(f"5.{name}", int(now(pool)) + 1)
        pool.world.advance(15)
        reaped = []
        made = before_call(pool.keeper_system, nth, lambda other=other, reaped=reaped: reaped.append(kept_of(other)))
        reaped.append(pool.keeper.keep().too_old)
        pool.keeper_system.before = None
        if len(made) < nth:
            break
        assert sum(reaped) == 1, (nth, made)
        assert messages(pool) == {"waiting": 1}
        claim = pool.claim()
        assert claim.crashes == 1, (nth, made)
        settle(pool.queue, "done", claim)
    assert nth > 10


def test_a_keeper_killed_while_it_gives_back_counts_one_crash(apart):
    for pool, what in kill_each(apart, lambda pool: pool.keeper.keep(), expired_for_later, keeper_of):
        pool.rounds(3, every_s=70)
        claim = pool.claim()
        assert claim.crashes <= 1 + ("unlink" in what), what
        settle(pool.queue, "done", claim)
        assert messages(pool) == {}, what


def kept_of(pool: DdmqPool) -> int:
    return pool.keeper.keep().too_old


def expired_for_later(pool: DdmqPool) -> None:
    lay(pool, message())
    pool.queue.files.take("999.17000000001.ddmqa", int(now(pool)) + 1)
    pool.world.advance(5)


def test_what_expires_as_often_as_the_crash_limit_ends_in_errors(make):
    pool = make(settings=replace(FOREIGN_SETTINGS, crash_limit=2))
    name = lay(pool, message(timeout=20))
    for state in ("waiting", "errors"):
        pool.queue.files.take(f"999.{name}", int(now(pool)) + 20)
        assert pool.rounds(1, every_s=30).too_old == 1
        assert messages(pool) == {state: 1}
    (meta,) = metas(pool)
    assert (meta["reason"], meta["crashes"]) == ("its holder was gone 2 times", 2)


def test_the_expired_claim_of_a_living_worker_of_this_machine_is_left_to_its_keeper(make):
    hangs, pool = make(pid=4001), make(pid=4002)
    put(hangs)
    claim = hangs.claim()
    assert pool.rounds(2, every_s=TIMEOUT_S).too_old == 0
    hangs.keeper.keep()
    settle(hangs.queue, "done", claim)
    assert messages(pool) == {}


def test_the_claims_of_a_pool_whose_machine_is_gone_come_back_when_they_have_expired(make):
    far, near = make(host="far", pid=4001), make(host="near", pid=4002)
    name, owner = hold(far)
    assert near.rounds(1, every_s=TIMEOUT_S - 5).too_old == 0
    assert near.rounds(1, every_s=10).too_old == 1
    assert counts_of(near, name) == (0, 1)
    near.rounds(3, every_s=100)
    assert owner not in os.listdir(beside(near, "held"))


def test_abandoned_temporary_files_are_swept_and_young_ones_are_left(pool):
    abandoned = pool.place.parent / f".{'a' * 32}.tmp"
    abandoned.touch()
    pool.rounds(1)
    assert abandoned.exists()
    pool.rounds(3, every_s=60)
    assert not abandoned.exists()


def test_counts_of_a_message_that_has_ended_are_swept_and_of_others_kept(pool):
    name = put(pool)
    pool.keeping.release_owner(die(pool), "died")
    pool.queue.beside.write_count("17.ddmqgone", pool.queue.beside.count_of(name))
    pool.rounds(4, every_s=60)
    assert os.listdir(beside(pool, "counts")) == [name]


def test_on_a_full_disk_what_is_due_or_expired_comes_back_though_its_counts_cannot_be_written(pool, caplog):
    put(pool)
    settle(pool.queue, "retry", pool.claim())
    expired_for_later(pool)

    def full(call, arguments):
        if call == "write":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    pool.keeper_system.before = full
    pool.rounds(3, every_s=5)
    assert messages(pool) == {"waiting": 2}
    assert "counts of" in caplog.text


def test_on_a_full_disk_what_a_dead_worker_had_comes_back_and_so_does_what_is_due(pool, caplog):
    put(pool)
    settle(pool.queue, "retry", pool.claim())
    _, owner = hold(pool)
    pool.keeper_system.before = no_room
    pool.keeping.system.before = no_room
    pool.keeping.release_owner(owner, "died")
    pool.rounds(3)
    assert messages(pool) == {"waiting": 2}
    assert "counts of" in caplog.text


def test_on_a_full_disk_a_dead_worker_of_whom_nobody_was_told_keeps_nothing_from_coming_back(pool):
    put(pool)
    settle(pool.queue, "retry", pool.claim())
    hold(pool)
    pool.keeper_system.before = no_room
    pool.rounds(3)
    assert messages(pool) == {"waiting": 2}


def no_room(call: str, _: object) -> None:
    if call == "write":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_directory_in_the_place_of_counts_keeps_nobody_from_coming_back(pool):
    name, owner = hold(pool)
    beside(pool, "counts", name, "x").mkdir(parents=True)
    assert pool.keeping.release_owner(owner, "died") == [name]
    assert messages(pool) == {"waiting": 1}


@pytest.mark.parametrize("is_neighbour", [False, True])
def test_one_release_that_fails_keeps_no_other_release_and_nothing_that_is_due_or_expired(make, is_neighbour):
    dead, pool = make(pid=4001), make(pid=4002)
    gone = dead if is_neighbour else pool
    workers = [gone.queue, gone.another_worker(1)]
    put(gone)
    gone.queue.retry(gone.claim(), 4.0)
    claims = []
    for worker in workers:
        put(gone)
        claims.append(worker.claim())
    lay(pool, message())
    pool.queue.files.take("999.17000000001.ddmqa", int(now(pool)) + 4)
    for index in range(2):
        gone.bury(index)
    if is_neighbour:
        gone.world.dead.add(4001)
    stuck = claims[0].waiting

    def fail(call, arguments):
        if call == "rename_noreplace" and stuck in str(arguments[0]):
            raise OSError(errno.EIO, os.strerror(errno.EIO), arguments[0])

    pool.keeper_system.before = fail
    for _ in range(6):
        with suppress(QueueUnavailable):
            pool.rounds(1, every_s=3)
    assert messages(pool) == {"waiting": 3, "claimed": 1}
    with pytest.raises(QueueUnavailable, match=r"Input/output error"):
        pool.rounds(1)  # and it is told
    pool.keeper_system.before = None
    pool.rounds(1)
    assert messages(pool) == {"waiting": 4}


def test_where_nothing_can_be_written_on_a_network_filesystem_claims_are_touched_all_the_same(make):
    """A quota: its clock is asked for by a file, which cannot be made."""
    pool = make(network="nfs")
    put(pool)
    claim = pool.claim()

    def full(call, arguments):
        if call == "open" and arguments[1] & os.O_CREAT:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), arguments[0])

    pool.keeper_system.before = full
    new = pool.opened(pool.keeper_system)  # of a keeper that never saw the clock
    pool.keeper = new.keeper(pool._consumer(0))
    for _ in range(10):
        pool.rounds(1, every_s=TIMEOUT_S / 5)
        assert expiry(pool) - now(pool) > TIMEOUT_S / 4
    settle(pool.queue, "done", claim)


def test_where_only_the_queue_can_be_written_state_dir_is_all_that_a_pool_needs(tmp_path, apart):
    """The directory ROOT refuses; QUEUE, and the directory that state_dir names, do not."""
    pool = apart(options=f"?state_dir={tmp_path}")
    root = pool.place.parent
    made = sorted(os.listdir(root))

    def refuse(call, arguments):
        path = arguments[1] if call in ("rename", "rename_noreplace", "link") else arguments[0]
        is_new = call in ("mkdir", *MOVES, "link") or (call == "open" and arguments[1] & os.O_CREAT)
        if is_new and os.path.dirname(str(path)) == str(root):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), path)

    pool.system.before = pool.keeper_system.before = refuse
    pool.keeper.open()
    put(pool)
    pool.rounds()
    settle(pool.queue, "done", pool.claim())
    assert (os.listdir(pool.place / "work"), sorted(os.listdir(root))) == ([], made)


def test_a_file_that_is_too_large_to_be_read_goes_to_errors_with_the_reason(pool):
    name = lay(pool, b"")
    os.truncate(pool.place / f"999.{name}", 40 << 30)  # it has no blocks
    claim = pool.claim()
    assert "larger than" in claim.trouble
    settle(pool.queue, "reject", claim)
    (shown,) = pool.queue.show(name)
    assert (shown.listed.state, shown.size) == ("errors", 40 << 30)


def test_a_time_limit_of_what_is_too_large_to_be_read_is_counted(pool):
    name = lay(pool, b"")
    os.truncate(pool.place / f"999.{name}", 40 << 30)
    pool.claim()
    assert pool.keeping.release_owner(fall(pool), "timeout") == [name]
    assert messages(pool) == {"deferred": 1}


def test_a_claim_of_the_original_with_a_fraction_in_its_expiry_waits_again_when_it_has_expired(pool):
    name = lay(pool, message(), "5.17000000001.ddmqa")
    os.rename(pool.place / f"5.{name}", pool.place / "work" / f"{int(now(pool)) + 20}.5.5.{name}")
    assert pool.rounds(1, every_s=15).too_old == 0
    assert pool.rounds(1, every_s=10).too_old == 1
    claim = pool.claim()
    assert (claim.name, claim.waiting, claim.crashes) == (name, f"5.{name}", 1)


HOSTILE: dict[str, Callable[[Path], object]] = {
    "binary": lambda path: path.write_bytes(os.urandom(HAND_SIZE)),
    "huge": lambda path: path.write_bytes(b"9" * 1_000_000),
    "a name that leads out": lambda path: path.write_bytes(b"../../../../etc/passwd 1 1"),
    "a huge number": lambda path: path.write_bytes(b"1.1.ddmqa 1 " + b"9" * 100),
    "no number": lambda path: path.write_bytes("1.1.ddmqa 1 \N{SUPERSCRIPT TWO}".encode()),
    "a touch without its claim": lambda path: path.write_bytes(b" " * HALF + b"1.1.ddmqa 1 1 2"),
    "a symlink": lambda path: path.symlink_to("/etc/passwd"),
    "a fifo": os.mkfifo,
    "a directory": Path.mkdir,
    "empty": Path.touch,
}


@pytest.mark.parametrize("how", sorted(HOSTILE))
def test_a_record_that_is_none_stops_no_round_no_release_and_no_listing(make, how):
    dead, pool = make(pid=4001), make(pid=4002)
    name, owner = hold(dead)
    path = beside(pool, "held", owner)
    path.unlink()
    HOSTILE[how](path)
    pool.world.dead.add(4001)
    pool.rounds(2)
    dead.rounds(2)
    dead.keeping.release_owner(owner, "died")
    assert [line.owner for line in pool.queue.list("claimed")] == [None]
    pool.rounds(2, every_s=TIMEOUT_S)
    assert pool.claim().name == name  # by its time


# ---- the board, the operator


def test_no_claim_without_a_young_round(pool):
    put(pool)
    pool.world.advance(TIMEOUT_S / 2)
    assert pool.queue.claim() is None
    pool.rounds()
    assert pool.claim() is not None


def test_what_the_library_set_aside_is_listed_and_comes_back(pool):
    name = lay(pool, b"no json")
    set_aside(pool.queue.files, str(pool.place / f"999.{name}"), "is no JSON object")
    (shown,) = pool.queue.show(name)
    assert (shown.listed.state, shown.meta is not None) == ("errors", True)
    assert pool.queue.requeue(name) == 1
    assert messages(pool) == {"waiting": 1}


def test_of_two_that_the_library_set_aside_under_one_name_both_are_listed_and_come_back(pool):
    for _ in range(2):
        name = lay(pool, b"no json")
        set_aside(pool.queue.files, str(pool.place / f"999.{name}"), "is no JSON object")
    assert [shown.listed.state for shown in pool.queue.show(name)] == ["errors"] * 2
    assert pool.queue.depth().errors == 2
    assert pool.queue.requeue(name) == 2
    assert messages(pool) == {"waiting": 2}
