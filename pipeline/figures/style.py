"""Pictures: numbers in, a PNG out, all of one look and of the same bytes for the same numbers.

They are on opaque white, for pages light and dark, and about as wide as a lineage card shows them.
"""

import io
from collections.abc import Callable, Mapping, Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font

COLOURS = TEAL, AMBER, SLATE = "#0d9488", "#b45309", "#94a3b8"
VIOLET, PINK = "#7c3aed", "#be185d"
_STYLE = mpl.RcParams(
    {
        "axes.axisbelow": True,
        "axes.edgecolor": "#64748b",
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.spines.right": False,
        "axes.spines.top": False,
        "figure.titlesize": 11,
        "figure.titleweight": "bold",
        "grid.color": "#e2e8f0",
        "legend.edgecolor": "#e2e8f0",
        "legend.fontsize": 9,
        "xtick.labelsize": 9,
        "ytick.labelsize": 9,
    }
)


def png(draw: Callable[[Figure], None], *, width: float = 7.5, height: float = 3.6, dots_per_inch: int = 100) -> bytes:
    """What `draw` puts on a figure of that many inches: no date, no version, nobody's own fonts and style."""
    with mpl.rc_context(mpl.rcParamsDefault), mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=dots_per_inch, metadata={"Software": None})
    return file.getvalue()


def drawable(text: str) -> str:
    """The text, with the numbers of characters that the font of pictures has none of: of CJK, for one."""
    known = get_font(findfont("DejaVu Sans")).get_charmap()  # matplotlib's own, and its default
    return "".join(one if ord(one) in known else f"\\u{ord(one):04x}" for one in text)


def heading(figure: Figure, text: str) -> None:
    figure.suptitle(text, x=0.01, horizontalalignment="left")


def grouped_bars(
    axes: Axes,
    groups: Sequence[str],
    series: Mapping[str, Sequence[float]],
    *,
    labels: Sequence[Sequence[str]] | None = None,
) -> None:
    """The series side by side in every group, each bar with its label on it."""
    width = 0.84 / len(series)
    for number, ((name, heights), colour) in enumerate(zip(series.items(), COLOURS, strict=False)):
        middles = [group + (number - (len(series) - 1) / 2) * width for group in range(len(groups))]
        bars = axes.bar(middles, heights, 0.94 * width, color=colour, label=name)
        if labels is not None:
            axes.bar_label(bars, labels[number], fontsize=8)
    axes.set_xticks(range(len(groups)), groups)
