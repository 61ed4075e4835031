"""Reports of superposition of all models of a chain -> report: one table and one picture from dense to symbols."""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import Field

from artifacts.markdown import table
from kernels.errors import Mistake
from pipeline.examining.superposition import share_of, text_of
from pipeline.figures.superposition import Share, shares_along_chain
from pipeline.measuring.alike import unlike
from pipeline.report import Report, ReportSpec, Row
from pipeline.stage import Measured, Output, StageConfig, stage

LINKS: Mapping[str, str] = {
    "dense": "dense",
    "monet": "Monet",
    "peer": "PEER",
    "int8": "PEER int8",
    "int4": "PEER int4",
    "tuned": "int4 fine-tuned",
    "symbols": "symbols",
}
"""Inputs, and what a page calls them; the report of the chain has its models in the same roles."""

MEASURES = "measure-superposition"
SHARED = (
    "jcs", "jcs_untrained", "jcs_shuffled_labels", "jcs_shuffled_in_token", "jcs_token_class", "jcs_domain",
    "jcs_by_mass", "jcs_not_testable", "jcs_untrained_not_testable", "co_active_experts_per_token", "hs",
    "additivity_r2", "contribution_correlation", "contributions_survive",
)  # fmt: skip
"""Figures of each link that are metrics of the comparison too, with their intervals."""
BITS = "held_out_bits_per_byte"
ACTIVE_ALIKE = 0.1
"""Share by which the numbers of co-active experts may differ: the more are active, the more pairs there are."""


class CompareSuperpositionConfig(StageConfig):
    """How the picture is drawn; what is compared comes from the inputs."""

    width_inches: float = Field(default=8.0, ge=3, le=40, description="Width of the picture in inches, 3 to 40.")
    dots_per_inch: int = Field(default=120, ge=50, le=600, description="Resolution of the picture, 50 to 600.")


@stage(name="compare-superposition", version=1)
def compare_superposition(
    config: CompareSuperpositionConfig,
    *,
    chain: Annotated[Measured, "report"],
    dense: Annotated[Measured, "report"],
    monet: Annotated[Measured, "report"],
    peer: Annotated[Measured, "report"],
    int8: Annotated[Measured, "report"],
    int4: Annotated[Measured, "report"],
    tuned: Annotated[Measured, "report"],
    symbols: Annotated[Measured, "report"],
) -> Output[Report]:
    """Superposition of all models of a chain -> report: how it changes from dense to symbols, and what drifts."""
    links = dict(zip(LINKS, (dense, monet, peer, int8, int4, tuned, symbols), strict=True))
    for role, measured in links.items():
        _check(role, measured, chain)
    bits = _bits_of(chain)
    rows = tuple(
        Row(
            name=LINKS[role],
            id=measured.id,
            kind=measured.kind,
            seconds=measured.seconds,
            metrics={**measured.metrics, **({BITS: bits[role]} if role in bits else {})},
        )
        for role, measured in links.items()
    )
    files = {"report.md": _page(rows, chain).encode(), "plot.png": _picture(rows, config)}
    return Output(value=Report(ReportSpec(rows=rows), files), metrics=_metrics(links))


def _check(role: str, measured: Measured, chain: Measured) -> None:
    """Mistake unless this measures superposition in the model that the chain has in this role."""
    if chain.stage != "report" or role not in chain.inputs:
        raise Mistake(f"{chain.id}, given as chain, was made by {chain.stage}; name the report of a chain")
    if measured.stage != MEASURES:
        raise Mistake(f"{measured.id}, given as {role}, was made by {measured.stage}; name a report of {MEASURES}")
    model, wanted = measured.inputs["model"], chain.inputs[role]
    if model != wanted:
        raise Mistake(
            f"{measured.id}, given as {role}, is of {model}, and the chain of {chain.id} has {wanted} there; name the "
            f"chain that {model} is of, or measure {wanted}"
        )


def _bits_of(chain: Measured) -> dict[str, float]:
    """Bits a byte of each model, from the chain's own report."""
    by_id = {row["id"]: row["metrics"].get(BITS) for row in chain.spec["rows"]}
    return {role: bits for role in LINKS if (bits := by_id.get(chain.inputs[role])) is not None}


def _metrics(links: Mapping[str, Measured]) -> dict[str, float]:
    found = {}
    for role, measured in links.items():
        for name in SHARED:
            for end in (name, f"{name}_low", f"{name}_high"):
                if end in measured.metrics:
                    found[f"{role}_{end}"] = measured.metrics[end]
    return found


