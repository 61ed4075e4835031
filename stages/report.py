"""All models of the chain -> report: one table and one picture of what each step cost and saved.

Compressors stand beside them, and a sentence wherever two figures that are set side by side are not of like things.
"""

import math
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from artifacts.columns import REPORT, columns
from artifacts.markdown import table
from kernels.errors import Mistake
from pipeline.figures.chain import chain_costs
from pipeline.measuring.alike import ALIKE, context_of, unlike
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
CONTEXT = "context_tokens"


class ReportConfig(StageConfig):
    """How the report is drawn; what it says comes from its inputs."""

    width_inches: float = Field(default=8.0, ge=3, le=40, description="Width of the picture in inches.")
    dots_per_inch: int = Field(default=120, ge=50, le=600, description="Resolution of the picture.")


@stage(name="report", version=4)
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
    _check_corpora(corpus, (dense, monet, peer, int8, int4, tuned, symbols))
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
    context = context_of(measured.config)
    metrics = {**measured.metrics, **({} if context is None else {CONTEXT: float(context)})}
    return Row(name=name, id=measured.id, kind=measured.kind, seconds=measured.seconds, metrics=metrics)


def _check_corpora(corpus: Measured, models: Sequence[Measured]) -> None:
    """ValueError names the model whose losses are of another text than this corpus's."""
    for model in models:
        own = model.inputs.get("corpus", corpus.id)
        if own != corpus.id:
            raise Mistake(
                f"{model.id} was measured on {own} and this report is of {corpus.id}: losses of different text cannot "
                f"be set side by side; name another {model.stage}, made from this corpus, or run {model.stage} on it"
            )


def _dense_is_like(monet: Row, dense: Row) -> bool:
    """Whether both trained on as many tokens, in windows as long: else their difference says nothing of experts."""
    return not any(unlike("", _two(name, dense, monet), share) for name, share in LIKE)


LIKE = (("train_tokens", ALIKE), (CONTEXT, 0.0))
"""What a dense arm must have as Monet has it, and by which share it may differ."""


def _two(metric: str, dense: Row, monet: Row) -> list[tuple[str, float | None]]:
    return [(row.name, row.metrics.get(metric)) for row in (dense, monet)]


def _summary(rows: Sequence[Row], corpus: Measured) -> dict[str, float]:
    """Bits a byte of dense, Monet and the last model, against each other and against primed PPMd-6.

    Against dense only where it trained as Monet did.
    """
    first, monet, last = rows[0].metrics[BITS], rows[1].metrics.get(BITS), rows[-1].metrics.get(BITS)
    like = _dense_is_like(rows[1], rows[0])
    summary = {"dense_bits_per_byte": first, "seconds_of_all_stages": math.fsum(row.seconds for row in rows)}
    if monet is not None:
        summary |= {"monet_bits_per_byte": monet}
        summary |= {"dense_bits_per_byte_over_monet": first - monet} if like else {}
        primed = corpus.metrics.get(PRIMED)
        if primed is not None:
            summary |= {"monet_bits_per_byte_over_primed_ppmd": monet - primed}
    if last is None:
        return summary
    over_dense = {"bits_per_byte_increase_over_dense": last - first} if like else {}
    return {**summary, "symbols_bits_per_byte": last, **over_dense}


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
        "that the stage itself took, `context` those of a window, in training and measuring.\n\n"
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
    trained = _two("train_tokens", dense, monet)
    read = ("primed compressors", corpus.metrics.get("primed_train_tokens"))
    contexts = [(row.name, row.metrics.get(CONTEXT)) for row in rows]
    measured = [(row.name, row.metrics.get("held_out_tokens_measured")) for row in rows]
    compressed = ("compressors", corpus.metrics.get("held_out_tokens_compressed"))
    found = [
        unlike("train tokens", trained),
        unlike("parameters", _two("num_parameters", dense, monet)),
        unlike("context", contexts, 0.0),
        unlike("train tokens", [trained[1], read]),
        unlike("held-out tokens", [*measured, compressed]),
    ]
    return "".join(f"**Not alike: {sentence}.**\n\n" for sentence in found if sentence)


def _cells(row: Row) -> list[str]:
    return [row.name, *(column.text(row.metrics) for column in columns(REPORT)), f"{row.seconds:,.1f}"]


def _picture(rows: Sequence[Row], corpus: Measured, config: ReportConfig) -> bytes:
    dense, *chain = rows
    unlike_monet = "" if _dense_is_like(chain[0], dense) else ", not trained alike"
    levels = {f"dense baseline{unlike_monet}": dense.metrics[BITS]}
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
