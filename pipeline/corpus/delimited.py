"""Rows of text out of CSV and TSV files: a header that names the columns, then a document a row.

RFC 4180: fields in double quotes may hold line ends, separators and doubled quotes. The separator is the one of comma,
semicolon and tab by which the header names the field of text.
"""

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kernels.errors import Mistake
from pipeline.corpus.remarks import repr_of

SUFFIXES = frozenset({".csv", ".tsv"})
_SEPARATORS = (",", ";", "\t")
# A field may be a whole book; the module's own bound is 128 KiB.
csv.field_size_limit(2**31 - 1)


def separator_of(file: Path, text_field: str) -> str | None:
    """By which the header has a column of this name; None where it has none by any."""
    return next((separator for separator in _SEPARATORS if text_field in _header(file, separator)), None)


def columns_of(file: Path) -> list[str]:
    """The header by that separator which finds most columns in it."""
    return max((_header(file, separator) for separator in _SEPARATORS), key=len)


def delimited_rows(
    file: Path, separator: str, used: tuple[str, ...]
) -> Iterator[tuple[int, Callable[[], dict[str, Any]]]]:
    """(line that the row ends in, what reads it as a field by column).

    Mistake, when a row is read: other than the header's number of columns, no UTF-8, a quote that nothing closes.
    """
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        rows = csv.reader(lines, delimiter=separator, strict=True)
        header = [name.strip() for name in next(rows)]
        for name in used:
            if header.count(name) > 1:
                raise Mistake(f"{str(file)!r} has {header.count(name)} columns {name!r}; leave one of them in it")
        while True:
            try:
                row = next(rows, None)
            except csv.Error as error:
                # What follows a quote that is not closed is no row any more.
                yield rows.line_num, lambda line=rows.line_num, why=error: _refuse(file, line, why)
                return
            if row is None:
                return
            if row:
                yield rows.line_num, lambda row=row, line=rows.line_num: _fields(row, header, f"{file} line {line}")


def _header(file: Path, separator: str) -> list[str]:
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        try:
            return [name.strip() for name in next(csv.reader(lines, delimiter=separator, strict=True), [])]
        except csv.Error:
            return []


def _fields(row: list[str], header: list[str], where: str) -> dict[str, Any]:
    if len(row) != len(header):
        raise Mistake(
            f"{where} ends a row of {len(row)} fields, and the header has {len(header)}; put a field with separators "
            "or line ends in it into double quotes"
        )
    for name, field in zip(header, row, strict=True):
        if (byte := next((ord(letter) & 0xFF for letter in field if "\udc80" <= letter <= "\udcff"), None)) is not None:
            raise Mistake(
                f"{where} ends a row that is not UTF-8 text: field {repr_of(name)} has the byte 0x{byte:02x} where no "
                "such byte can stand; convert the file to UTF-8, as by iconv"
            )
    return dict(zip(header, row, strict=True))


def _refuse(file: Path, line: int, why: csv.Error) -> dict[str, Any]:
    raise Mistake(f"{file} line {line} is not CSV ({why}); check its double quotes")
