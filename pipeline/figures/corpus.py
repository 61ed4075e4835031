"""What a corpus is a mix of."""

from collections.abc import Mapping

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, PercentFormatter

from pipeline.figures.style import AMBER, TEAL, drawable, heading, png

MOST_GROUPS = 10
"""Of bars; the smallest share one."""
LONGEST_NAME = 20
"""Characters. Longer ones would leave no room for the bars."""


def corpus_mix(title: str, train_bytes: Mapping[str, int], held_out_bytes: Mapping[str, int]) -> bytes:
    """Each domain's share of the text of either split: whether what is held out is of the same mix."""
    domains = sorted({**train_bytes, **held_out_bytes}, key=lambda d: -train_bytes.get(d, 0) - held_out_bytes.get(d, 0))
    groups = [[domain] for domain in domains]
    if len(domains) > MOST_GROUPS:
        groups = [*groups[: MOST_GROUPS - 1], domains[MOST_GROUPS - 1 :]]
    names = [_cut(group[0]) if len(group) == 1 else f"{len(group)} others" for group in groups]
    show = EngFormatter(unit="B", places=1)

    def draw(figure: Figure) -> None:
        heading(figure, title)
        axes = figure.subplots()
        splits = (-0.2, TEAL, "train", train_bytes), (0.2, AMBER, "held out", held_out_bytes)
        for offset, colour, split, counts in splits:
            sizes = [sum(counts.get(domain, 0) for domain in group) for group in groups]
            shares = [size / max(1, sum(sizes)) for size in sizes]
            places = [place + offset for place in range(len(groups))]
            bars = axes.barh(places, shares, 0.38, color=colour, label=f"{split}, {show(sum(sizes))}")
            axes.bar_label(bars, [show(size) for size in sizes], padding=3, fontsize=8)
        axes.set_yticks(range(len(groups)), names)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.grid(visible=True, axis="x")
        axes.xaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
        axes.set_xlabel("share of the split's bytes")
        axes.legend(loc="lower right")

    return png(draw)


def _cut(name: str) -> str:
    name = drawable(name)
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
