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
from pathlib import Path

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


# ---- a file


def to_file(path: Path, format: str = "text") -> logging.Logger:  # noqa: A002 - the flag's name
    logs.setup("info", format)
    logs.append_to(logs.LogFile(path))
    return logging.getLogger("orchestrator.master")


def test_a_file_is_appended_to_in_the_format_that_was_set_up(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("before\n")
    to_file(path, "json").info("worker %d", 3)
    first, second = path.read_text().splitlines()
    assert first == "before"
    assert json.loads(second)["message"] == "worker 3"


def test_a_file_that_was_renamed_or_removed_is_made_anew_for_the_next_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = to_file(path)
    log.info("one")
    path.rename(tmp_path / "log.1")
    log.info("two")
    path.unlink()
    log.info("three")
    assert path.read_text().count("\n") == 1
    assert path.read_text().endswith("three\n")
    assert (tmp_path / "log.1").read_text().endswith("one\n")


def test_lines_go_on_into_the_open_file_while_its_name_cannot_be_opened(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "log"
    path.parent.mkdir()
    log = to_file(path)
    path.rename(tmp_path / "kept")
    path.parent.rmdir()
    log.info("one")
    assert (tmp_path / "kept").read_text().endswith("one\n")
    path.parent.mkdir()
    log.info("two")
    assert path.read_text().endswith("two\n")


def test_reopening_keeps_the_descriptor_and_leaves_none_open(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = to_file(path)
    handler = logging.getLogger().handlers[0]
    assert isinstance(handler, logs.LogFile)
    fd, count = handler.fileno(), len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        path.unlink()
        logs.reopen()
        log.info("here")
    assert handler.fileno() == fd
    assert not os.get_inheritable(fd)
    assert len(os.listdir("/proc/self/fd")) == count
    assert path.read_text().count("\n") == 1


def test_no_link_is_followed_where_others_may_write(tmp_path: Path) -> None:
    """Neither at first nor at a rotation, which the owner of the directory can bring about."""
    secret, theirs = tmp_path / "secret", tmp_path / "theirs"
    secret.write_text("kept\n")
    theirs.mkdir()
    theirs.chmod(0o777)
    log = to_file(theirs / "log")
    log.info("one")
    (theirs / "log").rename(theirs / "log.1")
    (theirs / "log").symlink_to(secret)
    log.info("two")
    logs.reopen()
    log.info("three")
    with pytest.raises(OSError, match="there is a link on the way"):
        logs.LogFile(theirs / "log")
    assert secret.read_text() == "kept\n"
    assert (theirs / "log.1").read_text().count("\n") == 3


def test_reopening_is_nothing_for_a_log_on_a_stream(tmp_path: Path) -> None:
    stream, log = logged("text")
    logs.reopen()
    log.info("still here")
    assert "still here" in stream.getvalue()


def test_a_full_disk_loses_the_line_and_the_next_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """First half a line is taken, then none, then all is well."""
    path = tmp_path / "log"
    log = to_file(path)
    really = os.write

    def half(fd: int, data: bytes) -> int:
        return really(fd, data[: len(data) // 2])

    def none(fd: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    for write in (half, none):
        with monkeypatch.context() as patched:
            patched.setattr(os, "write", write)
            log.info("lost")
    log.info("kept")
    torn, kept = path.read_text().splitlines()
    assert "kept" not in torn
    assert kept.endswith("kept")


def test_lines_of_several_processes_stay_whole(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = to_file(path)
    pids = []
    for name in "abcd":
        pid = os.fork()
        if pid == 0:
            try:
                for _ in range(50):
                    log.info(name * 5000)
            finally:
                os._exit(0)
        pids.append(pid)
    for pid in pids:
        assert os.waitpid(pid, 0)[1] == 0
    texts = [line.rpartition(": ")[2] for line in path.read_text().splitlines()]
    assert sorted(texts) == [name * 5000 for name in "abcd" for _ in range(50)]


def test_a_fifo_that_nobody_reads_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "log")
    with pytest.raises(OSError, match="No such device"):
        logs.LogFile(tmp_path / "log")
