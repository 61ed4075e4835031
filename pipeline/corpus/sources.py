"""One's own text as documents, not cleaned: files, folders, JSONL, parquet, and `hf:` data sets."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from pipeline.corpus.documents import Document, DocumentSplits, without_repeats

# fmt: off
TEXT_SUFFIXES = frozenset((
    ".txt", ".text", ".md", ".rst", ".tex", ".html", ".xml", ".csv", ".tsv", ".json", ".yaml", ".yml",
    ".toml", ".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".cu", ".cuh", ".java", ".js", ".ts", ".go",
    ".rs", ".rb", ".jl", ".r", ".sh", ".sql", ".lean", ".hs", ".scala", ".kt", ".swift", ".lua", ".pl",
    ".php", ".css",
))
# fmt: on
TABLE_SUFFIXES = frozenset({".jsonl", ".ndjson", ".parquet"})
_MAX_INVALID_SHARE = 0.01


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """How sources are read; the fields are those of the stage's config."""

    validation_share: float
    held_out_share: float
    max_bytes: int
    text_field: str
    hf_split: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """`PATH`, `hf:NAME[:CONFIG][@REVISION]`, or either after `domain=`."""

    domain: str
    location: str

    @classmethod
    def parse(cls, text: str) -> "Source":
        named = re.fullmatch(r"([A-Za-z][\w-]*)=(.+)", text)
        domain, location = named.groups() if named and not Path(text).exists() else (None, text)
        domain = domain or re.split(r"[:@]", location.removeprefix("hf:"))[0].rstrip("/").split("/")[-1].split(".")[0]
        return cls(domain=re.sub(r"[^a-z0-9]+", "_", domain.lower()).strip("_") or "text", location=location)

    @property
    def is_hf(self) -> bool:
        return self.location.startswith("hf:")


def read_sources(sources: Sequence[str], reading: Reading) -> DocumentSplits:
    """Every source split by itself: its last share is held out, the one before it for validation.

    ValueError for unusable sources.
    """
    share_bytes = reading.max_bytes // len(sources)
    parts = [_split_source(Source.parse(source), reading, share_bytes) for source in sources]
    splits = DocumentSplits(
        train=tuple(document for part in parts for document in part.train),
        validation=tuple(document for part in parts for document in part.validation),
        held_out=tuple(document for part in parts for document in part.held_out),
        num_dropped=sum(part.num_dropped for part in parts),
    )
    if len(splits.domains) > 256:
        raise ValueError(f"{len(splits.domains)} domains were named and 256 is the most; let sources share a domain")
    return splits


def sources_sha256(sources: Sequence[str], *, hf_split: str) -> str:
    """Digest of what would be read: contents, names inside folders, domains, but not where the files lie."""
    described = [_described(Source.parse(source), hf_split) for source in sources]
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _described(source: Source, hf_split: str) -> dict[str, Any]:
    if source.is_hf and not Path(source.location.removeprefix("hf:")).exists():
        name, config, revision = _hf_parts(source.location)
        commit = revision if revision and re.fullmatch(r"[0-9a-f]{40}", revision) else _hf_commit(name, revision)
        return {"domain": source.domain, "hf": name, "config": config, "split": hf_split, "commit": commit}
    path = _existing(source.location.removeprefix("hf:"))
    files = [(name, _file_sha256(file)) for name, file in _files_under(path)]
    return {"domain": source.domain, "hf_split": hf_split if source.is_hf else None, "files": files}


def _file_sha256(file: Path) -> str:
    with file.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


def _split_source(source: Source, reading: Reading, max_bytes: int) -> DocumentSplits:
    if source.is_hf:
        texts = ((str(row), text) for row, text in enumerate(_hf_texts(source.location, reading)))
    else:
        texts = _path_texts(_existing(source.location), reading.text_field)
    documents = [
        Document(domain=source.domain, origin=source.domain, name=name, text=text)
        for name, text in _first_bytes(texts, max_bytes)
    ]
    if not documents:
        raise ValueError(f"{source.location!r} holds no text; name a source that does")
    return _split(documents, reading, source.location)


