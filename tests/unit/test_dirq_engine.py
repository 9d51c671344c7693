"""
test_dirq_engine - the verbs that a pool uses and the published API does not show, for both kinds

The exhaustive orders of several actors, and a failure of each call, are in tests/sim.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.dirq_twins import Kernel, next_tick
from workers.dirq import QueueError
from workers.dirq.elements import Elements, Lock, UnreadableError, older_than
from workers.dirq.schema_elements import SchemaElements
from workers.dirq.simple_elements import SimpleElements
from workers.system import SYSTEM

KINDS = {"simple": SimpleElements, "schema": SchemaElements}
BODY = b"data"
GONE = "6553f100/6553f1230a1b2c"


class Bench:
    """One queue of either kind, on a kernel of its own."""

    def __init__(self, kind: str, place: Path) -> None:
        self.kind, self.place, self.kernel = kind, place / "queue", Kernel()
        self.elements: Elements[Any] = KINDS[kind](str(self.place), system=self.kernel)
        self.elements.make()
        self.another: Elements[Any] = KINDS[kind](str(self.place))

    def add(self) -> str:
        return self.elements.add(BODY if self.kind == "simple" else {"body": BODY, "header": b""})

    def body(self, path: Path) -> bytes:
        return (path if self.kind == "simple" else path / "body").read_bytes()

    def locked(self) -> str:
        """An element that is locked."""
        name = self.add()
        assert self.elements.lock(name) is not None
        return name

    def left(self) -> list[str]:
        """What is in the queue."""
        found = [str(path.relative_to(self.place)) for path in self.place.rglob("*") if path.parent != self.place]
        return sorted(found)

    def lose_reply(self, call: str, code: int) -> None:
        """The next *call* is done, and its repetition says *code*: a network filesystem's reply was lost."""
        self.kernel.network = "nfs"
        real = getattr(os, call)

        def lost(*arguments: Any) -> None:
            self.kernel.replaced.clear()
            real(*arguments)
            raise OSError(code, os.strerror(code), *arguments[:1])

        self.kernel.replaced[call] = lost

    def fail(self, call: str, code: int) -> None:
        """The next *call* is not done."""

        def refuse(*arguments: Any) -> None:
            self.kernel.replaced.clear()
            raise OSError(code, os.strerror(code))

        self.kernel.replaced[call] = refuse


@pytest.fixture(name="bench", params=list(KINDS))
def _bench(request: pytest.FixtureRequest, tmp_path: Path) -> Bench:
    return Bench(request.param, tmp_path)


@pytest.fixture(name="simple")
def _simple(tmp_path: Path) -> Bench:
    return Bench("simple", tmp_path)


@pytest.fixture(name="schema")
def _schema(tmp_path: Path) -> Bench:
    return Bench("schema", tmp_path)


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


# ---- locking and opening at once


def test_an_element_is_locked_and_opened_at_once(bench: Bench) -> None:
    name = bench.add()
    found = bench.elements.open_locked(name)
    assert found is not None
    lock, fd, seen = found
    assert os.read(fd, 100) == BODY
    assert (seen.st_size, seen.st_ino) == (len(BODY), os.fstat(fd).st_ino)
    os.close(fd)
    assert bench.elements.is_held(lock)
    assert lock.since_ns > 0
    assert Path(bench.elements.body_path(name)).read_bytes() == BODY
    assert Path(bench.elements.lock_path(name)).exists()
    assert bench.another.found_lock(name) == lock._replace(since_ns=0)
    assert bench.another.open_locked(name) is None
    assert bench.another.lock(name) is None
    assert bench.elements.open_locked(GONE) is None


def test_a_body_that_cannot_be_opened_ever_is_given_with_its_lock(bench: Bench) -> None:
    """A link to nowhere would be a message that every worker takes and none can end."""
    name = bench.add()
    body = Path(bench.elements.element_path(name), "body" if bench.kind == "schema" else "")
    body.unlink()
    body.symlink_to("/etc/hostname")
    with pytest.raises(UnreadableError) as caught:
        bench.elements.open_locked(name)
    assert caught.value.errno == errno.ELOOP
    assert bench.elements.is_held(caught.value.lock)
    assert bench.elements.remove(name)


def test_who_removes_the_body_that_was_given_does_not_unlock(bench: Bench) -> None:
    """A handler may tidy up after itself; nobody else is to begin with what it has ended."""
    name = bench.locked()
    Path(bench.elements.body_path(name)).unlink()
    assert bench.elements.found_lock(name) is not None
    assert bench.another.open_locked(name) is None


