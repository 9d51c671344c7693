"""
flat_yaml - settings of one level in YAML, read and written without a YAML library

Read is what hands and PyYAML's dump() write for a flat mapping: comments, blank lines,
quotes, null, booleans, whole and decimal numbers, text. All else is an error that says
which line and what to write instead; nothing is guessed.

Written is, byte for byte, what yaml.dump(settings, default_flow_style=False) writes, but
for text of several lines, or with spaces or escapes beyond column 80: that is kept on one line.

Raises: SettingsError.
Source: YAML 1.1 as PyYAML resolves it (yes and on are booleans, 1e3 is text, 010 would be octal).
See also: settings (what the values mean).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from workers.ddmq.errors import SettingsError

Value = bool | int | float | str | None

TRUE, FALSE = frozenset({"true", "yes", "on"}), frozenset({"false", "no", "off"})
INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9_]*)\Z")
DECIMAL = re.compile(r"(?:[-+]?[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+][0-9]+)?\Z")
BEYOND = re.compile(r"([-+]?)\.(inf|Inf|INF)\Z|()\.(nan|NaN|NAN)\Z")
# What YAML takes for octal, hexadecimal, binary or base 60 numbers, dates and its own operators.
OTHER_NUMBER = re.compile(
    r"[-+]?(?:0[0-7_]+|0x[0-9a-fA-F_]+|0b[01_]+"
    r"|[1-9][0-9_]*(?::[0-5]?[0-9])+|[0-9][0-9_]*(?::[0-5]?[0-9])+\.[0-9_]*)\Z"
)
DATE = re.compile(
    r"(?:[0-9]{4}-[0-9]{2}-[0-9]{2}"
    r"|[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}(?:[Tt]|[ \t]+)[0-9]{1,2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]*)?"
    r"(?:[ \t]*(?:Z|[-+][0-9]{1,2}(?::[0-9]{2})?))?)\Z"
)
INDICATOR = re.compile(r"[#,\[\]{}&*!|>'\"%@`]|[-?:](?:\s|\Z)|---|\.\.\.", re.ASCII)
SPACES = " \t\r"  # of YAML; those of other alphabets are text
BREAK = re.compile("[\r\x85\u2028\u2029]")
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,119}\Z")  # PyYAML takes a name of 128 bytes and more for no simple one
LINE = re.compile(r"""("[^"]*"|'[^']*'|[^\s:#'"][^:#'"]*+)\s*:(?:\s+(.*))?\Z""", re.ASCII)
QUOTED = re.compile(r"""("(?:[^"\\]|\\.)*"|'(?:[^']|'')*')\s*(?:\s#.*)?\Z""", re.ASCII)
ESCAPES = {
    "0": "\0", "a": "\a", "b": "\b", "t": "\t", "n": "\n", "v": "\v", "f": "\f", "r": "\r", "e": "\x1b",
    '"': '"', "\\": "\\", "/": "/", " ": " ", "N": "\x85", "_": "\xa0", "L": "\u2028", "P": "\u2029",
}  # fmt: skip
ESCAPED = {char: letter for letter, char in ESCAPES.items() if letter not in "/ "}
ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))")


def loads(text: str, file: str) -> dict[str, Value]:
    """The settings in *text*, of *file*. Raises SettingsError, which names that and the line."""
    found: dict[str, Value] = {}
    is_first = True
    for number, raw in enumerate(text.split("\n"), 1):
        line = raw.rstrip(SPACES)
        if not line or (line.lstrip(SPACES).startswith("#") and not BREAK.search(line)):
            continue
        is_mark = is_first and line in ("---", "{}")
        is_first = False
        if is_mark:
            continue
        try:
            if BREAK.search(line):
                raise ValueError("holds what ends a line in YAML; write \\r, \\N, \\L or \\P within double quotes")
            matched = LINE.match(line)
            if matched is None or line[0] in " \t":
                raise ValueError("is not 'name: value'; settings are one to a line, from the first column, not nested")
            found[_key(matched[1])] = _value(matched[2] or "")
        except ValueError as error:
            raise SettingsError(f"{file}, line {number}: {line!r} {error}") from None
    return found


