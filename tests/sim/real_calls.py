"""
real_calls - puts, claims and settles of real processes, for somebody who traces them

    python -m tests.sim.real_calls DIRECTORY

DIRECTORY holds the queues q and n, and a file "from/file". Says at each moment what is promised (see traced).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.sim.power_cut import ENDING, ERRORS, FORWARDED, THERE
from workers.message import Claim
from workers.queues import spool_put
from workers.queues.base import Queue
from workers.queues.open import open_queue


def say(what: str, *bodies: bytes) -> None:
    """One call for each."""
    for body in bodies:
        os.write(1, (b"body " if not what else b"promise %s: " % what.encode()) + body + b"\n")


def claimed(queue: Queue) -> tuple[Claim, bytes]:
    """The next message, whatever it is, and its body."""
    while (claim := queue.claim()) is None:
        queue.wait(0.1)
    return claim, os.pread(claim.fd, 100, 0)


def main(directory: Path) -> None:
    """All of it once."""
    queue, following = open_queue(str(directory / "q"), consume=True), open_queue(str(directory / "n"))
    for body, name, delay in ((b"plain", None, 0.0), (b"named", "report.csv", 0.0), (b"delayed", None, 100.0)):
        say("", body)
        queue.put(body, name, delay=delay)
        say(THERE, body)
    for least in (spool_put.BATCH_MIN, 2):  # each file is synced, then all at once
        spool_put.BATCH_MIN = least
        bodies = [b"many %d %d" % (least, number) for number in range(3)]
        say("", *bodies)
        queue.put_many(bodies)
        say(THERE, *bodies)
    say("", b"file")
    queue.put_file(directory / "from" / "file")  # type: ignore[attr-defined]
    say(THERE, b"file")
    for _ in range(2):
        claim, body = claimed(queue)
        queue.reject(claim, "a reason")
        say(ERRORS, body)
        claim, body = claimed(queue)
        queue.forward(claim, following)
        say(FORWARDED, body)
    claim, body = claimed(queue)
    say("", b"anew")
    say(ENDING, body)
    queue.forward(claim, following, [b"anew"])
    say(FORWARDED, b"anew")
    claim, body = claimed(queue)
    say(ENDING, body)
    queue.done(claim)
    claim, body = claimed(queue)
    queue.retry(claim)
    queue.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
