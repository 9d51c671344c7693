"""
test_daemon - who a daemon becomes, and what passes between it and its launcher
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pwd
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from orchestrator import identity, launch, rundir
from orchestrator.config import Config
from orchestrator.daemon import TEXT_MAX, Launcher, Serve
from orchestrator.identity import Identity, IdentityError, identify
from orchestrator.rundir import RunDirError
from tests.waiting import signal_elsewhere, until
from workers.system import process_state

NOBODY = 12345  # nobody's number


@pytest.fixture(name="channel")
def _channel() -> Iterator[tuple[Launcher, socket.socket]]:
    """The daemon's end as a logging handler, and the launcher's."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(0)
    launcher = Launcher(theirs)
    log = logging.getLogger("test_daemon")
    log.addHandler(launcher)
    yield launcher, ours
    log.removeHandler(launcher)
    ours.close()
    theirs.close()


def received(ours: socket.socket) -> list[dict[str, Any]]:
    """All that was told, until now or until the end."""
    packets = []
    while True:
        try:
            packet = ours.recv(1 << 20)
        except BlockingIOError:
            return packets
        if not packet:
            return packets
        packets.append(json.loads(packet))


# ---- the channel


def test_errors_are_passed_on_and_warnings_are_not(channel: tuple[Launcher, socket.socket]) -> None:
    log = logging.getLogger("test_daemon")
    log.warning("no")
    log.error("queue %s is refused", "a\nb")
    try:
        raise LookupError("gone")
    except LookupError:
        log.exception("it failed")
    assert received(channel[1]) == [{"error": r"queue a\nb is refused"}, {"error": "it failed: LookupError: gone"}]


def test_the_last_word_ends_the_channel_and_what_is_logged_later_harms_nobody(
    channel: tuple[Launcher, socket.socket], capsys: pytest.CaptureFixture[str]
) -> None:
    launcher, ours = channel
    assert launcher.name_myself()
    launcher.ready()
    launcher.ended(1)
    logging.getLogger("test_daemon").error("late")
    assert received(ours) == [{"pid": os.getpid()}, {"ready": True}]
    assert "Logging error" not in capsys.readouterr().err


def test_a_launcher_that_is_gone_is_noticed_only_where_it_matters(channel: tuple[Launcher, socket.socket]) -> None:
    launcher, ours = channel
    ours.close()
    logging.getLogger("test_daemon").error("nobody reads this")
    assert not launcher.name_myself()
    launcher.ended(1)


def test_a_launcher_that_reads_nothing_holds_nobody_up(channel: tuple[Launcher, socket.socket]) -> None:
    """It was stopped by its terminal. Errors are lost then, and the number of what is lost does not matter."""
    for number in range(1000):
        logging.getLogger("test_daemon").error("%d %s", number, "x" * TEXT_MAX)
    found = received(channel[1])
    assert 0 < len(found) < 1000
    assert all(len(one["error"]) == TEXT_MAX for one in found)


def test_a_fault_in_a_call_that_logs_is_shown_and_stops_nobody(
    channel: tuple[Launcher, socket.socket], capsys: pytest.CaptureFixture[str]
) -> None:
    channel[0].handle(logging.LogRecord("test_daemon", logging.ERROR, "here", 1, "%d", ("no number",), None))
    assert "Logging error" in capsys.readouterr().err
    assert received(channel[1]) == []


def _end_in(seconds: int) -> None:
    """End this forked process where nobody else does: not by the handler of the test that it was forked from."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(seconds)


@pytest.mark.parametrize(
    "packets",
    [
        [b'{"pid": %(stranger)d}', b'{"ended": 1}'],
        [b'{"pid": "x"}', b'{"error": {"a": 1}}', b'{"ended": "\\u001b[2J"}'],
        [b"", b"no JSON"],
        [b"[" * 60000, b"3", b'{"ended": 1}'],
    ],
    ids=["another process", "other types", "nothing", "no JSON"],
)
def test_whoever_has_the_channel_has_nobody_ended_but_the_daemon(
    packets: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root launches; a handler of the user that the daemon has become says what it likes before the pool is ready."""
    stranger = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)

    def become(config: Config, serve: Serve, launcher: Launcher) -> NoReturn:
        if os.fork() == 0:
            _end_in(20)
            launcher.name_myself()
            channel = socket.socket(fileno=launcher.fileno())
            with contextlib.suppress(OSError):  # the launcher has heard enough
                for packet in packets:
                    channel.send(packet.replace(b"%(stranger)d", b"%d" % stranger.pid))
            signal.pause()
        os._exit(0)

    monkeypatch.setattr(launch, "become", become)
    monkeypatch.setattr(launch, "END_S", 0.2)
    try:
        found = launch.launch(Config.model_construct(), lambda _: 0)
        assert stranger.poll() is None
    finally:
        stranger.communicate(b"\n")
    assert found.code == 1
    assert not found.is_ready
    assert found.pid != stranger.pid
    until(lambda: process_state(found.pid) in (None, "Z"))  # collected by whom it was given to


