"""
probes - what one host can find out about a mount: names, links, races, locks, syncs, events, replies

Each is given a System and a directory of its own, empty, and answers with facts. Those that need other
processes fork them. times and speed are the larger ones, in modules of their own.

Raises: OSError where the filesystem refuses what every queue needs.
See also: judge (what the answers mean).
"""

from __future__ import annotations

import contextlib
import os
import select
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from orchestrator.doctor.apart import error_name, side_by_side
from orchestrator.doctor.facts import AllReplies, Events, Facts, Links, Locks, Names, Race, Replies, Sync, Tally, Way
from orchestrator.doctor.place import make_directory, move, unless_full, write
from orchestrator.doctor.races import Racer, account, fill
from workers.system import System

try:
    import inotify_simple
except ImportError:  # not on Linux
    inotify_simple = None

LONGEST = 255  # bytes of a name: what the marks of a queue reckon with
EVENT_S = 1.0
SLOT_S = 0.0005  # from one name of a race to the next, at the least

# What a name is given by programs; ours are ASCII without any of it.
ODD_NAMES = {
    "a newline": b"a\nb",
    "bytes that are no UTF-8": b"a\xff\xfeb",
    "letters beyond ASCII": "\u00e4\u4e16".encode(),
    "a colon": b"a:b",
    "a space or a dot at the end": b"a. ",
    "control characters": b"\x01\x7f",
    "quotes and wildcards": b"\"'*?<>|\\",
}


# ---- names and links


def names(system: System, place: str) -> Names:
    """What a file may be called, and whether it is listed as it was made."""
    refused, changed = [], []
    for kind, raw in ODD_NAMES.items():
        name = os.fsdecode(raw)
        try:
            write(system, f"{place}/{name}", b"")
        except OSError as error:
            unless_full(error)
            refused.append(kind)
        else:
            if name not in system.listdir(place):
                changed.append(kind)
    write(system, f"{place}/Case", b"")
    folds_case = False
    try:
        write(system, f"{place}/cASE", b"")
    except FileExistsError:
        folds_case = True
    return Names(longest=_longest(system, place), refused=tuple(refused), changed=tuple(changed), folds_case=folds_case)


def _longest(system: System, place: str) -> int:
    """The length of the longest name that is kept, 255 at most."""
    low, high = 0, LONGEST + 1
    size = LONGEST
    while low + 1 < high:
        name = "n" * size
        try:
            write(system, f"{place}/{name}", b"")
            is_kept = name in system.listdir(place)
        except OSError as error:
            unless_full(error)
            is_kept = False
        low, high = (size, high) if is_kept else (low, size)
        size = (low + high) // 2
    return low


def links(system: System, place: str) -> Links:
    """Whether a file may have two names, and whether its link count says so."""
    write(system, f"{place}/one", b"")
    try:
        system.link(f"{place}/one", f"{place}/two")
    except OSError as error:
        unless_full(error)
        return Links(count=None, error=error_name(error))
    return Links(count=system.lstat(f"{place}/one").st_nlink)


# ---- many at once


def race(system: System, place: str, way: Way, count: int, processes: int, *, latency_s: float = 0.0) -> Race:
    """*processes* of this host race for *count* names, one after the other; an operation takes *latency_s*."""
    slot_ns = int(max(SLOT_S, 2 * latency_s) * 1e9)
    contested, tried = f"{place}/contested", [f"n{number:03}" for number in range(count)]
    fill(system, way, contested, tried)

    def prepare(index: int) -> Callable[[int], Tally]:
        racer = Racer(system, way, f"{place}/own{index}", contested, f"racer {index}")
        racer.prepare(tried)

        def run(begin_ns: int) -> Tally:
            racer.run(tried, begin_ns, slot_ns, system.boottime_ns)
            return racer.tally(tried)

        return run

    tallies = side_by_side(Tally, processes, prepare)
    return account(way, tried, tallies, system.listdir(contested))


def locks(system: System, place: str) -> Locks:
    """Whether a lock that one process has keeps another from it."""
    with held(system, place) as kept:
        if kept.flock and kept.record:
            return kept  # neither could be had
        return side_by_side(Locks, 1, lambda _: lambda __: meet(system, place, kept))[0]


@contextlib.contextmanager
def held(system: System, place: str) -> Iterator[Locks]:
    """Hold a lock of each kind on files of *place*; where one cannot be had, the name of the error."""
    with contextlib.ExitStack() as stack:
        errors = {}
        for kind, take in (("flock", system.lock), ("record", system.lock_file)):
            write(system, f"{place}/{kind}", b"locked")
            fd = system.open(f"{place}/{kind}", os.O_RDWR | os.O_CLOEXEC)
            stack.callback(system.close, fd)
            errors[kind] = _taken(take, fd)
        yield Locks(**errors)


