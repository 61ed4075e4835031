"""PEER experts whose tables are no parameters: floats, int8 and int4, read as they are, with no float copy of them.

int8 is symmetric with one scale a row; int4 is the nibble plane w with the scale of one step, and while it trains a
second plane, the accumulator, that the forward pass never reads (kernels/sr_update).
"""

# N tokens, D model width, E experts, R rows of a table, P pairs (a token and an expert), B bytes of a packed row,
# G groups of a row with a scale each, S groups of all rows, F values of a group

import torch
from torch import Tensor, nn

from kernels.backends import CpuLibrary, cpu_library_for
from kernels.expert_sum import bags, expert_sum, expert_sum_backward, expert_sum_forward
from kernels.expert_sum.grouped import grouped_expert_sum
from kernels.expert_sum.reference import tokens_of_pairs
from kernels.fired_sum import ExpertLayer
from kernels.packing import latent, pack_int4, unpack_int4
from kernels.sr_update import NibbleTable, RowGradients, pairs_by_row
from pipeline.models.kept import Kept
from pipeline.models.number_types import FixedFormat, outside_autocast
from pipeline.models.peer import AxisBias, CellIndex, PeerSpec, expert_layer, starts
from pipeline.models.peer_routing import PeerRouting

SMALLEST_SCALE = 2.0**-14
"""Below it float16 is subnormal and rounds coarsely; a row this small contributes nothing."""

LARGEST_SCALE = torch.finfo(torch.float16).max

INT8_MOST, INT4_MOST = 127, 7
"""The largest absolute values that tables hold: symmetric, so that a row and its negative round alike."""