def test_a_daemon_that_named_itself_a_moment_before_the_interrupt_is_ended_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    named = tmp_path / "named"

    def become(config: Config, serve: Serve, launcher: Launcher) -> NoReturn:
        if os.fork() == 0:
            _end_in(20)
            launcher.name_myself()
            named.with_suffix(".new").write_text(str(os.getpid()))
            named.with_suffix(".new").rename(named)
            signal.pause()
        os._exit(0)

    def follow(*_: object) -> NoReturn:
        until(named.exists)
        raise KeyboardInterrupt

    monkeypatch.setattr(launch, "become", become)
    monkeypatch.setattr(launch._Waiting, "follow", follow)
    with pytest.raises(KeyboardInterrupt):
        launch.launch(Config.model_construct(), lambda _: 0)
    assert process_state(int(named.read_text())) in (None, "Z")


def test_an_interrupt_that_comes_before_the_wait_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the interpreter's last look and the wait it ends no wait; nor does one that another thread is given."""
    follow = launch._Waiting.follow

    def become(config: Config, serve: Serve, launcher: Launcher) -> NoReturn:
        _end_in(120)
        while True:
            signal.pause()

    def interrupted(waiting: launch._Waiting, timeout_s: float) -> launch.Launched:
        signal_elsewhere(signal.SIGINT)
        return follow(waiting, timeout_s)

    monkeypatch.setattr(launch, "become", become)
    monkeypatch.setattr(launch._Waiting, "follow", interrupted)
    with pytest.raises(KeyboardInterrupt):
        launch.launch(Config.model_construct(), lambda _: 0)


def test_what_comes_up_the_channel_is_bounded_and_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    def become(config: Config, serve: Serve, launcher: Launcher) -> NoReturn:
        channel = socket.socket(fileno=launcher.fileno())
        for number in range(launch.REASONS_MAX + 10):
            channel.send(json.dumps({"error": f"\x1b[2J{number}" + "x" * TEXT_MAX}).encode())
        launcher.ended(1)
        os._exit(0)

    monkeypatch.setattr(launch, "become", become)
    found = launch.launch(Config.model_construct(), lambda _: 0)
    assert len(found.reasons) == launch.REASONS_MAX
    assert found.reasons[0].startswith(r"\x1b[2J0x")
    assert {len(reason) for reason in found.reasons} == {TEXT_MAX}


# ---- identity


def test_nothing_asked_is_nothing_changed() -> None:
    assert identify(None, None) is None


def test_a_user_brings_his_group_and_his_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    user = pwd.struct_passwd(("orders", "x", 700, 701, "", "/", ""))
    monkeypatch.setattr(pwd, "getpwnam", {"orders": user}.__getitem__)
    monkeypatch.setattr(pwd, "getpwuid", {700: user}.__getitem__)
    monkeypatch.setattr(os, "getgrouplist", lambda name, gid: [gid, 800] if name == "orders" else [])
    assert identify("orders", None) == identify("700", None) == Identity(700, 701, (701, 800))
    assert identify("orders", "900") == Identity(700, 900, (900, 800))


def test_a_user_without_a_name_needs_a_group_and_has_only_that() -> None:
    assert identify(str(NOBODY), "900") == Identity(NOBODY, 900, (900,))
    with pytest.raises(IdentityError, match=r"user 12345 has no name.*: give a group too"):
        identify(str(NOBODY), None)


def test_a_group_alone_leaves_the_user_and_drops_the_other_groups() -> None:
    assert identify(None, "900") == Identity(os.getuid(), 900, (900,))


@pytest.mark.parametrize(("user", "group"), [("no such", None), ("root", "no such"), (None, "no such")])
def test_an_unknown_name_is_said(user: str | None, group: str | None) -> None:
    with pytest.raises(IdentityError, match=r"there is no (user|group) no such"):
        identify(user, group)


