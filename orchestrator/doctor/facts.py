"""
facts - what doctors measure: values that go through pipes and files as JSON, and are read strictly

Times in seconds, differences of clocks as "the filesystem's minus ours", rates per second.
None is "could not be found out". What a peer says is input like any other: pydantic refuses
what has another shape.

See also: judge (what they mean).
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

Way = Literal["rename", "link", "mkdir", "create", "noreplace"]
WAYS: tuple[Way, ...] = ("rename", "link", "mkdir", "create", "noreplace")
FREE_MIN, FREE_PART_MIN, INODES_MIN = 1 << 30, 0.05, 10_000
TIMES_OF_FORMAT = ("lease_interval_s", "lease_timeout_s", "stale_after_s")


class Facts(BaseModel):
    """A frozen value; what another version says more is left out."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Trouble(Facts):
    """A probe that came to no end: *late_s* when it did not answer within so long, else the error's name and text."""

    probe: str
    text: str
    error: str = ""
    late_s: float | None = None


class Mount(Facts):
    """
    What is mounted at the path.

    Attributes:
        kind: as the kernel's table has it; network: the network filesystem's name, None for a local one.
        inodes, free_inodes: None where they are made as needed.
        has_journal: of ext4 alone, else None.
        queue_times: of a spool queue that is there (lease_interval_s, lease_timeout_s, stale_after_s).
    """

    path: str
    kind: str
    network: str | None
    point: str
    source: str
    options: tuple[str, ...]
    size: int
    free: int
    inodes: int | None
    free_inodes: int | None
    has_journal: bool | None = None
    queue_times: dict[str, float] | None = None

    @property
    def is_low(self) -> bool:
        """Whether there is so little room that a doctor takes as little of it as it can."""
        return self.free < min(FREE_MIN, self.size * FREE_PART_MIN) or (
            self.free_inodes is not None and self.free_inodes < INODES_MIN
        )


class Names(Facts):
    """*refused*: kinds of names that cannot be made; *changed*: that are listed otherwise than they were made."""

    longest: int
    refused: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    folds_case: bool = False


class Links(Facts):
    """*count*: link count of a file with two names; None and an *error* where there are no hard links."""

    count: int | None
    error: str = ""


class Tally(Facts):
    """
    What one of those who raced saw.

    Attributes:
        won: the names for which it was told that it was first.
        found: those that are its own by what lies on the disk afterwards.
        missed: how many it was told that another had; errors: other answers, by name.
    """

    won: tuple[str, ...] = ()
    found: tuple[str, ...] = ()
    missed: int = 0
    errors: dict[str, int] = {}


class Race(Facts):
    """
    What came of a race.

    Attributes:
        names: how many were raced for; wins: of each of those who raced.
        twice: names with two winners, told so or on disk. vanished: names that nobody has.
        false: wins of which the disk knows nothing. lost_replies: done, and answered by an error.
        unsupported: the error that all were answered with, where there is no such call.
    """

    way: Way
    names: int
    wins: tuple[int, ...]
    twice: int = 0
    vanished: int = 0
    false: int = 0
    lost_replies: int = 0
    errors: dict[str, int] = {}
    unsupported: str = ""


class Locks(Facts):
    """For each kind: excludes, shared (both had it), or the error's name."""

    flock: str
    record: str


class Sync(Facts):
    """The error's name where an fsync fails, else empty."""

    file: str = ""
    directory: str = ""


class Times(Facts):
    """
    Attributes:
        granularity_s: the smallest step of a file's times.
        offset_s_min, offset_s_max: between these lies the filesystem's clock minus ours.
        boot_offset_ns: the same to our time since boot, for meetings; half_width_s of both.
        keeps_ctime: a change has a time of its own that utime() cannot set.
        touch_s: of a touch without a time, minus ours: whose clock that is.
    """

    granularity_s: float
    offset_s_min: float
    offset_s_max: float
    boot_offset_ns: int
    half_width_s: float
    keeps_ctime: bool
    touch_s: float


class Replies(Facts):
    """Calls that nobody competed for. *failed* of *tried* were answered by an error, *happened* of these done."""

    call: str
    tried: int
    failed: int = 0
    happened: int = 0
    unlisted: int = 0
    errors: dict[str, int] = {}


class AllReplies(Facts):
    """Of every call."""

    calls: tuple[Replies, ...]


class Rate(Facts):
    """*rates*: operations a second of all processes together, from the first's begin to the last's end, by number."""

    rates: dict[int, float]

    @property
    def best(self) -> float:
        """The highest."""
        return max(self.rates.values(), default=0.0)

    @property
    def saturated_by(self) -> int:
        """The least number of processes that reaches nearly the highest."""
        return min((count for count, rate in self.rates.items() if rate >= 0.8 * self.best), default=1)


class Speed(Facts):
    """Rates, how long the listing of so many names takes (0: there was no room for them), and of none."""

    rename: Rate
    create: Rate
    durable: Rate
    listed: int
    listing_s: float
    empty_s: float


class Events(Facts):
    """Whether inotify tells of a rename into a directory; None where there is no inotify."""

    seen: bool | None


class Sight(Facts):
    """
    When *watcher* saw a name that *maker* made; None: not within *longest_s*.

    *by_stat_s* after it had been asked for in vain, *by_listing_s* by a fresh listing.
    """

    watcher: str
    maker: str
    longest_s: float
    by_stat_s: float | None
    by_listing_s: float | None
    half_width_s: float
    events: bool | None


class Together(Facts):
    """
    What several hosts found out together.

    Attributes:
        locks: as another host met the locks that one held.
        torn: files read that were not whole; unopened: files listed that could not be opened at once.
    """

    hosts: tuple[str, ...]
    sights: tuple[Sight, ...] = ()
    races: tuple[Race, ...] = ()
    locks: tuple[Locks, ...] = ()
    torn: int = 0
    unopened: int = 0


class Host(Facts):
    """What one host found out for itself."""

    id: str
    host: str
    kernel8: str
    boot8: str = ""
    user: int
    cores: int
    mount: Mount | None = None
    names: Names | None = None
    links: Links | None = None
    races: tuple[Race, ...] = ()
    locks: Locks | None = None
    sync: Sync | None = None
    times: Times | None = None
    events: Events | None = None
    replies: AllReplies | None = None
    speed: Speed | None = None
    troubles: tuple[Trouble, ...] = ()

    @property
    def machine(self) -> str:
        """Equal on two hosts that are one: containers share a boot, though they see no process of each other."""
        return self.boot8 or self.kernel8


class Examined(Facts):
    """Everything. *absent*: why there is nothing of other hosts, though they were asked for."""

    path: str
    hosts: tuple[Host, ...]
    together: Together | None = None
    absent: str = ""
