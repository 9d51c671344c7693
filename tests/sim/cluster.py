"""
cluster - hundreds of hosts and thousands of workers on one simulated filesystem, and all that may befall them

Producers put in every way there is, handlers succeed, fail, forward, reject, hang and
kill their workers, an operator puts back what is in errors/; meanwhile processes, masters
and hosts crash, mounts are lost, clocks are set, and calls go wrong (misfortune, virtual,
mount). Then the faults end, and when all is quiet every message must have come to the end
that it should (accounts). One seed is one run, call by call; so is the order of sets of
names, which is why the command fixes PYTHONHASHSEED.

    python -m tests.sim cluster --seed 1 --hosts 200 --workers 12 --messages 20000 --minutes 10 --sweep 30
    python -m tests.sim cluster --seed 7 --about report    # that run again, with the calls that name it

Long because: a run, those who take part in it without a host, and the command are read together.
See also: hosts (who takes from the queues), growth (what a cluster costs its server).
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import logging
import os
import random
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import Pool
from typing import Any

from tests.sim.accounts import Accounts, Message
from tests.sim.hosts import NEXT, QUEUE, Host, Master
from tests.sim.misfortune import Misfortune
from tests.sim.mount import Mount
from tests.sim.virtual import SECOND, Client, Odds, Place, Task, Virtual
from workers import message as outcomes
from workers.errors import MessageExists, OrchestratorError, QueueUnavailable
from workers.queues import names, spool_keep
from workers.queues.base import Settings
from workers.queues.spool import Spool

GIVEN = 2  # names that producers give again and again


@dataclass(frozen=True)
class Plan:
    """
    What is run.

    Attributes:
        hosts, workers: of each host; every fifth host takes from the second queue.
        messages: that producers put, spread over *minutes*.
        handler_s: mean of what a handler takes.
        lease_s: interval and timeout of a lease, and the age at which what is abandoned is reaped.
        faults: 1.0 are the rates of misfortune and the odds of calls as they stand, 0 none.
        losses: what these odds of calls are multiplied with besides.
        fed: share of the hosts that have a feeder.
        is_one_queue: all hosts take from the first one.
        is_plain: every message is done at its first attempt.
        sweep_s: how often keepers look for what is abandoned; now a call for each worker of the cluster.
        rates: that differ from those of misfortune.
        measures: how many of the hosts' keepers measure the depth every second; it costs a listing for each worker.
    """

    seed: int = 1
    hosts: int = 10
    workers: int = 4
    messages: int = 500
    minutes: float = 5.0
    handler_s: float = 0.5
    lease_s: tuple[float, float, float] = (2.0, 20.0, 90.0)
    faults: float = 1.0
    losses: float = 1.0
    fed: float = 0.5
    measures: int = 1
    network: str | None = "nfs"
    sweep_s: float = 5.0
    is_plain: bool = False
    is_one_queue: bool = False
    rates: dict[str, float] = field(default_factory=dict)


def odds(plan: Plan) -> Odds:
    """Of each call."""
    if not plan.network:
        return Odds(failed=0.0002 * plan.faults, one_way_s=0.00001, operation_s=0.000005)
    scale = plan.faults * plan.losses
    return Odds(lost=0.003 * scale, late=0.0006 * scale, failed=0.001 * scale, spikes=0.0004 * scale)


class Cluster:
    """One run. *run* returns its figures, or raises AssertionError, which tells the seed and the last calls."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.virtual = Virtual(plan.seed, odds(plan), network=plan.network)
        self.chance = self.virtual.random
        interval_s, timeout_s, stale_s = plan.lease_s
        self.settings = Settings(
            max_attempts=4, retry_backoff_s=1.0, retry_backoff_s_max=20.0, crash_limit=3,
            lease_interval_s=interval_s, lease_timeout_s=timeout_s, stale_after_s=stale_s,
        )  # fmt: skip
        self.accounts = Accounts(self.virtual, timeout_s, (self.settings.max_attempts, self.settings.crash_limit))
        self.accounts.owner_on_board = self._is_on_board
        self.accounts.master_is_dead = lambda master: self.masters[master].is_dead
        self.faults: Counter[str] = Counter()
        self.masters: dict[str, Master] = {}
        self._put = 0
        with self.virtual.world.straight():
            for path in (QUEUE, NEXT):
                maker = self.virtual.client(Place("maker", Mount(self.chance, (0, 0), 0)), "maker")
                Spool(path, dataclasses.replace(self.settings, create=True), system=maker, host="maker")
        self.hosts = [Host(self, number) for number in range(plan.hosts)]
        self.misfortune = Misfortune(self.virtual, self.hosts, (timeout_s, stale_s), self.faults)

    def open(self, path: str, process: Client) -> Spool:
        """The queue at *path*, as *process* opens it."""
        return Spool(path, self.settings, system=process, host=process.host)

    def _is_on_board(self, owner: str) -> bool:
        parsed = names.parse_owner(owner)
        return parsed is not None and self.masters[parsed.master].is_on_board(owner)

    # ---- the run

    def run(self) -> dict[str, Any]:
        """All of it; what came of it, in figures."""
        start_s = time.perf_counter()
        try:
            self.begin()
            self.misfortune.begin(self.plan.faults, self.plan.rates)
            self.virtual.run(self.plan.minutes * 60)
            self._mend()
            quiet_s = self._wait_until_quiet()
            self.accounts.check_all_ended()
            return self._figures(quiet_s, time.perf_counter() - start_s)
        except Exception as error:
            raise self._violation(error) from error
        finally:
            self.virtual.close()

    def begin(self) -> None:
        """Everybody starts, within a second or two."""
        for host in self.hosts:
            self.virtual.at(self.chance.uniform(0, 2), self._start_host, host)
        if self.plan.faults:
            operator = self.virtual.client(self.hosts[0], "operator")
            self.virtual.start(operator, lambda: self._operate(operator), lambda task: None)

    def _start_host(self, host: Host) -> None:
        host.start()
        self.start_producer(host)

    def _mend(self) -> None:
        """No more faults."""
        self.misfortune.end()
        self.virtual.odds = dataclasses.replace(self.virtual.odds, lost=0, late=0, failed=0, spikes=0)

    def _wait_until_quiet(self) -> float:
        """Until nothing waits, nothing is claimed, tmp/ is empty and every host has its master."""
        disk = self.virtual.world.disk
        start_ns, longest_s = self.virtual.now_ns, 10 * self.plan.lease_s[2]
        while self.virtual.now_ns - start_ns < longest_s * SECOND:
            self.virtual.run(5.0)
            is_empty = not any(disk.directory(f"{path}/tmp").entries for path in (QUEUE, NEXT))
            is_put = all(host.producer is None or host.producer.is_over for host in self.hosts)
            if is_empty and is_put and not self.accounts.left() and all(host.master for host in self.hosts):
                break
        return (self.virtual.now_ns - start_ns) / SECOND

    def _violation(self, error: Exception) -> AssertionError:
        told = self.virtual.story(*self.virtual.suspects) if self.virtual.suspects else []
        text = [f"seed {self.plan.seed}: {type(error).__name__}: {error}", *told[-80:], f"plan: {self.plan}"]
        return AssertionError("\n".join(text))

    def _figures(self, quiet_s: float, real_s: float) -> dict[str, Any]:
        accounts, virtual = self.accounts, self.virtual
        served: Counter[str] = Counter()
        for host in self.hosts:
            served.update(host.mount.served)
        crashes = {kind: count for kind, count in self.faults.items() if "crash" in kind}
        return {
            "seed": self.plan.seed,
            "log": virtual.digest.hexdigest(),
            "virtual minutes": round(virtual.now_ns / SECOND / 60, 1),
            "minutes until quiet": round(quiet_s / 60, 1),
            "messages": accounts.counts["messages"],
            "handled": accounts.counts["handled"],
            "handled twice": accounts.counts["handled twice"],
            "ended": {
                kind: accounts.counts[kind]
                for kind in (
                    "finished",
                    "into errors/",
                    "requeued",
                    "forwarded",
                    "forwarded anew twice",
                    "fenced",
                    "input_gone",
                )
            },
            "puts": {kind: count for kind, count in accounts.counts.items() if kind.startswith(("puts", "names"))},
            "crashes": crashes,
            "faults": {kind: count for kind, count in self.faults.items() if kind not in crashes}
            | dict(virtual.faults),
            "served from a cache": dict(served),
            "releases": dict(accounts.releases),
            "calls": sum(virtual.calls.values()),
            "operations of the server": sum(virtual.operations.values()),
            "violations": 0,
            "seconds": round(real_s, 1),
        }

    # ---- producers, and an operator

    def start_producer(self, host: Host) -> None:
        """Of *host*."""
        if self._put < self.plan.messages and (host.producer is None or host.producer.is_over):
            process = self.virtual.client(host, "producer")
            host.producer = self.virtual.start(process, lambda: self._produce(process), lambda task: None)

    def _produce(self, process: Client) -> None:
        while True:
            try:
                queue = self.open(QUEUE, process)
                break
            except OrchestratorError:
                process.sleep(1.0)
        pause_s = self.plan.minutes * 60 * 0.9 * len(self.hosts) / self.plan.messages
        while self._put < self.plan.messages:
            process.sleep(self.chance.expovariate(1 / pause_s))
            drawn = self.chance.random()
            if drawn < 0.1:
                process.sleep(self.chance.expovariate(1 / pause_s) * 5)
                self._put_many(queue, process)
            elif drawn < 0.2:
                self._put_one(queue, process, name=f"report{self.chance.randrange(GIVEN)}.csv")
            elif drawn < 0.3:
                self._put_one(queue, process, delay=self.chance.uniform(0.5, 30))
            else:
                self._put_one(queue, process)

    def _body(self) -> bytes:
        """The next one: its number, and what its handler will do."""
        self._put += 1
        drawn, kind = self.chance.random(), "plain"
        for share, name in () if self.plan.is_plain else KINDS:
            if drawn < share:
                kind = name
                break
            drawn -= share
        return f"m{self._put}.{kind}".encode()

    def _put_one(self, queue: Spool, process: Client, name: str | None = None, delay: float = 0) -> None:
        body, again = self._body(), 0
        while True:
            try:
                queue.put(body, name, delay=delay, durable=self.chance.random() < 0.7)
            except MessageExists:
                self.accounts.was_refused([body], is_name_taken=True)
                name = None
            except QueueUnavailable as error:
                if error.is_unknown:
                    self.accounts.counts["puts unknown"] += 1
                else:
                    self.accounts.was_refused([body])
                process.sleep(self.chance.uniform(0.5, 2))
            else:
                self.accounts.was_put(body)
                return
            again += 1
            body = body.replace(b".", f"-{again}.".encode(), 1)

    def _put_many(self, queue: Spool, process: Client) -> None:
        bodies = [self._body() for _ in range(self.chance.randint(2, 20))]
        again = 0
        while bodies:
            entered = len(bodies)
            try:
                queue.put_many(bodies, durable=self.chance.random() < 0.7)
            except QueueUnavailable as error:
                entered = len(error.names)
                self.accounts.was_refused(bodies[entered + error.is_unknown :])
                self.accounts.counts["puts unknown"] += error.is_unknown
                process.sleep(self.chance.uniform(0.5, 2))
            for body in bodies[:entered]:
                self.accounts.was_put(body)
            again += 1
            bodies = [body.replace(b".", f"-{again}.".encode(), 1) for body in bodies[entered:]]

    def _operate(self, process: Client) -> None:
        """Somebody who looks, and puts back a part of what is in errors/."""
        while not self.misfortune.is_over:
            process.sleep(self.chance.uniform(10, 40))
            with suppress(OrchestratorError):
                queue = self.open(QUEUE, process)
                queue.depth()
                for listed in tuple(queue.list("errors")):
                    if self.chance.random() < 0.3:
                        queue.requeue(listed.name)
                if self.chance.random() < 0.1:
                    self.faults["pauses by an operator"] += 1
                    queue.pause()
            process.sleep(self.chance.uniform(1, 8))
            self._resume(process)

    def _resume(self, process: Client) -> None:
        while True:
            with suppress(OrchestratorError):
                queue = self.open(QUEUE, process)
                if not queue.is_paused():
                    return
                queue.resume()
            process.sleep(1.0)

    # ---- the handler

    def handle(self, master: Master, index: int, message: outcomes.Message) -> outcomes.Outcome | None:
        """What every worker runs; what becomes of a message stands in its body."""
        task = master.workers[index]
        process = task.process
        told = self.accounts.was_handled(process.opened(message.claim.fd))
        try:
            kind = process.read(message.claim.fd, 65536).partition(b".")[2].decode()
        except OSError:  # it was taken from us, and finished: ESTALE
            told.failed += 1
            raise
        process.sleep(self.chance.expovariate(1 / self.plan.handler_s))
        if kind == "poison":
            told.killed += 1
            self.faults["crashes by a message"] += 1
            task.die("died")
        if kind == "slow" and message.attempt == 1:
            master.later(5.0, self._time_out, master, index, task, told)
            process.sleep(1e5)
        if kind == "hopeless" or (kind == "flaky" and self.chance.random() < 0.5):
            told.failed += 1
            raise ValueError(kind)
        if kind == "again" and message.attempt == 1:
            told.failed += 1
            return outcomes.Retry(self.chance.uniform(0, 5))
        if kind == "reject":
            told.rejected += 1
            return outcomes.Reject("asked for")
        if kind == "forward" and master.host.path == QUEUE:
            return outcomes.Forward(queue="next")
        if kind == "anew" and master.host.path == QUEUE:
            self._put += 1
            return outcomes.Forward(body=f"f{self._put}.plain".encode(), queue="next")
        return None

    def _time_out(self, master: Master, index: int, task: Task, told: Message) -> None:
        if master.workers.get(index) is task and not task.is_over:
            self.faults["workers killed at a time limit"] += 1
            told.failed += 1
            task.kill("timeout")


