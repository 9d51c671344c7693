"""
owners - what a keeper does about the workers of masters that are gone, whatever the protocol

A worker says by a name in a directory that it is there (OWNER, see names), and what is
there under that name is in its hand. The name outlives it: whoever finds it and knows
that its worker is dead gives back what it had. How that is done is the protocol's.

Keeper only. See also: spool_keep and dirq_keep, SPOOL.md "Who releases what".
"""

from __future__ import annotations

import contextlib
import logging
import os
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

from workers.board import Q, WorkerText
from workers.errors import QueueUnavailable
from workers.queues import names
from workers.queues.base import Cause, Consumer, Keeper, Kept
from workers.queues.directory import OnDisk
from workers.queues.failures import Failures
from workers.queues.reckoning import Reckoning
from workers.queues.spool_look import META
from workers.system import is_stuck

log = logging.getLogger(__name__)

NAMED_MAX = 1000


@dataclass(frozen=True, slots=True)
class Death:
    """A dead owner: its directory's name, why its claims go back, and a note for .meta."""

    owner: str
    cause: Cause
    note: str


class OwnersKeeper(Keeper):
    """A keeper that releases what dead owners held. *place* is the directory that holds their names."""

    def __init__(self, consumer: Consumer, queue: OnDisk, place: str) -> None:
        self._consumer = consumer
        self._owners_place = place
        self._kept_in = queue.kept_in
        self._system = system = queue.system
        self._slot = consumer.board.queues[consumer.queue_slot]
        self._kernel8 = system.kernel8(queue.host)
        self._url = queue.url
        self._reckoning = Reckoning(system, self._slot, queue.url)
        self._unlisted: set[str] = set()
        self._named: set[str] = set()  # what was spoken of
        self._probed_ns = 0

    def release_owner(self, owner: str, cause: Cause, note: str = "") -> list[str]:
        """See Keeper.release_owner."""
        kept, words = Kept(), self._slot.words
        try:
            released = self._release(Death(owner, cause, note), kept)
        except OSError as error:
            raise self._unavailable("release", owner, error) from error
        words[Q.REAPED_CRASH_LIMIT] += kept.crash_limit
        if released and cause != "stopped":
            words[Q.REAPED_OWNER_DEAD] += 1
        return released

    def _unavailable(self, doing: str, path: str, error: OSError) -> QueueUnavailable:
        """
        Word *error*, met while *doing* something at *path*, if it does not know better.

        In words that are the same as long as it is, for they are logged when they change.
        """
        return QueueUnavailable.at(doing, self._kept_in.steady(error.filename or path), error)

    @abstractmethod
    def _release(self, death: Death, kept: Kept) -> list[str]:
        """Give back what *death* held; the names. Raises OSError."""

    def _on_board(self) -> set[str] | None:
        """The owners that the board lists; None while one of them is being written."""
        board = self._consumer.board
        listed = set()
        # Of all queues: were one directory open under two names, neither may release the other's.
        for number in board.worker_numbers():
            text = board.worker(number).text(WorkerText.OWNER)
            if text is None:
                return None
            listed.add(text)
        return listed

    def _release_unlisted(self, owners: dict[str, names.Owner], kept: Kept) -> None:
        """Release what the board lists no more; then raises the first OSError that one of them met."""
        # ORDER: the owners were listed first, the board is read after. See test_H32_board_comes_before_mkdir.
        mine = {directory for directory, owner in owners.items() if owner.master == self._consumer.master}
        listed = self._on_board() if mine else set()
        if listed is None:
            return
        unlisted = mine - listed
        # Only in the second round: the master takes a dead owner off the board first and says why a moment later,
        # and the reason decides whether a crash is counted.
        failures = Failures()
        for directory in unlisted & self._unlisted:
            with failures:
                self._release(Death(directory, "unknown", "its worker is gone from the board"), kept)
                kept.owner_dead += 1
        self._unlisted = unlisted
        failures.raise_first()

    def _release_dead_neighbours(self, owners: dict[str, names.Owner], kept: Kept) -> None:
        """Release what masters and workers had that are gone; then raises the first OSError that one of them met."""
        failures = Failures()
        for directory, owner in owners.items():
            if owner.master == self._consumer.master or owner.kernel8 != self._kernel8:
                continue
            if self._system.is_alive(owner.master_pid, owner.master_start) is not False:
                continue
            if self._system.is_alive(owner.pid, owner.start) is not False:
                continue
            if not self._is_our_users(os.path.join(self._owners_place, directory)):
                continue  # a name that somebody else wrote: it ends no process; its claims go back by the lease
            if self._system.start_ticks(owner.pid) is None:
                # The session's number is not used again while a process is left in it, so these are the worker's own.
                self._system.kill_session(owner.pid)
            with failures:
                self._release(Death(directory, "unknown", "its master and its worker are gone"), kept)
                kept.owner_dead += 1
        failures.raise_first()

    def _is_our_users(self, path: str) -> bool:
        # RACE: another keeper of this machine released it since it was listed.
        # See test_a_neighbour_that_another_keeper_releases_first_fails_no_round.
        try:
            return self._system.lstat(path).st_uid == self._system.geteuid()
        except FileNotFoundError:
            return False

    # ---- what is old

    def _ask_for_ctimes(self) -> None:
        """Have nothing taken for old by a time that says something else. Raises OSError."""
        if not self._kept_in.keeps_ctime():
            self._reckoning.forget_ctimes()

    def _prune(self, place: str, keep_s: float | None, kept: Kept) -> None:
        """Remove the messages that have been in *place* for longer than that; None is for ever. Raises OSError."""
        if keep_s is None:
            return
        try:
            files = self._system.listdir(place)
        except FileNotFoundError:  # done/ may never have been made
            return
        known = set(files)
        for file in files:
            path = os.path.join(place, file)
            if file.endswith(META) and file.removesuffix(META) in known:
                continue  # goes with its message
            if not self._is_older(path, keep_s):
                continue
            try:
                if not self._remove_message(path):
                    continue
            except OSError as error:
                self._say_once(path, f"is to be pruned and stays: {error.strerror}")
                continue
            self._kept_in.forget(f"{path}{META}")
            kept.pruned += 1

    def _remove_message(self, path: str) -> bool:
        """Remove the message at *path*; False for what is none and stays. Raises OSError."""
        self._kept_in.remove(path)
        return True

    def _remove_older(self, path: str, age_s: float, kept: Kept) -> None:
        """Remove the file *path* if it is older than *age_s*. Raises OSError."""
        if self._is_older(path, age_s) and not self._system.is_directory(path):
            self._kept_in.remove(path)
            kept.temporary += 1

    def _are_probes_due(self, stale_s: float) -> bool:
        """Whether to look for probes, which lists all that is there: seldom."""
        now_ns = self._system.boottime_ns()
        if self._probed_ns and now_ns - self._probed_ns < stale_s * 1e9:
            return False
        self._probed_ns = now_ns
        return True

    def _sweep_probes(self, place: str, age_s: float, kept: Kept) -> None:
        """Remove what a keeper tried *place* with that was killed as it opened the queue. Raises OSError."""
        for path in self._probes(place):
            with self._unless_stuck(path):
                self._remove_probe(path, age_s, kept)

    def _probes(self, place: str) -> list[str]:
        try:
            with self._system.scandir(place) as entries:
                return [os.path.join(place, entry.name) for entry in entries if entry.name.startswith(names.PROBE)]
        except FileNotFoundError:  # done/ may never have been made
            return []

    def _remove_probe(self, path: str, age_s: float, kept: Kept) -> None:
        """Remove the probe *path*, a file, if it is older than *age_s*. Raises OSError."""
        self._remove_older(path, age_s, kept)

    @contextlib.contextmanager
    def _unless_stuck(self, path: str) -> Iterator[None]:
        """For what is done with *path*: that nobody but another user may move it keeps nothing else from being done."""
        try:
            yield
        except PermissionError as error:
            if not is_stuck(self._system, path, error):
                raise
            self._say_once(path, f"cannot be moved and stays: {error.strerror}")

    def _tell_end(self, name: str, reason: str) -> None:
        """Log that message *name* goes to errors/, which nobody else says: its worker is gone."""
        log.warning("%s: %s goes to errors/: %s", self._url, names.shown(name), reason)

    def _say_once(self, path: str, what: str) -> None:
        """Log *what* is with *path*, if it was not said before."""
        if path not in self._named and len(self._named) < NAMED_MAX:
            self._named.add(path)
            log.warning("%s: %s %s", self._url, names.shown(path), what)

    def _is_older(self, path: str, age_s: float) -> bool:
        """Whether nobody has changed or moved *path* for longer than *age_s*. Raises OSError."""
        try:
            return self._reckoning.is_older(path, self._system.lstat(path).st_ctime_ns, age_s)
        except FileNotFoundError:
            return False
