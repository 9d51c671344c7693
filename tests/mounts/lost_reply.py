"""
lost_reply - actors who are stopped just before a call, so that its reply can be lost

The server renames, the reply is lost, the server is restarted, and the client, who asks again, is told that there is
no such file. An actor has a queue of his own and does one deed with it: put, claim, done and so on. He stops before the
one call whose reply is to be lost, and goes on when all others have stopped, too: so one restart loses many replies.
Afterwards he leaves as a worker and a keeper leave, and says what the deed came to and what he was told.

``python -m tests.mounts.lost_reply play CASES`` forks an actor for each case of the JSON file CASES. Each line that
it prints is JSON: a call that an actor stands before, "all" when nobody moves any more, and what each came to.
A line on the input lets them go. ``... emulate CASES`` does the same on any filesystem, without a stop: the call is
made twice, and of the names in it the actor is shown for a while what was true before (a client's cache does not
know of a call that failed). ``... made CALLS`` prints which calls have been made. ``... survey CASES`` looks at all
places as another host, and handles what waits there.

Long because: what a deed is, and for which protocols, is read in one table.
Source: rename(2), BUGS.
See also: test_lost_reply (what must come of it), guests, workers/queues/SPOOL.md section 12.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import stat
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

from tests.waiting import until
from workers import Message, open_queue
from workers.board import Board, WorkerText
from workers.errors import OrchestratorError, QueueUnavailable
from workers.message import Claim
from workers.queues import names
from workers.queues.base import Claimable, Consumer, Settings
from workers.queues.ddmq import Ddmq, TimedClaim
from workers.queues.ddmq_hand import claim_line
from workers.queues.dirq import Dirq
from workers.queues.spool_keep import SpoolKeeper
from workers.system import System

CHANGING = ("rename", "link", "unlink", "mkdir", "rmdir")
BODY = b"the content"
LONG_S = 3600.0
STARTED_S = 40.0  # a keeper that runs for so long believes that something is old
CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 0x4000, 1 << 18
AT_ONCE = 32  # actors of an emulation
# Longer than any outage: what a lapse does has tests of its own.
SETTINGS = Settings(
    lease_interval_s=5.0, lease_timeout_s=600.0, stale_after_s=1200.0, retry_backoff_s_max=2 * LONG_S, create=True
)
FOREIGN = replace(SETTINGS, lease_interval_s=None, lease_timeout_s=None)
URLS = {"spool": "spool:{}", "dirq-simple": "dirq-simple:{}", "dirq": "dirq:{}", "ddmq": "ddmq:{}", "naive": "{}"}
RANDOM = re.compile(r"P\d+Q\d+|[0-9a-f]{5,}|(?<=\.)\d+")
INTERMEDIATE = re.compile(r".*/[0-9a-f]{8}\Z")
ALL, SPOOL, FOREIGNERS = ("spool", "dirq-simple", "dirq", "ddmq"), ("spool",), ("dirq-simple", "dirq", "ddmq")


@dataclass(frozen=True, slots=True)
class Case:
    """
    The *nth* call that changes names in *deed* on a *protocol*'s queue in *place*; 0: none, nothing is lost.

    *mount*: options of a mount of his own that an actor makes above *place*, of the source that begins them.
    """

    number: int
    protocol: str
    deed: str
    nth: int
    place: str
    mount: str = ""


@dataclass(frozen=True, slots=True)
class Call:
    """What the actor of case *number* is about to do; names as he sees them."""

    number: int
    name: str
    paths: list[str]


@dataclass(slots=True)
class Ended:
    """
    What an actor came to.

    Attributes:
        told: "ok", or the errno of the call in question; "" when there was none.
        calls: those of the deed that succeeded, by their numbers.
        outcome: what the deed said.
        trace: of what must not be raised.
    """

    number: int
    told: str = ""
    calls: dict[int, str] = field(default_factory=dict)
    outcome: str = ""
    trace: str = ""


# ---- the kernel, watched


class Moved(System):
    """A kernel whose CLOCK_BOOTTIME can be moved on."""

    moved_ns = 0

    def boottime_ns(self) -> int:
        """See System."""
        return System.boottime_ns() + self.moved_ns


class Watched(Moved):
    """The kernel of one actor: counts the calls that change names, and does the *nth* of a deed by *lose*."""

    def __init__(self, nth: int, lose: Callable[[str, Callable[..., None], tuple[Any, ...]], str]) -> None:
        self.nth = nth
        self.is_armed = False
        self.count = 0
        self.calls: dict[int, str] = {}
        self.told = ""
        self._lose = lose
        self._missing: dict[str, bool] = {}
        for name in CHANGING:
            setattr(self, name, self._watched(name, getattr(System, name)))

    def _watched(self, name: str, real: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: Any) -> None:
            if name != "mkdir" and self._missing.get(arguments[0]):  # it does not ask to remove what is not there
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), arguments[0])
            self.count += self.is_armed
            number = self.count
            if self.is_armed and number == self.nth:
                self.told = "ok"
                try:
                    self._lose(name, real, arguments)
                except OSError as error:
                    self.told = errno.errorcode[error.errno or 0]
                    raise
            else:
                real(*arguments)
            if self.is_armed:
                self.calls[number] = name

        return call

    def forget_names(self, paths: Iterable[str], *, is_rename: bool) -> None:
        """
        Show *paths* as missing until their directory is listed.

        To calls that change them as well, if a rename should have made them: so does a client of NFS 4.
        """
        self._missing |= dict.fromkeys(paths, is_rename)

    def lstat(self, path: str) -> os.stat_result:  # type: ignore[override]
        """As a client whose cache does not know of what it was told had failed."""
        if path in self._missing:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return os.lstat(path)

    def listdir(self, path: str) -> list[str]:  # type: ignore[override]
        """A fresh one: a client asks the server at each opendir."""
        self._missing = {one: what for one, what in self._missing.items() if os.path.dirname(one) != path}
        return os.listdir(path)

    @staticmethod
    def rename_noreplace(source: str, target: str) -> None:
        """There is none on NFS."""
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), source, target)

    @staticmethod
    def rename_exchange(source: str, target: str) -> None:
        """There is none on NFS."""
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), source, target)

    def network_filesystem(self, path: str) -> str | None:
        """Whatever it is."""
        return "nfs"


def make_twice(system: Watched, name: str, real: Callable[..., None], arguments: tuple[Any, ...]) -> str:
    """Make a call, and then its repetition, which is all that is answered."""
    real(*arguments)
    system.forget_names(_paths(arguments)[1:], is_rename=name == "rename")
    real(*arguments)
    return "ok"


def _paths(arguments: tuple[Any, ...]) -> list[str]:
    return [argument for argument in arguments if isinstance(argument, str)]


# ---- a pool of one worker


class Stage:
    """One actor's queue, and a pool on it of a worker and a keeper."""

    def __init__(self, protocol: str, place: str, system: Moved, host: str = "one", **more: Any) -> None:
        self.protocol, self.place, self.system, self.host = protocol, place, system, host
        self.settings = replace(SETTINGS if protocol == "spool" else FOREIGN, **more)
        self.board = Board.create()
        self.claim: Claim | None = None
        self.owner = ""
        self._workers = 0

    def url(self, queue: str) -> str:
        """Of one of the queues in our place."""
        path = os.path.join(self.place, "root", queue) if self.protocol == "ddmq" else os.path.join(self.place, queue)
        return URLS[self.protocol].format(path)

    def opened(self, queue: str = "queue") -> Claimable:
        """A queue in our place, made where it is not there."""
        found = open_queue(self.url(queue), settings=self.settings, host=self.host, system=self.system)
        assert isinstance(found, Claimable)
        return found

    def open(self) -> None:
        """The queue, a keeper and a worker."""
        self.queue = self.opened()
        self.slot = self.board.take_queue("queue", self.url("queue"))
        self.words = self.board.queues[self.slot].words
        self.master = names.master_name(self.host, self.system)
        self.keeper = self.opened().keeper(self._consumer())
        self.keeper.open()
        self.keeper.keep()
        consumer = self._consumer()
        self.worker_slot = consumer.worker_slot
        self.queue.attach(consumer)

    def _consumer(self) -> Consumer:
        self._workers += 1
        slot = self.board.take_worker(self.slot, self._workers)
        return Consumer(self.master, self.board, self.slot, slot, self._workers)

    def take(self) -> None:
        """Claim; there must be something."""
        self.claim = self.queue.claim()
        assert self.claim is not None

    def lose_worker(self) -> None:
        """Let another worker die with a message in hand; the master has taken it off the board."""
        consumer = self._consumer()
        queue = self.opened()
        queue.attach(consumer)
        claim = queue.claim()
        assert claim is not None
        queue.settled(claim)
        worker = self.board.worker(consumer.worker_slot)
        self.owner = worker.text(WorkerText.OWNER) or ""
        worker.set_text(WorkerText.OWNER, "")

    def leave(self) -> None:
        """As a worker that has nothing in hand, and then a keeper, leave."""
        if self.claim is not None:
            self.queue.settled(self.claim)
        persistently(self.queue.settle_leftovers)
        self.queue.detach()
        for _ in range(2):  # what the board does not list goes back in the second round
            persistently(self.keeper.keep)
        self.keeper.leave()


