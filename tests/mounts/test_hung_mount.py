"""
test_hung_mount - pools with a queue on a mount that stops answering, dawdles, goes away and comes back

Each pool has two queues: "hung" lies on the mount (see faultfs), "well" on a local disk. What is on the mount is looked
at by the directory behind it, which always answers. Leases are lost after about a second.

ORCHESTRATOR_MOUNTS=2000 is a long run: so many messages for each kind of queue on two hosts, of which one sees the
mount hang, break off and lose replies again and again, while its workers are killed and its pool is started anew.

Long because: one place, with one mount and two queues, for all that can be wrong with it.
See also: tests.process.test_two_hosts (hosts that hang), test_nfs (a server that boots again), tests.unit.test_hangs.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from orchestrator.status import snapshot
from tests.mounts.errands import BATCH
from tests.mounts.faultfs import DEEDS, LIST, LOOK, RENAME, UNLINK, FaultFs, faulty
from tests.mounts.fleet import POOL, Fleet, Host, Trouble
from tests.mounts.guests import boot_server, guests
from tests.mounts.protocols import PROTOCOLS, SPOOL, Protocol
from tests.process.pools import LEASE, Pool, Pools, process
from tests.waiting import until
from workers import open_queue
from workers.board import Board, BoardError, Header
from workers.queues.base import Queue, Settings

COUNT = int(os.environ.get("ORCHESTRATOR_MOUNTS", "0"))
SHORT = 60
SLOW_S = 1.0 if COUNT else 0.05
TIMES = Settings(create=True, lease_interval_s=0.2, lease_timeout_s=1.0, stale_after_s=10.0)
TERM, INT, INTS, QUIT = (signal.SIGTERM,), (signal.SIGINT,), (signal.SIGINT,) * 3, (signal.SIGQUIT,)
ENDS_S = 20.0  # what TERM may take, whatever hangs; a hung mount would take for ever
LOST = 3  # replies in a row
LEFT = re.compile(r"worker (\S+) \(pid (\d+)\) is left behind")


@dataclass
class Site:
    """A mount, the queue on it and the one beside it."""

    mount: FaultFs
    pools: Pools
    scheme: str

    def url(self, queue: str) -> str:
        """As the pool sees it."""
        return f"{self.scheme}:{self.mount.inside if queue == 'hung' else self.pools.place}/{queue}"

    def queue(self, queue: str) -> Queue:
        """As anybody may look at it at any time."""
        return open_queue(f"{self.scheme}:{self.mount.behind if queue == 'hung' else self.pools.place}/{queue}")

    def put(self, queue: str, *bodies: str) -> None:
        """Put messages by the way that always answers."""
        self.queue(queue).put_many([body.encode() for body in bodies])

    def configure(self, name: str = "pool", queues: Sequence[str] = ("hung", "well"), more: str = "") -> Path:
        """Write the configuration of a pool."""
        path = self.pools.place / f"{name}.toml"
        lease = LEASE if self.scheme == "spool" else ""
        common = f'handler = "tests.mounts.hung_handlers:handle"\nworkers = 2\n{lease}{more}'
        tables = [f'[[queue]]\nname = "{queue}"\nurl = "{self.url(queue)}"\n{common}' for queue in queues]
        path.write_text("\n".join(['[pool]\nstop_timeout = "0.5s"\nterm_timeout = "0.5s"', *tables]))
        return path

    def start(self, *words: str, name: str = "pool") -> Pool:
        """A pool on both."""
        config = self.configure(name)
        return self.pools.start("--config", str(config), *words, name=name, listen="127.0.0.1:0")

    def handled(self) -> Counter[str]:
        """How often each body was handled to its end."""
        return Counter(line.split()[-1] for line in self.pools.journal() if line.startswith("handled "))

    def is_empty(self, queue: str) -> bool:
        """Whether nothing is left there."""
        depth = self.queue(queue).depth()
        return depth.waiting == depth.claimed == depth.deferred == depth.errors == 0

    def serves(self, pool: Pool, *bodies: str) -> None:
        """The queue beside the mount is served: messages are put, handled and gone."""
        self.put("well", *bodies)
        pool.until(lambda: all(self.handled()[body] == 1 for body in bodies))
        pool.until(lambda: self.is_empty("well"))


long_run = pytest.mark.skipif(not COUNT, reason="a long run: set ORCHESTRATOR_MOUNTS")
LONG_SPOOL, LONG_DIRQ = (pytest.param(scheme, marks=long_run) for scheme in ("spool", "dirq-simple"))


@pytest.fixture(name="site", params=["spool", LONG_DIRQ])
def _site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    """A mount with a queue, and one beside it."""
    with faulty(tmp_path) as mount:
        site = Site(mount, Pools(tmp_path, prefix=mount.enter), request.param)
        for place in (mount.behind / "hung", tmp_path / "well"):
            open_queue(f"{site.scheme}:{place}", settings=TIMES if site.scheme == "spool" else Settings(create=True))
        try:
            yield site
        finally:
            let_go(mount)
            site.pools.end_all()


def let_go(mount: FaultFs) -> None:
    """Whoever hangs is let go, so that it can be ended."""
    if mount.is_mounted:
        mount.go()


def waits_in(pid: int) -> str:
    """The function of the kernel that a process waits in."""
    return Path(f"/proc/{pid}/wchan").read_text()


only_spool = pytest.mark.parametrize("site", ["spool"], indirect=True)


# ---- while it hangs


def test_the_rest_of_a_pool_goes_on_while_a_mount_hangs(site: Site) -> None:
    """The other queue is served, retries and releases with it; all that is asked of the pool is answered."""
    pool = site.start().ready()
    site.put("hung", "h0", "h1")
    site.serves(pool, "w0")
    pool.until(lambda: site.handled() == {"h0": 1, "h1": 1, "w0": 1})
    site.mount.stop()
    site.mount.wait_held()
    site.put("hung", "h2", "h3")

    site.serves(pool, "w1", "r1")
    pool.until(lambda: pool.queues["hung"]["measured_age_s"] > 2)
    assert pool.queues["well"]["measured_age_s"] < pool.queues["hung"]["measured_age_s"]
    for path, has in (("/metrics", 'measured_age_seconds{queue="hung"}'), ("/healthz", "ok"), ("/api/status", "hung")):
        assert has in pool.get(path)[1]

    def code_without_well() -> int:
        code, reasons = pool.get("/readyz")
        return 0 if "queue well" in reasons else code

    code = pool.until(code_without_well)
    # Without a lease there is nothing to say before it has not been measured for long.
    assert code == 503 or site.scheme != "spool"
    assert "queue hung: ready" in site.pools.run("status", "--run-dir", str(pool.board_path.parent.parent))[1]

    site.pools.hold.touch()
    site.put("well", "w2")
    pool.until(lambda: pool.queues["well"]["depth"]["claimed"] == 1)
    holder, *_ = pool.until(lambda: [worker for worker in pool.queues["well"]["workers"] if worker["message"]])
    os.kill(holder["pid"], signal.SIGKILL)
    site.pools.hold.unlink()
    pool.until(lambda: site.handled()["w2"] == 1)

    code, said = site.pools.run("scale", "well", "3", "--run-dir", str(pool.board_path.parent.parent))
    assert code == 0, said
    pool.until(lambda: len([one for one in pool.queues["well"]["workers"] if one["pid"]]) == 3)
    site.configure(more="max_attempts = 3\n")
    pool.send(signal.SIGHUP)
    pool.until(lambda: "reloaded: 0 added, 0 removed, 2 changed" in pool.log)
    site.serves(pool, "w3")
    site.queue("well").pause()
    pool.until(lambda: pool.queues["well"]["paused"])
    site.queue("well").resume()
    site.serves(pool, "w4")

    site.mount.go()
    pool.until(lambda: pool.status["ready"])
    pool.until(lambda: site.handled() == dict.fromkeys(("h0", "h1", "h2", "h3", "w0", "w1", "r1", "w2", "w3", "w4"), 1))
    pool.until(lambda: site.is_empty("hung") and site.is_empty("well"))
    assert pool.end() == 0
    assert not LEFT.search(pool.log)


@long_run
@only_spool
def test_a_queue_that_is_not_measured_for_long_is_spoken_of(site: Site) -> None:
    """By name, in the log, by readyz and by status; and when it answers again."""
    pool = site.start().ready()
    site.mount.stop()
    pool.until(lambda: "queue hung: not measured for" in pool.log)
    assert "queue hung: not measured for" in pool.get("/readyz")[1]
    assert "ready, not measured for" in site.pools.run("status", "--run-dir", str(pool.board_path.parent.parent))[1]
    site.mount.go()
    pool.until(lambda: "queue hung answers again" in pool.log)
    pool.until(lambda: pool.status["ready"])
    assert pool.end() == 0


@long_run
def test_a_queue_that_hangs_is_removed_and_added_again(site: Site) -> None:
    """It is removed when its workers are gone, which they are when the mount answers; then it is there again."""
    pool = site.start().ready()
    site.mount.stop()
    site.mount.wait_held()
    for queues, changed in ((["well"], "removed"), (["hung", "well"], "added")):
        site.configure(queues=queues)
        pool.send(signal.SIGHUP)
        pool.until(lambda changed=changed: f"1 {changed}" in pool.log)  # type: ignore[misc]
        site.serves(pool, changed)
    site.put("hung", "h0")
    site.mount.go()
    pool.until(lambda: site.handled()["h0"] == 1, 40)
    pool.until(lambda: pool.status["ready"])
    assert pool.end() == 0


@only_spool
def test_the_master_makes_no_call_on_a_mount(site: Site) -> None:
    """When it starts, serves, reloads and ends: a call is what would hang."""
    if shutil.which("strace") is None:
        pytest.skip("no strace here")
    trace, prefix = site.pools.place / "trace", site.pools.prefix
    site.mount.stop()
    # The master alone, and as the process that was started.
    site.pools.prefix = (*site.mount.namespace, "strace", "-D", "-o", str(trace), "-e", "trace=%file", sys.executable)
    pool = site.start()
    site.pools.prefix = prefix
    site.serves(pool, "w0")
    site.configure(more="max_attempts = 3\n")
    pool.send(signal.SIGHUP)
    pool.until(lambda: "2 changed" in pool.log)
    code, said = site.pools.run("scale", "hung", "1", "--run-dir", str(pool.board_path.parent.parent))
    assert code == 0, said
    assert pool.end(timeout_s=ENDS_S) == 0
    calls = trace.read_text().splitlines()
    assert any("pool.toml" in call for call in calls)
    assert not [call for call in calls if str(site.mount.inside) in call]


@long_run
@only_spool
def test_a_keeper_that_dies_while_one_queue_hangs_is_replaced(site: Site) -> None:
    """A thread of it hangs, so the kernel does not let it go; the other queue needs its lease all the same."""
    pool = site.start().ready()
    site.mount.stop()
    pool.until(lambda: pool.queues["hung"]["measured_age_s"] > 2)
    keeper = pool.service(Header.KEEPER_PID)
    os.kill(keeper.pid, signal.SIGKILL)
    pool.until(lambda: pool.service(Header.KEEPER_PID).pid != keeper.pid)
    assert "hangs in the kernel with one of its queues" in pool.log
    pool.until(lambda: not any("queue well" in why for why in pool.status["not_ready_because"]))
    site.serves(pool, "w0")
    site.mount.go()
    site.put("hung", "h0")
    pool.until(lambda: site.handled()["h0"] == 1)
    assert pool.end() == 0


# ---- ending, and starting


@pytest.mark.timeout(120)
@pytest.mark.parametrize("how", [TERM, INT, INTS, QUIT] if COUNT else [TERM])
@only_spool
def test_a_pool_ends_and_starts_again_while_a_mount_hangs(site: Site, how: tuple[signal.Signals, ...]) -> None:
    """
    What hangs is left behind, by name, and keeps what it has in hand until it is gone. The next pool of that name
    serves the other queue; when the mount is back, everything is handled.
    """
    site.pools.hold.touch()
    site.put("hung", "h0", "h1", "h2")
    first = site.start().ready()
    first.until(lambda: first.busy == 2)
    site.mount.stop()
    site.pools.hold.unlink()
    site.mount.wait_held(3)  # both workers read what they have in hand, and the keeper looks
    left = [process(worker["pid"]) for worker in first.queues["hung"]["workers"]]
    first.until(lambda: first.queues["hung"]["measured_age_s"] > 3)
    for number in how:
        first.send(number)
    assert first.wait(ENDS_S) == 0
    assert {int(pid) for _, pid in LEFT.findall(first.log)} == {one.pid for one in left}
    assert "request_wait_answer" in first.log

    second = site.start()
    site.serves(second, "w0")
    assert "queue hung: not opened yet" in second.get("/readyz")[1]
    if COUNT:
        second.until(lambda: "queue hung: not opened after" in second.log)
        assert second.end(signal.SIGTERM, ENDS_S) == 0
        second = site.start()
    assert all(one.is_there for one in left)
    assert site.queue("hung").depth().claimed == 2  # of those that hang, who are not dead yet

    site.mount.go()
    until(lambda: not any(one.is_there for one in left))
    second.until(lambda: site.handled() == dict.fromkeys(("h0", "h1", "h2", "w0"), 1))
    second.until(lambda: site.is_empty("hung"))
    second.ready()
    assert second.end() == 0


@long_run
@only_spool
def test_what_was_in_hand_for_longer_than_the_lease_is_fenced(site: Site) -> None:
    """Another host, whose mount answers, takes over; the late settle takes nothing away, and both go on."""
    site.pools.hold.touch()
    site.put("hung", "h0", "h1")
    alpha = site.start("--host", "alpha", name="alpha").ready()
    alpha.until(lambda: alpha.busy == 2)
    site.mount.stop(UNLINK)
    site.pools.hold.unlink()
    site.mount.wait_held(2)
    site.mount.stop()
    beta = Pools(site.pools.place / "beta")
    try:
        other = beta.start(
            str(site.mount.behind / "hung"), "--handler", "tests.mounts.hung_handlers:handle", "--host", "beta",
        )  # fmt: skip
        other.until(lambda: other.outcome("done") == 2)
        site.mount.go()
        alpha.until(lambda: alpha.outcome("fenced") == 2)
        assert other.end() == 0
    finally:
        beta.end_all()
    site.put("hung", "h2")
    alpha.until(lambda: site.handled()["h2"] == 1)
    assert alpha.end() == 0
    assert site.handled() + Counter(h0=0) == Counter(h0=1, h1=1, h2=1)
    assert site.is_empty("hung")


# ---- away, slow, and back


@pytest.mark.parametrize("site", [LONG_SPOOL, "dirq-simple"], indirect=True)
def test_a_pool_goes_on_when_a_mount_that_broke_off_is_there_again(site: Site) -> None:
    """What was in hand is settled, what waits is handled, and the other queue never noticed."""
    site.pools.hold.touch()
    site.put("hung", "h0", "h1", "h2")
    pool = site.start().ready()
    pool.until(lambda: pool.busy == 2)
    site.mount.break_off()
    site.pools.hold.unlink()
    site.serves(pool, "w0")
    pool.until(lambda: any("queue hung: unavailable" in why for why in pool.status["not_ready_because"]))
    site.mount.mount()
    pool.until(lambda: site.is_empty("hung"), 40)
    pool.until(lambda: pool.status["ready"])
    assert {body: times for body, times in site.handled().items() if body != "w0"}.keys() == {"h0", "h1", "h2"}
    assert pool.end() == 0
    assert not LEFT.search(pool.log)


@long_run
@only_spool
def test_a_slow_mount_costs_time_and_nothing_else(site: Site) -> None:
    """Each call takes its time; leases of a common length hold."""
    open_queue(f"{site.scheme}:{site.mount.behind}/slow", settings=Settings(create=True)).close()
    site.mount.delay(SLOW_S, DEEDS)
    site.queue("hung")
    pool = site.pools.start(
        str(site.mount.inside / "slow"), "--handler", "tests.mounts.hung_handlers:handle", "--workers", "2", listen=None
    )
    bodies = [f"s{number}" for number in range(6)]
    open_queue(f"{site.scheme}:{site.mount.behind}/slow").put_many([body.encode() for body in bodies])
    pool.until(lambda: site.handled() == dict.fromkeys(bodies, 1), 200 * SLOW_S + 20)
    pool.until(lambda: pool.outcome("done") == len(bodies), 100)
    assert pool.end(timeout_s=100) == 0


# ---- a server of NFS


@long_run
@pytest.mark.timeout(400)
def test_a_pool_ends_and_starts_again_while_a_server_is_gone(tmp_path: Path) -> None:
    """A mount of NFS waits for ever for its server, but lets KILL end who waits: nothing is left behind."""
    with guests(tmp_path / "guests", clients=1) as site:
        (client,) = site.clients
        hung, well, hold = f"{site.mount(client)}/hung", "/run/well", "/run/hold"
        client.done(f"mkdir -p {hung}; touch {hold}")
        pools = Pools(tmp_path, prefix=client.prefix)
        config = tmp_path / "pool.toml"
        common = f'handler = "tests.mounts.hung_handlers:handle"\nworkers = 2\n{LEASE}'
        config.write_text("\n".join(f'[[queue]]\nurl = "{url}"\n{common}' for url in (hung, well)))

        def start() -> Pool:
            return pools.start("--config", str(config), run_dir=Path("/run/orchestrator"), environment={"HOLD": hold})

        def put(url: str, *bodies: str) -> None:
            code, said = pools.run("put", "--lines", url, stdin="".join(f"{body}\n" for body in bodies).encode())
            assert code == 0, said

        def handled() -> list[str]:
            return sorted(line.split()[-1] for line in pools.journal() if line.startswith("handled "))

        try:
            first = start()
            first.until(lambda: first.log.count(" is ready: ") == 2)
            put(hung, "h0", "h1", "h2")
            first.until(lambda: pools.journal() == ["holds one"] * 2)
            site.server.kill()
            client.done(f"rm {hold}")
            put(well, "w0")
            first.until(lambda: handled() == ["w0"])
            first.until(lambda: "queue hung: not measured for" in first.log)
            first.send(signal.SIGTERM)
            assert first.wait(ENDS_S) == 0
            assert not LEFT.search(first.log)

            second = start()
            put(well, "w1")
            second.until(lambda: handled() == ["w0", "w1"])
            second.until(lambda: "queue hung: not opened after" in second.log)
            boot_server(site.server)
            second.until(lambda: handled() == ["h0", "h1", "h2", "w0", "w1"], 200)
            assert second.end(timeout_s=60) == 0
            assert client.done(f"find {hung}/incoming {hung}/pending {hung}/deferred {hung}/errors -type f") == ""
        finally:
            for pool in pools.started:
                pool.process.kill()
                pool.process.wait()


# ---- without a pool


@only_spool
@pytest.mark.parametrize("words", [("put", "--name", "x"), pytest.param(("ls",), marks=long_run)])
def test_who_waits_for_a_hung_mount_is_interrupted_where_the_kernel_lets_it(site: Site, words: tuple[str, ...]) -> None:
    """It does where the filesystem has not taken the request; a mount of NFS always does."""
    url = site.url("hung")
    site.mount.freeze()
    command = [*site.mount.enter, "-m", "orchestrator", words[0], url, *words[1:]]
    waiting = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, env=site.pools.environment())
    try:
        until(lambda: waits_in(waiting.pid).startswith("request_wait"))
        waiting.send_signal(signal.SIGINT)
        assert waiting.wait(30) == -signal.SIGINT
    finally:
        site.mount.thaw()
        waiting.kill()
        waiting.communicate()


# ---- again and again


class Storm:
    """What befalls the mount of one host of a fleet, and its processes meanwhile."""

    def __init__(self, fleet: Fleet, mount: FaultFs, host: Host) -> None:
        self._fleet, self._mount, self._host = fleet, mount, host
        self._dice = random.Random(8)  # noqa: S311 - to be repeated
        self._is_losing = False

    def troubles(self, rounds: int) -> list[Trouble]:
        """One after another, each kind as often."""
        kinds = [self.hang, self.lose, self.hang_with_kill, self.break_off, self.hang_partly, self.dawdle, self.restart]
        return [
            Trouble((step + 1) / (rounds + 1), partial(self._next, kinds[step % len(kinds)])) for step in range(rounds)
        ]

    def _next(self, kind: Callable[[], None]) -> None:
        """One of them, when the pool has opened its queues: one that finds no queue as it starts ends."""
        until(self._workers)
        if self._is_losing:
            self._count("replies lost", LOST - self._mount.left)
            self._is_losing = False
        kind()

    def _workers(self) -> list[int]:
        """Those of the pool, when it has opened its queues."""
        with contextlib.suppress(FileNotFoundError, BoardError):
            pool: Any = snapshot(Board.open(self._host.run_dir / POOL / "board"))
            workers = [worker["pid"] for queue in pool["queues"] for worker in queue["workers"] if worker["pid"]]
            return workers if pool["state"] == "running" else []
        return []

    def _count(self, what: str, count: int = 1) -> None:
        self._fleet.happened[what] += count

    def hang(self) -> None:
        """Until some processes wait."""
        self._mount.stop()
        self._mount.wait_held(self._dice.randint(1, 2))
        self._mount.go()
        self._count("hangs")

    def hang_partly(self) -> None:
        """One kind of request is not answered any more."""
        self._mount.stop(self._dice.choice([RENAME, LIST, LOOK]))
        self._mount.wait_held()
        self._mount.go()
        self._count("hangs")

    def hang_with_kill(self) -> None:
        """A worker is killed while it waits."""
        worker = self._dice.choice(self._workers())
        self._mount.stop()
        self._mount.wait_held(2)
        os.kill(worker, signal.SIGKILL)
        self._fleet._killed += 1
        self._mount.go()
        self._count("workers killed")
        self._count("hangs")

    def dawdle(self) -> None:
        """Each of some requests takes long."""
        self._mount.delay(SLOW_S, DEEDS, times=20)
        until(lambda: self._mount.left == 0, 60)
        self._mount.go()
        self._count("slow calls", 20)

    def lose(self) -> None:
        """The next requests are done, and the answer is that there is no such file."""
        self._mount.fail("ENOENT", self._dice.choice([RENAME, UNLINK]), times=LOST, is_done=True)
        self._is_losing = True

    def break_off(self) -> None:
        """Everybody is told that it is not connected; then it is mounted again."""
        self._mount.break_off()
        self._mount.mount()
        self._count("mounts lost")

    def restart(self) -> None:
        """The pool ends, and starts again, while nothing is answered."""
        running = self._fleet._running[self._host.name]
        assert running.pool is not None
        self._mount.stop()
        self._mount.wait_held(2)
        running.pool.send_signal(signal.SIGTERM)
        assert running.pool.wait(ENDS_S) == 0
        self._fleet.start_pool(self._host)
        self._mount.wait_held(2)
        self._mount.go()
        self._fleet._killed += len(LEFT.findall(self._fleet.log)) - self._fleet.happened["workers left behind"]
        self._fleet.happened["workers left behind"] = len(LEFT.findall(self._fleet.log))
        self._count("hangs")
        self._count("pools ended and started in a hang")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("protocol", PROTOCOLS if COUNT else [SPOOL], ids=str)
def test_a_storm_of_hangs_loses_nothing(protocol: Protocol, tmp_path: Path) -> None:
    """Two hosts on one queue; to one of them the mount does all that it can."""
    if protocol.options:
        # A lock that nobody could touch for that long is broken, and what it was of is handled twice.
        protocol = replace(protocol, options={**protocol.options, "stale_after": "40s"})
    with faulty(tmp_path) as mount:
        (mount.behind / "shared").mkdir()
        alpha = Host("alpha", mount.inside / "shared", mount.enter, tmp_path / "run-alpha")
        beta = Host("beta", mount.behind / "shared", (sys.executable,), tmp_path / "run-beta")
        with protocol.fleet(tmp_path, [beta, alpha], COUNT or SHORT) as fleet:
            try:
                fleet.start()
                fleet.run(Storm(fleet, mount, alpha).troubles(35 if COUNT else 5), 600.0)
                counts = fleet.counts(beta)
            finally:
                let_go(mount)
        print(f"\na mount that hangs, {protocol}: {counts}")  # noqa: T201 - the figures of a long run
        counts.unpublished_max += BATCH * fleet.happened["mounts lost"]  # whose producers could not clear up
        counts.check(may_stall=True)
