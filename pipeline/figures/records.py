"""What a record of activations holds: how often experts fire, how many a token, and what was left out."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, PercentFormatter

from pipeline.figures.style import AMBER, SLATE, heading, png

_POINTS = 200
"""Drawn of a curve, however many experts there are."""


def firing_and_omission(
    title: str,
    counts: Sequence[Sequence[int]],
    fired: Sequence[Sequence[int]],
    omitted: Sequence[float],
    *,
    kept: int,
) -> bytes:
    """A line a block: tokens of each expert by its rank, and how many experts fire on a token; the share left out.

    `fired` counts, for each block, the tokens on which 0, 1, ... experts fire, of which `kept` are kept.
    """

    def draw(figure: Figure) -> None:
        heading(figure, title)
        left, middle, right = figure.subplots(1, 3, width_ratios=(4, 4, 3))
        blocks = len(counts)
        for block, (of_experts, of_tokens) in enumerate(zip(counts, fired, strict=True)):
            shade = {"color": (0.05, 0.58, 0.53, 0.35 + 0.65 * (block + 1) / blocks), "linewidth": 1.2}
            ranked = sorted((count for count in of_experts if count), reverse=True)
            places = _places(len(ranked))
            left.plot([place + 1 for place in places], [ranked[place] for place in places], **shade)
            total = max(1, sum(of_tokens))
            middle.step(range(len(of_tokens)), [count / total for count in of_tokens], where="mid", **shade)
        left.set_xscale("log")
        left.set_yscale("log")
        left.set_xlabel("expert, by rank")
        left.set_ylabel("tokens it is kept on")
        left.xaxis.set_major_formatter(EngFormatter(sep=""))
        left.yaxis.set_major_formatter(EngFormatter(sep=""))
        middle.axvline(kept, color=SLATE, linestyle=":", linewidth=1, label=f"{kept} kept")
        middle.set_xlabel("experts that fire on a token")
        middle.set_ylabel("tokens")
        middle.yaxis.set_major_formatter(PercentFormatter(xmax=1))
        middle.legend()
        right.bar(range(blocks), omitted, color=AMBER)
        right.set_xlabel("block")
        right.set_ylabel("contributions left out")
        right.yaxis.set_major_formatter(PercentFormatter(xmax=1))
        right.set_ylim(bottom=0)

    return png(draw)


def _places(number: int) -> list[int]:
    """Of so many ranks, those to draw: all of few, of many as many in each stretch of a logarithm."""
    if number <= _POINTS:
        return list(range(number))
    return sorted({min(number - 1, round(number ** (point / (_POINTS - 1))) - 1) for point in range(_POINTS)})
