"""
ddmq_hand - what a worker of a ddmq queue has in hand, as held/OWNER says it

The first half of a record is the worker's, written before the claim is made: the waiting
name, the expiry that the claim is to have, and for how many seconds it lasts. The second
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

HALF = 256
HAND_SIZE = 2 * HALF
DIGITS_MAX = 12  # of any number in it


@dataclass(frozen=True, slots=True)
class Hand:
    """
    One claim: of message *waiting*, made to last *lasts_s* seconds, until *expiry*.

    *before* and *now* are the expiries of its last touch; the file is called by the second one unless that touch was
    cut short.
    """

    waiting: str
    expiry: int
    lasts_s: int
    before: int
    now: int

    def work_names(self) -> tuple[str, ...]:
        """What the file may be called in work/, in the order in which to try: it is renamed from first to last."""
        expiries = (self.now,) if self.before == self.now else (self.before, self.now)
        return tuple(f"{'0' * (expiry != self.expiry)}{expiry}.{self.waiting}" for expiry in expiries)

    def touched(self, later: int) -> Hand:
        """What is in hand when it is touched to last until *later*."""
        return replace(self, before=self.now, now=later)


def claim_line(waiting: str, expiry: int, lasts_s: int) -> bytes:
    """The worker's half of a record."""
    return f"{waiting} {expiry} {lasts_s}".ljust(HALF - 1).encode() + b"\n"


def touch_line(hand: Hand, later: int) -> bytes:
    """The keeper's half, for a touch of *hand* that is to last until *later*; where that is *hand.now*, for none."""
    return f"{hand.waiting} {hand.expiry} {hand.now} {later}".ljust(HALF - 1).encode() + b"\n"


def hand_in(record: str) -> Hand | None:
    """What the text of a record says; None for nothing, or for what is no such record."""
    claim = _line(record[:HALF], 2)
    if claim is None:
        return None
    waiting, (expiry, lasts_s) = claim
    touch = _line(record[HALF:HAND_SIZE], 3)
    if touch is not None and touch[0] == waiting and touch[1][0] == expiry:
        return Hand(waiting, expiry, lasts_s, touch[1][1], touch[1][2])
    return Hand(waiting, expiry, lasts_s, expiry, expiry)


def _line(text: str, count: int) -> tuple[str, list[int]] | None:
    """A name and *count* numbers, or None."""
    name, *numbers = text.split() or [""]
    if len(numbers) != count or not all(number.isascii() and number.isdecimal() for number in numbers):
        return None
    return (name, [int(number) for number in numbers]) if max(map(len, numbers)) <= DIGITS_MAX else None
