"""The sixteen two-input gates, from their numbers alone: an oracle for everything that holds or draws one."""

from torch import Tensor

GATE_NAMES = (
    "0", "a & b", "a & ~b", "a", "~a & b", "b", "a ^ b", "a | b",
    "~(a | b)", "~(a ^ b)", "~b", "a | ~b", "~a", "~a | b", "~(a & b)", "1",
)  # fmt: skip


def gate(kind: int, a: Tensor, b: Tensor) -> Tensor:
    """Gate `kind` of two boolean tensors of one shape: bit 3 - (2 a + b) of the number."""
    return (kind >> (3 - (2 * a.long() + b.long()))).bitwise_and(1).bool()
