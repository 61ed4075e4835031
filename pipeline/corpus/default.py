"""The default corpus: text of the pinned environment's pure-Python packages, the same on every machine.

`default_corpus.json` lists the distributions with their versions and the digest of what their wheels record.
Nothing else that is installed is read. `python -m pipeline.corpus.default` renews it when versions change.
"""

import base64
import csv
import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from kernels.errors import Mistake
from pipeline.corpus.documents import Document, DocumentSplits, text_sha256, without_repeats
from pipeline.corpus.python_source import code_and_prose

LIST_FILE = Path(__file__).with_name("default_corpus.json")
DOMAINS = ("code", "prose", "stubs", "tests")
_VENDORED = frozenset({"_vendor", "_vendored", "vendor", "vendored", "externals", "third_party"})
_TESTS = frozenset({"test", "tests", "testing"})
_NOT_PROSE = re.compile(r"(license|licence|copying|notice|authors)[^/]*$", re.IGNORECASE)
_MIN_BYTES = 200
_MAX_LINE = 5000
_MAX_DIGIT_SHARE = 0.2
_BASE64_LENGTH = 500
_BASE64 = re.compile(rf"[A-Za-z0-9+/=]{{{_BASE64_LENGTH},}}")


class Pinned(BaseModel):
    """One distribution: its version, and the digest of what its RECORD says of its text files."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str
    files_sha256: str


class AllowList(BaseModel):
    """What the default corpus consists of. A package is a distribution, or one stub package of typeshed's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text_sha256: str
    max_package_bytes: Mapping[str, int]
    """By domain: a larger package gives only some of its files, chosen by their hashes."""
    validation_families: Mapping[str, tuple[str, ...]]
    held_out_families: Mapping[str, tuple[str, ...]]
    """Family to its packages: siblings stay together, and out of every domain's train split."""
    distributions: Mapping[str, Pinned]

    def split_of(self, package: str) -> str:
        """The split that a package's documents are in."""
        for split, families in (("validation", self.validation_families), ("held_out", self.held_out_families)):
            if any(package in packages for packages in families.values()):
                return split
        return "train"


@dataclass(frozen=True, kw_only=True, slots=True)
class _File:
    package: str
    name: str
    """Path as RECORD has it."""
    sha256: str
    """As RECORD has it: base64 for URLs without padding."""
    path: Path


def allow_list() -> AllowList:
    return AllowList.model_validate_json(LIST_FILE.read_bytes())