def test_an_element_without_its_body_is_given_with_its_lock(schema: Bench) -> None:
    name = schema.add()
    (schema.place / name / "body").unlink()
    with pytest.raises(UnreadableError) as caught:
        schema.elements.open_locked(name)
    assert caught.value.errno == errno.ENOENT
    assert schema.elements.is_held(caught.value.lock)


@pytest.mark.parametrize("call", ["open", "fstat", "lstat", "utime", "link", "mkdir"])
@pytest.mark.parametrize("verb", ["lock", "open_locked"])
def test_after_an_error_nothing_is_locked_and_nothing_is_open(bench: Bench, verb: str, call: str) -> None:
    name = bench.add()
    before = open_fds()
    bench.fail(call, errno.EIO)
    try:
        found = getattr(bench.elements, verb)(name)
    except OSError as error:
        assert error.errno == errno.EIO  # noqa: PT017 - not every verb makes every call
        assert bench.another.found_lock(name) is None
        assert open_fds() == before
    else:
        assert found is not None
        if verb == "open_locked":
            os.close(found[1])


def test_a_lock_of_another_survives_our_error(schema: Bench) -> None:
    """What fails is our mkdir, so the directory that is there is not ours."""
    name = schema.add()
    assert schema.another.lock(name) is not None
    schema.fail("mkdir", errno.EACCES)
    with pytest.raises(PermissionError):
        schema.elements.lock(name)
    assert schema.another.found_lock(name) is not None


def test_an_element_that_is_no_file_cannot_be_locked(simple: Bench) -> None:
    name = simple.add()
    path = simple.place / name
    path.unlink()
    path.mkdir()
    with pytest.raises(PermissionError):
        simple.elements.lock(name)
    assert simple.elements.found_lock(name) is None


@pytest.mark.parametrize("verb", ["lock", "open_locked"])
def test_what_is_locked_is_not_touched_by_who_tries(simple: Bench, verb: str) -> None:
    """Or who looks often would keep the lock of a dead holder young for ever."""
    name = simple.locked()
    os.utime(simple.place / name, (1, 1))
    assert getattr(simple.another, verb)(name) is None
    assert (simple.place / name).stat().st_mtime == 1


def test_what_was_not_locked_in_a_listing_is_locked_without_another_look(simple: Bench) -> None:
    name = simple.add()
    assert simple.elements.names(name[:8]) == [name]
    simple.kernel.calls.clear()
    assert simple.elements.lock(name) is not None
    assert [call[0] for call in simple.kernel.calls] == ["utime", "link", "lstat"]


def test_a_listing_is_gone_by_once_and_not_for_long(simple: Bench) -> None:
    """Each touch of what another has locked since would make that one's lock look younger than it is."""
    names = [simple.add(), simple.add()]
    simple.elements.names(names[0][:8])
    for name in names:
        assert simple.another.lock(name) is not None
    assert simple.elements.lock(names[0]) is None
    os.utime(simple.place / names[0], (1, 1))
    assert simple.elements.lock(names[0]) is None
    assert (simple.place / names[0]).stat().st_mtime == 1
    simple.kernel.moved_ns = 10**9
    for name in names:
        os.utime(simple.place / name, (1, 1))
        assert simple.elements.lock(name) is None
        assert (simple.place / name).stat().st_mtime == 1
    simple.elements.names(names[0][:8])
    assert simple.elements.lock(names[0]) is None
    assert (simple.place / names[0]).stat().st_mtime == 1


def test_what_is_no_file_is_not_left_locked_by_who_went_by_a_listing(simple: Bench) -> None:
    name = simple.add()
    (simple.place / name).unlink()
    (simple.place / name).symlink_to("/etc/hostname")
    simple.elements.names(name[:8])
    with pytest.raises(OSError, match="no regular file"):
        simple.elements.lock(name)
    assert simple.elements.found_lock(name) is None


def test_a_second_name_that_is_no_lock_is_no_hindrance(simple: Bench) -> None:
    """A writer that was killed between its link and its unlink leaves one."""
    name = simple.add()
    os.link(simple.place / name, simple.place / f"{GONE[:8]}.tmp")
    assert simple.elements.lock(name) is not None


