"""What symbol_table asks of its arguments, at every call, and of the numbers in its tables, once (`check_tables`)."""

# N tokens, D model width, E experts, L literals, G gates, P pairs of a token and a cell, B windows, T tokens of one

from typing import NoReturn

import torch
from torch import Tensor

from kernels.errors import Mistake
from kernels.symbol_table.functions import FUNCTIONS, SPLINE_CODE
from kernels.symbol_table.tables import SymbolTables, Tier, shapes


def check_shapes(
    x_ND: Tensor, cell_P: Tensor, start_N1: Tensor, gate_P: Tensor, tokens_BT: Tensor, tables: SymbolTables
) -> None:
    """ValueError for the first argument whose device, dtype, shape or strides do not fit. Reads no element."""
    if not x_ND.is_cpu:
        refuse("x_ND", f"a tensor on {x_ND.device}", "tensors of the CPU, where symbols run; move them there")
    if x_ND.ndim != 2 or x_ND.dtype != torch.float32 or x_ND.shape[1] % 2:
        refuse("x_ND", f"{_form(x_ND)}", "(tokens, width) of torch.float32, the width even")
    tokens, pairs = x_ND.shape[0], cell_P.shape[0]
    _check_form("cell_P", cell_P, (pairs,), torch.int64)
    _check_form("start_N1", start_N1, (tokens + 1,), torch.int64)
    _check_form("gate_P", gate_P, (pairs,), torch.float32)
    check_tokens(tokens_BT, tokens)
    check_forms(tables, x_ND.shape[1])


def check_forms(tables: SymbolTables, width: int) -> None:
    """ValueError for the first table whose device, dtype, shape or strides do not fit. Reads no element."""
    cell_start_C1, *others = tables
    _check_form("cell_start_C1", cell_start_C1, (max(2, cell_start_C1.shape[0]),), torch.int32)
    sizes = shapes(
        d_model=width, experts=tables.tier_E.shape[0], coordinates=tables.index_EK.shape[-1],
        dense=tables.dense_u_FD.shape[0], gates=tables.gate_G.shape[0], literals=tables.member_LV.shape[0],
        vocabulary=tables.member_LV.shape[-1], splines=tables.spline_low_W.shape[0],
    )  # fmt: skip
    for (name, (shape, dtype)), table in zip(sizes.items(), others, strict=True):
        _check_form(name, table, shape, dtype)


def check_tokens(tokens_BT: Tensor, count: int) -> None:
    """ValueError unless these are so many tokens, in windows."""
    if tokens_BT.dtype != torch.int64 or tokens_BT.ndim != 2 or tokens_BT.numel() != count or not tokens_BT.is_cpu:
        refuse("tokens_BT", _form(tokens_BT), f"{count} tokens, (windows, length) of torch.int64 on the CPU")


