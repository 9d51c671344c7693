"""
test_ddmq_settings - ddmq.yaml without a YAML library: read as PyYAML reads, written as it writes

The peer is PyYAML, where it is installed. See also: test_ddmq_faults (Q10, Q16, Q26).
"""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.ddmq import Broker, SettingsError
from workers.ddmq.flat_yaml import dumps, loads
from workers.ddmq.settings import DEFAULTS, SettingsFiles
from workers.system import SYSTEM

yaml = pytest.importorskip("yaml", reason="PyYAML, the peer, is not installed")

MADE = "cleaned: 0\nmessage_timeout: 600\npriority: 999\nrequeue: true\nrequeue_prio: 0\n"
# PyYAML folds text at spaces beyond column 80, and writes several lines as several.
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\n\x85\u2028\u2029"), max_size=12)
HARD = st.text(st.sampled_from(": #'\"-?.,[]{}&*!|>%@`~0123456789eExoyYnN_+=<T/\\\t"), max_size=6)
WORDS = st.sampled_from(
    ["yes", "No", "NULL", "~", "1e3", "010", "0x1f", "1:30", "2001-01-01", ".5", "+.inf", "=", "<<"]
)
KEYS = st.from_regex(r"\A[A-Za-z_][A-Za-z0-9_.-]*\Z") | st.sampled_from(["yes", "No", "NULL", "off"])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXT | HARD | WORDS


def is_same(ours: object, theirs: object) -> bool:
    is_nan = isinstance(ours, float) and isinstance(theirs, float) and math.isnan(ours) and math.isnan(theirs)
    return is_nan or (type(ours), ours) == (type(theirs), theirs)


def test_the_defaults_are_written_as_the_original_does() -> None:
    assert dumps(DEFAULTS) == MADE
    assert loads(MADE, "x") == DEFAULTS
    assert dumps({}) == yaml.dump({}, default_flow_style=False)
    assert loads("{}\n", "x") == loads("", "x") == {}


@given(st.dictionaries(KEYS, SCALARS, max_size=4))
def test_what_is_written_is_what_pyyaml_writes(settings: dict[str, Any]) -> None:
    # A longer text it folds, also between two escapes, and a longer key it writes with a '?'.
    if all(len(line) <= 80 for line in dumps(settings).splitlines()):
        assert dumps(settings) == yaml.dump(settings, default_flow_style=False)


@given(st.dictionaries(KEYS, SCALARS, max_size=4))
def test_what_is_written_is_read_again(settings: dict[str, Any]) -> None:
    found = loads(dumps(settings), "x")
    assert found.keys() == settings.keys()
    assert all(is_same(found[key], settings[key]) for key in settings)


@given(st.text(st.sampled_from("ab01: #'\"-?.,[]{}&*!|>%@~\\\t\n_e+x"), max_size=12))
def test_nothing_is_read_that_pyyaml_reads_otherwise(text: str) -> None:
    try:
        found = loads(text, "x")
    except SettingsError:
        return
    try:
        theirs = yaml.safe_load(text) or {}
    except yaml.YAMLError:  # a tab where it wants blanks
        return
    assert found.keys() == theirs.keys()
    assert all(is_same(found[key], theirs[key]) for key in found), (found, theirs)


HAND = """\
---
# of the night shift

priority: 5      # urgent
message_timeout:    1_200
requeue:   No
requeue_prio: ~
cleaned: 1538638378.5
note: 'it''s: #1'
other: "a\\tb \\u00e9 \\"x\\""   # said
word: plain text, with commas
empty:
'yes': on
far: -.inf
"""


def test_what_a_hand_writes_is_read_as_pyyaml_reads_it() -> None:
    assert loads(HAND, "x") == yaml.safe_load(HAND)
    assert loads(HAND.replace("\n", "\r\n"), "x") == yaml.safe_load(HAND)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("priority 5", "name: value"), ("  priority: 5", "first column"), ("- priority", "name: value"),
        ("priority: [1, 2]", "quotes"), ("priority: {a: 1}", "quotes"), ("priority: |", "quotes"),
        ("priority: 'open", "closed"), ("priority: 'a' b", "after it"), ("priority: 010", "decimal"),
        ("priority: 0x1f", "decimal"), ("priority: 1:30", "decimal"), ("priority: 2001-01-01", "date"),
        ("priority: &a 5", "quotes"), ("priority: a: b", "quotes"), ('note: "\\q"', "escape"), ("a b: 5", "name"),
        ("priority:5", "name: value"), ("{a: 1}", "name"), ("? a", "name: value"), ("yes: 5", "name"), ("=: 5", "name"),
    ],
)  # fmt: skip
def test_what_is_not_flat_is_an_error_that_says_where_and_what_to_do(line: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words) as caught:
        loads(f"cleaned: 0\n{line}\n", "root/ddmq.yaml")
    assert "root/ddmq.yaml, line 2" in str(caught.value)


