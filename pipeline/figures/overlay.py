"""The training curves of several artifacts, one over the other."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from pipeline.figures.style import COLOURS, PINK, VIOLET, heading, png
from pipeline.training.training_curve import Curve

_COLOURS = (*COLOURS, VIOLET, PINK)
_LINES = ("-", "--", ":", "-.")
"""After as many curves as there are colours, the next kind of line."""


def overlaid(title: str, curves: Mapping[str, Curve], numbers: Sequence[str]) -> bytes:
    """A panel for each number against the tokens seen, in it a line for each curve that has it, by its label."""

    def draw(figure: Figure) -> None:
        heading(figure, title)
        panels = figure.subplots(len(numbers), 1, squeeze=False)[:, 0]
        for axes, number in zip(panels, numbers, strict=True):
            _draw(axes, curves, number)
        panels[-1].set_xlabel("tokens seen")

    return png(draw, height=1.0 + 2.9 * len(numbers))


def _draw(axes: Axes, curves: Mapping[str, Curve], number: str) -> None:
    for place, (label, curve) in enumerate(curves.items()):
        points = [point for point in curve if number in point.numbers]
        if points:
            axes.plot(
                [point.tokens for point in points],
                [point.numbers[number] for point in points],
                color=_COLOURS[place % len(_COLOURS)],
                linestyle=_LINES[place // len(_COLOURS) % len(_LINES)],
                marker="o" if len(points) == 1 else None,
                label=label,
            )
    axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    axes.set_ylabel(number)
    axes.legend()
