"""
elements - what both kinds of directory queue have in common: names, locks, the engine's verbs

An element is called DIRECTORY/ELEMENT: eight hex digits, then fourteen (seconds,
microseconds, one digit of the writer's), so that names sort by time. An engine does the
format's steps through a System, raises the OSError as it came, and knows nothing of
text, schemas or permissive calls: the published API (simple, queue) and a pool's
adapter stand on the same engine.

The format has no owner in a lock. What tells a lock from a later one of the same element is
its inode and its time by the filesystem's clock: a lock is broken only when it is a second
old or older, so who took it afterwards has a later one.

Raises: OSError; QueueError for a name that is none.
Limits: who touches an element that another holds makes the holder's lock look like a later one (is_held).
Long because: the contract of the two engines stands here once, with what they share.
Source: Directory::Queue, the formats of its Simple and Normal kind.
See also: simple_elements, schema_elements (the two engines), base (the published API).
"""

from __future__ import annotations

import contextlib
import copy
import errno
import os
import re
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Generic, NamedTuple, Self, TypeVar

from workers.dirq.errors import QueueError
from workers.system import SYSTEM, System, forget, is_listed, is_there

SECOND_NS = 10**9  # a younger lock is never broken by us, and the published limits are whole seconds
DIRECTORY = re.compile(r"\A[0-9a-f]{8}\Z")
ELEMENT = re.compile(r"\A[0-9a-f]{14}\Z")
NAME = re.compile(r"\A[0-9a-f]{8}/[0-9a-f]{14}\Z")
is_name = NAME.match
TEMPORARY_SUFFIX = ".tmp"
LOCKED_SUFFIX = ".lck"
TEMPORARY_DIRECTORY = "temporary"
OBSOLETE_DIRECTORY = "obsolete"
LOCKED_DIRECTORY = "locked"

CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
OPEN_BODY = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
FILE_MODE, DIRECTORY_MODE = 0o666, 0o777
NO_NOREPLACE = frozenset({errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP})
# What opening a body fails with for as long as the element is as it is.
UNREADABLE = frozenset({errno.ELOOP, errno.ENXIO, errno.EACCES, errno.EPERM})
# What locking an element fails with when it is gone: the last when a network filesystem's client knew its name still.
GONE = frozenset({errno.ENOENT, errno.ESTALE})
LOST_RACE = GONE | {errno.EEXIST}
ATTEMPTS_MAX = 1000  # each is lost to somebody else's call; more are no race but something that will not go away

Data = TypeVar("Data")


class Lock(NamedTuple):  # made for every element, and a frozen dataclass takes twice as long
    """One taking of the lock of element *name*."""

    name: str
    inode: int  # of the element's file; with a schema, of its directory locked/
    at_ns: int  # mtime of that file or directory just after it was locked: the filesystem's clock
    since_ns: int  # CLOCK_BOOTTIME read before it was taken; 0 for a lock that was only found


@dataclass(slots=True)
class Swept:
    """What a sweep has taken away; *locks* are the elements that can be locked again."""

    temporary: int = 0
    locks: list[str] = field(default_factory=list)
    errors: list[OSError] = field(default_factory=list)
    directories: int = 0


class UnreadableError(OSError):
    """The body of an element that was locked cannot be opened; *lock* is still held."""

    def __init__(self, error: OSError, lock: Lock) -> None:
        super().__init__(error.errno, error.strerror, error.filename)
        self.lock = lock


def digits_of(seconds: int) -> str:
    """How a time begins a name. Eight digits end in 2106: then it begins anew, for of nine nobody would see it."""
    return f"{seconds & 0xFFFFFFFF:08x}"


