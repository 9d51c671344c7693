"""
trust - who else may write where a queue keeps its messages, and what that means

A queue is as safe as its directories. That others may put something into incoming/ is what a queue is for; who may
write into the directory above, or where claims lie, can replace what is there, by links that lead elsewhere too. So
each directory is looked at: where anybody else may write, paths are walked without following a link (anchored), and a
pool says so, once; where everybody may, it refuses the queue.

Our own user and root are trusted, and a group that is our user's alone (as many systems give each user one).
Limits: access lists (ACLs) are seen as far as they show in the mode. It is looked when a queue is opened: whoever lets
others in later opens it again, as a pool does that is started again. Who may write may always read, change and remove
messages: no door of ours keeps him from that.
Long because: which door a queue needs, what is said of it, and what keeps it from being made rest on the same looks.
See also: anchored; directory, beside, dirq_url and ddmq (whose places these are).
"""

from __future__ import annotations

import contextlib
import functools
import grp
import os
import pwd
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from workers.anchored import Anchored
from workers.queues.names import shown
from workers.system import System

TOLD_MAX = 10  # directories that one sentence names
PARTS_MAX = 100  # of the directories that a format makes as it goes, the last ones by name stand for all
NO_DIRECTORY = "it is no directory, and there must be one"
HARD_LINKS = "/proc/sys/fs/protected_hardlinks"


@dataclass(frozen=True, slots=True)
class Place:
    """
    A directory of a queue.

    Attributes:
        parts: names of the directories in it that a pool rests on.
        inboxes: those of these, or "." for itself, into which others may be meant to put something.
        is_deep: further directories in it hold messages as well, which are made as it goes.
        umask: with which they are made; None: the process's own.
    """

    path: str
    parts: tuple[str, ...] = ()
    inboxes: tuple[str, ...] = ()
    is_deep: bool = False
    umask: int | None = None


def place_of_dirq(path: str, umask: int | None = None) -> Place:
    """A directory queue, into which its producers write, and its consumers too."""
    return Place(path, inboxes=(".",), is_deep=True, umask=umask)


def places_of_ddmq(root: str, queue: str) -> list[Place]:
    """A queue of a root, likewise."""
    return [Place(root, (queue,), inboxes=(".", queue)), Place(os.path.join(root, queue), ("work",), (".", "work"))]


@dataclass(frozen=True, slots=True)
class Risk:
    """One sentence on one directory; *is_refused*: no pool takes messages there."""

    path: str
    text: str
    is_refused: bool = False

    def __str__(self) -> str:
        return f"{shown(self.path)}: {self.text}"


def guarded(system: System, *places: Place) -> System:
    """The door for what is below *places*: an anchored one, if others may write where that leads astray."""
    if type(system) is not System or not any(map(is_exposed, places)):
        return system
    return Anchored(*(place.path for place in places))


def is_exposed(place: Place) -> bool:
    """Whether anybody else could put a link where *place*, or what it rests on, has a directory, or will have one."""
    uid, umask = os.geteuid(), _umask() if place.umask is None else place.umask
    try:
        own = os.stat(place.path)
    except ValueError:  # no path can be called so
        return False
    except OSError:
        # What is not there is made by us, or by the first who may.
        return umask & 0o022 != 0o022 or _may_be_made(place.path, uid)
    if writers(own, uid) or (place.is_deep and _lets_in(umask, own, uid)) or _is_replaceable(place.path, uid):
        return True
    for path in _parts(place):
        # A link has no mode of its own; where others could have put it, the directory that holds it is exposed.
        with contextlib.suppress(OSError):
            found = os.lstat(path)
            is_open = stat.S_ISDIR(found.st_mode) and writers(found, uid)
            if is_open and os.path.basename(path) not in place.inboxes:
                return True
    return False


def _is_replaceable(path: str, uid: int) -> bool:
    """Whether anybody else could put something else in the place of *path*, or of a directory above it."""
    for above in directories_above(path):
        with contextlib.suppress(OSError):
            if can_rename(os.stat(above), uid):
                return True
    return False


def _may_be_made(path: str, uid: int) -> bool:
    """Whether anybody else could make *path*, which is not there, or a directory above it that is missing."""
    if _is_replaceable(path, uid):
        return True
    for above in Path(os.path.realpath(path)).parents:
        with contextlib.suppress(OSError):
            return bool(writers(os.stat(above), uid))
    return False


def directories_above(path: str) -> Iterator[str]:
    """Each directory above *path*, from the nearest on: as it is named, then as it really is."""
    way = [parent for one in (os.path.abspath(path), os.path.realpath(path)) for parent in Path(one).parents]
    yield from map(str, dict.fromkeys(way))


def is_everybodys_to_rename(mode: int) -> bool:
    """Whether anybody may replace what lies in the directory of that mode, whoever has made it."""
    return bool(mode & stat.S_IWOTH and not mode & stat.S_ISVTX)


