"""
spool_put - the producer's side of a spool queue: written in tmp/, seen in incoming/ by one rename

A put that does not wait for the disk is four calls: open, write, close, rename; a
durable one adds the file's fsync and that of the directory. A batch is written whole
before any of it is seen, and when it is durable and of BATCH_MIN bodies or more, one
syncfs(2) stands for the fsync of each, where that reports every error. A file that is
moved in is never under any name but its own and the message's: a kill cannot lose it.

Raises: QueueUnavailable for disk and permission errors, MessageExists, InvalidName,
NotSupported.
Limits: syncfs waits for all that others have written to the same filesystem as well.
Producers do not share the fsync of incoming/ among themselves, for the filesystem's
journal does: on ext4, 1, 2, 8 and 32 processes put 3,100, 3,300, 9,000 and 9,700 durable
messages a second. One fsync for all who wait, behind a lock, had 0.6 to 1.2 of that
speed with threads and 0.6 to 1.0 with processes.
Long because: what an error of each step means to the caller is told beside the step.
Source: maildir(5) for tmp and publish; syncfs(2) and fsync(2) for what is reported when.
See also: SPOOL.md "Putting" and "Durability", directory (the moves), spool (claim and settle).
"""

from __future__ import annotations

import errno
import os
from collections import deque
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
OPEN_SOURCE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


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
        path = f"{directory.tmp}/{names.unpublished(temporary)}"
        try:
            written_ns = self._write(path, body, durable=durable is not False)
            if delay:
                target, final = directory.deferred, self._due_name(path, delay, final)
            if name is None:
                self._publish(path, written_ns, target, final)
            else:
                self._publish(path, written_ns, target, name, is_given=True)
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

    def _due_name(self, path: str, delay: float, name: str) -> str:
        try:
            found = self._system.lstat(path)
        except BaseException:
            self._directory.forget(path)
            raise
        return f"{names.due_at(found.st_ctime_ns / 1e9 + delay)}.{names.marked(0, 0, self._tokens.token(name), name)}"

    def enter(self, body: Body, name: str) -> None:
        """Put *body* as a message called *name*, under a mark: it never meets another of that name. Durable."""
        directory = self._directory
        path = f"{directory.tmp}/{names.unpublished(self._tokens.name(self._host))}"
        try:
            written_ns = self._write(path, body, durable=True)
            file = names.marked(0, 0, self._tokens.token(name), name)
            self._publish(path, written_ns, directory.incoming, file)
        except OSError as error:
            raise directory.unavailable("forward a message into", directory.path, error) from error
        self._make_durable(directory.incoming)

    # ---- many

    def put_many(self, bodies: Sequence[Body], *, durable: bool | None = None) -> list[str]:
        """
        See Queue.put_many: in groups, of which all are written and synced, then published, then incoming/ synced.

        Raises TypeError and ValueError for a body that cannot be one, before anything is entered.
        """
        for body in bodies:
            if type(body) is not bytes:
                _check_body(body)
        entered: list[str] = []
        try:
            for start in range(0, len(bodies), GROUP):
                self._put_group(bodies[start : start + GROUP], entered, durable=durable is not False)
        except OSError as error:
            unavailable = self._directory.unavailable("put messages into", self._directory.path, error)
            self._answer_for(entered, unavailable, durable=durable is not False)
            raise unavailable from error
        except QueueUnavailable as error:
            self._answer_for(entered, error, durable=durable is not False)
            raise
        return entered

    def _answer_for(self, entered: list[str], error: QueueUnavailable, *, durable: bool) -> None:
        """Let *error* name what was *entered* before it, as durable as was asked, or else as unknown."""
        error.names = tuple(entered)
        if not (durable and entered):
            return
        try:
            self._system.fsync_directory(self._directory.incoming)
        except OSError:
            error.is_unknown = True

    def _put_group(self, bodies: Sequence[Body], entered: list[str], *, durable: bool) -> None:
        directory = self._directory
        written: deque[tuple[str, int]] = deque()  # and not seen yet
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
            while written:
                temporary, written_ns = written.popleft()
                path = f"{directory.tmp}/{names.unpublished(temporary)}"
                self._publish(path, written_ns, directory.incoming, temporary)
                entered.append(temporary)
        except BaseException:
            for temporary, _ in written:
                directory.forget(f"{directory.tmp}/{names.unpublished(temporary)}")
            raise
        if durable:
            self._make_durable(directory.incoming)

    def _write_all(self, bodies: Sequence[Body], written: deque[tuple[str, int]], *, durable: bool) -> None:
        for body in bodies:
            temporary = self._tokens.name(self._host)
            path = f"{self._directory.tmp}/{names.unpublished(temporary)}"
            written.append((temporary, self._write(path, body, durable=durable)))

    def _has_syncfs(self) -> bool:
        if self._syncs_as_one is None:
            self._syncs_as_one = self._system.syncs_as_one(self._directory.incoming)
        return self._syncs_as_one

    # ---- a file that is there already

    def put_file(self, path: Path, name: str | None = None, *, durable: bool | None = None) -> str:
        """
        Put the file *path* by moving it: it is gone from where it was when this returns.

        After any error but an unknown one it is where it was. From another filesystem it is copied, then removed.
        """
        if name is not None:
            names.check_given(name)
        try:
            return self._put_file(str(path), name, durable=durable is not False)
        except OSError as error:
            raise self._directory.unavailable("move into the queue", str(path), error) from error

    def _put_file(self, path: str, name: str | None, *, durable: bool) -> str:
        directory = self._directory
        # ORDER: made durable where it is, then moved, and not through tmp/: it may be the only copy, and what a killed
        # producer leaves in tmp/ is unlinked. See test_a_file_moved_in_is_at_its_source_or_a_message_whenever_killed.
        found = self._sync_source(path, durable=durable)
        file = name or self._tokens.name(self._host)
        is_left = False
        try:
            if name is None:
                self._rename(path, directory.incoming, file)
            else:
                is_left = self._move_named(path, f"{directory.incoming}/{name}", name)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            file = self.put(Path(path), name, None, 0, durable)
            self._remove_source(path, found)
            return file
        if durable:
            self._make_durable(directory.incoming)
        if is_left:
            self._remove_source(path, found)
        return file

    def _sync_source(self, path: str, *, durable: bool) -> os.stat_result:
        system = self._system
        if not is_regular(system.lstat(path)):  # and to open a device may do something
            raise OSError(errno.EINVAL, "is no regular file")
        fd = system.open(path, OPEN_SOURCE)
        try:
            found = system.fstat(fd)
            if not is_regular(found):
                raise OSError(errno.EINVAL, "is no regular file")
            if durable:
                system.fsync(fd)
        finally:
            system.close(fd)
        return found

    def _move_named(self, source: str, target: str, name: str) -> bool:
        """Move the caller's *source*, never replacing; whether it is still there too, as a link."""
        # EPERM is said of the caller's file here (it cannot be renamed), not of the filesystem.
        if self._rename_new(source, target, name, errno.EINVAL, errno.ENOSYS):
            return False
        if not self._link(source, target, name):
            raise self._has_neither()
        return True

    def _remove_source(self, path: str, found: os.stat_result) -> None:
        """Unlink *path*, now a message; unless the producer has put another file there than was *found*."""
        try:
            if _is_same(self._system.lstat(path), found):
                self._directory.remove(path)
        except FileNotFoundError:
            return
        except OSError as error:
            doing = "remove, now that it is a message as well,"
            raise QueueUnavailable.at(doing, path, error, is_unknown=True) from error

    # ---- write and publish

    def _write(self, path: str, body: Body, *, durable: bool) -> int:
        """
        Make *path* with *body*, all of it; nothing is left when that fails. Raises OSError.

        CLOCK_BOOTTIME after the last write. Bytes that nobody syncs are three calls.
        """
        if isinstance(body, Path):
            return self._directory.copy_file(str(body), path, durable=durable)
        if durable or type(body) is not bytes:
            raw = body.encode("utf-8") if isinstance(body, str) else body
            return self._directory.write_file(path, raw, durable=durable)
        system = self._system
        fd = system.open(path, CREATE, 0o666)
        try:
            try:
                size = system.write(fd, body) if body else 0
                while size < len(body):
                    size += system.write(fd, body[size:])
                written_ns = system.boottime_ns()
            finally:
                system.close(fd)
        except BaseException:
            self._directory.forget(path)
            raise
        return written_ns

    def _publish(self, source: str, written_ns: int, target: str, final: str, *, is_given: bool = False) -> None:
        """
        Let the complete file *source* in tmp/ be seen as *final* in the directory *target*. Raises OSError.

        *written_ns* is CLOCK_BOOTTIME after its last write. *is_given*: the caller chose *final*, so
        another may have it.
        """
        try:
            if self._system.boottime_ns() - written_ns > self._longest_ns:
                raise OSError(errno.ETIMEDOUT, "stopped for so long that the file may have been reaped")
            if not is_given:
                self._rename(source, target, final)
            elif self._link(source, f"{target}/{final}", final):
                self._directory.forget(source)
            elif not self._rename_new(source, f"{target}/{final}", final, errno.EINVAL, errno.ENOSYS, errno.EPERM):
                raise self._has_neither()
        except BaseException:
            self._directory.forget(source)
            raise

    def _rename(self, source: str, target: str, final: str) -> None:
        try:
            self._system.rename(source, f"{target}/{final}")
        except OSError as error:
            if not self._directory.has_moved(error, source, target, final):
                raise self._gone(error) from error

    def _gone(self, error: OSError) -> Exception:
        """What to raise when neither the file to be moved nor the message is there."""
        if self._directory.network is None:
            return OSError(errno.ENOENT, "the directory or the file is gone")
        # RACE: a consumer on another host. The rename was done, its reply lost, and the message claimed before we
        # looked. See test_a_put_that_is_claimed_before_its_lost_reply_was_looked_into_is_unknown.
        return QueueUnavailable.at("tell whether a message entered", self._directory.path, error, is_unknown=True)

    def _make_durable(self, directory: str) -> None:
        """fsync the names in *directory*; the message is there already, so a failure here is "unknown"."""
        try:
            self._system.fsync_directory(directory)
        except OSError as error:
            raise QueueUnavailable.at("make durable", directory, error, is_unknown=True) from error

    def _link(self, source: str, target: str, name: str) -> bool:
        """Give *source* the name *target* as well; False where there are no hard links."""
        # RACE: two producers of one name. link never replaces, where rename would: exactly one of them wins.
        # See test_a_name_that_waits_is_never_replaced.
        try:
            self._system.link(source, target)
        except FileExistsError as error:
            if self._directory.network is None or not self._is_one_file(source, target, error):
                raise self._exists(name) from None
        except FileNotFoundError as error:
            raise self._gone(error) from error
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            return False
        return True

    def _rename_new(self, source: str, target: str, name: str, *missing: int) -> bool:
        """The kernel's own rename that never replaces; False where there is none, which answers one of *missing*."""
        try:
            self._system.rename_noreplace(source, target)
        except FileExistsError:
            raise self._exists(name) from None
        except FileNotFoundError as error:
            raise self._gone(error) from error
        except OSError as error:
            if error.errno not in missing:
                raise
            return False
        return True

    def _has_neither(self) -> NotSupported:
        return NotSupported(
            f"a name of your own is not possible: the filesystem of {self._directory.path} has neither hard links "
            "nor a rename that never replaces"
        )

    def _exists(self, name: str) -> MessageExists:
        return MessageExists(f"a message called {names.shown(name)} is waiting in {self._directory.incoming} already")

    def _is_one_file(self, source: str, target: str, error: OSError) -> bool:
        """Whether *source* got its second name all the same, the first reply having been lost."""
        try:
            found = self._system.lstat(source)
            # RACE: a consumer has claimed it and another of that name waits: only the count of names tells then.
            # See test_a_link_whose_reply_was_lost_and_whose_message_was_claimed_has_been_made.
            if found.st_nlink > 1 and source.startswith(f"{self._directory.tmp}/"):
                return True  # a file that is moved in may have had other names before
            if self._directory.is_listed(target):
                return _is_same(found, self._system.lstat(target))
        except FileNotFoundError:
            pass
        raise self._gone(error) from error


def _is_same(one: os.stat_result, other: os.stat_result) -> bool:
    return (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)


def _check_body(body: Body) -> None:
    """Raise what writing *body* would raise for its type or its text; nothing is opened or kept."""
    if isinstance(body, str):
        body.encode("utf-8")
    elif isinstance(body, Path):
        if b"\0" in os.fsencode(body):
            raise ValueError("the path of a body holds a null byte")
    else:
        memoryview(body)
