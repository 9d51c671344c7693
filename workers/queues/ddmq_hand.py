"""
ddmq_hand - what a worker of a ddmq queue has in hand, as held/OWNER says it

The first half of a record is the worker's, written before the claim is made: the waiting
name, the expiry that the claim is to have, for how many seconds it lasts, and on a network
filesystem the digits behind the expiry that no other claim has. The second
half is its keeper's, written before the claim is touched: the same name and expiry, then
the expiry that it has and the one that it is to have. So each has one writer, and what is
in work/ is always called as the record says, whoever was killed between two calls.

An expiry that a keeper has given has a 0 in front. To all who read it as a number that is
the same; but nobody who claims writes it so, and what a record says is to come, and never
came, is not taken for the claim that another made to the same second.

See also: ddmq (the worker), ddmq_keep (the keeper), beside.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from workers.ddmq.names import claim_name, parse_waiting

HALF = 256
HAND_SIZE = 2 * HALF
DIGITS_MAX = 12  # of any number in it


@dataclass(frozen=True, slots=True)
class Hand:
    """
    One claim: of message *waiting*, made to last *lasts_s* seconds, until *expiry*.

    *before* and *now* are the expiries of its last touch; the file is called by the second one unless that touch was
    cut short. *fraction*: see names.claim_name.
    """

    waiting: str
    expiry: int
    lasts_s: int
    before: int
    now: int
    fraction: int = 0

    def work_names(self) -> tuple[str, ...]:
        """What the file may be called in work/, in the order in which to try: it is renamed from first to last."""
        expiries = (self.now,) if self.before == self.now else (self.before, self.now)
        return tuple(
            f"{'0' * (expiry != self.expiry)}{claim_name(expiry, self.waiting, self.fraction)}" for expiry in expiries
        )

    def touched(self, later: int) -> Hand:
        """What is in hand when it is touched to last until *later*."""
        return replace(self, before=self.now, now=later)


def claim_line(waiting: str, expiry: int, lasts_s: int, fraction: int = 0) -> bytes:
    """The worker's half of a record."""
    numbers = f"{expiry} {lasts_s} {fraction}" if fraction else f"{expiry} {lasts_s}"
    return f"{waiting} {numbers}".ljust(HALF - 1).encode() + b"\n"


def touch_line(hand: Hand, later: int) -> bytes:
    """The keeper's half, for a touch of *hand* that is to last until *later*; where that is *hand.now*, for none."""
    return f"{hand.waiting} {hand.expiry} {hand.now} {later}".ljust(HALF - 1).encode() + b"\n"


def hand_in(record: str) -> Hand | None:
    """What the text of a record says; None for nothing, or for what is no such record."""
    claim = _line(record[:HALF], 2, 3)
    if claim is None:
        return None
    waiting, (expiry, lasts_s, *fraction) = claim
    if parse_waiting(waiting) is None:  # it becomes a path
        return None
    touch = _line(record[HALF:HAND_SIZE], 3)
    before = now = expiry
    if touch is not None and touch[0] == waiting and touch[1][0] == expiry:
        before, now = touch[1][1:]
    return Hand(waiting, expiry, lasts_s, before, now, *fraction)


def _line(text: str, *counts: int) -> tuple[str, list[int]] | None:
    """A name and so many numbers, or None."""
    name, *numbers = text.split() or [""]
    if len(numbers) not in counts or not all(number.isascii() and number.isdecimal() for number in numbers):
        return None
    return (name, [int(number) for number in numbers]) if max(map(len, numbers)) <= DIGITS_MAX else None
