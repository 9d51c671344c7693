"""
failures - several things done each by itself: what one of them meets keeps no other from being done

    failures = Failures()
    for name in names:
        with failures:
            give_back(name)
    failures.raise_first()

Raises: OSError, the first that was met, at the end; anything else at once.
See also: owners, foreign_keep, mqueue_keep (the steps of a round).
"""

from __future__ import annotations


class Failures:
    """Keeps the *first* OSError that left one of its blocks."""

    first: OSError | None = None

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, OSError):
            return False
        self.first = self.first or error
        return True

    def raise_first(self) -> None:
        """Raise the first, if there was one."""
        if self.first is not None:
            raise self.first
