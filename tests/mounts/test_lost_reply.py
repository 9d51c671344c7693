"""
test_lost_reply - the server did it, the reply is lost, and the client is told that there is no such file

For every verb of every protocol that rests on a directory, and every call by which it changes names: after a lost reply
there is to see what there is to see when nothing was lost. That is what the verb said, each file that lies anywhere,
and what another host finds to handle.

ORCHESTRATOR_MOUNTS=N: as many actors, each with a message and a call, on real NFS; 900 are all calls with all versions.
See also: lost_reply (the deeds), guests, workers/queues/SPOOL.md section 12.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from tests.mounts.guests import EXPORT, MOUNT, Guest, Site, boot_server, guests
from tests.mounts.lost_reply import DEEDS, Call, Case, Ended
from tests.waiting import until

ROOT = Path(__file__).parents[2]
MODULE = "tests.mounts.lost_reply"
ACTORS_MAX = 18  # a session of NFS 4 has room for little more calls at one time
VERSIONS = {"4.2": 0, "4.1": 0, "3": 1}  # and on which client
# No question about a name precedes a call: its reply would be the one that is lost.
OPTIONS = "hard,nosharecache,actimeo=60"
MOST = int(os.environ.get("ORCHESTRATOR_MOUNTS", "0"))
SHORT = {"put", "claim", "done", "retry", "release", "reject", "forward", "due", "died", "put-named", "beat"}
LOCKS = {"dirq-simple": "/queue/#/#.lck = message", "dirq": "/queue/#/#/locked/"}


@dataclass
class Plain:
    """What there is to see when nothing is lost, and the calls by their numbers."""

    outcome: str
    state: list[str]
    handled: int
    calls: dict[int, str]


Plains = dict[tuple[str, str], Plain]


@pytest.fixture(scope="module")
def plains(tmp_path_factory: pytest.TempPathFactory) -> Plains:
    """Every deed undisturbed."""
    place = tmp_path_factory.mktemp("plain")
    kinds = [(protocol, name) for name, deed in DEEDS.items() for protocol in deed.protocols]
    cases = [Case(number, *kind, 0, str(place / str(number))) for number, kind in enumerate(kinds)]
    ended, seen = _ended(_run("emulate", cases, place)), _by_number(_run("survey", cases, place))
    assert [(cases[number], one.trace) for number, one in ended.items() if one.trace or not one.calls] == []
    return {
        kind: Plain(ended[number].outcome, seen[number]["state"], seen[number]["handled"], ended[number].calls)
        for number, kind in enumerate(kinds)
    }


def _run(errand: str, cases: list[Case], place: Path, prefix: Iterable[str] = (sys.executable,)) -> list[Any]:
    """The lines that an errand of the actors' program prints."""
    file = place / f"{errand}.json"
    file.write_text(json.dumps([asdict(case) for case in cases]))
    words = [*prefix, "-m", MODULE, errand, str(file)]
    done = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, check=True, timeout=600)
    return [json.loads(line) for line in done.stdout.splitlines()]


def _by_number(lines: list[Any]) -> dict[int, Any]:
    return {line["number"]: line for line in lines}


def _ended(lines: list[Any]) -> dict[int, Ended]:
    return {
        line["number"]: Ended(**{**line, "calls": {int(number): name for number, name in line["calls"].items()}})
        for line in lines
    }


# ---- what must come of it


def faults(case: Case, ended: Ended, seen: Any, plains: Plains) -> list[str]:
    """In what *case* differs from its deed undisturbed, apart from what the protocol's text says."""
    plain = expected(case, ended, plains[case.protocol, case.deed])
    found = [] if not ended.trace else [ended.trace]
    for what, got, wanted in (
        ("outcome", ended.outcome, plain.outcome),
        # Where a message was to be written there is another directory, empty, until a sweep finds it.
        ("state", [re.sub("/temporary/#/$", "/temporary/", path) for path in seen["state"]], plain.state),
        ("handled by another host", seen["handled"], plain.handled),
    ):
        if got != wanted:
            found.append(f"{what}: {got}, and not {wanted}")
    call = plains[case.protocol, case.deed].calls.get(case.nth, "no call")
    return [f"{case.protocol} {case.deed}, call {case.nth} ({call}), told {ended.told}: {one}" for one in found]


