"""product_key_topk: which cells of the key grid a token reaches, by the k best sums or by a threshold on the sum."""

# T tokens, H heads, N row and M column sub-keys, K pairs kept, P pairs that fire

import torch
from torch import Tensor

from kernels import backends
from kernels.backends import cuda_kernels
from kernels.errors import Mistake
from kernels.product_key_topk import native, stock


@torch.library.custom_op("legible::product_key_topk", mutates_args=(), device_types="cpu")
def _topk(row_THN: Tensor, column_THM: Tensor, k: int) -> tuple[Tensor, Tensor]:
    _check_axes("product_key_topk", row_THN, column_THM)
    _check_k(row_THN, column_THM, k)
    _check_finite_above("product_key_topk", row_THN, column_THM)
    library = backends.cpu_library()
    if library is not None and row_THN.dtype == torch.float32:
        return native.topk(library, row_THN, column_THM, k)
    return stock.topk(row_THN, column_THM, k)


@_topk.register_kernel("cuda")
def _(row_THN: Tensor, column_THM: Tensor, k: int) -> tuple[Tensor, Tensor]:
    _check_axes("product_key_topk", row_THN, column_THM)
    _check_k(row_THN, column_THM, k)
    _check_finite_above("product_key_topk", row_THN, column_THM)
    return cuda_kernels("product_key_topk").topk(row_THN, column_THM, k)


@_topk.register_fake
def _(row_THN: Tensor, column_THM: Tensor, k: int) -> tuple[Tensor, Tensor]:
    shape = *row_THN.shape[:-1], k
    return row_THN.new_empty(shape), row_THN.new_empty(shape, dtype=torch.int64)


@torch.library.custom_op("legible::product_key_topk_backward", mutates_args=(), device_types="cpu")
def _topk_backward(dscore_THK: Tensor, cell_THK: Tensor, num_rows: int, num_columns: int) -> tuple[Tensor, Tensor]:
    return stock.topk_backward(dscore_THK, cell_THK, num_rows, num_columns)


@_topk_backward.register_kernel("cuda")
def _(dscore_THK: Tensor, cell_THK: Tensor, num_rows: int, num_columns: int) -> tuple[Tensor, Tensor]:
    return cuda_kernels("product_key_topk").topk_backward(dscore_THK, cell_THK, num_rows, num_columns)


@_topk_backward.register_fake
def _(dscore_THK: Tensor, cell_THK: Tensor, num_rows: int, num_columns: int) -> tuple[Tensor, Tensor]:
    leading = dscore_THK.shape[:-1]
    return dscore_THK.new_empty(*leading, num_rows), dscore_THK.new_empty(*leading, num_columns)


def _save(ctx, inputs, output) -> None:  # noqa: ANN001 - torch's own protocol
    row_THN, column_THM, _ = inputs
    ctx.sizes = row_THN.shape[-1], column_THM.shape[-1]
    ctx.save_for_backward(output[1])


def _gradients(ctx, dscore_THK: Tensor, _: Tensor):  # noqa: ANN001, ANN202 - torch's own protocol
    (cell_THK,) = ctx.saved_tensors
    return *_topk_backward(dscore_THK, cell_THK, *ctx.sizes), None


_topk.register_autograd(_gradients, setup_context=_save)


