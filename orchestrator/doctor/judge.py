"""
judge - what a host found out for itself, as findings

Several hosts are judged as one: the worst of them says the level, and where they differ each is named.
A probe that came to no end is a finding by itself, and nothing is said of what it would have found.

Pure.
Long because each finding has its sentences: what was measured, why it matters, what to do.
See also: judge_together (what hosts found out together), SPOOL.md (what rests on what).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from orchestrator.doctor.facts import Host, Locks, Mount, Race, Replies, Times, Way
from orchestrator.doctor.findings import Finding, Level, Scope, counted, duration, each, named, size
from orchestrator.doctor.races import UNSUPPORTED

OFFSET_S_MAX = 2.0
COARSE_S = 0.5
LONGEST = 255
SLOW = 50.0  # durable puts a second
LISTING_SLOW_S = 0.5  # of a thousand names

WAYS_IN_WORDS: dict[Way, tuple[str, str]] = {
    "rename": ("rename, one winner", "a claim is one rename"),
    "link": ("link, one winner", "put with a name and the locks of dirq-simple are links"),
    "mkdir": ("mkdir, one winner", "directories of workers and the locks of dirq are made by mkdir"),
    "create": ("O_EXCL, one winner", "every file of a queue is made by O_EXCL"),
    "noreplace": (
        "RENAME_NOREPLACE, one winner",
        "put --move with a name asks for it, and takes a link where it is missing",
    ),
}
OPTIONS_SHOWN = (
    "vers=", "hard", "soft", "noac", "ac", "actimeo", "acreg", "acdir", "lookupcache", "local_lock", "nolock",
    "sync", "proto=", "cache", "nobrl", "flock", "localflock", "ro",
)  # fmt: skip
DISK_OPTIONS_SHOWN = ("sync", "dirsync", "ro", "nobarrier", "data=writeback")


def judge(hosts: Sequence[Host]) -> Iterator[Finding]:
    """All of it, in the order of a report."""
    for look in (
        _troubles, _mounts, _room, _names, _links, _races, _replies, _sync, _clocks, _ctimes, _locks, _events, _speed,
    ):  # fmt: skip
        yield from look(hosts)


def _troubles(hosts: Sequence[Host]) -> Iterator[Finding]:
    for name, host in zip(named([one.id for one in hosts]), hosts, strict=True):
        for trouble in host.troubles:
            what = trouble.probe.replace("-", " ")
            is_late = trouble.late_s is not None
            full = {"ENOSPC": "the filesystem is full", "EDQUOT": "the quota is used up"}.get(trouble.error)
            yield Finding(
                key=f"trouble.{trouble.probe}",
                title=what,
                level="failed",
                measured=trouble.text if len(hosts) == 1 else f"{name}: {trouble.text}",
                why="a call that does not come back holds whoever made it; the probes after it were left out"
                if is_late
                else "no queue can work without room; the probes after it were left out"
                if full
                else "it is what every queue does",
                do="make room, and try again"
                if full
                else "look at the mount, its server and the kernel's log, and try again",
                because=f"{full}; make room"
                if full
                else f"{what} {trouble.text}"
                if is_late
                else f"{what} failed: {trouble.text}",
            )


# ---- the mount


def _mounts(hosts: Sequence[Host]) -> Iterator[Finding]:
    found = [host for host in hosts if host.mount is not None]
    if not found:
        return
    advice = list(dict.fromkeys(said for host in found if host.mount is not None for said in _options(host.mount)))
    yield Finding(
        key="mount",
        title="mount",
        level="warning" if any(level == "warning" for level, _, _ in advice) else "note" if advice else "ok",
        measured=each(found, lambda host: _mounted(host.mount) if host.mount is not None else ""),
        why="; ".join(why for _, why, _ in advice),
        do="; ".join(do for _, _, do in advice),
    )


def _mounted(mount: Mount) -> str:
    shown = OPTIONS_SHOWN if mount.network else DISK_OPTIONS_SHOWN
    options = [
        option
        for option in mount.options
        if any(
            option == one or (one[-1] == "=" and option.startswith(one)) or option.startswith(f"{one}=")
            for one in shown
        )
    ]
    where = f"{mount.kind} at {mount.point}" if mount.point else mount.kind
    return f"{where} ({', '.join(options)})" if options else where


def _options(mount: Mount) -> Iterator[tuple[Level, str, str]]:
    """What is to be said of how it is mounted: level, why, what to do."""
    options = set(mount.options)
    if options & {"soft", "softerr"}:
        yield (
            "warning",
            "soft: a server that is slow for a while is answered for with an error, though the call may still be done",
            "mount it hard, the default",
        )
    if options & {"noac", "actimeo=0"}:
        yield (
            "note",
            "no attributes are kept, so every look asks the server; no queue of ours needs that",
            "leave noac and actimeo=0 out for speed",
        )
    if mount.kind == "ext4" and mount.has_journal is False:
        yield (
            "warning",
            "without a journal a power failure may keep half of a rename, and so lose a message",
            "for queues that must outlive the power, a filesystem with a journal (tune2fs -j)",
        )
    if mount.kind in ("ext2", "vfat", "msdos", "exfat"):
        yield (
            "warning",
            f"{mount.kind} has no journal: a power failure may lose a message that is being moved",
            "for queues that must outlive the power, ext4, xfs or btrfs",
        )
    if mount.kind == "fuse.sshfs":
        yield (
            "warning",
            "sshfs has no fsync of a directory to send: a put is on the server's disk only when the server writes it",
            "for puts that must outlive the server's power, another filesystem",
        )
    if mount.kind in ("tmpfs", "ramfs"):
        yield "note", "it is memory: what waits is gone with the machine", "use a disk where that is too little"


def _room(hosts: Sequence[Host]) -> Iterator[Finding]:
    mounts = [host.mount for host in hosts if host.mount is not None]
    if not mounts:
        return
    least = min(mounts, key=lambda mount: mount.free)
    inodes = min((mount.free_inodes for mount in mounts if mount.free_inodes is not None), default=None)
    is_low = any(mount.is_low for mount in mounts)
    yield Finding(
        key="room",
        title="room",
        level="warning" if is_low else "ok",
        measured=f"{size(least.free)} of {size(least.size)} free, "
        + ("inodes as needed" if inodes is None else f"{inodes:,} inodes"),
        why="a message that waits is an inode and a block; on a full disk puts fail and workers wait; "
        "few names were tried, and none listed, so that nobody lacks what is left",
        do="make room",
    )


# ---- names


def _names(hosts: Sequence[Host]) -> Iterator[Finding]:
    found = [host.names for host in hosts if host.names is not None]
    if not found:
        return
    longest = min(one.longest for one in found)
    refused = dict.fromkeys(kind for one in found for kind in one.refused)
    changed = dict.fromkeys(kind for one in found for kind in one.changed)
    folds = any(one.folds_case for one in found)
    measured = [f"up to {longest} bytes"]
    measured += [f"refused: {', '.join(refused)}"] if refused else []
    measured += [f"listed otherwise: {', '.join(changed)}"] if changed else []
    measured += ["a and A are one name"] if folds else []
    is_short = longest < LONGEST
    yield Finding(
        key="names",
        title="file names",
        level="failed" if is_short else "warning" if changed or folds else "note" if refused else "ok",
        measured=", ".join(measured) if len(measured) > 1 else f"{measured[0]}, any bytes",
        why="a mark and a due time stand before the name of a message, 255 bytes in all"
        if is_short
        else "two names that a producer holds for different may be one here"
        if changed or folds
        else "names that queues give are plain ASCII; what other programs put cannot be called so",
        do="use a filesystem with names of 255 bytes" if is_short else "let producers give plain names, or none",
        because=f"file names end at {longest} bytes, where a claim may need {LONGEST}",
    )


def _links(hosts: Sequence[Host]) -> Iterator[Finding]:
    found = [host.links for host in hosts if host.links is not None]
    if not found:
        return
    refused = next((one for one in found if one.count is None), None)
    wrong = next((one for one in found if one.count not in (None, 2)), None)
    level: Level = "ok"
    measured, do = "made and counted", ""
    if refused is not None:
        level, measured = "warning", f"refused ({refused.error})"
        do = "let queues give the names of messages, and have no dirq-simple queue here"
    elif wrong is not None:
        level, measured = "note", f"made; a file with two names says that it has {wrong.count}"
        do = "nothing: no queue believes a link count alone"
    yield Finding(
        key="links",
        title="hard links",
        level=level,
        measured=measured,
        why="put with a name needs a link or RENAME_NOREPLACE, and the locks of dirq-simple are links",
        do=do,
    )


# ---- races and replies


def _races(hosts: Sequence[Host]) -> Iterator[Finding]:
    by_way: dict[Way, list[Race]] = {}
    for host in hosts:
        for race in host.races:
            by_way.setdefault(race.way, []).append(race)
    for way, races in by_way.items():
        worst = max(races, key=lambda race: (_harm(race), race.lost_replies, bool(race.errors)))
        yield judge_race(worst, way, "host")


def _harm(race: Race) -> int:
    return race.twice + race.vanished + race.false


def judge_race(race: Race, key: str, scope: Scope) -> Finding:
    """A race of processes of one host, or (*scope* "hosts") of several hosts."""
    title, why = WAYS_IN_WORDS[race.way]
    who = counted(len(race.wins), "host" if scope == "hosts" else "process").replace("processs", "processes")
    measured = f"{race.names} names, {who}: won {' + '.join(map(str, race.wins))}"
    if race.unsupported:
        is_needed = race.way in ("rename", "mkdir", "create")
        return Finding(
            key=key,
            title=title,
            level="failed" if is_needed else "note",
            measured=f"refused ({race.unsupported})",
            why=why,
            do="use another filesystem" if is_needed else "",
            scope=scope,
            because=f"{race.way} is refused ({race.unsupported})",
        )
    if _harm(race):
        wrong = [
            f"{number} {what}"
            for number, what in (
                (race.twice, "won twice"),
                (race.vanished, "won by nobody and gone"),
                (race.false, "told as won and not there"),
            )
            if number
        ]
        return Finding(
            key=key,
            title=title,
            level="failed",
            measured=f"{measured}; {', '.join(wrong)}",
            why=f"{why}, and no message may have two takers or none",
            do="put no queue here" if scope == "host" else "let the workers of a queue run on one host",
            scope=scope,
            because=f"of {race.names} names that {who} raced for by {race.way} {', '.join(wrong)}",
        )
    odd = ", ".join(f"{name} {number} times" for name, number in sorted(race.errors.items()))
    if race.lost_replies:
        return Finding(
            key=key,
            title=title,
            level="warning",
            measured=f"{measured}; {counted(race.lost_replies, 'time')} done and told as not done",
            why="whoever believes such an answer leaves a message that nobody has; our queues look at the disk instead",
            do="nothing for queues of ours; let no program that claims by a bare rename work beside them",
            scope=scope,
        )
    if scope == "hosts" and sum(won > 0 for won in race.wins) < 2:
        return Finding(
            key=key,
            title=title,
            level="failed" if race.way == "rename" else "warning",
            measured=f"{measured}; no race" + (f" ({odd})" if odd else ""),
            why="one host had everything, so who wins when two want the same is not shown",
            do="try again; if it stays so, look at what the other host is answered",
            scope=scope,
            because="one host won every race by rename, so it was none: try again",
        )
    return Finding(
        key=key,
        title=title,
        level="note" if odd else "ok",
        measured=f"{measured}{f'; {odd}' if odd else ''}",
        why="some of those who lost were answered otherwise than by ENOENT or EEXIST; our queues look at the disk then",
        scope=scope,
    )


def _replies(hosts: Sequence[Host]) -> Iterator[Finding]:
    calls = [one for host in hosts if host.replies is not None for one in host.replies.calls]
    if not calls:
        return
    calls = [one for one in calls if not _is_missing(one)]
    tried, happened = sum(one.tried for one in calls), sum(one.happened for one in calls)
    failed = sum(one.failed for one in calls) - happened
    unlisted = sum(one.unlisted for one in calls)
    errors = sum((Counter(one.errors) for one in calls), Counter[str]())
    told = ", ".join(f"{name} {number} times" for name, number in sorted(errors.items()))
    if unlisted:
        yield Finding(
            key="replies",
            title="answers",
            level="failed",
            measured=f"{unlisted} of {tried} calls that succeeded are not in a listing made right after",
            why="when an answer is doubtful a queue believes the listing",
            do="switch the cache of directories off (sshfs: -o dir_cache=no)",
            because="a listing does not show what this very host has just done",
        )
    elif failed:
        yield Finding(
            key="replies",
            title="answers",
            level="failed",
            measured=f"{failed} of {tried} calls that nobody competed for failed ({told})",
            why="a queue waits and tries again, for as long as that lasts",
            do="look at the mount, its server and the kernel's log",
            because=f"calls fail though nothing is wrong with them ({told})",
        )
    else:
        yield Finding(
            key="replies",
            title="answers",
            level="warning" if happened else "ok",
            measured=f"{tried} calls, {counted(happened, 'lost reply').replace('replys', 'replies')}"
            + (f" ({told}, though it was done)" if happened else ""),
            why="whoever believes such an answer leaves a message that nobody has; our queues look at the disk instead",
            do="nothing for queues of ours; let no program that claims by a bare rename work beside them",
        )


def _is_missing(one: Replies) -> bool:
    """Whether there is no such call here, which a finding of its own says."""
    return one.call == "link" and one.failed == one.tried and set(one.errors) <= set(UNSUPPORTED)


def _sync(hosts: Sequence[Host]) -> Iterator[Finding]:
    found = [host.sync for host in hosts if host.sync is not None]
    if not found:
        return
    wrong = {f"of a file ({one.file})" for one in found if one.file}
    wrong |= {f"of a directory ({one.directory})" for one in found if one.directory}
    yield Finding(
        key="sync",
        title="fsync",
        level="failed" if wrong else "ok",
        measured=f"refused: {', '.join(sorted(wrong))}" if wrong else "of a file and of a directory",
        why="a put returns when the message is on the disk; here it would report failure or doubt instead",
        do="use another filesystem, or only puts that are not durable (put --no-durable)",
        because=f"fsync is refused {', '.join(sorted(wrong))}, so no put could be durable",
    )


# ---- clocks


def _clocks(hosts: Sequence[Host]) -> Iterator[Finding]:
    found = [host for host in hosts if host.times is not None]
    if not found:
        return

    def text(host: Host) -> str:
        assert host.times is not None  # noqa: S101 - they were chosen so
        return f"{offset_text(host.times)}, steps of {duration(host.times.granularity_s)} at most"

    times = [host.times for host in found if host.times is not None]
    is_off = any(abs(_middle_s(one)) > OFFSET_S_MAX for one in times)
    is_coarse = any(one.granularity_s >= COARSE_S for one in times)
    yield Finding(
        key="clock",
        title="filesystem's clock",
        level="warning" if is_off else "note" if is_coarse else "ok",
        measured=each(found, text),
        why="spool queues go by the filesystem's clock alone; ddmq and other programs compare it with this host's, "
        "and take claims for expired too early or too late"
        if is_off
        else "ages are known to a second or two, which is enough for all times of a queue",
        do="set the clocks of host and server by NTP" if is_off else "",
    )


def offset_text(times: Times) -> str:
    """How far the filesystem's clock is from the host's."""
    middle_s, half_s = _middle_s(times), (times.offset_s_max - times.offset_s_min) / 2
    if abs(middle_s) <= max(half_s, 0.05):
        return f"the host's within {duration(max(half_s, abs(middle_s)))}"
    return f"{duration(abs(middle_s))} {'ahead of' if middle_s > 0 else 'behind'} the host's (+/- {duration(half_s)})"


def _middle_s(times: Times) -> float:
    return (times.offset_s_min + times.offset_s_max) / 2


def _ctimes(hosts: Sequence[Host]) -> Iterator[Finding]:
    times = [host.times for host in hosts if host.times is not None]
    if not times:
        return
    keeps = all(one.keeps_ctime for one in times)
    yield Finding(
        key="ctime",
        title="time of a change",
        level="ok" if keeps else "warning",
        measured="a move sets it, utime does not" if keeps else "a move leaves it as it was, and utime sets it",
        why="what another program claimed flat, or left in tmp/, is judged by it: a message that waited longer than "
        "stale_after would be given back while that program works on it",
        do="stale_after longer than a message may wait, or no programs that claim by themselves",
    )


# ---- what no queue needs


def _locks(hosts: Sequence[Host]) -> Iterator[Finding]:
    found = [host.locks for host in hosts if host.locks is not None]
    if found:
        yield judge_locks(found, "locks", "locks")


def judge_locks(found: Sequence[Locks], key: str, title: str) -> Finding:
    """Locks of processes, or of hosts."""
    flock = ", ".join(sorted({one.flock for one in found}))
    record = ", ".join(sorted({one.record for one in found}))
    is_fine = flock == record == "excludes"
    return Finding(
        key=key,
        title=title,
        level="ok" if is_fine else "note",
        measured=f"flock: {flock}; fcntl: {record}".replace("excludes", "one holder").replace("shared", "two holders"),
        why="no queue of ours asks for a lock of the filesystem; other programs may",
    )


def _events(hosts: Sequence[Host]) -> Iterator[Finding]:
    found = [host for host in hosts if host.events is not None]
    if not found:
        return

    def text(host: Host) -> str:
        seen = host.events.seen if host.events is not None else None
        return "none here" if seen is None else "tells of this host's own" if seen else "silent"

    is_silent = any(host.events is not None and host.events.seen is False for host in found)
    yield Finding(
        key="inotify",
        title="inotify",
        level="note"
        if is_silent or any(host.events is not None and host.events.seen is None for host in found)
        else "ok",
        measured=each(found, text),
        why="where nothing tells of an arrival, workers look again every poll_interval",
    )


def _speed(hosts: Sequence[Host]) -> Iterator[Finding]:
    found = [host for host in hosts if host.speed is not None]
    if not found:
        return

    def text(host: Host) -> str:
        speed = host.speed
        assert speed is not None  # noqa: S101 - they were chosen so
        rates = (("renames", speed.rename), ("files made and removed", speed.create), ("made durable", speed.durable))
        words = [
            f"{rate.best:,.0f} {what} ({counted(rate.saturated_by, 'process').replace('processs', 'processes')})"
            for what, rate in rates
        ]
        listing = f"; {speed.listed} names listed in {duration(speed.listing_s)}" if speed.listed else ""
        return f"{', '.join(words)} a second{listing}"

    speeds = [host.speed for host in found if host.speed is not None]
    is_slow = any(one.durable.best < SLOW for one in speeds)
    is_slow_to_list = any(one.listing_s / max(one.listed, 1) * 1000 > LISTING_SLOW_S for one in speeds)
    yield Finding(
        key="speed",
        title="speed",
        level="note" if is_slow or is_slow_to_list else "ok",
        measured=each(found, text),
        why="; ".join(
            [
                *(["each durable put waits for the disk"] if is_slow else []),
                *(["every look for new messages is a listing"] if is_slow_to_list else []),
            ]
        ),
        do="put many at once (put --lines, put_many)"
        if is_slow
        else 'order = "any" where thousands wait, or several queues',
    )