def can_rename(found: os.stat_result, uid: int) -> bool:
    """Whether others may rename what user *uid* or root has in the directory of that stat: +t keeps them from that."""
    is_sticky = bool(found.st_mode & stat.S_ISVTX) and found.st_uid in (uid, 0)
    return bool(writers(found, uid)) and not is_sticky


def _lets_in(umask: int, above: os.stat_result, uid: int) -> bool:
    """Whether others may write into what is made with *umask* in the directory of that stat."""
    gid = above.st_gid if above.st_mode & stat.S_ISGID else os.getegid()
    return not umask & 0o002 or (not umask & 0o020 and not _is_private_group(gid, uid))


def risks(places: Sequence[Place], uid: int | None = None) -> list[Risk]:
    """What is to be said of *places*, for a pool of user *uid* (ourselves); nothing of what is not there."""
    who = os.geteuid() if uid is None else uid
    own = {place.path for place in places}
    found = [risk for place in places for risk in _risks_of(place, who, is_top=os.path.dirname(place.path) not in own)]
    if found and _has_unprotected_links():
        text = "fs.protected_hardlinks is 0: who may write here can hand over any file of yours (sysctl sets it to 1)"
        found.append(Risk(found[0].path, text))
    return _gathered(found)


def obstacles(places: Sequence[Place], uid: int | None = None, *, is_made: bool = True) -> list[Risk]:
    """
    What keeps those of *places* that are not there from being made, by a pool of user *uid* (ourselves).

    *is_made*: whether it makes the queue. Nothing of it is refused: who checks may be another user, on another host.
    """
    who = os.geteuid() if uid is None else uid
    own, found = {place.path for place in places}, []
    for place in places:
        try:
            os.stat(place.path)
        except FileNotFoundError:
            parent = os.path.dirname(os.path.abspath(place.path))
            is_queue = bool(place.inboxes)  # and not what lies beside it, which a pool always makes
            if is_queue and not is_made:
                found.append(Risk(place.path, "it is not there, and this pool makes no queue: make it, or mount it"))
            elif parent not in own or os.path.isdir(parent):
                found += _obstacles_in(parent, who, is_told=parent in own)
        except (OSError, ValueError) as error:
            # What is refused by risks() needs no second sentence.
            if not (isinstance(error, NotADirectoryError) or os.path.islink(place.path)):
                why = getattr(error, "strerror", None) or "no path can be called so"
                found.append(Risk(place.path, f"it cannot be looked at: {why}"))
    return _gathered(found)


def _obstacles_in(parent: str, uid: int, *, is_told: bool) -> Iterator[Risk]:
    """*is_told*: what others may do there."""
    try:
        found = os.stat(parent)
    except FileNotFoundError:
        text = "it does not exist, and a pool makes only what it needs in it: make it, or mount what belongs there"
        yield Risk(parent, text)
    except OSError as error:
        yield Risk(parent, f"it cannot be looked at: {error.strerror}")
    else:
        if not _may_make_in(parent, found, uid):
            mode = f"(mode {stat.S_IMODE(found.st_mode):04o})"
            text = f"user {_name_of_user(uid)} may not make what is missing in it {mode}: make it, or let that user"
            yield Risk(parent, text)
        elif not is_told:
            yield from _risk_of_parent(parent)


def _may_make_in(path: str, found: os.stat_result, uid: int) -> bool:
    """Whether user *uid* may make something in the directory *path*; of another than we are its mode says so."""
    if uid == os.geteuid():
        return os.access(path, os.W_OK | os.X_OK, effective_ids=True)
    if uid == 0:
        return True
    try:
        user = pwd.getpwuid(uid)
        groups = os.getgrouplist(user.pw_name, user.pw_gid)
    except (KeyError, OSError):
        groups = []
    shift = 6 if found.st_uid == uid else 3 if found.st_gid in groups else 0
    return (found.st_mode >> shift) & 0o3 == 0o3


def _gathered(found: Sequence[Risk]) -> list[Risk]:
    """One sentence for all directories of which the same is to be said."""
    paths: dict[Risk, list[str]] = {}
    for risk in found:
        paths.setdefault(replace(risk, path=""), []).append(risk.path)
    return [replace(risk, path=where[0], text=risk.text + _and_of(where)) for risk, where in paths.items()]


def _and_of(paths: Sequence[str]) -> str:
    first, *others = dict.fromkeys(paths)
    told = [shown(path.removeprefix(f"{first}/")) for path in others[:TOLD_MAX]]
    told += [f"{len(others) - TOLD_MAX} more"] if len(others) > TOLD_MAX else []
    return f"; the same holds for {', '.join(told)}" if told else ""