def test_who_is_that_user_already_and_no_root_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("getuid", "geteuid"):
        monkeypatch.setattr(identity.os, name, lambda: NOBODY)
    monkeypatch.setattr(identity.os, "getgid", lambda: 900)
    assert identify(str(NOBODY), "900") is None
    assert identify(str(NOBODY), "901") is not None


def test_the_environment_tells_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    users = {700: pwd.struct_passwd(("orders", "x", 700, 701, "", "/srv/orders", "/bin/sh"))}
    monkeypatch.setattr(pwd, "getpwuid", users.__getitem__)
    expected = {"HOME": "/srv/orders", "USER": "orders", "LOGNAME": "orders", "SHELL": "/bin/sh"}
    assert identity.environment(700) == expected
    assert identity.environment(NOBODY) == {"HOME": "/", "USER": None, "LOGNAME": None, "SHELL": None}


# ---- the run directory of somebody else


root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")


@pytest.fixture(name="masked")
def _masked() -> Iterator[None]:
    """What root's shell may have set."""
    before = os.umask(0o077)
    yield
    os.umask(before)


@root_only
@pytest.mark.usefixtures("masked")
def test_a_run_directory_is_made_for_the_user_below_what_he_can_pass(place: Path) -> None:
    for _ in range(2):
        rundir.prepare(place / "run", "demo", (NOBODY, NOBODY))
    assert ((place / "run").stat().st_uid, (place / "run").stat().st_mode & 0o777) == (0, 0o755)
    own = (place / "run" / "demo").stat()
    assert (own.st_uid, own.st_gid, own.st_mode & 0o777) == (NOBODY, NOBODY, 0o700)


@root_only
def test_in_a_directory_of_the_user_his_own_is_made_with_his_rights(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is given away there: he could have put a link in its place meanwhile."""

    def chown(*arguments: object, **more: object) -> None:
        raise AssertionError(arguments)

    (place / "run").mkdir(mode=0o755)
    os.chown(place / "run", NOBODY, NOBODY)
    monkeypatch.setattr(os, "chown", chown)
    for _ in range(2):
        rundir.prepare(place / "run", "demo", (NOBODY, NOBODY))
    own = (place / "run" / "demo").stat()
    assert (own.st_uid, own.st_gid, own.st_mode & 0o777) == (NOBODY, NOBODY, 0o700)
    assert (os.geteuid(), os.getegid()) == (0, 0)
    (place / "run" / "link").symlink_to(place)
    with pytest.raises(RunDirError, match="symbolic link"):
        rundir.prepare(place / "run", "link", (NOBODY, NOBODY))


@root_only
@pytest.mark.usefixtures("masked")
def test_the_pools_of_other_users_find_their_way_past_a_first_pool_of_root(place: Path) -> None:
    rundir.RunDir.acquire(place / "run", "first").release()
    assert (place / "run").stat().st_mode & 0o777 == 0o755
    rundir.prepare(place / "run", "second", (NOBODY, NOBODY))


@root_only
@pytest.mark.parametrize("closed", ["above", "above/run"])
def test_a_directory_that_the_user_may_not_enter_is_named_before_anything_is_made(place: Path, closed: str) -> None:
    (place / "above" / "run").mkdir(parents=True)
    (place / closed).chmod(0o700)
    with pytest.raises(RunDirError, match=rf"user {NOBODY} may not enter {place / closed} \(mode 700\); chmod o\+x"):
        rundir.prepare(place / "above" / "run", "demo", (NOBODY, NOBODY))
    assert (os.geteuid(), os.getegid()) == (0, 0)
    assert not (place / "above" / "run" / "demo").exists()


@root_only
def test_root_makes_no_directory_where_a_link_of_the_user_leads(place: Path) -> None:
    (place / "theirs").mkdir()
    os.chown(place / "theirs", NOBODY, NOBODY)
    (place / "root").mkdir()
    (place / "theirs" / "link").symlink_to(place / "root")
    with pytest.raises(RunDirError, match="there is a link on the way"):
        rundir.prepare(place / "theirs" / "link" / "run", "demo", (NOBODY, NOBODY))
    assert os.listdir(place / "root") == []


@pytest.mark.usefixtures("masked")
def test_a_pools_own_directory_is_for_us_alone(tmp_path: Path) -> None:
    rundir.prepare(tmp_path / "run", "demo")
    assert (tmp_path / "run").stat().st_mode & 0o777 == (0o755 if os.geteuid() == 0 else 0o700)
    assert (tmp_path / "run" / "demo").stat().st_mode & 0o777 == 0o700
