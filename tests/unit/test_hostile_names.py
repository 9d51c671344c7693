"""
test_hostile_names - what others have named and written, as the commands show it

Nothing raw of it reaches a person: every command's lines are printable, on a terminal or not. What is for programs is
JSON that any reader takes, and tells the exact name. A .meta is believed by nobody.
Long because: a list of names, then one part for each kind of output.
See also: tests/process/test_hostile_names.py (logs, metrics, titles, run log of a pool), test_logs, test_metrics.
"""

from __future__ import annotations

import json
import os
import pty
import stat
import subprocess
import sys
import tomllib
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from orchestrator.cli import cli
from orchestrator.config import load
from orchestrator.config_text import from_text, to_text
from tests import rig_mq
from workers.handler import FAILURE_BYTES_MAX, call
from workers.message import Claim, Message, Reject
from workers.posix_mq import Mq
from workers.queues.names import shown
from workers.queues.open import open_queue

NAMES = (
    b"new\nline",
    b"carriage\rreturn",
    b"tab\tstop",
    b"! escape, before all others \x1b[31m\x1b]0;title\x07",
    b"back\x08space\x7f",
    "c1 \u0085\u009b31m\u009d0;title\u009c".encode(),
    "right to left \u202egnp.exe\u2066".encode(),
    "zero\u200bwidth\u200d\ufeff".encode(),
    "lines\u2028and\u2029paragraphs".encode(),
    "tags \U000e0041\U0001f600".encode(),
    b"no text \xff\xfe\x80\x9b31m",
    b"half a character \xed\xa0\x80",
    b"n" * 255,
    b"x/../..\\etc".replace(b"/", b"\\"),
    b"{name} {path} %s %n",
    b"[red]x[bold][link=evil]y[-link] :smile:",
    b"<script>alert(1)<b onclick='x'>",
    b'"} 1\nevil_total{queue="',
    b'json" \\u0000\\',
    b"-rf",
    b"a.meta",
)
BODY = b"\x1b[2J\x1b]0;title\x07 \x9b \xc2\x9b31m \xe2\x80\xae \xff\n\x1b]8;;file:///etc\x07[red]x"
CONTROL = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")  # of Unicode: what moves a cursor, hides or turns text, or is none


def assert_is_printable(text: str | bytes) -> None:
    """Nothing but lines of characters that only show themselves; tabs, which cannot do more than move on."""
    text = text if isinstance(text, str) else text.decode("utf-8", "strict")
    assert not {char for char in text if unicodedata.category(char) in CONTROL} - {"\n", "\t"}, ascii(text)


def assert_is_json(text: str | bytes) -> Any:
    """What a strict reader makes of it: UTF-8, and no number that JSON has not."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    text = text if isinstance(text, str) else text.decode("utf-8", "strict")
    return json.loads(text, parse_constant=refuse)


def said(*words: str, stdin: bytes = b"") -> bytes:
    """What a command says, on both streams, as a person would see it; it ended by itself, whatever its exit code."""
    ended = CliRunner().invoke(cli, list(words), input=stdin)
    assert ended.exception is None or isinstance(ended.exception, SystemExit), ended.exc_info
    assert_is_printable(ended.stderr_bytes)
    return ended.stdout_bytes


def on_a_terminal(*words: str, environment: dict[str, str] | None = None) -> bytes:
    """What a command writes to a terminal of its own."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "orchestrator", *words]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        found = b""
        try:
            while part := os.read(ours, 65536):
                found += part
        except OSError:  # the other end is closed, which a terminal tells so
            pass
        process.wait(30)
    os.close(ours)
    return found.replace(b"\r\n", b"\n")


@pytest.fixture
def queue(tmp_path: Path) -> Path:
    """A spool in which each hostile name waits, and is in errors/."""
    path = tmp_path / "q"
    open_queue(str(path), create=True).close()
    for name in NAMES:
        for state in (b"incoming", b"errors"):
            with open(os.path.join(os.fsencode(path), state, name), "wb") as file:
                file.write(BODY)
    return path


