"""
meta - what is said beside a message in errors/: why it is there, and what became of it before

errors/FILE.meta is JSON, sorted keys, written after the message has come there: that it
may be missing is part of every protocol that has one.

See also: SPOOL.md, spool_look.read_meta.
"""

from __future__ import annotations

import json
import logging
import os

from workers.message import Claim
from workers.queues import names
from workers.queues.directory import Directory
from workers.queues.owners import Death

log = logging.getLogger(__name__)

Facts = dict[str, object]


def write_meta(directory: Directory, file: str, facts: Facts, temporary: str) -> None:
    """Write errors/FILE.meta by way of *temporary* in tmp/, whole or not at all."""
    path = os.path.join(directory.tmp, temporary)
    text = json.dumps(facts, sort_keys=True, indent=4, default=str)
    try:
        directory.write_file(path, text.encode(), durable=False)
        directory.move(path, directory.errors, f"{file}.meta")
    except OSError as error:
        directory.forget(path)
        log.warning("%s: %s.meta could not be written: %s", directory.path, names.shown(file), error)


def facts_of_claim(claim: Claim, reason: str, now_s: float) -> Facts:
    """What is known of a message by its claim."""
    return {
        "name": claim.full_name or claim.name,
        "reason": reason,
        "attempts": claim.attempt,
        "crashes": claim.crashes,
        "enqueued_at": names.iso(claim.enqueued_at),
        "claimed_at": names.iso(claim.claimed_at),
        "rejected_at": names.iso(now_s),
    }


def facts_of_death(death: Death, name: str, enqueued_s: float | None, now_s: float) -> Facts:
    """What is known of the message called *name* by the death of whoever had it in hand."""
    parsed = names.parse_owner(death.owner)
    return {
        "name": name,
        "cause": death.cause,
        "note": death.note,
        "host": parsed.host if parsed else None,
        "worker": parsed.index if parsed else None,
        "pid": parsed.pid if parsed else None,
        "owner": death.owner,
        "enqueued_at": None if enqueued_s is None else names.iso(enqueued_s),
        "rejected_at": names.iso(now_s),
    }
