"""
test_logs - one line for each thing that happened, whatever its text holds
"""

from __future__ import annotations

import io
import json
import logging
import os
import re
from collections.abc import Iterator

import pytest

from orchestrator import logs

HOSTILE = "a\nb\x1b[2J\udc80\ud800é"


@pytest.fixture(autouse=True)
def _root_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def logged(format: str, level: str = "info") -> tuple[io.StringIO, logging.Logger]:  # noqa: A002 - the flag's name
    stream = io.StringIO()
    logs.setup(level, format, stream)
    return stream, logging.getLogger("orchestrator.master")


def test_a_text_line_has_time_level_logger_and_process() -> None:
    stream, log = logged("text")
    log.info("worker %d of %s", 3, "in")
    line = rf"\d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{{3}}Z INFO  orchestrator\.master\[{os.getpid()}\]: worker 3 of in\n"
    assert re.fullmatch(line, stream.getvalue())


def test_what_is_below_the_level_is_left_out() -> None:
    stream, log = logged("text", "warning")
    log.info("no")
    log.warning("yes")
    assert stream.getvalue().count("\n") == 1


@pytest.mark.parametrize("format", logs.FORMATS)
def test_a_hostile_name_makes_neither_a_line_nor_a_control_character(format: str) -> None:  # noqa: A002
    stream, log = logged(format)
    log.info("message %s", HOSTILE, extra={"message_name": HOSTILE})
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert text[:-1].isprintable()
    text.encode("utf-8")


def test_the_lines_of_a_traceback_are_indented() -> None:
    stream, log = logged("text")
    try:
        raise ValueError("x\n2026-11-21T02:40:00.123Z INFO  forged\x1b[2J")
    except ValueError:
        log.exception("it broke")
    first, *rest = stream.getvalue().splitlines()
    assert first.endswith("it broke")
    assert rest
    assert all(line.startswith("    ") and line.isprintable() for line in rest)


def test_json_is_one_object_a_line_with_the_extra_fields() -> None:
    stream, log = logged("json")
    try:
        raise ValueError("x")
    except ValueError:
        log.exception("it broke", extra={"queue": "in", "odd": {1}, "level": "mine"})
    fields = json.loads(stream.getvalue())
    assert fields["level"] == "error"
    assert (fields["logger"], fields["process"]) == ("orchestrator.master", os.getpid())
    assert (fields["message"], fields["queue"], fields["odd"]) == ("it broke", "in", "{1}")
    assert "ValueError: x" in fields["traceback"]


def test_setting_up_again_replaces_what_was_there() -> None:
    before, _ = logged("text")
    after, log = logged("text")
    log.info("once")
    assert (before.getvalue(), after.getvalue().count("once")) == ("", 1)


def test_a_stream_that_cannot_be_written_to_stops_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    logs.setup("info", "text", Broken())
    logging.getLogger("x").error("lost")
    assert capsys.readouterr().err == ""


def test_a_fault_in_a_call_that_logs_is_not_hidden(capsys: pytest.CaptureFixture[str]) -> None:
    _, log = logged("text")
    log.info("%d", "no number")
    assert "Logging error" in capsys.readouterr().err


@pytest.mark.parametrize(("level", "format"), [("loud", "text"), ("info", "xml")])
def test_an_unknown_level_or_format_is_refused(level: str, format: str) -> None:  # noqa: A002
    with pytest.raises(ValueError, match="is none of"):
        logs.setup(level, format)
