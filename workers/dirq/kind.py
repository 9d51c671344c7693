"""
kind - which kind of queue a directory is, by the names in it

See also: elements (whose names these are).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from workers.dirq.elements import DIRECTORY, OBSOLETE_DIRECTORY, TEMPORARY_DIRECTORY

Kind = Literal["simple", "normal", "spool", "other", "empty"]


def kind_of(there: Collection[str]) -> Kind:
    """
    What a directory is that holds the names *there*; dot names count for nothing.

    "normal" has temporary/ and obsolete/, "simple" has intermediate directories and not those, "spool" has
    incoming/, "other" has something else: whether it is to become a queue only its owner can say.
    """
    names = {name for name in there if not name.startswith(".")}
    if "incoming" in names:
        return "spool"
    if {TEMPORARY_DIRECTORY, OBSOLETE_DIRECTORY} <= names:
        return "normal"
    if any(DIRECTORY.match(name) for name in names):
        return "simple"
    return "other" if names - {TEMPORARY_DIRECTORY, OBSOLETE_DIRECTORY} else "empty"
