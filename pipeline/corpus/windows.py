"""Windows of a split: at random for training, spread evenly for measuring.

Shape suffixes: B batch, W windows, T positions of a window.
"""

import torch
from torch import Tensor

from kernels.errors import Mistake
from pipeline.corpus.splits import Corpus, Split


def random_windows(split: Split, *, batch: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(inputs_BT, targets_BT), int64 on the CPU: every start in the split is equally likely."""
    _require_a_window(split, length)
    starts_B = torch.randint(split.num_tokens - length, (batch,), generator=generator)
    positions_BT = starts_B[:, None] + torch.arange(length)
    return split.tokens_at(positions_BT), split.tokens_at(positions_BT + 1)


def held_out_windows(split: Split, *, num_tokens: int | None, length: int) -> tuple[Tensor, Tensor]:
    """(inputs_WT, targets_WT), int64: windows that do not overlap, the same at every call.

    About `num_tokens` targets, spread evenly over the split; None, or more than there are, takes every full
    window. `target_positions` says where the targets stand."""
    targets_WT = target_positions(split, num_tokens=num_tokens, length=length)
    return split.tokens_at(targets_WT - 1), split.tokens_at(targets_WT)


def target_positions(split: Split, *, num_tokens: int | None, length: int) -> Tensor:
    """Positions_WT of the targets of `held_out_windows`, for `split.domain_of` and `split.document_of`."""
    _require_a_window(split, length)
    available = (split.num_tokens - 1) // length
    count = available if num_tokens is None else min(available, max(1, num_tokens // length))
    starts_W = torch.arange(count) * available // count * length
    return starts_W[:, None] + torch.arange(1, length + 1)


def require_windows(corpus: Corpus, length: int) -> None:
    """ValueError if any split is too short for one window: told before a stage trains, not after."""
    for name, split in (("train", corpus.train), ("validation", corpus.validation), ("held-out", corpus.held_out)):
        _require_a_window(split, length, f"the {name} split")


def _require_a_window(split: Split, length: int, what: str = "a split") -> None:
    if split.num_tokens <= length:
        raise Mistake(
            f"{what} of {split.num_tokens} tokens holds no window of {length} inputs and their targets "
            f"({length + 1} tokens); give the corpus more text, prepare it again if it is older than its validation "
            "split, or use a shorter window"
        )
