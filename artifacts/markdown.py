"""Markdown that no text can break: arbitrary text stands in code, in tables and between fences alike."""

import re
import string
from collections.abc import Sequence


def code(text: str) -> str:
    """The text as it is, in code, on one line; also in a cell of a table."""
    if not text or re.search(r"[`|\\\s]", text.replace(" ", "")) or text != text.strip():
        # Renderers do not agree on backslashes and pipes in a table's code; on character references they do.
        return f"<code>{''.join(_reference(character) for character in text)}</code>"
    return f"`{text}`"


def fenced(text: str, language: str) -> str:
    """A block of code; the fence is longer than any run of backticks in it."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"


def folded(summary: str, text: str) -> str:
    """Text that is shown at a click."""
    return f"<details><summary>{summary}</summary>\n\n{text}\n\n</details>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers_from: int | None = None) -> str:
    """A table of cells that hold no pipes and line breaks but in `code`; columns of numbers, from there on, right."""
    left = len(head) if numbers_from is None else numbers_from
    lines = [head, ["---"] * left + ["---:"] * (len(head) - left), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _reference(character: str) -> str:
    return f"&#{ord(character)};" if character in string.punctuation + "\t\n\r" else character
