"""Python source in two: the code without comments and docstrings, and the prose of the docstrings.

A scanner of its own, since `ast` and `tokenize` differ from one Python to the next and the corpus must not.
"""

import re
from collections.abc import Sequence

_STRING_OR_COMMENT = re.compile(
    r"""
      \#[^\n]*
    | \"\"\" [^"\\]* (?: (?: \\. | "(?!"") ) [^"\\]* )* \"\"\"
    | ''' [^'\\]* (?: (?: \\. | '(?!'') ) [^'\\]* )* '''
    | " [^"\\\n]* (?: \\. [^"\\\n]* )* "
    | ' [^'\\\n]* (?: \\. [^'\\\n]* )* '
    """,
    re.VERBOSE | re.DOTALL,
)
_BEFORE_STATEMENT = re.compile(r"[ \t\f]*([rRbBuUfF]{0,2})")
_AFTER_STATEMENT = re.compile(r"[ \t\f]*(?:#[^\n]*)?(?:\n|\Z)")
_MARK = "\x00"  # stands where a string statement was; no Python source holds it


def code_and_prose(source: str) -> tuple[str, list[str]]:
    """The source without comments and string statements, and those strings as paragraphs of prose.

    Of lines that are blank then, in strings too, one is left; a block left empty gets `pass`.
    """
    pieces: list[str] = []
    strings: list[str] = []
    brackets = _Brackets()
    position = 0
    for match in _STRING_OR_COMMENT.finditer(source):
        start, end = match.span()
        between = source[position:start]
        position = end
        brackets.add(between)
        if source[start] == "#":
            pieces.append(between)
            continue
        line = source.rfind("\n", 0, start) + 1
        before = _BEFORE_STATEMENT.fullmatch(source, line, start)
        if before and source[line - 2 : line] != "\\\n" and _AFTER_STATEMENT.match(source, end) and not brackets.open():
            prefix = before[1]
            strings.append(prefix + match.group())
            pieces += (between.removesuffix(prefix), _MARK)
        else:
            pieces += (between, match.group())
    pieces.append(source[position:])
    return _tidy("".join(pieces)), [prose for string in strings if (prose := _prose(string))]


class _Brackets:
    """Whether a bracket is open, counted only when somebody asks."""

    def __init__(self) -> None:
        self._depth = 0
        self._uncounted: list[str] = []

    def add(self, code: str) -> None:
        self._uncounted.append(code)

    def open(self) -> bool:
        code = "".join(self._uncounted)
        self._uncounted.clear()
        self._depth += sum(map(code.count, "([{")) - sum(map(code.count, ")]}"))
        return self._depth > 0


def clean_docstring(text: str) -> str:
    """Without the indentation that all lines after the first share, and without blank ends."""
    lines = [line.rstrip() for line in text.expandtabs(8).split("\n")]
    indents = [len(line) - len(line.lstrip(" ")) for line in lines[1:] if line]
    margin = min(indents, default=0)
    return "\n".join([lines[0].strip(), *(line[margin:] for line in lines[1:])]).strip("\n ")


def _prose(string: str) -> str:
    """The text of a string literal as it is written; nothing for f-strings and bytes, which are no prose."""
    body = string.lstrip("rRuU")
    if body[0] not in "\"'":
        return ""
    quotes = 3 if body[:3] in ('"""', "'''") and len(body) >= 6 else 1
    return clean_docstring(body[quotes:-quotes])


def _tidy(code: str) -> str:
    lines = [line.rstrip(" \t\f") for line in code.split("\n")]
    kept: list[str] = []
    for number, line in enumerate(lines):
        if _MARK in line:
            if _opens_empty_block(kept, line, lines[number + 1 :]):
                kept.append(line.replace(_MARK, "pass"))
        elif line or (kept and kept[-1]):
            kept.append(line)
    return "\n".join(kept).strip("\n")


def _opens_empty_block(before: Sequence[str], mark: str, after: Sequence[str]) -> bool:
    """Whether a string statement was all that its block held."""
    last = next((line for line in reversed(before) if line), "")
    following = next((line for line in after if line and _MARK not in line), "")
    return last.endswith(":") and _indent(following) < _indent(mark)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" \t"))
