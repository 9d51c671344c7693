"""
ddmq - a pool on a queue of the Dead Drop Messaging Queue, beside its own programs

    ddmq:ROOT/QUEUE?state_dir=DIRECTORY

A claim is the format's own: the message's file renamed into work/, with the second in front
at which the claim expires. Originals see it, and may work on the same queue at the same
time. While a message is handled its keeper lets the claim last longer, which is a rename
too; who has let a claim pass finds its name gone. What the format has no place for is kept
beside the queue (NAME.pool/): a failed message waits there for its time, comes back under
its own name and priority, and ends there after too many attempts.

The lowest priority is served first. A handler is given the field *message*: text as its
bytes, anything else as JSON.

Raises: QueueUnavailable for disk and permission errors, ClaimLost, NotSupported.
Limits: at least once; an original that cleans removes what has expired and does not ask to be requeued.
Long because: claim, settle and what another may do between their calls are one story.
See also: DDMQ.md, workers.ddmq (the format), foreign, ddmq_hand, ddmq_keep (the keeper's side).
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from workers.board import Q, W
from workers.ddmq.broker import Broker
from workers.ddmq.claims import is_young
from workers.ddmq.errors import CorruptError, DdmqError, SettingsError
from workers.ddmq.files import NO_SUCH_CALL, QueueFiles
from workers.ddmq.message import Message
from workers.ddmq.names import PRIORITY_MAX, check_new_queue, check_queue, claim_name
from workers.errors import ClaimLost, InputGone, NotSupported, QueueMissing, QueueRefused
from workers.message import Body, Claim
from workers.queues import ddmq_look, names
from workers.queues.base import Capability, Consumer, Depth, Listed, Settings, Shown, State
from workers.queues.beside import Beside
from workers.queues.ddmq_content import Content, content_of
from workers.queues.ddmq_hand import HALF, HAND_SIZE, Hand, claim_line, hand_in
from workers.queues.ddmq_keep import DdmqKeeper
from workers.queues.ddmq_look import Waiting, name_of, time_of
from workers.queues.foreign import ForeignQueue
from workers.queues.locking import HeldClaim
from workers.system import SYSTEM, System, is_listed, is_there
from workers.trust import Place, guarded, places_of_ddmq

log = logging.getLogger(__name__)

CLAIM_S_MIN, CLAIM_S_MAX = 10, 10 * 365 * 86400  # a keeper touches once a second, a number has room for so much
AGAIN_S = 0.05  # so long a worker that scans for itself passes it over
HALF_TRIES, HALF_TRY_S = 4, 0.001  # an original needs less than that from open to close
STALE_AFTER_S = 600.0
NO_FILE = "this is no regular file (a directory, fifo, socket, symbolic link or device)"
# What opening a file fails with for as long as it is as it is.
UNREADABLE = {errno.ELOOP: NO_FILE, errno.ENXIO: NO_FILE, errno.EINVAL: NO_FILE, errno.EACCES: "", errno.EPERM: ""}
COUNTED = int(Q.COUNTED)
NOTHING = b"\n".rjust(HALF)  # in the worker's half of a record


@dataclass(slots=True)
class TimedClaim(HeldClaim):
    """
    A claim that expires.

    Attributes:
        waiting: under which name it waited; expiry: unix seconds that its file in work/ was given when it was claimed;
            fraction: what was drawn behind them, see QueueFiles.fraction.
        attempts_max: the message's own limit, 0 for none.
    """

    waiting: str = ""
    expiry: int = 0
    fraction: int = 0
    attempts_max: int = 0

    @property
    def work_name(self) -> str:
        """What its file was called when it was claimed."""
        return claim_name(self.expiry, self.waiting, self.fraction)


class Ddmq(ForeignQueue):
    """One queue of one root. See Queue for the verbs."""

    protocol = "ddmq"
    ages_by = "message_timeout in ddmq.yaml"
    capabilities = frozenset(
        {
            Capability.DURABLE,
            Capability.DEFER,
            Capability.ERRORS,
            Capability.ORDER,
            Capability.PAUSE,
            Capability.CLAIM,
            Capability.PRIORITY,
        }
    )

    def __init__(
        self, url: str, root: str, queue: str, settings: Settings | None = None, *, system: System, host: str
    ) -> None:
        place, self._root = os.path.join(root, queue), root
        state_dir = settings.state_dir if settings else None
        system = guarded(system, *places_of_ddmq(root, queue), *Beside(place, state_dir, system).places())
        super().__init__(url, place, settings, HAND_SIZE, system=system, host=host)
        self.files = QueueFiles(root, queue, system)
        self.stale_after_s = self.settings.stale_after_s or STALE_AFTER_S
        self._unready: dict[str, int] = {}  # what was half written, and when it may be looked at again
        self._named = False  # whether wrong settings were spoken of
        with self._unavailable("open the queue", self.place):
            try:
                self._open(root, queue)
            except SettingsError as error:
                raise QueueRefused(str(error)) from error

    def places_of_format(self) -> list[Place]:
        """See ForeignQueue.places_of_format."""
        return places_of_ddmq(self._root, self.files.queue)

    def _open(self, root: str, queue: str) -> None:
        system, is_made = self.system, self.settings.create
        try:
            (check_new_queue if is_made and not self.files.is_queue() else check_queue)(queue)
        except ValueError as error:
            raise QueueRefused(f"{self.url}: {error}") from error
        if is_made and not system.is_directory(os.path.dirname(root), is_followed=True):
            raise QueueMissing(f"cannot make the root {root}: its parent directory does not exist")
        try:
            self._broker = Broker(root, create=is_made, system=system)
        except SettingsError:
            raise
        except DdmqError as error:
            what = "is no root of ddmq: it has no ddmq.yaml" if error.error == "uninitiated" else "is not there"
            raise QueueMissing(f"the root {root} {what} (orchestrator put makes one)") from error
        if not self.files.is_queue():
            if not is_made:
                if self.system.is_directory(self.place, is_followed=True):
                    raise QueueRefused(f"{self.place} is no queue of ddmq: it lacks ddmq.yaml or work/")
                raise QueueMissing(f"there is no queue {queue} in {root} (orchestrator put makes one)")
            try:
                self._broker.create_queue(queue)
            except FileExistsError as error:
                if not self.files.is_queue():  # else another was first
                    raise QueueRefused(
                        f"{self.place} is no queue and not empty; name a new or an empty directory"
                    ) from error
        self.setting("priority")
        self.open_place()

    def setting(self, key: str) -> int:
        """What counts now for *key*, a whole number. Raises SettingsError when the file was wrong from the start."""
        try:
            found = self._broker.get_settings(self.files.queue)[key]
        except SettingsError as error:
            if self.files.queue not in self._broker.queue_settings:
                raise
            if not self._named:  # it was changed since: what counted last goes on to
                self._named = True
                log.error("%s; what was set before is used", error)
            found = self._broker.queue_settings[self.files.queue][key]
        assert isinstance(found, int)  # noqa: S101 - checked when they are read
        return found

    def lasts_s(self, own_s: float) -> int:
        """For how many seconds a message that says *own_s* is claimed at a time; 0: it says nothing."""
        return math.ceil(min(max(own_s or self.setting("message_timeout"), CLAIM_S_MIN), CLAIM_S_MAX))

    # ---- put

    def put(
        self,
        body: Body,
        name: str | None = None,
        *,
        priority: int | None = None,
        delay: float = 0,
        durable: bool | None = None,
    ) -> str:
        """See Queue.put; the name is the one that the format gives, without the priority."""
        if name is not None:
            self.needs(Capability.NAME, "a name of your own")
        if delay > 0:
            self.needs(Capability.DELAY, "delay")
        if priority is not None and not 0 <= priority <= PRIORITY_MAX:
            raise NotSupported(
                f"priority {priority} is not possible: a ddmq queue has 0, which is served first, to {PRIORITY_MAX}"
            )
        with self._unavailable("put a message into", self.place):
            text = body if isinstance(body, str) else self.read_body(body).decode("utf-8", "surrogateescape")
            new = Message(
                message=text,
                queue=self.files.queue,
                priority=self.setting("priority") if priority is None else priority,
                requeue=False,
                requeue_counter=0,
                queue_number=self._broker.get_queue_number(),
                id=self.system.random_bytes(16).hex(),
            )
            new.filename = f"{new.priority}.{new.queue_number}.ddmq{new.id}"
            self.files.publish(new.filename, new.msg2json().encode(), durable=durable is not False)
            return f"{new.queue_number}.ddmq{new.id}"

    # ---- claim

    def claim_named(self, name: str) -> TimedClaim | None:
        """See Locking.claim_named: read it, say in our record that we take it, take it."""
        called = name_of(name)
        if called is None:
            return None
        claimed_ns = self.system.boottime_ns()
        try:
            content = self._content(f"{self.place}/{name}")
        except FileNotFoundError:
            self._slot.words[W.CONFLICTS] += 1
            return None
        if content is None:
            self._pass_over(name)
            return None
        fd = -1 if content.body is None else self.system.memory_file(content.body)
        try:
            claim = self._taken(name, called, content, fd, claimed_ns)
        except BaseException:
            self._close_fd(fd)
            raise
        if claim is None:
            self._close_fd(fd)
            self._slot.words[W.CONFLICTS] += 1
        return claim

    def _taken(self, waiting: str, name: str, content: Content, fd: int, claimed_ns: int) -> TimedClaim | None:
        counts = None
        if self._words[COUNTED] or self.network is not None:
            counts = self.beside.count_of(name)
        now_s = self.files.now_s()
        lasts_s = self.lasts_s(content.lasts_s)
        expiry, fraction = int(now_s) + lasts_s, self.files.fraction()
        # ORDER: the record, then the claim. A worker killed between the two holds nothing; the other way round its
        # message would be nobody's until it expires. See test_a_worker_killed_at_any_call_of_a_claim_loses_nothing.
        self.system.pwrite(self._hand, claim_line(waiting, expiry, lasts_s, fraction), 0)
        # RACE: a keeper that waited that second out takes for its dead worker's what no record names by then.
        # See test_no_schedule_loses_repeats_or_strands_a_message.
        while expiry != (again := int(self.files.now_s()) + lasts_s):
            expiry = again
            self.system.pwrite(self._hand, claim_line(waiting, expiry, lasts_s, fraction), 0)
        work_name = self.files.take(waiting, expiry, fraction)
        if work_name is None:
            # RACE: who was first may have claimed it to the same second, and then our record speaks of his claim.
            # See test_who_lost_a_race_in_the_same_second_leaves_no_record_of_it.
            self._clear_hand()
            return None
        path = f"{self.files.work}/{work_name}"
        if fd >= 0:  # the name in work/ is another after a touch, this one stays
            path = f"/proc/{self.system.getpid()}/fd/{fd}"
        enqueued_s = time_of(name)
        claim = TimedClaim(name, path, 1, 0, content.written_s if enqueued_s is None else enqueued_s, claimed_ns)
        claim.fd, claim.size, claim.claimed_at, claim.trouble = fd, len(content.body or b""), now_s, content.trouble
        claim.waiting, claim.expiry, claim.fraction = waiting, expiry, fraction
        claim.attempts_max = content.attempts_max
        # Never more than can be put: an original may have written any number, and a bridge hands it on.
        claim.priority = min(int(waiting.partition(".")[0]), PRIORITY_MAX)
        if counts is not None:
            claim.attempt, claim.crashes = counts.attempts + 1, counts.crashes
        return claim

    def _content(self, path: str) -> Content | None:
        """What is in the waiting file *path*; None while it is half written. Raises FileNotFoundError, OSError."""
        for tries in range(1, HALF_TRIES + 1):
            try:
                data, found = self.files.read(path)
            except OSError as error:
                if error.errno not in UNREADABLE:
                    raise
                return Content(UNREADABLE[error.errno] or f"its data cannot be read: {error.strerror}")
            except CorruptError as error:
                return Content(f"it {error.message}")
            content = content_of(data, found.st_mtime)
            if content.trouble is None or not is_young(self.files, found):
                return content
            if self.files.now_s() - found.st_ctime < 1 and tries < HALF_TRIES:
                self.system.sleep(HALF_TRY_S)
        return None

    def _pass_over(self, name: str) -> None:
        now_ns = self.system.boottime_ns()
        for over in [one for one, until_ns in self._unready.items() if until_ns <= now_ns]:
            del self._unready[over]
        self._unready[name] = now_ns + int(AGAIN_S * 1e9)

    def _close_fd(self, fd: int) -> None:
        if fd >= 0:
            with contextlib.suppress(OSError):  # it was for reading
                self.system.close(fd)

    def hand_of(self, owner: str) -> Hand | None:
        """What held/OWNER says that it has in hand. Raises OSError."""
        hand = hand_in(self.beside.record_of(owner)[0])
        return hand if hand is not None and name_of(hand.waiting) is not None else None

    def found_of(self, hand: Hand, owner: str) -> str | None:
        """
        What the claim in *hand*, of *owner*, is called in work/; None when it is gone, or another's. Raises OSError.

        RACE: *owner* may have been killed before it claimed, and another have claimed to the same second. His record
        was there before his claim, so it is there when the file is. See
        test_a_worker_killed_before_its_claim_takes_no_claim_of_another_with_it.
        """
        there = is_there if self.network is None else is_listed
        found = next((name for name in hand.work_names() if there(self.system, f"{self.files.work}/{name}")), None)
        if found is None:
            return None
        for other in self.system.listdir(self.beside.held):
            if other != owner and (theirs := self.hand_of(other)) is not None and found in theirs.work_names():
                return None
        return found

    # ---- settle

    def done(self, claim: Claim) -> None:
        """See Queue.done: the file is removed, which only one can do."""
        held = timed(claim)
        self.close_claim(claim)
        if held.taken_out:
            raise ClaimLost(f"{names.shown(claim.name)} was settled before")
        try:
            self._act_on(held, self.files.remove)
            held.taken_out = held.waiting
            if claim.attempt > 1 or claim.crashes:
                self.beside.forget_count(claim.name)
        except OSError as error:
            held.is_tried = True
            raise self.beside.unavailable("finish", self._path_of(held), error) from error

    def release(self, claim: Claim) -> None:
        """See Queue.release: it waits again, as it was."""
        held = timed(claim)
        with self._settling("give back", claim):
            if not held.taken_out:
                self._act_on(held, self.let_wait)
                held.taken_out = held.waiting
            self._clear_hand()

    def let_wait(self, work_name: str) -> bool:
        """Let the claim *work_name* wait again, its content as it is; False when it is gone. Raises OSError."""
        waiting = ddmq_look.waiting_of(work_name)
        try:
            return self.files.put_back(work_name, waiting)
        except FileExistsError:  # a copy of it that somebody made: both are handled
            return self.files.put_back(work_name, self._another(waiting))

    def _another(self, waiting: str) -> str:
        """A name like *waiting* that nobody else has."""
        return f"{waiting.partition('.ddmq')[0]}.ddmq{self.system.random_bytes(16).hex()}"

    def kept_as(self, claim: HeldClaim) -> str:
        """See ForeignQueue.kept_as: with its priority."""
        return timed(claim).waiting

    def name_of(self, file: str) -> str | None:
        """See ForeignQueue.name_of."""
        return name_of(file)

    def attempts_max(self, claim: HeldClaim) -> int:
        """See ForeignQueue.attempts_max: a message's own requeue_limit makes it less."""
        own = timed(claim).attempts_max
        return min(own or self.settings.max_attempts, self.settings.max_attempts)

    def take_out(self, claim: HeldClaim, target: str) -> None:
        """See ForeignQueue.take_out."""
        self._act_on(timed(claim), functools.partial(self.move_out, target=target))

    def move_out(self, work_name: str, target: str) -> bool:
        """Move the claim *work_name* to the path *target*, that nobody else can make; False when it is gone."""
        return self.beside.move(f"{self.files.work}/{work_name}", *os.path.split(target))

    def put_in(self, source: str, file: str) -> str | None:
        """See ForeignQueue.put_in."""
        waiting = ddmq_look.kept_as(file)
        try:
            is_moved = self._move_in(source, waiting)
        except FileExistsError:
            waiting = self._another(waiting)
            is_moved = self._move_in(source, waiting)
        return name_of(waiting) if is_moved else None

    def _move_in(self, source: str, waiting: str) -> bool:
        """Rename *source* into the queue, over nothing; False when it is gone. No link: two names are two messages."""
        target = f"{self.place}/{waiting}"
        try:
            self.system.rename_noreplace(source, target)
        except FileNotFoundError as error:
            return self.beside.has_moved(error, source, self.place, waiting)
        except OSError as error:
            if error.errno not in NO_SUCH_CALL and not (self.network and error.errno == errno.EEXIST):
                raise
            # By a listing: this host may have seen it wait there, and know nothing yet of who took it; an EEXIST of NFS
            # is out of its cache, too. See test_a_message_comes_back_under_its_name_where_this_host_has_seen_it_before.
            if self.beside.is_there(target):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target) from None
            return self.beside.move(source, self.place, waiting)
        return True

    def _act_on(self, claim: TimedClaim, act: Callable[[str], bool]) -> None:
        """
        Do *act* on the claim's file, by the name that it has by now. Raises ClaimLost, InputGone, OSError.

        RACE: its keeper touches it. It writes the names into our record before it renames, so who finds none of them
        reads again until the record stays the same. See test_a_settle_finds_its_claim_at_every_moment_of_a_touch.
        """
        tried: tuple[str, ...] = ()
        work_names: tuple[str, ...] = (claim.work_name,)
        while work_names != tried:
            if any(act(work_name) for work_name in work_names):
                return
            tried, work_names = work_names, self._work_names(claim)
        self._gone(claim, int(tried[-1].partition(".")[0]))

    def _work_names(self, claim: TimedClaim) -> tuple[str, ...]:
        hand = self.hand_of(self._owner) if self._owner else None
        if hand is None or (hand.waiting, hand.expiry, hand.fraction) != (claim.waiting, claim.expiry, claim.fraction):
            return (claim.work_name,)
        return hand.work_names()

    def _gone(self, claim: TimedClaim, expiry: int) -> None:
        """
        Say why the claim is not there. Raises InputGone, ClaimLost; nothing when a try before this has removed it.

        Before it expires no other may have taken it.
        """
        self.check_same()  # a lost mount answers ENOENT to everything
        self._clear_hand()
        shown = names.shown(claim.name)
        if self.files.now_s() >= expiry:
            raise ClaimLost(f"{shown} was given to another while it was handled here: its claim had expired")
        if not claim.is_tried:
            raise InputGone(f"{shown} was removed while it was handled here, by its handler or by a purge of the queue")

    def _path_of(self, claim: TimedClaim) -> str:
        return f"{self.files.work}/{claim.work_name}"

    def _give_back(self, owner: str, fd: int) -> None:
        """See ForeignQueue._give_back."""
        hand = self.hand_of(owner)  # our own
        if hand is None:
            return
        found = self.found_of(hand, owner)
        if found is not None:
            # By its other name when it is touched just then.
            any(self.let_wait(work_name) for work_name in dict.fromkeys((found, *hand.work_names())))
        self.system.pwrite(fd, NOTHING, 0)

    def _clear_hand(self) -> None:
        self.system.pwrite(self._hand, NOTHING, 0)  # the other half is the keeper's

    # ---- the keeper's and the operator's verbs

    def keeper(self, consumer: Consumer) -> DdmqKeeper:
        """See Claimable.keeper."""
        self._keeper = found = DdmqKeeper(self, consumer)
        return found

    def source(self) -> Waiting:
        """See Claimable.source."""
        return Waiting(self.files, self._unready)

    def waiting_count_max(self) -> int:
        """See Queue.waiting_count_max: whatever is there, work/ with it."""
        with self._unavailable("count what waits in", self.place):
            return len(self.system.listdir(self.place))

    def depth(self) -> Depth:
        """See Queue.depth."""
        with self._unavailable("measure", self.place):
            return ddmq_look.depth(self.files, self.beside)

    def list(self, state: State | None = None) -> Iterator[Listed]:
        """See Queue.list."""
        with self._unavailable("list", self.place):
            yield from ddmq_look.listed(self.files, self.beside, state)

    def show(self, name: str) -> Sequence[Shown]:
        """See Queue.show."""
        with self._unavailable("show", self.place):
            return ddmq_look.show(self.files, self.beside, name)


