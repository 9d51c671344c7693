"""
test_cli_ddmq - orchestrator ddmq as a person or a script uses it, beside the command line of the original

The original's cannot be started as it is (Q2) and can read no settings (Q1); both are put right
here before it is run. A test of a fault is run on ours, and must fail on the original.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from orchestrator.cli import cli
from orchestrator.cli.ddmq import ddmq
from orchestrator.cli.ddmq_data import DEFAULTS, EXAMPLE
from workers.ddmq import Broker

STARTED = """
import sys, yaml
import ddmq
load = yaml.load
yaml.load = lambda stream, Loader=yaml.SafeLoader: load(stream, Loader)
sys.modules["broker"] = sys.modules["ddmq.broker"]
from ddmq import cli
cli.main()
"""
OURS = [sys.executable, "-m", "orchestrator", "ddmq"]
HAS_ORIGINAL = importlib.util.find_spec("ddmq") is not None
needs_original = pytest.mark.skipif(not HAS_ORIGINAL, reason="the original (PyPI ddmq) is not installed")
VERBS = ("view", "create", "delete", "publish", "consume", "ack", "nack", "del_msg", "purge", "clean", "json")
GONE = "1000000000.999.15422790613.ddmq39eb64e1913143aa8d28d9158f089006"
WORK = "root/q/work"
ROOT = Path(__file__).resolve().parents[2]


class Done(NamedTuple):
    code: int
    stdout: str
    stderr: str


def ours(*words: str, stdin: bytes = b"") -> Done:
    result = CliRunner().invoke(cli, ["ddmq", *words], input=stdin)
    return Done(result.exit_code, result.stdout_bytes.decode(errors="surrogateescape"), result.stderr)


def original(*words: str, stdin: bytes = b"") -> Done:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", STARTED, *words], input=stdin, capture_output=True, check=False
    )
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


def ran(*words: str, code: int = 0, stdin: bytes = b"") -> str:
    """What ours printed; on stderr where it failed."""
    done = ours(*words, stdin=stdin)
    assert done.code == code, done
    if code:
        assert done.stderr.startswith(("orchestrator: ", "Usage: ")), done
        assert "Traceback" not in done.stderr
    return done.stderr if code else done.stdout


def twins(reason: str) -> Any:
    """Run a test on ours, and see it fail on the original because of *reason*."""
    fails = pytest.mark.xfail(strict=True, raises=(AssertionError, json.JSONDecodeError), reason=reason)
    return pytest.mark.parametrize("run", [ours, pytest.param(original, marks=[needs_original, fails])])


@pytest.fixture(autouse=True)
def _in_a_directory_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that "root" is a path which both may print."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture
def queue() -> Path:
    """The directory of the only queue, q."""
    ran("create", "-f", "root", "q")
    return Path("root/q")


def published(text: str = "hello", *words: str) -> str:
    """The file of a message that waits now."""
    said = ran("publish", "root", "q", *words, "--", text)
    found = re.search(r"^filename = (.*)$", said, re.M)
    assert found
    return found[1]


def consumed(*words: str) -> list[dict[str, Any]]:
    """What consume printed."""
    return [json.loads(line) for line in ran("consume", "root", "q", *words).splitlines()]


def waiting(queue: Path) -> list[str]:
    return sorted(name for name in os.listdir(queue) if ".ddmq" in name)


def working(queue: Path) -> list[str]:
    return sorted(os.listdir(queue / "work"))


def on_a_terminal(*words: str) -> str:
    """What ours writes on one."""
    reader, writer = pty.openpty()
    done = subprocess.run([*OURS, *words], stdout=writer, check=False)
    os.close(writer)
    shown = os.read(reader, 10_000).decode()
    os.close(reader)
    assert done.returncode == 0
    return shown


# ---- the group


@twins("Q2: the command imports broker as a top-level module and cannot start")
def test_Q2_the_command_starts(run: Callable[..., Done]) -> None:
    command = OURS if run is ours else [sys.executable, "-W", "ignore", "-m", "ddmq.cli"]
    done = subprocess.run([*command, "-v"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "ddmq version 0.9.14\n")


@pytest.mark.parametrize("word", ["-v", "--version"])
def test_version_is_that_of_the_format(word: str) -> None:
    assert ran(word) == "ddmq version 0.9.14\n"
    assert "version of the format" in " ".join(ran("--help").split())


def test_no_command_is_help_and_a_failure() -> None:
    done = ours()
    assert done.code == 1
    assert all(f"  {verb} " in done.stdout for verb in VERBS)


@pytest.mark.parametrize("word", ["vew", "__import__", "json_payload", "é", "\udcff"])
def test_an_unknown_command_is_told_with_the_help(word: str) -> None:
    done = ours(word, "root")
    assert done.code == 1
    assert done.stdout.startswith(f"Unrecognized command: {word}\nUsage:")


@pytest.mark.parametrize("verb", VERBS)
def test_every_command_has_its_help(verb: str) -> None:
    assert f"Usage: cli ddmq {verb}" in ran(verb, "-h")


@pytest.mark.parametrize("verb", ["publish", "consume", "ack", "nack", "del_msg"])
def test_skip_cleaning_has_both_spellings_everywhere(verb: str) -> None:
    assert "-C, --skip_cleaning, --skip-cleaning" in ran(verb, "-h")


# ---- as the original prints it


def plain(text: str) -> str:
    """*text* without what differs from run to run: expiry, number and id."""
    text = re.sub(r"\b\d{10}(?=\.\d+\.\d+\.ddmq)", "EXPIRY", text)
    return re.sub(r"\d{11,17}", "NUMBER", re.sub(r"[0-9a-f]{32}", "ID", text))


def test_every_line_and_exit_code_is_that_of_the_original(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same script on a root each. FILE is the message that was consumed last, WAITING one that waits."""
    if not HAS_ORIGINAL:
        pytest.skip("the original is not installed")
    script = [
        ["create", "-f", "root", "a,b,b,c/d,long-name_3"],
        ["create", "root", "a"],
        ["create", "root", "d", "-s"],
        ["view", "root"],
        ["publish", "root", "a", "hello"],
        ["publish", "root", "a", "ünï\n\u2028\"'", "-p", "7", "-t", "300", "-r", "-l", "3"],
        ["publish", "-C", "--priority", "6", "--requeue_prio", "5", "root", "a", "true", "-v"],
        ["publish", "root", "new", "x", "-f"],
        ["publish", "root", "a", "last", "-s"],
        *(["view", "root", *filtered, *names, "--format", form]
          for form in ("plain", "json", "yaml") for names in ([], ["-n"]) for filtered in ([], ["d,a"])),
        ["consume", "root", "a", "-n", "2"],
        ["nack", "root", "a", "FILE", "-r"],
        ["consume", "root", "a", "-n", "2", "--format", "plain", "--skip-cleaning"],
        ["ack", "root", "a", f"FILE,{GONE}"],
        ["consume", "root", "a", "-n", "2", "--format", "yaml"],
        ["view", "root"],
        ["consume", "root", "b", "-n", "2"],
        ["publish", "root", "b", "one"],
        ["publish", "root", "b", "two", "-r"],
        ["consume", "root", "b", "-n", "2"],
        ["publish", "root", "b", "three"],
        ["del_msg", "root", "b", f"FILE,{GONE},FILE,WAITING,nonsense"],
        ["purge", "root", "a,b,none,c/d"],
        ["purge", "-s", "root", "a"],
        ["clean", "root", "a,b,none"],
        ["delete", "root", "a,b,none,c/d"],
        ["delete", "-s", "root", "d"],
        ["view", "root", "-n"],
        ["view", "nothing", "-f"],
        ["view", "nothing", "--format", "yaml"],
        ["view", "nothing", "-n"],
    ]  # fmt: skip
    for name in ("ours", "original"):
        (tmp_path / name).mkdir()
    last: dict[str, str] = {}
    for words in script:
        printed = {}
        for name, run in (("ours", ours), ("original", original)):
            monkeypatch.chdir(tmp_path / name)
            there = [file.name for file in Path("root/b").glob("*.ddmq*")]
            done = run(*(word.replace("FILE", last.get(name, "")).replace("WAITING", "".join(there)) for word in words))
            file = re.search(r"\d{10}\.\d+\.\d+\.ddmq[0-9a-f]{32}", done.stdout)
            last[name] = file[0] if file and words[0] == "consume" else last.get(name, "")
            printed[name] = (done.code, plain(done.stdout))
        # Q25: what is warned of is on stderr.
        expected = re.sub(r"^Warning: .*\n", "", printed["original"][1], flags=re.M)
        assert printed["ours"] == (printed["original"][0], expected), words


