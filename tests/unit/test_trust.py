"""
test_trust - who else may write where a queue lies: it is said by check and by a pool that starts, or the pool refuses
"""

from __future__ import annotations

import grp
import logging
import os
import pwd
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from orchestrator.cli.config import check
from workers import trust
from workers.anchored import Anchored
from workers.board import Board
from workers.dirq import QueueSimple
from workers.errors import OrchestratorError, QueueRefused
from workers.keeper import QueueKeeper
from workers.queues import names
from workers.queues.base import Consumer
from workers.queues.open import open_queue
from workers.system import SYSTEM, System
from workers.trust import Place, guarded, obstacles, risks

URLS = {
    "spool": "spool:{}/queue",
    "dirq-simple": "dirq-simple:{}/queue",
    "dirq": "dirq:{}/queue",
    "ddmq": "ddmq:{}/root/queue",
}
NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a directory to another user")


def made(place: Path, kind: str) -> str:
    """A queue with a message in it, and a pool's directories; its URL."""
    (place / "root").mkdir()
    url = URLS[kind].format(place)
    with open_queue(url, create=True) as queue:
        queue.put(b"content")
        kept_in = getattr(queue, "kept_in", None)
        if kind != "spool" and kept_in is not None:
            kept_in.make()
    return url


def checked(place: Path, url: str) -> tuple[int, str]:
    """Exit code and output of orchestrator check."""
    config = place.with_name("config") / "pool.toml"
    config.parent.mkdir(exist_ok=True)
    config.write_text(f'[[queue]]\nname = "in"\nurl = "{url}"\nhandler = "json:loads"\n')
    result = CliRunner().invoke(check, [str(config)])
    return result.exit_code, result.output


def opened(url: str) -> None:
    """Open it as a pool's keeper does. Raises QueueRefused."""
    board = Board.create()
    slot = board.take_queue("in", url)
    consumer = Consumer(names.master_name("one", SYSTEM), board, slot, board.take_worker(slot, 0), 0)
    QueueKeeper(lambda: open_queue(url), consumer).open()


def link(path: Path) -> None:
    path.rename(path.with_name(f"{path.name}.away"))
    path.symlink_to(path.with_name(f"{path.name}.away"))


# What is wrong: the protocol, what was done to it, and what is said of which directory.
REFUSED: list[tuple[str, Callable[[Path], object], str]] = [
    ("spool", lambda place: (place / "queue").chmod(0o777), "queue: everybody may write into it (mode 0777)"),
    ("spool", lambda place: (place / "queue").chmod(0o1777), "queue: everybody may write into it (mode 1777)"),
    ("spool", lambda place: (place / "queue/pending").chmod(0o777), "pending: everybody may write into it"),
    ("spool", lambda place: (place / "queue/.pool/leases").chmod(0o777), "leases: everybody may write into it"),
    ("spool", lambda place: link(place / "queue/errors"), "errors: it is a symbolic link"),
    ("spool", lambda place: link(place / "queue/.pool"), ".pool: it is a symbolic link"),
    ("dirq-simple", lambda place: (place / "queue.pool").chmod(0o777), "queue.pool: everybody may write into it"),
    ("dirq", lambda place: (place / "queue.pool/errors").chmod(0o757), "errors: everybody may write into it"),
    ("ddmq", lambda place: link(place / "root/queue/work"), "work: it is a symbolic link"),
]
TOLD: list[tuple[str, Callable[[Path], object], str]] = [
    ("spool", lambda place: place.chmod(0o777), "and so replace the queue in it"),
    (
        "spool",
        lambda place: (place / "queue/incoming").chmod(0o777),
        "incoming: everybody may write into it (mode 0777)",
    ),
    ("dirq", lambda place: (place / "queue").chmod(0o777), "chmod +t keeps them from that"),
    ("dirq-simple", lambda place: next((place / "queue").iterdir()).chmod(0o777), "everybody may write into it"),
    ("ddmq", lambda place: (place / "root/queue").chmod(0o777), "queue: everybody may write into it"),
]


