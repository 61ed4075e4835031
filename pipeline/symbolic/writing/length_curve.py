"""How short against how faithful: the same fitted ways at several error budgets, each put into the whole model."""

# E experts

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch

from artifacts.csv_file import csv_file
from pipeline.measuring.held_out import HeldOut
from pipeline.measuring.loss import measure_against
from pipeline.models.language_model import LanguageModel
from pipeline.run import steps
from pipeline.symbolic.recording import LayerRecord
from pipeline.symbolic.tiers import READABLE, Tier
from pipeline.symbolic.writing.assembly import BlockSymbols, FittedBlock
from pipeline.symbolic.writing.held_out import blocks_on
from pipeline.symbolic.writing.replacement import symbol_model

FILE = "length.csv"


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """All blocks written as shortly as an error budget allows."""

    lost: float
    """Share of the experts' variance on the checking sample that may be wrong, a block."""
    bits_per_expert: float
    readable_energy_share: float
    dropped_expert_share: float
    formula_coordinates_median: float
    r2_energy_weighted: float
    loss_increase_nats: float
    loss_increase_standard_error_nats: float
    kl_to_teacher_nats: float
    loss_recovered: float


def length_curve(
    model: LanguageModel,
    fitted: Sequence[FittedBlock],
    held: Sequence[LayerRecord],
    held_out: HeldOut,
    *,
    lost: Sequence[float],
    places: int,
) -> list[Point]:
    """A point for each budget, measured against `model` on held-out tokens, of which `held` is a record."""
    points = []
    for at in steps("length against fidelity", len(lost)):
        chosen = [block.symbols(lost[at]) for block in fitted]
        made = symbol_model(model, chosen, vocab_size=held_out.corpus.spec.vocab_size, places=places)
        blocks = blocks_on(chosen, made, model, held)
        measured = measure_against(made, model, held_out)
        points.append(
            Point(
                lost=lost[at],
                bits_per_expert=float(torch.cat([block.bits_E for block in blocks]).mean()),
                readable_energy_share=readable_energy_share(blocks),
                dropped_expert_share=float(torch.cat([block.tier_E for block in blocks]).eq(Tier.T4).float().mean()),
                formula_coordinates_median=formula_coordinates_median(blocks),
                r2_energy_weighted=r2_energy_weighted(blocks),
                loss_increase_nats=measured["loss_increase_nats"],
                loss_increase_standard_error_nats=measured["loss_increase_standard_error_nats"],
                kl_to_teacher_nats=measured["kl_to_teacher_nats"],
                loss_recovered=measured["loss_recovered"],
            )
        )
    return points


def readable_energy_share(blocks: Sequence[BlockSymbols]) -> float:
    """Of the output energy of all blocks, what comes from tiers that people can read."""
    energy_E, tier_E = (torch.cat([getattr(block, name) for block in blocks]) for name in ("energy_E", "tier_E"))
    return float(energy_E[torch.isin(tier_E, torch.tensor(READABLE, dtype=tier_E.dtype))].sum() / energy_E.sum())


def r2_energy_weighted(blocks: Sequence[BlockSymbols]) -> float:
    """Mean over blocks of 1 - error / variance of the experts' outputs, on all tokens of a sample."""
    return sum(1 - float(block.error_E.sum() / block.variance_E.sum()) for block in blocks) / len(blocks)


def formula_coordinates_median(blocks: Sequence[BlockSymbols]) -> float:
    """Of the experts that have a formula, dense ones among them with the width; 0 where none has one."""
    tier_E, coordinates_E = (
        torch.cat([getattr(block, name) for block in blocks]) for name in ("tier_E", "coordinates_E")
    )
    width = blocks[0].tables["dense_u_FD"].shape[1]
    terms_E = torch.where(tier_E == Tier.T0, width, coordinates_E)[tier_E <= Tier.T2]
    return float(terms_E.float().median()) if len(terms_E) else 0.0


def to_csv(points: Sequence[Point]) -> bytes:
    """A line a point, its columns named as the fields."""
    names = [field.name for field in fields(Point)]
    return csv_file(names, ([f"{getattr(point, name):.6g}" for name in names] for point in points))
