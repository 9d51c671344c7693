"""
directory - the directories of a spool queue, and moves between them that are never in doubt

Every state is a directory, every change of state one rename. On a local filesystem
the answer of a call is the truth. On a network filesystem an error is "unknown":
the server may have renamed and the reply been lost, so we look, by listing with a
fresh opendir and never by stat (which may be answered from a cache for half a minute).

Raises: QueueUnavailable, QueueMissing, QueueRefused; an OSError only from the
methods that say so.
Long because: whether a call's error is to be believed is decided once, here, for all of them.
Source: rename(2) and link(2), BUGS; reproduced on NFS v3 and v4.2.
See also: SPOOL.md, spool (the verbs), lease.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from workers.errors import QueueMissing, QueueRefused, QueueUnavailable
from workers.message import Claim
from workers.queues import names
from workers.queues.base import Claimable, Settings
from workers.system import NotDurable, System, forget, is_listed, is_there
from workers.trust import Place, guarded

FORMAT = 1
LEASE_INTERVAL_S, LEASE_TIMEOUT_S, STALE_AFTER_S = 5.0, 60.0, 600.0
PROBES_MAX = 10
LONG_AGO_NS = 10**9 * 86_400
SHORTEST_S, LONGEST_S = 0.001, 1e9
STATE_DIRECTORIES = ("incoming", "pending", "errors", "tmp", "deferred")
CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
# The connection went away while it was asked, or when what it had done was looked at.
BROKEN = frozenset(
    {errno.EIO, errno.ETIMEDOUT, errno.ESTALE, errno.ECONNABORTED, errno.ENOTCONN, errno.ESHUTDOWN, errno.EHOSTDOWN}
)
UNKNOWN = BROKEN | {errno.ENOENT, errno.EEXIST}


@dataclass(frozen=True, slots=True)
class Times:
    """The times that belong to the queue and are the same for everybody; seconds."""

    lease_interval_s: float = LEASE_INTERVAL_S
    lease_timeout_s: float = LEASE_TIMEOUT_S
    stale_after_s: float = STALE_AFTER_S

    @property
    def looks(self) -> int:
        """Consecutive looks without a change after which a lease is lost."""
        return math.ceil(self.lease_timeout_s / self.lease_interval_s) + 1


class Directory:
    """The paths of one queue and the calls on them. Holds no descriptor."""

    file_mode = 0o666  # of new files, less the umask
    inboxes: tuple[str, ...] = ("incoming", "tmp", "deferred")  # into which others may be meant to put something

    def __init__(self, path: str, system: System) -> None:
        self.path = os.path.abspath(path)
        self.system = system
        self.incoming, self.pending, self.errors, self.tmp, self.deferred = (
            os.path.join(self.path, name) for name in STATE_DIRECTORIES
        )
        self.done = os.path.join(self.path, "done")
        self.pool = os.path.join(self.path, ".pool")
        self.leases = os.path.join(self.pool, "leases")
        self.paused = os.path.join(self.pool, "PAUSED")
        self.network: str | None = None
        self.id = ""
        self.times = Times()

    def places(self) -> list[Place]:
        """What a pool rests on."""
        own = Place(self.path, (*STATE_DIRECTORIES, "done", ".pool"), inboxes=self.inboxes)
        return [own, Place(self.pool, ("leases",))]

    def through(self, door: System) -> Self:
        """The same, by another *door*."""
        if door is self.system:
            return self
        found = copy.copy(self)
        found.system = door
        return found

    # ---- opening

    def open(self, settings: Settings) -> None:
        """Find the queue, or make it when *settings* says create and its parent exists."""
        self.system = guarded(self.system, *self.places())
        try:
            is_there = self.system.is_directory(self.incoming, is_followed=True)
            if not is_there and not settings.create:
                raise QueueMissing(
                    f"there is no queue at {self.path}: it has no incoming/ (orchestrator put makes one)"
                )
            self.network = self.system.network_filesystem(self.path if is_there else os.path.dirname(self.path))
            if settings.create:
                self._create(settings, is_there)
            self._read_format(settings)
        except OSError as error:
            raise QueueUnavailable.at("open the queue", error.filename or self.path, error) from error

    def _create(self, settings: Settings, is_there: bool) -> None:
        if not is_there:
            parent = os.path.dirname(self.path)
            if not self.system.is_directory(parent, is_followed=True):
                raise QueueMissing(f"cannot make the queue {self.path}: its parent directory does not exist")
            self._mkdir(self.path)
            others = set(self.system.listdir(self.path)) - {*STATE_DIRECTORIES, ".pool", "done", ".doctor"}
            if others:
                raise QueueRefused(
                    f"{self.path} is no queue and not empty; name a new or an empty directory "
                    "(a queue is a directory that holds incoming/)"
                )
        for path in (self.incoming, self.pending, self.errors, self.tmp, self.deferred, self.pool, self.leases):
            self._mkdir(path)
        if settings.keep_done_s is not None:
            self._mkdir(self.done)
        interval = settings.lease_interval_s or LEASE_INTERVAL_S
        timeout = settings.lease_timeout_s or LEASE_TIMEOUT_S
        stale = settings.stale_after_s or STALE_AFTER_S
        text = {"format": FORMAT, "lease_interval_s": interval, "lease_timeout_s": timeout, "stale_after_s": stale}
        self._write_once("format", json.dumps(text, sort_keys=True) + "\n")
        if self._write_once("id", self.system.random_bytes(16).hex() + "\n"):
            # A message is as durable as the directory that holds it. (Journals keep that with the first fsync in it.)
            for path in (self.pool, self.path, os.path.dirname(self.path)):
                with contextlib.suppress(PermissionError):  # a parent may be for writing only
                    self.system.fsync_directory(path)

    def _mkdir(self, path: str) -> None:
        # The rest never for everybody, whatever the umask: a pool would refuse the queue.
        mode = 0o777 if os.path.basename(path) in self.inboxes and path != self.path else 0o775
        try:
            self.system.mkdir(path, mode)
        except FileExistsError:
            if not self.system.is_directory(path):
                raise QueueRefused(f"{path} is in the way: it is no directory of the queue") from None

    def _write_once(self, name: str, text: str) -> bool:
        """Make .pool/NAME with *text* unless it is there (False); complete or not at all, also with several makers."""
        target = os.path.join(self.pool, name)
        if self.is_there(target):
            return False
        fresh = os.path.join(self.pool, f".{name}.{self.system.random_bytes(8).hex()}")
        self.write_file(fresh, text.encode(), durable=True)
        try:
            self._name_once(fresh, target)
        except FileExistsError:
            pass  # another maker was first, or the reply was lost
        finally:
            self.forget(fresh)
        return True

    def _name_once(self, fresh: str, target: str) -> None:
        # RACE: two makers at once. To replace the id that the other has read already would part them.
        # See test_an_operation_survives_every_call_that_fails.
        for give, missing in (
            (self.system.link, (errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOSYS)),
            (self.system.rename_noreplace, (errno.EINVAL, errno.ENOSYS, errno.EPERM)),
        ):
            try:
                give(fresh, target)
            except OSError as error:
                if error.errno not in missing:
                    raise
            else:
                return
        self.system.rename(fresh, target)

    def _read_format(self, settings: Settings) -> None:
        try:
            found = json.loads(self._read(os.path.join(self.pool, "format")))
            self.id = self._read(os.path.join(self.pool, "id")).strip()
        except FileNotFoundError:
            if settings.create:  # it was made a moment ago: the mount is lost
                raise
            return  # a foreign filer's queue: may be put into and looked at, and becomes ours with create
        except (ValueError, RecursionError) as error:
            raise QueueRefused(f"{self.pool}/format is damaged ({error}); compare it with SPOOL.md") from error
        if not isinstance(found, dict) or type(found.get("format")) is not int or found["format"] < 1:
            raise QueueRefused(f"{self.pool}/format is damaged; compare it with SPOOL.md")
        if found["format"] > FORMAT:
            raise QueueRefused(
                f"{self.path} has format {found['format']}, this program knows up to {FORMAT}: update it"
            )
        own = {}
        for key, standard in (
            ("lease_interval_s", LEASE_INTERVAL_S),
            ("lease_timeout_s", LEASE_TIMEOUT_S),
            ("stale_after_s", STALE_AFTER_S),
        ):
            own[key] = found.get(key, standard)
            is_number = isinstance(own[key], int | float) and not isinstance(own[key], bool)
            if not is_number or not SHORTEST_S <= own[key] <= LONGEST_S:
                raise QueueRefused(
                    f"{self.pool}/format: {key} must be a number of seconds from {SHORTEST_S:g} to {LONGEST_S:g}"
                )
            wanted = getattr(settings, key)
            if wanted is not None and wanted != own[key]:
                option = key.removesuffix("_s")
                raise QueueRefused(
                    f"{option} = {wanted:g}s was configured, but the queue {self.path} has {own[key]:g}s, and all who "
                    f"use a queue must agree: leave {option} out, or change {self.pool}/format while nobody runs"
                )
        self.times = Times(**own)

    def _read(self, path: str) -> str:
        fd = self.system.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            if not is_regular(self.system.fstat(fd)):
                raise OSError(errno.EINVAL, "is no regular file", path)
            return self.system.read(fd, 65536).decode("utf-8")
        finally:
            self.system.close(fd)

    def is_same(self) -> bool:
        """Whether the queue is still the one that was opened: a lost mount shows another id, or none."""
        try:
            return self._read(os.path.join(self.pool, "id")).strip() == self.id
        except (OSError, ValueError):
            return False

    def check_renames(self) -> None:
        """Rename a real file through all directories: equal device numbers are no proof (quotas, bind mounts)."""
        places = [self.tmp, self.incoming, self.pending, self.deferred, self.errors]
        try:
            if self.system.is_directory(self.done):
                places.append(self.done)
            places.append(self.tmp)
            # RACE: a filer program beside us takes the probe for a message.
            # See test_a_probe_that_a_filer_takes_is_tried_again.
            for _ in range(PROBES_MAX - 1):
                with contextlib.suppress(FileNotFoundError):
                    self._send_probe(places)
                    return
            self._send_probe(places)
        except OSError as error:
            raise QueueRefused(
                f"the queue {self.path} cannot be used: renaming between its directories fails at "
                f"{error.filename2 or error.filename}: {error.strerror}; all must be writable and on one filesystem"
            ) from error

    def _send_probe(self, places: Sequence[str]) -> None:
        probe = f"{names.PROBE}{self.system.random_bytes(8).hex()}"
        here = os.path.join(places[0], probe)
        self.write_file(here, b"", durable=False)
        try:
            for place in places[1:]:
                there = os.path.join(place, probe)
                if not self.move(here, place, probe):
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), here, None, there)
                here = there
            self.system.unlink(here)
        except OSError:
            for place in places[:-1]:  # wherever it is: the reply of a rename may have been lost
                self.forget(os.path.join(place, probe))
            raise

    def keeps_ctime(self) -> bool:
        """
        Whether a file has a ctime, by which it is told how long it has been where it is. Raises OSError.

        On sshfs, for one, that is the mtime, which anybody may set and a rename keeps.
        """
        if self.network is None:
            return True
        probe = os.path.join(self.tmp, f"{names.PROBE}{self.system.random_bytes(8).hex()}")
        self.write_file(probe, b"", durable=False)
        try:
            self.system.utime(probe, (LONG_AGO_NS, LONG_AGO_NS))
            return self.system.lstat(probe).st_ctime_ns != LONG_AGO_NS
        finally:
            self.forget(probe)

    # ---- moves

    def move(self, source: str, target_directory: str, name: str) -> bool:
        """
        Rename *source* to *name* in *target_directory*; False when *source* was gone.

        *name* must be one that nobody else can make (a fresh token), so finding it there
        proves that our rename happened. Raises OSError.
        """
        try:
            self.system.rename(source, f"{target_directory}/{name}")
        except OSError as error:
            return self.has_moved(error, source, target_directory, name)
        return True

    def has_moved(self, error: OSError, source: str, target_directory: str, name: str) -> bool:
        """Whether a rename that failed with *error* has happened all the same (see move). Raises *error*."""
        if self.network is None:
            if error.errno == errno.ENOENT:
                return False
            raise error
        if error.errno not in UNKNOWN:
            raise error
        if self.is_listed(os.path.join(target_directory, name)):
            return True
        if error.errno == errno.ENOENT or not self.is_listed(source):
            return False
        raise error

    def remove(self, path: str) -> bool:
        """Unlink *path*; False when it was gone (on a network filesystem: or our own call took it). Raises OSError."""
        try:
            self.system.unlink(path)
        except OSError as error:
            return self.has_removed(error, path)
        return True

    def has_removed(self, error: OSError, path: str) -> bool:
        """False when *path*, whose unlink failed with *error*, is gone (see remove). Raises *error*."""
        if error.errno == errno.ENOENT:
            return False
        if self.network is None or error.errno not in UNKNOWN or self.is_listed(path):
            raise error
        return False

    def is_listed(self, path: str) -> bool:
        """See system.is_listed."""
        return is_listed(self.system, path)

    def is_there(self, path: str) -> bool:
        """Whether *path* exists; raises OSError when that cannot be said."""
        if self.network is not None:
            return self.is_listed(path)  # a stat may be answered from a cache
        return is_there(self.system, path)

    def steady(self, path: str) -> str:
        """*path* for the text of an error: one in tmp/ is new each time, and would make each error a new one."""
        return self.tmp if os.path.dirname(path) == self.tmp else path

    def unavailable(self, doing: str, path: str, error: OSError) -> QueueUnavailable:
        """Word *error*, met while *doing* something at *path*; unknown where it may have been done all the same."""
        is_unknown = isinstance(error, NotDurable) or (self.network is not None and error.errno in BROKEN)
        return QueueUnavailable.at(doing, path, error, is_unknown=is_unknown)

    # ---- files

    def write_file(self, path: str, body: bytes, *, durable: bool) -> int:
        """
        Make *path* with *body*, all of it; nothing is left when that fails. Raises OSError.

        CLOCK_BOOTTIME after the last write: from then on the file only ages.
        """
        return self._make_file(path, (body,), durable=durable)

    def copy_file(self, source: str, path: str, *, durable: bool) -> int:
        """Copy the regular file *source* to the new *path*; else see write_file."""
        reader = self.system.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            if not is_regular(self.system.fstat(reader)):
                raise OSError(errno.EINVAL, "is no regular file", source)
            return self._make_file(path, iter(lambda: self.system.read(reader, 1 << 20), b""), durable=durable)
        finally:
            with contextlib.suppress(OSError):  # it was open for reading: there is nothing that could be lost
                self.system.close(reader)

    def _make_file(self, path: str, parts: Iterable[bytes], *, durable: bool) -> int:
        fd = self.system.open(path, CREATE, self.file_mode)
        try:
            try:
                for part in parts:
                    view = memoryview(part)
                    while view:
                        view = view[self.system.write(fd, view) :]
                written_ns = self.system.boottime_ns()
                if durable:
                    self.system.fsync(fd)
            finally:
                self.system.close(fd)
        except BaseException:
            self.forget(path)
            raise
        return written_ns

    def forget(self, path: str) -> None:
        """See system.forget; the reaper of tmp/ is the sweep."""
        forget(self.system, path)


class Worded:
    """
    Turn an OSError of the block into a QueueUnavailable that says what was being done, where.

    *at_end* is called unless the block may be tried again.
    """

    def __init__(
        self, directory: Directory, doing: str, path: str, *, at_end: Callable[[], None] | None = None
    ) -> None:
        self._directory, self._doing, self._path = directory, doing, path
        self._at_end = at_end

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise self._directory.unavailable(self._doing, self._path, error) from error
        if self._at_end is not None and not isinstance(error, QueueUnavailable):
            self._at_end()  # settled, or lost: in either case no longer in hand


class OnDisk(Claimable):
    """
    A queue that keeps something in a Directory: PAUSED among it, and the wording of its errors.

    Attributes:
        kept_in: that Directory.
    """

    kept_in: Directory

    def make_places(self) -> None:
        """Make what is not there of what lies beside the queue, if anything does. Raises OSError, QueueRefused."""

    def pause(self) -> None:
        """See Queue.pause: a file PAUSED, seen by every host; touch(1) does the same."""
        kept = self.kept_in
        with self._unavailable("pause", kept.path):
            self.make_places()
            # Not waiting for the reader of a fifo that is called so.
            flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            self.system.close(self.system.open(kept.paused, flags, kept.file_mode))

    def resume(self) -> None:
        """See Queue.resume."""
        with self._unavailable("resume", self.kept_in.path):
            self.kept_in.remove(self.kept_in.paused)

    def is_paused(self) -> bool:
        """See Queue.is_paused."""
        with self._unavailable("look into", os.path.dirname(self.kept_in.paused)):
            return self.kept_in.is_listed(self.kept_in.paused)

    def _unavailable(self, doing: str, path: str) -> Worded:
        return Worded(self.kept_in, doing, path)

    def _settling(self, doing: str, claim: Claim) -> Worded:
        return Worded(self.kept_in, doing, claim.path, at_end=lambda: self.settled(claim))


def is_regular(found: os.stat_result) -> bool:
    """Whether a stat result is that of a regular file."""
    return (found.st_mode & 0o170000) == 0o100000
