"""
settings - the files ddmq.yaml of root and queues, and which value counts

    built-in default  <  ROOT/ddmq.yaml  <  ROOT/QUEUE/ddmq.yaml  <  the message's own

A queue's file is made with all the defaults in it, so there a value that is the built-in
default says nothing, and the root's counts. A file that lacks one of the four that are
somebody's wish was written by hand, and in it each value is meant: who wants the default
back for one queue below a root that overrides it removes one of the other lines. The fifth,
*cleaned*, is the queue's own and no wish: each cleaning writes it, so it is not asked for.

An update is a new file that is renamed over the old one: no reader sees half of it, and of
two of ours, which lock the directory, none undoes what the other wrote.

Raises: SettingsError, FileNotFoundError when there is no such file, any other OSError.
Limits: originals, and filesystems where a directory cannot be locked (some NFS), are only looked for right before the
rename.
See also: flat_yaml (the syntax).
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Generator, Mapping

from workers.ddmq.errors import SettingsError
from workers.ddmq.files import SETTINGS_FILE, QueueFiles
from workers.ddmq.flat_yaml import Value, dumps, loads
from workers.system import System

DEFAULTS: dict[str, Value] = {
    "message_timeout": 600,  # seconds that a claim lasts
    "cleaned": 0,  # when expired claims were looked for last, seconds since 1970
    "priority": 999,  # of messages that give none
    "requeue": True,  # whether nack() requeues a message that does not say
    "requeue_prio": 0,  # which priority a requeued message gets
}
WHOLE = ("message_timeout", "priority", "requeue_prio")
LOCK_WAIT_S, LOCK_LOOK_S = 5.0, 0.01
FILE_SIZE_MAX = 1 << 20
ATTEMPTS_MAX = 100  # each is lost to somebody else's change
NO_LOCK = frozenset({errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP})

Signature = tuple[int, int, int]


class SettingsFiles:
    """The settings below one root. What was read is read again when the file has changed."""

    def __init__(self, root: str, system: System) -> None:
        self.root = root
        self.system = system
        self._read: dict[str, tuple[Signature, dict[str, Value]]] = {}
        self._effective: dict[str, tuple[tuple[Signature | None, Signature], dict[str, Value]]] = {}

    def read(self, queue: str = "") -> dict[str, Value]:
        """What stands in the file of *queue*, or of the root."""
        return dict(self._current(queue)[1])

    def of_root(self, defaults: Mapping[str, Value]) -> dict[str, Value]:
        """*defaults* with what the root overrides."""
        return _over(defaults, self.read())

    def effective(self, queue: str, defaults: Mapping[str, Value]) -> dict[str, Value]:
        """What counts for *queue*; the same object for as long as the files are the same."""
        try:
            of_root, root = self._current("")
        except FileNotFoundError:
            of_root, root = None, {}
        of_queue, own = self._current(queue)
        known = self._effective.get(queue)
        if known is None or known[0] != (of_root, of_queue):
            if own.keys() >= defaults.keys() - {"cleaned"}:
                own = {key: value for key, value in own.items() if key == "cleaned" or value != defaults.get(key)}
            known = self._effective[queue] = (of_root, of_queue), _over(_over(defaults, root), own)
        return known[1]

    def forget(self, queue: str) -> None:
        """Let go of what was read for *queue*."""
        self._read.pop(queue, None)
        self._effective.pop(queue, None)

    def write_new(self, queue: str, text: str) -> None:
        """Make the file of *queue* with *text*. Raises FileExistsError when there is one."""
        files = QueueFiles(self.root, queue, self.system)
        temporary = files.write_temporary(text.encode(), durable=False)
        try:
            files.move_once(temporary, os.path.join(files.path, SETTINGS_FILE))
        except BaseException:
            files.forget(temporary)
            raise

    def update(self, queue: str, package: Mapping[str, Value], wait_s: float = LOCK_WAIT_S) -> None:
        """
        Change what *package* names in the file of *queue*, or of the root.

        Raises BlockingIOError when another of ours is at it for longer than *wait_s*.
        """
        files = QueueFiles(self.root, queue, self.system)
        path = os.path.join(files.path, SETTINGS_FILE)
        with self._locked(files.path, wait_s):
            for _ in range(ATTEMPTS_MAX):
                signature, now = self._load(path)
                changed = {**now, **package}
                _check(changed, path)
                temporary = files.write_temporary(dumps(changed).encode(), durable=False)
                try:
                    # RACE: an original, which takes no lock, has changed the file since it was read; between this look
                    # and the rename it still may. See test_Q16_a_change_that_came_meanwhile_is_kept.
                    if self._signature(path) == signature:
                        self.system.rename(temporary, path)
                        return
                except BaseException:
                    files.forget(temporary)
                    raise
                files.forget(temporary)
        raise BlockingIOError(errno.EAGAIN, "is changed by others all the time", path)

    # ---- inside

    def _current(self, queue: str) -> tuple[Signature, dict[str, Value]]:
        path = f"{self.root}/{queue}/{SETTINGS_FILE}" if queue else f"{self.root}/{SETTINGS_FILE}"
        known = self._read.get(queue)
        if known is None or known[0] != self._signature(path):
            known = self._read[queue] = self._load(path)
        return known

    def _load(self, path: str) -> tuple[Signature, dict[str, Value]]:
        # ORDER: the signature, then the content. The other way round what changed in between would be taken for what
        # was read, and never be read. See test_Q16_what_changes_while_it_is_read_is_read_again.
        signature = self._signature(path)
        fd = self.system.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            raw = b""
            while len(raw) <= FILE_SIZE_MAX and (part := self.system.read(fd, 1 << 16)):
                raw += part
        finally:
            self.system.close(fd)
        if len(raw) > FILE_SIZE_MAX:
            raise SettingsError(f"{path}: is larger than {FILE_SIZE_MAX} bytes; is it the right file?")
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            raise SettingsError(f"{path}: is no UTF-8 text, from byte {error.start} on") from None
        found = loads(text, path)
        _check(found, path)
        return signature, found

    def _signature(self, path: str) -> Signature:
        found = self.system.stat(path)
        return found.st_ino, found.st_mtime_ns, found.st_size

    @contextlib.contextmanager
    def _locked(self, directory: str, wait_s: float) -> Generator[None]:
        """Have *directory* locked against others of ours, where it can be; the kernel unlocks for who dies."""
        system = self.system
        fd = system.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        until_ns = system.boottime_ns() + int(wait_s * 1e9)
        try:
            while True:
                try:
                    system.lock(fd)
                    break
                except BlockingIOError:
                    if system.boottime_ns() >= until_ns:
                        raise
                    system.sleep(LOCK_LOOK_S)
                except OSError as error:
                    if error.errno not in NO_LOCK:
                        raise
                    break
            yield
        finally:
            system.close(fd)


def whole(settings: Mapping[str, Value], name: str) -> int:
    """The whole number that the setting *name* is."""
    value = settings[name]
    assert isinstance(value, int)  # noqa: S101 - settings are checked when they are read
    return value


def _over(below: Mapping[str, Value], above: Mapping[str, Value]) -> dict[str, Value]:
    """*below*, overridden by what *above* sets; null sets nothing."""
    return {**below, **{key: value for key, value in above.items() if value is not None}}


def _check(settings: Mapping[str, Value], path: str) -> None:
    """Raise SettingsError when a known setting has a value that it cannot have. Others are left alone."""
    for key, value in settings.items():
        if value is None:
            continue
        if key == "requeue" and not isinstance(value, bool):
            raise SettingsError(f"{path}: requeue is {value!r}, but must be true or false")
        if key in WHOLE and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
            raise SettingsError(f"{path}: {key} is {value!r}, but must be a whole number, 0 or more")
        if key == "cleaned" and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise SettingsError(f"{path}: cleaned is {value!r}, but must be a time in seconds; 0 is never")
