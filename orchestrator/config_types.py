"""
config_types - the types of configuration keys: what a value is made of, and what it must be

Annotated types for the fields of config_models. Each takes the text of a file, a
variable or a flag, or a value that is ready, so that a dumped model is read again.

Raises: ValueError with a sentence that says what was expected; pydantic collects them.
See also: config_models (the keys), config_values (how durations, sizes and URLs are written).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer, PlainValidator

from orchestrator.config_values import (
    QUEUE_NAME,
    absolute_url,
    account_number,
    nearest_spec,
    parse_duration,
    parse_listen,
    parse_size,
    shown,
)

NAME_RULE = "1 to 64 of the characters A-Z a-z 0-9 . _ -"
SPEC = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*:[^\W\d]\w*(?:\.[^\W\d]\w*)*\Z")

_UMASK = re.compile(r"0?[0-7]{3}\Z")


def matching(pattern: re.Pattern[str], expected: str) -> Callable[[object], object]:
    """A check that text matches *pattern*; what is no text is the type's business."""

    def check(value: object) -> object:
        if isinstance(value, str) and not pattern.match(value):
            raise ValueError(f"must be {expected}, not {shown(value)}")
        return value

    return check


def _duration(value: object) -> object:
    return None if value is None else parse_duration(value)


def _period(value: object) -> object:
    if value is not None and parse_duration(value) == 0:
        raise ValueError(f"must be a duration longer than 0, not {shown(value)}")
    return _duration(value)


def _spec(value: object) -> object:
    if isinstance(value, str) and not SPEC.match(value):
        near = nearest_spec(value)
        help_ = f"; did you mean {near}?" if near else ""
        raise ValueError(f'must be MODULE:NAME such as "shop.thumbnails:handle", not {shown(value)}{help_}')
    return value


def _text(value: object) -> str:
    """Any text: pydantic's own check refuses the surrogates that stand for undecodable bytes of a path."""
    if not isinstance(value, str):
        raise ValueError(f"must be text, not {shown(value)}")
    return value


def _url(value: object) -> str:
    return absolute_url(_text(value), None)


def _path(value: object) -> object:
    if isinstance(value, str) and (not value or "\0" in value):
        raise ValueError(f"must be a path, not {shown(value)}")
    return Path(value) if isinstance(value, str) else value


def _onward(value: object) -> object:
    """A queue's name as it is, a URL made absolute: what has a slash or a colon is one."""
    if not isinstance(value, str):
        return value
    if "/" in value or ":" in value:
        return absolute_url(value, None)
    if not QUEUE_NAME.match(value):
        raise ValueError(f"must be the URL of a queue, or the name of one of this configuration, not {shown(value)}")
    return value


def _state_dir(value: object) -> object:
    if isinstance(value, str) and (not value.startswith("/") or "\0" in value):
        raise ValueError(f"must be the absolute path of a directory, not {shown(value)}")
    return value


def _listen(value: object) -> object:
    return value if value is None or isinstance(value, tuple) else parse_listen(value)


def _umask(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool):
        # 22 and 0o22 are one number to TOML, and mean two masks: no guess is safe.
        raise ValueError(f'must be octal text such as "022", in quotes: the number {value} could be meant either way')
    if isinstance(value, str) and not _UMASK.match(value):
        raise ValueError(f'must be octal text of three digits such as "022", not {shown(value)}')
    if isinstance(value, str) and int(value, 8) & 0o700:
        raise ValueError(f'must leave the owner\'s own rights, as "022" and "077" do, not {shown(value)}')
    return value


def _account(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool):
        raise ValueError(f'must be text, a name or a number in quotes, as in "{value}"')
    if isinstance(value, str) and (not value or any(char in value for char in "\0\n:/")):
        raise ValueError(f"must be a name or a number as text, not {shown(value)}")
    if isinstance(value, str):
        account_number(value)
    return value


def _size(value: object) -> int | None:
    if value is None or value == "none":
        return None
    if not (size := parse_size(value)):
        raise ValueError("must be more than 0 bytes")
    return size


@dataclass(frozen=True, slots=True)
class Component:
    """
    One component of a queue: *use* is MODULE:NAME, *keywords* are for its constructor.

    Written as text where there are no keywords, else as one table with the key use.
    """

    use: str
    keywords: dict[str, object] = field(default_factory=dict)

    def as_written(self) -> str | dict[str, object]:
        """What stands for it in a configuration."""
        return {"use": self.use, **self.keywords} if self.keywords else self.use


def _component(value: object) -> Component:
    if isinstance(value, Component):
        return value
    table = {"use": value} if isinstance(value, str) else value
    if not isinstance(table, dict):
        raise ValueError(f'must be "MODULE:NAME", or a table {{ use = "MODULE:NAME", ... }}, not {shown(value)}')
    if not isinstance(use := table.get("use"), str):
        raise ValueError('needs use = "MODULE:NAME" in its table; the other keys are arguments for it')
    _spec(use)
    for key in table:
        if not str(key).isidentifier():
            raise ValueError(f"has the key {shown(key)}, which cannot be the name of an argument")
    return Component(use=use, keywords={str(key): given for key, given in table.items() if key != "use"})


def _components(value: object) -> object:
    listed = tuple(value) if isinstance(value, list) else value
    if isinstance(listed, str | dict):
        raise ValueError(f'must be a list such as ["MODULE:NAME"], not {shown(value)}')
    if listed == ():
        raise ValueError("must name a component")
    return listed


SizeOrNone = Annotated[int | None, BeforeValidator(_size)]
Duration = Annotated[float, BeforeValidator(_duration)]
DurationOrNone = Annotated[float | None, BeforeValidator(_duration)]
Period = Annotated[float, BeforeValidator(_period)]
PeriodOrNone = Annotated[float | None, BeforeValidator(_period)]
Text = Annotated[str, PlainValidator(_text)]
Url = Annotated[str, PlainValidator(_url)]
SpecOrNone = Annotated[str | None, BeforeValidator(_spec)]
OnwardOrNone = Annotated[str | None, BeforeValidator(_onward)]
StateDirOrNone = Annotated[str | None, BeforeValidator(_state_dir)]
FilePath = Annotated[Path, BeforeValidator(_path)]
FilePathOrNone = Annotated[Path | None, BeforeValidator(_path)]
Listen = Annotated[tuple[str, int] | None, BeforeValidator(_listen)]
Umask = Annotated[str, BeforeValidator(_umask)]
AccountOrNone = Annotated[str | None, BeforeValidator(_account)]
_AnyComponent = Annotated[Component, PlainValidator(_component), PlainSerializer(Component.as_written)]
ComponentsOrNone = Annotated[tuple[_AnyComponent, ...] | None, BeforeValidator(_components)]
