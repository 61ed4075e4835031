"""A table as a file of comma-separated values, the same bytes on every system."""

import csv
import io
from collections.abc import Iterable, Sequence


def csv_file(head: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    """A line for the head and for each row; floats by their repr."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return file.getvalue().encode()
