"""Which files of a folder hold text, and what lies beside them."""

import re
from collections import Counter
from collections.abc import Set
from pathlib import Path

from artifacts.lineage import ID
from artifacts.manifest import MANIFEST
from kernels.errors import Mistake
from pipeline.corpus.remarks import left_out

# fmt: off
TEXT_SUFFIXES = frozenset((
    ".txt", ".text", ".md", ".rst", ".tex", ".html", ".xml", ".csv", ".tsv", ".json", ".yaml", ".yml",
    ".toml", ".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".cu", ".cuh", ".java", ".js", ".ts", ".go",
    ".rs", ".rb", ".jl", ".r", ".sh", ".sql", ".lean", ".hs", ".scala", ".kt", ".swift", ".lua", ".pl",
    ".php", ".css",
))
# fmt: on
TABLE_SUFFIXES = frozenset({".jsonl", ".ndjson", ".parquet"})


def existing(location: str) -> Path:
    path = Path(location).expanduser()
    if not path.exists():
        raise Mistake(f"there is no file or folder {location!r} to read text from; check the path")
    if path.is_dir() and not files_under(path):
        others = others_under(path)
        beside = f" ({left_out(others)})" if others else ""
        raise Mistake(f"the folder {location!r} holds no text files; wanted {_wanted()}{beside}")
    if path.is_file() and path.suffix.lower() not in TEXT_SUFFIXES | TABLE_SUFFIXES:
        raise Mistake(
            f"{location!r} has the unknown suffix {path.suffix!r}; wanted {_wanted()}; rename it if it is text"
        )
    return path


def _wanted() -> str:
    return f".txt, .jsonl, .parquet or one of {len(TEXT_SUFFIXES)} other text suffixes such as .md and .py"


def files_under(path: Path) -> list[tuple[str, Path]]:
    """(name inside the folder, file), in the order of the names; a lone file has its suffix for a name."""
    if path.is_file():
        return [(path.suffix.lower(), path)]
    artifacts = _artifacts_under(path)
    inside = (
        (file.relative_to(path), file)
        for file in path.rglob("*")
        if file.is_file() and file.suffix.lower() in TEXT_SUFFIXES | TABLE_SUFFIXES
    )
    return sorted((name.as_posix(), file) for name, file in inside if _skipped_with(name, artifacts) is None)


def _artifacts_under(path: Path) -> Set[Path]:
    """Folders of artifacts, as where the store lies in the folder: what this pipeline writes is no text to read."""
    manifests = (manifest.relative_to(path) for manifest in path.rglob(MANIFEST))
    return frozenset(manifest.parent for manifest in manifests if re.fullmatch(ID, manifest.parent.name))


def _skipped_with(name: Path, artifacts: Set[Path]) -> Path | None:
    """The outermost hidden name or artifact that the file lies in, or is."""
    places = (*reversed(name.parents), name)
    return next((place for place in places if place.name.startswith(".") or place in artifacts), None)


def others_under(path: Path) -> list[tuple[str, int]]:
    """(name, bytes) of what is not read of a folder; a hidden folder or an artifact counts as one."""
    if path.is_file():
        return []
    artifacts, taken = _artifacts_under(path), {file for _, file in files_under(path)}
    sizes = Counter[str]()
    for file in path.rglob("*"):
        if file.is_file() and (file not in taken or not file.stat().st_size):
            name = file.relative_to(path)
            sizes[(_skipped_with(name, artifacts) or name).as_posix()] += file.stat().st_size
    return list(sizes.items())
