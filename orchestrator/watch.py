"""
watch - see arrivals in a directory by inotify, and decide whether that is the way

A feeder, or a worker without one, waits here for the next message. An event is a hint that there
may be one, and nothing more: the watch is set before the directory is scanned, so an
arrival between the scan and the wait is still in the kernel's queue.

Not on a network filesystem, where arrivals from other hosts make no event, nor where
the user's inotify limits are reached: there is no Watcher then and the caller polls; nor
where the queue's settings say so. When the directory goes away the Watcher polls from
then on, by itself. A mount that covers it makes no event: who lists asks is_covered().

Source: inotify(7); IN_MOVED_TO for a rename into the directory, IN_CREATE for a link.
Files that are written in place are no arrivals: in incoming/ a message is complete.
See also: workers.queues.feeder, workers.worker.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import select

try:
    import inotify_simple
except ImportError:  # not on Linux
    inotify_simple = None

from workers.board import Q, QueueText, Slot
from workers.queues.base import Claimable
from workers.queues.names import shown

log = logging.getLogger(__name__)

EVENTS_SIZE = 65536  # read at once: a thousand names and more
NEWEST = 8  # directories of a tree that are watched


class Watcher:
    """One watched directory. Made by on(); used by one process."""

    def __init__(self, directory: str, inotify: inotify_simple.INotify) -> None:
        flags = inotify_simple.flags
        self.directory = directory
        self._place = _place(directory)
        inotify.add_watch(directory, _mask())
        self._inotify = inotify
        self._poller = select.poll()
        self._poller.register(inotify.fd, select.POLLIN)
        self._is_polling = False
        self._gone = flags.IGNORED | flags.DELETE_SELF | flags.MOVE_SELF | flags.UNMOUNT

    @classmethod
    def on(cls, directory: str, tree: re.Pattern[str] | None = None) -> Watcher | None:
        """Watch *directory*, of a *tree* those in it that match; None where that cannot be, the log says why."""
        where = shown(directory)
        if inotify_simple is None:
            log.info("inotify is not available: polling %s", where)
            return None
        inotify = None
        try:
            inotify = inotify_simple.INotify(nonblocking=True)
            return Watcher(directory, inotify) if tree is None else TreeWatcher(directory, inotify, tree)
        except OSError as error:
            if inotify is not None:
                inotify.close()
            advice = _ADVICE.get(error.errno or 0, "")
            log.warning("cannot watch %s by inotify: %s%s; polling", where, error.strerror or error, advice)
            return None

    @property
    def is_polling(self) -> bool:
        """Whether the directory went away, so that waiting is only a pause."""
        return self._is_polling

    def wait(self, timeout_s: float, also: int | None = None) -> bool:
        """
        Block until there may be a message, at most *timeout_s*.

        False when the time is over or when only the descriptor *also* can be read (it is
        not read here). A signal handler that returns does not end the wait: have its
        wake-up descriptor in *also*. Polling: True, always.
        """
        poller = select.poll()
        if also is not None:
            poller.register(also, select.POLLIN)
        if not self._is_polling:
            poller.register(self._inotify.fd, select.POLLIN)
        # Rounded up: a pause of less than a millisecond must not become a busy loop.
        ready = poller.poll(max(0, -int(-timeout_s * 1000 // 1)))
        if self._is_polling:
            return True
        return any(fd == self._inotify.fd for fd, _ in ready) and self._drain()

    def arrivals(self, timeout_s: float) -> list[str] | None:
        """
        The names that have come since the last look, waited for at most *timeout_s*.

        None when some were not seen (an overflow), or never will be (is_polling): look at the directory.
        """
        if self._is_polling:
            return None
        self._poller.poll(max(0, -int(-timeout_s * 1000 // 1)))
        try:
            events = inotify_simple.parse_events(os.read(self._inotify.fd, EVENTS_SIZE))
        except BlockingIOError:
            return []
        return self._names(events) if self._is_whole(events) else None

    def is_covered(self) -> bool:
        """Whether another directory is at that path now, by a mount that came since; ends the watch. Raises OSError."""
        if self._is_polling or _place(self.directory) == self._place:
            return False
        log.warning("something was mounted over %s: looking again how to see arrivals there", shown(self.directory))
        self.close()
        return True

    def _names(self, events: list[inotify_simple.Event]) -> list[str] | None:
        """The names that came; None when some may have come that no event tells of."""
        return [event.name for event in events if event.name]

    def close(self) -> None:
        """End the watch. Again does nothing."""
        self._inotify.close()
        self._is_polling = True

    def _drain(self) -> bool:
        """Read what has happened. Everything counts, an overflow too: then events were lost, and there may be many."""
        events = self._inotify.read(timeout=0)
        self._is_whole(events)
        return bool(events)

    def _is_whole(self, events: list[inotify_simple.Event]) -> bool:
        """Whether these are all events that there were; ends the watch when its directory went away."""
        happened = 0
        for event in events:
            happened |= event.mask
        if happened & self._gone:
            log.warning("%s was moved or removed: polling", shown(self.directory))
            self.close()
        return not happened & (self._gone | inotify_simple.flags.Q_OVERFLOW)


class TreeWatcher(Watcher):
    """
    The watch of a directory whose messages lie one level deeper: those in the newest of its directories are seen.

    An arrival is DIRECTORY/NAME. What comes into an older directory is seen by whoever looks from time to time.
    """

    def __init__(self, directory: str, inotify: inotify_simple.INotify, tree: re.Pattern[str]) -> None:
        super().__init__(directory, inotify)
        self._tree = tree
        self._top = inotify.add_watch(directory, _mask())  # again: the number that it has already
        self._below: dict[int, str] = {}  # directories by their watches, the newest last
        for name in sorted(filter(tree.match, os.listdir(directory)))[-NEWEST:]:
            self._watch(name)

    def _watch(self, name: str) -> None:
        try:
            number = self._inotify.add_watch(os.path.join(self.directory, name), _mask())
        except (FileNotFoundError, NotADirectoryError):  # it is gone again, or is none
            return
        self._below[number] = name
        while len(self._below) > NEWEST:
            oldest = next(iter(self._below))
            self._inotify.rm_watch(oldest)
            del self._below[oldest]

    def _is_whole(self, events: list[inotify_simple.Event]) -> bool:
        # That a directory below has gone is what directories there do.
        return super()._is_whole([event for event in events if not self._is_of_gone(event)])

    def _is_of_gone(self, event: inotify_simple.Event) -> bool:
        if event.wd == self._top or not event.mask & self._gone:
            return False
        if event.mask & inotify_simple.flags.IGNORED:
            self._below.pop(event.wd, None)
        return True

    def _names(self, events: list[inotify_simple.Event]) -> list[str] | None:
        fresh = {event.name for event in events if event.wd == self._top and self._tree.match(event.name)}
        for name in fresh:
            self._watch(name)
        if not fresh.isdisjoint(self._below.values()):
            return None  # a message may have come there before it was watched
        return [f"{self._below[event.wd]}/{event.name}" for event in events if event.name and event.wd in self._below]


def watching(queue: Claimable, slot: Slot) -> Watcher | None:
    """
    Watch what arrives in *queue* as its settings say; None where it is polled. The log and *slot* of the board say how.

    Raises OSError when it cannot be told what filesystem that is.
    """
    directory, way = queue.watch_directory(), queue.settings.watch
    kind = None if directory is None else queue.system.network_filesystem(directory)
    at_most = f"every {queue.poll_interval_s:g} s at most"
    watcher = None
    if directory is None:
        log.info("arrivals in %s make no event: polling %s", shown(queue.url), at_most)
    elif way == "poll":
        log.info("%s: polling %s, as its watch says", shown(queue.url), at_most)
    elif way == "auto" and kind is not None:
        text = "%s is on %s, where arrivals from other hosts make no event: polling %s"
        log.info(text, shown(queue.url), kind, at_most)
    else:
        watcher = Watcher.on(directory, queue.source().tree)
        if watcher is not None and kind is not None:
            text = "%s is on %s and watched by inotify, as its watch says: what other hosts put is found %s"
            log.info(text, shown(queue.url), kind, at_most)
    slot.set_text(QueueText.FILESYSTEM, kind or "")
    slot.words[Q.POLL_MS] = int(queue.poll_interval_s * 1e3)
    slot.words[Q.WATCH] = 2 if watcher is None else 1
    return watcher


def _place(directory: str) -> tuple[int, int]:
    found = os.stat(directory)
    return found.st_dev, found.st_ino


def _mask() -> int:
    flags = inotify_simple.flags
    return int(flags.MOVED_TO | flags.CREATE | flags.DELETE_SELF | flags.MOVE_SELF | flags.ONLYDIR)


_ADVICE = {
    errno.EMFILE: " (the limit of instances: raise the sysctl fs.inotify.max_user_instances)",
    errno.ENOSPC: " (the limit of watches: raise the sysctl fs.inotify.max_user_watches)",
}