def default_sha256() -> str:
    """Digest of the list. ValueError if other packages are installed than those of the list."""
    allowed = allow_list()
    for name, pinned in allowed.distributions.items():
        _recorded_files(name, pinned)
    return hashlib.sha256(json.dumps(allowed.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


def read_default(*, max_bytes: int) -> DocumentSplits:
    """The documents, held out by package family; `max_bytes` takes an equal share of all domains and splits.

    ValueError if a file is missing or altered, or if the text is not the one whose digest the list has.
    """
    allowed = allow_list()
    splits = _read(allowed)
    if (got := text_sha256(splits)) != allowed.text_sha256:
        raise Mistake(
            f"the default corpus has the digest {got[:12]}, not {allowed.text_sha256[:12]}: its cleaning "
            f"changed; undo that, or run `python -m pipeline.corpus.default` and raise the stage's version"
        )
    return _thinned(splits, max_bytes)


def renew() -> None:
    """Writes the list anew for the versions that are installed now."""
    allowed = allow_list()
    distributions = {
        name: Pinned(version=metadata.version(name), files_sha256=_files_sha256(_eligible_files(name)))
        for name in sorted(allowed.distributions, key=str.lower)
    }
    renewed = allowed.model_copy(update={"distributions": distributions})
    renewed = renewed.model_copy(update={"text_sha256": text_sha256(_read(renewed))})
    LIST_FILE.write_text(json.dumps(renewed.model_dump(mode="json"), indent=1) + "\n", encoding="utf-8")


def _read(allowed: AllowList) -> DocumentSplits:
    files_of: dict[str, list[_File]] = defaultdict(list)
    for name, pinned in allowed.distributions.items():
        for file in _recorded_files(name, pinned):
            files_of[file.package].append(file)
    documents = [
        document
        for package in files_of
        for document in _package_documents(files_of[package], allowed.max_package_bytes)
    ]
    documents.sort(key=lambda document: (DOMAINS.index(document.domain), document.origin, document.name))
    split_of = {package: allowed.split_of(package) for package in {document.origin for document in documents}}
    train, validation, held_out = (
        [document for document in documents if split_of[document.origin] == split]
        for split in ("train", "validation", "held_out")
    )
    return without_repeats(train, validation, held_out)


def _recorded_files(name: str, pinned: Pinned) -> list[_File]:
    """The text files of a distribution, if it is the pinned one."""
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError as error:
        raise Mistake(
            f"the default corpus needs {name} {pinned.version}, which is missing; run `make setup`"
        ) from error
    if version != pinned.version:
        raise Mistake(f"the default corpus needs {name} {pinned.version}, not {version}; run `make setup`")
    files = _eligible_files(name)
    if _files_sha256(files) != pinned.files_sha256:
        raise Mistake(f"{name} {version} is not the wheel that the default corpus was made from; run `make setup`")
    return files


def _eligible_files(name: str) -> list[_File]:
    distribution = metadata.distribution(name)
    rows = csv.reader((distribution.read_text("RECORD") or "").splitlines())
    return sorted(
        (
            _File(
                package=_package_of(name, path),
                name=path,
                sha256=digest.removeprefix("sha256="),
                path=Path(str(distribution.locate_file(path))),
            )
            for path, digest, _ in rows
            if digest and _is_text(path)
        ),
        key=lambda file: file.name,
    )


def _files_sha256(files: Iterable[_File]) -> str:
    return hashlib.sha256("".join(f"{file.name},{file.sha256}\n" for file in files).encode()).hexdigest()


def _is_text(path: str) -> bool:
    if path.startswith("..") or not _VENDORED.isdisjoint(path.split("/")):
        return False
    if path.endswith((".py", ".pyi", ".dist-info/METADATA")):
        return True
    return path.endswith((".md", ".rst")) and not _NOT_PROSE.search(path) and "/licenses/" not in path


def _package_of(distribution: str, path: str) -> str:
    """The stub package for typeshed's files, else the distribution: the unit that is capped and held out."""
    typeshed = re.search(r"/typeshed-fallback/(?:stubs/([^/]+)|stdlib)/", path)
    return f"types-{typeshed[1] or 'stdlib'}" if typeshed else distribution


def _package_documents(files: Iterable[_File], max_bytes: Mapping[str, int]) -> Iterator[Document]:
    """Files in the order of their hashes, a fixed shuffle, until each domain has its share."""
    left = dict(max_bytes)
    full = {domain: size // 20 for domain, size in max_bytes.items()}
    for file in sorted(files, key=lambda file: (file.sha256, file.name)):
        if any(left[domain] > full[domain] for domain in _domains_of(file.name)):
            for domain, text in _texts(file):
                size = len(text.encode())
                if _MIN_BYTES <= size <= left[domain]:
                    left[domain] -= size
                    yield Document(domain=domain, origin=file.package, name=file.name, text=text)


def _domains_of(path: str) -> tuple[str, ...]:
    if path.endswith(".pyi"):
        return ("stubs",)
    if not path.endswith(".py"):
        return ("prose",)
    return ("code", "prose") if _TESTS.isdisjoint(path.split("/")[:-1]) else ("tests",)


def _texts(file: _File) -> Iterator[tuple[str, str]]:
    """(domain, clean text) of a file."""
    source = _verified_text(file)
    domains = _domains_of(file.name)
    if source is None:
        return
    if domains == ("prose",):
        body = source.partition("\n\n")[2] if file.name.endswith("/METADATA") else source
        yield "prose", _clean(body)
        return
    code, paragraphs = code_and_prose(source)
    yield domains[0], _clean(code)
    if "prose" in domains:
        yield "prose", _clean("\n\n".join(paragraphs))


def _verified_text(file: _File) -> str | None:
    """None for the few files that are not UTF-8 text."""
    if not file.path.is_file():
        raise Mistake(f"{file.name} of the default corpus is missing from {file.path}; run `make setup`")
    data = file.path.read_bytes()
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    if digest != file.sha256:
        raise Mistake(f"{file.path} is not as its wheel recorded it (sha256 differs); run `make setup`")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def _clean(text: str) -> str:
    """Without over-long lines and base64; nothing at all for tables of numbers."""
    lines = text.split("\n")
    cleaned = "\n".join(line for line in lines if len(line) < _BASE64_LENGTH or _is_readable(line)).strip("\n")
    digits = sum(cleaned.count(digit) for digit in "0123456789")
    return "" if not cleaned or digits > _MAX_DIGIT_SHARE * len(cleaned) else cleaned + "\n"


def _is_readable(line: str) -> bool:
    return len(line) <= _MAX_LINE and not _BASE64.search(line)


def _thinned(splits: DocumentSplits, max_bytes: int) -> DocumentSplits:
    total = sum(document.num_bytes for document in splits.documents)
    if total <= max_bytes:
        return splits
    thinned = {
        name: tuple(document for domain in DOMAINS for document in _share_of(documents, domain, max_bytes / total))
        for name, documents in splits.by_name.items()
    }
    return replace(splits, **thinned)


def _share_of(documents: Iterable[Document], domain: str, share: float) -> list[Document]:
    """Documents in the order of their hashes until their bytes are the share; returned in their own order."""
    own = [document for document in documents if document.domain == domain]
    left = share * sum(document.num_bytes for document in own)
    kept: set[int] = set()
    for index in sorted(range(len(own)), key=lambda i: hashlib.sha256(own[i].text.encode()).digest()):
        if own[index].num_bytes <= left or not kept:
            left -= own[index].num_bytes
            kept.add(index)
    return [document for index, document in enumerate(own) if index in kept]


if __name__ == "__main__":
    renew()
