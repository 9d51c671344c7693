"""test_signals - what the master does with each signal, and who may be master of a name"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import re
import select
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from orchestrator.child import FOR_THE_MASTER
from orchestrator.loop import Loop
from orchestrator.master import SIGNALS
from tests.process.handlers import write
from tests.process.pools import (
    HANDLERS,
    ROOT,
    Pool,
    Pools,
    drop,
    files,
    is_empty,
    make_queue,
    marks,
    process,
    signal_all,
)
from tests.waiting import until
from workers import Message
from workers.waiting import Leaving

HOLD = ("--handler", f"{HANDLERS}:hold")


def holding(pools: Pools, queue: Path, *words: str, count: int = 2) -> Pool:
    """A pool of two workers that both have a message in hand, *count* messages in all."""
    for number in range(count):
        drop(queue, f"m{number}", b"x")
    pools.hold.touch()
    pool = pools.start(*(words or (str(queue), "--workers", "2", *HOLD))).ready()
    pool.until(lambda: pool.busy == 2)
    pool.until(lambda: len(pools.journal()) == 2)
    pools.seen += pool.everyone()
    return pool


def configured(
    pools: Pools, queue: Path, term_timeout: str = "0.3s", handler: str = f"{HANDLERS}:hold", workers: int = 2
) -> tuple[str, ...]:
    """As holding() needs it, with short timeouts, or another."""
    path = pools.place / "pool.toml"
    path.write_text(
        f'[pool]\nstop_timeout = "1s"\nterm_timeout = "{term_timeout}"\n'
        f'[[queue]]\nurl = "{queue}"\nhandler = "{handler}"\nworkers = {workers}\n'
    )
    return ("--config", str(path))


def unburnt(queue: Path) -> list[tuple[str, int, int]]:
    return sorted((mark.name, mark.attempts, mark.crashes) for mark in marks(queue, "incoming"))


def test_int_finishes_what_is_in_hand_and_takes_nothing_more(pools: Pools, queue: Path) -> None:
    pool = holding(pools, queue, count=5)
    pool.send(signal.SIGINT)
    pool.until(lambda: pool.status["state"] == "draining")
    assert pool.process.poll() is None
    pools.hold.unlink()
    assert pool.wait(15) == 0
    held, handled = (
        {line.split()[1] for line in pools.journal() if line.startswith(word)} for word in ("holds", "handled")
    )
    assert len(handled) == 2
    assert held == handled
    left = sorted({f"m{number}" for number in range(5)} - handled)
    assert unburnt(queue) == [(name, 0, 0) for name in left]
    assert not list((queue / "pending").iterdir())


def test_a_drain_that_takes_too_long_gives_back_unburnt(pools: Pools, queue: Path) -> None:
    pool = holding(pools, queue, *configured(pools, queue))
    assert pool.end(signal.SIGINT, 15) == 0
    assert unburnt(queue) == [("m0", 0, 0), ("m1", 0, 0)]


def test_the_third_int_ends_at_once_and_gives_back_unburnt(pools: Pools, queue: Path) -> None:
    pool = holding(pools, queue)
    pool.send(signal.SIGINT)
    pool.until(lambda: "draining" in pool.log)
    pool.send(signal.SIGINT)
    pool.until(lambda: pool.log.count("draining") == 2)
    assert pool.process.poll() is None
    assert pool.end(signal.SIGINT, 15) == 0
    assert unburnt(queue) == [("m0", 0, 0), ("m1", 0, 0)]
    assert not list((queue / "pending").iterdir())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT])
def test_a_quick_end_gives_back_unburnt(pools: Pools, queue: Path, number: signal.Signals) -> None:
    """Neither an attempt nor a crash is counted, and the next pool handles all of it."""
    pool = holding(pools, queue, *configured(pools, queue))
    everyone = pool.everyone()
    assert pool.end(number, 15) == 0
    assert unburnt(queue) == [("m0", 0, 0), ("m1", 0, 0)]
    assert not any(one.is_there for one in everyone)
    assert not list((queue / ".pool/leases").iterdir())
    pools.hold.unlink()
    assert pools.start(str(queue), "--until-empty", "--workers", "1", *HOLD).wait() == 0
    assert is_empty(queue)


def test_a_quick_end_waits_for_what_is_about_to_finish(pools: Pools, queue: Path) -> None:
    pool = holding(pools, queue, *configured(pools, queue, term_timeout="60s"))
    pool.send(signal.SIGTERM)
    pool.until(lambda: pool.status["state"] == "stopping")
    pools.hold.unlink()
    assert pool.wait(15) == 0
    assert is_empty(queue)


def test_a_program_in_hand_is_ended_with_its_children(pools: Pools, queue: Path) -> None:
    drop(queue, "m0", b"x")
    script = 'sleep 1000 & echo $! > "$JOURNAL/program"; wait'
    pool = pools.start(str(queue), "--workers", "1", "--", "sh", "-c", script).ready()
    pool.until(pools.journal)
    everyone = pool.everyone()
    assert int(pools.journal()[0]) in {one.pid for one in everyone}
    assert pool.end(signal.SIGQUIT, 15) == 0
    until(lambda: not any(one.is_there for one in everyone))
    assert unburnt(queue) == [("m0", 0, 0)]


def test_ttin_and_ttou_change_the_number_of_workers(pools: Pools, queue: Path) -> None:
    pool = pools.start(str(queue), "--workers", "2", *HOLD).ready()
    before = pool.pids
    pool.send(signal.SIGTTIN)
    pool.until(lambda: len(pool.pids) == 3)
    assert pool.pids[:2] == before
    pool.send(signal.SIGTTOU)
    pool.until(lambda: len(pool.pids) == 2)
    pool.send(signal.SIGTTOU)
    pool.until(lambda: len(pool.pids) == 1)
    pool.send(signal.SIGTTOU)
    pool.until(lambda: pool.log.count("1 workers wanted") == 2)
    assert pool.status["totals"]["target"] == 1
    assert pool.pids == before[:1]
    assert pool.end() == 0


def test_a_signal_to_the_whole_group_drains_and_nothing_else(pools: Pools, queue: Path) -> None:
    """A terminal and a service manager signal every process: only the master answers."""
    pool = holding(pools, queue)
    for one in pool.everyone():
        if one.pid != pool.process.pid:
            signal_all([one], signal.SIGINT)
            signal_all([one], signal.SIGHUP)
    pool.send(signal.SIGINT)
    pool.until(lambda: pool.status["state"] == "draining")
    assert pool.busy == 2
    pools.hold.unlink()
    assert pool.wait(15) == 0
    assert is_empty(queue)


def test_a_signal_to_the_whole_group_reaches_nobody_but_the_master(pools: Pools, queue: Path) -> None:
    """Every child, from its first moment on; then all is as it was, and nobody is stopped."""
    pool = holding(pools, queue)
    before = pool.everyone()
    children = [one for one in before if one.pid != pool.process.pid]
    for number in FOR_THE_MASTER:
        signal_all(children, number)
    pools.hold.unlink()
    pool.until(lambda: pool.outcome("done") == 2)
    drop(queue, "more", b"x")
    pool.until(lambda: pool.outcome("done") == 3)
    assert pool.everyone() == before
    assert not any(psutil.Process(one.pid).status() == psutil.STATUS_STOPPED for one in before)
    assert {*FOR_THE_MASTER, signal.SIGTERM} == set(SIGNALS)
    assert pool.end() == 0


def ask(message: Message) -> None:
    """Write down which signals a program ignores that a handler starts."""
    found = subprocess.run(["grep", "SigIgn", "/proc/self/status"], capture_output=True, text=True, check=True)
    write(f"{message.name} {found.stdout.split()[1]}")


def test_programs_start_with_the_default_dispositions(pools: Pools, queue: Path) -> None:
    """The command of a queue, and what a handler starts by itself."""
    script = 'grep SigIgn /proc/self/status >> "$JOURNAL/program"'
    for words in (("--handler", f"{__name__}:ask"), ("--", "sh", "-c", script)):
        drop(queue, "asked", b"x")
        pool = pools.start(str(queue), "--workers", "1", "--until-empty", *words)
        assert pool.wait() == 0, pool.log
    ignored = [int(line.split()[1], 16) for line in pools.journal()]
    assert len(ignored) == 2
    for mask in ignored:
        assert [number for number in SIGNALS if mask >> (number - 1) & 1] == []


PRELOADED = """
import os, signal
for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGTTIN, signal.SIGTTOU):
    os.kill(os.getpid(), number)

