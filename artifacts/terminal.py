"""Printing on terminals that cannot show every character: what is missing is shown as an escape, not as a traceback."""

import io
import sys


def show_every_text() -> None:
    """From now on stdout and stderr write characters that their encoding lacks as \\uXXXX. Each command begins so."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what tests and notebooks put in its place takes every text
            stream.reconfigure(errors="backslashreplace")
