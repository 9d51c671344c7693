"""Lines that could be broken without any test noticing, until these (see tests/mutations.py)."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.rig import LOOKS, Rig, World
from workers.errors import QueueUnavailable
from workers.queues import names


def tokens(files: list[str]) -> set[str]:
    return {names.parse(file.partition(".")[2] if file[0].isdigit() else file).token for file in files}


def test_what_a_keeper_gives_back_has_a_fresh_token(rig):
    pool = rig.pool()
    pool.spool.put(b"x", "mine")
    claim = pool.claim()
    pool.keeping.release_owner(pool.forget_owner(), "stopped")
    assert claim.token not in tokens(rig.files("incoming")) - {""}
    assert tokens(rig.files("incoming")) != {""}


def test_what_is_due_has_a_fresh_token(rig):
    pool = rig.pool()
    pool.spool.put(b"x", delay=1)
    before = tokens(rig.files("deferred"))
    assert pool.rounds(3).due == 1
    assert len(before | tokens(rig.files("incoming")) - {""}) == 2


def test_files_that_two_handlers_left_under_one_name_are_both_kept(rig):
    pool = rig.pool()
    for body in (b"one", b"two"):
        pool.spool.put(b"input")
        claim = pool.claim()
        Path(claim.path).with_name("core").write_bytes(body)
        pool.spool.done(claim)
        pool.spool.settle_leftovers()
    assert rig.everything() == {"errors": [b"one", b"two"]}


def test_what_was_removed_while_somebody_had_it_open_is_left_in_its_place(rig):
    """A client of NFS keeps it under such a name; to move it would bring a finished message back."""
    pool = rig.pool()
    pool.spool.put(b"x")
    claim = pool.claim()
    (Path(claim.path).parent / ".nfs0001").write_bytes(b"finished")
    pool.spool.done(claim)
    pool.spool.settle_leftovers()
    pool.keeping.release_owner(pool.forget_owner(), "died")
    assert rig.everything() == {"pending": [b"finished"]}


@pytest.mark.parametrize("durable", [True, False])
def test_a_file_that_is_there_is_never_written_into(rig, durable, monkeypatch):
    spool = rig.spool()
    monkeypatch.setattr(spool.tokens, "name", lambda host: "again")
    (rig.path / "tmp" / "again.tmp").write_bytes(b"another's")
    with pytest.raises(QueueUnavailable):
        spool.put(b"x", durable=durable)
    assert rig.everything() == {"tmp": [b"another's"]}


def test_a_lease_that_was_beaten_since_the_last_look_is_not_removed(rig):
    """The master comes back while the directory of its dead worker is given back."""
    one, two = rig.pool("one"), rig.pool("two")
    one.spool.put(b"x")
    one.claim()
    two.rounds(LOOKS)

    def beat_between(call: str, arguments: tuple[object, ...]) -> None:
        if call == "rmdir":
            one.keeper.lease.beat()

    two.keeper_system.before = beat_between
    assert two.rounds().lease_lost == 1
    left = [names.parse_lease(file) for file in os.listdir(rig.path / ".pool" / "leases")]
    assert (one.master, 2) in left


def test_a_put_and_a_claim_whose_replies_were_lost_have_happened(tmp_path):
    """Or the one would say "unknown", and the other leave the message to its next look at what is left."""
    pool = Rig(tmp_path / "queue", World(tmp_path), network="nfs").pool()

    def lose_reply(call: str, arguments: tuple[object, ...]) -> None:
        if call == "rename":
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))

    pool.system.after = lose_reply
    name = pool.spool.put(b"x")
    assert pool.claim().name == name
