r"""
shell_text - where a placeholder may stand in what a shell reads

In a shell command {name} becomes "${MESSAGE_NAME}", quotes and all: one word, whatever the value holds, where no
quote is open. Within double quotes the two pairs would close and open each other, and the value be split and
globbed; in arithmetic some shells run what a value says. So the text is read as a shell reads it, and a
placeholder is refused there, and wherever this reader may have lost its way: "$MESSAGE_NAME" in
double quotes, as any variable, is right everywhere.

Without a shell of ours each argument is one argument, whatever it holds. But the text of ``sh -c`` is read by
that shell, and a value in it would be read too: refused.

Pure. Limits: what a program does with its arguments is its own: eval, let, ssh and awk read theirs as text again.
Source: POSIX.1-2024, Shell Command Language, 2.2, 2.3, 2.6 and 2.7.4; bash(1), "ARITHMETIC EVALUATION".
See also: command (fills in), tests/unit/test_shell_text.py.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import NamedTuple

PLACEHOLDER = re.compile(r"\{(path|name|queue|attempt|worker)\}")
IN_SHELL = re.compile(r"(?<!\$)" + PLACEHOLDER.pattern)  # ${name} is a variable of the shell's own


class _Reader(NamedTuple):
    """
    A program that reads an argument as text of a language.

    Attributes:
        names: what it may be called.
        text: the option that the text follows, or is glued to.
        takes: options with a value of another kind.
        operands: how many arguments may stand before that option; behind more, options are somebody else's.
    """

    names: str
    text: str
    takes: str
    operands: int = 0


_READERS = (
    _Reader("(?:ba|da|a|k|mk|z|c|tc|fi)?sh", r"-\w*c\w*|--command=?", "[-+][A-Za-z]*[oO]|--(?:rc|init-)file"),
    _Reader("su|runuser", "-[A-Za-z]*c|--(?:session-)?command=?", "-[A-Za-z]*[sgGTuw]|--(?:shell|group|user)", 1),
    _Reader("flock", "-[A-Za-z]*c|--command=?", "-[A-Za-z]*[wE]|--(?:timeout|wait|conflict-exit-code)", 1),
    _Reader("script", "-[A-Za-z]*c|--command=?", "-[A-Za-z]*[BEIOTmo]|--(?:log-.*|echo|output-limit)", 1),
    _Reader("python", "-[BEIOPSbdiqsuvx]*c", "-[A-Za-z]*[WX]|--check-hash-based-pycs"),
    _Reader("perl", "-[STUWXaclnpstuw0-9]*[eE]", "-[A-Za-z]*I"),
    _Reader("ruby", "-[SWaclnpsvw0-9]*e", "-[A-Za-z]*[CEIr]|--require"),
    _Reader("node", "(?:-p?e|-p|--eval|--print)=?", "-[Cr]|--(?:require|import|loader|conditions)"),
    _Reader("php", "-[BERnq]*[BERr]|--(?:run|process-(?:begin|code|end))=?", "-[cdtz]"),
    _Reader("lua", "-[EWiv]*e", "-l"),
)

_IN_DOUBLE = r"""
    (?P<escape> \\ (?: \{(?:path|name|queue|attempt|worker)\} | . )? )
  | (?P<double> " )
  | (?P<arithmetic> \$\(\( (?: [^()'"`\\] | \([^()'"`\\]*\) )* \)\) )
  | (?P<backquoted> `[^`'"\\]*` )
  | (?P<variable> \$\{[^{}'"`\\$]*\} )
  | (?P<nested> \$\(\( | \$\{ | ` )  # not as simple as that
  | (?P<substitution> \$\( )
  | (?P<placeholder> \{(?:path|name|queue|attempt|worker)\} )
"""
_OUTSIDE = rf"""{_IN_DOUBLE}
  | (?P<single> '[^']*'? )
  | (?P<parenthesis> \((?!\() )
  | (?P<close> \)(?!\#) )
  | (?P<comment> (?<![^\s;&|(<>])(?<!\\\n)\#[^\n]* )
  | (?P<here> <<(?!<)(?P<tabs>-?)[ \t]*['"\\]?(?P<end>\w+)['"]?(?=[\s;&|)<>]) )
  | (?P<line> \n )
  | (?P<case> \bcase\b )
  # Arithmetic and quotes of bash; a comment, or the rest of a word; an end of a here-document that is no word.
  | (?P<doubtful> \(\( | \$' | \)\# | (?<=\\\n)\# | <<(?!<) )
"""
_TOKEN_IN_DOUBLE, _TOKEN = (re.compile(text, re.VERBOSE | re.DOTALL) for text in (_IN_DOUBLE, _OUTSIDE))
_HOLDS = ("escape", "single", "arithmetic", "backquoted", "placeholder")

_QUOTED = (
    "{%s} is quoted in the shell command; take the quotes (or the backslash) away, it is quoted already, "
    'or write "$MESSAGE_%s" within double quotes as any variable'
)
_EVALUATED = (
    "{%s} stands in arithmetic of the shell command, where some shells run what a name says; "
    "a number is MESSAGE_%s there, and a name is none"
)
_AGAIN = """; what sh -c is given is read once more: in single quotes, sh -c 'wc -c "$MESSAGE_PATH"', that is safe"""
_SHELL_AGAIN = re.compile(r"sh\s+-[A-Za-z]*c\s")
_UNCLEAR = (
    "{%s} stands in a part of the shell command of which it cannot be told what is quoted, behind %s; "
    'write "$MESSAGE_%s" there, in double quotes as any variable'
)


def refusal(argv: Sequence[str], *, is_shell: bool) -> str | None:
    """The sentence for a placeholder in the command *argv* that must not stand where it does; None when all is well."""
    if is_shell:
        why = _misplaced(argv[0]) if len(argv) == 1 else None
        return why + _AGAIN if why and _SHELL_AGAIN.search(argv[0]) else why
    for at, program in enumerate(argv):
        name = os.path.basename(program)
        text = _text_for(name, argv[at + 1 :])
        if found := PLACEHOLDER.search(text):
            return (
                f"{found[0]} stands in a text that {name} reads as commands, and so would be what is filled in; let "
                "shell = true (--shell) run it, which quotes, or hand it over behind the text, as in "
                f"sh -c 'wc -c \"$1\"' sh {found[0]}"
            )
    return None


def _text_for(name: str, arguments: Sequence[str]) -> str:
    """The text that the program *name*, given *arguments*, reads as commands; "" for none."""
    reader = next((one for one in _READERS if re.fullmatch(f"(?:{one.names})[0-9.]*", name)), None)
    if reader is None:
        return ""
    texts: list[str] = []
    is_next, operands, left = False, reader.operands, iter(arguments)
    for argument in left:
        if is_next:
            texts.append(argument)  # or an option more: a shell takes them there
        if not argument.startswith(("-", "+")):
            if is_next or operands == 0:
                break
            operands -= 1
        elif not is_next and (found := re.fullmatch(f"(?:{reader.text})(.*)", argument, re.DOTALL)):
            if found[1]:
                return found[1]
            is_next = True
        if re.fullmatch(reader.takes, argument):
            next(left, None)
    return " ".join(texts)


def _misplaced(script: str) -> str | None:
    """What is wrong with the first placeholder of *script* that is not where one word may be; None when none is."""
    opened: list[str] = []  # '"' and "(", the innermost last
    ends: list[str] = []  # patterns: the last lines of here-documents that begin on the next line
    at = 0
    while found := (_TOKEN_IN_DOUBLE if opened[-1:] == ['"'] else _TOKEN).search(script, at):
        kind, at, is_in_double = str(found.lastgroup), found.end(), opened[-1:] == ['"']
        if kind in _HOLDS and (inner := PLACEHOLDER.search(found[0])):
            if wrong := _wrong(kind, found[0], inner[1], is_in_double=is_in_double):
                return wrong
        elif (kind == "double" and is_in_double) or kind == "close":
            del opened[-1:]
        elif kind in ("double", "substitution", "parenthesis"):
            opened.append(found[0][-1])
        elif kind == "here":
            ends.append((r"^\t*" if found["tabs"] else "^") + found["end"] + "$")
        elif kind == "line":
            at, ends = _behind(script, at, ends), []
        # The patterns of a case end in a parenthesis that nothing has opened.
        if kind in ("nested", "doubtful") or (kind == "case" and opened) or at < 0:
            return _unclear(script, found)
    return None


def _wrong(kind: str, text: str, word: str, *, is_in_double: bool) -> str | None:
    """What is wrong with the placeholder *word* in a token."""
    if kind == "arithmetic":
        return _EVALUATED % (word, word.upper())
    if kind == "backquoted" and not is_in_double:
        return _misplaced(text[1:-1])
    return None if kind == "placeholder" and not is_in_double else _QUOTED % (word, word.upper())


def _unclear(script: str, found: re.Match[str]) -> str | None:
    """What to say of a placeholder behind what could not be read; None where there is none."""
    after = IN_SHELL.search(script, found.start())
    if after is None:
        return None
    return _UNCLEAR % (after[1], found[0].strip() or "a here-document", after[1].upper())


def _behind(script: str, at: int, ends: Sequence[str]) -> int:
    """Where the here-documents that begin at *at* end; -1 when that cannot be told, or one holds more than text."""
    for end in ends:
        found = re.compile(end, re.MULTILINE).search(script, at)
        if found is None:
            return -1
        body = script[at : found.start()]
        if "\\\n" in body or (IN_SHELL.search(body) and any(sign in body for sign in ("$(", "${", "`"))):
            return -1
        at = found.end()
    return at
