"""
test_dirq_faults - the faults D1 to D26 of the original, each shown there and not here

The body of a test is run on both libraries (see dirq_twins): on the original it fails,
strictly, with the reason that stands beside it. Where the original cannot be run (it would
need a race that nothing can force, or a stopwatch) the test says why.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from tests.dirq_twins import Library, age, library_of, next_tick, twins
from workers.dirq.elements import Elements, older_than
from workers.dirq.schema_elements import SchemaElements
from workers.dirq.simple_elements import SimpleElements
from workers.dirq.table import encode_table
from workers.system import SYSTEM, System

AT = 1_780_000_000
OLD_S = 7200


@pytest.fixture(name="library")
def _library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Library:
    return library_of(request.param, monkeypatch, tmp_path)


def each_kind(argument: str = "kind") -> Any:
    return pytest.mark.parametrize(argument, ["simple", "queue"])


def opened(library: Library, kind: str, path: Path, **more: Any) -> Any:
    return getattr(library, kind)(path, **more)


def some(kind: str) -> Any:
    return b"data" if kind == "simple" else {"body": "data"}


def lock_of(queue: Any, kind: str, name: str) -> Path:
    return Path(f"{queue.path}/{name}.lck" if kind == "simple" else f"{queue.path}/{name}/locked")


# ---- D1


@twins("its purge removes fresh temporary directories")
def test_D1_purge_leaves_the_temporary_directory_of_a_writer_alone(library: Library, tmp_path: Path) -> None:
    queue = library.queue(tmp_path)
    fresh = tmp_path / "temporary" / "6553f1230a1b2c"
    fresh.mkdir()
    queue.purge()
    assert fresh.exists()


@twins("its purge fails at a temporary directory that is not empty", raises=OSError)
def test_D1_purge_passes_by_a_writer_at_work(library: Library, tmp_path: Path) -> None:
    queue = library.queue(tmp_path)
    fresh = tmp_path / "temporary" / "6553f1230a1b2c"
    fresh.mkdir()
    (fresh / "body").touch()
    queue.purge()
    assert (fresh / "body").exists()


def test_D1_add_starts_again_when_its_temporary_directory_is_purged(tmp_path: Path) -> None:
    """A peer of the original kind purges at each of the places where add() can be met; ours only, theirs fails."""
    for call in ("open", "rename"):
        library = Library()
        queue = library.queue(tmp_path / call)

        def purge(queue: Any = queue) -> None:
            for temporary in (Path(queue.path) / "temporary").iterdir():
                for file in temporary.iterdir():
                    file.unlink()
                temporary.rmdir()

        library.before(call, purge)
        name = queue.add({"body": "whole"})
        assert (Path(queue.path) / name / "body").read_text() == "whole"
        assert not list((Path(queue.path) / "temporary").iterdir())


# ---- D2


@twins("text is written without O_EXCL: what another has created between two calls is truncated")
def test_D2_text_never_goes_into_the_temporary_file_of_another(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state of the race is made: the other's file came right after it was looked whether there is one."""
    library.freeze(AT)
    queue = library.simple(tmp_path, rndhex=7)
    directory = tmp_path / f"{AT - AT % 60:08x}"
    directory.mkdir()
    theirs = directory / f"{AT:08x}000007.tmp"
    theirs.write_text("theirs")
    monkeypatch.setattr(os.path, "exists", lambda _path: False)
    with pytest.MonkeyPatch.context() as patch:
        if library.__class__ is not Library:  # which would write its name of this very microsecond for ever
            patch.setattr(os, "link", _hung)
        with _ignored(_HungError):
            queue.add("ours")
    assert theirs.read_text() == "theirs"


def test_D2_text_of_forked_children_is_all_there_once(tmp_path: Path) -> None:
    """They share the object, and with it the last digit of the names. The original loses one of some 48,000."""
    queue = Library().QueueSimple(str(tmp_path))
    children = []
    for child in range(4):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                for number in range(150):
                    queue.add(f"{child}.{number}")
                code = 0
            finally:
                os._exit(code)
        children.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0] * 4
    found = sorted((tmp_path / name).read_text() for name in queue)
    assert found == sorted(f"{child}.{number}" for child in range(4) for number in range(150))


