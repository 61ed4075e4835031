"""All models of the chain -> report: one table and one picture of what each step cost and saved.

Compressors stand beside them, and a sentence wherever two figures that are set side by side are not of like things.
"""

import math
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from artifacts.columns import REPORT, columns
from artifacts.markdown import table
from pipeline.figures.chain import chain_costs
from pipeline.report import Report, ReportSpec, Row
from pipeline.stage import Measured, Output, StageConfig, stage

BITS = "held_out_bits_per_byte"
PRIMED = "ppmd_primed_held_out_bits_per_byte"
COMPRESSORS = (
    ("PPMd-6", "ppmd_held_out_bits_per_byte", PRIMED),
    ("PPMd-16", "ppmd16_held_out_bits_per_byte", "ppmd16_primed_held_out_bits_per_byte"),
    ("xz", "xz_held_out_bits_per_byte", "xz_primed_held_out_bits_per_byte"),
)
"""Name, and a corpus's metrics of it: cold, and primed with train text."""
ALIKE = 0.01
"""By which share two counts may differ and still be called the same."""


class ReportConfig(StageConfig):
    """How the report is drawn; what it says comes from its inputs."""

    width_inches: float = Field(default=8.0, ge=3, le=40, description="Width of the picture in inches, 3 to 40.")
    dots_per_inch: int = Field(default=120, ge=50, le=600, description="Resolution of the picture, 50 to 600.")


@stage(name="report", version=3)
def report(
    config: ReportConfig,
    *,
    corpus: Annotated[Measured, "corpus"],
    dense: Annotated[Measured, "dense"],
    monet: Annotated[Measured, "monet"],
    peer: Annotated[Measured, "peer"],
    int8: Annotated[Measured, "peer-int8"],
    int4: Annotated[Measured, "peer-int4"],
    tuned: Annotated[Measured, "peer-int4"],
    symbols: Annotated[Measured, "symbols"],
) -> Output[Report]:
    """Corpus and all models -> report: bits a byte beside compressors', loss against the parent, bytes an expert."""
    rows = (
        _row("dense", dense),
        _row("Monet", monet),
        _row("PEER", peer),
        _row("PEER int8", int8),
        _row("PEER int4", int4),
        _row("int4 fine-tuned", tuned),
        _row("symbols", symbols),
    )
    files = {"report.md": _page(rows, corpus).encode(), "plot.png": _picture(rows, corpus, config)}
    return Output(value=Report(ReportSpec(rows=rows), files), metrics=_summary(rows, corpus))


def _row(name: str, measured: Measured) -> Row:
    return Row(name=name, id=measured.id, kind=measured.kind, seconds=measured.seconds, metrics=dict(measured.metrics))


def _summary(rows: Sequence[Row], corpus: Measured) -> dict[str, float]:
    """Bits a byte of dense, Monet and the last model, against each other and against primed PPMd-6."""
    first, monet, last = rows[0].metrics[BITS], rows[1].metrics.get(BITS), rows[-1].metrics.get(BITS)
    summary = {"dense_bits_per_byte": first, "seconds_of_all_stages": math.fsum(row.seconds for row in rows)}
    if monet is not None:
        summary |= {"monet_bits_per_byte": monet, "dense_bits_per_byte_over_monet": first - monet}
        primed = corpus.metrics.get(PRIMED)
        if primed is not None:
            summary |= {"monet_bits_per_byte_over_primed_ppmd": monet - primed}
    if last is None:
        return summary
    return {**summary, "symbols_bits_per_byte": last, "bits_per_byte_increase_over_dense": last - first}


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _page(rows: Sequence[Row], corpus: Measured) -> str:
    head = ("model", *(column.heading for column in columns(REPORT)), "seconds")
    made_of = "\n".join(f"- {name}: `{id}`" for name, id in (("corpus", corpus.id), *((r.name, r.id) for r in rows)))
    return (
        "# From text to symbols\n\n"
        f"{table(head, [_cells(row) for row in rows], numbers_from=1)}\n\n"
        "Losses are over the held-out split; differences are paired, token by token, with the model that each was "
        "made from: PEER with Monet, int8 and int4 with PEER, the fine-tuned int4 with the float PEER, symbols with "
        "the fine-tuned int4. `recovered` saturates on small models: read it beside Δ and KL. `train tokens` are those "
        "that the stage itself took.\n\n"
        f"{_beside_compressors(corpus)}"
        f"{_unlike(rows, corpus)}"
        "![bits a byte and bytes an expert along the chain](plot.png)\n\n"
        f"## Measured\n\n{made_of}\n"
    )