def _risks_of(place: Place, uid: int, *, is_top: bool) -> Iterator[Risk]:
    try:
        own = os.stat(place.path)
    except NotADirectoryError:
        yield Risk(place.path, "something above it is no directory", is_refused=True)
        return
    except (OSError, ValueError):
        if os.path.islink(place.path):
            yield Risk(place.path, "it is a symbolic link that leads nowhere", is_refused=True)
        return
    if not stat.S_ISDIR(own.st_mode):
        yield Risk(place.path, NO_DIRECTORY, is_refused=True)
        return
    if is_top:
        yield from _risk_of_parent(os.path.dirname(place.path))
    yield from _risk_of(place.path, own, uid, is_inbox="." in place.inboxes)
    for path in _parts(place):
        try:
            found = os.lstat(path)
        except OSError:
            continue
        if stat.S_ISLNK(found.st_mode):
            text = "it is a symbolic link, and a pool follows none there: make it a directory of the queue"
            yield Risk(path, text, is_refused=True)
        elif stat.S_ISDIR(found.st_mode):
            if found.st_dev != own.st_dev:
                text = f"it is on another filesystem than {shown(place.path)}, so nothing can be renamed into it"
                yield Risk(path, text, is_refused=True)
            is_inbox = os.path.basename(path) in place.inboxes or (place.is_deep and "." in place.inboxes)
            yield from _risk_of(path, found, uid, is_inbox=is_inbox)
        else:
            yield Risk(path, NO_DIRECTORY, is_refused=True)


def _risk_of_parent(path: str) -> Iterator[Risk]:
    try:
        found = os.stat(path)
    except OSError:
        return
    if is_everybodys_to_rename(found.st_mode):
        # Not refused: in a container a volume is everybody's, and there is nobody else.
        text = "everybody may write into it, and so replace the queue in it: chmod +t or o-w keeps them from that"
        yield Risk(path, text)


def _risk_of(path: str, found: os.stat_result, uid: int, *, is_inbox: bool) -> Iterator[Risk]:
    who = writers(found, uid)
    mode = f"(mode {stat.S_IMODE(found.st_mode):04o})"
    if not who or (is_inbox and not can_rename(found, uid)):
        return
    is_everybodys, is_another_users = found.st_mode & 0o002, found.st_uid not in (uid, 0)
    if is_everybodys and not is_inbox:
        yield Risk(path, f"{who} {mode}, and so remove and replace what lies there: chmod o-w it", is_refused=True)
    elif is_everybodys and not is_another_users:
        # In a sticky directory only root, its owner and the file's may claim: a pool of anybody else would stand still.
        first = "" if uid in (found.st_uid, 0) else "chown it to the pool's user, then "
        yield Risk(path, f"{who} {mode}, and so remove what others have put: {first}chmod +t keeps them from that")
    else:
        do = "run as that user, or chown it," if is_another_users else "chmod g-w it"
        yield Risk(path, f"{who} {mode}, who can remove and replace what lies there: {do} unless that is meant")


def writers(found: os.stat_result, uid: int) -> str:
    """Who but user *uid* and root may write into the directory of that stat: the beginning of a sentence, or ""."""
    if found.st_uid not in (uid, 0):
        return f"it belongs to another user ({_name_of_user(found.st_uid)})"
    if found.st_mode & 0o002:
        return "everybody may write into it"
    if found.st_mode & 0o020 and not _is_private_group(found.st_gid, uid):
        return f"group {_name_of_group(found.st_gid)} may write into it"
    return ""


def _parts(place: Place) -> list[str]:
    parts = [os.path.join(place.path, part) for part in place.parts]
    if place.is_deep:
        try:
            with os.scandir(place.path) as entries:
                names = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
        except OSError:
            names = []
        parts += [os.path.join(place.path, name) for name in names[-PARTS_MAX:]]
    return parts


def _umask() -> int:
    """Of this process, whose threads share it, so that it is not asked for by setting it."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            return next((int(line.split()[1], 8) for line in file if line.startswith("Umask:")), 0)
    except OSError:
        return 0


def _has_unprotected_links() -> bool:
    try:
        with open(HARD_LINKS, encoding="ascii") as file:
            return file.read().strip() == "0"
    except OSError:
        return False


@functools.cache
def _is_private_group(gid: int, uid: int) -> bool:
    """Whether group *gid* is user *uid*'s alone, by its name and its members."""
    try:
        user, group = pwd.getpwuid(uid), grp.getgrgid(gid)
    except (KeyError, OSError):
        return False
    return user.pw_gid == gid and group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}


def _name_of_user(uid: int) -> str:
    try:
        return shown(pwd.getpwuid(uid).pw_name)
    except (KeyError, OSError):
        return f"uid {uid}"


def _name_of_group(gid: int) -> str:
    try:
        return shown(grp.getgrgid(gid).gr_name)
    except (KeyError, OSError):
        return str(gid)
