"""A sparse PEER from a dense one: scores of few shared linear features, and rows of u that read few coordinates.

What is cut out of a trained router or row loses far more than what learns to be sparse, so this is where distilling
starts, not where it ends; the supports found here stay while the numbers in them learn (`hold_zeros`).
"""

# N tokens, D model width, R features, S scores of a router (rows and columns of all heads), E experts (of a piece),
# H heads, P pairs (a token and an expert), K terms, X = D + 1 inputs with the intercept

from collections.abc import Sequence

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from kernels.activations import activation
from kernels.pairs import tokens_of_pairs
from pipeline.models.language_model import LanguageModel, ModelSpec
from pipeline.models.peer.experts import PeerLayer
from pipeline.models.peer.router import PeerRouter
from pipeline.models.peer.spec import PeerSpec
from pipeline.models.registry import kind_of
from pipeline.run import steps
from pipeline.transforms.pursuit import pursue

ROUNDS = 50
"""Of dictionary learning: after 50 the squared error falls by about a thousandth of itself a round (2026-11)."""
EXPERTS_A_PIECE = 128
PRIOR_FIRINGS = 8.0
"""Firings that the state's own second moments count for in an expert's: what rare experts lean on."""
LEAST_WEIGHT = 0.02
"""Of a firing, as a share of the mean: where the slope is 0 now it need not stay so."""
CLIPS = 16
"""Candidate scales of an int4 row (quantize-int4's default)."""


