"""
Every schedule of the short scenarios; and that the explorer finds what is known to be wrong.

A control breaks one rule of the protocol in the real code; each must be found, by a trail
that leads there again.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from greenlet import getcurrent, greenlet

from tests.sim.explore import Violation, explore, replay
from tests.sim.scenarios import LONG, SHORT, load
from workers.board import Q, WorkerText
from workers.queues import lease, names, spool
from workers.queues.spool import Spool
from workers.queues.spool_keep import SpoolKeeper
from workers.queues.spool_put import Producer

load()
Patch = pytest.MonkeyPatch


@pytest.fixture(autouse=True)
def _nothing_is_logged() -> Iterator[None]:
    """What the keepers of some thousand worlds say is half the time."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("name", list(SHORT))
def test_no_schedule_loses_repeats_or_strands_a_message(name: str) -> None:
    """Prints how many there are (pytest -s); a Violation tells its steps and how to walk them again."""
    print(explore(SHORT[name], 20_000))  # noqa: T201 - for who asks


def keeps_the_token(patch: Patch, owner: Any, verb: str) -> None:
    """*verb* of *owner* gives a message the token that it has already."""
    real, parse, token = getattr(owner, verb), names.parse, names.Tokens.token
    seen: dict[greenlet, list[str]] = {}  # the tokens that a caller has read since it began: others run meanwhile

    def parsing(file: str) -> names.Marked:
        found = parse(file)
        seen.get(getcurrent(), []).append(found.token)
        return found

    def keeping(self: names.Tokens, name: str) -> str:
        return (seen.get(getcurrent()) or [""])[-1] or token(self, name)

    def calling(self: Any, *arguments: Any) -> Any:
        seen[getcurrent()] = []
        try:
            return real(self, *arguments)
        finally:
            del seen[getcurrent()]

    patch.setattr(names, "parse", parsing)
    patch.setattr(names.Tokens, "token", keeping)
    patch.setattr(owner, verb, calling)


def one_token_for_all(patch: Patch) -> None:
    patch.setattr(names.Tokens, "token", lambda self, name: "0" * 18 + names.check(name))


def release_keeps_the_token(patch: Patch) -> None:
    keeps_the_token(patch, SpoolKeeper, "_release")


def due_keeps_the_token(patch: Patch) -> None:
    keeps_the_token(patch, SpoolKeeper, "_move_due")


def requeue_keeps_the_token(patch: Patch) -> None:
    keeps_the_token(patch, Spool, "requeue")


def a_given_name_is_put_by_rename(patch: Patch) -> None:
    def linking(self: Producer, source: str, target: str, name: str) -> bool:
        self._system.rename(source, target)
        return True

    patch.setattr(Producer, "_link", linking)


def a_file_is_moved_in_through_tmp(patch: Patch) -> None:
    def moving(self: Producer, source: str, target: str, final: str) -> None:
        between = f"{self._directory.tmp}/{final}"
        self._system.rename(source, between)
        self._system.rename(between, f"{target}/{final}")

    patch.setattr(Producer, "_rename", moving)


def done_never_asks_whether_the_lease_was_good(patch: Patch) -> None:
    patch.setattr(Spool, "_was_ours", lambda self, claim: True)


def the_open_gap_does_not_count(patch: Patch) -> None:
    patch.setattr(Spool, "_was_ours", lambda self, claim: self._words[Q.LAPSES] == claim.lapses)


def the_time_comes_before_the_lapse(patch: Patch) -> None:
    def noting(words: memoryview[int], before_ns: int, now_ns: int, half_ns: int) -> None:
        last_ns = words[Q.BEAT_NS]
        words[Q.HALF_TIMEOUT_NS], words[Q.BEAT_NS] = half_ns, before_ns
        if last_ns and now_ns - last_ns >= half_ns:
            words[Q.LAPSES] += 1

    patch.setattr(lease, "note_beat", noting)


def the_lapses_are_read_before_the_time(patch: Patch) -> None:
    def was_ours(self: Spool, claim: Any) -> bool:
        lapses, beat_ns = self._words[Q.LAPSES], self._words[Q.BEAT_NS]
        return lapses == claim.lapses and self.system.boottime_ns() - beat_ns < self._words[Q.HALF_TIMEOUT_NS]

    patch.setattr(Spool, "_was_ours", was_ours)


def a_keeper_does_not_look_again(patch: Patch) -> None:
    patch.setattr(lease.Looks, "is_still_lost", lambda self, master: True)


