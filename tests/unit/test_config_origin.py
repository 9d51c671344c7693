"""Where each value comes from: every later source wins for every key, and config show --origin says which it was."""

from __future__ import annotations

import json
import tomllib
from itertools import combinations

import pytest
from click.testing import CliRunner

from orchestrator.cli.config import config as config_group
from orchestrator.cli.options import configured
from orchestrator.config import NO_VARIABLE, ConfigError, load, load_with_origins, reference, tables
from orchestrator.config_draft import Draft

# Two values of each key that can stand beside the rest, as a file has them.
VALUES = {
    "pool": {
        "name": ("a", "b"), "host": ("h1", "h2"), "run_dir": ("/r1", "/r2"), "stop_timeout": ("1s", "2s"),
        "term_timeout": ("1s", "2s"), "stats_interval": ("1s", "0s"), "runlog_dir": ("/l1", "/l2"),
        "runlog_interval": ("1s", "0s"), "runlog_keep": (1, 2), "state_file": ("/s1", "/s2"),
        "log_file": ("/g1", "/g2"),
    },
    "queue": {
        "url": ("spool:/q1", "spool:/q2"), "handler": ("m:a", "m:b"), "preload": (False, True), "shell": (False, False),
        "command": (["a"], ["b"]), "forward": ("spool:/f1", "spool:/f2"), "components": (["m:A"], ["m:B", "m:C"]),
        "options": ({"x": 1}, {"x": 2}), "event_map": ({"start": "a"}, {"start": "b"}),
        "output": ("spool:/o1", "spool:/o2"), "output_limit": (1, 2), "output_wait": ("1s", "2s"), "workers": (1, 2),
        "order": ("fifo", "any"), "time_limit": ("1s", "2s"), "max_message_size": (1, 2),
        "max_attempts": (1, 2), "retry_backoff": ("1s", "2s"),
        "retry_backoff_max": ("1m", "2m"), "crash_limit": (1, 2), "lease_interval": ("1s", "2s"),
        "lease_timeout": ("60s", "70s"), "stale_after": ("10m", "11m"), "state_dir": ("/d1", "/d2"),
        "keep_done": ("1s", "2s"), "keep_errors": ("1s", "2s"), "create": (False, True),
        "watch": ("inotify", "poll"), "poll_interval": ("1s", "2s"),
    },
    "metrics": {"listen": ("127.0.0.1:1", "none")},
    "daemon": {
        "chroot_dir": ("/c1", "/c2"), "work_dir": ("/w1", "/w2"), "umask": ("022", "077"), "user": ("u1", "u2"),
        "group": ("g1", "g2"), "pid_file": ("/p1", "/p2"), "stdout": ("/o1", "/o2"), "stderr": ("/e1", "/e2"),
    },
}  # fmt: skip
KEYS = [(table, key) for table, keys in VALUES.items() for key in keys if (table, key) != ("queue", "shell")]
SOURCES = ("file", "fragment", "environment", "flag")
FLAGS = {option.name for option in configured(lambda: None).__click_params__}


def document(table: str, values: dict[str, object]) -> str:
    heading = "[[queue]]" if table == "queue" else f"[{table}]"
    inline = {key: value for key, value in values.items() if isinstance(value, dict)}
    plain = {key: value for key, value in values.items() if not isinstance(value, dict)}
    lines = [f"{key} = {json.dumps(value)}" for key, value in plain.items()]
    lines += [f"{key}.{part} = {json.dumps(value)}" for key, parts in inline.items() for part, value in parts.items()]
    return "\n".join([heading, *lines, ""])


def base_of(table: str, key: str) -> dict[str, object]:
    """What a queue needs beside *key*."""
    if table != "queue":
        return {}
    base = {"name": "q", "url": "spool:/q", "handler": "m:h"}
    if key in ("command", "forward", "components"):
        del base["handler"]
    if key in ("options", "event_map"):
        base = {"name": "q", "url": "spool:/q", "components": ["m:C"]}
    if key == "output_limit":
        base["output"] = "spool:/o"
    return {one: value for one, value in base.items() if one != key}


