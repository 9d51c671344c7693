"""
names - the shapes of the names that a spool queue uses, and nothing else

    NAME        <unix s>.M<us, 6 digits>P<pid>Q<counter>R<12 hex>.<host>, or whatever arrived
    MARK~NAME   MARK = t<attempts>c<crashes>-<token>; token = 12 hex of the process,
                6 hex of its counter, 4 hex that check NAME
    MASTER      <host>.<kernel8>.<pid>.<start>.<16 hex>      one incarnation of a master
    OWNER       MASTER.<index>.<pid>.<start>.<12 hex>        one worker's directory

Names are text with surrogate escapes (os.fsdecode), lengths are in bytes. A mark is
read by that strict pattern and its check digits only, so a look-alike is a NAME.
Pure but for the token's random bits. See SPOOL.md.
"""

from __future__ import annotations

import os
import re
import time
import zlib
from dataclasses import dataclass

from workers.errors import InvalidName
from workers.system import System

NAME_BYTES_MAX = 175  # with mark, due time and .meta still under NAME_MAX (255)
COUNT_MAX = 9999
COUNTER_MAX = (1 << 24) - 1
TIME_S_MIN, TIME_S_MAX = -62135596800.0, 253402300799.0  # the years 1 to 9999
IGNORED_SUFFIXES = (".tmp", ".part", ".filepart", ".crdownload", ".swp", "~")
PROBE = ".probe."  # what a keeper makes and renames, to find out whether it can, begins so
UNPUBLISHED = ".tmp"  # of IGNORED_SUFFIXES: nothing that a queue gives out ends in it
STILL_OPEN = (".nfs", ".fuse_hidden")  # how what is removed while open is called on a mount, until it is closed
HOST = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")

_MARK = re.compile(r"t(0|[1-9][0-9]{0,3})c(0|[1-9][0-9]{0,3})-([0-9a-f]{22})~")
_OURS = re.compile(r"([0-9]{10,11})\.M([0-9]{6})P[0-9]{1,10}Q[0-9]{1,12}R[0-9a-f]{12}\.[A-Za-z0-9._-]{1,64}\Z")
_MENTAT = re.compile(r"[^/\s]+\.[0-9]+\.[0-9]+\.[0-9]+\.[0-9]+\.[0-9]+\.msg\Z")
_IN_A_LINE = re.compile(rb"[^\n\t]+")
_DUE = re.compile(r"([0-9]{10,11})\.")
_MASTER = (
    r"(?P<host>[A-Za-z0-9._-]{1,64})\.(?P<kernel8>[0-9a-f]{8})"
    r"\.(?P<pid>[0-9]{1,10})\.(?P<start>[0-9]{1,20})\.(?P<random>[0-9a-f]{16})"
)
_MASTER_RE = re.compile(_MASTER + r"\Z")
_OWNER_RE = re.compile(
    r"(?P<master>"
    + _MASTER
    + r")\.(?P<index>[0-9]{1,6})\.(?P<wpid>[0-9]{1,10})\.(?P<wstart>[0-9]{1,20})\.[0-9a-f]{12}\Z"
)
_LEASE_RE = re.compile(r"(?P<master>" + _MASTER + r")\.(?P<number>[0-9]{1,18})\Z")


@dataclass(frozen=True, slots=True)
class Marked:
    """A file's name taken apart; *token* is "" where there was no mark."""

    attempts: int
    crashes: int
    token: str
    name: str


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose directory it is. Pids belong to the host with that *kernel8*."""

    master: str
    host: str
    kernel8: str
    master_pid: int
    master_start: int
    index: int
    pid: int
    start: int


def check(name: str) -> str:
    """The four hex digits of a token that tie it to *name*."""
    return f"{zlib.crc32(os.fsencode(name)) & 0xFFFF:04x}"


def parse(file: str) -> Marked:
    """Take a file's name apart. Never raises: what is no mark is part of the name."""
    found = _MARK.match(file) if file[:1] == "t" else None
    if found is not None:
        name = file[found.end() :]
        if name not in ("", ".", "..") and found[3][18:] == check(name):
            return Marked(int(found[1]), int(found[2]), found[3], name)
    return Marked(0, 0, "", file)


