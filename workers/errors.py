"""
errors - everything this library raises on purpose

One class for one cause. What is expected (an empty queue, a lost race) is a
value, never an exception; a bug is an assert. An operating error names the
path and the errno, is raised from its OSError and is caught in one place: the
worker's or the master's loop.
"""

from __future__ import annotations

import os


class OrchestratorError(Exception):
    """Whatever this project raises on purpose; its text is a sentence for a person."""


class QueueError(OrchestratorError):
    """Something is wrong with a queue or with what was asked of it. *names*: of a batch, what had been put before."""

    names: tuple[str, ...] = ()


class QueueUnavailable(QueueError):
    """
    The queue cannot be used now: disk full, quota, permission, a lost mount.

    *errno* is the kernel's number, or None. *is_unknown* is True when the call may have
    happened all the same (a network filesystem lost the reply). *names* are those of a
    batch that had already been put.
    """

    def __init__(
        self, text: str, *, errno: int | None = None, is_unknown: bool = False, names: tuple[str, ...] = ()
    ) -> None:
        super().__init__(text)
        self.errno = errno
        self.is_unknown = is_unknown
        self.names = names

    @classmethod
    def at(cls, doing: str, path: str, error: OSError, *, is_unknown: bool = False) -> QueueUnavailable:
        """Word *error*, met while *doing* something at *path*."""
        text = f"cannot {doing} {os.fsencode(path).decode('utf-8', 'backslashreplace')}: {error.strerror or error}"
        return cls(f"{text} [errno {error.errno}]", errno=error.errno, is_unknown=is_unknown)


class QueueMissing(QueueError):
    """There is no queue at that place, or it is no queue of this kind."""


class QueueRefused(QueueError):
    """The queue exists but must not be used like this: other settings, a newer format, several filesystems."""


class QueueFull(QueueError):
    """The queue takes no more messages now."""


class MessageExists(QueueError):
    """A message of that very name is waiting already."""


class InvalidName(QueueError, ValueError):
    """A message cannot be called that."""


class KeeperGone(QueueError):
    """The keeper that this process had forked for itself has died, so nothing may be claimed any more."""


class NotSupported(QueueError):
    """The protocol of the queue cannot do what was asked; the text names the option and the protocol."""


class ClaimLost(QueueError):
    """The message was given to another meanwhile (fenced); what was done for it does not count here."""


class InputGone(QueueError):
    """The handler itself removed the file it was given; nobody else has the message."""


class HandlerError(OrchestratorError):
    """The handler cannot be found or loaded."""
