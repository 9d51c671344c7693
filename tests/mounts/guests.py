"""
guests - a kernel NFS server and two kernel NFS clients, as User-Mode-Linux guests

Each is a Linux of its own: its own clock, page cache, /proc, /run, boot id. They see this machine's files by
hostfs (so this Python and this project are there, and what a test writes), and each other by a bridge in a
network namespace. A guest is killed as a machine loses its power. All of it is gone with the process that
holds the namespace, also when that is killed.

Needs root, /dev/net/tun and some packages; where one is missing the test skips and says why.
Limits: hostfs keeps what a guest writes in the guest's memory until fsync. A guest forks some hundred times a second.
Source: the kernel's documentation of User-Mode-Linux; nfs(5), exports(5), nft(8).
See also: guest_init.sh, guest_agent, on_guest, xsave.c.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.holder import held
from tests.waiting import until

HERE = Path(__file__).parent
PROGRAMS = (
    "linux.uml",
    "rpc.nfsd",
    "mount.nfs",
    "rpcbind",
    "nft",
    "gcc",
    "ip",
    "unshare",
    "nsenter",
    "setpriv",
    "mkfs.ext4",
)
PACKAGES = "user-mode-linux nfs-kernel-server nfs-common rpcbind nftables kmod iproute2 gcc util-linux e2fsprogs"
NETWORK = "10.78.0"
MOUNT = Path("/mnt/nfs")  # in a client
EXPORT = Path("/mnt/export")  # in the server
BOOT_S = 30.0
NETWORK_UP = """
ip link set lo up
ip link add br0 type bridge
ip address add 10.78.0.254/24 dev br0
ip link set br0 up
for i in 1 2 3; do
  ip tuntap add tap$i mode tap
  ip link set tap$i master br0 up
done
nft 'add table bridge replies; add chain bridge replies dropped { type filter hook forward priority 0; }'
"""


@dataclass
class Guest:
    """
    One machine. *number* is its address in the network and the last digits of its card's.

    The card's address is fixed: with a new one after a reboot the others would wait for a minute.
    """

    number: int
    role: str
    place: Path
    holder: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def name(self) -> str:
        """Its host name."""
        return f"guest{self.number}"

    @property
    def address(self) -> str:
        """In the guests' network."""
        return f"{NETWORK}.{self.number}"

    @property
    def prefix(self) -> tuple[str, ...]:
        """Begins the command of a Python on it: a process here that hands on output, signals and exit code."""
        return (*self.begin, sys.executable)

    @property
    def begin(self) -> tuple[str, ...]:
        """Begins the command of any program on it."""
        return (*_inside(self.holder), sys.executable, str(HERE / "on_guest.py"), self.address)

    def boot(self, **more: str) -> Guest:
        """Switch it on and wait until it runs programs; *more* are parameters of its kernel. Itself."""
        self.switch_on(**more)
        until(self._answers, BOOT_S)
        return self

    def switch_on(self, **more: str) -> None:
        """As boot(), without waiting."""
        assert self.process is None
        network = f"transport=tap,ifname=tap{self.number},depth=64,mac=52:54:00:78:00:0{self.number}"
        parameters = {
            "umid": self.name, "mem": "384M", "root": "/dev/root", "rootfstype": "hostfs", "rootflags": "/",
            "con": "null", "con0": "null,fd:1", "init": str(HERE / "guest_init.sh"), "NAME": self.name,
            "ROLE": self.role, "ADDRESS": self.address,
            "AGENT": f'"{sys.executable} {HERE / "guest_agent.py"}"', **more,
        }  # fmt: skip
        words = [f"vec0:{network}", *(f"{key}={value}" for key, value in parameters.items())]
        # A shell is the first process of the namespace: signals of UML's to itself would not reach a first one.
        shell = [
            "unshare",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "sh",
            "-c",
            'linux.uml rw quiet "$@"; :',
            "sh",
        ]
        own = {
            "HOME": str(self.place),
            "LD_PRELOAD": str(self.place / "xsave.so"),
            "TMPDIR": "/dev/shm",
            "PATH": os.environ["PATH"],
        }
        with (self.place / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *_inside(self.holder), *shell, *words],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=own,
            )  # fmt: skip

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.console
        return self.run("true", timeout_s=BOOT_S)[0] == 0

    @property
    def console(self) -> str:
        """What its kernel has said."""
        return (self.place / f"{self.name}.log").read_text("utf-8", "replace")

    def kill(self) -> None:
        """Take its power away; returns when it is gone."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def run(self, command: str, *, timeout_s: float = 60.0) -> tuple[int, str]:
        """Run a shell command on it to its end; exit code, output and errors together. 255: it is gone."""
        ended = subprocess.run(
            [*self.begin, "bash", "-c", command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, timeout=timeout_s, check=False, cwd="/",
        )  # fmt: skip
        return ended.returncode, ended.stdout.decode("utf-8", "replace")

    def done(self, command: str, *, timeout_s: float = 60.0) -> str:
        """Run a shell command that must succeed; what it said."""
        code, text = self.run(command, timeout_s=timeout_s)
        assert code == 0, f"{self.name}: {command}: {code}\n{text}"
        return text

    def set_clock(self, offset_s: float) -> None:
        """Step its clock to the host's and *offset_s*."""
        self.done(f"date --set @{time.time() + offset_s:.3f}")


