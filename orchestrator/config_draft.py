"""
config_draft - a table of the configuration before it is checked, and what is said of its errors

A draft knows where each value came from: a line of a file, a variable, a flag. A later
source overrides an earlier one key by key. checked() makes a model of a draft or adds a
Fault for each error, worded for a person.

Raises: nothing.
See also: config and config_files (fill the drafts), config_models (the rules).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from orchestrator.config_models import CHOICES, COMBINATION, COMPONENTS, NUMBER, TABLE, TABLES, WORDS, reference
from orchestrator.config_rules import WAYS
from orchestrator.config_toml import Fault, Place, nearest
from orchestrator.config_values import absolute_url, shown

ENVIRONMENT, COMMAND_LINE, DERIVED, DEFAULT = "environment", "command line", "derived", "default"
PROGRAM_KEYS = (*WAYS, "shell")
FREE_TABLES = ("options", "event_map")  # of which a later source changes single keys
TYPES = {key.key: key.type for key in reference()}
# Keys whose relative paths start at the directory of the file that they stand in, or at the current one.
PATH_KEYS = (
    "run_dir", "runlog_dir", "state_file", "log_file", "chroot_dir", "work_dir", "pid_file", "stdout", "stderr",
)  # fmt: skip

Model = TypeVar("Model", bound=BaseModel)

# Stands for a required key that is wrong, so that the others can be looked at together.
_PLACEHOLDERS = {"name": "x", "url": "null:", "run_dir": "/"}


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value came from: *name* is what a person calls it there, such as [[queue]] 2 workers, or --workers."""

    source: str
    line: int | None
    name: str

    def __str__(self) -> str:
        if self.source in (DERIVED, DEFAULT):
            return self.source
        if self.source in (ENVIRONMENT, COMMAND_LINE):
            return f"{self.source}: {self.name}"
        return self.source if self.line is None else f"{self.source}:{self.line}"


@dataclass(slots=True)
class Draft:
    """
    One table before it is checked: its values, and where each came from.

    Attributes:
        label: what a person calls it, such as [[queue]] 2.
        origins: of the places in this table; () is its own.
    """

    kind: str
    label: str
    values: dict[str, object] = field(default_factory=dict)
    origins: dict[Place, Origin] = field(default_factory=dict)

    @property
    def source(self) -> str:
        """The file that has this table first, or what else has it."""
        return self.origins[()].source

    def override(self, key: str, value: object, source: str, name: str) -> None:
        """Set *key*; one way to handle messages unsets the others, and what belongs to them."""
        self._make_way((key,))
        self._forget((key,))
        self.values[key] = value
        self.origins[(key,)] = Origin(source, None, name)

    def derive(self, key: str, value: object) -> None:
        """Set *key*, which nobody gave, to what follows from other keys."""
        self.values[key] = value
        self.origins[(key,)] = Origin(DERIVED, None, key)

    def merge(self, values: Mapping[str, object], source: str, label: str, lines: Mapping[Place, int]) -> None:
        """
        Set the keys that stand in the table *label* of the file *source*; *lines* are of its places.

        All of them are one word: two ways to handle messages in it stay two, and are refused.
        """
        self._make_way(values)
        for key, value in values.items():
            before = self.values.get(key)
            if key in FREE_TABLES and isinstance(value, dict) and isinstance(before, dict):
                self.values[key] = before | value
            else:
                self._forget((key,))
                self.values[key] = value
        self.origins.setdefault((), Origin(source, lines.get(()), label))
        # Where the lines are not known there is that of the table.
        for place in [*((key,) for key in values), *(place for place in lines if place and place[0] in values)]:
            name = f"{label} {place[0]}"
            self.origins[place] = Origin(source, lines.get(place, lines.get(())), name)

    def origin(self, place: Place) -> Origin:
        """Where what stands at *place* came from."""
        return self.origins.get(place) or self.origin(place[:-1]) if place else self.origins[()]

    def origin_of(self, place: Place) -> Origin:
        """As origin(), and for a key that nobody set "default"."""
        return self.origin(place) if place[:1] in self.origins else Origin(DEFAULT, None, str(place[0]))

    def fault(self, place: Place, text: str) -> Fault:
        """Say *text* of *place* in this table, with the nearest line that is known."""
        found = self.origin(place)
        if place and found in (self.origins[()], Origin(DERIVED, None, str(place[0]))):
            own = self.origins[()]
            return Fault(own.source, own.line, f"{self.label} {place[0]}".strip(), text)
        return Fault(found.source, found.line, found.name, text)

    def _make_way(self, keys: Iterable[str]) -> None:
        ways = [key for key in keys if key in WAYS]
        if not ways:
            return
        if "components" not in ways:
            self._forget(FREE_TABLES)
        if "forward" in ways:
            self._forget(("output",))
        elif "forward" in self.values:
            self._forget(("output_limit",))
        self._forget(PROGRAM_KEYS)

    def _forget(self, keys: Iterable[str]) -> None:
        for key in keys:
            if self.values.pop(key, None) is not None:
                self.origins = {place: origin for place, origin in self.origins.items() if place[:1] != (key,)}