# ---- D3


class _HungError(Exception):
    """It would have gone on for ever."""


def _hung(*_: object, **__: object) -> None:
    raise _HungError


class _ignored:  # noqa: N801 - used like contextlib.suppress, which would hide a warning of an unclosed file
    def __init__(self, kind: type[BaseException]) -> None:
        self._kind = kind

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        return kind is not None and issubclass(kind, self._kind)


@twins("every error but ENOENT is tried again for ever", raises=_HungError)
@pytest.mark.parametrize("code", [errno.ENOTDIR, errno.EACCES, errno.ENOSPC, errno.EROFS])
def test_D3_add_raises_at_once_when_the_directory_cannot_be_written(
    library: Library, tmp_path: Path, code: int
) -> None:
    queue = library.simple(tmp_path)
    tries = itertools.count()

    def refuse(*_: object) -> None:
        if next(tries) > 20:
            raise _HungError
        raise OSError(code, os.strerror(code))

    library.replace("open", refuse)
    with pytest.raises(OSError, match="cannot open") as caught:
        queue.add(b"data")
    assert caught.value.errno == code
    assert next(tries) == 1


# ---- D4


@twins("the umask of the whole process stays changed after a lost race")
def test_D4_umask_of_the_process_is_as_before_after_a_lock_that_was_lost(library: Library, tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        queue = library.queue(tmp_path, umask=0o077)
        name = queue.add({"body": "data"})
        assert queue.lock(name)
        assert not queue.lock(name)
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)


