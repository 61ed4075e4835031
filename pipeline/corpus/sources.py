"""One's own text as documents, not cleaned: files, folders, JSONL, parquet, and `hf:` data sets.

One rule for all of them: text is UTF-8, with or without a byte order mark, and what is not is refused with its place,
or left out and counted where `Reading.unreadable` says so. docs/limits.md has the rest in words.
"""

import codecs
import hashlib
import json
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pyarrow
import pyarrow.parquet

from artifacts.lineage import ID
from artifacts.manifest import MANIFEST
from pipeline.corpus.documents import Document, DocumentSplits, held_out_first
from pipeline.corpus.remarks import Remarks, left_out, repr_of, some
from pipeline.run import say

# fmt: off
TEXT_SUFFIXES = frozenset((
    ".txt", ".text", ".md", ".rst", ".tex", ".html", ".xml", ".csv", ".tsv", ".json", ".yaml", ".yml",
    ".toml", ".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".cu", ".cuh", ".java", ".js", ".ts", ".go",
    ".rs", ".rb", ".jl", ".r", ".sh", ".sql", ".lean", ".hs", ".scala", ".kt", ".swift", ".lua", ".pl",
    ".php", ".css",
))
# fmt: on
TABLE_SUFFIXES = frozenset({".jsonl", ".ndjson", ".parquet"})
MOST_DOMAIN_CHARACTERS = 255
"""Of a domain's name, which metrics have in theirs: as many as the name of a file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """How sources are read; the fields are those of the stage's config."""

    validation_share: float
    held_out_share: float
    max_bytes: int
    text_field: str
    domain_field: str
    """Empty where rows have no domain of their own."""
    unreadable: Literal["refuse", "skip"]
    hf_split: str


