"""
taking - the next messages of a queue, claimed

A message is read, then claimed by one rename; who loses the race goes on to the next one. A file
that is no message does not stop the queue: one that an original may still be writing is left
for the next time, any other is set aside; one that may not be read, or whose name leaves no
room for an expiry, is left, and logged once.

See also: listing (which is next), files (the claim), aside, broker.consume.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Mapping

from workers.ddmq.aside import set_aside
from workers.ddmq.claims import is_young, lasts_s, load, parse, reason_of
from workers.ddmq.errors import CorruptError
from workers.ddmq.files import QueueFiles
from workers.ddmq.flat_yaml import Value
from workers.ddmq.listing import Listing
from workers.ddmq.message import Message
from workers.ddmq.settings import whole

log = logging.getLogger(__name__)

FORBIDDEN = frozenset({errno.EACCES, errno.EPERM})


def expiry_of(files: QueueFiles, timeout: object, settings: Mapping[str, Value]) -> int:
    """When a claim of now ends, by the filesystem's clock; *timeout* in seconds, else the setting's."""
    return int(files.now_s()) + lasts_s(timeout, whole(settings, "message_timeout"))


class Taking:
    """Takes from one queue, and remembers what waits there (see listing)."""

    def __init__(self, files: QueueFiles) -> None:
        self.files = files
        self.listing = Listing(files)
        self._spoken_of: set[str] = set()
        self._young: list[str] = []  # left waiting for the next time
        self._is_alone = True

    def take(self, count: int, settings: Mapping[str, Value]) -> list[Message]:
        """Claim the next *count* messages, as far as there are so many. Raises OSError, nothing being claimed."""
        listing = self.listing
        # Who has lost a race is one of several: each changes the directory all the time, and in which order they are
        # served is anybody's guess.
        is_true = listing.refresh(may_be_old=not self._is_alone)
        self._is_alone = True
        taken: list[Message] = []
        try:
            while len(taken) < count:
                name = listing.next()
                if name is not None:
                    found = self._take(name, settings)
                    if found is not None:
                        taken.append(found)
                elif is_true:
                    break
                else:
                    is_true = listing.refresh()
        except OSError as error:
            listing.drop()
            if not taken:
                raise
            # What was claimed already would be hidden until it expires; the next call meets the error again.
            log.warning("%s: only %d of %d messages were claimed: %s", self.files.path, len(taken), count, error)
            return taken
        finally:
            young, self._young = self._young, []
        for name in young:
            listing.add(name)
        if self._is_alone and is_true:
            if taken:
                listing.note()
        elif self._is_alone:
            listing.drop()
        return taken

    def _take(self, name: str, settings: Mapping[str, Value]) -> Message | None:
        """Claim the waiting message *name*; None when another was first, or when it is none."""
        files = self.files
        try:
            found, inode = self._read(name)
        except CorruptError as error:
            self._set_aside(name, error.message)
            return None
        if found is None:
            return None
        try:
            work_name = files.take(name, expiry_of(files, found.timeout, settings))
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            self._leave(f"{files.path}/{name}", error)  # there is no room for an expiry in front
            return None
        if work_name is None:
            self._is_alone = False
            return None
        # RACE: between reading and claiming it was consumed, and requeued under the same name with other content, and
        # that is what we have claimed. See test_Q12_what_was_requeued_between_reading_and_claiming_is_read_again.
        try:
            if files.system.lstat(f"{files.work}/{work_name}").st_ino != inode:
                found = load(files, f"{files.work}/{work_name}")
        except (FileNotFoundError, CorruptError):  # what is no message is set aside by the next cleaning
            self._is_alone = False
            return None
        found.queue, found.filename = files.queue, work_name
        return found

    def _read(self, name: str) -> tuple[Message | None, int]:
        """The waiting message and its inode; no message when it is to be left. Raises CorruptError, OSError."""
        files, path = self.files, f"{self.files.path}/{name}"
        if name in self.listing.odd:
            raise CorruptError("is no regular file")
        try:
            data, stat = files.read(path)
        except FileNotFoundError:
            self._is_alone = False
            return None, 0
        except OSError as error:
            if reason := reason_of(error):
                raise CorruptError(reason) from None
            if error.errno not in FORBIDDEN:
                raise
            self._leave(path, error)
            return None, 0
        try:
            return parse(data), stat.st_ino
        except CorruptError:
            if not is_young(files, stat):
                raise
            self._young.append(name)
            return None, 0

    def _set_aside(self, name: str, reason: str) -> None:
        """Move what is no message out of the way; when that fails it is not served, and nothing else."""
        path = f"{self.files.path}/{name}"
        try:
            set_aside(self.files, path, reason)
        except OSError as error:
            self._leave(path, error)

    def _leave(self, path: str, error: OSError) -> None:
        if path not in self._spoken_of:
            self._spoken_of.add(path)
            log.warning("%s is not served: %s", path, error)