def test_D4_umask_of_the_process_is_never_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for a moment: it belongs to all threads. The original sets it for each thing that it makes."""
    monkeypatch.setattr(os, "umask", _hung)
    for kind in ("simple", "queue"):
        queue = opened(Library(), kind, tmp_path / kind, umask=0o077)
        name = queue.add(some(kind))
        assert queue.lock(name)
        queue.remove(name)


# ---- D5


@twins("the data is gone before it is seen that there is no lock")
def test_D5_remove_of_what_is_not_locked_removes_nothing(library: Library, tmp_path: Path) -> None:
    queue = library.simple(tmp_path)
    name = queue.add(b"data")
    with pytest.raises(OSError, match="No such file"):
        queue.remove(name)
    assert (tmp_path / name).exists()


# ---- D6


@twins("a lock has no owner", raises=(AssertionError, pytest.fail.Exception))
@each_kind()
@pytest.mark.parametrize("verb", ["unlock", "remove", "get"])
def test_D6_a_holder_whose_lock_was_broken_leaves_the_next_holder_alone(
    library: Library, tmp_path: Path, kind: str, verb: str
) -> None:
    queue = opened(library, kind, tmp_path)
    name = queue.add(some(kind))
    library.lock_long_ago(queue, name)
    next_tick(tmp_path)
    another = library.peer(queue)
    another.purge()
    assert another.lock(name)
    for _ in range(2):  # it does not forget by being refused
        with pytest.raises(library.QueueError):
            getattr(queue, verb)(name)
    another.get(name)
    another.remove(name)


def test_D6_a_child_may_end_what_its_parent_has_locked(tmp_path: Path) -> None:
    """An object knows only what it has locked itself; of all else it believes what it finds, as the original does."""
    for kind in ("simple", "queue"):
        parent = opened(Library(), kind, tmp_path / kind)
        name = parent.add(some(kind))
        assert parent.lock(name)
        child = Library().peer(parent)
        assert child.get(name) == some(kind)
        child.remove(name)
        assert parent.count() == 0


def test_D6_a_holder_that_touches_stays_the_holder(tmp_path: Path) -> None:
    for kind in ("simple", "queue"):
        library = Library()
        queue = opened(library, kind, tmp_path / kind)
        name = queue.add(some(kind))
        library.lock_long_ago(queue, name)
        queue.touch(name)
        library.peer(queue).purge()
        queue.get(name)
        queue.remove(name)


@each_kind()
@pytest.mark.parametrize("verb", ["get", "unlock", "remove"])
@pytest.mark.parametrize("other", ["touches", "appends"])
def test_D6_a_lock_is_not_lost_by_what_another_does_to_the_element(
    tmp_path: Path, kind: str, verb: str, other: str
) -> None:
    """Two seconds after it was taken: a child that shows that it is at work, or edits its input in place."""
    library = Library()
    queue = opened(library, kind, tmp_path)
    name = queue.add(some(kind))
    assert queue.lock(name)
    peer = library.peer(queue)
    body = Path(peer.elements.body_path(name))
    library.kernel.moved_ns = 2 * 10**9
    if other == "appends":
        body.write_bytes(body.read_bytes() + b" and more")
    for path in {body, tmp_path / name}:
        os.utime(path, ns=(library.kernel.wall_ns(),) * 2)
    found = getattr(queue, verb)(name)
    if verb == "get":
        assert len(body.read_bytes()) == len(found if kind == "simple" else found["body"])
    assert queue._locks.keys() == ({name} if verb == "get" else set())


@each_kind()
def test_D6_who_takes_a_lock_that_was_broken_late_is_not_taken_for_a_touch(tmp_path: Path, kind: str) -> None:
    """A purge at half of the limit that is published breaks nothing sooner."""
    library = Library()
    queue = opened(library, kind, tmp_path)
    name = queue.add(some(kind))
    library.lock_long_ago(queue, name, 301)
    next_tick(tmp_path)
    another = library.peer(queue)
    another.purge(maxlock=300)
    assert another.lock(name)
    with pytest.raises(library.QueueLockError):
        queue.remove(name)


# ---- D7


@twins("between its link and its touch a lock is as old as its element")
def test_D7_the_lock_of_an_old_element_is_never_old(library: Library, tmp_path: Path) -> None:
    """A peer purges before each call that lock() makes."""
    queue = library.simple(tmp_path)
    name = queue.add(b"data")
    age(queue, name, OLD_S)
    peer = library.peer(queue)
    for call in ("lstat", "link", "utime"):
        library.before(call, peer.purge)
    assert queue.lock(name)
    assert (tmp_path / f"{name}.lck").exists()


def test_D7_open_locked_never_has_an_old_lock_either(tmp_path: Path) -> None:
    library = Library()
    queue = library.simple(tmp_path)
    name = queue.add(b"data")
    age(queue, name, OLD_S)
    for call in ("link", "utime", "open", "fstat"):
        library.before(call, library.peer(queue).purge)
    found = queue.elements.open_locked(name)
    assert found is not None
    os.close(found[1])
    assert (tmp_path / f"{name}.lck").exists()


# ---- D8


@twins("the age is looked at, then whatever lock there is by then is removed")
def test_D8_purge_leaves_a_lock_that_was_taken_again_meanwhile(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = library.queue(tmp_path)
    name = queue.add({"body": "data"})
    library.lock_long_ago(queue, name, OLD_S)
    holder, reaper = library.peer(queue), library.queue(tmp_path)

    def take_again() -> None:
        holder.unlock(name)
        assert holder.lock(name)

    if isinstance(reaper, Library().Queue):
        library.before("rename", take_again)
    else:
        judge = reaper._is_locked

        def judged(*arguments: object) -> bool:
            is_old: bool = judge(*arguments)
            take_again()
            return is_old

        monkeypatch.setattr(reaper, "_is_locked", judged)
    next_tick(tmp_path)
    reaper.purge()
    assert lock_of(queue, "queue", name).exists()


@each_kind()
def test_D8_of_two_reapers_neither_breaks_the_lock_that_was_taken_again(tmp_path: Path, kind: str) -> None:
    """The first one has broken the stale lock, and a holder has come, when the second goes on; at each of its calls."""
    calls = ("rename", "lstat")
    for call in calls:
        library = Library()
        queue = opened(library, kind, tmp_path / call)
        name = queue.add(some(kind))
        library.lock_long_ago(queue, name)
        next_tick(tmp_path)
        first, holder = library.peer(queue), library.peer(queue)

        def break_and_take(first: Any = first, holder: Any = holder, name: str = name) -> None:
            assert first.elements.break_lock(name, lambda _: True)
            assert holder.lock(name)

        library.before(call, break_and_take)
        assert not queue.elements.break_lock(name, older_than(SYSTEM.wall_ns() - 500 * 10**9))
        assert lock_of(queue, kind, name).exists()
        assert not list((tmp_path / call).rglob("*.tmp"))
        holder.remove(name)


# ---- D9


@twins("its own clock is compared with the times of the server")
@each_kind()
def test_D9_staleness_is_judged_by_the_clock_of_the_filesystem(library: Library, tmp_path: Path, kind: str) -> None:
    queue = opened(library, kind, tmp_path)
    name = queue.add(some(kind))
    assert queue.lock(name)
    library.set_ahead(3600)
    opened(library, kind, tmp_path).purge()
    assert lock_of(queue, kind, name).exists()


# ---- D10


@twins("a directory that is purged while its turn comes raises", raises=FileNotFoundError)
def test_D10_a_reader_passes_by_a_directory_that_is_gone(library: Library, tmp_path: Path) -> None:
    library.freeze(AT)
    queue = library.simple(tmp_path, granularity=1)
    first = queue.add(b"one")
    library.freeze(AT + 1)
    second = queue.add(b"two")
    assert queue.first() == first
    (tmp_path / second).unlink()
    (tmp_path / second[:8]).rmdir()
    assert queue.next() == ""


@twins("a directory that is purged between two listings raises", raises=FileNotFoundError)
@pytest.mark.parametrize("verb", ["count", "purge"])
def test_D10_count_and_purge_pass_by_a_directory_that_is_gone(library: Library, tmp_path: Path, verb: str) -> None:
    queue = library.simple(tmp_path)
    gone = tmp_path / "00000001"
    for path in (gone, tmp_path / "00000002"):
        path.mkdir()

    def vanishing(path: str) -> list[str]:
        if path == str(gone):
            gone.rmdir()
        with os.scandir(path) as found:  # for listdir is replaced
            return [entry.name for entry in found]

    library.replace("listdir", vanishing)
    getattr(queue, verb)()
    assert not gone.exists()


@twins("an element that is added while its directory is removed raises", raises=OSError)
def test_D10_purge_leaves_a_directory_that_is_not_empty_any_more(library: Library, tmp_path: Path) -> None:
    queue = library.simple(tmp_path)
    for name in ("00000001", "00000002"):
        (tmp_path / name).mkdir()
    late = tmp_path / "00000001" / "6553f1230a1b2c"
    library.before("rmdir", late.touch)
    queue.purge()
    assert late.exists()


def test_D10_a_directory_that_is_purged_meanwhile_is_made_again(tmp_path: Path) -> None:
    """Ours only: the original does the same."""
    library = Library()
    library.freeze(AT)
    queue = library.simple(tmp_path)
    queue.elements._mkdir(f"{tmp_path}/{AT - AT % 60:08x}")

    def purge() -> None:
        for path in tmp_path.glob("*/*.tmp"):
            path.unlink()
        for path in tmp_path.iterdir():
            path.rmdir()

    library.before("open", purge)
    first = queue.add(b"one")
    library.before("link", purge)
    second = queue.add(b"two") if not (tmp_path / first).unlink() else ""
    assert (tmp_path / second).read_bytes() == b"two"
    assert len(list(tmp_path.glob("*/*"))) == 1


# ---- D11


@twins("the dot of the suffix stands for any letter")
@pytest.mark.parametrize("file", ["footmp", "mylck"])
def test_D11_purge_removes_only_what_has_the_suffix(library: Library, tmp_path: Path, file: str) -> None:
    queue = library.simple(tmp_path)
    name = queue.add(b"data")
    nobodys = tmp_path / name[:8] / file
    nobodys.touch()
    os.utime(nobodys, (1, 1))
    queue.purge()
    assert nobodys.exists()


# ---- D12


BAD: list[Any] = [
    {},
    {"other": "data"},
    {"body": "data", "other": "data"},
    {"body": b"bytes"},
    {"body": None},
    {"body": "data", "raw": "text"},
    {"body": "data", "header": "text"},
    {"body": "data", "header": {"key": b"bytes"}},
    {"body": "data", "header": {1: "text"}},
    {"body": "data", "header": {"a": "b", 1: "text"}},
    {"body": "\udc80"},
]


@twins("data is looked at when the temporary directory is there already")
def test_D12_data_that_cannot_be_leaves_nothing_behind(library: Library, tmp_path: Path) -> None:
    schema = {"body": "string", "raw": "binary?", "header": "table?"}
    queue = library.Queue(str(tmp_path), schema=schema)
    for data in BAD:
        with pytest.raises(library.QueueError):
            queue.add(data)
        assert not list((tmp_path / "temporary").iterdir()), data


# ---- D13


@twins("temporary and obsolete elements, and stray files, are counted")
def test_D13_count_counts_elements(library: Library, tmp_path: Path) -> None:
    queue = library.queue(tmp_path)
    assert queue.count() == 0
    (tmp_path / "stray").touch()
    assert queue.count() == 0
    (tmp_path / "temporary" / "6553f1230a1b2c").mkdir()
    (tmp_path / "obsolete" / "6553f1230a1b2c").mkdir()
    queue.add({"body": "data"})
    assert queue.count() == 1


# ---- D14


@twins("a directory that has one link is never locked and never full")
def test_D14_directories_need_not_count_their_links(library: Library, tmp_path: Path) -> None:
    """As on btrfs."""

    def lstat(path: str) -> os.stat_result:
        found = os.stat(path, follow_symlinks=False)
        if not stat.S_ISDIR(found.st_mode):
            return found
        return os.stat_result((*found[:3], 1, *found[4:10]), {"st_mtime_ns": found.st_mtime_ns})

    library.replace("lstat", lstat)
    queue = library.queue(tmp_path, maxelts=2)
    names = [queue.add({"body": "data"}) for _ in range(5)]
    assert [name[:8] for name in names] == ["00000000", "00000000", "00000001", "00000001", "00000002"]
    assert queue.count() == 5
    assert queue.lock(names[0])
    assert queue.get(names[0]) == {"body": "data"}
    queue.remove(names[0])
    assert queue.count() == 4


# ---- D15


@twins("it is moved away and half removed before it is looked at", raises=FileNotFoundError)
def test_D15_an_element_with_an_unknown_file_stays_whole(library: Library, tmp_path: Path) -> None:
    queue = library.queue(tmp_path)
    name = queue.add({"body": "data"})
    (tmp_path / name / "not.known").touch()
    assert queue.lock(name)
    with pytest.raises(library.QueueError):
        queue.remove(name)
    assert (tmp_path / name / "body").read_text() == "data"
    assert queue.get(name) == {"body": "data"}


# ---- D16


@twins("what cannot be listed is empty", raises=pytest.fail.Exception)
@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO])
def test_D16_a_queue_that_cannot_be_listed_is_not_empty(library: Library, tmp_path: Path, code: int) -> None:
    queue = library.queue(tmp_path)
    queue.add({"body": "data"})

    def refuse(path: str) -> None:
        raise OSError(code, os.strerror(code), path)

    library.replace("listdir", refuse)
    with pytest.raises(OSError, match="cannot listdir") as caught:
        queue.first()
    assert caught.value.errno == code


@each_kind()
@pytest.mark.parametrize("verb", ["first", "count", "purge"])
def test_D16_the_top_directory_that_cannot_be_listed_is_not_empty_either(tmp_path: Path, kind: str, verb: str) -> None:
    """Ours lists that one by another call."""
    library = Library()
    queue = opened(library, kind, tmp_path)

    def refuse(path: str) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), path)

    library.replace("scandir", refuse)
    with pytest.raises(OSError, match="cannot scandir") as caught:
        getattr(queue, verb)()
    assert caught.value.errno == errno.EIO


# ---- D17


@twins("the wrong queue's next element is dropped, and one of the removed queue comes")
def test_D17_a_queue_that_is_removed_from_a_set_takes_only_its_own_elements_along(
    library: Library, tmp_path: Path
) -> None:
    one, two = library.simple(tmp_path / "one"), library.simple(tmp_path / "two")
    names = []
    for _ in range(3):
        names.append(two.add(b"two"))
        one.add(b"one")
    both = library.QueueSet(one, two)
    assert both.first()[1] == names[0]
    both.remove(one)
    rest = list(itertools.takewhile(lambda found: found[0], (both.next() for _ in range(20))))
    assert [(queue.id, name) for queue, name in rest] == [(two.id, name) for name in names[1:]]


# ---- D18


@twins("only a list is looked through for queues that come twice", raises=pytest.fail.Exception)
def test_D18_a_queue_is_in_a_set_once(library: Library, tmp_path: Path) -> None:
    queue = library.simple(tmp_path)
    with pytest.raises(library.QueueError):
        library.QueueSet(queue, queue)


@twins("an empty set has no end")
def test_D18_a_walk_through_an_empty_set_ends(library: Library) -> None:
    assert list(itertools.islice(library.QueueSet(), 3)) == []


# ---- D19


@twins("names are compared whole, and begin with a number that each queue counts by itself")
def test_D19_a_set_of_queues_is_in_the_order_of_time(library: Library, tmp_path: Path) -> None:
    small, large = library.queue(tmp_path / "small", maxelts=1), library.queue(tmp_path / "large")
    names = [small.add({"body": "1"}), small.add({"body": "2"}), large.add({"body": "3"})]
    assert names[1][:8] > names[2][:8]
    assert [name for _, name in library.QueueSet(large, small)] == names


# ---- D20


@twins("it has no attributes", raises=AttributeError)
def test_D20_a_null_queue_can_be_walked(library: Library) -> None:
    queue = library.QueueNull()
    assert list(queue) == []
    assert queue.first() == queue.next() == ""


@twins("it has no attributes", raises=AttributeError)
def test_D20_a_null_queue_says_that_nothing_in_it_can_be_touched(library: Library) -> None:
    with pytest.raises(NotImplementedError):
        library.QueueNull().touch("6553f100/6553f1230a1b2c")


# ---- D21


@twins("each add lists the whole queue")
def test_D21_add_does_not_list_the_queue_each_time(library: Library, tmp_path: Path) -> None:
    queue = library.queue(tmp_path)
    count = itertools.count()
    for call in ("listdir", "scandir"):
        library.before(call, lambda: next(count), always=True)
    for _ in range(20):
        queue.add({"body": "data"})
    assert next(count) <= 5, "one, and one for each second that passed meanwhile"


@each_kind()
def test_D21_a_walk_lists_each_directory_once(tmp_path: Path, kind: str) -> None:
    """That a step of the walk costs nothing more is a matter of the deque: no test here has a stopwatch."""
    library = Library()
    queue = opened(library, kind, tmp_path)
    names = [queue.add(some(kind)) for _ in range(5)]
    library.kernel.calls.clear()
    assert list(queue) == names
    assert [call[0] for call in library.kernel.calls] == ["scandir", "listdir"]


# ---- D22


@twins("the loop's own cursor is used up by the purge inside it", raises=(AssertionError, StopIteration))
def test_D22_a_purge_inside_a_loop_does_not_end_it(library: Library, tmp_path: Path) -> None:
    queue = library.queue(tmp_path)
    names = [queue.add({"body": "data"}) for _ in range(3)]
    seen = []
    for name in queue:
        queue.purge()
        seen.append(name)
    assert seen == names


@twins("two loops have one cursor")
@each_kind()
def test_D22_loops_may_be_nested(library: Library, tmp_path: Path, kind: str) -> None:
    queue = opened(library, kind, tmp_path)
    names = [queue.add(some(kind)) for _ in range(3)]
    pairs = ((outer, inner) for outer in queue for inner in queue)
    assert list(itertools.islice(pairs, 20)) == list(itertools.product(names, names))


# ---- D23


@twins("the directory that was chosen is gone: the add fails, and its temporary directory stays", raises=OSError)
def test_D23_add_survives_the_purge_of_the_directory_that_it_has_chosen(library: Library, tmp_path: Path) -> None:
    queue = library.queue(tmp_path)
    (tmp_path / "00000000").mkdir()
    library.before("rename", lambda: _last_of(tmp_path).rmdir())
    name = queue.add({"body": "data"})
    assert (tmp_path / name / "body").read_text() == "data"
    assert not list((tmp_path / "temporary").iterdir())


def _last_of(place: Path) -> Path:
    """The directory for the insertion (the original makes a new one when the last one is empty)."""
    return max(path for path in place.iterdir() if path.name.isdigit())


# ---- D24


@twins("names are not looked at", raises=(OSError, pytest.fail.Exception))
@pytest.mark.parametrize("verb", ["lock", "unlock", "get", "get_path", "remove", "touch"])
def test_D24_a_name_that_is_none_is_refused(library: Library, tmp_path: Path, verb: str) -> None:
    queue = library.simple(tmp_path / "queue")
    (tmp_path / "outside").touch()
    for name in ("../outside", "6553f100/6553f1230a1b2c\n", "6553f100/6553F1230A1B2C", "", None):
        with pytest.raises(library.QueueError):
            getattr(queue, verb)(name)
    assert sorted(os.listdir(tmp_path)) == ["outside", "queue"]


@twins("the pattern ends in a dollar sign", raises=(AssertionError, OSError, pytest.fail.Exception))
def test_D24_a_name_with_a_line_feed_is_refused_by_a_queue_too(library: Library, tmp_path: Path) -> None:
    with pytest.raises(library.QueueError):
        library.queue(tmp_path).lock("00000000/6553f1230a1b2c\n")


# ---- D25


def test_D25_what_is_locked_is_not_offered_to_the_next_consumer(tmp_path: Path) -> None:
    """
    A pool's consumers are given what is not locked in the listing; how they share that is tested with Scan.

    The published walk has to yield all names, locked or not, in one order for all: so does the original's.
    """
    elements: Elements[bytes] = SimpleElements(str(tmp_path))
    names = [elements.add(b"data") for _ in range(3)]
    assert elements.lock(names[0]) is not None
    odd: set[str] = set()
    assert elements.waiting(names[0][:8], odd) == names[1:]
    assert not odd


# ---- D26


def test_D26_a_large_table_is_written_in_one_piece() -> None:
    """A million pairs. That the original's time grows with the square would need a stopwatch to show."""
    assert encode_table({str(number): "" for number in range(1_000_000)}).count(b"\n") == 1_000_000


