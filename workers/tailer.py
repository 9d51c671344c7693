"""
tailer - a component that follows a text file, and makes an event of each line

    FileTailer("/var/log/site.log")             the event "line" with {"path": ..., "line": ...}

A line is what ends with a newline, given without it, as UTF-8 with surrogateescape: its bytes are
line.encode("utf-8", "surrogateescape"). Only whole lines are events; of one longer than line_bytes_max
the first bytes are, with a mark. What the file already holds is passed over, unless from_beginning.

The file may be away, come later, be renamed with another in its place (the old one is read for linger_s
more, then the new one), or be cut to nothing and written again (copytruncate). Files are told apart by
device, inode and their first bytes. The last line of a file that is over counts as whole.

No line is read before the event line is empty: those before it were handled, and all that they scheduled but for
timers. So a slow daemon holds no more than READ_BYTES of them, and the position in position_file is behind nothing
that is not done. The next start goes on there, in a file that was renamed meanwhile too (looked for beside it, by
its inode); after a crash the lines since then come again.

Raises: ZenDaemonComponentException from setup() for what is no regular file, and for a position_file that cannot
be believed. Later the like is logged once, and looked at again and again.
Limits: one process follows a file, so workers = 1. Lost is what the file's own writer or rotation loses: what is
written between the copy and the truncation, two rotations within one interval_s, what comes to a renamed file after
linger_s. A file that is truncated and outgrows the old one within one interval with the same first bytes is taken
for the old one. An event that schedules itself in line for ever keeps more from being read. A read from a dead
network filesystem blocks.
Long because: the life of one file, renamed, cut, found again, is one story.
See also: components, COMPONENTS.md.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from workers.components import Daemon, ZenDaemonComponent, ZenDaemonComponentException
from workers.queues.names import shown
from workers.saved import SavedError, load, save

READ_BYTES = 65_536  # at one time
HEAD_BYTES = 256  # so many first bytes tell one file from another that has its inode
FILES_MAX = 16  # renamed one after the other faster than they can be read; more wait in their place


class _File:
    """A file that is open, and what there is of the line in it that is not whole yet."""

    def __init__(self, fd: int, offset: int, head: bytes) -> None:
        self.fd, self.offset, self.head = fd, offset, head
        self.identity = _identity(os.fstat(fd))
        self.until_s: float | None = None  # is read until then; None while it has its name
        self.part, self.part_bytes = b"", 0

    def is_another(self) -> bool:
        """Whether it was cut to less than was read of it, or written anew."""
        return os.fstat(self.fd).st_size < self.offset or os.pread(self.fd, len(self.head), 0) != self.head

    def rewind(self) -> None:
        """Read from the beginning, of what is another file now."""
        self.offset, self.head = 0, b""

    def read(self, line_bytes_max: int) -> tuple[int, list[tuple[bytes, int]]]:
        """Read on: how many bytes came, and each line that is whole now, cut, with its size."""
        data = os.pread(self.fd, READ_BYTES, self.offset)
        if self.offset == len(self.head) < HEAD_BYTES:
            self.head += data[: HEAD_BYTES - len(self.head)]
        self.offset += len(data)
        *ends, rest = data.split(b"\n")
        lines = []
        for end in ends:
            self._add(end, line_bytes_max)
            lines.append(self.take_part())
        self._add(rest, line_bytes_max)
        return len(data), lines

    def take_part(self) -> tuple[bytes, int]:
        """What there is of the line, and its size; the next one begins."""
        found = self.part, self.part_bytes
        self.part, self.part_bytes = b"", 0
        return found

    def _add(self, more: bytes, line_bytes_max: int) -> None:
        self.part += more[: max(0, line_bytes_max - len(self.part))]
        self.part_bytes += len(more)


class FileTailer(ZenDaemonComponent):
    """
    Follow *path*; see the header.

    Args:
        event: what a line is called.
        interval_s: how often the file is looked at.
        position_file: where to keep how far the lines were handled; None: nowhere.
        from_beginning: whether what a file holds when it is seen for the first time, at the start, is wanted.
        line_bytes_max: of a longer line only so many bytes are kept.
        linger_s: how long a renamed file is read on.
    """

    def __init__(
        self,
        path: str,
        event: str = "line",
        *,
        interval_s: float = 0.25,
        position_file: str | None = None,
        from_beginning: bool = False,
        line_bytes_max: int = 1_048_576,
        linger_s: float = 2.0,
    ) -> None:
        super().__init__()
        if not interval_s > 0 or line_bytes_max < 1:
            raise ZenDaemonComponentException("interval_s and line_bytes_max of a FileTailer are more than 0")
        self.path = os.path.abspath(path)
        self.event = event
        self.interval_s, self.linger_s = interval_s, linger_s
        self.position_file = None if position_file is None else Path(os.path.abspath(position_file))
        self.from_beginning = from_beginning
        self.line_bytes_max = line_bytes_max
        self._files: deque[_File] = deque()  # the one that is read, and those that came to its name after it
        self._is_reading = False
        self._saved: dict[str, object] = {}
        self._troubles: dict[str, str] = {}  # what was logged last: of the name, the file, the position
        # Names of its own: a daemon may have several of these.
        self._look, self._read, self._end = (f"{word} {self.path} for {event}" for word in ("look at", "read", "leave"))

    def get_events(self) -> Sequence[Mapping[str, object]]:
        """See ZenDaemonComponent."""
        return [
            self.gen_event_handler("start", self.cbk_event_start),
            self.gen_event_handler(self._look, self.cbk_event_look),
            self.gen_event_handler(self._read, self.cbk_event_read),
            self.gen_event_handler("stop", self.cbk_event_stop),
            self.gen_event_handler(self._end, self.cbk_event_end),
        ]

    def setup(self, daemon: Daemon) -> None:
        """Find the place to begin at."""
        saved = self._loaded()
        try:
            fd = self._opened(self.path)
        except FileNotFoundError:
            fd = -1
        except OSError as error:
            raise ZenDaemonComponentException(f"{shown(self.path)}: {error.strerror}") from error
        if saved is None:
            if fd >= 0:
                self._files.append(_File(fd, *((0, b"") if self.from_beginning else _end_of(fd))))
            return
        inode, offset, head = saved
        if fd >= 0 and os.fstat(fd).st_ino == inode:
            self._files.append(_File(fd, offset, head))
            return
        renamed = self._renamed(inode, offset, head)
        if renamed is not None:
            renamed.until_s = self.clock() + self.linger_s
            self._files.append(renamed)
        else:
            daemon.logger.warning("%s was replaced, and the file before is nowhere beside it", shown(self.path))
        if fd >= 0:
            self._files.append(_File(fd, 0, b""))

    def setup_dump(self, daemon: Daemon) -> None:
        """See ZenDaemonComponent."""
        daemon.logger.debug("following %s: %s", shown(self.path), self.get_state())

    def get_state(self) -> dict[str, object]:
        """See ZenDaemonComponent."""
        files = [{"inode": file.identity[1], "offset": file.offset, "held": file.part_bytes} for file in self._files]
        return {
            **super().get_state(),
            "path": self.path,
            "event": self.event,
            "files": files,
            "troubles": self._troubles,
        }

    # ---- callbacks

    def cbk_event_start(self, daemon: Daemon, args: object) -> tuple[int, object]:
        """Begin to look."""
        daemon.every(self.interval_s, self._look)
        return self.cbk_event_look(daemon, args)

    def cbk_event_look(self, daemon: Daemon, args: object) -> tuple[int, object]:
        """Have the file read when what waits in line has been handled."""
        if not self._is_reading:
            self._is_reading = True
            daemon.queue.schedule_last(self._read)
        return daemon.FLAG_CONTINUE, args

    def cbk_event_read(self, daemon: Daemon, args: object) -> tuple[int, object]:
        """Make events of the next lines, at most READ_BYTES of them."""
        # ORDER: the position, then more lines. The line is empty: those before have been handled, and all that they
        # led to. Those read now have not. See test_a_line_is_handled_again_after_a_crash_rather_than_never.
        self._save_position(daemon)
        self._is_reading = False
        if not daemon.is_done():
            self._tried(daemon, "name", self._look_for_others)  # whatever is there now, the old file is read on
            self._is_reading = self._tried(daemon, "file", self._read_on)
        if self._is_reading:
            daemon.queue.schedule_last(self._read)
        return daemon.FLAG_CONTINUE, args

    def cbk_event_stop(self, daemon: Daemon, args: object) -> tuple[int, object]:
        """Read no more, and remember the place when the lines in line, and what they led to, have been handled."""
        daemon.queue.schedule_last(self._end)
        return daemon.FLAG_CONTINUE, args

    def cbk_event_end(self, daemon: Daemon, args: object) -> tuple[int, object]:
        """Remember the place, and let go."""
        self._save_position(daemon)
        while self._files:
            os.close(self._files.popleft().fd)
        return daemon.FLAG_CONTINUE, args

    # ---- reading

    def _tried(self, daemon: Daemon, what: str, do: Callable[[Daemon], bool]) -> bool:
        """What *do* answers, or False in trouble."""
        try:
            is_more = do(daemon)
        except OSError as error:
            self._log_trouble(daemon, what, f"{shown(self.path)}: {error.strerror}")
            return False
        self._troubles.pop(what, None)
        return is_more

    def _read_on(self, daemon: Daemon) -> bool:
        """Make events of what is there; whether there may be more at once."""
        if not self._files:
            return False
        file = self._files[0]
        if file.is_another():
            self._emit_rest(daemon, file)
            file.rewind()
            daemon.logger.info("%s was truncated or written anew", shown(self.path))
            self.inc_statistic("cnt_truncated")
        count, lines = file.read(self.line_bytes_max)
        for line, size in lines:
            self._emit(daemon, line, size)
        if count:
            self.inc_statistic("cnt_bytes", count)
            return True
        if file.until_s is None or self.clock() < file.until_s:
            return False
        self._emit_rest(daemon, file)
        os.close(self._files.popleft().fd)
        self.inc_statistic("cnt_rotated")
        return True

    def _emit_rest(self, daemon: Daemon, file: _File) -> None:
        """The file is over, and so is the line."""
        if file.part_bytes:
            self._emit(daemon, *file.take_part())

    def _emit(self, daemon: Daemon, line: bytes, size: int) -> None:
        text = line.decode("utf-8", "surrogateescape")
        if size > len(line):
            self.inc_statistic("cnt_cut")
            text += f" [cut: {size} bytes]"
        self.inc_statistic("cnt_lines")
        daemon.queue.schedule(self.event, {"path": self.path, "line": text})

    # ---- files

    def _look_for_others(self, _daemon: Daemon) -> bool:
        """Open what has come to the file's name; whether it did."""
        last = self._files[-1] if self._files else None
        try:
            identity = _identity(os.stat(self.path))
        except FileNotFoundError:
            # While it has another name it may get this one back.
            if last is not None and last.until_s is None and not os.fstat(last.fd).st_nlink:
                last.until_s = self.clock() + self.linger_s
            return False
        if last is not None and last.identity == identity:
            last.until_s = None
            return False
        if len(self._files) == FILES_MAX:
            return False
        file = _File(self._opened(self.path), 0, b"")
        if last is not None:
            last.until_s = self.clock() + self.linger_s
        self._files.append(file)
        return True

    def _opened(self, path: str) -> int:
        """Open a regular file. Raises OSError, of which ENOTSUP is what is something else."""
        # RACE: the name may be given to something else in between, so a fifo must not hold open() up, and what
        # was opened is looked at again. See test_what_is_no_regular_file_is_refused_even_when_it_came_in_between.
        _check_regular(os.stat(path))
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            _check_regular(os.fstat(fd))
        except OSError:
            os.close(fd)
            raise
        return fd

    def _renamed(self, inode: int, offset: int, head: bytes) -> _File | None:
        """Find the file that *path* was when its position was saved."""
        directory, name = os.path.split(self.path)
        try:
            with os.scandir(directory) as entries:
                found = [entry.path for entry in entries if entry.inode() == inode and entry.name.startswith(name)]
        except FileNotFoundError:
            return None
        for path in found:
            try:
                file = _File(self._opened(path), offset, head)
            except OSError:
                continue
            if not file.is_another():
                return file
            os.close(file.fd)
        return None

    # ---- the position

    def _save_position(self, daemon: Daemon) -> None:
        """Remember that all lines before the one in hand have been handled."""
        if self.position_file is None or not self._files:
            return
        file = self._files[0]
        offset = file.offset - file.part_bytes
        saved = {"path": self.path, "inode": file.identity[1], "offset": offset, "head": file.head[:offset].hex()}
        if saved != self._saved:
            try:
                save(self.position_file, saved)
                self._saved = saved
                self._troubles.pop("position", None)
            except SavedError as error:
                self._log_trouble(daemon, "position", str(error))

    def _loaded(self) -> tuple[int, int, bytes] | None:
        """Inode, offset and first bytes of the saved position; None when there is none."""
        if self.position_file is None or not os.path.lexists(self.position_file):
            return None
        try:
            match load(self.position_file):
                case {"path": self.path, "inode": int(inode), "offset": int(offset), "head": str(head)} if offset >= 0:
                    return inode, offset, bytes.fromhex(head)
        except (SavedError, ValueError) as error:
            raise ZenDaemonComponentException(f"{error}; remove it to begin without") from error
        raise ZenDaemonComponentException(
            f"{shown(str(self.position_file))} holds no position in {shown(self.path)}; remove it to begin without"
        )

    def _log_trouble(self, daemon: Daemon, what: str, text: str) -> None:
        if text != self._troubles.get(what):
            daemon.logger.warning("%s; trying again", text)
        self._troubles[what] = text


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _check_regular(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = {stat.S_IFDIR: "directory", stat.S_IFIFO: "fifo", stat.S_IFSOCK: "socket"}.get(
            stat.S_IFMT(found.st_mode)
        )
        raise OSError(errno.ENOTSUP, f"it is a {kind or 'device'}, and only a regular file can be followed")


def _end_of(fd: int) -> tuple[int, bytes]:
    """The offset behind the last whole line, and the first bytes of the file."""
    size = os.fstat(fd).st_size
    start = max(0, size - READ_BYTES)
    tail = os.pread(fd, size - start, start)
    # A line longer than that is passed over up to here.
    offset = start + tail.rfind(b"\n") + 1 if b"\n" in tail or not start else size
    return offset, os.pread(fd, min(offset, HEAD_BYTES), 0)