KINDS = (
    (0.10, "flaky"), (0.03, "again"), (0.02, "hopeless"), (0.03, "reject"), (0.06, "forward"), (0.03, "anew"),
    (0.01, "poison"), (0.01, "slow"),
)  # fmt: skip


@contextmanager
def quiet_and_repeatable(plan: Plan) -> Iterator[None]:
    """No log; the one generator that queues draw from without being given it is seeded; names are parsed once."""
    before, state, sweep_s = logging.root.manager.disable, random.getstate(), spool_keep.SWEEP_S
    owner, lease = names.parse_owner, names.parse_lease
    logging.disable(logging.CRITICAL)
    random.seed(plan.seed)
    spool_keep.SWEEP_S = plan.sweep_s
    names.parse_owner = functools.lru_cache(100_000)(owner)
    names.parse_lease = functools.lru_cache(100_000)(lease)
    try:
        yield
    finally:
        names.parse_owner, names.parse_lease = owner, lease
        spool_keep.SWEEP_S = sweep_s
        random.setstate(state)
        logging.disable(before)


def simulate(plan: Plan) -> dict[str, Any]:
    """One run. Raises AssertionError for a violation."""
    with quiet_and_repeatable(plan):
        return Cluster(plan).run()


def main(arguments: list[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim cluster", description="Simulate clusters, seed by seed.")
    standard = Plan()
    parser.add_argument("--seed", type=int, default=1, help="the first seed")
    parser.add_argument("--seeds", type=int, default=1, help="how many, one after the other")
    parser.add_argument("--hosts", type=int, default=standard.hosts)
    parser.add_argument("--workers", type=int, default=standard.workers, help="of each host")
    parser.add_argument("--messages", type=int, default=standard.messages)
    parser.add_argument("--minutes", type=float, default=standard.minutes, help="virtual, with faults")
    parser.add_argument("--handler", type=float, default=standard.handler_s, help="mean seconds of a handler")
    parser.add_argument("--faults", type=float, default=standard.faults, help="0 none, 2 twice as many")
    parser.add_argument("--local", action="store_true", help="a local filesystem: no lost replies, no caches")
    parser.add_argument("--rate", action="append", default=[], metavar="KIND=RATE", help="of one fault, a minute")
    parser.add_argument("--sweep", type=float, default=standard.sweep_s, help="seconds between sweeps of a keeper")
    parser.add_argument("--about", metavar="TEXT", help="print the calls that name it")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args(arguments)
    if os.environ.get("PYTHONHASHSEED") != "0":
        # The order of a set of names is part of a run.
        command = [sys.executable, "-m", "tests.sim.cluster", *arguments]
        os.execve(sys.executable, command, os.environ | {"PYTHONHASHSEED": "0"})  # noqa: S606
    rates = {kind: float(rate) for kind, _, rate in (each.partition("=") for each in chosen.rate)}
    plans = [
        Plan(
            seed, chosen.hosts, chosen.workers, chosen.messages, chosen.minutes, chosen.handler, faults=chosen.faults,
            network=None if chosen.local else "nfs", sweep_s=chosen.sweep, rates=rates,
        )
        for seed in range(chosen.seed, chosen.seed + chosen.seeds)
    ]  # fmt: skip
    if chosen.about:
        for plan in plans:
            _tell(plan, chosen.about)
        return 0
    violations, sums = 0, Counter[str]()
    # A process for each: what a run leaves behind is gone with it, and every core is used.
    with Pool(min(len(plans), os.cpu_count() or 1), maxtasksperchild=1) as pool:
        for plan, figures, violation in pool.imap(_simulated, plans):
            violations += bool(violation)
            sums += _flat(figures)
            if violation:
                print(violation, file=sys.stderr, flush=True)  # noqa: T201
            elif chosen.json:
                print(json.dumps(figures), flush=True)  # noqa: T201
            else:
                print(f"seed {plan.seed}: " + _told(_flat(figures)), flush=True)  # noqa: T201
    if not chosen.json:
        print(f"{len(plans)} seeds, {violations} with violations: " + _told(sums))  # noqa: T201
    return 1 if violations else 0


def _simulated(plan: Plan) -> tuple[Plan, dict[str, Any], str]:
    try:
        return plan, simulate(plan), ""
    except AssertionError as error:
        return plan, {}, str(error)


def _tell(plan: Plan, text: str) -> None:
    with quiet_and_repeatable(plan):
        cluster = Cluster(plan)
        cluster.virtual.told = deque()
        with suppress(AssertionError):
            cluster.run()
        print("\n".join(cluster.virtual.story(text)))  # noqa: T201


def _flat(figures: dict[str, Any]) -> Counter[str]:
    """The figures that can be summed; those of a group under their own names."""
    found: Counter[str] = Counter()
    for key, value in figures.items():
        if isinstance(value, dict):
            found += _flat(value)
        elif isinstance(value, int | float) and key not in ("seed", "violations"):
            found[key] += value
    return found


def _told(figures: Counter[str]) -> str:
    return ", ".join(f"{value:,.0f} {key}" for key, value in figures.items())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