COLUMNS = (
    ("JCS, next token", "jcs"),
    ("untrained", "jcs_untrained"),
    ("shuffled labels", "jcs_shuffled_labels"),
    ("shuffled in token", "jcs_shuffled_in_token"),
    ("JCS, class", "jcs_token_class"),
    ("JCS, domain", "jcs_domain"),
    ("JCS by contribution", "jcs_by_mass"),
    ("not testable", "jcs_not_testable"),
    ("untrained, not testable", "jcs_untrained_not_testable"),
    ("HS", "hs"),
    ("additivity R2", "additivity_r2"),
)
DRIFT = (
    ("correlation of contributions", "contribution_correlation"),
    ("null", "contribution_correlation_null"),
    ("survive", "contributions_survive"),
)


def _page(rows: Sequence[Row], chain: Measured) -> str:
    made_of = "\n".join(f"- {name}: `{id}`" for name, id in (("chain", chain.id), *((r.name, r.id) for r in rows)))
    tokens = [(row.name, row.metrics.get("superposition_tokens")) for row in rows]
    active = [(row.name, row.metrics.get("co_active_experts_per_token")) for row in rows]
    sentences = [unlike("examined tokens", tokens, 0.0), unlike("co-active experts", active, ACTIVE_ALIKE)]
    drifting = [row for row in rows if DRIFT[0][1] in row.metrics]
    ranked = [row for row in rows if any(name.startswith("rank_correlation_") for name in row.metrics)]
    head = ("model", "bits/byte", "co-active", *(words for words, _ in COLUMNS))
    return (
        f"# Superposition along the chain\n\n{table(head, [_cells(row) for row in rows], numbers_from=1)}\n\n"
        "JCS is the share of co-active pairs of experts that are of joint codes, the mean over blocks; intervals are "
        "of 95 % over documents, as if all blocks erred together. The untrained model has the same shape, random "
        "weights, and thresholds at which about as many experts fire. Of dense and Monet at most as many units a "
        "token are examined as experts of the PEER are recorded there on the mean.\n\n"
        + "".join(f"**Not alike: {sentence}.**\n\n" for sentence in sentences if sentence)
        + "![shares of co-activity and drift along the chain](plot.png)\n\n"
        + _section("Drift of contributions", DRIFT, drifting, "Pearson's r of each expert with the PEER's on the same "
                   "tokens; an expert survives from r = 0.9. The null is another expert that fires about as often.")
        + _section("Rankings and the loss increase of leaving an expert out", _ranked_columns(ranked, "everywhere"),
                   ranked, "Spearman's correlation over a random sample of experts with the increase over all tokens; "
                   "halves: of the increase with itself in other windows.")
        + _section("Rankings and the change of the loss", _ranked_columns(ranked, "change"), ranked,
                   "The same with the absolute change, mean over all tokens.")
        + f"## Measured\n\n{made_of}\n"
    )  # fmt: skip


def _ranked_columns(rows: Sequence[Row], effect: str) -> tuple[tuple[str, str], ...]:
    names = dict.fromkeys(name for row in rows for name in row.metrics)
    found = {name: re.fullmatch(rf"rank_correlation_([a-z]+)_{effect}", name) for name in names}
    return tuple((ranking[1], name) for name, ranking in found.items() if ranking)


def _section(title: str, shown: Sequence[tuple[str, str]], rows: Sequence[Row], words: str) -> str:
    """Nothing where no model has the figures."""
    if not rows or not shown:
        return ""
    lines = [(row.name, *(text_of(row.metrics, name) for _, name in shown)) for row in rows]
    return f"## {title}\n\n{words}\n\n{table(('model', *(head for head, _ in shown)), lines, numbers_from=1)}\n\n"


def _cells(row: Row) -> tuple[str, ...]:
    bits = f"{row.metrics[BITS]:.4f}" if BITS in row.metrics else ""
    return (
        row.name,
        bits,
        f"{row.metrics['co_active_experts_per_token']:.1f}",
        *(text_of(row.metrics, name) for _, name in COLUMNS),
    )


def _picture(rows: Sequence[Row], config: CompareSuperpositionConfig) -> bytes:
    def shares(name: str) -> list[Share]:
        return [share_of(row.metrics, name) for row in rows]

    return shares_along_chain(
        "Joint codes and drift along the chain",
        [row.name for row in rows],
        {words: shares(name) for words, name in (COLUMNS[0], COLUMNS[3], COLUMNS[4], COLUMNS[1], COLUMNS[2])},
        {"r with the PEER's contributions": shares(DRIFT[0][1]), "survive, r of 0.9 or more": shares(DRIFT[2][1])},
        width=config.width_inches,
        dots_per_inch=config.dots_per_inch,
    )