class Sparsity(BaseModel):
    """How sparse a PEER's router and rows of u become; what is 0 stays as it is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    score_features: int = Field(
        default=0, ge=0, le=4096, description="r, linear features of the state that scores are sums of."
    )
    score_terms: int = Field(
        default=0, ge=0, le=4096, description="k, most features in one score; 1 or more where there are features."
    )
    u_terms: int = Field(default=0, ge=0, le=2**15, description="Most coordinates that a row of u reads.")

    @model_validator(mode="after")
    def _both_or_none(self) -> "Sparsity":
        if (self.score_features > 0) != (self.score_terms > 0):
            raise ValueError(
                f"score_features={self.score_features} with score_terms={self.score_terms}: give both, or 0 for both"
            )
        return self

    @property
    def dense(self) -> bool:
        """Whether it changes nothing."""
        return self.score_features == self.u_terms == 0


@torch.no_grad()
def sparsified(peer: LanguageModel, batches: Sequence[Tensor], sparsity: Sparsity) -> LanguageModel:
    """The float or int4 PEER made sparse, so that it does on `batches` of (B, T) tokens nearly what it did.

    Thresholds are set anew, and rows of int4 take new scales. ValueError where it cannot be as sparse as that.
    """
    spec, width = peer.spec.experts_as(PeerSpec), peer.shape.d_model
    scores = spec.num_heads * (spec.num_keys + spec.num_columns)
    if sparsity.score_features > min(width, scores):
        raise ValueError(
            f"score_features={sparsity.score_features} is more than {min(width, scores)}, the least of the width "
            f"{width} and the {scores} scores of a router; take fewer, or 0 for none"
        )
    if sparsity.u_terms > width:
        raise ValueError(f"u_terms={sparsity.u_terms} is more than the width {width}; take fewer, or 0 for all")
    changes = {name: terms for name, terms in sparsity.model_dump().items() if terms}
    sparse_spec = PeerSpec.model_validate({**spec.model_dump(), **changes})
    sparse = LanguageModel(ModelSpec(transformer=peer.spec.transformer, experts=sparse_spec))
    sparse = sparse.to(peer.lm_head.weight.device).eval()
    sparse.take_state(peer)
    traces = [peer.trace(tokens_BT) for tokens_BT in batches]
    routers, old_routers = sparse.routers_of(PeerRouter), peer.routers_of(PeerRouter)
    layers = sparse.expert_layers_of(PeerLayer)
    for layer in steps("sparsify blocks", len(layers)):
        x_ND = torch.cat([trace.expert_inputs[layer] for trace in traces])
        if sparsity.score_features and layer in routers:
            _fit_router(routers[layer], old_routers[layer], x_ND)
        if sparsity.u_terms:
            experts = layers[layer]
            pairs = [experts.index(trace.routings[layer]) for trace in traces]
            u_ED, bias_E = _fit_rows(experts, x_ND, pairs, sparsity.u_terms)
            experts.bias.copy_(bias_E)
            experts.tables()["u"].take(u_ED, CLIPS)
    return sparse


def hold_zeros(model: LanguageModel) -> None:
    """From now on what is 0 in the weights of sparse routers and float experts gets no gradient, so that it stays 0.

    Of those that learn at this moment.
    """
    sparse = kind_of(model.spec.experts).sparse
    for block in model.blocks():
        for parameter in sparse(block):
            _hold(parameter)


def _hold(parameter: Tensor) -> None:
    if not parameter.requires_grad:
        return
    support = parameter.detach() != 0
    parameter.register_hook(lambda gradient: gradient * support)


def _fit_router(ours: PeerRouter, theirs: PeerRouter, x_ND: Tensor) -> None:
    """Features and loadings whose scores are nearest to the old ones on these states, then what the gate keeps."""
    mean_D = x_ND.mean(0)
    centred_ND = (x_ND - mean_D).double()
    variance_D, basis_DD = torch.linalg.eigh(centred_ND.T @ centred_ND / len(x_ND))
    variance_D = variance_D.clamp(min=1e-6 * float(variance_D.max()))
    # In whitened coordinates the squared error of rows is that of scores.
    row_SD, intercept_S = theirs.score_rows()
    white_SD = row_SD.double() @ (basis_DD * variance_D.sqrt())
    loading_SR, direction_RD = dictionary(white_SD, ours.spec.score_features, ours.spec.score_terms)
    feature_RD = direction_RD / variance_D.sqrt() @ basis_DD.T
    # A feature and its negative do the same; names speak of where it is high, so its long tail points there.
    sign_R = torch.where((centred_ND @ feature_RD.T).pow(3).mean(0) < 0, -1.0, 1.0)
    ours.features.weight.copy_(feature_RD * sign_R[:, None])
    ours.query.weight.copy_(loading_SR * sign_R)
    ours.query.bias.copy_(intercept_S + row_SD @ mean_D - ours.query.weight @ (ours.features.weight @ mean_D))
    ours.gate.fit(ours, x_ND)


def dictionary(row_SD: Tensor, num_directions: int, terms: int) -> tuple[Tensor, Tensor]:
    """(S, R) loadings, at most `terms` non-zeros a row, and (R, D) unit directions, their product nearest to the rows.

    Matching pursuit of the loadings and least squares of the directions in turns (method of optimal directions, Engan
    et al. 1999), from the rows' first principal directions rotated by varimax.
    """
    left_SX, value_X, right_XD = torch.linalg.svd(row_SD, full_matrices=False)
    loading_SR = left_SX[:, :num_directions] * value_X[:num_directions]
    turn_RR = varimax(loading_SR)
    direction_RD = turn_RR.T @ right_XD[:num_directions]
    best: tuple[float, Tensor, Tensor] | None = None
    for _ in range(ROUNDS):
        loading_SR = _loadings(row_SD, direction_RD, terms)
        error = float((loading_SR @ direction_RD - row_SD).square().sum())
        if best is None or error < best[0]:
            best = error, loading_SR, direction_RD
        direction_RD = torch.linalg.lstsq(loading_SR, row_SD, driver="gelsd").solution
        direction_RD = nn.functional.normalize(direction_RD, dim=1)
    assert best is not None
    return best[1], best[2]


def _loadings(row_SD: Tensor, direction_RD: Tensor, terms: int) -> Tensor:
    """(S, R) by matching pursuit of each row over the directions."""
    ones_RR = torch.eye(len(direction_RD), dtype=row_SD.dtype)
    gram_RR = direction_RD @ direction_RD.T
    full_SR = torch.linalg.solve(gram_RR + 1e-8 * ones_RR, direction_RD @ row_SD.T).T
    # The pursuit's intercept comes last: here it has nothing to explain.
    gram_XX = torch.block_diag(gram_RR, torch.ones(1, 1, dtype=row_SD.dtype))
    target_SX = torch.cat([full_SR, torch.zeros_like(full_SR[:, :1])], dim=1)
    support = pursue(gram_XX.expand(len(row_SD), -1, -1), target_SX, (terms,))
    return torch.zeros_like(full_SR).scatter(1, support.index_EK, support.coefficients[terms][:, :-1])


def varimax(loading_SR: Tensor, *, rounds: int = 100) -> Tensor:
    """(R, R) the rotation after which the squares of each column's loadings vary most (Kaiser 1958)."""
    turn_RR = torch.eye(loading_SR.shape[1], dtype=loading_SR.dtype)
    for _ in range(rounds):
        turned_SR = loading_SR @ turn_RR
        gradient_RR = loading_SR.T @ (turned_SR**3 - turned_SR * turned_SR.square().mean(0))
        left_RR, _, right_RR = torch.linalg.svd(gradient_RR)
        turn_RR = left_RR @ right_RR
    return turn_RR


