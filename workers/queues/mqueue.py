"""
mqueue - a pool on a POSIX message queue of the kernel

    mqueue:/NAME
    mqueue:/NAME?state_dir=DIRECTORY

The kernel hands a message out once and forgets it. So a worker has it handed into memory that
outlives the worker (receive), and there it stays until it is settled: done clears the receipt
there, in one store. What failed waits in a file of the state directory, and its keeper sends it
again when it is due. A worker waits at the queue's own descriptor, and a message wakes one.

A message has no name in the kernel: it is called PRIORITY.HASH here, of its body, the same at
each attempt. Messages that are alike share that name, and the counts that are kept under it.

Raises: QueueUnavailable, QueueMissing, QueueRefused, QueueFull, NotSupported, ClaimLost.
Limits: at least once, and for as long as the machine runs: what waits is gone with it, but what failed is
kept on disk. Nobody can look at what waits, only count it. One machine, one user.
Long because: claim, settle and what a kill leaves between their calls are one story.
See also: MQUEUE.md, receive (the memory), mqueue_state (the disk), mqueue_keep (the keeper's side), workers.posix_mq.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from workers.board import Q, WorkerText
from workers.errors import (
    ClaimLost,
    KeeperGone,
    NotSupported,
    QueueFull,
    QueueMissing,
    QueueRefused,
    QueueUnavailable,
)
from workers.message import Body, Claim
from workers.queues import mqueue_look, mqueue_state, names
from workers.queues.base import (
    Capability,
    Consumer,
    Depth,
    Listed,
    Queue,
    Settings,
    Shown,
    Source,
    State,
)
from workers.queues.beside import Counts
from workers.queues.directory import OnDisk, Worded
from workers.queues.meta import Facts, facts_of_claim, write_meta
from workers.queues.mqueue_keep import MqueueKeeper
from workers.queues.mqueue_look import PRIORITY_MAX, name_of, priority_of
from workers.queues.mqueue_state import FULL, MqueueState
from workers.queues.receive import Receive, ReceivePlace
from workers.system import SYSTEM, System
from workers.trust import Place

if TYPE_CHECKING:
    from workers.posix_mq import Access, Mq

ACCESSES: tuple[Access, ...] = ("rw", "w", "r")  # as much as is permitted: put needs to write only, depth nothing

log = logging.getLogger(__name__)

SHARED = "/dev/shm"  # noqa: S108 - memory that outlives a process; a directory of our own is made there
JUDGED_WITHIN_S, LOOK_S = 1.0, 0.005  # so long a successor waits for the keeper to say how its predecessor died
PAUSED, BEAT_NS, HALF_TIMEOUT_NS = int(Q.PAUSED), int(Q.BEAT_NS), int(Q.HALF_TIMEOUT_NS)


def open_mqueue(rest: str, settings: Settings, *, system: System, host: str) -> Mqueue:
    """Open ``mqueue:REST``. Raises QueueMissing, QueueRefused, QueueUnavailable, NotSupported."""
    return Mqueue(rest, settings, system=system, host=host)


class Mqueue(OnDisk):
    """One queue of the kernel. See Queue for the verbs."""

    protocol = "mqueue"
    capabilities = frozenset(
        {Capability.DEFER, Capability.ERRORS, Capability.PAUSE, Capability.PRIORITY, Capability.CLAIM}
    )
    network = None

    def __init__(
        self,
        rest: str,
        settings: Settings | None = None,
        *,
        system: System = SYSTEM,
        host: str = "localhost",
        shared: str = SHARED,
    ) -> None:
        """
        Open ``mqueue:REST``.

        *shared*: the directory of a filesystem in memory; where there is none, files in the state directory do.
        """
        self.url = f"mqueue:{rest}"
        self.settings = settings or Settings()
        try:
            self._name, state_dir = mqueue_state.split_options(rest)
        except ValueError as error:
            raise QueueRefused(f"{self.url}: {error}") from error
        if self.settings.keep_done_s is not None:
            self.needs(Capability.KEEP_DONE, "keep_done")
        for option in ("lease_interval", "lease_timeout"):
            if getattr(self.settings, f"{option}_s") is not None:
                raise NotSupported(f"{option} is not possible: an mqueue queue has no leases")
        self.system = system
        self.host = names.check_host(host)
        self._is_pools = False  # a pool receives, and sends again
        self._mq = self._opened(is_made=self.settings.create)
        self.wait_fd = self._mq.fd
        self.identity = f"/proc/self/fd/{self._mq.fd}"
        self.kept_in = self.beside = MqueueState(self._name, state_dir or self.settings.state_dir, system, host)
        self.place = self.beside.path
        self.receive_place = self._receive_place(shared)
        self._consumer: Consumer | None = None
        self._owner = ""
        self._receive: Receive | None = None
        self._in_hand: Claim | None = None
        self._uncounted: set[str] = set()  # messages whose counts a full disk lost, as was said
        self._sent: set[str] = set()  # files that were sent and could not be removed yet

    # ---- the kernel's queue

    def _opened(self, *, is_made: bool) -> Mq:
        try:
            for access in ACCESSES:
                with contextlib.suppress(PermissionError):
                    opened = self.system.mq_open(self._name, create=is_made, access=access)
                    self._access = access
                    return opened
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except ValueError as error:
            raise QueueRefused(f"{self.url}: {error}") from error
        except FileNotFoundError as error:
            raise QueueMissing(
                f"there is no message queue {self._name}: make it with `orchestrator mqueue --create {self._name}`"
            ) from error
        except OSError as error:
            raise QueueUnavailable.at("open", self.url, error) from error

    def kernel_queue(self) -> Mq:
        """The queue that has the name now: who goes on with one that was removed puts where nobody looks."""
        if self.system.fstat(self._mq.fd).st_nlink == 0:
            try:
                fresh = self._opened(is_made=False)
            except QueueMissing as error:
                raise QueueUnavailable(f"the queue was removed: {error}", errno=errno.ENOENT) from error
            self._mq.close()
            # Who waits at the old number is woken no more, and looks once a second, until it starts again.
            self._mq, self.wait_fd, self.identity = fresh, fresh.fd, f"/proc/self/fd/{fresh.fd}"
        if self._is_pools and (refused := self.refused()):
            raise QueueUnavailable(refused, errno=errno.EACCES)
        return self._mq

    def places(self) -> list[Place]:
        """See Claimable.places."""
        return self.beside.places()

    def refused(self) -> str:
        """Why no pool can use the queue with what is permitted to us, and what to do; "" where it can."""
        if self._access == "rw":
            return ""
        found = self.system.fstat(self._mq.fd)
        return (
            f"{self.url} may only be {'written' if self._access == 'w' else 'read'} by uid {self.system.geteuid()} "
            f"(it is uid {found.st_uid}'s, mode {found.st_mode & 0o777:03o}), and a pool must do both: run the pool as "
            "its owner, or make it anew with another --mode (orchestrator mqueue --unlink, then --create)"
        )

    def send(self, body: bytes, priority: int, until_s: float = 0.0) -> bool:
        """Send it; False when the queue is full, until *until_s* (unix time). Raises OSError, QueueUnavailable."""
        queue = self.kernel_queue()
        if self._access == "r":  # the kernel would say that the descriptor is bad
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), self._name)
        try:
            self.system.mq_send(queue, body, priority)
        except BlockingIOError:
            if self.system.wall_ns() / 1e9 >= until_s:
                return False
        else:
            return True
        try:
            self.system.mq_send_within(queue, body, priority, until_s)
        except TimeoutError:
            return False
        return True

    def _receive_place(self, shared: str) -> ReceivePlace:
        if self.system.is_directory(shared, is_followed=True):
            base = os.path.join(shared, f"orchestrator-{self.system.geteuid()}")
            return ReceivePlace(os.path.join(base, "mqueue", self._name[1:]), 3, self.system)
        return ReceivePlace(os.path.join(self.beside.path, "receive"), 1, self.system)

    def make_places(self) -> None:
        """See OnDisk.make_places."""
        self.beside.make()
        self.receive_place.make()

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
        """See Queue.put; *priority* 0 to 32767, the highest is served first. Raises QueueFull, never waits."""
        if name is not None:
            self.needs(Capability.NAME, "a name of your own")
        if delay > 0:
            self.needs(Capability.DELAY, "delay")
        if durable:
            self.needs(Capability.DURABLE, "durable")
        rank = 0 if priority is None else priority
        if not 0 <= rank <= PRIORITY_MAX:
            raise NotSupported(f"priority {rank} is not possible: an mqueue queue has 0 to {PRIORITY_MAX}")
        with self._unavailable("put a message into", self.url):
            raw = self.read_body(body)
            try:
                if not self.send(raw, rank):
                    self._refuse_full()
            except OSError as error:
                if error.errno != errno.EMSGSIZE:
                    raise
                raise NotSupported(
                    f"a message of {len(raw)} bytes is too long for {self.url}: an mqueue queue takes as many as "
                    f"it was made for, here {self._mq.max_size}"
                ) from error
        return name_of(raw, rank)

    def _refuse_full(self) -> None:
        found = self.system.mq_attributes(self._mq)
        raise QueueFull(
            f"{self.url} is full: {found.waiting} messages wait and it was made for {found.max_messages}; "
            "a deeper one must be made anew (--max-messages; sysctl fs.mqueue.msg_max says how deep)"
        )

    # ---- claim

    def attach(self, consumer: Consumer) -> None:
        """See Queue.attach. The receive file comes with the first claim."""
        self._consumer = consumer
        self._is_pools = True
        self._words = consumer.board.queues[consumer.queue_slot].words
        self._slot = consumer.board.worker(consumer.worker_slot)

    def claim(self) -> Claim | None:
        """See Queue.claim: what lies in our file from before, else the next message of the kernel."""
        words = self._words
        if words[PAUSED] or self._in_hand is not None:
            return None
        is_late = self.system.boottime_ns() - words[BEAT_NS] >= words[HALF_TIMEOUT_NS]
        if is_late and self.keeper_is_gone is not None and self.keeper_is_gone():
            raise KeeperGone(f"the keeper of {self.url} has died: start this worker again")
        try:
            receive = self._receive
            # A predecessor's file may be of the queue that was before, and a put finds the new one too.
            if receive is not None and not receive.has_message and receive.size < self._mq.max_size:
                self._leave(receive)
                receive = None
            if receive is None:
                receive = self._receive = self._take()
            if not receive.has_message and not receive.receive(self._mq):
                if self.kernel_queue().max_size != receive.size:
                    self._leave(receive)
                return None
            return self._claimed(receive)
        except OSError as error:
            raise QueueUnavailable.at("claim from", error.filename or self.url, error) from error

    def _leave(self, receive: Receive) -> None:
        self._receive = None
        receive.leave(is_removed=True)

    def _claimed(self, receive: Receive) -> Claim | None:
        since_ns = self.system.boottime_ns()
        body = receive.body()
        name = name_of(body, receive.priority)
        # At each claim, one call where there are none: they are written before it can be received, by the keeper of any
        # pool. See test_counts_that_the_keeper_of_another_pool_wrote_are_known_at_the_claim.
        attempts, crashes = self._know(receive, name)
        fd = self.system.memory_file(body)
        at_s = (receive.received_ns or self.system.wall_ns()) / 1e9
        path = f"/proc/{self.system.getpid()}/fd/{fd}"
        # When it was put nobody knows: it is as old as our having it.
        claim = Claim(name, path, attempts + 1, crashes, at_s, since_ns, fd, len(body), at_s)
        claim.priority = receive.priority
        self._in_hand = claim
        return claim

    def _know(self, receive: Receive, name: str) -> tuple[int, int]:
        """The counts of what is in *receive*, those beside the queue included."""
        counts, (attempts, crashes) = self.beside.count_of(name), receive.counts
        if counts.attempts > attempts or counts.crashes > crashes:
            receive.set_counts(max(counts.attempts, attempts), max(counts.crashes, crashes))
        return receive.counts

    # ---- our receive file

    def _take(self) -> Receive:
        """Lock a file for ourselves; what a dead predecessor left in it is ours, its death counted."""
        assert self._consumer is not None  # noqa: S101 - attach() comes first
        consumer = self._consumer
        owner = names.owner_name(consumer.master, consumer.index, self.system)
        # ORDER: the board, then the file. A keeper lists the files first and reads the board after, so it never takes
        # a live worker for one that is gone. See test_the_board_says_who_receives_before_the_file_does.
        self._slot.set_text(WorkerText.OWNER, owner)
        self._wait_for_judgement(os.path.join(self.receive_place.path, str(consumer.index)))
        size = self.kernel_queue().max_size
        receive = self.receive_place.take(consumer.index, size, owner)
        self._owner = owner
        if receive.has_message:
            try:
                self._take_up(receive, owner)
            except BaseException:
                receive.leave()
                raise
        return receive

    def _wait_for_judgement(self, path: str) -> None:
        """Let the keeper say first how the owner of what lies at *path* died; it has the master's word for it."""
        end_ns = self.system.boottime_ns() + int(JUDGED_WITHIN_S * 1e9)
        while self.system.boottime_ns() < end_ns:
            seen = self.receive_place.look(path)
            if seen is None or not seen.has_message or seen.is_judged or not self._is_dead(seen.owner):
                return
            self.system.sleep(LOOK_S)

    def _is_dead(self, owner: str) -> bool:
        found = names.parse_owner(owner)
        return found is None or self.system.is_alive(found.pid, found.start) is False

    def _take_up(self, receive: Receive, owner: str) -> None:
        if self.is_over(receive):
            receive.own(owner)
            return
        body, former = receive.body(), receive.owner
        counts = self.beside.count_of(name_of(body, receive.priority))
        attempts, crashes = receive.counts
        if not receive.is_judged:
            crashes = max(crashes, counts.crashes) + 1
            attempts = max(attempts, counts.attempts)
            receive.judge(attempts, crashes)
        if crashes >= self.settings.crash_limit:
            reason = f"its worker died {crashes} times with it in hand"
            self.reject_received(receive, reason, {"owner": former, "cause": "unknown"})
        receive.own(owner)

    # ---- settle

    def done(self, claim: Claim) -> None:
        """See Queue.done: one store in memory."""
        receive = self._receive_of(claim)
        if claim.attempt > 1 or claim.crashes:
            # ORDER: forgotten, then cleared. The header has them too, for whoever takes it up after a kill between the
            # two; the other way round they stay, and are those of the next message that is like it.
            # See test_no_counts_outlive_their_message_whenever_its_worker_is_killed.
            self.beside.forget_count(claim.name)
        receive.clear()
        self.settled(claim)

    def retry(self, claim: Claim, after_s: float | None = None, meta: dict[str, object] | None = None) -> bool:
        """See Queue.retry: a file in the state directory, until it is due."""
        receive = self._receive_of(claim)
        with self._settling("defer", claim):
            attempts, crashes = self._counts(claim)
            if attempts >= self.settings.max_attempts:
                self._reject(claim, receive, f"failed {attempts} times", meta or {})
                return False
            delay_s = self.backoff_s(attempts) if after_s is None else max(after_s, 0.0)
            self.defer(receive, Counts(attempts, crashes), min(delay_s, self.settings.retry_backoff_s_max))
        return True

    def reject(self, claim: Claim, reason: str, meta: dict[str, object] | None = None) -> None:
        """See Queue.reject: a file in errors/ of the state directory, then .meta says why."""
        receive = self._receive_of(claim)
        with self._settling("reject", claim):
            self._reject(claim, receive, reason, meta or {})

    def release(self, claim: Claim) -> None:
        """See Queue.release: sent again, behind those of its priority."""
        receive = self._receive_of(claim)
        with self._settling("give back", claim):
            self.give_back(receive)

    def forward(self, claim: Claim, queue: Queue, bodies: Sequence[Body] | None = None) -> None:
        """See Queue.forward: put there, then done here."""
        self.hand_on(claim, queue, [self._receive_of(claim).body()] if bodies is None else bodies)
        self.done(claim)

    def settled(self, claim: Claim) -> None:
        """See Queue.settled. Again does nothing; what was not settled is claimed again."""
        if self._in_hand is claim:
            self._in_hand = None
        self.close_claim(claim)

    def _receive_of(self, claim: Claim) -> Receive:
        if self._in_hand is not claim or self._receive is None:
            raise ClaimLost(f"{names.shown(claim.name)} was settled before")
        return self._receive

    def _counts(self, claim: Claim) -> tuple[int, int]:
        """This attempt included. Read now: at the claim another pool's keeper may have been about to write them."""
        counts = self.beside.count_of(claim.name)
        return max(counts.attempts + 1, claim.attempt), max(counts.crashes, claim.crashes)

    def _reject(self, claim: Claim, receive: Receive, reason: str, meta: dict[str, object]) -> None:
        attempts, crashes = self._counts(claim)
        claim.attempt, claim.crashes = attempts, crashes
        own = {"owner": self._owner, "worker": self._consumer.index if self._consumer else None}
        facts = {**meta, **own, **facts_of_claim(claim, reason, self.system.wall_ns() / 1e9)}
        self.reject_received(receive, reason, facts, Counts(attempts, crashes))

    # ---- what lies in a receive file goes elsewhere; for the keeper too. Raises OSError

    def defer(self, receive: Receive, counts: Counts, delay_s: float) -> None:
        """Have it wait beside the queue, *delay_s* from now."""
        now_s = self.system.wall_ns() / 1e9
        due = names.due_at(now_s + delay_s if delay_s else now_s // 1)
        name = name_of(receive.body(), receive.priority)
        self.beside.set_aside(receive, "deferred", f"{due}.{self.beside.marked(name, counts)}")
        self.beside.forget_count(name)  # they are in the mark now
        receive.clear()

    def reject_received(self, receive: Receive, reason: str, facts: Facts, counts: Counts | None = None) -> None:
        """Move it into errors/; without *counts* they are those of the file."""
        body, counts = receive.body(), counts or Counts(*receive.counts)
        name = name_of(body, receive.priority)
        file = self.beside.set_aside(receive, "errors", self.beside.marked(name, counts))
        more: Facts = {
            "name": name, "reason": reason, "attempts": counts.attempts, "crashes": counts.crashes,
            "priority": receive.priority, "queue": self.url, "host": self.host,
        }  # fmt: skip
        write_meta(self.beside, file, {**facts, **more}, self.beside.unpublished())
        self.beside.forget_count(name)
        receive.clear()

    def give_back(self, receive: Receive) -> None:
        """Send it to the queue again, as it was; when that is full, its keeper does it."""
        if self.is_over(receive):
            return
        body, priority, counts = receive.body(), receive.priority, Counts(*receive.counts)
        if counts != Counts():
            self.write_count(name_of(body, priority), counts)
        # ORDER: sent, then cleared. Killed between the two it is handled once more; the other way round, never.
        # See test_a_kill_at_any_call_of_a_settle_loses_nothing.
        if not self.send(body, priority):
            self.defer(receive, counts, 0.0)
        receive.clear()

    def is_over(self, receive: Receive) -> bool:
        """Whether a settle that did not end has moved it already; then it is cleared."""
        if not self.beside.is_set_aside(receive):
            return False
        self.beside.forget_count(name_of(receive.body(), receive.priority))
        receive.clear()
        return True

    def write_count(self, name: str, counts: Counts) -> None:
        """Write down what is known of a message before it can be received. Raises OSError, but not on a full disk."""
        try:
            self.beside.write_count(name, counts)
        except OSError as error:
            if error.errno not in FULL:
                raise
            # It must come back all the same: what it waits for may be what makes room.
            if name not in self._uncounted:
                self._uncounted.add(name)
                log.warning("%s: the counts of %s are lost: %s", self.url, name, error.strerror)
        else:
            self._uncounted.discard(name)

    def send_aside(self, path: str, priority: int, until_s: float = 0.0) -> bool:
        """Send what was set aside at *path*, and remove it there; False when the queue is full (see send)."""
        if path in self._sent:
            self.beside.remove(path)
            self._sent.discard(path)
            return True
        try:
            fd = self.system.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return True  # another was first
        try:
            # RACE: the keeper of another pool on this queue sends it, or has just done so: it has it locked until it is
            # removed. See test_of_two_keepers_one_sends_what_is_due.
            self.system.lock_file(fd)
            if not self.beside.is_there(path):
                return True
            # ORDER: sent, then removed. Killed between the two it is handled once more; the other way round, never.
            # See test_a_kill_at_any_call_of_a_round_loses_nothing.
            if not self.send(self.read_regular(fd, path), priority, until_s):
                return False
            self._sent.add(path)
            self.beside.remove(path)
            self._sent.discard(path)
        except BlockingIOError:
            return True
        finally:
            self.system.close(fd)
        return True

    # ---- leaving

    def detach(self) -> None:
        """See Queue.detach: our file goes; what could not be settled is given back first."""
        self._in_hand = None
        receive, self._receive = self._receive, None
        if receive is not None:
            try:
                if receive.has_message:
                    self.give_back(receive)
            except (OSError, QueueUnavailable) as error:
                log.warning("%s: what is in hand stays in %s: %s", self.url, receive.path, error)
                receive.judge(*receive.counts)  # nobody died of it
            try:
                receive.leave(is_removed=not receive.has_message)
            except OSError as error:
                log.warning("%s: %s could not be removed: %s", self.url, receive.path, error)
            self.receive_place.remove()
        if self._consumer is not None:
            self._slot.set_text(WorkerText.OWNER, "")

    def close(self) -> None:
        """See Claimable.close."""
        super().close()
        self._mq.close()
        self.wait_fd = -1

    # ---- the keeper's and the operator's verbs

    def keeper(self, consumer: Consumer) -> MqueueKeeper:
        """See Claimable.keeper."""
        self._is_pools = True
        self._keeper = found = MqueueKeeper(self, consumer)
        return found

    def source(self) -> Source:
        """There is none: the kernel names nothing."""
        raise NotSupported("names cannot be read: an mqueue queue has none to feed")

    def wait(self, timeout_s: float) -> bool:
        """See Queue.wait: at the queue's own descriptor."""
        with self._unavailable("wait at", self.url):
            return bool(self.system.mq_wait(self.kernel_queue(), timeout_s))

    def waiting_count(self) -> int:
        """See Queue.waiting_count: the kernel counts."""
        with self._unavailable("count what waits in", self.url):
            return self.system.mq_attributes(self.kernel_queue()).waiting

    def depth(self) -> Depth:
        """See Queue.depth. How old what waits is nobody can say."""
        with self._unavailable("measure", self.place):
            return mqueue_look.depth(self.system.mq_attributes(self.kernel_queue()).waiting, self)

    def list(self, state: State | None = None) -> Iterator[Listed]:
        """See Queue.list: all but what waits, which the kernel shows nobody."""
        with self._unavailable("list", self.place):
            yield from mqueue_look.listed(self, state)

    def show(self, name: str) -> Sequence[Shown]:
        """See Queue.show."""
        with self._unavailable("show", self.place):
            return mqueue_look.show(self, name)

    def requeue(self, name: str) -> int:
        """See Queue.requeue: sent again; when the queue is full, its keeper does it."""
        count = 0
        with self._unavailable("requeue from", self.beside.errors):
            self.beside.check()
            for line in tuple(self.list("errors")):
                priority = priority_of(line.name)
                if line.name != name or priority is None or not self.beside.is_message(line.path):
                    continue
                self.beside.forget_count(name)
                now_s = self.system.wall_ns() // 1_000_000_000
                file = f"{names.due_at(now_s)}.{self.beside.marked(name, Counts())}"
                if self.beside.move(line.path, self.beside.deferred, file):
                    self.beside.forget(f"{line.path}.meta")
                    self.send_aside(os.path.join(self.beside.deferred, file), priority)
                    count += 1
        return count

    # ---- errors

    def _settling(self, doing: str, claim: Claim) -> Worded:
        return Worded(self.beside, doing, claim.name, at_end=lambda: self.settled(claim))