def _beside_compressors(corpus: Measured) -> str:
    """A table of compressors, or nothing of a corpus that was prepared before they were measured."""
    found = corpus.metrics
    known = [names for names in COMPRESSORS if found.keys() >= set(names[1:])]
    if not known:
        return ""
    head = ("compressor", "cold, bits/byte", "primed, bits/byte")
    lines = [(name, f"{found[cold]:.4f}", f"{found[primed]:.4f}") for name, cold, primed in known]
    return (
        "## Beside compressors\n\n"
        f"{table(head, lines, numbers_from=1)}\n\n"
        f"Of the text of {_count(found['held_out_tokens_compressed'])} held-out tokens, in the windows that models are "
        "measured on, one after the other. Primed: after the text of "
        f"{_count(found['primed_train_tokens'])} train tokens ({_count(found['primed_train_bytes'])} bytes), in "
        "windows spread evenly over the split.\n\n"
    )


def _unlike(rows: Sequence[Row], corpus: Measured) -> str:
    """A sentence for each pair of figures on this page that stand side by side without being of like things."""
    dense, monet = rows[:2]
    trained = [(row.name, row.metrics.get("train_tokens")) for row in (dense, monet)]
    read = ("primed compressors", corpus.metrics.get("primed_train_tokens"))
    sizes = [(row.name, row.metrics.get("num_parameters")) for row in (dense, monet)]
    measured = [(row.name, row.metrics.get("held_out_tokens_measured")) for row in rows]
    compressed = ("compressors", corpus.metrics.get("held_out_tokens_compressed"))
    found = [
        _not_the_same("train tokens", trained),
        _not_the_same("parameters", sizes),
        _not_the_same("train tokens", [trained[1], read]),
        _not_the_same("held-out tokens", [*measured, compressed]),
    ]
    return "".join(f"**Not alike: {sentence}.**\n\n" for sentence in found if sentence)


def _not_the_same(what: str, counts: Sequence[tuple[str, float | None]]) -> str:
    """Who has how many, if any two of those that are known differ by more than a hundredth; else nothing."""
    known = [(name, count) for name, count in counts if count is not None]
    values = [count for _, count in known]
    if not values or max(values) - min(values) <= ALIKE * max(values):
        return ""
    return f"{what} of " + ", ".join(f"{name} {_count(count)}" for name, count in known)


def _cells(row: Row) -> list[str]:
    return [row.name, *(column.text(row.metrics) for column in columns(REPORT)), f"{row.seconds:,.1f}"]


def _picture(rows: Sequence[Row], corpus: Measured, config: ReportConfig) -> bytes:
    dense, *chain = rows
    levels = {"dense baseline": dense.metrics[BITS]}
    for name, *metrics in COMPRESSORS:
        for how, metric in zip(("cold", "primed"), metrics, strict=True):
            if metric in corpus.metrics:
                levels[f"{name}, {how}"] = corpus.metrics[metric]
    return chain_costs(
        [row.name for row in chain],
        bits_per_byte=[row.metrics.get(BITS, math.nan) for row in chain],
        levels=levels,
        expert_bytes=[row.metrics.get("expert_bytes", 0.0) for row in chain],
        width=config.width_inches,
        dots_per_inch=config.dots_per_inch,
    )
