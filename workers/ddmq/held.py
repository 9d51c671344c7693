"""
held - which messages a pool has in hand, as it says beside the queue

A pool loses nothing, whatever the *requeue* of a message says: what one of its workers had
in hand when it was killed waits again, as it was. So says the pool's keeper, and so must a
cleaning of ours that comes first.

    QUEUE.pool/held/OWNER   begins with the name under which the message waited
    QUEUE.pool/tmp/         where a record is while its keeper gives back what it speaks of

Raises: OSError; where a record cannot be read nobody knows what may be removed.
Limits: a pool with a state_dir keeps its records elsewhere, and its messages are as any other.
See also: broker.clean.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from workers.ddmq.files import OPEN_BODY, QueueFiles

LINE_MAX = 256  # bytes; a name has no more
NO_RECORD = frozenset({errno.ENOENT, errno.ELOOP, errno.ENXIO})  # gone, a symbolic link, a socket
# ORDER: held/ twice, for a release that fails puts its record back there while tmp/ is looked at.
# See test_a_record_that_goes_and_comes_back_meanwhile_is_found.
PLACES = ("held", "tmp", "held")


def in_hand(files: QueueFiles) -> set[bytes]:
    """The names under which what pools have, or had when they were killed, has waited."""
    found: set[bytes] = set()
    for place in PLACES:
        directory = f"{files.path}.pool/{place}"
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for name in files.system.listdir(directory):
                found.add(_first_word(files, os.path.join(directory, name)))
    return found


def _first_word(files: QueueFiles, path: str) -> bytes:
    """That of the first line of the file *path*; b"" where there is none."""
    system = files.system
    try:
        fd = system.open(path, OPEN_BODY)
    except OSError as error:
        if error.errno in NO_RECORD:
            return b""
        raise
    try:
        line = system.read(fd, LINE_MAX).partition(b"\n")[0] if stat.S_ISREG(system.fstat(fd).st_mode) else b""
    finally:
        system.close(fd)
    return next(iter(line.split()), b"")