def timed(claim: Claim) -> TimedClaim:
    """*claim* as Ddmq.claim() made it."""
    assert isinstance(claim, TimedClaim)  # noqa: S101 - of this queue's claim()
    return claim


def open_ddmq(rest: str, settings: Settings, *, system: System, host: str) -> Ddmq:
    """The queue that ddmq:REST names: ROOT/QUEUE, or ROOT/QUEUE?state_dir=DIRECTORY. Raises QueueRefused and others."""
    root, queue, url, settings = _parsed(rest, settings)
    return Ddmq(url, root, queue, settings, system=system, host=host)


def places_of_url(rest: str, settings: Settings) -> list[Place]:
    """On what the queue that ddmq:REST names rests, or will. Raises QueueRefused; opens nothing."""
    root, queue, _, settings = _parsed(rest, settings)
    beside = Beside(os.path.join(root, queue), settings.state_dir, SYSTEM)
    return [*places_of_ddmq(root, queue), *beside.places()]


def _parsed(rest: str, settings: Settings) -> tuple[str, str, str, Settings]:
    """Root, queue, the whole URL, and the settings with what the URL says."""
    path, _, query = rest.partition("?")
    root, queue = os.path.split(os.path.abspath(path))
    for pair in filter(None, query.split("&")):
        key, _, value = pair.partition("=")
        if key != "state_dir" or not value:
            raise QueueRefused(f"ddmq:{rest}: there is no option {key!r}; there is state_dir=DIRECTORY")
        settings = replace(settings, state_dir=value)
    url = f"ddmq:{os.path.join(root, queue)}{'?' + query if query else ''}"
    if "/" not in path.strip("/") and not path.startswith("/"):
        raise QueueRefused(f"ddmq:{rest} names no queue in a root: write ddmq:ROOT/QUEUE")
    # What lies beside the queue must be the same by every name that the root has.
    return os.path.realpath(root), queue, url, settings
