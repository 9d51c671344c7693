"""
config_values - the values that configuration keys take, and their defaults

Durations ("90s", "5m", "250ms", plain seconds), sizes ("64M", plain bytes),
addresses (HOST:PORT), queue URLs made absolute, and what a key is when nobody set
it: the cores we may use, the host's name, the run directory.

Raises: ValueError with a sentence that says what was expected. Nothing here
touches a queue: a path is made absolute by text alone, so a hung mount cannot
hold up the master.
See also: config_models (which key takes what).
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import math
import os
import re
import socket
import stat
from collections.abc import Mapping
from pathlib import Path

from workers.board import WORKERS_MAX
from workers.queues.dirq_url import parse_options
from workers.queues.mqueue_state import split_options
from workers.queues.open import SCHEMES, split_set
from workers.trust import is_everybodys_to_rename

KNOWN = SCHEMES  # of queue URLs that there is a protocol for
WITH_OPTIONS = ("dirq-simple", "dirq")  # behind a question mark
WITHOUT_LEASES = (*WITH_OPTIONS, "set", "ddmq", "mqueue")
ACCOUNT_MAX = (1 << 32) - 2  # one more is -1, which leaves an owner as it is
TEMPORARY, SHARED_MEMORY = "/tmp", "/dev/shm"  # noqa: S108 - see run_directory
DURATION_S_MAX = 10 * 365 * 86400.0
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9._-]{0,63}\Z")
QUEUE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}\Z")

MQUEUE = re.compile(r"/(?!\.\.?\Z)[^/]{1,255}\Z")

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_DURATION = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,9})?) ?(ms|s|m|h|d)?\Z", re.ASCII)
_SIZE = re.compile(r"([0-9]{1,15}) ?([KMGT]?)(?:i?B)?\Z", re.ASCII | re.IGNORECASE)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+._-]*):(.*)\Z", re.DOTALL)
_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}\Z")


def shown(value: object) -> str:
    """*value* as it would stand in TOML, cut to a line."""
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = json.dumps(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def nearest_spec(text: str) -> str | None:
    """The MODULE:NAME that *text*, which is none, was probably meant to be: a file's path, or dots alone."""
    module, colon, name = text.partition(":")
    path = module.removeprefix("./").removesuffix(".py").replace("/", ".").strip(".")
    if not path or not all(part.isidentifier() for part in path.split(".")):
        return None
    package, _, last = path.rpartition(".")
    if not colon and package and path == module:
        return f"{package}:{last}"
    return f"{path}:{name}" if name.isidentifier() else None


def parse_duration(value: object) -> float:
    """Seconds, finite and 0 or more, out of "90s", "5m", "2h", "1d", "250ms" or plain seconds."""
    seconds = -1.0
    if isinstance(value, str):
        found = _DURATION.match(value.strip())
        if found is not None:
            number, unit = float(found[1]), found[2] or "s"
            seconds = number / 1000 if unit == "ms" else number * _UNITS_S[unit]
    elif isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value) if abs(value) <= DURATION_S_MAX else math.inf
    if not 0 <= seconds <= DURATION_S_MAX:
        raise ValueError(
            f'must be a duration such as "90s", "5m", "2h", "1d", "250ms" or plain seconds, from 0 to ten years,'
            f" not {shown(value)}"
        )
    return seconds


def duration_text(seconds: float) -> str:
    """*seconds* in the largest unit that keeps it whole: 300.0 is 5m. Read again by parse_duration."""
    for unit in ("d", "h", "m", "s"):
        number = seconds / _UNITS_S[unit]
        if number == int(number) and number > 0:
            return f"{int(number)}{unit}"
    thousands = round(seconds * 1000)
    if thousands and thousands / 1000 == seconds:
        return f"{thousands}ms"
    return f"{seconds:.9f}".rstrip("0").rstrip(".") + "s"


def parse_size(value: object) -> int:
    """Bytes out of "64M" (K M G T are powers of 1024) or plain bytes."""
    found = _SIZE.match(value.strip()) if isinstance(value, str) else None
    if found is not None:
        return int(found[1]) * _SIZES[found[2].upper()]
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise ValueError(f'must be a size such as "64M", "512K" or plain bytes, not {shown(value)}')


def parse_listen(value: object) -> tuple[str, int] | None:
    """Host and port out of "HOST:PORT", an IPv6 address in brackets; None for "none". Port 0 is any free one."""
    expected = 'must be "HOST:PORT" such as "127.0.0.1:9464" or "[::1]:9464", or "none"'
    if not isinstance(value, str):
        raise ValueError(f"{expected}, not {shown(value)}")
    if value == "none":
        return None
    host, colon, port = value.rpartition(":")
    if not colon or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise ValueError(f"{expected}, with a port from 0 to 65535, not {shown(value)}")
    if not host:
        raise ValueError(f"{expected}, not {shown(value)}; for every address of this host write 0.0.0.0:{port}")
    if host[0] == "[" and host[-1] == "]":
        try:
            ipaddress.IPv6Address(host[1:-1])
        except ValueError as error:
            raise ValueError(f"{expected}: {error}") from error
        return host[1:-1], int(port)
    if not _HOST.match(host):
        raise ValueError(f"{expected}, not {shown(value)}; an IPv6 address stands in brackets")
    return host, int(port)