# ---- what the comments in the engines refer to


def test_an_element_that_is_removed_while_it_is_locked_is_not_locked(tmp_path: Path) -> None:
    """A holder whose lock had been broken removes it right before our look at what we have locked."""
    for kind, verb in itertools.product(("simple", "queue"), ("lock", "open_locked")):
        library = Library()
        queue = opened(library, kind, tmp_path / kind / verb)
        name = queue.add(some(kind))
        remover = library.peer(queue).elements
        call = "link" if kind == "simple" else "mkdir"
        if kind == "simple":
            last = "lstat" if verb == "lock" else "open"

            def settle(path: str = f"{queue.path}/{name}") -> None:
                os.unlink(path)

            def arm(library: Library = library, last: str = last, settle: Any = settle) -> None:
                library.before(last, settle)

            library.before(call, arm)
        else:
            library.before("lstat", lambda remover=remover, name=name: remover.remove(name))
        assert getattr(queue.elements, verb)(name) is None
        assert queue.count() == 0
        left = [path for path in Path(queue.path).rglob("*") if path.name not in ("temporary", "obsolete", name[:8])]
        assert not left


def test_remove_never_leaves_an_element_without_its_lock(tmp_path: Path) -> None:
    """Between the calls of remove() nobody can lock it."""
    library = Library()
    queue = library.simple(tmp_path)
    name = queue.add(b"data")
    assert queue.lock(name)
    peer = library.peer(queue)
    taken = []
    library.before("unlink", lambda: taken.append(peer.lock(name)), always=True)
    queue.remove(name)
    assert taken == [False, False]
    assert not list((tmp_path / name[:8]).iterdir())


