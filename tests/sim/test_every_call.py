"""
test_every_call - every operation with each of its calls failed once, failed from there on, or never made

pytest -s prints how much was tried. See every_call (the loop), operations (the table).
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.sim.every_call import Counts
from tests.sim.operations import OPERATIONS, fail_calls_of
from workers.queues.base import Kept
from workers.queues.directory import Directory
from workers.queues.spool import Spool
from workers.queues.spool_keep import Death, SpoolKeeper
from workers.queues.spool_put import Producer


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """A warning for each failure would be most of what this takes."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(name="counted", scope="module")
def _counted() -> Iterator[list[Counts]]:
    counted: list[Counts] = []
    yield counted
    sys.stdout.write(f"\n{sum(counted, Counts())}\n")


@pytest.mark.parametrize("network", [None, "nfs"], ids=["local", "nfs"])
@pytest.mark.parametrize("name", OPERATIONS, ids=lambda name: name.replace(",", "").replace(" ", "-"))
def test_an_operation_survives_every_call_that_fails(name, network, counted):
    """And has its effect once when it is tried again; and after a crash at any call others find everything."""
    counts = fail_calls_of(name, network)
    assert counts.calls > 0
    counted.append(counts)


# ---- what the loop is for: each of these breaks one promise, and is found


def _bare(self, owner, cause, note=""):
    self._release(Death(owner, cause, note), Kept())


def _reads_and_forgets(self, path):
    fd = self.system.open(path, os.O_RDONLY)
    found = self.system.read(fd, 65536).decode()
    self.system.close(fd)
    return found


def _done_whatever_comes(self, claim):
    self.close_claim(claim)
    with suppress(OSError):
        self.system.unlink(claim.path)


def _forgets_leftovers(self, file):
    pass


def _by_way_of_tmp(self, path, name, *, durable):
    file = self._tokens.name(self._host)
    self._rename(path, self._directory.tmp, file)
    self._rename(f"{self._directory.tmp}/{file}", self._directory.incoming, file)
    return file


def _in_sight(self, body, *_):
    file = self._tokens.name(self._host)
    self._directory.write_file(f"{self._directory.incoming}/{file}", body, durable=True)
    return file


def _replaces(self, source, target, name):
    self._system.rename(source, target)
    return True


@pytest.mark.parametrize(
    ("broken", "name", "why"),
    [
        ((SpoolKeeper, "release_owner", _bare), "release_owner died", "OSError"),
        ((Directory, "_read", _reads_and_forgets), "open", "still open"),
        ((Spool, "done", _done_whatever_comes), "done", "pending"),
        ((Spool, "_give_back", _forgets_leftovers), "claim", "nobody finds it again"),
        ((Producer, "_put_file", _by_way_of_tmp), "put_file", "the only copy is lost"),
        ((Producer, "put", _in_sight), "put", "OSError"),
        ((Producer, "_link", _replaces), "put named", "was put again"),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else value[1],
)
def test_a_broken_promise_is_found(monkeypatch, broken, name, why):
    monkeypatch.setattr(*broken)
    with pytest.raises(AssertionError, match=why):
        fail_calls_of(name, None)
