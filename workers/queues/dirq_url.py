"""
dirq_url - from a URL to a directory queue

    dirq-simple:PATH?umask=OCTAL&rndhex=HEX&granularity=SECONDS
    dirq:PATH?schema=KEY:TYPE,KEY:TYPE?&umask=OCTAL&rndhex=HEX&maxelts=COUNT

The options are the arguments of the published classes. A message's body is the part called
"body", or the first mandatory one; without a schema that is the only part, binary.

Raises: QueueRefused, QueueMissing, QueueUnavailable.
See also: open (the other protocols), dirq, workers.dirq.schema.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from typing import Any

from workers.dirq.elements import Elements
from workers.dirq.errors import QueueError
from workers.dirq.schema import Part, body_key, check_schema, decoded, parse_schema
from workers.dirq.schema_elements import SchemaElements
from workers.dirq.simple_elements import SimpleElements
from workers.errors import NotSupported, QueueRefused
from workers.queues.base import Settings
from workers.queues.dirq import Dirq
from workers.system import System

DEFAULT_SCHEMA = "body:binary"
OPTIONS = {
    "dirq-simple": ("granularity", "rndhex", "umask"),
    "dirq": ("maxelts", "rndhex", "schema", "umask"),
}


def open_dirq(protocol: str, rest: str, settings: Settings, *, system: System, host: str) -> Dirq:
    """The queue that PROTOCOL:REST names: PATH, or PATH?KEY=VALUE&KEY=VALUE. Raises QueueRefused, QueueMissing."""
    path, _, query = rest.partition("?")
    path = os.path.abspath(path)
    url = f"{protocol}:{path}{'?' + query if query else ''}"
    options = {}
    for pair in filter(None, query.split("&")):
        key, _, value = pair.partition("=")
        options[key] = value
    if unknown := sorted(options.keys() - set(OPTIONS[protocol])):
        known = ", ".join(OPTIONS[protocol])
        raise QueueRefused(f"{protocol}:{rest}: there is no option {unknown[0]!r}; there is {known}")
    try:
        umask = _number(options, "umask", 8, 0o777)
        rndhex = _number(options, "rndhex", 16, 0xF)
        if protocol == "dirq-simple":
            granularity = _number(options, "granularity", 10)
            elements: Elements[Any] = SimpleElements(
                path, umask, rndhex, 60 if granularity is None else granularity, system=system
            )
            encode: Callable[[bytes], object] = bytes
        else:
            schema = parse_schema(options.get("schema") or DEFAULT_SCHEMA)
            key = body_key(schema)
            maxelts = _number(options, "maxelts", 10)
            elements = SchemaElements(path, umask, rndhex, 16000 if maxelts is None else maxelts, key, system=system)
            encode = functools.partial(_as_parts, check_schema(schema), key)
    except (ValueError, QueueError) as error:
        raise QueueRefused(f"{protocol}:{rest}: {error}") from error
    return Dirq(url, elements, encode, settings, system=system, host=host)


def _number(options: Mapping[str, str], key: str, base: int, most: int | None = None) -> int | None:
    """The option *key*, digits of that *base*, or None where it is not there. Raises ValueError."""
    text = options.get(key)
    if text is None:
        return None
    if not text.isalnum() or (most is not None and int(text, base) > most):
        raise ValueError(f"{key} = {text!r} is no such number")
    return int(text, base)


def _as_parts(parts: Mapping[str, Part], key: str, body: bytes) -> dict[str, bytes]:
    """The element whose body is *body*. Raises NotSupported where that alone is none."""
    if others := [name for name, part in parts.items() if part.is_mandatory and name != key]:
        raise NotSupported(
            f"a body alone is no element of this queue, {', '.join(others)} must be there too: use workers.dirq.Queue"
        )
    try:
        decoded(parts[key].kind, body)
    except (QueueError, ValueError) as error:
        raise NotSupported(f"this body is no {parts[key].kind}, which the schema wants: {error}") from error
    return {key: body}
