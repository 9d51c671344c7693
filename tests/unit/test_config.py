"""Configuration: what is read from where, what is refused and how it is said."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from orchestrator.cli.config import as_markdown, as_toml, check
from orchestrator.cli.config import config as config_group
from orchestrator.config import (
    Config,
    ConfigError,
    Fault,
    QueueConfig,
    diff,
    load,
    reference,
    tables,
    unused_daemon_keys,
)
from orchestrator.config_models import TABLES
from orchestrator.config_toml import FILE_SIZE_MAX, lines_of, nearest
from orchestrator.config_values import (
    absolute_url,
    base_name,
    duration_text,
    host_name,
    listen_text,
    parse_duration,
    parse_listen,
    parse_size,
    pool_name,
    run_directory,
    shown,
    usable_cores,
)
from workers.errors import OrchestratorError

GOOD = """\
[pool]
name = "site"
stop_timeout = "2m"

[[queue]]
url = "/var/spool/thumbs"
handler = "shop.thumbnails:handle"
workers = 4

[[queue]]
name = "sums"
url = "spool:sums"
command = ["sha256sum", "{path}"]
workers = 2
order = "any"
keep_done = "1d"
"""

QUEUE = '[[queue]]\nurl = "/q"\nhandler = "m:h"\n'


@pytest.fixture
def read(tmp_path):
    """Load *text* as a file, with nothing of the real environment."""

    def read_text(text: str | bytes, flags=None, environment=None, **more) -> Config:
        path = tmp_path / "site.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load((path,), flags=flags or {}, environment=environment or {}, **more)

    return read_text


@pytest.fixture
def refused(read, tmp_path):
    """Load *text*, which must be refused; its errors as (line, key, text)."""

    def refused_text(text: str | bytes, **more) -> list[tuple[int | None, str, str]]:
        with pytest.raises(ConfigError) as caught:
            read(text, **more)
        assert {error.source for error in caught.value.errors} <= {
            str(tmp_path / "site.toml"),
            "environment",
            "command line",
        }
        assert str(caught.value).splitlines() == [str(error) for error in caught.value.errors]
        return [(error.line, error.key, error.text) for error in caught.value.errors]

    return refused_text


def test_a_file_becomes_models_with_every_default_filled_in(read, tmp_path):
    config = read(GOOD)
    thumbs, sums = config.queues
    assert (config.pool.name, config.pool.stop_timeout, config.pool.term_timeout) == ("site", 120.0, 5.0)
    assert (thumbs.name, thumbs.url, thumbs.workers) == ("thumbs", "spool:/var/spool/thumbs", 4)
    assert (thumbs.order, thumbs.max_attempts, thumbs.crash_limit, thumbs.create) == ("fifo", 5, 3, True)
    assert (sums.url, sums.command, sums.order) == (f"spool:{tmp_path}/sums", ("sha256sum", "{path}"), "any")
    assert config.metrics.listen == ("127.0.0.1", 9464)
    assert config.metrics.listen_is_default
    assert config.workers == 6
    assert config.paths == (tmp_path / "site.toml",)


def test_settings_carry_every_key_to_the_queue():
    queue = QueueConfig(
        name="q", url="/q", handler="m:h", order="any", max_attempts=7, retry_backoff=2, retry_backoff_max=9,
        crash_limit=4, lease_interval=1, lease_timeout=5, stale_after=50, keep_done=0, keep_errors=60, create=False,
        watch="poll", poll_interval=0.5,
    )  # fmt: skip
    settings = queue.settings()
    assert (settings.order, settings.max_attempts, settings.crash_limit, settings.create) == ("any", 7, 4, False)
    assert (settings.retry_backoff_s, settings.retry_backoff_s_max) == (2.0, 9.0)
    assert (settings.lease_interval_s, settings.lease_timeout_s, settings.stale_after_s) == (1.0, 5.0, 50.0)
    assert (settings.keep_done_s, settings.keep_errors_s) == (0.0, 60.0)
    assert (settings.watch, settings.poll_interval_s) == ("poll", 0.5)


def test_unset_lease_times_stay_the_queues_own(read):
    settings = read(QUEUE).queues[0].settings()
    assert (settings.lease_interval_s, settings.lease_timeout_s, settings.stale_after_s) == (None, None, None)


OTHER = '[[queue]]\nurl = "/r"\n'

# Each text is added below QUEUE, whose three lines come first, or stands alone when it begins with a table.
ERRORS = {
    "unknown key": ("workrs = 4", 4, "[[queue]] 1 workrs", "did you mean workers?"),
    "key like none": ("zzzzzz = 4", 4, "[[queue]] 1 zzzzzz", "expected one of name, url"),
    "key of another table": ('listen = "none"', 4, "[[queue]] 1 listen", "belongs into [metrics]"),
    "escape sequence in a key": ('"\\u001b[31m" = 1', 4, "[[queue]] 1 \x1b[31m", "unknown key"),
    "text for a number": ('workers = "4"', 4, "[[queue]] 1 workers", 'must be a whole number, not "4"'),
    "fraction for a number": ("workers = 4.0", 4, "[[queue]] 1 workers", "must be a whole number, not 4.0"),
    "truth for a number": ("workers = true", 4, "[[queue]] 1 workers", "must be a whole number, not true"),
    "number for truth": ("create = 1", 4, "[[queue]] 1 create", "must be true or false, not 1"),
    "no worker": ("workers = 0", 4, "[[queue]] 1 workers", "must be at least 1, not 0"),
    "too many workers": ("workers = 1025", 4, "[[queue]] 1 workers", "must be at most 1024"),
    "unknown order": ('order = "fifoo"', 4, "[[queue]] 1 order", "did you mean fifo?"),
    "unknown watch": ('watch = "notify"', 4, "[[queue]] 1 watch", "did you mean inotify?"),
    "truth for a watch": ("watch = true", 4, "[[queue]] 1 watch", "must be auto, inotify or poll, not true"),
    "no pause at all": ("poll_interval = 0", 4, "[[queue]] 1 poll_interval", "longer than 0"),
    "pause too short": ('poll_interval = "0.5ms"', 4, "[[queue]] 1 poll_interval", "must be 1ms or longer"),
    "watched kernel queue": (
        '[[queue]]\nurl = "mqueue:/m"\nhandler = "m:h"\nwatch = "inotify"',
        7,
        "[[queue]] 2 watch",
        "the kernel wakes",
    ),
    "polled kernel queue": (
        '[[queue]]\nurl = "mqueue:/m"\nhandler = "m:h"\npoll_interval = 1',
        7,
        "[[queue]] 2 poll_interval",
        "poll_interval is not possible",
    ),
    "watched set": (
        '[[queue]]\nurl = "set:dirq-simple:/a,dirq-simple:/b"\nhandler = "m:h"\nwatch = "inotify"',
        7,
        "[[queue]] 2 watch",
        "a set is polled",
    ),
    "no duration": ('retry_backoff = "soon"', 4, "[[queue]] 1 retry_backoff", 'such as "90s"'),
    "negative keep_done": ("keep_done = -1", 4, "[[queue]] 1 keep_done", "not -1"),
    "infinite duration": ("keep_errors = inf", 4, "[[queue]] 1 keep_errors", "not inf"),
    "no time at all": ("time_limit = 0", 4, "[[queue]] 1 time_limit", "longer than 0"),
    "bad queue name": ('name = "a b"', 4, "[[queue]] 1 name", "1 to 64 of the characters"),
    "handler and command": ('command = ["ls"]', 4, "[[queue]] 1 command", "keep one of them"),
    "handler and forward": ('forward = "/r"', 4, "[[queue]] 1 forward", "keep one of them"),
    "forward to itself": ('[[queue]]\nurl = "/r"\nforward = "/r"', 6, "[[queue]] 2 forward", "is this very queue"),
    "forward to no queue": (
        '[[queue]]\nurl = "/r"\nname = "r"\nforward = "rr"',
        7,
        "[[queue]] 2 forward",
        "names no queue of this configuration; did you mean r?",
    ),
    "forward to no protocol": ('[[queue]]\nurl = "/r"\nforward = "amqp:x"', 6, "[[queue]] 2 forward", "unknown scheme"),
    "shell without command": ("shell = true", 4, "[[queue]] 1 shell", "needs command"),
    "backoff over its bound": ('retry_backoff = "10m"', 4, "[[queue]] 1 retry_backoff", "which is 5m"),
    "lease too short": (
        "lease_timeout = 14",
        4,
        "[[queue]] 1 lease_timeout",
        "(14s) must be three times lease_interval (5s",
    ),
    "interval too long": ("lease_interval = 21", 4, "[[queue]] 1 lease_interval", "lease_interval (21s)"),
    "stale before the lease": ("stale_after = 60", 4, "[[queue]] 1 stale_after", "longer than lease_timeout (1m"),
    "lease beyond stale": ('lease_timeout = "1h"', 4, "[[queue]] 1 lease_timeout", "stale_after (10m, the default)"),
    "same name": (
        'name = "x"\n' + QUEUE.replace("/q", "/r") + 'name = "x"',
        8,
        "[[queue]] 2 name",
        "[[queue]] 1 has that name",
    ),
    "same url": (QUEUE, 5, "[[queue]] 2 url", "is the same queue"),
    "no url": ('[[queue]]\nhandler = "m:h"', 4, "[[queue]] 2 url", "is missing"),
    "neither handler nor command": ('[[queue]]\nurl = "/r"', 4, "[[queue]] 2 handler", "set handler ="),
    "unknown scheme": (
        '[[queue]]\nurl = "amqp:x"\nhandler = "m:h"',
        5,
        "[[queue]] 2 url",
        "known are spool:, dirq",
    ),
    "handler without a colon": ('[[queue]]\nurl = "/r"\nhandler = "m"', 6, "[[queue]] 2 handler", "MODULE:NAME"),
    "command as one text": ('[[queue]]\nurl = "/r"\ncommand = "ls"', 6, "[[queue]] 2 command", "with shell = true"),
    "empty command": ('[[queue]]\nurl = "/r"\ncommand = []', 6, "[[queue]] 2 command", "must name a program"),
    "number in a command": ('[[queue]]\nurl = "/r"\ncommand = [\n"ls",\n5]', 8, "[[queue]] 2 command", "must be text"),
    "quoted placeholder": (
        '[[queue]]\nurl = "/r"\nshell = true\ncommand = "gzip \'{path}\'"',
        7,
        "[[queue]] 2 command",
        "{path} is quoted in the shell command; take the quotes",
    ),
    "placeholder in a text for a shell": (
        '[[queue]]\nurl = "/r"\ncommand = ["env", "sh", "-ec", "gzip {path}"]',
        6,
        "[[queue]] 2 command",
        "{path} stands in a text that sh reads as commands",
    ),
    "words for a shell": (
        '[[queue]]\nurl = "/r"\nshell = true\ncommand = ["a", "b"]',
        7,
        "[[queue]] 2 command",
        "one text",
    ),
    "bad pool name": ('[pool]\nname = "-x"', 5, "[pool] name", "a letter or _ first"),
    "bad host": ('[pool]\nhost = "a/b"', 5, "[pool] host", "1 to 64"),
    "empty run_dir": ('[pool]\nrun_dir = ""', 5, "[pool] run_dir", "must be a path"),
    "address without port": ('[metrics]\nlisten = "localhost"', 5, "[metrics] listen", "HOST:PORT"),
    "port out of range": ('[metrics]\nlisten = "localhost:70000"', 5, "[metrics] listen", "0 to 65535"),
    "address without host": ('[metrics]\nlisten = ":9464"', 5, "[metrics] listen", "0.0.0.0:9464"),
    "bare IPv6 address": ('[metrics]\nlisten = "::1:9464"', 5, "[metrics] listen", "in brackets"),
    "unknown table": ("[metric]\nx = 1", 4, "metric", "did you mean metrics?"),
    "unknown table like none": ("[worker]\n", 4, "worker", "expected one of pool, queue, metrics, daemon"),
    "list of pools": ("[[pool]]", 4, "pool", "[pool] once"),
    "components and handler": ('components = ["m:C"]', 4, "[[queue]] 1 components", "keep one of them"),
    "components as one text": (OTHER + 'components = "m:C"', 6, "[[queue]] 2 components", 'a list such as ["MODULE'),
    "no component": (OTHER + "components = []", 6, "[[queue]] 2 components", "must name a component"),
    "component by its file": (
        OTHER + 'components = [\n"./a/b.py:C"]',
        7,
        "[[queue]] 2 components",
        "did you mean a.b:C?",
    ),
    "component with dots alone": (OTHER + 'components = ["a.b.C"]', 6, "[[queue]] 2 components", "did you mean a.b:C?"),
    "component that is no text": (OTHER + "components = [5]", 6, "[[queue]] 2 components", 'must be "MODULE:NAME", or'),
    "component without use": (OTHER + "components = [{ x = 1 }]", 6, "[[queue]] 2 components", 'needs use = "MODULE'),
    "no name of an argument": (
        OTHER + 'components = [{ use = "m:C", "a b" = 1 }]',
        6,
        "[[queue]] 2 components",
        'has the key "a b", which cannot be the name of an argument',
    ),
    "options without components": ("options.x = 1", 4, "[[queue]] 1 options", "needs components"),
    "options as text": ('options = "x"', 4, "[[queue]] 1 options", "must be a table, not"),
    "event called by a number": (
        OTHER + 'components = ["m:C"]\n[queue.event_map]\nstart = 5',
        8,
        "[[queue]] 2 event_map",
        'must be a table of text to text, and "start" is 5',
    ),
    "output to itself": ('output = "q"', 4, "[[queue]] 1 output", "is this very queue"),
    "output to itself by its URL": ('output = "/q"', 4, "[[queue]] 1 output", "is this very queue"),
    "output to no queue": ('output = "out"', 4, "[[queue]] 1 output", "; for a directory write ./out"),
    "output and forward": (OTHER + 'forward = "/s"\noutput = "/t"', 7, "[[queue]] 2 output", "goes not together"),
    "limit without output": ("output_limit = 5", 4, "[[queue]] 1 output_limit", "needs output or forward"),
    "limit below 0": ('output = "/r"\noutput_limit = -1', 5, "[[queue]] 1 output_limit", "must be at least 0"),
    "no wait at all": ('output = "/r"\noutput_wait = 0', 5, "[[queue]] 1 output_wait", "longer than 0"),
    "no run log kept": ("[pool]\nrunlog_keep = 0", 5, "[pool] runlog_keep", "must be at least 1"),
    "empty log file": ('[pool]\nlog_file = ""', 5, "[pool] log_file", "must be a path"),
    "umask as a number": ("[daemon]\numask = 22", 5, "[daemon] umask", 'such as "022", in quotes'),
    "umask that is not octal": (
        '[daemon]\numask = "089"',
        5,
        "[daemon] umask",
        'octal text of three digits such as "022"',
    ),
    "umask beyond the file modes": ('[daemon]\numask = "1022"', 5, "[daemon] umask", "octal text"),
    "umask that takes the owner's rights": ('[daemon]\numask = "0777"', 5, "[daemon] umask", "the owner's own rights"),
    "user beyond all numbers": ('[daemon]\nuser = "99999999999"', 5, "[daemon] user", "from 0 to 4294967294"),
    "group that means no change": ('[daemon]\ngroup = "4294967295"', 5, "[daemon] group", "from 0 to 4294967294"),
    "pid file that is the log": (
        '[pool]\nlog_file = "/l"\n[daemon]\npid_file = "/x/../l"',
        7,
        "[daemon] pid_file",
        "is pool.log_file too; name another file",
    ),
    "state file that is the output": (
        '[pool]\nstate_file = "/l"\n[daemon]\nstdout = "/l"',
        7,
        "[daemon] stdout",
        "is pool.state_file too",
    ),
    "pid file that is the pool's own": (
        '[pool]\nrun_dir = "/r"\nname = "n"\n[daemon]\npid_file = "/r/n/pid"',
        8,
        "[daemon] pid_file",
        "is a file of the run directory",
    ),
    "log among the states": (
        '[pool]\nrun_dir = "/r"\nname = "n"\nlog_file = "/r/n/states/log"',
        7,
        "[pool] log_file",
        "is a file of the run directory",
    ),
    "output that is the daemon's log": (
        '[pool]\nrun_dir = "/r"\nname = "n"\n[daemon]\nstderr = "/r/n/log"',
        8,
        "[daemon] stderr",
        "is the log of a daemon",
    ),
    "run logs where the state is": (
        '[pool]\nrunlog_dir = "/r"\nstate_file = "/r"',
        6,
        "[pool] state_file",
        "is pool.runlog_dir too",
    ),
    "user as a number": ("[daemon]\nuser = 1000", 5, "[daemon] user", 'a number in quotes, as in "1000"'),
    "group that is a list": ('[daemon]\ngroup = "a:b"', 5, "[daemon] group", "a name or a number"),
    "list of daemons": ("[[daemon]]", 4, "daemon", "[daemon] once"),
    "syntax": ("workers = four", 4, "", "is no TOML: invalid value; text needs quotes"),
    "key twice": ('url = "/r"', 4, "", "is no TOML: cannot overwrite"),
}


@pytest.mark.parametrize("kind", ERRORS)
def test_each_error_names_line_key_and_what_was_expected(refused, kind):
    below, line, key, text = ERRORS[kind]
    found = refused(QUEUE + below)
    assert len(found) == 1, found
    assert found[0][:2] == (line, key)
    assert text in found[0][2]


def test_all_errors_of_a_file_are_told_at_once_in_its_order(refused):
    found = refused(
        'workers = 4\n[pool]\nnam = "x"\n[[queue]]\nurl = "/a"\nhandler = "m:h"\nworkers = "many"\n'
        'lease_timeout = "14s"\n'
        '[[queue]]\nhandler = 5\ncommand = ["ls"]\n[metrics]\nlisten = 9464\n'
    )
    assert [(line, key) for line, key, _ in found] == [
        (1, "workers"), (3, "[pool] nam"), (7, "[[queue]] 1 workers"), (8, "[[queue]] 1 lease_timeout"),
        (9, "[[queue]] 2 url"), (10, "[[queue]] 2 handler"), (13, "[metrics] listen"),
    ]  # fmt: skip


def test_a_key_above_all_tables_is_shown_its_place(refused):
    found = refused("worker = 3\nlisten = 1\n" + QUEUE)
    assert found == [
        (1, "worker", "unknown key; did you mean workers, in [[queue]]?"),
        (2, "listen", "unknown key here; it belongs into [metrics]"),
    ]


def test_a_current_directory_that_is_gone_is_a_sentence(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(ConfigError, match="current directory is gone"):
        load((), flags={}, environment={}, queues=["q"], handler="m:h")


def test_single_brackets_for_a_queue_are_explained(refused):
    assert refused('[queue]\nurl = "/q"\nhandler = "m:h"') == [
        (1, "[queue]", "must be written [[queue]], in double brackets, for there may be several")
    ]


def test_too_many_queues_and_workers_are_refused_before_anything_starts(refused):
    many = "".join(f'[[queue]]\nurl = "/q{n}"\nhandler = "m:h"\nworkers = 1\n' for n in range(65))
    assert refused(many) == [(257, "[[queue]] 65", "a pool has at most 64 queues, not 65; run several pools")]
    found = refused(QUEUE + "workers = 24\n" + QUEUE.replace("/q", "/r") + "workers = 1001\n")
    assert [(line, key) for line, key, _ in found] == [(8, "[[queue]] 2 workers")]


def test_a_file_without_queues_is_refused_unless_only_the_rest_is_asked_for(read, refused):
    assert "there is no queue" in refused("[pool]\n")[0][2]
    assert read("[pool]\n", needs_queues=False).pool.name == "pool"


@pytest.mark.parametrize(
    ("content", "line", "text"),
    [
        (b"[pool]\nname = '\xff'\n", 2, "UTF-8"),
        (b"a" * (FILE_SIZE_MAX + 1), None, "larger"),
        (b"x = " + b"[" * 9000, None, "TOML"),
        (b"x = " + b"9" * 9000, None, "TOML"),
        (b"x = " + b"[" * 80 + b"]" * 80, None, "more than 64 tables and lists in each other"),
        (b"a" + b" . 'a'" * 90000 + b" = 1", None, "more than 64 tables and lists in each other"),
        (b"[pool", 1, "TOML"),
        (b"a = 1\n[pool]\n\nb = \n", 4, "TOML"),
    ],
)
def test_a_file_that_is_no_toml_keeps_its_line(refused, content, line, text):
    ((found_line, _, found),) = refused(content)
    assert found_line == line
    assert text in found


@pytest.mark.parametrize(
    ("target", "said"),
    [("/dev/zero", "is no regular file"), ("/proc/self/mem", "annot be read"), ("loop.toml", "Too many levels")],
)
def test_what_is_read_without_end_or_not_at_all_is_a_sentence(tmp_path, target, said):
    (tmp_path / "loop.toml").symlink_to(target)
    with pytest.raises(ConfigError, match=said):
        load((tmp_path / "loop.toml",), flags={}, environment={})


def test_a_missing_file_is_a_sentence(tmp_path):
    path = tmp_path / "none.toml"
    with pytest.raises(ConfigError, match="No such file") as caught:
        load((path,), flags={}, environment={})
    assert str(path) in str(caught.value)
    assert isinstance(caught.value, OrchestratorError)


def test_a_fault_shows_no_control_characters():
    assert str(Fault("a\x1b[2J.toml", 3, "x\n", "y")) == "a\\x1b[2J.toml:3: x\\n: y"


def test_the_environment_overrides_the_file_and_flags_override_both(read, tmp_path):
    environment = {
        "ORCHESTRATOR_NAME": "env", "ORCHESTRATOR_WORKERS": "3", "ORCHESTRATOR_LISTEN": "[::1]:0",
        "ORCHESTRATOR_HOST": "h1", "ORCHESTRATOR_RUN_DIR": "run", "ORCHESTRATOR_CREATE": "no",
        "ORCHESTRATOR_RETRY_BACKOFF": "250ms",
        "ORCHESTRATOR_ORDER": "", "ORCHESTRATOR_URL": "/nowhere",
    }  # fmt: skip
    config = read(GOOD, environment=environment)
    assert (config.pool.name, config.pool.host, config.metrics.listen) == ("env", "h1", ("::1", 0))
    assert config.pool.run_dir == Path.cwd() / "run"
    assert not config.metrics.listen_is_default
    assert [(q.workers, q.create, q.retry_backoff) for q in config.queues] == [(3, False, 0.25)] * 2
    assert [queue.order for queue in config.queues] == ["fifo", "any"]
    assert [queue.name for queue in config.queues] == ["thumbs", "sums"]
    flags = {"name": "flag", "workers": 7, "listen": "none", "host": None, "run_dir": tmp_path / "r"}
    config = read(GOOD, environment=environment, flags=flags)
    assert (config.pool.name, config.pool.host, config.metrics.listen) == ("flag", "h1", None)
    assert config.pool.run_dir == tmp_path / "r"
    assert [queue.workers for queue in config.queues] == [7, 7]


def test_a_wrong_variable_or_flag_is_named_once_though_there_are_two_queues(refused):
    assert refused(GOOD, environment={"ORCHESTRATOR_WORKERS": "many"}) == [
        (None, "ORCHESTRATOR_WORKERS", 'must be a whole number, not "many"')
    ]
    assert refused(GOOD, flags={"stop_timeout": "x", "workers": 0})[0] == (
        None,
        "--workers",
        "must be at least 1, not 0",
    )


def test_a_variable_that_looks_mistyped_is_a_warning(read):
    """Kubernetes sets ORCHESTRATOR_PORT and the like for a service of that name, so it is no error."""
    service = ("SERVICE_HOST", "SERVICE_PORT", "PORT", "PORT_9464_TCP", "PORT_9464_TCP_PROTO", "PORT_9464_TCP_ADDR")
    environment = {f"ORCHESTRATOR_{name}": "x" for name in (*service, "WORKRES")}
    config = read(GOOD, environment=environment)
    assert config.warnings == ("the variable ORCHESTRATOR_WORKRES is not used; did you mean ORCHESTRATOR_WORKERS?",)


def test_a_variable_for_what_no_text_can_say_is_a_warning(read):
    config = read(
        GOOD, environment={"ORCHESTRATOR_COMPONENTS": "m:C", "ORCHESTRATOR_CONFIG": "/x", "ORCHESTRATOR_URL": ""}
    )
    assert config.warnings == (
        "the variable ORCHESTRATOR_COMPONENTS is not used: components is set in a file, or on the command line",
    )


def test_a_queue_of_the_command_line_needs_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load((), flags={"shell": True}, environment={}, queues=["./in box/"], command=["wc -c | tee log"])
    (queue,) = config.queues
    assert (queue.url, queue.name) == (f"spool:{tmp_path}/in box", "in_box")
    assert (queue.command, queue.shell) == (("wc -c | tee log",), True)
    assert config.pool.name == pool_name(queue.url)
    assert queue.workers == usable_cores() == len(os.sched_getaffinity(0))


def test_a_handler_of_the_command_line_is_for_its_queues_or_else_for_the_files(read):
    config = read(GOOD, queues=["/extra"], handler="m:other")
    assert [queue.handler for queue in config.queues] == ["shop.thumbnails:handle", None, "m:other"]
    config = read(GOOD, handler="m:other")
    assert [(queue.handler, queue.command) for queue in config.queues] == [("m:other", None)] * 2
    config = read(GOOD, command=["true"], environment={"ORCHESTRATOR_HANDLER": "m:env"})
    assert [(queue.handler, queue.command) for queue in config.queues] == [(None, ("true",))] * 2


def test_handler_and_command_together_on_the_command_line_are_refused(refused):
    assert refused(GOOD, handler="m:h", command=["true"])[0][1] == "--handler"


def test_ways_to_handle_messages_on_the_command_line_exclude_each_other(refused):
    for ways in ({"handler": "m:h"}, {"command": ["true"]}):
        ((line, _, text),) = refused(GOOD, components=["m:C"], **ways)
        assert line is None
        assert "too; give one of them" in text


def test_components_are_specs_with_their_arguments_and_survive_being_written(read):
    written = (
        'components = ["a:B", { use = "c.d:E", size = 1.5, at = 2020-02-03, words = ["x", { y = true }] }]\n'
        'event_map = { start = "begin" }\n[queue.options]\nlevel = 3\n"a b" = 1e400\nnested.deep = 1\n'
    )
    config = read(OTHER + written)
    (queue,) = config.queues
    first, second = queue.components
    assert (first.use, first.keywords) == ("a:B", {})
    assert (second.use, second.keywords["size"], second.keywords["words"]) == ("c.d:E", 1.5, ["x", {"y": True}])
    assert queue.imports == ("a:B", "c.d:E")
    assert (queue.options["level"], queue.options["nested"], queue.event_map) == (3, {"deep": 1}, {"start": "begin"})
    assert tables(read(as_toml(config))) == tables(config)
    again = QueueConfig.model_validate_json(read(OTHER + 'components = ["a:B", { use = "c:D", x = 1 }]').queues[0]
                                            .model_dump_json())  # fmt: skip
    assert [(one.use, one.keywords) for one in again.components] == [("a:B", {}), ("c:D", {"x": 1})]


def test_another_way_to_handle_messages_takes_what_belongs_to_the_old_one_with_it(read):
    components = OTHER + 'components = ["m:C"]\noptions.x = 1\nevent_map.start = "begin"\n'
    (queue,) = read(components, handler="m:h").queues
    assert (queue.handler, queue.components, queue.options, queue.event_map) == ("m:h", None, {}, {})
    (queue,) = read(components, components=["m:D"]).queues
    assert ([one.use for one in queue.components], queue.options) == (["m:D"], {"x": 1})
    (queue,) = read(OTHER + 'forward = "/s"\noutput_limit = 5', handler="m:h").queues
    assert (queue.forward, queue.output_limit) == (None, None)
    (queue,) = read(OTHER + 'handler = "m:h"\noutput = "/s"', flags={"forward": "/t"}).queues
    assert (queue.handler, queue.output, queue.forward) == (None, None, "spool:/t")


def test_an_output_has_a_limit_unless_told_otherwise_and_forward_has_none(read):
    def limit(text: str) -> int | None:
        return read(OTHER + text).queues[0].output_limit

    assert limit('handler = "m:h"\noutput = "/s"') == 10_000
    assert limit('handler = "m:h"\noutput = "/s"\noutput_limit = 0') == 0
    assert limit('forward = "/s"') is limit('handler = "m:h"') is None
    assert limit('forward = "/s"\noutput_limit = 7') == 7


def test_a_limit_for_all_queues_is_for_those_that_hand_on(read, refused):
    text = QUEUE + OTHER + 'handler = "m:h"\noutput = "/s"'
    for said in ({"flags": {"output_limit": "5"}}, {"environment": {"ORCHESTRATOR_OUTPUT_LIMIT": "5"}}):
        assert [queue.output_limit for queue in read(text, **said).queues] == [None, 5]
    assert refused(QUEUE, flags={"output_limit": "5"}) == [
        (None, "--output-limit", "needs --output: there is nothing to look at")
    ]


def ring(*limits: str) -> str:
    names = "abcdefg"[: len(limits)]
    return "".join(
        f'[[queue]]\nurl = "/{name}"\nhandler = "m:h"\noutput = "{onward}"\n{limit}\n'
        for name, onward, limit in zip(names, names[1:] + names[0], limits, strict=True)
    )


def test_queues_that_wait_for_each_other_in_a_ring_are_refused_once(refused):
    for size in (2, 3, 5):
        ((line, key, text),) = refused(ring(*["output_limit = 4"] * size))
        assert (line, key) == (4, "[[queue]] 1 output")
        assert f"({' to '.join('abcdefg'[:size])} to a)" in text
        assert "output_limit = 0" in text
    assert "leads in a ring" in refused(ring("", "").replace('"b"', '"/b"'))[0][2], (
        "the default is a limit, a URL a queue"
    )
    forward = ring("", "").replace('handler = "m:h"\noutput = "a"', 'forward = "a"\noutput_limit = 1')
    assert "leads in a ring" in refused(forward)[0][2]


def test_a_ring_with_one_queue_that_never_waits_is_allowed_and_so_is_a_line(read):
    for text in (
        ring("", "output_limit = 0", ""),
        ring("", "").replace('handler = "m:h"\noutput = "a"', 'forward = "a"'),
    ):
        assert read(text).queues
    assert read(ring("", "").replace('output = "a"', 'output = "/z"')).queues


def test_a_queue_that_loses_its_components_is_changed_and_new_keys_of_the_pool_need_a_restart(read):
    old = read(OTHER + 'components = ["m:C"]\noptions.x = 1\n')
    found = diff(old, read(OTHER + 'handler = "m:h"\n'))
    assert [(one.components is None, two.components is None) for one, two in found.changed] == [(False, True)]
    assert len(diff(old, read(OTHER + 'components = ["m:C"]\noptions.x = 2\n')).changed) == 1
    assert diff(old, read(OTHER + 'components = ["m:C"]\noptions.x = 1\n')).same == old.queues
    new = read(
        OTHER + 'components = ["m:C"]\noptions.x = 1\n[pool]\nrunlog_keep = 3\nlog_file = "l"\n[daemon]\numask = "077"'
    )
    assert diff(old, new).restart == ("pool.runlog_keep", "pool.log_file", "daemon.umask")


def test_two_streams_and_devices_may_be_one(read):
    daemon = read(QUEUE + '[pool]\nlog_file = "/dev/null"\n[daemon]\nstdout = "/o"\nstderr = "/o"').daemon
    assert daemon.stdout == daemon.stderr == Path("/o")


def test_paths_start_where_they_are_written(read, tmp_path, monkeypatch):
    text = QUEUE + '[pool]\nlog_file = "log"\nrunlog_dir = "r"\n[daemon]\npid_file = "pid"\nstdout = "../out"\n'
    config = read(text, flags={"state_file": "state", "output": "./o"}, directory="/there")
    assert (config.pool.log_file, config.pool.runlog_dir) == (tmp_path / "log", tmp_path / "r")
    assert (config.daemon.pid_file, config.daemon.stdout) == (tmp_path / "pid", tmp_path / "../out")
    assert (config.pool.state_file, config.queues[0].output) == (Path("/there/state"), "spool:/there/o")


def test_run_logs_and_state_are_below_the_run_directory_unless_told_otherwise(read):
    pool = read(QUEUE + '[pool]\nname = "site"\nrun_dir = "/r"').pool
    assert (pool.runlog_dir, pool.state_file, pool.log_file) == (Path("/r/site/runlog"), Path("/r/site/state"), None)


def test_what_only_a_daemon_uses_is_said_to_a_pool_that_is_none(read):
    assert unused_daemon_keys(read(QUEUE)) == ()
    config = read(QUEUE + '[daemon]\nuser = "nobody"\numask = "027"')
    assert unused_daemon_keys(config) == ("not used without --daemon: daemon.umask, daemon.user",)
    assert config.daemon.umask_bits == 0o27


def test_a_queue_of_the_command_line_without_handler_is_refused():
    with pytest.raises(ConfigError, match=r"command line: QUEUE /q handler: is missing"):
        load((), flags={}, environment={}, queues=["/q"])


def test_undecodable_bytes_in_a_path_of_the_command_line_are_kept():
    path = os.fsdecode(b"/spool/\xff\xfe")
    config = load((), flags={}, environment={}, queues=[path], command=["grep", os.fsdecode(b"\xff")])
    assert config.queues[0].url == "spool:" + path
    assert config.queues[0].name == "__"
    assert config.queues[0].command == ("grep", os.fsdecode(b"\xff"))


def test_two_queues_of_one_base_name_get_names_that_differ(read):
    queues = "".join(f'[[queue]]\nurl = "/{where}/in"\nhandler = "m:h"\n' for where in "abc")
    names = [queue.name for queue in read(queues).queues]
    assert names[0] == "in"
    assert all(name.startswith("in-") for name in names[1:])
    assert len(set(names)) == 3
    explicit = read(queues + 'name = "in"\n')
    assert [queue.name for queue in explicit.queues].count("in") == 1
    assert explicit.queues[2].name == "in"


def test_diff_sorts_queues_by_name_and_names_what_needs_a_restart(read):
    old = read(GOOD + '[[queue]]\nurl = "/gone"\nhandler = "m:h"\n')
    assert diff(old, read(GOOD + '[[queue]]\nurl = "/gone"\nhandler = "m:h"\n')).same == old.queues
    changed = GOOD.replace("workers = 2", "workers = 3").replace('"2m"', '"3m"')
    new = read(changed + '[[queue]]\nurl = "/new"\nhandler = "m:h"\n[metrics]\nlisten = "none"\n')
    found = diff(old, new)
    assert [queue.name for queue in found.added] == ["new"]
    assert [queue.name for queue in found.removed] == ["gone"]
    assert [(first.workers, second.workers) for first, second in found.changed] == [(2, 3)]
    assert [queue.name for queue in found.same] == ["thumbs"]
    assert found.restart == ("pool.stop_timeout", "metrics.listen")


def test_a_default_that_is_written_out_changes_nothing(read):
    found = diff(read(QUEUE), read(QUEUE + "max_attempts = 5\n[metrics]\nlisten = '127.0.0.1:9464'\n"))
    assert (found.changed, found.restart) == ((), ())


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("5m", 300), ("2h", 7200), ("1d", 86400), ("250ms", 0.25), ("1.5h", 5400), ("90", 90), (" 7 s ", 7),
     (0, 0), (2.5, 2.5)],
)  # fmt: skip
def test_durations_are_read_in_every_unit(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "wrong",
    ["", "s", "-1s", "1w", "1 2s", "1e3", "nan", "٣s", "9" * 13, "1s\n1", -1, float("nan"), float("inf"), 10**400, True,
     None, []],
)  # fmt: skip
def test_what_is_no_duration_is_refused(wrong):
    with pytest.raises(ValueError, match="must be a duration"):
        parse_duration(wrong)


@given(st.integers(0, 10**6), st.sampled_from([("ms", 0.001), ("s", 1), ("m", 60)]))
def test_a_number_and_a_unit_make_that_many_seconds(number, unit):
    assert parse_duration(f"{number}{unit[0]}") == pytest.approx(number * unit[1])


@given(st.integers(0, 10**11).map(lambda thousands: thousands / 1000))
def test_a_duration_survives_being_written_and_read(seconds):
    assert parse_duration(duration_text(seconds)) == seconds


@given(st.one_of(st.text(), st.floats(), st.integers(), st.none()))
def test_any_value_is_a_finite_duration_or_refused(value):
    try:
        assert 0 <= parse_duration(value) <= 10 * 365 * 86400
    except ValueError as error:
        assert "must be a duration" in str(error)  # noqa: PT017 - either way is right


def test_sizes_are_powers_of_1024():
    assert [parse_size(text) for text in ("64M", "1k", "2GiB", "7", 9)] == [64 << 20, 1024, 2 << 30, 7, 9]
    for wrong in ("", "64X", "-1", -1, 1.5, True):
        with pytest.raises(ValueError, match="must be a size"):
            parse_size(wrong)


@pytest.mark.parametrize("text", ["127.0.0.1:9464", "[::1]:9464", "localhost:0", "none"])
def test_an_address_survives_being_read_and_written(text):
    assert listen_text(parse_listen(text)) == text


@pytest.mark.parametrize("wrong", [9464, "", "a b:1", "[::1:1", "[x]:1", "h:-1", "h:99999", "h:٣", "h:1\n"])
def test_what_is_no_address_is_refused(wrong):
    with pytest.raises(ValueError, match="HOST:PORT"):
        parse_listen(wrong)


def test_urls_are_made_absolute_by_text_alone():
    assert absolute_url("a//b/./c/", "/base") == "spool:/base/a/b/c"
    assert absolute_url("spool:../x", "/base") == "spool:/base/../x"
    assert absolute_url("SPOOL:/x", None) == "spool:/x"
    assert absolute_url("./amqp:x", "/base") == "spool:/base/amqp:x"
    assert absolute_url("null:", None) == "null:"
    for wrong in ("", "spool:", "null:x", "redis://h/s", "a\nb", "relative"):
        with pytest.raises(ValueError, match=r"must|unknown scheme"):
            absolute_url(wrong, None)


def test_a_queue_of_the_kernel_may_say_where_its_state_lies():
    assert absolute_url("mqueue:/q", "/base") == "mqueue:/q"
    assert absolute_url("MQUEUE:/q?state_dir=/x", "/base") == "mqueue:/q?state_dir=/x"
    assert base_name("mqueue:/q?state_dir=/x") == "q"
    for wrong in ("q", "/", "/a/b", "/..", "/?state_dir=/x", "/q?state_dir=x", "/q?state_dir=", "/q?mode=600"):
        with pytest.raises(ValueError, match=r"must|no option"):
            absolute_url(f"mqueue:{wrong}", "/base")


def test_the_options_of_a_directory_queue_stay_behind_its_absolute_path():
    for kind in ("dirq", "dirq-simple"):
        assert absolute_url(f"{kind}:a//b/?umask=022&rndhex=7", "/base") == f"{kind}:/base/a/b?umask=022&rndhex=7"
        assert absolute_url(f"{kind.upper()}:/x", None) == f"{kind}:/x"
        for wrong in (f"{kind}:", f"{kind}:?umask=022", f"{kind}:relative"):
            with pytest.raises(ValueError, match="must"):
                absolute_url(wrong, None)
    assert absolute_url("dirq:q?schema=body:string,header:table?", "/b") == "dirq:/b/q?schema=body:string,header:table?"
    assert absolute_url("q?x", "/base") == "spool:/base/q?x"


def test_each_queue_of_a_set_is_made_absolute():
    url = "set:dirq-simple:a,dirq:b?schema=body:string,header:table?,dirq-simple:/c?granularity=5"
    url = absolute_url(url, "/base")
    expected = "dirq-simple:/base/a,dirq:/base/b?schema=body:string,header:table?,dirq-simple:/c?granularity=5"
    assert url == f"set:{expected}"
    assert absolute_url(url, None) == url
    for wrong in ("set:", "set:dirq:", "set:dirq:/a,dirq:", "set:dirq:a", "set:redis:/a", "set:dirq:/a,spool:/b"):
        with pytest.raises(ValueError, match=r"must|unknown scheme|cannot be in it"):
            absolute_url(wrong, None)


def test_a_directory_queue_is_called_after_its_directory_and_a_set_after_its_last():
    assert base_name("dirq-simple:/spool/in?granularity=5") == "in"
    assert base_name("dirq:/spool/in?schema=body:string,path/x:binary?") == "in"
    assert base_name("set:dirq:/spool/in,dirq-simple:/spool/out") == "out"


def test_where_counts_are_kept_must_be_an_absolute_path_and_reaches_the_queue(read, refused):
    text = QUEUE.replace("/q", "dirq-simple:/q")
    assert read(text).queues[0].settings().state_dir is None
    assert read(f'{text}state_dir = "/var/lib/pools"\n').queues[0].settings().state_dir == "/var/lib/pools"
    for wrong in ("state", "", "./x", "~/x"):
        ((line, key, sentence),) = refused(f'{text}state_dir = "{wrong}"\n')
        assert (line, key) == (4, "[[queue]] 1 state_dir")
        assert "absolute path" in sentence


def test_names_come_from_the_url_and_are_the_same_at_every_start():
    assert base_name("spool:/a/üb er") == "_b_er"
    assert base_name("spool:/a/..") == "queue"
    assert base_name("null:") == "null"
    assert pool_name("spool:/a/2024") == "_" + pool_name("spool:/a/2024").removeprefix("_")
    assert len(pool_name("spool:/" + "1" * 200)) == 64
    assert pool_name("spool:/a/in") != pool_name("spool:/b/in")


def test_the_run_directory_is_per_user_and_never_in_anothers_directory(tmp_path):
    own = {"XDG_RUNTIME_DIR": str(tmp_path)}
    uid = tmp_path.stat().st_uid
    assert run_directory(own, uid) == tmp_path / "orchestrator"
    assert run_directory(own, uid + 1) == Path(f"/tmp/orchestrator-{uid + 1}")
    assert run_directory({"XDG_RUNTIME_DIR": str(tmp_path / "none")}, 0) == Path("/run/orchestrator")
    assert run_directory({}, 5) == Path("/tmp/orchestrator-5")


def test_where_anybody_could_replace_what_lies_in_tmp_the_run_directory_is_elsewhere(tmp_path, monkeypatch):
    """As in a container whose /tmp is an empty volume: there the run directory would be refused."""
    monkeypatch.setattr("orchestrator.config_values.TEMPORARY", str(tmp_path))
    usual = "/tmp/orchestrator-5"
    for mode, place in ((0o1777, usual), (0o755, usual), (0o777, "/dev/shm/orchestrator-run-5")):
        tmp_path.chmod(mode)
        assert run_directory({}, 5) == Path(place)


def test_the_host_name_can_stand_in_a_file_name(monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "node/7 ü" + "x" * 99)
    assert host_name() == ("node_7__" + "x" * 99)[:64]


def test_a_value_is_shown_short_and_on_one_line():
    assert [shown(value) for value in (True, "a\nb", [1], {}, 5)] == ["true", '"a\\nb"', "a list", "a table", "5"]
    assert len(shown("x" * 500)) == 60


def test_lines_are_found_through_everything_toml_allows():
    text = (
        '# [no]\ntop = """\n[[no]]\nx = "\\""""\nlit = \'\'\'\n[no]\'\'\'\n'  # 1 to 6
        '[a . "b.c"]  # table\nd.e = [ # open ]\n  "]", \'[\',\n  {f = 1, "g" = [2]},\n]\n'  # 7 to 11
        "[[q]]\nx = 1\n[q.sub]\ny = 2020-01-01 00:00:00 # z = 1\n[[q]]\r\n"
        '"x" = "\\"]#"\n[[q.r]]\nz = -0x1F\n[[q.r]]\nz = 2'
    )
    lines = lines_of(text.replace("\r\n", "\n"))
    assert ("no",) not in lines
    expected = {
        ("top",): 2, ("lit",): 5, ("a", "b.c"): 7, ("a", "b.c", "d", "e"): 8, ("a", "b.c", "d", "e", 1): 9,
        ("a", "b.c", "d", "e", 2, "g"): 10, ("q", 0, "x"): 13, ("q", 0, "sub", "y"): 15, ("q", 1): 16,
        ("q", 1, "x"): 17, ("q", 1, "r", 0, "z"): 19, ("q", 1, "r", 1): 20, ("q", 1, "r", 1, "z"): 21,
    }  # fmt: skip
    assert {place: lines.get(place) for place in expected} == expected


@given(st.text(alphabet="ab=.[]{}\"'\\,#\n 1"))
def test_finding_lines_ends_whatever_the_text_is(text):
    assert all(1 <= line <= text.count("\n") + 1 for line in lines_of(text).values())


def test_keys_in_inline_tables_have_their_lines_too(refused):
    found = refused(
        'pool = {nam = "x"}\nqueue = [\n  {url = "/a", handler = "m:h"},\n  {url = "/b", handlr = "m:h"},\n]\n'
    )
    keys = [(line, key) for line, key, _ in found]
    assert keys == [(1, "[pool] nam"), (4, "[[queue]] 2 handlr"), (4, "[[queue]] 2 handler")]


def test_the_nearest_key_is_near():
    assert nearest("Workers", ["workers", "order"]) == "workers"
    assert nearest("zzz", ["workers", "order"]) is None


def test_models_are_frozen_and_check_by_themselves():
    queue = QueueConfig(name="q", url="/q", handler="m:h")
    with pytest.raises(ValidationError):
        queue.workers = 3
    with pytest.raises(ValidationError, match="keep one of them"):
        QueueConfig(name="q", url="/q", handler="m:h", command=("ls",))


def test_the_reference_covers_every_key_with_a_default_that_is_true():
    keys = reference()
    assert [(key.table, key.key) for key in keys] == [(t, k) for t, m in TABLES.items() for k in m.model_fields]
    assert all(all(key) for key in keys)
    for key in keys:
        default = TABLES[key.table].model_fields[key.key].default
        if key.type == "duration" and default is not None:
            assert parse_duration(key.default) == default, key
        elif key.type == "whole number" and isinstance(default, int):
            assert int(key.default) == default, key


def test_check_says_fine_or_every_error_and_its_exit_code(tmp_path):
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    good.write_text(GOOD)
    bad.write_text(QUEUE + "workrs = 1\norder = 5\n")
    fine = CliRunner().invoke(check, [str(good)])
    assert (fine.exit_code, fine.stdout, fine.stderr) == (0, f"{good}: fine: 2 queues, 6 workers\n", "")
    both = CliRunner().invoke(check, [str(bad), str(good)])
    assert both.exit_code == 1
    assert both.stdout == fine.stdout
    assert [line.split(": ")[0] for line in both.stderr.splitlines()] == [f"{bad}:4", f"{bad}:5"]
    assert CliRunner().invoke(check, []).exit_code == 2


def test_check_ignores_the_environment(tmp_path):
    (tmp_path / "good.toml").write_text(GOOD)
    result = CliRunner(env={"ORCHESTRATOR_WORKERS": "x"}).invoke(check, [str(tmp_path / "good.toml")])
    assert result.exit_code == 0


def test_what_config_show_prints_is_a_file_that_means_the_same(tmp_path, read):
    config = read(GOOD.replace("sha256sum", "sha\\u007f\\u001b😀"))
    again = read(as_toml(config))
    assert tables(again) == tables(config)
    assert diff(config, again).same == config.queues


def test_config_show_knows_file_and_environment(tmp_path):
    (tmp_path / "good.toml").write_text(GOOD)
    runner = CliRunner(env={"ORCHESTRATOR_WORKERS": "9"})
    result = runner.invoke(config_group, ["show", "--config", str(tmp_path / "good.toml"), "--json"])
    assert result.exit_code == 0
    shown_tables = json.loads(result.stdout)
    assert [queue["workers"] for queue in shown_tables["queue"]] == [9, 9]
    assert shown_tables["pool"]["stop_timeout"] == 120
    assert runner.invoke(config_group, ["show"]).exit_code == 0
    failed = runner.invoke(config_group, ["show", "--config", str(tmp_path / "none")])
    assert (failed.exit_code, failed.stdout) == (1, "")
    assert "No such file" in failed.stderr


def test_the_reference_is_printed_for_people_readmes_and_programs():
    plain = CliRunner().invoke(config_group, ["reference"])
    assert plain.exit_code == 0
    assert all(key.key in plain.stdout for key in reference())
    markdown = CliRunner().invoke(config_group, ["reference", "--markdown"]).stdout
    assert markdown == as_markdown(reference()) + "\n"
    assert sum(line.startswith("| `[") for line in markdown.splitlines()) == len(reference())
    assert json.loads(CliRunner().invoke(config_group, ["reference", "--json"]).stdout)[0]["key"] == "name"