def absmax_scales(rows_ED: Tensor, most: int, groups: int = 1) -> Tensor:
    """(E, G) float32 scales that put the largest absolute value of each group of a row at `most`.

    ValueError names a row that is not finite, or whose scale is too large for float16.
    """
    largest_EG = rows_ED.unflatten(1, (groups, rows_ED.shape[1] // groups)).abs().amax(2)
    finite_E = torch.isfinite(largest_EG).all(1)
    if not bool(finite_E.all()):
        row = int(finite_E.logical_not().nonzero()[0])
        raise ValueError(
            f"row {row} holds a value that is not finite, and has no scale; "
            "the model diverged: train it again with a lower learning rate"
        )
    if bool((largest_EG > most * LARGEST_SCALE).any()):
        row = int(largest_EG.amax(1).argmax())
        raise ValueError(
            f"row {row} holds {float(largest_EG[row].max()):.17g}; with a float16 scale a row holds at most "
            f"{most} * {LARGEST_SCALE:.0f} = {most * LARGEST_SCALE:.0f}: train the model with a lower learning rate or "
            "more weight decay"
        )
    return largest_EG / most


def quantize_int8(rows_ED: Tensor) -> tuple[Tensor, Tensor]:
    """(E, D) int8 values and (E) float16 scales: symmetric, the largest absolute value of a row at 127."""
    scale_E = absmax_scales(rows_ED, INT8_MOST)[:, 0].clamp(min=SMALLEST_SCALE).half()
    value_ED = (rows_ED / scale_E.float()[:, None]).round().clamp(-INT8_MOST, INT8_MOST)
    return value_ED.to(torch.int8), scale_E


def quantize_int4(rows_ED: Tensor, clips: int, groups: int = 1) -> tuple[Tensor, Tensor]:
    """(E, D) int8 values in [-7, 7] and float16 scales of one step: (E), or (E, G) of more groups than one.

    Of `clips` scales from 0.5 to 1 of the absmax scale, each group of a row takes the one of least squared error.
    """
    full_S = absmax_scales(rows_ED, INT4_MOST, groups).flatten()
    group_SF = rows_ED.reshape(len(full_S), rows_ED.shape[1] // groups)
    best_value_SF = torch.zeros_like(group_SF, dtype=torch.int8)
    best_scale_S = torch.zeros_like(full_S, dtype=torch.float16)
    best_error_S = torch.full_like(full_S, torch.inf)
    for share in torch.linspace(1.0, 0.5, clips).tolist():
        scale_S = (full_S * share).clamp(min=SMALLEST_SCALE).half()
        value_SF = (group_SF / scale_S.float()[:, None]).round().clamp(-INT4_MOST, INT4_MOST)
        error_S = (value_SF * scale_S.float()[:, None] - group_SF).square().sum(1)
        better_S = error_S < best_error_S
        best_value_SF[better_S] = value_SF[better_S].to(torch.int8)
        best_scale_S[better_S], best_error_S[better_S] = scale_S[better_S], error_S[better_S]
    return best_value_SF.view_as(rows_ED), best_scale_S if groups == 1 else best_scale_S.view(-1, groups)


class Int8Table(FixedFormat):
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


class Int4Table(FixedFormat):
    """Rows of nibbles with one scale a row, or (for inference alone) a scale for each of its groups of values.

    A row of G groups lies as G rows of width D / G would, each packed by itself.
    """

    weight_EB: Tensor
    scale_E: Tensor
    """Of one scale a row."""
    scale_EG: Tensor
    """Of more."""
    accumulator_EB: Tensor
    moment_E: Tensor

    def __init__(self, num_rows: int, width: int, *, accumulator: bool, groups: int = 1) -> None:
        super().__init__()
        if width % 2:
            raise ValueError(f"int4 rows hold an even number of values; d_model is {width}")
        if width // 2 % groups:
            raise ValueError(
                f"scale_groups={groups} does not divide d_model / 2 = {width // 2}, and int4 groups are of one even "
                "width; use a divisor of it"
            )
        assert groups == 1 or not accumulator
        self.groups, self.has_accumulator = groups, accumulator
        self.register_buffer("weight_EB", torch.zeros(num_rows, width // 2, dtype=torch.uint8))
        name, shape = ("scale_E", (num_rows,)) if groups == 1 else ("scale_EG", (num_rows, groups))
        self.register_buffer(name, torch.ones(shape, dtype=torch.float16))
        if accumulator:
            self.register_buffer("accumulator_EB", torch.zeros(num_rows, width // 2, dtype=torch.uint8))
            self.register_buffer("moment_E", torch.zeros(num_rows))

    @property
    def stored(self) -> Tensor:
        """What kernels/expert_sum reads."""
        return self.weight_EB

    @property
    def step_EG(self) -> Tensor:
        """(E, G) scales, for any number of groups."""
        return self.scale_E[:, None] if self.groups == 1 else self.scale_EG

    def rows(self, row_R: Tensor) -> Tensor:
        """(R, D) float32 rows of what the forward pass reads: w times the step."""
        value_RGF = unpack_int4(self.weight_EB[row_R].unflatten(1, (self.groups, -1))).float()
        return (value_RGF * self.step_EG[row_R].float()[:, :, None]).flatten(1)

    def latent_rows(self, row_R: Tensor) -> Tensor:
        """(R, D) float32 rows of the int8 view 16 w + a, an exact copy of the state."""
        q_RD = latent(self.weight_EB[row_R], self.accumulator_EB[row_R])
        return q_RD.float() * (self.scale_E[row_R].float()[:, None] / 16)

    def set(self, value_ED: Tensor, scale: Tensor) -> None:
        """What `quantize_int4` gives for as many groups."""
        self.weight_EB.copy_(pack_int4(value_ED.unflatten(1, (self.groups, -1))).flatten(1))
        self.step_EG.copy_(scale.view(-1, self.groups))

    def state(self) -> NibbleTable:
        return NibbleTable(self.weight_EB, self.accumulator_EB, self.scale_E, self.moment_E)

    def state_bytes(self) -> int:
        return _bytes(self)


def _bytes(module: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in module.state_dict().values())


class FloatTable(FixedFormat):
    value_ED: Tensor
    scale_E = None
    """Floats have none."""

    def __init__(self, num_rows: int, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("value_ED", torch.zeros(num_rows, width, dtype=dtype))

    @property
    def stored(self) -> Tensor:
        """What kernels/expert_sum reads."""
        return self.value_ED

    def rows(self, row_R: Tensor) -> Tensor:
        """(R, D) float32 rows."""
        return self.value_ED[row_R].float()

    def state_bytes(self) -> int:
        return _bytes(self)


Table = FloatTable | Int8Table | Int4Table


class QuantizedExperts(nn.Module):
    """PEER experts over tables that no autograd leaf holds, of any precision; biases stay float.

    While `trains`, a backward pass leaves the tables' gradients in `gradients` as weighted pairs.
    """

    u: Table
    v: Table

    def __init__(self, spec: PeerSpec, d_model: int) -> None:
        super().__init__()
        self.spec = spec
        self.index = CellIndex(spec)
        self.u, self.v = _table(spec, d_model), _table(spec, d_model)
        self.bias = nn.Parameter(torch.zeros(spec.num_experts))
        self.axis_bias = AxisBias(spec, d_model) if spec.axis_bias else None
        self.gradients: tuple[RowGradients, RowGradients] | None = None
        """Of u and v, from the last backward pass; whoever updates the tables takes them."""
        self.trains = spec.accumulator
        self.ready: Kept[ExpertLayer] = Kept()

    @outside_autocast
    def forward(self, x_ND: Tensor, routing: PeerRouting) -> Tensor:
        library = cpu_library_for(x_ND)
        if routing.packed is not None and library is not None and self.spec.scale_groups == 1:
            layer = self.ready.of(self, library, lambda: self._layer(library))
            return layer(x_ND.contiguous(), routing.packed)
        expert_P, start_N1, gate_P = self.index(routing)
        if self.trains and torch.is_grad_enabled():
            y_ND = _TapedExpertSum.apply(x_ND, self.bias, gate_P, expert_P, start_N1, self)
        elif isinstance(self.u, Int4Table) and isinstance(self.v, Int4Table) and self.u.groups > 1:
            u, v = (self.u.stored, self.u.scale_EG), (self.v.stored, self.v.scale_EG)
            y_ND = grouped_expert_sum(x_ND, *u, self.bias, *v, expert_P, start_N1, gate_P, self.spec.activation)
        else:
            u, v, scales = self.u.stored, self.v.stored, (self.u.scale_E, self.v.scale_E)
            y_ND = expert_sum(x_ND, u, self.bias, v, expert_P, start_N1, gate_P, self.spec.activation, scales)
        return y_ND if self.axis_bias is None else y_ND + self.axis_bias(routing)

    def _layer(self, library: CpuLibrary) -> tuple[ExpertLayer, tuple[Tensor, ...]]:
        u, v = (self.u.stored, self.u.scale_E), (self.v.stored, self.v.scale_E)
        return expert_layer(library, self.spec, self.index, u, self.bias, v, self.axis_bias)

    def pre_activations(self, x_ND: Tensor, expert_P: Tensor, token_P: Tensor) -> Tensor:
        """(P): u . x + b of these pairs of an expert and a token, which are in order of experts."""
        row_R, count_R = torch.unique_consecutive(expert_P, return_counts=True)
        local_P = torch.repeat_interleave(torch.arange(len(row_R), device=row_R.device), count_R)
        return bags.row_dots(self.u.rows(row_R), x_ND, token_P, starts(count_R), local_P) + self.bias[expert_P]


def _table(spec: PeerSpec, width: int) -> Table:
    match spec.precision:
        case "float32" | "bfloat16":
            dtype = torch.float32 if spec.precision == "float32" else torch.bfloat16
            return FloatTable(spec.num_experts, width, dtype)
        case "int8":
            return Int8Table(spec.num_experts, width)
        case "int4":
            return Int4Table(spec.num_experts, width, accumulator=spec.accumulator, groups=spec.scale_groups)
        case "float":
            raise AssertionError("tables of precision float are parameters of PeerExperts")


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
        if ctx.layer.gradients is not None:
            raise AssertionError("the tables have not taken the gradients of the backward pass before this one")
        order_P, row_R, start_R1 = pairs_by_row(expert_P)
        token_P = tokens_of_pairs(start_N1)[order_P]
        ctx.layer.gradients = (
            RowGradients(x_ND.detach(), row_R, start_R1, token_P, du_P[order_P]),
            RowGradients(dy_ND, row_R, start_R1, token_P, dv_P[order_P]),
        )
        dbias_E = du_P.new_zeros(spec.num_experts).index_add(0, expert_P, du_P)
        return dx_ND, dbias_E, dgate_P, None, None, None
