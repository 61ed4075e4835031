"""PEER int4 -> symbols: every expert a formula, a logical statement, both, or nothing, by description length."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field, field_validator
from torch import Tensor

from artifacts.shown_experts import FILE as EXPERTS_FILE
from kernels.errors import Mistake
from pipeline.corpus.splits import Corpus
from pipeline.corpus.windows import random_windows, target_positions
from pipeline.figures.symbols import length_against_fidelity, symbol_tiers
from pipeline.measuring.held_out import HeldOut, MeasureConfig
from pipeline.measuring.loss import measure, measure_against
from pipeline.measuring.sizes import measure_size
from pipeline.models import Int4Model, LanguageModel
from pipeline.models.literals import Literals
from pipeline.models.peer.router import PeerRouter
from pipeline.models.peer.spec import PeerSpec
from pipeline.run import current_run
from pipeline.stage import Output, StageConfig, stage
from pipeline.symbolic.names import names as names_file
from pipeline.symbolic.names.names import Name, Names, Said
from pipeline.symbolic.names.naming import Words, name_coordinates, name_features, name_scores, say_experts
from pipeline.symbolic.recording import LayerRecord, record
from pipeline.symbolic.rules.choice import rule_metrics, winners
from pipeline.symbolic.rules.literals import build_literals
from pipeline.symbolic.rules.permuted_rules import Samples, permuted_rule_f1
from pipeline.symbolic.showing import page as symbols_page
from pipeline.symbolic.showing.in_words import in_words
from pipeline.symbolic.showing.index import index_rows, layer_maps
from pipeline.symbolic.showing.showcase import SampleText, showcases
from pipeline.symbolic.tiers import Tier
from pipeline.symbolic.writing import length_curve as length_file
from pipeline.symbolic.writing.assembly import BlockSymbols, FittedBlock, fit_block, with_kans
from pipeline.symbolic.writing.controls import control_metrics
from pipeline.symbolic.writing.held_out import blocks_on, executed_firing, statements_on
from pipeline.symbolic.writing.length_curve import Point, length_curve
from pipeline.symbolic.writing.replacement import BLOCK_CHECK_TOKENS, shortest, symbol_model
from pipeline.symbolic.writing.tier_metrics import firing_metrics, tier_metrics

_TIER_WORDS = {
    Tier.T0: "exact",
    Tier.T1: "few\ncoordinates",
    Tier.T2: "logic and\nfunction",
    Tier.T3: "logic",
    Tier.T4: "dropped",
}
_CONTROL_WORDS = {
    "gate_constant_magnitude": "gate,\nconstant",
    "constant_magnitude": "constant",
    "permuted_firing": "permuted\nfiring",
}


class DistillSymbolsConfig(StageConfig):
    """How faithful the symbols must be, and how hard they are searched for."""

    sample_tokens: int = Field(
        default=16_384, ge=1024, description="Train tokens that formulas and statements are fitted on."
    )
    check_tokens: int = Field(
        default=16_384, ge=1024, description="Other train tokens, on which they are judged and chosen."
    )
    report_tokens: int = Field(
        default=16_384,
        ge=256,
        description="Held-out tokens that F1, R2 and energies are reported of; nothing is chosen on them.",
    )
    context_length: int = Field(
        default=128, ge=2, le=65_536, description="Tokens a window, of samples and measurement."
    )
    least_r2: float = Field(
        default=0.97,
        gt=0,
        le=1,
        description="Least energy-weighted R2 of the experts' magnitudes over all tokens, a block.",
    )
    least_recovered: float = Field(
        default=0.98,
        gt=0,
        le=1,
        description="Least loss_recovered on validation tokens, a block replaced alone; its R2 bound rises until then",
    )
    coordinates: tuple[Annotated[int, Field(ge=1, le=2**15)], ...] = Field(
        default=(1, 2, 4, 8, 16),
        min_length=1,
        description="Numbers of coordinates of x that formulas are tried with, rising.",
    )
    samples: int = Field(default=256, ge=16, description="Most firings an expert that a formula is fitted on.")
    kan_experts: int = Field(
        default=4,
        ge=0,
        description="T0 experts a block, of those that half the error would make T1 the ones with most output, whose "
        "formula is also fitted as a pruned KAN, which takes a second each; and half as many of T1.",
    )
    budgets: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        default=(0.3, 0.1, 0.05, 0.02, 0.01, 0.001),
        min_length=1,
        description="Shares of the experts' variance that may be wrong, at which length is set against fidelity.",
    )
    places: int = Field(default=3, ge=2, le=16, description="Tokens that literals look at, the current one included.")
    identities: int = Field(default=32, ge=1, description="Most frequent tokens that are literals of their own.")
    measure: MeasureConfig = Field(default=MeasureConfig(), description="How the result is measured.")

    @field_validator("coordinates")
    @classmethod
    def _rises(cls, sizes: tuple[int, ...]) -> tuple[int, ...]:
        if list(sizes) != sorted(set(sizes)):
            raise Mistake(f"coordinates={sizes} must rise, such as 1 2 4 8")
        return sizes


@stage(name="distill-symbols", version=7)
def distill_symbols(
    config: DistillSymbolsConfig, *, corpus: Annotated[Corpus, "corpus"], int4: Int4Model
) -> Output[LanguageModel]:
    """PEER int4 -> symbols: formulas and logic in tables, replacing every expert of the model."""
    _check_fits(config, int4)
    began = time.monotonic()
    fit = record(int4, _sample(corpus, config, "fit", config.sample_tokens), places=config.places, what="record")
    check = record(int4, _sample(corpus, config, "check", config.check_tokens), places=config.places, what="record")
    words = _words(corpus, fit[0], config)
    fitted, blocks = _written(int4, fit, check, words, corpus, config)
    model = symbol_model(int4, blocks, vocab_size=corpus.spec.vocab_size, places=config.places)
    seconds = time.monotonic() - began
    num_experts = sum(len(block.tier_E) for block in blocks)
    began = time.monotonic()
    held_out = HeldOut(corpus, config.measure, config.context_length)
    held_batches = _reported(corpus, config)
    held = record(int4, held_batches, places=config.places, what="record held-out")
    reported = [
        replace(block, statements=statements_on(block.statements, of.events))
        for block, of in zip(blocks_on(blocks, model, int4, held), held, strict=True)
    ]
    quantities = _names(int4, reported, fit, held, words)
    naming_seconds = time.monotonic() - began
    points = length_curve(int4, fitted, held, held_out.few, lost=config.budgets, places=config.places)
    measured = measure_against(model, int4, held_out)
    metrics = {
        **measured,
        **_controls(int4, check, measured, held_out),
        **tier_metrics(reported, model),
        **firing_metrics(reported, executed_firing(model, held, held_batches, "executed firing")),
        **rule_metrics([block.statements for block in blocks], [block.statements for block in reported]),
        "rule_f1_permuted_mean": _permuted_rules(blocks, (fit, check, held), words.literals),
        **_name_metrics(quantities),
        "reported_tokens": float(sum(tokens_BT.numel() for tokens_BT in held_batches)),
        "naming_seconds": naming_seconds,
        **measure_size(model),
        "experts_per_second": num_experts / seconds / torch.get_num_threads(),
        "distillation_seconds": seconds,
        "train_tokens": float(config.sample_tokens + config.check_tokens),
    }
    text = SampleText(token_bytes=corpus.tokenizer.token_bytes, document_N=_documents(corpus, config))
    shown = showcases(model, _shown(reported, blocks), held, quantities, words, text)
    index = index_rows(model, reported, quantities, text.token_bytes)
    files = {
        "literals.json": json.dumps([block.literal_names for block in blocks]).encode(),
        names_file.FILE: quantities.model_dump_json().encode(),
        symbols_page.FILE: symbols_page.page(metrics, layer_maps(reported), index, shown).encode(),
        EXPERTS_FILE: in_words(shown),
        "plot.png": _picture(metrics),
        length_file.FILE: length_file.to_csv(points),
        "length.png": _length_picture(points, metrics),
    }
    return Output(value=model, metrics=metrics, files=files)


def _check_fits(config: DistillSymbolsConfig, int4: LanguageModel) -> None:
    if config.coordinates[-1] > int4.shape.d_model:
        raise Mistake(f"coordinates up to {config.coordinates[-1]} are more than the width {int4.shape.d_model}")
    if (peer := int4.spec.experts_as(PeerSpec)).pools != "shared":
        raise Mistake(
            f"symbols speak of experts that all heads share, not of pools={peer.pools}; quantize another PEER"
        )
    if (groups := int4.spec.experts_as(PeerSpec).scale_groups) > 1:
        raise Mistake(f"symbols take int4 tables with one scale a row, not scale_groups={groups}; quantize with 1")


def _words(corpus: Corpus, sample: LayerRecord, config: DistillSymbolsConfig) -> Words:
    """The literals over tokens, by how frequent these are in the sample."""
    vocabulary = [corpus.tokenizer.decode([v]) for v in range(corpus.spec.vocab_size)]
    counts_V = torch.bincount(sample.events.context_ON[0], minlength=corpus.spec.vocab_size)
    literals, names = build_literals(vocabulary, counts_V, places=config.places, identities=config.identities)
    return Words(literals=literals, literal_names=names, vocabulary=vocabulary, decode=corpus.tokenizer.decode)


def _written(
    int4: LanguageModel,
    fit: Sequence[LayerRecord],
    check: Sequence[LayerRecord],
    words: Words,
    corpus: Corpus,
    config: DistillSymbolsConfig,
) -> tuple[list[FittedBlock], list[BlockSymbols]]:
    """Every block's experts as fitted and as written."""
    generator = current_run().generator("gate networks")
    block_check = HeldOut(corpus, MeasureConfig(tokens=BLOCK_CHECK_TOKENS), config.context_length)
    fitted: list[FittedBlock] = []
    blocks: list[BlockSymbols] = []
    for layer in range(len(int4.blocks())):
        block = fit_block(
            int4, layer, fit[layer], check[layer], words.literals, list(words.literal_names),
            ladder=config.coordinates, samples=config.samples, generator=generator,
        )  # fmt: skip
        block, symbols = _written_block(block, fit[layer], check[layer], block_check, config)
        fitted.append(block)
        blocks.append(symbols)
    return fitted, blocks