def listen_text(listen: tuple[str, int] | None) -> str:
    """The text that parse_listen reads."""
    if listen is None:
        return "none"
    host, port = listen
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def account_number(text: str) -> int | None:
    """The number of a user or a group that *text* is; None when it is a name. Numbers end at 4294967294."""
    if not (text.isascii() and text.isdigit()):
        return None
    if len(text) > 10 or int(text) > ACCOUNT_MAX:
        raise ValueError(f"must be a name, or a number from 0 to {ACCOUNT_MAX}, not {shown(text)}")
    return int(text)


def absolute_url(url: str, directory: str | None) -> str:
    """
    *url* with its scheme and an absolute path; a relative path starts at *directory*, None refuses it.

    ".." stays as it is, for only the kernel knows what it means beyond a symbolic link.
    """
    if not url or any(ord(char) < 32 or ord(char) == 127 for char in url):
        raise ValueError(f"must be the path or URL of a queue without control characters, not {shown(url)}")
    found = _SCHEME.match(url)
    scheme, path = (found[1].lower(), found[2]) if found else ("spool", url)
    if scheme not in KNOWN:
        raise ValueError(
            f"has the unknown scheme {scheme}: (known are {', '.join(known + ':' for known in KNOWN)});"
            f" for a path with a colon write {shown('spool:' + url)}"
        )
    if scheme == "null":
        if path:
            raise ValueError(f"must be null: with nothing behind the colon, not {shown(url)}")
        return "null:"
    if scheme == "set":
        return _absolute_set(path, directory)
    if scheme == "mqueue":
        if not MQUEUE.match(split_options(path)[0]):
            raise ValueError(
                "must be mqueue:/NAME or mqueue:/NAME?state_dir=DIRECTORY, the name with one slash and at most 255 "
                f"bytes, not {shown(url)}"
            )
        return f"mqueue:{path}"
    path, mark, options = path.partition("?") if scheme in WITH_OPTIONS else (path, "", "")
    if mark:
        parse_options(scheme, options)
    if not path:
        raise ValueError(f'must name a directory, as in "{scheme}:/var/spool/thumbs"')
    if not path.startswith("/"):
        if directory is None:
            raise ValueError(f"must be an absolute path, not {shown(url)}")
        path = f"{directory}/{path}"
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if scheme == "ddmq" and len(parts) < 2:
        raise ValueError(f"must be ddmq:ROOT/QUEUE, not {shown(url)}")
    return f"{scheme}:/" + "/".join(parts) + mark + options


def _absolute_set(path: str, directory: str | None) -> str:
    members = [absolute_url(member, directory) for member in split_set(path)]
    if strangers := [member for member in members if member.partition(":")[0] not in WITH_OPTIONS]:
        raise ValueError(f"is a set of dirq: and dirq-simple: queues, so {shown(strangers[0])} cannot be in it")
    return "set:" + ",".join(members)


def base_name(url: str) -> str:
    """A queue's name out of its absolute *url*: the last part of the path, other characters as _."""
    scheme, _, path = url.partition(":")
    if scheme in WITHOUT_LEASES:
        path = path.partition("?")[0]
    name = re.sub(r"[^A-Za-z0-9._-]", "_", path.rpartition("/")[2]).lstrip(".-")[:57]
    return name or (scheme if scheme == "null" else "queue")


def url_digits(url: str) -> str:
    """Six hex digits that keep two queues of one base name apart."""
    return hashlib.sha256(os.fsencode(url)).hexdigest()[:6]


def pool_name(url: str) -> str:
    """The name of a pool whose first queue is *url* (absolute): the same one at every start."""
    name = f"{base_name(url)}-{url_digits(url)}"
    return name if NAME.match(name) else f"_{name}"[:64]


def usable_cores() -> int:
    """How many cores this process may run on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, WORKERS_MAX))


def host_name() -> str:
    """This host's name, as far as it can stand in a file name."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", socket.gethostname())[:64] or "localhost"


def run_directory(environment: Mapping[str, str], uid: int) -> Path:
    """The run directory of *uid* when none is set. Only named here, made and checked where it is used."""
    runtime = environment.get("XDG_RUNTIME_DIR", "")
    if runtime.startswith("/") and _is_own_directory(runtime, uid):
        return Path(runtime) / "orchestrator"
    if uid == 0:
        return Path("/run/orchestrator")
    # The directory is made with mode 0700, and refused when it is another's or anybody could replace it: so in a
    # container whose /tmp is everybody's without being sticky it is made elsewhere.
    return Path(f"/tmp/orchestrator-{uid}" if _is_kept(TEMPORARY) else f"{SHARED_MEMORY}/orchestrator-run-{uid}")  # noqa: S108 - see above


def _is_kept(path: str) -> bool:
    """Whether nobody can replace what others have made in *path*; also where there is no such directory."""
    try:
        return not is_everybodys_to_rename(os.stat(path).st_mode)
    except OSError:
        return True


def _is_own_directory(path: str, uid: int) -> bool:
    """sudo may hand on the directory of another user, whose processes could then speak to ours."""
    try:
        status = os.stat(path)
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == uid