def _split(documents: list[Document], reading: Reading, location: str) -> DocumentSplits:
    """The last documents are held out, those before them are for validation; the end of a text where there is one."""
    if len(documents) == 1:
        head, tail = _cut(documents[0], reading.held_out_share, location)
        train, validation = _cut(head, reading.validation_share / (1 - reading.held_out_share), location)
        return DocumentSplits(train=(train,), validation=(validation,), held_out=(tail,), num_dropped=0)
    num_before = min(len(documents) - 1, max(1, int(len(documents) * (1 - reading.held_out_share))))
    before, held_out = documents[:num_before], documents[num_before:]
    if num_before == 1:
        train, validation = ([part] for part in _cut(before[0], reading.validation_share, location))
    else:
        num_train = min(num_before - 1, max(1, num_before - round(len(documents) * reading.validation_share)))
        train, validation = before[:num_train], before[num_train:]
    splits = without_repeats(train, validation, held_out)
    if not splits.held_out:
        raise ValueError(
            f"every held-out document of {location!r} repeats its other documents; "
            f"give more varied text or a held_out_share above {reading.held_out_share}"
        )
    return splits


def _cut(document: Document, tail_share: float, location: str) -> tuple[Document, Document]:
    """Head and tail of the text: its last `tail_share` of bytes, from the next character on."""
    data = document.text.encode()
    cut = int(len(data) * (1 - tail_share))
    while cut < len(data) and data[cut] & 0xC0 == 0x80:
        cut += 1
    if not 0 < cut < len(data):
        raise ValueError(f"{location!r} has {len(data)} bytes of text, too few to hold some out; give more text")
    head, tail = (
        Document(domain=document.domain, origin=document.origin, name=f"{document.name} {part}", text=text.decode())
        for part, text in (("head", data[:cut]), ("tail", data[cut:]))
    )
    return head, tail


def _first_bytes(texts: Iterable[tuple[str, str]], max_bytes: int) -> Iterator[tuple[str, str]]:
    """The first `max_bytes` of text; the last document is cut there. Reads no further."""
    left = max_bytes
    for name, text in texts:
        data = text.encode()
        if data:
            yield name, data[:left].decode(errors="ignore")
        left -= len(data)
        if left <= 0:
            return


def _existing(location: str) -> Path:
    path = Path(location).expanduser()
    if not path.exists():
        raise ValueError(f"there is no file or folder {location!r} to read text from; check the path")
    if path.is_dir() and not _files_under(path):
        raise ValueError(f"the folder {location!r} holds no text files; wanted {_wanted()}")
    if path.is_file() and path.suffix.lower() not in TEXT_SUFFIXES | TABLE_SUFFIXES:
        raise ValueError(
            f"{location!r} has the unknown suffix {path.suffix!r}; wanted {_wanted()}; rename it if it is text"
        )
    return path


def _wanted() -> str:
    return f".txt, .jsonl, .parquet or one of {len(TEXT_SUFFIXES)} other text suffixes such as .md and .py"


def _files_under(path: Path) -> list[tuple[str, Path]]:
    """(name inside the folder, file), in the order of the names; a lone file has its suffix for a name."""
    if path.is_file():
        return [(path.suffix.lower(), path)]
    inside = (
        (file.relative_to(path), file)
        for file in path.rglob("*")
        if file.is_file() and file.suffix.lower() in TEXT_SUFFIXES | TABLE_SUFFIXES
    )
    return sorted((name.as_posix(), file) for name, file in inside if not any(p.startswith(".") for p in name.parts))


