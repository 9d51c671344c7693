"""
test_dirq_api - what programs that used the original rely on: signatures, values, kinds of errors

Where both libraries do the same, one test is run on both.
"""

from __future__ import annotations

import copy
import errno
import importlib
import inspect
import itertools
import os
import pickle
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import workers.dirq
import workers.dirq.queue
from tests.dirq_twins import HOOKED, SCHEMA, Kernel, Library, library_of, needs_original, next_tick
from workers.dirq import Queue, QueueError, QueueLockError, QueueNull, QueueSet, QueueSimple
from workers.dirq.base import LOCKS_MIN, QueueBase

VERBS = ("add", "lock", "get", "touch", "remove", "unlock", "count", "purge", "first", "names")
NAME = "6553f100/6553f1230a1b2c"
BOTH = ["ours", pytest.param("original", marks=needs_original)]
CLASSES = ("QueueSimple", "Queue", "QueueSet", "QueueNull")

both = pytest.mark.parametrize("library", BOTH, indirect=True)
each_kind = pytest.mark.parametrize("kind", ["simple", "queue"])


@pytest.fixture(name="library")
def _library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Library:
    return library_of(request.param, monkeypatch, tmp_path)


def some(kind: str) -> Any:
    return b"data" if kind == "simple" else {"body": "data"}


def queue_of(library: Library, kind: str, path: Path, **more: Any) -> Any:
    return getattr(library, kind)(path, **more)


# ---- what there is


def test_everything_that_is_promised_can_be_imported() -> None:
    for name in workers.dirq.__all__:
        assert hasattr(workers.dirq, name)
    for name in ("Queue", "QueueSet", "QueueError", "TEMPORARY_DIRECTORY", "OBSOLETE_DIRECTORY", "LOCKED_DIRECTORY"):
        assert getattr(workers.dirq.queue, name) is getattr(workers.dirq, name)
    assert issubclass(QueueLockError, QueueError)
    assert not issubclass(QueueError, OSError)


@needs_original
@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("queue", "TEMPORARY_DIRECTORY"),
        ("queue", "OBSOLETE_DIRECTORY"),
        ("queue", "LOCKED_DIRECTORY"),
        ("QueueSimple", "TEMPORARY_SUFFIX"),
        ("QueueSimple", "LOCKED_SUFFIX"),
    ],
)
def test_constants_are_those_of_the_original(module: str, name: str) -> None:
    assert getattr(workers.dirq, name) == getattr(importlib.import_module(f"dirq.{module}"), name)


@needs_original
@pytest.mark.parametrize("name", CLASSES)
def test_methods_have_the_arguments_of_the_original(name: str) -> None:
    """Names, order and defaults; ours may take more by keyword."""
    module = importlib.import_module("dirq.queue" if name == "Queue" else f"dirq.{name}")
    theirs, ours = getattr(module, name), getattr(workers.dirq, name)
    seen = 0
    for method, function in inspect.getmembers(theirs, inspect.isfunction):
        if method.startswith("_") and method not in ("__init__", "__iter__", "__next__"):
            continue
        if name == "QueueNull" and method == "__iter__":
            continue
        expected = {
            key: one.default
            for key, one in inspect.signature(function).parameters.items()
            if one.kind is not one.VAR_POSITIONAL
        }
        found = inspect.signature(getattr(ours, method)).parameters
        assert [key for key in found if key in expected] == list(expected), method
        assert {key: found[key].default for key in expected} == expected, method
        assert all(
            one.kind in (one.KEYWORD_ONLY, one.VAR_POSITIONAL) for key, one in found.items() if key not in expected
        ), method
        seen += 1
    assert seen >= 8