def can_say(source: str, table: str, key: str) -> bool:
    if source == "environment":
        return key not in NO_VARIABLE
    if source == "flag":
        # Those without a flag of their own are the arguments of the command line.
        return key in FLAGS - {"components"} or key in ("command", "components")
    return True


def as_text(value: object) -> object:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)


@pytest.mark.parametrize(("table", "key"), KEYS)
def test_for_every_key_each_later_source_wins_over_each_earlier_one(tmp_path, table, key):
    first, last = VALUES[table][key]
    able = [source for source in SOURCES if can_say(source, table, key)]
    assert len(able) > 1
    for early, late in combinations(able, 2):
        said = {early: first, late: last}
        paths = []
        for name in ("file", "fragment"):
            values = {key: said[name]} if name in said else {}
            if table == "queue":
                values = (base_of(table, key) if name == "file" else {"name": "q"}) | values
            paths.append(tmp_path / f"{name}.toml")
            text = document(table, values)
            if name == "file" and table == "queue" and key == "url" and "file" not in said:
                text = document(table, values | {"url": "spool:/q0"})
            paths[-1].write_text(text if values or table != "queue" else "")
        environment = {f"ORCHESTRATOR_{key.upper()}": as_text(said["environment"])} if "environment" in said else {}
        arguments = {}
        flags = {}
        if "flag" in said:
            place = arguments if key in ("handler", "command", "components") else flags
            place[key] = said["flag"]
        config, drafts = load_with_origins(paths, flags=flags, environment=environment, needs_queues=False, **arguments)
        found = tables(config)[table]
        wanted = tomllib.loads(f"x = {json.dumps(last)}")["x"] if not isinstance(last, dict) else last
        row = found[0] if table == "queue" else found
        assert row[key] == (float(last[:-1]) * {"s": 1, "m": 60}[last[-1]] if is_duration(table, key) else wanted)
        place = (key, *list(last)[:1]) if isinstance(last, dict) else (key,)
        origin = drafts.of(table, 0).origin_of(place)
        assert (
            str(origin)
            == {
                "file": f"{paths[0]}:{line_of(paths[0], key)}",
                "fragment": f"{paths[1]}:{line_of(paths[1], key)}",
                "environment": f"environment: ORCHESTRATOR_{key.upper()}",
                "flag": f"command line: {flag(key)}",
            }[late]
        ), (early, late)


def is_duration(table: str, key: str) -> bool:
    return next(one.type for one in reference() if (one.table, one.key) == (table, key)) == "duration"


def line_of(path, key: str) -> int:
    lines = path.read_text().splitlines()
    return next((n for n, line in enumerate(lines, 1) if line.startswith((f"{key} ", f"{key}."))), 0)


def flag(key: str) -> str:
    return {"command": "COMMAND", "components": "--component"}.get(key, "--" + key.replace("_", "-"))


def test_the_values_of_these_tests_are_of_every_key():
    keys = {(one.table, one.key) for one in reference()}
    assert keys == {(table, key) for table, values in VALUES.items() for key in values} | {("queue", "name")}


def show(*arguments: str, **environment: str):
    return CliRunner(env=environment).invoke(config_group, ["show", "--origin", *arguments])


@pytest.fixture
def site(tmp_path):
    (tmp_path / "site.toml").write_text(
        '[pool]\nname = "site"\n[[queue]]\nurl = "/in"\ncomponents = ["m:C", { use = "m:D", x = 1 }]\n'
        "options.deep = { a = [1, 2] }\n"
    )
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "1.toml").write_text('[[queue]]\nname = "in"\noptions."a b" = 1.5\n')
    return tmp_path