@needs_original
def test_what_the_one_publishes_the_other_consumes(queue: Path) -> None:
    text = 'ünï\n"\u2028\U0001f600'
    assert original("publish", "root", "q", text).code == 0
    assert [one["message"] for one in consumed()] == [text]
    published(text)
    (line,) = original("consume", "root", "q", "-n", "2").stdout.splitlines()
    assert json.loads(line)["message"] == text


def test_the_default_of_view_is_a_box_on_a_terminal_and_plain_in_a_pipe(queue: Path) -> None:
    Path("root/[bold]\x1b[2J/work").mkdir(parents=True)
    Path("root/[bold]\x1b[2J/ddmq.yaml").touch()
    assert ran("view", "root") == ran("view", "root", "--format", "plain")
    shown = on_a_terminal("view", "root")
    assert "│" in shown
    assert "[bold]\\x1b[2J" in shown
    assert "\x1b[2J" not in shown


# ---- the faults of the original


@twins("Q20: consume without -n iterates over a message")
def test_Q20_consume_without_n_prints_one_message(run: Callable[..., Done], queue: Path) -> None:
    published("one")
    published("two")
    done = run("consume", "root", "q")
    assert done.code == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert json.loads(line)["message"] == "one"
    assert len(working(queue)) == len(waiting(queue)) == 1


