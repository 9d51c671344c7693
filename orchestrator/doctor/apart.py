"""
apart - processes that may hang without harm: one with a limit, or several that start together

What a mount keeps waiting waits in a child; the parent asks nothing of the mount and kills the
child, with all that it forked, when it was silent for too long. A child that even SIGKILL does
not end (it waits in the kernel) is left behind, and ends when the mount answers.

So that slow is told from hung, a child's System says an empty word for what is answered, its own and that
of its forks. Answers come back as JSON through a pipe.
Limits: Linux; main thread only, and no other threads in the process that forks.
See also: examination, races.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import NoReturn, TypeVar

from orchestrator.doctor import DoctorError
from orchestrator.doctor.facts import Facts, Trouble
from workers.queues.names import shown
from workers.system import System, die_with_parent, kill_session

ENDING_S = 1.0  # so long a killed child is waited for
CHUNK = 65536
WORD_S = 0.2  # between empty words
CALLS = tuple(name for name in dir(System) if not name.startswith(("_", "mq_")) and callable(getattr(System, name)))
POLL_MS_MAX = (1 << 31) - 1
MOMENT = 8  # bytes of a time in a pipe

Say = Callable[[str], None]
Found = TypeVar("Found", bound=Facts)


def apart(probe: str, kind: type[Found], work: Callable[[Say], Found], silence_s: float, heard: Say) -> Found | Trouble:
    """
    Run *work* in a process of its own; its answer, or what kept it from one.

    *work* is given a function that says a word, for *heard*. Raises DoctorError where *work* does.
    Blocks until it has ended, or was silent for *silence_s*.
    """

    def speak(writer: int) -> None:
        said: dict[str, object]
        try:
            said = {"found": work(lambda text: _write(writer, {"word": text})).model_dump(mode="json")}
        except DoctorError as error:
            said = {"refused": str(error)}
        except OSError as error:
            said = {"text": error_text(error), "error": error_name(error)}
        except Exception as error:  # noqa: BLE001 - a fault of the probe itself, which must not be silent
            said = {"text": _fault(error), "error": ""}
        _write(writer, said)

    with beside(speak) as reader:
        for line in _lines(reader, silence_s):
            if line is None:
                return Trouble(probe=probe, text=f"did not answer within {silence_s:g} s", late_s=silence_s)
            said = json.loads(line)
            if "word" in said:
                heard(said["word"])
            elif "refused" in said:
                raise DoctorError(said["refused"])
            elif "found" in said:
                try:
                    return kind.model_validate_json(json.dumps(said["found"]))
                except ValueError as error:
                    return Trouble(probe=probe, text=_fault(error))
            else:
                return Trouble(probe=probe, text=said["text"], error=said["error"])
    return Trouble(probe=probe, text="its process died")


class Speaking(System):
    """*system*, with an empty word to *say* for a call that is answered, every now and then."""

    def __init__(self, system: System, say: Say) -> None:
        said_ns = 0

        def speaking(call: Callable[..., object]) -> Callable[..., object]:
            def answered(*arguments: object, **more: object) -> object:
                nonlocal said_ns
                try:
                    return call(*arguments, **more)
                finally:
                    now_ns = time.monotonic_ns()
                    if now_ns - said_ns > WORD_S * 1e9:
                        said_ns = now_ns
                        say("")

            return answered

        for name in CALLS:
            setattr(self, name, speaking(getattr(system, name)))


def side_by_side(kind: type[Found], count: int, prepare: Callable[[int], Callable[[int], Found]]) -> list[Found]:
    """
    Run what *prepare* answers for 0 ... count - 1 in as many processes, which begin together when all are prepared.

    Each is given the moment of the beginning (nanoseconds since boot).
    Their answers, in that order. Raises OSError where one of them does. Blocks until all have ended.
    """
    opening, opener = os.pipe2(os.O_CLOEXEC)
    with contextlib.ExitStack() as stack:
        readers = []
        for index in range(count):

            def speak(writer: int, index: int = index) -> None:
                said: dict[str, object]
                try:
                    # A copy of the writing end kept here would keep those waiting whose parent died.
                    os.close(opener)
                    act = prepare(index)
                    _write(writer, {"word": "prepared"})
                    begin_ns = int.from_bytes(os.read(opening, MOMENT), "big")
                    said = {"found": act(begin_ns).model_dump(mode="json")}
                except OSError as error:
                    said = {"number": error.errno, "text": error.strerror}
                except Exception as error:  # noqa: BLE001 - as above
                    said = {"number": errno.EIO, "text": _fault(error)}
                _write(writer, said)

            readers.append(_lines(stack.enter_context(beside(speak)), None))
        firsts = [next(reader, None) for reader in readers]
        os.write(opener, time.clock_gettime_ns(time.CLOCK_BOOTTIME).to_bytes(MOMENT, "big") * count)
        os.close(opener)
        os.close(opening)
        found = []
        for first, reader in zip(firsts, readers, strict=True):
            said = json.loads(first or b"{}")
            if "word" in said:
                said = json.loads(next(reader, None) or b"{}")
            if "found" not in said:
                raise OSError(said.get("number", errno.EIO), said.get("text", "a process that raced died"))
            found.append(kind.model_validate_json(json.dumps(said["found"])))
        return found


@contextlib.contextmanager
def beside(speak: Callable[[int], None]) -> Iterator[int]:
    """
    A child that runs *speak* with the writing end of a pipe, in a session of its own; the reading end.

    It is killed with all it forked at the end of the block, and dies with us.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    parent = os.getpid()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    pid = os.fork()
    if pid == 0:
        _be_child(parent, reader, lambda: speak(writer))
    os.close(writer)
    try:
        yield reader
    finally:
        os.close(reader)
        _kill(pid)


