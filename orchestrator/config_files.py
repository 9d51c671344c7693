"""
config_files - the files of a configuration, read in their order and merged

A path is a file, or a directory of fragments: its *.toml, sorted by name, hidden ones
and what editors leave behind (x.toml~, .x.toml.swp) not. Later wins, key by key. A
[[queue]] with the name of a queue of an earlier file changes that one; the name may be
the one that the earlier queue gets from its path. Else it is another queue.

Raises: ConfigError for files that cannot be read or that everybody may write, all of them at once.
Limits: a name takes nothing away: what an earlier file sets can be changed, not unset.
See also: config (what overrides files), config_toml (one file), config_trust (who else may write it).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.config_draft import COMMAND_LINE, Draft, Origin, placed, unknown_text
from orchestrator.config_models import TABLES
from orchestrator.config_toml import ConfigError, Fault, Place, read_toml
from orchestrator.config_trust import risk_of
from orchestrator.config_values import base_name, shown
from workers.queues import names

SUFFIX = ".toml"


@dataclass(slots=True)
class Drafts:
    """
    What the files say.

    *single* are the tables that there is one of, by name. *faults* is what is no table,
    *warnings* what else a person should know.
    """

    single: dict[str, Draft]
    queues: list[Draft] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def every(self) -> list[Draft]:
        """All tables."""
        return [*self.single.values(), *self.queues]

    def of(self, kind: str, index: int) -> Draft:
        """The table *kind*; of the queues the one at *index*."""
        return self.queues[index] if kind == "queue" else self.single[kind]


def read(paths: Iterable[Path], directory: str) -> Drafts:
    """Read what is at *paths*, relative ones at *directory*. Raises ConfigError. May block, as files do."""
    found = Drafts({kind: Draft(kind, f"[{kind}]") for kind in TABLES if kind != "queue"})
    unread: list[Fault] = []
    for path in paths:
        for file in _files_at(path, directory, unread, found.warnings):
            found.files.append(file)
            _look_who_writes(os.path.join(directory, file), unread, found.warnings)
            try:
                raw, lines = read_toml(Path(directory, file), str(file))
            except ConfigError as error:
                unread.extend(error.errors)
            else:
                _merge_file(found, str(file), raw, lines, os.path.dirname(os.path.join(directory, file)))
    if unread:
        # What is missing would look like mistakes in what is there.
        raise ConfigError.of(unread)
    for kind, draft in found.single.items():
        source = str(found.files[0]) if found.files else COMMAND_LINE
        draft.origins.setdefault((), Origin(source, None, f"[{kind}]"))
    return found


def _files_at(path: Path, directory: str, unread: list[Fault], warnings: list[str]) -> list[Path]:
    where = os.path.join(directory, path)
    if not os.path.isdir(where):
        return [path]
    try:
        listed = sorted(os.listdir(where))
    except OSError as error:
        unread.append(Fault(str(path), None, "", f"cannot be read: {error.strerror or error}"))
        return []
    _look_who_writes(where, unread, warnings)
    plain = [name for name in listed if not name.startswith(".")]
    files = [path / name for name in plain if name.endswith(SUFFIX)]
    if plain and not files:
        warnings.append(f"nothing is read in {names.shown(str(path))}: no name there ends in {SUFFIX}")
    return files


def _look_who_writes(where: str, unread: list[Fault], warnings: list[str]) -> None:
    risk = risk_of(where)
    if risk is not None and risk.is_refused:
        unread.append(Fault(risk.path, None, "", risk.text))
    elif risk is not None and str(risk) not in warnings:
        warnings.append(str(risk))


def _merge_file(found: Drafts, source: str, raw: Mapping[str, object], lines: Mapping[Place, int], base: str) -> None:
    """Add the tables of one file, whose relative paths start at *base*."""
    for kind, value in raw.items():
        if kind in found.single:
            if isinstance(value, dict):
                table = {key: placed(key, given, base) for key, given in value.items()}
                found.single[kind].merge(table, source, f"[{kind}]", _below(lines, (kind,)))
            else:
                text = f"must be a table, [{kind}] once, not {shown(value)}"
                found.faults.append(Fault(source, lines.get((kind,)), kind, text))
        elif kind == "queue":
            _merge_queues(found, source, value, lines, base)
        else:
            text = unknown_text(kind, "table" if isinstance(value, dict | list) else "key", TABLES)
            found.faults.append(Fault(source, lines.get((kind,)), kind, text))


def _merge_queues(found: Drafts, source: str, value: object, lines: Mapping[Place, int], base: str) -> None:
    if isinstance(value, dict):
        text = "must be written [[queue]], in double brackets, for there may be several"
        found.faults.append(Fault(source, lines.get(("queue",)), "[queue]", text))
    earlier = list(found.queues)
    here: set[str] = set()
    for index, element in enumerate(value if isinstance(value, list) else [value]):
        label = f"[[queue]] {index + 1}"
        below = _below(lines, ("queue", index)) or _below(lines, ("queue",))
        if not isinstance(element, dict):
            text = f"must be a table, [[queue]], not {shown(element)}"
            found.faults.append(Fault(source, below.get(()), label, text))
            continue
        table = {str(key): placed(str(key), given, base) for key, given in element.items()}
        name = str(table.get("name"))
        # Twice in one file is a slip: the second is another queue then, and refused for its name.
        draft = _named(earlier, table) if name not in here else None
        here.add(name)
        if draft is None:
            draft = Draft("queue", label)
            found.queues.append(draft)
        draft.merge(table, source, label, below)


def _named(earlier: Iterable[Draft], table: Mapping[str, object]) -> Draft | None:
    """The queue of *earlier* files that *table* changes, by the name it was given or would get from its path."""
    name, url = table.get("name"), table.get("url")
    if not isinstance(name, str):
        return None
    for draft in earlier:
        if draft.values.get("name") == name:
            return draft
    for draft in earlier:
        theirs = draft.values.get("url")
        if (
            "name" not in draft.values
            and isinstance(theirs, str)
            and base_name(theirs) == name
            and url in (None, theirs)
        ):
            return draft
    return None


def _below(lines: Mapping[Place, int], prefix: Place) -> dict[Place, int]:
    size = len(prefix)
    return {place[size:]: line for place, line in lines.items() if place[:size] == prefix}