@pytest.mark.parametrize(
    "line",
    [
        "priority: abc", "priority: -1", "priority: 1.5", "priority: true", "message_timeout: soon", "requeue: 1",
        "requeue: maybe", "requeue_prio: no", "cleaned: never", "message_timeout: -5",
    ],
)  # fmt: skip
def test_a_setting_of_a_wrong_type_is_an_error_that_names_the_file(tmp_path: Path, line: str) -> None:
    broker = Broker(tmp_path, create=True)
    broker.create_queue("q")
    (tmp_path / "q" / "ddmq.yaml").write_text(f"{line}\n")
    for do in (lambda: broker.publish("q"), lambda: broker.consume("q"), lambda: broker.get_config_file("q")):
        with pytest.raises(SettingsError, match=line.partition(":")[0]) as caught:
            do()
        assert str(tmp_path / "q" / "ddmq.yaml") in str(caught.value)
        assert caught.value.error == "settings"


@pytest.mark.parametrize("line", ["a{}x", "a{}", "a: b{}x", "a:{}'x", "a: 'x'{}y"])
def test_a_line_of_a_million_blanks_holds_up_nobody(line: str) -> None:
    """Read in one go, it takes no time; looked at from each blank anew, it took hours."""
    text = line.format(" " * 1_000_000)
    found: object = None
    with suppress(SettingsError):
        found = loads(text, "f")
    assert found in (None, {"a": text[3:]})


def test_a_file_without_end_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "ddmq.yaml").symlink_to("/dev/zero")
    with pytest.raises(SettingsError, match="is larger than 1048576 bytes"):
        SettingsFiles(str(tmp_path), SYSTEM).read("")


def test_a_file_that_is_no_text_is_an_error(tmp_path: Path) -> None:
    broker = Broker(tmp_path, create=True)
    (tmp_path / "ddmq.yaml").write_bytes(b"priority: \xff\n")
    with pytest.raises(SettingsError, match="UTF-8"):
        broker.get_config_file()


def test_a_setting_without_a_value_is_not_set(tmp_path: Path) -> None:
    broker = Broker(tmp_path, create=True)
    (tmp_path / "ddmq.yaml").write_text("priority: 5\n")
    broker.create_queue("q")
    (tmp_path / "q" / "ddmq.yaml").write_text("priority:\nmine: 7\n")
    assert broker.get_settings("q") == DEFAULTS | {"priority": 5, "mine": 7}


def test_a_file_that_lacks_only_cleaned_means_the_same_before_and_after_a_cleaning(tmp_path: Path) -> None:
    broker = Broker(tmp_path, create=True)
    (tmp_path / "ddmq.yaml").write_text("message_timeout: 60\n")
    broker.create_queue("q")
    (tmp_path / "q" / "ddmq.yaml").write_text(MADE.replace("cleaned: 0\n", ""))
    before = broker.get_settings("q")["message_timeout"]
    assert broker.clean("q")
    assert broker.get_settings("q")["message_timeout"] == before == 60


def test_a_change_keeps_what_it_does_not_name(tmp_path: Path) -> None:
    broker = Broker(tmp_path, create=True)
    (tmp_path / "ddmq.yaml").write_text("priority: 5 # urgent\nmine: 'x: y'\n")
    broker.update_settings_file(package={"message_timeout": 7, "priority": 6})
    text = (tmp_path / "ddmq.yaml").read_text()
    assert text == "message_timeout: 7\nmine: 'x: y'\npriority: 6\n"
    assert broker.global_settings == DEFAULTS | {"message_timeout": 7, "priority": 6, "mine": "x: y"}


@pytest.mark.parametrize("package", [{"priority": "5"}, {"priority": -1}, {"mine": [1]}, {5: 5}, {"a b": 5}, {"": 5}])
def test_a_change_to_what_cannot_be_changes_nothing(tmp_path: Path, package: dict[str, Any]) -> None:
    broker = Broker(tmp_path, create=True)
    broker.create_queue("q")
    with pytest.raises(SettingsError):
        broker.update_settings_file("q", package)
    assert (tmp_path / "q" / "ddmq.yaml").read_text() == MADE
    assert sorted(os.listdir(tmp_path)) == ["ddmq.yaml", "ddmq.yaml.example", "q"]


def test_what_has_not_changed_is_not_read_again(tmp_path: Path) -> None:
    Broker(tmp_path, create=True).create_queue("q")
    files = SettingsFiles(str(tmp_path), SYSTEM)
    assert files.effective("q", DEFAULTS) is files.effective("q", DEFAULTS)
    files.update("q", {"priority": 5})
    assert files.effective("q", DEFAULTS)["priority"] == 5


def test_a_lock_that_is_not_to_be_had_is_done_without(tmp_path: Path) -> None:
    class NoLocks(type(SYSTEM)):  # type: ignore[misc]
        @staticmethod
        def lock(fd: int) -> None:
            raise OSError(9, "Bad file descriptor")

    Broker(tmp_path, create=True).create_queue("q")
    files = SettingsFiles(str(tmp_path), NoLocks())
    files.update("q", {"priority": 5})
    assert files.read("q")["priority"] == 5
