"""PEER experts in int8 and int4: their tables are read as they are, and no float copy of them exists.

int8 is symmetric with one scale a row; int4 is the nibble plane w with the scale of one step, and while it trains a
second plane, the accumulator, that the forward pass never reads (kernels/sr_update).
"""

# N tokens, D model width, E experts, R rows of a table, P pairs (a token and an expert), B bytes of a packed row

from collections.abc import Callable

import torch
from torch import Tensor, nn

from kernels.expert_sum import bags, expert_sum, expert_sum_backward, expert_sum_forward
from kernels.expert_sum.reference import tokens_of_pairs
from kernels.packing import latent, pack_int4, unpack_int4
from kernels.sr_update import NibbleTable, RowGradients, pairs_by_row
from pipeline.models.peer import AxisBias, CellIndex, PeerRouting, PeerSpec, starts

SMALLEST_SCALE = 2.0**-14
"""Below it float16 is subnormal and rounds coarsely; a row this small contributes nothing."""


def quantize_int8(rows_ED: Tensor) -> tuple[Tensor, Tensor]:
    """(E, D) int8 values and (E) float16 scales: symmetric, the largest absolute value of a row at 127."""
    scale_E = (rows_ED.abs().amax(1) / 127).clamp(min=SMALLEST_SCALE).half()
    value_ED = (rows_ED / scale_E.float()[:, None]).round().clamp(-127, 127)
    return value_ED.to(torch.int8), scale_E


def quantize_int4(rows_ED: Tensor, clips: int) -> tuple[Tensor, Tensor]:
    """(E, D) int8 values in [-7, 7] and (E) float16 scales of one step.

    Of `clips` scales from 0.5 to 1 of the absmax scale, each row takes the one of least squared error.
    """
    full_E = rows_ED.abs().amax(1) / 7
    best_value_ED = torch.zeros_like(rows_ED, dtype=torch.int8)
    best_scale_E = torch.zeros_like(full_E, dtype=torch.float16)
    best_error_E = torch.full_like(full_E, torch.inf)
    for share in torch.linspace(1.0, 0.5, clips).tolist():
        scale_E = (full_E * share).clamp(min=SMALLEST_SCALE).half()
        value_ED = (rows_ED / scale_E.float()[:, None]).round().clamp(-7, 7)
        error_E = (value_ED * scale_E.float()[:, None] - rows_ED).square().sum(1)
        better_E = error_E < best_error_E
        best_value_ED[better_E] = value_ED[better_E].to(torch.int8)
        best_scale_E[better_E], best_error_E[better_E] = scale_E[better_E], error_E[better_E]
    return best_value_ED, best_scale_E


class Int8Table(nn.Module):
    value_ED: Tensor
    scale_E: Tensor

    def __init__(self, num_rows: int, width: int) -> None:
        super().__init__()
        self.register_buffer("value_ED", torch.zeros(num_rows, width, dtype=torch.int8))
        self.register_buffer("scale_E", torch.ones(num_rows, dtype=torch.float16))

    @property
    def stored(self) -> Tensor:
        """What kernels/expert_sum reads."""
        return self.value_ED

    def rows(self, row_R: Tensor) -> Tensor:
        """(R, D) float32 rows."""
        return self.value_ED[row_R].float() * self.scale_E[row_R].float()[:, None]

    def state_bytes(self) -> int:
        return _bytes(self)


