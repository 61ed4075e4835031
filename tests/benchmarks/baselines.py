"""What the kernels are measured against: each as its users write it, in plain PyTorch, without a handicap."""

# T tokens, K experts a token, D model width, E experts, H heads, N sub-keys, I and J sub-experts, M hidden units

import torch
from torch import Tensor
from torch.nn import functional as F


def gather_and_einsum(x_TD: Tensor, u_ED: Tensor, v_ED: Tensor, expert_TK: Tensor, gate_TK: Tensor) -> Tensor:
    """(T, D): PEER's layer as public code has it, both tables' rows gathered to (T, K, D)."""
    hidden_TK = F.gelu(torch.einsum("td,tkd->tk", x_TD, F.embedding(expert_TK, u_ED)))
    return torch.einsum("tk,tkd->td", hidden_TK * gate_TK, F.embedding(expert_TK, v_ED))


def topk_composition(row_THN: Tensor, column_THN: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Product-key retrieval with torch.topk three times, over all k * k sums."""
    rows, columns = row_THN.topk(k, dim=-1), column_THN.topk(k, dim=-1)
    score_THC = (rows.values[..., :, None] + columns.values[..., None, :]).flatten(-2)
    cell_THC = (rows.indices[..., :, None] * column_THN.shape[-1] + columns.indices[..., None, :]).flatten(-2)
    best = score_THC.topk(k, dim=-1)
    return best.values, cell_THC.gather(-1, best.indices)


def monet_einsum(hidden_TIM: Tensor, from_THI: Tensor, to_THJ: Tensor) -> Tensor:
    """(T, J, M): Monet's mixing as its authors published it, one einsum of three operands."""
    return torch.einsum("tim,thi,thj->tjm", hidden_TIM, from_THI, to_THJ)


class DenseTable:
    """A float table, its gradient by autograd and its step by Adam: what sr_update replaces."""

    def __init__(self, num_experts: int, width: int, *, sparse: bool = False) -> None:
        self.table_ED = torch.zeros(num_experts, width, requires_grad=True)
        self.sparse = sparse
        self.optimizer = (
            torch.optim.SparseAdam([self.table_ED]) if sparse else torch.optim.Adam([self.table_ED], fused=True)
        )

    def step(self, x_TD: Tensor, expert_TK: Tensor, dh_TK: Tensor) -> None:
        """One step for the gradient dh of the dot products of tokens and rows."""
        self.optimizer.zero_grad(set_to_none=True)
        rows_TKD = F.embedding(expert_TK, self.table_ED, sparse=self.sparse)
        torch.einsum("td,tkd->tk", x_TD, rows_TKD).backward(dh_TK)
        self.optimizer.step()
