"""Columns: all in a file, as many as fit in a terminal; a grid of values that is as wide as it is told."""

import io
import sys

import pytest

from artifacts.layout import aligned, grid, reading_width, terminal_width

ROWS = [("train-monet-1", "monet", "4.1 B", "2.25"), ("b", "corpus", "12 B", "")]


def test_columns_stand_one_below_the_other():
    assert aligned(ROWS) == "train-monet-1  monet   4.1 B  2.25\nb              corpus  12 B"


@pytest.mark.parametrize(
    ("width", "first"),
    [
        (34, "train-monet-1  monet   4.1 B  2.25"),
        (33, "train-monet-1  monet   2.25"),
        (26, "train-monet-1  2.25"),
        (5, "train-monet-1  2.25"),  # no more is optional
    ],
)
def test_optional_columns_go_in_their_order_until_it_fits(width, first):
    assert aligned(ROWS, width=width, optional=(2, 1)).splitlines()[0] == first


def test_a_line_break_in_a_cell_makes_no_line():
    assert aligned([("a\nb", "c")]) == "a\\nb  c"


def test_a_grid_has_its_values_to_the_right_below_their_heads():
    assert grid(("metrics", "a", "b"), [("loss", "2.5", "2.25"), ("seed", "0", "")], width=80) == (
        "metrics       a       b\n"
        "loss        2.5    2.25\n"
        "seed          0"
    )  # fmt: skip


def test_a_name_without_room_has_a_line_of_its_own_and_a_value_that_is_too_long_is_cut():
    text = grid(("m", "a", "b"), [("x" * 20, "123456789", "1"), ("y", "0" * 40, "2")], width=30)
    assert text.splitlines() == [
        "m" + "  " + "a".rjust(12) + "  " + "b".rjust(12),
        "x" * 20,
        " " + "  " + "123456789".rjust(12) + "  " + "1".rjust(12),
        "y" + "  " + "0" * 11 + "…" + "  " + "2".rjust(12),
    ]
    assert max(map(len, text.splitlines())) <= 30


def test_a_file_has_no_width_and_is_read_in_80_columns(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert terminal_width() is None
    assert reading_width() == 80
    monkeypatch.setenv("COLUMNS", "120")
    assert reading_width() == 120
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert terminal_width() == 120
