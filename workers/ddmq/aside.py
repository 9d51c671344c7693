"""
aside - messages that are none: moved out of the queue to ROOT/QUEUE.pool/errors/

A file that is no JSON object, a symbolic link or a device would stand at the head of the
queue for ever. It is moved as it is; FILE.meta beside it says why.

Next to the queue, never inside: other programs take whatever is called *.ddmq* for a message.
See also: claims, broker (who find such files).
"""

from __future__ import annotations

import json
import logging
import os
from datetime import UTC, datetime

from workers.ddmq.files import QueueFiles

log = logging.getLogger(__name__)


def errors_of(files: QueueFiles) -> str:
    """The directory for what is no message."""
    return f"{files.path}.pool/errors"


def set_aside(files: QueueFiles, path: str, reason: str) -> bool:
    """
    Move the file *path* of the queue to errors/, with *reason*; False when it was gone. Logs a warning.

    Raises OSError, the file being where it was.
    """
    system, name = files.system, os.path.basename(path)
    for directory in (f"{files.path}.pool", errors_of(files)):
        try:
            system.mkdir(directory)
        except FileExistsError:
            continue
    target = f"{errors_of(files)}/{name}"
    try:
        try:
            files.move_once(path, target)
        except FileExistsError:  # another of that name was set aside before
            target = f"{target}.{system.random_bytes(4).hex()}"
            files.move_once(path, target)
    except FileNotFoundError:
        return False
    log.warning("%s: set aside as %s: %s", path, target, reason)
    try:
        rejected_at = datetime.fromtimestamp(files.now_s(), UTC).isoformat()
        text = json.dumps({"name": name, "reason": reason, "rejected_at": rejected_at}, sort_keys=True, indent=4)
        temporary = files.write_temporary(text.encode(), durable=False)
        try:
            system.rename(temporary, f"{target}.meta")
        except OSError:
            files.forget(temporary)
            raise
    except OSError as error:
        log.warning("%s.meta could not be written: %s", target, error)
    return True