def persistently(act: Callable[[], object], times: int = 5) -> object:
    """What *act* returns; as workers and keepers do, it is tried again while the queue is unavailable."""
    while True:
        try:
            return act()
        except QueueUnavailable:
            times -= 1
            if not times:
                raise


# ---- deeds


@dataclass(frozen=True, slots=True)
class Deed:
    """What an actor does: *act*, after *prepare*. *more* are settings of the queue."""

    act: Callable[[Stage], object]
    prepare: tuple[Callable[[Stage], object], ...] = ()
    protocols: tuple[str, ...] = ALL
    more: dict[str, Any] = field(default_factory=dict)
    after: Callable[[Stage], object] = Stage.leave


def _put(stage: Stage) -> object:
    stage.queue.put(BODY)
    return "put"


def _put_named(stage: Stage) -> object:
    return stage.queue.put(BODY, "name")


def _put_delayed(stage: Stage) -> object:
    stage.queue.put(BODY, delay=LONG_S)
    return "put"


def _put_many(stage: Stage) -> object:
    return len(stage.queue.put_many([BODY] * 3))


def _put_file(stage: Stage) -> object:
    path = _beside(stage)
    stage.queue.put_file(path)  # type: ignore[attr-defined]
    return path.exists()


def _put_file_named(stage: Stage) -> object:
    path = _beside(stage)
    return stage.queue.put_file(path, "name"), path.exists()  # type: ignore[attr-defined]


