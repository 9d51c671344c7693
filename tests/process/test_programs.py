"""test_programs - what a program of a real pool is given: exactly what is said, and nothing of the pool's own"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.process.pools import Pools, drop
from workers import Message

TELLS = """
import json, os, signal, sys
environment = dict(os.environ)
told = {
    "descriptors": sorted(map(int, os.listdir("/proc/self/fd"))),
    "stdin": os.readlink("/proc/self/fd/0"),
    "directory": os.getcwd(),
    "umask": os.umask(0),
    "is_in_session_of_parent": os.getsid(0) == os.getppid(),
    "leads_group": os.getpgrp() == os.getpid(),
    "terminal": int(open("/proc/self/stat").read().rpartition(")")[2].split()[4]),
    "blocked": list(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
    "environment": environment,
    "arguments": sys.argv[1:],
}
json.dump(told, open(os.environ["JOURNAL"] + "/told", "w"))
"""


def inherit(message: Message) -> None:
    """A handler whose program inherits all that can be inherited."""
    listed = subprocess.run(["ls", "/proc/self/fd"], close_fds=False, stdout=subprocess.PIPE, check=True)
    Path(os.environ["JOURNAL"], "inherited").write_bytes(listed.stdout)


def test_a_program_has_the_environment_of_the_pool_and_no_descriptor_or_terminal_of_it(
    pools: Pools, queue: Path
) -> None:
    """With all there is to leak: control socket, pid file, exporter, board, the pipes of feeder and keeper."""
    drop(queue, "LD_PRELOAD=x.so")
    pool = pools.start(
        str(queue), "--workers", "2", "--until-empty", "--", sys.executable, "-c", TELLS, "{name}", "-{name}",
        listen="127.0.0.1:0", environment={"LC_ALL": "C.UTF-8"},
    )  # fmt: skip
    assert pool.wait() == 0, pool.log
    umask = os.umask(0)
    os.umask(umask)
    assert json.loads((pools.journal_path / "told").read_text()) == {
        "descriptors": [0, 1, 2, 3],  # the last one is the directory that is listed
        "stdin": "/dev/null",
        "directory": str(pool.place),
        "umask": umask,
        "is_in_session_of_parent": True,
        "leads_group": True,
        "terminal": 0,
        "blocked": [],
        "environment": pools.environment() | {"LC_ALL": "C.UTF-8"},
        "arguments": ["LD_PRELOAD=x.so", "-LD_PRELOAD=x.so"],
    }


def test_not_even_a_program_that_a_handler_lets_inherit_everything_has_a_descriptor_of_the_pool(
    pools: Pools, queue: Path
) -> None:
    drop(queue, "m")
    pool = pools.start(str(queue), "--until-empty", "--handler", f"{__name__}:inherit", listen="127.0.0.1:0")
    assert pool.wait() == 0, pool.log
    assert (pools.journal_path / "inherited").read_text().split() == ["0", "1", "2", "3"]