@pytest.mark.parametrize(("kind", "spoil", "said"), REFUSED, ids=[f"{kind}: {said}" for kind, _, said in REFUSED])
def test_a_queue_whose_messages_anybody_could_replace_is_refused_by_check_and_by_a_pool(
    tmp_path: Path, kind: str, spoil: Callable[[Path], object], said: str
) -> None:
    url = made(tmp_path, kind)
    assert checked(tmp_path, url)[0] == 0
    spoil(tmp_path)
    code, output = checked(tmp_path, url)
    assert (code, "is refused" in output, said in output, "fine" in output) == (1, True, True, False)
    with pytest.raises(QueueRefused, match="is refused") as caught:
        opened(url)
    assert said in str(caught.value)


@pytest.mark.parametrize("kind", URLS)
def test_check_says_what_keeps_a_queue_from_being_made(tmp_path: Path, kind: str) -> None:
    """What may be otherwise on the pool's host is told; that a file is in the way is refused."""
    top = tmp_path / "top"
    url = URLS[kind].format(top)
    code, output = checked(tmp_path, url)
    assert (code, "warning" in output, f"{top}: it does not exist" in output) == (0, True, True)
    top.symlink_to(top)
    code, output = checked(tmp_path, url)
    assert (code, "it cannot be looked at" in output) == (0, True)
    top.unlink()
    top.touch()
    code, output = checked(tmp_path, url)
    assert (code, "something above it is no directory" in output, "fine" in output) == (1, True, False)
    assert "warning" not in output, "it is told once"
    top.unlink()
    top.mkdir()
    assert checked(tmp_path, url) == (0, f"{tmp_path.with_name('config')}/pool.toml: fine: 1 queue, 2 workers\n")
    top.chmod(0o777)
    code, output = checked(tmp_path, url)
    assert (code, output.count("and so replace the queue in it")) == (0, 1)


@pytest.mark.parametrize("kind", URLS)
def test_a_file_in_the_way_of_a_queue_is_refused_by_check_and_by_a_pool(tmp_path: Path, kind: str) -> None:
    (tmp_path / "root").mkdir()
    url = URLS[kind].format(tmp_path)
    Path(url.partition(":")[2]).touch()
    code, output = checked(tmp_path, url)
    assert (code, "it is no directory, and there must be one" in output) == (1, True)
    with pytest.raises(OrchestratorError):
        opened(url)


def test_so_is_one_in_the_way_of_a_directory_of_a_queue_and_a_link_to_nothing(tmp_path: Path) -> None:
    url = made(tmp_path, "spool")
    (tmp_path / "queue/done").touch()
    assert "done: it is no directory, and there must be one" in checked(tmp_path, url)[1]
    with pytest.raises(QueueRefused, match="done: it is no directory"):
        opened(url)
    (tmp_path / "link").symlink_to("nowhere")
    code, output = checked(tmp_path, f"spool:{tmp_path}/link")
    assert (code, "leads nowhere" in output) == (1, True)
    with pytest.raises(OrchestratorError):
        opened(f"spool:{tmp_path}/link")


@pytest.mark.parametrize("kind", URLS)
def test_check_warns_that_we_cannot_make_a_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """As on a filesystem that is mounted for reading only: its mode says nothing of that."""
    (tmp_path / "root").mkdir()
    where = tmp_path / "root" if kind == "ddmq" else tmp_path
    monkeypatch.setattr(os, "access", lambda path, mode, **_: path != str(where))
    code, output = checked(tmp_path, URLS[kind].format(tmp_path))
    assert (code, output.count("warning")) == (0, 1), "the pool may be another user's"
    assert f"{where}: user {pwd.getpwuid(os.geteuid()).pw_name} may not make what is missing in it" in output


