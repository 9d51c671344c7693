"""
test_anchored - no verb is led out of a queue by a link

Who may write into a queue's directories can put a link where a directory was, at any moment: nothing of ours follows.

At a call to the kernel of each verb (ORCHESTRATOR_SWAPS=1: at each) a directory of the queue is replaced by a symbolic
link to a place outside, where the same names lie; and that place must be as it was then. The plain door does follow,
which is shown too.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from orchestrator.cli import queue as cli_queue
from tests.rig import FakeSystem, Rig, World
from tests.rig import Pool as SpoolPool
from tests.rig_ddmq import DdmqPool
from tests.rig_dirq import SCHEMA, SIMPLE, DirqPool
from tests.rig_foreign import ForeignPool
from workers.anchored import Anchored
from workers.errors import OrchestratorError
from workers.message import Claim
from workers.queues.open import open_queue
from workers.system import SYSTEM

STRIDE = int(os.environ.get("ORCHESTRATOR_SWAPS", "5"))  # of the swaps that there are each so many-th is made; 1: all
SECRET = b"of nobody who put it there"
STALE_S = 200.0  # longer than stale_after of all of these queues

Pool = SpoolPool | ForeignPool[Any]


class Bench:
    """One pool on one queue, with a message in each state, and a place outside that nobody gave us."""

    def __init__(self, place: Path, kind: str, *, is_anchored: bool) -> None:
        place.mkdir()
        self.top, self.outside = place / "top", place / "outside"
        self.top.mkdir()
        self.outside.mkdir()
        self.world = World(place, Anchored(str(self.top)) if is_anchored else SYSTEM)
        self.pool: Pool
        if kind == "spool":
            self.pool = Rig(self.top / "queue", self.world).pool()
            self.queue, self.keeping = self.pool.spool, self.pool.keeping
        else:
            path = self.top / "queue"
            made = DdmqPool(path, self.world) if kind == "ddmq" else DirqPool(path, self.world, kind)
            self.pool, self.queue, self.keeping = made, made.queue, made.keeping
        self.read: list[bytes] = []
        for body in (b"one", b"two", b"three", b"four"):
            self.queue.put(body, durable=False)
        for verb, arguments in (("reject", ("why",)), ("retry", ())):
            claim = self.claim()
            getattr(self.queue, verb)(claim, *arguments)
            self.queue.settled(claim)
        self.in_hand = self.claim()

    @property
    def systems(self) -> tuple[FakeSystem, FakeSystem]:
        """Of the worker and the keeper."""
        return self.pool.system, self.pool.keeper_system

    def claim(self) -> Claim:
        claim = self.queue.claim()
        assert claim is not None
        return claim

    def directories(self) -> list[Path]:
        """Each of the queue and beside it, but for the tops, which the operator named."""
        tops = {self.top / "queue", self.top / "queue.pool"}
        found = [Path(base) for base, _, _ in os.walk(self.top)]
        return [path for path in found if path not in tops and path != self.top]

    def swap(self, directory: Path) -> None:
        """Put a link to the place outside where *directory* is."""
        if directory.is_symlink() or not directory.is_dir():
            return
        shutil.copytree(directory, self.outside / "in", symlinks=True)
        for base, _, files in os.walk(self.outside / "in"):
            for file in files:
                (Path(base) / file).chmod(0o600)
                (Path(base) / file).write_bytes(SECRET)
        os.rename(directory, directory.with_name(f"{directory.name}.away"))
        directory.symlink_to(self.outside / "in")
        self.before = self.seen()

    def seen(self) -> list[tuple[str, int, int, int, bytes]]:
        """All that an outsider would miss or find: names, modes, times, links, contents."""
        found = []
        for path in sorted(self.outside.rglob("*")):
            info = path.lstat()
            content = path.read_bytes() if path.is_file() else b""
            found.append((str(path), info.st_mode, info.st_mtime_ns, info.st_nlink, content))
        return found

    def is_safe(self) -> bool:
        """Whether what is outside is as it was, and nothing of it was taken for a message."""
        inside = [path for path in self.top.rglob("*") if not path.is_symlink() and path.is_file()]
        copied = any(SECRET in path.read_bytes() for path in inside)
        return self.seen() == self.before and not copied and SECRET not in self.read


def _claim(bench: Bench) -> None:
    bench.queue.settled(bench.in_hand)
    claim = bench.queue.claim()
    if claim is not None and claim.fd >= 0:
        bench.read.append(os.pread(claim.fd, 1000, 0))


def _settle(verb: str, *arguments: object) -> Callable[[Bench], None]:
    def settle(bench: Bench) -> None:
        getattr(bench.queue, verb)(bench.in_hand, *arguments)

    return settle


def _requeue(bench: Bench) -> None:
    for listed in list(bench.queue.list("errors")):
        bench.queue.requeue(listed.name)


def _show(bench: Bench) -> None:
    for state in ("waiting", "claimed", "deferred", "errors"):
        for listed in list(bench.queue.list(state))[:1]:
            bench.queue.show(listed.name)


def _release(bench: Bench) -> None:
    owners = [path.name for path in (bench.top / "queue" / "pending").glob("*")]
    owners += [path.name for path in (bench.top / "queue.pool" / "held").glob("*")]
    for owner in owners:
        bench.keeping.release_owner(owner, "died", "")


def _keep(bench: Bench) -> None:
    bench.pool.rounds(every_s=STALE_S)


VERBS: dict[str, Callable[[Bench], object]] = {
    "put": lambda bench: bench.queue.put(b"five"),
    "claim": _claim,
    "done": _settle("done"),
    "retry": _settle("retry"),
    "reject": _settle("reject", "why"),
    "release": _settle("release"),
    "requeue": _requeue,
    "show": _show,
    "release of the dead": _release,
    "keep": _keep,
}


def _calls(bench: Bench, verb: str, strike: Callable[[int], object]) -> int:
    """Do it, with *strike* before each call to the kernel, which is told how many there were; how many there are."""
    count = 0

    def before(*_: object) -> None:
        nonlocal count
        strike(count)
        count += 1

    for system in bench.systems:
        system.before = before
    with contextlib.suppress(OSError, OrchestratorError):
        VERBS[verb](bench)
    for system in bench.systems:
        system.before = None
    return count


def _swapped(place: Path, kind: str, verb: str, *, is_anchored: bool) -> Iterator[tuple[str, int, bool]]:
    """Each directory, each call before which it was swapped, and whether what is outside was safe."""
    number = 0

    def fresh() -> Bench:
        nonlocal number
        number += 1
        return Bench(place / str(number), kind, is_anchored=is_anchored)

    first = fresh()
    directories = len(first.directories())
    swaps = itertools.product(range(_calls(first, verb, lambda _: None)), range(directories))
    for nth, which in itertools.islice(swaps, 0, None, STRIDE):
        bench = fresh()
        directory = bench.directories()[which]
        _calls(bench, verb, lambda at: bench.swap(directory) if at == nth else None)  # noqa: B023 - called at once
        if directory.is_symlink():
            yield directory.name, nth, bench.is_safe()
        shutil.rmtree(bench.top.parent)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("kind", ["spool", SIMPLE, SCHEMA, "ddmq"])
def test_no_verb_follows_a_directory_that_becomes_a_link_at_any_call(tmp_path: Path, kind: str, verb: str) -> None:
    found = list(_swapped(tmp_path, kind, verb, is_anchored=True))
    assert [(name, nth) for name, nth, is_safe in found if not is_safe] == []
    assert found
    sys.stderr.write(f"{kind} {verb}: {len(found)} swaps\n")


@pytest.mark.parametrize("kind", ["spool", SIMPLE, SCHEMA, "ddmq"])
def test_the_plain_door_is_led_astray_so_the_attack_is_one(tmp_path: Path, kind: str) -> None:
    assert not all(is_safe for _, _, is_safe in _swapped(tmp_path, kind, "claim", is_anchored=False))


def test_what_is_forwarded_is_what_was_claimed_whatever_is_called_so_by_now(tmp_path: Path) -> None:
    """Else who reads the next queue would be shown a file that is nobody's message."""
    bench = Bench(tmp_path / "bench", "spool", is_anchored=True)
    with open_queue(f"dirq-simple:{tmp_path}/next", create=True) as following:
        bench.swap(Path(bench.in_hand.path).parent)
        with contextlib.suppress(OrchestratorError):
            bench.queue.forward(bench.in_hand, following)
        (listed,) = following.list("waiting")
        assert Path(listed.path).read_bytes() == b"three"