class Row(NamedTuple):
    """One text as it was found."""

    name: str
    text: str
    domain: str = ""
    """As the row writes it; empty where it says nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """`PATH`, `hf:NAME[:CONFIG][@REVISION]`, or either after `domain=`."""

    domain: str
    location: str

    @classmethod
    def parse(cls, text: str) -> "Source":
        named = re.fullmatch(r"([A-Za-z][\w-]*)=(.+)", text)
        domain, location = named.groups() if named and not os.path.exists(text) else (None, text)
        if not location.removeprefix("hf:").strip():
            raise ValueError(f"the source {text!r} names nothing to read; name a file, a folder or hf:NAME")
        domain = domain or re.split(r"[:@]", location.removeprefix("hf:"))[0].rstrip("/").split("/")[-1].split(".")[0]
        if len(domain) > MOST_DOMAIN_CHARACTERS:
            raise ValueError(f"the source {repr_of(text)}: {_too_long(domain)}; write a shorter one before it, domain=")
        return cls(domain=_domain_name(domain), location=location)

    @property
    def is_hf(self) -> bool:
        return self.location.startswith("hf:")


def _domain_name(written: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", written.lower()).strip("_") or "text"


def _too_long(domain: str) -> str:
    return f"its domain has {len(domain):,} characters, and {MOST_DOMAIN_CHARACTERS} is the most"


def read_sources(sources: Sequence[str], reading: Reading) -> DocumentSplits:
    """Every domain of every source split by itself: its last share is held out, the one before it for validation.
    Then no text of one split stands in another, whichever sources they are from.

    ValueError for unusable sources.
    """
    share_bytes = reading.max_bytes // len(sources)
    if not share_bytes:
        raise ValueError(
            f"max_bytes: got {reading.max_bytes:,} for {len(sources):,} sources, less than a byte each; take more bytes"
        )
    parts = [_split_source(Source.parse(source), reading, share_bytes) for source in sources]
    splits = held_out_first(
        (document for part in parts for document in part.train),
        (document for part in parts for document in part.validation),
        (document for part in parts for document in part.held_out),
    )
    splits = replace(splits, num_unreadable=sum(part.num_unreadable for part in parts))
    _require_few(splits.domains)
    _require_every_split(splits, sources)
    _tell_what_repeats(parts, splits)
    return splits


def _tell_what_repeats(parts: Sequence[DocumentSplits], splits: DocumentSplits) -> None:
    """Says which domains have lost all that they gave to a split, since other text repeats it."""
    for name, documents in splits.by_name.items():
        given = dict.fromkeys(document.domain for part in parts for document in part.by_name[name])
        for domain in sorted(given.keys() - {document.domain for document in documents}):
            say(f"the split {name!r} has no text of the domain {domain!r}: all of it repeats other text")


def require_sources(sources: Sequence[str]) -> None:
    """ValueError for local sources that are not there or hold no text; reads none of it."""
    for source in map(Source.parse, sources):
        if not source.is_hf:
            _existing(source.location)


def _require_few(domains: Collection[str]) -> None:
    if len(domains) > 256:
        raise ValueError(
            f"{len(domains):,} domains were named and 256 is the most; let sources share a domain, or read none from "
            "rows by an empty domain_field"
        )


def _require_every_split(splits: DocumentSplits, sources: Sequence[str]) -> None:
    for name, documents in splits.by_name.items():
        if not documents:
            raise ValueError(
                f"nothing of {some(map(repr_of, sources))} is left for the split {name!r}: {splits.num_dropped:,} "
                "documents repeat text of the others; give more varied text, or other shares"
            )


def sources_sha256(sources: Sequence[str], *, hf_split: str) -> str:
    """Digest of what would be read: contents, names inside folders, domains, but not where the files lie."""
    described = [_described(Source.parse(source), hf_split) for source in sources]
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _described(source: Source, hf_split: str) -> dict[str, Any]:
    if source.is_hf and not os.path.exists(source.location.removeprefix("hf:")):
        name, config, revision = _hf_parts(source.location)
        commit = revision if revision and re.fullmatch(r"[0-9a-f]{40}", revision) else _hf_commit(name, revision)
        return {"domain": source.domain, "hf": name, "config": config, "split": hf_split, "commit": commit}
    path = _existing(source.location.removeprefix("hf:"))
    files = [(name, _file_sha256(file)) for name, file in _files_under(path)]
    return {"domain": source.domain, "hf_split": hf_split if source.is_hf else None, "files": files}


def _file_sha256(file: Path) -> str:
    try:
        with file.open("rb") as data:
            return hashlib.file_digest(data, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(
            f"{str(file)!r} cannot be read ({error.strerror}); make it readable or leave it out"
        ) from error


def _split_source(source: Source, reading: Reading, max_bytes: int) -> DocumentSplits:
    remarks = Remarks()
    if source.is_hf:
        rows = _hf_rows(source.location, reading, remarks)
    else:
        rows = _path_rows(_existing(source.location), reading, remarks)
    documents = [_document(row, source, remarks) for row in _first_bytes(rows, max_bytes, remarks)]
    _tell(source, remarks, max_bytes)
    if not documents:
        why = f" that can be read ({remarks.first_unreadable})" if remarks.num_unreadable else ""
        raise ValueError(f"{source.location!r} holds no text{why}; name a source that does")
    by_domain: dict[str, list[Document]] = {}
    for document in documents:
        by_domain.setdefault(document.domain, []).append(document)
    _require_few(by_domain)
    parts = [
        _split(own, reading, source.location if len(by_domain) == 1 else f"{source.location}, domain {domain}")
        for domain, own in by_domain.items()
    ]
    return DocumentSplits(
        train=tuple(document for part in parts for document in part.train),
        validation=tuple(document for part in parts for document in part.validation),
        held_out=tuple(document for part in parts for document in part.held_out),
        num_dropped=0,
        num_unreadable=remarks.num_unreadable,
    )


def _document(row: Row, source: Source, remarks: Remarks) -> Document:
    domain = _domain_name(row.domain) if row.domain else source.domain
    if row.domain:
        remarks.spellings.setdefault(domain, set()).add(row.domain)
    return Document(domain=domain, origin=source.domain, name=row.name, text=row.text)


def _tell(source: Source, remarks: Remarks, max_bytes: int) -> None:
    sentences = remarks.sentences(max_bytes)
    if not source.is_hf and (others := _left_out(_existing(source.location))):
        sentences.append(left_out(others))
    for sentence in sentences:
        say(f"{repr_of(source.location)}: {sentence}")


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
    return DocumentSplits(train=tuple(train), validation=tuple(validation), held_out=tuple(held_out), num_dropped=0)


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


def _first_bytes(rows: Iterable[Row], max_bytes: int, remarks: Remarks) -> Iterator[Row]:
    """The first `max_bytes` of text; the last document is cut there. Reads no further."""
    left = max_bytes
    for row in rows:
        data = row.text.encode()
        if data and left <= 0:
            remarks.is_cut = True
            return
        if data:
            yield row._replace(text=data[:left].decode(errors="ignore"))
        left -= len(data)
        if left < 0:
            remarks.is_cut = True
            return


def user_path(location: str) -> Path:
    """The path that is written so, `~` and `~name` as in a shell. ValueError if there is no such user."""
    try:
        return Path(location).expanduser()
    except RuntimeError:
        raise ValueError(f"there is no user whose folder {repr_of(location)} lies in; check the path") from None


def _there(location: str) -> Path:
    path = user_path(location)
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"there is no file or folder {repr_of(location)} to read text from; check the path") from None
    except (OSError, ValueError) as error:  # names that are too long, folders that others may not enter, NUL
        why = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"{repr_of(location)} cannot be read ({why}); check the path") from error
    return path


def _existing(location: str) -> Path:
    path = _there(location)
    mode = _mode(path)
    if mode is None:
        raise ValueError(f"{repr_of(location)} is a link to nothing that can be read; check where it leads")
    if stat.S_ISDIR(mode):
        if not _files_under(path):
            others = _left_out(path)
            beside = f" ({left_out(others)})" if others else ""
            raise ValueError(f"the folder {location!r} holds no text files; wanted {_wanted()}{beside}")
    elif not stat.S_ISREG(mode):
        raise ValueError(f"{location!r} is a device, a pipe or a socket; wanted a file or a folder")
    elif path.suffix.lower() not in TEXT_SUFFIXES | TABLE_SUFFIXES:
        raise ValueError(
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

    ValueError for a folder that cannot be looked into, unless it is hidden and so of no use.
    """

    def refuse(error: OSError) -> None:
        folder = Path(error.filename)
        if _skipped_with(folder.relative_to(path), frozenset()) is None:
            raise ValueError(
                f"the folder {str(folder)!r} cannot be read ({error.strerror}); make it readable or leave it out"
            ) from error

    found: list[Path] = []
    for folder, folders, files in os.walk(path, onerror=refuse):
        found += [Path(folder, name) for name in files]
        found += [link for name in folders if (link := Path(folder, name)).is_symlink()]
    return found