def dumps(settings: Mapping[str, Value]) -> str:
    """*settings* as a file. Raises SettingsError for what is no scalar."""
    if not settings:
        return "{}\n"
    for key, value in settings.items():
        if not isinstance(key, str) or not NAME.match(key):
            raise SettingsError(f"{key!r} cannot be the name of a setting: up to 120 letters, digits, '_', '.' and '-'")
        if not isinstance(value, bool | int | float | str | None):
            raise SettingsError(f"{key} cannot be {value!r}: a setting is a number, true, false, null or text")
    return "".join(f"{_text(key)}: {_scalar(settings[key])}\n" for key in sorted(settings))


def _key(raw: str) -> str:
    raw = raw.rstrip(SPACES)
    key = raw[1:-1] if raw[0] in "'\"" else raw
    if not NAME.match(key):
        raise ValueError("has a name that is not up to 120 letters, digits, '_', '.' and '-', beginning with a letter")
    if key == raw and _resolves(raw):
        raise ValueError("has a name that is a truth value or nothing in YAML: put it into quotes")
    return key


def _value(raw: str) -> Value:
    if raw[:1] in ("'", '"'):
        quoted = QUOTED.match(raw)
        if quoted is None:
            raise ValueError("has a quote that is not closed on its line, or text after it")
        return _unquoted(quoted[1])
    plain = re.split(r"(?:\A|(?<=[ \t]))#", raw, maxsplit=1)[0].strip(SPACES)
    if _is_null(plain):
        return None
    if _boolean(plain) is not None:
        return _boolean(plain)
    found = _number(plain)
    if found is not None:
        return found
    if DATE.match(plain):
        raise ValueError("is a date in YAML: put it into quotes")
    if INDICATOR.match(plain) or ": " in plain or plain.endswith(":"):
        raise ValueError("is neither a number nor true, false, null or text: put text into quotes")
    return plain


def _number(plain: str) -> int | float | None:
    if INTEGER.match(plain):
        return int(plain.replace("_", ""))
    if DECIMAL.match(plain):
        return float(plain.replace("_", ""))
    if beyond := BEYOND.match(plain):
        return float((beyond[1] or "") + plain[-3:])
    if OTHER_NUMBER.match(plain):
        raise ValueError("is octal, hexadecimal, binary or of base 60 in YAML: write a decimal number")
    return None


def _word(plain: str) -> str:
    """*plain* in small letters, when YAML takes it for the same word so."""
    return plain.lower() if plain in (plain.lower(), plain.upper(), plain.capitalize()) else ""


def _is_null(plain: str) -> bool:
    return plain in ("", "~") or _word(plain) == "null"


def _boolean(plain: str) -> bool | None:
    return True if _word(plain) in TRUE else False if _word(plain) in FALSE else None


def _unquoted(raw: str) -> str:
    inside = raw[1:-1]
    return inside.replace("''", "'") if raw[0] == "'" else ESCAPE.sub(_unescaped, inside)


def _unescaped(found: re.Match[str]) -> str:
    if found[4] is None:
        return chr(int(found[1] or found[2] or found[3], 16))
    if found[4] not in ESCAPES:
        raise ValueError(f"has the unknown escape \\{found[4]}")
    return ESCAPES[found[4]]


def _resolves(text: str) -> bool:
    """Whether YAML takes plain *text* for something else than text."""
    others = (INTEGER, DECIMAL, BEYOND, OTHER_NUMBER, DATE)
    is_word = _is_null(text) or _boolean(text) is not None or text in ("=", "<<")
    return is_word or any(one.match(text) for one in others)


def _scalar(value: Value) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        if not math.isfinite(value):
            return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
        text = repr(value).lower()
        return text.replace("e", ".0e", 1) if "." not in text and "e" in text else text
    return _text(value) if isinstance(value, str) else str(value)


def _text(text: str) -> str:
    if any(not " " <= char <= "~" for char in text):
        return '"' + "".join(_escape(char) for char in text) + '"'
    has_mark = INDICATOR.match(text) or ": " in text or " #" in text or text.endswith(":") or text.strip(" ") != text
    return "'" + text.replace("'", "''") + "'" if has_mark or _resolves(text) else text


def _escape(char: str) -> str:
    if char in ESCAPED:
        return f"\\{ESCAPED[char]}"
    code = ord(char)
    if " " <= char <= "~":
        return char
    return f"\\x{code:02X}" if code <= 0xFF else f"\\u{code:04X}" if code <= 0xFFFF else f"\\U{code:08X}"
