"""What a command says of a mistake: one sentence on stderr. Bugs keep their traceback."""

import difflib
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from artifacts import ArtifactError, StdoutError, show_every_text, told

_ROOT = Path(__file__).resolve().parents[1]
# Not all below it: installed, our packages lie among those of others.
_OUR_CODE = tuple(_ROOT / name for name in ("artifacts", "kernels", "pipeline", "stages", "flows.py"))


def exit_code(action: Callable[[], int]) -> int:
    """What `action` returns; 2 after one sentence for a user's mistake, 130 after Ctrl-C. Bugs keep their traceback."""
    show_every_text()
    try:
        return action()
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)  # noqa: T201
        return 130
    except StdoutError as error:
        if error.reader_left:
            return 0
        print(told(error), file=sys.stderr)  # noqa: T201
        return 2
    except (ValueError, RuntimeError, ArtifactError) as error:
        if not is_told(error):
            raise
        said = ValueError(invalid(error)) if isinstance(error, ValidationError) else error
        print(told(said), file=sys.stderr)  # noqa: T201
        return 2


def is_told(error: Exception) -> bool:
    """Whether the error was raised on purpose, with a sentence for the user: by a `raise` in our own code."""
    if isinstance(error, ArtifactError | ValidationError):
        return True
    if type(error) not in (ValueError, RuntimeError):
        return False
    last = traceback.extract_tb(error.__traceback__)[-1]
    file = Path(last.filename).resolve()
    ours = any(file.is_relative_to(place) for place in _OUR_CODE)
    return ours and (last.line or "").startswith("raise ")


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
