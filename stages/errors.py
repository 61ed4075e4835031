"""What a command says of a mistake: one sentence on stderr. Bugs keep their traceback."""

import difflib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from artifacts import ArtifactError, as_command, show_every_text, told
from kernels.errors import Failure as Failure
from kernels.errors import Mistake as Mistake

TOLD = (ArtifactError, Mistake, Failure, ValidationError)
"""Errors with a sentence for the user; all others are bugs."""


def exit_code(action: Callable[[], int]) -> int:
    """What `action` returns; 2 after one sentence for a user's mistake, 130 after Ctrl-C. Bugs keep their traceback."""
    show_every_text()
    return as_command(_told)(action)


def _told(action: Callable[[], int]) -> int:
    try:
        return action()
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)  # noqa: T201
        return 130
    except TOLD as error:
        print(sentence(error), file=sys.stderr)  # noqa: T201
        return 2


def sentence(error: Exception) -> str:
    """What one of the errors above says to the user."""
    return told(invalid(error) if isinstance(error, ValidationError) else error)


def invalid(error: ValidationError, name: Callable[[tuple[str, ...]], str] = ".".join) -> str:
    """One sentence for pydantic's error: the fields, what they got, what was wanted."""
    return "; ".join(_one_invalid(problem, name) for problem in error.errors(include_url=False))


def _one_invalid(problem: Mapping[str, Any], name: Callable[[tuple[str, ...]], str]) -> str:
    where = name(tuple(str(part) for part in problem["loc"]))
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if problem["type"] == "value_error":
        return f"{where}: {message}" if problem["loc"] else message
    return f"{where}: got {problem['input']!r}, wanted: {message}"


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """One sentence on a name that is not known."""
    names = list(known)
    return f"unknown {what} {name!r}{did_you_mean(name, names)}; known are: {', '.join(names)}"


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """The known names that are close to this one, as the middle of a sentence; or nothing."""
    close = difflib.get_close_matches(name, known, n=2)
    return f" (did you mean {' or '.join(close)}?)" if close else ""