def expected(case: Case, ended: Ended, plain: Plain) -> Plain:
    """What there is to see after what *case* was told."""
    if ended.told == "EEXIST" and case.protocol in LOCKS and (case.deed, case.nth) == ("claim", 1):
        # DIRQ.md, section 6: nobody can say whose lock it is, so it is nobody's, until it is stale.
        return replace(plain, outcome="nothing", state=sorted([*plain.state, LOCKS[case.protocol]]))
    return plain


def test_a_lost_reply_changes_nothing_that_can_be_seen(plains: Plains, tmp_path: Path) -> None:
    """Each call is made twice, on this filesystem; what a cache would show of its names is shown for a while."""
    cases = [
        Case(number, protocol, deed, nth, str(tmp_path / str(number)))
        for number, (protocol, deed, nth) in enumerate(_all(plains))
        if protocol != "naive"
    ]
    ended, seen = _ended(_run("emulate", cases, tmp_path)), _by_number(_run("survey", cases, tmp_path))
    wrong = [fault for case in cases for fault in faults(case, ended[case.number], seen[case.number], plains)]
    assert not wrong, "\n".join(wrong)
    told = Counter(one.told for one in ended.values())
    print(f"\nlost replies, emulated: {told.total()} calls of {len(plains)} deeds, told {dict(told)}")  # noqa: T201 - counts
    assert told.keys() <= {"ENOENT", "EEXIST"}


def _all(plains: Plains) -> Iterator[tuple[str, str, int]]:
    for (protocol, deed), plain in plains.items():
        for nth in plain.calls:
            yield protocol, deed, nth


# ---- real NFS


