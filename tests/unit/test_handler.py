"""test_handler - finding the user's function, and calling it so that whatever it does is a value"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from workers.errors import HandlerError
from workers.handler import FAILURE_BYTES_MAX, Called, call, resolve
from workers.handlers import echo
from workers.handlers.command import Command, CommandFailed
from workers.message import Claim, Done, Forward, Message, Outcome, Reject, Retry

MODULE = """
from workers.message import Done, Retry

def handle(message):
    return Retry(7)

async def later(message):
    return None

NUMBER = 3

class Counting:
    def __init__(self):
        self.count = 0
    def handle(self, message):
        self.count += 1
        return Retry(self.count)
    inner = staticmethod(handle)

class Calling:
    def __call__(self, message):
        return Done()

class Dull:
    pass

class Greedy:
    def __init__(self, something):
        pass
"""


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current directory, with a module in it; the import path and what was imported are put back."""
    (tmp_path / "mine.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.fixture
def message(tmp_path: Path) -> Message:
    path = tmp_path / "m\n1"
    path.write_bytes(b"body")
    return Message(Claim(name="m\n1", path=str(path)), queue="in")


def refusal(spec: str) -> str:
    with pytest.raises(HandlerError) as caught:
        resolve(spec)
    return str(caught.value)


def test_a_function_is_found_in_the_current_directory_which_comes_last_and_once(
    directory: Path, message: Message
) -> None:
    assert resolve("mine:handle")(message) == Retry(7)
    assert resolve("mine:handle")(message) == Retry(7)
    assert sys.path[-1] == str(directory)
    assert sys.path.count(str(directory)) == 1


def test_a_file_of_the_current_directory_cannot_stand_in_for_the_standard_library(directory: Path) -> None:
    (directory / "colorsys.py").write_text("raise SystemExit('taken')")
    text = refusal("colorsys:handle")
    assert "colorsys has no handle" in text.replace(f" ({sys.modules['colorsys'].__file__})", "")
    assert f"{directory / 'colorsys.py'} was not taken" in text


def test_nothing_is_imported_from_a_directory_into_which_everybody_may_write(directory: Path) -> None:
    directory.chmod(0o1777)
    assert "not in the current directory, for everybody may write into it" in refusal("mine:handle")
    assert str(directory) not in sys.path
    directory.chmod(0o755)
    assert callable(resolve("mine:handle"))


def test_a_dotted_name_a_class_and_a_callable_object_are_handlers(message: Message) -> None:
    counting = resolve("mine:Counting")
    assert [counting(message), counting(message)] == [Retry(1), Retry(2)]
    assert callable(resolve("mine:Counting.inner"))
    assert resolve("mine:Calling")(message) == Done()


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("mine", "handler 'mine' is not of the form MODULE:NAME; did you mean mine:handle?"),
        ("mine.handle", "did you mean mine:handle?"),
        ("mine.py", "did you mean mine:handle?"),
        ("./a/mine.py:go", "did you mean a.mine:go?"),
        ("", "not of the form MODULE:NAME"),
        (":handle", "not of the form MODULE:NAME"),
        ("mine:", "did you mean mine:handle?"),
        ("mine:__import__('os')", "not of the form MODULE:NAME"),
        ("..mine:handle", "not of the form MODULE:NAME"),
        ("mime_type:handle", "there is no module mime_type; looked in "),
        ("mine.deeper:handle", "there is no module mine.deeper"),
        ("mine:handel", "has no handel; did you mean mine:handle?"),
        ("mine:Counting.handel", "mine.Counting ("),
        ("mine:NUMBER", "is a int, which cannot be called"),
        ("mine:Dull", "is a Dull, which cannot be called and has no method handle"),
        ("mine:Greedy", "making a Greedy without arguments failed: TypeError"),
        ("mine:later", "is async; name a plain function"),
    ],
)
def test_a_wrong_spec_is_refused_with_what_to_do(spec: str, said: str) -> None:
    assert said in refusal(spec)


def test_where_was_looked_is_said(directory: Path) -> None:
    assert str(directory) in refusal("no_such_module_here:handle")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import no_such_dependency", "the module broken needs no_such_dependency, which is not installed"),
        ("1 / 0", "importing broken failed: ZeroDivisionError: division by zero"),
        ("def (", "importing broken failed: SyntaxError"),
        ("raise SystemExit(3)", "importing broken failed: SystemExit: 3"),
    ],
)
def test_a_module_that_cannot_be_imported_is_refused_with_its_cause(directory: Path, source: str, said: str) -> None:
    (directory / "broken.py").write_text(source)
    with pytest.raises(HandlerError, match=said) as caught:
        resolve("broken:handle")
    assert caught.value.__cause__ is not None


