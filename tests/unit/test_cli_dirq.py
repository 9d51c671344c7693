"""
test_cli_dirq - orchestrator dirq as a person or a script uses it, on both kinds of queue
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result

from orchestrator.cli import cli
from workers.dirq import Queue, QueueSimple

SCHEMA = {"body": "string", "header": "table?"}
ODD = b"\xff\0\nno newline"
GONE = "00000000/00000000000000"
KINDS = ("simple", "normal")


def ran(*arguments: str | Path, stdin: bytes = b"", code: int = 0) -> Result:
    result = CliRunner().invoke(cli, ["dirq", *map(str, arguments)], input=stdin)
    assert result.exit_code == code, (result.output, result.exception)
    if code:
        assert "Traceback" not in result.stderr
        assert result.stderr.startswith(("orchestrator: ", "Usage: "))
    return result


def added(*arguments: str | Path, stdin: bytes = b"") -> list[str]:
    """The names that add printed."""
    return ran("add", *arguments, stdin=stdin).stdout.split()


def names(path: Path) -> list[str]:
    return ran("iterate", path).stdout.split()


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a queue may be made."""
    return tmp_path / "queue"


@pytest.fixture
def one(path: Path, kind: str) -> str:
    """The name of the only element of a queue at path."""
    (name,) = added("--type", kind, path, stdin=b"the body\n")
    return name


@pytest.fixture
def another(path: Path, kind: str) -> Callable[[], Queue | QueueSimple]:
    """Another program with the queue open."""
    return lambda: QueueSimple(str(path)) if kind == "simple" else Queue(str(path), schema=SCHEMA)


# ---- which queue


def test_add_makes_a_simple_queue_unless_told_otherwise_and_then_finds_its_kind(path: Path, tmp_path: Path) -> None:
    added(path)
    assert not (path / "temporary").exists()
    normal = tmp_path / "normal"
    added("--type", "normal", normal)
    added(normal)
    assert sorted(os.listdir(normal)) == ["00000000", "obsolete", "temporary"]
    assert ran("count", normal).stdout == "2\n"


def test_add_makes_no_queue_where_the_parent_is_missing(path: Path) -> None:
    assert "parent directory does not exist" in ran("add", path / "deeper", code=1).stderr
    assert not path.exists()


@pytest.mark.parametrize(
    "words", [("count",), ("iterate",), ("purge",), ("get", GONE), ("remove", GONE), ("touch", GONE)]
)
def test_who_does_not_add_makes_no_queue(path: Path, words: tuple[str, ...]) -> None:
    verb, *rest = words
    said = ran(verb, path, *rest, code=1).stderr
    assert f"there is no queue at {path}" in said
    assert "add makes one" in said
    assert not path.exists()
    path.mkdir()
    assert "is no normal queue" in ran(verb, "--type", "normal", path, *rest, code=1).stderr
    assert os.listdir(path) == []


def test_a_queue_of_the_other_kind_is_refused(path: Path, tmp_path: Path) -> None:
    """Else a simple element would lie between directories, where no program looks for it."""
    added(path)
    before = sorted(path.rglob("*"))
    assert "is no normal queue" in ran("add", "--type", "normal", path, code=1).stderr
    assert sorted(path.rglob("*")) == before
    normal = tmp_path / "normal"
    added("--type", "normal", normal)
    assert "is a normal queue" in ran("add", "--type", "simple", normal, code=1).stderr
    assert ran("count", normal).stdout == "1\n"


def test_a_spool_queue_is_left_to_its_own_commands(path: Path) -> None:
    CliRunner().invoke(cli, ["put", str(path)], input=b"x")
    assert "use orchestrator put" in ran("add", path, stdin=b"y", code=1).stderr
    assert "use orchestrator put" in ran("count", path, code=1).stderr


def test_a_file_in_the_place_of_the_queue_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ran("count", tmp_path / "file", code=2)


# ---- add


def test_standard_input_and_files_are_elements_in_their_order(path: Path, kind: str, tmp_path: Path) -> None:
    (tmp_path / "first").write_bytes(b"1")
    found = added("--type", kind, path, tmp_path / "first", "-", stdin=ODD)
    assert names(path) == found
    bodies = ["--key", "body"] if kind == "normal" else []
    assert ran("get", path, *found, *bodies).stdout_bytes == b"1" + ODD