@both
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("QueueSimple", {"path": 7}),
        ("QueueSimple", {"umask": "022"}),
        ("QueueSimple", {"rndhex": "a"}),
        ("QueueSimple", {"granularity": "60"}),
        ("Queue", {"path": None}),
        ("Queue", {"umask": 1.0}),
        ("Queue", {"rndhex": "a"}),
        ("Queue", {"maxelts": "1"}),
        ("Queue", {"maxelts": True}),
    ],
)
def test_arguments_of_a_wrong_type_are_a_type_error(
    library: Library, tmp_path: Path, name: str, arguments: dict[str, Any]
) -> None:
    with pytest.raises(TypeError):
        getattr(library, name)(**{"path": str(tmp_path / "queue"), **arguments})


@both
@each_kind
def test_attributes_are_there(library: Library, tmp_path: Path, kind: str) -> None:
    queue = queue_of(library, kind, tmp_path / "a" / "b", umask=0o022, rndhex=18)
    found = (tmp_path / "a" / "b").stat()
    assert (queue.path, queue.umask, queue.rndhex) == (str(tmp_path / "a" / "b"), 0o022, 2)
    assert queue.id == f"{found.st_dev}:{found.st_ino}"
    assert list(queue.dirs) == list(queue.elts) == []
    assert (queue.granularity if kind == "simple" else queue.maxelts) == (60 if kind == "simple" else 16000)


def test_attributes_may_be_set(tmp_path: Path) -> None:
    simple, queue = QueueSimple(str(tmp_path / "simple")), Queue(str(tmp_path / "queue"), schema=SCHEMA)
    simple.granularity, simple.umask, simple.rndhex, queue.maxelts = 3600, 0o077, 0xAB, 1
    name = simple.add(b"data")
    assert int(name[:8], 16) % 3600 == 0
    assert name[-1] == "b"
    assert (tmp_path / "simple" / name).stat().st_mode & 0o777 == 0o600
    assert [queue.add({"body": ""})[:8] for _ in range(2)] == ["00000000", "00000001"]