@torch.library.custom_op("legible::product_key_threshold", mutates_args=(), device_types="cpu")
def _threshold(row_THN: Tensor, column_THM: Tensor, threshold_H: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check_axes("product_key_threshold", row_THN, column_THM)
    _check_threshold(row_THN, threshold_H)
    _check_finite_above("product_key_threshold", row_THN, column_THM)
    library = backends.cpu_library()
    if library is not None and row_THN.dtype == torch.float32:
        return native.threshold(library, row_THN.contiguous(), column_THM.contiguous(), threshold_H.float())
    return stock.threshold(row_THN, column_THM, threshold_H)


@_threshold.register_kernel("cuda")
def _(row_THN: Tensor, column_THM: Tensor, threshold_H: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check_axes("product_key_threshold", row_THN, column_THM)
    _check_threshold(row_THN, threshold_H)
    _check_finite_above("product_key_threshold", row_THN, column_THM)
    return cuda_kernels("product_key_topk").threshold(row_THN, column_THM, threshold_H)


@_threshold.register_fake
def _(row_THN: Tensor, column_THM: Tensor, threshold_H: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    num_pairs = torch.library.get_ctx().new_dynamic_size()
    token_P, head_P, row_P, column_P = (row_THN.new_empty(num_pairs, dtype=torch.int64) for _ in range(4))
    return token_P, head_P, row_P, column_P


def _check_axes(op: str, row_THN: Tensor, column_THM: Tensor) -> None:
    row_shape, column_shape = tuple(row_THN.shape), tuple(column_THM.shape)
    if len(row_shape) != 3 or 0 in row_shape[1:]:
        raise Mistake(
            f"{op} got row_THN of shape {row_shape}; it takes (tokens, heads, rows), a head and a row at least"
        )
    if len(column_shape) != 3 or column_shape[:2] != row_shape[:2] or not column_shape[2]:
        raise Mistake(
            f"{op} got column_THM of shape {column_shape} for row_THN of shape {row_shape}; "
            f"it takes ({row_shape[0]}, {row_shape[1]}, columns), a column at least"
        )
    if not row_THN.is_floating_point():
        raise Mistake(f"{op} got row_THN of {row_THN.dtype}; scores are floating, convert them")
    if column_THM.dtype != row_THN.dtype:
        raise Mistake(
            f"{op} got column_THM of {column_THM.dtype} and row_THN of {row_THN.dtype}; convert one to the other's"
        )


def _check_k(row_THN: Tensor, column_THM: Tensor, k: int) -> None:
    num_keys = min(row_THN.shape[-1], column_THM.shape[-1])
    if not 1 <= k <= num_keys:
        raise Mistake(f"product_key_topk got k={k} for {num_keys} sub-keys an axis; use 1 to {num_keys}")


def _check_threshold(row_THN: Tensor, threshold_H: Tensor) -> None:
    num_heads = row_THN.shape[1]
    if threshold_H.shape != (num_heads,) or not threshold_H.is_floating_point():
        raise Mistake(
            f"product_key_threshold got threshold_H of shape {tuple(threshold_H.shape)}, {threshold_H.dtype} for "
            f"{num_heads} heads; it takes ({num_heads},), floating, one a head"
        )
    if bool(threshold_H.isnan().any()):
        head = int(threshold_H.isnan().nonzero()[0])
        raise Mistake(
            f"product_key_threshold got threshold_H with nan at head {head}; "
            "a threshold is a number, or minus infinity for none"
        )


def _check_finite_above(op: str, row_THN: Tensor, column_THM: Tensor) -> None:
    for name, score_THX in (("row_THN", row_THN), ("column_THM", column_THM)):
        # The maximum is nan if any score is, and nan is not below infinity.
        if score_THX.numel() and not bool(score_THX.amax() < torch.inf):
            wrong_THX = ~(score_THX < torch.inf)
            token, head, key = wrong_THX.nonzero()[0].tolist()
            raise Mistake(
                f"{op} got {name} with {score_THX[token, head, key].item()} at token {token}, head {head}, "
                f"sub-key {key}; scores must be numbers below infinity (minus infinity is allowed): "
                "the model diverged, lower the learning rate"
            )


def product_key_topk(row_THN: Tensor, column_THM: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(T, H, K) scores and int64 cells (row * M + column) of the k best sums, best first (PEER alg. 1).

    Scores are of one floating dtype; minus infinity is taken last, and which of equal sums are taken is not said.
    Differentiable in the scores, once. ValueError where shapes or dtypes do not fit, where k is more than an axis
    holds, and for nan and plus infinity.
    """
    return _topk(row_THN, column_THM, k)


def product_key_threshold(
    row_THN: Tensor, column_THM: Tensor, threshold_H: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(P) int64 token, head, row and column of every pair whose scores sum to more than its head's threshold.

    In lexicographic order, with no cap and no floor. Sums are rounded to the scores' dtype before they are compared.
    ValueError where shapes or dtypes do not fit, and for nan and scores of plus infinity.
    """
    return _threshold(row_THN, column_THM, threshold_H)
