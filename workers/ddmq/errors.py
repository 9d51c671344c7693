"""
errors - what ddmq raises beside OSError, ValueError and TypeError

DdmqError is the published class: *error* is a word that programs compare ("missing",
"uninitiated", "settings", "corrupt"), *message* a sentence for a person.
"""

from __future__ import annotations


class DdmqError(Exception):
    """Something is wrong with a root, a settings file or a message's file."""

    def __init__(self, message: str, error: str) -> None:
        super().__init__(message, error)
        self.message = message
        self.error = error

    def __str__(self) -> str:
        return self.message


class SettingsError(DdmqError, ValueError):
    """A settings file, or a change to it, holds what it cannot; the text names file, line and remedy."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "settings")

    def __reduce__(self) -> tuple[type[SettingsError], tuple[str]]:
        return type(self), (self.message,)


class CorruptError(DdmqError, ValueError):
    """A message's file is no message: no JSON object, or no regular file."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "corrupt")

    def __reduce__(self) -> tuple[type[CorruptError], tuple[str]]:
        return type(self), (self.message,)
