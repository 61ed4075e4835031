"""How much of what experts do together is joint codes: by block, and along the chain."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from pipeline.figures.style import AMBER, PINK, SLATE, TEAL, VIOLET, heading, png

Share = tuple[float, ...]
"""A value and the ends of its interval."""
COLOURS = (TEAL, AMBER, VIOLET, PINK, SLATE)
MARKERS = "os^Dv"


def shares_by_block(title: str, names: Sequence[str], series: Mapping[str, Sequence[Share]]) -> bytes:
    """Points with their intervals, the series beside each other at every block."""

    def draw(figure: Figure) -> None:
        heading(figure, title)
        axes = figure.subplots()
        _points(axes, names, series)
        axes.set_ylabel("of co-active pairs")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=5)

    return png(draw)


def shares_along_chain(
    title: str,
    names: Sequence[str],
    above: Mapping[str, Sequence[Share]],
    below: Mapping[str, Sequence[Share]],
    *,
    width: float,
    dots_per_inch: int,
) -> bytes:
    """Two panels over the same models: shares of co-activity, and what is left of each expert."""

    def draw(figure: Figure) -> None:
        heading(figure, title)
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        _points(upper, names, above)
        upper.set_ylabel("of co-active pairs")
        upper.legend(loc="upper right", ncols=2)
        _points(lower, names, below)
        lower.set_ylabel("of experts")
        lower.legend(loc="lower left", ncols=2)
        lower.tick_params(axis="x", labelrotation=20)

    return png(draw, width=width, height=0.72 * width, dots_per_inch=dots_per_inch)


def _points(axes: Axes, names: Sequence[str], series: Mapping[str, Sequence[Share]]) -> None:
    """A share without a value is NaN and leaves a gap."""
    width = 0.7 / max(1, len(series))
    for number, (label, shares) in enumerate(series.items()):
        places = [place + (number - (len(series) - 1) / 2) * width for place in range(len(names))]
        value = [share[0] for share in shares]
        errors = [[share[0] - share[1] for share in shares], [share[2] - share[0] for share in shares]]
        axes.errorbar(
            places, value, yerr=[[max(0.0, error) for error in side] for side in errors], fmt=MARKERS[number],
            color=COLOURS[number], capsize=3, markersize=5, label=label,
        )  # fmt: skip
    axes.set_xticks(range(len(names)), names)
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    axes.set_ylim(bottom=0)
