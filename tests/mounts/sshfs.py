"""
sshfs - a directory behind an sshd of our own, and two hosts that mount it

All is in the network and mount namespaces of a holder: nobody else sees the mounts, any port is free,
and nothing is left even when pytest is killed. The key is made for the test. Each mount is an sshfs
with caches of its own, as on two machines; the clock is one. Needs root, FUSE and the packages sshfs
and openssh-server; where something is missing the test skips and says what.

See also: gluster (held in the same way), fleet (what runs on it).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from tests.holder import held
from tests.mounts.gluster import Host
from tests.waiting import until

HOSTS = (1, 2)
START_S = 20.0
SSHD = "/usr/sbin/sshd"  # it starts itself again by its full name
PROGRAMS = ("unshare", "nsenter", "setpriv", "ip", "ssh-keygen", "sshfs", SSHD)
LISTENS = "0100007F:0016 00000000:0000 0A"  # proc(5): 127.0.0.1, port 22
HOLD = """
mount -t tmpfs tmpfs /run
mkdir -p /run/sshd "$1"
mount -t tmpfs -o size=256M tmpfs "$1"
mkdir "$1/served" "$1/host1" "$1/host2"
ip link set lo up
ssh-keygen -q -t ed25519 -N '' -f "$1/key"
cp "$1/key" "$1/host_key"
"""
CONFIG = """
ListenAddress 127.0.0.1
Port 22
HostKey {place}/host_key
AuthorizedKeysFile {place}/key.pub
PidFile none
StrictModes no
UsePAM no
PermitRootLogin prohibit-password
Subsystem sftp internal-sftp
"""


@dataclass
class Ssh:
    """The server, and what its mounts were told."""

    place: Path
    holder: int
    options: Sequence[str]
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    mounts: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)  # by the host's name

    @property
    def hosts(self) -> list[Host]:
        """All that mount it."""
        enter = ("nsenter", f"--mount=/proc/{self.holder}/ns/mnt", f"--wdns={self.place}", sys.executable)
        return [
            Host(f"host{number}", self._in / f"host{number}", self._seen / f"host{number}", enter) for number in HOSTS
        ]

    @property
    def server(self) -> Host:
        """The one that has the directory itself: no cache is in between."""
        return Host("server", self._in / "served", self._seen / "served", self.hosts[0].enter)

    def start(self) -> None:
        """Start the server, and mount its directory on the hosts."""
        (self._seen / "sshd.conf").write_text(CONFIG.format(place=self._in))
        sshd = self._start(SSHD, "-D", "-e", "-f", str(self._in / "sshd.conf"))
        until(lambda: LISTENS in Path(f"/proc/{sshd.pid}/net/tcp").read_text(), START_S)
        told = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", f"IdentityFile={self._in / 'key'}"]
        words = [word for option in (*told, *self.options) for word in ("-o", option)]
        for host in self.hosts:
            served = f"root@127.0.0.1:{self._in / 'served'}"
            self.mounts[host.name] = self._start("sshfs", "-f", *words, served, str(host.inside))
            until(lambda path=host.path: path.stat().st_dev != path.parent.stat().st_dev, START_S)

    def cut(self, name: str) -> None:
        """Break the connection of a host, in the middle of whatever is sent; sshfs makes another if told to."""
        for ssh in psutil.Process(self.mounts[name].pid).children():
            ssh.kill()

    def end(self) -> None:
        """Leave nothing behind."""
        for process in reversed(self.processes):
            process.kill()
            process.wait(30)

    @property
    def _in(self) -> Path:
        return self.place / "in"

    @property
    def _seen(self) -> Path:
        return Path(f"/proc/{self.holder}/root{self._in}")

    def _start(self, *words: str) -> subprocess.Popen[bytes]:
        """Start what is to die with us."""
        enter = ["nsenter", f"--target={self.holder}", "--mount", "--net", "--"]
        with open(self.place / "out", "ab") as out:
            process = subprocess.Popen(
                [*enter, "setpriv", "--pdeathsig", "KILL", *words], stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )
        self.processes.append(process)
        return process


@contextlib.contextmanager
def sshfs(place: Path, *options: str) -> Iterator[Ssh]:
    """Mount one directory on two hosts with these options of sshfs; or skip the test."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if not os.path.exists("/dev/fuse"):
        missing.append("/dev/fuse")
    if missing:
        pytest.skip(f"no sshfs here: there is no {', '.join(missing)} (packages sshfs, openssh-server)")
    with held("sshfs", "net", "mount", script=HOLD, arguments=(str(place / "in"),)) as holder:
        found = Ssh(place, holder, options)
        try:
            found.start()
            yield found
        finally:
            found.end()
