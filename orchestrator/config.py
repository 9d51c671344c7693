"""
config - the configuration in force: file, then environment, then flags

    load()       reads all three into frozen models, or raises ConfigError with
                 every error at once: file, line, key, what was expected
    diff()       what a reload has to do, by queue name
    reference()  every key with type, default and meaning

A variable ORCHESTRATOR_<KEY> overrides that key of [pool] and [metrics], and of
every [[queue]] but its name, url, command and shell. A flag overrides both. An
empty variable counts as not set; one that looks like a mistyped key makes a warning,
no error, because a service manager may set others that begin alike.

Raises: ConfigError. Reads the one file it is given, touches no queue.
See also: config_models (the keys), config_draft (what is said of errors),
config_toml (lines), config_values (units).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from orchestrator.config_draft import PROGRAM_KEYS, TYPES, Draft, checked, unknown_text
from orchestrator.config_models import (
    NUMBER,
    SWITCH,
    TABLES,
    Config,
    Key,
    MetricsConfig,
    PoolConfig,
    QueueConfig,
    reference,
    tables,
)
from orchestrator.config_toml import ConfigError, Fault, Place, nearest, read_toml
from orchestrator.config_values import absolute_url, base_name, pool_name, run_directory, shown, url_digits
from workers.board import QUEUES_MAX, WORKERS_MAX

__all__ = [
    "Config", "ConfigError", "Diff", "Fault", "Key", "MetricsConfig", "PoolConfig", "QueueConfig",
    "diff", "load", "reference", "tables",
]  # fmt: skip

PREFIX = "ORCHESTRATOR_"
ENVIRONMENT, COMMAND_LINE = "environment", "command line"
OWN_KEYS = ("name", "url")  # of one queue: nothing sets them for all


def load(
    path: Path | None,
    *,
    flags: Mapping[str, object],
    environment: Mapping[str, str],
    queues: Sequence[str] = (),
    handler: str | None = None,
    command: Sequence[str] | None = None,
    needs_queues: bool = True,
) -> Config:
    """
    Read the configuration.

    Args:
        path: the TOML file, or None for none.
        flags: key -> value as its flag gave it, text or typed; None is a flag not given. They hold for every queue.
        queues: URLs or paths named on the command line, in addition to the file's.
        handler, command: for the queues of the command line; for those of the file when there are none.
        needs_queues: False to look at the rest alone.

    Raises ConfigError with all errors found. Reads a file, so it may block.
    """
    pool, metrics, named, faults = _read(path)
    arguments = [Draft("queue", COMMAND_LINE, f"QUEUE {url}", {"url": url}) for url in queues]
    drafts = [*named, *arguments]
    _overlay([pool, metrics, *drafts], _variables(environment), _working_directory())
    for draft in arguments or drafts:
        if handler is not None:
            draft.override("handler", handler, COMMAND_LINE, "--handler")
        if command is not None:
            if handler is not None:
                faults.append(Fault(COMMAND_LINE, None, "--handler", "there is a command too; give one of them"))
            draft.override("command", list(command), COMMAND_LINE, "COMMAND")
    assert set(flags) <= set(TYPES), flags  # noqa: S101 - a fault of the caller
    given = {
        key: (value, COMMAND_LINE, "--" + key.replace("_", "-")) for key, value in flags.items() if value is not None
    }
    program = {key: given.pop(key) for key in PROGRAM_KEYS if key in given}
    _overlay([pool, metrics, *drafts], given, _working_directory())
    _overlay(arguments or drafts, program, _working_directory())
    if needs_queues and not drafts and not faults:
        text = "there is no queue; name one on the command line, or add [[queue]] with url and handler to a file"
        faults.append(Fault(COMMAND_LINE if path is None else str(path), None, "", text))
    _name_queues(drafts, _directory(path), faults)
    made = [checked(draft, QueueConfig, faults) for draft in drafts]
    first = next((queue for queue in made if queue is not None), None)
    pool.values.setdefault("name", pool_name(first.url) if first else "pool")
    pool.values.setdefault("run_dir", str(run_directory(environment, os.geteuid())))
    checked_pool = checked(pool, PoolConfig, faults)
    checked_metrics = checked(metrics, MetricsConfig, faults)
    ready = tuple(queue for queue in made if queue is not None)
    _check_totals(ready, drafts, faults)
    if len(ready) == len(drafts):
        _check_forwards(ready, drafts, faults)
    if faults or checked_pool is None or checked_metrics is None:
        # Sorting is stable: the file's errors by line, then what has no line in the order it was found.
        raise ConfigError.of(sorted(faults, key=lambda fault: (fault.line is None, fault.line or 0)))
    warnings = tuple(_mistyped(environment))
    return Config(pool=checked_pool, queues=ready, metrics=checked_metrics, path=path, warnings=warnings)


def _directory(path: Path | None) -> str:
    return _working_directory() if path is None else os.path.dirname(os.path.join(_working_directory(), path))


def _working_directory() -> str:
    try:
        return os.getcwd()
    except OSError as error:
        text = "the current directory is gone; change to another one first"
        raise ConfigError.of([Fault(COMMAND_LINE, None, "", text)]) from error


def _read(path: Path | None) -> tuple[Draft, Draft, list[Draft], list[Fault]]:
    source = COMMAND_LINE if path is None else str(path)
    raw, lines = ({}, {}) if path is None else read_toml(path)
    faults: list[Fault] = []
    single = {kind: Draft(kind, source, f"[{kind}]", lines=_below(lines, (kind,))) for kind in ("pool", "metrics")}
    queues: list[Draft] = []
    for kind, value in raw.items():
        if kind in single:
            if isinstance(value, dict):
                single[kind].values.update(value)
            else:
                text = f"must be a table, [{kind}] once, not {shown(value)}"
                faults.append(Fault(source, lines.get((kind,)), kind, text))
        elif kind == "queue":
            elements = value if isinstance(value, list) else [value]
            if isinstance(value, dict):
                text = "must be written [[queue]], in double brackets, for there may be several"
                faults.append(Fault(source, lines.get(("queue",)), "[queue]", text))
            for index, element in enumerate(elements):
                draft = Draft("queue", source, f"[[queue]] {index + 1}", lines=_below(lines, ("queue", index)))
                if isinstance(element, dict):
                    draft.lines = draft.lines or _below(lines, ("queue",))
                    draft.values.update(element)
                    queues.append(draft)
                else:
                    faults.append(draft.fault((), f"must be a table, [[queue]], not {shown(element)}"))
        else:
            text = unknown_text(kind, "table" if isinstance(value, dict | list) else "key", TABLES)
            faults.append(Fault(source, lines.get((kind,)), kind, text))
    run_dir = single["pool"].values.get("run_dir")
    if isinstance(run_dir, str) and run_dir:
        single["pool"].values["run_dir"] = os.path.join(_directory(path), run_dir)
    return single["pool"], single["metrics"], queues, faults


def _below(lines: Mapping[Place, int], prefix: Place) -> dict[Place, int]:
    size = len(prefix)
    return {place[size:]: line for place, line in lines.items() if place[:size] == prefix}


def _variables(environment: Mapping[str, str]) -> dict[str, tuple[object, str, str]]:
    found: dict[str, tuple[object, str, str]] = {}
    for key in TYPES:
        text = environment.get(PREFIX + key.upper(), "")
        if text and key not in ("url", "command", "shell"):
            found[key] = (text, ENVIRONMENT, PREFIX + key.upper())
    return found


def _mistyped(environment: Mapping[str, str]) -> Iterable[str]:
    known = [PREFIX + key.upper() for key in TYPES]
    for name in sorted(environment):
        if name.startswith(PREFIX) and name not in known:
            near = nearest(name.removeprefix(PREFIX), TYPES)
            if near:
                yield f"the variable {name} is not used; did you mean {PREFIX}{near.upper()}?"


def _overlay(drafts: Iterable[Draft], values: Mapping[str, tuple[object, str, str]], directory: str) -> None:
    for draft in drafts:
        for key, (value, source, name) in values.items():
            if key not in TABLES[draft.kind].model_fields or (draft.kind == "queue" and key in OWN_KEYS):
                continue
            typed = _typed(key, value)
            if key == "run_dir" and typed:
                typed = os.path.join(directory, str(typed))
            draft.override(key, typed, source, name)


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


def _name_queues(drafts: Sequence[Draft], directory: str, faults: list[Fault]) -> None:
    """Make URLs absolute and give every queue a name; two of one explicit name or URL are refused."""
    taken: dict[str, str] = {}
    urls: dict[str, str] = {}
    for draft in drafts:
        name, url = draft.values.get("name"), draft.values.get("url")
        if isinstance(name, str) and taken.setdefault(name, draft.label) != draft.label:
            faults.append(draft.fault(("name",), f"must be unique; {taken[name]} has that name too"))
        if isinstance(url, str):
            with contextlib.suppress(ValueError):
                url = absolute_url(url, _working_directory() if draft.source == COMMAND_LINE else directory)
                draft.values["url"] = url
                if url != "null:" and url in urls:
                    faults.append(draft.fault(("url",), f"must be unique; {urls[url]} is the same queue"))
                urls.setdefault(url, draft.label)
        forward = draft.values.get("forward")
        if isinstance(forward, str) and ("/" in forward or ":" in forward):
            with contextlib.suppress(ValueError):  # the model says it again
                is_here = draft.source == COMMAND_LINE or "forward" in draft.given
                draft.values["forward"] = absolute_url(forward, _working_directory() if is_here else directory)
    for draft in drafts:
        if "name" in draft.values:
            continue
        url = str(draft.values.get("url", ""))
        name = base_name(url)
        if name in taken:
            name = f"{name}-{url_digits(url)}"
        while name in taken:  # null: twice, or an explicit name that looks like ours
            name = f"{name[:62]}_"
        taken[name] = draft.label
        draft.values["name"] = name


def _check_forwards(queues: Sequence[QueueConfig], drafts: Sequence[Draft], faults: list[Fault]) -> None:
    known = [queue.name for queue in queues]
    for queue, draft in zip(queues, drafts, strict=False):
        target = queue.forward
        if target is not None and ":" not in target and target not in known:
            near = nearest(target, known)
            text = f"names no queue of this configuration{f'; did you mean {near}?' if near else ''}"
            faults.append(draft.fault(("forward",), text))


def _check_totals(queues: Sequence[QueueConfig], drafts: Sequence[Draft], faults: list[Fault]) -> None:
    if len(drafts) > QUEUES_MAX:
        text = f"a pool has at most {QUEUES_MAX} queues, not {len(drafts)}; run several pools"
        faults.append(drafts[QUEUES_MAX].fault((), text))
    total = sum(queue.workers for queue in queues)
    if total > WORKERS_MAX:
        text = f"all queues together must have at most {WORKERS_MAX} workers, not {total}; run several pools"
        most = max(queues, key=lambda queue: queue.workers).name
        faults.append(next(draft for draft in drafts if draft.values["name"] == most).fault(("workers",), text))


@dataclass(frozen=True, slots=True)
class Diff:
    """
    What changed from one configuration to another, by queue name.

    *changed* are pairs of old and new. *restart* are keys of [pool] and [metrics] that
    differ: a running master keeps the old value, and says so.
    """

    added: tuple[QueueConfig, ...]
    removed: tuple[QueueConfig, ...]
    changed: tuple[tuple[QueueConfig, QueueConfig], ...]
    same: tuple[QueueConfig, ...]
    restart: tuple[str, ...]


def diff(old: Config, new: Config) -> Diff:
    """What a reload from *old* to *new* has to do. Pure."""
    before = {queue.name: queue for queue in old.queues}
    after = {queue.name: queue for queue in new.queues}
    both = [(before[name], queue) for name, queue in after.items() if name in before]
    return Diff(
        added=tuple(queue for name, queue in after.items() if name not in before),
        removed=tuple(queue for name, queue in before.items() if name not in after),
        changed=tuple((first, second) for first, second in both if first.model_dump() != second.model_dump()),
        same=tuple(second for first, second in both if first.model_dump() == second.model_dump()),
        restart=(*_differing("pool", old.pool, new.pool), *_differing("metrics", old.metrics, new.metrics)),
    )


def _differing(table: str, old: BaseModel, new: BaseModel) -> Iterable[str]:
    return (f"{table}.{key}" for key in type(old).model_fields if getattr(old, key) != getattr(new, key))
