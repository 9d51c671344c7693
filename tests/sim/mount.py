"""
mount - what one host's client of a network filesystem keeps, and answers without asking the server

Attributes are kept for some seconds: a name that another host has removed is still
there. A name that was missing stays missing, though another has made it since; until
this host changes or lists that directory. A listing may be kept for a moment too, where
the mount is of the kind that does not ask at every opendir. What a host changes itself
it sees at once, and an open asks the server.

Source: nfs(5), "Data and metadata coherence"; Linux fs/nfs/dir.c for what drops a negative entry.
See also: virtual (asks here before it sends a call), SPOOL.md section 12 (why nothing relies on a stat).
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from random import Random
from typing import Any

MISS = object()
ENTRIES_MAX = 65_536  # kept of each kind, then forgotten all at once
CHANGING = frozenset({"rename", "rename_noreplace", "link", "unlink", "mkdir", "rmdir"})
LISTING = frozenset({"listdir", "scandir"})
BY_SOURCE = frozenset({"rename", "rename_noreplace", "link", "unlink"})  # not sent when the source is known to be gone


class Mount:
    """
    One host's caches; times in nanoseconds of the world.

    Attributes:
        kept_s: between these many seconds attributes and missing names are kept; (0, 0) for a local filesystem.
        listing_s: a listing is served again for so long; 0: every listing asks.
    """

    def __init__(self, random: Random, kept_s: tuple[float, float], listing_s: float) -> None:
        self._random = random
        self._kept_s = kept_s
        self._listing_ns = int(listing_s * 1e9)
        self._attributes: dict[str, tuple[int, Any]] = {}
        self._missing: dict[str, dict[str, int]] = {}  # directory, name: until when
        self._listings: dict[str, tuple[int, Any]] = {}
        self._versions: dict[str, int] = {}
        self.served: Counter[str] = Counter()  # answers that the server might have given otherwise

    def clear(self) -> None:
        """Mounted anew."""
        for kept in (self._attributes, self._missing, self._listings, self._versions):
            kept.clear()

    def known(self, name: str, arguments: tuple[Any, ...], now_ns: int) -> Any:
        """The answer to a call that need not be sent, or MISS. Raises ENOENT."""
        path = arguments[0]
        if name == "lstat" or name == "stat" or name in BY_SOURCE:  # noqa: PLR1714 - asked for every call
            where, _, file = path.rpartition("/")
            missing = self._missing.get(where)
            if missing is not None and missing.get(file, 0) > now_ns:
                self.served["missing names"] += 1
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            kept = self._attributes.get(path) if name[-4:] == "stat" else None
            if kept is not None and kept[0] > now_ns:
                self.served["attributes"] += 1
                return kept[1]
        elif self._listing_ns and name in LISTING:
            kept = self._listings.get(f"{name}{path}")
            if kept is not None and kept[0] > now_ns:
                self.served["listings"] += 1
                return kept[1]
        return MISS

    def learn(self, name: str, arguments: tuple[Any, ...], result: Any, code: int, now_ns: int) -> None:
        """Keep what an answer shows; *code* is the errno, 0 for success."""
        if name in CHANGING:
            for path in arguments:
                if isinstance(path, str):
                    self._changed(path)
            if code == errno.ENOENT and name in BY_SOURCE:
                self._miss(arguments[0], now_ns)
        elif name in ("lstat", "stat"):
            if code == errno.ENOENT:
                self._miss(arguments[0], now_ns)
            elif not code and self._kept_s[1]:
                if len(self._attributes) > ENTRIES_MAX:
                    self._attributes.clear()
                self._attributes[arguments[0]] = (now_ns + self._drawn_ns(), result)
        elif name in LISTING and not code:
            self._missing.pop(arguments[0], None)
            if self._listing_ns and not arguments[0].endswith("/leases"):
                self._listings[f"{name}{arguments[0]}"] = (now_ns + self._listing_ns, result)
        elif name == "open" and arguments[1] & os.O_CREAT:
            self._changed(arguments[0])

    def is_new(self, path: str, version: int) -> bool:
        """Whether the listing of *path*, changed last at *version*, must be fetched: it is kept while unchanged."""
        if self._versions.get(path) == version:
            return False
        if len(self._versions) > ENTRIES_MAX:
            self._versions.clear()
        self._versions[path] = version
        return True

    def _drawn_ns(self) -> int:
        return int(self._random.uniform(*self._kept_s) * 1e9)

    def _miss(self, path: str, now_ns: int) -> None:
        if self._kept_s[1]:
            where, _, file = path.rpartition("/")
            missing = self._missing.setdefault(where, {})
            if len(missing) > ENTRIES_MAX:
                missing.clear()
            missing[file] = now_ns + self._drawn_ns()

    def _changed(self, path: str) -> None:
        where = path.rpartition("/")[0]
        self._attributes.pop(path, None)
        self._missing.pop(where, None)
        for kind in LISTING:
            self._listings.pop(kind + where, None)
            self._listings.pop(kind + path, None)
