"""
test_places - links count only where nobody else could have made them

Another user is one who owns a directory or a link; only root can give one away.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator import places

OTHER_USER = 12345  # nobody's number
APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")


@pytest.fixture(autouse=True)
def _no_descriptor_is_left() -> Iterator[None]:
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) == before


def opened(path: Path, flags: int = APPEND) -> str:
    """What was opened, or the error's name."""
    try:
        fd = places.open_file(path, flags)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def a_directory(path: Path, mode: int, uid: int = -1) -> Path:
    path.mkdir()
    path.chmod(mode)
    os.chown(path, uid, uid)
    return path


@pytest.mark.parametrize(
    ("mode", "uid"),
    [
        pytest.param(0o755, OTHER_USER, marks=root_only),
        pytest.param(0o1777, OTHER_USER, marks=root_only),
        (0o777, -1),
        (0o775, -1),
    ],
)
@pytest.mark.parametrize("at_the_end", [True, False])
def test_a_link_in_a_directory_that_others_write_into_is_not_followed(
    tmp_path: Path, mode: int, uid: int, at_the_end: bool
) -> None:
    theirs, ours = a_directory(tmp_path / "theirs", mode, uid), a_directory(tmp_path / "ours", 0o755)
    (theirs / "link").symlink_to(ours / "file" if at_the_end else ours)
    assert opened(theirs / "link" if at_the_end else theirs / "link" / "file") == "ELOOP"
    assert opened(tmp_path / "ours" / ".." / "theirs" / "link" / ("" if at_the_end else "file")) == "ELOOP"
    assert os.listdir(ours) == []
    assert opened(theirs / "file") == str(theirs / "file")  # its own files are another matter


@pytest.mark.parametrize("target", ["real", "./real/", "../{name}/real", "{path}/real", "again"])
def test_links_in_a_directory_that_is_ours_alone_are_followed(tmp_path: Path, target: str) -> None:
    a_directory(tmp_path / "real", 0o755)
    (tmp_path / "again").symlink_to("real")
    (tmp_path / "link").symlink_to(target.format(name=tmp_path.name, path=tmp_path))
    (tmp_path / "file").symlink_to("link/made")
    assert opened(tmp_path / "link" / "file") == str(tmp_path / "real" / "file")
    assert opened(tmp_path / "file") == str(tmp_path / "real" / "made")


def test_a_link_that_is_followed_does_not_vouch_for_the_next_one(tmp_path: Path) -> None:
    theirs = a_directory(tmp_path / "theirs", 0o777)
    (theirs / "link").symlink_to(tmp_path)
    (tmp_path / "first").symlink_to(theirs / "link")
    assert opened(tmp_path / "first" / "file") == "ELOOP"


@root_only
def test_in_a_directory_like_tmp_only_a_link_of_ours_is_followed(tmp_path: Path) -> None:
    shared = a_directory(tmp_path / "shared", 0o1777)
    for name in ("ours", "theirs"):
        (shared / name).symlink_to(tmp_path)
    os.chown(shared / "theirs", OTHER_USER, OTHER_USER, follow_symlinks=False)
    assert opened(shared / "ours" / "file") == str(tmp_path / "file")
    assert opened(shared / "theirs" / "file") == "ELOOP"


@root_only
def test_a_link_is_judged_and_read_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one is put in its place between the two."""
    shared, really = a_directory(tmp_path / "shared", 0o1777), os.readlink
    a_directory(tmp_path / "meant", 0o755)
    (shared / "link").symlink_to(tmp_path / "meant")

    def readlink(path: str, *, dir_fd: int) -> str:
        (shared / "link").unlink()
        (shared / "link").symlink_to(tmp_path)
        return really(path, dir_fd=dir_fd)

    with monkeypatch.context() as patched:
        patched.setattr(os, "readlink", readlink)
        fd = places.open_file(shared / "link" / "file", APPEND)
    os.close(fd)
    assert (tmp_path / "meant" / "file").exists()


def test_links_without_end_are_refused(tmp_path: Path) -> None:
    (tmp_path / "round").symlink_to("round")
    assert opened(tmp_path / "round") == opened(tmp_path / "round" / "file") == "ELOOP"


def test_the_kernels_links_to_open_files_are_followed(tmp_path: Path) -> None:
    read, write = os.pipe()
    assert opened(Path(f"/proc/self/fd/{write}")).startswith("pipe:")
    os.close(read)
    os.close(write)


def test_a_second_name_is_refused_only_where_others_can_make_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    theirs = a_directory(tmp_path / "theirs", 0o777)
    for place in (tmp_path, theirs):
        (place / "second").hardlink_to(tmp_path / "file")
    assert opened(tmp_path / "second") == str(tmp_path / "second")
    assert opened(theirs / "second") == "EMLINK"


def test_what_is_missing_is_made_up_to_the_last_name_whatever_the_umask_is(tmp_path: Path) -> None:
    before = os.umask(0o777)
    try:
        os.close(places.open_parent(tmp_path / "a" / "b" / "file", 0o755)[0])
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o755
    assert list(tmp_path.rglob("*")) == [tmp_path / "a", tmp_path / "a" / "b"]
    assert opened(tmp_path / "c" / "file") == "ENOENT"


@pytest.mark.parametrize("what", ["as it was", "filled", "another", "gone"])
def test_only_the_file_that_was_meant_is_removed_and_only_when_empty(tmp_path: Path, what: str) -> None:
    path = tmp_path / "file"
    path.touch()
    info = path.stat()
    if what in ("another", "gone"):
        path.rename(tmp_path / "kept")
    if what == "another":
        path.touch()
    if what == "filled":
        path.write_text("x")
    places.remove_empty(path, info)
    assert path.exists() == (what in ("filled", "another"))
