"""Rows of text in columns: as wide as the terminal, 80 characters where that can be, and never cut in a file."""

import os
import shutil
import sys
import textwrap
from collections.abc import Sequence

from artifacts.terminal import on_one_line

GAP = "  "
NARROW = 80
"""Where nobody says how wide it is, and a table is to be read rather than searched."""


def terminal_width() -> int | None:
    """Characters of a line on stdout; None if it is no terminal: a file has no width."""
    if sys.stdout is None or not sys.stdout.isatty():
        return None
    return shutil.get_terminal_size((NARROW, 24)).columns


def reading_width() -> int:
    """Characters of a line of what is read in a terminal and in a log alike."""
    return terminal_width() or int(os.environ.get("COLUMNS") or NARROW)


def aligned(rows: Sequence[Sequence[str]], *, width: int | None = None, optional: Sequence[int] = ()) -> str:
    """The rows with their columns one below the other; where they are wider, without the optional ones, in that order.

    Numbers are counted from 0, as the columns of a row are.
    """
    shown = [[on_one_line(text) for text in row] for row in rows]
    kept, left_out = list(range(len(shown[0]))), list(optional)
    lines = _lines(shown)
    while width is not None and left_out and max(map(len, lines)) > width:
        kept.remove(left_out.pop(0))
        lines = _lines([[row[i] for i in kept] for row in shown])
    return "\n".join(lines)


def flowing(head: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> str:
    """For a table that is too wide: of each row its first cell, and below it heads with values, line after line."""
    lines = []
    for name, *values in rows:
        pairs = [f"{title} {value}" for title, value in zip(head[1:], values, strict=True) if value]
        lines += [name, *_flowed(pairs, width)]
    return "\n".join(lines)


def _flowed(parts: Sequence[str], width: int) -> list[str]:
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + 3 + len(part) <= width:
            lines[-1] += "   " + part
        else:
            lines.append("  " + part)
    return lines


def wrapped(text: str, width: int | None) -> str:
    """Lines of the text that are longer go on in the next, indented; as they are where there is no width."""
    if width is None:
        return text
    return "\n".join(textwrap.fill(line, width, subsequent_indent="  ") for line in text.split("\n"))


def _lines(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [GAP.join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def grid(head: Sequence[str], rows: Sequence[Sequence[str]], *, width: int) -> str:
    """A name and then values to the right, under their heads; no line is wider than `width` where values can be cut.

    A name that leaves its values no room has a line of its own.
    """
    names, values = [row[0] for row in rows], [list(row[1:]) for row in rows]
    most = max(map(len, (*head[1:], *(text for row in values for text in row))), default=0)
    count = len(head) - 1
    cell = max(6, min(most, (width - len(head[0])) // count - len(GAP)))
    room = width - count * (cell + len(GAP))
    short = max([len(head[0]), *(len(name) for name in names if len(name) <= room)], default=0)
    lines = [_right(head[0], head[1:], short, cell)]
    for name, row in zip(names, values, strict=True):
        if len(name) > short:
            lines.append(name)
            name = ""
        lines.append(_right(name, row, short, cell))
    return "\n".join(lines)


def _right(name: str, values: Sequence[str], name_width: int, cell: int) -> str:
    return GAP.join([name.ljust(name_width), *(_cut(text, cell).rjust(cell) for text in values)]).rstrip()


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