def _written_block(
    block: FittedBlock, fit: LayerRecord, check: LayerRecord, block_check: HeldOut, config: DistillSymbolsConfig
) -> tuple[FittedBlock, BlockSymbols]:
    """The block's symbols; where KANs are tried, with what they found, also in the fitted block."""
    symbols = _shortest(block, block_check, config, 1 - config.least_r2)
    if not config.kan_experts:
        return block, symbols
    block = with_kans(block, symbols, fit, check, number=config.kan_experts, most=config.coordinates[-1])
    # Experts that KANs help may choose again, at the same budget.
    again = _shortest(block, block_check, config, symbols.lost) if block.kans.won else symbols
    return block, replace(again, kans=replace(block.kans, chosen=again.kans.chosen))


def _shown(reported: Sequence[BlockSymbols], chosen: Sequence[BlockSymbols]) -> list[BlockSymbols]:
    """What is reported, but that the best rule of all learners is shown with the F1 that chose it."""
    return [
        replace(block, statements=replace(block.statements, rules=by.statements.rules))
        for block, by in zip(reported, chosen, strict=True)
    ]


def _shortest(block: FittedBlock, held_out: HeldOut, config: DistillSymbolsConfig, lost: float) -> BlockSymbols:
    return shortest(block, held_out, lost=lost, least_recovered=config.least_recovered, places=config.places)