def test_each_line_is_an_element(path: Path, kind: str) -> None:
    found = added("--type", kind, "--lines", path, stdin=b"one\n\ntwo\r\nlast")
    rows = [json.loads(line) for line in ran("get", "--json", path, *found).stdout.splitlines()]
    assert [row["name"] for row in rows] == found
    data = ["one", "", "two\r", "last"]
    assert [row["data"] for row in rows] == (data if kind == "simple" else [{"body": one} for one in data])


def test_options_give_a_normal_queue_its_other_keys(path: Path, tmp_path: Path) -> None:
    (tmp_path / "fields").write_text('{"from": "file", "to": "ü"}')
    schema = "subject:string,body:string,header:table,raw:binary?"
    (name,) = added(
        "--type", "normal", "--schema", schema, "-d", "subject=a=b", "-f", f"header={tmp_path / 'fields'}",
        "-t", "header.from=option", "-t", "header.x.y=\t", path, stdin=b"text",
    )  # fmt: skip
    queue = Queue(str(path), schema={"subject": "string", "body": "string", "header": "table", "raw": "binary?"})
    assert queue.get_element(name) == {
        "subject": "a=b", "body": "text", "header": {"from": "option", "to": "ü", "x.y": "\t"},
    }  # fmt: skip


def test_a_body_that_an_option_gives_is_not_read_from_standard_input(path: Path) -> None:
    (name,) = added("--type", "normal", "-d", "body=given", path, stdin=b"not read")
    assert json.loads(ran("get", path, name).stdout) == {"name": name, "data": {"body": "given"}}
    assert "leave FILE and --lines out" in ran("add", "--lines", "-d", "body=given", path, code=2).stderr


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--schema", "body:text"), 2, "body"),
        (("--schema", "nonsense"), 2, "--schema"),
        (("-d", "body"), 2, "KEY=VALUE is wanted"),
        (("-d", "other=x"), 2, "no 'other' in the schema"),
        (("-t", "body.x=1"), 2, "a table for KEY"),
        (("-t", "header=1"), 2, "KEY.FIELD=VALUE"),
        (("-d", "header=[1]"), 1, "header is a table"),
        (("-d", 'header={"a": 1}'), 1, "header is a table"),
        (("-d", 'header={"a": "\\ud800"}'), 1, "header is a table"),
        (("-d", f"header={'[' * 100_000}"), 1, "header is a table"),
        (("-f", "header=/dev/null"), 1, "header is a table"),
        (("-f", "header=/no/such/file"), 1, "/no/such/file"),
        (("-t", "header.x=\udcff"), 1, "must be UTF-8"),
        (("--schema", "body:string"), 1, "body must be UTF-8"),
        (("--granularity", "1"), 2, "simple queue"),
        (("--umask", "8"), 2, "octal"),
        (("--umask", "1000"), 2, "octal"),
        (("--rndhex", "16"), 2, "rndhex"),
        (("--maxelts", "0"), 2, "maxelts"),
    ],
)
def test_what_an_element_cannot_be_is_refused_and_nothing_is_added(
    path: Path, words: tuple[str, ...], code: int, said: str
) -> None:
    assert said in ran("add", "--type", "normal", *words, path, stdin=ODD, code=code).stderr
    left = [one for one in path.rglob("*") if one.name not in ("temporary", "obsolete")]
    assert left == [], "nothing half made either"


@pytest.mark.parametrize(
    "words", [("-d", "body=x"), ("--schema", "body:string"), ("--maxelts", "5"), ("-t", "header.a=b")]
)
def test_a_simple_queue_has_neither_schema_nor_keys(path: Path, words: tuple[str, ...]) -> None:
    assert "--type normal" in ran("add", *words, path, code=2).stderr
    assert not path.exists()


def test_umask_rndhex_granularity_and_maxelts_are_the_librarys(path: Path, tmp_path: Path) -> None:
    (name,) = added("--umask", "027", "--rndhex", "11", "--granularity", "3600", path)
    assert name.endswith("b")
    assert int(name[:8], 16) % 3600 == 0
    assert (path / name).stat().st_mode & 0o777 == 0o640
    normal = tmp_path / "normal"
    found = added("--type", "normal", "--maxelts", "2", "--lines", normal, stdin=b"1\n2\n3\n")
    assert [one[:8] for one in found] == ["00000000", "00000000", "00000001"]


# ---- get


def test_get_writes_the_data_and_unlocks(path: Path, kind: str, one: str) -> None:
    stdout = ran("get", path, one).stdout
    assert stdout == "the body\n" if kind == "simple" else json.loads(stdout)["data"] == {"body": "the body\n"}
    assert names(path) == [one]
    assert json.loads(ran("iterate", "--json", path).stdout)[0]["is_locked"] is False


