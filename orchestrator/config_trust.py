"""
config_trust - who else may write a configuration, and so run programs as whoever reads it

A file, and each directory on the way to it, as it is named and as it really is. Where everybody may write it is
refused, as a queue is; of another user or a group it is said. In a directory like /tmp only its owner can
replace a file, but everybody can add one to a directory of fragments. On a filesystem that is mounted read-only
nobody writes.

Raises: nothing; what cannot be looked at cannot be read either, and that is told by who reads. May block, as files do.
Source: sshd_config(5) "StrictModes", sudoers(5), crontab(1), all of which refuse.
See also: workers.trust (the same of queues), config_files.
"""

from __future__ import annotations

import os
import stat

from workers.trust import Risk, directories_above, writers

MEANING = "and whoever may write a configuration runs programs as its reader"


def risk_of(where: str) -> Risk | None:
    """The worst, or else the nearest, that there is to say of the file or directory of fragments *where*."""
    try:
        found = os.stat(where)
    except OSError:
        return None
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        return None
    risks = [_risk(where, is_on_the_way=False), *(_risk(path, is_on_the_way=True) for path in directories_above(where))]
    return min((risk for risk in risks if risk is not None), key=lambda risk: not risk.is_refused, default=None)


def _risk(path: str, *, is_on_the_way: bool) -> Risk | None:
    try:
        found, filesystem = os.stat(path), os.statvfs(path)
    except OSError:
        return None
    who = writers(found, os.geteuid())
    is_kept = is_on_the_way and found.st_mode & stat.S_ISVTX
    if not who or is_kept or filesystem.f_flag & os.ST_RDONLY:
        return None
    is_refused = bool(found.st_mode & 0o002)
    help_ = ": chmod o-w it" if is_refused else ""
    return Risk(path, f"{who} (mode {stat.S_IMODE(found.st_mode):04o}), {MEANING}{help_}", is_refused)
