"""What quantization does to the expert tables."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter
from numpy.typing import NDArray

from pipeline.figures.style import COLOURS, grouped_bars, heading, png
from pipeline.transforms.table_error import TableErrors


def quantization_error(title: str, tables: Mapping[str, TableErrors]) -> bytes:
    """Signal to noise by block, and how the errors of single rows are spread."""

    def draw(figure: Figure) -> None:
        heading(figure, title)
        left, right = figure.subplots(1, 2)
        by_block = {name: table.sqnr_db for name, table in tables.items()}
        grouped_bars(left, [str(block) for block in range(max(map(len, by_block.values())))], by_block)
        left.set_xlabel("block")
        left.set_ylabel("signal to noise, dB")
        _draw_spread(right, {name: table.row_error_E.numpy() for name, table in tables.items()})
        right.set_xlabel("error of a row, share of its norm")
        right.set_ylabel("share of the rows")
        figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=len(tables))

    return png(draw)


def _draw_spread(axes: Axes, errors: Mapping[str, NDArray[np.float64]]) -> None:
    """A histogram of each on a logarithmic axis, on which 0 stands at 1e-6."""
    everything = np.concatenate(list(errors.values())).clip(min=1e-6)
    least, most = everything.min(), everything.max()
    edges = np.geomspace(0.9 * least, 1.1 * most, 81)
    for (name, error), colour in zip(errors.items(), COLOURS, strict=True):
        shares = np.histogram(error.clip(min=1e-6), edges)[0] / len(error)
        axes.stairs(shares, edges, color=colour, linewidth=1.5, label=name)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if most > 10 * least else (1, 1.5, 2, 3, 5, 7)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}%"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