class Names:
    """Makes the names of one process: later ones sort later, also when the clock is set back."""

    __slots__ = ("_last_us", "_second")

    def __init__(self) -> None:
        self._last_us = 0
        self._second = (0, "00000000")  # the last one, as microseconds and as it begins a name

    def fresh(self, now_ns: int, rndhex: int) -> str:
        """An element's name (14 digits) that this process has not made yet, of *now_ns* by the wall clock."""
        now_us = now_ns // 1000
        if now_us <= self._last_us:
            now_us = self._last_us + 1
        self._last_us = now_us
        second_us, digits = self._second
        if not 0 <= now_us - second_us < 1_000_000:
            second_us = now_us - now_us % 1_000_000
            digits = digits_of(second_us // 1_000_000)
            self._second = (second_us, digits)
        return f"{digits}{now_us - second_us:05x}{rndhex:x}"


_names: weakref.WeakKeyDictionary[System, Names] = weakref.WeakKeyDictionary()


def names_of(system: System) -> Names:
    """The one maker of names for the process that *system* is."""
    found = _names.get(system)
    if found is None:
        found = _names[system] = Names()
    return found


def element_name(system: System, rndhex: int) -> str:
    """A fresh name of an element (14 digits), see Names."""
    return names_of(system).fresh(system.wall_ns(), rndhex)


def time_of(name: str) -> float:
    """Unix seconds that stand in "8hex/14hex" (of the 14)."""
    element = name.rpartition("/")[2]
    return int(element[:8], 16) + int(element[8:13], 16) / 1e6


def check_name(name: str) -> tuple[str, str]:
    """Take a full name apart: directory and element. Raises QueueError when it is no name of an element."""
    if not isinstance(name, str) or not is_name(name):
        raise QueueError(f"invalid element name: {name}")
    return name[:8], name[9:]


def is_regular(found: os.stat_result) -> bool:
    """Whether a stat result is that of a regular file."""
    return (found.st_mode & 0o170000) == 0o100000


def older_than(before_ns: int) -> Callable[[Lock], bool]:
    """What break_lock asks: whether a lock is of before that time."""

    def is_older(lock: Lock) -> bool:
        return lock.at_ns < before_ns

    return is_older


class Elements(ABC, Generic[Data]):
    """
    The elements below *path*. Holds no descriptor; may be used by several threads and by forked children.

    *umask* (None: the process's own, which is never changed) and *rndhex* (None: drawn) are those of the published
    API. Names are "8hex/14hex" and are not checked again: callers that got one from outside use check_name first.
    """

    lists_locks: ClassVar[bool]  # whether waiting() leaves out what is locked

    def __init__(self, path: str, umask: int | None, rndhex: int | None, system: System = SYSTEM) -> None:
        self.path = path
        self.umask = umask
        self.rndhex = system.random_bytes(1)[0] % 16 if rndhex is None else rndhex % 16
        self.system = system
        self._names = names_of(system)
        self._is_network: bool | None = None  # not asked yet
        self._synced = ""  # the intermediate directory whose own name is known to be durable

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in self.__dict__.items() if key != "_names"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._names = names_of(self.system)

    def __deepcopy__(self, _memo: object) -> Self:
        return copy.copy(self)  # on the same system

    # ---- the queue

    def make(self) -> None:
        """Make the top directory, with its parents, unless it is there."""
        self._make_path(self.path)

    @abstractmethod
    def add(self, data: Data, *, durable: bool = False) -> str:
        """
        Enter *data* as a new element; its name. After an error nothing is left of it.

        Raises OSError, at once; only what a peer's purge took away meanwhile is made again. *durable* waits for
        the disk: when that last wait fails, the element is there and the error is raised all the same.
        """

    def directories(self) -> list[str]:
        """The intermediate directories, sorted; a symbolic link is none, whatever it points at. Raises OSError."""
        with self.system.scandir(self.path) as entries:
            return sorted(
                entry.name for entry in entries if DIRECTORY.match(entry.name) and entry.is_dir(follow_symlinks=False)
            )

    def names(self, directory: str) -> list[str]:
        """The elements in *directory*, locked or not, sorted; none when it is gone. Raises OSError."""
        try:
            found = self.system.listdir(f"{self.path}/{directory}")
        except FileNotFoundError:  # a peer's purge has taken it
            return []
        return [f"{directory}/{element}" for element in sorted(filter(ELEMENT.match, found))]

    @abstractmethod
    def waiting(self, directory: str, odd: set[str]) -> list[str]:
        """
        The elements in *directory* that might be locked now, sorted; what can be no element is added to *odd*.

        One listing, which tells of a QueueSimple what is locked and of a Queue nothing.
        """

    @abstractmethod
    def count(self) -> int:
        """How many elements there are, locked or not."""

    def filesystem_now_ns(self) -> int:
        """Now by the clock that the filesystem's times are made with; on a network filesystem that costs a file."""
        return self._probe_ns() if self.is_network else self.system.wall_ns()

    @property
    def is_network(self) -> bool:
        """Whether an error may be the answer to the second sending of a call whose first one was done."""
        if self._is_network is None:
            self._is_network = self.system.network_filesystem(self.path) is not None
        return self._is_network

    @abstractmethod
    def sweep(self, temporary_before_ns: int | None, locked_before_ns: int | None) -> Swept:
        """
        Take away what is left over: temporary things and locks older than that, empty intermediate directories.

        Times by the filesystem's clock; None leaves that kind alone. What vanishes meanwhile is fine. Any other
        OSError is noted, and does not keep the rest from being swept; that of listing the queue is raised.
        """

    # ---- one element

    def element_path(self, name: str) -> str:
        """Where the element itself is."""
        return f"{self.path}/{name}"

    @abstractmethod
    def lock_path(self, name: str) -> str:
        """What is there while the element is locked."""

    @abstractmethod
    def body_path(self, name: str) -> str:
        """The file that the holder of the lock reads."""

    def body_in(self, path: str) -> str:
        """The body of an element that lies at *path*, wherever that is."""
        return path

    @abstractmethod
    def lock(self, name: str) -> Lock | None:
        """Lock the element; None when another has it, or it is gone. Raises OSError, with nothing locked."""

    @abstractmethod
    def open_locked(self, name: str) -> tuple[Lock, int, os.stat_result] | None:
        """
        Lock an element that was waiting a moment ago, and open its body: the lock, a descriptor and its fstat.

        None when another has it, or it is gone. Raises UnreadableError, the lock being held, when the body can never
        be opened (a symbolic link, no permission, no such file); any other OSError with nothing locked.
        """

    def found_lock(self, name: str) -> Lock | None:
        """
        The lock that is there, whoever's; None when the element is not locked.

        Its time is that of lock_path(), which is not always the one that break_lock goes by.
        """
        try:
            found = self.system.lstat(self.lock_path(name))
        except FileNotFoundError:
            return None
        return Lock(name, found.st_ino, found.st_mtime_ns, 0)

    @abstractmethod
    def is_held(self, lock: Lock, touched_ns: int = 0, within_ns: int = SECOND_NS) -> bool:
        """
        Whether the element is still locked by *lock* and not by a later one.

        Args:
            touched_ns: the time that the holder's own last touch has given, the filesystem's clock.
            within_ns: how much later the lock may look. Who edits the element in place moves its time, and who tries to
                lock it at the same moment; another takes it only when a purge has found it older than its limit.
        """

    def touch(self, name: str, now_ns: int | None = None) -> None:
        """Set the time from which the element's lock ages; None is the filesystem's own now."""
        self.system.utime(f"{self.path}/{name}", None if now_ns is None else (now_ns, now_ns))

    @abstractmethod
    def unlock(self, name: str) -> bool:
        """Take the lock away, whoever's it is; False when there was none."""

    @abstractmethod
    def remove(self, name: str) -> bool:
        """
        Remove the element and its lock; False when it was gone, for then another has removed it.

        Of several that remove one element, one is told True. Raises QueueError when something lies in it that no
        element has; then nothing was done.
        """

    @abstractmethod
    def take_out(self, name: str, target: str) -> bool:
        """
        Move the element to the path *target*, that nobody else can make; False when it was gone.

        *target* is on the same filesystem. On a network filesystem the lock stays, until put_in or a sweep.
        """

    @abstractmethod
    def put_in(self, source: str, name: str) -> str | None:
        """
        Move what take_out has moved to *source* back into the queue, unlocked, as *name*; its name then.

        That is a fresh name when *name* is taken, or its old lock was not taken away yet. None when *source* is gone.
        On a network filesystem *source* must be the caller's alone, see ForeignQueue.put_in_alone.
        """

    @abstractmethod
    def break_lock(self, name: str, is_stale: Callable[[Lock], bool]) -> bool:
        """
        Take the element's lock away if *is_stale* says so; whether it was broken.

        *is_stale* must be false for locks younger than a second (see the module). Of several that break one lock
        at a time, one is told True. A lock that was taken again meanwhile stays.
        """

    @abstractmethod
    def check_moves(self, target: str) -> None:
        """Try whether what is made here can be renamed to *target*, that nobody else can make. Raises OSError."""

    def tells_locks(self) -> bool:
        """Whether the filesystem can tell that a lock is still the one that was taken. Raises OSError."""
        return True

    # ---- for the engines

    @abstractmethod
    def _probe_ns(self) -> int:
        """The mtime of something made just now."""

    def _fresh(self) -> str:
        return self._names.fresh(self.system.wall_ns(), self.rndhex)

    def _aside(self, directory: str) -> str:
        """A path in *directory* that nobody else makes, and that a sweep takes away by its age."""
        return f"{self.path}/{directory}/{self._fresh()}.{self.system.random_bytes(4).hex()}{TEMPORARY_SUFFIX}"

    def _rmdir(self, path: str) -> bool:
        """Remove the directory *path*; False when it was gone."""
        try:
            self.system.rmdir(path)
        except FileNotFoundError:
            return False
        return True

    def _make_file(self, path: str, data: bytes, *, durable: bool) -> None:
        """Make *path* with *data*, all of it; nothing is left when that fails. Raises OSError."""
        system, mode = self.system, FILE_MODE if self.umask is None else FILE_MODE & ~self.umask
        fd = system.open(path, CREATE, mode)
        try:
            try:
                if self.umask is not None:
                    self._allow(fd, system.fstat(fd), mode)
                written = system.write(fd, data) if data else 0
                while written < len(data):
                    written += system.write(fd, data[written:])
                if durable:
                    system.fsync(fd)
            finally:
                system.close(fd)
        except BaseException as error:
            forget(self.system, path)
            if isinstance(error, OSError):
                error.filename = path  # of a descriptor's error nobody knows it
            raise

    def _mkdir(self, path: str) -> bool:
        """Make the directory *path*; False when something is there already."""
        try:
            if self.umask is None:
                self.system.mkdir(path)
            else:
                self.system.mkdir(path, DIRECTORY_MODE & ~self.umask)
        except FileExistsError:
            return False
        if self.umask is not None:
            try:
                # By a descriptor: somebody may have put a link in its place, to what is not ours to open to others.
                fd = self.system.open(path, OPEN_DIRECTORY)
                try:
                    self._allow(fd, self.system.fstat(fd), DIRECTORY_MODE & ~self.umask)
                finally:
                    self.system.close(fd)
            except OSError:
                self._undo_mkdir(path)
                raise
        return True

    make_directory = _mkdir  # also beside the queue, for those who share it

    def _undo_mkdir(self, path: str) -> None:
        """Remove a directory that nobody was promised; if that fails, a sweep finds it."""
        try:
            self.system.rmdir(path)
        except OSError:
            return

    def _allow(self, what: int, found: os.stat_result, mode: int) -> bool:
        """
        Give *what*, a descriptor made with *mode*, the bits that the process's umask cut off; whether there were any.

        What was made had at no moment more than it shall have. The process's umask belongs to all its threads.
        """
        if found.st_mode & 0o777 == mode:
            return False
        self.system.chmod(what, found.st_mode & 0o7000 | mode)
        return True

    def _make_path(self, path: str) -> None:
        """Make *path* and the directories above it. Raises FileExistsError when something else is there."""
        try:
            is_made = self._mkdir(path)
        except FileNotFoundError:
            parent = os.path.dirname(path.rstrip("/"))
            if not parent:
                raise
            self._make_path(parent)
            is_made = self._mkdir(path)
        if not is_made and not self.system.is_directory(path, is_followed=True):
            self.system.mkdir(path)  # raises what it was told before

    def _sync_name_of(self, directory: str) -> None:
        """Make the name of the intermediate *directory* durable, once, and that of the queue."""
        if directory == self._synced:
            return
        self.system.fsync_directory(self.path)
        if not self._synced:
            with contextlib.suppress(PermissionError):  # a parent may be for passing only
                self.system.fsync_directory(os.path.dirname(self.path.rstrip("/")) or ".")
        self._synced = directory

    def _is_there(self, path: str) -> bool:
        """Whether *path* exists, asked after a call that failed; see system.is_listed. Raises OSError."""
        return is_listed(self.system, path) if self.is_network else is_there(self.system, path)

    def _is_renamed(self, source: str, target: str) -> bool:
        """Rename *source* to the fresh *target*; False when it was gone."""
        try:
            self.system.rename(source, target)
        except FileNotFoundError:
            if self._is_there(source):  # it is the target's directory that is missing
                raise
            # Nobody else makes that name: the reply was lost.
            return self.is_network and self._is_there(target)
        return True

    def _rename_once(self, source: str, target: str) -> None:
        """Rename without replacing what is there, as far as the filesystem can. Raises OSError, EEXIST."""
        try:
            self.system.rename_noreplace(source, target)
        except OSError as error:
            # A network's EEXIST may be out of a cache: NFS looks there before it says that it cannot do this at all.
            # See test_a_message_comes_back_under_its_name_where_this_host_has_seen_it_before.
            if error.errno not in NO_NOREPLACE and not (self.is_network and error.errno == errno.EEXIST):
                raise
            # RACE: the keeper of another host moves the same file back. A link, and then an unlink, would let each of
            # them make a message of it; of two who rename it one does. See test_of_two_keepers_one_lets_it_wait_again.
            if self._is_there(target):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target) from None
            self.system.rename(source, target)
