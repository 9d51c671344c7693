"""
dirq_url - from a URL to a directory queue

    dirq-simple:PATH?umask=OCTAL&rndhex=HEX&granularity=SECONDS
    dirq:PATH?schema=KEY:TYPE,KEY:TYPE?&umask=OCTAL&rndhex=HEX&maxelts=COUNT

The options are the arguments of the published classes, and state_dir=DIRECTORY. A message's body is the part called
"body", or the first mandatory one. Without a schema it is body:binary,header:table?.

Raises: QueueRefused, QueueMissing, QueueUnavailable.
See also: open (the other protocols), dirq, workers.dirq.schema.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import overload

from workers.dirq.errors import QueueError
from workers.dirq.schema import Part, body_key, check_schema, decoded, parse_schema
from workers.dirq.schema_elements import SchemaElements
from workers.dirq.simple_elements import SimpleElements
from workers.errors import NotSupported, QueueRefused
from workers.queues.base import Settings
from workers.queues.beside import Beside
from workers.queues.dirq import Dirq
from workers.system import SYSTEM, System
from workers.trust import Place, guarded, place_of_dirq

DEFAULT_SCHEMA = "body:binary,header:table?"
GRANULARITY_S, MAXELTS = 60, 16000
LINKS_MAX = 40
OPTIONS = {
    "dirq-simple": ("granularity", "rndhex", "state_dir", "umask"),
    "dirq": ("maxelts", "rndhex", "schema", "state_dir", "umask"),
}


def open_dirq(protocol: str, rest: str, settings: Settings, *, system: System, host: str) -> Dirq:
    """The queue that PROTOCOL:REST names: PATH, or PATH?KEY=VALUE&KEY=VALUE. Raises QueueRefused, QueueMissing."""
    path, _, query = rest.partition("?")
    url = f"{protocol}:{os.path.abspath(path)}{'?' + query if query else ''}"
    path = _followed(os.path.abspath(path))
    options = _options(protocol, rest)
    if options.state_dir:
        settings = dataclasses.replace(settings, state_dir=options.state_dir)
    system = guarded(system, *_places(path, settings.state_dir, options.umask))
    if protocol == "dirq-simple":
        simple = SimpleElements(path, options.umask, options.rndhex, options.granularity, system=system)
        return Dirq(url, simple, bytes, settings, system=system, host=host)
    key = body_key(options.schema)
    normal = SchemaElements(path, options.umask, options.rndhex, options.maxelts, key, system=system)
    encode = functools.partial(_as_parts, check_schema(options.schema), key)
    return Dirq(url, normal, encode, settings, system=system, host=host)


def places_of_url(protocol: str, rest: str, settings: Settings) -> list[Place]:
    """On what the queue of that URL rests, or will. Raises QueueRefused; opens nothing."""
    path = _followed(os.path.abspath(rest.partition("?")[0]))
    options = _options(protocol, rest)
    return _places(path, options.state_dir or settings.state_dir, options.umask)


def _places(path: str, state_dir: str | None, umask: int | None) -> list[Place]:
    return [place_of_dirq(path, umask), *Beside(path, state_dir, SYSTEM).places()]


def _options(protocol: str, rest: str) -> Options:
    try:
        return parse_options(protocol, rest.partition("?")[2])
    except ValueError as error:
        raise QueueRefused(f"{protocol}:{rest}: {error}") from error


def _followed(path: str) -> str:
    """*path*, but not a link itself: what lies beside the queue must be the same by every name that it has."""
    for _ in range(LINKS_MAX):
        # Only the last part: a link of /proc before it leads elsewhere than its text says.
        if not os.path.islink(path):
            break
        path = os.path.normpath(os.path.join(os.path.dirname(path), os.readlink(path)))
    return path


@dataclass(frozen=True, slots=True)
class Options:
    """What stands behind the question mark; see the published classes."""

    state_dir: str | None
    umask: int | None
    rndhex: int | None
    granularity: int
    maxelts: int
    schema: Mapping[str, str]


def parse_options(protocol: str, query: str) -> Options:
    """Take KEY=VALUE&KEY=VALUE apart. Raises ValueError, with what is wrong."""
    options = {}
    for pair in filter(None, query.split("&")):
        key, _, value = pair.partition("=")
        options[key] = value
    if unknown := sorted(options.keys() - set(OPTIONS[protocol])):
        raise ValueError(f"there is no option {unknown[0]!r}; there is {', '.join(OPTIONS[protocol])}")
    try:
        schema = parse_schema(options.get("schema") or DEFAULT_SCHEMA)
    except QueueError as error:
        raise ValueError(str(error)) from error
    return Options(
        state_dir=options.get("state_dir"),
        umask=_number(options, "umask", 8, 0, 0o777),
        rndhex=_number(options, "rndhex", 16, 0, 0xF),
        granularity=_number(options, "granularity", 10, 0) if "granularity" in options else GRANULARITY_S,
        maxelts=_number(options, "maxelts", 10, 1) if "maxelts" in options else MAXELTS,
        schema=schema,
    )


@overload
def _number(options: Mapping[str, str], key: str, base: int, least: int) -> int: ...
@overload
def _number(options: Mapping[str, str], key: str, base: int, least: int, most: int) -> int | None: ...
def _number(options: Mapping[str, str], key: str, base: int, least: int, most: int = 1 << 31) -> int | None:
    """The option *key*, digits of that *base*, or None where it is not there. Raises ValueError."""
    text = options.get(key)
    if text is None:
        return None
    try:
        number = int(text, base) if text.isalnum() else -1
    except ValueError:
        number = -1
    if not least <= number <= most:
        kind = {8: "an octal", 10: "a whole", 16: "a hexadecimal"}[base]
        raise ValueError(f"{key} = {text!r} must be {kind} number from {least} on")
    return number


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