def packaged(**keys: object) -> str:
    return json.dumps({"root": "root", "queue": "q", **keys})


@twins("Q21: json evaluates the key command, and cmd, which is documented, does not work")
@pytest.mark.parametrize("verb", VERBS[:-1])
def test_Q21_json_runs_every_command(run: Callable[..., Done], verb: str, queue: Path) -> None:
    """What it does is what the same words do; each of these leaves its mark on the files."""
    kept = published("kept")
    at_work = "" if verb in ("consume", "clean") else consumed()[0]["filename"]
    if verb == "clean":
        ran("consume", "root", "q")
        expire(queue)
    keys: dict[str, object] = {"cmd": verb}
    if verb in ("ack", "nack", "del_msg"):
        keys["msg_files"] = at_work
    if verb == "nack":
        keys["requeue"] = True
    if verb == "create":
        keys["queue"] = "more"
    if verb == "publish":
        keys |= {"message": "from json", "priority": 3}
    done = run("json", packaged(**keys))
    assert done.code == 0, done.stderr
    left = (len(waiting(queue)), len(working(queue))) if queue.exists() else None
    expected = {
        "view": (0, 1), "create": (0, 1), "delete": None, "publish": (1, 1), "consume": (0, 1), "ack": (0, 0),
        "nack": (1, 0), "del_msg": (0, 0), "purge": (0, 0), "clean": (0, 0),
    }[verb]  # fmt: skip
    assert left == expected, done.stdout
    assert Path("root/more").exists() == (verb == "create")
    assert verb != "view" or done.stdout.splitlines()[1:] == ["| q       | 0              | 1             |"]
    assert verb != "consume" or re.match(rf"filename = \d+\.{re.escape(kept)}\n", done.stdout)


@twins("Q21: json evaluates the key command")
@pytest.mark.parametrize("key", ["command", "cmd", "queue", "message", "format", "priority", "v"])
def test_Q21_no_value_of_json_is_code(run: Callable[..., Done], key: str, queue: Path) -> None:
    code = "(lambda **_: None)(args=__import__('pathlib').Path('pwned').touch()) or create"
    for verb in ("view", "publish"):
        keys = {"command": verb, "message": "text", key: code}
        if run is original:
            keys["command"] = code  # no other way to a command leads anywhere
        run("json", packaged(**keys))
    assert not Path("pwned").exists()


