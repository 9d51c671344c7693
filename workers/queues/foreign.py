"""
foreign - one queue of another project's format, as a pool has it: what the format has no place for is beside it

The format says how a message is taken, moved and removed; everything else about a claim is
the same in all of them and stands here: the record of what is in hand, counts of attempts
and crashes, deferring, errors/ with .meta, and the operator's verbs.

Raises: QueueUnavailable for disk and permission errors, ClaimLost, InputGone, NotSupported.
Long because: what all these formats share stands here once, with the contract that each of them fills in.
See also: dirq, ddmq (the formats), beside (the places), foreign_keep (the keeper's side).
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from workers.errors import NotSupported, QueueRefused
from workers.message import Body, Claim
from workers.queues import names
from workers.queues.base import Capability, Queue, Settings
from workers.queues.beside import Beside, Counts
from workers.queues.deferred import correct_due
from workers.queues.directory import OnDisk
from workers.queues.locking import HeldClaim, Locking
from workers.queues.meta import Facts, facts_of_claim, write_meta
from workers.system import System, forget
from workers.trust import Place

log = logging.getLogger(__name__)

OURS_S = 60.0  # what is being put in is left alone by others for so long
OPEN_RECORD = os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
MAKE_RECORD = OPEN_RECORD | os.O_CREAT | os.O_EXCL


class ForeignQueue(OnDisk, Locking):
    """
    One queue at *place*. See Queue for the verbs.

    Attributes:
        ages_by: the option by which claims age that nobody keeps.
        network: as asked of *place* by open_place().
    """

    ages_by: ClassVar[str]
    _owner = ""
    _hand = -1  # held/OWNER, open for writing

    def __init__(
        self, url: str, place: str, settings: Settings | None, hand_size: int, *, system: System, host: str
    ) -> None:
        self.url = url
        self.protocol = url.partition(":")[0]
        self.settings = settings or Settings()
        if self.settings.keep_done_s is not None:
            self.needs(Capability.KEEP_DONE, "keep_done")
        for option in ("lease_interval", "lease_timeout"):
            if getattr(self.settings, f"{option}_s") is not None:
                raise NotSupported(
                    f"{option} is not possible: a {self.protocol} queue has no leases; see {self.ages_by}"
                )
        self.system = system
        self.host = names.check_host(host)
        self.place = self.identity = place
        self.kept_in = self.beside = Beside(place, self.settings.state_dir, system, hand_size)
        if f"{self.beside.path}/".startswith(f"{place}/"):
            raise QueueRefused(f"state_dir = {self.settings.state_dir} is inside the queue, where others count what is")
        self.tokens = names.Tokens(system)

    def places(self) -> list[Place]:
        """See Claimable.places."""
        return [*self.places_of_format(), *self.beside.places()]

    @abstractmethod
    def places_of_format(self) -> list[Place]:
        """Those of the queue itself, as others know it."""

    def open_place(self) -> None:
        """Remember which directory is the queue. Raises OSError."""
        self._inode = self.system.stat(self.place).st_ino
        self.network = self.beside.network = self.system.network_filesystem(self.place)

    def check_same(self) -> None:
        """Raises OSError unless the queue is the one that was opened: of a lost mount nothing is to be believed."""
        if self.system.stat(self.place).st_ino != self._inode:
            raise OSError(errno.ESTALE, "another directory is there now: was the mount lost?", self.place)

    # ---- put

    # ---- settle

    @abstractmethod
    def kept_as(self, claim: HeldClaim) -> str:
        """What the message is called beside the queue, behind its mark: enough to bring it back as what it was."""

    @abstractmethod
    def name_of(self, file: str) -> str | None:
        """The name of the message that kept_as() called *file*; None for what is none."""

    @abstractmethod
    def take_out(self, claim: HeldClaim, target: str) -> None:
        """
        Move the claimed message to the path *target*, that nobody else can make.

        Raises ClaimLost, InputGone, OSError.
        """

    @abstractmethod
    def put_in(self, source: str, file: str) -> str | None:
        """
        Let the message at the path *source* wait again; *file* is what kept_as() called it. Its name then.

        None when *source* is gone. Raises OSError, the message being where it was.
        """

    def attempts_max(self, claim: HeldClaim) -> int:  # noqa: ARG002 - in some formats the message has its own
        """At how many failures the message goes to errors/."""
        return self.settings.max_attempts

    def retry(self, claim: Claim, after_s: float | None = None, meta: dict[str, object] | None = None) -> bool:
        """See Queue.retry: the message waits beside the queue until it is due."""
        held = held_by(claim)
        with self._settling("defer", claim):
            counts = self._counts(claim)
            if counts.attempts >= self.attempts_max(held):
                self._to_errors(held, counts, f"failed {counts.attempts} times", meta or {})
                return False
            delay = self.backoff_s(counts.attempts) if after_s is None else max(after_s, 0.0)
            now_s = claim.claimed_at + (self.system.boottime_ns() - claim.claimed_ns) / 1e9
            due = names.due_at(now_s + min(delay, self.settings.retry_backoff_s_max))
            file = f"{due}.{self.marked(self.kept_as(held), counts)}"
            file = self._keep_out(held, self.beside.deferred, file)
        correct_due(self.system, self._words, self.beside.deferred, file, now_s)
        return True

    def reject(self, claim: Claim, reason: str, meta: dict[str, object] | None = None) -> None:
        """See Queue.reject: the message itself goes to errors/ beside the queue, then .meta says why."""
        held = held_by(claim)
        with self._settling("reject", claim):
            self._to_errors(held, self._counts(claim), reason, meta or {})

    def _counts(self, claim: Claim) -> Counts:
        """This attempt included. Read now: at the claim another host's keeper may have been about to write them."""
        counts = self.beside.count_of(claim.name)
        return Counts(max(counts.attempts + 1, claim.attempt), max(counts.crashes, claim.crashes))

    def _to_errors(self, claim: HeldClaim, counts: Counts, reason: str, meta: dict[str, object]) -> None:
        # Before anything that may fail and be tried again, for there the counts are forgotten.
        claim.attempt, claim.crashes = counts.attempts, counts.crashes
        file = self._keep_out(claim, self.beside.errors, self.marked(self.kept_as(claim), counts))
        self.system.fsync_directory(self.beside.errors)
        facts: Facts = {
            "queue": self.url,
            "host": self.host,
            "owner": self._owner,
            "worker": self._consumer.index if self._consumer else None,
        }
        self.write_meta(file, {**meta, **facts, **facts_of_claim(claim, reason, self.system.wall_ns() / 1e9)})

    def marked(self, file: str, counts: Counts) -> str:
        """What kept_as() called a message as a file beside the queue, which nobody else can make."""
        return names.marked(counts.attempts, counts.crashes, self.tokens.token(file), file)

    def put_in_alone(self, path: str, file: str, counts: Counts, now_s: float) -> str | None:
        """See put_in; of several who do so at once, on whatever host, one is told that he did. *now_s*: unix time."""
        if self.network is None:
            return self.put_in(path, file)
        # RACE: another keeper puts it in, too. A client of a network filesystem that still knows its name acts by its
        # handle, and would take away the lock of who has claimed it by then. So it is deferred for a minute more, under
        # a name that we alone know; should we be killed, it is due then.
        # See test_of_two_keepers_on_a_network_one_puts_in_what_is_due.
        ours = f"{names.due_at(now_s + OURS_S)}.{self.marked(file, counts)}"
        if not self.beside.move(path, self.beside.deferred, ours):
            return None
        source, again = os.path.join(self.beside.deferred, ours), None
        try:
            again = self.put_in(source, file)
        finally:
            if again is None:  # it can be tried again before that minute is over
                with contextlib.suppress(OSError):
                    self.beside.move(source, *os.path.split(path))
        return again

    def write_meta(self, file: str, facts: Facts) -> None:
        """See meta.write_meta."""
        write_meta(self.beside, file, facts, names.unpublished(self.tokens.name(self.host)))

    def _keep_out(self, claim: HeldClaim, directory: str, file: str) -> str:
        """Move the message to *file* in *directory*; what it is called there. Again, it is where it was moved to."""
        if not claim.taken_out:
            self.take_out(claim, os.path.join(directory, file))
            claim.taken_out = file
            self.beside.forget_count(claim.name)  # they are in the mark now
            self._clear_hand()  # it may come back, and be another's
        return claim.taken_out

    def forward(self, claim: Claim, queue: Queue, bodies: Sequence[Body] | None = None) -> None:
        """See Queue.forward: put there, then done here."""
        if not claim.is_forwarded:  # else by a try before this one, that could not end it here, and has closed it
            self.hand_on(claim, queue, [self._body_of(claim)] if bodies is None else bodies)
            claim.is_forwarded = True
        self.done(claim)

    def _body_of(self, claim: Claim) -> Body:
        """What was claimed, by its descriptor: another file may be called so by now. Raises QueueUnavailable."""
        if claim.fd < 0:
            return Path(claim.path)
        with self._unavailable("read", claim.path):
            return self.read_all(claim.fd)

    # ---- our own record

    def take_record(self, owner: str) -> None:
        """See Locking.take_record."""
        self.check_same()
        self.leave_record()
        self._hand = self.system.open(os.path.join(self.beside.held, owner), MAKE_RECORD, 0o666)
        self._owner = owner
        self.system.pwrite(self._hand, self.beside.empty_hand + owner.encode() + b"\n", 0)

    def renew(self) -> None:
        """
        See Queue.renew: the record. A descriptor of a mount that went away fails for ever, whatever is mounted since.

        A record that is gone was given back by a keeper. It is made again as old as can be, so that no lock that
        another has taken meanwhile is taken for one that it speaks of.
        """
        if self._hand < 0:
            return
        path, system = os.path.join(self.beside.held, self._owner), self.system
        try:
            system.fstat(self._hand)
        except OSError:
            with contextlib.suppress(OSError):  # it is away
                self.check_same()
                try:
                    hand = system.open(path, OPEN_RECORD)
                except FileNotFoundError:
                    hand = system.open(path, MAKE_RECORD, 0o666)
                    try:
                        system.pwrite(hand, self.beside.empty_hand + self._owner.encode() + b"\n", 0)
                        system.utime(path, (0, 0))
                    except OSError:  # made by halves it would be younger than that
                        system.close(hand)
                        forget(system, path)
                        raise
                gone, self._hand = self._hand, hand
                system.close(gone)

    def leave_record(self) -> None:
        """See Locking.leave_record."""
        if not self._owner:
            return
        owner, self._owner = self._owner, ""
        fd, self._hand = self._hand, -1
        try:
            self._give_back(owner, fd)
            self.system.close(fd)
            self.beside.remove(os.path.join(self.beside.held, owner))
        except OSError as error:
            # A keeper finishes it: the board will not list this owner any more.
            log.warning("%s: our record %s could not be removed: %s", self.url, owner, error)

    @abstractmethod
    def _give_back(self, owner: str, fd: int) -> None:
        """
        Give back what held/OWNER, open as *fd*, says and could not be settled. Raises OSError.

        The record goes, and nobody else would know whose claim it is.
        """

    def _clear_hand(self) -> None:
        self.system.pwrite(self._hand, self.beside.empty_hand, 0)

    # ---- the operator's verbs

    def requeue(self, name: str) -> int:
        """See Queue.requeue: it comes back under its own name."""
        count = 0
        with self._unavailable("requeue from", self.beside.errors):
            for line in tuple(self.list("errors")):
                if line.name == name:
                    self.beside.forget_count(name)  # that could not be removed when it came here
                    file = names.parse(os.path.basename(line.path)).name
                    if self.put_in_alone(line.path, file, Counts(), self.system.wall_ns() / 1e9) is not None:
                        self.beside.forget(f"{line.path}.meta")
                        count += 1
        return count

    def make_places(self) -> None:
        """See OnDisk.make_places."""
        self.beside.make()

    def watch_directory(self) -> str | None:
        """See Queue.watch_directory."""
        return self.place

    def settled(self, claim: Claim) -> None:
        """See Queue.settled. Again does nothing."""
        self.close_claim(claim)


def held_by(claim: Claim) -> HeldClaim:
    """*claim* as this queue's claim() made it."""
    assert isinstance(claim, HeldClaim)  # noqa: S101 - of this queue's claim()
    return claim