def _wanted() -> str:
    return f".txt, .jsonl, .parquet or one of {len(TEXT_SUFFIXES)} other text suffixes such as .md and .py"


def _files_under(path: Path) -> list[tuple[str, Path]]:
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


def _left_out(path: Path) -> list[tuple[str, int]]:
    """(name, bytes) of what is not read of a folder; a hidden folder or an artifact counts as one."""
    if not path.is_dir():
        return []
    below, taken = _below(path), {file for _, file in _files_under(path)}
    artifacts = _artifacts_of(path, below)
    sizes = Counter[str]()
    for file in below:
        size = file.stat().st_size if _is_file(file) else 0
        if file not in taken or not size:
            name = file.relative_to(path)
            sizes[(_skipped_with(name, artifacts) or name).as_posix()] += size
    return list(sizes.items())


def _path_rows(path: Path, reading: Reading, remarks: Remarks) -> Iterator[Row]:
    for name, file in _files_under(path):
        if file.stat().st_size == 0:
            if path.is_file():
                raise ValueError(f"{str(file)!r} is empty; name a file that holds text")
            continue
        for read in _rows_of_file(name, file, reading, remarks):
            yield from _readable(read, reading, remarks)


def _readable(read: Callable[[], Row], reading: Reading, remarks: Remarks) -> Iterator[Row]:
    """The row, or nothing where it cannot be read and such rows are to be left out."""
    try:
        row = read()
    except ValueError as error:
        if reading.unreadable == "refuse":
            raise
        remarks.count_unreadable(str(error))
    else:
        yield row