def _path_texts(path: Path, text_field: str) -> Iterator[tuple[str, str]]:
    for name, file in _files_under(path):
        if file.stat().st_size == 0:
            if path.is_file():
                raise ValueError(f"{str(file)!r} is empty; name a file that holds text")
            continue
        match file.suffix.lower():
            case ".jsonl" | ".ndjson":
                yield from ((f"{name}:{row}", text) for row, text in _jsonl_texts(file, text_field))
            case ".parquet":
                yield from ((f"{name}:{row}", text) for row, text in enumerate(_parquet_texts(file, text_field)))
            case _:
                yield name, _plain_text(file)


def _plain_text(file: Path) -> str:
    data = file.read_bytes()
    if b"\0" in data:
        raise ValueError(f"{str(file)!r} is not text: it holds NUL bytes; convert it to UTF-8 text or leave it out")
    text = data.decode(errors="replace")
    invalid_share = text.count("\N{REPLACEMENT CHARACTER}") / len(text)
    if invalid_share > _MAX_INVALID_SHARE:
        raise ValueError(
            f"{str(file)!r} is not UTF-8 text: {invalid_share:.0%} of its characters cannot be decoded "
            f"(at most {_MAX_INVALID_SHARE:.0%} are replaced); convert it to UTF-8"
        )
    return text


def _jsonl_texts(file: Path, text_field: str) -> Iterator[tuple[int, str]]:
    with file.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield (
                    number,
                    _text_of(_json_object(line, f"{file} line {number}"), text_field, f"{file} line {number}"),
                )


def _json_object(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not JSON ({error.msg}); a .jsonl file has one object a line") from error
    if not isinstance(row, dict):
        raise ValueError(f"{where} is a JSON {type(row).__name__}, not an object; a .jsonl file has one object a line")
    return row


def _parquet_texts(file: Path, text_field: str) -> Iterator[str]:
    try:
        table = pyarrow.parquet.ParquetFile(file)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{str(file)!r} is no parquet file; check it or leave it out") from error
    with table:
        if text_field not in table.schema_arrow.names:
            _text_of(dict.fromkeys(table.schema_arrow.names), text_field, str(file))
        for batch in table.iter_batches(columns=[text_field]):
            for text in batch.column(0):
                yield _text_of({text_field: text.as_py()}, text_field, str(file))


def _text_of(row: dict[str, Any], text_field: str, where: str) -> str:
    if text_field not in row:
        raise ValueError(f"{where} has no field {text_field!r} (it has: {', '.join(row) or 'none'}); set text_field")
    text = row[text_field]
    if not isinstance(text, str):
        raise ValueError(f"{where}: field {text_field!r} is {type(text).__name__}, not a string; set text_field")
    # JSON can spell half a surrogate pair, which no UTF-8 can hold.
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _hf_parts(location: str) -> tuple[str, str | None, str | None]:
    """(name, config, revision) of `hf:NAME[:CONFIG][@REVISION]`."""
    rest, _, revision = location.removeprefix("hf:").partition("@")
    name, _, config = rest.partition(":")
    return name, config or None, revision or None


def _hf_commit(name: str, revision: str | None) -> str:
    """The commit that the hub, or without a network its cache, has now. It stands for the contents."""
    import huggingface_hub

    try:
        # The folder of a snapshot is named after its commit; the README is all that is fetched for it.
        folder = huggingface_hub.snapshot_download(
            name, repo_type="dataset", revision=revision, allow_patterns="README.md"
        )
    except (OSError, huggingface_hub.errors.HfHubHTTPError) as error:
        raise ValueError(
            f"'hf:{name}' cannot be reached ({type(error).__name__}); check its name and the network, "
            f"or name a local file"
        ) from error
    return Path(folder).name


def _hf_texts(location: str, reading: Reading) -> Iterator[str]:
    try:
        import datasets
    except ImportError as error:
        raise ValueError(f"{location!r} needs the package `datasets`; run: pip install -e '.[hf]'") from error
    name, config, revision = _hf_parts(location)
    rows = datasets.load_dataset(name, config, split=reading.hf_split, streaming=True, revision=revision)
    for number, row in enumerate(rows):
        yield _text_of(row, reading.text_field, f"{location} row {number}")
