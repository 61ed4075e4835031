"""Text on its way to a person: no character moves a cursor, none is missing, no message is without end, a full stdout
is told."""

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

MOST_CHARACTERS = 2_000
"""Of one message: more is a value that somebody else wrote, of which both ends say enough."""
_TAIL = 400


class StdoutError(Exception):
    """stdout did not take what was printed. One sentence."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(
            f"cannot write to stdout: {cause.strerror or cause}; only what was to be printed is lost, see where it goes"
        )
        self.reader_left = cause.errno == errno.EPIPE
        """A reader such as `head` has seen enough, which is no error."""


def show_every_text() -> None:
    """From now on stdout and stderr write characters that their encoding lacks as \\uXXXX. Each command begins so."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what tests and notebooks put in its place takes every text
            stream.reconfigure(errors="backslashreplace")


def printable(text: str) -> str:
    """The text with all but what is seen, and line breaks, as JSON escapes it: controls, marks of direction, halves."""
    return "".join(one if one.isprintable() or one == "\n" else _escaped(one) for one in text)


def on_one_line(text: str) -> str:
    """`printable`, its line breaks escaped as well: what was one value cannot look like two lines."""
    return printable(text).replace("\n", "\\n")


def told(error: Exception | str) -> str:
    """What an error says on one line of at most MOST_CHARACTERS and a word on how many are left out."""
    text = on_one_line(str(error))
    out = len(text) - MOST_CHARACTERS
    return text if out <= 0 else f"{text[: MOST_CHARACTERS - _TAIL]}... ({out:,} characters) ...{text[-_TAIL:]}"


def say(text: str) -> None:
    """Prints it on stdout. StdoutError if that takes no more."""
    with writing_to_stdout():
        print(printable(text))  # noqa: T201 - this is where all commands print


@contextmanager
def writing_to_stdout() -> Iterator[None]:
    """Within it, nothing but stdout is written to, down to the system; StdoutError if that refuses."""
    try:
        yield
        print(end="", flush=True)  # noqa: T201 - and nothing where the process began without stdout
    except OSError as error:
        # What is left in the buffer the interpreter would write at its end, and end otherwise for it.
        assert sys.stdout is not None, "printing without a stdout does nothing"
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise StdoutError(error) from error


def _escaped(character: str) -> str:
    """As JSON does: beyond U+FFFF a pair of surrogates."""
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))