def _beside(stage: Stage) -> Path:
    path = Path(stage.place, "file")
    path.write_bytes(BODY)
    return path


def _claim(stage: Stage) -> object:
    stage.claim = persistently(stage.queue.claim)  # type: ignore[assignment]
    if stage.claim is None:
        return "nothing"
    body = Message(stage.claim, stage.queue.url, 0, None).body
    persistently(lambda: stage.queue.release(stage.claim))  # type: ignore[arg-type]
    return body == BODY


def _settled(verb: str, *arguments: object) -> Callable[[Stage], object]:
    """A deed: settle what was claimed, as workers do."""
    return lambda stage: persistently(lambda: getattr(stage.queue, verb)(stage.claim, *arguments))


def _forward(stage: Stage) -> object:
    following = stage.opened("next")
    return persistently(lambda: stage.queue.forward(stage.claim, following))  # type: ignore[arg-type]


def _forward_other(stage: Stage) -> object:
    following = stage.opened("next")
    return persistently(lambda: stage.queue.forward(stage.claim, following, [BODY]))  # type: ignore[arg-type]


def _open_next(stage: Stage) -> None:
    stage.opened("next")


def _requeue(stage: Stage) -> object:
    (line,) = stage.queue.list("errors")
    return stage.queue.requeue(line.name)


