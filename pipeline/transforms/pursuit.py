"""Sparse u: orthogonal matching pursuit of every expert's pre-activation on its own firings, many experts at once."""

# E experts (of one piece), S samples an expert, D model width, X = D + 1 inputs with the intercept, K non-zeros

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Support:
    """u . x + b written with few coordinates: coefficient . x[index] + intercept, for growing numbers of them."""

    index_EK: Tensor
    """Coordinates in the order they were taken."""
    coefficients: dict[int, Tensor]
    """For each size k of the ladder: (E, k + 1), the intercept last."""


def matching_pursuit(
    x_ESD: Tensor, weight_ES: Tensor, u_ED: Tensor, bias_E: Tensor, ladder: tuple[int, ...]
) -> Support:
    """Greedy least squares of u . x + b on coordinates of x and an intercept, samples weighted.

    The target is linear, so only the weighted second moments of x are needed. A ridge of 1e-4 of their mean
    keeps experts with few samples solvable.
    """
    ones_ES1 = torch.ones_like(weight_ES)[..., None]
    x_ESX = torch.cat([x_ESD, ones_ES1], dim=-1)
    gram_EXX = (x_ESX * weight_ES[..., None]).transpose(1, 2) @ x_ESX
    target_EX = torch.cat([u_ED, bias_E[:, None]], dim=1)
    return pursue(gram_EXX, target_EX, ladder)


def pursue(gram_EXX: Tensor, target_EX: Tensor, ladder: tuple[int, ...]) -> Support:
    """As `matching_pursuit`, from the second moments (intercept last) and the full linear target."""
    experts, width = target_EX.shape
    rows = torch.arange(experts)
    ridge_E = 1e-4 * gram_EXX.diagonal(dim1=1, dim2=2).mean(1) + 1e-9
    right_EX = (gram_EXX @ target_EX[..., None])[..., 0]
    scale_EX = (gram_EXX.diagonal(dim1=1, dim2=2) + ridge_E[:, None]).sqrt()
    # The intercept comes first and free; coordinates join it one by one.
    chosen_EK = torch.full((experts, 1), width - 1, dtype=torch.int64)
    taken_EX = torch.zeros(experts, width, dtype=torch.bool)
    taken_EX[:, -1] = True
    coefficients: dict[int, Tensor] = {}
    for size in range(max(ladder) + 1):
        gram_EKK = gram_EXX[rows[:, None, None], chosen_EK[:, :, None], chosen_EK[:, None, :]]
        gram_EKK = gram_EKK + torch.eye(size + 1, dtype=gram_EXX.dtype) * ridge_E[:, None, None]
        solved_EK = torch.linalg.solve(gram_EKK, right_EX.gather(1, chosen_EK))
        if size in ladder:
            coefficients[size] = torch.cat([solved_EK[:, 1:], solved_EK[:, :1]], dim=1)
        if size == max(ladder):
            break
        columns_EXK = gram_EXX.gather(2, chosen_EK[:, None, :].expand(experts, width, size + 1))
        explained_EX = (columns_EXK @ solved_EK[..., None])[..., 0]
        gain_EX = ((right_EX - explained_EX) / scale_EX).abs().masked_fill(taken_EX, -1.0)
        best_E = gain_EX.argmax(1)
        taken_EX[rows, best_E] = True
        chosen_EK = torch.cat([chosen_EK, best_E[:, None]], dim=1)
    return Support(chosen_EK[:, 1:], coefficients)
