"""
spool_look - what an operator sees of a spool queue; reads only, needs nobody running

A listing is a picture of a moving thing: a message may be seen in two states, or in
none, when it moved between two directories that were read.

Raises: QueueUnavailable.
See also: spool (the verbs), spool_keep (who calls depth on a timer).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence, Set

from workers.dump import read
from workers.errors import QueueUnavailable
from workers.queues import names
from workers.queues.base import STATES, Depth, Listed, Shown, State
from workers.queues.directory import Directory

SAMPLE = 1000  # foreign names whose mtime is read for the oldest age
AGE_S_MAX = 1e9
META = ".meta"
META_BYTES_MAX = 1 << 20
META_DEPTH_MAX = 20


def is_meta(file: str, files: Set[str]) -> bool:
    """Whether a name of errors/, which holds *files*, is the .meta of another: it is there, or the mark says so."""
    if not file.endswith(META):
        return False
    base = file.removesuffix(META)
    # Before the mark is asked: the four check digits of one name in 65,536 fit NAME.meta as well.
    if base in files:
        return True
    return not names.parse(file).token and bool(names.parse(base).token)


class Ages:
    """The oldest of one state: by our names, and by the mtime of a sample of the others."""

    def __init__(self, directory: Directory) -> None:
        self._system = directory.system
        self._now_s = self._system.wall_ns() / 1e9
        self._oldest_s: float | None = None
        self._sampled = 0

    def add(self, directory: str, file: str, name: str) -> None:
        enqueued = names.enqueued_at(name)
        if enqueued is None:
            if self._sampled >= SAMPLE:
                return
            self._sampled += 1
            try:
                enqueued = self._system.lstat(os.path.join(directory, file)).st_mtime
            except OSError:  # it moved on, which is what messages do
                return
        self.note(enqueued)

    def note(self, enqueued_s: float) -> None:
        """One that was put at *enqueued_s*, unix seconds."""
        if self._oldest_s is None or enqueued_s < self._oldest_s:
            self._oldest_s = enqueued_s

    def age_s(self) -> float:
        # A forged mtime may be any 64-bit number; the board's words hold no more than a bounded age.
        return 0.0 if self._oldest_s is None else min(max(self._now_s - self._oldest_s, 0.0), AGE_S_MAX)


class Claims:
    """What lies in the owners' directories; *most* of them are listed at a time, of the others it is what was seen."""

    def __init__(self, directory: Directory, most: int = sys.maxsize) -> None:
        self._directory = directory
        self.most = most
        self._seen: dict[str, list[str]] = {}  # by owner, who was listed longest ago first

    def of(self, owners: Sequence[str]) -> Iterable[tuple[str, list[str]]]:
        """Each of *owners* and its files: new ones are listed first, then who was listed longest ago."""
        there = set(owners)
        self._seen = {owner: files for owner, files in self._seen.items() if owner in there}
        fresh = [owner for owner in owners if owner not in self._seen]
        for owner in [*fresh, *self._seen][: self.most]:
            self._seen.pop(owner, None)
            try:
                self._seen[owner] = self._directory.system.listdir(os.path.join(self._directory.pending, owner))
            except (FileNotFoundError, NotADirectoryError):
                continue
        return self._seen.items()


def depth(directory: Directory, claims: Claims | None = None) -> Depth:
    """Count by state. One pass over each directory, no stat but for the age of foreign names; see Claims."""
    claims = claims or Claims(directory)
    try:
        counts: dict[str, int] = {}
        oldest: dict[str, float] = {}
        ignored = 0
        ages = Ages(directory)
        counts["waiting"] = 0
        with directory.system.scandir(directory.incoming) as entries:
            for entry in entries:
                if names.is_ignored(entry.name) or entry.is_dir(follow_symlinks=False):
                    ignored += 1
                    continue
                counts["waiting"] += 1
                ages.add(directory.incoming, entry.name, names.parse(entry.name).name)
        oldest["waiting"] = ages.age_s()
        for state in ("claimed", "deferred", "errors"):
            ages, counts[state] = Ages(directory), 0
            for place, file, name in kept_files(directory, state, claims):
                counts[state] += 1
                ages.add(place, file, name)
            oldest[state] = ages.age_s()
    except OSError as error:
        raise QueueUnavailable.at("measure", error.filename or directory.path, error) from error
    return Depth(counts["waiting"], counts["claimed"], counts["deferred"], counts["errors"], ignored, oldest)


