"""
ddmq - the dead drop messaging queue: programs that share messages through a directory, without a server

A program that used the package of that name goes on working with these names::

    from workers import ddmq

    b = ddmq.broker("/var/spool/ddmq", create=True)
    b.publish(queue="tasks", msg_text="a text")
    message = b.consume(queue="tasks")

See also: broker, message (the classes), settings (ddmq.yaml), files (what is on disk).
"""

import errno
import os
import shutil
import sys

from workers.ddmq.broker import Broker, broker
from workers.ddmq.errors import CorruptError, DdmqError, SettingsError
from workers.ddmq.message import Message, message

__all__ = [
    "Broker",
    "CorruptError",
    "DdmqError",
    "Message",
    "SettingsError",
    "broker",
    "get_bin_path",
    "get_ddmq_bin_path",
    "message",
]

VERSION = "0.9.14"  # of the interface and the format


def get_bin_path() -> str:
    """The path of the program whose command ``ddmq`` is the command line. Raises FileNotFoundError, saying why."""
    beside = os.path.dirname(sys.executable)
    found = shutil.which("orchestrator", path=os.pathsep.join([beside, os.environ.get("PATH", os.defpath)]))
    if found is None:
        text = "is not installed: pip install spool-orchestrator, or run python -m orchestrator ddmq"
        raise FileNotFoundError(errno.ENOENT, text, os.path.join(beside, "orchestrator"))
    return found


get_ddmq_bin_path = get_bin_path