def handle(message):
    pass
"""


def test_a_signal_at_the_start_is_obeyed(pools: Pools, queue: Path) -> None:
    """While the master imports a handler its name is taken already; what is sent then waits for the loop."""
    (pools.place / "importing.py").write_text(PRELOADED)
    path = os.pathsep.join([str(ROOT), str(pools.place)])
    words = (str(queue), "--workers", "2", "--handler", "importing:handle", "--preload")
    pool = pools.start(*words, environment={"PYTHONPATH": path}).ready()
    state = pool.board_path.with_name("state")
    pool.until(state.exists)
    pool.until(lambda: "reloaded: 0 added" in pool.log)
    pool.until(lambda: pool.log.count("workers wanted") == 2)
    assert pool.end() == 0


RELEASING = """
import os
from orchestrator.master import SIGNALS
from orchestrator.rundir import RunDir

release = RunDir.release

def release_in_a_storm(self):
    for number in SIGNALS:
        os.kill(os.getpid(), number)
    release(self)

RunDir.release = release_in_a_storm

def handle(message):
    pass
"""


def test_a_signal_between_the_end_of_the_loop_and_that_of_the_name_changes_nothing(pools: Pools, queue: Path) -> None:
    (pools.place / "releasing.py").write_text(RELEASING)
    path = os.pathsep.join([str(ROOT), str(pools.place)])
    words = (str(queue), "--workers", "1", "--until-empty", "--handler", "releasing:handle", "--preload")
    pool = pools.start(*words, environment={"PYTHONPATH": path})
    assert pool.wait() == 0, pool.log
    assert [path.name for path in pool.board_path.parent.iterdir()] == ["runlog"]


@pytest.mark.parametrize("is_failing", [False, True])
def test_signals_while_a_pool_ends_change_nothing(pools: Pools, queue: Path, *, is_failing: bool) -> None:
    """From the first moment to the end of the process; neither its exit code nor what it leaves behind."""
    handler = "no.such:handler" if is_failing else f"{HANDLERS}:hold"
    pool = pools.start(str(queue), "--workers", "2", "--handler", handler, *(("--preload",) if is_failing else ()))
    if not is_failing:
        pool.ready().send(signal.SIGTERM)
        # Once it hears nothing but its end: what comes before that is obeyed.
        pool.until(lambda: "stopping" in pool.log)
    else:
        pool.until(lambda: pool.board_path.with_name("pid").exists() or pool.process.poll() is not None)
    stormy = set(SIGNALS) - ({signal.SIGINT, signal.SIGTERM, signal.SIGQUIT} if is_failing else set())
    while pool.process.poll() is None:
        for number in stormy:
            pool.send(number)
    assert pool.wait() == (1 if is_failing else 0), pool.log
    assert sorted(path.name for path in pool.board_path.parent.iterdir()) in (["runlog"], ["runlog", "state"])
    assert "Traceback" not in pool.log


def test_Z1_usr1_and_usr2_and_alrm_end_nothing(pools: Pools, queue: Path) -> None:
    pool = holding(pools, queue)
    before = pool.everyone()
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM) * 3:
        pool.send(number)
    pool.until(lambda: "the state is in" in pool.log)
    pools.hold.unlink()
    pool.until(lambda: pool.outcome("done") == 2)
    assert [one for one in before if not one.is_there] == []
    assert pool.end() == 0


def in_two_steps(message: Message) -> None:
    """Write two files that belong together, and wait for HOLD between them."""
    write(f"first {message.name}")
    until(lambda: not os.path.exists(os.environ["HOLD"]), 60)
    write(f"second {message.name}")


def test_Z10_term_interrupts_no_code_of_a_handler(pools: Pools, queue: Path) -> None:
    drop(queue, "m0", b"x")
    pools.hold.touch()
    words = configured(pools, queue, term_timeout="60s", handler=f"{__name__}:in_two_steps", workers=1)
    pool = pools.start(*words).ready()
    pool.until(lambda: pools.journal() == ["first m0"])
    for pid in pool.pids:
        os.kill(pid, signal.SIGTERM)
    pool.send(signal.SIGTERM)
    pool.until(lambda: "stopping" in pool.log)
    pools.hold.unlink()
    assert pool.wait() == 0
    assert pools.journal() == ["first m0", "second m0"]
    assert is_empty(queue)


def test_Z11_no_signal_handler_logs(caplog: pytest.LogCaptureFixture) -> None:
    """It may interrupt the very code that logs: what there is to say is said by the loop."""
    caplog.set_level(logging.DEBUG)
    loop, leaving = Loop(), Leaving()
    before = signal.getsignal(signal.SIGALRM)
    with contextlib.closing(loop):
        loop.signals(dict.fromkeys(FOR_THE_MASTER, "event"))
        for number in FOR_THE_MASTER:
            signal.raise_signal(number)
    signal.signal(signal.SIGALRM, leaving.tell)
    signal.raise_signal(signal.SIGALRM)
    signal.signal(signal.SIGALRM, leaving.ask)
    signal.raise_signal(signal.SIGALRM)
    signal.signal(signal.SIGALRM, before)
    assert leaving.taken()
    assert leaving.is_asked
    assert caplog.records == []
    for fd in (leaving.fd, leaving._writer):
        os.close(fd)


def deaf(message: Message) -> None:
    """Hang in C, with every signal blocked that can be."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    write(f"hangs {message.name}")
    libc = ctypes.CDLL(None)
    while True:
        libc.sleep(1000)