def kept_files(directory: Directory, state: str, claims: Claims | None = None) -> Iterator[tuple[str, str, str]]:
    """(directory, file, NAME) of each message in one of the other states."""
    if state == "claimed":
        claims = claims or Claims(directory)
        owners = []
        for name in directory.system.listdir(directory.pending):
            if names.parse_owner(name) is not None:
                owners.append(name)
            elif not names.is_ignored(name) and not directory.system.is_directory(f"{directory.pending}/{name}"):
                yield directory.pending, name, names.parse(name).name
        for owner, files in claims.of(owners):
            place = os.path.join(directory.pending, owner)
            yield from (
                (place, file, names.parse(file).name) for file in files if not file.startswith(names.STILL_OPEN)
            )
    elif state == "deferred":
        for file in directory.system.listdir(directory.deferred):
            due = names.parse_due(file)
            if due is not None:
                yield directory.deferred, file, due[1].name
    else:
        place = directory.errors if state == "errors" else directory.done
        try:
            listing = directory.system.listdir(place)
        except FileNotFoundError:
            return
        known = set(listing)
        for file in listing:
            if not is_meta(file, known) and not file.startswith("."):
                yield place, file, names.parse(file).name


def listed(directory: Directory, state: State | None = None) -> Iterator[Listed]:
    """Each message of *state*, or of all, sorted by name within a state."""
    for one in (state,) if state else STATES:
        try:
            yield from sorted(lines(directory, one), key=lambda line: line.name)
        except OSError as error:
            raise QueueUnavailable.at("list", error.filename or directory.path, error) from error


def lines(directory: Directory, state: State) -> Iterator[Listed]:
    """Each message of *state*, as it is found. Raises OSError."""
    if state == "waiting":
        for file in directory.system.listdir(directory.incoming):
            path = os.path.join(directory.incoming, file)
            if not names.is_ignored(file) and not directory.system.is_directory(path):
                mark = names.parse(file)
                yield Listed(mark.name, state, path, mark.attempts + 1, mark.crashes)
        return
    for place, file, name in kept_files(directory, state):
        due = names.parse_due(file) if state == "deferred" else None
        mark = due[1] if due else names.parse(file)
        owner = os.path.basename(place) if state == "claimed" and place != directory.pending else None
        attempt = mark.attempts + (1 if state in ("claimed", "deferred") else 0)
        path = os.path.join(place, file)
        yield Listed(name, state, path, attempt, mark.crashes, owner, float(due[0]) if due else None)


def show(directory: Directory, name: str) -> list[Shown]:
    """Everything known of the messages called *name*."""
    return shown(directory, (line for line in listed(directory) if line.name == name))


def shown(directory: Directory, found_lines: Iterable[Listed]) -> list[Shown]:
    """Everything known of each of *found_lines* that is still there."""
    found = []
    for line in found_lines:
        try:
            stat = directory.system.lstat(line.path)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise QueueUnavailable.at("show", line.path, error) from error
        meta = read_meta(directory, f"{line.path}{META}") if line.state == "errors" else None
        enqueued = names.enqueued_at(line.name)
        found.append(Shown(line, stat.st_size, stat.st_mtime, stat.st_mtime if enqueued is None else enqueued, meta))
    return found


def read_meta(directory: Directory, path: str) -> dict[str, object] | None:
    """The object in a .meta, or None for what is missing, huge or no JSON object (anybody may have written it)."""
    try:
        fd = directory.system.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            raw = directory.system.read(fd, META_BYTES_MAX)
        finally:
            directory.system.close(fd)
        found = read(raw)
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and _is_shallow(found, META_DEPTH_MAX) else None


def _is_shallow(value: object, depth: int) -> bool:
    """Whether nothing is nested deeper than *depth*: whoever copies or writes it later needs a stack for that."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return depth > 0 and all(_is_shallow(each, depth - 1) for each in inside)
