"""Lines of a terminal of 80 columns."""

from rich.cells import cell_len, chop_cells

COLUMNS = 80
_CUT = "…"


def fitted(text: str, columns: int = COLUMNS) -> str:
    """The text, its end left out where it takes more columns."""
    if cell_len(text) <= columns:
        return text
    return (chop_cells(text, columns - 1) or [""])[0] + _CUT


def padded(text: str, columns: int) -> str:
    """The text in exactly so many columns."""
    cut = fitted(text, columns)
    return cut + " " * (columns - cell_len(cut))
