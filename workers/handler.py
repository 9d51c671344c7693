"""
handler - find the user's function, and call it so that whatever it does is a value

A handler is ``handle(message) -> Outcome | None``. resolve() finds it by
"package.module:name"; call() runs it for one message and answers what became of it.

The current directory is appended to the import path, never put in front: a file that
lies there cannot stand in for a module of the standard library. One into which everybody
may write (/tmp) is left out, for whoever writes a module there would run as this user.

A handler may also be driven by events (EventDriven): then the worker serves it between messages, and it knows the
queues around it (Services).

Raises: HandlerError from resolve(). call() lets out what is no failure of the handler:
KeyboardInterrupt, and whatever else is neither an Exception nor SystemExit.
Long because: the sentences of what cannot be resolved or returned stand where it is found out.
See also: worker (settles what call() answers), handlers.command (programs).
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import json
import math
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Protocol, cast, runtime_checkable

from workers.dump import said
from workers.errors import HandlerError
from workers.handlers.command import CommandFailed
from workers.message import Done, Forward, Message, Outcome, Reject, Retry

if TYPE_CHECKING:
    from workers.queues.base import Queue

Handler = Callable[[Message], Outcome | None]

CANCELLED = Done()  # this very value: done, and not handed on to the output

FAILURE_BYTES_MAX = 16384
META_SIZE_MAX = 1 << 18  # of its JSON; a .meta that is much longer would not be read
SUMMARY_SIZE_MAX = 300  # characters


@dataclass(frozen=True, slots=True)
class Called:
    """
    What became of one call.

    Attributes:
        outcome: what the handler answered (None from it is Done()); None when it failed.
        failure: None, or the traceback or sentence that says how it failed, at most 16 KiB of UTF-8, the end kept.
        summary: one printable line.
        meta: what the failure wants kept beside the message, for example a program's stderr.
    """

    outcome: Outcome | None
    failure: str | None
    summary: str
    meta: dict[str, object] = field(default_factory=dict)


DONE = Called(Done(), None, "done")


@dataclass(frozen=True, slots=True)
class Services:
    """
    What a worker tells a handler that is driven by events.

    Attributes:
        queue: that it claims from.
        following: the queue called so, or at that URL, opened. Raises OrchestratorError.
        output: where what is done goes, "" for nowhere.
        worker: the worker's index.
        is_held_up: whether nothing is claimed because the output is full.
        sleep: for at most so many seconds; being asked to leave ends it.
        is_leaving: whether the worker was asked to leave.
        is_hurried: whether that is to be quick: wait for nothing that is not there yet.
    """

    queue: Queue
    following: Callable[[str], Queue]
    output: str
    worker: int
    is_held_up: Callable[[], bool]
    sleep: Callable[[float], None]
    is_leaving: Callable[[], bool]
    is_hurried: Callable[[], bool]


@runtime_checkable
class EventDriven(Protocol):
    """A handler that is also called between messages, all in the thread of its worker."""

    def __call__(self, message: Message) -> Outcome:
        """Handle one message."""

    def open(self, services: Services) -> None:
        """Begin: once, in the process that claims, before the first claim. Raises HandlerError."""

    def turn(self) -> None:
        """Do what is due. Before each claim, so quick where nothing is."""

    def wait_s(self) -> float:
        """Seconds until something is due: 0 for now, infinity for never."""

    def is_busy(self) -> bool:
        """Whether there is something to do without another message."""

    def is_done(self) -> bool:
        """Whether nothing more will ever be done: the worker leaves, and is not replaced."""

    def state(self) -> dict[str, object]:
        """What it is at, as JSON can hold it."""

    def close(self) -> None:
        """End; the queues are still open."""


def resolve(spec: str) -> Handler:
    """
    Find the handler "package.module:name"; a class is instantiated without arguments.

    A dotted name after the colon is followed. What is found must be callable or have a
    method ``handle``. Imports the module, so: in the process that will call it, or before
    the fork by intent. Raises HandlerError with the cause attached.
    """
    found = look_up(spec)
    if isinstance(found, type):
        try:
            found = found()
        except (Exception, SystemExit) as error:
            raise HandlerError(
                f"handler {spec!r}: making a {spec.partition(':')[2]} without arguments failed: {_described(error)}"
            ) from error
    method = found if callable(found) else getattr(found, "handle", None)
    if not callable(method):
        raise HandlerError(
            f"handler {spec!r} is a {type(found).__name__}, which cannot be called and has no method handle; "
            "name a function that takes a message"
        )
    if inspect.iscoroutinefunction(method) or inspect.iscoroutinefunction(getattr(method, "__call__", None)):  # noqa: B004 - the method itself is looked at
        raise HandlerError(f"handler {spec!r} is async; name a plain function, which may call asyncio.run() itself")
    return cast(Handler, method)


def look_up(spec: str) -> object:
    """Import the module of *spec* and find the name in it; nothing is made or called. Raises HandlerError."""
    module_name, name = _split(spec)
    _append_current_directory()
    module = _import(spec, module_name)
    found: object = module
    for number, part in enumerate(name.split(".")):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            where = ".".join([module_name, *name.split(".")[:number]])
            raise HandlerError(_no_attribute(spec, module, found, where, part)) from error
    return found


def call(handler: Handler, message: Message) -> Called:
    """Run *handler* for *message*. Blocks as long as it does; lets out no Exception and no SystemExit."""
    try:
        outcome = handler(message)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a handler raises is its failure, and is recorded
        return _failed(error)
    if outcome is None:
        return DONE
    if (wrong := _wrong(outcome)) is not None:
        return Called(None, f"{wrong}.\n", _one_line(wrong))
    if isinstance(outcome, Reject) and (reason := _tail(outcome.reason)) != outcome.reason:
        outcome = Reject(reason)  # cut as a traceback is: a .meta that is too long is not read
    return Called(outcome, None, _summary(outcome))


def _split(spec: str) -> tuple[str, str]:
    """Take a spec apart, or say how it should have been written."""
    module_name, _, name = spec.partition(":")
    if name and all(part.isidentifier() for part in [*module_name.split("."), *name.split(".")]):
        return module_name, name
    path = module_name.removeprefix("./").removesuffix(".py").replace("/", ".").strip(".")
    guess = ""
    if path and all(part.isidentifier() for part in path.split(".")):
        package, _, last = path.rpartition(".")
        if not name and package and path == module_name:
            guess = f"; did you mean {package}:{last}?"
        elif not name or name.isidentifier():
            guess = f"; did you mean {path}:{name or 'handle'}?"
    raise HandlerError(f"handler {spec!r} is not of the form MODULE:NAME{guess}")


def _append_current_directory() -> None:
    directory = _current_directory()
    # "" is how an interactive Python spells the current directory.
    if directory and directory not in sys.path and "" not in sys.path and not _is_everybodys(directory):
        sys.path.append(directory)


def _current_directory() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:  # it was removed; then there is nothing in it to import
        return ""


def _is_everybodys(directory: str) -> bool:
    try:
        is_read_only = os.statvfs(directory).f_flag & os.ST_RDONLY
        return bool(os.stat(directory).st_mode & 0o002) and not is_read_only
    except OSError:
        return False


def _import(spec: str, module_name: str) -> ModuleType:
    try:
        return _import_fresh(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        if missing != module_name and not module_name.startswith(missing + "."):
            raise HandlerError(
                f"handler {spec!r}: the module {module_name} needs {missing}, which is not installed for "
                f"{sys.executable}"
            ) from error
        looked = ", ".join(place or "the current directory" for place in sys.path)
        here = _current_directory()
        if here and here not in sys.path and _is_everybodys(here):
            looked += ", and not in the current directory, for everybody may write into it (chmod o-w)"
        raise HandlerError(
            f"handler {spec!r}: there is no module {missing}; looked in {looked}. "
            "Start in the directory that holds it, install it, or name the directory in PYTHONPATH"
        ) from error
    except (Exception, SystemExit) as error:
        raise HandlerError(f"handler {spec!r}: importing {module_name} failed: {_described(error)}") from error


def _import_fresh(module_name: str) -> ModuleType:
    """Import it; a file that was written a moment ago counts."""
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
    # Only now, for that imports much by itself, which each worker would have memory of its own for.
    importlib.invalidate_caches()
    return importlib.import_module(module_name)


def _no_attribute(spec: str, module: ModuleType, owner: object, where: str, missing: str) -> str:
    """Say what *owner* has instead of *missing*."""
    public = [name for name in dir(owner) if not name.startswith("_")]
    near = difflib.get_close_matches(missing, public, 1)
    file = getattr(module, "__file__", None) or "built into Python"
    text = f"handler {spec!r}: {where} ({file}) has no {missing}"
    if near:
        text += (
            f"; did you mean {spec.removesuffix(missing)}{near[0]}?"
            if spec.endswith(missing)
            else f"; near is {near[0]}"
        )
    here = os.path.abspath(module.__name__.partition(".")[0] + ".py")
    if os.path.exists(here) and not os.path.samefile(here, file if os.path.exists(file) else os.devnull):
        text += f" ({here} was not taken: the current directory is looked at last; call that file something else)"
    return text


def _failed(error: BaseException) -> Called:
    meta = getattr(error, "meta", None)
    summary = _described(error)
    if isinstance(error, CommandFailed):
        # The program failed, not this library: a traceback through it would lead the reader astray.
        return Called(None, f"{error}\n", summary, error.meta)
    # The first entry is call() itself.
    start = error.__traceback__.tb_next if error.__traceback__ is not None else None
    try:
        text = "".join(traceback.format_exception(type(error), error, start))
    except Exception:  # noqa: BLE001 - an exception that cannot be formatted (its own __str__, no memory) is still a failure
        text = f"{summary} (its traceback could not be written)\n"
    # An attribute of anybody's exception: what JSON has no word for would cost the worker its life.
    kept = said(meta) if isinstance(meta, dict) else {}
    if len(json.dumps(kept)) > META_SIZE_MAX:
        kept = {"left_out": "what the exception had in meta is too long"}
    return Called(None, _tail(text), summary, kept if isinstance(kept, dict) else {})


def _tail(text: str) -> str:
    """The end of *text*, at most FAILURE_BYTES_MAX bytes of valid UTF-8."""
    raw = text.encode("utf-8", "backslashreplace")
    if len(raw) > FAILURE_BYTES_MAX:
        kept = FAILURE_BYTES_MAX - 64
        raw = f"[{len(raw) - kept} bytes left out]\n".encode() + raw[-kept:]
    return raw.decode("utf-8", "ignore")


def _described(error: BaseException) -> str:
    """*error* in one line: a sentence of ours as it is, anything else after its type."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - the exception is the user's, and so is its __str__
        text = "(its text could not be made)"
    if isinstance(error, CommandFailed | HandlerError):
        return _one_line(text)
    return _one_line(f"{type(error).__name__}: {text}" if text else type(error).__name__)