def test_get_and_remove_is_the_end_of_an_element(path: Path, one: str) -> None:
    assert "the body" in ran("get", "--remove", path, one).stdout
    assert names(path) == []
    assert f"{one} is not there" in ran("get", path, one, code=1).stderr


def test_bytes_that_are_no_text_come_out_of_json_whole(path: Path, kind: str) -> None:
    (name,) = added("--type", kind, path, stdin=ODD)
    data = json.loads(ran("get", "--json", path, name).stdout)["data"]
    assert base64.b64decode((data if kind == "simple" else data["body"])["base64"]) == ODD


def test_a_key_is_written_byte_for_byte_whatever_its_type(path: Path) -> None:
    (name,) = added("--type", "normal", "-t", "header.b=2", "-t", "header.a=1", path, stdin=ODD)
    assert ran("get", "--key", "body", path, name).stdout_bytes == ODD
    assert ran("get", "--key", "header", path, name).stdout_bytes == b"a\t1\nb\t2\n"
    assert names(path) == [name]


@pytest.mark.parametrize("key", ["nothing", "../body", "locked"])
def test_a_key_that_is_not_there_is_an_error_and_nothing_stays_locked(path: Path, key: str) -> None:
    (name,) = added("--type", "normal", path)
    ran("get", "--remove", "--key", key, path, name, code=1)
    assert names(path) == [name]
    assert json.loads(ran("iterate", "--json", path).stdout)[0]["is_locked"] is False


def test_key_is_for_a_normal_queue_and_excludes_json(path: Path, one: str, kind: str) -> None:
    words = ["--json"] if kind == "normal" else []
    assert "excludes --json" in ran("get", "--key", "body", *words, path, one, code=2).stderr


def test_get_removes_nothing_that_could_not_be_written(path: Path, one: str) -> None:
    """/dev/full takes nothing; neither does a pipe whose reader is gone."""
    command = [sys.executable, "-m", "orchestrator", "dirq", "get", "--remove", str(path), one]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode != 0
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as pipe:
        done = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert names(path) == [one]
    assert json.loads(ran("iterate", "--json", path).stdout)[0]["is_locked"] is False


# ---- what another has locked


@pytest.mark.parametrize("words", [("get",), ("get", "--remove"), ("remove",)])
def test_what_another_has_locked_is_left_to_it_and_the_rest_is_done(
    path: Path, kind: str, one: str, another: Callable[[], Queue | QueueSimple], words: tuple[str, ...]
) -> None:
    (second,) = added(path, stdin=b"second")
    holder = another()
    assert holder.lock(one)
    said = ran(*words, path, one, GONE, second, code=1).stderr
    assert f"{one} is locked by another" in said
    assert f"{GONE} is not there" in said
    assert second not in said
    assert names(path) == ([one, second] if words == ("get",) else [one])
    assert holder.get(one) in (b"the body\n", {"body": "the body\n"})
    holder.remove(one)


def test_remove_takes_elements_away(path: Path, one: str) -> None:
    (second,) = added(path, stdin=b"second")
    assert ran("remove", path, one).stdout == ""
    assert names(path) == [second]


@pytest.mark.parametrize("verb", ["get", "remove", "touch"])
@pytest.mark.parametrize("name", ["../../file", "x", "00000000", "0000000A/00000000000000", f"{GONE}\n", f"{GONE}.lck"])
def test_a_name_that_is_none_is_refused_before_anything_is_done(path: Path, one: str, verb: str, name: str) -> None:
    words = ("--remove",) if verb == "get" else ()
    assert "Traceback" not in ran(verb, *words, path, one, name, code=1).stderr
    assert names(path) == [one]


# ---- iterate, count, touch


def test_iterate_tells_programs_what_is_locked_and_since_when(
    path: Path, kind: str, one: str, another: Callable[[], Queue | QueueSimple]
) -> None:
    (second,) = added(path)
    another().lock(one)
    element = path / one
    os.utime(element, (0, element.stat().st_mtime - 500))
    first, last = json.loads(ran("iterate", "--json", path).stdout)
    assert first == {"name": one, "age_s": first["age_s"], "is_locked": True, "locked_s": first["locked_s"]}
    assert 500 <= first["locked_s"] < 560
    assert 0 <= first["age_s"] < 60
    assert last == {"name": second, "age_s": last["age_s"], "is_locked": False}