@dataclass
class Round:
    """Actors on both clients, and one restart of the server."""

    site: Site
    cases: list[Case]
    place: Path
    calls: dict[int, Call] = field(default_factory=dict)
    ended: dict[int, Ended] = field(default_factory=dict)
    made: set[int] = field(default_factory=set)

    def play(self) -> dict[int, Any]:
        """Lose the reply of each; what another host sees afterwards, by the numbers of the cases."""
        # A client that has a file on loan returns it before it renames it, and that would be the reply that is lost.
        self.site.server.done("echo 0 > /proc/sys/fs/leases-enable")
        groups = {number: [case for case in self.cases if _client(case) == number] for number in set(VERSIONS.values())}
        playing = {number: self._start(self.site.clients[number], cases) for number, cases in groups.items() if cases}
        for process in playing.values():
            self._hear(process)
        self.site.drop_replies(*self.site.clients)
        for process in playing.values():
            assert process.stdin is not None
            process.stdin.write(b"go\n")
            process.stdin.flush()
        self._wait_until_made()
        self.site.server.kill()
        self.site.pass_all()
        boot_server(self.site.server)
        for process in playing.values():
            with process:
                self._hear(process)
            assert process.returncode == 0
        client = self.site.clients[1]
        self.site.mount(client)
        cases = [replace(case, place=str(MOUNT / Path(case.place).name)) for case in self.cases]
        return _by_number(_run("survey", cases, self.place, client.prefix))

    def _start(self, client: Guest, cases: list[Case]) -> subprocess.Popen[bytes]:
        file = self.place / f"{client.name}.json"
        file.write_text(json.dumps([asdict(case) for case in cases]))
        # All calls leave at once, though none is answered: TCP would send ten, and wait with the others.
        client.done("ip route replace 10.78.0.0/24 dev vec0 initcwnd 200 initrwnd 200 rto_min 3s")
        return subprocess.Popen(
            [*client.prefix, "-m", MODULE, "play", str(file)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def _hear(self, process: subprocess.Popen[bytes]) -> None:
        """What the actors say, until all stand still or have ended."""
        assert process.stdout is not None
        for line in map(json.loads, process.stdout):
            if line == "all":
                return
            if "told" in line:
                self.ended |= _ended([line])
            else:
                self.calls[line["number"]] = Call(**line)

    def _wait_until_made(self) -> None:
        """Until the server has done all that it was asked; some asked for something else first, and will not."""
        calls = [replace(call, paths=[_on_server(path) for path in call.paths]) for call in self.calls.values()]
        file = self.place / "calls.json"
        file.write_text(json.dumps([asdict(call) for call in calls]))

        def is_made() -> bool:
            words = [*self.site.server.prefix, "-m", MODULE, "made", str(file)]
            found = json.loads(subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, check=True, timeout=60).stdout)
            made = {call.number for call, is_made in zip(calls, found, strict=True) if is_made}
            is_all, self.made = made == self.made or len(made) == len(calls), made
            return is_all and bool(made)

        until(is_made, 30.0, 0.3)

    def lost(self, case: Case) -> bool:
        """Whether the server did it, and the client was told otherwise."""
        return case.number in self.made and self.ended[case.number].told in ("ENOENT", "EEXIST")


def _client(case: Case) -> int:
    return VERSIONS[_version(case)]


def _version(case: Case) -> str:
    return case.mount.partition("vers=")[2].partition(",")[0]


def _on_server(path: str) -> str:
    """A path below /mnt/aN, as the server has it."""
    return str(EXPORT.joinpath(*Path(path).parts[3:]))


def _case(number: int, kind: tuple[str, str, int], version: str, site: Site) -> Case:
    server, client = site.server.address, site.clients[VERSIONS[version]].address
    options = f"vers={version},addr={server},{OPTIONS}"
    if version == "3":
        source, options = str(EXPORT), f"{options},nolock,mountaddr={server},mountvers=3,mountproto=tcp,proto=tcp"
    else:
        source, options = "/", f"{options},clientaddr={client}"
    return Case(number, *kind, f"/mnt/a{number}/{number}", f"{server}:{source} {options}")


def _short(plains: Plains) -> Iterator[tuple[str, tuple[str, str, int]]]:
    """The call that decides of each verb, each with one version of NFS; and who is not aware of all this with each."""
    for (protocol, deed), plain in plains.items():
        if deed in SHORT:
            decides = next((nth for nth, call in plain.calls.items() if call in ("rename", "link")), 1)
            yield {"spool": "4.2", "dirq": "4.1", "dirq-simple": "3", "ddmq": "3"}[protocol], (protocol, deed, decides)
    for version in VERSIONS:
        yield version, ("naive", "naive-claim", 1)


def _rounds(plains: Plains, site: Site) -> Iterator[list[Case]]:
    """What is played between two restarts of the server."""
    wanted = iter(_short(plains) if not MOST else islice(_over_and_over(plains), MOST))
    number, left = 0, next(wanted, None)
    while left is not None:
        cases: list[Case] = []
        room = Counter(dict.fromkeys(VERSIONS, ACTORS_MAX if MOST else 100))
        while left is not None and room[left[0]]:
            room[left[0]] -= 1
            cases.append(_case(number, left[1], left[0], site))
            number, left = number + 1, next(wanted, None)
        yield cases


def _over_and_over(plains: Plains) -> Iterator[tuple[str, tuple[str, str, int]]]:
    while True:
        for kind in sorted(_all(plains), key=lambda kind: kind[0] != "naive"):
            for version in VERSIONS:
                yield version, kind


@pytest.mark.timeout(180 + 4 * MOST)
def test_a_lost_reply_of_nfs_changes_nothing_that_can_be_seen(plains: Plains, tmp_path: Path) -> None:
    """And who takes ENOENT for a lost race loses his message: else nothing would have been tried."""
    counts: Counter[str] = Counter()
    lost: Counter[str] = Counter()
    wrong: list[str] = []
    with guests(tmp_path / "site") as site:
        for cases in _rounds(plains, site):
            one = Round(site, cases, tmp_path)
            seen = one.play()
            counts += Counter(reboots=1, messages=len(cases), made=len(one.made))
            for case in cases:
                lost[_version(case)] += one.lost(case)
                found = faults(case, one.ended[case.number], seen[case.number], plains)
                if case.protocol != "naive":
                    wrong += [f"NFS {_version(case)}: {fault}" for fault in found]
                elif one.lost(case):
                    counts["unaware"] += 1
                    assert seen[case.number] == {
                        "number": case.number, "state": ["/in/", "/taken/job = message"], "handled": 0,
                    }  # fmt: skip
    print(  # noqa: T201 - counts
        f"\nlost replies on NFS: {counts['messages']} messages, {counts['reboots']} reboots; {counts['made']} calls "
        f"made, replies lost {lost.total()} {dict(lost)}; lost, twice, stranded or told wrong {len(wrong)}; "
        f"unaware claimers {counts['unaware']}, theirs lost {counts['unaware']}"
    )
    assert not wrong, "\n".join(wrong)
    assert all(lost[version] for version in VERSIONS)
    assert counts["unaware"]