@needs_root
def test_check_warns_that_the_daemons_user_cannot_make_a_queue(tmp_path: Path) -> None:
    where = [Place(str(tmp_path / "queue"), inboxes=("incoming",))]
    tmp_path.chmod(0o755)
    (told,) = obstacles(where, NOBODY)
    assert "may not make what is missing in it (mode 0755)" in told.text
    os.chown(tmp_path, NOBODY, -1)
    assert obstacles(where, NOBODY) == []
    os.chown(tmp_path, 0, pwd.getpwuid(NOBODY).pw_gid)
    tmp_path.chmod(0o775)
    assert obstacles(where, NOBODY) == []


def test_check_warns_of_a_program_and_a_user_that_are_not_known_here(tmp_path: Path) -> None:
    config = tmp_path / "pool.toml"
    config.write_text(
        '[daemon]\nuser = "no-such-user"\n'
        f'[[queue]]\nname = "in"\nurl = "{tmp_path}/in"\ncommand = ["no-such-program", "{{path}}"]\n'
        f'[[queue]]\nname = "here"\nurl = "{tmp_path}/here"\ncommand = ["bin/relative", "{{path}}"]\n'
    )
    result = CliRunner().invoke(check, [str(config)])
    assert result.exit_code == 0
    assert "queue in: warning: cannot run no-such-program: No such file" in result.output
    assert "warning: [daemon] there is no user no-such-user" in result.output
    assert "relative" not in result.output


def test_check_says_of_a_queue_that_no_pool_makes_that_it_is_not_there(tmp_path: Path) -> None:
    code, output = checked(tmp_path, f"set:dirq-simple:{tmp_path}/one,dirq:{tmp_path}/two")
    assert (code, output.count("this pool makes no queue")) == (0, 1)
    assert f"{tmp_path}/one" in output
    assert f"{tmp_path}/two" in output
    with pytest.raises(OrchestratorError):
        opened(f"set:dirq-simple:{tmp_path}/one,dirq:{tmp_path}/two")


@pytest.mark.parametrize(("kind", "spoil", "said"), TOLD, ids=[f"{kind}: {said}" for kind, _, said in TOLD])
def test_where_producers_may_be_meant_to_write_it_is_said_and_the_pool_runs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, spoil: Callable[[Path], object], said: str
) -> None:
    url = made(tmp_path, kind)
    spoil(tmp_path)
    code, output = checked(tmp_path, url)
    assert (code, "warning" in output, said in output) == (0, True, True)
    with caplog.at_level(logging.WARNING):
        opened(url)
    assert caplog.text.count(said) == 1


def test_a_sticky_incoming_for_everybody_is_nothing_to_speak_of(tmp_path: Path) -> None:
    url = made(tmp_path, "spool")
    (tmp_path / "queue/incoming").chmod(0o1777)
    assert checked(tmp_path, url)[1].count("\n") == 1


@needs_root
def test_neither_is_one_for_a_group(tmp_path: Path) -> None:
    url = made(tmp_path, "spool")
    os.chown(tmp_path / "queue/incoming", -1, 1)
    for mode, is_told in ((0o2775, True), (0o3775, False)):
        (tmp_path / "queue/incoming").chmod(mode)
        assert ("chmod g-w it unless that is meant" in checked(tmp_path, url)[1]) is is_told


def test_what_holds_for_many_directories_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = made(tmp_path, "spool")
    queue = tmp_path / "queue"
    for path in (queue, *queue.glob("**/")):
        path.chmod(0o777)
    refused, told = checked(tmp_path, url)[1].splitlines()
    assert refused.endswith("chmod o-w it; the same holds for pending, errors, .pool, .pool/leases")
    assert f"{queue}/incoming: everybody" in told
    monkeypatch.setattr(trust, "TOLD_MAX", 1)
    assert "the same holds for pending, 3 more\n" in checked(tmp_path, url)[1]


