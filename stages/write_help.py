"""`python -m stages.write_help`: what `--help` shows, written from the parsers into stages/help_pages.txt."""

import io
import os
from contextlib import redirect_stdout, suppress

from stages.chain import NAMES
from stages.command import COMMANDS, read
from stages.help import PAGES


def written() -> str:
    """All pages, as wide as a terminal is at least."""
    every = [[], *([name] for name in COMMANDS), *(["stage", name] for name in NAMES)]
    return "".join(f"==== {' '.join(words)}\n{_page(words)}" for words in every)


def _page(words: list[str]) -> str:
    page, columns = io.StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "80"  # which argparse asks for
    try:
        with redirect_stdout(page), suppress(SystemExit):
            read([*words, "--help"])
    finally:
        del os.environ["COLUMNS"]
        if columns is not None:
            os.environ["COLUMNS"] = columns
    return page.getvalue()


if __name__ == "__main__":
    PAGES.write_text(written(), encoding="utf-8")
