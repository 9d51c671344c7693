"""The shapes of names: what is read back as written, and what only looks like it."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.rig import FakeSystem, World
from workers.errors import InvalidName
from workers.queues import names

TOKEN = "0123456789ab" + "00002a"
FILE_NAMES = (
    st.binary(min_size=1, max_size=255)
    .filter(lambda raw: b"/" not in raw and b"\0" not in raw and raw not in (b".", b".."))
    .map(os.fsdecode)
)


@pytest.fixture(name="system")
def _system(tmp_path):
    return FakeSystem(World(tmp_path), 4711)


@given(name=FILE_NAMES, attempts=st.integers(0, 9999), crashes=st.integers(0, 9999))
def test_a_mark_is_read_back_as_it_was_written(name, attempts, crashes):
    token = TOKEN + names.check(name)
    file = names.marked(attempts, crashes, token, name)
    assert names.parse(file) == names.Marked(attempts, crashes, token, name)
    assert names.parse_due(f"1700000000.{file}") == (1700000000, names.parse(file))


@given(file=FILE_NAMES)
def test_any_name_is_taken_apart_without_an_error_and_shown_in_printable_characters(file):
    assert names.parse(file).name
    assert names.shown(file).isprintable() or not names.shown(file)
    names.parse_due(file), names.parse_owner(file), names.parse_lease(file), names.enqueued_at(file)


@given(name=FILE_NAMES)
def test_a_shortened_name_fits_and_is_shortened_once(name):
    short = names.shortened(name, "0123456789abcdef")
    assert len(os.fsencode(short)) <= names.NAME_BYTES_MAX
    assert names.shortened(short, "f" * 16) == short
    assert (short == name) == (len(os.fsencode(name)) <= names.NAME_BYTES_MAX)


@pytest.mark.parametrize(
    "file",
    [
        "t0c0-~x",
        "t0c0-0123456789ab00002aFFFF~x",
        "t00c0-",
        "t0c0",
        "T0c0-",
        "t0c0-0123456789ab00002a0000~x",
        "t10000c0-",
    ],
)
def test_a_look_alike_of_a_mark_is_a_name(file):
    assert names.parse(file) == names.Marked(0, 0, "", file)


def test_a_mark_with_nothing_behind_it_is_a_name():
    file = f"t0c0-{TOKEN}{names.check('')}~"
    assert names.parse(file).name == file


def test_counts_stop_where_their_digits_end():
    token = TOKEN + names.check("x")
    mark = names.parse(names.marked(12345, 99999, token, "x"))
    assert (mark.attempts, mark.crashes) == (9999, 9999)


def test_tokens_and_names_never_repeat_not_even_after_a_fork_or_a_full_counter(system):
    tokens = names.Tokens(system)
    seen = {tokens.token("x") for _ in range(1000)}
    first = tokens._random
    system.pid = 4712
    seen |= {tokens.token("x") for _ in range(1000)}
    assert tokens._random != first
    first = tokens._random
    tokens._counter = names.COUNTER_MAX - 1
    seen |= {tokens.token("x") for _ in range(1000)}
    assert tokens._random != first
    assert len(seen) == 3000
    assert all(names.parse(names.marked(0, 0, token, "x")).token == token for token in seen)


def test_names_of_ours_are_known_and_carry_their_time(system):
    name = names.Tokens(system).name("host.example.org")
    assert names.is_ours(name)
    assert names.is_unique(name)
    assert abs((names.enqueued_at(name) or 0) - system.wall_ns() / 1e9) < 60
    assert len(name) <= names.NAME_BYTES_MAX


@pytest.mark.parametrize("name", ["report.csv", "1700000000.M1P1Q1R0.h", "a.1.2.3.4.5.txt", "1.2.3.4.5.msg"])
def test_a_name_of_no_such_shape_is_not_unique(name):
    assert not names.is_unique(name)


def test_masters_and_owners_are_read_back(system):
    master = names.master_name("host-1.example_org", system)
    assert names.parse_master(master) == ("host-1.example_org", system.kernel8("host-1.example_org"), 4711, 4712)
    assert names.parse_lease(f"{master}.17") == (master, 17)
    owner = names.parse_owner(names.owner_name(master, 3, system))
    assert owner is not None
    assert (owner.master, owner.index, owner.pid, owner.start) == (master, 3, 4711, 4712)
    assert names.parse_owner(master) is None
    assert names.owner_name(master, 3, system) != names.owner_name(master, 3, system)
    longest = names.owner_name(names.master_name("h" * 64, system), 999999, system)
    assert len(longest) < 200


@pytest.mark.parametrize("host", ["", "a b", "h" * 65, "a/b", "h\n", "\N{GREEK SMALL LETTER ALPHA}"])
def test_a_host_that_cannot_stand_in_a_name_is_refused(system, host):
    with pytest.raises(InvalidName, match="host"):
        names.master_name(host, system)
