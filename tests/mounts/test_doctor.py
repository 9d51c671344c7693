"""
test_doctor - the doctor on real filesystems, from one host and from two at the same time

NFS from two machines, sshfs and GlusterFS from two mounts, and a FUSE layer that loses replies and hangs. The
long form (ORCHESTRATOR_MOUNTS set) waits until every delay is known and prints the whole verdicts:

    ORCHESTRATOR_MOUNTS=1 pytest -s tests/mounts/test_doctor.py
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.mounts.faultfs import LIST, RENAME, faulty
from tests.mounts.gluster import cluster
from tests.mounts.guests import guests
from tests.mounts.sshfs import sshfs
from workers.queues.base import Settings
from workers.queues.spool import Spool

ROOT = Path(__file__).parents[2]
IS_LONG = "ORCHESTRATOR_MOUNTS" in os.environ
LONGEST = "40s" if IS_LONG else "2s"  # what an NFS client keeps, and sshfs, is longer than CI waits
LIMIT_S = 150.0

Command = Sequence[str]


def examined(*commands: Command) -> list[dict[str, Any]]:
    """What doctors that are started by *commands* at the same time say, as JSON; each with its exit code."""
    own = {**os.environ, "PYTHONPATH": str(ROOT)}
    found = []
    with contextlib.ExitStack() as stack:
        begun = [
            stack.enter_context(
                subprocess.Popen(
                    [*command, "--json"], cwd=ROOT, env=own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
                )
            )
            for command in commands
        ]
        for one in begun:
            stack.callback(one.kill)
        for one in begun:
            said, errors = one.communicate(timeout=LIMIT_S)
            assert said, errors
            found.append({**json.loads(said), "code": one.returncode})
    if IS_LONG:
        print(told(found[0]))  # noqa: T201 - what the long form is run for
    return found


def told(found: dict[str, Any]) -> str:
    """A verdict in lines, for whoever reads the long form's output."""
    lines = [f"{one['level']:8} {one['key']:16} {one['measured']}" for one in found["findings"]]
    return "\n".join(["", *lines, found["sentence"], found["toml"]])


def doctor(prefix: Command, path: Path, *more: str) -> Command:
    """The command, where *prefix* begins that of a Python."""
    return [*prefix, "-m", "orchestrator", "doctor", str(path), "--longest", LONGEST, *more]


def levels(found: dict[str, Any]) -> dict[str, str]:
    """The level of each finding."""
    return {one["key"]: one["level"] for one in found["findings"]}


def measured(found: dict[str, Any], key: str) -> str:
    """What was measured of one thing."""
    return next(str(one["measured"]) for one in found["findings"] if one["key"] == key)


RACES = ("hosts.rename", "hosts.link", "hosts.mkdir", "hosts.create")


def check_pair(both: list[dict[str, Any]]) -> dict[str, Any]:
    """Both say the same, and no race had two winners."""
    first, second = both
    assert first["sentence"] == second["sentence"]
    assert first["findings"] == second["findings"]
    assert first["facts"]["together"] == second["facts"]["together"]
    found = levels(first)
    assert {found[key] for key in RACES} <= {"ok", "note"}, told(first)
    return first


def check_one_machine(found: dict[str, Any]) -> None:
    """Nothing is wrong between the two mounts, but they are of one machine."""
    assert "failed" not in levels(found).values(), told(found)
    assert found["verdict"] == "one host", told(found)
    assert "no two machines were compared" in found["sentence"]


# ---- two machines


@pytest.mark.parametrize("version", ["4.2", "3"] if IS_LONG else ["4.2"])
def test_two_machines_on_nfs_may_share_a_queue_and_are_told_what_differs(tmp_path: Path, version: str) -> None:
    """One of them with its clock an hour ahead."""
    with guests(tmp_path) as site:
        mounted = [site.mount(client, version) for client in site.clients]
        site.clients[1].set_clock(3600)
        site.clients[0].done(f"mkdir {mounted[0]}/queue")
        both = examined(
            *(
                doctor(client.prefix, point / "queue", "--peer")
                for client, point in zip(site.clients, mounted, strict=True)
            )
        )
        found = check_pair(both)
        assert found["verdict"] == "good", told(found)
        assert found["hosts"] == ["guest2", "guest3"]
        assert [one["code"] for one in both] == [0, 0]
        assert f"vers={version}" in measured(found, "mount")
        assert measured(found, "hosts.clocks").startswith(("3600 s apart", "3599 s apart", "3601 s apart"))
        assert measured(found, "hosts.inotify") == "silent about other hosts"
        assert levels(found)["hosts.stat"] == "note", "a client keeps for a while that a name is missing"
        assert [one["key"] for one in found["settings"] if one["key"] != "workers"] == ["create"]
        assert site.clients[0].done(f"ls -A {mounted[0]}/queue") == ""


