"""What reading a source leaves out, merges or makes no use of: counted while it is read and then told."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

_MOST_NAMES = 5
_MOST_CHARACTERS = 120


@dataclass(slots=True)
class Remarks:
    num_unreadable: int = 0
    first_unreadable: str = ""
    """Why the first of them cannot be read, with its place."""
    unused_fields: Counter[str] = field(default_factory=Counter[str])
    spellings: dict[str, set[str]] = field(default_factory=dict[str, set[str]])
    """By domain: how rows wrote it."""
    is_cut: bool = False
    """Whether there is more text than was to be taken."""

    def count_unreadable(self, why: str) -> None:
        self.num_unreadable += 1
        self.first_unreadable = self.first_unreadable or why

    def sentences(self, max_bytes: int) -> list[str]:
        """All that was remarked, for people."""
        told: list[str] = []
        if self.is_cut:
            told.append(f"only the first {max_bytes:,} bytes are taken, its share of max_bytes")
        if self.num_unreadable:
            told.append(f"{self.num_unreadable:,} rows or files were left out as unreadable; {self.first_unreadable}")
        if self.unused_fields:
            told.append(f"no use is made of the fields {some(repr_of(name) for name in self.unused_fields)}")
        for domain, spellings in self.spellings.items():
            if len(spellings) > 1:
                told.append(f"the domains {some(sorted(map(repr_of, spellings)))} are one here, {domain!r}")
        return told


def left_out(files: Sequence[tuple[str, int]]) -> str:
    """One sentence on files that are not read, given as (name, bytes): the largest by name."""
    largest = sorted(files, key=lambda file: (-file[1], file[0]))
    total = sum(size for _, size in files)
    named = some(f"{repr_of(name)} ({size:,} bytes)" for name, size in largest)
    why = "hidden, empty, of unknown suffix, an artifact, or a link or pipe that no text is read from"
    return f"{total:,} bytes are left out, {why}: {named}"


def some(names: Iterable[str]) -> str:
    """The first few, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - _MOST_NAMES:,} more" if len(listed) > _MOST_NAMES else ""
    return ", ".join(listed[:_MOST_NAMES]) + more


def repr_of(name: str) -> str:
    """Quoted, without control characters, and not longer than a line."""
    return repr(name if len(name) <= _MOST_CHARACTERS else name[: _MOST_CHARACTERS - 3] + "...")
