"""
dirq - a pool on a directory queue of the Directory::Queue kinds, beside their own programs

    dirq-simple:PATH               QueueSimple: a file for each element, locked by a hard link
    dirq:PATH?schema=KEY:TYPE,...  Queue: a directory for each element, locked by a directory in it

A claim is the format's own lock, so programs of other languages see it, and may work on the
same directory at the same time. What the format has no place for is kept beside the queue
(NAME.pool/): a failed message waits there for its time, comes back under its own name, and
ends there after too many attempts. While it is handled its lock is touched.

A lock says not whose it is. So a settle first makes sure that the lock is still the one
that was taken, and the removal of the element itself, which only one can do, decides.

Raises: QueueUnavailable for disk and permission errors, ClaimLost, NotSupported.
Limits: at least once; the names are the format's, so a message cannot be given one. A lock whose
holder vanished with its whole machine is broken when it is stale_after old, as by purge().
Long because: claim, settle and what another may do between their calls are one story.
See also: workers.dirq (the formats), beside, dirq_keep (the keeper's side), spool.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from workers.board import Q, W
from workers.dirq.elements import NAME, SECOND_NS, Elements, Lock, UnreadableError, time_of
from workers.dirq.errors import QueueError
from workers.dirq.kind import kind_of
from workers.errors import ClaimLost, InputGone, NotSupported, QueueMissing, QueueRefused
from workers.message import Body, Claim
from workers.queues import dirq_look, names
from workers.queues.base import Capability, Consumer, Depth, Listed, Settings, Shown, State
from workers.queues.beside import HAND_SIZE, Counts, decoded, encoded, line_of
from workers.queues.directory import is_regular
from workers.queues.dirq_keep import DirqKeeper
from workers.queues.dirq_look import Waiting
from workers.queues.foreign import ForeignQueue, held_by
from workers.queues.locking import HeldClaim, LockedClaim
from workers.system import SYSTEM, System
from workers.trust import Place, place_of_dirq

log = logging.getLogger(__name__)

KINDS = {"dirq-simple": "simple", "dirq": "normal"}
TOUCH_S = 5.0  # a lock is touched so often, or four times in the time after which it is stale
STALE_AFTER_S = 600.0  # what purge() of the originals has for maxlock
NAMED_MAX = 1000
SURE_NS = 500_000_000  # a lock is broken at the age of a second or more, so one that was taken so recently is ours
STALE_AFTER_S_MIN = 2.0
# This element alone: another user's that we may not touch, or what is no element. (EACCES may be said of the whole
# queue as well; then all of them are named.)
STUCK = frozenset({errno.EPERM, errno.EACCES, errno.EINVAL, errno.EISDIR, errno.ENOTDIR})
COUNTED = int(Q.COUNTED)


class Dirq(ForeignQueue):
    """One directory queue of either kind. See Queue for the verbs."""

    ages_by = "stale_after"
    capabilities = frozenset(
        {Capability.DURABLE, Capability.DEFER, Capability.ERRORS, Capability.ORDER, Capability.PAUSE, Capability.CLAIM}
    )

    def __init__(
        self,
        url: str,
        elements: Elements[Any],
        encode: Callable[[bytes], object],
        settings: Settings | None = None,
        *,
        system: System = SYSTEM,
        host: str = "localhost",
    ) -> None:
        """*encode* makes what ``elements.add`` takes of a body; it raises NotSupported when that cannot be one."""
        super().__init__(url, elements.path, settings, HAND_SIZE, system=system, host=host)
        self.elements = elements
        self.stale_after_s = self.settings.stale_after_s or STALE_AFTER_S
        if self.stale_after_s < STALE_AFTER_S_MIN:
            raise QueueRefused(
                f"stale_after = {self.stale_after_s:g}s is too short for {url}: it must be {STALE_AFTER_S_MIN:g}s or "
                "more, for a lock is told from the next one of the same element by a second between the two"
            )
        self.touch_ns = int(min(TOUCH_S, self.stale_after_s / 4) * 1e9)
        self.within_ns = max(2 * self.touch_ns, SECOND_NS)  # how much younger than we know our lock may look
        self._encode = encode
        self.member = 0  # its number in a set
        self._named: set[str] = set()
        self._open()

    def _open(self) -> None:
        with self._unavailable("open the queue", self.place):
            if not self.system.is_directory(self.place, is_followed=True):
                parent = os.path.dirname(self.place)
                if not self.settings.create:
                    raise QueueMissing(f"there is no queue at {self.place} (orchestrator put makes one)")
                if not self.system.is_directory(parent, is_followed=True):
                    raise QueueMissing(f"cannot make the queue {self.place}: its parent directory does not exist")
            else:
                self._check_kind()
            if self.settings.create:
                self.elements.make()
            self.open_place()

    def places_of_format(self) -> list[Place]:
        """See ForeignQueue.places_of_format."""
        return [place_of_dirq(self.place)]

    def check_schema(self) -> None:
        """Refuse a schema that the first element does not have, for all would go to errors/. Raises OSError too."""
        for name in self.source().names(set(), set()):
            body = self.elements.body_in(self.elements.element_path(name))
            if body == self.elements.element_path(name):
                return
            with contextlib.suppress(FileNotFoundError):
                parts = set(self.system.listdir(os.path.dirname(body)))
                if parts and os.path.basename(body) not in parts:
                    raise QueueRefused(
                        f"{self.url}: its elements have {', '.join(sorted(parts))}, and the schema says that their "
                        f"body is {os.path.basename(body)}: give the schema of this queue"
                    )
            return

    def _check_kind(self) -> None:
        """Refuse what is a queue of another kind, or a directory full of something else."""
        kind = kind_of(self.system.listdir(self.place))
        wanted = KINDS[self.protocol]
        if kind == "other" and self.settings.create:
            raise QueueRefused(f"{self.place} is no queue and not empty; name a new or an empty directory")
        if kind not in (wanted, "other", "empty"):
            url = {"spool": "spool:", "normal": "dirq:", "simple": "dirq-simple:"}[kind]
            raise QueueRefused(f"{self.place} is no {self.protocol} queue: it is one of {url}{self.place}")

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
        """See Queue.put; the name is the one that the format gives."""
        if name is not None:
            self.needs(Capability.NAME, "a name of your own")
        if delay > 0:
            self.needs(Capability.DELAY, "delay")
        if priority is not None:
            raise NotSupported(f"priority is not possible: a {self.protocol} queue has none")
        with self._unavailable("put a message into", self.place):
            return self.elements.add(self._encode(self.read_body(body)), durable=durable is not False)

    # ---- claim

    def claim_named(self, name: str) -> LockedClaim | None:
        """See Locking.claim_named."""
        try:
            found = self.elements.open_locked(name)
        except OSError as error:
            return self._claim_in_trouble(name, error)
        if found is None:
            self._slot.words[W.CONFLICTS] += 1
            return None
        lock, fd, seen = found
        try:
            claim = self._claimed(lock)
        except OSError:
            self.system.close(fd)
            self._unlock_again(lock)
            raise
        claim.fd, claim.size = fd, seen.st_size
        if not is_regular(seen):
            claim.trouble = "this is no regular file (a directory, fifo, socket, symbolic link or device)"
        return claim

    def _claim_in_trouble(self, name: str, error: OSError) -> LockedClaim | None:
        if isinstance(error, UnreadableError):
            try:
                claim = self._claimed(error.lock)
            except OSError:
                self._unlock_again(error.lock)
                raise
            claim.trouble = f"its data cannot be read: {error.strerror}"
            return claim
        if error.errno not in STUCK:
            raise error
        if name not in self._named and len(self._named) < NAMED_MAX:
            self._named.add(name)
            log.error("%s: %s cannot be claimed and stays there: %s", self.url, names.shown(name), error.strerror)
        return None

    def _claimed(self, lock: Lock) -> LockedClaim:
        name = lock.name
        self.system.pwrite(self._hand, line_of(name, lock.inode, lock.at_ns), 0)
        # By place, in the order of Claim: this is done for every message.
        claim = LockedClaim(name, self.elements.body_path(name), 1, 0, time_of(name), lock.since_ns)
        claim.claimed_at, claim.lock, claim.member = lock.at_ns / 1e9, lock, self.member
        if self._words[COUNTED] or self.network is not None:
            counts = self.beside.count_of(name)
            claim.attempt, claim.crashes = counts.attempts + 1, counts.crashes
        return claim

    def _unlock_again(self, lock: Lock) -> None:
        with contextlib.suppress(OSError):  # it is stale one day
            self.elements.unlock(lock.name)

    # ---- settle

    def done(self, claim: Claim) -> None:
        """See Queue.done: the element is removed, which only one can do."""
        lock = self._lock_of(claim)
        self.close_claim(claim)
        try:
            self._check_held(claim, lock)
            if not self.elements.remove(claim.name):
                self._gone(claim)
            if claim.attempt > 1 or claim.crashes:
                self.beside.forget_count(claim.name)
        except QueueError as error:
            # It is handled, and what lies in it is not ours to remove.
            with self._settling("finish", claim):
                counts = Counts(claim.attempt, claim.crashes)
                self._to_errors(held_by(claim), counts, f"left by a handler: {error}", {})
        except OSError as error:
            held_by(claim).is_tried = True
            raise self.beside.unavailable("finish", claim.path, error) from error

    def _gone(self, claim: Claim) -> None:
        """
        Say why the element is not there. Raises InputGone, ClaimLost; nothing when a try before this has removed it.

        With our lock still there its handler has removed it; or one has that was late, while a reaper had our lock in
        its hand. So it is not said to be done.
        """
        assert isinstance(claim, LockedClaim)  # noqa: S101 - of this queue's claim()
        if self._is_held(claim.lock):
            self.elements.unlock(claim.name)
            if claim.is_tried:
                return
            raise InputGone(f"{names.shown(claim.name)} was removed by its handler")
        self._lost(claim)

    def kept_as(self, claim: HeldClaim) -> str:
        """See ForeignQueue.kept_as."""
        return encoded(claim.name)

    def name_of(self, file: str) -> str | None:
        """See ForeignQueue.name_of."""
        return decoded(file) if NAME.match(decoded(file)) else None

    def take_out(self, claim: HeldClaim, target: str) -> None:
        """See ForeignQueue.take_out."""
        self._check_held(claim, self._lock_of(claim))
        if not self.elements.take_out(claim.name, target):
            self._gone(claim)

    def put_in(self, source: str, file: str) -> str | None:
        """See ForeignQueue.put_in: under a fresh name if its own is taken."""
        return self.elements.put_in(source, decoded(file))

    def release(self, claim: Claim) -> None:
        """See Queue.release: unlocked, as it was."""
        lock = self._lock_of(claim)
        with self._settling("give back", claim):
            self._check_held(claim, lock)
            # ORDER: first the record, or a keeper that finds us dead gives back what is another's by then.
            # See test_a_worker_that_dies_after_a_release_takes_no_lock_of_another_with_it.
            self._clear_hand()
            if not self.elements.unlock(claim.name):
                self._lost(claim)

    def _check_held(self, claim: Claim, lock: Lock) -> None:
        """Raise ClaimLost unless the lock is still ours, or is ours again."""
        if self.network is None and self.system.boottime_ns() - lock.since_ns < SURE_NS:
            return
        if self._is_held(lock):
            return
        self.check_same()
        # Its handler may have removed its input, or a purge broke the lock and nobody took the element since.
        again = self.elements.lock(claim.name)
        if again is None:
            self._lost(claim)
        else:
            assert isinstance(claim, LockedClaim)  # noqa: S101 - of this queue's claim()
            claim.lock = again
            self.system.pwrite(self._hand, line_of(again.name, again.inode, again.at_ns), 0)

    def _is_held(self, lock: Lock) -> bool:
        return self.elements.is_held(lock, self.system.fstat(self._hand).st_mtime_ns, self.within_ns)

    def _lost(self, claim: Claim) -> None:
        self.check_same()  # a lost mount answers ENOENT to everything
        self._clear_hand()
        raise ClaimLost(f"{names.shown(claim.name)} was given to another while it was handled here")

    @staticmethod
    def _lock_of(claim: Claim) -> Lock:
        assert isinstance(claim, LockedClaim)  # noqa: S101 - of this queue's claim()
        return claim.lock

    def _give_back(self, owner: str, fd: int) -> None:
        """See ForeignQueue._give_back."""
        hand = self.beside.hand_of(owner)  # our own, so the name is one
        if hand is not None and hand.is_lock(self.elements.found_lock(hand.name)):
            self.system.pwrite(fd, self.beside.empty_hand, 0)
            self.elements.unlock(hand.name)

    # ---- the keeper's and the operator's verbs

    def keeper(self, consumer: Consumer) -> DirqKeeper:
        """See Claimable.keeper."""
        self._keeper = found = DirqKeeper(self, consumer)
        return found

    def source(self) -> Waiting:
        """See Claimable.source."""
        return Waiting(self.elements)

    def waiting_count(self) -> int:
        """See Queue.waiting_count."""
        with self._unavailable("count what waits in", self.place):
            return dirq_look.waiting_count(self.elements)

    def waiting_count_max(self) -> int:
        """See Queue.waiting_count_max: locked or not, which the links of a directory may say."""
        with self._unavailable("count what waits in", self.place):
            try:
                return self.elements.count()
            except PermissionError:  # another user's directory, in which nothing waits for us
                return dirq_look.waiting_count(self.elements)

    def depth(self) -> Depth:
        """See Queue.depth."""
        with self._unavailable("measure", self.place):
            return dirq_look.depth(self.elements, self.beside)

    def list(self, state: State | None = None) -> Iterator[Listed]:
        """See Queue.list."""
        with self._unavailable("list", self.place):
            yield from dirq_look.listed(self.elements, self.beside, state)

    def show(self, name: str) -> Sequence[Shown]:
        """See Queue.show."""
        with self._unavailable("show", self.place):
            return dirq_look.show(self.elements, self.beside, name)
