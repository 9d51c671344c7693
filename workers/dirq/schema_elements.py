"""
schema_elements - the engine of Queue: a directory for each element, a file for each of its parts

DIRECTORY/ELEMENT/KEY are the parts, DIRECTORY/ELEMENT/locked is a directory while the
element is locked. An element is written in temporary/ and moved to its place by one
rename; a removed one is moved to obsolete/ by one rename and taken apart there.
Directories are counted, 00000000, 00000001, ..., with at most *maxelts* elements each. The age of a
lock is the mtime of the element's directory, which locking, unlocking and touching move.

Whether an element is locked is asked of locked/ itself: not every filesystem counts the
links of a directory.

Limits: maxelts may be exceeded by as many elements as are added at one time, and is not
looked after on a filesystem that says 2 links of every directory.
Long because: each of the verbs has several calls, and what a peer may do between them is told there.
Source: Directory::Queue::Normal, the format.
See also: elements (the verbs), queue (the published API), schema (what the parts mean).
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Callable, Iterable, Mapping

from workers.dirq.elements import (
    ATTEMPTS_MAX,
    ELEMENT,
    GONE,
    LOCKED_DIRECTORY,
    LOST_RACE,
    OBSOLETE_DIRECTORY,
    OPEN_BODY,
    TEMPORARY_DIRECTORY,
    UNREADABLE,
    Elements,
    Lock,
    Swept,
    UnreadableError,
    older_than,
)
from workers.dirq.errors import QueueError
from workers.system import SYSTEM, System, forget, is_there, remove

KEY = re.compile(r"\A[0-9a-zA-Z]+\Z")
STILL_OPEN = (".nfs", ".fuse_hidden")
ASIDE = re.compile(r"\A[0-9a-f]{14}\.[0-9a-f]{8}\.tmp\Z")
LISTED_NS = 10**9  # a listing of the queue is good for so long
TAKEN = frozenset({errno.EEXIST, errno.ENOTEMPTY})


class SchemaElements(Elements[Mapping[str, bytes]]):
    """See Elements. *body* is the part that body_path names."""

    lists_locks = False

    def __init__(
        self,
        path: str,
        umask: int | None = None,
        rndhex: int | None = None,
        maxelts: int = 16000,
        body: str = "body",
        *,
        system: System = SYSTEM,
    ) -> None:
        super().__init__(path, umask, rndhex, system)
        self.maxelts = maxelts
        self.body = body
        self._insertion = ""  # the directory that was last in the last listing, "" when there is to be a new listing
        self._listed_ns = 0
        self._counted = 0  # elements in it, where its links say nothing

    # ---- the queue

    def make(self) -> None:
        """See Elements.make."""
        super().make()
        self._mkdir(f"{self.path}/{TEMPORARY_DIRECTORY}")
        self._mkdir(f"{self.path}/{OBSOLETE_DIRECTORY}")

    def add(self, data: Mapping[str, bytes], *, durable: bool = False) -> str:
        """See Elements.add: mkdir in temporary/, a file for each part, rename. *data* has the parts by their keys."""
        for attempt in range(1, ATTEMPTS_MAX + 1):
            temporary = self._make_in(TEMPORARY_DIRECTORY)
            try:
                for key, part in data.items():
                    self._make_file(f"{temporary}/{key}", part, durable=durable)
                if durable:
                    self.system.fsync_directory(temporary)
                name = self._publish(temporary, durable=durable)
                break
            except FileNotFoundError:
                # RACE: a peer's purge has removed it, which it does however young it is, or the intermediate directory.
                # See test_D1_add_starts_again_when_its_temporary_directory_is_purged
                # and test_D23_add_survives_the_purge_of_the_directory_that_it_has_chosen.
                self._discard(temporary, data)
                if attempt == ATTEMPTS_MAX:
                    raise
            except BaseException:
                self._discard(temporary, data)
                raise
        if durable:
            self.system.fsync_entered(f"{self.path}/{name[:8]}")
        return name

    def _discard(self, temporary: str, data: Iterable[str]) -> None:
        for key in data:
            forget(self.system, f"{temporary}/{key}")
        self._undo_mkdir(temporary)

    def _publish(self, temporary: str, *, durable: bool) -> str:
        """Move the written *temporary* into an intermediate directory, under its own name if that is free; its name."""
        element = temporary[-14:]
        for attempt in range(1, ATTEMPTS_MAX + 1):
            directory = self._insertion_directory()
            if durable:
                self._sync_name_of(directory)
            name = f"{directory}/{element}"
            try:
                self.system.rename(temporary, f"{self.path}/{name}")
            except FileNotFoundError:
                if not self._is_moved(temporary, f"{self.path}/{name}"):
                    raise
                break
            except OSError as error:
                if error.errno not in TAKEN or attempt == ATTEMPTS_MAX:
                    raise
                element = self._fresh()
            else:
                break
        return name

    def _is_moved(self, source: str, target: str) -> bool:
        """Whether a rename to the fresh *target*, of which we were told ENOENT, has happened: its reply was lost."""
        return self.is_network and not self._is_there(source) and self._is_there(target)

    def waiting(self, directory: str, odd: set[str]) -> list[str]:
        """See Elements.waiting: all that are directories; a listing does not tell which are locked."""
        found = []
        try:
            with self.system.scandir(f"{self.path}/{directory}") as entries:
                for entry in entries:
                    if ELEMENT.match(entry.name):
                        if entry.is_dir(follow_symlinks=False):
                            found.append(f"{directory}/{entry.name}")
                        else:
                            odd.add(f"{directory}/{entry.name}")
        except FileNotFoundError:
            return []
        found.sort()
        return found

    def count(self) -> int:
        """See Elements.count. By the links of the intermediate directories where those say it."""
        return sum(map(self._count_in, self.directories()))

    def _count_in(self, directory: str) -> int:
        try:
            links = self.system.lstat(f"{self.path}/{directory}").st_nlink
        except FileNotFoundError:
            return 0
        # Two links may be those of an empty directory, or of a filesystem that does not count them.
        return links - 2 if links > 2 else len(self.names(directory))

    # ---- one element

    def lock_path(self, name: str) -> str:
        """See Elements.lock_path."""
        return f"{self.path}/{name}/{LOCKED_DIRECTORY}"

    def body_path(self, name: str) -> str:
        """See Elements.body_path."""
        return f"{self.path}/{name}/{self.body}"

    def body_in(self, path: str) -> str:
        """See Elements.body_in."""
        return f"{path}/{self.body}"

    def lock(self, name: str) -> Lock | None:
        """See Elements.lock: lstat, mkdir, lstat. Raises OSError ENOTDIR when the element is no directory."""
        try:
            self._check_directory(f"{self.path}/{name}")
        except FileNotFoundError:
            return None
        return self._lock(name)

    def _check_directory(self, path: str) -> None:
        """Raise NotADirectoryError for anything else, FileNotFoundError: a link would lead out of the queue."""
        if not stat.S_ISDIR(self.system.lstat(path).st_mode):
            raise NotADirectoryError(errno.ENOTDIR, "is no directory", path)

    def _lock(self, name: str) -> Lock | None:
        system = self.system
        lock_path = f"{self.path}/{name}/{LOCKED_DIRECTORY}"
        since_ns = system.boottime_ns()
        try:
            if self.umask is None:
                system.mkdir(lock_path)
            elif not self._mkdir(lock_path):
                return None
        except OSError as error:
            if error.errno not in LOST_RACE:
                raise
            return None
        try:
            # RACE: the element may be on its way to obsolete/, locked and removed by another since we looked it up.
            # See test_an_element_that_is_removed_while_it_is_locked_is_not_locked.
            found = system.lstat(lock_path)
        except FileNotFoundError:
            return None
        except BaseException as error:
            self._undo_mkdir(lock_path)
            if isinstance(error, OSError) and error.errno in GONE:
                return None
            raise
        return Lock(name, found.st_ino, found.st_mtime_ns, since_ns)

    def open_locked(self, name: str) -> tuple[Lock, int, os.stat_result] | None:
        """See Elements.open_locked: mkdir, lstat, open, fstat."""
        lock = self._lock(name)  # of a listing that showed a directory
        if lock is None:
            return None
        path = f"{self.path}/{name}"
        try:
            fd = self.system.open(f"{path}/{self.body}", OPEN_BODY)
        except OSError as error:
            if error.errno in UNREADABLE or (error.errno == errno.ENOENT and self.is_held(lock)):
                raise UnreadableError(error, lock) from error
            if error.errno == errno.ENOENT:
                return None
            self._undo_mkdir(f"{path}/{LOCKED_DIRECTORY}")
            if error.errno in GONE:
                return None
            raise
        try:
            found = self.system.fstat(fd)
        except BaseException:
            self.system.close(fd)
            self._undo_mkdir(f"{path}/{LOCKED_DIRECTORY}")
            raise
        return lock, fd, found

    def is_held(
        self,
        lock: Lock,
        touched_ns: int = 0,  # noqa: ARG002 - nothing but its making moves the time of locked/
        within_ns: int = 0,  # noqa: ARG002
    ) -> bool:
        """See Elements.is_held. One lstat."""
        try:
            found = self.system.lstat(f"{self.path}/{lock.name}/{LOCKED_DIRECTORY}")
        except FileNotFoundError:
            return False
        return is_same(lock, found)

    def unlock(self, name: str) -> bool:
        """See Elements.unlock."""
        lock_path = f"{self.path}/{name}/{LOCKED_DIRECTORY}"
        if self.is_network:
            # As SimpleElements does it: a name that only we can make says whether it was our call that took it.
            aside = self._aside(name[:8])
            with contextlib.suppress(PermissionError):  # only who may write to locked/ itself may move it
                if not self._is_renamed(lock_path, aside):
                    return False
                self._undo_mkdir(aside)
                return True
        return self._rmdir(lock_path)

    def remove(self, name: str) -> bool:
        """See Elements.remove: look, rename to obsolete/, unlink the parts, rmdir. Raises as lock() does."""
        try:
            parts = self._parts(name)
        except FileNotFoundError:
            return False
        obsolete = self._move_to_obsolete(f"{self.path}/{name}")
        if obsolete is None:
            return False
        self._take_apart(obsolete, parts)
        return True

    def _parts(self, name: str) -> list[str]:
        """The files of an element. Raises QueueError for what none has, FileNotFoundError when it is gone."""
        path = f"{self.path}/{name}"
        self._check_directory(path)
        # What somebody has open and another has removed, NFS keeps under a name of its own until it is closed.
        parts = [part for part in self.system.listdir(path) if not part.startswith(STILL_OPEN)]
        if LOCKED_DIRECTORY in parts:
            parts.remove(LOCKED_DIRECTORY)
        for part in parts:
            if not KEY.match(part):
                raise QueueError(f"unexpected file in {path}: {part}")
        return parts

    def _move_to_obsolete(self, path: str) -> str | None:
        """Give the element at *path* a fresh name in obsolete/; where it is then, None when it was gone."""
        for _ in range(ATTEMPTS_MAX):
            obsolete = f"{self.path}/{OBSOLETE_DIRECTORY}/{self._fresh()}"
            try:
                self.system.rename(path, obsolete)
            except FileNotFoundError:
                if self._is_moved(path, obsolete):
                    return obsolete
                if not self._is_there(path):
                    return None
                self._mkdir(f"{self.path}/{OBSOLETE_DIRECTORY}")
            except OSError as error:
                if error.errno not in TAKEN:
                    raise
            else:
                return obsolete
        raise FileExistsError(errno.EEXIST, "holds every name that was tried", f"{self.path}/{OBSOLETE_DIRECTORY}")

    def _take_apart(self, path: str, parts: Iterable[str]) -> None:
        """Remove what was moved to obsolete/. What cannot be removed now is found by a sweep."""
        try:
            for part in parts:
                remove(self.system, f"{path}/{part}")
            for _ in range(ATTEMPTS_MAX):
                try:
                    self._rmdir(f"{path}/{LOCKED_DIRECTORY}")
                    self._rmdir(path)
                    return
                except OSError as error:
                    # RACE: who looked the element up before it was moved may make locked/ in it only now.
                    # See test_a_late_lock_does_not_keep_a_removed_element_in_obsolete.
                    if error.errno not in TAKEN or not is_there(self.system, f"{path}/{LOCKED_DIRECTORY}"):
                        raise
        except OSError:
            return

    def take_out(self, name: str, target: str) -> bool:
        """See Elements.take_out: rename the element, then remove locked/ in it."""
        if not self._is_renamed(f"{self.path}/{name}", target):
            return False
        # RACE: a client of a network filesystem that still knows the name would make locked/ in what is no longer
        # there, for it acts by the directory's handle. See test_what_is_taken_out_stays_locked_on_a_network.
        if not self.is_network:
            self._undo_mkdir(f"{target}/{LOCKED_DIRECTORY}")
        return True

    def put_in(self, source: str, name: str) -> str | None:
        """See Elements.put_in."""
        self._rmdir(f"{source}/{LOCKED_DIRECTORY}")  # once: who makes it anew from now on has it, wherever it goes
        for _ in range(ATTEMPTS_MAX):
            try:
                self._rename_once(source, f"{self.path}/{name}")
            except FileNotFoundError:
                if not self._is_there(source):
                    return name if self._is_moved(source, f"{self.path}/{name}") else None
                self._mkdir(f"{self.path}/{name[:8]}")
            except OSError as error:
                if error.errno not in TAKEN:
                    raise
                if self._is_moved(source, f"{self.path}/{name}"):
                    return name
                name = f"{self._insertion_directory()}/{self._fresh()}"
            else:
                return name
        raise FileNotFoundError(errno.ENOENT, "is removed as often as it is made", f"{self.path}/{name[:8]}")

    def break_lock(self, name: str, is_stale: Callable[[Lock], bool]) -> bool:
        """
        See Elements.break_lock.

        The lock that *is_stale* is given has the time of the element's directory, by which the format goes and which
        a touch moves; found_lock gives that of locked/.
        """
        path, lock_path = f"{self.path}/{name}", self.lock_path(name)
        try:
            # ORDER: the lock, then the time of the element. A time that was read first could be older than a lock
            # that was taken in between. See test_D8_of_two_reapers_neither_breaks_the_lock_that_was_taken_again.
            found = self.system.lstat(lock_path)
            age = self.system.lstat(path)
        except FileNotFoundError:
            return False
        if not is_stale(Lock(name, found.st_ino, age.st_mtime_ns, 0)):
            return False
        aside = self._aside(name[:8])
        # RACE: another reaper has broken it since, and somebody has locked again. Whoever moves locked/ away has it
        # for himself, and looks whether it is the one he saw. See the test above.
        try:
            if not self._is_renamed(lock_path, aside):
                return False
        except PermissionError:  # only who may write to locked/ itself may move it; removing it is allowed to more
            return self.is_held(Lock(name, found.st_ino, found.st_mtime_ns, 0)) and self._rmdir(lock_path)
        try:
            is_broken = is_same(Lock(name, found.st_ino, found.st_mtime_ns, 0), self.system.lstat(aside))
            if not is_broken:
                self._rename_once(aside, lock_path)
                return False
        except FileNotFoundError:  # a peer's sweep, or the element is gone
            is_broken = True
        except OSError as error:
            if error.errno not in TAKEN:
                raise
        self._undo_mkdir(aside)
        return is_broken

    # ---- sweeping

    def sweep(self, temporary_before_ns: int | None, locked_before_ns: int | None) -> Swept:
        """See Elements.sweep."""
        swept = Swept()
        directories = self.directories()
        if temporary_before_ns is not None:
            for place in (TEMPORARY_DIRECTORY, OBSOLETE_DIRECTORY):
                self._sweep_place(place, temporary_before_ns, swept)
        for directory in directories:
            try:
                is_empty = self._sweep_directory(directory, temporary_before_ns, locked_before_ns, swept)
                if is_empty and directory != directories[-1] and self._rmdir(f"{self.path}/{directory}"):
                    swept.directories += 1
            except OSError as error:
                if error.errno != errno.ENOENT and error.errno not in TAKEN:
                    swept.errors.append(error)
        return swept

    def _sweep_place(self, place: str, before_ns: int, swept: Swept) -> None:
        """Sweep temporary/ or obsolete/."""
        try:
            names = self.names(place)
        except OSError as error:
            swept.errors.append(error)
            return
        for name in names:
            try:
                swept.temporary += self._remove_old(name, before_ns)
            except OSError as error:
                swept.errors.append(error)

    def _sweep_directory(
        self,
        directory: str,
        temporary_before_ns: int | None,
        locked_before_ns: int | None,
        swept: Swept,
    ) -> bool:
        """Sweep one intermediate directory; whether nothing is left in it. Raises OSError of the listing."""
        found = self.system.listdir(f"{self.path}/{directory}")
        count = len(found)
        for entry in sorted(found):
            name = f"{directory}/{entry}"
            try:
                if ELEMENT.match(entry):
                    if self._break_old(name, locked_before_ns):
                        swept.locks.append(name)
                elif ASIDE.match(entry) and self._is_older(f"{self.path}/{name}", temporary_before_ns):
                    count -= self._rmdir(f"{self.path}/{name}")
            except OSError as error:
                swept.errors.append(error)
        return count == 0

    def _is_older(self, path: str, before_ns: int | None) -> bool:
        try:
            found = self.system.lstat(path)
        except FileNotFoundError:
            return False
        # What is no directory is no element: a link would lead out of the queue.
        return before_ns is not None and found.st_mtime_ns < before_ns and stat.S_ISDIR(found.st_mode)

    def _break_old(self, name: str, before_ns: int | None) -> bool:
        """Break the lock of an element whose time is before that. One lstat when it is not."""
        if before_ns is None or not self._is_older(f"{self.path}/{name}", before_ns):
            return False
        return self.break_lock(name, older_than(before_ns))

    def _remove_old(self, name: str, before_ns: int) -> bool:
        """Remove the directory *name* in temporary/ or obsolete/ if it is that old; whether it was ours."""
        path = f"{self.path}/{name}"
        if not self._is_older(path, before_ns):
            return False
        if name.startswith(TEMPORARY_DIRECTORY):
            # RACE: its writer is slow, not dead. Once it is moved he cannot publish it any more, and starts again;
            # an element with some of its parts must never be seen.
            # See test_a_slow_writer_whose_directory_is_swept_publishes_all_or_starts_again.
            moved = self._move_to_obsolete(path)
            if moved is None:
                return False
            path = moved
        try:
            parts = [part for part in self.system.listdir(path) if part != LOCKED_DIRECTORY]
        except FileNotFoundError:
            return False
        self._take_apart(path, parts)
        return True

    # ---- inside

    def _make_in(self, place: str) -> str:
        """Make a fresh directory in *place* (temporary/); its path."""
        for _ in range(ATTEMPTS_MAX):
            path = f"{self.path}/{place}/{self._fresh()}"
            try:
                if self._mkdir(path):
                    return path
            except FileNotFoundError:  # somebody has tidied up too well
                self._mkdir(f"{self.path}/{place}")
        raise FileExistsError(errno.EEXIST, "holds every name that was tried", f"{self.path}/{place}")

    def _insertion_directory(self) -> str:
        """The intermediate directory for the next element: the last one, a new one when that is full."""
        now_ns = self.system.boottime_ns()
        if self._insertion and now_ns - self._listed_ns < LISTED_NS and self._has_room(self._insertion):
            return self._insertion
        directories = self.directories()
        self._listed_ns = now_ns
        self._counted = -1
        if not directories:
            directory = "00000000"
            self._mkdir(f"{self.path}/{directory}")
        elif self._has_room(directories[-1]):
            directory = directories[-1]
        else:
            directory = f"{int(directories[-1], 16) + 1:08x}"
            self._mkdir(f"{self.path}/{directory}")
            self._counted = -1
        self._insertion = directory
        return directory

    def _has_room(self, directory: str) -> bool:
        """Whether it is there and holds less than maxelts. One lstat; where that tells nothing, a listing at times."""
        try:
            links = self.system.lstat(f"{self.path}/{directory}").st_nlink
        except FileNotFoundError:
            return False
        if links >= 2:
            return links - 2 < self.maxelts
        self._counted = len(self.names(directory)) if self._counted < 0 else self._counted + 1
        return self._counted < self.maxelts

    def check_moves(self, target: str) -> None:
        """See Elements.check_moves."""
        for attempt in range(1, ATTEMPTS_MAX + 1):
            probe = self._make_in(TEMPORARY_DIRECTORY)
            try:
                # RACE: a peer's purge removes directories in temporary/ however young they are.
                # See test_check_moves_is_tried_again_when_its_probe_is_purged.
                if not self._is_renamed(probe, target):
                    if attempt == ATTEMPTS_MAX:
                        raise FileNotFoundError(errno.ENOENT, "was purged", probe)
                    continue
            except OSError:
                self._undo_mkdir(probe)
                raise
            self._rmdir(target)
            return

    def _probe_ns(self) -> int:
        probe = self._make_in(TEMPORARY_DIRECTORY)
        try:
            return self.system.lstat(probe).st_mtime_ns
        finally:
            self._undo_mkdir(probe)


def is_same(lock: Lock, found: os.stat_result) -> bool:
    """Whether *found*, the stat of a directory locked/, is that of *lock*: nothing but its making sets its mtime."""
    return found.st_ino == lock.inode and found.st_mtime_ns == lock.at_ns