def test_Z19_the_third_int_ends_a_handler_that_hears_nothing(pools: Pools, queue: Path) -> None:
    drop(queue, "m0", b"x")
    pool = pools.start(str(queue), "--workers", "1", "--handler", f"{__name__}:deaf").ready()
    pool.until(lambda: pools.journal() == ["hangs m0"])
    for count in (1, 2):
        pool.send(signal.SIGINT)
        pool.until(lambda count=count: pool.log.count("draining") == count)
    assert pool.end(signal.SIGINT, 15) == 0
    assert unburnt(queue) == [("m0", 0, 0)]


def test_Z20_hup_reads_the_configuration_again(pools: Pools, queue: Path) -> None:
    words = configured(pools, queue)
    pool = pools.start(*words).ready()
    path = Path(words[1])
    path.write_text(path.read_text().replace("workers = 2", "workers = 1"))
    pool.send(signal.SIGHUP)
    pool.until(lambda: len(pool.pids) == 1)
    assert pool.end() == 0


def test_Z22_a_worker_that_dies_is_replaced_and_counted(pools: Pools, queue: Path) -> None:
    pool = pools.start(str(queue), "--workers", "2", *HOLD).ready()
    dead = pool.pids[0]
    os.kill(dead, signal.SIGKILL)
    pool.until(lambda: len(pool.pids) == 2 and dead not in pool.pids)
    assert pool.status["totals"]["exits"]["signal"] == 1
    assert pool.end() == 0