def error_name(error: OSError) -> str:
    """The name of its number."""
    return errno.errorcode.get(error.errno or 0, "an error without a number")


def error_text(error: OSError) -> str:
    """What it says, without the path: that of a probe tells nobody anything."""
    return f"{error.strerror or error} ({error_name(error)})"


def _fault(error: Exception) -> str:
    where = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{os.path.basename(where.filename)}:{where.lineno}"
    return f"has a fault of its own: {type(error).__name__}: {shown(str(error))} ({place})"


def _be_child(parent: int, reader: int, act: Callable[[], None]) -> NoReturn:
    code = 1
    try:
        os.close(reader)
        os.setsid()
        # A child that hangs for ever must not keep those waiting who read what the command prints.
        nowhere = os.open(os.devnull, os.O_RDWR)
        for fd in range(3):
            os.dup2(nowhere, fd)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        die_with_parent(parent)
        act()
        code = 0
    finally:
        os._exit(code)  # whatever happened: nothing of the parent's is unwound, or flushed twice


def _write(writer: int, said: dict[str, object]) -> None:
    data = json.dumps(said).encode() + b"\n"
    while data:
        data = data[os.write(writer, data) :]


def _lines(reader: int, silence_s: float | None) -> Iterator[bytes | None]:
    """The lines that come out of *reader*, to its end; None, at last, when none came for *silence_s*."""
    poller = select.poll()
    poller.register(reader, select.POLLIN)
    rest = b""
    while True:
        if not poller.poll(None if silence_s is None else min(silence_s * 1000, POLL_MS_MAX)):
            yield None
            return
        data = os.read(reader, CHUNK)
        if not data:
            return
        *lines, rest = (rest + data).split(b"\n")
        yield from lines


def _kill(pid: int) -> None:
    """SIGKILL session *pid* and take the child's exit code; not for long, for the kernel may keep it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)
    kill_session(pid)
    until_s = time.monotonic() + ENDING_S
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(pid, os.WNOHANG)[0] == 0 and time.monotonic() < until_s:
            time.sleep(0.005)
