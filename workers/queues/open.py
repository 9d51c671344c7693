"""
open - from a URL to a queue

    spool:PATH, or a bare PATH     this project's protocol (see SPOOL.md)
    dirq-simple:PATH               Directory::Queue, a file for each message (see dirq)
    dirq:PATH?schema=KEY:TYPE,...  Directory::Queue, a directory for each message
    set:URL,URL                    several dirq queues, read as one in the order of time
    ddmq:ROOT/QUEUE                Dead Drop Messaging Queue, served by priority (see ddmq)
    mqueue:/NAME                   a POSIX message queue of the kernel (see mqueue)
    null:                          forgets what it is given

``open_queue(url)`` can put and look; with ``consume=True`` it also may claim, and
forks a keeper of its own that beats the lease while the process lives.
"""

from __future__ import annotations

import dataclasses
import re
import socket

from workers.errors import QueueRefused
from workers.queues import names
from workers.queues.base import Queue, Settings
from workers.queues.directory import Directory
from workers.queues.null import NoMessages, Null
from workers.queues.spool import Spool
from workers.system import SYSTEM, System
from workers.trust import Place

SCHEMES = ("spool", "dirq-simple", "dirq", "set", "ddmq", "mqueue", "null")
NOT_FED = ("mqueue", "null")  # no names lie there to be read
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+_-]*):(.*)", re.DOTALL)


def split_url(url: str) -> tuple[str, str]:
    """(scheme, rest); a bare path is spool:. Raises QueueRefused for a scheme that is not known."""
    found = _SCHEME.match(url)
    if found is None or "/" in found[1]:
        scheme, rest = "spool", url
    else:
        scheme, rest = found[1].lower(), found[2]
    if scheme not in SCHEMES:
        known = ", ".join(f"{name}:" for name in SCHEMES)
        raise QueueRefused(f"{url!r}: no queue protocol is called {scheme!r}; there is {known} (a bare path is spool:)")
    if scheme != "null" and not rest:
        raise QueueRefused(f"{url!r} names no place: write {scheme}:PATH")
    return scheme, rest


def is_fed(url: str) -> bool:
    """Whether a pool's feeder reads names there for its workers. Touches nothing."""
    return split_url(url)[0] not in NOT_FED


def default_host() -> str:
    """This host's name as far as it may stand in a message's name."""
    host = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:64] or "localhost"
    return host.replace(".", "-") if names.is_ignored(f"x.{host}") else host


def open_queue(
    url: str,
    *,
    create: bool = False,
    consume: bool = False,
    settings: Settings | None = None,
    host: str | None = None,
    system: System = SYSTEM,
    is_for_events: bool = False,
) -> Queue:
    """
    Open the queue at *url*.

    *create* makes it where only its parent exists. *consume* makes it ready to claim from (main
    thread only: it forks a keeper, which ends with this process). *is_for_events*: null: may be
    claimed from as well, by components that have events only. Raises QueueMissing, QueueRefused,
    QueueUnavailable.
    """
    chosen = settings or Settings()
    if create:
        chosen = dataclasses.replace(chosen, create=True)
    host = host or default_host()
    is_null = is_for_events and split_url(url)[0] == "null"
    queue = NoMessages(chosen, system=system, host=host) if is_null else _opened(url, chosen, system, host)
    if consume:
        from workers.keeper import attach_alone  # noqa: PLC0415 - only who consumes needs the keeper

        attach_alone(queue)
    return queue


def _opened(url: str, settings: Settings, system: System, host: str) -> Queue:
    scheme, rest = split_url(url)
    if scheme == "null":
        return Null(settings)
    if scheme == "spool":
        return Spool(rest, settings, system=system, host=host)
    # Only who has such a queue needs its format.
    if scheme == "ddmq":
        from workers.queues.ddmq import open_ddmq  # noqa: PLC0415

        return open_ddmq(rest, settings, system=system, host=host)
    if scheme == "mqueue":
        from workers.queues.mqueue import open_mqueue  # noqa: PLC0415

        return open_mqueue(rest, settings, system=system, host=host)
    from workers.queues.dirq_url import open_dirq  # noqa: PLC0415

    if scheme != "set":
        return open_dirq(scheme, rest, settings, system=system, host=host)
    from workers.queues.queue_set import QueueSet  # noqa: PLC0415

    members = [split_url(member) for member in split_set(rest)]
    if strangers := [one for one, _ in members if one not in ("dirq", "dirq-simple")]:
        raise QueueRefused(f"{url!r}: a set is of dirq and dirq-simple queues, not of {strangers[0]}: ones")
    settings = dataclasses.replace(settings, create=False)  # nothing is put into a set, so nothing is made
    return QueueSet([open_dirq(one, path, settings, system=system, host=host) for one, path in members])


def places(url: str, settings: Settings | None = None) -> list[Place]:
    """The directories on which the queue at *url* rests, or will. Raises QueueRefused; opens nothing."""
    scheme, rest = split_url(url)
    chosen = settings or Settings()
    if scheme == "spool":
        return Directory(rest, SYSTEM).places()
    if scheme == "ddmq":
        from workers.queues import ddmq  # noqa: PLC0415 - only who has such a queue needs its format

        return ddmq.places_of_url(rest, chosen)
    if scheme in ("dirq", "dirq-simple"):
        from workers.queues import dirq_url  # noqa: PLC0415

        return dirq_url.places_of_url(scheme, rest, chosen)
    return [place for member in split_set(rest) for place in places(member, chosen)] if scheme == "set" else []


def split_set(rest: str) -> list[str]:
    """The URLs of a set: a comma ends one where another begins, for it also stands in a schema."""
    return re.split(r",\s*(?=(?:dirq|dirq-simple|spool|null|set|ddmq|mqueue):|/)", rest)
