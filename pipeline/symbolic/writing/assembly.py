"""A symbolic block: all ways to write its experts fitted, and one chosen for each."""

# E experts, O options an expert, D model width, K coordinates, L literals

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kernels.activations import activation
from kernels.errors import Mistake
from pipeline.models.language_model import LanguageModel
from pipeline.models.literals import Literals
from pipeline.models.tables.experts import TableExperts
from pipeline.symbolic.formulas.fitting import Formulas, fit_formulas, own_formulas
from pipeline.symbolic.formulas.kan_formulas import KanFormulas, fit_kans, none_tried, worth_trying
from pipeline.symbolic.recording import LayerRecord
from pipeline.symbolic.rules.circuits import passing_gates
from pipeline.symbolic.rules.statements import Statements, fit_statements
from pipeline.symbolic.tiers import COEFFICIENT_BITS, TIER_BITS, Options, Tier, choose_sharing, comparison_bits
from pipeline.symbolic.writing.tables import Option, write_tables

LOGIC_COORDINATES = 4
"""Most coordinates of the formula that a T2 statement is paired with, if the ladder has so few."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockSymbols:
    """A distilled block: its tables, and what is known of every expert."""

    tables: dict[str, Tensor]
    literal_names: list[str]
    num_dense: int
    num_literals: int
    num_gates: int
    num_splines: int
    coordinates: int
    tier_E: Tensor
    exact_E: Tensor
    """Whether it is written as it is, dense or by the few coordinates that it has."""
    bits_E: Tensor
    exact_bits_E: Tensor
    error_E: Tensor
    variance_E: Tensor
    energy_E: Tensor
    f1_E: Tensor
    """Of the rule against firing, both on the states of the model that is distilled; 1 where it is exact."""
    rate_E: Tensor
    coordinates_E: Tensor
    gates_E: Tensor
    """Of the rule, in the tiers with logic."""
    passing_E: Tensor
    """Those of them that pass one wire on, or its negation."""
    firings_E: Tensor
    """On the checking sample, as errors, energies, F1 and rates are."""
    statements: Statements
    kans: KanFormulas
    recovered: float
    """Of the loss on validation tokens, replaced alone; not a number before it was measured, as is what comes next."""
    lost: float
    """Share of the experts' variance that it was allowed to get wrong."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FittedBlock:
    """A block with all ways to write its experts, from which `symbols` chooses."""

    model: LanguageModel
    layer: int
    experts: TableExperts
    listed: list[Option]
    options: Options
    """Without the price of an exact comparison."""
    formulas: list[Formulas]
    """Without KANs."""
    with_logic: Formulas
    statements: Statements
    kans: KanFormulas
    coordinates: int
    energy_E: Tensor
    variance_E: Tensor
    firings_E: Tensor

    def comparison_bits(self, users_E: Tensor) -> Tensor:
        """(E) price of an exact comparison, if these have one."""
        cell_E = self.experts.index.cell_of_experts()
        return comparison_bits(self.experts.spec, self.model.shape.d_model, cell_E, users_E)

    def choose(self, lost: float) -> tuple[Tensor, Options]:
        """(E) the option of each expert, and all at their prices; at most this share of the variance is wrong."""
        compares_O = torch.tensor([option.tier <= Tier.T1 for option in self.listed])
        return choose_sharing(self.options, compares_O, self.comparison_bits, lost * float(self.variance_E.sum()))

    def symbols(self, lost: float) -> BlockSymbols:
        """The shortest description of the block that gets at most this share of the experts' variance wrong."""
        chosen_E, priced = self.choose(lost)
        return _symbols(self, priced, chosen_E)