def test_a_message_is_forwarded_into_no_link_of_another_queue(tmp_path: Path) -> None:
    """Ours may be for us alone, and that one not."""
    bench = Bench(tmp_path / "bench", "spool", is_anchored=False)
    outside, following = tmp_path / "outside", tmp_path / "next"
    outside.mkdir()
    open_queue(str(following), create=True).close()
    (following / "incoming").rmdir()
    following.chmod(0o777)
    with open_queue(str(following), create=True) as queue:
        (following / "incoming").rmdir()
        (following / "incoming").symlink_to(outside)
        with pytest.raises(OrchestratorError, match="Not a directory"):
            bench.queue.forward(bench.in_hand, queue)
        assert os.listdir(outside) == []
        (following / "incoming").unlink()
        (following / "incoming").mkdir()
        bench.queue.forward(bench.in_hand, queue)
        assert queue.depth().waiting == 1


def test_the_body_that_is_shown_is_not_that_of_a_file_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path / "bench", "spool", is_anchored=True)
    path, write = bench.top / "queue", cli_queue._write_body
    path.chmod(0o777)
    (path / "errors/name").write_bytes(b"content")

    def swapped(*arguments: Any) -> None:
        bench.swap(path / "errors")
        write(*arguments)

    monkeypatch.setattr(cli_queue, "_write_body", swapped)
    result = CliRunner().invoke(cli_queue.show, [str(path), "name", "--body"])
    assert SECRET not in result.stdout_bytes
    assert isinstance(result.exception, NotADirectoryError)


