"""
ddmq_data - what the commands of ddmq print, and how a JSON object becomes one of them

A table, a JSON text or a YAML text for view; a message as key = value lines, JSON or YAML
for consume: byte for byte what the original prints. A JSON object becomes the words of the
command line that does the same, so that there is one way only to check and to run a
command, and nothing of the object is ever code.

Raises: Failed for an object that is no command.
Limits: several messages in YAML are one mapping after another, as the original prints them;
a program reads JSON, which has a line for each.
See also: ddmq (the commands).
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from typing import Literal, get_args

import click
import yaml

from orchestrator.cli import Failed
from orchestrator.logs import escaped
from workers.ddmq import Message

Format = Literal["plain", "json", "yaml"]
FORMATS: tuple[str, ...] = get_args(Format)
Counts = Mapping[str, tuple[int, int]]  # queue to waiting, at work

HEADER = ("*queue*", "*msg in queue*", "*msg at work*")

# What json understands. A key that has this value is as good as left out.
DEFAULTS: dict[str, object] = {
    "cmd": None,
    "root": None,
    "queue": None,
    "message": None,
    "msg_files": None,
    "f": False,
    "v": False,
    "d": False,
    "n": False,
    "s": False,
    "format": "plain",
    "priority": None,
    "timeout": None,
    "requeue": False,
    "requeue_limit": None,
    "requeue_prio": None,
    "skip_cleaning": False,
}
ALIASES = {"command": "cmd", "files": "msg_files"}
LISTS = ("queue", "msg_files")  # where a command line has commas
EXAMPLE = {**DEFAULTS, "cmd": "publish", "root": "/tmp/ddmq", "queue": "tasks", "message": "Hello", "f": True}  # noqa: S108 - only text


# ---- out


def say(*texts: str) -> None:
    """Print each with a newline, and flush. Bytes of arguments and names that are no text come out as they went in."""
    if sys.stdout.isatty():  # which a message or a name could drive
        texts = tuple(re.sub(r"[^\n\t]+", lambda found: escaped(found[0]), text) for text in texts)
    click.echo(b"\n".join(map(_raw, texts)))


def _raw(text: str) -> bytes:
    try:
        return os.fsencode(text)
    except UnicodeEncodeError:  # half a character, as JSON can hold
        return text.encode("utf-8", "backslashreplace")


def table_of(counts: Counts) -> str:
    """The queues in order, under a header, in columns."""
    rows = [HEADER, *((queue, str(waiting), str(working)) for queue, (waiting, working) in sorted(counts.items()))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    return "\n".join(
        "| " + " | ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    )


def queues_as(form: Format, queues: list[str], counts: Counts | None) -> str:
    """The *queues* in their order, with what waits and is at work in each unless *counts* is None."""
    if form == "plain":
        return "\n".join(sorted(queues)) if counts is None else table_of(counts)
    data = queues if counts is None else {queue: list(pair) for queue, pair in counts.items()}
    return json.dumps(data) if form == "json" else yaml_of(data)


def message_as(form: Format, message: Message) -> str:
    """All that *message* holds."""
    if form == "plain":
        return str(message)
    # By the class, for the message may have a field of any name.
    return Message.msg2json(message) if form == "json" else yaml_of(dict(vars(message)))


def yaml_of(data: object) -> str:
    """*data* in YAML, without the newline at its end."""
    return yaml.safe_dump(data).rstrip()


# ---- in


def words_of(text: str | bytes, commands: Mapping[str, click.Command]) -> tuple[click.Command, list[str]]:
    """
    Say which of *commands* the JSON object in *text* means, and the words that its line would have.

    Raises Failed for what is no object, and for a key or a value that the command does not take.
    """
    given = _object(text)
    name = given.pop("cmd", None)
    if not isinstance(name, str) or name not in commands:
        what = "is missing" if name is None else f"is {_told(name)}"
        raise Failed(f'the key "cmd" {what}: give one of {", ".join(commands)}{_example()}')
    command, options, arguments = commands[name], [], []
    for param in command.params:
        key = _key_of(param)
        if key is None:
            continue
        value = given.pop(key, DEFAULTS[key])
        is_default = _is_default(key, value)
        if isinstance(param, click.Argument):
            if not is_default:
                arguments.append(_text_of(key, value))
            elif param.required:
                raise Failed(f'{name} wants the key "{key}"{_example()}')
        elif isinstance(param, click.Option) and (not is_default or key == "format"):
            options += _option(key, DEFAULTS[key] if value is None else value, param)
    useless = [key for key, value in given.items() if not _is_default(key, value)]
    if useless:
        raise Failed(f"{name} takes no {', '.join(useless)}")
    return command, [*options, "--", *arguments]


def _object(text: str | bytes) -> dict[str, object]:
    """The keys and values in *text*, under the names that DEFAULTS has."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Failed(f"this is no JSON ({escaped(str(error))}); are the quotes right?{_example()}") from error
    if not isinstance(found, dict):
        raise Failed(f"a JSON object is wanted, and this is {_told(found)}{_example()}")
    given: dict[str, object] = {}
    for key, value in found.items():
        known = ALIASES.get(key, key)
        if known not in DEFAULTS:
            raise Failed(f"unknown key {escaped(json.dumps(key))}{_example()}")
        if known in given and given[known] != value:
            raise Failed(f"the keys {key} and {known} mean the same: give one of them")
        given[known] = value
    return given


def _key_of(param: click.Parameter) -> str | None:
    """Under which key JSON has *param*."""
    names = {name.lstrip("-") for name in param.opts}
    return next((key for key in DEFAULTS if key in names), None)


def _is_default(key: str, value: object) -> bool:
    """Whether *value* says nothing; 0 is not False here."""
    return value is None or (type(value) is type(DEFAULTS[key]) and value == DEFAULTS[key])


def _text_of(key: str, value: object) -> str:
    """The word for an argument."""
    if key in LISTS and isinstance(value, list) and value and all(isinstance(part, str) for part in value):
        value = ",".join(value)
    if not isinstance(value, str):
        raise Failed(f'"{key}" is a text{" or a list of texts" if key in LISTS else ""}, not {_told(value)}')
    if key == "message":  # anything; the others are names of files
        return value
    try:
        is_name = b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        is_name = False
    if not is_name:
        raise Failed(f'"{key}" is {_told(value)}, which no file can be called')
    return value


def _option(key: str, value: object, param: click.Option) -> list[str]:
    """The words for an option."""
    name = next(one for one in param.opts if one.startswith("--"))
    if param.is_flag:
        if not isinstance(value, bool):
            raise Failed(f'"{key}" is true or false, not {_told(value)}')
        return [name] if value else []
    if isinstance(param.type, click.types.IntParamType):
        if not isinstance(value, int) or isinstance(value, bool):
            raise Failed(f'"{key}" is a whole number, not {_told(value)}')
    elif not isinstance(value, str):
        raise Failed(f'"{key}" is a text, not {_told(value)}')
    return [f"{name}={value}"]


def _told(value: object) -> str:
    """*value* for an error, short and printable."""
    text = escaped(json.dumps(value))
    return text if len(text) <= 60 else text[:57] + "..."


def _example() -> str:
    return f"\n\nAn example, with every key there is:\n\n'{json.dumps(EXAMPLE)}'"