@twins("Q22: with -s no name is checked")
@pytest.mark.parametrize("name", ["a/b", "../out", "a b"])
def test_Q22_silent_mode_checks_names_too(run: Callable[..., Done], name: str, queue: Path) -> None:
    before = sorted(map(str, Path().rglob("*")))
    done = run("create", "-s", "root", name)
    assert (done.code, done.stdout, done.stderr) == (0, "", "")
    assert sorted(map(str, Path().rglob("*"))) == before


@pytest.mark.parametrize("flags", [[], ["-s"]])
@pytest.mark.parametrize("verb", ["delete", "purge", "clean"])
def test_a_path_is_no_name_of_a_queue(verb: str, flags: list[str], queue: Path) -> None:
    """What it leads to is a queue, which would lose its message."""
    ran("publish", "-f", "root/inner", "deep", "kept")
    before = sorted(map(str, Path().rglob("*")))
    assert bool(ran(verb, *flags, "root", "inner/deep,q/../inner/deep,.")) != bool(flags)
    assert sorted(map(str, Path().rglob("*"))) == before


def expire(queue: Path) -> None:
    """Let the only claim have expired long ago."""
    (name,) = working(queue)
    (queue / "work" / name).rename(queue / "work" / f"1{name[10:]}")


@twins("Q23: -C is the other way round")
def test_Q23_publish_cleans_unless_told_not_to(run: Callable[..., Done], queue: Path) -> None:
    published("old")
    consumed()
    expire(queue)
    assert run("publish", "-C", "root", "q", "new").code == 0
    assert len(working(queue)) == 1
    (queue / "ddmq.yaml").write_text("cleaned: 0\n")
    assert run("publish", "root", "q", "newer").code == 0
    assert working(queue) == []


@twins("Q24: the class that is caught is another")
@pytest.mark.parametrize("is_made", [False, True])
def test_Q24_a_missing_root_has_a_friendly_text(run: Callable[..., Done], is_made: bool) -> None:
    if is_made:
        Path("root").mkdir()
    for words in (["view", "root"], ["publish", "root", "q", "x"], ["consume", "root", "q"], ["purge", "root", "q"]):
        done = run(*words)
        assert done.code == 1
        assert "Traceback" not in done.stderr
        assert "root directory root" in done.stderr
        assert "-f" in done.stderr
        assert ("not initiated" if is_made else "does not exist") in done.stderr
    assert Path("root").exists() == is_made
    assert run("publish", "-f", "root", "q", "x").code == 0


@twins("Q25: warnings are printed on stdout")
def test_Q25_warnings_never_mix_with_json(run: Callable[..., Done], queue: Path) -> None:
    done = run("view", "--format", "json", "root", "q,none")
    assert json.loads(done.stdout) == {"q": [0, 0]}
    assert "requested queue does not exist (none)" in done.stderr
    published("whole")
    (queue / "0.1.ddmqab").symlink_to("nothing")
    done = run("consume", "root", "q", "-n", "5", "-v")
    assert [json.loads(line)["message"] for line in done.stdout.splitlines()] == ["whole"]
    assert "0.1.ddmqab" in done.stderr


# ---- create, delete, purge, clean


def test_a_directory_that_is_no_queue_is_left_alone_and_the_rest_is_done(queue: Path) -> None:
    Path("root/other").mkdir()
    Path("root/other/file").touch()
    done = ours("create", "root", "other,more")
    assert done.code == 1
    assert done.stdout == "Created new queue: more\n"
    assert "root/other: it is there, and is no queue" in done.stderr
    assert os.listdir("root/other") == ["file"]


def test_a_queue_with_foreign_files_is_not_deleted_and_the_rest_is(queue: Path) -> None:
    ran("create", "root", "more")
    Path("root/q/foreign").touch()
    done = ours("delete", "root", "q,more")
    assert done.code == 1
    assert "root/q" in done.stderr
    assert done.stdout == "Deleted queue: more\n"
    assert Path("root/q/foreign").exists()


