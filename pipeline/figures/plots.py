"""Pictures: numbers in, a PNG out, all of one look and of the same bytes for the same numbers.

They are on opaque white, for pages light and dark, and about as wide as a lineage card shows them.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullFormatter, PercentFormatter
from numpy.typing import NDArray

from pipeline.training.training_curve import Curve
from pipeline.transforms.table_error import TableErrors

COLOURS = TEAL, AMBER, SLATE = "#0d9488", "#b45309", "#94a3b8"
VIOLET, PINK = "#7c3aed", "#be185d"
MOST_GROUPS = 10
"""Of bars; the smallest share one."""
LONGEST_NAME = 20
"""Characters. Longer ones would leave no room for the bars."""
_STYLE = mpl.RcParams(
    {
        "axes.axisbelow": True,
        "axes.edgecolor": "#64748b",
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.spines.right": False,
        "axes.spines.top": False,
        "figure.titlesize": 11,
        "figure.titleweight": "bold",
        "grid.color": "#e2e8f0",
        "legend.edgecolor": "#e2e8f0",
        "legend.fontsize": 9,
        "xtick.labelsize": 9,
        "ytick.labelsize": 9,
    }
)


def png(draw: Callable[[Figure], None], *, width: float = 7.5, height: float = 3.6, dots_per_inch: int = 100) -> bytes:
    """What `draw` puts on a figure of that many inches: no date, no version, nobody's own fonts and style."""
    with mpl.rc_context(mpl.rcParamsDefault), mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=dots_per_inch, metadata={"Software": None})
    return file.getvalue()


def heading(figure: Figure, text: str) -> None:
    figure.suptitle(text, x=0.01, horizontalalignment="left")


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


def grouped_bars(
    axes: Axes,
    groups: Sequence[str],
    series: Mapping[str, Sequence[float]],
    *,
    labels: Sequence[Sequence[str]] | None = None,
) -> None:
    """The series side by side in every group, each bar with its label on it."""
    width = 0.84 / len(series)
    for number, ((name, heights), colour) in enumerate(zip(series.items(), COLOURS, strict=False)):
        middles = [group + (number - (len(series) - 1) / 2) * width for group in range(len(groups))]
        bars = axes.bar(middles, heights, 0.94 * width, color=colour, label=name)
        if labels is not None:
            axes.bar_label(bars, labels[number], fontsize=8)
    axes.set_xticks(range(len(groups)), groups)


def _cut(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


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
