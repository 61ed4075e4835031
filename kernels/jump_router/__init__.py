"""jump_router: which cells a token reaches through a jumprelu router, from scores or from few features of each score.

For inference alone: it has no gradients. torch's dispatcher is passed by unless torch compiles: it takes longer than a
token's whole layer.
"""

# N tokens, H heads, S scores, R features, X either, P pairs

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels import backends
from kernels.jump_router import native, stock
from kernels.jump_router.checks import check_shapes
from kernels.jump_router.tables import AxisStatistics, Fired, Rule, SparseRows


def _fired(read_XN: Tensor, rows: SparseRows | None, statistics: AxisStatistics, rule: Rule) -> Fired:
    check_shapes(read_XN, rows, statistics, rule)
    library = backends.cpu_library()
    if library is not None and read_XN.device.type == "cpu" and read_XN.dtype == torch.float32:
        return native.forward(library, read_XN.contiguous(), rows, statistics, rule)
    return stock.forward(read_XN, rows, statistics, rule)


@torch.library.custom_op("legible::jump_router", mutates_args=(), device_types=None)
def _jump_router(
    read_XN: Tensor,
    rows: Sequence[Tensor],
    statistics: Sequence[Tensor],
    num_rows: int,
    deviations: float,
    tie_margin: float,
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    rule = Rule(num_rows, deviations, tie_margin, epsilon)
    fired = _fired(read_XN, SparseRows(*rows) if rows else None, AxisStatistics(*statistics), rule)
    return Fired(*(part.clone() for part in fired))  # an operator's outputs may not share memory


@_jump_router.register_fake
def _(read_XN: Tensor, *others: object) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    pairs, keys = (torch.library.get_ctx().new_dynamic_size() for _ in range(2))
    begins = read_XN.shape[1] + 1
    return (
        read_XN.new_empty(pairs, dtype=torch.int64),
        read_XN.new_empty(begins, dtype=torch.int64),
        read_XN.new_empty(pairs),
        read_XN.new_empty(keys, dtype=torch.int32),
        read_XN.new_empty(begins, dtype=torch.int64),
        read_XN.new_empty(keys),
        read_XN.new_empty(keys),
    )


def jump_router(read_XN: Tensor, rows: SparseRows | None, statistics: AxisStatistics, rule: Rule) -> Fired:
    """What fires: (r, c) of head h iff A_r + B_c > threshold_h, with gate exp(A_r + B_c).

    A and B are the log-softmax of the scores that pass. Those pass that are at least so many deviations above their
    head's mean, and the best of a head and token always. `read_XN` are the scores, a row of tokens each, or without
    them features that `rows` are sums of. ValueError where shapes or dtypes do not fit, and for scores that are not
    finite.
    """
    if torch.compiler.is_compiling():
        return Fired(*_jump_router(read_XN, list(rows or ()), list(statistics), *rule))
    return _fired(read_XN, rows, statistics, rule)