@dataclass
class Site:
    """The three machines and what lies between them."""

    server: Guest
    clients: list[Guest]
    holder: int
    mounted: dict[str, str] = field(default_factory=dict)

    def mount(self, client: Guest, version: str = "4.2", options: str = "") -> Path:
        """Mount the server's disk on *client*, anew where it is mounted; where."""
        if client.name in self.mounted:
            client.run(f"umount -f -l {MOUNT}")
        words = ",".join(filter(None, (f"vers={version}", "hard", options)))
        source = f"{self.server.address}:{'/' if version.startswith('4') else EXPORT}"
        client.done(f"mkdir -p {MOUNT} && mount -t nfs -o {words} {source} {MOUNT}")
        self.mounted[client.name] = version
        return MOUNT

    def drop_replies(self, *clients: Guest) -> None:
        """From now on nothing that the server says reaches *clients*; what they ask reaches the server."""
        for client in clients:
            self._nft(
                f'add rule bridge replies dropped iifname "tap{self.server.number}" oifname "tap{client.number}" drop'
            )

    def cut_off(self, client: Guest) -> None:
        """From now on nothing goes between the server and *client*."""
        self.drop_replies(client)
        self._nft(
            f'add rule bridge replies dropped iifname "tap{client.number}" oifname "tap{self.server.number}" drop'
        )

    def pass_all(self) -> None:
        """End all of that."""
        self._nft("flush chain bridge replies dropped")

    def _nft(self, rule: str) -> None:
        subprocess.run([*_inside(self.holder), "nft", rule], check=True, timeout=30)

    def reboot_server(self) -> None:
        """Take the server's power away, and switch it on again."""
        self.server.kill()
        boot_server(self.server)


def boot_server(server: Guest) -> None:
    """Boot the one with the disk."""
    server.boot(ubd0=str(server.place / "server.img"))


def missing() -> str:
    """What keeps guests from running here; empty when nothing does."""
    if os.geteuid() != 0:
        return "guests need root"
    absent = [program for program in PROGRAMS if shutil.which(program) is None]
    if absent:
        return f"guests need {', '.join(absent)} (packages: {PACKAGES})"
    return "" if Path("/dev/net/tun").exists() else "guests need /dev/net/tun"


@contextmanager
def guests(place: Path, *, disk: str = "1G", clients: int = 2) -> Iterator[Site]:
    """A server and its clients, that have nothing mounted yet; *place* keeps disk and consoles. Skips the test."""
    if reason := missing():
        pytest.skip(reason)
    place.mkdir(parents=True, exist_ok=True)
    subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-o", str(place / "xsave.so"), str(HERE / "xsave.c")], check=True)
    image = place / "server.img"
    subprocess.run(["truncate", "-s", disk, str(image)], check=True)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
    with held("network for guests", "net", script=NETWORK_UP) as holder:
        server = Guest(1, "server", place, holder)
        asking = [Guest(number, "client", place, holder) for number in range(2, 2 + clients)]
        everyone = [server, *asking]
        try:
            server.switch_on(ubd0=str(image))
            for client in asking:
                client.switch_on()
            for one in everyone:
                until(one._answers, BOOT_S)
            yield Site(server, asking, holder)
        finally:
            for one in everyone:
                one.kill()


def _inside(holder: int) -> tuple[str, ...]:
    return ("nsenter", f"--net=/proc/{holder}/ns/net")
