"""`--help` at once: pages that were written from the parsers beforehand, shown before torch or any stage is loaded.

`python -m stages.write_help` writes them anew; a test holds them against the parsers. Whoever asks with other words,
such as `run --preset small --help`, is answered by the parsers, and waits for them.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from artifacts import as_command, writing_to_stdout

PAGES = Path(__file__).with_name("help_pages.txt")
PROG = "python flows.py"


def pages() -> Mapping[str, str]:
    """By the words of the command, such as `stage train-monet`."""
    parts = re.split(r"^==== (.*)\n", PAGES.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def show_page(words: Sequence[str], *, below: Sequence[str] = (), prog: str = PROG) -> None:
    """Prints the page and ends Python, if the words are those of a command of ours and `--help`.

    `below`: words that stand before these in the pages' names, and that `prog` stands for.
    """
    if words[-1:] in (["-h"], ["--help"]) and (text := pages().get(" ".join([*below, *words[:-1]]))) is not None:
        sys.exit(_print(text.replace(" ".join([PROG, *below]), prog)))


@as_command
def _print(text: str) -> int:
    with writing_to_stdout():
        print(text, end="")  # noqa: T201
    return 0
