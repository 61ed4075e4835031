"""What must hold of the files that show what a stage did."""

import csv
import io

LARGEST_PICTURE = 100_000
"""Bytes: a lineage card holds the picture as a data URI."""


def assert_picture(data: bytes) -> None:
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert 4_000 < len(data) < LARGEST_PICTURE


def assert_training_files(files, *, steps, tokens, names) -> None:
    """A picture, and a csv of these columns that ends with the last step."""
    assert files.keys() == {"plot.png", "training.csv"}
    assert_picture(files["plot.png"])
    rows = list(csv.DictReader(io.StringIO(files["training.csv"].decode())))
    assert list(rows[-1]) == ["step", "tokens", *names]
    assert (rows[-1]["step"], rows[-1]["tokens"]) == (str(steps), str(tokens))
    assert all(isinstance(float(value), float) for row in rows for value in row.values() if value)
