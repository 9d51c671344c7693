"""
judge_together - what hosts found out together, as findings

Pure.
See also: judge (what each found out for itself).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from orchestrator.doctor.facts import Host, Sight, Together
from orchestrator.doctor.findings import Finding, counted, duration
from orchestrator.doctor.judge import OFFSET_S_MAX, judge_locks, judge_race

LISTING_S_MAX = 3.0  # a name that is seen later holds work up, and leases have to know
LISTING_S_LIMIT = 15.0  # a quarter of the default lease: when in doubt a queue believes a listing
STAT_S_MAX = 1.0


def judge_together(hosts: Sequence[Host], together: Together) -> Iterator[Finding]:
    """All of it, in the order of a report."""
    missing = {race.way for host in hosts for race in host.races if race.unsupported}  # was said of the hosts
    for race in together.races:
        if race.way not in missing:
            yield judge_race(race, f"hosts.{race.way}", "hosts")
    yield from _sights(hosts, together.sights)
    if together.torn or together.unopened:
        yield _torn(together)
    if together.locks:
        yield judge_locks(together.locks, "hosts.locks", "locks")
    yield from _clocks(hosts)
    yield from _who(hosts)


def absent(reason: str) -> Finding:
    """The others did not come."""
    return Finding(
        key="hosts.absent",
        title="other hosts",
        level="warning",
        measured=reason,
        why="what one host finds says nothing of what it shares with others",
        do="start it on all hosts within --wait of each other",
    )


def listing_s(sights: Sequence[Sight]) -> float | None:
    """The longest that a name of another host was not listed; None: it never was."""
    seen = [sight.by_listing_s for sight in sights]
    return None if None in seen else max((one for one in seen if one is not None), default=0.0)


def _sights(hosts: Sequence[Host], sights: Sequence[Sight]) -> Iterator[Finding]:
    if not sights:
        return
    longest_s = sights[0].longest_s
    by_listing = listing_s(sights)
    is_late = by_listing is not None and by_listing > LISTING_S_MAX
    is_too_late = by_listing is None or by_listing > LISTING_S_LIMIT
    yield Finding(
        key="hosts.listing",
        title="a new name, listed",
        level="failed" if is_too_late else "warning" if is_late else "ok",
        measured=f"not within {duration(longest_s)}" if by_listing is None else f"after {_at_most(by_listing, sights)}",
        why="messages of other hosts, and the beats of their leases, are seen so late"
        if not is_too_late
        else "when in doubt a queue believes a listing, and goes by it to know who is alive",
        do="switch the cache of directories off (sshfs: -o dir_cache=no), or give leases the time (see settings)"
        if is_late or by_listing is None
        else "",
        scope="hosts",
        because="a name that one host makes is listed on another "
        + (f"not within {duration(longest_s)}" if by_listing is None else f"only after {duration(by_listing)}"),
    )
    stats = [sight.by_stat_s for sight in sights]
    by_stat = max((one for one in stats if one is not None), default=0.0)
    is_unseen = None in stats
    yield Finding(
        key="hosts.stat",
        title="a new name, by stat",
        level="note" if is_unseen or by_stat > STAT_S_MAX else "ok",
        measured="once asked for in vain: "
        + (f"not within {duration(longest_s)}" if is_unseen else f"after {_at_most(by_stat, sights)}"),
        why="a host keeps for a while that a name is missing; our queues list instead, but test -e of a script waits",
    )
    events = Counter(sight.events for sight in sights)
    is_network = all(host.mount is not None and host.mount.network for host in hosts)
    is_silent = not events[True]
    yield Finding(
        key="hosts.inotify",
        title="inotify",
        level="ok" if not is_silent else "note" if is_network else "warning",
        measured="silent about other hosts" if is_silent else f"told of {events[True]} of {len(sights)} arrivals",
        why="workers look again every poll_interval"
        + ("" if is_network else ", but here they would wait for an event, as on a local disk"),
        do="" if is_network else 'set watch = "poll"',
    )


def _at_most(seconds: float, sights: Sequence[Sight]) -> str:
    half_s = max(sight.half_width_s for sight in sights)
    return f"{duration(seconds)} at the most" + (f" (+/- {duration(half_s)})" if half_s > 0.1 else "")


def _torn(together: Together) -> Finding:
    found = [
        f"{counted(number, 'file')} {what}"
        for number, what in (
            (together.torn, "read that another host had written, and not whole"),
            (together.unopened, "listed, and not there when opened"),
        )
        if number
    ]
    return Finding(
        key="hosts.content",
        title="files of other hosts",
        level="failed" if together.torn else "note",
        measured=", ".join(found),
        why="a message may be handled before all of it is there" if together.torn else "it is tried again",
        do="let producers and workers of a queue run on one host" if together.torn else "",
        scope="hosts",
        because="a file that another host had written whole was read in part",
    )


def _clocks(hosts: Sequence[Host]) -> Iterator[Finding]:
    times = [host.times for host in hosts if host.times is not None]
    middles = [(one.offset_s_min + one.offset_s_max) / 2 for one in times]
    if len(middles) < 2:
        return
    apart_s = max(middles) - min(middles)
    half_s = sum(sorted((one.offset_s_max - one.offset_s_min) / 2 for one in times)[-2:])
    is_off = apart_s > OFFSET_S_MAX
    yield Finding(
        key="hosts.clocks",
        title="clocks of the hosts",
        level="warning" if is_off else "ok",
        measured=f"{duration(apart_s)} apart (+/- {duration(half_s)})"
        if apart_s > half_s
        else f"equal within {duration(max(half_s, apart_s))}",
        why="no queue of ours compares them; ddmq and other programs do, and reports and logs of two hosts",
        do="set them by NTP",
    )


def _who(hosts: Sequence[Host]) -> Iterator[Finding]:
    names = [host.host for host in hosts]
    machines = {host.machine for host in hosts}
    if len(machines) < len(hosts):
        yield Finding(
            key="hosts.one",
            title="hosts",
            level="note",
            measured=f"{len(hosts)} doctors on {counted(len(machines), 'machine')}",
            why="what two mounts of one machine see of each other says nothing of two machines",
            do="start one doctor on each machine",
        )
    elif len(set(names)) < len(names):
        yield Finding(
            key="hosts.names",
            title="hosts",
            level="warning",
            measured=f"several are called {max(names, key=names.count)}",
            why="in a queue two hosts must have different names, or each takes the other's claims for its own",
            do="give each pool a [pool] host of its own",
        )
    if len({host.user for host in hosts}) > 1:
        yield Finding(
            key="hosts.users",
            title="users",
            level="note",
            measured="not the same number on all hosts",
            why="who puts and who takes must be able to rename each other's files",
            do="run the pools of a queue as one user",
        )
