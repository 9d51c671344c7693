"""
settings - what a queue here should be configured with, where that is not the default

Each setting with its reason, and all together as a [[queue]] that our own reader takes. Times of a lease
follow from how late a listing shows what another host did: a beat must be seen several times
before its lease is lost. See SPOOL.md section 8.

Pure.
See also: judge (the findings), orchestrator.config_models (the keys).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from orchestrator.config_rules import LEASE_INTERVAL_S, LEASE_TIMEOUT_S, STALE_AFTER_S
from orchestrator.config_values import absolute_url, duration_text
from orchestrator.doctor.facts import Examined, Host
from orchestrator.doctor.findings import duration
from orchestrator.doctor.judge_together import LISTING_S_LIMIT, LISTING_S_MAX, listing_s

INTERVALS = 12  # in a lease timeout, as in the defaults
STALE_LEASES = 10  # lease timeouts in stale_after, as in the defaults
A_DAY_S = 86400.0
POLL_S, POLL_S_NETWORK = 0.1, 1.0
LISTINGS_PART = 0.05  # of the time may go into listing
WORKERS_MOST = 16


@dataclass(frozen=True, slots=True)
class Setting:
    """One key of [[queue]]: its value as TOML would have it, and why."""

    key: str
    reason: str
    value: str | int | bool


def settings(examined: Examined) -> list[Setting]:
    """What differs from the defaults, in the order of the reference."""
    return [
        *_workers(examined.hosts),
        *_times(examined),
        *_watch(examined),
        *_polling(examined),
        *_create(examined.hosts),
    ]


def as_toml(examined: Examined, found: list[Setting]) -> str:
    """A [[queue]] to be pasted; its handler is a placeholder. Empty where every default is right."""
    if not found:
        return ""
    url = f"url = {_quoted(examined.path)}"
    try:
        absolute_url(examined.path, None)
    except ValueError as error:
        url = f"# url: of this path there can be none, for it {error}"
    lines = ["[[queue]]", url, 'handler = "MODULE:NAME"  # yours']
    lines += [f"{one.key} = {_quoted(one.value)}  # {one.reason}" for one in found]
    return "\n".join(lines) + "\n"


def _quoted(value: str | int | bool) -> str:
    """As TOML has it, which knows no surrogate pairs."""
    return json.dumps(value, ensure_ascii=False)


def _workers(hosts: Sequence[Host]) -> Iterator[Setting]:
    """More than the cores where the filesystem is far away and bears it."""
    first = hosts[0]
    if first.speed is None or first.mount is None or first.mount.network is None:
        return
    rate = first.speed.rename
    count = min(rate.saturated_by, WORKERS_MOST)
    if count > first.cores:
        gain = rate.best / max(rate.rates.get(1, 0.0), 1.0)
        reason = f"so many rename {gain:.1f} times as often as one; fewer for handlers that compute"
        yield Setting("workers", reason, value=count)


def _times(examined: Examined) -> Iterator[Setting]:
    late_s = listing_s(examined.together.sights) if examined.together is not None else None
    interval_s, timeout_s, stale_s = LEASE_INTERVAL_S, LEASE_TIMEOUT_S, STALE_AFTER_S
    if late_s is not None and LISTING_S_MAX < late_s <= LISTING_S_LIMIT:
        interval_s = max(interval_s, _round_up(late_s))
        timeout_s = max(timeout_s, INTERVALS * interval_s)
        stale_s = max(stale_s, STALE_LEASES * timeout_s)
        yield from _time(examined, "lease_interval", interval_s, f"another host lists a name after {duration(late_s)}")
        yield from _time(examined, "lease_timeout", timeout_s, f"{INTERVALS} of those intervals")
    if any(host.times is not None and not host.times.keeps_ctime for host in examined.hosts):
        yield from _time(examined, "stale_after", max(stale_s, A_DAY_S), "ages count from the put, not from the claim")
    else:
        yield from _time(examined, "stale_after", stale_s, f"{STALE_LEASES} of those timeouts")


def _time(examined: Examined, key: str, value_s: float, reason: str) -> Iterator[Setting]:
    default_s = {"lease_interval": LEASE_INTERVAL_S, "lease_timeout": LEASE_TIMEOUT_S}.get(key, STALE_AFTER_S)
    mount = examined.hosts[0].mount
    own_s = (mount.queue_times or {}).get(f"{key}_s") if mount is not None else None
    if own_s is not None and own_s != value_s:
        reason += f"; the queue there has {duration_text(own_s)}: change its .pool/format while no pool runs"
    if value_s != default_s:
        yield Setting(key, reason, value=duration_text(value_s))


def _round_up(seconds: float) -> float:
    """To whole five seconds, and half as much again."""
    return math.ceil(seconds * 1.5 / 5) * 5.0


def _watch(examined: Examined) -> Iterator[Setting]:
    """Where the kernel's kind of the filesystem does not tell that events are silent."""
    mounts = [host.mount for host in examined.hosts if host.mount is not None]
    if not mounts or any(mount.network for mount in mounts):
        return
    is_silent = any(host.events is not None and host.events.seen is False for host in examined.hosts)
    sights = examined.together.sights if examined.together is not None else ()
    if is_silent or any(sight.events is False for sight in sights):
        yield Setting("watch", f"inotify does not tell of all arrivals on this {mounts[0].kind}", value="poll")


def _polling(examined: Examined) -> Iterator[Setting]:
    """Listing may not become what the server is busy with."""
    found = [(host.mount, host.speed) for host in examined.hosts if host.mount is not None and host.speed is not None]
    for mount, speed in found[:1]:
        least_s = speed.empty_s / LISTINGS_PART
        if least_s > (POLL_S_NETWORK if mount.network else POLL_S):
            pause = duration_text(math.ceil(least_s * 10) / 10)
            yield Setting("poll_interval", f"to list an empty directory takes {duration(speed.empty_s)}", value=pause)


def _create(hosts: Sequence[Host]) -> Iterator[Setting]:
    mount = hosts[0].mount
    if mount is not None and mount.network is not None:
        yield Setting("create", "where the mount is missing, its bare directory must not become a queue", value=False)