def test_a_filesystem_need_not_count_hard_links(simple: Bench) -> None:
    def fstat(what: Any) -> os.stat_result:
        found = os.stat(what)
        return os.stat_result((*found[:3], 1, *found[4:10]), {"st_mtime_ns": found.st_mtime_ns})

    simple.kernel.replaced.update(fstat=fstat, lstat=fstat)
    assert simple.elements.lock(simple.add()) is not None
    found = simple.elements.open_locked(simple.add())
    assert found is not None
    os.close(found[1])


# ---- what waits


def test_what_waits_is_told_from_what_is_locked_and_what_is_odd(bench: Bench) -> None:
    names = [bench.add() for _ in range(3)]
    directory = names[0][:8]
    assert bench.elements.lock(names[1]) is not None
    fifo, link, stray = f"{directory}/6553f1230a1b2c", f"{directory}/6553f1230a1b2d", f"{directory}/stray"
    os.mkfifo(bench.place / fifo)
    (bench.place / link).symlink_to(names[0][9:])
    (bench.place / stray).touch()
    odd: set[str] = set()
    found = bench.elements.waiting(directory, odd)
    assert found == ([names[0], names[2]] if bench.elements.lists_locks else names)
    assert odd == {fifo, link}
    assert bench.elements.names(directory) == sorted([fifo, link, *names])
    assert bench.elements.waiting(GONE[:8], odd) == bench.elements.names(GONE[:8]) == []
    assert bench.elements.directories() == [directory]