def _check_form(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if tensor.shape != shape or tensor.dtype != dtype or not tensor.is_cpu:
        refuse(name, f"{_form(tensor)} on {tensor.device}", f"shape {shape}, {dtype} on the CPU")
    if not tensor.is_contiguous():
        refuse(name, f"strides {tensor.stride()}", "a contiguous tensor; make it so once, where it is made")


def check_pairs(cell_P: Tensor, start_N1: Tensor, gate_P: Tensor, tokens_BT: Tensor, tables: SymbolTables) -> None:
    """ValueError for the first start, cell, gate or token that is out of range."""
    for at, wanted in ((0, 0), (len(start_N1) - 1, len(cell_P))):
        if int(start_N1[at]) != wanted:
            refuse_value("start_N1", at, int(start_N1[at]), wanted)
    falls_N = start_N1.diff() < 0
    if bool(falls_N.any()):
        at = int(falls_N.nonzero()[0])
        refuse_value("start_N1", at, int(start_N1[at]), int(start_N1[at + 1]))
    limits = (("cell_P", cell_P, len(tables.cell_start_C1) - 2),)
    if len(tables.member_LV):
        limits += (("tokens_BT", tokens_BT, tables.member_LV.shape[1] - 1),)
    for name, index, most in limits:
        wrong = ((index < 0) | (index > most)).flatten()
        if bool(wrong.any()):
            at = int(wrong.nonzero()[0])
            refuse_value(name, at, int(index.flatten()[at]), most)
    if not bool(torch.isfinite(gate_P).all()):
        refuse_value("gate_P", int(torch.isfinite(gate_P).logical_not().nonzero()[0]), None, None)


def check_tables(tables: SymbolTables, *, places: int) -> None:
    """ValueError that names the first table, and its entry, that is out of range, not finite, or part of a cycle."""
    num_literals, tier_E = len(tables.member_LV), tables.tier_E
    limits = {
        "tier_E": int(max(Tier)),
        "index_EK": tables.v_EB.shape[1] * 2 - 1,
        "rule_E": max(0, len(tables.gate_G) - 1),
        "gate_G": 15,
        "wire_a_G": max(0, num_literals + len(tables.gate_G) - 1),
        "wire_b_G": max(0, num_literals + len(tables.gate_G) - 1),
        "literal_offset_L": places - 1,
        "dense_row_E": max(0, len(tables.dense_u_FD) - 1),
        "spline_row_E": max(0, len(tables.spline_low_W) - 1),
    }
    for name, most in limits.items():
        table = getattr(tables, name)
        _refuse_where((table < 0) | (table > most), name, table, f"outside 0 to {most}")
    known_E = (tables.code_E < len(FUNCTIONS)) | (tables.code_E == SPLINE_CODE)
    _refuse_where(~known_E, "code_E", tables.code_E, f"no function: 0 to {len(FUNCTIONS) - 1}, or {SPLINE_CODE}")
    for name in ("wire_a_G", "wire_b_G"):
        wire_G, own_G = getattr(tables, name), num_literals + torch.arange(len(tables.gate_G))
        ahead = f"a cycle: the wires of gate g lie below {num_literals} + g, its own output"
        _refuse_where(wire_G >= own_G, name, wire_G, ahead)
    users = {
        "dense_row_E": (tier_E == Tier.T0, tables.dense_u_FD),
        "spline_row_E": (tables.code_E == SPLINE_CODE, tables.spline_low_W),
        "rule_E": ((tier_E == Tier.T2) | (tier_E == Tier.T3), tables.gate_G),
    }
    for name, (uses_E, table) in users.items():
        if len(table) == 0:
            _refuse_where(uses_E, name, getattr(tables, name), "a row of a table without rows")
    start_C1 = tables.cell_start_C1
    falls_C1 = torch.cat([start_C1[:1] != 0, start_C1.diff() < 0])
    falls_C1[-1] |= start_C1[-1] != len(tier_E)
    _refuse_where(falls_C1, "cell_start_C1", start_C1, f"no part of a rise from 0 to {len(tier_E)}")
    low_W = tables.spline_low_W
    _refuse_where(~(low_W < tables.spline_high_W), "spline_low_W", low_W, "not below spline_high_W")
    for name, table in zip(tables._fields, tables, strict=True):
        if table.is_floating_point():
            _refuse_where(~torch.isfinite(table), name, table, "not finite")


def _refuse_where(wrong: Tensor, name: str, table: Tensor, why: str) -> None:
    if bool(wrong.any()):
        at = int(wrong.flatten().nonzero()[0])
        raise Mistake(
            f"symbolic experts: {name} holds {table.flatten()[at].item()} at {at}, which is {why}; make the artifact "
            "again, or copy its file again"
        )


def refuse_value(name: str, at: int, value: int | None, most: int | None) -> NoReturn:
    """ValueError for entry `at` of an argument; `value` and `most` None where it is a float that is not finite."""
    if value is None:
        refuse(name, f"a value that is not finite at {at}", "finite values; the model diverged, or its file is damaged")
    refuse(name, f"{value} at {at}", f"values up to {most} here; check the tables (`check_tables`) and their router")


def refuse(argument: str, got: str, wanted: str) -> NoReturn:
    raise Mistake(f"symbol_table got {argument} with {got}; it takes {wanted}")


def _form(tensor: Tensor) -> str:
    return f"shape {tuple(tensor.shape)}, {tensor.dtype}"