def test_silent_prints_nothing_where_all_is_well() -> None:
    words = (
        ["create", "-f", "root", "q,r"], ["create", "root", "q,x/y"], ["publish", "root", "q", "x"],
        ["publish", "-fC", "root", "new", "x"], ["clean", "root", "q,none"], ["del_msg", "root", "q", GONE],
        ["purge", "root", "q,r"], ["delete", "root", "q,r,none"],
    )  # fmt: skip
    for one in words:
        assert ran(one[0], "-s", *one[1:]) == "", one


@pytest.mark.parametrize("flag", ["-v", "--verbose", "-d", "--debug"])
def test_verbose_and_debug_talk_on_stderr_only(flag: str, queue: Path) -> None:
    published()
    before = (logging.getLogger().level, logging.getLogger().handlers[:])
    done = ours("publish", flag, "-s", "root", "q", "x")
    assert done.stdout == ""
    assert "orchestrator: info: using the queue root/q\n" in done.stderr
    assert ("'message_timeout': 600" in done.stderr) == (flag in ("-d", "--debug"))
    assert (logging.getLogger().level, logging.getLogger().handlers) == before, "only while the command runs"


@pytest.mark.parametrize("file", ["root/ddmq.yaml", "root/q/ddmq.yaml"])
def test_settings_that_are_none_are_one_line_that_names_the_file(file: str, queue: Path) -> None:
    Path(file).write_text("priority: [abc\n")
    for words in (["publish", "root", "q", "x"], ["consume", "root", "q"]):
        said = ran(*words, code=1)
        assert file in said
        assert said.count("\n") == 1
    assert waiting(queue) == []
    if file == "root/q/ddmq.yaml":
        ran("create", "root", "whole")
        done = ours("clean", "root", "q,whole")
        assert (done.code, done.stdout) == (1, "Cleaned queue: whole\n")


# ---- publish, consume


def test_a_missing_queue_is_told_with_its_path_and_how_to_make_it(queue: Path) -> None:
    for words in (["publish", "root", "none", "x"], ["consume", "root", "none"]):
        assert "the queue root/none does not exist: run the same command with -f" in ran(*words, code=1)
    for verb in ("ack", "nack"):
        assert "ddmq create -f makes one" in ran(verb, "root", "none", GONE, code=1)
    assert not Path("root/none").exists()
    assert ran("consume", "-f", "root", "none") == "No more messages in none\n"
    assert Path("root/none/work").exists()


@pytest.mark.parametrize("name", ["../out", "a/b", "", ".", "..", "a b", "é", "\udcff", "q\n"])
def test_no_queue_is_made_under_an_odd_name(name: str, queue: Path) -> None:
    for words in (["publish", "-f", "root", name, "x"], ["consume", "-f", "root", name]):
        said = ran(*words, code=1)
        assert said.count("\n") == 1
        assert "cannot be the name of a queue" in said
    if name in ("../out", "a/b", "", ".", ".."):
        assert "cannot be the name of a queue" in ran("ack", "root", name, GONE, code=1)
    assert ran("create", "root", name) == f"Skipping {name}, invalid name\n"
    assert sorted(os.listdir()) == ["root"]
    assert [one for one in os.listdir("root") if Path("root", one).is_dir()] == ["q"]


@pytest.mark.parametrize(
    "words",
    [
        ["-p", "-1"], ["-p", "soon"], ["-t", "-1"], ["-l", "x"], ["--requeue_prio", "1.5"], ["--nothing"],
    ],
)  # fmt: skip
def test_an_option_of_publish_that_is_none_is_refused(words: list[str], queue: Path) -> None:
    ran("publish", *words, "root", "q", "x", code=2)
    assert waiting(queue) == []


@pytest.mark.parametrize("words", [["-t", "9" * 300], ["-p", "9" * 19], ["--requeue_prio", "9" * 19]])
def test_a_number_that_fits_no_name_is_one_line_and_publishes_nothing(words: list[str], queue: Path) -> None:
    said = ran("publish", *words, "root", "q", "x", code=1)
    assert said.count("\n") == 1
    assert waiting(queue) == []


