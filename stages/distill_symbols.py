"""PEER int4 -> symbols: every expert a formula, a logical statement, both, or nothing, by description length."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field, field_validator
from torch import Tensor

from pipeline.corpus import Corpus, random_windows
from pipeline.measures import MeasureConfig, measure_against, measure_size
from pipeline.models import Int4Model, LanguageModel
from pipeline.models.peer import PeerRouter, PeerSpec
from pipeline.models.quantized import QuantizedExperts
from pipeline.plots import length_against_fidelity, symbol_tiers
from pipeline.run import current_run
from pipeline.stage import Output, StageConfig, stage
from pipeline.symbolic import length_curve as length_file
from pipeline.symbolic import names as names_file
from pipeline.symbolic import page as symbols_page
from pipeline.symbolic.assembly import BlockSymbols, FittedBlock, fit_block, with_kans
from pipeline.symbolic.contest import rule_metrics, winners
from pipeline.symbolic.controls import ConstantMagnitude, PermutedFiring, mean_magnitudes, replaced
from pipeline.symbolic.length_curve import (
    Point,
    formula_coordinates_median,
    length_curve,
    r2_energy_weighted,
    readable_energy_share,
)
from pipeline.symbolic.logic import Literals, build_literals
from pipeline.symbolic.names import Name, Names, Said
from pipeline.symbolic.naming import Words, name_coordinates, name_features, name_scores, say_experts
from pipeline.symbolic.permuted_rules import permuted_rule_f1
from pipeline.symbolic.recording import LayerRecord, record
from pipeline.symbolic.replacement import shortest, symbol_model
from pipeline.symbolic.showcase import showcases
from pipeline.symbolic.tiers import Tier

_TIER_WORDS = {
    Tier.T0: "exact",
    Tier.T1: "few\ncoordinates",
    Tier.T2: "logic and\nfunction",
    Tier.T3: "logic",
    Tier.T4: "dropped",
}


class DistillSymbolsConfig(StageConfig):
    """How faithful the symbols must be, and how hard they are searched for."""

    sample_tokens: int = Field(
        default=16_384, ge=1024, description="Train tokens that formulas and statements are fitted on."
    )
    check_tokens: int = Field(default=16_384, ge=1024, description="Other train tokens that they are judged on.")
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
        description="Least loss_recovered of a block replaced alone; its R2 bound rises until then",
    )
    coordinates: tuple[int, ...] = Field(
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
    budgets: tuple[float, ...] = Field(
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
        if sizes[0] < 1 or list(sizes) != sorted(set(sizes)):
            raise ValueError(f"coordinates={sizes} must rise from 1 or more, such as 1 2 4 8")
        return sizes


@stage(name="distill-symbols", version=6)
def distill_symbols(
    config: DistillSymbolsConfig, *, corpus: Annotated[Corpus, "corpus"], int4: Int4Model
) -> Output[LanguageModel]:
    """PEER int4 -> symbols: formulas and logic in tables, replacing every expert of the model."""
    if config.coordinates[-1] > int4.shape.d_model:
        raise ValueError(f"coordinates up to {config.coordinates[-1]} are more than the width {int4.shape.d_model}")
    assert isinstance(int4.spec.experts, PeerSpec)
    if (groups := int4.spec.experts.scale_groups) > 1:
        raise ValueError(f"symbols take int4 tables with one scale a row, not scale_groups={groups}; quantize with 1")
    began = time.monotonic()
    fit = record(int4, _sample(corpus, config, "fit", config.sample_tokens), places=config.places, what="record")
    check = record(int4, _sample(corpus, config, "check", config.check_tokens), places=config.places, what="record")
    vocabulary = [corpus.tokenizer.decode([v]) for v in range(corpus.spec.vocab_size)]
    counts_V = torch.bincount(fit[0].events.context_ON[0], minlength=corpus.spec.vocab_size)
    literals, names = build_literals(vocabulary, counts_V, places=config.places, identities=config.identities)

    fitted: list[FittedBlock] = []
    blocks: list[BlockSymbols] = []
    generator = current_run().generator("gate networks")
    for layer in range(len(int4.blocks())):
        block = fit_block(
            int4, layer, fit[layer], check[layer], literals, names,
            ladder=config.coordinates, samples=config.samples, generator=generator,
        )  # fmt: skip
        symbols = _shortest(block, corpus, config, 1 - config.least_r2)
        if config.kan_experts:
            most = config.coordinates[-1]
            block = with_kans(block, symbols, fit[layer], check[layer], number=config.kan_experts, most=most)
            # Experts that KANs help may choose again, at the same budget.
            again = _shortest(block, corpus, config, symbols.lost) if block.kans.won else symbols
            symbols = replace(again, kans=replace(block.kans, chosen=again.kans.chosen))
        fitted.append(block)
        blocks.append(symbols)
    model = symbol_model(int4, blocks, vocab_size=corpus.spec.vocab_size, places=config.places)
    seconds = time.monotonic() - began
    num_experts = sum(len(block.tier_E) for block in blocks)
    began = time.monotonic()
    words = Words(literals=literals, literal_names=names, vocabulary=vocabulary, decode=corpus.tokenizer.decode)
    quantities = _names(int4, blocks, fit, check, words)
    naming_seconds = time.monotonic() - began
    points = length_curve(
        int4, fitted, corpus, lost=config.budgets, places=config.places,
        measure=_smaller(config), context_length=config.context_length,
    )  # fmt: skip
    metrics = {
        **measure_against(model, int4, corpus, config.measure, config.context_length),
        **_controls(int4, check, corpus, config),
        **_tier_metrics(blocks),
        **rule_metrics([block.statements for block in blocks]),
        "rule_f1_permuted_mean": _permuted_rules(blocks, fit, check, literals),
        **_name_metrics(quantities),
        "naming_seconds": naming_seconds,
        **measure_size(model),
        "experts_per_second": num_experts / seconds / torch.get_num_threads(),
        "distillation_seconds": seconds,
        "train_tokens": float(config.sample_tokens + config.check_tokens),
    }
    names_by_block = [block.literal_names for block in blocks]
    files = {
        "literals.json": json.dumps(names_by_block).encode(),
        names_file.FILE: quantities.model_dump_json().encode(),
        symbols_page.FILE: symbols_page.page(metrics, showcases(model, blocks, check, quantities, words)).encode(),
        "plot.png": _picture(metrics),
        length_file.FILE: length_file.to_csv(points),
        "length.png": _length_picture(points, metrics),
    }
    return Output(value=model, metrics=metrics, files=files)


def _shortest(block: FittedBlock, corpus: Corpus, config: DistillSymbolsConfig, lost: float) -> BlockSymbols:
    return shortest(
        block, corpus, lost=lost, least_recovered=config.least_recovered, places=config.places,
        context_length=config.context_length,
    )  # fmt: skip


def _sample(corpus: Corpus, config: DistillSymbolsConfig, purpose: str, tokens: int) -> list[Tensor]:
    """(B, T) train windows of about that many tokens."""
    generator = current_run().generator(f"symbols {purpose}")
    batch, length = 16, config.context_length
    return [
        random_windows(corpus.train, batch=batch, length=length, generator=generator)[0]
        for _ in range(max(1, tokens // (batch * length)))
    ]


def _names(
    int4: LanguageModel,
    blocks: list[BlockSymbols],
    fit: list[LayerRecord],
    check: list[LayerRecord],
    words: Words,
) -> Names:
    """A name for every score of every router and every coordinate of every block; what tokens say of the experts."""
    generator = current_run().generator("permuted names")
    found: list[Name] = []
    said: list[Said] = []
    for layer, (block, symbols) in enumerate(zip(int4.blocks(), blocks, strict=True)):
        records = fit[layer], check[layer]
        if isinstance(block.router, PeerRouter):
            found += name_scores(block.router, layer, *records, words, generator)
            found += name_features(block.router, layer, *records, words, generator)
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


def _smaller(config: DistillSymbolsConfig) -> MeasureConfig:
    """For what stands beside the result."""
    return config.measure.model_copy(update={"tokens": min(config.measure.tokens, 16_384)})


def _controls(
    int4: LanguageModel, check: list[LayerRecord], corpus: Corpus, config: DistillSymbolsConfig
) -> dict[str, float]:
    """loss_recovered of two models that know less: constant magnitudes, and firing at random."""
    layers = [block.moe for block in int4.blocks() if isinstance(block.moe, QuantizedExperts)]
    means = mean_magnitudes(int4, check)
    generator = current_run().generator("permuted firing")
    arms = {
        "constant_magnitude": [ConstantMagnitude(e, m) for e, m in zip(layers, means, strict=True)],
        "permuted_firing": [PermutedFiring(e, generator) for e in layers],
    }
    recovered = {}
    for name, experts in arms.items():
        control = LanguageModel(int4.spec)
        control.load_state_dict(int4.state_dict())
        with replaced(control.eval(), experts):
            numbers = measure_against(control, int4, corpus, _smaller(config), config.context_length)
        recovered[f"loss_recovered_{name}"] = numbers["loss_recovered"]
    return recovered


def _permuted_rules(
    blocks: list[BlockSymbols], fit: list[LayerRecord], check: list[LayerRecord], shared: Literals
) -> float:
    """What the search for rules says of noise."""
    searched = [torch.nonzero(winners(block.statements) >= 0)[:, 0] for block in blocks]
    fired, fired_elsewhere = ([record.events for record in records] for records in (fit, check))
    return permuted_rule_f1(searched, fired, fired_elsewhere, shared, current_run().generator("permuted rules"))


def _tier_metrics(blocks: list[BlockSymbols]) -> dict[str, float]:
    tier_E = torch.cat([block.tier_E for block in blocks])
    energy_E = torch.cat([block.energy_E for block in blocks])
    f1_E = torch.cat([block.f1_E for block in blocks])
    rate_E = torch.cat([block.rate_E for block in blocks])
    token_f1_E = torch.cat([block.statements.token_logic.f1_E for block in blocks])
    live_E = (tier_E != Tier.T4) & (rate_E > 0)
    sparse_E = (tier_E == Tier.T1) | (tier_E == Tier.T2)
    coordinates_E = torch.cat([block.coordinates_E for block in blocks])
    gates_E = torch.cat([block.gates_E for block in blocks])
    shares = {f"expert_share_{tier.name.lower()}": _share(tier_E == tier) for tier in Tier}
    energies = {
        f"energy_share_{tier.name.lower()}": float(energy_E[tier_E == tier].sum() / energy_E.sum()) for tier in Tier
    }
    return {
        **shares,
        **energies,
        "readable_energy_share": readable_energy_share(blocks),
        "firing_f1_mean": float(f1_E[live_E].mean()) if bool(live_E.any()) else math.nan,
        "firing_f1_mean_dropped_as_zero": float((f1_E * live_E)[rate_E > 0].mean()),
        "firing_f1_same_rate_null_mean": float(rate_E[live_E].mean()),
        "token_logic_f1_mean": float(token_f1_E[rate_E > 0].mean()),
        "token_logic_f1_same_rate_null_mean": float(rate_E[rate_E > 0].mean()),
        "r2_energy_weighted": r2_energy_weighted(blocks),
        "description_bits_per_expert": float(torch.cat([block.bits_E for block in blocks]).mean()),
        "description_bits_per_expert_exact": float(torch.cat([block.exact_bits_E for block in blocks]).mean()),
        "formula_coordinates_median": formula_coordinates_median(blocks),
        "formula_coordinates_mean": float(coordinates_E[sparse_E].float().mean()) if bool(sparse_E.any()) else 0.0,
        "gates_per_rule_mean": float(gates_E[gates_E > 0].float().mean()) if bool(gates_E.any()) else 0.0,
        "kan_experts_tried": float(sum(block.kans.tried for block in blocks)),
        "kan_experts_won": float(sum(block.kans.won for block in blocks)),
        "kan_experts_chosen": float(sum(block.kans.chosen for block in blocks)),
        "kan_seconds": sum(block.kans.seconds for block in blocks),
        "block_loss_recovered_least": min(block.recovered for block in blocks),
    }


def _picture(metrics: Mapping[str, float]) -> bytes:
    shares = {
        label: [metrics[f"{kind}_share_{tier.name.lower()}"] for tier in Tier]
        for label, kind in (("experts", "expert"), ("output energy", "energy"))
    }
    recovered = {
        "symbols": metrics["loss_recovered"],
        "constant\nmagnitude": metrics["loss_recovered_constant_magnitude"],
        "permuted\nfiring": metrics["loss_recovered_permuted_firing"],
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


def _share(chosen_E: Tensor) -> float:
    return float(chosen_E.float().mean())