def _reject_it(stage: Stage) -> None:
    assert stage.claim is not None
    stage.queue.reject(stage.claim, "no use")


def _let_it_be_due(stage: Stage) -> None:
    assert stage.claim is not None
    stage.queue.retry(stage.claim, after_s=LONG_S)
    (path,) = next(Path(stage.place).rglob("deferred")).iterdir()
    path.rename(path.with_name(re.sub(r"^\d+", "1000000000", path.name)))


def _keep(stage: Stage) -> object:
    def sums() -> dict[str, object]:
        return asdict(stage.keeper.keep())

    return persistently(sums)


def _released(cause: str) -> Callable[[Stage], object]:
    """A deed: the keeper gives back what a dead worker had."""

    def act(stage: Stage) -> object:
        persistently(lambda: stage.keeper.release_owner(stage.owner, cause))  # type: ignore[arg-type]
        return "released"

    return act


def _beat(stage: Stage) -> object:
    assert isinstance(stage.keeper, SpoolKeeper)
    return stage.keeper.lease.beat()


def _let_half_of_the_claim_pass(stage: Stage) -> None:
    """The claim, and what its record says, are of a while ago."""
    claim, owner = stage.claim, stage.board.worker(stage.worker_slot).text(WorkerText.OWNER)
    assert isinstance(claim, TimedClaim)
    work, record = Path(stage.queue.place, "work"), Path(f"{stage.queue.place}.pool", "held", str(owner))
    (path,) = work.iterdir()
    claim.expiry -= 400
    path.rename(work / claim.work_name)
    with record.open("r+b") as file:
        file.write(claim_line(claim.waiting, claim.expiry, 600, claim.fraction))


def _touch(stage: Stage) -> object:
    persistently(stage.keeper.touch)  # type: ignore[attr-defined]
    return "touched"


def _let_the_claim_expire(stage: Stage) -> None:
    """The record of a worker that died is gone as well: its whole machine is."""
    stage.lose_worker()
    os.unlink(Path(f"{stage.queue.place}.pool", "held", stage.owner))
    _let_locks_be_old(stage)
    if isinstance(stage.queue, Ddmq):
        files = stage.queue.files
        (path,) = Path(files.work).iterdir()
        path.write_text(path.read_text().replace('"timeout": null', '"timeout": 1'))
        path = path.rename(path.with_name(re.sub(r"^\d+(?=\.)", "1000000000", path.name)))
        until(lambda: files.now_s() > path.stat().st_ctime + 1.1)


def _let_locks_be_old(stage: Stage) -> None:
    if isinstance(stage.queue, Dirq):
        for line in stage.queue.list("claimed"):
            os.utime(stage.queue.elements.element_path(line.name), (1e9, 1e9))
        stage.keeper._sweep_at_ns = 0  # type: ignore[attr-defined]
    stage.system.moved_ns += int(STARTED_S * 1e9)


def _make(stage: Stage) -> object:
    persistently(stage.open)
    return "made"


def _leave(stage: Stage) -> object:
    stage.leave()
    return "left"


def _naive_claim(stage: Stage) -> object:
    """What claims did before: ENOENT is a lost race."""
    try:
        stage.system.rename(f"{stage.place}/in/job", f"{stage.place}/taken/job")
    except FileNotFoundError:
        return "nothing"
    os.unlink(f"{stage.place}/taken/job")
    return True


def _naive_open(stage: Stage) -> None:
    for name in ("in", "taken"):
        os.mkdir(f"{stage.place}/{name}")
    Path(stage.place, "in", "job").write_bytes(BODY)


