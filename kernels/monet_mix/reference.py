"""The oracle of `monet_mix`: the composed gate of every pair of sub-experts, written out (Monet eq. 9 and 11)."""

# T tokens, H router heads, I and J sub-experts of the two axes, M hidden units of a sub-expert

import torch
from torch import Tensor


def monet_mix(hidden_TIM: Tensor, from_THI: Tensor, to_THJ: Tensor) -> Tensor:
    gate_TIJ = torch.einsum("thi,thj->tij", from_THI, to_THJ)
    return torch.einsum("tim,tij->tjm", hidden_TIM, gate_TIJ)
