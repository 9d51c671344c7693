"""
spool_put - the producer's side of a spool queue: written in tmp/, seen in incoming/ by one rename

A put that does not wait for the disk is four calls: open, write, close, rename; a
durable one adds the file's fsync and that of the directory. A batch is written whole
before any of it is seen, and when it is durable and of BATCH_MIN bodies or more, one
syncfs(2) stands for the fsync of each, where that reports every error.

Raises: QueueUnavailable for disk and permission errors, MessageExists, InvalidName,
NotSupported.
Limits: syncfs waits for all that others have written to the same filesystem as well.
Producers do not share the fsync of incoming/ among themselves, for the filesystem's
journal does: on ext4, 1, 2, 8 and 32 processes put 3,100, 3,300, 9,000 and 9,700 durable
messages a second. One fsync for all who wait, behind a lock, had 0.6 to 1.2 of that
speed with threads and 0.6 to 1.0 with processes.
Source: maildir(5) for tmp and publish; syncfs(2) and fsync(2) for what is reported when.
See also: SPOOL.md "Putting" and "Durability", directory (the moves), spool (claim and settle).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

from workers.errors import MessageExists, NotSupported, QueueUnavailable
from workers.message import Body
from workers.queues import names
from workers.queues.directory import CREATE, Directory, is_regular

DELAY_S_MAX = 10 * 365 * 86400.0  # beyond it a due time would not have the digits that a due time has
GROUP = 1024  # bodies of a batch that are written before the first of them is seen
BATCH_MIN = 16  # from here on one syncfs is several times as fast; below, the other writers' data may cost more
OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Producer:
    """Puts into one queue. See Queue for the verbs."""

    def __init__(self, directory: Directory, tokens: names.Tokens, host: str) -> None:
        self._directory = directory
        self._system = directory.system
        self._tokens = tokens
        self._host = host
        self._longest_ns = int(directory.times.stale_after_s * 1e9 / 2)  # from the last write to the rename
        self._syncs_as_one: bool | None = None  # not asked yet

    def put(self, body: Body, name: str | None, priority: int | None, delay: float, durable: bool | None) -> str:
        """See Queue.put: tmp/, fsync, one rename into incoming/, fsync of incoming/."""
        if name is not None or delay or priority is not None:
            self._check(name, priority, delay)
        directory, target = self._directory, self._directory.incoming
        final = temporary = self._tokens.name(self._host)
        path = f"{directory.tmp}/{temporary}"
        try:
            if durable is False and not delay:
                self._write_plain(path, body)
            else:
                found = self._write(path, body, durable=durable is not False)
                if delay:
                    target, final = directory.deferred, self._due_name(found, delay, final)
            if name is None:
                self._publish(path, self._system.boottime_ns(), target, final)
            else:
                self._publish(path, self._system.boottime_ns(), target, name, is_given=True)
        except OSError as error:
            raise directory.unavailable("put a message into", directory.path, error) from error
        if durable is not False:
            self._make_durable(target)
        return name or temporary

    def _check(self, name: str | None, priority: int | None, delay: float) -> None:
        if not 0 <= delay <= DELAY_S_MAX:  # also refuses what is no number
            raise NotSupported(f"a delay of {delay} s is not possible: give 0 to ten years, in seconds")
        if priority is not None:
            raise NotSupported("priority is not possible: a spool queue has none; use a queue for each priority")
        if name is not None and delay > 0:
            raise NotSupported("delay together with a name is not possible: two of one name could become due together")
        if name is not None:
            names.check_given(name)

    def _due_name(self, found: os.stat_result, delay: float, name: str) -> str:
        due = -int(-(found.st_ctime_ns / 1e9 + delay) // 1)
        return f"{due}.{names.marked(0, 0, self._tokens.token(name), name)}"

    def enter(self, body: Body, name: str) -> None:
        """Put *body* as a message called *name*, under a mark: it never meets another of that name. Durable."""
        directory = self._directory
        path = f"{directory.tmp}/{self._tokens.name(self._host)}"
        try:
            self._write(path, body, durable=True)
            file = names.marked(0, 0, self._tokens.token(name), name)
            self._publish(path, self._system.boottime_ns(), directory.incoming, file)
        except OSError as error:
            raise directory.unavailable("forward a message into", directory.path, error) from error
        self._make_durable(directory.incoming)

    # ---- many

    def put_many(self, bodies: Sequence[Body], *, durable: bool | None = None) -> list[str]:
        """See Queue.put_many: in groups, of which all are written and synced, then published, then incoming/ synced."""
        entered: list[str] = []
        try:
            for start in range(0, len(bodies), GROUP):
                self._put_group(bodies[start : start + GROUP], entered, durable=durable is not False)
        except OSError as error:
            unavailable = self._directory.unavailable("put messages into", self._directory.path, error)
            unavailable.names = tuple(entered)
            raise unavailable from error
        except QueueUnavailable as error:
            error.names = tuple(entered)
            raise
        return entered

    def _put_group(self, bodies: Sequence[Body], entered: list[str], *, durable: bool) -> None:
        directory, before = self._directory, len(entered)
        written: list[tuple[str, int]] = []
        try:
            if durable and len(bodies) >= BATCH_MIN and self._has_syncfs():
                # ORDER: open, write, syncfs, rename. syncfs reports what failed since its descriptor was opened, and
                # what it did not sync may be seen after a power loss without its content.
                # See test_a_batch_is_synced_after_the_last_write_and_before_the_first_rename.
                fd = self._system.open(directory.incoming, OPEN_DIRECTORY)
                try:
                    self._write_all(bodies, written, durable=False)
                    self._system.syncfs(fd)
                finally:
                    self._system.close(fd)
            else:
                self._write_all(bodies, written, durable=durable)
            for temporary, written_ns in written:
                self._publish(f"{directory.tmp}/{temporary}", written_ns, directory.incoming, temporary)
                entered.append(temporary)
        except BaseException:
            for temporary, _ in written[len(entered) - before :]:
                directory.forget(f"{directory.tmp}/{temporary}")
            raise
        if durable:
            self._make_durable(directory.incoming)

    def _write_all(self, bodies: Sequence[Body], written: list[tuple[str, int]], *, durable: bool) -> None:
        for body in bodies:
            temporary = self._tokens.name(self._host)
            path = f"{self._directory.tmp}/{temporary}"
            if durable:
                self._write(path, body, durable=True)
            else:
                self._write_plain(path, body)
            written.append((temporary, self._system.boottime_ns()))

    def _has_syncfs(self) -> bool:
        if self._syncs_as_one is None:
            self._syncs_as_one = self._system.syncs_as_one(self._directory.incoming)
        return self._syncs_as_one

    # ---- a file that is there already

    def put_file(self, path: Path, name: str | None = None, *, durable: bool | None = None) -> str:
        """Put the file *path* by moving it: it is gone from where it was when this returns."""
        if name is not None:
            names.check_given(name)
        try:
            return self._put_file(str(path), name, durable=durable is not False)
        except OSError as error:
            raise self._directory.unavailable("move into the queue", str(path), error) from error

    def _put_file(self, path: str, name: str | None, *, durable: bool) -> str:
        system, directory = self._system, self._directory
        if not is_regular(system.lstat(path)):
            raise OSError(errno.EINVAL, "is no regular file")
        temporary = self._tokens.name(self._host)
        target = f"{directory.tmp}/{temporary}"
        try:
            system.rename(path, target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            entered = self.put(Path(path), name, None, 0, durable)
            system.unlink(path)
            return entered
        try:
            if durable:
                fd = system.open(target, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
                try:
                    system.fsync(fd)
                finally:
                    system.close(fd)
            final, written_ns = name or temporary, system.boottime_ns()
            self._publish(target, written_ns, directory.incoming, final, is_given=name is not None, keep=True)
            if durable:
                self._make_durable(directory.incoming)
        except BaseException:
            # It is the caller's only copy: back to where it came from, unless it was published already.
            if directory.is_there(target):
                system.rename(target, path)
            raise
        return name or temporary

    # ---- write and publish

    def _write_plain(self, path: str, body: Body) -> None:
        """Make *path* with *body*, all of it, by three calls; nothing is left when that fails. Raises OSError."""
        if type(body) is not bytes:
            self._write(path, body, durable=False)
            return
        system = self._system
        fd = system.open(path, CREATE, 0o666)
        try:
            try:
                size = system.write(fd, body) if body else 0
                while size < len(body):
                    size += system.write(fd, body[size:])
            finally:
                system.close(fd)
        except BaseException:
            self._directory.forget(path)
            raise

    def _write(self, path: str, body: Body, *, durable: bool) -> os.stat_result:
        if isinstance(body, Path):
            return self._directory.copy_file(str(body), path, durable=durable)
        raw = body.encode("utf-8") if isinstance(body, str) else body
        return self._directory.write_file(path, raw, durable=durable)

    def _publish(
        self, source: str, written_ns: int, target: str, final: str, *, is_given: bool = False, keep: bool = False
    ) -> None:
        """
        Let the complete file *source* in tmp/ be seen as *final* in the directory *target*. Raises OSError.

        *written_ns* is CLOCK_BOOTTIME after its last write. *is_given*: the caller chose *final*, so
        another may have it. *keep*: leave *source* where it is when this fails.
        """
        system = self._system
        try:
            if system.boottime_ns() - written_ns > self._longest_ns:
                raise OSError(errno.ETIMEDOUT, "stopped for so long that the file may have been reaped")
            if is_given:
                self._link(source, f"{target}/{final}", final)
                return
            try:
                system.rename(source, f"{target}/{final}")
            except OSError as error:
                if not self._directory.has_moved(error, source, target, final):
                    raise OSError(errno.ENOENT, "the directory or the file just written is gone") from error
        except BaseException:
            if not keep:
                self._directory.forget(source)
            raise

    def _make_durable(self, directory: str) -> None:
        """fsync the names in *directory*; the message is there already, so a failure here is "unknown"."""
        try:
            self._system.fsync_directory(directory)
        except OSError as error:
            raise QueueUnavailable.at("make durable", directory, error, is_unknown=True) from error

    def _link(self, source: str, target: str, name: str) -> None:
        # RACE: two producers of one name. link never replaces, where rename would: exactly one of them wins.
        # See test_a_name_that_waits_is_never_replaced.
        try:
            self._system.link(source, target)
        except FileExistsError:
            if self._directory.network is None or not self._is_one_file(source, target):
                raise self._exists(name) from None
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            self._rename_new(source, target, name)
            return
        self._directory.forget(source)

    def _rename_new(self, source: str, target: str, name: str) -> None:
        """For a filesystem without hard links: the kernel's own rename that never replaces."""
        try:
            self._system.rename_noreplace(source, target)
        except FileExistsError:
            raise self._exists(name) from None
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EPERM):
                raise
            raise NotSupported(
                f"a name of your own is not possible: the filesystem of {self._directory.path} has neither hard links "
                "nor a rename that never replaces"
            ) from error

    def _exists(self, name: str) -> MessageExists:
        return MessageExists(f"a message called {names.shown(name)} is waiting in {self._directory.incoming} already")

    def _is_one_file(self, source: str, target: str) -> bool:
        ours, theirs = self._system.lstat(source), self._system.lstat(target)
        return (ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino)
