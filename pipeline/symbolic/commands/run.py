"""Any of the commands: opens the store, and tells a mistake in one sentence."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from artifacts import ArtifactError, Store, as_command, show_every_text, store_folder, told

Command = Callable[[Store, argparse.Namespace], int]


@as_command
def run(args: argparse.Namespace) -> int:
    """0 is well, 2 is an error told in one sentence."""
    show_every_text()
    try:
        return _command(args.command)(Store(store_folder(args.store)), args)
    except argparse.ArgumentTypeError as error:  # the parser does without what a store needs
        return _told(f"argument --store: {error}")
    except (ArtifactError, ValueError) as error:
        return _told(error)
    except OSError as error:
        to = getattr(args, "to", None)
        if to is None or not _is_of(Path(to), error):
            raise
        return _told(f"--to: {to} cannot be written ({error.strerror or error}); name another one")


def _command(name: str) -> Command:
    """Each loads what it needs itself: find and read do without sympy, which takes a third of a second."""
    if name == "find":
        from pipeline.symbolic.commands.find import find as command
    elif name == "read":
        from pipeline.symbolic.commands.read import read as command
    elif name == "show":
        from pipeline.symbolic.commands.show import show as command
    elif name == "ablate":
        from pipeline.symbolic.commands.ablate import ablate as command
    elif name == "kan":
        from pipeline.symbolic.commands.kan import kan as command
    else:
        from pipeline.symbolic.commands.export import export as command
    return command


def _told(error: Exception | str) -> int:
    print(told(error), file=sys.stderr)
    return 2


def _is_of(folder: Path, error: OSError) -> bool:
    """Whether it befell what is written, what lies in it, or a folder above it; a full disk names no file."""
    if error.filename is None:
        return True
    path = Path(error.filename)
    inside = any(part == folder.name or part.startswith(f".{folder.name}.") for part in path.parts)
    return inside or path in folder.parents
