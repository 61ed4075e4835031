"""How much text stands behind a metric, and its batches: held out for what is reported, validation for choices."""

import math
from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from pipeline.corpus.splits import Corpus, Split
from pipeline.corpus.windows import held_out_windows
from pipeline.run import steps

# B windows, T tokens a window


class MeasureConfig(BaseModel):
    """How much of the held-out split stands behind a metric."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: int = Field(default=65_536, ge=256, description="Held-out tokens, in windows spread evenly over the split.")
    batch_size: int = Field(default=16, ge=1, description="Windows a forward pass.")


def held_out_batches(
    corpus: Corpus, config: MeasureConfig, context_length: int, what: str = "measure"
) -> Iterator[tuple[Tensor, Tensor]]:
    """(B, T) inputs and targets of the held-out windows, the same at every call: for what is reported."""
    return _batches(corpus.held_out, config, context_length, what)


def validation_batches(
    corpus: Corpus, config: MeasureConfig, context_length: int, what: str = "measure"
) -> Iterator[tuple[Tensor, Tensor]]:
    """The same of the validation split: for what is chosen."""
    return _batches(corpus.validation, config, context_length, what)


def _batches(split: Split, config: MeasureConfig, context_length: int, what: str) -> Iterator[tuple[Tensor, Tensor]]:
    inputs_WT, targets_WT = held_out_windows(split, num_tokens=config.tokens, length=context_length)
    for batch in steps(what, math.ceil(len(inputs_WT) / config.batch_size)):
        rows = slice(batch * config.batch_size, (batch + 1) * config.batch_size)
        yield inputs_WT[rows], targets_WT[rows]
