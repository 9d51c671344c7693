"""
config_toml - read a TOML file, and know on which line each key stands; write a value

tomllib keeps no positions, so a second pass walks over the text that tomllib has
accepted and notes the line of every table, key and array element. It decides
nothing: where it loses its way it stops, and errors name the line of the table.

Raises: ConfigError, with one Fault per error. Nothing else leaves this module.
Limits: a file of 1 MiB; errors of syntax are told one at a time, as tomllib does.
Source: the grammar of toml.io, version 1.0.
See also: config (what the keys mean).
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import re
import stat
import tomllib
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, time
from pathlib import Path

from workers.errors import OrchestratorError
from workers.queues import names

FILE_SIZE_MAX = 1 << 20
DEPTH_MAX = 64  # of tables and lists in each other; whatever handles a value may call itself as often

Place = tuple[str | int, ...]  # ("queue", 0, "workers")

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_BARE = re.compile(r"[A-Za-z0-9_-]+")
# Up to two quotes more than the closing three belong to the text itself.
_TEXT = re.compile(r'"""(?:\\.|[^\\])*?"{3,5}|' + r"'''.*?'{3,5}|" + r'"(?:\\.|[^"\\\n])*"|' + r"'[^'\n]*'", re.DOTALL)
_SCALAR = re.compile(r"[^,\]}\n#]+")
# tomllib takes hours over a key of thousands of parts.
_LONG_KEY = re.compile(
    rf"""(?<![\w.-])(?:(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){{{DEPTH_MAX}}}""",
)
_SYNTAX = re.compile(r"(?P<text>.*?) \(at (?:line (?P<line>\d+), column \d+|end of document)\)\Z", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Fault:
    """One error: *source* is a file or where else the value came from, *line* counts from 1 where there is one."""

    source: str
    line: int | None
    key: str
    text: str

    def __str__(self) -> str:
        where = self.source if self.line is None else f"{self.source}:{self.line}"
        # A key may be any quoted text: nothing of it may reach a terminal as a control sequence.
        return names.shown(f"{where}: {self.key}: {self.text}" if self.key else f"{where}: {self.text}")


class ConfigError(OrchestratorError):
    """The configuration is refused. *errors* are all that was found, in the order of the file."""

    def __init__(self, text: str, errors: Iterable[Fault] = ()) -> None:
        super().__init__(text)
        self.errors = list(errors)

    @classmethod
    def of(cls, errors: Iterable[Fault]) -> ConfigError:
        """One error a line, the same said once."""
        unique = list(dict.fromkeys(errors))
        return cls("\n".join(str(error) for error in unique), unique)


def read_toml(path: Path, source: str) -> tuple[dict[str, object], dict[Place, int]]:
    """The tables of the file at *path*, called *source*, and the line of each place in them. May block, as files do."""
    try:
        raw = _content(path)
    except OSError as error:
        help_ = "it is a symbolic link to nothing" if path.is_symlink() else "name a TOML file that this user may read"
        text = f"cannot be read: {error.strerror or error}; {help_}"
        raise ConfigError.of([Fault(source, None, "", text)]) from error
    if raw is None:
        text = "is no regular file; move it out, or give it another name"
        raise ConfigError.of([Fault(source, None, "", text)])
    if len(raw) > FILE_SIZE_MAX:
        raise ConfigError.of([Fault(source, None, "", f"is larger than {FILE_SIZE_MAX} bytes; is it the right file?")])
    try:
        text = raw.decode("utf-8").replace("\r\n", "\n")
        tables = None if _LONG_KEY.search(text) else tomllib.loads(text)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError.of([Fault(source, line, "", "is not UTF-8 text; save the file as UTF-8")]) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError.of([_syntax_fault(source, str(error), raw)]) from error
    except (RecursionError, ValueError) as error:  # ValueError: an integer of thousands of digits
        raise ConfigError.of([Fault(source, None, "", f"cannot be read as TOML: {error}")]) from error
    if tables is None or _is_too_deep(tables):
        raise ConfigError.of([Fault(source, None, "", f"has more than {DEPTH_MAX} tables and lists in each other")])
    return tables, lines_of(text)


def _is_too_deep(tables: dict[str, object]) -> bool:
    level: list[object] = [tables]
    for _ in range(DEPTH_MAX + 1):
        parts = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)]
        level = [value for part in parts for value in part]
    return bool(level)


def _content(path: Path) -> bytes | None:
    """What is in the file, one byte beyond the limit at most; None when it is no regular file."""
    # O_NONBLOCK: a fifo of that name would hold up the reader for ever.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return None
        with open(fd, "rb", closefd=False) as file:
            return file.read(FILE_SIZE_MAX + 1)
    finally:
        os.close(fd)


def _syntax_fault(source: str, said: str, raw: bytes) -> Fault:
    found = _SYNTAX.match(said)
    if found is None:
        return Fault(source, None, "", f"is no TOML: {said}")
    text = found["text"][:1].lower() + found["text"][1:]
    if text.startswith("invalid value"):
        text += '; text needs quotes, as in name = "thumbs"'
    line = int(found["line"]) if found["line"] else raw.rstrip().count(b"\n") + 1
    return Fault(source, line, "", f"is no TOML: {text}")


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The one of *known* that *word* was probably meant to be, or None."""
    found = difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=0.6)
    return found[0] if found else None


def written(value: object) -> str:
    """*value*, of what TOML can say, on one line. Floats and texts are read again as they were."""
    if isinstance(value, dict):
        pairs = ", ".join(f"{written_key(str(key))} = {written(one)}" for key, one in value.items())
        return f"{{ {pairs} }}" if pairs else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(written(one) for one in value)}]"
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, float):
        return repr(value)
    # JSON's texts are TOML's, but for DEL, which TOML wants escaped; and what else could drive a terminal is, too.
    text = json.dumps(str(value) if isinstance(value, Path) else value, ensure_ascii=False)
    return "".join(char if char.isprintable() else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    if "\ud800" <= char <= "\udfff":  # a byte that is no text, for which TOML has no word: see config_text
        return char
    return f"\\u{ord(char):04x}" if ord(char) < 1 << 16 else f"\\U{ord(char):08x}"


def written_key(part: str) -> str:
    """*part* of a key, in quotes where it needs them."""
    return part if _BARE.fullmatch(part) else written(part)


def lines_of(text: str) -> dict[Place, int]:
    """The line of every table, key and element in *text*, which must be TOML. Never raises: may know less."""
    scanner = _Scanner(text)
    # A dialect that we do not know ends the walk; what was found so far still helps.
    with contextlib.suppress(ValueError, RecursionError):
        scanner.document()
    return scanner.lines


class _Scanner:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._breaks = [found.start() for found in re.finditer("\n", text)]
        self._last: dict[Place, int] = {}  # array of tables -> index of its newest element
        self.lines: dict[Place, int] = {}

    def document(self) -> None:
        table: Place = ()
        self._take(_BLANK)
        while self._at < len(self._text):
            start = self._at
            if self._is("[["):
                self._at += 2
                table = self._element(self._key())
                self._expect("]]")
                self._note(table, start)
            elif self._is("["):
                self._at += 1
                table = self._resolve(self._key())
                self._expect("]")
                self._note(table, start)
            else:
                self._pair(table)
            self._take(_BLANK)

    def _element(self, key: Sequence[str]) -> Place:
        array = (*self._resolve(key[:-1]), key[-1])
        self._last[array] = self._last.get(array, -1) + 1
        return (*array, self._last[array])

    def _resolve(self, key: Sequence[str]) -> Place:
        place: Place = ()
        for part in key:
            place += (part,)
            if place in self._last:
                place += (self._last[place],)
        return place

    def _pair(self, table: Place) -> None:
        start = self._at
        place = (*table, *self._key())
        self._expect("=")
        self._note(place, start)
        self._take(_SPACE)
        self._value(place)

    def _value(self, place: Place) -> None:
        if self._is("["):
            self._at += 1
            index = 0
            while not self._closed("]"):
                self._note((*place, index), self._at)
                self._value((*place, index))
                index += 1
                self._comma()
        elif self._is("{"):
            self._at += 1
            while not self._closed("}"):
                self._pair(place)
                self._comma()
        elif self._is('"') or self._is("'"):
            self._take(_TEXT)
        else:
            self._take(_SCALAR)

    def _closed(self, bracket: str) -> bool:
        self._take(_BLANK)
        if not self._is(bracket):
            return False
        self._at += 1
        return True

    def _comma(self) -> None:
        self._take(_BLANK)
        if self._is(","):
            self._at += 1

    def _key(self) -> list[str]:
        parts = [self._part()]
        while self._is("."):
            self._at += 1
            parts.append(self._part())
        return parts

    def _part(self) -> str:
        self._take(_SPACE)
        if self._is('"') or self._is("'"):
            part = str(tomllib.loads(f"key = {self._take(_TEXT)}")["key"])
        else:
            part = self._take(_BARE)
        self._take(_SPACE)
        return part

    def _note(self, place: Place, start: int) -> None:
        line = bisect_left(self._breaks, start) + 1
        for length in range(1, len(place) + 1):
            self.lines.setdefault(place[:length], line)

    def _is(self, text: str) -> bool:
        return self._text.startswith(text, self._at)

    def _expect(self, text: str) -> None:
        if not self._is(text):
            raise ValueError(f"{text} expected")
        self._at += len(text)

    def _take(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self._text, self._at)
        if found is None:
            raise ValueError("not TOML as we know it")
        self._at = found.end()
        return found[0]
