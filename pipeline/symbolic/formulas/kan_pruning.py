"""One function of a few coordinates as a KAN: trained on candidates, its inputs pruned, its edges fixed, refitted.

The trained [C, 1, 1] KAN has splines on all edges and a penalty on them. pykan's scores say which inputs matter; the
others are pruned. Then the inner edges are fixed to the identity and the outer one to a known function, which leaves
scale * f(sum of c_i x_i + b) + offset, and LBFGS fits these numbers to the function's own values.
"""

# S samples, C candidate coordinates, K coordinates kept

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.symbolic.formulas._pykan import pykan

GRID, TRAIN_STEPS, REFIT_STEPS, PENALTY = 3, 3, 2, 1e-3
"""Intervals of a spline; LBFGS steps, each of up to 20 iterations; weight of pykan's penalty on splines."""
REACH = 3.0
"""Standard deviations of an input that its spline covers."""


@dataclass(frozen=True, slots=True)
class Affine:
    """scale * f(coefficient . x[kept] + intercept) + offset."""

    kept_K: Tensor
    """Which of the candidates, rising."""
    coefficient_K: Tensor
    intercept: float
    scale: float
    offset: float


def pruned(
    x_SC: Tensor,
    y_S: Tensor,
    weight_S: Tensor,
    function: str,
    *,
    keep: int,
    start: Callable[[Tensor], Tensor],
    seed: int,
) -> Affine:
    """y as scale * f(c . x[kept] + b) + offset of the `keep` candidates that a trained KAN scores highest.

    `function` is a name of pykan's library, or of `kan_functions`. Given the candidates kept, `start` says
    (K + 1) coefficients and intercept from which the refit sets out, with scale 1.
    """
    mean_C, deviation_C = x_SC.mean(0), x_SC.std(0) + 1e-6
    size = float((weight_S * y_S.square()).sum() / weight_S.sum()) ** 0.5 + 1e-12
    inputs_SC = (x_SC - mean_C) / deviation_C
    data = _dataset(inputs_SC, torch.stack([y_S / size, weight_S / weight_S.mean()], dim=1))
    with pykan() as kan:
        model = kan.MultKAN(
            width=[x_SC.shape[1], 1, 1], grid=GRID, k=3, noise_scale=0.1, grid_range=[-REACH, REACH], seed=seed,
            auto_save=False,
        )  # fmt: skip
        model.fit(data, opt="LBFGS", steps=TRAIN_STEPS, lamb=PENALTY, update_grid=False, loss_fn=_weighted)
        kept_K = model.feature_score.detach().topk(keep).indices.sort().values
        model = model.prune_input(active_inputs=kept_K.tolist(), log_history=False)
        model.auto_save = model.save_act = False
        begun_K1 = start(kept_K)
        coefficient_K = begun_K1[:-1] * deviation_C[kept_K]
        intercept = float(begun_K1[-1] + begun_K1[:-1] @ mean_C[kept_K])
        fix(model, function, coefficient_K, intercept, scale=1 / size, offset=0.0)
        model.fit(data, opt="LBFGS", steps=REFIT_STEPS, update_grid=False, loss_fn=_weighted)
    with torch.no_grad():
        coefficient_K, intercept, scale, offset = _read(model)
    coefficient_K = coefficient_K / deviation_C[kept_K]
    return Affine(
        kept_K=kept_K,
        coefficient_K=coefficient_K,
        intercept=intercept - float(coefficient_K @ mean_C[kept_K]),
        scale=scale * size,
        offset=offset * size,
    )


def _dataset(inputs_SC: Tensor, labels_S2: Tensor) -> dict[str, Tensor]:
    """As pykan takes it. What it would test on is of no interest here."""
    return {
        "train_input": inputs_SC, "train_label": labels_S2, "test_input": inputs_SC[:2], "test_label": labels_S2[:2]
    }  # fmt: skip


def _weighted(found_S1: Tensor, labels_S2: Tensor) -> Tensor:
    """The weighted mean square; a label is a value with its weight."""
    return (labels_S2[:, 1:] * (found_S1 - labels_S2[:, :1]).square()).mean()


@torch.no_grad()
def fix(model: Any, function: str, coefficient_K: Tensor, intercept: float, *, scale: float, offset: float) -> None:
    """Makes the first edges of a MultKAN coefficient * x, the intercept with the first, and the last edge scale * f
    + offset. Within the door, whose library has the function's name."""
    last = model.depth - 1
    for index in range(len(coefficient_K)):
        model.fix_symbolic(0, index, 0, "x", fit_params_bool=False)
    model.fix_symbolic(last, 0, 0, function, fit_params_bool=False)
    # Of an edge c * f(a * x + b) + d.
    inner_K4 = model.symbolic_fun[0].affine.data[0]
    inner_K4[:, 0], inner_K4[:, 1], inner_K4[:, 2], inner_K4[:, 3] = 1.0, 0.0, coefficient_K, 0.0
    inner_K4[0, 3] = intercept
    model.symbolic_fun[last].affine.data[0, 0] = torch.tensor([1.0, 0.0, scale, offset])


def _read(model: Any) -> tuple[Tensor, float, float, float]:
    """Coefficients, intercept, scale and offset of a [K, 1, 1] MultKAN that was fixed."""
    a_K, b_K, c_K, d_K = model.symbolic_fun[0].affine[0].T
    a, b, c, d = model.symbolic_fun[1].affine[0, 0].tolist()
    return a * a_K * c_K, a * float((b_K * c_K + d_K).sum()) + b, c, d