@pytest.mark.parametrize("form", ["plain", "json", "yaml"])
def test_a_message_with_fields_called_like_methods_is_printed(form: str, queue: Path) -> None:
    (queue / "1.1.ddmqa").write_text('{"message": "x", "msg2json": 1, "update": 2}')
    assert "msg2json" in ran("consume", "--format", form, "root", "q")


def test_options_reach_the_message(queue: Path) -> None:
    published("x", "-p", "0", "-t", "77", "--requeue-limit", "4", "--requeue-prio", "6")
    (found,) = consumed("--format", "json", "-C")
    assert (found["priority"], found["timeout"], found["requeue"], found["requeue_limit"]) == (0, 77, 6, 4)


def test_priorities_are_numbers_and_0_is_the_first(queue: Path) -> None:
    for priority in ("10", "999", "0", "9"):
        published(priority, "-p", priority)
    assert [one["message"] for one in consumed("-n", "9")] == ["0", "9", "10", "999"]


@pytest.mark.parametrize("words", [["-n", "0"], ["-n", "-1"], ["-n", "x"], ["--format", "xml"]])
def test_an_option_of_consume_that_is_none_takes_no_message(words: list[str], queue: Path) -> None:
    published()
    ran("consume", *words, "root", "q", code=2)
    assert working(queue) == []


@pytest.mark.parametrize("form", ["plain", "json", "yaml"])
@pytest.mark.parametrize("text", ["", "-", "a\udcffb", "\ud800", "\x1b[2J\0", "~", "1: 2", "x" * 200_000])
def test_any_text_goes_in_and_comes_out(form: str, text: str, queue: Path) -> None:
    """\\ud800 and \\0 come from JSON only; - is a text like any other."""
    assert "Successfully" in ran("json", packaged(cmd="publish", message=text))
    printed = ran("consume", "root", "q", "--format", form)
    if form == "plain":
        assert "\nmessage = " in printed
    else:
        found = json.loads(printed) if form == "json" else yaml.safe_load(printed)
        assert found["message"] == text