def test_a_queue_that_cannot_be_listed_is_an_error(bench: Bench) -> None:
    directory = bench.add()[:8]
    bench.fail("scandir", errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        bench.elements.waiting(directory, set())
    bench.fail("listdir", errno.EACCES)
    with pytest.raises(PermissionError):
        bench.elements.names(directory)


# ---- links that lead out of the queue


class Outside:
    """A queue like that of *bench*, with an old, locked element in it: what a link could lead to."""

    def __init__(self, bench: Bench, place: Path) -> None:
        self.bench = Bench(bench.kind, place / "outside")
        self.name = self.bench.locked()
        self.element = self.bench.place / self.name
        os.utime(self.element, (1, 1))
        self.before = self.found()

    def found(self) -> list[tuple[str, int, int, int]]:
        """Everything in it, with what a touch, a lock or a removal would change."""
        paths = sorted(self.bench.place.rglob("*"))
        return [
            (str(path), found.st_mode, found.st_mtime_ns, found.st_nlink) for path in paths if (found := path.lstat())
        ]

    def link(self, path: Path, target: Path) -> Path:
        """An old link at *path*."""
        path.symlink_to(target)
        os.utime(path, (1, 1), follow_symlinks=False)
        return path


def test_a_link_in_the_place_of_an_intermediate_directory_is_none(bench: Bench, tmp_path: Path) -> None:
    outside, name = Outside(bench, tmp_path), bench.add()
    link = outside.link(bench.place / "00000003", outside.element.parent)
    empty = tmp_path / "empty"
    empty.mkdir()
    outside.link(bench.place / "00000004", empty)
    assert bench.elements.directories() == [name[:8]]
    assert bench.elements.count() == 1
    now_ns = SYSTEM.wall_ns()
    swept = bench.elements.sweep(now_ns, now_ns)
    assert (swept.locks, swept.errors, swept.directories) == ([], [], 0)
    assert link.is_symlink()
    assert empty.exists()
    assert outside.found() == outside.before


def test_a_link_in_the_place_of_an_element_is_neither_locked_nor_removed_nor_swept(
    bench: Bench, tmp_path: Path
) -> None:
    outside, directory = Outside(bench, tmp_path), bench.add()[:8]
    name = f"{directory}/6553f1230a1b2c"
    link = outside.link(bench.place / name, outside.element)
    with pytest.raises(OSError, match="is no") as caught:
        bench.elements.lock(name)
    assert caught.value.errno == (errno.EINVAL if bench.kind == "simple" else errno.ENOTDIR)
    now_ns = SYSTEM.wall_ns()
    swept = bench.elements.sweep(now_ns, now_ns)
    assert (swept.locks, swept.errors) == ([], [])
    assert link.is_symlink()
    if bench.kind == "simple":
        assert bench.elements.remove(name), "of a file that is the link itself, as it is of one that cannot be read"
    else:
        with pytest.raises(NotADirectoryError):
            bench.elements.remove(name)
        assert link.is_symlink()
    assert outside.found() == outside.before


def test_a_link_among_what_is_left_over_is_not_followed(bench: Bench, tmp_path: Path) -> None:
    outside, directory = Outside(bench, tmp_path), bench.add()[:8]
    if bench.kind == "simple":
        for file in ("6553f1230a1b2c.tmp", "6553f1230a1b2c.lck", "6553f1230a1b2c.0123abcd.tmp"):
            outside.link(bench.place / directory / file, outside.element)
    else:
        for place in ("temporary", "obsolete"):
            outside.link(bench.place / place / "6553f1230a1b2c", outside.element)
        outside.link(bench.place / directory / "6553f1230a1b2c.0123abcd.tmp", outside.element)
        parts = bench.place / "temporary" / "6553f1230a1b2d"
        parts.mkdir()
        for part in ("body", "locked"):
            outside.link(parts / part, outside.element / part)
        os.utime(parts, (1, 1))
    now_ns = SYSTEM.wall_ns()
    swept = bench.elements.sweep(now_ns, now_ns)
    assert swept.errors == []
    assert outside.found() == outside.before


@pytest.mark.parametrize("call", ["open", "chmod"])
def test_a_link_that_comes_right_after_a_directory_was_made_opens_nothing_to_others(tmp_path: Path, call: str) -> None:
    kernel, elsewhere, made = Kernel(), tmp_path / "elsewhere", tmp_path / "queue" / "made"
    elsewhere.mkdir()
    elsewhere.chmod(0o700)
    elements = SchemaElements(str(tmp_path / "queue"), umask=0, system=kernel)
    elements.make()

    def replace() -> None:
        del kernel.hooks[call]
        made.rmdir()
        made.symlink_to(elsewhere)

    kernel.hooks[call] = replace
    before = os.umask(0o022)
    try:
        elements.make_directory(str(made))
    except OSError as error:
        assert error.errno in (errno.ELOOP, errno.ENOTDIR)  # noqa: PT017 - only where it has not been opened yet
    finally:
        os.umask(before)
    assert made.is_symlink()
    assert elsewhere.stat().st_mode & 0o777 == 0o700


# ---- out and in again


def test_an_element_is_taken_out_and_comes_back_under_its_name(bench: Bench, tmp_path: Path) -> None:
    name, away = bench.locked(), tmp_path / "away"
    before = bench.left()
    assert bench.elements.take_out(name, str(away))
    assert bench.body(away) == BODY
    assert bench.elements.count() == 0
    assert bench.elements.found_lock(name) is None
    assert not bench.elements.take_out(name, str(tmp_path / "again"))
    assert bench.elements.put_in(str(away), name) == name
    assert not away.exists()
    assert bench.elements.lock(name) is not None
    assert bench.left() == before
    assert bench.elements.put_in(str(away), name) is None


def test_a_target_that_cannot_be_is_no_missing_element(bench: Bench, tmp_path: Path) -> None:
    name = bench.locked()
    with pytest.raises(FileNotFoundError):
        bench.elements.take_out(name, str(tmp_path / "missing" / "away"))
    assert bench.elements.found_lock(name) is not None


def test_it_can_be_tried_whether_elements_can_be_moved_somewhere(bench: Bench, tmp_path: Path) -> None:
    bench.add()
    before, target = bench.left(), tmp_path / "moved"
    bench.kernel.calls.clear()
    bench.elements.check_moves(str(target))
    assert [call[2] for call in bench.kernel.calls if call[0] == "rename"] == [str(target)]
    assert bench.left() == before
    assert not target.exists()
    bench.fail("rename", errno.EXDEV)
    with pytest.raises(OSError, match="cross-device"):
        bench.elements.check_moves(str(target))
    with pytest.raises(FileNotFoundError):
        bench.elements.check_moves(str(tmp_path / "missing" / "moved"))
    assert bench.left() == before


def test_check_moves_is_tried_again_when_its_probe_is_purged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the original's purge does with all that is in temporary/."""
    elements = SchemaElements(str(tmp_path / "queue"))
    elements.make()
    make, made = elements._make_in, []

    def make_and_lose(place: str) -> str:
        made.append(make(place))
        if len(made) < 3:
            os.rmdir(made[-1])
        return made[-1]

    monkeypatch.setattr(elements, "_make_in", make_and_lose)
    elements.check_moves(str(tmp_path / "moved"))
    assert len(made) == 3
    assert os.listdir(tmp_path / "queue" / "temporary") == []


def test_an_element_comes_back_into_a_directory_that_was_purged(bench: Bench, tmp_path: Path) -> None:
    name, away = bench.locked(), tmp_path / "away"
    assert bench.elements.take_out(name, str(away))
    (bench.place / name[:8]).rmdir()
    assert bench.elements.put_in(str(away), name) == name
    assert bench.body(bench.place / name) == BODY


@pytest.mark.parametrize("has_renameat2", [True, False])
def test_an_element_that_comes_back_replaces_none(bench: Bench, tmp_path: Path, *, has_renameat2: bool) -> None:
    name, away = bench.locked(), tmp_path / "away"
    assert bench.elements.take_out(name, str(away))
    (bench.place / name).symlink_to("somebody else's") if bench.kind == "simple" else _occupy(bench.place / name)
    if not has_renameat2:

        def missing(*_: Any) -> None:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

        bench.kernel.replaced["rename_noreplace"] = missing
    fresh = bench.elements.put_in(str(away), name)
    assert fresh is not None
    assert fresh != name
    assert bench.body(bench.place / fresh) == BODY
    assert not away.exists()
    assert os.path.lexists(bench.place / name)


def _occupy(path: Path) -> None:
    path.mkdir()
    (path / "body").touch()


def test_a_lock_that_is_still_to_be_taken_away_gives_the_element_another_name(simple: Bench, tmp_path: Path) -> None:
    """Who took the element out was stopped before it unlinked the lock; what it unlinks later must be nobody's."""
    name, away = simple.locked(), tmp_path / "away"
    os.rename(simple.place / name, away)
    fresh = simple.elements.put_in(str(away), name)
    assert fresh is not None
    assert fresh != name
    assert simple.elements.lock(fresh) is not None
    assert simple.elements.found_lock(name) is not None


def test_a_locked_element_comes_back_unlocked(schema: Bench, tmp_path: Path) -> None:
    """Who took it out was killed before it removed the lock."""
    name, away = schema.locked(), tmp_path / "away"
    os.rename(schema.place / name, away)
    assert schema.elements.put_in(str(away), name) == name
    assert schema.elements.lock(name) is not None


# ---- breaking


def test_a_lock_is_broken_when_it_is_stale_and_only_then(bench: Bench) -> None:
    name = bench.locked()
    seen: list[Lock] = []

    def judge(is_stale: bool) -> Callable[[Lock], bool]:
        return lambda lock: seen.append(lock) or is_stale  # type: ignore[func-returns-value]

    assert not bench.elements.break_lock(name, judge(False))  # noqa: FBT003
    assert bench.elements.found_lock(name) is not None
    os.utime(bench.place / name, (1, 1))
    assert bench.elements.break_lock(name, judge(True))  # noqa: FBT003
    assert {lock.at_ns for lock in seen[1:]} == {10**9}
    assert bench.elements.found_lock(name) is None
    assert not bench.elements.break_lock(name, judge(True))  # noqa: FBT003
    assert not list(bench.place.rglob("*.tmp"))


def test_of_two_that_break_a_lock_one_is_told_so(bench: Bench) -> None:
    name = bench.locked()
    told = []
    bench.kernel.hooks["rename"] = lambda: told.append(bench.another.break_lock(name, lambda _: True))
    told.append(bench.elements.break_lock(name, lambda _: True))
    assert sorted(told) == [False, True]


def test_a_lock_in_a_directory_of_another_user_is_broken_without_moving_it(schema: Bench) -> None:
    """Only who may write to a directory may move it elsewhere."""
    name = schema.locked()
    schema.fail("rename", errno.EACCES)
    assert schema.elements.break_lock(name, lambda _: True)
    assert schema.elements.found_lock(name) is None


# ---- sweeping


def test_a_sweep_takes_away_what_is_left_over_and_old(bench: Bench) -> None:
    names = [bench.locked() for _ in range(3)]
    old, young, waiting = names[0], names[1], bench.add()
    os.utime(bench.place / old, (1, 1))
    os.utime(bench.place / waiting, (1, 1))
    directory = bench.place / waiting[:8]
    place = directory if bench.kind == "simple" else bench.place / "temporary"
    for name, age in (("6553f1230a1b2c", 1), ("6553f1230a1b2d", 2**31)):
        path = place / (f"{name}.tmp" if bench.kind == "simple" else name)
        path.touch() if bench.kind == "simple" else _occupy(path)
        os.utime(path, (age, age))
    aside = directory / "6553f1230a1b2e.0123abcd.tmp"
    aside.touch() if bench.kind == "simple" else aside.mkdir()
    os.utime(aside, (1, 1))
    (bench.place / "00000000").mkdir(exist_ok=True)
    limit_ns = SYSTEM.wall_ns() - 300 * 10**9
    swept = bench.elements.sweep(limit_ns, limit_ns)
    assert swept.locks == [old]
    assert swept.temporary == 2 if bench.kind == "simple" else 1
    assert swept.directories == (1 if bench.kind == "simple" else 0)
    assert bench.elements.found_lock(young) is not None
    assert bench.elements.count() == 4
    assert len(list(place.glob("6553f*"))) == 1
    assert not aside.exists()
    assert bench.elements.sweep(None, None).locks == []


def test_a_sweep_takes_away_a_lock_without_its_element(simple: Bench) -> None:
    """The remover was killed between its two calls."""
    name = simple.locked()
    (simple.place / name).unlink()
    lock = simple.place / f"{name}.lck"
    simple.elements.sweep(SYSTEM.wall_ns() - 10**9, SYSTEM.wall_ns() - 10**9)
    assert lock.exists()
    os.utime(lock, (1, 1))
    simple.elements.sweep(SYSTEM.wall_ns(), None)
    assert lock.exists()
    assert simple.elements.sweep(None, SYSTEM.wall_ns()).temporary == 1
    assert not lock.exists()


def test_a_sweep_finishes_removals_that_were_killed(schema: Bench) -> None:
    obsolete = schema.place / "obsolete" / "6553f1230a1b2c"
    obsolete.mkdir()
    (obsolete / "body").touch()
    (obsolete / "locked").mkdir()
    os.utime(obsolete, (1, 1))
    assert schema.elements.sweep(SYSTEM.wall_ns() - 10**9, None).temporary == 1
    assert not obsolete.exists()


def test_a_sweep_goes_on_after_an_error_and_tells_it_at_the_end(bench: Bench) -> None:
    names = [bench.locked() for _ in range(3)]
    for name in names:
        os.utime(bench.place / name, (1, 1))
    bench.fail("rename", errno.EIO)
    swept = bench.elements.sweep(None, SYSTEM.wall_ns() - 10**9)
    assert [error.errno for error in swept.errors] == [errno.EIO]
    assert swept.locks == names[1:], "what was broken can be locked again, and its broken locks are to be told"
    assert [bench.another.found_lock(name) is None for name in names] == [False, True, True]


@pytest.mark.parametrize("place", ["temporary", "obsolete", "00000000"])
def test_a_directory_that_cannot_be_listed_keeps_no_other_from_being_swept(schema: Bench, place: str) -> None:
    (schema.place / "00000000").mkdir()
    (schema.place / "00000001").mkdir()
    name = schema.locked()
    os.utime(schema.place / name, (1, 1))

    def refuse(path: str) -> list[str]:
        if path == str(schema.place / place):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return os.listdir(path)

    schema.kernel.replaced["listdir"] = refuse
    limit_ns = SYSTEM.wall_ns() - 10**9
    swept = schema.elements.sweep(limit_ns, limit_ns)
    assert [error.errno for error in swept.errors] == [errno.EACCES]
    assert swept.locks == [name]


# ---- a network filesystem


@pytest.mark.parametrize("call", ["rename", "unlink"])
def test_a_removal_whose_reply_was_lost_is_a_removal(bench: Bench, call: str) -> None:
    name = bench.locked()
    bench.lose_reply(call, errno.ENOENT)
    assert bench.elements.remove(name)
    assert bench.elements.count() == 0
    assert bench.left() in ([], [name[:8]])
    assert not bench.elements.remove(GONE)


def test_a_removal_by_another_is_not_taken_for_ours_whose_reply_was_lost(bench: Bench) -> None:
    """On a network filesystem, with our lock still there: a holder whose lock had been broken was late."""
    bench.kernel.network = "nfs"
    name = bench.locked()
    os.rename(bench.place / name, bench.place.parent / "settled")
    assert not bench.elements.remove(name)


def test_an_add_whose_reply_was_lost_adds_once(bench: Bench) -> None:
    bench.add()
    bench.lose_reply(
        "link" if bench.kind == "simple" else "rename", errno.EEXIST if bench.kind == "simple" else errno.ENOENT
    )
    name = bench.add()
    assert bench.elements.count() == 2
    assert bench.body(bench.place / name) == BODY
    assert not list(bench.place.rglob("*.tmp"))


@pytest.mark.parametrize("call", ["lstat", "utime", "link", "open", "mkdir"])
def test_what_a_network_filesystem_calls_stale_is_gone(bench: Bench, call: str) -> None:
    """Its client knew the name still, and asked for the file: another host has ended it. That is a lost race."""
    name = bench.add()
    is_used = call in (("lstat", "utime", "link", "open") if bench.kind == "simple" else ("mkdir", "lstat", "open"))
    real = getattr(SYSTEM, call)

    def stale(path: str, *more: Any) -> Any:
        if name in path:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), path)
        return real(path, *more)

    bench.kernel.network = "nfs"
    bench.kernel.replaced[call] = stale
    assert (bench.elements.open_locked(name) is None) == is_used


