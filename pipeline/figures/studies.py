"""Differences between the arms of a study, with their intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from pipeline.figures.style import AMBER, COLOURS, SLATE, TEAL, VIOLET, heading, png


def intervals(title: str, values: Mapping[str, tuple[float, float]], unit: str) -> bytes:
    """Means with the half widths of their intervals, one under the other, beside zero."""

    def draw(figure: Figure) -> None:
        heading(figure, title)
        axes = figure.subplots()
        places = range(len(values))
        means, half_widths = zip(*values.values(), strict=True)
        axes.axvline(0, color=SLATE, linewidth=1)
        axes.errorbar(means, places, xerr=half_widths, fmt="o", color=TEAL, ecolor=AMBER, capsize=4)
        axes.set_yticks(places, list(values))
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.grid(visible=True, axis="x")
        axes.set_xlabel(unit)

    return png(draw, height=1.4 + 0.32 * len(values))


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """A point of a line: where it stands, and the half width of its interval."""

    x: float
    y: float
    half_width: float


def lines_by_size(title: str, panels: Mapping[str, Mapping[str, Sequence[Measurement]]], y_label: str) -> bytes:
    """Panels of lines over sizes on a logarithmic axis, which the panel's name labels; the same lines in each."""

    def draw(figure: Figure) -> None:
        heading(figure, title)
        all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (x_label, lines) in zip(all_axes, panels.items(), strict=True):
            for (name, points), colour, marker in zip(lines.items(), (*COLOURS, VIOLET), "os^D", strict=False):
                axes.errorbar(
                    [point.x for point in points], [point.y for point in points],
                    yerr=[point.half_width for point in points], color=colour, marker=marker, capsize=3, label=name,
                )  # fmt: skip
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(EngFormatter(unit="B", places=1))
            axes.tick_params(axis="x", labelrotation=45)
            axes.set_xlabel(x_label)
        all_axes[0].set_ylabel(y_label)
        figure.legend(*all_axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)

    return png(draw, height=4.2)
