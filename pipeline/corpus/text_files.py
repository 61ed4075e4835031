"""Which files of a folder hold text, and what lies beside them."""

import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Set
from pathlib import Path

from artifacts.lineage import ID
from artifacts.manifest import MANIFEST
from kernels.errors import Mistake
from pipeline.corpus.remarks import left_out, repr_of

# fmt: off
TEXT_SUFFIXES = frozenset((
    ".txt", ".text", ".md", ".rst", ".tex", ".html", ".xml", ".csv", ".tsv", ".json", ".yaml", ".yml",
    ".toml", ".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".cu", ".cuh", ".java", ".js", ".ts", ".go",
    ".rs", ".rb", ".jl", ".r", ".sh", ".sql", ".lean", ".hs", ".scala", ".kt", ".swift", ".lua", ".pl",
    ".php", ".css",
))
# fmt: on
TABLE_SUFFIXES = frozenset({".jsonl", ".ndjson", ".parquet"})


def user_path(location: str) -> Path:
    """The path that is written so, `~` and `~name` as in a shell. Mistake if there is no such user."""
    try:
        return Path(location).expanduser()
    except RuntimeError:
        raise Mistake(f"there is no user whose folder {repr_of(location)} lies in; check the path") from None


def _there(location: str) -> Path:
    path = user_path(location)
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        raise Mistake(f"there is no file or folder {repr_of(location)} to read text from; check the path") from None
    except (OSError, ValueError) as error:  # names that are too long, folders that others may not enter, NUL
        why = error.strerror if isinstance(error, OSError) else error
        raise Mistake(f"{repr_of(location)} cannot be read ({why}); check the path") from error
    return path


def existing(location: str) -> Path:
    path = _there(location)
    mode = _mode(path)
    if mode is None:
        raise Mistake(f"{repr_of(location)} is a link to nothing that can be read; check where it leads")
    if stat.S_ISDIR(mode):
        if not files_under(path):
            others = others_under(path)
            beside = f" ({left_out(others)})" if others else ""
            raise Mistake(f"the folder {location!r} holds no text files; wanted {_wanted()}{beside}")
    elif not stat.S_ISREG(mode):
        raise Mistake(f"{location!r} is a device, a pipe or a socket; wanted a file or a folder")
    elif path.suffix.lower() not in TEXT_SUFFIXES | TABLE_SUFFIXES:
        raise Mistake(
            f"{location!r} has the unknown suffix {path.suffix!r}; wanted {_wanted()}; rename it if it is text"
        )
    return path


def _mode(path: Path) -> int | None:
    """What the path leads to, through links; None where that is nothing, or cannot be told."""
    try:
        return path.stat().st_mode
    except OSError:
        return None


def _is_file(path: Path) -> bool:
    return (mode := _mode(path)) is not None and stat.S_ISREG(mode)


def _below(path: Path) -> list[Path]:
    """All that lies in the folder and is none itself; a link to a folder is not followed.

    Mistake for a folder that cannot be looked into, unless it is hidden and so of no use.
    """

    def refuse(error: OSError) -> None:
        folder = Path(error.filename)
        if _skipped_with(folder.relative_to(path), frozenset()) is None:
            raise Mistake(
                f"the folder {str(folder)!r} cannot be read ({error.strerror}); make it readable or leave it out"
            ) from error

    found: list[Path] = []
    for folder, folders, files in os.walk(path, onerror=refuse):
        found += [Path(folder, name) for name in files]
        found += [link for name in folders if (link := Path(folder, name)).is_symlink()]
    return found


def _wanted() -> str:
    return f".txt, .jsonl, .parquet or one of {len(TEXT_SUFFIXES)} other text suffixes such as .md and .py"


def files_under(path: Path) -> list[tuple[str, Path]]:
    """(name inside the folder, file), in the order of the names; a lone file has its suffix for a name."""
    if not path.is_dir():
        return [(path.suffix.lower(), path)]
    below = _below(path)
    artifacts = _artifacts_of(path, below)
    inside = [
        (name.as_posix(), file)
        for file in below
        if file.suffix.lower() in TEXT_SUFFIXES | TABLE_SUFFIXES
        and _skipped_with(name := file.relative_to(path), artifacts) is None
        and _is_file(file)
    ]
    return sorted(inside)


def _artifacts_of(path: Path, below: Iterable[Path]) -> Set[Path]:
    """Folders of artifacts, as where the store lies in the folder: what this pipeline writes is no text to read."""
    folders = (file.relative_to(path).parent for file in below if file.name == MANIFEST)
    return frozenset(folder for folder in folders if re.fullmatch(ID, folder.name))


def _skipped_with(name: Path, artifacts: Set[Path]) -> Path | None:
    """The outermost hidden name or artifact that the file lies in, or is."""
    places = (*reversed(name.parents), name)
    return next((place for place in places if place.name.startswith(".") or place in artifacts), None)


def others_under(path: Path) -> list[tuple[str, int]]:
    """(name, bytes) of what is not read of a folder; a hidden folder or an artifact counts as one."""
    if not path.is_dir():
        return []
    below, taken = _below(path), {file for _, file in files_under(path)}
    artifacts = _artifacts_of(path, below)
    sizes = Counter[str]()
    for file in below:
        size = file.stat().st_size if _is_file(file) else 0
        if file not in taken or not size:
            name = file.relative_to(path)
            sizes[(_skipped_with(name, artifacts) or name).as_posix()] += size
    return list(sizes.items())
