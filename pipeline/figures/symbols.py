"""What symbols are made of, what they recover, and what shorter ones cost."""

from collections.abc import Mapping, Sequence

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
