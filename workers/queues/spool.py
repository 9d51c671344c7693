"""
spool - directory queue of the mentat filer kind, made safe

incoming/ waits, pending/OWNER/ is claimed, deferred/ waits for its time, errors/
was rejected. A claim is one rename into the worker's own directory, under a mark
with a fresh token: so every move but put goes to a name that nobody else can make,
and is fenced (ENOENT: another has it) and never over another message.

Raises: QueueUnavailable for disk and permission errors, ClaimLost and InputGone
when a settle found nothing to settle, MessageExists, InvalidName, NotSupported.
Limits: one filesystem; at least once.
Long because: put, claim and settle share the marks, and are read together.
Source: maildir(5) for tmp and publish; qmail INTERNALS for the state table.
See also: SPOOL.md (the protocol), directory (the moves), lease, spool_keep (the
keeper's side), spool_look (the operator's).
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from workers.board import Q, W, WorkerText
from workers.errors import ClaimLost, InputGone, KeeperGone, MessageExists, NotSupported, QueueMissing, QueueUnavailable
from workers.message import Body, Claim
from workers.queues import names, spool_look
from workers.queues.base import Capability, Cause, Consumer, Depth, Kept, Listed, Queue, Settings, Shown, State
from workers.queues.directory import Directory, is_regular
from workers.queues.scan import Scan
from workers.queues.spool_keep import SpoolKeeper
from workers.system import SYSTEM, System

log = logging.getLogger(__name__)

DELAY_S_MAX = 10 * 365 * 86400.0  # beyond it a due time would not have the digits that a due time has
Written = tuple[os.stat_result, int]  # of a complete file in tmp/: fstat, and CLOCK_BOOTTIME after its last write
LOST_MAX = 256  # races in a row: a network's cached listing, which shows what is gone, must not hold us for ever
OPEN_CLAIM = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
TROUBLES = {
    errno.ELOOP: "is a symbolic link",
    errno.ENXIO: "is a socket or a device without a driver",
    errno.EACCES: "cannot be read: permission denied",
    errno.EPERM: "cannot be read: not permitted",
}


class Spool(Queue):
    """One spool queue. See Queue for the verbs."""

    protocol = "spool"
    capabilities = frozenset(Capability)

    def __init__(
        self, path: str, settings: Settings | None = None, *, system: System = SYSTEM, host: str = "localhost"
    ) -> None:
        self.settings = settings or Settings()
        self.system = system
        self.host = host
        self.directory = Directory(path, system)
        self.directory.open(self.settings)
        self.url = f"spool:{self.directory.path}"
        self.tokens = names.Tokens(system)
        self._consumer: Consumer | None = None
        self._owner = ""
        self._owner_path = ""
        self._lapses = 0
        self._in_hand: str | None = None
        self._scan = Scan(self.directory.incoming, self.settings.order, system)
        self._named: set[str] = set()
        self._keeper: SpoolKeeper | None = None
        self.on_close: Callable[[], None] | None = None
        self.keeper_is_gone: Callable[[], bool] | None = None  # of a keeper that this process forked itself

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
        if not 0 <= delay <= DELAY_S_MAX:  # also refuses what is no number
            raise NotSupported(f"a delay of {delay} s is not possible: give 0 to ten years, in seconds")
        if priority is not None:
            raise NotSupported("priority is not possible: a spool queue has none; use a queue for each priority")
        if name is not None and delay > 0:
            raise NotSupported("delay together with a name is not possible: two of one name could become due together")
        if name is not None:
            names.check_given(name)
        temporary = self.tokens.name(self.host)
        with self._unavailable("put a message into", self.directory.path):
            written = self._write(temporary, body, durable=durable is not False)
            self._publish(temporary, written, name, delay=delay, durable=durable is not False)
        return name or temporary

    def put_many(self, bodies: Sequence[Body], *, durable: bool | None = None) -> list[str]:
        """See Queue.put_many: all are written, then all are published, then one fsync of incoming/."""
        is_durable = durable is not False
        written: list[tuple[str, Written]] = []
        entered: list[str] = []
        try:
            with self._unavailable("put messages into", self.directory.path):
                for body in bodies:
                    temporary = self.tokens.name(self.host)
                    written.append((temporary, self._write(temporary, body, durable=is_durable)))
                for temporary, complete in written:
                    self._publish(temporary, complete, None, delay=0, durable=False)
                    entered.append(temporary)
                if is_durable:
                    self._make_durable(self.directory.incoming)
        except QueueUnavailable as error:
            for temporary, _ in written[len(entered) :]:
                self.directory.forget(os.path.join(self.directory.tmp, temporary))
            error.names = tuple(entered)
            raise
        return entered

    def put_file(self, path: Path, name: str | None = None, *, durable: bool | None = None) -> str:
        """Put the file *path* by moving it: it is gone from where it was when this returns."""
        if name is not None:
            names.check_given(name)
        temporary = self.tokens.name(self.host)
        target = os.path.join(self.directory.tmp, temporary)
        with self._unavailable("move into the queue", str(path)):
            if not is_regular(self.system.lstat(str(path))):
                raise OSError(errno.EINVAL, "is no regular file")
            try:
                self.system.rename(str(path), target)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                entered = self.put(path, name, durable=durable)
                self.system.unlink(str(path))
                return entered
            try:
                fd = self.system.open(target, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
                try:
                    if durable is not False:
                        self.system.fsync(fd)
                    written = self.system.fstat(fd), self.system.boottime_ns()
                finally:
                    self.system.close(fd)
                self._publish(temporary, written, name, delay=0, durable=durable is not False, keep=True)
            except BaseException:
                # It is the caller's only copy: back to where it came from, unless it was published already.
                if self._is_there(target):
                    self.system.rename(target, str(path))
                raise
        return name or temporary

    def _write(self, temporary: str, body: Body, *, durable: bool) -> Written:
        path = f"{self.directory.tmp}/{temporary}"
        if isinstance(body, Path):
            found = self.directory.copy_file(str(body), path, durable=durable)
        else:
            raw = body.encode("utf-8") if isinstance(body, str) else body
            found = self.directory.write_file(path, raw, durable=durable)
        return found, self.system.boottime_ns()

    def _publish(
        self,
        temporary: str,
        written: Written,
        name: str | None,
        *,
        delay: float,
        durable: bool,
        file: str | None = None,
        keep: bool = False,
    ) -> None:
        """Let the complete file *temporary* in tmp/ be seen under its final name."""
        source = f"{self.directory.tmp}/{temporary}"
        found, written_ns = written
        target, final = self.directory.incoming, file or name or temporary
        if delay > 0:
            due = -int(-(found.st_ctime_ns / 1e9 + delay) // 1)
            target, final = self.directory.deferred, f"{due}.{names.marked(0, 0, self.tokens.token(final), final)}"
        try:
            if self.system.boottime_ns() - written_ns > self.directory.times.stale_after_s * 1e9 / 2:
                raise OSError(errno.ETIMEDOUT, "stopped for so long that the file may have been reaped")
            if name is None:
                if not self.directory.move(source, target, final):
                    raise OSError(errno.ENOENT, "the directory or the file just written is gone")
            else:
                self._link(source, os.path.join(target, name), name)
        except BaseException:
            if not keep:
                self.directory.forget(source)
            raise
        if durable:
            self._make_durable(target)

    def _make_durable(self, directory: str) -> None:
        """fsync the names in *directory*; the message is there already, so a failure here is "unknown"."""
        try:
            self.system.fsync_directory(directory)
        except OSError as error:
            raise QueueUnavailable.at("make durable", directory, error, is_unknown=True) from error

    def _link(self, source: str, target: str, name: str) -> None:
        # RACE: two producers of one name. link never replaces, where rename would: exactly one of them wins.
        # See test_a_name_that_waits_is_never_replaced.
        try:
            self.system.link(source, target)
        except FileExistsError:
            if self.directory.network is None or not self._is_one_file(source, target):
                raise self._exists(name) from None
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            self._rename_new(source, target, name)
            return
        self.directory.forget(source)

    def _rename_new(self, source: str, target: str, name: str) -> None:
        """For a filesystem without hard links: the kernel's own rename that never replaces."""
        try:
            self.system.rename_noreplace(source, target)
        except FileExistsError:
            raise self._exists(name) from None
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EPERM):
                raise
            raise NotSupported(
                f"a name of your own is not possible: the filesystem of {self.directory.path} has neither hard links "
                "nor a rename that never replaces"
            ) from error

    def _exists(self, name: str) -> MessageExists:
        return MessageExists(f"a message called {names.shown(name)} is waiting in {self.directory.incoming} already")

    def _is_one_file(self, source: str, target: str) -> bool:
        ours, theirs = self.system.lstat(source), self.system.lstat(target)
        return (ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino)

    # ---- claim

    def attach(self, consumer: Consumer) -> None:
        """See Queue.attach. Makes nothing yet: a directory of our own comes with the first claim."""
        if not self.directory.id:
            raise QueueMissing(f"{self.directory.path} has no .pool/: open it with create to take from it")
        self._consumer = consumer
        self._words = consumer.board.queues[consumer.queue_slot].words
        self._slot = consumer.board.worker(consumer.worker_slot)
        self._scan = Scan(self.directory.incoming, self.settings.order, self.system, consumer.index, consumer.count)

    def claim(self) -> Claim | None:
        """See Queue.claim: one rename; ENOENT is a lost race, counted and nothing else."""
        words = self._words
        if words[Q.PAUSED]:
            self._scan.forget()
            return None
        # ORDER: the time of the beat, then the lapses (the keeper writes them the other way round).
        # See test_a_worker_never_misses_a_lapse.
        beat_ns, lapses = words[Q.BEAT_NS], words[Q.LAPSES]
        now_ns = self.system.boottime_ns()
        if now_ns - beat_ns >= words[Q.HALF_TIMEOUT_NS]:
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
        incoming = self.directory.incoming
        lost = 0
        while lost < LOST_MAX and (file := self._scan.next()) is not None:
            mark = names.parse(file)
            name, full_name = mark.name, ""
            if len(name) > 43 and len(os.fsencode(name)) > names.NAME_BYTES_MAX:
                name, full_name = names.shortened(name, self.tokens.digits()), name
            token = self.tokens.token(name)
            target = names.marked(mark.attempts, mark.crashes, token, name)
            if not self.directory.move(f"{incoming}/{file}", self._owner_path, target):
                self._slot.words[W.CONFLICTS] += 1
                lost += 1
                if not is_sure:
                    # RACE: we were taken for dead while stopped, and a keeper removed our directory.
                    # See test_a_worker_whose_directory_is_gone_takes_a_fresh_one.
                    if not self._is_there(self._owner_path):
                        self._take_owner(lapses)
                    is_sure = True
                continue
            claim = Claim(
                name=name,
                path=f"{self._owner_path}/{target}",
                attempt=mark.attempts + 1,
                crashes=mark.crashes,
                claimed_ns=now_ns,
                file=target,
                full_name=full_name,
                token=token,
                lapses=lapses,
            )
            self._in_hand = target
            if self._look_inside(claim, is_odd=file in self._scan.odd):
                self._name_ignored()
                return claim
            self._in_hand = None
        self._name_ignored()
        return None

    def _look_inside(self, claim: Claim, *, is_odd: bool) -> bool:
        """Open what was claimed, without following, blocking or trusting it; False when it was taken from us."""
        try:
            if is_odd:  # no regular file when it was listed: opening a device may already do something
                found = self.system.lstat(claim.path)
            else:
                claim.fd = self.system.open(claim.path, OPEN_CLAIM)
                found = self.system.fstat(claim.fd)
        except OSError as error:
            if error.errno not in TROUBLES:
                self.settled(claim)  # first: what cannot be given back now is then no claim in hand, but a leftover
            if error.errno in (errno.ENOENT, errno.ESTALE):
                return False
            if error.errno not in TROUBLES:
                self._give_back(claim.file)
                raise
            claim.trouble = f"the file {TROUBLES[error.errno]}"
            claim.claimed_at = claim.enqueued_at = self.system.wall_ns() / 1e9
            return True
        if not is_regular(found):
            claim.trouble = "this is no regular file (a directory, fifo, socket, symbolic link or device)"
        claim.size = found.st_size
        claim.claimed_at = found.st_ctime_ns / 1e9
        own = names.enqueued_at(claim.name)
        claim.enqueued_at = found.st_mtime_ns / 1e9 if own is None else own
        return True

    def _name_ignored(self) -> None:
        for name in self._scan.ignored - self._named:
            log.warning("%s: the directory %s stays in incoming/, it is no message", self.url, names.shown(name))
        self._named |= self._scan.ignored

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
                self.system.mkdir(os.path.join(self.directory.pending, owner), 0o777)
            except FileExistsError:
                continue
            break
        self._owner, self._owner_path, self._lapses = owner, os.path.join(self.directory.pending, owner), lapses

    def _is_there(self, path: str) -> bool:
        if self.directory.network is not None:
            return self.directory.is_listed(path)  # a stat may be answered from a cache
        try:
            self.system.lstat(path)
        except FileNotFoundError:
            return False
        return True

    # ---- settle

    def done(self, claim: Claim) -> None:
        """See Queue.done: one unlink, or one rename into done/."""
        with self._settling("finish", claim):
            if self.settings.keep_done_s is not None:
                is_ours = self.directory.move(claim.path, self.directory.done, claim.file)
                if not is_ours and self._is_there(claim.path):
                    raise OSError(errno.ENOENT, "done/ is gone", self.directory.done)
            else:
                is_ours = self.directory.remove(claim.path)
            # ENOENT with a lease that was good all the time: the handler removed its input, or the reply was lost.
            if not is_ours and not self._was_ours(claim):
                raise ClaimLost(f"{names.shown(claim.name)} was given to another while it was handled here")

    def retry(self, claim: Claim, after_s: float | None = None, meta: dict[str, object] | None = None) -> bool:
        """See Queue.retry: one rename into deferred/, with the attempt counted."""
        if claim.attempt >= self.settings.max_attempts:
            self._to_errors(claim, f"failed {claim.attempt} times", meta or {})
            return False
        delay = self.backoff_s(claim.attempt) if after_s is None else max(after_s, 0.0)
        delay = min(delay, self.settings.retry_backoff_s_max)
        passed = (self.system.boottime_ns() - claim.claimed_ns) / 1e9
        due = -int(-(claim.claimed_at + passed + delay) // 1)
        file = names.marked(claim.attempt, claim.crashes, claim.token, claim.name)
        with self._settling("defer", claim):
            self._move_claim(claim, self.directory.deferred, f"{due}.{file}")
        return True

    def backoff_s(self, attempt: int) -> float:
        """A random time up to base * 2^(attempt - 1), at most the configured maximum (full jitter)."""
        highest = self.settings.retry_backoff_s * 2.0 ** min(attempt - 1, 60)
        return random.uniform(0, min(highest, self.settings.retry_backoff_s_max))  # noqa: S311 - spreads load, no secret

    def reject(self, claim: Claim, reason: str, meta: dict[str, object] | None = None) -> None:
        """See Queue.reject: one rename into errors/, fsync, then NAME.meta says why."""
        self._to_errors(claim, reason, meta or {})

    def _to_errors(self, claim: Claim, reason: str, meta: dict[str, object]) -> None:
        file = names.marked(claim.attempt, claim.crashes, claim.token, claim.name)
        with self._settling("reject", claim):
            self._move_claim(claim, self.directory.errors, file)
            self.system.fsync_directory(self.directory.errors)
        facts: dict[str, object] = {
            "name": claim.full_name or claim.name,
            "reason": reason,
            "attempts": claim.attempt,
            "crashes": claim.crashes,
            "queue": self.url,
            "host": self.host,
            "owner": self._owner,
            "worker": self._consumer.index if self._consumer else None,
            "enqueued_at": names.iso(claim.enqueued_at),
            "claimed_at": names.iso(claim.claimed_at),
            "rejected_at": names.iso(self.system.wall_ns() / 1e9),
        }
        self.write_meta(file, {**meta, **facts})

    def write_meta(self, file: str, facts: dict[str, object]) -> None:
        """Write errors/FILE.meta, whole or not at all; that it may be missing is part of the protocol."""
        temporary = self.tokens.name(self.host)
        text = json.dumps(facts, sort_keys=True, indent=4, default=str)
        try:
            self.directory.write_file(os.path.join(self.directory.tmp, temporary), text.encode(), durable=False)
            self.directory.move(os.path.join(self.directory.tmp, temporary), self.directory.errors, f"{file}.meta")
        except OSError as error:
            self.directory.forget(os.path.join(self.directory.tmp, temporary))
            log.warning("%s: %s.meta could not be written: %s", self.url, names.shown(file), error)

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
                        self._move_claim(claim, target, names.marked(0, 0, claim.token, claim.name))
                        claim.is_forwarded = True
                except OSError as error:
                    if error.errno != errno.EXDEV:
                        raise
                else:
                    self.system.fsync_directory(target)
                    return
        if bodies is None:
            bodies = [Path(claim.path)]
        if len(bodies) == 1 and isinstance(queue, Spool):
            queue.enter(bodies[0], claim.name)
        else:
            queue.put_many(bodies)
        self.done(claim)

    def enter(self, body: Body, name: str) -> None:
        """Put *body* as a message called *name*, under a mark: it never meets another of that name. Durable."""
        temporary = self.tokens.name(self.host)
        with self._unavailable("forward a message into", self.directory.path):
            written = self._write(temporary, body, durable=True)
            file = names.marked(0, 0, self.tokens.token(name), name)
            self._publish(temporary, written, None, delay=0, durable=True, file=file)

    def _move_claim(self, claim: Claim, directory: str, file: str) -> None:
        if self.directory.move(claim.path, directory, file):
            return
        if self._is_there(claim.path):
            raise OSError(errno.ENOENT, "the directory is gone", directory)
        if self._is_there(os.path.join(directory, file)):
            return  # an earlier try of this very settle moved it, and failed after that (an fsync, a full disk)
        if self._was_ours(claim):
            raise InputGone(f"{names.shown(claim.name)} was removed by its handler")
        raise ClaimLost(f"{names.shown(claim.name)} was given to another while it was handled here")

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
            if file == self._in_hand or file.startswith(".nfs"):
                continue
            if names.parse(file).token:
                self._give_back(file)
            else:
                self.to_errors_as_left(os.path.join(self._owner_path, file), "left by a handler")

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

    def keeper(self, consumer: Consumer) -> SpoolKeeper:
        """The keeper's side of this queue, made once; *consumer* names the master and its slot on the board."""
        self._keeper = SpoolKeeper(self, consumer)
        return self._keeper

    def keeper_side(self) -> SpoolKeeper:
        """What keeper() made."""
        assert self._keeper is not None  # noqa: S101 - keeper() comes first
        return self._keeper

    def keep(self) -> Kept:
        """See Queue.keep."""
        return self.keeper_side().keep()

    def release_owner(self, owner: str, cause: Cause, note: str = "") -> list[str]:
        """See Queue.release_owner."""
        return self.keeper_side().release_owner(owner, cause, note)

    def wait(self, timeout_s: float) -> bool:
        """See Queue.wait: adaptive polling, 1 ms doubling to 100 ms (1 s on a network filesystem)."""
        end_ns = self.system.boottime_ns() + int(timeout_s * 1e9)
        pause_s, longest_s = 0.001, 1.0 if self.directory.network else 0.1
        while (left_s := (end_ns - self.system.boottime_ns()) / 1e9) > 0:
            if any(not names.is_ignored(file) for file in self.system.listdir(self.directory.incoming)):
                return True
            self.system.sleep(min(pause_s * random.uniform(0.8, 1.2), left_s))  # noqa: S311 - spreads load
            pause_s = min(pause_s * 2, longest_s)
        return False

    def watch_directory(self) -> str | None:
        """See Queue.watch_directory."""
        return None if self.directory.network else self.directory.incoming

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
                if os.path.isdir(listed.path) and not os.path.islink(listed.path):
                    raise NotSupported(f"{names.shown(name)} is a directory, no message: look at {listed.path}")
                short = names.shortened(name, self.tokens.digits())
                fresh = names.marked(0, 0, self.tokens.token(short), short)
                if self.directory.move(listed.path, self.directory.incoming, fresh):
                    self.directory.forget(f"{listed.path}.meta")
                    count += 1
        return count

    def pause(self) -> None:
        """See Queue.pause: .pool/PAUSED, seen by every host; touch(1) does the same."""
        with self._unavailable("pause", self.directory.path):
            path = os.path.join(self.directory.pool, "PAUSED")
            self.system.close(self.system.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666))

    def resume(self) -> None:
        """See Queue.resume."""
        with self._unavailable("resume", self.directory.path):
            self.directory.remove(os.path.join(self.directory.pool, "PAUSED"))

    def is_paused(self) -> bool:
        """See Queue.is_paused."""
        return self.directory.is_listed(os.path.join(self.directory.pool, "PAUSED"))

    # ---- errors

    def _unavailable(self, doing: str, path: str) -> _Worded:
        return _Worded(doing, path, is_network=self.directory.network is not None)

    def _settling(self, doing: str, claim: Claim) -> _Worded:
        return _Worded(
            doing, claim.path, is_network=self.directory.network is not None, at_end=lambda: self.settled(claim)
        )

    def close(self) -> None:
        """See Queue.close: leaves, and ends the keeper of a queue that was opened to consume."""
        self.detach()
        if self.on_close is not None:
            self.on_close()
            self.on_close = None

    def settled(self, claim: Claim) -> None:
        """See Queue.settled. Again does nothing."""
        self._in_hand = None
        if claim.fd >= 0:
            fd, claim.fd = claim.fd, -1
            with contextlib.suppress(OSError):  # it was open for reading: there is nothing that could be lost
                self.system.close(fd)


class _Worded:
    """
    Turn an OSError of the block into a QueueUnavailable that says what was being done, where.

    *at_end* is called unless the block may be tried again.
    """

    def __init__(self, doing: str, path: str, *, is_network: bool, at_end: Callable[[], None] | None = None) -> None:
        self._doing, self._path, self._is_network = doing, path, is_network
        self._at_end = at_end

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            is_unknown = self._is_network and error.errno in (errno.EIO, errno.ETIMEDOUT, errno.ESTALE)
            raise QueueUnavailable.at(self._doing, self._path, error, is_unknown=is_unknown) from error
        if self._at_end is not None and not isinstance(error, QueueUnavailable):
            self._at_end()  # settled, or lost: in either case no longer in hand
