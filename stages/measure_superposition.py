"""A model, its record and that of the PEER -> report: superposition among experts, beside its nulls.

Blocks are examined one after the other by all tests that there are: co-activity, joint codes by several families of
labels, what an untrained model of the same shape shows, drift of contributions, and whether rankings foretell what
leaving an expert out does. docs/methods/superposition.md has the tests.
"""

import json
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import Field

from artifacts.markdown import table
from pipeline.corpus.splits import Corpus
from pipeline.examining.contribution_drift import check_same_tokens, contribution_drift, same_pool
from pipeline.examining.geometry import rows_of_layer
from pipeline.examining.rankings import EFFECTS, HALVES, RANKINGS, Correlation, correlation, effects_of_ablation, pooled
from pipeline.examining.rankings import rankings_of as rankings
from pipeline.examining.second_difference import SecondDifferenceConfig, second_differences
from pipeline.examining.superposition import (
    Block,
    Extent,
    classes_of,
    examined,
    examples_of,
    interacting,
    knowing_differences,
    mean_metrics,
    record_of_block,
    share_of,
    text_of,
)
from pipeline.examining.untrained import untrained_record
from pipeline.figures.superposition import shares_by_block
from pipeline.models import AnyModel, LanguageModel
from pipeline.records.record import ActivationRecord
from pipeline.report import Report, ReportSpec, Row
from pipeline.run import current_run, say, steps
from pipeline.stage import Measured, Output, StageConfig, stage

EXAMPLES = "pairs.json"


class MeasureSuperpositionConfig(StageConfig):
    """How many pairs are tested, and which controls stand beside them."""

    surveyed_pairs: int = Field(
        default=500, ge=1, le=10**6, description="Pairs a block, of those beyond chance, tested for joint codes."
    )
    drawn_pairs: int = Field(
        default=500,
        ge=10,
        le=10**6,
        description="Draws a block of all co-active pairs alike, which stand for those not surveyed and for other "
        "labels.",
    )
    random_pairs: int = Field(
        default=2000, ge=0, le=10**6, description="Draws a block by what the two contribute, without regard to lift."
    )
    listed_pairs: int = Field(
        default=20, ge=1, le=10**4, description="Pairs a block with the tokens that they fire on, codes and others."
    )
    untrained: bool = Field(
        default=True, description="Whether an untrained model of the same shape is examined beside the model."
    )
    interacting_pairs: int = Field(
        default=40,
        ge=0,
        le=10**6,
        description="Pairs a block whose second differences under ablation are taken, half of them joint codes; 0 for "
        "none, then nothing is said of hidden functions.",
    )
    interactions: SecondDifferenceConfig = Field(
        default=SecondDifferenceConfig(tokens=12, partners=1200, random_tokens=1000),
        description="Tokens and controls of second differences.",
    )
    ablated_experts: int = Field(
        default=100, ge=0, le=10**6, description="Experts a block that are left out one by one; 0 for none."
    )
    ablated_windows: int = Field(
        default=4, ge=1, le=10**6, description="Windows in which the loss without an expert is measured, at most."
    )


@stage(name="measure-superposition", version=1)
def measure_superposition(
    config: MeasureSuperpositionConfig,
    *,
    corpus: Annotated[Corpus, "corpus"],
    model: AnyModel,
    record: Annotated[ActivationRecord, "record"],
    peer: Annotated[Measured, "dense", "monet", "peer", "peer-int8", "peer-int4", "symbols"],
    beside: Annotated[ActivationRecord, "record"],
) -> Output[Report]:
    """A model and its record -> report: pairs of experts that are joint codes, beside chance and an untrained model."""
    record.check_is_of(model)
    record.check_speaks_as(corpus)
    check_same_tokens(record, beside)
    is_pool, is_itself = same_pool(record, beside), record.spec.model_sha256 == beside.spec.model_sha256
    most = None if is_pool else _mean_active(beside)
    untrained = untrained_record(model, corpus, record) if config.untrained else None
    if untrained is not None and not any(int((untrained.of_block(b, "fired") > 0).any()) for b in range(record.blocks)):
        say(f"an untrained {model.kind} fires no expert, so that nothing stands beside it")
        untrained = None
    blocks = [
        _block(config, number, corpus, model, record, beside if is_pool and not is_itself else None, untrained, most)
        for number in steps("examine blocks", record.blocks)
    ]
    rows = [
        Row(name=f"block {block.number}", id="", kind="block", seconds=0.0, metrics=block.metrics()) for block in blocks
    ]
    metrics = {
        "superposition_tokens": float(record.spec.tokens),
        "superposition_documents": float(blocks[0].examination.bookkeeping.documents),
        **mean_metrics([row.metrics for row in rows]),
        **_pooled_correlations(blocks),
        "listed_experts_per_token": float(most or record.spec.most),
    }
    examples = {
        f"block {block.number}": examples_of(
            block, record_of_block(record, block.number, most), corpus, config.listed_pairs
        )
        for block in blocks
    }
    files = {
        "report.md": _page(model, record, blocks, metrics, most, peer).encode(),
        "plot.png": _picture(model, rows),
        EXAMPLES: json.dumps(examples, indent=1, ensure_ascii=False).encode(),
    }
    return Output(value=Report(ReportSpec(rows=tuple(rows)), files), metrics=metrics)