COUNTER = """
import os, signal, sys
from orchestrator.loop import Loop

loop = Loop()
loop.signals({signal.SIGUSR1: "usr1", signal.SIGUSR2: "usr2", signal.SIGTERM: "term"})
loop.on("usr1", lambda _: os.write(1, b"1"))
loop.on("usr2", lambda _: os.write(1, b"2"))
loop.on("term", lambda _: loop.stop(7))
os.write(1, b"r")
while loop._code is None:
    loop.turn(3600)  # so that nothing else wakes it
sys.exit(loop._code)
"""


def test_10000_signals_wake_a_sleeping_loop_and_none_is_lost() -> None:
    """
    One by one: the next is sent as soon as this one was answered, so it falls into the end of the turn, the look
    before the sleep, or the sleep. A lost one would be noticed by nobody.
    """
    with subprocess.Popen([sys.executable, "-c", COUNTER], stdout=subprocess.PIPE, cwd=ROOT, bufsize=0) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.read(1) == b"r"
            for number in range(10_000):
                process.send_signal((signal.SIGUSR1, signal.SIGUSR2)[number % 2])
                ready, _, _ = select.select([process.stdout], [], [], 60.0)
                assert ready, f"signal {number} woke nobody"
                assert process.stdout.read(1) == b"12"[number % 2 : number % 2 + 1]
            process.send_signal(signal.SIGTERM)
            assert process.wait(15) == 7
            assert process.stdout.read() == b""
        finally:
            process.kill()


def test_every_signal_of_the_table_is_tested_here_or_in_reload() -> None:
    tested = {signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU}
    assert set(SIGNALS) == tested | {signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM}