LATER = {"retry_backoff_s": 1e8, "retry_backoff_s_max": 1e8}  # a delay is drawn, and this one is never short
CLAIMED: tuple[Callable[[Stage], object], ...] = (Stage.open, _put, Stage.take)
DEEDS = {
    "make": Deed(_make),
    "put": Deed(_put, (Stage.open,)),
    "put-named": Deed(_put_named, (Stage.open,), SPOOL),
    "put-delayed": Deed(_put_delayed, (Stage.open,), SPOOL),
    "put-many": Deed(_put_many, (Stage.open,)),
    "put-file": Deed(_put_file, (Stage.open,), SPOOL),
    "put-file-named": Deed(_put_file_named, (Stage.open,), SPOOL),
    "claim": Deed(_claim, (Stage.open, _put)),
    "done": Deed(_settled("done"), CLAIMED),
    "done-kept": Deed(_settled("done"), CLAIMED, SPOOL, {"keep_done_s": LONG_S}),
    "retry": Deed(_settled("retry", LONG_S), CLAIMED),
    "retry-last": Deed(_settled("retry", LONG_S), CLAIMED, more={"max_attempts": 1}),
    "release": Deed(_settled("release"), CLAIMED),
    "reject": Deed(_settled("reject", "no use"), CLAIMED),
    "forward": Deed(_forward, (*CLAIMED, _open_next)),
    "forward-other": Deed(_forward_other, (*CLAIMED, _open_next)),
    "requeue": Deed(_requeue, (*CLAIMED, _reject_it)),
    "due": Deed(_keep, (*CLAIMED, _let_it_be_due)),
    "died": Deed(_released("died"), (Stage.open, _put, Stage.lose_worker)),
    "timeout": Deed(_released("timeout"), (Stage.open, _put, Stage.lose_worker), more=LATER),
    "crash-limit": Deed(_released("died"), (Stage.open, _put, Stage.lose_worker), more={"crash_limit": 1}),
    "beat": Deed(_beat, (Stage.open,), SPOOL),
    "touch": Deed(_touch, (*CLAIMED, _let_half_of_the_claim_pass), ("ddmq",)),
    "expired": Deed(_keep, (Stage.open, _put, _let_the_claim_expire), FOREIGNERS),
    "leave": Deed(_leave, CLAIMED, after=lambda _: None),
    "naive-claim": Deed(_naive_claim, (_naive_open,), ("naive",), after=lambda _: None),
}


# ---- actors


def act(case: Case, system: Watched) -> Ended:
    """Do the deed of *case*, then leave."""
    ended, deed = Ended(case.number), DEEDS[case.deed]
    try:
        os.makedirs(case.place)
        stage = Stage(case.protocol, case.place, system, **deed.more)
        for prepare in deed.prepare:
            prepare(stage)
        system.is_armed = True
        try:
            ended.outcome = str(deed.act(stage))
        except OrchestratorError as error:
            ended.outcome = type(error).__name__ + (" (unknown)" if getattr(error, "is_unknown", False) else "")
        system.is_armed = False
        ended.told, ended.calls = system.told, system.calls
        deed.after(stage)
    except Exception:  # noqa: BLE001 - the test says that there must be none
        ended.trace = traceback.format_exc()[-2000:]
        ended.told = system.told
    return ended


def mount(case: Case) -> None:
    """
    Make the mount of *case*, for this process alone.

    A mount that shares nothing with the others: a client renames one file at a time from directory to directory in
    each filesystem that it has mounted, and the others would wait for the first one's reply.
    """
    place, (source, options) = os.path.dirname(case.place), case.mount.split(" ")
    os.makedirs(place, exist_ok=True)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS) or libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None):
        raise OSError(ctypes.get_errno(), "no namespace of one's own")
    if libc.mount(source.encode(), place.encode(), b"nfs", 0, options.encode()):
        raise OSError(ctypes.get_errno(), case.mount)


def perform(case: Case, say: Callable[[object], None], go: int) -> Ended:
    """Do the deed of *case*, stopped before its call until *go* is closed."""

    def lose(name: str, real: Callable[..., None], arguments: tuple[Any, ...]) -> str:
        for path in _paths(arguments):  # so that no question precedes the call: what is there, and who may
            for one in (path, os.path.dirname(path)):
                os.access(one, os.W_OK, follow_symlinks=False)
        say(asdict(Call(case.number, name, _paths(arguments))))
        os.read(go, 1)
        real(*arguments)
        return "ok"

    if case.mount:
        mount(case)
    return act(case, Watched(case.nth, lose))