class ByHandle(Kernel):
    """A client of a network filesystem that knows an old name, and acts on what was moved from there to *away*."""

    def __init__(self, old: Path, away: Path) -> None:
        super().__init__()
        self.network = "nfs"

        def acting(call: str) -> Callable[..., Any]:
            def act(path: str, *more: Any) -> Any:
                is_that = Path(path) == old or (away.is_dir() and old in Path(path).parents)
                return getattr(SYSTEM, call)(path.replace(str(old), str(away)) if is_that else path, *more)

            return act

        self.replaced.update({call: acting(call) for call in ("lstat", "utime", "link", "open", "mkdir")})


def test_what_is_taken_out_stays_locked_on_a_network(bench: Bench, tmp_path: Path) -> None:
    """Until it is back: a host that still knows its name would lock it where it lies, and handle it at once."""
    bench.kernel.network = "nfs"
    name, away = bench.locked(), tmp_path / "away"
    assert bench.elements.take_out(name, str(away))
    other = KINDS[bench.kind](str(bench.place), system=ByHandle(bench.place / name, away))
    assert other.open_locked(name) is None
    assert other.lock(name) is None
    assert bench.elements.put_in(str(away), name) == name
    found = bench.another.open_locked(name)
    assert found is not None
    os.close(found[1])