def fit_block(
    model: LanguageModel,
    layer: int,
    fit: LayerRecord,
    check: LayerRecord,
    literals: Literals,
    names: list[str],
    *,
    ladder: Sequence[int],
    samples: int,
    generator: torch.Generator,
) -> FittedBlock:
    """Fits all options of one block, but for KANs, on `fit` and judges them on `check`."""
    experts = model.expert_layers_of(TableExperts)[layer]
    what = f"block {layer}"
    formulas = fit_formulas(experts, fit, check, ladder=tuple(ladder), samples=samples, what=f"{what} formulas")
    few = max((size for size in ladder if size <= LOGIC_COORDINATES), default=min(ladder))
    with_logic = next(f for f in formulas if f.num_coordinates == few)
    if experts.spec.u_terms:
        formulas.append(own_formulas(experts, formulas[0].splines))
    energy_E, variance_E = energies(experts, check)
    if not float(variance_E.sum()) > 0:
        raise Mistake(f"no expert of block {layer} does anything on the sample; take more check_tokens")
    statements = fit_statements(
        experts, fit, check, literals, names, with_logic, energy_E,
        generator=generator, what=f"{what} statements",
    )  # fmt: skip
    d_model = model.shape.d_model
    listed, options = _options(experts, d_model, energy_E, formulas, with_logic, statements)
    return FittedBlock(
        model=model, layer=layer, experts=experts, listed=listed, options=options, formulas=formulas,
        with_logic=with_logic, statements=statements, kans=none_tried(),
        coordinates=max(f.index_EK.shape[1] for f in formulas), energy_E=energy_E, variance_E=variance_E,
        firings_E=check.events.count_E,
    )  # fmt: skip


def with_kans(
    fitted: FittedBlock, symbols: BlockSymbols, fit: LayerRecord, check: LayerRecord, *, number: int, most: int
) -> FittedBlock:
    """The block with pruned KANs of at most `most` coordinates as further options, of the experts that may gain.

    `symbols` is the choice without them: now it is known who would stay exact.
    """
    in_reach_E = fitted.energy_E * _in_reach(fitted, symbols)
    sizes = worth_trying(symbols.tier_E, symbols.coordinates_E, in_reach_E, number=number, most=most)
    kans = fit_kans(fitted.experts, fit, check, sizes, fitted.formulas, what=f"block {fitted.layer} KANs")
    formulas, d_model = [*fitted.formulas, *kans.formulas], fitted.model.shape.d_model
    listed, options = _options(fitted.experts, d_model, fitted.energy_E, formulas, fitted.with_logic, fitted.statements)
    return replace(fitted, listed=listed, options=options, kans=kans)


def _in_reach(fitted: FittedBlock, symbols: BlockSymbols) -> Tensor:
    """(E) bool: experts not written as they are, and dense ones that half the error of some formula would give one.

    A dense one stays so while the price of an error is above (bits saved) / error of all its formulas; so the price
    that was paid is at least the largest of these.
    """
    of_T1 = [number for number, option in enumerate(fitted.listed) if option.tier == Tier.T1]
    saved_EO = fitted.options.bits_EO[:, :1] - fitted.options.bits_EO[:, of_T1]
    leaves_E = (saved_EO / fitted.options.error_EO[:, of_T1].clamp(min=1e-30)).amax(1)
    dense_E = symbols.tier_E == Tier.T0
    if not bool(dense_E.any()):
        return ~symbols.exact_E
    return ~symbols.exact_E | (dense_E & (2 * leaves_E >= leaves_E[dense_E].max()))


def v_squares(experts: TableExperts) -> Tensor:
    """(E) |v|^2, which makes an energy of a squared magnitude."""
    return experts.v.rows(torch.arange(experts.spec.num_experts)).square().sum(1)


def energies(experts: TableExperts, check: LayerRecord) -> tuple[Tensor, Tensor]:
    """(E) output energy over all tokens of the sample, and its part about the mean: both times |v|^2."""
    magnitude_P = check.gate_P * activation(experts.spec.activation).f(check.pre_P)
    v2_E, expert_P = v_squares(experts), check.events.expert_P
    square_E = torch.zeros_like(v2_E).index_add(0, expert_P, magnitude_P.square())
    sum_E = torch.zeros_like(v2_E).index_add(0, expert_P, magnitude_P)
    return square_E * v2_E, (square_E - sum_E.square() / len(check.x_ND)) * v2_E


