"""The oracle of `fired_sum`: the oracles of its parts, one after the other. Never optimised."""

# N tokens, D model width, E experts, C cells, I sub-keys of the rows, J of the columns

import torch
from torch import Tensor

from kernels.axis_bias import reference as axes
from kernels.expert_sum import reference as experts
from kernels.jump_router.tables import Fired


def fired_sum(
    x_ND: Tensor,
    fired: Fired,
    cell_start_C1: Tensor,
    u_ED: Tensor,
    bias_E: Tensor,
    v_ED: Tensor,
    act: str,
    biases: tuple[Tensor, Tensor] | None,
    heads: int,
) -> Tensor:
    """(N, D) float64: for each token the sum of gate * act(u . x + b) * v over its cells' experts, and axis biases."""
    chosen, gates, starts, cell_start = [], [], [0], cell_start_C1.tolist()
    for n in range(len(x_ND)):
        for p in range(int(fired.start_N1[n]), int(fired.start_N1[n + 1])):
            cell = int(fired.cell_P[p])
            chosen += range(cell_start[cell], cell_start[cell + 1])
            gates += (cell_start[cell + 1] - cell_start[cell]) * [float(fired.gate_P[p])]
        starts.append(len(chosen))
    y_ND = experts.expert_sum(
        x_ND.double(), u_ED.double(), bias_E.double(), v_ED.double(),
        torch.tensor(chosen, dtype=torch.int64), torch.tensor(starts), torch.tensor(gates, dtype=torch.float64), act,
    )  # fmt: skip
    if biases is None:
        return y_ND
    return y_ND + axes.axis_bias(fired.score_Q, fired.gate_Q, fired.key_start_N1, heads, *biases)
