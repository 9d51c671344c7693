"""
holder - namespaces for one test, held by a process: they are gone with it, even when pytest is killed
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def held(what: str, *namespaces: str, script: str = "", arguments: tuple[str, ...] = ()) -> Iterator[int]:
    """
    Make *namespaces* (mount, net), run *script* of a shell with *arguments* in them, and hold them; the holder's pid.

    Where that cannot be, the test skips: there is no *what* here, and why.
    """
    wanted = [f"--{namespace}" for namespace in namespaces]
    text = f"set -e\n{script}\necho ready\nexec cat\n"
    try:
        holder = subprocess.Popen(
            ["unshare", *wanted, "sh", "-c", text, "sh", *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
    except FileNotFoundError:
        pytest.skip(f"there is no {what} here: unshare is not installed")
    with holder:  # its end closes the pipes, and the end of its input ends it
        assert holder.stdout is not None
        assert holder.stderr is not None
        if holder.stdout.readline() != b"ready\n":
            pytest.skip(f"there is no {what} here: {holder.stderr.read().decode().strip()[-200:]}")
        yield holder.pid
