"""
files - the engine of ddmq: one file for each message, its state in its name and directory

::

    in ROOT/QUEUE        PRIO.NUMBER.ddmqID           waits; the lowest PRIO first, then the oldest NUMBER
    in ROOT/QUEUE/work   EXPIRY.PRIO.NUMBER.ddmqID    is claimed until EXPIRY, seconds since 1970
    in ROOT              .HEX.tmp                     is being written, by us; no reader looks at it

Who may not write in ROOT writes his .HEX.tmp in ROOT/QUEUE/work.

Every step is one rename or unlink that tells one caller alone that it was made, so of
several who take, extend, put back or remove one message the others are told None or
False. A claim is fenced by its EXPIRY: who has let it pass finds the name gone.

Putting back with other content is touch() to an expiry of our own, rewrite(), put_back():
killed anywhere in between it leaves a claim that expires, never a second copy.

Raises: OSError as the kernel gave it; CorruptError for a file that is too large.
On a network filesystem the answer of a call may be that to its second sending. So there a claim is given a name that
nobody else makes, and removed by a rename to such a name: where the file then is says whose call it was.

Limits: ROOT and QUEUE are one filesystem. Where there is no RENAME_EXCHANGE a claim may look lost that was made: it
expires.
Long because: each verb is a call or three, and what others may do between them is told there.
Source: ddmq 0.9.14, the format.
See also: broker (the published API), names (the names alone).
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Generator

from workers.ddmq.errors import CorruptError
from workers.ddmq.names import (
    FRACTION_DIGITS,
    TEMPORARY,
    WAITING,
    WORK,
    Waiting,
    claim_name,
    is_message_like,
    parse_waiting,
    parse_work,
    waiting_key,
)
from workers.system import READ_MAX, SYSTEM, TOO_LARGE, System, forget, is_listed, is_there, remove

__all__ = ["WAITING", "WORK", "QueueFiles", "Waiting", "is_message_like", "parse_waiting", "parse_work", "waiting_key"]

SETTINGS_FILE = "ddmq.yaml"
WORK_DIRECTORY = "work"
CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
OPEN_BODY = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
FILE_MODE = 0o666
FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
READ_SIZE = 1 << 16
# What a rename with a flag, and a hard link, fail with where there is no such thing.
NO_SUCH_CALL = frozenset({errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP})
# What a network filesystem may say of a call that was made.
LOST = frozenset({errno.ENOENT, errno.EIO, errno.ETIMEDOUT, errno.ESTALE})
CLOCK_NS = 10 * 10**9  # for so long a look at the filesystem's clock is good; the two clocks drift by less than 1 ms


class QueueFiles:
    """The files of queue *queue* below *root*. Holds no descriptor; may be used by threads and by forked children."""

    def __init__(self, root: str, queue: str, system: System = SYSTEM) -> None:
        self.root = root
        self.queue = queue
        self.path = os.path.join(root, queue)
        self.work = os.path.join(self.path, WORK_DIRECTORY)
        self.system = system
        self._is_network: bool | None = None  # not asked yet
        self._clock_ns = (0, 0)  # CLOCK_BOOTTIME and the filesystem's clock, at one moment

    # ---- the queue

    def make(self) -> None:
        """Make the directories of the queue where they are missing, not its parent. Raises OSError."""
        for path in (self.path, self.work):
            try:
                self.system.mkdir(path)
            except FileExistsError:
                if not self.system.is_directory(path, is_followed=True):
                    raise

    def is_queue(self) -> bool:
        """Whether the queue is there: it has its settings and work/."""
        try:
            found = self.system.stat(os.path.join(self.path, SETTINGS_FILE))
        except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: no path can be called so
            return False
        return stat.S_ISREG(found.st_mode) and self.system.is_directory(self.work, is_followed=True)

    def waiting(self, odd: set[str]) -> Generator[str]:
        """
        The names of waiting messages, in any order; those that are no regular files are added to *odd* as well.

        Raises OSError, FileNotFoundError when there is no such queue.
        """
        with self.system.scandir(self.path) as entries:
            for entry in entries:
                if WAITING.match(entry.name):
                    if not entry.is_file(follow_symlinks=False):
                        if entry.is_dir(follow_symlinks=False):
                            continue
                        odd.add(entry.name)
                    yield entry.name

    def working(self) -> Generator[str]:
        """The names of claims, in any order. Raises OSError, FileNotFoundError when there is no work/."""
        with self.system.scandir(self.work) as entries:
            for entry in entries:
                if WORK.match(entry.name) and not entry.is_dir(follow_symlinks=False):
                    yield entry.name

    # ---- one message

    def publish(self, name: str, data: bytes, *, durable: bool = False) -> None:
        """
        Let *data* wait as *name*: seen whole or not at all, and never over another.

        Raises OSError, with nothing left of it; FileExistsError when *name* is taken. An error of the last fsync, with
        *durable*, leaves the message where it is.
        """
        temporary = self.write_temporary(data, durable=durable)
        try:
            self.move_once(temporary, os.path.join(self.path, name))
        except FileNotFoundError as error:
            self.forget(temporary)
            if not self.is_network:
                raise
            # RACE: another host takes and ends it before the server has looked what to answer to a link, as FUSE does.
            # See test_a_put_that_is_taken_before_its_link_is_answered_is_unknown.
            raise OSError(errno.EIO, "it cannot be told whether it entered", name) from error
        except BaseException:
            self.forget(temporary)
            raise
        if durable:
            self.system.fsync_entered(self.path)

    def read(self, path: str) -> tuple[bytes, os.stat_result]:
        """
        The content of the file *path* and its stat.

        Raises OSError: FileNotFoundError when it is gone, ELOOP for a symbolic link, EINVAL for what is no file.
        CorruptError for more than READ_MAX bytes.
        """
        try:
            return self._read(path)
        except OSError as error:
            if error.errno == errno.ESTALE:  # a network filesystem's client knew its name still
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from error
            raise

    def _read(self, path: str) -> tuple[bytes, os.stat_result]:
        system = self.system
        fd = system.open(path, OPEN_BODY)
        try:
            found = system.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise OSError(errno.EINVAL, "is no regular file", path)
            if found.st_size > READ_MAX:
                raise CorruptError(TOO_LARGE)
            # One byte more: a read that is short has met the end, and no second one is needed to see that.
            data = system.read(fd, found.st_size + 1)
            if len(data) != found.st_size:
                parts, size = [data], len(data)
                while part := system.read(fd, READ_SIZE):
                    parts.append(part)
                    size += len(part)
                    if size > READ_MAX:
                        raise CorruptError(TOO_LARGE)
                data = b"".join(parts)
        finally:
            system.close(fd)
        return data, found

    def fraction(self) -> int:
        """
        The digits behind the expiry of a new claim: on a network filesystem drawn anew, else 0, for none.

        There a client that still knows the waiting name, and finds the same file under the claim's, takes a rename from
        one to the other for done (rename(2): two names of one file) and says so to whoever was second.
        """
        lowest = 10 ** (FRACTION_DIGITS - 1)
        return lowest + int.from_bytes(self.system.random_bytes(8)) % (9 * lowest) if self.is_network else 0

    def take(self, name: str, expiry: int, fraction: int | None = None) -> str | None:
        """
        Claim waiting *name* until *expiry*: the claim's name, or None when another was first. One rename.

        *fraction*: of a fraction() that the caller has drawn before.
        """
        # RACE: another host claims it to the same second; see fraction().
        # See test_of_two_hosts_that_know_old_names_one_claims_a_message.
        work_name = claim_name(expiry, name, self.fraction() if fraction is None else fraction)
        try:
            self.system.rename(f"{self.path}/{name}", f"{self.work}/{work_name}")
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ESTALE):
                raise
            # RACE: who was first may have given it back since, under the same name: a lost race, too.
            # See test_no_schedule_loses_repeats_or_strands_a_message.
            if not is_there(self.system, self.work):
                raise
            # Nobody else makes that name: it is ours, and the reply was lost.
            return work_name if self.is_network and work_name in self.system.listdir(self.work) else None
        return work_name

    def touch(self, work_name: str, expiry: int) -> str | None:
        """Let the claim last until *expiry*: its new name, or None when it is gone. One rename."""
        claim = parse_work(work_name)
        later = claim_name(expiry, claim[1] if claim else work_name.partition(".")[2], self.fraction())
        return later if self._rename(f"{self.work}/{work_name}", f"{self.work}/{later}") else None

    def put_back(self, work_name: str, name: str) -> bool:
        """
        Let the claimed message wait as *name*, its content as it is; False when the claim is gone.

        Raises OSError, FileExistsError when a message of that name waits already; then the claim is as it was.
        """
        source, target = f"{self.work}/{work_name}", f"{self.path}/{name}"
        try:
            self.system.rename_noreplace(source, target)
        except FileNotFoundError as error:
            return self._was_moved(error, source, target)
        except OSError as error:
            if error.errno not in NO_SUCH_CALL and not (self.is_network and error.errno == errno.EEXIST):
                raise
            # No link here, as publish() has it: killed before its unlink it would leave a message that waits and is
            # claimed. A *name* that is taken holds the same id, so it is another copy of this message.
            # By a listing: this host may have seen it wait there, and know nothing yet of who took it; an EEXIST of NFS
            # is out of its cache, too. See test_a_claim_goes_back_under_its_name_where_this_host_has_seen_it_wait.
            if (is_listed if self.is_network else is_there)(self.system, target):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target) from None
            return self._rename(source, target)
        return True

    def rewrite(self, work_name: str, data: bytes) -> bool:
        """
        Replace the content of a claim; False when it is gone.

        The caller has named the claim by touch() and has told nobody. Always synced: after a power cut a message that
        was durable must not have become an empty file.
        """
        temporary, path = self.write_temporary(data, durable=True), f"{self.work}/{work_name}"
        try:
            # RACE: the claim has expired, and another has it under another name. A rename would make a second copy,
            # where an exchange finds nothing. See test_Q11_a_claim_that_is_gone_is_not_made_again_by_rewriting_it.
            self.system.rename_exchange(temporary, path)
        except FileNotFoundError:
            self.forget(temporary)
            return False
        except OSError as error:
            try:
                if error.errno not in NO_SUCH_CALL:
                    raise
                if not is_there(self.system, path):
                    self.forget(temporary)
                    return False
                self.system.rename(temporary, path)
            except BaseException:
                self.forget(temporary)
                raise
            return True
        except BaseException:
            self.forget(temporary)
            raise
        self.forget(temporary)  # which is the old content now
        return True

    def remove(self, work_name: str) -> bool:
        """Remove a claimed message; False when it is gone. One call, told to one caller alone; two on a network."""
        path = f"{self.work}/{work_name}"
        if not self.is_network:
            return remove(self.system, path)
        # An unlink that was told ENOENT may have been ours or another's; a name that only we can make says which.
        aside = os.path.join(self.work, self._temporary_name())
        if not self._rename(path, aside):
            return False
        self.forget(aside)
        return True

    def remove_waiting(self, name: str) -> bool:
        """Remove a waiting message; False when it is gone."""
        return remove(self.system, f"{self.path}/{name}")

    # ---- the clock, and what is left over

    def now_s(self) -> float:
        """
        Now by the filesystem's clock, seconds since 1970: the same for all its hosts.

        A local filesystem's is the kernel's own. On a network one it is the mtime of a file made for it, at most every
        ten seconds, or where none can be made (a full disk, a quota) that of work/, touched.
        """
        system = self.system
        if not self.is_network:
            return system.wall_ns() / 1e9
        since_ns = system.boottime_ns()
        looked_ns, at_ns = self._clock_ns
        if not at_ns or not 0 <= since_ns - looked_ns < CLOCK_NS:
            try:
                looked_ns, at_ns = since_ns, self._probe_ns()
                self._clock_ns = looked_ns, at_ns
            except OSError:
                if not at_ns:
                    raise
                # What was seen last, and our own clock from there on, is good enough to consume what fills the disk.
        return (at_ns + since_ns - looked_ns) / 1e9

    @property
    def is_network(self) -> bool:
        """Whether the files are on a network filesystem: clocks of its own, and replies that may be lost."""
        if self._is_network is None:
            self._is_network = self.system.network_filesystem(self.root) is not None
        return self._is_network

    def sweep_tmp(self, older_than_s: float) -> int:
        """
        Remove what killed writers of ours have left, when it is that old; how many.

        What cannot be removed (another user's, a directory of such a name) is left. Raises OSError.
        """
        before_ns, count = (self.now_s() - older_than_s) * 1e9, 0
        for directory in (self.root, self.work):
            try:
                with self.system.scandir(directory) as entries:
                    names = [entry.name for entry in entries if TEMPORARY.match(entry.name)]
            except FileNotFoundError:
                continue
            for name in names:
                path = os.path.join(directory, name)
                with contextlib.suppress(OSError):
                    if self.system.lstat(path).st_mtime_ns < before_ns:
                        count += remove(self.system, path)
        return count

    # ---- for those who write beside the messages

    def write_temporary(self, data: bytes, *, durable: bool) -> str:
        """Write *data* to a new file that no reader looks at: its path. Nothing is left after an OSError."""
        system = self.system
        fd, path = self._open_temporary()
        try:
            try:
                written = system.write(fd, data) if data else 0
                while written < len(data):
                    written += system.write(fd, data[written:])
                if durable:
                    system.fsync(fd)
            finally:
                system.close(fd)
        except BaseException as error:
            self.forget(path)
            if isinstance(error, OSError):
                error.filename = path  # of a descriptor's error nobody knows it
            raise
        return path

    def move_once(self, source: str, target: str) -> None:
        """Rename *source* to *target* without replacing what is there. Raises OSError, FileExistsError."""
        system = self.system
        try:
            system.rename_noreplace(source, target)
        except OSError as error:
            if error.errno not in NO_SUCH_CALL:
                raise
        else:
            return
        try:
            system.link(source, target)
        except FileExistsError:
            # A network filesystem sends a call again whose reply was lost, and is told then that it was made.
            if not (self.is_network and is_listed(system, target)):
                raise
            if system.lstat(source).st_ino != system.lstat(target).st_ino:
                raise
        except OSError as error:
            if error.errno not in NO_SUCH_CALL:
                raise
            if is_there(self.system, target):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target) from None
            system.rename(source, target)
            return
        self.forget(source)

    def forget(self, path: str) -> None:
        """See system.forget; sweep_tmp is the sweep."""
        forget(self.system, path)

    # ---- inside

    def _rename(self, source: str, target: str) -> bool:
        """Rename; False when *source* is gone. Raises FileNotFoundError when it is the directory that is missing."""
        try:
            self.system.rename(source, target)
        except OSError as error:
            return self._was_moved(error, source, target)
        return True

    def _was_moved(self, error: OSError, source: str, target: str) -> bool:
        """
        What *error* of a rename means: False for a lost race. Raises it, or what it says of the target's directory.

        True on a network filesystem, where it may be the answer to the second sending, when *target* is there: a claim
        has a name that nobody else makes, and what waits under its own name waits, whoever has put it back.
        """
        if error.errno not in (LOST if self.is_network else (errno.ENOENT,)):
            raise error
        if (is_listed if self.is_network else is_there)(self.system, source):
            raise error if error.errno != errno.ENOENT else FileNotFoundError(errno.ENOENT, error.strerror, target)
        return self.is_network and is_listed(self.system, target)

    def _open_temporary(self) -> tuple[int, str]:
        """
        Open a new file, in ROOT where that is allowed, else in work/; and its path.

        Not always in work/: an original that deletes the queue cannot while such a file is there.
        """
        name = self._temporary_name()
        path = os.path.join(self.root, name)
        try:
            return self.system.open(path, CREATE, FILE_MODE), path
        except OSError as error:
            if error.errno not in FORBIDDEN:
                raise
            path = os.path.join(self.work, name)
            try:
                return self.system.open(path, CREATE, FILE_MODE), path
            except OSError:
                raise error from None

    def _temporary_name(self) -> str:
        return f".{self.system.random_bytes(16).hex()}.tmp"

    def _probe_ns(self) -> int:
        try:
            probe = self.write_temporary(b"", durable=False)
        except OSError as error:
            try:
                self.system.utime(self.work)
                return self.system.lstat(self.work).st_mtime_ns
            except OSError:
                raise error from None
        try:
            return self.system.lstat(probe).st_mtime_ns
        finally:
            self.forget(probe)