def placed(key: str, value: object, directory: str) -> object:
    """*value* with its relative path made absolute at *directory*; what is no path or wrong stays as it is."""
    if not isinstance(value, str) or not value:
        return value
    if key in PATH_KEYS:
        return os.path.join(directory, value)
    if key == "url" or (key in ("forward", "output") and ("/" in value or ":" in value)):
        with contextlib.suppress(ValueError):  # the model says it again
            return absolute_url(value, directory)
    return value


def unknown_text(word: str, what: str, known: Iterable[str]) -> str:
    """What to say of an unknown key: a slip of the fingers, the wrong table, or nothing like it."""
    known = list(known)
    if what == "key" and word in TYPES:
        return f"unknown key here; it belongs into {_homes(word)}"
    near = nearest(word, known)
    if near:
        return f"unknown {what}; did you mean {near}?"
    far = nearest(word, TYPES) if what == "key" else None
    if far:
        return f"unknown key; did you mean {far}, in {_homes(far)}?"
    return f"unknown {what}; expected one of {', '.join(known)}"


def _homes(key: str) -> str:
    tables = [kind for kind in TABLES if key in TABLES[kind].model_fields]
    return " or ".join(f"[[{kind}]]" if kind == "queue" else f"[{kind}]" for kind in tables)


def checked(draft: Draft, model: type[Model], faults: list[Fault]) -> Model | None:
    """
    The model of *draft*, or None with what is wrong added to *faults*.

    Keys are looked at one by one first, and together only when each is right. So that
    all errors are told at once, what is left without the wrong keys is looked at again.
    """
    try:
        return model.model_validate(draft.values)
    except ValidationError as refused:
        # A default made of another key is not made when that one is wrong, which is told already.
        errors = [error for error in refused.errors() if error["type"] != "default_factory_not_called"]
    bad = {str(error["loc"][0]) for error in errors if error["loc"]}
    faults.extend(draft.fault(error["loc"], _worded(error, model)) for error in errors if error["loc"])
    if bad:
        rest = {key: value for key, value in draft.values.items() if key not in bad}
        rest = {key: value for key, value in _PLACEHOLDERS.items() if key in model.model_fields} | rest
        errors = _errors(model, rest)
    for error in errors:
        if error["type"] == COMBINATION:
            found = error["ctx"]["found"]
            faults.extend(draft.fault((keys[0],), text) for keys, text in found if not bad & set(keys))
    return None


def _errors(model: type[BaseModel], values: dict[str, object]) -> list[ErrorDetails]:
    try:
        model.model_validate(values)
    except ValidationError as refused:
        return refused.errors()
    return []


def _worded(error: ErrorDetails, model: type[BaseModel]) -> str:
    key = str(error["loc"][0])
    value = error["input"]
    match error["type"]:
        case "extra_forbidden":
            text = unknown_text(key, "key", model.model_fields)
        case "missing":
            text = f"is missing; {model.model_fields[key].description}"
        case "value_error":
            text = str(error["ctx"]["error"])
        case "greater_than_equal":
            text = f"must be at least {error['ctx']['ge']}, not {shown(value)}"
        case "less_than_equal":
            text = f"must be at most {error['ctx']['le']}, not {shown(value)}"
        case _ if len(error["loc"]) > 1 and TYPES[key] == TABLE:
            text = f"must be a table of text to text, and {shown(error['loc'][1])} is {shown(value)}"
        case _:
            kind = TYPES[key]
            # What was meant for a free table may be a secret, and a reload says this in the log.
            told = "a text" if kind == TABLE and isinstance(value, str) else shown(value)
            text = f"must be {'a ' if kind in (NUMBER, WORDS, COMPONENTS, TABLE) else ''}{kind}, not {told}"
            near = nearest(value, CHOICES.get(key, ())) if isinstance(value, str) else None
            text += f"; did you mean {near}?" if near else ""
    return text
