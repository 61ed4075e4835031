"""The tables that execute a block whose experts each take one way to be written."""

# E experts, D model width, K coordinates, F experts with dense u, W experts with a spline, X experts of an option

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.models.symbols import activation_code
from pipeline.models.tables.experts import TableExperts
from pipeline.symbolic.formulas.fitting import Formulas
from pipeline.symbolic.formulas.functions import SPLINE_CODE
from pipeline.symbolic.rules.circuits import Circuit, laid_out
from pipeline.symbolic.rules.statements import Rules, Statements
from pipeline.symbolic.tiers import Tier


@dataclass(frozen=True, slots=True)
class Option:
    """One way to write all experts of the block; which of them take it is chosen later."""

    tier: Tier
    formulas: Formulas | None
    rules: Rules | None = None
    exact: bool = False
    """Whether it is the expert itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """The tables of a block, and what only the options that its experts took know of them."""

    tables: dict[str, Tensor]
    literal_names: list[str]
    coordinates_E: Tensor
    """How many each formula names."""
    f1_E: Tensor
    """Of the rules; 0 without one."""
    circuits: dict[int, Circuit]
    """Of the experts that have a rule."""


Takers = Sequence[tuple[Option, Tensor]]
"""Each option, and (X) the experts that take it."""


def write_tables(
    experts: TableExperts,
    listed: Sequence[Option],
    chosen_E: Tensor,
    statements: Statements,
    *,
    coordinates: int,
    d_model: int,
) -> Written:
    """The tables of a block whose experts take these of the listed options."""
    takers = [(option, torch.nonzero(chosen_E == number)[:, 0]) for number, option in enumerate(listed)]
    tables = _empty(torch.tensor([option.tier for option in listed], dtype=torch.uint8)[chosen_E], coordinates)
    coordinates_E = _write_formulas(tables, takers)
    _write_splines(tables, takers)
    f1_E, circuits = _write_rules(tables, takers)
    _write_dense(tables, experts, d_model)
    literal_names = _write_logic(tables, circuits, statements)
    return Written(
        tables=tables, literal_names=literal_names, coordinates_E=coordinates_E, f1_E=f1_E, circuits=circuits
    )


def _empty(tier_E: Tensor, coordinates: int) -> dict[str, Tensor]:
    num_experts = len(tier_E)
    return {
        "tier_E": tier_E,
        "code_E": torch.zeros(num_experts, dtype=torch.uint8),
        "scale_E": torch.zeros(num_experts),
        "offset_E": torch.zeros(num_experts),
        "index_EK": torch.zeros(num_experts, coordinates, dtype=torch.int16),
        "coefficient_EK": torch.zeros(num_experts, coordinates),
        "intercept_E": torch.zeros(num_experts),
        "dense_row_E": torch.zeros(num_experts, dtype=torch.int32),
        "spline_row_E": torch.zeros(num_experts, dtype=torch.int32),
    }


def _write_formulas(tables: dict[str, Tensor], takers: Takers) -> Tensor:
    """(E) how many coordinates each names."""
    coordinates_E = torch.zeros(len(tables["tier_E"]), dtype=torch.int64)
    for option, at_X in takers:
        f = option.formulas
        if f is None:
            continue
        for name in ("code_E", "scale_E", "offset_E", "intercept_E"):
            tables[name][at_X] = getattr(f, name)[at_X]
        tables["index_EK"][at_X, : f.index_EK.shape[1]] = f.index_EK[at_X].to(torch.int16)
        tables["coefficient_EK"][at_X, : f.index_EK.shape[1]] = f.coefficient_EK[at_X]
        coordinates_E[at_X] = (f.coefficient_EK[at_X] != 0).sum(1)
    return coordinates_E


def _write_splines(tables: dict[str, Tensor], takers: Takers) -> None:
    """Those of the formulas that are taken, and whose each is."""
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    splines = 0
    for option, at_X in takers:
        if option.formulas is None:
            continue
        curved_X, all_E = at_X[option.formulas.code_E[at_X] == SPLINE_CODE], option.formulas.splines
        tables["spline_row_E"][curved_X] = torch.arange(splines, splines + len(curved_X), dtype=torch.int32)
        splines += len(curved_X)
        parts.append((all_E.low_E[curved_X], all_E.high_E[curved_X], all_E.coefficient_EK[curved_X]))
    names = "spline_low_W", "spline_high_W", "spline_coefficient_WK"
    tables |= {name: torch.cat(column) for name, column in zip(names, zip(*parts, strict=True), strict=True)}


def _write_rules(tables: dict[str, Tensor], takers: Takers) -> tuple[Tensor, dict[int, Circuit]]:
    """(E) F1 of the rules, and the circuits of the experts that have one. A rule scales the formula beside it."""
    f1_E, circuits = torch.zeros(len(tables["tier_E"])), dict[int, Circuit]()
    for option, at_X in takers:
        if option.rules is None:
            continue
        if option.tier == Tier.T2:
            for name in ("scale_E", "offset_E"):
                tables[name][at_X] *= option.rules.function_scale_E[at_X]
        else:
            tables["scale_E"][at_X] = option.rules.constant_E[at_X]
        f1_E[at_X] = option.rules.f1_E[at_X]
        circuits |= {expert: option.rules.circuits[expert] for expert in at_X.tolist()}
    return f1_E, circuits


def _write_dense(tables: dict[str, Tensor], experts: TableExperts, d_model: int) -> None:
    """The experts that are written as they are."""
    dense_X = torch.nonzero(tables["tier_E"] == Tier.T0)[:, 0]
    tables["dense_u_FD"] = experts.u.rows(dense_X).reshape(len(dense_X), d_model)
    tables["dense_row_E"][dense_X] = torch.arange(len(dense_X), dtype=torch.int32)
    tables["code_E"][dense_X] = activation_code(experts.spec.activation)
    tables["scale_E"][dense_X] = 1.0
    tables["intercept_E"][dense_X] = experts.bias.detach()[dense_X]


def _write_logic(tables: dict[str, Tensor], circuits: dict[int, Circuit], statements: Statements) -> list[str]:
    """The circuit of all rules and the literals it names, the others left out; returns the literals' names."""
    laid = laid_out(circuits, len(tables["tier_E"]))
    for name in ("rule_E", "gate_G", "wire_a_G", "wire_b_G"):
        tables[name] = getattr(laid, name)
    tables["member_LV"] = statements.literals.member_LV[laid.literal_L]
    tables["literal_offset_L"] = statements.literals.offset_L[laid.literal_L]
    return [statements.names[index] for index in laid.literal_L.tolist()]
