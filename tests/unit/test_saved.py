"""A file of JSON that is always whole, and what else may stand where one is looked for."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path

import pytest

from workers import saved
from workers.saved import SavedError, load, overwrite, save


def refusing(number: int):
    def refuse(*_args: object, **_more: object) -> None:
        raise OSError(number, os.strerror(number))

    return refuse


def test_what_was_saved_is_loaded_and_nobody_else_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "a"
    before = os.umask(0)
    try:
        save(path, {"b": 1, "a": [None, "\udcff"]})
    finally:
        os.umask(before)
    assert load(path) == {"a": [None, "\udcff"], "b": 1}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(json.loads(path.read_text())) == ["a", "b"]


def test_what_json_cannot_hold_is_its_repr(tmp_path: Path) -> None:
    save(tmp_path / "a", {"path": Path("/x")})
    assert load(tmp_path / "a") == {"path": "PosixPath('/x')"}


def test_a_version_that_cannot_be_written_leaves_the_one_before_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    save(path, {"version": 1})
    for call in ("open", "rename"):
        with monkeypatch.context() as broken:
            broken.setattr(saved.os, call, refusing(errno.ENOSPC))
            with pytest.raises(SavedError, match=f"{path}.*No space left"):
                save(path, {"version": 2})
        assert load(path) == {"version": 1}
        assert os.listdir(tmp_path) == ["a"]


def test_what_has_no_room_anew_is_written_over_what_is_there_if_it_fits(tmp_path: Path) -> None:
    path = tmp_path / "a"
    save(path, {"version": 1}, size_min=100)
    assert path.stat().st_size == 100
    before = path.stat().st_ino
    overwrite(path, {"version": "x" * 100}, {"version": 2}, {"version": 3})
    assert load(path) == {"version": 2}
    assert (path.stat().st_ino, path.stat().st_size) == (before, 100)
    with pytest.raises(SavedError, match="No space left"):
        overwrite(path, {"version": "x" * 100})
    assert load(path) == {"version": 2}
    with pytest.raises(SavedError):
        overwrite(tmp_path / "missing", {})


def test_a_path_that_is_no_file_is_refused(tmp_path: Path) -> None:
    for path in (Path("/"), tmp_path, tmp_path / ".."):
        with pytest.raises(SavedError):
            save(path, {})
    assert os.listdir(tmp_path) == []


def test_Z17_a_writer_that_dies_half_way_leaves_the_version_before_it_whole(tmp_path: Path) -> None:
    path = tmp_path / "a"
    save(path, {"version": 1})
    pid = os.fork()
    if pid == 0:
        saved.os.rename = lambda *_, **__: os._exit(7)
        try:
            save(path, {"version": 2})
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert load(path) == {"version": 1}


def test_what_a_process_of_our_number_left_half_written_is_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "a"
    (tmp_path / f".a.{os.getpid()}.new").write_text("half")
    save(path, {"version": 1})
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff", b"[" * 100_000, b"nan nan"])
def test_what_is_no_object_is_refused_with_its_path(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(SavedError, match="a is no JSON"):
        load(tmp_path / "a")


def test_what_is_no_file_is_refused_and_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "real").write_text("{}")
    (tmp_path / "link").symlink_to("real")
    for name in ("fifo", "link", "missing", "."):
        with pytest.raises(SavedError):
            load(tmp_path / name)


def test_a_file_beyond_all_measure_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saved, "SIZE_MAX", 10)
    (tmp_path / "a").write_text("{" + " " * 10 + "}")
    with pytest.raises(SavedError, match="longer than 10 bytes"):
        load(tmp_path / "a")
