"""test_listing - a listing is the server's, never this kernel's memory, and its errors name the directory"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from workers.system import System


def listed(path: str) -> set[str]:
    return set(System.listdir(path))


def scanned(path: str) -> set[str]:
    with System.scandir(path) as entries:
        return {entry.name for entry in entries}


BOTH = pytest.mark.parametrize("look", [listed, scanned])


@BOTH
def test_what_the_kernel_remembers_is_dropped_before_it_is_read(look, tmp_path: Path, monkeypatch) -> None:
    calls = []

    def recorded(name: str, real):
        def call(*arguments):
            calls.append((name, *arguments))
            return real(*arguments)

        return call

    for name in ("posix_fadvise", "listdir", "scandir"):
        monkeypatch.setattr(os, name, recorded(name, getattr(os, name)))
    (tmp_path / "x").touch()
    assert look(str(tmp_path)) == {"x"}
    (dropped, fd, *how), (_, read) = calls
    assert (dropped, how) == ("posix_fadvise", [0, 0, os.POSIX_FADV_DONTNEED])
    assert read == fd


@BOTH
def test_where_nothing_can_be_dropped_it_is_listed_all_the_same(look, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delattr(os, "posix_fadvise")
    (tmp_path / "x").touch()
    assert look(str(tmp_path)) == {"x"}


@BOTH
def test_no_descriptor_is_left(look, tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    look(str(tmp_path))
    with pytest.raises(FileNotFoundError):
        look(str(tmp_path / "missing"))
    assert os.listdir("/proc/self/fd") == before


def test_what_an_entry_is_can_be_asked(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "directory").mkdir()
    with System.scandir(str(tmp_path)) as entries:
        found = {entry.name: (entry.is_file(), entry.is_dir(), entry.stat().st_mode) for entry in entries}
    assert {name: kind[:2] for name, kind in found.items()} == {"file": (True, False), "directory": (False, True)}


@BOTH
@pytest.mark.parametrize("make", [None, Path.touch])
def test_an_error_names_the_directory(look, make, tmp_path: Path) -> None:
    place = tmp_path / "x"
    if make is not None:
        make(place)
    with pytest.raises(OSError, match=str(place)) as raised:
        look(str(place))
    assert raised.value.errno == (errno.ENOENT if make is None else errno.ENOTDIR)


def stale(place: Path, monkeypatch, *, is_removed: bool) -> None:
    """Let reading *place* fail as NFS does when another host has removed it."""

    def fail(fd):
        if is_removed:
            place.rmdir()
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), fd)

    monkeypatch.setattr(os, "listdir", fail)
    monkeypatch.setattr(os, "scandir", fail)


@BOTH
def test_a_directory_that_was_removed_before_it_was_read_is_not_there(look, tmp_path: Path, monkeypatch) -> None:
    place = tmp_path / "x"
    place.mkdir()
    stale(place, monkeypatch, is_removed=True)
    with pytest.raises(FileNotFoundError, match=str(place)):
        look(str(place))


@BOTH
def test_a_directory_that_stays_stale_says_so_by_its_name(look, tmp_path: Path, monkeypatch) -> None:
    stale(tmp_path, monkeypatch, is_removed=False)
    with pytest.raises(OSError, match=str(tmp_path)) as raised:
        look(str(tmp_path))
    assert raised.value.errno == errno.ESTALE