def test_each_line_says_where_its_value_comes_from_and_is_still_a_file_that_means_the_same(site):
    arguments = ("-c", f"{site}/site.toml", "-c", f"{site}/conf", "--workers", "3", "--umask", "027")
    shown = show(*arguments, ORCHESTRATOR_KEEP_DONE="2h")
    lines = shown.stdout.splitlines()
    for line in (
        f'name = "site"  # {site}/site.toml:2',
        f'name = "in"  # {site}/conf/1.toml:2',
        f'url = "spool:/in"  # {site}/site.toml:4',
        f'components = ["m:C", {{ use = "m:D", x = 1 }}]  # {site}/site.toml:5',
        f"options.deep = {{ a = [1, 2] }}  # {site}/site.toml:6",
        f'options."a b" = 1.5  # {site}/conf/1.toml:3',
        "workers = 3  # command line: --workers",
        'keep_done = "2h"  # environment: ORCHESTRATOR_KEEP_DONE',
        'umask = "027"  # command line: --umask',
        'order = "fifo"  # default',
        "# handler is not set  # default",
        "event_map = {}  # default",
    ):
        assert line in lines, line
    plain = CliRunner(env={"ORCHESTRATOR_KEEP_DONE": "2h"}).invoke(config_group, ["show", *arguments]).stdout
    assert tomllib.loads(shown.stdout) == tomllib.loads(plain)
    assert all("  # " in line for line in lines if line and not line.startswith("["))


def test_a_name_that_nobody_gave_is_derived(site):
    lines = show("/some/queue", "--handler", "m:h").stdout.splitlines()
    assert 'name = "queue"  # derived' in lines
    assert sum(line.endswith("  # derived") for line in lines) == 2, "the pool's and the queue's"
    assert 'url = "spool:/some/queue"  # command line: QUEUE /some/queue' in lines


def test_as_json_each_key_is_an_object(site):
    arguments = ("--json", "-c", f"{site}/site.toml", "-c", f"{site}/conf", "--max-attempts", "2")
    found = json.loads(show(*arguments).stdout)
    (queue,) = found["queue"]
    assert queue["url"] == {
        "value": "spool:/in", "source": f"{site}/site.toml", "line": 4, "name": "[[queue]] 1 url",
    }  # fmt: skip
    assert queue["options.a b"]["line"] == 3
    assert queue["max_attempts"] == {
        "value": 2, "source": "command line", "line": None, "name": "--max-attempts",
    }  # fmt: skip
    assert queue["order"]["source"] == found["daemon"]["umask"]["source"] == "default"
    plain = json.loads(CliRunner().invoke(config_group, ["show", *arguments]).stdout)
    assert {key: one["value"] for key, one in found["pool"].items()} == plain["pool"]


def test_dates_and_other_values_of_options_are_shown_in_both_forms(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text(
        '[[queue]]\nurl = "/q"\ncomponents = ["m:C"]\n[queue.options]\nday = 2020-01-02\nat = 2020-01-02T03:04:05Z\n'
        'time = 03:04:05\nyes = true\nnan = nan\n"#" = "\\u0000 # \\n"\nnested = { "x.y" = [{}] }\n'
    )
    arguments = ["show", "-c", str(path)]
    options = tomllib.loads(CliRunner().invoke(config_group, arguments).stdout)["queue"][0]["options"]
    wanted = tomllib.loads(path.read_text())["queue"][0]["options"]
    assert str(options) == str(wanted)
    assert json.loads(CliRunner().invoke(config_group, [*arguments, "--json"]).stdout)["queue"][0]["options"]["day"]


def test_a_variable_is_named_where_no_file_has_its_table():
    with pytest.raises(ConfigError, match=r"^environment: ORCHESTRATOR_STOP_TIMEOUT: must be a duration"):
        load((), flags={}, environment={"ORCHESTRATOR_STOP_TIMEOUT": "x"}, needs_queues=False)


def test_where_a_line_is_not_known_there_is_that_of_the_table_or_the_file_alone():
    draft = Draft("queue", "[[queue]] 1")
    draft.merge({"options": {"a": 1}}, "site.toml", "[[queue]] 1", {(): 3})
    assert str(draft.origin_of(("options", "a"))) == "site.toml:3"
    draft.merge({"workers": 1}, "more.toml", "[[queue]] 1", {})
    assert str(draft.origin_of(("workers",))) == "more.toml"
    assert str(draft.origin_of(("order",))) == "default"


def test_a_source_cannot_forge_a_line(tmp_path):
    path = tmp_path / "a\nb.toml"
    path.write_text('[pool]\nname = "x"\n')
    lines = show("-c", str(path)).stdout.splitlines()
    assert f'name = "x"  # {tmp_path}/a\\nb.toml:2' in lines
