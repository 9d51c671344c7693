"""test_shell_text - in every shell that is here: what is accepted is one word, and what would not be is refused"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.handlers.shell_text import IN_SHELL, refusal

SHELLS = [path for path in map(shutil.which, ("sh", "dash", "bash", "ksh", "zsh")) if path is not None]

ONE_WORD = (
    "look {path}",
    "look 'it' {path} \"x\"",
    "look \\' {path} \\\"",
    "look $(look {path})",
    'look "$(look {path})"',
    "look `look {path}`",
    "look '\\' {path}",
    'look "a\\"b" {path}',
    "look \\\\{path}",
    'look "$(: "x")" {path}',
    'look "${HOME}" $((1 + (2))) {path}',
    "# don't\nlook {path} # {name}",
    'cat <<A <<-"B" >/dev/null\n5" of {path}\nA\n$(\n\tB\nlook {path}',
    "case {path} in *) look {path};; esac",
    "f() { look {path}; }; set -- x; f y; (f z)",
    'x={path}; look "$x" x#y $#',
)
REFUSED = (
    ("look '{path}'", "{path} is quoted"),
    ('look "$HOME/{name}"', "{name} is quoted"),
    ("sh -c 'look {path}'", "{path} is quoted"),
    ('bash -ec "look {path}"', "in single quotes, sh -c 'wc -c \"$MESSAGE_PATH\"', that is safe"),
    ("look \\{name}", "{name} is quoted"),
    ("look 'a\\' '{name}'", "{name} is quoted"),
    ('look "\\"{name}"', "{name} is quoted"),
    ('look "`look {path}`"', "{path} is quoted"),
    # Two pairs that close and open each other: the value would be split and globbed.
    ('x="$(look "{path}")"', "{path} is quoted"),
    ('look "$(look "$(look "{path}")")"', "{path} is quoted"),
    ('# the 5" disk\nlook "{path}"', "{path} is quoted"),
    ('cat <<E\n5"\nE\nlook "{path}"', "{path} is quoted"),
    ("# don't\nlook '{path}'", "{path} is quoted"),
    # Some shells run what an arithmetic value says.
    ("look $((1 + {name}))", "{name} stands in arithmetic"),
    ("look `look $(({attempt} + 1))`", "{attempt} stands in arithmetic"),
    # Here shells differ, or this reader gives up.
    (
        "((1 + {name}))",
        "{name} stands in a part of the shell command of which it cannot be told",
    ),
    ("look ${x:-{name}}", "behind ${;"),
    ('look "${x:-"{name}"}"', "behind ${;"),
    ("look $'\\'\"\\'' \"{name}\"", "behind $';"),
    ('look `look \\"{name}\\"`', "behind `;"),
    ('x="$(case a in a) look "{name}";; esac)"', "behind case;"),
    ('(look)#"\nlook "{name}"', "behind )#;"),
    ('look \\\n#"\nlook "{name}"', "behind #;"),
    ("cat <<$x\n{name}", "behind <<;"),
    ("cat <<E\n{name}", "behind a here-document;"),
    ('cat <<E\n$(look "{name}")\nE', "behind a here-document;"),
    ("cat <<E\nx\\\nE\n'\nE\nlook {name} '", "behind a here-document;"),
)
WRAPPINGS = (
    '"%s"', "'%s'", "$(look %s)", '"$(look "%s")"', "`look %s`", "${x:-%s}", "$((%s))", "\\%s", "$'\\'%s'", "(%s)",
    'a\n# 5"\nlook %s', "a <<E\n5\" it's\nE\nlook %s", "a; case x in x) look %s;; esac", '"a" %s "b"',
)  # fmt: skip
# Split and globbed there is a word "glob" of it; where it is evaluated there is a file.
VALUES = {"MESSAGE_PATH": "a gl*b c", "MESSAGE_NAME": "x[$(: >pwned)]", "MESSAGE_ATTEMPT": "1"}
LOOK = 'look() { for word in "$@"; do case $word in glob) : >split;; *gl\\*b*) : >seen;; esac; done; }\n'


def happened(script: str, place: Path) -> set[str]:
    """What each of the shells has left in *place* when it was given *script*."""
    found: set[str] = set()
    filled = LOOK + IN_SHELL.sub(lambda hit: f'"${{MESSAGE_{hit[1].upper()}}}"', script)
    for shell in SHELLS:
        (place / "glob").touch()
        subprocess.run(
            [shell, "-c", filled],
            cwd=place,
            env={**VALUES, "PATH": os.defpath},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=60,
            check=False,
        )
        left = {name for name in os.listdir(place) if name != "glob"}
        for name in left:
            (place / name).unlink()
        found |= left
    return found


@pytest.mark.parametrize("script", ONE_WORD)
def test_a_placeholder_where_no_quote_is_open_is_one_word_in_every_shell(script: str, tmp_path: Path) -> None:
    assert refusal([script], is_shell=True) is None
    assert happened(script, tmp_path) == {"seen"}


@pytest.mark.parametrize(("script", "said"), REFUSED, ids=[script for script, _ in REFUSED])
def test_a_placeholder_that_may_not_be_one_word_is_refused_with_what_to_write(script: str, said: str) -> None:
    found = refusal([script], is_shell=True)
    assert found is not None
    assert said in found
    assert "MESSAGE_" in found


@given(st.lists(st.tuples(st.sampled_from(("{path}", "{name}")), st.lists(st.sampled_from(WRAPPINGS), max_size=4))))
def test_what_is_accepted_is_never_split_globbed_or_evaluated(wrapped: list[tuple[str, list[str]]]) -> None:
    words = []
    for word, wrappings in wrapped:
        for wrapping in wrappings:
            word = wrapping.replace("%s", word)  # noqa: PLW2901 - it grows
        words.append(word)
    script = "look " + " ".join(words)
    if refusal([script], is_shell=True) is None:
        with tempfile.TemporaryDirectory() as place:
            assert happened(script, Path(place)) <= {"seen"}, script


def test_a_variable_of_the_shell_that_is_called_as_a_placeholder_stays_one() -> None:
    assert IN_SHELL.findall("${name} {name} awk '{print}'") == ["name"]
    assert refusal(['for name in *; do look "${name}"; done'], is_shell=True) is None


@pytest.mark.parametrize(
    "argv",
    [
        ["sh", "-c", "gzip {path}"],
        ["/bin/bash", "-e", "-o", "pipefail", "-xc", "gzip {path} > {name}"],
        ["env", "A=b", "nice", "-n", "5", "dash", "-c", "echo {queue}"],
        ["python3.12", "-c", "print('{name}')"],
        ["perl", "-ne", "print '{name}'"],
        ["sh", "-c{name}"],
        ["su", "app", "--command=echo {name}"],
        ["flock", "-w", "5", "lock", "-c", "echo {name}"],
        ["bash", "-co", "pipefail", "gzip {path}"],
        ["bash", "-c", "-x", "--", "gzip {path}"],
        ["su", "-s", "/bin/bash", "app", "-c", "echo {name}"],
        ["python3", "-Wonce", "-W", "error", "-c", "print('{name}')"],
        ["perl", "-MText::Balanced", "-I", "lib", "-e", "print '{name}'"],
        ["perl", "-e", "-s '{name}' or exit 1"],
        ["ruby", "-r", "json", "-e", "p '{name}'"],
        ["node", "-r", "esm", "--print", "'{name}'"],
    ],
)
def test_a_placeholder_in_a_text_that_a_shell_reads_is_refused_without_our_shell_too(argv: list[str]) -> None:
    found = refusal(argv, is_shell=False)
    assert found is not None
    assert "reads as commands" in found
    assert "-c 'wc -c \"$1\"' sh {" in found


@pytest.mark.parametrize(
    "argv",
    [
        ["sh", "-c", 'gzip "$1"', "sh", "{path}"],
        ["python3", "-c", "import sys", "-c", "{name}"],
        ["python3", "tool.py", "{path}"],
        # Options of the program that is run, not of the one that runs it.
        ["python3", "-W", "ignore", "tool.py", "-c", "{path}"],
        ["python3", "-m", "tool", "-c", "{path}"],
        ["node", "app.js", "-p", "{path}"],
        ["bash", "-e", "run.sh", "-c", "{path}"],
        ["flock", "lock", "gzip", "-c", "{path}"],
        ["perl", "-ne", "print", "{path}"],
        ["perl", "-neprint", "{path}"],
        ["bash"],
        ["tar", "-czf", "out/{name}.tgz", "{path}"],
        ["echo", "$(id) `id` '{name}'"],
    ],
)
def test_an_argument_of_its_own_may_hold_any_placeholder(argv: list[str]) -> None:
    assert refusal(argv, is_shell=False) is None
