"""
test_seed_examples - the examples in the documentation of ddmq run, with nothing but the import and the path changed

Each as a program of its own: what a user of the original has in a file. What stands for the user's task writes down
what it was given.

Source: the documentation of ddmq 0.9.14, its examples.
See also: tests/unit/test_ddmq_faults, tests/unit/test_cli_ddmq.
"""

from __future__ import annotations

import code
import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.process.pools import ROOT
from tests.waiting import until
from workers.ddmq import Broker

FILES = [f"file-{number}.csv" for number in range(40)]
CONSUMERS = 3
# What the examples leave to the reader.
TASK = f"""
import os
file_names = {FILES!r}
def run_task(file):
    with open(os.environ["DONE"], "a") as done:
        done.write(file + "\\n")
"""
PROGRAM = """
# init queue
import ddmq
b = ddmq.broker('/tmp/ddmq', create=True)
b.create_queue('tasks')

# go through the file names and submit to queue
for file in file_names:
    b.publish('tasks', msg_text=file)
"""
CONSUMER = """
# init queue
import ddmq
import time
b = ddmq.broker('/tmp/ddmq', create=True)

while True:
    msg = b.consume('tasks')

    # wait 10s for messages if the queue is empty
    if not msg:
        time.sleep(10)
    else:
        # run the task and acknowledge the message
        run_task(msg.message)
        b.ack(msg)
"""
USAGE = """
# imports both the broker and message module
import ddmq

# create the broker object and specify the path to the root directory
# adding create=True to tell it to create and initiate both the root
# directory and queue directories if they don't already exist
b = ddmq.broker('/tmp/ddmq', create=True)

# publish a message to the specified queue
b.publish(queue='queue_name', msg_text='Hello World!')

# consume a single message from the specified queue
msg = b.consume(queue='queue_name')

# print the message contained
print(msg.message)
"""
SESSION = """
import ddmq
b = ddmq.broker('../temp/ddmq', create=True)
print(b)
b.publish('queue_name', "Hello World!")
msg = b.consume('queue_name')
msg
print(msg.message)
"""
SHOWN = r"""create = True
default_settings = {[^\n]*'priority': 999[^\n]*}
global_settings = {[^\n]*'message_timeout': 600[^\n]*}
queue_settings = {}
root = ROOT
filename = (?:queue_name/)?(999\.NUMBER\.ddmqID)
id = ID
message = Hello World!
priority = 999
queue = queue_name
queue_number = NUMBER
requeue = False
requeue_counter = 0
requeue_limit = None
timeout = None
filename = [0-9]{10}\.\1
id = ID
message = Hello World!
priority = 999
queue = queue_name
queue_number = NUMBER
requeue = False
requeue_counter = 0
requeue_limit = None
timeout = None
Hello World!
"""
COMMANDS = """
# create a new queue and publish a message to it
$ ddmq create -f /tmp/ddmq queue_name
$ ddmq publish /tmp/ddmq queue_name "Hello World!"

# consume a message from a queue
$ ddmq consume /tmp/ddmq queue_name

# view all queues present in the specified root directory
$ ddmq view /tmp/ddmq

# remove all messages from a queue
$ ddmq purge /tmp/ddmq queue_name

# delete a queue
$ ddmq delete /tmp/ddmq queue_name
"""


@pytest.fixture(name="root")
def _root(tmp_path: Path) -> Path:
    """In the place of /tmp/ddmq."""
    return tmp_path / "ddmq"


@pytest.fixture(name="programs")
def _programs() -> Iterator[list[subprocess.Popen[str]]]:
    """Programs that were started; what is left of them is ended with the test."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for program in started:
        program.kill()
        program.communicate()


def changed(text: str, root: Path) -> str:
    """The example with the import and the path changed, and nothing else."""
    assert text.count("import ddmq\n") == 1
    return text.replace("import ddmq\n", "from workers import ddmq\n").replace("/tmp/ddmq", str(root))


def start(text: str, root: Path) -> subprocess.Popen[str]:
    """Run *text* as a program."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DONE": str(root.with_name("done"))}
    return subprocess.Popen(
        [sys.executable, "-c", text],
        cwd=root.parent, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_the_example_of_parallelization_runs_each_task_once(root: Path, programs: list[subprocess.Popen[str]]) -> None:
    """program.py, then three of consumer.py, as long as there is something."""
    done = root.with_name("done")
    done.touch()
    program = start(TASK + changed(PROGRAM, root), root)
    programs.append(program)
    assert program.communicate(timeout=30) == ("", "")
    assert program.returncode == 0
    programs += [start(TASK + changed(CONSUMER, root), root) for _ in range(CONSUMERS)]

    def is_done() -> bool:
        return len(done.read_text().splitlines()) >= len(FILES) and not any(Broker(root).get_message_list("tasks"))

    until(is_done)
    assert Counter(done.read_text().splitlines()) == Counter(FILES)
    assert [one.poll() for one in programs[1:]] == [None] * CONSUMERS, "they wait for more"
    for one in programs[1:]:
        one.kill()
        assert one.communicate() == ("", "")


def test_the_example_of_usage_prints_the_message(root: Path, programs: list[subprocess.Popen[str]]) -> None:
    programs.append(start(changed(USAGE, root), root))
    assert programs[0].communicate(timeout=30) == ("Hello World!\n", "")
    assert programs[0].returncode == 0


def test_the_example_of_a_session_shows_what_the_documentation_shows(root: Path) -> None:
    """Broker and messages print themselves, line by line; the order within the settings is nobody's promise."""
    text = changed(SESSION, root).replace("../temp/ddmq", str(root))
    shown = io.StringIO()
    session = code.InteractiveInterpreter()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
        for line in text.strip().splitlines():
            assert not session.runsource(line)
    key = re.findall(r"\nid = ([0-9a-f]{32})\n", shown.getvalue())[0]
    number = re.findall(r"\nqueue_number = ([0-9]{10,17})\n", shown.getvalue())[0]
    text = shown.getvalue().replace(key, "ID").replace(number, "NUMBER").replace(str(root), "ROOT")
    assert re.fullmatch(SHOWN, text), text


def test_the_lines_of_the_command_line_run_in_their_order(root: Path) -> None:
    """All end with 0, say nothing on stderr, and do what the comments above them say."""
    said = []
    for line in COMMANDS.replace("/tmp/ddmq", str(root)).splitlines():
        if line.startswith("$ ddmq "):
            words = [sys.executable, "-m", "orchestrator", *shlex.split(line)[1:]]
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            ended = subprocess.run(
                words, cwd=root.parent, env=environment, text=True, capture_output=True, timeout=60, check=False
            )
            assert (ended.returncode, ended.stderr) == (0, ""), (line, ended)
            said.append(ended.stdout)
    created, published, consumed, viewed, purged, deleted = said
    assert created == "Created new queue: queue_name\n"
    assert published.startswith("Successfully published message:\n\n")
    assert "message = Hello World!\n" in published
    assert '"message": "Hello World!"' in consumed
    assert re.search(r"queue_name\W+0\W+1\b", viewed)
    assert purged == "Purged queue: queue_name\t(0 messages in queue, 1 messages in work)\n"
    assert deleted == "Deleted queue: queue_name\n"
    assert sorted(os.listdir(root)) == ["ddmq.yaml", "ddmq.yaml.example"]
