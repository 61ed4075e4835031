"""What symbols are made of, what they recover, and what they cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from pipeline.figures.style import AMBER, SLATE, TEAL, grouped_bars, heading, png


def symbol_tiers(
    title: str, tiers: Sequence[str], shares: Mapping[str, Sequence[float]], recovered: Mapping[str, float]
) -> bytes:
    """Shares by tier, and the loss that the symbols recover over axis biases alone, which stand first, beside that of
    their controls."""

    def draw(figure: Figure) -> None:
        heading(figure, title)
        left, right = figure.subplots(1, 2, width_ratios=(5, 3))
        grouped_bars(left, tiers, shares, labels=[[f"{100 * share:.1f}" for share in of] for of in shares.values()])
        left.yaxis.set_major_formatter(PercentFormatter(xmax=1))
        left.legend()
        bars = right.bar(list(recovered), list(recovered.values()), color=[TEAL, *[SLATE] * (len(recovered) - 1)])
        right.bar_label(bars, [f"{value:.3f}" for value in recovered.values()], fontsize=9)
        right.axhline(0, color=SLATE, linewidth=0.8)
        right.margins(y=0.12)  # room for the number of a bar below 0
        right.tick_params(axis="x", labelsize=8)
        right.set_ylabel("loss recovered, over axis biases alone")

    return png(draw)


def length_against_fidelity(
    title: str, bits: Sequence[float], increase: Sequence[tuple[float, float]], readable: Sequence[float], chosen: float
) -> bytes:
    """What shorter descriptions cost, loss with its standard error above, and how much is then readable, below.

    `chosen` are the bits of the model that was kept.
    """

    def draw(figure: Figure) -> None:
        heading(figure, title)
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        above.errorbar(bits, [mean for mean, _ in increase], [error for _, error in increase], fmt="o-", color=TEAL)
        above.set_ylabel("loss increase,\nnats a token")
        below.plot(bits, readable, "o-", color=AMBER)
        below.set_ylabel("output energy\nin T1 to T3")
        below.yaxis.set_major_formatter(PercentFormatter(xmax=1))
        below.set_ylim(0, 1.05)
        below.set_xlabel("description, bits an expert")
        for axes in (above, below):
            axes.axvline(chosen, color=SLATE, linestyle=":", label="this model")
        above.legend()

    return png(draw, height=4.6)


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
