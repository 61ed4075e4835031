"""What `jump_router` refuses."""

# N tokens, H heads, S scores, R features, K features a score is a sum of

from typing import NoReturn

import torch
from torch import Tensor

from kernels.errors import Mistake
from kernels.jump_router.tables import AxisStatistics, Rule, SparseRows


def check_shapes(read_XN: Tensor, rows: SparseRows | None, statistics: AxisStatistics, rule: Rule) -> None:
    """ValueError for shapes and dtypes that do not fit each other; costs no pass over values."""
    if read_XN.ndim != 2 or not read_XN.is_floating_point():
        raise Mistake(
            f"jump_router got read_XN of shape {tuple(read_XN.shape)}, {read_XN.dtype}; it takes scores or features, "
            "floating, a row of tokens each"
        )
    check_statistics(read_XN.shape[0], read_XN.dtype, rows, statistics, rule)


def check_statistics(
    reads: int, dtype: torch.dtype, rows: SparseRows | None, statistics: AxisStatistics, rule: Rule
) -> int:
    """How many scores a router has whose numbers fit each other, `reads` being its scores or features; ValueError."""
    heads = statistics.threshold_H.shape[0]
    for name, number_H in zip(AxisStatistics._fields, statistics, strict=True):
        if number_H.shape != (heads,) or number_H.dtype != dtype:
            raise Mistake(
                f"jump_router got {name} of shape {tuple(number_H.shape)}, {number_H.dtype}; it takes ({heads},), "
                f"{dtype}, one a head"
            )
    scores = reads if rows is None else rows.index_SK.shape[0]
    if not heads or rule.num_rows < 1 or scores % heads or scores // heads <= rule.num_rows:
        raise Mistake(
            f"jump_router got {scores} scores for {heads} heads of {rule.num_rows} rows; it takes a head, a row and a "
            "column at least, and as many scores for each head"
        )
    if rows is not None:
        _check_rows(rows, dtype)
    return scores


def check_weight(weight_XD: Tensor, reads: int) -> None:
    """ValueError for a matrix that does not make so many scores or features."""
    if weight_XD.ndim != 2 or weight_XD.shape[0] != reads or weight_XD.dtype != torch.float32:
        raise Mistake(
            f"jump_router got weight_XD of shape {tuple(weight_XD.shape)}, {weight_XD.dtype}; it takes a matrix of "
            f"{reads} rows, torch.float32"
        )


def _check_rows(rows: SparseRows, dtype: torch.dtype) -> None:
    shape = rows.index_SK.shape
    if len(shape) != 2 or rows.index_SK.dtype != torch.int32:
        raise Mistake(f"jump_router got index_SK of shape {tuple(shape)}, {rows.index_SK.dtype}; it takes (S, K) int32")
    for name, wanted, part in (
        ("coefficient_SK", shape, rows.coefficient_SK),
        ("intercept_S", shape[:1], rows.intercept_S),
    ):
        if part.shape != wanted or part.dtype != dtype:
            raise Mistake(
                f"jump_router got {name} of shape {tuple(part.shape)}, {part.dtype}; it takes {tuple(wanted)}, {dtype}"
            )


_WRONG = {
    "score": "a score that is nan or infinite; scores must be finite: the model diverged, lower the learning rate",
    "index": "an index that points outside; make sparse rows with `compact`",
}


def refuse(what: str) -> NoReturn:
    raise Mistake(f"jump_router got {_WRONG[what]}")
