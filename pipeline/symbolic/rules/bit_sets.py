"""Sets of tokens as words of bits: logic over a whole sample is an instruction for every 64 of its tokens."""

# X whatever the sets are of, N tokens, W words of 64 bits, L literals, V vocabulary, M members of a literal's set,
# Y those of X that are an expert's own, O token positions looked back

import numpy as np
import torch
from torch import Tensor

from pipeline.models.literals import Literals

WORD = 64
TOKENS_A_PIECE = 512
"""Of the vocabulary, compared with the sample at once."""


def packed(true_XN: Tensor) -> Tensor:
    """(X, W) int64 of (X, N) bool; the bits after the last token are 0."""
    bytes_XB = np.packbits(true_XN.numpy(), axis=-1, bitorder="little")
    padded_XB = np.pad(bytes_XB, [(0, 0)] * (true_XN.ndim - 1) + [(0, -bytes_XB.shape[-1] % (WORD // 8))])
    return torch.from_numpy(padded_XB.view(np.int64))


def unpacked(word_XW: Tensor, num_tokens: int) -> Tensor:
    """(X, N) bool"""
    bits_XN = np.unpackbits(word_XW.contiguous().numpy().view(np.uint8), axis=-1, bitorder="little", count=num_tokens)
    return torch.from_numpy(bits_XN.view(np.bool_))


def count(word_XW: Tensor) -> Tensor:
    """(X) float: how many tokens are in each set."""
    ones_XW = np.bitwise_count(word_XW.contiguous().numpy().view(np.uint64))
    return torch.from_numpy(ones_XW.sum(axis=-1, dtype=np.int64)).float()


def everything(num_tokens: int) -> Tensor:
    """(W) the set of all tokens."""
    return packed(torch.ones(1, num_tokens, dtype=torch.bool))[0]


class LiteralWords:
    """The sets of tokens of which literals are true. The first `num_shared` literals are those of all experts."""

    def __init__(self, literals: Literals, num_shared: int, context_ON: Tensor) -> None:
        self._literals, self._num_shared = literals, num_shared
        self._shared_LW = packed(literals.values(context_ON, torch.arange(num_shared)))
        places = int(literals.offset_L[num_shared:].max()) + 1
        vocabulary = literals.member_LV.shape[1]
        self._token_OVW = torch.stack([_of_tokens(context_N, vocabulary) for context_N in context_ON[:places]])

    def of(self, literal_X: Tensor) -> Tensor:
        """(X, W) for the literals of these numbers; an expert's own sets have few members, which are put together."""
        own_X = literal_X >= self._num_shared
        found_XW = self._shared_LW[literal_X.clamp(max=self._num_shared - 1)]
        member_YV = self._literals.member_LV[literal_X[own_X]]
        most = int(member_YV.sum(1).max()) if len(member_YV) else 0
        kept_YM, at_YM = member_YV.to(torch.uint8).topk(most, dim=1)
        at_YM = torch.where(kept_YM.bool(), at_YM, member_YV.shape[1])
        offset_Y = self._literals.offset_L[literal_X[own_X]].long()
        own_YW = found_XW.new_zeros(len(offset_Y), found_XW.shape[1])
        for at_Y in at_YM.unbind(1):
            own_YW |= self._token_OVW[offset_Y, at_Y]
        found_XW[own_X] = own_YW
        return found_XW


def _of_tokens(context_N: Tensor, vocabulary: int) -> Tensor:
    """(V + 1, W) where each token is; one row of zeros more, for sets with fewer members than others."""
    pieces = [packed(context_N == token_V[:, None]) for token_V in torch.arange(vocabulary).split(TOKENS_A_PIECE)]
    return torch.cat([*pieces, torch.zeros_like(pieces[0][:1])])