def marked(attempts: int, crashes: int, token: str, name: str) -> str:
    """Put a file's name together; counts stop at 9999."""
    return f"t{min(attempts, COUNT_MAX)}c{min(crashes, COUNT_MAX)}-{token}~{name}"


def parse_due(file: str) -> tuple[int, Marked] | None:
    """Take a name of deferred/ apart: the due time in unix seconds, and the rest. None for what is no such name."""
    found = _DUE.match(file)
    if found is None:
        return None
    rest = parse(file[found.end() :])
    return (int(found[1]), rest) if rest.token else None


def due_at(unix_s: float) -> str:
    """How the second from which a message is due begins its name in deferred/: at least ten digits, rounded up."""
    return f"{max(-int(-unix_s // 1), 0):010d}"


def parse_owner(directory: str) -> Owner | None:
    """Read an OWNER, or None."""
    found = _OWNER_RE.match(directory)
    if found is None:
        return None
    return Owner(
        master=found["master"],
        host=found["host"],
        kernel8=found["kernel8"],
        master_pid=int(found["pid"]),
        master_start=int(found["start"]),
        index=int(found["index"]),
        pid=int(found["wpid"]),
        start=int(found["wstart"]),
    )


def parse_master(master: str) -> tuple[str, str, int, int] | None:
    """host, kernel8, pid and start time of a MASTER, or None."""
    found = _MASTER_RE.match(master)
    return (found["host"], found["kernel8"], int(found["pid"]), int(found["start"])) if found else None


def parse_lease(file: str) -> tuple[str, int] | None:
    """MASTER and number of a lease file, or None."""
    found = _LEASE_RE.match(file)
    return (found["master"], int(found["number"])) if found else None


def master_name(host: str, system: System) -> str:
    """A MASTER for this process. Raises InvalidName for a host that cannot stand in a name."""
    check_host(host)
    pid = system.getpid()
    return f"{host}.{system.kernel8(host)}.{pid}.{system.start_ticks(pid) or 0}.{system.random_bytes(8).hex()}"


def check_host(host: str) -> str:
    """*host* itself, or InvalidName."""
    if not HOST.match(host):
        raise InvalidName(f"host {host!r} must be 1 to 64 of the characters A-Z a-z 0-9 . _ -")
    if is_ignored(f"x.{host}"):  # and so would be every message that it puts
        raise InvalidName(f"host {host!r} must not end in {' '.join(IGNORED_SUFFIXES[:-1])}")
    return host


def owner_name(master: str, index: int, system: System) -> str:
    """A fresh OWNER of *master*, never used before."""
    pid = system.getpid()
    return f"{master}.{index}.{pid}.{system.start_ticks(pid) or 0}.{system.random_bytes(6).hex()}"


def is_ignored(name: str) -> bool:
    """Whether a name in incoming/ is not taken: dot names, half-copied and editors' files."""
    return name[:1] == "." or name.endswith(IGNORED_SUFFIXES)


def is_ours(name: str) -> bool:
    """Whether *name* has the shape that put() gives."""
    return _OURS.match(name) is not None


def unpublished(name: str) -> str:
    """What is to become *name* is called so in tmp/: a filer's commit brings messages there under their bare names."""
    return f"{name}{UNPUBLISHED}"


def is_unpublished(name: str) -> bool:
    """Whether *name*, in tmp/, is of one of our own puts."""
    return name.endswith(UNPUBLISHED) and is_ours(name.removesuffix(UNPUBLISHED))


def is_unique(name: str) -> bool:
    """Whether *name* is unique by its shape (ours, mentat's), so that its flat claim may be given back."""
    return is_ours(name) or _MENTAT.match(name) is not None