def _one_line(text: str) -> str:
    line = " ".join(text[: 4 * SUMMARY_SIZE_MAX].split()).encode("utf-8", "backslashreplace").decode()
    line = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in line)
    return line if len(line) <= SUMMARY_SIZE_MAX else line[: SUMMARY_SIZE_MAX - 4] + " ..."


def _wrong(outcome: object) -> str | None:
    """Say what is wrong with what a handler returned, or None. A queue must be able to trust an outcome."""
    match outcome:
        case Done() | Retry(after_s=None) | Reject(reason=str()):
            return None
        case Forward(body, str()) if _is_forwardable(body):
            return None
        case Retry(after_s=float() | int() as after_s) if not isinstance(after_s, bool) and math.isfinite(after_s):
            return None
        case Retry() | Reject() | Forward():
            return f"the handler returned {outcome!r:.200}, whose value is of the wrong type"
        case type():
            return (
                f"the handler returned the class {outcome.__name__}, not a value of it; write {outcome.__name__}(...)"
            )
    kind = type(outcome).__name__
    return f"the handler returned a value of type {kind}; it may return None, Done, Retry, Reject or Forward"


def _is_forwardable(body: object) -> bool:
    bodies = body if isinstance(body, list | tuple) else [body]
    return body is None or all(isinstance(each, bytes | Path) or _is_text(each) for each in bodies)


def _is_text(body: object) -> bool:
    """Whether *body* is text that UTF-8 can say: a lone surrogate cannot be put."""
    try:
        return isinstance(body, str) and body.encode("utf-8") is not None
    except UnicodeEncodeError:
        return False


def _summary(outcome: Outcome) -> str:
    match outcome:
        case Retry(after_s):
            return "retry" if after_s is None else f"retry after {after_s:g} s"
        case Reject(reason):
            return _one_line(f"reject: {reason}")
        case Forward(_, queue):
            return _one_line(f"forward to {queue}")
        case Done():
            return "done"
