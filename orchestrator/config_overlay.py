"""
config_overlay - what stands over the files: variables of the environment, then flags

A variable ORCHESTRATOR_<KEY> sets a key of [pool], [metrics] and [daemon], and of every
[[queue]] those that are not one queue's own and that one text can say.

Raises: nothing; what is wrong with a value the model says.
See also: config (asks), config_draft (is overlaid).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from orchestrator.config_draft import COMMAND_LINE, ENVIRONMENT, PROGRAM_KEYS, TYPES, Draft, placed
from orchestrator.config_models import NUMBER, SWITCH, TABLES
from orchestrator.config_rules import WAYS
from orchestrator.config_toml import nearest

PREFIX = "ORCHESTRATOR_"
OWN_KEYS = ("name", "url")  # of one queue: nothing sets them for all
NO_VARIABLE = ("url", "command", "shell", "components", "options", "event_map")  # one text is too little to say them

# Flags that say what is done with messages: for the queues of the command line, where there are some.
ARGUMENT_KEYS = (*PROGRAM_KEYS, "output", "output_limit", "output_wait")

Given = tuple[object, str, str]  # value, source and what it is called there

_FLAG_OF = {"command": "COMMAND", "components": "--component"}  # where it is not the key with dashes


def variables(environment: Mapping[str, str]) -> dict[str, Given]:
    """What *environment* sets, in the order of the keys. An empty variable counts as not set."""
    found: dict[str, Given] = {}
    for key in TYPES:
        text = environment.get(PREFIX + key.upper(), "")
        if text and key not in NO_VARIABLE:
            found[key] = (text, ENVIRONMENT, PREFIX + key.upper())
    return found


def flag_of(key: str) -> str:
    """What sets *key* on the command line."""
    return _FLAG_OF.get(key, "--" + key.replace("_", "-"))


def flags(given: Mapping[str, object]) -> dict[str, Given]:
    """The flags of *given*, key -> value, that are not None. Ways to handle messages come first: each unsets others."""
    assert set(given) <= set(TYPES), given  # noqa: S101 - a fault of the caller
    return {
        key: (given[key], COMMAND_LINE, flag_of(key))
        for key in sorted(TYPES, key=lambda key: key not in WAYS)
        if given.get(key) is not None
    }


def mistyped(environment: Mapping[str, str]) -> Iterable[str]:
    """A sentence for each variable that looks like one of ours and sets nothing."""
    for key in NO_VARIABLE:
        if environment.get(PREFIX + key.upper()):
            yield f"the variable {PREFIX}{key.upper()} is not used: {key} is set in a file, or on the command line"
    known = [PREFIX + key.upper() for key in (*TYPES, "config")]
    for name in sorted(environment):
        if name.startswith(PREFIX) and name not in known:
            near = nearest(name.removeprefix(PREFIX), TYPES)
            if near:
                yield f"the variable {name} is not used; did you mean {PREFIX}{near.upper()}?"


def overlay(drafts: Iterable[Draft], values: Mapping[str, Given], directory: str) -> None:
    """Set *values* in each of *drafts* that has such a key; relative paths start at *directory*."""
    for draft in drafts:
        for key, (value, source, name) in values.items():
            is_own = draft.kind == "queue" and (key in OWN_KEYS or (key == "output_limit" and not hands_on(draft)))
            if key in TABLES[draft.kind].model_fields and not is_own:
                typed = _typed(key, str(value) if isinstance(value, Path) else value)
                draft.override(key, placed(key, typed, directory), source, name)


def hands_on(draft: Draft) -> bool:
    """Whether there is a queue that output_limit could be for."""
    return draft.values.get("output") is not None or draft.values.get("forward") is not None


def _typed(key: str, value: object) -> object:
    """Text of a variable or flag as the type of *key*; what it cannot be stays text, and the model refuses it."""
    if not isinstance(value, str):
        return value
    if TYPES[key] == NUMBER:
        with contextlib.suppress(ValueError):
            return int(value)
    if TYPES[key] == SWITCH:
        return {"true": True, "yes": True, "on": True, "1": True,
                "false": False, "no": False, "off": False, "0": False}.get(value.lower(), value)  # fmt: skip
    return value
