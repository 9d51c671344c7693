"""Fragments: several files and directories of them become one configuration, and each error keeps its place."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cli.config import check
from orchestrator.cli.config import config as config_group
from orchestrator.config import Config, ConfigError, load, tables

BASE = '[pool]\nname = "site"\n[[queue]]\nurl = "in"\nhandler = "m:h"\nworkers = 1\n'


@pytest.fixture
def write(tmp_path):
    """Write files below a directory, made with its parents; answers the directory."""

    def write_files(**texts: str):
        for name, text in texts.items():
            path = tmp_path / name.replace("__", "/")
            path.parent.mkdir(exist_ok=True)
            path.with_name(path.name + ".toml").write_text(text)
        return tmp_path

    return write_files


def read(directory, *paths: str, **more) -> Config:
    return load(tuple(directory / path for path in paths), flags={}, environment={}, **more)


def refused(directory, *paths: str) -> list[str]:
    """What is said, without the directory in front."""
    with pytest.raises(ConfigError) as caught:
        read(directory, *paths)
    return [str(error).replace(f"{directory}/", "") for error in caught.value.errors]


def test_later_files_win_key_by_key_and_the_rest_stays(write):
    here = write(
        base=BASE + "[metrics]\nlisten = 'none'\n",
        conf__10="[pool]\nstop_timeout = 7\nterm_timeout = 8\n",
        conf__20='[pool]\nterm_timeout = 9\n[[queue]]\nname = "in"\nworkers = 3\n',
    )
    config = read(here, "base.toml", "conf")
    assert (config.pool.name, config.pool.stop_timeout, config.pool.term_timeout) == ("site", 7, 9)
    assert [(one.name, one.url, one.handler, one.workers) for one in config.queues] == [
        ("in", f"spool:{here}/in", "m:h", 3)
    ]
    assert config.metrics.listen is None
    assert config.paths == (here / "base.toml", here / "conf/10.toml", here / "conf/20.toml")
    write(early="[pool]\nname = 'early'\nterm_timeout = 2\n")
    pool = read(here, "early.toml", "base.toml").pool
    assert (pool.name, pool.term_timeout) == ("site", 2), "the order is that of the command line"


def test_fragments_are_read_sorted_by_name_and_leftovers_of_editors_are_not(write):
    here = write(**{f"conf__{n}": f"[pool]\nstop_timeout = {int(n)}\n" for n in ("9", "10", "2")}, base=BASE)
    for name in (".9.toml.swp", "z.toml~", ".z.toml", "z.toml.orig", "#z.toml#", "README", "z.TOML"):
        (here / "conf" / name).write_text("no TOML at all [")
    (here / "conf" / "sub").mkdir()
    assert read(here, "base.toml", "conf").pool.stop_timeout == 9


def test_an_empty_directory_is_fine_and_one_without_toml_is_told(write):
    here = write(base=BASE)
    (here / "conf").mkdir()
    assert read(here, "base.toml", "conf").warnings == ()
    (here / "conf" / "10.conf").write_text("")
    config = read(here, "base.toml", "conf")
    assert config.warnings == (f"nothing is read in {here}/conf: no name there ends in .toml",)


def test_a_queue_of_a_fragment_is_another_one_unless_it_has_the_name_of_an_earlier_one(write):
    here = write(
        base=BASE + '[[queue]]\nname = "two"\nurl = "/2"\nhandler = "m:h"\n',
        conf__1='[[queue]]\nname = "two"\nurl = "/second"\n[[queue]]\nurl = "/3"\nhandler = "m:h"\n',
    )
    assert [(one.name, one.url) for one in read(here, "base.toml", "conf").queues] == [
        ("in", f"spool:{here}/in"), ("two", "spool:/second"), ("3", "spool:/3"),
    ]  # fmt: skip
    # The name that a path gives means its queue, but not when the fragment brings a path of its own.
    other = write(conf__1='[[queue]]\nname = "in"\nurl = "/other/in"\nhandler = "m:h"\nworkers = 2\n')
    names = [(one.name, one.url) for one in read(other, "base.toml", "conf").queues]
    assert names[2] == ("in", "spool:/other/in")
    assert names[0][0].startswith("in-")


def test_one_name_twice_in_one_file_stays_an_error_even_where_an_earlier_file_has_it(write):
    twice = '[[queue]]\nname = "x"\nurl = "/a"\nhandler = "m:h"\n[[queue]]\nname = "x"\nurl = "/b"\nhandler = "m:h"\n'
    here = write(base=BASE, conf__1=twice)
    assert refused(here, "conf") == ["conf/1.toml:6: [[queue]] 2 name: must be unique; [[queue]] 1 has that name too"]
    here = write(base='[[queue]]\nname = "x"\nurl = "/c"\nhandler = "m:h"\n')
    (said,) = refused(here, "base.toml", "conf")
    assert said.startswith("conf/1.toml:6: [[queue]] 2 name: must be unique; [[queue]] 1 of ")


def test_a_name_means_a_queue_of_an_earlier_file_only(write):
    here = write(base='[[queue]]\nurl = "/in"\nhandler = "m:h"\n[[queue]]\nname = "in"\nworkers = 2\n')
    said = refused(here, "base.toml")
    assert [one.partition("; ")[0] for one in said] == [
        "base.toml:4: [[queue]] 2 url: is missing",
        "base.toml:4: [[queue]] 2 handler: is missing",
    ]


def test_the_path_of_an_earlier_queue_without_its_name_is_refused_with_a_way_out(write):
    here = write(base=BASE, more='[[queue]]\nurl = "./in"\nworkers = 2\nhandler = "m:h"\n')
    (said,) = refused(here, "base.toml", "more.toml")
    assert said.startswith("more.toml:2: [[queue]] 1 url: must be unique; [[queue]] 1 of ")
    assert said.endswith("base.toml is the same queue; to change that one, give its name")


def test_a_fragment_for_a_queue_that_is_not_there_is_told_the_nearest(write):
    here = write(base=BASE.replace('"in"', '"/pages"'), conf__1='[[queue]]\nname = "page"\nworkers = 0\n')
    assert refused(here, "base.toml", "conf") == [
        "conf/1.toml:2: [[queue]] 1 name: is no queue of an earlier file; did you mean pages?; a new one needs url"
    ]


def test_a_way_to_handle_messages_replaces_that_of_an_earlier_file_but_not_one_beside_it(write):
    here = write(base=BASE, more='[[queue]]\nname = "in"\ncommand = ["true"]\n')
    (queue,) = read(here, "base.toml", "more.toml").queues
    assert (queue.handler, queue.command) == (None, ("true",))
    here = write(more='[[queue]]\nname = "in"\ncommand = ["true"]\nhandler = "m:i"\n')
    assert refused(here, "base.toml", "more.toml") == [
        "more.toml:3: [[queue]] 1 command: there is a handler already; keep one of them"
    ]


def test_single_options_of_components_can_be_changed(write):
    here = write(
        base='[[queue]]\nurl = "in"\ncomponents = ["m:C"]\noptions = { a = 1, b = { c = 2 } }\n',
        more='[[queue]]\nname = "in"\noptions.b = 3\noptions.d = 4\nevent_map.start = "begin"\n',
    )
    (queue,) = read(here, "base.toml", "more.toml").queues
    assert queue.options == {"a": 1, "b": 3, "d": 4}
    assert queue.event_map == {"start": "begin"}


def test_every_error_names_the_file_and_line_that_the_value_came_from(write):
    here = write(
        base=BASE + 'retry_backoff = "soon"\n[pool2]\n',
        conf__10='[[queue]]\nurl = "/b"\nhandler = "m:h"\n\n[[queue]]\nname = "in"\nworkers = 0\nwrong = 1\n',
        conf__20='[pool]\nname = "-"\n[[queue]]\nname = "in"\nevent_map.start = 5\n',
    )
    assert [said.partition(": must")[0].partition(": unknown")[0] for said in refused(here, "base.toml", "conf")] == [
        "base.toml:7: [[queue]] 1 retry_backoff",
        "base.toml:8: pool2",
        "conf/10.toml:7: [[queue]] 2 workers",
        "conf/10.toml:8: [[queue]] 2 wrong",
        "conf/20.toml:2: [pool] name",
        "conf/20.toml:5: [[queue]] 1 event_map",
    ]


def test_what_a_merged_queue_lacks_is_told_where_it_begins(write):
    here = write(base='[[queue]]\nurl = "in"\n', more='[[queue]]\nname = "in"\nworkers = 2\n')
    (said,) = refused(here, "base.toml", "more.toml")
    assert said.startswith("base.toml:1: [[queue]] 1 handler: is missing")


def test_all_files_that_cannot_be_read_are_told_at_once_and_nothing_else(write):
    here = write(base="[pool]\nnam = 1\n", conf__10="[", conf__15=BASE)
    os.symlink("nowhere", here / "conf" / "20.toml")
    (here / "conf" / "30.toml").mkdir()
    os.mkfifo(here / "conf" / "40.toml")
    os.mkfifo(here / "fifo.toml")
    said = refused(here, "base.toml", "conf", "none.toml", "fifo.toml")
    assert [one.partition(": ")[0] for one in said] == [
        "conf/10.toml:1", "conf/20.toml", "conf/30.toml", "conf/40.toml", "none.toml", "fifo.toml",
    ]  # fmt: skip
    assert "symbolic link to nothing" in said[1]
    assert all("no regular file; move it out" in said[index] for index in (2, 3, 5))


@pytest.mark.parametrize("where", ["base.toml", "conf/10.toml", "conf", "shelf", "shelf/real.toml"])
def test_what_everybody_may_write_is_refused_by_its_own_name(write, where):
    """The file, its directory, the one of fragments, and what a link leads to; whoever writes there runs programs."""
    here = write(base=BASE, conf__10="", shelf__real="")
    os.symlink("../shelf/real.toml", here / "conf" / "20.toml")
    assert read(here, "base.toml", "conf").warnings == ()
    mode = (here / where).stat().st_mode & 0o777
    (here / where).chmod(mode | 0o002)
    said = refused(here, "base.toml", "conf")
    told = where.replace("shelf/real", "conf/20")
    assert [one.partition(": ")[0] for one in said] == [told]
    assert f"everybody may write into it (mode {mode | 2:04o}), and whoever may write a configuration" in said[0]
    result = CliRunner().invoke(check, [str(here / "base.toml"), str(here / "conf")])
    assert (result.exit_code, "chmod o-w it" in result.stderr) == (1, True)


def test_in_a_directory_like_tmp_a_file_is_safe_and_a_directory_of_fragments_is_not(write):
    here = write(conf__10=BASE)
    (here / "conf").chmod(0o1777)
    assert read(here, "conf/10.toml").warnings == ()
    (said,) = refused(here, "conf")
    assert said.startswith("conf: everybody may write into it (mode 1777)")


def test_that_a_group_may_write_is_said_once_and_a_file_that_nobody_can_write_is_fine(write, monkeypatch):
    here = write(conf__10=BASE, conf__20="")
    (here / "conf").chmod(0o775)
    monkeypatch.setattr("workers.trust._is_private_group", lambda _gid, _uid: False)
    (said,) = read(here, "conf").warnings
    assert "may write into it (mode 0775), and whoever may write a configuration runs programs as its reader" in said
    (here / "conf").chmod(0o777)
    real = os.statvfs
    fields = 10  # f_flag is one of the ten that a tuple has, in its place

    def read_only(path: str) -> os.statvfs_result:
        found = list(real(path))[:fields]
        return os.statvfs_result([*found[:8], found[8] | os.ST_RDONLY, *found[9:]])

    monkeypatch.setattr("os.statvfs", read_only)
    assert read(here, "conf").warnings == ()


def test_a_link_to_a_file_is_followed_and_paths_in_it_start_where_the_link_is(write):
    here = write(base=BASE, available__x='[[queue]]\nurl = "x"\nhandler = "m:h"\n')
    (here / "conf").mkdir()
    os.symlink("../available/x.toml", here / "conf" / "x.toml")
    assert read(here, "base.toml", "conf").queues[1].url == f"spool:{here}/conf/x"


def test_a_fragment_that_may_not_be_read_is_named(write, monkeypatch):
    here = write(base=BASE, conf__10="")
    monkeypatch.setattr("os.open", lambda path, _flags: (_ for _ in ()).throw(PermissionError(13, "Denied")))
    assert refused(here, "conf") == ["conf/10.toml: cannot be read: Denied; name a TOML file that this user may read"]


def test_relative_files_start_at_the_directory_that_was_the_current_one(write, tmp_path, monkeypatch):
    """A daemon has left it by the time of a reload."""
    write(base=BASE, conf__10="[pool]\nstop_timeout = 3\n")
    monkeypatch.chdir("/")
    config = load((Path("base.toml"), Path("conf")), flags={}, environment={}, directory=str(tmp_path))
    assert config.pool.stop_timeout == 3
    assert config.queues[0].url == f"spool:{tmp_path}/in"


def test_a_second_reading_sees_the_directory_as_it_is_then(write):
    here = write(base=BASE, conf__10="[pool]\nstop_timeout = 3\n")
    assert read(here, "base.toml", "conf").pool.stop_timeout == 3
    write(conf__20="[pool]\nstop_timeout = 4\n")
    assert read(here, "base.toml", "conf").pool.stop_timeout == 4
    (here / "conf/20.toml").unlink()
    (here / "conf/10.toml").unlink()
    assert read(here, "base.toml", "conf").pool.stop_timeout == 30


def test_check_looks_at_a_directory_as_one_configuration(write):
    here = write(conf__10=BASE, conf__20='[[queue]]\nname = "in"\nworkers = 5\n', only__20="[pool]\n")
    fine = CliRunner().invoke(check, [str(here / "conf")])
    assert (fine.exit_code, fine.stdout) == (0, f"{here}/conf: fine: 1 queue, 5 workers\n")
    wrong = CliRunner().invoke(check, [str(here / "conf"), str(here / "only")])
    assert wrong.exit_code == 1
    assert f"{here}/only: there is no queue" in wrong.stderr


def test_check_says_what_it_does_not_read(write):
    here = write(base=BASE)
    (here / "conf").mkdir()
    (here / "conf" / "a.conf").write_text(BASE)
    said = CliRunner().invoke(check, [str(here / "conf")])
    assert said.exit_code == 1
    assert said.stderr.endswith(f"to a file; nothing is read in {here}/conf: no name there ends in .toml\n")


@pytest.mark.parametrize("command", [["show", "--config", ""], ["show", "-c", "/", "-c", ""]])
def test_an_empty_path_is_not_the_current_directory(command):
    said = CliRunner().invoke(config_group, command)
    assert said.exit_code == 2
    assert "the path is empty" in said.stderr
    assert CliRunner().invoke(check, [""]).exit_code == 2


CONTENT = {
    "pool": {"name": '"site"', "stop_timeout": '"3s"', "term_timeout": "7", "runlog_keep": "5"},
    "queue": {"url": '"/q"', "components": '["m:C"]', "workers": "2", "order": '"any"', "options.a": "1",
              "options.b": "{}"},
    "daemon": {"umask": '"077"', "user": '"u"'},
}  # fmt: skip
LINES = [(table, key, value) for table, keys in CONTENT.items() for key, value in keys.items()]


@given(st.lists(st.integers(0, 3), min_size=len(LINES), max_size=len(LINES)))
def test_keys_mean_the_same_however_they_are_spread_over_fragments(places):
    def text(wanted) -> str:
        parts = []
        for table, heading in (("pool", "[pool]"), ("queue", '[[queue]]\nname = "q"'), ("daemon", "[daemon]")):
            lines = [f"{key} = {value}" for (home, key, value), place in wanted if home == table]
            parts.append("\n".join([heading, *lines]))
        return "\n".join(parts)

    with tempfile.TemporaryDirectory() as name:
        here = Path(name)
        pairs = list(zip(LINES, places, strict=True))
        for number in range(4):
            (here / f"{number}.toml").write_text(text([pair for pair in pairs if pair[1] == number]))
        whole = here / "whole"
        whole.write_text(text(pairs))
        assert tables(read(here, ".")) == tables(read(here, "whole"))


def test_a_variable_names_the_files_where_no_flag_does(write):
    here = write(base=BASE, conf__10="[pool]\nstop_timeout = 3\n", other=BASE.replace("site", "other"))
    runner = CliRunner(env={"ORCHESTRATOR_CONFIG": f"{here}/base.toml:{here}/conf"})
    shown = runner.invoke(config_group, ["show"])
    assert 'name = "site"' in shown.stdout
    assert 'stop_timeout = "3s"' in shown.stdout
    shown = runner.invoke(config_group, ["show", "-c", f"{here}/other.toml"])
    assert 'name = "other"' in shown.stdout
    assert 'stop_timeout = "30s"' in shown.stdout
    assert shown.stderr == ""
    assert 'name = "pool"' in CliRunner(env={"ORCHESTRATOR_CONFIG": ""}).invoke(config_group, ["show"]).stdout