def _mean_active(record: ActivationRecord) -> int:
    """Experts kept on the mean token of the mean block: as many units of another kind are as many as these."""
    kept = sum(int((record.of_block(block, "expert") >= 0).sum()) for block in range(record.blocks))
    return max(2, round(kept / record.spec.tokens / record.blocks))


def _block(
    config: MeasureSuperpositionConfig,
    number: int,
    corpus: Corpus,
    model: LanguageModel,
    record: ActivationRecord,
    pool: ActivationRecord | None,
    untrained: ActivationRecord | None,
    most: int | None,
) -> Block:
    run = current_run()
    seed, extent = run.stream(f"superposition of block {number}") % 2**32, _extent(config)
    rows = rows_of_layer(model.spec.experts, model.blocks()[number].experts)
    found = examined(record_of_block(record, number, most), corpus, extent, seed, rows=rows)
    control, differences = None, None
    if config.interacting_pairs:
        pairs = interacting(found, config.interacting_pairs)
        differences = second_differences(model, record, number, pairs, config.interactions, seed=seed)
        found = knowing_differences(found, differences)
    if untrained is not None:
        control = examined(record_of_block(untrained, number, most), corpus, _extent(config, by_mass=0), seed)
    rng = np.random.default_rng(seed)
    correlations: dict[tuple[str, str], Correlation] = {}
    if config.ablated_experts:
        effects = effects_of_ablation(
            model, record, number, experts=config.ablated_experts, rows=config.ablated_windows, rng=rng
        )
        for ranking, of_E in rankings(record, number, found).items():
            for effect in EFFECTS:
                of = correlation(of_E[effects.expert_X], getattr(effects, f"{effect}_X"), rng)
                correlations |= {} if of is None else {(ranking, effect): of}
        for effect, (one, other) in effects.halves.items():
            of = correlation(one, other, rng)
            correlations |= {} if of is None else {(HALVES, effect): of}
    return Block(
        number=number,
        examination=found,
        untrained=control,
        differences=differences,
        drift=None if pool is None else contribution_drift(record, pool, number, rng),
        correlations=correlations,
    )


def _extent(config: MeasureSuperpositionConfig, by_mass: int | None = None) -> Extent:
    return Extent(
        surveyed=config.surveyed_pairs,
        drawn=config.drawn_pairs,
        by_mass=config.random_pairs if by_mass is None else by_mass,
    )


def _pooled_correlations(blocks: Sequence[Block]) -> dict[str, float]:
    """Over the experts of all blocks, whose samples are independent."""
    numbers = {}
    for ranking in (*RANKINGS, HALVES):
        for effect in EFFECTS:
            found = [block.correlations[ranking, effect] for block in blocks if (ranking, effect) in block.correlations]
            if found:
                name, of = f"rank_correlation_{ranking}_{effect}", pooled(found)
                numbers |= {name: of.rho, f"{name}_low": of.low, f"{name}_high": of.high, f"{name}_null": of.null}
    return numbers


