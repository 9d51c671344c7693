"""
told - the published wording of an OSError: "cannot rename(A, B): [Errno 13] Permission denied"

Kind and errno stay what they were, so whoever catches FileNotFoundError, or looks at
errno, sees what the kernel said. Which call it was is read from the line of the trace
that made it: most calls succeed, and it costs those nothing.

See also: base, simple, queue (which raise these).
"""

from __future__ import annotations

import functools
import os
import re
import traceback
from collections.abc import Callable
from typing import ParamSpec, TypeVar

CALL = re.compile(r"system\.([a-z_]+)\(")
P = ParamSpec("P")
R = TypeVar("R")


def told(method: Callable[P, R]) -> Callable[P, R]:
    """Let the OSErrors of *method* be worded."""

    @functools.wraps(method)
    def told_method(*arguments: P.args, **more: P.kwargs) -> R:
        try:
            return method(*arguments, **more)
        except OSError as error:
            raise worded(error) from None

    return told_method


def worded(error: OSError, call: str = "") -> OSError:
    """*error* in the published wording, of the same kind and with its errno. *call* is looked up when not given."""
    if error.strerror is None:  # it is worded already
        return error
    paths = ", ".join(os.fsdecode(path) for path in (error.filename, error.filename2) if path is not None)
    found = type(error)(f"cannot {call or _call_of(error)}({paths}): [Errno {error.errno}] {error.strerror}")
    found.errno = error.errno
    return found.with_traceback(error.__traceback__)


def refused(code: int, call: str, *paths: str) -> OSError:
    """What *call* would have been refused with, in the published wording."""
    return worded(OSError(code, os.strerror(code), paths[0], None, paths[1] if len(paths) > 1 else None), call)


def _call_of(error: OSError) -> str:
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if found := CALL.search(frame.line or ""):
            return found[1]
    return "use"