def _rows_of_file(name: str, file: Path, reading: Reading, remarks: Remarks) -> Iterator[Callable[[], Row]]:
    match file.suffix.lower():
        case ".jsonl" | ".ndjson":
            yield from _json_lines(name, file, reading, remarks)
        case ".json" if _is_json_lines(file, reading.text_field):
            yield from _json_lines(name, file, reading, remarks)
        case ".parquet":
            yield from _parquet_rows(name, file, reading, remarks)
        case _:
            yield lambda: Row(name, _plain_text(file))


def _decoded(data: bytes, file: Path, line: int) -> str:
    """Text of UTF-8 that begins in that line of the file. The byte order mark of other systems is no part of it."""
    try:
        return data.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        number, byte = line + error.object.count(b"\n", 0, error.start), error.object[error.start]
        raise ValueError(
            f"{str(file)!r} line {number} is not UTF-8 text: it has the byte 0x{byte:02x} where none such can stand; "
            "convert the file to UTF-8, as by iconv"
        ) from error


def _plain_text(file: Path) -> str:
    data = file.read_bytes()
    if b"\0" in data:
        raise ValueError(f"{str(file)!r} is not text: it holds NUL bytes; convert it to UTF-8 text or leave it out")
    return _decoded(data, file, 1)


def _json_lines(name: str, file: Path, reading: Reading, remarks: Remarks) -> Iterator[Callable[[], Row]]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield lambda line=line, number=number: _row(
                    f"{name}:{number}",
                    _json_object(_decoded(line, file, number), f"{file} line {number}", _once),
                    f"{file} line {number}",
                    reading,
                    remarks,
                )


def _is_json_lines(file: Path, text_field: str) -> bool:
    """Whether a .json file has an object a line, which no JSON text is that has two lines; of one line, with text."""
    with file.open("rb") as lines:
        first = list(islice((line for line in lines if line.strip()), 2))
    try:
        objects = [_json_object(_decoded(line, file, 1), "") for line in first]
    except ValueError:
        return False
    return len(objects) == 2 or (len(objects) == 1 and text_field in objects[0])