def test_a_root_is_anchored_as_its_caller_has_written_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "outside/inner").mkdir(parents=True)
    (tmp_path / "root/link").symlink_to("../outside")
    monkeypatch.chdir(tmp_path)
    for root in ("root", "./root", "root/", f"{tmp_path}/./root", "."):
        with pytest.raises(NotADirectoryError):
            Anchored(root).listdir(f"{root}/root/link" if root == "." else f"{root}/link")
    assert Anchored("root").listdir("root//") == ["link"]


def test_a_root_that_becomes_a_link_is_not_followed_and_one_that_was_named_as_one_is(tmp_path: Path) -> None:
    (tmp_path / "root/inner").mkdir(parents=True)
    (tmp_path / "outside/inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to("root")
    root, link = Anchored(f"{tmp_path}/root"), Anchored(f"{tmp_path}/link")
    assert (root.listdir(f"{tmp_path}/root/inner"), link.listdir(f"{tmp_path}/link/inner")) == ([], [])
    (tmp_path / "root").rename(tmp_path / "away")
    (tmp_path / "root").symlink_to("outside")
    with pytest.raises(NotADirectoryError):
        root.mkdir(f"{tmp_path}/root/inner/new")
    assert os.listdir(tmp_path / "outside/inner") == []


def test_the_anchored_door_answers_as_the_plain_one_does(tmp_path: Path) -> None:
    """But for what leads out, which is no directory to it."""
    outside = tmp_path / "outside"
    (outside / "inner").mkdir(parents=True)
    (tmp_path / "root/inner").mkdir(parents=True)
    (tmp_path / "root/inner/file").write_bytes(b"content")
    door, root = Anchored(str(tmp_path / "root")), f"{tmp_path}/root"
    for path in (f"{root}/inner/missing", f"{root}/missing/file", f"{root}/inner/file/file"):
        errors = []
        for system in (door, SYSTEM):
            with pytest.raises(OSError, match=r"No such|Not a") as caught:
                system.lstat(path)
            errors.append((caught.value.errno, type(caught.value)))
        assert errors[0] == errors[1]
    assert door.listdir(root) == ["inner"]
    assert door.lstat(f"{root}//inner/file").st_size == 7
    (tmp_path / "root/link").symlink_to(outside)
    for call, path in ((door.listdir, ""), (door.rmdir, ""), (door.lstat, "/inner"), (door.mkdir, "/new")):
        with pytest.raises(NotADirectoryError):
            call(f"{root}/link{path}")
    with pytest.raises(OSError, match="leads out of the queue"):
        door.unlink(f"{root}/inner/../../outside/inner")
    with pytest.raises(FileNotFoundError) as caught_two:
        door.rename(f"{root}/inner/missing", f"{root}/inner/new")
    assert (caught_two.value.filename, caught_two.value.filename2) == (f"{root}/inner/missing", f"{root}/inner/new")
    assert os.listdir(outside) == ["inner"]
