"""Of the experts that a token reaches, those that contribute most, and what share the others have."""

# T tokens, P pairs (a token and an expert), F pairs that fire, each once, E experts of a block, M most that one token
# fires, K kept a token

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.pairs import starts
from pipeline.models.contract import Pairs

_DENSE = 16
"""Pairs are laid out for every token and expert where at least one in so many is there: sorting them takes longer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Strongest:
    """What is kept of a block on T tokens. An expert fires where it adds anything to the residual stream."""

    expert_TK: Tensor
    """int32, by descending contribution; -1 where fewer than K fired."""
    contribution_TK: Tensor
    """float32: L2 norm of what the expert adds, its heads together; 0 where no expert stands."""
    fired_T: Tensor
    """int32: how many fired, those that were left out among them."""
    omitted_share_T: Tensor
    """float32: contributions left out over all contributions, which bounds the norm left out over their sum."""


def strongest(pairs: Pairs, *, tokens: int, experts: int, most: int) -> Strongest:
    """The `most` experts of each token that contribute most. ValueError for a contribution that is not finite."""
    if not pairs.norm_P.isfinite().all():
        wrong = int((~pairs.norm_P.isfinite()).nonzero()[0, 0])
        raise ValueError(
            f"expert {int(pairs.expert_P[wrong])} contributes {float(pairs.norm_P[wrong])} on a token; such a model "
            "cannot be recorded, train it anew or name another"
        )
    lay_out = _everywhere if len(pairs.norm_P) * _DENSE >= tokens * experts else _side_by_side
    expert_TM, contribution_TM = lay_out(pairs, tokens, experts)
    fired_T = (contribution_TM > 0).sum(1, dtype=torch.int32)
    kept = min(most, contribution_TM.shape[1])
    contribution_TK, place_TK = contribution_TM.topk(kept, dim=1)
    expert_TK = place_TK if expert_TM is None else expert_TM.gather(1, place_TK)
    expert_TK = expert_TK.where(contribution_TK > 0, -1).to(torch.int32)
    all_T = contribution_TM.sum(1)
    omitted_T = torch.where(fired_T > kept, (all_T - contribution_TK.sum(1)).clamp(min=0) / all_T, 0)
    return Strongest(
        expert_TK=_widened(expert_TK, most, -1),
        contribution_TK=_widened(contribution_TK, most, 0),
        fired_T=fired_T,
        omitted_share_T=omitted_T,
    )


def _everywhere(pairs: Pairs, tokens: int, experts: int) -> tuple[None, Tensor]:
    """(T, E) contributions, 0 of those that a token does not reach."""
    contribution_X = pairs.norm_P.new_zeros(tokens * experts, dtype=torch.float32)
    contribution_X.index_add_(0, pairs.token_P * experts + pairs.expert_P, pairs.norm_P.float())
    return None, contribution_X.view(tokens, experts)


def _side_by_side(pairs: Pairs, tokens: int, experts: int) -> tuple[Tensor, Tensor]:
    """(T, M) experts and contributions of each token, 0 behind its last."""
    key_P, order_P = torch.sort(pairs.token_P * experts + pairs.expert_P, stable=True)
    key_F, where_P = torch.unique_consecutive(key_P, return_inverse=True)
    contribution_F = pairs.norm_P.new_zeros(len(key_F), dtype=torch.float32)
    contribution_F.index_add_(0, where_P, pairs.norm_P.float()[order_P])
    token_F = key_F // experts
    count_T = torch.bincount(token_F, minlength=tokens)
    place_F = torch.arange(len(key_F), device=key_F.device) - starts(count_T)[token_F]
    shape = tokens, max(1, int(count_T.max()))
    expert_TM, contribution_TM = key_F.new_zeros(shape), contribution_F.new_zeros(shape)
    expert_TM[token_F, place_F], contribution_TM[token_F, place_F] = key_F % experts, contribution_F
    return expert_TM, contribution_TM


def _widened(values_TK: Tensor, width: int, nothing: int) -> Tensor:
    return torch.nn.functional.pad(values_TK, (0, width - values_TK.shape[1]), value=nothing)