def test_a_lock_whose_element_came_back_since_the_listing_stays(tmp_path: Path) -> None:
    library = Library()
    elements = library.simple(tmp_path / "queue").elements
    name = elements.add(b"data")
    assert elements.lock(name) is not None
    away = tmp_path / "away"
    (tmp_path / "queue" / name).rename(away)
    os.utime(away, (1, 1))

    def come_back() -> None:
        away.rename(tmp_path / "queue" / name)

    library.before("lstat", come_back)
    elements.sweep(SYSTEM.wall_ns(), SYSTEM.wall_ns())
    assert (tmp_path / "queue" / name).exists()
    assert (tmp_path / "queue" / f"{name}.lck").exists()


def test_a_late_lock_does_not_keep_a_removed_element_in_obsolete(tmp_path: Path) -> None:
    """Who had looked the element up before it was moved makes locked/ in it between our two rmdir."""
    library = Library()
    queue = library.queue(tmp_path)
    name = queue.add({"body": "data"})
    assert queue.lock(name)
    late = itertools.count()

    def lock_late() -> None:
        if next(late) == 1:
            next(iter((tmp_path / "obsolete").iterdir())).joinpath("locked").mkdir()

    library.before("rmdir", lock_late, always=True)
    queue.remove(name)
    assert next(late) > 3
    assert not list((tmp_path / "obsolete").iterdir())


