"""
table - the codec of a table: text to text, a line for each pair

KEY TAB VALUE LF, sorted by key; a backslash, TAB or LF in a key or value is written as a
backslash and ``\\``, ``t`` or ``n``. UTF-8. No pair, no byte. Reading, any other backslash
stays as it is, and of two equal keys the last one counts.

Source: Directory::Queue, the format of its Normal kind.
See also: schema (who uses it).
"""

from __future__ import annotations

from collections.abc import Mapping

from workers.dirq.errors import QueueError


def encode_table(table: Mapping[str, str]) -> bytes:
    """The bytes of *table*. Raises QueueError when a key or a value is no text, or cannot be UTF-8."""
    for key, value in table.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise QueueError(f"a table has text keys and text values, not {key!r}: {value!r}")
    lines = [f"{_escaped(key)}\t{_escaped(table[key])}\n" for key in sorted(table)]
    try:
        return "".join(lines).encode("utf-8")
    except UnicodeEncodeError as error:
        raise QueueError(f"a table's text cannot be written as UTF-8: {error}") from error


def decode_table(raw: bytes) -> dict[str, str]:
    """The table that *raw* holds. Raises QueueError for a line that is no pair, UnicodeDecodeError."""
    text = raw.decode("utf-8")
    if not text:
        return {}
    table = {}
    for line in text.strip("\n").split("\n"):
        key, tab, value = line.partition("\t")
        if not tab or "\t" in value:
            raise QueueError(f"unexpected line in a table: {line!r}")
        table[_unescaped(key)] = _unescaped(value)
    return table


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n")


def _unescaped(text: str) -> str:
    if "\\" not in text:
        return text
    # Apart at the doubled ones first: the t after such a pair is a t.
    return "\\".join(part.replace("\\t", "\t").replace("\\n", "\n") for part in text.split("\\\\"))