def test_arguments_that_are_no_utf_8_are_kept_as_bytes(queue: Path) -> None:
    """As a shell gives them; a root that is called so is told of."""
    done = subprocess.run([*OURS, "publish", "root", "q", b"a\xffb"], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"\nmessage = a\xffb\n" in done.stdout
    for words in (["view", b"\xff"], ["publish", "root", b"\xff", "x"], ["ack", "root", "q", b"\xff"], [b"\xff"]):
        done = subprocess.run([*OURS, *words], capture_output=True, check=False)
        assert b"Traceback" not in done.stderr
        assert b"ff" in done.stderr or b"\xff" in done.stdout


@pytest.mark.parametrize("is_full", [False, True])
def test_what_could_not_be_printed_waits_again_as_it_was(is_full: bool, queue: Path) -> None:
    """The reader is gone, or the disk is full. Nobody knows of the claim; expired, the message would be deleted."""
    published("one", "-p", "5")
    published("two")
    before = {name: (queue / name).read_bytes() for name in waiting(queue)}
    reader, writer = os.pipe()
    os.close(reader)
    with open("/dev/full" if is_full else writer, "wb") as out:
        done = subprocess.run(
            [*OURS, "consume", "-n", "2", "root", "q"], stdout=out, stderr=subprocess.PIPE, check=False
        )
    if is_full:
        os.close(writer)
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr
    assert (b"No space left" in done.stderr) == is_full
    assert working(queue) == []
    assert {name: (queue / name).read_bytes() for name in waiting(queue)} == before


def test_a_reader_that_leaves_early_is_no_error(queue: Path) -> None:
    ran("create", "root", ",".join(f"queue-{number}" for number in range(300)))
    script = " ".join(OURS) + " view root | head -n 1"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert (done.stdout.count("\n"), done.stderr) == (1, "")


def test_a_terminal_is_not_driven_by_a_message(queue: Path) -> None:
    published("\x1b[2J\tü")
    assert "message = \\x1b[2J\tü\r\n" in on_a_terminal("consume", "--format", "plain", "root", "q")


# ---- ack, nack, del_msg


def test_ack_deletes_and_nack_puts_back_unless_the_message_is_to_be_deleted(queue: Path) -> None:
    published("a", "-r")
    file = consumed()[0]["filename"]
    assert ran("ack", "root", "q", file) == f"acked {WORK}/{file}\n"
    assert (waiting(queue), working(queue)) == ([], [])
    published("b", "-r")
    file = consumed()[0]["filename"]
    assert ran("nack", "root", "q", file) == f"nacked {WORK}/{file}\n"
    assert (len(waiting(queue)), working(queue)) == (1, [])


def test_ack_takes_what_it_printed_and_what_consume_printed(queue: Path) -> None:
    published()
    file = consumed()[0]["filename"]
    assert ran("ack", "root", "q", f"./{WORK}/{file},{GONE}") == (f"acked {WORK}/{file}\nfailed ack {WORK}/{GONE}\n")
    assert working(queue) == []


@pytest.mark.parametrize("verb", ["ack", "nack", "del_msg"])
def test_a_file_that_is_no_message_of_the_queue_is_left_alone(verb: str, queue: Path) -> None:
    ran("create", "root", "other")
    ran("publish", "root", "other", "x")
    file = json.loads(ran("consume", "root", "other"))["filename"]
    elsewhere = os.path.join("root", "other", "work", file)
    Path(WORK, file).write_text("of the same name, and meant by none of the paths")
    Path(WORK, "file").touch()
    Path("outside").touch()
    before = sorted(map(str, Path().rglob("*")))
    files = [
        os.path.relpath(elsewhere, WORK), elsewhere, os.path.abspath(elsewhere), GONE,
        "file", "../ddmq.yaml", "../../../outside", os.path.abspath("outside"), "", "..",
    ]  # fmt: skip
    said = ran(verb, "root", "q", ",".join(files))
    assert said.count("Skipping" if verb == "del_msg" else f"failed {verb}") == len(files)
    assert sorted(map(str, Path().rglob("*"))) == before


# ---- json


def test_json_reads_standard_input_where_a_message_may_be_long(queue: Path) -> None:
    text = "x" * 3_000_000
    ran("json", "-", stdin=packaged(cmd="publish", message=text, s=True).encode())
    assert json.loads(ran("json", "-", stdin=packaged(cmd="consume", format="json").encode()))["message"] == text


def test_json_takes_lists_flags_and_both_names_of_a_key() -> None:
    ran("json", json.dumps({"command": "create", "root": "root", "queue": ["q", "r"], "f": True}))
    for text in ("a", "b"):
        ran("json", packaged(cmd="publish", message=text, requeue=True, requeue_limit=2, skip_cleaning=True, timeout=5))
    lines = ran("json", packaged(cmd="consume", n=2, format="json")).splitlines()
    files = [json.loads(line)["filename"] for line in lines]
    assert ran("json", packaged(cmd="ack", files=files)).count("acked") == 2
    assert json.loads(ran("json", packaged(cmd="view", queue="q,r", n=True, format="json"))) == ["q", "r"]
    assert "*queue*" in ran("json", json.dumps({"cmd": "view", "root": "root", "format": None}))


def test_the_example_of_json_has_every_key_and_runs() -> None:
    said = ran("json", "{", code=1)
    example = json.loads(said[said.index("'{") + 1 : said.rindex("}'") + 1])
    assert example == EXAMPLE
    assert set(example) == set(DEFAULTS)
    assert "Successfully" in ran("json", json.dumps({**example, "root": "root"}))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no JSON"),
        ("{'cmd': 'view'}", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("\udcff", "no JSON"),
        ("9" * 5000, "no JSON"),
        ("[]", "object is wanted"),
        ("null", "object is wanted"),
        ("{}", '"cmd" is missing'),
        ('{"cmd": "json"}', '"cmd" is "json"'),
        ('{"cmd": ["view"]}', '"cmd" is ["view"]'),
        ('{"cmd": "view", "command": "purge"}', "mean the same"),
        ('{"cmd": "view"}', 'wants the key "root"'),
        ('{"cmd": "view", "root": 5}', '"root" is a text'),
        ('{"cmd": "view", "root": "a\\u0000"}', "no file can be called"),
        ('{"cmd": "view", "root": "\\ud800"}', "no file can be called"),
        ('{"cmd": "view", "root": "root", "__class__": 1}', "unknown key"),
        ('{"cmd": "view", "root": "root", "\\ud800\\u001b": 1}', "unknown key"),
        ('{"cmd": "view", "root": "root", "v": 1}', '"v" is true or false'),
        ('{"cmd": "view", "root": "root", "v": 0}', '"v" is true or false'),
        ('{"cmd": "view", "root": "root", "format": 1}', '"format" is a text'),
        ('{"cmd": "view", "root": "root", "priority": 1}', "view takes no priority"),
        ('{"cmd": "consume", "root": "root", "queue": "q", "n": true}', '"n" is a whole number'),
        ('{"cmd": "consume", "root": "root", "queue": "q", "n": 1.0}', '"n" is a whole number'),
        ('{"cmd": "consume", "root": "root", "queue": "q", "n": "1"}', '"n" is a whole number'),
        ('{"cmd": "publish", "root": "root", "queue": "q", "message": {"a": 1}}', '"message" is a text'),
        ('{"cmd": "publish", "root": "root", "queue": "q", "message": "x", "priority": false}', "a whole number"),
        ('{"cmd": "publish", "root": "root", "queue": "q", "message": "x", "requeue": 1}', "true or false"),
        ('{"cmd": "ack", "root": "root", "queue": "q", "files": [1]}', "a text or a list of texts"),
        ('{"cmd": "ack", "root": "root", "queue": "q", "files": []}', "a text or a list of texts"),
    ],
)
def test_json_that_is_no_command_is_told_what_is_wrong(text: str, told: str, queue: Path) -> None:
    published()
    assert told in ran("json", text, code=1)
    assert len(waiting(queue)) == 1


