"""monet_mix: carry hidden units from one axis of sub-experts to the other, head by head, without a (T, I, J) tensor."""

# T tokens, H router heads, I and J sub-experts of the two axes, M hidden units of a sub-expert

import torch
from torch import Tensor


def monet_mix(hidden_TIM: Tensor, from_THI: Tensor, to_THJ: Tensor) -> Tensor:
    """(T, J, M): sum over h, i of to_hj * from_hi * hidden_im (Monet, arXiv 2412.04139, eq. 9 and 11)."""
    head_THM = torch.bmm(from_THI, hidden_TIM)
    return torch.bmm(to_THJ.transpose(1, 2), head_THM)
