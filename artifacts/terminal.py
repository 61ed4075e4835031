"""Text on its way to a person: no character moves a cursor, none is missing, no message is without end, a full stdout
is told."""

import argparse
import errno
import functools
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import NoReturn, ParamSpec, TextIO

MOST_CHARACTERS = 2_000
"""Of one message: more is a value that somebody else wrote, of which both ends say enough."""
_TAIL = 400


P = ParamSpec("P")


class StdoutError(Exception):
    """stdout did not take what was printed. One sentence."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(
            f"cannot write to stdout: {cause.strerror or cause}; only what was to be printed is lost, see where it goes"
        )
        self.reader_left = cause.errno == errno.EPIPE
        """A reader such as `head` has seen enough, which is no error."""


class CommandParser(argparse.ArgumentParser):
    """Of a command. argparse by itself repeats what it was given, however long that is."""

    def error(self, message: str) -> NoReturn:
        super().error(told(message))


def store_folder(text: str) -> Path:
    """The value of --store, for argparse."""
    if not text:  # which is the working directory for whoever joins paths
        raise argparse.ArgumentTypeError("got '', wanted: the folder of a store")
    try:
        Path(text).absolute()
    except FileNotFoundError:
        raise argparse.ArgumentTypeError(
            f"got {text[:200]!r}, and the working directory that it lies in is gone; go to one that is there"
        ) from None
    return Path(text)


def as_command(main: Callable[P, int]) -> Callable[P, int]:
    """The command, which ends with one sentence where stdout takes no more or Ctrl-C was pressed."""

    @functools.wraps(main)
    def command(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            return main(*args, **kwargs)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)  # noqa: T201
            return 130
        except StdoutError as error:
            if error.reader_left:
                return 0
            print(told(error), file=sys.stderr)  # noqa: T201
            return 2

    return command


def show_every_text() -> None:
    """From now on stdout and stderr write characters that their encoding lacks as \\uXXXX. Each command begins so."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what tests and notebooks put in its place takes every text
            stream.reconfigure(errors="backslashreplace")


def printable(text: str) -> str:
    """The text with all but what is seen, and line breaks, as JSON escapes it: controls, marks of direction, halves."""
    if text.replace("\n", "").isprintable():  # most of it is, and may be long
        return text
    return "".join(one if one.isprintable() or one == "\n" else _escaped(one) for one in text)


def for_stdout(text: str) -> str:
    """What a model wrote: as it is for files and pipes, on a terminal `printable` but for its tabs."""
    if sys.stdout is None or not sys.stdout.isatty():
        return text
    return "\t".join(map(printable, text.split("\t")))


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
        print(text)  # noqa: T201 - this is where all commands print


class _Printable(io.TextIOBase):
    """A stdout whose text is made `printable` on its way."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def isatty(self) -> bool:
        return self.stream.isatty()

    def fileno(self) -> int:
        return self.stream.fileno()

    def flush(self) -> None:
        self.stream.flush()

    def write(self, text: str) -> int:
        self.stream.write(printable(text))
        return len(text)


@contextmanager
def writing_to_stdout(*, as_it_is: bool = False) -> Iterator[None]:
    """Within it, nothing but stdout is written to, down to the system; StdoutError if that refuses.

    What is printed is made `printable`, whoever wrote it, but for what a caller has to be shown `as_it_is`.
    """
    # Where the process began without a stdout, printing does nothing.
    kept = nullcontext() if as_it_is or sys.stdout is None else redirect_stdout(_Printable(sys.stdout))
    try:
        with kept:
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