def test_bytes_on_standard_input_that_are_no_json_are_told() -> None:
    assert "no JSON" in ran("json", "-", stdin=b'{"cmd": "\xff"}', code=1)


def test_a_value_out_of_range_in_json_is_refused_as_in_an_option(queue: Path) -> None:
    assert "--priority" in ran("json", packaged(cmd="publish", message="x", priority=-1), code=2)
    assert "--format" in ran("json", packaged(cmd="view", format="xml"), code=2)
    assert ran("json", packaged(cmd="publish", queue="q", message="--version")).startswith("Successfully")


# ---- completion


def completed(words: list[str], incomplete: str) -> list[str]:
    complete = ShellComplete(cli, {}, "orchestrator", "_ORCHESTRATOR_COMPLETE")
    return [item.value for item in complete.get_completions(["ddmq", *words], incomplete)]


def test_commands_queues_and_messages_are_completed_and_nothing_is_made(queue: Path) -> None:
    assert completed([], "co") == ["consume"]
    ran("create", "root", "more,most")
    assert completed(["purge", "root"], "mo") == ["more", "most"]
    assert completed(["purge", "root"], "more,mo") == ["more,most"]
    published()
    (first,) = consumed()
    second = published()
    assert completed(["ack", "root", "q"], "") == [first["filename"]]
    assert sorted(completed(["del_msg", "root", "q"], "")) == sorted([first["filename"], second])
    assert completed(["ack", "root", "none"], "") == []
    assert completed(["view", "nothing"], "") == []
    assert not Path("nothing").exists()


def test_the_table_of_json_is_the_table_of_commands() -> None:
    assert set(ddmq.commands) == set(VERBS)


def test_a_queue_that_is_deleted_while_it_is_viewed_is_left_out(queue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Broker, "list_queues", lambda self: ["gone", "q"])
    assert json.loads(ran("view", "--format", "json", "root")) == {"q": [0, 0]}