def forged(queue: Path, name: str, meta: bytes) -> Path:
    """A message in errors/ with this .meta."""
    (queue / "errors" / name).write_bytes(b"x")
    path = queue / "errors" / f"{name}.meta"
    path.write_bytes(meta)
    return path


# ---- names


def test_lists_of_hostile_names_are_printable_and_a_line_each(queue: Path) -> None:
    text = said("ls", str(queue))
    assert_is_printable(text)
    assert text.count(b"\n") == 2 * len(NAMES)
    for name in NAMES:
        assert shown(os.fsdecode(name)).encode() in text


def test_every_name_can_be_read_back_from_json_and_used(queue: Path) -> None:
    listed = assert_is_json(said("ls", str(queue), "--json", "--state", "waiting"))
    assert {os.fsencode(one["name"]) for one in listed} == set(NAMES)
    for one in listed:
        assert os.path.exists(one["path"])
        (found,) = assert_is_json(said("show", str(queue), "--state", "waiting", "--json", "--", one["name"]))
        assert (found["name"], found["path"], found["size"]) == (one["name"], one["path"], len(BODY))


@pytest.mark.parametrize("name", NAMES, ids=lambda raw: ascii(raw)[:30])
def test_a_hostile_name_is_shown_and_requeued_in_printable_lines(queue: Path, name: bytes) -> None:
    word = os.fsdecode(name)
    text = said("show", str(queue), "--", word)
    assert_is_printable(text)
    assert f"name:        {shown(word)}\n".encode() in text
    assert said("requeue", str(queue), "--", word) == f"requeued {shown(word)}\n".encode()