def _options(
    experts: TableExperts,
    d_model: int,
    energy_E: Tensor,
    formulas: list[Formulas],
    with_logic: Formulas,
    statements: Statements,
) -> tuple[list[Option], Options]:
    """Every option with its bits, but for an exact comparison's, and its error in energy."""
    v2_E = v_squares(experts)
    listed = [Option(Tier.T0, None, exact=True)]
    listed += [Option(Tier.T1, f, exact=f.exact) for f in formulas]
    dense_bits = TIER_BITS + (d_model + 1) * COEFFICIENT_BITS
    bits = [torch.full_like(v2_E, dense_bits), *(TIER_BITS + f.bits_E for f in formulas)]
    errors = [torch.zeros_like(v2_E), *(f.error_E * v2_E for f in formulas)]
    for rules in statements.rules:
        listed += [Option(Tier.T2, with_logic, rules), Option(Tier.T3, None, rules)]
        bits += [TIER_BITS + rules.bits_E + with_logic.bits_E, TIER_BITS + rules.bits_E + COEFFICIENT_BITS]
        errors += [rules.function_error_E * v2_E, rules.constant_error_E * v2_E]
    listed.append(Option(Tier.T4, None))
    bits.append(torch.full_like(v2_E, TIER_BITS))
    errors.append(energy_E)
    error_EO = torch.stack(errors, dim=1).nan_to_num(nan=torch.inf)
    # An option that fits nothing must lose even at the lowest price.
    return listed, Options(torch.stack(bits, dim=1), error_EO.clamp(max=1e30))


def _exact_bits(fitted: FittedBlock) -> Tensor:
    """(E) of the shortest way to write every expert exactly."""
    everyone_E = torch.ones(len(fitted.energy_E), dtype=torch.bool)
    exact_O = torch.tensor([option.exact for option in fitted.listed])
    return fitted.options.bits_EO[:, exact_O].amin(1) + fitted.comparison_bits(everyone_E)


def _symbols(fitted: FittedBlock, priced: Options, chosen_E: Tensor) -> BlockSymbols:
    """The block whose experts take these options."""
    listed, statements = fitted.listed, fitted.statements
    written = write_tables(
        fitted.experts, listed, chosen_E, statements,
        coordinates=fitted.coordinates, d_model=fitted.model.shape.d_model,
    )  # fmt: skip
    tables, gates_E = written.tables, torch.zeros(len(chosen_E), dtype=torch.int64)
    passing_E = torch.zeros_like(gates_E)
    for expert, circuit in written.circuits.items():
        gates_E[expert], passing_E[expert] = len(circuit.gates), passing_gates(circuit)
    by_kan_O = torch.tensor([any(option.formulas is f for f in fitted.kans.formulas) for option in listed])
    compared_E = (tables["tier_E"] <= Tier.T1) & (statements.rate_E > 0)
    return BlockSymbols(
        tables=tables,
        literal_names=written.literal_names,
        num_dense=len(tables["dense_u_FD"]),
        num_literals=len(written.literal_names),
        num_gates=len(tables["gate_G"]),
        num_splines=len(tables["spline_low_W"]),
        coordinates=fitted.coordinates,
        tier_E=tables["tier_E"],
        exact_E=torch.tensor([option.exact for option in listed])[chosen_E],
        bits_E=priced.bits_EO.gather(1, chosen_E[:, None])[:, 0],
        error_E=priced.error_EO.gather(1, chosen_E[:, None])[:, 0],
        # Exact tiers compute the very comparison the model fires by; the others' rule was judged.
        f1_E=torch.where(compared_E, 1.0, written.f1_E),
        coordinates_E=written.coordinates_E,
        gates_E=gates_E,
        passing_E=passing_E,
        firings_E=fitted.firings_E,
        statements=statements,
        kans=replace(fitted.kans, chosen=int(by_kan_O[chosen_E].sum())),
        recovered=math.nan,
        lost=math.nan,
        exact_bits_E=_exact_bits(fitted),
        energy_E=fitted.energy_E,
        variance_E=fitted.variance_E,
        rate_E=statements.rate_E,
    )
