"""
owners - what a keeper does about the workers of masters that are gone, whatever the protocol

A worker says by a name in a directory that it is there (OWNER, see names), and what is
there under that name is in its hand. The name outlives it: whoever finds it and knows
that its worker is dead gives back what it had. How that is done is the protocol's.

Keeper only. See also: spool_keep and dirq_keep, SPOOL.md "Who releases what".
"""

from __future__ import annotations

import os
from abc import abstractmethod
from dataclasses import dataclass

from workers.board import WorkerText
from workers.queues import names
from workers.queues.base import Cause, Consumer, Keeper, Kept
from workers.system import System


@dataclass(frozen=True, slots=True)
class Death:
    """A dead owner: its directory's name, why its claims go back, and a note for .meta."""

    owner: str
    cause: Cause
    note: str


class OwnersKeeper(Keeper):
    """A keeper that releases what dead owners held. *place* is the directory that holds their names."""

    def __init__(self, consumer: Consumer, place: str, host: str, system: System) -> None:
        self._consumer = consumer
        self._owners_place = place
        self._system = system
        self._slot = consumer.board.queues[consumer.queue_slot]
        self._kernel8 = system.kernel8(host)
        self._unlisted: set[str] = set()

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
        failed: OSError | None = None
        for directory in unlisted & self._unlisted:
            failed = self._try_release(Death(directory, "unknown", "its worker is gone from the board"), kept) or failed
        self._unlisted = unlisted
        if failed is not None:
            raise failed

    def _release_dead_neighbours(self, owners: dict[str, names.Owner], kept: Kept) -> None:
        """Release what masters and workers had that are gone; then raises the first OSError that one of them met."""
        failed: OSError | None = None
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
            failed = (
                self._try_release(Death(directory, "unknown", "its master and its worker are gone"), kept) or failed
            )
        if failed is not None:
            raise failed

    def _try_release(self, death: Death, kept: Kept) -> OSError | None:
        """Release one of several; the error that it met, for the others are released all the same."""
        try:
            self._release(death, kept)
        except OSError as error:
            return error
        kept.owner_dead += 1
        return None

    def _is_our_users(self, path: str) -> bool:
        # RACE: another keeper of this machine released it since it was listed.
        # See test_a_neighbour_that_another_keeper_releases_first_fails_no_round.
        try:
            return self._system.lstat(path).st_uid == self._system.geteuid()
        except FileNotFoundError:
            return False

    def _is_older(self, path: str, limit_ns: int) -> bool:
        try:
            return self._system.lstat(path).st_ctime_ns < limit_ns
        except FileNotFoundError:
            return False
