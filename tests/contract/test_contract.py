"""
What every queue must do, by what it declares that it can (workers/queues/base.py).

A new protocol adds one entry to OPENERS; what it cannot do it must refuse with a sentence that names the protocol.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.rig import SETTINGS, Rig, World
from tests.rig_ddmq import DdmqPool
from tests.rig_dirq import SCHEMA, SIMPLE, DirqPool
from tests.rig_mqueue import Locks, MqueuePool, make_queue
from workers.anchored import Anchored
from workers.errors import ClaimLost, InvalidName, MessageExists, NotSupported
from workers.message import Claim
from workers.posix_mq import unlink
from workers.queues.base import Capability, Queue
from workers.queues.ddmq import Ddmq
from workers.queues.dirq import Dirq
from workers.queues.mqueue import Mqueue
from workers.queues.null import Null
from workers.queues.spool import Spool
from workers.system import SYSTEM


@dataclass
class Opened:
    """
    A queue ready to claim from, one to forward to, and what stands in for its keeper's timer.

    A body may have *size_max* bytes. Not *is_dated*: nobody can say since when a message waits. *end* removes it.
    """

    queue: Queue
    following: Queue
    keep: Callable[[float], object] = lambda _: None
    size_max: int = 1 << 30
    is_dated: bool = True
    end: Callable[[], object] = lambda: None

    def claim(self) -> Claim:
        claim = self.queue.claim()
        assert claim is not None
        return claim

    def body(self, claim: Claim) -> bytes:
        return os.pread(claim.fd, 1 << 20, 0) if claim.fd >= 0 else Path(claim.path).read_bytes()

    def put(self, body: bytes, name: str) -> str:
        """Put *body*, under *name* where the caller may choose; what it is called."""
        found = self.queue.put(body, name if Capability.NAME in self.queue.capabilities else None)
        assert found is not None
        return found

    def settle(self, verb: Callable[..., object], claim: Claim, *arguments: object) -> object:
        try:
            return verb(claim, *arguments)
        finally:
            self.queue.settled(claim)


Opener = Callable[[World, Path], Opened]


def _spool(world: World, place: Path) -> Opened:
    pool = Rig(place / "queue", world).pool()

    def keep(seconds: float) -> object:
        return pool.rounds(every_s=seconds)

    return Opened(pool.spool, Rig(place / "next", world).spool(), keep)


def _dirq(kind: str) -> Opener:
    def opened(world: World, place: Path) -> Opened:
        pool = DirqPool(place / "queue", world, kind)

        def keep(seconds: float) -> object:
            return pool.rounds(every_s=seconds)

        return Opened(pool.queue, Rig(place / "next", world).spool(), keep)

    return opened


def _mqueue(world: World, place: Path) -> Opened:
    name = f"/contract-{os.getpid()}-{os.urandom(4).hex()}"
    make_queue(name)
    pool = MqueuePool(place, name, world, Locks())

    def keep(seconds: float) -> object:
        return pool.rounds(every_s=seconds)

    following = Rig(place / "next", world).spool()
    return Opened(pool.queue, following, keep, size_max=512, is_dated=False, end=lambda: unlink(name))


def _ddmq(world: World, place: Path) -> Opened:
    pool = DdmqPool(place / "root" / "queue", world)

    def keep(seconds: float) -> object:
        return pool.rounds(every_s=seconds)

    return Opened(pool.queue, Rig(place / "next", world).spool(), keep)


OPENERS: dict[str, Opener] = {
    "spool": _spool,
    SIMPLE: _dirq(SIMPLE),
    SCHEMA: _dirq(SCHEMA),
    "ddmq": _ddmq,
    "mqueue": _mqueue,
    "null": lambda *_: Opened(Null(SETTINGS), Null()),
}


# Each queue, and each that lies in directories once more as where others may write into them (see anchored).
QUEUES = [*sorted(OPENERS), *(f"{name}-anchored" for name in sorted({*OPENERS} - {"mqueue", "null"}))]


@pytest.fixture(name="any_queue", params=QUEUES)
def _any_queue(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opened]:
    name = request.param.removesuffix("-anchored")
    opened = OPENERS[name](World(tmp_path, SYSTEM if name == request.param else Anchored(str(tmp_path))), tmp_path)
    yield opened
    opened.queue.close()
    opened.end()


def needing(*capabilities: Capability) -> pytest.MarkDecorator:
    """Run for the queues that have *capabilities*."""
    able = [name for name in QUEUES if set(capabilities) <= _capabilities(name)]
    return pytest.mark.parametrize("any_queue", able, indirect=True)


def lacking(capability: Capability) -> pytest.MarkDecorator:
    """Run for the queues that do not have *capability*."""
    unable = [name for name in QUEUES if capability not in _capabilities(name)]
    return pytest.mark.parametrize("any_queue", unable, indirect=True)


def _capabilities(name: str) -> frozenset[Capability]:
    name = name.removesuffix("-anchored")
    return {"spool": Spool, SIMPLE: Dirq, SCHEMA: Dirq, "ddmq": Ddmq, "mqueue": Mqueue, "null": Null}[name].capabilities


# ---- what all do


def test_an_empty_queue_has_nothing(any_queue):
    assert any_queue.queue.claim() is None
    depth = any_queue.queue.depth()
    assert (depth.waiting, depth.claimed, depth.deferred, depth.errors) == (0, 0, 0, 0)
    assert list(any_queue.queue.list()) == []
    assert list(any_queue.queue.show("nothing")) == []
    assert not any_queue.queue.is_paused()


@pytest.mark.parametrize("body", [b"", b"\x00\xff" * 70_000, "text, with \N{GREEK SMALL LETTER ALPHA}"])
def test_put_takes_bytes_and_text_of_any_size_that_there_is_room_for(any_queue, body):
    if len(body) > any_queue.size_max:
        with pytest.raises(NotSupported, match=rf"{len(body)} bytes.*{any_queue.queue.protocol}.*{any_queue.size_max}"):
            any_queue.queue.put(body)
        assert any_queue.queue.depth().waiting == 0
        return
    name = any_queue.queue.put(body)
    if Capability.CLAIM in any_queue.queue.capabilities:
        claim = any_queue.claim()
        assert claim.name == name
        assert any_queue.body(claim) == (body.encode() if isinstance(body, str) else body)


@needing(Capability.DURABLE)
def test_durable_is_taken_where_it_is_declared(any_queue):
    for durable in (None, True, False):
        any_queue.queue.put(b"x", durable=durable)
        any_queue.queue.put_many([b"x"], durable=durable)


@lacking(Capability.DURABLE)
def test_durable_is_refused_by_name_where_it_is_not_and_may_be_waived(any_queue):
    with pytest.raises(NotSupported, match=rf"durable.*{any_queue.queue.protocol}"):
        any_queue.queue.put(b"x", durable=True)
    with pytest.raises(NotSupported, match="durable"):
        any_queue.queue.put_many([b"x"], durable=True)
    any_queue.queue.put(b"x", durable=False)
    assert any_queue.queue.depth().waiting == 1


@lacking(Capability.PRIORITY)
def test_a_priority_is_refused_by_name_where_there_is_none(any_queue):
    with pytest.raises(NotSupported, match=rf"priority.*{any_queue.queue.protocol}"):
        any_queue.queue.put(b"x", priority=3)


def test_close_may_be_called_twice_and_by_with(any_queue):
    with any_queue.queue:
        pass
    any_queue.queue.close()


# ---- what some cannot


@lacking(Capability.NAME)
def test_a_name_is_refused_where_there_is_none(any_queue):
    with pytest.raises(NotSupported, match=any_queue.queue.protocol):
        any_queue.queue.put(b"x", "mine")


@lacking(Capability.DELAY)
def test_a_delay_is_refused_where_there_is_none(any_queue):
    with pytest.raises(NotSupported, match=any_queue.queue.protocol):
        any_queue.queue.put(b"x", delay=1)


@lacking(Capability.CLAIM)
def test_settling_is_refused_where_nothing_can_be_claimed(any_queue):
    queue, claim = any_queue.queue, Claim("x", "/x")
    for act in (
        lambda: queue.done(claim), lambda: queue.retry(claim), lambda: queue.reject(claim, "no"),
        lambda: queue.release(claim), lambda: queue.forward(claim, queue), lambda: queue.wait(0), queue.keep,
        lambda: queue.release_owner("x", "died"), lambda: queue.requeue("x"), queue.pause, queue.resume,
    ):  # fmt: skip
        with pytest.raises(NotSupported, match=queue.protocol):
            act()


# ---- put and claim


@needing(Capability.CLAIM)
def test_what_was_put_is_claimed_once(any_queue):
    names = any_queue.queue.put_many([b"1", b"2", b"3"])
    assert len(set(names)) == 3
    assert any_queue.queue.depth().waiting == 3
    claims = []
    while (claim := any_queue.queue.claim()) is not None:
        claims.append((claim.name, any_queue.body(claim)))
        any_queue.settle(any_queue.queue.done, claim)
    assert sorted(claims) == sorted(zip(names, [b"1", b"2", b"3"], strict=True))
    assert any_queue.queue.depth().claimed == 0


@needing(Capability.CLAIM)
def test_put_many_of_nothing_is_nothing(any_queue):
    assert any_queue.queue.put_many([]) == []


@needing(Capability.CLAIM)
def test_put_copies_a_file_by_its_path(any_queue, tmp_path):
    source = tmp_path / "source"
    source.write_bytes(b"content")
    any_queue.queue.put(source)
    assert any_queue.body(any_queue.claim()) == b"content"
    assert source.read_bytes() == b"content"


@needing(Capability.CLAIM)
def test_what_is_claimed_is_said_so(any_queue):
    name = any_queue.queue.put(b"x")
    any_queue.claim()
    assert any_queue.queue.depth().claimed == 1
    assert any_queue.queue.claim() is None
    (line,) = any_queue.queue.list("claimed")
    assert (line.name, line.attempt, line.crashes) == (name, 1, 0)
    assert line.owner


@needing(Capability.CLAIM, Capability.NAME)
def test_a_name_of_ones_own_is_kept_and_never_put_twice(any_queue):
    assert any_queue.queue.put(b"first", "report.csv") == "report.csv"
    with pytest.raises(MessageExists, match=r"report\.csv"):
        any_queue.queue.put(b"second", "report.csv")
    claim = any_queue.claim()
    assert (claim.name, any_queue.body(claim)) == ("report.csv", b"first")


@needing(Capability.NAME)
@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\0b", ".hidden", "a\nb", "half.tmp", "x" * 300])
def test_a_bad_name_is_refused(any_queue, name):
    with pytest.raises(InvalidName):
        any_queue.queue.put(b"x", name)
    assert any_queue.queue.depth().waiting == 0


@needing(Capability.DELAY, Capability.CLAIM)
def test_a_delayed_message_waits_for_its_time(any_queue):
    name = any_queue.queue.put(b"x", delay=60)
    assert any_queue.queue.claim() is None
    assert any_queue.queue.depth().deferred == 1
    any_queue.keep(50)
    assert any_queue.queue.claim() is None
    for _ in range(15):
        any_queue.keep(1)
    assert any_queue.claim().name == name


@needing(Capability.ORDER, Capability.CLAIM)
def test_the_order_is_that_of_the_names(any_queue):
    names = [any_queue.put(b"x", name) for name in ("b", "c", "a")]
    found = []
    while (claim := any_queue.queue.claim()) is not None:
        found.append(claim.name)
        any_queue.settle(any_queue.queue.done, claim)
    assert found == sorted(names)


# ---- settle


@needing(Capability.CLAIM, Capability.DEFER)
def test_retry_counts_attempts_and_ends_in_errors(any_queue):
    queue = any_queue.queue
    name = any_queue.put(b"x", "poison")
    for attempt in range(1, SETTINGS.max_attempts + 1):
        claim = any_queue.claim()
        assert claim.attempt == attempt
        is_again = any_queue.settle(queue.retry, claim, 0.0, {"traceback": "it failed"})
        assert is_again == (attempt < SETTINGS.max_attempts)
        any_queue.keep(1)
        any_queue.keep(1)
    assert queue.claim() is None
    (shown,) = queue.show(name)
    assert shown.listed.state == "errors"
    assert shown.meta is not None
    assert (shown.meta["attempts"], shown.meta["traceback"]) == (SETTINGS.max_attempts, "it failed")


@needing(Capability.CLAIM, Capability.DEFER)
def test_retry_after_a_time_waits_that_long(any_queue):
    any_queue.queue.put(b"x")
    any_queue.settle(any_queue.queue.retry, any_queue.claim(), 100.0)
    (line,) = any_queue.queue.list("deferred")
    assert line.due_at is not None
    any_queue.keep(99 - 1)
    assert any_queue.queue.depth().deferred == 1
    for _ in range(5):
        any_queue.keep(1)
    assert any_queue.queue.depth().waiting == 1


@needing(Capability.CLAIM, Capability.ERRORS)
def test_reject_moves_to_errors_with_the_reason(any_queue):
    queue = any_queue.queue
    name = any_queue.put(b"content", "bad")
    any_queue.settle(queue.reject, any_queue.claim(), "of no use")
    assert (queue.depth().errors, queue.depth().claimed) == (1, 0)
    (shown,) = queue.show(name)
    assert shown.size == 7
    assert shown.meta is not None
    assert (shown.meta["reason"], shown.meta["name"]) == ("of no use", name)


@needing(Capability.CLAIM, Capability.ERRORS)
def test_requeue_takes_it_out_of_errors_with_its_counts_at_zero(any_queue):
    queue = any_queue.queue
    name = any_queue.put(b"content", "bad")
    any_queue.settle(queue.reject, any_queue.claim(), "of no use")
    assert queue.requeue("unknown") == 0
    assert queue.requeue(name) == 1
    assert queue.depth().errors == 0
    claim = any_queue.claim()
    assert (claim.name, claim.attempt, claim.crashes, any_queue.body(claim)) == (name, 1, 0, b"content")


@needing(Capability.CLAIM)
def test_release_gives_back_as_it_was(any_queue):
    any_queue.queue.put(b"content")
    first = any_queue.claim()
    any_queue.settle(any_queue.queue.release, first)
    assert any_queue.queue.depth().waiting == 1
    again = any_queue.claim()
    assert (again.name, again.attempt, again.crashes) == (first.name, 1, 0)


@needing(Capability.CLAIM)
def test_a_settle_of_what_was_settled_is_refused_or_nothing(any_queue):
    """Whatever it says, nothing comes back and nothing is there twice."""
    any_queue.queue.put(b"x")
    claim = any_queue.claim()
    any_queue.settle(any_queue.queue.done, claim)
    with suppress(ClaimLost):
        any_queue.queue.done(claim)
    depth = any_queue.queue.depth()
    assert (depth.waiting, depth.claimed, depth.errors) == (0, 0, 0)


@needing(Capability.CLAIM)
@pytest.mark.parametrize("bodies", [None, [b"new"], [b"one", "two"], []])
def test_forward_hands_on_and_finishes(any_queue, bodies):
    any_queue.put(b"content", "mine")
    any_queue.settle(any_queue.queue.forward, any_queue.claim(), any_queue.following, bodies)
    assert any_queue.queue.depth().claimed == any_queue.queue.depth().waiting == 0
    expected = 1 if bodies is None else len(bodies)
    assert any_queue.following.depth().waiting == expected


@needing(Capability.CLAIM)
def test_forward_to_nowhere_finishes(any_queue):
    any_queue.queue.put(b"content")
    any_queue.settle(any_queue.queue.forward, any_queue.claim(), Null())
    assert any_queue.queue.depth().claimed == any_queue.queue.depth().waiting == 0


@needing(Capability.KEEP_DONE, Capability.CLAIM)
def test_a_finished_message_is_gone_when_it_is_not_kept(any_queue):
    any_queue.queue.put(b"x", "a")
    any_queue.settle(any_queue.queue.done, any_queue.claim())
    assert list(any_queue.queue.list()) == []


# ---- the operator


@needing(Capability.PAUSE, Capability.CLAIM)
def test_nobody_claims_while_the_queue_is_paused(any_queue):
    any_queue.queue.put(b"x")
    any_queue.queue.pause()
    any_queue.queue.pause()
    assert any_queue.queue.is_paused()
    any_queue.keep(1)
    assert any_queue.queue.claim() is None
    any_queue.queue.resume()
    any_queue.queue.resume()
    any_queue.keep(1)
    any_queue.claim()


@needing(Capability.CLAIM)
def test_wait_says_whether_there_may_be_a_message(any_queue):
    assert any_queue.queue.wait(0.2) is False
    any_queue.queue.put(b"x")
    assert any_queue.queue.wait(0.2) is True


@needing(Capability.CLAIM)
def test_the_oldest_waiting_is_measured_in_seconds(any_queue):
    any_queue.queue.put(b"x")
    for _ in range(10):
        any_queue.keep(1)
    oldest_s = any_queue.queue.depth().oldest_s
    assert 9.5 < oldest_s["waiting"] < 30 if any_queue.is_dated else "waiting" not in oldest_s


@needing(Capability.CLAIM)
def test_detach_leaves_nothing_behind(any_queue):
    any_queue.queue.put(b"x")
    any_queue.settle(any_queue.queue.done, any_queue.claim())
    any_queue.queue.detach()
    assert any_queue.queue.depth().claimed == 0