HEADLINES = (
    (
        "co-active experts a token, of those recorded",
        "co_active_experts_per_token",
        "",
        "co_active_experts_per_token_untrained",
    ),
    ("JCS, next token", "jcs", "jcs_shuffled_labels", "jcs_untrained"),
    (
        "the same, next tokens shuffled among places of one token",
        "jcs_shuffled_in_token",
        "",
        "jcs_untrained_shuffled_in_token",
    ),
    ("JCS, class of the token", "jcs_token_class", "", "jcs_untrained_token_class"),
    ("JCS, domain", "jcs_domain", "", "jcs_untrained_domain"),
    ("JCS, next token, by contribution", "jcs_by_mass", "", ""),
    ("codes among pairs without a lift", "blind_spot_codes", "", ""),
    ("could not be tested", "jcs_not_testable", "", "jcs_untrained_not_testable"),
    ("HS, co-active pairs whose sum of effects names another token", "hs", "", ""),
    ("the same with routers above held", "frozen_hs", "", ""),
    ("additivity R2", "additivity_r2", "", ""),
    ("the same with routers above held", "frozen_additivity_r2", "", ""),
    ("iota of pairs looked at", "iota_mean", "iota_null", ""),
    ("of them with a hidden function", "hidden_pairs_share", "", ""),
    ("correlation of contributions with the PEER's", "contribution_correlation", "contribution_correlation_null", ""),
    ("experts whose contributions survive", "contributions_survive", "", ""),
)
"""What is said of it, its metric, that of its null, and that of the untrained model."""


def _page(
    model: LanguageModel,
    record: ActivationRecord,
    blocks: Sequence[Block],
    metrics: dict[str, float],
    most: int | None,
    peer: Measured,
) -> str:
    spec = record.spec
    documents = len(record.tensors["document"].unique())
    cut = (
        f" Of each token the {most} experts are examined that contribute most, as many as fire in {peer.id}; second "
        "differences and rankings take all that the record has."
        if most is not None
        else ""
    )
    found = [(words, *(text_of(metrics, name) for name in names)) for words, *names in HEADLINES if names[0] in metrics]
    return (
        f"# Superposition among the experts of a {model.kind}\n\n"
        f"{spec.tokens:,} tokens of {spec.split.replace('_', '-')} text in {documents:,} documents, "
        f"{spec.experts[0]:,} experts a block.{cut} Means over blocks; intervals are of 95 % over documents, as if all "
        "blocks erred together.\n\n"
        f"{table(('figure', 'value', 'null', 'untrained'), found, numbers_from=1)}\n\n"
        "The null of joint codes is shuffled labels; that of correlations another expert that fires about as often; "
        "that of iota the 99th percentile of matched co-active partners. An untrained model has the same shape, random "
        "weights, and thresholds at which about as many experts fire.\n\n"
        f"{_without_null(blocks)}"
        "![shares of co-activity by block](plot.png)\n\n"
        f"## Pairs\n\n{_pairs(blocks)}\n\n"
        "## Siblings\n\nPairs by what they share of the key grid: beyond chance, of these tested for joint codes, and "
        f"joint codes.\n\n{_siblings(blocks)}\n\n"
        "## Classes\n\nOf tested pairs: those co-active beyond chance, and drawn ones that are not.\n\n"
        f"{_classes(blocks)}\n\n{_beyond_pairs(blocks)}{_geometry(blocks)}{_rankings(metrics)}"
        f"## Examples\n\n`{EXAMPLES}` has pairs with the tokens on which each alone and both fire, and what follows.\n"
    )


def _without_null(blocks: Sequence[Block]) -> str:
    """In which blocks no function could be found hidden, whatever the pairs do; nothing where each has its null."""
    asked = [(block.number, block.differences.null) for block in blocks if block.differences is not None]
    lacking = [f"block {number} is {null.not_testable}" for number, null in asked if null.not_testable is not None]
    if not lacking:
        return ""
    return (
        f"**Hidden functions have a null in {len(asked) - len(lacking)} of {len(asked)} blocks**: "
        f"{'; '.join(lacking)}. There no pair is said to be hidden or not, and no share of hidden ones counts it.\n\n"
    )


def _pairs(blocks: Sequence[Block]) -> str:
    head = ("block", "co-active", "tokens fired on, Gini", "counted", "beyond chance", "by frequency alone")
    rows = []
    for block in blocks:
        found = block.examination
        kept = found.bookkeeping
        counts = (found.pairs_counted, found.pairs_significant, found.pairs_by_frequency)
        rows.append(
            (str(block.number), f"{kept.active_mean:.1f}", f"{kept.firing_gini:.3f}", *(f"{of:,}" for of in counts))
        )
    return table(head, rows, numbers_from=1)


