"""The curve of a training."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from pipeline.figures.style import AMBER, SLATE, TEAL, heading, png
from pipeline.training.training_curve import Curve


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One number of a training curve, and what it is seen beside."""

    number: str
    label: str
    """What it is, with its unit."""
    held_out: float | None = None
    """The same after training, on text that was held out."""
    baseline: tuple[str, float] | None = None
    """The same of something that has learnt less, and what that is."""
    from_zero: bool = True


def training_curve(title: str, curve: Curve, panels: Sequence[Panel]) -> bytes:
    """Panels side by side against the tokens seen; one that nothing is known of is left out."""
    reported = {name for point in curve for name in point.numbers}
    shown = [panel for panel in panels if panel.number in reported or panel.held_out is not None]

    def draw(figure: Figure) -> None:
        heading(figure, title)
        for axes, panel in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
            _draw_panel(axes, curve, panel, legend_columns=3 if len(shown) == 1 else 1)

    return png(draw, height=3.9)


def _draw_panel(axes: Axes, curve: Curve, panel: Panel, *, legend_columns: int) -> None:
    points = [point for point in curve if panel.number in point.numbers]
    values = [point.numbers[panel.number] for point in points]
    marker = "o" if len(points) == 1 else None
    axes.plot([point.tokens for point in points], values, color=TEAL, marker=marker, label="training")
    levels = []
    if panel.held_out is not None:
        levels.append(("held out, at the end", panel.held_out, AMBER, "--"))
    if panel.baseline is not None:
        levels.append((*panel.baseline, SLATE, ":"))
    for name, value, colour, line in levels:
        axes.axhline(value, color=colour, linestyle=line, linewidth=2, label=f"{name}: {value:.4g}")
    if panel.from_zero:
        axes.set_ylim(bottom=min(0.0, *values, *(value for _, value, *_ in levels)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    axes.set_xlabel("tokens seen")
    axes.set_ylabel(panel.label)
    # Above: a curve may go anywhere.
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2, frameon=False, ncols=legend_columns)
