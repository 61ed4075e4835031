"""What each model of the chain needs."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from pipeline.figures.style import AMBER, PINK, SLATE, TEAL, VIOLET, png

LEVELS = [(AMBER, "--"), *((colour, line) for colour in (VIOLET, PINK, SLATE) for line in (":", "--"))]


def chain_costs(
    names: Sequence[str],
    bits_per_byte: Sequence[float],
    levels: Mapping[str, float],
    expert_bytes: Sequence[float],
    *,
    width: float,
    dots_per_inch: int,
) -> bytes:
    """What each model of the chain needs, bits a byte of text and bytes an expert.

    The levels are what others need, at most seven of them: the dense baseline, then compressors in pairs.
    """

    def draw(figure: Figure) -> None:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        above.plot(names, bits_per_byte, "o-", color=TEAL, label="chain")
        for (name, bits), (colour, line) in zip(levels.items(), LEVELS, strict=False):
            above.axhline(bits, color=colour, linestyle=line, label=f"{name}: {bits:.4g}")
        above.set_ylabel("held-out bits a byte")
        above.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2, frameon=False, ncols=4)
        below.bar(names, expert_bytes, color=SLATE)
        below.set_ylabel("bytes an expert")
        below.tick_params(axis="x", labelrotation=20)

    return png(draw, width=width, height=0.75 * width, dots_per_inch=dots_per_inch)
