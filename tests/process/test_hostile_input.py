"""
test_hostile_input - whatever lies in incoming/, nothing hangs and nobody dies

Each is handled, or in errors/ with a reason, or (directories) stays and is named once in the log; the
files after it are handled.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.process.pools import HANDLERS, OTHER_USER, Pool, Pools, drop, files, make_queue, marks, metas, unprivileged

GIB_2 = 2 << 30
SECRET = "the secret of another user"  # noqa: S105 - what no handler may be given
NAMES = (
    b"n" * 255,
    b"long " * 49 + b".tar.gz",
    b"new\nline",
    b"escape \x1b[31m\x1b]0;title\x07",
    b"invalid \xff\xfe utf-8",
    b"-rf",
    b"--version",
    b"{path} {name}",
    b"$(touch pwned) `touch pwned` ; touch pwned",
    "umlaut \u00e4 \u202e right-to-left".encode(),
    b"space at the end ",
    b"t1c1-0123456789abcdef012345~a look-alike of a mark",
    b"a.meta",
)


def hostile(queue: Path, place: Path) -> None:
    """Put what is no message, and what is one in a strange way."""
    incoming = queue / "incoming"
    (incoming / "a-directory").mkdir()
    (incoming / "a-directory" / "inside").write_bytes(b"x")
    os.mkfifo(incoming / "a-fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.open(incoming, os.O_RDONLY | os.O_DIRECTORY)  # a socket's address holds 108 bytes
        try:
            listener.bind(f"/proc/self/fd/{here}/a-socket")
        finally:
            os.close(here)
    os.symlink("/nowhere", incoming / "a-dangling-link")
    (place / "secret").write_text(SECRET)
    os.symlink(place / "secret", incoming / "a-link-to-a-secret")
    os.symlink("/dev/zero", incoming / "a-link-to-a-device")
    for name in NAMES:
        drop(queue, name, b"x")
    drop(queue, "empty")
    sparse = queue / "tmp" / "sparse.part"
    with sparse.open("wb") as file:
        file.truncate(GIB_2)
    sparse.rename(incoming / "sparse")
    for number in range(20):
        drop(queue, f"zz{number:02}", b"x")


def check(pools: Pools, pool: Pool, queue: Path, expected_exit: int = 4) -> None:
    """What holds for every handler."""
    assert pool.wait(60) == expected_exit
    exits = [worker["exits"] for worker in pool.summary["workers"]]
    assert sum(worker[reason] for worker in exits for reason in ("signal", "oom", "timeout", "error")) == 0
    assert [path.name for path in files(queue, "incoming")] == ["a-directory"]
    assert (queue / "incoming/a-directory/inside").read_bytes() == b"x"
    assert pool.log.count("the directory a-directory stays in incoming/") >= 1
    assert not files(queue, "pending")
    reasons = {name: meta["reason"] for name, meta in metas(queue).items()}
    assert "symbolic link" in reasons["a-dangling-link"]
    assert "symbolic link" in reasons["a-link-to-a-secret"]
    assert "symbolic link" in reasons["a-link-to-a-device"]
    assert "fifo" in reasons["a-fifo"]
    assert "socket" in reasons["a-socket"]
    everything = pool.log + json.dumps(metas(queue)) + "".join(pools.journal())
    assert SECRET not in everything
    assert "\x1b" not in everything
    assert not list(pools.place.rglob("pwned"))


def test_a_handler_meets_hostile_input(pools: Pools, queue: Path) -> None:
    hostile(queue, pools.place)
    pool = pools.start(
        str(queue), "--workers", "3", "--until-empty", "--json", "--host", "alpha", "--handler", f"{HANDLERS}:note"
    )
    check(pools, pool, queue)
    assert {mark.name for mark in marks(queue, "errors")} == {
        "a-fifo", "a-socket", "a-dangling-link", "a-link-to-a-secret", "a-link-to-a-device"
    }  # fmt: skip
    noted = pools.journal()
    assert len(noted) == len(NAMES) + 2 + 20
    assert f"'sparse' {GIB_2}" in noted
    assert "'empty' 0" in noted
    for name in NAMES:
        if len(name) <= 175 and not name.startswith(b"t1c1"):
            assert f"{os.fsdecode(name)!r} 1" in noted


def test_a_program_meets_hostile_input(pools: Pools, queue: Path) -> None:
    hostile(queue, pools.place)
    script = 'stat -c %s -- "$1" >> "$JOURNAL/sizes" && printf %s "$2" | wc -c >> "$JOURNAL/names"'
    pool = pools.start(
        str(queue), "--workers", "3", "--until-empty", "--json", "--host", "alpha",
        "--", "sh", "-c", script, "sh", "{path}", "{name}",
    )  # fmt: skip
    check(pools, pool, queue)
    sizes = (pools.journal_path / "sizes").read_text().splitlines()
    assert sorted(sizes) == sorted([*(["1"] * (len(NAMES) + 20)), "0", str(GIB_2)])


def test_a_shell_command_meets_hostile_names(pools: Pools, queue: Path) -> None:
    """Even where a shell was asked for, a name is never read as text of the shell."""
    for name in NAMES:
        drop(queue, name, b"x")
    pool = pools.start(
        str(queue), "--workers", "2", "--until-empty", "--json", "--host", "alpha", "--shell",
        "--", 'cat -- {path} >/dev/null && printf "%s\\n" {worker} >> "$JOURNAL/seen"; echo {name} >/dev/null',
    )  # fmt: skip
    assert pool.wait() == 0
    assert pool.summary["outcomes"]["done"] == len(NAMES)
    assert not list(pools.place.rglob("pwned"))


def test_a_program_that_removes_its_input_or_leaves_a_file_beside_it(pools: Pools, queue: Path) -> None:
    drop(queue, "removes", b"remove")
    drop(queue, "leaves", b"leave")
    drop(queue, "zz", b"x")
    pool = pools.start(str(queue), "--workers", "1", "--handler", f"{HANDLERS}:misbehave").ready()
    pool.until(lambda: pool.outcome("done") == 3)
    pool.until(lambda: "result.csv" in metas(queue))
    assert metas(queue)["result.csv"]["reason"] == "left by a handler"
    assert [path.read_bytes() for path in files(queue, "errors")] == [b"left behind"]
    assert pool.end(signal.SIGINT) == 0
    assert sorted(pools.journal()) == ["'leaves'", "'removes'", "'zz'"]
    assert not files(queue, "pending")


@pytest.fixture(name="other")
def _other() -> Iterator[Pools]:
    """Pools of an unprivileged user, for root can read and write everything; they have a queue of their own."""
    prefix = unprivileged()
    if isinstance(prefix, str):
        pytest.skip(prefix)
    # Not pytest's own directories: these are closed to other users.
    with tempfile.TemporaryDirectory(prefix="orchestrator-test-") as name:
        pools = Pools(Path(name), prefix=tuple(prefix))
        make_queue(pools.place / "queue").close()
        (pools.place / "run").mkdir(mode=0o700)
        if os.geteuid() == 0:
            for path in (pools.place, *pools.place.rglob("*")):
                os.chown(path, OTHER_USER, OTHER_USER)
        try:
            yield pools
        finally:
            pools.end_all()


def test_an_unreadable_file_is_rejected_with_the_reason(other: Pools) -> None:
    queue = other.place / "queue"
    drop(queue, "unreadable", b"x")
    (queue / "incoming/unreadable").chmod(0)
    drop(queue, "zz", b"x")
    pool = other.start(str(queue), "--workers", "2", "--until-empty", "--json", "--handler", f"{HANDLERS}:note")
    assert pool.wait() == 4, pool.log
    assert "permission denied" in metas(queue)["unreadable"]["reason"]
    assert other.journal() == ["'zz' 1"]


@pytest.mark.parametrize(("closed", "body"), [("incoming", b"x"), ("errors", b"reject"), ("errors", b"fail")])
def test_a_directory_without_permission_is_named_and_the_pool_goes_on_when_it_is_given(
    other: Pools, closed: str, body: bytes
) -> None:
    """A worker that may not claim or reject waits, and dies of nothing."""
    queue = other.place / "queue"
    words = ("--workers", "2", "--max-attempts", "1", "--handler", f"{HANDLERS}:answer")
    pool = other.start(str(queue), *words).ready()
    spool = make_queue(queue)
    spool.pause()
    pool.until(lambda: pool.queues["queue"]["paused"])
    spool.put(body)
    (queue / closed).chmod(0o500)
    spool.resume()

    pool.until(lambda: "Permission denied" in pool.log)
    assert str(queue) in pool.log
    assert len(files(queue, "pending")) == (closed == "errors")
    assert pool.outcome("done") == pool.outcome("rejected") == 0

    (queue / closed).chmod(0o700)
    pool.until(lambda: pool.outcome("done" if body == b"x" else "rejected") == 1)
    assert sum(worker["exits"]["error"] for worker in pool.queues["queue"]["workers"]) == 0
    assert len(other.journal()) == 1
    assert pool.end() == 0
    assert len(files(queue, "errors")) == len(metas(queue)) == (body != b"x")


@pytest.mark.parametrize("closed", ["tmp", "incoming"])
def test_a_put_without_permission_says_where_and_leaves_nothing(other: Pools, closed: str) -> None:
    queue = other.place / "queue"
    (queue / closed).chmod(0o500)
    code, said = other.run("put", str(queue), stdin=b"x")
    assert code == 1
    assert "Permission denied" in said
    assert str(queue) in said
    assert "Traceback" not in said
    assert not files(queue, "incoming")
    assert not files(queue, "tmp")