class Int4Table(nn.Module):
    weight_EB: Tensor
    scale_E: Tensor
    accumulator_EB: Tensor
    moment_E: Tensor

    def __init__(self, num_rows: int, width: int, *, accumulator: bool) -> None:
        super().__init__()
        if width % 2:
            raise ValueError(f"int4 rows hold an even number of values; d_model is {width}")
        self.register_buffer("weight_EB", torch.zeros(num_rows, width // 2, dtype=torch.uint8))
        self.register_buffer("scale_E", torch.ones(num_rows, dtype=torch.float16))
        if accumulator:
            self.register_buffer("accumulator_EB", torch.zeros(num_rows, width // 2, dtype=torch.uint8))
            self.register_buffer("moment_E", torch.zeros(num_rows))

    @property
    def stored(self) -> Tensor:
        """What kernels/expert_sum reads."""
        return self.weight_EB

    def rows(self, row_R: Tensor) -> Tensor:
        """(R, D) float32 rows of what the forward pass reads: w times the step."""
        return unpack_int4(self.weight_EB[row_R]).float() * self.scale_E[row_R].float()[:, None]

    def latent_rows(self, row_R: Tensor) -> Tensor:
        """(R, D) float32 rows of the int8 view 16 w + a, an exact copy of the state."""
        q_RD = latent(self.weight_EB[row_R], self.accumulator_EB[row_R])
        return q_RD.float() * (self.scale_E[row_R].float()[:, None] / 16)

    def set(self, value_ED: Tensor, scale_E: Tensor) -> None:
        self.weight_EB.copy_(pack_int4(value_ED))
        self.scale_E.copy_(scale_E)

    def state(self) -> NibbleTable:
        return NibbleTable(self.weight_EB, self.accumulator_EB, self.scale_E, self.moment_E)

    def state_bytes(self) -> int:
        return _bytes(self)


def _bytes(module: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in module.state_dict().values())


class QuantizedExperts(nn.Module):
    """PEER experts over int8 or int4 tables; biases stay float.

    With an accumulator, a backward pass leaves the tables' gradients in `gradients` as weighted pairs.
    """

    def __init__(self, spec: PeerSpec, d_model: int) -> None:
        super().__init__()
        self.spec = spec
        self.index = CellIndex(spec)
        make: Callable[[], nn.Module] = (
            (lambda: Int8Table(spec.num_experts, d_model))
            if spec.precision == "int8"
            else (lambda: Int4Table(spec.num_experts, d_model, accumulator=spec.accumulator))
        )
        self.u, self.v = make(), make()
        self.bias = nn.Parameter(torch.zeros(spec.num_experts))
        self.axis_bias = AxisBias(spec, d_model) if spec.axis_bias else None
        self.gradients: tuple[RowGradients, RowGradients] | None = None
        """Of u and v, from the last backward pass; whoever updates the tables takes them."""

    def forward(self, x_ND: Tensor, routing: PeerRouting) -> Tensor:
        expert_P, start_N1, gate_P = self.index(routing)
        if self.spec.accumulator and torch.is_grad_enabled():
            y_ND = _TapedExpertSum.apply(x_ND, self.bias, gate_P, expert_P, start_N1, self)
        else:
            u, v, scales = self.u.stored, self.v.stored, (self.u.scale_E, self.v.scale_E)
            y_ND = expert_sum(x_ND, u, self.bias, v, expert_P, start_N1, gate_P, self.spec.activation, scales)
        return y_ND if self.axis_bias is None else y_ND + self.axis_bias(routing)

    def pre_activations(self, x_ND: Tensor, expert_P: Tensor, token_P: Tensor) -> Tensor:
        """(P): u . x + b of these pairs of an expert and a token, which are in order of experts."""
        row_R, count_R = torch.unique_consecutive(expert_P, return_counts=True)
        local_P = torch.repeat_interleave(torch.arange(len(row_R), device=row_R.device), count_R)
        return bags.row_dots(self.u.rows(row_R), x_ND, token_P, starts(count_R), local_P) + self.bias[expert_P]


class _TapedExpertSum(torch.autograd.Function):
    """expert_sum whose tables are no autograd leaves: their gradients stay weighted pairs, left with the layer."""

    @staticmethod
    def forward(ctx, x_ND, bias_E, gate_P, expert_P, start_N1, layer):  # noqa: ANN001, ANN205 - torch's own protocol
        u, v = layer.u, layer.v
        y_ND, pre_P = expert_sum_forward(
            x_ND, u.stored, u.scale_E, bias_E, v.stored, v.scale_E, expert_P, start_N1, gate_P, layer.spec.activation
        )
        ctx.save_for_backward(x_ND, expert_P, start_N1, gate_P, pre_P)
        ctx.layer = layer
        return y_ND

    @staticmethod
    def backward(ctx, dy_ND):  # type: ignore[override]  # noqa: ANN001, ANN205
        x_ND, expert_P, start_N1, gate_P, pre_P = ctx.saved_tensors
        u, v, spec = ctx.layer.u, ctx.layer.v, ctx.layer.spec
        dx_ND, dgate_P, du_P, dv_P = expert_sum_backward(
            dy_ND, u.stored, u.scale_E, v.stored, v.scale_E, expert_P, start_N1, gate_P, pre_P, spec.activation
        )
        order_P, row_R, start_R1 = pairs_by_row(expert_P)
        token_P = tokens_of_pairs(start_N1)[order_P]
        ctx.layer.gradients = (
            RowGradients(x_ND.detach(), row_R, start_R1, token_P, du_P[order_P]),
            RowGradients(dy_ND, row_R, start_R1, token_P, dv_P[order_P]),
        )
        dbias_E = du_P.new_zeros(spec.num_experts).index_add(0, expert_P, du_P)
        return dx_ND, dbias_E, dgate_P, None, None, None