@both
def test_a_path_that_is_a_file_is_an_os_error(library: Library, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name in ("file", "file/below"):
        with pytest.raises(OSError, match="cannot mkdir"):
            library.QueueSimple(str(tmp_path / name))


# ---- the verbs


@both
@each_kind
def test_an_element_is_added_locked_read_and_removed(library: Library, tmp_path: Path, kind: str) -> None:
    queue = queue_of(library, kind, tmp_path)
    name = queue.add(some(kind))
    assert queue.count() == 1
    assert queue.first() == name
    assert queue.next() == ""
    assert list(queue) == list(queue.names()) == [name]
    assert queue.lock(name) is True
    assert queue.lock(name) is False
    assert queue.get(name) == some(kind)
    assert queue.touch(name) is None
    assert queue.unlock(name) is True
    assert queue.unlock(name, permissive=True) is False
    assert queue.lock(name, permissive=False) is True
    assert queue.remove(name) is None
    assert queue.lock(name) is False
    assert queue.count() == 0
    assert queue.first() == ""


PERMISSIVE: list[tuple[str, str, dict[str, bool], Any]] = [
    ("locked", "lock", {}, False),
    ("locked", "lock", {"permissive": False}, OSError),
    ("gone", "lock", {}, False),
    ("gone", "lock", {"permissive": False}, OSError),
    ("waiting", "unlock", {}, OSError),
    ("waiting", "unlock", {"permissive": True}, False),
    ("gone", "unlock", {}, OSError),
    ("gone", "unlock", {"permissive": True}, False),
    ("waiting", "get", {}, None),
    ("waiting", "remove", {}, None),
    ("gone", "remove", {}, None),
    ("gone", "touch", {}, OSError),
]


@both
@each_kind
def test_permissive_is_false_and_strict_an_error(library: Library, tmp_path: Path, kind: str) -> None:
    """The table of the formats. None: what the two kinds call differently."""
    for state, verb, arguments, outcome in PERMISSIVE:
        queue, peer = queue_of(library, kind, tmp_path), queue_of(library, kind, tmp_path)
        name = queue.add(some(kind))
        if state != "waiting":
            assert peer.lock(name)
        if state == "gone":
            peer.remove(name)
        if outcome is False:
            assert getattr(queue, verb)(name, **arguments) is False
            continue
        with pytest.raises(outcome or (OSError if kind == "simple" else library.QueueError)) as caught:
            getattr(queue, verb)(name, **arguments)
        if outcome and isinstance(queue, QueueBase):
            assert caught.value.errno == (errno.EEXIST if state == "locked" else errno.ENOENT)
            assert str(caught.value).startswith("cannot ")


@both
def test_a_simple_queue_takes_text_bytes_and_files(library: Library, tmp_path: Path) -> None:
    queue = library.simple(tmp_path / "queue")
    file = tmp_path / "file"
    file.write_bytes(b"from a file")
    file.chmod(0o640)
    os.utime(file, (1, 1))
    inode = file.stat().st_ino
    names = [queue.add("t\u00e9xt"), queue.add_ref(b"\xff"), queue.add_path(str(file))]
    assert not file.exists()
    moved = (tmp_path / "queue" / names[2]).stat()
    assert (moved.st_ino, oct(moved.st_mode), moved.st_mtime) == (inode, "0o100640", 1)
    found = []
    for name in queue:
        assert queue.lock(name)
        assert Path(queue.get_path(name)).read_bytes() == queue.get_ref(name)
        found.append(queue.get(name))
    assert found == ["t\u00e9xt".encode(), b"\xff", b"from a file"]


def test_a_path_that_cannot_be_added_stays_where_it_is(tmp_path: Path) -> None:
    queue = QueueSimple(str(tmp_path / "queue"))
    (tmp_path / "link").symlink_to("nowhere")
    os.mkfifo(tmp_path / "fifo")
    for name in ("link", "fifo", "queue"):
        with pytest.raises(OSError, match="no regular file") as caught:
            queue.add_path(str(tmp_path / name))
        assert caught.value.errno == errno.EINVAL
        assert os.path.lexists(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        queue.add_path(str(tmp_path / "missing"))
    assert queue.count() == 0


@pytest.mark.parametrize("data", [7, None, bytearray(b"data"), {"body": "data"}])
def test_a_simple_queue_takes_nothing_else(tmp_path: Path, data: Any) -> None:
    queue = QueueSimple(str(tmp_path))
    with pytest.raises(TypeError):
        queue.add(data)
    with pytest.raises(UnicodeEncodeError):
        queue.add("\udc80")
    assert not list(tmp_path.rglob("*.tmp"))


@both
def test_a_queue_takes_what_its_schema_says(library: Library, tmp_path: Path) -> None:
    schema = {"raw": "binary", "text": "string*", "pairs": "table", "more": "string?*"}
    queue = library.Queue(str(tmp_path), schema=schema)
    full = {"raw": b"\0\xff", "text": "\u00e9\r\n", "pairs": {"a\t": "\\"}, "more": ""}
    less = {key: value for key, value in full.items() if key != "more"}
    for data in (full, less):
        name = queue.enqueue(data)
        assert queue.get_element(name) == data
        assert queue.lock(name)
        assert queue.get(name) == data
        with pytest.raises(library.QueueLockError):
            queue.dequeue(name)
        with pytest.raises(library.QueueLockError):
            queue.get_element(name)
        with pytest.raises(OSError, match="cannot mkdir"):
            queue.dequeue(name, permissive=False)
        queue.unlock(name)
        assert queue.dequeue(name) == data
    assert queue.count() == 0
    assert queue.type == {"raw": "binary", "text": "string", "pairs": "table", "more": "string"}
    assert queue.mandatory == {"raw": True, "text": True, "pairs": True}


@both
def test_without_a_schema_nothing_is_added_or_read(library: Library, tmp_path: Path) -> None:
    name = library.queue(tmp_path).add({"body": "data"})
    blind = library.Queue(str(tmp_path))
    assert blind.lock(name)
    with pytest.raises(library.QueueError):
        blind.add({"body": "data"})
    with pytest.raises(library.QueueError):
        blind.get(name)
    blind.remove(name)


@both
def test_an_element_that_does_not_conform_is_an_error(library: Library, tmp_path: Path) -> None:
    queue = library.Queue(str(tmp_path), schema={"body": "string", "header": "table?"})
    name = queue.add({"body": "data", "header": {}})
    assert queue.lock(name)
    (tmp_path / name / "header").write_bytes(b"no table\n")
    with pytest.raises(library.QueueError):
        queue.get(name)
    (tmp_path / name / "header").unlink()
    (tmp_path / name / "body").unlink()
    with pytest.raises(library.QueueError):
        queue.get(name)
    queue.remove(name)


def test_text_that_is_none_is_an_os_error(tmp_path: Path) -> None:
    """As with the original, which leaves a file open then."""
    queue = Queue(str(tmp_path), schema=SCHEMA)
    name = queue.add({"body": "data"})
    assert queue.lock(name)
    (tmp_path / name / "body").write_bytes(b"\xff")
    with pytest.raises(OSError, match=r"cannot read\(.*/body\)") as caught:
        queue.get(name)
    assert caught.value.errno == errno.EILSEQ


def test_what_is_no_file_cannot_be_read(tmp_path: Path) -> None:
    queue = Queue(str(tmp_path), schema=SCHEMA)
    name = queue.add({"body": "data"})
    assert queue.lock(name)
    (tmp_path / name / "body").unlink()
    os.mkfifo(tmp_path / name / "body")
    with pytest.raises(OSError, match=r"cannot \w+\(.*/body\): \[Errno 22\] is no regular file"):
        queue.get(name)


@both
@each_kind
def test_purge_removes_what_is_too_old(library: Library, tmp_path: Path, kind: str) -> None:
    queue = queue_of(library, kind, tmp_path)
    name = queue.add(some(kind))
    directory, temporary = tmp_path / name[:8], "6553f1230a1b2c"
    path = directory / f"{temporary}.tmp" if kind == "simple" else tmp_path / "temporary" / temporary
    path.touch() if kind == "simple" else path.mkdir()
    os.utime(path, (1, 1))
    library.lock_long_ago(queue, name, 700)
    lock = tmp_path / (f"{name}.lck" if kind == "simple" else f"{name}/locked")
    for arguments, is_temporary_there, is_locked in (
        ({"maxtemp": 0, "maxlock": 0}, True, True),
        ({"maxtemp": 0, "maxlock": 1000}, True, True),
        ({"maxlock": 1000}, False, True),
        ({}, False, False),
    ):
        assert library.peer(queue).purge(**arguments) is None
        assert (path.exists(), lock.exists()) == (is_temporary_there, is_locked), arguments


@both
@each_kind
def test_purge_removes_empty_directories_but_the_last(library: Library, tmp_path: Path, kind: str) -> None:
    queue = queue_of(library, kind, tmp_path)
    for name in ("00000001", "00000002", "00000003", "not-ours"):
        (tmp_path / name).mkdir()
    (tmp_path / "00000002" / "6553f1230a1b2c").mkdir()
    queue.purge()
    assert sorted(path.name for path in tmp_path.iterdir() if path.name not in ("temporary", "obsolete")) == [
        "00000002", "00000003", "not-ours",
    ]  # fmt: skip


@each_kind
def test_purge_raises_the_first_error_when_all_else_is_purged(tmp_path: Path, kind: str) -> None:
    library = Library()
    queue = queue_of(library, kind, tmp_path)
    names = [queue.add(some(kind)) for _ in range(3)]
    for name in names:
        library.lock_long_ago(queue, name, 700)
    codes = iter((errno.EIO, errno.ESTALE))

    def refuse(*paths: str) -> None:
        for code in codes:
            raise OSError(code, os.strerror(code), *paths[:1])
        os.rename(*paths)

    library.replace("rename", refuse)
    with pytest.raises(OSError, match=r"cannot rename\(") as caught:
        queue.purge()
    assert caught.value.errno == errno.EIO
    assert [library.peer(queue).lock(name) for name in names] == [False, False, True]


def test_purge_never_breaks_a_lock_that_is_younger_than_a_second(tmp_path: Path) -> None:
    """That is what tells a holder's own lock from a later one."""
    for kind in ("simple", "queue"):
        queue = queue_of(Library(), kind, tmp_path / kind)
        name = queue.add(some(kind))
        assert queue.lock(name)
        queue.purge(maxtemp=-5, maxlock=-5)
        assert not queue.lock(name)


# ---- walking


@both
@each_kind
def test_a_walk_goes_through_all_directories_in_order(library: Library, tmp_path: Path, kind: str) -> None:
    queue = queue_of(library, kind, tmp_path)
    names = sorted(f"0000000{directory}/6553f1230a1b2{element}" for directory in range(3) for element in range(4))
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch() if kind == "simple" else path.mkdir()
    for stray in ("stray", "00000001/stray", "00000001/6553f1230a1b2c.tmp", "0000000G"):
        (tmp_path / stray).touch()
    found = [queue.first()]
    while found[-1]:
        found.append(queue.next())
    assert found == [*names, ""]
    assert queue.next() == ""
    assert list(queue) == names


def test_a_loop_and_the_cursor_of_the_object_do_not_disturb_each_other(tmp_path: Path) -> None:
    queue = QueueSimple(str(tmp_path))
    names = [queue.add(b"data") for _ in range(4)]
    assert queue.first() == names[0]
    loop = iter(queue)
    assert [next(loop), queue.next(), next(loop), next(queue)] == [names[0], names[1], names[1], names[2]]
    assert list(queue.elts) == names[3:]


@both
@each_kind
def test_a_copy_begins_anew(library: Library, tmp_path: Path, kind: str) -> None:
    queue = queue_of(library, kind, tmp_path)
    names = [queue.add(some(kind)) for _ in range(2)]
    assert queue.first() == names[0]
    clone = queue.copy()
    assert clone.next() == ""
    assert clone.first() == names[0]
    assert queue.next() == names[1]
    assert (clone.id, clone.path, type(clone)) == (queue.id, queue.path, type(queue))


def test_a_copy_knows_what_the_object_has_locked(tmp_path: Path) -> None:
    library = Library()
    queue = library.queue(tmp_path)
    name = queue.add({"body": "data"})
    library.lock_long_ago(queue, name)
    clone = queue.copy()
    peer = library.peer(queue)
    peer.purge()
    assert peer.lock(name)
    with pytest.raises(QueueLockError):
        clone.remove(name)
    clone._locks.clear()
    with pytest.raises(QueueLockError):
        queue.remove(name)


@each_kind
def test_an_object_can_be_pickled(tmp_path: Path, kind: str) -> None:
    """For a program that hands its queues to children by multiprocessing."""
    queue = QueueSimple(str(tmp_path)) if kind == "simple" else Queue(str(tmp_path), schema=SCHEMA)
    name = queue.add(some(kind))
    assert queue.lock(name)
    clone = pickle.loads(pickle.dumps(queue))  # noqa: S301 - our own
    assert clone.get(name) == some(kind)
    clone.remove(name)
    assert clone.add(some(kind)) != name
    assert copy.copy(queue).count() == 1


def test_what_others_have_ended_is_not_remembered_for_ever(tmp_path: Path) -> None:
    queue, child = QueueSimple(str(tmp_path)), QueueSimple(str(tmp_path))
    held = queue.add(b"data")
    assert queue.lock(held)
    for _ in range(2 * LOCKS_MIN):
        name = queue.add(b"data")
        assert queue.lock(name)
        child.remove(name)
    assert len(queue._locks) <= LOCKS_MIN + 1
    assert held in queue._locks


@each_kind
def test_what_threads_lock_while_others_are_forgotten_is_remembered(tmp_path: Path, kind: str) -> None:
    library = Library()
    queue = queue_of(library, kind, tmp_path)
    ended, held, *late = [queue.add(some(kind)) for _ in range(4)]
    for name in (ended, held):
        assert queue.lock(name)
    library.peer(queue).remove(ended)

    def lock_late() -> None:
        threads = [threading.Thread(target=queue.lock, args=(name,)) for name in late]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    library.before("lstat", lock_late)
    queue._forget_ended()
    assert queue._locks.keys() == {held, *late}


def test_what_a_thread_locks_again_while_it_is_forgotten_is_remembered(tmp_path: Path) -> None:
    library = Library()
    queue = library.queue(tmp_path)
    name = queue.add({"body": "data"})
    assert queue.lock(name)
    library.peer(queue).unlock(name)
    next_tick(tmp_path)
    library.before("lstat", lambda: queue.lock(name))
    queue._forget_ended()
    assert queue._locks.keys() == {name}


@each_kind
def test_what_a_thread_forgets_while_it_is_unlocked_is_not_locked(tmp_path: Path, kind: str) -> None:
    library = Library()
    queue = queue_of(library, kind, tmp_path)
    name = queue.add(some(kind))
    assert queue.lock(name)
    library.peer(queue).unlock(name)
    library.before("lstat", queue._forget_ended)
    assert queue.unlock(name, permissive=True) is False


@both
@each_kind
def test_threads_may_share_an_object(library: Library, tmp_path: Path, kind: str) -> None:
    queue = queue_of(library, kind, tmp_path)
    made: list[str] = []

    def add() -> None:
        made.extend([queue.add(some(kind)) for _ in range(50)])

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == list(queue)
    assert len(set(made)) == 200


# ---- sets


@both
def test_a_set_is_walked_in_order(library: Library, tmp_path: Path) -> None:
    queues = [library.simple(tmp_path / name) for name in "abc"]
    names = [queues[number % 3].add(b"data") for number in range(9)]
    for given in (queues, [queues], [tuple(queues)]):
        found = library.QueueSet(*given)
        assert found.count() == 9
        assert [name for _, name in found] == names
        assert [queue.id for queue, _ in found.names()] == [queues[number % 3].id for number in range(9)]
        assert found.first()[1] == names[0]
        assert [found.next()[1] for _ in range(9)] == [*names[1:], None]
        assert found.next() == (None, None)
        queue, name = found.first()
        assert queue.lock(name)
        queue.unlock(name)


@both
def test_a_set_can_grow_and_shrink(library: Library, tmp_path: Path) -> None:
    one, two = library.simple(tmp_path / "one"), library.simple(tmp_path / "two")
    found = library.QueueSet()
    found.add([one])
    found.add(two)
    assert found.next() == (None, None)
    one.add(b"data")
    two.add(b"data")
    assert found.count() == 2
    found.remove(one)
    assert found.count() == 1
    found.remove(one)
    with pytest.raises(library.QueueError):
        found.add([two])
    for bad in ("queue", [two.path], None):
        with pytest.raises(TypeError):
            found.add(bad)
    with pytest.raises(TypeError):
        found.add(one, [two])
    with pytest.raises(TypeError):
        found.remove("queue")


def test_a_set_that_refuses_one_takes_none(tmp_path: Path) -> None:
    one, two = QueueSimple(str(tmp_path / "one")), QueueSimple(str(tmp_path / "two"))
    found = QueueSet(one)
    with pytest.raises(QueueError):
        found.add(two, one)
    assert [queue.id for queue in found.qset] == [one.id]


def test_loops_over_a_set_may_be_nested(tmp_path: Path) -> None:
    queues = [QueueSimple(str(tmp_path / name)) for name in "ab"]
    names = [queue.add(b"data") for queue in queues]
    found = QueueSet(queues)
    assert [(one, two) for _, one in found for _, two in found] == [(one, two) for one in names for two in names]


# ---- nothing


@both
def test_a_null_queue_forgets(library: Library, tmp_path: Path) -> None:
    queue = library.QueueNull()
    file = tmp_path / "file"
    file.touch()
    assert (queue.add(b"data"), queue.add_ref("data"), queue.add_path(str(file))) == ("", "", "")
    assert not file.exists()
    assert queue.count() == 0
    assert queue.purge(1, maxlock=2) is None
    for verb in ("get", "get_ref", "get_path", "lock", "unlock", "remove"):
        with pytest.raises(NotImplementedError, match="unsupported method"):
            getattr(queue, verb)(NAME)
    with pytest.raises(OSError, match="file"):
        queue.add_path(str(file))


def test_a_null_queue_is_a_queue() -> None:
    queue = QueueNull()
    assert isinstance(queue, QueueBase)
    assert list(QueueSet(queue)) == []
    assert (queue.path, queue.id, queue.umask) == ("NULL", "NULL", None)


# ---- errors


@each_kind
def test_errors_say_what_was_tried_and_keep_what_the_kernel_said(tmp_path: Path, kind: str) -> None:
    """Every call of every verb, refused in turn."""
    library = Library()
    queue = queue_of(library, kind, tmp_path)
    other = library.peer(queue)
    seen = set()
    for verb, call in itertools.product(VERBS, HOOKED):
        name = other.add(some(kind))
        if verb in ("get", "remove", "unlock"):
            assert queue.lock(name)
        arguments = {"add": (some(kind),)}.get(verb, (name,) if verb in VERBS[:6] else ())

        def refuse(*given: Any) -> None:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), *(one for one in given[:1] if isinstance(one, str)))

        library.replace(call, refuse)
        with suppress_and_keep() as caught:
            found = getattr(queue, verb)(*arguments)
            assert verb != "names" or list(found)
        library.kernel.replaced.clear()
        for error in caught:
            assert isinstance(error, OSError)
            assert error.errno == errno.EDQUOT
            assert str(error).startswith(f"cannot {call}({tmp_path}"), (verb, call)
            seen.add((verb, call))
        left = [path for path in tmp_path.rglob("*") if path.suffix == ".tmp" or path.parent.name == "temporary"]
        for path in left:
            assert call in ("unlink", "rmdir"), f"{verb} leaves {path} when {call} fails"
            path.unlink() if path.is_file() else path.rmdir()
    assert {("add", "open"), ("add", "write"), ("add", "close"), ("get", "read"), ("get", "fstat")} <= seen
    assert set(itertools.product(("count", "purge", "first", "names"), ("scandir",))) <= seen
    assert set(itertools.product(("purge", "first", "names"), ("listdir",))) <= seen
    assert {("lock", "lstat"), ("lock", "link" if kind == "simple" else "mkdir"), ("touch", "utime")} <= seen


@contextmanager
def suppress_and_keep() -> Iterator[list[OSError]]:
    """Take what is raised inside into the list."""
    caught: list[OSError] = []
    try:
        yield caught
    except OSError as error:
        caught.append(error)


def test_a_kind_of_os_error_stays_that_kind(tmp_path: Path) -> None:
    queue = QueueSimple(str(tmp_path), system=Kernel())
    with pytest.raises(FileNotFoundError, match=r"cannot unlink\(.*lck\): \[Errno 2\] No such file") as caught:
        queue.unlock(NAME)
    assert caught.value.errno == errno.ENOENT
    name = queue.add(b"data")
    assert queue.lock(name)
    with pytest.raises(FileExistsError, match=r"cannot link\(.*, .*lck\): \[Errno 17\] File exists"):
        queue.lock(name, permissive=False)
