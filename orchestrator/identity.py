"""
identity - the user and the groups that a daemon becomes

Names are looked up here, numbers taken as they are; but for rights_of() nothing is changed.
setgroups must be called before setgid and setuid, or root's groups stay with who is root no
longer.

Raises: IdentityError. Before a chroot, which has no /etc/passwd.
Source: credentials(7), initgroups(3); systemd.exec(5), "User=", for the environment. See also: daemon.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
from collections.abc import Iterator
from dataclasses import dataclass

from orchestrator.config_values import account_number
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
            number = account_number(group)
            gid = grp.getgrnam(group).gr_gid if number is None else number
        except KeyError:
            raise IdentityError(f"there is no group {shown(group)}") from None
    if user is None:
        assert gid is not None  # noqa: S101 - one of the two was given
        identity = Identity(os.getuid(), gid, (gid,))
    else:
        identity = _of_user(user, gid)
    is_changed = (identity.uid, identity.gid) != (os.getuid(), os.getgid())
    return identity if is_changed or os.geteuid() == 0 else None


def environment(uid: int) -> dict[str, str | None]:
    """The variables that tell of user *uid*; None for one that is not to be set."""
    try:
        found = pwd.getpwuid(uid)
    except KeyError:
        return {"HOME": "/", "USER": None, "LOGNAME": None, "SHELL": None}
    return {"HOME": found.pw_dir, "USER": found.pw_name, "LOGNAME": found.pw_name, "SHELL": found.pw_shell or None}


@contextlib.contextmanager
def rights_of(uid: int, gid: int) -> Iterator[None]:
    """Have the rights of that user meanwhile, and no others but our groups; in a process with one thread."""
    before = os.geteuid(), os.getegid()
    os.setegid(gid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(before[0])
        os.setegid(before[1])


def _of_user(user: str, gid: int | None) -> Identity:
    number = account_number(user)
    try:
        found = pwd.getpwnam(user) if number is None else pwd.getpwuid(number)
    except KeyError:
        if number is None:
            raise IdentityError(f"there is no user {shown(user)}") from None
        if gid is None:
            raise IdentityError(f"user {user} has no name, and so no group of its own: give a group too") from None
        return Identity(number, gid, (gid,))
    gid = found.pw_gid if gid is None else gid
    return Identity(found.pw_uid, gid, tuple(os.getgrouplist(found.pw_name, gid)))