def _sample(corpus: Corpus, config: DistillSymbolsConfig, purpose: str, tokens: int) -> list[Tensor]:
    """(B, T) train windows of about that many tokens."""
    generator = current_run().generator(f"symbols {purpose}")
    batch, length = 16, config.context_length
    return [
        random_windows(corpus.train, batch=batch, length=length, generator=generator)[0]
        for _ in range(max(1, tokens // (batch * length)))
    ]


def _reported(corpus: Corpus, config: DistillSymbolsConfig) -> list[Tensor]:
    """(B, T) held-out windows of about `report_tokens` tokens."""
    held_out = HeldOut(corpus, MeasureConfig(tokens=config.report_tokens), config.context_length)
    return [inputs_BT for inputs_BT, _ in held_out.batches("read held-out")]


def _documents(corpus: Corpus, config: DistillSymbolsConfig) -> Tensor:
    """Of the tokens that are reported on."""
    position_WT = target_positions(corpus.held_out, num_tokens=config.report_tokens, length=config.context_length)
    return corpus.held_out.document_of(position_WT - 1).flatten()


def _names(
    int4: LanguageModel,
    blocks: list[BlockSymbols],
    fit: list[LayerRecord],
    held: list[LayerRecord],
    words: Words,
) -> Names:
    """A name for every score of every router and every coordinate of every block; what tokens say of the experts."""
    generator = current_run().generator("permuted names")
    found: list[Name] = []
    said: list[Said] = []
    routers = int4.routers_of(PeerRouter)
    for layer, symbols in enumerate(blocks):
        records = fit[layer], held[layer]
        if layer in routers:
            found += name_scores(routers[layer], layer, *records, words, generator)
            found += name_features(routers[layer], layer, *records, words, generator)
        found += name_coordinates(layer, *records, words, generator)
        said += say_experts(layer, symbols.statements, symbols.energy_E, fit[layer], words)
    return Names(names=tuple(found), experts=tuple(said))


def _name_metrics(names: Names) -> dict[str, float]:
    return {
        f"{kind}_name_f1_{suffix}": names.mean(kind, figure)
        for kind in ("score", "feature", "coordinate")
        if any(name.kind == kind for name in names.names)
        for suffix, figure in (("mean", "f1"), ("same_rate_null_mean", "null_f1"), ("permuted_mean", "permuted_f1"))
    }


def _controls(
    int4: LanguageModel,
    check: list[LayerRecord],
    measured: Mapping[str, float],
    held_out: HeldOut,
) -> dict[str, float]:
    """On the tokens that the symbols, as `measured`, were measured on."""

    def loss_of(model: LanguageModel) -> float:
        return measure(model, held_out)["held_out_loss_nats"]

    return control_metrics(int4, check, measured, loss_of, current_run().generator("permuted firing"))


def _permuted_rules(
    blocks: list[BlockSymbols],
    records: tuple[list[LayerRecord], list[LayerRecord], list[LayerRecord]],
    shared: Literals,
) -> float:
    """What the search for rules says of noise. `records` are those that rules are searched, chosen and judged on."""
    searched = [torch.nonzero(winners(block.statements) >= 0)[:, 0] for block in blocks]
    samples = [Samples(*(record.events for record in of_block)) for of_block in zip(*records, strict=True)]
    return permuted_rule_f1(searched, samples, shared, current_run().generator("permuted rules"))


def _picture(metrics: Mapping[str, float]) -> bytes:
    shares = {
        label: [metrics[f"{kind}_share_{tier.name.lower()}"] for tier in Tier]
        for label, kind in (("experts", "expert"), ("output energy", "energy"))
    }
    recovered = {"symbols": metrics["loss_recovered_over_biases"]} | {
        words: metrics[f"loss_recovered_{control}_over_biases"] for control, words in _CONTROL_WORDS.items()
    }
    loss, divergence = metrics["loss_increase_nats"], metrics["kl_to_teacher_nats"]
    title = f"Symbols: held-out loss {loss:+.4f}, KL {divergence:.4f} nats a token"
    return symbol_tiers(title, [f"{tier.name}\n{words}" for tier, words in _TIER_WORDS.items()], shares, recovered)


def _length_picture(points: Sequence[Point], metrics: Mapping[str, float]) -> bytes:
    return length_against_fidelity(
        "Shorter descriptions cost loss",
        [point.bits_per_expert for point in points],
        [(point.loss_increase_nats, point.loss_increase_standard_error_nats) for point in points],
        [point.readable_energy_share for point in points],
        metrics["description_bits_per_expert"],
    )
