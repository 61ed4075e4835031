"""Where quantization errs: the signal to noise of all tables and of every block's, and the error of every row."""

# E experts, D model width

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.models.contract import Table
from pipeline.models.language_model import LanguageModel
from pipeline.models.tables.rounding import quantize_int4

SMALLEST_ENERGY = 1e-30
"""Of a signal or a noise: tables that are written exactly have many decibels, and not infinitely many."""

Energies = tuple[Tensor, Tensor]
"""(E), (E): squared norms of rows and of their errors."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TableErrors:
    """Errors of tables of one kind, in all blocks."""

    sqnr_db: list[float]
    """Signal to noise, a block."""
    row_error_E: Tensor
    """|error| / |row| of the rows of all blocks, on the CPU."""


@torch.no_grad()
def table_errors(model: LanguageModel, peer: LanguageModel) -> dict[str, TableErrors]:
    """Of u, of v, and of both in plain int4, each row at the scale of its absmax: the baseline."""
    u: list[Energies] = []
    v: list[Energies] = []
    plain: list[Energies] = []
    for ours, theirs in zip(model.expert_layers(), peer.expert_layers(), strict=True):
        rows = {name: all_rows(table) for name, table in theirs.tables().items()}
        read = {name: all_rows(table) for name, table in ours.tables().items()}
        u.append(_energies(rows["u"], read["u"]))
        v.append(_energies(rows["v"], read["v"]))
        signals, noises = zip(*(_energies(rows_ED, _at_absmax(rows_ED)) for rows_ED in rows.values()), strict=True)
        plain.append((torch.cat(signals), torch.cat(noises)))
    return {"u": _errors(u), "v": _errors(v), "u and v in int4 at absmax": _errors(plain)}


@torch.no_grad()
def sqnr_db(model: LanguageModel, peer: LanguageModel) -> float:
    """Signal to quantization noise of all tables together, decibels."""
    signal = noise = 0.0
    for ours, theirs in zip(model.expert_layers(), peer.expert_layers(), strict=True):
        for name, table in theirs.tables().items():
            rows_ED = all_rows(table)
            signal += rows_ED.double().square().sum().item()
            noise += (all_rows(ours.tables()[name]) - rows_ED).double().square().sum().item()
    return 10 * math.log10(max(signal, SMALLEST_ENERGY) / max(noise, SMALLEST_ENERGY))


def all_rows(table: Table) -> Tensor:
    """(E, D) what a forward pass reads."""
    return table.rows(torch.arange(table.num_rows, device=table.stored.device))


def _at_absmax(rows_ED: Tensor) -> Tensor:
    value_ED, scale_E = quantize_int4(rows_ED, clips=1)
    return value_ED.float() * scale_E.float()[:, None]


def _energies(rows_ED: Tensor, read_ED: Tensor) -> Energies:
    return _squares(rows_ED), _squares(read_ED - rows_ED)


def _squares(rows_ED: Tensor) -> Tensor:
    return rows_ED.double().square().sum(1).cpu()


def _errors(blocks: Sequence[Energies]) -> TableErrors:
    signal_E, noise_E = (torch.cat(energies) for energies in zip(*blocks, strict=True))
    return TableErrors(
        sqnr_db=[_decibels(signal.sum().item()) - _decibels(noise.sum().item()) for signal, noise in blocks],
        row_error_E=(noise_E / signal_E.clamp(min=SMALLEST_ENERGY)).sqrt(),
    )


def _decibels(energy: float) -> float:
    return 10 * math.log10(max(energy, SMALLEST_ENERGY))