def _siblings(blocks: Sequence[Block]) -> str:
    rows = []
    for block in blocks:
        for of in block.examination.siblings:
            counts = (of.pairs_counted, of.pairs_significant, of.pairs_tested, of.joint_codes)
            if of.pairs_counted:
                rows.append((str(block.number), of.relation, *(f"{count:,}" for count in counts)))
    return table(("block", "share", "counted", "beyond chance", "tested", "joint codes"), rows, numbers_from=2)


def _classes(blocks: Sequence[Block]) -> str:
    counts = [classes_of(block.examination) for block in blocks]
    kinds = sorted({kind for of in counts for kind, _ in of})
    rows = [
        (kind, *(f"{of.get((kind, True), 0):,} and {of.get((kind, False), 0):,}" for of in counts)) for kind in kinds
    ]
    return table(("class", *(f"block {block.number}" for block in blocks)), rows, numbers_from=1)


def _beyond_pairs(blocks: Sequence[Block]) -> str:
    head = ("block", "linked beside all others", "largest component", "of codes", "triples", "that need all three")
    rows = []
    for block in blocks:
        found = block.examination
        agreement = found.second_screen.agreement
        largest = (max(found.communities[name].component_sizes, default=0) for name in ("significant", "joint_code"))
        needed = sum(of.needed == 3 for of in found.triples)
        counts = (*largest, len(found.triples), needed)
        linked = "" if agreement is None else f"{agreement:.3f}"
        rows.append((str(block.number), linked, *(f"{count:,}" for count in counts)))
    return (
        "## Beyond pairs\n\nOf the surveyed pairs: how many the second screen links too, the experts that they and the "
        f"joint codes among them join, and triples.\n\n{table(head, rows, numbers_from=1)}\n\n"
    )


def _geometry(blocks: Sequence[Block]) -> str:
    """Nothing where experts have no vectors."""
    head = ("block", "class", "pairs", "cos of v", "at random", "cos of u", "at random", "variance of the ratio")
    rows = []
    for block in blocks:
        for kind, of in block.examination.geometry.items():
            numbers = (of.cos_output, of.cos_output_matched, of.cos_input, of.cos_input_matched, of.ratio_variance)
            cells = ("" if number is None else f"{number:.3f}" for number in numbers)
            rows.append((str(block.number), kind, f"{of.pairs:,}", *cells))
    if not any(of.cos_output is not None for block in blocks for of in block.examination.geometry.values()):
        return ""
    return (
        "## Geometry\n\nMeans over pairs beyond chance, beside random pairs of experts that fire as often.\n\n"
        f"{table(head, rows, numbers_from=2)}\n\n"
    )


def _rankings(metrics: dict[str, float]) -> str:
    """Nothing where no expert was left out."""
    rows = []
    for ranking, words in {**RANKINGS, HALVES: "the same effect in other windows"}.items():
        names = [f"rank_correlation_{ranking}_{effect}" for effect in EFFECTS]
        if any(name in metrics for name in names):
            null = next(metrics[f"{name}_null"] for name in names if name in metrics)
            rows.append((words, *(text_of(metrics, name) for name in names), f"±{null:.3f}"))
    if not rows:
        return ""
    return (
        "## Do rankings foretell what leaving an expert out does?\n\nSpearman's rank correlation over a random sample "
        "of experts; the null is what 95 % of permutations stay within. The last row is how well an effect foretells "
        "itself: measured in one half of the windows and in the other, so each time in half as many as above.\n\n"
        f"{table(('ranking', *EFFECTS.values(), 'null'), rows, numbers_from=1)}\n\n"
    )


def _picture(model: LanguageModel, rows: Sequence[Row]) -> bytes:
    series = {
        "next token": "jcs",
        "class of the token": "jcs_token_class",
        "domain": "jcs_domain",
        "untrained": "jcs_untrained",
        "shuffled labels": "jcs_shuffled_labels",
    }
    return shares_by_block(
        f"Co-activity that is joint codes', a {model.kind}",
        [row.name for row in rows],
        {
            words: [share_of(row.metrics, name) for row in rows]
            for words, name in series.items()
            if any(name in row.metrics for row in rows)
        },
    )