def test_a_second_master_of_the_same_name_is_refused(pools: Pools, queue: Path) -> None:
    pool = pools.start(str(queue), "--workers", "1", *HOLD).ready()
    second = pools.start(str(queue), "--workers", "1", *HOLD)
    assert second.wait() == 1
    assert f"running already as process {pool.process.pid}" in second.log
    assert "Traceback" not in second.log
    third = pools.start(str(queue), "--workers", "1", *HOLD, name="third").ready()
    assert third.end() == 0
    drop(queue, "still", b"x")
    pool.until(lambda: pool.outcome("done") == 1)
    assert pool.end() == 0


def test_a_stale_pid_file_is_taken_over(pools: Pools, queue: Path) -> None:
    """Left by a killed master; and with the pid of a living process that is another one."""
    pool = pools.start(str(queue), "--workers", "1", *HOLD).ready()
    pid_file = pool.board_path.with_name("pid")
    pool.process.kill()
    pool.wait()
    assert pid_file.read_text().split()[0] == str(pool.process.pid)
    second = pools.start(str(queue), "--workers", "1", *HOLD).ready()
    second.process.kill()
    second.wait()
    pid_file.write_text(f"{os.getpid()} 1\n")
    third = pools.start(str(queue), "--workers", "1", *HOLD).ready()
    assert pools.run("status", "--run-dir", str(pools.place / "run"))[0] == 0
    assert third.end() == 0
    assert not pid_file.exists()


def test_a_long_run_directory_works(pools: Pools, queue: Path) -> None:
    """A socket's address holds 108 bytes, and the path of the control socket may be longer."""
    run_dir = pools.place / ("d" * 100) / ("e" * 100)
    pool = pools.start(str(queue), "--workers", "1", *HOLD, run_dir=run_dir).ready()
    assert len(str(pool.board_path.with_name("control"))) > 200
    code, said = pools.run("scale", "queue", "2", "--run-dir", str(run_dir))
    assert code == 0, said
    pool.until(lambda: len(pool.pids) == 2)
    assert pools.run("status", "--run-dir", str(run_dir))[0] == 0
    code, said = pools.run("stop", "--run-dir", str(run_dir))
    assert (code, pool.wait(15)) == (0, 0), said
    assert pools.run("status", "--run-dir", str(run_dir))[0] == 3


def test_drain_and_stop_wait_until_the_pool_is_gone(pools: Pools, queue: Path) -> None:
    run_dir = str(pools.place / "run")
    pool = pools.start(str(queue), "--workers", "1", *HOLD).ready()
    assert pools.run("drain", "--run-dir", run_dir)[0] == 0
    assert pool.process.poll() == 0
    assert pools.run("drain", "--run-dir", run_dir)[0] == 3


def test_the_roles_say_in_their_titles_what_they_are(pools: Pools, queue: Path) -> None:
    pool = holding(pools, queue)
    everyone = [process(pid) for pid in (pool.process.pid, *pool.pids)]

    def titles() -> set[str]:
        return {psutil.Process(one.pid).cmdline()[0] for one in everyone}

    pattern = re.compile(r"orchestrator: worker queue\[[01]\] message=m[01] [1-9][0-9]*s")
    pool.until(lambda: sum(bool(pattern.fullmatch(title)) for title in titles()) == 2)
    below = {child.cmdline()[0] for child in psutil.Process(pool.process.pid).children()}
    assert "orchestrator: keeper" in below
    assert "orchestrator: master pool" in titles()
    pools.hold.unlink()
    assert pool.end() == 0
    assert not files(queue, "pending")


def test_a_queue_that_cannot_be_used_is_refused_at_the_start(pools: Pools, tmp_path: Path) -> None:
    pool = pools.start(str(tmp_path / "missing" / "queue"), "--workers", "1", *HOLD)
    assert pool.wait() == 1
    assert str(tmp_path / "missing") in pool.log
    assert "Traceback" not in pool.log


def test_a_put_by_name_over_the_command_line_is_handled(pools: Pools, queue: Path) -> None:
    pool = pools.start(str(queue), "--workers", "1", *HOLD).ready()
    assert pools.run("put", str(queue), "--name", "greeting", stdin=b"hello") == (0, "greeting\n")
    pool.until(lambda: pool.outcome("done") == 1)
    assert pools.journal() == ["holds greeting", "handled greeting hello"]
    make_queue(queue).put(b"more")
    pool.until(lambda: pool.outcome("done") == 2)
    assert pool.end() == 0
