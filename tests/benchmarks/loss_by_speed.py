"""The picture of models by their speed and their loss."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from pipeline.figures.style import AMBER, TEAL, heading, png


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelPoint:
    """A model by what it costs and what it is worth."""

    name: str
    microseconds: float
    """A token, of all its expert layers."""
    loss_nats: float


def loss_by_speed(title: str, points: Sequence[ModelPoint]) -> bytes:
    """One point a model: to the left is faster, below is better."""

    def draw(figure: Figure) -> None:
        heading(figure, title)
        axes = figure.subplots()
        colours = [TEAL if point.name.startswith("symbols") else AMBER for point in points]
        axes.scatter([p.microseconds for p in points], [p.loss_nats for p in points], c=colours, s=50, zorder=3)
        middle = sum(point.microseconds for point in points) / len(points)
        for point in points:
            side = -1 if point.microseconds > middle else 1  # the name stays within the picture
            axes.annotate(
                point.name, (point.microseconds, point.loss_nats), xytext=(6 * side, 6), textcoords="offset points",
                fontsize=8, ha="right" if side < 0 else "left",
            )  # fmt: skip
        axes.margins(x=0.25, y=0.2)
        axes.grid(visible=True, axis="both")
        axes.set_xlabel("us a token in all expert layers, routers included")
        axes.set_ylabel("held-out loss, nats a token")

    return png(draw)