def _fit_rows(
    experts: PeerLayer, x_ND: Tensor, pairs: list[tuple[Tensor, Tensor, Tensor]], terms: int
) -> tuple[Tensor, Tensor]:
    """(E, D) rows of u of so many non-zeros and (E) biases, by matching pursuit on each expert's firings.

    A firing weighs as much as an error of u . x + b there changes the output.
    """
    offsets = range(0, len(x_ND), len(x_ND) // len(pairs))
    expert_P = torch.cat([pair[0] for pair in pairs])
    token_P = torch.cat([tokens_of_pairs(pair[1]) + first for pair, first in zip(pairs, offsets, strict=True)])
    order_P = torch.argsort(expert_P, stable=True)
    token_P, gate_P = token_P[order_P], torch.cat([pair[2] for pair in pairs])[order_P]
    num_experts = experts.spec.num_experts
    bounds = torch.searchsorted(expert_P[order_P], torch.arange(num_experts + 1)).tolist()
    x_NX = torch.cat([x_ND, torch.ones_like(x_ND[:, :1])], dim=1)
    everywhere_XX = x_NX.T @ x_NX / len(x_NX)
    slope = activation(experts.spec.activation).derivative
    u_ED = experts.tables()["u"].rows(torch.arange(num_experts))
    full_EX = torch.cat([u_ED, experts.bias[:, None]], dim=1)
    sparse_EX = torch.zeros_like(full_EX)
    for target_EX, out_EX, first in zip(
        full_EX.split(EXPERTS_A_PIECE),
        sparse_EX.split(EXPERTS_A_PIECE),
        range(0, num_experts, EXPERTS_A_PIECE),
        strict=True,
    ):
        gram_EXX = torch.empty(len(target_EX), *everywhere_XX.shape)
        for expert, gram_XX in enumerate(gram_EXX):
            own = slice(bounds[first + expert], bounds[first + expert + 1])
            fired_PX = x_NX[token_P[own]]
            weight_P = (gate_P[own] * slope(fired_PX @ target_EX[expert])).square()
            mean = weight_P.mean() if len(weight_P) else torch.ones(())
            weighted_PX = fired_PX * (weight_P + LEAST_WEIGHT * mean)[:, None]
            gram_XX.copy_(weighted_PX.T @ fired_PX + PRIOR_FIRINGS * mean * everywhere_XX)
        support = pursue(gram_EXX, target_EX, (terms,))
        solved_EK = support.coefficients[terms]
        out_EX.scatter_(1, support.index_EK, solved_EK[:, :-1])
        out_EX[:, -1] = solved_EK[:, -1]
    return sparse_EX[:, :-1], sparse_EX[:, -1]
