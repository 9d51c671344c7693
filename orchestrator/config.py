"""
config - the configuration in force: files, then environment, then flags

    load()       reads all three into frozen models, or raises ConfigError with
                 every error at once: file, line, key, what was expected
    load_with_origins()  the same, and where each value came from
    diff()       what a reload has to do, by queue name
    reference()  every key with type, default and meaning

Later wins, key by key. A variable that looks like a mistyped key makes a warning, no
error, because a service manager may set others that begin alike.

Raises: ConfigError. Reads the files it is given, touches no queue.
See also: config_models (the keys), config_files (fragments), config_overlay, config_draft (what is said
of errors), config_rules (what goes together), config_toml (lines), config_values (units).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from orchestrator import config_files, config_overlay
from orchestrator.config_draft import COMMAND_LINE, Draft, Origin, checked, placed
from orchestrator.config_files import Drafts
from orchestrator.config_models import (
    Config,
    DaemonConfig,
    Key,
    MetricsConfig,
    PoolConfig,
    QueueConfig,
    reference,
    tables,
)
from orchestrator.config_overlay import ARGUMENT_KEYS, NO_VARIABLE, flag_of, hands_on, mistyped, overlay, variables
from orchestrator.config_rules import files, targets, totals
from orchestrator.config_toml import ConfigError, Fault, nearest
from orchestrator.config_values import base_name, pool_name, run_directory, url_digits

__all__ = [
    "NO_VARIABLE", "Config", "ConfigError", "DaemonConfig", "Diff", "Fault", "Key", "MetricsConfig", "PoolConfig",
    "QueueConfig", "diff", "load", "load_with_origins", "reference", "tables", "unused_daemon_keys",
    "working_directory",
]  # fmt: skip


def load(
    paths: Sequence[Path],
    *,
    flags: Mapping[str, object],
    environment: Mapping[str, str],
    queues: Sequence[str] = (),
    handler: str | None = None,
    command: Sequence[str] | None = None,
    components: Sequence[str] = (),
    needs_queues: bool = True,
    directory: str | None = None,
) -> Config:
    """
    Read the configuration.

    Args:
        paths: TOML files, and directories of them; later wins.
        flags: key -> value as its flag gave it, text or typed; None is a flag not given. They hold for every queue.
        queues: URLs or paths named on the command line, in addition to the files'.
        handler, command, components: for the queues of the command line; for those of the files when there are none.
        needs_queues: False to look at the rest alone.
        directory: absolute; where relative paths start. None: the current one.

    Raises ConfigError with all errors found. Reads files, so it may block.
    """
    return load_with_origins(
        paths, flags=flags, environment=environment, queues=queues, handler=handler, command=command,
        components=components, needs_queues=needs_queues, directory=directory,
    )[0]  # fmt: skip


def load_with_origins(
    paths: Sequence[Path],
    *,
    flags: Mapping[str, object],
    environment: Mapping[str, str],
    queues: Sequence[str] = (),
    handler: str | None = None,
    command: Sequence[str] | None = None,
    components: Sequence[str] = (),
    needs_queues: bool = True,
    directory: str | None = None,
) -> tuple[Config, Drafts]:
    """load(), and the drafts that know where each value came from; queues stand in one order in both."""
    here = directory or working_directory()
    found = config_files.read(paths, here)
    given = [_argument(url, here) for url in queues]
    found.queues += given
    overlay(found.every(), variables(environment), here)
    programs = {"handler": handler, "command": command and list(command), "components": list(components) or None}
    flagged = config_overlay.flags({**flags, **programs})
    overlay(found.every(), {key: one for key, one in flagged.items() if key not in ARGUMENT_KEYS}, here)
    overlay(given or found.queues, {key: one for key, one in flagged.items() if key in ARGUMENT_KEYS}, here)
    if "output_limit" in flagged and not any(map(hands_on, found.queues)):
        found.faults.append(Fault(COMMAND_LINE, None, "--output-limit", "needs --output: there is nothing to look at"))
    if len(ways := [flag_of(key) for key, value in programs.items() if value]) > 1:
        text = f"there is {'a command' if 'COMMAND' in ways else ways[1]} too; give one of them"
        found.faults.append(Fault(COMMAND_LINE, None, ways[0], text))
    if needs_queues and not found.queues and not found.faults:
        text = "there is no queue; name one on the command line, or add [[queue]] with url and handler to a file"
        text = "; ".join([text, *found.warnings])
        found.faults.append(Fault(str(paths[0]) if paths else COMMAND_LINE, None, "", text))
    return _checked(found, environment), found


def _checked(found: Drafts, environment: Mapping[str, str]) -> Config:
    faults = found.faults
    _name_queues(found.queues, faults)
    made = [_queue(draft, found, faults) for draft in found.queues]
    ready = tuple(queue for queue in made if queue is not None)
    drafted = found.single["pool"]
    is_named = "name" in drafted.values
    if not is_named:
        drafted.derive("name", pool_name(ready[0].url) if ready else "pool")
    drafted.values.setdefault("run_dir", str(run_directory(environment, os.geteuid())))
    pool = checked(drafted, PoolConfig, faults)
    metrics = checked(found.single["metrics"], MetricsConfig, faults)
    daemon = checked(found.single["daemon"], DaemonConfig, faults)
    faults += totals(ready, found.queues)
    if len(ready) == len(found.queues):
        faults += targets(ready, found.queues)
    if pool is not None and daemon is not None:
        faults += files(pool, daemon, found.single)
    if faults or pool is None or metrics is None or daemon is None:
        # Sorting is stable: each file's errors by line, then what has no line in the order it was found.
        order = {str(file): index for index, file in enumerate(found.files)}
        where = [(order.get(one.source, len(order)), one.line is None, one.line or 0) for one in faults]
        raise ConfigError.of(fault for _, fault in sorted(zip(where, faults, strict=True), key=lambda pair: pair[0]))
    return Config(
        pool=pool, queues=ready, metrics=metrics, daemon=daemon, paths=tuple(found.files),
        is_named=is_named, warnings=(*found.warnings, *mistyped(environment)),
    )  # fmt: skip


def working_directory() -> str:
    """The current directory, for later too: a daemon leaves it. Raises ConfigError when it is gone."""
    try:
        return os.getcwd()
    except OSError as error:
        text = "the current directory is gone; change to another one first"
        raise ConfigError.of([Fault(COMMAND_LINE, None, "", text)]) from error


def unused_daemon_keys(config: Config) -> tuple[str, ...]:
    """A sentence for the log of a pool that is no daemon, when somebody set keys of [daemon]."""
    keys = [key for key in DaemonConfig.model_fields if key in config.daemon.model_fields_set]
    return (f"not used without --daemon: {', '.join(f'daemon.{key}' for key in keys)}",) if keys else ()


def _argument(url: str, directory: str) -> Draft:
    label = f"QUEUE {url}"
    origin = Origin(COMMAND_LINE, None, label)
    return Draft("queue", label, {"url": placed("url", url, directory)}, {(): origin, ("url",): origin})


def _queue(draft: Draft, found: Drafts, faults: list[Fault]) -> QueueConfig | None:
    name = draft.values.get("name")
    if "url" in draft.values or len(found.files) < 2 or not isinstance(name, str):
        return checked(draft, QueueConfig, faults)
    # It was to change a queue; what a new one lacks would only hide that.
    near = nearest(name, (str(one.values["name"]) for one in found.queues if "url" in one.values))
    text = f"is no queue of an earlier file{f'; did you mean {near}?' if near else ''}; a new one needs url"
    faults.append(draft.fault(("name",), text))
    return None


def _name_queues(drafts: Sequence[Draft], faults: list[Fault]) -> None:
    """Give every queue a name; two of one explicit name or URL are refused."""
    names: dict[str, Draft] = {}
    urls: dict[str, Draft] = {}
    for draft in drafts:
        name, url = draft.values.get("name"), draft.values.get("url")
        if isinstance(name, str) and (other := names.setdefault(name, draft)) is not draft:
            faults.append(draft.fault(("name",), f"must be unique; {_called(other, draft)} has that name too"))
        if isinstance(url, str) and url != "null:" and (other := urls.setdefault(url, draft)) is not draft:
            text = f"must be unique; {_called(other, draft)} is the same queue"
            if draft.source not in (other.source, COMMAND_LINE):
                text += "; to change that one, give its name"
            faults.append(draft.fault(("url",), text))
    for draft in drafts:
        if "name" in draft.values:
            continue
        url = str(draft.values.get("url", ""))
        name = base_name(url)
        if name in names:
            name = f"{name}-{url_digits(url)}"
        while name in names:  # null: twice, or an explicit name that looks like ours
            name = f"{name[:62]}_"
        names[name] = draft
        draft.derive("name", name)


def _called(draft: Draft, reader: Draft) -> str:
    """What to call *draft* in a sentence on *reader*: its label, and its file when that is another."""
    return draft.label if draft.source == reader.source else f"{draft.label} of {draft.source}"


@dataclass(frozen=True, slots=True)
class Diff:
    """
    What changed from one configuration to another, by queue name.

    *changed* are pairs of old and new. *restart* are keys of [pool], [metrics] and [daemon] that
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
        restart=tuple(
            f"{table}.{key}"
            for table in ("pool", "metrics", "daemon")
            for key in _differing(getattr(old, table), getattr(new, table))
        ),
    )


def _differing(old: BaseModel, new: BaseModel) -> Iterable[str]:
    return (key for key in type(old).model_fields if getattr(old, key) != getattr(new, key))
