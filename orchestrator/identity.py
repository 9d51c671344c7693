"""
identity - the user and the groups that a daemon becomes

Names are looked up here, numbers taken as they are; nothing is changed. setgroups must be
called before setgid and setuid, or root's groups stay with who is root no longer.

Raises: IdentityError. Before a chroot, which has no /etc/passwd.
Source: credentials(7), initgroups(3). See also: daemon.
"""

from __future__ import annotations

import grp
import os
import pwd
from dataclasses import dataclass

from workers.errors import OrchestratorError
from workers.queues.names import shown


class IdentityError(OrchestratorError):
    """There is no such user or group."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who the daemon becomes: user, group, and its supplementary groups, by number."""

    uid: int
    gid: int
    groups: tuple[int, ...]


def identify(user: str | None, group: str | None) -> Identity | None:
    """
    Who *user* and *group*, names or numbers, are; None when nothing is to change. Raises IdentityError.

    The supplementary groups are the user's own; of a user without a name, or of a group alone, only that group.
    """
    if user is None and group is None:
        return None
    gid = None
    if group is not None:
        try:
            gid = int(group) if group.isdigit() else grp.getgrnam(group).gr_gid
        except KeyError:
            raise IdentityError(f"there is no group {shown(group)}") from None
    if user is None:
        assert gid is not None  # noqa: S101 - one of the two was given
        identity = Identity(os.getuid(), gid, (gid,))
    else:
        identity = _of_user(user, gid)
    is_changed = (identity.uid, identity.gid) != (os.getuid(), os.getgid())
    return identity if is_changed or os.geteuid() == 0 else None


def _of_user(user: str, gid: int | None) -> Identity:
    try:
        found = pwd.getpwuid(int(user)) if user.isdigit() else pwd.getpwnam(user)
    except KeyError:
        if not user.isdigit():
            raise IdentityError(f"there is no user {shown(user)}") from None
        if gid is None:
            raise IdentityError(f"user {user} has no name, and so no group of its own: give a group too") from None
        return Identity(int(user), gid, (gid,))
    gid = found.pw_gid if gid is None else gid
    return Identity(found.pw_uid, gid, tuple(os.getgrouplist(found.pw_name, gid)))