@pytest.mark.parametrize("kind", URLS)
def test_a_queue_that_was_made_without_a_umask_is_no_queue_that_a_pool_refuses(tmp_path: Path, kind: str) -> None:
    before = os.umask(0)
    try:
        url = made(tmp_path, kind)
        tmp_path.chmod(0o755)
        (tmp_path / "root").chmod(0o755)
        opened(url)
    finally:
        os.umask(before)
    code, output = checked(tmp_path, url)
    assert (code, "is refused" in output) == (0, False)


def test_nobody_is_told_to_make_sticky_what_a_pool_could_then_take_nothing_from(tmp_path: Path) -> None:
    (tmp_path / "incoming").mkdir()
    (tmp_path / "incoming").chmod(0o777)
    place, owner = Place(str(tmp_path), ("incoming",), ("incoming",)), os.geteuid()
    assert ["chown it to the pool's user" in str(risk) for risk in risks([place], owner)] == [False]
    if owner == 0:
        assert ["chown it to the pool's user" in str(risk) for risk in risks([place], NOBODY)] == [True]


@needs_root
def test_another_users_queue_and_a_group_are_named(tmp_path: Path) -> None:
    url = made(tmp_path, "spool")
    os.chown(tmp_path / "queue", NOBODY, -1)
    (tmp_path / "queue/pending").chmod(0o775)
    os.chown(tmp_path / "queue/pending", -1, 1)
    output = checked(tmp_path, url)[1]
    assert f"queue: it belongs to another user ({pwd.getpwuid(NOBODY).pw_name})" in output
    assert f"pending: group {grp.getgrgid(1).gr_name} may write into it (mode 0775)" in output


@needs_root
def test_the_user_that_a_daemon_becomes_is_nobody_else(tmp_path: Path) -> None:
    queue = tmp_path / "queue"
    made(tmp_path, "spool")
    for path in (queue, *queue.rglob("*")):
        os.chown(path, NOBODY, -1)
    config = tmp_path / "pool.toml"
    for user, is_told in (("", True), (f"[daemon]\nuser = '{NOBODY}'", False), ("[daemon]\nuser = 'no-such'", True)):
        config.write_text(f"[[queue]]\nurl = '{queue}'\ncommand = ['true']\n{user}\n")
        output = CliRunner().invoke(check, [str(config)]).output
        assert (f"{config}: fine" in output, "run as that user, or chown it" in output) == (True, is_told)


def test_what_lies_on_another_filesystem_is_refused(tmp_path: Path) -> None:
    if os.stat("/dev/shm").st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second filesystem here")
    found = risks([Place(str(tmp_path), ("/dev/shm",))])  # joined, it is itself
    assert any(risk.is_refused and "another filesystem" in risk.text for risk in found)


def test_hard_links_that_are_not_protected_are_spoken_of_where_others_may_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = tmp_path / "protected_hardlinks"
    monkeypatch.setattr(trust, "HARD_LINKS", str(setting))
    url = made(tmp_path, "spool")
    for text, mode, is_told in (("0\n", 0o755, False), ("1\n", 0o777, False), ("0\n", 0o777, True)):
        setting.write_text(text)
        (tmp_path / "queue/incoming").chmod(mode)
        assert ("hand over any file" in checked(tmp_path, url)[1]) is is_told


# ---- the door


@pytest.mark.parametrize("kind", URLS)
def test_a_queue_of_ours_alone_has_the_plain_door_and_one_that_a_group_may_write_the_anchored(
    tmp_path: Path, kind: str
) -> None:
    url = made(tmp_path, kind)
    with open_queue(url) as queue:
        assert type(queue.system) is System  # type: ignore[attr-defined]
    for path in (tmp_path / "queue", tmp_path / "root/queue"):
        if path.exists():
            path.chmod(0o775)
    if trust._is_private_group(tmp_path.stat().st_gid, os.geteuid()):
        os.chown(path if path.exists() else tmp_path / "queue", -1, 1)
    with open_queue(url) as queue:
        assert type(queue.system) is Anchored  # type: ignore[attr-defined]
        queue.put(b"content")
        assert queue.depth().waiting == 2