WORDS = "no\x1b]0;title\x07\u009b\u202e\udcff\nsuch"
COMMANDS: tuple[Sequence[str], ...] = (
    ("ls", WORDS), ("ls", f"dirq:{WORDS}"), ("ls", f"ddmq:{WORDS}/q"), ("ls", f"mqueue:/{WORDS}"),
    ("ls", f"set:{WORDS}"), ("ls", f"{WORDS}:x"), ("ls", "q", WORDS), ("ls", f"--{WORDS}"), (f"--{WORDS}",),
    (WORDS,), ("show", "q", WORDS),
    ("show", WORDS, "x"), ("put", f"{WORDS}/x/y"), ("put", "q", WORDS), ("put", "q", "--name", WORDS),
    ("requeue", "q", WORDS), ("pause", WORDS), ("resume", WORDS), ("bridge", "q", WORDS), ("bridge", WORDS, "x"),
    ("dirq", "count", WORDS), ("dirq", "get", ".", WORDS), ("ddmq", "view", WORDS), ("mqueue", "--info", WORDS),
    ("mqueue", "--info", f"/{WORDS}"), ("mqueue", "--create", WORDS), ("status", "--name", WORDS),
    ("stop", "--name", WORDS), ("signal", WORDS), ("signal", "check", "--name", WORDS), ("scale", WORDS, "1"),
    ("runlog", "show", f"/{WORDS}"), ("runlog", "list", "--runlog-dir", WORDS), ("check", WORDS), ("completion", WORDS),
    ("config", "show", "--config", WORDS), ("run", WORDS, "--", "true"), ("run", "--handler", WORDS, "q"),
    ("run", "q", "--listen", WORDS, "--", "true"), ("run", "q", "--name", WORDS, "--", "true"),
)  # fmt: skip


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: ascii(" ".join(words)).replace("\\", "")[:50])
def test_what_is_wrong_with_a_hostile_word_is_told_in_printable_lines(
    words: Sequence[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that a shell's * made a word of the command line comes back in the error; of its newline comes no line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ORCHESTRATOR_RUN_DIR", str(tmp_path / "run"))
    open_queue("q", create=True).close()
    ended = CliRunner().invoke(cli, list(words))
    assert isinstance(ended.exception, SystemExit), ended.exc_info
    assert ended.exit_code in (1, 2, 3)
    assert_is_printable(ended.output_bytes)
    assert not any(line.startswith("such") for line in ended.output.splitlines())


def test_what_we_and_what_an_older_click_say_of_words_is_printable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = str(tmp_path / "turned \u202e")
    open_queue(name, create=True).close()
    ended = CliRunner().invoke(cli, ["bridge", name, name])
    assert "turned \\u202e are one queue" in ended.stderr
    assert_is_printable(ended.output_bytes)

    def refuse(*_: object, **__: object) -> click.Context:
        raise click.UsageError(f"No such option: {WORDS}")  # as click 8.1 has it

    monkeypatch.setattr(click.Group, "make_context", refuse)
    assert_is_printable(CliRunner().invoke(cli, ["-x"]).output_bytes)


def test_a_terminal_is_given_nothing_raw_and_no_crash_whatever_its_encoding(queue: Path) -> None:
    with_latin = {**os.environ, "PYTHONIOENCODING": "latin-1:strict"}
    assert_is_printable(on_a_terminal("ls", str(queue)))
    text = on_a_terminal("ls", str(queue), environment=with_latin).decode("latin-1")
    assert_is_printable(text)
    assert "Traceback" not in text
    assert text.count("\n") == 2 * len(NAMES)
    text = on_a_terminal("config", "show", "q", "--", "true", WORDS, environment=with_latin).decode("latin-1")
    assert_is_printable(text)
    assert "\\u009b\\u202e\\udcff\\nsuch" in text


def test_the_configuration_is_shown_in_printable_lines_and_read_again_as_it_was(tmp_path: Path) -> None:
    word = "\x1b]0;t\x07\x7f\u0085\u009b\u202e\u2028\U000e0041\n"
    text = said("config", "show", str(tmp_path / "q"), "--", "true", word)
    assert_is_printable(text)
    assert tomllib.loads(text.decode())["queue"][0]["command"] == ["true", word]
    assert_is_json(said("config", "show", str(tmp_path / "q"), "--json", "--", "true", f"{word}\udcff"))


def test_a_configuration_with_hostile_paths_is_handed_on_as_it_was(tmp_path: Path) -> None:
    """The master reads it in another process, and tells its keeper of each queue."""
    place = tmp_path / "no text \udcff \u202e"
    place.mkdir()
    file = place / "\x1b[2J.toml"
    file.write_text('[pool]\nname = "x"\n[[queue]]\nurl = "q"\ncommand = ["true", "\\u009b"]\noutput = "./next"\n')
    config = load((file,), flags={}, environment={})
    assert from_text(to_text(config)) == config
    (one,) = config.queues
    assert type(one).model_validate(json.loads(json.dumps(one.model_dump(mode="json")))) == one
    assert_is_printable(said("check", str(file)))


def test_completion_offers_no_name_that_could_drive_a_terminal(tmp_path: Path) -> None:
    for name in (*(name for name in NAMES if len(name) < 255), b"fine"):
        (tmp_path / os.fsdecode(name) / "work").mkdir(parents=True)
        (tmp_path / os.fsdecode(name) / "ddmq.yaml").touch()
    (tmp_path / "ddmq.yaml").touch()
    offered = [one.value for one in ShellComplete(cli, {}, "", "").get_completions(["ddmq", "view", str(tmp_path)], "")]
    assert "fine" in offered
    assert_is_printable("".join(offered))


# ---- contents


def test_a_message_on_a_terminal_cannot_drive_it_and_goes_into_a_pipe_as_it_is(tmp_path: Path) -> None:
    spool, simple = str(tmp_path / "spool"), str(tmp_path / "simple")
    said("put", spool, "--name", "m", stdin=BODY)
    name = said("dirq", "add", simple, stdin=BODY).decode().strip()
    for words in (("show", spool, "m", "--body"), ("dirq", "get", simple, name)):
        assert said(*words) == BODY
        text = on_a_terminal(*words)
        assert_is_printable(text)
        assert b"\\x1b[2J" in text


def test_the_messages_of_a_kernel_queue_are_shown_in_printable_lines(tmp_path: Path) -> None:
    made = rig_mq.names()
    name = next(made)()
    with_odd = f"{name}\x1b]0;t\x07\u202e"
    try:
        for one in (name, with_odd):
            mq = Mq.open(one, create=True, max_messages=3, max_size=200)
            mq.send(BODY)
            mq.send(BODY)
            mq.close()
        url = f"mqueue:{name}?state_dir={tmp_path}"
        assert_is_printable(said("ls", url))
        assert_is_json(said("ls", url, "--json"))
        assert_is_printable(on_a_terminal("mqueue", "--read", "--count", "1", name))
        assert_is_printable(said("mqueue", "--info", with_odd))
        assert assert_is_json(said("mqueue", "--info", with_odd, "--json"))["name"] == with_odd
    finally:
        said("mqueue", "--unlink", with_odd)
        next(made, None)


# ---- .meta

DEEP = b'{"reason": ' + b"[" * 900 + b"]" * 900 + b"}"
METAS: dict[str, bytes] = {
    "empty": b"",
    "no JSON": b"\x1b[31m why",
    "no object": b'["why"]',
    "types": b'{"name": 5, "reason": {"a": [1]}, "attempts": "x", "crashes": [], "enqueued_at": {}, "owner": true}',
    "no numbers": b'{"reason": NaN, "a": [Infinity, -Infinity], "b": 1e999, "attempts": -1e999}',
    "digits": b'{"attempts": ' + b"9" * 100_000 + b"}",
    "digits of a float": b'{"attempts": 1' + b"0" * 100_000 + b".0}",
    "control characters": b'{"reason": "\\u001b[2J\\u009b\\u202e\\ud800\\u2028\\nforged: x", "\\u001b]0;\\n": 1}',
    "paths": b'{"name": "../../etc/passwd", "path": "/etc/passwd", "state": "waiting", "body": "x", "size": 1}',
    "deep": DEEP,
    "deeper": b'{"a":' * 100_000,
    "no UTF-8": b'{"reason": "\xff\x9b"}',
    "longer than is read": b'{"reason": "' + b"x" * (1 << 20) + b'"}',
}
UNREAD = ("empty", "no JSON", "no object", "digits", "deep", "deeper", "no UTF-8", "longer than is read")


@pytest.mark.parametrize("kind", sorted(METAS))
def test_a_forged_meta_is_shown_in_printable_lines_and_strict_json(queue: Path, kind: str) -> None:
    forged(queue, "bad", METAS[kind])
    text = said("show", str(queue), "bad")
    assert_is_printable(text)
    assert not any(line.startswith(b"forged:") for line in text.splitlines())
    (found,) = assert_is_json(said("show", str(queue), "bad", "--json"))
    real = str(queue / "errors/bad")
    assert (found["name"], found["state"], found["path"], found["attempt"]) == ("bad", "errors", real, 0)
    assert (found["meta"] is None) == (kind in UNREAD)


@pytest.mark.parametrize("kind", sorted(METAS))
def test_a_forged_meta_changes_neither_counts_nor_where_a_message_goes(queue: Path, kind: str) -> None:
    meta = forged(queue, "bad", METAS[kind])
    with open_queue(str(queue)) as opened:
        before = opened.depth()
        assert opened.requeue("bad") == 1
        assert opened.depth().errors == before.errors - 1
    assert not meta.exists()
    assert [path.read_bytes() for path in (queue / "incoming").iterdir() if path.name.endswith("~bad")] == [b"x"]


def test_a_forged_run_log_is_shown_in_printable_lines_and_strict_json(tmp_path: Path) -> None:
    path = tmp_path / "20231114221320.1.runlog"
    path.write_text('{"result": "\\u001b[2J", "ts": 1.5, "rc": NaN, "pid": 1e999, "argv": ["\\u009b\\n", "\\ud800"]}')
    assert_is_json(said("runlog", "show", str(path)))
    for verb in ("list", "evaluate"):
        assert_is_printable(said("runlog", verb, "--runlog-dir", str(tmp_path)))
        assert_is_json(said("runlog", verb, "--runlog-dir", str(tmp_path), "--json"))


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 30)


MADE: dict[str, Callable[[Path], object]] = {
    "a link to a secret": lambda path: path.symlink_to(path.parent.parent.parent / "secret"),
    "a link to itself": lambda path: path.symlink_to(path),
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
    "a fifo": os.mkfifo,
    "a directory": Path.mkdir,
    "a gibibyte of nothing": _sparse,
}


@pytest.mark.parametrize("kind", sorted(MADE))
def test_a_meta_that_is_no_file_of_ours_is_neither_followed_nor_waited_for(queue: Path, kind: str) -> None:
    secret = queue.parent / "secret"
    secret.write_text('{"reason": "SECRET"}')
    meta = forged(queue, "bad", b"")
    meta.unlink()
    MADE[kind](meta)
    assert b"SECRET" not in said("show", str(queue), "bad")
    (found,) = assert_is_json(said("show", str(queue), "bad", "--json"))
    assert found["meta"] is None
    assert said("requeue", str(queue), "bad") == b"requeued bad\n"
    assert secret.read_text() == '{"reason": "SECRET"}'


def test_a_message_in_errors_that_is_no_file_is_neither_followed_nor_waited_for(queue: Path) -> None:
    (queue.parent / "secret").write_text("SECRET")
    (queue / "errors/link").symlink_to(queue.parent / "secret")
    os.mkfifo(queue / "errors/fifo")
    for name in ("link", "fifo"):
        assert b"SECRET" not in said("show", str(queue), name)
        assert said("show", str(queue), name, "--body") == b""
    assert stat.S_ISLNK(os.lstat(queue / "errors/link").st_mode)


# ---- secrets


@pytest.mark.parametrize(
    "lines",
    [
        'options = "SECRET"', 'options = ["SECRET"]', 'options = { a = "SECRET', 'event_map = ["SECRET"]',
        'components = [{ use = "a:b", "pass word" = "SECRET" }]', 'components = [{ password = "SECRET" }]',
        'password = "SECRET"', 'handler = "a:b"\noptions = { password = "SECRET" }', '[secrets]\npassword = "SECRET"',
    ],
)  # fmt: skip
def test_an_error_of_the_configuration_repeats_nothing_that_may_be_a_secret(tmp_path: Path, lines: str) -> None:
    """A reload that is refused says the same in the log."""
    file = tmp_path / "pool.toml"
    file.write_text(f'[[queue]]\nurl = "q"\n{lines}\n')
    ended = CliRunner().invoke(cli, ["check", str(file)])
    assert ended.exit_code == 1
    assert str(file) in ended.output
    assert "SECRET" not in ended.output


# ---- what a handler says


def test_a_reason_or_meta_of_any_size_and_kind_is_kept_so_that_it_can_be_shown(message: Message) -> None:
    class Odd(Exception):
        def __init__(self) -> None:
            super().__init__("\x1b[2J" * 10**6)
            self.meta: dict[object, object] = {1: float("nan"), "a": BODY, "b": "\ud800"}
            self.meta["itself"] = self.meta

    def fail(_message: Message) -> None:
        raise Odd

    def fail_at_length(_message: Message) -> None:
        odd = Odd()
        odd.meta["long"] = ["x" * 1000] * 1000
        raise odd

    failed = call(fail, message)
    assert_is_json(json.dumps(failed.meta, sort_keys=True))
    assert_is_printable(failed.summary)
    failed = call(fail_at_length, message)
    assert len(json.dumps(failed.meta)) < 1000
    called = call(lambda _message: Reject("why " * 10**6 + "\udcff the end"), message)
    assert isinstance(called.outcome, Reject)
    assert len(called.outcome.reason.encode()) <= FAILURE_BYTES_MAX
    assert called.outcome.reason.endswith("the end")


@pytest.fixture
def message(tmp_path: Path) -> Message:
    return Message(Claim(name="m", path=str(tmp_path / "m")), queue="in")