@pytest.mark.parametrize("call", ["lstat", "rename", "listdir", "unlink", "rmdir"])
def test_a_slow_writer_whose_directory_is_swept_publishes_all_or_starts_again(tmp_path: Path, call: str) -> None:
    """It has written its parts, slept longer than a sweep allows, and goes on before each call of that sweep."""
    library = Library()
    writer = SchemaElements(str(tmp_path), system=System())
    sweeper = SchemaElements(str(tmp_path), system=library.kernel)
    writer.make()
    temporary = writer._make_in("temporary")
    for key in ("body", "header"):
        writer._make_file(f"{temporary}/{key}", b"data", durable=False)
    os.utime(temporary, (1, 1))

    def publish() -> None:
        with contextlib.suppress(FileNotFoundError):  # then it starts again
            writer._publish(temporary, durable=False)

    library.before(call, publish)
    sweeper.sweep(SYSTEM.wall_ns() - 10**9, None)
    for directory in writer.directories():
        for name in writer.names(directory):
            assert sorted(path.name for path in (tmp_path / name).iterdir()) == ["body", "header"]
    assert not list((tmp_path / "temporary").iterdir())
    assert not list((tmp_path / "obsolete").iterdir())


def test_D8_the_age_of_a_lock_is_looked_at_after_the_lock(tmp_path: Path) -> None:
    """Between the two looks the stale lock is broken, and the element locked again."""
    library = Library()
    queue = library.queue(tmp_path)
    name = queue.add({"body": "data"})
    library.lock_long_ago(queue, name)
    next_tick(tmp_path)
    holder = library.peer(queue)
    looks = itertools.count()

    def break_and_take() -> None:
        if next(looks) == 1:
            assert holder.elements.unlock(name)
            assert holder.lock(name)

    library.before("lstat", break_and_take, always=True)
    assert not queue.elements.break_lock(name, older_than(SYSTEM.wall_ns() - 500 * 10**9))
    assert next(looks) >= 2
    holder.remove(name)