def in_the_first_round(patch: Patch) -> None:
    """Without the second round, which on its own hides the two orders below."""
    release = SpoolKeeper._release_unlisted

    def releasing(self: SpoolKeeper, owners: dict[str, names.Owner], kept: Any) -> None:
        self._unlisted = set(owners)
        release(self, owners, kept)

    patch.setattr(SpoolKeeper, "_release_unlisted", releasing)


def the_board_is_read_before_pending_is_listed(patch: Patch) -> None:
    in_the_first_round(patch)
    on_board, owners = SpoolKeeper._on_board, SpoolKeeper._owners
    read: list[set[str] | None] = []

    def listing(self: SpoolKeeper) -> dict[str, names.Owner]:
        read.append(on_board(self))
        return owners(self)

    patch.setattr(SpoolKeeper, "_owners", listing)
    patch.setattr(SpoolKeeper, "_on_board", lambda self: read[-1])


def mkdir_comes_before_the_board(patch: Patch) -> None:
    in_the_first_round(patch)

    def taking(self: Spool, lapses: int) -> None:
        assert self._consumer is not None
        self._leave_owner()
        owner = names.owner_name(self._consumer.master, self._consumer.index, self.system)
        self.system.mkdir(os.path.join(self.directory.pending, owner))
        self._slot.set_text(WorkerText.OWNER, owner)
        self._owner, self._owner_path, self._lapses = owner, os.path.join(self.directory.pending, owner), lapses

    patch.setattr(Spool, "_take_owner", taking)


def what_a_handler_left_keeps_its_name(patch: Patch) -> None:
    def moving(self: Spool, path: str, reason: str) -> None:
        self.directory.move(path, self.directory.errors, os.path.basename(path))

    patch.setattr(Spool, "to_errors_as_left", moving)


def a_pause_is_not_read(patch: Patch) -> None:
    patch.setattr(spool, "PAUSED", int(Q.IGNORED))


def all_of_our_shape_in_tmp_is_removed(patch: Patch) -> None:
    """As it was until the commit of a filer, killed between its two renames, was walked here."""
    patch.setattr(names, "is_unpublished", names.is_ours)


CONTROLS: list[tuple[Callable[[Patch], None], str]] = [
    (one_token_for_all, "name_twice, reject"),
    (release_keeps_the_token, "copied_from_the_dead, copy, reject"),
    (due_keeps_the_token, "copied_from_deferred, copy"),
    (requeue_keeps_the_token, "brought_back, copy, reject"),
    (a_given_name_is_put_by_rename, "name_from_two_hosts, link, times=2, 1 of P killed"),
    (a_file_is_moved_in_through_tmp, "moved_in, None, 1 of P killed"),
    (done_never_asks_whether_the_lease_was_good, "lease_lost, done"),
    (the_open_gap_does_not_count, "lease_lost, done"),
    (the_time_comes_before_the_lapse, "lease_lost, done, others=T"),
    (the_lapses_are_read_before_the_time, "lease_lost, done, others=T"),
    (a_keeper_does_not_look_again, "looked_again"),
    (the_board_is_read_before_pending_is_listed, "starting_keeper, done, rounds=1"),
    (mkdir_comes_before_the_board, "starting_keeper, done, rounds=1"),
    (what_a_handler_left_keeps_its_name, "left_by_handlers"),
    (all_of_our_shape_in_tmp_is_removed, "foreign, commit, keepers=1, 1 of F killed"),
    (a_pause_is_not_read, "paused, workers=1"),
]


@pytest.mark.parametrize(("control", "name"), CONTROLS, ids=[control.__name__ for control, _ in CONTROLS])
def test_what_is_known_to_be_wrong_is_found_and_its_trail_leads_there_again(
    control: Callable[[Patch], None], name: str, monkeypatch: Patch
) -> None:
    """The trail alone, every call a step, raises the same."""
    scenario = (SHORT | LONG)[name]
    control(monkeypatch)
    with pytest.raises(Violation) as found:
        explore(scenario, 60_000)
    with pytest.raises(Violation) as again:
        replay(scenario, found.value.trail)
    assert again.value.why == found.value.why


def test_the_second_round_alone_hides_no_order_that_is_right(monkeypatch: Patch) -> None:
    """Either of two nets holds alone: the orders of board and directory, and the second round."""
    in_the_first_round(monkeypatch)
    explore(SHORT["starting_keeper, done, rounds=1"])
