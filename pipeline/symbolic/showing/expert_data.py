"""An expert's data, filled from the tables of its model."""

# H heads, I sub-keys of an axis, Q width of a sub-key, R features or coordinates that a score is a sum of

import math
from collections.abc import Sequence

import sympy
import torch
from torch import Tensor, nn

from kernels.symbol_table.functions import KNOTS, SPLINE_CODE
from pipeline.models.language_model import LanguageModel
from pipeline.models.peer.router import PeerRouter
from pipeline.models.symbols import SymbolExperts
from pipeline.symbolic.formulas.functions import BY_CODE
from pipeline.symbolic.rules.logic import GATE_OUTPUT_G4
from pipeline.symbolic.showing.blocks import router_block, router_scores, symbol_experts
from pipeline.symbolic.showing.expert_form import (
    LOGIC_RULE,
    SPLINE_RULE,
    Axis,
    CatalogueFunction,
    Cut,
    ExpertData,
    GateData,
    Head,
    LiteralData,
    LogicFiring,
    Magnitude,
    NoFiring,
    ScoreFiring,
    SplineFunction,
    State,
    Sum,
    Writes,
)
from pipeline.symbolic.showing.firing_rules import firing_statement, in_words, rule_circuit, rule_names
from pipeline.symbolic.showing.magnitudes import Z, coefficients
from pipeline.symbolic.tiers import TIER_WORDS, Tier


def expert_data(
    model: LanguageModel, layer: int, expert: int, names: Sequence[str], vocabulary: Sequence[str], *, id: str
) -> ExpertData:
    """The expert as data; ValueError that gives the range for a layer or expert that is not there.

    `names` are the literals of this block, `vocabulary` the text of every token.
    """
    experts = symbol_experts(model, layer)
    statement = in_words(firing_statement(model, layer, expert, names, vocabulary), experts, expert)
    tier = Tier(int(experts.tier_E[expert]))
    if tier == Tier.T4:
        fires = NoFiring()
    elif tier <= Tier.T1:
        fires = score_firing(model, layer, expert, statement)
    else:
        fires = _logic_firing(experts, expert, names, vocabulary, statement)
    return ExpertData(
        model=id,
        layer=layer,
        expert=expert,
        tier=tier.name,
        tier_words=TIER_WORDS[tier],
        fires=fires,
        magnitude=None if tier == Tier.T4 else _magnitude(experts, layer, expert, tier),
        writes=None if tier == Tier.T4 else Writes(block=layer, v=_v(experts, expert)),
    )


def state_of(block: int) -> State:
    return State(
        block=block,
        words=f"the residual stream of block {block} after its attention, normalised by the block's second RMS norm "
        f"(post_attention_layernorm): Transformer.trace(tokens).expert_inputs[{block}]",
    )


def score_firing(model: LanguageModel, layer: int, expert: int, statement: str) -> ScoreFiring:
    """How an expert of an exact tier fires."""
    router, experts = router_scores(model, layer), symbol_experts(model, layer)
    spec = router.spec
    row, column = divmod(int(experts.index.cell_of_experts()[expert]), spec.num_columns)
    by_axis = [_sums(*axis) for axis in _score_sums(router)]
    cuts, limit_H = router.gate.cuts(router), router.gate.limits(router)
    norms = (None, None) if cuts is None else (cuts.rows, cuts.columns)
    heads = []
    for head in range(spec.num_heads):
        rows, columns = (
            Axis(scores=sums[head], cut=None if norm is None else _cut(router, norm, head))
            for sums, norm in zip(by_axis, norms, strict=True)
        )
        limit = -math.inf if limit_H is None else float(limit_H[head])
        heads.append(Head(rows=rows, columns=columns, threshold=limit if math.isfinite(limit) else None))
    return ScoreFiring(
        statement=statement,
        rule=router.gate.rule,
        gate=spec.gate,
        reads=state_of(router_block(model, layer)),
        scores_of="features" if spec.score_features else "state",
        features=tuple(map(tuple, router.features.weight.tolist())) if spec.score_features else (),
        row=row,
        column=column,
        heads=tuple(heads),
        pairs_per_head=spec.pairs_per_head if limit_H is None else None,
    )