def emulate(case: Case) -> Ended:
    """Do the deed of *case* with its call made twice."""
    system = Watched(case.nth, lambda *call: make_twice(system, *call))
    return act(case, system)


def play(cases: list[Case], given: TextIO) -> None:
    """All at once, each in a process; see the module."""
    heard, said = os.pipe()
    go, held = os.pipe()

    def say(what: object) -> None:
        os.write(said, json.dumps(what).encode() + b"\n")  # short enough to be whole

    for case in cases:
        if os.fork() == 0:
            os.close(held)
            say(asdict(perform(case, say, go)))
            os._exit(0)
    os.close(said)
    left, stopped = len(cases), 0
    with os.fdopen(heard) as lines:
        for line in lines:
            print(line, end="", flush=True)  # noqa: T201 - the answer
            is_end = "told" in json.loads(line)
            left -= is_end
            stopped += not is_end
            if held >= 0 and stopped == left:
                print(json.dumps("all"), flush=True)  # noqa: T201
                given.readline()
                os.close(held)
                held = -1


def emulate_all(cases: list[Case]) -> None:
    """Some at a time, each in a process of its own; see the module."""
    for start in range(0, len(cases), AT_ONCE):
        children = []
        for case in cases[start : start + AT_ONCE]:
            pid = os.fork()
            if pid == 0:
                os.write(1, json.dumps(asdict(emulate(case))).encode() + b"\n")
                os._exit(0)
            children.append(pid)
        for pid in children:
            os.waitpid(pid, 0)


# ---- who looks at it


def is_made(call: Call) -> bool:
    """Whether *call* has been made, by names as they are seen here."""
    first, last = call.paths[0], call.paths[-1]
    match call.name:
        case "rename":
            return os.path.lexists(last) and not os.path.lexists(first)
        case "link" | "mkdir":
            return os.path.lexists(last)
    return not os.path.lexists(first)


def state_of(place: str) -> list[str]:
    """All files and empty directories in *place*, without what is random in their names; which hold a message."""
    found = []
    for base, directories, files in os.walk(place):
        if not (directories or files) and not INTERMEDIATE.match(base):
            found.append(f"{base}/")
        for file in files:
            path = Path(base, file)
            is_message = stat.S_ISREG(path.lstat().st_mode) and BODY in path.read_bytes()
            found.append(f"{path}{' = message' if is_message else ''}")
    return sorted(RANDOM.sub("#", path.removeprefix(place)) for path in found)


def handled_in(case: Case) -> int:
    """How many messages another host finds in *case*'s queue, waiting or locked by nobody that lives, and finishes."""
    if case.protocol == "naive":
        return len(os.listdir(f"{case.place}/in"))
    count = 0
    stage = Stage(case.protocol, case.place, Moved(), "two", create=False)
    stage.open()
    _let_locks_be_old(stage)
    persistently(stage.keeper.keep)
    while (claim := stage.queue.claim()) is not None:
        persistently(lambda one=claim: stage.queue.done(one))  # type: ignore[misc]
        count += 1
    stage.leave()
    return count


def survey(cases: list[Case]) -> Iterator[dict[str, object]]:
    """What lies in each place, and what another host handled there after that."""
    for case in cases:
        state = state_of(case.place)
        try:
            handled = handled_in(case)
        except Exception:  # noqa: BLE001 - the test says that there must be none
            yield {"number": case.number, "state": state, "handled": traceback.format_exc()[-2000:]}
        else:
            yield {"number": case.number, "state": state, "handled": handled}


def main(errand: str, file: str) -> None:
    """Run one of them."""
    given = json.loads(Path(file).read_text())
    if errand == "made":
        print(json.dumps([is_made(Call(**one)) for one in given]))  # noqa: T201 - the answer
        return
    cases = [Case(**one) for one in given]
    if errand == "survey":
        for line in survey(cases):
            print(json.dumps(line))  # noqa: T201
    elif errand == "emulate":
        emulate_all(cases)
    else:
        play(cases, sys.stdin)


if __name__ == "__main__":
    main(*sys.argv[1:])