def test_an_empty_queue_is_listed_and_counted(path: Path) -> None:
    path.mkdir()
    assert ran("iterate", path).stdout == ""
    assert json.loads(ran("iterate", "--json", path).stdout) == []
    assert ran("count", path).stdout == "0\n"
    assert json.loads(ran("count", "--json", path).stdout) == {"count": 0}


def test_count_counts_elements_locked_or_not(
    path: Path, kind: str, one: str, another: Callable[[], Queue | QueueSimple]
) -> None:
    added(path, "--lines", stdin=b"a\nb\n")
    another().lock(one)
    assert ran("count", path).stdout == "3\n"


def test_a_reader_that_leaves_early_is_no_error(path: Path) -> None:
    added(path, "--lines", stdin=b"x\n" * 5000)
    for words in ("iterate", "iterate --json"):
        script = f"{sys.executable} -m orchestrator dirq {words} {path} | head -n 1"
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
        assert done.stdout.count("\n") == 1
        assert done.stderr == ""


def test_touch_makes_a_lock_young_again(
    path: Path, kind: str, one: str, another: Callable[[], Queue | QueueSimple]
) -> None:
    another().lock(one)
    os.utime(path / one, (0, 0))
    assert ran("touch", path, one).stdout == ""
    assert json.loads(ran("purge", "--json", path).stdout)["unlocked"] == []
    assert json.loads(ran("iterate", "--json", path).stdout)[0]["is_locked"] is True
    assert f"{GONE} is not there" in ran("touch", path, GONE, code=1).stderr


# ---- purge


def test_purge_tells_what_it_removed(
    path: Path, kind: str, one: str, another: Callable[[], Queue | QueueSimple]
) -> None:
    (young,) = added(path)
    for name in (one, young):
        another().lock(name)
    os.utime(path / one, (0, 0))
    left = path / one[:8] / f"{'0' * 14}.tmp" if kind == "simple" else path / "temporary" / ("0" * 14)
    left.touch() if kind == "simple" else left.mkdir()
    os.utime(left, (0, 0))
    (path / "00000000").mkdir(exist_ok=True)
    if kind == "normal":
        (path / "00000009").mkdir()
        (path / "00000008").mkdir()
    kept = ran("purge", "--maxtemp", "0", "--maxlock", "0", "--json", path).stdout
    assert json.loads(kept) == {"temporary": 0, "unlocked": [], "directories": 1}
    said = ran("purge", path).stdout
    assert said == f"unlocked {one}\nremoved: temporary 1, locks 1, directories 0\n"
    assert not left.exists()
    rows = {row["name"]: row["is_locked"] for row in json.loads(ran("iterate", "--json", path).stdout)}
    assert rows == {one: False, young: True}


@pytest.mark.parametrize("words", [("--maxlock", "-1"), ("--maxtemp", "soon")])
def test_an_age_is_a_number_of_seconds(path: Path, words: tuple[str, ...]) -> None:
    ran("purge", *words, path, code=2)


# ---- help, completion, errors


@pytest.mark.parametrize("verb", ["", "add", "count", "get", "iterate", "purge", "remove", "touch"])
def test_every_command_has_its_help(verb: str) -> None:
    assert "Usage:" in ran(*filter(None, [verb]), "--help").stdout


def completed(words: list[str], incomplete: str) -> list[str]:
    complete = ShellComplete(cli, {}, "orchestrator", "_ORCHESTRATOR_COMPLETE")
    return [item.value for item in complete.get_completions(["dirq", *words], incomplete)]


def test_commands_and_names_are_completed_and_no_queue_is_made(path: Path, one: str, tmp_path: Path) -> None:
    assert completed([], "it") == ["iterate"]
    (second,) = added(path)
    assert completed(["get", str(path)], "") == [one, second]
    assert completed(["remove", str(path), one], "") == [second]
    assert completed(["touch", str(path)], "x") == []
    assert completed(["get", str(tmp_path / "nothing")], "") == []
    assert not (tmp_path / "nothing").exists()


def test_an_error_of_the_kernel_is_one_line_that_names_the_place(tmp_path: Path, kind: str) -> None:
    """Something lies there under the name of an element that can be none of the kind; the path has a newline in it."""
    path = tmp_path / "a\nqueue"
    added("--type", kind, path)
    (path / GONE).parent.mkdir(exist_ok=True)
    (path / GONE).mkdir() if kind == "simple" else (path / GONE).touch()
    said = ran("remove", path, GONE, code=1).stderr
    assert f"a\\nqueue/{GONE}" in said
    assert said.count("\n") == 1
    assert (path / GONE).exists()