def test_a_lock_that_was_broken_and_taken_again_before_it_is_taken_away_stays(tmp_path: Path) -> None:
    bench = Bench("simple", tmp_path)
    bench.kernel.network = "nfs"
    name, away = bench.locked(), tmp_path / "away"
    assert bench.elements.take_out(name, str(away))
    os.utime(away, (1000, 1000))
    locked = []

    def meanwhile() -> None:
        if (bench.place / name).exists() and not locked:
            bench.another.break_lock(name, lambda lock: lock.at_ns < 2000 * 10**9)
            locked.append(bench.another.lock(name))

    for call in ("lstat", "rename"):
        bench.kernel.hooks[call] = meanwhile
    assert bench.elements.put_in(str(away), name) == name
    assert locked[0] is not None
    assert bench.another.is_held(locked[0])


def test_a_move_whose_reply_was_lost_is_a_move(bench: Bench, tmp_path: Path) -> None:
    name, away = bench.locked(), tmp_path / "away"
    bench.lose_reply("rename", errno.ENOENT)
    assert bench.elements.take_out(name, str(away))

    def lost(source: str, target: str) -> None:
        os.rename(source, target)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), source)

    bench.kernel.replaced["rename_noreplace"] = lost
    assert bench.elements.put_in(str(away), name) == name
    assert bench.elements.count() == 1


