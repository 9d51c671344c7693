"""
dirq_data - what the commands of dirq put into elements, and how they write it out again

A simple queue keeps bytes. A normal one keeps what its schema says: bytes, texts, and
tables of texts, which a shell gives and gets as JSON objects.

Raises: click.UsageError for options that do not fit the schema; Failed for data that does not.
See also: dirq (the commands), workers.dirq.schema.
"""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO

import click

from orchestrator.cli import Failed

Data = dict[str, bytes | str | dict[str, str]]  # what a normal queue keeps under one name

STDIN = Path("-")


def bodies(sources: Iterable[Path], *, is_lines: bool) -> Iterator[bytes]:
    """What each of *sources* holds, or its lines; one at a time, as they come."""
    for source in sources:
        if source == STDIN:
            yield from _bodies_of(sys.stdin.buffer, is_lines=is_lines)
        else:
            with source.open("rb") as file:
                yield from _bodies_of(file, is_lines=is_lines)


def _bodies_of(file: IO[bytes], *, is_lines: bool) -> Iterator[bytes]:
    if not is_lines:
        yield file.read()
        return
    for line in file:
        yield line.removesuffix(b"\n")


def parts(
    schema: dict[str, str],
    data: list[tuple[str, str]],
    read: list[tuple[str, str]],
    fields: list[tuple[str, str]],
) -> Data:
    """What the options give to every element. Raises click.UsageError, Failed."""
    found: Data = {}
    for key, text in data:
        found[key] = value(schema, key, os.fsencode(text))
    for key, file in read:
        found[key] = value(schema, key, Path(file).read_bytes())
    for words, text in fields:
        key, dot, field = words.partition(".")
        if not dot or not schema.get(key, "").startswith("table"):
            raise click.UsageError(f"-t {words!r}: KEY.FIELD=VALUE is wanted, and a table for KEY: {_told(schema)}")
        table = found.setdefault(key, {})
        assert isinstance(table, dict)  # noqa: S101 - the schema has a table there
        table[_text(key, os.fsencode(field))] = _text(key, os.fsencode(text))
    return found


def value(schema: dict[str, str], key: str, raw: bytes) -> bytes | str | dict[str, str]:
    """*raw* as the schema wants it under *key*. Raises click.UsageError, Failed."""
    kind = schema.get(key, "")
    if not kind:
        raise click.UsageError(f"there is no {key!r} in the schema: {_told(schema)}")
    if kind.startswith("binary"):
        return raw
    text = _text(key, raw)
    if kind.startswith("string"):
        return text
    table = None
    with suppress(ValueError, RecursionError):
        found = json.loads(text)
        json.dumps(found, ensure_ascii=False).encode()  # JSON can tell of characters that are none
        table = found
    if not isinstance(table, dict) or not all(isinstance(one, str) for one in table.values()):
        raise Failed(
            f"{key} is a table: give a JSON object whose values are texts, or its fields by -t {key}.FIELD=VALUE"
        )
    return table


def _text(key: str, raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise Failed(f"{key} must be UTF-8 text ({error}); bytes want a --schema with {key}:binary") from error


def _told(schema: dict[str, str]) -> str:
    return ",".join(f"{key}:{kind}" for key, kind in schema.items())


def bytes_of(found: bytes | Data, key: str | None) -> bytes:
    """The bytes of *key*, which was read as binary; or of an element that has no keys."""
    raw = found if key is None or isinstance(found, bytes) else found[key]
    assert isinstance(raw, bytes)  # noqa: S101 - the schema says so
    return raw


def as_json(found: bytes | str | Mapping[str, bytes | str | dict[str, str]]) -> object:
    """*found* with bytes as text, or as an object of their own where they are none."""
    if isinstance(found, Mapping):
        return {key: as_json(part) for key, part in found.items()}
    if isinstance(found, str):
        return found
    try:
        return found.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(found).decode("ascii")}
