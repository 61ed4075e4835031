"""Rows of text out of files: plain text, an object a line, a CSV, parquet.

One rule for all of them: text is UTF-8, with or without a byte order mark, and what is not is refused with its place,
or left out and counted where `Reading.unreadable` says so. docs/limits.md has the rest in words.
"""

import codecs
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pyarrow
import pyarrow.parquet

from kernels.errors import Mistake
from pipeline.corpus.delimited import SUFFIXES as DELIMITED
from pipeline.corpus.delimited import columns_of, delimited_rows, separator_of
from pipeline.corpus.remarks import Remarks, repr_of, some
from pipeline.corpus.text_files import files_under

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


def path_rows(path: Path, reading: Reading, remarks: Remarks) -> Iterator[Row]:
    for name, file in files_under(path):
        if file.stat().st_size == 0:
            if path.is_file():
                raise Mistake(f"{str(file)!r} is empty; name a file that holds text")
            continue
        if path.is_file() and file.suffix.lower() in DELIMITED and separator_of(file, reading.text_field) is None:
            raise _no_field(columns_of(file), reading.text_field, str(file))
        for read in _rows_of_file(name, file, reading, remarks):
            yield from readable(read, reading, remarks)


def readable(read: Callable[[], Row], reading: Reading, remarks: Remarks) -> Iterator[Row]:
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
        case ".csv" | ".tsv" if (separator := separator_of(file, reading.text_field)) is not None:
            yield from _delimited_rows(name, file, separator, reading, remarks)
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
        raise Mistake(
            f"{str(file)!r} line {number} is not UTF-8 text: it has the byte 0x{byte:02x} where none such can stand; "
            "convert the file to UTF-8, as by iconv"
        ) from error


def _plain_text(file: Path) -> str:
    data = file.read_bytes()
    if b"\0" in data:
        raise Mistake(f"{str(file)!r} is not text: it holds NUL bytes; convert it to UTF-8 text or leave it out")
    return _decoded(data, file, 1)


def _json_lines(name: str, file: Path, reading: Reading, remarks: Remarks) -> Iterator[Callable[[], Row]]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield lambda line=line, number=number: row_of(
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
        raise Mistake(f"{where} is not JSON ({error.msg}); a .jsonl file has one object a line") from error
    except RecursionError as error:
        raise Mistake(f"{where} is nested too deeply to be read; a .jsonl file has one object a line") from error
    except _TwiceError as error:
        raise Mistake(f"{where} {error}") from None
    except ValueError as error:  # Python reads no integer of thousands of digits
        raise Mistake(f"{where} has a number of too many digits to be read; write it as a string") from error
    if not isinstance(row, dict):
        raise Mistake(f"{where} is a JSON {type(row).__name__}, not an object; a .jsonl file has one object a line")
    return row


def _delimited_rows(
    name: str, file: Path, separator: str, reading: Reading, remarks: Remarks
) -> Iterator[Callable[[], Row]]:
    used = tuple(filter(None, (reading.text_field, reading.domain_field)))  # a column without a name is no domain
    for line, fields in delimited_rows(file, separator, used):
        yield lambda line=line, fields=fields: row_of(
            f"{name}:{line}", fields(), f"{file} line {line}", reading, remarks
        )


def _parquet_rows(name: str, file: Path, reading: Reading, remarks: Remarks) -> Iterator[Callable[[], Row]]:
    try:
        table = pyarrow.parquet.ParquetFile(file)
    except pyarrow.ArrowInvalid as error:
        raise Mistake(f"{str(file)!r} is no parquet file; check it or leave it out") from error
    with table:
        names = table.schema_arrow.names
        if reading.text_field not in names:
            raise _no_field(names, reading.text_field, str(file))
        used = [field for field in (reading.text_field, reading.domain_field) if field in names]
        for field in used:
            if names.count(field) > 1:
                raise Mistake(f"{str(file)!r} has {names.count(field)} columns {field!r}; leave one of them in it")
        remarks.unused_fields.update(field for field in names if field not in used)
        number = 0
        for batch in _batches(table, used, file):
            for row in range(batch.num_rows):
                cells = {field: batch.column(field)[row] for field in used}
                where = f"{file} row {number}, counted from 0"
                yield lambda cells=cells, number=number, where=where: row_of(
                    f"{name}:{number}", _of_cells(cells, where), where, reading, remarks
                )
                number += 1


def _batches(table: pyarrow.parquet.ParquetFile, fields: list[str], file: Path) -> Iterator[pyarrow.RecordBatch]:
    try:
        yield from table.iter_batches(columns=fields)
    except (pyarrow.ArrowException, OSError) as error:
        raise Mistake(f"{str(file)!r} is a damaged parquet file; check it or leave it out") from error


def _of_cells(cells: Mapping[str, Any], where: str) -> dict[str, Any]:
    try:
        return {field: cell.as_py() for field, cell in cells.items()}
    except UnicodeDecodeError as error:
        raise Mistake(f"{where} is not UTF-8 text; write it as UTF-8, or leave it out") from error


def row_of(name: str, fields: Mapping[str, Any], where: str, reading: Reading, remarks: Remarks) -> Row:
    if reading.text_field not in fields:
        raise _no_field(fields, reading.text_field, where)
    remarks.unused_fields.update(field for field in fields if field not in (reading.text_field, reading.domain_field))
    text = _string(fields[reading.text_field], reading.text_field, where, "text_field")
    if "\0" in text:
        raise Mistake(
            f"{where}: field {reading.text_field!r} is not text: it holds NUL; take it out or leave the row out"
        )
    domain = fields.get(reading.domain_field) if reading.domain_field else None
    written = "" if domain is None else _string(domain, reading.domain_field, where, "domain_field")
    if len(written) > MOST_DOMAIN_CHARACTERS:
        raise Mistake(f"{where}: {too_long(written)}; shorten it, or set domain_field")
    return Row(name, text, written)


def too_long(domain: str) -> str:
    return f"its domain has {len(domain):,} characters, and {MOST_DOMAIN_CHARACTERS} is the most"


def _no_field(fields: Iterable[str], text_field: str, where: str) -> ValueError:
    names = some(repr_of(field)[1:-1] for field in fields)
    return Mistake(f"{where} has no field {text_field!r} (it has: {names or 'none'}); set text_field")


def _string(value: Any, field: str, where: str, setting: str) -> str:
    if value is None:
        raise Mistake(f"{where}: field {field!r} is null; fill it, or leave such rows out by unreadable=skip")
    if not isinstance(value, str):
        raise Mistake(f"{where}: field {field!r} is {type(value).__name__}, not a string; set {setting}")
    # JSON can spell half a surrogate pair, which no UTF-8 can hold.
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
