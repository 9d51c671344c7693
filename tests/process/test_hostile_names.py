"""
test_hostile_names - one pool, many hostile names and contents: what it shows while it works, and what it leaves

The queues lie in a directory whose name is no text, and are worked on all the same. One message is held in hand while
the pool is looked at; then all fail, so that names and contents come into log, .meta and run log as well.
See also: tests/unit/test_hostile_names.py (the commands on queues; the list of names), test_hostile_input.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from orchestrator.logs import escaped
from tests.process.pools import HANDLERS, ROOT, Pool, Pools, drop, make_queue, series
from tests.unit.test_hostile_names import BODY, NAMES, assert_is_json, assert_is_printable, on_a_terminal
from tests.unit.test_hostile_names import said as told
from workers.components import ZenDaemonComponent
from workers.dirq import QueueSimple

SECRET = "correct horse battery"  # noqa: S105 - it stands in the configuration, and nobody is to be told
COLOURS = re.compile(rb"\x1b\[[0-9;]*m")  # of a table on a terminal
CONFIG = f"""
[[queue]]
name = "held"
url = "held"
handler = "{HANDLERS}:hold_and_fail"
workers = 1
max_attempts = 1

[[queue]]
name = "told"
url = "dirq-simple:told"
command = ["sh", "-c", 'cat "$1" >&2; exit 1', "sh", "{{path}}"]
workers = 1
max_attempts = 1

[[queue]]
name = "secret"
url = "secret"
components = [{{ use = "tests.process.test_hostile_names:Quiet", password = "{SECRET}" }}]
options = {{ token = "{SECRET}" }}
workers = 1
"""


class Quiet(ZenDaemonComponent):
    """A component that was given a secret."""

    def __init__(self, password: str) -> None:
        super().__init__()
        self.password = password

    def get_events(self):
        return []


@pytest.fixture(name="place")
def _place(pools: Pools) -> Path:
    """Queues of hostile names and contents, and the configuration of a pool."""
    place = pools.place / os.fsdecode(b"no text \xff \xe2\x80\xae")
    place.mkdir()
    make_queue(place / "held").close()
    make_queue(place / "secret").close()
    for name in NAMES:
        drop(place / "held", name, BODY)
    QueueSimple(str(place / "told")).add(BODY)
    (place / "told" / "\x1b[2J").mkdir()
    (place / "pool.toml").write_text(CONFIG)
    return place


def said_by(pool: Pool) -> dict[str, str]:
    """What can be seen of a pool that runs."""
    titles = []
    for one in pool.everyone():
        with contextlib.suppress(psutil.NoSuchProcess):  # a program has ended
            titles.append(" ".join(psutil.Process(one.pid).cmdline()))
    pages = {page: pool.get(page)[1] for page in ("/", "/metrics", "/api/status", "/readyz")}
    return {"titles": "\n".join(titles), **pages}


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_pool_shows_nothing_raw_and_no_secret_whatever_it_is_given(
    pools: Pools, place: Path, log_format: str
) -> None:
    pools.hold.touch()
    config = str(place / "pool.toml")
    pool = pools.start("--config", config, "--log-format", log_format, "--log-level", "debug", listen="127.0.0.1:0")
    pool.ready()
    who = ("--run-dir", str(pools.place / "run"), "--name", "pool")

    # In hand for more than a second: then it stands in the title too.
    pool.until(lambda: "message=" in said_by(pool)["titles"])
    said = said_by(pool)
    assert not [name for name, _ in series(said["/metrics"]) if "evil" in name]
    (worker,) = assert_is_json(said["/api/status"])["queues"][0]["workers"]
    assert worker["message"] == escaped(os.fsdecode(min(NAMES)))
    said["status"] = told("status", *who).decode()
    shown = on_a_terminal("status", *who, environment=pools.environment())
    said["status on a terminal"] = COLOURS.sub(b"", shown).decode()
    assert_is_json(told("status", "--json", *who))

    pools.hold.unlink()
    pool.until(lambda: pool.outcome("rejected") == len(NAMES) + 1)
    said["signal"] = b"".join(told("signal", which, *who) for which in ("check", "usr1", "usr2")).decode()
    said["run log"] = b"".join(told("runlog", verb, *who) for verb in ("show", "list", "evaluate")).decode()
    state = pools.place / "run/pool/state"
    assert SECRET in state.read_text()  # it is asked for by its owner, and is his alone
    assert stat.S_IMODE(state.stat().st_mode) == 0o600
    assert pool.end() == 0, pool.log

    said["log"] = pool.log
    for what, text in said.items():
        assert_is_printable(text)
        assert SECRET not in text, what
    assert log_format == "text" or all(map(assert_is_json, pool.log.splitlines()))
    metas = [meta for meta in place.glob("*/errors/*.meta") if not meta.name.endswith("~a.meta")]  # that is a message
    assert len(metas) == len(NAMES) + 1
    for meta in metas:
        assert_is_json(meta.read_bytes())


def test_a_lone_worker_says_nothing_raw(tmp_path: Path) -> None:
    queue = tmp_path / "turned \u202e\x1b]0;title\x07"
    make_queue(queue).close()
    for name in NAMES:
        drop(queue, name, BODY)
    (tmp_path / "hostile.py").write_text(
        "import logging, workers\n"
        "def handle(message):\n"
        "    try:\n"
        "        raise ValueError(message.name)\n"
        "    except ValueError:\n"
        "        logging.exception('of %s', message.name)\n"
        "    return workers.Reject(message.name)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-m", "workers", str(queue), "hostile:handle", "--until-empty"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=60, check=False,
    )  # fmt: skip
    assert ended.returncode == 0
    assert_is_printable(ended.stderr)
    words = ("WARNING ", "ERROR ", "INFO ", "    ")
    assert [line for line in ended.stderr.decode().splitlines() if not line.startswith(words)] == []
    assert ended.stderr.count(b" rejected: ") == len(NAMES)