@pytest.mark.parametrize("url", ["spool:{}/incoming", "spool:{}/tmp", "spool:{}/deferred", "ddmq:{}/root/work"])
def test_a_queue_that_is_called_as_an_inbox_is_none(tmp_path: Path, url: str) -> None:
    (tmp_path / "root").mkdir()
    url = url.format(tmp_path)
    with open_queue(url, create=True):
        Path(url.partition(":")[2]).chmod(0o777)
    with open_queue(url) as queue:
        assert type(queue.system) is Anchored  # type: ignore[attr-defined]


def test_a_queue_in_a_directory_where_others_may_replace_it_has_the_anchored_door(tmp_path: Path) -> None:
    above, place = tmp_path / "above", Place(str(tmp_path / "above/between/queue"))
    os.makedirs(place.path)
    for mode, door in ((0o755, System), (0o757, Anchored), (0o1757, System)):
        above.chmod(mode)
        assert type(guarded(SYSTEM, place)) is door
    (tmp_path / "link").symlink_to(place.path)
    above.chmod(0o757)
    assert type(guarded(SYSTEM, Place(str(tmp_path / "link")))) is Anchored


def test_where_anybody_may_make_the_queue_first_the_door_is_anchored(tmp_path: Path) -> None:
    place = Place(str(tmp_path / "missing/queue"))
    for mode, door in ((0o755, System), (0o1777, Anchored)):
        tmp_path.chmod(mode)
        assert type(guarded(SYSTEM, place)) is door


def test_the_umask_that_a_queue_was_given_says_who_may_write_into_what_is_made_there(tmp_path: Path) -> None:
    """Also into the directories that are made when it was opened long ago."""
    (tmp_path / "there").mkdir(mode=0o755)
    for name in ("there", "missing"):
        for umask, door in ((0o022, System), (0, Anchored)):
            assert type(QueueSimple(f"{tmp_path}/{name}", umask).elements.system) is door
            with open_queue(f"dirq-simple:{tmp_path}/{name}?umask={umask:o}") as opened:
                assert type(opened.system) is door  # type: ignore[attr-defined]
        (tmp_path / "missing").mkdir(exist_ok=True)
        (tmp_path / "missing").chmod(0o755)
    queue = QueueSimple(f"{tmp_path}/there", 0o022)
    queue.umask = 0
    assert type(queue.elements.system) is Anchored


def test_a_group_that_is_the_users_alone_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "queue").mkdir(mode=0o700)
    found = list((tmp_path / "queue").stat())
    found[0] |= 0o020
    own = found[5], found[4]
    monkeypatch.setattr(trust, "_is_private_group", lambda *asked: asked == own)
    assert trust.writers(os.stat_result(found), found[4]) == ""
    found[5] += 1
    assert "may write into it" in trust.writers(os.stat_result(found), found[4])


def test_what_is_not_there_is_made_by_us_so_the_umask_says_who_may_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = Place(str(tmp_path / "missing"))
    for umask, door in ((0o022, System), (0o077, System), (0o002, Anchored), (0, Anchored)):
        monkeypatch.setattr(trust, "_umask", lambda umask=umask: umask)
        assert type(guarded(SYSTEM, missing)) is door


def test_the_umask_is_asked_for_without_setting_it() -> None:
    before = os.umask(0o027)
    try:
        assert trust._umask() == 0o027
    finally:
        os.umask(before)


def test_a_door_of_a_tests_own_is_left_as_it_is(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)

    class Mine(System):
        """Of a test."""

    mine = Mine()
    assert guarded(mine, Place(str(tmp_path))) is mine