def enqueued_at(name: str) -> float | None:
    """Unix seconds that one of our names carries, or None."""
    # Sliced, not matched: a regular expression here would be a tenth of what a claim costs.
    end = 10 if name[10:12] == ".M" else 11
    digits = name[:end] + name[end + 2 : end + 8]
    if name[end : end + 2] != ".M" or name[end + 8 : end + 9] != "P" or not (digits.isdigit() and digits.isascii()):
        return None
    return int(digits) / 1e6


def check_given(name: str) -> str:
    """*name* itself if put(name=) may use it, else InvalidName with the reason."""
    size = len(os.fsencode(name))
    if not name or name in (".", ".."):
        why = "is no name"
    elif "/" in name or "\0" in name:
        why = "holds a slash or a NUL"
    elif any(ord(char) < 32 or ord(char) == 127 for char in name):
        why = "holds a control character"
    elif is_ignored(name):
        why = f"is ignored by queues (a leading dot, or one of {' '.join(IGNORED_SUFFIXES)} at the end)"
    elif _MARK.match(name):
        why = "looks like a mark"
    elif size > NAME_BYTES_MAX:
        why = f"is {size} bytes long, more than {NAME_BYTES_MAX}"
    else:
        return name
    raise InvalidName(f"a message cannot be called {name!r}: it {why}")


def shortened(name: str, digits: str) -> str:
    """*name* cut to NAME_BYTES_MAX bytes with 16 hex *digits* to keep it apart, its extension kept."""
    raw = os.fsencode(name)
    if len(raw) <= NAME_BYTES_MAX:
        return name
    stem, dot, suffix = raw.rpartition(b".")
    extension = dot + suffix if stem and len(suffix) <= 16 else b""
    tail = b"~h" + digits.encode() + extension
    return os.fsdecode(raw[: NAME_BYTES_MAX - len(tail)] + tail)


def shown(name: str) -> str:
    """*name* for a terminal, a log or a page: printable, everything else escaped."""
    # UTF-8 whatever the locale says: what is told of may come out of a file, and not out of a directory.
    try:
        raw = name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a lone surrogate that is no byte of a name, as JSON can hold
        raw = name.encode("utf-8", "backslashreplace")
    text = raw.decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def shown_lines(body: bytes) -> bytes:
    """*body* for a terminal: as shown(), but lines and tabs stay."""
    return _IN_A_LINE.sub(lambda found: shown(found[0].decode("utf-8", "surrogateescape")).encode(), body)


def iso(unix_s: float) -> str:
    """*unix_s* as UTC text with microseconds, as .meta has it; a forged time beyond a calendar's years as its end."""
    unix_s = min(max(unix_s, TIME_S_MIN), TIME_S_MAX)
    whole = int(unix_s // 1)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{int((unix_s - whole) * 1e6):06d}Z"


class Tokens:
    """Fresh tokens and names of one process: random bits drawn after a fork, and again when the counter wraps."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._pid = 0
        self._process = ""  # as a name has it
        self._random = ""
        self._counter = 0

    def _turn(self) -> int:
        pid, counter = self._system.getpid(), self._counter + 1
        if pid != self._pid or counter > COUNTER_MAX:
            self._pid, counter = pid, 1
            self._random = self._system.random_bytes(6).hex()
            self._process = f"P{pid}Q"
        self._counter = counter
        return counter

    def token(self, name: str) -> str:
        """A token for *name* that nobody else can make."""
        counter = self._turn()
        raw = name.encode() if name.isascii() else os.fsencode(name)
        # The counter's six digits and the check's four in one go: this is done for every claim.
        return f"{self._random}{counter << 16 | zlib.crc32(raw) & 0xFFFF:010x}"

    def digits(self) -> str:
        """Sixteen hex digits that nobody else can make."""
        self._turn()
        return f"{self._random[:10]}{self._counter:06x}"

    def name(self, host: str) -> str:
        """A fresh NAME; names of one process sort by time."""
        counter = self._turn()
        ns = str(self._system.wall_ns()).zfill(19)  # cut, not divided: this is done for every put
        return f"{ns[:-9]}.M{ns[-9:-3]}{self._process}{counter}R{self._random}.{host}"
