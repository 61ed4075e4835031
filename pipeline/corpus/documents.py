"""Documents of text in three splits, and what is dropped so that no split repeats another."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

_SHINGLE_LINES = 5
_SHINGLE_WORDS = 8
_SAMPLE_CHARACTERS = 16_384
Shingle = tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    domain: str
    origin: str
    """What it belongs to: a package, a folder, a file."""
    name: str
    text: str

    @property
    def num_bytes(self) -> int:
        return len(self.text.encode())


@dataclass(frozen=True, kw_only=True, slots=True)
class DocumentSplits:
    train: tuple[Document, ...]
    validation: tuple[Document, ...]
    """What rates, budgets and thresholds are chosen on; nothing is reported of it."""
    held_out: tuple[Document, ...]
    num_dropped: int
    """Documents left out since they repeat others."""
    num_unreadable: int = 0
    """Rows and files left out since they could not be read."""

    @property
    def by_name(self) -> dict[str, tuple[Document, ...]]:
        return {"train": self.train, "validation": self.validation, "held_out": self.held_out}

    @property
    def documents(self) -> tuple[Document, ...]:
        return (*self.train, *self.validation, *self.held_out)

    @property
    def domains(self) -> tuple[str, ...]:
        """In order of appearance."""
        return tuple(dict.fromkeys(document.domain for document in self.documents))


def without_repeats(
    train: Iterable[Document], validation: Iterable[Document], held_out: Iterable[Document]
) -> DocumentSplits:
    """Each text once, the first time it appears. Dropped are held-out documents that mostly repeat train, and
    documents of validation that mostly repeat either."""
    train, validation, held_out = tuple(train), tuple(validation), tuple(held_out)
    seen: set[bytes] = set()
    kept_train = tuple(_first_of_their_text(train, seen))
    kept_held_out = tuple(_without_near_repeats(kept_train, tuple(_first_of_their_text(held_out, seen))))
    others = (*kept_train, *kept_held_out)
    kept_validation = tuple(_without_near_repeats(others, tuple(_first_of_their_text(validation, seen))))
    return DocumentSplits(
        train=kept_train,
        validation=kept_validation,
        held_out=kept_held_out,
        num_dropped=len(train) + len(validation) + len(held_out) - len(others) - len(kept_validation),
    )


def held_out_first(
    train: Iterable[Document], validation: Iterable[Document], held_out: Iterable[Document]
) -> DocumentSplits:
    """`without_repeats`, but a text that stands in several splits stays held out, or else for validation, and leaves
    train. White space makes no difference."""
    train, validation, held_out = tuple(train), tuple(validation), tuple(held_out)
    seen: set[bytes] = set()
    # The order of these lines is which split a text stays in.
    kept_held_out = tuple(_first_of_their_words(held_out, seen))
    kept_validation = tuple(_first_of_their_words(validation, seen))
    kept_train = tuple(_first_of_their_words(train, seen))
    splits = without_repeats(kept_train, kept_validation, kept_held_out)
    given = len(train) + len(validation) + len(held_out)
    return replace(splits, num_dropped=given - len(splits.documents))


def sample_of(documents: Iterable[Document], num_bytes: int) -> list[str]:
    """About `num_bytes` of the text in passages spread evenly over it; all of it if there is no more."""
    passages = [
        document.text[start : start + _SAMPLE_CHARACTERS]
        for document in documents
        for start in range(0, len(document.text), _SAMPLE_CHARACTERS)
    ]
    total = sum(len(passage.encode()) for passage in passages)
    count = min(len(passages), max(1, len(passages) * num_bytes // max(1, total)))
    return [passages[i * len(passages) // count] for i in range(count)] if passages else []


def text_sha256(splits: DocumentSplits) -> str:
    """One digest of every text with its split, domain, origin and name, in order."""
    digest = hashlib.sha256()
    for split, documents in splits.by_name.items():
        for document in documents:
            for part in (split, document.domain, document.origin, document.name, document.text):
                data = part.encode()
                digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


def _first_of_their_text(documents: Sequence[Document], seen: set[bytes]) -> Iterator[Document]:
    for document in documents:
        digest = hashlib.sha256(document.text.encode()).digest()
        if digest not in seen:
            seen.add(digest)
            yield document


def _first_of_their_words(documents: Sequence[Document], seen: set[bytes]) -> Iterator[Document]:
    for document in documents:
        digest = hashlib.sha256(" ".join(document.text.split()).encode()).digest()
        if digest not in seen:
            seen.add(digest)
            yield document


def _without_near_repeats(others: Sequence[Document], documents: Sequence[Document]) -> Iterator[Document]:
    """Drops a document if more than half of its shingles stand in the others too."""
    shingles_of = [_own_shingles(document.text) for document in documents]
    wanted = set().union(*shingles_of)
    repeated: set[Shingle] = set()
    for document in others:
        repeated.update(wanted.intersection(_runs_of_lines(document.text)))
        repeated.update(wanted.intersection(_runs_of_words(document.text)))
    for document, shingles in zip(documents, shingles_of, strict=True):
        if sum(shingle in repeated for shingle in shingles) * 2 <= len(shingles):
            yield document


def _own_shingles(text: str) -> list[Shingle]:
    """What the text is found again by: its runs of lines, or of words where it has fewer than five lines."""
    return list(_runs_of_lines(text)) or list(_runs_of_words(text))


def _runs_of_lines(text: str) -> Iterator[Shingle]:
    return _runs([stripped for line in text.split("\n") if (stripped := line.strip())], _SHINGLE_LINES)


def _runs_of_words(text: str) -> Iterator[Shingle]:
    """Of fewer than eight words all of them, which only the same text has."""
    words = text.split()
    return _runs(words, min(len(words), _SHINGLE_WORDS))


def _runs(parts: Sequence[str], length: int) -> Iterator[Shingle]:
    return zip(*(parts[i:] for i in range(length)), strict=False)
