"""What expert_sum asks of its arguments; every message names one, says what was got, what is wanted, what to do."""

# T tokens, D model width, E experts, B stored values of a row, P pairs (a token and one of its experts)

from typing import NoReturn

import torch
from torch import Tensor

from kernels import backends
from kernels.errors import Mistake
from kernels.expert_sum import native

FLOATS = (torch.float32, torch.float64, torch.bfloat16)
PRECISIONS = "float32, float64, bfloat16, int8, or uint8 (two int4 a byte, kernels/packing.py)"


def check(
    x_TD: Tensor,
    u_EB: Tensor,
    u_scale_E: Tensor | None,
    bias_E: Tensor,
    v_EB: Tensor,
    v_scale_E: Tensor | None,
    expert_P: Tensor,
    start_T1: Tensor,
    gate_P: Tensor,
) -> None:
    """ValueError for the first argument that does not fit."""
    if x_TD.ndim != 2 or x_TD.dtype not in FLOATS:
        _refuse("x_TD", f"{_shape(x_TD)}, {x_TD.dtype}", "(tokens, width) of float32, float64 or bfloat16")
    check_tables(x_TD.shape[1], x_TD.dtype, u_EB, u_scale_E, bias_E, v_EB, v_scale_E)
    _check_pairs(x_TD.shape[0], u_EB.shape[0], expert_P, start_T1, gate_P)
    for name, tensor in (("u", u_EB), ("v", v_EB), ("expert_P", expert_P), ("start_T1", start_T1), ("gate_P", gate_P)):
        if tensor.device != x_TD.device:
            _refuse(name, f"a tensor on {tensor.device}", f"all on the device of x_TD, {x_TD.device}")


def check_tables(
    width: int,
    dtype: torch.dtype,
    u_EB: Tensor,
    u_scale_E: Tensor | None,
    bias_E: Tensor,
    v_EB: Tensor,
    v_scale_E: Tensor | None,
) -> None:
    """ValueError for the first table, scale or bias that does not fit the others, or tokens of this width and dtype."""
    num_experts = u_EB.shape[0]
    _check_table("u", u_EB, u_scale_E, num_experts, width, dtype)
    _check_table("v", v_EB, v_scale_E, num_experts, width, dtype)
    if u_EB.dtype != v_EB.dtype:
        _refuse("v", f"{v_EB.dtype} beside u of {u_EB.dtype}", "tables of one precision")
    if bias_E.shape != (num_experts,) or not bias_E.is_floating_point():
        _refuse("bias_E", f"{_shape(bias_E)}, {bias_E.dtype}", f"({num_experts},) of a float, one an expert")


def _check_table(
    name: str, table_EB: Tensor, scale_E: Tensor | None, num_experts: int, width: int, dtype: torch.dtype
) -> None:
    if table_EB.dtype == torch.uint8:
        if width % 2:
            _refuse(name, f"int4 rows for a width of {width}", "an even width: a byte holds two values")
        stored = width // 2
    elif table_EB.dtype in (*FLOATS, torch.int8):
        stored = width
    else:
        _refuse(name, f"{table_EB.dtype}", PRECISIONS)
    if table_EB.shape != (num_experts, stored):
        _refuse(name, _shape(table_EB), f"({num_experts}, {stored}) for {num_experts} experts of width {width}")
    if not table_EB.is_contiguous():
        _refuse(name, f"strides {table_EB.stride()}", "contiguous rows; make it so once, where the table is made")
    if (table_EB.dtype == torch.float64) != (dtype == torch.float64):
        _refuse(name, f"{table_EB.dtype} with x_TD of {dtype}", "float64 in both or in neither")
    if table_EB.is_floating_point() != (scale_E is None):
        got = "no scale" if scale_E is None else "a scale"
        _refuse(
            f"{name}_scale_E", f"{got} for {table_EB.dtype}", "one float16 scale a row of int8 and int4 tables alone"
        )
    if scale_E is not None and (scale_E.shape != (num_experts,) or scale_E.dtype != torch.float16):
        _refuse(f"{name}_scale_E", f"{_shape(scale_E)}, {scale_E.dtype}", f"({num_experts},) of torch.float16")


def _check_pairs(tokens: int, num_experts: int, expert_P: Tensor, start_T1: Tensor, gate_P: Tensor) -> None:
    if start_T1.shape != (tokens + 1,) or start_T1.dtype != torch.int64:
        _refuse(
            "start_T1", f"{_shape(start_T1)}, {start_T1.dtype} for {tokens} tokens", f"({tokens + 1},) of torch.int64"
        )
    pairs = expert_P.shape[0]
    if expert_P.ndim != 1 or expert_P.dtype != torch.int64:
        _refuse("expert_P", f"{_shape(expert_P)}, {expert_P.dtype}", "(pairs,) of torch.int64")
    if gate_P.shape != expert_P.shape or not gate_P.is_floating_point():
        _refuse("gate_P", f"{_shape(gate_P)}, {gate_P.dtype}", f"({pairs},) of a float, one a pair")
    library = backends.cpu_library()
    given = expert_P, start_T1, gate_P
    readable = expert_P.is_cpu and gate_P.dtype == torch.float32 and all(tensor.is_contiguous() for tensor in given)
    if library is not None and readable and native.pairs_are_sound(library, *given, num_experts):
        return
    wrong = [(start_T1[0] != 0) | (start_T1[-1] != pairs) | (start_T1.diff() < 0).any()]
    if pairs:
        lowest, highest = torch.aminmax(expert_P)
        wrong += [(lowest < 0) | (highest >= num_experts), ~torch.isfinite(gate_P).all()]
    # One answer to wait for on a GPU; what is wrong is looked up only then.
    starts_wrong, *others = torch.stack(wrong).tolist()
    if starts_wrong:
        got = f"starts from {int(start_T1[0])} to {int(start_T1[-1])} for {pairs} pairs"
        _refuse("start_T1", got, f"starts that ascend from 0 to {pairs}")
    if not any(others):
        return
    if others[0]:
        lowest, highest = (int(end) for end in torch.aminmax(expert_P))
        index = lowest if lowest < 0 else highest
        _refuse("expert_P", f"index {index}", f"0 to {num_experts - 1}, rows of the table")
    pair = int(torch.isfinite(gate_P).logical_not().nonzero()[0])
    _refuse(
        "gate_P", f"{float(gate_P[pair])} at pair {pair}", "finite gates; the model diverged, lower its learning rate"
    )


def _shape(tensor: Tensor) -> str:
    return f"shape {tuple(tensor.shape)}"


def _refuse(argument: str, got: str, wanted: str) -> NoReturn:
    raise Mistake(f"expert_sum got {argument} with {got}; it takes {wanted}")