def test_a_lock_whose_reply_was_lost_is_not_believed(bench: Bench) -> None:
    """It may be another's, and gets stale: never two holders."""
    name = bench.add()
    bench.lose_reply("link" if bench.kind == "simple" else "mkdir", errno.EEXIST)
    assert bench.elements.lock(name) is None
    assert bench.elements.found_lock(name) is not None


def test_now_is_asked_of_the_filesystem_where_it_has_a_clock_of_its_own(bench: Bench) -> None:
    bench.add()
    bench.kernel.moved_ns = 3600 * 10**9
    assert bench.elements.filesystem_now_ns() - SYSTEM.wall_ns() > 3000 * 10**9
    bench.kernel.network, bench.elements._is_network = "nfs", None
    before = bench.left()
    assert abs(bench.elements.filesystem_now_ns() - SYSTEM.wall_ns()) < 60 * 10**9
    assert bench.left()[: len(before)] == before
    assert not list(bench.place.rglob("*.tmp"))


# ---- where elements go


def test_the_directory_for_elements_is_looked_up_once_a_second(schema: Bench) -> None:
    def listings() -> int:
        return schema.kernel.calls.count(("scandir", str(schema.place)))

    for _ in range(5):
        schema.add()
    assert listings() <= 2
    schema.kernel.calls.clear()
    (schema.place / "00000007").mkdir()
    schema.kernel.moved_ns = 2 * 10**9
    assert schema.add()[:8] == "00000007"
    assert listings() == 1