@torch.no_grad()
def _score_sums(router: PeerRouter) -> list[tuple[Tensor, Tensor]]:
    """(H, I, R) coefficients and (H, I) intercepts of rows and of columns, whatever keys and norm the router has."""
    spec, query, norm = router.spec, router.query, router.query_norm
    weight_SR = query.weight.double()
    bias_S = torch.zeros(len(weight_SR), dtype=torch.float64) if query.bias is None else query.bias.double()
    if isinstance(norm, nn.BatchNorm1d):
        mean_S, deviation_S = _statistics(norm)
        weight_SR, bias_S = weight_SR / deviation_S[:, None], (bias_S - mean_S) / deviation_S
    axes = [
        (weight.unflatten(0, (spec.num_heads, -1)), bias.unflatten(0, (spec.num_heads, -1)))
        for weight, bias in zip(weight_SR.split(router.widths), bias_S.split(router.widths), strict=True)
    ]
    if spec.sub_keys == "identity":
        return axes
    keys = [part.double().expand(spec.num_heads, -1, -1) for part in (router.row_keys, router.column_keys)]
    return [
        (keys_HIQ @ weight_HQR, (keys_HIQ @ bias_HQ[..., None])[..., 0])
        for keys_HIQ, (weight_HQR, bias_HQ) in zip(keys, axes, strict=True)
    ]


def _statistics(norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """Means and deviations, in float64."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return norm.running_mean.double(), (norm.running_var.double() + norm.eps).sqrt()


def _sums(weight_HIR: Tensor, intercept_HI: Tensor) -> list[tuple[Sum, ...]]:
    return [
        tuple(
            Sum(terms=tuple((index, value) for index, value in enumerate(row) if value), intercept=intercept)
            for row, intercept in zip(rows, intercepts, strict=True)
        )
        for rows, intercepts in zip(weight_HIR.tolist(), intercept_HI.tolist(), strict=True)
    ]


def _cut(router: PeerRouter, norm: nn.BatchNorm1d, head: int) -> Cut:
    mean_H, deviation_H = _statistics(norm)
    mean, deviation = float(mean_H[head]), float(deviation_H[head])
    margin = router.spec.tie_margin
    assert norm.running_var is not None
    return Cut(
        mean=mean,
        variance=float(norm.running_var[head]),
        epsilon=norm.eps,
        deviations=router.deviations,
        tie_margin=margin,
        limit=mean + router.deviations * deviation,
        margin=margin * deviation,
    )


def _logic_firing(
    experts: SymbolExperts, expert: int, names: Sequence[str], vocabulary: Sequence[str], statement: str
) -> LogicFiring:
    circuit = rule_circuit(experts, expert)
    said = rule_names(experts, circuit, names, vocabulary)
    return LogicFiring(
        statement=statement,
        rule=LOGIC_RULE,
        literals=tuple(
            LiteralData(
                name=name,
                back=int(experts.literal_offset_L[literal]),
                tokens=tuple(torch.nonzero(experts.member_LV[literal])[:, 0].tolist()),
            )
            for name, literal in zip(said, circuit.inputs, strict=True)
        ),
        gates=tuple(GateData(truth=tuple(GATE_OUTPUT_G4[kind].tolist()), a=a, b=b) for kind, a, b in circuit.gates),
    )


def _magnitude(experts: SymbolExperts, layer: int, expert: int, tier: Tier) -> Magnitude:
    return Magnitude(
        reads=state_of(layer),
        terms=tuple(coefficients(experts, expert).items()),
        intercept=float(experts.intercept_E[expert]),
        function=_function(experts, expert),
        scale=float(experts.scale_E[expert]),
        offset=float(experts.offset_E[expert]),
        times_gate=tier <= Tier.T1,
    )


def _function(experts: SymbolExperts, expert: int) -> CatalogueFunction | SplineFunction:
    code = int(experts.code_E[expert])
    if code != SPLINE_CODE:
        return CatalogueFunction(name=BY_CODE[code].name, formula=sympy.sstr(BY_CODE[code].symbol(Z)))
    row = int(experts.spline_row_E[expert])
    coefficient_K = experts.spline_coefficient_WK[row].tolist()
    assert len(coefficient_K) == KNOTS + 2
    return SplineFunction(
        rule=SPLINE_RULE,
        low=float(experts.spline_low_W[row]),
        high=float(experts.spline_high_W[row]),
        coefficients=tuple(coefficient_K),
    )


def _v(experts: SymbolExperts, expert: int) -> tuple[float, ...]:
    return tuple(experts.v.rows(torch.tensor([expert]))[0].tolist())