def meet(system: System, place: str, kept: Locks) -> Locks:
    """Try the locks that another holds on the files of *place*; *kept* says which it could not take itself."""
    found = {}
    for kind, take, trouble in (("flock", system.lock, kept.flock), ("record", system.lock_file, kept.record)):
        if trouble:
            found[kind] = trouble
            continue
        fd = system.open(f"{place}/{kind}", os.O_RDWR | os.O_CLOEXEC)
        try:
            answer = _taken(take, fd)
        finally:
            system.close(fd)
        found[kind] = {"": "shared", "EAGAIN": "excludes"}.get(answer, answer)
    return Locks(**found)


def _taken(take: Callable[[int], None], fd: int) -> str:
    try:
        take(fd)
    except OSError as error:
        return error_name(error)
    return ""


# ---- one after the other


def sync(system: System, place: str) -> Sync:
    """Whether a file, and a directory with a new name in it, can be made durable."""
    found = {"file": "", "directory": ""}
    fd = system.open(f"{place}/file", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        system.write(fd, b"durable")
        system.fsync(fd)
    except OSError as error:
        unless_full(error)
        found["file"] = error_name(error)
    finally:
        system.close(fd)
    try:
        system.fsync_directory(place)
    except OSError as error:
        found["directory"] = error_name(error)
    return Sync(**found)


def replies(system: System, place: str, count: int) -> AllReplies:
    """
    Make each call *count* times, with nobody beside us: none may fail, and a listing shows what each has done.

    A call that answers an error though it was done has lost its reply, or was answered twice.
    """
    asked = _Asked(system, place)
    files = asked("create", [f"f{number:03}" for number in range(count)], lambda path: write(system, path, b""), "{}")
    files = asked("rename", files, lambda path: system.rename(path, f"{path}.r"), "{}.r")
    asked("link", files, lambda path: system.link(f"{path}.r", f"{path}.l"), "{}.l")
    asked("unlink", files, lambda path: system.unlink(f"{path}.r"), "{}.r", is_gone=True)
    made = asked("mkdir", [f"d{number:03}" for number in range(count)], system.mkdir, "{}")
    asked("rmdir", made, system.rmdir, "{}", is_gone=True)
    return AllReplies(calls=tuple(asked.found))


class _Asked:
    """Calls made in *place* for many names, and what a listing says of them afterwards."""

    def __init__(self, system: System, place: str) -> None:
        self._system, self._place = system, place
        self.found: list[Replies] = []

    def __call__(
        self, call: str, names: Sequence[str], act: Callable[[str], object], sign: str, *, is_gone: bool = False
    ) -> list[str]:
        """Make *call* for each of *names*; those for which it was done: *sign* with the name is there, or *is_gone*."""
        failed, errors = set(), Counter[str]()
        for name in names:
            try:
                act(f"{self._place}/{name}")
            except OSError as error:
                unless_full(error)
                failed.add(name)
                errors[error_name(error)] += 1
        there = set(self._system.listdir(self._place))
        done = {name for name in names if (sign.format(name) in there) is not is_gone}
        self.found.append(
            Replies(
                call=call,
                tried=len(names),
                failed=len(failed),
                happened=len(failed & done),
                unlisted=len(set(names) - failed - done),
                errors=errors,
            )
        )
        return sorted(done)


# ---- events


def events(system: System, place: str) -> Events:
    """Whether a rename into a directory by another process of this host makes an event."""
    inner = make_directory(system, place, "watched")
    with watched(inner) as was_seen:
        if was_seen is None:
            return Events(seen=None)

        def come(_: int) -> Callable[[int], Facts]:
            def act(_: int) -> Facts:
                write(system, f"{place}/new", b"")
                move(system, f"{place}/new", f"{inner}/new")
                return Facts()

            return act

        side_by_side(Facts, 1, come)
        return Events(seen=was_seen(EVENT_S))


@contextlib.contextmanager
def watched(directory: str) -> Iterator[Callable[[float], bool] | None]:
    """Watch *directory*: a function that waits so many seconds and says whether anything came. None: no inotify."""
    with contextlib.ExitStack() as stack:
        was_seen = None
        if inotify_simple is not None:
            with contextlib.suppress(OSError):  # the limits of instances and watches, or a filesystem without them
                inotify = stack.enter_context(inotify_simple.INotify(nonblocking=True))
                flags = inotify_simple.flags
                inotify.add_watch(directory, flags.MOVED_TO | flags.CREATE)
                was_seen = _asking(inotify.fd)
        yield was_seen


def _asking(fd: int) -> Callable[[float], bool]:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return lambda wait_s: bool(poller.poll(wait_s * 1000))
