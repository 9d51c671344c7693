"""
spool - directory queue of the mentat filer kind, made safe

incoming/ waits, pending/OWNER/ is claimed, deferred/ waits for its time, errors/
was rejected. A claim is one rename into the worker's own directory, under a mark
with a fresh token: so every move but put goes to a name that nobody else can make,
and is fenced (ENOENT: another has it) and never over another message.

Raises: QueueUnavailable for disk and permission errors, ClaimLost and InputGone
when a settle found nothing to settle, MessageExists, InvalidName, NotSupported.
Limits: one filesystem; at least once.
Long because: claim and settle share the marks, and are read together.
Source: qmail INTERNALS for the state table.
See also: SPOOL.md (the protocol), directory (the moves), lease, spool_put (the
producer's side), spool_keep (the keeper's), spool_look (the operator's).
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from workers.anchored import joined
from workers.board import Q, W, WorkerText
from workers.errors import ClaimLost, InputGone, KeeperGone, NotSupported, QueueMissing, QueueUnavailable
from workers.message import Body, Claim
from workers.queues import names, spool_look
from workers.queues.base import Capability, Consumer, Depth, Listed, Queue, Settings, Shown, State
from workers.queues.deferred import correct_due
from workers.queues.directory import Directory, OnDisk
from workers.queues.feed import Reader
from workers.queues.meta import Facts, facts_of_claim, write_meta
from workers.queues.scan import Incoming, Scan
from workers.queues.spool_keep import SpoolKeeper
from workers.queues.spool_put import Producer
from workers.system import SYSTEM, System, is_stuck
from workers.trust import Place

log = logging.getLogger(__name__)

NAMED_MAX = 1000
LOST_MAX = 256  # races in a row: a network's cached listing, which shows what is gone, must not hold us for ever
# A member of an enumeration costs more to look up than a word of the board to read, and these are read for each claim.
PAUSED, BEAT_NS, LAPSES, HALF_TIMEOUT_NS = int(Q.PAUSED), int(Q.BEAT_NS), int(Q.LAPSES), int(Q.HALF_TIMEOUT_NS)
OPEN_CLAIM = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
TROUBLES = {
    errno.ELOOP: "is a symbolic link",
    errno.ENXIO: "is a socket or a device without a driver",
    errno.EACCES: "cannot be read: permission denied",
    errno.EPERM: "cannot be read: not permitted",
}


class Spool(OnDisk):
    """One spool queue. See Queue for the verbs."""

    protocol = "spool"
    capabilities = frozenset(Capability)

    def __init__(
        self, path: str, settings: Settings | None = None, *, system: System = SYSTEM, host: str = "localhost"
    ) -> None:
        self.settings = settings or Settings()
        self.system = system
        self.host = names.check_host(host)
        self.kept_in = self.directory = Directory(path, system)
        self.directory.open(self.settings)
        self.system = self.directory.system
        self.url = f"spool:{self.directory.path}"
        self.place, self.identity, self.network = self.directory.path, self.directory.incoming, self.directory.network
        self.tokens = names.Tokens(self.system)
        self.producer = Producer(self.directory, self.tokens, host)
        self._consumer: Consumer | None = None
        self._owner = ""
        self._owner_path = ""
        self._lapses = 0
        self._in_hand: str | None = None  # the path of the claim
        self._scan: Scan | Reader = Scan(self.source(), self.settings.order)
        self._named: set[str] = set()  # what stays in incoming/ and was spoken of

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
        """See Queue.put: tmp/, fsync, one rename into incoming/, fsync of incoming/."""
        return self.producer.put(body, name, priority, delay, durable)

    def put_many(self, bodies: Sequence[Body], *, durable: bool | None = None) -> list[str]:
        """See Queue.put_many: in groups, each of them written and synced, then published, then incoming/ synced."""
        return self.producer.put_many(bodies, durable=durable)

    def put_file(self, path: Path, name: str | None = None, *, durable: bool | None = None) -> str:
        """See Producer.put_file: the file *path* itself becomes the message."""
        return self.producer.put_file(path, name, durable=durable)

    def enter(self, body: Body, name: str) -> None:
        """Put *body* as a message called *name*, under a mark: it never meets another of that name. Durable."""
        self.producer.enter(body, name)

    # ---- claim

    def attach(self, consumer: Consumer) -> None:
        """See Queue.attach. Makes nothing yet: a directory of our own comes with the first claim."""
        if not self.directory.id:
            raise QueueMissing(f"{self.directory.path} has no .pool/: open it with create to take from it")
        self._consumer = consumer
        self._words = consumer.board.queues[consumer.queue_slot].words
        self._slot = consumer.board.worker(consumer.worker_slot)
        scan = Scan(self.source(), self.settings.order, consumer.index, consumer.count)
        self._scan = scan if consumer.feed < 0 else Reader(consumer.feed, self._words, scan, self.system)

    def claim(self) -> Claim | None:
        """See Queue.claim: one rename; ENOENT is a lost race, counted and nothing else."""
        words = self._words
        if words[PAUSED]:
            self._scan.forget()
            return None
        # ORDER: the time of the beat, then the lapses (the keeper writes them the other way round).
        # See test_a_worker_never_misses_a_lapse.
        beat_ns, lapses = words[BEAT_NS], words[LAPSES]
        now_ns = self.system.boottime_ns()
        if now_ns - beat_ns >= words[HALF_TIMEOUT_NS]:
            if self.keeper_is_gone is not None and self.keeper_is_gone():
                raise KeeperGone(
                    f"the keeper of {self.url} has died, so nothing may be claimed: start this worker again"
                )
            return None
        try:
            if not self._owner or lapses != self._lapses:
                self._take_owner(lapses)
            return self._claim_next(now_ns, lapses)
        except OSError as error:
            raise QueueUnavailable.at("claim from", self.directory.path, error) from error

    def _claim_next(self, now_ns: int, lapses: int) -> Claim | None:
        is_sure = False  # that our own directory is there
        scan, incoming = self._scan, self.directory.incoming
        claim = None
        for _ in range(LOST_MAX):
            file = scan.next()
            if file is None:
                break
            attempts, crashes, name, full_name = 0, 0, file, ""
            if file[0] == "t" or len(file) > names.NAME_BYTES_MAX or not file.isascii():
                attempts, crashes, name, full_name = self._taken_apart(file)
            token = self.tokens.token(name)
            target = f"t{attempts}c{crashes}-{token}~{name}"
            path = f"{self._owner_path}/{target}"
            try:
                self.system.rename(f"{incoming}/{file}", path)
            except OSError as error:
                if error.errno == errno.EPERM:  # this file alone (immutable, or another's in a sticky directory)
                    self._name_stuck(file, error)
                    continue
                if not self.directory.has_moved(error, f"{incoming}/{file}", self._owner_path, target):
                    self._slot.words[W.CONFLICTS] += 1
                    # RACE: we were taken for dead while stopped, and a keeper removed our directory.
                    # See test_a_worker_whose_directory_is_gone_takes_a_fresh_one.
                    if not is_sure and not self.directory.is_there(self._owner_path):
                        self._take_owner(lapses)
                    is_sure = True
                    continue
            self._in_hand = path
            claim = Claim(name, path, attempts + 1, crashes, 0.0, now_ns, -1, 0, 0.0, token, lapses)
            if full_name:
                claim.full_name = full_name
            if self._look_inside(claim, is_odd=bool(scan.odd) and file in scan.odd):
                break
            self._in_hand = claim = None
        if scan.ignored:
            self._name_ignored()
        return claim

    def _taken_apart(self, file: str) -> tuple[int, int, str, str]:
        """Attempts, crashes, the name, and the whole of it when it had to be shortened."""
        mark = names.parse(file)
        name = names.shortened(mark.name, self.tokens.digits())
        return mark.attempts, mark.crashes, name, mark.name if name != mark.name else ""

    def _look_inside(self, claim: Claim, *, is_odd: bool) -> bool:
        """Open what was claimed, without following, blocking or trusting it; False when it was taken from us."""
        try:
            if is_odd:  # no regular file when it was listed: opening a device may already do something
                found = self.system.lstat(claim.path)
            else:
                claim.fd = self.system.open(claim.path, OPEN_CLAIM)
                found = self.system.fstat(claim.fd)
        except OSError as error:
            return self._cannot_look(claim, error)
        if found.st_mode & 0o170000 != 0o100000:
            claim.trouble = "this is no regular file (a directory, fifo, socket, symbolic link or device)"
        claim.size = found.st_size
        claim.claimed_at, claim.modified_at = found.st_ctime, found.st_mtime
        return True

    def _cannot_look(self, claim: Claim, error: OSError) -> bool:
        """Whether a claim that cannot be opened is one all the same, with trouble. Raises *error* when it goes back."""
        if error.errno not in TROUBLES:
            self.settled(claim)  # first: what cannot be given back now is then no claim in hand, but a leftover
        if error.errno in (errno.ENOENT, errno.ESTALE):
            return False
        if error.errno not in TROUBLES:
            self._give_back(claim.file)
            raise error
        claim.trouble = f"the file {TROUBLES[error.errno]}"
        claim.claimed_at = claim.modified_at = self.system.wall_ns() / 1e9
        return True

    def _name_ignored(self) -> None:
        for name in list(self._scan.ignored - self._named)[: NAMED_MAX - len(self._named)]:
            self._named.add(name)
            log.warning("%s: the directory %s stays in incoming/, it is no message", self.url, names.shown(name))

    def _name_stuck(self, file: str, error: OSError) -> None:
        if file not in self._named and len(self._named) < NAMED_MAX:
            self._named.add(file)
            log.error(
                "%s: %s cannot be claimed and stays in incoming/: %s", self.url, names.shown(file), error.strerror
            )

    def _take_owner(self, lapses: int) -> None:
        """A directory of our own, never used before; the old one is emptied and removed first."""
        assert self._consumer is not None  # noqa: S101 - attach() comes first
        self._scan.forget()
        if not self.directory.is_same():
            # The queue was removed and made again, or its mount is gone: there is no lease of ours.
            raise OSError(errno.ESTALE, "another queue, or none, is there now; restart the pool if that is meant")
        self._leave_owner()
        while True:
            owner = names.owner_name(self._consumer.master, self._consumer.index, self.system)
            # ORDER: the board, mkdir, claim. A keeper lists pending/ first and reads the board after, so it never
            # finds a directory of a live worker that the board does not show. See test_H32_board_comes_before_mkdir.
            self._slot.set_text(WorkerText.OWNER, owner)
            try:
                self.system.mkdir(os.path.join(self.directory.pending, owner), 0o775)
            except FileExistsError:
                continue
            break
        self._owner, self._owner_path, self._lapses = owner, os.path.join(self.directory.pending, owner), lapses

    # ---- settle

    def done(self, claim: Claim) -> None:
        """See Queue.done: one unlink, or one rename into done/."""
        if self.settings.keep_done_s is not None:
            self._keep_done(claim)
            return
        # First: a client of NFS renames what is unlinked while it is open, and unlinks it later.
        self.close_claim(claim)
        try:
            self.system.unlink(claim.path)
        except OSError as error:
            with self._settling("finish", claim):
                self._check_ours(claim, is_ours=self.directory.has_removed(error, claim.path))
        else:
            self._in_hand = None

    def _keep_done(self, claim: Claim) -> None:
        with self._settling("finish", claim):
            is_ours = self.directory.move(claim.path, self.directory.done, claim.file)
            self._check_ours(claim, is_ours=is_ours)

    def _check_ours(self, claim: Claim, *, is_ours: bool) -> None:
        # ENOENT with a lease that was good all the time: the handler removed its input, or the reply was lost.
        if is_ours:
            return
        self._check_gone(claim, self.directory.done)
        if not self._was_ours(claim):
            raise ClaimLost(f"{names.shown(claim.name)} was given to another while it was handled here")

    def retry(self, claim: Claim, after_s: float | None = None, meta: dict[str, object] | None = None) -> bool:
        """See Queue.retry: one rename into deferred/, with the attempt counted."""
        if claim.attempt >= self.settings.max_attempts:
            self._to_errors(claim, f"failed {claim.attempt} times", meta or {})
            return False
        delay = self.backoff_s(claim.attempt) if after_s is None else max(after_s, 0.0)
        delay = min(delay, self.settings.retry_backoff_s_max)
        now_ns = self.system.boottime_ns()
        now_s = claim.claimed_at + (now_ns - claim.claimed_ns) / 1e9
        if self._words[Q.NO_CTIMES]:  # the claim's is the time of the put
            now_s = (now_ns + self._words[Q.CLOCK_NS]) / 1e9
        due = names.due_at(now_s + delay)
        file = names.marked(claim.attempt, claim.crashes, claim.token, claim.name)
        with self._settling("defer", claim):
            self._move_claim(claim, self.directory.deferred, f"{due}.{file}")
        correct_due(self.system, self._words, self.directory.deferred, f"{due}.{file}", now_s)
        return True

    def reject(self, claim: Claim, reason: str, meta: dict[str, object] | None = None) -> None:
        """See Queue.reject: one rename into errors/, fsync, then NAME.meta says why."""
        self._to_errors(claim, reason, meta or {})

    def _to_errors(self, claim: Claim, reason: str, meta: dict[str, object]) -> None:
        file = names.marked(claim.attempt, claim.crashes, claim.token, claim.name)
        with self._settling("reject", claim):
            self._move_claim(claim, self.directory.errors, file)
            self.system.fsync_directory(self.directory.errors)
        facts: Facts = {
            "queue": self.url,
            "host": self.host,
            "owner": self._owner,
            "worker": self._consumer.index if self._consumer else None,
        }
        facts |= facts_of_claim(claim, reason, self.system.wall_ns() / 1e9)
        self.write_meta(file, {**meta, **facts})

    def write_meta(self, file: str, facts: Facts) -> None:
        """Write errors/FILE.meta, whole or not at all; that it may be missing is part of the protocol."""
        write_meta(self.directory, file, facts, names.unpublished(self.tokens.name(self.host)))

    def release(self, claim: Claim) -> None:
        """See Queue.release: one rename back, under a fresh token."""
        file = names.marked(claim.attempt - 1, claim.crashes, self.tokens.token(claim.name), claim.name)
        with self._settling("give back", claim):
            self._move_claim(claim, self.directory.incoming, file)

    def forward(self, claim: Claim, queue: Queue, bodies: Sequence[Body] | None = None) -> None:
        """See Queue.forward: ONE rename where it can be, else put, then done."""
        if bodies is None and isinstance(queue, Spool):
            target = queue.directory.incoming
            with self._settling("forward", claim):
                try:
                    # A try before this one may have moved it, failed at the fsync, and it may be consumed by now.
                    if not claim.is_forwarded:
                        door = joined(self.system, queue.system)
                        self._move_claim(claim, target, names.marked(0, 0, claim.token, claim.name), door)
                        claim.is_forwarded = True
                except OSError as error:
                    if error.errno != errno.EXDEV:
                        raise
                else:
                    queue.system.fsync_directory(target)
                    return
        if bodies is None:
            bodies = [self._body_of(claim)]
        if len(bodies) == 1 and isinstance(queue, Spool):
            queue.enter(bodies[0], claim.name)
        else:
            queue.put_many(bodies)
        self.done(claim)

    def _body_of(self, claim: Claim) -> Path:
        # Where others may write, something else may be called so by now.
        is_sure = claim.fd >= 0 and self.system.is_anchored
        return Path(f"/proc/self/fd/{claim.fd}" if is_sure else claim.path)

    def _move_claim(self, claim: Claim, directory: str, file: str, door: System | None = None) -> None:
        """*door*: the way to both, where *directory* is another queue's."""
        ours = self.directory if door is None else self.directory.through(door)
        if ours.move(claim.path, directory, file):
            return
        self._check_gone(claim, directory)
        if ours.is_there(os.path.join(directory, file)):
            return  # an earlier try of this very settle moved it, and failed after that (an fsync, a full disk)
        if self._was_ours(claim):
            raise InputGone(f"{names.shown(claim.name)} was removed by its handler")
        raise ClaimLost(f"{names.shown(claim.name)} was given to another while it was handled here")

    def _check_gone(self, claim: Claim, target: str) -> None:
        """Raise OSError unless it is the message that is gone: a lost mount answers ENOENT to everything."""
        if not self.directory.is_same():
            raise OSError(errno.ESTALE, ".pool/id is another one now, or cannot be read", self.directory.path)
        if self.directory.is_there(claim.path):
            raise OSError(errno.ENOENT, f"it is still there, and {os.path.basename(target)}/ may be gone", claim.path)

    def _was_ours(self, claim: Claim) -> bool:
        """Whether our lease was good from the claim until now, read after the ENOENT."""
        # ORDER: the time, then the lapses, as in claim(); the open gap counts as well (protocol-check H36).
        # See test_a_worker_never_misses_a_lapse.
        beat_ns, lapses = self._words[Q.BEAT_NS], self._words[Q.LAPSES]
        return lapses == claim.lapses and self.system.boottime_ns() - beat_ns < self._words[Q.HALF_TIMEOUT_NS]

    # ---- our own directory

    def settle_leftovers(self) -> None:
        """See Queue.settle_leftovers: claims we did not know of go back, files a handler left go to errors/."""
        if self._owner:
            try:
                self._empty_owner()
            except FileNotFoundError:
                self._owner = ""
            except OSError as error:
                raise QueueUnavailable.at("look into", self._owner_path, error) from error

    def _empty_owner(self) -> None:
        for file in self.system.listdir(self._owner_path):
            if f"{self._owner_path}/{file}" == self._in_hand or file.startswith(names.STILL_OPEN):
                continue
            path = os.path.join(self._owner_path, file)
            try:
                if names.parse(file).token:
                    self._give_back(file)
                else:
                    self.to_errors_as_left(path, "left by a handler")
            except PermissionError as error:  # put there by who may write there, and keeps nothing of ours there
                if not is_stuck(self.system, path, error):
                    raise
                log.warning("%s: %s cannot be moved and stays: %s", self.url, names.shown(path), error.strerror)

    def _give_back(self, file: str) -> None:
        mark = names.parse(file)
        fresh = names.marked(mark.attempts, mark.crashes, self.tokens.token(mark.name), mark.name)
        self.directory.move(os.path.join(self._owner_path, file), self.directory.incoming, fresh)

    def to_errors_as_left(self, path: str, reason: str) -> None:
        """Move a file without a mark into errors/ under a fresh one: it never lands on another. Raises OSError."""
        full_name = os.path.basename(path)
        name = names.shortened(full_name, self.tokens.digits())
        file = names.marked(0, 0, self.tokens.token(name), name)
        if self.directory.move(path, self.directory.errors, file):
            facts = {"name": full_name, "reason": reason, "found_in": os.path.dirname(path), "queue": self.url}
            self.write_meta(file, {**facts, "rejected_at": names.iso(self.system.wall_ns() / 1e9)})
            log.warning("%s: %s moved to errors/: %s", self.url, names.shown(full_name), reason)

    def _leave_owner(self) -> None:
        if not self._owner:
            return
        try:
            self._empty_owner()
            self.system.rmdir(self._owner_path)
        except FileNotFoundError:
            pass
        except OSError as error:
            # A keeper finishes it: the board will not list this owner any more.
            log.warning("%s: our directory %s could not be removed: %s", self.url, self._owner, error)
        self._owner = ""

    def detach(self) -> None:
        """See Queue.detach."""
        self._leave_owner()
        if self._consumer is not None:
            self._slot.set_text(WorkerText.OWNER, "")

    # ---- the keeper's and the operator's verbs

    def places(self) -> list[Place]:
        """See Claimable.places."""
        return self.directory.places()

    def keeper(self, consumer: Consumer) -> SpoolKeeper:
        """See Claimable.keeper."""
        self._keeper = found = SpoolKeeper(self, consumer)
        return found

    def source(self) -> Incoming:
        """See Claimable.source."""
        return Incoming(self.directory.incoming, self.system)

    def waiting_count_max(self) -> int:
        """See Queue.waiting_count_max: whatever is there, a third of the time that the names of messages take."""
        incoming = self.directory.incoming
        with self._unavailable("count what waits in", incoming):
            return len(self.system.listdir(incoming))

    def watch_directory(self) -> str | None:
        """See Queue.watch_directory."""
        return self.directory.incoming

    def depth(self) -> Depth:
        """See Queue.depth."""
        return spool_look.depth(self.directory)

    def list(self, state: State | None = None) -> Iterator[Listed]:
        """See Queue.list."""
        return spool_look.listed(self.directory, state)

    def show(self, name: str) -> Sequence[Shown]:
        """See Queue.show."""
        return spool_look.show(self.directory, name)

    def requeue(self, name: str) -> int:
        """See Queue.requeue: one rename under a fresh token, then the .meta is removed."""
        count = 0
        with self._unavailable("requeue from", self.directory.errors):
            for listed in tuple(self.list("errors")):
                if listed.name != name:
                    continue
                if self.system.is_directory(listed.path):
                    raise NotSupported(f"{names.shown(name)} is a directory, no message: look at {listed.path}")
                short = names.shortened(name, self.tokens.digits())
                fresh = names.marked(0, 0, self.tokens.token(short), short)
                if self.directory.move(listed.path, self.directory.incoming, fresh):
                    self.directory.forget(f"{listed.path}.meta")
                    count += 1
        return count

    def settled(self, claim: Claim) -> None:
        """See Queue.settled. Again does nothing."""
        self._in_hand = None
        self.close_claim(claim)