def test_a_directory_that_is_gone_is_looked_up_at_once(schema: Bench) -> None:
    name = schema.locked()
    schema.elements.remove(name)
    (schema.place / "00000000").rmdir()
    (schema.place / "0000000a").mkdir()
    assert schema.add()[:8] == "0000000a"


def test_directories_of_the_queue_that_somebody_has_tidied_away_are_made_again(schema: Bench) -> None:
    name = schema.locked()
    for place in ("temporary", "obsolete"):
        (schema.place / place).rmdir()
    assert schema.elements.remove(name)
    schema.add()
    assert sorted(os.listdir(schema.place)) == ["00000000", "obsolete", "temporary"]


def test_an_unknown_file_is_found_before_anything_is_moved(schema: Bench) -> None:
    name = schema.locked()
    (schema.place / name / "not.known").touch()
    with pytest.raises(QueueError, match=r"not\.known"):
        schema.elements.remove(name)
    assert sorted(os.listdir(schema.place / name)) == ["body", "header", "locked", "not.known"]


def test_of_two_that_remove_an_element_one_is_told_so(bench: Bench) -> None:
    name = bench.locked()
    told = []
    call = "unlink" if bench.kind == "simple" else "rename"

    def meanwhile() -> None:
        del bench.kernel.hooks[call]
        told.append(bench.another.remove(name))

    bench.kernel.hooks[call] = meanwhile
    told.append(bench.elements.remove(name))
    assert told == [True, False]


def test_what_cannot_be_taken_apart_is_removed_all_the_same(schema: Bench) -> None:
    """The rename to obsolete/ has settled it; what is left there is found by a sweep."""
    name = schema.locked()
    schema.fail("unlink", errno.EIO)
    assert schema.elements.remove(name)
    assert schema.elements.count() == 0
    for path in (schema.place / "obsolete").iterdir():
        os.utime(path, (1, 1))
    assert schema.elements.sweep(SYSTEM.wall_ns(), None).temporary == 1
    assert not list((schema.place / "obsolete").iterdir())


@pytest.mark.parametrize("kept_as", [".nfs000000000002001400000001", ".fuse_hidden0000000a00000001"])
def test_a_part_that_nfs_keeps_while_it_is_open_keeps_no_element_from_being_removed(
    schema: Bench, kept_as: str
) -> None:
    """It lies there under a name of the mount's own, in obsolete/ too, until whoever has it open has closed it."""
    name = schema.locked()
    (schema.place / name / kept_as).touch()
    assert schema.elements.remove(name)
    assert schema.elements.count() == 0
    (left,) = (schema.place / "obsolete").iterdir()
    assert os.listdir(left) == [kept_as]
    os.utime(left, (1, 1))
    assert schema.elements.sweep(SYSTEM.wall_ns(), None).temporary == 1
    assert not list((schema.place / "obsolete").iterdir())


def test_a_directory_whose_mode_cannot_be_set_is_not_left_behind(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        kernel = Kernel()
        elements = SchemaElements(str(tmp_path / "queue"), umask=0o002, system=kernel)
        elements.make()
        name = elements.add({"body": b"data"})

        def refuse(*_: Any) -> None:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

        kernel.replaced["chmod"] = refuse
        with pytest.raises(PermissionError):
            elements.lock(name)
        assert elements.found_lock(name) is None
        with pytest.raises(PermissionError):
            elements.add({"body": b"data"})
        assert not list((tmp_path / "queue" / "temporary").iterdir())
    finally:
        os.umask(before)


def test_a_lock_that_was_put_back_is_still_its_holder_s(bench: Bench) -> None:
    """The reaper had it aside for a moment: it had become young between two looks."""
    name = bench.locked()
    os.utime(bench.place / name, (1, 1))
    next_tick(bench.place)
    held: list[Lock] = []

    def take_again() -> None:
        del bench.kernel.hooks["rename"]
        assert bench.another.unlock(name)
        lock = bench.another.lock(name)
        assert lock is not None
        held.append(lock)

    bench.kernel.hooks["rename"] = take_again
    assert not bench.elements.break_lock(name, older_than(SYSTEM.wall_ns() - 10**10))
    assert bench.another.is_held(held[0])