def test_the_current_directory_may_be_gone(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    gone = tmp_path_factory.mktemp("gone")
    os.chdir(gone)
    gone.rmdir()
    assert resolve("workers.handlers.echo:nothing") is echo.nothing
    os.chdir(directory)


@pytest.mark.parametrize(
    "outcome",
    [
        Done(),
        Retry(),
        Retry(0),
        Retry(1.5),
        Reject("no"),
        Forward(b"x", "next"),
        Forward(["a", b"b", Path("c")], "n"),
        Forward(None, "n"),
    ],
)
def test_an_outcome_is_handed_on_as_it_is(message: Message, outcome: Outcome) -> None:
    called = call(lambda _: outcome, message)
    assert called.outcome is outcome
    assert called.failure is None
    assert called.summary
    assert "\n" not in called.summary


def test_none_is_done(message: Message) -> None:
    assert call(lambda _: None, message) == Called(Done(), None, "done", {})


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (True, "a value of type bool"),
        ("done", "a value of type str"),
        (Done, "the class Done, not a value of it; write Done(...)"),
        (Retry("5"), "Retry(after_s='5'), whose value is of the wrong type"),  # type: ignore[arg-type]
        (Retry(float("nan")), "Retry(after_s=nan)"),
        (Forward([b"x", 1], "next"), "Forward(body=[b'x', 1], queue='next')"),  # type: ignore[list-item]
        (Reject(None), "Reject(reason=None)"),  # type: ignore[arg-type]
    ],
)
def test_a_value_that_is_no_outcome_is_a_failure_that_says_so(message: Message, value: Outcome, said: str) -> None:
    called = call(lambda _: value, message)
    assert called.outcome is None
    assert said in str(called.failure)
    assert said in called.summary


def test_an_exception_is_a_failure_with_the_traceback_of_the_handler(message: Message) -> None:
    def handle(_: Message) -> None:
        raise ValueError("two\nlines \x1b[31m \ud800")

    called = call(handle, message)
    assert called.outcome is None
    assert called.failure is not None
    assert called.failure.startswith("Traceback")
    assert "raise ValueError" in called.failure
    assert "workers/handler.py" not in called.failure
    assert called.summary == "ValueError: two lines \\x1b[31m \\ud800"
    called.failure.encode()


class MuteError(Exception):
    """Cannot even say what it is."""

    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    "error", [SystemExit(0), MemoryError(), OSError(5, "I/O error"), RecursionError(), MuteError()]
)
def test_whatever_a_handler_raises_is_its_failure(message: Message, error: BaseException) -> None:
    def handle(_: Message) -> None:
        raise error

    called = call(handle, message)
    assert called.outcome is None
    assert type(error).__name__ in str(called.failure)
    assert called.summary.startswith(type(error).__name__)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, GeneratorExit])
def test_what_is_meant_for_the_worker_passes_through(message: Message, kind: type[BaseException]) -> None:
    def handle(_: Message) -> None:
        raise kind

    with pytest.raises(kind):
        call(handle, message)


def test_a_body_that_cannot_be_read_is_a_failure(message: Message) -> None:
    message.path.unlink()
    called = call(echo.read, message)
    assert called.summary.startswith("FileNotFoundError")


def test_a_handler_that_takes_no_message_is_a_failure(message: Message) -> None:
    called = call(lambda: None, message)  # type: ignore[misc, arg-type]
    assert called.summary.startswith("TypeError")


def test_of_a_long_traceback_the_end_is_kept(message: Message) -> None:
    def handle(_: Message) -> None:
        raise ValueError("é" * FAILURE_BYTES_MAX + " the end")

    called = call(handle, message)
    assert called.failure is not None
    assert called.failure.endswith(" the end\n")
    assert "bytes left out]" in called.failure
    assert len(called.failure.encode()) <= FAILURE_BYTES_MAX
    assert len(called.summary) <= 300


def test_a_program_that_failed_has_its_output_in_meta_and_no_traceback(message: Message) -> None:
    called = call(Command(["sh", "-c", "echo why >&2; exit 3"]), message)
    assert called.outcome is None
    assert called.summary == "sh ended with exit code 3: why"
    assert called.failure == "sh ended with exit code 3: why\n"
    assert called.meta["stderr"] == "why\n"


def test_meta_that_is_no_dictionary_is_left_out(message: Message) -> None:
    def handle(_: Message) -> None:
        error = ValueError("x")
        error.meta = "text"  # type: ignore[attr-defined]
        raise error

    def handle_command(_: Message) -> None:
        raise CommandFailed("x", {"exit_code": 1})

    assert call(handle, message).meta == {}
    assert call(handle_command, message).meta == {"exit_code": 1}


def test_echo_writes_the_name_escaped_and_the_size(message: Message, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(resolve("workers.handlers.echo:handle"), message).outcome == Done()
    assert capsys.readouterr().out == "m\\n1 4\n"