class _TwiceError(ValueError):
    """A field stands in an object twice: which of the two is meant, nothing says."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        name = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise _TwiceError(f"has the field {repr_of(name)} twice; leave one of them out")
    return found


def _json_object(line: str, where: str, objects: Callable[[list[tuple[str, Any]]], Any] = dict) -> dict[str, Any]:
    try:
        row = json.loads(line, object_pairs_hook=objects)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not JSON ({error.msg}); a .jsonl file has one object a line") from error
    except RecursionError as error:
        raise ValueError(f"{where} is nested too deeply to be read; a .jsonl file has one object a line") from error
    except _TwiceError as error:
        raise ValueError(f"{where} {error}") from None
    except ValueError as error:  # Python reads no integer of thousands of digits
        raise ValueError(f"{where} has a number of too many digits to be read; write it as a string") from error
    if not isinstance(row, dict):
        raise ValueError(f"{where} is a JSON {type(row).__name__}, not an object; a .jsonl file has one object a line")
    return row


def _parquet_rows(name: str, file: Path, reading: Reading, remarks: Remarks) -> Iterator[Callable[[], Row]]:
    try:
        table = pyarrow.parquet.ParquetFile(file)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{str(file)!r} is no parquet file; check it or leave it out") from error
    with table:
        names = table.schema_arrow.names
        if reading.text_field not in names:
            raise _no_field(names, reading.text_field, str(file))
        used = [field for field in (reading.text_field, reading.domain_field) if field in names]
        for field in used:
            if names.count(field) > 1:
                raise ValueError(f"{str(file)!r} has {names.count(field)} columns {field!r}; leave one of them in it")
        remarks.unused_fields.update(field for field in names if field not in used)
        number = 0
        for batch in _batches(table, used, file):
            for row in range(batch.num_rows):
                cells = {field: batch.column(field)[row] for field in used}
                where = f"{file} row {number}, counted from 0"
                yield lambda cells=cells, number=number, where=where: _row(
                    f"{name}:{number}", _of_cells(cells, where), where, reading, remarks
                )
                number += 1


def _batches(table: pyarrow.parquet.ParquetFile, fields: list[str], file: Path) -> Iterator[pyarrow.RecordBatch]:
    try:
        yield from table.iter_batches(columns=fields)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{str(file)!r} is a damaged parquet file; check it or leave it out") from error


def _of_cells(cells: Mapping[str, Any], where: str) -> dict[str, Any]:
    try:
        return {field: cell.as_py() for field, cell in cells.items()}
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not UTF-8 text; write it as UTF-8, or leave it out") from error


def _row(name: str, fields: Mapping[str, Any], where: str, reading: Reading, remarks: Remarks) -> Row:
    if reading.text_field not in fields:
        raise _no_field(fields, reading.text_field, where)
    remarks.unused_fields.update(field for field in fields if field not in (reading.text_field, reading.domain_field))
    text = _string(fields[reading.text_field], reading.text_field, where, "text_field")
    domain = fields.get(reading.domain_field) if reading.domain_field else None
    written = "" if domain is None else _string(domain, reading.domain_field, where, "domain_field")
    if len(written) > MOST_DOMAIN_CHARACTERS:
        raise ValueError(f"{where}: {_too_long(written)}; shorten it, or set domain_field")
    return Row(name, text, written)


def _no_field(fields: Iterable[str], text_field: str, where: str) -> ValueError:
    names = some(repr_of(field)[1:-1] for field in fields)
    return ValueError(f"{where} has no field {text_field!r} (it has: {names or 'none'}); set text_field")


def _string(value: Any, field: str, where: str, setting: str) -> str:
    if value is None:
        raise ValueError(f"{where}: field {field!r} is null; fill it, or leave such rows out by unreadable=skip")
    if not isinstance(value, str):
        raise ValueError(f"{where}: field {field!r} is {type(value).__name__}, not a string; set {setting}")
    # JSON can spell half a surrogate pair, which no UTF-8 can hold.
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


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
    except huggingface_hub.errors.HFValidationError:
        raise ValueError(f"{repr_of(f'hf:{name}')} is no name of a data set; wanted hf:NAME or hf:OWNER/NAME") from None
    except (OSError, huggingface_hub.errors.HfHubHTTPError) as error:
        raise ValueError(
            f"'hf:{name}' cannot be reached ({type(error).__name__}); check its name and the network, "
            f"or name a local file"
        ) from error
    return Path(folder).name


def _hf_rows(location: str, reading: Reading, remarks: Remarks) -> Iterator[Row]:
    try:
        import datasets
    except ImportError as error:
        raise ValueError(f"{location!r} needs the package `datasets`; run: pip install -e '.[hf]'") from error
    name, config, revision = _hf_parts(location)
    rows = datasets.load_dataset(name, config, split=reading.hf_split, streaming=True, revision=revision)
    for number, row in enumerate(rows):
        where = f"{location} row {number}, counted from 0"
        yield from _readable(
            lambda row=row, number=number, where=where: _row(str(number), row, where, reading, remarks),
            reading,
            remarks,
        )
