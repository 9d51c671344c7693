"""
config_draft - a table of the configuration before it is checked, and what is said of its errors

A draft knows where each value came from: a line of the file, a variable, a flag.
checked() makes a model of it or adds a Fault for each error, worded for a person.

Raises: nothing.
See also: config (fills the drafts), config_models (the rules).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from orchestrator.config_models import COMBINATION, NUMBER, TABLES, WORDS, reference
from orchestrator.config_toml import Fault, Place, nearest
from orchestrator.config_values import shown

PROGRAM_KEYS = ("handler", "command", "shell", "forward")
TYPES = {key.key: key.type for key in reference()}

Model = TypeVar("Model", bound=BaseModel)

# Stands for a required key that is wrong, so that the others can be looked at together.
_PLACEHOLDERS = {"name": "x", "url": "null:", "run_dir": "/"}


@dataclass(slots=True)
class Draft:
    """
    One table before it is checked: its values, and where each came from.

    Attributes:
        label: what a person calls it, such as [[queue]] 2.
        lines: of the places in this table; () is its own.
        given: key -> source and name there, for what did not come from *source*.
    """

    kind: str
    source: str
    label: str
    values: dict[str, object] = field(default_factory=dict)
    lines: dict[Place, int] = field(default_factory=dict)
    given: dict[str, tuple[str, str]] = field(default_factory=dict)

    def override(self, key: str, value: object, source: str, name: str) -> None:
        """Set *key*; one way to handle messages unsets the other."""
        if key in ("handler", "command", "forward"):
            for other in PROGRAM_KEYS:
                self.values.pop(other, None)
        self.values[key] = value
        self.given[key] = (source, name)

    def fault(self, place: Place, text: str) -> Fault:
        """Say *text* of *place* in this table, with the nearest line that is known."""
        key = str(place[0]) if place else ""
        if key in self.given:
            source, name = self.given[key]
            return Fault(source, None, name, text)
        line = next((self.lines[place[:n]] for n in range(len(place), -1, -1) if place[:n] in self.lines), None)
        return Fault(self.source, line, f"{self.label} {key}".strip(), text)


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
        errors = refused.errors()
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
        case _:
            kind = TYPES[key]
            text = f"must be {'a ' if kind in (NUMBER, WORDS) else ''}{kind}, not {shown(value)}"
            near = nearest(value, ("fifo", "any")) if isinstance(value, str) and key == "order" else None
            text += f"; did you mean {near}?" if near else ""
    return text
