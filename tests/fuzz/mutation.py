"""
mutation - inputs made of those that are kept: cut, doubled, spliced, changed by a bit or a number

Of one corpus and one seed always the same. No coverage guides it; atheris has that, see __main__.
See also: targets.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
SIZE_MAX = 4096
# What parsers stumble over: ends of numbers, of text, of lines; what a terminal, a path or a shell would take for more.
TOKENS = (
    b"\0", b"\n", b"\r\n", b"\t", b" ", b".", b"..", b"/", b"../", b"~", b"-", b"\\", b"'", b'"', b":", b",", b"%",
    b"{}",     b"\x1b[31m", b"\x7f", b"\xff", b"\xc3",
    b"\xed\xa0\x80", "\u2028".encode(), "\u0661".encode(), "\u202e".encode(),
    b"0", b"-1", b"1e999", b"NaN", b"Infinity", b"9" * 20, b"9" * 5000, b"null", b"true", b"[" * 60, b"{\"a\":" * 60,
    b"\\ud800", b"\xef\xbb\xbf",
)  # fmt: skip


def kept(target: str) -> list[bytes]:
    """The corpus of *target*, by name; one empty input where there is none."""
    place = CORPUS / target
    return [path.read_bytes() for path in sorted(place.iterdir())] if place.is_dir() else [b""]


def mutated(data: bytes, others: Sequence[bytes], chosen: random.Random) -> bytes:
    """*data*, changed at a few places."""
    raw = bytearray(data)
    for _ in range(chosen.choice((1, 1, 2, 3, 6))):
        chosen.choice(_CHANGES)(raw, others, chosen)
    return bytes(raw[:SIZE_MAX])


def smaller(data: bytes, still_fails: Callable[[bytes], bool]) -> bytes:
    """As little of *data* as *still_fails*, by leaving out halves, quarters, ... and single bytes."""
    size = max(len(data) // 2, 1)
    while data:
        for start in range(0, len(data), size):
            shorter = data[:start] + data[start + size :]
            if still_fails(shorter):
                data = shorter
                break
        else:
            if size == 1:
                break
            size = max(size // 2, 1)
    return data


Change = Callable[[bytearray, Sequence[bytes], random.Random], None]


def _flip(raw: bytearray, others: Sequence[bytes], chosen: random.Random) -> None:
    if raw:
        raw[chosen.randrange(len(raw))] ^= 1 << chosen.randrange(8)


def _replace(raw: bytearray, others: Sequence[bytes], chosen: random.Random) -> None:
    if raw:
        raw[chosen.randrange(len(raw))] = chosen.randrange(256)


def _insert(raw: bytearray, others: Sequence[bytes], chosen: random.Random) -> None:
    at = chosen.randrange(len(raw) + 1)
    raw[at:at] = chosen.choice(TOKENS)


def _overwrite(raw: bytearray, others: Sequence[bytes], chosen: random.Random) -> None:
    at, token = chosen.randrange(len(raw) + 1), chosen.choice(TOKENS)
    raw[at : at + len(token)] = token


def _cut(raw: bytearray, others: Sequence[bytes], chosen: random.Random) -> None:
    at = chosen.randrange(len(raw) + 1)
    del raw[at : at + chosen.choice((1, 2, 4, 16, 256))]


def _double(raw: bytearray, others: Sequence[bytes], chosen: random.Random) -> None:
    at = chosen.randrange(len(raw) + 1)
    raw[at:at] = raw[at : at + chosen.choice((1, 4, 16, 64))]


def _splice(raw: bytearray, others: Sequence[bytes], chosen: random.Random) -> None:
    other = chosen.choice(others)
    raw[chosen.randrange(len(raw) + 1) :] = other[chosen.randrange(len(other) + 1) :]


_CHANGES: tuple[Change, ...] = (_flip, _replace, _insert, _overwrite, _cut, _double, _splice)
