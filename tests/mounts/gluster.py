"""
gluster - a GlusterFS volume of three servers, and two hosts that mount it

Each server is a glusterd in namespaces of its own (network, mounts, processes), joined by a bridge
in the network namespace of the holder, where the two hosts' FUSE mounts are as well: nobody else
sees any of it. The holder ends when its input does and the servers are killed with whoever started
them, so nothing is left even when pytest is killed. The bricks lie in memory: what is tried here is
what the servers agree on, and no power fails. Needs root and the packages glusterfs-server and
glusterfs-client; where something is missing the test skips and says what.

See also: tests/process/disks (local filesystems, held in the same way), fleet (what runs on it).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.holder import held
from tests.waiting import until

SERVERS = (1, 2, 3)
HOSTS = (1, 2)
START_S = 60.0
PROGRAMS = ("unshare", "nsenter", "setpriv", "ip", "glusterd", "glusterfs", "gluster")
HOLD = """
mkdir -p /run/netns "$1"
mount -t tmpfs tmpfs /run/netns
mount -t tmpfs -o size=1G tmpfs "$1"
ip link set lo up
ip link add bridge type bridge
ip link set bridge up
ip addr add 10.77.0.254/24 dev bridge
for n in 1 2 3; do
  mkdir -p "$1/server$n/lib" "$1/server$n/log" "$1/server$n/brick" "$1/host$n"
  ip netns add "server$n"
  ip link add "to$n" type veth peer name eth0 netns "server$n"
  ip link set "to$n" master bridge up
  ip -n "server$n" link set lo up
  ip -n "server$n" addr add "10.77.0.$n/24" dev eth0
  ip -n "server$n" link set eth0 up
