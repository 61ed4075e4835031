"""What symbol_table asks of its arguments, at every call, and of the numbers in its tables, once (`check_tables`)."""

# N tokens, D model width, E experts, P pairs of a token and a cell, O places looked back

from typing import NoReturn

import torch
from torch import Tensor

from kernels.symbol_table.functions import FUNCTIONS, SPLINE_CODE
from kernels.symbol_table.tables import SymbolTables, Tier, shapes


def check_shapes(
    x_ND: Tensor, cell_P: Tensor, start_N1: Tensor, gate_P: Tensor, context_ON: Tensor, tables: SymbolTables
) -> None:
    """ValueError for the first argument whose device, dtype, shape or strides do not fit. Reads no element."""
    if not x_ND.is_cpu:
        refuse("x_ND", f"a tensor on {x_ND.device}", "tensors of the CPU, where symbols run; move them there")
    if x_ND.ndim != 2 or x_ND.dtype != torch.float32 or x_ND.shape[1] % 2:
        refuse("x_ND", f"{_form(x_ND)}", "(tokens, width) of torch.float32, the width even")
    tokens, pairs = len(x_ND), len(cell_P)
    _check_form("cell_P", cell_P, (pairs,), torch.int64)
    _check_form("start_N1", start_N1, (tokens + 1,), torch.int64)
    _check_form("gate_P", gate_P, (pairs,), torch.float32)
    _check_form("context_ON", context_ON, (max(1, context_ON.shape[0]), tokens), torch.int64)
    cell_start_C1, *others = tables
    _check_form("cell_start_C1", cell_start_C1, (max(2, len(cell_start_C1)),), torch.int32)
    sizes = shapes(
        d_model=x_ND.shape[1], experts=len(tables.tier_E), coordinates=tables.index_EK.shape[-1],
        dense=len(tables.dense_u_FD), literals=len(tables.member_LV), vocabulary=tables.member_LV.shape[-1],
        splines=len(tables.spline_low_W),
    )  # fmt: skip
    for (name, (shape, dtype)), table in zip(sizes.items(), others, strict=True):
        _check_form(name, table, shape, dtype)


def _check_form(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if tensor.shape != shape or tensor.dtype != dtype or not tensor.is_cpu:
        refuse(name, f"{_form(tensor)} on {tensor.device}", f"shape {shape}, {dtype} on the CPU")
    if not tensor.is_contiguous():
        refuse(name, f"strides {tensor.stride()}", "a contiguous tensor; make it so once, where it is made")


def check_pairs(cell_P: Tensor, start_N1: Tensor, gate_P: Tensor, context_ON: Tensor, tables: SymbolTables) -> None:
    """ValueError for the first start, cell, gate or token that is out of range. The C++ kernel checks as it goes."""
    for at, wanted in ((0, 0), (len(start_N1) - 1, len(cell_P))):
        if int(start_N1[at]) != wanted:
            refuse_value("start_N1", at, int(start_N1[at]), wanted)
    falls_N = start_N1.diff() < 0
    if bool(falls_N.any()):
        at = int(falls_N.nonzero()[0])
        refuse_value("start_N1", at, int(start_N1[at]), int(start_N1[at + 1]))
    limits = (("cell_P", cell_P, 0, len(tables.cell_start_C1) - 2),)
    if len(tables.member_LV):
        limits += (("context_ON", context_ON, -1, tables.member_LV.shape[1] - 1),)
    for name, index, least, most in limits:
        wrong = ((index < least) | (index > most)).flatten()
        if bool(wrong.any()):
            at = int(wrong.nonzero()[0])
            refuse_value(name, at, int(index.flatten()[at]), most)
    if not bool(torch.isfinite(gate_P).all()):
        refuse_value("gate_P", int(torch.isfinite(gate_P).logical_not().nonzero()[0]), None, None)


def check_tables(tables: SymbolTables, *, places: int) -> None:
    """ValueError that names the first table with an entry that is out of range or not finite."""
    d_model, last_literal = tables.v_EB.shape[1] * 2, max(0, len(tables.member_LV) - 1)
    limits = {
        "tier_E": int(max(Tier)),
        "index_EK": d_model - 1,
        "gate_E": 15,
        "literal_a_E": last_literal,
        "literal_b_E": last_literal,
        "literal_offset_L": places - 1,
        "dense_row_E": max(0, len(tables.dense_u_FD) - 1),
        "spline_row_E": max(0, len(tables.spline_low_W) - 1),
    }
    for name, most in limits.items():
        table = getattr(tables, name)
        if table.numel() and not 0 <= int(table.min()) <= int(table.max()) <= most:
            raise ValueError(f"symbolic experts: {name} holds a value outside 0 to {most}")
    tier_E = tables.tier_E
    users = {
        "dense_row_E": (tier_E == Tier.T0, tables.dense_u_FD),
        "spline_row_E": (tables.code_E == SPLINE_CODE, tables.spline_low_W),
        "literal_a_E": ((tier_E == Tier.T2) | (tier_E == Tier.T3), tables.member_LV),
    }
    for name, (uses_E, table) in users.items():
        if len(table) == 0 and bool(uses_E.any()):
            raise ValueError(f"symbolic experts: {name} points into a table without rows")
    start_C1 = tables.cell_start_C1
    if int(start_C1[0]) != 0 or int(start_C1[-1]) != len(tier_E) or bool((start_C1.diff() < 0).any()):
        raise ValueError(f"symbolic experts: cell_start_C1 does not rise from 0 to {len(tier_E)}")
    if not bool((tables.spline_low_W < tables.spline_high_W).all()):
        raise ValueError("symbolic experts: spline_low_W is not below spline_high_W")
    codes = {*range(len(FUNCTIONS)), SPLINE_CODE}
    if unknown := set(torch.unique(tables.code_E).tolist()) - codes:
        raise ValueError(f"symbolic experts: code_E holds {sorted(unknown)}, which are not in the catalogue")
    for name, table in zip(tables._fields, tables, strict=True):
        if table.is_floating_point() and not bool(torch.isfinite(table).all()):
            raise ValueError(f"symbolic experts: {name} holds a value that is not finite")


def refuse_value(name: str, at: int, value: int | None, most: int | None) -> NoReturn:
    """ValueError for entry `at` of an argument; `value` and `most` None where it is a float that is not finite."""
    if value is None:
        refuse(name, f"a value that is not finite at {at}", "finite values; the model diverged, or its file is damaged")
    refuse(name, f"{value} at {at}", f"values up to {most} here; check the tables (`check_tables`) and their router")


def refuse(argument: str, got: str, wanted: str) -> NoReturn:
    raise ValueError(f"symbol_table got {argument} with {got}; it takes {wanted}")


def _form(tensor: Tensor) -> str:
    return f"shape {tuple(tensor.shape)}, {tensor.dtype}"
