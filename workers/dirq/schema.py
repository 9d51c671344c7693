"""
schema - what the elements of a Queue are made of: its check, and data to files and back

A schema gives each part of an element its type: ``binary`` bytes, ``string`` text,
``table`` text to text; ``?`` after it for a part that may be missing; ``*``, which means
something to other implementations, is allowed. A part is a file called by its key.

Raises: QueueError for a schema, or data, that cannot be.
Source: Directory::Queue, the schemas of its Normal kind.
See also: table (the codec), schema_elements (where the files go), queue.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from workers.dirq.elements import LOCKED_DIRECTORY
from workers.dirq.errors import QueueError
from workers.dirq.table import decode_table, encode_table

KEY = re.compile(r"\A[0-9a-zA-Z]+\Z")
TYPE = re.compile(r"\A(binary|string|table)([?*]{0,2})\Z")

Value = bytes | str | Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Part:
    """The type of one part: binary, string or table."""

    kind: str
    is_mandatory: bool


def check_schema(schema: Mapping[str, str]) -> dict[str, Part]:
    """The parts that *schema* names. Raises QueueError when it is none, or nothing in it is mandatory."""
    if not isinstance(schema, Mapping):
        raise QueueError(f"invalid schema: {schema!r}")
    parts = {}
    for key, type_ in schema.items():
        # A part of that name would be taken for the lock.
        if not isinstance(key, str) or not KEY.match(key) or key == LOCKED_DIRECTORY:
            raise QueueError(f"invalid schema name: {key!r}")
        match = TYPE.match(type_) if isinstance(type_, str) else None
        if match is None:
            raise QueueError(f"invalid schema data type of {key}: {type_!r}")
        parts[key] = Part(match[1], "?" not in match[2])
    if not any(part.is_mandatory for part in parts.values()):
        raise QueueError("invalid schema: no mandatory data")
    return parts


def parse_schema(text: str) -> dict[str, str]:
    """The schema that ``body:string,header:table?`` means, checked. Raises QueueError."""
    schema: dict[str, str] = {}
    for pair in text.split(","):
        key, colon, type_ = pair.partition(":")
        if not colon:
            raise QueueError(f"invalid schema: {pair!r} is not KEY:TYPE (body:string,header:table? is one)")
        if key in schema:
            raise QueueError(f"invalid schema: {key!r} is there twice")
        schema[key] = type_
    check_schema(schema)
    return schema


def body_key(schema: Mapping[str, str]) -> str:
    """The part that is the body of a message: "body", else the first mandatory one."""
    parts = check_schema(schema)
    return "body" if "body" in parts else next(key for key, part in parts.items() if part.is_mandatory)


def encoded(parts: Mapping[str, Part], data: Mapping[str, Value]) -> dict[str, bytes]:
    """The files of an element with *data*. Raises QueueError when it does not conform to the schema."""
    if not isinstance(data, Mapping):
        raise QueueError(f"unexpected data: {data!r}")
    files = {}
    for key, value in data.items():
        part = parts.get(key)
        if part is None:
            raise QueueError(f"unexpected data: {key}")
        files[key] = _bytes_of(key, part.kind, value)
    for key, part in parts.items():
        if part.is_mandatory and key not in data:
            raise QueueError(f"missing mandatory data: {key}")
    return files


def _bytes_of(key: str, kind: str, value: Value) -> bytes:
    if kind == "string" and isinstance(value, str):
        try:
            return value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise QueueError(f"string data in {key} cannot be written as UTF-8: {error}") from error
    if kind == "binary" and isinstance(value, bytes):
        return value
    if kind == "table" and isinstance(value, Mapping):
        return encode_table(value)
    raise QueueError(f"unexpected {kind} data in {key}: {value!r}")


def decoded(kind: str, raw: bytes) -> bytes | str | dict[str, str]:
    """What the file *raw* of a part of that *kind* says. Raises QueueError, UnicodeDecodeError."""
    if kind == "string":
        return raw.decode("utf-8")
    return decode_table(raw) if kind == "table" else raw
