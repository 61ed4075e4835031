"""Of the experts that a token reaches, those that contribute most, and what share the others have."""

# T tokens, P pairs (a token and an expert), F pairs that fire, each once, E experts of a block, M most that one token
# reaches, K kept a token

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels.errors import Mistake
from pipeline.models.contract import Pairs

_DENSE = 16
"""Pairs are laid out for every token and expert where at least one in so many is there: sorting them takes longer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Strongest:
    """What is kept of a block on T tokens. An expert fires where it adds anything to the residual stream."""

    expert_TK: Tensor
    """int32, ascending; -1 where fewer than K fired. Of equal contributions the lower numbers are kept."""
    contribution_TK: Tensor
    """float32: L2 norm of what the expert adds, its heads together; 0 where no expert stands."""
    fired_T: Tensor
    """int32: how many fired, those that were left out among them."""
    omitted_share_T: Tensor
    """float32: contributions left out over all contributions, which bounds the norm left out over their sum."""


def strongest(pairs: Pairs, *, tokens: int, experts: int, most: int) -> Strongest:
    """The `most` experts of each token that contribute most. ValueError for a contribution that is not finite.

    It is done on the CPU and in numpy, whose sorts of short rows take half as long as a topk.
    """
    token_P, expert_P = pairs.token_P.cpu().numpy(), pairs.expert_P.cpu().numpy()
    norm_P = pairs.norm_P.float().cpu().numpy()
    if not np.isfinite(norm_P).all():
        wrong = int(np.flatnonzero(~np.isfinite(norm_P))[0])
        raise Mistake(
            f"expert {expert_P[wrong]} contributes {norm_P[wrong]} on a token; such a model cannot be recorded, train "
            "it anew or name another"
        )
    key_P = token_P * experts + expert_P
    if len(key_P) * _DENSE >= tokens * experts:
        expert_TM, contribution_TM = None, _everywhere(key_P, norm_P, tokens, experts)
    else:
        expert_TM, contribution_TM = _side_by_side(key_P, norm_P, tokens, experts)
    fired_T = np.count_nonzero(contribution_TM, axis=1)
    flat_F = np.flatnonzero(_kept(contribution_TM, fired_T, most))
    token_F, place_F = np.divmod(flat_F, contribution_TM.shape[1])
    contribution_F = contribution_TM.ravel()[flat_F]
    to_F = token_F * most + _places(token_F, tokens)
    expert_TK, contribution_TK = np.full(tokens * most, -1, np.int32), np.zeros(tokens * most, np.float32)
    expert_TK[to_F] = place_F if expert_TM is None else expert_TM.ravel()[flat_F]
    contribution_TK[to_F] = contribution_F
    all_T = contribution_TM.sum(1).astype(np.float64)
    kept_T = np.bincount(token_F, weights=contribution_F, minlength=tokens)
    omitted_T = np.where(fired_T > most, (all_T - kept_T).clip(min=0) / all_T.clip(min=1e-300), 0)
    return Strongest(
        expert_TK=torch.from_numpy(expert_TK).view(tokens, most),
        contribution_TK=torch.from_numpy(contribution_TK).view(tokens, most),
        fired_T=torch.from_numpy(fired_T.astype(np.int32)),
        omitted_share_T=torch.from_numpy(omitted_T.astype(np.float32)),
    )


def _everywhere(
    key_P: NDArray[np.int64], norm_P: NDArray[np.float32], tokens: int, experts: int
) -> NDArray[np.float32]:
    """(T, E) contributions, 0 of those that a token does not reach."""
    contribution_X = torch.zeros(tokens * experts)
    contribution_X.index_add_(0, torch.from_numpy(key_P), torch.from_numpy(norm_P))
    return contribution_X.view(tokens, experts).numpy()


def _side_by_side(
    key_P: NDArray[np.int64], norm_P: NDArray[np.float32], tokens: int, experts: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """(T, M) experts, ascending, and contributions of each token, 0 behind its last."""
    sorted_P, order_P = (of_P.numpy() for of_P in torch.sort(torch.from_numpy(key_P), stable=True))
    is_first_P = np.diff(sorted_P, prepend=-1) != 0
    token_F, expert_F = np.divmod(sorted_P[is_first_P], experts)
    place_F = _places(token_F, tokens)
    width = 1 + int(place_F.max(initial=0))
    expert_X, contribution_X = np.zeros(tokens * width, np.int64), np.zeros(tokens * width, np.float32)
    to_F = token_F * width + place_F
    expert_X[to_F] = expert_F
    to_P = torch.from_numpy(to_F[np.cumsum(is_first_P) - 1])
    torch.from_numpy(contribution_X).index_add_(0, to_P, torch.from_numpy(norm_P[order_P]))
    return expert_X.reshape(tokens, width), contribution_X.reshape(tokens, width)


def _places(token_F: NDArray[np.int64], tokens: int) -> NDArray[np.int64]:
    """Of these in order of tokens, the how manieth of its token each one is, from 0."""
    count_T = np.bincount(token_F, minlength=tokens)
    return np.arange(len(token_F)) - np.repeat(np.cumsum(count_T) - count_T, count_T)


def _kept(contribution_TM: NDArray[np.float32], fired_T: NDArray[np.int64], most: int) -> NDArray[np.bool_]:
    """(T, M) whether a contribution is one of the `most` largest of its token, none of 0 among them."""
    kept_TM = contribution_TM > 0
    many_X = np.flatnonzero(fired_T > most)
    if not len(many_X):
        return kept_TM
    row_XM = contribution_TM[many_X]
    least_X1 = np.sort(row_XM, axis=1)[:, -most, None]
    kept_XM = row_XM >= least_X1
    if np.count_nonzero(kept_XM) > most * len(many_X):  # several are the least
        over_XM, least_XM = row_XM > least_X1, row_XM == least_X1
        kept_XM = over_XM | (least_XM & (over_XM.sum(1, keepdims=True) + least_XM.cumsum(1) <= most))
    kept_TM[many_X] = kept_XM
    return kept_TM