# ---- two mounts of one machine


def test_sshfs_without_its_cache_of_directories_may_be_shared(tmp_path: Path) -> None:
    with sshfs(tmp_path, "dir_cache=no") as mounts:
        found = check_pair(examined(*(doctor(host.enter, host.inside, "--peer") for host in mounts.hosts)))
        check_one_machine(found)
        assert levels(found)["ctime"] == "warning", "the protocol has no such time"
        assert levels(found)["hosts.locks"] == "note", "no lock is seen by the other"
        assert [(one["key"], one["value"]) for one in found["settings"] if one["key"] == "stale_after"]
        assert list(mounts.server.path.iterdir()) == []


def test_sshfs_as_it_comes_shows_new_names_too_late(tmp_path: Path) -> None:
    """Later than the short form waits; the long form knows after 20 s how late."""
    with sshfs(tmp_path) as mounts:
        found = check_pair(examined(*(doctor(host.enter, host.inside, "--peer") for host in mounts.hosts)))
        assert found["verdict"] == "one host", told(found)
        words = "is listed on another only after" if IS_LONG else "is listed on another not within 2.0 s"
        assert words in found["sentence"]


@pytest.mark.skipif(not IS_LONG, reason="ten seconds to start; in the long form (ORCHESTRATOR_MOUNTS)")
def test_glusterfs_may_be_shared(tmp_path: Path) -> None:
    with cluster(tmp_path) as volume:
        hosts = volume.hosts[:2]
        check_one_machine(check_pair(examined(*(doctor(host.enter, host.inside, "--peer") for host in hosts))))


# ---- a queue at work


def test_a_pool_at_work_in_the_same_directory_is_not_disturbed(tmp_path: Path) -> None:
    """Two doctors examine the queue together while its pool handles 300 messages; each is handled once."""
    queue, handled = tmp_path / "queue", tmp_path / "handled"
    handled.mkdir()
    with Spool(str(queue), Settings(create=True)) as spool:
        names = spool.put_many([b"%d" % number for number in range(300)], durable=False)
    pool = ["-m", "orchestrator", "run", str(queue), "--until-empty", "--workers", "2", "--listen", "none"]
    own = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, *pool, "--run-dir", str(tmp_path / "run"), "--", "mv", "{path}", f"{handled}/{{name}}"],
        cwd=ROOT, env=own, stderr=subprocess.PIPE, text=True,
    ) as working:  # fmt: skip
        both = examined(*(doctor([sys.executable], queue, "--peer") for _ in range(2)))
        said = working.communicate(timeout=LIMIT_S)[1]
    assert working.returncode == 0, said
    assert sorted(os.listdir(handled)) == sorted(names)
    assert "not touched" not in said, "the pool has noticed nothing strange"
    assert "ERROR" not in said
    assert {one["verdict"] for one in both} == {"one host"}, told(both[0])
    assert sorted(os.listdir(queue)) == [".pool", "deferred", "errors", "incoming", "pending", "tmp"]


# ---- a mount that loses replies, or hangs


def test_a_lost_reply_is_found_and_counted(tmp_path: Path) -> None:
    """The filesystem renames and answers that there is nothing to rename, as a server does when it is asked again."""
    with faulty(tmp_path) as mount:
        mount.fail("ENOENT", RENAME, match="/replies/", times=3, is_done=True)
        (found,) = examined(doctor(mount.enter, mount.inside))
        assert mount.left == 0, "all three were asked for"
        assert measured(found, "replies") == "240 calls, 3 lost replies (ENOENT 3 times, though it was done)"
        assert levels(found)["replies"] == "warning"
        mount.fail("ENOENT", RENAME, match="/contested/", times=5, is_done=True)
        (found,) = examined(doctor(mount.enter, mount.inside))
        assert "5 times done and told as not done" in measured(found, "rename")
        assert levels(found)["rename"] == "warning", "nobody had a name twice, and none is gone"
        assert found["code"] == 0


def test_a_mount_that_stops_answering_is_said_within_the_limit(tmp_path: Path) -> None:
    """Whoever asked it waits in the kernel, where no signal ends the wait; the command ends all the same."""
    with faulty(tmp_path) as mount:
        mount.stop(LIST, "/replies")
        start_s = time.monotonic()
        (found,) = examined(doctor(mount.enter, mount.inside, "--limit", "5s"))
        assert time.monotonic() - start_s < LIMIT_S / 2
        assert found["code"] == 1
        assert found["verdict"] == "not safe"
        assert "replies did not answer within 5 s" in found["sentence"]
        mount.go()
        (found,) = examined(doctor(mount.enter, mount.inside))
        assert found["verdict"] == "one host", "and the next finds nothing wrong, nor what was left"
        assert list(mount.behind.iterdir()) == []
