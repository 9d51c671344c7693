"""
mqueue_state - what a pool keeps on disk of a message queue of the kernel: retries, errors, counts

    mqueue:/NAME?state_dir=DIRECTORY       there, in NAME-HASH.pool
    mqueue:/NAME                           below /var/lib for root, else below ~/.local/state

The same place for all who look: with a state_dir it is found by the name of the queue alone, whatever
HOME is. It is its user's alone, directories and files, for what lies in deferred/ is sent: where
somebody else has made it, nothing is kept and nothing is sent.

Raises: OSError, QueueRefused.
See also: beside (what lies there), mqueue (who sets aside), mqueue_keep (who sends again), MQUEUE.md.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from workers.errors import QueueRefused
from workers.queues import names
from workers.queues.beside import Beside, Counts
from workers.queues.receive import Receive
from workers.system import System

ROOT_STATE = "/var/lib/orchestrator/mqueue"
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
NOT_ALLOWED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENAMETOOLONG})


def split_options(rest: str) -> tuple[str, str | None]:
    """The name and the state_dir of /NAME?state_dir=DIRECTORY. Raises ValueError, with what is wrong."""
    name, _, query = rest.partition("?")
    state_dir: str | None = None
    for pair in filter(None, query.split("&")):
        key, _, state_dir = pair.partition("=")
        if key != "state_dir":
            raise ValueError(f"there is no option {key!r}; there is state_dir=DIRECTORY")
        if not os.path.isabs(state_dir):
            raise ValueError(f"state_dir must be an absolute path, not {state_dir!r}")
    return name, state_dir


def state_directory(system: System) -> str:
    """Where the pools of this user keep what outlives the machine's running; no absolute path where nobody says."""
    if system.geteuid() == 0:
        return ROOT_STATE
    base = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return os.path.join(base, "orchestrator", "mqueue")


class MqueueState(Beside):
    """The paths, and the calls on them. Holds no descriptor."""

    file_mode = 0o600

    def __init__(self, name: str, state_dir: str | None, system: System, host: str) -> None:
        """*name* of the kernel's queue, with its slash. Touches nothing."""
        self._root = state_dir or state_directory(system)
        self._is_ours = state_dir is None  # what leads there is ours to make
        root = os.path.join("/", self._root)  # of one that is refused: where nothing lies, and nothing is made
        queue = os.path.join(root, name[1:]) if self._is_ours else name
        super().__init__(queue, None if self._is_ours else root, system)
        self._host = host
        self._tokens = names.Tokens(system)

    # ---- making

    def make(self) -> None:
        """Make what is not there. Raises OSError; QueueRefused where that is not possible, with what to do."""
        if not os.path.isabs(self._root):
            raise QueueRefused(
                f"{self._root} is no absolute path, and a pool keeps its retries and errors there: "
                "set state_dir (or HOME, or XDG_STATE_HOME) to one"
            )
        try:
            if self._is_ours:
                self._make_parents()
            for path in (self.path, *self.parts):
                self._mkdir(path)
        except OSError as error:
            if error.errno not in NOT_ALLOWED:
                raise
            raise QueueRefused(
                f"cannot make {error.filename or self.path}, where a pool keeps its retries and errors: "
                f"{error.strerror}; set state_dir to a directory where it may (of a name of a queue "
                "243 bytes at most have room there)"
            ) from error

    def _make_parents(self) -> None:
        missing = []
        path = os.path.dirname(self.path)
        while not self.system.is_directory(path, is_followed=True):
            missing.append(path)
            path = os.path.dirname(path)
        for path in reversed(missing):
            with contextlib.suppress(FileExistsError):
                self.system.mkdir(path, 0o700)

    def _mkdir(self, path: str) -> None:
        try:
            self.system.mkdir(path, 0o700)
        except FileExistsError:
            self._check(path)

    def _check(self, path: str) -> None:
        """Raises QueueRefused unless *path* is a directory that only its user may write to, this one."""
        found = self.system.lstat(path)
        others = 0o77 if path == self.path else 0o22  # into its parts nobody comes but through it
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != self.system.geteuid() or found.st_mode & others:
            raise QueueRefused(
                f"{path} is in the way: it must be a directory that is yours and nobody else's (mode 0700), for what "
                "lies there is sent; remove it, or set state_dir to another place"
            )

    def check(self) -> None:
        """Raises QueueRefused where somebody else has made it; what is not there does no harm."""
        for path in (self.path, *self.parts):
            with contextlib.suppress(FileNotFoundError):
                self._check(path)

    # ---- setting aside

    def set_aside(self, receive: Receive, state: str, file: str) -> str:
        """Write it to *file* in the directory of *state*, durably; again, it is there where it was moved to before."""
        if self.is_set_aside(receive):
            state, file = receive.aside.split("/", 1)
        else:
            temporary = os.path.join(self.tmp, self.unpublished())
            self.write_file(temporary, receive.body(), durable=True)
            # ORDER: what it is to be called, then the move. Whoever finds the message after a kill between the move
            # and the clearing sees that it has been moved. See test_a_kill_at_any_call_of_a_settle_loses_nothing.
            receive.aside = f"{state}/{file}"
            self.move(temporary, os.path.join(self.path, state), file)
        # ORDER: durable there before it is cleared here. See test_what_fails_is_on_disk_before_memory_forgets_it.
        self.system.fsync_directory(os.path.join(self.path, state))
        return file

    def is_set_aside(self, receive: Receive) -> bool:
        """Whether a settle that did not end has moved it already."""
        return bool(receive.aside) and self.is_there(os.path.join(self.path, receive.aside))

    def marked(self, name: str, counts: Counts) -> str:
        """The message *name* as a file here, which nobody else can make."""
        return names.marked(counts.attempts, counts.crashes, self._tokens.token(name), name)

    def unpublished(self) -> str:
        """A name in tmp/."""
        return names.unpublished(self._tokens.name(self._host))

    def is_message(self, path: str) -> bool:
        """Whether *path* is a regular file. Raises OSError, FileNotFoundError among them."""
        return stat.S_ISREG(self.system.lstat(path).st_mode)