done
"""
SERVE = """
set -e
mount -t tmpfs tmpfs /run
mkdir -p /run/gluster /var/lib/glusterd /var/log/glusterfs
mount --bind "$1/lib" /var/lib/glusterd
mount --bind "$1/log" /var/log/glusterfs
exec glusterd -N
"""


@dataclass(frozen=True, slots=True)
class Host:
    """One that mounts the volume: *inside* for those in its namespace, *path* for everybody else."""

    name: str
    inside: Path
    path: Path
    enter: tuple[str, ...]  # begins the command of a Python on that host


@dataclass
class Cluster:
    """The volume, its servers by number, and the hosts."""

    place: Path
    holder: int
    servers: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    mounts: list[subprocess.Popen[bytes]] = field(default_factory=list)

    # ---- what a test does

    @property
    def hosts(self) -> list[Host]:
        """All that mount it."""
        return [
            Host(f"host{number}", self._inside(number), Path(self._seen(self._inside(number))), self._python)
            for number in HOSTS
        ]

    def kill(self, number: int) -> None:
        """Kill a server and its brick, all at once, as when its machine dies."""
        server = self.servers.pop(number)
        # The first process of its namespace: with it the kernel ends all the others, before it is collected.
        os.kill(self._first(server), signal.SIGKILL)
        server.wait(30)

    def boot(self, number: int) -> None:
        """Start a server, or start it again."""
        network = ["nsenter", f"--net=/run/netns/server{number}", "--"]
        own = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        self.servers[number] = self._start(*network, *own, "sh", "-c", SERVE, "sh", str(self._server(number)))

    def is_up(self, number: int) -> bool:
        """Whether a server's brick is known to be there."""
        said = self._says("volume", "status", "queues", self._brick(number))
        return any(line.split()[-2:-1] == ["Y"] for line in said.splitlines())

    def unhealed(self) -> int:
        """How many files some brick has yet to be told of; -1 when that cannot be said now."""
        said = self._says("volume", "heal", "queues", "info")
        counts = [line.rpartition(" ")[2] for line in said.splitlines() if line.startswith("Number of entries")]
        return sum(map(int, counts)) if len(counts) == len(SERVERS) and all(map(str.isdigit, counts)) else -1

    # ---- how it comes up, and goes

    def start(self) -> None:
        """Start the servers, make the volume, mount it on the hosts. AssertionError when that cannot be done."""
        for number in SERVERS:
            self.boot(number)
        for number in SERVERS[1:]:
            until(lambda number=number: self._does("peer", "probe", f"10.77.0.{number}"), START_S)
        until(lambda: self._says("peer", "status").count("Peer in Cluster (Connected)") == len(SERVERS) - 1, START_S)
        volume = ("queues", "replica", str(len(SERVERS)), *map(self._brick, SERVERS), "force")
        # The first knows all others by then; these may not know each other yet, and refuse.
        until(lambda: self._does("volume", "create", *volume), START_S)
        self.tell("volume", "start", "queues")
        for number in HOSTS:
            words = ["glusterfs", "-N", f"--volfile-server=10.77.0.{number}", "--volfile-id=/queues"]
            log = f"--log-file={self._server(number)}/log/host.log"
            self.mounts.append(self._start(*words, log, str(self._inside(number))))
        for host in self.hosts:
            until(lambda path=host.path: path.stat().st_dev != path.parent.stat().st_dev, START_S)

    def end(self) -> None:
        """Leave nothing behind."""
        for process in (*self.mounts, *self.servers.values()):
            process.kill()  # and with a server's, all of its namespace
            process.wait(30)

    def tell(self, *words: str) -> None:
        """Run a command of gluster's on a server that lives. AssertionError when it fails."""
        ended = self._gluster(*words)
        assert ended.returncode == 0, (words, ended.stdout, ended.stderr)

    # ---- inside

    @property
    def _python(self) -> tuple[str, ...]:
        return ("nsenter", f"--mount=/proc/{self.holder}/ns/mnt", f"--wdns={self.place}", sys.executable)

    def _inside(self, number: int) -> Path:
        return self.place / "in" / f"host{number}"

    def _server(self, number: int) -> Path:
        return self.place / "in" / f"server{number}"

    def _brick(self, number: int) -> str:
        return f"10.77.0.{number}:{self._server(number)}/brick/b"

    def _seen(self, path: Path) -> str:
        return f"/proc/{self.holder}/root{path}"

    def _enter(self) -> list[str]:
        return ["nsenter", f"--target={self.holder}", "--mount", "--net", "--"]

    def _start(self, *words: str) -> subprocess.Popen[bytes]:
        """Start what is to die with us."""
        full = [*self._enter(), "setpriv", "--pdeathsig", "KILL", *words]
        with open(self.place / "out", "ab") as out:
            return subprocess.Popen(full, stdin=subprocess.DEVNULL, stdout=out, stderr=out)

    def _gluster(self, *words: str) -> subprocess.CompletedProcess[str]:
        first = self._first(self.servers[min(self.servers)])
        enter = ["nsenter", f"--target={first}", "--mount", "--net", "--pid", "--"]
        return subprocess.run(
            [*enter, "gluster", "--mode=script", *words], capture_output=True, text=True, timeout=60, check=False
        )

    def _does(self, *words: str) -> bool:
        return self._gluster(*words).returncode == 0

    def _says(self, *words: str) -> str:
        return self._gluster(*words).stdout

    def _first(self, server: subprocess.Popen[bytes]) -> int:
        """The first process of a server's namespace, as it is called here."""
        children = Path(f"/proc/{server.pid}/task/{server.pid}/children")

        def pids() -> list[str]:
            assert server.poll() is None, (self.place / "out").read_text()
            return children.read_text().split()

        return int(until(pids)[0])


@contextlib.contextmanager
def cluster(place: Path) -> Iterator[Cluster]:
    """Start the three servers, and mount their volume on two hosts; or skip the test."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        pytest.skip(f"no GlusterFS here: {', '.join(missing)} is not installed (glusterfs-server, glusterfs-client)")
    with held("GlusterFS", "net", "mount", script=HOLD, arguments=(str(place / "in"),)) as holder:
        found = Cluster(place, holder)
        try:
            found.start()
            yield found
        finally:
            found.end()
