"""
simple_elements - the engine of QueueSimple: one file for each element, a hard link for its lock

DIRECTORY/ELEMENT is the element, DIRECTORY/ELEMENT.lck its lock (a second name of the same
file), DIRECTORY/NAME.tmp an element that is being written, or a lock that is being
broken. Directories are called after the time, *granularity* seconds for each. The age of
a lock is the file's mtime.

The unlink of the element is what settles it; a kill right after it leaves a lock without
an element, which a sweep takes away.

Limits: a lock that is found young after it was set aside is put back; who locks in between
makes a second holder, of which only one can remove.
Long because: each of the verbs has several calls, and what a peer may do between them is told there.
Source: Directory::Queue::Simple, the format.
See also: elements (the verbs), simple (the published API).
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable

from workers.dirq.elements import (
    ATTEMPTS_MAX,
    ELEMENT,
    GONE,
    LOCKED_SUFFIX,
    LOST_RACE,
    OPEN_BODY,
    SECOND_NS,
    TEMPORARY_SUFFIX,
    UNREADABLE,
    Elements,
    Lock,
    Swept,
    UnreadableError,
    digits_of,
    is_regular,
    older_than,
)
from workers.system import SYSTEM, System, forget, is_listed, is_there, remove

NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS})
LISTED_NS = 500_000_000  # a listing is good for so long: a touch that comes later would look like a later lock


class SimpleElements(Elements[bytes]):
    """See Elements. *granularity* in seconds; 0 and 1 are one directory for each second."""

    lists_locks = True

    def __init__(
        self,
        path: str,
        umask: int | None = None,
        rndhex: int | None = None,
        granularity: int = 60,
        *,
        system: System = SYSTEM,
    ) -> None:
        super().__init__(path, umask, rndhex, system)
        self.granularity = granularity
        self._listed: tuple[int, set[str]] = (0, set())  # when names() has listed last, and what was not locked there
        self._insertion = (0, "00000000")  # the directory of the last add: when it began, and its name

    # ---- the queue

    def add(self, data: bytes, *, durable: bool = False) -> str:
        """See Elements.add: open, write, close, link, unlink."""
        system = self.system
        for attempt in range(1, ATTEMPTS_MAX + 1):
            now_ns = system.wall_ns()
            directory = self._directory_at(now_ns)
            name = f"{directory}/{self._names.fresh(now_ns, self.rndhex)}"
            path = f"{self.path}/{name}"
            temporary = path + TEMPORARY_SUFFIX
            try:
                self._make_file(temporary, data, durable=durable)
            except FileExistsError:  # another writer with our digit has begun with that name
                if attempt == ATTEMPTS_MAX:
                    raise
                continue
            except FileNotFoundError:
                if attempt == ATTEMPTS_MAX:
                    raise
                self._mkdir(f"{self.path}/{directory}")
                continue
            try:
                if durable:
                    self._sync_name_of(directory)
                try:
                    system.link(temporary, path)
                except FileExistsError:
                    if not self._is_linked(temporary, path):
                        name = self._link(temporary, directory)
                break
            except FileNotFoundError:
                self._check_told(temporary)
                # RACE: a purge has removed the temporary file, and perhaps the directory.
                # See test_D10_a_directory_that_is_purged_meanwhile_is_made_again.
                forget(self.system, temporary)
                if attempt == ATTEMPTS_MAX:
                    raise
            except BaseException:
                forget(self.system, temporary)
                raise
        forget(self.system, temporary)
        if durable:
            system.fsync_entered(f"{self.path}/{directory}")
        return name

    def add_path(self, path: str) -> str:
        """
        Move the file *path* into the queue: its name there. Content, owner, mode and times stay as they are.

        Raises OSError: EINVAL when it is no regular file, EXDEV from another filesystem.
        """
        if not is_regular(self.system.lstat(path)):
            raise OSError(errno.EINVAL, "is no regular file", path)
        for _ in range(ATTEMPTS_MAX):
            directory = self._insertion_directory()
            self._mkdir(f"{self.path}/{directory}")
            try:
                name = self._link(path, directory)
            except FileNotFoundError:
                if not is_there(self.system, path):
                    raise
                continue  # a peer's purge has removed the directory
            remove(self.system, path)
            return name
        raise FileNotFoundError(errno.ENOENT, "is removed as often as it is made", f"{self.path}/{directory}")

    def names(self, directory: str) -> list[str]:
        """See Elements.names. lock() goes by the same listing, for a moment."""
        listed_ns = self.system.boottime_ns()
        try:
            found = self.system.listdir(f"{self.path}/{directory}")
        except FileNotFoundError:  # a peer's purge has taken it
            return []
        names = [f"{directory}/{element}" for element in sorted(filter(ELEMENT.match, found))]
        locked = {f"{directory}/{file[:-4]}" for file in found if file.endswith(LOCKED_SUFFIX)}
        self._listed = (listed_ns, set(names) - locked)
        return names

    def waiting(self, directory: str, odd: set[str]) -> list[str]:
        """See Elements.waiting: without those whose lock is in the same listing."""
        found, locked = [], set()
        try:
            with self.system.scandir(f"{self.path}/{directory}") as entries:
                for entry in entries:
                    name = entry.name
                    if name.endswith(LOCKED_SUFFIX):
                        locked.add(name[:-4])
                    elif ELEMENT.match(name):
                        if entry.is_file(follow_symlinks=False):
                            found.append(name)
                        elif not entry.is_dir(follow_symlinks=False):
                            odd.add(f"{directory}/{name}")
        except FileNotFoundError:
            return []
        return [f"{directory}/{name}" for name in sorted(found) if name not in locked]

    def count(self) -> int:
        """See Elements.count."""
        return sum(len(super(SimpleElements, self).names(directory)) for directory in self.directories())

    # ---- one element

    def lock_path(self, name: str) -> str:
        """See Elements.lock_path."""
        return f"{self.path}/{name}{LOCKED_SUFFIX}"

    def body_path(self, name: str) -> str:
        """See Elements.body_path: the element itself, for whoever removes what he was given must not unlock it."""
        return f"{self.path}/{name}"

    def lock(self, name: str) -> Lock | None:
        """See Elements.lock. Raises OSError when the element is no regular file: EINVAL, of a directory EPERM."""
        system = self.system
        path = f"{self.path}/{name}"
        lock_path = path + LOCKED_SUFFIX
        since_ns = system.boottime_ns()
        listed_ns, unlocked = self._listed
        try:
            # What is locked already is not touched, or who looks often would keep a dead holder's lock young.
            if name in unlocked and since_ns - listed_ns < LISTED_NS:
                unlocked.discard(name)
            elif self._looks_locked(path, lock_path):
                return None
            # ORDER: touch, then link. The lock has the element's time, so the lock of an old element would be born
            # stale, and a purge by any peer could give it to a second one.
            # See test_D7_the_lock_of_an_old_element_is_never_old.
            system.utime(path)
            system.link(path, lock_path)
        except OSError as error:
            if error.errno not in LOST_RACE:
                raise
            return None
        try:
            # RACE: link(2) looks the element up before it locks the directory. Its holder may have ended it in between,
            # and a file that has one more name (being added yet, or moved away) is linked all the same.
            # See test_what_its_holder_ended_between_the_two_halves_of_a_link_is_not_locked.
            found = system.lstat(path)
        except BaseException as error:
            forget(self.system, lock_path)
            if isinstance(error, OSError) and error.errno in GONE:
                return None
            raise
        if not is_regular(found):
            forget(self.system, lock_path)
            raise OSError(errno.EINVAL, "is no regular file", path)
        return Lock(name, found.st_ino, found.st_mtime_ns, since_ns)

    def _looks_locked(self, path: str, lock_path: str) -> bool:
        found = self.system.lstat(path)
        # A file may have several names for other reasons: one that add_path has brought, or a killed add.
        return found.st_nlink > 1 and is_there(self.system, lock_path)

    def open_locked(self, name: str) -> tuple[Lock, int, os.stat_result] | None:
        """See Elements.open_locked: lstat, utimes, link, open, fstat."""
        system = self.system
        path = f"{self.path}/{name}"
        lock_path = path + LOCKED_SUFFIX
        since_ns = system.boottime_ns()
        try:
            # The listing may be some seconds old; see lock() for why what is locked is not touched.
            if self._looks_locked(path, lock_path):
                return None
            # ORDER: touch, then link, as in lock(). See test_D7_open_locked_never_has_an_old_lock_either.
            system.utime(path)
            system.link(path, lock_path)
        except OSError as error:
            if error.errno not in LOST_RACE:
                raise
            return None
        try:
            fd = system.open(path, OPEN_BODY)  # RACE: as in lock(), see there
        except OSError as error:
            if error.errno in GONE:
                forget(self.system, lock_path)
                return None
            self._raise_unreadable(error, name, since_ns)
            raise
        try:
            found = system.fstat(fd)
        except BaseException:
            system.close(fd)
            forget(self.system, lock_path)
            raise
        return Lock(name, found.st_ino, found.st_mtime_ns, since_ns), fd, found

    def _raise_unreadable(self, error: OSError, name: str, since_ns: int) -> None:
        """Raise UnreadableError when opening can never succeed; else undo the lock."""
        lock_path = self.lock_path(name)
        if error.errno in UNREADABLE:
            try:
                found = self.system.lstat(lock_path)
            except OSError:
                forget(self.system, lock_path)
                return
            raise UnreadableError(error, Lock(name, found.st_ino, found.st_mtime_ns, since_ns)) from error
        forget(self.system, lock_path)

    def is_held(self, lock: Lock, touched_ns: int = 0, within_ns: int = SECOND_NS) -> bool:
        """See Elements.is_held. One lstat."""
        try:
            found = self.system.lstat(f"{self.path}/{lock.name}{LOCKED_SUFFIX}")
        except FileNotFoundError:
            return False
        return is_same(lock, found, touched_ns, within_ns)

    def unlock(self, name: str) -> bool:
        """See Elements.unlock."""
        return self._is_removed(f"{self.path}/{name}{LOCKED_SUFFIX}", name[:8])

    def remove(self, name: str) -> bool:
        """See Elements.remove: unlink the element, then its lock."""
        path = f"{self.path}/{name}"
        # ORDER: the element, then the lock. The other way round it could be locked again between the two, and what
        # its next holder works on would be removed. See test_remove_never_leaves_an_element_without_its_lock.
        if not self._is_removed(path, name[:8]):
            return False
        forget(self.system, path + LOCKED_SUFFIX)  # it was settled by the first call; what is left, a sweep takes away
        return True

    def _is_removed(self, path: str, directory: str) -> bool:
        """Unlink *path*, which is in *directory*; False when it was gone."""
        if not self.is_network:
            return remove(self.system, path)
        # An unlink that was told ENOENT may have been ours or another's; a name that only we can make says which.
        aside = self._aside(directory)
        if not self._is_renamed(path, aside):
            return False
        forget(self.system, aside)
        return True

    def take_out(self, name: str, target: str) -> bool:
        """See Elements.take_out: rename the element, then unlink the lock."""
        path = f"{self.path}/{name}"
        if not self._is_renamed(path, target):
            return False
        # RACE: a client of a network filesystem that still knows the name locks what is no longer there, for it acts by
        # the file's handle. So the lock stays until put_in. See test_what_is_taken_out_stays_locked_on_a_network.
        if not self.is_network:
            forget(self.system, path + LOCKED_SUFFIX)
        return True

    def put_in(self, source: str, name: str) -> str | None:
        """See Elements.put_in. A lock without its element belongs to a take_out, locally to one that has not ended."""
        if not self.is_network:
            return self._put_in(source, name, is_name_free=not is_there(self.system, self.lock_path(name)))
        try:
            at_ns = self.system.lstat(source).st_mtime_ns
        except FileNotFoundError:
            return None
        again = self._put_in(source, name, is_name_free=True)
        # ORDER: the element, then its old lock, if nobody has broken that and locked again since. The other way round
        # who still knows the name could lock what is outside. See test_what_is_taken_out_stays_locked_on_a_network.
        if again == name:
            self.break_lock(name, older_than(at_ns + 1))
        return again

    def _put_in(self, source: str, name: str, *, is_name_free: bool) -> str | None:
        for _ in range(ATTEMPTS_MAX):
            if not is_name_free:
                name = f"{self._insertion_directory()}/{self._fresh()}"
            try:
                self._rename_once(source, f"{self.path}/{name}")
            except FileExistsError:
                if self.is_network and not self._is_there(source):
                    return name
                is_name_free = False
            except FileNotFoundError:
                if not self._is_there(source):
                    is_ours = self.is_network and self._is_there(f"{self.path}/{name}")
                    return name if is_ours else None
                self._mkdir(f"{self.path}/{name[:8]}")
            else:
                return name
        raise FileNotFoundError(errno.ENOENT, "is removed as often as it is made", f"{self.path}/{name[:8]}")

    def break_lock(self, name: str, is_stale: Callable[[Lock], bool]) -> bool:
        """See Elements.break_lock. *is_stale* is given the lock with its mtime."""
        lock = self.found_lock(name)
        if lock is None or not is_stale(lock):
            return False
        lock_path, aside = self.lock_path(name), self._aside(name[:8])
        # RACE: another reaper has broken it since, and somebody has locked again. Whoever renames it has it for
        # himself, and looks once more. See test_D8_of_two_reapers_neither_breaks_the_lock_that_was_taken_again.
        if not self._is_renamed(lock_path, aside):
            return False
        try:
            found = self.system.lstat(aside)
        except FileNotFoundError:  # a peer's purge has taken it: it was old enough for that one
            return True
        is_broken = is_stale(Lock(name, found.st_ino, found.st_mtime_ns, 0))
        if not is_broken:
            # Unless yet another has locked it, or a peer's purge has taken ours.
            with contextlib.suppress(FileExistsError, FileNotFoundError):
                self.system.link(aside, lock_path)
                if not is_there(self.system, f"{self.path}/{name}"):  # its holder has ended it meanwhile
                    forget(self.system, lock_path)
        forget(self.system, aside)
        return is_broken

    # ---- sweeping

    def sweep(self, temporary_before_ns: int | None, locked_before_ns: int | None) -> Swept:
        """See Elements.sweep."""
        swept = Swept()
        directories = self.directories()
        for directory in directories:
            try:
                is_empty = self._sweep_directory(directory, temporary_before_ns, locked_before_ns, swept)
                if is_empty and directory != directories[-1] and self._rmdir(f"{self.path}/{directory}"):
                    swept.directories += 1
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST):
                    swept.errors.append(error)
        return swept

    def _sweep_directory(
        self,
        directory: str,
        temporary_before_ns: int | None,
        locked_before_ns: int | None,
        swept: Swept,
    ) -> bool:
        """Sweep one intermediate directory; whether nothing is left in it. Raises OSError of the listing."""
        found = set(self.system.listdir(f"{self.path}/{directory}"))
        count = len(found)
        for file in sorted(found):
            if not file.endswith((TEMPORARY_SUFFIX, LOCKED_SUFFIX)):
                continue
            name = f"{directory}/{file[:-4]}"
            is_lock = file.endswith(LOCKED_SUFFIX)
            before_ns = locked_before_ns if is_lock else temporary_before_ns
            if before_ns is None:
                continue
            try:
                if is_lock and file[:-4] in found and ELEMENT.match(file[:-4]):
                    if self.break_lock(name, older_than(before_ns)):
                        swept.locks.append(name)
                elif self._remove_old(f"{self.path}/{directory}/{file}", before_ns, is_lock=is_lock):
                    swept.temporary += 1
                    count -= 1
            except OSError as error:
                swept.errors.append(error)
        return count == 0

    def _remove_old(self, path: str, before_ns: int, *, is_lock: bool) -> bool:
        """Unlink the temporary file or the lock without an element *path*, if it is that old. Whether it was ours."""
        try:
            found = self.system.lstat(path)
            is_directory = (found.st_mode & 0o170000) == 0o040000
            if is_directory or found.st_mtime_ns >= before_ns:
                return False
            # RACE: the element was put back, or was added and locked, since the listing.
            # See test_a_lock_whose_element_came_back_since_the_listing_stays.
            if is_lock and is_there(self.system, path[: -len(LOCKED_SUFFIX)]):
                return False
            self.system.unlink(path)
        except FileNotFoundError:
            return False
        return True

    # ---- inside

    def _insertion_directory(self) -> str:
        return self._directory_at(self.system.wall_ns())

    def _directory_at(self, now_ns: int) -> str:
        seconds = now_ns // 10**9
        if self.granularity > 1:
            seconds -= seconds % self.granularity
        directory = self._insertion
        if directory[0] != seconds:
            directory = self._insertion = (seconds, digits_of(seconds))
        return directory[1]

    def _link(self, source: str, directory: str) -> str:
        """Link *source* under a fresh name in *directory*; the full name."""
        while True:
            name = f"{directory}/{self._fresh()}"
            try:
                self.system.link(source, f"{self.path}/{name}")
            except FileExistsError:
                if self._is_linked(source, f"{self.path}/{name}"):
                    return name
            else:
                return name

    def _check_told(self, source: str) -> None:
        """Raises OSError when a link of *source* that was told ENOENT may have been made; *source* is gone then."""
        # RACE: another host takes and ends the element before the server has looked what to answer, as FUSE does.
        # See test_a_put_that_is_taken_before_its_link_is_answered_is_unknown.
        if self.is_network and self._is_there(source):
            forget(self.system, source)
            raise OSError(errno.EIO, "it cannot be told whether it entered", source)

    def _is_linked(self, source: str, target: str) -> bool:
        """Whether a link that was told EEXIST was made all the same: its reply was lost, and the call repeated."""
        try:
            if not (self.is_network and is_listed(self.system, target)):
                return False
            return self.system.lstat(source).st_ino == self.system.lstat(target).st_ino
        except FileNotFoundError:
            return False

    def check_moves(self, target: str) -> None:
        """See Elements.check_moves."""
        probe = self._make_probe()
        try:
            if not self._is_renamed(probe, target):
                raise FileNotFoundError(errno.ENOENT, "was purged", probe)
        except OSError:
            forget(self.system, probe)
            raise
        remove(self.system, target)

    def tells_locks(self) -> bool:
        """See Elements.tells_locks: not where there are no hard links, or each name has an inode of its own (sshfs)."""
        probe = self._make_probe()
        lock = f"{probe[: -len(TEMPORARY_SUFFIX)]}{LOCKED_SUFFIX}"
        try:
            self.system.link(probe, lock)
            return self.system.lstat(probe).st_ino == self.system.lstat(lock).st_ino
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            return False
        finally:
            forget(self.system, lock)
            forget(self.system, probe)

    def _probe_ns(self) -> int:
        probe = self._make_probe()
        try:
            return self.system.lstat(probe).st_mtime_ns
        finally:
            forget(self.system, probe)

    def _make_probe(self) -> str:
        """Make a temporary file as add() does; its path."""
        for attempt in range(1, ATTEMPTS_MAX + 1):
            directory = self._insertion_directory()
            probe = f"{self.path}/{directory}/{self._fresh()}{TEMPORARY_SUFFIX}"
            try:
                self._make_file(probe, b"", durable=False)
            except FileNotFoundError:
                if attempt == ATTEMPTS_MAX:
                    raise
                self._mkdir(f"{self.path}/{directory}")
                continue
            except FileExistsError:
                continue
            return probe
        raise FileExistsError(errno.EEXIST, "holds every name that was tried", self.path)


def is_same(lock: Lock, found: os.stat_result, touched_ns: int = 0, within_ns: int = SECOND_NS) -> bool:
    """Whether *found*, the stat of a lock, is still that of *lock*. See Elements.is_held."""
    # Earlier than it was taken it may be: touched after the clock was set back. Another's is not, for he has found ours
    # older than his limit. See test_a_lock_stays_its_holders_though_the_clock_is_set.
    return found.st_ino == lock.inode and found.st_mtime_ns <= max(lock.at_ns, touched_ns) + within_ns
